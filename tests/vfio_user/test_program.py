"""A device as a program of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.vfio_user.client import Client

ROOT = Path(__file__).parents[2]
EDU = ROOT / "examples" / "edu_pci.py"


def start(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-P", EDU, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_until_it_is_told_to_end(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    with start("--socket-path", "edu.sock", cwd=tmp_path) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == "Edu: listening at 'edu.sock'\n"
        async with Client("edu.sock") as client:
            assert await client.read(0, 0, 4) == bytes.fromhex("ed000001")
        program.send_signal(number)
        assert program.wait() == 0
        assert program.stderr.read() == ""
        assert not (tmp_path / "edu.sock").exists()


def test_what_a_user_can_do_wrong(tmp_path):
    (tmp_path / "there").write_text("")
    for arguments, status, text in (
        ([], 2, "--socket-path"),
        (["--socket-path", "there"], 1, "by a file that is no socket: 'there'"),
        (["--socket-path", "x" * 200], 1, "too long"),
    ):
        with start(*arguments, cwd=tmp_path) as program:
            _, said = program.communicate()
            assert (program.returncode, text in said) == (status, True), said
            assert "Traceback" not in said


async def test_what_a_client_does_wrong_is_said_on_standard_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with start("--socket-path", "edu.sock", cwd=tmp_path) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        async with Client("edu.sock") as client:
            with pytest.raises(Exception, match="was refused"):
                await client.ask(999)
        assert program.stderr.readline().startswith("Edu: message_refused request='command 999'")
        program.terminate()
