"""Every input that the fuzzers' corpus keeps, run once; the fuzzer itself is not needed for that."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# (the fuzz targets are loaded by hand)
from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
TARGETS = ["protocol", "virtqueue"]


@pytest.fixture
def target(request, monkeypatch):
    stand_in = types.ModuleType("atheris")
    stand_in.instrument_imports = lambda **_: contextlib.nullcontext()
    monkeypatch.setitem(sys.modules, "atheris", stand_in)
    spec = importlib.util.spec_from_file_location(f"fuzz_{request.param}", FUZZ / f"fuzz_{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.test_one_input


@pytest.mark.parametrize(
    ("target", "path"),
    [(name, path) for name in TARGETS for path in sorted((FUZZ / "corpus" / name).iterdir())],
    indirect=["target"],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_an_input_of_the_corpus(target, path):
    target(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_there_and_small(name):
    sizes = [path.stat().st_size for path in (FUZZ / "corpus" / name).iterdir()]
    assert sizes
    assert max(sizes) <= 4096
