"""A QEMU's sockets when what is handed in, or what answers, is not what it should be."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.sinks import QtestSink
from aioirqfd.sinks.qmp import Qmp, QmpError
from tests.integers import int64
from tests.sinks.qtest_peer import Peer


@pytest.fixture
async def peer(tmp_path):
    async with Peer(tmp_path / "qtest") as peer:
        yield peer


async def test_on_irq_that_raises_ends_no_connection(peer):
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(str(context["exception"])))
    async with await QtestSink.connect(peer.path, ioapic="/ioapic") as sink:

        def on_irq(line, level):
            raise LookupError(f"{line} {level}")

        sink.on_irq = on_irq
        peer.answer = lambda command: f"IRQ raise 5\nOK {command[-1]}\n"
        assert await sink.client.command("irq_intercept_in /ioapic 1") == "1"
        assert (sink.levels, heard) == ({5: True}, ["5 True"])
        async with IrqManager(sink) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                kick.signal()
                await irqs.flush()
        assert len(peer.commands) == 3


@pytest.mark.parametrize("maxsize", [1, 0, -1, True, 2.0, "2", None])
async def test_a_bound_that_is_none_leaves_no_connection(peer, maxsize):
    with pytest.raises(ValueError, match="2 or more may be without a reply, not"):
        await QtestSink.connect(peer.path, ioapic="/ioapic", maxsize=maxsize)
    async with await QtestSink.connect(peer.path, ioapic="/ioapic", maxsize=int64(2)) as sink:
        assert not sink.client.closed


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_a_connection_is_not_copied(peer, how):
    async with await QtestSink.connect(peer.path, ioapic="/ioapic") as sink:
        for one in (sink, sink.client):
            with pytest.raises(TypeError, match=r"cannot be copied or pickled.*connect\(\) another one"):
                how(one)


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b'["QMP"]\n', b"\xff\xfe\n", b"12\n"])
async def test_what_answers_is_no_qmp(tmp_path, said):
    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(said)
            await reader.read()
        writer.close()
        done.set()

    done = asyncio.Event()
    server = await asyncio.start_unix_server(serve, str(tmp_path / "qmp"))
    with pytest.raises(QmpError, match="what answers is no QEMU"):
        await Qmp.connect(tmp_path / "qmp")
    await done.wait()
    server.close()
