"""Every row can fail, and rules broken by hand are noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import mutants
from tests.conformance.run import NO_KVM

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_a_broken_rule_is_noticed(name):
    call, rows = mutants.MUTANTS[name]
    wanted = [row for row in rows if row in mutants.shown()]
    if not wanted:
        pytest.skip(f"needs KVM: {NO_KVM}")
    assert mutants.noticed(call, wanted) == wanted


def test_there_are_more_than_ten():
    assert len(mutants.MUTANTS) >= 20


def test_no_row_holds_whatever_the_product_does():
    # In a process of its own: threads wait for ever on what nobody reads any more.
    command = [sys.executable, "-m", "tests.conformance.mutants", "--everything"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == "\n"
