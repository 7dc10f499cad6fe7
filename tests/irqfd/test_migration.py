"""From one manager to the next with the same eventfds, while a thread goes on signalling: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from aioirqfd import Action, EventFd, InjectionError, Interrupt, IrqchipPin, IrqFd, IrqManager, Msi, Retry, State
from tests.irqfd.helpers import write

if TYPE_CHECKING:
    from collections.abc import Callable

BURST = 8
ROUTING = {
    **{gsi: IrqchipPin("ioapic", gsi) for gsi in range(8)},
    8: [IrqchipPin("ioapic", 8), IrqchipPin("pic", 8)],
    9: Msi(0xFEE00000, 9),
    10: Msi(0xFEE00000, 10),
}
HELD = 5
"""Has no route until the end."""


@pytest.fixture(autouse=True)
def quick_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Source(threading.Thread):
    """Signals every eventfd in turn, by both ways there are, a burst for each token it is given."""

    def __init__(self, eventfds):
        super().__init__()
        self.sent = Counter()
        self._eventfds = eventfds
        self._tokens = threading.Semaphore(0)
        self._bursts = threading.Semaphore(0)
        self._ends = False

    def run(self):
        while True:
            self._tokens.acquire()
            if self._ends:
                return
            for number in range(BURST):
                for gsi, eventfd in self._eventfds.items():
                    self.sent[gsi] += 1  # before the signal: an injection that begins after it sees it
                    if number % 2:
                        eventfd.signal()
                    else:
                        write(eventfd)
            self._bursts.release()

    def go(self):
        self._tokens.release()

    async def done(self):
        while not self._bursts.acquire(blocking=False):
            await asyncio.sleep(0)

    def end(self):
        self._ends = True
        self._tokens.release()
        self.join()


class Guest:
    """One machine's interrupt controllers: the lines that are up, what arrived, and how much had been sent by then."""

    def __init__(self, sent, before=None, *, fast=True):
        self.sent = sent
        self.lines = set(before.lines) if before else set()
        self.arrived = before.arrived if before else Counter()
        self.seen = before.seen if before else {}
        self.failing: Callable[[Interrupt], bool] | None = None
        self.fast = fast

    def _take(self, interrupt):
        if interrupt.action is Action.DEASSERT:
            self.lines.discard(interrupt.route)
            return
        if interrupt.action is Action.ASSERT:
            self.lines.add(interrupt.route)
        self.arrived[interrupt.gsi, interrupt.route] += 1
        self.seen[interrupt.gsi] = self.sent[interrupt.gsi]

    async def inject(self, interrupt):
        if self.failing is not None and self.failing(interrupt):
            raise OSError("not now")
        self._take(interrupt)

    def try_inject(self, interrupt):
        if not self.fast or (self.failing is not None and self.failing(interrupt)):
            return False
        self._take(interrupt)
        return True


