"""A place on a :class:`~aioirqfd.pci.PciBus` and the function in it: where its BARs are, whom its doorbells ring, how its interrupts go.

A vector's way is as short as it can be: what the device signals is the eventfd of the vector in an
:class:`~aioirqfd.irqfd.msix.MsixTable`, which the kernel injects by itself where the manager's sink is KVM. A doorbell is an
ioeventfd at the address where the guest has put its BAR, and follows the BAR. Only while something comes between
(:mod:`aioirqfd.faults`) both go by this process.

MSI is served by the same table: it is MSI-X with one message for all vectors, of which the low bits say which.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar, final

from aioirqfd import nodes
from aioirqfd.errors import ClosedError
from aioirqfd.eventfd import EventFd
from aioirqfd.irqfd.msix import MsixTable
from aioirqfd.kvm.ioctls import (
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO,
)
from aioirqfd.pci.capability import Msi, MsiX
from aioirqfd.pci.config import BAR_0, COMMAND, IO_SPACE, MEMORY_SPACE, ROM
from aioirqfd.pci.device import PciDevice
from aioirqfd.pci.function import CONFIG_REGION, ROM_REGION, PciFunction
from aioirqfd.pci.interrupts import PIN
from aioirqfd.serving.reports import Reports, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aioirqfd.ioeventfd import IoEventFd
    from aioirqfd.irqfd.manager import IrqManager
    from aioirqfd.kvm.ram import GuestRam
    from aioirqfd.kvm.vm import Vm
    from aioirqfd.tracer import Tracer

_Device = TypeVar("_Device", bound=PciDevice)
_MSI_ENABLE: Final = 1
_MSI_GRANTED: Final = 4
_MSI_DATA_BITS: Final = 0xFFFF
_ROM_ENABLE: Final = 1
_REFUSALS: Final = frozenset({errno.ENOSPC, errno.EEXIST, errno.ENOMEM, errno.EINVAL})
_INTA: Final = {"pin": "INTx"}


class Window(NamedTuple):
    """Where the guest has put a region.

    Attributes:
        io: In port space.
        start: Its first address.
        end: The one behind its last.
        region: A BAR, or the ROM.
    """

    io: bool
    start: int
    end: int
    region: int


class _Bell(NamedTuple):
    """A doorbell as the kernel knows it, by which it is taken off again."""

    address: int
    length: int
    flags: int
    datamatch: int


@final
class PciSlot(Generic[_Device]):
    """A function that is plugged in. Made by :meth:`aioirqfd.pci.PciBus.plug`.

    Attributes:
        number: Of the slot, 0..31.
        device: What is in it.
        function: The same, as it is served.
        table: Its vectors; None: it has none.
        gsi: Its pin's.
        windows: Where the guest has put its regions, of those that answer now.
        closed: It is served no more.

    Threads: the loop's, but for :meth:`look_again`.
    """

    def __init__(
        self,
        number: int,
        device: _Device,
        *,
        gsi: int,
        irqs: IrqManager,
        vm: Vm | None,
        changed: Callable[[], None],
        tracer: Tracer,
    ) -> None:
        self.number: Final = number
        self.device: Final = device
        self.gsi: Final = gsi
        self.name: Final = nodes.part_of_path(f"{name_of(device)}-{number}")
        self._irqs = irqs
        self._vm = vm
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._changed = changed
        self.function: Final[PciFunction[_Device]] = PciFunction(
            device, tracer=tracer, failed=self._background_failed, name=self.name, host=self
        )
        function = self.function
        self._msix = function.config.find(MsiX)
        self._msi = function.config.find(Msi)
        vectors = max((one.vectors for one in (function.msix, function.msi) if one is not None), default=0)
        self.table: Final = MsixTable(irqs, vectors=vectors, name=self.name) if vectors else None
        self.windows: tuple[Window, ...] = ()
        self._bells: dict[_Bell, EventFd] = {}
        self._messages: tuple[int, int, int] | None = None  # of MSI: as they are in the table
        self._one_at_a_time = asyncio.Lock()
        self._stack = contextlib.AsyncExitStack()
        self.closed = False

    def __repr__(self) -> str:
        return f"<PciSlot {self.number}: {self.name}>"

    def node(self) -> Mapping[str, object]:
        """What there is to see of it, in the tree of :mod:`aioirqfd.inspect`."""
        return {
            "gsi": self.gsi,
            "windows": {str(one.region): f"{one.start:#x}..{one.end - 1:#x}" for one in self.windows},
            "doorbells_in_the_kernel": len(self._bells),
            **self.function.node(),
        }

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self, ram: GuestRam | None) -> None:
        """Begin to serve it.

        Raises:
            Exception: What the device raises.
        """
        function = self.function
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._take_doorbells_off)
            if self.table is not None:
                await stack.enter_async_context(self.table)
            stack.callback(setattr, self, "closed", True)
            await stack.enter_async_context(function)
            if ram is not None:
                ram.map_into(function.dma)
            if self.device.intx:
                self._wire_pin(stack)
            self._stack = stack.pop_all()

    async def aclose(self) -> None:
        """Serve it no more. Waits for an access that is under way.

        Cancellation: while an access is waited for, nothing has happened; later, it is closed all the same.
        """
        async with self._one_at_a_time:
            self.closed = True
            self.windows = ()
            self._take_doorbells_off()
            await self._stack.aclose()

    def _wire_pin(self, stack: contextlib.AsyncExitStack) -> None:
        """The pin: a level that the kernel holds up until the guest's end of interrupt, which it tells by the resamplefd."""
        trigger = stack.enter_context(EventFd())
        resample = stack.enter_context(EventFd())
        irqfd = self._irqs.assign(
            trigger, gsi=self.gsi, resamplefd=resample, name=f"{self.name} pin", labels={"device": self.name, **_INTA}
        )
        stack.push_async_callback(irqfd.aclose)
        interrupts = self.function.interrupts
        interrupts.bind_end_of_interrupt(_another(resample))
        interrupts.bind(PIN, _another(trigger))

    def _background_failed(self, error: BaseException) -> None:
        self._reports.raised("device_failed", f"background() of {self.name} raised", error, what="background()")

    @property
    def _reports(self) -> Reports:
        reports = self.function.reports
        assert reports is not None
        return reports

    # -- the guest's side --------------------------------------------------------------------------------------------

    async def read(self, region: int, offset: int, size: int) -> int:
        """The guest reads. What the device raises is reported, and the guest reads ones; so it does once nothing is plugged in."""
        async with self._one_at_a_time:
            if self.closed:  # while this access waited for another one
                return (1 << 8 * size) - 1
            try:
                return int.from_bytes(await self.function.read(region, offset, size), "little")
            except (Exception, asyncio.CancelledError) as error:
                self._raised("read", region, offset, error)
                return (1 << 8 * size) - 1

    async def write(self, region: int, offset: int, size: int, value: int) -> None:
        """The guest writes. What the device raises is reported."""
        async with self._one_at_a_time:
            if self.closed:
                return
            try:
                await self.function.write(region, offset, value.to_bytes(size, "little"))
            except (Exception, asyncio.CancelledError) as error:
                self._raised("write", region, offset, error)

    def _raised(self, what: str, region: int, offset: int, error: BaseException) -> None:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise error  # it is not the device's: the calls are closed
        where = {ROM_REGION: "the ROM", CONFIG_REGION: "the configuration space"}.get(region, f"BAR {region}")
        said = f"{self.name} raised in a {what} at {offset:#x} of {where}"
        self._reports.raised("device_failed", said, error, what=what)

    # -- as the function sees it -------------------------------------------------------------------------------------

    def eventfd(self, vector: int) -> EventFd | None:
        """See :class:`~aioirqfd.pci.FunctionHost`."""
        table = self.table
        return table.eventfd(vector) if table is not None and vector < len(table) else None

    def masked(self, vector: int) -> bool:
        """See :class:`~aioirqfd.pci.FunctionHost`."""
        table = self.table
        return table is None or not table.enabled or table.function_mask or table.masked(vector)

    def pending(self, vector: int) -> bool:
        """See :class:`~aioirqfd.pci.FunctionHost`."""
        return self.table is not None and self.table.pending(vector)

    def read_table(self, offset: int, size: int) -> bytes:
        """See :class:`~aioirqfd.pci.FunctionHost`."""
        assert self.table is not None
        return self.table.read(offset, size).to_bytes(size, "little")

    def write_table(self, offset: int, data: bytes) -> None:
        """See :class:`~aioirqfd.pci.FunctionHost`."""
        assert self.table is not None
        self.table.write(offset, int.from_bytes(data, "little"), len(data))

    async def discard(self) -> None:
        """See :class:`~aioirqfd.pci.FunctionHost`."""
        if self.table is not None:
            self._messages = None
            await self.table.reset_function()

    def look_again(self) -> None:
        """See :class:`~aioirqfd.pci.FunctionHost`."""
        if threading.get_ident() != self._ident:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.look_again)
            return
        if self.closed:
            return
        self._enable_vectors()
        windows = tuple(self._mapped())
        if windows != self.windows:
            self.windows = windows
            self._changed()
        self._put_doorbells()

    # -- vectors -----------------------------------------------------------------------------------------------------

    def _enable_vectors(self) -> None:
        table = self.table
        if table is None:
            return
        config = self.function.config
        msix = config.word(self._msix + 2) if self._msix else 0
        if msix & MsixTable.ENABLE:
            self._messages = None
            table.write_control(msix)
            return
        control = config.word(self._msi + 2) if self._msi else 0
        if not control & _MSI_ENABLE:
            if self._messages is not None:
                self._messages = None
                table.reset()  # or MSI-X, enabled next, would begin with MSI's messages, unmasked
            table.write_control(0)
            return
        messages = control, config.word(self._msi + 4, 8), config.word(self._msi + 12)
        if messages != self._messages:
            self._messages = messages
            self._send(*messages)

    def _send(self, control: int, address: int, data: int) -> None:
        """Have the table send MSI's message, one of its numbers for each vector that the guest has granted."""
        table = self.table
        assert table is not None
        granted = 1 << min(control >> _MSI_GRANTED & 7, 5)
        for vector in range(len(table)):
            if vector < granted:
                table.write(16 * vector, address, 8)
                # The data, and the mask bit, which is clear.
                table.write(16 * vector + 8, data & ~(granted - 1) & _MSI_DATA_BITS | vector, 8)
            else:
                table.mask(vector)
        table.write_control(MsixTable.ENABLE)

    # -- windows and doorbells ---------------------------------------------------------------------------------------

    def _mapped(self) -> list[Window]:
        config = self.function.config
        command = config.word(COMMAND)
        found: list[Window] = []
        for index, bar in self.function.bars.items():
            if command & (IO_SPACE if bar.io else MEMORY_SPACE):
                start = config.word(BAR_0 + 4 * index, 8 if bar.wide else 4) & ~(0x3 if bar.io else 0xF)
                found.append(Window(bar.io, start, start + bar.size, index))
        rom = config.word(ROM, 4)
        if command & MEMORY_SPACE and rom & _ROM_ENABLE:
            start = rom & ~0x7FF
            found.append(Window(False, start, start + self.function.size(ROM_REGION), ROM_REGION))
        return found

    def _put_doorbells(self) -> None:
        """Have the kernel ring what it can: where the BARs are, and while nothing comes between."""
        if self._vm is None:
            return
        wanted: dict[_Bell, IoEventFd] = {}
        if self.device.interception is None:
            for window in self.windows:
                for one in self.function.doorbells.get(window.region, ()):
                    if not one.dead and not one.keeps_values:
                        wanted[_bell(window, one)] = one
        for bell, eventfd in [*self._bells.items()]:
            there = wanted.get(bell)
            if there is None or there.eventfd.id != eventfd.id:
                self._take_off(bell)
        for bell, one in wanted.items():
            if bell not in self._bells:
                self._put(bell, one)

    def _put(self, bell: _Bell, doorbell: IoEventFd) -> None:
        assert self._vm is not None
        # A reference of our own: the device may close its eventfd, and by then the kernel still has to be told which it was.
        eventfd = _another(doorbell.eventfd)
        try:
            self._vm.ioeventfd(bell.address, bell.length, eventfd, flags=bell.flags, datamatch=bell.datamatch)
        except OSError as error:
            eventfd.close()
            if error.errno not in _REFUSALS:
                raise
            # No room in the kernel, or the guest has put two BARs on top of each other, or one at the very end of all addresses,
            # as while it measures it: it is rung by this process.
            self.device.trace_once("doorbell_by_exit", address=bell.address, reason=os.strerror(error.errno))
        else:
            self._bells[bell] = eventfd

    def _take_off(self, bell: _Bell) -> None:
        assert self._vm is not None
        with self._bells.pop(bell) as eventfd, contextlib.suppress(ClosedError):  # the VM is gone, and its doorbells
            flags = bell.flags | KVM_IOEVENTFD_FLAG_DEASSIGN
            self._vm.ioeventfd(bell.address, bell.length, eventfd, flags=flags, datamatch=bell.datamatch)

    def _take_doorbells_off(self) -> None:
        for bell in [*self._bells]:
            self._take_off(bell)


def _bell(window: Window, doorbell: IoEventFd) -> _Bell:
    flags = KVM_IOEVENTFD_FLAG_PIO if window.io else 0
    if doorbell.datamatch is not None:
        flags |= KVM_IOEVENTFD_FLAG_DATAMATCH
    return _Bell(window.start + doorbell.address, doorbell.length, flags, doorbell.datamatch or 0)


def _another(eventfd: EventFd) -> EventFd:
    """The same eventfd by a descriptor of its own."""
    return EventFd.from_fd(os.dup(eventfd.fileno()), owns=True)
