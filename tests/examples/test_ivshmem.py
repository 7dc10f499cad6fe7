from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from examples import ivshmem_server
from examples.ivshmem_peer import Client
from examples.ivshmem_server import Server

ROOT = Path(__file__).parents[2]
# A peer in a process of its own: rings every vector of everyone else, as often as it is told, and answers what it is asked.
PEER = """
import asyncio, sys
from examples.ivshmem_peer import Client

async def main():
    path, vectors, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    async with await Client.connect(path, vectors) as client:
        print(client.id, *sorted(client.peers), flush=True)
        for line in sys.stdin:
            what, *numbers = line.split()
            if what == "ring":
                for _ in range(rounds):
                    for eventfd in client.peers[int(numbers[0])]:
                        eventfd.signal()
                print("rung", flush=True)
            elif what == "count":
                total = [0] * vectors
                while sum(total) < int(numbers[0]):
                    for vector, eventfd in enumerate(client.vectors):
                        await asyncio.sleep(0)
                        try:
                            total[vector] += eventfd.read_nowait()
                        except BlockingIOError:
                            pass
                print(*total, flush=True)
            elif what == "poke":
                client.memory[int(numbers[0])] = int(numbers[1])
                print("poked", flush=True)

asyncio.run(main())
"""


class Process:
    """A peer's process, spoken to by lines."""

    def __init__(self, path, vectors=4, rounds=250):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PEER, str(path), str(vectors), str(rounds)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    async def line(self):
        """Its next line; the loop goes on serving meanwhile."""
        line = await asyncio.to_thread(self.stdout.readline)
        assert line, "the peer died"
        return line.split()

    async def ask(self, *words):
        self.stdin.write(" ".join(map(str, words)) + "\n")
        return await self.line()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class Host:
    """A server's doorbells and changes, counted."""

    def __init__(self, path, **options):
        self.counts: dict[int, int] = {}
        self.calls = 0
        self.changes: list[tuple[int, bool]] = []
        self.news = asyncio.Event()
        self.server = Server(path, self.doorbell, watch=self.watch, **options)

    async def doorbell(self, vector, count):
        self.counts[vector] = self.counts.get(vector, 0) + count
        self.calls += 1
        self.news.set()

    def watch(self, peer, here):
        self.changes.append((peer, here))
        self.news.set()

    async def until(self, condition):
        while not condition():
            self.news.clear()
            await self.news.wait()


@pytest.fixture(autouse=True)
async def executor_gone():
    """asyncio.to_thread's threads are not the test's leak."""
    yield
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.fixture
async def host(tmp_path):
    host = Host(tmp_path / "sock", vectors=4)
    async with host.server:
        yield host


async def test_processes_ring_the_host_and_are_rung_exactly(host):
    with Process(host.server.path) as first, Process(host.server.path) as second:
        assert {int((await first.line())[0]), int((await second.line())[0])} == {1, 2}
        for process in (first, second):
            assert await process.ask("ring", 0) == ["rung"]
        await host.until(lambda: sum(host.counts.values()) == 2000)
        assert host.counts == dict.fromkeys(range(4), 500)
        assert host.calls <= 2000
        for peer in (1, 2):
            for vector in range(4):
                for _ in range(100 + vector):
                    assert host.server.ring(peer, vector)
        assert await first.ask("count", 406) == ["100", "101", "102", "103"]
        assert await second.ask("count", 406) == ["100", "101", "102", "103"]


async def test_processes_ring_each_other_past_the_server(host):
    with Process(host.server.path) as first:
        assert await first.line() == ["1", "0"]
        with Process(host.server.path) as second:
            assert await second.line() == ["2", "0", "1"]
            await second.ask("ring", 1)
            assert await first.ask("count", 1000) == ["250"] * 4
            assert host.counts == {}


async def test_memory_is_shared(host):
    with Process(host.server.path) as process:
        await process.line()
        await process.ask("poke", 4097, 42)
        assert host.server.memory[4097] == 42
        assert len(host.server.memory) == 1 << 20


async def test_a_program_that_is_started_inherits_nothing(host):
    async with await Client.connect(host.server.path, 4) as first, await Client.connect(host.server.path, 4) as second:
        await first.until(second.id, 4)
        came = [*first.vectors, *first.peers[0], *first.peers[second.id]]
        assert [os.get_inheritable(eventfd.fileno()) for eventfd in came] == [False] * 12


