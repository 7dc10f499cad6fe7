"""Counts and drains: the C-accelerated counter module, its pure-Python twin, and the choice between them.

``AIOIRQFD_PURE_PYTHON=1`` in the environment forces the twin; where the native module was not built it is used by itself.
No asyncio in here. The twin says what there is, and of which types; the native module has the same, to which a test holds it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING or os.environ.get("AIOIRQFD_PURE_PYTHON", "") not in {"", "0"}:
    from aioirqfd.counter._python import MAX, Counter, Drain, EventFdCtx, FlightRing, Stepped, TopHalf, fdinfo
else:
    try:
        from aioirqfd.counter._native import MAX, Counter, Drain, EventFdCtx, FlightRing, Stepped, TopHalf, fdinfo
    except ImportError:
        from aioirqfd.counter._python import MAX, Counter, Drain, EventFdCtx, FlightRing, Stepped, TopHalf, fdinfo

IMPLEMENTATION: Final[str] = "python" if Drain.__module__.startswith(f"{__name__}._python") else "c"
"""Which one is live: ``"c"`` or ``"python"``."""

__all__ = ["IMPLEMENTATION", "MAX", "Counter", "Drain", "EventFdCtx", "FlightRing", "Stepped", "TopHalf", "fdinfo"]
