"""``aioirqfd top``: the screen, from a tree and a clock of the test's own; and the terminal that it is drawn on."""

# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false, reportGeneralTypeIssues=false
# (what is read is JSON, of whose inside no type checker knows)
from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import pyte
import pytest

from aioirqfd import EventFd, IrqManager, WorkQueue, nodes
from aioirqfd.cli import top
from aioirqfd.cli.screen import Screen
from aioirqfd.inspect import InspectClient, serve
from aioirqfd.sinks import RecordingSink
from aioirqfd.tracing import FlightRecorder


def irqfd(gsi, injections, *, coalesced=0, dropped=0, state="IDLE", error=None, running=None, obstacle=None, **marks):
    marks = {"pending": False, "masked": False, "paused": False, "held": False, "offloaded": False} | marks
    counts = {
        "signals": injections + coalesced + dropped,
        "injections": injections,
        "coalesced": coalesced,
        "dropped": dropped,
    }
    node = {"gsi": gsi, "state": state, "error": error, "running": running, "obstacle": obstacle}
    return {**node, "statistics": counts, **marks}


NOT_RECORDED = {"recorder": None, "on": False, "irqfds": {}}


def tree(paused=False, latency=NOT_RECORDED, **irqfds):
    queue = {"queued": 3, "running": 1}
    return {
        "process": {"pid": 4711, "implementation": "c"},
        "managers": {"vm": {"paused": paused, "queue": queue, "irqfds": irqfds, "latency": latency}},
    }


def recorded(**waits):
    """What a recorder that is on has of them: of each half, and 99 of 100, microseconds."""
    return {
        "recorder": "flight",
        "on": True,
        "irqfds": {
            name: {"count": 9, "p50_us": p50, "p99_us": p99, "longest_us": p99} for name, (p50, p99) in waits.items()
        },
    }


def before():
    return tree(uart=irqfd(4, 100), nic=irqfd(24, 0), disk=irqfd(11, 5000, coalesced=77))


def after():
    return tree(
        paused=True,
        uart=irqfd(4, 120, state="PENDING", pending=True, paused=True, held=True),
        nic=irqfd(24, 3000, state="INJECTING", running="on_wakeup (vmm/nic.py:12)"),
        disk=irqfd(11, 5002, coalesced=77, state="PENDING", pending=True, masked=True),
    )


SCREEN = """\
aioirqfd top - vmm.sock (pid 4711, c)
3 irqfds, 1511 interrupts/s, 2 held back; 3 queued, 1 running; paused: vm
by rate
MANAGER      IRQFD         GSI STATE     MARKS  RATE/S  INJECTED P50 us  P99 us
vm           nic            24 INJECTING R        1500      3000      -       -
vm           uart            4 PENDING   P          10       120      -       -
vm           disk           11 PENDING   M           1      5002      -       -
"""
HINT = "no latencies: IrqManager(..., tracer=FlightRecorder()) has them recorded"
HELP = "q quit  r rate  t total  c coalesced  n name  g gsi  h held  / filter  x clear"


def screen():
    screen = Screen("vmm.sock")
    screen.take(before(), 100.0)
    screen.take(after(), 102.0)
    return screen


def test_a_snapshot_of_the_screen():
    lines = screen().lines()
    assert [line.rstrip() for line in lines] == [*SCREEN.splitlines(), *[""] * 15, HINT, HELP]
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80


def test_with_a_recorder_it_has_latencies():
    shown = Screen("vmm.sock")
    shown.take(tree(uart=irqfd(4, 100), nic=irqfd(5, 1), latency=recorded(uart=(12.4, 3400))), 0.0)
    lines = [line.rstrip() for line in shown.lines()]
    assert lines[3:6] == [
        "MANAGER      IRQFD         GSI STATE     MARKS  RATE/S  INJECTED P50 us  P99 us",
        "vm           uart            4 IDLE                  -       100     12    3400",
        "vm           nic             5 IDLE                  -         1      -       -",
    ]
    assert lines[-2:] == ["", HELP]
    assert max(map(len, shown.lines())) <= 80


