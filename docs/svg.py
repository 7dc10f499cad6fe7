"""The little of SVG that the pictures need.

A picture is a card of its own, dark where the reader's system is. It is 400 units wide, so that a phone shows it at its full size.
"""

from __future__ import annotations

from html import escape
from typing import Final

WIDTH: Final = 400
_STYLE: Final = """\
text { font: 12px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328 }
.small { font-size: 11px; fill: #59636e }
.card { fill: #ffffff; stroke: #d1d9e0 }
.box { fill: #f6f8fa; stroke: #d1d9e0 }
.node { fill: #ffffff; stroke: #59636e }
.line { fill: none; stroke: #59636e }
.grid { stroke: #d1d9e0 }
.good { fill: #2f6f4f }
.bad { fill: #b3402a }
.mark { stroke: #1f2328; stroke-width: 2 }
.thin { stroke-width: 1 }
marker path { fill: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .small { fill: #9198a1 }
  .card { fill: #0d1117; stroke: #3d444d }
  .box { fill: #151b23; stroke: #3d444d }
  .node { fill: #0d1117; stroke: #9198a1 }
  .line { stroke: #9198a1 }
  .grid { stroke: #3d444d }
  .good { fill: #3fa372 }
  .bad { fill: #d9634c }
  .mark { stroke: #e6edf3 }
  marker path { fill: #9198a1 }
}
"""
_ARROW: Final = (
    '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0,0 L8,4 L0,8 Z"/></marker>'
)


def text(x: float, y: float, what: str, *, kind: str = "", anchor: str = "start") -> str:
    """A line of text; ``y`` is where its letters stand."""
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{css}>{escape(what)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, *, radius: float = 0) -> str:
    """A rectangle by its upper left corner."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{kind}"/>'


def line(path: str, kind: str = "line", *, arrow: bool = False) -> str:
    """A line along a path."""
    return f'<path d="{path}" class="{kind}"{" marker-end=" + chr(34) + "url(#arrow)" + chr(34) if arrow else ""}/>'


def picture(title: str, height: float, parts: list[str]) -> str:
    """The whole file. The title is what a screen reader says."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
        ' role="img">'
    )
    card = rect(0.5, 0.5, WIDTH - 1, height - 1, "card", radius=6)
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", f"<style>\n{_STYLE}</style>", _ARROW, card, *parts, "</svg>\n"]
    )