class Machines:
    """The eventfds, the counts, and the manager that has them just now."""

    def __init__(self, stack, *, seed=1, fast=True):
        semaphores = {3, 10}
        self.eventfds = {gsi: stack.enter_context(EventFd(semaphore=gsi in semaphores)) for gsi in range(11)}
        self.resamplefd = stack.enter_context(EventFd())
        self.source = Source(self.eventfds)
        self.told = Counter()
        self.acks = 0
        self.fast = fast
        self.random = random.Random(seed)
        self.guest = Guest(self.source.sent, fast=fast)
        self.irqs: IrqManager
        self.irqfds: dict[int, IrqFd] = {}

    def failing(self, interrupt):
        # The sink has its troubles with 6, and with the second chip of 8.
        troubled = interrupt.gsi == 6 or (interrupt.gsi == 8 and interrupt.route.chip == "pic")
        return troubled and self.random.random() < 0.5

    def handlers(self, gsi):
        async def first(irqfd, count):
            assert count > 0
            self.told[gsi, "first"] += count

        async def second(irqfd, count):
            if gsi == 7 and self.guest.failing is not None and self.random.random() < 0.5:
                raise OSError("not now")
            self.told[gsi, "second"] += count

        return (first, second) if gsi == 7 else (first,) if gsi in {1, 2, 3, 5, 6, 8} else ()

    async def open(self):
        self.guest.failing = self.failing
        self.irqs = await IrqManager(
            self.guest,
            routing=ROUTING,
            unrouted="hold",
            retry=Retry(attempts=1, initial=0.0, maximum=0.0),
            on_error=lambda _: None,
        ).__aenter__()
        # Before the irqfds are there: what is masked in the snapshot is not masked yet.
        await self.irqs.pause()
        self.irqfds = {
            gsi: self.irqs.assign(
                eventfd,
                gsi=gsi,
                wakeup=self.handlers(gsi),
                resamplefd=self.resamplefd if gsi == 4 else None,
            )
            for gsi, eventfd in self.eventfds.items()
        }

    async def begin(self):
        await self.open()
        self.irqs.set_route(HELD, ())
        self.irqfds[2].mask()
        self.irqs.resume()
        self.source.start()

    async def close(self):
        with suppress(InjectionError):  # the sink has its troubles
            await self.irqs.aclose()

    async def migrate(self):
        await self.irqs.pause()
        state = json.loads(json.dumps(self.irqs.snapshot()))
        before, masked = self.guest, [irqfd.masked for irqfd in self.irqfds.values()]
        # The interrupt controllers are migrated by themselves, as they are before the old machine is torn down.
        self.guest = Guest(self.source.sent, before, fast=self.fast)
        await self.close()
        await self.open()
        self.irqs.restore(state)
        assert [irqfd.masked for irqfd in self.irqfds.values()] == masked
        for entry, irqfd in zip(state["irqfds"], self.irqfds.values(), strict=True):
            assert irqfd.pending or not entry["pending"]
        self.irqs.resume()

    def ack(self):
        if self.irqs._irqfds.lines.asserted():
            self.acks += 1
            self.irqs.ack(4)

    async def finish(self):
        """Nothing fails any more, nothing is masked, everything has a route."""
        self.guest.failing = None
        self.irqfds[2].unmask()
        self.irqs.set_route(HELD, ROUTING[HELD])
        for irqfd in self.irqfds.values():
            irqfd.resume()
        await self.irqs.flush()

    def check(self):
        sent = self.source.sent
        totals = Counter()
        for (gsi, _), count in self.guest.arrived.items():
            totals[gsi] += count
        for gsi in sent:
            # Nothing is lost: the last injection came after the last signal.
            assert self.guest.seen[gsi] == sent[gsi], gsi
            # Nothing is made up.
            assert totals[gsi] <= sent[gsi] * (2 if gsi == 8 else 1), gsi
        # Of a semaphore, too: who is told of every signal leaves none behind.
        for gsi in (1, 2, 3, 5, 6, 7, 8):
            assert self.told[gsi, "first"] == sent[gsi], gsi
        assert self.told[7, "second"] == sent[7]
        # Both chips had each injection of 8, although one of them had to be asked again and again.
        assert len({self.guest.arrived[8, route] for route in ROUTING[8]}) == 1
        assert take_one(self.eventfds[3]) == 0


def take_one(eventfd):
    try:
        return eventfd.read_nowait()
    except BlockingIOError:
        return 0


async def run(times, *, fast, seed):
    with ExitStack() as stack:
        machines = Machines(stack, seed=seed, fast=fast)
        await machines.begin()
        try:
            for number in range(times):
                machines.source.go()
                await machines.migrate()
                for _ in range(machines.random.randrange(8)):
                    await asyncio.sleep(0)
                if number % 3 == 0:
                    await machines.source.done()
                    for _ in range(5):
                        await asyncio.sleep(0)
                    machines.ack()
                elif number % 3 == 1:
                    await machines.source.done()
                    broken = [irqfd for irqfd in machines.irqfds.values() if irqfd.state is State.BROKEN]
                    for irqfd in broken:
                        irqfd.resume()
                else:
                    await machines.source.done()
            machines.source.go()
            await machines.source.done()
        finally:
            machines.source.end()
        assert machines.source.sent == dict.fromkeys(machines.eventfds, (times + 1) * BURST)
        await machines.finish()
        await machines.migrate()  # once more with nothing owed
        machines.guest.failing = None
        await machines.irqs.flush()
        # The line stays up over the last migration too, for nobody has acknowledged since.
        assert machines.irqs._irqfds.lines.asserted() == {4: (ROUTING[4],)}
        assert machines.guest.lines == {ROUTING[4]}
        told = take_one(machines.resamplefd)
        assert told == machines.acks
        await machines.close()
        machines.check()
        assert machines.acks > 0


