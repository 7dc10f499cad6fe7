"""The parts of a processor that Unicorn lacks. Programs are machine code: they are a few bytes each."""

from __future__ import annotations

import threading

import pytest
from unicorn import x86_const as x86

from aioirqfd import EventFd
from examples.vmm.cpu import CpuError
from examples.vmm.cpu_unicorn import UnicornCpu
from examples.vmm.portio import PortIo, register, words

START = 0x1000
HANDLER = 0x2000
STACK = 0x3000
VECTOR = 0x20
PORT = 0x80

NOP, STI, CLI, HLT, INC_AX, IRET = b"\x90", b"\xfb", b"\xfa", b"\xf4", b"\x40", b"\xcf"
OUT = b"\xe6\x80"
JUMP_SELF = b"\xeb\xfe"
FOREVER = 1000
LIMIT = 30.0


class Bench:
    """A processor with pin 0 of its 8259 on vector 0x20, and a port that remembers."""

    def __init__(self, program: bytes, handler: bytes = IRET) -> None:
        self.io = PortIo()
        self.written: list[int] = []
        self.io.on_write(PORT, words(self.written.append))
        self.cpu = UnicornCpu(self.io)
        self.cpu.load(HANDLER, handler)
        self.cpu.load(START, program)
        self.uc = self.cpu._uc
        self.uc.reg_write(x86.UC_X86_REG_SP, STACK)
        self.uc.mem_write(VECTOR * 4, HANDLER.to_bytes(4, "little"))
        for port, value in ((0x20, 0x11), (0x21, VECTOR), (0x21, 4), (0x21, 1), (0x21, 0xFE)):
            self.cpu.sink.io_write(port, value)

    def interrupt(self) -> None:
        self.cpu.sink.set_irq(0, 1)
        self.cpu.sink.set_irq(0, 0)

    def register(self, name: str) -> int:
        return self.uc.reg_read(getattr(x86, f"UC_X86_REG_{name}"))

    def frame(self) -> list[int]:
        """What lies on the stack: IP, CS, FLAGS."""
        data = bytes(self.uc.mem_read(self.register("SP"), 6))
        return [int.from_bytes(data[at : at + 2], "little") for at in (0, 2, 4)]

    def step_into_handler(self, limit: int = FOREVER) -> int:
        """Step until the handler is entered; returns how many steps that took."""
        for steps in range(1, 20):
            self.cpu.step(limit)
            if self.register("IP") == HANDLER and self.register("SP") == STACK - 6:
                return steps
        pytest.fail("the handler was not entered")


def test_interrupt_entry_pushes_the_frame_and_clears_the_flags():
    bench = Bench(STI + NOP + NOP + JUMP_SELF)
    bench.cpu.step(2)
    bench.uc.reg_write(x86.UC_X86_REG_EFLAGS, 0x2 | 0x200 | 0x100 | 0x1)
    bench.interrupt()
    bench.cpu.step(FOREVER)
    assert bench.register("IP") == HANDLER
    assert bench.register("CS") == 0
    assert bench.register("SP") == STACK - 6
    assert bench.frame() == [START + 2, 0, 0x303]
    assert bench.register("EFLAGS") & 0x300 == 0
    assert bench.register("EFLAGS") & 1 == 1


def test_interrupt_entry_jumps_to_the_vectors_segment_and_wraps_the_stack():
    bench = Bench(STI + NOP + JUMP_SELF)
    bench.cpu.step(2)
    bench.uc.reg_write(x86.UC_X86_REG_SS, 0)
    bench.uc.reg_write(x86.UC_X86_REG_SP, 2)
    bench.uc.mem_write(VECTOR * 4, b"\x00\x00\x00\x02")
    bench.interrupt()
    bench.cpu.step(FOREVER)
    assert (bench.register("CS"), bench.register("IP"), bench.register("SP")) == (0x200, 0, 0xFFFC)
    assert bytes(bench.uc.mem_read(0, 2)) == b"\x02\x02"  # FLAGS, at the bottom of the segment
    assert bytes(bench.uc.mem_read(0xFFFC, 4)) == (START + 2).to_bytes(4, "little")  # IP and CS, at its top


def test_iret_goes_back():
    bench = Bench(STI + NOP + INC_AX + JUMP_SELF)
    bench.cpu.step(2)
    bench.interrupt()
    assert bench.step_into_handler() == 1
    bench.cpu.step(1)
    assert bench.register("IP") == START + 2
    assert bench.register("SP") == STACK
    assert bench.register("EFLAGS") & 0x200


def test_interrupt_waits_for_the_interrupt_flag():
    bench = Bench(NOP + INC_AX + INC_AX + STI + INC_AX + INC_AX + JUMP_SELF)
    bench.interrupt()
    bench.step_into_handler(limit=1)
    # Three counted: two before sti, and the one in its shadow.
    assert bench.register("AX") == 3
    assert bench.frame()[0] == START + 5


@pytest.mark.parametrize("load", [b"\x8e\xd0", b"\x17"], ids=["mov ss", "pop ss"])
def test_a_load_of_the_stack_segment_holds_the_interrupt_for_one_instruction(load):
    bench = Bench(STI + NOP + load + b"\xbc\x00\x2e" + JUMP_SELF)  # ... mov $0x2e00, %sp
    bench.cpu.step(2)
    bench.cpu.step(1)
    bench.interrupt()
    bench.cpu.step(FOREVER)
    assert bench.register("SP") == 0x2E00
    bench.cpu.step(FOREVER)
    assert bench.register("IP") == HANDLER
    assert bench.register("SP") == 0x2E00 - 6


def test_sti_hlt_with_an_interrupt_pending_is_woken_behind_the_hlt():
    bench = Bench(CLI + STI + HLT + JUMP_SELF)
    bench.interrupt()
    bench.step_into_handler(limit=1)
    assert bench.frame()[0] == START + 3


