"""The guest that is shipped for tests: what its users rely on, on Debian's kernel."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from aioirqfd.faults import Fail, Faults, Hang, Match
from aioirqfd.testing import GuestError, guest
from aioirqfd.virtio import Chain, Device
from examples import howto_guest
from examples.vhost_user_blk import Blk
from tests.qemu.initramfs import kernel

pytestmark = [pytest.mark.qemu, pytest.mark.slow]
# QEMU and the guest are the same on both loops.
ONE_LOOP = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.fixture(autouse=True)
def _there():
    kernel()  # or skip, and say what is missing


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(32 << 20))
    with contextlib.closing(Blk(str(path))) as disk:
        yield disk


async def test_the_file_that_the_guide_shows(tmp_path):
    await howto_guest.test_linux_reports_a_write_that_fails(tmp_path)


async def test_commands_their_output_and_their_status():
    async with guest(files={"etc/note": "yes\n"}, programs=["/usr/bin/env"]) as vm:
        result = await vm.run("cat /etc/note; echo wrong >&2; exit 7")
        assert (result.output, result.status) == ("yes\nwrong\n", 7)
        # Longer than a line, and more than one; bytes that a terminal would take for its own.
        script = "\n".join(f"echo {number}" for number in range(500)) + "\nprintf 'a\\003b\\r\\nc\\004'"
        assert (await vm.run(script)).output == "".join(f"{number}\n" for number in range(500)) + "a\x03b\r\nc\x04"
        assert (await vm.run("seq 20000", check=True)).output == "".join(f"{number}\n" for number in range(1, 20001))
        assert (await vm.run("/usr/bin/env -i NAME=x /usr/bin/env")).output == "NAME=x\n"
        with pytest.raises(GuestError, match=r"'false' ended with status 1, and printed ''"):
            await vm.run("false", check=True)
        with pytest.raises(GuestError, match=r"'sleep 100' has not ended within 0.1 s"):
            await vm.run("sleep 100", seconds=0.1)


@ONE_LOOP
async def test_no_command_is_lost_while_what_earlier_ones_have_left_behind_ends():
    async with guest() as vm:
        await vm.run("(while [ ! -e /tmp/enough ]; do (usleep 1000 &); done) &")
        for number in range(40):
            text = f"{number}: {'x' * 300}\n"
            assert (await vm.run(f"printf '%s\\n' '{text[:-1]}'")).output == text
        await vm.run("touch /tmp/enough")


async def test_the_console_is_kept_and_shown_where_something_fails(disk):
    faults = Faults()
    fault = faults.add(Match("read"), Fail(), enabled=False)
    with pytest.raises(AssertionError) as caught:
        async with guest(faults.wrap(disk), modules=["virtio_blk"], faults=faults) as vm:
            await vm.run("echo something >/dev/kmsg; echo '<0>an emergency' >/dev/kmsg")
            await vm.wait_console("an emergency")
            fault.enable()
            assert (await vm.run("cat /dev/vda >/dev/null")).status == 0
    shown = "".join(traceback.format_exception_only(caught.value))
    assert "the guest's console:\n" in shown
    assert "an emergency" in shown
    assert "'name': 'fail-1'" in shown


SUITE = """
import asyncio
from aioirqfd.faults import Fail, Faults, Match
from aioirqfd.virtio import Device
class Source(Device):
    device_id = 4
    async def handle(self, request):
        return request.write(b"r" * request.writable_size)
def test_it(guest):
    async def main():
        faults = Faults()
        async with guest(faults.wrap(Source()), modules=["virtio_rng"], faults=faults) as vm:
            assert (await vm.run("head -c 3 /dev/hwrng")).output == "rrR"
    asyncio.run(main())
"""


def test_a_failing_tests_report_has_console_faults_and_the_devices_trace(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:aioirqfd"]
    command += ["-p", "aioirqfd.testing.plugin", "-p", "no:asyncio"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    report = done.stdout
    assert "assert 'rrr' == 'rrR'" in report
    assert "the guest's console:" in report
    assert "the faults: {'faults': []" in report
    events = report.partition("the devices' trace:")[2]
    assert re.search(r"\d\.\d{3} s  vring_started .*queue=0 size=\d+ base=0", events), report


async def test_a_guest_that_dies_is_told():
    with pytest.raises(GuestError, match=r"the guest ended during 'poweroff -f'"):
        async with guest() as vm:
            await vm.run("poweroff -f")


async def test_a_guest_that_does_not_come_up():
    with pytest.raises(GuestError, match=r"the guest ended while it came up\n.*no-such-device"):
        async with guest(arguments=["-device", "no-such-device"]):
            pass
    with pytest.raises(GuestError, match="no program qemu-of-nowhere; on Debian: apt-get install"):
        async with guest(qemu="qemu-of-nowhere"):
            pass
    with pytest.raises(GuestError, match="has no module nosuchmodule"):
        async with guest(modules=["nosuchmodule"]):
            pass


class Bytes(Device):
    device_id = 4

    async def handle(self, request: Chain) -> int:
        return request.write(b"r" * request.writable_size)


async def test_a_device_that_is_no_disk():
    async with guest(Bytes(), modules=["virtio_rng"]) as vm:
        assert (await vm.run("head -c 5 /dev/hwrng", check=True)).output == "rrrrr"
    with pytest.raises(GuestError, match="QEMU is to be told what a virtio device 42 is"):
        device = Bytes()
        device.device_id = 42
        async with guest(device):
            pass


async def test_what_linux_does_when_the_disk_hangs(disk):
    faults = Faults(nonconforming=True)
    async with guest(faults.wrap(disk), modules=["virtio_blk"], faults=faults) as vm:
        hang = faults.add(Match("write"), Hang())
        await vm.run("(dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct; echo $? >/tmp/ended) &")
        await hang.hit()
        # It waits, for as long as it takes: virtio_blk has no time-out.
        assert (await vm.run("cat /sys/block/vda/queue/io_timeout")).status != 0
        assert (await vm.run("test -e /tmp/ended")).status != 0
        hang.remove()
        # Not by its process id, which a zombie has too.
        ended = await vm.run("while [ ! -e /tmp/ended ]; do sleep 0.1; done; cat /tmp/ended", check=True)
        assert ended.output == "0\n"
        assert "I/O error" not in (await vm.run("dmesg")).output
