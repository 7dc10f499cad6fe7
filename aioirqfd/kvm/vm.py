"""A virtual machine: its memory, its irqchip, its routing, and the four ways to signal it from outside."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
from ctypes import sizeof
from fcntl import ioctl
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final, final

from aioirqfd.kvm.descriptor import Descriptor, HasFileno, Layout, fd_word, field, filled, if_there, int_ioctl
from aioirqfd.kvm.ioctls import (
    KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_XSAVE2,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_PIT2,
    KVM_CREATE_VCPU,
    KVM_ENABLE_CAP,
    KVM_GET_CLOCK,
    KVM_GET_IRQCHIP,
    KVM_GET_PIT2,
    KVM_IOEVENTFD,
    KVM_IRQ_LINE,
    KVM_IRQ_LINE_STATUS,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQFD,
    KVM_SET_CLOCK,
    KVM_SET_GSI_ROUTING,
    KVM_SET_IRQCHIP,
    KVM_SET_PIT2,
    KVM_SET_TSS_ADDR,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SIGNAL_MSI,
)
from aioirqfd.kvm.routing import RoutingEntry, pack_table
from aioirqfd.kvm.state import VmState
from aioirqfd.kvm.states import KvmClockData, KvmPitState2, KvmXsave
from aioirqfd.kvm.structures import (
    KVM_IOAPIC_NUM_PINS,
    KvmEnableCap,
    KvmIrqchip,
    KvmPitConfig,
    KvmUserspaceMemoryRegion,
)
from aioirqfd.kvm.vcpu import Vcpu, install_kick_handler

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_IRQ_LEVEL: Final = Layout("=II", "gsi level")
_STATUS: Final = Struct("=i")
_MSI: Final = Layout("=QIII12x", "address data flags devid")
_IRQFD: Final = Layout("=IIII16x", "fd gsi flags resamplefd")
_IOEVENTFD: Final = Layout("=QQIII36x", "datamatch addr length fd flags")
_PREPARED: Final = 4096


@final
class Vm(Descriptor):
    """One virtual machine (``KVM_CREATE_VM``). Usually made by :meth:`aioirqfd.kvm.Kvm.create_vm`.

    Args:
        fd: The VM's descriptor, which is this object's from now on.
        vcpu_mmap_size: What :meth:`aioirqfd.kvm.Kvm.vcpu_mmap_size` says, in bytes; wanted by :meth:`create_vcpu`
            alone.
        msrs: What :meth:`aioirqfd.kvm.Kvm.get_msr_index_list` says, for its vCPUs to be saved.

    Arguments are only checked to fit the kernel's fields. Whatever the kernel says about them reaches the caller as an
    :class:`OSError` with the kernel's errno, unchanged. Other methods than :meth:`close` may be called from any thread.
    """

    # irq_line and signal_msi are a sink's fast path. For bytes, fcntl.ioctl first fails to get a writable buffer, which
    # costs as much as the call; a bytearray made for each call costs half of it. So each argument is built once and
    # kept. It is never changed: these two ioctls only read, and fcntl.ioctl writes back what it was given. That is why
    # threads can share one without a lock.
    __slots__ = ("_lines", "_memory", "_messages", "_msrs", "_vcpu_mmap_size")

    def __init__(self, fd: int, *, vcpu_mmap_size: int = 0, msrs: Sequence[int] | None = None) -> None:
        self._msrs = msrs
        self._vcpu_mmap_size = vcpu_mmap_size
        self._lines: dict[tuple[int, int], bytearray] = {}
        self._messages: dict[tuple[int, int, int, int], bytearray] = {}
        self._memory: dict[int, _Slot] = {}
        super().__init__(fd)

    def close(self) -> None:
        """Take the guest's memory away, release all irqfds (row C05), close the descriptor. Idempotent.

        The memory goes first: an open vCPU keeps the VM alive in the kernel, and its guest would otherwise write into
        whatever this process maps at the old address next. vCPUs are closed by their owner.
        """
        for slot in list(self._memory):
            try:
                self.set_user_memory_region(slot, 0, None)
            except OSError:  # in a forked child (row I17): there the slots are the parent's, and stay
                self._memory.pop(slot).release()
        super().close()

    def check_extension(self, capability: int) -> int:
        """What this VM says about a ``KVM_CAP_*``: 0 for no, else 1 or the capability's number."""
        return self.ioctl(KVM_CHECK_EXTENSION, capability)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> None:
        """``KVM_ENABLE_CAP``.

        Args:
            capability: A ``KVM_CAP_*`` number.
            *args: What it takes: up to 4 numbers, 0..2**64-1.
            flags: None are defined so far.

        Raises:
            OSError: EINVAL: KVM does not know it, or not with these arguments.
        """
        argument = filled(KvmEnableCap, cap=capability, flags=flags)
        if len(args) > len(argument.args):
            raise ValueError(f"a capability takes {len(argument.args)} arguments at most, not {args}")
        for index, arg in enumerate(args):
            argument.args[index] = field(f"args[{index}]", arg, 64)
        self.ioctl(KVM_ENABLE_CAP, argument)

    def create_irqchip(self) -> None:
        """An in-kernel PIC pair, IOAPIC, and a local APIC for each vCPU made after this. EEXIST the second time."""
        self.ioctl(KVM_CREATE_IRQCHIP)

    def create_split_irqchip(self, pins: int = KVM_IOAPIC_NUM_PINS) -> None:
        """Only the local APICs in the kernel, PIC and IOAPIC in user space (rows I04, S05).

        Args:
            pins: Pins of the user-space IOAPIC, for which ``KVM_EXIT_IOAPIC_EOI`` is given.
        """
        self.enable_cap(KVM_CAP_SPLIT_IRQCHIP, pins)

    def create_pit(self, flags: int = 0) -> None:
        """``KVM_CREATE_PIT2``: an in-kernel 8254 on gsi 0. After :meth:`create_irqchip`.

        Args:
            flags: ``KVM_PIT_SPEAKER_DUMMY`` has it answer at port 0x61 too.

        Raises:
            OSError: EEXIST: there is one; ENOENT: there is no irqchip.
        """
        self.ioctl(KVM_CREATE_PIT2, filled(KvmPitConfig, flags=flags))

    def set_tss_addr(self, address: int) -> None:
        """Where the kernel may have three pages for its own use, which older Intel CPUs need for real mode.

        Args:
            address: Of the first; all three below 4 GiB, and no memory of the guest's.

        Raises:
            OSError: EINVAL: it is too high.
        """
        self.ioctl(KVM_SET_TSS_ADDR, address)

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory: mmap.mmap | memoryview | None, *, flags: int = 0
    ) -> None:
        """Give the guest a mapping as memory, the whole of it; or a part, by a view.

        The mapping stays the caller's, and cannot be closed while it is the guest's (``mmap.close()`` raises
        :class:`BufferError`): that is until its slot is deleted or replaced, or the VM is closed.

        Args:
            slot: ``0..KVM_CAP_NR_MEMSLOTS - 1``. A slot that is in use can be moved or deleted, not resized.
            guest_phys_addr: Where the guest sees it, in bytes; page-aligned.
            memory: A writable mapping, or a view of pages of one; None to delete the slot.
            flags: ``KVM_MEM_*``.

        Raises:
            OSError: As the kernel says: EINVAL, EEXIST for an overlap. The slot is as before.
        """
        region = filled(KvmUserspaceMemoryRegion, slot=slot, flags=flags, guest_phys_addr=guest_phys_addr)
        slot = region.slot
        new = None if memory is None else _Slot(memory)
        if new is not None:
            region.memory_size, region.userspace_addr = new.size, new.address
        try:
            self.ioctl(KVM_SET_USER_MEMORY_REGION, region)
        except BaseException:
            if new is not None:
                new.release()
            raise
        old = self._memory.pop(slot, None)
        if new is not None:
            self._memory[slot] = new
        if old is not None:
            old.release()

    def add_memory(self, slot: int, guest_phys_addr: int, size: int, *, flags: int = 0) -> mmap.mmap:
        """Give the guest zeroed memory that this object owns, and unmaps when the slot is deleted or the VM closed.

        Args:
            slot: As in :meth:`set_user_memory_region`.
            guest_phys_addr: As there.
            size: Bytes; a multiple of the page size.
            flags: ``KVM_MEM_*``.

        Returns:
            The mapping, to fill and to look at.

        Raises:
            OSError: As the kernel says; nothing is left behind.
        """
        slot = field("slot", slot, 32)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            self.set_user_memory_region(slot, guest_phys_addr, memory, flags=flags)
        except BaseException:
            memory.close()
            raise
        self._memory[slot].owned = True
        return memory

    def set_gsi_routing(self, entries: Iterable[RoutingEntry], *, flags: int = 0) -> None:
        """Replace the whole table, all or nothing (row G09); bound irqfds follow it at once (row G10).

        Raises:
            OSError: EINVAL for an entry or a table the kernel refuses (rows G01 to G07).
            ValueError: A number that does not fit its field.
        """
        table = pack_table(entries, flags)
        # By address: fcntl.ioctl would keep the GIL through a call of up to half a millisecond for more than 1024
        # bytes.
        pin = ctypes.c_char.from_buffer(table)
        int_ioctl(self.fileno(), KVM_SET_GSI_ROUTING, ctypes.addressof(pin))

    def irqfd(self, fd: int | HasFileno, gsi: int, *, flags: int = 0, resamplefd: int | HasFileno = -1) -> None:
        """``KVM_IRQFD``: bind an eventfd to a gsi, or unbind it (as a barrier, row I20).

        Args:
            fd: The eventfd. Stays the caller's; closing its last copy unbinds it (row C04).
            gsi: 0..2**32-1; not validated by the kernel (row I11).
            flags: ``KVM_IRQFD_FLAG_DEASSIGN``, ``KVM_IRQFD_FLAG_RESAMPLE``.
            resamplefd: Signalled at the guest's EOI. Only looked at with the RESAMPLE flag (row I07).

        Raises:
            OSError: EINVAL, EBADF, EBUSY (rows I01 to I18). Deassigning what is not there is no error (row I14).
            ValueError: A number that does not fit its field.
        """
        ioctl(self.fileno(), KVM_IRQFD, _IRQFD.pack(fd_word(fd), gsi, flags, fd_word(resamplefd)))

    def ioeventfd(self, addr: int, length: int, fd: int | HasFileno, *, flags: int = 0, datamatch: int = 0) -> None:
        """``KVM_IOEVENTFD``: let guest writes at an address signal an eventfd, without an exit.

        Args:
            addr: Port or guest-physical address, 0..2**64-1.
            length: Bytes: 1, 2, 4, 8, or 0 for any (rows O01, O12).
            fd: The eventfd. Stays the caller's, who deassigns before closing it (row O18).
            flags: ``KVM_IOEVENTFD_FLAG_PIO``, ``_DATAMATCH``, ``_DEASSIGN``.
            datamatch: With the flag, only writes of this value count, 0..2**64-1 (row O13).

        Raises:
            OSError: EINVAL, EBADF, EEXIST; ENOENT from a deassign (rows O01 to O09).
            ValueError: A number that does not fit its field.
        """
        ioctl(self.fileno(), KVM_IOEVENTFD, _IOEVENTFD.pack(datamatch, addr, length, fd_word(fd), flags))

    def irq_line(self, gsi: int, level: int) -> None:
        """``KVM_IRQ_LINE``: raise or lower the line of a gsi. Needs :meth:`create_irqchip`.

        Args:
            gsi: 0..2**32-1. An unrouted or masked one is no error (row L03).
            level: 0 lowers; anything else raises (row L04).

        Raises:
            OSError: ENXIO without an irqchip (row L01).
            ValueError: A number that does not fit its field.
        """
        argument = self._lines.get((gsi, level)) or self._prepare_line(gsi, level)
        try:
            ioctl(self._fd, KVM_IRQ_LINE, argument)
        except ValueError:  # what fcntl makes of the -1 of a closed VM
            raise self._closed_error() from None

    def irq_line_status(self, gsi: int, level: int) -> int:
        """``KVM_IRQ_LINE_STATUS``: as :meth:`irq_line`, and say what came of it (row L02).

        Returns:
            The sum over the routes of the gsi: below 0 ignored (masked or unrouted; -1 only if all are), 0 coalesced,
            above 0 delivered.
        """
        # A copy, for the answer is written into it.
        argument = (self._lines.get((gsi, level)) or self._prepare_line(gsi, level))[:]
        ioctl(self.fileno(), KVM_IRQ_LINE_STATUS, argument)
        status: int = _STATUS.unpack_from(argument)[0]
        return status

    def signal_msi(self, address: int, data: int, flags: int = 0, devid: int = 0) -> int:
        """``KVM_SIGNAL_MSI``: deliver a message. Needs an in-kernel irqchip, split or whole.

        Args:
            address: 0..2**64-1.
            data: 0..2**32-1.
            flags: ``KVM_MSI_VALID_DEVID`` if ``devid`` counts.
            devid: The requester id, 0..2**32-1.

        Returns:
            How many local APICs took it: 0 if the destination is absent or switched off (row S01).

        Raises:
            OSError: EINVAL without an irqchip (row L01) or for another flag (S04); EPERM where there is no candidate
                (S03).
            ValueError: A number that does not fit its field.
        """
        message = self._messages.get((address, data, flags, devid))
        if message is None:
            message = self._prepare_message(address, data, flags, devid)
        try:
            accepted: int = ioctl(self._fd, KVM_SIGNAL_MSI, message)
        except ValueError:
            raise self._closed_error() from None
        return accepted

    def get_irqchip(self, chip_id: int) -> KvmIrqchip:
        """The state of ``KVM_IRQCHIP_PIC_MASTER``, ``_PIC_SLAVE`` (see ``.pic``) or ``_IOAPIC`` (``.ioapic``)."""
        state = filled(KvmIrqchip, chip_id=chip_id)
        self.ioctl(KVM_GET_IRQCHIP, state)
        return state

    def set_irqchip(self, state: KvmIrqchip) -> None:
        """Put a state back into the chip it names."""
        self.ioctl(KVM_SET_IRQCHIP, state)

    def get_pit2(self) -> KvmPitState2:
        """``KVM_GET_PIT2``: the counters of the in-kernel PIT. ENXIO where there is none."""
        pit = KvmPitState2()
        self.ioctl(KVM_GET_PIT2, pit)
        return pit

    def set_pit2(self, pit: KvmPitState2) -> None:
        """``KVM_SET_PIT2``. The counters begin anew with their values."""
        self.ioctl(KVM_SET_PIT2, pit)

    def get_clock(self) -> KvmClockData:
        """``KVM_GET_CLOCK``: the guest's kvm-clock, nanoseconds."""
        clock = KvmClockData()
        self.ioctl(KVM_GET_CLOCK, clock)
        return clock

    def set_clock(self, nanoseconds: int) -> None:
        """``KVM_SET_CLOCK``: let the guest's kvm-clock go on from there."""
        self.ioctl(KVM_SET_CLOCK, filled(KvmClockData, clock=nanoseconds))

    def save(self) -> VmState:
        """Return what KVM keeps of this VM beside its vCPUs: PICs, IOAPIC, PIT and clock.

        With the devices and vCPUs at rest, as :meth:`aioirqfd.kvm.Vcpu.save`. The memory is the caller's to save; routing, irqfds
        and what is pending in them are an ``IrqManager``'s (``snapshot``), ioeventfds a bus's.

        Raises:
            OSError: As the kernel says.
        """
        return VmState(
            pic_master=self._irqchip(KVM_IRQCHIP_PIC_MASTER),
            pic_slave=self._irqchip(KVM_IRQCHIP_PIC_SLAVE),
            ioapic=self._irqchip(KVM_IRQCHIP_IOAPIC),
            pit=bytes(if_there(self.get_pit2, errno.ENXIO) or b""),
            clock=self.get_clock().clock,
        )

    def restore(self, state: VmState) -> None:
        """Give this VM the state of another one. After its vCPUs' (:meth:`aioirqfd.kvm.Vcpu.restore`), before they run.

        It must have been made with the same irqchip and PIT. Its clock goes on from where it was.

        Raises:
            OSError: The kernel refuses a part of it; ENXIO: there is no irqchip or PIT here.
        """
        self.set_clock(state.clock)
        for chip in (state.ioapic, state.pic_slave, state.pic_master):
            if chip:
                self.set_irqchip(KvmIrqchip.from_buffer_copy(chip))
        if state.pit:  # begins to tick here, into chips that are not replaced any more
            self.set_pit2(KvmPitState2.from_buffer_copy(state.pit))

    def _irqchip(self, chip_id: int) -> bytes:
        return bytes(if_there(partial(self.get_irqchip, chip_id), errno.ENXIO) or b"")

    def create_vcpu(self, vcpu_id: int = 0) -> Vcpu:
        """A virtual CPU, which the caller closes.

        Args:
            vcpu_id: ``0..KVM_CAP_MAX_VCPUS - 1``, also its local APIC's id. The first one made is the one that boots.

        Raises:
            OSError: As the kernel says: EEXIST, EINVAL.
            ValueError: This VM was made without ``vcpu_mmap_size``.
            RuntimeError: Something else in the process handles the kick signal.
        """
        if self._vcpu_mmap_size == 0:
            raise ValueError(f"{self!r} was made without vcpu_mmap_size: make it by Kvm.create_vm()")
        install_kick_handler()  # first, for a vCPU that was made once cannot be made again
        xsave_size = max(self.check_extension(KVM_CAP_XSAVE2), sizeof(KvmXsave))
        fd = self.ioctl(KVM_CREATE_VCPU, vcpu_id)
        return Vcpu(fd, mmap_size=self._vcpu_mmap_size, xsave_size=xsave_size, msrs=self._msrs)

    def _prepare_line(self, gsi: int, level: int) -> bytearray:
        argument = _IRQ_LEVEL.pack(gsi, int(level) if isinstance(level, bool) else level)
        if len(self._lines) >= _PREPARED:
            self._lines.clear()
        self._lines[gsi, level] = argument
        return argument

    def _prepare_message(self, address: int, data: int, flags: int, devid: int) -> bytearray:
        argument = _MSI.pack(address, data, flags, devid)
        # Bounded, because the guest chooses its messages, and may choose a new one each time.
        if len(self._messages) >= _PREPARED:
            self._messages.clear()
        self._messages[address, data, flags, devid] = argument
        return argument


@final
class _Slot:
    """A memory slot's hold on its mapping: an export, so that it is not unmapped as long as the guest has it."""

    __slots__ = ("_export", "_memory", "address", "owned", "size")

    def __init__(self, memory: mmap.mmap | memoryview) -> None:
        self._memory = memory
        self._export: ctypes.c_char | None = ctypes.c_char.from_buffer(memory)
        self.address = ctypes.addressof(self._export)
        self.size = len(memory) if isinstance(memory, mmap.mmap) else memory.nbytes
        self.owned = False

    def release(self) -> None:
        self._export = None
        if self.owned and isinstance(self._memory, mmap.mmap):
            with contextlib.suppress(BufferError):  # the caller still looks at it; unmapped with the last view
                self._memory.close()
