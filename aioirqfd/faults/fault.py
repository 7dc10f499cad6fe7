"""What can go wrong, as declarations; and of each, whether a conforming device may do it, with the section that says so."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from aioirqfd.faults.match import FaultError

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from aioirqfd.faults.active import ActiveFault
    from aioirqfd.faults.request import Plan, Stage


class Rule(NamedTuple):
    """What a specification says of a fault.

    Attributes:
        conforming: Whether a device that keeps to it may do that.
        section: Where that is said.
    """

    conforming: bool
    section: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to the requests of a match. The subclasses are the faults there are.

    Attributes:
        rules: By stage, what the specification says of it; a stage that is not there cannot have it.
    """

    rules: ClassVar[Mapping[Stage, Rule]] = {}

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            signed = one.name == "by"
            if isinstance(value, int | float) and not (signed or 0 <= value < math.inf):
                raise FaultError(f"{one.name} of {type(self).__name__} is a number from 0 on, not {value!r}")

    def rule(self, stage: Stage) -> Rule | None:
        """What a specification says of it with these parameters; None: this cannot happen there."""
        return self.rules.get(stage)

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Put into a request's plan what this does to it."""
        raise NotImplementedError


_NO_TIME: Final = "virtio 1.2, 2.7.8, and NVMe 1.4, 7.2.1, set no time within which a request is done"
_SUPPRESSION: Final = "virtio 1.2, 2.7.7"
_SPURIOUS: Final = "virtio 1.2, 2.7.7.1: the driver handles notifications for nothing; PCI 3.0, 2.2.6: lines are shared"
_NOT_READY: Final = "virtio 1.2, 2.1.2 and 2.4.1: none before DRIVER_OK, nor after a reset"


