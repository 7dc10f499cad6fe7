"""The ledger of a device's interrupts: what it signalled, what went to QEMU, what QEMU saw, and what the guest counted, side by side.

Each of the three is one party's own book. On the way interrupts merge, and never multiply: an eventfd that is signalled twice before
QEMU reads it is one interrupt to QEMU, and a message that is still pending in the guest's controller is one to the guest. So a smaller
number further on is right as long as it is not zero, or something is *owed*: signalled, and not on its way any more.

Tempting, and wrong: to call every difference a loss. Of counts alone, one interrupt that was lost among many looks like one that
merged. What shows a loss is an interrupt that nothing came after: a vector that stays at zero, a signal that still waits at the end, a
completion with no call behind it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from aioirqfd.flight import FlightKind
from aioirqfd.tracing.flight_log import TURNED_ON
from aioirqfd.tracing.journey import BEGINNINGS, Journeys, as_number
from aioirqfd.tracing.trouble import VECTORS, troubles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from aioirqfd.tracing.flight_log import FlightLog

_QEMU: Final = re.compile(r"\bvfio_msi_interrupt\s+\((?P<device>.*)\) vector (?P<vector>\d+)")
_ROW: Final = re.compile(r"\s*(?P<irq>\d+):(?P<rest>.*)")
_MSI: Final = re.compile(
    r"(?:\S+-)?PCI-MSI(?P<x>X?)(?:-(?P<address>[0-9a-f:.]+))?\s+(?P<number>\d+)-edge\s*(?P<name>.*)"
)
_DEVICE_SHIFT, _VECTOR_MASK = 11, 0x7FF
"""Where Linux up to 6.1 has a device's bus, device and function in the number of a PCI-MSI interrupt, and its vector."""
_OWED: Final = frozenset({"not_injected", "dropped", "no_interrupt", "not_completed", "wrong_vector", "not_sent"})
"""Troubles that somebody waits for the end of."""


class LedgerError(ValueError):
    """One of the books cannot be read, or does not fit the others."""


