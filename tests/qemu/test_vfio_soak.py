"""An NVMe disk under load, for as long as one likes.

``AIOIRQFD_SOAK=1000000 pytest -s --timeout 0 tests/qemu/test_vfio_soak.py`` reads 4 KiB at random places a million times, on each of
two processors 16 at a time, and boots 20 times. Without the variable it is 20,000 reads and two boots.
"""

from __future__ import annotations

import os

import pytest

from tests.bench.disk import build
from tests.qemu import program
from tests.qemu.test_vfio_disturbed import SUM, Counted, accounted_for, image  # noqa: F401  a fixture
from tests.qemu.test_vfio_linux import TRACE, count, linux
from tests.qemu.test_vhost_linux import guest

STEP = 20_000
STEPS = max(1, int(os.environ.get("AIOIRQFD_SOAK", "0")) // STEP)
DONE = "echo =$(awk '{ print $1 }' /sys/block/nvme0n1/stat)"
BOOTS = 20 if STEPS > 1 else 2

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]


@pytest.fixture(autouse=True)
def _new_enough():
    program.need((10, 1), "vfio-user-pci")


async def test_every_command_is_completed_and_every_interrupt_accounted_for(image, tmp_path):  # noqa: F811
    path, digest = image
    log = tmp_path / "trace"
    device = Counted(str(path))
    try:
        async with linux(device, smp=2, files={"bin/load": build(tmp_path)}, arguments=[*TRACE, str(log)]) as (
            qemu,
            server,
        ):
            before = await count(qemu, "nvme0q")
            given, began = int(await guest(qemu, DONE)), device.commands
            for _ in range(STEPS):
                await guest(
                    qemu,
                    f"for i in 1 2; do taskset $i /bin/load /dev/nvme0n1 rand 4096 16 {STEP // 2} >/tmp/said$i & done; wait",
                )
            # What it prints first is how much was done.
            assert (
                int(await guest(qemu, "echo =$(cat /tmp/said1 /tmp/said2 | awk '{ n += $1 } END { print n }')")) == STEP
            )
            # Linux may make one command of two neighbours.
            given = int(await guest(qemu, DONE)) - given
            assert given == device.commands - began
            assert given > 0.9 * STEP * STEPS
            assert await guest(qemu, SUM) == digest
            await accounted_for(qemu, server, log, before)
            taken = await count(qemu, "nvme0q") - before
        print(f"{device.commands} commands, {device.calls} interrupts, {taken} taken by the guest")
    finally:
        device.close()


async def test_boot_after_boot(image):  # noqa: F811
    path, digest = image
    for _ in range(BOOTS):
        device = Counted(str(path))
        try:
            async with linux(device, smp=2) as (qemu, _):
                assert await guest(qemu, SUM) == digest
        finally:
            device.close()
