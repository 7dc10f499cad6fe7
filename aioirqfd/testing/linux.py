r"""A guest for a test: a Linux kernel in QEMU, with devices of yours, in which a test runs commands.

::

    async with guest(Blk("disk.img"), modules=["virtio_pci", "virtio_blk"]) as vm:
        assert (await vm.run("cat /sys/block/vda/size")).output == "131072\n"

Instead of QEMU a VMM in this process can run it: a :class:`Vmm`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, final

from aioirqfd.pci.device import PciDevice
from aioirqfd.testing.initramfs import PACKAGES, GuestError, debian_kernel, initramfs
from aioirqfd.testing.tracer import Tail
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.tracing.ledger import ledger, of_qemu, taken
from aioirqfd.vfio_user.server import Server
from aioirqfd.vhost_user.backend import Backend
from aioirqfd.virtio.device import Device
from aioirqfd.virtio_pci import VirtioPci

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import TypeVar

    from aioirqfd.faults import Faults
    from aioirqfd.tracer import Tracer
    from aioirqfd.tracing import FlightRecorder
    from aioirqfd.tracing.ledger import Ledger

    T = TypeVar("T")

AnyDevice = Device | PciDevice
TAIL: Final = 60
"""Lines of the console that an error shows."""
CHUNK: Final = 512
"""Characters of a command that are sent in one line."""
COMMAND_LINE: Final = "console=ttyS0 no_timer_check quiet panic=-1"
# no_timer_check: on a busy host Linux may find that the emulated timer does not tick, and panic.
QEMU_COMMAND_LINE: Final = f"{COMMAND_LINE} tsc=unstable"
QEMU_DEVICES: Final = {2: "vhost-user-blk-pci,num-queues={queues}", 4: "vhost-user-rng-pci"}
"""By virtio device id, what QEMU calls it, where it needs no more than that."""
# In a shell of its own: an orphan that ends is a signal for process 1, whose `read` would begin the line anew, and forget what it has.
AGENT: Final = """
mkdir -p /tmp
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
(
echo READY >&3
while read -r what rest <&3; do
    case $what in
        add) echo "$rest" >>/tmp/command ;;
        run) base64 -d </tmp/command >/tmp/script; rm /tmp/command
            sh /tmp/script </dev/null >/tmp/output 2>&1; status=$?
            base64 </tmp/output >&3; echo "$rest $status" >&3 ;;
    esac
done
)
"""


class Vmm(Protocol):
    """Runs a guest in this process, on this loop, in place of QEMU. The example VMM's is ``examples.vmm.linux.guest.machine``."""

    def __call__(
        self,
        devices: Sequence[PciDevice],
        *,
        kernel: Path,
        initrd: bytes,
        append: str,
        memory: int,
        cpus: int,
        serial: tuple[socket.socket, socket.socket],
        tracer: Tracer,
    ) -> AbstractAsyncContextManager[object]:
        """Make a machine that runs while the context lasts.

        Args:
            devices: What is to be in its PCI slots, from 1 on; they stay the caller's.
            kernel: A bzImage.
            initrd: Its initramfs.
            append: Its command line.
            memory: MiB.
            cpus: 1 or more.
            serial: What is at the other end of the guest's first two serial ports, ttyS0 and ttyS1; the sockets are the machine's, to
                be closed when the guest has ended.
            tracer: Hears what happens to the devices and to the interrupts.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class Result:
    """What came of a command.

    Attributes:
        output: What it printed, on standard output and standard error.
        status: Its exit status.
    """

    output: str
    status: int


@final
class Books:
    """What :meth:`aioirqfd.testing.Guest.books` keeps.

    Attributes:
        ledger: The books joined, when the block has ended.
    """

    ledger: Ledger

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def traced(self) -> list[str] | None:
        """The lines of QEMU's trace up to here; None: it is not QEMU that runs the guest."""
        return self._trace.read_text("utf-8", "replace").splitlines() if self._trace.exists() else None


