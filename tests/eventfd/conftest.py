"""An eventfd that is closed at the end."""

from __future__ import annotations

import pytest

from aioirqfd import EventFd


@pytest.fixture
def efd():
    with EventFd() as efd:
        yield efd
