"""A virtual CPU: its registers, the page it shares with the kernel, and how to run and to kick it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import threading
from ctypes import sizeof
from typing import TYPE_CHECKING, Final, final

from aioirqfd.kvm import cpuid, msrs, vcpu_snapshot
from aioirqfd.kvm.descriptor import Descriptor, filled, int_ioctl
from aioirqfd.kvm.exits import MMIO_DATA, ExitHandler, Exits, IoExit, MmioExit
from aioirqfd.kvm.ioctls import (
    KVM_EXIT_INTR,
    KVM_EXIT_IO,
    KVM_EXIT_MMIO,
    KVM_GET_CPUID2,
    KVM_GET_DEBUGREGS,
    KVM_GET_FPU,
    KVM_GET_LAPIC,
    KVM_GET_MP_STATE,
    KVM_GET_REGS,
    KVM_GET_SREGS,
    KVM_GET_TSC_KHZ,
    KVM_GET_VCPU_EVENTS,
    KVM_GET_XCRS,
    KVM_GET_XSAVE,
    KVM_GET_XSAVE2,
    KVM_INTERRUPT,
    KVM_RUN,
    KVM_SET_CPUID2,
    KVM_SET_DEBUGREGS,
    KVM_SET_FPU,
    KVM_SET_LAPIC,
    KVM_SET_MP_STATE,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_SET_TSC_KHZ,
    KVM_SET_VCPU_EVENTS,
    KVM_SET_XCRS,
    KVM_SET_XSAVE,
)
from aioirqfd.kvm.states import KvmDebugregs, KvmFpu, KvmVcpuEvents, KvmXcrs, KvmXsave
from aioirqfd.kvm.structures import KvmInterrupt, KvmLapicState, KvmMpState, KvmRegs, KvmRun, KvmSregs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aioirqfd.kvm.state import VcpuState
    from aioirqfd.kvm.structures import KvmCpuidEntry2

KICK_SIGNAL: Final = signal.SIGRTMIN + 6
"""What :meth:`Vcpu.kick` sends to the thread that runs the vCPU. It means nothing; only its arrival counts."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.signal.restype = ctypes.c_void_p
# The handler that does nothing, in C: it takes an int, and touches no memory. A Python handler could only be installed
# by the main thread, which it would then interrupt at every kick, and it would write to the event loop's wake-up fd.
_NO_OP: Final = ctypes.cast(_libc.abs, ctypes.c_void_p).value
_SIG_DFL: Final = None
_SIG_IGN: Final = 1
# Not descriptor.int_ioctl: three declared argument types cost 2 us a call, a third of an exit. A vCPU's request and its
# argument fit a C int, which is what ctypes makes of a plain number.
_run: Final = ctypes.CDLL(None, use_errno=True).ioctl


def install_kick_handler() -> None:
    """Make the kick signal harmless, from any thread. The default action would end the process.

    Raises:
        RuntimeError: Something else in the process handles that signal.
    """
    previous = _libc.signal(KICK_SIGNAL, _NO_OP)
    if previous not in {_SIG_DFL, _SIG_IGN, _NO_OP}:
        _libc.signal(KICK_SIGNAL, previous)
        raise RuntimeError(f"signal {KICK_SIGNAL} has a handler already; vCPUs are kicked with it")


