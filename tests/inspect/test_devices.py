"""What devices, chips, tables and buses show of themselves: each value against what it stands for."""

# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (what is read is JSON, of whose inside no type checker knows)
from __future__ import annotations

import asyncio
import json
import os

import pytest

from aioirqfd import Action, EventFd, Interrupt, IoBus, IrqchipPin, IrqManager, MsixTable, nodes
from aioirqfd.faults import Delay, Faults, Match
from aioirqfd.inspect import read
from aioirqfd.irqchip import Chipset, IoApic, Pic
from aioirqfd.pci import Bar, PciDevice
from aioirqfd.pci.interrupts import PIN, Interrupts
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import vfio_user_client, vhost_user_frontend
from aioirqfd.tracer import NullTracer
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.calls import Calls
from aioirqfd.virtio_pci import VirtioPci
from tests.irqfd.helpers import turns
from tests.vhost_user.devices import Gated, Upper


def initialised():
    pic = Pic()
    for command, data, words in ((0x20, 0x21, (0x30, 0x04, 0x01)), (0xA0, 0xA1, (0x38, 0x02, 0x01))):
        pic.io_write(command, 0x11)
        for word in words:
            pic.io_write(data, word)
    return pic


def of_pin(chip, pin, *names):
    shown = chip.inspect()["pins"].give()[str(pin)]
    return tuple(shown[name] for name in names)


# -------------------------------------------------------------------------------------------------------------- chips


def test_a_pin_of_the_pic_from_its_request_to_its_end():
    pic = initialised()
    states = "masked", "requested", "in_service", "held_by"
    assert of_pin(pic, 10, "vector", "gsi", "level", *states) == (0x3A, 10, False, False, False, False, [])
    pic.set_irq(10, 1)
    assert of_pin(pic, 10, *states) == (False, True, False, ["set_irq()"])
    assert pic.inspect()["output"] is True
    assert pic.intack() == 0x3A
    assert of_pin(pic, 10, *states) == (False, False, True, ["set_irq()"])
    pic.io_write(0xA1, 1 << 2)
    pic.try_inject(Interrupt(10, IrqchipPin("pic", 10), Action.ASSERT))
    held = ["set_irq()", "the resample irqfds of gsi 10"]
    assert of_pin(pic, 10, *states, "requests") == (True, False, True, held, 2)


def test_what_a_level_triggered_pin_of_the_pic_loses_is_counted():
    pic = initialised()
    pulse = Interrupt(5, IrqchipPin("pic", 5))
    pic.try_inject(pulse)  # an edge stays pending
    assert of_pin(pic, 5, "requested", "requests", "lost") == (True, 1, 0)
    pic.intack()
    pic.io_write(0x4D0, 1 << 5)
    pic.io_write(0x21, 1 << 5)
    pic.try_inject(pulse)
    pic.try_inject_batch([pulse, pulse])
    assert of_pin(pic, 5, "level", "masked", "requested", "requests", "lost") == (True, True, False, 4, 3)
    pic.try_inject(Interrupt(5, IrqchipPin("pic", 5), Action.ASSERT))
    pic.try_inject(pulse)  # in the interrupt that is asked for
    assert of_pin(pic, 5, "lost") == (3,)


def programmed(ioapic, pin, low):
    for register, value in ((0x10 + 2 * pin, low), (0x11 + 2 * pin, 0)):
        ioapic.mmio_write(0x00, register)
        ioapic.mmio_write(0x10, value)


def test_a_pin_of_the_ioapic_from_its_request_to_its_end_and_what_it_loses():
    out = RecordingSink()
    ioapic = IoApic(out)
    pulse = Interrupt(9, IrqchipPin("ioapic", 9))
    states = "masked", "requested", "in_service"
    assert of_pin(ioapic, 9, "gsi", "level", *states) == (9, False, True, False, False)
    ioapic.try_inject(pulse)
    assert of_pin(ioapic, 9, *states, "lost") == (True, True, False, 0)  # an edge waits for the unmask
    programmed(ioapic, 9, 0x41 | 1 << 15 | 1 << 16)
    ioapic.try_inject(pulse)
    assert of_pin(ioapic, 9, "level", *states, "requests", "lost") == (True, True, False, False, 2, 1)
    programmed(ioapic, 9, 0x41 | 1 << 15)
    ioapic.try_inject(pulse)
    assert of_pin(ioapic, 9, "vector", "message", *states, "lost") == (
        0x41,
        "0xfee00000 data 0xc041",
        False,
        False,
        True,
        1,
    )
    ioapic.try_inject(pulse)  # before the EOI
    assert of_pin(ioapic, 9, "lost") == (2,)
    ioapic.eoi(0x41)
    assert of_pin(ioapic, 9, *states) == (False, False, False)
    assert len(out.interrupts) == 1
    assert ioapic.inspect()["waiting"] == []


