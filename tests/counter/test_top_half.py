"""TopHalf in both implementations: batches, refusals, errors, what is held and how it is released."""

from __future__ import annotations

import gc
import threading
from types import CellType

import pytest

from tests.counter.rig import Irqfd, Sink, write

NAMES = "abcde"


def make(rig, top_half, names=NAMES, *, fast=True, want_count=False, log=None):
    """An armed irqfd for each name."""
    ctxs = {}
    irqfds = {}
    for name in names:
        ctxs[name] = rig.eventfd()
        irqfds[name] = rig.bind(
            ctxs[name], top_half, irqfd=Irqfd(name, log), interrupt=name if fast else None, want_count=want_count
        )
    return ctxs, irqfds


def write_all(ctxs):
    """In this order, so that the epoll has them in this order."""
    for number, ctx in enumerate(ctxs.values(), 1):
        write(ctx, number)


# -------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_goes_to_the_sink_in_one_call(rig):
    sink = Sink()
    top_half = rig.module.TopHalf(sink.try_inject, sink.try_inject_batch)
    ctxs, irqfds = make(rig, top_half)
    write_all(ctxs)
    assert rig.drain.run() == 5
    assert sink.batches == [list(NAMES)]
    assert sink.interrupts == list(NAMES)
    assert [ctx._fast for ctx in ctxs.values()] == [1] * 5
    assert all(irqfd.wakeups == irqfd.defers == [] for irqfd in irqfds.values())


def test_one_alone_is_not_made_a_batch_of(rig):
    sink = Sink()
    top_half = rig.module.TopHalf(sink.try_inject, sink.try_inject_batch)
    ctxs, _ = make(rig, top_half)
    write(ctxs["c"])
    rig.drain.run()
    assert (sink.batches, sink.interrupts) == ([], ["c"])


def test_without_a_batch_tier_each_is_asked_by_itself(rig):
    sink = Sink()
    ctxs, irqfds = make(rig, rig.module.TopHalf(lambda interrupt: sink.try_inject(interrupt) and interrupt != "c"))
    write_all(ctxs)
    rig.drain.run()
    assert sink.interrupts == list(NAMES)
    assert [ctx._fast for ctx in ctxs.values()] == [1, 1, 0, 1, 1]
    assert [len(irqfd.defers) for irqfd in irqfds.values()] == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("taken", range(6))
def test_a_batch_that_is_refused_from_some_one_on(rig, taken):
    single = []
    top_half = rig.module.TopHalf(single.append, lambda _interrupts: taken)
    log = []
    ctxs, irqfds = make(rig, top_half, want_count=True, log=log)
    write_all(ctxs)
    rig.drain.run()
    assert single == []
    assert log == list(NAMES[taken:])
    assert [ctx._fast for ctx in ctxs.values()] == [1] * taken + [0] * (5 - taken)
    assert [irqfd.defers for irqfd in irqfds.values()] == [[]] * taken + [[number] for number in range(taken + 1, 6)]
    assert rig.drain.run() == 0


class Wrong:
    def __index__(self):
        raise KeyError("wrong")


@pytest.mark.parametrize(
    ("answer", "error", "taken"),
    [
        (-1, ValueError, 0),
        (-(2**70), ValueError, 0),
        (6, ValueError, 5),
        (2**70, ValueError, 5),
        ("5", TypeError, 0),
        (None, TypeError, 0),
        (5.0, TypeError, 0),
        (Wrong(), KeyError, 0),
    ],
)
def test_a_batch_tier_that_answers_nonsense(rig, answer, error, taken):
    errors = []
    top_half = rig.module.TopHalf(None, lambda _interrupts: answer, errors.append)
    ctxs, irqfds = make(rig, top_half, want_count=True)
    write_all(ctxs)
    rig.drain.run()
    assert len(errors) == 1
    assert isinstance(errors[0], error)
    # Whatever it meant, each of them is somebody's: the sink's or the work queue's, and nobody's twice.
    fast = [ctx._fast for ctx in ctxs.values()]
    assert [count + len(irqfd.defers) for count, irqfd in zip(fast, irqfds.values(), strict=True)] == [1] * 5
    assert sum(fast) == taken