@pytest.mark.trouble
@pytest.mark.parametrize("fast", [True, False])
async def test_50_migrations_under_load(fast):
    await run(50, fast=fast, seed=50)


@pytest.mark.slow
async def test_1000_migrations_under_load():
    await run(1000, fast=True, seed=1000)


# -- one thing at a time ---------------------------------------------------------------------------------------------


class Plain:
    def __init__(self):
        self.interrupts = []

    async def inject(self, interrupt):
        self.interrupts.append(interrupt)


class FailingAt:
    """Fails for one route, until it is told not to."""

    def __init__(self, route=None):
        self.route = route
        self.interrupts = []

    async def inject(self, interrupt):
        if interrupt.route == self.route:
            raise OSError("not now")
        self.interrupts.append(interrupt)


NEVER = Retry(attempts=0)


async def broken_state(sink, eventfd, *, wakeup=(), routing=None):
    """The snapshot of a manager whose one irqfd the sink has failed."""
    irqs = IrqManager(sink, retry=NEVER, routing=routing)
    await irqs.__aenter__()
    irqfd = irqs.assign(eventfd, gsi=5, wakeup=wakeup)
    eventfd.signal(3)
    await irqs.flush()
    assert irqfd.state is State.BROKEN
    await irqs.pause()
    eventfd.signal(2)
    state = json.loads(json.dumps(irqs.snapshot()))
    with pytest.raises(InjectionError):
        await irqs.aclose()
    return state


async def resumed(sink, eventfd, state, *, wakeup=(), routing=None):
    async with IrqManager(sink, routing=routing) as irqs:
        await irqs.pause()
        irqs.assign(eventfd, gsi=5, wakeup=wakeup)
        irqs.restore(state)
        assert irqs.snapshot() == state
        irqs.resume()
        await irqs.flush()


@pytest.mark.trouble
async def test_a_handler_is_not_told_twice_what_the_sink_refused():
    told = []

    async def handler(_irqfd, count):
        told.append(count)

    pin = IrqchipPin("ioapic", 5)
    with EventFd() as eventfd:
        state = await broken_state(FailingAt(pin), eventfd, wakeup=handler)
        assert state["irqfds"] == [
            {"gsi": 5, "level": False, "masked": False, "pending": True, "count": 5, "done": [3, 1, 0]}
        ]
        sink = Plain()
        await resumed(sink, eventfd, state, wakeup=handler)
        assert (told, len(sink.interrupts)) == ([3, 2], 2)


@pytest.mark.trouble
async def test_the_handlers_after_the_one_that_failed_are_told_the_same():
    told = []

    async def first(_irqfd, count):
        told.append(("first", count))

    async def failing(_irqfd, count):
        raise OSError("not now")

    async def second(_irqfd, count):
        told.append(("second", count))

    with EventFd() as eventfd:
        state = await broken_state(Plain(), eventfd, wakeup=[first, failing])
        assert state["irqfds"][0]["done"] == [3, 1, 0]
        sink = Plain()
        await resumed(sink, eventfd, state, wakeup=[first, second])
        assert told == [("first", 3), ("second", 3), ("first", 2), ("second", 2)]
        assert len(sink.interrupts) == 2


