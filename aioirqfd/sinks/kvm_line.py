"""A level-triggered line of a virtual machine that this process drives, through a kernel irqfd with resample.

Only so does the kernel lower the line inside the guest's end of interrupt. A line raised by ``KVM_IRQ_LINE`` would stay up until user
space heard of it, and the guest would take the same interrupt again and again (row R09).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from functools import partial
from typing import TYPE_CHECKING, final

from aioirqfd.errors import WouldBlock
from aioirqfd.eventfd import EventFd
from aioirqfd.eventfd.loops import add_reader, remove_reader
from aioirqfd.kvm.ioctls import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.kvm import Vm


@final
class KvmLine:
    """The trigger of a kernel irqfd, and what the kernel signals at the end of interrupt.

    Args:
        vm: The virtual machine.
        kernel_gsi: The kernel's gsi of the pin.
        on_end: Called with the line on the running loop when the kernel has told of an end of interrupt.

    Attributes:
        gsi: The last that asserted it: hears of an end of interrupt that none of them waits for (row R05).
        holders: The gsis that hold it up.

    Raises:
        OSError: EMFILE, or as the kernel says; nothing is left behind.

    Threads:
        The loop's thread.

    A forked child has the same eventfds, and the same epoll behind its copy of the loop: it leaves both to the parent.
    """

    __slots__ = ("_kernel_gsi", "_loop", "_process", "_resample", "_trigger", "_vm", "_watched", "gsi", "holders")

    def __init__(self, vm: Vm, kernel_gsi: int, gsi: int, on_end: Callable[[KvmLine], object]) -> None:
        self.gsi = gsi
        self.holders: set[int] = set()
        self._vm = vm
        self._kernel_gsi = kernel_gsi
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        with contextlib.ExitStack() as undo:
            self._trigger = undo.enter_context(EventFd())
            self._resample = undo.enter_context(EventFd())
            vm.irqfd(self._trigger, kernel_gsi, flags=KVM_IRQFD_FLAG_RESAMPLE, resamplefd=self._resample)
            undo.callback(self._unbind)
            self._watched = add_reader(self._loop, self._resample.fileno(), partial(on_end, self))
            undo.pop_all()

    @property
    def here(self) -> bool:
        """Whether its loop is the one running in this thread."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    @property
    def deaf(self) -> bool:
        """Whether nobody hears of its ends of interrupt any more, because its loop is closed."""
        return self._loop.is_closed()

    @property
    def _inherited(self) -> bool:
        return os.getpid() != self._process

    def assert_for(self, gsi: int) -> None:
        """Raise it, or have it stay up, for a gsi.

        Raises:
            OSError: Its trigger was closed behind its back; EIO: this is a forked child (row I17). The gsi does not hold it up.
        """
        if self._inherited:
            raise OSError(errno.EIO, "the virtual machine is the parent process's")
        new = gsi not in self.holders
        self.hold(gsi)
        try:
            self._trigger.signal()
        except OSError:
            if new:
                self.holders.discard(gsi)
            raise

    def hold(self, gsi: int) -> None:
        """A gsi holds it up."""
        self.gsi = gsi
        self.holders.add(gsi)

    def ended(self) -> tuple[int, ...]:
        """Whose interrupt has ended since the last call, and it is low: those that held it up, several gsis perhaps; or nobody's."""
        if self._inherited:
            return ()
        try:
            self._resample.read_nowait()
        except WouldBlock:
            return ()
        gsis, self.holders = self.holders or {self.gsi}, set()
        return tuple(sorted(gsis))

    def close(self) -> tuple[int, ...]:
        """Lower it, and let go of it.

        Returns:
            As :meth:`ended`: the guest may have ended the interrupt, and the loop not have had its turn since.
        """
        try:
            if not self._inherited:
                remove_reader(self._loop, self._watched)
            self._unbind()
            return self.ended()
        finally:
            if self._watched != self._resample.fileno():
                os.close(self._watched)
            self._trigger.close()
            self._resample.close()

    def _unbind(self) -> None:
        # Before the close, or the kernel would hold on to the line until it noticed (row R15); which it does in any case. From a
        # forked child it takes nothing.
        with contextlib.suppress(OSError):
            self._vm.irqfd(self._trigger, self._kernel_gsi, flags=KVM_IRQFD_FLAG_DEASSIGN)
