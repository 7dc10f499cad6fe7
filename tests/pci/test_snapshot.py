"""A PCI function that stands still, is saved, and goes on elsewhere: registers, memory, interrupts, doorbells."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from dataclasses import FrozenInstanceError, replace

import pytest

from aioirqfd import EventFd
from aioirqfd.errors import ClosedError, SnapshotError
from aioirqfd.pci import Bar, Msi, PciDevice, PciExpress, PciFunction, PciFunctionState, Register, SerialNumber
from aioirqfd.pci.capability import MsiX
from aioirqfd.pci.config import COMMAND, INTX_DISABLE
from aioirqfd.pci.function import CONFIG_REGION
from aioirqfd.pci.interrupts import PIN
from tests.pci.conftest import settled

MSIX_BAR = 2


class Plain(PciDevice):
    """Registers, memory that the guest shares, two vectors and a pin: nothing but what the function knows."""

    vendor_id, device_id = 0x1234, 0x5678
    bars = (Bar(4096), Bar(8192, shared=((4096, 4096),)))
    vectors, intx = 2, True
    capabilities = (PciExpress(),)
    wide = Register(0x00, 8, reset=7)
    kept = Register(0x08, access="ro")

    async def fire(self, *vectors: int) -> None:
        for vector in vectors:
            self.interrupt(vector)


class Own(Plain):
    """The same with something of its own, which takes its time to come to rest."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.calls: list[str] = []
        self.rests = asyncio.Event()
        self.rests.set()

    async def pause(self) -> None:
        self.calls.append("pause")
        await self.rests.wait()

    def resume(self) -> None:
        self.calls.append("resume")

    def under_way(self) -> list[str]:
        return ["a long one", "another"]

    def save_state(self) -> dict[str, object]:
        return {"text": self.text}

    def restore_state(self, state: dict[str, object], /) -> None:
        self.text = str(state["text"])


def through_json(state: PciFunctionState) -> PciFunctionState:
    return PciFunctionState.from_dict(json.loads(json.dumps(state.to_dict())))


async def saved(device: PciDevice) -> PciFunctionState:
    async with PciFunction(device) as function:
        await function.pause()
        return through_json(function.save())


# -- what moves ------------------------------------------------------------------------------------------------------------


async def test_registers_memory_and_the_configuration_space_move():
    async with PciFunction(Plain()) as function:
        await function.write(0, 0, struct.pack("<Q", 0x1122334455667788))
        function.device.kept = 5
        await function.write(1, 4096 + 8, b"shared")
        await function.write(CONFIG_REGION, 0x10, struct.pack("<I", 0xFEB0_0000))
        await function.write(CONFIG_REGION, COMMAND, struct.pack("<H", 0x0406))
        await function.write(MSIX_BAR, 16, struct.pack("<QII", 0xFEE0_0000, 0x31, 0))
        await function.pause()
        state = through_json(function.save())
        assert state == function.save()
    assert state.registers == {"wide": 0x1122334455667788, "kept": 5}
    async with PciFunction(Plain()) as function:
        await function.pause()
        await function.restore(state)
        function.resume()
        assert await function.read(0, 0, 12) == struct.pack("<QI", 0x1122334455667788, 5)
        assert await function.read(1, 4096 + 8, 6) == b"shared"
        assert await function.read(CONFIG_REGION, 0x10, 4) == struct.pack("<I", 0xFEB0_0000)
        assert await function.read(CONFIG_REGION, COMMAND, 2) == struct.pack("<H", 0x0406)
        assert await function.read(MSIX_BAR, 0, 32) == bytes(12) + b"\1\0\0\0" + struct.pack(
            "<QII", 0xFEE0_0000, 0x31, 0
        )
        await function.reset()
        assert await function.read(0, 0, 12) == struct.pack("<QI", 7, 0)


async def test_what_was_in_the_function_is_gone():
    state = await saved(Plain())
    async with PciFunction(Plain()) as function:
        await function.write(0, 0, b"\1")
        await function.write(CONFIG_REGION, 0x10, struct.pack("<I", 0xFEB0_0000))
        await function.device.fire(1)
        function.device.pin = True
        await function.pause()
        await function.restore(state)
        await function.restore(state)  # twice is as good as once
        function.resume()
        assert function.device.wide == 7
        assert await function.read(CONFIG_REGION, 0x10, 4) == bytes(4)
        assert not function.interrupts.pending(1)
        assert not function.device.pin


