"""Which implementation is live: the C module, or its twin in pure Python."""

from __future__ import annotations

# docs: begin example
import aioirqfd

print({"c": "the C module", "python": "pure Python"}[aioirqfd.IMPLEMENTATION])
# docs: end example
