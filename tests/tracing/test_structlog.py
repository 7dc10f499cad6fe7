"""The structlog tracer: events at the right level, and structlog left as the application has set it up."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

import pytest
import structlog
from structlog.contextvars import bound_contextvars, clear_contextvars, get_contextvars, merge_contextvars
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


# -- context variables, tracebacks, other loggers ------------------------------------------------------------------------


@pytest.fixture
def merged():
    """What is logged with structlog's context variables in it."""
    capture = LogCapture()
    clear_contextvars()
    yield capture.entries, structlog.wrap_logger(None, processors=[merge_contextvars, capture])
    clear_contextvars()


async def test_what_is_bound_where_an_irqfd_was_assigned_comes_out_on_its_events(merged):
    entries, logger = merged
    sink = FlakySink(1)
    async with IrqManager(sink, retry=Retry(1, 0, 0), tracer=StructlogTracer(logger)) as irqs:
        with EventFd() as kick, EventFd() as other:
            with bound_contextvars(vm="blue", device="disk"):
                irqfd = irqs.assign(kick, gsi=5)
            irqs.assign(other, gsi=6)
            kick.signal()
            await irqs.flush()  # from the work queue, whose tasks know nothing of it
            with bound_contextvars(request="r1", device="console"):
                irqfd.mask()
    of_it = [entry for entry in entries if entry.get("gsi") == 5]
    assert [entry["event"] for entry in of_it] == [
        "irqfd_assigned",
        "injection_failed",
        "injection_retried",
        "irqfd_masked",
        "irqfd_deassigned",
    ]
    assert {(entry["vm"], entry["device"]) for entry in of_it} == {("blue", "disk")}
    # What is bound where it is masked comes out on that event, and changes nothing there.
    assert [entry["event"] for entry in entries if entry.get("request") == "r1"] == ["irqfd_masked"]
    assert all("vm" not in entry for entry in entries if entry.get("gsi") != 5)
    assert get_contextvars() == {}


async def test_a_failure_is_rendered_with_its_traceback(log):
    written = io.StringIO()
    logger = structlog.wrap_logger(
        structlog.WriteLogger(written),
        processors=[structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()],
    )
    async with IrqManager(FlakySink(1), retry=Retry(1, 0, 0), tracer=StructlogTracer(logger)) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    (failed,) = [line for line in lines if line["event"] == "injection_failed"]
    (raised,) = failed["exception"]
    assert (raised["exc_type"], raised["exc_value"]) == ("OSError", "[Errno 5] flaky")
    assert raised["frames"][-1]["name"] == "inject"


async def test_the_standard_librarys_logging_has_levels_and_tracebacks(caplog):
    logger = structlog.wrap_logger(
        logging.getLogger("vmm"),
        processors=[structlog.stdlib.add_log_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    with caplog.at_level(logging.INFO, "vmm"):
        async with IrqManager(FlakySink(1), retry=Retry(1, 0, 0), tracer=StructlogTracer(logger)) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                kick.signal()
                await irqs.flush()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "irqfd_assigned"),
        ("WARNING", "injection_failed"),
        ("INFO", "injection_retried"),
        ("INFO", "irqfd_deassigned"),
    ]
    failed = caplog.records[1]
    assert failed.gsi == 5
    assert failed.exc_info[0] is OSError
