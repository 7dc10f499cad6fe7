"""Stepped: awaiting something with each of its steps in a context of its own, or with a drain that dispatches."""

from __future__ import annotations

from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Final, Generic, TypeVar, TypeVarTuple, cast, final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from contextvars import Context
    from types import CodeType, FrameType

    from aioirqfd.counter._python.drain import Drain

_T = TypeVar("_T")
_S = TypeVar("_S")
_Ts = TypeVarTuple("_Ts")


@final
class Stepped(Generic[_T]):
    """The awaitable of ``call(*args)``, each step of which runs in the context, and with the drain dispatching.

    What it sets with contextvars is not seen by the task, nor by whoever comes next. A task would do the same, and would be another task.

    Args:
        context: Where its steps run, or None: as it comes.
        drain: Is told that its sink is being asked, or None.
        call: Gives an awaitable.
        args: Its arguments.

    Debuggers, and whoever draws a task's call graph, follow the chain of awaits from one coroutine to the next. This object has no
    frame to show, so it shows what it awaits, in the place of that: neither does the chain end here, nor has it a hole.
    """

    __slots__ = ("_awaited", "_context", "_drain", "_steps")

    def __init__(
        self, context: Context | None, drain: Drain | None, call: Callable[[*_Ts], Awaitable[_T]], /, *args: *_Ts
    ) -> None:
        self._context: Final = context
        self._drain: Final = drain
        self._awaited: Final = self._run(call, *args)
        self._steps: Final[Generator[object, object, _T]] = self._run(_iterator, self._awaited)

    @property
    def cr_await(self) -> object:
        """What it waits for, as of a coroutine."""
        return self._of_awaited("cr_await", "gi_yieldfrom")

    @property
    def cr_code(self) -> CodeType:
        """The code of what it awaits."""
        return cast("CodeType", self._of_awaited("cr_code", "gi_code"))

    @property
    def cr_frame(self) -> FrameType:
        """The frame of what it awaits."""
        return cast("FrameType", self._of_awaited("cr_frame", "gi_frame"))

    def _of_awaited(self, of_coroutine: str, of_generator: str) -> object:
        awaited: object = self._awaited
        if isinstance(awaited, CoroutineType):
            return getattr(cast("object", awaited), of_coroutine)
        if isinstance(self._steps, GeneratorType):
            return getattr(cast("object", self._steps), of_generator)
        raise AttributeError(f"what is awaited has no {of_coroutine}")

    def _run(self, call: Callable[[*_Ts], _S], /, *args: *_Ts) -> _S:
        drain = self._drain
        nested = drain is not None and drain.dispatching
        if drain is not None:
            drain.dispatching = True
        try:
            return call(*args) if self._context is None else self._context.run(call, *args)
        finally:
            if drain is not None:
                drain.dispatching = nested

    def __await__(self) -> Generator[object, object, _T]:
        return cast("Generator[object, object, _T]", self)  # it has all that is asked of one

    def __iter__(self) -> Stepped[_T]:
        return self

    def __next__(self) -> object:
        return self._run(self._steps.__next__)

    def send(self, value: object, /) -> object:
        """As of a coroutine."""
        return next(self) if value is None else self._run(self._steps.send, value)

    def throw(self, *error: object) -> object:
        """As of a coroutine."""
        throw: Callable[..., object] | None = getattr(self._steps, "throw", None)
        if throw is None:
            raise cast("BaseException", error[0])  # an iterator without one is at its end then
        return self._run(throw, *error)

    def close(self) -> None:
        """As of a coroutine."""
        close: Callable[[], object] | None = getattr(self._steps, "close", None)
        if close is not None:
            self._run(close)


def _iterator(awaitable: Awaitable[_T]) -> Generator[object, object, _T]:
    if not hasattr(type(awaitable), "__await__"):
        raise TypeError(f"{awaitable!r} cannot be awaited")
    return awaitable.__await__()
