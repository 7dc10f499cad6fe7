"""A QEMU of the test's own: started, talked to by qtest, QMP and serial console, killed in the end whatever happens.

::

    async with Qemu("-device", "...") as qemu:              # no guest kernel: the CPU halts, the test is the driver
        await qemu.qtest.command("outb 0x20 0x11")
        qemu.ram[0x1000:0x1004]                             # the guest's memory, shared

    async with Qemu(linux=initramfs("echo READY; ...")) as qemu:
        await qemu.console.wait_for("READY")

What QEMU and the guest say goes to files of a temporary directory; when something fails, their ends are in the error.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from aioirqfd.sinks.qmp import Qmp, QmpError
from aioirqfd.sinks.qtest_client import QtestClient, QtestError
from tests.qemu import program
from tests.qemu.initramfs import Linux, initramfs, kernel
from tests.qemu.pci import MsixDevice, Pci

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["HALT", "Console", "Linux", "MsixDevice", "Pci", "Qemu", "QemuError", "initramfs", "kernel"]

HALT = bytes(0xFFF0) + bytes.fromhex("fa f4 eb fd") + bytes(12)
"""A firmware that does nothing: cli, hlt, and back to hlt. vhost starts only in a machine that runs."""
TAIL = 4000
"""Characters of an output that an error shows."""


class QemuError(Exception):
    """QEMU died, or something that was waited for did not come; the text ends with what it and its guest said."""


class Console:
    """The guest's serial console: every line kept, and waited for."""

    def __init__(self, end: socket.socket, log: Path) -> None:
        self.lines: list[str] = []
        self._end = end
        self._end.setblocking(False)
        self._log = log.open("wb")
        self._rest = b""
        self._news = asyncio.Event()
        self._seen = 0
        self._reading = True
        asyncio.get_running_loop().add_reader(end, self._read)

    def _read(self) -> None:
        try:
            data = self._end.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._stop()
            return
        self._log.write(data)
        self._log.flush()
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += [line.decode("utf-8", "replace").rstrip("\r") for line in lines]
        self._news.set()

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._end)
            self._news.set()

    async def wait_for(self, marker: str) -> str:
        """The next line that holds the marker, seeking on from where the last call stopped."""
        while True:
            while self._seen < len(self.lines):
                line = self.lines[self._seen]
                self._seen += 1
                if marker in line:
                    return line
                if "Kernel panic" in line:
                    raise QemuError(f"the guest: {line}")
            if not self._reading:
                raise QemuError(f"the console ended without {marker!r}")
            self._news.clear()
            await self._news.wait()

    async def send(self, text: str) -> None:
        """Type into the console: a line ends with its own newline."""
        await asyncio.get_running_loop().sock_sendall(self._end, text.encode())

    def close(self) -> None:
        self._stop()
        self._end.close()
        self._log.close()


