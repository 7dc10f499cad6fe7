"""Context variables: what a manager calls runs in the context it was entered in, and each run of a handler in a copy of that."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading

import pytest

from aioirqfd import EventFd, IrqchipPin, IrqManager, Retry
from tests.irqfd.helpers import write

VM = contextvars.ContextVar("VM", default="nobody")
ROUTING = {gsi: IrqchipPin("ioapic", gsi) for gsi in (1, 2, 3)}


class Machine:
    """A manager's sink and its tracer."""

    per_interrupt = False

    def __init__(self, name, *, refuses=False):
        self.name = name
        self.refuses = refuses
        self.seen = []

    def note(self, what):
        self.seen.append((what, VM.get()))

    async def inject(self, interrupt):
        self.note("inject")

    def try_inject(self, interrupt):
        self.note("try_inject")
        return not self.refuses

    def emit(self, event, /, **fields):
        if event in {"interrupt_dropped", "injection_failed"}:
            self.note(event)


@contextlib.asynccontextmanager
async def entered(machine, *, retry=None):
    """A manager that was entered by a task of its own, where VM is the machine's name."""
    ready, done = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def run():
        VM.set(machine.name)
        async with IrqManager(machine, routing=ROUTING, tracer=machine, retry=retry) as irqs:
            ready.set_result(irqs)
            await done.wait()

    task = asyncio.create_task(run())
    try:
        yield await ready
    finally:
        done.set()
        await task


@pytest.mark.parametrize("how", [EventFd.signal, write])
@pytest.mark.parametrize("eventfds", [1, 3])
async def test_each_manager_calls_its_sink_in_its_own_context(how, eventfds):
    machines = [Machine("A"), Machine("B", refuses=True)]
    async with entered(machines[0]) as first, entered(machines[1]) as second:
        for irqs in (first, second):
            kicks = [EventFd() for _ in range(eventfds)]
            for gsi, kick in enumerate(kicks, 1):
                irqs.assign(kick, gsi=gsi)
            for kick in kicks:
                how(kick)
            await irqs.flush()
            for kick in kicks:
                kick.close()
            await irqs.flush()
    assert machines[0].seen == [("try_inject", "A")] * eventfds
    assert sorted(machines[1].seen) == [("inject", "B")] * eventfds + [("try_inject", "B")] * eventfds
    assert VM.get() == "nobody"


async def test_its_tracer_too():
    machine = Machine("A")
    async with entered(Machine("first, and long gone")):
        pass
    async with entered(machine) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=9)
            write(kick)
            await irqs.flush()
    assert machine.seen == [("interrupt_dropped", "A")]


@pytest.mark.parametrize("handlers", [1, 2])
@pytest.mark.parametrize("waits", [False, True])
async def test_no_handler_sees_what_another_run_has_set(handlers, waits):
    machine, seen = Machine("A"), []

    async def on_wakeup(irqfd, count):
        seen.append(VM.get())
        VM.set(f"set by gsi {irqfd.gsi}")
        if waits:
            await asyncio.sleep(0)
        assert VM.get() == f"set by gsi {irqfd.gsi}"
        seen.append(await asyncio.create_task(asyncio.sleep(0, VM.get())))

    async with entered(machine) as irqs:
        kicks = [EventFd() for _ in range(2)]
        for gsi, kick in enumerate(kicks, 1):
            irqs.assign(kick, gsi=gsi, wakeup=[on_wakeup] * handlers)
        for _ in range(2):
            for kick in kicks:
                write(kick)
            await irqs.flush()
        for kick in kicks:
            kick.close()
        await irqs.flush()
    assert seen.count("A") == 4 * handlers
    assert {one for one in seen if one != "A"} == {"set by gsi 1", "set by gsi 2"}
    assert machine.seen == [("try_inject", "A")] * 4


@pytest.mark.parametrize("handlers", [1, 2])
async def test_a_handler_that_fails_and_one_that_is_cancelled_leave_the_context(handlers):
    machine, attempts = Machine("A"), []

    async def on_wakeup(irqfd, count):
        attempts.append(VM.get())
        VM.set("left behind")
        await asyncio.sleep(0)
        if len(attempts) == 1:
            raise OSError("not yet")

    async with entered(machine, retry=Retry(initial=0, maximum=0)) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=1, wakeup=[on_wakeup] * handlers)
            kick.signal()
            await irqs.flush()
    assert attempts == ["A"] * (1 + handlers)
    assert machine.seen == [("injection_failed", "A"), ("try_inject", "A")]


@pytest.mark.parametrize("thread", [False, True])
async def test_an_end_of_interrupt_lowers_the_line_in_the_manager_s_context(thread):
    machine = Machine("A")
    async with entered(machine) as irqs:
        with EventFd() as kick, EventFd() as unmask:
            irqs.assign(kick, gsi=1, resamplefd=unmask)
            kick.signal()
            if thread:
                vcpu = threading.Thread(target=irqs.ack, args=(1,))
                vcpu.start()
                vcpu.join()
            else:
                irqs.ack(1)
            assert unmask.read_nowait() == 1
    assert machine.seen == [("try_inject", "A")] * 2


async def test_a_sink_that_acknowledges_at_another_manager_does_not_lend_it_its_context():
    second = Machine("B")

    class Chained(Machine):
        def try_inject(self, interrupt):
            super().try_inject(interrupt)
            others.ack(1)
            self.note("acknowledged")
            return True

    first = Chained("A")
    async with entered(first) as irqs, entered(second) as others:
        with EventFd() as kick, EventFd() as unmask, EventFd() as other:
            others.assign(other, gsi=1, resamplefd=unmask)
            other.signal()
            irqs.assign(kick, gsi=1)
            kick.signal()
    assert first.seen == [("try_inject", "A"), ("acknowledged", "A")]
    assert second.seen == [("try_inject", "B")] * 2
