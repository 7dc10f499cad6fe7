"""``aioirqfd trace``: what a flight recorder has written, for people."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from aioirqfd.tracing import FlightFileError, FlightKind, FlightLog, FlightRecord, follow_flight, read_flight
from aioirqfd.tracing.flight_log import TURNED_ON
from aioirqfd.tracing.journey import BEGINNINGS, Journeys, Request
from aioirqfd.tracing.trouble import Trouble, called, name, seconds, troubles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from aioirqfd.tracing.journey import Irq, Journey

_TROUBLE: Final = 1
_FAILED: Final = 2
_SHOWN: Final = 7
"""Troubles that are shown: with what stands before and behind them, ten lines."""
_WORDS: Final[dict[FlightKind | None, str]] = {
    FlightKind.SEEN: "seen",
    FlightKind.WAKEUP: "seen",
    FlightKind.HELD: "held",
    FlightKind.DEFERRED: "deferred to the work queue",
    FlightKind.HANDLER_BEGUN: "handler begun",
    FlightKind.HANDLER_ENDED: "handler ended",
    FlightKind.HANDLER_RAISED: "handler raised",
    FlightKind.INJECTED: "injected",
    FlightKind.DROPPED: "dropped",
    FlightKind.FAILED: "failed",
    FlightKind.ACKED: "acknowledged",
    FlightKind.UNBOUND: "deassigned",
    FlightKind.INJECTING: "handed to inject()",
    FlightKind.UNROUTED: "held for want of a route",
    FlightKind.OFFLOADED: "offloaded to the kernel",
    FlightKind.BROKEN: "given up",
}
_EPILOG: Final = """\
examples:
  aioirqfd trace /dev/shm/vmm.flight
  aioirqfd trace /dev/shm/vmm.flight --gsi timer --since=-2 --last 20
  aioirqfd trace /dev/shm/vmm.flight --perfetto vmm.perfetto-trace      and open it on https://ui.perfetto.dev

