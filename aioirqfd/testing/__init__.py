"""For the tests of people who use aioirqfd, and of aioirqfd itself: sinks that misbehave, the other side of a device, a guest.

``vhost_user_frontend`` and ``vfio_user_client`` are the other side of a device's socket, for tests in milliseconds; ``guest`` is a Linux in
QEMU. The pytest plugin is :mod:`aioirqfd.testing.plugin`. What is wrong with a device on purpose is :mod:`aioirqfd.faults`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from aioirqfd.testing.sinks import FlakySink, GatedSink, RefusingSink
from aioirqfd.testing.tracer import RecordingTracer

if TYPE_CHECKING:
    from aioirqfd.testing.frontend import FrontEnd, FrontEndError, Queue, vhost_user_frontend
    from aioirqfd.testing.initramfs import GuestError
    from aioirqfd.testing.linux import Guest, Result, Vmm, guest
    from aioirqfd.testing.vfio import vfio_user_client

__all__ = [
    "FlakySink",
    "FrontEnd",
    "FrontEndError",
    "GatedSink",
    "Guest",
    "GuestError",
    "Queue",
    "RecordingTracer",
    "RefusingSink",
    "Result",
    "Vmm",
    "guest",
    "vfio_user_client",
    "vhost_user_frontend",
]

# Half of the package, for which a suite that uses none of it does not pay.
_LATER: Final = {
    **dict.fromkeys(("FrontEnd", "FrontEndError", "Queue", "vhost_user_frontend"), "frontend"),
    "GuestError": "initramfs",
    **dict.fromkeys(("Guest", "Result", "Vmm", "guest"), "linux"),
    "vfio_user_client": "vfio",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
