"""Where an interrupt stands, in sentences. The first names the segment of its way where it stops, and what to do about it.

It follows the way of one signal and stops at the first thing that stops a signal: the manager, the mask, the route, the sink's failures,
the handler, the sink, the queue; then what is behind the sink: a line that nobody has acknowledged, a chip. Nothing is computed until
somebody asks, and nothing is changed by asking.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from aioirqfd.irqfd.guard import report
from aioirqfd.irqfd.interrupt import Interrupt
from aioirqfd.irqfd.life import Stage
from aioirqfd.irqfd.since import MANAGER, place
from aioirqfd.irqfd.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aioirqfd.irqfd.binding import Binding
    from aioirqfd.irqfd.delivery import Delivery
    from aioirqfd.irqfd.life import Life
    from aioirqfd.irqfd.lines import Lines
    from aioirqfd.irqfd.routing import Routes
    from aioirqfd.irqfd.workqueue import WorkQueue


_STANDARD_LIBRARY: Final = str(Path(os.__file__).parent)


class _Manager(Protocol):
    """What is looked at of a manager."""

    @property
    def life(self) -> Life: ...
    @property
    def delivery(self) -> Delivery: ...
    @property
    def routes(self) -> Routes: ...
    @property
    def lines(self) -> Lines: ...
    @property
    def queue(self) -> WorkQueue: ...
    @property
    def bound(self) -> Mapping[int, Binding]: ...


def of_gsi(irqfds: _Manager, gsi: int) -> str:
    """What stops the interrupts of a gsi, one paragraph for each irqfd."""
    bound = [irqfd for irqfd in irqfds.bound.values() if irqfd.gsi == gsi]
    if bound:
        return "\n".join(of_irqfd(irqfds, irqfd) for irqfd in bound)
    stage = irqfds.life.stage
    if stage is not Stage.OPEN:
        return f"gsi {gsi}: the manager is {stage.name.lower()}; it delivers inside `async with` alone."
    others = sorted({irqfd.gsi for irqfd in irqfds.bound.values()})
    return f"gsi {gsi}: no irqfd is assigned to it; assign() binds an eventfd. Assigned are {others or 'none'}."


def of_all(irqfds: _Manager) -> str:
    """The same of every irqfd that something stops; or that nothing stops any."""
    stage = irqfds.life.stage
    if stage is not Stage.OPEN:
        return f"the manager is {stage.name.lower()}; it delivers inside `async with` alone."
    stopped = [irqfd for irqfd in irqfds.bound.values() if _tells(irqfd) and next(_stops(irqfds, irqfd), None)]
    found = [of_irqfd(irqfds, irqfd) for irqfd in stopped]
    for vectors in irqfds.delivery.vectors.values():
        found += [of_vector(irqfds, name, stop) for name, stop in vectors.waiting()]
    if found:
        return "\n".join(found)
    return f"nothing stops its {len(irqfds.bound)} irqfds."


def _tells(irqfd: Binding) -> bool:
    """Whether it is worth telling that it is stopped: that of a vector which the guest does not use is not."""
    return irqfd.trigger.why_masked is None or not irqfd.masked or irqfd.pending


def of_vector(irqfds: _Manager, name: str, stop: str) -> str:
    """The same of a device's vector that is signalled, and has no irqfd."""
    paused = f"its manager is paused{irqfds.delivery.since.said(MANAGER)}, and " if irqfds.routes.paused else ""
    return f"{name}: {paused}{stop}. An injection is owed; its signals are in its eventfd, uncounted."


def of_irqfd(irqfds: _Manager, irqfd: Binding) -> str:
    """What stops an irqfd's interrupts, if anything does, and its counts."""
    name = irqfd.trigger.name
    who = f"gsi {irqfd.gsi}" if name is None else f"{name} (gsi {irqfd.gsi})"
    if irqfd.closing:
        return f"{who}: the irqfd is deassigned; its eventfd is nobody's."
    counts = irqfd.statistics()
    runs = irqfd.trigger.running is not None or irqfd.state in {State.INJECTING, State.INJECTING_PENDING}
    pending = "an injection is under way" if runs else "nothing is owed"
    if irqfd.pending:
        pending = f"{pending}, and another is owed" if runs else "an injection is owed"
    parts = [f"{number} {name}" for name in ("signals", "injections", "coalesced") if (number := getattr(counts, name))]
    counted = ", ".join(parts) or "nothing"
    if irqfd.trigger.held:
        counted += ", and what is held is in its eventfd, uncounted"
    stop = next(_stops(irqfds, irqfd), None)
    if stop is None:
        stop = "nothing stops it" if counts.signals else "no signal has come since it was assigned"
    return f"{who}: {stop}. {pending.capitalize()}; counted: {counted}."


