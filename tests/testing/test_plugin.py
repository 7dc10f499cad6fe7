"""The pytest plugin in a suite of its own, under two async plugins and none."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import aioirqfd

pytestmark = pytest.mark.alike

ROOT = Path(aioirqfd.__file__).parent.parent

BODY = """
    from aioirqfd import EventFd
    async with irq_manager() as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            kick.signal()
            await irqs.flush()
    assert [interrupt.gsi for interrupt in recording_sink.interrupts] == [5]
    assert recording_tracer.names == ["irqfd_assigned", "irqfd_deassigned"]
    other = type(recording_sink)()
    async with irq_manager(other, routing={}, unrouted="hold") as irqs:
        assert irqs._irqfds.delivery.tiers.sink is other
        assert irqs._irqfds.routes.holds(99)
"""
BARE = f"""
import asyncio
def test_it(irq_manager, recording_sink, recording_tracer):
    async def main():{BODY.replace(chr(10), chr(10) + "    ")}
    asyncio.run(main())
"""
ASYNCIO = f"""
import pytest
@pytest.mark.asyncio
async def test_it(irq_manager, recording_sink, recording_tracer):{BODY}
"""
ANYIO = f"""
import pytest
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it(irq_manager, recording_sink, recording_tracer, anyio_backend):{BODY}
"""


def run(tmp_path, *options):
    # By its module's name, whether or not the package is installed with its entry point.
    plugin = ("-p", "no:aioirqfd", "-p", "aioirqfd.testing.plugin")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = (sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *options)
    return subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("suite", [BARE, ASYNCIO, ANYIO], ids=["bare", "pytest-asyncio", "anyio"])
def test_its_fixtures_work_under(suite, tmp_path):
    (tmp_path / "test_suite.py").write_text(suite)
    done = run(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_it_costs_a_suite_that_does_not_use_it_nothing(tmp_path):
    (tmp_path / "test_suite.py").write_text(
        "import sys\n"
        "def test_it(request):\n"
        "    assert {'aioirqfd.kvm', 'aioirqfd.sinks', 'structlog'} & set(sys.modules) == set()\n"
        "    assert not {name for name in request.fixturenames if 'irq' in name or 'sink' in name or 'tracer' in name}\n"
    )
    done = run(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


WRONG = """
import asyncio
from aioirqfd.pci import Bar, PciDevice
from aioirqfd.virtio import Device
class Upper(Device):
    device_id = 42
    async def handle(self, request):
        raise ValueError("a mistake of the device's own")
class Nothing(PciDevice):
    vendor_id, device_id = 0x1234, 0x5678
    bars = (Bar(16),)
def test_virtio(vhost_user_frontend):
    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: print("HEARD", context["message"]))
        async with vhost_user_frontend(Upper()) as front:
            assert await front.queues[0].ask([b"hello"], [5]) == b"HELLO"
    asyncio.run(main())
def test_pci(vfio_user_client):
    async def main():
        async with vfio_user_client(Nothing()) as client:
            assert await client.read(0, 0, 4) == b"1234"
    asyncio.run(main())
"""


def test_a_failing_tests_report_has_the_devices_trace(tmp_path):
    (tmp_path / "test_suite.py").write_text(WRONG)
    done = run(tmp_path, "-p", "no:asyncio", "-p", "no:anyio")
    assert done.returncode == 1, done.stdout + done.stderr
    virtio, pci = done.stdout.split("_ test_pci _")
    assert "the devices' trace:" in virtio
    assert re.search(r"vring_started .*queue=0 size=64 base=0", virtio)
    assert "request_failed" in virtio
    # Somebody has asked for no trace: the loop's exception handler hears of it all the same.
    assert "HEARD aioirqfd: handle() of Upper raised for a request of queue 0" in virtio
    assert "client_connected" in pci