@pytest.mark.trouble
async def test_a_chip_that_had_its_interrupt_does_not_get_it_again():
    pins = [IrqchipPin("ioapic", 5), IrqchipPin("pic", 5)]
    first, second = FailingAt(pins[1]), Plain()
    with EventFd() as eventfd:
        state = await broken_state(first, eventfd, routing={5: pins})
        assert state["irqfds"][0]["done"] == [3, 0, 1]
        await resumed(second, eventfd, state, routing={5: pins})
    assert [interrupt.route for interrupt in first.interrupts] == pins[:1]
    assert [interrupt.route for interrupt in second.interrupts] == [pins[1], *pins]


@pytest.mark.trouble
async def test_fewer_handlers_on_the_other_side_are_told_nothing_twice():
    told = []

    async def handler(_irqfd, count):
        told.append(count)

    with EventFd() as eventfd:
        state = await broken_state(FailingAt(IrqchipPin("ioapic", 5)), eventfd, wakeup=[handler, handler])
        assert state["irqfds"][0]["done"] == [3, 2, 0]
        told.clear()
        async with IrqManager(Plain()) as irqs:
            await irqs.pause()
            irqs.assign(eventfd, gsi=5, wakeup=handler)
            irqs.restore(state)
            irqs.resume()
            await irqs.flush()
        assert told == [2]


GOOD = {"gsi": 5, "level": False, "masked": False, "pending": True, "count": 5, "done": [3, 1, 0]}


@pytest.mark.parametrize(
    "change",
    [
        {"done": None},
        {"done": [3, 1]},
        {"done": [3, 1, 0, 0]},
        {"done": [6, 1, 0]},
        {"done": [-1, 1, 0]},
        {"done": [3, -1, 0]},
        {"done": [3, True, 0]},
        {"done": [3, 1.0, 0]},
        {"done": [3, 0, 0]},
        {"done": [3, 0, 1]},
        {"done": [0, 0, 9]},
        {"pending": False, "count": 0, "done": [0, 1, 0]},
        {"count": 2**64 - 1},
        {"more": 1},
    ],
)
async def test_half_done_work_that_cannot_be_is_refused(change):
    with EventFd() as eventfd:
        async with IrqManager(Plain()) as irqs:
            await irqs.pause()
            irqfd = irqs.assign(eventfd, gsi=5)
            state = irqs.snapshot()
            before = (irqfd.state, irqfd.masked, irqs.routing)
            with pytest.raises(ValueError, match=r"irqfds|done|entry|integer"):
                irqs.restore(state | {"irqfds": [GOOD | change]})
            assert (irqfd.state, irqfd.masked, irqs.routing) == before
            irqs.restore(state | {"irqfds": [GOOD]})
            assert irqfd.state is State.PENDING
            irqs.resume()
            await irqs.flush()


async def test_a_sink_that_refuses_the_routing_changes_nothing():
    class Picky(Plain):
        def set_routing(self, table):
            if 77 in table:
                raise OSError("77")

    with EventFd() as eventfd:
        async with IrqManager(Picky()) as irqs:
            await irqs.pause()
            irqfd = irqs.assign(eventfd, gsi=5)
            state = irqs.snapshot()
            routing = irqs.routing
            with pytest.raises(ValueError, match="77"):
                irqs.restore(state | {"routing": [[77, [["msi", 0, 0, None]]]], "irqfds": [GOOD]})
            assert (irqfd.state, irqs.routing) == (State.IDLE, routing)


async def test_a_sink_that_raises_when_a_line_is_restored_gets_it_later():
    class Late:
        def __init__(self):
            self.error: OSError | None = OSError("not now")
            self.interrupts = []

        async def inject(self, interrupt):
            self.interrupts.append(interrupt)

        def try_inject(self, interrupt):
            if self.error is not None:
                raise self.error
            self.interrupts.append(interrupt)
            return True

    sink = Late()
    with EventFd() as eventfd, EventFd() as resamplefd:
        async with IrqManager(sink) as irqs:
            await irqs.pause()
            irqs.assign(eventfd, gsi=5, resamplefd=resamplefd)
            state = irqs.snapshot()
            irqs.restore(state | {"asserted": [[5, [["ioapic", 5]]]]})
            assert sink.interrupts == []
            irqs.resume()
            await irqs.flush()
            assert [interrupt.action for interrupt in sink.interrupts] == [Action.ASSERT]
            assert irqs._irqfds.lines.asserted() == {5: (IrqchipPin("ioapic", 5),)}
            sink.error = None


