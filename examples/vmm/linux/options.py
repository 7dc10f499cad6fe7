"""The command line of ``python -m examples.vmm linux``."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from aioirqfd.testing.initramfs import GuestError, debian_kernel
from examples.vmm.linux.acpi import MOST_CPUS
from examples.vmm.linux.terminal import HELP

if TYPE_CHECKING:
    from collections.abc import Sequence

TERMINAL: Final = "tty"
"""The console that is standard input and output."""
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SMALLEST: Final = 64 << 20
_PAGE: Final = 4096
_WIRE: Final = re.compile(r"(?:user|tap=(?P<tap>[^,]+))(?:,mac=(?P<mac>[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}))?")
_EPILOG: Final = f"""\
The console is the terminal, whose every key goes to the guest: {HELP}.
Where the console is not the terminal, Ctrl-C ends the guest.

exit status: 0 it was switched off or left; 2 it could not run; 3 reset; 4 panic; 5 crash; 128 + n stopped by signal n
"""


@final
@dataclass(frozen=True, slots=True)
class Disk:
    """An image, or a block device.

    Attributes:
        path: Its file.
        read_only: Whether the guest may not write.
    """

    path: str
    read_only: bool = False


@final
@dataclass(frozen=True, slots=True)
class Net:
    """A network card.

    Attributes:
        tap: The network interface its wire ends in; None: a host inside this process.
        mac: Its address, 6 bytes; None: one made of its number.
    """

    tap: str | None = None
    mac: bytes | None = None


@final
@dataclass(frozen=True, slots=True)
class Options:
    """What the user wants.

    Attributes:
        kernel: A bzImage.
        initrd: Its initial RAM file system, or None.
        append: What is added to the kernel's command line.
        disks: Its disks, /dev/vda first.
        nets: Its network cards.
        console: ``tty`` for standard input and output, or a path.
        memory: Bytes of RAM.
        cpus: Virtual CPUs.
        inspect: Where to serve the tree of its interrupts, or None.
        record: The flight recorder's file, or None.
        trace: ``off``, ``console`` or ``json``.
    """

    kernel: Path
    initrd: Path | None = None
    append: str = ""
    disks: tuple[Disk, ...] = ()
    nets: tuple[Net, ...] = ()
    console: str = TERMINAL
    memory: int = 512 << 20
    cpus: int = 1
    inspect: str | None = None
    record: str | None = None
    trace: str = "off"


def _memory(text: str) -> int:
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].upper() in _UNITS else (text, "")
    try:
        size = int(number) * _UNITS.get(unit, 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a size in bytes, or with K, M or G: {text}; 512M, say") from None
    if size < _SMALLEST or size % _PAGE:
        raise argparse.ArgumentTypeError(f"{text} is not 64M or more in whole pages of 4K; 512M, say")
    return size


def _cpus(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_CPUS):
        raise argparse.ArgumentTypeError(f"not a number of CPUs from 1 to {MOST_CPUS}: {text}")
    return int(text)


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def _disk(text: str) -> Disk:
    path = text.removesuffix(",ro")
    if not (Path(path).is_file() or Path(path).is_block_device()):
        raise argparse.ArgumentTypeError(
            f"{path} is neither a file nor a block device; `truncate -s 1G {path}` makes an empty one of 1 GiB"
        )
    return Disk(path, read_only=path != text)


def _net(text: str) -> Net:
    wire = _WIRE.fullmatch(text)
    mac = bytes(int(part, 16) for part in wire["mac"].split(":")) if wire and wire["mac"] else None
    if not wire or (mac and mac[0] & 1):
        raise argparse.ArgumentTypeError(
            f"{text} is not `user` or `tap=INTERFACE`, with or without `,mac=ADDRESS` of one card, such as 52:54:00:12:34:56"
        )
    return Net(wire["tap"], mac)


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line. Exits with status 2 and a usage line when it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.vmm linux",
        description="Boot Linux on KVM; every device is a coroutine, every interrupt an irqfd, every doorbell an ioeventfd.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--kernel", type=_file, metavar="FILE", help="a bzImage (default: the newest of Debian's in /boot)")
    add("--initrd", type=_file, metavar="FILE", help="its initial RAM file system")
    add("--append", default="", metavar="TEXT", help="more for the kernel's command line")
    add("--disk", type=_disk, action="append", metavar="FILE[,ro]", help="a disk; again for /dev/vdb")
    add(
        "--net",
        type=_net,
        action="append",
        metavar="WIRE[,mac=ADDRESS]",
        help="a network card; WIRE: user, a host inside this process that answers DHCP and ping, or tap=INTERFACE",
    )
    add(
        "--console",
        default=TERMINAL,
        metavar="tty|PATH",
        help="where its console is: standard input and output (tty, the default), a terminal such as /dev/pts/3,"
        " or a file that gets what it says",
    )
    add("--memory", type=_memory, default=512 << 20, metavar="SIZE", help="its RAM (default: 512M)")
    add("--cpus", type=_cpus, default=1, metavar="N", help="its CPUs (default: %(default)d)")
    add("--inspect", metavar="PATH", help="where to serve the tree of its interrupts, for `aioirqfd inspect` and `top`")
    add("--record", metavar="FILE", help="remember each step of the last interrupts; see `aioirqfd trace FILE`")
    add("--trace", choices=("console", "json", "off"), default="off", help="show structlog events on standard error")
    given = parser.parse_args(arguments)
    try:
        kernel: Path = given.kernel or debian_kernel()
    except GuestError as error:
        parser.error(f"{error}; or give one by --kernel")
    return Options(
        kernel,
        given.initrd,
        given.append,
        tuple(given.disk or ()),
        tuple(given.net or ()),
        given.console,
        given.memory,
        given.cpus,
        given.inspect,
        given.record,
        given.trace,
    )
