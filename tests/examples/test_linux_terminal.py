"""The user's terminal: what Ctrl-a does, and that it is as it was however the program ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from examples.vmm.linux.terminal import Escape, Terminal

ROOT = Path(__file__).parents[2]


class TestEscape:
    @pytest.mark.parametrize(
        ("typed", "keys"),
        [
            (b"ls\r", b"ls\r"),
            (b"\x01\x01", b"\x01"),
            (b"\x01\x01\x01\x01x", b"\x01\x01x"),
            (b"a\x01k", b"a\x01k"),
            (b"\x01", b""),
            (bytes(range(2, 256)), bytes(range(2, 256))),
        ],
    )
    def test_what_is_for_the_guest(self, typed, keys):
        for pieces in ([typed], [bytes([value]) for value in typed]):
            escape = Escape()
            assert (b"".join(map(escape.feed, pieces)), escape.left) == (keys, False)

    @pytest.mark.parametrize("x", [b"x", b"X"])
    def test_leaving(self, x):
        escape = Escape()
        assert (escape.feed(b"ls\r\x01" + x + b"exit\r"), escape.left) == (b"ls\r", True)


class Program:
    """``raw_terminal.py`` on a terminal of its own."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.heard = b""
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.examples.raw_terminal"],
            cwd=ROOT,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def until(self, text):
        while text not in self.heard:
            self.heard += os.read(self.master, 4096)
        self.heard = self.heard[self.heard.index(text) + len(text) :]

    def type(self, keys):
        os.write(self.master, keys)

    @property
    def now(self):
        return termios.tcgetattr(self.slave)

    @property
    def raw(self):
        return not self.now[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def program(signals_heard):
    program = Program()
    try:
        program.until(b"raw\r\n")
        yield program
    finally:
        program.close()


def test_every_key_is_the_guests(program):
    assert program.raw
    program.type(b"\x03\x1a\x1c\x04\x13\r\x7f\x01\x01")
    for value in b"\x03\x1a\x1c\x04\x13\r\x7f\x01":
        program.until(b"%02x" % value)


@pytest.mark.parametrize("status", [pytest.param((b"!", 1), id="exception"), pytest.param((b"?", 5), id="exit")])
def test_it_is_restored_after_an_error(program, status):
    program.type(status[0])
    assert program.process.wait() == status[1]
    assert program.now == program.before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_is_restored_after_a_signal(program, number):
    program.process.send_signal(number)
    assert program.process.wait() == 0
    assert program.now == program.before
    program.until(number.name.encode())


def test_it_is_restored_after_leaving(program):
    program.type(b"\x01x")
    assert program.process.wait() == 0
    assert program.now == program.before
    program.until(b"left")


def test_it_is_restored_though_its_output_is_held(program):
    fcntl.ioctl(program.slave, termios.TCXONC, 0)  # TCOOFF: as Ctrl-s
    program.process.send_signal(signal.SIGTERM)
    while program.raw:
        assert program.process.poll() is None
    fcntl.ioctl(program.slave, termios.TCXONC, 1)
    assert program.process.wait() == 0
    assert program.now == program.before


def test_suspended_it_is_the_shells_and_raw_when_it_goes_on(program):
    for _ in range(2):
        program.process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(program.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert program.now == program.before
        program.process.send_signal(signal.SIGCONT)
        while not program.raw:
            assert program.process.poll() is None
        program.type(b"a")
        program.until(b"61")
    program.type(b"\x01x")
    assert program.process.wait() == 0
    assert program.now == program.before


def test_raw_again_after_a_stop_that_nobody_can_hear(program):
    program.process.send_signal(signal.SIGSTOP)
    os.waitpid(program.process.pid, os.WUNTRACED)
    termios.tcsetattr(program.slave, termios.TCSANOW, program.before)  # the shell's own doing
    program.process.send_signal(signal.SIGCONT)
    while not program.raw:
        assert program.process.poll() is None
    program.type(b"\x01x")
    assert program.process.wait() == 0
    assert program.now == program.before


@pytest.fixture
def pair():
    fds = os.openpty()
    yield fds
    for fd in fds:
        os.close(fd)


# The program runs on asyncio, and only its main thread's loop hears signals: so do these.
def test_keys_wait_for_a_guest_that_does_not_read_and_one_can_leave_it(pair):
    master, slave = pair

    async def scenario():
        with Terminal(slave) as terminal:
            running = asyncio.create_task(terminal.run())
            os.write(master, b"k" * 1000)
            while len(terminal._keys) < 1000:
                await asyncio.sleep(0)
            os.write(master, b"\x01x")
            await terminal.left.wait()
            await running
            got = b""
            while keys := await terminal.read(300):
                assert len(keys) <= 300
                got += keys
            return got

    assert asyncio.run(scenario()) == b"k" * 1000


def test_what_is_no_terminal_is_said_by_name():
    async def scenario():
        reader, writer = os.pipe()
        try:
            with pytest.raises(OSError, match="'the pipe'"), Terminal(reader, "the pipe"):
                pass
        finally:
            os.close(reader)
            os.close(writer)

    asyncio.run(scenario())


def test_a_terminal_that_goes_away_is_the_end_of_its_keys():
    async def scenario():
        master, slave = os.openpty()
        with Terminal(slave) as terminal:
            os.write(master, b"last")
            running = asyncio.create_task(terminal.run())
            got = await terminal.read(100)
            os.close(master)
            await running
            got += await terminal.read(100)
        os.close(slave)
        return got, terminal.left.is_set()

    assert asyncio.run(scenario()) == (b"last", False)
