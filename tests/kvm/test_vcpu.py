from __future__ import annotations

import errno
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aioirqfd.errors import ClosedError
from aioirqfd.kvm import KICK_SIGNAL, Kvm
from aioirqfd.kvm.ioctls import (
    KVM_EXIT_INTR,
    KVM_EXIT_IO,
    KVM_EXIT_IO_IN,
    KVM_EXIT_IO_OUT,
    KVM_EXIT_IRQ_WINDOW_OPEN,
    KVM_EXIT_MMIO,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED,
    KVM_RUN,
)
from tests.kvm.guest import AFTER_EOI, GSI, IN_HANDLER, READY, Guest, Port

pytestmark = pytest.mark.kvm

COUNTER = 0x3000
FOREVER = b"\xfe\x06\x00\x30\xeb\xfa"  # again: inc byte [COUNTER]; jmp again
SYS_IOCTL = 16


class Runner:
    """Runs a vCPU in a thread, and hands on what each run returned. Stops when told to, after a last kick."""

    def __init__(self, vcpu):
        self.vcpu = vcpu
        self.reasons = queue.SimpleQueue()
        self.stopping = False
        self.thread = threading.Thread(target=self.loop, daemon=True)

    def loop(self):
        while not self.stopping:
            try:
                self.reasons.put(self.vcpu.run())
            except BaseException as error:
                self.reasons.put(error)
                return

    def wait_until_halted(self):
        # The kernel says which call a thread sleeps in. One that runs its guest does not sleep.
        path = Path(f"/proc/self/task/{self.thread.native_id}/syscall")
        call = f"{SYS_IOCTL} {self.vcpu.fileno():#x} {KVM_RUN:#x} "
        while not path.read_text().startswith(call):
            os.sched_yield()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stopping = True
        self.vcpu.kick()
        self.thread.join(timeout=60)
        assert not self.thread.is_alive()


def wait_until_counting(guest):
    start = guest.memory[COUNTER]
    while guest.memory[COUNTER] == start:
        os.sched_yield()


def open_descriptors():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


class TestExits:
    def test_port_write_and_read(self):
        code = b"\xb0\x42\xe6\x10"  # mov al, 0x42; out 0x10, al
        code += b"\xe5\x60"  #        in ax, 0x60
        code += b"\xe7\x12"  #        out 0x12, ax
        with Guest(code) as guest:
            assert guest.next_port() == Port(0x10, b"\x42")
            assert guest.vcpu.run() == KVM_EXIT_IO
            access = guest.vcpu.io_exit()
            assert (access.direction, access.size, access.port, access.count) == (KVM_EXIT_IO_IN, 2, 0x60, 1)
            assert not access.is_write
            access.data[:] = b"\x34\x12"
            assert guest.next_port() == Port(0x12, b"\x34\x12")
            assert guest.vcpu.io_exit().direction == KVM_EXIT_IO_OUT

    def test_string_instruction_gives_every_element(self):
        code = b"\xba\x80\x00"  #     mov dx, 0x80
        code += b"\xbe\x00\x10"  #    mov si, 0x1000 (this code)
        code += b"\xb9\x04\x00"  #    mov cx, 4
        code += b"\xf3\x6e"  #        rep outsb
        code += b"\xe6\x99"  #        out 0x99, al
        with Guest(code) as guest:
            data = b""
            while (access := guest.next_port()).port == 0x80:
                data += access.data
                assert guest.vcpu.io_exit().count == len(access.data)
            assert (access.port, data) == (0x99, code[:4])

    def test_access_to_an_address_without_memory(self):
        code = b"\xa0\x00\x90"  #     mov al, [0x9000]
        code += b"\xfe\xc0"  #        inc al
        code += b"\xa2\x03\x90"  #    mov [0x9003], al
        with Guest(code) as guest:
            assert guest.vcpu.run() == KVM_EXIT_MMIO
            access = guest.vcpu.mmio_exit()
            assert (access.phys_addr, len(access.data), access.is_write) == (0x9000, 1, False)
            access.data[:] = b"\x41"
            assert guest.vcpu.run() == KVM_EXIT_MMIO
            access = guest.vcpu.mmio_exit()
            assert (access.phys_addr, bytes(access.data), access.is_write) == (0x9003, b"\x42", True)

    def test_an_exit_that_is_still_looked_at_when_the_vcpu_is_closed(self):
        with Guest(b"\xb0\x42\xe6\x10") as guest:
            guest.next_port()
            access = guest.vcpu.io_exit()
            page = guest.vcpu.kvm_run
        assert bytes(access.data) == b"\x42"
        assert page.exit_reason == KVM_EXIT_IO


