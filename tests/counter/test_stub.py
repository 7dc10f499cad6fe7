"""What _native.pyi promises is what both implementations have: names, parameters, and which are read-only."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
from pathlib import Path

import pytest

import aioirqfd.counter

STUB = ast.parse((Path(aioirqfd.counter.__file__).parent / "_native.pyi").read_text("utf-8"))
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
VALUES = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}

# The twin's own helpers are Python functions; here they are C, or not needed.
P = inspect.Parameter


def parameters(node):
    """(name, kind, default) of each parameter of a stub's function, self left out."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    found = [
        (argument.arg, P.POSITIONAL_ONLY if argument in arguments.posonlyargs else P.POSITIONAL_OR_KEYWORD, default)
        for argument, default in zip(positional, defaults, strict=True)
    ]
    found += [(arguments.vararg.arg, P.VAR_POSITIONAL, None)] if arguments.vararg is not None else []
    found += [
        (each.arg, P.KEYWORD_ONLY, default)
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return [
        (name, kind, P.empty if default is None else ast.literal_eval(default))
        for name, kind, default in found
        if name != "self"
    ]


def live(function):
    return [
        (each.name, each.kind, each.default)
        for each in inspect.signature(function).parameters.values()
        if each.name != "self"
    ]


def members(node):
    """Attributes, properties and methods of a stub's class."""
    attributes, properties, methods = set(), set(), {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            attributes.add(item.target.id)
        elif isinstance(item, ast.FunctionDef):
            if any(isinstance(each, ast.Name) and each.id == "property" for each in item.decorator_list):
                properties.add(item.name)
            else:
                methods[item.name] = item
    return attributes, properties, methods


class Nothing:
    """An awaitable."""

    def __await__(self):
        yield


def instance(module, name):
    """One of them, and how to get rid of it."""
    if name == "EventFdCtx":
        return module.EventFdCtx(-1), lambda: None
    if name == "Stepped":
        return module.Stepped(None, None, Nothing), lambda: None
    if name == "Kicks":
        return module.Kicks(print, [], []), lambda: None
    if name == "Transfer":
        ring = memoryview(bytearray(16))
        limits = {
            "max_table": 0,
            "event_idx": True,
            "size": 0,
            "read_at_once": 0,
            "write_at_once": 0,
            "batch": 1,
            "batch_bytes": 1,
        }
        return module.Transfer(ring, ring, ring, [None], (), None, fd=-1, **limits), lambda: None
    made = getattr(module, name)()
    return made, getattr(made, "close", lambda: None)


def test_the_package_re_exports_all_of_it():
    assert set(aioirqfd.counter.__all__) == {*CLASSES, *FUNCTIONS, *VALUES, "IMPLEMENTATION"}


def test_the_native_module_has_nothing_else():
    native = pytest.importorskip("aioirqfd.counter._native")
    public = {name for name in vars(native) if not re.fullmatch("__.*__", name)}
    assert public == {*CLASSES, *FUNCTIONS, *VALUES}
    for name, node in CLASSES.items():
        attributes, properties, methods = members(node)
        own = {each for each in vars(getattr(native, name)) if not re.fullmatch("__.*__", each)}
        named = {each for each in (*attributes, *properties, *methods) if not re.fullmatch("__.*__", each)}
        assert own == named - {"_on_ready"}  # which is the subclass's to define


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(counter, name):
    assert live(getattr(counter, name)) == parameters(FUNCTIONS[name])


@pytest.mark.parametrize("name", CLASSES)
def test_classes(counter, name):
    attributes, properties, methods = members(CLASSES[name])
    made, close = instance(counter, name)
    native = counter.__name__.endswith("_native")
    try:
        for attribute in attributes:
            setattr(made, attribute, getattr(made, attribute))
        for attribute in properties:
            getattr(made, attribute)
            if native:
                with pytest.raises(AttributeError):
                    setattr(made, attribute, getattr(made, attribute))
        for method, node in methods.items():
            if method == "__init__":
                assert live(type(made)) == parameters(node), method
            elif method == "_on_ready" and native:
                continue
            elif not native or getattr(made, method).__text_signature__ is not None:
                assert live(getattr(made, method)) == parameters(node), method
            else:
                assert method.startswith("_"), f"{method} does not say how it is called"
                too_many = [None] * (len(parameters(node)) + 1)
                with pytest.raises(TypeError):
                    getattr(made, method)(*too_many)
    finally:
        close()


@pytest.mark.parametrize("name", CLASSES)
def test_public_names_are_described_in_both(counter, name):
    cls = getattr(counter, name)
    _, properties, methods = members(CLASSES[name])
    assert inspect.getdoc(cls)
    bare = [
        each
        for each in (*properties, *methods)
        # The twin has plain attributes for some of the native module's properties.
        if not each.startswith("_") and not (getattr(cls, each, cls).__doc__ or "").strip()
    ]
    assert bare == []


def test_both_say_the_same_of_a_signal():
    native = pytest.importorskip("aioirqfd.counter._native")
    twin = importlib.import_module("aioirqfd.counter._python")
    assert inspect.getdoc(native.EventFdCtx.signal) == inspect.getdoc(twin.EventFdCtx.signal)


def test_types_that_are_final_or_cannot_be_changed():
    native = pytest.importorskip("aioirqfd.counter._native")
    for name in CLASSES:
        cls = getattr(native, name)
        with pytest.raises(TypeError):
            cls.something = 1
        if name != "EventFdCtx":
            with pytest.raises(TypeError):
                type("Sub", (cls,), {})


@pytest.mark.parametrize(("forced", "expected"), [("1", "python"), ("0", None), ("", None)])
def test_the_choice_between_them(forced, expected, monkeypatch):
    import subprocess
    import sys

    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "import aioirqfd.counter as c; print(c.IMPLEMENTATION, c.Drain.__module__)",
        ],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"AIOIRQFD_PURE_PYTHON": forced},
    )
    live_one, module = done.stdout.split()
    if expected is not None:
        assert live_one == expected
    assert module == {"c": "aioirqfd.counter", "python": "aioirqfd.counter._python.drain"}[live_one]
