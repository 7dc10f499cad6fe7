"""The lean loop: accesses that a handler answers, what ends it, and kicks that are never lost."""

from __future__ import annotations

import errno
import os
import queue
import resource
import signal
import threading
from pathlib import Path

import pytest

from aioirqfd.errors import ClosedError
from aioirqfd.kvm import KICK_SIGNAL
from aioirqfd.kvm.ioctls import KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_MP_STATE_RUNNABLE
from tests.kvm.guest import ENTRY, MEMORY, Guest

pytestmark = pytest.mark.kvm

COUNTER = 0x3000
SECOND = 0x2000
APIC_1, INIT, SIPI = 0xFEE0_1000, 0x4500, 0x4600
HLT = b"\xf4"


class Handler:
    """Notes the guest's accesses, and answers its reads from a list."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.heard = []

    def port_in(self, port, size):
        self.heard.append(("in", port, size))
        return self.answer()

    def port_out(self, port, size, value):
        self.heard.append(("out", port, size, value))

    def mmio_read(self, address, size):
        self.heard.append(("read", address, size))
        return self.answer()

    def mmio_write(self, address, size, value):
        self.heard.append(("write", address, size, value))

    def answer(self):
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Bare(Guest):
    """Without an irqchip, where HLT is an exit."""

    def create_irqchip(self):
        pass


def open_fds():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def served(code, *answers):
    """What the guest asked for until it halted."""
    handler = Handler(*answers)
    with Bare(code + HLT) as guest:
        assert guest.vcpu.serve(handler) == KVM_EXIT_HLT
        return handler.heard


class TestAccesses:
    def test_ports_of_every_size(self):
        code = b"\xba\x34\x12"  #   mov dx, 0x1234
        code += b"\xec\xee"  #      in al, dx; out dx, al
        code += b"\xed\xef"  #      in ax, dx; out dx, ax
        code += b"\x66\xed\x66\xef"  # in eax, dx; out dx, eax
        assert served(code, 0xFF, 0xFFFE, 0xFFFF_FFFD) == [
            ("in", 0x1234, 1),
            ("out", 0x1234, 1, 0xFF),
            ("in", 0x1234, 2),
            ("out", 0x1234, 2, 0xFFFE),
            ("in", 0x1234, 4),
            ("out", 0x1234, 4, 0xFFFF_FFFD),
        ]

    def test_a_string_instruction_is_a_call_for_each_element(self):
        code = b"\xba\x60\x00"  #    mov dx, 0x60
        code += b"\xbf\x00\x30"  #   mov di, COUNTER
        code += b"\xb9\x03\x00"  #   mov cx, 3
        code += b"\xf3\x6d"  #       rep insw
        code += b"\xbe\x00\x30"  #   mov si, COUNTER
        code += b"\xb9\x03\x00"  #   mov cx, 3
        code += b"\xf3\x6f"  #       rep outsw
        assert served(code, 1, 0x8000, 0xFFFF) == [("in", 0x60, 2)] * 3 + [
            ("out", 0x60, 2, value) for value in (1, 0x8000, 0xFFFF)
        ]

    def test_memory_of_every_size(self):
        code = b"\xa0\x00\x90\xa2\x08\x90"  #          mov al, [0x9000]; mov [0x9008], al
        code += b"\xa1\x00\x90\xa3\x08\x90"  #         mov ax, [0x9000]; mov [0x9008], ax
        code += b"\x66\xa1\x00\x90\x66\xa3\x08\x90"  # mov eax, [0x9000]; mov [0x9008], eax
        assert served(code, 0xFF, 0xFFFE, 0xFFFF_FFFD) == [
            ("read", 0x9000, 1),
            ("write", 0x9008, 1, 0xFF),
            ("read", 0x9000, 2),
            ("write", 0x9008, 2, 0xFFFE),
            ("read", 0x9000, 4),
            ("write", 0x9008, 4, 0xFFFF_FFFD),
        ]

    def test_eight_bytes(self):
        code = b"\x0f\x6f\x06\x00\x90"  #  movq mm0, [0x9000]
        code += b"\x0f\x7f\x06\x08\x90"  # movq [0x9008], mm0
        assert served(code, 2**64 - 2) == [("read", 0x9000, 8), ("write", 0x9008, 8, 2**64 - 2)]

    @pytest.mark.parametrize("low", [1, 2, 3])
    def test_an_access_over_the_end_of_memory_has_an_odd_rest(self, low):
        # The first bytes are memory, which ends at 0x8000; the rest is not.
        address = (MEMORY - low).to_bytes(2, "little")
        code = b"\x66\xa1" + address  #   mov eax, [0x8000 - low]
        code += b"\x66\xa3" + address  #  mov [0x8000 - low], eax
        high = 4 - low
        value = 2 ** (8 * high) - 2
        assert served(code, value) == [("read", MEMORY, high), ("write", MEMORY, high, value)]


class TestMisfits:
    @pytest.mark.parametrize(
        ("code", "call"),
        [(b"\xe4\x60", r"port_in\(0x60, 1\)"), (b"\xa0\x00\x90", r"mmio_read\(0x9000, 1\)")],
        ids=["port", "memory"],
    )
    @pytest.mark.parametrize(
        ("answer", "error", "text"),
        [
            (256, ValueError, r"returned 256, which does not fit: 1 bytes are 0\.\.2\*\*8-1"),
            (-1, ValueError, "returned -1, which does not fit"),
            (None, TypeError, "returned None: what the guest reads is an integer"),
            (b"x", TypeError, "returned b'x': what"),
        ],
        ids=["too large", "negative", "none", "bytes"],
    )
    def test_an_answer_that_does_not_fit(self, code, call, answer, error, text):
        with Bare(code + HLT) as guest:
            with pytest.raises(error, match=f"{call} {text}"):
                guest.vcpu.serve(Handler(answer))
            assert guest.vcpu.serve(Handler()) == KVM_EXIT_HLT

    @pytest.mark.parametrize(("answer", "error"), [(2**24, ValueError), (None, TypeError)])
    def test_of_three_bytes(self, answer, error):
        code = b"\x66\xa1" + (MEMORY - 1).to_bytes(2, "little")
        with Bare(code + HLT) as guest, pytest.raises(error, match=r"mmio_read\(0x8000, 3\) returned"):
            guest.vcpu.serve(Handler(answer))


class TestEnds:
    def test_what_a_handler_raised_does_not_hold_a_closed_vcpu(self):
        fds = open_fds()
        with Bare(b"\xe4\x10" + HLT) as guest, pytest.raises(ZeroDivisionError) as caught:
            guest.vcpu.serve(Handler(ZeroDivisionError()))
        assert open_fds() == fds
        assert caught.tb is not None

    def test_what_a_handler_raises_leaves_the_vcpu_to_be_served_again(self):
        with Bare(b"\xe4\x60\xe6\x61" + HLT) as guest:  # in al, 0x60; out 0x61, al; hlt
            with pytest.raises(ZeroDivisionError):
                guest.vcpu.serve(Handler(ZeroDivisionError()))
            guest.vcpu.io_exit().data[:] = b"\x07"
            handler = Handler()
            assert guest.vcpu.serve(handler) == KVM_EXIT_HLT
            assert handler.heard == [("out", 0x61, 1, 7)]

    def test_a_kick_by_the_handler_completes_the_access_first(self):
        class Kicking(Handler):
            def port_in(self, port, size):
                guest.vcpu.kick()
                return super().port_in(port, size)

        with Bare(b"\xe4\x60\xe6\x61" + HLT) as guest:
            handler = Kicking(0x5A)
            assert guest.vcpu.serve(handler) == KVM_EXIT_INTR
            regs = guest.vcpu.get_regs()
            assert (regs.rax & 0xFF, regs.rip, handler.heard) == (0x5A, ENTRY + 2, [("in", 0x60, 1)])
            assert guest.vcpu.serve(handler) == KVM_EXIT_HLT
            assert handler.heard[1:] == [("out", 0x61, 1, 0x5A)]

    def test_however_often_it_is_kicked_one_signal_waits(self):
        # A queue of them is limited for all processes of a user, and then a kick would fail.
        class Kicking(Handler):
            def port_out(self, port, size, value):
                signal.pthread_sigmask(signal.SIG_BLOCK, [KICK_SIGNAL])
                for _ in range(5):
                    guest.vcpu.kick()
                while signal.sigtimedwait([KICK_SIGNAL], 0) is not None:
                    self.heard.append("signal")
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [KICK_SIGNAL])

        with Bare(2 * b"\xe6\x10" + HLT) as guest:
            handler = Kicking()
            reasons = [guest.vcpu.serve(handler) for _ in range(3)]
            assert (reasons, handler.heard) == ([KVM_EXIT_INTR, KVM_EXIT_INTR, KVM_EXIT_HLT], 2 * ["signal"])

    def test_a_kick_whose_signal_has_no_room_says_so_and_the_next_one_has_its_own(self):
        limits = resource.getrlimit(resource.RLIMIT_SIGPENDING)

        class Kicking(Handler):
            def port_out(self, port, size, value):
                signal.pthread_sigmask(signal.SIG_BLOCK, [KICK_SIGNAL])
                resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, limits[1]))
                with pytest.raises(BlockingIOError):
                    guest.vcpu.kick()
                resource.setrlimit(resource.RLIMIT_SIGPENDING, limits)
                guest.vcpu.kick()
                self.heard.append(signal.sigtimedwait([KICK_SIGNAL], 0) is not None)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [KICK_SIGNAL])

        with Bare(b"\xe6\x10" + HLT) as guest:
            handler = Kicking()
            assert ([guest.vcpu.serve(handler) for _ in range(2)], handler.heard) == (
                [KVM_EXIT_INTR, KVM_EXIT_HLT],
                [True],
            )

    def test_a_kick_before_it_is_remembered_once(self):
        with Bare(HLT) as guest:
            guest.vcpu.kick()
            guest.vcpu.kick()
            assert [guest.vcpu.serve(Handler()) for _ in range(2)] == [KVM_EXIT_INTR, KVM_EXIT_HLT]

    def test_a_kick_that_another_exit_has_overtaken_is_the_next_ones(self):
        class Kicking(Handler):
            def port_out(self, port, size, value):
                guest.vcpu.kick()
                raise EOFError

        with Bare(b"\xe6\x10" + HLT) as guest:
            with pytest.raises(EOFError):
                guest.vcpu.serve(Kicking())
            assert [guest.vcpu.serve(Handler()) for _ in range(2)] == [KVM_EXIT_INTR, KVM_EXIT_HLT]

    def test_other_exits_are_returned(self):
        with Bare(b"\xe9\xfd\x7f") as guest:  # jmp 0x9000, where nothing is
            assert guest.vcpu.serve(Handler()) == KVM_EXIT_INTERNAL_ERROR

    def test_a_vcpu_that_waits_to_be_started_is_run_again_when_it_is(self):
        # Another one than the first waits for its INIT and SIPI, of which the ioctl says EAGAIN.
        with Guest() as guest, guest.vm.create_vcpu(1) as second:
            handler = Handler()
            guest.memory[SECOND : SECOND + 2] = b"\xe6\x42"  # out 0x42, al

            class Told(Handler):
                def port_out(self, port, size, value):
                    handler.port_out(port, size, value)
                    second.kick()

            guest.vcpu.set_lapic(guest.vcpu.get_lapic())  # KVM then looks anew which APICs there are
            assert guest.vm.signal_msi(APIC_1, INIT) == 1
            assert guest.vm.signal_msi(APIC_1, SIPI | SECOND >> 12) == 1
            assert second.serve(Told()) == KVM_EXIT_INTR
            assert handler.heard == [("out", 0x42, 1, 0)]
            assert second.get_mp_state() == KVM_MP_STATE_RUNNABLE

    def test_any_other_errno_is_passed_on_and_keeps_the_kick(self, monkeypatch):
        with Bare(HLT) as guest, Path("/dev/null").open("rb") as null:
            guest.vcpu.kick()
            with monkeypatch.context() as patch:
                patch.setattr(guest.vcpu, "_fd", null.fileno())
                with pytest.raises(OSError) as caught:
                    guest.vcpu.serve(Handler())
            assert caught.value.errno == errno.ENOTTY
            assert [guest.vcpu.serve(Handler()) for _ in range(2)] == [KVM_EXIT_INTR, KVM_EXIT_HLT]


class TestOwnership:
    def test_one_at_a_time_and_no_close_under_it(self):
        class Curious(Handler):
            def port_out(self, port, size, value):
                for call in (guest.vcpu.run, lambda: guest.vcpu.serve(self)):
                    with pytest.raises(RuntimeError, match="run by another thread"):
                        call()
                with pytest.raises(RuntimeError, match="is running"):
                    guest.vcpu.close()
                super().port_out(port, size, value)

        with Bare(b"\xe6\x10" + HLT) as guest:
            handler = Curious()
            assert guest.vcpu.serve(handler) == KVM_EXIT_HLT
            assert len(handler.heard) == 1
            guest.vcpu.close()
            with pytest.raises(ClosedError):
                guest.vcpu.serve(handler)

    def test_a_handler_that_is_none(self):
        with Bare(HLT) as guest:
            with pytest.raises(AttributeError, match="port_in"):
                guest.vcpu.serve(object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            assert guest.vcpu.run() == KVM_EXIT_HLT


class Served:
    """A thread that serves again and again, and says what ended each."""

    def __init__(self, vcpu, handler):
        self.vcpu = vcpu
        self.handler = handler
        self.reasons = queue.SimpleQueue()
        self.stopping = False
        self.thread = threading.Thread(target=self.loop, daemon=True)

    def loop(self):
        while not self.stopping:
            self.reasons.put(self.vcpu.serve(self.handler))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stopping = True
        self.vcpu.kick()
        self.thread.join(timeout=60)
        assert not self.thread.is_alive()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(b"\xfe\x06\x00\x30\xeb\xfa", id="a guest that never exits"),  # inc byte [COUNTER]; jmp
        pytest.param(b"\xe6\x10\xeb\xfc", id="a guest that always exits"),  # out 0x10, al; jmp
        pytest.param(b"\xf4\xeb\xfd", id="a guest that sleeps"),  # hlt; jmp
    ],
)
def test_no_kick_is_lost(code):
    class Deaf(Handler):
        def port_out(self, port, size, value):
            pass

    with Guest(code) as guest, Served(guest.vcpu, Deaf()) as served:
        for _ in range(1000):
            guest.vcpu.kick()
            assert served.reasons.get() == KVM_EXIT_INTR


def test_registers_are_true_after_each_kick():
    """A guest that counts in a register what it has written: wherever a kick meets it, the count is the handler's."""
    code = b"\x41\xe7\x10\xeb\xfb"  # again: inc cx; out 0x10, ax; jmp again

    class Counting(Handler):
        count = 0

        def port_out(self, port, size, value):
            self.count = (self.count + 1) % 0x10000

    with Guest(code) as guest:
        handler = Counting()
        done = threading.Event()

        def kick():
            while not done.is_set():
                guest.vcpu.kick()
                os.sched_yield()

        thread = threading.Thread(target=kick)
        thread.start()
        try:
            for _ in range(200):
                assert guest.vcpu.serve(handler) == KVM_EXIT_INTR
                regs = guest.vcpu.get_regs()
                # Between inc and out it is one ahead.
                assert (regs.rcx & 0xFFFF) == (handler.count + (regs.rip == ENTRY + 1)) % 0x10000
        finally:
            done.set()
            thread.join()
