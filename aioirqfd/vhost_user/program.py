"""Back-ends as programs, with the options that the vhost-user specification sets down for them ("Backend program conventions").

So those who start and look after such programs, as libvirt does, need not know whose they are. The same program serves its device
by vfio-user, if it is told to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Final, TypedDict

from aioirqfd.inspect.service import Inspected
from aioirqfd.serving.options import add_options, watched
from aioirqfd.serving.program import serve
from aioirqfd.serving.reports import name_of
from aioirqfd.serving.sockets import listens
from aioirqfd.serving.terminal import Terminal
from aioirqfd.vhost_user.backend import Backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.tracer import Tracer
    from aioirqfd.virtio.device import Device

RECONNECT: Final = 1.0
"""Seconds after which a program with ``--connect`` tries again."""
_CAPABILITIES: Final = "--print-capabilities"
_VHOST_USER: Final = "vhost-user"
_VFIO_USER: Final = "vfio-user"


class Place(TypedDict, total=False):
    """Where to serve, as :class:`Backend` and :func:`run` take it."""

    path: str
    sock: socket.socket
    connect: bool
    reconnect: float


def parse(
    parser: argparse.ArgumentParser, *, kind: str, features: Sequence[str] = (), argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Add the options of a back-end program to a parser, and read the command line.

    They are ``--socket-path PATH`` and ``--fd FDNUM``, one of which must be given, ``--connect`` and
    ``--print-capabilities``; and ``--trace``, ``--record`` and ``--inspect``.

    Args:
        parser: It has the program's own options.
        kind: What ``--print-capabilities`` says that it is: ``VHostUserBackendType`` of QEMU's ``vhost-user.json``, such as
            "block", "net", "rng".
        features: What it says that it can, by the same list: options beyond those that each such program has.
        argv: The arguments; None: the process's.

    Returns:
        The options; :func:`place` reads from them where to serve.

    Raises:
        SystemExit: As :meth:`argparse.ArgumentParser.parse_args`; and 0 after ``--print-capabilities``.
    """
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket-path", metavar="PATH", help="where to listen for the front-end")
    where.add_argument(
        "--fd", metavar="FDNUM", type=number(0), help="a socket that is open already: it listens, or is connected"
    )
    parser.add_argument(
        "--connect", action="store_true", help=f"the front-end listens at PATH; try again every {RECONNECT:g} s"
    )
    parser.add_argument(_CAPABILITIES, action="store_true", help="say as JSON what this program can, and exit")
    add_options(parser)
    arguments = sys.argv[1:] if argv is None else list(argv)
    if _CAPABILITIES in arguments:
        # Whatever else is there is to be ignored, wrong or not.
        print(json.dumps({"type": kind, "features": list(features)}, indent=2))
        parser.exit()
    options = parser.parse_args(arguments)
    if options.connect and options.fd is not None:
        parser.error("argument --connect: not allowed with argument --fd")
    return options


def place(options: argparse.Namespace) -> Place:
    """Return where to serve, by the options that :func:`parse` has read: ``run(device, **place(options))``.

    Raises:
        OSError: ``--fd`` is no open socket.
        ValueError: It is none to serve on.
    """
    if options.fd is not None:
        try:
            sock = socket.socket(fileno=options.fd)
        except OSError as error:
            raise OSError(error.errno, f"--fd {options.fd}: {error.strerror}") from None
        os.set_inheritable(options.fd, False)
        listens(sock)
        return Place(sock=sock)
    if options.connect:
        return Place(path=options.socket_path, connect=True, reconnect=RECONNECT)
    return Place(path=options.socket_path)


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what reads an integer of a range from the command line: a ``type`` for an option."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            bound = f"{least} or more" if most is None else f"{least}..{most}"
            raise argparse.ArgumentTypeError(f"a number, {bound}, not {text!r}")
        return value

    return read


def run(
    device: Device,
    path: str | os.PathLike[str] | None = None,
    *,
    sock: socket.socket | None = None,
    connect: bool = False,
    reconnect: float | None = None,
    tracer: Tracer | None = None,
    inspect: str | os.PathLike[str] | None = None,
) -> None:
    """Serve a device until SIGINT or SIGTERM: the whole main program of a back-end. On uvloop, where it is installed.

    Prints a line when it is ready. Ends, too, when the only front-end that there is to be has gone.

    Args:
        device: The device.
        path: Where the socket is made.
        sock: Instead of a path, a socket, as for :class:`Backend`.
        connect: The front-end listens at the path.
        reconnect: With ``connect``: seconds until it tries again.
        tracer: Hears what happens. Without one, standard error hears what a front-end or a guest has done wrong.
        inspect: Where to serve the tree of :mod:`aioirqfd.inspect`, too.

    Raises:
        SystemExit: It cannot listen at the path, or connect to it, with a line that says why.
    """
    name = name_of(device)
    tracer = Terminal(name) if tracer is None else tracer
    backend = Backend(device, path, sock=sock, connect=connect, reconnect=reconnect, tracer=tracer)
    if sock is not None:
        where = f"serving on fd {sock.fileno()}"
    else:
        where = f"{'connecting to' if connect else 'listening at'} {os.fspath(path or '')!r}"
    serve(Inspected(backend, inspect), f"{name}: {where}", path, inspect)


def main(
    make: Callable[[argparse.Namespace], Device],
    *,
    kind: str,
    features: Sequence[str] = (),
    parser: argparse.ArgumentParser | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Be a back-end program: read the command line, make the device, serve it until SIGINT or SIGTERM, close it.

    What a user can do wrong ends it with a line that says what, and exit status 1; a wrong command line with 2.

    With ``--transport vfio-user`` it is a server of vfio-user instead, and the device a PCI function (:class:`aioirqfd.virtio_pci.VirtioPci`).

    Args:
        make: Makes the device from the options. What it raises as OSError or ValueError is what the user did wrong.
        kind: As for :func:`~aioirqfd.vhost_user.program.parse`.
        features: As for :func:`~aioirqfd.vhost_user.program.parse`.
        parser: It has the program's own options; None: there are none.
        argv: The arguments; None: the process's.

    Raises:
        SystemExit: It could not serve.
    """
    parser = parser or argparse.ArgumentParser()
    parser.add_argument(
        "--transport", choices=(_VHOST_USER, _VFIO_USER), default=_VHOST_USER, help=f"what QEMU speaks ({_VHOST_USER})"
    )
    options = parse(parser, kind=kind, features=features, argv=argv)
    by_vfio_user = options.transport == _VFIO_USER
    if by_vfio_user and (options.connect or options.socket_path is None):
        parser.error(f"argument --transport: {_VFIO_USER} is for --socket-path, without --connect")
    with contextlib.ExitStack() as stack:
        try:
            where = place(options)
            device = make(options)
            stack.callback(device.close)
            tracer = stack.enter_context(watched(options, Terminal(name_of(device))))
        except (OSError, ValueError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        if by_vfio_user:
            _run_by_vfio_user(device, options, tracer)
        else:
            run(device, **where, tracer=tracer, inspect=options.inspect)


def _run_by_vfio_user(device: Device, options: argparse.Namespace, tracer: Tracer) -> None:
    from aioirqfd import vfio_user  # noqa: PLC0415  start-up time that only this way costs
    from aioirqfd.virtio_pci import VirtioPci  # noqa: PLC0415  as above

    vfio_user.run(VirtioPci(device), options.socket_path, tracer=tracer, inspect=options.inspect)
