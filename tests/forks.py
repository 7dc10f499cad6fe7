"""Forked children, and what may be missing in them: /proc, a system call."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2
_RET_ERRNO, _RET_ALLOW = 0x00050000, 0x7FFF0000
_PREADV2 = {"x86_64": 327, "aarch64": 286}[platform.machine()]
WRITE = {"x86_64": 1, "aarch64": 64}[platform.machine()]
"""The number of write(2)."""

libc = ctypes.CDLL(None, use_errno=True)


def _checked(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def in_child(function):
    """Run it in a forked child; its exit status, 0 when it returned."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leave_proc():
    """From here on this process has no /proc, nor anything else but these tests. For a forked child."""
    if os.geteuid():
        _checked(libc.unshare(_CLONE_NEWUSER))  # in a user namespace of its own anybody may change the root
    os.chroot(Path(__file__).parent)
    os.chdir("/")


def forbid_preadv2(error):
    """From here on preadv2(2) fails like that in this process. For a forked child."""
    # struct sock_filter: load the number of the call; preadv2: the errno, others: go on.
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),
            (0x15, 0, 1, _PREADV2),
            (0x06, 0, 0, _RET_ERRNO | error),
            (0x06, 0, 0, _RET_ALLOW),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0))
