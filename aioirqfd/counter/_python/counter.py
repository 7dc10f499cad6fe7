"""Counter: a saturating count of 64 bits."""

from __future__ import annotations

from typing import SupportsIndex, final

from aioirqfd.counter._python.core import MAX, amount, lock
from aioirqfd.errors import WouldBlock
from aioirqfd.uncopied import refusal


@final
class Counter:
    """A saturating 64-bit counter with the reads and writes of an eventfd. Safe from any thread."""

    __slots__ = ("_semaphore", "_value")

    def __init__(self, initial: SupportsIndex = 0, *, semaphore: bool = False) -> None:
        self._value = amount(initial, 0, "a count")
        self._semaphore = bool(semaphore)

    def __reduce__(self) -> str:
        raise refusal(self, "The two would count apart. Hand over its value, and make another of that: Counter(value).")

    @property
    def value(self) -> int:
        """The count, 0..2**64-2; nothing is consumed."""
        return self._value

    @property
    def semaphore(self) -> bool:
        """Whether a read takes 1 instead of all."""
        return self._semaphore

    def signal(self, n: SupportsIndex = 1, /) -> int:
        """Add n (1..2**64-2), as much as fits below 2**64-2; return what was added."""
        n = amount(n, 1, "a signal")
        with lock:
            before = self._value
            self._value = after = before + n if n <= MAX - before else MAX
        return after - before

    def read(self) -> int:
        """Take the count (1 of it, with ``semaphore=True``); WouldBlock at 0."""
        with lock:
            value = self._value
            if self._semaphore and value:
                self._value, value = value - 1, 1
            else:
                self._value = 0
        if not value:
            raise WouldBlock
        return value
