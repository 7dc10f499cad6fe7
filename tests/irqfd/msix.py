"""What the tests of MSI-X tables share: a driver that programs vectors, and what is sent."""

from __future__ import annotations

import asyncio
import os

from aioirqfd import Msi, MsixTable

BASE = 0xFEE00000
ENABLE, FUNCTION_MASK = MsixTable.ENABLE, MsixTable.FUNCTION_MASK


def program(table, vector, data, *, address=BASE, masked=False):
    """What a guest's driver writes."""
    table.write(vector * 16 + 12, 1, 4)
    table.write(vector * 16, address, 8)
    table.write(vector * 16 + 8, data, 4)
    table.write(vector * 16 + 12, int(masked), 4)


def sent(sink):
    return [interrupt.route.data for interrupt in sink.interrupts]


def write(table, vector, count=1):
    os.eventfd_write(table.eventfd(vector).fileno(), count)


def nearly_full(left):
    """A routing table that leaves so many gsis."""
    return {gsi: Msi(0, gsi) for gsi in range(4096 - left)}


class Slow:
    def __init__(self):
        self.data = []
        self.on_injection = lambda: None

    async def inject(self, interrupt):
        await asyncio.sleep(0)
        self.data.append(interrupt.route.data)
        self.on_injection()
