"""A virtqueue's request: the walk along its descriptors, and the first step of its handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine


def walk(
    table: memoryview, head: int, readable: memoryview, writable: memoryview, start: int, max_table: int, /
) -> tuple[list[memoryview], list[memoryview], int] | None:
    """Follow the descriptors of a virtqueue's request, if there is a faster way than its own: here there is none.

    Args:
        table: The descriptor table.
        head: The first descriptor, which is in the table.
        readable: The window: the part of the guest's memory where most of it is, read-only.
        writable: The same, writable.
        start: The window's first guest-physical address.
        max_table: Bytes of the longest indirect table; 0: none are agreed on.

    Returns:
        What is to be read, to be written, and how many bytes the latter are; None: walk yourself.
    """
    del table, head, readable, writable, start, max_table
    return None


def begin(coroutine: Coroutine[object, object, object], /) -> tuple[bool, object]:
    """Drive a coroutine up to where it waits, or to its end.

    Returns:
        Whether it has ended, and what it returned, or yielded.
    """
    try:
        return False, coroutine.send(None)
    except StopIteration as stop:
        return True, stop.value
