"""A sink that is a KVM virtual machine with an in-kernel irqchip.

Three ways into the guest, the fastest that is allowed and possible: the kernel watches the eventfd itself (``offload``,
``KVM_IRQFD``); the top half makes the ioctl (``try_inject``); the work queue makes it (``inject``).

The ioctls speak of gsis, an :class:`Interrupt` of one pin or message. So the sink owns the VM's routing table: every pin of
every chip gets a gsi of its own, beside the kernel's default entries, and messages that are offloaded get one each.

A level-triggered line is always driven through a kernel irqfd with resample, even when the trigger is written by this process:
only then does the kernel lower the line inside the guest's end of interrupt. A line raised by ``KVM_IRQ_LINE`` would stay up
until user space heard of it, and the guest would take the same interrupt again and again (row R09).

With a split irqchip the pins are user space's, and their gsis, 0 to 23, have another use: the kernel leaves the vCPU with
``KVM_EXIT_IOAPIC_EOI`` for exactly the vectors of the level-triggered messages that are routed there. So the messages of the
IOAPIC in front of the sink are, though no irqfd is ever bound to these gsis.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd.errors import EventFdBusyError, RoutingError
from aioirqfd.irqfd.interrupt import IOAPIC_PINS, PIC_PINS, PINS, Action, IrqchipPin, Msi
from aioirqfd.irqfd.routing import ALL_PINS, RoutingTable
from aioirqfd.kvm import RoutingEntry
from aioirqfd.kvm.ioctls import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
    KVM_MSI_VALID_DEVID,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.interrupt import Interrupt, Route
    from aioirqfd.kvm import Vm

_PIC_PINS_EACH: Final = 8
_IOAPIC_GSI: Final = 1024
_PIC_GSI: Final = _IOAPIC_GSI + IOAPIC_PINS
_MSI_GSI: Final = _PIC_GSI + PIC_PINS
_MAX_GSI: Final = 4096


def _pin_entry(gsi: int, pin: int) -> RoutingEntry:
    chip = KVM_IRQCHIP_PIC_MASTER if pin < _PIC_PINS_EACH else KVM_IRQCHIP_PIC_SLAVE
    return RoutingEntry.irqchip(gsi, chip, pin % _PIC_PINS_EACH)


def _fixed_entries() -> list[RoutingEntry]:
    """The kernel's default table, for its own timers; then a gsi for each single pin.

    The order matters: an end of interrupt is mapped back to the last gsi listed for a pin (row G08), which must be ours.
    """
    entries: list[RoutingEntry] = []
    for pin in range(IOAPIC_PINS):
        entries.append(RoutingEntry.irqchip(pin, KVM_IRQCHIP_IOAPIC, pin))
        if pin < PIC_PINS:
            entries.append(_pin_entry(pin, pin))
    entries += [RoutingEntry.irqchip(_IOAPIC_GSI + pin, KVM_IRQCHIP_IOAPIC, pin) for pin in range(IOAPIC_PINS)]
    entries += [_pin_entry(_PIC_GSI + pin, pin) for pin in range(PIC_PINS)]
    return entries


@final
class _Line:
    """A level-triggered line: the trigger of a kernel irqfd, and what the kernel signals at the end of interrupt.

    Attributes:
        gsi: The last that asserted it: hears of an end of interrupt that none of them waits for (row R05).
        holders: The gsis that hold it up.
    """

    __slots__ = ("gsi", "holders", "kernel_gsi", "loop", "resample", "trigger")

    def __init__(self, gsi: int, kernel_gsi: int) -> None:
        self.gsi = gsi
        self.kernel_gsi = kernel_gsi
        self.holders: set[int] = set()
        self.loop = asyncio.get_running_loop()
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.trigger = os.eventfd(0, flags)
        self.resample = os.eventfd(0, flags)

    def hold(self, gsi: int) -> None:
        self.gsi = gsi
        self.holders.add(gsi)


@final
class KvmSink:
    """Delivers into a KVM guest. Pins of PIC and IOAPIC, and MSIs.

    Args:
        vm: A :class:`aioirqfd.kvm.Vm` with an in-kernel irqchip, whole or split. Stays the caller's; its routing table becomes
            the sink's. With a split irqchip it takes messages alone: put an :class:`aioirqfd.irqchip.IoApic` before it, and
            give that one's ``eoi`` the vector of each ``KVM_EXIT_IOAPIC_EOI`` (:meth:`aioirqfd.kvm.Vcpu.eoi_exit`).
        offload: Whether the kernel may watch eventfds by itself.
        fast: Whether the top half may make the ioctl, a microsecond or two; otherwise it is left to the work queue.

    A context manager; :meth:`close` is needed where level-triggered lines were driven without offload.
    """

    __slots__ = (
        "__weakref__",
        "_ack",
        "_endings",
        "_fast",
        "_fixed",
        "_lines",
        "_messages",
        "_offload",
        "_routing",
        "_vm",
    )

    def __init__(self, vm: Vm, *, offload: bool = True, fast: bool = True) -> None:
        self._vm = vm
        self._offload = offload
        self._fast = fast
        self._ack: Callable[[int], None] | None = None
        self._lines: dict[Route, _Line] = {}
        self._messages: dict[Msi, list[int]] = {}  # [gsi, users]
        self._endings: dict[int, Msi] = {}  # of a user-space IOAPIC's pins
        # The table is changed by the loop, and by vCPU threads whose guest programs such an IOAPIC.
        self._routing = threading.Lock()
        self._fixed = _fixed_entries()
        try:
            self._route()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # With a split irqchip the pins are user space's, and the kernel routes messages alone (rows G06, S05). Without
            # any it routes nothing, and says EINVAL once more (row G01).
            self._fixed = []
            self._route()

    def bind(self, ack: Callable[[int], None]) -> None:
        """Take the manager's ack."""
        self._ack = ack

    def default_routing(self) -> RoutingTable:
        """The table of a manager that is given none, the kernel's own: gsi n is pin n of each chip; nothing with a split irqchip."""
        return RoutingTable.of_pins(ALL_PINS if self._fixed else ())

    async def inject(self, interrupt: Interrupt) -> None:
        """Make the ioctl.

        Raises:
            OSError: As the kernel says.
        """
        self._deliver(interrupt)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Make the ioctl, unless made with ``fast=False``. Raises as :meth:`inject` does."""
        if self._fast or interrupt.action is Action.DEASSERT:
            self._deliver(interrupt)
            return True
        return False

    def _deliver(self, interrupt: Interrupt) -> None:
        route = interrupt.route
        if isinstance(route, Msi):
            flags = 0 if route.devid is None else KVM_MSI_VALID_DEVID
            # Nobody there to take it (row S03): an irqfd's message vanishes the same way (row M03).
            with contextlib.suppress(PermissionError):
                self._vm.signal_msi(route.address, route.data, flags, route.devid or 0)
        elif not self._fixed:
            raise RoutingError(f"gsi {interrupt.gsi}: with a split irqchip {route!r} is user space's")
        elif interrupt.action is Action.PULSE:
            gsi = _kernel_gsi(route)
            self._vm.irq_line(gsi, 1)
            self._vm.irq_line(gsi, 0)
        elif interrupt.action is Action.ASSERT:
            line = self._lines.get(route)
            if line is None:
                line = self._open_line(interrupt.gsi, route)
            line.hold(interrupt.gsi)
            os.eventfd_write(line.trigger, 1)
        else:
            line = self._lines.get(route)
            if line is not None and interrupt.gsi in line.holders:
                # Not by an end of interrupt, which lowers it in the kernel: the last one out lowers it (row R14).
                line.holders.discard(interrupt.gsi)
                if not line.holders:
                    self._close_line(route)

    # -- level-triggered lines ---------------------------------------------------------------------------------------

    def _open_line(self, gsi: int, route: IrqchipPin) -> _Line:
        line = _Line(gsi, _kernel_gsi(route))
        try:
            self._vm.irqfd(line.trigger, line.kernel_gsi, flags=KVM_IRQFD_FLAG_RESAMPLE, resamplefd=line.resample)
        except OSError:
            os.close(line.trigger)
            os.close(line.resample)
            raise
        # Weakly: the loop would otherwise keep a sink that was dropped.
        line.loop.add_reader(line.resample, _weakly(self._resampled, line))
        self._lines[route] = line
        return line

    def _resampled(self, line: _Line) -> None:
        """Pass on an end of interrupt, if there was one: to whoever held the line up, several gsis perhaps."""
        try:
            os.eventfd_read(line.resample)
        except BlockingIOError:
            return
        gsis, line.holders = line.holders or {line.gsi}, set()
        if self._ack is not None:
            for gsi in sorted(gsis):
                self._ack(gsi)

    def _close_line(self, route: Route) -> None:
        line = self._lines.pop(route)
        if not line.loop.is_closed():
            line.loop.remove_reader(line.resample)
        with contextlib.suppress(OSError):
            # Before the close, or the kernel would hold on to the line until it noticed (row R15).
            self._vm.irqfd(line.trigger, line.kernel_gsi, flags=KVM_IRQFD_FLAG_DEASSIGN)
        try:
            # The guest may have ended the interrupt, and the loop not have had its turn since; from here on it cannot.
            self._resampled(line)
        finally:
            os.close(line.trigger)
            os.close(line.resample)

    # -- the kernel's own irqfd --------------------------------------------------------------------------------------

    def offload(self, eventfd: EventFd, interrupt: Interrupt, resamplefd: EventFd | None) -> bool:
        """``KVM_IRQFD``. False where the kernel cannot: resample with a split irqchip (row I04), no gsi left for a message.

        Raises:
            EventFdBusyError: EBUSY: an irqfd of any VM on this host has it (row I12).
        """
        if not self._offload:
            return False
        route = interrupt.route
        if isinstance(route, Msi):
            if not self._hold_message(route):
                return False
        elif not self._fixed:
            return False
        elif resamplefd is not None and route in self._lines:
            # What the guest has ended by now, the kernel will not tell this one of.
            self._resampled(self._lines[route])
        flags = 0 if resamplefd is None else KVM_IRQFD_FLAG_RESAMPLE
        try:
            self._vm.irqfd(
                eventfd, self._gsi_of(route), flags=flags, resamplefd=-1 if resamplefd is None else resamplefd
            )
        except OSError as error:
            self._release_message(route)
            if error.errno == errno.EBUSY:
                raise EventFdBusyError(f"fd {eventfd.fileno()}") from None
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def reclaim(self, eventfd: EventFd, interrupt: Interrupt) -> bool:
        """``KVM_IRQFD`` with DEASSIGN: a barrier (row I20). True: it is a line, and it is up."""
        route = interrupt.route
        if isinstance(route, IrqchipPin) and interrupt.action is Action.ASSERT:
            # The last resample irqfd of a gsi takes the line down with it (row R14), and the guest's interrupt would be lost.
            # So another one is there first, which keeps it as it is (row R13), and hears of the end of interrupt.
            line = self._lines.get(route)
            if line is None:
                line = self._open_line(interrupt.gsi, route)
            try:
                self._vm.irqfd(eventfd, line.kernel_gsi, flags=KVM_IRQFD_FLAG_DEASSIGN)
                if self._is_up(route):
                    line.hold(interrupt.gsi)
            finally:
                if not line.holders:
                    self._close_line(route)
            return interrupt.gsi in line.holders
        self._vm.irqfd(eventfd, self._gsi_of(route), flags=KVM_IRQFD_FLAG_DEASSIGN)
        self._release_message(route)
        return False

    def _is_up(self, pin: IrqchipPin) -> bool:
        """The level of a pin's line. Of an IOAPIC pin only if it is level-triggered, as a line that is resampled is."""
        if pin.chip == "ioapic":
            return bool(self._vm.get_irqchip(KVM_IRQCHIP_IOAPIC).ioapic.irr >> pin.pin & 1)
        chip = KVM_IRQCHIP_PIC_MASTER if pin.pin < _PIC_PINS_EACH else KVM_IRQCHIP_PIC_SLAVE
        return bool(self._vm.get_irqchip(chip).pic.last_irr >> pin.pin % _PIC_PINS_EACH & 1)

    def _gsi_of(self, route: Route) -> int:
        return self._messages[route][0] if isinstance(route, Msi) else _kernel_gsi(route)

    def _hold_message(self, message: Msi) -> bool:
        held = self._messages.get(message)
        if held is None:
            taken = {gsi for gsi, _ in self._messages.values()}
            free = next((gsi for gsi in range(_MSI_GSI, _MAX_GSI) if gsi not in taken), None)
            if free is None:
                return False
            with self._routing:
                self._messages[message] = [free, 1]
            self._route()
        else:
            held[1] += 1
        return True

    def _release_message(self, route: Route) -> None:
        if isinstance(route, Msi):
            held = self._messages[route]
            held[1] -= 1
            if not held[1]:
                with self._routing:
                    del self._messages[route]
                self._route()

    def _route(self) -> None:
        with self._routing:
            messages = [
                RoutingEntry.msi(gsi, message.address, message.data, devid=message.devid)
                for message, (gsi, _) in self._messages.items()
            ]
            endings = [
                RoutingEntry.msi(pin, message.address, message.data, devid=message.devid)
                for pin, message in self._endings.items()
            ]
            self._vm.set_gsi_routing([*self._fixed, *endings, *messages])

    # -- a user-space IOAPIC's ends of interrupt -----------------------------------------------------------------------

    def set_eoi_message(self, pin: int, message: Msi | None) -> None:
        """Have the kernel give a ``KVM_EXIT_IOAPIC_EOI`` for a pin's message. With a whole irqchip nothing happens.

        Threads:
            Any.

        Raises:
            OSError: As the kernel says.
        """
        if self._fixed or self._endings.get(pin) == message:
            return
        with self._routing:
            endings = {other: kept for other, kept in self._endings.items() if other != pin}
            if message is not None:
                endings[pin] = message
            before, self._endings = self._endings, endings
        try:
            self._route()
        except OSError:
            self._endings = before
            raise

    # -- closing -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the level-triggered lines; idempotent. After the manager."""
        for route in list(self._lines):
            self._close_line(route)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_lines", None):
            try:
                warnings.warn(
                    f"unclosed {self!r} with level-triggered lines", ResourceWarning, stacklevel=2, source=self
                )
            finally:
                self.close()


def _weakly(method: Callable[[_Line], None], line: _Line) -> Callable[[], None]:
    reference = weakref.WeakMethod(method)

    def call() -> None:
        target = reference()
        if target is not None:
            target(line)

    return call


def _kernel_gsi(route: IrqchipPin) -> int:
    if route.pin >= PINS[route.chip]:
        raise RoutingError(f"KVM's {route.chip} has pins 0..{PINS[route.chip] - 1}, not {route.pin}")
    return (_IOAPIC_GSI if route.chip == "ioapic" else _PIC_GSI) + route.pin
