"""The machine for Linux, with guests of a few instructions instead: each way to end, and that everything is released then."""

from __future__ import annotations

import asyncio
import threading

import pytest

from aioirqfd.kvm import VcpuThread
from examples.vmm.linux.bzimage import BzImage
from examples.vmm.linux.errors import MachineError
from examples.vmm.linux.machine import Ending, Machine
from examples.vmm.linux.power import Power
from tests.examples.test_linux_boot import image

pytestmark = pytest.mark.kvm

PORT = 0x10
MEMORY = 24 << 20
# 64-bit code.
POWER_OFF = b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xeb\xfe"  # mov dx, 0x604; mov ax, 0x3400; out dx, ax; jmp self
RESET = b"\x66\xba\x06\x06\xb0\x01\xee\xeb\xfe"  # mov dx, 0x606; mov al, 1; out dx, al; jmp self
PANIC = b"\x66\xba\x05\x05\xb0\x01\xee\xeb\xfe"  # mov dx, 0x505; mov al, 1; out dx, al; jmp self
CRASH = b"\x0f\x0b"  # ud2: there is no handler, nor one for the fault that this is
SPIN = b"\xeb\xfe"  # jmp self
HALT = b"\xf4\xeb\xfd"  # hlt; jmp self
WRITES = b"\xe7\x10\xeb\xfc"  # again: out PORT, eax; jmp again
MAGIC = b"\x8b\x86\x02\x02\x00\x00" + WRITES  # mov eax, [rsi + 0x202]
CPUID = b"\xb8\x01\x00\x00\x00\x0f\xa2\x89\xd8" + WRITES  # mov eax, 1; cpuid; mov eax, ebx
NOWHERE = b"\xb8\x00\x00\x00\xc0\xff\xe0"  # mov eax, 0xc0000000; jmp rax
READS_MEMORY = b"\xb8\x00\x00\x00\xc0\x8b\x00" + WRITES  # mov eax, 0xc0000000; mov eax, [rax]


def kernel(code: bytes) -> BzImage:
    data = bytearray(image())
    data[3 * 512 + 0x200 : 3 * 512 + 0x200 + len(code)] = code
    return BzImage(bytes(data))


class Port:
    """Hands the values that the guest writes to a function, in the vCPU's thread."""

    ports = (range(PORT, PORT + 1),)

    def __init__(self, take):
        self.take = take

    def port_in(self, port, size):
        raise AssertionError

    def port_out(self, port, size, value):
        self.take(value)

    def save_state(self):
        return {}

    def restore_state(self, state):
        pass


class Bus:
    def __init__(self, answer):
        self.answer = answer

    def mmio_read(self, address, size):
        return self.answer(address, size)

    def mmio_write(self, *_):
        raise AssertionError

    port_in = port_out = mmio_write


@pytest.fixture
async def machine():
    async with Machine(memory=MEMORY, cpus=2) as machine:
        machine.ports.add(Power(machine.end))
        yield machine


async def only_value(machine: Machine, code: bytes) -> int:
    """What the guest writes; the machine is ended by that, so that it does not write again."""
    values = []

    def take(value):
        values.append(value)
        machine.end(Ending.STOPPED)

    machine.ports.add(Port(take))
    machine.load(kernel(code))
    assert await machine.run() is Ending.STOPPED
    (value,) = values
    return value


class TestBeginning:
    async def test_the_guest_has_boot_params_in_rsi(self, machine):
        assert await only_value(machine, MAGIC) == int.from_bytes(b"HdrS", "little")

    async def test_the_first_cpu_is_number_0(self, machine):
        assert await only_value(machine, CPUID) >> 24 == 0

    async def test_each_cpu_has_a_number_of_its_own(self, machine):
        leaves = [{leaf.function: leaf for leaf in vcpu.get_cpuid2()} for vcpu in machine._vcpus]
        assert [cpu[1].ebx >> 24 for cpu in leaves] == [0, 1]
        assert all(cpu[1].ecx >> 31 for cpu in leaves)
        assert all(cpu[0x40000000].ebx for cpu in leaves)  # KVM's own leaves

    async def test_the_bus_answers_for_memory_that_is_none(self, machine):
        asked = []
        machine.ports.bus = Bus(lambda *access: asked.append(access) or 0x12345678)
        assert await only_value(machine, READS_MEMORY) == 0x12345678
        assert asked == [(0xC0000000, 4)]


