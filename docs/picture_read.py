"""The way of one disk read as a picture: drawn from the steps of the page, in the three places where they happen."""

from __future__ import annotations

import re
from typing import Final

import svg

LANES: Final = {"guest": 68, "kernel": 200, "loop": 332}
"""Where a step happens, and the middle of its column."""
SHORT: Final = (
    "request in ring",
    "rings doorbell",
    "ioeventfd",
    "epoll",
    "on_kick",
    "pop",
    "walk",
    "preadv",
    "finish",
    "signal",
    "irqfd, APIC",
    "handler",
)
"""Each step in a few letters."""
STEP: Final = re.compile(r"^\| (\d+) \| (\w+) \| .+? \| `(\S+)` \| `(\S+)` \|$", re.MULTILINE)
"""A step of the page: its number, where it happens, the file, the function."""
_TOP, _HIGH, _BOX = 62, 40, 24


def draw(page: str) -> str:
    """The picture.

    Raises:
        ValueError: The page has other steps than this has names for.
    """
    lanes = [where for _, where, *_ in STEP.findall(page)]
    if len(lanes) != len(SHORT):
        raise ValueError(f"the page has {len(lanes)} steps, and the picture {len(SHORT)}: name each in SHORT")
    bottom = _TOP + _HIGH * len(lanes)
    parts = [
        svg.rect(x - 62, 12, 124, bottom - 12, "box", radius=4) + svg.text(x, 32, name, anchor="middle")
        for (name, x) in zip(("guest", "host's kernel", "Python, loop"), LANES.values(), strict=True)
    ]
    for number, (where, short) in enumerate(zip(lanes, SHORT, strict=True)):
        x, y = LANES[where], _TOP + _HIGH * number
        parts.append(svg.rect(x - 60, y - 16, 120, _BOX, "node", radius=4))
        parts.append(svg.text(x, y, f"{number + 1} {short}", kind="small", anchor="middle"))
        if number:
            before = LANES[lanes[number - 1]]
            start, end = y - _HIGH + _BOX - 16, y - 16
            side = (end - start) / 2 + start
            way = f"M{before},{start} V{end}" if before == x else f"M{before},{start} V{side:g} H{x} V{end}"
            parts.append(svg.line(way, arrow=True))
    return svg.picture("The way of one disk read", bottom + 8, parts)
