"""``python -m examples.vmm linux`` on a machine whose KVM cannot run it: in QEMU, in a Linux whose CPU has emulated SVM.

``python -m tests.qemu.nested_linux --kernel FILE --initrd FILE [OPTION...]`` (``make linux NESTED=1``): both are booted by the VMM; the
kernel is also that of the Linux in between, of which nothing is seen: its console is the VMM's terminal, and it is off when the VMM
ends. The other options are the VMM's, with paths inside. Ctrl-a x is the VMM's, too.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Final

from aioirqfd.testing.initramfs import GuestError, initramfs
from tests.qemu import program
from tests.qemu.initramfs import APPEND, python_files, python_path
from tests.qemu.nested_host import CPU, INITRAMFS, KERNEL, TICKS

# What the command imports only when it needs it.
LATER: Final = ("anyio._backends._asyncio", "concurrent.futures.thread", "examples.vmm.linux.command")
ENDED: Final = "VMM ENDED"


def outer(kernel: Path, initrd: bytes, *options: str) -> bytes:
    """The initramfs of the Linux in between, which runs the VMM with these options, and says its exit status."""
    variables = {"PYTHONPATH": ":".join(python_path()), "PYTHONDONTWRITEBYTECODE": "1"}
    variables |= {name: value for name, value in os.environ.items() if name == "AIOIRQFD_PURE_PYTHON"}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    command = [str(Path(sys.executable).resolve()), "-W", "error", "-m", "examples.vmm", "linux"]
    command += ["--kernel", KERNEL, "--initrd", INITRAMFS, *options]
    # In a session of its own, with the console as its terminal, which hangs up when that ends.
    session = f"{settings} {shlex.join(command)}; echo {ENDED} $?"
    return initramfs(
        f"ulimit -n 4096; dmesg -n 1; setsid -c sh -c {shlex.quote(session)}",
        kernel=kernel,
        modules=["irqbypass", "kvm", "kvm-amd"],
        files=python_files("examples.vmm.__main__", *LATER) | {KERNEL: kernel, INITRAMFS: initrd},
    )


def main() -> None:
    """Become QEMU."""
    parser = argparse.ArgumentParser(prog="python -m tests.qemu.nested_linux")
    parser.add_argument("--kernel", type=Path, required=True)
    parser.add_argument("--initrd", type=Path, required=True)
    given, options = parser.parse_known_args()
    qemu = program.path()
    if qemu is None:
        sys.exit(f"{program.PROGRAM} is not installed; on Debian: apt-get install {program.PACKAGES}")
    kernel = given.kernel.resolve()  # where its modules are, too
    try:
        image = outer(kernel, given.initrd.read_bytes(), *options)
    except GuestError as error:
        sys.exit(str(error))
    sys.stderr.write("The machine in between boots first: some 10 seconds.\n")
    with tempfile.TemporaryFile() as file:
        file.write(image)
        file.flush()
        os.set_inheritable(file.fileno(), True)  # QEMU reads it from there
        command = [qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-machine", "q35,accel=tcg", "-cpu", CPU, "-m", "1G"]
        command += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]  # Ctrl-C is the guest's
        command += ["-kernel", str(kernel), "-initrd", f"/dev/fd/{file.fileno()}", "-append", f"{APPEND} {TICKS}"]
        os.execv(qemu, command)


if __name__ == "__main__":
    main()