def test_a_batch_tier_that_takes_the_list_apart(rig):
    def greedy(interrupts):
        interrupts.clear()
        return 2

    ctxs, irqfds = make(rig, rig.module.TopHalf(None, greedy))
    write_all(ctxs)
    rig.drain.run()
    assert [ctx._fast for ctx in ctxs.values()] == [1, 1, 0, 0, 0]
    assert [len(irqfd.defers) for irqfd in irqfds.values()] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "error", [OSError("sink"), KeyboardInterrupt(), SystemExit(3)], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("batched", [False, True])
def test_a_sink_that_raises_has_refused(rig, error, batched):
    errors = []

    def fail(_argument):
        raise error

    top_half = rig.module.TopHalf(fail, fail if batched else None, errors.append)
    ctxs, irqfds = make(rig, top_half, want_count=True)
    write_all(ctxs)
    rig.drain.run()
    assert errors == [error] * (1 if batched else 5)
    assert [irqfd.defers for irqfd in irqfds.values()] == [[number] for number in range(1, 6)]


def test_whoever_raises_does_not_take_the_others_down(rig, unraisable):
    error = OSError("reported")

    class Failing(Irqfd):
        def wakeup(self, count, /):
            super().wakeup(count)
            if len(self.wakeups) == 1:
                raise ZeroDivisionError("wakeup")

        def defer(self, count, /):
            super().defer(count)
            if len(self.defers) == 1:
                raise ZeroDivisionError("defer")

    def fail(_argument):
        raise error

    def report(_error):
        raise LookupError("on_error")

    top_half = rig.module.TopHalf(fail, None, report)
    slow = [rig.eventfd() for _ in range(3)]
    fast = [rig.eventfd() for _ in range(3)]
    reader = rig.eventfd()
    rig.drain.add(reader)
    reader._on_ready = None
    irqfds = [rig.bind(ctx, top_half, irqfd=Failing()) for ctx in slow]
    irqfds += [rig.bind(ctx, top_half, irqfd=Failing(), interrupt="it") for ctx in fast]
    for ctx in (reader, *slow, *fast):
        write(ctx)
    rig.drain.run()
    assert [len(irqfd.wakeups) for irqfd in irqfds] == [1, 1, 1, 0, 0, 0]
    assert [len(irqfd.defers) for irqfd in irqfds] == [0, 0, 0, 1, 1, 1]
    kinds = sorted(type(each).__name__ for each in unraisable)
    assert kinds == ["LookupError"] * 3 + ["TypeError"] + ["ZeroDivisionError"] * 6
    unraisable.clear()
    assert not rig.drain.dispatching
    # An irqfd that raised has not got it: it is asked again, in the next pass.
    assert rig.run() == 6
    assert [irqfd.wakeups for irqfd in irqfds] == [[1, 1]] * 3 + [[]] * 3
    assert [irqfd.defers for irqfd in irqfds] == [[]] * 3 + [[1, 1]] * 3
    unraisable.clear()
    for ctx in slow:
        ctx.signal()
    assert [len(irqfd.wakeups) for irqfd in irqfds] == [3, 3, 3, 0, 0, 0]


def test_an_answer_that_has_no_truth(rig):
    class Undecided:
        def __bool__(self):
            raise ArithmeticError

    errors = []
    ctxs, irqfds = make(rig, rig.module.TopHalf(lambda _interrupt: Undecided(), None, errors.append), "a")
    write_all(ctxs)
    rig.drain.run()
    assert [type(error) for error in errors] == [ArithmeticError]
    assert len(irqfds["a"].defers) == 1


# ------------------------------------------------------------------------------------- what happens inside a batch


@pytest.mark.parametrize("takes", [True, False])
def test_a_later_one_is_deassigned_from_within_a_batch(rig, takes):
    # Its count was taken with the others', so it is injected, or given to the irqfd it was bound to; never dropped, never twice.
    sink = Sink(takes=takes)
    owed = []

    def on_interrupt(interrupt):
        if interrupt == "a" and not owed:
            owed.append(rig.unbind(ctxs["d"]))

    sink.on_interrupt = on_interrupt
    ctxs, irqfds = make(rig, rig.module.TopHalf(sink.try_inject), want_count=True)
    write_all(ctxs)
    rig.drain.run()
    assert owed == [0]
    if takes:
        assert sink.interrupts == list(NAMES)
    else:
        assert [irqfd.defers for irqfd in irqfds.values()] == [[1], [2], [3], [4], [5]]
    assert rig.count(ctxs["d"]) == 0
    write(ctxs["d"])
    rig.drain.run()
    assert rig.count(ctxs["d"]) == 1


