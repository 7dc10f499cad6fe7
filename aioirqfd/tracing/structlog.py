"""What happened, as structlog events. Never configures structlog: where they go is the application's choice."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final, cast, final

from aioirqfd import nodes
from aioirqfd.events import level_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import FilteringBoundLogger

LEVELS: Final = ("debug", "info", "warning", "error", "off")
"""From all to nothing."""


@final
class StructlogTracer:
    """A :class:`aioirqfd.Tracer` that writes to a structlog logger.

    Args:
        logger: The logger; without one, ``structlog.get_logger("aioirqfd")``. Of one for asyncio (``AsyncBoundLogger``) the
            synchronous one that it carries is used.
        per_interrupt: Also an event for every interrupt, at debug level. This takes the C fast path out of use.
        level: The lowest level that is logged: ``"debug"``, ``"info"``, ``"warning"``, ``"error"``, or ``"off"``. It can be changed at any
            time, by :attr:`level` and through :mod:`aioirqfd.inspect`.
        name: Its name there; without one it is a number.

    Raises:
        ValueError: There is no such level.
    """

    __slots__ = ("__weakref__", "_least", "_logger", "per_interrupt")

    def __init__(
        self,
        logger: FilteringBoundLogger | None = None,
        *,
        per_interrupt: bool = False,
        level: str = "debug",
        name: str | None = None,
    ) -> None:
        self.level = level
        self._logger = _default_logger() if logger is None else logger
        self.per_interrupt = per_interrupt
        nodes.add("tracers", self, _node, name=nodes.check_name(name, "a tracer"))

    @property
    def level(self) -> str:
        """The lowest level that is logged; set it, in any thread."""
        return LEVELS[self._least]

    @level.setter
    def level(self, level: str) -> None:
        if level not in LEVELS:
            raise ValueError(f"a level is one of {', '.join(LEVELS)}, not {level!r}")
        self._least = LEVELS.index(level)

    def emit(self, event: str, /, **fields: object) -> None:
        """Log it, at the level that ``aioirqfd.events`` declares for it; what is declared nowhere at info."""
        level = level_of(event, fields)
        if LEVELS.index(level) < self._least:
            return
        answer: object = getattr(self._logger, level)(event, **fields)
        if inspect.iscoroutine(answer):
            answer.close()
            self._logger = _synchronous(self._logger)
            getattr(self._logger, level)(event, **fields)


def _node(tracer: StructlogTracer) -> Mapping[str, object]:
    """What there is to see of it, and to write."""

    def put(level: object) -> None:
        tracer.level = cast("str", level)

    return {
        "type": type(tracer).__qualname__,
        "per_interrupt": tracer.per_interrupt,
        "level": nodes.Setting(tracer.level, put),
    }


def _synchronous(logger: FilteringBoundLogger) -> FilteringBoundLogger:
    """The logger that a logger for asyncio writes by: who emits an event does not wait."""
    found = cast("FilteringBoundLogger | None", getattr(logger.bind(), "sync_bl", None))
    if found is None:
        raise TypeError(f"a StructlogTracer needs a logger whose methods are no coroutines, unlike those of {logger!r}")
    return found


def _default_logger() -> FilteringBoundLogger:
    import structlog  # noqa: PLC0415  kept out of the import of aioirqfd

    logger: FilteringBoundLogger = structlog.get_logger("aioirqfd")
    return logger
