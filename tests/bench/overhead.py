"""What the things cost that one leaves switched on: the flight recorder, the tracing hooks, the import."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import aioirqfd
from aioirqfd import EventFd, IrqManager
from aioirqfd.tracer import NULL_TRACER, Tracer
from aioirqfd.tracing import FlightRecorder
from tests.bench.external import write_all
from tests.bench.loops import on_loops
from tests.bench.measure import Case
from tests.bench.sinks import CountingSink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

COUNTER = Path(aioirqfd.__file__).with_name("counter")
CALLGRIND_PASSES = (10, 60)


def traced(tracer: Callable[[], Tracer], n: int = 64, passes: int = 300) -> Callable[[], Awaitable[float]]:
    """n events a pass, with a tracer."""

    async def run() -> float:
        sink = CountingSink()
        async with IrqManager(sink, tracer=tracer()) as irqs:
            kicks = [EventFd() for _ in range(n)]
            for number, kick in enumerate(kicks):
                irqs.assign(kick, gsi=number % 24)
            fds = [kick.fileno() for kick in kicks]
            took: list[int] = []
            for _ in range(passes):
                sink.expect(n)
                write_all(fds)
                took.append(await sink.round())
            for kick in kicks:
                kick.close()
        return statistics.median(took) / n

    return run


def _in_a_file() -> FlightRecorder:
    with tempfile.TemporaryDirectory() as folder:
        return FlightRecorder(Path(folder) / "flight")


# Run by the interpreter under callgrind: one argument, the number of passes over 64 eventfds. In-process signals, because the
# drain's timer, which reads what was left unread of outside ones, goes by real time.
_PASSES = """
import gc, os, sys; gc.disable()
from types import CellType
from aioirqfd.counter import Drain, EventFdCtx, TopHalf
class Irqfd:
    def wakeup(self, count): raise AssertionError
    def defer(self, count): raise AssertionError
drain, top, irqfd = Drain(), TopHalf(bool), Irqfd()
ctxs = [EventFdCtx(os.eventfd(0, os.EFD_NONBLOCK)) for _ in range(64)]
for ctx in ctxs:
    drain.add(ctx); ctx._bind(top, irqfd, False, None, None); ctx._arm(CellType("interrupt"))
for _ in range(int(sys.argv[1])):
    for ctx in ctxs:
        ctx.signal()
assert all(ctx._fast == int(sys.argv[1]) for ctx in ctxs)
"""


def instructions(folder: Path, passes: int) -> int:
    """Instructions that the interpreter executes for so many passes, with the counter module found in ``folder``."""
    out = folder / "callgrind.out"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": "0"}
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, "-SBP", "-c", _PASSES]
    subprocess.run([*command, str(passes)], env=environment, check=True, capture_output=True)
    for line in out.read_text(encoding="utf-8").splitlines():
        if line.startswith(("summary:", "totals:")):
            return int(line.split()[1])
    raise RuntimeError("callgrind wrote no summary")


def per_event(*flags: str) -> Callable[[], float]:
    """Instructions an event, with the counter module built with these flags. Repeatable, so it is counted once."""
    counted: list[float] = []

    def run() -> float:
        if not counted:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                package = folder / "aioirqfd"
                (package / "counter").mkdir(parents=True)
                (package / "__init__.py").touch()
                shutil.copy(COUNTER.with_name("errors.py"), package)
                shutil.copy(COUNTER / "__init__.py", package / "counter")
                suffix = sysconfig.get_config_var("EXT_SUFFIX")
                include = sysconfig.get_paths()["include"]
                command = ["cc", "-std=c11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", f"-I{include}", *flags]
                target = package / "counter" / f"_native{suffix}"
                subprocess.run([*command, "-o", str(target), *map(str, sorted(COUNTER.glob("*.c")))], check=True)
                few, many = (instructions(folder, passes) for passes in CALLGRIND_PASSES)
                counted.append((many - few) / (CALLGRIND_PASSES[1] - CALLGRIND_PASSES[0]) / 64)
        return counted[0]

    return run


def import_time() -> float:
    """Milliseconds that ``import aioirqfd`` takes after ``import asyncio``, in a fresh interpreter.

    With its bytecode compiled, as an installed package has it; whether this tree has, hangs on the environment.
    """
    program = "import asyncio, time; t = time.perf_counter(); import aioirqfd; print((time.perf_counter() - t) * 1e3)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as cache:
        environment["PYTHONPYCACHEPREFIX"] = cache
        command = [sys.executable, "-c", program]
        runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(6)]
    return statistics.median(float(run.stdout) for run in runs[1:])


def cases() -> list[Case]:
    """All that this machine can run."""
    found = on_loops("recorder off/{loop}", traced(lambda: NULL_TRACER))
    found += on_loops("recorder on/{loop}", traced(FlightRecorder))
    found += on_loops("recorder in a file/{loop}", traced(_in_a_file))
    if shutil.which("valgrind") and shutil.which("cc") and aioirqfd.IMPLEMENTATION == "c":
        found.append(Case("hooks off", per_event(), "insn"))
        found.append(Case("hooks compiled out", per_event("-DAIOIRQFD_NO_FLIGHT"), "insn"))
    found.append(Case("import", import_time, "ms"))
    return found