def test_a_later_one_is_deassigned_by_an_earlier_ones_wakeup(rig):
    owed = []

    class First(Irqfd):
        def wakeup(self, count, /):
            super().wakeup(count)
            if not owed:
                owed.extend(rig.unbind(ctxs[name]) for name in NAMES if ctxs[name] is not first)

    ctxs = {name: rig.eventfd() for name in NAMES}
    first = ctxs["a"]
    top_half = rig.module.TopHalf()
    irqfds = {name: rig.bind(ctx, top_half, irqfd=First(), want_count=True) for name, ctx in ctxs.items()}
    write_all(ctxs)
    rig.drain.run()
    assert irqfds["a"].wakeups == [1]
    assert owed == [2, 3, 4, 5]
    assert all(irqfds[name].wakeups == [] for name in "bcde")


def test_masking_a_later_one_from_within_a_pass_sends_it_the_slow_way(rig):
    other_sink = Sink()
    sink = Sink()
    sinks = {"a": sink, "z": other_sink}
    ctxs, irqfds = {}, {}
    for name, each in sinks.items():
        top_half = rig.module.TopHalf(each.try_inject)
        more, more_irqfds = make(rig, top_half, name)
        ctxs |= more
        irqfds |= more_irqfds

    def mask_the_other(interrupt):
        for each in sinks.values():
            each.on_interrupt = None
        ctxs["z" if interrupt == "a" else "a"]._arm(None)

    for each in sinks.values():
        each.on_interrupt = mask_the_other
    write_all(ctxs)
    rig.run()
    assert len(sink.interrupts) + len(other_sink.interrupts) == 1
    assert sum(len(irqfd.wakeups) for irqfd in irqfds.values()) == 1


def test_one_that_changes_managers_within_a_pass_is_not_injected_by_the_old_one(rig):
    sinks = [Sink(), Sink(), Sink()]
    top_halves = [rig.module.TopHalf(sink.try_inject) for sink in sinks]
    ctxs = [rig.eventfd(), rig.eventfd()]
    for ctx, top_half in zip(ctxs, top_halves, strict=False):
        rig.bind(ctx, top_half, interrupt="old")
    moved = []

    def move(victim):
        if not moved:
            moved.append(victim)
            assert rig.unbind(victim) == 1
            rig.bind(victim, top_halves[2], interrupt="new")
            victim.signal()

    sinks[0].on_interrupt = lambda _interrupt: move(ctxs[1])
    sinks[1].on_interrupt = lambda _interrupt: move(ctxs[0])
    for ctx in ctxs:
        write(ctx)
    rig.run()
    assert sorted((sinks[0].interrupts, sinks[1].interrupts)) == [[], ["old"]]
    assert sinks[2].interrupts == ["new"]


def test_cached_interrupts_of_an_older_routing_are_not_used(rig):
    sink = Sink()
    top_half = rig.module.TopHalf(sink.try_inject)
    ctxs, irqfds = make(rig, top_half, "abc")
    old, new = CellType("old"), CellType("new b")
    ctxs["a"]._arm(old)
    ctxs["b"]._arm(old)
    del old.cell_contents
    ctxs["b"]._arm(new)
    write_all(ctxs)
    rig.run()
    assert sink.interrupts == ["new b", "c"]
    assert irqfds["a"].wakeups == [1]
    ctxs["a"].signal()
    assert len(irqfds["a"].wakeups) == 2
    assert not irqfds["b"].wakeups + irqfds["c"].wakeups


@pytest.mark.parametrize("batched", [False, True])
def test_a_route_that_changes_while_the_sink_is_asked_is_followed_by_the_rest_of_the_pass(rig, batched):
    cell, sink, other_sink = CellType("old"), Sink(), Sink()

    def change(_interrupt):
        del cell.cell_contents

    sink.on_interrupt = other_sink.on_interrupt = change
    irqfds = []
    for each in (sink, other_sink):
        ctx = rig.eventfd()
        top_half = rig.module.TopHalf(each.try_inject, each.try_inject_batch if batched else None)
        irqfds.append(rig.bind(ctx, top_half))
        ctx._arm(cell)
        write(ctx)
    rig.run()
    assert sorted((sink.interrupts, other_sink.interrupts)) == [[], ["old"]]
    assert sorted(irqfd.wakeups for irqfd in irqfds) == [[], [1]]


