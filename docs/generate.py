"""Write what the documentation takes from programs: ``python docs/generate.py``. A test fails when it was forgotten.

The output of each example goes to ``examples/output/``, the state table to its page, the first example to the README.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from aioirqfd.irqfd.state import ROWS, Action, diagram

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
OUTPUT = EXAMPLES / "output"
STATES = ROOT / "docs" / "explanation" / "irqfd-states.md"
README = ROOT / "README.md"
# What it prints depends on the machine.
WITHOUT_OUTPUT = frozenset({"howto_implementation"})
# Programs that serve until they are stopped, and their parts; tests of their own talk to them.
SERVERS = frozenset(
    {
        *("chaos_blk", "chaos_command", "chaos_interrupt"),
        *("ivshmem_peer", "ivshmem_server"),
        *("vhost_user_blk", "vhost_user_rng", "vhost_user_upper"),
    }
)


def examples() -> list[Path]:
    """The examples that are one file each, and end by themselves."""
    return sorted(path for path in EXAMPLES.glob("*.py") if path.stem not in {"__init__", *SERVERS})


def output(example: Path) -> Path:
    """Where the output of an example is kept."""
    return OUTPUT / f"{example.stem}.txt"


def region(path: Path, name: str = "example") -> str:
    """The lines of a program between its markers."""
    found = re.search(rf"# docs: begin {name}\n(.*?)\n *# docs: end {name}\n", path.read_text("utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{path} has no region {name}")
    return found[1].strip("\n")


def states(page: str) -> str:
    """The page of the state table, with its generated part made anew."""
    lines = [
        "```mermaid",
        diagram().rstrip("\n"),
        "```",
        "",
        "| from | event | if | to | and |",
        "|---|---|---|---|---|",
    ]
    for state, event, blocked, after, action in ROWS:
        condition = "" if False in blocked and True in blocked else "blocked" if True in blocked else "free"
        consequence = "" if action is Action.NONE else action.name.lower().replace("_", " ")
        event_name = event.name.lower().replace("_", " ")
        lines.append(f"| {state.name} | {event_name} | {condition} | {after.name} | {consequence} |")
    return _between(page, "generated", "\n".join(lines))


def readme(page: str) -> str:
    """The README, with the first example and its output made anew."""
    hello = EXAMPLES / "hello.py"
    page = _between(page, "examples/hello.py", f"```python\n{region(hello)}\n```")
    return _between(page, "examples/output/hello.txt", f"```text\n{output(hello).read_text('utf-8')}```")


def _between(page: str, name: str, body: str) -> str:
    begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no place for {name}")
    return f"{head}{begin}{body}{end}{tail}"


def main() -> None:
    """Write everything."""
    for example in examples():
        if example.stem not in WITHOUT_OUTPUT:
            done = subprocess.run([sys.executable, str(example)], check=True, capture_output=True, text=True)  # noqa: S603
            output(example).write_text(done.stdout, "utf-8")
    STATES.write_text(states(STATES.read_text("utf-8")), "utf-8")
    README.write_text(readme(README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