async def test_a_killed_peer_is_gone_for_everyone(host):
    async with await Client.connect(host.server.path, 4) as client:
        for number in (2, 3):
            with Process(host.server.path) as process:
                assert (await process.line())[0] == str(number)
                await client.until(number, 4)
                process.process.send_signal(signal.SIGKILL)
                await client.until(number, 0)
                left = (number, False)
                await host.until(lambda left=left: host.changes[-1] == left)
                assert not host.server.ring(number, 0)
                assert sorted(client.peers) == [0]
    await host.until(lambda: not host.server.peers)
    assert host.changes == [(1, True), (2, True), (2, False), (3, True), (3, False), (1, False)]


async def test_ids_are_taken_in_turn_and_come_again(tmp_path):
    host = Host(tmp_path / "sock", vectors=1, ids=4)
    async with host.server, await Client.connect(host.server.path, 1) as client:
        for number in (2, 3, 2, 3):
            async with await Client.connect(host.server.path, 1) as other:
                assert other.id == number
                assert sorted(other.peers) == [0, 1]
            await host.until(lambda: list(host.server.peers) == [1])
        async with (
            await Client.connect(host.server.path, 1) as second,
            await Client.connect(host.server.path, 1) as third,
        ):
            assert (second.id, third.id) == (2, 3)
            # No number left: the door stays shut, and the others go on.
            with pytest.raises(ConnectionResetError):
                await Client.connect(host.server.path, 1)
            third.peers[1][0].signal()
            assert await client.vectors[0].read() == 1


async def test_a_recycled_id_has_new_eventfds(tmp_path):
    host = Host(tmp_path / "sock", vectors=1, ids=3)
    async with host.server, await Client.connect(host.server.path, 1) as client:
        for _ in range(3):
            with Process(host.server.path, 1) as process:
                assert (await process.line())[0] == "2"
                await client.until(2, 1)
                stale = os.dup(client.peers[2][0].fileno())
            await client.until(2, 0)
            with Process(host.server.path, 1) as process:
                assert (await process.line())[0] == "2"
                await client.until(2, 1)
                # What still writes the old one's eventfd rings nobody: were it the new one's, the count would be 3.
                os.eventfd_write(stale, 2)
                os.close(stale)
                client.peers[2][0].signal()
                assert await process.ask("count", 1) == ["1"]
            await client.until(2, 0)


async def test_the_messages_are_qemus(host):
    """Version, id, memory, the others' vectors in order, one's own: numbers of 8 bytes, each with its descriptor."""
    with socket.socket(socket.AF_UNIX) as connection:
        await asyncio.to_thread(connection.connect, host.server.path)
        got = []
        for _ in range(3 + 8):
            data, fds, _, _ = await asyncio.to_thread(socket.recv_fds, connection, 8, 2)
            got.append((int.from_bytes(data, "little", signed=True), len(fds)))
            for fd in fds:
                os.close(fd)
        assert got == [(0, 0), (1, 0), (-1, 1), *[(0, 1)] * 4, *[(1, 1)] * 4]


async def test_a_peer_that_talks_is_shown_the_door(host):
    async with await Client.connect(host.server.path, 4) as client:
        client._connection.send(b"x")
        await host.until(lambda: (1, False) in host.changes)


async def test_a_peer_that_does_not_read_blocks_nobody(host, monkeypatch):
    monkeypatch.setattr(ivshmem_server, "OUTBOX", 20)
    with socket.socket(socket.AF_UNIX) as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        await asyncio.to_thread(idle.connect, host.server.path)
        await host.until(lambda: host.changes == [(1, True)])
        # Each coming and going is 5 messages to it; the socket's buffer takes some hundred.
        while (1, False) not in host.changes:
            async with await Client.connect(host.server.path, 4) as client:
                number = client.id
            await host.until(lambda number=number: number not in host.server.peers)


async def test_a_slow_peer_gets_its_messages_in_order_and_holds_nobody_up(host):
    with socket.socket(socket.AF_UNIX) as slow:
        slow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(slow, host.server.path)
        await host.until(lambda: host.changes == [(1, True)])
        expected = [(0, 0), (1, 0), (-1, 1), *[(0, 1)] * 4, *[(1, 1)] * 4]
        number = 2
        # More than the socket's buffer takes, so that the rest waits in the server.
        while not host.server.peers[1]._blocked:
            async with await Client.connect(host.server.path, 4) as client:
                assert client.id == number
            await host.until(lambda number=number: number not in host.server.peers)
            expected += [*[(number, 1)] * 4, (number, 0)]
            number += 1
        got = []
        while not got or got[-1] != (number - 1, 0):
            try:
                data, fds, _, _ = socket.recv_fds(slow, 8, 2)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            got.append((int.from_bytes(data, "little", signed=True), len(fds)))
            for fd in fds:
                os.close(fd)
        # Vectors that waited in the server are not sent any more once their owner has left; that he has left is.
        skipped = len(expected) - len(got)
        assert 0 <= skipped <= 4
        del expected[-1 - skipped : -1]
        assert got == expected
        async with await Client.connect(host.server.path, 4) as client:
            assert len(client.peers[1]) == 4
            assert not host.server.peers[1]._blocked


