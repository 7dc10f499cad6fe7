"""What was in this package before it was every transport's: found by its old name, with a warning that says the new one."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def moved(module: str, home: str, *names: str) -> Callable[[str], object]:
    """The ``__getattr__`` of a module some of whose names are in ``home`` now."""

    def find(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is {home}.{name} now", DeprecationWarning, stacklevel=2)
        found: object = getattr(importlib.import_module(home), name)
        return found

    return find
