"""The kernel's back-end: raw eventfds, and KVM with a guest that executes one instruction at a time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from aioirqfd.kvm import Kvm, RoutingEntry
from aioirqfd.kvm.ioctls import (
    KVM_EXIT_INTR,
    KVM_EXIT_IO,
    KVM_EXIT_MMIO,
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO,
    KVM_IRQFD,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_RUN,
)
from tests.conformance.machine import GSI, Event, Host, Machine, Watch, attempt, fdinfo, message_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioirqfd.kvm import Vcpu, Vm
    from tests.conformance.machine import Route

_MEMORY = 0x10000
_CODE = 0x1000
_STUBS = 0x2000
_DATA = 0x4000
_STACK = 0x7000
_STUB = 8
_DONE = 0xE0
_TAKEN = 0xE1
_IF = 0x200
_SVR = 0xF0
_IRR = 0x200
_ENABLED = 0x100
_LAPIC_EOI = 0xFEE0_00B0
_UNROUTED = 4000
_IOCTL = 16
_CHIPS = {"pic-master": 0, "pic-slave": 1, "ioapic": 2}
_MODES = {"fixed": 0, "lowest": 0x100, "init": 0x4500, "startup": 0x600}


class KernelEvent(Event):
    def __init__(self, host: KernelHost, fd: int) -> None:
        self.host = host
        self.fd = fd
        host.events.append(self)

    def signal(self, n: int = 1) -> object:
        return self.write(n)

    def read(self) -> object:
        if self.flags() & os.O_NONBLOCK:
            return attempt(os.eventfd_read, self.fd)
        word = bytearray(8)
        try:
            os.preadv(self.fd, [word], -1, os.RWF_NOWAIT)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return int.from_bytes(word, "little")

    def count(self) -> int:
        return int(fdinfo(self.fd)["eventfd-count"], 16)

    def dup(self) -> KernelEvent:
        return KernelEvent(self.host, os.dup(self.fd))

    def close(self) -> object:
        fd, self.fd = self.fd, -1
        return attempt(os.close, fd)

    async def waiting_read(self) -> int:
        loop = asyncio.get_running_loop()
        result = loop.create_future()
        twin = os.dup(self.fd)
        os.set_blocking(twin, True)

        def read() -> None:
            value = os.eventfd_read(twin)
            loop.call_soon_threadsafe(result.set_result, value)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            return await result
        finally:
            thread.join()
            os.close(twin)

    def watch(self) -> KernelWatch:
        return KernelWatch(self.fd)


class KernelWatch(Watch):
    def __init__(self, fd: int) -> None:
        self.epoll = select.epoll()
        self.epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    async def woken(self) -> bool:
        return bool(self.epoll.poll(0))

    async def stop(self) -> None:
        self.epoll.close()


def _entry(gsi: int, route: Route) -> RoutingEntry:
    kind, number = route[:2]
    if kind == "msi":
        cpu, mode, devid = message_of(route)
        address, data = message(number, cpu, mode)
        return RoutingEntry.msi(gsi, address, data, devid=devid)
    if kind == "type":
        return RoutingEntry(gsi, number, (0, 0))
    if kind == "chip":
        return RoutingEntry.irqchip(gsi, number, 0)
    if kind == "pic":
        return RoutingEntry.irqchip(gsi, 0, number) if number < 8 else RoutingEntry.irqchip(gsi, 1, number - 8)
    return RoutingEntry.irqchip(gsi, 2, number)


def message(vector: int, cpu: int = 0, mode: str = "fixed") -> tuple[int, int]:
    """Address and data of a message."""
    if mode == "lowest":  # by logical address, where cpu n is bit n and 0xff is everybody
        return 0xFEE0_0000 | (cpu if cpu == 0xFF else 1 << cpu) << 12 | 4, vector | _MODES[mode]
    return 0xFEE0_0000 | cpu << 12, vector | _MODES[mode]


class KernelMachine(Machine):
    def __init__(self, *, irqchip: str, cpus: int) -> None:
        self.stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            kvm = stack.enter_context(Kvm())
            self.vm: Vm = stack.enter_context(kvm.create_vm())
            if irqchip == "full":
                self.vm.create_irqchip()
            elif irqchip == "split":
                self.vm.create_split_irqchip()
            self.helper = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            stack.callback(os.close, self.helper)
            self.irqchip = irqchip
            self.cpus = cpus
            self.vcpus: list[Vcpu] = []
            self.stack = stack.pop_all()
        self.left: list[tuple[str, int]] = []

    @property
    def vcpu(self) -> Vcpu:
        """The first CPU; the guest's memory is made with it."""
        if not self.vcpus:
            self.memory = self.vm.add_memory(0, 0, _MEMORY)
            for vector in range(256):
                stub = _STUBS + _STUB * vector
                self.memory[vector * 4 : vector * 4 + 4] = stub.to_bytes(4, "little")
                self.memory[stub : stub + 5] = bytes([0xB0, vector, 0xE6, _TAKEN, 0xF4])
            for cpu in range(self.cpus):
                vcpu = self.stack.enter_context(self.vm.create_vcpu(cpu))
                self.vcpus.append(vcpu)
            sregs = self.vcpus[0].get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            self.vcpus[0].set_sregs(sregs)
        return self.vcpus[0]

    # -- ioctls ------------------------------------------------------------------------------------------------------

    def assign(self, event: Event | int, gsi: int = GSI, resample: Event | int | None = None) -> object:
        flags = 0 if resample is None else KVM_IRQFD_FLAG_RESAMPLE
        return attempt(self.vm.irqfd, _fd(event), gsi, flags=flags, resamplefd=_fd(resample))

    def assign_with_unknown_flag(self, event: Event) -> object:
        return attempt(self.vm.irqfd, _fd(event), GSI, flags=4)

    def assign_unreadable(self) -> object:
        return attempt(self.vm.ioctl, KVM_IRQFD, 8)

    async def deassign(self, event: Event | int, gsi: int = GSI, resample: int | None = None) -> object:
        flags = KVM_IRQFD_FLAG_DEASSIGN | (0 if resample is None else KVM_IRQFD_FLAG_RESAMPLE)
        return attempt(self.vm.irqfd, _fd(event), gsi, flags=flags, resamplefd=_fd(resample))

    def route(self, *entries: tuple[int, Route]) -> object:
        return attempt(self.vm.set_gsi_routing, [_entry(gsi, route) for gsi, route in entries])

    def line(self, gsi: int, level: int) -> int:
        return self.vm.irq_line_status(gsi, level)

    async def msi(self, vector: int, cpu: int = 0, mode: str = "fixed", *, devid: int | None = None) -> object:
        address, data = message(vector, cpu, mode)
        return attempt(self.vm.signal_msi, address, data, 0 if devid is None else 1, devid or 0)

    async def settle(self) -> None:
        # A signal of our own after theirs, in the same queue; its deassign waits for it, and for every irqfd that is on its
        # way out (rows I20, I21, W04).
        if self.irqchip != "none":
            self.vm.irqfd(self.helper, _UNROUTED)
            os.eventfd_write(self.helper, 1)
            self.vm.irqfd(self.helper, _UNROUTED, flags=KVM_IRQFD_FLAG_DEASSIGN)

    def _pair(self, field: str) -> int:
        master, slave = (getattr(self.vm.get_irqchip(chip).pic, field) for chip in (0, 1))
        return master | slave << 8

    def irr(self) -> int:
        return self._pair("irr")

    def isr(self) -> int:
        return self._pair("isr")

    def lines(self) -> int:
        return self._pair("last_irr")

    def imr(self) -> int:
        return self.vm.get_irqchip(0).pic.imr

    def pin(self, pin: int) -> int:
        return self.vm.get_irqchip(2).ioapic.redirtbl[pin] & 0xFFFF_FFFF

    def registers(self) -> tuple[int, int, int, int]:
        """irr(), isr(), imr() and lines() at a lower price."""
        master, slave = (self.vm.get_irqchip(chip).pic for chip in (0, 1))
        return (
            master.irr | slave.irr << 8,
            master.isr | slave.isr << 8,
            master.imr,
            master.last_irr | slave.last_irr << 8,
        )

    def vectors(self, cpu: int = 0) -> list[int]:
        assert self.vcpu
        lapic = self.vcpus[cpu].get_lapic()
        words = [lapic.register(_IRR + 0x10 * word) for word in range(8)]
        return [32 * word + bit for word, bits in enumerate(words) if bits for bit in range(32) if bits >> bit & 1]

    def enable(self, cpu: int = 0) -> None:
        assert self.vcpu
        lapic = self.vcpus[cpu].get_lapic()
        lapic.set_register(_SVR, lapic.register(_SVR) | _ENABLED)
        lapic.set_register(0xD0, 1 << 24 + cpu)
        self.vcpus[cpu].set_lapic(lapic)

    def started(self, cpu: int) -> bool:
        return self.vcpus[cpu].get_mp_state() in {KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED}

    # -- the guest ---------------------------------------------------------------------------------------------------

    def _prepare(self, code: bytes, *, ds: int = 0, flags: int = 2) -> None:
        vcpu = self.vcpu
        code += bytes([0xE6, _DONE])
        self.memory[_CODE : _CODE + len(code)] = code
        sregs = vcpu.get_sregs()
        if sregs.ds.base != ds:
            sregs.ds.base = ds
            vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = _CODE, _STACK, flags
        vcpu.set_regs(regs)

    def _finish(self) -> int | None:
        """Run to the end of the code, or to an interrupt, whose vector it returns. What is left to user space is noted."""
        vcpu = self.vcpu
        self.left.clear()
        taken = None
        while True:
            reason = vcpu.run()
            if reason == KVM_EXIT_IO:
                access = vcpu.io_exit()
                if access.port == _DONE:
                    break
                if access.port == _TAKEN:
                    taken = access.data[0]
                    break
                self.left.append(("pio", access.port))
                if access.is_write:
                    self.left.extend(("pio", access.port) for _ in range(access.count - 1))
            elif reason == KVM_EXIT_MMIO:
                self.left.append(("mmio", vcpu.mmio_exit().phys_addr))
            elif reason != KVM_EXIT_INTR:  # a signal to this thread, or a task work of the kernel's own
                raise AssertionError(f"exit {reason}")
        vcpu.kick()  # let it complete the port write, and no more
        vcpu.run()
        return taken

    def _execute(self, code: bytes, *, ds: int = 0) -> int:
        self._prepare(code, ds=ds)
        assert self._finish() is None
        return len(self.left)

    def out(self, port: int, value: int, size: int = 1) -> bool:
        instruction = {1: b"\xee", 2: b"\xef", 4: b"\x66\xef"}[size]
        code = b"\xba" + port.to_bytes(2, "little") + b"\x66\xb8" + value.to_bytes(4, "little") + instruction
        return not self._execute(code)

    def out_string(self, port: int, data: bytes) -> int:
        assert self.vcpu
        self.memory[_DATA : _DATA + len(data)] = data
        code = b"\xba" + port.to_bytes(2, "little") + b"\xbe" + _DATA.to_bytes(2, "little")
        return self._execute(code + b"\xb9" + len(data).to_bytes(2, "little") + b"\xf3\x6e")

    def mmio(self, address: int, value: int, size: int = 4) -> bool:
        instruction = {1: b"\xa2", 2: b"\xa3", 4: b"\x66\xa3"}[size]
        code = b"\x66\xb8" + value.to_bytes(4, "little") + instruction + (address & 0xFFF).to_bytes(2, "little")
        return not self._execute(code, ds=address & ~0xFFF)

    def take(self) -> int | None:
        self._prepare(b"\x90\x90\xfa", flags=2 | _IF)  # nop; nop; cli
        return self._finish()

    def end(self, vector: int) -> None:
        del vector
        self.mmio(_LAPIC_EOI, 0)

    async def halt(self) -> Callable[[], Awaitable[int]]:
        self._prepare(b"\xfb\xf4\xfa")  # sti; hlt; cli
        loop = asyncio.get_running_loop()
        result: asyncio.Future[int] = loop.create_future()

        def run() -> None:
            vector = self._finish()
            assert vector is not None
            loop.call_soon_threadsafe(result.set_result, vector)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        path = Path(f"/proc/self/task/{thread.native_id}/syscall")
        call = f"{_IOCTL} {self.vcpu.fileno():#x} {KVM_RUN:#x} "
        while not path.read_text("ascii").startswith(call):
            await asyncio.sleep(0)

        async def woken() -> int:
            vector = await result
            thread.join()
            return vector

        return woken

    # -- ioeventfd ---------------------------------------------------------------------------------------------------

    def doorbell(
        self,
        event: Event | int,
        address: int,
        length: int,
        match: int | None = None,
        space: str = "pio",
        flags: int = 0,
    ) -> object:
        flags |= KVM_IOEVENTFD_FLAG_PIO if space == "pio" else 0 if space == "mmio" else 0x20
        flags |= 0 if match is None else KVM_IOEVENTFD_FLAG_DATAMATCH
        return attempt(self.vm.ioeventfd, address, length, _fd(event), flags=flags, datamatch=match or 0)

    def undoorbell(
        self, event: Event | int, address: int, length: int, match: int | None = None, space: str = "pio"
    ) -> object:
        return self.doorbell(event, address, length, match, space, flags=KVM_IOEVENTFD_FLAG_DEASSIGN)

    async def close(self) -> None:
        self.stack.close()

    def second_reference(self) -> None:
        twin = os.dup(self.vm.fileno())
        os.close(self.vm.fileno())
        os.dup2(twin, self.vm.fileno())
        os.close(twin)

    def assign_to_no_machine(self, fd: int) -> object:
        irqfd = struct.pack("=4I16x", self.helper, GSI, 0, 0)
        return attempt(fcntl.ioctl, fd, KVM_IRQFD, irqfd)


