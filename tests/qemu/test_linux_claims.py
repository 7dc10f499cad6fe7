"""What the guides say of Linux, each statement run: a guest shows what its kernel does with a disk that misbehaves."""

from __future__ import annotations

import contextlib
import random
import re

import pytest

from examples.chaos_blk import Chaos
from tests.qemu.initramfs import APPEND
from tests.qemu.test_vhost_linux import MIB, digest, guest, linux

# What Linux does, it does whatever our loop is.
pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

READ = "dd if=/dev/vda of=/dev/null bs=4k count=1"
WRITE = "dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync"
LOG = "echo =$(dmesg | grep -v drop_caches | tail -n 1)"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(random.Random(6).randbytes(8 * MIB))
    return path


@contextlib.asynccontextmanager
async def misbehaving(image):
    """A guest with a disk that does as it is told."""
    with contextlib.closing(Chaos(str(image))) as chaos:
        async with linux(chaos, "vhost-user-blk-pci", modules=["virtio_blk"]) as (qemu, _):
            yield qemu, chaos


async def started(qemu, line, chaos=None, held=1):
    """Run something in the guest's background, up to where it waits for the disk: until that has so many in hand, or a second."""
    await guest(qemu, f"({line}; echo CODE=$?) 2>/dev/null & {':' if chaos else 'sleep 1'}")
    if chaos:
        await qemu.until(lambda: len(chaos.faults.held) == held)


async def test_linux_waits_for_a_disk_however_long_it_takes(image):
    """No time-out; what cannot be killed is reported by the hung-task watch, and a plain read is not."""
    async with misbehaving(image) as (qemu, chaos):
        await guest(qemu, "! ls /sys/block/vda/queue/io_timeout 2>/dev/null")
        assert await guest(qemu, "echo =$(cat /proc/sys/kernel/hung_task_timeout_secs)") == "120"
        await guest(qemu, "echo 2 >/proc/sys/kernel/hung_task_timeout_secs")
        await chaos.command("set irq-withhold=1")
        await started(qemu, f"{READ} skip=100")
        await guest(qemu, "sleep 6")
        assert "blocked for more than" not in await guest(qemu, LOG)
        await started(qemu, WRITE)
        await guest(
            qemu, "until dmesg | grep -q 'INFO: task dd:.* blocked for more than 2 seconds'; do sleep 0.5; done"
        )
        await chaos.command("release")
        for _ in range(2):
            assert (await qemu.wait_for("CODE=")).endswith("CODE=0")


async def test_linux_resets_a_device_only_after_its_requests(image):
    async with misbehaving(image) as (qemu, chaos):
        await chaos.command("set withhold=1000")
        await started(qemu, f"{READ} skip=100", chaos)
        await started(qemu, "echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind")
        await guest(qemu, "sleep 2")
        assert len(chaos.faults.held) == 1
        await chaos.command("release")
        for _ in range(2):
            assert (await qemu.wait_for("CODE=")).endswith("CODE=0")
        await guest(qemu, "echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind && " + READ)


@pytest.mark.parametrize("end", ["pause", "reboot", "poweroff"])
async def test_nothing_is_kept_back_from_a_guest_that_ends_or_is_paused(image, end):
    async with misbehaving(image) as (qemu, chaos):
        await chaos.command("set withhold=1000 irq-withhold=1")
        await started(qemu, f"{READ} skip=100", chaos)
        if end == "pause":
            await qemu.qmp.execute("stop")
            assert not chaos.faults.held
            await qemu.qmp.execute("cont")
            assert (await qemu.wait_for("CODE=")).endswith("CODE=0")
        else:
            await qemu.console.send(f"{end} -f\n")
            assert await qemu.died() == 0


async def test_a_read_ahead_that_fails_is_read_again(image):
    async with misbehaving(image) as (qemu, chaos):
        await chaos.command("set type=read error=1")
        await guest(qemu, f"{READ} skip=100 2>/dev/null")
        assert re.search(r"I/O error, dev vda, sector 800 op 0x0:\(READ\) ", await guest(qemu, LOG))
        await guest(qemu, "echo 3 >/proc/sys/vm/drop_caches")
        await chaos.command("set type=read error=100")
        await guest(qemu, f"! {READ} skip=100 2>/dev/null")


async def test_a_flush_that_fails_is_an_error_of_one_fsync(image):
    async with misbehaving(image) as (qemu, chaos):
        await chaos.command("set type=flush error=1")
        assert "Input/output error" in await guest(qemu, f"echo =$({WRITE} 2>&1)")
        assert re.search(r"I/O error, dev vda, sector 0 op 0x1:\(WRITE\) flags 0x800 ", await guest(qemu, LOG))
        await guest(qemu, WRITE + " 2>/dev/null")


async def test_linux_gives_a_queue_up_that_answers_twice_until_its_driver_is_bound_anew(image):
    async with misbehaving(image) as (qemu, chaos):
        await chaos.command("set duplicate=1")
        await guest(qemu, f"{READ} skip=100 2>/dev/null; sleep 1")
        await chaos.command("reset")
        log = "virtio_blk virtio0: req.0:id [0-9]* is not a head!"
        assert await guest(qemu, f"echo =$(dmesg | grep -c '{log}')") == "1"
        for block in (200, 300):
            await guest(qemu, f"! {READ} skip={block} 2>/dev/null")
        await guest(qemu, "for what in unbind bind; do echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/$what; done")
        assert await guest(qemu, "echo =$(sha256sum </dev/vda | cut -d' ' -f1)") == digest(image.read_bytes())


async def test_linux_counts_interrupts_for_nothing_as_unhandled(image, monkeypatch):
    # The other tests' guests do not look; a user's does.
    monkeypatch.setattr("tests.qemu.initramfs.APPEND", APPEND.replace("noirqdebug ", ""))
    async with misbehaving(image) as (qemu, chaos):
        await chaos.command("set irq-spurious=1")
        await guest(qemu, "sleep 1")
        await chaos.command("reset")
        irq = "irq=$(grep virtio0-req /proc/interrupts | cut -d: -f1 | tr -d ' ');"
        counted = int(await guest(qemu, f"{irq} echo =$(grep ^unhandled /proc/irq/$irq/spurious | cut -d' ' -f2)"))
        assert counted > 1
        await guest(qemu, READ + " 2>/dev/null")
