"""``aioirqfd trace``: what it shows of a real file, in text and JSON, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from aioirqfd import EventFd, IrqManager
from aioirqfd.cli import trace
from aioirqfd.cli.main import main
from aioirqfd.sinks import RecordingSink
from aioirqfd.tracing import FlightKind, FlightRecorder

if TYPE_CHECKING:
    from pathlib import Path

# No test may hang on how long something takes: only what waits for an hour is slow.
CALM = ("--slow", "3600")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a program with two interrupts, of which the first had three."""

    async def program() -> None:
        with FlightRecorder(path) as recorder:
            recorder.name(5, "timer")
            async with IrqManager(RecordingSink(), tracer=recorder) as irqs:
                with EventFd() as timer, EventFd() as other:
                    irqs.assign(timer, gsi=5)
                    irqs.assign(other, gsi=6, name="uart")
                    for count in (1, 2, 1):
                        timer.signal(count)
                    other.signal()

    path = tmp_path / "flight"
    asyncio.run(program())
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    assert main(["trace", *map(str, arguments)]) == status
    return capsys.readouterr().out


def test_each_interrupt_is_followed_from_its_signal(path, capsys):
    lines = shown(capsys, path, *CALM).splitlines()
    assert lines[0].startswith(f"{path}: pid ")
    assert lines[0].endswith("12 records; closed")
    assert lines[1] == "no trouble"
    timer = [line for line in lines if "timer (gsi 5, fd " in line]
    assert timer[0].partition(")")[2].split()[:2] == ["4", "3"]  # the table: signals, injected
    journeys = [line.partition("RecordingSink): ")[2] for line in timer[1:]]
    assert [line.partition(", injected after ")[0] for line in journeys] == ["seen", "seen (2 signals)", "seen"]
    assert sum("uart (gsi 6, fd " in line for line in lines) == 2


def test_it_can_be_had_as_json(path, capsys):
    told = json.loads(shown(capsys, path, "--json", *CALM))
    assert (told["records"], told["closed"], told["trouble"], told["torn"]) == (12, True, [], 0)
    assert [(one["name"], one["signals"], one["injected"]) for one in told["interrupts"]] == [
        ("timer", 4, 3),
        ("uart", 1, 1),
    ]
    assert [journey["name"] for journey in told["journeys"]] == ["timer"] * 3 + ["uart"]
    steps = [[step["event"] for step in journey["steps"]] for journey in told["journeys"]]
    assert steps == [["interrupt_seen", "interrupt_injected"]] * 4


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--gsi", "timer"], 3),
        (["--gsi", "5"], 3),
        (["--gsi", "6"], 1),
        (["--gsi", "uart"], 1),
        (["--device", "recording"], 4),
        (["--queue", "0"], 0),
        (["--last", "2"], 2),
        (["--last", "0"], 4),
        (["--since", "0"], 4),
        (["--since", "3600"], 0),
        (["--since=-3600"], 4),
    ],
)
def test_one_looks_at_what_one_wants(path, capsys, options, count):
    told = json.loads(shown(capsys, path, "--json", *options, *CALM))
    assert len(told["journeys"]) == count


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--gsi", "nobody"], "has no gsi nobody, but 5, 6, timer, uart\n"),
        (["--gsi", "7"], "has no gsi 7, but 5, 6, timer, uart\n"),
        (["--device", "Disk"], "has no device Disk, but RecordingSink\n"),
    ],
)
def test_what_is_not_there_is_not_without_trouble(path, capsys, options, why):
    assert main(["trace", str(path), *options]) == 2
    assert capsys.readouterr().err == f"aioirqfd trace: {path} {why}"


def test_requests_of_a_queue_are_shown(tmp_path, capsys):
    path = tmp_path / "flight"
    with FlightRecorder(path) as recorder:
        source = recorder.source("Disk queue 0")
        for kind, head in (
            (FlightKind.KICK, 0),
            (FlightKind.REQUEST_BEGUN, 7),
            (FlightKind.REQUEST_COMPLETED, 7),
            (FlightKind.REQUESTS_SERVED, 3),
            (FlightKind.CALL, 0),
            (FlightKind.REQUEST_BEGUN, 8),
        ):
            recorder.ring.put(kind, 0, -1, head, source)
    lines = shown(capsys, path, *CALM).splitlines()
    (table,) = [line for line in lines if line.startswith("Disk queue 0")]
    assert table.split()[3:7] == ["1", "5", "4", "1"]  # kicks, requests, answered, calls
    requests = [line.partition("Disk queue 0: ")[2] for line in lines if "Disk queue 0: " in line]
    assert requests[0].startswith("request 7, completed after ")
    assert requests[1].startswith("3 requests, call ")
    assert requests[2] == "request 8, not completed"
    told = json.loads(shown(capsys, path, "--json", *CALM))
    assert [one["head"] for one in told["requests"]] == [7, None, 8]


