from __future__ import annotations

import pytest

from tests.qemu.guides import printable
from tests.qemu.harness import Pci, Qemu, QemuError, initramfs

pytestmark = pytest.mark.qemu


async def test_memory_is_shared_with_a_machine_without_a_kernel():
    async with Qemu() as qemu:
        qemu.ram[0x1000:0x1004] = b"abcd"
        assert await qemu.qtest.command("readl 0x1000") == "0x0000000064636261"
        await qemu.qtest.command("writel 0x2000 0x12345678")
        assert qemu.ram[0x2000:0x2004] == bytes.fromhex("78563412")


async def test_a_qemu_that_does_not_start_says_why():
    with pytest.raises(QemuError, match="no-such-device"):
        async with Qemu("-device", "no-such-device"):
            pass


async def test_pci_function_and_its_msix_table():
    async with Qemu("-device", "virtio-rng-pci,vectors=3") as qemu:
        pci = await Pci.find(qemu.qtest, 0x1AF4, 0x1005)
        await pci.enable()
        msix = await pci.msix()
        assert msix.vectors == 3
        assert await msix.pending() == 0


@pytest.mark.slow
async def test_linux_boots_loads_modules_and_is_talked_to():
    linux = initramfs(
        "echo BOOTED $(cat /etc/note); read line; echo GOT $line; lsmod",
        modules=["virtio-rng"],
        files={"etc/note": "yes"},
    )
    async with Qemu(linux=linux, ram=256 << 20) as qemu:
        assert (await qemu.wait_for("BOOTED")).endswith("BOOTED yes")
        await qemu.console.send("hello\n")
        await qemu.wait_for("GOT hello")
        await qemu.wait_for("virtio_rng")
        assert await qemu.died() == 0


@pytest.mark.parametrize("at", range(len("/ # \x1b[6n")))
def test_an_escape_sequence_that_comes_in_two_pieces_is_not_on_the_screen(at):
    sent = "/ # \x1b[6n"
    first, kept = printable(sent[:at])
    rest, nothing = printable(kept + sent[at:])
    assert (first + rest, nothing) == ("/ # ", "")
