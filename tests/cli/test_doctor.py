"""``aioirqfd doctor``: each finding by what this machine has, or what it is told that it has."""

from __future__ import annotations

import json
import resource
import runpy
import stat
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

import aioirqfd
from aioirqfd.cli import doctor


def found(name):
    return next(finding for finding in doctor.findings() if finding.name == name)


def test_it_says_the_same_to_people_and_to_programs(capsys):
    assert doctor.run([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert doctor.run(["--json"]) == 0
    findings = [doctor.Finding(**one) for one in json.loads(capsys.readouterr().out)]
    names = [
        "kernel",
        "python",
        *(f"C module for {what}" for what in doctor.MODULES.values()),
        "eventfd",
        "open files",
        "KVM",
        "QEMU",
    ]
    extras = ["argcomplete", "perfetto", "resvg-py", "prometheus-client"]
    assert [finding.name for finding in findings] == [*names, "structlog", "anyio", "uvloop", "unicorn", *extras]
    assert [line.split(maxsplit=1)[0] for line in lines if line[0] != " "] == [finding.verdict for finding in findings]
    assert sum(bool(finding.do) for finding in findings) == sum(line[0] == " " for line in lines)


def test_which_implementation_is_live():
    finding = found("C module for the event path")
    if aioirqfd.IMPLEMENTATION == "c":
        assert finding[1:3] == ("ok", "live (c)")
    else:
        assert finding[1:] == ("absent", "AIOIRQFD_PURE_PYTHON asks for the Python twin", "unset it")


def test_a_c_module_that_is_not_there(monkeypatch):
    monkeypatch.delenv("AIOIRQFD_PURE_PYTHON", raising=False)
    monkeypatch.setitem(sys.modules, "aioirqfd.virtio.fast._native", None)
    finding = found("C module for virtio queues")
    assert finding.verdict == "absent"
    assert "the Python twin serves in its place" in finding.found
    assert "gcc" in finding.do


BUILT = "aioirqfd.counter._native"


@pytest.fixture
def built(monkeypatch, tmp_path):
    """A C module that was built from what is in its folder, as setup.py does it."""
    monkeypatch.delenv("AIOIRQFD_PURE_PYTHON", raising=False)
    setup = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: setup.update(given))
    rules = runpy.run_path(str(Path(doctor.__file__).parents[2] / "setup.py"))
    for name, text in (("twin.py", "twin"), ("part.c", "one"), ("part.h", "two")):
        (tmp_path / name).write_text(text)
    module = types.ModuleType(BUILT)
    vars(module).update(__file__=str(tmp_path / "_native.so"), __built_from__=rules["built_from"](tmp_path))
    monkeypatch.setitem(sys.modules, BUILT, module)
    return module


def stale():
    finding = found("C module for the event path")
    if finding.verdict == "broken":
        assert "make install" in finding.do
        assert "pip install" in finding.do
        assert "is stale: it was built from other " in finding.found
    return finding.verdict == "broken"


def test_a_c_module_is_stale_when_its_sources_have_changed(built, tmp_path, capsys):
    assert not stale()
    (tmp_path / "twin.py").write_text("refactored")
    assert not stale()
    (tmp_path / "part.h").write_text("changed")
    assert stale()
    assert doctor.run([]) == 1
    assert f"{built.__file__} is stale" in capsys.readouterr().out


def test_where_there_are_no_sources_it_is_stale_when_its_twin_has_changed(built, tmp_path):
    for name in ("part.c", "part.h"):
        (tmp_path / name).unlink()
    assert not stale()
    (tmp_path / "twin.py").write_text("of the next version")
    assert stale()


def test_a_c_module_that_does_not_say_what_it_was_built_from_is_stale(built):
    del built.__built_from__
    assert stale()


def test_an_eventfd_without_an_id_is_the_end_of_it(monkeypatch, capsys):
    def refuse():
        raise OSError(2, "No such file or directory", "/proc/self/fdinfo/7")

    monkeypatch.setattr(doctor, "EventFd", refuse)
    assert doctor.run([]) == 1
    assert "broken  eventfd" in capsys.readouterr().out


@pytest.mark.parametrize(("soft", "verdict"), [(doctor.FILES - 1, "absent"), (doctor.FILES, "ok")])
def test_open_files(monkeypatch, soft, verdict):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 20000))
    finding = found("open files")
    assert finding[1:3] == (verdict, f"{soft}, may be raised to 20000")
    assert ("ulimit -n 20000" in finding.do) is (verdict == "absent")


@pytest.mark.parametrize("why", [None, "there is no /dev/kvm"])
def test_kvm(monkeypatch, why):
    monkeypatch.setattr(doctor, "usable", lambda: why)
    finding = found("KVM")
    assert finding.verdict == ("ok" if why is None else "absent")
    assert why is None or finding.found == why


@pytest.mark.parametrize(
    ("says", "found_there"),
    [
        (
            "QEMU emulator version 7.2.22 (Debian)",
            "QEMU emulator version 7.2.22 (Debian): vhost-user; vfio-user needs 10.1 or later",
        ),
        ("QEMU emulator version 10.1.0", "QEMU emulator version 10.1.0: vhost-user and vfio-user"),
        (None, "does not run"),
        ("", "no qemu-system-x86_64 on the PATH"),
    ],
)
def test_qemu(monkeypatch, tmp_path, says, found_there):
    if says != "":
        program = tmp_path / "qemu-system-x86_64"
        program.write_text("#!/bin/sh\nexit 3\n" if says is None else f"#!/bin/sh\necho '{says}'\n", "utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found_there in found("QEMU").found


def test_every_qemu_on_the_path_is_named_once(monkeypatch, tmp_path):
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for number, folder in enumerate(folders[:2]):
        folder.mkdir()
        program = folder / "qemu-system-x86_64"
        program.write_text(f"#!/bin/sh\necho 'QEMU emulator version 1{number}.1.0'\n", "utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    folders[2].symlink_to(folders[0])
    monkeypatch.setenv("PATH", ":".join(map(str, folders)))
    said = [finding.found for finding in doctor.findings() if finding.name == "QEMU"]
    assert said == [f"QEMU emulator version 1{number}.1.0: vhost-user and vfio-user" for number in range(2)]


def test_an_extra_that_is_not_installed(monkeypatch):
    version = metadata.version

    def lookup(name):
        if name == "unicorn":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", lookup)
    assert found("unicorn") == ("unicorn", "absent", "not installed", "pip install 'aioirqfd[vmm]'")


def test_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "aioirqfd", "doctor"], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok      kernel ")