# -- a sink that watches for itself ----------------------------------------------------------------------------------


class Watcher:
    """Delivers by itself what is written to an eventfd that it has been given."""

    def __init__(self):
        self.given = {}
        self.by_loop = 0
        self.by_watcher = 0
        self.stuck = set()

    async def inject(self, interrupt):
        self.by_loop += 1

    def offload(self, eventfd, interrupt, resamplefd):
        self.given[interrupt.gsi] = eventfd
        return True

    def reclaim(self, eventfd, interrupt):
        self.deliver()
        if interrupt.gsi in self.stuck:
            raise OSError("not now")
        del self.given[interrupt.gsi]

    def deliver(self):
        for eventfd in self.given.values():
            with suppress(BlockingIOError):
                os.eventfd_read(eventfd.fileno())
                self.by_watcher += 1


async def test_what_was_held_is_handed_to_the_sink_that_watches_again():
    sink = Watcher()
    with EventFd() as eventfd:
        async with IrqManager(sink) as irqs:
            irqfd = irqs.assign(eventfd, gsi=5)
            for count in range(1, 4):
                await irqs.pause()
                assert not irqfd.offloaded
                eventfd.signal()
                write(eventfd)
                irqs.resume()
                assert irqfd.offloaded
                sink.deliver()
                assert (sink.by_watcher, sink.by_loop, irqfd.pending) == (count, 0, False)


async def test_a_pause_takes_back_what_it_can():
    sink = Watcher()
    with EventFd() as one, EventFd() as two, EventFd() as three:
        async with IrqManager(sink) as irqs:
            irqfds = [irqs.assign(eventfd, gsi=gsi) for gsi, eventfd in enumerate((one, two, three))]
            sink.stuck = {0, 1, 2}
            await irqs.pause()
            assert [irqfd.offloaded for irqfd in irqfds] == [False, False, False]
            sink.stuck.clear()
            irqs.resume()


# -- a real kernel ---------------------------------------------------------------------------------------------------


@pytest.fixture
def vm():
    from aioirqfd.kvm import Kvm

    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        yield vm


def pic(vm):
    return vm.get_irqchip(0).pic


def clear(vm, pins):
    """What a guest's handler does in the end: the requests are gone."""
    state = vm.get_irqchip(0)
    state.pic.irr &= ~pins
    vm.set_irqchip(state)


def level_triggered(vm, pins):
    state = vm.get_irqchip(0)
    state.pic.elcr |= pins
    vm.set_irqchip(state)


KVM_ROUTING = {gsi: IrqchipPin("pic", gsi) for gsi in (3, 4, 5, 6)}


async def migrate_in_kvm(vm, old, irqs, assign):
    """One pause, snapshot, restore and resume; the new manager, and what must be closed."""
    from aioirqfd.sinks import KvmSink

    state = None
    if irqs is not None:
        await irqs.pause()
        state = json.loads(json.dumps(irqs.snapshot()))
        await irqs.aclose()
        old.close()
    sink = KvmSink(vm)
    new = await IrqManager(sink, routing=KVM_ROUTING).__aenter__()
    await new.pause()
    irqfds = assign(new)
    if state is not None:
        new.restore(state)
    new.resume()
    return sink, new, irqfds


