"""The guides work as they are printed, from the first line to the last, with the QEMU under test."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from tests.qemu import program
from tests.qemu.guides import BLOCK, DOCS, Follower, scripts, steps, text_block
from tests.qemu.initramfs import kernel, need

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(280)]
# QEMU and the guest are the same on both loops, and the programs choose their own.
ONE_LOOP = pytest.mark.asyncio(loop_factories=["asyncio"])

TUTORIAL, PCI = "tutorial-vhost-user.md", "tutorial-pci.md"
RNG, BLK, CHAOS, OTHER, IVSHMEM, NVME, UART, VIRTIO, NET, LEDGER = (
    f"how-to/{name}.md"
    for name in (
        "vhost-user-rng",
        "vhost-user-blk",
        "chaos-blk",
        "vhost-user-other",
        "ivshmem",
        "vfio-user-nvme",
        "vfio-user-uart",
        "virtio-by-vfio-user",
        "virtio-net-console",
        "ledger",
    )
)
(GUEST_OPTIONS,) = scripts("how-to/index.md")
# xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax; mov sp, 0x7c00; mov ax, 0x201; mov cx, 2; mov dh, 0; mov bx, 0x7e00; int 0x13; jc end
# mov si, 0x7e00; next: lodsb; test al, al; jz end; mov dx, 0x3f8; out dx, al; jmp next; end: cli; hlt; jmp end
# The second sector, as text, to the serial port.
MASTER_BOOT_RECORD = bytes.fromhex(
    "31c0 8ed8 8ec0 8ed0 bc007c b80102 b90200 b600 bb007e cd13 720e be007e ac 84c0 7406 baf803 ee ebf5 fa f4 ebfc"
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    """A directory with the tutorial's guest in it, made by the tutorial's own lines."""
    kernel()  # skips where there is none
    directory = tmp_path_factory.mktemp("guest")
    (script,) = [text for text in scripts(TUTORIAL) if "guest/init" in text]
    subprocess.run(["bash", "-e", "-c", script], cwd=directory, check=True, capture_output=True)
    return directory


@pytest.fixture
async def follower(guest, tmp_path):
    for name in ("vmlinuz", "guest.img"):
        (tmp_path / name).symlink_to(guest / name)
    async with Follower(tmp_path, GUEST_OPTIONS.strip()) as follower:
        yield follower


@ONE_LOOP
async def test_the_tutorial_ends_in_a_guest_that_pings_our_device(follower):
    _, *_, qemu = scripts(TUTORIAL)
    (serve,) = [text for text in scripts(TUTORIAL) if text.startswith("python")]
    await follower.host(serve.strip(), ("Ping: listening at 'ping.sock'",))
    await follower.start(qemu.replace("\\\n", ""))
    for step in steps(TUTORIAL):
        await follower.take(step)
    assert "3 packets transmitted, 3 packets received, 0% packet loss" in follower.qemu.text
    await follower.host("kill %1")


@ONE_LOOP
async def test_randomness(follower):
    for step in steps(RNG):
        await follower.take(step)
    (read,) = [step.command for step in steps(RNG) if "xxd" in step.command]
    assert len({re.findall(r"^[0-9a-f]{32}$", await follower.guest(read), re.MULTILINE)[0] for _ in range(2)}) == 2


@ONE_LOOP
async def test_a_disk_is_used_booted_from_and_outlives_its_process(follower):
    *use, boot, kill, again, grow = steps(BLK)
    for step in use:
        await follower.take(step)
    image = follower.directory / "disk.img"
    with image.open("r+b") as file:
        file.write(MASTER_BOOT_RECORD.ljust(510, b"\0") + b"\x55\xaa" + b"SECOND SECTOR READ\n\0")
    await follower.start(boot.command, "SECOND SECTOR READ\n")
    # The guide's first line, connecting again, and reads under way when the process is killed.
    data = random.Random(5).randbytes(16 << 20)
    with image.open("r+b") as file:
        file.write(data)
    (qemu,) = [step.command for step in use if "qemu-system" in step.command]
    await follower.start(qemu.replace("path=blk.sock", f"path=blk.sock,{program.reconnect()}"))
    begin = follower.qemu.type(
        "(for i in $(seq 8); do head -c 2097152 /dev/vda | md5sum; echo 3 >/proc/sys/vm/drop_caches; done; echo R'EAD') &"
    )
    await follower.qemu.until("  -\n", begin)
    await follower.take(kill)
    await follower.take(again)
    said = await follower.qemu.until("READ\n", begin)
    assert re.findall(r"[0-9a-f]{32}", said) == [hashlib.md5(data[: 2 << 20], usedforsecurity=False).hexdigest()] * 8
    assert "error" not in said
    await follower.take(grow)
    await follower.guest(f"until [ $(cat /sys/block/vda/size) = {(2 << 30) // 512} ]; do sleep 0.1; done")


@ONE_LOOP
async def test_a_disk_that_misbehaves(follower):
    need(shutil.which("socat"), "socat")
    (follower.directory / "chaos.txt").write_text(text_block(CHAOS, "requests"), "utf-8")
    for step in steps(CHAOS):
        # Which of the two queues Linux has used by then is its own business.
        shown = tuple(line.partition(" interrupts=")[0] for line in step.shown)
        await follower.take(replace(step, shown=shown))


@ONE_LOOP
async def test_a_device_that_qemu_has_no_name_for(follower):
    serve, qemu, *session = steps(OTHER)
    await follower.take(serve)
    if program.version() < (10, 2):
        line = qemu.command.replace("vhost-user-test-device-pci", "vhost-user-device-pci")
        refused = "expects a pluggable device type" if program.version() >= (9,) else "is not a valid device model name"
        await follower.start(line, refused)
        return
    for step in (qemu, *session):
        await follower.take(step)


@ONE_LOOP
async def test_shared_memory_and_doorbells(follower):
    rung = "vector 2: rung 1 times\n"
    for step in steps(IVSHMEM):
        await follower.take(step)
        if "--ring" in step.command:
            await follower.shell.until(rung)
    # And once more, by the guest.
    await follower.shell.until(f"(?s){rung}.*{rung}")


@pytest.fixture
def vfio_user():
    """Asked for first: where QEMU is too old no shell is started."""
    program.need((10, 1), "vfio-user-pci")


@ONE_LOOP
@pytest.mark.parametrize("page", [PCI, NVME, UART, VIRTIO, NET])
@pytest.mark.usefixtures("vfio_user")
async def test_a_pci_device(follower, page):
    for step in steps(page):
        await follower.take(step)


@ONE_LOOP
@pytest.mark.usefixtures("vfio_user")
async def test_three_programs_keep_a_book_each(follower):
    command = follower.directory / "tools" / "aioirqfd"
    command.write_text('#!/bin/sh\nexec python -m aioirqfd "$@"\n', "utf-8")
    command.chmod(0o755)
    for step in steps(LEDGER):
        if "howto_ledger" not in step.command:  # which test_vfio_ledger.py runs
            # How often the driver was interrupted is its own business.
            await follower.take(replace(step, shown=step.shown[:1]))
    said = follower.shell.text.rpartition("nothing is owed\n\n")[2]
    (row,) = re.findall(r"^ +1 +(\d+) +(\d+) +(\d+) +(\d+)  nothing is owed.*\(nvme0q1\)$", said, re.MULTILINE)
    signalled, injected, qemu, guest = map(int, row)
    assert signalled >= injected >= qemu >= guest > 0


def test_no_guide_with_a_qemu_in_it_is_left_out():
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    with_qemu = {
        page
        for page in pages
        if any(" -device " in block for _, block in BLOCK.findall((DOCS / page).read_text("utf-8")))
    }
    assert with_qemu == {TUTORIAL, PCI, RNG, BLK, CHAOS, OTHER, IVSHMEM, NVME, UART, VIRTIO, NET, LEDGER}
