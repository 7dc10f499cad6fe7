"""The irqfd's state machine: one table, no I/O.

An irqfd moves by events and each move asks for at most one action. *Blocked* means that it may not inject just now: it is
masked, its manager is paused, or its gsi has no route and is held. A signal is never refused: in every state but CLOSED it
leads to, or stays in, a state from which an injection that begins later follows.

``docs/explanation/irqfd-states.md`` shows this table, and a picture that is held against it.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.IntEnum):
    """Where an irqfd stands."""

    IDLE = 0
    """Nothing is owed."""
    PENDING = 1
    """An injection is owed, and blocked, or its turn in the top half has not come yet."""
    QUEUED = 2
    """An injection is owed, and on the work queue."""
    INJECTING = 3
    """The bottom half runs; whatever was signalled before it began is in it."""
    INJECTING_PENDING = 4
    """The bottom half runs, and another injection is owed."""
    RETRYING = 5
    """The sink failed; the next attempt waits for its time."""
    BROKEN = 6
    """The sink failed for good; the injection is still owed, until ``resume()``."""
    CLOSED = 7
    """Deassigned."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


class Event(enum.IntEnum):
    """What happens to it."""

    SIGNAL = 0
    """The eventfd was signalled and the sink did not take it at once."""
    START = 1
    """The work queue's turn has come."""
    DONE = 2
    """The sink took it."""
    FAIL = 3
    """The sink raised, and is to be tried again."""
    GIVE_UP = 4
    """The sink raised once too often."""
    RETRY = 5
    """The back-off is over."""
    UNBLOCK = 6
    """Unmasked, resumed or routed."""
    RESUME = 7
    """``irqfd.resume()``."""
    ABORT = 8
    """The work queue was cancelled under it."""
    CLOSE = 9
    """Deassigned, and nothing of it will run."""
    RUN = 10
    """The counter module has run its handler, which raised; the rest is the bottom half's."""
    HAND_OVER = 11
    """What was owed is somebody else's now: the sink's, which watches the eventfd, or a snapshot's."""


class Action(enum.IntEnum):
    """What the move asks for."""

    NONE = 0
    SCHEDULE = 1
    INJECT = 2
    BACK_OFF = 3
    REPORT = 4


_ANY: Final[tuple[bool, ...]] = (False, True)
_FREE: Final[tuple[bool, ...]] = (False,)
_BLOCKED: Final[tuple[bool, ...]] = (True,)

