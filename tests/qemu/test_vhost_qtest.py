"""vhost-user with QEMU as the front-end, and no guest: qtest programs the device, its MSI-X messages land in shared RAM."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from aioirqfd.vhost_user import Backend
from aioirqfd.virtio import Chain, Device
from aioirqfd.virtio.features import VirtioFeature
from tests.qemu.harness import Qemu
from tests.qemu.virtio_pci import VirtioPci

pytestmark = pytest.mark.qemu

ALL = int(VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC)
RNG = 0x1044


class Numbers(Device):
    """Fills each request with its number."""

    device_id = 4

    def __init__(self) -> None:
        self.number = 0

    async def handle(self, request: Chain) -> int:
        self.number += 1
        return request.write(self.number.to_bytes(4, "little"))


@contextlib.asynccontextmanager
async def machine(features=ALL, *, size=64, device=None):
    qemu = Qemu()
    path = qemu.directory / "rng"
    async with Backend(device or Numbers(), path) as backend:
        qemu.add_arguments("-chardev", f"socket,id=rng,path={path}")
        qemu.add_arguments("-device", "vhost-user-rng-pci,chardev=rng,vectors=2")
        async with qemu:
            virtio = VirtioPci(qemu)
            await virtio.find(RNG)
            await virtio.begin(features)
            await virtio.queue(0, size)
            await virtio.go()
            # An eventfd that is new is rung once: interrupts, before anything was asked.
            await settled(virtio, backend)
            yield virtio, backend


async def settled(virtio, backend):
    """The ring runs, and whatever interrupt its call eventfds brought has come."""
    await virtio.qemu.until(lambda: backend.statistics().queues[0].starts > 0)
    await virtio.qemu.until(virtio.interrupted)
    # QEMU names the call eventfd more than once, and each time it is rung. It has said all of it before the driver was told that
    # the device is up; so many turns of its loop and ours, and it was heard.
    for _ in range(20):
        await virtio.qemu.qtest.command("readl 0")
    virtio.interrupted()


async def ask(virtio, count=1):
    """So many requests, one kick if the device wants one, and the interrupt."""
    driver = virtio.queues[0]
    for _ in range(count):
        driver.request((), [4])
    driver.enable_calls()
    if driver.kick_needed():
        await virtio.qemu.qtest.command(virtio.kick(0))
    await virtio.qemu.until(virtio.interrupted)
    return [int.from_bytes(used.data, "little") for used in driver.collect()]


@pytest.mark.parametrize("event_idx", [True, False])
async def test_every_kick_is_a_request_and_every_call_a_message(event_idx):
    rounds = 1000
    async with machine(ALL if event_idx else ALL & ~int(VirtioFeature.EVENT_IDX)) as (virtio, backend):
        for number in range(1, rounds + 1):
            assert await ask(virtio) == [number]
        assert not virtio.interrupted()
        (done,) = backend.statistics().queues
        assert (done.requests, done.answers, done.calls, done.suppressed) == (rounds, rounds, rounds, 0)
        # QEMU kicks by itself when it starts: once, and QEMU 11 twice.
        assert rounds <= done.kicks <= rounds + 2


async def test_a_batch_is_one_message():
    async with machine() as (virtio, backend):
        for number in range(250):
            assert await ask(virtio, 4) == list(range(4 * number + 1, 4 * number + 5))
        assert not virtio.interrupted()
        (done,) = backend.statistics().queues
        assert (done.requests, done.calls) == (1000, 250)


async def test_no_message_where_the_driver_wants_none():
    async with machine() as (virtio, backend):
        await ask(virtio)
        driver = virtio.queues[0]
        for number in range(100):
            driver.disable_calls()
            driver.request((), [4])
            await virtio.qemu.qtest.command(virtio.kick(0))
            await virtio.qemu.until(lambda number=number: backend.statistics().queues[0].answers == number + 2)
            assert len(driver.collect()) == 1
        # What QEMU would have had to say, it says before it answers.
        await virtio.qemu.qtest.command("readl 0")
        assert not virtio.interrupted()
        (done,) = backend.statistics().queues
        assert (done.calls, done.suppressed) == (1, 100)


async def test_a_masked_vector_is_pending_until_it_is_unmasked():
    async with machine() as (virtio, backend):
        driver = virtio.queues[0]
        for number in range(50):
            await virtio.msix.mask(1)
            virtio.interrupted()  # the last unmask's new eventfd was rung, too
            driver.request((), [4])
            driver.enable_calls()
            await virtio.qemu.qtest.command(virtio.kick(0))
            await virtio.qemu.until(lambda number=number: backend.statistics().queues[0].calls == number + 1)
            while await virtio.msix.pending() != 2:
                await asyncio.sleep(0)
            assert not virtio.interrupted()
            await virtio.msix.unmask(1)
            await virtio.qemu.until(virtio.interrupted)
            assert await virtio.msix.pending() == 0
            assert len(driver.collect()) == 1


async def test_no_interrupt_is_lost_when_masking_races_with_a_call():
    """Mask, kick, and unmask without looking: QEMU swaps the call eventfd twice while the back-end answers."""
    async with machine() as (virtio, backend):
        driver = virtio.queues[0]
        entry = virtio.msix.table + 16 + 12
        for _ in range(200):
            driver.request((), [4])
            driver.enable_calls()
            await virtio.qemu.qtest.commands(f"writel {entry:#x} 1", virtio.kick(0), f"writel {entry:#x} 0")
            answers = driver.collect()
            while not answers:
                # For ever, if the call went to an eventfd that nobody looks at any more.
                await virtio.qemu.until(virtio.interrupted)
                answers = driver.collect()
            assert len(answers) == 1
        assert backend.statistics().queues[0].answers == 200


async def test_a_driver_that_comes_and_goes_finds_the_device_as_new():
    async with machine() as (virtio, backend):
        total = 0
        for life in range(10):
            for _ in range(5):
                total += 1
                assert await ask(virtio) == [total]
            await virtio.stop()
            features = ALL if life % 2 else ALL & ~int(VirtioFeature.EVENT_IDX)
            await virtio.begin(features)
            await virtio.queue(0, 16 << life % 3)
            await virtio.go()
            await virtio.qemu.until(lambda life=life: backend.statistics().queues[0].starts == life + 2)
            # An interrupt that has nothing to say may have come.
            await virtio.qemu.until(virtio.interrupted)
        assert backend.statistics().queues[0].answers == 50


async def test_a_guest_that_breaks_its_ring_is_stopped_and_may_start_again():
    async with machine() as (virtio, backend):
        assert await ask(virtio) == [1]
        virtio.queues[0].publish(5000)
        await virtio.qemu.qtest.command(virtio.kick(0))
        await virtio.qemu.until(lambda: backend._vrings[0].queue is None)
        await virtio.stop()
        await virtio.begin(ALL)
        await virtio.queue(0, 16)
        await virtio.go()
        await virtio.qemu.until(lambda: backend.statistics().queues[0].starts == 2)
        await virtio.qemu.until(virtio.interrupted)
        assert await ask(virtio) == [2]
