"""What the documentation shows is what happens: each example runs, and its output is the one that is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aioirqfd
from tests.docs.generator import generate

pytestmark = pytest.mark.alike

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
README = ROOT / "README.md"

EXAMPLES = [path for path in generate.examples() if path.stem not in generate.WITHOUT_OUTPUT]
# asyncio.run, but on uvloop, and the rest of the program as it stands. (uvloop.run calls asyncio.run from Python 3.12 on.)
ON_UVLOOP = """
import asyncio, runpy, sys, uvloop

def run(main):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)

asyncio.run = run
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""
KVM_ONLY = {"howto_kvm", "howto_vmm"}


def run(*arguments, cwd=ROOT, **variables):
    """The output of a program that may print no warning and leave nothing open."""
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def example(path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.kvm] if path.stem in KVM_ONLY else [])


@pytest.mark.parametrize("path", [*map(example, EXAMPLES)])
def test_example_prints_what_the_documentation_says(path, tmp_path):
    # By its path, from anywhere.
    assert run(path, cwd=tmp_path) == generate.output(path).read_text("utf-8")


@pytest.mark.parametrize("path", [*map(example, EXAMPLES)])
def test_example_does_the_same_on_uvloop(path):
    # As a module, from the root of the tree.
    assert run("-c", ON_UVLOOP, f"examples.{path.stem}") == generate.output(path).read_text("utf-8")


def test_implementation_is_told():
    path = ROOT / "examples" / "howto_implementation.py"
    assert run(path, AIOIRQFD_PURE_PYTHON="1") == "pure Python\n"
    live = {"c": "the C module\n", "python": "pure Python\n"}[aioirqfd.IMPLEMENTATION]
    assert run(path) == live


def blocks():
    """Every copied block of the documentation: the file, and which part of it."""
    for page in generate.pages():
        for _, path, part, _ in generate.BLOCK.findall(page.read_text("utf-8")):
            yield ROOT / path, part


def test_every_example_and_every_output_is_shown():
    shown = {path for path, _ in blocks()}
    of_guests = {*(generate.OUTPUT / "linux_sees").iterdir()}
    wanted = {*generate.examples(), *map(generate.output, EXAMPLES), *of_guests}
    assert wanted - shown == set()
    assert {*generate.OUTPUT.rglob("*.txt")} == {*map(generate.output, EXAMPLES), *of_guests}


def test_every_marked_region_of_an_example_is_shown():
    shown = {
        (path, part or "example")
        for path, part in blocks()
        if path.suffix == ".py" and part != "whole" and not part.endswith("()")
    }
    marked = {
        (path, name)
        for path in sorted(generate.EXAMPLES.rglob("*.py"))
        for name in re.findall(r"^ *# docs: begin (\w+)$", path.read_text("utf-8"), re.MULTILINE)
    }
    assert shown == marked


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_shows_the_code_and_the_output_that_are_in_the_examples(page):
    text = page.read_text("utf-8")
    assert generate.filled(text) == text


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_whole_without_a_build_and_has_no_code_of_its_own(page):
    text = page.read_text("utf-8")
    assert "{literalinclude}" not in text
    assert re.findall(r"\{[\w:]+\}`", text) == []  # roles, which a forge shows as they are written
    assert "```python" not in generate.BLOCK.sub("", text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<!-- examples/hello.py: begin -->\n", "has no end"),
        ("<!-- examples/hello.py: begin -->\n<!-- examples/hello.py slow: end -->\n", "has no end"),
        ("<!-- examples/hello.py slow: begin -->\n<!-- examples/hello.py slow: end -->\n", "has no region slow"),
        (
            "<!-- aioirqfd/pci/bus.py PciBus.no(): begin -->\n<!-- aioirqfd/pci/bus.py PciBus.no(): end -->\n",
            r"has no PciBus\.no",
        ),
        ("<!-- examples/output/hello.txt 4: begin -->\n<!-- examples/output/hello.txt 4: end -->\n", "no lines 4"),
        (
            "<!-- examples/output/hello.txt 2-9: begin -->\n<!-- examples/output/hello.txt 2-9: end -->\n",
            "no lines 2-9",
        ),
    ],
)
def test_a_block_that_names_nothing_is_an_error(text, why):
    with pytest.raises(ValueError, match=why):
        generate.filled(text)


def test_a_block_is_copied_without_its_indent_and_a_whole_file_without_its_marks():
    names = ["examples/tutorial_1_eventfd.py wait", "examples/howto_implementation.py whole"]
    wait, whole = (generate.filled(f"<!-- {name}: begin -->\n<!-- {name}: end -->") for name in names)
    assert wait.splitlines()[1:3] == ["```python", "reader = asyncio.create_task(kick.read())"]
    assert wait.splitlines()[-2:] == ["```", f"<!-- {names[0]}: end -->"]
    source = (ROOT / "examples" / "howto_implementation.py").read_text("utf-8")
    assert whole.splitlines()[2:-2] == [line for line in source.splitlines() if "docs: " not in line]


def test_state_table_is_up_to_date():
    page = generate.STATES.read_text("utf-8")
    assert generate.states(page) == page
    page = generate.FAULT_TABLE.read_text("utf-8")
    assert generate.faults(page) == page


def test_readme_opens_with_the_two_commands_and_they_are_there():
    title, fence, *commands, end = (
        README.read_text("utf-8").splitlines()[:1] + README.read_text("utf-8").splitlines()[2:6]
    )
    assert (title, fence, end) == ("# aioirqfd", "```console", "```")
    assert commands == ["$ make vmm", "$ make test"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert {"vmm", "test"} <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_the_first_example_has_fifteen_lines_of_code():
    lines = generate.region(ROOT / "examples" / "hello.py").splitlines()
    assert len([line for line in lines if line.strip()]) == 15


def shape(text):
    """The text without its numbers and the width of its columns."""
    return re.sub(r" +", " ", re.sub(r"\d+", "0", text))


@pytest.mark.kvm
def test_readme_shows_the_example_vmm():
    shown = re.search(
        r"<!-- vmm: begin -->\n```text\n(.*?)```\n<!-- vmm: end -->", README.read_text("utf-8"), re.DOTALL
    )
    assert shown is not None
    command = [
        sys.executable,
        "-m",
        "examples.vmm",
        "--accel",
        "kvm",
        "--inject",
        "offload",
        "--hz",
        "1000",
        "--ticks",
        "20",
    ]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=True
    )
    # A machine that is busy with other things may be late with a tick, and then says so.
    printed = [line for line in (done.stdout + done.stderr).splitlines(keepends=True) if " interrupts for " not in line]
    assert shape("".join(printed)) == shape(shown[1])


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link and not link.startswith("#")]
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


def test_make_help_names_every_target_and_the_docs_name_no_other():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    targets = set(phony.split()) - {"help"}
    helped = set(re.findall(r"\bmake ([a-z][a-z-]*)", subprocess.check_output(["make", "help"], cwd=ROOT, text=True)))
    assert targets - helped == set()
    in_code = {
        target
        for page in generate.pages()
        for target in re.findall(r"(?:^\$ |`)make (?:-\S+ )*([a-z][a-z-]*)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert in_code
    assert in_code - targets == set()
