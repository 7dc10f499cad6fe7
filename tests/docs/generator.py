"""The scripts that write parts of the documentation, which are no package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
try:
    generate = importlib.import_module("generate")
    picture_costs = importlib.import_module("picture_costs")
    picture_read = importlib.import_module("picture_read")
    picture_states = importlib.import_module("picture_states")
    svg = importlib.import_module("svg")
finally:
    del sys.path[0]
