"""The VMM's flight recorder: each line by its name, and what is left of it after a SIGKILL."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from aioirqfd.tracing import FlightKind, read_flight
from examples.vmm import ports

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("unicorn")

# The machine, whose sink counts in a file of its own what it has taken, and says when that is enough to be killed.
PROGRAM = """
import asyncio, mmap, os, struct, sys
from aioirqfd.tracing import FlightRecorder
from examples.vmm.machine import Machine
from examples.vmm.options import Options
from examples.vmm.streams import Output, TextSource

with open(sys.argv[2], "w+b") as file:
    file.truncate(4096)
    counts = mmap.mmap(file.fileno(), 4096)

class Witness:
    taken = 0

    def __init__(self, sink):
        self.sink, self.bind, self.set_routing = sink, sink.bind, sink.set_routing

    def try_inject(self, interrupt):
        taken = self.sink.try_inject(interrupt)
        if taken and interrupt.action.name != "DEASSERT":
            self.taken += 1
            struct.pack_into("=QQ", counts, 0, self.taken, interrupt.gsi)
            if self.taken == 300:
                os.write(1, b"x")
        return taken

    async def inject(self, interrupt):
        raise AssertionError("all is taken at once")

source, output = TextSource(b"some text"), Output(os.open(os.devnull, os.O_WRONLY), "nothing")
options = Options(accel="unicorn", inject="fast", hz=2000, ticks=10**6)
machine = Machine(options, source=source, output=output, tracer=FlightRecorder(sys.argv[1]), patience=60)
machine._sink = Witness(machine._sink)
asyncio.run(machine.run())
"""


def test_a_killed_machine_leaves_what_its_sink_has_taken(tmp_path: Path):
    path, counts = tmp_path / "flight", tmp_path / "counts"
    command = [sys.executable, "-c", PROGRAM, str(path), str(counts)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.read(1) == b"x"
        program.send_signal(signal.SIGKILL)
    taken, last = struct.unpack("=QQ", counts.read_bytes()[:16])
    log = read_flight(path)
    injected = [record for record in log.records if record.kind is FlightKind.INJECTED]
    assert not log.closed
    assert log.torn <= 1
    # Between what the sink has counted and the record there is one step, in which it may have been killed.
    assert taken - len(injected) in {0, 1}
    if taken == len(injected):
        assert injected[-1].fields["gsi"] == last
    assert [record.number for record in injected] == sorted(record.number for record in injected)


def test_the_lines_are_known_by_name(tmp_path: Path):
    path = tmp_path / "flight"
    command = [sys.executable, "-m", "examples.vmm", "--accel", "unicorn", "--record", str(path), "--ticks", "3"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    log = read_flight(path)
    assert log.closed
    assert log.gsis == {
        ports.TIMER_PIN: "timer",
        ports.ECHO_PIN: "echo",
        ports.SERIAL_PIN: "serial",
        ports.POWER_PIN: "power",
    }
    kinds = [record.kind for record in log.records if record.fields.get("gsi") == ports.SERIAL_PIN]
    for kind in (FlightKind.RAISED, FlightKind.ACKED, FlightKind.LOWERED):
        assert kind in kinds
