"""SET_IRQS against a model of it: whatever a client says in whatever order, each interrupt is somewhere, and only once."""

from __future__ import annotations

import asyncio
import contextlib
import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aioirqfd.pci import Bar, Msi, MsiX, PciDevice, PciFunction
from aioirqfd.vfio_user.errors import RefusedError
from aioirqfd.vfio_user.irqs import Irqs
from aioirqfd.vfio_user.messages import SetIrq

VECTORS = 4
COUNTS = {0: 1, 1: 2, 2: VECTORS, 3: 1, 4: 1}
DATA = (SetIrq.DATA_NONE, SetIrq.DATA_BOOL, SetIrq.DATA_EVENTFD)
ACTIONS = (SetIrq.MASK, SetIrq.UNMASK, SetIrq.TRIGGER)


class Plain(PciDevice):
    bars = (Bar(4096),)
    capabilities = (Msi(2), MsiX(VECTORS))
    intx = True


class Vector:
    """What the specification says of one interrupt."""

    def __init__(self) -> None:
        self.target: int | None = None
        self.kind: int | None = None
        self.masked = False
        self.pending = False

    def settle(self, written: dict[int, int]) -> None:
        if self.pending and self.target is not None and not self.masked:
            self.pending = False
            written[self.target] += 1


class Interrupting(RuleBasedStateMachine):
    """One device, one client; every eventfd is kept and counted."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.function = PciFunction(Plain())
        self.loop.run_until_complete(self.function.__aenter__())
        self.irqs = Irqs(self.function)  # type: ignore[arg-type]
        self.vectors = {number: Vector() for number in range(VECTORS)}
        self.others: dict[int, int | None] = {3: None, 4: None}
        self.written: dict[int, int] = {}
        self.seen: dict[int, int] = {}

    def teardown(self) -> None:
        async def end() -> None:
            self.irqs.release()
            await self.function.__aexit__(None, None, None)

        self.loop.run_until_complete(end())
        for fd in self.written:
            os.close(fd)
        self.loop.close()

    def run(self, call, *arguments):
        """On the loop; and everything that follows from it."""

        async def go():
            try:
                return call(*arguments)
            finally:
                await self.function.interrupts.flush()

        return self.loop.run_until_complete(go())

    def eventfds(self, count: int) -> list[int]:
        made = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        self.written.update(dict.fromkeys(made, 0))
        self.seen.update(dict.fromkeys(made, 0))
        return made

    def valid(self, what, action, index, start, count, data, fds) -> bool:
        if index not in COUNTS or (index > 2 and action != SetIrq.TRIGGER):
            return False
        if start + count > COUNTS[index] or len(data) != (count if what == SetIrq.DATA_BOOL else 0):
            return False
        if fds and (what != SetIrq.DATA_EVENTFD or fds != count):
            return False
        return bool(count) or (start, what, action) == (0, SetIrq.DATA_NONE, SetIrq.TRIGGER)

    @rule(vector=st.integers(0, VECTORS - 1))
    def the_device_interrupts(self, vector):
        self.run(self.function.device.interrupt, vector)
        one = self.vectors[vector]
        one.pending = True
        one.settle(self.written)

    @rule(
        what=st.sampled_from(DATA),
        action=st.sampled_from(ACTIONS),
        index=st.sampled_from([1, 2, 2, 2, 3, 4, 5]),
        start=st.integers(0, VECTORS),
        count=st.integers(0, VECTORS + 1),
        bools=st.binary(max_size=VECTORS + 1),
        exact=st.booleans(),
        fds=st.integers(0, VECTORS + 1),
    )
    def the_client_says(self, what, action, index, start, count, bools, exact, fds):
        if exact:  # most that is made up is refused
            bools = bools.ljust(count, b"\1")[:count] if what == SetIrq.DATA_BOOL else b""
            fds = count * (fds % 2) if what == SetIrq.DATA_EVENTFD and action == SetIrq.TRIGGER else 0
        elif what == SetIrq.DATA_EVENTFD and action != SetIrq.TRIGGER:
            fds = 0
        given = self.eventfds(fds)
        lent = [os.dup(fd) for fd in given]
        good = self.valid(what, action, index, start, count, bools, fds)
        try:
            self.run(self.irqs.set, what | action, index, start, count, bools, lent)
            assert good
        except RefusedError:
            assert not good
            return
        finally:
            for fd in lent:
                os.close(fd)
        if not count:
            for one in self.vectors.values():
                if one.kind == index:
                    one.target, one.kind, one.masked = None, None, False
            if index in self.others:
                self.others[index] = None
            return
        for position, number in enumerate(range(start, start + count)):
            chosen = what != SetIrq.DATA_BOOL or bools[position] != 0
            if what == SetIrq.DATA_EVENTFD and action != SetIrq.TRIGGER:
                continue
            if index in self.others:
                if what == SetIrq.DATA_EVENTFD:
                    self.others[index] = given[position] if given else None
                elif chosen and (target := self.others[index]) is not None:
                    self.written[target] += 1
                continue
            one = self.vectors[number]
            if what == SetIrq.DATA_EVENTFD:
                one.target, one.kind = given[position] if given else None, index
            elif chosen and action == SetIrq.TRIGGER:
                one.pending = True
            elif chosen:
                one.masked, one.kind = action == SetIrq.MASK, index
            one.settle(self.written)

    @rule()
    def the_client_goes(self):
        self.run(self.irqs.release)
        for one in self.vectors.values():
            one.target, one.kind, one.masked = None, None, False
        self.others = {3: None, 4: None}

    @rule()
    def the_function_is_reset(self):
        self.loop.run_until_complete(self.function.reset())
        for one in self.vectors.values():
            one.pending = False

    @invariant()
    def every_interrupt_is_somewhere(self):
        for fd in self.written:
            try:
                self.seen[fd] += os.eventfd_read(fd)
            except BlockingIOError:
                continue
        assert self.seen == self.written
        bits = self.function.interrupts.pending_bits()
        assert bits == sum(one.pending << number for number, one in self.vectors.items()).to_bytes(8, "little")


Interrupting.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestInterrupting = Interrupting.TestCase


class Pinned(RuleBasedStateMachine):
    """The pin: it interrupts when it rises, and again at each end of interrupt while it is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.function = PciFunction(Plain())
        self.loop.run_until_complete(self.function.__aenter__())
        self.irqs = Irqs(self.function)  # type: ignore[arg-type]
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.bound = self.masked = self.wanted = self.up = False
        self.expected = self.seen = 0

    def teardown(self) -> None:
        async def end() -> None:
            self.irqs.release()
            await self.function.__aexit__(None, None, None)

        self.loop.run_until_complete(end())
        os.close(self.fd)
        self.loop.close()

    def run(self, call, *arguments):
        async def go() -> None:
            call(*arguments)
            await self.function.interrupts.flush()

        self.loop.run_until_complete(go())
        if self.wanted and self.bound and not self.masked and not self.up:
            self.up = True
            self.expected += 1

    @rule(wanted=st.booleans())
    def the_device_wants(self, wanted):
        self.wanted = wanted
        self.run(setattr, self.function.device, "pin", wanted)

    @rule()
    def the_client_listens(self):
        if not self.bound:
            self.up = False  # whoever was told has gone
        self.bound = True
        self.run(self.irqs.set, SetIrq.DATA_EVENTFD | SetIrq.TRIGGER, 0, 0, 1, b"", [os.dup(self.fd)])

    @rule()
    def the_client_listens_no_more(self):
        self.bound = False
        self.run(self.irqs.set, SetIrq.DATA_EVENTFD | SetIrq.TRIGGER, 0, 0, 1, b"", [])

    @rule()
    def the_client_masks(self):
        self.masked = True
        self.run(self.irqs.set, SetIrq.DATA_NONE | SetIrq.MASK, 0, 0, 1, b"", [])

    @rule()
    def the_guest_ends_it(self):
        self.masked = self.up = False
        self.run(self.irqs.set, SetIrq.DATA_NONE | SetIrq.UNMASK, 0, 0, 1, b"", [])

    @invariant()
    def it_interrupts_as_often_as_it_should(self):
        with contextlib.suppress(BlockingIOError):
            self.seen += os.eventfd_read(self.fd)
        assert self.seen == self.expected


Pinned.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPinned = Pinned.TestCase
