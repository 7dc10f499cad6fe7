"""A network card and a console in one Linux guest, by vhost-user and by vfio-user: the same classes, the same results."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import subprocess

import pytest

from aioirqfd.testing import guest
from aioirqfd.vhost_user import Backend
from aioirqfd.virtio_pci import VirtioPci
from examples.net_tap import Tap
from examples.net_user import UserNet
from examples.virtio_console import Console
from examples.virtio_net import Net
from tests.conftest import NO_TAP
from tests.qemu import program
from tests.qemu.initramfs import kernel

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

PINGS = 50
DATAGRAMS = 20
BYTES = 20_000
MODULES = ["virtio_pci", "virtio_net", "virtio_console", "af_packet"]
# What udhcpc runs when it has a lease, or has lost it.
LEASED = """#!/bin/sh
[ "$1" = bound ] || exit 0
ifconfig $interface $ip netmask $subnet
echo "ip=$ip subnet=$subnet router=$router serverid=$serverid lease=$lease" >/tmp/lease
"""
FILES = {"bin/leased": LEASED}


@pytest.fixture(autouse=True)
def _there():
    kernel()  # or skip, and say what is missing


class Wire:
    """Both ends of a console: what is typed, and what was shown."""

    def __init__(self) -> None:
        self.typed = bytearray()
        self.shown = bytearray()
        self.news = asyncio.Event()

    def type(self, data):
        self.typed += data
        self.news.set()

    async def read(self, size):
        while not self.typed:
            self.news.clear()
            await self.news.wait()
        data = bytes(self.typed[:size])
        del self.typed[:size]
        return data

    async def write(self, data):
        self.shown += data


@contextlib.asynccontextmanager
async def machine(net, console, transport, path):
    """A guest with both devices, or without a console."""
    options = {"modules": MODULES, "files": FILES, "programs": ["/bin/bash"], "qemu": program.PROGRAM}
    if transport == "vfio-user":
        program.need((10, 1), "vfio-user-pci")
        async with guest(VirtioPci(net), VirtioPci(console), **options) as vm:
            yield vm
        return
    # QEMU before 10.2 has no front-end for a console.
    consoles = [(console, "vhost-user-test-device-pci,virtio-id=3,num_vqs=2,config_size=4")]
    if console is None or program.version() < (10, 2):
        consoles = []
    card = ["-chardev", f"socket,id=net,path={path}", "-netdev", "vhost-user,id=net,chardev=net"]
    async with Backend(net, path):
        plug = "virtio-net-pci,netdev=net,vectors=0,romfile=,mac=52:54:00:12:34:56"
        async with guest(*consoles, arguments=[*card, "-device", plug], **options) as vm:
            yield vm


@pytest.mark.parametrize("transport", ["vhost-user", "vfio-user"])
async def test_a_lease_pings_datagrams_and_a_console(transport, tmp_path):
    network, wire = UserNet(), Wire()
    net, console = Net(network), Console(wire, wire)
    async with machine(net, console, transport, tmp_path / "net") as vm:
        await the_guest_has_what_it_was_offered(vm)
        await each_ping_is_answered_once(vm, network)
        await each_datagram_comes_back(vm)
        if transport == "vfio-user":
            await the_link_goes_and_comes(vm, net)
        assert set(net.dropped) <= {"link down"}
        if transport == "vfio-user" or program.version() >= (10, 2):
            await bytes_go_both_ways(vm, wire)
            await the_terminal_changes_its_size(vm, console)
            assert (console.received, console.transmitted) == (BYTES, BYTES)


async def the_guest_has_what_it_was_offered(vm):
    assert (
        await vm.run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu")
    ).output == "52:54:00:12:34:56\n1500\n"
    await vm.run(
        "ip link set eth0 up; chmod +x /bin/leased; udhcpc -i eth0 -n -q -t 20 -T 3 -s /bin/leased", check=True
    )
    said = (await vm.run("cat /tmp/lease; ip -4 addr show dev eth0", check=True)).output
    assert said.startswith("ip=10.0.0.2 subnet=255.255.255.0 router=10.0.0.1 serverid=10.0.0.1 lease=86400\n")
    assert "inet 10.0.0.2/24" in said


async def each_ping_is_answered_once(vm, network):
    # What the kernel has to say on its own goes to nobody here.
    await vm.run("ping -c 1 -W 30 10.0.0.1", check=True)
    before = dict(network.counts)
    said = (await vm.run(f"ping -c {PINGS} -i 0.01 -s 1400 -W 30 10.0.0.1", check=True)).output
    assert f"{PINGS} packets transmitted, {PINGS} packets received, 0% packet loss" in said
    assert re.findall(r"seq=(\d+) ", said) == [str(number) for number in range(PINGS)]
    # ARP may be asked for in between, and is answered too.
    assert PINGS <= network.counts["answered"] - before["answered"] <= PINGS + 10


async def each_datagram_comes_back(vm):
    script = f"for i in $(seq {DATAGRAMS}); do echo datagram $i >&3; head -n 1 <&3; done"
    said = (await vm.run(f"bash -c 'exec 3<>/dev/udp/10.0.0.1/7; {script}'", check=True)).output.splitlines()
    assert said == [f"datagram {number + 1}" for number in range(DATAGRAMS)]


async def the_link_goes_and_comes(vm, net):
    """By vhost-user the configuration is QEMU's, and so is the link."""
    assert (await vm.run("cat /sys/class/net/eth0/carrier")).output == "1\n"
    for up in (False, True):
        net.link = up
        await vm.run(f"until [ $(cat /sys/class/net/eth0/carrier) = {int(up)} ]; do sleep 0.05; done", check=True)
    await vm.run("ping -c 1 -W 30 10.0.0.1", check=True)


