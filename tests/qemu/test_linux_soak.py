"""Linux in the example VMM for as long as one likes: disks under load on two CPUs whose vectors move all the time, and boot after boot.

``AIOIRQFD_SOAK=1000000 pytest -s --timeout 0 -o faulthandler_timeout=0 tests/qemu/test_linux_soak.py`` takes a million interrupts, and boots 20 times in a row
and 5 times beside six busy loops. Without the variable it is 3,000 interrupts, and a boot of each kind.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aioirqfd.testing.initramfs import initramfs
from tests.bench.disk import build
from tests.qemu import nested_host
from tests.qemu.harness import kernel
from tests.qemu.linux_agent import sha256
from tests.qemu.linux_soak_agent import CHUNK, DISK, MODULES, SCRIPT

INTERRUPTS = int(os.environ.get("AIOIRQFD_SOAK", "0"))
PLAIN, BESIDE = (20, 5) if INTERRUPTS else (1, 1)
INTERRUPTS = INTERRUPTS or 3_000
SECONDS = 300 + 60 * PLAIN + 200 * BESIDE + INTERRUPTS / 25
"""More than it takes on the slowest machine; who hangs is found by the agent long before."""

if TYPE_CHECKING:
    from tests.qemu.harness import Linux

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(SECONDS + 60)]


def host() -> Linux:
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        inner = initramfs(SCRIPT, kernel=kernel(), modules=MODULES, files={"bin/vhost_load": program})
    numbers = map(str, (INTERRUPTS, PLAIN, BESIDE))
    return nested_host.nested("tests.qemu.linux_soak_agent", *numbers, inner=inner)


@pytest.fixture(scope="module")
def outcome():
    # In a loop of its own: it is done once for all tests.
    with asyncio.Runner() as runner:
        return runner.run(nested_host.outcome(host(), timeout=SECONDS))


@pytest.fixture
def results(outcome):
    return outcome[1]


def test_the_agent_ran_to_its_end(outcome):
    lines, results = outcome
    print(json.dumps(results))
    assert [line for line in lines if line.startswith("AGENT")] == ["AGENT DONE", "AGENT ENDED 0"], "\n".join(lines)


@pytest.mark.parametrize(("name", "count"), [("plain", PLAIN), ("busy", BESIDE)])
def test_each_boot_reaches_power_off_and_has_read_the_disk(results, name, count):
    runs = [results[f"{name}.{number}"] for number in range(count)]
    assert [(run["ending"], run["sum"]) for run in runs] == [("POWER_OFF", [sha256(DISK)])] * count


class TestVectorsThatMove:
    """No interrupt is lost: nobody waits in vain, each request is answered, and at rest nothing is pending."""

    def test_the_guest_came_to_its_end(self, results):
        values = results["soak.values"]
        assert results["soak.ending"] == "POWER_OFF"
        assert (values["cpus"], values["movable"], values["complaints"]) == ("2", "2", "0")
        assert "refused" not in values

    def test_they_moved(self, results):
        values = results["soak.values"]
        assert int(values["flips"]) > 10
        for name in ("nvme", "rng"):
            assert min(map(int, values[name].split())) > 50

    def test_each_is_one_message_of_kvm(self, results):
        calls, repeated = results["soak.blk"]["calls"], results["soak.repeated"]
        # This vector stays where it is. Linux masks it only where it is raised again inside its own handler; a few more reads may be
        # answered until it is unmasked, and they are one message.
        assert any(0 <= calls - count <= 10 * repeated for count in results["soak.messages"])
        assert repeated <= 2 + INTERRUPTS / 10_000

    def test_so_many_interrupts_were_taken_and_each_was_sent(self, results):
        values, repeated = results["soak.values"], results["soak.repeated"]
        taken = {name: sum(map(int, values[name].split())) for name in ("nvme", "blk", "rng")}
        calls = {name: results[f"soak.{name}"]["calls"] for name in taken}
        assert sum(taken.values()) >= INTERRUPTS
        # Fewer are sent than there were calls where a vector was masked meanwhile, and fewer are counted than were sent where one
        # came while the handler of the one before was still running, on another CPU perhaps.
        assert sum(taken.values()) - repeated <= sum(results["soak.messages"]) <= sum(calls.values())
        assert sum(max(0, taken[name] - calls[name]) for name in taken) <= repeated

    def test_each_request_was_answered(self, results):
        values = results["soak.values"]
        assert int(values["done"]) == 4 * CHUNK * int(values["turns"])
        assert values["inflight"].split() == ["0"] * 4
        blk, rng, nvme = (results[f"soak.{name}"] for name in ("blk", "rng", "nvme"))
        assert blk["requests"] == blk["answers"] > CHUNK * int(values["turns"])
        assert rng["requests"] - rng["answers"] in {0, 1}  # the driver may ask ahead
        assert nvme["commands"] > CHUNK * int(values["turns"])

    def test_nothing_is_pending_at_rest(self, results):
        assert results["soak.pending"] == []

    def test_each_byte_is_right_after_it(self, results):
        assert results["soak.values"]["sum"].split()[0] == sha256(DISK)
        assert results["soak.values"]["again"].split()[0] == sha256(DISK)
