"""What an MSI-X table shows of itself in the tree of :mod:`aioirqfd.inspect`: its registers, and what stands behind each vector.

And what stops a vector, in words: the registers in the order in which the guest's driver writes them, then what the program has yet to give.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from aioirqfd import nodes
from aioirqfd.irqfd import explain
from aioirqfd.irqfd.msix_vector import MASK_BIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aioirqfd.irqfd.irqfds import Irqfds
    from aioirqfd.irqfd.msix_vector import MsixVector


def of_table(
    irqfds: Irqfds,
    vectors: Sequence[MsixVector],
    state: Mapping[str, bool],
    *,
    stop: Callable[[MsixVector], str | None],
    name: Callable[[MsixVector], str],
) -> Mapping[str, object]:
    """The table's node.

    Args:
        irqfds: Its manager's.
        vectors: All of them.
        state: The table's own bits.
        stop: What stops a vector, in words.
        name: What people call one.
    """

    def said(vector: MsixVector) -> str:
        """What stops it; of one with an irqfd, what stops that."""
        if vector.irqfd is not None and vector.bound:
            return explain.of_irqfd(irqfds, vector.irqfd)
        why = stop(vector) or "nothing stops it"
        if vector.pending:
            return explain.of_vector(irqfds, name(vector), why)
        return f"{name(vector)}: {why}. Nothing is owed."

    def all_said() -> Iterator[str]:
        for vector in vectors:
            if vector.pending or (vector.bound and stop(vector) is not None):
                yield said(vector)

    def node(vector: MsixVector) -> Mapping[str, object]:
        return {**_vector(vector), "explain": nodes.Detail(partial(said, vector))}

    return {
        "manager": nodes.key_of(irqfds),
        **state,
        "active": sum(vector.active for vector in vectors),
        "waiting_for_gsi": sum(vector.starved for vector in vectors),
        "vectors": nodes.Child(lambda: {str(one.number): nodes.Child(partial(node, one)) for one in vectors}),
        "explain": nodes.Detail(lambda: "\n".join(all_said()) or f"nothing stops its {len(vectors)} vectors."),
    }


def stop(vector: MsixVector, *, enabled: bool, function_mask: bool) -> str | None:
    """What stops a vector before its irqfd: its registers and the table's, its eventfd, its gsi; None: nothing."""
    since = "" if vector.idle_since is None else f" for {time.monotonic() - vector.idle_since:.0f} s"
    never = "" if since else ", and it was never in use"
    eventfd = vector.eventfd
    if not enabled:
        return f"the guest has MSI-X disabled{since}{never}; its driver enables it"
    if function_mask:
        return f"the guest has set the function mask{since}{never}, which masks every vector"
    if vector.control & MASK_BIT:
        return f"the guest has masked it{since}{never}"
    if eventfd is None:
        return "it has no eventfd, for nobody has asked for one: eventfd() and signal() make it"
    if eventfd.closed:
        return "its eventfd is closed; set_eventfd() gives it another one"
    if not vector.sendable:
        return f"the guest has written the address {vector.address:#x}, which is no multiple of 4, so there is no message to send"
    if vector.changing:
        return "its message is being changed by set_message()"
    if vector.starved:
        return "there is no gsi left for it; it waits until another vector gives one back"
    if not vector.active:
        return f"it was refused its route or its irqfd, {vector.failures} times in a row"
    return None


def _vector(vector: MsixVector) -> Mapping[str, object]:
    return {
        "address": f"{vector.address:#x}",
        "data": f"{vector.data:#x}",
        "masked": bool(vector.control & MASK_BIT),
        "pending": vector.pending,
        "active": vector.active,
        "gsi": vector.gsi,
        "eventfd_id": None if vector.eventfd is None else vector.eventfd_id,
        "waits_for_gsi": vector.starved,
        "failures": vector.failures,
    }
