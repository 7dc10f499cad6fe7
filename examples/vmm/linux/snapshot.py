"""A machine in a file: its CPUs, its memory, its devices and its interrupts, while everything stands still.

The file has a line of JSON, and behind it the parts of the memory that were ever written, in order.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from aioirqfd.kvm import VcpuState, VmState
from aioirqfd.pci import PciFunctionState
from examples.vmm.linux.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aioirqfd.kvm import GuestRam
    from examples.vmm.linux.machine import Machine

VERSION: Final = 1
_MOST: Final = 1 << 26
"""Bytes of the longest line of JSON that is not another kind of file."""
_STEP: Final = 1 << 16
_ZEROES: Final = bytes(_STEP)


async def save(machine: Machine, path: Path) -> None:
    """Write a machine that is paused (:meth:`Machine.pause`) to a file. It stays paused, and may go on or be left.

    Raises:
        SnapshotError: A device cannot be saved; the error says why.
        OSError: The file cannot be written.
    """
    parts = await asyncio.to_thread(lambda: [*_written(machine.ram)])
    state = {
        "version": VERSION,
        "memory": machine.ram.size,
        "vcpus": [vcpu.save().to_dict() for vcpu in machine.vcpus],
        "vm": machine.vm.save().to_dict(),
        "slots": {
            str(number): {
                "function": slot.function.save().to_dict(),
                "table": None if slot.table is None else slot.table.snapshot(),
            }
            for number, slot in machine.pci.slots.items()
        },
        "pci": machine.pci.save(),
        "ports": [device.save_state() for device in machine.ports.devices],
        "irqs": machine.irqs.snapshot(),
        "ram": parts,
    }

    def write() -> None:
        with path.open("wb") as file:
            file.write(json.dumps(state).encode() + b"\n")
            for start, size in parts:
                file.write(machine.ram.view[start : start + size])

    await asyncio.to_thread(write)


async def restore(machine: Machine, path: Path) -> None:
    """Put what is in a file into a machine with the same devices that has not run. It is paused then; its :meth:`run` goes on there.

    Raises:
        MachineError: The file is none, or of a machine with other CPUs, memory or devices.
        SnapshotError: A device does not take its state.
        OSError: The file cannot be read.
    """
    file = await asyncio.to_thread(path.open, "rb")
    with file:
        state = _read(file, path)
        _check(machine, state, path)
        await machine.pause()
        await asyncio.to_thread(_fill, machine.ram, state["ram"], file)
    for vcpu, saved in zip(machine.vcpus, state["vcpus"], strict=True):
        vcpu.restore(VcpuState.from_dict(saved))
    machine.vm.restore(VmState.from_dict(state["vm"]))
    machine.pci.restore(state["pci"])
    for device, saved in zip(machine.ports.devices, state["ports"], strict=True):
        device.restore_state(saved)
    for number, slot in machine.pci.slots.items():
        saved = state["slots"][str(number)]
        # The function first: it resets its table.
        await slot.function.restore(PciFunctionState.from_dict(saved["function"]))
        if slot.table is not None:
            slot.table.restore(saved["table"])
    machine.irqs.restore(state["irqs"])


def _written(ram: GuestRam) -> Iterator[tuple[int, int]]:
    """Where there is something: offset in the RAM, and size."""
    return _data(ram) if ram.shared else _not_zero(ram)


def _not_zero(ram: GuestRam) -> Iterator[tuple[int, int]]:
    """Of private memory, which no file says it of. To look does not make pages of what was never written."""
    start = None
    for at in range(0, ram.size, _STEP):
        part = ram.view[at : at + _STEP].tobytes()
        if part != _ZEROES[: len(part)]:
            start = at if start is None else start
        elif start is not None:
            yield start, at - start
            start = None
    if start is not None:
        yield start, ram.size - start


def _data(ram: GuestRam) -> Iterator[tuple[int, int]]:
    """Of a file, which knows it. To look into a hole would fill it."""
    at, fd = 0, ram.fileno()
    while at < ram.size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at - start


def _fill(ram: GuestRam, parts: list[tuple[int, int]], file: BinaryIO) -> None:
    for start, size in parts:
        if file.readinto(ram.view[start : start + size]) != size:  # type: ignore[attr-defined]
            raise MachineError(f"{file.name} is too short: it was not written to its end")


def _read(file: BinaryIO, path: Path) -> dict[str, Any]:
    line = file.readline(_MOST)
    try:
        state = json.loads(line)
        version = state["version"]
    except (ValueError, TypeError, KeyError):
        raise MachineError(f"{path} is no saved machine") from None
    if version != VERSION:
        raise MachineError(f"{path} has version {version}; this reads version {VERSION}")
    found: dict[str, Any] = state
    return found


def _check(machine: Machine, state: dict[str, Any], path: Path) -> None:
    slots = {str(number): slot.name for number, slot in machine.pci.slots.items()}
    for what, saved, here in (
        ("bytes of memory", state["memory"], machine.ram.size),
        ("CPUs", len(state["vcpus"]), len(machine.vcpus)),
        ("slots in use", sorted(state["slots"]), sorted(slots)),
        ("devices on ports", len(state["ports"]), len(machine.ports.devices)),
    ):
        if saved != here:
            raise MachineError(f"{path} is of a machine with other {what}: {saved}, and not {here}")
