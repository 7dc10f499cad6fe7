"""``aioirqfd ledger``: one device's interrupts in three books, and where they differ."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aioirqfd.tracing import FlightFileError, read_flight
from aioirqfd.tracing.ledger import LedgerError, ledger, of_guest, of_qemu, taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioirqfd.tracing.ledger import GuestVector

_OWED: Final = 1
_FAILED: Final = 2
_EPILOG: Final = """\
how to get the three books:
  the device      FlightRecorder("/dev/shm/device.flight") as the server's tracer; --record FILE of the examples
  QEMU            qemu-system-x86_64 -trace vfio_msi_interrupt -D qemu.log ...
  the guest       cat /proc/interrupts >before, the test, cat /proc/interrupts >after

examples:
  aioirqfd ledger --recorder device.flight
  aioirqfd ledger --recorder device.flight --qemu-trace qemu.log --guest after
  aioirqfd ledger --recorder device.flight --qemu-trace qemu.log --guest before after

exit status: 0 nothing is owed; 1 an interrupt is; 2 a file cannot be read, or does not fit the others
"""


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(
        prog="aioirqfd ledger",
        description="Set side by side what a PCI device signalled, what went to QEMU, what QEMU took, and what the guest counted.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--recorder", metavar="FILE", required=True, help="what a flight recorder has written")
    add("--qemu-trace", metavar="LOG", help="QEMU's log with its vfio_msi_interrupt events")
    add(
        "--guest",
        metavar="COPY",
        nargs="+",
        help="two copies of the guest's /proc/interrupts; or one, where the other books go back to its boot",
    )
    add("--device", metavar="NAME", help="which, if the recorder has several")
    add("--qemu-device", metavar="NAME", help="the same device, as QEMU's log calls it")
    add("--address", metavar="ADDRESS", help="the same device, where the guest has it: 00:04.0")
    add("--json", action="store_true", help="as one JSON object")
    return made


def _of_guest(copies: Sequence[str]) -> dict[GuestVector, tuple[int, str]]:
    if len(copies) > 2:
        raise LedgerError(f"--guest has two files at most, a copy of before and one of after, not {len(copies)}")
    return taken(*copies) if len(copies) > 1 else of_guest(copies[0])


def run(arguments: Sequence[str]) -> int:
    """Show the ledger; see the exit status in the help."""
    given = parser().parse_args(arguments)
    try:
        qemu = guest = None
        if given.qemu_trace is not None:
            with Path(given.qemu_trace).open(errors="replace") as lines:
                qemu = of_qemu(lines)
        if given.guest is not None:
            guest = _of_guest([Path(path).read_text(errors="replace") for path in given.guest])
        found = ledger(
            read_flight(given.recorder),
            qemu=qemu,
            guest=guest,
            device=given.device,
            qemu_device=given.qemu_device,
            address=given.address,
        )
    except (OSError, FlightFileError, LedgerError) as error:
        print(f"aioirqfd ledger: {error}", file=sys.stderr)
        return _FAILED
    print(json.dumps({**dataclasses.asdict(found), "owed": found.owed}) if given.json else found)
    return _OWED if found.owed else 0