def _fd(event: Event | int | None) -> int:
    return -1 if event is None else event if isinstance(event, int) else event.fd


class KernelHost(Host):
    name = "kernel"

    def __init__(self) -> None:
        super().__init__()
        self.events: list[KernelEvent] = []
        self.machines: list[KernelMachine] = []
        # One CPU, so that what is queued for injection is queued in one place.
        self.affinity = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(self.affinity)})

    def event(self, initial: int = 0, *, semaphore: bool = False, blocking: bool = False) -> KernelEvent:
        flags = os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if semaphore else 0) | (0 if blocking else os.EFD_NONBLOCK)
        return KernelEvent(self, os.eventfd(initial, flags))

    async def machine(self, *, irqchip: str = "full", cpus: int = 1) -> KernelMachine:
        machine = KernelMachine(irqchip=irqchip, cpus=cpus)
        self.machines.append(machine)
        return machine

    async def saturate(self, event: Event) -> None:
        machine = await self.machine()
        machine.doorbell(event, 0x90, 1)
        assert machine.out(0x90, 1)
        machine.undoorbell(event, 0x90, 1)

    async def in_child(self, machine: Machine, event: Event) -> list[object]:
        assert isinstance(machine, KernelMachine)
        spare = self.event()
        return await in_child(
            lambda: [
                machine.assign(spare),
                attempt(machine.vm.irqfd, event.fd, GSI, flags=KVM_IRQFD_FLAG_DEASSIGN),
                machine.route(),
                event.write(),
            ]
        )

    async def close(self) -> None:
        for machine in self.machines:
            await machine.close()
        for event in self.events:
            if event.fd >= 0:
                event.close()
        self.close_fds()
        os.sched_setaffinity(0, self.affinity)


async def in_child(call: Callable[[], list[object]]) -> list[object]:
    """What the call gives in a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, repr(call()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="ascii") as answer:  # noqa: PTH123
        text = answer.read()
    os.waitpid(child, 0)
    return [word.strip(" '") for word in text.strip("[]").split(",")]
