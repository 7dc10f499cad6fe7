"""Sphinx configuration. The reference is generated from the package: every public name once, where users import it from."""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import aioirqfd

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))

project = "aioirqfd"
author = "the aioirqfd authors"
project_copyright = author
version = release = PYPROJECT["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "aioirqfd"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Threads", "notes_style"), ("Source", "notes_style"), ("Cancellation", "notes_style")]

MARKER = "<!-- public names -->"


def public_packages() -> list[str]:
    """The package itself, then each module or package below it that lists public names and is not private."""
    below = (module.name for module in pkgutil.iter_modules(aioirqfd.__path__, f"{aioirqfd.__name__}."))
    public = (name for name in below if not name.rpartition(".")[2].startswith("_"))
    return [aioirqfd.__name__, *(name for name in public if hasattr(importlib.import_module(name), "__all__"))]


def reference() -> str:
    """The body of the reference, as MyST: a section per package, each object documented where it is first public."""
    seen: set[int] = set()
    lines: list[str] = []
    for package in public_packages():
        module = importlib.import_module(package)
        names = []
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            # Small values such as strings and numbers are shared by unrelated names.
            if callable(value):
                if id(value) in seen:
                    continue
                seen.add(id(value))
            names.append(name)
        lines += [f"## {package}", "", "```{eval-rst}", f".. automodule:: {package}"]
        if names:
            lines += [f"   :members: {', '.join(names)}", "   :imported-members:"]
        lines += ["```", ""]
    return "\n".join(lines)


def insert_reference(_app: Sphinx, _docname: str, source: list[str]) -> None:
    """Put the generated part in place of the marker."""
    if MARKER in source[0]:
        source[0] = source[0].replace(MARKER, reference())


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", insert_reference)
