"""Whatever a driver writes, wherever: nothing is raised, and a reset helps."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from aioirqfd import EventFd
from aioirqfd.pci import MsiX, PciFunction
from aioirqfd.testing import RecordingTracer
from aioirqfd.vhost_user.driver import DriverMemory, DriverQueue
from aioirqfd.virtio_pci import VirtioPci
from aioirqfd.virtio_pci.function import ISR, NOTIFY
from tests.vhost_user.devices import Upper
from tests.virtio_pci.guest import CONFIG, DRIVER_OK, FEATURES, RAM, UP

# Where something happens, and what makes it happen, more often than anything else.
PLACES = st.one_of(
    st.sampled_from([0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x16, 0x18, 0x1A, 0x1C, 0x20, 0x28, 0x30, 0x3A, ISR, NOTIFY]),
    st.integers(0, 0x3FF8),
)
VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 15, 0x40, 0x80, 0xFF, 8, 64, 0xFFFF, RAM, RAM + 0x1000, 2**32 - 1, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
ACCESS = st.tuples(
    st.sampled_from([0, 0, 0, CONFIG]), PLACES, st.sampled_from([1, 2, 4, 8]), st.one_of(st.none(), VALUES)
)


async def play(accesses):
    device = VirtioPci(Upper(num_queues=2, config=bytes(8)), queue_size=64)
    tracer = RecordingTracer()
    async with PciFunction(device, tracer=tracer) as function:
        with DriverMemory(1 << 16, guest_address=RAM, user_address=RAM) as ram, EventFd() as target:
            function.dma.map(RAM, 1 << 16, fd=ram.fileno())
            for region, place, size, value in accesses:
                offset = place % (function.size(region) - 8)
                if value is None:
                    assert len(await function.read(region, offset, size)) == size
                else:
                    await function.write(region, offset, (value % 256**size).to_bytes(size, "little"))
                await asyncio.sleep(0)
            # As a driver that begins: the function's reset, for the guest may have done anything to the configuration space.
            await function.reset()
            await function.write(CONFIG, function.config.find(MsiX) + 2, b"\0\x80")
            driver = DriverQueue(ram, 16)
            address = driver.address(0)
            function.interrupts.bind(1, EventFd.from_fd(target.fileno()))

            async def write(name, value):
                register = getattr(VirtioPci, name)
                await function.write(0, register.offset, value.to_bytes(register.width, "little"))

            await write("device_status", UP)
            for select in (0, 1):
                await write("driver_feature_select", select)
                await write("driver_feature", int(FEATURES) >> 32 * select & 0xFFFF_FFFF)
            await write("device_status", DRIVER_OK & ~4)
            for name, value in (
                ("queue_size", 16),
                ("queue_msix_vector", 1),
                ("queue_desc", address.descriptor),
                ("queue_driver", address.available),
                ("queue_device", address.used),
                ("queue_enable", 1),
                ("device_status", DRIVER_OK),
            ):
                await write(name, value)
            driver.request([b"well?"], [5])
            await function.write(0, NOTIFY, bytes(2))
            async with asyncio.timeout(60):
                assert await target.read() == 1
            assert [used.data for used in driver.collect()] == [b"WELL?"]
            assert device.virtio.driver_features == FEATURES
            del driver


@settings(max_examples=60, deadline=None)
@given(st.lists(ACCESS, max_size=40))
def test_no_access_raises_and_a_reset_helps(accesses):
    asyncio.run(play(accesses))
