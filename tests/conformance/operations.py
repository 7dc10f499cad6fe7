"""The operations of the random sequences, each with its weight: signals, irqfds, routes and lines, and what the guest does."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from tests.conformance.world import CASCADE, TURNS, VECTORS, World, done

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.machine import Route

EVENTS = 6

PINS = (5, 6, 3, 9, 12)
GSIS = (5, 6, 7, 9, 100)
_MESSAGE = 101
_BOTH_CHIPS = 102
_UNROUTED = 103
IOAPIC = {110: 5, 111: 6}
LEVEL, _MASKED = 1 << 15, 1 << 16
FIXED: dict[int, list[Route]] = {
    _MESSAGE: [("msi", 0x41)],
    _BOTH_CHIPS: [("pic", 4), ("ioapic", 20)],  # by the work queue (row M05); the IOAPIC's pin is masked
    **{gsi: [("ioapic", pin)] for gsi, pin in IOAPIC.items()},
}
PORTS = (0x90, 0x91)

slots = st.integers(0, EVENTS - 1)
gsis = st.sampled_from([5, 5, 5, 6, 6, 7, 9, 100, _MESSAGE, _BOTH_CHIPS, _UNROUTED, 110, 110, 111])
kinds = st.tuples(st.sampled_from([0, 0, 1, 3]), st.booleans())
counts = st.sampled_from([1, 1, 2, 3, 2**31, 2**32 - 1])
ports = st.sampled_from(PORTS)
resamples = st.one_of(st.none(), slots)
tables = st.tuples(
    st.permutations(PINS),
    st.sets(st.sampled_from(GSIS), min_size=2),
    st.booleans(),
    st.sets(st.sampled_from(GSIS), max_size=2),
    st.sampled_from([0x41, 0x41, 0x42, 0x43]),
)


class Operation(NamedTuple):
    """A method that is drawn.

    Attributes:
        method: What is done.
        weight: How often, beside the others.
        arguments: What it is done with.
        in_a_burst: Whether it may be one of several before aioirqfd's loop has a turn.
    """

    method: Callable[..., object]
    weight: int
    arguments: tuple[st.SearchStrategy[object], ...]
    in_a_burst: bool


OPERATIONS: dict[str, Operation] = {}


def operation(
    weight: int, *arguments: st.SearchStrategy[object], in_a_burst: bool = False
) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Have the method drawn."""

    def register(method: Callable[..., object]) -> Callable[..., object]:
        OPERATIONS[method.__name__] = Operation(method, weight, arguments, in_a_burst)
        return method

    return register


def drawn(*, in_a_burst: bool = False) -> st.SearchStrategy[tuple[object, ...]]:
    """An operation's name and arguments."""
    some = {name: one for name, one in OPERATIONS.items() if one.in_a_burst or not in_a_burst}
    names = [name for name, one in some.items() for _ in range(one.weight)]
    whole = {name: st.tuples(st.just(name), *one.arguments) for name, one in some.items()}
    return st.sampled_from(names).flatmap(whole.__getitem__)


