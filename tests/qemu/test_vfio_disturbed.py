"""What happens to a vfio-user device while it works: vectors that move, processors, memory and servers that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.testing import RecordingTracer
from aioirqfd.vfio_user import Server
from examples.edu_pci import Edu
from examples.nvme import Nvme
from tests.qemu import program
from tests.qemu.harness import Qemu, initramfs
from tests.qemu.test_vfio_linux import TRACE, count, disk, linux
from tests.qemu.test_vhost_linux import SHELL, guest

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
SUM = "echo =$(dd if=/dev/nvme0n1 bs=64k iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1)"


@pytest.fixture(autouse=True)
def _new_enough():
    program.need((10, 1), "vfio-user-pci")


@pytest.fixture
def image(tmp_path):
    """A disk of 16 MiB of random bytes, and their checksum."""
    path = tmp_path / "image"
    data = random.Random(5).randbytes(16 * MIB)
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


class Counted(Nvme):
    """Counts how often it has interrupted."""

    calls = 0

    def interrupt(self, vector=0):
        self.calls += 1
        super().interrupt(vector)


async def accounted_for(qemu, server, log, before):
    """The ledger of a disk at rest: every command done, no interrupt waiting, and none lost on the way."""
    await guest(qemu, 'sync; [ "$(cat /sys/block/nvme0n1/inflight | tr -d " ")" = 00 ]')
    interrupts = server.function.interrupts
    assert not any(interrupts.pending_bits())
    sent = sum(interrupts.sent(vector) for vector in range(len(interrupts)))
    merged = sum(one.irqfd.statistics().coalesced for one in interrupts._vectors if one.irqfd is not None)
    assert server.device.calls == sent + merged
    forwarded = log.read_text().count("vfio_msi_interrupt")
    taken = await count(qemu, "nvme0q")
    assert sent >= forwarded >= taken > before
    # A driver that waits in vain for an interrupt looks after 30 seconds, and says so.
    assert await guest(qemu, "echo =$(dmesg | grep -c -i -E 'nvme.*(timeout|polled|aborting)')") == "0"


# -- vectors that move ---------------------------------------------------------------------------------------------------


class OneVector(Counted):
    """Its vector is the administrator's to move; those of queues of their own are the kernel's."""

    vectors = 1


async def test_affinity_is_flipped_under_load_and_no_interrupt_is_lost(image, tmp_path):
    """With each flip QEMU gives the vector another eventfd."""
    path, digest = image
    log = tmp_path / "trace"
    flips = 100
    device = OneVector(str(path))
    try:
        async with linux(device, smp=2, arguments=[*TRACE, str(log)]) as (qemu, server):
            before = await count(qemu, "nvme0q")
            await guest(
                qemu,
                "irq=$(grep nvme0q0 /proc/interrupts | cut -d: -f1 | tr -d ' '); "
                "for j in 0 1; do (while dd if=/dev/nvme0n1 of=/dev/null bs=4k count=200 iflag=direct 2>/dev/null; do :; done) & "
                'load="$load $!"; done; '
                f"for i in $(seq {flips}); do echo $((i % 2 + 1)) >/proc/irq/$irq/smp_affinity || exit 1; "
                "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=2 iflag=direct 2>/dev/null; done; kill $load; wait",
            )
            assert await guest(qemu, SUM) == digest
            assert (
                await guest(qemu, "echo =$(grep nvme0q0 /proc/interrupts | awk '{ print ($2 > 50 && $3 > 50) }')")
                == "1"
            )
            assert device.commands > flips
            await accounted_for(qemu, server, log, before)
    finally:
        device.close()


async def test_processors_go_and_come_under_load(image, tmp_path):
    """A queue's vector goes with its processor, and gets another eventfd when that is back."""
    path, digest = image
    log = tmp_path / "trace"
    device = Counted(str(path))
    try:
        async with linux(device, smp=2, arguments=[*TRACE, str(log)]) as (qemu, server):
            before = await count(qemu, "nvme0q")
            await guest(
                qemu,
                "for j in 0 1; do (while dd if=/dev/nvme0n1 of=/dev/null bs=4k count=200 iflag=direct 2>/dev/null; do :; done) & "
                'load="$load $!"; done; '
                "for i in $(seq 10); do for there in 0 1; do echo $there >/sys/devices/system/cpu/cpu1/online; sleep 0.1; done; "
                "done; kill $load; wait",
            )
            assert await guest(qemu, SUM) == digest
            await accounted_for(qemu, server, log, before)
    finally:
        device.close()


