"""The irqfd's table of moves: no signal is ever refused, every state can be reached and left."""

from __future__ import annotations

from collections import deque

import pytest

from aioirqfd.irqfd.state import ACTIVE, OWING, ROWS, TABLE, Action, Event, State

FREE, BLOCKED = False, True


def step(state, event, blocked=FREE):
    return TABLE[blocked][state][event]


def walk(*moves, start=State.IDLE):
    """The states and actions of a sequence of events; a move is an event, or an event and whether it is blocked."""
    state, seen = start, []
    for move in moves:
        event, blocked = move if isinstance(move, tuple) else (move, FREE)
        state, action = step(state, event, blocked)
        seen.append((state, action))
    return seen


def moves_to(target, allowed):
    """A shortest sequence of (event, blocked) from IDLE to a state."""
    ways: dict[State, tuple[tuple[Event, bool], ...]] = {State.IDLE: ()}
    queue = deque(ways)
    while queue:
        state = queue.popleft()
        for event in allowed:
            for blocked in (FREE, BLOCKED):
                after, _ = step(state, event, blocked)
                if after not in ways:
                    ways[after] = (*ways[state], (event, blocked))
                    queue.append(after)
    return ways.get(target)


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLOSED])
@pytest.mark.parametrize("blocked", [FREE, BLOCKED])
def test_after_a_signal_an_injection_is_owed(state, blocked):
    after, action = step(state, Event.SIGNAL, blocked)
    assert after in OWING
    # Whatever is not blocked also goes on by itself, or the signal would lie there for ever.
    assert after in ACTIVE or blocked or after is State.BROKEN
    assert (action is Action.SCHEDULE) == (after is State.QUEUED and state is not State.QUEUED)


@pytest.mark.parametrize("state", sorted(OWING))
@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("blocked", [FREE, BLOCKED])
def test_what_is_owed_is_only_ever_paid_by_a_beginning(state, event, blocked):
    after, action = step(state, event, blocked)
    paid = after not in OWING
    assert paid == (
        action is Action.INJECT or after is State.CLOSED or (event is Event.HAND_OVER and after is State.IDLE)
    )


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_reached(state):
    assert moves_to(state, Event) is not None


def test_the_failing_states_need_a_failure():
    healthy = set(Event) - {Event.FAIL, Event.GIVE_UP}
    unreachable = {state for state in State if moves_to(state, healthy) is None}
    assert unreachable == {State.RETRYING, State.BROKEN}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("blocked", [FREE, BLOCKED])
def test_closed_is_for_ever(event, blocked):
    assert step(State.CLOSED, event, blocked) == (State.CLOSED, Action.NONE)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("blocked", [FREE, BLOCKED])
def test_it_closes_from_every_state(state, blocked):
    assert step(state, Event.CLOSE, blocked) == (State.CLOSED, Action.NONE)


@pytest.mark.parametrize("state", State)
def test_a_state_has_its_name(state):
    assert (str(state), f"{state}", f"{state:>8}") == (state.name, state.name, f"{state.name:>8}")


def test_an_event_without_a_row_changes_nothing():
    rows = {(state, event, value) for state, event, values, _, _ in ROWS for value in values}
    assert len(rows) == sum(len(values) for _, _, values, _, _ in ROWS), "two rows for one move"
    for blocked in (FREE, BLOCKED):
        for state in State:
            for event in Event:
                if (state, event, blocked) not in rows:
                    assert step(state, event, blocked) == (state, Action.NONE)


def test_nothing_is_scheduled_while_blocked():
    for state in State:
        for event in Event:
            assert step(state, event, BLOCKED)[1] not in {Action.SCHEDULE, Action.INJECT}


def test_one_signal():
    assert walk(Event.SIGNAL, Event.START, Event.DONE) == [
        (State.QUEUED, Action.SCHEDULE),
        (State.INJECTING, Action.INJECT),
        (State.IDLE, Action.NONE),
    ]


def test_signals_before_it_begins_share_it_and_one_after_gets_its_own():
    assert walk(Event.SIGNAL, Event.SIGNAL, Event.START, Event.SIGNAL, Event.SIGNAL, Event.DONE, Event.START) == [
        (State.QUEUED, Action.SCHEDULE),
        (State.QUEUED, Action.NONE),
        (State.INJECTING, Action.INJECT),
        (State.INJECTING_PENDING, Action.NONE),
        (State.INJECTING_PENDING, Action.NONE),
        (State.QUEUED, Action.SCHEDULE),
        (State.INJECTING, Action.INJECT),
    ]


def test_masked_and_unmasked():
    assert walk((Event.SIGNAL, BLOCKED), (Event.SIGNAL, BLOCKED), Event.UNBLOCK, (Event.START, BLOCKED)) == [
        (State.PENDING, Action.NONE),
        (State.PENDING, Action.NONE),
        (State.QUEUED, Action.SCHEDULE),
        (State.PENDING, Action.NONE),
    ]


def test_failures_until_it_is_broken_and_resumed():
    assert walk(
        Event.SIGNAL,
        Event.START,
        Event.FAIL,
        Event.SIGNAL,
        Event.RETRY,
        Event.START,
        Event.SIGNAL,
        Event.GIVE_UP,
        Event.SIGNAL,
        Event.UNBLOCK,
        Event.RESUME,
        Event.START,
        Event.ABORT,
        Event.CLOSE,
    ) == [
        (State.QUEUED, Action.SCHEDULE),
        (State.INJECTING, Action.INJECT),
        (State.RETRYING, Action.BACK_OFF),
        (State.RETRYING, Action.NONE),
        (State.QUEUED, Action.SCHEDULE),
        (State.INJECTING, Action.INJECT),
        (State.INJECTING_PENDING, Action.NONE),
        (State.BROKEN, Action.REPORT),
        (State.BROKEN, Action.NONE),
        (State.BROKEN, Action.NONE),
        (State.QUEUED, Action.SCHEDULE),
        (State.INJECTING, Action.INJECT),
        (State.PENDING, Action.NONE),
        (State.CLOSED, Action.NONE),
    ]
