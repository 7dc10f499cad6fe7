"""A server for a virtio device of the test's choice, and a guest that drives it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from aioirqfd.testing import RecordingTracer
from aioirqfd.vfio_user import Server
from aioirqfd.virtio_pci import VirtioPci
from tests.virtio.rig import fds_balance
from tests.virtio_pci.guest import Guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from aioirqfd.virtio import Device

__all__ = ["fds_balance"]


@pytest.fixture
def tracer() -> RecordingTracer:
    return RecordingTracer()


@pytest.fixture
def serve(tmp_path, monkeypatch, tracer) -> Callable[..., AbstractAsyncContextManager[Guest]]:
    monkeypatch.chdir(tmp_path)

    @contextlib.asynccontextmanager
    async def serve(device: Device, *, queue_size: int = 256) -> AsyncIterator[Guest]:
        served = VirtioPci(device, queue_size=queue_size)
        async with Server(served, "socket", tracer=tracer) as server, Guest(server) as guest:
            yield guest

    return serve
