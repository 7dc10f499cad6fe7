"""A function in a slot is saved with its table and the manager that it injects by, and goes on in another machine."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import TYPE_CHECKING

from aioirqfd import IrqchipPin, IrqManager
from aioirqfd.kvm import GuestRam, LoopCalls
from aioirqfd.pci import Bar, PciBus, PciDevice, PciFunctionState, Register
from aioirqfd.pci.capability import MsiX
from aioirqfd.pci.config import COMMAND, MEMORY_SPACE
from aioirqfd.pci.function import CONFIG_REGION
from aioirqfd.sinks import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioirqfd.irqfd.msix import MsixTable
    from aioirqfd.pci import PciFunction, PciSlot

ROUTES = {gsi: IrqchipPin("ioapic", gsi) for gsi in range(24)}
VECTORS, PIN_GSI, ADDRESS = 4, 17, 0xFEE0_0000
MASKED, OPEN = 1, 0


class Device(PciDevice):
    bars, vectors, intx = (Bar(4096),), VECTORS, True
    number = Register(0)


class Machine:
    def __init__(self, irqs: IrqManager, sink: RecordingSink, bus: PciBus, slot: PciSlot[Device]) -> None:
        self.irqs, self.sink, self.bus, self.slot = irqs, sink, bus, slot
        self.device = slot.device

    @property
    def function(self) -> PciFunction[Device]:
        return self.slot.function

    @property
    def table(self) -> MsixTable:
        assert self.slot.table is not None
        return self.slot.table

    async def set_up(self, *controls: int) -> None:
        """What a driver does, by vector with its mask bit."""
        await self.function.write(CONFIG_REGION, COMMAND, struct.pack("<H", MEMORY_SPACE))
        place = self.function.config.find(MsiX)
        msix = self.function.msix
        assert msix is not None
        for vector, control in enumerate(controls):
            entry = struct.pack("<QII", ADDRESS, 0x40 + vector, control)
            for at in (0, 8):
                await self.function.write(msix.bar, msix.table + 16 * vector + at, entry[at : at + 8])
        await self.function.write(CONFIG_REGION, place + 2, struct.pack("<H", 0x8000))

    async def injected(self) -> list[int]:
        """What came since the last look: messages by their data, the pin by its number."""
        await self.function.interrupts.flush()
        await self.irqs.flush()
        found = [one.route for one in self.sink.interrupts]
        self.sink.interrupts.clear()
        return sorted(route.pin if isinstance(route, IrqchipPin) else route.data for route in found)

    async def pause(self) -> None:
        await self.function.pause()
        await self.irqs.pause()

    def text(self) -> str:
        return json.dumps(
            {
                "function": self.function.save().to_dict(),
                "table": self.table.snapshot(),
                "irqs": self.irqs.snapshot(),
            }
        )

    async def restore(self, text: str) -> None:
        state = json.loads(text)
        await self.function.restore(PciFunctionState.from_dict(state["function"]))
        self.table.restore(state["table"])
        self.irqs.restore(state["irqs"])

    def resume(self) -> None:
        self.irqs.resume()
        self.function.resume()


@contextlib.asynccontextmanager
async def machine() -> AsyncIterator[Machine]:
    sink = RecordingSink()
    with GuestRam(1 << 20) as ram, LoopCalls() as calls:
        async with IrqManager(sink, routing=ROUTES) as irqs, PciBus(irqs, calls, ram=ram) as bus:
            yield Machine(irqs, sink, bus, await bus.plug(Device()))


async def test_each_interrupt_comes_once_wherever_it_was():
    async with machine() as here, machine() as there:
        await here.set_up(OPEN, MASKED, OPEN)  # vector 3 has no message yet
        here.device.interrupt(0)
        assert await here.injected() == [0x40]
        for vector in (1, 3):
            here.device.interrupt(vector)
        assert await here.injected() == []
        await here.pause()
        here.device.interrupt(2)
        here.device.number = 7
        text = here.text()
        assert json.loads(text)["function"]["pending"] == []  # they are with the table
        await there.pause()
        await there.restore(text)
        assert there.function.config.read(0, 256) == here.function.config.read(0, 256)
        assert await there.injected() == []
        assert not there.slot.windows
        there.resume()
        assert there.slot.windows == here.slot.windows != ()
        assert await there.injected() == [0x42]
        assert there.device.number == 7
        assert there.function.interrupts.pending_bits()[0] == 0b1010
        await there.set_up(OPEN, OPEN, OPEN, OPEN)
        assert await there.injected() == [0x41, 0x43]
        there.device.interrupt(0)
        assert await there.injected() == [0x40]


async def test_the_one_that_is_left_may_go_on_instead():
    async with machine() as here:
        await here.set_up(OPEN, MASKED)
        here.device.interrupt(1)
        await here.pause()
        here.device.interrupt(0)
        here.text()
        here.resume()
        assert await here.injected() == [0x40]
        here.table.unmask(1)
        assert await here.injected() == [0x41]


async def test_the_pin_s_line_stays_up_until_the_guest_ends_it():
    async with machine() as here, machine() as there:
        here.device.pin = True
        assert await here.injected() == [PIN_GSI]
        await here.pause()
        text = here.text()
        await there.pause()
        await there.restore(text)
        there.resume()
        assert set(await there.injected()) <= {PIN_GSI}  # told anew, of a line that is up
        there.irqs.ack(PIN_GSI)
        assert PIN_GSI in await there.injected()  # the device wants it yet
        there.device.pin = False
        there.irqs.ack(PIN_GSI)
        await there.injected()
        there.irqs.ack(PIN_GSI)
        assert await there.injected() == []
