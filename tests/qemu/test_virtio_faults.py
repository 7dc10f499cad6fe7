"""Linux' virtio drivers where a device misbehaves: what they do, and what they do not."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess

import pytest

from aioirqfd.faults import Corrupt, Drop, Fail, Faults, Lose, Match, Reset, Resize, Spurious, Withhold
from aioirqfd.testing import guest
from aioirqfd.vhost_user import Backend
from examples import linux_sees
from examples.vhost_user_blk import Blk
from examples.vhost_user_ping import Ping
from examples.vhost_user_rng import Rng
from tests.qemu import gallery, program
from tests.qemu.initramfs import kernel, need

# What Linux does, it does whatever our loop is.
pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

READ = "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null skip="
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _there():
    kernel()  # or skip, and say what is missing
    need(shutil.which("mke2fs", path="/sbin:/usr/sbin"), "mke2fs")


async def test_what_the_page_shows_of_a_virtio_disk():
    """Errors, a hang, a lost interrupt and answers that are none, each with its line of the log."""
    shown = await gallery.shown(linux_sees.virtio, linux_sees.VIRTIO)
    (line,) = shown["a_read_fails"]
    assert line.startswith("I/O error, dev vda, sector 800 op 0x0:(READ)")
    (blocked, *_) = shown["a_disk_hangs"].values()
    assert blocked >= 2


@contextlib.asynccontextmanager
async def machine(tmp_path):
    """A guest with a disk, a network card and a source of randomness; each with faults of its own."""
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * (8 * MIB // 256))
    disk, net, rng = (Faults(nonconforming=True) for _ in range(3))
    socket = tmp_path / "net"
    card = ["-chardev", f"socket,id=net,path={socket}", "-netdev", "vhost-user,id=net,chardev=net"]
    blk = disk.wrap(Blk(str(image)))
    with contextlib.closing(blk):
        async with (
            Backend(net.wrap(Ping()), socket),
            guest(
                blk,
                rng.wrap(Rng()),
                modules=["virtio_blk", "virtio_net", "virtio_rng"],
                arguments=[*card, "-device", "virtio-net-pci,netdev=net,vectors=0,romfile="],
                faults=disk,
                qemu=program.PROGRAM,
            ) as vm,
        ):
            yield vm, disk, net, rng


async def test_a_disk_a_network_card_and_a_source_of_randomness(tmp_path):
    async with machine(tmp_path) as (vm, disk, net, rng):
        await a_short_answer(vm, disk)
        await the_driver_resets_its_queues(vm, disk)
        await interrupts_of_a_network_card_are_lost(vm, net)
        await an_empty_answer_ends_a_source(vm, rng)
        await the_device_is_gone(vm, disk)


async def a_short_answer(vm, faults):
    """virtio_blk believes the status, and does not look at the length: what was not written is read as it was."""
    fault = faults.add(Match("read"), Resize(-4096))
    assert (await vm.run(f"dmesg -c >/dev/null; {READ}100")).status == 0
    assert fault.hits == 1
    assert (await vm.run("dmesg")).output == ""
    faults.clear()


async def the_driver_resets_its_queues(vm, faults):
    """Unbound, it waits for what is under way before it resets the device; bound again, the disk is the same."""
    late = faults.add(Match("read"), Withhold())
    sums = "md5sum </dev/vda"
    await vm.run(f"({READ}200; echo $? >/tmp/late) &")
    await late.hit()
    drivers = "/sys/bus/virtio/drivers/virtio_blk"
    await vm.run(f"(echo virtio0 >{drivers}/unbind; echo done >/tmp/unbound) & sleep 1")
    assert (await vm.run("ls /tmp/late /tmp/unbound 2>/dev/null")).output == ""
    late.remove()
    await vm.run("until [ -e /tmp/unbound ]; do sleep 0.1; done")
    assert (await vm.run("cat /tmp/late; ls /dev/vda 2>&1")).output == "0\nls: /dev/vda: No such file or directory\n"
    await vm.run(f"echo virtio0 >{drivers}/bind; until [ -b /dev/vda ]; do sleep 0.1; done", check=True)
    before = (await vm.run(sums, check=True)).output
    wrong = faults.add(Match("read", count=1), Corrupt("data", offset=7))
    await vm.run("echo 3 >/proc/sys/vm/drop_caches")
    assert (await vm.run(sums)).output != before
    wrong.remove()
    await vm.run("echo 3 >/proc/sys/vm/drop_caches")
    assert (await vm.run(sums)).output == before


async def interrupts_of_a_network_card_are_lost(vm, faults):
    """NAPI sleeps until it is told that there is something; then it takes all there is, by one interrupt."""

    async def answered(number):
        """Until the card has filled so many buffers with what has come."""
        async with asyncio.timeout(60):
            while faults.count(kinds=("receive",), queues=(0,)) < number:
                await asyncio.sleep(0.05)

    await vm.run("ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up", check=True)
    assert "1 packets received" in (await vm.run("ping -c 1 -W 30 10.0.0.1", check=True)).output
    lost = faults.add(Match("interrupt"), Drop())
    there = faults.count(kinds=("receive",), queues=(0,))
    await vm.run("(ping -c 2 -W 60 10.0.0.1; echo ended) >/tmp/ping 2>&1 &")
    await answered(there + 2)
    assert lost.hits >= 1
    # Both frames lie in the ring, and nobody looks.
    assert "from" not in (await vm.run("sleep 1; cat /tmp/ping")).output
    lost.remove()
    woken = faults.add(Match("interrupt", count=1), Spurious(every=0.1))
    await woken.hit()
    said = (await vm.run("until grep -q ended /tmp/ping; do sleep 0.1; done; cat /tmp/ping")).output
    assert "2 packets received" in said
    # Whoever was first has waited for the longest, until the driver was woken.
    first, second = (float(time) for time in re.findall(r"time=([\d.]+) ms", said))
    assert first > max(second, 1000)
    assert "3 packets received" in (await vm.run("ping -c 3 -W 30 10.0.0.1", check=True)).output


async def an_empty_answer_ends_a_source(vm, faults):
    """What no device may do (virtio 1.2, 5.4.6.2), and why: virtio_rng asks for no more, until it is bound anew."""
    random = "timeout {} head -c 64 /dev/hwrng | wc -c"
    assert (await vm.run(random.format(30))).output == "64\n"
    empty = faults.add(Match("request", nth=1), Fail())
    await vm.run(random.format(1))
    assert empty.hits == 1
    assert "0" in (await vm.run(random.format(2))).output.splitlines()
    assert empty.requests == 1
    drivers = "/sys/bus/virtio/drivers/virtio_rng"
    await vm.run(f"for what in unbind bind; do echo virtio1 >{drivers}/$what; done", check=True)
    assert (await vm.run(random.format(30))).output == "64\n"


async def the_device_is_gone(vm, faults):
    """The process of a disk hangs up. Linux is not told, and waits; nothing is logged."""
    gone = faults.add(Match("read"), Reset())
    await vm.run(f"dmesg -c >/dev/null; ({READ}300; echo $? >/tmp/gone) &")
    await gone.hit()
    assert (await vm.run("sleep 1; dmesg; ls /tmp/gone 2>&1")).output == "ls: /tmp/gone: No such file or directory\n"


class Cached(Blk):
    """A disk with a cache that forgets: what is durable is what was there at the last flush."""

    def __init__(self, path, durable):
        super().__init__(path)
        self.file = None  # each request comes by here
        self._path, self._durable = path, durable
        shutil.copyfile(path, durable)

    async def handle(self, request):
        flush = int.from_bytes(request.read(4), "little") == 4
        written = await super().handle(request)
        if flush:
            await asyncio.to_thread(shutil.copyfile, self._path, self._durable)
        return written


async def test_ext4_after_a_lost_flush_and_a_loss_of_power(tmp_path):
    """What fsync() promised is there; what it promised after a flush that was not done is not. The journal is whole in either case."""
    image, durable = tmp_path / "image", tmp_path / "durable"
    image.write_bytes(bytes(16 * MIB))
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", str(image)], check=True)
    faults = Faults(nonconforming=True)
    modules = ["virtio_blk", "ext4", "crc32c_generic"]
    put = "dd if=/dev/zero bs=4k count=1 conv=fsync 2>/dev/null of=/mnt/"
    with contextlib.closing(faults.wrap(Cached(str(image), durable))) as disk:
        async with guest(disk, modules=modules, faults=faults, qemu=program.PROGRAM) as vm:
            await vm.run("mount -t ext4 /dev/vda /mnt", check=True)
            await vm.run(f"{put}kept", check=True)
            lost = faults.add(Match("flush"), Lose())
            assert (await vm.run(f"{put}promised; echo $?")).output == "0\n"
            await lost.hit()
            # Power fails here: of what came after the last flush that was done, nothing is left.
    with contextlib.closing(Blk(str(durable))) as disk:
        async with guest(disk, modules=modules, qemu=program.PROGRAM) as vm:
            await vm.run("mount -t ext4 /dev/vda /mnt", check=True)
            assert (await vm.run("ls /mnt")).output == "kept\nlost+found\n"
            assert (await vm.run("wc -c </mnt/kept; umount /mnt", check=True)).output == "4096\n"
            log = (await vm.run("dmesg")).output
            assert "EXT4-fs (vda): recovery complete" in log
            assert "EXT4-fs error" not in log
    subprocess.run(["/sbin/e2fsck", "-fn", str(durable)], check=True, capture_output=True)
