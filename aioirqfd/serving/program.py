"""The main program of whatever serves a device: until SIGINT or SIGTERM, on uvloop where it is installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    class Service(AbstractAsyncContextManager[object], Protocol):
        """What serves a device while it is open."""

        async def serve_forever(self) -> None:
            """Wait as long as there may be somebody to serve."""


def serve(service: Service, ready: str, *paths: str | os.PathLike[str] | None) -> None:
    """Serve until SIGINT or SIGTERM, or until there is nobody any more to serve.

    Args:
        service: What serves.
        ready: What is printed when it is ready.
        paths: Where it serves: an OSError with one of these file names is what the user did wrong.

    Raises:
        SystemExit: It cannot serve at a path, with a line that says why.
    """
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415  optional: a turn of its loop costs a third

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            runner.run(_serve(service, ready))
        except OSError as error:
            if error.filename not in [os.fsdecode(path) for path in paths if path is not None]:
                raise
            raise SystemExit(str(error)) from None


async def _serve(service: Service, ready: str) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with service:
        with contextlib.suppress(OSError):  # nobody reads it
            print(ready, flush=True)
        over = asyncio.create_task(service.serve_forever())
        over.add_done_callback(lambda _: stop.set())
        await stop.wait()
        over.cancel()
