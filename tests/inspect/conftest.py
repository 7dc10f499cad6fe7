"""The names in the tree are a test's own: nothing of an earlier one has them yet, held by nothing but a traceback's cycle."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True)
def names_are_free() -> None:
    gc.collect()
