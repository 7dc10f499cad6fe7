"""``aioirqfd chaos DEVICE``: serves any device of yours, which misbehaves on command."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aioirqfd.faults import FAULTS, Faults
from aioirqfd.faults.command import USAGE
from aioirqfd.faults.control import Control
from aioirqfd.faults.program import read_script, serve
from aioirqfd.inspect.service import Inspected
from aioirqfd.pci import PciDevice
from aioirqfd.serving.options import add_options, watched
from aioirqfd.serving.terminal import Terminal
from aioirqfd.vfio_user import Server
from aioirqfd.vhost_user import Backend
from aioirqfd.virtio import Device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.serving.program import Service
    from aioirqfd.tracer import Tracer

_WRONG: Final = 1
_EXAMPLES: Final = """\
examples:
  aioirqfd chaos my_disk:Disk disk.img --socket-path blk.sock --control chaos.sock
  aioirqfd chaos my_disk:Disk disk.img --socket-path blk.sock --script faults.txt --log chaos.log
  aioirqfd chaos my_nic:Nic --socket-path nic.sock --replay chaos.log
  aioirqfd chaos --list"""


def parser() -> argparse.ArgumentParser:
    """Its options."""
    commands = "\n".join(f"  {usage}" for usage in USAGE.values())
    made = argparse.ArgumentParser(
        prog="aioirqfd chaos",
        description="Serve a device that misbehaves on command, by vhost-user or vfio-user.",
        epilog=f"{_EXAMPLES}\n\ncommands, of a script or the control socket:\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("device", metavar="DEVICE", nargs="?", help="MODULE:CLASS, a virtio Device or a PciDevice")
    made.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="handed to the class; NAME=VALUE by name")
    made.add_argument("--socket-path", metavar="PATH", help="where to listen for QEMU")
    made.add_argument("--control", metavar="PATH", help="where to listen for commands at run time")
    made.add_argument("--script", metavar="PATH", help="a file of commands to carry out")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the random choices (0)")
    made.add_argument("--log", metavar="PATH", help="write what happens, as lines of JSON")
    made.add_argument("--replay", metavar="PATH", help="do what a log says, in its order")
    made.add_argument("--nonconforming", action="store_true", help="take faults that no conforming device may make")
    add_options(made)
    made.add_argument("--list", action="store_true", help="list the faults, and what specifications say of them")
    return made


def run(arguments: Sequence[str]) -> int:
    """Serve a device until SIGINT or SIGTERM.

    Args:
        arguments: As on the command line, without the command's name.

    Returns:
        The exit status: 0; 1 where the user has done something wrong, with a line on standard error that says what.
    """
    options = parser().parse_args(arguments)
    if options.list:
        _list()
        return 0
    if options.device is None or options.socket_path is None:
        parser().error("DEVICE and --socket-path must be given")
    try:
        _serve(options)
    except (OSError, ValueError, TypeError) as error:
        print(f"aioirqfd chaos: {error}", file=sys.stderr)
        return _WRONG
    return 0


def _serve(options: argparse.Namespace) -> None:
    made = _class(options.device)
    positional, named = _split(options.arguments)
    device = made(*positional, **named)
    with contextlib.closing(device), watched(options, Terminal("chaos")) as tracer:
        faults = Faults(seed=options.seed, nonconforming=options.nonconforming, log=options.log, tracer=tracer)
        with contextlib.closing(faults):
            faults.wrap(device)
            control = Control(faults)
            commands = read_script(control, options.script)
            asyncio.run(_run(device, faults, control, commands, options, tracer))


async def _run(
    device: Device | PciDevice,
    faults: Faults,
    control: Control,
    commands: Sequence[Any],
    options: argparse.Namespace,
    tracer: Tracer,
) -> None:
    if options.replay is not None:
        faults.replay(options.replay)
    service: Service
    if isinstance(device, Device):
        service = Backend(device, options.socket_path, tracer=tracer)
    else:
        service = Server(device, options.socket_path, tracer=tracer)
    await serve(Inspected(service, options.inspect), control, commands=commands, socket=options.control, say=_say)


def _say(text: str) -> None:
    print(f"chaos: {text}", flush=True)


def _class(name: str) -> Callable[..., Device | PciDevice]:
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise ValueError(f"a device is MODULE:CLASS, not {name!r}")
    # The directory that the command is called in, as with `python -m`.
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: {error}; modules are looked for in {Path.cwd()}, too") from None
    if not isinstance(found, type) or not issubclass(found, Device | PciDevice):
        raise TypeError(f"{name} is no virtio Device and no PciDevice, but {found!r}")
    return found


def _split(arguments: Sequence[str]) -> tuple[list[object], dict[str, object]]:
    positional: list[object] = []
    named: dict[str, object] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name.isidentifier():
            named[name] = _value(value)
        else:
            positional.append(_value(argument))
    return positional, named


def _value(text: str) -> object:
    if text in {"True", "False"}:
        return text == "True"
    try:
        return int(text, 0)
    except ValueError:
        return text


def _list() -> None:
    for word, fault in FAULTS.items():
        for stage, rule in fault.rules.items():
            print(f"{word:16} {stage:10} {'conforming' if rule.conforming else 'not':11} {rule.section}")
