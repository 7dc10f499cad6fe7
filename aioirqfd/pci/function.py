"""A device as it is served, by whatever transport: its configuration space, its regions, its interrupts, its DMA, its reset."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar, final

from aioirqfd import nodes
from aioirqfd.flight import Flight, FlightKind, flight_of
from aioirqfd.ioeventfd import IoBus
from aioirqfd.irqfd.guard import guarded
from aioirqfd.pci.bar import BARS, PAGE, Bar, check_bars
from aioirqfd.pci.capability import Msi, MsiX, PciExpress
from aioirqfd.pci.config import COMMAND, INTX_DISABLE, INTX_STATUS, STATUS, ConfigSpace
from aioirqfd.pci.device import PciDevice
from aioirqfd.pci.dma import MAX_MAPS, Dma
from aioirqfd.pci.errors import RegionError
from aioirqfd.pci.interrupts import Interrupts
from aioirqfd.pci.shared_memory import SharedMemory
from aioirqfd.pci.standstill import Standstill
from aioirqfd.serving.reports import Reports, name_of
from aioirqfd.tracer import NULL_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from aioirqfd.eventfd import EventFd
    from aioirqfd.ioeventfd import IoEventFd
    from aioirqfd.pci.capability import Capability
    from aioirqfd.pci.host import FunctionHost
    from aioirqfd.pci.state import PciFunctionState
    from aioirqfd.tracer import Tracer

_Device = TypeVar("_Device", bound=PciDevice)
ROM_REGION: Final = 6
CONFIG_REGION: Final = 7
_SIZES: Final = frozenset({1, 2, 4, 8})
_MAX_ONCE: Final = 256
"""Places that are traced once each. A guest can make them up, so there is an end to it."""


@final
class PciFunction(Generic[_Device]):
    """A device that is being served. For transports, and for tests of a device without one.

    ::

        async with PciFunction(Edu()) as function:
            await function.write(0, 0x08, (5).to_bytes(4, "little"))
            assert await function.read(0, 0x08, 4) == (120).to_bytes(4, "little")

    Regions are numbered as in VFIO: BARs 0..5, the ROM 6, the configuration space 7.

    Args:
        device: The device; served once at a time.
        tracer: Hears what happens: ``function_reset``, and once for each place ``undeclared_read``, ``undeclared_write``,
            ``read_only_write``.
        max_maps: How many DMA mappings there may be.
        failed: Hears what the device's ``background()`` raised.
        name: What its managers' names begin with, in :mod:`aioirqfd.inspect`, and those of its queues in a flight recorder's file.
        host: Who has it in a slot, keeps its MSI-X table and injects its vectors; None: the function keeps what a driver writes to the
            table, and whoever serves it binds the vectors.

    Attributes:
        config: Its configuration space.
        bars: Its BARs, with the one that was made for MSI-X.
        interrupts: Its interrupts.
        dma: The guest's memory.
        shared: The memory behind BARs with shared parts.
        table: The MSI-X table as it reads where whoever serves the function has none of its own; empty without MSI-X.
        tracer: Hears what happens.
        reports: Tells what goes wrong; made on entering, unless a transport has given it one.

    Raises:
        ValueError: What the device says of itself cannot be.

    Threads: the loop's, but for :meth:`peek_config`.
    """

    def __init__(
        self,
        device: _Device,
        *,
        tracer: Tracer = NULL_TRACER,
        max_maps: int = MAX_MAPS,
        failed: Callable[[BaseException], None] | None = None,
        name: str | None = None,
        host: FunctionHost | None = None,
    ) -> None:
        self.device: Final = device
        self.host: Final = host
        self.tracer: Final = guarded(tracer, device=name_of(device))
        self.reports: Reports | None = None
        self.name: Final = nodes.part_of_path(name_of(device) if name is None else name)
        self._failed = failed
        self._once: set[object] = set()
        self.bars, capabilities = _with_msix(device)
        check_bars(self.bars)
        _check_registers(device, self.bars)
        self._rom = device.rom.ljust(_power_of_two(len(device.rom)), b"\xff") if device.rom else b""
        self.config: Final = ConfigSpace(
            vendor=device.vendor_id,
            device=device.device_id,
            subsystem=(device.subsystem_vendor_id, device.subsystem_id),
            class_code=device.class_code,
            revision=device.revision,
            bars=self.bars,
            rom=len(self._rom),
            pin=device.intx,
            capabilities=capabilities,
        )
        self._live: Final = tuple(device.live_config(self.config))
        self.msi: Final = next((one for one in capabilities if isinstance(one, Msi)), None)
        self.msix: Final = self.config.msix
        self.table = bytearray()
        if self.msix is not None:
            end = max(self.msix.table + self.msix.table_size, self.msix.pba_offset + self.msix.pba_size)
            if self.msix.bar not in self.bars or self.bars[self.msix.bar].size < end:
                raise ValueError(f"{self.msix} does not fit BAR {self.msix.bar}")
            self._clear_table()
        count = max([device.vectors, *(one.vectors for one in (self.msi, self.msix) if one is not None)])
        self.interrupts: Final = Interrupts(count, tracer=self.tracer, name=f"{self.name}-vectors", host=host)
        self.dma: Final = Dma(max_maps=max_maps)
        self._flight = flight_of(tracer, self.name)
        self._queues: dict[int, Flight] = {}  # who writes the records of the device's own queues
        self.shared: dict[int, SharedMemory] = {}
        self._buses: dict[int, IoBus] = {}
        self.doorbells: dict[int, list[IoEventFd]] = {}
        self._stack = contextlib.AsyncExitStack()
        self.config.watch(COMMAND, 2, self.command_written)
        express = self.config.find(PciExpress)
        self._flr = express + PciExpress.CONTROL if express else -1
        self._standstill: Final = Standstill(self)
        # By BAR, the parts that are not the device's, in order: kind, where it begins and ends.
        self._special = {bar: self._parts(bar) for bar in self.bars}

    def __repr__(self) -> str:
        return f"<PciFunction of {name_of(self.device)}>"

    def node(self) -> dict[str, object]:
        """What there is to see of it, in the tree of :mod:`aioirqfd.inspect`."""
        return {
            "device": name_of(self.device),
            "mappings": len(self.dma),
            "paused": self.paused,
            "interrupts": nodes.Child(self.interrupts.node),
            "own": nodes.Child(self.device.inspect),
        }

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        device = self.device
        if self.reports is None:
            self.reports = Reports(self.tracer, asyncio.get_running_loop())
        if device.function is not None:
            raise ValueError(f"{device!r} is served already, by {device.function!r}")
        async with contextlib.AsyncExitStack() as stack:
            for index, bar in self.bars.items():
                if bar.shared:
                    self.shared[index] = memory = SharedMemory(bar.size)
                    stack.callback(memory.close)
            await stack.enter_async_context(self.interrupts)
            stack.push_async_callback(self.dma.unmap_all)
            device.function = self
            self.look_again()
            stack.callback(self._let_go)
            await stack.enter_async_context(device.lifespan())
            if device.left_paused:
                device.left_paused = False
                device.resume()
            if type(device).background is not PciDevice.background:
                task = asyncio.create_task(device.background(), name=f"aioirqfd {name_of(device)}.background")
                task.add_done_callback(self._background_ended)
                stack.push_async_callback(_cancel, task)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _let_go(self) -> None:
        self.device.function = None
        self.device.left_paused = self._standstill.paused
        self._standstill.paused = False
        for doorbell in [one for there in self.doorbells.values() for one in there]:
            doorbell.close()
        self.doorbells.clear()

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            if self._failed is None:
                raise error
            self._failed(error)

    # -- regions -----------------------------------------------------------------------------------------------------

    def size(self, region: int) -> int:
        """Bytes of a region; 0: it is not there."""
        if region in self.bars:
            return self.bars[region].size
        return {ROM_REGION: len(self._rom), CONFIG_REGION: self.config.size}.get(region, 0)

    def _check(self, region: int, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size(region):
            raise RegionError(f"{size} bytes at {offset:#x} of region {region}, which has {self.size(region)}")

    async def read(self, region: int, offset: int, size: int) -> bytes:
        """Read from a region.

        Raises:
            RegionError: It is beyond the end.
            Exception: What the device's own code raises.
        """
        self._check(region, offset, size)
        if self._flight is not None:
            self._flight.put(FlightKind.REGISTER_READ, region, offset)
        between = self.device.interception
        if between is not None:
            return await between.read(region, offset, size, lambda: self._read(region, offset, size))
        return await self._read(region, offset, size)

    async def _read(self, region: int, offset: int, size: int) -> bytes:
        if region == CONFIG_REGION:
            return _exactly(await self._read_config(offset, size), size)
        if region == ROM_REGION:
            return self._rom[offset : offset + size]
        special = self._special[region]
        if not special:
            return _exactly(await self.device.read(region, offset, size), size)
        parts: list[bytes] = []
        for kind, start, length in _split(special, offset, size):
            if kind is _TABLE:
                parts.append(self._read_table(start - self._msix_table, length))
            elif kind is _PBA:
                at = start - self._msix_pba
                parts.append(self.interrupts.pending_bits()[at : at + length])
            elif kind is _SHARED:
                parts.append(bytes(self.shared[region].view[start : start + length]))
            else:
                parts.append(_exactly(await self.device.read(region, start, length), length))
        return b"".join(parts)

    async def write(self, region: int, offset: int, data: bytes) -> None:
        """Write to a region.

        Raises:
            RegionError: It is beyond the end. Nothing was written.
            Exception: What the device's own code raises.
        """
        self._check(region, offset, len(data))
        if self._flight is not None:
            self._flight.put(FlightKind.REGISTER_WRITTEN, region, offset)
        between = self.device.interception
        if between is not None:
            await between.write(region, offset, data, lambda data: self._write(region, offset, data))
        else:
            await self._write(region, offset, data)

    async def _write(self, region: int, offset: int, data: bytes) -> None:
        if region == CONFIG_REGION:
            await self._write_config(offset, data)
            return
        if region == ROM_REGION:
            return
        bus = self._buses.get(region)
        size = len(data)
        if bus is not None and size in _SIZES and bus.write(offset, int.from_bytes(data, "little"), size):
            return
        special = self._special[region]
        if not special:
            await self.device.write(region, offset, data)
            return
        for kind, start, length in _split(special, offset, len(data)):
            piece = data[start - offset : start - offset + length]
            if kind is _TABLE:
                self._write_table(start - self._msix_table, piece)
            elif kind is _SHARED:
                self.shared[region].view[start : start + length] = piece
            elif kind is None:
                await self.device.write(region, start, piece)

    def note(self, step: FlightKind, queue: int, request: int) -> None:
        """Have a flight recorder note a step of one of the device's own queues: :meth:`PciDevice.note`."""
        if self._flight is None:
            return
        flight = self._queues.get(queue)
        if flight is None:
            recorder = self._flight.recorder
            flight = Flight(recorder, recorder.source(f"{self.name} queue {queue}", like=self._flight.source))
            self._queues[queue] = flight
        flight.put(step, queue, request)

    def look_again(self) -> None:
        """The device has an interception now, or none any more; :meth:`PciDevice.intercept` calls it."""
        self.dma.interception = self.device.interception
        self.interrupts.intercept(self.device.interception)
        self._changed()

    def _changed(self) -> None:
        """The configuration space is another, or the doorbells, or what comes between."""
        if self.host is not None:
            self.host.look_again()

    def ring(self, region: int, offset: int, value: int, size: int) -> bool:
        """Ring a doorbell, if a write is for one and nothing comes between. Any thread.

        Returns:
            Whether it was one: then the write is done. Else it is :meth:`write`'s.
        """
        bus = self._buses.get(region)
        if bus is None or size not in _SIZES or self.device.interception is not None:
            return False
        return bus.write(offset, value, size)

    def _parts(self, region: int) -> list[tuple[str, int, int]]:
        parts = [(_SHARED, at, at + size) for at, size in self.bars[region].shared]
        msix = self.msix
        if msix is not None and msix.bar == region:
            parts.append((_TABLE, msix.table, msix.table + msix.table_size))
            parts.append((_PBA, msix.pba_offset, msix.pba_offset + msix.pba_size))
        return sorted(parts, key=lambda part: part[1])

    @property
    def _msix_table(self) -> int:
        assert self.msix is not None
        return self.msix.table

    @property
    def _msix_pba(self) -> int:
        assert self.msix is not None
        return self.msix.pba_offset

    def _read_table(self, at: int, size: int) -> bytes:
        return bytes(self.table[at : at + size]) if self.host is None else self.host.read_table(at, size)

    def _write_table(self, at: int, data: bytes) -> None:
        if self.host is None:
            self.table[at : at + len(data)] = data
        else:
            self.host.write_table(at, data)

    def _clear_table(self) -> None:
        # Every vector masked. VMMs keep the table themselves; this one is for those that read it back.
        assert self.msix is not None
        self.table = bytearray((bytes(12) + b"\1\0\0\0") * self.msix.vectors)

    def doorbell(
        self,
        eventfd: EventFd,
        *,
        bar: int,
        offset: int,
        length: int = 0,
        datamatch: int | None = None,
        values: int = 0,
    ) -> IoEventFd:
        """As :meth:`PciDevice.doorbell`."""
        if bar not in self.bars:
            raise RegionError(f"{self!r} has no BAR {bar}")
        self._check(bar, offset, length)
        bus = self._buses.get(bar)
        if bus is None:
            bus = self._buses[bar] = IoBus(changed=self._changed)
        doorbell = bus.ioeventfd(eventfd, address=offset, length=length, datamatch=datamatch, values=values)
        there = self.doorbells.setdefault(bar, [])
        there[:] = [one for one in there if not one.dead]
        there.append(doorbell)
        self._changed()
        return doorbell

    # -- the configuration space, and reset --------------------------------------------------------------------------

    async def _read_config(self, offset: int, size: int) -> bytes:
        status = self.config.word(STATUS) & ~INTX_STATUS
        self.config.put(STATUS, status | (INTX_STATUS if self.interrupts.pin else 0))
        return await self.device.read_config(offset, size)

    def peek_config(self, offset: int, size: int) -> bytes | None:
        """Read from the configuration space without the loop, where that is the same.

        A guest reads some hundred times there while it boots, and a VMM's CPU that had to wait for the loop each time would be slow.

        Args:
            offset: Bytes from its beginning.
            size: Bytes.

        Returns:
            ``size`` bytes, as :meth:`read` would say. None: :meth:`read` has to be asked, on the loop, for the device itself answers there
            (:meth:`PciDevice.live_config`), something comes between (:mod:`aioirqfd.faults`), or the device is not served.

        Raises:
            RegionError: It is beyond the end.

        Threads: any. What a write that has ended has changed is seen; of one that goes on, all or nothing.
        """
        self._check(CONFIG_REGION, offset, size)
        device = self.device
        if device.function is not self or device.interception is not None:
            return None
        end = offset + size
        if any(one.start < end and offset < one.stop for one in self._live):
            return None
        if self._flight is not None:
            self._flight.put(FlightKind.REGISTER_READ, CONFIG_REGION, offset)
        data = self.config.read(offset, size)
        if not offset <= STATUS < end:
            return data
        at = STATUS - offset
        status = data[at] & ~INTX_STATUS | (INTX_STATUS if self.interrupts.pin else 0)
        return data[:at] + bytes([status]) + data[at + 1 :]

    async def _write_config(self, offset: int, data: bytes) -> None:
        await self.device.write_config(offset, data)
        self._changed()
        at = self._flr + 1 - offset  # the register's upper byte: its top bit asks for a reset
        if self._flr >= 0 and 0 <= at < len(data) and data[at] & 0x80:
            await self.reset()

    def command_written(self) -> None:
        """The command register has another value."""
        self.interrupts.disable_pin(disabled=bool(self.config.word(COMMAND) & INTX_DISABLE))

    async def reset(self) -> None:
        """Reset the function: registers, interrupts that are pending, the pin, the configuration space; then the device's own.

        Whom the interrupts go to, and what memory is mapped, stays: that is the VMM's.

        Raises:
            Exception: What the device's ``reset()`` raises.
        """
        self.tracer.emit("function_reset")
        device = self.device
        device.registers.reset(device)
        self.config.reset()
        self.command_written()
        self._changed()
        if self.msix is not None:
            self._clear_table()
        await self.interrupts.discard()
        result = device.reset()
        if result is not None:
            await result

    # -- snapshot ----------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether it stands still: :meth:`pause`."""
        return self._standstill.paused

    async def pause(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  see Standstill
        """Bring the device to rest: what it has begun is ended, it begins nothing more, and its interrupts are pending.

        The guest's accesses are served as before. A doorbell that is rung stays in its eventfd. Nothing happens if it is paused.

        Args:
            timeout: Seconds that it waits for what has been begun; None: for as long as that takes.

        Raises:
            TimeoutError: It took too long. The error names what has not ended (:meth:`PciDevice.under_way`), and the device runs on.
            ClosedError: It is not served.
            Exception: What the device's ``pause()`` raises; it runs on.

        Cancellation:
            The device runs on.
        """
        await self._standstill.pause(timeout)

    def resume(self) -> None:
        """Let the device go on where it stands; nothing happens if it is not paused. No doorbell need be rung "just in case".

        Raises:
            RuntimeError: :meth:`pause` has not returned yet.
        """
        self._standstill.resume()

    def save(self) -> PciFunctionState:
        """The state of a function that is paused. It stays paused, and may go on or be left.

        Pause the guest's CPUs before: what they write afterwards is not in the state. The guest's memory, whom the interrupts go to,
        and what is with them already, is for whoever serves the function to save.

        Raises:
            SnapshotError: It is not paused, or the device has something that it cannot save: the error names it.
            Exception: What the device's ``save_state()`` raises.
        """
        return self._standstill.save()

    async def restore(self, state: PciFunctionState) -> None:
        """Put the state of another function of the same device into this one, which is paused; :meth:`resume` goes on from there.

        The function is reset first, if the state fits. Its memory may be mapped, and its interrupts bound, before or after.

        Raises:
            SnapshotError: It is not paused, or the state is of another device: the error says what differs. Nothing was changed.
                Or the device does not take its own part: then it is as after a reset.
            Exception: What the device's ``reset()`` raises.
        """
        await self._standstill.restore(state)

    def trace_once(self, event: str, fields: dict[str, object]) -> None:
        """Have something traced if it has not been."""
        key = (event, *fields.values())
        if key not in self._once and len(self._once) < _MAX_ONCE:
            self._once.add(key)
            self.tracer.emit(event, **fields)


_TABLE: Final = "table"
_PBA: Final = "pba"
_SHARED: Final = "shared"


def _split(special: list[tuple[str, int, int]], offset: int, size: int) -> list[tuple[str | None, int, int]]:
    """An access in parts: whose each is, where it begins, how long it is."""
    found: list[tuple[str | None, int, int]] = []
    end = offset + size
    for kind, start, stop in special:
        if stop <= offset or start >= end:
            continue
        if start > offset:
            found.append((None, offset, start - offset))
            offset = start
        length = min(stop, end) - offset
        found.append((kind, offset, length))
        offset += length
    if offset < end:
        found.append((None, offset, end - offset))
    return found


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"read() of {size} bytes returned {len(data)}: return as many as were asked for")
    return bytes(data)


