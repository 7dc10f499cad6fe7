"""Where there is no asyncio event loop, or one that cannot watch an fd, or another interpreter: it works, or a sentence says why not."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import threading

import pytest

from aioirqfd import EventFd, IrqManager, Poller, WorkQueue, WrongLoopError
from aioirqfd.sinks import RecordingSink
from tests.conftest import open_fds

SENTENCE = "^aioirqfd runs on asyncio: no asyncio event loop is running in this thread$"


async def enter_manager():
    await IrqManager(RecordingSink()).__aenter__()


async def enter_queue():
    await WorkQueue().__aenter__()


async def read():
    with EventFd() as efd:
        await efd.read()


async def wait():
    with EventFd() as efd:
        await efd.wait()


async def iterate():
    with EventFd() as efd:
        async for _ in efd:
            pass


async def get_poller():
    Poller.get()


USES = pytest.mark.parametrize("use", [enter_manager, enter_queue, read, wait, iterate, get_poller])


def drive(use):
    """As another library's loop drives a coroutine."""
    use().send(None)


def in_a_thread(use):
    """Beside a loop that runs in another thread."""
    errors = []

    def run():
        try:
            drive(use)
        except Exception as error:
            errors.append(error)

    async def wait_for_it():
        thread = threading.Thread(target=run)
        thread.start()
        await asyncio.to_thread(thread.join)

    asyncio.run(wait_for_it())
    raise errors[0]


def in_trio(use):
    import trio

    trio.run(use)


# Where trio is not installed, the other two are what it comes to.
DRIVERS = [drive, in_a_thread, *([in_trio] if importlib.util.find_spec("trio") else [])]


@USES
@pytest.mark.parametrize("driver", DRIVERS)
def test_without_an_asyncio_loop(use, driver):
    before = open_fds()
    with pytest.raises(WrongLoopError, match=SENTENCE):
        driver(use)
    assert open_fds() == before


def test_a_manager_without_a_loop():
    irqs = IrqManager(RecordingSink())
    with EventFd() as efd, pytest.raises(WrongLoopError, match=SENTENCE):
        irqs.assign(efd, gsi=1)


class Deaf(asyncio.SelectorEventLoop):
    """A loop that watches no fds, as those of some graphical toolkits and Windows' default one."""

    def add_reader(self, fd, callback, *args):
        raise NotImplementedError

    def remove_reader(self, fd):
        raise NotImplementedError


@pytest.mark.parametrize("use", [enter_manager, read, wait, iterate, get_poller])
def test_a_loop_that_watches_no_fds(use):
    before = open_fds()
    loop = Deaf()
    with pytest.raises(
        WrongLoopError, match=r"^aioirqfd needs an event loop with add_reader\(\), which <Deaf .*> does not have$"
    ):
        loop.run_until_complete(use())
    loop.close()
    assert open_fds() == before


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import aioirqfd  # the main interpreter has it already

error = interpreters.run_string(interpreters.create(), '''
import asyncio, os
from aioirqfd import EventFd, IMPLEMENTATION

async def main():
    with EventFd() as efd:
        for give in (efd.signal, lambda n: os.eventfd_write(efd.fileno(), n)):
            reader = asyncio.ensure_future(efd.read())
            await asyncio.sleep(0)
            give(3)
            print(await reader, flush=True)

asyncio.run(main())
''')
if error:
    raise SystemExit(str(error))
"""


def test_in_an_isolated_subinterpreter():
    # From 3.12 on it has a lock of its own, which the C module does not claim to be made for: its twin runs there.
    done = subprocess.run(
        [sys.executable, "-P", "-c", SUBINTERPRETER], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "3\n3\n", done.stderr
    # (The exit status is left out: Python 3.12.1 crashes at the end of a subinterpreter that has imported asyncio, with or without us.)