def test_standing_behind_a_hlt_is_not_being_halted():
    bench = Bench(b"\xeb\x01" + HLT + INC_AX + JUMP_SELF)  # jumps over the hlt
    bench.cpu.step(1)
    assert bench.register("IP") == START + 3
    bench.cpu.step(1)
    assert bench.register("AX") == 1


def test_hlt_sleeps_until_another_thread_interrupts():
    bench = Bench(STI + OUT + HLT + JUMP_SELF, handler=INC_AX + OUT + JUMP_SELF)
    about_to_halt, handled = threading.Event(), threading.Event()
    bench.io.on_write(PORT, words(lambda value: (handled if value else about_to_halt).set()))
    thread = threading.Thread(target=bench.cpu.run)
    thread.start()
    try:
        assert about_to_halt.wait(LIMIT)
        bench.interrupt()
        assert handled.wait(LIMIT)
        assert bench.frame()[0] == START + 4
    finally:
        bench.cpu.stop()
        thread.join(LIMIT)
    assert not thread.is_alive()


def test_a_guest_that_only_computes_is_interrupted():
    bench = Bench(STI + OUT + JUMP_SELF, handler=INC_AX + OUT + JUMP_SELF)
    computing, handled = threading.Event(), threading.Event()
    bench.io.on_write(PORT, words(lambda value: (handled if value else computing).set()))
    thread = threading.Thread(target=bench.cpu.run)
    thread.start()
    try:
        assert computing.wait(LIMIT)
        bench.interrupt()
        assert handled.wait(LIMIT)
    finally:
        bench.cpu.stop()
        thread.join(LIMIT)
    assert not thread.is_alive()


def test_an_interrupt_that_a_write_raises_is_taken_before_the_next_instruction():
    bench = Bench(STI + NOP + OUT + INC_AX + JUMP_SELF)
    bench.io.on_write(PORT, words(lambda _: bench.interrupt()))
    bench.step_into_handler()
    assert bench.frame()[0] == START + 4
    assert bench.register("AX") == 0


@pytest.mark.parametrize("size", [1, 4])
def test_string_input_that_is_interrupted_at_every_element_reads_each_once(size):
    count = 50
    reads = iter(range(1, 1000))
    handler = b"\x50\xb0\x20\xe6\x20\x58" + IRET  # push ax; EOI; pop ax; iret
    insert = b"\xf3\x6c" if size == 1 else b"\x66\xf3\x6d"
    program = STI + NOP + insert + OUT + JUMP_SELF
    bench = Bench(program, handler)

    def take() -> int:
        bench.interrupt()
        return next(reads)

    bench.io.on_read(0x504, register(take))
    bench.uc.reg_write(x86.UC_X86_REG_DX, 0x504)
    bench.uc.reg_write(x86.UC_X86_REG_DI, 0x4000)
    bench.uc.reg_write(x86.UC_X86_REG_CX, count)
    for _ in range(20 * count):
        if bench.written:
            break
        bench.cpu.step(FOREVER)
    data = bytes(bench.uc.mem_read(0x4000, size * (count + 1)))
    assert data == b"".join(number.to_bytes(size, "little") for number in [*range(1, count + 1), 0])
    assert next(reads) == count + 1


def test_string_output_that_is_interrupted_at_every_element_writes_each_once():
    handler = b"\x50\xb0\x20\xe6\x20\x58" + IRET
    bench = Bench(STI + NOP + b"\xf3\x6e" + HLT + JUMP_SELF, handler)  # rep outsb
    text = bytes(range(1, 51))

    def take(value: int) -> None:
        bench.written.append(value)
        bench.interrupt()

    bench.io.on_write(PORT, words(take))
    bench.uc.mem_write(0x4000, text)
    bench.uc.reg_write(x86.UC_X86_REG_DX, PORT)
    bench.uc.reg_write(x86.UC_X86_REG_SI, 0x4000)
    bench.uc.reg_write(x86.UC_X86_REG_CX, len(text))
    while bench.register("IP") != START + 5:
        bench.cpu.step(FOREVER)
    assert bytes(bench.written) == text


def test_a_doorbell_takes_its_value_alone():
    bench = Bench(b"\xb0\x02" + OUT + b"\xb0\x01" + OUT + HLT)
    with EventFd() as doorbell:
        bench.cpu.add_doorbell(doorbell, port=PORT, value=1)
        bench.cpu.step(FOREVER)
        assert doorbell.read_nowait() == 1
    assert bench.written == [2]


def test_nobodys_port_reads_as_ones():
    bench = Bench(b"\xe5\x90" + HLT)
    bench.cpu.step(FOREVER)
    assert bench.register("AX") == 0xFFFF


def test_hlt_with_interrupts_disabled_is_a_crash():
    bench = Bench(HLT)
    with pytest.raises(CpuError, match="halted with interrupts disabled"):
        bench.cpu.run()


def test_an_instruction_that_does_not_exist_is_a_crash_with_its_address():
    bench = Bench(NOP + b"\x0f\xff\xff")
    with pytest.raises(CpuError, match="crashed at 0x100"):
        bench.cpu.run()


def test_an_error_in_a_device_ends_the_run():
    bench = Bench(NOP + OUT + INC_AX + HLT)

    def fail(_value: int) -> None:
        raise LookupError("device")

    bench.io.on_write(PORT, words(fail))
    with pytest.raises(LookupError, match="device"):
        bench.cpu.run()
    assert bench.register("AX") == 0


def test_stop_before_run_and_twice():
    bench = Bench(JUMP_SELF)
    bench.cpu.stop()
    bench.cpu.stop()
    bench.cpu.run()
    assert bench.register("IP") == START
