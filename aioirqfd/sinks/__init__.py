"""Where injections go. Interrupt controllers that are sinks too live in :mod:`aioirqfd.irqchip`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioirqfd.sinks.callback import CallbackSink
from aioirqfd.sinks.eventfd import EventFdSink
from aioirqfd.sinks.recording import RecordingSink

if TYPE_CHECKING:
    from aioirqfd.sinks.kvm import KvmSink
    from aioirqfd.sinks.qtest import QtestClient, QtestClosedError, QtestError, QtestSink

__all__ = [
    "CallbackSink",
    "EventFdSink",
    "KvmSink",
    "QtestClient",
    "QtestClosedError",
    "QtestError",
    "QtestSink",
    "RecordingSink",
]


def __getattr__(name: str) -> object:
    # Its ctypes structures are only worth their import time to those who have a KVM.
    if name == "KvmSink":
        from aioirqfd.sinks.kvm import KvmSink  # noqa: PLC0415

        return KvmSink
    if name.startswith("Qtest") and name in __all__:
        from aioirqfd.sinks import qtest  # noqa: PLC0415  as little needed by most

        return getattr(qtest, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
