"""Look into a running program: one tree of everything that an interrupt can be in, read when somebody asks.

:func:`read` gives any part of it as a value that ``json`` takes, in any thread; :func:`serve` gives it to other processes, by a
socket, for which ``aioirqfd inspect`` and ``aioirqfd top`` are made; :func:`write` changes what may be changed.
"""

from __future__ import annotations

from aioirqfd.inspect.client import InspectClient
from aioirqfd.inspect.server import InspectServer, serve
from aioirqfd.inspect.tree import InspectError, read, write

__all__ = ["InspectClient", "InspectError", "InspectServer", "read", "serve", "write"]
