"""Every event that the package emits is declared, with every field: as the source says here, and in every test at run time."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from aioirqfd.events import COMMON, EVENTS, level_of
from tests.declared import faults

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
FAILURE = {"error", "exc_info"}
IRQFD = {"gsi", "fd", "eventfd_id"}
# What an event is emitted by, which of its keywords is none of the fields, and the fields that it adds.
EMITTERS: dict[str, tuple[set[str], set[str]]] = {
    "emit": (set(), set()),
    "_emit": (set(), set()),
    "trace": (set(), IRQFD),
    "trace_once": (set(), set()),
    "trouble": ({"kind"}, set()),
    "tell": ({"kind"}, set()),
    "raised": (set(), FAILURE),
    "sink_failed": (set(), IRQFD | FAILURE),
    "_sink_failed": (set(), {"gsi"} | FAILURE),
}
# Those that hand on an event that they were given.
FORWARDERS = {
    "irqfd/delivery.py: _emit_within",
    "irqfd/delivery.py: in_time",
    "irqfd/delivery.py: sink_failed",
    "irqfd/guard.py: emit",
    "irqfd/msix_bindings.py: tell",
    "irqfd/resampler.py: _sink_failed",
    "pci/device.py: trace_once",
    "pci/function.py: trace_once",
    "ratelimit.py: emit",
    "serving/reports.py: raised",
    "serving/reports.py: trouble",
    "tracing/flight.py: emit",
    "tracing/flight.py: replay",
}
# They emit nothing, and have methods of these names for something else.
SILENT = ("irqchip/", "testing/")
# Fields that come with a `**` in which they cannot be read.
UNPACKED = {"irqfd_deassigned": {"signals", "injections", "coalesced", "dropped", "offloaded"}}


class Call(NamedTuple):
    """One call that emits an event."""

    where: str
    event: str
    fields: set[str]


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Each call, with the function that it stands in."""
    for node in ast.iter_child_nodes(tree):
        here = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else inside
        if isinstance(node, ast.Call):
            yield here, node
        yield from functions(node, here)


def fields_of(call: ast.Call, name: str, event: str) -> set[str]:
    skipped, fields = EMITTERS[name]
    fields = set(fields)
    for keyword in call.keywords:
        if keyword.arg is not None:
            fields |= {keyword.arg} - skipped
        elif isinstance(keyword.value, ast.Call) and getattr(keyword.value.func, "id", "") == "failure":
            fields |= FAILURE
        else:
            fields |= UNPACKED.get(event, set())
    return fields


def calls(path: Path, where: str) -> tuple[list[Call], set[str]]:
    """The events that a file emits, and its functions that emit what no constant names."""
    found: list[Call] = []
    forwarders: set[str] = set()
    for function, call in functions(ast.parse(path.read_text("utf-8"))):
        name = getattr(call.func, "attr", None) or getattr(call.func, "id", "")
        if name not in EMITTERS or not call.args or where.startswith(SILENT):
            continue
        match call.args[0]:
            case ast.Constant(value=str(event)):
                found.append(Call(f"{where}:{call.lineno}", event, fields_of(call, name, event)))
            case ast.JoinedStr():
                pass  # a message for people: Delivery.trouble()
            case _:
                forwarders.add(f"{where}: {function}")
    return found, forwarders


def package() -> tuple[list[Call], set[str]]:
    found: list[Call] = []
    forwarders: set[str] = set()
    for path in sorted((ROOT / "aioirqfd").rglob("*.py")):
        more = calls(path, str(path.relative_to(ROOT / "aioirqfd")))
        found += more[0]
        forwarders |= more[1]
    return found, forwarders


CALLS, FOUND_FORWARDERS = package()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.where} {call.event}")
def test_every_event_and_field_is_declared(call):
    assert call.event in EVENTS
    declared = EVENTS[call.event].fields
    assert call.fields - declared.keys() - COMMON.keys() == set()
    missing = {name for name, field in declared.items() if not field.optional} - call.fields
    assert missing == set()


def test_every_declared_event_is_emitted():
    assert set(EVENTS) == {call.event for call in CALLS}


def test_no_other_function_hands_events_on():
    assert FOUND_FORWARDERS == FORWARDERS


def test_an_undeclared_event_in_the_source_is_seen(tmp_path):
    source = tmp_path / "it.py"
    source.write_text(
        "class It:\n"
        "    def do(self, error, event):\n"
        "        self._tracer.emit('it_happened', gsi=5, **failure(error))\n"
        "        self._delivery.trace('irqfd_masked', self, colour=3)\n"
        "        self._reports.trouble('message_refused', kind=1, request='x')\n"
        "        self.emit(event)\n",
        "utf-8",
    )
    found, forwarders = calls(source, "it.py")
    assert found == [
        Call("it.py:3", "it_happened", {"gsi", "error", "exc_info"}),
        Call("it.py:4", "irqfd_masked", {"gsi", "fd", "eventfd_id", "colour"}),
        Call("it.py:5", "message_refused", {"request"}),
    ]
    assert forwarders == {"it.py: do"}


# -- the declarations ----------------------------------------------------------------------------------------------------


def test_they_are_constant_snake_case_sentences():
    for name, event in EVENTS.items():
        assert name == event.name
        assert name.replace("_", "").isalpha()
        assert name.islower()
        assert event.when.endswith(".")
        assert event.reason is None or event.reason in event.fields
        for key, field in event.fields.items():
            assert key == field.name
            assert field.meaning
    assert all(field.optional for field in COMMON.values())


def test_what_is_wrong_with_an_event_is_said():
    fields: dict[str, object] = {"gsi": 5, "fd": 3, "eventfd_id": 7}
    assert faults("irqfd_masked", fields) == []
    assert faults("irqfd_masked", fields | {"device": "Blk", "queue": 0, "suppressed": 8}) == []
    assert faults("irqfd_masked", {"gsi": 5, "fd": 3}) == ["irqfd_masked has no eventfd_id"]
    assert faults("irqfd_masked", fields | {"gsi": True}) == [
        "irqfd_masked has gsi=True, which is declared as (<class 'int'>,)"
    ]
    assert faults("irqfd_masked", fields | {"colour": 3}) == ["irqfd_masked has a field colour that is not declared"]
    assert faults("irqfd_painted", fields) == ["irqfd_painted is declared nowhere"]


def test_levels():
    assert level_of("interrupt_injected", {}) == "debug"
    assert level_of("irqfd_broken", {}) == "error"
    assert level_of("vring_stopped", {"reason": None}) == "info"
    assert level_of("vring_stopped", {"reason": "a looped chain"}) == "warning"
    assert level_of("client_disconnected", {"reason": "version 2 of the protocol"}) == "warning"
    assert level_of("an_application_s_own", {}) == "info"


def test_what_fails_is_a_warning_or_worse():
    quiet = {name for name, event in EVENTS.items() if "exc_info" in event.fields and event.level in {"debug", "info"}}
    assert quiet == set()
    assert {
        name for name in EVENTS if name.endswith(("_failed", "_refused", "_dropped")) and level_of(name, {}) == "info"
    } == set()
