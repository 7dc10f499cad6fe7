"""Faults planted inside of the device's process, in real managers and devices, each named by the ledger from the recorder's file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING

import pytest

from aioirqfd import EventFd, IrqManager, Retry
from aioirqfd.cli.main import main
from aioirqfd.faults import Faults, Match, Misroute
from aioirqfd.irqfd.workqueue import WorkQueue
from aioirqfd.pci import Bar, PciDevice, PciFunction
from aioirqfd.sinks import RecordingSink
from aioirqfd.tracing import FlightRecorder, read_flight
from aioirqfd.tracing.journey import Journeys
from aioirqfd.tracing.ledger import ledger
from aioirqfd.tracing.trouble import troubles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioirqfd import IrqFd

NAME = "Nvme-vectors"


class Rig:
    """A manager of a device's two vectors, of which the second is the one that gets lost."""

    def __init__(self) -> None:
        self.go_on, self.reached, self.given_up = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.kicks = [EventFd(), EventFd()]

    async def wait(self, *_: object) -> None:
        """In the place of whatever does not come to an end."""
        self.reached.set()
        await self.go_on.wait()

    async def fail(self, *_: object) -> None:
        self.reached.set()
        raise OSError(errno.EIO, "planted")


class Hanging:
    """Takes what is of vector 0, and waits with the rest."""

    def __init__(self, wait: Callable[..., Awaitable[None]]) -> None:
        self.wait = wait

    async def inject(self, interrupt) -> None:
        if interrupt.gsi:
            await self.wait()


async def masked(rig: Rig, irqs: IrqManager, lost: IrqFd) -> None:
    lost.mask()
    rig.kicks[1].signal()


async def paused(rig: Rig, irqs: IrqManager, lost: IrqFd) -> None:
    await irqs.pause()
    rig.kicks[1].signal()


async def signalled(rig: Rig, irqs: IrqManager, lost: IrqFd) -> None:
    rig.kicks[1].signal()
    await asyncio.sleep(0)


async def reached(rig: Rig, irqs: IrqManager, lost: IrqFd) -> None:
    rig.kicks[1].signal()
    await rig.reached.wait()
    await asyncio.sleep(0)


async def given_up(rig: Rig, irqs: IrqManager, lost: IrqFd) -> None:
    rig.kicks[1].signal()
    await rig.given_up.wait()


async def behind(rig: Rig, irqs: IrqManager, lost: IrqFd) -> None:
    """Vector 0's handler has the only worker."""
    rig.kicks[0].signal()
    await rig.reached.wait()
    rig.kicks[1].signal()
    while not lost.pending:
        await asyncio.sleep(0)


def plain(rig):
    return {"sink": RecordingSink()}, {}


PLANTED = {
    "masked": (plain, masked, "it is masked since"),
    "its manager is paused": (plain, paused, "its manager is paused since"),
    "no route": (
        lambda rig: ({"sink": RecordingSink(), "routing": {}}, {}),
        signalled,
        "dropped, for there was no route",
    ),
    "held for a route": (
        lambda rig: ({"sink": RecordingSink(), "routing": {}, "unrouted": "hold"}, {}),
        signalled,
        "its gsi has no route, it is held since",
    ),
    "its handler hangs": (
        lambda rig: ({"sink": RecordingSink()}, {1: rig.wait}),
        reached,
        "its handler was called and has not returned",
    ),
    "its handler raises": (
        lambda rig: ({"sink": RecordingSink(), "retry": Retry(5, 3600, 3600)}, {1: rig.fail}),
        reached,
        "its handler raised, and it is tried again",
    ),
    "the sink hangs": (lambda rig: ({"sink": Hanging(rig.wait)}, {}), reached, "the sink has had it for"),
    "the sink raises": (
        lambda rig: ({"sink": Hanging(rig.fail), "retry": Retry(5, 3600, 3600)}, {}),
        reached,
        "the sink or its handler has raised, and it is tried again",
    ),
    "the sink has failed for good": (
        lambda rig: (
            {"sink": Hanging(rig.fail), "retry": Retry(1, 0, 0), "on_error": lambda _: rig.given_up.set()},
            {},
        ),
        given_up,
        "has failed for good; resume() tries again",
    ),
    "no worker is free": (
        lambda rig: ({"sink": RecordingSink(), "queue": WorkQueue(workers=1)}, {0: rig.wait, 1: rig.wait}),
        behind,
        "it waits for a worker of the queue; the workers have vector 0 (gsi 0, fd ",
    ),
}


@pytest.mark.trouble
@pytest.mark.parametrize("planted", PLANTED)
async def test_what_stops_in_this_process_is_named_in_ten_lines(tmp_path, capsys, planted):
    make, plant, said = PLANTED[planted]
    path, rig, found = tmp_path / "flight", Rig(), None
    given, handlers = make(rig)
    with FlightRecorder(path) as recorder, rig.kicks[0], rig.kicks[1], contextlib.suppress(EndedError):
        async with IrqManager(tracer=recorder, name=NAME, **given) as irqs:
            irqfds = [
                irqs.assign(kick, gsi=vector, name=f"vector {vector}", wakeup=handlers.get(vector))
                for vector, kick in enumerate(rig.kicks)
            ]
            await plant(rig, irqs, irqfds[1])
            found = ledger(read_flight(path), slow_ns=0)
            assert main(["ledger", "--recorder", str(path)]) in {0, 1}  # late after 10 ms
            raise EndedError
    assert found is not None
    (entry,) = (entry for entry in found.entries if entry.vector == 1)
    assert entry.owed
    assert said in entry.said
    assert any(said in line for line in str(found).splitlines()[:10])
    assert "where they differ" in capsys.readouterr().out


class EndedError(Exception):
    """The program ends, and whatever it owes is not waited for."""


class Three(PciDevice):
    bars = (Bar(4096),)
    vectors = 3


@pytest.mark.parametrize(("fault", "said"), [(Misroute(2), "1 of 2 interrupts went out by vector 2"), (None, None)])
async def test_a_wrong_vector_is_named_by_the_records_alone(tmp_path, fault, said):
    """The device has signalled one vector, and gone out by another: neither QEMU's book nor the guest's is needed."""
    path = tmp_path / "flight"
    faults = Faults(nonconforming=True)
    with FlightRecorder(path) as recorder, contextlib.closing(faults):
        async with PciFunction(faults.wrap(Three()), tracer=recorder) as function:
            for vector in range(3):
                function.interrupts.bind(vector, EventFd())
            if fault is not None:
                faults.add(Match("interrupt", vector=1, count=1), fault)
            for vector in (0, 1, 1):
                function.device.interrupt(vector)
                await function.interrupts.flush()
        log = read_flight(path)
    found = ledger(log)
    wrong = [one.text for one in troubles(log, Journeys.of(log), slow_ns=10**18) if one.what == "wrong_vector"]
    owed = [entry for entry in found.entries if entry.owed]
    if said is None:
        assert (wrong, owed) == ([], [])
    else:
        (text,) = wrong
        assert said in text
        assert [(entry.vector, entry.said) for entry in owed] == [(1, text)]
