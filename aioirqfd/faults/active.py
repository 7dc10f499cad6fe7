"""A fault that has been set: what it has hit so far, and the way to wait for that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

from aioirqfd.faults.fault import WORDS, Fault, Spurious, stages_of
from aioirqfd.faults.match import FaultError, Match, Tally
from aioirqfd.faults.waiting import Group

if TYPE_CHECKING:
    from aioirqfd.faults.faults import Faults
    from aioirqfd.faults.request import Plan, Request
    from aioirqfd.faults.waiting import Timer, Waiting


@final
class ActiveFault:
    """A fault as :meth:`Faults.add` returns it.

    Attributes:
        name: In logs, and for the command language.
        match: Which requests.
        fault: What is done to them.

    Threads: the loop's.
    """

    def __init__(self, faults: Faults, name: str, match: Match, fault: Fault) -> None:
        _check(match, fault)
        self.name = name
        self.match = match
        self.fault = fault
        self.groups: dict[object, Group] = {}
        self.timer: Timer | None = None
        self._faults = faults
        self._tally = Tally()
        self._since = faults.time()
        self._enabled = True
        self._watchers: list[tuple[int, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        off = "" if self._enabled else ", off"
        return f"<ActiveFault {self.name}: {self.match} {self.fault}, {self.hits} of {self.requests}{off}>"

    @property
    def hits(self) -> int:
        """How many requests it has hit."""
        return self._tally.hits

    @property
    def requests(self) -> int:
        """How many requests its match has counted, hit or not."""
        return self._tally.requests

    @property
    def left(self) -> int | None:
        """How many it may still hit; None: any number."""
        return None if self.match.count is None else max(self.match.count - self.hits, 0)

    @property
    def spent(self) -> bool:
        """Whether it can hit no request any more."""
        match = self.match
        return (
            isinstance(self.fault, Spurious)  # nobody's request sets it off
            or self.left == 0
            or (match.nth is not None and self.requests >= match.skip + match.nth)
            or self._faults.time() - self._since >= match.until
        )

    @property
    def enabled(self) -> bool:
        """Whether it is on."""
        return self._enabled

    async def hit(self, count: int = 1) -> None:
        """Wait until it has hit so many requests, from when it was set. Returns in the turn of the loop after the hit.

        Raises:
            FaultError: It is removed meanwhile, or can hit no more than fewer.
        """
        if self.match.count is not None and count > self.match.count:
            raise FaultError(f"{self.name} hits {self.match.count} at most; {count} were waited for")
        if self.hits >= count:
            return
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append((count, watcher))
        await watcher

    def enable(self) -> None:
        """Switch it on again. What has counted so far stays counted."""
        if not self._enabled:
            self._enabled = True
            self._faults.changed(self)

    def disable(self) -> None:
        """Switch it off, and let go what it keeps back."""
        if self._enabled:
            self._enabled = False
            self._faults.changed(self)

    def change(self, fault: Fault) -> None:
        """Have it be another one of its kind from now on, for what it keeps back, too.

        Raises:
            FaultError: It is of another kind.
        """
        if type(fault) is not type(self.fault):
            raise FaultError(f"{self.name} is {self.fault}, which cannot become {fault}: remove it, and add the other")
        self.fault = fault
        self._faults.changed(self)

    def release(self) -> None:
        """Let go what it keeps back; what comes later, it keeps back again."""
        self._faults.release(self)

    def remove(self) -> None:
        """Be gone, and let go what it keeps back. Idempotent."""
        self._enabled = False
        self._faults.forget(self)
        for _, watcher in self._watchers:
            if not watcher.done():
                watcher.set_exception(FaultError(f"{self.name} was removed after {self.hits} hits"))
        self._watchers.clear()

    # -- for Faults --------------------------------------------------------------------------------------------------

    def decide(self, plan: Plan, request: Request) -> None:
        """Have its part in what is done to a request, if that is one of its."""
        if not self._enabled or self.spent:
            return
        faults = self._faults
        if self._tally.take(self.match, request, faults.time() - self._since, faults.random):
            plan.by.append(self)
            self.fault.decide(plan, self, faults.random)
            self.tell()

    def strike(self) -> None:
        """Count a hit that no request set off."""
        self._tally.hits += 1
        self._tally.requests += 1
        self.tell()

    def tell(self) -> None:
        """Wake those that wait for so many hits."""
        if self._watchers:
            waiting, self._watchers = self._watchers, []
            for count, watcher in waiting:
                if self.hits < count:
                    self._watchers.append((count, watcher))
                elif not watcher.done():
                    watcher.set_result(None)

    def group(self, lane: object) -> Group:
        """Those that wait with each other."""
        if lane not in self.groups:
            random = self._faults.random
            reorders = WORDS[type(self.fault)] == "reorder"

            def order(group: list[Waiting]) -> None:
                if reorders:
                    random.shuffle(group)

            self.groups[lane] = Group(self._faults.clock, order)
        return self.groups[lane]


def _check(match: Match, fault: Fault) -> None:
    """Raise if a fault is for requests that cannot have it."""
    stages = stages_of(match.kinds)
    if not stages & fault.rules.keys():
        kinds = "requests of the device's own" if match.kinds is None else ", ".join(match.kinds)
        raise FaultError(
            f"{WORDS[type(fault)]} is for {', '.join(sorted(fault.rules))}, and cannot happen to {kinds}: give the match a kind"
        )
