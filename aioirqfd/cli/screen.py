"""The screen of ``aioirqfd top``: rows of irqfds, with rates from one look to the next; text alone, without a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast, final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WIDTH: Final = 80
HEIGHT: Final = 24
_HELP: Final = "q quit  r rate  t total  c coalesced  n name  g gsi  h held  / filter  x clear"


@dataclass(frozen=True, slots=True)
class Row:
    """One irqfd."""

    manager: str
    name: str
    gsi: int
    state: str
    marks: str
    signals: int
    injections: int
    coalesced: int
    rate: float
    latency: tuple[float, float] | None

    @property
    def held(self) -> bool:
        """Whether something holds back what it owes."""
        return any(mark in self.marks for mark in "PMHB")


_SORTS: Final[dict[str, tuple[str, Callable[[Row], Any]]]] = {
    "r": ("rate", lambda row: (-row.rate, -row.injections)),
    "t": ("total", lambda row: -row.injections),
    "c": ("coalesced", lambda row: -row.coalesced),
    "n": ("name", lambda row: (row.manager, row.name)),
    "g": ("gsi", lambda row: row.gsi),
    "h": ("held", lambda row: (not row.held, -row.rate)),
}


@final
@dataclass(slots=True)
class Screen:
    """What is on the screen, and how.

    Attributes:
        title: What is looked at.
        sort: The key that sorts.
        filter: What a row has to have in its names, its gsi or its state.
        typing: What is being typed as a filter; None: nothing.
    """

    title: str
    sort: str = "r"
    filter: str = ""
    typing: str | None = None
    _rows: list[Row] = field(default_factory=list[Row])
    _queues: str = ""
    _process: str = ""
    _paused: list[str] = field(default_factory=list[str])
    _before: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    _at: float | None = None
    _trouble: str = ""

    def take(self, tree: Mapping[str, Any], now: float) -> None:
        """Take a look's tree: ``process``, and ``managers`` with their ``irqfds`` and ``queue``.

        Args:
            tree: As :meth:`aioirqfd.inspect.InspectClient.read` gives it.
            now: Seconds of any clock, for the rates.
        """
        passed = 0.0 if self._at is None else now - self._at
        rows: list[Row] = []
        counted: dict[tuple[str, str], int] = {}
        silent: list[str] = []
        for manager, node in cast("Mapping[str, Mapping[str, Any]]", tree["managers"]).items():
            if "error" in node:
                silent.append(manager)
                continue
            for name, irqfd in node["irqfds"].items():
                key = manager, name
                counted[key] = irqfd["statistics"]["injections"]
                grown = max(counted[key] - self._before.get(key, 0), 0)
                known = passed > 0 and key in self._before
                rows.append(_row(manager, name, irqfd, grown / passed if known else 0.0))
        self._rows, self._before, self._at = rows, counted, now
        self._paused = [name for name, node in tree["managers"].items() if node.get("paused")]
        queues = [node["queue"] for node in tree["managers"].values() if "queue" in node]
        self._queues = f"{sum(one['queued'] for one in queues)} queued, {sum(one['running'] for one in queues)} running"
        process = tree["process"]
        self._process = f"pid {process['pid']}, {process['implementation']}"
        self._trouble = f"no answer: {', '.join(silent)}" if silent else ""

    def key(self, key: str) -> bool:
        """Take a key; False: it is the end."""
        if self.typing is not None:
            if key in {"\n", "\r"}:
                self.filter, self.typing = self.typing, None
            elif key == "\x1b":
                self.typing = None
            elif key in {"\x7f", "\b"}:
                self.typing = self.typing[:-1]
            elif key.isprintable():
                self.typing += key
            return True
        if key in _SORTS:
            self.sort = key
        elif key == "/":
            self.typing = ""
        elif key == "x":
            self.filter = ""
        return key != "q"

    def lines(self, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
        """The screen, line by line; no line is longer, and there are no more."""
        rows = [row for row in self._rows if self.filter in f"{row.manager}/{row.name} {row.gsi} {row.state}"]
        rows.sort(key=_SORTS[self.sort][1])
        total = sum(row.rate for row in self._rows)
        held = sum(row.held for row in self._rows)
        latency = any(row.latency is not None for row in self._rows)
        head = [
            f"aioirqfd top - {self.title} ({self._process})",
            f"{len(self._rows)} irqfds, {total:.0f} interrupts/s, {held} held back; {self._queues}"
            + (f"; paused: {', '.join(self._paused)}" if self._paused else ""),
            self._trouble,
            _titles(latency=latency),
        ]
        shown = rows[: max(height - len(head) - 1, 0)]
        body = [_text(row, latency=latency) for row in shown]
        more = len(rows) - len(shown)
        foot = _HELP if self.typing is None else f"filter: {self.typing}_"
        status = f"by {_SORTS[self.sort][0]}" + (f", with {self.filter!r}" if self.filter else "")
        status += f", {more} more" if more else ""
        space = [""] * (height - len(head) - len(body) - 1)
        head[2] = self._trouble or status
        return [line[:width] for line in [*head, *body, *space, foot]][:height]


def _row(manager: str, name: str, irqfd: Mapping[str, Any], rate: float) -> Row:
    counts = irqfd["statistics"]
    marks = {
        "P": irqfd["paused"] and irqfd["pending"],
        "M": irqfd["masked"],
        "H": irqfd["held"] and not irqfd["paused"],
        "B": irqfd["error"] is not None,
        "K": irqfd["offloaded"],
        "R": irqfd["running"] is not None,
    }
    latency = irqfd.get("latency")
    return Row(
        manager,
        name,
        irqfd["gsi"],
        irqfd["state"],
        "".join(mark for mark, there in marks.items() if there),
        counts["signals"],
        counts["injections"],
        counts["coalesced"],
        rate,
        None if latency is None else (latency["p50"], latency["p99"]),
    )


def _titles(*, latency: bool) -> str:
    return _columns(
        "MANAGER",
        "IRQFD",
        "GSI",
        "STATE",
        "MARKS",
        "RATE/S",
        "INJECTED",
        "COALESCED",
        ("P50 us", "P99 us") if latency else None,
    )


def _text(row: Row, *, latency: bool) -> str:
    times = ("", "") if row.latency is None else tuple(f"{1e6 * seconds:.0f}" for seconds in row.latency)
    return _columns(
        row.manager,
        row.name,
        str(row.gsi),
        row.state,
        row.marks,
        f"{row.rate:.0f}",
        str(row.injections),
        str(row.coalesced),
        (times[0], times[1]) if latency else None,
    )


def _columns(
    manager: str,
    name: str,
    gsi: str,
    state: str,
    marks: str,
    rate: str,
    injected: str,
    coalesced: str,
    latency: tuple[str, str] | None,
) -> str:
    names = f"{_cut(manager, 12):12} {_cut(name, 12):12} {gsi:>4} {_cut(state, 9):9} {marks:5}"
    if latency is None:
        return f"{names} {rate:>8} {injected:>11} {coalesced:>11}"
    return f"{names} {rate:>7} {injected:>9} {latency[0]:>6} {latency[1]:>7}"


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}+"
