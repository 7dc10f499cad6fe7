"""Builds ``guest.bin`` from ``guest.S`` with the GNU assembler and linker: ``python -m examples.vmm.build_guest``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from examples.vmm import ports

SOURCE: Final = Path(__file__).with_name("guest.S")
"""The program, in GNU assembler syntax."""
IMAGE: Final = Path(__file__).with_name("guest.bin")
"""The flat image that is loaded at ``ports.LOAD``."""


def build(source: Path = SOURCE) -> bytes:
    """Assemble and link the program.

    Args:
        source: The assembler source; it sees every number of :mod:`examples.vmm.ports` by its name.

    Returns:
        The flat image.

    Raises:
        FileNotFoundError: There is no GNU assembler, linker or objcopy.
        subprocess.CalledProcessError: One of them refused; its words are on stderr.
    """
    symbols = {name: value for name, value in vars(ports).items() if name.isupper() and isinstance(value, int)}
    with tempfile.TemporaryDirectory() as directory:
        assembled, linked, image = (Path(directory, name) for name in ("guest.o", "guest.elf", "guest.bin"))
        defines = [f"--defsym={name}={value}" for name, value in symbols.items()]
        subprocess.run(["as", "--32", *defines, "-o", str(assembled), str(source)], check=True)
        subprocess.run(["ld", "-m", "elf_i386", "-Ttext", hex(ports.LOAD), "-o", linked, assembled], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", linked, image], check=True)
        return image.read_bytes()


def main() -> int:
    """Write ``guest.bin`` beside its source; returns the exit status."""
    try:
        IMAGE.write_bytes(build())
    except FileNotFoundError as error:
        sys.stderr.write(f"build_guest: there is no {error.filename}: install the GNU binutils\n")
        return 1
    except subprocess.CalledProcessError as error:  # which has said why
        sys.stderr.write(f"build_guest: {error.cmd[0]} ended with status {error.returncode}\n")
        return 1
    sys.stderr.write(f"{IMAGE}: {IMAGE.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
