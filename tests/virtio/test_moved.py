"""What moved here from aioirqfd.vhost_user is still found there, with a warning."""

from __future__ import annotations

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
