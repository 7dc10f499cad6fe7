"""Awaiting something with each of its steps in a context of its own, inside a task that has another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast, final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from contextvars import Context

_T = TypeVar("_T")


@final
class InContext(Generic[_T]):
    """The awaitable of ``call(*args)``: what it sets with contextvars is not seen by the task, nor by whoever comes next.

    A task would do the same, for ten times the price, and would be another task.

    Args:
        context: Where the call and all its steps run. One context is in use once at a time.
        call: Gives an awaitable.
        args: Its arguments.

    Attributes:
        cr_await: What it waits for, as of a coroutine: debuggers that follow such chains do not end here.
    """

    __slots__ = ("_context", "_steps", "cr_await")

    def __init__(self, context: Context, call: Callable[..., Awaitable[_T]], *args: object) -> None:
        self._context: Final = context
        self.cr_await: Final = context.run(call, *args)
        if not hasattr(self.cr_await, "__await__"):
            raise TypeError(f"a wakeup handler returned {self.cr_await!r}, which cannot be awaited")
        self._steps: Final[Generator[object, object, _T]] = context.run(self.cr_await.__await__)

    def __await__(self) -> Generator[object, object, _T]:
        return cast("Generator[object, object, _T]", self)  # it has all that is asked of one

    def __iter__(self) -> InContext[_T]:
        return self

    def __next__(self) -> object:
        return self._context.run(self._steps.__next__)

    def send(self, value: object, /) -> object:
        """As of a coroutine."""
        return next(self) if value is None else self._context.run(self._steps.send, value)

    def throw(self, *error: BaseException) -> object:
        """As of a coroutine."""
        throw: Callable[..., object] = self._steps.throw
        return self._context.run(throw, *error)

    def close(self) -> None:
        """As of a coroutine."""
        self._context.run(self._steps.close)
