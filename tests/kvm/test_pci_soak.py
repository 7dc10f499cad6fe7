"""Vectors of a PCI device that move between two real CPUs all the time, as Linux moves an interrupt's affinity: none is lost.

Each interrupt's handler counts and rings the device for the next one, so a single one that is lost stands still for ever; and there is
never a second one that it could merge with, so the three books are equal: rings, interrupts, calls of the handlers.
``AIOIRQFD_SOAK=1000000 pytest -s --timeout 0 tests/kvm/test_pci_soak.py`` takes a million.
"""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import asyncio
import os
import queue
import random
from contextlib import ExitStack

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.kvm import LoopCalls, VcpuThread
from aioirqfd.kvm.ioctls import KVM_MP_STATE_RUNNABLE
from aioirqfd.pci import Bar, MsiX, PciBus, PciDevice
from aioirqfd.sinks import KvmSink
from tests.kvm.guest import ENTRY, HANDLER, LAPIC, READY, Guest
from tests.kvm.test_pci_bus import Handler
from tests.pci.test_bus import ADDRESS, COMMAND, DATA, MEMORY

pytestmark = pytest.mark.kvm

VECTORS, FIRST = 4, 0x40
CPUS = 2
EACH = int(os.environ.get("AIOIRQFD_SOAK", "8000")) // VECTORS
MOVES = 4
"""A vector is moved at every so many of its interrupts: half the time while one is on its way, half the time it comes in between."""
BAR0, TABLE = 0xC000_0000, 0xC000_2000
COUNTS = 0x6000
"""Where the handlers count: 0x100 bytes for each CPU, four of them for each vector."""
STACKS = 0x7000
HANDLER_SIZE = 0x40

# Its data segment is its local APIC: it is switched on.
MAIN = (
    b"\x66\xb8\xff\x01\x00\x00"  # mov eax, 0x1ff
    b"\x66\xa3\xf0\x00"  #         mov [0xf0], eax       the spurious interrupt vector register
    b"\xe6" + bytes([READY]) + b"\xfb"  # sti
    b"\xf4"  #               halt: hlt
    b"\xeb\xfd"  #                 jmp halt
)


def handler(vector: int) -> bytes:
    """Counts where FS begins, ends the interrupt, and rings where ES begins."""
    at = (4 * vector).to_bytes(2, "little")
    return (
        b"\x66\x50"  #                      push eax
        b"\x66\x64\xff\x06" + at +  #       inc dword [fs:at]
        b"\x66\x31\xc0"  #                  xor eax, eax
        b"\x66\xa3\xb0\x00"  #              mov [0xb0], eax     the EOI register
        b"\x26\x66\xa3" + at +  #           mov [es:at], eax
        b"\x66\x58\xcf"  #                  pop eax; iret
    )  # fmt: skip


class Device(PciDevice):
    """Interrupts by a vector whenever its doorbell is rung, so many times."""

    bars = (Bar(4096),)
    vectors = VECTORS

    def __init__(self):
        self.bells = [EventFd() for _ in range(VECTORS)]
        self.masked = [EventFd() for _ in range(VECTORS)]
        self.moved = [EventFd(1) for _ in range(VECTORS)]
        self.rings = [0] * VECTORS
        self.moves: queue.SimpleQueue[tuple[int, bool] | None] = queue.SimpleQueue()
        self.done = asyncio.Event()

    async def background(self):
        async with asyncio.TaskGroup() as group:
            for vector, bell in enumerate(self.bells):
                self.doorbell(bell, bar=0, offset=4 * vector, length=4)
                group.create_task(self.serve(vector, bell))
        self.done.set()

    async def serve(self, vector, bell):
        for number in range(EACH):
            if number % MOVES == 0:
                await self.moved[vector].read()  # since the last time
                self.moves.put((vector, number % (2 * MOVES) == 0))
                if number % (2 * MOVES) == 0:
                    await self.masked[vector].read()
            self.interrupt(vector)
            self.rings[vector] += await bell.read()

    def close(self):
        for eventfd in (*self.bells, *self.masked, *self.moved):
            eventfd.close()


