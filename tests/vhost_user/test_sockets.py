"""Where a back-end serves: a path, a socket that is handed in, a front-end that listens; and what is said if it cannot."""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false
# (what is not there, or of another kind, fails the test, as it should)
from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import socket
import threading
from pathlib import Path

import pytest

from aioirqfd import inspect
from aioirqfd.serving import sockets
from aioirqfd.serving.sockets import MAX_PATH, Listener, connect, listening, socket_path
from aioirqfd.testing import RecordingTracer
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.messages import Request
from tests.forks import in_child
from tests.vhost_user.devices import Gated, Upper
from tests.vhost_user.frontend import FrontEnd

AGAIN = 0.001


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return "socket"


async def answers(where):
    """Whether a device is served there."""
    async with FrontEnd(where) as front:
        queue = await front.start(0, 8)
        return await queue.ask([b"a"], [1]) == b"A"


# -- paths ---------------------------------------------------------------------------------------------------------------

LONGEST = "x" * MAX_PATH
WRONG = {
    "empty": ("", errno.EINVAL, "path is empty"),
    "too long": (LONGEST + "x", errno.ENAMETOOLONG, "too long: 108 bytes, and 107 at most"),
    "too long in bytes": ("ü" * 54, errno.ENAMETOOLONG, "too long: 108 bytes"),
    "nul": ("a\0b", errno.EINVAL, "NUL byte"),
    "abstract": ("\0a", errno.EINVAL, "NUL byte"),
    "no directory": ("nowhere/socket", errno.ENOENT, "No such file or directory"),
    "a file as directory": ("file/socket", errno.ENOTDIR, "Not a directory"),
    "a directory": ("directory", errno.EADDRINUSE, "in use, by a directory"),
    "a file": ("file", errno.EADDRINUSE, "in use, by a file that is no socket"),
    "a link to nowhere": ("link", errno.EADDRINUSE, "in use, by a link to nowhere"),
    "another type": ("datagram", errno.EADDRINUSE, "in use, by a socket that cannot be connected to"),
    "alive": ("alive", errno.EADDRINUSE, "Address already in use: 'alive'"),
    "alive and full": ("full", errno.EADDRINUSE, "Address already in use: 'full'"),
}


@pytest.fixture
def occupied(path):
    """Things at paths where a socket is wanted."""
    Path("directory").mkdir()
    Path("file").write_text("kept")
    Path("link").symlink_to("nothing")
    with contextlib.ExitStack() as stack:
        for name, kind in (
            ("datagram", socket.SOCK_DGRAM),
            ("alive", socket.SOCK_STREAM),
            ("full", socket.SOCK_STREAM),
        ):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind(name)
            if kind == socket.SOCK_STREAM:
                sock.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect("full")
        yield


@pytest.mark.parametrize(("where", "number", "text"), WRONG.values(), ids=WRONG)
async def test_what_is_wrong_with_a_path_is_said(occupied, where, number, text):
    with pytest.raises(OSError, match=r"socket|in use|No such|Not a") as caught:
        async with Backend(Upper(), where):
            pass
    assert (caught.value.errno, caught.value.filename) == (number, where)
    assert text in str(caught.value)
    assert Path("file").read_text() == "kept"
    assert Path("directory").is_dir()


async def test_the_longest_path_and_bytes_of_any_kind_are_taken(path):
    for where in (LONGEST, Path("pathlib"), b"bytes", os.fsdecode(b"\xff\xfe"), "ü" * 53):
        async with Backend(Upper(), where):
            assert await answers(os.fsdecode(where))
        assert not Path(os.fsdecode(where)).exists()