def _with_msix(device: PciDevice) -> tuple[dict[int, Bar], list[Capability]]:
    """The device's BARs and capabilities, with MSI-X where it has vectors and does not say how."""
    bars = {index: bar for index, bar in enumerate(device.bars) if bar is not None}
    capabilities = list(device.capabilities)
    if device.vectors and not any(isinstance(one, Msi | MsiX) for one in capabilities):
        taken = set(bars) | {index + 1 for index, bar in bars.items() if bar.wide}
        free = next((index for index in range(BARS) if index not in taken), None)
        if free is None:
            raise ValueError(f"{device!r} has no BAR left for MSI-X: give it a capability MsiX(..., bar=...)")
        one = MsiX(device.vectors, bar=free, pba=-(-16 * device.vectors // PAGE) * PAGE)
        bars[free] = Bar(_power_of_two(one.pba_offset + one.pba_size))
        capabilities.append(one)
    return bars, capabilities


def _check_registers(device: PciDevice, bars: dict[int, Bar]) -> None:
    for bar, end in device.registers.ends().items():
        if bar not in bars or end > bars[bar].size:
            raise ValueError(f"{device!r} has registers up to {end:#x} in BAR {bar}, which is not there or smaller")
    for name, limit in (("vendor_id", 16), ("device_id", 16), ("class_code", 24), ("revision", 8), ("undeclared", 8)):
        if not 0 <= getattr(device, name) < 1 << limit:
            raise ValueError(f"{name} has {limit} bits, not {getattr(device, name):#x}")


def _power_of_two(size: int) -> int:
    return max(1 << (size - 1).bit_length(), PAGE)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
