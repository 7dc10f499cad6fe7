"""Save a PCI function with work on its way, and go on in another one."""

from __future__ import annotations

import asyncio
import json
from collections import deque

from aioirqfd import EventFd
from aioirqfd.pci import Bar, PciDevice, PciFunction, PciFunctionState, Register


# docs: begin device
class Adder(PciDevice):
    """Adds up what is written to it, one after the other, and interrupts for each."""

    bars, vectors = (Bar(4096),), 1
    sum = Register(0x00, access="ro")
    number = Register(0x04, access="wo")

    def __init__(self) -> None:
        self.todo: deque[int] = deque()
        self.runs, self.wanted, self.idle = True, asyncio.Event(), asyncio.Event()

    @number.on_write
    def take(self, value: int) -> None:
        self.todo.append(value)
        self.wanted.set()

    async def background(self) -> None:
        while True:
            while self.runs and self.todo:
                self.idle.clear()
                await asyncio.sleep(0)  # the work
                self.sum += self.todo.popleft()
                self.interrupt()
            self.idle.set()
            self.wanted.clear()
            await self.wanted.wait()

    async def pause(self) -> None:
        self.runs = False
        await self.idle.wait()

    def resume(self) -> None:
        self.runs = True
        self.wanted.set()

    def save_state(self) -> dict[str, object]:
        return {"todo": list(self.todo)}  # registers and interrupts are saved anyway

    def restore_state(self, state: dict[str, object], /) -> None:
        todo = state["todo"]
        assert isinstance(todo, list)
        self.todo = deque(todo)
        # docs: end device


# docs: begin save
async def source() -> str:
    """The machine that is left."""
    async with PciFunction(Adder()) as function:
        for value in (1, 2, 3):
            await function.write(0, 0x04, value.to_bytes(4, "little"))
        await asyncio.sleep(0)  # it has begun with the first
        await function.pause(timeout=10)
        # Now the CPUs, and then:
        return json.dumps(function.save().to_dict())


async def destination(text: str) -> None:
    """The machine that goes on."""
    bell = EventFd()
    async with PciFunction(Adder()) as function:
        await function.pause()
        await function.restore(PciFunctionState.from_dict(json.loads(text)))
        function.interrupts.bind(0, bell)  # it is the function's from here on
        print("done and to do:", function.device.sum + sum(function.device.todo))
        function.resume()
        async with asyncio.timeout(60):
            while function.device.sum < 6:
                await bell.read()
        print("resumed:", function.device.sum)
        # docs: end save


async def main() -> None:
    """From one to the other."""
    text = await source()
    print("owed by vectors:", json.loads(text)["pending"])
    await destination(text)


asyncio.run(main())