class Qemu:
    """A QEMU process (TCG, one CPU): the one that :mod:`tests.qemu.program` chooses.

    Args:
        arguments: What follows the machine on the command line; unix socket paths are best inside :attr:`directory`.
        ram: Bytes of guest memory: a memfd that is :attr:`ram` here too. Guest physical addresses are offsets into it.
        machine: Machine type with its options.
        cpu: CPU model.
        linux: What to boot, by :func:`initramfs`; without it the firmware halts.
        stopped: With ``-S``.
        smp: CPUs.
        timeout: Seconds that one wait may take; only to fail with a reason instead of the test runner's.

    Attributes:
        qtest: A client of its qtest socket; None with ``connect=False``, when :attr:`qtest_path` is the test's to connect to.
        qmp: A client of its QMP socket.
        console: The serial console, with ``linux``.
    """

    qtest: QtestClient
    qmp: Qmp
    console: Console

    def __init__(
        self,
        *arguments: str,
        ram: int = 64 << 20,
        machine: str = "q35",
        cpu: str = "qemu64",
        linux: Linux | None = None,
        stopped: bool = False,
        smp: int = 1,
        connect: bool = True,
        timeout: float = 100,
        pass_fds: Iterable[int] = (),
    ) -> None:
        self.irqs: list[tuple[int, bool]] = []
        """The intercepted lines' changes that :attr:`qtest` heard of."""
        self.timeout = timeout
        self._arguments = arguments
        self._size = ram
        self._machine = machine
        self._cpu = cpu
        self._linux = linux
        self._stopped = stopped
        self._smp = smp
        self._connect = connect
        self._pass_fds = tuple(pass_fds)
        self._stack = contextlib.AsyncExitStack()
        # Not the test's own: its path may be too long for a unix socket. There before the start, so that back-ends can listen.
        self._directory = tempfile.TemporaryDirectory(prefix="aioirqfd-")
        self.directory = Path(self._directory.name)
        self.qtest_path = self.directory / "qtest"
        self.qmp_path = self.directory / "qmp"
        self.output = self.directory / "output"

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._directory.cleanup)
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def add_arguments(self, *arguments: str) -> None:
        """Before the start: what needs :attr:`directory`."""
        self._arguments += arguments

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        memory = os.memfd_create("guest", os.MFD_CLOEXEC)
        with contextlib.ExitStack() as ours:  # what only QEMU needs after the start
            ours.callback(os.close, memory)
            os.ftruncate(memory, self._size)
            self.ram = mmap.mmap(memory, self._size)
            stack.callback(self._close_ram)
            listeners = [self._listen(ours, path) for path in (self.qtest_path, self.qmp_path)]
            serial: list[str] = []
            fds = [memory, *listeners, *self._pass_fds]
            if self._linux is not None:
                end, theirs = socket.socketpair()
                ours.callback(theirs.close)
                self.console = Console(end, self.directory / "console")
                stack.callback(self.console.close)
                fds.append(theirs.fileno())
                serial = ["-chardev", f"socket,id=console,fd={theirs.fileno()}", "-serial", "chardev:console"]
            command = [*self._command(memory, *listeners), *serial, *self._arguments]
            with self.output.open("wb") as output:
                # A QEMU whose test was killed must not live on, nor hold the runner's pipes.
                self.process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=fds,
                )
            stack.callback(self._kill)
        self._pidfd = os.pidfd_open(self.process.pid)
        stack.callback(os.close, self._pidfd)
        self._died = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._on_death)
        stack.callback(loop.remove_reader, self._pidfd)
        self.qmp = await self.within(Qmp.connect(self.qmp_path))
        stack.push_async_callback(self.qmp.aclose)
        if self._connect:
            self.qtest = await self.within(
                QtestClient.connect(self.qtest_path, on_irq=lambda line, level: self.irqs.append((line, level)))
            )
            stack.push_async_callback(self.qtest.aclose)

    @staticmethod
    def _listen(stack: contextlib.ExitStack, path: Path) -> int:
        # Listening here already, so that a client needs no second try while QEMU starts.
        listener = socket.socket(socket.AF_UNIX)
        stack.callback(listener.close)
        listener.bind(str(path))
        listener.listen()
        return listener.fileno()

    def _command(self, memory: int, qtest: int, qmp: int) -> list[str]:
        command = [program.PROGRAM, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-machine", f"{self._machine},accel=tcg,memory-backend=ram", "-cpu", self._cpu]
        command += ["-smp", str(self._smp), "-m", f"{self._size >> 20}M"]
        command += ["-object", f"memory-backend-file,id=ram,size={self._size},mem-path=/proc/self/fd/{memory},share=on"]
        command += ["-chardev", f"socket,id=qtest,fd={qtest},server=on,wait=off", "-qtest", "chardev:qtest"]
        command += ["-qtest-log", "/dev/null"]
        command += ["-chardev", f"socket,id=qmp,fd={qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
        if self._stopped:
            command += ["-S"]
        if self._linux is None:
            bios = self.directory / "bios"
            bios.write_bytes(HALT)
            command += ["-bios", str(bios)]
        else:
            initrd = self.directory / "initrd"
            initrd.write_bytes(self._linux.initrd)
            command += ["-kernel", str(self._linux.kernel), "-initrd", str(initrd), "-append", self._linux.append]
        return command

    def _on_death(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._died.set()

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _close_ram(self) -> None:
        # A view that a failed test's traceback still holds must not hide that failure.
        with contextlib.suppress(BufferError):
            self.ram.close()

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def within(self, awaitable: Awaitable[T]) -> T:
        """Wait for something that QEMU is to bring about: fails with what it said when it dies, hangs up or takes too long."""
        try:
            async with asyncio.timeout(self.timeout):
                return await awaitable
        except TimeoutError:
            raise QemuError(f"not within {self.timeout} s; {self.said()}") from None
        except (QtestError, QmpError, QemuError, ConnectionError) as error:
            raise QemuError(f"{error}; {self.said()}") from error

    async def wait_for(self, marker: str) -> str:
        """The next line of the console that holds the marker."""
        return await self.within(self.console.wait_for(marker))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Look again and again; for what shows in the guest's memory alone and wakes nobody."""

        async def look() -> None:
            while not condition():
                if self._died.is_set():
                    raise QemuError("QEMU died")
                await asyncio.sleep(0)

        await self.within(look())

    async def died(self) -> int:
        """Wait for the end of the process; its return code (negative: the signal)."""
        await self.within(self._died.wait())
        return self.process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP, after which each of its threads stands still; SIGCONT, SIGKILL."""
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def said(self) -> str:
        """What QEMU and the guest said, the last part."""
        code = self.process.poll()
        text = f"QEMU {'runs' if code is None else f'ended with {code}'}, said: {self.output.read_text('utf-8', 'replace')[-TAIL:]!r}"
        if self._linux is not None:
            text += "\nthe guest said:\n" + "\n".join(self.console.lines)[-TAIL:]
        return text
