from __future__ import annotations

import errno
import os

import pytest

from aioirqfd.errors import ClosedError
from aioirqfd.kvm import Kvm, Vm, system, usable
from aioirqfd.kvm.ioctls import KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQFD, KVM_IRQFD
from aioirqfd.kvm.structures import KvmIrqfd


@pytest.mark.kvm
def test_what_the_device_says():
    with Kvm() as kvm:
        assert kvm.api_version() == 12
        assert kvm.check_extension(KVM_CAP_IRQFD) == 1
        assert kvm.check_extension(KVM_CAP_IRQ_ROUTING) == 4096
        assert kvm.check_extension(10**6) == 0
        assert kvm.vcpu_mmap_size() >= 4096


@pytest.mark.kvm
def test_usable_says_nothing_where_it_works():
    assert usable() is None


@pytest.mark.kvm
def test_usable_names_a_missing_capability(monkeypatch):
    monkeypatch.setitem(system._NEEDED, "KVM_CAP_OF_TOMORROW", 10**6)
    assert usable() == "/dev/kvm lacks KVM_CAP_OF_TOMORROW"


def test_usable_without_a_device(tmp_path):
    path = str(tmp_path / "kvm")
    said = usable(path)
    assert said is not None
    assert said.startswith(f"there is no {path} (ENOENT): load the kernel's module")


def test_usable_with_something_else():
    assert usable("/dev/null") == "/dev/null is not a KVM device"


def test_usable_without_permission(monkeypatch):
    def refuse(path, flags):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(system.os, "open", refuse)
    said = usable()
    assert said is not None
    assert said.startswith("no permission to open /dev/kvm (EACCES): its group may")
    assert "usermod -aG kvm" in said


def test_usable_names_whatever_else_is_wrong(tmp_path):
    path = tmp_path / "kvm"
    path.mkdir()
    assert usable(str(path)) == f"{path} cannot be opened (EISDIR): Is a directory"


def test_usable_on_another_architecture(monkeypatch):
    monkeypatch.setattr(system.platform, "machine", lambda: "aarch64")
    assert usable() == "aioirqfd.kvm knows the KVM of x86-64 only, not of aarch64"


def test_opening_what_is_not_there_raises_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Kvm(str(tmp_path / "kvm"))


def test_an_unrelated_descriptor_is_enotty():
    # I18
    with Vm(os.open("/dev/null", os.O_RDWR)) as vm:
        with pytest.raises(OSError) as caught:
            vm.irqfd(0, 0)
        assert caught.value.errno == errno.ENOTTY


@pytest.mark.kvm
def test_a_vm_ioctl_on_the_device_is_einval():
    # I18
    with Kvm() as kvm:
        with pytest.raises(OSError) as caught:
            kvm.ioctl(KVM_IRQFD, KvmIrqfd())
        assert caught.value.errno == errno.EINVAL


@pytest.mark.kvm
def test_close_is_idempotent_and_what_follows_is_a_closed_error():
    kvm = Kvm()
    fd = kvm.fileno()
    assert repr(kvm) == f"<Kvm fd={fd}>"
    assert not kvm.closed
    kvm.close()
    kvm.close()
    assert kvm.closed
    assert repr(kvm) == "<Kvm closed>"
    with pytest.raises(ClosedError):
        kvm.api_version()
    with pytest.raises(ClosedError):
        kvm.fileno()
    with pytest.raises(OSError) as caught:
        os.fstat(fd)
    assert caught.value.errno == errno.EBADF


@pytest.mark.kvm
def test_dropped_open_they_warn_with_where_they_were_made_and_close():
    fds = []

    def drop():
        kvm = Kvm()
        vm = kvm.create_vm()
        vcpu = vm.create_vcpu()
        fds.extend([kvm.fileno(), vm.fileno(), vcpu.fileno()])

    with pytest.warns(ResourceWarning) as warned:
        drop()
    messages = sorted(str(warning.message) for warning in warned)
    assert [message.split()[1] for message in messages] == ["<Kvm", "<Vcpu", "<Vm"]
    line = drop.__code__.co_firstlineno
    lines = {"<Kvm": line + 1, "<Vm": line + 2, "<Vcpu": line + 3}
    for message in messages:
        assert message.endswith(f"made at {__file__}:{lines[message.split()[1]]}")
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)
