"""The errors of the vfio-user server, one branch of the package's tree.

::

    IrqfdError
    +-- VfioUserError
        +-- VfioUserProtocolError    a message that breaks the protocol: answered as an error, and the connection is closed
        +-- RefusedError             a message that asks for what cannot be: answered with an errno, and nothing was changed
"""

from __future__ import annotations

from aioirqfd.errors import IrqfdError


class VfioUserError(IrqfdError):
    """The root of every error of :mod:`aioirqfd.vfio_user`."""


class VfioUserProtocolError(VfioUserError):
    """A message that breaks the protocol; the stream cannot be trusted from here on.

    Args:
        detail: What is wrong, in words.
        message: Number and command of the message, where its header says so much.
    """

    def __init__(self, detail: str, message: tuple[int, int] | None = None) -> None:
        super().__init__(detail)
        self.message = message


class RefusedError(VfioUserError):
    """A well-formed message that asks for what cannot be.

    Args:
        errno: What it is answered with.
        detail: Why, in words.
    """

    def __init__(self, errno: int, detail: str) -> None:
        super().__init__(detail)
        self.errno = errno
