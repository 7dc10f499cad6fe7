from __future__ import annotations

import errno
import mmap
import os
import threading

import pytest

from aioirqfd.errors import ClosedError
from aioirqfd.kvm import Kvm, RoutingEntry, Vm
from aioirqfd.kvm.ioctls import (
    KVM_CREATE_IRQCHIP,
    KVM_IRQ_LINE,
    KVM_IRQ_LINE_STATUS,
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_SET_GSI_ROUTING,
    KVM_SIGNAL_MSI,
)
from aioirqfd.kvm.structures import KvmIrqRouting, KvmUserspaceMemoryRegion

pytestmark = pytest.mark.kvm

MSI = 0xFEE00000
BAD_POINTER = 8
SVR = 0xF0
SVR_ENABLED = 0x1FF


@pytest.fixture
def bare():
    with Kvm() as kvm, kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def vm(bare):
    bare.create_irqchip()
    return bare


@pytest.fixture
def split(bare):
    bare.create_split_irqchip()
    return bare


def errno_of(call, *args, **kwargs):
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    return errno.errorcode[caught.value.errno or 0]


def enable_lapic(vcpu):
    lapic = vcpu.get_lapic()
    lapic.set_register(SVR, SVR_ENABLED)
    vcpu.set_lapic(lapic)


def pic_irr(vm):
    return vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic.irr


class TestIrqLine:
    def test_l01_without_an_irqchip_is_enxio(self, bare):
        assert errno_of(bare.irq_line, 5, 1) == "ENXIO"
        assert errno_of(bare.irq_line, 5, 1) == "ENXIO"
        assert errno_of(bare.irq_line_status, 5, 1) == "ENXIO"
        assert errno_of(bare.signal_msi, MSI, 0x31) == "EINVAL"

    def test_raises_and_lowers_the_line_of_its_gsi_alone(self, vm):
        vm.irq_line(5, 1)
        vm.irq_line(3, 1)
        pic = vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic
        assert (pic.irr, pic.last_irr) == (1 << 5 | 1 << 3, 1 << 5 | 1 << 3)
        vm.irq_line(5, 0)
        pic = vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic
        assert (pic.irr, pic.last_irr) == (1 << 5 | 1 << 3, 1 << 3)

    def test_l02_status_of_an_edge_pin_with_two_routes(self, vm):
        # In turn: delivered; the quirk of a line that is high already; lowered in both chips; coalesced.
        assert [vm.irq_line_status(5, level) for level in (1, 1, 0, 1)] == [1, 1, 2, 0]

    def test_l02_unrouted_or_masked_everywhere_is_minus_one(self, vm):
        assert vm.irq_line_status(100, 1) == -1
        assert vm.irq_line_status(20, 1) == -1

    def test_l03_no_status_no_error(self, vm):
        vm.irq_line(100, 1)
        vm.irq_line(0xFFFFFFFF, 1)
        assert errno_of(vm.ioctl, KVM_IRQ_LINE, BAD_POINTER) == "EFAULT"
        assert errno_of(vm.ioctl, KVM_IRQ_LINE_STATUS, BAD_POINTER) == "EFAULT"
        assert errno_of(vm.ioctl, KVM_IRQ_LINE, 2**64 - 4096) == "EFAULT"

    @pytest.mark.parametrize("level", [7, 0xFFFFFFFF])
    def test_l04_any_level_but_0_is_1(self, vm, level):
        assert vm.irq_line_status(5, level) == 1
        vm.irq_line(3, level)
        assert pic_irr(vm) == 1 << 5 | 1 << 3

    def test_l05_ioapic_edge_raised_twice_is_coalesced_and_level_in_service_is_ignored(self, vm):
        with vm.create_vcpu() as vcpu:
            enable_lapic(vcpu)
            state = vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
            state.ioapic.redirtbl[20] = 0x31
            state.ioapic.redirtbl[21] = 0x41 | 1 << 15
            vm.set_irqchip(state)
            assert [vm.irq_line_status(20, 1) for _ in range(2)] == [1, 0]
            assert [vm.irq_line_status(21, 1) for _ in range(2)] == [1, -1]
            assert vcpu.get_lapic().requested() == {0x31, 0x41}

    @pytest.mark.parametrize(("gsi", "level"), [(2**32, 1), (-1, 1), (5, 2**32), (5, -1)])
    def test_what_does_not_fit_is_a_value_error(self, vm, gsi, level):
        for _ in range(2):
            with pytest.raises(ValueError, match="does not fit"):
                vm.irq_line(gsi, level)
            with pytest.raises(ValueError, match="does not fit"):
                vm.irq_line_status(gsi, level)
        assert pic_irr(vm) == 0

    def test_more_lines_than_are_kept_ready(self, vm):
        for gsi in range(100, 100 + 5000):
            vm.irq_line(gsi, 0)
        assert len(vm._lines) <= 4096
        vm.irq_line(5, 1)
        assert pic_irr(vm) == 1 << 5

    def test_from_several_threads_each_reaches_its_own_line(self, vm):
        gsis = (1, 3, 4, 5, 6, 7)

        def toggle(gsi):
            for _ in range(500):
                vm.irq_line(gsi, 1)
                vm.irq_line(gsi, 0)
            vm.irq_line(gsi, gsi & 1)

        threads = [threading.Thread(target=toggle, args=(gsi,)) for gsi in gsis]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        high = sum(1 << gsi for gsi in gsis if gsi & 1)
        assert vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic.last_irr == high


