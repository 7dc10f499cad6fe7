"""Faults of a PCI device: accesses to its registers and its configuration space, its transfers, its interrupts, its own requests."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final, final

from aioirqfd.faults.line import Line
from aioirqfd.faults.match import FaultError
from aioirqfd.faults.request import Request
from aioirqfd.faults.targets import Target, wanted_of
from aioirqfd.pci.errors import DmaError
from aioirqfd.serving.reports import name_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from aioirqfd.faults.faults import Faults
    from aioirqfd.faults.match import Match
    from aioirqfd.faults.request import Stage
    from aioirqfd.pci.device import PciDevice
    from aioirqfd.pci.interception import Request as DeviceRequest

CONFIG: Final = 7
"""The region that is the configuration space, as in VFIO; the ROM is the one before."""
ROM: Final = 6
PIN: Final = -1


class _Bytes(Request):
    """An access or a transfer: some bytes to read, or to write."""

    def __init__(
        self,
        kind: str,
        fields: Mapping[str, int | str],
        target: PciTarget,
        *,
        read: Callable[[], Awaitable[bytes]] | None = None,
        write: Callable[[bytes], Awaitable[None]] | None = None,
        data: bytes = b"",
    ) -> None:
        super().__init__(kind, fields, name_of(target.device))
        self.target: Final = target
        self.data = data or b"\xff" * int(fields["size"])
        self._read = read
        self._write = write

    def content(self) -> bytes:
        """What is written."""
        return b"" if self._write is None else self.data

    async def perform(self) -> None:
        """Read, or write."""
        if self._read is not None:
            self.data = await self._read()
        elif self._write is not None:
            await self._write(self.data)

    def corrupt(self, what: str, offset: int, size: int, mask: int) -> None:
        """Flip bits."""
        if what != ("data" if self._write is None else "written"):
            raise self._cannot(f"have {what!r} corrupted")
        data = bytearray(self.data)
        for at in range(offset, min(offset + size, len(data))):
            data[at] ^= mask & 0xFF
        self.data = bytes(data)


@final
class RegisterAccess(_Bytes):
    """An access to a BAR or the configuration space. One that is dropped, or that finds the device gone, reads as ones."""

    stage: ClassVar[Stage] = "register"
    identity_fields: ClassVar = ("bar", "offset")

    def all_ones(self) -> None:
        """What is to be read is ones already."""

    async def reset(self) -> None:
        """Reset the function."""
        await self.target.reset()


@final
class Transfer(_Bytes):
    """A transfer from or to the guest's memory. Its address is the driver's choice, and another one in each run."""

    stage: ClassVar[Stage] = "dma"
    identity_fields: ClassVar = ("size",)
    failed = False

    def fail(self, status: int | None) -> None:
        """Be refused."""
        del status
        self.failed = True


@final
class Command(Request):
    """A request of the device's own."""

    identity_fields: ClassVar = ("sector",)

    def __init__(self, target: PciTarget, request: DeviceRequest) -> None:
        super().__init__(request.kind, request.fields, name_of(target.device))
        self.target: Final = target
        self.request: Final = request

    async def perform(self) -> None:
        """Have the device carry it out."""
        await self.request.perform()

    def fail(self, status: int | None) -> None:
        """Have failed."""
        self.request.fail(status)

    def pretend(self) -> None:
        """As it was made, it has succeeded."""

    def corrupt(self, what: str, offset: int, size: int, mask: int) -> None:
        """Flip bits of the number by which the driver knows it."""
        misname = getattr(self.request, "misname", None)
        if what != "id" or misname is None:
            raise self._cannot(f"have {what!r} corrupted")
        misname(mask)

    def repeat(self, times: int, gap: float) -> None:
        """Complete it again."""
        for number in range(times):
            again = functools.partial(self.target.start, self.request.complete(late=True))
            self.target.faults.later((number + 1) * gap, again)

    def interrupt(self) -> None:
        """Interrupt for it."""
        ring = getattr(self.request, "interrupt", None)
        if ring is None:
            raise self._cannot("have its interrupt first")
        ring()

    async def reset(self) -> None:
        """Reset the function."""
        await self.target.reset()


