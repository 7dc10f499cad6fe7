"""``python -m examples.vmm linux`` in a terminal, as its user sees it: nested in QEMU, whose CPU has emulated SVM.

One boot does everything; each of its results is a test here.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from examples.vmm.linux import userland
from tests.qemu import program
from tests.qemu.initramfs import BUSYBOX, kernel, need
from tests.qemu.nested_linux import ENDED

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(450)]

ROOT = Path(__file__).parents[2]
PROMPT = rb"# (\x1b\[6n)?"
"""The shell's, and it asks where the cursor is."""
NEWLINE = rb"\r+\n"
"""QEMU's own terminal adds a carriage return to the guest's."""
PASTED = "".join(f"line {number} of what is pasted\n" for number in range(100))
RESULT = re.compile(rb"<(\w+) (.*?)>", re.DOTALL)


class User:
    """Somebody at a terminal. Reads on, whatever comes in how many pieces."""

    def __init__(self, *command: str) -> None:
        self.seen = b""
        self.all = b""
        self.master, slave = os.openpty()
        self.slave = slave
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "error", *command],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.set_blocking(self.master, False)

    async def until(self, pattern: bytes) -> bytes:
        """Read until this comes; returns all before it."""
        loop = asyncio.get_running_loop()
        while (found := re.search(pattern, self.seen)) is None:
            ready = loop.create_future()
            loop.add_reader(self.master, ready.set_result, None)
            try:
                await ready
            finally:
                loop.remove_reader(self.master)
            some = os.read(self.master, 65536)
            self.seen += some
            self.all += some
        before, self.seen = self.seen[: found.start()], self.seen[found.end() :]
        return before

    async def type(self, text: str) -> None:
        """Type, as fast as the terminal takes it."""
        rest = memoryview(text.encode())
        while rest:
            try:
                rest = rest[os.write(self.master, rest) :]
            except BlockingIOError:
                await asyncio.sleep(0.01)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


async def session(directory: Path) -> dict[str, object]:
    """What the user does; what is between < and > in the guest's output is a result."""
    user = User(
        "-m",
        "tests.qemu.nested_linux",
        "--kernel",
        str(directory / "vmlinuz"),
        "--initrd",
        str(directory / "initramfs"),
    )
    try:
        async with asyncio.timeout(400):
            await user.until(PROMPT)
            # Spelled so that the echo of the command is not taken for its output.
            await user.type('say() { echo "<"$*">"; }; say tty $(tty); say irq $(grep ttyS0 /proc/interrupts)\r')
            await user.until(b"<irq .*?>")
            await user.type("say sum $(yes 'a line of output' | head -c 20000 | tee /dev/tty | md5sum)\r")
            await user.until(b"<sum .*?>")
            await user.type("stty -echo; echo pasting $((40 + 2)); cat >pasted\r")
            await user.until(b"pasting 42")
            await user.type(PASTED + "\x04")
            await user.until(PROMPT)
            await user.type("say pasted $(md5sum <pasted); stty echo\r")
            await user.until(PROMPT)
            await user.type("echo sleeping $((40 + 2)); sleep 1000\r")
            await user.until(b"sleeping 42")
            await user.type("\x03")
            await user.until(PROMPT)
            await user.type("say status $?\r")
            await user.until(b"<status .*?>")
            await user.type("\x01\x01say ctrl-a\x01x")  # at the line's beginning, say it is, and leave
            await user.until(f"{ENDED} ".encode())
            status = await user.until(NEWLINE)
            user.process.wait(60)
        results: dict[str, object] = {name.decode(): value.decode() for name, value in RESULT.findall(user.all)}
        return results | {
            "ended": status,
            "text": re.sub(NEWLINE, b"\n", user.all),
            "restored": termios.tcgetattr(user.slave) == user.before,
        }
    except BaseException as error:
        error.add_note(user.all.decode("utf-8", "replace"))
        raise
    finally:
        user.close()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    need(program.path(), program.PROGRAM)
    need(BUSYBOX.exists(), str(BUSYBOX))
    kernel()
    directory = tmp_path_factory.mktemp("linux")
    assert userland.main([str(directory)]) == 0
    with asyncio.Runner() as runner:
        return runner.run(session(directory))


def test_the_console_is_a_terminal_by_interrupts_of_pin_4(outcome):
    assert outcome["tty"] == "/dev/ttyS0"
    pin, count, *what = outcome["irq"].split()
    assert (pin, what) == ("4:", ["IO-APIC", "4-edge", "ttyS0"])
    assert int(count) > 0


def test_no_byte_of_its_output_is_lost(outcome):
    text = (b"a line of output\n" * 2000)[:20000]
    assert text in outcome["text"]
    assert outcome["sum"].split()[0] == hashlib.md5(text).hexdigest()


def test_no_byte_of_what_is_pasted_is_lost(outcome):
    assert outcome["pasted"].split()[0] == hashlib.md5(PASTED.encode()).hexdigest()


def test_ctrl_c_is_the_guests(outcome):
    assert outcome["status"] == "130"


def test_ctrl_a_x_leaves(outcome):
    assert b"vmm: left\n" in outcome["text"]
    assert (outcome["ended"], outcome["restored"]) == (b"0", True)
