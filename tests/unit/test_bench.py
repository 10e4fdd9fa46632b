"""The benchmark's arithmetic and its report; the times themselves are asserted nowhere."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import (
    authority,
    constraints,
    events,
    guards,
    log,
    machine,
    policy,
    report,
    revocation,
    subject,
)
from tests.bench.__main__ import DOCUMENT
from tests.bench.stats import compare, median, median_ranks, quantile, rotated, summarize

VALUES = st.lists(st.integers(1, 10**9), min_size=1, max_size=200)


@given(VALUES, st.integers(1, 100))
def test_a_quantile_is_the_smallest_value_that_enough_values_do_not_exceed(
    values: list[int], percent: int
) -> None:
    found = quantile(values, percent / 100)

    assert found in values
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert 100 * sum(value < found for value in values) < percent * len(values)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1], 0.0), ([1], 1.1)])
def test_a_quantile_of_nothing_is_an_error(values: list[int], share: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        quantile(values, share)


def test_the_median_of_an_even_number_lies_between_the_middle_two() -> None:
    assert (median([9, 1, 3]), median([4, 1, 2, 9])) == (3, 3)
    with pytest.raises(ValueError, match="median"):
        median([])


def test_a_summary_names_median_p99_and_number() -> None:
    found = summarize(range(1, 201))

    assert (found.median, found.p99, found.count) == (100.5, 198, 200)


def test_ratios_are_taken_pair_by_pair() -> None:
    """A machine that becomes ten times slower half way changes no ratio."""
    baseline = [100.0] * 10 + [1000.0] * 10

    found = compare(baseline, [value * 1.5 for value in baseline])

    assert (found.median, found.low, found.high, found.least, found.most) == (1.5,) * 5
    assert found.pairs == 20


def test_values_without_a_partner_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(1, (0, 0)), (5, (0, 4)), (6, (0, 5)), (10, (1, 8)), (20, (5, 14)), (50, (17, 32)), (100, (39, 60))],
)
def test_ranks_of_the_interval_are_those_of_the_tables(count: int, ranks: tuple[int, int]) -> None:
    """Conover, Practical Nonparametric Statistics, quantile tables; from 0."""
    assert median_ranks(count) == ranks


@given(st.integers(6, 300))
def test_the_interval_holds_the_median_with_the_promised_confidence_and_is_the_shortest(count: int) -> None:
    def covered(low: int) -> float:
        return 1 - 2 * sum(math.comb(count, rank) for rank in range(low + 1)) / (1 << count)

    low, high = median_ranks(count)

    assert high == count - 1 - low
    assert covered(low) >= 0.95
    assert covered(low + 1) < 0.95


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no values"):
        median_ranks(0)


def test_turns_favour_nobody() -> None:
    names = ("a", "b", "c")

    orders = [rotated(names, number) for number in range(2 * len(names))]

    assert all(sorted(order) == list(names) for order in orders)
    for place in range(len(names)):
        assert sorted(order[place] for order in orders) == sorted(names * 2)
    followed = [pair for order in orders for pair in pairwise(order)]
    assert all(followed.count((one, other)) == followed.count((other, one)) for one, other in followed)


def test_two_states_alternate_in_the_order_that_cancels_a_drift() -> None:
    assert [rotated(("a", "b"), number)[0] for number in range(4)] == ["a", "b", "b", "a"]


def test_the_document_has_room_for_the_report() -> None:
    document = DOCUMENT.read_text()

    filled = report.replaced(document, "the report")

    assert f"{report.BEGIN}\nthe report\n{report.END}" in filled
    assert report.replaced(filled, "another") == report.replaced(document, "another")
    with pytest.raises(ValueError, match="markers"):
        report.replaced(filled + report.END, "twice")


def test_memory_is_read_from_smaps() -> None:
    content = (
        "00400000-7ffc [rollup]\nRss: 4096 kB\nPss: 2048 kB\nPrivate_Clean: 512 kB\nPrivate_Dirty: 512 kB\n"
    )

    assert subject.parse_smaps(content) == subject.Memory(rss=4, pss=2, uss=1)


def test_a_processor_without_a_name_is_called_by_its_architecture() -> None:
    assert machine.cpu_model("processor : 0\nmodel name\t: A Processor 9\n") == "A Processor 9"
    assert machine.cpu_model("processor : 0\n")


def test_the_guards_report_goes_between_its_own_markers() -> None:
    text = report.replaced(DOCUMENT.read_text(), "| new |", guards.PART.markers)
    begin, end = guards.PART.markers
    assert f"{begin}\n| new |\n{end}" in text
    assert report.BEGIN in text
    with pytest.raises(ValueError, match="markers"):
        report.replaced("nothing", "x", guards.PART.markers)


def test_the_guards_figures_in_the_document_are_those_of_the_results() -> None:
    results = guards.PART.read()
    assert guards.render(results) in DOCUMENT.read_text()


def test_the_figures_of_drift_events_are_those_of_the_results() -> None:
    results = events.PART.read()
    assert events.render(results) in DOCUMENT.read_text()


def test_the_figures_of_the_record_are_those_of_the_results() -> None:
    results = log.PART.read()
    assert log.render(results) in DOCUMENT.read_text()


def test_the_figures_of_launches_under_constraints_are_those_of_the_results() -> None:
    results = constraints.PART.read()
    assert constraints.render(results) in DOCUMENT.read_text()
    with pytest.raises(ValueError, match="markers"):
        report.replaced("nothing", "x", constraints.PART.markers)


def test_the_document_shows_the_authority_s_results() -> None:
    assert authority.PART.render(authority.PART.read()) in DOCUMENT.read_text()


def test_the_figures_of_policy_are_those_of_the_results() -> None:
    assert policy.PART.render(policy.PART.read()) in DOCUMENT.read_text()


def test_the_figures_of_revocation_are_those_of_the_results() -> None:
    assert revocation.PART.render(revocation.PART.read()) in DOCUMENT.read_text()