@final
@dataclass(frozen=True, slots=True)
class GuestVector:
    """A message-signalled interrupt of a guest.

    Attributes:
        address: The PCI function, ``0000:00:04.0``.
        vector: Its vector.
    """

    address: str
    vector: int


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One vector's line.

    Attributes:
        vector: The vector.
        signalled: How often the device interrupted by it.
        injected: How often the one behind the device's manager, QEMU say, was told.
        qemu: How often QEMU took it; None: there is no trace of QEMU's.
        guest: How often the guest was interrupted; None: its counts are not there.
        name: What the guest calls it, or empty.
        owed: Whether something was signalled and is on its way no more.
        said: A sentence: where the difference arose.
    """

    vector: int
    signalled: int
    injected: int
    qemu: int | None
    guest: int | None
    name: str
    owed: bool
    said: str


def of_qemu(lines: Iterable[str]) -> Counter[tuple[str, int]]:
    """What QEMU took, by its name of the device and by vector: of a log that was written with ``-trace vfio_msi_interrupt``."""
    found = (_QEMU.search(line) for line in lines)
    return Counter((one["device"], int(one["vector"])) for one in found if one)


def of_guest(text: str) -> dict[GuestVector, tuple[int, str]]:
    """The counts of all CPUs, and the names, of the PCI message-signalled interrupts in a guest's ``/proc/interrupts``.

    Raises:
        LedgerError: It is none.
    """
    lines = text.splitlines()
    head = next((number for number, line in enumerate(lines) if line.split()[:1] == ["CPU0"]), None)
    if head is None:
        raise LedgerError("there is no line of CPUs: is it a copy of /proc/interrupts?")
    cpus = len(lines[head].split())
    found: dict[GuestVector, tuple[int, str]] = {}
    for line in lines[head + 1 :]:
        row = _ROW.match(line)
        if row is None:
            continue
        counts, what = row["rest"].split()[:cpus], row["rest"].split(maxsplit=cpus)[cpus:]
        msi = _MSI.match(what[0]) if what else None
        if msi is not None:
            count = sum(int(one) for one in counts if one.isdecimal())
            found[_guest_vector(msi)] = count, msi["name"].strip()
    return found


def _guest_vector(msi: re.Match[str]) -> GuestVector:
    number = int(msi["number"])
    if msi["address"] is not None:  # Linux from 6.2 on writes it out
        return GuestVector(msi["address"], number)
    device = number >> _DEVICE_SHIFT
    address = f"{device >> 16:04x}:{device >> 8 & 0xFF:02x}:{device >> 3 & 0x1F:02x}.{device & 7}"
    return GuestVector(address, number & _VECTOR_MASK)


def taken(before: str, after: str) -> dict[GuestVector, tuple[int, str]]:
    """What the guest was interrupted by between two copies of its ``/proc/interrupts``.

    What is not in both is left out: its driver has gone, or come.

    Raises:
        LedgerError: One of them is none, or the second is the older.
    """
    then, now = of_guest(before), of_guest(after)
    found: dict[GuestVector, tuple[int, str]] = {}
    for one, (count, name) in now.items():
        if one not in then:
            continue
        found[one] = count - then[one][0], name
        if found[one][0] < 0:
            raise LedgerError(
                f"{name or one.address} has fewer interrupts afterwards than before: are the two files the wrong way round?"
            )
    return found


@final
@dataclass(frozen=True, slots=True)
class Ledger:
    """The books of one device, joined.

    Attributes:
        device: Whose, as the flight recorder calls it.
        entries: A line for each vector.
        troubles: What is wrong with the device's queues: a completion that nobody was told of, say.
        complete: Whether the flight recorder goes back to the beginning; if not, what it has counted is too small.
    """

    device: str
    entries: list[Entry]
    troubles: list[str]
    complete: bool

    @property
    def owed(self) -> bool:
        """Whether anything is."""
        return bool(self.troubles) or any(entry.owed for entry in self.entries)

    def __str__(self) -> str:
        """For people: what is owed first, then the table."""
        owed = [
            f"vector {one.vector}{_called(one.name)}: {one.said}" for one in self.entries if one.owed
        ] + self.troubles
        lines = [f"{self.device}: {len(owed)} owed" if owed else f"{self.device}: nothing is owed", *owed]
        if not self.complete:
            lines.append(
                "The recorder's oldest records were overwritten: its counts are too small. Give it a larger capacity."
            )
        lines += ["", f"{'vector':>6} {'signalled':>10} {'injected':>10} {'QEMU':>10} {'guest':>10}  where they differ"]
        for one in self.entries:
            counts = (one.signalled, one.injected, one.qemu, one.guest)
            row = " ".join(f"{'-' if count is None else count:>10}" for count in counts)
            lines.append(f"{one.vector:>6} {row}  {'owed, see above' if one.owed else one.said}{_called(one.name)}")
        return "\n".join(lines)


def ledger(
    log: FlightLog,
    *,
    qemu: Mapping[tuple[str, int], int] | None = None,
    guest: Mapping[GuestVector, tuple[int, str]] | None = None,
    device: str | None = None,
    qemu_device: str | None = None,
    address: str | None = None,
    since_ns: int = 0,
    slow_ns: int = 10_000_000,
) -> Ledger:
    """Join the books of one device.

    Args:
        log: The flight recorder's.
        qemu: What :func:`of_qemu` found.
        guest: What :func:`taken` found.
        device: Whose, as the flight recorder calls it; not needed where there is one.
        qemu_device: What QEMU calls it; the same.
        address: Where the guest has it, ``0000:00:04.0`` or ``00:04.0``; the same.
        since_ns: Count what the flight recorder has from this time on, by its clock: since the guest's first copy was made, say.
        slow_ns: What waits that long at the end is owed.

    Raises:
        LedgerError: There are several to choose from, or none.
    """
    matches = filter(None, map(VECTORS.fullmatch, log.sources.values()))
    devices = {found["device"] + (found["number"] or ""): found for found in matches}
    device = _one("PCI device in the flight file", devices.keys(), device)
    seen = counted = None
    if qemu is not None:
        # That QEMU took nothing at all is a finding, and no mistake.
        name = _one("device in QEMU's trace", {name for name, _ in qemu}, qemu_device) if qemu else ""
        seen = {vector: count for (whose, vector), count in qemu.items() if whose == name}
    if guest is not None:
        address = address if address is None or address.count(":") > 1 else f"0000:{address}"
        if guest:  # else no driver had an interrupt all the time
            address = _one("PCI function in the guest's counts", {one.address for one in guest}, address)
        counted = {one.vector: found for one, found in guest.items() if one.address == address}
    records = [record for record in log.records if record.time_ns >= since_ns]
    whole = not since_ns and not log.overwritten
    own = devices[device]
    is_own = re.compile(rf"{re.escape(own['device'])} queue \d+{own['number'] or ''}").fullmatch
    queues = [one for one in records if one.event == TURNED_ON or is_own(str(one.fields.get("source", "")))]
    found = troubles(log, Journeys(queues, whole=whole, until_ns=_until(log)), slow_ns=slow_ns)
    return Ledger(
        device,
        _Books(log, own.string, seen, counted, since_ns, slow_ns).entries(),
        [one.text for one in found if one.what in _OWED],
        not log.overwritten,
    )


def _until(log: FlightLog) -> int:
    """What is under way at this time has had no further step."""
    return log.until_ns or (log.records[-1].time_ns if log.records else 0)


def _called(name: str) -> str:
    return f" ({name})" if name else ""


def _one(what: str, there: AbstractSet[str], given: str | None) -> str:
    if given is not None and given in there:
        return given
    if given is None and len(there) == 1:
        return next(iter(there))
    if not there:
        raise LedgerError(f"there is no {what}")
    raise LedgerError(f"{'which' if given is None else 'there is no such'} {what}? It has {', '.join(sorted(there))}")


class _Books:
    """What is known of one device."""

    def __init__(
        self,
        log: FlightLog,
        manager: str,
        qemu: Mapping[int, int] | None,
        guest: Mapping[int, tuple[int, str]] | None,
        since_ns: int,
        slow_ns: int,
    ) -> None:
        self._qemu = qemu
        self._guest = guest
        self._signalled: Counter[int] = Counter()
        self._injected: Counter[int] = Counter()
        own = [one for one in log.records if one.event == TURNED_ON or one.fields.get("source") == manager]
        for record in own:
            if "gsi" in record.fields and record.time_ns >= since_ns:
                vector = as_number(record.fields["gsi"])
                if record.kind in BEGINNINGS:
                    self._signalled[vector] += as_number(record.fields["count"])
                self._injected[vector] += record.kind is FlightKind.INJECTED
        # What it is stuck in may have begun long before.
        self._journeys = journeys = Journeys(own, whole=not log.overwritten, until_ns=_until(log))
        self._under_way: Counter[int] = Counter()
        for journey in journeys.open():
            self._under_way[journey.irq.gsi] += journey.signals
        self._offloaded = {irq.gsi for irq in journeys.offloaded}
        self._stuck: dict[int, str] = {}
        for one in troubles(log, journeys, slow_ns=slow_ns):
            if one.what in _OWED and one.gsi is not None:
                self._stuck.setdefault(one.gsi, one.text)

    def entries(self) -> list[Entry]:
        """A line for each vector that anybody has counted something of."""
        vectors = {*+self._signalled, *+self._injected, *self._stuck, *self._offloaded, *(self._qemu or ())}
        vectors |= {vector for vector, (count, _) in (self._guest or {}).items() if count}
        return [self._entry(vector) for vector in sorted(vectors)]

    def _entry(self, vector: int) -> Entry:
        qemu = None if self._qemu is None else self._qemu.get(vector, 0)
        guest, name = (self._guest or {}).get(vector, (None, ""))
        owed, said = self._verdict(vector, qemu, guest)
        return Entry(vector, self._signalled[vector], self._injected[vector], qemu, guest, name, owed, said)

    def _verdict(self, vector: int, qemu: int | None, guest: int | None) -> tuple[bool, str]:
        """Whether something is owed, and where it stopped: the first station that a signal did not get past."""
        signalled, injected = self._signalled[vector], self._injected[vector]
        if vector in self._stuck:
            return True, self._stuck[vector]
        if vector in self._offloaded:
            return False, "offloaded: the kernel injects, and has the counts; there is no record of a signal here"
        if injected and qemu == 0 and not guest:
            return True, (
                "QEMU was told and has not taken it: it has no eventfd of this vector, or does not look at it."
                " Look for its SET_IRQS in the trace"
            )
        sent = injected if qemu is None else qemu
        if sent and guest == 0:
            return True, self._not_in_guest(vector, sent)
        if guest is not None and guest > sent:
            return False, f"the guest took {guest - sent} more than were sent by this vector: {self._surplus()}"
        last = next(count for count in (guest, qemu, injected) if count is not None)
        under_way = self._under_way[vector]
        merged = max(signalled - under_way, injected) - last
        if under_way:
            return False, f"{under_way} under way, and not late yet"
        return False, f"nothing is owed; {merged} merged on the way" if merged else "nothing is owed"

    def _not_in_guest(self, vector: int, sent: int) -> str:
        others = [
            one
            for one, (count, _) in (self._guest or {}).items()
            if one != vector and count > (self._injected[one] if self._qemu is None else self._qemu.get(one, 0))
        ]
        if others:
            return (
                f"{sent} were sent and the guest has none of them, but more of vector {others[0]} than were sent by that:"
                " the wrong vector, or its message in the MSI-X table is another's"
            )
        return (
            f"{sent} were sent and the guest has counted none: it has the interrupt disabled, or the vector masked, or the"
            " message in the MSI-X table goes to nobody"
        )

    def _surplus(self) -> str:
        silent = [
            one for one, count in self._injected.items() if count and self._guest and not self._guest.get(one, (0,))[0]
        ]
        return f"they may be vector {silent[0]}'s" if silent else "who else has its message?"
