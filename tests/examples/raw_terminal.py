"""A program whose terminal is raw: it prints what is typed as hex, and ends as it is told by its argument."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sys
import termios

from examples.vmm.linux.stopping import Stopping
from examples.vmm.linux.terminal import Terminal


async def main() -> str:
    with Stopping() as stopping, Terminal(0) as terminal:
        running = asyncio.create_task(terminal.run())
        print("raw", end="\r\n", flush=True)
        left = asyncio.create_task(terminal.left.wait())
        stopped = asyncio.create_task(stopping.wait())
        while True:
            keys = asyncio.create_task(terminal.read(100))
            await asyncio.wait((keys, left, stopped), return_when=asyncio.FIRST_COMPLETED)
            if keys.done() and keys.result():
                print(keys.result().hex(), end="\r\n", flush=True)
                if keys.result() == b"!":
                    raise RuntimeError("told to")
                if keys.result() == b"?":
                    sys.exit(5)
                continue
            keys.cancel()
            running.cancel()
            await asyncio.wait((keys, running))
            return "left" if left.done() else signal.Signals(stopped.result()).name if stopped.done() else "gone"


if __name__ == "__main__":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal's signals come here
    print(asyncio.run(main()))