async def test_the_device_s_own_state_moves():
    state = await saved(Own("hello"))
    assert state.own == {"text": "hello"}
    there = Own()
    async with PciFunction(there) as function:
        await function.pause()
        await function.restore(state)
        function.resume()
    assert there.text == "hello"
    assert there.calls == ["pause", "resume"]


async def test_a_register_at_its_reset_value_has_it_there_too():
    """Also where the device's own reset() sets another."""

    class Ready(Plain):
        def reset(self):
            self.kept = 1

    state = await saved(Ready())
    async with PciFunction(Ready()) as function:
        await function.pause()
        await function.restore(state)
        assert function.device.kept == 0


# -- interrupts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound_first", [False, True])
async def test_each_interrupt_that_is_owed_comes_once(target, bound_first):
    """Masked, without anybody to tell, or asked for while the function stands still."""
    bell = target()
    async with PciFunction(Plain()) as function:
        function.interrupts.bind(0, bell.lend())
        await function.device.fire(0, 1)
        await settled(function.interrupts)
        assert bell.taken() == 1
        await function.pause()
        state = through_json(function.save())
        assert state.pending == (1,)
        await function.device.fire(0)
        await settled(function.interrupts)
        assert bell.taken() == 0
        state = through_json(function.save())
        assert state.pending == (0, 1)
        function.resume()
        await settled(function.interrupts)
        assert bell.taken() == 1
    first, second = target(), target()
    async with PciFunction(Plain()) as function:
        if bound_first:
            function.interrupts.bind(0, first.lend())
            function.interrupts.bind(1, second.lend())
        await function.pause()
        await function.restore(state)
        if not bound_first:
            function.interrupts.bind(0, first.lend())
            function.interrupts.bind(1, second.lend())
        await settled(function.interrupts)
        assert (first.taken(), second.taken()) == (0, 0)
        function.resume()
        await settled(function.interrupts)
        assert (first.taken(), second.taken()) == (1, 1)
        assert not any(function.interrupts.pending_bits())


@pytest.mark.parametrize("disabled", [False, True])
async def test_the_pin_is_up_there_too(target, disabled):
    bell = target()
    async with PciFunction(Plain()) as function:
        function.interrupts.bind(PIN, bell.lend())
        function.device.pin = True
        await settled(function.interrupts)
        assert bell.taken() == 1
        if disabled:
            await function.write(CONFIG_REGION, COMMAND, struct.pack("<H", INTX_DISABLE))
        await function.pause()
        state = through_json(function.save())
        assert (state.pin, state.pending) == (True, ())
    bell = target()
    async with PciFunction(Plain()) as function:
        function.interrupts.bind(PIN, bell.lend())
        await function.pause()
        await function.restore(state)
        function.resume()
        await settled(function.interrupts)
        assert bell.taken() == int(not disabled)
        if disabled:
            await function.write(CONFIG_REGION, COMMAND, bytes(2))
            await settled(function.interrupts)
            assert bell.taken() == 1
        function.interrupts.end_of_interrupt()
        await settled(function.interrupts)
        assert bell.taken() == 1  # a level
        function.device.pin = False
        function.interrupts.end_of_interrupt()
        await settled(function.interrupts)
        assert bell.taken() == 0


async def test_a_guest_may_reset_the_function_while_it_stands_still(target):
    bell = target()
    async with PciFunction(Plain()) as function:
        function.interrupts.bind(0, bell.lend())
        function.interrupts.mask(0)
        await function.device.fire(0)
        function.device.pin = True
        await function.pause()
        await asyncio.wait_for(function.reset(), 60)
        function.interrupts.unmask(0)
        function.resume()
        await settled(function.interrupts)
        assert bell.taken() == 0
        await function.device.fire(0)
        await settled(function.interrupts)
        assert bell.taken() == 1


# -- doorbells -------------------------------------------------------------------------------------------------------------