class TestSignalMsi:
    def test_s01_counts_the_lapics_that_took_it(self, vm):
        with vm.create_vcpu(0) as first, vm.create_vcpu(1) as second:
            assert vm.signal_msi(MSI, 0x31) == 0  # switched off
            enable_lapic(first)
            enable_lapic(second)
            assert vm.signal_msi(MSI, 0x31) == 1
            assert vm.signal_msi(MSI | 0xFF << 12, 0x32) == 2
            assert vm.signal_msi(MSI | 7 << 12, 0x33) == 0  # no such destination
            assert first.get_lapic().requested() == {0x31, 0x32}
            assert second.get_lapic().requested() == {0x32}

    def test_s02_a_pending_vector_still_counts(self, vm):
        with vm.create_vcpu() as vcpu:
            enable_lapic(vcpu)
            assert [vm.signal_msi(MSI, 0x31) for _ in range(3)] == [1, 1, 1]

    def test_s03_no_candidate_is_eperm(self, vm):
        assert errno_of(vm.signal_msi, MSI, 0x31) == "EPERM"

    def test_s04_flags_and_pointer(self, vm):
        with vm.create_vcpu() as vcpu:
            enable_lapic(vcpu)
            assert vm.signal_msi(MSI, 0x31, 1, 5) == 1
            assert errno_of(vm.signal_msi, MSI, 0x31, 2) == "EINVAL"
            assert errno_of(vm.signal_msi, MSI, 0x31, 0x80000000) == "EINVAL"
            assert errno_of(vm.ioctl, KVM_SIGNAL_MSI, BAD_POINTER) == "EFAULT"

    def test_s05_split_irqchip(self, split):
        with split.create_vcpu() as vcpu:
            enable_lapic(vcpu)
            assert split.signal_msi(MSI, 0x31) == 1
            assert vcpu.get_lapic().requested() == {0x31}
            split.irq_line(5, 1)
            assert split.irq_line_status(5, 1) == -1

    @pytest.mark.parametrize("message", [(2**64, 0), (-1, 0), (MSI, 2**32), (MSI, 0, 2**32), (MSI, 0, 0, -1)])
    def test_what_does_not_fit_is_a_value_error(self, vm, message):
        for _ in range(2):
            with pytest.raises(ValueError, match="does not fit"):
                vm.signal_msi(*message)

    def test_a_guest_with_ever_new_messages_takes_no_more_memory(self, vm):
        with vm.create_vcpu() as vcpu:
            enable_lapic(vcpu)
            for high in range(5000):
                vm.signal_msi(MSI, 0x31 | high << 16)
            assert len(vm._messages) <= 4096
            assert vm.signal_msi(MSI, 0x55) == 1
            assert vcpu.get_lapic().requested() == {0x31, 0x55}


def pin(gsi, chip=KVM_IRQCHIP_IOAPIC, number=20):
    return RoutingEntry.irqchip(gsi, chip, number)


def msi(gsi, **kwargs):
    return RoutingEntry.msi(gsi, MSI, 0x31, **kwargs)


