"""What the three kinds of KVM file descriptors have in common: one owner, ioctls, and an end.

Two ways lead to ``ioctl(2)``. A structure goes through :func:`fcntl.ioctl`, whose call costs least and which releases
the GIL for anything up to 1024 bytes. A plain number goes through ctypes, for two reasons. ``fcntl.ioctl`` takes only a
C ``int``, so an address above 2**31 does not fit. And from Python 3.14 on it repeats a call that fails with EINTR,
which for ``KVM_RUN`` means that a kicked vCPU would be entered again and again and ``run()`` never return.
"""

from __future__ import annotations

import ctypes
import fcntl
import operator
import os
import struct
import sys
import warnings
from typing import TYPE_CHECKING, Final, Protocol, SupportsIndex, TypeVar, cast, final

from aioirqfd.errors import ClosedError
from aioirqfd.integers import plain
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

_S = TypeVar("_S", bound=ctypes.Structure)
_T = TypeVar("_T")

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_libc.ioctl.restype = ctypes.c_int

_PACKAGE: Final = __name__.rpartition(".")[0]
_U32: Final = 2**32
_BITS: Final = {"I": 32, "Q": 64}


class HasFileno(Protocol):
    """Anything with a file descriptor: an ``EventFd``, a socket, a file."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


def fd_word(fd: int | HasFileno) -> int:
    """A descriptor as the kernel's structures hold it: -1 is 2**32-1, other ints of 32 bits pass as they are.

    Raises:
        ValueError: It has more than 32 bits. (Cut off, it would be another descriptor.)
        TypeError: It is no descriptor and has none.
    """
    try:
        number = operator.index(cast("SupportsIndex", fd))
    except TypeError:
        number = cast("HasFileno", fd).fileno()
    if isinstance(fd, bool):
        raise TypeError(f"a file descriptor is an integer, or something with a fileno(), not {fd!r}")
    if not -(_U32 // 2) <= number < _U32:
        raise ValueError(f"fd {number} does not fit its field, which has 32 bits")
    return number % _U32


def field(name: str, value: int, bits: int) -> int:
    """A number for a field of the kernel's.

    Raises:
        TypeError: It is no integer, or a bool.
        ValueError: It does not fit. (ctypes would cut it off, and another gsi would be meant.)
    """
    number = plain(value, 1 << bits)
    if number is None:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{name} is an integer, not {value!r}")
        raise ValueError(f"{name} {value} does not fit its field, which is 0..2**{bits}-1")
    return number


def filled(structure: type[_S], **fields: int) -> _S:
    """One of the kernel's structures with these numbers in it, each checked. Raises as :func:`field` does."""
    self = structure()
    for name, value in fields.items():
        setattr(self, name, field(name, value, 8 * getattr(structure, name).size))
    return self


@final
class Layout:
    """One of the kernel's structures as bytes, for those that are made often.

    Args:
        format: As for :class:`struct.Struct`, of ``I``, ``Q`` and padding.
        names: What its numbers are called.
    """

    __slots__ = ("_names", "_pack")

    def __init__(self, format: str, names: str) -> None:  # noqa: A002  as struct calls it
        bits = [_BITS[code] for code in format if code in _BITS]
        self._names = tuple(zip(names.split(), bits, strict=True))
        self._pack = struct.Struct(format).pack

    def pack(self, *values: int) -> bytearray:
        """The structure with these numbers in it. Raises as :func:`field` does."""
        try:
            if bool not in map(type, values):
                return bytearray(self._pack(*values))
        except struct.error:
            pass
        return bytearray(
            self._pack(*(field(name, value, bits) for (name, bits), value in zip(self._names, values, strict=True)))
        )


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


def if_there(call: Callable[[], _T], code: int) -> _T | None:
    """The answer of a call; None where the kernel says by this errno that the machine has no such part."""
    try:
        return call()
    except OSError as error:
        if error.errno != code:
            raise
        return None


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
            TypeError: Neither a number nor a buffer.
            ValueError: A number out of range.
        """
        fd = self.fileno()
        if isinstance(arg, (bytearray, ctypes.Structure)):
            result: int = fcntl.ioctl(fd, request, arg)
            return result
        # Not whatever else has a buffer: other libraries' integers do, and the kernel would take their address for the number.
        return int_ioctl(fd, request, field("the argument", arg, 64))

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"this {type(self).__name__} is closed")

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "It owns a file descriptor of this process: make another one where it is needed.")

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
