"""vfio-user with QEMU as the client and Debian's Linux as the guest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess

import pytest

from aioirqfd.pci import (
    Bar,
    Msi,
    MsiX,
    PciDevice,
    PciExpress,
    PowerManagement,
    Register,
    SerialNumber,
    VendorSpecific,
)
from aioirqfd.pci.interrupts import PIN
from aioirqfd.testing import RecordingTracer
from aioirqfd.vfio_user import Server
from examples.edu_pci import Edu
from examples.nvme import Nvme
from examples.uart_pci import Uart, readable
from tests.qemu import program
from tests.qemu.harness import Qemu, initramfs
from tests.qemu.initramfs import need
from tests.qemu.test_vhost_linux import SHELL, guest

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

MIB = 1 << 20
RESERVED = 0x8000000
"""Guest memory that Linux leaves alone, as its command line says."""
TRACE = ["-trace", "vfio_msi_interrupt", "-D"]


@pytest.fixture(autouse=True)
def _new_enough():
    program.need((10, 1), "vfio-user-pci")


@contextlib.asynccontextmanager
async def linux(
    *devices, modules=(), programs=(), files=None, smp=1, arguments=(), memory=256 * MIB, append="", tracer=None
):
    """A guest with the devices, each served by this process, up to its prompt."""
    image = initramfs(
        SHELL, modules=modules, files=files, programs=programs, append=f"memmap=1M${RESERVED:#x} {append}"
    )
    qemu = Qemu(linux=image, ram=memory, smp=smp)
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for number, device in enumerate(devices):
            path = qemu.directory / f"device{number}"
            servers.append(await stack.enter_async_context(Server(device, path, tracer=tracer or RecordingTracer())))
            option = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}}
            qemu.add_arguments("-device", json.dumps(option))
        qemu.add_arguments(*arguments)
        async with qemu:
            await qemu.wait_for("GUEST-READY")
            for server in servers:
                await guest(qemu, where(server.device))
            yield qemu, *servers


def where(device):
    """Shell: $D is where sysfs has the device, $A the address of its first BAR."""
    return (
        "for D in /sys/bus/pci/devices/*; do "
        f'[ "$(cat $D/vendor) $(cat $D/device)" = "{device.vendor_id:#06x} {device.device_id:#06x}" ] && break; done; '
        "A=$(head -n 1 $D/resource | cut -d' ' -f1)"
    )


async def count(qemu, name):
    """What /proc/interrupts counts for the lines of this name, on all CPUs."""
    script = f"grep {name} /proc/interrupts | awk '{{ for (i = 2; i <= {qemu._smp} + 1; i++) n += $i }} END {{ print \"=\" n + 0 }}'"
    return int(await guest(qemu, script))


# -- a teaching device ---------------------------------------------------------------------------------------------------


async def test_the_teaching_device_by_hand():
    """A small user-space driver: registers by devmem, interrupts by uio, DMA by memory that Linux leaves alone."""
    async with linux(Edu(), modules=["uio_pci_generic"]) as (qemu, server):

        async def read(offset, width=32):
            return int(await guest(qemu, f"echo =$(devmem $(($A + {offset})) {width})"), 16)

        async def write(offset, value, width=32):
            await guest(qemu, f"devmem $(($A + {offset})) {width} {value:#x}")

        await guest(qemu, "echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id && exec 3</dev/uio0")
        await guest(qemu, r"printf '\7\0' | dd of=$D/config bs=1 seek=4 conv=notrunc 2>/dev/null")
        assert await read(0) == 0x010000ED
        await write(4, 0xCAFE)
        assert await read(4) == 0xFFFF3501
        await write(8, 10)
        assert await read(8) == 3628800
        # The driver turns the pin off at each interrupt, by the command register, as it must for a line that others share.
        for number in range(1, 6):
            await write(0x60, number)
            assert (
                await guest(qemu, "echo =$(dd bs=4 count=1 <&3 2>/dev/null | xxd -p)")
                == number.to_bytes(4, "little").hex()
            )
            assert await read(0x24) == number
            await write(0x64, number)
            await guest(qemu, r"printf '\7\0' | dd of=$D/config bs=1 seek=4 conv=notrunc 2>/dev/null")
        assert await count(qemu, "uio_pci_generic") == 5
        assert server.function.interrupts.sent(PIN) == 5
        # A copy to the device, and back to another place; the second one interrupts.
        data = random.Random(4).randbytes(1000)
        qemu.ram[RESERVED : RESERVED + 1000] = data
        for offset, value in ((0x80, RESERVED), (0x88, 0x40000), (0x90, 1000), (0x98, 1)):
            await write(offset, value, 64)
        for offset, value in ((0x80, 0x40000), (0x88, RESERVED + 0x1800), (0x90, 1000), (0x98, 7)):
            await write(offset, value, 64)
        assert qemu.ram[RESERVED + 0x1800 : RESERVED + 0x1800 + 1000] == data
        assert await guest(qemu, "echo =$(dd bs=4 count=1 <&3 2>/dev/null | xxd -p)") == "06000000"
        assert await read(0x24) == 0x100


class Shown(PciDevice):
    """Everything that lspci shows."""

    vendor_id, device_id, revision, class_code = 0x1234, 0x5678, 7, 0x0C8000
    subsystem_vendor_id, subsystem_id = 0xABCD, 0x0042
    bars = (Bar(0x4000, wide=True, prefetchable=True), None, Bar(0x1000), Bar(32, io=True))
    capabilities = (
        PowerManagement(),
        Msi(4),
        PciExpress(lanes=4, speed=3),
        MsiX(5, bar=2, table=0, pba=0x800),
        VendorSpecific(b"hello"),
        SerialNumber(0x1122334455667788),
    )
    scratch = Register(0)


async def test_lspci_shows_what_was_declared():
    lspci = shutil.which("lspci")
    need(lspci, "lspci")
    async with linux(Shown(), programs=[lspci]) as (qemu, _):
        seen = len(qemu.console.lines)
        await guest(qemu, "lspci -n -vvv -xxx -s ${D##*/0000:}")
        said = "\n".join(qemu.console.lines[seen:])
    for pattern in (
        r"0c80: 1234:5678 \(rev 07\)",
        r"Subsystem: abcd:0042",
        r"Region 0: Memory at \w+ \(64-bit, prefetchable\).*\[size=16K\]",
        r"Region 2: Memory at \w+ \(32-bit, non-prefetchable\).*\[size=4K\]",
        r"Region 3: I/O ports at \w+.*\[size=32\]",
        r"Power Management version 3",
        r"MSI: Enable- Count=1/4 Maskable- 64bit\+",
        r"Express \(v2\) Root Complex Integrated Endpoint",
        r"MSI-X: Enable- Count=5 Masked-",
        r"Vector table: BAR=2 offset=00000000",
        r"PBA: BAR=2 offset=00000800",
        r"Vendor Specific Information: Len=08",
        r"Device Serial Number 11-22-33-44-55-66-77-88",
    ):
        assert re.search(pattern, said), (pattern, said)


# -- a disk --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path):
    """A disk of 32 MiB of random bytes, and what they were."""
    path = tmp_path / "image"
    data = random.Random(2).randbytes(32 * MIB)
    path.write_bytes(data)
    return path, data


@contextlib.contextmanager
def disk(path):
    device = Nvme(str(path))
    try:
        yield device
    finally:
        device.close()


def digest(data):
    return hashlib.sha256(data).hexdigest()


async def test_linux_reads_and_writes_a_disk_and_every_interrupt_is_accounted_for(image, tmp_path):
    path, data = image
    log = tmp_path / "trace"
    with disk(path) as device:
        async with linux(device, smp=2, arguments=[*TRACE, str(log)]) as (qemu, server):
            assert int(await guest(qemu, "echo =$(cat /sys/block/nvme0n1/size)")) == 32 * MIB // 512
            assert await guest(qemu, "echo =$(sha256sum </dev/nvme0n1 | cut -d' ' -f1)") == digest(data)
            await guest(
                qemu,
                "for i in 0 1; do taskset $((1 << i)) sh -c 'for j in $(seq 4); do "
                "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=250 skip=$((j * 1000)) iflag=direct 2>/dev/null; done' & done; wait",
            )
            # 4 MiB at 8 MiB, what is read back, and zeroes where there was something.
            await guest(
                qemu,
                "head -c 4194304 /dev/urandom >/tmp/new && dd if=/tmp/new of=/dev/nvme0n1 bs=64k seek=128 conv=fsync 2>/dev/null",
            )
            new = await guest(qemu, "echo =$(sha256sum </tmp/new | cut -d' ' -f1)")
            await guest(
                qemu,
                "blkdiscard -z -o 1048576 -l 1048576 /dev/nvme0n1 || dd if=/dev/zero of=/dev/nvme0n1 bs=1M seek=1 count=1 conv=fsync 2>/dev/null",
            )
            # Every command that was given has been completed.
            await guest(qemu, 'sync; [ "$(cat /sys/block/nvme0n1/inflight | tr -d " ")" = 00 ]')
            assert device.commands > 2000
            # Linux rings doorbells in its memory, and the register where the controller sleeps: else it were twice for a command.
            assert device.shadows is not None
            assert device.rung < device.commands * 3 // 2
            sent = sum(server.function.interrupts.sent(vector) for vector in range(device.vectors))
            taken = await count(qemu, "nvme0q")
            assert not any(server.function.interrupts.pending_bits())
        forwarded = log.read_text().count("vfio_msi_interrupt")
        # Each interrupt was written to an eventfd, QEMU took the eventfds' counts, and the guest what QEMU gave it: what merges on
        # the way is less, and nothing is more.
        assert sent >= forwarded >= taken > 0
        assert taken > device.commands // 4
    after = path.read_bytes()
    assert digest(after[8 * MIB : 12 * MIB]) == new
    expected = data[:MIB] + bytes(MIB) + data[2 * MIB : 8 * MIB] + after[8 * MIB : 12 * MIB] + data[12 * MIB :]
    assert after == expected


async def test_a_file_system(tmp_path):
    """Made and filled by the guest, checked and read by the host."""
    path = tmp_path / "image"
    path.write_bytes(bytes(32 * MIB))
    mke2fs, debugfs = shutil.which("mke2fs"), shutil.which("debugfs")
    need(mke2fs and debugfs, "e2fsprogs")
    assert debugfs is not None
    with disk(path) as device:
        async with linux(device, modules=["ext4"], programs=[mke2fs], smp=2) as (qemu, _):
            await guest(qemu, f"{mke2fs} -q -t ext4 /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /mnt")
            await guest(
                qemu, "for i in $(seq 40); do head -c 100000 /dev/urandom >/mnt/$i; done; rm /mnt/7 /mnt/8; sync"
            )
            sums = await guest(qemu, "echo =$(cd /mnt && sha256sum 1 20 40 | cut -d' ' -f1)")
            await guest(qemu, "umount /mnt")
    subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
    found = [
        digest(subprocess.run([debugfs, "-R", f"cat {name}", path], check=True, capture_output=True).stdout)
        for name in (1, 20, 40)
    ]
    assert found == sums.split()


async def test_a_driver_that_goes_and_comes_and_a_reset_while_it_reads(image):
    path, data = image
    with disk(path) as device:
        async with linux(device, smp=2) as (qemu, server):
            read = "dd if=/dev/nvme0n1 of=/dev/null bs=16k iflag=direct 2>/dev/null"
            for _ in range(3):
                await guest(
                    qemu, f"({read}; {read}; true) & sleep 0.1; echo ${{D##*/}} >/sys/bus/pci/drivers/nvme/unbind; wait"
                )
                await guest(
                    qemu, "echo ${D##*/} >/sys/bus/pci/drivers/nvme/bind; until [ -b /dev/nvme0n1 ]; do sleep 0.1; done"
                )
            await guest(qemu, f"({read}; true) & sleep 0.1; echo 1 >$D/reset; wait")
            await guest(qemu, f"({read}; true) & sleep 0.1; echo 1 >/sys/class/nvme/nvme0/reset_controller; wait")
            assert await guest(qemu, "echo =$(sha256sum </dev/nvme0n1 | cut -d' ' -f1)") == digest(data)
            assert server.statistics().sessions == 1
    assert path.read_bytes() == data


async def test_two_devices_and_two_servers_in_one_guest(image):
    path, data = image
    with disk(path) as device:
        async with linux(device, Edu(), modules=["uio_pci_generic"]) as (qemu, *_):
            await guest(qemu, "(sha256sum </dev/nvme0n1 >/tmp/sum) &")
            for number in range(1, 9):
                assert (
                    int(await guest(qemu, f"devmem $(($A + 4)) 32 {number}; echo =$(devmem $(($A + 4)) 32)"), 16)
                    == 2**32 - 1 - number
                )
            await guest(qemu, "wait")
            assert await guest(qemu, "echo =$(cut -d' ' -f1 </tmp/sum)") == digest(data)


async def test_a_server_that_goes_away_leaves_qemu_alive(image):
    path, _ = image
    with disk(path) as device:
        image = initramfs(SHELL)
        qemu = Qemu(linux=image, ram=256 * MIB)
        server = Server(device, qemu.directory / "device", tracer=RecordingTracer())
        await server.__aenter__()
        option = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(qemu.directory / "device")}}
        qemu.add_arguments("-device", json.dumps(option))
        async with qemu:
            await qemu.wait_for("GUEST-READY")
            await server.__aexit__(None, None, None)
            assert await guest(qemu, "echo =alive") == "alive"


# -- a serial port -------------------------------------------------------------------------------------------------------


async def test_a_serial_port_of_linux_own_driver():
    """Bytes both ways, by the interrupt pin alone: a level, which has to rise again as long as there is a reason."""
    outside, sink = os.pipe()
    source, inside = os.pipe()
    os.set_blocking(outside, False)
    try:
        device = Uart(source, sink)
        async with linux(device) as (qemu, server):
            tty = await guest(
                qemu,
                "echo =$(cd /sys/class/tty && ls -d ttyS* | while read t; do [ -e $t/device/vendor ] && echo $t; done)",
            )
            assert tty.startswith("ttyS")
            name = await guest(qemu, "echo =$(cat $D/irq)")
            await guest(qemu, f"exec 4<>/dev/{tty} && stty -F /dev/{tty} raw -echo 115200")
            before = await guest(qemu, f"echo =$(awk '$1 == \"{name}:\" {{ print $2 }}' /proc/interrupts)")
            data = random.Random(6).randbytes(3000).hex().encode()
            await guest(qemu, "head -c 1500 /dev/urandom | xxd -p -c 3000 >/tmp/sent && cat /tmp/sent >&4")
            sent = await guest(qemu, "echo =$(sha256sum </tmp/sent | cut -d' ' -f1)")
            said = b""
            async with asyncio.timeout(60):
                while len(said) < 3001:
                    await readable(outside)
                    said += os.read(outside, 4096)
            assert digest(said) == sent
            os.write(inside, data)
            got = await guest(qemu, f"echo =$(head -c {len(data)} <&4 | sha256sum | cut -d' ' -f1)")
            assert got == digest(data)
            after = await guest(qemu, f"echo =$(awk '$1 == \"{name}:\" {{ print $2 }}' /proc/interrupts)")
            # One interrupt may stand for much of it, for the driver looks again before it ends one.
            assert 0 < int(after) - int(before or 0) <= server.function.interrupts.sent(PIN)
    finally:
        for fd in (outside, sink, source, inside):
            os.close(fd)
