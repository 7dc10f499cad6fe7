"""Rules of the kernel's contract, broken by hand one at a time, and the rows that are to notice; and the product broken as a whole.

A row is worth its place if it fails when the product is wrong. ``python -m tests.conformance.mutants`` prints which of the named
rows notice, and with ``--everything`` the rows that hold whatever the product does; on aioirqfd's side alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from aioirqfd import EventFd, IoBus, IoEventFd, IrqManager, Msi, RoutingTable
from aioirqfd.errors import RoutingError
from aioirqfd.irqchip import IoApic, Pic
from aioirqfd.irqchip.pic_chip import PicChip
from aioirqfd.irqchip.pins import InputPins
from aioirqfd.irqfd import identity
from aioirqfd.irqfd.injection import Injection
from aioirqfd.irqfd.irqfds import Irqfds
from aioirqfd.irqfd.resampler import Resampler
from aioirqfd.irqfd.routing import Routes
from aioirqfd.irqfd.trigger import Trigger
from aioirqfd.sinks import KvmSink
from aioirqfd.sinks.kvm_routes import KernelRoutes
from tests.conformance.ours import OurHost
from tests.conformance.row import ROWS, plain
from tests.conformance.run import NO_KVM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.conformance.row import Row

    Break = Callable[[pytest.MonkeyPatch], None]

_LONG = 5.0

MUTANTS: dict[str, tuple[Break, tuple[str, ...]]] = {}
"""What is broken, how, and rows that notice."""


def mutant(*rows: str) -> Callable[[Break], Break]:
    """Register a way to break a rule, whose name is what is then the case."""

    def register(call: Break) -> Break:
        MUTANTS[call.__name__.replace("_", " ")] = (call, rows)
        return call

    return register


# ------------------------------------------------------------------------------------------------------------- eventfd


@mutant("E12", "E07", "P03")
def a_read_gives_1_of_the_count(patch):
    original = EventFd.read_nowait

    def read_nowait(self):
        original(self)
        return 1

    patch.setattr(EventFd, "read_nowait", read_nowait)


@mutant("E12", "E07")
def a_signal_adds_1_whatever_is_asked_for(patch):
    original = EventFd.signal
    patch.setattr(EventFd, "signal", lambda self, _n=1: original(self, 1))


@mutant("E02")
def a_blocking_file_is_made_non_blocking(patch):
    original = EventFd.from_fd.__func__

    def from_fd(cls, fd, **rest):
        os.set_blocking(fd, False)
        return original(cls, fd, **rest)

    patch.setattr(EventFd, "from_fd", classmethod(from_fd))


@mutant("E21", "E25", "I12", "O09")
def an_eventfd_is_known_by_its_fd(patch):
    patch.setattr(EventFd, "id", property(EventFd.fileno))


# ---------------------------------------------------------------------------------------------------- assign, deassign


@mutant("I12", "C05")
def a_bound_eventfd_is_bound_once_more(patch):
    patch.setattr(identity, "claim", lambda *_: None)


@mutant("I09")
def what_is_refused_stays_bound(patch):
    original = IrqManager.assign

    def assign(self, eventfd, **rest):
        try:
            return original(self, eventfd, **rest)
        except OSError:
            if isinstance(eventfd, EventFd):
                identity.bound[eventfd.id] = None
            raise

    patch.setattr(IrqManager, "assign", assign)


@mutant("I14")
def deassign_looks_at_the_eventfd_alone(patch):
    patch.setattr(Irqfds, "find", lambda self, eventfd, _gsi: self.bound.get(eventfd.id))


@mutant("I20", "W03")
def what_was_signalled_is_lost_by_deassign(patch):
    original = Trigger.unwatch

    def unwatch(self, *, whole):
        return 0, original(self, whole=whole)[1]

    patch.setattr(Trigger, "unwatch", unwatch)


@mutant("P01", "P02", "P12")
def what_an_eventfd_holds_is_taken_at_assign(patch):
    original = IrqManager.assign

    def assign(self, eventfd, **rest):
        if isinstance(eventfd, EventFd) and not eventfd.closed and not eventfd._binding and eventfd._readable():
            eventfd.read_nowait()
        return original(self, eventfd, **rest)

    patch.setattr(IrqManager, "assign", assign)


@mutant("I01", "I18", "G01")
def a_kvm_sink_takes_any_machine(patch):
    patch.setattr(KernelRoutes, "_ask", lambda *_: None)


# ------------------------------------------------------------------------------------------------------------- routing


@mutant("W01", "M05")
def only_the_first_chip_hears_of_it(patch):
    original = Injection._deliver_pulses

    async def deliver(self, routes):
        await original(self, routes[:1])

    patch.setattr(Injection, "_deliver_pulses", deliver)


@mutant("W08", "G11")
def what_has_no_route_is_held(patch):
    patch.setattr(Routes, "holds", lambda self, gsi: gsi not in self.table)


@mutant("G09")
def a_table_that_is_refused_clears_the_old_one(patch):
    original = IrqManager.set_routing

    def set_routing(self, routing):
        try:
            original(self, routing)
        except RoutingError:
            original(self, {})
            raise

    patch.setattr(IrqManager, "set_routing", set_routing)


@mutant("G10")
def a_bound_irqfd_keeps_its_first_route(patch):
    original = Routes.of
    first = {}

    def of(self, gsi):
        found = original(self, gsi)
        return first.setdefault((id(self), gsi), found) if found else found

    patch.setattr(Routes, "of", of)


@mutant("G08")
def a_shared_pin_is_the_first_gsis(patch):
    original = InputPins.set_routing
    patch.setattr(
        InputPins,
        "set_routing",
        lambda self, table: original(self, RoutingTable(dict(reversed(list(table.items()))))),
    )


@mutant("S04")
def a_device_id_is_anything(patch):
    patch.setattr(Msi, "__post_init__", lambda _self: None)


# ------------------------------------------------------------------------------------------------------------ resample


@mutant("R03")
def the_oldest_is_told_first(patch):
    original = Resampler.tell

    def tell(self, **options):
        self.members.reverse()
        try:
            return original(self, **options)
        finally:
            self.members.reverse()

    patch.setattr(Resampler, "tell", tell)


@mutant("R02", "R04", "R20")
def an_end_of_interrupt_tells_nobody(patch):
    patch.setattr(Resampler, "tell", lambda _self, **_options: False)


@mutant("R14", "R15")
def the_last_to_go_is_told(patch):
    original = Resampler.leave

    def leave(self, irqfd):
        if len(self.members) == 1:
            self.tell()
        original(self, irqfd)

    patch.setattr(Resampler, "leave", leave)


@mutant("R16")
def a_resamplefd_that_is_closed_hears_nothing(patch):
    patch.setattr(Resampler, "_inherit", lambda *_: None)


@mutant("R09")
def an_end_of_interrupt_lowers_what_a_device_drives(patch):
    original = InputPins.hold

    def hold(self, pin, level):
        if not level:
            self.raised &= ~(1 << pin)
        return original(self, pin, level)

    patch.setattr(InputPins, "hold", hold)


@mutant("R21")
def an_unmasked_request_goes_out_and_is_told_of(patch):
    original = IrqManager.resample

    def resample(self, gsi):
        original(self, gsi)
        return False

    patch.setattr(IrqManager, "resample", resample)


# ------------------------------------------------------------------------------------------------- interrupt controllers


@mutant("W06")
def a_level_request_outlives_its_line(patch):
    original = PicChip.set_pin

    def set_pin(self, pin, *, high):
        waiting = self.irr
        result = original(self, pin, high=high)
        self.irr |= waiting & 1 << pin
        return result

    patch.setattr(PicChip, "set_pin", set_pin)


@mutant("R20")
def an_edge_has_no_end_of_interrupt(patch):
    original = IoApic.eoi

    def eoi(self, vector):
        if any(entry.vector == vector and entry.level for entry in self._entries):
            original(self, vector)

    patch.setattr(IoApic, "eoi", eoi)


# ------------------------------------------------------------------------------------------------------------ ioeventfd


@mutant("O07")
def no_two_doorbells_collide(patch):
    patch.setattr(IoEventFd, "collides", lambda *_: False)


@mutant("O13")
def a_datamatch_is_compared_by_its_lowest_byte(patch):
    def matches(self, value, length):
        fits = not self.length or length == self.length
        return fits and (self.datamatch is None or self.datamatch & 0xFF == value & 0xFF)

    patch.setattr(IoEventFd, "matches", matches)


@mutant("O12", "O11")
def a_doorbell_takes_writes_of_its_length_or_more(patch):
    def matches(self, value, length):
        return length >= max(self.length, 2) and (self.datamatch is None or self.datamatch == value)

    patch.setattr(IoEventFd, "matches", matches)


# ----------------------------------------------------------------------------------------------------------- everything

PUBLIC = {
    EventFd: ("signal", "read_nowait", "read", "wait", "id"),
    IrqManager: ("assign", "deassign", "find", "set_routing", "set_route", "ack"),
    IoBus: ("ioeventfd", "deassign", "write", "write_bytes"),
    Pic: ("set_irq", "try_inject", "io_write", "io_read", "intack"),
    IoApic: ("set_irq", "try_inject", "mmio_write", "mmio_read", "eoi"),
    KvmSink: ("__init__",),
}
"""What the rows are about; the rest is making things and closing them."""


class BrokenError(Exception):
    """What everything raises."""


def break_everything(patch: pytest.MonkeyPatch) -> None:
    """Nothing of the product does anything."""

    def broken(*_args: object, **_rest: object) -> object:
        raise BrokenError

    for kind, names in PUBLIC.items():
        for name in names:
            patch.setattr(kind, name, property(broken) if name == "id" else broken)


def outcome(row: Row) -> object:
    """What the row gives on aioirqfd's side, or what it raises."""

    async def run() -> object:
        assert row.scenario is not None
        host = OurHost()
        try:
            return plain(await asyncio.wait_for(row.scenario(host), _LONG))
        finally:
            await host.close()

    try:
        return asyncio.run(run())
    except Exception as error:
        return repr(error)


def noticed(call: Break, rows: Iterable[str]) -> list[str]:
    """The rows that do not give what they should while that is broken."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "bound", {})  # what a mutant leaves bound is nobody's afterwards
        call(patch)
        for name in rows:
            row = ROWS[name]
            if not (row.needs_kvm and NO_KVM) and outcome(row) != row.ours:
                found.append(name)
    return found


def shown() -> list[str]:
    """The rows that can be run here on aioirqfd's side."""
    return [name for name, row in ROWS.items() if row.scenario is not None and not (row.needs_kvm and NO_KVM)]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--everything", action="store_true", help="print the rows that hold whatever the product does")
    options = parser.parse_args()
    if options.everything:
        print(*sorted(set(shown()) - set(noticed(break_everything, shown()))))
        sys.stdout.flush()
        os._exit(0)  # threads may wait on what nobody reads any more
    for name, (call, rows) in MUTANTS.items():
        print(f"{name}: {' '.join(noticed(call, rows)) or 'NOBODY'}, of {' '.join(rows)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
