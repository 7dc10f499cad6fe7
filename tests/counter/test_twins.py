"""The native module and its twin are the same to whoever uses them; so are the two of a virtqueue's fast path."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys

import pytest

import aioirqfd.counter
from aioirqfd.counter import _python
from aioirqfd.virtio import fast
from aioirqfd.virtio.fast import _python as fast_python
from tests.twins import check_class, check_functions

native = pytest.importorskip("aioirqfd.counter._native", reason="needs the C module", exc_type=ImportError)
fast_native = importlib.import_module("aioirqfd.virtio.fast._native")  # whoever has the one has the other


class Nothing:
    """An awaitable."""

    def __await__(self):
        yield


def transfer(module):
    ring = memoryview(bytearray(16))
    zero = dict.fromkeys(["max_table", "size", "read_at_once", "write_at_once"], 0)
    return module.Transfer(ring, ring, ring, [None], (), None, fd=-1, event_idx=True, batch=1, batch_bytes=1, **zero)


# By class: the two modules, how one is made, and what may be set.
CLASSES = {
    "Counter": (native, _python, lambda module: module.Counter(), set()),
    "Drain": (native, _python, lambda module: module.Drain(), {"dispatching"}),
    "EventFdCtx": (
        native,
        _python,
        lambda module: module.EventFdCtx(-1),
        {"_fd", "_listening", "_gsi", "_signals", "_wakeups", "_fast"},
    ),
    "FlightRing": (native, _python, lambda module: module.FlightRing(1), {"on"}),
    "Stepped": (native, _python, lambda module: module.Stepped(None, None, Nothing), set()),
    "TopHalf": (
        native,
        _python,
        lambda module: module.TopHalf(),
        {"paused", "full", "room", "watched", "context", "source"},
    ),
    "Kicks": (fast_native, fast_python, lambda module: module.Kicks(print, [], []), set()),
    "Transfer": (fast_native, fast_python, transfer, set()),
}


def test_the_names_are_the_same():
    assert set(aioirqfd.counter.__all__) == {*_python.__all__, "IMPLEMENTATION"}
    check_functions(native, _python, _python.__all__)
    check_functions(fast_native, fast_python, fast.__all__)
    listed = {name for name in (*_python.__all__, *fast.__all__) if name[0].isupper() and name != "MAX"}
    assert set(CLASSES) == listed
    assert native.MAX == _python.MAX


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_the_same(name):
    module, twin, make, writable = CLASSES[name]
    made, same = make(module), make(twin)
    try:
        assert check_class(getattr(module, name), getattr(twin, name), made, same) == writable
    finally:
        for each in (made, same):
            getattr(each, "close", lambda: None)()


def test_both_say_the_same_of_a_signal():
    assert inspect.getdoc(native.EventFdCtx.signal) == inspect.getdoc(_python.EventFdCtx.signal)


@pytest.mark.parametrize("name", CLASSES)
def test_types_that_are_final_or_cannot_be_changed(name):
    cls = getattr(CLASSES[name][0], name)
    with pytest.raises(TypeError):
        cls.something = 1
    if name != "EventFdCtx":
        with pytest.raises(TypeError):
            type("Sub", (cls,), {})


@pytest.mark.parametrize(("forced", "expected"), [("1", "python"), ("0", "c"), ("", "c")])
def test_the_choice_between_them(forced, expected):
    said = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-c"),
            "from aioirqfd import counter as c; from aioirqfd.virtio import fast as f; print(c.IMPLEMENTATION, c.Drain.__module__, f.Kicks.__module__)",
        ],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"AIOIRQFD_PURE_PYTHON": forced},
    ).stdout.split()
    modules = {
        "c": ["aioirqfd.counter", "aioirqfd.virtio.fast"],
        "python": ["aioirqfd.counter._python.drain", "aioirqfd.virtio.fast._python"],
    }
    assert said == [expected, *modules[expected]]
