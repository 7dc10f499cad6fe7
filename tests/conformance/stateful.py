"""Random sequences of operations, on the kernel and on aioirqfd at once; everything that can be seen is compared after each step.

``python -m tests.conformance.stateful --sequences 10000 --seed 1`` runs many, in pieces, each with a seed of its own that is
printed. Where the two are different on purpose, the machine keeps away: a write of 0 (P10), counts near their top (R11), a
change of routing while a line is up (G12, G13), a PIC that is set up anew with an interrupt in service or
a line up (R19), a level-triggered pin on the slave (a latch there, a wire here), a doorbell whose eventfd is closed (O18), and pins that two gsis share (R17).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from typing import TYPE_CHECKING

import hypothesis.core
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conformance.kernel import KernelEvent, KernelHost
from tests.conformance.ours import OurEvent, OurHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.machine import Machine, Route

EVENTS = 5
_CASCADE = 1 << 2
_PINS = {5: 5, 6: 6, 7: 3, 9: 9, 100: 12}
_PORTS = (0x90, 0x91)

slots = st.integers(0, EVENTS - 1)
gsis = st.sampled_from(sorted(_PINS))
kinds = st.tuples(st.sampled_from([0, 0, 1, 3]), st.booleans())
counts = st.sampled_from([1, 2, 3, 2**31, 2**32 - 1])


class Both(RuleBasedStateMachine):
    """The kernel and aioirqfd, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.hosts = (KernelHost(), OurHost())
        self.machines: tuple[Machine, Machine]
        self.events: list[tuple[KernelEvent, OurEvent]] = []
        self.doorbells: dict[int, int] = {}
        self.bound: dict[int, tuple[int, int | None]] = {}
        self.routed: set[int] = set()

    # -- doing the same to both --------------------------------------------------------------------------------------

    def both(self, call: Callable[[int], object]) -> object:
        """What the call gives for side 0 and side 1; they must agree."""

        async def run() -> list[object]:
            results = []
            for side in (0, 1):
                result = call(side)
                results.append(await result if asyncio.iscoroutine(result) else result)
                await self.machines[side].settle()
            return results

        kernel, ours = self.runner.run(run())
        assert kernel == ours, f"kernel {kernel!r}, aioirqfd {ours!r}"
        return kernel

    def make(self, initial: int, *, semaphore: bool) -> tuple[KernelEvent, OurEvent]:
        """An eventfd on each side."""
        kernel, ours = self.hosts
        return kernel.event(initial, semaphore=semaphore), ours.event(initial, semaphore=semaphore)

    @initialize(
        level=st.sampled_from([0, 0, 1 << 5, 1 << 5 | 1 << 6]),
        auto_eoi=st.booleans(),
        kinds=st.lists(kinds, min_size=EVENTS, max_size=EVENTS),
    )
    def start(self, level: int, auto_eoi: bool, kinds: list[tuple[int, bool]]) -> None:
        """Machines, their PICs set up, and eventfds."""

        async def begin() -> tuple[Machine, ...]:
            return tuple([await host.machine() for host in self.hosts])

        self.machines = self.runner.run(begin())  # type: ignore[assignment]
        self.level = level
        self.auto_eoi = auto_eoi
        self.both(lambda side: self.machines[side].pic_up(level=level, auto_eoi=auto_eoi))
        self.route_all(set(_PINS))
        self.events = [self.make(initial, semaphore=semaphore) for initial, semaphore in kinds]
        self.semaphores = [semaphore for _, semaphore in kinds]

    def route_all(self, wanted: set[int]) -> None:
        """Route these gsis, each to its pin."""
        entries: list[tuple[int, Route]] = [(gsi, ("pic", _PINS[gsi])) for gsi in sorted(wanted)]
        self.both(lambda side: self.machines[side].route(*entries))
        self.routed = wanted

    # -- operations --------------------------------------------------------------------------------------------------

    @rule(slot=slots, n=counts)
    def write(self, slot: int, n: int) -> None:
        """By somebody else; by the owner where a semaphore's count would then be in two places (see test_stateful.py)."""
        inside = self.events[slot][1].eventfd._count > 0
        self.both(lambda side: self.events[slot][side].signal(n) if inside else self.events[slot][side].write(n))

    @rule(slot=slots, n=counts)
    def signal(self, slot: int, n: int) -> None:
        """By the owner; a write where it would meet what was there at assign time (see test_stateful.py)."""
        leftover = slot in self.bound and self.events[slot][0].count() > 0 and not self.semaphores[slot]
        self.both(lambda side: self.events[slot][side].write(n) if leftover else self.events[slot][side].signal(n))

    def has_rest(self, slot: int) -> bool:
        """Whether it is a bound semaphore that writes have piled up in (see test_stateful.py)."""
        return slot in self.bound and self.semaphores[slot] and self.events[slot][0].count() > 0

    @rule(slot=slots)
    def read(self, slot: int) -> None:
        """By the owner."""
        if self.has_rest(slot):
            return
        self.both(lambda side: self.events[slot][side].read())

    @rule(slot=slots, gsi=gsis, resample=st.one_of(st.none(), slots))
    def assign(self, slot: int, gsi: int, resample: int | None) -> None:
        """Plain or resample."""

        def call(side: int) -> object:
            other = None if resample is None else self.events[resample][side]
            return self.machines[side].assign(self.events[slot][side], gsi, other)

        if self.both(call) == "ok":
            self.bound[slot] = (gsi, resample)
        for told in {slot, resample} - {None}:
            self.read_leftover(told)

    def read_leftover(self, slot: int) -> None:
        """Where it would meet a signal from inside this process: an end of interrupt, a doorbell (see test_stateful.py)."""
        inside = slot in self.doorbells.values() or any(slot == resample for _, resample in self.bound.values())
        if inside and slot in self.bound and not self.semaphores[slot] and self.events[slot][0].count() > 0:
            self.both(lambda side: self.events[slot][side].read())

    @rule(slot=slots, gsi=gsis)
    def deassign(self, slot: int, gsi: int) -> None:
        """Perhaps of what is not assigned."""
        if self.has_rest(slot):
            return
        self.both(lambda side: self.machines[side].deassign(self.events[slot][side], gsi))
        if slot in self.bound and self.bound[slot][0] == gsi:
            del self.bound[slot]

    @precondition(lambda self: self.bound)
    @rule(data=st.data())
    def deassign_bound(self, data: st.DataObject) -> None:
        """Of what is."""
        slot = data.draw(st.sampled_from(sorted(self.bound)))
        self.deassign(slot, self.bound[slot][0])

    @rule(slot=slots, kind=kinds)
    def close(self, slot: int, kind: tuple[int, bool]) -> None:
        """And a new one in its place."""
        if self.has_rest(slot):
            return
        for port, ringing in list(self.doorbells.items()):
            if ringing == slot:
                self.undoorbell(port)
        self.both(lambda side: self.events[slot][side].close())
        self.bound.pop(slot, None)
        self.events[slot] = self.make(kind[0], semaphore=kind[1])
        self.semaphores[slot] = kind[1]

    @precondition(lambda self: not self.machines[0].lines())
    @rule(wanted=st.sets(gsis))
    def route(self, wanted: set[int]) -> None:
        """While no line is up."""
        self.route_all(wanted)

    @rule(gsi=gsis, level=st.sampled_from([0, 1]))
    def line(self, gsi: int, level: int) -> None:
        """A device's."""
        self.both(lambda side: self.machines[side].line(gsi, level))

    @rule()
    def take(self) -> None:
        """The CPU takes an interrupt."""
        self.both(lambda side: self.machines[side].take())

    @rule(pin=st.sampled_from([3, 5, 6]))
    def end_master(self, pin: int) -> None:
        """A specific EOI."""
        self.both(lambda side: self.machines[side].out(0x20, 0x60 | pin))

    @rule(slave=st.booleans())
    def end(self, slave: bool) -> None:
        """An EOI that is not specific, of the slave first where it is the slave's."""
        if slave:
            self.both(lambda side: self.machines[side].out(0xA0, 0x20))
        self.both(lambda side: self.machines[side].out(0x20, 0x20))

    @rule(mask=st.sampled_from([0, 0, 1 << 5, 1 << 6, 0xF8]))
    def mask(self, mask: int) -> None:
        """The guest masks pins of the master."""
        self.both(lambda side: self.machines[side].out(0x21, mask))

    @rule(port=st.sampled_from(_PORTS), slot=slots)
    def doorbell(self, port: int, slot: int) -> None:
        """Register one."""
        if self.both(lambda side: self.machines[side].doorbell(self.events[slot][side], port, 1)) == "ok":
            self.doorbells[port] = slot
            self.read_leftover(slot)

    @precondition(lambda self: self.doorbells)
    @rule(data=st.data())
    def undoorbell_any(self, data: st.DataObject) -> None:
        """Take one off."""
        self.undoorbell(data.draw(st.sampled_from(sorted(self.doorbells))))

    def undoorbell(self, port: int) -> None:
        """Take it off."""
        slot = self.doorbells.pop(port)
        self.both(lambda side: self.machines[side].undoorbell(self.events[slot][side], port, 1))

    @rule(port=st.sampled_from(_PORTS))
    def ring(self, port: int) -> None:
        """The guest writes to where a doorbell may be."""
        self.both(lambda side: self.machines[side].out(port, 1))

    @precondition(lambda self: not self.machines[0].isr() and not self.machines[0].lines() & ~_CASCADE)
    @rule()
    def set_up_anew(self) -> None:
        """ICW1 and the rest, for both chips."""
        self.both(lambda side: self.machines[side].pic_up(level=self.level, auto_eoi=self.auto_eoi))

    # -- comparing ---------------------------------------------------------------------------------------------------

    @invariant()
    def the_same(self) -> None:
        """Every register, every count."""
        if self.events:
            self.both(lambda side: self.seen(self.machines[side], side))

    def seen(self, machine: Machine, side: int) -> dict[str, object]:
        """All that can be seen of one side. The cascade is a latch there and a wire here, so pin 2 is left out."""
        return {
            "counts": [event[side].count() for event in self.events],
            "irr": machine.irr() & ~_CASCADE,
            "isr": machine.isr(),
            "imr": machine.imr(),
            "lines": machine.lines() & ~_CASCADE,
        }

    def teardown(self) -> None:
        """Close everything."""

        async def end() -> None:
            for host in self.hosts:
                await host.close()

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
    run_state_machine_as_test(Both, settings=profile)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--piece", type=int, default=500, help="sequences to a seed")
    parser.add_argument("--seed", type=int, default=None, help="the first piece's; without one, a random one")
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    done = 0
    began = time.monotonic()
    while done < options.sequences:
        piece = min(options.piece, options.sequences - done)
        print(f"seed {seed}: {piece} sequences", flush=True)
        hypothesis.core.global_force_seed = seed
        run(piece, options.steps)
        done += piece
        seed += 1
    print(f"{done} sequences of up to {options.steps} steps, no difference, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
