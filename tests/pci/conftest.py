"""A tracer that hears what a function says, and eventfds of a VMM that looks at them."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from aioirqfd import EventFd
from aioirqfd.testing import RecordingTracer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aioirqfd.pci import Interrupts


class Target:
    """An eventfd of a VMM, and how often it was signalled."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def lend(self) -> EventFd:
        """The end that is handed to the device's side."""
        return EventFd.from_fd(os.dup(self.fd), owns=True)

    def taken(self) -> int:
        """How often it was signalled since the last look."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0


async def settled(interrupts: Interrupts) -> None:
    """Everything that was signalled has been delivered; what is put off by a turn of the loop, too."""
    await interrupts.flush()
    await asyncio.sleep(0)
    await interrupts.flush()


@pytest.fixture
def tracer() -> RecordingTracer:
    return RecordingTracer()


@pytest.fixture
def target() -> Iterator[Callable[[], Target]]:
    made: list[Target] = []

    def make() -> Target:
        made.append(Target())
        return made[-1]

    yield make
    for one in made:
        os.close(one.fd)
