"""The machine: RAM, vCPUs in threads, interrupt controllers in the kernel, and ports for devices that live on the loop."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd import IrqchipPin, IrqManager
from aioirqfd.kvm import GuestRam, Kvm, LoopCalls, VcpuThread
from aioirqfd.kvm.ioctls import (
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR,
    KVM_EXIT_SHUTDOWN,
    KVM_PIT_SPEAKER_DUMMY,
)
from aioirqfd.kvm.structures import KVM_IOAPIC_NUM_PINS
from aioirqfd.pci import PciBus
from aioirqfd.sinks import KvmSink
from aioirqfd.tracer import NULL_TRACER
from examples.vmm.linux import address_map as at
from examples.vmm.linux import boot, cpuid, long_mode
from examples.vmm.linux.errors import MachineError
from examples.vmm.linux.ports import PortTable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from aioirqfd.kvm import Vcpu, Vm
    from aioirqfd.tracer import Tracer
    from examples.vmm.linux.bzimage import BzImage

# To the IOAPIC alone. Linux masks the PICs, and the kernel watches only eventfds that have one destination.
_ROUTING: Final = {gsi: IrqchipPin("ioapic", gsi) for gsi in range(KVM_IOAPIC_NUM_PINS)}
_REASONS: Final = {
    KVM_EXIT_FAIL_ENTRY: "the CPU refuses its state (KVM_EXIT_FAIL_ENTRY)",
    KVM_EXIT_INTERNAL_ERROR: "KVM cannot go on with it (KVM_EXIT_INTERNAL_ERROR)",
}


@final
class Ending(enum.Enum):
    """How a run ended."""

    POWER_OFF = "the guest switched itself off"
    RESET = "the guest wants to be started anew"
    PANIC = "the guest's kernel panicked"
    TRIPLE_FAULT = "the guest crashed: a triple fault"
    STOPPED = "stopped from outside"


@final
class Machine:
    """A PC for Linux on KVM. It runs once.

    ::

        async with Machine(memory=512 << 20, cpus=2) as machine:
            machine.load(BzImage(Path("/boot/vmlinuz").read_bytes()), command_line="console=ttyS0")
            machine.ports.add(Power(machine.end))
            machine.ports.add(uart)
            machine.irqs.assign(uart.trigger, gsi=address_map.COM1_GSI)
            ending = await machine.run()

    An async context manager, on the loop. Leaving it stops the vCPUs and releases everything.

    Args:
        memory: Bytes of RAM, a multiple of the page size.
        cpus: vCPUs, 1..254. The first one boots; Linux starts the others.
        shared: Whether the RAM can be given to other processes. Linux boots faster in memory that cannot (:class:`aioirqfd.kvm.GuestRam`).
        offload: Whether the kernel watches the eventfds of interrupts by itself (:class:`aioirqfd.sinks.KvmSink`).
        doorbells: Whether the kernel rings the doorbells of devices by itself (``KVM_IOEVENTFD``).
        tracer: Hears what the :class:`aioirqfd.IrqManager` does.

    Attributes:
        vm: The VM, for ioeventfds.
        ram: The guest's memory.
        irqs: Its interrupts; gsi n is pin n of the IOAPIC.
        calls: The vCPU threads' way to what belongs to the loop.
        pci: The PCI bus, to plug devices in before :meth:`run`.
        ports: Who answers the guest's accesses; to be filled before :meth:`run`. What is nobody's there goes to the PCI bus.
    """

    vm: Vm
    ram: GuestRam
    irqs: IrqManager
    calls: LoopCalls
    pci: PciBus

    def __init__(
        self,
        *,
        memory: int,
        cpus: int = 1,
        shared: bool = False,
        offload: bool = True,
        doorbells: bool = True,
        tracer: Tracer = NULL_TRACER,
    ) -> None:
        self._memory: Final = memory
        self._cpus: Final = cpus
        self._shared: Final = shared
        self._offload: Final = offload
        self._doorbells: Final = doorbells
        self._tracer: Final = tracer
        self._stack = contextlib.AsyncExitStack()
        self._vcpus: Final[list[Vcpu]] = []
        self._threads: Final[list[VcpuThread]] = []
        self._starting = threading.Lock()  # a thread that was told to stop cannot be started any more
        self._watching: Final[list[asyncio.Task[None]]] = []
        self.ports: Final = PortTable()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ending] = self._loop.create_future()
        async with contextlib.AsyncExitStack() as stack:  # released from the bottom up, whatever fails
            kvm = stack.enter_context(Kvm())
            self.vm = stack.enter_context(kvm.create_vm())
            self.vm.set_tss_addr(at.TSS)
            self.vm.create_irqchip()
            self.vm.create_pit(KVM_PIT_SPEAKER_DUMMY)
            self.ram = stack.enter_context(GuestRam(self._memory, shared=self._shared))
            self.ram.attach(self.vm)
            for number in range(self._cpus):
                vcpu = stack.enter_context(self.vm.create_vcpu(number))
                vcpu.set_cpuid2(cpuid.leaves(kvm, apic_id=number))
                self._vcpus.append(vcpu)
            sink = stack.enter_context(KvmSink(self.vm, offload=self._offload))
            self.irqs = await stack.enter_async_context(IrqManager(sink, routing=_ROUTING, tracer=self._tracer))
            self.calls = stack.enter_context(LoopCalls())
            kernel = self.vm if self._doorbells else None
            self.pci = await stack.enter_async_context(
                PciBus(self.irqs, self.calls, vm=kernel, ram=self.ram, tracer=self._tracer)
            )
            self.ports.bus = self.pci
            stack.push_async_callback(self._stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    def load(self, kernel: BzImage, *, initramfs: bytes = b"", command_line: str = "") -> None:
        """Load Linux, and let the first vCPU begin there. Before :meth:`run`; or else restore another machine's state.

        Raises:
            BootError: The memory is too small, or the command line too long.
        """
        boot.load(self.ram, kernel, initramfs=initramfs, command_line=command_line, cpus=self._cpus)
        long_mode.enter(self._vcpus[0], self.ram, kernel.entry)

    @property
    def vcpus(self) -> Sequence[Vcpu]:
        """Its vCPUs; the first one boots."""
        return self._vcpus

    async def run(self) -> Ending:
        """Run the guest to its end; once.

        Returns:
            How it ended; the vCPUs have stopped by then.

        Raises:
            MachineError: KVM cannot go on with it.
            Exception: What a device raised when the guest accessed it.
            RuntimeError: It has run already.

        Cancellation: The vCPUs are stopped first.
        """
        if self._threads:
            raise RuntimeError("a machine runs once: make another one")
        try:
            with self._starting:
                self._threads.extend(
                    VcpuThread(vcpu, self.ports, name=f"vcpu {number}") for number, vcpu in enumerate(self._vcpus)
                )
                self._watching.extend(map(self._loop.create_task, map(self._watch, self._threads, self._vcpus)))
                self.resume()  # what was restored
                for thread in self._threads:
                    thread.start()
            return await self._ended
        finally:
            await self._stop()

    async def pause(self, *, timeout: float = 30) -> None:  # noqa: ASYNC109  as PciFunction.pause()
        """Let everything stand still, between two instructions of the guest: for :mod:`examples.vmm.linux.snapshot`.

        What a device has begun is ended first; its interrupt is with the vCPU, or pending.

        Args:
            timeout: Seconds that each device has for that.

        Raises:
            TimeoutError: One needs longer. The machine runs on; so it does if this is cancelled.
        """
        try:
            for thread in self._threads:
                await thread.pause()
            for slot in self.pci.slots.values():
                await slot.function.pause(timeout=timeout)
            await self.irqs.pause()
        except BaseException:
            self.resume()
            raise

    def resume(self) -> None:
        """Go on. Nothing happens if it was not paused."""
        if self.irqs.paused:
            self.irqs.resume()
        for slot in self.pci.slots.values():
            if slot.function.paused:
                slot.function.resume()
        for thread in self._threads:
            thread.resume()

    def end(self, ending: Ending) -> None:
        """Let :meth:`run` return this. The first one counts. From any thread; from a device's, its vCPU does not go on."""
        self._loop.call_soon_threadsafe(self._settle, ending)
        with self._starting:
            for thread in self._threads:
                thread.request_stop()

    async def _watch(self, thread: VcpuThread, vcpu: Vcpu) -> None:
        """Wait for the end of a vCPU's thread, which ends the run."""
        try:
            reason = await thread.wait()
        except Exception as error:
            self._settle(error)
            return
        if reason == KVM_EXIT_SHUTDOWN:
            self._settle(Ending.TRIPLE_FAULT)
        elif reason != KVM_EXIT_INTR:
            why = _REASONS.get(reason, f"exit reason {reason}")
            self._settle(MachineError(f"the guest stands at {vcpu.get_regs().rip:#x} of {thread.name}: {why}"))

    def _settle(self, ending: Ending | Exception) -> None:
        if self._ended.done():
            return
        if isinstance(ending, Ending):
            self._ended.set_result(ending)
        else:
            self._ended.set_exception(ending)

    async def _stop(self) -> None:
        for thread in self._threads:
            thread.request_stop()
        for thread in self._threads:
            await thread.stop()
        await asyncio.gather(*self._watching)