@pytest.mark.parametrize(
    ("latency", "hint"),
    [
        (NOT_RECORDED, HINT),
        (recorded() | {"on": False}, "no latencies: aioirqfd inspect vmm.sock tracers/flight/on --set yes"),
        (recorded(), ""),
    ],
)
def test_where_there_are_no_latencies_a_line_says_how_to_have_them(latency, hint):
    shown = Screen("vmm.sock")
    shown.take(tree(uart=irqfd(4, 100), latency=latency), 0.0)
    assert shown.lines()[-2:] == [hint, HELP]
    assert shown.page()[5:] == ([hint] if hint else [])


def test_what_was_dropped_and_what_a_chip_has_masked_is_marked():
    shown = Screen("vmm.sock", sort="h")
    why = "the guest has masked pin 5 of the IOAPIC"
    shown.take(tree(well=irqfd(3, 9), nowhere=irqfd(4, 0, dropped=7), chip=irqfd(5, 1, obstacle=why)), 0.0)
    lines = shown.lines()
    assert lines[1] == "3 irqfds, - interrupts/s, 1 held back, 1 with drops; 3 queued, 1 running"
    assert [line.split()[1:5] for line in lines[4:7]] == [
        ["chip", "5", "IDLE", "C"],
        ["nowhere", "4", "IDLE", "D"],
        ["well", "3", "IDLE", "-"],
    ]


def test_what_is_sorted_by_is_shown_and_a_wide_screen_shows_all():
    shown = Screen("vmm.sock", sort="c")
    shown.take(tree(uart=irqfd(4, 100, coalesced=77)), 0.0)
    assert shown.lines()[4].split() == ["vm", "uart", "4", "IDLE", "-", "77", "-", "-"]
    assert shown.lines(90)[4].split() == ["vm", "uart", "4", "IDLE", "-", "100", "77", "-", "-"]
    assert len(shown.lines(90)[3]) == 89


def test_a_page_for_a_pipe_has_all_rows_and_nothing_else():
    many = {f"irqfd{gsi}": irqfd(gsi, gsi) for gsi in range(100)}
    shown = Screen("vmm.sock", sort="g")
    shown.take(tree(**many, latency=recorded()), 0.0)
    page = shown.page()
    assert len(page) == 4 + 100
    assert [line for line in page if line != line.rstrip() or not line] == []
    assert [line.split()[1] for line in page[4:]] == list(many)


@pytest.mark.parametrize(
    ("key", "names", "status"),
    [
        ("r", ["nic", "uart", "disk"], "by rate"),
        ("t", ["disk", "nic", "uart"], "by total"),
        ("c", ["disk", "uart", "nic"], "by coalesced"),
        ("n", ["disk", "nic", "uart"], "by name"),
        ("g", ["uart", "disk", "nic"], "by gsi"),
        ("h", ["uart", "disk", "nic"], "by held"),
    ],
)
def test_keys_sort(key, names, status):
    shown = screen()
    assert shown.key(key)
    lines = shown.lines()
    assert [line.split()[1] for line in lines[4:7]] == names
    assert lines[2] == status


def test_a_filter_is_typed_and_taken_away():
    shown = screen()

    def press(*keys):
        for key in keys:
            assert shown.key(key)
        lines = shown.lines()
        return [line.split()[1] for line in lines[4:7] if line], lines[2], lines[-1]

    assert press("/", "u", "q") == (["nic", "uart", "disk"], "by rate", "filter: uq_")
    assert press("\x7f", "\n") == (["uart"], "by rate, with 'u'", HELP)
    assert press("/", "z", "\x1b") == (["uart"], "by rate, with 'u'", HELP)
    assert press("/", "I", "N", "J", "\r") == (["nic"], "by rate, with 'INJ'", HELP)
    assert press("x", "?", "\t") == (["nic", "uart", "disk"], "by rate", HELP)
    assert shown.key("q") is False


