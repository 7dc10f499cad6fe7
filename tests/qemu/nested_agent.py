"""What runs inside the guest that has KVM: the kernel's part of the conformance table, and traffic through a vCPU.

Each result is a line of JSON on the console, after the word RESULT. ``python -m tests.qemu.nested_agent`` does the same on any
machine with KVM.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import aioirqfd
from aioirqfd import EventFd, IrqchipPin, IrqManager
from aioirqfd.irqchip import IoApic
from aioirqfd.kvm import usable
from aioirqfd.kvm.ioctls import KVM_EXIT_INTR, KVM_IOEVENTFD_FLAG_PIO
from aioirqfd.sinks import KvmSink
from tests.kvm.guest import AFTER_EOI, GSI, HALT_WITH_PIC, IN_HANDLER, READY, Guest, SplitGuest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROUNDS = 300
PIN = IrqchipPin("pic", GSI)
MODES = {"offload": {}, "fast": {"offload": False}, "queue": {"offload": False, "fast": False}}
LEVEL_TRIGGERED = b"\xb0\x20\xba\xd0\x04\xee"  # mov al, 1 << 5; mov dx, 0x4d0; out dx, al    ELCR: line 5
SECONDS = 20
"""That a row may take before its stacks are printed and everything ends."""


def say(name: str, value: object) -> None:
    print(f"RESULT {json.dumps([name, value])}", flush=True)


@contextlib.asynccontextmanager
async def machine(mode: str, code: bytes = HALT_WITH_PIC) -> AsyncIterator[tuple[Guest, IrqManager, EventFd]]:
    """A running guest, its manager, and the eventfd that its handler rings at its end."""
    with Guest(code) as guest, EventFd() as handled, EventFd() as begun, EventFd() as ready:
        for port, eventfd in ((READY, ready), (IN_HANDLER, begun), (AFTER_EOI, handled)):
            guest.vm.ioeventfd(port, 1, eventfd, flags=KVM_IOEVENTFD_FLAG_PIO)
        reasons: list[int] = []
        # Nothing makes it exit: its halts and its port writes are the kernel's business.
        thread = threading.Thread(target=lambda: reasons.append(guest.vcpu.run()))
        thread.start()
        try:
            await ready.read()
            with KvmSink(guest.vm, **MODES[mode]) as sink:
                async with IrqManager(sink, routing={GSI: PIN}) as irqs:
                    yield guest, irqs, handled
        finally:
            guest.vcpu.kick()
            thread.join()
        assert reasons == [KVM_EXIT_INTR], reasons


async def edges(mode: str) -> object:
    """How often the guest's handler ran for each of so many signals, summed; and whether the sink did it by itself."""
    async with machine(mode) as (_guest, irqs, handled):
        with EventFd() as trigger:
            irqfd = irqs.assign(trigger, gsi=GSI)
            offloaded = irqfd.offloaded
            total = 0
            for _ in range(ROUNDS):
                trigger.signal()
                total += await handled.read()
            await irqs.deassign(irqfd)
        return [total, offloaded]


async def levels(mode: str) -> object:
    """The same with a level-triggered line: handler runs, resample events, and what is left over."""
    async with machine(mode, LEVEL_TRIGGERED + HALT_WITH_PIC) as (_guest, irqs, handled):
        with EventFd() as trigger, EventFd() as resample:
            irqfd = irqs.assign(trigger, gsi=GSI, resamplefd=resample)
            runs = resamples = 0
            for _ in range(ROUNDS):
                trigger.signal()
                resamples += await resample.read()
                runs += await handled.read()
            await irqs.deassign(irqfd)
            left = 0
            for eventfd in (resample, handled):
                with contextlib.suppress(BlockingIOError):
                    left += eventfd.read_nowait()
        return [runs, resamples, left]


async def bursts(mode: str) -> object:
    """Many signals at once are some interrupts, the last of them after the last signal: 1 <= runs <= signals."""
    async with machine(mode) as (guest, irqs, handled):
        with EventFd() as trigger:
            irqs.assign(trigger, gsi=GSI)
            for _ in range(ROUNDS):
                os.eventfd_write(trigger.fileno(), 1)
            await irqs.flush()
            runs = await handled.read()
            # Whatever is still latched comes before the next one's end.
            while guest.pic().irr or guest.pic().isr:
                await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                runs += handled.read_nowait()
        return 1 <= runs <= ROUNDS


