"""The verdict on a machine whose interrupt controller does lose interrupts, or whose guest is stopped."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from aioirqfd import EventFd
from aioirqfd.irqfd.interrupt import Action, Interrupt
from examples.vmm import ports
from examples.vmm.accel import SlowPic
from examples.vmm.cpu import CpuError
from examples.vmm.cpu_unicorn import UnicornCpu
from examples.vmm.machine import Machine
from examples.vmm.options import Options
from examples.vmm.portio import words
from examples.vmm.streams import Output, TextSource
from examples.vmm.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.irqfd.routing import RoutingTable


class LossySink:
    """An 8259 pair that some interrupts never reach."""

    def __init__(self, machine: Machine, lost: Callable[[Interrupt], bool]) -> None:
        cpu = machine._cpu
        assert isinstance(cpu, UnicornCpu)
        self.pic = cpu.sink
        self.lost = lost

    async def inject(self, interrupt: Interrupt) -> None:
        self.try_inject(interrupt)

    def try_inject(self, interrupt: Interrupt) -> bool:
        return self.lost(interrupt) or self.pic.try_inject(interrupt)

    def bind(self, ack: Callable[[int], None]) -> None:
        self.pic.bind(ack)

    def set_routing(self, table: RoutingTable) -> None:
        self.pic.set_routing(table)


@pytest.fixture
def output():
    fd = os.open(os.devnull, os.O_WRONLY)
    yield Output(fd)
    os.close(fd)


def machine_with(output: Output, *, ticks: int = 3, patience: float = 0.3, data: bytes = b"abc") -> Machine:
    options = Options(accel="unicorn", hz=1000, ticks=ticks)
    return Machine(options, source=TextSource(data), output=output, patience=patience)


def first_of(pin: int) -> Callable[[Interrupt], bool]:
    """Whether this is the first interrupt that raises the pin."""
    seen = 0

    def lost(interrupt: Interrupt) -> bool:
        nonlocal seen
        if interrupt.gsi != pin or interrupt.action is Action.DEASSERT:
            return False
        seen += 1
        return seen == 1

    return lost


@pytest.mark.parametrize(
    ("pin", "expected"),
    [
        (ports.TIMER_PIN, "timer: 1 ticks signalled, the guest heard of 0"),
        (ports.SERIAL_PIN, "serial: 3 bytes fed, 0 came back"),
        (ports.ECHO_PIN, "the guest did not report"),
        (ports.POWER_PIN, "the guest did not report"),
    ],
    ids=["tick", "byte", "answer", "power"],
)
async def test_a_lost_interrupt_is_found(output, pin, expected):
    # One tick: the interrupt of a later one would tell the guest of an earlier one too.
    machine = machine_with(output, ticks=1)
    machine._sink = LossySink(machine, first_of(pin))
    report = await machine.run()
    assert [text for text in report.contradictions() if text.startswith(expected)]


async def test_a_sink_that_loses_nothing_passes(output):
    machine = machine_with(output, patience=30)
    machine._sink = LossySink(machine, lambda _: False)
    report = await machine.run()
    assert report.contradictions() == []
    assert (report.ticks, report.rings, report.fed, report.printed) == (3, report.echo.signals, 3, 3)


async def test_a_wrong_answer_is_found(output):
    machine = machine_with(output, patience=30)
    machine._io.on_write(ports.ECHO_PORT, words(lambda question: machine._echo._ask(question ^ 1)))
    report = await machine.run()
    assert report.guest is not None
    assert report.contradictions() == [f"echo: {report.rings} wrong answers"]


async def test_a_changed_byte_is_found(output):
    machine = machine_with(output, patience=30)
    take = machine._serial._take
    machine._io.on_read(ports.SERIAL_PORT, lambda size, count: take(size, count).replace(b"b", b"B"))
    report = await machine.run()
    assert report.contradictions() == ["serial: the bytes that came back are not the ones that were fed"]


async def test_stop_before_the_guest_is_ready(output):
    machine = machine_with(output, ticks=1_000_000, patience=30)
    machine.stop()
    report = await machine.run()
    assert report.contradictions() == []
    assert report.fed == 0


async def test_an_error_of_the_guest_ends_the_run(output):
    machine = machine_with(output, ticks=1_000_000, patience=30)

    def crash(_size: int, _count: int) -> bytes:
        raise CpuError("crashed")

    machine._io.on_read(ports.TIMER_PORT, crash)
    with pytest.raises(CpuError, match="crashed"):
        await machine.run()


async def test_a_guest_that_switches_itself_off_is_an_error(output):
    machine = machine_with(output, ticks=1_000_000, patience=30)
    machine._io.on_write(ports.READY_PORT, lambda _data, _size: machine._cpu.stop())
    with pytest.raises(CpuError, match="the guest switched itself off"):
        await machine.run()


async def test_cancelled_in_the_middle_it_gives_everything_back(output):
    machine = machine_with(output, ticks=1_000_000, patience=30)
    ticked = asyncio.Event()
    loop = asyncio.get_running_loop()
    take = machine._timer._take

    def read(size: int, _count: int) -> bytes:
        loop.call_soon_threadsafe(ticked.set)
        return take().to_bytes(size, "little")

    machine._io.on_read(ports.TIMER_PORT, read)
    running = asyncio.ensure_future(machine.run())
    await ticked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_tick_is_counted_before_it_is_signalled():
    timer = Timer(period=1e-6, ticks=3)
    read: list[int] = []

    class Trigger:
        def signal(self) -> None:
            read.append(timer._take())

    timer.trigger.close()
    timer.trigger = Trigger()  # type: ignore[assignment]
    await timer.run()
    await timer.wait_seen()
    assert read == [1, 2, 3]
    timer.trigger = EventFd()
    timer.close()


def test_the_queues_sink_has_no_fast_tier():
    assert not hasattr(SlowPic, "try_inject")
    assert not hasattr(SlowPic, "try_inject_batch")
