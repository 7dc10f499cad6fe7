"""vhost-user with QEMU as the front-end and Debian's Linux as the guest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.vhost_user import Backend
from aioirqfd.virtio import Chain, Device
from examples.chaos_blk import Chaos
from examples.vhost_user_blk import Blk
from tests.qemu import program
from tests.qemu.harness import Qemu, initramfs

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
# A guest's commands, one a line of the console; DONE after each, with its status.
SHELL = """
echo GUEST-READY
while read -r line; do
    eval "$line"
    echo "DONE $?"
done
"""


async def guest(qemu, line):
    """Run a line of shell in the guest; it must succeed. What it printed behind an ``=``, if it did."""
    seen = len(qemu.console.lines)
    await qemu.console.send(line + "\n")
    done = await qemu.wait_for("DONE ")
    assert done.split("DONE ")[1].strip() == "0", (line, qemu.console.lines[seen:])
    said = [text.partition("=")[2].strip() for text in qemu.console.lines[seen:] if text.startswith("=")]
    return said[-1] if said else ""


async def interrupts(qemu, name):
    """What /proc/interrupts counts for a line of this name, on all CPUs."""
    script = f"grep {name} /proc/interrupts | awk '{{ n = 0; for (i = 2; i <= {qemu._smp} + 1; i++) n += $i; t += n }} END {{ print \"=\" t }}'"
    return int(await guest(qemu, script))


@contextlib.asynccontextmanager
async def linux(device, kind, *, modules, smp=1, options="", programs=(), memory=256 * MIB):
    """A guest with the device, served by this process, up to its prompt."""
    image = initramfs(SHELL, modules=["virtio_pci", *modules], programs=programs)
    qemu = Qemu(linux=image, ram=memory, smp=smp)
    path = qemu.directory / "device"
    async with Backend(device, path) as backend:
        qemu.add_arguments("-chardev", f"socket,id=c,path={path}", "-device", f"{kind},chardev=c{options}")
        async with qemu:
            await qemu.wait_for("GUEST-READY")
            yield qemu, backend


class Stream(Device):
    """Random bytes, and a copy of all that were served."""

    device_id = 4

    def __init__(self) -> None:
        self.random = random.Random(1)
        self.served = bytearray()

    async def handle(self, request: Chain) -> int:
        data = self.random.randbytes(request.writable_size)
        self.served += data
        return request.write(data)


async def test_the_guests_random_bytes_are_ours():
    stream = Stream()
    async with linux(stream, "vhost-user-rng-pci", modules=["virtio_rng"], options=",vectors=2") as (qemu, backend):
        # The kernel's own reader may go on while its interrupts are counted: there are two bounds.
        calls = [backend.statistics().queues[0].calls]
        before = await interrupts(qemu, "virtio0-input")
        calls.append(backend.statistics().queues[0].calls)
        seen = await guest(qemu, "echo =$(dd if=/dev/hwrng bs=4096 count=1 2>/dev/null | sha256sum | cut -d' ' -f1)")
        # The kernel's own reader takes blocks in between, and the core keeps some back: the place is not known.
        found = [at for at in range(0, len(stream.served), 64) if digest(stream.served[at : at + 4096]) == seen]
        assert len(found) == 1
        await guest(qemu, "dd if=/dev/hwrng of=/dev/null bs=4096 count=16 2>/dev/null")
        (done,) = backend.statistics().queues
        assert done.requests - done.answers <= 1  # the one that the driver always has waiting
        calls.append(done.calls)
        counted = await interrupts(qemu, "virtio0-input") - before
        calls.append(backend.statistics().queues[0].calls)
        assert calls[2] - calls[1] - 1 <= counted <= calls[3] - calls[0] + 1


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def image(tmp_path):
    """A disk of 32 MiB of random bytes, and what they were."""
    path = tmp_path / "image"
    data = random.Random(2).randbytes(32 * MIB)
    path.write_bytes(data)
    return path, data


@pytest.mark.parametrize("queues", [1, 2])
async def test_a_disk_is_read_and_written(image, queues):
    path, data = image
    blk = Blk(str(path), num_queues=queues, serial="number one")
    async with linux(
        blk, "vhost-user-blk-pci", modules=["virtio_blk"], options=f",num-queues={queues}", smp=queues
    ) as (qemu, backend):
        assert int(await guest(qemu, "echo =$(cat /sys/block/vda/size)")) == 32 * MIB // 512
        assert await guest(qemu, "echo =$(cat /sys/block/vda/serial)") == "number one"
        before = await interrupts(qemu, "virtio0-req")
        calls = sum(queue.calls for queue in backend.statistics().queues)
        assert await guest(qemu, "echo =$(sha256sum </dev/vda | cut -d' ' -f1)") == digest(data)
        # 4 MiB at 8 MiB, and what is read back after the cache was dropped.
        seen = await guest(
            qemu,
            "dd if=/dev/urandom of=/new bs=1M count=4 2>/dev/null; dd if=/new of=/dev/vda bs=64k seek=128 conv=fsync 2>/dev/null;"
            " echo 3 >/proc/sys/vm/drop_caches; echo =$(dd if=/dev/vda bs=1M skip=8 count=4 2>/dev/null | sha256sum | cut -d' ' -f1)",
        )
        written = path.read_bytes()
        assert digest(written[8 * MIB : 12 * MIB]) == seen
        assert written[: 8 * MIB] + written[12 * MIB :] == data[: 8 * MIB] + data[12 * MIB :]
        # Each call is an interrupt of the guest's, and there are no others. What is called again before QEMU, which may be
        # late, has looked at the eventfd is one interrupt.
        counted = await interrupts(qemu, "virtio0-req") - before
        assert 50 < counted <= sum(queue.calls for queue in backend.statistics().queues) - calls
        assert sum(queue.failed for queue in backend.statistics().queues) == 0
        # Discarded, and written with zeros.
        await guest(qemu, "blkdiscard -o 16777216 -l 1048576 /dev/vda")
        assert path.read_bytes()[16 * MIB : 17 * MIB] == bytes(MIB)
        await guest(qemu, "poweroff -f &")
        await qemu.died()
    blk.close()


async def test_a_read_only_disk(image):
    path, data = image
    blk = Blk(str(path), read_only=True)
    async with linux(blk, "vhost-user-blk-pci", modules=["virtio_blk"]) as (qemu, _):
        assert await guest(qemu, "echo =$(cat /sys/block/vda/ro)") == "1"
        assert await guest(qemu, "echo =$(sha256sum </dev/vda | cut -d' ' -f1)") == digest(data)
        await guest(qemu, "! dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync 2>/dev/null")
    assert path.read_bytes() == data
    blk.close()


async def test_a_file_system_is_filled_checked_and_compared(tmp_path):
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["/sbin/mkfs.ext4", "-q", path], check=True)
    blk = Blk(str(path))
    async with linux(blk, "vhost-user-blk-pci", modules=["virtio_blk", "ext4"]) as (qemu, _):
        await guest(qemu, "mkdir /disk && mount -t ext4 /dev/vda /disk")
        sums = {}
        for number in range(6):
            await guest(qemu, f"dd if=/dev/urandom of=/disk/file{number} bs=100k count={7 * number + 1} 2>/dev/null")
            sums[number] = await guest(qemu, f"echo =$(sha256sum </disk/file{number} | cut -d' ' -f1)")
        await guest(qemu, "rm /disk/file3 && mkdir /disk/d && mv /disk/file1 /disk/d/one && umount /disk")
    blk.close()
    subprocess.run(["/sbin/fsck.ext4", "-fn", path], check=True, capture_output=True)
    for name, number in (("/file0", 0), ("/d/one", 1), ("/file2", 2), ("/file4", 4), ("/file5", 5)):
        out = tmp_path / "out"
        subprocess.run(["/sbin/debugfs", "-R", f"dump {name} {out}", path], check=True, capture_output=True)
        assert digest(out.read_bytes()) == sums[number]


async def test_affinity_is_flipped_under_load_and_no_interrupt_is_lost():
    """Each flip masks and unmasks the vector: QEMU swaps the call eventfd twice, and tells nobody when it looks at which."""
    flips = 200
    stream = Stream()
    async with linux(stream, "vhost-user-rng-pci", modules=["virtio_rng"], options=",vectors=2", smp=2) as (
        qemu,
        backend,
    ):
        before, calls = await interrupts(qemu, "virtio0-input"), backend.statistics().queues[0].calls
        await guest(
            qemu,
            "irq=$(grep virtio0-input /proc/interrupts | cut -d: -f1 | tr -d ' ');"
            " (while dd if=/dev/hwrng of=/dev/null bs=64 count=16 2>/dev/null; do :; done) & load=$!;"
            f" for i in $(seq {flips}); do echo $((i % 2 + 1)) >/proc/irq/$irq/smp_affinity; done; kill $load; wait",
        )
        # Hangs if one was lost: the driver has one request under way at a time.
        await guest(qemu, "dd if=/dev/hwrng of=/dev/null bs=64 count=64 2>/dev/null")
        counted = await interrupts(qemu, "virtio0-input") - before
        (done,) = backend.statistics().queues
        # Each new eventfd is rung once, and what comes while masked is one with what is pending.
        assert (done.calls - calls) // 2 <= counted <= done.calls - calls + 2 * flips + 2


async def test_a_driver_stands_a_disk_that_misbehaves(image):
    path, data = image
    chaos = Chaos(str(path))
    read = "echo 3 >/proc/sys/vm/drop_caches; echo =$(head -c 4194304 /dev/vda | sha256sum | cut -d' ' -f1)"
    async with linux(chaos, "vhost-user-blk-pci", modules=["virtio_blk"]) as (qemu, backend):
        for manners in (
            "jitter=3 reorder=4",
            "irq-delay=1 irq-duplicate=2",
            "irq-merge=3",
            "merge=3 delay=0.2 irq-spurious=5",
        ):
            await chaos.command("reset")
            await chaos.command(f"set {manners}")
            assert await guest(qemu, read) == digest(data[: 4 * MIB]), manners
        interrupt = chaos.faults.targets[0].lines[0]
        assert interrupt.rung != interrupt.wanted
        await chaos.command("reset")
        # An I/O error is the reader's, and not the next one's.
        await chaos.command("set type=read error-percent=100")
        await guest(qemu, "echo 3 >/proc/sys/vm/drop_caches; ! head -c 4096 /dev/vda >/dev/null 2>&1")
        await chaos.command("reset")
        assert await guest(qemu, read) == digest(data[: 4 * MIB])
        # Withheld in the middle of a write: the guest waits, and goes on where it was.
        await guest(qemu, "dd if=/dev/urandom of=/new bs=1M count=4 2>/dev/null")
        writing = asyncio.ensure_future(guest(qemu, "dd if=/new of=/dev/vda bs=64k conv=fsync 2>/dev/null"))
        await chaos.command("requests 3")
        await chaos.command("set withhold=5 irq-withhold=1")
        while not chaos.faults.held and not interrupt.silent:
            await asyncio.sleep(0.01)
        assert not writing.done()
        await chaos.command("release")
        await writing
        new = await guest(qemu, "echo =$(sha256sum </new | cut -d' ' -f1)")
        assert digest(path.read_bytes()[: 4 * MIB]) == new
        (queue,) = backend.statistics().queues
        assert (queue.requests, queue.failed) == (queue.answers, 0)
    chaos.close()


@pytest.mark.stress
async def test_a_back_end_killed_under_load_and_started_again_loses_no_request(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(32 * MIB))
    qemu = Qemu(linux=initramfs(SHELL, modules=["virtio_pci", "virtio_blk"]), ram=256 * MIB)
    end = qemu.directory / "device"
    command = [sys.executable, "-m", "examples.vhost_user_blk", "--socket-path", str(end), "--blk-file", str(path)]
    processes: list[subprocess.Popen[bytes]] = []

    async def start():
        processes.append(subprocess.Popen(command, cwd=ROOT))
        while not end.exists():
            await asyncio.sleep(0.01)

    try:
        await start()
        qemu.add_arguments("-chardev", f"socket,id=c,path={end},{program.reconnect()}")
        qemu.add_arguments("-device", "vhost-user-blk-pci,chardev=c")
        async with qemu:
            await qemu.wait_for("GUEST-READY")
            await guest(qemu, "dd if=/dev/urandom of=/new bs=1M count=32 2>/dev/null")
            sent = asyncio.ensure_future(
                guest(
                    qemu,
                    "for i in $(seq 0 7); do echo STEP $i; dd if=/new of=/dev/vda bs=4k skip=$((i * 1024)) seek=$((i * 1024)) count=1024"
                    " conv=fsync 2>/dev/null || exit 1; done",
                )
            )
            for step in (1, 3, 6):
                while not any(text.startswith(f"STEP {step}") for text in qemu.console.lines):
                    await asyncio.sleep(0)
                processes[-1].kill()
                processes[-1].wait()
                end.unlink()
                await start()
            await sent
            new = await guest(qemu, "echo =$(sha256sum </new | cut -d' ' -f1)")
            await guest(qemu, "echo 3 >/proc/sys/vm/drop_caches")
            assert await guest(qemu, "echo =$(sha256sum </dev/vda | cut -d' ' -f1)") == new
        assert digest(path.read_bytes()) == new
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert len(processes) == 4
