"""What the kernel's own interrupt controllers hold against a pin: read from them, for a person who asks why nothing comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioirqfd.kvm.ioctls import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE

if TYPE_CHECKING:
    from aioirqfd.irqfd.interrupt import IrqchipPin
    from aioirqfd.kvm import Vm
    from aioirqfd.kvm.structures import KvmPicState

_MASKED: Final = 1 << 16
_REMOTE_IRR: Final = 1 << 14
_LEVEL: Final = 1 << 15
_CASCADE: Final = 1 << 2


def inspect(vm: Vm) -> dict[str, object]:
    """Every pin of the kernel's chips, as it stands (``KVM_GET_IRQCHIP``)."""
    ioapic = vm.get_irqchip(KVM_IRQCHIP_IOAPIC).ioapic
    pics = [vm.get_irqchip(chip).pic for chip in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE)]
    return {
        "pic": {str(pin): _pic_pin(pics[pin // 8], pin % 8) for pin in range(16)},
        "ioapic": {
            str(pin): {
                "vector": entry & 0xFF,
                "masked": bool(entry & _MASKED),
                "requested": bool(ioapic.irr >> pin & 1),
                "in_service": bool(entry & _REMOTE_IRR),
                "level": bool(entry & _LEVEL),
            }
            for pin, entry in enumerate(ioapic.redirtbl)
        },
    }


def _pic_pin(chip: KvmPicState, line: int) -> dict[str, object]:
    return {
        "vector": chip.irq_base + line,
        "masked": bool(chip.imr >> line & 1),
        "requested": bool(chip.irr >> line & 1),
        "in_service": bool(chip.isr >> line & 1),
        "level": bool(chip.elcr >> line & 1),
    }


def obstacle(vm: Vm, route: IrqchipPin) -> str | None:
    """Whether the pin is masked, or waits for an end of interrupt (``KVM_GET_IRQCHIP``)."""
    if route.chip == "ioapic":
        entry = vm.get_irqchip(KVM_IRQCHIP_IOAPIC).ioapic.redirtbl[route.pin]
        if entry & _MASKED:
            return f"the guest has masked pin {route.pin} of the kernel's IOAPIC"
        return (
            f"pin {route.pin} of the kernel's IOAPIC waits for the guest's end of interrupt"
            if entry & _REMOTE_IRR
            else None
        )
    master = vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic
    chip = master if route.pin < 8 else vm.get_irqchip(KVM_IRQCHIP_PIC_SLAVE).pic
    bit = 1 << (route.pin & 7)
    if chip.imr & bit:
        return f"the guest has masked pin {route.pin} of the kernel's PIC"
    if chip is not master and master.imr & _CASCADE:
        return "the guest has masked the kernel's slave PIC at the master"
    return (
        f"pin {route.pin} of the kernel's PIC is in service until the guest's end of interrupt"
        if chip.isr & bit
        else None
    )
