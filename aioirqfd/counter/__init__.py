"""Counts and drains: the C-accelerated counter module, its pure-Python twin, and the choice between them.

``AIOIRQFD_PURE_PYTHON=1`` in the environment forces the twin; where the native module was not built it is used by itself.
No asyncio in here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aioirqfd.counter._python import (
        MAX,
        Counter,
        Drain,
        EventFdCtx,
        FlightRing,
        Kicks,
        Stepped,
        TopHalf,
        Transfer,
        begin,
        fdinfo,
        walk,
    )

    IMPLEMENTATION: Final[str] = ""
    """Which one is live: ``"c"`` or ``"python"``."""
elif os.environ.get("AIOIRQFD_PURE_PYTHON", "") not in {"", "0"}:
    from aioirqfd.counter._python import (
        MAX,
        Counter,
        Drain,
        EventFdCtx,
        FlightRing,
        Kicks,
        Stepped,
        TopHalf,
        Transfer,
        begin,
        fdinfo,
        walk,
    )

    IMPLEMENTATION = "python"
else:
    try:
        from aioirqfd.counter._native import (
            MAX,
            Counter,
            Drain,
            EventFdCtx,
            FlightRing,
            Kicks,
            Stepped,
            TopHalf,
            Transfer,
            begin,
            fdinfo,
            walk,
        )

        IMPLEMENTATION = "c"
    except ImportError:
        from aioirqfd.counter._python import (
            MAX,
            Counter,
            Drain,
            EventFdCtx,
            FlightRing,
            Kicks,
            Stepped,
            TopHalf,
            Transfer,
            begin,
            fdinfo,
            walk,
        )

        IMPLEMENTATION = "python"

__all__ = [
    "IMPLEMENTATION",
    "MAX",
    "Counter",
    "Drain",
    "EventFdCtx",
    "FlightRing",
    "Kicks",
    "Stepped",
    "TopHalf",
    "Transfer",
    "begin",
    "fdinfo",
    "walk",
]
