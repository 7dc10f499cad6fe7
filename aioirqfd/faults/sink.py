"""Faults of a sink: the interrupts of a manager's gsis."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

from aioirqfd.faults.line import Line
from aioirqfd.faults.targets import Target, wanted_of
from aioirqfd.irqfd.guard import report
from aioirqfd.irqfd.interrupt import Action, Interrupt, Msi
from aioirqfd.irqfd.sink import SinkTiers

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioirqfd.faults.faults import Faults
    from aioirqfd.faults.match import Match
    from aioirqfd.irqfd.sink import InterruptSink

RETRY: Final = 0.001
"""Seconds until a sink that has refused a late interrupt is asked again."""


@final
class SinkTarget(Target):
    """A sink in front of another one.

    Whatever else the other one can do is there as it is, but for batches and for watching an eventfd by itself: interrupts would go
    past. A level that is kept back keeps back its end, too.

    Args:
        faults: Whose.
        sink: The sink that gets what is left.
    """

    fields: ClassVar = ()

    def __init__(self, faults: Faults, sink: InterruptSink) -> None:
        super().__init__(faults)
        self._sink = sink
        self._tiers = SinkTiers(sink)
        self._attached = False
        self._last: dict[int, Interrupt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        if self._tiers.try_inject is None:
            self.try_inject = None  # type: ignore[assignment]  # the manager looks for what can be called

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in {"try_inject_batch", "offload", "reclaim"}:
            raise AttributeError(name)
        return getattr(self._sink, name)

    def attach(self, *, attached: bool) -> None:
        """Look at interrupts, or hand them on."""
        self._attached = attached

    def interrupt_for_nothing(self, match: Match, *, always: bool) -> list[dict[str, int | str]]:
        """Interrupt by these gsis, of those that have interrupted before; one that was named and has not is a message of no data."""
        del always  # whoever has a gsi has set it up
        named = match.fields.get("gsi", ())
        there = sorted({*self._last, *(one for one in named if isinstance(one, int))})
        chosen = wanted_of(match, "gsi", there)
        found: list[dict[str, int | str]] = []
        for gsi in chosen:
            interrupt = self._last.get(gsi, Interrupt(gsi, Msi(address=0, data=0)))
            line = self._line("interrupt", gsi)
            found.append(line.ring_for_nothing(lambda _, interrupt=interrupt: self._late(interrupt)))  # type: ignore[misc]
        return found

    def try_inject(self, interrupt: Interrupt) -> bool:
        """At once, if nothing is done to it and the other sink takes it."""
        assert self._tiers.try_inject is not None
        if not self._attached:
            return self._tiers.try_inject(interrupt)
        return self._decide(interrupt, self._tiers.try_inject)

    async def inject(self, interrupt: Interrupt) -> None:
        """In its own time."""
        if not self._attached or self._tiers.try_inject is not None:
            # What is done to it was decided by the first try.
            await self._tiers.inject(interrupt)
        elif self._decide(interrupt, lambda _: False):
            return
        else:
            await self._tiers.inject(interrupt)

    def _decide(self, interrupt: Interrupt, at_once: Callable[[Interrupt], bool]) -> bool:
        """Whether it is dealt with; False: it goes to the other sink's ``inject()`` now."""
        taken: bool | None = None
        now = True

        def deliver(to: int | None) -> None:
            nonlocal taken
            there = interrupt if to is None else replace(interrupt, gsi=to)
            if now and to is None:
                taken = at_once(there)
            else:
                self._late(there)

        kind = "deassert" if interrupt.action is Action.DEASSERT else "interrupt"
        if kind == "interrupt":
            self._last[interrupt.gsi] = interrupt
        self._line(kind, interrupt.gsi).want(deliver)
        now = False
        return True if taken is None else taken

    def _late(self, interrupt: Interrupt) -> None:
        """Hand on what the manager believes to be delivered already."""
        failed = False
        try:
            if self._tiers.try_inject is not None and self._tiers.try_inject(interrupt):
                return
        except Exception as error:
            failed = True
            _report(interrupt, error)
        task = asyncio.create_task(self._until_taken(interrupt, said=failed), name="aioirqfd fault")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_taken(self, interrupt: Interrupt, *, said: bool) -> None:
        while True:
            try:
                await self._tiers.inject(interrupt)
            except Exception as error:
                if not said:
                    _report(interrupt, error)
                said = True
                await asyncio.sleep(RETRY)
            else:
                return

    def _line(self, kind: str, gsi: int) -> Line:
        key = kind, gsi
        if key not in self.lines:
            self.lines[key] = Line(self.faults, kind, {"gsi": gsi})
        return self.lines[key]


def _report(interrupt: Interrupt, error: Exception) -> None:
    report(
        f"aioirqfd: the sink fails a late interrupt of gsi {interrupt.gsi}, which is tried again until it is taken",
        error,
    )
