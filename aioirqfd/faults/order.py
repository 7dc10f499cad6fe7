"""In which order requests are completed: as it comes, so that a log tells the order that the driver saw; or as a log tells it.

A request that has waited is answered two turns of the loop after its coroutine has ended, and one that has not waited at once: so
while a log is written or replayed, completions go through one by one, each with the turns that it needs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, final

from aioirqfd.faults.waiting import let_go

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aioirqfd.faults.request import Key
    from aioirqfd.faults.waiting import Clock, Timer, Waiting

TURNS: Final = 4
"""Turns of the loop from the end of a request's coroutine until the driver sees its answer, and more."""


class _Order:
    """What both orders have: who is on the way, and when the next may go."""

    def __init__(self, passed: Callable[[Key, int], None]) -> None:
        self._passed = passed
        self._busy = 0
        self._passing = 0

    def ended(self) -> None:
        """The coroutine of one that has gone on has ended."""
        self._passing -= 1
        if not self._passing:
            after_turns(TURNS, self._free)

    def _free(self) -> None:
        if not self._passing:
            self._busy = 0
            self._look()

    def _look(self) -> None:
        raise NotImplementedError


@final
class InLine(_Order):
    """Completions one by one, as they come. Those of one batch go together.

    Args:
        passed: Hears of each that goes.
    """

    def __init__(self, passed: Callable[[Key, int], None]) -> None:
        super().__init__(passed)
        self._waiting: deque[tuple[Waiting, Key, int]] = deque()

    def go(self, waiting: Waiting, key: Key, batch: int) -> None:
        """Let it go on when it is its turn.

        Args:
            waiting: Who is to go.
            key: Which request it is.
            batch: With those of this number; 0: alone.
        """
        self._waiting.append((waiting, key, batch))
        self._look()

    def _look(self) -> None:
        while self._waiting and (not self._busy or (self._waiting[0][2] and self._waiting[0][2] == self._busy)):
            waiting, key, batch = self._waiting.popleft()
            if waiting.done():
                continue
            # Who goes alone is of no batch that another can be of.
            self._busy = batch or -1
            self._passing += 1
            self._passed(key, batch)
            waiting.set_result(1)


@final
class AsLogged(_Order):
    """Completions in the order of a log. Those of one batch go when they are all there.

    Args:
        order: Batches, of one request mostly.
        clock: What time it is.
        patience: Seconds that one waits for others which do not come; then they are left out, for this run is not the log's.
        passed: Hears of each that goes.
        diverged: Hears of those that did not come.
    """

    def __init__(
        self,
        order: Iterable[list[Key]],
        *,
        clock: Clock,
        patience: float,
        passed: Callable[[Key, int], None],
        diverged: Callable[[list[Key]], None],
    ) -> None:
        super().__init__(passed)
        self._order = deque(order)
        self._to_come = {key for batch in self._order for key in batch}
        self._clock = clock
        self._patience = patience
        self._diverged = diverged
        self._ready: dict[Key, Waiting] = {}
        self._others: deque[tuple[Waiting, Key]] = deque()
        self._number = 0
        self._timer: Timer | None = None

    def go(self, waiting: Waiting, key: Key, batch: int) -> None:
        """Let it go on when it is its turn. One that the log does not have goes as it comes."""
        del batch
        if key in self._to_come:
            self._ready[key] = waiting
        else:
            self._others.append((waiting, key))
        self._look()

    def _look(self) -> None:
        if self._busy:
            return
        self._gone()
        if self._order and all(key in self._ready for key in self._order[0]):
            self._open(self._order.popleft())
        elif self._others:
            waiting, key = self._others.popleft()
            self._let([(key, waiting)])
        elif self._ready and self._timer is None:
            self._timer = self._clock.call_later(self._patience, self._no_longer)

    def _gone(self) -> None:
        """Forget those that have gone on by themselves."""
        for key in [key for key, waiting in self._ready.items() if waiting.done()]:
            del self._ready[key]
            self._to_come.discard(key)
            for batch in self._order:
                if key in batch:
                    batch.remove(key)
        while self._order and not self._order[0]:
            self._order.popleft()
        while self._others and self._others[0][0].done():
            self._others.popleft()

    def _open(self, batch: list[Key]) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._to_come.difference_update(batch)
        self._let([(key, self._ready.pop(key)) for key in batch])

    def _let(self, those: list[tuple[Key, Waiting]]) -> None:
        self._busy = -1
        self._number += len(those) > 1
        self._passing = len(those)
        for key, _ in those:
            self._passed(key, self._number if len(those) > 1 else 0)
        if len(those) > 1:
            # The last of them has come in this very turn, and would go on at once, before the others, which wait as tasks.
            after_turns(2, lambda: let_go([waiting for _, waiting in those]))
        else:
            let_go([those[0][1]])

    def _no_longer(self) -> None:
        """Leave out those that did not come, up to one that did."""
        self._timer = None
        self._gone()
        missing: list[Key] = []
        there: list[Key] = []
        while self._order and not (there := [key for key in self._order[0] if key in self._ready]):
            missing += self._order.popleft()
        if self._order:
            missing += [key for key in self._order[0] if key not in there]
            self._order[0] = there
        self._to_come.difference_update(missing)
        if missing:
            self._diverged(missing)
        self._look()


def after_turns(turns: int, callback: Callable[[], None]) -> None:
    """Call it after so many turns of the loop."""
    loop = asyncio.get_running_loop()
    if turns:
        loop.call_soon(after_turns, turns - 1, callback)
    else:
        callback()
