"""The command line, ``aioirqfd``."""

from __future__ import annotations

from aioirqfd.cli.main import main

__all__ = ["main"]
