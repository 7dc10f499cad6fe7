"""What the guide shows of ``aioirqfd trace`` is what it prints, but for the numbers that differ from run to run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aioirqfd.cli import trace

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "follow.md").read_text("utf-8")


def without_numbers(text: str) -> str:
    """Times, the pid and descriptors differ; columns are as wide as what is in them."""
    text = re.sub(r"[-+]?[\d.]+(e[-+]\d+)? (ns|us|ms|s)\b", "TIME", text)
    text = re.sub(r"pid \d+, begun [-\d]+ [:\d]+ UTC", "pid, begun", text)
    return re.sub(r" +", " ", re.sub(r"fd \d+", "fd", text))


def test_the_output_on_the_page_is_that_of_the_example():
    (shown,) = re.findall(r"^\$ aioirqfd trace vmm.flight\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    command = [sys.executable, "-P", "-W", "error", str(ROOT / "examples" / "howto_follow.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=True)
    lines = without_numbers(done.stdout).splitlines()
    # On a machine that is busy something may have waited for more than 10 ms: then that is told, too.
    slow = [line for line in lines if " waited TIME or longer" in line]
    kept = [line for line in lines if line not in slow]
    assert kept[1].endswith(" troubles:" if slow else "one trouble:")
    kept[1] = "one trouble:"
    assert kept == without_numbers(shown).splitlines()


@pytest.mark.parametrize(
    "option", ["gsi", "device", "queue", "since", "last", "slow", "follow", "json", "perfetto", "plot"]
)
def test_the_page_names_every_option_there_is(option, capsys):
    assert f"--{option}" in PAGE
    with pytest.raises(SystemExit):
        trace.run(["--help"])
    assert f"--{option}" in capsys.readouterr().out
