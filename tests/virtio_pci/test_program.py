"""A program that serves a virtio device, told to do it by vfio-user."""

from __future__ import annotations

import contextlib
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.vfio_user.client import Client

RNG = Path(__file__).parents[2] / "examples" / "vhost_user_rng.py"


@contextlib.contextmanager
def program(*arguments):
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-P", "-W", "error", RNG, "--transport", *arguments], stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_it_is_a_pci_function_until_it_is_told_to_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with program("vfio-user", "--socket-path", "socket") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Rng: listening at 'socket'\n"
        async with Client("socket") as client:
            assert struct.unpack("<HH", await client.read(7, 0, 4)) == (0x1AF4, 0x1044)
            await client.write(0, 0x18, b"\3\0")  # a queue size that cannot be
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert (
        err == "Rng: message_refused request='queue_size' reason=\"a queue's size is a power of 2 up to 256, not 3\"\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("vfio-user", "--fd", "0"), "argument --transport: vfio-user is for --socket-path, without --connect"),
        (("vfio-user", "--socket-path", "x", "--connect"), "vfio-user is for --socket-path, without --connect"),
        (("virtio", "--socket-path", "x"), "argument --transport: invalid choice: 'virtio'"),
    ],
)
def test_what_a_user_does_wrong_is_said_in_a_line(arguments, text):
    with program(*arguments) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert text in err
