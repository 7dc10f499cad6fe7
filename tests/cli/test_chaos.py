"""``aioirqfd chaos``: any device class, by its name, with a script, a control socket and a log."""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.vfio_user.client import Client
from tests.vhost_user.frontend import FEATURES, FrontEnd

pytestmark = pytest.mark.alike

ROOT = Path(__file__).parents[2]
DEVICES = """
from aioirqfd.pci import Bar, PciDevice, Register
from aioirqfd.virtio import Device

class Upper(Device):
    def __init__(self, suffix="", times=1):
        self.suffix, self.times = suffix.encode(), times
    async def handle(self, request):
        return request.write(request.read().upper() + self.suffix * self.times)

class Plain(PciDevice):
    bars = (Bar(4096),)
    value = Register(0, reset=5)

class Neither:
    pass
"""


@pytest.fixture(autouse=True)
def _devices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("devices.py").write_text(DEVICES)


def command(*arguments):
    return [sys.executable, "-W", "error", "-P", "-m", "aioirqfd", "chaos", *arguments]


@contextlib.contextmanager
def chaos(*arguments):
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "chaos: ready\n"
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def tell(line):
    """One command at the control socket, and its answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("control")
        sock.sendall(f"{line}\n".encode())
        return sock.makefile().readline().rstrip("\n")


async def test_a_virtio_device_of_ones_own():
    Path("script").write_text("on any nth=2 name=second do corrupt data mask=0x20\n".replace(" data", ""))
    with chaos(
        "devices:Upper", "!", "times=2", "--socket-path", "s", "--control", "control", "--script", "script",
        "--nonconforming", "--log", "log",
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "chaos: on any nth=2 name=second do corrupt mask=0x20: second\n"
        async with FrontEnd("s") as front:
            await front.negotiate(FEATURES)
            await front.set_memory()
            queue = await front.start()
            assert [await queue.ask([b"hello"], [7]) for _ in range(3)] == [b"HELLO!!", b"hELLO!!", b"HELLO!!"]
        assert json.loads(tell("json"))["faults"][0]["hits"] == 1
        assert tell("on sky do fall").startswith("error: no fault 'fall'; there are delay")
    assert json.loads(Path("log").read_text().splitlines()[0]) == {"log": "aioirqfd.faults", "version": 1, "seed": 0}
    hits = [json.loads(line) for line in Path("log").read_text().splitlines() if '"fault"' in line]
    assert [hit["do"] for hit in hits] == [{"corrupt": [["data", 0, 1, 0x20]]}]
    # And again, by the log alone.
    with chaos("devices:Upper", "!", "times=2", "--socket-path", "s", "--replay", "log"):
        async with FrontEnd("s") as front:
            await front.negotiate(FEATURES)
            await front.set_memory()
            queue = await front.start()
            assert [await queue.ask([b"hello"], [7]) for _ in range(3)] == [b"HELLO!!", b"hELLO!!", b"HELLO!!"]


async def test_a_pci_device():
    with chaos("devices:Plain", "--socket-path", "s", "--control", "control", "--nonconforming"):
        async with Client("s") as client:
            assert await client.read(0, 0, 4) == b"\5\0\0\0"
            assert tell("on register-read do all-ones") == "all-ones-1"
            assert await client.read(0, 0, 4) == b"\xff" * 4
            assert tell("remove all-ones-1") == "ok"
            assert await client.read(0, 0, 4) == b"\5\0\0\0"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["devices", "--socket-path", "s"], "aioirqfd chaos: a device is MODULE:CLASS, not 'devices'\n"),
        (
            ["nowhere:X", "--socket-path", "s"],
            "aioirqfd chaos: nowhere:X: No module named 'nowhere'; modules are looked",
        ),
        (
            ["devices:Neither", "--socket-path", "s"],
            "aioirqfd chaos: devices:Neither is no virtio Device and no PciDevice",
        ),
        (["devices:Upper", "a", "1", "2", "--socket-path", "s"], "aioirqfd chaos: Upper.__init__() takes from 1 to 3"),
        (
            ["devices:Upper", "--socket-path", "s", "--script", "script"],
            "aioirqfd chaos: script: line 2: no command: 'x'",
        ),
        (["devices:Upper", "--socket-path", "s", "--script", "none"], "aioirqfd chaos: [Errno 2] No such file"),
        (
            ["devices:Upper", "--socket-path", "s", "--replay", "script"],
            "aioirqfd chaos: script, line 1: no log of faults",
        ),
        (["devices:Upper", "--socket-path", "/no/s"], "aioirqfd chaos: [Errno 2] No such file"),
    ],
)
def test_what_a_user_does_wrong_is_a_line(arguments, line):
    Path("script").write_text("reset\nx\n")
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_without_a_device_its_usage_is_told():
    done = subprocess.run(command(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "DEVICE and --socket-path must be given" in done.stderr


def test_all_faults_are_listed():
    done = subprocess.run(command("--list"), capture_output=True, text=True, check=True)
    assert "drop             interrupt  not         virtio 1.2, 2.7.7.2, NVMe 1.4, 7.5\n" in done.stdout
    assert "delay            request    conforming  " in done.stdout


def test_a_script_that_cannot_go_on_ends_it():
    Path("script").write_text("on any do drop\n")
    done = subprocess.run(
        command("devices:Upper", "--socket-path", "s", "--script", "script"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "chaos: ready\n")
    assert done.stderr.startswith("aioirqfd chaos: no conforming device may drop a request (virtio 1.2, 2.7.8")


def test_the_lines_that_the_guide_shows(monkeypatch):
    page = (ROOT / "docs" / "how-to" / "faults.md").read_text("utf-8").partition("## Without a test")[2]
    (line,) = re.findall(r"^\$ aioirqfd chaos (.*)$", page, re.MULTILINE)
    (script,) = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    Path("disk.img").write_bytes(bytes(1 << 20))
    Path("chaos.txt").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with chaos(*shlex.split(line)) as process:
        first, *_ = script.splitlines()
        assert process.stdout.readline() == f"chaos: {first}: third\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect("chaos.sock")
            sock.sendall("\n".join(script.splitlines()[2:]).encode() + b"\n")
            answers = sock.makefile()
            assert [answers.readline().strip() for _ in range(2)] == ["delay-2", "delay-3"]
            assert len(json.loads(answers.readline())["faults"]) == 3
