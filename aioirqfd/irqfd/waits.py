"""Which task waits for whose run: a wait in a circle is answered, and not waited for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Generator


class Runs(Protocol):
    """Something that a task may be running just now."""

    @property
    def running(self) -> object:
        """The task, or None."""
        ...


@final
class Waits:
    """The waits of one work queue's runs for one another."""

    __slots__ = ("_for",)

    def __init__(self) -> None:
        self._for: dict[object, Runs] = {}

    def circle(self, runs: Runs, task: object) -> bool:
        """Whether what runs there waits, perhaps by way of others, for a run of the task."""
        running = runs.running
        while running is not None and running is not task:
            other = self._for.get(running)
            running = other.running if other is not None else None
        return running is task

    @contextlib.contextmanager
    def noted(self, runs: Runs) -> Generator[None]:
        """The current task waits for what runs there, for whoever might wait for the task."""
        task = asyncio.current_task()
        self._for[task] = runs
        try:
            yield
        finally:
            del self._for[task]

    def all(self) -> tuple[Runs, ...]:
        """What somebody waits for."""
        return tuple(self._for.values())
