"""A pytest file that boots Linux with a disk which fails the third write: ``pytest examples/howto_guest.py``."""

from __future__ import annotations

# docs: begin test
from pathlib import Path  # noqa: TC003  pytest looks at it

import pytest

from aioirqfd.faults import Fail, Faults, Match
from aioirqfd.testing import guest
from examples.vhost_user_blk import Blk

WRITE = "dd if=/dev/zero of=/dev/vda bs=4k count=1 seek={} oflag=direct"


@pytest.mark.asyncio
async def test_linux_reports_a_write_that_fails(tmp_path: Path) -> None:
    """Its dmesg has the sector, and dd its exit status."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(32 << 20))
    faults = Faults()
    disk = faults.wrap(Blk(str(image)))
    third = faults.add(Match("write", nth=3), Fail())
    async with guest(disk, modules=["virtio_blk"], faults=faults) as vm:
        statuses = [(await vm.run(WRITE.format(number))).status for number in range(4)]
        assert statuses == [0, 0, 1, 0]
        await third.hit()
        dmesg = await vm.run("dmesg", check=True)
        assert "I/O error, dev vda, sector 16 op 0x1:(WRITE)" in dmesg.output
    disk.close()


# docs: end test
