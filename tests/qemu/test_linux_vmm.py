"""The example VMM boots Debian's Linux, wherever QEMU runs: in a guest whose CPU has emulated SVM.

Two boots of QEMU do everything, under this very Python (:mod:`tests.qemu.linux_agent`); each of their results is a test here.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from aioirqfd.testing.initramfs import BUSYBOX, module_paths, modules_directory
from aioirqfd.testing.initramfs import initramfs as archive_of
from tests.qemu import nested_host
from tests.qemu.harness import kernel
from tests.qemu.linux_agent import CHECKS, DISK, FILES, MODULES, PROGRAMS, SCRIPT, TYPED, sha256

if TYPE_CHECKING:
    from tests.qemu.harness import Linux

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

LIMIT = 600
"""Seconds for all machines of a boot together: less than what ends pytest itself (faulthandler_timeout), so that a reason is given."""
# By boot of QEMU.
TOGETHER = (("off", "devices", "reset", "panic"), ("plain", "fixture", "moved"))


def host(checks: tuple[str, ...]) -> Linux:
    # For the agent's own initramfs, too: busybox, and the modules where its kernel's are.
    modules = modules_directory(kernel())
    here = [kernel(), BUSYBOX, modules / "modules.dep", modules / "modules.builtin", *module_paths(kernel(), MODULES)]
    return nested_host.nested(
        "tests.qemu.linux_agent",
        *checks,
        inner=archive_of(SCRIPT, kernel=kernel(), modules=MODULES, files=FILES, programs=PROGRAMS),
        modules=["aioirqfd.testing.linux"],
        files={str(path): path for path in here},
    )


class Outcomes:
    """What came of the checks, by name; a check's boot is done when it is first asked for."""

    def __init__(self):
        self._done = {}

    def of(self, checks):
        if checks not in self._done:
            # In a loop of its own: it is done once for all tests.
            with asyncio.Runner() as runner:
                self._done[checks] = runner.run(nested_host.outcome(host(checks), timeout=LIMIT - 20))
        return self._done[checks]

    def __getitem__(self, name):
        (checks,) = (checks for checks in TOGETHER if name.partition(".")[0] in checks)
        return self.of(checks)[1][name]


@pytest.fixture(scope="module")
def results():
    return Outcomes()


def assert_counted(results: Outcomes, check: str) -> None:
    """Each of the disk's calls was one message to KVM, and one interrupt of its guest, but for what the CPU has taken twice.

    There is one read at a time, so none is called for while Linux has the vector masked.
    """
    calls = results[f"{check}.calls"]
    assert calls in results[f"{check}.messages"]
    assert 0 <= int(results[f"{check}.blkirqs"]) - calls <= results[f"{check}.repeated"]


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("checks", TOGETHER, ids=" ".join)
def test_the_agent_ran_to_its_end(results, checks):
    lines, _ = results.of(checks)
    assert [line for line in lines if line.startswith("AGENT")] == ["AGENT DONE", "AGENT ENDED 0"], "\n".join(lines)
    assert any(re.match(r"python 3\S+ \S+ kvm usable$", line) for line in lines)


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("check", CHECKS)
def test_hardly_any_interrupt_was_taken_twice(results, check):
    # Or the comparisons below would be loose.
    assert results[f"{check}.repeated"] <= 3


def test_every_check_is_in_a_boot():
    assert sorted(sum(TOGETHER, ())) == sorted(CHECKS)


