"""Virtio devices by vfio-user: QEMU as the client, and the drivers of Debian's Linux. Each device's class is the one that vhost-user serves."""

from __future__ import annotations

import random
import re

import pytest

from aioirqfd.virtio_pci import VirtioPci
from aioirqfd.virtio_pci.function import QUEUE_SIZE
from examples.vhost_user_blk import Blk
from examples.vhost_user_ping import Ping
from examples.vhost_user_rng import Rng
from examples.vhost_user_upper import Upper
from tests.qemu import program
from tests.qemu.test_vfio_linux import TRACE, count, digest, linux
from tests.qemu.test_vhost_linux import Stream, guest

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _new_enough():
    program.need((10, 1), "vfio-user-pci")


@pytest.fixture
def image(tmp_path):
    """A disk of 32 MiB of random bytes, and what they were."""
    path = tmp_path / "image"
    data = random.Random(3).randbytes(32 * MIB)
    path.write_bytes(data)
    return path, data


def sent(server, vectors):
    return [server.function.interrupts.sent(vector) for vector in vectors]


async def test_the_guests_random_bytes_are_ours_and_every_interrupt_is_accounted_for(tmp_path):
    stream = Stream()
    log = tmp_path / "trace"
    async with linux(VirtioPci(stream), modules=["virtio_pci", "virtio_rng"], arguments=[*TRACE, str(log)]) as (
        qemu,
        server,
    ):
        seen = await guest(qemu, "echo =$(dd if=/dev/hwrng bs=4096 count=1 2>/dev/null | sha256sum | cut -d' ' -f1)")
        found = [at for at in range(0, len(stream.served), 64) if digest(stream.served[at : at + 4096]) == seen]
        assert len(found) == 1
        await guest(qemu, "dd if=/dev/hwrng of=/dev/null bs=4096 count=16 2>/dev/null")
        (then,) = server.device.statistics()
        taken = await count(qemu, "virtio0-input")
        (done,) = server.device.statistics()
        assert 0 <= done.requests - done.answers <= 1
        # The driver has one request at a time, and each answer interrupts: nothing merges, and nothing is lost.
        assert done.calls == done.answers > 64
        assert sent(server, [0, 1]) == [0, done.calls]
        assert then.calls - 1 <= taken <= done.calls  # the kernel's own reader may go on meanwhile
        assert done.kicks == done.requests
    assert log.read_text().count("vfio_msi_interrupt") >= taken


async def test_a_driver_that_goes_and_comes():
    device = Stream()
    async with linux(VirtioPci(device), modules=["virtio_pci", "virtio_rng"]) as (qemu, server):
        for number in range(1, 4):
            await guest(qemu, "dd if=/dev/hwrng of=/dev/null bs=512 count=2 2>/dev/null")
            await guest(qemu, "echo virtio0 >/sys/bus/virtio/drivers/virtio_rng/unbind")
            assert device.driver_features == 0
            await guest(qemu, "echo virtio0 >/sys/bus/virtio/drivers/virtio_rng/bind")
            (done,) = server.device.statistics()
            assert done.starts == 1 + number
        await guest(
            qemu,
            "rmmod virtio_rng && insmod $(grep virtio-rng /etc/modules) && dd if=/dev/hwrng of=/dev/null bs=512 count=2",
        )


async def test_affinity_is_flipped_under_load_and_no_interrupt_is_lost():
    """Each flip masks and unmasks the vector, for which QEMU takes its eventfd away and gives it back."""
    flips = 100
    async with linux(VirtioPci(Stream()), modules=["virtio_pci", "virtio_rng"], smp=2) as (qemu, server):
        await guest(
            qemu,
            "irq=$(grep virtio0-input /proc/interrupts | cut -d: -f1 | tr -d ' ');"
            " (while dd if=/dev/hwrng of=/dev/null bs=64 count=16 2>/dev/null; do :; done) & load=$!;"
            f" for i in $(seq {flips}); do echo $((i % 2 + 1)) >/proc/irq/$irq/smp_affinity; done; kill $load; wait",
        )
        # Hangs if one was lost: the driver has one request under way at a time.
        await guest(qemu, "dd if=/dev/hwrng of=/dev/null bs=64 count=64 2>/dev/null")
        (then,) = server.device.statistics()
        taken = await count(qemu, "virtio0-input")
        (done,) = server.device.statistics()
        assert done.calls == done.answers
        # The last one may not have been counted yet; a request's own interrupt is never one with another's.
        assert then.calls - 1 <= taken <= done.calls + 2 * flips


