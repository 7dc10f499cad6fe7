from __future__ import annotations

import fcntl
import gc
import mmap
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioirqfd.vhost_user.messages import MemoryRegion
from aioirqfd.virtio.errors import GuestMemoryError
from aioirqfd.virtio.memory import MAX_MEM_SLOTS, GuestMemory, MappedRegion

PAGE = mmap.PAGESIZE


def memfd(size, *, seal=False):
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seal:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def one(region, size, **options):
    return GuestMemory.map([region], [memfd(size)], **options)


def mapped(name="memfd:test"):
    """Bytes of address space that a file's mappings take."""
    gc.collect()
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if name in line:
            start, end = (int(text, 16) for text in line.split()[0].split("-"))
            total += end - start
    return total


def mappings():
    gc.collect()  # and not those of earlier tests
    return Path("/proc/self/maps").read_text().count("memfd:test")


def test_the_view_is_the_file_at_its_offset():
    fd = memfd(3 * PAGE)
    os.pwrite(fd, b"hello", PAGE + 10 + 7)
    memory = GuestMemory.map([MemoryRegion(0x1000, PAGE, 0x7000, PAGE + 7)], [os.dup(fd)])
    (view,) = memory.readable(0x1000 + 10, 5)
    assert bytes(view) == b"hello"
    (view,) = memory.writable(0x1000 + 10, 5)
    view[:] = b"world"
    assert os.pread(fd, 5, PAGE + 10 + 7) == b"world"
    assert bytes(memory.user_view(0x7000 + 10, 5)) == b"world"
    os.close(fd)


def test_what_is_to_read_cannot_be_written():
    memory = one(MemoryRegion(0, PAGE, 0, 0), PAGE)
    (view,) = memory.readable(0, 16)
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1
    assert not memory.writable(0, 16)[0].readonly


def test_a_range_over_adjacent_regions_is_split_and_one_over_a_hole_is_not_memory():
    regions = [
        MemoryRegion(0x3000, PAGE, 0x10000, 0),
        MemoryRegion(0x1000, 2 * PAGE, 0x20000, 0),
        MemoryRegion(0x5000, PAGE, 0x30000, 0),
    ]
    memory = GuestMemory.map(regions, [memfd(2 * PAGE) for _ in regions])
    assert [len(view) for view in memory.writable(0x2FF0, 0x20)] == [0x10, 0x10]
    memory.writable(0x2FF0, 0x20)[1][:] = b"b" * 16
    assert bytes(memory.readable(0x3000, 16)[0]) == b"b" * 16
    assert [len(view) for view in memory.readable(0x1000, 3 * PAGE)] == [2 * PAGE, PAGE]
    assert memory.readable(0x1000, 0) == []
    for address, size in ((0x3FFF, 2), (0x4000, 1), (0x0FFF, 1), (0x6000, 1), (0x5000, PAGE + 1), (2**64 - 1, 2)):
        with pytest.raises(GuestMemoryError):
            memory.readable(address, size)


def test_user_addresses_are_not_guest_addresses_and_a_ring_lies_in_one_region():
    regions = [MemoryRegion(0x1000, PAGE, 0x20000, 0), MemoryRegion(0x2000, PAGE, 0x20000 + PAGE, 0)]
    memory = GuestMemory.map(regions, [memfd(PAGE), memfd(PAGE)])
    assert len(memory.user_view(0x20000, PAGE)) == PAGE
    assert len(memory.user_view(0x20000 + PAGE, PAGE)) == PAGE
    for address, size in (
        (0x1000, 1),
        (0x20000, PAGE + 1),
        (0x20000 + 2 * PAGE, 1),
        (0x1FFFF, 2),
        (0, 1),
        (0x20000, -1),
    ):
        with pytest.raises(GuestMemoryError):
            memory.user_view(address, size)


@pytest.mark.parametrize(
    ("region", "file_size"),
    [
        (MemoryRegion(0, 0, 0, 0), PAGE),
        (MemoryRegion(2**64 - PAGE, PAGE + 1, 0, 0), 2 * PAGE),
        (MemoryRegion(0, PAGE + 1, 2**64 - PAGE, 0), 2 * PAGE),
        (MemoryRegion(0, PAGE, 0, 0), PAGE - 1),
        (MemoryRegion(0, PAGE, 0, 1), PAGE),
        (MemoryRegion(0, PAGE, 0, 2**64 - 1), PAGE),
        (MemoryRegion(0, 2**63, 0, 2**62), PAGE),
        (MemoryRegion(0, 1, 0, 0), 0),
    ],
)
def test_a_region_that_cannot_be(region, file_size):
    with pytest.raises(GuestMemoryError):
        one(region, file_size)


def test_a_file_that_is_too_short_is_seen_before_it_is_mapped():
    with pytest.raises(GuestMemoryError, match="of a file of"):
        one(MemoryRegion(0, PAGE, 0, 0), PAGE - 1)


def test_a_file_too_large_to_map_is_an_error():
    with pytest.raises(GuestMemoryError, match="cannot map"):
        one(MemoryRegion(0, 2**62, 0, 0), 2**62)


def test_the_top_of_the_address_space_is_memory_too():
    memory = one(MemoryRegion(2**64 - PAGE, PAGE, 2**64 - PAGE, 0), PAGE)
    assert len(memory.readable(2**64 - 1, 1)) == 1
    assert len(memory.user_view(2**64 - PAGE, PAGE)) == PAGE