async def barrier(mode: str) -> object:
    """After deassign nothing of the irqfd reaches the guest: what it is signalled then stays in the eventfd."""
    async with machine(mode) as (_guest, irqs, handled):
        with EventFd() as gone, EventFd() as other:
            irqfd = irqs.assign(gone, gsi=GSI)
            irqs.assign(other, gsi=GSI)
            runs = left = 0
            for _ in range(20):
                gone.signal()
                await irqs.deassign(irqfd)
                runs += await handled.read()
                gone.signal(5)
                left = gone.read_nowait()
                other.signal()
                runs += await handled.read()
                irqfd = irqs.assign(gone, gsi=GSI)
        return [runs, left]


async def masks(mode: str) -> object:
    """While masked nothing comes; at the unmask one interrupt for all that was signalled."""
    async with machine(mode) as (_guest, irqs, handled):
        with EventFd() as trigger, EventFd() as other:
            irqfd = irqs.assign(trigger, gsi=GSI)
            irqs.assign(other, gsi=GSI)
            runs: list[int] = []
            for _ in range(20):
                irqfd.mask()
                trigger.signal(3)
                other.signal()
                runs.append(await handled.read())
                irqfd.unmask()
                runs.append(await handled.read())
        return runs


async def busy(_mode: str) -> object:
    """One eventfd is bound once."""
    with Guest() as guest, EventFd() as trigger:
        guest.vm.irqfd(trigger, GSI)
        try:
            guest.vm.irqfd(trigger, GSI + 1)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return None


TRAFFIC = {"edges": edges, "levels": levels, "bursts": bursts, "barrier": barrier, "masks": masks, "busy": busy}


def traffic() -> None:
    for mode in MODES:
        for name, scenario in TRAFFIC.items():
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            say(f"{name}-{mode}", asyncio.run(scenario(mode)))


async def split(level: bool) -> object:
    """Ends of interrupt that the kernel leaves to us where it has the local APIC alone; and how often a resamplefd was signalled."""
    with SplitGuest() as guest, EventFd() as trigger, EventFd() as resample:
        guest.next_port()
        ioapic = IoApic(KvmSink(guest.vm))
        guest.on_eoi = ioapic.eoi
        ioapic.mmio_write(0x00, 0x10 + 2 * GSI)
        ioapic.mmio_write(0x10, guest.vector | (1 << 15 if level else 0))
        async with IrqManager(ioapic) as irqs:
            irqs.assign(trigger, gsi=GSI, resamplefd=resample if level else None)
            resamples = 0
            for _ in range(3):
                trigger.signal()
                await irqs.flush()
                assert [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]
                if level:
                    resamples += resample.read_nowait()
        return [len(guest.ended), resamples]


def guide() -> None:
    """What the guide to KVM says that this machine's kernel does."""
    program = Path(__file__).parents[2] / "examples" / "howto_kvm.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False, timeout=SECONDS)
    say("howto_kvm", [done.stdout, done.stderr])
    for name, level in (("split-edge", False), ("split-level", True)):
        say(name, asyncio.run(split(level)))


def rows() -> None:
    from tests.conformance.row import ROWS
    from tests.conformance.run import run

    for name, row in ROWS.items():
        if row.scenario is not None:
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                say(name, run(row, "kernel").result)
            except Exception as error:
                say(name, f"raised {error!r}")


def main() -> None:
    print(f"python {platform.python_version()} {aioirqfd.IMPLEMENTATION} kvm {usable() or 'usable'}", flush=True)
    what = sys.argv[1:] or ["traffic", "guide", "rows"]
    if "traffic" in what:
        traffic()
    if "guide" in what:
        guide()
    if "rows" in what:
        rows()
    faulthandler.cancel_dump_traceback_later()
    print("AGENT DONE", flush=True)


if __name__ == "__main__":
    main()