def test_what_is_more_than_the_screen_has_room_for_is_counted():
    many = {f"irqfd number {gsi}": irqfd(gsi, gsi) for gsi in range(2000)}
    shown = Screen("vmm.sock", sort="g")
    shown.take(tree(**many), 0.0)
    for width, height in ((80, 24), (132, 50), (40, 10), (10, 3), (80, 1)):
        lines = shown.lines(width, height)
        assert len(lines) == height
        assert max(map(len, lines)) <= width
    assert shown.lines(80, 24)[2] == "by gsi, 1982 more"
    assert shown.lines(80, 24)[4].startswith("vm           irqfd numbe+    0 IDLE")


def test_what_comes_and_goes_has_no_rate_yet_and_a_counter_that_began_anew_no_negative_one():
    shown = Screen("vmm.sock")
    shown.take(tree(uart=irqfd(4, 100)), 0.0)
    shown.take(tree(uart=irqfd(4, 10), nic=irqfd(5, 900)), 1.0)
    assert shown.lines()[1].startswith("2 irqfds, 0 interrupts/s")
    assert [line.split()[4] for line in shown.lines()[4:6]] == ["-", "0"]


def test_a_manager_that_does_not_answer_is_named():
    shown = Screen("vmm.sock")
    looked = before()
    looked["managers"]["stuck"] = {"error": "managers/stuck: its event loop has not answered in time"}
    shown.take(looked, 0.0)
    assert shown.lines()[2] == "no answer: stuck"
    assert shown.lines()[1].startswith("3 irqfds")


@pytest.mark.parametrize("part", ["irqfds", "queue", "latency"])
def test_a_manager_that_falls_silent_between_two_questions_is_named(part):
    shown = Screen("vmm.sock")
    looked = before()
    looked["managers"]["vm"][part] = {"error": "managers/vm: its event loop has not answered in time"}
    shown.take(looked, 0.0)
    assert shown.lines()[1:3] == ["0 irqfds, - interrupts/s, 0 held back; 0 queued, 0 running", "no answer: vm"]


def test_an_irqfd_that_cannot_be_looked_at_spoils_no_screen():
    shown = Screen("vmm.sock")
    shown.take(tree(bad={"error": "OSError(9)"}, uart=irqfd(4, 100)), 0.0)
    assert shown.lines()[1].startswith("1 irqfds")


# ------------------------------------------------------------------------------------------------- a program, and a pty


@pytest.fixture
async def program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with IrqManager(RecordingSink(), queue=WorkQueue(), name="vm") as irqs, await serve("vm.sock", patience=60):
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, name="uart")
            yield kick


async def test_it_looks_at_a_running_program(program):
    times = iter((10.0, 12.0))

    shown = Screen("vm.sock")
    client = await asyncio.to_thread(InspectClient, "vm.sock")
    with client:
        await asyncio.to_thread(top.look, client, shown, times.__next__)
        for _ in range(20):
            program.signal()
        await asyncio.to_thread(top.look, client, shown, times.__next__)
    assert shown.lines()[1] == "1 irqfds, 10 interrupts/s, 0 held back; 0 queued, 0 running"
    assert shown.lines()[4].split() == ["vm", "uart", "5", "IDLE", "10", "20", "-", "-"]


async def test_one_page_for_a_pipe_has_rates_from_two_looks(program, capsys):
    slept = []

    def run():
        def sleep(seconds):
            slept.append(seconds)
            program.signal()

        return top.run(["vm.sock", "--once", "--filter", "uart", "--interval", "7"], sleep=sleep)

    assert await asyncio.to_thread(run) == 0
    assert slept == [7.0]
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1 irqfds, \d+ interrupts/s, 0 held back; 0 queued, 0 running", lines[1])
    assert lines[2:4] == [
        "by rate, with 'uart'",
        "MANAGER      IRQFD         GSI STATE     MARKS  RATE/S  INJECTED COALESCED P50 us  P99 us",
    ]
    assert re.fullmatch(r"vm           uart            5 IDLE  +\d+ +1         0      -       -", lines[4])
    assert lines[5:] == [HINT]


