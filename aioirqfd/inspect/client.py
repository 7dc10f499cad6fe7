"""The other end of an inspection socket: asks, and waits for the answer."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Final, Self, cast, final

from aioirqfd.inspect.tree import InspectError
from aioirqfd.serving.sockets import socket_path

if TYPE_CHECKING:
    import os
    from types import TracebackType

TIMEOUT: Final = 10.0
"""Seconds until a program that does not answer is given up."""


@final
class InspectClient:
    """A connection to a program that serves its tree (:func:`aioirqfd.inspect.serve`). It blocks: for tools, not for event loops.

    Args:
        path: The socket's.
        timeout: Seconds to wait for each answer.

    Raises:
        OSError: With the path: nobody listens there, or it is somebody else's.

    A context manager.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = TIMEOUT) -> None:
        self.path: Final = socket_path(path)
        self._sock = sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            raise OSError(error.errno, error.strerror or str(error), self.path) from None
        self._lines = sock.makefile("rb")
        self._over: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; idempotent."""
        self._over = self._over or "this client is closed"
        self._lines.close()
        self._sock.close()

    def read(self, path: str = "", depth: int | None = None) -> object:
        """As :func:`aioirqfd.inspect.read`, there.

        Raises:
            InspectError: What the program answers, if it cannot; or it has gone, or does not answer in time. After that
                the client is of no use any more.
        """
        return self._ask({"path": path, "depth": depth})

    def write(self, path: str, value: object) -> None:
        """As :func:`aioirqfd.inspect.write`, there.

        Raises:
            InspectError: The same.
        """
        self._ask({"path": path, "set": value})

    def _ask(self, request: dict[str, object]) -> object:
        if self._over is not None:
            raise InspectError(f"{self.path}: {self._over}; connect anew")
        try:
            self._sock.sendall(json.dumps(request).encode() + b"\n")
            line = self._lines.readline()
        except TimeoutError:
            # What comes after all is the answer to this question, and not to the next one.
            self._over = "the program has not answered in time: its event loop is busy"
            raise InspectError(f"{self.path}: {self._over}") from None
        except ConnectionError:
            line = b""
        except OSError as error:
            self._over = f"the connection is of no use any more: {error.strerror or error}"
            raise InspectError(f"{self.path}: {self._over}") from None
        if not line.endswith(b"\n"):
            self._over = "the program has hung up"
            raise InspectError(f"{self.path}: {self._over}")
        answer = cast("dict[str, object]", json.loads(line))
        if "error" in answer:
            raise InspectError(str(answer["error"]))
        return answer["value"]
