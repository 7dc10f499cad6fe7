"""What goes wrong in a device: its author sees it, once, and nobody's log is flooded."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false
# (what is not there, or of another kind, fails the test, as it should)
from __future__ import annotations

import asyncio
import subprocess
import sys
import traceback

import pytest

from aioirqfd.serving.reports import Reports
from aioirqfd.testing import RecordingTracer
from aioirqfd.tracer import described
from aioirqfd.vhost_user import Backend
from aioirqfd.vhost_user.messages import Request, VringFd, VringState
from aioirqfd.virtio import Chain, Device
from tests.vhost_user.devices import Upper
from tests.vhost_user.frontend import FrontEnd, connected


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return "socket"


@pytest.fixture
def heard():
    """What the loop's exception handler hears, once a test has said listen(): (message, exception)."""
    said = []
    yield said
    said.clear()  # an error holds its request, and that the guest's memory


def listen(heard):
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: heard.append((context["message"], context["exception"]))
    )


class Typo(Device):
    """Fails in the ways that it is asked to."""

    async def handle(self, request: Chain) -> int:
        what = request.read()
        if what == b"late":
            await asyncio.sleep(0)
        if what == b"other":
            raise LookupError(what)
        if what == b"cancel":
            raise asyncio.CancelledError
        if what == b"text":
            return "many"  # type: ignore[return-value]
        return request.wriet(b"x")  # type: ignore[attr-defined]


async def test_a_typo_is_on_the_terminal_at_the_first_request_and_only_then(path, heard):
    listen(heard)
    async with Backend(Typo(), path) as backend, FrontEnd(path) as front:
        queue = await front.start()
        assert await queue.ask([b"a"], [8]) == b""
        ((message, error),) = heard
        assert message == "aioirqfd: handle() of Typo raised for a request of queue 0"
        assert "request.wriet(b" in "".join(traceback.format_exception(error))
        for _ in range(50):
            assert await queue.ask([b"late"], [8]) == b""
        assert len(heard) == 1
        # Another mistake is another one.
        for _ in range(3):
            for what in (b"other", b"cancel", b"text"):
                assert await queue.ask([what], [8]) == b""
        assert [type(error) for _, error in heard[1:]] == [LookupError, asyncio.CancelledError, TypeError]
        assert backend.statistics().queues[0].failed == 60


async def test_the_next_front_end_hears_of_it_again(path, heard):
    listen(heard)
    async with Backend(Typo(), path):
        for _ in range(20):
            async with FrontEnd(path) as front:
                queue = await front.start()
                await queue.ask([b"a"], [8])
                await queue.ask([b"a"], [8])
    # Once for each of them would be a way to flood it: 1 and 10 of 20, in less than a second.
    assert len(heard) == 2


async def test_with_a_tracer_it_is_traced_and_rate_limited(path, heard):
    listen(heard)
    tracer = RecordingTracer()
    async with Backend(Typo(), path, tracer=tracer), FrontEnd(path) as front:
        queue = await front.start()
        for _ in range(99):
            await queue.ask([b"a"], [8])
        await queue.ask([b"other"], [8])
    assert heard == []
    first, tenth, other = tracer.of("request_failed")
    assert first.keys() == {"device", "queue", "head", "error", "exc_info"}
    assert (first["device"], first["queue"]) == ("Typo", 0)
    assert "wriet" in first["error"]
    assert "request.wriet(b" in "".join(traceback.format_exception(first["exc_info"]))
    for fields in tracer.of("request_failed"):
        del fields["exc_info"]  # it holds its request, and that the guest's memory
    assert tenth["suppressed"] == 8
    assert other["error"] == "LookupError(b'other')"


async def test_an_answer_that_fails_too_is_another_failure(path, heard):
    listen(heard)

    class Worse(Typo):
        def failed(self, request, error):
            raise ZeroDivisionError

    async with Backend(Worse(), path), FrontEnd(path) as front:
        queue = await front.start()
        assert await queue.ask([b"a"], [8]) == b""
    assert [message.partition("(")[0] for message, _ in heard] == ["aioirqfd: handle", "aioirqfd: failed"]


async def test_what_a_request_raises_when_its_ring_has_gone_is_heard(path, heard):
    listen(heard)

    class Clumsy(Device):
        begun = False

        async def handle(self, request):
            self.begun = True
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                raise KeyError("cleaning up")

    device = Clumsy()
    async with Backend(device, path):
        async with FrontEnd(path) as front:
            queue = await front.start()
            queue.put([b"a"], [8])
            while not device.begun:
                await asyncio.sleep(0)
        async with FrontEnd(path) as front:
            assert await front.number(Request.GET_QUEUE_NUM) == 1
    assert [type(error) for _, error in heard] == [KeyError]


async def test_each_part_of_a_device_is_heard_and_the_rest_goes_on(path, heard):
    listen(heard)

    class Bad(Upper):
        def interrupt(self, queue, ring):
            raise KeyError("interrupt")

        def stopping(self, queue):
            raise KeyError("stopping")

        def reset(self):
            raise KeyError("reset")

        async def background(self):
            raise KeyError("background")

        async def handle(self, request):
            if request.read() == b"slow":
                for _ in range(20):
                    await asyncio.sleep(0)
            return await super().handle(request)

    async with Backend(Bad(), path) as backend, FrontEnd(path) as front:
        queue = await front.start()
        assert await queue.ask([b"a"], [1]) == b"A"
        assert await queue.ask([b"slow"], [4]) == b"SLOW"
        queue.put([b"slow"], [4])
        while backend.statistics().queues[0].requests < 3:
            await asyncio.sleep(0)
        await queue.stop()
        await front.tell(Request.RESET_DEVICE)
    assert {error.args[0] for _, error in heard} == {"background", "interrupt", "stopping", "reset"}


