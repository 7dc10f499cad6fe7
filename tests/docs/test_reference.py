"""Every public name is in the reference, once."""

from __future__ import annotations

import importlib
import pkgutil
import re
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import aioirqfd
from aioirqfd.cli.main import COMMANDS
from tests.docs.generator import generate

pytestmark = pytest.mark.alike

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
INTERNAL = "aioirqfd.counter"
TEXT = {page.stem: page.read_text("utf-8") for page in PAGES}
# Of the modules below the packages some functions are described too, for those who need more than a package offers; and what is
# internal is listed by itself.
LISTED = [
    name
    for text in TEXT.values()
    for name in re.findall(r"^\.\. auto(?!module)\w+:: (\S+)$", text, re.MULTILINE)
    if name.rpartition(".")[0] != INTERNAL and hasattr(importlib.import_module(name.rpartition(".")[0]), "__all__")
]


def public() -> dict[str, object]:
    """Each public object by its name; one that two packages offer by the first of them."""
    below = [module.name for module in pkgutil.iter_modules(aioirqfd.__path__, "aioirqfd.")]
    found: dict[str, object] = {}
    # The command line has a page of its own, and no Python interface.
    others = {"aioirqfd.__main__", "aioirqfd.cli", INTERNAL}
    for package in ["aioirqfd", *(name for name in below if name not in others)]:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            shown = (type, type(len), type(public))
            if isinstance(value, ModuleType) or (
                isinstance(value, shown) and any(value is one for one in found.values())
            ):
                continue
            found[f"{package}.{name}"] = value
    return found


def test_every_public_name_is_listed_once_and_no_other_is():
    assert Counter(LISTED) == Counter(list(public()))


@pytest.mark.parametrize("name", LISTED)
def test_a_name_is_listed_as_what_it_is(name):
    value = public()[name]
    kind = (
        "autoexception"
        if isinstance(value, type) and issubclass(value, BaseException)
        else "autoclass"
        if isinstance(value, type)
        else "autofunction"
        if isinstance(value, (type(len), type(public)))
        else "autodata"
    )
    assert any(f".. {kind}:: {name}\n" in text for text in TEXT.values())


def test_every_page_is_linked_and_in_the_contents():
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    _, _, contents = page.partition("```{toctree}")
    for stem in TEXT:
        assert f"](reference/{stem}.md)" in page
        assert f"\nreference/{stem}\n" in contents


def test_the_pages_bring_no_contents_of_their_own():
    # Furo, the theme, has them beside each page, and puts a second table of contents into a red box.
    assert [page.name for page in (ROOT / "docs").rglob("*.md") if "{contents}" in page.read_text("utf-8")] == []


def test_every_command_is_described():
    assert [name for name in COMMANDS if f"`aioirqfd {name}`" not in TEXT["command"]] == []


def test_the_version_shown_is_the_packages():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"$ aioirqfd --version\naioirqfd {version}\n" in TEXT["command"]


def test_the_catalogue_of_events_is_made_of_their_declarations():
    assert generate.events(TEXT["events"]) == TEXT["events"]
