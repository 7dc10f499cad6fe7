"""The structures the KVM ioctls take and give, as the x86-64 ABI lays them out.

Each class is the kernel's ``struct`` of the same name in snake case: :class:`KvmIrqfd` is ``struct kvm_irqfd``. The
fields keep the kernel's names. Storing a number that is too large for its field truncates it, as C does; the methods of
:class:`~aioirqfd.kvm.Vm` check instead.

Not thread-safe: a structure belongs to the thread that fills it.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from ctypes import Array

KVM_IOAPIC_NUM_PINS: Final = 24
_APIC_REG_SIZE: Final = 0x400
_INTERRUPT_BITMAP_WORDS: Final = 256 // 64
_APIC_ISR: Final = 0x100
_APIC_IRR: Final = 0x200
_VECTORS: Final = 256


@final
class KvmIrqfd(Structure):
    """``KVM_IRQFD``: binds an eventfd to a gsi."""

    _fields_ = (
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    )
    fd: int
    gsi: int
    flags: int
    resamplefd: int
    pad: Array[c_uint8]


@final
class KvmIoeventfd(Structure):
    """``KVM_IOEVENTFD``: a guest write at an address signals an eventfd."""

    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    )
    datamatch: int
    addr: int
    len: int
    fd: int
    flags: int
    pad: Array[c_uint8]


@final
class KvmIrqLevel(Structure):
    """``KVM_IRQ_LINE`` and ``KVM_IRQ_LINE_STATUS``; the latter answers in place of the gsi, read it as ``status``."""

    _fields_ = (("irq", c_uint32), ("level", c_uint32))
    irq: int
    level: int

    @property
    def status(self) -> int:
        """What ``KVM_IRQ_LINE_STATUS`` answered: below 0 ignored, 0 coalesced, above 0 delivered (row L02)."""
        return self.irq - 2**32 if self.irq >= 2**31 else self.irq


@final
class KvmMsi(Structure):
    """``KVM_SIGNAL_MSI``: one message."""

    _fields_ = (
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    )
    address_lo: int
    address_hi: int
    data: int
    flags: int
    devid: int
    pad: Array[c_uint8]


@final
class KvmIrqRoutingIrqchip(Structure):
    """A route to a pin of an in-kernel irqchip."""

    _fields_ = (("irqchip", c_uint32), ("pin", c_uint32))
    irqchip: int
    pin: int


@final
class KvmIrqRoutingMsi(Structure):
    """A route to a message."""

    _fields_ = (("address_lo", c_uint32), ("address_hi", c_uint32), ("data", c_uint32), ("devid", c_uint32))
    address_lo: int
    address_hi: int
    data: int
    devid: int


class _RoutingUnion(Union):
    _fields_ = (("irqchip", KvmIrqRoutingIrqchip), ("msi", KvmIrqRoutingMsi), ("pad", c_uint32 * 8))
    irqchip: KvmIrqRoutingIrqchip
    msi: KvmIrqRoutingMsi
    pad: Array[c_uint32]


@final
class KvmIrqRoutingEntry(Structure):
    """One route of a gsi. ``u`` holds the part that depends on ``type``."""

    _fields_ = (
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("u", _RoutingUnion),
    )
    gsi: int
    type: int
    flags: int
    pad: int
    u: _RoutingUnion


@final
class KvmIrqRouting(Structure):
    """The head of ``KVM_SET_GSI_ROUTING``; ``nr`` entries follow it."""

    _fields_ = (("nr", c_uint32), ("flags", c_uint32))
    nr: int
    flags: int


@final
class KvmUserspaceMemoryRegion(Structure):
    """``KVM_SET_USER_MEMORY_REGION``: a slot of guest memory. Addresses and size are in bytes, page-aligned."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )
    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int