class Ringing(Plain):
    def __init__(self, *, values: int = 0) -> None:
        self.bells = [EventFd(), EventFd()]
        self.values = values

    def lifespan(self):
        for number, bell in enumerate(self.bells):
            self.doorbell(bell, bar=0, offset=0x100, length=4, datamatch=number, values=self.values)
        return super().lifespan()

    def save_state(self):
        return {}


async def test_a_doorbell_that_nobody_has_heard_rings_there():
    device = Ringing()
    async with PciFunction(device) as function:
        await function.write(0, 0x100, struct.pack("<I", 0))
        await function.pause()
        for _ in range(3):
            await function.write(0, 0x100, struct.pack("<I", 1))
        device.bells[0].read_nowait()
        state = through_json(function.save())
        assert device.bells[1].read_nowait() == 3
        for bell in device.bells:
            bell.close()
        assert function.save().doorbells == ()
    device = Ringing()
    async with PciFunction(device) as function:
        await function.pause()
        await function.restore(state)
        assert device.bells[1].read_nowait() == 3
        with pytest.raises(BlockingIOError):
            device.bells[0].read_nowait()
    for bell in device.bells:
        bell.close()
    async with PciFunction(Silent()) as function:
        await function.pause()
        with pytest.raises(SnapshotError, match="Silent has no doorbell at 0x100 of BAR 0, which was rung"):
            await function.restore(state)


class Silent(Ringing):
    def __init__(self) -> None:
        self.bells = []


async def test_values_that_a_doorbell_keeps_are_the_device_s_to_save():
    device = Ringing(values=4)
    async with PciFunction(device) as function:
        await function.write(0, 0x100, struct.pack("<I", 1))
        await function.pause()
        with pytest.raises(SnapshotError, match="doorbell of Ringing at 0x100 of BAR 0 keeps 1 values"):
            function.save()
    for bell in device.bells:
        bell.close()


# -- misuse ----------------------------------------------------------------------------------------------------------------


async def test_a_function_is_saved_and_restored_while_it_stands_still():
    state = await saved(Plain())
    async with PciFunction(Plain()) as function:
        for _ in range(2):
            with pytest.raises(SnapshotError, match=r"is saved while it stands still: await its pause\(\) first"):
                function.save()
            with pytest.raises(SnapshotError, match=r"is restored while it stands still: await its pause\(\) first"):
                await function.restore(state)
            await function.pause()
            await function.pause()
            assert function.paused
            assert function.node()["paused"] is True
            assert function.save() == function.save()
            function.resume()
            function.resume()
            assert not function.paused
    assert function.node()["paused"] is False
    with pytest.raises(ClosedError, match="is not served"):
        await function.pause()
    with pytest.raises(SnapshotError):
        PciFunction(Plain()).save()


async def test_a_function_that_is_left_while_it_stands_still():
    async with PciFunction(Plain()) as function:
        await function.pause()
    assert not function.paused
    with pytest.raises(SnapshotError):
        function.save()


class Told(PciDevice):
    def __init__(self):
        self.heard: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(self):
        self.heard.append("lifespan")
        yield

    async def background(self):
        self.heard.append("background")

    async def pause(self):
        self.heard.append("pause")

    def resume(self):
        self.heard.append("resume")


async def test_a_device_that_was_left_while_it_stood_still_goes_on_when_it_is_served_again():
    """Between what it opens and its background; once."""
    device = Told()
    for paused in (True, False, False):
        async with PciFunction(device) as function:
            await asyncio.sleep(0)
            if paused:
                await function.pause()
    served = ["lifespan", "background"]
    assert device.heard == [*served, "pause", "lifespan", "resume", "background", *served]


async def test_who_pauses_at_the_same_time_waits_too():
    device = Own()
    async with PciFunction(device) as function:
        device.rests.clear()
        first, second = (asyncio.ensure_future(function.pause()) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="is just being paused or restored"):
            function.resume()
        with pytest.raises(SnapshotError):
            function.save()
        device.rests.set()
        await first
        await second
        function.resume()
        assert device.calls == ["pause", "resume"]


