"""Random sequences of operations, on the kernel and on aioirqfd at once; everything that can be seen is compared after each step.

``python -m tests.conformance.stateful --sequences 10000 --seed 1`` runs many, in pieces, each with a seed of its own that is
printed, and tells in the end how often it did what. The kernel is given the time for its work items after every operation;
aioirqfd's loop has some turns of its own and is asked nothing, as a flush or a look at the statistics would find what a lost
wake-up left lying. What only aioirqfd has is done to it in such a way that the kernel gives the same: a mask that holds for some
operations is a deassign there, and an assign and one write at its end; a migration to other chips and another manager is nothing.
An operation is one value, drawn by weight: Hypothesis leaves rules out of whole runs, and with ``assign`` a
rule of its own many runs would have nothing bound to look at.

Where the two are different on purpose, the machine keeps away:

- R11, O21, P08, P10: counts near their top, and a write of 0.
- G12, G13: a gsi whose resample line is up keeps its route; it may lose it and have it back at once, if that makes no edge.
- R17, G08: each pin has one gsi.
- R19: a PIC is set up anew with no interrupt in service, with no line up that a device drives, and with one request waiting at
  most: where several end at once, what the first one's resamplefd triggers comes here before the end of the second. Nor where
  the end would trigger another irqfd, which the kernel's work queue does before or after the other chip's ICW1.
- O18: a doorbell is taken off before its eventfd is closed.
- P09: nobody reads a bound eventfd's fd but its owner.
- P06, W02: in a burst a bound semaphore is signalled or unbound once, as one look at it takes 1, and the kernel looks at each. So is
  a gsi while a device drives a line up: the first pulse only lowers the line, and a second, if it is one of its own, is an edge.
- W04: in a burst nothing is unbound whose line is up, as it goes down before or after what others on the gsi signalled.
- R20: while our sink takes nothing at once, the IOAPIC's pins are edge-triggered: the line goes down after the end of interrupt, and a
  level pin that is still high at that moment goes out once more.
- R20: an edge pin of the IOAPIC keeps its route: one that had none when the kernel last looked tells nobody of its ends there.
- R21: a level pin that a device holds up is not unmasked while its gsi has a resampler. An edge pin is never masked: what comes
  meanwhile is kept here, and lost there.
- P01, P03: nothing is migrated or held masked while a bound eventfd has a count, which the second assign would inject once more.
- The slave's pins are edge-triggered, and pin 2 is not compared: its request is a latch there and a wire here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import hypothesis.core
import uvloop
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from aioirqfd import IMPLEMENTATION
from tests.conformance.kernel import KernelEvent, KernelHost
from tests.conformance.ours import OurEvent, OurHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.kernel import KernelMachine
    from tests.conformance.machine import Route
    from tests.conformance.ours import OurMachine

EVENTS = 6
TURNS = 16
"""Of the loop: enough for a write, its dispatch, the work queue and what a resamplefd triggers in its turn."""

_CASCADE = 1 << 2
_PINS = (5, 6, 3, 9, 12)
_GSIS = (5, 6, 7, 9, 100)
_MESSAGE = 101
_BOTH_CHIPS = 102
_UNROUTED = 103
_IOAPIC = {110: 5, 111: 6}
_VECTORS = {5: 0x51, 6: 0x61}
_LEVEL, _MASKED = 1 << 15, 1 << 16
_FIXED: dict[int, list[Route]] = {
    _MESSAGE: [("msi", 0x41)],
    _BOTH_CHIPS: [("pic", 4), ("ioapic", 20)],  # by the work queue (row M05); the IOAPIC's pin is masked
    **{gsi: [("ioapic", pin)] for gsi, pin in _IOAPIC.items()},
}
_PORTS = (0x90, 0x91)

done: Counter[str] = Counter()
"""How often which operation was done, and some of what came of it."""

slots = st.integers(0, EVENTS - 1)
gsis = st.sampled_from([5, 5, 5, 6, 6, 7, 9, 100, _MESSAGE, _BOTH_CHIPS, _UNROUTED, 110, 110, 111])
kinds = st.tuples(st.sampled_from([0, 0, 1, 3]), st.booleans())
counts = st.sampled_from([1, 1, 2, 3, 2**31, 2**32 - 1])
ports = st.sampled_from(_PORTS)
resamples = st.one_of(st.none(), slots)
tables = st.tuples(
    st.permutations(_PINS),
    st.sets(st.sampled_from(_GSIS), min_size=2),
    st.booleans(),
    st.sets(st.sampled_from(_GSIS), max_size=2),
    st.sampled_from([0x41, 0x41, 0x42, 0x43]),
)

# What may be done several times before aioirqfd's loop has a turn.
SIGNALS: dict[str, tuple[int, tuple[st.SearchStrategy[object], ...]]] = {
    "write": (4, (slots, counts)),
    "signal": (4, (slots, counts)),
    "signal_from_a_thread": (4, (slots, counts)),
    "ring": (2, (ports,)),
    "read": (2, (slots,)),
    "unbind": (1, (slots,)),
    "look": (3, (slots,)),
}


def _drawn(
    weights: dict[str, tuple[int, tuple[st.SearchStrategy[object], ...]]],
) -> st.SearchStrategy[tuple[object, ...]]:
    names = [name for name, (weight, _) in weights.items() for _ in range(weight)]
    whole = {name: st.tuples(st.just(name), *arguments) for name, (_, arguments) in weights.items()}
    return st.sampled_from(names).flatmap(whole.__getitem__)


OPERATIONS: dict[str, tuple[int, tuple[st.SearchStrategy[object], ...]]] = {
    **SIGNALS,
    "burst": (6, (st.lists(_drawn(SIGNALS), min_size=2, max_size=5),)),
    "assign": (5, (slots, gsis, resamples)),
    "rebind": (2, (slots, gsis, resamples)),
    "deassign": (1, (slots, gsis)),
    "close": (2, (slots, kinds)),
    "signal_while_masked": (2, (slots, counts)),
    "signal_while_paused": (2, (slots, counts)),
    "take": (5, ()),
    "take_and_end": (5, ()),
    "end": (4, (st.booleans(),)),
    "end_specific": (2, (st.sampled_from(_PINS),)),
    "mask": (2, (st.sampled_from([0, 0, 0, 1 << 5, 1 << 6, 0xF8]),)),
    "line": (4, (gsis, st.sampled_from([0, 1]))),
    "route": (3, (tables,)),
    "unroute_and_route": (1, (gsis,)),
    "entry": (3, (st.sampled_from(sorted(_VECTORS)), st.booleans())),
    "hold_masked": (2, (slots,)),
    "migrate": (2, (slots, counts)),
    "use_a_dup": (2, (slots, gsis)),
    "doorbell": (2, (ports, slots)),
    "undoorbell": (1, (ports,)),
    "set_up_anew": (1, ()),
    "compare_all": (2, ()),
}


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


class Both(RuleBasedStateMachine):
    """The kernel and aioirqfd, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.hosts = (KernelHost(), OurHost())
        self.machines: tuple[KernelMachine, OurMachine]
        self.events: list[tuple[KernelEvent, OurEvent]] = []
        self.twins: list[tuple[KernelEvent, OurEvent]] = []
        self.doorbells: dict[int, int] = {}
        self.bound: dict[int, int] = {}
        self.table: dict[int, list[Route]] = {}
        self.hurried = False
        self.resampled = False
        self.held: int | None = None

    # -- doing the same to both --------------------------------------------------------------------------------------

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

    @initialize(
        level=st.sampled_from([0, 0, 1 << 5, 1 << 5 | 1 << 6]),
        auto_eoi=st.sampled_from([False, False, True]),
        slow=st.sampled_from([False, False, True]),
        fast_loop=st.booleans(),
        kinds=st.lists(kinds, min_size=EVENTS, max_size=EVENTS),
        bindings=st.lists(st.tuples(gsis, resamples), min_size=EVENTS - 2, max_size=EVENTS - 2),
        ringing=slots,
        levels=st.tuples(st.booleans(), st.booleans()),
    )
    def start(
        self,
        level: int,
        auto_eoi: bool,
        slow: bool,
        fast_loop: bool,
        kinds: list[tuple[int, bool]],
        bindings: list[tuple[int, int | None]],
        ringing: int,
        levels: tuple[bool, bool],
    ) -> None:
        """Machines, their PICs set up, and eventfds, most of them bound. ``slow``: our sink takes nothing at once."""
        if fast_loop:
            self.runner.close()
            self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

        async def begin() -> None:
            kernel, ours = self.hosts
            self.machines = (await kernel.machine(cpus=1), await ours.machine(cpus=1))

        self.loop = self.runner.get_loop()
        self.loop.run_until_complete(begin())
        self.level, self.auto_eoi = level, auto_eoi
        self.machines[1].chips.slow = slow
        self.both(lambda side: self.machines[side].enable(), settle=False)
        self.both(lambda side: self.machines[side].pic_up(level=level, auto_eoi=auto_eoi), settle=False)
        self.entries = {
            pin: (_LEVEL if level and not slow else 0) | _VECTORS[pin]
            for pin, level in zip(_VECTORS, levels, strict=True)
        }
        for pin, low in self.entries.items():
            self.ioapic(pin, low)
        table: dict[int, list[Route]] = {gsi: [("pic", pin)] for gsi, pin in zip(_GSIS, _PINS, strict=True)}
        self.set_table(table | _FIXED)
        self.events = [self.make(kind) for kind in kinds]
        for slot, (gsi, resample) in enumerate(bindings):
            self.assign(slot, gsi, resample)
        self.doorbell(_PORTS[0], ringing)

    @rule(operation=_drawn(OPERATIONS))
    def do(self, operation: tuple[object, ...]) -> None:
        """One operation, and a comparison of what can be seen without asking for it."""
        name, *arguments = operation
        done[str(name)] += 1
        if self.held is not None and not self.may_stay_held(str(name), arguments):
            self.release()
        getattr(self, str(name))(*arguments)
        self.compare(self.seen)

    # -- signals -----------------------------------------------------------------------------------------------------

    def write(self, slot: int, n: int) -> None:
        """By somebody else."""
        self.told(slot)
        self.both(lambda side: self.events[slot][side].write(n))

    def signal(self, slot: int, n: int) -> None:
        """By the owner."""
        self.told(slot)
        self.both(lambda side: self.events[slot][side].signal(n))

    def signal_from_a_thread(self, slot: int, n: int) -> None:
        """By the owner, in another thread than the loop's."""
        self.told(slot)

        def signal(side: int) -> object:
            results: list[object] = []
            thread = threading.Thread(target=lambda: results.append(self.events[slot][side].signal(n)))
            thread.start()
            thread.join()
            return results

        self.both(signal)

    def told(self, slot: int) -> None:
        """Count a signal: of a bound one, and of one that had a count."""
        if slot in self.bound:
            done["- a signal of a bound eventfd"] += 1
            if self.events[slot][0].count():
                done["- a signal of a bound eventfd that holds a count"] += 1

    def ring(self, port: int) -> None:
        """The guest writes to where a doorbell may be."""
        if self.doorbells.get(port) in self.bound:
            done["- a doorbell's signal of a bound eventfd"] += 1
        self.both(lambda side: self.machines[side].out(port, 1))

    def signal_while_masked(self, slot: int, n: int) -> None:
        """A mask that is taken off again is as if it had never been."""
        self.aside(slot, n, masked=True)

    def signal_while_paused(self, slot: int, n: int) -> None:
        """So is a pause."""
        self.aside(slot, n, masked=False)

    def aside(self, slot: int, n: int, *, masked: bool) -> None:
        """Signal while nothing may be injected here, which the kernel knows nothing of."""
        self.told(slot)
        machine, event = self.machines[1], self.events[slot][1]

        async def ours() -> object:
            irqfd = machine.find(event, self.bound[slot]) if slot in self.bound and masked else None
            if irqfd is not None:
                irqfd.mask()
            elif not masked:
                await machine.manager.pause()
            result = event.write(n)
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if irqfd is not None:
                irqfd.unmask()
            elif not masked:
                machine.manager.resume()
            return result

        self.both(lambda side: ours() if side else self.events[slot][0].write(n))

    def hold_masked(self, slot: int) -> None:
        """Mask, for some operations. To the kernel it is unbound meanwhile, and what came is one signal when it is bound again."""
        gsi, event = self.bound.get(slot), self.events[slot]
        machine = self.machines[1]
        irqfd = machine.find(event[1], gsi) if gsi is not None else None
        if self.held is not None or irqfd is None or irqfd.resamplefd is not None:
            return
        if event[1].eventfd.semaphore or event[0].count():
            return

        async def mask(side: int) -> None:
            if side:
                irqfd.mask()
            else:
                await self.machines[0].deassign(event[0], irqfd.gsi)

        self.both(mask)
        self.held = slot

    def may_stay_held(self, name: str, arguments: list[object]) -> bool:
        """Whether the operation leaves alone what is masked, and does not look at it."""
        if name in {"write", "signal", "signal_from_a_thread"}:
            done["- a signal while it is held masked"] += arguments[0] == self.held
            return True
        others = name in {"read", "signal_while_masked", "assign", "rebind", "unbind", "deassign", "use_a_dup"}
        whole = name in {"take", "take_and_end", "end", "end_specific", "mask", "line", "entry", "route", "ring"}
        return whole or (others and arguments[0] != self.held)

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

    def migrate(self, slot: int, n: int) -> None:
        """To other chips and another manager, which the kernel knows nothing of; a signal comes meanwhile."""
        machine = self.machines[1]
        closed = any(irqfd.resamplefd is not None and irqfd.resamplefd.closed for irqfd in machine.manager.irqfds)
        # What an assign has left to be read would be injected at the second one, too (row P01).
        if closed or any(self.events[other][0].count() for other in self.bound):
            return
        done["- a migration"] += 1
        done["- a migration with a resample line up"] += bool(machine.manager._irqfds.lines.asserted())
        self.told(slot)

        async def ours() -> object:
            said: list[object] = []
            new = await machine.migrate(lambda: said.append(self.events[slot][1].write(n)))
            self.machines = (self.machines[0], new)
            return said[0]

        self.both(lambda side: ours() if side else self.events[slot][0].write(n))

    def use_a_dup(self, slot: int, gsi: int) -> None:
        """Of what is bound: it cannot be bound again, and is unbound by it. An EventFd's own close is not its dup's (row C01)."""
        if slot in self.bound:
            twins = [event.dup() for event in self.events[slot]]
            self.both(lambda side: self.machines[side].assign(twins[side], gsi), settle=False)
            self.both(lambda side: self.machines[side].deassign(twins[side], gsi), settle=False)
            if self.bound[slot] == gsi:
                del self.bound[slot]
            for twin in twins:
                twin.close()

    def read(self, slot: int) -> None:
        """By the owner."""
        if slot in self.bound:
            done["- a read of a bound eventfd"] += 1
        self.both(lambda side: self.events[slot][side].read(), settle=False)

    def look(self, slot: int) -> None:
        """Ask aioirqfd what it thinks, which may take its own wake-ups from the loop."""
        if slot in self.bound:
            irqfd = self.machines[1].find(self.events[slot][1], self.bound[slot])
            assert irqfd is not None
            done["- a look that found something pending"] += irqfd.pending

            def ask(side: int) -> None:
                if side:
                    irqfd.statistics()

            self.both(ask, settle=False)

    def burst(self, operations: list[tuple[object, ...]]) -> None:
        """Several before aioirqfd's loop has a turn. The order in which it then finds them is not promised (row W04)."""

        async def hurry() -> None:
            self.hurried = True
            told: set[tuple[str, int]] = set()
            driven = self.machines[0].lines() & ~_CASCADE or self.machines[1].chips.ioapic._pins.raised
            try:
                for name, *arguments in operations:
                    slot = arguments[0]
                    assert isinstance(slot, int)
                    if name == "ring":
                        slot = self.doorbells.get(slot, -1)
                    if name == "unbind" and self.bound.get(slot) in self.machines[1].manager._irqfds.lines.asserted():
                        continue
                    if slot in self.bound and name not in {"look", "read"}:
                        semaphore = self.events[slot][1].eventfd.semaphore
                        once = ("slot", slot) if semaphore else ("gsi", self.bound[slot]) if driven else None
                        if once in told:
                            continue
                        if once is not None:
                            told.add(once)
                    done[f"{name}, in a burst"] += 1
                    getattr(self, str(name))(*arguments)
            finally:
                self.hurried = False

        self.loop.run_until_complete(hurry())
        self.both(lambda _side: None)

    # -- irqfds ------------------------------------------------------------------------------------------------------

    def assign(self, slot: int, gsi: int, resample: int | None) -> None:
        """Plain or resample."""

        def call(side: int) -> object:
            other = None if resample is None else self.events[resample][side]
            return self.machines[side].assign(self.events[slot][side], gsi, other)

        holds = self.events[slot][0].count() > 0
        result = self.both(call, settle=holds)
        done[f"- assign, {result}"] += 1
        if result == "ok":
            self.resampled = self.resampled or resample is not None
            done["- assign of an eventfd that holds a count"] += holds
            self.bound[slot] = gsi

    def unbind(self, slot: int) -> None:
        """Deassign, perhaps twice."""
        done["- deassign of what is bound"] += slot in self.bound
        gsi = self.bound.pop(slot, _GSIS[0])
        self.both(lambda side: self.machines[side].deassign(self.events[slot][side], gsi), settle=False)

    def deassign(self, slot: int, gsi: int) -> None:
        """Perhaps of what is bound to another gsi."""
        self.both(lambda side: self.machines[side].deassign(self.events[slot][side], gsi), settle=False)
        if self.bound.get(slot) == gsi:
            del self.bound[slot]

    def rebind(self, slot: int, gsi: int, resample: int | None) -> None:
        """Deassign and assign."""
        self.unbind(slot)
        self.assign(slot, gsi, resample)

    def close(self, slot: int, kind: tuple[int, bool]) -> None:
        """And a new one in its place. One that is not bound may be somebody's resamplefd, and is told on (row R16)."""
        for port, ringing in list(self.doorbells.items()):
            if ringing == slot:
                self.undoorbell(port)
        done["- close of what is bound"] += slot in self.bound
        if slot not in self.bound:
            self.twins = [*self.twins[-2:], (self.events[slot][0].dup(), self.events[slot][1].dup())]
        self.both(lambda side: self.events[slot][side].close())
        self.bound.pop(slot, None)
        self.events[slot] = self.make(kind)

    def doorbell(self, port: int, slot: int) -> None:
        """Register one."""
        result = self.both(lambda side: self.machines[side].doorbell(self.events[slot][side], port, 1), settle=False)
        if result == "ok":
            self.doorbells[port] = slot

    def undoorbell(self, port: int) -> None:
        """Take it off, if it is there."""
        slot = self.doorbells.pop(port, 0)
        self.both(lambda side: self.machines[side].undoorbell(self.events[slot][side], port, 1), settle=False)

    # -- routing and lines -------------------------------------------------------------------------------------------

    def set_table(self, table: dict[int, list[Route]]) -> None:
        """Route on both."""
        entries = [(gsi, route) for gsi, routes in table.items() for route in routes]
        assert self.both(lambda side: self.machines[side].route(*entries), settle=False) == "ok"
        self.table = table

    def route(self, drawn: tuple[list[int], set[int], bool, set[int], int]) -> None:
        """Each gsi to a pin of its own, or to a message; one whose resample line is up stays where it is (row G12)."""
        pins, wanted, fixed, messages, vector = drawn
        up = self.machines[1].manager._irqfds.lines.asserted()
        done["- a route while a resample line is up"] += bool(up)
        done["- a route while a device's line is up"] += bool(self.machines[0].lines() & ~_CASCADE and not up)
        table = {gsi: self.table[gsi] for gsi in up}
        if fixed:
            message: list[Route] = [("msi", vector)]
            table |= {gsi: routes for gsi, routes in _FIXED.items() if gsi not in up} | {_MESSAGE: message}
        for gsi, pin in _IOAPIC.items():
            if not self.entries[pin] & _LEVEL:
                table[gsi] = _FIXED[gsi]
        for index, gsi in enumerate(_GSIS):
            if gsi in messages and gsi not in table:
                table[gsi] = [("msi", 0x44 + index)]
        taken = [routes[0] for routes in table.values()]
        for gsi, pin in zip(_GSIS, pins, strict=True):
            if gsi in wanted and gsi not in table and ("pic", pin) not in taken:
                table[gsi] = [("pic", pin)]
        self.set_table(table)

    def unroute_and_route(self, gsi: int) -> None:
        """A line that is up comes back with its route (row G13); the kernel's was never down, so here it may make no edge."""
        up = gsi in self.machines[1].manager._irqfds.lines.asserted()
        irr, _, _, lines = self.machines[0].registers()
        for route in self.table[gsi] if up else ():
            if route[0] == "ioapic":
                return
            bit = 1 << route[1]
            # A PIC that was set up anew does not know of a line that has been up since.
            if route[0] == "pic" and not (lines & bit and (self.level | irr) & bit):
                return
        done["- a route taken away and given back while its resample line is up"] += up
        table = dict(self.table)
        for there in ({other: routes for other, routes in table.items() if other != gsi}, table):
            self.set_table(there)

    def entry(self, pin: int, masked: bool) -> None:
        """The guest masks or unmasks a pin of the IOAPIC; an edge pin stays unmasked, as what comes while it is not is kept here.

        A pin that a device holds up is not unmasked while there is a resampler: that request, too, is dropped there.
        """
        chip = self.machines[1].chips.ioapic
        if masked and not self.entries[pin] & _LEVEL:
            return
        gsi = next(gsi for gsi, one in _IOAPIC.items() if one == pin)
        told = any(irqfd.gsi == gsi and irqfd.resamplefd is not None for irqfd in self.machines[1].manager.irqfds)
        if not masked and told and chip._pins.raised >> pin & 1:
            return
        self.ioapic(pin, self.entries[pin] | (_MASKED if masked else 0))

    def ioapic(self, pin: int, low: int) -> None:
        """Write the low half of a redirection entry."""
        self.both(lambda side: self.machines[side].ioapic(pin, low), settle=self.resampled)

    def line(self, gsi: int, level: int) -> None:
        """A device's."""
        self.both(lambda side: self.machines[side].line(gsi, level), settle=False)

    # -- the guest ---------------------------------------------------------------------------------------------------

    def take(self) -> bool:
        """The CPU takes an interrupt; whether it is the PIC's to end."""
        vector = self.both(lambda side: self.machines[side].take(), settle=self.auto_eoi or self.resampled)
        assert vector is None or isinstance(vector, int)
        done["- an interrupt taken" if vector is not None else "- no interrupt to take"] += 1
        if vector is not None and vector >= 0x40:
            self.both(lambda side: self.machines[side].end(vector), settle=self.resampled)
            return False
        return vector is not None

    def take_and_end(self) -> None:
        """As a guest does."""
        if self.take():
            self.end(slave=False)

    def end(self, slave: bool) -> None:
        """An EOI that is not specific, of the slave first where it is the slave's."""
        done["- an end of interrupt while a resample line is up"] += bool(
            self.machines[1].manager._irqfds.lines.asserted()
        )
        if slave or self.machines[0].isr() >> 8:
            self.both(lambda side: self.machines[side].out(0xA0, 0x20), settle=self.resampled)
        self.both(lambda side: self.machines[side].out(0x20, 0x20), settle=self.resampled)

    def end_specific(self, pin: int) -> None:
        """Perhaps of what is not in service."""
        port = 0x20 if pin < 8 else 0xA0
        self.both(lambda side: self.machines[side].out(port, 0x60 | pin & 7), settle=self.resampled)

    def mask(self, mask: int) -> None:
        """The guest masks pins of the master."""
        self.both(lambda side: self.machines[side].out(0x21, mask), settle=False)

    def set_up_anew(self) -> None:
        """ICW1 and the rest, for both chips."""
        irr, isr, _, _ = self.machines[0].registers()
        driven = self.machines[1].chips.pic._pins.raised
        if not isr and not driven and (irr & ~_CASCADE).bit_count() < 2 and not self.would_trigger():
            done["- a PIC set up anew while a resample line is up"] += bool(
                self.machines[1].manager._irqfds.lines.asserted()
            )
            self.both(lambda side: self.machines[side].pic_up(level=self.level, auto_eoi=self.auto_eoi))

    def would_trigger(self) -> bool:
        """Whether the end of some interrupt could trigger an irqfd: one's resamplefd is another's trigger."""
        manager = self.machines[1].manager
        bound = {irqfd.eventfd_id for irqfd in manager.irqfds}
        told = [irqfd.resamplefd for irqfd in manager.irqfds if irqfd.resamplefd is not None]
        return any(resamplefd.closed or resamplefd.id in bound for resamplefd in told)

    # -- comparing ---------------------------------------------------------------------------------------------------

    def compare(self, see: Callable[[int], object]) -> None:
        """What is to be seen on both sides; nothing is waited for."""

        kernel, ours = see(0), see(1)
        assert kernel == ours, f"kernel {kernel!r}, aioirqfd {ours!r}"

    def seen(self, side: int) -> dict[str, object]:
        """All that can be seen without asking an irqfd, which is what a lost wake-up waits for."""
        machine = self.machines[side]
        irr, isr, imr, lines = machine.registers()
        return {
            "irr": irr & ~_CASCADE,
            "isr": isr,
            "imr": imr,
            "lines": lines & ~_CASCADE,
            "vectors": machine.vectors(),
            "pins": [hex(machine.pin(pin)) for pin in _VECTORS],
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


def run(sequences: int, steps: int = 25, *, shrink: bool = True) -> None:
    """Run that many sequences; fails at the first difference, with the shortest sequence that shows it."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    profile = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        phases=phases,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        print_blob=True,
    )
    # The kernel queues its work on the CPU that signals, and waits for that of one CPU (settle()): so there is to be one.
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        run_state_machine_as_test(Both, settings=profile)
    finally:
        os.sched_setaffinity(0, allowed)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--piece", type=int, default=500, help="sequences to a seed")
    parser.add_argument("--seed", type=int, default=None, help="the first piece's; without one, a random one")
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    ran = 0
    began = time.monotonic()
    print(f"aioirqfd: {IMPLEMENTATION}")
    while ran < options.sequences:
        piece = min(options.piece, options.sequences - ran)
        print(f"seed {seed}: {piece} sequences", flush=True)
        hypothesis.core.global_force_seed = seed
        run(piece, options.steps)
        ran += piece
        seed += 1
    print(f"{ran} sequences of up to {options.steps} steps, no difference, {time.monotonic() - began:.0f} s")
    for name, count in sorted(done.items(), key=lambda item: (item[0].startswith("- "), -item[1])):
        print(f"{count:9} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