class Machine(Guest):
    """A guest with a second CPU, which runs the same."""

    def __init__(self):
        super().__init__(MAIN)
        self.vcpus = []

    def prepare(self):
        for vector in range(VECTORS):
            place = HANDLER + HANDLER_SIZE * vector
            code = handler(vector)
            self.memory[place : place + len(code)] = code
            entry = 4 * (FIRST + vector)
            self.memory[entry : entry + 4] = place.to_bytes(4, "little")

    def start(self, stack):
        self.vcpus = [self.vcpu, stack.enter_context(self.vm.create_vcpu(1))]
        for cpu, vcpu in enumerate(self.vcpus):
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            sregs.ds.base, sregs.es.base, sregs.fs.base = LAPIC, BAR0, COUNTS + 0x100 * cpu
            vcpu.set_sregs(sregs)
            regs = vcpu.get_regs()
            regs.rip, regs.rsp, regs.rflags = ENTRY, STACKS + 0x800 * cpu, 2
            vcpu.set_regs(regs)
            vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)

    def counts(self):
        """By CPU, what its handlers have counted."""
        places = [[COUNTS + 0x100 * cpu + 4 * vector for vector in range(VECTORS)] for cpu in range(CPUS)]
        return [[int.from_bytes(self.memory[at : at + 4], "little") for at in row] for row in places]


class Exits(Handler):
    """What leaves the guest; and how many CPUs are ready."""

    def __init__(self, bus):
        super().__init__(bus)
        self.ready = asyncio.Semaphore(0)

    def port_out(self, port, size, value):
        assert port == READY
        self.loop.call_soon_threadsafe(self.ready.release)


def move(bus, device):
    """Until told to end: have a vector go to another CPU, or the same, as Linux does: masked meanwhile, one word after the other."""
    dice = random.Random(5)
    count = 0
    while (asked := device.moves.get()) is not None:
        vector, tell = asked
        entry = TABLE + 16 * vector
        cpu = dice.randrange(CPUS)
        bus.mmio_write(entry + 12, 4, 1)
        if tell:
            device.masked[vector].signal()
        for at, value in ((0, LAPIC | cpu << 12), (4, 0), (8, FIRST + vector), (12, 0)):
            bus.mmio_write(entry + at, 4, value)
        device.moved[vector].signal()
        count += 1
    return count


async def config(bus, register, value, size):
    await asyncio.to_thread(bus.port_out, ADDRESS, 4, 1 << 31 | 1 << 11 | register & ~3)
    await asyncio.to_thread(bus.port_out, DATA + register % 4, size, value)


@pytest.mark.timeout(60 + VECTORS * EACH / 500)
@pytest.mark.parametrize("offload", [True, False])
async def test_no_interrupt_is_lost_while_its_vector_moves(offload):
    device = Device()
    with Machine() as guest, ExitStack() as stack, KvmSink(guest.vm, offload=offload) as sink, LoopCalls() as calls:
        guest.start(stack)
        async with IrqManager(sink) as irqs, PciBus(irqs, calls, vm=guest.vm) as bus:
            exits = Exits(bus)
            threads = [VcpuThread(vcpu, exits) for vcpu in guest.vcpus]
            async with threads[0], threads[1]:
                for _ in threads:
                    await exits.ready.acquire()
                slot = await bus.plug(device)
                msix = device.function.config.find(MsiX)
                await config(bus, COMMAND, MEMORY, 2)
                await config(bus, msix + 2, 0x8000, 2)
                assert [(one.region, one.start) for one in slot.windows] == [(0, BAR0), (1, TABLE)]
                moving = asyncio.create_task(asyncio.to_thread(move, bus, device))
                try:
                    await device.done.wait()
                finally:
                    device.moves.put(None)
                    flips = await moving
            await bus.unplug(slot.number)
        counts = guest.counts()
    device.close()
    print(f"calls of the handlers {counts}, moved {flips} times")
    assert device.rings == [EACH] * VECTORS
    assert [sum(of_one) for of_one in zip(*counts, strict=True)] == [EACH] * VECTORS
    assert min(map(min, counts)) > 0
    assert flips == VECTORS * -(-EACH // MOVES)
