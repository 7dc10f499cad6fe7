"""The pending bits, whoever has signalled and wherever the signal is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from aioirqfd import EventFd, IrqManager, MsixTable
from aioirqfd.sinks import RecordingSink
from tests.irqfd.msix import ENABLE, program, sent, write


def from_a_thread(eventfd):
    thread = threading.Thread(target=os.eventfd_write, args=(eventfd.fileno(), 1))
    thread.start()
    thread.join()


def by_signal_from_a_thread(eventfd):
    thread = threading.Thread(target=eventfd.signal)
    thread.start()
    thread.join()


def from_a_process(eventfd):
    fd = eventfd.fileno()
    subprocess.run([sys.executable, "-c", f"import os; os.eventfd_write({fd}, 1)"], pass_fds=[fd], check=True)


@pytest.mark.parametrize("signal", [from_a_thread, by_signal_from_a_thread, from_a_process])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("semaphore", [False, True])
async def test_pending_bits_are_right_for_what_the_loop_has_not_seen(signal, used, semaphore):
    sink = RecordingSink()
    with EventFd(semaphore=semaphore) as eventfd:
        async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=130, eventfds={129: eventfd}) as table:
            table.write_control(ENABLE)
            program(table, 129, 0x31, masked=not used)
            table.mask(129)
            assert (table.gsi(129) is not None) is used
            bits = [table.read(table.pba_offset + word * 8, 8) for word in range(3)]
            assert bits == [0, 0, 0]
            signal(eventfd)  # and no turn of the loop
            assert [table.read(table.pba_offset + word * 8, 8) for word in range(3)] == [0, 0, 2]
            assert table.read(table.pba_offset + 16, 4) == 2
            assert table.read(table.pba_offset + 20, 4) == 0
            table.unmask(129)
            await irqs.flush()
            assert table.read(table.pba_offset + 16, 8) == 0
            assert sent(sink) == [0x31]


async def test_what_was_injected_and_left_in_the_eventfd_is_not_pending():
    # Row P01: the count that is there when the irqfd is made is injected once, and stays readable.
    sink = RecordingSink()
    with EventFd(3) as eventfd:
        async with IrqManager(sink) as irqs, MsixTable(irqs, vectors=1, eventfds={0: eventfd}) as table:
            assert table.pending(0)
            table.write_control(ENABLE)
            program(table, 0, 0x31)
            await irqs.flush()
            table.mask(0)
            assert (table.pending(0), sent(sink)) == (False, [0x31])
            write(table, 0)
            assert table.pending(0)
            table.unmask(0)
            await irqs.flush()
            assert (table.pending(0), sent(sink)) == (False, [0x31, 0x31])


async def test_writing_the_pending_bit_array_changes_nothing():
    async with IrqManager(RecordingSink()) as irqs, MsixTable(irqs, vectors=1) as table:
        table.signal(0)
        table.write(table.pba_offset, 0, 8)
        assert table.read(table.pba_offset, 8) == 1
