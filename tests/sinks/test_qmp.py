from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from aioirqfd import IrqchipPin
from aioirqfd.sinks.qmp import Qmp, QmpError
from aioirqfd.sinks.qtest import find_pins

# A machine with half a PIC, a chip somewhere deep, and two IOAPICs of which the first counts.
TREE = {
    "/machine": {"unattached": "child<container>", "q": "child<q-machine>", "type": "string"},
    "/machine/unattached": {"device[0]": "child<cpu>", "device[1]": "child<isa-i8259>", "io": "child<memory-region>"},
    "/machine/unattached/device[0]": {"lapic": "child<apic>"},
    "/machine/unattached/device[0]/lapic": {},
    "/machine/unattached/device[1]": {f"unnamed-gpio-in[{pin}]": "child<irq>" for pin in range(8)},
    "/machine/q": {"ioapic": "child<ioapic>", "below": "child<bus>"},
    "/machine/q/ioapic": {f"unnamed-gpio-in[{pin}]": "child<irq>" for pin in range(3)},
    "/machine/q/below": {"ioapic": "child<ioapic>"},
    "/machine/q/below/ioapic": {f"unnamed-gpio-in[{pin}]": "child<irq>" for pin in range(24)},
}


@contextlib.asynccontextmanager
async def played(path, answer):
    """A QMP socket whose answers are the test's: JSON objects, or None to hang up."""
    done = asyncio.Event()

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
            async for line in reader:
                command = json.loads(line)
                number = command.pop("id")
                replies = [{"return": {}}] if command["execute"] == "qmp_capabilities" else answer(command)
                if asyncio.isfuture(replies):
                    replies = await replies
                if replies is None:
                    break
                for reply in replies:
                    # As QEMU does it: what answers a command carries its id, an event carries none.
                    own = {} if "event" in reply else {"id": number}
                    writer.write(json.dumps(reply | own).encode() + b"\n")
        writer.close()
        done.set()

    server = await asyncio.start_unix_server(serve, str(path))
    async with await Qmp.connect(path) as qmp:
        yield qmp
    server.close()
    await done.wait()


async def test_events_between_are_kept_and_arguments_sent(tmp_path):
    commands = []

    def answer(command):
        commands.append(command)
        return [{"event": "STOP"}, {"event": "RESUME"}, {"return": "text"}]

    async with played(tmp_path / "qmp", answer) as qmp:
        assert await qmp.hmp("info pic") == "text"
        assert qmp.events == [{"event": "STOP"}, {"event": "RESUME"}]
        assert commands == [{"execute": "human-monitor-command", "arguments": {"command-line": "info pic"}}]


async def test_a_refusal_is_an_error_and_the_next_command_goes_on(tmp_path):
    replies = [[{"error": {"class": "CommandNotFound", "desc": "no such thing"}}], [{"return": 3}]]
    async with played(tmp_path / "qmp", lambda _command: replies.pop(0)) as qmp:
        with pytest.raises(QmpError, match="no such thing"):
            await qmp.execute("frobnicate")
        assert await qmp.execute("count") == 3


async def test_a_hang_up_is_an_error(tmp_path):
    async with played(tmp_path / "qmp", lambda _command: None) as qmp:
        with pytest.raises(QmpError, match="hung up"):
            await qmp.execute("quit")
        with pytest.raises(QmpError, match="hung up"):
            await qmp.execute("quit")


async def test_the_reply_to_a_command_whose_caller_has_gone_is_nobodys(tmp_path):
    """Not the next command's, and every one's after it."""
    slow = asyncio.get_running_loop().create_future()
    arrived = asyncio.Event()

    def answer(command):
        if command["execute"] == "slow":
            arrived.set()
            return slow
        return [{"return": command["execute"]}]

    async with played(tmp_path / "qmp", answer) as qmp:
        gone = asyncio.ensure_future(qmp.execute("slow"))
        await arrived.wait()
        gone.cancel()
        await asyncio.wait({gone})
        following = asyncio.ensure_future(qmp.execute("fast"))
        slow.set_result([{"event": "STOP"}, {"return": "slow"}])
        assert await following == "fast"
        assert await qmp.execute("faster") == "faster"
        assert qmp.events == [{"event": "STOP"}]


async def test_two_at_once_take_turns(tmp_path):
    async with played(tmp_path / "qmp", lambda command: [{"return": command["execute"]}]) as qmp:
        assert await asyncio.gather(*(qmp.execute(f"c{number}") for number in range(5))) == [f"c{n}" for n in range(5)]


@pytest.mark.parametrize(("master", "first"), [(True, 0), (False, 8)])
async def test_pins_that_are_there_are_found(tmp_path, master, first):
    def answer(command):
        arguments = command["arguments"]
        if command["execute"] == "qom-get":
            assert arguments == {"path": "/machine/unattached/device[1]", "property": "master"}
            return [{"return": master}]
        return [{"return": [{"name": name, "type": kind} for name, kind in TREE[arguments["path"]].items()]}]

    async with played(tmp_path / "qmp", answer) as qmp:
        pins = await find_pins(qmp)
    pic = {IrqchipPin("pic", first + pin): ("/machine/unattached/device[1]", pin) for pin in range(8)}
    assert pins == pic | {IrqchipPin("ioapic", pin): ("/machine/q/ioapic", pin) for pin in range(3)}