@final
class Vcpu(Descriptor):
    """One virtual CPU (``KVM_CREATE_VCPU``), made by :meth:`aioirqfd.kvm.Vm.create_vcpu`.

    Args:
        fd: The vCPU's descriptor, which is this object's from now on.
        mmap_size: Bytes of the page or pages shared with the kernel.
        xsave_size: Bytes of its XSAVE area: what the VM says of ``KVM_CAP_XSAVE2``, at least 4096.
        msrs: The indices of the model-specific registers that :meth:`save` takes; None: it cannot be saved.

    Threads: one thread at a time in :meth:`run` or :meth:`serve`; it needs not be always the same. :meth:`kick` from any thread. The
    rest from the thread that runs it, or while it does not run.

    The first vCPU gives ``KICK_SIGNAL``, which is ``SIGRTMIN + 6``, a handler that does nothing; a program must leave that
    signal alone, and not block it in a thread that runs a vCPU.

    Raises:
        RuntimeError: Something else in the process handles that signal.
    """

    __slots__ = ("_kicked", "_lock", "_mmap", "_msrs", "_run", "_runner", "_view", "_xsave_size")

    def __init__(
        self, fd: int, *, mmap_size: int, xsave_size: int = sizeof(KvmXsave), msrs: Sequence[int] | None = None
    ) -> None:
        super().__init__(fd)
        self._xsave_size = xsave_size
        self._msrs = msrs
        self._kicked = False
        self._runner: int | None = None
        # Held for a moment at both ends of run(): a thread is only signalled while it cannot have left run(), let alone
        # ended, and a flag set by kick() is either seen by the kernel or cleared by the run() that reports it.
        self._lock = threading.Lock()
        try:
            install_kick_handler()
            self._mmap = mmap.mmap(fd, mmap_size)
        except BaseException:
            super().close()
            raise
        self._view = memoryview(self._mmap)
        self._run = KvmRun.from_buffer(self._mmap)

    def close(self) -> None:
        """Unmap the shared page and close the descriptor. Idempotent.

        Raises:
            RuntimeError: A thread is in :meth:`run` or :meth:`serve`: kick it and wait for it first. Nothing was closed.
        """
        if self.closed:
            return
        with self._lock:
            if self._runner is not None:
                raise RuntimeError(f"{self!r} is running: kick it, and wait until it has returned, before closing it")
            super().close()
            del self._run
            self._view.release()
        with contextlib.suppress(BufferError):  # an exit's data is still looked at; unmapped with the last view
            self._mmap.close()

    @property
    def kvm_run(self) -> KvmRun:
        """The shared page by field names, live.

        Raises:
            ClosedError: EBADF, after close.
        """
        self.fileno()
        return self._run

    def run(self) -> int:
        """``KVM_RUN``: run the guest until something needs this process. Blocks its thread; the GIL is released.

        Returns:
            The exit reason, ``KVM_EXIT_*``. ``KVM_EXIT_INTR`` stands for the ioctl's EINTR: a kick, or any signal to
            this thread. The guest has then not run, or stopped between two instructions; what the last exit asked for
            (the data of a read) has been completed either way.

        Raises:
            OSError: Any other errno. EAGAIN: a vCPU that waits for its start-up IPI was woken.
            RuntimeError: Another thread is in here.
            ClosedError: EBADF, after close.
        """
        fd = self._enter()
        interrupted = False
        try:
            int_ioctl(fd, KVM_RUN, 0)
        except InterruptedError:
            interrupted = True
        finally:
            self._leave(interrupted=interrupted)
        return KVM_EXIT_INTR if interrupted else self._run.exit_reason

    def serve(self, handler: ExitHandler) -> int:
        """Run the guest, and have a handler answer its port and memory accesses, until something else ends it.

        The lean way: an access costs half of the Python that :meth:`run` and :meth:`io_exit` cost. Blocks its thread; the GIL
        is released while the guest runs. The vCPU is this thread's from the first entry to the return, in the handler too.

        Args:
            handler: Called in this thread. To end the loop from within, :meth:`kick`. It must not run or close the vCPU;
                it may look at it, but the instruction that the guest waits in is completed at the next entry only.

        Returns:
            The first exit reason that is neither ``KVM_EXIT_IO`` nor ``KVM_EXIT_MMIO``. ``KVM_EXIT_INTR`` as of :meth:`run`:
            after a kick, or any signal to this thread. All accesses are then completed, and the registers say so. A kick
            that comes while the handler runs is found at the next entry.

        Raises:
            OSError: Any other errno than EINTR, and than EAGAIN, at which the vCPU is run again: its start-up IPI has come.
            RuntimeError: Another thread is in here or in :meth:`run`.
            ClosedError: EBADF, after close.
            TypeError: The handler returned no integer for a read.
            ValueError: It returned one that does not fit the access.
            Exception: Whatever the handler raises. The vCPU is stopped then, and can be served again: what the guest has been
                reading is completed at the next entry, with the value that is in the page by then (for a write there is
                nothing to do). Of a string instruction, the elements that the handler was not asked for are not asked for again.
        """
        fd = self._enter()
        interrupted = False
        page, run = self._run, _run
        exits: Exits | None = None
        try:
            exits = Exits(self._view, handler)
            port, mmio = exits.port, exits.mmio
            while True:
                if run(fd, KVM_RUN, 0) >= 0:
                    reason = page.exit_reason
                    if reason == KVM_EXIT_IO:
                        port()
                    elif reason == KVM_EXIT_MMIO:
                        mmio()
                    else:
                        return reason
                    continue
                code = ctypes.get_errno()
                if code == errno.EINTR:
                    interrupted = True
                    return KVM_EXIT_INTR
                if code != errno.EAGAIN:
                    raise OSError(code, os.strerror(code))
        finally:
            # This frame may live on in a traceback. The page must not: its mapping holds the vCPU open.
            if exits is not None:
                exits.release()
            del page
            self._leave(interrupted=interrupted)

    def _enter(self) -> int:
        with self._lock:
            fd = self.fileno()
            if self._runner is not None:
                raise RuntimeError(f"{self!r} is run by another thread already")
            self._runner = threading.get_ident()
        return fd

    def _leave(self, *, interrupted: bool) -> None:
        with self._lock:
            self._runner = None
            if interrupted:
                self._kicked = False
                self._run.immediate_exit = 0

    def kick(self) -> None:
        """Make :meth:`run` or :meth:`serve` return ``KVM_EXIT_INTR``: at once if a thread is in it, else the next time.

        Never lost, and never counted: several kicks before one return are one. A run that was about to exit for another
        reason reports that one first, and the kick the next time. From any thread.

        Raises:
            ClosedError: EBADF, after close.
            BlockingIOError: EAGAIN: too many signals wait for the user's processes (``RLIMIT_SIGPENDING``, setrlimit(2)). The run
                goes on until its next exit; kick it again.
        """
        with self._lock:
            self.fileno()
            if self._kicked:
                return  # one signal is enough, and each that waits takes a place in a queue that is limited
            # In this order: the signal may come before the thread enters the kernel, which then looks at the flag.
            self._run.immediate_exit = 1
            if self._runner is not None:
                signal.pthread_kill(self._runner, KICK_SIGNAL)
            self._kicked = True

    def io_exit(self) -> IoExit:
        """The port access that :meth:`run` returned ``KVM_EXIT_IO`` for."""
        io = self.kvm_run.io
        size, count, offset = io.size, io.count, io.data_offset
        return IoExit(io.direction, size, io.port, count, self._view[offset : offset + size * count])

    def mmio_exit(self) -> MmioExit:
        """The memory access that :meth:`run` returned ``KVM_EXIT_MMIO`` for."""
        mmio = self.kvm_run.mmio
        return MmioExit(mmio.phys_addr, self._view[MMIO_DATA : MMIO_DATA + mmio.len], bool(mmio.is_write))

    def eoi_exit(self) -> int:
        """The vector, 0..255, whose end of interrupt :meth:`run` returned ``KVM_EXIT_IOAPIC_EOI`` for.

        Given with a split irqchip, for the messages that :class:`~aioirqfd.sinks.KvmSink` was told of: a user-space IOAPIC's.
        """
        return self.kvm_run.eoi.vector

    def complete(self) -> None:
        """Complete what the last exit asked for, and run nothing more: then the registers are true. Kicks stay pending.

        Not needed after ``KVM_EXIT_INTR``. The data of a read must be in the page by now.

        Raises:
            RuntimeError: The instruction asks for more, as a string instruction may; :meth:`io_exit` or :meth:`mmio_exit` has it.
                Go on with :meth:`run` or :meth:`serve`.
            OSError: As of :meth:`run`.
        """
        fd = self._enter()
        try:
            self._run.immediate_exit = 1
            if _run(fd, KVM_RUN, 0) >= 0:
                raise RuntimeError(
                    f"{self!r} is in the middle of an instruction that asks for more:"
                    " answer it, and let serve() go on until a kick ends it"
                )
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        finally:
            with self._lock:
                self._runner = None
                self._run.immediate_exit = self._kicked

    def save(self) -> VcpuState:
        """Return everything that KVM keeps of this vCPU, to be given to a new one by :meth:`restore`.

        While it does not run, and with all that may interrupt it at rest: first the devices, then the vCPUs of the VM, each out
        of :meth:`serve` by a kick, then this. What the last exit asked for is completed first. The vCPU may go on after it.

        What a guest does with virtualization of its own (VMX, SVM) is not saved.

        Raises:
            RuntimeError: It runs, or is in the middle of an instruction (see :meth:`complete`).
            OSError: As the kernel says.
            ValueError: It was made without ``msrs``.
        """
        if self._msrs is None:
            raise ValueError(f"{self!r} was made without msrs: make its VM by Kvm.create_vm()")
        self.complete()
        return vcpu_snapshot.take(self, self._msrs)

    def restore(self, state: VcpuState) -> None:
        """Give this vCPU, which has not run yet, the state of another one.

        After the guest's memory; and before :meth:`aioirqfd.kvm.Vm.restore`, which may hand on interrupts to it. Its time stamp
        counter goes on from where it was.

        Raises:
            OSError: The kernel refuses a part of it; EINVAL names a register that it does not take. The vCPU is of no use then.
        """
        vcpu_snapshot.put(self, state)

    def get_regs(self) -> KvmRegs:
        """The general registers."""
        regs = KvmRegs()
        self.ioctl(KVM_GET_REGS, regs)
        return regs

    def set_regs(self, regs: KvmRegs) -> None:
        """Set the general registers. ``rflags`` must have bit 1 set."""
        self.ioctl(KVM_SET_REGS, regs)

    def get_sregs(self) -> KvmSregs:
        """Segments, descriptor tables, control registers."""
        sregs = KvmSregs()
        self.ioctl(KVM_GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: KvmSregs) -> None:
        """Set segments, descriptor tables, control registers."""
        self.ioctl(KVM_SET_SREGS, sregs)

    def get_cpuid2(self) -> list[KvmCpuidEntry2]:
        """``KVM_GET_CPUID2``: the leaves that were set, and what the kernel has made of them."""
        return cpuid.get_cpuid(self, KVM_GET_CPUID2)

    def set_cpuid2(self, entries: Iterable[KvmCpuidEntry2]) -> None:
        """``KVM_SET_CPUID2``: what the guest's ``CPUID`` answers. Before the first run.

        Args:
            entries: From :meth:`aioirqfd.kvm.Kvm.get_supported_cpuid`, as changed for this vCPU.

        Raises:
            OSError: EINVAL: the kernel refuses them, or the vCPU has run with others; E2BIG: too many.
        """
        self.ioctl(KVM_SET_CPUID2, cpuid.pack(entries))

    def get_lapic(self) -> KvmLapicState:
        """The local APIC. EINVAL without an in-kernel irqchip."""
        lapic = KvmLapicState()
        self.ioctl(KVM_GET_LAPIC, lapic)
        return lapic

    def set_lapic(self, lapic: KvmLapicState) -> None:
        """Set the local APIC."""
        self.ioctl(KVM_SET_LAPIC, lapic)

    def get_mp_state(self) -> int:
        """``KVM_MP_STATE_*``. Of a vCPU with an in-kernel irqchip, all but the first start uninitialized."""
        state = KvmMpState()
        self.ioctl(KVM_GET_MP_STATE, state)
        return state.mp_state

    def set_mp_state(self, state: int) -> None:
        """Set ``KVM_MP_STATE_*``."""
        self.ioctl(KVM_SET_MP_STATE, filled(KvmMpState, mp_state=state))

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """``KVM_GET_MSRS``: the values of those of these model-specific registers that there are, by index (32 bits)."""
        return msrs.get(self, indices)

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """``KVM_SET_MSRS``: set model-specific registers, in this order.

        Raises:
            OSError: EINVAL: one does not take its value, and does not have it already. Those before it are set.
        """
        msrs.put(self, values)

    def get_xsave(self) -> bytes:
        """``KVM_GET_XSAVE``, or ``KVM_GET_XSAVE2`` where that has more: FPU, SSE, AVX and what else there is."""
        area = bytearray(self._xsave_size)
        self.ioctl(KVM_GET_XSAVE if len(area) == sizeof(KvmXsave) else KVM_GET_XSAVE2, area)
        return bytes(area)

    def set_xsave(self, area: bytes) -> None:
        """``KVM_SET_XSAVE``: set what :meth:`get_xsave` returned.

        Raises:
            ValueError: It is shorter than this vCPU's.
            OSError: EINVAL: it has what this CPU does not.
        """
        if len(area) < self._xsave_size:
            raise ValueError(f"the XSAVE area has {len(area)} bytes, and this vCPU's {self._xsave_size}")
        self.ioctl(KVM_SET_XSAVE, bytearray(area))

    def get_fpu(self) -> KvmFpu:
        """``KVM_GET_FPU``."""
        fpu = KvmFpu()
        self.ioctl(KVM_GET_FPU, fpu)
        return fpu

    def set_fpu(self, fpu: KvmFpu) -> None:
        """``KVM_SET_FPU``."""
        self.ioctl(KVM_SET_FPU, fpu)

    def get_xcrs(self) -> KvmXcrs:
        """``KVM_GET_XCRS``. EINVAL where the CPU has no XSAVE."""
        xcrs = KvmXcrs()
        self.ioctl(KVM_GET_XCRS, xcrs)
        return xcrs

    def set_xcrs(self, xcrs: KvmXcrs) -> None:
        """``KVM_SET_XCRS``. EINVAL for what its CPUID does not have."""
        self.ioctl(KVM_SET_XCRS, xcrs)

    def get_debugregs(self) -> KvmDebugregs:
        """``KVM_GET_DEBUGREGS``."""
        debugregs = KvmDebugregs()
        self.ioctl(KVM_GET_DEBUGREGS, debugregs)
        return debugregs

    def set_debugregs(self, debugregs: KvmDebugregs) -> None:
        """``KVM_SET_DEBUGREGS``."""
        self.ioctl(KVM_SET_DEBUGREGS, debugregs)

    def get_vcpu_events(self) -> KvmVcpuEvents:
        """``KVM_GET_VCPU_EVENTS``: what is on its way into the guest."""
        events = KvmVcpuEvents()
        self.ioctl(KVM_GET_VCPU_EVENTS, events)
        return events

    def set_vcpu_events(self, events: KvmVcpuEvents) -> None:
        """``KVM_SET_VCPU_EVENTS``. Its ``flags`` say which of the optional parts count."""
        self.ioctl(KVM_SET_VCPU_EVENTS, events)

    def get_tsc_khz(self) -> int:
        """``KVM_GET_TSC_KHZ``: the frequency of its time stamp counter. EIO where the host's is not stable."""
        return self.ioctl(KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """``KVM_SET_TSC_KHZ``. EINVAL where this CPU cannot make it (a slower one than its own, mostly)."""
        self.ioctl(KVM_SET_TSC_KHZ, khz)

    def interrupt(self, vector: int) -> None:
        """``KVM_INTERRUPT``: queue a vector (0..255), for a VM without an in-kernel PIC.

        Only while ``kvm_run.ready_for_interrupt_injection`` is set; set ``kvm_run.request_interrupt_window`` to get a
        ``KVM_EXIT_IRQ_WINDOW_OPEN`` when it is.

        Raises:
            OSError: ENXIO with a whole in-kernel irqchip, EEXIST while another is queued.
        """
        self.ioctl(KVM_INTERRUPT, filled(KvmInterrupt, irq=vector))
