"""A device as a program: serve it at a path until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import TYPE_CHECKING

from aioirqfd.inspect.service import Inspected
from aioirqfd.serving.options import add_options, watched
from aioirqfd.serving.program import serve
from aioirqfd.serving.reports import name_of
from aioirqfd.serving.terminal import Terminal
from aioirqfd.vfio_user.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.pci.device import PciDevice
    from aioirqfd.tracer import Tracer


def run(
    device: PciDevice,
    path: str | os.PathLike[str],
    *,
    tracer: Tracer | None = None,
    name: str | None = None,
    inspect: str | os.PathLike[str] | None = None,
) -> None:
    """Serve a device until SIGINT or SIGTERM: the whole main program. On uvloop, where it is installed.

    Prints a line when it is ready.

    Args:
        device: The device.
        path: Where the socket is made.
        tracer: Hears what happens. Without one, standard error hears what a client has done wrong.
        name: What its lines begin with; None: the device's name.
        inspect: Where to serve the tree of :mod:`aioirqfd.inspect`, too.

    Raises:
        SystemExit: It cannot listen at the path, with a line that says why.
    """
    name = name_of(device) if name is None else name
    server = Server(device, path, tracer=Terminal(name) if tracer is None else tracer)
    serve(Inspected(server, inspect), f"{name}: listening at {os.fspath(path)!r}", path, inspect)


def main(
    make: Callable[[argparse.Namespace], PciDevice],
    *,
    parser: argparse.ArgumentParser | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Be a program: read the command line, make the device, serve it until SIGINT or SIGTERM, close it.

    What a user can do wrong ends it with a line that says what, and exit status 1; a wrong command line with 2.

    Args:
        make: Makes the device from the options. What it raises as OSError or ValueError is what the user did wrong.
        parser: It has the program's own options, and gets ``--socket-path``, ``--trace``, ``--record`` and ``--inspect``; None: there are no others.
        argv: The arguments; None: the process's.

    Raises:
        SystemExit: It could not serve.
    """
    parser = parser or argparse.ArgumentParser()
    parser.add_argument(
        "--socket-path", metavar="PATH", required=True, help="where to listen for the client, such as QEMU"
    )
    add_options(parser)
    options = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        try:
            device = make(options)
            stack.callback(device.close)
            tracer = stack.enter_context(watched(options, Terminal(name_of(device))))
        except (OSError, ValueError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        run(device, options.socket_path, tracer=tracer, inspect=options.inspect)
