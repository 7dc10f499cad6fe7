"""The whole machine, as users run it."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from examples.vmm.__main__ import TEXT

if TYPE_CHECKING:
    from typing import Self

pytestmark = pytest.mark.alike

ROOT = Path(__file__).parent.parent.parent
LIMIT = 50
KIB = 1024

KVM = [pytest.param(("--accel", "kvm", "--inject", way), marks=pytest.mark.kvm) for way in ("offload", "fast", "queue")]
UNICORN = [("--accel", "unicorn", "--inject", way) for way in ("fast", "queue")]
EVERY = [*KVM, *UNICORN]
BOTH = [pytest.param(("--accel", "kvm"), marks=pytest.mark.kvm), ("--accel", "unicorn")]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "examples.vmm", *arguments]


def vmm(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*arguments), cwd=ROOT, input=stdin, capture_output=True, timeout=LIMIT, check=False)


class Running:
    """A machine that is still running; killed at the end if it has not ended by then."""

    def __init__(self, *arguments: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command(*arguments), cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdin = self.process.stdin
        self.stdout = self.process.stdout
        self.stderr = self.process.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()


def row(report: str, name: str) -> list[str]:
    (line,) = re.findall(rf"^{name} +(.*)$", report, re.MULTILINE)
    return line.split()


@pytest.mark.parametrize("how", EVERY, ids=" ".join)
def test_random_bytes_come_back_whole_and_nothing_is_lost(how, tmp_path):
    data = os.urandom(40 * KIB + 3)
    source = tmp_path / "in"
    source.write_bytes(data)
    done = vmm(*how, "--input", str(source), "--hz", "500", "--ticks", "50")
    report = done.stderr.decode()
    assert done.returncode == 0, report
    assert done.stdout == data
    assert report.endswith("nothing lost\n")
    assert report.startswith(f"vmm: {how[1]}, {how[3]}\n")
    assert "Traceback" not in report
    signals, injections, coalesced, handled = row(report, "timer")
    assert signals == "50"
    assert 1 <= int(handled) <= 50
    assert (injections, coalesced) == ("kernel", "-") or int(injections) + int(coalesced) == 50
    assert row(report, "power")[0] == row(report, "power")[3] == "1"


@pytest.mark.parametrize("how", BOTH, ids=" ".join)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 1023, 1025, 4096, 4097])
def test_every_length_comes_back(how, length):
    data = bytes(range(256)) * 17
    done = vmm(*how, "--input", "-", "--ticks", "1", stdin=data[:length])
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == data[:length]


@pytest.mark.parametrize("how", BOTH, ids=" ".join)
def test_faster_than_the_guest_can_follow_ticks_coalesce_and_are_all_accounted_for(how):
    done = vmm(*how, "--hz", "1000000", "--ticks", "3000", "--input", os.devnull)
    report = done.stderr.decode()
    assert done.returncode == 0, report
    assert row(report, "timer")[0] == "3000"
    assert "3000 ticks, " in report
    assert done.stdout == b""


def test_no_ticks_at_all():
    done = vmm("--accel", "unicorn", "--ticks", "0", "--input", "-", stdin=b"hello")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"hello"


def test_nothing_on_standard_input_gives_the_built_in_text():
    done = vmm("--ticks", "1")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == TEXT


def test_standard_input_that_never_speaks_gives_the_built_in_text():
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            command("--ticks", "1"), cwd=ROOT, stdin=reader, capture_output=True, timeout=LIMIT, check=False
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == TEXT


def closed(redirection: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    line = shlex.join(command("--ticks", "1", *arguments))
    return subprocess.run(
        ["sh", "-c", f"{line} {redirection}"], cwd=ROOT, capture_output=True, timeout=LIMIT, check=False
    )


def test_closed_standard_input_gives_the_built_in_text():
    done = closed("<&-")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == TEXT


@pytest.mark.parametrize(
    ("redirection", "arguments", "message"),
    [("<&-", ("--input", "-"), b"vmm: standard input is closed\n"), (">&-", (), b"vmm: standard output is closed\n")],
)
def test_closed_descriptors_are_not_taken_for_others(redirection, arguments, message):
    done = closed(redirection, *arguments)
    assert done.returncode == 2
    assert done.stderr == message


def test_output_file_gets_the_bytes_and_standard_output_nothing(tmp_path):
    done = vmm("--ticks", "1", "--output", str(tmp_path / "out"), "--input", "-", stdin=b"to the file")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b""
    assert (tmp_path / "out").read_bytes() == b"to the file"


def test_the_input_is_not_overwritten(tmp_path):
    path = tmp_path / "both"
    path.write_bytes(b"precious")
    done = vmm("--input", str(path), "--output", str(path))
    assert done.returncode == 2
    assert done.stderr.decode() == f"vmm: {path} is the input: it would be emptied before it is read\n"
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "/nonexistent/file"], "No such file or directory: '/nonexistent/file'"),
        (["--input", "/"], "Is a directory"),
        (["--accel", "unicorn", "--inject", "offload"], "--inject offload is the kernel's own irqfd"),
        (["--hz", "0"], "not a number above 0: 0"),
        (["--hz", "inf"], "not a number above 0: inf"),
        (["--hz", "fast"], "argument --hz: not a number above 0: fast"),
        (["--seconds", "-1"], "argument --seconds: not a number above 0: -1"),
        (["--seconds", "1e308"], "--seconds 1e+308 at --hz 100 are too many ticks to count; make one of them smaller"),
        (["--ticks", "-1"], "not 0 or more: -1"),
        (["--ticks", "1.5"], "argument --ticks: not a whole number: 1.5"),
        (["--output", "/nonexistent/file"], "No such file or directory: '/nonexistent/file'"),
        (["--output", "/dev/full", "--ticks", "1"], "No space left on device: '/dev/full'"),
        (["--input", "/proc/self/mem"], "Input/output error: '/proc/self/mem'"),
        (["--ticks", "1", "--seconds", "1"], "not allowed with argument"),
        (["--accel", "abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments, message):
    done = vmm(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


RUN = """
import runpy
runpy.run_module("examples.vmm", run_name="__main__")
"""


def without_kvm(*arguments: str, before: str = "") -> subprocess.CompletedProcess[bytes]:
    program = f"""
{before}
import aioirqfd.kvm, examples.vmm.accel
reason = lambda: "no permission to open /dev/kvm"
aioirqfd.kvm.usable = examples.vmm.accel.usable = reason
"""
    return python(program + RUN, *arguments)


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        input=b"",
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )


def test_kvm_that_is_not_usable_is_said_so():
    done = without_kvm("--accel", "kvm")
    assert done.returncode == 2
    assert done.stderr.decode() == "vmm: no permission to open /dev/kvm\n"


def test_auto_takes_unicorn_where_kvm_is_not_usable_and_says_why():
    done = without_kvm("--ticks", "1")
    assert done.returncode == 0
    expected = "vmm: unicorn, fast\nvmm: not on KVM: no permission to open /dev/kvm\n"
    assert done.stderr.decode().startswith(expected)


def test_unicorn_that_was_asked_for_needs_no_reason():
    done = without_kvm("--accel", "unicorn", "--ticks", "1")
    assert done.returncode == 0
    assert b"not on KVM" not in done.stderr


def test_offload_without_kvm_says_why_there_is_none():
    done = without_kvm("--inject", "offload")
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "vmm: --inject offload is the kernel's own irqfd, which needs --accel kvm;"
        " KVM cannot be used: no permission to open /dev/kvm\n"
    )


def test_neither_kvm_nor_unicorn_says_both():
    done = without_kvm(before="import sys; sys.modules['unicorn'] = None")
    assert done.returncode == 2
    said = done.stderr.decode()
    assert said.startswith("vmm: the Unicorn emulator cannot be loaded (")
    assert said.endswith("; try: pip install unicorn; KVM cannot be used either: no permission to open /dev/kvm\n")


def test_kvm_that_makes_a_machine_but_not_this_one():
    refuse = """
import errno, os, aioirqfd.kvm, examples.vmm.accel
aioirqfd.kvm.usable = lambda: None
def refuse(*_arguments, **_options):
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
import examples.vmm.cpu_kvm
examples.vmm.cpu_kvm.KvmCpu = refuse
"""
    reason = "KVM made a virtual machine, but not this one: Invalid argument (EINVAL)"
    done = python(refuse + RUN, "--accel", "kvm")
    assert (done.returncode, done.stderr.decode()) == (2, f"vmm: {reason}\n")
    done = python(refuse + RUN, "--ticks", "1")
    assert done.returncode == 0
    assert done.stderr.decode().startswith(f"vmm: unicorn, fast\nvmm: not on KVM: {reason}\n")


def test_ctrl_c_before_the_machine_runs_ends_in_a_line():
    interrupt = (
        "import examples.vmm.accel\ndef choose(*_): raise KeyboardInterrupt\nexamples.vmm.accel.choose = choose\n"
    )
    done = python(interrupt + RUN)
    assert (done.returncode, done.stderr) == (130, b"vmm: stopped\n")


@pytest.mark.kvm
def test_auto_takes_kvm_where_it_is_usable():
    done = vmm("--ticks", "1")
    assert done.stderr.decode().startswith("vmm: kvm, offload\n")


def test_json_trace_is_a_json_object_a_line():
    done = vmm("--accel", "unicorn", "--ticks", "1", "--trace", "json")
    assert done.returncode == 0, done.stderr.decode()
    events = [json.loads(line) for line in done.stderr.decode().splitlines() if line.startswith("{")]
    assert events
    assert all("event" in event for event in events)


@pytest.mark.kvm
def test_the_trace_of_what_the_kernel_injected_has_no_counts_of_zero():
    done = vmm("--accel", "kvm", "--inject", "offload", "--ticks", "3", "--trace", "json")
    assert done.returncode == 0, done.stderr.decode()
    events = [json.loads(line) for line in done.stderr.decode().splitlines() if line.startswith("{")]
    ended = [event for event in events if event["event"] == "irqfd_deassigned"]
    assert [event["gsi"] for event in ended] == [0, 1, 10, 11]
    for event in ended:
        assert event["offloaded"] is True
        assert not {"signals", "injections", "coalesced", "dropped"} & set(event)


def test_the_trace_of_what_was_injected_here_counts_it():
    done = vmm("--accel", "unicorn", "--ticks", "3", "--trace", "json")
    events = [json.loads(line) for line in done.stderr.decode().splitlines() if line.startswith("{")]
    ended = {event["gsi"]: event for event in events if event["event"] == "irqfd_deassigned"}
    assert (ended[0]["signals"], ended[0]["injections"]) == (3, 3)
    assert "offloaded" not in ended[0]


def test_console_trace_is_more_than_the_report():
    plain = vmm("--accel", "unicorn", "--ticks", "1").stderr.splitlines()
    traced = vmm("--accel", "unicorn", "--ticks", "1", "--trace", "console")
    assert traced.returncode == 0, traced.stderr.decode()
    assert len(traced.stderr.splitlines()) > len(plain)


@pytest.mark.parametrize("how", EVERY, ids=" ".join)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_report(how, number, status):
    with Running(*how, "--seconds", "1000", "--input", "-") as running:
        running.stdin.write(b"x")
        running.stdin.flush()
        # The echo says that the guest runs, and that the signal handlers are in place.
        assert running.stdout.read(1) == b"x"
        running.process.send_signal(number)
        report = running.stderr.read().decode()
        assert running.process.wait(LIMIT) == status, report
    # Between the two may stand a spurious interrupt, which an 8259 is allowed.
    assert "1 bytes in, 1 bytes back, identical\n" in report
    assert report.endswith("\nnothing lost\n")
    assert "Traceback" not in report


@pytest.mark.parametrize("how", BOTH, ids=" ".join)
def test_terminal_is_left_as_it_was_by_ctrl_c(how):
    master, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        process = subprocess.Popen(
            [*command(*how, "--seconds", "1000", "--input", "-")],
            cwd=ROOT,
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        with process:
            try:
                os.write(master, b"hi\n")
                seen = b""
                while seen.count(b"hi") < 2:  # the terminal's echo, and the guest's
                    seen += os.read(master, 1000)
                process.send_signal(signal.SIGINT)
                _, report = process.communicate(timeout=LIMIT)
            finally:
                process.kill()
        assert process.returncode == 130
        assert report.endswith(b"nothing lost\n")
        assert termios.tcgetattr(terminal) == before
        assert os.get_blocking(terminal)
    finally:
        os.close(master)
        os.close(terminal)


@pytest.mark.parametrize("how", BOTH, ids=" ".join)
def test_a_second_signal_does_not_wait_for_a_blocked_output(how):
    with Running(*how, "--input", "/dev/zero", "--seconds", "1000") as running:
        assert running.stdout.read(1) == b"\0"
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGTERM)
        report = running.stderr.read()
        assert running.process.wait(LIMIT) in {130, 143}  # which comes first is the kernel's choice
    assert b"Traceback" not in report


@pytest.mark.parametrize("how", BOTH, ids=" ".join)
def test_output_that_is_closed_early_is_said_in_a_sentence(how):
    with Running(*how, "--input", "/dev/zero", "--seconds", "1000") as running:
        assert running.stdout.read(1) == b"\0"
        running.stdout.close()
        report = running.stderr.read()
        assert running.process.wait(LIMIT) == 2
    assert report.endswith(b"vmm: [Errno 32] Broken pipe: 'standard output'\n")
    assert b"Traceback" not in report


@pytest.mark.slow
@pytest.mark.parametrize("how", EVERY, ids=" ".join)
def test_a_mebibyte_comes_back(how, tmp_path):
    data = os.urandom(KIB * KIB)
    source = tmp_path / "in"
    source.write_bytes(data)
    done = vmm(*how, "--input", str(source), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "out").read_bytes() == data
