"""The kernel's KVM as the client's hypervisor: the eventfds of a vfio-user session are its irqfds, and it says when an interrupt ends."""

from __future__ import annotations

import asyncio
import struct

import pytest

from aioirqfd.pci.interrupts import PIN
from aioirqfd.vfio_user.messages import SetIrq
from tests.kvm.guest import AFTER_EOI, GSI, IN_HANDLER, READY, Guest
from tests.vfio_user.conftest import taken

pytestmark = pytest.mark.kvm

MSIX, INTX = 2, 0
RESAMPLE = 1 << 1


@pytest.fixture
async def guest():
    with Guest() as guest:
        assert guest.next_port().port == READY
        yield guest


async def runs_to(guest, *ports):
    """The guest's processor, on a thread of its own, comes by these ports."""
    assert [(await asyncio.to_thread(guest.next_port)).port for _ in ports] == [*ports]


async def test_a_vector_interrupts_a_guest_without_anybody_in_between(client, server, eventfds, guest):
    (fd,) = eventfds(1)
    guest.vm.irqfd(fd, GSI)
    server.device.interrupt(3)  # pending, until the client has an eventfd for it
    await client.bind(MSIX, 3, [fd])
    await runs_to(guest, IN_HANDLER, AFTER_EOI)
    for _ in range(5):
        await client.write(0, 0x18, struct.pack("<I", 3))
        await runs_to(guest, IN_HANDLER, AFTER_EOI)
    assert (server.function.interrupts.sent(3), taken(fd)) == (6, 0)


async def test_the_pin_stays_up_until_the_device_is_served_and_kvm_tells_of_each_end(client, server, eventfds, guest):
    trigger, end = eventfds(2)
    guest.vm.irqfd(trigger, GSI, flags=RESAMPLE, resamplefd=end)
    await client.bind(INTX, 0, [trigger])
    await client.set_irqs(SetIrq.DATA_EVENTFD | SetIrq.UNMASK, INTX, 0, 1, fds=[end])
    device, interrupts = server.device, server.function.interrupts
    for rises in (3, 1):
        before = interrupts.sent(PIN)
        device.pin = True
        for _ in range(rises - 1):
            # The guest ends it, and the device still wants it: the line rises again.
            await runs_to(guest, IN_HANDLER, AFTER_EOI)
        await runs_to(guest, IN_HANDLER)
        device.pin = False
        await runs_to(guest, AFTER_EOI)
        while interrupts._up:
            await asyncio.sleep(0)
        assert interrupts.sent(PIN) == before + rises
    assert (taken(trigger), guest.pic().irr & 1 << GSI) == (0, 0)
