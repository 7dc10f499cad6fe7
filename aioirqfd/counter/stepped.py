"""Awaiting something with a call of one's own around each of its steps, inside a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar, cast, final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

_T = TypeVar("_T")


class Run(Protocol):
    """Makes a call, with something before and after it; ``Context.run`` is one."""

    def __call__(self, call: Callable[..., _T], /, *args: object) -> _T:  # noqa: D102
        ...


@final
class Stepped(Generic[_T]):
    """The awaitable of ``call(*args)``, each of whose steps is a ``run(step)``.

    With ``Context.run``, what it sets with contextvars is not seen by the task, nor by whoever comes next. A task would do the same,
    for ten times the price, and would be another task.

    Args:
        run: Makes the call and all its steps.
        call: Gives an awaitable.
        args: Its arguments.

    Attributes:
        cr_await: What it waits for, as of a coroutine: debuggers that follow such chains do not end here.
    """

    __slots__ = ("_run", "_steps", "cr_await")

    def __init__(self, run: Run, call: Callable[..., Awaitable[_T]], *args: object) -> None:
        self._run: Final = run
        self.cr_await: Final = run(call, *args)
        self._steps: Final[Generator[object, object, _T]] = run(self.cr_await.__await__)

    def __await__(self) -> Generator[object, object, _T]:
        return cast("Generator[object, object, _T]", self)  # it has all that is asked of one

    def __iter__(self) -> Stepped[_T]:
        return self

    def __next__(self) -> object:
        return self._run(self._steps.__next__)

    def send(self, value: object, /) -> object:
        """As of a coroutine."""
        return next(self) if value is None else self._run(self._steps.send, value)

    def throw(self, *error: BaseException) -> object:
        """As of a coroutine."""
        throw: Callable[..., object] = self._steps.throw
        return self._run(throw, *error)

    def close(self) -> None:
        """As of a coroutine."""
        self._run(self._steps.close)
