"""How the examples start: by either name, ready with a line, and without a traceback for what a user gets wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from examples import ivshmem_peer, ivshmem_server
from examples.ivshmem_peer import Client
from tests.docs import test_examples

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.alike

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LIMIT = 50
# What is imported by others, and is no program, or needs QEMU; and what tests/docs/test_follow.py runs, whose output is another each time.
PARTS = {
    "__init__",
    "howto_guest",
    "howto_ledger",
    "howto_follow",
    "net_tap",
    "net_user",
    "ns16550",
    "nvme_controller",
    "nvme_queues",
}
# These serve, or go on for a while, and are asked for their help. All others end by themselves, and tests/docs/test_examples.py
# starts them both ways.
WITH_OPTIONS = {
    "chaos_blk",
    "edu_pci",
    "nvme",
    "linux_sees",
    "uart_pci",
    "vhost_user_blk",
    "vhost_user_ping",
    "vhost_user_rng",
    "ivshmem_peer",
    "ivshmem_server",
    "virtio_console",
    "virtio_net",
    "vmm",
}
# It serves, and test_vhost_user.py starts it both ways.
SERVER = "vhost_user_upper"
SHOWN = {path.stem for path in test_examples.EXAMPLES}
PROGRAMS = sorted({path.stem for path in EXAMPLES.glob("*.py")} - PARTS - SHOWN - {SERVER} | {"vmm"})


def ways(name: str) -> list[list[str]]:
    """The same program by its path, and as a module."""
    path = EXAMPLES / name
    return [[str(path if path.is_dir() else path.with_suffix(".py"))], ["-m", f"examples.{name}"]]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)


@contextlib.contextmanager
def running(*arguments: str | Path, cwd: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
    """A program that is under way; it may not outlive the test."""
    pipe = subprocess.PIPE
    # A line that waits in a buffer is not there for whoever reads; this variable would hide it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        command(*arguments), cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """What a program says that cannot start: its last line, which is all but for a usage."""
    monkeypatch.chdir(tmp_path)

    def refused(program, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [program.__name__, *arguments])
        with pytest.raises(SystemExit) as raised:
            program.main()
        said = capsys.readouterr()
        assert said.out == ""
        if isinstance(raised.value.code, str):  # it is printed on the way out, and the status is 1
            assert said.err == ""
            return raised.value.code
        assert raised.value.code == 2
        assert said.err.startswith("usage: ")
        return said.err.splitlines()[-1]

    return refused


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_runs_by_its_path_and_as_a_module(name, tmp_path):
    arguments = ["--help"] if name in WITH_OPTIONS else []
    by_path, as_module = ways(name)
    outputs = []
    # From anywhere by its path; a module is found from the root of the tree.
    with running(*by_path, *arguments, cwd=tmp_path) as one, running(*as_module, *arguments) as other:
        for process in (one, other):
            output, error = process.communicate(timeout=LIMIT)
            assert (process.returncode, error) == (0, "")
            outputs.append(output)
    assert all(output.startswith("usage: " if arguments else "") and output for output in outputs)
    if not arguments:
        assert outputs[0] == outputs[1]


# ------------------------------------------------------------------------------------------------------------------ KVM


def test_without_kvm_the_guide_says_why():
    program = (
        "import runpy, aioirqfd.kvm; aioirqfd.kvm.usable = lambda: 'there is no /dev/kvm'; "
        "runpy.run_path('examples/howto_kvm.py', run_name='__main__')"
    )
    done = run("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "howto_kvm: there is no /dev/kvm\n")


# -------------------------------------------------------------------------------------------------------------- ivshmem


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vectors", "0"], "vectors of each peer: 1..64, not 0"),
        (["--vectors", "65"], "vectors of each peer: 1..64, not 65"),
        (["--vectors", "two"], "argument --vectors: invalid int value: 'two'"),
        (["--size", "5000"], "size of the memory: a power of two, 4096..4611686018427387904 bytes, not 5000"),
        (["--size", "2K"], "bytes, not 2048"),
        (["--size", "0"], "bytes, not 0"),
        (["--size", "8589934592G"], "bytes, not 9223372036854775808"),
        (["--size", "1T"], "argument --size: not a size such as 65536, 64K, 1M or 1G: '1T'"),
        (["--size", "-4K"], "argument --size: expected one argument"),
        (["--size=-4K"], "argument --size: not a size such as 65536, 64K, 1M or 1G: '-4K'"),
        (["--size", "K"], "argument --size: not a size such as 65536, 64K, 1M or 1G: 'K'"),
        (["--size", ""], "argument --size: not a size such as 65536, 64K, 1M or 1G: ''"),
    ],
)
def test_the_ivshmem_server_says_which_number_is_wrong(refused, arguments, said):
    assert refused(ivshmem_server, "x.sock", *arguments).endswith(said)


def test_the_ivshmem_server_says_that_there_is_not_so_much_memory(refused):
    said = refused(ivshmem_server, "x.sock", "--size", "4294967296G")
    assert said.startswith("ivshmem_server: [Errno ")
    assert said.endswith(": 4611686018427387904 bytes of shared memory")


@pytest.mark.parametrize("program", [ivshmem_server, ivshmem_peer])
@pytest.mark.parametrize("path", ["nowhere/x.sock", "x" * 120, "file", "file/x.sock", "."])
def test_the_path_is_in_the_message(refused, program, path):
    Path("file").touch()
    said = refused(program, path)
    assert said.startswith(f"{program.__name__.removeprefix('examples.')}: [Errno ")
    assert f": {path!r}" in said
    assert "None" not in said


def test_a_path_that_is_taken(refused):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("x.sock")
        other.listen()
        said = refused(ivshmem_server, "x.sock")
    assert said == "ivshmem_server: [Errno 98] Address already in use: 'x.sock'"
    said = refused(ivshmem_peer, "x.sock")
    assert said == "ivshmem_peer: [Errno 111] Connection refused; no server listens there: 'x.sock'"


@pytest.fixture
async def server(tmp_path):
    async def doorbell(_vector, _count): ...

    async with ivshmem_server.Server(tmp_path / "x.sock", doorbell, vectors=2, size=4096) as server:
        yield server


@pytest.mark.parametrize(
    ("ring", "said"),
    [
        (("0", "2"), "peer 0 has no vector 2; peer 0 has 0..1"),
        (("0", "-1"), "peer 0 has no vector -1; peer 0 has 0..1"),
        (("7", "0"), "peer 7 has no vector 0; peer 0 has 0..1"),
    ],
)
async def test_who_cannot_be_rung_is_said(server, ring, said):
    done = await asyncio.to_thread(run, *ways("ivshmem_peer")[0], server.path, "--vectors", "2", "--ring", *ring)
    assert (done.returncode, done.stderr) == (1, f"ivshmem_peer: {said}\n")


def test_a_peer_has_a_vector(refused):
    assert refused(ivshmem_peer, "x.sock", "--vectors", "0").endswith("argument --vectors: 1 or more, not 0")


async def test_a_server_with_fewer_vectors_is_not_waited_for(server, monkeypatch):
    limits = []

    def timeout(seconds):
        limits.append(asyncio.Timeout(asyncio.get_running_loop().time() + seconds))
        return limits[0]

    monkeypatch.setattr(ivshmem_peer.asyncio, "timeout", timeout)
    connecting = asyncio.ensure_future(Client.connect(server.path, 3))
    # The time is up when all is there that comes, however long that has taken.
    while not limits or len(server.peers) < 1:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    limits[0].reschedule(asyncio.get_running_loop().time())
    with pytest.raises(TimeoutError, match=r"2 of 3 vectors came .* 3 vectors for each peer\?: '.*x.sock'"):
        await connecting


async def test_a_server_that_says_nothing_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(ivshmem_peer, "PATIENCE", 0.2)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "x.sock"))
        other.listen()
        with pytest.raises(TimeoutError, match=r"nothing came .*x.sock"):
            await Client.connect(tmp_path / "x.sock", 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the server hung up"),
        ([7], "protocol version 7, not 0"),
        ([0, 3, -1], "not an ivshmem server: no memory came"),
    ],
)
async def test_what_is_no_ivshmem_server_is_said(words, said, tmp_path):
    path = str(tmp_path / "x.sock")

    async def answer(_reader, writer):
        writer.write(b"".join(word.to_bytes(8, "little", signed=True) for word in words))
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        with pytest.raises(ConnectionError, match=said) as raised:
            await Client.connect(path, 1)
    assert raised.value.filename == path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_is_ready_with_a_line_and_ends_with_one(number, tmp_path):
    path = tmp_path / "x.sock"
    with running(*ways("ivshmem_server")[0], path) as process:
        assert read_line(process) == f"serving on {path}; a guest joins with:\n"
        assert f"-chardev socket,id=iv,path={path} " in read_line(process)
        process.send_signal(number)
        assert process.communicate(timeout=LIMIT) == ("stopped\n", "")
    assert process.returncode == 0
    assert not path.exists()


async def test_a_peer_says_that_the_server_has_gone_and_ends_with_a_line(tmp_path):
    async def doorbell(_vector, _count): ...

    path = tmp_path / "x.sock"
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(ivshmem_server.Server(path, doorbell))
        with running(*ways("ivshmem_peer")[0], path) as process:
            assert await asyncio.to_thread(read_line, process) == "peer 1, 1048576 bytes shared, beside [0]\n"
            await stack.aclose()
            assert await asyncio.to_thread(read_line, process) == "the server has gone; who is here can still ring\n"
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.communicate, timeout=LIMIT) == ("stopped\n", "")
    assert process.returncode == 0


async def test_ctrl_c_while_a_peer_waits_for_its_welcome_ends_in_a_line(tmp_path):
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with running(*ways("ivshmem_peer")[0], path) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=LIMIT) == ("", "ivshmem_peer: stopped\n")
