"""A sink that is a KVM virtual machine with an in-kernel irqchip.

Three ways into the guest, the fastest that is allowed and possible: the kernel watches the eventfd itself (``offload``,
``KVM_IRQFD``); the top half makes the ioctl (``try_inject``); the work queue makes it (``inject``).

The ioctls speak of gsis, an :class:`Interrupt` of one pin or message. So the sink owns the VM's routing table
(``kvm_routes.py``): every pin of every chip gets a gsi of its own, beside the kernel's default entries, and messages that are
offloaded get one each. A level-triggered line is always driven through a kernel irqfd with resample (``kvm_line.py``), even when
the trigger is written by this process.

With a split irqchip the pins are user space's, and their gsis, 0 to 23, have another use: the kernel leaves the vCPU with
``KVM_EXIT_IOAPIC_EOI`` for exactly the vectors of the level-triggered messages that are routed there. So the messages of the
IOAPIC in front of the sink are, though no irqfd is ever bound to these gsis.
"""

from __future__ import annotations

import contextlib
import errno
import warnings
import weakref
from typing import TYPE_CHECKING, Self, final

from aioirqfd.errors import EventFdBusyError, RoutingError
from aioirqfd.irqfd.guard import call_each
from aioirqfd.irqfd.interrupt import ASSERT, DEASSERT, PULSE, IrqchipPin, Msi
from aioirqfd.irqfd.manager_node import words
from aioirqfd.irqfd.routing import ALL_PINS, RoutingTable
from aioirqfd.kvm.ioctls import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
    KVM_MSI_VALID_DEVID,
)
from aioirqfd.nodes import Child
from aioirqfd.sinks import kvm_pins
from aioirqfd.sinks.kvm_line import KvmLine
from aioirqfd.sinks.kvm_routes import PIC_PINS_EACH, KernelRoutes, pin_gsi
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from aioirqfd.eventfd import EventFd
    from aioirqfd.irqfd.interrupt import Interrupt, Route
    from aioirqfd.kvm import Vm


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

    __slots__ = ("__weakref__", "_ack", "_fast", "_lines", "_offload", "_routes", "_vm")

    def __init__(self, vm: Vm, *, offload: bool = True, fast: bool = True) -> None:
        self._vm = vm
        self._offload = offload
        self._fast = fast
        self._ack: Callable[[int], None] | None = None
        self._lines: dict[Route, KvmLine] = {}
        self._routes = KernelRoutes(vm)

    def bind(self, ack: Callable[[int], None]) -> None:
        """Take the manager's ack."""
        self._ack = ack

    def default_routing(self) -> RoutingTable:
        """The table of a manager that is given none, the kernel's own: gsi n is pin n of each chip; nothing with a split irqchip."""
        return RoutingTable.of_pins(ALL_PINS if self._routes.pins else ())

    def obstacle(self, interrupt: Interrupt) -> str | None:
        """See :class:`aioirqfd.ExplainingSink`: what the chips in the kernel say of a pin. Any thread.

        Raises:
            OSError: As the kernel says.
        """
        route = interrupt.route
        return None if isinstance(route, Msi) or not self._routes.pins else kvm_pins.obstacle(self._vm, route)

    def inspect(self) -> dict[str, object]:
        """See :class:`aioirqfd.InspectedSink`: the lines that this process drives, and what the chips in the kernel say of their pins.

        Raises:
            OSError: As the kernel says.
        """
        lines = {
            words(route): {"held_by": [f"gsi {gsi}" for gsi in sorted(line.holders)]}
            for route, line in self._lines.items()
        }
        pins = self._routes.pins
        return {
            "irqchip": "whole" if pins else "split",
            "lines": lines,
            **({"chips": Child(lambda: kvm_pins.inspect(self._vm))} if pins else {}),
        }

    async def inject(self, interrupt: Interrupt) -> None:
        """Make the ioctl.

        Raises:
            OSError: As the kernel says.
        """
        self._deliver(interrupt)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Make the ioctl, unless made with ``fast=False``. Raises as :meth:`inject` does.

        Threads:
            Any, but what lowers a line is left to the work queue of the loop that has raised it.
        """
        if interrupt.action is DEASSERT:
            line = self._lines.get(interrupt.route)
            if line is not None and not (line.here or line.deaf):
                return False
        elif not self._fast:
            return False
        self._deliver(interrupt)
        return True

    def _deliver(self, interrupt: Interrupt) -> None:
        route = interrupt.route
        if isinstance(route, Msi):
            flags = 0 if route.devid is None else KVM_MSI_VALID_DEVID
            # Nobody there to take it (row S03): an irqfd's message vanishes the same way (row M03).
            with contextlib.suppress(PermissionError):
                self._vm.signal_msi(route.address, route.data, flags, route.devid or 0)
        elif not self._routes.pins:
            raise RoutingError(
                f"gsi {interrupt.gsi}: with a split irqchip {route!r} is user space's: put an IoApic before this sink"
            )
        elif interrupt.action is PULSE:
            gsi = pin_gsi(route)
            self._vm.irq_line(gsi, 1)
            self._vm.irq_line(gsi, 0)
        elif interrupt.action is ASSERT:
            self._line(interrupt.gsi, route).assert_for(interrupt.gsi)
        else:
            line = self._lines.get(route)
            if line is not None and interrupt.gsi in line.holders:
                # Not by an end of interrupt, which lowers it in the kernel: the last one out lowers it (row R14).
                line.holders.discard(interrupt.gsi)
                if not line.holders:
                    self._close_line(route)

    # -- level-triggered lines ---------------------------------------------------------------------------------------

    def _line(self, gsi: int, route: IrqchipPin) -> KvmLine:
        line = self._lines.get(route)
        if line is not None and line.deaf:
            self._close_line(route)
            line = None
        if line is None:
            # Weakly: the loop would otherwise keep a sink that was dropped.
            line = self._lines[route] = KvmLine(self._vm, pin_gsi(route), gsi, _weakly(self._on_end))
        return line

    def _on_end(self, line: KvmLine) -> None:
        self._acknowledge(line.ended())

    def _acknowledge(self, gsis: Iterable[int]) -> None:
        if self._ack is not None:
            call_each(self._ack, gsis)

    def _close_line(self, route: Route) -> None:
        self._acknowledge(self._lines.pop(route).close())

    # -- the kernel's own irqfd --------------------------------------------------------------------------------------

    def offload(self, eventfd: EventFd, interrupt: Interrupt, resamplefd: EventFd | None) -> bool:
        """``KVM_IRQFD``. False where the kernel cannot: resample with a split irqchip (row I04), no gsi left for a message.

        Raises:
            EventFdBusyError: EBUSY: an irqfd of any VM on this host has it (row I12).
            RoutingError: EINVAL: the kernel refuses the message.
            OSError: As the kernel says. Whatever is raised, nothing was changed.
        """
        if not self._offload:
            return False
        route = interrupt.route
        with contextlib.ExitStack() as undo:
            if isinstance(route, Msi):
                kernel_gsi = self._routes.hold(route)
                if kernel_gsi is None:
                    return False
                undo.callback(self._routes.release, route)
            elif not self._routes.pins:
                return False
            else:
                kernel_gsi = pin_gsi(route)
                if resamplefd is not None and route in self._lines:
                    # What the guest has ended by now, the kernel will not tell this one of.
                    self._on_end(self._lines[route])
            flags = 0 if resamplefd is None else KVM_IRQFD_FLAG_RESAMPLE
            try:
                self._vm.irqfd(eventfd, kernel_gsi, flags=flags, resamplefd=-1 if resamplefd is None else resamplefd)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise EventFdBusyError(
                        f"fd {eventfd.fileno()} is watched for a virtual machine of this host already: deassign that irqfd first"
                    ) from None
                if error.errno == errno.EINVAL:
                    return False
                raise
            undo.pop_all()
        return True

    def reclaim(self, eventfd: EventFd, interrupt: Interrupt) -> bool:
        """``KVM_IRQFD`` with DEASSIGN: a barrier (row I20). True: it is a line, and it is up."""
        route = interrupt.route
        if isinstance(route, Msi):
            # If that fails, whoever has another descriptor of the eventfd still interrupts by the message: it keeps its gsi.
            self._vm.irqfd(eventfd, self._routes.held(route), flags=KVM_IRQFD_FLAG_DEASSIGN)
            self._routes.release(route)
            return False
        if interrupt.action is ASSERT:
            return self._reclaim_line(eventfd, interrupt.gsi, route)
        self._vm.irqfd(eventfd, pin_gsi(route), flags=KVM_IRQFD_FLAG_DEASSIGN)
        return False

    def _reclaim_line(self, eventfd: EventFd, gsi: int, route: IrqchipPin) -> bool:
        # The last resample irqfd of a gsi takes the line down with it (row R14), and the guest's interrupt would be lost. So
        # another one is there first, which keeps it as it is (row R13), and hears of the end of interrupt.
        try:
            line = self._line(gsi, route)
        except OSError:
            # There is no room for its descriptors, say. Then everybody is asked for anew, as at the end of the interrupt.
            before = self._level(route)
            self._vm.irqfd(eventfd, pin_gsi(route), flags=KVM_IRQFD_FLAG_DEASSIGN)
            if before is not False and self._level(route) is not True:
                self._acknowledge((gsi,))
            return False
        try:
            self._vm.irqfd(eventfd, pin_gsi(route), flags=KVM_IRQFD_FLAG_DEASSIGN)
            if self._level(route) is not False:
                line.hold(gsi)
        finally:
            if not line.holders:
                self._close_line(route)
        return gsi in line.holders

    def _level(self, pin: IrqchipPin) -> bool | None:
        """The level of a pin's line; None: the kernel does not say, for want of memory perhaps.

        Of an IOAPIC pin only if it is level-triggered, as a line that is resampled is.
        """
        try:
            if pin.chip == "ioapic":
                return bool(self._vm.get_irqchip(KVM_IRQCHIP_IOAPIC).ioapic.irr >> pin.pin & 1)
            chip = KVM_IRQCHIP_PIC_MASTER if pin.pin < PIC_PINS_EACH else KVM_IRQCHIP_PIC_SLAVE
            return bool(self._vm.get_irqchip(chip).pic.last_irr >> pin.pin % PIC_PINS_EACH & 1)
        except OSError:
            return None

    # -- a user-space IOAPIC's ends of interrupt -----------------------------------------------------------------------

    def set_eoi_message(self, pin: int, message: Msi | None) -> None:
        """Have the kernel give a ``KVM_EXIT_IOAPIC_EOI`` for a pin's message. With a whole irqchip nothing happens.

        Threads:
            Any.

        Raises:
            OSError: As the kernel says; nothing was changed.
        """
        if not self._routes.pins:
            self._routes.end(pin, message)

    # -- closing -----------------------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "It is its virtual machine's: make another sink for another one.")

    def close(self) -> None:
        """Let go of the level-triggered lines; idempotent. After the manager."""
        call_each(self._close_line, list(self._lines))

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


def _weakly(method: Callable[[KvmLine], None]) -> Callable[[KvmLine], None]:
    reference = weakref.WeakMethod(method)

    def call(line: KvmLine) -> None:
        target = reference()
        if target is not None:
            target(line)

    return call
