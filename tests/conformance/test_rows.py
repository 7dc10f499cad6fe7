"""Every row of the kernel's contract, against the kernel and against aioirqfd: test_row[I12-kernel], test_row[I12-aioirqfd]."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.conformance import report
from tests.conformance.row import IDS, ROWS
from tests.conformance.run import NO_KVM, RECORDED, recorded, run

if TYPE_CHECKING:
    from tests.conformance.row import Row

SHOWN = [ROWS[name] for name in IDS if ROWS[name].scenario is not None]


def check(row: Row, backend: str, loop_factory=None):
    if backend == "aioirqfd" and row.needs_kvm and NO_KVM:
        pytest.skip(f"needs KVM: {NO_KVM}")
    assert run(row, backend, loop_factory).result == row.expected(backend)


@pytest.mark.parametrize("backend", ["kernel", "aioirqfd"])
@pytest.mark.parametrize("row", SHOWN, ids=lambda row: row.id)
def test_row(row, backend):
    check(row, backend)


@pytest.mark.parametrize("row", SHOWN, ids=lambda row: row.id)
def test_row_on_uvloop(row):
    check(row, "aioirqfd", uvloop.new_event_loop)


def test_every_row_is_there():
    assert set(ROWS) == set(IDS)
    assert len(IDS) == 157


def test_at_least_140_rows_are_the_same():
    whole, limited, _ = report.tally()
    assert whole + limited >= 140


def test_what_is_not_the_same_says_why():
    for row in ROWS.values():
        assert row.text.endswith("."), row.id
        if row.scenario is None or row.ours != row.expect:
            assert row.differs, row.id


def test_the_recorded_results_are_the_rows():
    results = recorded()["results"]
    assert results == {row.id: row.expect for row in SHOWN}
    assert json.loads(RECORDED.read_text("utf-8"))["kernel"]


def test_the_page_of_the_docs_is_the_table():
    assert report.PAGE.read_text("utf-8") == report.page(), "run make conformance"
