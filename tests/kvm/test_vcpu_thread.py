"""A thread that serves a vCPU, seen from the loop: waited for, paused, stopped."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading

import pytest

from aioirqfd.errors import WrongLoopError
from aioirqfd.kvm import KICK_SIGNAL, LoopCalls, VcpuThread
from aioirqfd.kvm.ioctls import KVM_EXIT_HLT, KVM_EXIT_INTR
from tests.kvm.guest import GSI, READY, Guest

pytestmark = pytest.mark.kvm

WRITES = b"\xe6\x10\xeb\xfc"  # again: out 0x10, al; jmp again
COUNTER = 0x3000
COUNTS = b"\xfe\x06\x00\x30\xeb\xfa"  # again: inc byte [COUNTER]; jmp again
READS = b"\xe4\x10\xeb\xfc"  # again: in al, 0x10; jmp again
HLT = b"\xf4"


class Handler:
    def __init__(self):
        self.count = 0

    def port_out(self, port, size, value):
        self.count += 1

    def port_in(self, port, size) -> int:
        raise AssertionError

    mmio_read = port_in
    mmio_write = port_out


class Bare(Guest):
    """Without an irqchip, where HLT is an exit."""

    def create_irqchip(self):
        pass


async def moves(look):
    """Wait until a number changes."""
    start = look()
    while look() == start:
        await asyncio.sleep(0)


class TestEnd:
    async def test_the_exit_reason_that_ended_it(self):
        with Bare(b"\xe6\x10" + HLT) as guest:
            handler = Handler()
            thread = VcpuThread(guest.vcpu, handler, name="the first")
            assert repr(thread) == "<VcpuThread 'the first' parked>"
            thread.start()
            assert await thread.wait() == KVM_EXIT_HLT
            assert (await thread.wait(), handler.count) == (KVM_EXIT_HLT, 1)
            assert repr(thread) == "<VcpuThread 'the first' ended>"
            await thread.stop()
            await thread.pause()
            thread.resume()

    async def test_what_the_handler_raised(self):
        with Guest(READS) as guest:
            thread = VcpuThread(guest.vcpu, Handler())
            thread.start()
            for _ in range(2):
                with pytest.raises(AssertionError):
                    await thread.wait()
            await thread.stop()

    async def test_what_no_future_takes(self):
        class Ending(Handler):
            def port_in(self, port, size) -> int:
                raise StopIteration

        with Guest(READS) as guest:
            async with VcpuThread(guest.vcpu, Ending()) as thread:
                with pytest.raises(RuntimeError, match="raised StopIteration"):
                    await thread.wait()

    async def test_trouble_that_nobody_waits_for_is_heard(self):
        heard = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context["exception"]))
        with Guest(READS) as guest:
            async with VcpuThread(guest.vcpu, Handler()) as thread:
                await asyncio.wait((thread._ended,))
            del thread
            gc.collect()
        assert [type(error) for error in heard] == [AssertionError]

    async def test_cancelling_a_wait_leaves_it_running(self):
        with Guest(WRITES) as guest:
            handler = Handler()
            async with VcpuThread(guest.vcpu, handler) as thread:
                waiting = asyncio.ensure_future(thread.wait())
                await moves(lambda: handler.count)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                await moves(lambda: handler.count)


class TestStop:
    @pytest.mark.parametrize("code", [WRITES, COUNTS, b"\xf4\xeb\xfd"], ids=["exits", "never exits", "sleeps"])
    async def test_wherever_it_is(self, code):
        with Guest(code) as guest:
            async with VcpuThread(guest.vcpu, Handler()) as thread:
                pass
            assert await thread.wait() == KVM_EXIT_INTR
            await thread.aclose()
            guest.vcpu.close()
            await thread.stop()

    async def test_a_thread_that_never_started(self):
        with Guest() as guest:
            thread = VcpuThread(guest.vcpu, Handler())
            waiting = asyncio.ensure_future(thread.wait())
            await asyncio.sleep(0)
            await thread.stop()
            await thread.stop()
            assert await waiting == KVM_EXIT_INTR
            with pytest.raises(RuntimeError, match="stopped before it was started"):
                thread.start()

    async def test_one_that_is_paused(self):
        with Guest(WRITES) as guest:
            async with VcpuThread(guest.vcpu, Handler()) as thread:
                await thread.pause()
            assert await thread.wait() == KVM_EXIT_INTR

    async def test_by_its_handler(self):
        class Switch(Handler):
            def port_out(self, port, size, value):
                super().port_out(port, size, value)
                if self.count == 7:
                    thread.request_stop()

        with Guest(WRITES) as guest:
            handler = Switch()
            async with VcpuThread(guest.vcpu, handler) as thread:
                assert await thread.wait() == KVM_EXIT_INTR
            assert handler.count == 7

    async def test_it_waits_for_a_handler_that_waits_for_the_loop(self):
        order = []

        class Asking(Handler):
            def port_in(self, port, size):
                calls.call(order.append, "asked")
                calls.run(asyncio.sleep, 0)
                calls.call(order.append, "answered")
                return 0

        with LoopCalls() as calls, Guest(READS) as guest:
            async with VcpuThread(guest.vcpu, Asking()):
                while not order:
                    await asyncio.sleep(0)
            assert order[0::2] == ["asked"] * (len(order) // 2)
            assert order[1::2] == ["answered"] * (len(order) // 2)


class TestPause:
    async def test_nothing_runs_until_it_is_resumed(self):
        with Guest(COUNTS) as guest:
            async with VcpuThread(guest.vcpu, Handler()) as thread:
                await moves(lambda: guest.memory[COUNTER])
                for _ in range(100):
                    await thread.pause()
                    await thread.pause()
                    count = guest.memory[COUNTER]
                    regs = bytes(guest.vcpu.get_regs())
                    await asyncio.sleep(0)
                    assert (guest.memory[COUNTER], bytes(guest.vcpu.get_regs())) == (count, regs)
                    thread.resume()
                    await moves(lambda: guest.memory[COUNTER])

    async def test_before_the_start(self):
        with Guest(WRITES) as guest:
            handler = Handler()
            thread = VcpuThread(guest.vcpu, handler)
            await thread.pause()
            thread.start()
            await thread.pause()
            assert handler.count == 0
            thread.resume()
            await moves(lambda: handler.count)
            await thread.stop()

    async def test_resumed_while_it_is_waited_for(self):
        entered, go_on = threading.Event(), threading.Event()

        class Slow(Handler):
            def port_out(self, port, size, value):
                super().port_out(port, size, value)
                entered.set()
                go_on.wait()

        with Guest(WRITES) as guest:
            handler = Slow()
            async with VcpuThread(guest.vcpu, handler) as thread:
                await asyncio.to_thread(entered.wait)
                pausing = asyncio.ensure_future(thread.pause())
                await asyncio.sleep(0)
                thread.resume()
                await pausing
                go_on.set()
                await moves(lambda: handler.count)

    async def test_paused_again_before_it_has_gone_on(self):
        with Guest(WRITES) as guest:
            handler = Handler()
            async with VcpuThread(guest.vcpu, handler) as thread:
                for _ in range(1000):
                    await thread.pause()
                    thread.resume()
                await moves(lambda: handler.count)

    async def test_a_cancelled_pause_still_pauses(self):
        entered, go_on = threading.Event(), threading.Event()

        class Slow(Handler):
            def port_out(self, port, size, value):
                super().port_out(port, size, value)
                entered.set()
                go_on.wait()

        with Guest(WRITES) as guest:
            handler = Slow()
            async with VcpuThread(guest.vcpu, handler) as thread:
                await asyncio.to_thread(entered.wait)
                pausing = asyncio.ensure_future(thread.pause())
                await asyncio.sleep(0)
                pausing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await pausing
                go_on.set()
                await thread.pause()
                assert handler.count == 1
                thread.resume()
                await moves(lambda: handler.count)

    async def test_an_interrupt_meanwhile_is_taken_after_it(self):
        heard = []

        class Noting(Handler):
            def port_out(self, port, size, value):
                heard.append(port)

        with Guest() as guest:
            async with VcpuThread(guest.vcpu, Noting()) as thread:
                while heard != [READY]:
                    await asyncio.sleep(0)
                await thread.pause()
                guest.vm.irq_line(GSI, 1)
                thread.resume()
                while len(heard) < 3:
                    await asyncio.sleep(0)
            assert heard == [READY, 0x11, 0x12]


class TestSignals:
    async def test_a_kick_or_a_signal_of_nobodys_does_not_end_it(self):
        with Guest(COUNTS) as guest:
            async with VcpuThread(guest.vcpu, Handler()) as thread:
                for _ in range(100):
                    guest.vcpu.kick()
                    assert thread._thread.ident is not None
                    signal.pthread_kill(thread._thread.ident, KICK_SIGNAL)
                    await moves(lambda: guest.memory[COUNTER])


class TestMisuse:
    def test_without_a_loop(self):
        with Guest() as guest, pytest.raises(WrongLoopError, match="made on the loop"):
            VcpuThread(guest.vcpu, Handler())

    async def test_started_twice(self):
        with Guest(WRITES) as guest:
            async with VcpuThread(guest.vcpu, Handler()) as thread:
                with pytest.raises(RuntimeError, match="once"):
                    thread.start()
