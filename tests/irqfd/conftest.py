"""After each test nothing is bound that was not before; and an fd that is no eventfd."""

from __future__ import annotations

import os

import pytest

from aioirqfd.irqfd import identity


@pytest.fixture(autouse=True)
def nothing_stays_bound():
    before = dict(identity.bound)
    yield
    assert identity.bound == before


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)
