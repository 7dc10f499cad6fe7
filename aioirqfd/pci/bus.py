"""A PCI bus for a VMM: the devices in its slots, as the CPUs of a guest reach them by ports and by memory."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self, TypeVar, cast, final

from aioirqfd import nodes
from aioirqfd.errors import ClosedError, SnapshotError
from aioirqfd.integers import plain
from aioirqfd.pci.bar import Bar
from aioirqfd.pci.config import BAR_0, ROM
from aioirqfd.pci.device import PciDevice
from aioirqfd.pci.function import CONFIG_REGION, ROM_REGION
from aioirqfd.pci.slot import PciSlot, Window
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from aioirqfd.irqfd.manager import IrqManager
    from aioirqfd.kvm.loop_calls import LoopCalls
    from aioirqfd.kvm.ram import GuestRam
    from aioirqfd.kvm.vm import Vm
    from aioirqfd.tracer import Tracer

_Device = TypeVar("_Device", bound=PciDevice)
SLOTS: Final = 32
"""Of a bus. The host bridge is in slot 0."""
MEMORY: Final = range(0xC000_0000, 0xFEC0_0000)
"""Where BARs in memory space are, unless it is said otherwise: above the RAM below 4 GiB, and below the IOAPIC."""
PORTS: Final = range(0x1000, 0x1_0000)
"""Where BARs in port space are: above what a PC has of its own."""
_ADDRESS: Final = 0xCF8
_DATA: Final = 0xCFC
_ENABLE: Final = 1 << 31
_ADDRESS_BITS: Final = 0x80FF_FFFC
_Found = tuple["PciSlot[PciDevice]", int, int]


def pin_gsi(slot: int) -> int:
    """The gsi of a slot's pin: 16..23, where an IOAPIC has no ISA lines; a guest's firmware is to tell it so (ACPI's _PRT)."""
    return 16 + slot % 8


@final
class HostBridge(PciDevice):
    """What is in slot 0: without it Linux does not believe that there is a bus."""

    name = "host-bridge"
    vendor_id, device_id, class_code = 0x8086, 0x1237, 0x060000


@final
class PciBus:
    """Bus 0 of a virtual machine, with up to 31 devices, for a VMM whose CPUs are KVM's.

    ::

        async with PciBus(irqs, calls, vm=vm, ram=ram) as bus:
            await bus.plug(VirtioPci(Blk("disk.img")))

    It is an :class:`aioirqfd.kvm.ExitHandler`: hand it what a guest's CPU accesses and the machine has nowhere else. Configuration
    space is reached by mechanism #1 of PCI 3.0, section 3.2.2.3.2: an address at port 0xCF8, data at 0xCFC. What nobody has reads as
    ones, and swallows writes.

    Devices are :class:`~aioirqfd.pci.PciDevice`, as they are for vfio-user. Each access is one after the other for its device, on the
    loop; the vCPU waits. Three things need no loop: what :meth:`PciFunction.peek_config` can say, doorbells, and interrupts. With a ``vm``
    the kernel rings the doorbells (``KVM_IOEVENTFD``, where the guest has put the BAR), and where the manager's sink is a
    :class:`aioirqfd.sinks.KvmSink` it injects the interrupts (``KVM_IRQFD``), so that neither passes through Python. Interrupts do where
    the tracer is, or stands before, a :class:`aioirqfd.tracing.FlightRecorder`: it is to see each of them.

    A BAR is at an address of its own from the start, as firmware would leave it. It answers where the guest puts it, and while the
    guest has enabled it in the command register. Parts of a BAR that are ``shared`` are reached by exits here.

    Args:
        irqs: Injects. It has pins 16 to 23 at the gsis of these numbers, and gsis to spare for vectors.
        calls: Runs what belongs to the loop; close it after the bus, and after the vCPUs have ended.
        vm: Whose kernel rings the doorbells; None: they are rung by this process.
        ram: The guest's memory, which every device reaches by DMA; None: they reach none.
        tracer: Hears what happens.
        memory: Addresses for BARs in memory space.
        ports: Addresses for BARs in port space.
        name: Its name in :mod:`aioirqfd.inspect`; without one it is a number.

    Used as ``async with``; at the end it unplugs what is plugged in, the last one first.

    Threads: :meth:`port_in`, :meth:`port_out`, :meth:`mmio_read` and :meth:`mmio_write` from any but the loop's; the rest on the loop's.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_busy",
        "_calls",
        "_irqs",
        "_loop",
        "_name",
        "_places",
        "_ram",
        "_slots",
        "_space",
        "_tracer",
        "_vm",
        "_windows",
    )

    def __init__(
        self,
        irqs: IrqManager,
        calls: LoopCalls,
        *,
        vm: Vm | None = None,
        ram: GuestRam | None = None,
        tracer: Tracer = NULL_TRACER,
        memory: range = MEMORY,
        ports: range = PORTS,
        name: str | None = None,
    ) -> None:
        self._irqs: Final = irqs
        self._calls: Final = calls
        self._vm: Final = vm
        self._ram: Final = ram
        self._tracer: Final = tracer
        self._name: Final = nodes.check_name(name, "a bus")
        self._space: Final = {False: memory, True: ports}
        self._slots: dict[int, PciSlot[PciDevice]] = {}
        self._busy: set[int] = set()  # slots that something is just being plugged into, or taken out of
        self._places: dict[int, list[Window]] = {}  # by slot, where its regions were put at first
        self._address = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # Replaced, never changed: vCPUs look without a lock. By space: the beginnings, and what begins there.
        self._windows: dict[bool, tuple[list[int], list[tuple[Window, PciSlot[PciDevice]]]]] = {}
        self._remap()

    def __repr__(self) -> str:
        return f"<PciBus {[*self._slots.values()]}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "Its devices are in use here: make another bus, and plug in others.")

    @property
    def slots(self) -> Mapping[int, PciSlot[PciDevice]]:
        """What is plugged in, by the slot's number; a view."""
        return MappingProxyType(self._slots)

    def _node(self) -> Mapping[str, object]:
        return {f"{number:02x}": nodes.Child(slot.node) for number, slot in self._slots.items()}

    def _loop_of(self) -> asyncio.AbstractEventLoop | None:
        return self._loop

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        nodes.add("pci", self, PciBus._node, name=self._name, loop=PciBus._loop_of)
        await self._plug(HostBridge(), 0, NULL_TRACER)  # it has nothing to tell
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        nodes.discard(self)
        self._loop = None
        async with contextlib.AsyncExitStack() as stack:
            for number in [*self._slots]:
                stack.push_async_callback(self.unplug, number)

    async def plug(self, device: _Device, *, slot: int | None = None) -> PciSlot[_Device]:
        """Put a device into a slot, and begin to serve it. A guest that has looked for devices already does not notice.

        Args:
            device: The device; the caller closes it in the end.
            slot: 1..31; None: the first free one.

        Returns:
            The slot. ``slot.function`` is the device as it is served.

        Raises:
            ClosedError: The bus is not entered, or was left meanwhile.
            ValueError: There is no such slot, it is taken, no slot is free, there is no room for a BAR, or the device says of itself
                what cannot be.
            Exception: What the device raises when it begins to be served.

        Cancellation: Nothing is plugged in.
        """
        self._check_open()
        return await self._plug(device, self._number(slot), self._tracer)

    async def _plug(self, device: _Device, number: int, tracer: Tracer) -> PciSlot[_Device]:
        plugged = PciSlot(
            number,
            device,
            gsi=pin_gsi(number),
            irqs=self._irqs,
            vm=self._vm,
            changed=self._remap,
            tracer=tracer,
        )
        self._busy.add(number)
        try:
            await plugged.open(self._ram)
            try:
                self._check_open()
                self._place_regions(plugged)
            except BaseException:
                await plugged.aclose()
                raise
        finally:
            self._busy.discard(number)
        self._slots[number] = cast("PciSlot[PciDevice]", plugged)
        return plugged

    async def unplug(self, slot: int) -> None:
        """Take a device out, and serve it no more. An access that is under way is waited for; later ones find nothing.

        So a device that takes itself out in the middle of an access of its own waits for ever.

        Raises:
            KeyError: There is nothing in this slot.

        Cancellation: While an access is waited for, the device stays plugged in; later, it is out all the same.
        """
        plugged = self._slots.pop(slot)
        self._busy.add(slot)
        self._remap()
        try:
            await plugged.aclose()
        finally:
            self._busy.discard(slot)
            if plugged.closed:
                self._places.pop(slot, None)
            else:
                self._slots[slot] = plugged
                self._remap()

    def _check_open(self) -> None:
        if self._loop is None:
            raise ClosedError("the bus is not open: enter it with `async with`, then plug devices in")

    def save(self) -> dict[str, object]:
        """What the bus itself has: the address register. Its slots' functions and tables are saved by themselves.

        With the vCPUs at rest.
        """
        return {"address": self._address}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take what another bus has saved. Before the vCPUs run.

        Raises:
            SnapshotError: It is none.
        """
        address = plain(state.get("address"), 1 << 32)
        if address is None:
            raise SnapshotError(f"no state of a bus: {state!r}")
        self._address = address & _ADDRESS_BITS

    def _number(self, slot: int | None) -> int:
        if slot is None:
            taken = self._slots.keys() | self._busy
            slot = next((number for number in range(1, SLOTS) if number not in taken), SLOTS)
            if slot == SLOTS:
                raise ValueError(f"no slot is free: a bus has {SLOTS - 1}")
        if not 1 <= slot < SLOTS:
            raise ValueError(f"slots are 1..{SLOTS - 1}, not {slot}")
        if slot in self._slots:
            raise ValueError(f"slot {slot} is taken, by {self._slots[slot].name}")
        if slot in self._busy:
            raise ValueError(f"slot {slot} is taken: a device is just being plugged in there, or taken out")
        return slot

    def _place_regions(self, slot: PciSlot[_Device]) -> None:
        """Give each BAR, and the ROM, an address that nobody else has: the guest's firmware would, and Linux keeps them."""
        config = slot.function.config
        places: list[Window] = []
        for index, bar in slot.function.bars.items():
            start = self._find_room(bar, places)
            places.append(Window(bar.io, start, start + bar.size, index))
            config.put(BAR_0 + 4 * index, start | bar.flags, 8 if bar.wide else 4)
        if rom := slot.function.size(ROM_REGION):
            start = self._find_room(Bar(rom), places)
            places.append(Window(False, start, start + rom, ROM_REGION))
            config.put(ROM, start, 4)
        self._places[slot.number] = places

    def _find_room(self, bar: Bar, own: list[Window]) -> int:
        """The lowest address that nobody was given, and where nobody has been moved to."""
        space = self._space[bar.io]
        given = [window for places in (*self._places.values(), own) for window in places]
        moved = [window for window, _ in self._windows[bar.io][1]]
        start = -(-space.start // bar.size) * bar.size
        for taken in sorted(window for window in (*given, *moved) if window.io is bar.io):
            if start < taken.end and taken.start < start + bar.size:
                start = -(-taken.end // bar.size) * bar.size
        if start + bar.size > space.stop:
            name = "ports" if bar.io else "memory"
            raise ValueError(f"no room for a BAR of {bar.size:#x} bytes: give the bus a longer range as `{name}`")
        return start

    def _remap(self) -> None:
        """Where everything is now."""
        windows = sorted((window, number) for number, slot in self._slots.items() for window in slot.windows)
        for io in (False, True):
            these = [(window, self._slots[number]) for window, number in windows if window.io is io]
            self._windows[io] = [window.start for window, _ in these], these

    # -- the guest's side --------------------------------------------------------------------------------------------

    def mmio_read(self, address: int, size: int) -> int:
        """The guest reads memory that is none. On a vCPU's thread.

        Raises:
            ClosedError: The ``calls`` are closed.
        """
        return self._read(address, size, io=False)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """The guest writes memory that is none. Raises as :meth:`mmio_read`."""
        self._write(address, size, value, io=False)

    def port_in(self, port: int, size: int) -> int:
        """The guest reads a port. Raises as :meth:`mmio_read`."""
        if _DATA <= port < _DATA + 4:
            return self._read_config(port - _DATA, size)
        if port == _ADDRESS and size == 4:
            return self._address
        return self._read(port, size, io=True)

    def port_out(self, port: int, size: int, value: int) -> None:
        """The guest writes a port. Raises as :meth:`mmio_read`."""
        if _DATA <= port < _DATA + 4:
            self._write_config(port - _DATA, size, value)
        elif port == _ADDRESS and size == 4:
            self._address = value & _ADDRESS_BITS
        else:
            self._write(port, size, value, io=True)

    def _read(self, address: int, size: int, *, io: bool) -> int:
        found = self._find(address, size, io=io)
        if found is None:
            return _ones(size)
        slot, region, offset = found
        return self._calls.run(slot.read, region, offset, size)

    def _write(self, address: int, size: int, value: int, *, io: bool) -> None:
        found = self._find(address, size, io=io)
        if found is not None:
            slot, region, offset = found
            if not slot.function.ring(region, offset, value, size):
                self._calls.run(slot.write, region, offset, size, value)

    def _find(self, address: int, size: int, *, io: bool) -> _Found | None:
        """Whose an access is: slot, region, offset."""
        starts, windows = self._windows[io]
        at = bisect_right(starts, address) - 1
        if at < 0:
            return None
        window, slot = windows[at]
        if address + size > window.end:
            return None
        return slot, window.region, address - window.start

    def _chosen(self, at: int, size: int) -> _Found | None:
        """Whose configuration space the address register says, and which byte of it."""
        address = self._address
        # A bus other than 0, or a function other than 0, is nobody's.
        slot = self._slots.get(address >> 11 & 0x1F) if address & _ENABLE and not address & 0xFF_0700 else None
        if slot is None or at + size > 4:
            return None
        return slot, CONFIG_REGION, (address & 0xFC) + at

    def _read_config(self, at: int, size: int) -> int:
        found = self._chosen(at, size)
        if found is None:
            return _ones(size)
        slot, region, offset = found
        data = slot.function.peek_config(offset, size)
        if data is not None:
            return int.from_bytes(data, "little")
        return self._calls.run(slot.read, region, offset, size)

    def _write_config(self, at: int, size: int, value: int) -> None:
        found = self._chosen(at, size)
        if found is not None:
            slot, region, offset = found
            self._calls.run(slot.write, region, offset, size, value)


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1