async def test_vectors_and_size_are_checked(tmp_path):
    async def nothing(_vector, _count): ...

    for vectors in (0, 65):
        with pytest.raises(ValueError, match=rf"vectors of each peer: 1\.\.64, not {vectors}"):
            Server(tmp_path / "sock", nothing, vectors=vectors)
    for size in (0, 2048, 5000, 1 << 63):
        with pytest.raises(ValueError, match=rf"size of the memory: a power of two, .* bytes, not {size}"):
            Server(tmp_path / "sock", nothing, size=size)
    for ids in (1, 65537):
        with pytest.raises(ValueError, match="ids"):
            Server(tmp_path / "sock", nothing, ids=ids)


async def test_ringing_who_is_not_there(host):
    async with await Client.connect(host.server.path, 4) as client:
        assert host.server.ring(client.id, 3)
        assert not host.server.ring(client.id, 4)
        assert not host.server.ring(client.id, -1)
        assert not host.server.ring(7, 0)
        assert await client.vectors[3].read() == 1


@pytest.mark.parametrize("text", ["4096", "4K", "4k"])
def test_sizes(text):
    assert ivshmem_server.size_of(text) == 4096


async def test_the_one_command(tmp_path):
    path = str(tmp_path / "sock")
    command = [sys.executable, "-W", "error", "-m"]
    server = subprocess.Popen(
        [*command, "examples.ivshmem_server", path, "--vectors", "2", "--size", "64K", "--echo"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        assert "serving" in await asyncio.to_thread(server.stdout.readline)
        async with await Client.connect(path, 2) as client:
            assert len(client.memory) == 65536
            client.peers[0][1].signal(3)
            assert await client.vectors[1].read() == 3
            ring = await asyncio.create_subprocess_exec(
                *command, "examples.ivshmem_peer", path, "--vectors", "2", "--ring", "1", "0",
                cwd=ROOT, stdout=subprocess.PIPE,
            )  # fmt: skip
            output, _ = await ring.communicate()
            assert output == b"peer 2, 65536 bytes shared, beside [0, 1]\n"
            assert await client.vectors[0].read() == 1
            await client.until(2, 0)
        server.send_signal(signal.SIGTERM)
        rest = await asyncio.to_thread(server.stdout.read)
        assert server.wait() == 0
        assert rest.splitlines()[1:5] == ["peer 1 came", "vector 1: rung 3 times", "peer 2 came", "peer 2 left"]
        assert not Path(path).exists()
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


async def test_peers_come_in_again_when_there_are_file_descriptors_again(tmp_path, monkeypatch):
    monkeypatch.setattr(ivshmem_server, "PAUSE", 0)
    host = Host(tmp_path / "sock")
    refused = []
    loop = asyncio.get_running_loop()
    async with host.server:
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.setblocking(False)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            news = asyncio.Event()
            loop.set_exception_handler(lambda _, context: (refused.append(context["exception"].errno), news.set()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            try:
                knocking.connect(host.server.path)
                await news.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await host.until(lambda: host.changes == [(1, True)])
        loop.set_exception_handler(None)
        async with await Client.connect(host.server.path, 1) as client:
            assert client.id == 2
    assert set(refused) == {errno.EMFILE}


async def test_no_peer_changes_the_memorys_size(host):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        await asyncio.get_running_loop().sock_connect(peer, host.server.path)
        await host.until(lambda: host.changes == [(1, True)])
        fds = [fd for _ in range(3) for fd in socket.recv_fds(peer, 8, 1)[1]]
        for size in (0, host.server._size * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(fds[0], size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fds[0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        os.close(*fds)


async def test_a_dead_servers_socket_is_replaced_and_a_living_ones_is_not(tmp_path):
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first, second = Host(path), Host(path)
    async with first.server:
        with pytest.raises(OSError, match="in use"):
            async with second.server:
                pass
        async with await Client.connect(path, 1) as client:
            assert client.id == 2  # after the one that asked whether anybody was there
    path.write_bytes(b"a file")
    with pytest.raises(OSError, match="in use"):
        async with second.server:
            pass
    assert path.read_bytes() == b"a file"
