"""``python -m examples.vmm linux``: boot Linux, and say how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Final

from aioirqfd import inspect
from aioirqfd.kvm import usable
from examples.vmm.linux import address_map as at
from examples.vmm.linux import console, speed
from examples.vmm.linux.bzimage import BzImage
from examples.vmm.linux.devices import devices
from examples.vmm.linux.errors import BootError, MachineError
from examples.vmm.linux.machine import Ending, Machine
from examples.vmm.linux.options import Options, parse
from examples.vmm.linux.power import Power
from examples.vmm.linux.stopping import Stopping
from examples.vmm.linux.uart import Uart
from examples.vmm.trace import make_tracer, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND_LINE: Final = "console=ttyS0 panic=-1 no_timer_check quiet"
"""What the kernel is told anyway. A panic resets at once, which ends the run; a later word of the user's undoes an earlier one."""
_FAILED: Final = 2
_STATUS: Final = {Ending.RESET: 3, Ending.PANIC: 4, Ending.TRIPLE_FAULT: 5}
_SIGNALLED: Final = 128
NESTED: Final = "`make linux NESTED=1` boots it in QEMU, which emulates a CPU with SVM"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or the terminal has gone
        sys.stderr.write(f"vmm: {text}\n")
        sys.stderr.flush()


async def _run(options: Options) -> int:
    async with contextlib.AsyncExitStack() as stack:
        kernel = BzImage(options.kernel.read_bytes(), str(options.kernel))
        initramfs = options.initrd.read_bytes() if options.initrd else b""
        tracer = stack.enter_context(recorded(make_tracer(options.trace), options.record, {at.COM1_GSI: "console"}))
        if options.inspect is not None:
            await stack.enter_async_context(await inspect.serve(options.inspect))
        stopping = stack.enter_context(Stopping())
        ends = stack.enter_context(console.opened(options.console))
        uart = stack.enter_context(contextlib.closing(Uart(ends.output, ends.source)))
        plugged = []
        for device in devices(options):
            stack.callback(device.close)
            plugged.append(device)
        machine = await stack.enter_async_context(Machine(memory=options.memory, cpus=options.cpus, tracer=tracer))
        machine.load(kernel, initramfs=initramfs, command_line=f"{COMMAND_LINE} {options.append}".strip())
        machine.ports.add(uart)
        machine.ports.add(Power(machine.end))
        machine.irqs.assign(uart.trigger, gsi=at.COM1_GSI, name="console")
        for device in plugged:
            await machine.pci.plug(device)
        ending, status = await _to_the_end(machine, uart, ends, stopping)
    # Now the terminal is as it was.
    _say(ending)
    if uart.dropped:
        _say(f"{uart.dropped} bytes of the console were dropped: the kernel did not wait for its slow reader")
    return status


async def _to_the_end(machine: Machine, uart: Uart, ends: console.Console, stopping: Stopping) -> tuple[str, int]:
    """Run the guest, with its console; returns how it ended, in words and as an exit status."""
    async with asyncio.TaskGroup() as group:
        serving = [group.create_task(uart.run())]
        waiting: list[asyncio.Task[object]] = [group.create_task(stopping.wait())]
        if ends.terminal is not None:
            serving.append(group.create_task(ends.terminal.run()))
            waiting.append(group.create_task(ends.terminal.left.wait()))
        for user in waiting:
            user.add_done_callback(lambda _: machine.end(Ending.STOPPED))
        ending = await machine.run()
        if ending is not Ending.STOPPED:
            writing = group.create_task(uart.wait_written())
            await asyncio.wait((writing, *waiting), return_when=asyncio.FIRST_COMPLETED)
            serving.append(writing)
        for task in (*serving, *waiting):
            task.cancel()
    if ending is Ending.STOPPED:
        number = stopping.received
        return ("left", 0) if number is None else (f"stopped by {number.name}", _SIGNALLED + number)
    return ending.value, _STATUS.get(ending, 0)


def main(arguments: Sequence[str]) -> int:
    """Run the program; returns its exit status (see ``linux --help``)."""
    options = parse(arguments)
    try:
        reason = usable() or speed.why_too_slow()
        if reason is not None:
            _say(f"{reason}; {NESTED}")
            return _FAILED
        return asyncio.run(_run(options))
    except KeyboardInterrupt:  # before it was heard
        _say("stopped")
        return _SIGNALLED + signal.SIGINT
    except (BootError, MachineError, OSError, ValueError) as error:
        _say(str(error))
    except ExceptionGroup as group:  # of what ran side by side
        if group.split((MachineError, OSError))[1] is not None:
            raise
        _say("; ".join(map(str, _leaves(group))))
    return _FAILED


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
