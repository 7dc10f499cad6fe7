"""IoBus: which doorbells may stand side by side, and which write rings which (rows O01 to O21)."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from aioirqfd import (
    ClosedError,
    EventFd,
    IoBus,
    IoEventFdExistsError,
    IoEventFdInvalidError,
    IoEventFdNotFoundError,
    IrqManager,
    WouldBlock,
)
from aioirqfd.sinks import RecordingSink

A, B = 0x11, 0x22
FULL = 2**64 - 2


@pytest.fixture
def bus():
    return IoBus()


@pytest.fixture
def efd():
    with EventFd() as efd:
        yield efd


def rings(efd):
    """How often it rang since the last look."""
    try:
        return efd.read_nowait()
    except WouldBlock:
        return 0


# ------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("space", ["pio", "mmio"])
@pytest.mark.parametrize("length", [0, 1, 2, 4, 8])
def test_lengths_there_are(bus, efd, space, length):
    # Row O01.
    doorbell = bus.ioeventfd(efd, address=0x100, length=length, space=space)
    assert (doorbell.address, doorbell.length, doorbell.datamatch, doorbell.space) == (0x100, length, None, space)
    assert doorbell.eventfd is efd
    assert len(bus) == 1


@pytest.mark.parametrize("length", [-1, 3, 5, 6, 7, 9, 16, 2**64, 1.5, "4"])
def test_lengths_there_are_not(bus, efd, length):
    # Row O01; a deassign of them finds nothing.
    with pytest.raises(IoEventFdInvalidError) as caught:
        bus.ioeventfd(efd, address=0, length=length)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(IoEventFdNotFoundError):
        bus.deassign(efd, address=0, length=length)
    assert len(bus) == 0


def test_a_datamatch_needs_a_length(bus, efd):
    # Row O02.
    for value in (0, 1):
        with pytest.raises(IoEventFdInvalidError):
            bus.ioeventfd(efd, address=0, datamatch=value)
    bus.ioeventfd(efd, address=0, length=1, datamatch=0)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_datamatch_is_an_unsigned_64_bit_number(bus, efd, value):
    with pytest.raises(IoEventFdInvalidError):
        bus.ioeventfd(efd, address=0, length=8, datamatch=value)


@pytest.mark.parametrize(
    ("address", "length", "fits"),
    [
        (2**64 - 5, 4, True),
        (2**64 - 4, 4, False),
        (2**64 - 3, 4, False),
        (2**64 - 2, 1, True),
        (2**64 - 1, 1, False),
        (2**64 - 9, 8, True),
        (2**64 - 8, 8, False),
        (2**64 - 1, 0, True),
        (2**64, 0, False),
        (2**64, 1, False),
        (-1, 0, False),
        (-1, 4, False),
    ],
)
def test_the_end_of_the_address_space(bus, efd, address, length, fits):
    # Row O03.
    if fits:
        bus.ioeventfd(efd, address=address, length=length)
        assert bus.write(address, 0, length or 1)
        assert rings(efd) == 1
    else:
        with pytest.raises(IoEventFdInvalidError):
            bus.ioeventfd(efd, address=address, length=length)


@pytest.mark.parametrize("value", [1.0, "1"])
@pytest.mark.parametrize("name", ["address", "datamatch"])
def test_what_is_no_integer(bus, efd, name, value):
    with pytest.raises(TypeError, match="integer"):
        bus.ioeventfd(efd, **{"address": 0, "length": 4, name: value})
    assert len(bus) == 0


def test_spaces_there_are_not(bus, efd):
    for space in ("", "PIO", "mem", None, 0):
        with pytest.raises(IoEventFdInvalidError):
            bus.ioeventfd(efd, address=0, space=space)


def test_a_closed_eventfd(bus):
    # Row O05: the length is looked at first.
    efd = EventFd()
    efd.close()
    with pytest.raises(ClosedError) as caught:
        bus.ioeventfd(efd, address=0)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(IoEventFdInvalidError):
        bus.ioeventfd(efd, address=0, length=3)
    with pytest.raises(ClosedError):
        bus.deassign(efd, address=0)


def test_no_irqchip_no_vcpu_and_a_port_beyond_64k(bus, efd):
    # Row O06.
    bus.ioeventfd(efd, address=0x12345, length=2, space="pio")
    assert bus.write(0x12345, 0, 2, space="pio")


# ---------------------------------------------------------------------------------------------------------- collisions

# Row O07. Six kinds of doorbell at one address, by (length, datamatch), and by hand which two cannot both be there.
KINDS = {
    "any": (0, None),
    "2 bytes": (2, None),
    "4 bytes": (4, None),
    "4 bytes A": (4, A),
    "4 bytes B": (4, B),
    "2 bytes A": (2, A),
}
COLLIDE = """
            any   2bytes 4bytes 4bytesA 4bytesB 2bytesA
