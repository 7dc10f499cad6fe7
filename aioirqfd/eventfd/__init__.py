"""An awaitable eventfd, and the one private epoll per loop behind it."""

from __future__ import annotations

from aioirqfd.eventfd.eventfd import EventFd
from aioirqfd.eventfd.poller import Poller

__all__ = ["EventFd", "Poller"]
