"""The NVMe disk with its doorbells in a page that the client maps: ``python -m tests.bench.nvme_mapped --socket-path SOCKET IMAGE``.

No doorbell is a message then, and nothing says that one was rung: the page has to be looked at again and again. For the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio

from aioirqfd.pci import Bar
from aioirqfd.vfio_user import main
from examples.nvme import Nvme
from examples.nvme_controller import DOORBELLS, PAGE


class Mapped(Nvme):
    """As its base, and never asleep."""

    bars = (Bar(0x4000, wide=True, shared=((DOORBELLS, PAGE),)), None)

    async def background(self) -> None:
        assert self.function is not None
        page = self.function.shared[0].view[DOORBELLS : DOORBELLS + PAGE].cast("I")
        try:
            while True:
                if not self.status & 1:
                    page[:] = memoryview(bytes(PAGE)).cast("I")
                for number, queue in [*self.submissions.items()]:
                    for bell, known in ((2 * number, queue.tail), (2 * number + 1, queue.completions.head)):
                        if page[bell] != known:
                            await self.write(0, DOORBELLS + 4 * bell, page[bell].to_bytes(4, "little"))
                await asyncio.sleep(0)
        finally:
            page.release()
            await self.reset()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("image")
    main(lambda chosen: Mapped(chosen.image, shadow=False), parser=parser)
