"""An initramfs made on the spot: busybox, kernel modules, a script, and what else a test needs."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PACKAGES: Final = "qemu-system-x86 linux-image-cloud-amd64 busybox-static"
"""What Debian calls what a guest needs."""
LARGE: Final = 8 << 20
"""Bytes from which an archive is not compressed: the guest reads a large one faster than it unpacks it."""
DIRECTORIES: Final = ("bin", "dev", "etc", "lib", "lib64", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin")
ROOT: Final = Path("/")
BUSYBOX: Final = Path("/bin/busybox")
PRELUDE: Final = """#!/bin/busybox sh
export PATH=/bin:/usr/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
for module in $(cat /etc/modules); do insmod $module || echo "insmod $module failed"; done
"""


class GuestError(Exception):
    """A guest cannot be made, has died, or does not answer; the text ends with what it said."""


def debian_kernel(root: Path = ROOT) -> Path:
    """Return the newest of Debian's kernels whose modules are here, too; one for virtual machines before the others.

    Args:
        root: Where its packages are unpacked.

    Raises:
        GuestError: There is none.
    """
    for pattern in ("vmlinuz-*-cloud-amd64", "vmlinuz-*"):
        kernels = [path for path in (root / "boot").glob(pattern) if modules_directory(path).is_dir()]
        if kernels:
            return max(kernels, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
    raise GuestError(
        f"no kernel {root / 'boot'}/vmlinuz-* with its modules in {root / 'lib/modules'}; on Debian: apt-get install {PACKAGES}"
    )


def modules_directory(kernel: Path) -> Path:
    """Where the modules of a kernel ``ROOT/boot/vmlinuz-VERSION`` are; those of one that is elsewhere are this system's."""
    root = kernel.parents[1] if kernel.parent.name == "boot" else ROOT
    return root / "lib/modules" / kernel.name.removeprefix("vmlinuz-")


def module_paths(kernel: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of kernel modules and of what they depend on, in the order they are to be loaded.

    Raises:
        GuestError: The kernel has no such module.
    """
    root = modules_directory(kernel)
    files: dict[str, tuple[Path, list[Path]]] = {}
    for line in (root / "modules.dep").read_text("utf-8").splitlines():
        module, _, others = line.partition(":")
        files[_name(Path(module))] = (root / module, [root / other for other in others.split()])
    builtin = {_name(Path(line)) for line in (root / "modules.builtin").read_text("utf-8").splitlines()}
    wanted: dict[Path, None] = {}
    for name in names:
        key = name.replace("-", "_")
        if key in builtin:
            continue
        if key not in files:
            raise GuestError(f"{kernel} has no module {name}; {root} has what it has")
        path, needs = files[key]
        for other in (*reversed(needs), path):
            wanted[other] = None
    return list(wanted)


def _name(path: Path) -> str:
    return path.name.split(".")[0].replace("-", "_")


def libraries(program: Path) -> list[Path]:
    """Return the shared libraries of a program, and its loader."""
    listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout  # noqa: S603, S607
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing)]


def initramfs(
    init: str,
    *,
    kernel: Path,
    modules: Sequence[str] = (),
    files: Mapping[str, bytes | str | Path] | None = None,
    programs: Sequence[str | Path] = (),
    busybox: Path = BUSYBOX,
) -> bytes:
    """Return an archive to boot from.

    Args:
        init: Shell (busybox) after the file systems are mounted and the modules loaded; the machine powers off at its end.
        kernel: Whose modules.
        modules: Kernel modules by name; what they depend on comes along. What is built in is no error.
        files: More files: the path inside (without its leading slash), and the contents, or the path of a file here. What is
            in bin/ or begins with #! may be run.
        programs: Programs from here, with their shared libraries, at the same place.
        busybox: Its shell and all else; linked statically.

    Raises:
        GuestError: Busybox is not there, or a module.
    """
    if not busybox.exists():
        raise GuestError(f"no {busybox}; on Debian: apt-get install {PACKAGES}")
    contents: dict[str, bytes | Path] = {"bin/busybox": busybox}
    order: list[str] = []
    for path in module_paths(kernel, modules):
        contents[f"lib/modules/{path.name}"] = path
        order.append(f"/lib/modules/{path.name}")
    contents["etc/modules"] = "\n".join(order).encode()
    contents["init"] = f"{PRELUDE}{init}\npoweroff -f\n".encode()
    for program in map(Path, programs):
        for path in (program, *libraries(program)):
            contents[str(path).lstrip("/")] = path
    for name, value in (files or {}).items():
        contents[name.lstrip("/")] = value.encode() if isinstance(value, str) else value
    data = archive(contents)
    return gzip.compress(data, 1) if len(data) < LARGE else data


def archive(contents: Mapping[str, bytes | Path]) -> bytes:
    """Return a cpio archive in the "newc" format that the kernel unpacks. A file from here keeps its time."""
    parents = {str(parent) for name in contents for parent in Path(name).parents if str(parent) != "."}
    parts = [_entry(name, 0o040755, b"") for name in sorted(parents | set(DIRECTORIES))]
    # init's console, before anything is mounted.
    parts.append(_entry("dev/console", 0o020600, b"", rdev=(5, 1)))
    for name, source in contents.items():
        data = source.read_bytes() if isinstance(source, Path) else source
        time = int(source.stat().st_mtime) if isinstance(source, Path) else 0
        runs = "bin/" in name or data[:2] in {b"#!", b"\x7fE"}
        parts.append(_entry(name, 0o100755 if runs else 0o100644, data, time=time))
    parts.append(_entry("TRAILER!!!", 0, b""))
    return b"".join(parts)


def _entry(name: str, mode: int, data: bytes, *, rdev: tuple[int, int] = (0, 0), time: int = 0) -> bytes:
    """One file: the magic, 13 numbers of 8 hex digits, the name, the contents; both parts padded to 4 bytes."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, time, len(data), 0, 0, *rdev, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + path
    return _pad(head) + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