async def migrations_in_kvm(vm, times):
    with EventFd() as plain, EventFd(semaphore=True) as semaphore, EventFd() as masked:
        eventfds = {3: plain, 4: semaphore, 5: masked}

        def assign(irqs):
            return {gsi: irqs.assign(eventfd, gsi=gsi) for gsi, eventfd in eventfds.items()}

        source = Source(eventfds)
        sink, irqs, irqfds = await migrate_in_kvm(vm, None, None, assign)
        irqfds[5].mask()
        source.start()
        try:
            for number in range(times):
                source.go()
                if number % 2:
                    await asyncio.sleep(0)
                sink, irqs, irqfds = await migrate_in_kvm(vm, sink, irqs, assign)
                assert [irqfd.offloaded for irqfd in irqfds.values()] == [True, True, False]
                await source.done()
                # A barrier (row I20): whatever was signalled is in the guest, or in the irqfd.
                await irqs.pause()
                assert pic(vm).irr == 1 << 3 | 1 << 4
                # What a semaphore has piled up (row P06) counts as pending wherever it is watched anew (row P01).
                assert (irqfds[3].pending, irqfds[5].pending) == (False, True)
                clear(vm, 0xFF)
                irqs.resume()
        finally:
            source.end()
        irqfds[5].unmask()
        await irqs.pause()
        assert pic(vm).irr & 1 << 5
        await irqs.aclose()
        sink.close()


@pytest.mark.kvm
async def test_50_migrations_of_a_kernels_own_irqfds(vm):
    await migrations_in_kvm(vm, 50)


@pytest.mark.kvm
@pytest.mark.slow
async def test_1000_migrations_of_a_kernels_own_irqfds(vm):
    await migrations_in_kvm(vm, 1000)


async def kernel_line(vm, pin, level):
    """A kernel's work item has raised or lowered the line."""
    while pic(vm).last_irr >> pin & 1 != level:
        await asyncio.sleep(0)


@pytest.mark.kvm
async def test_a_line_that_the_kernel_holds_up_stays_up_over_a_migration(vm):
    level_triggered(vm, 1 << 6)
    with EventFd() as trigger, EventFd() as resamplefd:

        def assign(irqs):
            return irqs.assign(trigger, gsi=6, resamplefd=resamplefd)

        sink, irqs, irqfd = await migrate_in_kvm(vm, None, None, assign)
        for _ in range(50):
            sink, irqs, irqfd = await migrate_in_kvm(vm, sink, irqs, assign)
            assert (irqfd.offloaded, pic(vm).last_irr >> 6 & 1) == (True, 0)
            trigger.signal()
            await kernel_line(vm, 6, 1)
            sink, irqs, irqfd = await migrate_in_kvm(vm, sink, irqs, assign)
            assert (irqfd.offloaded, pic(vm).last_irr >> 6 & 1) == (True, 1)
            irqfd.mask()
            assert (irqs._irqfds.lines.asserted(), pic(vm).last_irr >> 6 & 1) == ({6: (IrqchipPin("pic", 6),)}, 1)
            irqfd.unmask()
            assert (irqs._irqfds.lines.asserted(), pic(vm).last_irr >> 6 & 1) == ({}, 1)
            irqfd.mask()
            irqs.ack(6)
            assert (irqs._irqfds.lines.asserted(), pic(vm).last_irr >> 6 & 1, resamplefd.read_nowait()) == ({}, 0, 1)
            irqfd.unmask()
        await irqs.aclose()
        sink.close()


@pytest.mark.kvm
async def test_a_line_that_the_kernel_holds_up_moves_along_with_its_gsi(vm):
    from aioirqfd.sinks import KvmSink

    level_triggered(vm, 1 << 6 | 1 << 5)
    with EventFd() as trigger, EventFd() as resamplefd, KvmSink(vm) as sink:
        async with IrqManager(sink, routing=KVM_ROUTING) as irqs:
            irqfd = irqs.assign(trigger, gsi=6, resamplefd=resamplefd)
            trigger.signal()
            await kernel_line(vm, 6, 1)
            irqs.set_route(6, IrqchipPin("pic", 5))
            assert (pic(vm).last_irr, irqfd.offloaded) == (1 << 5, True)
            irqs.set_routing(KVM_ROUTING)
            assert (pic(vm).last_irr, irqfd.offloaded) == (1 << 6, True)
            await irqs.deassign(irqfd)
            assert pic(vm).last_irr == 0
            assert take_one(resamplefd) == 0
