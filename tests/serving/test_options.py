"""What the programs that serve a device let their user watch."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from aioirqfd.inspect import InspectClient
from aioirqfd.serving.options import add_options, log, watched
from aioirqfd.serving.terminal import Terminal
from aioirqfd.tracer import listens
from aioirqfd.tracing import read_flight
from aioirqfd.vhost_user.messages import Request
from tests.vhost_user.frontend import FrontEnd, connected

PROGRAM = """
from aioirqfd.vhost_user import main
from aioirqfd.virtio import Device

class Broken(Device):
    async def handle(self, request):
        return request.wriet(b"x")

main(lambda options: Broken(), kind="rng")
"""


def asked(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(arguments)


def test_without_a_word_trouble_alone_is_told():
    with watched(asked(), quiet := Terminal("it")) as tracer:
        assert tracer is quiet


def test_what_is_recorded_is_told_all_the_same(tmp_path, capsys):
    path = tmp_path / "flight"
    with watched(asked("--record", str(path)), Terminal("it")) as tracer:
        tracer.emit("message_refused", request="SET_VRING_NUM", reason="no queue 7")
        assert not listens(tracer), "what is raised goes to the loop's exception handler"
    assert capsys.readouterr().err == "it: message_refused request='SET_VRING_NUM' reason='no queue 7'\n"
    (record,) = read_flight(path).records
    assert (record.event, record.fields["request"]) == ("message_refused", "SET_VRING_NUM")
    with watched(asked("--record", str(path), "--trace", "json"), Terminal("it")) as tracer:
        assert listens(tracer)


def test_a_file_that_cannot_be_made_is_the_users_mistake(tmp_path):
    command = [
        sys.executable,
        "-P",
        "-W",
        "error",
        "-c",
        PROGRAM,
        "--socket-path",
        "socket",
        "--record",
        "nowhere/flight",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "No such file or directory" in done.stderr
    assert "nowhere/" in done.stderr
    assert done.stderr.count("\n") == 1


def failed():
    with pytest.raises(KeyError) as raised:
        raise KeyError("a typo")
    return raised.value


def test_for_programs_a_line_of_json_each(capsys):
    with watched(asked("--trace", "json"), Terminal("it")) as tracer:
        tracer.emit("interrupt_injected", gsi=5)
        tracer.emit("irqfd_masked", gsi=5)
        tracer.emit("request_failed", queue=0, head=1, error="KeyError()", exc_info=failed())
    masked, request = map(json.loads, capsys.readouterr().err.splitlines())
    assert (masked["event"], masked["level"], masked["gsi"]) == ("irqfd_masked", "info", 5)
    assert (request["level"], request["exception"][0]["exc_type"]) == ("warning", "KeyError")


def test_for_people_with_the_traceback(capsys):
    log("console").emit("request_failed", queue=0, head=1, error="KeyError()", exc_info=failed())
    said = capsys.readouterr().err
    assert "request_failed" in said
    assert "KeyError: 'a typo'" in said
    assert "Traceback" in said or "test_options.py" in said


def test_no_other_form():
    with pytest.raises(SystemExit):
        asked("--trace", "xml")


async def test_a_program_traces_what_happens_to_whom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-P", "-W", "error", "-c", PROGRAM, "--socket-path", "socket", "--trace", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Broken: listening at 'socket'\n"
        async with FrontEnd(await connected("socket")) as front:
            queue = await front.start()
            assert await queue.ask([b"a"], [8]) == b""
            assert await front.number(Request.GET_QUEUE_NUM) == 1
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 0
    events = [json.loads(line) for line in said.splitlines()]
    assert {event["device"] for event in events} == {"Broken"}
    (failed,) = [event for event in events if event["event"] == "request_failed"]
    assert failed["queue"] == 0
    assert failed["exception"][0]["exc_type"] == "AttributeError"
    # The kick and the call of queue 0 are told apart.
    managers = {event["manager"] for event in events if event["event"] == "irqfd_assigned"}
    assert managers == {"vhost_user-0-kicks", "vhost_user-0-calls"}
    assert {event["queue"] for event in events if event["event"] == "irqfd_assigned"} == {0}


async def test_a_program_serves_its_tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-P", "-W", "error", "-c", PROGRAM, "--socket-path", "socket", "--inspect", "tree"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Broken: listening at 'socket'\n"
        with InspectClient("tree") as client:
            tree = client.read("vhost_user/0", 0)
        process.terminate()
        _, said = process.communicate()
    assert isinstance(tree, dict)
    assert tree["device"] == "Broken"
    assert (process.returncode, said) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == []


@pytest.mark.parametrize("transport", ["vhost-user", "vfio-user"])
def test_a_tree_that_cannot_be_served_is_the_users_mistake(tmp_path, transport):
    options = ["--socket-path", "socket", "--transport", transport, "--inspect", "nowhere/tree"]
    command = [sys.executable, "-P", "-W", "error", "-c", PROGRAM, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "nowhere/tree" in done.stderr
    assert list(tmp_path.iterdir()) == []
