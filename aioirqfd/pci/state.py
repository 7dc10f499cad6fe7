"""The state of a PCI function that is at rest, as a value that can be written to a file.

As a dict for ``json`` it is::

    {"version": 1, "kind": "pci-function",
     "identity": {NAME: value, ...}, "config": base64, "table": base64, "shared": {BAR: base64, ...},
     "registers": {NAME: number, ...}, "pending": [vector, ...], "pin": bool,
     "doorbells": [[bar, offset, length, datamatch or None, count], ...], "own": {...}}

with the fields of :class:`PciFunctionState`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, cast, final

from aioirqfd.errors import SnapshotError
from aioirqfd.integers import plain
from aioirqfd.pci.bar import BARS
from aioirqfd.pci.capability import MAX_MSIX
from aioirqfd.pci.fields import Fields, plain_copy, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

VERSION: Final = 1
KIND: Final = "pci-function"
_WHAT: Final = "the state of a PCI function"
_U64: Final = 2**64
_DOORBELL: Final = (BARS, _U64, 9, _U64, _U64 - 1)
"""Below which each field of a doorbell is."""


@final
@dataclass(frozen=True, slots=True)
class DoorbellCount:
    """A doorbell that was rung, and not heard yet.

    Attributes:
        bar: Where it is.
        offset: Bytes from the BAR's beginning.
        length: Of the writes that ring it, bytes; 0: any.
        datamatch: What has to be written to ring it; None: anything.
        count: What its eventfd holds, 1..2**64-2.
    """

    bar: int
    offset: int
    length: int
    datamatch: int | None
    count: int


@final
@dataclass(frozen=True, slots=True)
class PciFunctionState:
    """Everything that a PCI function is, but for the memory that it reaches and whom its interrupts go to. See :meth:`PciFunction.save`.

    Attributes:
        identity: What device it is: ids, BARs, capabilities, registers. It is restored into a device of the same only.
        config: The configuration space.
        table: The MSI-X table as it reads, where whoever serves the function has none of its own; empty without MSI-X.
        shared: By BAR, the memory behind it, where parts of it are shared.
        registers: By name, the registers that have another value than after a reset.
        pending: The vectors whose interrupt is owed.
        pin: Whether the device wants its interrupt pin up.
        doorbells: Those that were rung and not heard.
        own: What the device's ``save_state()`` said.
    """

    identity: Mapping[str, object]
    config: bytes
    table: bytes
    shared: Mapping[int, bytes]
    registers: Mapping[str, int]
    pending: tuple[int, ...]
    pin: bool
    doorbells: tuple[DoorbellCount, ...]
    own: Mapping[str, object]

    def to_dict(self) -> dict[str, object]:
        """Return it as a plain dict that ``json`` takes."""
        return {
            "version": VERSION,
            "kind": KIND,
            "identity": plain_copy(self.identity, "identity"),
            "config": text_of(self.config),
            "table": text_of(self.table),
            "shared": {str(bar): text_of(data) for bar, data in self.shared.items()},
            "registers": dict(self.registers),
            "pending": list(self.pending),
            "pin": self.pin,
            "doorbells": [[one.bar, one.offset, one.length, one.datamatch, one.count] for one in self.doorbells],
            "own": plain_copy(self.own, "own"),
        }

    @classmethod
    def from_dict(cls, state: object) -> Self:
        """Make it of what :meth:`to_dict` returned.

        Raises:
            SnapshotError: It is malformed, or of another version or kind.
        """
        found = Fields(state, _WHAT, ("version", "kind", *(field.name for field in fields(cls))))
        entries = cast("Mapping[str, object]", state)
        version = entries["version"]
        if version != VERSION or isinstance(version, bool):
            raise SnapshotError(f"{_WHAT} is of version {version!r}; this package reads {VERSION}")
        if entries["kind"] != KIND:
            raise SnapshotError(f"{_WHAT} says that it is of a {entries['kind']!r}")
        shared = found.mapping("shared")
        bars = {bar: str(bar) for bar in range(BARS)}
        if not set(shared) <= set(bars.values()):
            raise SnapshotError(f"{_WHAT}: shared is by BAR, 0..{BARS - 1}, not by {', '.join(shared)}")
        memory = Fields(shared, f"{_WHAT}: shared", shared)
        registers = found.mapping("registers")
        values = Fields(registers, f"{_WHAT}: registers", registers)
        return cls(
            identity=plain_copy(found.mapping("identity"), f"{_WHAT}: identity"),
            config=found.data("config"),
            table=found.data("table"),
            shared={bar: memory.data(name) for bar, name in bars.items() if name in shared},
            registers={name: values.number(name, _U64) for name in registers},
            pending=_vectors(found.items("pending")),
            pin=found.flag("pin"),
            doorbells=tuple(_doorbell(one) for one in found.items("doorbells")),
            own=plain_copy(found.mapping("own"), f"{_WHAT}: own"),
        )


def _vectors(values: list[object]) -> tuple[int, ...]:
    vectors = [plain(value, MAX_MSIX) for value in values]
    if None in vectors or len(set(vectors)) < len(vectors):
        raise SnapshotError(f"{_WHAT}: pending is a list of vectors, each once, not {values!r}")
    return tuple(vector for vector in vectors if vector is not None)


def _doorbell(value: object) -> DoorbellCount:
    fields = cast("list[object]", value) if isinstance(value, list) else []
    if len(fields) == len(_DOORBELL):
        bar, offset, length, datamatch, count = (
            plain(one, below) for one, below in zip(fields, _DOORBELL, strict=True)
        )
        matched = (datamatch is None) == (fields[3] is None)
        if matched and count and bar is not None and offset is not None and length is not None:
            return DoorbellCount(bar, offset, length, datamatch, count)
    raise SnapshotError(f"{_WHAT}: a doorbell is [bar, offset, length, datamatch or null, count], not {value!r}")
