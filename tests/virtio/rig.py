"""What these tests share: a guest's RAM, a driver and a queue in it, and a count of fds that must balance."""

from __future__ import annotations

import contextlib
import gc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.virtio.memory import GuestMemory
from aioirqfd.virtio.virtqueue import VirtQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aioirqfd.vhost_user.inflight import InflightQueue

BASE = 0x1_0000_0000


@dataclass
class Rig:
    ram: DriverMemory
    driver: DriverQueue
    memory: GuestMemory
    queue: VirtQueue

    def restart(self, *, base: int = 0, inflight: InflightQueue | None = None) -> VirtQueue:
        """A new back-end on the same ring: what the old one knew is gone."""
        self.queue = VirtQueue(
            self.memory,
            self.driver.size,
            self.driver.address(0),
            base=base,
            features=self.driver.features,
            inflight=inflight,
        )
        return self.queue


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def fds_balance(request: pytest.FixtureRequest) -> Iterator[None]:
    before = open_fds()
    yield
    if open_fds() > before:
        request.node.funcargs.clear()  # a fixture's mapping holds an fd for as long as it is known here
        gc.collect()
        assert open_fds() <= before


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    with contextlib.ExitStack() as stack:

        def make(
            size: int = 8,
            *,
            event_idx: bool = True,
            indirect: bool = False,
            bytes_: int = 1 << 18,
            inflight: InflightQueue | None = None,
        ) -> Rig:
            ram = stack.enter_context(DriverMemory(bytes_, guest_address=BASE))
            driver = DriverQueue(ram, size, event_idx=event_idx, indirect=indirect)
            memory = GuestMemory.map([ram.region], [os.dup(ram.fileno())])
            queue = VirtQueue(memory, size, driver.address(0), features=driver.features, inflight=inflight)
            return Rig(ram, driver, memory, queue)

        yield make
