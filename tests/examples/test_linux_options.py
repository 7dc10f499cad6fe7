"""The command line of the VMM that boots Linux: what is meant, and what is said of what makes no sense."""

from __future__ import annotations

import pytest

from examples.vmm.__main__ import main
from examples.vmm.linux import options as module
from examples.vmm.linux.options import Disk, Net, Options, parse


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "vmlinuz"
    path.touch()
    return path


@pytest.fixture
def given(kernel):
    return lambda *arguments: parse(["--kernel", str(kernel), *arguments])


def test_defaults(given, kernel):
    assert given() == Options(kernel)
    assert (given().memory, given().cpus, given().console) == (512 << 20, 1, "tty")


def test_everything(given, kernel, tmp_path):
    image = tmp_path / "a,b.img"
    image.touch()
    wanted = given(
        *("--initrd", str(kernel), "--append", "loglevel=7 root=/dev/vda", "--memory", "2G", "--cpus", "4"),
        *("--disk", str(image), "--disk", f"{image},ro"),
        *("--net", "user", "--net", "tap=tap0,mac=52:54:00:ab:CD:01"),
        *("--console", "out", "--inspect", "sock", "--record", "flight", "--trace", "json"),
    )
    assert wanted == Options(
        kernel,
        kernel,
        "loglevel=7 root=/dev/vda",
        (Disk(str(image)), Disk(str(image), read_only=True)),
        (Net(), Net("tap0", bytes.fromhex("525400abcd01"))),
        "out",
        2 << 30,
        4,
        "sock",
        "flight",
        "json",
    )


@pytest.mark.parametrize(
    ("text", "size"), [("64M", 64 << 20), ("1g", 1 << 30), ("131072K", 128 << 20), ("67108864", 64 << 20)]
)
def test_sizes(given, text, size):
    assert given("--memory", text).memory == size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "lots"), "not a size in bytes, or with K, M or G: lots; 512M, say"),
        (("--memory", "M"), "not a size"),
        (("--memory", "32M"), "32M is not 64M or more in whole pages of 4K"),
        (("--memory", "67108865"), "in whole pages"),
        (("--cpus", "0"), "not a number of CPUs from 1 to 254: 0"),
        (("--cpus", "255"), "255"),
        (("--cpus", "²"), "not a number of CPUs"),
        (("--initrd", "/none"), "there is no file /none"),
        (
            ("--disk", "none.img,ro"),
            "none.img is neither a file nor a block device; `truncate -s 1G none.img` makes an empty one",
        ),
        (("--net", "bridge"), "bridge is not `user` or `tap=INTERFACE`"),
        (("--net", "tap="), "tap= is not"),
        (("--net", "user,mac=52:54:00:12:34"), "with or without `,mac=ADDRESS`"),
        (("--net", "user,mac=53:54:00:12:34:56"), "of one card"),
        (("--trace", "all"), "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_refused_and_said(given, capsys, arguments, said):
    with pytest.raises(SystemExit) as exited:
        given(*arguments)
    error = capsys.readouterr().err
    assert exited.value.code == 2
    assert said in error
    assert error.startswith("usage: python -m examples.vmm linux ")


def test_debians_kernel_is_taken_where_none_is_given(kernel, monkeypatch):
    monkeypatch.setattr(module, "debian_kernel", lambda: kernel)
    assert parse([]).kernel == kernel


def test_where_there_is_none_it_is_said_how_to_get_one(capsys, monkeypatch, tmp_path):
    from aioirqfd.testing.initramfs import debian_kernel

    monkeypatch.setattr(module, "debian_kernel", lambda: debian_kernel(tmp_path))
    with pytest.raises(SystemExit):
        parse([])
    error = capsys.readouterr().err
    assert f"no kernel {tmp_path}/boot/vmlinuz-*" in error
    assert error.endswith("; or give one by --kernel\n")


def test_it_is_a_subcommand_and_the_other_guest_keeps_its_options(capsys):
    for arguments, words in ((["linux", "--help"], "--kernel FILE"), (["--help"], "--ticks N")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().out
