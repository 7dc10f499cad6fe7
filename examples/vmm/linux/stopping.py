"""The signals by which a user, a shell or a supervisor ends a program."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final, Self, final

if TYPE_CHECKING:
    from types import TracebackType

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@final
class Stopping:
    """Hears them instead of dying of them, so that everything is left as it was found. A context manager, on the main thread's loop.

    What was ignored from the start (``nohup``) stays so.
    """

    def __init__(self) -> None:
        self._received: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._heard:
            loop.add_signal_handler(number, self._hear, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in self._heard:
            loop.remove_signal_handler(number)

    @property
    def received(self) -> signal.Signals | None:
        """The first one; None: none yet."""
        return self._received.result() if self._received.done() else None

    async def wait(self) -> signal.Signals:
        """Wait for the first one."""
        return await asyncio.shield(self._received)

    def _hear(self, number: signal.Signals) -> None:
        if not self._received.done():
            self._received.set_result(number)
