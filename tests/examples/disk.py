"""The disk that the examples' devices have."""

from __future__ import annotations

SECTORS = 2048
