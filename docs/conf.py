"""Sphinx configuration. The reference is generated from the package: every public name once, where users import it from."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import tomllib
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

# The twin is the specification and carries the signatures; and the result is the same with and without a compiler.
os.environ["AIOIRQFD_PURE_PYTHON"] = "1"

from sphinx.pycode import ModuleAnalyzer

import aioirqfd

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))

project = "aioirqfd"
author = "the aioirqfd authors"
project_copyright = author
version = release = PYPROJECT["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "aioirqfd"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]

# A name in a signature or a text that leads nowhere is an error, but for Python's own and structlog's, which are described elsewhere,
# and for what users meet without ever having to name it.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(_?asyncio|collections|ctypes|mmap|os)\..*|FilteringBoundLogger"),
    (
        "py:class",
        r"OnIrq|Space|WakeupHandler|aioirqfd\.counter\._python\..*|aioirqfd\.kvm\.(structures|descriptor)\..*",
    ),
    ("py:class", r"aioirqfd\.vhost_user\.(features|messages)\..*"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Threads", "notes_style"), ("Source", "notes_style"), ("Cancellation", "notes_style")]

MARKER = "<!-- public names -->"


# How far up members are taken from base classes: what Python's own classes have is described by Python.
NOT_INHERITED = "BaseException, Enum, Mapping, Protocol, int, object, tuple"

# These classes have methods that the floors of the package call of each other. What is listed here is for users.
FOR_USERS = {
    name: set(members.split())
    for name, members in {
        "GsiAllocator": "allocate busy forget idle release statistics take unrouted wait",
        "IoBus": "deassign ioeventfd statistics write write_bytes",
        "IoEventFd": "address close datamatch eventfd length space statistics take_values",
        "IrqFd": "aclose error eventfd eventfd_id gsi mask masked offloaded pending resamplefd resume state statistics unmask",
        "IrqManager": "ack aclose assign deassign flush gsis irqfds pause paused resample reset_route restore resume routing"
        " set_route set_routing snapshot statistics",
        "Poller": "acquire get gone loop release",
        "QtestClient": "aclose closed command commands connect on_irq outstanding replies submit",
        "RoutingTable": "default entries of_pins routes unrouted with_route without",
        "Resampler": "asserted gsi members raised",
        "Work": "completed func pending running",
        "WorkQueue": "aclose drain flush full idle schedule statistics waiting",
    }.items()
}

INTERNAL_ATTRIBUTES = {"captured", "dropped_under", "on_end", "on_room", "work"}


def public_packages() -> list[str]:
    """The package itself, then each module or package below it that lists public names; what is internal comes last."""
    below = (module.name for module in pkgutil.iter_modules(aioirqfd.__path__, f"{aioirqfd.__name__}."))
    public = (name for name in below if not name.rpartition(".")[2].startswith("_"))
    packages = [name for name in public if hasattr(importlib.import_module(name), "__all__")]
    return [aioirqfd.__name__, *sorted(packages, key=lambda name: (name == "aioirqfd.counter", name))]


def description(name: str) -> list[str]:
    """The docstring below a module-level value, wherever in the package it is defined."""
    for module in sorted(module for module in sys.modules if module.startswith("aioirqfd")):
        docs = ModuleAnalyzer.for_module(module).find_attr_docs()
        if ("", name) in docs:
            return docs["", name]
    return []


def reference() -> str:
    """The body of the reference, as MyST: a section per package, each object documented where it is first public."""
    seen: set[int] = set()
    lines: list[str] = []
    for package in public_packages():
        module = importlib.import_module(package)
        objects: list[str] = []
        values: list[str] = []
        for name in module.__all__:
            value = getattr(module, name)
            # autodoc looks into the module's own names, where one that is imported on demand is not yet.
            setattr(module, name, value)
            if isinstance(value, type) or callable(value):
                if id(value) not in seen:
                    objects.append(name)
                    seen.add(id(value))
            elif not hasattr(value, "__path__") and not hasattr(value, "__file__"):
                values.append(name)
        if not objects and not values:
            continue
        lines += [f"## {package}", "", "```{eval-rst}", f".. automodule:: {package}"]
        if objects:
            lines += [
                f"   :members: {', '.join(objects)}",
                "   :imported-members:",
                f"   :inherited-members: {NOT_INHERITED}",
            ]
            if values:
                lines.append(f"   :exclude-members: {', '.join(values)}")
        lines.append("")
        for name in values:
            lines += [f".. py:data:: {package}.{name}", "", *(f"   {line}" for line in description(name)), ""]
        lines += ["```", ""]
    return "\n".join(lines)


def skip_internal(_app: Sphinx, _what: str, name: str, member: object, _skip: object, _options: object) -> bool | None:
    """Leave out what is not for users."""
    owner = getattr(getattr(member, "fget", member), "__qualname__", "").rpartition(".")[0]
    if name in INTERNAL_ATTRIBUTES:
        return True
    return True if name not in FOR_USERS.get(owner, {name}) else None


def join_colon(_app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Napoleon takes what comes before a colon in a first line for a type: put the sentence together again."""
    if what in {"attribute", "data", "property"}:
        for line in lines:
            if line.startswith(":type: "):
                lines.remove(line)
                lines[0] = f"{line.removeprefix(':type: ')}: {lines[0]}"
                return
    # The same of what a function returns; its type is in the signature.
    begin = next((at for at, line in enumerate(lines) if line.startswith(":returns: ")), None)
    end = next((at for at, line in enumerate(lines) if line.startswith(":rtype: ")), None)
    if begin is not None and end is not None:
        lines[begin] = f":returns: {lines.pop(end).removeprefix(':rtype: ')}: {lines[begin].removeprefix(':returns: ')}"


def drop_signature(
    _app: Sphinx, what: str, name: str, value: object, _options: object, _signature: object, _returns: object
) -> tuple[str, None] | None:
    """Protocols, enumerations, and what is made by a method of something else have no constructor to show."""
    if what != "class" or not isinstance(value, type):
        return None
    made = name.rpartition(".")[2] in {"IoEventFd", "IrqFd", "Poller", "Resampler"}
    return ("", None) if made or issubclass(value, Enum) or getattr(value, "_is_protocol", False) else None


def insert_reference(_app: Sphinx, _docname: str, source: list[str]) -> None:
    """Put the generated part in place of the marker."""
    if MARKER in source[0]:
        source[0] = source[0].replace(MARKER, reference())


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", insert_reference)
    app.connect("autodoc-skip-member", skip_internal)
    app.connect("autodoc-process-docstring", join_colon, priority=600)  # after napoleon
    app.connect("autodoc-process-signature", drop_signature)
