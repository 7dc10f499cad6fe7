"""aioirqfd's back-end: EventFd, IrqManager, Pic, IoApic and IoBus, with a CPU that the scenario plays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
from typing import TYPE_CHECKING, cast

from aioirqfd import EventFd, IoBus, IrqchipPin, IrqManager, Msi
from aioirqfd.errors import ClosedError, WouldBlock
from aioirqfd.kvm import Kvm, Vm
from aioirqfd.sinks import KvmSink, RecordingSink
from tests.conformance.chipset import Chipset
from tests.conformance.kernel import KernelMachine, in_child, message
from tests.conformance.machine import GSI, Event, Host, Machine, Watch, attempt, attempt_async, fdinfo, message_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioirqfd import IrqFd
    from aioirqfd.irqfd.irqfds import Irqfds
    from tests.conformance.machine import Route

_PIC_PORTS = {0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1}
_IOAPIC = 0xFEC0_0000
_MEMORY = 0x10000
_MESSAGE_GSI = 4000
_TURNS = 16
"""Of the loop, where there is no manager that could be asked to flush."""


class OurEvent(Event):
    def __init__(self, host: OurHost, eventfd: EventFd) -> None:
        self.host = host
        self.eventfd = eventfd
        host.events.append(self)

    @property
    def fd(self) -> int:  # type: ignore[override]
        return self.eventfd.fileno()

    def signal(self, n: int = 1) -> object:
        added = attempt(self.eventfd.signal, n)
        return "ok" if added == n else added

    def read(self) -> object:
        return attempt(self.eventfd.read_nowait)

    def count(self) -> int:
        # Counts may stay unread in a bound eventfd until somebody asks; a semaphore's never do.
        for machine in self.host.machines:
            for irqfd in machine.irqs.irqfds if machine.irqs is not None else ():
                if irqfd.eventfd is self.eventfd and not self.eventfd.semaphore:
                    irqfd.statistics()
        return int(fdinfo(self.fd)["eventfd-count"], 16) + self.eventfd._count

    def id(self) -> int:
        return self.eventfd.id

    def dup(self) -> OurEvent:
        return OurEvent(self.host, EventFd.from_fd(os.dup(self.fd), owns=True))

    def close(self) -> object:
        return attempt(self.eventfd.close)

    async def waiting_read(self) -> int:
        return await self.eventfd.read()

    def watch(self) -> OurWatch:
        return OurWatch(self.eventfd)


class OurWatch(Watch):
    def __init__(self, eventfd: EventFd) -> None:
        self.eventfd = eventfd
        self.task = asyncio.ensure_future(eventfd.wait())

    async def woken(self) -> bool:
        for _ in range(4):
            await asyncio.sleep(0)
        if not self.task.done():
            return False
        if self.task.exception() is not None:
            return False
        self.task = asyncio.ensure_future(_never())
        return True

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ClosedError):
            await self.task


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


def _route(route: Route) -> IrqchipPin | Msi:
    kind, number = route[:2]
    if kind == "msi":
        cpu, mode, devid = message_of(route)
        address, data = message(number, cpu, mode)
        return Msi(address, data, devid=devid)
    if kind == "type":
        return object()  # type: ignore[return-value]
    return IrqchipPin(f"chip {number}" if kind == "chip" else kind, number)


def _table(entries: tuple[tuple[int, Route], ...]) -> dict[int, list[IrqchipPin | Msi]]:
    table: dict[int, list[IrqchipPin | Msi]] = {}
    for gsi, route in entries:
        # The last that is listed is the one an end of interrupt goes to (row G08): a dict keeps its order.
        table.setdefault(gsi, []).append(_route(route))
    return table


def default_routes() -> list[tuple[int, Route]]:
    """The kernel's first table: gsi n is pin n of the IOAPIC, and below 16 of the PIC pair too."""
    entries: list[tuple[int, Route]] = []
    for pin in range(24):
        entries.append((pin, ("ioapic", pin)))
        if pin < 16:
            entries.append((pin, ("pic", pin)))
    return entries


