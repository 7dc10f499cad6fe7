"""Processes that do nothing, as fast as they can."""

from __future__ import annotations

import contextlib
import subprocess
import sys


@contextlib.contextmanager
def busy(count):
    """So many of them."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield
