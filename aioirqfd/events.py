"""Every event that a tracer can hear of: its name, its level, its fields, and when it comes.

This table is the only place where they are declared. The levels of :class:`aioirqfd.tracing.StructlogTracer` and the catalogue in the
documentation are made of it, and tests hold every call of ``emit()`` to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event.

    Attributes:
        name: Its name.
        types: What it is an instance of; a bool is no int here.
        meaning: What it says, with its unit where it has one.
        optional: Whether it is left out where there is nothing to say.
    """

    name: str
    types: tuple[type, ...]
    meaning: str
    optional: bool = False

    def fits(self, value: object) -> bool:
        """Whether a value is of its type."""
        if isinstance(value, bool):
            return bool in self.types
        return isinstance(value, self.types)


@dataclass(frozen=True, slots=True)
class Event:
    """What is declared of an event.

    Attributes:
        name: Its name, constant and in snake case.
        level: How much it matters.
        when: When it comes.
        fields: Its fields, by name; :data:`COMMON` ones may come with each.
        reason: A field that makes it a warning where it is not None.
    """

    name: str
    level: Level
    when: str
    fields: Mapping[str, Field]
    reason: str | None = None

    def level_of(self, fields: Mapping[str, object]) -> Level:
        """How much this one matters, by its fields."""
        return self.level if self.reason is None or fields.get(self.reason) is None else "warning"

    def faults(self, fields: Mapping[str, object]) -> list[str]:
        """What of some fields was not declared like that; for tests."""
        found = [f"{self.name} has no {name}" for name in self.fields.keys() - fields.keys() if self._must(name)]
        for name, value in fields.items():
            declared = self.fields.get(name) or COMMON.get(name)
            if declared is None:
                found.append(f"{self.name} has a field {name} that is not declared")
            elif not declared.fits(value):
                found.append(f"{self.name} has {name}={value!r}, which is declared as {declared.types}")
        return sorted(found)

    def _must(self, name: str) -> bool:
        return not self.fields[name].optional


def _fields(*fields: Field) -> dict[str, Field]:
    return {field.name: field for field in fields}


_NONE: Final = type(None)

COMMON: Final = _fields(
    Field("device", (str,), "whose it is: the device's name, by default its class's", optional=True),
    Field("manager", (str,), "the name of the IrqManager, where it has one", optional=True),
    Field("queue", (int,), "the queue of the device, from 0 on", optional=True),
    Field("vector", (int,), "the interrupt vector of the device, from 0 on", optional=True),
    Field("pin", (str,), "`INTx`: it is about the device's interrupt pin", optional=True),
    Field(
        "suppressed", (int,), "how many of its kind were not told since the last one that was, 1 or more", optional=True
    ),
    Field("time_ns", (int,), "of a replayed flight record: when it was, in ns of `time.monotonic_ns()`", optional=True),
)
"""Fields that any event may have: whose it is, and what the way to the tracer has added."""

_GSI: Final = Field("gsi", (int,), "the gsi, 0..2**32-1")
_IRQFD: Final = (
    _GSI,
    Field("fd", (int,), "the eventfd's file descriptor; -1: it is closed"),
    Field("eventfd_id", (int,), "the kernel's number of the eventfd, in which all its dups agree"),
)
_FAILURE: Final = (
    Field("error", (str,), "`repr()` of what was raised"),
    Field("exc_info", (BaseException,), "what was raised, with its traceback, for a renderer to show"),
)
_REFUSAL: Final = (Field("error", (str,), "what was raised, with the path"), _FAILURE[1])
_GENERATION: Final = Field("generation", (int,), "how often the table was changed, this time included")
_REASON: Final = Field("reason", (str, _NONE), "why, where it is trouble; else None")
_WHY: Final = Field("reason", (str,), "why")
_ACCESS: Final = (
    Field("bar", (int,), "which BAR, 0..5"),
    Field("offset", (int,), "where in it, in bytes"),
    Field("size", (int,), "how much, in bytes"),
)
_QUEUE: Final = Field("queue", (int,), "the queue of the device, from 0 on")
_VECTOR: Final = Field("vector", (int,), "the interrupt vector, from 0 on")
_HELD: Final = Field("held", (int,), "signals that wait in their eventfds")


def _table(*events: Event) -> dict[str, Event]:
    return {event.name: event for event in events}


EVENTS: Final[Mapping[str, Event]] = _table(
    # -- irqfds --------------------------------------------------------------------------------------------------------
    Event(
        "irqfd_assigned",
        "info",
        "An eventfd was bound to a gsi.",
        _fields(
            *_IRQFD,
            Field("resample", (bool,), "whether it is level-triggered"),
            Field("offloaded", (bool,), "whether the sink watches the eventfd itself"),
            Field("masked", (bool,), "whether it begins masked"),
        ),
    ),
    Event(
        "irqfd_deassigned",
        "info",
        "An irqfd was unbound, and nothing of it runs any more.",
        _fields(
            *_IRQFD,
            *(
                Field(name, (int,), f"{what}; left out with `offloaded` where it is 0", optional=True)
                for name, what in (
                    ("signals", "signals seen"),
                    ("injections", "interrupts that reached the sink"),
                    ("coalesced", "signals that shared an interrupt with others"),
                    ("dropped", "interrupts without a route"),
                )
            ),
            Field("offloaded", (bool,), "True: the sink has watched it at some time, and kept no count", optional=True),
        ),
    ),
    Event("irqfd_masked", "info", "An irqfd was masked: its signals stay pending.", _fields(*_IRQFD)),
    Event(
        "irqfd_unmasked",
        "info",
        "An irqfd was unmasked.",
        _fields(*_IRQFD, Field("pending", (bool,), "whether an interrupt was pending, which goes now")),
    ),
    Event(
        "irqfd_broken",
        "error",
        "The sink or a handler failed for good: the irqfd is given up until `resume()`, and its interrupt is kept.",
        _fields(*_IRQFD, *_FAILURE),
    ),
    Event(
        "interrupt_injected",
        "debug",
        "An interrupt reached the sink; told only where the tracer asks for each one.",
        _fields(*_IRQFD, Field("fast", (bool,), "whether by the fast path")),
    ),
    Event("interrupt_held", "info", "An interrupt waits for a route.", _fields(*_IRQFD)),
    Event(
        "interrupt_dropped",
        "warning",
        "An interrupt had no route, as the kernel drops it; the first one of each irqfd under each routing table.",
        _fields(*_IRQFD),
    ),
    Event(
        "interrupt_abandoned",
        "error",
        "Signals could not be put back into their eventfd: they are lost.",
        _fields(*_IRQFD, Field("count", (int,), "how many"), *_FAILURE),
    ),
    Event(
        "injection_failed",
        "warning",
        "The sink or a handler raised; it is tried again.",
        _fields(
            *_IRQFD,
            Field("attempt", (int,), "the how manieth attempt it was, from 1 on"),
            Field("retry_in", (float, int), "when it is tried again, in s"),
            *_FAILURE,
        ),
    ),
    Event(
        "injection_retried",
        "info",
        "The time to try a failed injection again has come.",
        _fields(*_IRQFD, Field("attempt", (int,), "the how manieth attempt it is, from 2 on")),
    ),
    Event("fast_path_failed", "warning", "`try_inject` raised; the work queue takes over.", _fields(*_FAILURE)),
    Event(
        "offload_failed",
        "warning",
        "The sink could not watch an eventfd itself; the loop does.",
        _fields(*_IRQFD, *_FAILURE),
    ),
    Event(
        "reclaim_failed",
        "warning",
        "The sink did not give an eventfd back that it watched.",
        _fields(*_IRQFD, *_FAILURE),
    ),
    Event("raising_failed", "warning", "The sink did not raise a line; it is tried again.", _fields(_GSI, *_FAILURE)),
    Event("lowering_failed", "warning", "The sink did not lower a line; it is tried again.", _fields(_GSI, *_FAILURE)),
    # -- managers ------------------------------------------------------------------------------------------------------
    Event(
        "queue_full",
        "warning",
        "The work queue is at its bound: signals wait in their eventfds.",
        _fields(Field("maxsize", (int,), "the bound, in items")),
    ),
    Event(
        "queue_resumed",
        "info",
        "Half of the work queue is free again.",
        _fields(_HELD, Field("after", (float,), "how long it was full, in s")),
    ),
    Event(
        "manager_paused",
        "info",
        "A manager was paused: nothing is injected.",
        _fields(Field("irqfds", (int,), "how many irqfds it has")),
    ),
    Event(
        "manager_resumed",
        "info",
        "A manager goes on.",
        _fields(_HELD, Field("paused_for", (float,), "how long it was paused, in s")),
    ),
    Event(
        "routing_changed",
        "info",
        "The routing table was replaced.",
        _fields(Field("gsis", (int,), "gsis that have a route in it"), _GENERATION),
    ),
    Event(
        "route_changed",
        "info",
        "The route of one gsi was changed.",
        _fields(_GSI, Field("routes", (int,), "routes that it has now"), _GENERATION),
    ),
    # -- MSI-X tables --------------------------------------------------------------------------------------------------
    Event(
        "msix_control",
        "info",
        "The guest wrote the message-control register.",
        _fields(
            Field("enabled", (bool,), "whether MSI-X is enabled"),
            Field("function_mask", (bool,), "whether every vector is masked"),
        ),
    ),
    Event(
        "msix_access_ignored",
        "info",
        "The guest accessed its MSI-X table as no specification says.",
        _fields(
            Field("write", (bool,), "whether it was a write"),
            Field("offset", (int,), "where, in bytes"),
            Field("size", (int,), "how much, in bytes"),
        ),
    ),
    Event(
        "msix_vector_failed",
        "warning",
        "A vector could not be made to stand as its registers say; where the guest wants it, it is tried again.",
        _fields(_VECTOR, Field("gsi", (int, _NONE), "the gsi that it has, if it has one"), *_FAILURE),
    ),
    Event("msix_no_gsi", "warning", "There is no gsi free for a vector; it waits for one.", _fields(_VECTOR)),
    Event(
        "msix_unroute_failed",
        "warning",
        "Gsis could not be unrouted; they are not handed out again before they are.",
        _fields(Field("gsis", (int,), "how many"), *_FAILURE),
    ),
    # -- devices that are served ---------------------------------------------------------------------------------------
    Event("frontend_connected", "info", "A vhost-user front-end has connected.", {}),
    Event(
        "frontend_disconnected",
        "info",
        "A vhost-user front-end has gone, or was sent away for a reason.",
        _fields(_REASON),
        "reason",
    ),
    Event("client_connected", "info", "A vfio-user client has connected.", {}),
    Event(
        "client_disconnected",
        "info",
        "A vfio-user client has gone, or was sent away for a reason.",
        _fields(_REASON),
        "reason",
    ),
    Event(
        "memory_table",
        "info",
        "The front-end has changed the guest's memory.",
        _fields(Field("regions", (int,), "how many regions there are now")),
    ),
    Event(
        "vring_started",
        "info",
        "A queue runs.",
        _fields(
            _QUEUE,
            Field("size", (int,), "entries of its ring"),
            Field("base", (int,), "where in the available ring it begins, 0..65535"),
            Field("inflight", (bool,), "whether its requests are kept in the inflight buffer"),
        ),
    ),
    Event(
        "vring_stopped",
        "info",
        "A queue has stopped, as it was told to or for a reason.",
        _fields(
            _QUEUE,
            Field("base", (int, _NONE), "where in the available ring it would go on, 0..65535; None: it did not run"),
            _REASON,
        ),
        "reason",
    ),
    Event(
        "inflight_too_small",
        "warning",
        "The front-end's inflight buffer has no room for a ring, which runs without it.",
        _fields(
            _QUEUE,
            Field("size", (int,), "entries of the ring"),
            Field("room", (int,), "entries that there is room for"),
        ),
    ),
    Event(
        "message_refused",
        "warning",
        "A front-end, a client or a driver has asked for what cannot be.",
        _fields(Field("request", (str,), "the message, or what was written"), _WHY),
    ),
    Event(
        "reply_unexpected",
        "warning",
        "A client has answered what it was not asked.",
        _fields(Field("command", (int,), "the command that it names")),
    ),
    Event("twin_socket_failed", "warning", "A client has broken the protocol on the twin socket.", _fields(_WHY)),
    Event(
        "request_failed",
        "warning",
        "`handle()` of a device raised, or `failed()` did.",
        _fields(_QUEUE, Field("head", (int,), "the request's first descriptor"), *_FAILURE),
    ),
    Event(
        "interrupt_failed",
        "warning",
        "`interrupt()` of a device raised; the interrupt goes out at once.",
        _fields(_QUEUE, *_FAILURE),
    ),
    Event(
        "device_failed",
        "warning",
        "Another method of a device raised.",
        _fields(Field("what", (str,), "which method, or the message that it was called for"), *_FAILURE),
    ),
    Event(
        "device_trouble",
        "warning",
        "A device says that something went wrong which is no error of its own, such as a frame that it had to drop.",
        _fields(Field("what", (str,), "in the device's words")),
    ),
    Event(
        "session_failed",
        "warning",
        "A front-end's or a client's session has died by a fault of this package.",
        _fields(*_FAILURE),
    ),
    Event("accept_failed", "warning", "A connection could not be accepted; it is tried again.", _fields(*_FAILURE)),
    Event("connect_failed", "warning", "There was nobody to connect to; it is tried again.", _fields(*_REFUSAL)),
    Event("function_reset", "info", "A PCI function is reset.", {}),
    Event(
        "doorbell_by_exit",
        "warning",
        "The kernel does not ring a doorbell of a PCI function by itself: each ring leaves the guest, and goes by this process.",
        _fields(
            Field("address", (int,), "Where it is in the guest's memory, or its ports"),
            Field("reason", (str,), "What the kernel said"),
        ),
    ),
    Event(
        "undeclared_read",
        "info",
        "The guest read where a device has no register; once for each place.",
        _fields(*_ACCESS),
    ),
    Event(
        "undeclared_write",
        "info",
        "The guest wrote where a device has no register; once for each place.",
        _fields(*_ACCESS),
    ),
    Event(
        "read_only_write",
        "info",
        "The guest wrote a register that is read-only; once for each place.",
        _fields(*_ACCESS),
    ),
    # -- faults --------------------------------------------------------------------------------------------------------
    Event(
        "fault_hit",
        "info",
        "A fault that was set has hit a request, or struck by itself: then once for each place where it struck.",
        _fields(
            Field("faults", (list,), "the names of those that hit"),
            Field("kind", (str,), "the kind of the request"),
            Field(
                "request",
                (tuple, _NONE),
                "the request: what it is known by, and how many there were of it; None: there is none",
            ),
            Field("do", (dict,), "what is done to it, as in the log of the faults"),
            Field("gsi", (int,), "of a sink's interrupt: the gsi, 0..2**32-1", optional=True),
        ),
    ),
    Event(
        "replay_diverged",
        "warning",
        "Requests did not come in a replay that should have come by now; the others go on.",
        _fields(Field("missing", (list,), "those requests")),
    ),
)
"""All events, by name."""


def level_of(event: str, fields: Mapping[str, object]) -> Level:
    """The level of an event; info for one that is not this package's."""
    declared = EVENTS.get(event)
    return "info" if declared is None else declared.level_of(fields)