any          x      x      x      x       x       x
2bytes       x      x      .      .       .       x
4bytes       x      .      x      x       x       .
4bytesA      x      .      x      x       .       .
4bytesB      x      .      x      .       x       .
2bytesA      x      x      .      .       .       x
"""


def expectations():
    return list(table())


def table():
    head, *rows = COLLIDE.strip().splitlines()
    names = {name.replace(" ", ""): name for name in KINDS}
    for row in rows:
        first, *marks = row.split()
        for second, mark in zip(head.split(), marks, strict=True):
            yield pytest.param(names[first], names[second], mark == "x", id=f"{first}-{second}")


def test_the_table_is_whole_and_symmetric():
    marks = {(each.values[0], each.values[1]): each.values[2] for each in expectations()}
    assert len(marks) == 36
    assert all(marks[second, first] == mark for (first, second), mark in marks.items())


@pytest.mark.parametrize(("first", "second", "collide"), expectations())
@pytest.mark.parametrize("space", ["pio", "mmio"])
def test_collisions(bus, efd, first, second, collide, space):
    with EventFd() as other:
        length, datamatch = KINDS[first]
        bus.ioeventfd(efd, address=0x40, length=length, datamatch=datamatch, space=space)
        length, datamatch = KINDS[second]

        def put(address=0x40, where=space):
            return bus.ioeventfd(other, address=address, length=length, datamatch=datamatch, space=where)

        if collide:
            with pytest.raises(IoEventFdExistsError) as caught:
                put()
            assert caught.value.errno == errno.EEXIST
            assert len(bus) == 1
        else:
            put()
            assert len(bus) == 2
        # Rows O07, O08: an overlap is no collision, and neither is the other space.
        put(address=0x41)
        put(address=0x3F)
        put(where="pio" if space == "mmio" else "mmio")
        assert len(bus) == (4 if collide else 5)


def test_the_same_eventfd_collides_with_itself(bus, efd):
    bus.ioeventfd(efd, address=0, length=4)
    with pytest.raises(IoEventFdExistsError):
        bus.ioeventfd(efd, address=0, length=4)


def test_a_place_is_free_again_after_its_doorbell_left(bus, efd):
    for _ in range(3):
        with bus.ioeventfd(efd, address=0, length=4), pytest.raises(IoEventFdExistsError):
            bus.ioeventfd(efd, address=0)
        assert len(bus) == 0
        bus.ioeventfd(efd, address=0)
        bus.deassign(efd, address=0)
    assert bus._doorbells == {}


# ------------------------------------------------------------------------------------------------------------ deassign


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": 0x41},
        {"length": 2},
        {"length": 0, "datamatch": None},
        {"datamatch": B},
        {"datamatch": None},
        {"space": "pio"},
        {"eventfd": "another"},
    ],
)
def test_deassign_must_match_in_every_field(bus, efd, wrong):
    # Row O09.
    with EventFd() as another:
        right = {"address": 0x40, "length": 4, "datamatch": A, "space": "mmio"}
        bus.ioeventfd(efd, **right)
        asked = right | wrong
        which = another if asked.pop("eventfd", None) else efd
        with pytest.raises(IoEventFdNotFoundError) as caught:
            bus.deassign(which, **asked)
        assert caught.value.errno == errno.ENOENT
        assert bus.write(0x40, A, 4)
        bus.deassign(efd, **right)
        assert not bus.write(0x40, A, 4)
        with pytest.raises(IoEventFdNotFoundError):
            bus.deassign(efd, **right)


def test_deassign_by_a_dup(bus, efd):
    # Row O09: what counts is the kernel's object.
    bus.ioeventfd(efd, address=0x40)
    with EventFd.from_fd(os.dup(efd.fileno()), owns=True) as dup:
        bus.deassign(dup, address=0x40)
    assert len(bus) == 0


def test_deassign_takes_the_one_of_several(bus, efd):
    for datamatch in (A, B):
        bus.ioeventfd(efd, address=0x40, length=4, datamatch=datamatch)
    bus.deassign(efd, address=0x40, length=4, datamatch=A)
    assert not bus.write(0x40, A, 4)
    assert bus.write(0x40, B, 4)


def test_close_is_idempotent_and_takes_only_itself(bus, efd):
    doorbell = bus.ioeventfd(efd, address=0x40)
    doorbell.close()
    successor = bus.ioeventfd(efd, address=0x40)
    doorbell.close()
    assert len(bus) == 1
    assert bus.discard(successor)
    assert not bus.discard(successor)
    assert not efd.closed


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_write_that_matches_adds_one_whatever_it_writes(bus, efd):
    # Row O10.
    bus.ioeventfd(efd, address=0x40, length=4)
    for value in (0, 1, 1000, 2**32 - 1):
        assert bus.write(0x40, value, 4)
        assert rings(efd) == 1


@pytest.mark.parametrize(
    ("address", "value", "length"), [(0x41, A, 4), (0x3F, A, 4), (0x40, A, 2), (0x40, A, 8), (0x40, B, 4)]
)
def test_a_write_that_does_not_match_is_the_callers(bus, efd, address, value, length):
    # Row O11.
    bus.ioeventfd(efd, address=0x40, length=4, datamatch=A)
    assert not bus.write(address, value, length)
    assert not bus.write(0x40, A, 4, space="pio")
    assert rings(efd) == 0
    assert bus.write(0x40, A, 4)
    assert rings(efd) == 1


def test_without_a_length_any_write_at_the_very_address_rings(bus, efd):
    # Row O12.
    bus.ioeventfd(efd, address=0x40)
    assert all(bus.write(0x40, 0, length) for length in (1, 2, 4, 8))
    assert rings(efd) == 4
    assert not bus.write(0x41, 0, 1)


def test_a_datamatch_is_compared_whole(bus, efd):
    # Row O13: bits beyond the length never match.
    bus.ioeventfd(efd, address=0x40, length=2, datamatch=0x1_0011)
    assert not bus.write(0x40, 0x11, 2)
    bus.ioeventfd(efd, address=0x48, length=8, datamatch=2**64 - 1)
    assert bus.write(0x48, 2**64 - 1, 8)
    assert not bus.write(0x48, 2**32 - 1, 8)
    bus.ioeventfd(efd, address=0x50, length=4, datamatch=0)
    assert bus.write(0x50, 0, 4)
    assert rings(efd) == 2


def test_of_several_at_one_address_only_the_matching_one_rings(bus):
    # Row O14.
    kinds = ("4 bytes A", "4 bytes B", "2 bytes")
    efds = {kind: EventFd() for kind in kinds}
    for kind, efd in efds.items():
        length, datamatch = KINDS[kind]
        bus.ioeventfd(efd, address=0x40, length=length, datamatch=datamatch)
    writes = [(A, 4, "4 bytes A"), (B, 4, "4 bytes B"), (A, 2, "2 bytes"), (0x33, 4, None), (A, 1, None)]
    for value, length, expected in writes:
        assert bus.write(0x40, value, length) == (expected is not None)
        assert {kind: rings(efd) for kind, efd in efds.items()} == {kind: int(kind == expected) for kind in kinds}
    for efd in efds.values():
        efd.close()


def test_ports_and_memory_are_apart(bus, efd):
    # Row O08.
    with EventFd() as other:
        bus.ioeventfd(efd, address=0x40, space="pio")
        bus.ioeventfd(other, address=0x40, space="mmio")
        assert bus.write(0x40, 0, 1, space="pio")
        assert (rings(efd), rings(other)) == (1, 0)
        assert bus.write(0x40, 0, 1)
        assert (rings(efd), rings(other)) == (0, 1)


def test_an_eventfd_that_is_closed_while_it_hangs_there(bus):
    # Row O18: the kernel swallows such writes for ever; here the first one takes the doorbell off.
    efd = EventFd()
    bus.ioeventfd(efd, address=0x40)
    efd.close()
    assert not bus.write(0x40, 0, 1)
    assert len(bus) == 0
    with EventFd() as other:
        bus.ioeventfd(other, address=0x40)
        assert bus.write(0x40, 0, 1)


def test_a_doorbell_whose_eventfd_is_closed_can_still_be_taken_off(bus, efd):
    doorbell = bus.ioeventfd(efd, address=0x40)
    with EventFd() as other:
        efd.close()
        with pytest.raises(IoEventFdNotFoundError):
            bus.deassign(other, address=0x40)
        doorbell.close()
        bus.ioeventfd(other, address=0x40)


def test_one_eventfd_at_many_addresses_and_on_many_buses(efd):
    # Rows O19, O22.
    buses = [IoBus(), IoBus()]
    for bus in buses:
        for address in range(2000):
            bus.ioeventfd(efd, address=address, length=4)
        assert len(bus) == 2000
    for bus in buses:
        assert all(bus.write(address, 0, 4) for address in range(2000))
    assert rings(efd) == 4000


async def test_a_doorbell_that_is_an_irqfds_trigger_too(bus):
    # Row O20.
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=5)
            bus.ioeventfd(kick, address=0x40)
            assert bus.write(0x40, 0, 4)
            assert [interrupt.gsi for interrupt in sink.interrupts] == [5]
            thread = threading.Thread(target=bus.write, args=(0x40, 0, 4))
            thread.start()
            thread.join()
            await irqs.flush()
            assert [interrupt.gsi for interrupt in sink.interrupts] == [5, 5]


def test_a_full_eventfd_and_a_semaphore(bus):
    # Row O21.
    with EventFd() as full, EventFd(semaphore=True) as semaphore:
        full.signal(FULL)
        bus.ioeventfd(full, address=0x40)
        bus.ioeventfd(semaphore, address=0x41)
        assert bus.write(0x40, 0, 1)
        assert rings(full) == FULL
        assert all(bus.write(0x41, 0, 1) for _ in range(3))
        assert [rings(semaphore) for _ in range(4)] == [1, 1, 1, 0]


# ------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.stress
def test_vcpus_write_while_doorbells_come_and_go(bus, efd):
    # A doorbell that stays hears every write of its value, whatever is put beside it and taken off meanwhile.
    bus.ioeventfd(efd, address=0x40, length=4, datamatch=A)
    taken = []

    def vcpu():
        taken.append(sum(bus.write(0x40, A, 4) for _ in range(3000)))

    vcpus = [threading.Thread(target=vcpu) for _ in range(3)]
    with EventFd() as other:
        for thread in vcpus:
            thread.start()
        while any(thread.is_alive() for thread in vcpus):
            with (
                bus.ioeventfd(other, address=0x40, length=4, datamatch=B),
                bus.ioeventfd(other, address=0x40, length=2),
            ):
                pass
        for thread in vcpus:
            thread.join()
        assert rings(other) == 0
    assert taken == [3000] * 3
    assert rings(efd) == 9000
    assert len(bus) == 1


@pytest.mark.stress
def test_of_many_threads_only_one_gets_a_place_and_only_one_takes_it_away(bus):
    won, removed = [], []
    barrier = threading.Barrier(4)

    def compete(efd):
        for turn in range(200):
            barrier.wait()
            try:
                bus.ioeventfd(efd, address=turn, length=4)
                won.append(turn)
            except IoEventFdExistsError:
                pass

    def compete_to_remove(efd):
        for turn in range(200):
            barrier.wait()
            try:
                bus.deassign(efd, address=turn, length=4)
                removed.append(turn)
            except IoEventFdNotFoundError:
                pass

    with EventFd() as efd:
        for job in (compete, compete_to_remove):
            threads = [threading.Thread(target=job, args=(efd,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert sorted(won) == sorted(removed) == list(range(200))
    assert len(bus) == 0


def test_its_repr(bus, efd):
    assert repr(bus.ioeventfd(efd, address=0x40, length=4)) == "<IoEventFd mmio 0x40/4>"
    assert (
        repr(bus.ioeventfd(efd, address=0x60, length=4, datamatch=A, space="pio"))
        == "<IoEventFd pio 0x60/4 datamatch=0x11>"
    )