@final
class PciTarget(Target):
    """A PCI device.

    Args:
        faults: Whose.
        device: The device.
    """

    any_kind = True
    fields: ClassVar = ()

    def __init__(self, faults: Faults, device: PciDevice) -> None:
        super().__init__(faults)
        self.device: Final = device
        self._passing: Counter[int] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._names = {(one.bar, one.offset): one.name for one in device.registers}

    def attach(self, *, attached: bool) -> None:
        """Come between the device and whoever serves it, or let it be."""
        wanted = self if attached else None
        if self.device.interception is not wanted:
            self.device.intercept(wanted)

    def interrupt_for_nothing(self, match: Match, *, always: bool) -> list[dict[str, int | str]]:
        """Interrupt by these vectors, if they are enabled."""
        function = self.device.function
        if function is None:
            return []
        interrupts = function.interrupts
        vectors = wanted_of(match, "vector", range(len(interrupts)))
        chosen = [
            vector for vector in vectors if always or (interrupts.bound(vector) and not interrupts.masked(vector))
        ]
        return [
            self._line("interrupt", vector).ring_for_nothing(functools.partial(self._deliver, vector))
            for vector in chosen
        ]

    async def reset(self) -> None:
        """Reset the function, as its driver could."""
        if self.device.function is not None:
            await self.device.function.reset()

    def start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Have something go on."""
        task = asyncio.create_task(work, name="aioirqfd fault")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- in place of the device --------------------------------------------------------------------------------------

    async def read(self, region: int, offset: int, size: int, proceed: Callable[[], Awaitable[bytes]], /) -> bytes:
        """An access that reads."""
        if region == ROM:
            return await proceed()
        kind, fields = self._described(region, offset, size, "read")
        access = RegisterAccess(kind, fields, self, read=proceed)
        await self.faults.course(access)
        return access.data

    async def write(
        self, region: int, offset: int, data: bytes, proceed: Callable[[bytes], Awaitable[None]], /
    ) -> None:
        """An access that writes."""
        if region == ROM:
            await proceed(data)
            return
        kind, fields = self._described(region, offset, len(data), "write")
        await self.faults.course(RegisterAccess(kind, fields, self, write=proceed, data=data))

    def _described(self, region: int, offset: int, size: int, how: str) -> tuple[str, dict[str, int | str]]:
        if region == CONFIG:
            return f"config-{how}", {"offset": offset, "size": size}
        fields: dict[str, int | str] = {"bar": region, "offset": offset, "size": size}
        if (name := self._names.get((region, offset))) is not None:
            fields["register"] = name
        return f"register-{how}", fields

    async def dma_read(self, address: int, size: int, proceed: Callable[[], Awaitable[bytes]], /) -> bytes:
        """A transfer from the guest's memory. One that is dropped reads as ones."""
        transfer = Transfer("dma-read", {"address": address, "size": size}, self, read=proceed)
        await self._transfer(transfer)
        return transfer.data

    async def dma_write(self, address: int, data: bytes, proceed: Callable[[bytes], Awaitable[None]], /) -> None:
        """A transfer to the guest's memory."""
        fields = {"address": address, "size": len(data)}
        await self._transfer(Transfer("dma-write", fields, self, write=proceed, data=data))

    async def _transfer(self, transfer: Transfer) -> None:
        await self.faults.course(transfer)
        if transfer.failed:
            fields = transfer.fields
            raise DmaError(f"{fields['size']} bytes at {fields['address']:#x}: a fault was set")

    def signal(self, vector: int, proceed: Callable[[int], bool], /) -> bool:
        """An interrupt."""
        if self._passing[vector]:
            self._passing[vector] -= 1
            return proceed(vector)
        taken = now = True

        def deliver(to: int | None) -> None:
            nonlocal taken
            if now and to is None:
                taken = proceed(vector)
            else:
                self._deliver(vector, to)

        self._line("interrupt", vector).want(deliver)
        now = False
        return taken

    def _deliver(self, vector: int, to: int | None) -> None:
        """Interrupt by a vector, or by another one, now or as soon as there is somebody to tell."""
        vector = vector if to is None else to
        function = self.device.function
        if function is None:
            return
        interrupts = function.interrupts
        if vector == PIN:
            if not interrupts.deliver(PIN):
                interrupts.unmask(PIN)
            return
        if vector >= len(interrupts):
            raise FaultError(f"the device has vectors 0..{len(interrupts) - 1}, not {vector}")
        if interrupts.masked(vector) or not interrupts.deliver(vector):
            self._passing[vector] += 1
            interrupts.signal(vector)

    def lower(self, proceed: Callable[[], None], /) -> None:
        """The pin is about to go down; from any thread."""
        function = self.device.function
        if function is not None and self._elsewhere():
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self.lower, proceed)
            return
        self._line("deassert", PIN).want(lambda _: proceed())

    def _elsewhere(self) -> bool:
        """Whether this is another thread than the loop's."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._loop is not None
        return False

    def _line(self, kind: str, vector: int) -> Line:
        key = kind, vector
        if key not in self.lines:
            self._elsewhere()
            name: int | str = "pin" if vector == PIN else vector
            self.lines[key] = Line(self.faults, kind, {"vector": name}, device=name_of(self.device))
        return self.lines[key]

    async def serve_request(self, request: DeviceRequest, /) -> asyncio.Task[None]:
        """A request of the device's own: in a task, so that others go on where this one is kept back."""
        return self.start(self._take(request))

    async def _take(self, request: DeviceRequest) -> None:
        try:
            if await self.faults.course(Command(self, request)):
                await request.complete(late=True)
        except Exception as error:
            name = type(self.device).__qualname__
            told = {
                "message": f"aioirqfd: {name} raised for a {request.kind}, and does not answer it",
                "exception": error,
            }
            asyncio.get_running_loop().call_exception_handler(told)