class TestEnding:
    @pytest.mark.parametrize(
        ("code", "ending"),
        [
            (POWER_OFF, Ending.POWER_OFF),
            (RESET, Ending.RESET),
            (PANIC, Ending.PANIC),
            (CRASH, Ending.TRIPLE_FAULT),
        ],
    )
    async def test_by_the_guest(self, machine, code, ending):
        machine.load(kernel(code))
        assert await machine.run() is ending

    @pytest.mark.parametrize("code", [SPIN, HALT, WRITES])
    async def test_from_the_loop(self, machine, code):
        machine.ports.add(Port(lambda value: None))
        machine.load(kernel(code))
        running = asyncio.create_task(machine.run())
        await asyncio.sleep(0)
        machine.end(Ending.STOPPED)
        assert await running is Ending.STOPPED

    async def test_from_another_thread(self, machine):
        machine.load(kernel(SPIN))
        running = asyncio.create_task(machine.run())
        thread = threading.Thread(target=machine.end, args=(Ending.STOPPED,))
        thread.start()
        assert await running is Ending.STOPPED
        thread.join()

    async def test_from_another_thread_while_its_vcpus_are_started(self, monkeypatch):
        begun = threading.Event()  # the other thread is in end(), and waits there if it has to, or has come out of it

        class Lock:
            def __init__(self, lock):
                self.lock = lock

            def __enter__(self):
                if threading.current_thread() is other:
                    begun.set()
                self.lock.acquire()

            def __exit__(self, *_):
                self.lock.release()

        def start(thread):
            real(thread)
            if other.ident is None:
                other.start()
                begun.wait()

        real = VcpuThread.start
        monkeypatch.setattr(VcpuThread, "start", start)
        async with Machine(memory=MEMORY, cpus=2) as machine:
            other = threading.Thread(target=lambda: (machine.end(Ending.STOPPED), begun.set()))
            monkeypatch.setattr(machine, "_starting", Lock(threading.Lock()))
            machine.load(kernel(SPIN))
            assert await machine.run() is Ending.STOPPED
            other.join()

    async def test_before_it_runs(self, machine):
        machine.end(Ending.STOPPED)
        machine.load(kernel(SPIN))
        assert await machine.run() is Ending.STOPPED

    async def test_the_first_one_counts(self, machine):
        machine.load(kernel(SPIN))
        for ending in (Ending.RESET, Ending.POWER_OFF):
            machine.end(ending)
        assert await machine.run() is Ending.RESET

    async def test_while_a_device_asks_the_loop(self, machine):
        count = 0

        def on_loop(value):
            nonlocal count
            count += 1
            if count == 3:
                machine.end(Ending.STOPPED)

        machine.ports.add(Port(lambda value: machine.calls.call(on_loop, value)))
        machine.load(kernel(WRITES))
        assert await machine.run() is Ending.STOPPED
        assert count == 3

    async def test_what_a_device_raises_is_raised(self, machine):
        def take(value):
            raise LookupError("the device")

        machine.ports.add(Port(take))
        machine.load(kernel(WRITES))
        with pytest.raises(LookupError, match="the device"):
            await machine.run()

    async def test_what_kvm_cannot_go_on_with(self, machine):
        machine.load(kernel(NOWHERE))
        with pytest.raises(MachineError, match="the guest stands at 0xc0000000 of vcpu 0: KVM cannot go on"):
            await machine.run()

    async def test_a_cancelled_run_has_stopped(self, machine):
        machine.load(kernel(SPIN))
        running = asyncio.create_task(machine.run())
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert machine._vcpus[0].get_regs().rip == 0x1000200

    async def test_it_runs_once(self, machine):
        machine.load(kernel(RESET))
        await machine.run()
        with pytest.raises(RuntimeError, match="a machine runs once"):
            await machine.run()


class TestRelease:
    async def test_without_a_run(self, machine):
        machine.load(kernel(SPIN))

    async def test_an_error_within(self):
        with pytest.raises(LookupError):
            async with Machine(memory=MEMORY) as machine:
                machine.load(kernel(SPIN))
                raise LookupError

    async def test_a_machine_that_cannot_be_made(self):
        with pytest.raises(OSError, match="Invalid argument"):
            async with Machine(memory=MEMORY, cpus=100_000):
                pass

    async def test_left_while_it_runs(self):
        async with Machine(memory=MEMORY) as machine:
            machine.load(kernel(SPIN))
            running = asyncio.create_task(machine.run())
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait((running,))


@pytest.mark.parametrize("shared", [False, True])
async def test_its_memory_is_its_own_unless_it_is_to_be_shared(shared):
    async with Machine(memory=MEMORY, shared=True) if shared else Machine(memory=MEMORY) as machine:
        assert machine.ram.shared is shared
        values = []
        machine.ports.add(Power(machine.end))
        machine.ports.add(Port(lambda value: (values.append(value), machine.end(Ending.STOPPED))))
        machine.load(kernel(MAGIC))
        assert await machine.run() is Ending.STOPPED
    assert values[0].to_bytes(4, "little") == b"HdrS"
