"""A guest is saved in the middle, restored into a VM of its own, and goes on with exactly the next number."""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from dataclasses import fields, replace

import pytest

from aioirqfd.errors import SnapshotError
from aioirqfd.kvm import Kvm, VcpuState, Vm, VmState, msrs, vcpu_snapshot
from aioirqfd.kvm.ioctls import (
    KVM_EXIT_INTR,
    KVM_EXIT_IO,
    KVM_EXIT_MMIO,
    KVM_MP_STATE_HALTED,
    KVM_PIT_SPEAKER_DUMMY,
)
from aioirqfd.kvm.structures import KvmLapicState
from tests.kvm.guest import (
    AFTER_EOI,
    ENTRY,
    GSI,
    IN_HANDLER,
    MEMORY,
    READY,
    Guest,
    SplitGuest,
)
from tests.kvm.test_vcpu import Runner

pytestmark = pytest.mark.kvm

COUNTS = b"\x41\x89\xc8\xe7\x10\xeb\xf9"  # again: inc cx; mov ax, cx; out 0x10, ax; jmp again
COUNT = 0x13
COUNTER = 0x3000
TSC_DEADLINE_MODE, TIMER_VECTOR = 2 << 17, 0x31
LVT_TIMER = 0x320


class Machine(Guest):
    """With a PIT; saved and restored as a whole, by way of a file."""

    def create_irqchip(self):
        self.vm.create_irqchip()
        self.vm.create_pit(KVM_PIT_SPEAKER_DUMMY)


def save(guest):
    """Its memory, and the rest as the text of a file."""
    states = {"vcpu": guest.vcpu.save().to_dict(), "vm": guest.vm.save().to_dict()}
    return bytes(guest.memory), json.dumps(states)


class CountingInterrupts(Machine):
    """Its handler counts in a register, and says the number."""

    handler = (
        b"\x41\x89\xc8\xe7\x13"  # inc cx; mov ax, cx; out COUNT, ax
        b"\xb0\x20\xe6\x20\xcf"  # mov al, 0x20; out 0x20, al; iret
    )


def pulse(guest):
    guest.vm.irq_line(GSI, 1)
    guest.vm.irq_line(GSI, 0)


@contextmanager
def restored(memory, text, machine: type[Guest] = Machine):
    """Another guest, with what the first one was saved as."""
    with machine() as guest:
        guest.memory[:] = memory
        states = json.loads(text)
        guest.vcpu.restore(VcpuState.from_dict(states["vcpu"]))
        guest.vm.restore(VmState.from_dict(states["vm"]))
        yield guest


class TestGoingOn:
    def test_with_exactly_the_next_number(self):
        with Machine(COUNTS) as guest:
            for number in range(1, 1001):
                assert guest.next_port().data == number.to_bytes(2, "little")
            image = save(guest)
            assert guest.next_port().data == (1001).to_bytes(2, "little"), "it may go on itself"
        with restored(*image) as guest:
            for number in range(1001, 1101):
                assert guest.next_port().data == number.to_bytes(2, "little")

    def test_saved_after_every_instruction_it_counts_on(self):
        with Machine(COUNTS) as guest:
            for number in range(1, 6):
                assert guest.next_port().data == number.to_bytes(2, "little")
                image = save(guest)
                with restored(*image) as other:
                    assert other.next_port().data == (number + 1).to_bytes(2, "little")
                    image = save(other)
                with restored(*image) as third:
                    assert third.next_port().data == (number + 2).to_bytes(2, "little")

    def test_a_read_is_completed_first(self):
        with Machine(b"\xe5\x60\xe7\x10") as guest:  # in ax, 0x60; out 0x10, ax
            assert guest.vcpu.run() == KVM_EXIT_IO
            guest.vcpu.io_exit().data[:] = b"\x34\x12"
            image = save(guest)
        with restored(*image) as guest:
            assert guest.next_port().data == b"\x34\x12"

    def test_the_floating_point_registers(self):
        code = b"\x0f\x6f\x06\x00\x30"  #  movq mm0, [COUNTER]
        code += b"\xe6\x10"  #              out READY, al
        code += b"\x0f\x7f\x06\x08\x30"  # movq [COUNTER + 8], mm0
        code += b"\xe6\x11"  #              out IN_HANDLER, al
        with Machine(code) as guest:
            guest.memory[COUNTER : COUNTER + 8] = b"deadbeef"
            assert guest.next_port().port == READY
            image = save(guest)
        with restored(*image) as guest:
            assert guest.next_port().port == IN_HANDLER
            assert guest.memory[COUNTER + 8 : COUNTER + 16] == b"deadbeef"

    def test_the_same_state_comes_back(self):
        with Machine(COUNTS) as guest:
            guest.next_port()
            memory, text = save(guest)
        with restored(memory, text) as guest:
            again = guest.vcpu.save()
        first = VcpuState.from_dict(json.loads(text)["vcpu"])
        # Time goes on, in the counter and in what is made of it.
        moving = {msrs.MSR_IA32_TSC, 0x3B}
        assert without(msrs.unpack(again.msrs), moving) == without(msrs.unpack(first.msrs), moving)
        assert replace(again, msrs=b"") == replace(first, msrs=b"")

    def test_its_own_leaves_of_cpuid(self):
        code = b"\xe6\x10"  #                     out READY, al
        code += b"\x66\xb8\x00\x00\x00\x40\x0f\xa2"  # mov eax, 0x40000000; cpuid
        code += b"\x66\x93\x66\xe7\x10"  #        xchg eax, ebx; out 0x10, eax
        with Kvm() as kvm, Machine(code) as guest:
            leaves = kvm.get_supported_cpuid()
            next(leaf for leaf in leaves if leaf.function == 0x4000_0000).ebx = 0x4D56_4D56
            guest.vcpu.set_cpuid2(leaves)
            guest.next_port()
            image = save(guest)
        with restored(*image) as guest:
            assert guest.next_port().data == b"VMVM"