@pytest.mark.parametrize(("guest", "user"), [(PAGE - 1, 2 * PAGE), (2 * PAGE, PAGE - 1), (0, 2 * PAGE)])
def test_overlapping_regions_are_refused_and_nothing_stays_mapped(guest, user):
    before = mappings()
    regions = [MemoryRegion(0, PAGE, 0, 0), MemoryRegion(guest, PAGE, user, 0)]
    with pytest.raises(GuestMemoryError, match="overlap"):
        GuestMemory.map(regions, [memfd(PAGE), memfd(PAGE)])
    assert mappings() == before


def test_fds_are_closed_whatever_happens():
    for count, regions in ((2, 1), (0, 1), (1, 2)):
        with pytest.raises(GuestMemoryError):
            GuestMemory.map([MemoryRegion(0, PAGE, 0, 0)] * regions, [memfd(PAGE) for _ in range(count)])
    fd = memfd(PAGE)
    os.close(fd)
    with pytest.raises(GuestMemoryError, match="not open"):
        GuestMemory.map([MemoryRegion(0, PAGE, 0, 0)], [fd])


def test_only_files_are_memory():
    for fd in (os.eventfd(0), os.open("/dev/zero", os.O_RDWR), os.open("/", os.O_RDONLY)):
        with pytest.raises(GuestMemoryError, match="no shared-memory file"):
            GuestMemory.map([MemoryRegion(0, PAGE, 0, 0)], [fd])
    fd = memfd(PAGE)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    with pytest.raises(GuestMemoryError, match="cannot map"):
        GuestMemory.map([MemoryRegion(0, PAGE, 0, 0)], [read_only])


def test_a_seal_can_be_demanded():
    region = MemoryRegion(0, PAGE, 0, 0)
    with pytest.raises(GuestMemoryError, match="not sealed"):
        one(region, PAGE, require_seal=True)
    assert not one(region, PAGE).regions[0].sealed
    assert GuestMemory.map([region], [memfd(PAGE, seal=True)], require_seal=True).regions[0].sealed


def test_views_outlive_the_table_and_the_mapping_goes_with_the_last_view():
    before = mappings()
    memory = one(MemoryRegion(0, PAGE, 0, 0), PAGE)
    (view,) = memory.writable(100, 8)
    assert mappings() == before + 1
    del memory
    view[:] = b"12345678"
    assert bytes(view) == b"12345678"
    assert mappings() == before + 1
    del view
    assert mappings() == before


def test_regions_come_and_go_without_changing_the_old_table():
    first, second = MemoryRegion(0, PAGE, 0x10000, 0), MemoryRegion(PAGE, PAGE, 0x20000, 0)
    old = one(first, PAGE)
    both = old.with_region(second, memfd(PAGE))
    assert [len(old.regions), len(both.regions)] == [1, 2]
    assert [len(view) for view in both.readable(PAGE - 1, 2)] == [1, 1]
    with pytest.raises(GuestMemoryError):
        old.readable(PAGE, 1)
    with pytest.raises(GuestMemoryError, match="overlap"):
        both.with_region(second, memfd(PAGE))
    rest = both.without_region(MemoryRegion(0, PAGE, 0x10000, 999))
    assert [mapped.region for mapped in rest.regions] == [second]
    for wrong in (MemoryRegion(1, PAGE, 0x20000, 0), MemoryRegion(PAGE, PAGE, 0, 0), MemoryRegion(PAGE, 1, 0x20000, 0)):
        with pytest.raises(GuestMemoryError, match="no such"):
            rest.without_region(wrong)


def test_the_slots_have_a_bound():
    view = memoryview(bytearray(1))
    regions = [MappedRegion(MemoryRegion(number, 1, number, 0), view) for number in range(MAX_MEM_SLOTS + 1)]
    assert len(GuestMemory(regions[:-1]).regions) == MAX_MEM_SLOTS
    with pytest.raises(GuestMemoryError, match="at most"):
        GuestMemory(regions)


def test_parts_of_one_file_take_no_more_than_they_are():
    """Memory that is plugged in piece by piece comes so: mapped from the file's beginning, half of it would be all there is."""
    count = 64
    fd = memfd(count * 4 * PAGE)
    regions = [MemoryRegion(number << 32, 4 * PAGE, number << 32, number * 4 * PAGE) for number in range(count)]
    for number in range(count):
        os.pwrite(fd, bytes([number]), number * 4 * PAGE + 5)
    memory = GuestMemory()
    for region in regions:
        memory = memory.with_region(region, os.dup(fd))
    assert [memory.readable((number << 32) + 5, 1)[0][0] for number in range(count)] == list(range(count))
    assert mapped() == count * 4 * PAGE
    os.close(fd)


def test_a_mapping_needs_no_fd_where_python_can_do_without():
    before = len(list(Path("/proc/self/fd").iterdir()))
    memory = one(MemoryRegion(0, PAGE, 0, 0), PAGE)
    kept = 0 if sys.version_info >= (3, 13) else 1
    assert len(list(Path("/proc/self/fd").iterdir())) == before + kept
    assert len(memory.regions) == 1


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=6),
    st.integers(0, 80),
    st.integers(0, 40),
)
def test_against_a_model_of_single_bytes(places, address, size):
    model = {}
    regions = []
    for number, (start, length) in enumerate(places):
        if any(byte in model for byte in range(start, start + length)):
            continue
        data = bytearray([number + 1]) * length
        regions.append(MappedRegion(MemoryRegion(start, length, 1000 * number, 0), memoryview(data)))
        model.update(dict.fromkeys(range(start, start + length), number + 1))
    memory = GuestMemory(regions)
    wanted = range(address, address + size)
    if all(byte in model for byte in wanted):
        assert b"".join(memory.readable(address, size)) == bytes(model[byte] for byte in wanted)
        assert b"".join(memory.writable(address, size)) == bytes(model[byte] for byte in wanted)
    else:
        with pytest.raises(GuestMemoryError):
            memory.readable(address, size)