async def bytes_go_both_ways(vm, wire):
    """All 256 values; what is typed is shown again, byte for byte."""
    data = random.Random(5).randbytes(BYTES)
    echo = f"head -c {BYTES} <&4 >/tmp/typed; cat /tmp/typed >&4; echo >/tmp/echoed"
    # Held open from before it is raw: a terminal that nobody has open forgets it.
    await vm.run(f"exec 4<>/dev/hvc0; stty raw -echo <&4; ({echo}) &", check=True)
    wire.type(data)
    await vm.run("until [ -e /tmp/echoed ]; do sleep 0.05; done", check=True)
    async with asyncio.timeout(60):
        while len(wire.shown) < BYTES:
            await asyncio.sleep(0.01)
    assert bytes(wire.shown) == data


async def the_terminal_changes_its_size(vm, console):
    for columns, rows in ((97, 31), (132, 43)):
        console.resize(columns, rows)
        await vm.run(f"until [ \"$(stty size </dev/hvc0)\" = '{rows} {columns}' ]; do sleep 0.05; done", check=True)


@pytest.mark.skipif(NO_TAP is not None, reason=f"needs a tap interface: {NO_TAP}")
async def test_the_guest_pings_the_host_over_a_tap_interface(tmp_path):
    with contextlib.closing(Tap()) as tap:
        subprocess.run(["ip", "addr", "add", "10.99.7.1/30", "dev", tap.name], check=True)
        subprocess.run(["ip", "link", "set", tap.name, "up"], check=True)
        net = Net(tap)
        async with machine(net, None, "vhost-user", tmp_path / "net") as vm:
            await vm.run("ip addr add 10.99.7.2/30 dev eth0; ip link set eth0 up", check=True)
            said = (await vm.run(f"ping -c {PINGS} -i 0.01 -s 1400 -W 30 10.99.7.1", check=True)).output
            assert f"{PINGS} packets transmitted, {PINGS} packets received, 0% packet loss" in said
            assert net.dropped == {}
