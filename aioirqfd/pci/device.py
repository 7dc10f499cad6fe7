"""The base class of a PCI device: what is served, and the only thing a device's author writes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar, Self

from aioirqfd.errors import ClosedError, SnapshotError
from aioirqfd.pci.register import Register, RegisterFile

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Mapping, Sequence

    from aioirqfd.eventfd import EventFd
    from aioirqfd.flight import FlightKind
    from aioirqfd.ioeventfd import IoEventFd
    from aioirqfd.pci.bar import Bar
    from aioirqfd.pci.capability import Capability
    from aioirqfd.pci.config import ConfigSpace
    from aioirqfd.pci.dma import Dma
    from aioirqfd.pci.function import PciFunction
    from aioirqfd.pci.interception import Interception, Request


class PciDevice:
    """A PCI device with one function. Subclass it, say what it is, and declare its registers.

    ::

        class Dice(PciDevice):
            vendor_id, device_id, class_code = 0x1234, 0xD1CE, 0x00FF00
            bars = (Bar(4096),)
            vectors = 1
            value = Register(0, access="ro")

            @value.on_read
            def roll(self) -> int:
                return random.randint(1, 6)

    Attributes:
        name: What traces and terminals call it; empty, as here: as its class.
        vendor_id: 16 bits.
        device_id: 16 bits.
        subsystem_vendor_id: 16 bits.
        subsystem_id: 16 bits.
        class_code: 24 bits: class, subclass, programming interface; 0x010802 is an NVMe controller.
        revision: 8 bits.
        bars: Its BARs, in order; None for one that is not there. A wide one takes the next place, too, which is None.
        vectors: How many interrupt vectors it has. If no capability says how the guest gets them, they are MSI-X, with the
            table in a BAR of their own: the first free one.
        intx: Whether it has an interrupt pin.
        capabilities: Others, and these two if they are to be somewhere else or something else.
        rom: The contents of its expansion ROM.
        undeclared: What a byte reads as that belongs to no register: 0xFF, or 0.
        left_paused: Whether it was last served no more while it was paused; then it hears :meth:`resume` when it is served again.

    Threads: everything is called on the loop of whatever serves it, one access after the other. :meth:`interrupt` and
    :attr:`pin` are for any thread.
    """

    name: str = ""
    vendor_id: int = 0x1234
    device_id: int = 0xFFFF
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0
    class_code: int = 0xFF0000
    revision: int = 0
    bars: Sequence[Bar | None] = ()
    vectors: int = 0
    intx: bool = False
    capabilities: Sequence[Capability] = ()
    rom: bytes = b""
    undeclared: int = 0xFF

    registers: ClassVar[RegisterFile] = RegisterFile([])
    function: PciFunction[Self] | None = None
    interception: Interception | None = None
    left_paused: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        found: dict[str, object] = {}
        for base in reversed(cls.__mro__):
            found.update(vars(base))
        cls.registers = RegisterFile([one for one in found.values() if isinstance(one, Register)])

    # -- what a device does ------------------------------------------------------------------------------------------

    async def read(self, bar: int, offset: int, size: int) -> bytes:
        """The guest reads: the registers that it touches, by the rule of :mod:`aioirqfd.pci.register`.

        Override it for what no register can say, and leave the rest to ``await super().read(...)``.

        Args:
            bar: Which BAR.
            offset: Bytes from its beginning; the access does not go beyond its end.
            size: Bytes: 1, 2, 4 or 8 by a guest's CPU; a VMM may read more at once.

        Returns:
            Little-endian, ``size`` bytes.

        Cancellation:
            The client has gone while this waited. The device keeps its state, and may be served to another one.
        """
        return await self.registers.read(self, bar, offset, size)

    async def write(self, bar: int, offset: int, data: bytes) -> None:
        """The guest writes. As :meth:`read`."""
        await self.registers.write(self, bar, offset, data)

    def reset(self) -> Awaitable[None] | None:
        """The function is reset. May be a coroutine function; the guest waits for it. Does nothing here.

        The registers have their reset values already, what was pending of the interrupts is gone, the pin is down.
        """
        return None

    # -- what it does when it is saved -------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Come to rest: end what was begun, and begin nothing more until :meth:`resume`. Does nothing here.

        Accesses are served meanwhile, so what is done within one need not be ended here. Interrupts may be asked for: they are pending.

        Cancellation:
            It has taken too long, or is not wanted any more. :meth:`resume` follows, as it does where this raises.
        """

    def resume(self) -> None:
        """Go on: also with what has come meanwhile. Called after :meth:`pause`, and where that failed. Does nothing here.

        A device that was served no more while it was paused hears it when it is served again: after :meth:`lifespan`, before
        :meth:`background`.
        """

    def under_way(self) -> Sequence[str]:
        """What was begun and has not ended, in words: for the error of a pause that took too long. Nothing here."""
        return ()

    def save_state(self) -> Mapping[str, object]:
        """What the device is, beside its registers, as a dict that ``json`` takes. Called while it is at rest.

        Here: nothing, if it has no attributes but registers.

        Raises:
            SnapshotError: It has others, and nobody knows which of them are its state: override this, and :meth:`restore_state`.
        """
        registers = {one.name for one in self.registers}
        others = sorted(name for name in vars(self) if name not in registers and not hasattr(PciDevice, name))
        if others:
            raise SnapshotError(
                f"{type(self).__qualname__} has attributes beside its registers ({', '.join(others)}): override save_state() and "
                "restore_state() to say what of them is its state"
            )
        return {}

    def restore_state(self, state: dict[str, object], /) -> None:
        """Take what :meth:`save_state` returned elsewhere. Called while the device is at rest, as after a reset, with its registers set.

        Raises:
            SnapshotError: It cannot be taken; what else is raised is told as one.
        """
        if state:
            raise SnapshotError(f"{type(self).__qualname__} has no state of its own, but was given {', '.join(state)}")

    # -- its configuration space, and its life -----------------------------------------------------------------------

    async def read_config(self, offset: int, size: int) -> bytes:
        """The guest reads the configuration space. Override it for a capability that is more than memory.

        Args:
            offset: Bytes from its beginning; the access does not go beyond its end.
            size: Bytes.

        Returns:
            ``size`` bytes: here what is in ``function.config``.
        """
        return self._served().config.read(offset, size)

    def live_config(self, config: ConfigSpace) -> Sequence[range]:
        """The bytes of the configuration space that :meth:`read_config` has to be asked for, each time. All others are plain memory.

        Called once, when a :class:`PciFunction` is made of the device. So a VMM's CPU may read most of the configuration space
        without the loop (:meth:`PciFunction.peek_config`). A class that overrides :meth:`read_config` says here for which part.

        Args:
            config: As it is laid out; ``config.find()`` says where a capability is.

        Returns:
            Offsets. Here: all of them if the class overrides :meth:`read_config`, none if it does not.
        """
        return () if type(self).read_config is PciDevice.read_config else (range(config.size),)

    async def write_config(self, offset: int, data: bytes) -> None:
        """The guest writes the configuration space. As :meth:`read_config`."""
        self._served().config.write(offset, data)

    def lifespan(self) -> contextlib.AbstractAsyncContextManager[object]:
        """What is to be open while the device is served, such as managers of its own; entered before the first access. Nothing here."""
        return contextlib.nullcontext()

    def inspect(self) -> Mapping[str, object]:
        """What it shows of itself in the tree of :mod:`aioirqfd.inspect`, beside its interrupts: names, and values that ``json`` takes.

        Called on its loop, and only when somebody looks. It changes nothing, and does not wait. Nothing here.
        """
        return {}

    async def background(self) -> None:
        """What the device does beside accesses. Does nothing here.

        A task of its own, from when the device begins to be served until it no longer is. It may end; what it raises is
        reported.

        Cancellation:
            The device is served no more, and whoever served it waits for this to end.
        """

    def close(self) -> None:
        """Let go of what the device has opened; called by :func:`aioirqfd.vfio_user.main` at the end. Does nothing here."""

    # -- what a device asks for --------------------------------------------------------------------------------------

    def _served(self) -> PciFunction[Self]:
        if self.function is None:
            raise ClosedError(
                f"{type(self).__qualname__} is not served: give it to a Server, to run() or to a PciFunction"
            )
        return self.function

    def interrupt(self, vector: int = 0) -> None:
        """Interrupt the guest, by MSI-X or MSI. Any thread.

        No interrupt is lost: where the vector is masked, or has nobody to tell just now, it is pending, and delivered as soon
        as it can be. Several that are pending are one.

        Raises:
            ValueError: There is no such vector.
            ClosedError: The device is not served.
        """
        self._served().interrupts.signal(vector)

    @property
    def pin(self) -> bool:
        """Whether the device wants its interrupt pin (INTx) up. Set it to what it wants. Any thread.

        It is a level: while it is up and the guest has ended an interrupt, there is another one.

        Raises:
            ClosedError: The device is not served.
        """
        return self._served().interrupts.pin

    @pin.setter
    def pin(self, wanted: bool) -> None:
        self._served().interrupts.pin = wanted

    @property
    def dma(self) -> Dma:
        """The guest's memory.

        Raises:
            ClosedError: The device is not served.
        """
        return self._served().dma

    def shared(self, bar: int) -> memoryview:
        """The memory behind a BAR with shared parts: as long as the BAR, and the guest's only in those parts.

        Raises:
            ClosedError: The device is not served.
            KeyError: The BAR has no shared parts.
        """
        return self._served().shared[bar].view

    def doorbell(
        self, eventfd: EventFd, *, bar: int, offset: int, length: int = 0, datamatch: int | None = None, values: int = 0
    ) -> IoEventFd:
        """Have a write of the guest signal an eventfd instead of being carried out, without this process where the VMM can do that.

        The rules are those of :meth:`aioirqfd.IoBus.ioeventfd`, with the offset in the BAR as the address. Of a doorbell that
        the VMM rings by itself no values are kept.

        Raises:
            ClosedError: The device is not served.
        """
        return self._served().doorbell(
            eventfd, bar=bar, offset=offset, length=length, datamatch=datamatch, values=values
        )

    async def serve_request(self, request: Request) -> asyncio.Task[None] | None:
        """Carry out a request of the device's own, and complete it. What goes this way can be made to fail by :mod:`aioirqfd.faults`.

        Returns:
            None: it is done. A task: a fault keeps it back; the device ends the task where it would end the request.

        Raises:
            Exception: What the request's own methods raise.
        """
        if self.interception is not None:
            return await self.interception.serve_request(request)
        await request.perform()
        await request.complete(late=False)
        return None

    def intercept(self, interception: Interception | None) -> None:
        """From now on, have accesses, transfers and interrupts go by this; None: by nobody, as at first. For :mod:`aioirqfd.faults`.

        Threads: the loop's, while the device is served.
        """
        self.interception = interception
        if self.function is not None:
            self.function.look_again()

    def note(self, step: FlightKind, queue: int, request: int = 0) -> None:
        """Have a flight recorder note a step of one of the device's own queues; without a recorder nothing happens.

        So ``aioirqfd trace`` follows each request, and the ledger finds a completion that nobody was told of. The queues of a
        :class:`~aioirqfd.virtio_pci.VirtioPci` do so by themselves.

        Args:
            step: ``KICK``, the queue is looked into; ``REQUEST_BEGUN`` and ``REQUEST_COMPLETED``, the driver has the answer;
                ``CALL``, the driver is interrupted for what was completed, just before that is done.
            queue: Its number, 0..2**32-1.
            request: The number by which the queue's requests that are under way are told apart, 0..2**64-1.

        Threads: the loop's.
        """
        if self.function is not None:
            self.function.note(step, queue, request)

    def trace_once(self, event: str, **fields: object) -> None:
        """Have something traced the first time that it happens, with these very fields."""
        if self.function is not None:
            self.function.trace_once(event, fields)
