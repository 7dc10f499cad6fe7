"""What ``DEVICE_SET_IRQS`` does: which eventfd each interrupt goes to, and what is masked.

The vectors of MSI and MSI-X are the same ones, the device's; a client uses one kind at a time. The eventfds of a kind are let go of
one by one, or all at once by a count of 0, and what is signalled in between is pending.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, final

from aioirqfd.eventfd import EventFd
from aioirqfd.pci.interrupts import PIN
from aioirqfd.vfio_user.errors import RefusedError
from aioirqfd.vfio_user.messages import IRQS, Irq, IrqFlag, SetIrq

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioirqfd.pci.device import PciDevice
    from aioirqfd.pci.function import PciFunction

_DATA: Final = SetIrq.DATA_NONE | SetIrq.DATA_BOOL | SetIrq.DATA_EVENTFD
_ACTION: Final = SetIrq.MASK | SetIrq.UNMASK | SetIrq.TRIGGER
_FLAGS: Final = {
    Irq.INTX: IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED,
    Irq.MSI: IrqFlag.EVENTFD | IrqFlag.MASKABLE,
    Irq.MSIX: IrqFlag.EVENTFD | IrqFlag.MASKABLE,
    Irq.ERR: IrqFlag.EVENTFD,
    Irq.REQ: IrqFlag.EVENTFD,
}


@final
class Irqs:
    """The interrupts of a function as a client sees them.

    Args:
        function: The function.

    Threads: the loop's.
    """

    __slots__ = ("_counts", "_interrupts", "_kinds", "_notices", "_others")

    def __init__(self, function: PciFunction[PciDevice]) -> None:
        self._interrupts = function.interrupts
        self._counts = {
            Irq.INTX: int(function.device.intx),
            Irq.MSI: 0 if function.msi is None else function.msi.vectors,
            Irq.MSIX: 0 if function.msix is None else function.msix.vectors,
            Irq.ERR: 1,
            Irq.REQ: 1,
        }
        self._kinds: dict[int, Irq] = {}  # by vector, or PIN: by which kind it was bound or masked
        self._others: dict[Irq, EventFd] = {}  # ERR and REQ
        self._notices: dict[tuple[Irq, int, SetIrq], EventFd] = {}

    def info(self, index: int) -> tuple[IrqFlag, int]:
        """What ``DEVICE_GET_IRQ_INFO`` says of a kind: flags, and how many there are.

        Raises:
            RefusedError: EINVAL: there is no such kind.
        """
        kind = _kind(index)
        return _FLAGS[kind], self._counts[kind]

    def set(self, flags: int, index: int, start: int, count: int, data: bytes, fds: list[int]) -> None:
        """Do what a ``DEVICE_SET_IRQS`` says.

        Args:
            flags: As it has them.
            index: As it has it.
            start: As it has it.
            count: As it has it.
            data: What follows.
            fds: Its file descriptors; those that are kept are taken out.

        Raises:
            RefusedError: EINVAL: nothing was changed.
        """
        kind = _kind(index)
        what, action = SetIrq(flags & _DATA), SetIrq(flags & _ACTION)
        if flags > _DATA | _ACTION or what.value.bit_count() != 1 or action.value.bit_count() != 1:
            raise RefusedError(errno.EINVAL, f"SET_IRQS with flags {flags:#x}: one kind of data, and one action")
        if action is not SetIrq.TRIGGER and not _FLAGS[kind] & IrqFlag.MASKABLE:
            raise RefusedError(errno.EINVAL, f"{kind.name} cannot be masked")
        if start + count > self._counts[kind]:
            raise RefusedError(errno.EINVAL, f"{kind.name} {start}..{start + count - 1} of {self._counts[kind]}")
        if len(data) != (count if what is SetIrq.DATA_BOOL else 0):
            raise RefusedError(errno.EINVAL, f"{len(data)} bytes of data for {count} interrupts")
        if fds and (what is not SetIrq.DATA_EVENTFD or len(fds) != count):
            raise RefusedError(errno.EINVAL, f"{len(fds)} file descriptors for {count} interrupts")
        numbers = range(start, start + count)
        if not count:
            if (start, what, action) != (0, SetIrq.DATA_NONE, SetIrq.TRIGGER):
                raise RefusedError(errno.EINVAL, "a count of 0 is for disabling all: no data, start 0, action trigger")
            self._disable(kind)
        elif what is SetIrq.DATA_EVENTFD:
            self._give(kind, action, numbers, _eventfds(fds))
        else:
            for number, chosen in zip(numbers, data or b"\1" * count, strict=True):
                if chosen:
                    self._do(kind, action, number)

    # -- eventfds ----------------------------------------------------------------------------------------------------

    def _give(self, kind: Irq, action: SetIrq, numbers: Iterable[int], eventfds: list[EventFd]) -> None:
        """Give eventfds to interrupts, or take theirs away."""
        given: list[EventFd | None] = [*eventfds]
        for position, number in enumerate(numbers):
            eventfd = given[position] if given else None
            if action is not SetIrq.TRIGGER:
                self._notify(kind, action, number, eventfd)
            elif kind in {Irq.ERR, Irq.REQ}:
                old = self._others.pop(kind, None)
                if old is not None:
                    old.close()
                if eventfd is not None:
                    self._others[kind] = eventfd
            else:
                vector = PIN if kind is Irq.INTX else number
                self._interrupts.bind(vector, eventfd)
                self._kinds[vector] = kind

    def _notify(self, kind: Irq, action: SetIrq, number: int, eventfd: EventFd | None) -> None:
        """Somebody wants to hear of it when an interrupt is masked or unmasked.

        But of INTx's unmasking it is the client that tells, by its hypervisor: as in the kernel's VFIO, where KVM signals
        this eventfd at the guest's end of interrupt.
        """
        if kind is Irq.INTX and action is SetIrq.UNMASK:
            self._interrupts.bind_end_of_interrupt(eventfd)
            return
        old = self._notices.pop((kind, number, action), None)
        if old is not None:
            old.close()
        if eventfd is not None:
            self._notices[kind, number, action] = eventfd

    # -- actions -----------------------------------------------------------------------------------------------------

    def _do(self, kind: Irq, action: SetIrq, number: int) -> None:
        if kind in {Irq.ERR, Irq.REQ}:
            self.signal(kind)
            return
        vector = PIN if kind is Irq.INTX else number
        if action is SetIrq.TRIGGER:
            if vector == PIN:
                self._interrupts.pulse_pin()
            else:
                self._interrupts.signal(vector)
            return
        self._kinds[vector] = kind
        if action is SetIrq.MASK:
            self._interrupts.mask(vector)
        else:
            self._interrupts.unmask(vector)
        notice = self._notices.get((kind, number, action))
        if notice is not None:
            notice.signal()

    def signal(self, kind: Irq) -> bool:
        """Tell the client by ``ERR`` or ``REQ``; False: it does not listen."""
        eventfd = self._others.get(kind)
        if eventfd is not None:
            eventfd.signal()
        return eventfd is not None

    def _disable(self, kind: Irq) -> None:
        for vector in [vector for vector, bound in self._kinds.items() if bound is kind]:
            del self._kinds[vector]
            self._interrupts.bind(vector, None)
            self._interrupts.unmask(vector)
        if kind is Irq.INTX:
            self._interrupts.bind_end_of_interrupt(None)
        for key in [key for key in self._notices if key[0] is kind]:
            self._notices.pop(key).close()
        other = self._others.pop(kind, None)
        if other is not None:
            other.close()

    def release(self) -> None:
        """The client has gone: nobody is to be told any more, and interrupts are pending. Idempotent."""
        for kind in Irq:
            self._disable(kind)


def _kind(index: int) -> Irq:
    if not 0 <= index < IRQS:
        raise RefusedError(errno.EINVAL, f"interrupts of kind {index}; there are 0..{IRQS - 1}")
    return Irq(index)


def _eventfds(fds: list[int]) -> list[EventFd]:
    """The eventfds of a message, all of them or none."""
    try:
        for fd in fds:
            EventFd.from_fd(fd)
        made = [EventFd.from_fd(fd, owns=True) for fd in fds]
    except OSError as error:
        raise RefusedError(errno.EINVAL, f"a file descriptor that is no eventfd: {error}") from error
    fds.clear()
    return made