@final
class Guest:
    """A running guest; :func:`guest` makes it.

    Attributes:
        console: What the kernel and init have printed so far, by line.
        directory: A directory of its own on the host, for sockets.

    Threads: the loop's.
    """

    def __init__(self, directory: Path, *, seconds: float) -> None:
        self.console: list[str] = []
        self.directory: Final = directory
        self._seconds = seconds
        self._news = asyncio.Event()
        self._ended = False
        self._output = directory / "qemu"
        self._trace = directory / "qemu.trace"
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._reading: asyncio.Task[None] | None = None

    async def run(self, command: str, *, seconds: float | None = None, check: bool = False) -> Result:
        """Run a command in the guest, or several: a script for busybox' shell. One at a time; others wait.

        Args:
            command: The script.
            seconds: That it may take; None: as the guest was told.
            check: Raise if its status is not 0.

        Raises:
            GuestError: It takes longer, or the guest has died, or ``check`` and it has failed; with what was said.
        """
        async with self._lock:
            return await self._run(command, self._seconds if seconds is None else seconds, check=check)

    async def _run(self, command: str, seconds: float, *, check: bool) -> Result:
        assert self._reader is not None
        assert self._writer is not None
        text = base64.b64encode(command.encode()).decode()
        for at in range(0, len(text), CHUNK):
            self._writer.write(f"add {text[at : at + CHUNK]}\n".encode())
        token = secrets.token_hex(8)
        self._writer.write(f"run {token}\n".encode())
        lines: list[bytes] = []
        while True:
            line = await self.within(self._reader.readline(), f"{command!r} has not ended", seconds)
            if not line.endswith(b"\n"):
                raise self.error(f"the guest ended during {command!r}")
            if line.startswith(token.encode()):
                break
            lines.append(line)
        status = int(line.split()[1])
        result = Result(base64.b64decode(b"".join(lines)).decode(errors="replace"), status)
        if check and status:
            raise self.error(f"{command!r} ended with status {status}, and printed {result.output!r}")
        return result

    async def wait_console(self, text: str, *, seconds: float | None = None) -> str:
        """Wait for a line of the console that has this text; return it. It may have been there before.

        Raises:
            GuestError: It does not come in time, or the guest has died.
        """

        async def look() -> str:
            seen = 0
            while True:
                for line in self.console[seen:]:
                    if text in line:
                        return line
                seen = len(self.console)
                if self._ended:
                    raise self.error(f"the console ended without {text!r}")
                self._news.clear()
                await self._news.wait()

        return await self.within(look(), f"no line of the console has {text!r}", seconds)

    @contextlib.asynccontextmanager
    async def books(
        self, recorder: FlightRecorder, *, device: str | None = None, address: str | None = None
    ) -> AsyncGenerator[Books]:
        """Keep the books of a PCI device's interrupts while the block runs: its own, QEMU's if that runs the guest, and the guest's.

        Args:
            recorder: What the guest was given as its ``tracer``, or what stands behind that.
            device: Whose, as the recorder calls it; not needed where there is one.
            address: Where the guest has it, ``00:04.0``; the same.

        Raises:
            LedgerError: There are several devices to choose from, or none; at the end of the block.
            GuestError: The guest has died.
        """
        books = Books(self._trace)
        before, seen, since_ns = await self._interrupts(), len(books.traced() or ()), time.monotonic_ns()
        yield books
        after, traced = await self._interrupts(), books.traced()
        books.ledger = ledger(
            recorder.log(),
            qemu=None if traced is None else of_qemu(traced[seen:]),
            guest=taken(before, after),
            device=device,
            address=address,
            since_ns=since_ns,
            slow_ns=0,
        )

    async def _interrupts(self) -> str:
        return (await self.run("cat /proc/interrupts", check=True)).output

    # -- for guest() -------------------------------------------------------------------------------------------------

    def error(self, what: str) -> GuestError:
        """An error that shows what was said."""
        return GuestError(f"{what}\n{self.said()}")

    def said(self) -> str:
        """What QEMU and the console said last."""
        console = "\n".join(self.console[-TAIL:])
        output = self._output.read_text("utf-8", "replace")[-2000:] if self._output.exists() else ""
        qemu = f"QEMU said: {output!r}\n" if self._output.exists() else ""
        return f"{qemu}the guest's console:\n{console}"

    async def within(self, awaitable: Awaitable[T], what: str, seconds: float | None = None) -> T:
        """Wait, but not longer than that."""
        seconds = self._seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                return await awaitable
        except TimeoutError:
            raise self.error(f"{what} within {seconds:g} s") from None

    async def boot(self, console: socket.socket, agent: socket.socket) -> None:
        """Read the console, and wait until the guest takes commands."""
        reader, writer = await asyncio.open_connection(sock=console)
        self._reading = asyncio.create_task(self._read(reader), name="aioirqfd guest's console")
        self._reader, self._writer = await asyncio.open_connection(sock=agent)
        self._writers += [writer, self._writer]
        while (line := await self.within(self._reader.readline(), "the guest is not up")) != b"READY\n":
            if not line:
                await self._reading
                raise self.error("the guest ended while it came up")

    async def aclose(self) -> None:
        """Hang up; idempotent."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        self._writers.clear()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.console.append(line.decode("utf-8", "replace").rstrip("\r\n"))
                self._news.set()
        self._ended = True
        self._news.set()


@contextlib.asynccontextmanager
async def guest(
    *devices: AnyDevice | tuple[AnyDevice, str],
    kernel: str | os.PathLike[str] | None = None,
    modules: Sequence[str] = (),
    files: Mapping[str, bytes | str | Path] | None = None,
    programs: Sequence[str | Path] = (),
    memory: int = 256,
    cpus: int = 1,
    accel: str = "tcg",
    qemu: str = "qemu-system-x86_64",
    arguments: Sequence[str] = (),
    append: str = "",
    seconds: float = 60,
    faults: Faults | None = None,
    tracer: Tracer = NULL_TRACER,
    vmm: Vmm | None = None,
) -> AsyncGenerator[Guest]:
    """Boot Linux in QEMU, or in a VMM of yours, with devices of yours, for as long as the block lasts.

    What is raised in it shows the guest's console, and the last of what happened to the devices.

    Args:
        devices: Devices, which are served for as long. A virtio one is plugged in as QEMU's vhost-user device of its id; where QEMU
            wants more, give a pair: the device, and what is to follow ``-device``, such as "vhost-user-rng-pci". A PCI device is
            QEMU's vfio-user-pci, of QEMU 10.1 or later. With a ``vmm`` a virtio device is plugged in as a
            :class:`aioirqfd.virtio_pci.VirtioPci`, and nothing else has to be said.
        kernel: A kernel ``vmlinuz-VERSION`` whose modules are in ``/lib/modules/VERSION``; None: the newest of Debian's.
        modules: Kernel modules to load, by name, such as "virtio_blk"; virtio_pci comes by itself where there is a virtio device.
        files: More files in the guest: path, and contents or the path of a file here.
        programs: Programs from here, with their shared libraries, at the same place.
        memory: MiB.
        cpus: 1 or more.
        accel: "kvm" or "tcg".
        qemu: The program.
        arguments: More of its arguments. With a ``vmm`` these three are of no use.
        append: More of the kernel's command line.
        seconds: That the boot, and each command, may take.
        faults: Of the devices: what has been hit is shown where something is raised.
        tracer: Hears what happens to the devices.
        vmm: What runs the guest in this process; None: QEMU does.

    Raises:
        GuestError: QEMU, the kernel, busybox or a module is not there, or the guest does not come up; with what was said.
    """
    program = shutil.which(qemu) if vmm is None else ""
    if program is None:
        raise GuestError(f"no program {qemu}; on Debian: apt-get install {PACKAGES}")
    chosen = debian_kernel() if kernel is None else Path(kernel)
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aioirqfd-")))
        tail = Tail(tracer)
        stack.enter_context(tail.shown())
        wanted = ["virtio_pci", *modules] if any(map(_is_virtio, devices)) else modules
        archive = initramfs(AGENT, kernel=chosen, modules=wanted, files=files, programs=programs)
        vm = Guest(directory, seconds=seconds)
        if vmm is None:
            plugged: list[str] = []
            for index, one in enumerate(devices):
                plugged += await _serve(stack, directory / f"device-{index}", index, one, tail)
            initrd = directory / "initrd"
            initrd.write_bytes(archive)
            command = [program, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]
            command += ["-machine", "q35,memory-backend=ram", "-accel", accel, "-smp", str(cpus), "-m", f"{memory}M"]
            command += ["-object", f"memory-backend-memfd,id=ram,size={memory}M,share=on"]
            # QEMU's book of the interrupts of PCI devices: see Guest.books().
            command += ["-trace", "vfio_msi_interrupt", "-D", str(directory / "qemu.trace")]
            command += ["-kernel", str(chosen), "-initrd", str(initrd)]
            command += ["-append", f"{QEMU_COMMAND_LINE} {append}".strip()]
            await _start(stack, vm, command, [*plugged, *arguments])
        else:
            make = partial(
                vmm,
                [_as_pci(one) for one in devices],
                kernel=chosen,
                initrd=archive,
                append=f"{COMMAND_LINE} {append}".strip(),
                memory=memory,
                cpus=cpus,
                tracer=tail,
            )
            await _start_here(stack, vm, make)
        try:
            yield vm
        except Exception as error:
            error.add_note(vm.said())
            if faults is not None:
                error.add_note(f"the faults: {faults.status()}")
            raise


async def _start(stack: contextlib.AsyncExitStack, vm: Guest, command: Sequence[str], more: Sequence[str]) -> None:
    """Start QEMU, killed at the end of the stack, and wait until the guest is up."""
    serials: list[str] = []
    ours: list[socket.socket] = []
    with contextlib.ExitStack() as theirs:
        fds: list[int] = []
        for name in ("console", "agent"):
            end, other = socket.socketpair()
            theirs.callback(other.close)
            stack.callback(end.close)
            ours.append(end)
            fds.append(other.fileno())
            serials += ["-chardev", f"socket,id={name},fd={other.fileno()}", "-serial", f"chardev:{name}"]
        # A guest whose test was killed must not live on.
        setpriv = shutil.which("setpriv")
        before = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv is not None else []
        with (vm.directory / "qemu").open("wb") as output:
            process = subprocess.Popen(  # noqa: S603, ASYNC220  the caller's own choice, and begun at once
                [*before, *command, *serials, *more],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
            )
    stack.push_async_callback(vm.aclose)
    stack.callback(process.wait)
    stack.callback(process.kill)
    await vm.boot(*ours)


async def _start_here(
    stack: contextlib.AsyncExitStack, vm: Guest, make: Callable[..., AbstractAsyncContextManager[object]]
) -> None:
    """Start a VMM's machine, ended by the stack, and wait until the guest is up."""
    (console, agent), serial = zip(*(socket.socketpair() for _ in range(2)), strict=True)
    for end in (console, agent, *serial):
        stack.callback(end.close)
    stack.push_async_callback(vm.aclose)
    await stack.enter_async_context(make(serial=serial))
    await vm.boot(console, agent)