def test_only_a_cell_can_be_cached(rig):
    ctx = rig.eventfd()
    rig.bind(ctx, rig.module.TopHalf())
    with pytest.raises(TypeError, match="a cell or None, not 'it'"):
        ctx._arm("it")


# -------------------------------------------------------------------------------------------------- held and released


@pytest.mark.parametrize("fast", [True, False])
def test_while_paused_everything_is_held_and_then_released_in_order(rig, fast):
    order = []
    top_half = rig.module.TopHalf(lambda interrupt: order.append(interrupt) is None)
    top_half.paused = True
    ctxs, _ = make(rig, top_half, fast=fast, log=order)
    for name in "cab":
        write(ctxs[name])
        rig.drain.run()
    ctxs["e"].signal()
    thread = threading.Thread(target=ctxs["d"].signal)
    thread.start()
    thread.join()
    rig.run()
    ctxs["c"].signal()
    assert (order, top_half.held) == ([], 5)
    assert all(ctx._held and ctx._owed for ctx in ctxs.values())
    assert top_half.release() == 0
    assert top_half.held == 5
    top_half.paused = False
    assert top_half.release() == 5
    assert order == list("cabed")
    assert top_half.held == 0
    assert not any(ctx._held or ctx._owed for ctx in ctxs.values())
    assert top_half.release() == 0
    assert ctxs["c"]._wakeups == 1


def test_while_the_queue_is_full_what_the_sink_refuses_is_held_with_its_count(rig):
    sink = Sink(takes=False)
    top_half = rig.module.TopHalf(sink.try_inject, sink.try_inject_batch)
    top_half.full = True
    ctxs, irqfds = make(rig, top_half, want_count=True)
    write_all(ctxs)
    rig.run()
    assert top_half.held == 5
    assert [irqfd.defers for irqfd in irqfds.values()] == [[]] * 5
    write_all(ctxs)
    rig.run()
    top_half.full = False
    assert top_half.release() == 5
    assert [irqfd.defers for irqfd in irqfds.values()] == [[2], [4], [6], [8], [10]]
    assert [ctx._signals for ctx in ctxs.values()] == [2, 4, 6, 8, 10]


def test_what_was_refused_and_held_is_counted_once(rig):
    # Nobody asks for the count here, and it may still be inside the eventfd when the sink refuses.
    sink = Sink(takes=False)
    top_half = rig.module.TopHalf(sink.try_inject)
    top_half.full = True
    ctxs, irqfds = make(rig, top_half)
    write_all(ctxs)
    rig.run()
    top_half.full = False
    top_half.release()
    rig.run()
    assert [len(irqfd.defers) for irqfd in irqfds.values()] == [1] * 5
    rig.drain.read_unread(10)
    rig.run()
    assert [len(irqfd.defers) for irqfd in irqfds.values()] == [1] * 5
    assert [ctx._signals for ctx in ctxs.values()] == [1, 2, 3, 4, 5]
    assert [rig.count(ctx) for ctx in ctxs.values()] == [0] * 5


def test_a_refused_leftover_is_still_one(rig):
    # Row P01, with the queue full at the time.
    sink = Sink(takes=False)
    top_half = rig.module.TopHalf(sink.try_inject)
    top_half.full = True
    ctx = rig.eventfd(3)
    irqfd = rig.bind(ctx, top_half, interrupt="it")
    rig.run()
    assert top_half.held == 1
    top_half.full = False
    top_half.release()
    rig.run()
    assert len(irqfd.defers) == 1
    assert (rig.count(ctx), ctx._leftover) == (3, True)


def test_release_stops_when_the_queue_is_full_again_and_the_rest_keeps_its_place(rig):
    order = []
    top_half = rig.module.TopHalf()
    top_half.full = True
    newer = rig.eventfd()

    class Filling(Irqfd):
        def wakeup(self, count, /):
            super().wakeup(count)
            if len(order) in {2, 4}:
                top_half.full = True
                newer.signal()

    ctxs = {name: rig.eventfd() for name in NAMES}
    for name, ctx in (*ctxs.items(), ("new", newer)):
        rig.bind(ctx, top_half, irqfd=Filling(name, order))
    write_all(ctxs)
    rig.run()
    for expected in ("ab", "abcd"):
        top_half.full = False
        assert top_half.release() == 2
        assert order == list(expected)
        # Signalled from within a wakeup, it comes through the mailbox, and is held behind the others.
        rig.run()
    assert top_half.held == 2
    top_half.full = False
    assert top_half.release() == 2
    assert order == [*NAMES, "new"]


