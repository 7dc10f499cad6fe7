"""Interrupts that get lost outside of the device's process, planted in QEMU and in the guest, and the ledger that names each."""

from __future__ import annotations

import base64
import os
import random
import re
import signal
import time

import pytest

from aioirqfd.tracing import FlightRecorder
from aioirqfd.tracing.ledger import ledger, of_qemu, taken
from examples import howto_ledger
from tests.qemu import program
from tests.qemu.guides import DOCS
from tests.qemu.test_vfio_linux import MIB, TRACE, disk, linux
from tests.qemu.test_vhost_linux import guest

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

ENTRY, DATA, CONTROL = 16, 8, 12
"""Of the MSI-X table: bytes of a vector, and where its message's data and its mask are."""


@pytest.fixture(autouse=True)
def _new_enough():
    program.need((10, 1), "vfio-user-pci")


class Books:
    """The three books of a disk, from a moment on."""

    def __init__(self, qemu, server, recorder, log):
        self.qemu, self.server, self.recorder, self.log = qemu, server, recorder, log

    async def proc(self):
        return base64.b64decode(await guest(self.qemu, "echo =$(base64 </proc/interrupts | tr -d '\\n')")).decode()

    def traced(self):
        return self.log.read_text().splitlines()

    async def open(self):
        self.before, self.lines, self.since = await self.proc(), len(self.traced()), time.monotonic_ns()

    async def seen_by_qemu(self, times):
        await self.qemu.until(lambda: sum(of_qemu(self.traced()[self.lines :]).values()) >= times)

    async def joined(self, *, answers=True):
        after = await self.proc() if answers else self.before
        found = ledger(
            self.recorder.log(),
            qemu=of_qemu(self.traced()[self.lines :]),
            guest=taken(self.before, after),
            since_ns=self.since,
            slow_ns=0,
        )
        return found, {entry.vector: entry for entry in found.entries}


async def test_each_place_behind_the_device_where_an_interrupt_gets_lost_is_named(tmp_path):
    path, log = tmp_path / "image", tmp_path / "trace"
    path.write_bytes(random.Random(8).randbytes(MIB))
    with disk(path) as device, FlightRecorder() as recorder:
        async with linux(device, arguments=[*TRACE, str(log)], append="iomem=relaxed", tracer=recorder) as (
            qemu,
            server,
        ):
            books = Books(qemu, server, recorder, log)
            msix = server.function.msix
            await guest(qemu, f"T=$(sed -n {msix.bar + 1}p $D/resource | cut -d' ' -f1)")

            def entry(vector, offset):
                return f"$((T + {msix.table + vector * ENTRY + offset}))"

            async def word(vector, offset):
                return int(await guest(qemu, f"echo =$(devmem {entry(vector, offset)} 32)"), 16)

            async def put(vector, offset, value):
                await guest(qemu, f"devmem {entry(vector, offset)} 32 {value:#x}")

            # Nothing is planted: what the device signals is what QEMU takes, and no more is what the guest counts.
            await books.open()
            await guest(qemu, "dd if=/dev/nvme0n1 of=/dev/null bs=4k count=20 iflag=direct 2>/dev/null")
            found, entries = await books.joined()
            assert not found.owed, found
            one = entries[1]
            assert one.signalled >= one.injected == one.qemu
            assert (one.qemu or 0) >= (one.guest or 0) > 0
            assert one.name == "nvme0q1"

            # QEMU does not look at its eventfds.
            await books.open()
            os.kill(qemu.process.pid, signal.SIGSTOP)
            try:
                device.interrupt(1)
                found, entries = await books.joined(answers=False)
            finally:
                os.kill(qemu.process.pid, signal.SIGCONT)
            assert (entries[1].signalled, entries[1].injected, entries[1].qemu) == (1, 1, 0)
            assert entries[1].said.startswith("QEMU was told and has not taken it")
            await books.seen_by_qemu(1)

            # The message in the table goes to nobody: a vector of the processor's that Linux has given to none.
            message = await word(1, DATA)
            await put(1, DATA, 0xEA)
            await books.open()
            device.interrupt(1)
            await books.seen_by_qemu(1)
            found, entries = await books.joined()
            assert (entries[1].qemu, entries[1].guest) == (1, 0)
            assert entries[1].said.startswith(
                "1 were sent and the guest has counted none: it has the interrupt disabled"
            )

            # It is another's: the guest takes it for that.
            await put(1, DATA, await word(0, DATA))
            await books.open()
            device.interrupt(1)
            await books.seen_by_qemu(1)
            found, entries = await books.joined()
            assert (entries[1].guest, entries[0].guest) == (0, 1)
            assert "more of vector 0 than were sent by that: the wrong vector" in entries[1].said
            await put(1, DATA, message)

            # The guest masks the vector: QEMU has it pending, and the guest when it may.
            await put(1, CONTROL, 1)
            await books.open()
            device.interrupt(1)
            await books.seen_by_qemu(1)
            found, entries = await books.joined()
            assert (entries[1].qemu, entries[1].guest) == (1, 0)
            assert "or the vector masked" in entries[1].said
            await put(1, CONTROL, 0)
            found, entries = await books.joined()
            assert not found.owed
            assert (entries[1].signalled, entries[1].injected, entries[1].qemu, entries[1].guest) == (1, 1, 1, 1)

            # The driver has gone, and QEMU has taken the eventfds away: it waits in the device's process.
            await guest(qemu, "echo ${D##*/} >/sys/bus/pci/drivers/nvme/unbind")
            await books.open()
            device.interrupt(1)
            found = ledger(recorder.log(), qemu=of_qemu(books.traced()[books.lines :]), since_ns=books.since, slow_ns=0)
            assert "it is masked since" in found.entries[0].said


async def test_the_guides_books(tmp_path, capsys):
    """What the guide shows, but for the times and the fds."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(32 * MIB))
    await howto_ledger.main(str(image), str(program.path()))
    guide = (DOCS / "how-to" / "ledger.md").read_text("utf-8")
    shown = guide.partition("examples.howto_ledger disk.img\n")[2].partition("```")[0]
    assert alike(capsys.readouterr().out) == alike(shown)


def alike(text):
    # A hundred reads may share interrupts, and how often the driver asks at its end is its own business.
    return re.sub(r"[+]?\d+(\.\d+)?( [mnu]?s\b)?", "N", text).replace(" ", "")
