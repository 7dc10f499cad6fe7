"""All faults of a run: which are set, what they do to each request, and what is kept back meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeVar, cast, final

from aioirqfd import nodes
from aioirqfd.eventfd.loops import loop_here
from aioirqfd.faults.active import ActiveFault
from aioirqfd.faults.checks import check, check_answer
from aioirqfd.faults.fault import WORDS, Fail, Fault, Spurious
from aioirqfd.faults.log import Log, Recorded
from aioirqfd.faults.match import KINDS, FaultError, Match
from aioirqfd.faults.order import TURNS, AsLogged, InLine, after_turns
from aioirqfd.faults.pci import PciTarget
from aioirqfd.faults.request import Plan
from aioirqfd.faults.sink import SinkTarget
from aioirqfd.faults.virtio import VirtioTarget
from aioirqfd.faults.waiting import let_go
from aioirqfd.irqfd.guard import guarded
from aioirqfd.pci.device import PciDevice
from aioirqfd.tracer import NULL_TRACER
from aioirqfd.virtio.device import Device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.faults.request import Key, Request
    from aioirqfd.faults.targets import Target
    from aioirqfd.faults.waiting import Clock, Timer, Waiting
    from aioirqfd.irqfd.sink import InterruptSink
    from aioirqfd.tracer import Tracer

_T = TypeVar("_T")


@final
class Faults:
    """The faults of one run, of one device or several.

    ::

        faults = Faults(seed=1)
        device = faults.wrap(Blk("disk.img"))
        third = faults.add(Match("write", nth=3), Fail())
        async with Backend(device, "blk.sock"):
            await third.hit()

    A request that several faults hit has all of it, in this order whatever the order they were set in: the process is killed, the
    device reset, the interrupt comes early; the request fails, is lost, or is carried out, with what is corrupted; its answer is
    withheld, re-ordered, delayed, merged; it is dropped, or given, and repeated.

    While no fault is set that may still hit, nothing is kept back and no log is written, a device is served as if it had never been
    wrapped.

    Args:
        seed: The random choices are those of this seed, 0 or more: each made when a request comes, in the order that they come.
        nonconforming: Take faults, too, that no conforming device may make.
        clock: What time it is; None: the running loop's time.
        tracer: Hears of each hit, ``fault_hit``, and where a replay is not what was logged, ``replay_diverged``. A
            :class:`~aioirqfd.tracing.StructlogTracer` writes them to structlog.
        log: A file for the log, lines of JSON, that :meth:`replay` can read. Requests go one by one while it is written.

    Attributes:
        held: What is kept back: of each, the request and what is done to it.
        failed: How many requests failed because a fault was set, by kind and queue.
        requests: How many requests came, by kind and queue; of those that came while a fault was set or somebody waited for them.

    Threads: the loop's, once something that was wrapped is served.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        nonconforming: bool = False,
        clock: Clock | None = None,
        tracer: Tracer = NULL_TRACER,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        self.random: Final = random.Random(seed)  # noqa: S311  dice, not secrets
        self.nonconforming: Final = nonconforming
        self.held: dict[Waiting, tuple[Request, Plan]] = {}
        self.requests: Counter[tuple[str, object]] = Counter()
        self.failed: Counter[tuple[str, object]] = Counter()
        self._clock = clock
        self._tracer = guarded(tracer)  # what it raises is not the request's trouble
        self._log = None if log is None else Log(log, seed=seed)
        self._gate: InLine | AsLogged | None = None if self._log is None else InLine(self._passed)
        self._recorded: Recorded | None = None
        self._pace = 1.0
        self._active: list[ActiveFault] = []
        self._names = 0
        self._targets: list[Target] = []
        self._seen: Counter[str] = Counter()
        self._began: dict[Key, float] = {}
        self._plans: dict[Key, tuple[Request, Plan]] = {}
        self._in_line: dict[Waiting, Request] = {}
        self._hung: list[ActiveFault] = []
        self._arrivals: dict[asyncio.Future[None], tuple[Callable[[], int], int]] = {}
        self._later: set[Timer] = set()
        self._under_way = 0
        self._settling = False
        self._loop: asyncio.AbstractEventLoop | None = None
        nodes.add("faults", self, Faults.status, loop=Faults._loop_of)

    def _loop_of(self) -> asyncio.AbstractEventLoop | None:
        """On which its requests come; None: none has come, or none will come any more."""
        return None if self._loop is None or self._loop.is_closed() else self._loop

    def __repr__(self) -> str:
        return f"<Faults {self._active}>"

    # -- what can go wrong -------------------------------------------------------------------------------------------

    def wrap(self, target: _T) -> _T:
        """Have faults made of what a device does: one of virtio or PCI, or a sink of interrupts.

        Args:
            target: The device, which is the same as before; or the sink. Give it to whatever serves it before or afterwards.

        Returns:
            The device itself. For a sink, another one, which goes to the :class:`~aioirqfd.IrqManager` in its place.

        Raises:
            TypeError: It is neither.
            FaultError: It is wrapped already, or a fault that is set is none that it may make.
        """
        wrapped: object = target
        if isinstance(target, Device | PciDevice):
            if any(one.device is target for one in self._targets if isinstance(one, VirtioTarget | PciTarget)):
                raise FaultError(f"{target!r} is wrapped already: one Faults can have any number of faults")
            if target.interception is not None:
                raise FaultError(f"{target!r} is wrapped already, by another Faults")
            made = VirtioTarget(self, target) if isinstance(target, Device) else PciTarget(self, target)
            for active in () if self.nonconforming else self._active:
                if isinstance(active.fault, Fail):
                    check_answer(active.match, made)
            self._targets.append(made)
        elif callable(getattr(target, "inject", None)) and not isinstance(target, type):
            wrapped = SinkTarget(self, cast("InterruptSink", target))
            self._targets.append(wrapped)
        else:
            raise TypeError(f"faults are made of a virtio or PCI device, or of an interrupt sink, not of {target!r}")
        self.settle()
        return cast("_T", wrapped)

    def add(self, match: Match, fault: Fault, *, name: str | None = None, enabled: bool = True) -> ActiveFault:
        """Set a fault, from now on.

        Args:
            match: Of which requests.
            fault: What is done to them.
            name: In logs; None: the fault's word and a number.
            enabled: Whether it is on at once.

        Returns:
            What it is: wait for its hits, switch it off, remove it.

        Raises:
            FaultError: It cannot happen to such requests, or there are no such; or no conforming device may make it, and this was
                not asked for. Or the name is taken.
        """
        self._names += 1
        word = WORDS[type(fault)]
        name = f"{word}-{self._names}" if name is None else name
        if any(one.name == name for one in self._active):
            raise FaultError(f"there is a fault {name!r} already: remove it, or take another name")
        active = ActiveFault(self, name, match, fault)
        check(match, fault, self._targets, nonconforming=self.nonconforming)
        if not enabled:
            active.disable()
        self._active.append(active)
        self.changed(active)
        return active

    @property
    def targets(self) -> Sequence[Target]:
        """What was wrapped."""
        return tuple(self._targets)

    @property
    def active(self) -> Sequence[ActiveFault]:
        """The faults that are set."""
        return tuple(self._active)

    def clear(self) -> None:
        """Remove all faults, and let go what they keep back."""
        for active in self.active:
            active.remove()
        for timer in self._later:
            timer.cancel()
        self._later.clear()
        self.release()

    def seed(self, number: int) -> None:
        """Throw the dice as with this seed, from now on."""
        self.random.seed(number)

    def replay(self, path: str | os.PathLike[str], *, pace: float = 1.0, patience: float = 1.0) -> None:
        """Do what a log says, in place of what is set: the same to the same requests, and completions in the same order.

        Which request is the same, its kind says, with what does not depend on the time (a sector, a register, a queue), and how many
        of these there were so far. Interrupts for nothing have no request, and are not replayed.

        Args:
            path: The log.
            pace: What was kept back is kept back for this many times as long as then, at least; 0: only for the order.
            patience: Seconds to wait for a request that should have come first by the log; then ``replay_diverged`` is traced, and
                the others go on.

        Raises:
            FaultError: It is no log.
            OSError: It cannot be read.
        """
        self._recorded = recorded = Recorded.read(path)
        self._pace = pace
        self._gate = AsLogged(
            recorded.order, clock=self.clock, patience=patience, passed=self._passed, diverged=self._diverged
        )
        self.settle()

    def close(self) -> None:
        """Remove all faults, and close the log. Idempotent."""
        self.clear()
        if self._log is not None:
            self._log.close()
        self._log = self._gate = self._recorded = None
        self.settle()

    # -- time --------------------------------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """What time it is.

        Raises:
            RuntimeError: No loop runs, and no clock was given.
        """
        return asyncio.get_running_loop() if self._clock is None else self._clock

    def time(self) -> float:
        """The time; 0 where no loop runs yet."""
        try:
            return self.clock.time()
        except RuntimeError:
            return 0.0

    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Do something that nobody waits for; not any more once the faults are cleared."""

        def come() -> None:
            self._later.discard(timer)
            callback()

        timer = self.clock.call_later(seconds, come)
        self._later.add(timer)

    # -- a request ---------------------------------------------------------------------------------------------------

    def arrive(self, request: Request) -> Plan | None:
        """Decide what is done to a request that has come; None: nothing."""
        here = loop_here()
        if here is not None:
            self._loop = here
        identity = request.identity
        self._seen[identity] += 1
        request.key = key = identity, self._seen[identity]
        if request.stage != "interrupt":
            self.requests[request.kind, request.fields.get("queue")] += 1
            self._tell_arrivals()
        if self._recorded is not None:
            plan = self._recorded.plans.get(key)
            hit = plan is not None
        else:
            plan = Plan()
            for active in self._active:
                active.decide(plan, request)
            hit = bool(plan.by)
            plan.withhold += [one for one in self._hung if one not in plan.withhold]
            if plan.hang:
                self._hung += [one for one in plan.withhold if WORDS[type(one.fault)] == "hang"]
            if not hit and not plan.withhold:
                plan = None
        if hit and plan is not None:
            did = plan.said()
            names = [active.name for active in plan.by]
            self._tracer.emit("fault_hit", faults=names, kind=request.kind, request=key, do=did, **request.whose)
            if self._log is not None:
                fields = dict(request.fields)
                self._log.write(what="fault", time=self.time(), request=key, fields=fields, faults=names, do=did)
        return plan

    async def course(self, request: Request) -> bool:
        """Have a request go its way; whether it is to be answered.

        Raises:
            Exception: What carrying it out raises.
        """
        plan = self.arrive(request)
        if plan is None and (self._gate is None or request.stage != "request"):
            await request.perform()
            self._settle_soon()
            return True
        self._under_way += 1
        plan = Plan() if plan is None else plan
        self._plans[request.key] = request, plan
        try:
            return await self._course(request, plan)
        finally:
            self._under_way -= 1
            del self._plans[request.key]
            self._settle_soon()

    async def _course(self, request: Request, plan: Plan) -> bool:
        began = self._began[request.key] = self.time()
        passed = 0
        try:
            if plan.kill:
                os.kill(os.getpid(), plan.kill)
            if plan.reset:
                await request.reset()
                return False
            if plan.early is not None:
                request.interrupt()
                await self._wait(request, plan, plan.early)
            await self._carry_out(request, plan)
            batch = await self._keep_back(request, plan)
            if plan.drop:
                return False
            if self._recorded is not None and self._pace and (after := self._recorded.after.get(request.key)):
                await self._wait(request, plan, after * self._pace - (self.time() - began))
            if self._gate is not None and request.stage == "request" and not request.hurried:
                waiting: Waiting = asyncio.get_running_loop().create_future()
                self._in_line[waiting] = request
                try:
                    self._gate.go(waiting, request.key, batch)
                    await waiting
                finally:
                    del self._in_line[waiting]
                    # Cancelled after its turn has come, it has had its turn.
                    passed = waiting.result() if waiting.done() and not waiting.cancelled() else 0
            if plan.repeats:
                request.repeat(plan.repeats, plan.gap)
            return True
        finally:
            self._began.pop(request.key, None)
            if passed and self._gate is not None:
                self._gate.ended()

    async def _carry_out(self, request: Request, plan: Plan) -> None:
        if plan.failed:
            self.failed[request.kind, request.fields.get("queue")] += 1
            request.fail(plan.status)
        elif plan.lose:
            request.pretend()
        elif plan.ones:
            request.all_ones()
        elif not (plan.drop and request.stage != "request"):
            for what, offset, size, mask in plan.corrupt:
                if what == "written":
                    request.corrupt(what, offset, size, mask)
            await request.perform()
        for what, offset, size, mask in plan.corrupt:
            if what != "written":
                request.corrupt(what, offset, size, mask)
        if plan.resize:
            request.resize(plan.resize)

    async def _keep_back(self, request: Request, plan: Plan) -> int:
        """Wait as the plan says, or until nothing is to be kept back any more; with whom it goes on."""
        if request.hurried:
            return 0
        if plan.withhold and not await self._wait(request, plan):
            return 0
        for active in plan.reorder:
            if active.enabled and not await self._gather(active, request, plan):
                return 0
        if plan.delay and not await self._wait(request, plan, plan.delay):
            return 0
        together = 0
        for active in plan.merge:
            if active.enabled:
                together = await self._gather(active, request, plan)
                if not together:
                    return 0
        return together

    async def _wait(self, request: Request, plan: Plan, seconds: float | None = None) -> int:
        if seconds is not None and seconds <= 0:
            return 1
        waiting: Waiting = asyncio.get_running_loop().create_future()
        timer = None if seconds is None else self.clock.call_later(seconds, lambda: let_go((waiting,)))
        try:
            return await self._held(waiting, request, plan)
        finally:
            if timer is not None:
                timer.cancel()

    async def _gather(self, active: ActiveFault, request: Request, plan: Plan) -> int:
        waiting: Waiting = asyncio.get_running_loop().create_future()
        _join(active, request.lane, waiting)
        return await self._held(waiting, request, plan)

    async def _held(self, waiting: Waiting, request: Request, plan: Plan) -> int:
        self.held[waiting] = request, plan
        try:
            return await waiting
        finally:
            del self.held[waiting]

    # -- what is kept back -------------------------------------------------------------------------------------------

    def release(self, active: ActiveFault | None = None, *, where: Callable[[Request], bool] | None = None) -> None:
        """Let go what is kept back: by one fault, or of these requests, or all.

        Args:
            active: By this one only; None: by any.
            where: Says of a request whether it is one of them; None: interrupts, too.
        """
        self._hung = [one for one in self._hung if active is not None and one is not active]

        def is_one(request: Request, plan: Plan) -> bool:
            concerns = active is None or active in plan.by or active in plan.withhold
            return concerns and (where is None or where(request))

        chosen = {waiting for waiting, there in self.held.items() if is_one(*there)}
        for request, plan in self._plans.values():
            if is_one(request, plan):
                # Of one that is being carried out, too: it is not to begin to wait for what has been.
                plan.withhold = [one for one in plan.withhold if active is not None and one is not active]
        # The groups that they were in begin anew, with the others.
        for one in self._active if active is None else [active]:
            for lane, group in one.groups.items():
                for waiting in group.leave():
                    if waiting not in chosen:
                        _join(one, lane, waiting)
        let_go(chosen, 0)
        if where is None:
            for target in self._targets:
                for line in target.lines.values():
                    if active is None:
                        line.release()
                    else:
                        line.changed(active, released=True)
        self.settle()

    def hurry(self, where: Callable[[Request], bool]) -> None:
        """Keep nothing back of these requests any more, not even for the order of a log."""
        self.release(where=where)
        let_go([waiting for waiting, request in self._in_line.items() if where(request)], 0)

    def changed(self, active: ActiveFault) -> None:
        """A fault was set, switched on or off, or is another one; for :class:`ActiveFault`."""
        if active.timer is not None:
            active.timer.cancel()
            active.timer = None
        if not active.enabled:
            self.release(active)
        for target in self._targets:
            for line in list(target.lines.values()):
                line.changed(active)
        if active.enabled and isinstance(active.fault, Spurious):
            self._again(active, active.fault)
        self.settle()

    def _again(self, active: ActiveFault, fault: Spurious) -> None:
        """Interrupt for nothing, now and then."""

        def strike() -> None:
            struck = [
                whose
                for target in self._targets
                for whose in target.interrupt_for_nothing(active.match, always=fault.always)
            ]
            if struck:
                active.strike()
                names = [active.name]
                for whose in struck:
                    self._tracer.emit("fault_hit", faults=names, kind="interrupt", request=None, do={}, **whose)
                if self._log is not None:
                    self._log.write(what="spurious", time=self.time(), request=("interrupt", 0), faults=names)
            if active.left == 0:
                active.disable()
            else:
                self._again(active, fault)

        active.timer = self.clock.call_later(fault.every, strike)

    def forget(self, active: ActiveFault) -> None:
        """A fault is removed; for :class:`ActiveFault`."""
        if active in self._active:
            self.changed(active)
            self._active.remove(active)

    # -- the way past ------------------------------------------------------------------------------------------------

    @property
    def needed(self) -> bool:
        """Whether requests have to go by here."""
        return bool(
            self._gate is not None
            or self._under_way
            or self._arrivals
            or any(one.enabled and not one.spent for one in self._active)
            or any(not line.idle for target in self._targets for line in target.lines.values())
        )

    def settle(self) -> None:
        """Have requests go by here, or by nobody."""
        needed = self.needed
        for target in self._targets:
            target.attach(attached=needed)

    def _settle_soon(self) -> None:
        """The same, once what has ended is with the driver."""
        if not self._settling and not self.needed:
            self._settling = True
            after_turns(TURNS, self._settled)

    def _settled(self) -> None:
        self._settling = False
        self.settle()

    # -- counts ------------------------------------------------------------------------------------------------------

    async def wait_requests(self, number: int, *, kinds: Sequence[str] = (), queues: Sequence[int] = ()) -> None:
        """Wait until so many more requests have come, of these kinds and queues or of any."""

        def count() -> int:
            return self.count(kinds=kinds, queues=queues)

        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals[arrived] = count, count() + number
        self.settle()
        try:
            self._tell_arrivals()
            await arrived
        finally:
            del self._arrivals[arrived]
            self._settle_soon()

    def count(self, *, kinds: Sequence[str] = (), queues: Sequence[int] = ()) -> int:
        """How many requests came, of these kinds and queues or of any; no register accesses, transfers and interrupts."""
        return sum(
            number
            for (kind, queue), number in self.requests.items()
            if kind not in KINDS and (not kinds or kind in kinds) and (not queues or queue in queues)
        )

    def _tell_arrivals(self) -> None:
        for arrived, (count, number) in self._arrivals.items():
            if not arrived.done() and count() >= number:
                arrived.set_result(None)

    # -- the log -----------------------------------------------------------------------------------------------------

    def _passed(self, key: Key, batch: int) -> None:
        if self._log is not None:
            now = self.time()
            after = now - self._began.get(key, now)
            self._log.write(what="complete", time=now, request=key, after=after, batch=batch)

    def _diverged(self, missing: list[Key]) -> None:
        self._tracer.emit("replay_diverged", missing=missing)

    def status(self) -> dict[str, object]:
        """Return what is set and what has come of it, for JSON."""
        return {
            "faults": [
                {
                    "name": one.name,
                    "match": repr(one.match),
                    "fault": repr(one.fault),
                    "enabled": one.enabled,
                    "requests": one.requests,
                    "hits": one.hits,
                }
                for one in self._active
            ],
            "requests": {
                kind if queue is None else f"{kind} queue={queue}": number
                for (kind, queue), number in sorted(self.requests.items(), key=str)
            },
            "held": len(self.held),
            "interrupts": sum(line.wanted for target in self._targets for line in target.lines.values()),
            "rung": sum(line.rung for target in self._targets for line in target.lines.values()),
            "silent": sum(line.silent for target in self._targets for line in target.lines.values()),
            "intercepted": self.needed,
        }


def _join(active: ActiveFault, lane: object, waiting: Waiting) -> None:
    fault = active.fault
    size: int = getattr(fault, "window", 0) or getattr(fault, "count", 0)
    active.group(lane).join(waiting, size, getattr(fault, "hold", 0.0))
