"""Which kernel is found, and where its modules are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from aioirqfd.testing.initramfs import GuestError, debian_kernel, initramfs, modules_directory


@pytest.fixture
def root(tmp_path):
    for version in ("6.1.0-9-amd64", "6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64"):
        (tmp_path / "boot").mkdir(exist_ok=True)
        (tmp_path / "boot" / f"vmlinuz-{version}").touch()
        (tmp_path / "lib" / "modules" / version).mkdir(parents=True)
    (tmp_path / "boot" / "vmlinuz-6.1.0-11-cloud-amd64").touch()  # its modules are not here
    return tmp_path


def test_the_newest_for_virtual_machines_is_found_under_any_root(root):
    assert debian_kernel(root).name == "vmlinuz-6.1.0-10-cloud-amd64"


def test_where_there_is_none_it_is_said(tmp_path):
    with pytest.raises(
        GuestError, match=f"no kernel {tmp_path}/boot/vmlinuz-. with its modules in {tmp_path}/lib/modules"
    ):
        debian_kernel(tmp_path)


@pytest.mark.parametrize(
    ("kernel", "modules"),
    [
        ("/boot/vmlinuz-6.1", "/lib/modules/6.1"),
        ("/some/root/boot/vmlinuz-6.1", "/some/root/lib/modules/6.1"),
        ("/home/me/vmlinuz-6.1", "/lib/modules/6.1"),
    ],
)
def test_modules_are_beside_their_kernel(kernel, modules):
    assert modules_directory(Path(kernel)) == Path(modules)


def test_another_busybox(root, tmp_path):
    kernel = debian_kernel(root)
    for name in ("modules.dep", "modules.builtin"):
        (modules_directory(kernel) / name).touch()
    busybox = tmp_path / "busybox"
    with pytest.raises(GuestError, match=f"no {busybox}"):
        initramfs("", kernel=kernel, busybox=busybox)
    busybox.write_bytes(b"it")
    assert initramfs("", kernel=kernel, busybox=busybox)
