"""The user's terminal as the guest's: every key goes to the guest, but Ctrl-a and the next one.

What the guest sends is for the terminal as it is, so nothing is added on the way out either (not even a carriage return).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import termios
import tty
from typing import TYPE_CHECKING, Final, Self, final

from examples.vmm.streams import FdSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

CTRL_A: Final = b"\x01"
HELP: Final = "Ctrl-a x leaves, Ctrl-a Ctrl-a is Ctrl-a"
_AHEAD: Final = 65536
"""Keys kept for a guest that does not read. They are read ahead, or one could not leave a guest that hangs."""


@final
class Escape:
    """Finds Ctrl-a in what is typed: Ctrl-a x leaves, Ctrl-a Ctrl-a is one Ctrl-a, and with any other key both are meant.

    Attributes:
        left: Whether Ctrl-a x has been typed; what comes after it is nobody's.
    """

    def __init__(self) -> None:
        self._begun = False
        self.left = False

    def feed(self, typed: bytes) -> bytes:
        """What of this is for the guest."""
        keys = bytearray()
        for value in typed:
            key = bytes([value])
            if self._begun:
                self._begun = False
                if key in {b"x", b"X"}:
                    self.left = True
                    break
                keys += key if key == CTRL_A else CTRL_A + key
            elif key == CTRL_A:
                self._begun = True
            else:
                keys += key
        return bytes(keys)


@final
class Terminal:
    """A terminal in raw mode, and what is typed there. A context manager, on the loop's thread (the main one).

    Leaving restores the terminal, for whatever reason it is left. When the process is suspended (``SIGTSTP``, sent by somebody: Ctrl-z is
    the guest's), it is restored as long as that takes; when it goes on, it is raw again.

    Args:
        fd: The terminal, for reading; it stays the caller's.
        name: What people call it, for errors.

    Attributes:
        left: Set when the user wants to leave.

    Raises:
        OSError: It is no terminal.
    """

    def __init__(self, fd: int, name: str = "standard input") -> None:
        self._fd = fd
        self._name = name
        self._escape = Escape()
        self._keys = bytearray()
        self._raw = False
        self._ended = False
        self._changed = asyncio.Event()
        self.left = asyncio.Event()

    def __enter__(self) -> Self:
        try:
            self._before = termios.tcgetattr(self._fd)
        except termios.error as error:
            raise OSError(*error.args, self._name) from error
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            stack.callback(self._restore)
            for number, handler in ((signal.SIGTSTP, self._suspend), (signal.SIGCONT, self._make_raw)):
                loop.add_signal_handler(number, handler)
                stack.callback(loop.remove_signal_handler, number)
            self._make_raw()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    async def run(self) -> None:
        """Take what is typed until the user leaves, or the terminal goes away.

        Raises:
            OSError: It cannot be read.
        """
        source = FdSource(self._fd, self._name)
        try:
            while not self._escape.left and (typed := await source.read(4096)):
                self._keys += self._escape.feed(typed)
                self._changed.set()
                await self._until(lambda: len(self._keys) < _AHEAD)
            if self._escape.left:
                self.left.set()
        except OSError as error:
            if error.errno != errno.EIO:  # it has hung up, which is an end in two ways
                raise
        finally:
            self._ended = True
            self._changed.set()

    async def read(self, size: int) -> bytes:
        """At most ``size`` keys, at least one; none once nothing more will be typed. :meth:`run` is running meanwhile."""
        await self._until(lambda: bool(self._keys) or self._ended)
        keys = bytes(self._keys[:size])
        del self._keys[:size]
        self._changed.set()
        return keys

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    def _make_raw(self) -> None:
        # In the background this stops the process until it is in the foreground, as any that wants the terminal.
        with contextlib.suppress(termios.error):  # it has gone; reading says so
            if not self._raw:
                self._before = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSANOW)
            self._raw = True

    def _restore(self) -> None:
        if not self._raw:
            return
        self._raw = False
        # In the background it must not stop the process: that would be instead of its end.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            # Now, and not when all output is out (TCSADRAIN): a terminal whose output is held would keep the process.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, self._before)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})

    def _suspend(self) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGSTOP)  # what SIGTSTP would have done; SIGCONT makes it raw again
