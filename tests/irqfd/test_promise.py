"""The one promise, against whatever hypothesis thinks of: no interrupt is ever lost, none is invented, and counts are exact."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioirqfd import Action, EventFd, InjectionError, IrqchipPin, IrqManager, Msi, Retry, State, WorkQueue, WouldBlock
from aioirqfd.counter import fdinfo
from tests.irqfd.helpers import turns, write

PLAIN, OTHER, HANDLER, LEVEL, SEMAPHORE = range(5)
SLOTS = st.integers(0, 4)
COUNTS = st.sampled_from([1, 1, 2, 1000])
ROUTES = (
    Msi(0xFEE00000, 1),
    Msi(0xFEE00000, 2),
    IrqchipPin("ioapic", 3),
    (IrqchipPin("pic", 4), IrqchipPin("ioapic", 4)),
)


class MoodySink:
    """Takes, refuses, waits or fails, as told; remembers after which signal each interrupt began, and the level of each pin."""

    def __init__(self):
        self.refuses = self.waits = False
        self.failures = 0
        self.clock = 0
        self.begun = {}
        self.running = {}
        self.high = set()
        self.log = []

    def take(self, interrupt, began):
        self.log.append(interrupt)
        if interrupt.action is Action.DEASSERT:
            self.high.discard((interrupt.gsi, interrupt.route))
            return
        if interrupt.action is Action.ASSERT:
            self.high.add((interrupt.gsi, interrupt.route))
        self.begun[interrupt.gsi] = began

    def try_inject(self, interrupt):
        if self.refuses:
            return False
        self.take(interrupt, self.clock)
        return True

    async def inject(self, interrupt):
        key = (interrupt.gsi, interrupt.action)
        assert not self.running.get(key), "against itself"
        self.running[key] = True
        began = self.clock
        try:
            if self.waits:
                await asyncio.sleep(0)
            if self.failures:
                self.failures -= 1
                raise OSError(5, "moody")
            self.take(interrupt, began)
        finally:
            self.running[key] = False


class Promise(RuleBasedStateMachine):
    new_loop = staticmethod(asyncio.new_event_loop)

    def __init__(self):
        super().__init__()
        self.loop = self.new_loop()
        self.errors = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.sink = MoodySink()
        self.kicks = [EventFd(semaphore=slot == SEMAPHORE) for slot in range(5)]
        self.unmask = EventFd()
        self.irqfds = [None] * 5
        self.last = [0] * 5  # when it was last signalled
        self.sent = [0] * 5
        self.counts = [0] * 5
        self.paused = False
        self.told = 0
        self.gave_up = False

    def run(self, coroutine):
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 60))

    def call(self, function, *args, **kwargs):
        async def inside():
            return function(*args, **kwargs)

        return self.run(inside())

    @initialize(maxsize=st.sampled_from([1, 2, 1024]), workers=st.integers(1, 3))
    def enter(self, maxsize, workers):
        self.irqs = IrqManager(
            self.sink,
            routing=dict.fromkeys(range(5), ROUTES[0]) | {LEVEL: ROUTES[2]},
            queue=WorkQueue(maxsize=maxsize, workers=workers),
            unrouted="hold",
            retry=Retry(10**6, 0, 0),
        )
        self.run(self.irqs.__aenter__())
        # All of them at once: hypothesis leaves rules out of a run, and without irqfds the others say little.
        for slot in range(5):
            self.bind(slot, masked=False)

    async def on_wakeup(self, irqfd, count):
        if self.sink.waits:
            await asyncio.sleep(0)
        self.counts[HANDLER] += count

    def free(self, slot):
        """Whether the slot's irqfd may inject."""
        irqfd = self.irqfds[slot]
        return irqfd is not None and not irqfd.masked and not self.paused and slot in self.irqs.routing

    # -- what can happen ---------------------------------------------------------------------------------------------

    @rule(slot=SLOTS, masked=st.booleans(), first=st.sampled_from([0, 0, 3]))
    def assign(self, slot, masked, first):
        if self.irqfds[slot] is not None:
            return
        self.sent[slot] = self.counts[slot] = self.last[slot] = 0
        if slot == HANDLER and first:
            self.kicks[slot].signal(first)
            self.note(slot, first)
        self.bind(slot, masked=masked)

    def bind(self, slot, *, masked):
        self.irqfds[slot] = self.call(
            self.irqs.assign,
            self.kicks[slot],
            gsi=slot,
            masked=masked,
            resamplefd=self.unmask if slot == LEVEL else None,
            wakeup=self.on_wakeup if slot == HANDLER else (),
        )

    def note(self, slot, count):
        self.sink.clock += 1
        self.last[slot] = self.sink.clock
        self.sent[slot] += count

    # One rule for each way, so that they are drawn often.

    @rule(slot=SLOTS, count=COUNTS, look=st.booleans())
    def signal_here(self, slot, count, look):
        self.signal(slot, count, "here", look)

    @rule(slot=SLOTS, count=COUNTS, look=st.booleans())
    def signal_by_fd(self, slot, count, look):
        self.signal(slot, count, "fd", look)

    @rule(slot=SLOTS, count=COUNTS, look=st.booleans())
    def signal_from_a_thread(self, slot, count, look):
        self.signal(slot, count, "thread", look)

    @rule(slot=SLOTS, count=COUNTS, look=st.booleans())
    def signal_from_a_thread_by_fd(self, slot, count, look):
        self.signal(slot, count, "thread fd", look)

    def signal(self, slot, count, how, look):
        if self.irqfds[slot] is None:
            return
        if slot == SEMAPHORE:
            count = 1
        self.note(slot, count)
        self.call(self.signal_and_look, self.kicks[slot], count, how, look)

    def signal_and_look(self, kick, count, how, look):
        """Within one turn of the loop, so that whoever looks is there before the loop is."""
        if how == "here":
            assert kick.signal(count) == count
        elif how == "fd":
            write(kick, count)
        else:
            thread = threading.Thread(
                target=(kick.signal if how == "thread" else lambda n: write(kick, n)), args=(count,)
            )
            thread.start()
            thread.join()
        if look:
            for irqfd in self.irqs.irqfds:
                irqfd.statistics()

    @rule(slot=SLOTS)
    def mask(self, slot):
        if self.irqfds[slot] is not None:
            self.call(self.irqfds[slot].mask)

    @rule(slot=SLOTS)
    def unmask_it(self, slot):
        if self.irqfds[slot] is not None:
            self.call(self.irqfds[slot].unmask)

    @rule(routes=st.lists(st.sampled_from((None, *ROUTES)), min_size=5, max_size=5))
    def set_routing(self, routes):
        if isinstance(routes[LEVEL], Msi):
            self.told += 1  # a line that was up has no end of interrupt any more
        self.call(self.irqs.set_routing, {slot: route for slot, route in enumerate(routes) if route is not None})

    @rule()
    def pause(self):
        self.run(self.irqs.pause())
        self.paused = True

    @rule()
    def resume(self):
        self.call(self.irqs.resume)
        self.paused = False

    @precondition(lambda self: self.paused)
    @rule(again=st.booleans())
    def snapshot(self, again):
        state = self.call(self.irqs.snapshot)
        self.call(self.irqs.restore, json.loads(json.dumps(state)))
        if again:
            self.call(self.irqs.restore, state)

    @rule(elsewhere=st.booleans())
    def ack(self, elsewhere):
        if self.irqfds[LEVEL] is not None:
            self.told += 1
        if elsewhere:
            thread = threading.Thread(target=self.irqs.ack, args=(LEVEL,))
            thread.start()
            thread.join()
        else:
            self.call(self.irqs.ack, LEVEL)
        self.run(self.irqs.queue.drain())
        self.run(turns(3))

    @rule(slot=SLOTS)
    def deassign(self, slot):
        irqfd = self.irqfds[slot]
        if irqfd is None:
            return
        # A deassign does not wait for a failing sink to recover: what it would not take goes back.
        fails = self.sink.failures > 0
        self.gave_up = self.gave_up or fails
        free = self.free(slot) and not fails
        self.run(self.irqs.deassign(irqfd))
        assert irqfd.state is State.CLOSED
        self.settle_up(slot, free, again=fails)

    def settle_up(self, slot, free, *, again=False):
        """Deassigned: everything was injected, or is back in the eventfd."""
        back = 0
        with contextlib.suppress(WouldBlock):
            while True:
                back += self.kicks[slot].read_nowait()
        self.irqfds[slot] = None
        owed = self.last[slot] > self.sink.begun.get(slot, 0)
        assert owed <= (back > 0), (slot, "lost")
        assert not (free and owed), (slot, "not injected before deassign returned")
        if slot == HANDLER:
            # What the sink failed at after the handler had run comes back, and tells the next one's handler once more.
            told_again = self.counts[slot] + back - self.sent[slot]
            assert told_again == 0 or (again and 0 < told_again <= back)

    @rule(refuses=st.booleans(), waits=st.booleans(), failures=st.integers(0, 3))
    def mood(self, refuses, waits, failures):
        self.sink.refuses, self.sink.waits, self.sink.failures = refuses, waits, failures

    @rule(count=st.integers(1, 4))
    def spin(self, count):
        self.run(turns(count))

    @rule()
    def look(self):
        for slot, irqfd in enumerate(self.irqfds):
            if irqfd is None:
                continue
            pending = self.call(lambda irqfd=irqfd: irqfd.pending)
            if self.last[slot] > self.sink.begun.get(slot, 0) and not self.free(slot):
                assert pending, (slot, "owed, and not pending")

    @rule()
    def leave_alone(self):
        """Nobody flushes, nobody looks: the loop by itself has to inject everything."""

        async def wait_for_it():
            for _ in range(1000):
                await asyncio.sleep(0)
                if all(
                    self.sink.begun.get(slot, 0) >= self.last[slot]
                    and (slot != HANDLER or self.counts[slot] == self.sent[slot])
                    for slot in range(5)
                    if self.free(slot)
                ):
                    return
            raise AssertionError("something was left lying")

        self.run(wait_for_it())

    @rule()
    def flush(self):
        self.run(self.irqs.flush())
        for slot, irqfd in enumerate(self.irqfds):
            if irqfd is None or not self.free(slot):
                continue
            assert self.sink.begun.get(slot, 0) >= self.last[slot], (slot, irqfd, "lost")
            assert not self.call(lambda irqfd=irqfd: irqfd.pending)
            if slot == HANDLER:
                assert self.counts[slot] == self.sent[slot]
            # What a semaphore was signalled in a pause is one interrupt, and takes one of it (row P06).
            kick = self.kicks[slot]
            left = fdinfo(kick.fileno())
            assert left is not None
            rest = kick._count + left[0] if slot == SEMAPHORE else 0
            assert self.call(irqfd.statistics).signals + rest == self.sent[slot]
        self.run(self.irqs.queue.drain())
        if not self.paused:
            self.run(self.nothing_falls())
        raised, falling = self.call(self.lines)
        assert raised <= self.sink.high <= raised | falling, "the line is not where the resampler says"

    def lines(self):
        """Where lines are up, and where the sink has failed to lower one: that waits while the manager is paused."""
        resamplers = self.irqs._irqfds.lines.all()
        raised = {(resampler.gsi, route) for resampler in resamplers for route in resampler.raised}
        return raised, {(resampler.gsi, route) for resampler in resamplers for route in resampler.level.falling}

    async def nothing_falls(self):
        for _ in range(1000):
            if not self.lines()[1]:
                return
            await asyncio.sleep(0)
        raise AssertionError("a line was left to fall")

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def never_more_injections_than_signals(self):
        for slot, irqfd in enumerate(self.irqfds):
            if irqfd is not None and slot != LEVEL:  # a line that moves is raised again
                stats = self.call(irqfd.statistics)
                assert stats.injections <= self.sent[slot]
                assert self.counts[HANDLER] <= self.sent[HANDLER]

    def teardown(self):
        try:
            if hasattr(self, "irqs"):
                self.sink.failures = 0
                free = [self.free(slot) for slot in range(5)]
                with contextlib.suppress(InjectionError) if self.gave_up else contextlib.nullcontext():
                    self.run(self.irqs.aclose())
                for slot, irqfd in enumerate(self.irqfds):
                    if irqfd is not None:
                        self.settle_up(slot, free[slot])
                told = 0
                with contextlib.suppress(WouldBlock):
                    told = self.unmask.read_nowait()
                assert told <= self.told
            assert self.errors == []
        finally:
            for eventfd in (*self.kicks, self.unmask):
                eventfd.close()
            self.loop.close()


class PromiseOnUvloop(Promise):
    new_loop = staticmethod(uvloop.new_event_loop)


@pytest.mark.parametrize("machine", [Promise, PromiseOnUvloop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("examples", [150, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.stress])])
@pytest.mark.timeout(600)
def test_the_promise(machine, examples):
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            print_blob=True,
        ),
    )
