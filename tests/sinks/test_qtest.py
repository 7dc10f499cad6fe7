from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

import aioirqfd.sinks
from aioirqfd import Action, EventFd, InjectionError, Interrupt, IrqchipPin, IrqManager, Msi, Retry, WorkQueue
from aioirqfd.sinks import QtestSink
from aioirqfd.sinks.qtest import QtestClient, QtestClosedError, QtestError
from tests.sinks.qtest_peer import Peer

PIC = ("/pic/master", "/pic/slave")
IOAPIC = "/ioapic"
PIN = IrqchipPin("ioapic", 5)
PULSE = ["set_irq_in /ioapic unnamed-gpio-in 5 1", "set_irq_in /ioapic unnamed-gpio-in 5 0"]


@pytest.fixture
async def peer(tmp_path):
    async with Peer(tmp_path / "qtest") as peer:
        yield peer


@pytest.fixture
async def sink(peer):
    async with await QtestSink.connect(peer.path, pic=PIC, ioapic=IOAPIC) as sink:
        yield sink


@pytest.fixture
async def eager(peer):
    sink = await QtestSink.connect(peer.path, pic=PIC, ioapic=IOAPIC, confirm=False, maxsize=8)
    yield sink
    await sink.client.aclose()


def test_exported_by_name():
    assert "QtestSink" in aioirqfd.sinks.__all__
    assert aioirqfd.sinks.QtestSink is QtestSink


# ---------------------------------------------------------------------------------------------------------- the client


async def test_a_reply_cut_anywhere_and_two_in_one(peer):
    async with await QtestClient.connect(peer.path) as client:
        peer.holding = True
        first, second = client.submit("inb 0x20"), client.submit("inb 0x21")
        await peer.heard(2)
        peer.say("OK 0x")
        peer.say("0020\nOK 0x0021\n")
        assert await first == "0x0020"
        assert await second == "0x0021"
        assert client.replies == 3
        assert client.outstanding == 0


async def test_replies_go_to_their_commands(peer):
    peer.answer = lambda command: f"OK {command[-1]}\n" if command != "c 3" else "FAIL no 3\n"
    async with await QtestClient.connect(peer.path) as client:
        assert await client.commands("c 1", "c 2") == ["1", "2"]
        with pytest.raises(QtestError, match="no 3"):
            await client.commands("c 2", "c 3", "c 4")
        assert await client.submit("c 4", "c 5") == "5"
        with pytest.raises(QtestError, match="no 3"):
            await client.submit("c 3", "c 5")
        assert await client.command("c 6") == "6"


async def test_what_a_command_causes_is_heard_before_its_reply(peer):
    heard = []
    async with await QtestClient.connect(peer.path, on_irq=lambda line, level: heard.append((line, level))) as client:
        peer.answer = lambda _command: "IRQ raise 4\nIRQ lower 4\nOK\n"
        future = client.submit("outb 0x3f9 2")
        future.add_done_callback(lambda _future: heard.append("OK"))
        await future
        assert heard == [(4, True), (4, False), "OK"]


@pytest.mark.parametrize("line", ["HTTP/1.1 400", "OK", "IRQ raise x", "IRQ push 4", "IRQ raise ²"])
async def test_what_is_not_the_protocol_ends_the_connection(peer, line):
    async with await QtestClient.connect(peer.path) as client:
        client._take(line)
        assert client.closed
        with pytest.raises(QtestClosedError, match="not a qtest"):
            await client.command("inb 0x20")


async def test_an_endless_line_ends_the_connection(peer):
    async with await QtestClient.connect(peer.path) as client:
        client.data_received(bytes(1 << 20))
        assert not client.closed
        client.data_received(b"x")
        assert client.closed


@pytest.mark.parametrize("command", ["", "inb 1\ninb 2", "inb 1\n"])
async def test_a_command_is_one_line(peer, command):
    async with await QtestClient.connect(peer.path) as client:
        with pytest.raises(ValueError, match="one line"):
            client.submit(command)
        assert client.outstanding == 0
        assert await client.command("inb 0x20") == ""
        assert peer.commands == ["inb 0x20"]


async def test_a_hang_up_fails_everything_that_waits(peer):
    async with await QtestClient.connect(peer.path) as client:
        peer.holding = True
        futures = [client.submit("inb 1"), client.submit("inb 2", "inb 3")]
        await peer.heard(3)
        peer.hang_up()
        for future in futures:
            with pytest.raises(QtestClosedError):
                await future
        with pytest.raises(QtestClosedError):
            client.submit("inb 4")


async def test_closing_fails_everything_that_waits_and_is_idempotent(peer):
    client = await QtestClient.connect(peer.path)
    peer.holding = True
    future = client.submit("inb 1")
    await client.aclose()
    with pytest.raises(QtestClosedError):
        await future
    await client.aclose()


async def test_a_peer_that_hangs_up_at_once(peer):
    peer.holding = True

    async def hang_up_soon():
        while peer._writer is None or not peer._held:
            await asyncio.sleep(0)
        peer.hang_up()

    task = asyncio.ensure_future(hang_up_soon())
    with pytest.raises(QtestClosedError):
        await QtestClient.connect(peer.path)
    await task


