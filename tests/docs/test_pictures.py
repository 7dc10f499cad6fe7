"""The pictures are those of the tables that they are drawn from, and can be read on a phone and without a network."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from aioirqfd.irqfd.state import ROWS, Action, Event, State
from tests.docs.generator import generate, picture_costs, picture_states, svg

pytestmark = pytest.mark.alike

NAMES = {"svg": "http://www.w3.org/2000/svg"}
PICTURES = generate.pictures()


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_up_to_date(path):
    assert path.read_text("utf-8") == PICTURES[path]


def test_every_picture_is_shown_and_drawn_here():
    shown = {
        (page.parent / name).resolve()
        for page in generate.pages()
        for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text("utf-8"))
    }
    assert shown == set(PICTURES) == set(generate.PICTURES.glob("*.svg"))


def test_no_page_needs_a_network_to_draw():
    assert [page.name for page in generate.pages() if "mermaid" in page.read_text("utf-8")] == []


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_fits_a_phone_and_has_a_dark_side(path):
    root = ET.fromstring(PICTURES[path])
    assert int(root.attrib["width"]) == svg.WIDTH == 400
    assert "prefers-color-scheme: dark" in PICTURES[path]
    assert re.findall(r"https?://(?!www\.w3\.org)", PICTURES[path]) == []
    for text in root.iterfind(".//svg:text", NAMES):
        # A letter of 12 pixels is 7.3 wide; the smaller ones are less.
        assert text.text is not None
        width = 7.3 * len(text.text)
        left = float(text.attrib["x"]) - {"start": 0, "middle": width / 2, "end": width}[text.attrib["text-anchor"]]
        assert left >= 0
        assert left + width <= svg.WIDTH


def test_what_the_states_picture_shows_is_in_the_table_and_nothing_of_an_event_is_left_out(monkeypatch):
    rows = [row for row in ROWS if row[1] is not Event.UNBLOCK]
    monkeypatch.setattr(picture_states, "ROWS", rows)
    with pytest.raises(ValueError, match="does not show the table"):
        picture_states.draw()
    monkeypatch.setattr(picture_states, "ROWS", [*ROWS, (State.BROKEN, Event.START, (True,), State.IDLE, Action.NONE)])
    with pytest.raises(ValueError, match="does not show the table"):
        picture_states.draw()


def test_an_event_without_an_arrow_is_named():
    drawn = {arrow.event for arrow in picture_states.ARROWS}
    (line,) = re.findall(r">not drawn: (.*)<", picture_states.draw())
    assert line.split(", ") == [event.name.lower().replace("_", " ") for event in Event if event not in drawn]


def test_a_bar_is_a_row_that_has_a_peer():
    page = (
        "| what | ours | peer | ratio | rounds | target |\n|---|---:|---:|---:|---:|---:|\n"
        "| a / b, asyncio | 1,158 ns | 3,327 ns | 0.490 | 0.353 to 0.677 | 0.4 |\n"
        "| a / c | 158 ns | 27 ns | 5.852 | 5 to 6.1 |  |\n"
        "| heap, bytes | 751 B |  | 751 | 748 to 807 | 1024 |\n"
    )
    assert picture_costs.bars(page) == [("a / b, asyncio", 0.49, 0.353, 0.677, 0.4), ("a / c", 5.852, 5, 6.1, None)]
    drawn = picture_costs.draw(page)
    assert [drawn.count(f'class="{kind}"/>') for kind in ("bad", "good")] == [1, 1]
    with pytest.raises(ValueError, match="no table"):
        picture_costs.draw("")
