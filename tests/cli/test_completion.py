"""``aioirqfd completion``: what a shell is told, and what it asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from aioirqfd.cli import completion, main
from aioirqfd.cli.main import COMMANDS

MODULE = [sys.executable, "-W", "error", "-m", "aioirqfd"]


def completed(line, tmp_path):
    """What may follow a line, as a shell asks for it."""
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    done = subprocess.run(MODULE, env=os.environ | asked, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    return sorted(word.strip() for word in answer.read_text("utf-8").splitlines())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("aioirqfd do", ["doctor"]),
        ("aioirqfd doctor --j", ["--json"]),
        ("aioirqfd chaos --rep", ["--replay"]),
        ("aioirqfd completion ", ["--help", "-h", *sorted(completion.SHELLS)]),
    ],
)
def test_what_may_follow(line, words, tmp_path):
    assert completed(line, tmp_path) == words


def test_every_command_may_follow(tmp_path):
    assert set(COMMANDS) <= set(completed("aioirqfd ", tmp_path))


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_shell_is_told_how_to_ask(shell, capsys):
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert "_ARGCOMPLETE" in said
    assert "aioirqfd" in said
    if (program := shutil.which(shell)) is not None:
        done = subprocess.run([program, "-n"], input=said, capture_output=True, text=True, timeout=50, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes(tmp_path):
    program = tmp_path / "aioirqfd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m aioirqfd "$@"\n', "utf-8")
    program.chmod(0o755)
    script = """
        eval "$(aioirqfd completion bash)"
        COMP_LINE='aioirqfd doctor --j' COMP_POINT=19 COMP_TYPE=9 COMP_WORDS=(aioirqfd doctor --j) COMP_CWORD=2
        _python_argcomplete aioirqfd --j doctor
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("--json", "")


def test_without_the_extra_it_says_how_to_get_it_and_the_rest_works(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "argcomplete"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["completion", "bash"]) == 1
    assert capsys.readouterr().err == (
        "aioirqfd completion: argcomplete is not installed; install it with: pip install 'aioirqfd[cli]'\n"
    )
    monkeypatch.setenv(completion.ASKED_BY, "1")
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"bench"}))
def test_the_help_of_each_command_has_examples(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "\nexamples:\n" in capsys.readouterr().out
