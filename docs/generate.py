"""Write what the documentation takes from programs: ``python docs/generate.py``. A test fails when it was forgotten.

The pages are whole as they stand, for a forge and for an editor: each block of code or output is copied between two comments that
name where it is from. ``<!-- examples/howto_sink.py slow: begin -->`` is a region of a program, between ``# docs: begin slow`` and
``# docs: end slow`` (``example`` where no region is named, ``whole`` for all of it). ``<!-- aioirqfd/pci/bus.py PciBus._write(): begin -->`` is a function.
``<!-- examples/output/howto_sink.txt 1-2: begin -->`` are lines of what a program printed, all of them where none are named.
The pictures are drawn here too, from the tables of states, of costs, and of the steps of a read.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import picture_costs
import picture_read
import picture_states

from aioirqfd.events import COMMON, EVENTS
from aioirqfd.faults import FAULTS
from aioirqfd.irqfd.state import ROWS, Action

if TYPE_CHECKING:
    from aioirqfd.events import Field

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
OUTPUT = EXAMPLES / "output"
STATES = ROOT / "docs" / "explanation" / "irqfd-states.md"
FAULT_TABLE = ROOT / "docs" / "reference" / "faults.md"
CATALOGUE = ROOT / "docs" / "reference" / "events.md"
COSTS = ROOT / "docs" / "explanation" / "performance.md"
MACHINE = ROOT / "docs" / "explanation" / "virtual-machine.md"
PICTURES = ROOT / "docs" / "_static"
# What it prints depends on the machine.
WITHOUT_OUTPUT = frozenset({"howto_follow", "howto_implementation"})
# Programs that serve until they are stopped, those that need QEMU, and what is no program; tests of their own talk to them.
# What linux_sees shows is kept by its own option: --output examples/output/linux_sees.
SERVERS = frozenset(
    {
        *("chaos_blk", "howto_guest", "howto_ledger", "linux_sees"),
        *("ivshmem_peer", "ivshmem_server"),
        *("edu_pci", "ns16550", "nvme", "nvme_controller", "nvme_queues", "uart_pci"),
        *("vhost_user_blk", "vhost_user_ping", "vhost_user_rng", "vhost_user_upper"),
        *("net_tap", "net_user", "virtio_console", "virtio_net"),
    }
)
BLOCK: Final = re.compile(r"<!-- (((?:examples|aioirqfd)/\S+)(?: (\S+))?): begin -->\n(.*?)<!-- \1: end -->", re.DOTALL)
"""A copied block: its name, the file, the part, and what stands there now."""


def examples() -> list[Path]:
    """The examples that are one file each, and end by themselves."""
    return sorted(path for path in EXAMPLES.glob("*.py") if path.stem not in {"__init__", *SERVERS})


def output(example: Path) -> Path:
    """Where the output of an example is kept."""
    return OUTPUT / f"{example.stem}.txt"


def pages() -> list[Path]:
    """Every page: the README, and the documentation's."""
    return [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]


def region(path: Path, name: str = "example") -> str:
    """The lines of a program between its markers, or of a function, without their indent; ``whole``: all of it, without the markers."""
    text = path.read_text("utf-8")
    if name.endswith("()"):
        return function(path, text, name.removesuffix("()"))
    if name != "whole":
        found = re.search(rf"# docs: begin {name}\n(.*?\n) *# docs: end {name}\n", text, re.DOTALL)
        if found is None:
            raise ValueError(f"{path} has no region {name}")
        text = textwrap.dedent(found[1])
    # Regions may lie in each other; where a mark was, there may be one blank line too many.
    return re.sub(r"\n{3,}", "\n\n\n", re.sub(r"^ *# docs: .*\n", "", text, flags=re.MULTILINE)).strip("\n")


def function(path: Path, text: str, name: str) -> str:
    """The lines of a function or a class, named as in Python, from its decorators on."""
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        found = next((one for one in ast.iter_child_nodes(node) if isinstance(one, kinds) and one.name == part), None)
        if found is None:
            raise ValueError(f"{path} has no {name}")
        node = found
    first = min(one.lineno for one in (found, *found.decorator_list))
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : found.end_lineno]))


