"""A disk whose interrupts and completions misbehave, to test a guest's driver: :mod:`aioirqfd.faults` on ``vhost_user_blk.py``.

``python examples/chaos_blk.py --socket-path blk.sock --blk-file disk.img --script chaos.txt --control chaos.sock``

A script and the control socket take the same commands, one a line; the control socket answers each:

    set [queue=Q,..] [type=T,..] NAME=VALUE ..      for those queues and types of requests, or for all:

        delay=MS            each completion comes that much later; 0.05 is 50 microseconds
        jitter=MS           and up to that much more, at random
        withhold=N          the next N completions are kept until "release"
        reorder=N           completions are kept until there are N, and come in random order
        merge=N             completions are kept until there are N, and come all at once
        hold=MS             so long do both wait for more at most (20)
        duplicate=N         each completion comes N times more
        error=N             the next N requests are not carried out, and end with an I/O error
        error-percent=P     so many of all requests, at random

        irq-delay=MS        each interrupt comes that much later
        irq-merge=N         an interrupt comes for N completions
        irq-hold=MS         so long does it wait for more at most (20)
        irq-duplicate=N     each interrupt comes N times more
        irq-withhold=1      no interrupt comes until "release"
        irq-spurious=MS     an interrupt for nothing comes that often

    release [queue=Q,..] [type=T,..]        what is kept back comes now, and nothing more is withheld
    reset                                   behave, and release
    seed N                                  choose the same at random again
    sleep SECONDS                           (for scripts)
    requests N [queue=Q,..] [type=T,..]     go on when N more requests have come (for scripts)
    status [queue=Q,..] [type=T,..]         the settings and the counts
    on KIND [MATCH=..] do FAULT [..=..]     any fault of aioirqfd.faults; "remove NAME", "wait NAME [HITS]", "json"

Types are read, write, flush, get-id, discard, write-zeroes, other.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

if not __package__:  # run as a path: python examples/chaos_blk.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aioirqfd.faults import Faults
from aioirqfd.faults.control import Control
from aioirqfd.faults.program import read_script, serve
from aioirqfd.inspect.service import Inspected
from aioirqfd.serving.options import watched
from aioirqfd.serving.terminal import Terminal
from aioirqfd.vhost_user import Backend, program
from examples.vhost_user_blk import Blk, blk_parser


class Chaos(Blk):
    """The block device, and its bad manners. Starts well-behaved.

    Attributes:
        faults: The faults that are set.
        control: Sets them, by command.
    """

    def __init__(self, path: str, *, num_queues: int = 1, read_only: bool = False) -> None:
        super().__init__(path, num_queues=num_queues, read_only=read_only, serial="chaos")
        self.faults = Faults(nonconforming=True)
        self.faults.wrap(self)
        self.control = Control(self.faults)

    async def command(self, line: str) -> str:
        """Carry out a command; ValueError if it is none."""
        return await self.control.command(line)


def say(text: str) -> None:
    """Print a line, now."""
    print(f"chaos: {text}", flush=True)


def main() -> None:
    """The command line."""
    parser = blk_parser()
    parser.description = __doc__
    parser.add_argument("--script", metavar="PATH", help="a file of commands to carry out")
    parser.add_argument("--control", metavar="PATH", help="where to listen for commands at run time")
    options = program.parse(parser, kind="block", features=("read-only", "blk-file"))
    try:
        disk = Chaos(options.blk_file, num_queues=options.num_queues, read_only=options.read_only)
        with contextlib.closing(disk) as chaos, watched(options, Terminal("chaos")) as tracer:
            commands = read_script(chaos.control, options.script)
            backend = Backend(chaos, **program.place(options), tracer=tracer)
            asyncio.run(
                serve(
                    Inspected(backend, options.inspect),
                    chaos.control,
                    commands=commands,
                    socket=options.control,
                    say=say,
                )
            )
    except (OSError, ValueError) as error:
        sys.exit(f"chaos_blk: {error}")


if __name__ == "__main__":
    main()