class Operations(World):
    """What is done to both sides."""

    @operation(4, slots, counts, in_a_burst=True)
    def write(self, slot: int, n: int) -> None:
        """By somebody else."""
        self.told(slot)
        self.both(lambda side: self.events[slot][side].write(n))

    @operation(4, slots, counts, in_a_burst=True)
    def signal(self, slot: int, n: int) -> None:
        """By the owner."""
        self.told(slot)
        self.both(lambda side: self.events[slot][side].signal(n))

    @operation(4, slots, counts, in_a_burst=True)
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

    @operation(2, ports, in_a_burst=True)
    def ring(self, port: int) -> None:
        """The guest writes to where a doorbell may be."""
        if self.doorbells.get(port) in self.bound:
            done["- a doorbell's signal of a bound eventfd"] += 1
        self.both(lambda side: self.machines[side].out(port, 1))

    @operation(2, slots, counts)
    def signal_while_masked(self, slot: int, n: int) -> None:
        """A mask that is taken off again is as if it had never been."""
        self.aside(slot, n, masked=True)

    @operation(2, slots, counts)
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

    @operation(2, slots)
    def hold_masked(self, slot: int) -> None:
        """Mask, for some operations. To the kernel it is unbound meanwhile, and what came is one signal when it is bound again."""
        gsi, event = self.bound.get(slot), self.events[slot]
        machine = self.machines[1]
        irqfd = machine.find(event[1], gsi) if gsi is not None else None
        if self.held is not None or irqfd is None or self.avoids("R13 held", irqfd.resamplefd is not None):
            return
        if self.avoids("P06 held", event[1].eventfd.semaphore) or self.avoids("P01 held", event[0].count()):
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

    @operation(2, slots, counts)
    def migrate(self, slot: int, n: int) -> None:
        """To other chips and another manager, which the kernel knows nothing of; a signal comes meanwhile."""
        machine = self.machines[1]
        closed = any(irqfd.resamplefd is not None and irqfd.resamplefd.closed for irqfd in machine.manager.irqfds)
        left = any(self.events[other][0].count() for other in self.bound)
        if self.avoids("R16 migrated", closed) or self.avoids("P01 migrated", left):
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

    @operation(2, slots, gsis)
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

    @operation(2, slots, in_a_burst=True)
    def read(self, slot: int) -> None:
        """By the owner."""
        if slot in self.bound:
            done["- a read of a bound eventfd"] += 1
        self.both(lambda side: self.events[slot][side].read(), settle=False)

    @operation(3, slots, in_a_burst=True)
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

    @operation(6, st.lists(st.deferred(lambda: drawn(in_a_burst=True)), min_size=2, max_size=5))
    def burst(self, operations: list[tuple[object, ...]]) -> None:
        """Several before aioirqfd's loop has a turn. The order in which it then finds them is not promised (row W04)."""

        async def hurry() -> None:
            self.hurried = True
            told: set[tuple[str, int]] = set()
            driven = self.machines[0].lines() & ~CASCADE or self.machines[1].chips.ioapic._pins.raised
            try:
                for name, *arguments in operations:
                    slot = arguments[0]
                    assert isinstance(slot, int)
                    if name == "ring":
                        slot = self.doorbells.get(slot, -1)
                    up = self.machines[1].manager._irqfds.lines.asserted()
                    if name == "unbind" and self.avoids("W04", self.bound.get(slot) in up):
                        continue
                    if slot in self.bound and name not in {"look", "read"}:
                        semaphore = self.events[slot][1].eventfd.semaphore
                        once = ("slot", slot) if semaphore else ("gsi", self.bound[slot]) if driven else None
                        if once is not None:
                            if self.avoids("P06" if semaphore else "W02", once in told):
                                continue
                            told.add(once)
                    done[f"{name}, in a burst"] += 1
                    OPERATIONS[str(name)].method(self, *arguments)
            finally:
                self.hurried = False

        self.loop.run_until_complete(hurry())
        self.both(lambda _side: None)

    @operation(5, slots, gsis, resamples)
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

    @operation(1, slots, in_a_burst=True)
    def unbind(self, slot: int) -> None:
        """Deassign, perhaps twice."""
        done["- deassign of what is bound"] += slot in self.bound
        gsi = self.bound.pop(slot, GSIS[0])
        self.both(lambda side: self.machines[side].deassign(self.events[slot][side], gsi), settle=False)

    @operation(1, slots, gsis)
    def deassign(self, slot: int, gsi: int) -> None:
        """Perhaps of what is bound to another gsi."""
        self.both(lambda side: self.machines[side].deassign(self.events[slot][side], gsi), settle=False)
        if self.bound.get(slot) == gsi:
            del self.bound[slot]

    @operation(2, slots, gsis, resamples)
    def rebind(self, slot: int, gsi: int, resample: int | None) -> None:
        """Deassign and assign."""
        self.unbind(slot)
        self.assign(slot, gsi, resample)

    @operation(2, slots, kinds)
    def close(self, slot: int, kind: tuple[int, bool]) -> None:
        """And a new one in its place. One that is not bound may be somebody's resamplefd, and is told on (row R16)."""
        for port, ringing in list(self.doorbells.items()):
            if self.avoids("O18", ringing == slot):
                self.undoorbell(port)
        done["- close of what is bound"] += slot in self.bound
        if slot not in self.bound:
            self.twins = [*self.twins[-2:], (self.events[slot][0].dup(), self.events[slot][1].dup())]
        self.both(lambda side: self.events[slot][side].close())
        self.bound.pop(slot, None)
        self.events[slot] = self.make(kind)

    @operation(2, ports, slots)
    def doorbell(self, port: int, slot: int) -> None:
        """Register one."""
        result = self.both(lambda side: self.machines[side].doorbell(self.events[slot][side], port, 1), settle=False)
        if result == "ok":
            self.doorbells[port] = slot

    @operation(1, ports)
    def undoorbell(self, port: int) -> None:
        """Take it off, if it is there."""
        slot = self.doorbells.pop(port, 0)
        self.both(lambda side: self.machines[side].undoorbell(self.events[slot][side], port, 1), settle=False)

    def set_table(self, table: dict[int, list[Route]]) -> None:
        """Route on both."""
        entries = [(gsi, route) for gsi, routes in table.items() for route in routes]
        assert self.both(lambda side: self.machines[side].route(*entries), settle=False) == "ok"
        self.table = table

    @operation(3, tables)
    def route(self, drawn: tuple[list[int], set[int], bool, set[int], int]) -> None:
        """Each gsi to a pin of its own, or to a message."""
        pins, wanted, fixed, messages, vector = drawn
        up = self.machines[1].manager._irqfds.lines.asserted()
        done["- a route while a resample line is up"] += bool(up)
        done["- a route while a device's line is up"] += bool(self.machines[0].lines() & ~CASCADE and not up)
        table = {gsi: routes for gsi, routes in self.table.items() if self.avoids("G12", gsi in up)}
        if fixed:
            message: list[Route] = [("msi", vector)]
            table |= {gsi: routes for gsi, routes in FIXED.items() if gsi not in up} | {_MESSAGE: message}
        for gsi, pin in IOAPIC.items():
            if self.avoids("R20 route", not self.entries[pin] & LEVEL):
                table[gsi] = FIXED[gsi]
        for index, gsi in enumerate(GSIS):
            if gsi in messages and gsi not in table:
                table[gsi] = [("msi", 0x44 + index)]
        taken = [routes[0] for routes in table.values()]
        for gsi, pin in zip(GSIS, pins, strict=True):
            if gsi in wanted and gsi not in table and ("pic", pin) not in taken:
                table[gsi] = [("pic", pin)]
        self.set_table(table)

    @operation(1, gsis)
    def unroute_and_route(self, gsi: int) -> None:
        """A line that is up comes back with its route."""
        up = gsi in self.machines[1].manager._irqfds.lines.asserted()
        irr, _, _, lines = self.machines[0].registers()
        for chip, pin, *_ in self.table[gsi] if up else ():
            # A PIC that was set up anew does not know of a line that has been up since.
            known = chip == "pic" and lines & (self.level | irr) & 1 << pin
            if self.avoids("G13", chip != "msi" and not known):
                return
        done["- a route taken away and given back while its resample line is up"] += up
        table = dict(self.table)
        for there in ({other: routes for other, routes in table.items() if other != gsi}, table):
            self.set_table(there)

    @operation(3, st.sampled_from(sorted(VECTORS)), st.booleans())
    def entry(self, pin: int, masked: bool) -> None:
        """The guest masks or unmasks a pin of the IOAPIC."""
        chip = self.machines[1].chips.ioapic
        if self.avoids("R21 edge", masked and not self.entries[pin] & LEVEL):
            return
        gsi = next(gsi for gsi, one in IOAPIC.items() if one == pin)
        told = any(irqfd.gsi == gsi and irqfd.resamplefd is not None for irqfd in self.machines[1].manager.irqfds)
        if self.avoids("R21 driven", not masked and told and chip._pins.raised >> pin & 1):
            return
        self.ioapic(pin, self.entries[pin] | (_MASKED if masked else 0))

    def ioapic(self, pin: int, low: int) -> None:
        """Write the low half of a redirection entry."""
        self.both(lambda side: self.machines[side].ioapic(pin, low), settle=self.resampled)

    @operation(4, gsis, st.sampled_from([0, 1]))
    def line(self, gsi: int, level: int) -> None:
        """A device's."""
        self.both(lambda side: self.machines[side].line(gsi, level), settle=False)

    @operation(5)
    def take(self) -> bool:
        """The CPU takes an interrupt; whether it is the PIC's to end."""
        vector = self.both(lambda side: self.machines[side].take(), settle=self.auto_eoi or self.resampled)
        assert vector is None or isinstance(vector, int)
        done["- an interrupt taken" if vector is not None else "- no interrupt to take"] += 1
        if vector is not None and vector >= 0x40:
            self.both(lambda side: self.machines[side].end(vector), settle=self.resampled)
            return False
        return vector is not None

    @operation(5)
    def take_and_end(self) -> None:
        """As a guest does."""
        if self.take():
            self.end(slave=False)

    @operation(4, st.booleans())
    def end(self, slave: bool) -> None:
        """An EOI that is not specific, of the slave first where it is the slave's."""
        done["- an end of interrupt while a resample line is up"] += bool(
            self.machines[1].manager._irqfds.lines.asserted()
        )
        if slave or self.machines[0].isr() >> 8:
            self.both(lambda side: self.machines[side].out(0xA0, 0x20), settle=self.resampled)
        self.both(lambda side: self.machines[side].out(0x20, 0x20), settle=self.resampled)

    @operation(2, st.sampled_from(PINS))
    def end_specific(self, pin: int) -> None:
        """Perhaps of what is not in service."""
        port = 0x20 if pin < 8 else 0xA0
        self.both(lambda side: self.machines[side].out(port, 0x60 | pin & 7), settle=self.resampled)

    @operation(2, st.sampled_from([0, 0, 0, 1 << 5, 1 << 6, 0xF8]))
    def mask(self, mask: int) -> None:
        """The guest masks pins of the master."""
        self.both(lambda side: self.machines[side].out(0x21, mask), settle=False)

    @operation(1)
    def set_up_anew(self) -> None:
        """ICW1 and the rest, for both chips."""
        irr, isr, _, _ = self.machines[0].registers()
        driven = self.machines[1].chips.pic._pins.raised
        here = {
            "R19 in service": isr,
            "R19 driven": driven,
            "R19 requests": (irr & ~CASCADE).bit_count() > 1,
            "R19 triggers": self.would_trigger(),
        }
        if not sum(self.avoids(what, there) for what, there in here.items()):
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

    @operation(2)
    def look_at_all(self) -> None:
        """Every count too."""
        self.compare_all()
