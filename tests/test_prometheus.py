"""The counts for Prometheus: what its own parser reads of them, scraped in any thread."""

# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (what is read is JSON, of whose inside no type checker knows)
from __future__ import annotations

import asyncio
import gc
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from aioirqfd import EventFd, IoBus, IrqManager
from aioirqfd.prometheus import IrqfdCollector
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import vhost_user_frontend
from aioirqfd.vhost_user import Backend
from tests.inspect.helpers import blocked, elsewhere
from tests.vhost_user.devices import Upper


@pytest.fixture(autouse=True)
def _names_are_free():
    gc.collect()  # what an earlier test has named, and nothing but a traceback's cycle holds


def registry(**options):
    registry = CollectorRegistry()
    registry.register(IrqfdCollector(**options))
    return registry


LABELS = ("part", "manager", "irqfd", "gsi", "bus", "doorbell", "backend", "queue")


def samples(text, parser=parse):
    """Each value, by name and labels."""
    return {
        (one.name, *(one.labels[label] for label in LABELS if label in one.labels)): one.value
        for family in parser(text)
        for one in family.samples
    }


async def test_what_its_parser_reads_is_what_was_counted():
    async with IrqManager(RecordingSink(), name="vm") as irqs:
        with EventFd() as kick, EventFd() as line, EventFd() as unmask:
            irqs.assign(kick, gsi=5, name="uart")
            irqs.assign(line, gsi=9, resamplefd=unmask, name="nic").mask()
            kick.signal(3)
            line.signal()
            bus = IoBus(name="mmio")
            with bus.ioeventfd(kick, address=0x1000):
                bus.write(0x1000, 7, 4)
                await irqs.flush()
                scraped = registry()
                found = samples(generate_latest(scraped).decode())
                # OpenMetrics is stricter: every family once, with its unit and type, counters by their suffix.
                assert samples(openmetrics(scraped).decode(), parse_openmetrics) == found
    uart, nic = ("vm", "uart", "5"), ("vm", "nic", "9")
    expected = {
        ("aioirqfd_silent", "managers/vm"): 0,
        ("aioirqfd_irqfd_signals_total", *uart): 4,
        ("aioirqfd_irqfd_injections_total", *uart): 2,
        ("aioirqfd_irqfd_coalesced_total", *uart): 2,
        ("aioirqfd_irqfd_pending", *uart): 0,
        ("aioirqfd_irqfd_masked", *uart): 0,
        ("aioirqfd_irqfd_injections_total", *nic): 0,
        ("aioirqfd_irqfd_pending", *nic): 1,
        ("aioirqfd_irqfd_masked", *nic): 1,
        ("aioirqfd_manager_paused", "vm"): 0,
        ("aioirqfd_manager_lines_up", "vm"): 0,
        ("aioirqfd_queue_maxsize", "vm"): 1024,
        ("aioirqfd_queue_queued", "vm"): 0,
        ("aioirqfd_doorbell_writes_total", "mmio", "mmio:0x1000:0"): 1,
    }
    assert {key: found.get(key) for key in expected} == expected


async def test_what_is_held_for_a_route_is_held_for_its_manager_too():
    async with IrqManager(RecordingSink(), routing={}, unrouted="hold", name="vm") as irqs:
        with EventFd() as kick, EventFd() as quiet:
            irqs.assign(kick, gsi=5, name="uart")
            irqs.assign(quiet, gsi=6, name="nic")
            kick.signal()
            found = samples(generate_latest(registry()).decode())
            held = "aioirqfd_irqfd_held", "vm"
            assert (found[*held, "uart", "5"], found[*held, "nic", "6"], found["aioirqfd_manager_held", "vm"]) == (
                1,
                0,
                1,
            )


async def test_what_hangs_is_found_by_the_alert_that_is_meant_for_it():
    """A handler that does not return, and a mask that nobody takes back: neither is found by the other's alert."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def hang(_irqfd, _count):
        began.set()
        await go_on.wait()

    async with IrqManager(RecordingSink(), name="vm") as irqs:
        with EventFd() as kick, EventFd() as masked, EventFd() as idle:
            irqs.assign(kick, gsi=1, name="hangs", wakeup=hang)
            irqs.assign(masked, gsi=2, name="masked").mask()
            irqs.assign(idle, gsi=3, name="idle")
            kick.signal()
            masked.signal()
            await began.wait()
            found = samples(generate_latest(registry()).decode())
            fields = "running", "pending", "masked", "injections_total"
            flags = {
                name: [found[f"aioirqfd_irqfd_{field}", "vm", name, str(gsi)] for field in fields]
                for gsi, name in ((1, "hangs"), (2, "masked"), (3, "idle"))
            }
            go_on.set()
    assert flags == {"hangs": [1, 0, 0, 0], "masked": [0, 1, 1, 0], "idle": [0, 0, 0, 0]}


def test_each_alert_of_the_how_to_asks_for_what_there_is():
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "prometheus.md").read_text("utf-8")
    asked = {name for line in page.splitlines() if "expr:" in line for name in re.findall("aioirqfd_[a-z_]+", line)}
    families = {family.name for family in parse(generate_latest(registry()).decode())}
    assert len(asked) == 8
    assert {name.removesuffix("_total") for name in asked} <= {name.removesuffix("_total") for name in families}


async def test_the_queues_of_a_device(tmp_path):
    path = tmp_path / "socket"
    async with Backend(Upper(), path, name="upper"), vhost_user_frontend(path) as front:
        assert await front.queues[0].ask([b"abc"], [3]) == b"ABC"
        found = samples(generate_latest(registry()).decode())
    assert found["aioirqfd_virtqueue_requests_total", "upper", "0"] == 1
    assert found["aioirqfd_virtqueue_answers_total", "upper", "0"] == 1
    assert found["aioirqfd_virtqueue_in_flight", "upper", "0"] == 0


def test_a_loop_that_does_not_answer_is_said_and_spoils_no_scrape():
    with elsewhere("one"), elsewhere("two") as loop:
        scraped = registry(timeout=60)
        assert samples(generate_latest(scraped).decode())["aioirqfd_irqfd_signals_total", "two", "kick", "5"] == 0
        with blocked(loop):
            found = samples(generate_latest(registry(timeout=0.2)).decode())
            assert found["aioirqfd_silent", "managers/two"] == 1
            assert ("aioirqfd_irqfd_signals_total", "two", "kick", "5") not in found


def test_nothing_is_read_when_it_is_registered(monkeypatch):
    monkeypatch.setattr("aioirqfd.prometheus.read", lambda *_, **__: pytest.fail("it was read"))
    registry()


async def test_scraped_by_http_from_another_thread():
    async with IrqManager(RecordingSink(), name="vm") as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, name="uart")
            kick.signal()
            await irqs.flush()
            server, thread = start_http_server(0, addr="127.0.0.1", registry=registry(timeout=60))
            try:
                url = f"http://127.0.0.1:{server.server_port}/metrics"
                text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
            finally:
                server.shutdown()
                server.server_close()
                thread.join()
    assert samples(text)["aioirqfd_irqfd_injections_total", "vm", "uart", "5"] == 1