async def test_nobody_sees_a_function_that_is_half_restored():
    class Slow(Own):
        async def reset(self):
            await self.rests.wait()

    state = await saved(Own("hello"))
    device = Slow()
    async with PciFunction(device) as function:
        await function.pause()
        device.rests.clear()
        restoring = asyncio.ensure_future(function.restore(state))
        await asyncio.sleep(0)
        with pytest.raises(SnapshotError):
            function.save()
        with pytest.raises(SnapshotError):
            await function.restore(state)
        with pytest.raises(RuntimeError, match="is just being paused or restored"):
            function.resume()
        device.rests.set()
        await restoring
        assert device.text == "hello"
        assert function.save().own == {"text": "hello"}


async def test_a_pause_that_takes_too_long():
    device = Own()
    async with PciFunction(device) as function:
        device.rests.clear()
        with pytest.raises(
            TimeoutError, match=r"Own has not come to rest within 0\.01 s \(a long one; another\); it runs on"
        ):
            await function.pause(timeout=0.01)
        assert not function.paused
        assert device.calls == ["pause", "resume"]
        await device.fire(1)
        device.rests.set()
        await function.pause(timeout=0)
        assert function.paused


async def test_a_device_that_cannot_come_to_rest_runs_on(target):
    class Restless(Own):
        async def pause(self):
            raise OSError("no rest")

    device, bell = Restless(), target()
    async with PciFunction(device) as function:
        function.interrupts.bind(0, bell.lend())
        with pytest.raises(OSError, match="no rest"):
            await function.pause()
        assert not function.paused
        assert device.calls == ["resume"]
        await device.fire(0)
        await settled(function.interrupts)
        assert bell.taken() == 1


async def test_a_device_whose_attributes_nobody_knows_is_not_saved():
    class Unsaid(Plain):
        def __init__(self) -> None:
            self.queue, self.count = [1], 2
            self.vectors = 3

    async with PciFunction(Unsaid()) as function:
        await function.pause()
        with pytest.raises(
            SnapshotError, match=r"Unsaid has attributes beside its registers \(count, queue\): override"
        ):
            function.save()
        assert function.paused


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, float("nan")])
async def test_a_state_that_json_does_not_take_is_refused_at_once(value):
    class Odd(Plain):
        def save_state(self):
            return {"value": value}

    async with PciFunction(Odd()) as function:
        await function.pause()
        with pytest.raises(SnapshotError, match=r"what save_state\(\) of .*Odd returned is not what json takes"):
            function.save()


@pytest.mark.parametrize("error", [KeyError("text"), SnapshotError("no")])
async def test_a_device_that_does_not_take_its_part_is_as_after_a_reset(error):
    class Picky(Own):
        def restore_state(self, state, /):
            raise error

    async with PciFunction(Own()) as function:
        await function.write(0, 0, b"\1")
        await function.device.fire(0)
        await function.pause()
        state = function.save()
    async with PciFunction(Picky()) as function:
        await function.pause()
        with pytest.raises(SnapshotError, match=r"restore_state\(\) of Picky raised KeyError|no"):
            await function.restore(state)
        assert function.paused
        assert function.device.wide == 7
        assert not function.interrupts.pending(0)


# -- what does not fit -------------------------------------------------------------------------------------------------------


