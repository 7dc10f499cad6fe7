"""Run a guest of a few bytes: its memory, a vCPU in a thread that asks the loop, and a snapshot that goes on elsewhere. Needs /dev/kvm."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys

from aioirqfd.kvm import GuestRam, Kvm, LoopCalls, Vcpu, VcpuState, VcpuThread, Vm, VmState, usable

ENTRY = 0x1000
# again: inc cx; mov ax, cx; out 0x10, ax; jmp again
COUNTS_FOR_EVER = b"\x41\x89\xc8\xe7\x10\xeb\xf9"


# docs: begin handler
class Console:
    """What the guest reaches by its ports. The loop's own; the handler is called in the vCPU's thread."""

    def __init__(self, calls: LoopCalls, until: int) -> None:
        self._calls = calls
        self._until = until
        self.numbers: list[int] = []
        self.enough = asyncio.Event()

    def port_out(self, port: int, size: int, value: int) -> None:  # in the vCPU's thread
        self._calls.call(self._heard, value)

    def _heard(self, value: int) -> None:  # on the loop
        self.numbers.append(value)
        if len(self.numbers) >= self._until:
            self.enough.set()

    def port_in(self, port: int, size: int) -> int:
        return 0xFF

    def mmio_read(self, address: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def mmio_write(self, address: int, size: int, value: int) -> None:
        pass


# docs: end handler


def make(vm: Vm, ram: GuestRam) -> Vcpu:
    """A machine with an irqchip, memory, and one vCPU."""
    vm.create_irqchip()
    ram.attach(vm)
    return vm.create_vcpu()


# docs: begin run
async def run(vcpu: Vcpu, until: int) -> list[int]:
    """Run the guest until it has written so many numbers; then it is out of the guest, and all its accesses are completed."""
    with LoopCalls() as calls:
        console = Console(calls, until)
        async with VcpuThread(vcpu, console) as thread:
            await console.enough.wait()
            await thread.pause()
            return console.numbers


# docs: end run


# docs: begin save
async def main() -> None:
    """The guest counts in one VM, and goes on in another."""
    with Kvm() as kvm:
        with kvm.create_vm() as vm, GuestRam(1 << 20) as ram, make(vm, ram) as vcpu:
            ram.write(ENTRY, COUNTS_FOR_EVER)
            sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
            sregs.cs.base = sregs.cs.selector = 0
            regs.rip = ENTRY
            vcpu.set_sregs(sregs)
            vcpu.set_regs(regs)
            numbers = await run(vcpu, until=1000)
            print("from", numbers[0], "in steps of", {b - a for a, b in itertools.pairwise(numbers)})
            text = json.dumps({"vcpu": vcpu.save().to_dict(), "vm": vm.save().to_dict()})
            image = bytes(ram.view)

        with kvm.create_vm() as vm, GuestRam(1 << 20) as ram, make(vm, ram) as vcpu:
            states = json.loads(text)
            ram.view[:] = image
            vcpu.restore(VcpuState.from_dict(states["vcpu"]))
            vm.restore(VmState.from_dict(states["vm"]))
            print("the next number:", (await run(vcpu, until=1))[0] == numbers[-1] + 1)


# docs: end save
if (reason := usable()) is not None:
    sys.exit(f"howto_vmm: {reason}")
asyncio.run(main())
