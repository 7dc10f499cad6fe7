"""A VMM's own guest memory: where the guest sees it, who shares it, and how long it lives."""

from __future__ import annotations

import copy
import ctypes
import fcntl
import gc
import mmap
import os
import re
from pathlib import Path

import pytest

from aioirqfd.errors import ClosedError
from aioirqfd.kvm import GuestRam, Kvm, RamRegion
from aioirqfd.kvm.ioctls import KVM_EXIT_IO
from aioirqfd.pci import Dma
from aioirqfd.pci.errors import DmaMapError
from aioirqfd.virtio.memory import GuestMemory
from tests.integers import int64

PAGE = mmap.PAGESIZE
GIB = 1 << 30
SMALL = 8 * PAGE


@pytest.fixture
def ram():
    with GuestRam(SMALL) as ram:
        yield ram


def mappings():
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:guest ram")


class TestShape:
    @pytest.mark.parametrize(
        ("size", "regions"),
        [
            (PAGE, [(0, 0, PAGE)]),
            (3 * GIB, [(0, 0, 3 * GIB)]),
            (3 * GIB + PAGE, [(0, 0, 3 * GIB), (4 * GIB, 3 * GIB, PAGE)]),
            (6 * GIB, [(0, 0, 3 * GIB), (4 * GIB, 3 * GIB, 3 * GIB)]),
        ],
    )
    def test_the_hole_below_four_gibibytes(self, size, regions):
        with GuestRam(size) as ram:
            assert ram.regions == tuple(RamRegion(*region) for region in regions)
            assert ram.size == ram.view.nbytes == os.fstat(ram.fileno()).st_size == size

    @pytest.mark.parametrize(
        ("size", "error"),
        [
            (0, "size is 4096..2\\*\\*46, not 0"),
            (-PAGE, "not -4096"),
            (PAGE + 1, "size is a multiple of the page size, 4096, not 4097"),
            (2**46 + PAGE, "size is 4096..2\\*\\*46, not"),
        ],
    )
    def test_a_size_that_is_none(self, size, error):
        with pytest.raises(ValueError, match=error):
            GuestRam(size)

    @pytest.mark.parametrize("size", [True, 4096.0, "4096", None])
    def test_what_is_no_number(self, size):
        with pytest.raises(TypeError, match="size is an integer"):
            GuestRam(size)

    def test_another_librarys_integer(self):
        with GuestRam(int64(PAGE)) as ram:
            assert type(ram.size) is int

    def test_it_can_neither_shrink_nor_grow(self, ram):
        seals = fcntl.fcntl(ram.fileno(), fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        for size in (0, 2 * SMALL):
            with pytest.raises(PermissionError):
                os.ftruncate(ram.fileno(), size)

    def test_nothing_is_left_of_one_that_cannot_be_mapped(self, monkeypatch):
        def refuse(*args, **options):
            raise MemoryError

        before = set(Path("/proc/self/fd").iterdir())
        monkeypatch.setattr("aioirqfd.kvm.ram.map_shared", refuse)
        with pytest.raises(MemoryError):
            GuestRam(PAGE)
        assert set(Path("/proc/self/fd").iterdir()) == before


class TestAccess:
    def test_read_and_write_at_the_guests_addresses(self):
        with GuestRam(3 * GIB + PAGE) as ram:
            ram.write(4 * GIB + 2, b"high")
            ram.write(0, memoryview(b"low"))
            assert ram.read(4 * GIB, 8) == b"\0\0high\0\0"
            assert ram.view[3 * GIB + 2 : 3 * GIB + 6] == b"high"
            assert ram.read(0, 4) == b"low\0"
            assert ram.read(3 * GIB - 1, 1) == b"\0"
            assert ram.read(PAGE, 0) == b""

    @pytest.mark.parametrize(
        ("address", "size"), [(3 * GIB - 1, 2), (3 * GIB, 1), (4 * GIB - 1, 2), (4 * GIB + PAGE, 1), (-1, 1), (0, -1)]
    )
    def test_what_is_no_ram(self, address, size):
        with GuestRam(3 * GIB + PAGE) as ram:
            with pytest.raises(
                ValueError, match=r"are not all in one piece of RAM, which is 0x0\.\.0xbfffffff, 0x100000000"
            ):
                ram.read(address, size)
            if size > 0:
                with pytest.raises(ValueError, match="are not all in one piece"):
                    ram.write(address, bytes(size))

    def test_a_view_of_wider_numbers_is_written_as_its_bytes(self, ram):
        ram.write(0, memoryview(b"\1\0\2\0").cast("H"))
        assert ram.read(0, 4) == b"\1\0\2\0"


class TestSharers:
    def test_devices_by_dma(self, ram):
        dma = Dma()
        ram.map_into(dma)
        with dma.view(0x10, 4, writable=True) as data:
            data[:] = b"bus!"
        assert ram.read(0x10, 4) == b"bus!"
        with pytest.raises(DmaMapError, match="overlap"):
            ram.map_into(dma)

    def test_virtqueues(self):
        with GuestRam(3 * GIB + PAGE) as ram:
            memory = GuestMemory.of_ram(ram)
            (view,) = memory.writable(4 * GIB, 4)
            view[:] = b"ring"
            assert ram.read(4 * GIB, 4) == b"ring"
            assert bytes(memory.user_view(4 * GIB, 4)) == b"ring"
            assert [(mapped.start, mapped.size, mapped.sealed) for mapped in memory.regions] == [
                (0, 3 * GIB, True),
                (4 * GIB, PAGE, True),
            ]
            assert len(memory.readable(3 * GIB - 4, 4)) == 1

    @pytest.mark.kvm
    def test_a_guest(self, ram):
        with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu() as vcpu:
            ram.attach(vm)
            ram.write(0x1000, b"\xa0\x00\x20\xe6\x10")  # mov al, [0x2000]; out 0x10, al
            ram.write(0x2000, b"\x5a")
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            regs = vcpu.get_regs()
            regs.rip = 0x1000
            vcpu.set_regs(regs)
            assert vcpu.run() == KVM_EXIT_IO
            assert bytes(vcpu.io_exit().data) == b"\x5a"

    @pytest.mark.kvm
    def test_a_slot_for_each_region_and_none_if_one_is_refused(self):
        with GuestRam(3 * GIB + PAGE) as ram, GuestRam(PAGE) as other, Kvm() as kvm, kvm.create_vm() as vm:
            ram.attach(vm, 5)
            assert {slot: memory.size for slot, memory in vm._memory.items()} == {5: 3 * GIB, 6: PAGE}
            vm.set_user_memory_region(5, 0, None)
            with pytest.raises(FileExistsError):
                ram.attach(vm, 1)  # its second region is there already
            assert set(vm._memory) == {6}
            other.attach(vm, 1)


class TestPrivate:
    """Memory of this process alone, which the kernel may make huge pages of."""

    @pytest.fixture
    def private(self):
        with GuestRam(SMALL, shared=False) as ram:
            yield ram

    def test_it_begins_on_a_huge_page(self, private):
        assert ctypes.addressof(ctypes.c_char.from_buffer(private.view)) % (2 << 20) == 0
        assert private.view.nbytes == private.size == SMALL
        assert not any(private.view)

    def test_it_has_no_file(self, private):
        assert not private.shared
        before = set(Path("/proc/self/fd").iterdir())
        with GuestRam(PAGE, shared=False):
            assert set(Path("/proc/self/fd").iterdir()) == before
        with pytest.raises(ValueError, match="private memory, which has no file: make it with shared=True"):
            private.fileno()

    def test_the_hole_below_four_gibibytes(self):
        with GuestRam(3 * GIB + PAGE, shared=False) as ram:
            ram.write(4 * GIB + 2, b"high")
            assert ram.view[3 * GIB + 2 : 3 * GIB + 6] == b"high"
            dma = Dma()
            ram.map_into(dma)
            assert [(address, len(view)) for address, view in dma.mappings()] == [(0, 3 * GIB), (4 * GIB, PAGE)]

    def test_devices_have_the_memory_itself(self, private):
        dma = Dma()
        private.map_into(dma)
        with dma.view(0x10, 4, writable=True) as data:
            data[:] = b"bus!"
        assert private.read(0x10, 4) == b"bus!"
        private.write(0x10, b"from")
        with dma.view(0x10, 4) as data:
            assert data == b"from"

    def test_neither_a_child_nor_a_core_dump_has_it(self, private):
        """A child's copy of a page would part this process from its guest."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(private.view))
        flags: list[str] = []
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(found[1], 16) <= address < int(found[2], 16)
            elif inside and line.startswith("VmFlags:"):
                flags = line.split()
        assert {"dc", "dd"} <= set(flags)

    @pytest.mark.kvm
    def test_a_vm_keeps_it_mapped(self):
        with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu() as vcpu:
            with GuestRam(SMALL, shared=False) as ram:
                ram.attach(vm)
                ram.write(0x1000, b"\xa0\x00\x20\xe6\x10")  # mov al, [0x2000]; out 0x10, al
                ram.write(0x2000, b"\x5a")
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            regs = vcpu.get_regs()
            regs.rip = 0x1000
            vcpu.set_regs(regs)
            assert vcpu.run() == KVM_EXIT_IO
            assert bytes(vcpu.io_exit().data) == b"\x5a"

    def test_after_close(self):
        ram = GuestRam(PAGE, shared=False)
        part = ram.view[16:32]
        ram.close()
        ram.close()
        assert repr(ram) == "<GuestRam 0x1000 bytes, closed>"
        for call in (ram.fileno, lambda: ram.view, lambda: ram.read(0, 1)):
            with pytest.raises(ClosedError, match="this GuestRam is closed"):
                call()
        part[0] = 1  # mapped as long as somebody has a part

    def test_dropped_open_it_warns(self):
        ram = GuestRam(PAGE, shared=False)
        with pytest.warns(ResourceWarning, match="unclosed <GuestRam 0x1000 bytes, private>"):
            del ram


class TestLife:
    def test_after_close(self):
        ram = GuestRam(PAGE)
        view = ram.view
        ram.close()
        ram.close()
        assert repr(ram) == "<GuestRam 0x1000 bytes, closed>"
        with pytest.raises(ValueError, match="released"):
            view[0]
        for call in (ram.fileno, lambda: ram.view, lambda: ram.read(0, 1), lambda: ram.write(0, b"x")):
            with pytest.raises(ClosedError, match="this GuestRam is closed"):
                call()
        assert mappings() == 0

    def test_it_is_unmapped_with_the_last_view_of_a_part(self):
        ram = GuestRam(PAGE)
        part = ram.view[16:32]
        ram.close()
        part[0] = 1
        assert mappings() == 1
        del part
        assert mappings() == 0

    @pytest.mark.kvm
    def test_a_vm_keeps_it_mapped(self):
        with Kvm() as kvm, kvm.create_vm() as vm:
            with GuestRam(PAGE) as ram:
                ram.attach(vm)
            assert mappings() == 1
            vm.set_user_memory_region(0, 0, None)
            assert mappings() == 0
            with GuestRam(PAGE) as ram:
                ram.attach(vm)
        assert mappings() == 0

    def test_dropped_open_it_warns_and_closes(self):
        ram = GuestRam(PAGE)
        fd = ram.fileno()
        with pytest.warns(ResourceWarning, match="unclosed <GuestRam 0x1000 bytes fd="):
            del ram
        with pytest.raises(OSError):
            os.fstat(fd)

    def test_it_is_not_copied(self, ram):
        with pytest.raises(TypeError, match="hand its fileno"):
            copy.copy(ram)
