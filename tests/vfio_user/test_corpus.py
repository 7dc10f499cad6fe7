"""Every input that the fuzzer's corpus keeps, run once; and some that are made of them."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import sys
import types
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
CORPUS = sorted((FUZZ / "corpus" / "vfio_user").iterdir())


@pytest.fixture
def target(monkeypatch):
    stand_in = types.ModuleType("atheris")
    monkeypatch.setattr(stand_in, "instrument_imports", lambda **_: contextlib.nullcontext(), raising=False)
    monkeypatch.setitem(sys.modules, "atheris", stand_in)
    spec = importlib.util.spec_from_file_location("fuzz_vfio_user", FUZZ / "fuzz_vfio_user.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.test_one_input


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_an_input_of_the_corpus(target, path):
    target(path.read_bytes())


def test_inputs_that_are_made_of_them(target):
    chance = random.Random(7)
    seeds = [path.read_bytes() for path in CORPUS]
    for _ in range(200):
        data = bytearray(b"".join(chance.choices(seeds, k=chance.randrange(1, 12))))
        for _ in range(chance.choice([0, 0, 1, 2, 5])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        target(bytes(data))
