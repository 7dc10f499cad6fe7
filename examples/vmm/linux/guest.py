"""The machine in place of QEMU in tests: ``aioirqfd.testing.guest(device, vmm=examples.vmm.linux.guest.machine)``."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from examples.vmm.linux import address_map as at
from examples.vmm.linux.bzimage import BzImage
from examples.vmm.linux.machine import Ending, Machine
from examples.vmm.linux.power import Power
from examples.vmm.linux.uart import Uart
from examples.vmm.streams import FdSource, Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path
    from socket import socket

    from aioirqfd.pci import PciDevice
    from aioirqfd.tracer import Tracer

_PORTS = ((at.COM1_PORTS, at.COM1_GSI), (at.COM2_PORTS, at.COM2_GSI))


@contextlib.asynccontextmanager
async def machine(
    devices: Sequence[PciDevice],
    *,
    kernel: Path,
    initrd: bytes,
    append: str,
    memory: int,
    cpus: int,
    serial: tuple[socket, socket],
    tracer: Tracer,
) -> AsyncGenerator[Machine]:
    """A machine that runs while the context lasts; an ``aioirqfd.testing.Vmm``. It needs /dev/kvm.

    Raises:
        BootError: The kernel cannot be loaded.
        OSError: There is no KVM here, or something that it needs.
        MachineError: At the end: KVM could not go on with it.
    """
    image = BzImage(kernel.read_bytes(), str(kernel))  # noqa: ASYNC240  before anything runs
    async with contextlib.AsyncExitStack() as stack:
        pc = await stack.enter_async_context(Machine(memory=memory << 20, cpus=cpus, tracer=tracer))
        pc.load(image, initramfs=initrd, command_line=append)
        pc.ports.add(Power(pc.end))
        uarts: list[Uart] = []
        for end, (ports, gsi) in zip(serial, _PORTS, strict=True):
            end.setblocking(False)
            name = f"ttyS{len(uarts)}"
            uart = Uart(Output(end.fileno(), name), FdSource(end.fileno(), name), ports=ports)
            stack.callback(uart.close)
            pc.ports.add(uart)
            pc.irqs.assign(uart.trigger, gsi=gsi, name=name)
            uarts.append(uart)
        for device in devices:
            await pc.pci.plug(device)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_run(pc, uarts, serial))
            yield pc
            pc.end(Ending.STOPPED)
            await running


async def _run(pc: Machine, uarts: Sequence[Uart], serial: Sequence[socket]) -> None:
    """Run the guest to its end; then hang up, by which the test knows."""
    async with asyncio.TaskGroup() as group:
        serving = [group.create_task(uart.run()) for uart in uarts]
        ending = await pc.run()
        if ending is not Ending.STOPPED:
            for uart in uarts:
                await uart.wait_written()
        for task in serving:
            task.cancel()
    for end in serial:
        end.close()
