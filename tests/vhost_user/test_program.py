"""Back-ends as programs: the options that the specification sets down for them, and what they say."""

# pyright: reportOptionalMemberAccess=false, reportTypedDictNotRequiredAccess=false
# (what is not there, or of another kind, fails the test, as it should)
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.serving.sockets import Listener
from aioirqfd.vhost_user import main
from aioirqfd.vhost_user.messages import U64, Request, VringState
from aioirqfd.vhost_user.program import RECONNECT, number, parse, place
from tests.vhost_user.devices import Upper
from tests.vhost_user.frontend import FrontEnd, connected

PROGRAM = """
import argparse
from aioirqfd.vhost_user import main
from aioirqfd.virtio import Device

class Echo(Device):
    async def handle(self, request):
        return request.write(request.read())

    def close(self):
        print("closed", flush=True)

def make(options):
    if options.fail:
        raise ValueError("not like this")
    return Echo()

parser = argparse.ArgumentParser("echo")
parser.add_argument("--fail", action="store_true")
main(make, kind="console", features=("a", "b"), parser=parser)
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return "socket"


@contextlib.contextmanager
def program(*arguments, fds=()):
    """The program above; what it has said up to here is its first line."""
    with subprocess.Popen(
        [sys.executable, "-P", "-W", "error", "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=fds,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(*arguments, fds=()):
    with program(*arguments, fds=fds) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


async def echoes(where):
    async with FrontEnd(where) as front:
        queue = await front.start()
        assert await queue.ask([b"a"], [8]) == b"a"


@pytest.mark.parametrize("number_", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_when_it_is_ready_and_ends_when_it_is_told_to(path, number_):
    with program("--socket-path", path) as process:
        assert process.stdout.readline() == f"Echo: listening at {path!r}\n"
        await echoes(await connected(path))
        process.send_signal(number_)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "closed\n", "")
    assert not Path(path).exists()


async def test_a_listening_socket_is_taken_as_an_fd(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        with program(f"--fd={sock.fileno()}", fds=[sock.fileno()]) as process:
            assert process.stdout.readline() == f"Echo: serving on fd {sock.fileno()}\n"
            for _ in range(2):
                await echoes(path)
            process.terminate()
            assert process.wait(60) == 0


async def test_with_a_connected_socket_it_ends_when_the_front_end_has_gone(path):
    ours, theirs = socket.socketpair()
    with theirs, program("--fd", str(theirs.fileno()), fds=[theirs.fileno()]) as process:
        theirs.close()
        await echoes(ours)
        assert process.wait(60) == 0


async def test_it_connects_to_a_front_end_that_listens_again_and_again(path):
    with Listener(path) as listener, program("--socket-path", path, "--connect") as process:
        for _ in range(2):
            sock, _ = await asyncio.get_running_loop().sock_accept(listener.sock)
            await echoes(sock)
        process.terminate()
        assert process.wait(60) == 0
    assert RECONNECT == 1.0


@pytest.mark.parametrize("others", [(), ("--fail",), ("--fd", "x", "--nonsense"), ("--socket-path",)])
def test_capabilities_are_told_whatever_else_is_said(path, others):
    code, out, err = ended(*others, "--print-capabilities")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"type": "console", "features": ["a", "b"]}


WRONG = {
    "nothing": ((), 2, "one of the arguments --socket-path --fd is required"),
    "both": (("--socket-path", "a", "--fd", "3"), 2, "argument --fd: not allowed with argument --socket-path"),
    "fd that is none": (("--fd", "x"), 2, "argument --fd: a number, 0 or more, not 'x'"),
    "fd below 0": (("--fd=-1",), 2, "argument --fd: a number, 0 or more, not '-1'"),
    "fd to connect": (("--fd", "0", "--connect"), 2, "argument --connect: not allowed with argument --fd"),
    "fd that is not open": (("--fd", "77"), 1, "echo: [Errno 9] --fd 77: Bad file descriptor\n"),
    "fd that is no socket": (("--fd", "1"), 1, "echo: [Errno 88] --fd 1: Socket operation on non-socket\n"),
    "empty path": (("--socket-path", ""), 1, "[Errno 22] a socket's path is empty: ''\n"),
    "no directory": (("--socket-path", "no/x"), 1, "[Errno 2] No such file or directory: 'no/x'\n"),
    "the device's": (("--socket-path", "a", "--fail"), 1, "echo: not like this\n"),
}


@pytest.mark.parametrize(("arguments", "code", "text"), WRONG.values(), ids=WRONG)
def test_what_a_user_does_wrong_is_said_in_a_line(path, arguments, code, text):
    got, _, err = ended(*arguments)
    assert got == code
    assert err.endswith(text if text.endswith("\n") else f"{text}\n")
    assert "Traceback" not in err
    assert code == 2 or err.count("\n") == 1


def test_an_fd_that_is_a_socket_but_none_to_serve_on(path):
    with socket.socket() as sock:
        code, _, err = ended(f"--fd={sock.fileno()}", fds=[sock.fileno()])
    assert code == 1
    assert err.startswith("echo: a front-end is served on a Unix stream socket, not on <socket")


def options(*arguments):
    return parse(argparse.ArgumentParser(), kind="net", argv=arguments)


def test_where_to_serve_is_read_from_the_options():
    assert place(options("--socket-path", "a")) == {"path": "a"}
    assert place(options("--socket-path", "a", "--connect")) == {"path": "a", "connect": True, "reconnect": 1.0}
    ours, theirs = socket.socketpair()
    with ours:
        fd = theirs.detach()
        os.set_inheritable(fd, True)
        where = place(options("--fd", str(fd)))
        with where["sock"] as sock:
            assert sock.fileno() == fd
            assert not sock.get_inheritable()


def test_numbers_of_a_range_are_read():
    read = number(1, 256)
    assert [read(text) for text in ("1", "256", " 7 ")] == [1, 256, 7]
    for text in ("0", "257", "-1", "", "x", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"a number, 1\.\.256, not '{text}'"):
            read(text)


def test_a_parser_is_made_where_none_is_given(path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(lambda _options: Upper(), kind="rng", argv=["--print-capabilities"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"type": "rng", "features": []}


async def test_nobody_needs_to_read_what_it_says(path):
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, "--socket-path", path], stdout=writing, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        while not Path(path).exists():
            await asyncio.sleep(0.01)
        async with FrontEnd(path) as front:
            assert await front.number(Request.GET_QUEUE_NUM) == 1
        process.kill()


async def test_what_a_front_end_does_wrong_is_on_standard_error(path):
    with program("--socket-path", path) as process:
        assert process.stdout.readline()
        async with FrontEnd(await connected(path)) as front:
            queue = await front.start(0, 8)
            assert await queue.ask([b"a"], [1]) == b"a"
            for _ in range(3):
                assert await front.status(Request.SET_VRING_NUM, VringState(3, 8)) == 1
            queue.driver.publish(4000)
            queue.kick.signal()
            await queue.err.read()
            await front.send(Request.SET_FEATURES, U64(1))
            assert await front.closed()
        await echoes(await connected(path))
        process.terminate()
        _, err = process.communicate(timeout=60)
    # What is repeated is told once more if a second has gone by meanwhile.
    assert [line for line in err.splitlines() if " suppressed=" not in line] == [
        "Echo: message_refused request='SET_VRING_NUM' reason='no queue 3 of 1'",
        "Echo: vring_stopped queue=0 base=1 reason='the available index runs 3999 ahead in a ring of 8'",
        "Echo: frontend_disconnected reason='features 0x1 were not offered'",
    ]