async def test_a_chipset_shows_its_chips_in_its_managers_node():
    async with IrqManager(Chipset(pic=initialised(), ioapic=IoApic(RecordingSink())), name="pc") as irqs:
        assert irqs.inspect("sink", 0) == {"type": "Chipset", "pic": "...", "ioapic": "..."}
        assert irqs.inspect("sink/pic/pins/5/vector") == 0x35
        assert irqs.inspect("sink/*/type") == {"pic": "Pic", "ioapic": "IoApic"}
        assert len(irqs.inspect("sink/ioapic/pins")) == 24


# ------------------------------------------------------------------------------------------------- tables and doorbells


async def test_an_msix_table_shows_its_vectors():
    async with IrqManager(RecordingSink(), name="vm") as irqs, MsixTable(irqs, vectors=3, name="nic") as table:
        table.write_control(MsixTable.ENABLE)
        table.write(16, 0xFEE00000, 8)
        table.write(24, 0x41, 8)  # data, and the mask bit goes
        table.signal(2)
        assert read("msix/nic", 0) == {
            "manager": "vm",
            "enabled": True,
            "function_mask": False,
            "active": 0,
            "waiting_for_gsi": 0,
            "vectors": "...",
        }
        table.signal(1)
        vector = read("msix/nic/vectors/1")
        names = "address", "data", "masked", "pending", "active", "gsi"
        assert [vector[name] for name in names] == ["0xfee00000", "0x41", False, False, True, table.gsi(1)]
        assert read("msix/nic/vectors/*/pending") == {"0": False, "1": False, "2": True}
    assert "nic" not in read("msix")


def test_a_doorbell_whose_fd_somebody_closed_spoils_nothing():
    bus = IoBus(name="closed")
    bad = EventFd()
    with EventFd() as good, bus.ioeventfd(bad, address=0x1000, length=4), bus.ioeventfd(good, address=0x2000, length=4):
        os.close(bad.fileno())
        shown = [one["eventfd_id"] for one in read(f"buses/{nodes.key_of(bus)}")["doorbells"].values()]
        assert shown == [None, good.id]
    with pytest.raises(OSError, match="Bad file"):
        bad.close()


def test_a_bus_shows_its_doorbells():
    bus = IoBus(name="mmio")
    with EventFd() as kick, bus.ioeventfd(kick, address=0x1000, length=4, datamatch=7):
        bus.write(0x1000, 7, 4)
        node = read(f"buses/{nodes.key_of(bus)}")
        assert (node["writes"], node["detached"]) == (1, 0)
        assert node["doorbells"] == {
            "mmio:0x1000:4=0x7": {
                "space": "mmio",
                "address": "0x1000",
                "length": 4,
                "datamatch": 7,
                "eventfd_id": kick.id,
                "dead": False,
                "writes": 1,
                "values": 0,
                "overflowed": 0,
            }
        }


# ------------------------------------------------------------------------------------------------------------ devices


async def test_a_vhost_user_session_and_its_rings_indices(tmp_path):
    class Shown(Gated):
        def inspect(self):
            return {"gate": "shut"}

    device = Shown()
    path = tmp_path / "socket"
    async with Backend(device, path, name="disk"):
        node = read("vhost_user/disk", 0)
        assert (node["device"], node["path"], node["session"], node["sessions"]) == (
            Shown.__qualname__,
            str(path),
            None,
            0,
        )
        async with vhost_user_frontend(path) as front:
            queue = front.queues[0]
            queue.put([b"abc"], [3])
            queue.put([b"def"], [3])
            while len(device.gates) < 2:
                await asyncio.sleep(0)
            node = read("vhost_user/disk")
            assert json.loads(json.dumps(node)) == node
            assert node["own"] == {"gate": "shut"}
            assert node["sessions"] == 1
            assert len(node["session"]["memory"]) == 1
            shown = node["queues"]["0"]
            assert (shown["running"], shown["enabled"], shown["broken"], shown["size"]) == (True, True, None, 64)
            ring = {name: shown["ring"][name] for name in ("size", "available", "taken", "used", "in_flight")}
            assert ring == {"size": 64, "available": 2, "taken": 2, "used": 0, "in_flight": 2}
            assert (shown["statistics"]["requests"], shown["statistics"]["answers"]) == (2, 0)
            assert [one["head"] for one in shown["requests"].values()] == [0, 2]
            assert [
                "Gated.handle (vhost_user/devices.py:" in one["stands_at"] for one in shown["requests"].values()
            ] == [True, True], [one["stands_at"] for one in shown["requests"].values()]
            managers = node["managers"]
            assert managers == ["vhost_user-disk-kicks", "vhost_user-disk-calls"]
            assert list(read(f"managers/{managers[0]}/irqfds", 0)) == ["kick 0"]
            assert list(read(f"managers/{managers[1]}/irqfds", 0)) == ["call 0"]
            device.open(b"abc", b"def")
            await queue.answers(2)
            ring = read("vhost_user/disk/queues/0/ring")
            assert (ring["used"], ring["in_flight"]) == (2, 0)
    assert "disk" not in read("vhost_user")