@final
class KvmEnableCap(Structure):
    """``KVM_ENABLE_CAP``: switches a capability on."""

    _fields_ = (("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64))
    cap: int
    flags: int
    args: Array[c_uint64]
    pad: Array[c_uint8]


@final
class KvmPitConfig(Structure):
    """``KVM_CREATE_PIT2``."""

    _fields_ = (("flags", c_uint32), ("pad", c_uint32 * 15))
    flags: int
    pad: Array[c_uint32]


@final
class KvmInterrupt(Structure):
    """``KVM_INTERRUPT``: a vector for a vCPU without an in-kernel irqchip."""

    _fields_ = (("irq", c_uint32),)
    irq: int


@final
class KvmCpuid2(Structure):
    """The head of ``KVM_GET_SUPPORTED_CPUID``, ``KVM_GET_CPUID2``, ``KVM_SET_CPUID2``; ``nent`` entries follow it."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32))
    nent: int
    padding: int


@final
class KvmCpuidEntry2(Structure):
    """What ``CPUID`` answers for a leaf (``function``), or for one ``index`` of it where the flags say that this counts."""

    _fields_ = (
        ("function", c_uint32),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("padding", c_uint32 * 3),
    )
    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int
    padding: Array[c_uint32]


@final
class KvmMpState(Structure):
    """``KVM_GET_MP_STATE`` and ``KVM_SET_MP_STATE``."""

    _fields_ = (("mp_state", c_uint32),)
    mp_state: int


@final
class KvmPicState(Structure):
    """One 8259. ``irr``, ``isr`` and ``imr`` have bit n for its own pin n; ``last_irr`` is the level of its lines."""

    _fields_ = (
        ("last_irr", c_uint8),
        ("irr", c_uint8),
        ("imr", c_uint8),
        ("isr", c_uint8),
        ("priority_add", c_uint8),
        ("irq_base", c_uint8),
        ("read_reg_select", c_uint8),
        ("poll", c_uint8),
        ("special_mask", c_uint8),
        ("init_state", c_uint8),
        ("auto_eoi", c_uint8),
        ("rotate_on_auto_eoi", c_uint8),
        ("special_fully_nested_mode", c_uint8),
        ("init4", c_uint8),
        ("elcr", c_uint8),
        ("elcr_mask", c_uint8),
    )
    last_irr: int
    irr: int
    imr: int
    isr: int
    priority_add: int
    irq_base: int
    read_reg_select: int
    poll: int
    special_mask: int
    init_state: int
    auto_eoi: int
    rotate_on_auto_eoi: int
    special_fully_nested_mode: int
    init4: int
    elcr: int
    elcr_mask: int


@final
class KvmIoapicState(Structure):
    """The IOAPIC. Each word of ``redirtbl`` is one 64-bit redirection entry as the guest sees it."""

    _fields_ = (
        ("base_address", c_uint64),
        ("ioregsel", c_uint32),
        ("id", c_uint32),
        ("irr", c_uint32),
        ("pad", c_uint32),
        ("redirtbl", c_uint64 * KVM_IOAPIC_NUM_PINS),
    )
    base_address: int
    ioregsel: int
    id: int
    irr: int
    pad: int
    redirtbl: Array[c_uint64]


class _IrqchipUnion(Union):
    _fields_ = (("dummy", c_uint8 * 512), ("pic", KvmPicState), ("ioapic", KvmIoapicState))


@final
class KvmIrqchip(Structure):
    """``KVM_GET_IRQCHIP`` and ``KVM_SET_IRQCHIP``: ``pic`` or ``ioapic``, as ``chip_id`` says."""

    _anonymous_ = ("chip",)
    _fields_ = (("chip_id", c_uint32), ("pad", c_uint32), ("chip", _IrqchipUnion))
    chip_id: int
    pad: int
    pic: KvmPicState
    ioapic: KvmIoapicState


@final
class KvmLapicState(Structure):
    """``KVM_GET_LAPIC`` and ``KVM_SET_LAPIC``: the register page of a local APIC."""

    _fields_ = (("regs", c_uint8 * _APIC_REG_SIZE),)
    regs: Array[c_uint8]

    def register(self, offset: int) -> int:
        """The 32-bit register at ``offset`` (a multiple of 0x10, 0..0x3f0)."""
        return int.from_bytes(bytes(self.regs[offset : offset + 4]), "little")

    def set_register(self, offset: int, value: int) -> None:
        """Store a 32-bit value (0..2**32-1) in the register at ``offset`` (a multiple of 0x10, 0..0x3f0)."""
        self.regs[offset : offset + 4] = list(value.to_bytes(4, "little"))

    def requested(self) -> frozenset[int]:
        """The vectors (0..255) whose bit is set in the IRR: asked for, not yet taken by the CPU."""
        return self._vectors(_APIC_IRR)

    def in_service(self) -> frozenset[int]:
        """The vectors (0..255) whose bit is set in the ISR: taken, without an end of interrupt yet."""
        return self._vectors(_APIC_ISR)

    def _vectors(self, base: int) -> frozenset[int]:
        # 256 bits, spread over eight 32-bit registers that are 16 bytes apart.
        return frozenset(
            vector for vector in range(_VECTORS) if self.register(base + vector // 32 * 0x10) >> vector % 32 & 1
        )


@final
class KvmRegs(Structure):
    """``KVM_GET_REGS`` and ``KVM_SET_REGS``: the general registers, 64 bits each."""

    _fields_ = (
        ("rax", c_uint64),
        ("rbx", c_uint64),
        ("rcx", c_uint64),
        ("rdx", c_uint64),
        ("rsi", c_uint64),
        ("rdi", c_uint64),
        ("rsp", c_uint64),
        ("rbp", c_uint64),
        ("r8", c_uint64),
        ("r9", c_uint64),
        ("r10", c_uint64),
        ("r11", c_uint64),
        ("r12", c_uint64),
        ("r13", c_uint64),
        ("r14", c_uint64),
        ("r15", c_uint64),
        ("rip", c_uint64),
        ("rflags", c_uint64),
    )
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int


@final
class KvmSegment(Structure):
    """A segment register with its hidden part. In real mode ``base`` is ``selector * 16``."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    )
    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741  the kernel's name
    g: int
    avl: int
    unusable: int
    padding: int


@final
class KvmDtable(Structure):
    """A descriptor-table register."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))
    base: int
    limit: int
    padding: Array[c_uint16]


@final
class KvmSregs(Structure):
    """``KVM_GET_SREGS`` and ``KVM_SET_SREGS``: segments, descriptor tables, control registers."""

    _fields_ = (
        ("cs", KvmSegment),
        ("ds", KvmSegment),
        ("es", KvmSegment),
        ("fs", KvmSegment),
        ("gs", KvmSegment),
        ("ss", KvmSegment),
        ("tr", KvmSegment),
        ("ldt", KvmSegment),
        ("gdt", KvmDtable),
        ("idt", KvmDtable),
        ("cr0", c_uint64),
        ("cr2", c_uint64),
        ("cr3", c_uint64),
        ("cr4", c_uint64),
        ("cr8", c_uint64),
        ("efer", c_uint64),
        ("apic_base", c_uint64),
        ("interrupt_bitmap", c_uint64 * _INTERRUPT_BITMAP_WORDS),
    )
    cs: KvmSegment
    ds: KvmSegment
    es: KvmSegment
    fs: KvmSegment
    gs: KvmSegment
    ss: KvmSegment
    tr: KvmSegment
    ldt: KvmSegment
    gdt: KvmDtable
    idt: KvmDtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: Array[c_uint64]


class _RunFailEntry(Structure):
    _fields_ = (("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32))
    hardware_entry_failure_reason: int
    cpu: int


class _RunIo(Structure):
    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )
    direction: int
    size: int
    port: int
    count: int
    data_offset: int


class _RunMmio(Structure):
    _fields_ = (("phys_addr", c_uint64), ("data", c_uint8 * 8), ("len", c_uint32), ("is_write", c_uint8))
    phys_addr: int
    data: Array[c_uint8]
    len: int
    is_write: int


class _RunInternal(Structure):
    _fields_ = (("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))
    suberror: int
    ndata: int
    data: Array[c_uint64]


class _RunSystemEvent(Structure):
    _fields_ = (("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))
    type: int
    ndata: int
    data: Array[c_uint64]


class _RunEoi(Structure):
    _fields_ = (("vector", c_uint8),)
    vector: int


class _RunUnion(Union):
    _fields_ = (
        ("fail_entry", _RunFailEntry),
        ("io", _RunIo),
        ("mmio", _RunMmio),
        ("internal", _RunInternal),
        ("system_event", _RunSystemEvent),
        ("eoi", _RunEoi),
        ("padding", c_uint8 * 256),
    )


@final
class KvmRun(Structure):
    """The page a vCPU shares with the kernel. Only the parts of the union that are of use here are named."""

    _anonymous_ = ("exit",)
    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("exit", _RunUnion),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("s", c_uint8 * 2048),
    )
    request_interrupt_window: int
    immediate_exit: int
    padding1: Array[c_uint8]
    exit_reason: int
    ready_for_interrupt_injection: int
    if_flag: int
    flags: int
    cr8: int
    apic_base: int
    fail_entry: _RunFailEntry
    io: _RunIo
    mmio: _RunMmio
    internal: _RunInternal
    system_event: _RunSystemEvent
    eoi: _RunEoi
    padding: Array[c_uint8]
    kvm_valid_regs: int
    kvm_dirty_regs: int
    s: Array[c_uint8]
