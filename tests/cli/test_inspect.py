"""``aioirqfd inspect``: what it prints, and what it says where it cannot."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys

import pytest

from aioirqfd import EventFd, IrqManager, nodes
from aioirqfd.cli import inspect, main
from aioirqfd.inspect import serve
from aioirqfd.sinks import RecordingSink
from aioirqfd.tracing import FlightRecorder, StructlogTracer


@pytest.fixture
async def program(tmp_path, monkeypatch):
    """A manager ``vm`` with an irqfd ``uart``, served at ``vm.sock``."""
    monkeypatch.chdir(tmp_path)
    async with IrqManager(RecordingSink(), name="vm") as irqs, await serve("vm.sock", patience=60):
        with EventFd() as kick:
            irqs.assign(kick, gsi=5, name="uart")
            yield irqs


async def said(capsys, *arguments, **options):
    status = await asyncio.to_thread(inspect.run, ["vm.sock", *arguments], **options)
    out, err = capsys.readouterr()
    return status, out, err


async def test_it_prints_lines_for_people(program, capsys):
    status, out, err = await said(capsys, "managers/vm/irqfds/uart")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["gsi: 5", "name: uart"]
    assert {"state: IDLE", "masked: no", "error: -", "handlers: -", "statistics:", "  signals: 0"} <= set(lines)
    assert (await said(capsys, "managers/vm/gsi/5"))[1] == ("irqfds: uart\nroutes: ioapic pin 5\nline: -\n")
    assert (await said(capsys, "managers", "--depth", "0"))[1] == "vm: ...\n"
    assert (await said(capsys, "managers/vm/irqfds/uart/gsi"))[1] == "5\n"


async def test_it_prints_json_for_programs(program, capsys):
    status, out, _ = await said(capsys, "managers/*/irqfds", "--json")
    assert status == 0
    assert json.loads(out) == {"vm": program.inspect("irqfds")}


async def test_it_says_in_a_sentence_what_an_interrupt_waits_for(program, capsys):
    program.irqfds[0].mask()
    sentence = (
        re.escape("uart (gsi 5): it is masked for 0 s, by cli/test_inspect.py:") + r"\d+; unmask\(\) goes on\. .*\n"
    )
    for path in (["managers/vm/gsi/5"], ["managers/vm/gsi/5/"], ["managers/vm"]):
        assert re.fullmatch(sentence, (await said(capsys, *path, "--explain"))[1])
    assert re.fullmatch(f"vm: {sentence}", (await said(capsys, "--explain"))[1])
    await program.pause()
    program.irqfds[0].unmask()
    with EventFd() as other:
        program.assign(other, gsi=6)
        first, second, third = (await said(capsys, "--explain"))[1].splitlines()
        assert first == "vm:"
        assert second.startswith("  uart (gsi 5): its manager is paused")
        assert third.startswith("  gsi 6: its manager is paused")


async def test_it_watches_until_it_is_stopped(program, capsys):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        # As in test_command: main() ends it in a line.
        await asyncio.to_thread(inspect.run, ["vm.sock", "managers/vm/stage", "--watch", "0.5"], sleep=sleep)
    assert looks == [0.5, 0.5, 0.5]
    assert capsys.readouterr().out == "open\n" * 3


async def test_it_writes_a_setting(program, capsys):
    tracer = StructlogTracer()
    level = f"tracers/{nodes.key_of(tracer)}/level"
    assert await said(capsys, level, "--set", "error") == (0, "", "")
    assert tracer.level == "error"
    why = "aioirqfd inspect: a level is one of debug, info, warning, error, off, not 5\n"
    assert await said(capsys, level, "--set", "5") == (1, "", why)


async def test_a_recorder_is_turned_off_and_on_by_any_word_for_it(program, capsys):
    recorder = FlightRecorder()
    on = f"tracers/{nodes.key_of(recorder)}/on"
    for word, value in (("no", False), ("yes", True), ("off", False), ("On", True), ("false", False), ("true", True)):
        assert await said(capsys, on, "--set", word) == (0, "", "")
        assert recorder.on is value
    for word, shown in (("maybe", "'maybe'"), ("1", "1"), ("null", "None")):
        why = f"aioirqfd inspect: on is one of yes, on, true, no, off, false, not {shown}\n"
        assert await said(capsys, on, "--set", word) == (1, "", why)


@pytest.mark.parametrize("path", ["tracers/*/on", "*/0/on", "tracers/0/*"])
async def test_one_setting_is_written_at_a_time(program, capsys, path):
    recorder = FlightRecorder()
    why = f"aioirqfd inspect: '{path}' stands for several, and one setting is written at a time: say which, without *\n"
    assert await said(capsys, path, "--set", "no") == (1, "", why)
    assert recorder.on is True


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["managers/none"], "aioirqfd inspect: managers: there is no 'none', only vm\n"),
        (["--json", "x"], "aioirqfd inspect: there is no 'x', only process, managers, msix"),
    ],
)
async def test_what_is_not_there_is_said_in_a_line(program, capsys, arguments, why):
    status, out, err = await said(capsys, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith(why)
    assert err.count("\n") == 1


def test_where_nobody_listens_is_said_in_a_line(tmp_path, capsys):
    assert inspect.run([str(tmp_path / "none.sock")]) == 1
    assert re.fullmatch(r"aioirqfd inspect: .*No such file or directory: '.*none\.sock'\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--depth", "-1"], "a depth is 0 or more, not -1"),
        (["--depth", "x"], "invalid _depth value: 'x'"),
        (["--watch", "0"], "a number of seconds above 0, not 0"),
        (["--set", "1", "--explain"], "--set writes, and takes none of --explain, --watch, --depth"),
    ],
)
def test_a_wrong_option_is_refused(capsys, arguments, why):
    with pytest.raises(SystemExit) as ended:
        inspect.run(["vm.sock", *arguments])
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "--help"])
    assert ended.value.code == 0
    assert "aioirqfd inspect vmm.sock --explain" in capsys.readouterr().out


async def test_as_a_command_of_another_process(program):
    command = [sys.executable, "-P", "-W", "error", "-m", "aioirqfd", "inspect", "vm.sock", "managers/vm/stage"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "open\n", "")