def lines(path: Path, part: str | None) -> str:
    """Lines of a text, such as ``3`` or ``1-2``, counted from 1; all for None."""
    text = path.read_text("utf-8").splitlines()
    first, _, last = (part or f"1-{len(text)}").partition("-")
    if not 1 <= int(first) <= int(last or first) <= len(text):
        raise ValueError(f"{path} has {len(text)} lines, and no lines {part}")
    return "\n".join(text[int(first) - 1 : int(last or first)])


def filled(page: str) -> str:
    """A page, with each of its blocks copied anew.

    Raises:
        ValueError: A block has no end, or names what is not there.
    """

    def block(found: re.Match[str]) -> str:
        name, path, part, _ = found.groups()
        python = path.endswith(".py")
        body = region(ROOT / path, part or "example") if python else lines(ROOT / path, part)
        return f"<!-- {name}: begin -->\n```{'python' if python else 'text'}\n{body}\n```\n<!-- {name}: end -->"

    begun = re.findall(r"<!-- ((?:examples|aioirqfd)/.*): begin -->", page)
    if [found[1] for found in BLOCK.finditer(page)] != begun:
        raise ValueError(f"one of these blocks has no end: {begun}")
    return BLOCK.sub(block, page)


def states(page: str) -> str:
    """The page of the state table, with its generated part made anew."""
    made = [
        "| from | event | if | to | and |",
        "|---|---|---|---|---|",
    ]
    for state, event, blocked, after, action in ROWS:
        condition = "" if False in blocked and True in blocked else "blocked" if True in blocked else "free"
        consequence = "" if action is Action.NONE else action.name.lower().replace("_", " ")
        event_name = event.name.lower().replace("_", " ")
        made.append(f"| {state.name} | {event_name} | {condition} | {after.name} | {consequence} |")
    return generated(page, made)


def faults(page: str) -> str:
    """The reference of faults, with their table made anew."""
    made = ["| fault | of | conforming | section |", "|---|---|---|---|"]
    for fault in FAULTS.values():
        for stage, rule in fault.rules.items():
            made.append(f"| `{fault.__name__}` | {stage} | {'yes' if rule.conforming else 'no'} | {rule.section} |")
    return generated(page, made)


def events(page: str) -> str:
    """The catalogue of events, made anew from what is declared of them."""
    made: list[str] = []
    for event in EVENTS.values():
        warning = "" if event.reason is None else f"; warning where there is a `{event.reason}`"
        made += [
            f"## {event.name}",
            "",
            f"*{event.level}{warning}.* {event.when}",
            "",
            *map(_field, event.fields.values()),
            "",
        ]
    made += ["## What any event may have", "", *map(_field, COMMON.values()), ""]
    return generated(page, made)


def _field(field: Field) -> str:
    types = " or ".join("None" if one is type(None) else one.__name__ for one in field.types)
    return f"- `{field.name}` ({types}{', not always there' if field.optional else ''}): {field.meaning}"


def generated(page: str, made: list[str]) -> str:
    """A page, with these lines in its generated part."""
    begin, end = "<!-- generated: begin -->\n", "<!-- generated: end -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError("no place for a generated table")
    body = "\n".join(made)
    return f"{head}{begin}{body}\n{end}{tail}"


def pictures() -> dict[Path, str]:
    """Each picture, by its file."""
    return {
        PICTURES / "irqfd-states.svg": picture_states.draw(),
        PICTURES / "performance.svg": picture_costs.draw(COSTS.read_text("utf-8")),
        PICTURES / "virtual-machine.svg": picture_read.draw(MACHINE.read_text("utf-8")),
    }


def main() -> None:
    """Write everything."""
    for example in examples():
        if example.stem not in WITHOUT_OUTPUT:
            done = subprocess.run([sys.executable, str(example)], check=True, capture_output=True, text=True)  # noqa: S603
            output(example).write_text(done.stdout, "utf-8")
    for page in pages():
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
    STATES.write_text(states(STATES.read_text("utf-8")), "utf-8")
    FAULT_TABLE.write_text(faults(FAULT_TABLE.read_text("utf-8")), "utf-8")
    CATALOGUE.write_text(events(CATALOGUE.read_text("utf-8")), "utf-8")
    for path, picture in pictures().items():
        path.write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