class TestTime:
    def test_the_counter_goes_on_from_where_it_was(self):
        with Machine(COUNTS) as guest:
            # Some hosts that are guests themselves cannot set it: there it is the host's, which goes on too.
            guest.vcpu.set_msrs({msrs.MSR_IA32_TSC: 1 << 60})
            guest.next_port()
            image = save(guest)
        saved = msrs.unpack(VcpuState.from_dict(json.loads(image[1])["vcpu"]).msrs)[msrs.MSR_IA32_TSC]
        with restored(*image) as guest:
            now = guest.vcpu.get_msrs([msrs.MSR_IA32_TSC])[msrs.MSR_IA32_TSC]
        assert saved <= now < saved + (1 << 59)

    def test_the_clock_goes_on_from_where_it_was(self):
        with Machine(COUNTS) as guest:
            guest.vm.set_clock(1 << 60)
            image = save(guest)
        with restored(*image) as guest:
            assert 1 << 60 <= guest.vm.get_clock().clock < 1 << 61

    def test_the_pit_keeps_its_mode_and_count(self):
        code = b"\xb0\x34\xe6\x43"  #  mov al, 0x34; out 0x43, al    counter 0, mode 2
        code += b"\xb0\x00\xe6\x40\xb0\x80\xe6\x40"  # out 0x40, 0x00; out 0x40, 0x80
        code += b"\xe6\x10"  #         out READY, al
        with Machine(code) as guest:
            guest.next_port()
            image = save(guest)
        with restored(*image) as guest:
            counter = guest.vm.get_pit2().channels[0]
            assert (counter.mode, counter.count) == (2, 0x8000)

    @pytest.mark.parametrize(
        ("mode", "deadline", "saved"),
        [
            pytest.param(TSC_DEADLINE_MODE | TIMER_VECTOR, 0, 77, id="it may have expired"),
            pytest.param(TSC_DEADLINE_MODE | TIMER_VECTOR, 99, 99, id="it is to come"),
            pytest.param(TSC_DEADLINE_MODE | TIMER_VECTOR | 1 << 16, 0, 0, id="it is masked"),
            pytest.param(TIMER_VECTOR, 0, 0, id="another mode"),
            pytest.param(TSC_DEADLINE_MODE | TIMER_VECTOR, None, None, id="a CPU without it"),
        ],
    )
    def test_a_deadline_that_has_expired_meanwhile_is_not_lost(self, mode, deadline, saved):
        lapic = KvmLapicState()
        lapic.set_register(LVT_TIMER, mode)
        values = {msrs.MSR_IA32_TSC: 77}
        if deadline is not None:
            values[msrs.MSR_IA32_TSC_DEADLINE] = deadline
        vcpu_snapshot._rearm(values, lapic)
        assert values.get(msrs.MSR_IA32_TSC_DEADLINE) == saved

    def test_the_deadline_is_set_last_and_the_counter_first(self):
        values = {msrs.MSR_IA32_TSC_DEADLINE: 1, 0x174: 2, msrs.MSR_IA32_TSC: 3, 0x175: 4}
        assert list(vcpu_snapshot._ordered(values)) == [
            msrs.MSR_IA32_TSC,
            0x174,
            0x175,
            msrs.MSR_IA32_TSC_DEADLINE,
        ]


