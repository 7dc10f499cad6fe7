"""Where the guest's console is: standard input and output, another terminal, or a file."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, NamedTuple

from examples.vmm.linux.options import TERMINAL
from examples.vmm.linux.terminal import Terminal
from examples.vmm.streams import FdSource, Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.vmm.linux.uart import Input

_IN, _OUT = 0, 1


class Console(NamedTuple):
    """A console's two ends.

    Attributes:
        output: For what the guest says.
        source: What is typed; None: nothing will be.
        terminal: The same as ``source``, if it is a terminal: its ``run()`` is to be run.
    """

    output: Output
    source: Input | None
    terminal: Terminal | None


@contextlib.contextmanager
def opened(where: str) -> Iterator[Console]:
    """Open a console. A terminal is raw meanwhile.

    Args:
        where: ``tty``, or a path: a terminal's, or that of a file which gets the output and is made if it is not there.

    Raises:
        OSError: It cannot be opened.
    """
    if where == TERMINAL:
        # Python has no sys.stdin when it was started with descriptor 0 closed; by now that number may be anybody's.
        with _with_input(_OUT, "standard output", None if sys.stdin is None else _IN, "standard input") as console:
            yield console
        return
    fd = os.open(where, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    try:
        with _with_input(fd, where, fd if stat.S_ISCHR(os.fstat(fd).st_mode) else None, where) as console:
            yield console
    finally:
        os.close(fd)


@contextlib.contextmanager
def _with_input(output: int, output_name: str, source: int | None, source_name: str) -> Iterator[Console]:
    written = Output(output, output_name)
    if source is None:
        yield Console(written, None, None)
    elif os.isatty(source):
        with Terminal(source, source_name) as terminal:
            yield Console(written, terminal, terminal)
    else:
        yield Console(written, FdSource(source, source_name), None)
