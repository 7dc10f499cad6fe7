"""The flight recorder's file: made whole or not at all, read while it is written, after a SIGKILL, and when it is damaged."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioirqfd import EventFd, IrqManager
from aioirqfd.flight import FlightKind
from aioirqfd.sinks import RecordingSink
from aioirqfd.testing import RecordingTracer
from aioirqfd.tracing import FlightFileError, FlightRecorder, flight_log, follow_flight, read_flight
from aioirqfd.tracing.flight_format import CLOSED_AT, FlightHeader
from aioirqfd.tracing.flight_log import FlightLog
from aioirqfd.tracing.journey import Journeys

SEEN = FlightKind.SEEN


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flight"


def keys(log: FlightLog) -> list[object]:
    return [record.fields["gsi"] for record in log.records if record.kind is SEEN]


async def test_what_is_remembered_is_in_the_file(path):
    with FlightRecorder(path) as recorder:
        recorder.name(5, "timer")
        async with IrqManager(RecordingSink(), tracer=recorder) as irqs:
            with EventFd() as kick:
                irqs.assign(kick, gsi=5)
                kick.signal(3)
        log = read_flight(path)
        assert not log.closed
        assert log.records == recorder.records()
    log = read_flight(path)
    assert log.closed
    assert [record.event for record in log.records] == [
        "irqfd_assigned",
        "interrupt_seen",
        "interrupt_injected",
        "irqfd_deassigned",
    ]
    seen = log.records[1]
    assert (seen.fields["gsi"], seen.fields["count"], seen.fields["source"]) == (5, 3, "RecordingSink")
    assert log.gsis == {5: "timer"}
    assert log.header.pid == os.getpid()
    times = [record.time_ns for record in log.records]
    assert times == sorted(times)
    assert log.header.monotonic_ns <= times[0] <= times[-1] <= log.header.closed_ns
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_name_is_changed_in_its_place(path):
    with FlightRecorder(path) as recorder:
        for name in ("timer", "serial", "x" * 100):
            recorder.name(5, name)
        assert read_flight(path).gsis == {5: "x" * 56}


async def test_an_irqfd_is_called_by_its_name_and_the_next_of_its_fd_by_its_own(path):
    with FlightRecorder(path) as recorder:
        recorder.name(5, "line five")
        async with (
            IrqManager(RecordingSink(), tracer=recorder, name="one") as one,
            IrqManager(RecordingSink(), tracer=recorder, name="two") as two,
        ):
            with EventFd() as uart, EventFd() as disk, EventFd() as plain:
                one.assign(uart, gsi=5, name="uart")
                two.assign(disk, gsi=5, name="d\u00efsk" * 20)
                one.assign(plain, gsi=5)
                names = {("one", 5, uart.fileno()): "uart", ("two", 5, disk.fileno()): "d\u00efsk" * 10 + "d"}
                assert read_flight(path).irqfds == recorder.log().irqfds == names
                await one.deassign(uart, gsi=5)
                assert read_flight(path).irqfds == names  # its records are there yet
                one.assign(uart, gsi=5, name="console")
                names["one", 5, uart.fileno()] = "console"
                assert read_flight(path).irqfds == names
                await one.deassign(uart, gsi=5)
                one.assign(uart, gsi=5)
                del names["one", 5, uart.fileno()]
                assert read_flight(path).irqfds == names
    assert read_flight(path).gsis == {5: "line five"}


def test_irqfds_names_leave_those_who_write_records_theirs(path):
    with FlightRecorder(path) as recorder:
        for fd in range(1030):
            recorder.name_irqfd(1, 5, fd, f"irqfd {fd}")
        recorder.name_irqfd(1, 5, 3, "another")
        assert [recorder.source(f"disk {number}") for number in range(1024)] == list(range(1, 1025))
        log = read_flight(path)
    assert len(log.sources) == len(log.irqfds) == 1024
    assert log.irqfds["disk 0", 5, 1023] == "irqfd 1023"
    assert log.irqfds["disk 0", 5, 3] == "another"


def test_a_file_of_before_irqfds_had_names_is_read(path):
    """As it was written then: half as many names, of two types."""
    header = FlightHeader.plan(4, 2, pid=1, monotonic_ns=0, realtime_ns=0)
    header = dataclasses.replace(header, name_capacity=1024)
    data = bytearray(header.size)
    data[: len(header.pack())] = header.pack()
    struct.pack_into("=BBHI56s", data, header.names, 1, 4, 0, 1, b"Sink")
    struct.pack_into("=BBHI56s", data, header.names + 64 * 1023, 2, 5, 0, 5, b"timer")
    struct.pack_into("=Q", data, header.ring, 1)
    struct.pack_into("=QQIiHBBI", data, header.ring + 64, 10, 1, 5, 7, 1, SEEN, 0, 1)
    path.write_bytes(data)
    log = read_flight(path)
    assert [record.fields for record in log.records] == [{"gsi": 5, "fd": 7, "count": 1, "source": "Sink"}]
    assert (log.sources, log.gsis, log.irqfds) == ({1: "Sink"}, {5: "timer"}, {})


def test_a_name_of_a_later_type_is_left_out(path):
    with FlightRecorder(path) as recorder:
        recorder.name(5, "timer")
        at = recorder.log().header.names
    data = bytearray(path.read_bytes())
    data[at] = 77
    path.write_bytes(data)
    log = read_flight(path)
    assert (log.sources, log.gsis, log.irqfds) == ({}, {}, {})


def test_a_full_disk_is_an_error_at_the_start_and_leaves_nothing(path, monkeypatch):
    def full(fd: int, offset: int, size: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as caught:
        FlightRecorder(path)
    assert caught.value.filename == str(path)
    assert list(path.parent.iterdir()) == []


def test_all_of_the_file_is_allocated_at_the_start(path):
    with FlightRecorder(path, capacity=1 << 16):
        status = path.stat()
        assert status.st_blocks * 512 >= status.st_size > 32 << 16


def test_a_second_recorder_takes_the_name_and_leaves_the_first_its_file(path):
    with FlightRecorder(path) as first, FlightRecorder(path) as second:
        first.ring.put(SEEN, 1, -1, 1)  # a file that was truncated would end the process here
        second.ring.put(SEEN, 2, -1, 1)
        assert keys(read_flight(path)) == [2]
        assert keys(first.log()) == [1]


def test_a_forked_child_leaves_the_file_alone(path):
    with FlightRecorder(path) as recorder:
        recorder.ring.put(SEEN, 1, -1, 1)
        child = os.fork()
        if child == 0:
            recorder.ring.put(SEEN, 2, -1, 1)
            recorder.emit("routing_changed")
            os._exit(keys(recorder.log()) != [2])
        assert os.waitpid(child, 0)[1] == 0
        assert keys(read_flight(path)) == [1]
        assert len(read_flight(path).records) == 1


def test_the_last_ones_are_kept(path):
    with FlightRecorder(path, capacity=8, changes=2) as recorder:
        for number in range(21):
            recorder.ring.put(SEEN, number, -1, 1)
            recorder.emit("change", number=number)
    log = read_flight(path)
    assert keys(log) == list(range(13, 21))
    assert [record.fields["number"] for record in log.records if record.kind is None] == [19, 20]
    assert (log.total, log.overwritten, log.torn) == (21, 13, 0)
    # Between the records where they were told.
    assert [record.number for record in log.records][-4:] == [19, 20, 20, 21]


def test_a_torn_record_is_left_out_and_counted(path):
    with FlightRecorder(path, capacity=4) as recorder:
        for number in range(6):
            recorder.ring.put(SEEN, number, -1, 1)
        at = recorder.log().header.ring + 64
    data = bytearray(path.read_bytes())
    data[at + 28 : at + 32] = bytes(4)  # number 4's lap: it was being written
    path.write_bytes(data)
    log = read_flight(path)
    assert (keys(log), log.torn) == ([2, 3, 5], 1)


def peak(path: Path, count: int) -> int:
    """Bytes that it takes to read so many records."""
    tracemalloc.start()
    try:
        assert len(read_flight(path).records) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_ring_with_little_in_it_takes_little_memory(path):
    with FlightRecorder(path, capacity=1 << 19) as recorder:  # 16 MiB
        for number in range(100):
            recorder.ring.put(SEEN, number, -1, 1)
    assert peak(path, 100) < 1 << 20


def test_a_full_ring_takes_its_size_and_what_is_made_of_it(path):
    """Which is an object, two numbers and a place in a list for each; it was six times as much."""
    with FlightRecorder(path, capacity=1 << 16) as recorder:
        for _ in range(1 << 16):
            recorder.ring.put(SEEN, 5, -1, 1)
    assert peak(path, 1 << 16) < 230 << 16


@pytest.mark.parametrize("entries", [1, 3, 4, 64])
@pytest.mark.parametrize("written", [2, 8, 13, 16, 21])
def test_a_ring_is_the_same_in_slices_of_any_size(path, monkeypatch, entries, written):
    monkeypatch.setattr(flight_log, "_SLICE", entries * 512)
    with FlightRecorder(path, capacity=8, changes=8) as recorder:
        for number in range(written):
            recorder.ring.put(SEEN, number, -1, 1)
            recorder.emit("change", number=number)
        log = recorder.log()
    there = list(range(max(0, written - 8), written))
    assert keys(log) == there
    assert [record.fields["number"] for record in log.records if record.kind is None] == there
    assert (log.torn, log.overwritten) == (0, max(0, written - 8))


class Busy:
    """A ring of 8 that somebody writes into whenever a slice of two was copied for the second time."""

    def __init__(self, *writes: int) -> None:
        self.recorder = FlightRecorder(capacity=8)
        self.next = 0
        self.put(8)
        self.writes = list(writes)
        self.memory = self.recorder._memory
        self.ring = self.recorder.log().header.ring
        self.copied = 0

    def put(self, count: int) -> None:
        for _ in range(count):
            self.recorder.ring.put(SEEN, self.next, -1, 1)
            self.next += 1

    def read(self, since: tuple[int, int] = (0, 0)) -> FlightLog:
        return FlightLog.read(self._pread, len(self.memory), since=since)

    def _pread(self, at: int, size: int) -> bytes:
        data = bytes(self.memory[at : at + size])
        self.copied += at > self.ring
        if at > self.ring and self.copied % 2 == 0 and self.writes:
            self.put(self.writes.pop(0))
        return data


@pytest.mark.parametrize(
    ("writes", "there", "first"),
    [
        ((0, 0, 0, 0), range(8), 0),
        ((1,), range(1, 8), 1),
        ((0, 2), range(8), 0),  # what was read already
        ((0, 3), range(3, 8), 3),
        ((0, 0, 5), range(5, 8), 5),
        ((1, 0, 4), range(5, 8), 5),
        ((9,), range(0), 8),
    ],
)
def test_who_is_overtaken_has_the_end_without_a_gap(monkeypatch, writes, there, first):
    monkeypatch.setattr(flight_log, "_SLICE", 2 * 32)
    log = Busy(*writes).read()
    assert keys(log) == list(there)
    assert (log.total, log.first, log.overwritten, log.torn) == (8, first, first, 0)
    assert Journeys.of(log).whole is (first == 0)


def test_who_follows_and_is_overtaken_counts_what_is_gone(monkeypatch):
    monkeypatch.setattr(flight_log, "_SLICE", 2 * 32)
    log = Busy(0, 4).read(since=(1, 0))
    assert keys(log) == [1, 2, 4, 5, 6, 7]
    assert log.torn == 1


# -- following --------------------------------------------------------------------------------------------------------


def test_following_tells_each_record_once(path):
    with FlightRecorder(path, capacity=8) as recorder:
        written = iter([[0, 1], [], [2], list(range(3, 20)), [20]])

        def write(_: float = 0) -> None:
            numbers = next(written)
            for number in numbers:
                recorder.ring.put(SEEN, number, -1, 1)
            if numbers == [20]:
                recorder.close()

        write()
        logs = list(follow_flight(path, sleep=write))
    assert [keys(log) for log in logs] == [[0, 1], [], [2], list(range(12, 20)), [20]]
    assert [log.torn for log in logs] == [0, 0, 0, 9, 0]  # it went round once too often


def test_following_waits_for_what_is_being_written(path):
    with FlightRecorder(path, capacity=8) as recorder:
        for number in range(3):
            recorder.ring.put(SEEN, number, -1, 1)
        at = recorder.log().header.ring + 64 + 32 + 28
        memory = recorder._memory
        lap = memory[at : at + 4]
        memory[at : at + 4] = bytes(4)  # another thread is at number 1

        def end(_: float) -> None:
            memory[at : at + 4] = lap
            recorder.close()

        assert [keys(log) for log in follow_flight(path, sleep=end)] == [[0], [1, 2]]


def test_following_ends_with_the_process(path):
    program = (
        "import sys; from aioirqfd.tracing import FlightRecorder; recorder = FlightRecorder(sys.argv[1]);"
        "recorder.ring.put(5, 7, -1, 1); import os; os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)
    logs = list(follow_flight(path, sleep=lambda _: pytest.fail("nobody writes any more")))
    assert [keys(log) for log in logs] == [[7]]
    assert not logs[0].closed


def test_two_threads_write_and_a_third_reads(path):
    each = 3000
    with FlightRecorder(path, capacity=2 * each) as recorder:

        def write(source: int) -> None:
            for number in range(each):
                recorder.ring.put(SEEN, number, source, number, 0, source)

        threads = [threading.Thread(target=write, args=(source,)) for source in (1, 2)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert all(record.fields["gsi"] == record.fields["count"] for record in read_flight(path).records)
        for thread in threads:
            thread.join()
        log = read_flight(path)
    assert log.torn == 0
    for source in (1, 2):
        assert [r.fields["gsi"] for r in log.records if r.fields["fd"] == source] == list(range(each))


# -- after a SIGKILL --------------------------------------------------------------------------------------------------

_STORM = """
import asyncio, os, sys
from aioirqfd import EventFd, IrqManager
from aioirqfd.tracing import FlightRecorder
class Sink:
    def try_inject(self, interrupt):
        return True
    def try_inject_batch(self, interrupts):
        return len(interrupts)
    async def inject(self, interrupt):
        raise AssertionError
