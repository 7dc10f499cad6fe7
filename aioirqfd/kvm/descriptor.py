"""What the three kinds of KVM file descriptors have in common: one owner, ioctls, and an end.

Two ways lead to ``ioctl(2)``. A structure goes through :func:`fcntl.ioctl`, whose call costs least and which releases
the GIL for anything up to 1024 bytes. A plain number goes through ctypes, for two reasons. ``fcntl.ioctl`` takes only a
C ``int``, so an address above 2**31 does not fit. And from Python 3.14 on it repeats a call that fails with EINTR,
which for ``KVM_RUN`` means that a kicked vCPU would be entered again and again and ``run()`` never return.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import sys
import warnings
from typing import TYPE_CHECKING, Final, Protocol

from aioirqfd.errors import ClosedError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_libc.ioctl.restype = ctypes.c_int

_PACKAGE: Final = __name__.rpartition(".")[0]
_U32: Final = 2**32


class HasFileno(Protocol):
    """Anything with a file descriptor: an ``EventFd``, a socket, a file."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


def fd_word(fd: int | HasFileno) -> int:
    """A descriptor as the kernel's structures hold it: -1 is 2**32-1, other ints pass as they are."""
    return (fd if isinstance(fd, int) else fd.fileno()) & (_U32 - 1)


def packed(layout: struct.Struct, *values: int) -> bytearray:
    """The values as the kernel's structure.

    Raises:
        ValueError: One does not fit its field. (ctypes would cut it off, and another gsi would be meant.)
    """
    try:
        return bytearray(layout.pack(*values))
    except struct.error as error:
        raise ValueError(f"one of {values} does not fit its field: {error}") from None


def int_ioctl(fd: int, request: int, arg: int) -> int:
    """``ioctl(2)`` with a plain number (0..2**64-1), once: not repeated on EINTR. Releases the GIL.

    Raises:
        OSError: With the errno of the call.
    """
    result: int = _libc.ioctl(fd, request, arg)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _made_at() -> str:
    frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  inspect costs an import
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Descriptor:
    """Owns one KVM file descriptor. A context manager; dropped open, it warns with where it was made, and closes.

    Args:
        fd: The descriptor, which is this object's from now on.

    Threads: Every method may be called from any thread, but closing while another thread is in a call is the caller's
    mistake, as with any file descriptor: the number may have been given to another file by then.
    """

    __slots__ = ("__weakref__", "_fd", "_made_at")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._made_at = _made_at()

    def fileno(self) -> int:
        """The descriptor.

        Raises:
            ClosedError: EBADF, after close.
        """
        if self._fd < 0:
            raise self._closed_error()
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def ioctl(self, request: int, arg: int | bytearray | ctypes.Structure = 0) -> int:
        """Any ioctl, with nothing checked on the way: what the kernel says is what the caller gets.

        Args:
            request: The ioctl number.
            arg: A number or an address (0..2**64-1), or a buffer that the kernel reads and writes in place.

        Returns:
            The result of the call, 0 or more.

        Raises:
            OSError: With the errno of the call, unchanged; EINTR too for a number.
            ClosedError: EBADF, after close.
        """
        fd = self.fileno()
        if isinstance(arg, int):
            return int_ioctl(fd, request, arg)
        result: int = fcntl.ioctl(fd, request, arg)
        return result

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"this {type(self).__name__} is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"

    def __del__(self) -> None:
        # getattr: the constructor of a subclass may have failed before there was a descriptor.
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}, made at {self._made_at}", ResourceWarning, source=self, stacklevel=2)
            self.close()
