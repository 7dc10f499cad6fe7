"""A function stands still: paused, saved or restored, and resumed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar, final

from aioirqfd.errors import ClosedError, SnapshotError
from aioirqfd.pci import snapshot
from aioirqfd.serving.reports import name_of
from aioirqfd.serving.waiting import wait_through

if TYPE_CHECKING:
    from aioirqfd.pci.device import PciDevice
    from aioirqfd.pci.function import PciFunction
    from aioirqfd.pci.state import PciFunctionState

_Device = TypeVar("_Device", bound="PciDevice")


@final
class Standstill(Generic[_Device]):
    """What :meth:`PciFunction.pause <aioirqfd.pci.PciFunction.pause>` and its kin do.

    Args:
        function: The function.

    Attributes:
        paused: Whether it stands still.

    Threads: the loop's.
    """

    __slots__ = ("_function", "_lock", "paused")

    def __init__(self, function: PciFunction[_Device]) -> None:
        self._function = function
        self._lock = asyncio.Lock()
        self.paused = False

    async def pause(self, timeout: float | None) -> None:  # noqa: ASYNC109  it is to name what has not ended
        """As :meth:`PciFunction.pause <aioirqfd.pci.PciFunction.pause>`."""
        async with self._lock:
            if self.paused:
                return
            function = self._function
            device = function.device
            if device.function is not function:
                raise ClosedError(f"{function!r} is not served: enter it with `async with` first")
            try:
                await self._bring_to_rest(device, timeout)
                await function.interrupts.pause()
            except BaseException:
                self._go_on()
                raise
            self.paused = True

    async def _bring_to_rest(self, device: _Device, timeout: float | None) -> None:  # noqa: ASYNC109
        resting = asyncio.create_task(device.pause(), name=f"aioirqfd {name_of(device)}.pause")
        try:
            done, _ = await asyncio.wait({resting}, timeout=timeout)
        except asyncio.CancelledError:
            resting.cancel()
            await wait_through(resting)
            raise
        if done:
            resting.result()
            return
        late = device.under_way()
        resting.cancel()
        await wait_through(resting)
        what = f" ({'; '.join(late)})" if late else ""
        failed = None if resting.cancelled() else resting.exception()
        raise TimeoutError(f"{name_of(device)} has not come to rest within {timeout:g} s{what}; it runs on") from failed

    def resume(self) -> None:
        """As :meth:`PciFunction.resume <aioirqfd.pci.PciFunction.resume>`."""
        if self._lock.locked():
            raise RuntimeError(f"{self._function!r} is just being paused or restored: wait for that first")
        if self.paused:
            self.paused = False
            self._go_on()

    def _go_on(self) -> None:
        # Whoever has the function in a slot learns only now where its BARs are: by then its own part is restored, too.
        self._function.look_again()
        self._function.interrupts.resume()
        self._function.device.resume()

    def save(self) -> PciFunctionState:
        """As :meth:`PciFunction.save <aioirqfd.pci.PciFunction.save>`."""
        self._check_paused("saved")
        return snapshot.take(self._function)

    async def restore(self, state: PciFunctionState) -> None:
        """As :meth:`PciFunction.restore <aioirqfd.pci.PciFunction.restore>`."""
        self._check_paused("restored")
        async with self._lock:
            function = self._function
            snapshot.check(function, state)
            await function.reset()
            try:
                snapshot.put(function, state)
            except BaseException:
                await function.reset()
                raise
            function.command_written()

    def _check_paused(self, what: str) -> None:
        if not self.paused or self._lock.locked():
            raise SnapshotError(f"{self._function!r} is {what} while it stands still: await its pause() first")
