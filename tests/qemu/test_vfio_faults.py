"""Linux' PCI drivers where a device misbehaves: nvme, 8250, and virtio_blk by virtio-pci."""

from __future__ import annotations

import contextlib
import tempfile

import pytest

from aioirqfd.faults import Delay, Fail, Faults, Match, Reset, Withhold
from aioirqfd.testing import guest
from aioirqfd.virtio_pci import VirtioPci
from examples import linux_sees
from examples.nvme import Nvme
from examples.uart_pci import Uart
from examples.vhost_user_blk import Blk
from tests.qemu import gallery, program
from tests.qemu.initramfs import kernel

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _new_enough():
    kernel()  # or skip, and say what is missing
    program.need((10, 1), "vfio-user-pci")


async def test_what_the_page_shows_of_an_nvme_disk():
    """Time-out, abort, reset and recovery; polling, a namespace that goes and comes, a failed controller, and one that is gone."""
    shown = await gallery.shown(linux_sees.nvme, linux_sees.NVME)
    aborting, _, reset, again = shown["a_command_is_never_done"].values()
    # Each wait is nvme_core.io_timeout, 2 s, and some jiffies by which Linux rounds up.
    assert aborting >= 2
    assert reset >= aborting + 2
    assert again >= reset
    (polled,) = shown["all_interrupts_are_lost"].values()
    assert polled >= 2


class Disks:
    """Three disks of one guest: each with faults of its own."""

    def __init__(self, directory, stack):
        self.faults = {}
        self.devices = []
        made = {"vda": Blk, "vdb": Blk, "nvme0n1": Nvme}
        for name, kind in made.items():
            image = directory / name
            image.write_bytes(bytes(8 * MIB))
            self.faults[name] = faults = Faults(nonconforming=True)
            device = stack.enter_context(contextlib.closing(faults.wrap(kind(str(image)))))
            self.devices.append(VirtioPci(device) if name == "vdb" else device)


async def test_three_disks_and_a_serial_port(tmp_path):
    with contextlib.ExitStack() as stack:
        disks = Disks(tmp_path, stack)
        sink = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        line = Faults(nonconforming=True)
        uart = line.wrap(Uart(sink=sink.fileno()))

        def said():
            sink.seek(0)
            text = sink.read()
            sink.seek(0)
            sink.truncate()
            return text

        modules = ["virtio_blk", "nvme", "8250_pci"]
        async with guest(*disks.devices, uart, modules=modules, qemu=program.PROGRAM) as vm:
            for name, faults in disks.faults.items():
                await vm.run(f"until [ -b /dev/{name} ]; do sleep 0.1; done", check=True)
                await the_same_eight_lines(vm, name, faults)
                await what_is_late_is_done(vm, name, faults)
            await a_line_is_stuck(vm, line, said)
            await a_virtio_function_resets_itself(vm, disks.faults["vdb"])


async def the_same_eight_lines(vm, name, faults):
    """Virtio-blk by vhost-user, virtio-blk by virtio-pci, and NVMe."""
    third = faults.add(Match("write", nth=3), Fail())
    write = f"dd if=/dev/zero of=/dev/{name} bs=4k count=1 oflag=direct seek="
    await vm.run("dmesg -c >/dev/null")
    assert [(await vm.run(f"{write}{number}")).status for number in range(4)] == [0, 0, 1, 0]
    await third.hit()
    dmesg = await vm.run("dmesg", check=True)
    assert f"I/O error, dev {name}, sector 16 op 0x1:(WRITE)" in dmesg.output
    third.remove()


async def what_is_late_is_done(vm, name, faults):
    """No time-out of any of the three is as short as a second: the program waits, and nothing is logged."""
    late = faults.add(Match("read"), Delay(1.0))
    read = f"dd if=/dev/{name} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null skip=100"
    said = await vm.run(
        f"dmesg -c >/dev/null; cut -d' ' -f1 /proc/uptime; {read}; cut -d' ' -f1 /proc/uptime; dmesg", check=True
    )
    began, ended = map(float, said.output.split())
    assert ended - began >= 1
    assert late.hits == 1
    late.remove()


async def a_line_is_stuck(vm, faults, said):
    """8250 is asked again and again, finds that its port has nothing, and works all the same; the kernel counts what nobody handled.

    It would turn the line off after 99,900 of 100,000 such, which takes minutes here.
    """
    unhandled = (
        "grep ^unhandled /proc/irq/$(grep ttyS2 /proc/interrupts | cut -d: -f1 | tr -d ' ')/spurious | cut -d' ' -f2"
    )
    stuck = faults.add(Match("deassert", vector="pin"), Withhold())
    await vm.run(
        "stty -F /dev/ttyS2 raw -echo; (exec 4<>/dev/ttyS2; echo hello >&4; sleep 1000) & echo $! >/tmp/open",
        check=True,
    )
    await stuck.hit()
    await vm.run(f"until [ $({unhandled}) -gt 100 ]; do sleep 0.1; done", check=True)
    assert said() == b"hello\n"
    stuck.remove()
    # What is on its way yet comes; then it is quiet.
    quiet = (
        f"while true; do was=$({unhandled}); sleep 1; [ $({unhandled}) = $was ] && break; done; echo again >/dev/ttyS2"
    )
    await vm.run(f"{quiet}; kill $(cat /tmp/open)", check=True)
    assert said() == b"again\n"
    assert "nobody cared" not in (await vm.run("dmesg")).output


async def a_virtio_function_resets_itself(vm, faults):
    """Its status is 0 from one moment to the next. Linux is not told, and waits."""
    reset = faults.add(Match("read"), Reset())
    await vm.run(
        "dmesg -c >/dev/null; (dd if=/dev/vdb of=/dev/null bs=4k count=1 iflag=direct skip=200; echo $? >/tmp/gone) &"
    )
    await reset.hit()
    assert (await vm.run("sleep 1; dmesg; ls /tmp/gone 2>&1")).output == "ls: /tmp/gone: No such file or directory\n"
