from __future__ import annotations

import itertools
import shutil

import pytest

from examples.vmm import build_guest, ports


@pytest.mark.skipif(shutil.which("as") is None, reason="needs the GNU binutils")
def test_committed_image_is_what_the_source_builds():
    assert build_guest.build() == build_guest.IMAGE.read_bytes()


def test_image_ends_below_the_stack():
    stack = 0x8000
    assert ports.LOAD + len(build_guest.IMAGE.read_bytes()) < stack - 0x1000


def test_ports_are_four_bytes_apart_and_pins_differ():
    numbers = sorted(value for name, value in vars(ports).items() if name.endswith("_PORT"))
    assert len(numbers) == 9
    assert all(high - low >= 4 for low, high in itertools.pairwise(numbers))
    pins = [value for name, value in vars(ports).items() if name.endswith("_PIN")]
    assert sorted(pins) == [0, 1, 10, 11]


def test_without_binutils_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_guest.main() == 1
    assert capsys.readouterr().err == "build_guest: there is no as: install the GNU binutils\n"


def test_a_program_that_refuses_is_named(monkeypatch, capsys, tmp_path):
    refusing = tmp_path / "as"
    refusing.write_text("#!/bin/sh\nexit 3\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert build_guest.main() == 1
    assert capsys.readouterr().err == "build_guest: as ended with status 3\n"
