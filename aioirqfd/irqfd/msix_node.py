"""What an MSI-X table shows of itself in the tree of :mod:`aioirqfd.inspect`: its registers, and what stands behind each vector."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aioirqfd import nodes
from aioirqfd.irqfd.msix_vector import MASK_BIT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aioirqfd.irqfd.irqfds import Irqfds
    from aioirqfd.irqfd.msix_vector import MsixVector


def of_table(
    irqfds: Irqfds, vectors: Sequence[MsixVector], *, enabled: bool, function_mask: bool
) -> Mapping[str, object]:
    """The table's node."""
    return {
        "manager": nodes.key_of(irqfds),
        "enabled": enabled,
        "function_mask": function_mask,
        "active": sum(vector.active for vector in vectors),
        "waiting_for_gsi": sum(vector.starved for vector in vectors),
        "vectors": nodes.Child(lambda: {str(one.number): nodes.Child(partial(_vector, one)) for one in vectors}),
    }


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
