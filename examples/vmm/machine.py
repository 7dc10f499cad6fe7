"""The machine: one CPU in a thread, four devices on the loop, and the irqfds between them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Final, final

from aioirqfd import IrqchipPin, IrqManager
from aioirqfd.tracer import NULL_TRACER
from examples.vmm import accel, ports
from examples.vmm.build_guest import IMAGE
from examples.vmm.console import Console
from examples.vmm.cpu import CpuError
from examples.vmm.echo import Echo
from examples.vmm.portio import PortIo
from examples.vmm.power import Power
from examples.vmm.report import GuestCounts, Line, Report
from examples.vmm.serial import Serial
from examples.vmm.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from aioirqfd import IrqFd
    from aioirqfd.tracer import Tracer
    from examples.vmm.options import Options
    from examples.vmm.streams import Output, Source

PATIENCE: Final = 10.0
"""Seconds to wait for the guest before an interrupt counts as lost. The guest answers within milliseconds."""


@final
class Machine:
    """Everything wired together; runs once.

    Args:
        options: The CPU, the way of injection, and the timer.
        source: What the serial receiver gets.
        output: Where the guest's console goes.
        tracer: Hears what the :class:`aioirqfd.IrqManager` does.
        patience: Seconds to wait for the guest before an interrupt counts as lost.

    Attributes:
        name: The CPU and the way of injection that were chosen, for people.
        why_not_kvm: Why ``--accel auto`` did not take KVM, and what to do about it; None if it did, or was not asked.

    Raises:
        CpuError: The CPU cannot be had.
    """

    def __init__(
        self,
        options: Options,
        *,
        source: Source,
        output: Output,
        tracer: Tracer = NULL_TRACER,
        patience: float = PATIENCE,
    ) -> None:
        self._io = PortIo()
        chosen = accel.choose(options.accel, options.inject, self._io)
        self._cpu = chosen.cpu
        self._sink = chosen.sink
        self.name = f"{chosen.cpu.name}, {chosen.way}"
        self.why_not_kvm = chosen.why_not_kvm
        self._tracer = tracer
        self._patience = patience
        self._source = source
        self._console = Console(output)
        self._timer = Timer(period=1 / options.hz, ticks=options.ticks)
        self._echo = Echo()
        self._serial = Serial(source, self._console, patience=patience)
        self._power = Power(self._cpu.stop)
        self._ticking: asyncio.Task[None] | None = None
        self._stopping = False
        for device in (self._console, self._timer, self._echo, self._serial, self._power):
            device.connect(self._io)
        self._cpu.add_doorbell(self._echo.doorbell, port=ports.DOORBELL_PORT, value=ports.DOORBELL_VALUE)
        self._cpu.load(ports.LOAD, IMAGE.read_bytes())

    def stop(self) -> None:
        """No more ticks and no more input; :meth:`run` then ends as it does by itself. On the loop's thread."""
        self._stopping = True
        self._source.stop()
        if self._ticking is not None:
            self._ticking.cancel()

    async def run(self) -> Report:
        """Run the guest to its report.

        Raises:
            CpuError: The guest crashed.
            OSError: The input or the output failed.

        Cancellation: the CPU is stopped where it is; nothing is reported.
        """
        try:
            pins = (ports.TIMER_PIN, ports.ECHO_PIN, ports.SERIAL_PIN, ports.POWER_PIN)
            routing = {pin: IrqchipPin("pic", pin) for pin in pins}
            # docs: begin wiring
            async with IrqManager(self._sink, routing=routing, tracer=self._tracer) as irqs:
                timer = irqs.assign(self._timer.trigger, gsi=ports.TIMER_PIN)
                echo = irqs.assign(self._echo.trigger, gsi=ports.ECHO_PIN)
                serial = irqs.assign(self._serial.trigger, gsi=ports.SERIAL_PIN, resamplefd=self._serial.resample)
                power = irqs.assign(self._power.trigger, gsi=ports.POWER_PIN)
                await self._run_guest()
                # docs: end wiring
                return Report(
                    timer=_line("timer", timer, self._timer.ticks),
                    echo=_line("echo", echo, self._echo.answers),
                    serial=_line("serial", serial, self._serial.asserted, level=True),
                    power=_line("power", power, self._power.presses),
                    ticks=self._timer.ticks,
                    rings=self._echo.rings,
                    fed=self._serial.fed,
                    printed=self._console.printed,
                    intact=self._console.digest.digest() == self._serial.digest.digest(),
                    guest=GuestCounts.from_words(self._power.words),
                )
        finally:
            self._close()

    async def _run_guest(self) -> None:
        loop = asyncio.get_running_loop()
        off: asyncio.Future[None] = loop.create_future()

        def run_cpu() -> None:
            failure: BaseException | None = None
            try:
                self._cpu.run()
            except BaseException as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody wants to know any more
                loop.call_soon_threadsafe(_settle, off, failure)

        thread = threading.Thread(target=run_cpu, name="vcpu", daemon=True)
        devices = [asyncio.ensure_future(device) for device in (self._console.run(), self._echo.run())]
        thread.start()
        try:
            # A guest that does not answer in time has lost something, which the report will show.
            with contextlib.suppress(TimeoutError):
                await _unless(self._operate(), off, *devices)
            self._power.press()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await _unless(asyncio.shield(off), *devices)
            await _unless(self._console.wait_written(), *devices)
        finally:
            self._cpu.stop()
            thread.join()
            for device in devices:
                device.cancel()
            await asyncio.gather(*devices, return_exceptions=True)
            off.cancel()

    async def _operate(self) -> None:
        """Let the timer tick and the receiver receive until both are done and the guest has heard of it all.

        Raises:
            TimeoutError: The guest did not answer.
            OSError: The input failed.
        """
        async with asyncio.timeout(PATIENCE):
            await self._power.wait_ready()
        self._ticking = asyncio.create_task(self._timer.run())
        self._ticking.add_done_callback(lambda _: self._source.give_up())
        feeding = asyncio.create_task(self._serial.run())
        if self._stopping:
            self.stop()
        try:
            await asyncio.wait((self._ticking, feeding), return_when=asyncio.FIRST_EXCEPTION)
            if feeding.done():
                feeding.result()
        finally:
            self._ticking.cancel()
            feeding.cancel()
            await asyncio.gather(self._ticking, feeding, return_exceptions=True)
        async with asyncio.timeout(self._patience):
            await self._timer.wait_seen()

    def _close(self) -> None:
        for device in (self._console, self._timer, self._echo, self._serial, self._power):
            device.close()
        self._cpu.close()


def _line(name: str, irqfd: IrqFd, signals: int, *, level: bool = False) -> Line:
    return Line(name, signals, None if irqfd.offloaded else irqfd.statistics().injections, level=level)


def _settle(future: asyncio.Future[None], failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)


async def _unless(work: Coroutine[object, object, None] | asyncio.Future[None], *others: asyncio.Future[None]) -> None:
    """Do the work, unless one of the others ends first: then raise what it raised.

    Raises:
        CpuError: One of them ended without an error, which none may.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, *others), return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            if other.done():
                other.result()
                if not task.done():
                    raise CpuError("the guest switched itself off")
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
