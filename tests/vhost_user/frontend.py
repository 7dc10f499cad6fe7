"""The front-end that plays QEMU over the real socket: :mod:`aioirqfd.testing.frontend`."""

from __future__ import annotations

from aioirqfd.testing.frontend import BASE, FEATURES, PROTOCOL_FEATURES, FrontEnd, Queue, connected

__all__ = ["BASE", "FEATURES", "PROTOCOL_FEATURES", "FrontEnd", "Queue", "connected"]
