"""The histogram: percentiles within 1 % of the exact ones, merging exact, memory constant."""

import sys
from math import ceil

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.histogram import LONGEST_S, SHORTEST_S, Histogram, Plain, from_plain, merged

TIMES = st.lists(st.floats(SHORTEST_S, LONGEST_S), min_size=1, max_size=200)
PERCENTS = (0, 1, 50, 90, 99, 99.9, 100)


def recorded(times: list[float]) -> Histogram:
    made = Histogram()
    for time in times:
        made.record(time)
    return made


def exact(times: list[float], percent: float) -> float:
    return sorted(times)[max(1, ceil(len(times) * percent / 100)) - 1]


@given(TIMES)
def test_a_percentile_is_within_one_percent_of_the_exact_one(times: list[float]) -> None:
    histogram = recorded(times)
    for percent in PERCENTS:
        assert histogram.percentile(percent) == pytest.approx(exact(times, percent), rel=0.01)


@given(TIMES)
def test_the_extremes_the_count_and_the_mean_are_exact(times: list[float]) -> None:
    histogram = recorded(times)
    assert histogram.least_s == min(times)
    assert histogram.most_s == histogram.percentile(100) == max(times)
    assert histogram.count == len(times)
    assert histogram.mean_s() == pytest.approx(sum(times) / len(times))


@given(st.lists(TIMES, max_size=5))
def test_merged_is_what_one_would_have_counted(parts: list[list[float]]) -> None:
    together = merged(map(recorded, parts))
    whole = recorded([time for part in parts for time in part])
    assert together.to_plain().buckets == whole.to_plain().buckets
    assert [together.percentile(percent) for percent in PERCENTS] == [
        whole.percentile(percent) for percent in PERCENTS
    ]


@given(TIMES)
def test_json_and_back(times: list[float]) -> None:
    plain = recorded(times).to_plain()
    read = msgspec.json.decode(msgspec.json.encode(plain), type=Plain)
    again = from_plain(read)
    assert again.to_plain() == plain
    assert [again.percentile(percent) for percent in PERCENTS] == [
        recorded(times).percentile(percent) for percent in PERCENTS
    ]


def test_an_empty_one_has_zeros() -> None:
    empty = Histogram()
    assert (empty.percentile(50), empty.mean_s(), empty.count) == (0.0, 0.0, 0)
    assert from_plain(empty.to_plain()).count == 0


@pytest.mark.parametrize("time", [0.0, -1.0, float("nan")])
def test_no_time_is_the_shortest(time: float) -> None:
    assert recorded([time]).percentile(50) == SHORTEST_S


def test_a_time_beyond_all_is_the_longest() -> None:
    assert recorded([1e9, float("inf")]).percentile(50) == LONGEST_S


def test_memory_does_not_grow_with_the_number_of_times() -> None:
    few, many = recorded([0.001]), recorded([0.001 + number / 1000 for number in range(20_000)])
    assert sys.getsizeof(many._counts) == sys.getsizeof(few._counts)
    assert len(many.to_plain().buckets) < 1000


@pytest.mark.parametrize("percent", [-1, 100.1, float("nan")])
def test_a_percentile_outside_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        Histogram().percentile(percent)


@pytest.mark.parametrize(
    ("plain", "text"),
    [
        (Plain(1, 1.0, 1.0, 1.0, [(5, 1)], ratio=1.05), "ratio 1.05"),
        (Plain(1, 1.0, 1.0, 1.0, [(100_000, 1)]), "bucket 100000"),
        (Plain(1, 1.0, 1.0, 1.0, [(-1, 1)]), "bucket -1"),
        (Plain(2, 1.0, 1.0, 1.0, [(5, 1)]), "2 times holds 1"),
        (Plain(0, 1.0, 1.0, 1.0, [(5, -1)]), "-1 times"),
    ],
)
def test_a_foreign_or_damaged_one_is_refused(plain: Plain, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        from_plain(plain)
