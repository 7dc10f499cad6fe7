"""The command language: what is more than in the chaos disk's tests."""

from __future__ import annotations

import asyncio
import json

import pytest

from aioirqfd.faults import Delay, Fail, Faults, Match, Misroute
from aioirqfd.faults.command import USAGE, parse
from aioirqfd.faults.control import Control
from aioirqfd.pci import Bar, PciDevice, PciFunction, Register

TYPES = ("read", "write", "flush")


@pytest.mark.parametrize(
    ("line", "match", "fault"),
    [
        ("on write nth=3 do fail", Match("write", nth=3), Fail()),
        (
            "on read,write queue=0,1 every=5 do fail status=0x10",
            Match(("read", "write"), queue=(0, 1), every=5),
            Fail(16),
        ),
        (
            "on any probability=0.5 until=2.5 do delay seconds=1 jitter=0.25",
            Match(probability=0.5, until=2.5),
            Delay(1, 0.25),
        ),
        ("on register-read offset=0x1c register=status do delay seconds=0.5", None, Delay(0.5)),
        ("on interrupt vector=pin count=1 do misroute to=2", Match("interrupt", vector="pin", count=1), Misroute(2)),
        ("on write content=COMMIT do fail", Match("write", content=b"COMMIT"), Fail()),
    ],
)
def test_any_match_and_any_fault(line, match, fault):
    command = parse(line, 0, ())
    assert command.fault == fault
    if match is not None:
        assert repr(command.match) == repr(match)
    else:
        assert repr(command.match) == "Match('register-read', offset=28, register='status')"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("on", "`do` is missing, and a fault after it (on KIND"),
        ("on write", "`do` is missing"),
        ("on do fail", "the kind of requests is missing"),
        ("on nth=3 do fail", "the kind of requests is missing"),
        ("on write do", "no fault ''; there are delay, withhold"),
        ("on write do fial", "no fault 'fial'; there are delay"),
        ("on write nth=x do fail", "nth is a whole number from 0 on, not 'x'"),
        ("on write nth=0 do fail", "nth is 1 or more, not 0"),
        ("on write probability=2 do fail", "a probability is 0..1, not 2"),
        ("on write where=x do fail", "where is for Python; here, say fields"),
        ("on write do fail state=1", "no parameter 'state'; there are status"),
        ("on write do drop now=1", "no parameter 'now'; there is none"),
        ("on write do delay", "something is missing, of seconds, jitter"),
        ("on write do delay seconds=soon", "seconds is a number from 0 on, not 'soon'"),
        ("on write do reorder window=1.5", "window is a whole number, not '1.5'"),
        ("on write do corrupt what=all", "what is corrupted is one of data, written, length, id, not 'all'"),
        ("remove", "the name of a fault is missing (remove FAULT-NAME)"),
        ("remove one two", "'two' has no place here"),
        ("wait one x", "HITS is a whole number from 0 on, not 'x'"),
        ("set delay=1", "this device has no queues that settings are for: say what is to happen with `on`"),
    ],
)
def test_bad_commands(line, why):
    with pytest.raises(ValueError) as caught:
        parse(line, 0, ())
    assert why in str(caught.value)


def test_every_word_has_its_usage():
    for word, usage in USAGE.items():
        assert usage.split()[0] == word


@pytest.mark.trouble
async def test_a_command_that_raises_is_answered(monkeypatch, tmp_path):
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    faults = Faults()
    error = OSError(5, "two\nlines")

    def fail():
        raise error

    monkeypatch.setattr(faults, "clear", fail)
    server = await asyncio.start_unix_server(Control(faults).serve, str(tmp_path / "control.sock"))
    async with server:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
        writer.write(b"reset\nseed 5\n")
        assert await reader.readline() == b"error: OSError(5, 'two\\nlines')\n"
        assert await reader.readline() == b"ok\n"
        writer.close()
        await writer.wait_closed()
    assert [context["exception"] for context in heard] == [error]
    assert heard[0]["message"] == "aioirqfd: 'reset' on the control socket raised"


async def test_faults_come_and_go_by_name(serve):
    async with serve() as disk:
        control = Control(disk.faults)
        assert await control.command("on write nth=2 name=second do fail") == "second"
        waiting = asyncio.ensure_future(control.command("wait second"))
        assert [(await disk.ask("write"))[1] for _ in range(3)] == [0, 1, 0]
        assert await waiting == "ok"
        (fault,) = json.loads(await control.command("json"))["faults"]
        assert fault == {
            "name": "second",
            "match": "Match('write', nth=2)",
            "fault": "Fail(status=None)",
            "enabled": True,
            "requests": 2,
            "hits": 1,
        }
        assert await control.command("remove second") == "ok"
        with pytest.raises(ValueError, match="no fault 'second'; there are none"):
            await control.command("disable second")
        assert await control.command("on flush do fail") == "fail-2"
        await control.command("disable fail-2")
        assert await disk.ask("flush") == (b"", 0)
        await control.command("enable fail-2")
        assert await disk.ask("flush") == (b"", 1)
        await control.command("reset")
        assert disk.faults.active == ()


async def test_a_pci_device_takes_them_too():
    class Plain(PciDevice):
        bars = (Bar(4096),)
        value = Register(0, reset=5)

    faults = Faults(nonconforming=True)
    async with PciFunction(faults.wrap(Plain())) as function:
        control = Control(faults)
        await control.command("on register-read register=value name=gone do all-ones")
        assert await function.read(0, 0, 4) == b"\xff" * 4
        assert await control.command("status") == "gone=1/1"
        await control.command("on register-read name=kept do withhold")
        reading = asyncio.ensure_future(function.read(0, 0, 4))
        await control.command("wait kept")
        await asyncio.sleep(0)
        await control.command("release")
        await reading
        await control.command("reset")
        assert await function.read(0, 0, 4) == b"\x05\0\0\0"
