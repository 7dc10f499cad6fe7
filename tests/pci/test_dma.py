"""The guest's memory: what is mapped, what is not, and who waits for whom when it goes."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioirqfd.pci import Dma, DmaError, DmaMapError

PAGE = 4096


@pytest.fixture
def memory():
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 8 * PAGE)
    os.pwrite(fd, bytes(range(256)) * 128, 0)
    yield fd
    os.close(fd)


class Slow:
    """A VMM that gives no fds, and takes its time."""

    def __init__(self, size=PAGE):
        self.data = bytearray(size)
        self.go = asyncio.Event()
        self.go.set()
        self.asked = []

    async def read(self, address, size):
        self.asked.append(("read", address, size))
        await self.go.wait()
        return bytes(self.data[address : address + size])

    async def write(self, address, data):
        self.asked.append(("write", address, len(data)))
        await self.go.wait()
        self.data[address : address + len(data)] = data


async def test_read_and_write(memory):
    dma = Dma()
    dma.map(0x10000, 2 * PAGE, fd=memory, offset=PAGE)
    assert await dma.read(0x10001, 3) == bytes([1, 2, 3])
    await dma.write(0x11FFE, b"zz")
    assert os.pread(memory, 3, 3 * PAGE - 2) == b"zz\0"
    await dma.write(0x10000, memoryview(b"abcd"))
    with dma.view(0x10000, 4) as view:
        assert bytes(view) == b"abcd"
        assert view.readonly
    with dma.view(0x10000, 4, writable=True) as view:
        view[0] = 0x41
    assert await dma.read(0x10000, 2) == b"Ab"
    await dma.unmap_all()
    assert len(dma) == 0


async def test_memory_of_this_process_in_place_of_a_file(memory):
    dma = Dma()
    ram = bytearray(PAGE)
    dma.map(0x10000, PAGE, memory=memoryview(ram))
    await dma.write(0x10001, b"abc")
    assert ram[:5] == b"\0abc\0"
    ram[0] = 0x41
    assert await dma.read(0x10000, 2) == b"Aa"
    for size, options in ((PAGE - 1, {}), (PAGE, {"fd": memory})):
        with pytest.raises(DmaMapError, match=f"{size} bytes at 0x20000: the memory has 4096") as raised:
            dma.map(0x20000, size, memory=memoryview(ram), **options)
        assert raised.value.errno == errno.EINVAL
    assert len(dma) == 1
    await dma.unmap_all()


async def test_a_transfer_may_touch_several_mappings(memory):
    dma = Dma()
    dma.map(0x1000, PAGE, fd=memory)
    dma.map(0x2000, PAGE, fd=memory, offset=4 * PAGE)
    await dma.write(0x1FFE, b"abcd")
    assert await dma.read(0x1FFD, 6) == b"\xfdabcd\x02"
    assert os.pread(memory, 2, 4 * PAGE) == b"cd"
    with pytest.raises(DmaError, match="2 mappings"), dma.view(0x1FFE, 4):
        pass
    await dma.unmap_all()


async def test_scatter_and_gather(memory):
    dma = Dma()
    dma.map(0, 4 * PAGE, fd=memory)
    places = [(0x100, 2), (0x50, 3), (0x200, 10)]
    assert await dma.scatter(places, b"abcdefg") == 7
    assert await dma.gather([(0x100, 2), (0x50, 3), (0x200, 2)]) == b"abcdefg"
    assert await dma.scatter(places, b"x" * 100) == 15
    await dma.unmap_all()


@pytest.mark.parametrize("address", [0, 0xFFF, 0x2FFF, 0x3000, 2**64 - 1, 2**64])
async def test_what_is_not_mapped_is_an_error_of_the_device(memory, address):
    dma = Dma()
    dma.map(0x1000, 2 * PAGE, fd=memory)
    for use in (dma.read(address, 2), dma.write(address, b"ab")):
        with pytest.raises(DmaError, match="is not mapped"):
            await use
    with pytest.raises(DmaError), dma.view(address, 2):
        pass
    assert await dma.read(address, 0) == b""
    with pytest.raises(DmaError, match=r"0\.\."):
        await dma.read(0x1000, 1 << 31)
    await dma.unmap_all()


async def test_a_part_that_is_not_mapped_leaves_all_untouched(memory):
    dma = Dma()
    dma.map(0x1000, PAGE, fd=memory)
    with pytest.raises(DmaError):
        await dma.write(0x1FFE, b"abcd")
    assert await dma.read(0x1FFE, 2) == b"\xfe\xff"
    await dma.unmap_all()


async def test_what_may_only_be_read_or_only_be_written(memory):
    dma = Dma()
    dma.map(0, PAGE, fd=memory, writable=False)
    dma.map(PAGE, PAGE, fd=memory, offset=PAGE, readable=False)
    with pytest.raises(DmaError, match="not writable"):
        await dma.write(0, b"a")
    with pytest.raises(DmaError, match="not readable"):
        await dma.read(PAGE, 1)
    await dma.write(PAGE, b"a")
    assert await dma.read(0, 1) == b"\0"
    await dma.unmap_all()


async def test_maps_and_unmaps_that_are_refused(memory):
    dma = Dma(max_maps=2)
    dma.map(0x1000, PAGE, fd=memory)
    for address, size, number in (
        (0x1000, PAGE, errno.EEXIST),
        (0x1FFF, 1, errno.EEXIST),
        (0x800, PAGE, errno.EEXIST),
        (0, 2**20, errno.EEXIST),
        (0x3000, 0, errno.EINVAL),
        (2**64 - 1, 2, errno.EINVAL),
        (0x3000, 9 * PAGE, errno.EINVAL),
    ):
        with pytest.raises(DmaMapError) as caught:
            dma.map(address, size, fd=memory)
        assert caught.value.errno == number, (address, size)
    dma.map(0x3000, PAGE, fd=memory)
    with pytest.raises(DmaMapError) as caught:
        dma.map(0x8000, PAGE, fd=memory)
    assert caught.value.errno == errno.ENOSPC
    for address, size in ((0x1000, PAGE - 1), (0x1001, PAGE), (0, PAGE), (0x8000, PAGE)):
        with pytest.raises(DmaMapError) as caught:
            await dma.unmap(address, size)
        assert caught.value.errno == errno.ENOENT
    await dma.unmap(0x1000, PAGE)
    with pytest.raises(DmaError):
        await dma.read(0x1000, 1)
    await dma.unmap_all()


async def test_unmap_waits_for_a_view_and_no_new_ones_are_lent(memory):
    dma = Dma()
    dma.map(0, PAGE, fd=memory)
    with dma.view(0, 4) as view:
        unmapping = asyncio.create_task(dma.unmap(0, PAGE))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not unmapping.done()
        assert bytes(view) == bytes([0, 1, 2, 3])
        with pytest.raises(DmaError), dma.view(0, 4):
            pass
    await unmapping
    with pytest.raises(ValueError, match="released"):
        bytes(view)


async def test_several_views_are_all_lent_or_none_and_all_given_back(memory):
    dma = Dma()
    dma.map(0, PAGE, fd=memory)
    dma.map(0x10000, PAGE, fd=memory, offset=PAGE)
    with dma.views([(0, 2), (0x10000, 3)], writable=True) as views:
        unmapping = [asyncio.create_task(dma.unmap(address, PAGE)) for address in (0, 0x10000)]
        assert [len(view) for view in views] == [2, 3]
        views[0][0], views[1][2] = 0x41, 0x42
        for _ in range(3):
            await asyncio.sleep(0)
        assert not any(task.done() for task in unmapping)
    await asyncio.gather(*unmapping)
    assert (os.pread(memory, 1, 0), os.pread(memory, 1, PAGE + 2)) == (b"A", b"B")
    for view in views:
        with pytest.raises(ValueError, match="released"):
            bytes(view)
    dma.map(0, PAGE, fd=memory)
    with pytest.raises(DmaError, match="is not mapped"), dma.views([(0, 2), (0x10000, 3)]):
        pass
    # One that somebody still has a pointer into is given back all the same.
    kept: list[pickle.PickleBuffer] = []
    with pytest.raises(BufferError), dma.views([(0, 2), (4, 2)], writable=True) as views:
        kept.append(pickle.PickleBuffer(views[0]))
    await dma.unmap(0, PAGE)
    assert bytes(kept[0]) == b"A\1"
    kept[0].release()


async def test_unmap_waits_for_a_thread(memory):
    dma = Dma()
    dma.map(0, PAGE, fd=memory)
    has, go, seen = threading.Event(), threading.Event(), []

    def use():
        with dma.view(0, 4) as view:
            has.set()
            go.wait(60)
            seen.append(bytes(view))

    thread = threading.Thread(target=use)
    thread.start()
    has.wait(60)
    unmapping = asyncio.create_task(dma.unmap(0, PAGE))
    await asyncio.sleep(0)
    assert not unmapping.done()
    go.set()
    await unmapping
    thread.join()
    assert seen == [bytes([0, 1, 2, 3])]


async def test_a_thread_that_has_looked_before_it_was_unmapped(memory):
    dma = Dma()
    dma.map(0, PAGE, fd=memory)
    ((one, _, _),) = dma._pieces(0, 4, write=False)
    await dma.unmap(0, PAGE)
    with pytest.raises(DmaError, match="is being unmapped"), dma._using(one):
        pass


async def test_memory_without_a_file_is_asked_for():
    dma = Dma()
    dma.map(0, PAGE)
    with pytest.raises(DmaError, match="nobody to ask"):
        await dma.read(0, 1)
    dma.remote = slow = Slow()
    await dma.write(10, b"abc")
    assert await dma.read(11, 2) == b"bc"
    assert slow.asked == [("write", 10, 3), ("read", 11, 2)]
    with pytest.raises(DmaError, match="without a file descriptor"), dma.view(0, 1):
        pass
    slow.go.clear()
    reading = asyncio.create_task(dma.read(10, 3))
    await asyncio.sleep(0)
    unmapping = asyncio.create_task(dma.unmap(0, PAGE))
    await asyncio.sleep(0)
    assert not unmapping.done()
    slow.go.set()
    await unmapping
    assert await reading == b"abc"


async def test_a_wait_that_is_given_up(memory):
    dma = Dma()
    dma.map(0, PAGE, fd=memory)
    with dma.view(0, 1) as view:
        unmapping = asyncio.create_task(dma.unmap(0, PAGE))
        await asyncio.sleep(0)
        unmapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unmapping
        assert view[0] == 0
        with pytest.raises(DmaError):
            await dma.read(0, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.integers(1, 8)), max_size=40))
def test_the_table_against_a_model(operations):
    async def run() -> None:
        dma, model = Dma(), {}
        dma.remote = Slow(1 << 16)
        for maps, page, pages in operations:
            address, size = page * PAGE, pages * PAGE
            taken = {at for start, length in model.items() for at in range(start, start + length, PAGE)}
            if maps:
                free = not taken & set(range(address, address + size, PAGE))
                try:
                    dma.map(address, size)
                    assert free
                    model[address] = size
                except DmaMapError:
                    assert not free
            else:
                try:
                    await dma.unmap(address, size)
                    assert model.pop(address) == size
                except DmaMapError:
                    assert model.get(address) != size
            for at in range(0, 24 * PAGE, PAGE):
                there = any(start <= at < start + length for start, length in model.items())
                try:
                    await dma.read(at, PAGE)
                    assert there
                except DmaError:
                    assert not there
        await dma.unmap_all()

    asyncio.run(run())


def test_a_fence_is_for_any_thread():
    dma = Dma()
    threads = [threading.Thread(target=dma.fence) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
