"""Every error this package raises, one tree.

::

    IrqfdError                        the root: catch this to catch everything
    +-- WouldBlock                    (BlockingIOError, EAGAIN)   a read at 0
    +-- ClosedError                   (OSError, EBADF)            used after close, or a closed fd handed in
    +-- EventFdInvalidError           (OSError, EINVAL)           the fd is no eventfd
    +-- EventFdBusyError              (OSError, EBUSY)            the eventfd is bound to an irqfd already
    +-- RoutingError                  (OSError, EINVAL)           a route or a table the kernel would refuse
    +-- IoEventFdInvalidError         (OSError, EINVAL)           a doorbell the kernel would refuse
    +-- IoEventFdExistsError          (OSError, EEXIST)           the doorbell collides with another
    +-- IoEventFdNotFoundError        (OSError, ENOENT)           no such doorbell
    +-- QueueFullError                the work queue is at its bound
    +-- InjectionError                the sink failed; ``__cause__`` is its own error
    +-- WrongLoopError                (RuntimeError)              no running loop, or another one than the object's
    +-- SnapshotError                 (ValueError)                a state that cannot be restored

Where the kernel answers misuse with an errno, the error is an :class:`OSError` with that errno, so that one test can hold
the kernel and this package against the same table (kernel-contract rows I02, I08, I12, G03..G07, O01..O09).
"""

from __future__ import annotations

import errno
import os


class IrqfdError(Exception):
    """The root of every error of this package."""


class _ErrnoError(IrqfdError, OSError):
    """An error that stands for a fixed errno; constructed from a detail alone."""

    _errno: int = 0

    def __init__(self, detail: str = "") -> None:
        text = os.strerror(self._errno)
        super().__init__(self._errno, f"{text}: {detail}" if detail else text)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args))


def _rebuild(cls: type[_ErrnoError], args: tuple[object, ...]) -> _ErrnoError:
    error = cls()
    error.args = args
    error.strerror = str(args[1])
    return error


class WouldBlock(_ErrnoError, BlockingIOError):  # noqa: N818  the name of the condition, as in trio and anyio
    """A non-blocking read found the counter at 0 (EAGAIN; row E14)."""

    _errno = errno.EAGAIN


class ClosedError(_ErrnoError):
    """Used after its close, or an fd that is not open was handed in (EBADF; rows I08, O05)."""

    _errno = errno.EBADF


class EventFdInvalidError(_ErrnoError):
    """The fd is open but is no eventfd (EINVAL; rows I08, I09, O05)."""

    _errno = errno.EINVAL


class EventFdBusyError(_ErrnoError):
    """The eventfd is bound to an irqfd already, perhaps through a dup of its fd (EBUSY; row I12)."""

    _errno = errno.EBUSY


class RoutingError(_ErrnoError):
    """A route, pin, gsi or table that the kernel would refuse (EINVAL; rows G02..G07)."""

    _errno = errno.EINVAL


class IoEventFdInvalidError(_ErrnoError):
    """A doorbell with a length, range or match that the kernel would refuse (EINVAL; rows O01..O03)."""

    _errno = errno.EINVAL


class IoEventFdExistsError(_ErrnoError):
    """The doorbell collides with one that is there (EEXIST; row O07)."""

    _errno = errno.EEXIST


class IoEventFdNotFoundError(_ErrnoError):
    """No doorbell matches in every field (ENOENT; row O09)."""

    _errno = errno.ENOENT


class QueueFullError(IrqfdError):
    """The work queue holds as many items as it may."""


class InjectionError(IrqfdError):
    """A sink or a wakeup handler failed for an irqfd; ``__cause__`` is the error it raised."""


class WrongLoopError(IrqfdError, RuntimeError):
    """Called without a running event loop, or from another loop than the object belongs to."""


class SnapshotError(IrqfdError, ValueError):
    """A snapshot that is malformed, of another version, or does not fit; nothing was changed."""
