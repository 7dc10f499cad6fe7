"""``python -m aioirqfd``: the command ``aioirqfd``."""

from __future__ import annotations

import sys

from aioirqfd.cli import main

if __name__ == "__main__":
    sys.exit(main())
