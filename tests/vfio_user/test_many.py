"""As many vectors as MSI-X can have, and many of each thing at once."""

from __future__ import annotations

import resource

import pytest

from aioirqfd.pci import PciDevice
from aioirqfd.vfio_user import Server
from aioirqfd.vfio_user.client import Client
from aioirqfd.vfio_user.messages import MAX_FDS, SetIrq
from tests.vfio_user.conftest import taken

MSIX = 2
LIMITS = resource.getrlimit(resource.RLIMIT_NOFILE)
# Each takes four file descriptors here, on both sides.
VECTORS = 2048 if LIMITS[1] >= 16384 else 128


class Wide(PciDevice):
    vectors = VECTORS


@pytest.fixture
def many_fds():
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(LIMITS[1], max(LIMITS[0], 16384)), LIMITS[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, LIMITS)


async def test_every_vector_of_a_large_device(many_fds, tmp_path, monkeypatch, eventfds):
    monkeypatch.chdir(tmp_path)
    fds = eventfds(VECTORS)
    device = Wide()
    async with Server(device, "wide") as server, Client("wide") as client:
        for start in range(0, VECTORS, MAX_FDS):
            await client.bind(MSIX, start, fds[start : start + MAX_FDS])
        for vector in range(VECTORS):
            device.interrupt(vector)
        assert [taken(fd) for fd in fds] == [1] * VECTORS
        # The odd ones are masked, all are signalled twice, and the odd ones are pending.
        await client.set_irqs(SetIrq.DATA_BOOL | SetIrq.MASK, MSIX, 0, VECTORS, data=b"\0\1" * (VECTORS // 2))
        for vector in (*range(VECTORS), *range(VECTORS)):
            device.interrupt(vector)
        assert [taken(fd) for fd in fds] == [2, 0] * (VECTORS // 2)
        msix = server.function.msix
        assert msix is not None
        assert await client.read(msix.bar, msix.pba_offset, VECTORS // 8) == b"\xaa" * (VECTORS // 8)
        await client.set_irqs(SetIrq.DATA_NONE | SetIrq.UNMASK, MSIX, 0, VECTORS)
        await server.function.interrupts.flush()
        assert [taken(fd) for fd in fds] == [0, 1] * (VECTORS // 2)
        await client.set_irqs(SetIrq.DATA_NONE | SetIrq.TRIGGER, MSIX, 0, 0)
        device.interrupt(VECTORS - 1)
        assert server.function.interrupts.pending(VECTORS - 1)