async def test_a_dead_socket_is_taken_over_a_link_to_one_too(path):
    for name in ("dead", "other"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(name)
    Path("link").symlink_to("other")
    for name in ("dead", "link"):
        async with Backend(Upper(), name):
            assert await answers(name)
        assert not Path(name).exists()


async def test_what_somebody_else_has_put_at_the_path_stays(path):
    """A second back-end that was started after the first one's socket was removed by hand."""
    async with Backend(Upper(), path):
        Path(path).unlink()
        async with Backend(Upper(), path):
            first = Path(path).stat().st_ino
            Path(path).rename("moved")
            Path("moved").rename(path)
            assert Path(path).stat().st_ino == first
        assert not Path(path).exists()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            other.listen()
    assert Path(path).is_socket()


def test_a_listener_that_cannot_be_made_leaves_nothing(path):
    with Listener(path) as listener:
        assert listener.sock.getblocking() is False
        with pytest.raises(OSError, match="already in use"):
            Listener(path)
    assert not Path(path).exists()


class Second(threading.Thread):
    """Makes a listener at the same path while another one is made, and finds the folder locked."""

    def __init__(self, path, monkeypatch):
        super().__init__()
        self.path = path
        self.in_the_way, self.over, self.refused = threading.Event(), threading.Event(), []
        self.flock = fcntl.flock
        monkeypatch.setattr(sockets.fcntl, "flock", self.lock)

    def lock(self, fd, operation):
        try:
            self.flock(fd, operation)
        except BlockingIOError:
            self.in_the_way.set()
            self.over.wait()  # holds up nobody but this thread's loop
            raise

    def run(self):
        async def serve():
            with await listening(self.path):
                pass

        try:
            asyncio.run(serve())
        except OSError as error:
            self.refused.append(error.errno)
        self.in_the_way.set()  # it found no lock

    def come(self, *_):
        if self.ident is None:
            self.start()
            self.in_the_way.wait()


@pytest.mark.alike
@pytest.mark.parametrize("when", ["it looks whether a dead one is there", "it is bound and does not listen"])
def test_of_two_that_begin_at_once_one_serves(path, monkeypatch, when):
    second = Second(path, monkeypatch)
    if when.startswith("it looks"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        occupied = sockets._occupied
        monkeypatch.setattr(sockets, "_occupied", lambda path: second.come() or occupied(path))
    else:
        bind = sockets._bind
        monkeypatch.setattr(sockets, "_bind", lambda *args: bind(*args) or second.come())
    with Listener(path) as listener:
        second.over.set()
        second.join()
        assert second.refused == [errno.EADDRINUSE]
        with connect(path):
            listener.sock.accept()[0].close()


@pytest.fixture
def locked(path):
    """The folder, which somebody else has locked; it is unlocked when the test closes it."""
    folder = os.open(".", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    return folder


@pytest.mark.alike
async def test_a_locked_folder_holds_up_this_socket_and_nothing_else(path, locked):
    making = asyncio.create_task(listening(path))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not making.done()
    assert not Path(path).exists()
    os.close(locked)
    with await making:
        assert Path(path).is_socket()


@pytest.mark.alike
async def test_a_folder_that_stays_locked_is_an_error_that_says_what_to_do(path, locked, monkeypatch):
    monkeypatch.setattr(sockets, "_LOCK_PAUSE", 0)
    for make in (lambda: Backend(Upper(), path).__aenter__(), lambda: inspect.serve(path), lambda: listening(path)):
        with pytest.raises(BlockingIOError, match="locked the folder, which lslocks names") as caught:
            await make()
        assert caught.value.filename == path
        assert not Path(path).exists()
    os.close(locked)
    async with Backend(Upper(), path):
        assert await answers(path)


@pytest.mark.alike
async def test_who_gives_up_a_locked_folder_leaves_nothing(path, locked):
    making = asyncio.create_task(listening(path))
    await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    os.close(locked)
    assert not Path(path).exists()


@pytest.mark.alike
def test_a_child_that_was_forked_meanwhile_keeps_no_lock(path, monkeypatch):
    bind, children = sockets._bind, []

    def forked(*args):
        read, write = os.pipe()
        children.append((os.fork(), write))
        if children[-1][0] == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        return bind(*args)

    monkeypatch.setattr(sockets, "_bind", forked)
    with Listener(path):
        monkeypatch.setattr(sockets, "_bind", bind)
        try:
            with Listener("other"):
                pass
        finally:
            for child, write in children:
                os.close(write)
                os.waitpid(child, 0)


@pytest.mark.alike
@pytest.mark.parametrize("what", ["a listener", "the control socket's server", "the tree's"])
def test_a_forked_child_that_unwinds_leaves_the_path_to_its_parent(path, what):
    async def leave(listener):
        server = await sockets.serve_streams(lambda _r, _w: None, listener)
        assert in_child(server.close) == 0

    async def tree():
        async with await inspect.serve(path) as serving:
            server = serving._server
            assert server is not None

            def unwind():
                server.close()
                serving._listener.__exit__()

            assert in_child(unwind) == 0
            assert Path(path).is_socket()

    if what == "the tree's":
        asyncio.run(tree())
    else:
        with Listener(path) as listener:
            if what == "a listener":
                assert in_child(listener.__exit__) == 0
            else:
                asyncio.run(leave(listener))
            with connect(path):
                pass
    assert not Path(path).exists()


@pytest.mark.parametrize("wrong", [None, 5, object()])
def test_a_path_is_a_path(wrong):
    with pytest.raises(TypeError):
        socket_path(wrong)


# -- sockets that are handed in ------------------------------------------------------------------------------------------


async def test_a_listening_socket_serves_one_front_end_after_the_other(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    async with Backend(Upper(), sock=sock) as backend:
        for _ in range(3):
            assert await answers(path)
        assert backend.statistics().sessions == 3
    assert sock.fileno() == -1
    assert Path(path).is_socket()  # whoever has made it takes it away


async def test_a_connected_socket_serves_one_and_then_it_is_over(path):
    ours, theirs = socket.socketpair()
    async with Backend(Upper(), sock=theirs) as backend:
        async with FrontEnd(ours) as front:
            over = asyncio.ensure_future(backend.serve_forever())
            queue = await front.start(0, 8)
            assert await queue.ask([b"a"], [1]) == b"A"
            assert not over.done()
        await over
        assert backend.statistics().sessions == 1
    assert theirs.fileno() == -1


async def test_a_socket_that_others_make_to_block_does_not_block():
    """O_NONBLOCK is a flag of the file, which whoever handed the socket in has, too."""
    ours, theirs = socket.socketpair()
    with theirs.dup() as shared:
        async with Backend(Upper(), sock=theirs), FrontEnd(ours) as front:
            queue = await front.start(0, 8)
            shared.setblocking(True)
            for _ in range(3):
                await front.tell(Request.SET_OWNER)
                assert await queue.ask([b"a"], [1]) == b"A"


async def test_a_back_end_that_never_got_to_its_front_end_closes_the_socket(path):
    ours, theirs = socket.socketpair()
    async with Backend(Upper(), sock=theirs):
        pass
    with ours:
        assert ours.recv(1) == b""
    assert theirs.fileno() == -1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (socket.socket, "Unix stream socket"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "Unix stream socket"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), "Unix stream socket"),
        (lambda: socket.socket(socket.AF_UNIX), "neither listens nor is connected"),
    ],
    ids=["tcp", "datagrams", "packets", "neither"],
)
def test_what_is_none_to_serve_on_is_refused(make, text):
    with make() as sock:
        for _ in ("open", "closed"):
            with pytest.raises(ValueError, match=text):
                Backend(Upper(), sock=sock)
            sock.close()


def test_where_to_serve_is_said_once():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for options in (
            {},
            {"path": "socket", "sock": ours},
            {"sock": ours, "connect": True},
            {"path": "socket", "reconnect": 1.0},
            {"sock": ours, "reconnect": 1.0},
        ):
            with pytest.raises(TypeError):
                Backend(Upper(), **options)
        for seconds in (0, -1, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="above 0"):
                Backend(Upper(), "socket", connect=True, reconnect=seconds)


async def test_waiting_for_front_ends_needs_an_open_back_end(path):
    with pytest.raises(RuntimeError, match="enter it"):
        await Backend(Upper(), path).serve_forever()


async def test_waiting_ends_when_it_is_cancelled_and_serving_does_not(path):
    async with Backend(Upper(), path) as backend:
        waiting = asyncio.ensure_future(backend.serve_forever())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await answers(path)


# -- front-ends that listen ----------------------------------------------------------------------------------------------


async def accepted(listener):
    return (await asyncio.get_running_loop().sock_accept(listener))[0]


async def test_a_back_end_connects_to_a_front_end_once(path):
    with Listener(path) as listener:
        async with Backend(Upper(), path, connect=True) as backend:
            assert await answers(await accepted(listener.sock))
            await backend.serve_forever()
        assert Path(path).is_socket()


async def test_nobody_to_connect_to_is_said_on_entering(path):
    for where, number in ((path, errno.ENOENT), ("dead", errno.ECONNREFUSED), ("", errno.EINVAL)):
        if where == "dead":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(where)
        with pytest.raises(OSError, match=r"refused|No such|empty") as caught:
            async with Backend(Upper(), where, connect=True):
                pass
        assert (caught.value.errno, caught.value.filename) == (number, where)


async def test_a_back_end_connects_again_and_again(path):
    """Whether the front-end comes later than the back-end, goes, or is another one at the same path."""
    tracer = RecordingTracer()
    async with Backend(Upper(), path, connect=True, reconnect=AGAIN, tracer=tracer) as backend:
        while not tracer.of("connect_failed"):
            await asyncio.sleep(AGAIN)
        for _ in range(2):
            with Listener(path) as listener:
                for _ in range(2):
                    assert await answers(await accepted(listener.sock))
        assert backend.statistics().sessions == 4
    assert "No such file or directory: 'socket'" in tracer.of("connect_failed")[0]["error"]


async def test_a_back_end_that_waits_for_a_front_end_can_be_left(path):
    async with Backend(Gated(), path, connect=True, reconnect=3600.0):
        await asyncio.sleep(0)


# -- left in the middle --------------------------------------------------------------------------------------------------


async def test_entering_that_fails_leaves_no_socket(path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr("aioirqfd.vhost_user.calls.EventFd", refuse)
    with pytest.raises(OSError, match="none left"):
        async with Backend(Upper(), path):
            pass
    assert not Path(path).exists()
    ours, theirs = socket.socketpair()
    with ours:
        with pytest.raises(OSError, match="none left"):
            async with Backend(Upper(), sock=theirs):
                pass
        assert ours.recv(1) == b""


async def test_entering_with_any_number_of_free_fds_works_or_leaves_nothing(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Backend(Upper(), "another"):
        with socket.socket() as probe:
            lowest = probe.fileno()
        for free in range(40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
            failed = None
            try:
                async with Backend(Upper(num_queues=2), path):
                    pass
            except OSError as error:
                failed = error.errno
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert not Path(path).exists()
            if failed is None:
                break
            assert failed == errno.EMFILE
        assert 2 < free < 39  # the socket, and a trigger for each queue


async def test_the_front_ends_are_counted(path):
    async with Backend(Upper(), path) as backend:
        for number in range(3):
            async with FrontEnd(path) as front:
                assert await front.number(Request.GET_QUEUE_NUM) == 1
                assert backend.statistics().sessions == number + 1


async def test_what_a_front_end_gives_is_no_childs(path):
    """Its memory and its eventfds are closed where this process becomes another program."""
    async with Backend(Upper(), path), FrontEnd(path) as front:
        before = {entry.name for entry in Path("/proc/self/fd").iterdir()}
        await front.start(0, 8)
        given = {entry.name for entry in Path("/proc/self/fd").iterdir()} - before
        kept = [fd for fd in given if Path(f"/proc/self/fd/{fd}").exists() and os.get_inheritable(int(fd))]
    assert len(given) > 3
    assert kept == []