_S, _E, _A = State, Event, Action
ROWS: Final[tuple[tuple[State, Event, tuple[bool, ...], State, Action], ...]] = (
    # from                 event        blocked?  to                     action
    (_S.IDLE, _E.SIGNAL, _FREE, _S.QUEUED, _A.SCHEDULE),
    (_S.IDLE, _E.SIGNAL, _BLOCKED, _S.PENDING, _A.NONE),
    (_S.IDLE, _E.CLOSE, _ANY, _S.CLOSED, _A.NONE),
    (_S.PENDING, _E.SIGNAL, _FREE, _S.QUEUED, _A.SCHEDULE),
    (_S.PENDING, _E.UNBLOCK, _FREE, _S.QUEUED, _A.SCHEDULE),
    (_S.PENDING, _E.CLOSE, _ANY, _S.CLOSED, _A.NONE),
    (_S.QUEUED, _E.START, _FREE, _S.INJECTING, _A.INJECT),
    (_S.QUEUED, _E.START, _BLOCKED, _S.PENDING, _A.NONE),
    (_S.INJECTING, _E.SIGNAL, _ANY, _S.INJECTING_PENDING, _A.NONE),
    (_S.INJECTING, _E.DONE, _ANY, _S.IDLE, _A.NONE),
    (_S.INJECTING_PENDING, _E.DONE, _FREE, _S.QUEUED, _A.SCHEDULE),
    (_S.INJECTING_PENDING, _E.DONE, _BLOCKED, _S.PENDING, _A.NONE),
    (_S.INJECTING, _E.FAIL, _ANY, _S.RETRYING, _A.BACK_OFF),
    (_S.INJECTING_PENDING, _E.FAIL, _ANY, _S.RETRYING, _A.BACK_OFF),
    (_S.INJECTING, _E.GIVE_UP, _ANY, _S.BROKEN, _A.REPORT),
    (_S.INJECTING_PENDING, _E.GIVE_UP, _ANY, _S.BROKEN, _A.REPORT),
    (_S.INJECTING, _E.ABORT, _ANY, _S.PENDING, _A.NONE),
    (_S.INJECTING_PENDING, _E.ABORT, _ANY, _S.PENDING, _A.NONE),
    (_S.RETRYING, _E.RETRY, _FREE, _S.QUEUED, _A.SCHEDULE),
    (_S.RETRYING, _E.RETRY, _BLOCKED, _S.PENDING, _A.NONE),
    (_S.RETRYING, _E.CLOSE, _ANY, _S.CLOSED, _A.NONE),
    (_S.BROKEN, _E.RESUME, _FREE, _S.QUEUED, _A.SCHEDULE),
    (_S.BROKEN, _E.RESUME, _BLOCKED, _S.PENDING, _A.NONE),
    (_S.BROKEN, _E.CLOSE, _ANY, _S.CLOSED, _A.NONE),
    (_S.QUEUED, _E.CLOSE, _ANY, _S.CLOSED, _A.NONE),
    (_S.INJECTING, _E.CLOSE, _ANY, _S.CLOSED, _A.NONE),
    (_S.INJECTING_PENDING, _E.CLOSE, _ANY, _S.CLOSED, _A.NONE),
    (_S.IDLE, _E.RUN, _ANY, _S.INJECTING, _A.NONE),
    (_S.PENDING, _E.RUN, _ANY, _S.INJECTING_PENDING, _A.NONE),
    (_S.QUEUED, _E.RUN, _ANY, _S.INJECTING_PENDING, _A.NONE),
    (_S.PENDING, _E.HAND_OVER, _ANY, _S.IDLE, _A.NONE),
    (_S.RETRYING, _E.HAND_OVER, _ANY, _S.IDLE, _A.NONE),
    (_S.BROKEN, _E.HAND_OVER, _ANY, _S.IDLE, _A.NONE),
)
"""Every move there is. An event that has no row in a state changes nothing there."""


def _table() -> tuple[tuple[tuple[tuple[State, Action], ...], ...], ...]:
    table = [[[(state, Action.NONE) for _ in Event] for state in State] for _ in _ANY]
    for state, event, blocked, after, action in ROWS:
        for value in blocked:
            table[value][state][event] = (after, action)
    return tuple(tuple(tuple(row) for row in half) for half in table)


TABLE: Final = _table()
"""``TABLE[blocked][state][event]`` is ``(state, action)``."""

OWING: Final = frozenset(State) - {State.IDLE, State.INJECTING, State.CLOSED}
"""The states in which an injection that has not begun is owed."""
ACTIVE: Final = frozenset({State.QUEUED, State.INJECTING, State.INJECTING_PENDING, State.RETRYING})
"""The states that go on by themselves."""


def shown(state: State, *, running: bool, waiting: bool, signalled: bool) -> State:
    """Where an irqfd stands for who looks: what the counter module has of it is in it, whoever runs its handler.

    Args:
        state: Where the table has it.
        running: The counter module runs its handler.
        waiting: It waits there for its turn.
        signalled: Its eventfd holds a signal that has not come to the top half.
    """
    another = waiting or signalled or state in OWING
    if running:
        return State.INJECTING_PENDING if another else State.INJECTING
    if state is State.INJECTING and another:
        return State.INJECTING_PENDING
    if state is State.IDLE and another:
        return State.QUEUED if waiting else State.PENDING
    return state
