"""A CPU without hardware help: the Unicorn emulator, with the user-space 8259 pair beside it.

Unicorn executes instructions and knows nothing of interrupts, so this module is the part of a processor that it lacks:
the look at INTR between instructions, the interrupt flag, its shadow after ``sti``, the vector table, and ``hlt``.
(Intel 64 and IA-32 SDM, volume 3, "Masking maskable hardware interrupts" and "Interrupt and exception handling in
real-address mode".)

Every run is counted, because that is what stops Unicorn between two instructions: a run without a count is translated
without the check, and stops at the end of a block at best. The count bounds how long an interrupt waits for a guest that only
computes. A guest that writes to a port is stopped there. What must not be used is ``emu_stop`` from another thread: when it
comes during an ``in``, Unicorn drops what was read and executes the instruction again, and the byte is lost.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Final, final

import unicorn
from unicorn import x86_const as x86

from aioirqfd import IoBus
from aioirqfd.irqchip import Pic
from examples.vmm.cpu import CpuError
from examples.vmm.portio import register, words
from examples.vmm.ports import MEMORY_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd import EventFd
    from examples.vmm.portio import PortIo

_SLICE: Final = 20_000
"""Instructions a run may take before INTR is looked at again: about a quarter of a millisecond."""
_WINDOW: Final = 32
"""The same while an interrupt waits for the guest to enable interrupts."""
_IF: Final = 1 << 9
_TF: Final = 1 << 8
_HLT: Final = 0xF4
_STI: Final = 0xFB
_POP_SS: Final = 0x17
_MOV_SREG: Final = 0x8E
_PIC_PORTS: Final = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)
_NOWHERE: Final = 0x20_0000
"""A stop address that real mode cannot reach."""


@final
class UnicornCpu:
    """A real-mode x86 processor, its 8259 pair (which is ``sink``) and its doorbells.

    Args:
        io: Where ``in`` and ``out`` go; called on the thread that runs :meth:`run`.

    Raises:
        CpuError: Unicorn cannot be started.
    """

    __slots__ = ("_awake", "_bus", "_failure", "_halted", "_io", "_off", "_uc", "sink")

    name = "unicorn"

    def __init__(self, io: PortIo) -> None:
        self._io = io
        self._bus = IoBus()
        self._awake = threading.Event()
        self._off = False
        self._halted = False
        self._failure: BaseException | None = None
        self.sink = Pic(on_output=self._on_intr)
        for port in _PIC_PORTS:
            io.on_read(port, register(partial(self.sink.io_read, port)))
            io.on_write(port, words(partial(self.sink.io_write, port)))
        try:
            self._uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16)
            self._uc.mem_map(0, MEMORY_SIZE)
            self._uc.hook_add(unicorn.UC_HOOK_INSN, self._in, aux1=x86.UC_X86_INS_IN)
            self._uc.hook_add(unicorn.UC_HOOK_INSN, self._out, aux1=x86.UC_X86_INS_OUT)
        except unicorn.UcError as error:
            raise CpuError(f"the Unicorn emulator does not start: {error}") from error

    def load(self, address: int, image: bytes) -> None:
        """Copy the program into RAM and begin there, as after a reset that put 0 into every segment.

        Each byte that could be a ``hlt`` gets a hook: Unicorn returns from a halt and from a used-up count in the same way,
        and a program that merely stands behind a ``hlt`` (an interrupt just returned there) must not be put to sleep.
        """
        self._uc.mem_write(address, image)
        for offset in (offset for offset, byte in enumerate(image) if byte == _HLT):
            at = address + offset
            self._uc.hook_add(unicorn.UC_HOOK_CODE, self._hlt, begin=at, end=at)
        for segment in (x86.UC_X86_REG_CS, x86.UC_X86_REG_DS, x86.UC_X86_REG_ES, x86.UC_X86_REG_SS):
            self._uc.reg_write(segment, 0)
        self._uc.reg_write(x86.UC_X86_REG_IP, address)
        self._uc.reg_write(x86.UC_X86_REG_EFLAGS, 0x2)
        self._halted = False

    def add_doorbell(self, eventfd: EventFd, *, port: int, value: int) -> None:
        """Signal ``eventfd`` when the guest writes the byte ``value`` to ``port``."""
        self._bus.ioeventfd(eventfd, address=port, length=1, datamatch=value, space="pio")

    def stop(self) -> None:
        """Make :meth:`run` return soon. Any thread."""
        self._off = True
        self._leave()

    def run(self) -> None:
        """Run until :meth:`stop`.

        Raises:
            CpuError: The guest did something impossible: an instruction or an address that is not there, or a ``hlt`` with
                interrupts disabled, which nothing would ever end.
        """
        while not self._off:
            self.step(_SLICE)

    def step(self, limit: int) -> None:
        """Take an interrupt if one may be taken now, else run at most ``limit`` instructions, else sleep in ``hlt``.

        Raises:
            CpuError: As :meth:`run`.
        """
        # Cleared before the look at INTR: whatever rises after the look sets it again, and is not slept through.
        self._awake.clear()
        wanted = self.sink.output
        if wanted and self._interrupts_enabled():
            if not self._in_shadow():
                self._interrupt(self.sink.intack())
                return
            limit = 1
        elif wanted:
            limit = min(limit, _WINDOW)
        if not self._halted:
            self._emulate(limit)
        elif not self._interrupts_enabled():
            raise CpuError("the guest halted with interrupts disabled")
        elif not self._off:
            self._awake.wait()

    def close(self) -> None:
        """Nothing is held that the garbage collector does not free."""

    def _on_intr(self, level: bool) -> None:  # noqa: FBT001  as Pic calls it
        if level:
            self._leave()

    def _leave(self) -> None:
        """Leave the emulator soon, or wake from ``hlt``. Any thread; the processor's own too, from a port write."""
        self._awake.set()

    def _emulate(self, limit: int) -> None:
        begin = self._linear(x86.UC_X86_REG_CS, self._uc.reg_read(x86.UC_X86_REG_IP))
        try:
            self._uc.emu_start(begin, _NOWHERE, count=limit)
        except unicorn.UcError as error:
            at = self._linear(x86.UC_X86_REG_CS, self._uc.reg_read(x86.UC_X86_REG_IP))
            raise CpuError(f"the guest crashed at {at:#x}: {error}") from error
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _interrupt(self, vector: int) -> None:
        """Enter the handler: push FLAGS, CS and IP, clear IF and TF, jump through the vector table."""
        uc = self._uc
        flags = uc.reg_read(x86.UC_X86_REG_EFLAGS)
        frame = (uc.reg_read(x86.UC_X86_REG_IP), uc.reg_read(x86.UC_X86_REG_CS), flags & 0xFFFF)
        pointer = uc.reg_read(x86.UC_X86_REG_SP)
        for word in reversed(frame):
            pointer = (pointer - 2) & 0xFFFF
            uc.mem_write(self._linear(x86.UC_X86_REG_SS, pointer), word.to_bytes(2, "little"))
        entry = bytes(uc.mem_read(vector * 4, 4))
        uc.reg_write(x86.UC_X86_REG_SP, pointer)
        uc.reg_write(x86.UC_X86_REG_EFLAGS, flags & ~(_IF | _TF))
        uc.reg_write(x86.UC_X86_REG_CS, int.from_bytes(entry[2:], "little"))
        uc.reg_write(x86.UC_X86_REG_IP, int.from_bytes(entry[:2], "little"))
        self._halted = False

    def _interrupts_enabled(self) -> bool:
        return bool(self._uc.reg_read(x86.UC_X86_REG_EFLAGS) & _IF)

    def _in_shadow(self) -> bool:
        """Whether the instruction before this one may have been one that holds interrupts off for one more.

        It only looks at the bytes, so it may be wrong after a jump to just behind such an instruction. Then the interrupt
        is taken an instruction later than it could have been, which no program can tell.
        """
        at = self._uc.reg_read(x86.UC_X86_REG_IP)
        if at < 2:
            return False
        before, last = self._uc.mem_read(self._linear(x86.UC_X86_REG_CS, at - 2), 2)
        return last in {_STI, _POP_SS} or (before == _MOV_SREG and last & 0xF8 == 0xD0)

    def _linear(self, segment: int, offset: int) -> int:
        return (int(self._uc.reg_read(segment)) << 4) + offset

    # The hooks. An exception must not unwind through the emulator's C code: it is kept, and raised when the run has ended.

    def _hlt(self, _uc: unicorn.Uc, _address: int, _size: int, _data: object) -> None:
        self._halted = True

    def _in(self, _uc: unicorn.Uc, port: int, size: int, _data: object) -> int:
        return self._guard(lambda: int.from_bytes(self._io.read(port, size), "little"))

    def _out(self, _uc: unicorn.Uc, port: int, size: int, value: int, _data: object) -> None:
        self._guard(lambda: self._write(port, value & ((1 << 8 * size) - 1), size))

    def _write(self, port: int, value: int, size: int) -> int:
        if not self._bus.write(port, value, size, space="pio"):
            self._io.write(port, value.to_bytes(size, "little"), size)
        if self._awake.is_set():
            self._uc.emu_stop()
        return 0

    def _guard(self, access: Callable[[], int]) -> int:
        try:
            return access()
        except BaseException as error:
            self._failure = error
            self._uc.emu_stop()
            return 0
