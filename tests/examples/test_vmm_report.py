from __future__ import annotations

from dataclasses import replace

import pytest

from examples.vmm.report import GuestCounts, Line, Report

GUEST = GuestCounts(
    timer_interrupts=8,
    ticks=10,
    rings=7,
    echo_interrupts=7,
    wrong_answers=0,
    serial_interrupts=3,
    bytes=3000,
    power_interrupts=1,
    spurious_interrupts=0,
    unexpected_interrupts=0,
)
GOOD = Report(
    timer=Line("timer", 10, 9),
    echo=Line("echo", 7, 7),
    serial=Line("serial", 3, 3, level=True),
    power=Line("power", 1, 1),
    ticks=10,
    rings=7,
    fed=3000,
    printed=3000,
    intact=True,
    guest=GUEST,
)


SHARED = "a signal that comes while an interrupt is pending shares it"


def with_guest(**changes: int) -> Report:
    return replace(GOOD, guest=replace(GUEST, **changes))


def test_coalesced_ticks_are_no_loss():
    assert GOOD.contradictions() == []
    assert GOOD.text().splitlines() == [
        "             signals  injections   coalesced     handled",
        "timer             10           9           1           8",
        "echo               7           7           0           7",
        "serial             3           3           0           3",
        "power              1           1           0           1",
        f"timer: 8 interrupts for 10 signals: {SHARED}. The guest has read of all 10 ticks",
        "10 ticks, 7 questions, 3000 bytes in, 3000 bytes back, identical",
        "nothing lost",
    ]


def test_as_many_interrupts_as_signals_need_no_explanation():
    report = replace(with_guest(timer_interrupts=9, ticks=9), timer=Line("timer", 9, 9), ticks=9)
    assert report.contradictions() == []
    assert [line for line in report.text().splitlines() if ": " in line] == []


def test_a_line_that_stays_up_explains_itself_too():
    report = with_guest(timer_interrupts=10, serial_interrupts=2)
    report = replace(report, timer=Line("timer", 10, 10))
    assert report.contradictions() == []
    assert [line for line in report.text().splitlines() if ": " in line] == [
        "serial: 2 interrupts for 3 signals: a signal changes nothing on a line that is up. The guest has read all 3000 bytes"
    ]


@pytest.mark.parametrize(
    "report",
    [
        with_guest(ticks=9),
        with_guest(timer_interrupts=0),
        replace(GOOD, guest=None),
        replace(with_guest(timer_interrupts=10, serial_interrupts=2), timer=Line("timer", 10, 10), intact=False),
    ],
)
def test_a_loss_is_not_explained_away(report):
    assert report.contradictions() != []
    assert [line for line in report.text().splitlines() if " interrupts for " in line] == []


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (with_guest(ticks=9), ["timer: 10 ticks signalled, the guest heard of 9"]),
        (with_guest(timer_interrupts=0), ["timer: 10 signals, and not one interrupt handled"]),
        (with_guest(timer_interrupts=10), ["timer: 10 interrupts handled, but there were 9"]),
        (replace(GOOD, timer=Line("timer", 10, 11)), ["timer: 11 injections for 10 signals"]),
        (
            with_guest(rings=8),
            ["echo: the guest rang 8 times, the device heard 7"],
        ),
        (with_guest(echo_interrupts=6), ["echo: 7 doorbells, 7 answers, 6 handled by the guest"]),
        (
            replace(GOOD, echo=Line("echo", 6, 7)),
            [
                "echo: 7 injections for 6 signals",
                "echo: 7 doorbells, 6 answers, 7 handled by the guest",
            ],
        ),
        (with_guest(wrong_answers=1), ["echo: 1 wrong answers"]),
        (with_guest(bytes=2999), ["serial: 3000 bytes fed, the guest read 2999"]),
        (replace(GOOD, printed=2999, intact=False), ["serial: 3000 bytes fed, 2999 came back"]),
        (replace(GOOD, intact=False), ["serial: the bytes that came back are not the ones that were fed"]),
        (with_guest(serial_interrupts=0), ["serial: 3 signals, and not one interrupt handled"]),
        (
            with_guest(power_interrupts=0),
            [
                "power: 1 signals, and not one interrupt handled",
                "power: pressed 1 times, handled 0",
            ],
        ),
        (with_guest(unexpected_interrupts=2), ["2 interrupts on vectors that no device has"]),
        (replace(GOOD, guest=None), ["the guest did not report"]),
        (replace(GOOD, guest=None, printed=0), ["the guest did not report", "serial: 3000 bytes fed, 0 came back"]),
    ],
)
def test_each_kind_of_loss_is_told(report, expected):
    assert report.contradictions() == expected
    assert report.text().splitlines()[-len(expected) :] == [f"LOST: {text}" for text in expected]


def test_level_line_may_interrupt_more_often_than_it_is_asserted():
    assert with_guest(serial_interrupts=5).contradictions() == []


def test_spurious_interrupts_are_mentioned_and_are_no_loss():
    report = with_guest(spurious_interrupts=2)
    assert report.contradictions() == []
    assert "2 spurious interrupts, which an 8259 is allowed\n" in report.text()


def test_kernel_injections_are_not_counted_here():
    report = replace(GOOD, timer=Line("timer", 10, None))
    assert report.contradictions() == []
    assert report.text().splitlines()[1].split() == ["timer", "10", "kernel", "-", "8"]


def test_guest_counters_wrap_at_32_bits():
    total = 2**32 + 5
    report = replace(GOOD, fed=total, printed=total, guest=replace(GUEST, bytes=5))
    assert report.contradictions() == []


@pytest.mark.parametrize("count", [0, 9, 11, 20])
def test_anything_but_one_whole_report_is_none(count):
    assert GuestCounts.from_words([1] * count) is None


def test_report_is_in_the_order_of_the_fields():
    assert GuestCounts.from_words([8, 10, 7, 7, 0, 3, 3000, 1, 0, 0]) == GUEST
