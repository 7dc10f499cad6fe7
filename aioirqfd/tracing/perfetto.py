"""A flight recorder's log in Perfetto's format, to be looked at on https://ui.perfetto.dev.

Each irqfd has two rows: its signals, a slice each from the signal to the injection, and its injections, with the ends of interrupt. A flow
leads from the signal to the injection and on to the end of interrupt. Each queue has a row for its calls, and as many for its
requests as there were at one time; a flow leads from a request to its call. State changes have a row of their own.

Source: Perfetto's ``TrackEvent`` protobufs, from its package ``perfetto``.
"""

from __future__ import annotations

import importlib
import itertools
from typing import TYPE_CHECKING, Any, Final, final

from aioirqfd.tracing.journey import Journeys
from aioirqfd.tracing.trouble import name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aioirqfd.tracing.flight_log import FlightLog
    from aioirqfd.tracing.journey import Irq, Journey, Queue

_SEQUENCE: Final = 1


def to_perfetto(log: FlightLog, journeys: Journeys | None = None) -> bytes:
    """A trace of this log.

    Args:
        log: What was read.
        journeys: What of it is shown; None: all.

    Raises:
        ImportError: The package ``perfetto`` is not installed.
    """
    return _Trace(log, Journeys.of(log) if journeys is None else journeys).data()


@final
class _Trace:
    def __init__(self, log: FlightLog, journeys: Journeys) -> None:
        # Any: the package's protobuf modules are made at run time.
        self._pb: Any = importlib.import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
        self._log = log
        self._trace = self._pb.Trace()
        self._uuids = itertools.count(1)
        self._flows = itertools.count(1)
        self._clocks()
        self._process = self._row(f"pid {log.header.pid}", None)
        rows: dict[Irq, tuple[int, int]] = {}
        for journey in journeys.all:
            if journey.irq not in rows:
                irq = name(journey.irq, log)
                rows[journey.irq] = (
                    self._row(f"{irq}: signals", self._process),
                    self._row(f"{irq}: injections", self._process),
                )
            self._journey(journey, *rows[journey.irq], until=journeys.ended_ns)
        for queue in journeys.queues.values():
            self._queue(queue, until=journeys.ended_ns)
        self._changes()

    def data(self) -> bytes:
        """The trace's bytes."""
        return bytes(self._trace.SerializeToString())

    def _packet(self, time_ns: int) -> Any:
        packet = self._trace.packet.add()
        packet.timestamp = time_ns
        packet.timestamp_clock_id = self._pb.BUILTIN_CLOCK_MONOTONIC
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet

    def _clocks(self) -> None:
        header = self._log.header
        snapshot = self._trace.packet.add().clock_snapshot
        snapshot.primary_trace_clock = self._pb.BUILTIN_CLOCK_MONOTONIC
        for clock, time_ns in (
            (self._pb.BUILTIN_CLOCK_MONOTONIC, header.monotonic_ns),
            (self._pb.BUILTIN_CLOCK_REALTIME, header.realtime_ns),
        ):
            one = snapshot.clocks.add()
            one.clock_id, one.timestamp = clock, time_ns

    def _row(self, title: str, parent: int | None) -> int:
        descriptor = self._trace.packet.add().track_descriptor
        descriptor.uuid = uuid = next(self._uuids)
        if parent is None:
            descriptor.process.pid = self._log.header.pid
            descriptor.process.process_name = title
        else:
            descriptor.parent_uuid = parent
            descriptor.name = title
        return uuid

    def _slice(
        self, row: int, title: str, begun_ns: int, ended_ns: int, flow: int, told: Mapping[str, object] | None = None
    ) -> None:
        event = self._event(row, title, self._pb.TrackEvent.TYPE_SLICE_BEGIN, begun_ns, flow, told)
        event.name = title
        self._event(row, None, self._pb.TrackEvent.TYPE_SLICE_END, ended_ns)

    def _instant(
        self, row: int, title: str, time_ns: int, flow: int = 0, told: Mapping[str, object] | None = None
    ) -> None:
        self._event(row, title, self._pb.TrackEvent.TYPE_INSTANT, time_ns, flow, told)

    def _event(
        self,
        row: int,
        title: str | None,
        kind: int,
        time_ns: int,
        flow: int = 0,
        told: Mapping[str, object] | None = None,
    ) -> Any:
        event = self._packet(time_ns).track_event
        event.track_uuid, event.type = row, kind
        if title is not None:
            event.name = title
        if flow:
            event.flow_ids.append(flow)
        for key, value in (told or {}).items():
            annotation = event.debug_annotations.add()
            annotation.name = key
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
                annotation.uint_value = value
            else:
                annotation.string_value = str(value)
        return event

    def _journey(self, journey: Journey, signals: int, injections: int, *, until: int) -> None:
        flow = next(self._flows)
        ended = journey.injected_ns or (journey.steps[-1].time_ns if journey.ended else until)
        told: dict[str, object] = {"signals": journey.signals}
        told |= {step.event: step.time_ns - journey.at_ns for step in journey.steps[1:]}
        if journey.whole:
            title = "signal" if journey.injected_ns else "dropped" if journey.ended else "not injected"
            self._slice(signals, title, journey.at_ns, ended, flow, told)
        if journey.injected_ns is not None:
            self._instant(injections, "injection", journey.injected_ns, flow)
        if journey.acked_ns is not None:
            self._instant(injections, "acknowledgement", journey.acked_ns, flow)

    def _queue(self, queue: Queue, *, until: int) -> None:
        title = queue.source or f"queue {queue.number}"
        calls = self._row(f"{title}: calls", self._process)
        rows: list[tuple[int, int]] = []  # of requests: when its last one ends, and the row
        flows: dict[int, int] = {}
        for request in sorted(queue.requests, key=lambda one: one.at_ns):
            begun, ended = request.at_ns, request.completed_ns or until
            place = next((place for place, (free, _) in enumerate(rows) if free <= begun), len(rows))
            if place == len(rows):
                rows.append((0, self._row(f"{title}: requests", self._process)))
            rows[place] = ended, rows[place][1]
            flow = 0
            if request.called_ns is not None:
                flow = flows.setdefault(request.called_ns, next(self._flows))
            what = f"request {request.head}" if request.head is not None else f"{request.count} requests"
            self._slice(rows[place][1], what, begun, ended, flow)
        for called_ns in queue.calls:
            self._instant(calls, "call", called_ns, flows.get(called_ns, 0))

    def _changes(self) -> None:
        changes = [record for record in self._log.records if record.kind is None]
        if changes:
            row = self._row("state changes", self._process)
            for record in changes:
                self._instant(row, record.event, record.time_ns, told=record.fields)
