"""The rate limit of what can be repeated: the first at once, then the 10th, the 100th, ..., and one a second between."""

from __future__ import annotations

import pytest

from aioirqfd.ratelimit import MAX_KINDS, RateLimit
from aioirqfd.testing import RecordingTracer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


pytestmark = pytest.mark.usefixtures("seconds_pass")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limit(clock):
    return RateLimit(clock=clock)


def told(limit, kind, times):
    """(which one, how many were not told before it) of each that was told."""
    return [(number, suppressed) for number in range(1, times + 1) if (suppressed := limit.admit(kind)) is not None]


def test_a_burst_is_told_at_each_power_of_ten(limit):
    assert told(limit, "a", 10_000) == [(1, 0), (10, 8), (100, 89), (1000, 899), (10_000, 8999)]


def test_the_first_of_each_kind_is_told_at_once(limit):
    assert [limit.admit(kind) for kind in ("a", "b", "a", "c", "b")] == [0, 0, None, 0, None]


def test_one_that_comes_after_the_interval_is_told(limit, clock):
    assert limit.admit("a") == 0
    clock.now += 0.5
    assert limit.admit("a") is None
    clock.now += 0.499
    assert limit.admit("a") is None
    clock.now += 0.001
    assert limit.admit("a") == 2
    assert limit.admit("a") is None, "a new interval has begun"


def test_rare_ones_are_all_told(limit, clock):
    for _ in range(25):
        assert limit.admit("a") == 0
        clock.now += 1.0


def test_what_is_told_for_its_time_does_not_displace_the_power_of_ten(limit, clock):
    told(limit, "a", 8)
    clock.now += 1.0
    assert told(limit, "a", 3) == [(1, 7), (2, 0)]  # the 9th for its time, the 10th for its number


def test_the_interval_is_a_choice(clock):
    limit = RateLimit(clock=clock, interval=60.0)
    assert limit.admit("a") == 0
    clock.now += 59.0
    assert limit.admit("a") is None
    clock.now += 1.0
    assert limit.admit("a") == 1


def test_a_clock_that_begins_at_zero_tells_the_first(clock):
    clock.now = 0.0
    assert RateLimit(clock=clock).admit("a") == 0


def test_made_up_kinds_beyond_the_bound_count_as_one(limit):
    assert [limit.admit(kind) for kind in range(MAX_KINDS)] == [0] * MAX_KINDS
    assert [number for number in range(MAX_KINDS, 100_000) if limit.admit(number) is not None] == [
        MAX_KINDS + place for place in (0, 9, 99, 999, 9999)
    ]
    assert limit.admit(3) is None, "those within the bound are still told apart"


def test_an_interval_of_zero_tells_all():
    limit = RateLimit(interval=0.0)
    assert [limit.admit("a") for _ in range(5)] == [0] * 5


def test_emit_tells_the_tracer_and_says_how_many_it_left_out(limit, clock):
    tracer = RecordingTracer()
    for number in range(3):
        limit.emit(tracer, "refused", request=number)
    limit.emit(tracer, "ignored", request=3)
    clock.now += 1.0
    limit.emit(tracer, "refused", request=4)
    assert tracer.events == [
        ("refused", {"request": 0}),
        ("ignored", {"request": 3}),
        ("refused", {"request": 4, "suppressed": 2}),
    ]


def test_emit_tells_kinds_of_one_event_apart(limit):
    tracer = RecordingTracer()
    for queue in (0, 1, 0, 1):
        limit.emit(tracer, "refused", kind=queue, queue=queue)
    assert tracer.of("refused") == [{"queue": 0}, {"queue": 1}]
