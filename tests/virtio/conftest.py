"""What these tests share: a guest's RAM, a driver and a queue in it, and a count of fds that must balance."""

from __future__ import annotations

from tests.virtio.rig import fds_balance, make_rig

__all__ = ["fds_balance", "make_rig"]
