"""A device that misbehaves, as a program: with a script, a control socket, and a log."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from aioirqfd.serving.sockets import listening, serve_streams, socket_path

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from aioirqfd.faults.command import Command
    from aioirqfd.faults.control import Control
    from aioirqfd.serving.program import Service


def read_script(control: Control, path: str | os.PathLike[str] | None) -> list[Command]:
    """Read a script as a whole; None: there is none.

    Raises:
        ValueError: A line is no command; with the path, and the line's number.
        OSError: It cannot be read.
    """
    if path is None:
        return []
    try:
        return control.parse_script(Path(path).read_text("utf-8").splitlines())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


async def serve(
    service: Service,
    control: Control,
    *,
    commands: Sequence[Command],
    socket: str | os.PathLike[str] | None,
    say: Callable[[str], object],
) -> None:
    """Serve until SIGINT or SIGTERM, or until there is nobody any more to serve.

    Args:
        service: What serves the device.
        control: What carries out commands.
        commands: A script.
        socket: Where to listen for commands at run time; None: nowhere.
        say: Hears that the device is ready, and of each command of the script what came of it.

    Raises:
        ValueError: The script cannot go on: whoever reads the results would take them for the script's.
        OSError: It cannot listen.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        if socket is not None:
            listener = stack.enter_context(await listening(socket_path(socket)))
            server = await serve_streams(control.serve, listener)
            stack.callback(server.close)
        await stack.enter_async_context(service)
        say("ready")
        script = asyncio.create_task(control.run_script(commands, say))
        script.add_done_callback(lambda task: None if task.cancelled() or task.exception() is None else stop.set())
        stack.callback(script.cancel)
        over = asyncio.create_task(service.serve_forever())
        over.add_done_callback(lambda _: stop.set())
        await stop.wait()
        over.cancel()
        if script.done():
            script.result()