async def test_nobody_listens(tmp_path):
    with pytest.raises(FileNotFoundError):
        await QtestSink.connect(tmp_path / "nothing")


# ----------------------------------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    ("interrupt", "commands"),
    [
        (Interrupt(5, PIN), PULSE),
        (Interrupt(5, PIN, Action.ASSERT), PULSE[:1]),
        (Interrupt(5, PIN, Action.DEASSERT), PULSE[1:]),
        (Interrupt(0, IrqchipPin("ioapic", 23), Action.ASSERT), ["set_irq_in /ioapic unnamed-gpio-in 23 1"]),
        (Interrupt(7, IrqchipPin("pic", 7), Action.ASSERT), ["set_irq_in /pic/master unnamed-gpio-in 7 1"]),
        (Interrupt(8, IrqchipPin("pic", 8), Action.ASSERT), ["set_irq_in /pic/slave unnamed-gpio-in 0 1"]),
        (Interrupt(8, IrqchipPin("pic", 15), Action.DEASSERT), ["set_irq_in /pic/slave unnamed-gpio-in 7 0"]),
        (Interrupt(30, Msi(0xFEE00000, 0x61)), ["writel 0xfee00000 0x61"]),
        (Interrupt(30, Msi(2**64 - 4, 2**32 - 1), Action.ASSERT), ["writel 0xfffffffffffffffc 0xffffffff"]),
        (Interrupt(30, Msi(0xFEE00000, 0x61), Action.DEASSERT), []),
    ],
)
async def test_each_interrupt_has_its_commands(peer, sink, interrupt, commands):
    await sink.inject(interrupt)
    assert peer.commands == commands


async def test_the_fast_path_sends_the_same(peer, eager):
    assert eager.try_inject(Interrupt(5, PIN))
    assert eager.try_inject_batch([Interrupt(5, PIN, Action.ASSERT), Interrupt(1, Msi(16, 3))]) == 2
    await eager.flush()
    assert peer.commands == [*PULSE, PULSE[0], "writel 0x10 0x3"]


@pytest.mark.parametrize("pin", [IrqchipPin("ioapic", 0), IrqchipPin("ioapic", 23)])
async def test_a_pin_that_is_not_there_is_never_sent(peer, pin):
    async with await QtestSink.connect(peer.path, pic=PIC, confirm=False) as sink:
        assert not sink.try_inject(Interrupt(5, pin))
        assert sink.try_inject_batch([Interrupt(1, IrqchipPin("pic", 1)), Interrupt(5, pin)]) == 1
        with pytest.raises(QtestError, match="no ioapic pin"):
            await sink.inject(Interrupt(5, pin))
        with pytest.raises(QtestError, match="no"):
            await sink.intercept_inputs(pin)
        await sink.flush()
    assert len(peer.commands) == 2


async def test_a_message_cannot_name_its_sender(peer, sink):
    with pytest.raises(QtestError, match="from whom"):
        await sink.inject(Interrupt(1, Msi(0xFEE00000, 1, devid=3)))
    assert peer.commands == []


# ----------------------------------------------------------------------------------------------- when it is delivered


async def test_an_interrupt_is_delivered_with_its_last_reply_and_not_before(peer, sink):
    peer.holding = True
    assert not sink.try_inject(Interrupt(5, PIN))
    task = asyncio.ensure_future(sink.inject(Interrupt(5, PIN)))
    await peer.heard(2)
    peer.say("OK\n")
    while sink.client.replies < 2:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    peer.say("OK\n")
    await task


async def test_workers_pipeline(peer, sink):
    peer.holding = True
    async with IrqManager(sink, queue=WorkQueue(workers=3)) as irqs:
        with contextlib.ExitStack() as stack:
            for gsi in range(4):
                eventfd = stack.enter_context(EventFd())
                irqs.assign(eventfd, gsi=gsi)
                eventfd.signal()
            await peer.heard(6)  # three at once, before any reply
            peer.release()
            await irqs.flush()
            assert len(peer.commands) == 8


async def test_a_refusal_is_tried_again_and_becomes_an_injection_error(peer, sink):
    peer.answer = lambda command: "FAIL Unknown device\n" if "5 1" in command else "OK\n"
    errors = []
    with EventFd() as eventfd:
        with pytest.raises(InjectionError, match="Unknown device") as caught:
            async with IrqManager(sink, retry=Retry(2, 0, 0), on_error=errors.append) as irqs:
                irqfd = irqs.assign(eventfd, gsi=5)
                eventfd.signal()
                await irqs.flush()
                assert len(peer.commands) == 6
                assert isinstance(irqfd.error, InjectionError)
                # The others are not concerned.
                with EventFd() as other:
                    irqs.assign(other, gsi=6)
                    other.signal()
                    await irqs.flush()
                assert len(peer.commands) == 8
        assert isinstance(caught.value.__cause__, QtestError)
        assert errors == [caught.value]
        assert eventfd.read_nowait() == 1  # nothing is lost