class TestInterrupts:
    def test_one_that_is_pending_in_the_pic_is_delivered_after_it(self):
        with CountingInterrupts() as guest:
            assert guest.next_port().port == READY
            for number in (1, 2):
                pulse(guest)
                assert guest.next_port() == (COUNT, number.to_bytes(2, "little"))
            pulse(guest)  # while the second is in service
            assert (guest.pic().isr, guest.pic().irr) == (1 << GSI, 1 << GSI)
            image = save(guest)
        with restored(*image, CountingInterrupts) as guest:
            assert (guest.pic().isr, guest.pic().irr) == (1 << GSI, 1 << GSI)
            assert guest.next_port() == (COUNT, b"\3\0")
            pulse(guest)
            assert guest.next_port() == (COUNT, b"\4\0")

    def test_one_that_is_in_service_is_not_delivered_again(self):
        with CountingInterrupts() as guest:
            assert guest.next_port().port == READY
            pulse(guest)
            assert guest.next_port() == (COUNT, b"\1\0")
            image = save(guest)
        with restored(*image, CountingInterrupts) as guest:
            assert (guest.pic().isr, guest.pic().irr) == (1 << GSI, 0)
            pulse(guest)
            assert guest.next_port() == (COUNT, b"\2\0")

    def test_a_halted_vcpu_is_woken_after_it(self):
        with Machine() as guest:
            assert guest.next_port().port == READY
            with Runner(guest.vcpu) as runner:
                runner.wait_until_halted()
            assert runner.reasons.get() == KVM_EXIT_INTR
            image = save(guest)
        with restored(*image) as guest:
            assert guest.vcpu.get_mp_state() == KVM_MP_STATE_HALTED
            guest.vm.irq_line(GSI, 1)
            assert [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]

    def test_a_message_that_is_pending_in_the_local_apic(self):
        with SplitGuest() as guest:
            assert guest.next_port().port == READY
            assert guest.vm.signal_msi(0xFEE0_0000, guest.vector) == 1
            image = save(guest)
        assert VmState.from_dict(json.loads(image[1])["vm"]).pic_master == b""
        with restored(*image, SplitGuest) as guest:
            assert guest.vcpu.get_lapic().requested() == {guest.vector}
            assert [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]

    def test_an_exception_that_is_pending_is_not_forgotten(self):
        with Machine(COUNTS) as guest:
            guest.next_port()
            state = guest.vcpu.save()
            events = guest.vcpu.get_vcpu_events()
            events.exception.injected, events.exception.nr = 1, 6
            state = replace(state, events=bytes(events))
        with Machine() as guest:
            guest.vcpu.restore(state)
            again = guest.vcpu.get_vcpu_events().exception
            assert (again.injected, again.nr) == (1, 6)


class TestComplete:
    def test_a_kick_stays_pending(self):
        with Machine(COUNTS) as guest:
            guest.next_port()
            guest.vcpu.kick()
            guest.vcpu.save()
            assert guest.vcpu.run() == KVM_EXIT_INTR
            assert guest.vcpu.run() == KVM_EXIT_IO

    def test_none_comes_of_it(self):
        with Machine(COUNTS) as guest:
            guest.next_port()
            guest.vcpu.complete()
            assert guest.vcpu.run() == KVM_EXIT_IO

    def test_an_instruction_that_asks_for_more(self):
        code = b"\x66\xa3" + (MEMORY - 2 + 0x1FFF).to_bytes(2, "little")  # mov [0x9ffd], eax: it crosses a page
        with Machine(code) as guest:
            regs = guest.vcpu.get_regs()
            regs.rax = 0x4433_2211
            guest.vcpu.set_regs(regs)
            assert guest.vcpu.run() == KVM_EXIT_MMIO
            with pytest.raises(RuntimeError, match="in the middle of an instruction"):
                guest.vcpu.save()
            assert bytes(guest.vcpu.mmio_exit().data) == b"\x44"
            guest.vcpu.complete()
            assert guest.vcpu.get_regs().rip == ENTRY + len(code)

    def test_not_while_it_runs(self):
        class Curious:
            def port_out(self, port, size, value):
                with pytest.raises(RuntimeError, match="run by another thread"):
                    guest.vcpu.save()
                guest.vcpu.kick()

            mmio_write = port_out

            def port_in(self, port, size):
                return 0

            mmio_read = port_in

        with Machine(COUNTS) as guest:
            assert guest.vcpu.serve(Curious()) == KVM_EXIT_INTR

    def test_without_the_list_of_registers(self):
        with Kvm() as kvm, kvm.create_vm() as made:
            by_hand = Vm(os.dup(made.fileno()), vcpu_mmap_size=kvm.vcpu_mmap_size())
            with by_hand, by_hand.create_vcpu() as vcpu, pytest.raises(ValueError, match="make its VM by Kvm"):
                vcpu.save()