async def main():
    async with IrqManager(Sink(), tracer=FlightRecorder(sys.argv[1], capacity=4096)) as irqs:
        kicks = [EventFd() for _ in range(64)]
        for gsi, kick in enumerate(kicks):
            irqs.assign(kick, gsi=gsi % 24)
        passes = 0
        while True:
            for kick in kicks:
                os.eventfd_write(kick.fileno(), 1)
            await irqs.flush()
            passes += 1
            if passes == 50:
                os.write(1, b"x")
asyncio.run(main())
"""


def test_a_killed_program_leaves_its_last_steps_in_order(path):
    with subprocess.Popen([sys.executable, "-c", _STORM, path], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.read(1) == b"x"
        program.send_signal(signal.SIGKILL)
    log = read_flight(path)
    assert not log.closed
    assert log.torn <= 1
    assert log.total > 50 * 64 * 2
    records = [record for record in log.records if record.kind is not None]
    assert [record.number for record in records][-100:] == list(range(log.total - 100 - log.torn, log.total - log.torn))
    # Of each irqfd the steps alternate, to the last one.
    last: dict[object, FlightKind] = {}
    for record in records:
        if record.kind is FlightKind.SEEN or record.kind is FlightKind.INJECTED:
            assert last.get(record.fields["fd"]) is not record.kind
            last[record.fields["fd"]] = record.kind
    assert len(last) == 64


# -- damage -----------------------------------------------------------------------------------------------------------


def made(capacity: int = 4) -> bytes:
    recorder = FlightRecorder(capacity=capacity, changes=2)
    recorder.source("Sink")
    for number in range(6):
        recorder.ring.put(SEEN, number, 7, 1, 1)
        recorder.emit("change", number=number)
    return bytes(recorder._memory)


WHOLE = made()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no flight file"),
        (b"ELF", "no flight file"),
        (b"aioirqfd", "not even a header"),
        (WHOLE[:4096], "has 4096 bytes of the"),
        (WHOLE[:-1], "it was cut"),
        (WHOLE[:8] + b"\x02" + WHOLE[9:], "version 2"),
        (WHOLE[:12] + bytes(4) + WHOLE[16:], "byte-order mark is 0x0"),
        (WHOLE[:16] + b"\x40" + WHOLE[17:], "damaged"),
        (WHOLE[:48] + b"\x03" + WHOLE[49:], "has 3 places"),
        (WHOLE[:40] + b"\xff" * 8 + WHOLE[48:], "parts end at"),
        (WHOLE[:88] + b"\x07" + WHOLE[89:], "clocks"),
    ],
)
def test_what_is_no_whole_flight_file_is_refused_with_the_reason(path, data, why):
    path.write_bytes(data)
    with pytest.raises(FlightFileError, match=why) as caught:
        read_flight(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_of_the_other_byte_order_is_read(path):
    header, _ = FlightHeader.unpack(WHOLE[:4096], len(WHOLE))[1], None
    data = bytearray(WHOLE)

    def swap(form: str, at: int) -> None:
        size = struct.calcsize(f"<{form}")
        data[at : at + size] = struct.pack(f">{form}", *struct.unpack(f"<{form}", data[at : at + size]))

    swap("8s6I7Q2I3Q", 0)
    swap("Q", header.ring)
    swap("Q", header.changes)
    for place in range(4):
        swap("QQIiHBBI", header.ring + 64 + 32 * place)
    for place in range(2):
        swap("QQHHI", header.changes + 64 + 512 * place)
    for place in range(header.name_capacity):
        swap("BBHI56s", header.names + 64 * place)
    path.write_bytes(data)
    log = read_flight(path)
    path.write_bytes(WHOLE)
    assert log.records == read_flight(path).records


def test_an_unknown_kind_is_shown_as_its_numbers(path):
    with FlightRecorder(path) as recorder:
        recorder.ring.put(200, 1, 2, 3, 0, 4)
    (record,) = read_flight(path).records
    assert (record.event, record.kind) == ("unknown", None)
    assert record.fields == {"kind": 200, "key": 1, "fd": 2, "value": 3, "flags": 4}


@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=24)), max_size=8),
    st.one_of(st.none(), st.integers(0, len(WHOLE))),
)
def test_a_hostile_file_is_read_or_refused_and_nothing_else(edits, cut):
    data = bytearray(WHOLE)
    for at, piece in edits:
        data[at : at + len(piece)] = piece
    _read_or_refuse(bytes(data[:cut]))


@given(st.lists(st.tuples(st.sampled_from([*range(8, 120, 4), 4096, 4100]), st.integers(0, 2**64 - 1)), max_size=6))
def test_a_hostile_header_is_read_or_refused_and_nothing_else(words):
    data = bytearray(WHOLE)
    for at, word in words:
        struct.pack_into("=Q", data, at, word)
    _read_or_refuse(bytes(data))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=600))
def test_hostile_heads_and_texts_are_read_or_refused_and_nothing_else(head, changes, text):
    data = bytearray(WHOLE)
    _, header = FlightHeader.unpack(WHOLE[:4096], len(WHOLE))
    struct.pack_into("=Q", data, header.ring, head)
    struct.pack_into("=Q", data, header.changes, changes)
    data[header.changes + 64 + 24 : header.changes + 64 + 24 + len(text)] = text
    _read_or_refuse(bytes(data[: len(WHOLE)]))


def _read_or_refuse(data: bytes) -> None:
    try:
        log = FlightLog.read(lambda at, size: data[at : at + size], len(data))
    except ValueError:
        return
    assert len(log.records) <= 4 + 2
    for record in log.records:
        log.realtime_ns(record.time_ns)


def test_json_that_is_deep_is_no_crash():
    data = bytearray(WHOLE)
    _, header = FlightHeader.unpack(WHOLE[:4096], len(WHOLE))
    at = header.changes + 64
    struct.pack_into("=H", data, at + 16, 488)
    data[at + 24 : at + 512] = b"[" * 488
    _read_or_refuse(bytes(data))


def test_every_kind_is_in_the_reference_and_can_be_read():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "flight-file.md").read_text("utf-8")
    recorder = FlightRecorder()
    for kind in FlightKind:
        recorder.ring.put(kind, 1, 2, 3)
        assert f"`{kind.event}`" in page
    assert [record.kind for record in recorder.records()] == list(FlightKind)


def test_the_end_is_where_the_format_says():
    assert struct.unpack_from("=Q", WHOLE, CLOSED_AT) == (0,)


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileExistsError, match="no regular file"):
        FlightRecorder(tmp_path / "fifo")
    assert (tmp_path / "fifo").is_fifo()


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("file")
    with FlightRecorder(tmp_path / "link", capacity=4):
        pass
    assert (tmp_path / "link").is_symlink()
    assert read_flight(tmp_path / "file").total == 0


def test_a_name_that_is_refused_costs_no_recording(tmp_path):
    with FlightRecorder(tmp_path / "file", capacity=4) as recorder:
        recorder.emit("manager_paused")
    with pytest.raises(ValueError, match="a/b"):
        FlightRecorder(tmp_path / "file", name="a/b")
    assert read_flight(tmp_path / "file").changes == 1


def test_what_json_has_no_word_for_is_told_in_words_and_passed_on():
    heard = RecordingTracer()
    recorder = FlightRecorder(tracer=heard)
    recorder.emit("irqfd_broken", bdf={(0, 1): 2})
    assert recorder.records()[0].fields["bdf"] == "{(0, 1): 2}"
    assert heard.events == [("irqfd_broken", {"bdf": {(0, 1): 2}})]


async def test_a_tracer_that_has_every_attribute_is_no_recorder():
    async with IrqManager(RecordingSink(), tracer=mock.Mock(per_interrupt=False)) as irqs:
        assert irqs.statistics().held == 0