class TestRouting:
    def test_g01_without_an_irqchip(self, bare):
        assert errno_of(bare.set_gsi_routing, [pin(0)]) == "EINVAL"

    def test_g02_header(self, vm):
        assert errno_of(vm.set_gsi_routing, [], flags=1) == "EINVAL"
        assert errno_of(vm.set_gsi_routing, [pin(0)] * 4097) == "EINVAL"
        assert errno_of(vm.ioctl, KVM_SET_GSI_ROUTING, KvmIrqRouting(nr=4097)) == "EINVAL"
        assert errno_of(vm.ioctl, KVM_SET_GSI_ROUTING, BAD_POINTER) == "EFAULT"
        assert vm.irq_line_status(5, 0) == 2
        vm.set_gsi_routing([])
        assert vm.irq_line_status(5, 0) == -1

    def test_g03_gsi(self, vm):
        assert errno_of(vm.set_gsi_routing, [pin(4096)]) == "EINVAL"
        assert errno_of(vm.set_gsi_routing, [pin(0xFFFFFFFF)]) == "EINVAL"
        vm.set_gsi_routing([pin(gsi) for gsi in range(4096)])
        assert vm.irq_line_status(4095, 0) == 1

    def test_g04_entry_flags(self, vm):
        vm.set_gsi_routing([msi(24, devid=7)])
        words = (0xFEE00000, 0, 0x31)
        assert errno_of(vm.set_gsi_routing, [RoutingEntry(24, KVM_IRQ_ROUTING_MSI, words, 2)]) == "EINVAL"
        assert errno_of(vm.set_gsi_routing, [RoutingEntry(24, KVM_IRQ_ROUTING_IRQCHIP, (2, 5), 1)]) == "EINVAL"

    @pytest.mark.parametrize("kind", [0, 3, 99])
    def test_g05_type(self, vm, kind):
        assert errno_of(vm.set_gsi_routing, [RoutingEntry(24, kind)]) == "EINVAL"

    @pytest.mark.parametrize(("chip", "pins"), [(0, 8), (1, 8), (2, 24)])
    def test_g06_pins(self, vm, chip, pins):
        vm.set_gsi_routing([pin(5, chip, 0), pin(6, chip, pins - 1)])
        assert errno_of(vm.set_gsi_routing, [pin(5, chip, pins)]) == "EINVAL"

    def test_g06_chip_and_split_irqchip(self, vm):
        assert errno_of(vm.set_gsi_routing, [pin(5, 3, 0)]) == "EINVAL"

    def test_g06_no_pins_on_a_split_irqchip(self, split):
        assert errno_of(split.set_gsi_routing, [pin(5)]) == "EINVAL"
        split.set_gsi_routing([msi(5)])

    def test_g07_several_entries_for_one_gsi(self, vm):
        master, slave = pin(5, KVM_IRQCHIP_PIC_MASTER, 5), pin(5, KVM_IRQCHIP_PIC_SLAVE, 1)
        vm.set_gsi_routing([pin(5), master, slave])
        assert vm.irq_line_status(5, 0) == 3
        for table in ([pin(5), pin(5, number=21)], [msi(5), pin(5)], [pin(5), msi(5)], [msi(5), msi(5)]):
            assert errno_of(vm.set_gsi_routing, table) == "EINVAL"
        # G09: the old table stays.
        assert vm.irq_line_status(5, 0) == 3

    def test_an_msi_route_delivers_its_address_and_data(self, vm):
        with vm.create_vcpu(0), vm.create_vcpu(1) as second:
            enable_lapic(second)
            vm.set_gsi_routing([RoutingEntry.msi(24, MSI | 1 << 12, 0x44)])
            assert vm.irq_line_status(24, 1) == 1
            assert second.get_lapic().requested() == {0x44}

    def test_the_bytes_of_an_entry(self):
        entry = RoutingEntry.msi(0x11, 0x2233445566778899, 0xAABBCCDD, devid=0xEE)
        words = (0x11, 2, 1, 0, 0x66778899, 0x22334455, 0xAABBCCDD, 0xEE, 0, 0, 0, 0)
        assert entry.pack() == b"".join(word.to_bytes(4, "little") for word in words)

    @pytest.mark.parametrize(
        "entry",
        [RoutingEntry(2**32, 1), RoutingEntry(0, -1), RoutingEntry.msi(0, 2**64, 0), RoutingEntry(0, 1, (1,) * 5)],
    )
    def test_what_does_not_fit_is_a_value_error(self, vm, entry):
        with pytest.raises(ValueError, match="does not fit"):
            vm.set_gsi_routing([entry])


