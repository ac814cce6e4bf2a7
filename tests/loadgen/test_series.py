"""Slices of a run: nothing is lost when they are joined, and there are never too many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.histogram import from_plain
from loadgen.measured import Interval
from loadgen.series import SLICES_MAX, WIDTH_S, Series, Slice


def part(requests: int = 1, failed: int = 0, took_s: float = 0.01) -> Slice:
    made = Slice()
    made.requests, made.failed, made.pages, made.bytes = requests, failed, requests * 2, requests * 30
    for _ in range(requests):
        made.latency.record(took_s)
    return made


def figures(interval: Interval) -> tuple[float, int, int, int, int, int]:
    count = from_plain(interval.latency).count
    return (interval.at_s, interval.requests, interval.failed, interval.pages, interval.bytes, count)


def test_what_ended_together_is_in_one_slice_and_gaps_are_slices_too() -> None:
    series = Series()
    series.add(0.0, part(2))
    series.add(0.2499, part(1, failed=1))
    series.add(0.75, part(3))
    assert [figures(one) for one in series.intervals()] == [
        (0.0, 3, 1, 6, 90, 3),
        (0.25, 0, 0, 0, 0, 0),
        (0.5, 0, 0, 0, 0, 0),
        (0.75, 3, 0, 6, 90, 3),
    ]
    assert {one.width_s for one in series.intervals()} == {WIDTH_S}


@given(st.lists(st.tuples(st.floats(0, 10**6), st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_slices_hold_all_and_stay_few(parts: list[tuple[float, int, int]]) -> None:
    series = Series()
    for at_s, requests, failed in parts:
        series.add(at_s, part(requests, failed))
    intervals = series.intervals()
    assert len(intervals) <= SLICES_MAX
    assert sum(one.requests for one in intervals) == sum(requests for _, requests, _ in parts)
    assert sum(one.failed for one in intervals) == sum(failed for _, _, failed in parts)
    assert sum(one.latency.count for one in intervals) == sum(requests for _, requests, _ in parts)
    for number, one in enumerate(intervals):
        assert one.at_s == number * series.width_s
    for at_s, requests, _ in parts:
        assert intervals[int(at_s / series.width_s)].requests >= requests


def test_a_full_row_is_joined_two_by_two() -> None:
    series = Series()
    for number in range(SLICES_MAX):
        series.add(number * WIDTH_S, part())
    assert series.width_s == WIDTH_S
    series.add(SLICES_MAX * WIDTH_S, part(5))
    intervals = series.intervals()
    assert series.width_s == 2 * WIDTH_S
    assert [one.requests for one in intervals] == [2] * (SLICES_MAX // 2) + [5]


def test_a_slice_says_when_it_is_over() -> None:
    series = Series()
    assert series.ends_s(0.0) == pytest.approx(WIDTH_S)
    assert series.ends_s(WIDTH_S) == pytest.approx(2 * WIDTH_S)
    series.add(SLICES_MAX * WIDTH_S * 3, Slice())
    assert series.ends_s(0.0) == series.width_s > WIDTH_S