def test_release_from_within_a_wakeup_goes_through_the_mailbox(rig):
    order = []
    top_half = rig.module.TopHalf()
    other = rig.module.TopHalf()

    class Releasing(Irqfd):
        def wakeup(self, count, /):
            super().wakeup(count)
            top_half.paused = False
            assert top_half.release() == 5
            assert order == ["releasing"]

    top_half.paused = True
    ctxs, _ = make(rig, top_half, fast=False, log=order)
    trigger = rig.eventfd()
    rig.bind(trigger, other, irqfd=Releasing("releasing", order))
    write_all(ctxs)
    rig.run()
    trigger.signal()
    assert top_half.held == 0
    rig.run()
    assert order == ["releasing", *NAMES]


def test_release_of_very_many_does_not_do_all_of_them_at_once(rig):
    order = []
    top_half = rig.module.TopHalf(lambda interrupt: order.append(interrupt) is None)
    top_half.paused = True
    for number in range(1500):
        ctx = rig.eventfd()
        rig.bind(ctx, top_half, interrupt=number)
        ctx.signal()
    top_half.paused = False
    assert top_half.release() == 1500
    assert order == list(range(1024))
    rig.run()
    assert order == list(range(1500))


@pytest.mark.parametrize("fate", ["kept", "dropped"])
def test_what_one_paused_manager_held_is_not_lost_by_another_ones(rig, fate):
    first, second = rig.module.TopHalf(), rig.module.TopHalf()
    first.paused = second.paused = True
    ctx = rig.eventfd()
    rig.bind(ctx, first, want_count=True)
    ctx.signal(2)
    assert (first.held, ctx._held) == (1, True)
    assert rig.unbind(ctx) == 2
    assert (first.held, ctx._held) == (0, False)
    irqfd = rig.bind(ctx, second, want_count=True)
    ctx.signal(3)
    assert (first.held, second.held) == (0, 1)
    if fate == "dropped":
        del first
        gc.collect()
    second.paused = False
    assert second.release() == 1
    assert irqfd.wakeups == [3]


def test_deassign_and_assign_while_paused_does_not_pile_up(rig):
    top_half = rig.module.TopHalf()
    top_half.paused = True
    ctx = rig.eventfd()
    for _ in range(1000):
        rig.bind(ctx, top_half)
        ctx.signal()
        assert top_half.held == 1
        rig.unbind(ctx)
        assert top_half.held == 0
    irqfd = rig.bind(ctx, top_half)
    ctx.signal()
    top_half.paused = False
    assert top_half.release() == 1
    assert irqfd.wakeups == [1]


def test_one_is_deassigned_while_what_was_held_is_released(rig):
    top_half = rig.module.TopHalf()
    order = []
    owed = []

    class Deassigning(Irqfd):
        def wakeup(self, count, /):
            super().wakeup(count)
            if self.name == "a":
                owed.extend((rig.unbind(ctxs["b"]), rig.unbind(ctxs["c"])))
                rig.bind(ctxs["c"], top_half, irqfd=Deassigning("new c", order), want_count=True)

    top_half.paused = True
    ctxs = {name: rig.eventfd() for name in NAMES}
    for name, ctx in ctxs.items():
        rig.bind(ctx, top_half, irqfd=Deassigning(name, order), want_count=True)
        ctx.signal(7)
    top_half.paused = False
    top_half.release()
    rig.run()
    assert order == list("ade")
    assert owed == [7, 7]
    ctxs["c"].signal()
    assert order == [*"ade", "new c"]


def test_what_is_held_is_read_like_anything_else(rig):
    top_half = rig.module.TopHalf()
    top_half.paused = True
    ctx = rig.eventfd()
    irqfd = rig.bind(ctx, top_half, want_count=True)
    write(ctx, 3)
    rig.run()
    assert ctx._held
    assert rig.drain.read_out(ctx) == 3
    top_half.paused = False
    top_half.release()
    assert irqfd.wakeups == []
    ctx.signal()
    assert irqfd.wakeups == [1]
