"""Both implementations of the counter module, imported directly: whichever is live, the other is tested too."""

from __future__ import annotations

import importlib

import pytest

from tests.counter.rig import Rig


def implementations():
    """The twin always; the native module where it was built."""
    yield pytest.param("_python", id="python")
    try:
        importlib.import_module("aioirqfd.counter._native")
    except ImportError:
        return
    yield pytest.param("_native", id="c")


@pytest.fixture(params=implementations())
def counter(request):
    """The counter module."""
    return importlib.import_module(f"aioirqfd.counter.{request.param}")


@pytest.fixture
def rig(counter):
    """A drain of the counter module, and whatever a test makes with it."""
    rig = Rig(counter)
    yield rig
    rig.close()


@pytest.fixture
def unraisable(monkeypatch):
    """The errors that nobody could catch; a test that provokes some empties the list."""
    errors = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: errors.append(args.exc_value))
    yield errors
    assert errors == []
