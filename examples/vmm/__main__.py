"""``python -m examples.vmm``: run the guest, say what happened."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if not __package__:  # run as a path: python examples/vmm
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from aioirqfd import inspect
from examples.vmm import ports
from examples.vmm.cpu import CpuError
from examples.vmm.machine import Machine
from examples.vmm.options import Options, parse
from examples.vmm.streams import FdSource, Output, Source, TextSource
from examples.vmm.trace import make_tracer, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEXT: Final = b"""\
Every byte of this text was signalled through an irqfd, read by a guest in real mode,
echoed to its console port, and printed by a coroutine. No interrupt was lost on the way.
"""
"""The input when there is none."""
_LOST: Final = 1
_FAILED: Final = 2
_SIGNALLED: Final = 128


@contextlib.contextmanager
def _source(options: Options) -> Iterator[Source]:
    # Python has no sys.stdin when it was started with descriptor 0 closed; by now that number may be anybody's.
    if options.input is None:
        yield TextSource(TEXT) if sys.stdin is None or os.isatty(0) else FdSource(0, "standard input", instead=TEXT)
    elif options.input == "-":
        if sys.stdin is None:
            raise CpuError("standard input is closed")
        yield FdSource(0, "standard input")
    else:
        with Path(options.input).open("rb", buffering=0) as file:
            yield FdSource(file.fileno(), options.input)


@contextlib.contextmanager
def _output(options: Options) -> Iterator[Output]:
    if options.output is None or options.output == "-":
        if sys.stdout is None:
            raise CpuError("standard output is closed")
        yield Output(1, "standard output")
        return
    path = Path(options.output)
    if options.input not in {None, "-"} and path.exists() and path.samefile(str(options.input)):
        raise CpuError(f"{path} is the input: it would be emptied before it is read")
    with path.open("wb", buffering=0) as file:
        yield Output(file.fileno(), options.output)


async def _run(options: Options) -> int:
    received: list[int] = []
    async with contextlib.AsyncExitStack() as stack:
        source = stack.enter_context(_source(options))
        output = stack.enter_context(_output(options))
        tracer = stack.enter_context(recorded(make_tracer(options.trace), options.record, ports.NAMES))
        if options.inspect is not None:
            await stack.enter_async_context(await inspect.serve(options.inspect))
        machine = Machine(options, source=source, output=output, tracer=tracer)
        sys.stderr.write(f"vmm: {machine.name}\n")
        if machine.why_not_kvm is not None:
            sys.stderr.write(f"vmm: not on KVM: {machine.why_not_kvm}\n")
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(machine.run())

        def on_signal(number: int) -> None:
            if received:
                running.cancel()
            else:
                machine.stop()
            received.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        try:
            report = await running
        except asyncio.CancelledError:
            if not received:
                raise
            sys.stderr.write("vmm: stopped\n")
            return _SIGNALLED + received[0]
    sys.stderr.write(report.text())
    if report.contradictions():
        return _LOST
    return _SIGNALLED + received[0] if received else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status (see ``--help``)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["linux"]:
        from examples.vmm.linux import command  # noqa: PLC0415  the small guest needs none of it

        return command.main(arguments[1:])
    options = parse(arguments)
    try:
        return asyncio.run(_run(options))
    except KeyboardInterrupt:  # before the handlers were in place
        sys.stderr.write("vmm: stopped\n")
        return _SIGNALLED + signal.SIGINT
    except (CpuError, OSError) as error:
        sys.stderr.write(f"vmm: {error}\n")
        return _FAILED


if __name__ == "__main__":
    sys.exit(main())