# -- resets --------------------------------------------------------------------------------------------------------------


def option(path, **more):
    """The device for QEMU's command line, or for its monitor."""
    return {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}, **more}


NATIVE = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
"""Plugging by the port's own registers, as on a real board, and not by ACPI: then there is a bus reset, too."""


@contextlib.asynccontextmanager
async def behind_a_port(*arguments, append=""):
    """A guest with a root port of PCI Express, in which there is nothing yet."""
    qemu = Qemu(linux=initramfs(SHELL, append=append), ram=256 * MIB)
    qemu.add_arguments("-device", "pcie-root-port,id=slot1,slot=1,chassis=1", *arguments)
    async with qemu:
        await qemu.wait_for("GUEST-READY")
        yield qemu


async def plugged(qemu, path, until):
    """Plug a device in, and wait until a command of the guest's succeeds."""
    await qemu.qmp.execute("device_add", **option(path, id="disk", bus="slot1"))
    await guest(qemu, f"for i in $(seq 300); do {until} && break; sleep 0.1; done; {until}")


async def unplugged(qemu, name):
    """Take something out, and wait until the guest has let it go."""
    await qemu.qmp.execute("device_del", id=name)

    async def gone():
        while name in await qemu.qmp.qom_list("/machine/peripheral"):
            await asyncio.sleep(0.05)

    await qemu.within(gone())


async def test_a_disk_is_reset_in_each_way_while_it_is_read(image):
    path, digest = image
    tracer = RecordingTracer()
    with disk(path) as device:
        async with behind_a_port(*NATIVE) as qemu, Server(device, qemu.directory / "disk", tracer=tracer) as server:
            await plugged(qemu, qemu.directory / "disk", "[ -b /dev/nvme0n1 ]")
            await guest(qemu, "D=$(readlink -f /sys/block/nvme0n1/device/device)")
            assert await guest(qemu, "echo =$(cat $D/reset_method)") == "flr bus"
            read = "dd if=/dev/nvme0n1 of=/dev/null bs=16k iflag=direct 2>/dev/null"
            for method in ("flr", "bus"):
                await guest(qemu, f"echo {method} >$D/reset_method")
                resets = tracer.names.count("function_reset")
                await guest(qemu, f"({read}; {read}; true) & sleep 0.1; echo 1 >$D/reset && wait")
                assert tracer.names.count("function_reset") > resets, method
                assert await guest(qemu, SUM) == digest, method
            assert server.statistics().sessions == 1


# -- devices and servers that come and go --------------------------------------------------------------------------------

EDU = "D=$(dirname $(grep -l 0x11e8 /sys/bus/pci/devices/*/device)) && [ -e $D/resource0 ]"
LIVES = "echo 1 >$D/enable; A=$(head -n 1 $D/resource | cut -d' ' -f1); devmem $((A + 4)) 32 5; echo =$(devmem $((A + 4)) 32)"


async def test_a_device_is_plugged_in_and_taken_out_again_and_again():
    """Without MSI-X: QEMU 11.1.3 aborts when it takes out a vfio-user-pci that has it, whoever serves it."""
    device = Edu()
    async with behind_a_port() as qemu, Server(device, qemu.directory / "edu", tracer=RecordingTracer()) as server:
        for life in (1, 2, 3):
            await plugged(qemu, qemu.directory / "edu", EDU)
            assert await guest(qemu, LIVES) == "0xFFFFFFFA"
            await unplugged(qemu, "disk")
            while server.statistics().mappings:
                await asyncio.sleep(0.01)
            assert server.statistics().sessions == life
            await guest(qemu, "! [ -e $D ]")


