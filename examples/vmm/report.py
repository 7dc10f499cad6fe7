"""What happened, as a table, and whether it contradicts the promise that no interrupt is lost."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_U32 = 0xFFFF_FFFF


@final
@dataclass(frozen=True, slots=True)
class GuestCounts:
    """What the guest counted, in the order in which it reports; each is 32 bits wide and wraps.

    Attributes:
        timer_interrupts: Timer interrupts handled.
        ticks: The number of ticks that the last of them read.
        rings: Doorbells rung.
        echo_interrupts: Echo interrupts handled.
        wrong_answers: Answers that differed from the question.
        serial_interrupts: Serial interrupts handled.
        bytes: Bytes read from the receiver and printed.
        power_interrupts: Power-button interrupts handled.
        spurious_interrupts: Vectors of pins 7 and 15: a request withdrawn before it was acknowledged. Legal, and no loss.
        unexpected_interrupts: Any other vector.
    """

    timer_interrupts: int
    ticks: int
    rings: int
    echo_interrupts: int
    wrong_answers: int
    serial_interrupts: int
    bytes: int
    power_interrupts: int
    spurious_interrupts: int
    unexpected_interrupts: int

    @classmethod
    def from_words(cls, words: Sequence[int]) -> GuestCounts | None:
        """The counts from what came through the report port; None unless it is exactly one report."""
        return cls(*words) if len(words) == len(fields(cls)) else None


@final
@dataclass(frozen=True, slots=True)
class Line:
    """One interrupt line, seen from the host.

    Attributes:
        name: Its device.
        signals: How often the device signalled.
        injections: How often the sink took an interrupt, or None where the kernel injects and does not say.
        level: Whether it is level-triggered; the processor may then be interrupted again while the line is still up.
    """

    name: str
    signals: int
    injections: int | None
    level: bool = False

    def contradictions(self, handled: int) -> Iterator[str]:
        """How this line breaks the promise, given how many interrupts the guest handled."""
        if self.injections is not None and self.injections > self.signals:
            yield f"{self.name}: {self.injections} injections for {self.signals} signals"
        taken = self.signals if self.injections is None else self.injections
        if handled > taken and not self.level:
            yield f"{self.name}: {handled} interrupts handled, but there were {taken}"
        if self.signals and not handled:
            yield f"{self.name}: {self.signals} signals, and not one interrupt handled"


@final
@dataclass(frozen=True, slots=True)
class Report:
    """Both sides of the story.

    Attributes:
        timer: The timer's line.
        echo: The echo device's line.
        serial: The serial receiver's line.
        power: The power button's line.
        ticks: Ticks signalled.
        rings: Doorbells that reached the echo device.
        fed: Bytes handed to the guest.
        printed: Bytes the guest printed.
        intact: Whether what was printed is what was fed, byte for byte.
        guest: The guest's counts, or None when it did not report.
    """

    timer: Line
    echo: Line
    serial: Line
    power: Line
    ticks: int
    rings: int
    fed: int
    printed: int
    intact: bool
    guest: GuestCounts | None

    def contradictions(self) -> list[str]:
        """Every way in which the two sides contradict each other; empty when nothing was lost."""
        guest = self.guest
        if guest is None:
            return ["the guest did not report", *self._byte_losses(None)]
        found: list[str] = []
        for line, handled in self._handled(guest):
            found += line.contradictions(handled)
        if guest.ticks != self.ticks & _U32:
            found.append(f"timer: {self.ticks} ticks signalled, the guest heard of {guest.ticks}")
        if guest.rings != self.rings:
            found.append(f"echo: the guest rang {guest.rings} times, the device heard {self.rings}")
        if not self.rings == self.echo.signals == guest.echo_interrupts:
            found.append(
                f"echo: {self.rings} doorbells, {self.echo.signals} answers, {guest.echo_interrupts} handled by the guest"
            )
        if guest.wrong_answers:
            found.append(f"echo: {guest.wrong_answers} wrong answers")
        found += self._byte_losses(guest.bytes)
        if guest.power_interrupts != self.power.signals:
            found.append(f"power: pressed {self.power.signals} times, handled {guest.power_interrupts}")
        if guest.unexpected_interrupts:
            found.append(f"{guest.unexpected_interrupts} interrupts on vectors that no device has")
        return found

    def text(self) -> str:
        """The table and the verdict, ending in a newline."""
        handled = dict.fromkeys((self.timer, self.echo, self.serial, self.power), "-")
        if self.guest is not None:
            handled = {line: str(count) for line, count in self._handled(self.guest)}
        rows = [("", "signals", "injections", "coalesced", "handled")]
        for line, count in handled.items():
            injections = "kernel" if line.injections is None else str(line.injections)
            coalesced = "-" if line.injections is None else str(line.signals - line.injections)
            rows.append((line.name, str(line.signals), injections, coalesced, count))
        table = "\n".join(f"{name:<8}" + "".join(f"{cell:>12}" for cell in cells) for name, *cells in rows)
        bytes_back = "identical" if self.intact else "DIFFERENT"
        facts = [
            f"{self.ticks} ticks, {self.rings} questions, {self.fed} bytes in, {self.printed} bytes back, {bytes_back}"
        ]
        if self.guest is not None and self.guest.spurious_interrupts:
            facts.append(f"{self.guest.spurious_interrupts} spurious interrupts, which an 8259 is allowed")
        verdict = [f"LOST: {text}" for text in self.contradictions()] or ["nothing lost"]
        return "\n".join([table, *self._shared(), *facts, *verdict]) + "\n"

    def _shared(self) -> Iterator[str]:
        """Why fewer interrupts were handled than signalled, where that is no loss: see :meth:`contradictions`."""
        guest = self.guest
        if guest is None:
            return
        if 0 < guest.timer_interrupts < self.timer.signals and guest.ticks == self.ticks & _U32:
            yield (
                f"timer: {guest.timer_interrupts} interrupts for {self.timer.signals} signals: a signal that comes while an"
                f" interrupt is pending shares it. The guest has read of all {self.ticks} ticks"
            )
        if 0 < guest.serial_interrupts < self.serial.signals and not [*self._byte_losses(guest.bytes)]:
            yield (
                f"serial: {guest.serial_interrupts} interrupts for {self.serial.signals} signals: a signal changes nothing"
                f" on a line that is up. The guest has read all {self.fed} bytes"
            )

    def _handled(self, guest: GuestCounts) -> list[tuple[Line, int]]:
        return [
            (self.timer, guest.timer_interrupts),
            (self.echo, guest.echo_interrupts),
            (self.serial, guest.serial_interrupts),
            (self.power, guest.power_interrupts),
        ]

    def _byte_losses(self, read: int | None) -> Iterator[str]:
        if read is not None and read != self.fed & _U32:
            yield f"serial: {self.fed} bytes fed, the guest read {read}"
        if self.printed != self.fed:
            yield f"serial: {self.fed} bytes fed, {self.printed} came back"
        elif not self.intact:
            yield "serial: the bytes that came back are not the ones that were fed"
