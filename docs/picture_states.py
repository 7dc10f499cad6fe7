"""The states of an irqfd as a picture: laid out by hand, and held against the table that the irqfd moves by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import svg

from aioirqfd.irqfd.state import ROWS, Event, State

if TYPE_CHECKING:
    from collections.abc import Iterable

_RUNS: Final = (State.INJECTING, State.INJECTING_PENDING)


class Arrow(NamedTuple):
    """One arrow of the picture.

    Attributes:
        event: What it stands for, its words.
        sources: Where it begins: several for one that begins at a box.
        free: Where it leads from there while the irqfd is free.
        blocked: The same while it is blocked; None: it does not happen then.
        path: Where it runs.
        label: Where its words stand.
    """

    event: Event
    sources: Iterable[State]
    free: State | None
    blocked: State | None
    path: str
    label: tuple[float, float]


# An arrow to the upper box leads to QUEUED while the irqfd is free, to PENDING while it is blocked.
ARROWS: Final = (
    Arrow(Event.SIGNAL, [State.IDLE], State.QUEUED, State.PENDING, "M150,52 V86", (156, 74)),
    Arrow(Event.SIGNAL, [State.PENDING], State.QUEUED, None, "M164,120 H232", (170, 114)),
    Arrow(Event.UNBLOCK, [State.PENDING], State.QUEUED, None, "M164,128 H232", (170, 143)),
    Arrow(Event.START, [State.QUEUED], State.INJECTING, None, "M283,142 V252", (290, 206)),
    Arrow(Event.START, [State.QUEUED], None, State.PENDING, "M232,136 V158 H130 V142", (142, 172)),
    Arrow(Event.DONE, [State.INJECTING], State.IDLE, State.IDLE, "M330,270 H372 V36 H228", (336, 30)),
    Arrow(Event.SIGNAL, [State.INJECTING], *(State.INJECTING_PENDING,) * 2, "M236,270 H188", (192, 264)),
    Arrow(Event.DONE, [State.INJECTING_PENDING], State.QUEUED, State.PENDING, "M120,252 V180", (126, 206)),
    Arrow(Event.FAIL, _RUNS, *(State.RETRYING,) * 2, "M283,310 V350", (290, 335)),
    Arrow(Event.GIVE_UP, _RUNS, *(State.BROKEN,) * 2, "M120,310 V350", (126, 335)),
    Arrow(Event.RETRY, [State.RETRYING], State.QUEUED, State.PENDING, "M283,386 V404 H18 V108 H40", (224, 418)),
    Arrow(Event.RESUME, [State.BROKEN], State.QUEUED, State.PENDING, "M72,368 H30 V132 H40", (36, 345)),
)
"""Every move of the events that have an arrow. What has none, such as ``CLOSE``, is named below the picture."""
PLACES: Final = {
    State.IDLE: (178, 36, 100),
    State.PENDING: (118, 124, 92),
    State.QUEUED: (283, 124, 92),
    State.INJECTING: (283, 270, 94),
    State.INJECTING_PENDING: (118, 270, 140),
    State.BROKEN: (120, 368, 96),
    State.RETRYING: (283, 368, 96),
    State.CLOSED: (200, 448, 96),
}
"""The middle of each state, and how wide it is."""
BOXES: Final = (
    (40, 86, 314, 94, 100, "owed: PENDING if blocked, else QUEUED"),
    (40, 228, 314, 82, 304, "the bottom half runs"),
)


def words(event: Event) -> str:
    """An event as it is written."""
    return event.name.lower().replace("_", " ")


def drawn() -> set[tuple[State, Event, bool, State]]:
    """The moves that the arrows stand for."""
    return {
        (source, arrow.event, blocked, after)
        for arrow in ARROWS
        for source in arrow.sources
        for blocked, after in ((False, arrow.free), (True, arrow.blocked))
        if after is not None
    }


def draw() -> str:
    """The picture.

    Raises:
        ValueError: It does not show the table.
    """
    events = {arrow.event for arrow in ARROWS}
    table = {(state, event, when, after) for state, event, blocked, after, _ in ROWS for when in blocked}
    wrong = drawn() ^ {move for move in table if move[1] in events}
    if wrong or set(PLACES) != set(State):
        raise ValueError(f"the picture of the states does not show the table: {sorted(wrong)}")
    parts = []
    for x, y, width, height, line, meaning in BOXES:
        parts += [svg.rect(x, y, width, height, "box", radius=8), svg.text(x + 10, line, meaning, kind="small")]
    for arrow in ARROWS:
        parts += [svg.line(arrow.path, arrow=True), svg.text(*arrow.label, words(arrow.event), kind="small")]
    for state, (x, y, width) in PLACES.items():
        parts += [
            svg.rect(x - width / 2, y - 16, width, 32, "node", radius=8),
            svg.text(x, y + 4, state.name, anchor="middle"),
        ]
    others = ", ".join(words(event) for event in Event if event not in events)
    parts.append(svg.text(18, 492, f"not drawn: {others}", kind="small"))
    return svg.picture("The states of an irqfd, and what moves it from one to another", 506, parts)