@pytest.mark.trouble
async def test_a_hang_up_becomes_an_injection_error(peer, sink):
    peer.holding = True
    with EventFd() as eventfd:
        with pytest.raises(InjectionError) as caught:
            async with IrqManager(sink, retry=Retry(1, 0, 0)) as irqs:
                irqs.assign(eventfd, gsi=5)
                eventfd.signal()
                await peer.heard(2)
                peer.hang_up()
                await irqs.flush()
        assert isinstance(caught.value.__cause__, QtestClosedError)
        assert eventfd.read_nowait() == 1


async def test_a_level_line_goes_up_once_and_down_at_the_ack(peer, sink):
    async with IrqManager(sink) as irqs:
        with EventFd() as trigger, EventFd() as resample:
            irqfd = irqs.assign(trigger, gsi=5, resamplefd=resample)
            for _ in range(3):
                trigger.signal()
                await irqs.flush()
                irqs.ack(5)
                assert await resample.read() == 1
            await irqs.deassign(irqfd)
    assert peer.commands == PULSE * 3


# ------------------------------------------------------------------------------------------------- without confirm


async def test_taken_at_once_up_to_the_bound(peer, eager):
    peer.holding = True
    pulses = [Interrupt(5, PIN)] * 3
    assert eager.try_inject_batch(pulses) == 3
    assert eager.client.outstanding == 6
    assert eager.try_inject_batch([Interrupt(5, PIN), Interrupt(5, PIN, Action.ASSERT)]) == 1
    assert not eager.try_inject(Interrupt(5, PIN, Action.ASSERT))
    assert eager.client.outstanding == 8
    peer.release()
    await eager.flush()
    assert peer.commands == PULSE * 4
    assert eager.try_inject(Interrupt(5, PIN, Action.ASSERT))


async def test_a_late_refusal_is_not_forgotten(peer, eager):
    peer.answer = lambda command: "FAIL Unknown device\n" if " 5 " in command else "OK\n"
    sent = [Interrupt(4, IrqchipPin("ioapic", 4)), Interrupt(5, PIN)]
    assert eager.try_inject_batch(sent) == 2
    with pytest.raises(QtestError, match="Unknown device"):
        await eager.flush()
    assert eager.unconfirmed == sent
    assert not eager.try_inject(sent[0])
    with pytest.raises(QtestError, match="Unknown device"):
        await eager.inject(sent[0])
    with pytest.raises(QtestError, match="Unknown device"):
        await eager.aclose()
    await eager.aclose()


@pytest.mark.trouble
async def test_a_late_hang_up_is_not_forgotten(peer, eager):
    peer.holding = True
    with EventFd() as eventfd:
        with pytest.raises(InjectionError):
            async with IrqManager(eager, retry=Retry(0, 0, 0)) as irqs:
                irqfd = irqs.assign(eventfd, gsi=5)
                eventfd.signal()
                await irqs.flush()
                assert irqfd.statistics().fast == 1
                await peer.heard(2)
                peer.hang_up()
                while not eager.client.closed:
                    await asyncio.sleep(0)
                eventfd.signal()
                await irqs.flush()
        assert eventfd.read_nowait() == 1
    assert eager.unconfirmed == [Interrupt(5, PIN)]


async def test_leaving_raises_what_came_late(peer):
    peer.answer = lambda _command: "FAIL no\n"
    with pytest.raises(QtestError, match="no"):
        async with await QtestSink.connect(peer.path, ioapic=IOAPIC, confirm=False) as sink:
            sink.try_inject(Interrupt(5, PIN))
    with pytest.raises(KeyError):
        async with await QtestSink.connect(peer.path, ioapic=IOAPIC, confirm=False) as sink:
            sink.try_inject(Interrupt(5, PIN))
            raise KeyError


async def test_another_thread_is_refused(peer, eager):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(eager.try_inject(Interrupt(5, PIN))))
    thread.start()
    thread.join()
    assert answers == [False]
    await eager.flush()
    assert peer.commands == []


async def test_the_bound_has_room_for_an_edge(peer):
    async with await QtestClient.connect(peer.path) as client:
        with pytest.raises(ValueError, match="2 or more"):
            QtestSink(client, {}, confirm=False, maxsize=1)


# ------------------------------------------------------------------------------------------------------- reading back


async def test_intercepted_lines_are_kept_and_told(peer, sink):
    told = []
    sink.on_irq = lambda line, level: told.append((line, level))
    await sink.intercept_inputs(PIN)
    peer.answer = lambda command: f"IRQ {'raise' if command.endswith('1') else 'lower'} 5\nOK\n"
    for _ in range(3):
        await sink.inject(Interrupt(5, PIN))
    assert told == [(5, True), (5, False)] * 3
    assert sink.raises == {5: 3}
    assert sink.levels == {5: False}
    await sink.inject(Interrupt(5, PIN, Action.ASSERT))
    assert sink.levels == {5: True}
    assert peer.commands[0] == "irq_intercept_in /ioapic"


async def test_outputs_are_intercepted_by_pin(peer, sink):
    await sink.intercept_outputs(IrqchipPin("pic", 9))
    assert peer.commands == ["irq_intercept_out /pic/slave"]
