"""What Linux makes of twelve faults, in its own words: ``python examples/linux_sees.py``, or some of them by name.

Each function is a script of its own: a guest runs, a fault is set, something is done, and what the guest printed is shown, with the lines
of its kernel's log and when they came. Those for NVMe need QEMU 10.1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a path: python examples/linux_sees.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aioirqfd.faults import AllOnes, Corrupt, Delay, Drop, Duplicate, Fail, Faults, Match, Spurious, Withhold
from aioirqfd.testing import guest
from examples.nvme import Nvme
from examples.vhost_user_blk import Blk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
    from contextlib import AbstractAsyncContextManager

    from aioirqfd.testing import Guest

READ = "dd if=/dev/{} of=/dev/null bs=4k count=1 iflag=direct skip="
KEPT = re.compile(r"nvme|virtio|I/O error|EXT4-fs|INFO: task")
"""Of the kernel's log, the lines that are shown; call traces are not."""
LINES = 8
"""So many of them at most."""


async def show(vm: Guest, command: str) -> None:
    """Run something in the guest; print what it printed, its status, and what the kernel has to say, by seconds from the start."""
    began = float((await vm.run("cut -d' ' -f1 /proc/uptime; dmesg -c >/dev/null")).output)
    result = await vm.run(command)
    # docs: begin show
    print(f"/ # {command}")
    print(result.output, end="")
    if result.status:
        print(f"(exit status {result.status})")
    log = [re.match(r"\[ *([\d.]+)\] (.*)", line) for line in (await vm.run("dmesg")).output.splitlines()]
    said = [found for found in log if found is not None and KEPT.search(found[2])]
    for found in said[:LINES]:
        print(f"after {max(float(found[1]) - began, 0):.2f} s: {found[2]}")
    # docs: end show


# -- a virtio disk ---------------------------------------------------------------------------------------------------------


async def a_read_fails(vm: Guest, faults: Faults) -> None:
    """One sector in the log, and an error for the program."""
    # docs: begin a_read_fails
    faults.add(Match("read", sector=800), Fail())
    await show(vm, "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct skip=100")
    # docs: end a_read_fails


async def a_flush_fails(vm: Guest, faults: Faults) -> None:
    """Of the two programs that sync, one is told."""
    # docs: begin a_flush_fails
    faults.add(Match("flush", nth=1), Fail())
    write = "dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=6000 conv=fsync 2>/dev/null; echo $?"
    await show(vm, f"{write}; {write}")
    # docs: end a_flush_fails


async def a_byte_is_wrong(vm: Guest, faults: Faults) -> None:
    """What the file system's checksums find."""
    await vm.run("mount -t ext4 /dev/vda /mnt", check=True)
    # docs: begin a_byte_is_wrong
    faults.add(Match("read"), Corrupt("data", offset=100, mask=0x01))
    await show(vm, "ls /mnt")
    # docs: end a_byte_is_wrong
    faults.clear()
    await vm.run("umount /mnt; echo 3 >/proc/sys/vm/drop_caches")


async def a_disk_hangs(vm: Guest, faults: Faults) -> None:
    """virtio_blk waits for as long as it takes; it is another part of the kernel that complains."""
    # docs: begin a_disk_hangs
    await vm.run("echo 2 >/proc/sys/kernel/hung_task_timeout_secs")  # 120 at first
    hung = faults.add(Match("write"), Withhold())
    write = "dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=6000 conv=fsync 2>/dev/null"
    await show(vm, f"{write} & until dmesg | grep -q blocked; do sleep 0.1; done")
    hung.remove()
    # docs: end a_disk_hangs
    await vm.run("echo 120 >/proc/sys/kernel/hung_task_timeout_secs; while pgrep dd >/dev/null; do sleep 0.1; done")


async def an_interrupt_is_lost(vm: Guest, faults: Faults) -> None:
    """The driver wants to hear of the next answer after the last that it has heard of, so it hears of none, until it is woken for nothing."""
    # docs: begin an_interrupt_is_lost
    faults.add(Match("interrupt", count=1), Drop())
    for block in (100, 200):
        await vm.run(
            f"(dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct skip={block}; echo {block} >>/tmp/read) 2>/dev/null &"
        )
    await show(vm, "sleep 3; cat /tmp/read")
    woken = faults.add(Match("interrupt", count=1), Spurious(every=0.1))
    await woken.hit()
    await show(vm, "while [ $(cat /tmp/read | wc -l) != 2 ]; do sleep 0.1; done; sort /tmp/read")
    # docs: end an_interrupt_is_lost


async def an_answer_is_anothers(vm: Guest, faults: Faults) -> None:
    """A driver that trusts its device with an index would read beyond its table; this one gives the queue up."""
    # docs: begin an_answer_is_anothers
    faults.add(Match("read", count=1), Corrupt("id", mask=0xFF00))
    read = "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct skip=100 2>/dev/null"
    await show(vm, f"{read} & until dmesg | grep -q range; do sleep 0.1; done")
    # docs: end an_answer_is_anothers


async def an_answer_comes_twice(vm: Guest, faults: Faults) -> None:
    """The read is done; the next one fails, for the queue is given up."""
    # docs: begin an_answer_comes_twice
    faults.add(Match("read", count=1), Duplicate(gap=0.1))
    read = "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; echo $?"
    await show(vm, f"{read}; until dmesg | grep -q head; do sleep 0.1; done; {read}")
    # docs: end an_answer_comes_twice
    rebind = "for what in unbind bind; do echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/$what; done"
    await vm.run(f"{rebind}; while ! [ -b /dev/vda ]; do sleep 0.1; done", check=True)


# -- an NVMe disk ----------------------------------------------------------------------------------------------------------