@dataclass(frozen=True, slots=True)
class Delay(Fault):
    """It comes later: an answer, a register's value, a transfer, an interrupt.

    Args:
        seconds: So much, 0 or more.
        jitter: And up to so much more, at random.
    """

    seconds: float
    jitter: float = 0.0
    rules: ClassVar = {
        "request": Rule(True, _NO_TIME),
        "register": Rule(True, "PCI Express 3.0, 2.8, up to the completion time-out: 50 microseconds to 64 s"),
        "dma": Rule(True, "the bus's time, which no device's specification bounds"),
        "interrupt": Rule(True, f"{_SUPPRESSION}: no time is set"),
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Add the time, with the dice thrown."""
        plan.delay += self.seconds + (random.uniform(0, self.jitter) if self.jitter else 0.0)


@dataclass(frozen=True, slots=True)
class Withhold(Fault):
    """It is kept until the fault is released, or gone. Of "deassert" it is a line that is stuck."""

    rules: ClassVar = {
        "request": Rule(True, _NO_TIME),
        "register": Rule(False, "PCI Express 3.0, 2.8: a read is completed within the time-out"),
        "dma": Rule(True, "the bus's time, which no device's specification bounds"),
        "interrupt": Rule(True, f"{_SUPPRESSION}: no time is set"),
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Wait for this fault's release."""
        plan.withhold.append(active)


@dataclass(frozen=True, slots=True)
class Drop(Fault):
    """It never comes: a request is carried out and not answered, what is written elsewhere is gone, an interrupt is lost."""

    rules: ClassVar = {
        "request": Rule(False, "virtio 1.2, 2.7.8, and NVMe 1.4, 7.2.1: each request that was taken is completed"),
        "register": Rule(False, "the device's own: what is written to a register arrives"),
        "dma": Rule(False, "PCI Express 3.0, 3.1: what is sent arrives"),
        "interrupt": Rule(False, "virtio 1.2, 2.7.7.2, NVMe 1.4, 7.5"),
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Do not answer."""
        plan.drop = True


@dataclass(frozen=True, slots=True)
class Lose(Fault):
    """A request is answered as done, and was not: a write or a flush is lost."""

    rules: ClassVar = {"request": Rule(False, "virtio 1.2, 5.2.6.2; NVMe 1.4, Flush command")}

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Do nothing, and say that it is done."""
        plan.lose = True


@dataclass(frozen=True, slots=True)
class Duplicate(Fault):
    """An answer or an interrupt comes again; an interrupt never after its driver has reset the queue or the device.

    Args:
        times: So many times more.
        gap: Seconds between two of them. At once, two interrupts would be one.
    """

    times: int = 1
    gap: float = 0.001
    rules: ClassVar = {
        "request": Rule(False, "virtio 1.2, 2.7.8; NVMe 1.4, 4.6: a request is completed once"),
        "interrupt": Rule(True, _SPURIOUS),
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Repeat it."""
        plan.repeats += self.times
        plan.gap = max(plan.gap, self.gap)


@dataclass(frozen=True, slots=True)
class Reorder(Fault):
    """Answers are kept until there are enough of a queue, and come in random order.

    Args:
        window: So many.
        hold: Seconds that the first of them waits at most.
    """

    window: int
    hold: float = 0.02
    rules: ClassVar = {"request": Rule(True, "virtio 1.2, 2.6, without VIRTIO_F_IN_ORDER; NVMe 1.4, 7.2.1")}

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Wait with others."""
        if self.window > 1:
            plan.reorder.append(active)


@dataclass(frozen=True, slots=True)
class Merge(Fault):
    """Answers are kept until there are enough of a queue, and come all at once; or there is one interrupt for so many answers.

    Args:
        count: So many.
        hold: Seconds that the first of them waits at most.
    """

    count: int
    hold: float = 0.02
    rules: ClassVar = {
        "request": Rule(True, _NO_TIME),
        "interrupt": Rule(
            True, "virtio 1.2, 2.3: one tells of a queue, not of an answer; NVMe 1.4, 7.5: they may be aggregated"
        ),
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Wait with others."""
        if self.count > 1:
            plan.merge.append(active)


@dataclass(frozen=True, slots=True)
class Fail(Fault):
    """A request is not carried out, and ends with an error; a transfer is refused.

    Args:
        status: The device's own status; None: the one that says that the device is at fault (virtio-blk's IOERR, NVMe's internal
            error).
    """

    status: int | None = None
    rules: ClassVar = {
        "request": Rule(
            True,
            "virtio 1.2, 5.2.6; NVMe 1.4, 4.6: a status says so; where there is none, an empty answer, but not of an entropy device (5.4.6.2)",
        ),
        "dma": Rule(True, "the host's: a transfer to what is not mapped for the device is refused"),
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Fail."""
        plan.failed = True
        plan.status = self.status


@dataclass(frozen=True, slots=True)
class Resize(Fault):
    """An answer is said to be shorter or longer than it is.

    Args:
        by: Bytes more; fewer, if below 0. It is not less than nothing.
    """

    by: int
    rules: ClassVar = {
        "request": Rule(False, "virtio 1.2, 2.7.8.2: no more than was written; less, if its device type allows that")
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Change the length."""
        plan.resize += self.by


WHAT: Final = ("data", "written", "length", "id")
"""What :class:`Corrupt` can change."""


@dataclass(frozen=True, slots=True)
class Corrupt(Fault):
    """Bits are flipped.

    Args:
        what: "data": what is read, of a request, a register or a transfer. "written": what is written. "length": the length of the
            answer. "id": whose answer it is (virtio's descriptor, NVMe's command).
        offset: Of data: from this byte on.
        size: Of data: so many bytes.
        mask: The bits that are flipped, of each byte; of the whole number for "length" and "id".
    """

    what: str = "data"
    offset: int = 0
    size: int = 1
    mask: int = 0xFF
    rules: ClassVar = {
        "request": Rule(False, "virtio 1.2, 2.7.8, 2.7.8.2 and 5.2.6; NVMe 1.4, 4.6"),
        "register": Rule(False, "the device's own: what a register reads as"),
        "dma": Rule(False, "PCI Express 3.0, 3.1: what arrives is what was sent"),
    }

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        if self.what not in WHAT:
            raise FaultError(f"what is corrupted is one of {', '.join(WHAT)}, not {self.what!r}")

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Change it."""
        plan.corrupt.append((self.what, self.offset, self.size, self.mask))


@dataclass(frozen=True, slots=True)
class EarlyInterrupt(Fault):
    """The interrupt comes before the answer that it is for.

    Args:
        lead: Seconds before; the answer comes with another interrupt.
    """

    lead: float = 0.001
    rules: ClassVar = {"request": Rule(True, _SPURIOUS)}

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Interrupt, and wait."""
        plan.early = max(plan.early or 0.0, self.lead)


@dataclass(frozen=True, slots=True)
class Spurious(Fault):
    """Interrupts for nothing, again and again: no request sets them off. The match says by its fields where they come.

    A virtio queue has them while it runs, a vector of a PCI device while its driver has enabled it, a gsi at all times.

    Args:
        every: Seconds from one to the next, above 0.
        always: Before the driver is ready for them, too, and after it has reset the device: before ``DRIVER_OK``, of a virtio device.
            No conforming device may do that.
    """

    every: float
    always: bool = False
    rules: ClassVar = {"interrupt": Rule(True, f"{_SPURIOUS}; {_NOT_READY}, which `always` makes it do")}

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        if not self.every:
            raise FaultError("spurious interrupts come every so many seconds, not every 0")

    def rule(self, stage: Stage) -> Rule | None:
        """With ``always`` it is none that a conforming device may make."""
        return Rule(False, _NOT_READY) if self.always and stage in self.rules else Fault.rule(self, stage)

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Do nothing to those that have a reason."""


@dataclass(frozen=True, slots=True)
class Misroute(Fault):
    """An interrupt goes where it does not belong.

    Args:
        to: To this queue, vector or gsi.
    """

    to: int
    rules: ClassVar = {"interrupt": Rule(False, "virtio 1.2, 4.1.5.1.2; NVMe 1.4, 5.3: the driver chooses the vector")}

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Send it there."""
        plan.to = self.to


@dataclass(frozen=True, slots=True)
class AllOnes(Fault):
    """A register reads as ones, and what is written is gone: the device was pulled out."""

    rules: ClassVar = {
        "register": Rule(
            False, "not the device's: a root complex returns ones for who is gone (PCI Express 3.0, 2.3.2)"
        )
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Be gone."""
        plan.ones = True


@dataclass(frozen=True, slots=True)
class Reset(Fault):
    """The device resets itself: a PCI function as by its driver, of which that is not told; a vhost-user device hangs up."""

    rules: ClassVar = {
        "request": Rule(False, "virtio 1.2, 2.1.2 and 2.4: the driver resets a device, which may ask for that"),
        "register": Rule(False, "the driver resets a device"),
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Reset."""
        plan.reset = True


@dataclass(frozen=True, slots=True)
class Hang(Fault):
    """From then on nothing of the device is answered any more, registers neither, until the fault is released or gone."""

    rules: ClassVar = {
        "request": Rule(False, "virtio 1.2, 2.1.2; NVMe 1.4, 3.1.6 (CFS): a device that cannot go on says so"),
        "register": Rule(False, "PCI Express 3.0, 2.8: a read is completed within the time-out"),
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Answer nothing."""
        plan.hang = True
        plan.withhold.append(active)


@dataclass(frozen=True, slots=True)
class Kill(Fault):
    """The process is killed.

    Args:
        signal: By this signal.
    """

    signal: int = int(signal.SIGKILL)
    rules: ClassVar = {
        "request": Rule(False, "no device dies"),
        "register": Rule(False, "no device dies"),
        "dma": Rule(False, "no device dies"),
        "interrupt": Rule(False, "no device dies"),
    }

    def decide(self, plan: Plan, active: ActiveFault, random: random.Random) -> None:
        """Die."""
        plan.kill = self.signal


FAULTS: Final[Mapping[str, type[Fault]]] = {
    "delay": Delay,
    "withhold": Withhold,
    "drop": Drop,
    "lose": Lose,
    "duplicate": Duplicate,
    "reorder": Reorder,
    "merge": Merge,
    "fail": Fail,
    "resize": Resize,
    "corrupt": Corrupt,
    "early-interrupt": EarlyInterrupt,
    "spurious": Spurious,
    "misroute": Misroute,
    "all-ones": AllOnes,
    "reset": Reset,
    "hang": Hang,
    "kill": Kill,
}
"""All faults, by the words of the command language."""
WORDS: Final[Mapping[type[Fault], str]] = {fault: word for word, fault in FAULTS.items()}


def stages_of(kinds: tuple[str, ...] | None) -> frozenset[Stage]:
    """Where requests of these kinds can go wrong, as far as their names tell."""
    if kinds is None:
        return frozenset({"request"})
    found: set[Stage] = set()
    for kind in kinds:
        if kind.startswith(("register-", "config-")):
            found.add("register")
        elif kind.startswith("dma-"):
            found.add("dma")
        elif kind in {"interrupt", "deassert"}:
            found.add("interrupt")
        elif kind == "*":
            found.update(("request", "register", "dma", "interrupt"))
        else:
            found.add("request")
    return frozenset(found)
