"""A virtio device as a PCI function (virtio 1.2, section 4.1): its registers, and what writing them does."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from typing import TYPE_CHECKING, Final, final

from aioirqfd import nodes
from aioirqfd.errors import SnapshotError
from aioirqfd.flight import is_recorded
from aioirqfd.irqfd.explain import standing_in
from aioirqfd.irqfd.interrupt import Msi
from aioirqfd.irqfd.manager import IrqManager
from aioirqfd.pci.bar import Bar
from aioirqfd.pci.capability import MsiX, PciExpress, PowerManagement
from aioirqfd.pci.device import PciDevice
from aioirqfd.pci.fields import Fields, plain_copy, text_of
from aioirqfd.pci.register import Register
from aioirqfd.serving.reports import name_of
from aioirqfd.virtio.device import MAX_CONFIG, check
from aioirqfd.virtio.eager import Eager, handler_of
from aioirqfd.virtio.features import RING_FEATURES, VirtioFeature
from aioirqfd.virtio.kicks import KickSink
from aioirqfd.virtio.ring import MAX_SIZE
from aioirqfd.virtio_pci.capability import ConfigAccess, Structure, VirtioStructure
from aioirqfd.virtio_pci.memory import DmaMemory
from aioirqfd.virtio_pci.queue import NO_VECTOR, PciQueue
from aioirqfd.virtio_pci.transport import FunctionTransport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from aioirqfd.eventfd import EventFd
    from aioirqfd.pci.config import ConfigSpace
    from aioirqfd.pci.interception import Interception
    from aioirqfd.serving.reports import Reports
    from aioirqfd.virtio.device import Device
    from aioirqfd.virtio.statistics import VringStatistics

QUEUE_SIZE: Final = 256
"""Entries of a ring, unless it is said otherwise."""
ISR: Final = 0x1000
"""Where the structures begin in BAR 0; the common one is at 0."""
CONFIG: Final = 0x2000
NOTIFY: Final = 0x3000
_COMMON_SIZE: Final = 0x3C
_NOTIFY_STEP: Final = 4
_BAR: Final = 0x4000
_QUEUE_INTERRUPT: Final = 1
_CONFIG_INTERRUPT: Final = 2
_MSIX_ENABLE: Final = 1 << 15
_CLASSES: Final = {1: 0x020000, 2: 0x018000, 3: 0x078000, 8: 0x010000, 16: 0x038000, 18: 0x098000, 25: 0x040100}
"""Class codes by virtio device id: network, disk, console, SCSI, display, input, sound."""
_OTHER: Final = 0x00FF00
_STATE: Final = ("status", "driver_features", "isr", "generation", "queues", "config", "device")


class Status(enum.IntFlag):
    """Bits of the device status (section 2.1)."""

    ACKNOWLEDGE = 1 << 0
    DRIVER = 1 << 1
    DRIVER_OK = 1 << 2
    FEATURES_OK = 1 << 3
    NEEDS_RESET = 1 << 6
    FAILED = 1 << 7


@final
class VirtioPci(PciDevice):
    """A virtio device as a modern PCI function: give it to whatever serves PCI devices, such as :func:`aioirqfd.vfio_user.run`.

    ::

        run(VirtioPci(Rng()), "rng.sock")

    It has an MSI-X vector for each queue and one for changes of the configuration, and an interrupt pin for drivers that use none of
    them. A driver notifies it by a doorbell of each queue, which whoever serves it may ring without this process.

    Rings and buffers must be in memory that came with a file descriptor (QEMU: ``share=on``). If a part of it is unmapped that a
    request uses, whoever unmaps it waits until the request has ended. A driver that breaks its ring is told so: the device needs
    a reset then, and the tracer hears ``vring_stopped``.

    Args:
        device: The device.
        queue_size: Entries that each ring has at most: a power of 2, 1..32768.
        class_code: 24 bits; None: what goes with the device id.

    Raises:
        ValueError: The device says of itself what cannot be, or the size is none.
        TypeError: Its ``handle`` is no coroutine function, or its file no :class:`~aioirqfd.virtio.BlockFile`.

    Threads: the loop's.
    """

    vendor_id = 0x1AF4
    subsystem_vendor_id = 0x1AF4
    subsystem_id = 0x1100
    revision = 1
    undeclared = 0
    intx = True
    bars = (Bar(_BAR),)

    device_feature_select = Register(0x00)
    device_feature = Register(0x04, access="ro")
    driver_feature_select = Register(0x08)
    driver_feature = Register(0x0C)
    config_msix_vector = Register(0x10, 2, reset=NO_VECTOR)
    num_queues = Register(0x12, 2, access="ro")
    device_status = Register(0x14, 1)
    config_generation = Register(0x15, 1, access="ro")
    queue_select = Register(0x16, 2)
    # Those of the selected queue: filled in when it is selected.
    queue_size = Register(0x18, 2)
    queue_msix_vector = Register(0x1A, 2)
    queue_enable = Register(0x1C, 2)
    queue_notify_off = Register(0x1E, 2, access="ro")
    queue_desc = Register(0x20, 8)
    queue_driver = Register(0x28, 8)
    queue_device = Register(0x30, 8)
    queue_notify_data = Register(0x38, 2, access="ro")
    queue_reset = Register(0x3A, 2)
    isr_status = Register(ISR, 1, access="ro")

    def __init__(self, device: Device, *, queue_size: int = QUEUE_SIZE, class_code: int | None = None) -> None:
        check(device)
        if not 1 <= queue_size <= MAX_SIZE or queue_size & (queue_size - 1):
            raise ValueError(f"a queue's size is a power of 2 up to {MAX_SIZE}, not {queue_size}")
        self.virtio: Final = device
        self.name = name_of(device)
        self.device_id = 0x1040 + device.device_id
        self.class_code = _CLASSES.get(device.device_id, _OTHER) if class_code is None else class_code
        count = device.num_queues
        self.vectors = count + 1
        self.capabilities = [
            PowerManagement(),
            PciExpress(),
            VirtioStructure(Structure.COMMON, 0, _COMMON_SIZE),
            VirtioStructure(Structure.ISR, ISR, 1),
            VirtioStructure(Structure.NOTIFY, NOTIFY, _NOTIFY_STEP * count, _NOTIFY_STEP),
            # As much as there can be, and always: drivers of some types refuse a device without it. What is beyond reads as 0.
            VirtioStructure(Structure.DEVICE, CONFIG, MAX_CONFIG),
            ConfigAccess(),
        ]
        self._most = queue_size
        self._offered = int(RING_FEATURES | VirtioFeature.RING_RESET) | device.features
        self._queues: list[PciQueue] = []
        self._calls: list[EventFd | None] = [None] * count
        self._memory: DmaMemory | None = None
        self._generation = 0
        self._forget()

    def _forget(self) -> None:
        self._status = Status(0)
        self._driver = 0
        self._isr = 0

    # -- life --------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Its queues."""
        function = self._served()
        assert function.reports is not None
        count = self.virtio.num_queues
        eager = Eager(asyncio.get_running_loop())
        sink = KickSink(self._calls, recorded=is_recorded(function.tracer))
        routes = {index: Msi(address=0, data=index) for index in range(count)}
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(eager.aclose)
            manager = await stack.enter_async_context(
                IrqManager(sink, routing=routes, tracer=function.tracer, name=f"{function.name}-doorbells")
            )
            for index in range(count):
                queue = PciQueue(
                    index,
                    name=function.name,
                    most=self._most,
                    device=self.virtio,
                    ring=self._ring,
                    failed=self._fail,
                    manager=manager,
                    sink=sink,
                    eager=eager,
                    reports=function.reports,
                )
                self._queues.append(queue)
                sink.requests.append(queue.requests)
                stack.push_async_callback(queue.aclose)
                self.doorbell(queue.doorbell, bar=0, offset=NOTIFY + _NOTIFY_STEP * index)
            stack.callback(self._queues.clear)
            self._memory = DmaMemory(self.dma, self._queues)
            self.dma.watchers.append(self._memory)
            stack.callback(self.dma.watchers.remove, self._memory)
            self.virtio.config_watchers += (self._config_changed,)
            stack.callback(self._watch_no_more)
            self.virtio.transport = transport = FunctionTransport(
                self._queues, reset=self.reset, reports=function.reports
            )
            stack.callback(self._let_go, transport)
            stack.push_async_callback(transport.aclose)
            self._forget()
            self._load()
            yield

    def inspect(self) -> Mapping[str, object]:
        """Its status, its queues, and what the virtio device shows of itself."""
        return {
            "status": int(self._status),
            "queues": nodes.Child(lambda: {str(one.index): nodes.Child(one.node) for one in self._queues}),
            "own": nodes.Child(self.virtio.inspect),
        }

    def _watch_no_more(self) -> None:
        watchers = self.virtio.config_watchers
        self.virtio.config_watchers = tuple(one for one in watchers if one != self._config_changed)

    def _let_go(self, transport: FunctionTransport) -> None:
        if self.virtio.transport is transport:
            self.virtio.transport = None

    @property
    def _reports(self) -> Reports:
        reports = self._served().reports
        assert reports is not None
        return reports

    async def background(self) -> None:
        """The device's own."""
        try:
            await self.virtio.background()
        except Exception as error:
            self._raised("background()", error)

    def close(self) -> None:
        """The device's own."""
        self.virtio.close()

    def _raised(self, what: str, error: Exception) -> None:
        self._reports.raised("device_failed", f"{what} of {self.name} raised", error, what=what)

    async def reset(self) -> None:
        """The device is reset, by its driver or with the function. Requests under way are ended first."""
        for queue in self._queues:
            await queue.reset()
        self._forget()
        self.pin = False
        self.virtio.driver_features = 0
        self.device_feature_select = self.driver_feature_select = self.queue_select = 0
        self.config_msix_vector = NO_VECTOR
        self._load()
        self._choose_calls()
        if (between := self.virtio.interception) is not None:
            between.reset()
        try:
            self.virtio.reset()
        except Exception as error:
            self._raised("reset()", error)

    # -- standstill --------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stop each queue where it stands. Requests under way are ended; those that wait for what may never come stay with the driver."""
        for queue in sorted(self._queues, key=lambda one: one.requests.receives):  # what cannot be given up comes last
            await queue.pause()

    def resume(self) -> None:
        """Let the queues run again."""
        assert self._memory is not None
        table = self._memory.table()
        for queue in self._queues:
            queue.resume(table)

    def under_way(self) -> Sequence[str]:
        """Requests that wait for something, and where each of them stands."""
        return [
            f"request {head} of queue {queue.index} stands at {standing_in(handler_of(task))}"
            for queue in self._queues
            for task, head in queue.requests.under_way
        ]

    def save_state(self) -> Mapping[str, object]:
        """What the driver has agreed on, its queues, the device's configuration, and the device's own state."""
        return {
            "status": int(self._status),
            "driver_features": self._driver,
            "isr": self._isr,
            "generation": self._generation,
            "queues": [queue.save() for queue in self._queues],
            "config": text_of(bytes(self.virtio.config)),
            "device": plain_copy(self.virtio.save_state(), f"what save_state() of {self.name} returned"),
        }

    def restore_state(self, state: dict[str, object], /) -> None:
        """Be what another one was."""
        found = Fields(state, f"the state of {self.name}", _STATE)
        status, driver = Status(found.number("status", 256)), found.number("driver_features", 2**64)
        isr, generation = found.number("isr", 4), found.number("generation", 256)
        saved, config, own = found.items("queues"), found.data("config"), found.mapping("device")
        if len(saved) != len(self._queues):
            raise SnapshotError(f"the state of {self.name} has {len(saved)} queues, and it has {len(self._queues)}")
        queues = [queue.check(one) for queue, one in zip(self._queues, saved, strict=True)]
        vectors = [("the configuration", self.config_msix_vector)]
        vectors += [(f"queue {number}", one.number("vector", 2**16)) for number, one in enumerate(queues)]
        for whose, vector in vectors:
            if vector != self._vector(vector):
                raise SnapshotError(f"{whose}: a vector is 0..{self.vectors - 1}, or {NO_VECTOR:#x}, not {vector:#x}")
        if status & Status.FEATURES_OK and (missing := driver & ~self._offered):
            raise SnapshotError(f"the driver relies on features that {self.name} does not offer here: {missing:#x}")
        if config:
            try:
                self.virtio.write_config(0, config, live_migration=True)
            except ValueError as error:
                raise SnapshotError(
                    f"{self.name} cannot have the configuration that is in the state: {error}"
                ) from error
        self._status, self._driver, self._isr, self._generation = status, driver, isr, generation
        self.virtio.driver_features = driver if status & Status.FEATURES_OK else 0
        for queue, one in zip(self._queues, queues, strict=True):
            queue.restore(one, driver)
        self._load()
        self._choose_calls()
        self.virtio.restore_state(own)

    # -- interrupts --------------------------------------------------------------------------------------------------

    @property
    def _msix(self) -> bool:
        config = self._served().config
        return bool(config.word(config.find(MsiX) + 2) & _MSIX_ENABLE)

    def _choose_calls(self) -> None:
        """Which eventfd interrupts for which queue."""
        msix = self._msix
        for queue in self._queues:
            vector = queue.vector if msix else NO_VECTOR
            self._calls[queue.index] = None if vector == NO_VECTOR else self._served().interrupts.trigger(vector)

    def intercept(self, interception: Interception | None) -> None:
        """As :meth:`aioirqfd.pci.PciDevice.intercept`: the queues' interrupts, too, which it sends by eventfds that it has at hand."""
        super().intercept(interception)
        if self.function is not None:
            self._choose_calls()

    def _ring(self, queue: int) -> None:
        call = self._calls[queue]
        if call is not None:
            call.signal()
        elif not self._msix:
            self._isr |= _QUEUE_INTERRUPT
            self.pin = True

    def _ring_config(self) -> None:
        if not self._msix:
            self._isr |= _CONFIG_INTERRUPT
            self.pin = True
        elif self.config_msix_vector != NO_VECTOR:
            self.interrupt(self.config_msix_vector)

    @isr_status.on_read
    def _take_isr(self) -> int:
        isr, self._isr = self._isr, 0
        self.pin = False
        return isr

    def _vector(self, asked: int) -> int:
        """What a driver that asks for a vector gets."""
        return asked if asked < self.vectors else NO_VECTOR

    @config_msix_vector.on_write
    def _set_config_vector(self, vector: int) -> None:
        self.config_msix_vector = self._vector(vector)

    # -- features and status -----------------------------------------------------------------------------------------

    @device_feature.on_read
    def _read_device_feature(self) -> int:
        return _half(self._offered, self.device_feature_select)

    @driver_feature_select.on_write
    def _select_driver_feature(self, select: int) -> None:
        self.driver_feature = _half(self._driver, select)

    @driver_feature.on_write
    def _set_driver_feature(self, value: int) -> None:
        select = self.driver_feature_select
        if select < 2 and not self._status & Status.FEATURES_OK:
            shift = 32 * select
            self._driver = (self._driver & ~(0xFFFF_FFFF << shift)) | value << shift
        self.driver_feature = _half(self._driver, select)

    @device_status.on_write
    async def _set_status(self, value: int) -> None:
        if not value:
            await self.reset()
            return
        old = self._status
        # Only a reset takes bits away.
        new = old | Status(value & ~Status.NEEDS_RESET)
        if new & Status.FEATURES_OK and not self._agreed():
            new &= ~Status.FEATURES_OK
        if not new & Status.FEATURES_OK:
            new &= ~Status.DRIVER_OK
        self._status = new
        self.device_status = int(new)
        if new & ~old & Status.FEATURES_OK:
            self.virtio.driver_features = self._driver
        if new & ~old & Status.DRIVER_OK:
            self._start()

    def _agreed(self) -> bool:
        return not self._driver & ~self._offered and bool(self._driver & VirtioFeature.VERSION_1)

    def _start(self) -> None:
        assert self._memory is not None
        table = self._memory.table()
        for queue in self._queues:
            queue.start(table, self._driver)

    def _fail(self) -> None:
        """The device can do nothing more until it is reset; the driver is told."""
        failed = bool(self._status & Status.NEEDS_RESET)
        self._status |= Status.NEEDS_RESET
        self.device_status = int(self._status)
        if self._status & Status.DRIVER_OK and not failed:
            self._ring_config()

    # -- queues ------------------------------------------------------------------------------------------------------

    @property
    def _selected(self) -> PciQueue | None:
        select = self.queue_select
        return self._queues[select] if select < len(self._queues) else None

    def _load(self) -> None:
        """Have the registers say what is so."""
        self.num_queues = len(self._queues)
        self.device_status = int(self._status)
        self.config_generation = self._generation
        self.driver_feature = _half(self._driver, self.driver_feature_select)
        queue = self._selected
        self.queue_size = 0 if queue is None else queue.size
        self.queue_msix_vector = NO_VECTOR if queue is None else queue.vector
        self.queue_enable = 0 if queue is None else int(queue.enabled)
        self.queue_notify_off = 0 if queue is None else queue.index
        self.queue_desc = 0 if queue is None else queue.descriptor
        self.queue_driver = 0 if queue is None else queue.available
        self.queue_device = 0 if queue is None else queue.used
        self.queue_reset = 0

    @queue_select.on_write
    def _select_queue(self, _select: int) -> None:
        self._load()

    @queue_size.on_write
    def _set_queue_size(self, size: int) -> None:
        queue = self._selected
        if queue is not None and not queue.enabled:
            if 1 <= size <= self._most and not size & (size - 1):
                queue.size = size
            else:
                reason = f"a queue's size is a power of 2 up to {self._most}, not {size}"
                self._reports.trouble("message_refused", kind="queue_size", request="queue_size", reason=reason)
        self._load()

    @queue_msix_vector.on_write
    def _set_queue_vector(self, vector: int) -> None:
        queue = self._selected
        if queue is not None:
            queue.vector = self._vector(vector)
            self._choose_calls()
        self._load()

    @queue_desc.on_write
    def _set_descriptor(self, address: int) -> None:
        self._place("descriptor", address)

    @queue_driver.on_write
    def _set_available(self, address: int) -> None:
        self._place("available", address)

    @queue_device.on_write
    def _set_used(self, address: int) -> None:
        self._place("used", address)

    def _place(self, part: str, address: int) -> None:
        queue = self._selected
        if queue is not None and not queue.enabled:
            setattr(queue, part, address)
        self._load()

    @queue_enable.on_write
    def _enable_queue(self, value: int) -> None:
        queue = self._selected
        if queue is not None and value == 1 and not queue.enabled:
            queue.enabled = True
            if self._status & Status.DRIVER_OK:
                assert self._memory is not None
                queue.start(self._memory.table(), self._driver)
        self._load()

    @queue_reset.on_write
    async def _reset_queue(self, value: int) -> None:
        queue = self._selected
        if queue is not None and value == 1 and self._driver & VirtioFeature.RING_RESET:
            await queue.reset()
            self._choose_calls()
        self._load()

    # -- the device's own configuration ------------------------------------------------------------------------------

    def _config_changed(self) -> None:
        self._generation = (self._generation + 1) & 0xFF
        self.config_generation = self._generation
        for queue in self._queues:
            queue.requests.take_file()
        if self._status & Status.DRIVER_OK:
            self._ring_config()

    async def read(self, bar: int, offset: int, size: int) -> bytes:
        """The guest reads: a register, or the device's configuration."""
        if bar == 0 and CONFIG <= offset < NOTIFY:
            at = offset - CONFIG
            return bytes(self.virtio.config[at : at + size]).ljust(size, b"\0")
        return await super().read(bar, offset, size)

    async def write(self, bar: int, offset: int, data: bytes) -> None:
        """The guest writes. As :meth:`read`."""
        if bar != 0 or not CONFIG <= offset < NOTIFY:
            await super().write(bar, offset, data)
            return
        try:
            self.virtio.write_config(offset - CONFIG, data)
        except ValueError as error:
            self._reports.trouble("message_refused", kind="write_config", request="write_config", reason=str(error))
        except Exception as error:
            self._raised("write_config()", error)

    # -- PCI's configuration -----------------------------------------------------------------------------------------

    async def read_config(self, offset: int, size: int) -> bytes:
        """The guest reads PCI's configuration space. The window onto the BARs is filled in first."""
        function = self._served()
        window = function.config.find(ConfigAccess)
        data = window + ConfigAccess.DATA
        if offset < data + ConfigAccess.WIDTH and data < offset + size and (place := self._window(window)) is not None:
            value = await function.read(*place)
            function.config.put(data, int.from_bytes(value, "little"), ConfigAccess.WIDTH)
        return await super().read_config(offset, size)

    def live_config(self, config: ConfigSpace) -> Sequence[range]:
        """The window."""
        data = config.find(ConfigAccess) + ConfigAccess.DATA
        return (range(data, data + ConfigAccess.WIDTH),)

    async def write_config(self, offset: int, data: bytes) -> None:
        """The guest writes PCI's configuration space. What is written to the window is written to its BAR."""
        await super().write_config(offset, data)
        function = self._served()
        window = function.config.find(ConfigAccess)
        start = window + ConfigAccess.DATA
        if offset < start + ConfigAccess.WIDTH and start < offset + len(data):
            place = self._window(window)
            if place is not None:
                bar, at, size = place
                await function.write(bar, at, function.config.read(start, size))
        self._choose_calls()  # MSI-X may have been enabled, or disabled

    def _window(self, window: int) -> tuple[int, int, int] | None:
        """BAR, offset and length that the window shows; None: the driver has not chosen any that are there."""
        function = self._served()
        bar = function.config.word(window + ConfigAccess.BAR, 1)
        at = function.config.word(window + ConfigAccess.OFFSET, 4)
        size = function.config.word(window + ConfigAccess.SIZE, 4)
        if bar not in function.bars or size not in {1, 2, 4} or at % size or at + size > function.size(bar):
            return None
        return bar, at, size

    # -- what it has done --------------------------------------------------------------------------------------------

    def statistics(self) -> tuple[VringStatistics, ...]:
        """Each queue's counts as they are now; none while it is not served."""
        return tuple(queue.statistics() for queue in self._queues)


def _half(features: int, select: int) -> int:
    return features >> 32 * select & 0xFFFF_FFFF if select < 2 else 0
