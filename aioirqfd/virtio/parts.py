"""What a virtqueue is given by whoever starts it: where its ring lies, and what remembers its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


class RingAddress(Protocol):
    """Where a ring lies, in the terms of :meth:`GuestMemory.user_view <aioirqfd.virtio.memory.GuestMemory.user_view>`."""

    @property
    def descriptor(self) -> int:
        """The descriptor table."""
        ...

    @property
    def available(self) -> int:
        """The available ring."""
        ...

    @property
    def used(self) -> int:
        """The used ring."""
        ...


class InflightPart(Protocol):
    """What remembers a ring's requests beyond the end of this process, where a transport has such a thing: vhost-user does."""

    @property
    def queue_size(self) -> int:
        """How many descriptors it has room for."""
        ...

    @property
    def view(self) -> memoryview:
        """Its memory."""
        ...

    def begin(self, head: int) -> None:
        """Mark a request as in flight."""

    def link(self, head: int) -> None:
        """Add a request to the batch that is about to go into the used ring."""

    def commit(self, heads: Iterable[int], used_idx: int) -> None:
        """Forget the requests of a batch, once the used ring's index says that they are done."""

    def recover(self, used_idx: int) -> list[int]:
        """Return the heads in flight, oldest first. Raises InflightError."""
        ...
