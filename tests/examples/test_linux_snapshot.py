"""A machine in a file: what does not fit is refused, and what was saved is there again."""

from __future__ import annotations

import contextlib
import json

import pytest

from aioirqfd.errors import SnapshotError
from aioirqfd.pci import Bar, PciDevice, Register
from examples.vmm.linux import snapshot
from examples.vmm.linux.errors import MachineError
from examples.vmm.linux.machine import Machine
from examples.vmm.linux.power import Power
from examples.vmm.linux.uart import Uart

pytestmark = pytest.mark.kvm

MIB = 1 << 20
COMMAND = 0x04


class Device(PciDevice):
    bars, vectors = (Bar(4096),), 1
    number = Register(0)


class Unsaved(PciDevice):
    def __init__(self):
        self.something = 1


class Nothing:
    async def write(self, data):
        pass


@contextlib.asynccontextmanager
async def machine(*devices, memory=2 * MIB, cpus=1, shared=False, power=True):
    async with Machine(memory=memory, cpus=cpus, shared=shared) as machine:
        with contextlib.closing(Uart(Nothing())) as uart:
            machine.ports.add(uart)
            if power:
                machine.ports.add(Power(machine.end))
            machine.irqs.assign(uart.trigger, gsi=4)
            for device in devices:
                await machine.pci.plug(device)
            yield machine


@pytest.fixture(params=[False, True], ids=["private", "shared"])
async def saved(tmp_path, request):
    path, device = tmp_path / "machine", Device()
    async with machine(device, shared=request.param) as here:
        here.ram.write(0x3000, b"in the middle")
        here.ram.write(2 * MIB - 3, b"end")
        device.number = 77
        device.interrupt(0)
        here.ports.port_out(0x3FF, 1, 0x5A)  # the scratch register
        here.ports.port_out(0x602, 2, 0x120)
        here.pci.port_out(0xCF8, 4, 1 << 31 | 1 << 11)
        regs = here.vcpus[0].get_regs()
        regs.rbx = 0x1234
        here.vcpus[0].set_regs(regs)
        await here.pause()
        await snapshot.save(here, path)
    return path


async def test_everything_is_there_again(saved):
    device = Device()
    async with machine(device) as there:
        await snapshot.restore(there, saved)
        assert there.ram.read(0x3000, 13) + there.ram.read(2 * MIB - 3, 3) == b"in the middleend"
        assert there.vcpus[0].get_regs().rbx == 0x1234
        assert (there.ports.port_in(0x3FF, 1), there.ports.port_in(0x602, 2)) == (0x5A, 0x120)
        assert there.pci.port_in(0xCF8, 4) == 1 << 31 | 1 << 11
        assert (device.number, there.pci.slots[1].function.interrupts.pending(0)) == (77, True)
        there.resume()
        assert not there.irqs.paused


async def test_the_memory_that_nobody_wrote_is_not_in_the_file(saved):
    assert saved.stat().st_size < MIB


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"memory": MIB}, "bytes of memory: 2097152, and not 1048576"),
        ({"cpus": 2}, "CPUs: 1, and not 2"),
        ({"power": False}, "devices on ports: 2, and not 1"),
    ],
)
async def test_another_machine_is_refused(saved, how, what):
    async with machine(Device(), **how) as there:
        with pytest.raises(MachineError, match=what):
            await snapshot.restore(there, saved)


async def test_other_slots_are_refused(saved):
    async with machine() as there:
        with pytest.raises(MachineError, match=r"slots in use: \['0', '1'\], and not \['0'\]"):
            await snapshot.restore(there, saved)


async def test_a_device_that_cannot_be_saved_is_named(tmp_path):
    async with machine(Unsaved()) as here:
        await here.pause()
        with pytest.raises(SnapshotError, match="something"):
            await snapshot.save(here, tmp_path / "machine")
        here.resume()


async def test_no_saved_machine(tmp_path, saved):
    path = tmp_path / "other"
    async with machine(Device()) as there:
        for text in (b"", b"\x7fELF", b"[1]\n", b"{}\n"):
            path.write_bytes(text)
            with pytest.raises(MachineError, match="other is no saved machine"):
                await snapshot.restore(there, path)
        state = json.loads(saved.read_bytes().splitlines()[0])
        path.write_bytes(json.dumps({**state, "version": 2}).encode() + b"\n")
        with pytest.raises(MachineError, match="version 2; this reads version 1"):
            await snapshot.restore(there, path)
        path.write_bytes(saved.read_bytes()[:-1])
        with pytest.raises(MachineError, match="is too short"):
            await snapshot.restore(there, path)