exit status: 0 no trouble was found; 1 trouble was found; 2 the file cannot be read, or the other one not be written
"""


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(
        prog="aioirqfd trace",
        description="Show what a flight recorder has written: trouble first, then each interrupt from its signal to its end.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("file", metavar="FILE", help="of a program that runs, has ended, or was killed")
    add("--gsi", metavar="GSI", help="this interrupt only: its number, its name, or an irqfd's name")
    add("--device", metavar="NAME", help="only what was written by whoever has this in his name")
    add("--queue", type=int, metavar="N", help="the queues of this number only")
    add("--since", type=_finite, metavar="SECONDS", help="from so long after the beginning; negative: before the end")
    add("--last", type=int, default=40, metavar="N", help="show so many of the last journeys (default 40); 0: all")
    add("--slow", type=_finite, default=0.01, metavar="SECONDS", help="to wait so long is trouble (default 0.01)")
    add("--json", action="store_true", help="all of it as one JSON object; with --follow, an object a line")
    add("--follow", action="store_true", help="show records as they are written, until the program ends")
    add("--perfetto", metavar="OUT", help="write Perfetto's format; needs the extra perfetto")
    add("--plot", metavar="OUT", help="draw how long interrupts waited, as .svg or .png; PNG needs the extra plot")
    return made


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text}")
    return value


def run(arguments: Sequence[str]) -> int:
    """Show the file; see the exit status in the help."""
    given = parser().parse_args(arguments)
    try:
        if given.follow:
            return _follow(given)
        return _show(given)
    except BrokenPipeError:
        # Whoever was reading has seen enough. What Python would flush at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, FlightFileError) as error:
        print(f"aioirqfd trace: {error}", file=sys.stderr)
        return _FAILED


# -- what is looked at -----------------------------------------------------------------------------------------------


def _wanted(given: argparse.Namespace, log: FlightLog) -> Callable[[FlightRecord], bool]:
    numbers: set[object] | None = None
    irqfds: set[tuple[object, object, object]] = set()
    if given.gsi is not None:
        numbers = {gsi for gsi, named in log.gsis.items() if named == given.gsi}
        if given.gsi.isdecimal():
            numbers.add(int(given.gsi))
        for source, gsi, fd in (one for one, named in log.irqfds.items() if named == given.gsi):
            irqfds |= {(source, gsi, fd), (source, gsi, -1)}  # with what becomes of the gsi

    def wanted(record: FlightRecord) -> bool:
        fields = record.fields
        if record.event == TURNED_ON:
            return True
        whose = fields.get("source", ""), fields.get("gsi"), fields.get("fd")
        if numbers is not None and fields.get("gsi") not in numbers and whose not in irqfds:
            return False
        if given.device is not None and given.device.lower() not in str(fields.get("source", "")).lower():
            return False
        return given.queue is None or fields.get("queue") == given.queue

    return wanted


def _check(given: argparse.Namespace, log: FlightLog) -> None:
    """Raise for a name that nobody has: what is not there has no trouble."""
    there = {record.fields["gsi"] for record in log.records if "gsi" in record.fields}
    names = {*log.gsis.values(), *log.irqfds.values()}
    if given.gsi is not None and given.gsi not in {*map(str, there), *names}:
        raise FlightFileError(f"{given.file} has no gsi {given.gsi}, but {_listed({*there, *names})}")
    sources = set(log.sources.values())
    if given.device is not None and not any(given.device.lower() in one.lower() for one in sources):
        raise FlightFileError(f"{given.file} has no device {given.device}, but {_listed(sources)}")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


def _begin(given: argparse.Namespace, log: FlightLog) -> int:
    """The first time that is looked at."""
    since: float | None = given.since
    if since is None:
        return 0
    whence = log.header.monotonic_ns if since >= 0 else log.records[-1].time_ns if log.records else 0
    return whence + round(since * 1e9)


def _show(given: argparse.Namespace) -> int:
    whole = read_flight(given.file)
    _check(given, whole)
    wanted, begin = _wanted(given, whole), _begin(given, whole)
    records = [record for record in whole.records if record.time_ns >= begin and wanted(record)]
    log = dataclasses.replace(whole, records=records)
    journeys = Journeys(records, whole=not whole.overwritten and not begin, until_ns=whole.until_ns)
    found = troubles(log, journeys, slow_ns=round(given.slow * 1e9))
    if given.perfetto is not None:
        _write_perfetto(given.perfetto, log, journeys)
    if given.plot is not None:
        _write_plot(given.plot, log, journeys)
    last = _last(journeys, given.last)
    if given.json:
        json.dump(_as_json(given.file, log, journeys, found, last), sys.stdout, indent=1, default=str)
        print()
    else:
        for line in _lines(given.file, log, journeys, found, last):
            print(line)
    sys.stdout.flush()
    return _TROUBLE if found else 0


def _write_perfetto(path: str, log: FlightLog, journeys: Journeys) -> None:
    try:
        from aioirqfd.tracing.perfetto import to_perfetto  # noqa: PLC0415  slow, and needs what is an extra

        data = to_perfetto(log, journeys)
    except ImportError as error:
        raise OSError(f"--perfetto needs the package perfetto ({error}); pip install 'aioirqfd[perfetto]'") from error
    Path(path).write_bytes(data)


def _write_plot(path: str, log: FlightLog, journeys: Journeys) -> None:
    from aioirqfd.tracing.plot import to_png, to_svg  # noqa: PLC0415  seldom wanted

    suffix = Path(path).suffix
    if suffix == ".svg":
        Path(path).write_text(to_svg(log, journeys), encoding="utf-8")
    elif suffix == ".png":
        try:
            Path(path).write_bytes(to_png(log, journeys))
        except ImportError as error:
            raise OSError(f"--plot of a PNG needs resvg-py ({error}); pip install 'aioirqfd[plot]'") from error
    else:
        raise OSError(f"--plot writes SVG or PNG: give it a name that ends in .svg or .png, not {path!r}")


def _last(journeys: Journeys, count: int) -> list[Journey | Request]:
    found: list[Journey | Request] = [*journeys.all]
    for queue in journeys.queues.values():
        found += queue.requests
    found.sort(key=lambda one: one.at_ns)
    return found[-count:] if count > 0 else found


# -- for people ------------------------------------------------------------------------------------------------------


def _lines(
    file: str, log: FlightLog, journeys: Journeys, found: Sequence[Trouble], last: Sequence[Journey | Request]
) -> Iterator[str]:
    yield f"{file}: {_of_file(log)}"
    if not found:
        yield "no trouble"
    else:
        yield f"{len(found)} troubles:" if len(found) > 1 else "one trouble:"
    for trouble in found[:_SHOWN]:
        yield f"  ! {trouble.text}"
    if len(found) > _SHOWN:
        yield f"  and {len(found) - _SHOWN} more; --json has them all"
    yield ""
    yield from _table(log, journeys)
    for one in last:
        yield f"{(one.at_ns - log.header.monotonic_ns) / 1e9:+13.6f} s  {_line(one, log)}"


def _of_file(log: FlightLog) -> str:
    header = log.header
    if log.closed:
        state = "closed"
    else:
        state = "the program runs" if _runs(header.pid) else "the program has ended without closing it: it was killed"
    try:
        begun = dt.datetime.fromtimestamp(header.realtime_ns / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        begun = "at no time"
    lost = f", {log.overwritten} of them overwritten" if log.overwritten else ""
    torn = f", {log.torn} torn" if log.torn else ""
    return f"pid {header.pid}, begun {begun}, {log.total} records{lost}{torn}; {state}"


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _table(log: FlightLog, journeys: Journeys) -> Iterator[str]:
    interrupts = _interrupts(journeys)
    if interrupts:
        width = max(9, *(len(name(irq, log)) for irq in interrupts))
        yield f"{'interrupt':<{width}} {'signals':>9} {'injected':>9}   waited: half {'99 %':>8} {'longest':>9} {'acked in':>9}"
        for irq, own in interrupts.items():
            waits = sorted(wait for one in own if (wait := one.waited_ns) is not None)
            acks = sorted(one.acked_ns - one.raised_ns for one in own if one.acked_ns and one.raised_ns)
            spans = (_part(waits, 0.5), _part(waits, 0.99), _part(waits, 1), _part(acks, 0.5))
            signals, injected = sum(one.signals for one in own), sum(one.injected_ns is not None for one in own)
            texts = [seconds(span) if span is not None else "-" for span in spans]
            yield (
                f"{name(irq, log):<{width}} {signals:>9} {injected:>9}   {texts[0]:>12} {texts[1]:>8}"
                f" {texts[2]:>9} {texts[3]:>9}"
            )
        yield ""
    for irq, since in journeys.offloaded.items():
        at = f"{(since - log.header.monotonic_ns) / 1e9:+.6f} s"
        yield f"{name(irq, log)}: offloaded since {at}: the kernel injects, and KVM has the counts; there is no record of a signal here"
    if journeys.offloaded:
        yield ""
    if journeys.queues:
        width = max(5, *map(len, journeys.queues))
        yield f"{'queue':<{width}} {'kicks':>9} {'requests':>9} {'answered':>9} {'calls':>9} {'took: half':>11} {'longest':>9}"
        for source, queue in journeys.queues.items():
            took = sorted(
                one.completed_ns - one.begun_ns for one in queue.requests if one.completed_ns and one.begun_ns
            )
            texts = [seconds(span) if span is not None else "-" for span in (_part(took, 0.5), _part(took, 1))]
            requests = sum(one.count for one in queue.requests)
            answered = sum(one.count for one in queue.requests if one.completed_ns is not None)
            yield (
                f"{source:<{width}} {len(queue.kicks):>9} {requests:>9} {answered:>9} {len(queue.calls):>9}"
                f" {texts[0]:>11} {texts[1]:>9}"
            )
        yield ""


def _interrupts(journeys: Journeys) -> dict[Irq, list[Journey]]:
    found: dict[Irq, list[Journey]] = {}
    for journey in journeys.all:
        found.setdefault(journey.irq, []).append(journey)
    return found


def _part(ordered: Sequence[int], share: float) -> int | None:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else None


def _line(one: Journey | Request, log: FlightLog) -> str:
    if isinstance(one, Request):
        what = f"request {one.head}" if one.head is not None else f"{one.count} requests"
        text = f"{one.source}: {what}"
        if one.begun_ns is not None and one.completed_ns is not None:
            text += f", completed after {seconds(one.completed_ns - one.begun_ns)}"
        elif one.completed_ns is None:
            text += ", not completed"
        if one.called_ns is not None and one.completed_ns is not None:
            text += f", call {seconds(one.called_ns - one.completed_ns)} later"
        return text
    parts: list[str] = []
    before = one.at_ns
    for step in one.steps:
        what = _WORDS.get(step.kind, step.event.replace("_", " "))
        count = step.fields.get("count")
        many = f" ({count} signals)" if step.kind in BEGINNINGS and count != 1 else ""
        parts.append(f"{what}{many}" + (f" after {seconds(step.time_ns - before)}" if parts else ""))
        before = step.time_ns
    return f"{name(one.irq, log)}: {', '.join(parts)}"


# -- for programs ----------------------------------------------------------------------------------------------------


def _as_json(
    file: str, log: FlightLog, journeys: Journeys, found: Sequence[Trouble], last: Sequence[Journey | Request]
) -> dict[str, object]:
    header = log.header
    return {
        "file": file,
        "pid": header.pid,
        "begun_ns": header.realtime_ns,
        "closed": log.closed,
        "records": log.total,
        "overwritten": log.overwritten,
        "torn": log.torn,
        "trouble": [trouble._asdict() for trouble in found],
        "interrupts": [
            {
                **irq._asdict(),
                "name": called(irq, log),
                "signals": sum(one.signals for one in own),
                "injected": sum(one.injected_ns is not None for one in own),
                "longest_ns": max((one.waited_ns or 0 for one in own), default=None),
            }
            for irq, own in _interrupts(journeys).items()
        ],
        "offloaded": [{**irq._asdict(), "since_ns": since} for irq, since in journeys.offloaded.items()],
        "queues": [
            {
                "source": queue.source,
                "queue": queue.number,
                "kicks": len(queue.kicks),
                "requests": sum(one.count for one in queue.requests),
                "calls": len(queue.calls),
            }
            for queue in journeys.queues.values()
        ],
        "journeys": [
            {
                **one.irq._asdict(),
                "name": called(one.irq, log),
                "steps": [{"event": step.event, "time_ns": step.time_ns, "number": step.number} for step in one.steps],
                "waited_ns": one.waited_ns,
                "acked_ns": one.acked_ns,
            }
            for one in last
            if not isinstance(one, Request)
        ],
        "requests": [
            {
                "source": one.source,
                "queue": one.queue,
                "head": one.head,
                "count": one.count,
                "begun_ns": one.begun_ns,
                "completed_ns": one.completed_ns,
                "called_ns": one.called_ns,
            }
            for one in last
            if isinstance(one, Request)
        ],
    }


def _follow(given: argparse.Namespace) -> int:
    begin: int | None = None
    for log in follow_flight(given.file):
        begin = _begin(given, log) if begin is None else begin
        wanted = _wanted(given, log)
        for record in log.records:
            if record.time_ns >= begin and wanted(record):
                print(_record(record, log, as_json=given.json))
        if log.torn:
            print(f"aioirqfd trace: {log.torn} records were overwritten before they were read", file=sys.stderr)
        sys.stdout.flush()
    return 0


def _record(record: FlightRecord, log: FlightLog, *, as_json: bool) -> str:
    whose = record.fields.get("source", ""), record.fields.get("gsi"), record.fields.get("fd")
    named = called(cast("tuple[str, int, int]", whose), log)
    if as_json:
        told = {"event": record.event, "time_ns": record.time_ns, "number": record.number}
        return json.dumps({**told, **({"name": named} if named else {}), **record.fields}, default=str)
    fields = " ".join(f"{key}={value}" for key, value in record.fields.items())
    at = (record.time_ns - log.header.monotonic_ns) / 1e9
    return f"{at:+13.6f} s  {record.event:<20} {fields}" + (f" ({named})" if named else "")