@contextlib.asynccontextmanager
async def program_of(name, socket, *arguments):
    """An example as a process of its own, from when it listens on."""
    socket.unlink(missing_ok=True)
    server = subprocess.Popen([sys.executable, "-m", f"examples.{name}", "--socket-path", socket, *arguments], cwd=ROOT)
    try:
        while not socket.exists():
            await asyncio.sleep(0.01)
        yield server
    finally:
        server.kill()
        server.wait()


async def test_a_server_is_killed_and_its_device_replaced():
    """QEMU does not connect again; but where it can take the device out, the next one may be another server's."""
    async with behind_a_port() as qemu:
        socket = qemu.directory / "edu"
        for _ in range(2):
            async with program_of("edu_pci", socket) as server:
                await plugged(qemu, socket, EDU)
                assert await guest(qemu, LIVES) == "0xFFFFFFFA"
                server.kill()
                server.wait()
                assert await guest(qemu, "echo =$(devmem $((A + 4)) 32)") == "0xFFFFFFFF"
            await unplugged(qemu, "disk")


async def test_the_server_of_a_disk_is_killed_and_another_guest_has_the_disk_of_another_server(image):
    path, digest = image
    for _ in range(2):
        async with behind_a_port(append="nvme_core.io_timeout=2 nvme_core.admin_timeout=2") as qemu:
            socket = qemu.directory / "disk"
            async with program_of("nvme", socket, path) as server:
                await plugged(qemu, socket, "[ -b /dev/nvme0n1 ]")
                assert await guest(qemu, SUM) == digest
                await guest(
                    qemu, "(while dd if=/dev/nvme0n1 of=/dev/null bs=4k iflag=direct 2>/dev/null; do :; done) & load=$!"
                )
                server.kill()
                # What was under way ends with an error, and the driver gives the controller up.
                await guest(
                    qemu,
                    "wait $load; for i in $(seq 100); do [ -b /dev/nvme0n1 ] || break; sleep 0.1; done; ! [ -b /dev/nvme0n1 ]",
                )
                assert await guest(qemu, "echo =alive") == "alive"


# -- memory --------------------------------------------------------------------------------------------------------------


class Watched(Nvme):
    """Knows the highest address that it has read to."""

    highest = 0

    async def pages(self, command, size):
        found = await super().pages(command, size)
        self.highest = max(self.highest, *(address for address, _ in found))
        return found


async def test_memory_is_plugged_in_used_for_reads_and_taken_out(image):
    path, digest = image
    device = Watched(str(path))
    more = 128 * MIB
    try:
        async with linux(device, memory=256 * MIB, arguments=["-m", "slots=2,maxmem=1G"]) as (qemu, _):
            assert device.highest < 256 * MIB
            before = len(device.dma)
            await qemu.qmp.execute(
                "object-add", **{"qom-type": "memory-backend-memfd", "id": "more", "size": more, "share": True}
            )
            await qemu.qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
            assert len(device.dma) == before + 1
            # All of it for programs, so that they are given it first.
            await guest(
                qemu,
                "for i in $(seq 100); do M=$(grep -l offline /sys/devices/system/memory/memory*/state); "
                "[ $(echo $M | wc -w) = 1 ] && break; sleep 0.1; done; for m in $M; do echo online_movable >$m; done",
            )
            assert await guest(qemu, SUM) == digest
            assert device.highest >= 256 * MIB
            await unplugged(qemu, "dimm")
            assert len(device.dma) == before
            device.highest = 0
            assert await guest(qemu, SUM) == digest
            assert device.highest < 256 * MIB
    finally:
        device.close()