def _stops(irqfds: _Manager, irqfd: Binding) -> Iterator[str]:
    """What stops a signal, in the order in which it would come by."""
    since, routes = irqfds.delivery.since, irqfds.routes
    if routes.paused:
        yield f"its manager is paused{since.said(MANAGER)}; resume() goes on"
    if irqfd.masked:
        why = None if irqfd.trigger.why_masked is None else irqfd.trigger.why_masked()
        yield why or f"it is masked{since.said(irqfd.eventfd_id)}; unmask() goes on"
    if not routes.of(irqfd.gsi):
        dropped = irqfd.statistics().dropped
        kept = "its signals are kept" if routes.holds(irqfd.gsi) else f"{dropped} interrupts were dropped"
        yield f"the gsi has no route, {kept}; give it one with set_route()"
    yield from _failures(irqfd)
    task = irqfd.trigger.running
    if task is not None:
        yield f"its wakeup handler runs, and stands at {standing(task)}"
    state = irqfd.state
    if state in {State.INJECTING, State.INJECTING_PENDING}:
        yield f"its handlers or the sink's inject() run, and stand at {standing(irqfd.work.running)}"
    if irqfd.trigger.held or state is State.QUEUED:
        queue = irqfds.queue
        places = [place for task in queue.tasks if not (place := standing(task)).startswith("WorkQueue.")]
        at = f"stand at {', '.join(places)}" if places else "take the next in the loop's next turn"
        yield f"it waits for a worker of the queue: {queue.waiting} of {queue.maxsize} wait, and the workers {at}"
    if irqfd.offloaded:
        yield f"the sink watches the eventfd by itself ({irqfds.delivery.tiers.sink!r}), and this process sees no signal of it"
    yield from _behind(irqfds, irqfd)


def _failures(irqfd: Binding) -> Iterator[str]:
    error = irqfd.error
    if error is not None:
        yield f"its sink or handler has failed for good with {error.__cause__!r}; irqfd.resume() tries again"
    if irqfd.state is State.RETRYING:
        yield f"its sink or handler has failed with {irqfd.injection.failure!r}; it is tried again in a moment"


def _behind(irqfds: _Manager, irqfd: Binding) -> Iterator[str]:
    """What the guest has not done: the interrupt was delivered."""
    resampler = irqfds.lines.get(irqfd.gsi)
    stop = obstacle(irqfds, irqfd)
    if stop is not None:
        yield stop
    if resampler is not None and resampler.asserted:
        seconds = time.monotonic() - resampler.raised_at
        yield f"delivered, and not acknowledged for {seconds:.0f} s: the line is up until the guest ends the interrupt"


def obstacle(irqfds: _Manager, irqfd: Binding) -> str | None:
    """What the interrupt controllers behind the sink say that holds its interrupts back; None: nothing, or there are none."""
    routes = irqfds.routes.of(irqfd.gsi)
    stops = [stop for route in routes if (stop := _obstacle(irqfds, Interrupt(irqfd.gsi, route)))]
    # A PC's gsi goes to two chips, and one of the two is masked for good.
    return " and ".join(stops) if stops and len(stops) == len(routes) else None


def _obstacle(irqfds: _Manager, interrupt: Interrupt) -> str | None:
    ask = irqfds.delivery.tiers.obstacle
    if ask is None:
        return None
    try:
        return ask(interrupt)
    except Exception as error:
        report(f"aioirqfd: obstacle() raised: {irqfds.delivery.tiers.sink!r}", error)
        return None


def standing(task: object) -> str:
    """Where a task waits: the innermost coroutine of the program's in its chain of awaits, and what that waits in."""
    return standing_in(getattr(task, "get_coro", lambda: None)())


def standing_in(coroutine: object) -> str:
    """The same of a coroutine."""
    found = inner = "its beginning"
    step = coroutine
    while step is not None:
        frame = getattr(step, "cr_frame", None)
        if frame is not None:
            inner = frame.f_code.co_qualname
            if not frame.f_code.co_filename.startswith(_STANDARD_LIBRARY):
                found = inner = f"{inner} ({place(frame)})"
        step = getattr(step, "cr_await", None)
    return found if found == inner else f"{found}, in {inner}"