def test_trouble_is_in_the_first_ten_lines_and_in_the_exit_status(tmp_path, capsys):
    path = tmp_path / "flight"
    with FlightRecorder(path) as recorder:
        for gsi in range(12):
            recorder.ring.put(FlightKind.SEEN, gsi, 7, 1)
    lines = shown(capsys, path, status=1).splitlines()
    assert lines[1] == "12 troubles:"
    assert [line.partition(":")[0] for line in lines[2:9]] == [f"  ! gsi {gsi} (fd 7, unnamed)" for gsi in range(7)]
    assert lines[9] == "  and 5 more; --json has them all"
    assert len(json.loads(shown(capsys, path, "--json", status=1))["trouble"]) == 12


def test_what_the_kernel_injects_is_said_to_be_offloaded(tmp_path, capsys):
    path = tmp_path / "flight"
    with FlightRecorder(path) as recorder:
        recorder.ring.put(FlightKind.OFFLOADED, 5, 7, 1)
    (line,) = [line for line in shown(capsys, path).splitlines() if "offloaded" in line]
    assert line.startswith("gsi 5 (fd 7, unnamed): offloaded since +")
    assert "the kernel injects, and KVM has the counts" in line
    assert [one["gsi"] for one in json.loads(shown(capsys, path, "--json"))["offloaded"]] == [5]


def test_following_ends_with_the_recorder(path, capsys):
    lines = shown(capsys, path, "--follow", "--gsi", "timer").splitlines()
    words = [line.split()[2] for line in lines]
    assert words == ["irqfd_assigned", *["interrupt_seen", "interrupt_injected"] * 3, "irqfd_deassigned"]
    assert lines[0].endswith("(timer)")
    records = [json.loads(line) for line in shown(capsys, path, "--follow", "--json").splitlines()]
    assert [record["number"] for record in records] == list(range(12))


def test_following_shows_what_is_written_meanwhile(tmp_path):
    path = tmp_path / "flight"
    with FlightRecorder(path) as recorder:
        recorder.ring.put(FlightKind.SEEN, 1, 7, 1)
        command = [sys.executable, "-m", "aioirqfd", "trace", str(path), "--follow"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            assert "gsi=1" in program.stdout.readline()
            recorder.ring.put(FlightKind.SEEN, 2, 7, 1)
            assert "gsi=2" in program.stdout.readline()
            recorder.close()
            assert program.stdout.read() == ""
        assert program.returncode == 0


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b"\x7fELF"), "no flight file"),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(tmp_path, capsys, make, why):
    path = tmp_path / "file"
    make(path)
    assert main(["trace", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("aioirqfd trace: ")
    assert why in said
    assert str(path) in said


def test_who_has_seen_enough_may_go(path):
    command = [sys.executable, "-W", "error", "-m", "aioirqfd", "trace", str(path), *CALM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 0


def test_the_time_is_that_of_the_wall(tmp_path, capsys):
    before = time.strftime("%Y-%m-%d", time.gmtime())
    path = tmp_path / "flight"
    FlightRecorder(path).close()
    day = shown(capsys, path).partition("begun ")[2][:10]
    assert before <= day <= time.strftime("%Y-%m-%d", time.gmtime())


@pytest.mark.parametrize("name", ["x.gif", "x"])
def test_a_picture_is_svg_or_png(path, capsys, tmp_path, name):
    assert main(["trace", str(path), "--plot", str(tmp_path / name)]) == 2
    assert "ends in .svg or .png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "module", "extra"), [("--perfetto=x", "perfetto", "perfetto"), ("--plot=x.png", "resvg_py", "plot")]
)
def test_what_is_not_installed_is_told_with_the_extra(path, capsys, monkeypatch, option, module, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["trace", str(path), option]) == 2
    assert f"pip install 'aioirqfd[{extra}]'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["nan", "inf", "x", ""])
def test_a_time_is_a_number(path, text, capsys):
    with pytest.raises(SystemExit):
        trace.run([str(path), f"--since={text}"])
    assert "not a number of seconds" in capsys.readouterr().err
