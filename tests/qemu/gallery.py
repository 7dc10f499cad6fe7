"""What the page "Make Linux see ..." shows, against what a guest shows now."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from aioirqfd.testing import GuestError
from examples import linux_sees
from tests.docs.generator import generate
from tests.qemu import program

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

KEPT = generate.OUTPUT / "linux_sees"
VARIES = re.compile(r"(?<=after )[\d.]+(?= s: )|(?<=dd:)\d+|(?<=I/O )\d+(?= )|(?<=req.0:id )\d(?= )|(?<=_tree:)\d+")
"""Seconds, process ids, which free number a request has, and lines of the kernel's source."""
AFTER = re.compile(r"^after ([\d.]+) s: (.*)$", re.MULTILINE)


def pattern(text: str) -> str:
    """What is to be shown, in this order; on a busy machine other lines may be between."""
    lines = [r"[\d.]+".join(map(re.escape, VARIES.split(line))) for line in text.splitlines()]
    return r"^" + r"\n(?:.*\n)*?".join(lines) + r"\n"


async def shown(boot: Callable, scripts: Collection[Callable]) -> dict[str, dict[str, float]]:
    """Run scripts in a guest, and see that each shows what the page does; by name, each line of the log with its seconds."""
    found = {}
    async with contextlib.aclosing(linux_sees.see(boot, scripts, program.PROGRAM)) as all_said:
        async for name, said in all_said:
            kept = (KEPT / f"{name}.txt").read_text("utf-8")
            if not re.search(pattern(kept), said):
                raise GuestError(f"{name} shows\n{said}\nand the page\n{kept}")
            found[name] = {line: float(seconds) for seconds, line in AFTER.findall(said)}
    return found