async def test_a_call_without_an_eventfd_says_so():
    async with Calls(2, tracer=NullTracer(), name="calls") as calls:
        assert read("managers/calls/explain") == "nothing stops its 2 irqfds."
        calls.ring(1)
        why = "the front-end has given its queue no call eventfd (SET_VRING_CALL); its interrupt is kept"
        assert read("managers/calls/explain").startswith(f"call 1 (gsi 1): {why}. An injection is owed; ")


async def test_a_vfio_user_session_its_vectors_and_its_pin():
    class Dice(PciDevice):
        bars = (Bar(4096),)
        vectors = 2
        intx = True

        def inspect(self):
            return {"sides": 6}

    device = Dice()
    async with vfio_user_client(device):
        device.interrupt(1)
        await turns(5)
        ((key, node),) = read("vfio_user").items()
        assert (node["device"], node["own"], node["session"]) == (Dice.__qualname__, {"sides": 6}, True)
        interrupts = node["interrupts"]
        quiet = {"bound": False, "masked": False, "pending": False, "sent": 0}
        assert interrupts["vectors"] == {"0": quiet, "1": quiet | {"pending": True}}
        assert interrupts["pin"] == {"wanted": False, "up": False, "disabled": False} | quiet
        called = f"{Dice.__qualname__}-{key}"
        assert f"{called}-vectors" in read("managers")
        why = (
            "nobody has given it an eventfd to interrupt by: the guest has not enabled it, or the VMM has forgotten it"
        )
        owed = "An injection is owed; its signals are in its eventfd, uncounted."
        assert read(f"managers/{called}-vectors/explain") == f"vector 1: {why}. {owed}"


async def test_a_device_may_be_called_as_no_part_of_a_path_can():
    device = PciDevice()
    device.name, device.intx = "disk\n1/a", True
    async with vfio_user_client(device):
        ((key, node),) = read("vfio_user").items()
        assert node["device"] == "disk\n1/a"
        assert f"disk-1-a-{key}-vectors" in read("managers")


async def test_a_vector_of_a_pci_device_says_what_it_waits_for():
    async with Interrupts(2, tracer=NullTracer(), name="dice") as interrupts:
        interrupts.bind(1, EventFd())
        interrupts.signal(1)
        await interrupts.flush()
        assert read("managers/dice/explain") == "nothing stops its 1 irqfds."
        interrupts.mask(1)
        assert read("managers/dice/explain") == "nothing stops its 1 irqfds."  # nothing is owed
        interrupts.signal(1)
        said = read("managers/dice/explain")
        assert said.startswith("vector 1 (gsi 1): the guest has masked it, by its VMM. An injection is owed; ")
        interrupts.bind(1, None)
        assert read("managers/dice/explain").startswith("vector 1 (gsi 1): nobody has given it an eventfd")
        interrupts.disable_pin(disabled=True)
        interrupts.bind(PIN, EventFd())
        interrupts.pin = True
        pin = read("managers/dice/explain").splitlines()[-1]
        assert pin.startswith(
            "pin (gsi 2): the guest has disabled the pin, by the command register. An injection is owed"
        )


async def test_a_virtio_device_by_vfio_user_shows_its_queues():
    async with vfio_user_client(VirtioPci(Upper(num_queues=2))):
        ((key, node),) = read("vfio_user").items()
        queues = node["own"]["queues"]
        assert [queues[n]["vector"] for n in ("0", "1")] == [None, None]
        assert [queues[n]["running"] for n in ("0", "1")] == [False, False]
        assert list(read(f"managers/Upper-{key}-doorbells/irqfds", 0)) == ["doorbell 0", "doorbell 1"]


def test_faults_show_what_is_set():
    faults = Faults()
    faults.wrap(Gated())
    faults.add(Match(), Delay(1), name="lost")
    (node,) = (one for one in read("faults").values() if one["faults"])
    assert [one["name"] for one in node["faults"]] == ["lost"]
    faults.close()


async def test_faults_are_asked_on_the_loop_that_their_requests_come_on(tmp_path):
    faults = Faults()
    device = faults.wrap(Upper())
    faults.add(Match(), Delay(0), name="late")
    (entry,) = (one for one in nodes.entries() if one.is_of(faults))
    assert entry.loop() is None  # no request has come
    path = tmp_path / "socket"
    async with Backend(device, path), vhost_user_frontend(path) as front:
        assert await front.queues[0].ask([b"abc"], [3]) == b"ABC"
        assert entry.loop() is asyncio.get_running_loop()
        assert (await asyncio.to_thread(read, f"faults/{entry.key}/requests")) == {"request queue=0": 1}
    loop = asyncio.new_event_loop()
    loop.close()
    faults._loop = loop
    assert entry.loop() is None  # none will come any more
    faults.close()
