"""vfio-user with QEMU as the client, and no guest: qtest programs MSI-X, whose messages land in shared RAM, and looks at the pin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest

from aioirqfd.pci import Bar, MsiX, PciDevice, Register
from aioirqfd.testing import RecordingTracer
from aioirqfd.vfio_user import Server
from tests.qemu import program
from tests.qemu.harness import Qemu
from tests.qemu.pci import ENABLE, FUNCTION_MASK, Pci

pytestmark = [pytest.mark.qemu, pytest.mark.asyncio(loop_factories=["asyncio"])]

VECTORS = 8
WORDS = 0x10000
"""Where in RAM the messages land: a word for each vector."""


@pytest.fixture(autouse=True)
def _new_enough():
    program.need((10, 1), "vfio-user-pci")


class Plain(PciDevice):
    """A register, a few vectors, and a pin."""

    vendor_id, device_id = 0x1234, 0x5678
    bars = (Bar(4096),)
    capabilities = (MsiX(VECTORS, bar=0, table=0x400, pba=0x800),)
    intx = True
    scratch = Register(0)


class Machine:
    """The device in QEMU, with the test as its driver."""

    def __init__(self, qemu, device, server, pci):
        self.qemu, self.device, self.server, self.pci = qemu, device, server, pci

    def taken(self):
        """The vectors whose messages have come since the last look."""
        words = self.qemu.ram[WORDS : WORDS + 4 * VECTORS]
        found = {vector for vector in range(VECTORS) if any(words[4 * vector : 4 * vector + 4])}
        for vector in found:
            place = WORDS + 4 * vector
            assert int.from_bytes(self.qemu.ram[place : place + 4], "little") == 0x100 + vector
            self.qemu.ram[place : place + 4] = bytes(4)
        return found

    async def expect(self, expected):
        """These messages come, each once, and no others."""
        await self.server.function.interrupts.flush()
        seen = set()

        def all_there():
            new = self.taken()
            assert not new & seen, f"{new & seen} twice"
            seen.update(new)
            return seen >= expected

        await self.qemu.until(all_there)
        # Turns of QEMU's loop in which it would have seen any other.
        for _ in range(2):
            await self.qemu.qtest.command("readl 0")
        assert seen | self.taken() == expected


@contextlib.asynccontextmanager
async def machine():
    device = Plain()
    qemu = Qemu()
    path = qemu.directory / "device"
    async with Server(device, path, tracer=RecordingTracer()) as server:
        qemu.add_arguments(
            "-device", json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}})
        )
        async with qemu:
            pci = await Pci.find(qemu.qtest, device.vendor_id, device.device_id)
            await pci.enable()
            yield Machine(qemu, device, server, pci)


async def test_enabled_masked_and_unmasked_by_a_driver_of_a_few_lines():
    async with machine() as there:
        device, interrupts = there.device, there.server.function.interrupts
        device.interrupt(3)  # before the driver is there
        msix = await there.pci.msix()
        assert (msix.vectors, await msix.pending()) == (VECTORS, 1 << 3)
        for vector in range(3):
            await msix.point(vector, WORDS + 4 * vector, 0x100 + vector)
        await there.expect(set())
        device.interrupt(0)
        device.interrupt(2)
        await there.expect({0, 2})
        await msix.point(3, WORDS + 12, 0x103)
        await there.expect({3})
        assert await msix.pending() == 0
        # A vector that is masked is QEMU's to hold back: the server has told it, and the pending bits are the server's.
        await msix.mask(1)
        device.interrupt(1)
        device.interrupt(1)
        await there.expect(set())
        await msix.unmask(1)
        await there.expect({1})
        await there.pci.write(msix.capability + 2, ENABLE | FUNCTION_MASK, 2)
        device.interrupt(0)
        await there.expect(set())
        await there.pci.write(msix.capability + 2, ENABLE, 2)
        await there.expect({0})
        # Switched off, nobody is told, and it is the server that holds back.
        await there.pci.write(msix.capability + 2, 0, 2)
        for vector in (0, 1, 1, 7):
            device.interrupt(vector)
        await there.expect(set())
        assert await msix.pending() == 0b10000011
        await there.pci.write(msix.capability + 2, ENABLE, 2)
        await there.expect({0, 1})
        assert await msix.pending() == 1 << 7
        assert interrupts.pending_bits() == b"\x80" + bytes(7)


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_against_a_model(seed):
    """Whatever the driver does: each interrupt comes when it may, and once for all that were given while it might not.

    Those that QEMU has taken from a vector's eventfd, and holds back because the driver has masked it, QEMU forgets when the driver
    switches MSI-X off. What is the server's to hold back is never forgotten.
    """
    chance = random.Random(seed)
    async with machine() as there:
        msix = await there.pci.msix()
        for vector in range(VECTORS):
            await msix.point(vector, WORDS + 4 * vector, 0x100 + vector)
        enabled, function_masked, masked, waiting = True, False, set(), set()
        for _ in range(1500):
            what = chance.choices(("interrupt", "mask", "unmask", "enable", "function"), (8, 3, 4, 1, 2))[0]
            vector = chance.randrange(VECTORS)
            if what == "interrupt":
                for one in chance.sample(range(VECTORS), k=chance.choice([1, 1, 3])):
                    there.device.interrupt(one)
                    waiting.add(one)
            elif what == "mask":
                await msix.mask(vector)
                masked.add(vector)
            elif what == "unmask":
                await msix.unmask(vector)
                masked.discard(vector)
            elif what == "enable":
                if enabled:
                    waiting -= {one for one in waiting if there.server.function.interrupts.bound(one)}
                enabled = not enabled
            else:
                function_masked = not function_masked
            if what in {"enable", "function"}:
                control = enabled * ENABLE | function_masked * FUNCTION_MASK
                await there.pci.write(msix.capability + 2, control, 2)
            may = waiting - masked if enabled and not function_masked else set()
            await there.expect(may)
            waiting -= may
            if not enabled:
                bits = int.from_bytes(there.server.function.interrupts.pending_bits(), "little")
                assert bits == sum(1 << one for one in waiting)


async def test_the_pin_is_a_level_and_its_end_is_told_by_the_next_access():
    """Without KVM, QEMU takes an access to the device for the end of its interrupt: the pin rises again if it is wanted."""
    async with machine() as there:
        device, qemu, pci = there.device, there.qemu, there.pci
        await qemu.qtest.command("irq_intercept_in ioapic")
        device.pin = True

        def changes():
            return [raised for line, raised in qemu.irqs if line >= 16]

        async def said(expected):
            for _ in range(3000):
                await qemu.qtest.command("readl 0")
                if len(changes()) >= len(expected):
                    break
                await asyncio.sleep(0.01)
            assert changes() == expected

        await said([True])
        for ends in (1, 2):
            await qemu.qtest.command(f"readl {pci.bars[0]:#x}")
            await said([True] + [False, True] * ends)
        device.pin = False
        await qemu.qtest.command(f"readl {pci.bars[0]:#x}")
        await said([True] + [False, True] * 2 + [False])