class TestRegisters:
    def test_round_trips(self):
        with Guest() as guest:
            regs = guest.vcpu.get_regs()
            regs.rbx, regs.r15 = 0x1122334455667788, 2**64 - 1
            guest.vcpu.set_regs(regs)
            assert bytes(guest.vcpu.get_regs()) == bytes(regs)
            sregs = guest.vcpu.get_sregs()
            sregs.ds.base, sregs.ds.selector, sregs.cr2 = 0x12340, 0x1234, 0x5678
            guest.vcpu.set_sregs(sregs)
            again = guest.vcpu.get_sregs()
            assert (again.ds.base, again.ds.selector, again.cr2, again.cs.base) == (0x12340, 0x1234, 0x5678, 0)
            lapic = guest.vcpu.get_lapic()
            lapic.set_register(0xF0, 0x1AB)
            guest.vcpu.set_lapic(lapic)
            assert guest.vcpu.get_lapic().register(0xF0) == 0x1AB

    def test_mp_state(self):
        with Guest() as guest, guest.vm.create_vcpu(1) as second:
            assert guest.vcpu.get_mp_state() == KVM_MP_STATE_RUNNABLE
            assert second.get_mp_state() == KVM_MP_STATE_UNINITIALIZED
            second.set_mp_state(KVM_MP_STATE_RUNNABLE)
            assert second.get_mp_state() == KVM_MP_STATE_RUNNABLE


class TestKick:
    def test_before_a_run_it_is_remembered_once(self):
        with Guest() as guest:
            guest.vcpu.kick()
            guest.vcpu.kick()
            assert guest.vcpu.run() == KVM_EXIT_INTR
            assert guest.next_port().port == READY

    def test_it_completes_what_the_last_exit_asked_for_and_runs_nothing_more(self):
        code = b"\xe4\x60"  #   in al, 0x60
        code += b"\xe6\x12"  #  out 0x12, al
        with Guest(code) as guest:
            assert guest.vcpu.run() == KVM_EXIT_IO
            guest.vcpu.io_exit().data[:] = b"\x5a"
            guest.vcpu.kick()
            assert guest.vcpu.run() == KVM_EXIT_INTR
            regs = guest.vcpu.get_regs()
            assert (regs.rax & 0xFF, regs.rip) == (0x5A, 0x1002)
            assert guest.next_port() == Port(0x12, b"\x5a")

    def test_a_halted_vcpu_while_this_thread_goes_on(self):
        with Guest() as guest, Runner(guest.vcpu) as runner:
            assert runner.reasons.get() == KVM_EXIT_IO
            # That this thread comes here at all, and sees the other one inside the call, is the GIL released.
            runner.wait_until_halted()
            guest.vcpu.kick()
            assert runner.reasons.get() == KVM_EXIT_INTR
            # It was only interrupted: it still takes its interrupt.
            guest.vm.irq_line(GSI, 1)
            assert [runner.reasons.get() for _ in range(2)] == [KVM_EXIT_IO, KVM_EXIT_IO]

    def test_a_vcpu_that_never_exits_by_itself(self):
        with Guest(FOREVER) as guest, Runner(guest.vcpu) as runner:
            wait_until_counting(guest)
            guest.vcpu.kick()
            assert runner.reasons.get() == KVM_EXIT_INTR

    def test_none_is_lost_in_a_thousand(self):
        with Guest(FOREVER) as guest, Runner(guest.vcpu) as runner:
            for _ in range(1000):
                guest.vcpu.kick()
                assert runner.reasons.get() == KVM_EXIT_INTR

    def test_a_signal_alone_interrupts_too(self):
        with Guest(FOREVER) as guest, Runner(guest.vcpu) as runner:
            wait_until_counting(guest)
            assert runner.thread.ident is not None
            signal.pthread_kill(runner.thread.ident, KICK_SIGNAL)
            assert runner.reasons.get() == KVM_EXIT_INTR

    def test_a_kick_that_finds_another_exit_waits_for_the_next_run(self):
        with Guest() as guest:
            assert guest.next_port().port == READY
            guest.vcpu.kick()
            guest.vm.irq_line(GSI, 1)
            assert guest.vcpu.run() == KVM_EXIT_INTR
            assert [guest.next_port().port for _ in range(2)] == [IN_HANDLER, AFTER_EOI]

    def test_an_ignored_signal_is_taken_over(self):
        code = (
            "import signal\n"
            "from aioirqfd.kvm import KICK_SIGNAL\n"
            "from tests.kvm.guest import Guest\n"
            "signal.signal(KICK_SIGNAL, signal.SIG_IGN)\n"
            "with Guest():\n"
            "    signal.raise_signal(KICK_SIGNAL)\n"
            "    print(open('/proc/self/status').read().partition('SigIgn:')[2].split()[0])\n"
        )
        root = Path(__file__).parents[2]
        result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
        assert int(result.stdout, 16) >> (KICK_SIGNAL - 1) & 1 == 0

    def test_the_signal_may_not_belong_to_somebody_else(self):
        # In a process of its own, which has no vCPU yet.
        code = (
            "import signal\n"
            "from aioirqfd.kvm import KICK_SIGNAL, Kvm\n"
            "heard = []\n"
            "signal.signal(KICK_SIGNAL, lambda *args: heard.append(args[0]))\n"
            "with Kvm() as kvm, kvm.create_vm() as vm:\n"
            "    try:\n"
            "        vm.create_vcpu()\n"
            "    except RuntimeError as error:\n"
            "        print(error)\n"
            "signal.raise_signal(KICK_SIGNAL)\n"
            "print(heard == [KICK_SIGNAL])\n"
        )
        result = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
        assert result.stdout == f"signal {KICK_SIGNAL} has a handler already; vCPUs are kicked with it\nTrue\n"
        assert result.stderr == ""


