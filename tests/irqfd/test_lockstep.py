"""Threads that wait for each interrupt before they signal again, while the loop does all it can: one lost, and one of them stands still."""

from __future__ import annotations

import asyncio
import os
import random
import threading

import pytest

from aioirqfd import EventFd, IrqchipPin, IrqManager, WorkQueue

ROUNDS = 1000
PATIENCE = 60
"""Seconds after which an interrupt is taken for lost; nobody waits so long unless one is."""


class Sink:
    """Tells who waits for the interrupt; refuses now and then, and takes a turn of the loop then."""

    def __init__(self, chance, threads):
        self.chance = chance
        self.heard = [threading.Semaphore(0) for _ in range(threads)]

    async def inject(self, interrupt):
        await asyncio.sleep(0)
        self.heard[interrupt.gsi].release()

    def try_inject(self, interrupt):
        if self.chance.random() < 0.3:
            return False
        self.heard[interrupt.gsi].release()
        return True


class Device(threading.Thread):
    """Signals, by one way or the other, and waits until it has interrupted."""

    def __init__(self, number, kick, heard, chance):
        super().__init__()
        self.number, self.kick, self.heard, self.chance = number, kick, heard, chance
        self.rounds = 0

    def run(self):
        while self.rounds < ROUNDS:
            if self.chance.random() < 0.5:
                self.kick.signal()
            else:
                os.eventfd_write(self.kick.fileno(), 1)
            self.rounds += 1
            if not self.heard.acquire(timeout=PATIENCE):
                return


LOOKING, EVERYTHING = (0, 1, 2, 3), tuple(range(8))


async def disturb(irqs, irqfd, chance, what):
    """One of the things that a program may do meanwhile."""
    match chance.choice(what):
        case 0:
            irqfd.statistics()
        case 1:
            assert irqfd.pending in {True, False}
        case 2:
            irqfd.mask()
            irqfd.unmask()
        case 3:
            irqs.statistics()
        case 4:
            irqfd.mask()
            await asyncio.sleep(0)
            irqfd.unmask()
        case 5:
            await irqs.flush()
        case 6:
            await irqs.pause()
            irqs.snapshot()
            irqs.resume()
        case _:
            irqs.set_route(irqfd.gsi, IrqchipPin(chance.choice(["pic", "ioapic"]), irqfd.gsi))
    await asyncio.sleep(0)


@pytest.mark.stress
@pytest.mark.parametrize(("maxsize", "workers"), [(1, 1), (2, 3), (64, 1)])
# One alone has nobody whose next event would wake the loop for it too.
@pytest.mark.parametrize("threads", [1, 6])
# A flush, and much else, would dispatch what a look has left lying.
@pytest.mark.parametrize("what", [LOOKING, EVERYTHING], ids=["looking", "everything"])
async def test_every_signal_interrupts_whatever_the_loop_does(what, threads, maxsize, workers):
    chance = random.Random(maxsize)
    sink = Sink(chance, threads)
    counts = [0] * threads

    async def on_wakeup(irqfd, count):
        counts[irqfd.gsi] += count

    async with IrqManager(
        sink,
        queue=WorkQueue(maxsize=maxsize, workers=workers),
        routing={gsi: IrqchipPin("ioapic", gsi) for gsi in range(threads)},
    ) as irqs:
        kicks = [EventFd() for _ in range(threads)]
        irqfds = [irqs.assign(kick, gsi=gsi, wakeup=on_wakeup if gsi % 2 else ()) for gsi, kick in enumerate(kicks)]
        devices = [
            Device(gsi, kick, sink.heard[gsi], random.Random(100 * maxsize + gsi)) for gsi, kick in enumerate(kicks)
        ]
        for device in devices:
            device.start()
        while any(device.is_alive() for device in devices):
            await disturb(irqs, chance.choice(irqfds), chance, what)
        assert [device.rounds for device in devices] == [ROUNDS] * threads, "an interrupt was lost"
        # Neither more nor less, and no turn of the loop later: nobody had two signals under way.
        assert [semaphore.acquire(blocking=False) for semaphore in sink.heard] == [False] * threads
        assert [irqfd.statistics().signals for irqfd in irqfds] == [ROUNDS] * threads
        assert counts[1::2] == [ROUNDS] * (threads // 2)
        for kick in kicks:
            kick.close()
