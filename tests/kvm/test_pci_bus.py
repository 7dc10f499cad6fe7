"""A PCI bus under a real vCPU: the kernel rings the doorbells where the guest has put the BAR, and nobody else is asked."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from aioirqfd import EventFd, IrqManager, WouldBlock
from aioirqfd.kvm import LoopCalls, VcpuThread
from aioirqfd.pci import Bar, PciBus, PciDevice, Register
from aioirqfd.sinks import KvmSink
from aioirqfd.testing import RecordingTracer
from tests.kvm.guest import Guest

pytestmark = pytest.mark.kvm

BELL, PORT, DONE = 0x10, 0x20, 0x80
COMMAND, BAR0 = 0x04, 0x10


def out(port, value):
    """An ``out`` of two bytes to a port."""
    return b"\xba" + port.to_bytes(2, "little") + b"\xb8" + value.to_bytes(2, "little") + b"\xef"


def config(register, value, size, slot=1):
    """A write to the configuration space of a slot."""
    address = b"\x66\xb8" + (1 << 31 | slot << 11 | register).to_bytes(4, "little")  # mov eax, address
    select = b"\xba\xf8\x0c" + address + b"\x66\xef"  # mov dx, 0xcf8; out dx, eax
    data = b"\xba\xfc\x0c" + b"\x66\xb8" + value.to_bytes(4, "little")  # mov dx, 0xcfc; mov eax, value
    return select + data + (b"\x66\xef" if size == 4 else b"\xef")


class Bell(PciDevice):
    """A doorbell and a register in port space."""

    bars = (Bar(256, io=True),)
    port = Register(PORT, 2)

    def __init__(self):
        self.eventfd = EventFd()

    def put(self, **how):
        return self.doorbell(self.eventfd, bar=0, offset=BELL, **how)


class Handler:
    """The bus, and what leaves the guest for it."""

    def __init__(self, bus):
        self.bus = bus
        self.writes: list[tuple[int, int]] = []
        self.done = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def port_out(self, port, size, value):
        self.writes.append((port, value))
        if port == DONE:
            self.loop.call_soon_threadsafe(self.done.set)
        else:
            self.bus.port_out(port, size, value)

    def port_in(self, port, size):
        return self.bus.port_in(port, size)

    def mmio_read(self, address, size):
        return self.bus.mmio_read(address, size)

    def mmio_write(self, address, size, value):
        self.bus.mmio_write(address, size, value)


async def run(code, *, kernel=True, prepare=Bell.put, others=()):
    """Run some code to its end; the device, and which writes to its ports left the guest."""
    bell = Bell()
    tracer = RecordingTracer()
    stop = out(DONE, 0) + b"\xf4\xeb\xfd"  # and halt for ever
    with Guest(code + stop) as guest, KvmSink(guest.vm) as sink, LoopCalls() as calls:
        async with (
            IrqManager(sink) as irqs,
            PciBus(irqs, calls, vm=guest.vm if kernel else None, tracer=tracer) as bus,
        ):
            await bus.plug(bell)
            prepare(bell)
            for other in others:
                await bus.plug(other)
                other.put()
            handler = Handler(bus)
            async with VcpuThread(guest.vcpu, handler):
                await handler.done.wait()
            rings = 0
            with contextlib.suppress(WouldBlock):
                rings = bell.eventfd.read_nowait()
    for device in (bell, *others):
        device.eventfd.close()
    return rings, [pair for pair in handler.writes if pair[0] >= 0x1000], bell, tracer


ENABLE = config(COMMAND, 1, 2)
AT = 0x1000


async def test_the_kernel_rings():
    rings, left, bell, _ = await run(ENABLE + 3 * out(AT + BELL, 7) + out(AT + PORT, 9))
    assert (rings, left, bell.port) == (3, [(AT + PORT, 9)], 9)


async def test_without_the_kernel_this_process_does():
    rings, left, _, _ = await run(ENABLE + 3 * out(AT + BELL, 7), kernel=False)
    assert (rings, left) == (3, 3 * [(AT + BELL, 7)])


async def test_nobody_does_before_the_guest_enables_it():
    rings, left, _, _ = await run(out(AT + BELL, 7))
    assert (rings, left) == (0, [(AT + BELL, 7)])


async def test_a_doorbell_goes_where_its_bar_goes():
    code = ENABLE + config(BAR0, 0x2000, 4) + out(0x2000 + BELL, 7) + out(AT + BELL, 7) + config(COMMAND, 0, 2)
    rings, left, _, _ = await run(code + out(0x2000 + BELL, 7))
    assert (rings, left) == (1, [(AT + BELL, 7), (0x2000 + BELL, 7)])


async def test_only_what_matches():
    code = ENABLE + out(AT + BELL, 5) + out(AT + BELL, 6)
    rings, left, _, _ = await run(code, prepare=lambda bell: bell.put(length=2, datamatch=5))
    assert (rings, left) == (1, [(AT + BELL, 6)])


async def test_one_that_keeps_values_is_rung_here():
    kept = []
    rings, left, _, _ = await run(
        ENABLE + out(AT + BELL, 5) + out(AT + BELL, 6), prepare=lambda bell: kept.append(bell.put(values=8))
    )
    assert (rings, left, kept[0].take_values()) == (2, [(AT + BELL, 5), (AT + BELL, 6)], [5, 6])


async def test_one_that_is_taken_off_is_the_kernels_no_more():
    rings, left, _, _ = await run(ENABLE + out(AT + BELL, 5), prepare=lambda bell: bell.put().close())
    assert (rings, left) == (0, [(AT + BELL, 5)])


async def test_what_the_kernel_has_no_place_for_is_traced_and_rung_here():
    other = Bell()
    # The guest puts the second one's BAR on top of the first one's, and takes the first one's away.
    on_top = config(BAR0, AT, 4, slot=2) + config(COMMAND, 1, 2, slot=2)
    rings, left, _, tracer = await run(ENABLE + on_top + out(AT + BELL, 5) + config(COMMAND, 0, 2), others=[other])
    assert (rings, left) == (1, [])
    assert tracer.of("doorbell_by_exit") == [
        {"address": AT + BELL, "reason": "File exists", "device": "Bell"},
    ]
