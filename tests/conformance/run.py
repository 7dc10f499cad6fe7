"""Runs scenarios: each in a fresh event loop, on one back-end."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aioirqfd.kvm import usable
from tests.conformance.row import IDS, ROWS, plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.row import Row

MODULES = ("eventfd", "assign", "counter", "inject", "resample", "routing", "lines", "lifetime", "ioeventfd")
for _name in MODULES:
    importlib.import_module(f"tests.conformance.rows_{_name}")
assert sorted(ROWS) == sorted(IDS), sorted(set(IDS) - set(ROWS))

RECORDED = Path(__file__).with_name("recorded.json")
NO_KVM = "switched off by CONFORMANCE_RECORDED" if os.environ.get("CONFORMANCE_RECORDED") else usable()
"""Why the kernel's part cannot be run here; None if it can."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row gave on one back-end; ``recorded`` if that was once, on another machine."""

    result: object
    recorded: bool = False


def recorded() -> dict[str, object]:
    """The kernel's results as they were recorded, and on which kernel."""
    found: dict[str, object] = json.loads(RECORDED.read_text("utf-8"))
    return found


async def _run(row: Row, backend: str) -> object:
    from tests.conformance.kernel import KernelHost
    from tests.conformance.ours import OurHost

    assert row.scenario is not None
    host = KernelHost() if backend == "kernel" else OurHost()
    try:
        return plain(await row.scenario(host))
    finally:
        await host.close()


def run(row: Row, backend: str, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> Outcome:
    """Run a row's scenario, or look up what the kernel gave where there is none."""
    if NO_KVM and backend == "kernel":
        results = recorded()["results"]
        assert isinstance(results, dict)
        return Outcome(results[row.id], recorded=True)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return Outcome(runner.run(_run(row, backend)))


def record() -> None:
    """Write down what this kernel gives."""
    results = {name: run(row, "kernel").result for name, row in ROWS.items() if row.scenario is not None}
    state = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "results": {name: results[name] for name in IDS if name in results},
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(state[name])}" for name in ("kernel", "machine")]
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(result)}" for name, result in state["results"].items())
    RECORDED.write_text("{\n" + ",\n".join(lines) + ',\n  "results": {\n' + rows + "\n  }\n}\n", "utf-8")
