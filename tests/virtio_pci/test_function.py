"""The registers of a virtio-pci function, and what a driver does with them, well-behaved or not."""

from __future__ import annotations

import asyncio
import struct

import pytest

from aioirqfd.vfio_user import Server
from aioirqfd.virtio.features import VirtioFeature
from aioirqfd.virtio_pci import VirtioPci
from aioirqfd.virtio_pci.function import CONFIG as DEVICE_CONFIG
from aioirqfd.virtio_pci.function import ISR, NOTIFY, Status
from tests.vhost_user.devices import Gated, Receiver, Upper
from tests.virtio_pci.guest import CONFIG, DRIVER_OK, FEATURES, NO_VECTOR, RAM, UP, Guest

OK = UP | Status.FEATURES_OK


class Console(Upper):
    device_id = 3
    features = 0x5


# -- what a driver finds ---------------------------------------------------------------------------------------------------


async def test_ids_and_class(serve):
    async with serve(Console()) as guest:
        assert struct.unpack("<HH", await guest.client.read(CONFIG, 0, 4)) == (0x1AF4, 0x1043)
        assert await guest.config(8, 4) == 0x078000_01
    assert VirtioPci(Upper(), class_code=0x123456).class_code == 0x123456


async def test_the_structures_and_where_they_are(serve):
    async with serve(Console(num_queues=3, config=bytes(12))) as guest:
        found = [struct.unpack_from("<BBBBB3xII", data)[2:] for _, data in (await guest.capabilities())[9]]
    assert found == [
        (16, 1, 0, 0, 0x3C),
        (16, 3, 0, ISR, 1),
        (20, 2, 0, NOTIFY, 12),
        (16, 4, 0, DEVICE_CONFIG, 256),
        (20, 5, 0, 0, 0),
    ]


async def test_the_configuration_of_a_device_without_one_is_zeros(serve):
    async with serve(Upper()) as guest:
        assert await guest.client.read(0, DEVICE_CONFIG, 8) == bytes(8)


async def test_registers_after_a_reset(serve):
    async with serve(Upper(num_queues=2), queue_size=64) as guest:
        for _ in range(2):
            assert await guest.read("num_queues") == 2
            assert await guest.read("device_status") == 0
            assert await guest.read("config_msix_vector") == NO_VECTOR
            for index in (1, 0):
                await guest.write("queue_select", index)
                names = ("size", "msix_vector", "enable", "notify_off", "desc", "driver", "device", "reset")
                assert [await guest.read(f"queue_{name}") for name in names] == [64, NO_VECTOR, 0, index, 0, 0, 0, 0]
            await guest.start(queues=2)
            await guest.write("device_status", 0)


async def test_a_queue_that_is_not_there_has_size_0_and_takes_nothing(serve):
    async with serve(Upper()) as guest:
        await guest.write("queue_select", 1)
        for name in ("queue_size", "queue_enable", "queue_desc", "queue_driver", "queue_device", "queue_reset"):
            await guest.write(name, 1)
            assert await guest.read(name) == 0, name
        await guest.write("queue_msix_vector", 0)
        assert await guest.read("queue_msix_vector") == NO_VECTOR
        await guest.write("queue_select", 0)
        assert await guest.read("queue_enable") == 0


async def test_an_address_may_be_written_in_two_halves_of_different_queues(serve):
    async with serve(Upper(num_queues=2)) as guest:
        for index in (0, 1):
            await guest.write("queue_select", index)
            await guest.client.write(0, 0x20, struct.pack("<I", 0x1000 + index))
        for index in (0, 1):
            await guest.write("queue_select", index)
            await guest.client.write(0, 0x24, struct.pack("<I", 0x70 + index))
        assert await guest.read("queue_desc") == 0x71_0000_1001
        await guest.write("queue_select", 0)
        assert await guest.read("queue_desc") == 0x70_0000_1000


@pytest.mark.parametrize("size", [0, 3, 256, 0xFFFF])
async def test_a_size_that_cannot_be_is_not_taken(serve, tracer, size):
    async with serve(Upper(), queue_size=128) as guest:
        await guest.write("queue_size", size)
        assert await guest.read("queue_size") == 128
        (told,) = tracer.of("message_refused")
        assert told["reason"] == f"a queue's size is a power of 2 up to 128, not {size}"
        await guest.write("queue_size", 32)
        assert await guest.read("queue_size") == 32


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_a_device_with_such_a_size_is_refused(size):
    with pytest.raises(ValueError, match="power of 2 up to 32768"):
        VirtioPci(Upper(), queue_size=size)


