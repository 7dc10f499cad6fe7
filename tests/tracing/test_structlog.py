"""The structlog tracer: events at the right level, and structlog left as the application has set it up."""

from __future__ import annotations

import subprocess
import sys

import pytest
import structlog
from structlog.testing import LogCapture, capture_logs

from aioirqfd import EventFd, InjectionError, IrqchipPin, IrqManager, Retry, Tracer
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import FlakySink
from aioirqfd.tracing import StructlogTracer


@pytest.fixture
def log():
    capture = LogCapture()
    logger = structlog.wrap_logger(None, processors=[capture])
    return capture.entries, logger


def names(entries):
    return [(entry["event"], entry["log_level"]) for entry in entries]


async def test_a_life_at_info_level(log):
    entries, logger = log
    async with IrqManager(RecordingSink(), tracer=StructlogTracer(logger)) as irqs:
        with EventFd() as kick:
            fd, eventfd_id = kick.fileno(), kick.id
            irqfd = irqs.assign(kick, gsi=5)
            kick.signal(3)
            irqfd.mask()
            irqfd.unmask()
            irqs.set_routing({})
            await irqs.pause()
            irqs.resume()
    assert names(entries) == [
        ("irqfd_assigned", "info"),
        ("irqfd_masked", "info"),
        ("irqfd_unmasked", "info"),
        ("routing_changed", "info"),
        ("manager_paused", "info"),
        ("manager_resumed", "info"),
        ("irqfd_deassigned", "info"),
    ]
    assert {key: entries[0][key] for key in ("gsi", "fd", "eventfd_id")} == {
        "gsi": 5,
        "fd": fd,
        "eventfd_id": eventfd_id,
    }
    assert entries[-1]["signals"] == 3


def test_a_queue_that_is_stopped_for_a_reason_is_a_warning(log):
    entries, logger = log
    tracer = StructlogTracer(logger)
    tracer.emit("vring_stopped", queue=0, base=1, reason=None)
    tracer.emit("vring_stopped", queue=0, base=1, reason="a looped chain")
    assert names(entries) == [("vring_stopped", "info"), ("vring_stopped", "warning")]


def test_a_front_end_that_is_disconnected_for_a_reason_is_a_warning(log):
    entries, logger = log
    tracer = StructlogTracer(logger)
    tracer.emit("frontend_disconnected", reason=None)
    tracer.emit("frontend_disconnected", reason="version 2 of the protocol, not 1")
    tracer.emit("inflight_too_small", queue=0, size=256, room=128)
    tracer.emit("device_failed", what="reset()", error="KeyError()")
    assert [level for _, level in names(entries)] == ["info", "warning", "warning", "warning"]


async def test_nothing_for_each_interrupt_unless_asked_and_then_at_debug_level(log):
    entries, logger = log
    for per_interrupt in (False, True):
        entries.clear()
        tracer = StructlogTracer(logger, per_interrupt=per_interrupt)
        async with IrqManager(RecordingSink(), tracer=tracer) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                for _ in range(4):
                    kick.signal()
        injected = [entry for entry in entries if entry["event"] == "interrupt_injected"]
        assert len(injected) == (4 if per_interrupt else 0)
        assert {entry["log_level"] for entry in injected} <= {"debug"}


async def test_trouble_is_a_warning_and_a_loss_of_hope_an_error(log):
    entries, logger = log
    with pytest.raises(InjectionError):
        async with IrqManager(
            FlakySink(2), routing={5: IrqchipPin("ioapic", 5)}, retry=Retry(1, 0, 0), tracer=StructlogTracer(logger)
        ) as irqs:
            with EventFd() as kick, EventFd() as nowhere:
                irqs.assign(kick, gsi=5)
                irqs.assign(nowhere, gsi=99)
                kick.signal()
                await irqs.flush()
                nowhere.signal()
                await irqs.flush()
    levels = dict(names(entries))
    assert levels["injection_failed"] == "warning"
    assert levels["interrupt_dropped"] == "warning"
    assert levels["irqfd_broken"] == "error"
    broken = next(entry for entry in entries if entry["event"] == "irqfd_broken")
    assert broken["error"] == "OSError(5, 'flaky')"


async def test_without_a_logger_it_is_the_applications():
    with capture_logs() as entries:
        async with IrqManager(RecordingSink(), tracer=StructlogTracer()):
            pass
        tracer: Tracer = StructlogTracer()
        tracer.emit("anything", gsi=5)
    assert entries == [{"event": "anything", "gsi": 5, "log_level": "info"}]


def test_it_is_never_configured_and_not_even_imported_unless_used():
    program = (
        "import sys, aioirqfd, aioirqfd.tracing\n"
        "assert 'structlog' not in sys.modules\n"
        "from aioirqfd.tracing import StructlogTracer\n"
        "StructlogTracer()\n"
        "import structlog\n"
        "assert not structlog.is_configured()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
