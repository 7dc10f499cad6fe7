"""Which requests a match means."""

from __future__ import annotations

import random

import pytest

from aioirqfd.faults import FaultError, Match
from aioirqfd.faults.match import Tally
from aioirqfd.faults.request import Request


class Some(Request):
    def __init__(self, kind="write", data=b"", **fields):
        super().__init__(kind, fields)
        self.data = data

    def content(self):
        return self.data


class Register(Some):
    stage = "register"


def meant(match, requests, *, seconds=0.0, seed=0):
    """The numbers of those that are meant, from 1 on."""
    tally, dice = Tally(), random.Random(seed)
    return [number for number, one in enumerate(requests, 1) if tally.take(match, one, seconds, dice)]


TEN = [Some() for _ in range(10)]


@pytest.mark.parametrize(
    ("match", "numbers"),
    [
        (Match(), list(range(1, 11))),
        (Match("write"), list(range(1, 11))),
        (Match("read"), []),
        (Match(("read", "write"), nth=3), [3]),
        (Match(every=5), [5, 10]),
        (Match(skip=7), [8, 9, 10]),
        (Match(skip=7, count=1), [8]),
        (Match(count=2), [1, 2]),
        (Match(every=3, count=2), [3, 6]),
        (Match(skip=2, every=4), [6, 10]),
        (Match(probability=0.0), []),
        (Match("w*"), list(range(1, 11))),
    ],
    ids=repr,
)
def test_by_number(match, numbers):
    assert meant(match, TEN) == numbers


def test_only_what_counts_is_numbered():
    requests = [Some("read"), Some(queue=1), Some(), Some(queue=1), Some("flush"), Some(queue=1)]
    assert meant(Match("write", queue=1, nth=2), requests) == [4]
    assert meant(Match("write", queue=(0, 1)), requests) == [2, 4, 6]


def test_without_a_kind_it_is_for_the_devices_own_requests():
    requests = [Register("register-read", offset=4), Some("read")]
    assert meant(Match(), requests) == [2]
    assert meant(Match("register-*", offset=4), requests) == [1]
    assert meant(Match("*"), requests) == [1, 2]


def test_by_content_and_by_question():
    requests = [Some(data=b"begin"), Some(data=b"commit"), Some(data=b"x commit", size=9)]
    assert meant(Match(content=b"commit"), requests) == [2]
    assert meant(Match(content=lambda data: b"commit" in data), requests) == [2, 3]
    assert meant(Match(where=lambda request: request.fields.get("size") == 9), requests) == [3]


def test_by_time():
    match = Match(after=1, until=2)
    assert [meant(match, TEN[:1], seconds=now) for now in (0.0, 0.99, 1.0, 1.99, 2.0)] == [[], [], [1], [1], []]


def test_a_seed_repeats_the_dice():
    match = Match(probability=0.5)
    many = [Some() for _ in range(100)]
    first = meant(match, many, seed=1)
    assert first == meant(match, many, seed=1) != meant(match, many, seed=2)
    assert 30 < len(first) < 70


def test_no_dice_are_thrown_for_what_is_not_meant():
    dice, tally = random.Random(0), Tally()
    before = dice.getstate()
    assert not tally.take(Match("read", probability=0.5), Some(), 0.0, dice)
    assert dice.getstate() == before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"nth": 0}, "nth is 1 or more, not 0"),
        ({"every": 0}, "every is 1 or more"),
        ({"skip": -1}, "skip is 0 or more"),
        ({"count": 0}, "count is 1 or more"),
        ({"probability": 1.5}, "a probability is 0..1, not 1.5"),
        ({"after": 2, "until": 1}, "not from 2 to 1 s"),
    ],
)
def test_what_cannot_be(arguments, why):
    with pytest.raises(FaultError) as caught:
        Match(**arguments)
    assert why in str(caught.value)