def test_a_device_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"1\.\.256 queues, not 0"):
        VirtioPci(Upper(num_queues=0))


# -- features and status -------------------------------------------------------------------------------------------------


async def test_features_are_those_of_the_ring_and_of_the_device(serve):
    async with serve(Console()) as guest:
        halves = []
        for select in (0, 1, 2, 0xFFFF_FFFF):
            await guest.write("device_feature_select", select)
            halves.append(await guest.read("device_feature"))
        ring = VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC
        assert halves == [ring | 0x5, 0x101, 0, 0]


async def test_features_are_agreed_on(serve):
    device = Console()
    async with serve(device) as guest:
        assert await guest.negotiate(FEATURES | 0x4) == FEATURES | 0x4
        assert await guest.read("device_status") == OK
        assert device.driver_features == FEATURES | 0x4
        await guest.write("driver_feature_select", 0)
        await guest.write("driver_feature", 0)  # too late
        assert await guest.read("driver_feature") == (FEATURES | 0x4) & 0xFFFF_FFFF
        await guest.write("device_status", 0)
        assert device.driver_features == 0
        assert await guest.read("driver_feature") == 0


@pytest.mark.parametrize(("low", "high"), [(0x2, 1), (0x1, 0), (0, 0x3)])
async def test_features_that_were_not_offered_or_an_old_driver_are_not_agreed_on(serve, low, high):
    async with serve(Console()) as guest:
        await guest.write("device_status", UP)
        for select, value in ((0, low), (1, high), (2, 0xFFFF)):
            await guest.write("driver_feature_select", select)
            await guest.write("driver_feature", value)
        await guest.write("device_status", OK)
        assert await guest.read("device_status") == UP
        await guest.write("device_status", DRIVER_OK)
        assert await guest.read("device_status") == UP


async def test_only_a_reset_takes_bits_of_the_status_away(serve):
    async with serve(Upper()) as guest:
        await guest.negotiate()
        await guest.write("device_status", Status.ACKNOWLEDGE)
        assert await guest.read("device_status") == OK
        await guest.write("device_status", OK | Status.FAILED | Status.NEEDS_RESET)
        assert await guest.read("device_status") == OK | Status.FAILED
        await guest.write("device_status", 0)
        assert await guest.read("device_status") == 0


# -- requests ------------------------------------------------------------------------------------------------------------


