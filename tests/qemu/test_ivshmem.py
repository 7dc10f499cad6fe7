"""The ivshmem server with a QEMU as its peer: the test is the guest's driver, and its MSI-X messages land in guest memory."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from examples.ivshmem_peer import Client
from examples.ivshmem_server import Server
from tests.qemu.harness import MsixDevice, Pci, Qemu

pytestmark = pytest.mark.qemu

VECTORS = 4
ROUNDS = 2000
IV_POSITION = 8
DOORBELL = 12
WORDS = 0x8000
"""Where in the guest's memory the vectors' messages go."""


class Guest:
    """The device as a driver sees it."""

    def __init__(self, qemu: Qemu, pci: Pci, msix: MsixDevice):
        self.qemu = qemu
        self.pci = pci
        self.msix = msix

    async def ring(self, peer, vector, *, times=1, width="l"):
        register = self.pci.bars[0] + DOORBELL
        command = f"write{width} {register:#x} {peer << 16 | vector:#x}"
        for begin in range(0, times, 100):
            await self.qemu.within(self.qemu.qtest.commands(*[command] * min(100, times - begin)))

    def word(self, vector):
        return int.from_bytes(self.qemu.ram[WORDS + 4 * vector : WORDS + 4 * vector + 4], "little")

    def clear(self, vector):
        self.qemu.ram[WORDS + 4 * vector : WORDS + 4 * vector + 4] = bytes(4)

    async def interrupted(self, vector):
        """Wait for a vector's message, and take it."""
        await self.qemu.until(lambda: self.word(vector) == 0x100 + vector)
        self.clear(vector)

    async def settle(self):
        """Let QEMU look at its eventfds and sockets: two turns of its loop."""
        for _ in range(2):
            await self.qemu.within(self.qemu.qtest.command("endianness"))


class Host:
    """What the server hears."""

    def __init__(self, path):
        self.counts = [0] * VECTORS
        self.changes: list[tuple[int, bool]] = []
        self.news = asyncio.Event()
        self.server = Server(path, self.doorbell, vectors=VECTORS, size=1 << 20, watch=self.watch)

    async def doorbell(self, vector, count):
        self.counts[vector] += count
        self.news.set()

    def watch(self, peer, here):
        self.changes.append((peer, here))
        self.news.set()

    async def until(self, condition):
        while not condition():
            self.news.clear()
            await self.news.wait()


@contextlib.asynccontextmanager
async def joined(tmp_path, *, stopped=False, arguments=()):
    host = Host(tmp_path / "sock")
    async with host.server:
        device = ["-chardev", f"socket,id=iv,path={host.server.path}"]
        device += ["-device", f"ivshmem-doorbell,chardev=iv,vectors={VECTORS}{''.join(arguments)}"]
        async with Qemu(*device, stopped=stopped) as qemu:
            pci = await Pci.find(qemu.qtest, 0x1AF4, 0x1110)
            await pci.enable()
            msix = await pci.msix()
            assert msix.vectors == VECTORS
            for vector in range(VECTORS):
                await msix.point(vector, WORDS + 4 * vector, 0x100 + vector)
            yield host, Guest(qemu, pci, msix)


@pytest.mark.parametrize("stopped", [False, True])
async def test_each_ring_is_one_interrupt_of_the_guest(tmp_path, stopped):
    async with joined(tmp_path, stopped=stopped) as (host, guest):
        assert int(await guest.qemu.qtest.command(f"readl {guest.pci.bars[0] + IV_POSITION:#x}"), 16) == 1
        for number in range(ROUNDS):
            vector = number % VECTORS
            assert guest.word(vector) == 0
            assert host.server.ring(1, vector)
            await guest.interrupted(vector)
        await guest.settle()
        assert [guest.word(vector) for vector in range(VECTORS)] == [0] * VECTORS


async def test_a_stopped_process_is_interrupted_once_it_goes_on(tmp_path):
    """Also that the interrupt is QEMU's doing, and not the test's."""
    async with joined(tmp_path) as (host, guest):
        guest.qemu.send_signal(signal.SIGSTOP)
        for _ in range(5):
            host.server.ring(1, 2)
        await asyncio.sleep(0)
        assert guest.word(2) == 0
        guest.qemu.send_signal(signal.SIGCONT)
        await guest.interrupted(2)
        await guest.settle()
        assert guest.word(2) == 0  # five rings, one interrupt


