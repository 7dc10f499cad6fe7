"""Inject into a KVM guest, and let the kernel do the work where it can. Needs /dev/kvm."""

from __future__ import annotations

import asyncio
import sys

from aioirqfd import EventFd, IrqchipPin, IrqManager
from aioirqfd.kvm import Kvm, Vm, usable
from aioirqfd.kvm.ioctls import KVM_IRQCHIP_PIC_MASTER
from aioirqfd.sinks import KvmSink


def requested(vm: Vm) -> str:
    """The requests that wait in the guest's first PIC, a bit for each pin."""
    return f"{vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic.irr:#04x}"


# docs: begin example
async def main() -> None:
    """One irqfd that the kernel watches by itself, and the same one watched here."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        with KvmSink(vm) as sink, EventFd() as kick:
            async with IrqManager(sink, routing={3: IrqchipPin("pic", 3), 4: IrqchipPin("pic", 4)}) as irqs:
                irqfd = irqs.assign(kick, gsi=3)
                print("offloaded:", irqfd.offloaded)
                kick.signal()
                await irqs.deassign(irqfd)  # a barrier, in the kernel too
                print("requested:", requested(vm))

                irqfd = irqs.assign(kick, gsi=4, masked=True)
                print("offloaded while masked:", irqfd.offloaded)
                kick.signal()
                irqfd.unmask()
                print("offloaded again:", irqfd.offloaded)
                await irqs.deassign(irqfd)
                print("requested:", requested(vm))


# docs: end example
if (reason := usable()) is not None:
    sys.exit(f"howto_kvm: {reason}")
asyncio.run(main())
