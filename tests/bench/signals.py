"""Signals of this process: on the loop's own thread, and in a burst from another."""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from typing import TYPE_CHECKING

from aioirqfd import EventFd, IrqManager, Msi
from aioirqfd.kvm import Kvm, RoutingEntry, usable
from tests.bench.loops import on_loops
from tests.bench.measure import Case
from tests.bench.sinks import CountingSink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SIGNALS = 20_000
BURST = 200_000


async def loop_thread() -> float:
    """From ``signal()`` until ``try_inject`` has returned: it is one call."""
    sink = CountingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            signal = kick.signal
            begin = time.perf_counter_ns()
            for _ in range(SIGNALS):
                signal()
            took = time.perf_counter_ns() - begin
            assert sink.count == SIGNALS
    return took / SIGNALS


def beside_set_route(*, another: bool) -> Callable[[], Awaitable[float]]:
    """64 signals of as many irqfds, each to its own gsi, right after a set_route; of another gsi, or one that changes nothing."""

    async def run() -> float:
        sink = CountingSink()
        async with IrqManager(sink) as irqs:
            kicks = [EventFd() for _ in range(64)]
            for gsi, kick in enumerate(kicks):
                irqs.assign(kick, gsi=gsi)
            took: list[int] = []
            for number in range(300):
                irqs.set_route(100, Msi(0xFEE00000, number if another else 0))
                begin = time.perf_counter_ns()
                for kick in kicks:
                    kick.signal()
                took.append(time.perf_counter_ns() - begin)
            assert sink.count == 300 * len(kicks)
            for kick in kicks:
                kick.close()
        return statistics.median(took) / len(kicks)

    return run


def kvm_irqfd(*, msi: bool) -> float:
    """``os.eventfd_write`` on an eventfd that the kernel has bound: the call returns when the kernel has seen to it."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        with vm.create_vcpu(0):
            if msi:
                vm.set_gsi_routing([RoutingEntry.msi(30, 0xFEE00000, 0x31)])
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            vm.irqfd(fd, 30 if msi else 5)
            write = os.eventfd_write
            begin = time.perf_counter_ns()
            for _ in range(SIGNALS):
                write(fd, 1)
            took = time.perf_counter_ns() - begin
            os.close(fd)
    return took / SIGNALS


async def thread_burst() -> float:
    """200,000 signals from another thread, until the last is injected."""
    sink = CountingSink()
    last: list[int] = []
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqfd = irqs.assign(kick, gsi=5)

            def burst() -> None:
                for _ in range(BURST):
                    kick.signal()

            thread = threading.Thread(target=burst)
            begin = time.perf_counter_ns()
            thread.start()
            while thread.is_alive():
                await asyncio.sleep(0)
            await irqs.flush()
            last.append(time.perf_counter_ns() - begin)
            assert irqfd.statistics().signals == BURST
    return statistics.median(last) / BURST


async def call_soon_threadsafe() -> float:
    """The same by the loop's own means."""
    loop = asyncio.get_running_loop()
    count = 0
    done: asyncio.Future[None] = loop.create_future()

    def on_signal() -> None:
        nonlocal count
        count += 1
        if count == BURST:
            done.set_result(None)

    def burst() -> None:
        for _ in range(BURST):
            loop.call_soon_threadsafe(on_signal)

    thread = threading.Thread(target=burst)
    begin = time.perf_counter_ns()
    thread.start()
    await done
    took = time.perf_counter_ns() - begin
    await asyncio.to_thread(thread.join)
    return took / BURST


async def janus_queue() -> float:
    """The same through a janus queue, a tenth of them."""
    import janus

    queue: janus.Queue[int] = janus.Queue()
    n = BURST // 10

    def burst() -> None:
        for number in range(n):
            queue.sync_q.put(number)

    thread = threading.Thread(target=burst)
    begin = time.perf_counter_ns()
    thread.start()
    for _ in range(n):
        await queue.async_q.get()
    took = time.perf_counter_ns() - begin
    await asyncio.to_thread(thread.join)
    await queue.aclose()
    return took / n


def cases() -> list[Case]:
    """All that this machine can run."""
    found = on_loops("signal/{loop} aioirqfd", loop_thread)
    found += on_loops("set_route/another/{loop}", beside_set_route(another=True))
    found += on_loops("set_route/none/{loop}", beside_set_route(another=False))
    if usable() is None:
        found.append(Case("signal/KVM irqfd pin", lambda: kvm_irqfd(msi=False)))
        found.append(Case("signal/KVM irqfd MSI", lambda: kvm_irqfd(msi=True)))
    found += on_loops("burst/{loop} aioirqfd", thread_burst)
    found += on_loops("burst/{loop} call_soon_threadsafe", call_soon_threadsafe)
    try:
        import janus  # noqa: F401
    except ImportError:
        return found
    return found + on_loops("burst/{loop} janus", janus_queue)