async def a_command_is_never_done(vm: Guest, faults: Faults) -> None:
    """It is aborted, which this controller cannot do; then the controller is reset, and the command comes again."""
    # docs: begin a_command_is_never_done
    faults.add(Match("read", nth=1), Drop())
    await show(vm, "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct skip=100 2>/dev/null; echo $?")
    # docs: end a_command_is_never_done


async def all_interrupts_are_lost(vm: Guest, faults: Faults) -> None:
    """When it has waited for long enough, the driver looks for itself."""
    # docs: begin all_interrupts_are_lost
    faults.add(Match("interrupt", vector=1), Drop())
    await show(vm, "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct skip=100 2>/dev/null; echo $?")
    # docs: end all_interrupts_are_lost


async def a_namespace_disappears(vm: Guest, faults: Faults) -> None:
    """The list of namespaces, which begins with number 1, comes empty. Then it is right again."""
    # docs: begin a_namespace_disappears
    gone = faults.add(Match("dma-write", size=4096, content=b"\x01" + bytes(15)), Corrupt("written", mask=0x01))
    scan = "echo 1 >/sys/class/nvme/nvme0/rescan_controller"
    await show(vm, f"{scan}; while [ -b /dev/nvme0n1 ]; do sleep 0.1; done; ls /dev/nvme0*")
    gone.remove()
    await show(vm, f"{scan}; until [ -b /dev/nvme0n1 ]; do sleep 0.1; done; ls /dev/nvme0*")
    # docs: end a_namespace_disappears


async def a_controller_has_failed(vm: Guest, faults: Faults) -> None:
    """The driver sees the bit that says so when a command takes too long, and resets the controller at once."""
    # docs: begin a_controller_has_failed
    faults.add(Match("read", nth=1), Drop())
    faults.add(Match("register-read", register="status", count=1), Corrupt("data", mask=0x02))
    await show(vm, "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct skip=100 2>/dev/null; echo $?")
    # docs: end a_controller_has_failed


async def a_disk_is_pulled_out(vm: Guest, faults: Faults) -> None:
    """All registers read as ones. Nothing brings it back but a scan of the bus."""
    # docs: begin a_disk_is_pulled_out
    faults.add(Match(("register-*", "config-*")), AllOnes())
    faults.add(Match("read"), Delay(3600))
    read = "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct skip=100"
    await show(vm, f"{read}; while [ -b /dev/nvme0n1 ]; do sleep 0.1; done")
    # docs: end a_disk_is_pulled_out


# -- all of them -----------------------------------------------------------------------------------------------------------

# What gives a queue or a disk up for good comes last.
VIRTIO: tuple[Callable[[Guest, Faults], Awaitable[None]], ...] = (
    a_read_fails,
    a_flush_fails,
    a_byte_is_wrong,
    a_disk_hangs,
    an_interrupt_is_lost,
    an_answer_comes_twice,
    an_answer_is_anothers,
)
NVME: tuple[Callable[[Guest, Faults], Awaitable[None]], ...] = (
    a_command_is_never_done,
    all_interrupts_are_lost,
    a_namespace_disappears,
    a_controller_has_failed,
    a_disk_is_pulled_out,
)


@contextlib.asynccontextmanager
async def virtio(image: str, faults: Faults, qemu: str) -> AsyncGenerator[Guest]:
    """A guest with a virtio disk, whose first half is an ext4 file system."""
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", image, "16M"], check=True)  # noqa: ASYNC221  before anything runs
    modules = ["virtio_blk", "ext4", "crc32c_generic"]
    with contextlib.closing(faults.wrap(Blk(image))) as disk:
        async with guest(disk, modules=modules, faults=faults, qemu=qemu) as vm:
            yield vm


@contextlib.asynccontextmanager
async def nvme(image: str, faults: Faults, qemu: str) -> AsyncGenerator[Guest]:
    """A guest with an NVMe disk, whose driver waits for two seconds where it waits for 30 and 60 at first."""
    append = "nvme_core.io_timeout=2 nvme_core.admin_timeout=4"
    with contextlib.closing(faults.wrap(Nvme(image))) as disk:
        async with guest(disk, modules=["nvme"], faults=faults, qemu=qemu, append=append) as vm:
            await vm.run("while ! [ -b /dev/nvme0n1 ]; do sleep 0.1; done", check=True)
            yield vm


async def see(
    boot: Callable[[str, Faults, str], AbstractAsyncContextManager[Guest]],
    scripts: Collection[Callable[[Guest, Faults], Awaitable[None]]],
    qemu: str,
) -> AsyncGenerator[tuple[str, str]]:
    """Boot a guest, and run scripts one after the other; the name of each, and what it has shown."""
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "disk.img"
        image.write_bytes(bytes(32 << 20))
        faults = Faults(nonconforming=True)
        async with boot(str(image), faults, qemu) as vm:
            for script in scripts:
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    await script(vm, faults)
                faults.clear()
                yield script.__name__, said.getvalue()


async def main(names: Collection[str], qemu: str, output: str | None) -> None:
    """Boot a guest for each sort of disk that is wanted, and show what was asked for."""
    for boot, scripts in ((virtio, VIRTIO), (nvme, NVME)):
        chosen = [script for script in scripts if not names or script.__name__ in names]
        if chosen:
            async with contextlib.aclosing(see(boot, chosen, qemu)) as all_said:
                async for name, said in all_said:
                    print(f"{name}:\n{said}")
                    if output is not None:
                        (Path(output) / f"{name}.txt").write_text(said, "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What Linux makes of a device that misbehaves.")
    parser.add_argument("names", nargs="*", help="which of them; all if there is none")
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="the program")
    parser.add_argument("--output", help="a directory in which each is written to a file, too")
    options = parser.parse_args()
    asyncio.run(main(options.names, options.qemu, options.output))