@pytest.mark.parametrize("pin", [False, True], ids=["msi-x", "pin"])
async def test_a_disk_is_read_and_written(image, pin):
    path, data = image
    blk = Blk(str(path), num_queues=2, serial="number one")
    try:
        async with linux(
            VirtioPci(blk), modules=["virtio_pci", "virtio_blk"], smp=2, append="pci=nomsi" if pin else ""
        ) as (qemu, server):
            assert int(await guest(qemu, "echo =$(cat /sys/block/vda/size)")) == 32 * MIB // 512
            assert await guest(qemu, "echo =$(cat /sys/block/vda/serial)") == "number one"
            assert await guest(qemu, "echo =$(sha256sum </dev/vda | cut -d' ' -f1)") == digest(data)
            seen = await guest(
                qemu,
                "dd if=/dev/urandom of=/new bs=1M count=4 2>/dev/null; dd if=/new of=/dev/vda bs=64k seek=128 conv=fsync 2>/dev/null;"
                " echo 3 >/proc/sys/vm/drop_caches; echo =$(dd if=/dev/vda bs=1M skip=8 count=4 2>/dev/null | sha256sum | cut -d' ' -f1)",
            )
            written = path.read_bytes()
            assert digest(written[8 * MIB : 12 * MIB]) == seen
            assert written[: 8 * MIB] + written[12 * MIB :] == data[: 8 * MIB] + data[12 * MIB :]
            await guest(qemu, "blkdiscard -o 16777216 -l 1048576 /dev/vda")
            assert path.read_bytes()[16 * MIB : 17 * MIB] == bytes(MIB)
            done = server.device.statistics()
            calls = sum(queue.calls for queue in done)
            assert sum(queue.requests for queue in done) == sum(queue.answers for queue in done)
            assert sum(queue.failed for queue in done) == 0
            if pin:
                taken = await count(qemu, "virtio0")
                # QEMU takes any access for the end of the interrupt: then a pin that is still up is another one.
                assert 50 < taken <= server.function.interrupts.sent(-1)
            else:
                taken = await count(qemu, "virtio0-req")
                assert sum(sent(server, [1, 2])) == calls
                # What is signalled again before QEMU has looked at the eventfd is one interrupt.
                assert 50 < taken <= calls
                assert not any(server.function.interrupts.pending_bits())
    finally:
        blk.close()


async def test_a_disk_that_grows_tells_the_guest(image):
    path, _ = image
    blk = Blk(str(path))
    try:
        async with linux(VirtioPci(blk), modules=["virtio_pci", "virtio_blk"]) as (qemu, server):
            with path.open("r+b") as file:
                file.truncate(48 * MIB)
            await guest(qemu, f"until [ $(cat /sys/block/vda/size) = {48 * MIB // 512} ]; do sleep 0.1; done")
            assert server.function.interrupts.sent(0) == 1
            assert await count(qemu, "virtio0-config") == 1
    finally:
        blk.close()


async def test_a_console_that_answers_in_capitals():
    async with linux(VirtioPci(Upper()), modules=["virtio_pci", "virtio_console"]) as (qemu, server):
        await guest(
            qemu,
            "exec 4<>/dev/hvc0 && stty raw -echo <&4 && echo hello >&4 && read -r said <&4 && echo =$said",
        )
        assert await guest(qemu, "echo =$said") == "HELLO"
        assert [queue.failed for queue in server.device.statistics()] == [0, 0]


async def test_a_network_card_that_answers_ping():
    async with linux(VirtioPci(Ping()), modules=["virtio_pci", "virtio_net"]) as (qemu, server):
        await guest(qemu, "ifconfig eth0 10.0.0.2 && ping -c 3 10.0.0.1")
        assert any(re.search("3 packets received", line) for line in qemu.console.lines)
        assert [queue.failed for queue in server.device.statistics()] == [0, 0]


async def test_a_reset_of_the_function_while_it_is_in_use():
    async with linux(VirtioPci(Rng()), modules=["virtio_pci", "virtio_rng"]) as (qemu, server):
        for _ in range(3):
            await guest(qemu, "dd if=/dev/hwrng of=/dev/null bs=512 count=2 2>/dev/null")
            await guest(qemu, "echo virtio0 >/sys/bus/virtio/drivers/virtio_rng/unbind; echo 1 >$D/reset")
            assert server.device.device_status == 0
            assert server.device.queue_size == QUEUE_SIZE
            await guest(
                qemu,
                "echo ${D##*/} >/sys/bus/pci/drivers/virtio-pci/unbind; echo ${D##*/} >/sys/bus/pci/drivers/virtio-pci/bind",
            )
