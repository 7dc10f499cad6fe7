"""``python -m examples.vmm linux`` with guests of a few instructions: its console, and each way to end."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from typing import TYPE_CHECKING

import pytest

from examples.vmm.linux import command, speed
from tests.examples.test_linux_boot import image
from tests.examples.test_linux_machine import CRASH, PANIC, POWER_OFF, RESET, SPIN

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.kvm

HI = b"\x66\xba\xf8\x03" + b"".join(
    bytes([0xB0, value, 0xEE]) for value in b"hi\n"
)  # mov dx, 0x3f8; mov al, "h"; out dx, al ...
ECHO = (
    b"\x66\xba\xfc\x03\xb0\x0b\xee"  # mov dx, 0x3fc; mov al, 0xb; out dx, al    there is a driver
    b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7"  # again: mov dx, 0x3fd; in al, dx; test al, 1; jz again
    b"\x66\xba\xf8\x03\xec\xee\x3c\x71\x75\xed"  # mov dx, 0x3f8; in al, dx; out dx, al; cmp al, "q"; jne again
)


@pytest.fixture
def boots(tmp_path, monkeypatch):
    """Runs the command with a guest of this code, and options; returns its exit status."""
    # Whatever KVM does here, it is fast enough for these.
    monkeypatch.setattr(speed, "why_too_slow", lambda: None)

    def run(code: bytes, *options: str) -> int:
        kernel = bytearray(image())
        kernel[3 * 512 + 0x200 : 3 * 512 + 0x200 + len(code)] = code
        path = tmp_path / "vmlinuz"
        path.write_bytes(kernel)
        return command.main(["--kernel", str(path), "--memory", "64M", *options])

    return run


@contextlib.contextmanager
def meanwhile(do: Callable[[], None]):
    """Do something in a thread, and let the test fail of what it raises."""
    errors = []

    def doing() -> None:
        try:
            do()
        except BaseException as error:
            errors.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=doing)
    thread.start()
    yield
    thread.join()
    assert not errors


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (POWER_OFF, 0, "the guest switched itself off"),
        (RESET, 3, "the guest wants to be started anew"),
        (PANIC, 4, "the guest's kernel panicked"),
        (CRASH, 5, "the guest crashed: a triple fault"),
    ],
    ids=["off", "reset", "panic", "crash"],
)
def test_how_it_ended_is_said_when_its_output_is_written(boots, capfd, tmp_path, code, status, said):
    out = tmp_path / "out"
    assert boots(HI + code, "--console", str(out)) == status
    assert out.read_bytes() == b"hi\n"
    assert capfd.readouterr().err == f"vmm: {said}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.usefixtures("signals_heard")
def test_a_signal_ends_it(boots, capfd, tmp_path, number):
    out = tmp_path / "out"
    os.mkfifo(out)

    def send() -> None:
        with out.open("rb") as file:
            assert file.read(3) == b"hi\n"
        os.kill(os.getpid(), number)

    with meanwhile(send):
        assert boots(HI + SPIN, "--console", str(out), "--cpus", "2") == 128 + number
    assert capfd.readouterr().err == f"vmm: stopped by {number.name}\n"


class TestTerminal:
    @pytest.fixture
    def pair(self):
        fds = os.openpty()
        yield fds
        for fd in fds:
            os.close(fd)

    def run(self, boots, pair, code: bytes, typed: bytes, *, wait_for: bytes) -> tuple[int, bytes]:
        """Type when this is seen, while the terminal is raw; returns the status, and what was seen before."""
        master, slave = pair
        before = termios.tcgetattr(slave)
        seen = bytearray()

        def user() -> None:
            while wait_for not in seen:
                seen.extend(os.read(master, 100))
            assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
            os.write(master, typed)

        with meanwhile(user):
            status = boots(code, "--console", os.ttyname(slave))
        assert termios.tcgetattr(slave) == before
        os.set_blocking(master, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                seen.extend(os.read(master, 100))
        return status, bytes(seen)

    def test_every_key_comes_to_the_guest_and_back(self, boots, pair):
        keys = bytes(range(2, 0x71))
        assert self.run(boots, pair, HI + ECHO + POWER_OFF, keys + b"q", wait_for=b"hi\n") == (0, b"hi\n" + keys + b"q")

    def test_ctrl_a_x_leaves(self, boots, pair, capfd):
        assert self.run(boots, pair, HI + ECHO + SPIN, b"\x01x", wait_for=b"hi\n") == (0, b"hi\n")
        assert capfd.readouterr().err == "vmm: left\n"


class TestItCannotRun:
    def test_kvm_is_too_slow(self, boots, capfd, monkeypatch):
        monkeypatch.setattr(speed, "why_too_slow", lambda: "KVM dawdles")
        assert boots(POWER_OFF) == 2
        assert capfd.readouterr().err == f"vmm: KVM dawdles; {command.NESTED}\n"

    def test_there_is_no_kvm(self, boots, capfd, monkeypatch):
        monkeypatch.setattr(command, "usable", lambda: "there is no KVM")
        assert boots(POWER_OFF) == 2
        assert capfd.readouterr().err == f"vmm: there is no KVM; {command.NESTED}\n"

    def test_that_is_no_kernel(self, boots, capfd, tmp_path):
        other = tmp_path / "other"
        other.write_bytes(bytes(4096))
        assert boots(POWER_OFF, "--kernel", str(other)) == 2
        assert f"vmm: {other} is not a bzImage" in capfd.readouterr().err

    def test_that_is_no_disk(self, boots, capfd, tmp_path):
        image = tmp_path / "image"
        image.write_bytes(b"x" * 100)
        assert boots(POWER_OFF, "--disk", str(image)) == 2
        assert capfd.readouterr().err.startswith("vmm: ")

    def test_its_output_cannot_be_written(self, boots, capfd):
        assert boots(HI + SPIN, "--console", "/dev/full") == 2
        assert capfd.readouterr().err == "vmm: [Errno 28] No space left on device: '/dev/full'\n"


class TestSpeed:
    def test_a_loop_is_timed(self):
        assert speed.instructions_per_second() > 10_000

    @pytest.mark.parametrize(("speed_here", "slow"), [(1.4e6, True), (9e6, True), (10e6, False), (3e9, False)])
    def test_what_is_too_slow(self, monkeypatch, speed_here, slow):
        monkeypatch.setattr(speed, "instructions_per_second", lambda: speed_here)
        reason = speed.why_too_slow()
        assert (reason is not None) == slow
        assert reason is None or f"{speed_here / 1e6:.1f} million instructions a second" in reason