class OurMachine(Machine):
    irqs: IrqManager | None

    def __init__(self, host: OurHost, cpus: int) -> None:
        self.host = host
        self.output: asyncio.Event | None = None
        self.chips = Chipset(cpus, self._on_output)
        self.bus = IoBus()
        self.irqs = IrqManager(self.chips, routing=_table(tuple(default_routes())))
        self.chips.resample = self.irqs.resample
        self.held: IrqFd | None = None

    def _on_output(self, level: bool) -> None:
        if self.output is not None and level:
            self.output.set()

    @property
    def manager(self) -> IrqManager:
        assert self.irqs is not None
        return self.irqs

    # -- irqfds ------------------------------------------------------------------------------------------------------

    def assign(self, event: Event | int, gsi: int = GSI, resample: Event | int | None = None) -> object:
        result = attempt(self.manager.assign, _eventfd(event), gsi=gsi, resamplefd=_eventfd(resample))
        return result if isinstance(result, str) else "ok"

    def assign_with_unknown_flag(self, event: Event) -> object:
        # There is no flags word: what it does not know is a wakeup handler that cannot be called.
        return attempt(self.manager.assign, _eventfd(event), gsi=GSI, wakeup=[4])

    def assign_unreadable(self) -> object:
        try:
            self.manager.assign(object(), gsi=GSI)  # type: ignore[arg-type]
        except TypeError:
            return "EFAULT"
        return "ok"

    def find(self, event: Event | int, gsi: int) -> IrqFd | None:
        """The irqfd by the kernel's key (row I14)."""
        return self.manager.find(_eventfd(event), gsi=gsi)  # type: ignore[arg-type]

    async def deassign(self, event: Event | int, gsi: int = GSI, resample: int | None = None) -> object:
        del resample  # there is none to name
        return await attempt_async(self.manager.deassign(_eventfd(event), gsi=gsi))  # type: ignore[arg-type]

    def route(self, *entries: tuple[int, Route]) -> object:
        return attempt(lambda: self.manager.set_routing(_table(entries)))

    def line(self, gsi: int, level: int) -> int:
        # The sum of what the chips say, and -1 only if all ignored it (row L02).
        results = [self.chips.set_irq(route, level) for route in self.manager.routing.routes(gsi)]
        counted = [result for result in results if result >= 0]
        return sum(counted) if counted else -1

    async def msi(self, vector: int, cpu: int = 0, mode: str = "fixed", *, devid: int | None = None) -> object:
        # There is no call that sends a message: it is an irqfd's.
        said = attempt(lambda: self.manager.set_route(_MESSAGE_GSI, Msi(*message(vector, cpu, mode), devid=devid)))
        if said != "ok":
            return said
        requested = self.chips.apics.requested
        waited = [set(vectors) for vectors in requested]
        for vectors in requested:
            vectors.clear()
        with EventFd() as event:
            irqfd = self.manager.assign(event, gsi=_MESSAGE_GSI)
            event.signal()
            await self.manager.deassign(irqfd)
        taken = sum(vector in vectors for vectors in requested)
        for vectors, before in zip(requested, waited, strict=True):
            vectors.update(before)
        return taken

    async def settle(self) -> None:
        if self.irqs is not None:
            await self.irqs.flush()
        for _ in range(_TURNS if self.held is not None else 0):
            await asyncio.sleep(0)

    # -- what is seen ------------------------------------------------------------------------------------------------

    def _pair(self, name: str) -> int:
        state = self.chips.pic.snapshot()
        return state["master"][name] | state["slave"][name] << 8  # type: ignore[index]

    def irr(self) -> int:
        return self._pair("irr") | self.chips.pic._master.wired

    def isr(self) -> int:
        return self._pair("isr")

    def lines(self) -> int:
        return self._pair("sensed")

    def imr(self) -> int:
        return self.chips.pic.io_read(0x21)

    def registers(self) -> tuple[int, int, int, int]:
        """irr(), isr(), imr() and lines() at a lower price."""
        return self.irr(), self.isr(), self.imr(), self.lines()

    def pin(self, pin: int) -> int:
        self.chips.ioapic.mmio_write(0, 0x10 + 2 * pin)
        return self.chips.ioapic.mmio_read(0x10)

    def vectors(self, cpu: int = 0) -> list[int]:
        return sorted(self.chips.apics.requested[cpu])

    def enable(self, cpu: int = 0) -> None:
        self.chips.apics.enabled[cpu] = True

    def started(self, cpu: int) -> bool:
        return self.chips.apics.started(cpu)

    # -- the guest ---------------------------------------------------------------------------------------------------

    def out(self, port: int, value: int, size: int = 1) -> bool:
        if port in _PIC_PORTS:  # a chip's own ports come before the doorbells (row O16)
            self.chips.pic.io_write(port, value)
            return True
        return self.bus.write(port, value, size, space="pio")

    def out_string(self, port: int, data: bytes) -> int:
        return sum(not self.out(port, byte) for byte in data)

    def mmio(self, address: int, value: int, size: int = 4) -> bool:
        if address < _MEMORY:  # memory is written, and nobody hears of it (row O17)
            return True
        if _IOAPIC <= address < _IOAPIC + 0x100:
            self.chips.ioapic.mmio_write(address - _IOAPIC, value, size)
            return True
        return self.bus.write(address, value, size, space="mmio")

    def take(self) -> int | None:
        if self.chips.pic.output:
            return self.chips.pic.intack()
        requested = self.chips.apics.requested[0] if self.chips.apics.requested else set()
        if requested:
            vector = max(requested)
            requested.discard(vector)
            return vector
        return None

    def end(self, vector: int) -> None:
        self.chips.ioapic.eoi(vector)

    async def halt(self) -> Callable[[], Awaitable[int]]:
        self.output = asyncio.Event()
        if self.chips.pic.output:
            self.output.set()

        async def woken() -> int:
            assert self.output is not None
            await self.output.wait()
            vector = self.take()
            assert vector is not None
            return vector

        return woken

    # -- ioeventfd ---------------------------------------------------------------------------------------------------

    def doorbell(
        self, event: Event | int, address: int, length: int, match: int | None = None, space: str = "pio"
    ) -> object:
        def register() -> None:
            self.bus.ioeventfd(_open(event), address=address, length=length, datamatch=match, space=space)  # type: ignore[arg-type]

        return attempt(register)

    def undoorbell(
        self, event: Event | int, address: int, length: int, match: int | None = None, space: str = "pio"
    ) -> object:
        def remove() -> None:
            self.bus.deassign(_open(event), address=address, length=length, datamatch=match, space=space)  # type: ignore[arg-type]

        return attempt(remove)

    async def migrate(self, meanwhile: Callable[[], object]) -> OurMachine:
        """The machine on other chips and under another manager, by their snapshots; signals come meanwhile."""
        old, new = self.manager, OurMachine(self.host, len(self.chips.apics.enabled))
        await old.pause()
        meanwhile()
        irqfds = [(irqfd.eventfd, irqfd.gsi, irqfd.resamplefd) for irqfd in old.irqfds]
        state = json.loads(json.dumps([old.snapshot(), self.chips.pic.snapshot(), self.chips.ioapic.snapshot()]))
        self.irqs = None
        await old.aclose()
        new.bus = self.bus
        new.chips.slow = self.chips.slow
        vars(new.chips.apics).update(vars(self.chips.apics))
        await new.manager.__aenter__()
        await new.manager.pause()
        for eventfd, gsi, resamplefd in irqfds:
            new.manager.assign(eventfd, gsi=gsi, resamplefd=resamplefd)
        new.chips.pic.restore(state[1])
        new.chips.ioapic.restore(state[2])
        new.manager.restore(state[0])
        new.manager.resume()
        self.host.machines[self.host.machines.index(self)] = new
        return new

    async def close(self) -> None:
        irqs, self.irqs = self.irqs, None
        if self.held is not None:
            await cast("Irqfds", self.held._binding.owner).close(abort=False)
        elif irqs is not None:
            await irqs.aclose()

    def second_reference(self) -> None:
        # An irqfd is a reference to its manager.
        self.held = self.manager.irqfds[0]
        self.irqs = self.chips.resample = None
        gc.collect()

    def assign_to_no_machine(self, fd: int) -> object:
        # Refused one step earlier, as where there is no irqchip (row I01).
        def make() -> None:
            with Vm(os.dup(fd)) as vm:
                KvmSink(vm)

        return attempt(make)


