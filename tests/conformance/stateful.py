"""Random sequences of operations, on the kernel and on aioirqfd at once; everything that can be seen is compared after each step.

``python -m tests.conformance.stateful --sequences 10000 --seed 1`` runs many, in pieces, each with a seed of its own that is
printed, and tells in the end how often it did what. The kernel is given the time for its work items after every operation;
aioirqfd's loop has some turns of its own and is asked nothing, as a flush or a look at the statistics would find what a lost
wake-up left lying. What only aioirqfd has is done to it in such a way that the kernel gives the same: a mask that holds for some
operations is a deassign there, and an assign and one write at its end; a migration to other chips and another manager is nothing.
An operation is one value, drawn by weight: Hypothesis leaves rules out of whole runs, and with ``assign`` a
rule of its own many runs would have nothing bound to look at.

Where the two are different on purpose, the machine keeps away: :data:`tests.conformance.world.DIFFERENT` says from what, and how often each
of these was there is told in the end. Some are never drawn:

- R11, O21, P08, P10: counts near their top, and a write of 0.
- R17, G08: each pin has one gsi.
- P09: nobody reads a bound eventfd's fd but its owner.
- The slave's pins are edge-triggered, and pin 2 is not compared: its request is a latch there and a wire here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from typing import TYPE_CHECKING

import hypothesis.core
import uvloop
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from aioirqfd import IMPLEMENTATION
from tests.conformance.operations import (
    EVENTS,
    FIXED,
    GSIS,
    LEVEL,
    OPERATIONS,
    PINS,
    PORTS,
    Operations,
    drawn,
    gsis,
    kinds,
    resamples,
    slots,
)
from tests.conformance.world import DIFFERENT, VECTORS, avoided, done, looked, unseen

if TYPE_CHECKING:
    from tests.conformance.machine import Route

ENOUGH = 4000
"""Sequences in which each exclusion is there at least once."""


class Both(Operations):
    """The kernel and aioirqfd, side by side."""

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
            pin: (LEVEL if level and not self.avoids("R20 level", slow) else 0) | VECTORS[pin]
            for pin, level in zip(VECTORS, levels, strict=True)
        }
        for pin, low in self.entries.items():
            self.ioapic(pin, low)
        table: dict[int, list[Route]] = {gsi: [("pic", pin)] for gsi, pin in zip(GSIS, PINS, strict=True)}
        self.set_table(table | FIXED)
        self.events = [self.make(kind) for kind in kinds]
        for slot, (gsi, resample) in enumerate(bindings):
            self.assign(slot, gsi, resample)
        self.doorbell(PORTS[0], ringing)

    @rule(operation=drawn())
    def do(self, operation: tuple[object, ...]) -> None:
        """One operation, and a comparison of what can be seen without asking for it."""
        name, *arguments = operation
        done[str(name)] += 1
        if self.held is not None and not self.may_stay_held(str(name), arguments):
            self.release()
        OPERATIONS[str(name)].method(self, *arguments)
        self.compare(self.seen)


def run(sequences: int, steps: int = 25, *, shrink: bool = True) -> None:
    """Run that many sequences; fails at the first difference, with the shortest sequence that shows it."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    profile = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        derandomize=False,  # each piece has its seed
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
    for what, why in DIFFERENT.items():
        print(f"{avoided[what]:9} of {looked[what]:6}  {what}: {why}")
    useless = unseen() if ran >= ENOUGH else []
    if useless:
        print("never there, or always:", ", ".join(useless))
    return int(bool(useless))


if __name__ == "__main__":
    sys.exit(main())
