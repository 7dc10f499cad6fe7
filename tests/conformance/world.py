"""The kernel and aioirqfd side by side: doing the same to both, comparing what can be seen, and what they are kept away from."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis.stateful import RuleBasedStateMachine

from tests.conformance.kernel import KernelEvent, KernelHost
from tests.conformance.ours import OurEvent, OurHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.kernel import KernelMachine
    from tests.conformance.machine import Route
    from tests.conformance.ours import OurMachine

TURNS = 16
"""Of the loop: enough for a write, its dispatch, the work queue and what a resamplefd triggers in its turn."""
CASCADE = 1 << 2
VECTORS = {5: 0x51, 6: 0x61}

done: Counter[str] = Counter()
"""How often which operation was done, and some of what came of it."""

DIFFERENT: dict[str, str] = {
    "G12": "a gsi whose resample line is up keeps its route",
    "G13": "it may lose its route and have it back at once, unless that makes an edge here; the kernel's line was never down",
    "O18": "a doorbell is taken off before its eventfd is closed",
    "P01 held": "nothing is held masked while its eventfd has a count, which the second assign would inject once more",
    "P01 migrated": "nor migrated",
    "P06": "in a burst a bound semaphore is signalled or unbound once, as one look at it takes 1, and the kernel looks at each",
    "P06 held": "a semaphore is not held masked: it would be read, and bound again with its rest",
    "R13 held": "nor an irqfd with a resamplefd, as its unbinding lowers the line",
    "R16 migrated": "nothing is migrated while a resamplefd is closed, which cannot be assigned anew",
    "R19 driven": "a PIC is not set up anew with a line up that a device drives",
    "R19 in service": "nor with an interrupt in service",
    "R19 requests": "nor with two requests waiting: what the end of the first one triggers comes here before the end of the second",
    "R19 triggers": "nor where an end would trigger another irqfd: the kernel's work queue does it before or after the other chip's ICW1",
    "R20 level": "while our sink takes nothing at once, the IOAPIC's pins are edge-triggered: the line goes down after the end of "
    "interrupt, and a level pin that is still high at that moment goes out once more",
    "R20 route": "an edge pin of the IOAPIC keeps its route: one that had none when the kernel last looked tells nobody of its ends there",
    "R21 driven": "a level pin that a device holds up is not unmasked while its gsi has a resampler: that request is dropped there",
    "R21 edge": "an edge pin is not masked: what comes meanwhile is kept here, and lost there",
    "W02": "in a burst a gsi is signalled or unbound once while a device drives a line up: the first pulse only lowers the line, and a "
    "second, if it is one of its own, is an edge",
    "W04": "in a burst nothing is unbound whose line is up, as it goes down before or after what others on the gsi signalled",
}
"""What is different on purpose, by the row it is of, and so kept away from."""

looked: Counter[str] = Counter()
avoided: Counter[str] = Counter()
"""How often each of them was looked for, and was there."""


def unseen(*, rare: frozenset[str] = frozenset()) -> list[str]:
    """What has never been there, or always: it keeps nothing away, or everything."""
    return [what for what in DIFFERENT if what not in rare and not 0 < avoided[what] < looked[what]]


def _at_once(result: object) -> object:
    """What it gives; of a coroutine what it gives without waiting, and "ok" if it would wait."""
    if not asyncio.iscoroutine(result):
        return result
    try:
        result.send(None)
    except StopIteration as end:
        return end.value
    result.close()
    return "ok"


class World(RuleBasedStateMachine):
    """Two machines, their eventfds, and what is bound to what.

    Attributes:
        machines: The kernel's and ours.
        events: By slot, an eventfd of each.
        doorbells: The slot of each port's.
        bound: The gsi of each bound slot.
        table: The routes of each gsi.
        hurried: Several operations are done before aioirqfd's loop has a turn.
        held: The slot that is masked for some operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.hosts = (KernelHost(), OurHost())
        self.loop: asyncio.AbstractEventLoop
        self.machines: tuple[KernelMachine, OurMachine]
        self.level: int
        self.auto_eoi: bool
        self.entries: dict[int, int]
        self.events: list[tuple[KernelEvent, OurEvent]] = []
        self.twins: list[tuple[KernelEvent, OurEvent]] = []
        self.doorbells: dict[int, int] = {}
        self.bound: dict[int, int] = {}
        self.table: dict[int, list[Route]] = {}
        self.hurried = False
        self.resampled = False
        self.held: int | None = None

    def avoids(self, what: str, there: object) -> bool:
        """Whether something that is different on purpose is there, of :data:`DIFFERENT`. Counted either way."""
        assert what in DIFFERENT
        looked[what] += 1
        avoided[what] += bool(there)
        return bool(there)

    def both(self, call: Callable[[int], object], *, settle: bool = True) -> object:
        """What the call gives for side 0 and side 1; they must agree. ``settle``: it may leave the kernel a work item."""

        async def run() -> list[object]:
            results = []
            for side in (0, 1):
                result = call(side)
                results.append(await result if asyncio.iscoroutine(result) else result)
            if settle:
                await self.machines[0].settle()
            for _ in range(TURNS):
                await asyncio.sleep(0)
            return results

        if self.hurried:
            kernel, ours = (_at_once(call(side)) for side in (0, 1))
            if settle:
                _at_once(self.machines[0].settle())
        else:
            kernel, ours = self.loop.run_until_complete(run())
        assert kernel == ours, f"kernel {kernel!r}, aioirqfd {ours!r}"
        return kernel

    def make(self, kind: tuple[int, bool]) -> tuple[KernelEvent, OurEvent]:
        """An eventfd on each side: its count, and whether it is a semaphore."""
        kernel, ours = self.hosts
        return kernel.event(kind[0], semaphore=kind[1]), ours.event(kind[0], semaphore=kind[1])

    def compare(self, see: Callable[[int], object]) -> None:
        """What is to be seen on both sides; nothing is waited for."""

        kernel, ours = see(0), see(1)
        assert kernel == ours, f"kernel {kernel!r}, aioirqfd {ours!r}"

    def seen(self, side: int) -> dict[str, object]:
        """All that can be seen without asking an irqfd, which is what a lost wake-up waits for."""
        machine = self.machines[side]
        irr, isr, imr, lines = machine.registers()
        return {
            "irr": irr & ~CASCADE,
            "isr": isr,
            "imr": imr,
            "lines": lines & ~CASCADE,
            "vectors": machine.vectors(),
            "pins": [hex(machine.pin(pin)) for pin in VECTORS],
            # What a bound irqfd has seen may be left unread until somebody asks; not so a semaphore's rest.
            "counts": {
                slot: event[side].count()
                for slot, event in enumerate(self.events)
                if slot not in self.bound or event[1].eventfd.semaphore
            },
            "closed": [twin[side].count() for twin in self.twins],
        }

    def compare_all(self) -> None:
        """Every count too."""
        if self.held is not None:
            self.release()
        self.both(lambda side: [event[side].count() for event in self.events], settle=False)

    def release(self) -> None:
        """Unmask."""
        assert self.held is not None
        slot, self.held = self.held, None
        gsi, event = self.bound[slot], self.events[slot]

        def release(side: int) -> object:
            if side:
                irqfd = self.machines[1].find(event[1], gsi)
                assert irqfd is not None
                return irqfd.unmask()
            came = event[0].read()
            assert self.machines[0].assign(event[0], gsi) == "ok"
            if came != "EAGAIN":
                event[0].write(1)
            return None

        done["- an unmask with something pending"] += event[0].count() > 0
        self.both(release)

    def told(self, slot: int) -> None:
        """Count a signal: of a bound one, and of one that had a count."""
        if slot in self.bound:
            done["- a signal of a bound eventfd"] += 1
            if self.events[slot][0].count():
                done["- a signal of a bound eventfd that holds a count"] += 1

    def teardown(self) -> None:
        """Compare for the last time, and close everything."""

        async def end() -> None:
            for host in self.hosts:
                await host.close()

        try:
            if self.events and sys.exc_info()[0] is None:
                self.compare_all()
                self.both(lambda _side: None)
                self.compare(self.seen)
                done["sequences"] += 1
        finally:
            try:
                self.runner.run(end())
            finally:
                self.runner.close()
