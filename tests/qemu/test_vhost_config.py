"""A disk that grows and shrinks under a guest that uses it: Linux hears of it by a configuration change."""

from __future__ import annotations

import asyncio
import os

import pytest

from examples.vhost_user_blk import Blk
from tests.qemu.test_vhost_linux import MIB, guest, linux

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


async def test_a_guest_hears_that_its_disk_has_another_size(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(4 * MIB))
    blk = Blk(str(path), num_queues=2)
    async with linux(blk, "vhost-user-blk-pci", modules=["virtio_blk"], options=",num-queues=2", smp=2) as (qemu, _):

        async def size():
            return int(await guest(qemu, "echo =$(cat /sys/block/vda/size)")) * 512

        assert await size() == 4 * MIB
        for new in (8 * MIB, 6 * MIB, 16 * MIB):
            os.truncate(path, new)
            async with asyncio.timeout(60):
                while await size() != new:  # the disk looks at its image once a second
                    await asyncio.sleep(0.05)
        # What it has grown by is used, and what it had goes on.
        await guest(qemu, "echo new end | dd of=/dev/vda bs=512 seek=32767 conv=fsync 2>/dev/null")
        await guest(qemu, "echo new start | dd of=/dev/vda bs=512 conv=fsync 2>/dev/null")
        written = path.read_bytes()
        assert (written[-512:].startswith(b"new end\n"), written.startswith(b"new start\n")) == (True, True)
        # A change while the guest is paused is told when it goes on: its rings start anew.
        await qemu.qmp.execute("stop")
        os.truncate(path, 20 * MIB)
        blk.look()
        await qemu.qmp.execute("cont")
        async with asyncio.timeout(60):
            while await size() != 20 * MIB:
                await asyncio.sleep(0.05)
    blk.close()
