"""A log in Perfetto's format, read back by Perfetto's own classes: the rows, the slices and the flows."""

from __future__ import annotations

import pytest

from aioirqfd.cli.main import main
from aioirqfd.flight import FlightKind
from aioirqfd.tracing import FlightRecorder
from aioirqfd.tracing.perfetto import to_perfetto
from tests.tracing.test_journey import irq, line, log, queue

pb2 = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
K = FlightKind
BEGIN, END, INSTANT = 1, 2, 3


def read(data: bytes):
    """The rows by their number, and the events: row, kind, name, time, flows."""
    trace = pb2.Trace.FromString(data)
    rows, events = {}, []
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            one = packet.track_descriptor
            rows[one.uuid] = one.name or one.process.process_name
            assert one.parent_uuid == 0 or one.parent_uuid in rows
        elif packet.HasField("track_event"):
            one = packet.track_event
            assert packet.timestamp_clock_id == pb2.BUILTIN_CLOCK_MONOTONIC
            events.append((rows[one.track_uuid], one.type, one.name, packet.timestamp, list(one.flow_ids)))
    return list(rows.values()), events


def test_an_interrupt_flows_from_its_signal_to_its_injection_and_its_end():
    of = log(irq(100, K.WAKEUP), line(110, K.RAISED), irq(130, K.INJECTED), line(170, K.ACKED), line(171, K.LOWERED))
    rows, events = read(to_perfetto(of))
    signals, injections = "timer (gsi 5, fd 7, Sink): signals", "timer (gsi 5, fd 7, Sink): injections"
    assert rows == ["pid 1", signals, injections]
    assert events == [
        (signals, BEGIN, "signal", 100, [1]),
        (signals, END, "", 130, []),
        (injections, INSTANT, "injection", 130, [1]),
        (injections, INSTANT, "acknowledgement", 170, [1]),
    ]


def test_what_is_not_injected_lasts_to_the_end():
    of = log(irq(100, K.SEEN), irq(200, K.SEEN, fd=8), irq(300, K.INJECTED, fd=8))
    _, events = read(to_perfetto(of))
    assert [(name, time) for _, kind, name, time, _ in events if kind != INSTANT] == [
        ("not injected", 100),
        ("", 300),
        ("signal", 200),
        ("", 300),
    ]


def test_requests_at_one_time_have_rows_of_their_own_and_flow_to_their_call():
    of = log(
        queue(1, K.REQUEST_BEGUN, head=4),
        queue(2, K.REQUEST_BEGUN, head=5),
        queue(3, K.REQUEST_COMPLETED, head=5),
        queue(4, K.REQUEST_COMPLETED, head=4),
        queue(5, K.CALL),
        queue(6, K.REQUEST_BEGUN, head=6),
        queue(7, K.REQUEST_COMPLETED, head=6),
    )
    rows, events = read(to_perfetto(of))
    title = "Disk queue 0: requests"
    assert rows == ["pid 1", "Disk queue 0: calls", title, title]
    (flow,) = {flow for *_, flows in events for flow in flows}
    assert events == [
        (title, BEGIN, "request 4", 1, [flow]),
        (title, END, "", 4, []),
        (title, BEGIN, "request 5", 2, [flow]),
        (title, END, "", 3, []),
        (title, BEGIN, "request 6", 6, []),
        (title, END, "", 7, []),
        ("Disk queue 0: calls", INSTANT, "call", 5, [flow]),
    ]


def test_the_command_writes_it_with_the_state_changes(tmp_path):
    path, out = tmp_path / "flight", tmp_path / "out"
    with FlightRecorder(path) as recorder:
        recorder.emit("manager_paused", irqfds=3)
        recorder.ring.put(K.SEEN, 5, 7, 1)
        recorder.ring.put(K.INJECTED, 5, 7, 1)
    assert main(["trace", str(path), "--perfetto", str(out), "--slow", "3600"]) == 0
    trace = pb2.Trace.FromString(out.read_bytes())
    (paused,) = [one.track_event for one in trace.packet if one.track_event.name == "manager_paused"]
    assert [(one.name, one.uint_value) for one in paused.debug_annotations] == [("irqfds", 3)]
    (clocks,) = [one.clock_snapshot for one in trace.packet if one.HasField("clock_snapshot")]
    header = recorder.log().header
    assert {one.clock_id: one.timestamp for one in clocks.clocks} == {
        pb2.BUILTIN_CLOCK_MONOTONIC: header.monotonic_ns,
        pb2.BUILTIN_CLOCK_REALTIME: header.realtime_ns,
    }
