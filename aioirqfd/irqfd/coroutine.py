"""What is handed in to be awaited: a plain function is refused at once, and what nobody can tell is looked at when it has returned.

A plain function has done its work by the time that awaiting its result fails. That would count as a failure, be tried again, and do
the work again. A coroutine function in a plain one's place is refused too: what it returns counts as a yes, and nothing was done.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")


class NotAwaitableError(TypeError):
    """A handler or a sink has returned what cannot be awaited; it is not called again for the same interrupt."""


def coroutine_function(call: Callable[..., Awaitable[_T]], what: str) -> Callable[..., Awaitable[_T]]:
    """The callable, or a coroutine function that calls it and looks at what comes back.

    Args:
        call: A coroutine function, a ``functools.partial`` of one, an object whose ``__call__`` is one, a function that wraps
            one (``functools.wraps``), or a lambda that calls one.
        what: What it is, for the error.

    Raises:
        TypeError: It is not callable, or a plain function or method.
    """
    if not callable(call):
        raise TypeError(f"{what} is a coroutine function, not {call!r}")
    function = _unwrapped(call)
    if inspect.iscoroutinefunction(function):
        return call
    # A lambda may well call a coroutine function and hand on what it got; so may who wraps one, or do its work at once.
    if (
        inspect.isfunction(function)
        and function.__name__ != "<lambda>"
        and not function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE
        and not inspect.iscoroutinefunction(_unwrapped(inspect.unwrap(function)))
    ):
        raise TypeError(f"{what} is a coroutine function; {call!r} is a plain one: write `async def`")
    return _looked_at(call, what)


def coroutine_functions(given: object, what: str) -> tuple[Callable[..., Awaitable[None]], ...]:
    """One coroutine function, several, or None for none; the same errors."""
    if given is None:
        return ()
    if callable(given):
        return (coroutine_function(cast("Callable[..., Awaitable[None]]", given), what),)
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise TypeError(f"{what} is a coroutine function, or there are several in a sequence; not {given!r}")
    return tuple(coroutine_function(each, what) for each in cast("Iterable[Callable[..., Awaitable[None]]]", given))


def plain_function(call: Callable[_P, _T], what: str) -> Callable[_P, _T]:
    """The callable.

    Raises:
        TypeError: It is not callable, or a coroutine function.
    """
    if not callable(call):
        raise TypeError(f"{what} is a function, not {call!r}")
    if inspect.iscoroutinefunction(_unwrapped(call)):
        raise TypeError(f"{what} answers at once, and is not awaited; {call!r} is a coroutine function: write `def`")
    return call


def _unwrapped(call: object) -> object:
    """The function behind partials, bound methods and objects with a ``__call__``."""
    while True:
        if isinstance(call, functools.partial):
            call = cast("functools.partial[object]", call).func
        elif inspect.ismethod(call):
            call = call.__func__
        elif inspect.isfunction(call):
            return call
        else:
            method = getattr(type(call), "__call__", None)  # noqa: B004  not whether, but which
            return method if inspect.iscoroutinefunction(method) else call


def _looked_at(call: Callable[..., Awaitable[_T]], what: str) -> Callable[..., Awaitable[_T]]:
    async def checked(*args: object) -> _T:
        answer = call(*args)
        if not inspect.isawaitable(answer):
            raise NotAwaitableError(
                f"{what} returned {answer!r}, which cannot be awaited: {call!r} has to be `async def`"
            )
        return await answer

    return checked
