"""A socket's path, a disk, and signals that are heard."""

from __future__ import annotations

import random
import signal

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


@pytest.fixture
def signals_heard():
    """Whoever has started pytest may ignore these (nohup, a shell's background), and so would each program that a test starts."""
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
