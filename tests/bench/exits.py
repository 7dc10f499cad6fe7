"""What a guest's access costs: an exit that Python answers, a doorbell that the kernel answers, a call into the loop's thread."""

from __future__ import annotations

import asyncio
import ctypes
import time
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from aioirqfd import EventFd
from aioirqfd.kvm import GuestRam, Kvm, LoopCalls, Vcpu, Vm, usable
from aioirqfd.kvm.ioctls import KVM_EXIT_INTR, KVM_EXIT_IO, KVM_IOEVENTFD_FLAG_PIO, KVM_RUN
from tests.bench.loops import on_loops
from tests.bench.measure import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXITS = 20_000
HOPS = 5_000
ENTRY = 0x1000
PORT = 0x80
CODE = (
    b"\xb9" + EXITS.to_bytes(2, "little") + b"\xe6\x80"  # again: mov cx, EXITS; write: out PORT, al
    b"\xe2\xfc"  #                                         loop write
    b"\xe6\x81"  #                                         out 0x81, al
    b"\xeb\xf5"  #                                         jmp again
)


class Counter:
    """Counts what it is asked, and ends the loop after a round's number."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.count = 0

    def port_out(self, port: int, size: int, value: int) -> None:
        """Count it."""
        self.count += 1
        if self.count == EXITS:
            self.vcpu.kick()

    def port_in(self, port: int, size: int) -> int:
        """Not asked."""
        raise NotImplementedError

    mmio_read = port_in
    mmio_write = port_out


@contextmanager
def guest() -> Iterator[tuple[Vm, Vcpu]]:
    """A guest that writes to a port, round for round."""
    with Kvm() as kvm, kvm.create_vm() as vm, GuestRam(0x4000) as ram, vm.create_vcpu() as vcpu:
        ram.attach(vm)
        ram.write(ENTRY, CODE)
        sregs = vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        regs.rip, regs.rflags = ENTRY, 2
        vcpu.set_regs(regs)
        vcpu.run()
        yield vm, vcpu


def by_ioctl(vcpu: Vcpu) -> None:
    """The least that Python can do: the call, and nothing else."""
    fd, run = vcpu.fileno(), ctypes.CDLL(None, use_errno=True).ioctl
    for _ in range(EXITS):
        run(fd, KVM_RUN, 0)


def by_run(vcpu: Vcpu) -> None:
    """``run()``, ``io_exit()``, and a call of a handler."""
    handler = Counter(vcpu)
    for _ in range(EXITS):
        if vcpu.run() == KVM_EXIT_IO:
            access = vcpu.io_exit()
            if access.is_write:
                handler.port_out(access.port, access.size, int.from_bytes(access.data, "little"))


def by_serve(vcpu: Vcpu) -> None:
    """``serve()``, which calls the handler."""
    handler = Counter(vcpu)
    reason = vcpu.serve(handler)
    assert (reason, handler.count) == (KVM_EXIT_INTR, EXITS)


def exits(way: Callable[[Vcpu], None], *, beyond: Callable[[Vcpu], None] | None = None) -> float:
    """Nanoseconds of an exit; or how much more than in another way, in the same guest."""
    with guest() as (_, vcpu):
        return (_timed(way, vcpu) - (_timed(beyond, vcpu) if beyond else 0)) / EXITS


def doorbell() -> float:
    """Nanoseconds of a port write that signals an eventfd in the kernel, the guest's loop around it included."""
    with guest() as (vm, vcpu), EventFd() as kick:
        vm.ioeventfd(PORT, 1, kick, flags=KVM_IOEVENTFD_FLAG_PIO)
        vcpu.run()  # to the end of this round
        return _timed(lambda vcpu: vcpu.run(), vcpu) / EXITS


def _timed(way: Callable[[Vcpu], object], vcpu: Vcpu) -> int:
    begin = time.perf_counter_ns()
    way(vcpu)
    return time.perf_counter_ns() - begin


async def hop() -> float:
    """A call from another thread into the loop's, and its result back."""
    with LoopCalls() as calls:
        return await asyncio.to_thread(_hops, partial(calls.call, int))


async def future_hop() -> float:
    """The same with what the standard library has."""
    loop = asyncio.get_running_loop()

    def call() -> int:
        future: Future[int] = Future()
        loop.call_soon_threadsafe(lambda: future.set_result(0))
        return future.result()

    return await asyncio.to_thread(_hops, call)


def _hops(call: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    for _ in range(HOPS):
        call()
    return (time.perf_counter_ns() - begin) / HOPS


def cases() -> list[Case]:
    """Exits where KVM can be used; hops everywhere."""
    hops = [*on_loops("hop/{loop} LoopCalls", hop), *on_loops("hop/{loop} concurrent Future", future_hop)]
    if usable() is not None:
        return hops
    return [
        Case("exit/KVM_RUN alone", partial(exits, by_ioctl)),
        Case("exit/run and io_exit", partial(exits, by_run)),
        Case("exit/serve", partial(exits, by_serve)),
        Case("exit/ioeventfd", doorbell),
        Case("exit beyond KVM_RUN/run and io_exit", partial(exits, by_run, beyond=by_ioctl)),
        Case("exit beyond KVM_RUN/serve", partial(exits, by_serve, beyond=by_ioctl)),
        *hops,
    ]
