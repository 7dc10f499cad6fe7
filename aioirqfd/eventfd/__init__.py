"""An awaitable eventfd, and the one private epoll per loop behind it."""

from aioirqfd.eventfd.eventfd import EventFd
from aioirqfd.eventfd.poller import Poller

__all__ = ["EventFd", "Poller"]
