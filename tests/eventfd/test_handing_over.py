"""Copies, pickles and other processes: one eventfd has one owner in a process, and multiprocessing hands it to another."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from multiprocessing import forkserver, reduction, resource_sharer, resource_tracker

import pytest

from aioirqfd import ClosedError, EventFd, IrqManager, Poller
from aioirqfd.counter import Counter
from aioirqfd.sinks import RecordingSink
from tests.eventfd.helpers import info_of, waiting_reader

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {protocol}": lambda it, protocol=protocol: pickle.dumps(it, protocol) for protocol in range(6)},
    "pure pickle": pickle._dumps,  # type: ignore[attr-defined]
}
HOW = pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)


@dataclasses.dataclass
class Config:
    kick: EventFd


@HOW
def test_a_copy_would_be_a_second_owner(efd, how):
    with pytest.raises(TypeError, match=r"<EventFd fd=\d+> cannot be copied or pickled\. .*multiprocessing.*send_fds"):
        how(efd)
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        how([Config(efd)]) if how is not copy.copy else dataclasses.asdict(Config(efd))
    gc.collect()
    os.fstat(efd.fileno())


@HOW
def test_a_counter_would_count_apart(how):
    with pytest.raises(TypeError, match=r"Counter object.* cannot be copied or pickled\. .*Counter\(value\)"):
        how(Counter(3))


@HOW
async def test_each_loop_has_its_own_poller(how):
    poller = Poller.get()
    poller.acquire()
    with pytest.raises(TypeError, match=r"Poller object.* cannot be copied or pickled\. .*Poller\.get\(\)"):
        how(poller)
    poller.release()


def test_json_is_told_too(efd):
    with pytest.raises(TypeError):
        json.dumps(efd)


# ---------------------------------------------------------------------------------------------------- multiprocessing


@pytest.fixture(scope="module", autouse=True)
def resource_tracker_of_its_own():
    """multiprocessing keeps a process from the first child on; it is not to be the first test's leak, nor the suite's."""
    resource_tracker.ensure_running()
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.fixture
def no_helpers():
    """multiprocessing keeps a thread that sends fds, and a process that forks."""
    yield
    resource_sharer.stop(timeout=60)
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def add(efd, n):
    """What a child does."""
    assert efd.semaphore == (info_of(efd.fileno())[2])
    with efd:
        efd.signal(n)


def add_received(connection, n):
    add(connection.recv(), n)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("semaphore", [False, True])
@pytest.mark.usefixtures("no_helpers")
async def test_an_argument(method, semaphore):
    with EventFd(semaphore=semaphore) as efd:
        reader = await waiting_reader(efd)
        process = multiprocessing.get_context(method).Process(target=add, args=(efd, 5))
        process.start()
        assert await reader == (1 if semaphore else 5)
        process.join()
        assert process.exitcode == 0
        process.close()
        assert info_of(efd.fileno())[0] == (4 if semaphore else 0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.usefixtures("no_helpers")
async def test_through_a_pipe_to_an_irqfd(efd, method):
    context = multiprocessing.get_context(method)
    sink = RecordingSink()
    async with IrqManager(sink) as irqs:
        irqfd = irqs.assign(efd, gsi=5)
        ours, theirs = context.Pipe()
        process = context.Process(target=add_received, args=(theirs, 3))
        process.start()
        ours.send(efd)
        while not irqfd.statistics().signals:
            await irqs.flush()
        process.join()
        assert process.exitcode == 0
        process.close()
        ours.close()
        theirs.close()
    assert [interrupt.gsi for interrupt in sink.interrupts] == [5]


def test_a_closed_one_is_not_sent(efd):
    efd.close()
    with pytest.raises(ClosedError):
        reduction.ForkingPickler.dumps(efd)


PROGRAM = """
import sys
from aioirqfd import EventFd

def child(efd):
    with efd:
        efd.signal(4)

if __name__ == "__main__":
    early = EventFd()
    assert "multiprocessing" not in sys.modules
    import multiprocessing
    {late}
    for method in ("spawn", "fork"):
        process = multiprocessing.get_context(method).Process(target=child, args=(early,))
        process.start()
        process.join()
        assert process.exitcode == 0, process.exitcode
    assert early.read_nowait() == 8
    early.close()
"""


@pytest.mark.parametrize("late", ["pass", "EventFd().close()"])
def test_multiprocessing_may_be_imported_later(tmp_path, late):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(late=late))
    done = subprocess.run([sys.executable, "-P", "-W", "error", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
