"""A real-mode guest of a few bytes: its memory, one vCPU, and a way to run it to its next port access."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from aioirqfd.kvm import Kvm, Vcpu, Vm
from aioirqfd.kvm.ioctls import KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IOAPIC_EOI, KVM_IRQCHIP_PIC_MASTER

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap
    from typing import Self

    from aioirqfd.kvm.structures import KvmPicState

MEMORY = 0x8000
ENTRY = 0x1000
HANDLER = 0x2000
STACK = 0x7000
VECTOR_BASE = 0x20
GSI = 5

READY = 0x10
IN_HANDLER = 0x11
AFTER_EOI = 0x12

# Sets up the master PIC, says it is ready, and halts for ever with interrupts on.
HALT_WITH_PIC = (
    b"\xb0\x11\xe6\x20"  # mov al, 0x11; out 0x20, al    ICW1: edge, cascade, ICW4 follows
    b"\xb0\x20\xe6\x21"  # mov al, 0x20; out 0x21, al    ICW2: VECTOR_BASE
    b"\xb0\x04\xe6\x21"  # mov al, 0x04; out 0x21, al    ICW3: the slave is on pin 2
    b"\xb0\x01\xe6\x21"  # mov al, 0x01; out 0x21, al    ICW4: 8086
    b"\xb0\x00\xe6\x21"  # mov al, 0x00; out 0x21, al    OCW1: nothing masked
    b"\xe6\x10"  #         out READY, al
    b"\xfb"  #             sti
    b"\xf4"  #       halt: hlt
    b"\xeb\xfd"  #         jmp halt
)

# Handles an interrupt of the master PIC.
HANDLE = (
    b"\xe6\x11"  #         out IN_HANDLER, al
    b"\xb0\x20\xe6\x20"  # mov al, 0x20; out 0x20, al    OCW2: end of interrupt
    b"\xe6\x12"  #         out AFTER_EOI, al
    b"\xcf"  #             iret
)


LAPIC = 0xFEE0_0000
SVR = 0xF0
SOFTWARE_ENABLED = 0x100

# The same with its local APIC, which is where its data segment lies.
HALT = (
    b"\xe6\x10"  #         out READY, al
    b"\xfb"  #             sti
    b"\xf4"  #       halt: hlt
    b"\xeb\xfd"  #         jmp halt
)
HANDLE_WITH_LAPIC = (
    b"\xe6\x11"  #         out IN_HANDLER, al
    b"\x66\x31\xc0"  #     xor eax, eax
    b"\x66\xa3\xb0\x00"  # mov [0xb0], eax               the EOI register
    b"\xe6\x12"  #         out AFTER_EOI, al
    b"\xcf"  #             iret
)


class Port(NamedTuple):
    """One port write of the guest."""

    port: int
    data: bytes


class Guest:
    """A VM with an irqchip and one vCPU, about to run ``code`` at ENTRY; gsi 5 leads to HANDLE."""

    vector = VECTOR_BASE + GSI
    handler = HANDLE

    def __init__(self, code: bytes = HALT_WITH_PIC) -> None:
        self.code = code
        self.stack = ExitStack()
        self.vm: Vm
        self.memory: mmap
        self.vcpu: Vcpu

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            kvm = stack.enter_context(Kvm())
            self.vm = stack.enter_context(kvm.create_vm())
            self.create_irqchip()
            self.memory = memory = self.vm.add_memory(0, 0, MEMORY)
            memory[ENTRY : ENTRY + len(self.code)] = self.code
            memory[HANDLER : HANDLER + len(self.handler)] = self.handler
            vector = self.vector * 4  # in the interrupt vector table: an offset, and segment 0
            memory[vector : vector + 4] = HANDLER.to_bytes(4, "little")
            self.vcpu = stack.enter_context(self.vm.create_vcpu())
            sregs = self.vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            self.vcpu.set_sregs(sregs)
            regs = self.vcpu.get_regs()
            regs.rip, regs.rsp, regs.rflags = ENTRY, STACK, 2
            self.vcpu.set_regs(regs)
            self.prepare()
            self.stack = stack.pop_all()
        return self

    def create_irqchip(self) -> None:
        self.vm.create_irqchip()

    def prepare(self) -> None:
        """What else there is to set before it runs."""

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def next_port(self) -> Port:
        """Run to the next port write."""
        reason = KVM_EXIT_INTR
        while reason == KVM_EXIT_INTR or self.served(reason):  # a signal for this process; nobody here kicks the vCPU
            reason = self.vcpu.run()
        assert reason == KVM_EXIT_IO, reason
        access = self.vcpu.io_exit()
        assert access.is_write
        return Port(access.port, bytes(access.data))

    def served(self, reason: int) -> bool:
        """Whether that exit was somebody's business, and the guest is to go on."""
        del reason
        return False

    def pic(self) -> KvmPicState:
        """The master PIC as it is now."""
        return self.vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic


class SplitGuest(Guest):
    """The same with a split irqchip: only its local APIC is the kernel's, and the ends of interrupt that it leaves to us noted."""

    vector = 0x41
    handler = HANDLE_WITH_LAPIC

    def __init__(self) -> None:
        super().__init__(HALT)
        self.on_eoi: Callable[[int], None] = lambda vector: None
        self.ended: list[int] = []

    def create_irqchip(self) -> None:
        self.vm.create_split_irqchip()

    def prepare(self) -> None:
        lapic = self.vcpu.get_lapic()
        lapic.set_register(SVR, lapic.register(SVR) | SOFTWARE_ENABLED)
        self.vcpu.set_lapic(lapic)
        sregs = self.vcpu.get_sregs()
        sregs.ds.base = LAPIC
        self.vcpu.set_sregs(sregs)

    def served(self, reason: int) -> bool:
        if reason != KVM_EXIT_IOAPIC_EOI:
            return False
        vector = self.vcpu.eoi_exit()
        self.ended.append(vector)
        self.on_eoi(vector)
        return True
