"""A tracer for a program that was given none: what its user must know, in lines on standard error."""

from __future__ import annotations

import contextlib
import sys
from typing import Final, final

_TROUBLE: Final = frozenset(
    {
        "client_disconnected",
        "device_trouble",
        "frontend_disconnected",
        "inflight_too_small",
        "message_refused",
        "reply_unexpected",
        "twin_socket_failed",
        "vring_stopped",
    }
)


@final
class Terminal:
    """Says what a front-end or a guest has done wrong, and nothing else.

    What was raised goes to the loop's exception handler instead, with its traceback (:class:`Reports`).

    Args:
        name: What each line begins with.
    """

    per_interrupt = False
    listens = False

    def __init__(self, name: str) -> None:
        self._name = name

    def emit(self, event: str, /, **fields: object) -> None:
        """Say it, if it is trouble."""
        fields.pop("exc_info", None)
        reason = fields.get("reason", event)
        if event in _TROUBLE and reason is not None and reason != GONE:
            said = " ".join(f"{name}={value!r}" for name, value in fields.items())
            with contextlib.suppress(OSError):  # nobody reads it
                print(f"{self._name}: {event} {said}", file=sys.stderr, flush=True)


GONE: Final = "the front-end has gone"
"""Why a ring has stopped that nobody has broken."""
