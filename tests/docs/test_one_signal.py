"""The page that follows one signal names a file and a function for each step; they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.generator import generate

pytestmark = pytest.mark.alike

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "one-signal.md").read_text("utf-8")
STEPS = re.findall(r"^\| .+? \| `(\S+)` \| `(\S+)` \|$", PAGE, re.MULTILINE)


def test_the_way_is_told():
    assert len(STEPS) >= 15


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_a_step_is_where_the_page_says(file, name):
    source = (ROOT / "aioirqfd" / file).read_text("utf-8")
    if file.endswith(".c"):
        assert re.search(rf"^{name}\(", source, re.MULTILINE), name
        assert (ROOT / "aioirqfd" / "counter" / "_python").joinpath(Path(file).stem + ".py").exists() or Path(
            file
        ).stem in {"lane", "mail"}
        return
    generate.function(Path(file), source, name)