async def test_a_device_without_a_repr_of_its_error_is_served_on(path):
    class Nameless(Exception):  # noqa: N818
        def __repr__(self):
            raise ZeroDivisionError

    class Raises(Device):
        async def handle(self, request):
            raise Nameless

    tracer = RecordingTracer()
    async with Backend(Raises(), path, tracer=tracer), FrontEnd(path) as front:
        queue = await front.start()
        for _ in range(3):
            assert await queue.ask([b"a"], [1]) == b""
    assert described(Nameless()) == "Nameless"
    assert [fields["error"] for fields in tracer.of("request_failed")] == ["Nameless"]


# -- the front-end's trouble ---------------------------------------------------------------------------------------------


async def test_refused_messages_are_told_in_time(path):
    tracer = RecordingTracer()
    async with Backend(Upper(), path, tracer=tracer), FrontEnd(path) as front:
        for _ in range(500):
            await front.send(Request.SET_VRING_NUM, VringState(7, 8))
        await front.send(Request.SET_VRING_CALL, VringFd(7, has_fd=False))
        await front.number(Request.GET_QUEUE_NUM)
    told = tracer.of("message_refused")
    assert [fields.get("suppressed") for fields in told] == [None, 8, 89, None]
    assert told[0] == {"device": "Upper", "request": "SET_VRING_NUM", "reason": "no queue 7 of 1"}
    assert told[-1]["request"] == "SET_VRING_CALL"


async def test_made_up_trouble_is_bounded(path):
    tracer = RecordingTracer()
    async with Backend(Upper(), path, tracer=tracer), FrontEnd(path) as front:
        for index in range(2000):
            await front.send(Request.SET_VRING_NUM, VringState(100 + index, 8))
        await front.number(Request.GET_QUEUE_NUM)
    assert len(tracer.of("message_refused")) < 80


async def test_a_guest_that_breaks_its_ring_for_ever_is_told_in_time(path):
    tracer = RecordingTracer()
    async with Backend(Upper(), path, tracer=tracer) as backend, FrontEnd(path) as front:
        await front.negotiate()
        await front.set_memory()
        for _ in range(50):
            queue = front.queue(0, 8)
            await queue.start()
            queue.driver.publish(4000)
            queue.kick.signal()
            assert await queue.err.read() == 1
            await queue.stop()
            queue.close()
            front.ram._top = 0
            front.ram.view[:4096] = bytes(4096)
        assert backend.statistics().queues[0].starts == 50
    stopped = [fields for fields in tracer.of("vring_stopped") if fields["reason"]]
    assert [fields.get("suppressed") for fields in stopped] == [None, 8]


async def test_a_tracer_that_raises_ends_no_session(path, heard):
    listen(heard)

    class Full:
        per_interrupt = False

        def emit(self, event, /, **fields):
            raise OSError(event)

    async with Backend(Typo(), path, tracer=Full()), FrontEnd(path) as front:
        queue = await front.start()
        assert await queue.ask([b"a"], [8]) == b""
        assert await front.status(12345) == 1
    assert heard


# -- the reports themselves ----------------------------------------------------------------------------------------------


class Loop:
    """A loop's clock and exception handler."""

    def __init__(self):
        self.now = 0.0
        self.contexts = []

    def time(self):
        return self.now

    def call_exception_handler(self, context):
        self.contexts.append(context)


def raised(what):
    with pytest.raises(KeyError) as caught:
        raise KeyError(what)
    return caught.value


@pytest.mark.invented
@pytest.mark.usefixtures("seconds_pass")
def test_a_place_that_raises_is_heard_once_a_front_end():
    from aioirqfd.tracer import NULL_TRACER

    loop = Loop()
    reports = Reports(NULL_TRACER, loop)
    for number in range(3):
        reports.raised("request_failed", "m", raised(number))
        loop.now += 100
    assert [context["exception"].args for context in loop.contexts] == [(0,)]
    reports.begin()
    reports.raised("request_failed", "m", raised(3))
    reports.raised("request_failed", "m", KeyError("from nowhere"))
    assert [context["exception"].args[0] for context in loop.contexts] == [0, 3, "from nowhere"]


# -- as a program --------------------------------------------------------------------------------------------------------

PROGRAM = """
from aioirqfd.vhost_user import run
from aioirqfd.virtio import Device
class Broken(Device):
    async def handle(self, request):
        return request.wriet(b"x")
run(Broken(), "socket")
"""


async def test_the_traceback_is_on_standard_error(path):
    with subprocess.Popen(
        [sys.executable, "-P", "-W", "error", "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "Broken: listening at 'socket'\n"
        async with FrontEnd(await connected(path)) as front:
            queue = await front.start()
            for _ in range(10):
                assert await queue.ask([b"a"], [8]) == b""
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 0
    assert said.count("Traceback") == 1
    assert said.count("AttributeError: 'Chain' object has no attribute 'wriet'") == 1