class TestMemory:
    def test_the_callers_mapping_cannot_be_closed_while_the_guest_has_it(self, vm):
        with mmap.mmap(-1, 8192) as memory:
            vm.set_user_memory_region(0, 0, memory)
            with pytest.raises(BufferError):
                memory.close()
            vm.set_user_memory_region(0, 0, None)
            memory.close()

    def test_closing_the_vm_gives_the_mapping_back(self):
        with mmap.mmap(-1, 8192) as memory:
            with Kvm() as kvm, kvm.create_vm() as vm:
                vm.set_user_memory_region(0, 0, memory)
            memory.close()

    def test_own_memory_goes_with_the_vm(self):
        with Kvm() as kvm, kvm.create_vm() as vm:
            memory = vm.add_memory(0, 0, 8192)
            memory[:2] = b"ab"
            with pytest.raises(BufferError):
                memory.close()
        assert memory.closed

    def test_own_memory_that_is_looked_at_outlives_the_vm(self):
        with Kvm() as kvm, kvm.create_vm() as vm:
            memory = vm.add_memory(0, 0, 8192)
            memory[:2] = b"ab"
            view = memoryview(memory)
        assert view[:2] == b"ab"
        view.release()
        memory.close()

    def test_refusals_are_the_kernels_and_leave_nothing(self, vm):
        vm.add_memory(0, 0, 8192)
        assert errno_of(vm.add_memory, 1, 4096, 8192) == "EEXIST"
        assert errno_of(vm.add_memory, 1, 0x10001, 8192) == "EINVAL"
        assert errno_of(vm.add_memory, 1, 0x10000, 8191) == "EINVAL"
        assert sorted(vm._memory) == [0]
        vm.add_memory(1, 0x10000, 4096)

    def test_the_guests_memory_is_gone_before_the_vm_is_closed(self, vm, monkeypatch):
        regions = []
        original = Vm.ioctl

        def spy(self, request, arg=0):
            if isinstance(arg, KvmUserspaceMemoryRegion):
                regions.append((arg.slot, arg.memory_size))
            return original(self, request, arg)

        monkeypatch.setattr(Vm, "ioctl", spy)
        vm.add_memory(0, 0, 8192)
        vm.add_memory(3, 0x10000, 4096)
        vm.close()
        vm.close()
        assert regions == [(0, 8192), (3, 4096), (0, 0), (3, 0)]


def test_irqchip_state_round_trip(vm):
    state = vm.get_irqchip(KVM_IRQCHIP_PIC_SLAVE)
    assert (state.chip_id, state.pic.imr) == (1, 0)
    state.pic.imr = 0xA5
    vm.set_irqchip(state)
    assert vm.get_irqchip(KVM_IRQCHIP_PIC_SLAVE).pic.imr == 0xA5
    assert vm.get_irqchip(KVM_IRQCHIP_PIC_MASTER).pic.imr == 0
    assert vm.get_irqchip(KVM_IRQCHIP_IOAPIC).ioapic.base_address == 0xFEC00000
    assert errno_of(vm.get_irqchip, 3) == "EINVAL"


def test_creating_things_twice(vm):
    assert errno_of(vm.ioctl, KVM_CREATE_IRQCHIP) == "EEXIST"
    with vm.create_vcpu(0):
        assert errno_of(vm.create_vcpu, 0) == "EEXIST"
    vm.create_pit()
    assert errno_of(vm.create_pit) == "EEXIST"


def test_an_unknown_capability_cannot_be_switched_on(bare):
    assert errno_of(bare.enable_cap, 10**6) == "EINVAL"
    assert bare.check_extension(121) == 1


def test_set_tss_addr_takes_an_address_above_2_gib(bare):
    bare.set_tss_addr(0xFFFBD000)


def test_after_close_every_way_in_is_a_closed_error(vm):
    vm.irq_line(5, 0)
    with vm.create_vcpu() as vcpu:
        enable_lapic(vcpu)
        vm.signal_msi(MSI, 0x31)
    vm.close()
    calls = (
        lambda: vm.irq_line(5, 0),
        lambda: vm.irq_line(6, 0),
        lambda: vm.irq_line_status(5, 0),
        lambda: vm.signal_msi(MSI, 0x31),
        lambda: vm.signal_msi(MSI, 0x32),
        lambda: vm.irqfd(0, 0),
        lambda: vm.ioeventfd(0, 1, 0),
        lambda: vm.set_gsi_routing([]),
        lambda: vm.create_vcpu(1),
        lambda: vm.get_irqchip(0),
    )
    for call in calls:
        with pytest.raises(ClosedError):
            call()


def test_i17_in_a_forked_child_every_vm_ioctl_is_eio(vm):
    memory = vm.add_memory(0, 0, 8192)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            answers = {
                errno_of(vm.irq_line, 5, 1),
                errno_of(vm.irqfd, -1, 5),
                errno_of(vm.signal_msi, MSI, 0x31),
                errno_of(vm.set_gsi_routing, []),
                errno_of(vm.ioeventfd, 0x50, 1, -1),
            }
            vm.close()
            status = 0 if answers == {"EIO"} and vm.closed and memory.closed else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    vm.irq_line(5, 1)
    assert pic_irr(vm) == 1 << 5
