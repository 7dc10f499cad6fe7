"""An entropy source for a guest, as a process of its own: ``python examples/vhost_user_rng.py --socket-path rng.sock``."""

from __future__ import annotations

import os

from aioirqfd.vhost_user import main
from aioirqfd.virtio import Chain, Device


# docs: begin device
class Rng(Device):
    """Virtio entropy device (virtio 1.2, section 5.4): fills whatever buffers the driver gives it."""

    device_id = 4

    async def handle(self, request: Chain) -> int:
        """Answer a request with random bytes."""
        return request.write(os.urandom(min(request.writable_size, 65536)))


# docs: end device


if __name__ == "__main__":
    main(lambda _options: Rng(), kind="rng")
