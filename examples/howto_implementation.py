"""Which implementation is live: the C module, or its twin in pure Python."""

from __future__ import annotations

import aioirqfd

print({"c": "the C module", "python": "pure Python"}[aioirqfd.IMPLEMENTATION])
