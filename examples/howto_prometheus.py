"""Counts of interrupts for Prometheus, scraped once."""

from __future__ import annotations

import asyncio
import urllib.request

from prometheus_client import CollectorRegistry, start_http_server

from aioirqfd import EventFd, IrqManager
from aioirqfd.prometheus import IrqfdCollector
from aioirqfd.sinks import RecordingSink


# docs: begin example
async def main() -> None:
    """Be scraped while interrupts are delivered."""
    registry = CollectorRegistry()  # a program of yours takes prometheus_client.REGISTRY
    registry.register(IrqfdCollector())
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)  # and a port of its own, such as 9000
    async with IrqManager(RecordingSink(), name="vmm") as irqs:
        with EventFd() as kick:
            irqs.assign(kick, gsi=4, name="uart")
            kick.signal(3)
            await irqs.flush()
            await asyncio.to_thread(scrape, server.server_port)
            # docs: end example
    server.shutdown()
    server.server_close()
    thread.join()


def scrape(port: int) -> None:
    """What Prometheus does every few seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(
                ("aioirqfd_irqfd_signals", "aioirqfd_irqfd_inj", "aioirqfd_irqfd_coal", "aioirqfd_silent")
            ):
                print(line)


asyncio.run(main())