@pytest.mark.parametrize("command", [["top", "vm.sock", "--once", "--interval", "0.05"], ["inspect", "vm.sock"]])
async def test_whoever_reads_may_have_seen_enough(program, command):
    read, write = os.pipe()
    os.close(read)

    def run():
        return subprocess.run(
            [sys.executable, "-P", "-W", "error", "-m", "aioirqfd", *command],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    try:
        done = await asyncio.to_thread(run)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


async def test_the_latencies_of_a_running_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = FlightRecorder()
    async with IrqManager(RecordingSink(), name="vm", tracer=recorder) as irqs, await serve("vm.sock", patience=60):
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, name="uart")
            for _ in range(10):
                kick.signal()
                await irqs.flush()
            client = await asyncio.to_thread(InspectClient, "vm.sock")
            with client:

                async def row():
                    shown = Screen("vm.sock")
                    await asyncio.to_thread(top.look, client, shown)
                    lines = shown.lines()
                    return lines[4].split(), lines[-2]

                found, hint = await row()
                assert (found[:5], found[5], hint) == (["vm", "uart", "5", "IDLE", "-"], "10", "")
                assert float(found[6]) <= float(found[7])
                recorder.on = False
                hint = f"no latencies: aioirqfd inspect vm.sock tracers/{nodes.key_of(recorder)}/on --set yes"
                assert await row() == (["vm", "uart", "5", "IDLE", "-", "10", "-", "-"], hint)


def test_what_cannot_be_looked_at_is_said_in_a_line(tmp_path, capsys):
    assert top.run([str(tmp_path / "none.sock")]) == 1
    assert capsys.readouterr().err.startswith("aioirqfd top: ")
    for arguments in (["--interval", "0"], ["--sort", "z"]):
        with pytest.raises(SystemExit):
            top.run(["x", *arguments])


async def test_without_a_terminal_it_says_so(program, capsys):
    def run():
        with pytest.raises(SystemExit):
            top.run(["vm.sock"])

    await asyncio.to_thread(run)
    assert "it needs a terminal; --once prints one screen without" in capsys.readouterr().err


class Terminal:
    """A terminal of 80x24 with the command in it."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        command = [sys.executable, "-P", "-W", "error", "-m", "aioirqfd", "top", *arguments]
        environment = os.environ | {"TERM": "linux", "ESCDELAY": "25"}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self.screen = pyte.Screen(80, 24)
        self.stream = pyte.ByteStream(self.screen)

    def until(self, text):
        """Read until this is on the screen; it is the test's own time limit that ends a wait for nothing."""
        while not any(text in line for line in self.screen.display):
            select.select([self.master], [], [])
            self.stream.feed(os.read(self.master, 65536))

    def press(self, key):
        os.write(self.master, key)

    def end(self):
        while True:
            try:
                if not os.read(self.master, 65536):
                    break
            except OSError:  # EIO: the other end is closed
                break
        return self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.master)


async def test_in_a_terminal(program):
    def drive():
        terminal = Terminal("vm.sock", "--interval", "3600")
        try:
            terminal.until(HELP[:30])
            terminal.until("uart")
            terminal.until("by rate")
            terminal.press(b"n")
            terminal.until("by name")
            terminal.press(b"/")
            terminal.until("filter: _")
            terminal.press(b"x\n")
            terminal.until("with 'x'")
            assert [line for line in terminal.screen.display if "uart" in line] == []
            terminal.press(b"q")
            return terminal.end()
        finally:
            terminal.close()

    assert await asyncio.to_thread(drive) == 0
