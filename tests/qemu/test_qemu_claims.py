"""What the guides say of QEMU's vhost-user front-ends, each statement run on the QEMU under test."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.vhost_user import Backend
from examples.vhost_user_blk import Blk
from examples.vhost_user_ping import Ping
from examples.vhost_user_rng import Rng
from tests.qemu import program
from tests.qemu.harness import Qemu, QemuError, initramfs
from tests.qemu.test_linux_claims import LOG, READ, started
from tests.qemu.test_vhost_linux import MIB, SHELL, guest, interrupts, linux
from tests.qemu.test_vhost_qtest import ALL, RNG
from tests.qemu.virtio_pci import VirtioPci

# What QEMU does, it does whatever our loop is.
pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

ROOT = Path(__file__).parents[2]


async def test_randomness_interrupts_by_a_line_unless_told_otherwise_and_the_kernel_reads_it():
    async with linux(Rng(), "vhost-user-rng-pci", modules=["virtio_rng"]) as (qemu, backend):
        await qemu.until(lambda: backend.statistics().queues[0].answers > 0)
        assert "IO-APIC" in await guest(qemu, "echo =$(grep virtio0 /proc/interrupts)")
    async with linux(Rng(), "vhost-user-rng-pci", modules=["virtio_rng"], options=",vectors=2") as (qemu, _):
        assert await interrupts(qemu, "virtio0-input") >= 0
        assert "PCI-MSI" in await guest(qemu, "echo =$(grep virtio0-input /proc/interrupts)")


async def test_a_stopped_machine_asks_what_the_device_is_and_no_more():
    qemu = Qemu(stopped=True)
    path = qemu.directory / "rng"
    async with Backend(Rng(), path) as backend:
        qemu.add_arguments("-chardev", f"socket,id=c,path={path}", "-device", "vhost-user-rng-pci,chardev=c")
        async with qemu:
            await qemu.qtest.command("readl 0")  # the device is there
            assert backend.statistics().sessions == 1
            assert backend.statistics().queues[0].starts == 0


@contextlib.asynccontextmanager
async def program_served(name, directory):
    """An example as a process, and what kills it."""
    path = directory / "device"
    command = [sys.executable, "-m", f"examples.{name}", "--socket-path", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert b"listening" in process.stdout.readline()
            yield process
        finally:
            process.kill()


async def test_randomness_is_not_connected_to_again():
    qemu = Qemu()
    path = qemu.directory / "rng"
    async with Backend(Rng(), path):
        qemu.add_arguments("-chardev", f"socket,id=c,path={path},{program.reconnect()}")
        qemu.add_arguments("-device", "vhost-user-rng-pci,chardev=c,vectors=2")
        with pytest.raises(QemuError, match="Failed to set msg fds"):
            async with qemu:
                await qemu.died()


async def test_a_reader_of_randomness_that_has_gone_waits_until_the_guest_ends():
    qemu = Qemu(linux=initramfs(SHELL, modules=["virtio_pci", "virtio_rng"]), ram=256 * MIB)
    async with program_served("vhost_user_rng", qemu.directory) as rng:
        qemu.add_arguments("-chardev", f"socket,id=c,path={qemu.directory / 'device'}")
        qemu.add_arguments("-device", "vhost-user-rng-pci,chardev=c,vectors=2")
        async with qemu:
            await qemu.wait_for("GUEST-READY")
            await guest(qemu, "head -c 64 /dev/hwrng >/dev/null")
            rng.kill()
            await started(qemu, "head -c 64 /dev/hwrng >/dev/null")
            await guest(qemu, "sleep 2")
            assert not any("CODE=" in line for line in qemu.console.lines if "echo" not in line)
            await qemu.console.send("poweroff -f &\n")
            assert await qemu.died() == 0


async def test_a_disk_that_has_gone_is_waited_for():
    """Without the option to connect again: no error, no end."""
    qemu = Qemu(linux=initramfs(SHELL, modules=["virtio_pci", "virtio_blk"]), ram=256 * MIB)
    image = qemu.directory / "image"
    image.write_bytes(bytes(MIB))
    blk = Blk(str(image))
    path = qemu.directory / "device"
    async with contextlib.AsyncExitStack() as stack:
        backend = Backend(blk, path)
        await stack.enter_async_context(backend)
        qemu.add_arguments("-chardev", f"socket,id=c,path={path}", "-device", "vhost-user-blk-pci,chardev=c")
        async with qemu:
            await qemu.wait_for("GUEST-READY")
            await stack.aclose()
            await started(qemu, READ)
            await guest(qemu, "sleep 3")
            assert "I/O error" not in await guest(qemu, LOG)
            assert not any("CODE=" in line for line in qemu.console.lines if "echo" not in line)
            await qemu.console.send("poweroff -f &\n")
            assert await qemu.died() == 0
    blk.close()


async def test_a_network_card_has_no_link_while_its_back_end_is_away():
    qemu = Qemu(linux=initramfs(SHELL, modules=["virtio_pci", "virtio_net"]), ram=256 * MIB)
    path = qemu.directory / "device"
    ping, carrier = "ping -c 1 -W 30 10.0.0.1 >/dev/null", "echo =$(cat /sys/class/net/eth0/carrier)"
    qemu.add_arguments(
        "-chardev", f"socket,id=c,path={path},{program.reconnect()}", "-netdev", "vhost-user,id=n,chardev=c"
    )
    qemu.add_arguments("-device", "virtio-net-pci,netdev=n,vectors=0,romfile=")
    async with program_served("vhost_user_ping", qemu.directory) as first, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(qemu)
        await qemu.wait_for("GUEST-READY")
        await guest(qemu, f"ifconfig eth0 10.0.0.2; {ping}")
        assert await guest(qemu, carrier) == "1"
        first.kill()
        first.wait()
        await guest(qemu, "until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done")
        async with program_served("vhost_user_ping", qemu.directory):
            while await guest(qemu, carrier) != "1":
                await asyncio.sleep(0.1)
            await guest(qemu, ping)


async def test_a_network_card_with_msix_crashes_an_old_qemu_without_kvm():
    image = initramfs(SHELL, modules=["virtio_pci", "virtio_net"])
    qemu = Qemu(linux=image, ram=256 * MIB)
    path = qemu.directory / "device"
    async with Backend(Ping(), path):
        qemu.add_arguments("-chardev", f"socket,id=c,path={path}", "-netdev", "vhost-user,id=n,chardev=c")
        qemu.add_arguments("-device", "virtio-net-pci,netdev=n,romfile=")
        async with qemu:
            if program.version() < (8,):
                assert await qemu.died() == -signal.SIGSEGV
                return
            await qemu.wait_for("GUEST-READY")
            await guest(qemu, "ifconfig eth0 10.0.0.2; ping -c 3 10.0.0.1 >/dev/null")
            assert await interrupts(qemu, "virtio0-output") > 0


async def test_an_old_qemu_swaps_the_call_eventfd_when_a_vector_is_masked():
    qemu = Qemu()
    path = qemu.directory / "rng"
    async with Backend(Rng(), path) as backend:
        qemu.add_arguments("-chardev", f"socket,id=c,path={path}", "-device", "vhost-user-rng-pci,chardev=c,vectors=2")
        qemu.add_arguments("-trace", "vhost_user_write")
        async with qemu:
            virtio = VirtioPci(qemu)
            await virtio.find(RNG)
            await virtio.begin(ALL)
            await virtio.queue(0, 64)
            await virtio.go()
            await qemu.until(lambda: backend.statistics().queues[0].starts > 0)

            def swaps():
                return qemu.output.read_text("utf-8").count("vhost_user_write req:13 ")

            before = swaps()
            assert before > 0
            for _ in range(10):
                await virtio.msix.mask(1)
                await virtio.msix.unmask(1)
            assert swaps() - before == (20 if program.version() < (8,) else 0)
