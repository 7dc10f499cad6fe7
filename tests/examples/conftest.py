"""A socket's path, and a disk."""

from __future__ import annotations

import random

import pytest

from tests.examples.disk import SECTORS


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return "socket"


@pytest.fixture
def disk(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(random.Random(3).randbytes(SECTORS * 512))
    return image