def variant(**differences: object) -> PciDevice:
    return type("Plain", (Plain,), differences)()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (variant(device_id=0x5679), "device_id is 0x5678 in the state, and 0x5679 here"),
        (variant(vendor_id=1, revision=2), "vendor_id is 0x1234 in the state, and 0x1 here; revision is 0x0"),
        (variant(subsystem_id=1), r"subsystem\.1 is 0x0"),
        (variant(class_code=1), "class_code is 0xff0000"),
        (variant(vectors=3), "vectors is 0x2 in the state, and 0x3 here"),
        (variant(intx=False), "intx is True in the state, and False here"),
        (variant(rom=b"rom"), r"rom\.0 is 0x0 in the state, and 0x3 here"),
        (variant(bars=(Bar(8192), Plain.bars[1])), r"bars\.0\.size is 0x1000 in the state, and 0x2000 here"),
        (variant(bars=(Bar(4096), Bar(8192))), r"bars\.1\.shared\.0 is \[4096, 4096\] in the state, and None here"),
        (variant(bars=(*Plain.bars, None, Bar(16))), r"bars\.3 is None in the state"),
        (variant(capabilities=(PciExpress(), SerialNumber(5))), "capabilities"),
        (variant(more=Register(0x10)), r"registers\.more is None in the state"),
        (variant(wide=Register(0, 4)), r"registers\.wide\.width is 0x8 in the state, and 0x4 here"),
    ],
)
async def test_another_device_s_state_is_refused_and_says_what_differs(device, said):
    state = await saved(Plain())
    async with PciFunction(device) as function:
        if "wide" not in said:
            await function.write(0, 0, b"\1")
        await function.pause()
        with pytest.raises(SnapshotError, match=f"this is not the state of a Plain as it is here: .*{said}"):
            await function.restore(state)
        assert "wide" in said or device.wide == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": bytes(256)}, "has 256 bytes of configuration space, and it has 4096"),
        ({"config": bytes(4096)}, "has another configuration space, from 0x0 on"),
        ({"table": b""}, "has 0 bytes of MSI-X table, and it has 32"),
        ({"shared": {}}, "has 0 bytes of shared memory of BAR 1, and it has 8192"),
        ({"shared": {1: bytes(8192), 0: b""}}, "has memory of BARs that it does not share"),
        ({"registers": {"other": 1}}, "a register other with 0x1, which it cannot have"),
        ({"registers": {"kept": 1 << 32}}, "a register kept with 0x100000000"),
        ({"pending": (2,)}, "owes interrupts by vectors that it has not"),
    ],
)
async def test_a_state_whose_parts_do_not_fit_is_refused(change, said):
    state = await saved(Plain())
    async with PciFunction(Plain()) as function:
        await function.write(0, 0, b"\1")
        await function.pause()
        with pytest.raises(SnapshotError, match=said):
            await function.restore(replace(state, **change))
        with pytest.raises(SnapshotError, match="a PciFunctionState is restored"):
            await function.restore(state.to_dict())  # type: ignore[arg-type]
        assert function.device.wide == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "is of version 2; this package reads 1"),
        ({"version": True}, "is of version True"),
        ({"kind": "vcpu"}, "says that it is of a 'vcpu'"),
        ({"more": 1}, "has the fields"),
        ({"identity": []}, "identity is a dict"),
        ({"config": 5}, "config is base64 text"),
        ({"table": "?"}, "table is base64 text"),
        ({"shared": {"6": ""}}, r"shared is by BAR, 0\.\.5, not by 6"),
        ({"shared": {"0": 1}}, "shared: 0 is base64 text"),
        ({"registers": {"wide": -1}}, "registers: wide is a number"),
        ({"registers": {"wide": 1.0}}, "registers: wide is a number"),
        ({"pending": [0, 0]}, "pending is a list of vectors, each once"),
        ({"pending": [2048]}, "pending is a list of vectors"),
        ({"pending": ["0"]}, "pending is a list of vectors"),
        ({"pending": 1}, "pending is a list"),
        ({"pin": 1}, "pin is true or false"),
        ({"doorbells": [[0, 0, 4, None, 0]]}, "a doorbell is"),
        ({"doorbells": [[6, 0, 4, None, 1]]}, "a doorbell is"),
        ({"doorbells": [[0, 0, 4, -1, 1]]}, "a doorbell is"),
        ({"doorbells": [1]}, "a doorbell is"),
        ({"own": 1}, "own is a dict"),
    ],
)
async def test_a_malformed_state_is_refused(change, said):
    state = (await saved(Plain())).to_dict()
    with pytest.raises(SnapshotError, match=said):
        PciFunctionState.from_dict({**state, **change})
    assert PciFunctionState.from_dict(state).to_dict() == state
    del state["pin"]
    for other in (state, None, [1]):
        with pytest.raises(SnapshotError, match="state of a PCI function"):
            PciFunctionState.from_dict(other)


async def test_a_state_does_not_change():
    state = await saved(Plain())
    with pytest.raises(FrozenInstanceError):
        state.pin = True  # type: ignore[misc]


async def test_a_device_without_msix_has_no_table():
    class Old(PciDevice):
        bars = (Bar(16),)
        capabilities = (Msi(1),)

    state = await saved(Old())
    assert state.table == b""
    assert len(state.config) == 256


def test_the_table_lies_where_it_is_thought():
    assert PciFunction(Plain()).config.find(MsiX)
    assert PciFunction(Plain()).msix.bar == MSIX_BAR  # type: ignore[union-attr]
