"""The house stands: imports go down only, every public name is there and documented, and importing it is cheap."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.alike

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aioirqfd"

# From the ground up. A module may import from its own floor and from those before it.
FLOORS = (
    "errors",
    "integers",
    "uncopied",
    "tracer",
    "events",
    "ratelimit",
    "nodes",
    "mapping",
    "fence",
    "counter",
    "flight",
    "eventfd",
    "ioeventfd",
    "kvm",
    "irqfd",
    "sinks",
    "irqchip",
    "tracing",
    "serving",
    "inspect",
    "pci",
    "virtio",
    "vfio_user",
    "virtio_pci",
    "vhost_user",
    "faults",
    "prometheus",
    "testing",
    "cli",
    "__init__",
    "__main__",
)

# Each costs start-up time or need not be installed.
NOT_AT_IMPORT = ("uvloop", "unicorn", "structlog", "anyio", "sphinx")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


MODULES = sources()


def imported(name: str, path: Path, *, at_run_time: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each aioirqfd module that a file imports, in functions and under TYPE_CHECKING too."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    tree: ast.AST = ast.parse(path.read_text("utf-8"), str(path))
    for node in ast.walk(RunTimeOnly().visit(tree) if at_run_time else tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "aioirqfd":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            if base.partition(".")[0] == "aioirqfd":
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    yield node.lineno, whole if whole in MODULES else base


class RunTimeOnly(ast.NodeTransformer):
    """Takes out what stands under TYPE_CHECKING."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse or ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)


def floor(name: str) -> str:
    return [*name.split("."), "__init__"][1]


def test_every_module_has_a_floor():
    assert {floor(name) for name in MODULES} - set(FLOORS) == set()


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name):
    height = FLOORS.index(floor(name))
    up = [
        f"{MODULES[name].relative_to(ROOT)}:{line}: {floor(name)} imports {target}, which is above it"
        for line, target in imported(name, MODULES[name])
        if FLOORS.index(floor(target)) > height
    ]
    assert up == []


@pytest.mark.parametrize("types_too", [False, True])
def test_no_import_cycle_inside_a_floor(types_too):
    # The packages' own __init__.py are left out: they only re-export what their modules define. With what is imported for types
    # alone the irqfds' floor has no circle either: what goes up there goes through a Protocol beside its user.
    modules = {
        name for name, path in MODULES.items() if path.stem != "__init__" and (floor(name) == "irqfd" or not types_too)
    }
    graph = {
        name: modules.intersection(target for _, target in imported(name, MODULES[name], at_run_time=not types_too))
        for name in modules
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_an_arrow_up_is_seen(tmp_path):
    # The test above is only worth its name if it reads every way of writing an import.
    source = tmp_path / "state.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "import aioirqfd.errors\n"
        "if TYPE_CHECKING:\n"
        "    from aioirqfd.irqfd import sink\n"
        "def late():\n"
        "    from . import interrupt\n"
        "    from ..errors import IrqfdError\n"
        "    import aioirqfd as whole, asyncio\n",
    )
    assert list(imported("aioirqfd.irqfd.state", source)) == [
        (2, "aioirqfd.errors"),
        (4, "aioirqfd.irqfd.sink"),
        (6, "aioirqfd.irqfd.interrupt"),
        (7, "aioirqfd.errors"),
        (8, "aioirqfd"),
    ]


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The module's own statements, and those under its if and try."""
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, [])
        yield block
        for inner in block:
            if isinstance(inner, ast.If | ast.Try):
                yield from blocks(inner)
    for handler in getattr(node, "handlers", []):
        yield from blocks(handler)


@cache
def described_values() -> set[str]:
    """Names of module-level values that carry a description: a string right below them or a #: comment right above."""
    names: set[str] = set()
    for path in MODULES.values():
        text = path.read_text("utf-8")
        lines = text.splitlines()
        for block in blocks(ast.parse(text)):
            for node, following in zip_longest(block, block[1:]):
                match node:
                    case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                        pass
                    case _:
                        continue
                match following:
                    case ast.Expr(value=ast.Constant(value=str())):
                        names.add(name)
                    case _ if lines[node.lineno - 2].lstrip().startswith("#:"):
                        names.add(name)
    return names


def public_packages() -> list[str]:
    """The packages that have public names to give: those whose __init__.py writes an __all__."""
    return [
        name
        for name, path in MODULES.items()
        if path.name == "__init__.py" and re.search(r"^__all__\b", path.read_text("utf-8"), re.MULTILINE)
    ]


@pytest.mark.parametrize("package", public_packages())
def test_public_names_are_importable_and_documented(package):
    module = importlib.import_module(package)
    names = list(module.__all__)
    assert len(names) == len(set(names))
    described = described_values()
    bare = []
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            if not (value.__doc__ or "").strip():
                bare.append(name)
        elif name not in described:
            bare.append(name)
    assert bare == []


def test_importing_it_loads_no_optional_or_slow_module():
    program = (
        "import json, sys; before = set(sys.modules); import aioirqfd; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = set(json.loads(done.stdout))
    assert "aioirqfd" in loaded
    assert loaded & set(NOT_AT_IMPORT) == set()


def test_the_public_face_is_complete():
    import aioirqfd

    assert aioirqfd.IMPLEMENTATION in {"c", "python"}
    assert "IMPLEMENTATION" in aioirqfd.__all__
