"""What happened, as structlog events. Never configures structlog: where they go is the application's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_DEBUG: Final = frozenset({"interrupt_injected"})
_WARNING: Final = frozenset(
    {
        "injection_failed",
        "interrupt_failed",
        "fast_path_failed",
        "lowering_failed",
        "interrupt_dropped",
        "queue_full",
        "accept_failed",
        "request_failed",
        "message_refused",
        "session_failed",
    }
)
_ERROR: Final = frozenset({"irqfd_broken", "interrupt_abandoned"})


@final
class StructlogTracer:
    """A :class:`aioirqfd.Tracer` that writes to a structlog logger.

    Args:
        logger: The logger; without one, ``structlog.get_logger("aioirqfd")``.
        per_interrupt: Also an event for every interrupt, at debug level. This takes the C fast path out of use.
    """

    __slots__ = ("_logger", "per_interrupt")

    def __init__(self, logger: FilteringBoundLogger | None = None, *, per_interrupt: bool = False) -> None:
        self._logger = _default_logger() if logger is None else logger
        self.per_interrupt = per_interrupt

    def emit(self, event: str, /, **fields: object) -> None:
        """Log it: interrupts at debug, trouble at warning or error, the rest at info.

        A virtqueue that stops is trouble where there is a reason to tell.
        """
        if event in _DEBUG:
            self._logger.debug(event, **fields)
        elif event in _WARNING or (event == "vring_stopped" and fields.get("reason") is not None):
            self._logger.warning(event, **fields)
        elif event in _ERROR:
            self._logger.error(event, **fields)
        else:
            self._logger.info(event, **fields)


def _default_logger() -> FilteringBoundLogger:
    import structlog  # noqa: PLC0415  kept out of the import of aioirqfd

    logger: FilteringBoundLogger = structlog.get_logger("aioirqfd")
    return logger
