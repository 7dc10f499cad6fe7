"""The page that teaches what a virtual machine is names files, their sizes, and a function for each step; they are so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.generator import generate, picture_read

pytestmark = pytest.mark.alike

ROOT = Path(__file__).parents[2]
PAGE = generate.MACHINE.read_text("utf-8")
MACHINE, LIBRARY = (
    {file: int(lines) for file, lines in re.findall(r"^\| `(\S+)` \| (\d+) \| .+ \|$", part, re.MULTILINE)}
    for part in PAGE.split("These are", 1)
)
STEPS = picture_read.STEP.findall(PAGE)
OURS = [(file, name) for _, _, file, name in STEPS if (ROOT / file).exists()]
NEAR = 0.15
"""By how much a size may be off: a page need not change with each line of code."""


def size(file):
    return len((ROOT / file).read_text("utf-8").splitlines())


@pytest.mark.parametrize(("file", "lines"), {**MACHINE, **LIBRARY}.items())
def test_a_file_has_about_as_many_lines_as_the_page_says(file, lines):
    assert lines == pytest.approx(size(file), rel=NEAR, abs=10)


def test_the_machine_has_about_1500_lines():
    (said,) = re.findall(r"These are \*\*([\d,]+)\*\* lines", PAGE)
    assert int(said.replace(",", "")) == sum(MACHINE.values())
    assert sum(map(size, MACHINE)) == pytest.approx(1500, rel=NEAR)


def test_no_file_of_the_machine_is_left_out():
    """Beside those of the command line, the terminal and the devices, which are not the machine."""
    imported, found = set(), ["examples.vmm.linux.machine"]
    while found:
        name = found.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name in imported or not path.exists():
            continue
        imported.add(name)
        for package, names in re.findall(
            r"^ *from (examples\.vmm\.linux\S*) import (.+)$", path.read_text("utf-8"), re.MULTILINE
        ):
            found += [package, *(f"{package}.{one.split(' ')[0]}" for one in names.split(", "))]
    files = {f"{name.replace('.', '/')}.py" for name in imported} - {"examples/vmm/linux/errors.py"}
    assert files <= set(MACHINE)


def test_the_way_is_told():
    assert [int(number) for number, *_ in STEPS] == list(range(1, 13))
    assert len(OURS) == sum(where == "loop" for _, where, *_ in STEPS)


@pytest.mark.parametrize(("file", "name"), OURS)
def test_a_step_is_where_the_page_says(file, name):
    source = (ROOT / file).read_text("utf-8")
    if file.endswith(".c"):
        assert re.search(rf"^{name}\(", source, re.MULTILINE), name
    else:
        generate.function(Path(file), source, name)


def test_a_step_without_a_name_in_the_picture_is_an_error():
    with pytest.raises(ValueError, match="the page has 13 steps, and the picture 12"):
        picture_read.draw(PAGE + "| 13 | guest | goes on | `a.c` | `b` |\n")
