"""The socket: who may ask, what is answered, and what becomes of clients that send garbage, hang, or are many."""

# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (what is read is JSON, of whose inside no type checker knows)
from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from aioirqfd import EventFd, IrqManager, nodes
from aioirqfd.inspect import InspectClient, InspectError, serve, server
from aioirqfd.sinks import RecordingSink
from aioirqfd.tracing import StructlogTracer
from tests.inspect.helpers import blocked, elsewhere

serve_at = functools.partial(serve, patience=60)  # however slow the machine is


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.sock"


class Talk:
    """A client on the same loop, that says what it likes."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, path):
        return cls(*await asyncio.open_unix_connection(path))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, data):
        self.writer.write(data)

    async def answer(self):
        """The next answer; None: it was hung up."""
        line = await self.reader.readline()
        return json.loads(line) if line else None

    async def ask(self, **request):
        self.send(json.dumps(request).encode() + b"\n")
        return await self.answer()

    async def gone(self):
        """Wait until it is hung up."""
        with contextlib.suppress(ConnectionError):
            assert await self.reader.read() == b""


# ------------------------------------------------------------------------------------------------------- the protocol


async def test_a_line_asks_and_a_line_answers(path):
    async with (
        IrqManager(RecordingSink(), name="vm") as irqs,
        await serve_at(path) as serving,
        await Talk.to(path) as talk,
    ):
        assert repr(serving) == f"<InspectServer {path}>"
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, name="kick")
            assert await talk.ask(path="managers/vm/irqfds/kick/gsi") == {"protocol": 1, "value": 5}
            assert await talk.ask(path="managers", depth=0) == {"protocol": 1, "value": {"vm": "..."}}
            assert await talk.ask(path="process/pid", id=7) == {"protocol": 1, "id": 7, "value": os.getpid()}
            assert (await talk.ask())["value"]["managers"]["vm"]["stage"] == "open"


async def test_a_setting_is_written(path):
    tracer = StructlogTracer()
    level = f"tracers/{nodes.key_of(tracer)}/level"
    async with await serve_at(path), await Talk.to(path) as talk:
        assert await talk.ask(path=level, set="error") == {"protocol": 1, "value": "error"}
        assert tracer.level == "error"
        why = "a level is one of debug, info, warning, error, off, not 3"
        assert await talk.ask(path=level, set=3) == {"protocol": 1, "error": why}
        why = f"{level.removesuffix('/level')}: type can be read only"
        assert await talk.ask(path=level.replace("level", "type"), set=3) == {"protocol": 1, "error": why}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "a request is a line with an object of JSON: Expecting value: line 2 column 1 (char 1)"),
        (b"\xff\xfe", "a request is a line with an object of JSON: "),
        (b"{", "a request is a line with an object of JSON: "),
        (b"[" * 60000, "a request is a line with an object of JSON: "),
        (b"[1]", "a request is an object of JSON, not [1]"),
        (b"null", "a request is an object of JSON, not None"),
        (b'{"paht": ""}', "a request has depth, id, path, set, not paht"),
        (b'{"path": 5}', "path is a string, not 5"),
        (b'{"depth": -1}', "depth is a number from 0 on, or null, not -1"),
        (b'{"depth": true}', "depth is a number from 0 on, or null, not True"),
        (b'{"depth": 1e999}', "depth is a number from 0 on, or null, not inf"),
        (b'{"path": "nothing"}', "there is no 'nothing', only process, managers"),
        (b'{"path": "process/pid", "set": 1}', "there is nothing to be set at 'process/pid'"),
    ],
)
async def test_what_is_no_request_is_answered_and_the_next_one_too(path, line, why):
    async with await serve_at(path), await Talk.to(path) as talk:
        talk.send(line + b"\n")
        answer = await talk.answer()
        assert answer["error"].startswith(why)
        assert answer["protocol"] == 1
        assert await talk.ask(path="process/pid") == {"protocol": 1, "value": os.getpid()}


async def test_a_line_without_an_end_is_not_waited_for_for_ever(path):
    async with await serve_at(path), await Talk.to(path) as talk:
        talk.send(b"x" * server.MAX_LINE + b"x")
        assert await talk.answer() == {"protocol": 1, "error": "a request is a line of 65536 bytes at most"}
        await talk.gone()


async def test_half_a_line_is_no_request(path):
    async with await serve_at(path):
        async with await Talk.to(path) as talk:
            talk.send(b'{"path": "process/pid"}')
            talk.writer.write_eof()
            await talk.gone()
        async with await Talk.to(path) as talk:
            assert (await talk.ask(path="process/pid"))["value"] == os.getpid()


async def test_a_thousand_requests_at_once_are_answered_in_their_order(path):
    async with await serve_at(path), await Talk.to(path) as talk:
        talk.send(b"".join(b'{"path": "process/pid", "id": %d}\n' % number for number in range(1000)))
        answers = [await talk.answer() for _ in range(1000)]
        assert [answer["id"] for answer in answers] == list(range(1000))
        assert {answer["value"] for answer in answers} == {os.getpid()}


async def test_what_a_device_raises_in_its_own_part_is_answered(path):
    class Broken(RecordingSink):
        def inspect(self):
            raise OSError(5, "broken")

    async with IrqManager(Broken(), name="vm"), await serve_at(path), await Talk.to(path) as talk:
        assert (await talk.ask(path="managers/vm/sink"))["error"] == "OSError(5, 'broken')"


async def test_a_loop_that_does_not_answer_does_not_keep_the_others(path):
    with elsewhere("other") as loop:
        async with (
            IrqManager(RecordingSink(), name="here"),
            await serve_at(path, patience=0.01),
            await Talk.to(path) as talk,
        ):
            with blocked(loop):
                answer = await talk.ask(path="managers/other/stage")
                assert answer["error"].startswith("managers/other: its event loop has not answered in time")
                assert (await talk.ask(path="process/pid"))["value"] == os.getpid()


async def test_a_program_that_has_filled_its_executor_can_be_looked_into(path):
    executor = concurrent.futures.ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    over = threading.Event()
    tracer = StructlogTracer()
    try:
        full = [asyncio.get_running_loop().run_in_executor(None, over.wait) for _ in range(3)]
        with elsewhere("other"):
            async with IrqManager(RecordingSink(), name="here"), await serve_at(path), await Talk.to(path) as talk:
                assert (await talk.ask(path="managers/*/stage"))["value"] == {"here": "open", "other": "open"}
                level = f"tracers/{nodes.key_of(tracer)}/level"
                assert (await talk.ask(path=level, set="error"))["value"] == "error"
        assert tracer.level == "error"
        over.set()
        await asyncio.gather(*full)
    finally:
        over.set()
        executor.shutdown()


async def test_a_server_may_be_closed_while_somebody_waits_for_another_loop(path):
    with elsewhere("other") as loop, blocked(loop):
        async with await serve_at(path) as serving, await Talk.to(path) as talk:
            talk.send(b'{"path": "managers/other/stage"}\n')
            while not serving._clients:
                await asyncio.sleep(0)
            await serving.aclose()
            await talk.gone()


# ----------------------------------------------------------------------------------------------- clients that misbehave


async def test_those_that_hang_do_not_keep_out_who_looks_for_the_reason(path):
    async with await serve_at(path):
        hung = []
        for _ in range(server.CLIENTS):
            hung.append(await Talk.to(path))
            hung[-1].send(b"{")
        # Not the one that has asked something since.
        first = hung[0]
        first.send(b'"path": "process/pid"}\n')
        assert (await first.answer())["value"] == os.getpid()
        async with await Talk.to(path) as talk:
            assert (await talk.ask(path="process/pid"))["value"] == os.getpid()
            await hung[1].gone()
            assert (await first.ask(path="process/pid"))["value"] == os.getpid()
        for one in hung:
            await one.__aexit__()


async def test_one_that_reads_no_answers_holds_its_own_place_alone(path):
    async with await serve_at(path), await Talk.to(path) as deaf:
        deaf.writer.transport.pause_reading()
        deaf.send(b'{"path": "nothing"}\n' * 20000)
        async with await Talk.to(path) as talk:
            assert (await talk.ask(path="process/pid"))["value"] == os.getpid()
        deaf.writer.transport.abort()


async def test_closing_sends_everybody_away_and_takes_the_socket_away(path):
    serving = await serve_at(path)
    talks = [await Talk.to(path) for _ in range(3)]
    assert (await talks[0].ask(path="process/pid"))["value"] == os.getpid()
    talks[1].send(b"{")
    await serving.aclose()
    await serving.aclose()
    assert not path.exists()
    for talk in talks:
        await talk.gone()
        await talk.__aexit__()
    async with await serve_at(path):
        assert path.exists()


# ------------------------------------------------------------------------------------------------------- who may ask


async def test_the_socket_is_its_owners_from_the_first_moment_on(path, monkeypatch):
    modes = []
    bind = socket.socket.bind

    def bound(sock, where):
        bind(sock, where)
        modes.append(stat.S_IMODE(Path(where).stat().st_mode))

    monkeypatch.setattr(socket.socket, "bind", bound)
    before = os.umask(0)
    try:
        async with await serve_at(path):
            modes.append(stat.S_IMODE(path.stat().st_mode))
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]


@pytest.mark.parametrize(
    ("uid", "let_in"), [(os.geteuid(), True), (0, True), (12345, False)], ids=["our own", "root", "another"]
)
async def test_the_kernel_says_who_is_at_the_other_end(path, monkeypatch, uid, let_in):
    monkeypatch.setattr(server, "peer_uid", lambda _: uid)
    async with await serve_at(path), await Talk.to(path) as talk:
        if let_in:
            assert (await talk.ask(path="process/pid"))["value"] == os.getpid()
        else:
            why = f"this program is not that of uid 12345: ask as uid {os.geteuid()}, or as root"
            assert await talk.answer() == {"protocol": 1, "error": why}
            await talk.gone()


def test_the_kernel_knows_our_own_uid():
    here, there = socket.socketpair()
    with here, there:
        assert server.peer_uid(here) == os.geteuid()


# ------------------------------------------------------------------------------------------------------------ the path


async def test_what_a_dead_process_has_left_is_taken_away(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with await serve_at(path), await Talk.to(path) as talk:
        assert (await talk.ask(path="process/pid"))["value"] == os.getpid()


async def test_a_path_that_is_in_use_is_refused_and_stays_whose_it_is(path):
    async with await serve_at(path), await Talk.to(path) as talk:
        with pytest.raises(OSError, match=r"Address already in use: '.*tree\.sock'"):
            await serve_at(path)
        assert (await talk.ask(path="process/pid"))["value"] == os.getpid()
    path.write_text("mine")
    with pytest.raises(OSError, match="in use, by a file that is no socket"):
        await serve_at(path)
    assert path.read_text() == "mine"
    with pytest.raises(OSError, match="a socket's path is too long"):
        await serve_at("x" * 200)
    with pytest.raises(FileNotFoundError):
        await serve_at(path.parent / "none" / "tree.sock")


# --------------------------------------------------------------------------------------------------------- the client


async def test_the_client_reads_and_writes(path):
    tracer = StructlogTracer()
    level = f"tracers/{nodes.key_of(tracer)}/level"

    def ask():
        with InspectClient(path) as client:
            assert client.read("process/pid") == os.getpid()
            assert client.read("tracers", 0)[nodes.key_of(tracer)] == "..."
            client.write(level, "error")
            with pytest.raises(InspectError, match="there is no 'nothing'"):
                client.read("nothing")
            client.close()

    async with await serve_at(path):
        await asyncio.to_thread(ask)
    assert tracer.level == "error"


def test_the_client_says_what_is_wrong_with_the_other_end(path):
    with pytest.raises(FileNotFoundError, match=r"tree\.sock"):
        InspectClient(path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with InspectClient(path, timeout=0.01) as client:
            with pytest.raises(InspectError, match=r"has not answered in time: its event loop is busy$"):
                client.read()
            # The answer may come yet, and is that to another question.
            for again in (client.read, functools.partial(client.write, "tracers/0/level", "off")):
                with pytest.raises(InspectError, match=r"has not answered in time: .*; connect anew$"):
                    again()
        with pytest.raises(InspectError, match="has not answered in time"):
            client.read()
        with InspectClient(path) as client:
            listening.accept()[0].close()  # the first one's
            other = listening.accept()[0]
            other.close()
            with pytest.raises(InspectError, match="has hung up"):
                client.read()
            with pytest.raises(InspectError, match="has hung up; connect anew"):
                client.read()
        with pytest.raises(InspectError, match="has hung up"):
            client.read()
        with InspectClient(path) as client:
            listening.accept()[0].close()
            client.close()
            with pytest.raises(InspectError, match="this client is closed; connect anew"):
                client.read()
    with pytest.raises(ConnectionRefusedError, match=r"tree\.sock"):
        InspectClient(path)