def _as_pci(one: AnyDevice | tuple[AnyDevice, str]) -> PciDevice:
    if isinstance(one, tuple):
        raise GuestError(f"what follows -device is QEMU's: without QEMU, give {one[0]!r} alone")
    return one if isinstance(one, PciDevice) else VirtioPci(one)


def _is_virtio(one: AnyDevice | tuple[AnyDevice, str]) -> bool:
    return isinstance(one[0] if isinstance(one, tuple) else one, Device | VirtioPci)


async def _serve(
    stack: contextlib.AsyncExitStack,
    path: Path,
    index: int,
    one: AnyDevice | tuple[AnyDevice, str],
    tracer: Tracer,
) -> list[str]:
    """Serve a device; return QEMU's arguments for it."""
    device, name = one if isinstance(one, tuple) else (one, None)
    if isinstance(device, PciDevice):
        await stack.enter_async_context(Server(device, path, tracer=tracer))
        place = f'{{"type": "unix", "path": "{path}"}}'
        return ["-device", f'{{"driver": "{name or "vfio-user-pci"}", "socket": {place}}}']
    if name is None:
        if device.device_id not in QEMU_DEVICES:
            raise GuestError(
                f"QEMU is to be told what a virtio device {device.device_id} is: give a pair, the device and what follows -device"
            )
        name = QEMU_DEVICES[device.device_id].format(queues=device.num_queues)
    await stack.enter_async_context(Backend(device, path, tracer=tracer))
    return ["-chardev", f"socket,id=device-{index},path={path}", "-device", f"{name},chardev=device-{index}"]