async def test_requests_are_served_and_each_batch_interrupts_once(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        for number in range(20):
            assert await queue.ask([b"ping %d" % number], [64]) == b"PING %d" % number
        (counts,) = guest.device.statistics()
        assert (queue.kicks, queue.calls) == (20, 20)
        assert (counts.kicks, counts.wakeups, counts.requests, counts.answers, counts.calls) == (20, 20, 20, 20, 20)
        assert guest.server.function.interrupts.sent(1) == 20
        assert guest.server.function.interrupts.sent(0) == 0


async def test_several_queues_each_with_its_vector(serve):
    async with serve(Upper(num_queues=3)) as guest:
        await guest.start(queues=3)
        for queue in guest.queues:
            assert await queue.ask([b"a"], [1]) == b"A"
        assert [guest.server.function.interrupts.sent(vector) for vector in range(4)] == [0, 1, 1, 1]


async def test_what_is_in_the_ring_before_the_driver_is_ready_is_served_then(serve):
    async with serve(Upper()) as guest:
        await guest.map()
        await guest.msix(enabled=True)
        await guest.negotiate()
        queue = await guest.queue()
        queue.driver.request([b"early"], [5])
        await queue.kick()
        await guest.server.function.interrupts.flush()
        assert queue.driver.collect() == []
        await guest.write("device_status", DRIVER_OK)
        assert [used.data for used in await queue.answers()] == [b"EARLY"]


async def test_doorbells_are_there_for_a_client_that_rings_them_itself(serve):
    async with serve(Upper(num_queues=2)) as guest:
        assert await guest.doorbells() == [(NOTIFY, 0), (NOTIFY + 4, 0)]
        queue = await guest.start()
        queue.driver.request([b"by itself"], [9])
        guest.device._queues[0].doorbell.signal()
        assert [used.data for used in await queue.answers()] == [b"BY ITSELF"]


async def test_a_notification_of_a_queue_that_is_not_there_does_nothing(serve, tracer):
    async with serve(Upper()) as guest:
        await guest.start()
        await guest.client.write(0, NOTIFY + 4, b"\1\0")
        assert [one["offset"] for one in tracer.of("undeclared_write")] == [NOTIFY + 4]


# -- interrupts ----------------------------------------------------------------------------------------------------------


async def test_without_a_vector_a_queue_does_not_interrupt(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        await guest.write("queue_msix_vector", 2)
        assert await guest.read("queue_msix_vector") == NO_VECTOR  # there are 0 and 1
        await queue.put([b"quiet"], [5])
        while not (answers := queue.driver.collect()):
            await asyncio.sleep(0)
        assert answers[0].data == b"QUIET"
        assert guest.server.function.interrupts.pending_bits() == bytes(8)
        await guest.write("queue_msix_vector", 1)
        assert await queue.ask([b"loud"], [4]) == b"LOUD"
        assert guest.server.function.interrupts.sent(1) == 1


async def test_a_masked_vector_stays_pending(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        await guest.client.set_irqs(0x24, 2, 1, 1)  # takes its eventfd away
        await queue.put([b"one"], [3])
        while not queue.driver.collect():
            await asyncio.sleep(0)
        await guest.server.function.interrupts.flush()
        msix = guest.server.function.msix
        assert await guest.client.read(msix.bar, msix.pba_offset, 8) == struct.pack("<Q", 1 << 1)
        await guest.client.bind(2, 1, [queue.call.fileno()])
        async with asyncio.timeout(60):
            assert await queue.call.read() == 1
        assert await guest.client.read(msix.bar, msix.pba_offset, 8) == bytes(8)


async def test_without_msi_x_the_pin_rises_and_the_isr_lowers_it(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start(msix=False)
        for number in range(1, 4):
            await queue.put([b"pin"], [3])
            async with asyncio.timeout(60):
                assert await guest.pin.read() == 1
            assert [used.data for used in queue.driver.collect()] == [b"PIN"]
            assert guest.device.pin
            assert await guest.read("isr_status") == 1
            assert not guest.device.pin
            assert await guest.read("isr_status") == 0
            queue.driver.enable_calls()
            await guest.end_of_interrupt()
            assert guest.server.function.interrupts.sent(-1) == number


async def test_msi_x_is_disabled_and_enabled_again_under_a_running_queue(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        assert await queue.ask([b"a"], [1]) == b"A"
        await guest.msix(enabled=False)
        await guest.intx()
        queue.driver.enable_calls()
        await queue.put([b"b"], [1])
        async with asyncio.timeout(60):
            assert await guest.pin.read() == 1
        assert await guest.read("isr_status") == 1
        queue.driver.collect()
        await guest.msix(enabled=True)
        assert await queue.ask([b"c"], [1]) == b"C"
        assert [guest.server.function.interrupts.sent(vector) for vector in (1, -1)] == [2, 1]


async def test_with_msi_x_neither_pin_nor_isr(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        await queue.ask([b"x"], [1])
        assert not guest.device.pin
        assert await guest.read("isr_status") == 0


# -- the device's configuration ------------------------------------------------------------------------------------------


async def test_the_configuration_is_read_and_written(serve, tracer):
    async with serve(Upper(config=bytes(range(16)))) as guest:
        assert await guest.client.read(0, DEVICE_CONFIG, 4) == bytes(range(4))
        assert await guest.client.read(0, DEVICE_CONFIG + 14, 4) == b"\x0e\x0f\0\0"
        await guest.client.write(0, DEVICE_CONFIG + 2, b"\xaa\xbb")
        assert guest.device.virtio.config[:5] == b"\0\1\xaa\xbb\4"
        await guest.client.write(0, DEVICE_CONFIG + 15, b"\1\2")
        assert tracer.of("message_refused")[0]["reason"] == "beyond the end"


async def test_a_change_of_the_configuration_interrupts_and_counts(serve):
    device = Upper(config=b"small")
    async with serve(device) as guest:
        await guest.start()
        for number in range(1, 3):
            device.config = b"large"
            device.config_changed()
            async with asyncio.timeout(60):
                assert await guest.vectors[0].read() == 1
            assert await guest.read("config_generation") == number
        assert await guest.client.read(0, DEVICE_CONFIG, 5) == b"large"
        await guest.write("config_msix_vector", 9)
        assert await guest.read("config_msix_vector") == NO_VECTOR
        device.config_changed()
        assert guest.server.function.interrupts.pending_bits() == bytes(8)
        assert await guest.read("config_generation") == 3
    assert device.config_watchers == ()


async def test_a_change_of_the_configuration_without_msi_x(serve):
    device = Upper(config=b"small")
    async with serve(device) as guest:
        await guest.start(msix=False)
        device.config_changed()
        async with asyncio.timeout(60):
            assert await guest.pin.read() == 1
        assert await guest.read("isr_status") == 2


async def test_a_driver_that_is_not_there_yet_is_not_interrupted(serve):
    device = Upper(config=b"small")
    async with serve(device) as guest:
        await guest.msix(enabled=True)
        await guest.write("config_msix_vector", 0)
        device.config_changed()
        assert guest.server.function.interrupts.pending_bits() == bytes(8)
        assert await guest.read("config_generation") == 1


# -- reset ---------------------------------------------------------------------------------------------------------------


async def test_a_reset_waits_for_requests_under_way(serve):
    device = Gated()
    async with serve(device) as guest:
        queue = await guest.start()
        await queue.put([b"slow"], [4])
        while not device.gates:
            await asyncio.sleep(0)
        resetting = asyncio.create_task(guest.write("device_status", 0))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not resetting.done()
        device.open(b"slow")
        await resetting
        assert await guest.read("device_status") == 0
        assert device.resets == 2  # and the one that the driver began with
        queue = await guest.start()
        await queue.put([b"again"], [5])
        while not device.gates:
            await asyncio.sleep(0)
        device.open(b"again")
        assert [used.data for used in await queue.answers()] == [b"AGAIN"]


async def test_a_reset_cancels_what_may_wait_for_ever(serve):
    device = Receiver()
    async with serve(device) as guest:
        queue = await guest.start()
        await queue.put([b"frame"], [4])
        while not device.gates:
            await asyncio.sleep(0)
        await guest.write("device_status", 0)
        assert device.cancelled == [b"frame"]


@pytest.mark.parametrize("how", ["message", "function-level"])
async def test_a_reset_of_the_function_resets_the_device(serve, how):
    device = Upper()
    async with serve(device) as guest:
        await guest.start()
        if how == "message":
            await guest.client.ask(13)
        else:
            place = (await guest.capabilities())[0x10][0][0]
            await guest.client.write(CONFIG, place + 8, struct.pack("<H", 0x8000))
        assert await guest.read("device_status") == 0
        assert await guest.read("num_queues") == 1
        assert await guest.read("queue_enable") == 0
        assert device.resets == 2  # and the driver's own, when it began
        assert await (await guest.start()).ask([b"up"], [2]) == b"UP"


async def test_one_queue_is_reset(serve):
    async with serve(Upper(num_queues=2)) as guest:
        await guest.start(queues=2, features=FEATURES | VirtioFeature.RING_RESET)
        first, second = guest.queues
        await first.ask([b"a"], [1])
        await guest.write("queue_select", 0)
        await guest.write("queue_reset", 1)
        assert await guest.read("queue_reset") == 0
        assert await guest.read("queue_enable") == 0
        assert await guest.read("queue_msix_vector") == NO_VECTOR
        assert await second.ask([b"b"], [1]) == b"B"
        first = await guest.queue(0)
        assert await first.ask([b"c"], [1]) == b"C"


async def test_a_queue_cannot_be_reset_unless_that_was_agreed_on(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        await guest.write("queue_reset", 1)
        assert await guest.read("queue_enable") == 1
        assert await queue.ask([b"a"], [1]) == b"A"


async def test_a_queue_that_is_enabled_cannot_be_moved(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        for name in ("queue_desc", "queue_driver", "queue_device", "queue_size"):
            before = await guest.read(name)
            await guest.write(name, 8)
            assert await guest.read(name) == before
        await guest.write("queue_enable", 0)
        assert await guest.read("queue_enable") == 1
        assert await queue.ask([b"a"], [1]) == b"A"


# -- drivers that break the rules ----------------------------------------------------------------------------------------


async def failed(guest: Guest, tracer, reason: str) -> None:
    """The driver must have been told, once, and only a reset helps."""
    async with asyncio.timeout(60):
        assert await guest.vectors[0].read() == 1
    assert await guest.read("device_status") == DRIVER_OK | Status.NEEDS_RESET
    (told,) = tracer.of("vring_stopped")
    assert reason in told["reason"]


async def test_a_broken_ring_needs_a_reset(serve, tracer):
    async with serve(Upper(num_queues=2)) as guest:
        await guest.start(queues=2)
        queue, other = guest.queues
        queue.driver.descriptor(0, 0xDEAD_0000_0000, 16)
        queue.driver.offer(0)
        queue.driver.publish()
        await queue.kick()
        await failed(guest, tracer, "not memory")
        await queue.kick()
        await guest.write("device_status", DRIVER_OK)
        assert guest.server.function.interrupts.sent(0) == 1
        assert await other.ask([b"alive"], [5]) == b"ALIVE"
        queue = await guest.start()
        assert await queue.ask([b"again"], [5]) == b"AGAIN"


@pytest.mark.parametrize("part", ["queue_desc", "queue_driver", "queue_device"])
async def test_a_ring_outside_the_memory_needs_a_reset(serve, tracer, part):
    async with serve(Upper()) as guest:
        await guest.map()
        await guest.msix(enabled=True)
        await guest.negotiate()
        await guest.write("config_msix_vector", 0)
        for name in ("queue_desc", "queue_driver", "queue_device"):
            await guest.write(name, 0x1000 if name == part else RAM)
        await guest.write("queue_enable", 1)
        assert await guest.read("device_status") == OK
        await guest.write("device_status", DRIVER_OK)
        await failed(guest, tracer, "not in the guest's memory")
        assert await guest.client.read(0, NOTIFY, 2) == b"\0\0"


async def test_a_queue_that_is_enabled_late_and_cannot_run(serve, tracer):
    async with serve(Upper(num_queues=2)) as guest:
        queue = await guest.start()
        await guest.write("queue_select", 1)
        await guest.write("queue_desc", 8)
        await guest.write("queue_enable", 1)
        await failed(guest, tracer, "not aligned")
        assert await queue.ask([b"a"], [1]) == b"A"


async def test_a_handler_that_raises_costs_its_request_and_is_traced(serve, tracer):
    class Raises(Upper):
        async def handle(self, request):
            raise ZeroDivisionError

    async with serve(Raises()) as guest:
        queue = await guest.start()
        assert await queue.ask([b"a"], [1]) == b""
        assert guest.device.statistics()[0].failed == 1
        assert [one["queue"] for one in tracer.of("request_failed")] == [0]


# -- the guest's memory --------------------------------------------------------------------------------------------------


async def test_a_ring_whose_memory_goes_away_for_a_while_goes_on_when_it_is_back(serve, tracer):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        assert await queue.ask([b"one"], [3]) == b"ONE"
        await guest.unmap()
        queue.driver.request([b"two"], [3])
        await queue.kick()
        await asyncio.sleep(0)
        assert queue.driver.collect() == []
        await guest.map()
        assert [used.data for used in await queue.answers()] == [b"TWO"]
        assert await guest.read("device_status") == DRIVER_OK
        assert tracer.of("vring_stopped") == []


async def test_other_memory_comes_and_goes_under_a_running_ring(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        await guest.client.map(0, 0x1000, fd=guest.ram.fileno())
        await guest.client.map(0x1000, 0x1000)  # without a file descriptor: not for rings
        await guest.client.map(0x8000, 0x1000, fd=guest.ram.fileno(), flags=1)  # nor what may not be written
        assert await queue.ask([b"one"], [3]) == b"ONE"
        for address in (0, 0x1000, 0x8000):
            await guest.client.unmap(address, 0x1000)
        assert await queue.ask([b"two"], [3]) == b"TWO"
        assert guest.device.statistics()[0].starts == 1


async def test_unmapping_waits_for_a_request_that_uses_the_memory(serve):
    device = Gated()
    async with serve(device) as guest:
        queue = await guest.start()
        await queue.put([b"slow"], [4])
        while not device.gates:
            await asyncio.sleep(0)
        unmapping = asyncio.create_task(guest.unmap())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not unmapping.done()
        device.open(b"slow")
        await unmapping
        assert [used.data for used in queue.driver.collect()] == [b"SLOW"]


async def test_a_receive_queue_gives_its_buffers_back_and_takes_them_again(serve):
    device = Receiver()
    async with serve(device) as guest:
        queue = await guest.start()
        await queue.put([b"one"], [3])
        await queue.put([b"two"], [3])
        while len(device.gates) < 2:
            await asyncio.sleep(0)
        await guest.unmap()
        assert device.cancelled == [b"one", b"two"]
        device.gates.clear()
        await guest.map()
        while len(device.gates) < 2:
            await asyncio.sleep(0)
        device.open(b"one", b"two")
        assert [used.data for used in await queue.answers(2)] == [b"ONE", b"TWO"]


async def test_a_client_that_goes_loses_what_was_under_way(serve, tracer, tmp_path):
    device = Gated()
    async with serve(device) as guest:
        queue = await guest.start()
        await queue.put([b"slow"], [4])
        while not device.gates:
            await asyncio.sleep(0)
        await guest.client.aclose()
        while not tracer.of("client_disconnected"):
            await asyncio.sleep(0)
        assert device.cancelled == [b"slow"]
        async with Guest(guest.server) as other:
            assert await other.read("device_status") == DRIVER_OK | Status.NEEDS_RESET
            queue = await other.start()
            device.gates.clear()
            await queue.put([b"new"], [3])
            while not device.gates:
                await asyncio.sleep(0)
            device.open(b"new")
            assert [used.data for used in await queue.answers()] == [b"NEW"]


# -- the window in the configuration space -------------------------------------------------------------------------------


async def test_the_window_reads_and_writes_registers(serve):
    async with serve(Upper(num_queues=5)) as guest:
        data = await guest.window(0, 0x12, 2)
        assert await guest.config(data, 2) == 5
        data = await guest.window(0, 0x14, 1)
        await guest.client.write(CONFIG, data, bytes([UP]))
        assert await guest.read("device_status") == UP
        assert await guest.config(data, 1) == UP


async def test_the_window_notifies(serve):
    async with serve(Upper()) as guest:
        queue = await guest.start()
        queue.driver.request([b"window"], [6])
        data = await guest.window(0, NOTIFY, 2)
        await guest.client.write(CONFIG, data, bytes(2))
        assert [used.data for used in await queue.answers()] == [b"WINDOW"]


@pytest.mark.parametrize(
    ("bar", "offset", "size"),
    [(7, 0, 4), (6, 0, 4), (0, 0, 3), (0, 0, 0), (0, 1, 2), (0, 0x4000, 4), (5, 0, 4), (0, 2**32 - 4, 4)],
)
async def test_a_window_onto_nothing_is_plain_memory(serve, bar, offset, size):
    async with serve(Upper()) as guest:
        data = await guest.window(bar, offset, size)
        await guest.client.write(CONFIG, data, b"abcd")
        assert await guest.client.read(CONFIG, data, 4) == b"abcd"
        assert await guest.read("device_status") == 0


# -- its life ------------------------------------------------------------------------------------------------------------


async def test_the_device_s_background_runs_while_it_is_served(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    class Busy(Upper):
        async def background(self):
            seen.append("begins")
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("ends")

        def close(self):
            seen.append("closed")

    device = VirtioPci(Busy())
    for _ in range(2):
        async with Server(device, "socket") as server, Guest(server) as guest:
            assert await guest.read("device_status") == 0
    device.close()
    assert seen == ["begins", "ends", "begins", "ends", "closed"]
    assert device.statistics() == ()


async def test_closing_the_server_cancels_requests(serve):
    device = Gated()
    async with serve(device) as guest:
        queue = await guest.start()
        await queue.put([b"slow"], [4])
        while not device.gates:
            await asyncio.sleep(0)
        await guest.server.__aexit__(None, None, None)
        assert device.cancelled == [b"slow"]
