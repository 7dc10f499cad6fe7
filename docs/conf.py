"""Sphinx configuration. The reference's pages list the public names; what is said of each is its docstring."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

# The twin is the specification and carries the signatures; and the result is the same with and without a compiler.
os.environ["AIOIRQFD_PURE_PYTHON"] = "1"

from docutils import nodes
from sphinx import addnodes
from sphinx.pycode import ModuleAnalyzer

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
html_static_path = ["_static"]
html_css_files = ["narrow.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# A name in a signature or a text that leads nowhere is an error, but for Python's own and structlog's, which are described elsewhere,
# and for what users meet without ever having to name it.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(_?asyncio|argparse|collections|contextlib|ctypes|mmap|os|socket)\..*|FilteringBoundLogger|Metric"),
    (
        "py:class",
        r"Context|OnIrq|Space|WakeupHandler|([a-z_.]+\.)?_(Ts?|Device)|(aioirqfd\.irqfd\.resampler\.)?Member|aioirqfd\.eventfd\.poller\.User|CodeType|FrameType|aioirqfd\.counter\._python\..*|aioirqfd\.kvm\.(structures|states|descriptor)\..*",
    ),
    ("py:class", r"aioirqfd\.(vhost_user|virtio)\.(features|messages)\..*|(aioirqfd\.vhost_user\.program\.)?Place"),
    (
        "py:class",
        r"(aioirqfd\.faults\.\w+\.)?(Clock|Command|Content|Group|Plan|Request|Settings|Stage|Target|Wanted)|random\.Random",
    ),
    (
        "py:class",
        r"AnyPayload|DmaTable|aioirqfd\.kvm\.ram\.DmaTable|KvmCpuidEntry2|_P(\.(kw)?args)?|Interception|Service|Transport|pathlib\.Path|T|aioirqfd\.virtio\.features\.VirtioFeature",
    ),
    ("py:meth", r"argparse\..*"),
    ("py:exc", r"CancelledError"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Threads", "notes_style"), ("Source", "notes_style"), ("Cancellation", "notes_style")]

# How far up members are taken from base classes: what Python's own classes have is described by Python.
NOT_INHERITED = "BaseException, BaseProtocol, Enum, Mapping, OSError, Protocol, int, object, tuple"
autodoc_default_options = {"members": True, "inherited-members": NOT_INHERITED}


def description(name: str) -> list[str]:
    """The docstring below a module-level value, wherever in the package it is defined."""
    for module in sorted(module for module in sys.modules if module.startswith("aioirqfd")):
        docs = ModuleAnalyzer.for_module(module).find_attr_docs()
        if ("", name) in docs:
            return docs["", name]
    return []


def improve(_app: Sphinx, what: str, name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Mend what autodoc and napoleon make of a docstring."""
    if what == "data":
        lines[:] = description(name.rpartition(".")[2])
    elif what in {"class", "exception"}:
        move_types(lines)
    join_colon(what, lines)


def move_types(lines: list[str]) -> None:
    """Say an attribute's type beside its name, instead of in a paragraph with a heading of its own."""
    begin = 0
    for at, line in enumerate(lines):
        if line.startswith(".. attribute:: "):
            begin = at
        elif line.startswith("   :type: "):
            lines.insert(begin + 1, lines.pop(at))


def join_colon(what: str, lines: list[str]) -> None:
    """Napoleon takes what comes before a colon in a first line for a type: put the sentence together again."""
    if what in {"attribute", "property"}:
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


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Let a name such as ``aioirqfd.EventFd``, in code type on a page, lead to its place in the reference.

    So the pages need no roles, which a forge would show as they are written. A name that leads nowhere is an error.
    """
    if app.env.docname.startswith("reference/"):
        return  # docstrings have roles
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        if re.fullmatch(r"aioirqfd(\.\w+)+", name) and not isinstance(literal.parent, nodes.reference):
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=name, refexplicit=True, refdoc=app.env.docname
            )
            link.source, link.line = literal.source, literal.line
            literal.replace_self(link)
            link += literal


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", improve, priority=600)  # after napoleon
    app.connect("autodoc-process-signature", drop_signature)
    app.connect("doctree-read", link_names)
