"""An eventfd that is closed at the end, and a process that has no room for another descriptor."""

from __future__ import annotations

import contextlib
import os
import resource

import pytest

from aioirqfd import EventFd


@pytest.fixture
def efd():
    with EventFd() as efd:
        yield efd


@pytest.fixture
def no_room():
    """A context in which no fd can be opened, or only so many."""

    @contextlib.contextmanager
    def full(*, leaving=0):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        # The limit is on the number, so whatever is free below it has to be taken.
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(lowest, 256), limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            for _ in range(leaving):
                os.close(taken.pop())
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)

    return full
