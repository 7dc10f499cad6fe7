"""The one model of what a device is asked for, and what becomes of it.

A request is a block read, an NVMe command, a register access, a transfer, an interrupt. Each sort of device maps its own to
:class:`Request`; faults know nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from aioirqfd.faults.match import FaultError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aioirqfd.faults.active import ActiveFault

Stage = Literal["request", "register", "dma", "interrupt"]
"""Where something can go wrong: a request of the device's own, an access to its registers, a transfer, an interrupt."""
Key = tuple[str, int]
"""Which request it is, in every run: its identity, and how many there were of it so far."""


class Request:
    """Something that a device is asked for. Each sort of device has its subclass, with what can be done to it.

    Attributes:
        stage: Where it can go wrong.
        kind: What the device says that it is.
        fields: What else it can be found by.
        device: Whose it is; None: it is a sink's.
        identity: Of the fields, those that are the same in every run of the same guest.
        key: Which one it is, once it has arrived.
    """

    stage: ClassVar[Stage] = "request"
    identity_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, kind: str, fields: Mapping[str, int | str], device: str | None = None) -> None:
        self.kind: Final = kind
        self.fields = fields
        self.device: Final = device
        self.key: Key = ("", 0)

    @property
    def whose(self) -> dict[str, int | str]:
        """The fields by which an event says whose it is: the device, and the queue, the vector or the gsi."""
        found: dict[str, int | str] = {} if self.device is None else {"device": self.device}
        for name in ("queue", "vector", "gsi"):
            value = self.fields.get(name)
            if isinstance(value, int):
                found[name] = value
            elif name == "vector" and value is not None:
                found["pin"] = "INTx"
        return found

    @property
    def identity(self) -> str:
        """What it is known by in a log: its kind, and the fields that do not depend on the time."""
        known = [f"{name}={self.fields[name]}" for name in self.identity_fields if name in self.fields]
        return " ".join([self.kind, *known])

    @property
    def lane(self) -> object:
        """With which others it can be re-ordered and merged."""
        return self.fields.get("queue", self.kind)

    @property
    def hurried(self) -> bool:
        """Whether nothing may keep it back any more: its queue is about to stop."""
        return False

    def content(self) -> bytes:
        """Return the bytes that come with it."""
        return b""

    async def perform(self) -> None:
        """Carry it out."""
        raise NotImplementedError

    def fail(self, status: int | None) -> None:
        """Have failed instead."""
        raise self._cannot("fail")

    def pretend(self) -> None:
        """Have succeeded instead, without having been done."""
        raise self._cannot("be lost")

    def corrupt(self, what: str, offset: int, size: int, mask: int) -> None:
        """Change bytes: "written", before it is carried out, else after."""
        raise self._cannot(f"have {what!r} corrupted")

    def resize(self, by: int) -> None:
        """Say that the answer has so many bytes more, or fewer."""
        raise self._cannot("have another length")

    def all_ones(self) -> None:
        """Read as ones, and have written nothing."""
        raise self._cannot("read as ones")

    def repeat(self, times: int, gap: float) -> None:
        """Have the answer come again."""
        raise self._cannot("come twice")

    def interrupt(self) -> None:
        """Interrupt for it now, before its answer."""
        raise self._cannot("have its interrupt first")

    async def reset(self) -> None:
        """Have the device reset itself."""
        raise self._cannot("reset its device")

    def _cannot(self, what: str) -> FaultError:
        return FaultError(f"a {self.kind} of this device cannot {what}")


@dataclass(slots=True)
class Plan:
    """What is done to one request: the decisions of all faults that hit it, the random ones made.

    It is what a log has, and what a replay goes by.
    """

    by: list[ActiveFault] = field(default_factory=list["ActiveFault"])
    withhold: list[ActiveFault] = field(default_factory=list["ActiveFault"])
    reorder: list[ActiveFault] = field(default_factory=list["ActiveFault"])
    merge: list[ActiveFault] = field(default_factory=list["ActiveFault"])
    delay: float = 0.0
    failed: bool = False
    status: int | None = None
    lose: bool = False
    drop: bool = False
    ones: bool = False
    resize: int = 0
    corrupt: list[tuple[str, int, int, int]] = field(default_factory=list[tuple[str, int, int, int]])
    to: int | None = None
    early: float | None = None
    repeats: int = 0
    gap: float = 0.0
    reset: bool = False
    hang: bool = False
    kill: int = 0

    def said(self) -> dict[str, object]:
        """What is done, for a log: what is not as usual. The faults by their names."""
        said: dict[str, object] = {}
        usual = Plan()
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name != "by" and value != getattr(usual, one.name):
                said[one.name] = [active.name for active in value] if one.name in _FAULTS else value
        return said

    @classmethod
    def again(cls, said: Mapping[str, object]) -> Plan:
        """Make one of what a log says. When it is answered, the log's order says; what waited there does not wait here.

        Raises:
            FaultError: It is none.
        """
        known = {one.name for one in fields(cls)} - _FAULTS
        if unknown := said.keys() - known - _FAULTS:
            raise FaultError(f"a log says what there is not: {', '.join(sorted(unknown))}")
        plan = cls(**{name: value for name, value in said.items() if name in known})  # type: ignore[arg-type]
        plan.corrupt = [(what, offset, size, mask) for what, offset, size, mask in plan.corrupt]
        plan.delay = 0.0
        return plan


_FAULTS: Final = frozenset({"by", "withhold", "reorder", "merge"})
