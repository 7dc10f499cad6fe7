"""The pytest plugin in a suite of its own, under two async plugins and none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import aioirqfd

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
