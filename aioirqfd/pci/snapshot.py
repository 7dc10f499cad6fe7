"""How the state of a PCI function is taken, and put into another one.

What must hold, so that nothing is lost on the way: an interrupt that the device owes is either with whoever is told of it, or among
the pending ones of the state; a doorbell that was rung was either heard by the device before it came to rest, or its count is in the
state. The function stands still while both are looked at (:meth:`PciFunction.pause <aioirqfd.pci.PciFunction.pause>`).

The pin is a level, so it is enough to know whether the device wants it up: whoever is told of it is told anew after a restore.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, TypeVar, cast

from aioirqfd.counter import fdinfo
from aioirqfd.errors import SnapshotError
from aioirqfd.pci.fields import plain_copy
from aioirqfd.pci.state import DoorbellCount, PciFunctionState
from aioirqfd.serving.reports import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aioirqfd.ioeventfd import IoEventFd
    from aioirqfd.pci.device import PciDevice
    from aioirqfd.pci.function import PciFunction

_Device = TypeVar("_Device", bound="PciDevice")
_MOST_SHOWN: Final = 5


def identity(function: PciFunction[_Device]) -> dict[str, object]:
    """What a function is, beside what it is doing: two with the same have the same registers in the same places."""
    device = function.device
    rom = device.rom
    return plain_copy(
        {
            "vendor_id": device.vendor_id,
            "device_id": device.device_id,
            "subsystem": [device.subsystem_vendor_id, device.subsystem_id],
            "class_code": device.class_code,
            "revision": device.revision,
            "vectors": len(function.interrupts),
            "intx": bool(device.intx),
            "rom": [len(rom), zlib.crc32(rom)],
            "bars": {
                str(index): {"size": bar.size, "flags": bar.flags, "io": bar.io, "shared": sorted(bar.shared)}
                for index, bar in function.bars.items()
            },
            "capabilities": [
                [type(one).__name__, place, one.body().hex()] for one, place in function.config.capabilities.items()
            ],
            "registers": {
                one.name: {"bar": one.bar, "offset": one.offset, "width": one.width} for one in device.registers
            },
        },
        "what the device says of itself",
    )


def take(function: PciFunction[_Device]) -> PciFunctionState:
    """The state of a function that is paused."""
    device = function.device
    values = vars(device)
    registers = {one.name: values[one.name] for one in device.registers if values.get(one.name, one.reset) != one.reset}
    interrupts = function.interrupts
    own = plain_copy(device.save_state(), f"what save_state() of {name_of(device)} returned")
    return PciFunctionState(
        identity=identity(function),
        config=function.config.read(0, function.config.size),
        table=bytes(function.table),
        shared={bar: bytes(memory.view) for bar, memory in function.shared.items()},
        registers=registers,
        pending=interrupts.owed(),
        pin=interrupts.pin,
        doorbells=tuple(_rung(function)),
        own=own,
    )


def check(function: PciFunction[_Device], state: PciFunctionState) -> None:
    """Hold a state against the function that it is for; SnapshotError if it does not fit."""
    if type(state) is not PciFunctionState:
        raise SnapshotError(f"a PciFunctionState is restored, not {state!r}: PciFunctionState.from_dict() makes one")
    name = name_of(function.device)
    differences = list(_differences(state.identity, identity(function), ""))
    if differences:
        shown = "; ".join(differences[:_MOST_SHOWN])
        more = f"; and {len(differences) - _MOST_SHOWN} more" if len(differences) > _MOST_SHOWN else ""
        raise SnapshotError(f"this is not the state of a {name} as it is here: {shown}{more}")
    config = function.config
    for what, saved, here in (
        ("configuration space", len(state.config), config.size),
        ("MSI-X table", len(state.table), len(function.table)),
        *(
            (f"shared memory of BAR {bar}", len(state.shared.get(bar, b"")), len(memory.view))
            for bar, memory in function.shared.items()
        ),
    ):
        if saved != here:
            raise SnapshotError(f"the state of {name} has {saved} bytes of {what}, and it has {here}")
    if not set(state.shared) <= set(function.shared):
        raise SnapshotError(f"the state of {name} has memory of BARs that it does not share: {sorted(state.shared)}")
    if (at := config.differs(state.config)) is not None:
        raise SnapshotError(f"the state of {name} has another configuration space, from {at:#x} on")
    limits = {one.name: one.limit for one in function.device.registers}
    for register, value in state.registers.items():
        if register not in limits or not 0 <= value <= limits[register]:
            raise SnapshotError(f"the state of {name} has a register {register} with {value:#x}, which it cannot have")
    if any(vector >= len(function.interrupts) for vector in state.pending):
        raise SnapshotError(f"the state of {name} owes interrupts by vectors that it has not: {state.pending}")
    for one in state.doorbells:
        _find(function, one)


def put(function: PciFunction[_Device], state: PciFunctionState) -> None:
    """Put a state that was checked into a function that is paused, and as after a reset."""
    device = function.device
    for one in device.registers:
        setattr(device, one.name, state.registers.get(one.name, one.reset))
    function.config.restore(state.config)
    function.table[:] = state.table
    for bar, data in state.shared.items():
        function.shared[bar].view[:] = data
    try:
        device.restore_state(plain_copy(state.own, "own"))
    except SnapshotError:
        raise
    except Exception as error:
        raise SnapshotError(f"restore_state() of {name_of(device)} raised {error!r}") from error
    for vector in state.pending:
        function.interrupts.signal(vector)
    function.interrupts.pin = state.pin
    for rung in state.doorbells:
        _find(function, rung).eventfd.signal(rung.count)


def _rung(function: PciFunction[_Device]) -> Iterable[DoorbellCount]:
    for bar, doorbells in function.doorbells.items():
        for one in doorbells:
            if one.dead:
                continue
            if values := one.statistics().values:
                raise SnapshotError(
                    f"the doorbell of {name_of(function.device)} at {one.address:#x} of BAR {bar} keeps {values} values: "
                    "the device is to take them in pause(), or to have them in save_state()"
                )
            info = fdinfo(one.eventfd.fileno())
            if info is not None and info[0]:
                yield DoorbellCount(bar, one.address, one.length, one.datamatch, info[0])


def _find(function: PciFunction[_Device], rung: DoorbellCount) -> IoEventFd:
    wanted = (rung.offset, rung.length, rung.datamatch)
    for one in function.doorbells.get(rung.bar, ()):
        if not one.dead and (one.address, one.length, one.datamatch) == wanted:
            return one
    raise SnapshotError(
        f"{name_of(function.device)} has no doorbell at {rung.offset:#x} of BAR {rung.bar}, which was rung"
    )


def _differences(saved: object, here: object, where: str) -> Iterable[str]:
    """What differs, by the names on the way to it."""
    there, this = _parts(saved), _parts(here)
    if there is not None and this is not None:
        for name in dict.fromkeys((*there, *this)):
            yield from _differences(there.get(name), this.get(name), f"{where}.{name}" if where else name)
    elif saved != here:
        yield f"{where} is {_shown(saved)} in the state, and {_shown(here)} here"


def _parts(value: object) -> Mapping[str, object] | None:
    """What a value consists of; None: nothing smaller."""
    if isinstance(value, dict):
        return cast("dict[str, object]", value)
    if isinstance(value, list):
        return {str(number): one for number, one in enumerate(cast("list[object]", value))}
    return None


def _shown(value: object) -> str:
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) else repr(value)
