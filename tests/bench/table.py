"""The rows of the table: what is compared with what, and what is good enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.measure import Row
from tests.bench.scale import FEW, MANY
from tests.bench.threads import GIL

if TYPE_CHECKING:
    from collections.abc import Collection

ASYNCIO, UVLOOP = "asyncio", "uvloop"


def _both(what: str, ours: str, peer: str | None, targets: tuple[float | None, float | None]) -> list[Row]:
    return [
        Row(f"{what}, {loop}", ours.format(loop=loop), peer and peer.format(loop=loop), target)
        for loop, target in zip((ASYNCIO, UVLOOP), targets, strict=True)
    ]


ROWS: list[Row] = [
    *_both("64 external events / C floor", "external/64/{loop} aioirqfd", "external/64/C epoll+read", (0.8, 0.5)),
    *_both("1024 external events / C floor", "external/1024/{loop} aioirqfd", "external/1024/C epoll+read", (0.4, 0.4)),
    *_both("1 external event / add_reader", "external/1/{loop} aioirqfd", "external/1/{loop} add_reader", (1.1, 1.1)),
    *_both(
        "64 wakeup handlers / coroutine per fd",
        "handlers/64/{loop} aioirqfd",
        "handlers/64/{loop} coroutine per fd",
        (0.5, 0.5),
    ),
    *_both("signal() / write to a KVM irqfd (pin)", "signal/{loop} aioirqfd", "signal/KVM irqfd pin", (0.5, 0.5)),
    *_both("signal() / write to a KVM irqfd (MSI)", "signal/{loop} aioirqfd", "signal/KVM irqfd MSI", (0.5, 0.5)),
    *_both(
        "burst from a thread / call_soon_threadsafe",
        "burst/{loop} aioirqfd",
        "burst/{loop} call_soon_threadsafe",
        (0.05, 0.25),
    ),
    # With a GIL they take turns, and twice as long.
    *_both(
        "two loops in two threads / one",
        "loops/2/{loop}",
        "loops/1/{loop}",
        (None, None) if GIL else (0.65, 0.65),
    ),
    *_both(f"event beside {MANY} idle irqfds / none", f"idle/{MANY}/{{loop}}", "idle/0/{loop}", (1.1, 1.1)),
    *_both(f"assign at {MANY} / at {FEW}", f"assign/{MANY}/{{loop}}", f"assign/{FEW}/{{loop}}", (1.5, 1.5)),
    *_both(f"deassign at {MANY} / at {FEW}", f"deassign/{MANY}/{{loop}}", f"deassign/{FEW}/{{loop}}", (1.5, 1.5)),
    *_both(
        f"set_routing at {MANY} / at {FEW}", f"set_routing/{MANY}/{{loop}}", f"set_routing/{FEW}/{{loop}}", (1.5, 1.5)
    ),
    *_both(
        "event after a set_route of another gsi / without",
        "set_route/another/{loop}",
        "set_route/none/{loop}",
        (1.2, 1.2),
    ),
    *_both(f"closing {MANY} irqfds, ms", f"close/{MANY}/{{loop}}", None, (300, 300)),
    *_both("longest stall of the loop meanwhile, ms", f"close stall/{MANY}/{{loop}}", None, (20, 20)),
    Row("heap of an assigned irqfd, bytes", "heap", None, 850),
    *_both("flight recorder on / off", "recorder on/{loop}", "recorder off/{loop}", (1.1, 1.1)),
    *_both("flight recorder in a file / off", "recorder in a file/{loop}", "recorder off/{loop}", (1.1, 1.1)),
    Row("tracing off / compiled out, instructions", "hooks off", "hooks compiled out", 1.01),
    Row("import beyond asyncio, ms", "import", None, 60),
    *_both(
        "64 external events / add_reader", "external/64/{loop} aioirqfd", "external/64/{loop} add_reader", (None, None)
    ),
    *_both(
        "64 external events / anyio.wait_readable",
        "external/64/{loop} aioirqfd",
        "external/64/{loop} anyio.wait_readable",
        (None, None),
    ),
    Row("64 external events / trio wait_readable", "external/64/asyncio aioirqfd", "external/64/trio wait_readable"),
    *_both(
        "64 external events / C libuv uv_poll",
        "external/64/{loop} aioirqfd",
        "external/64/C libuv uv_poll",
        (None, None),
    ),
    *_both("1 external event / linuxfd", "external/1/{loop} aioirqfd", "external/1/{loop} linuxfd", (None, None)),
    *_both("burst from a thread / janus", "burst/{loop} aioirqfd", "burst/{loop} janus", (None, None)),
    *_both("vfio-user register read / C floor", "vfio read/{loop}", "vfio read/C floor", (None, None)),
    *_both("vfio-user register write / C floor", "vfio write/{loop}", "vfio write/C floor", (None, None)),
    *_both(
        "vfio-user interrupt / eventfd_write", "vfio interrupt/{loop}", "vfio interrupt/eventfd_write", (None, None)
    ),
    Row("KVM exit by serve() / by run() and io_exit()", "exit/serve", "exit/run and io_exit", 0.75),
    Row(
        "Python of an exit by serve() / by run() and io_exit()",
        "exit beyond KVM_RUN/serve",
        "exit beyond KVM_RUN/run and io_exit",
        0.5,
    ),
    Row("KVM exit by serve() / KVM_RUN alone", "exit/serve", "exit/KVM_RUN alone"),
    Row("OUT to an ioeventfd / KVM exit by serve()", "exit/ioeventfd", "exit/serve", 0.5),
    *_both(
        "call into the loop's thread / concurrent Future",
        "hop/{loop} LoopCalls",
        "hop/{loop} concurrent Future",
        (None, None),
    ),
]


def rows_for(names: Collection[str]) -> list[Row]:
    """The rows whose cases are there."""
    return [row for row in ROWS if row.ours in names and (row.peer is None or row.peer in names)]