class TestMsrs:
    def test_those_that_there_are(self):
        with Machine() as guest:
            values = guest.vcpu.get_msrs([0x174, 0xDEAD_0000, 0x175, 0xDEAD_0001])
            assert set(values) == {0x174, 0x175}
            assert guest.vcpu.get_msrs([]) == {}

    def test_more_than_the_kernel_takes_at_a_time(self):
        with Machine() as guest:
            guest.vcpu.set_msrs({0x175: 0x1234} | {0x176: 0x5678})
            assert guest.vcpu.get_msrs([0x175] * 300 + [0x176]) == {0x175: 0x1234, 0x176: 0x5678}

    def test_one_that_is_refused_is_named(self):
        with Machine() as guest:
            with pytest.raises(OSError, match="MSR 0xdead0000 does not take 0x7") as caught:
                guest.vcpu.set_msrs({0x175: 0x1234, 0xDEAD_0000: 7, 0x176: 1})
            assert caught.value.errno == errno.EINVAL
            assert guest.vcpu.get_msrs([0x175, 0x176]) == {0x175: 0x1234, 0x176: 0}

    def test_one_that_is_refused_and_has_that_value_already_is_none(self, monkeypatch):
        # MSR_IA32_ARCH_CAPABILITIES and others cannot be set once a vCPU has run.
        with Machine() as guest:
            monkeypatch.setattr(msrs, "get", lambda vcpu, indices: {0xDEAD_0000: 7})
            guest.vcpu.set_msrs({0xDEAD_0000: 7, 0x176: 1})
            monkeypatch.undo()
            assert guest.vcpu.get_msrs([0x176]) == {0x176: 1}

    def test_the_list_however_long(self, monkeypatch):
        with Kvm() as kvm:
            whole = kvm.get_msr_index_list()
            assert msrs.MSR_IA32_TSC in whole
            monkeypatch.setattr(msrs, "_BATCH", 1)
            assert kvm.get_msr_index_list() == whole


class TestRegisters:
    def test_round_trips(self):
        with Machine() as guest:
            vcpu = guest.vcpu
            fpu = vcpu.get_fpu()
            fpu.fcw = 0x27F
            vcpu.set_fpu(fpu)
            assert vcpu.get_fpu().fcw == 0x27F
            debug = vcpu.get_debugregs()
            debug.db[1] = 0x1234
            vcpu.set_debugregs(debug)
            assert vcpu.get_debugregs().db[1] == 0x1234
            with pytest.raises(ValueError, match="has 7 bytes, and this vCPU's 4096"):
                vcpu.set_xsave(b"1234567")
            khz = vcpu.get_tsc_khz()
            vcpu.set_tsc_khz(khz)
            assert vcpu.get_tsc_khz() == khz


@pytest.fixture(scope="module")
def dicts():
    with Machine(COUNTS) as guest:
        guest.next_port()
        return json.loads(save(guest)[1])


class TestForm:
    @pytest.mark.parametrize(("kind", "cls"), [("vcpu", VcpuState), ("vm", VmState)])
    def test_there_and_back(self, dicts, kind, cls):
        state = cls.from_dict(dicts[kind])
        assert state.to_dict() == dicts[kind]
        assert set(dicts[kind]) == {"version", "kind"} | {field.name for field in fields(cls)}

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (None, "is a dict, not NoneType"),
            ({"version": 2}, "of version 2; this package reads 1"),
            ({"version": True}, "of version True"),
            ({"kind": "vm"}, "says that it is of a 'vm'"),
            ({"more": 1}, "has the fields"),
            ({"regs": 5}, "regs is base64 text, not int"),
            ({"regs": "?"}, "regs is no base64"),
            ({"regs": "ä"}, "regs is no base64"),
            ({"regs": "AAAA"}, "regs has 3 bytes, which no such structure has"),
            ({"xsave": "AAAA"}, "xsave has 3 bytes"),
            ({"msrs": "AQAAAAAAAAA="}, "msrs has 8 bytes"),
            ({"msrs": ""}, "msrs has 0 bytes"),
            ({"mp_state": -1}, r"mp_state is a number, 0\.\.2\*\*64-1, not -1"),
            ({"mp_state": "0"}, "mp_state is a number"),
        ],
    )
    def test_what_is_no_state(self, dicts, change, error):
        with pytest.raises(SnapshotError, match=error):
            VcpuState.from_dict(None if change is None else dicts["vcpu"] | change)

    def test_a_part_that_is_missing(self, dicts):
        state = dict(dicts["vm"])
        del state["pit"]
        with pytest.raises(SnapshotError, match="has the fields"):
            VmState.from_dict(state)


def test_a_vm_without_the_chips_of_the_other(dicts):
    with Kvm() as kvm, kvm.create_vm() as bare:
        assert bare.save().pic_master == bare.save().pit == b""
        with pytest.raises(OSError) as caught:
            bare.restore(VmState.from_dict(dicts["vm"]))
        assert caught.value.errno == errno.ENXIO


def without(values, moving):
    return {index: value for index, value in values.items() if index not in moving}
