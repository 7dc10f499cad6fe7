"""The screen of ``aioirqfd top``: rows of irqfds, with rates from one look to the next; text alone, without a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast, final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

WIDTH: Final = 80
HEIGHT: Final = 24
WIDE: Final = 90
"""From so many columns on all of them are shown."""
_PARTS: Final = ("irqfds", "queue", "latency")
"""Of a manager."""
_HELP: Final = "q quit  r rate  t total  c coalesced  n name  g gsi  h held  / filter  x clear"


@dataclass(frozen=True, slots=True)
class Row:
    """One irqfd.

    Attributes:
        rate: Interrupts per second since the look before; None: there was none.
        latency: Half of its last signals were injected within so many microseconds, and 99 of 100; None: nobody has recorded them.
    """

    manager: str
    name: str
    gsi: int
    state: str
    marks: str
    signals: int
    injections: int
    coalesced: int
    rate: float | None
    latency: tuple[float, float] | None

    @property
    def held(self) -> bool:
        """Whether something holds its interrupts back."""
        return any(mark in self.marks for mark in "PMHBC")

    @property
    def dropped(self) -> bool:
        """Whether some of its interrupts went nowhere."""
        return "D" in self.marks


_SORTS: Final[dict[str, tuple[str, Callable[[Row], Any]]]] = {
    "r": ("rate", lambda row: (-(row.rate or 0), -row.injections)),
    "t": ("total", lambda row: -row.injections),
    "c": ("coalesced", lambda row: -row.coalesced),
    "n": ("name", lambda row: (row.manager, row.name)),
    "g": ("gsi", lambda row: row.gsi),
    "h": ("held", lambda row: (not row.held, not row.dropped, -(row.rate or 0))),
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
    _hint: str = ""

    def take(self, tree: Mapping[str, Any], now: float) -> None:
        """Take a look's tree: ``process``, and ``managers`` with their ``irqfds``, ``queue`` and ``latency``.

        Args:
            tree: As :meth:`aioirqfd.inspect.InspectClient.read` gives it.
            now: Seconds of any clock, for the rates.
        """
        passed = 0.0 if self._at is None else now - self._at
        rows: list[Row] = []
        counted: dict[tuple[str, str], int] = {}
        silent: list[str] = []
        there: list[Mapping[str, Any]] = []
        for manager, node in cast("Mapping[str, Mapping[str, Any]]", tree["managers"]).items():
            if any(isinstance(part.get("error"), str) for part in (node, *(node.get(name, {}) for name in _PARTS))):
                silent.append(manager)
                continue
            there.append(node)
            for name, irqfd in node["irqfds"].items():
                if "statistics" not in irqfd:
                    continue  # it could not be looked at
                key = manager, name
                counted[key] = irqfd["statistics"]["injections"]
                grown = max(counted[key] - self._before.get(key, 0), 0)
                known = passed > 0 and key in self._before
                latency = node["latency"]["irqfds"].get(name)
                rows.append(_row(manager, name, irqfd, grown / passed if known else None, latency))
        self._rows, self._before, self._at = rows, counted, now
        self._paused = [name for name, node in tree["managers"].items() if node.get("paused")]
        queues = [node["queue"] for node in there]
        self._queues = f"{sum(one['queued'] for one in queues)} queued, {sum(one['running'] for one in queues)} running"
        process = tree["process"]
        self._process = f"pid {process['pid']}, {process['implementation']}"
        self._trouble = f"no answer: {', '.join(silent)}" if silent else ""
        self._hint = (
            "" if any(row.latency for row in rows) else self._how_to_record([node["latency"] for node in there])
        )

    def _how_to_record(self, looked: Sequence[Mapping[str, Any]]) -> str:
        """Why there are no latencies, and what to do about it."""
        off = [one["recorder"] for one in looked if one["recorder"] is not None and not one["on"]]
        if off:
            return f"no latencies: aioirqfd inspect {self.title} tracers/{off[0]}/on --set yes"
        if any(one["on"] for one in looked):
            return ""  # there were no interrupts of late
        return "no latencies: IrqManager(..., tracer=FlightRecorder()) has them recorded" if looked else ""

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
        rows = self._sorted()
        head = self._head(width)
        foot = [_HELP if self.typing is None else f"filter: {self.typing}_"]
        if self._hint:
            foot.insert(0, self._hint)
        shown = rows[: max(height - len(head) - len(foot), 0)]
        if more := len(rows) - len(shown):
            head[2] += f", {more} more"
        body = [self._columns(width, _text(row)) for row in shown]
        space = [""] * (height - len(head) - len(body) - len(foot))
        return [line[:width] for line in [*head, *body, *space, *foot]][:height]

    def page(self) -> list[str]:
        """All rows, for a pipe: as wide and as long as they are."""
        rows = [self._columns(WIDE, _text(row)) for row in self._sorted()]
        return [line.rstrip() for line in [*self._head(WIDE), *rows, *([self._hint] if self._hint else [])]]

    def _sorted(self) -> list[Row]:
        rows = [row for row in self._rows if self.filter in f"{row.manager}/{row.name} {row.gsi} {row.state}"]
        return sorted(rows, key=_SORTS[self.sort][1])

    def _head(self, width: int) -> list[str]:
        rates = [row.rate for row in self._rows if row.rate is not None]
        held, dropped = sum(row.held for row in self._rows), sum(row.dropped for row in self._rows)
        totals = [f"{len(self._rows)} irqfds", f"{sum(rates):.0f} interrupts/s" if rates else "- interrupts/s"]
        totals += [f"{held} held back", *([f"{dropped} with drops"] if dropped else [])]
        paused = f"; paused: {', '.join(self._paused)}" if self._paused else ""
        status = f"by {_SORTS[self.sort][0]}" + (f", with {self.filter!r}" if self.filter else "")
        return [
            f"aioirqfd top - {self.title} ({self._process})",
            f"{', '.join(totals)}; {self._queues}{paused}",
            self._trouble or status,
            self._columns(width, _TITLES),
        ]

    def _columns(self, width: int, row: Columns) -> str:
        """One row. Where there is no room for both, what is sorted by is shown of the counts."""
        left = f"{_cut(row.manager, 12):12} {_cut(row.name, 12):12} {row.gsi:>4} {_cut(row.state, 9):9} {row.marks:5}"
        counts = [row.coalesced] if self.sort == "c" else [row.injected]
        if width >= WIDE:
            counts = [row.injected, row.coalesced]
        return f"{left} {row.rate:>7} {' '.join(f'{one:>9}' for one in counts)} {row.p50:>6} {row.p99:>7}"


def _row(
    manager: str, name: str, irqfd: Mapping[str, Any], rate: float | None, latency: Mapping[str, Any] | None
) -> Row:
    counts = irqfd["statistics"]
    marks = {
        "P": irqfd["paused"] and irqfd["pending"],
        "M": irqfd["masked"],
        "H": irqfd["held"] and not irqfd["paused"],
        "B": irqfd["error"] is not None,
        "C": irqfd.get("obstacle") is not None,
        "D": counts["dropped"] > 0,
        "K": irqfd["offloaded"],
        "R": irqfd["running"] is not None,
    }
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
        None if latency is None else (latency["p50_us"], latency["p99_us"]),
    )


class Columns(NamedTuple):
    """A row, as words."""

    manager: str
    name: str
    gsi: str
    state: str
    marks: str
    rate: str
    injected: str
    coalesced: str
    p50: str
    p99: str


_TITLES: Final = Columns(
    "MANAGER", "IRQFD", "GSI", "STATE", "MARKS", "RATE/S", "INJECTED", "COALESCED", "P50 us", "P99 us"
)


def _text(row: Row) -> Columns:
    p50, p99 = ("-", "-") if row.latency is None else (f"{one:.0f}" for one in row.latency)
    rate = "-" if row.rate is None else f"{row.rate:.0f}"
    counts = str(row.injections), str(row.coalesced)
    return Columns(row.manager, row.name, str(row.gsi), row.state, row.marks, rate, *counts, p50, p99)


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}+"