class TestWindow:
    def test_interrupt_without_an_irqchip(self):
        # The handler of vector 0x30 is at 0x100; the guest opens the window with sti only after its first write.
        code = b"\xe6\x10"  #  out 0x10, al
        code += b"\xfb"  #     sti
        code += b"\xeb\xfe"  # jmp to itself
        with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu() as vcpu:
            memory = vm.add_memory(0, 0, 4096)
            memory[0 : len(code)] = code
            memory[0x30 * 4 : 0x30 * 4 + 4] = (0x100).to_bytes(4, "little")
            memory[0x100:0x102] = b"\xe6\x11"  # out 0x11, al
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            regs = vcpu.get_regs()
            regs.rip, regs.rsp, regs.rflags = 0, 0x800, 2
            vcpu.set_regs(regs)
            assert vcpu.run() == KVM_EXIT_IO
            assert not vcpu.kvm_run.ready_for_interrupt_injection
            vcpu.kvm_run.request_interrupt_window = 1
            assert vcpu.run() == KVM_EXIT_IRQ_WINDOW_OPEN
            assert vcpu.kvm_run.ready_for_interrupt_injection
            vcpu.kvm_run.request_interrupt_window = 0
            vcpu.interrupt(0x30)
            assert vcpu.run() == KVM_EXIT_IO
            assert vcpu.io_exit().port == 0x11


class TestOwnership:
    def test_one_thread_at_a_time_and_no_close_under_it(self):
        with Guest(FOREVER) as guest:
            with Runner(guest.vcpu) as runner:
                wait_until_counting(guest)
                with pytest.raises(RuntimeError, match="run by another thread"):
                    guest.vcpu.run()
                with pytest.raises(RuntimeError, match="is running"):
                    guest.vcpu.close()
                assert not guest.vcpu.closed
                guest.vcpu.kick()
                assert runner.reasons.get() == KVM_EXIT_INTR
            guest.vcpu.close()

    def test_after_close(self):
        with Guest() as guest:
            guest.vcpu.close()
            guest.vcpu.close()
            for call in (
                guest.vcpu.run,
                guest.vcpu.kick,
                guest.vcpu.get_regs,
                guest.vcpu.io_exit,
                guest.vcpu.mmio_exit,
                lambda: guest.vcpu.kvm_run,
            ):
                with pytest.raises(ClosedError):
                    call()

    def test_a_vcpu_that_cannot_be_mapped_leaves_no_descriptor(self):
        with Kvm() as kvm, kvm.create_vm() as vm:
            before = open_descriptors()
            vm._vcpu_mmap_size = -1
            with pytest.raises(OverflowError):
                vm.create_vcpu()
            vm._vcpu_mmap_size = 0
            with pytest.raises(ValueError, match="was made without vcpu_mmap_size"):
                vm.create_vcpu()
            assert open_descriptors() == before

    def test_any_other_errno_is_passed_on_and_keeps_the_kick(self, monkeypatch):
        with Guest() as guest, Path("/dev/null").open("rb") as null:
            guest.vcpu.kick()
            with monkeypatch.context() as patch:
                patch.setattr(guest.vcpu, "_fd", null.fileno())
                with pytest.raises(OSError) as caught:
                    guest.vcpu.run()
            assert caught.value.errno == errno.ENOTTY
            assert [guest.vcpu.run() for _ in range(2)] == [KVM_EXIT_INTR, KVM_EXIT_IO]