@pytest.mark.parametrize("ioeventfd", ["on", "off"])
async def test_each_doorbell_of_the_guest_is_counted(tmp_path, ioeventfd):
    async with joined(tmp_path, arguments=[f",ioeventfd={ioeventfd}"]) as (host, guest):
        for vector in range(VECTORS):
            await guest.ring(0, vector, times=ROUNDS // VECTORS + vector)
        await guest.ring(0, 1, width="w")
        await guest.ring(0, VECTORS)  # no such vector
        await guest.ring(9, 0)  # no such peer
        await guest.qemu.within(host.until(lambda: sum(host.counts) >= ROUNDS + 6))
        await host.server.irqs.flush()
        # The 16-bit write has vector 1 and, for want of the upper half, peer 0.
        assert host.counts == [500, 502, 502, 503]


async def test_both_directions_at_once(tmp_path):
    async with joined(tmp_path) as (host, guest):

        async def down():
            for number in range(500):
                host.server.ring(1, number % VECTORS)
                await guest.interrupted(number % VECTORS)

        await asyncio.gather(down(), guest.ring(0, 3, times=500))
        await guest.qemu.within(host.until(lambda: host.counts[3] >= 500))
        assert host.counts == [0, 0, 0, 500]


async def test_a_masked_vector_waits_in_the_pending_bits(tmp_path):
    async with joined(tmp_path) as (host, guest):
        await guest.msix.mask(2)
        assert await guest.msix.pending() == 0
        for _ in range(5):
            host.server.ring(1, 2)
        while await guest.msix.pending() != 1 << 2:
            pass
        assert guest.word(2) == 0
        # The others are not concerned.
        host.server.ring(1, 1)
        await guest.interrupted(1)
        await guest.msix.unmask(2)
        assert await guest.msix.pending() == 0
        await guest.interrupted(2)
        await guest.settle()
        assert guest.word(2) == 0
        host.server.ring(1, 2)
        await guest.interrupted(2)


async def test_a_message_to_the_local_apic(tmp_path):
    async with joined(tmp_path, stopped=True) as (host, guest):
        await guest.msix.point(0, 0xFEE00000, 0x61)
        host.server.ring(1, 0)
        while " 97" not in await guest.qemu.qmp.hmp("info lapic"):
            pass


async def test_memory_is_shared_with_the_guest(tmp_path):
    async with joined(tmp_path) as (host, guest):
        await guest.qemu.qtest.command(f"writel {guest.pci.bars[2] + 0x1000:#x} 0x12345678")
        assert host.server.memory[0x1000:0x1004] == bytes.fromhex("78563412")
        host.server.memory[0x2000:0x2004] = b"abcd"
        assert int(await guest.qemu.qtest.command(f"readl {guest.pci.bars[2] + 0x2000:#x}"), 16) == 0x64636261


async def test_peers_come_and_go_beside_a_guest(tmp_path):
    async with joined(tmp_path) as (host, guest):
        for number in range(2, 7):
            async with await Client.connect(host.server.path, VECTORS) as client:
                assert client.id == number
                assert sorted(client.peers) == [0, 1]
                # The process rings the guest, past the server.
                for vector in range(VECTORS):
                    client.peers[1][vector].signal()
                    await guest.interrupted(vector)
                # The guest rings the process, once it has heard of it.
                reading = asyncio.ensure_future(client.vectors[0].read())
                while not reading.done():
                    await guest.ring(number, 0)
                heard = await reading
                assert heard >= 1
                await guest.ring(number, 3, times=50)
                assert client.vectors[3].read_nowait() == 50
            await host.until(lambda: list(host.server.peers) == [1])
            await guest.ring(number, 0, times=3)  # nobody there, or nobody who reads
        assert host.changes == [(1, True), *[(number, here) for number in range(2, 7) for here in (True, False)]]
        assert host.counts == [0] * VECTORS
        host.server.ring(1, 0)
        await guest.interrupted(0)


async def test_a_killed_guest_is_gone_for_everyone(tmp_path):
    host_changes = []
    async with joined(tmp_path) as (host, guest), await Client.connect(host.server.path, VECTORS) as client:
        assert len(client.peers[1]) == VECTORS
        guest.qemu.send_signal(signal.SIGKILL)
        await asyncio.wait_for(client.until(1, 0), 60)
        assert sorted(client.peers) == [0]
        await host.until(lambda: (1, False) in host.changes)
        assert not host.server.ring(1, 0)
        host_changes += host.changes
    assert host_changes == [(1, True), (2, True), (1, False)]
