"""A program's service with its tree beside it: for those that have ``--inspect PATH``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self, final

from aioirqfd.inspect.server import serve

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from aioirqfd.serving.program import Service


@final
class Inspected:
    """Serves a device and, at a path, the tree of this process.

    Args:
        service: What serves the device.
        path: Where the tree is served; None: nowhere.
    """

    def __init__(self, service: Service, path: str | os.PathLike[str] | None) -> None:
        self._service = service
        self._path = path
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            if self._path is not None:
                await stack.enter_async_context(await serve(self._path))
            await stack.enter_async_context(self._service)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def serve_forever(self) -> None:
        """As the device's service."""
        await self._service.serve_forever()