class NoIrqchip(OurMachine):
    """A virtual machine that nobody gave an interrupt controller: a KvmSink for it is refused, and so there is no irqfd.

    To deassign from there is a manager of another sink, one that is no interrupt controller.
    """

    def __init__(self, host: OurHost) -> None:
        super().__init__(host, 0)
        self.irqs = IrqManager(RecordingSink(), routing={})

    def _sink(self) -> object:
        def make() -> None:
            with Kvm() as kvm, kvm.create_vm() as vm:
                IrqManager(KvmSink(vm))

        return attempt(make)

    def assign(self, event: Event | int, gsi: int = GSI, resample: Event | int | None = None) -> object:
        del event, gsi, resample
        return self._sink()

    def assign_with_unknown_flag(self, event: Event) -> object:
        return self._sink()

    def route(self, *entries: tuple[int, Route]) -> object:
        del entries
        return self._sink()


def _eventfd(event: Event | int | None) -> EventFd | int | None:
    return event.eventfd if isinstance(event, OurEvent) else event  # type: ignore[return-value]


def _open(event: Event | int) -> EventFd:
    return event.eventfd if isinstance(event, OurEvent) else EventFd.from_fd(event)  # type: ignore[arg-type]


class OurHost(Host):
    name = "aioirqfd"

    def __init__(self) -> None:
        super().__init__()
        self.events: list[OurEvent] = []
        self.machines: list[OurMachine] = []
        self.kernels: list[KernelMachine] = []

    def event(self, initial: int = 0, *, semaphore: bool = False, blocking: bool = False) -> OurEvent:
        if blocking:
            flags = os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if semaphore else 0)
            return OurEvent(self, EventFd.from_fd(os.eventfd(initial, flags), owns=True))
        return OurEvent(self, EventFd(initial, semaphore=semaphore))

    async def machine(self, *, irqchip: str = "full", cpus: int = 1) -> OurMachine:
        machine = NoIrqchip(self) if irqchip == "none" else OurMachine(self, cpus)
        self.machines.append(machine)
        if machine.irqs is not None:
            await machine.irqs.__aenter__()
        return machine

    async def saturate(self, event: Event) -> None:
        machine = KernelMachine(irqchip="full", cpus=1)
        self.kernels.append(machine)
        machine.doorbell(event.fd, 0x90, 1)
        assert machine.out(0x90, 1)

    async def in_child(self, machine: Machine, event: Event) -> list[object]:
        assert isinstance(machine, OurMachine)
        spare = self.event()
        manager = machine.manager

        def call() -> list[object]:
            def deassign() -> object:
                with contextlib.suppress(StopIteration):
                    return manager.deassign(_eventfd(event), gsi=GSI).send(None)  # type: ignore[arg-type]
                return None

            return [
                machine.assign(spare),
                attempt(deassign),
                machine.route(),
                event.write(),
            ]

        return await in_child(call)

    async def close(self) -> None:
        for machine in self.machines:
            await machine.close()
        for event in self.events:
            event.eventfd.close()
        for kernel in self.kernels:
            await kernel.close()
        self.close_fds()


__all__ = ["OurHost", "WouldBlock"]
