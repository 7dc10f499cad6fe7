"""What moved here from aioirqfd.vhost_user is still found there, with a warning."""

from __future__ import annotations

import importlib

import pytest

from aioirqfd import vhost_user, virtio


@pytest.mark.parametrize("name", ["BlockFile", "Chain", "ChainError", "Device", "VringStatistics"])
def test_the_old_name_works_and_says_where_it_has_gone(name):
    with pytest.warns(DeprecationWarning, match=rf"vhost_user\.{name} is aioirqfd\.virtio\.{name} now") as caught:
        old = getattr(vhost_user, name)
    assert old is getattr(virtio, name)
    assert [one.filename for one in caught] == [__file__]


def test_any_other_name_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'Vring'"):
        _ = vhost_user.Vring


@pytest.mark.parametrize(
    ("module", "name", "home"),
    [
        ("features", "VirtioFeature", "features"),
        ("errors", "ChainError", "errors"),
        ("errors", "GuestMemoryError", "errors"),
    ],
)
def test_a_name_of_one_of_its_modules(module, name, home):
    old_module = importlib.import_module(f"aioirqfd.vhost_user.{module}")
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} is aioirqfd\.virtio\.{home}\.{name} now"):
        old = getattr(old_module, name)
    assert old is getattr(importlib.import_module(f"aioirqfd.virtio.{home}"), name)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = old_module.Nothing


@pytest.mark.parametrize("name", ["blockfile", "chain", "device", "eager", "in_order", "memory", "ring", "virtqueue"])
def test_a_module_of_its_that_has_moved(name):
    assert importlib.import_module(f"aioirqfd.vhost_user.{name}") is importlib.import_module(f"aioirqfd.virtio.{name}")
