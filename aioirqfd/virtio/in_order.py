"""The order of a receive queue's answers: that of its requests.

Where such a queue stops, what it has not answered goes back to the driver by nothing but a number: how far the device has
come. A buffer answered ahead of an older one would be taken for the older one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioirqfd.virtio.chain import Chain


@final
class InOrder:
    """The requests that a receive queue has, oldest first, and the answers that an older one holds up."""

    __slots__ = ("_held", "_requests")

    def __init__(self) -> None:
        self._requests: deque[Chain] = deque()
        self._held: dict[Chain, int] = {}

    def add(self, request: Chain) -> None:
        """A request was taken."""
        self._requests.append(request)

    def ready(self, answers: Iterable[tuple[Chain, int]]) -> list[tuple[Chain, int]]:
        """Return, of the answers held up and of these, those that no older request holds up."""
        held, requests = self._held, self._requests
        held.update(answers)
        ready: list[tuple[Chain, int]] = []
        while requests and (written := held.pop(requests[0], None)) is not None:
            ready.append((requests.popleft(), written))
        return ready

    def forget(self, request: Chain) -> None:
        """A request is never answered: it holds up no other any more."""
        self._requests.remove(request)

    def clear(self) -> None:
        """The ring has gone."""
        self._requests.clear()
        self._held.clear()
