"""The command ``aioirqfd``, as it is installed and as ``python -m aioirqfd``."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from aioirqfd.cli import bench, main
from aioirqfd.cli.main import COMMANDS

pytestmark = pytest.mark.alike

SCRIPT = [str(Path(sys.executable).with_name("aioirqfd"))]
MODULE = [sys.executable, "-W", "error", "-m", "aioirqfd"]
ALL = ", ".join(COMMANDS)
BOTH = pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["script", "module"])


def run(command, *arguments, **options):
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=50, check=False, **options)


@BOTH
def test_version(command):
    done = run(command, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"aioirqfd {metadata.version('aioirqfd')}\n", "")


@BOTH
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(command, option):
    done = run(command, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: aioirqfd ")
    for name, (what, _) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert what in done.stdout


@BOTH
def test_without_a_word_it_says_what_there_is(command):
    done = run(command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["benhc"],
            f"aioirqfd: there is no command 'benhc'; did you mean bench? There are {ALL}; see `aioirqfd --help`\n",
        ),
        (["vmm", "--ticks", "1"], f"aioirqfd: there is no command 'vmm'; there are {ALL}; see `aioirqfd --help`\n"),
        ([""], f"aioirqfd: there is no command ''; there are {ALL}; see `aioirqfd --help`\n"),
        (["--loud"], "aioirqfd: unrecognized arguments: --loud; see `aioirqfd --help`\n"),
        (["--vers"], "aioirqfd: unrecognized arguments: --vers; see `aioirqfd --help`\n"),
    ],
)
def test_a_word_that_is_not_there_is_answered_in_a_line(arguments, line, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr() == ("", line)


def test_it_runs_from_a_tree_that_is_not_installed():
    root = Path(__file__).parents[2]
    program = (
        "import importlib.metadata as metadata, runpy, sys\n"
        "def version(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "sys.argv[1:] = ['--version']\n"
        "runpy.run_module('aioirqfd', run_name='__main__')\n"
    )
    done = run([sys.executable, "-c", program], cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "aioirqfd of no version: it is not installed\n", "")


@pytest.fixture
def without_a_tree(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "_TREE", tmp_path)


@pytest.mark.usefixtures("without_a_tree")
def test_bench_says_that_it_is_a_command_of_the_checkout(capsys):
    assert main(["bench", "--rounds", "1"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "aioirqfd bench: the benchmarks are part of the source tree, not of the installed package;"
        " run `make bench` in a checkout of it\n"
    )


def test_bench_says_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delitem(sys.modules, "tests.bench.__main__", raising=False)
    for name in [name for name in sys.modules if name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["bench"]) == 1
    assert capsys.readouterr().err.endswith("; `make bench` installs what it needs and runs it\n")


def test_ctrl_c_ends_in_a_line(monkeypatch, capsys):
    def interrupted(_arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "bench", ("measure", interrupted))
    assert main(["bench"]) == 130
    assert capsys.readouterr().err == "aioirqfd bench: stopped\n"


def test_what_follows_a_command_is_the_commands(monkeypatch):
    given = []
    monkeypatch.setitem(COMMANDS, "bench", ("measure", lambda arguments: given.append(arguments) or 7))
    assert main(["bench", "--help", "--version", "-x", "--", "y"]) == 7
    assert given == [["--help", "--version", "-x", "--", "y"]]
