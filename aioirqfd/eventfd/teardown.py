"""Ending something in several steps, of which each is taken whatever becomes of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def tear_down(steps: Iterable[Callable[[], object]]) -> None:
    """Take all the steps; then raise what the first that failed has raised."""
    first: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first