@pytest.mark.timeout(LIMIT)
class TestBoot:
    @pytest.mark.parametrize("check", [check for check in CHECKS if check != "fixture"])
    def test_userland_is_reached(self, results, check):
        assert results[f"{check}.userland"] == "1"

    @pytest.mark.parametrize(("check", "cpus"), [("off", "1"), ("reset", "2")])
    def test_linux_starts_all_cpus(self, results, check, cpus):
        assert results[f"{check}.cpus"] == cpus

    def test_acpica_has_nothing_to_complain_of(self, results):
        assert results["off.complaints"] == "0"

    def test_the_clock_is_kvms_and_the_pit_idle(self, results):
        assert (results["off.clock"], results["off.timer"]) == ("kvm-clock", "0")


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("check", ["devices", "plain"])
class TestDevices:
    """The classes that vhost-user and vfio-user carry, in the machine's own slots."""

    def test_linux_finds_them_in_their_slots(self, results, check):
        assert results[f"{check}.found"].split() == [
            "0x1237",
            "0x1042",
            "0x1042",
            "0x1044",
            "0x1041",
            "0x1043",
            "0x11e8",
            "0x1110",
        ]

    def test_each_byte_of_a_disk(self, results, check):
        assert results[f"{check}.blk"].split()[0] == sha256(DISK[: 1000 << 12])
        assert results[f"{check}.nvme"].split()[0] == sha256(DISK[: 1 << 20])

    def test_each_call_is_a_message_and_an_interrupt_in_the_guest(self, results, check):
        assert results[f"{check}.calls"] > 1000
        assert_counted(results, check)

    def test_a_file_system_is_made_checked_and_read(self, results, check):
        assert results[f"{check}.fsck"] == "0"
        assert results[f"{check}.copy"].split()[0] == sha256(DISK[: 1 << 20])

    def test_the_random_numbers_are_the_devices(self, results, check):
        # Bytes, pieces that are not the device's, whether they come in its order and each once.
        assert results[f"{check}.random"] == [4096, 0, True]

    def test_a_lease_and_each_ping_answered(self, results, check):
        assert (results[f"{check}.lease"], results[f"{check}.pings"]) == ("10.0.0.2", "20")
        assert results[f"{check}.network"]["malformed"] == results[f"{check}.network"]["unreceived"] == 0

    def test_a_console_both_ways(self, results, check):
        assert results[f"{check}.typed"].split()[0] == sha256(TYPED)
        assert results[f"{check}.shown"]

    def test_a_device_of_vfio_user_and_its_pin(self, results, check):
        assert (results[f"{check}.edu"], results[f"{check}.factorial"]) == ("0x010000ED", "0x000002D0")
        assert results[f"{check}.raised"].split() == ["0x00000001:1", "0x00000002:2", "0x00000003:3"]
        assert results[f"{check}.eduirqs"] == "3"

    def test_the_kernel_injects_and_rings_where_it_may(self, results, check):
        exits = results[f"{check}.exits"]
        if check == "devices":
            assert results[f"{check}.offloaded"] > 10
            assert exits["mmio write"] < 1000
        else:
            assert results[f"{check}.offloaded"] == 0
            assert exits["mmio write"] > results[f"{check}.calls"]

    def test_virtio_and_nvme_interrupt_by_msix(self, results, check):
        assert int(results[f"{check}.msix"]) > 10


@pytest.mark.timeout(LIMIT)
class TestGuestFixture:
    """``aioirqfd.testing.guest`` with this machine in place of QEMU."""

    def test_the_books_agree(self, results):
        assert results["fixture.read"]
        *ours, guest = results["fixture.books"]
        assert ours == [False, 50, 50, None]
        assert 0 <= guest - 50 <= results["fixture.repeated"]

    def test_a_fault_is_linuxs(self, results):
        assert (results["fixture.statuses"], results["fixture.dmesg"]) == (["0", "0", "1", "0"], True)

    def test_the_slot_is_in_the_tree(self, results):
        (slot,) = results["fixture.tree"].values()
        assert (slot["gsi"], slot["doorbells_in_the_kernel"]) == (17, 1)


@pytest.mark.timeout(LIMIT)
class TestMoved:
    """Saved to a file while it reads a virtio disk and an NVMe one, and gone on with in another machine, three times."""

    def test_every_read_of_all_lives_is_right(self, results):
        for disk, count in (("turn", 150), ("nvme", 50)):
            sums = {results[f"moved.{disk}{turn}"].split()[0] for turn in range(1, 9)}
            assert sums == {sha256(DISK[: count << 12])}

    def test_no_interrupt_is_lost_on_the_way(self, results):
        assert results["moved.calls"] > 1200
        assert_counted(results, "moved")

    def test_it_ended_where_it_was_left(self, results):
        endings = [results[f"moved.ending{life}"] for life in range(4)]
        assert endings == ["STOPPED", "STOPPED", "STOPPED", "POWER_OFF"]


@pytest.mark.timeout(LIMIT)
class TestEnding:
    @pytest.mark.parametrize(
        ("check", "ending"),
        [
            ("off", "POWER_OFF"),
            ("devices", "POWER_OFF"),
            ("plain", "POWER_OFF"),
            ("reset", "RESET"),
            ("panic", "PANIC"),
        ],
    )
    def test_it_is_what_the_guest_wanted(self, results, check, ending):
        assert results[f"{check}.ending"] == ending


@pytest.mark.timeout(LIMIT)
class TestConsole:
    @pytest.mark.parametrize(("check", "offloaded"), [("off", True), ("reset", False)])
    def test_its_output_comes_by_interrupts_of_pin_4(self, results, check, offloaded):
        assert results[f"{check}.offloaded"] == offloaded
        pin, *counts = results[f"{check}.uart"].split()[:-3]
        assert pin == "4:"
        assert sum(map(int, counts)) > 0
        assert results[f"{check}.uart"].split()[-3:] == ["IO-APIC", "4-edge", "ttyS0"]
