"""What is drawn from a seed: the same each time, within its bounds, and with the wanted frequencies."""

from collections import Counter
from datetime import datetime, timedelta, timezone
from itertools import combinations, islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dws.limits import BATCH_MAX_BYTES
from dws.names import check_name
from loadgen.plan import (
    RATE_MAX_CLIENT,
    Plan,
    PlanError,
    arrivals,
    chooser,
    filling,
    in_order_of_popularity,
    kinds,
    made_up,
    share_of,
    split,
    upload_name,
    when,
    zipf_exponent,
)

SEEDS = st.integers(0, 2**32)
NAMES = [f"/p/{number}" for number in range(500)]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"threads": 0}, "0 threads"),
        ({"threads": 257}, "257 threads"),
        ({"clients": 0}, "0 clients"),
        ({"clients": 65}, "65 clients"),
        ({"count": 0}, "0 requests"),
        ({"count": None}, "neither a count nor a duration"),
        ({"duration_s": 0.0}, "a duration of 0.0 s"),
        ({"duration_s": float("inf")}, "a duration of inf s"),
        ({"warmup_s": -1.0}, "-1.0 s of warm-up"),
        ({"warmup_s": float("nan")}, "nan s of warm-up"),
        ({"files": 0}, "0 pages a request"),
        ({"files": 1001}, "1001 pages a request"),
        ({"rate": 0.0}, "a rate of 0.0"),
        ({"rate": -1.0}, "a rate of -1.0"),
        ({"rate": float("nan")}, "a rate of nan"),
        ({"rate": float("inf")}, "a rate of inf"),
        ({"rate": 3.0 * RATE_MAX_CLIENT, "clients": 2}, "a rate of 60000.0"),
        ({"choice": "zipf"}, "choice 'zipf'"),
        ({"choice": "zipf:0"}, "choice 'zipf:0'"),
        ({"choice": "zipf:nan"}, "choice 'zipf:nan'"),
        ({"choice": "zipf:11"}, "choice 'zipf:11'"),
        ({"choice": "uniform:1"}, "choice 'uniform:1'"),
        ({"request": "delete"}, "request 'delete'"),
        ({"size_bytes": -1}, "pages of -1 bytes"),
        ({"size_bytes": BATCH_MAX_BYTES + 1}, "can be made up"),
        ({"request": "upload", "files": 100, "size_bytes": 1 << 20}, "over the bound of one batch"),
    ],
)
def test_an_impossible_plan_is_refused_in_one_line(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError, match=text) as refused:
        Plan(**fields)
    assert "\n" not in str(refused.value)


NOW = datetime(2030, 1, 31, 12, 0, 0, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("12:00:05", NOW + timedelta(seconds=5)),
        ("12:01", NOW + timedelta(minutes=1)),
        ("+2.5", NOW + timedelta(seconds=2.5)),
        ("2030-02-01T00:00:00", NOW + timedelta(hours=12)),
        ("2030-01-31T11:00:01Z", NOW + timedelta(seconds=1)),
    ],
)
def test_a_moment_is_read_in_the_zone_of_now(text: str, moment: datetime) -> None:
    assert when(text, NOW) == moment


@pytest.mark.parametrize(
    "text",
    ["", "noon", "25:00", "+", "+-1", "+nan", "+1e300", "11:59", "2030-01-31", "+0", "2030-13-01T00:00"],
)
def test_what_is_no_moment_to_come_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(PlanError) as refused:
        when(text, NOW)
    assert "\n" not in str(refused.value)


@given(st.integers(0, 10**6), st.integers(1, 300))
def test_split_gives_all_in_even_shares(count: int, parts: int) -> None:
    shares = split(count, parts)
    assert sum(shares) == count
    assert len(shares) == parts
    assert max(shares) - min(shares) <= 1


@given(st.lists(st.integers(), unique=True, max_size=60), st.integers(1, 20))
def test_shares_are_disjoint_and_leave_nothing_out(items: list[int], parts: int) -> None:
    shares = [set(share_of(items, part, parts)) for part in range(parts)]
    assert set().union(*shares) == set(items)
    if len(items) >= parts:
        assert not any(one & other for one, other in combinations(shares, 2))
        assert all(shares)


INDEX = st.integers(0, 300)
UPLOAD = st.tuples(INDEX, INDEX, INDEX, st.sampled_from(["0", "1", "a/b.txt", "t1/r1/0", "c0/t0/r0/0"]))


@given(UPLOAD, UPLOAD)
def test_uploads_of_different_threads_and_requests_have_different_names(
    one: tuple[int, int, int, str], other: tuple[int, int, int, str]
) -> None:
    name = upload_name("/load/ab12", *one)
    check_name(name)
    assert (name == upload_name("/load/ab12", *other)) == (one == other)


@given(SEEDS, st.integers(0, 3))
def test_arrivals_rise_and_are_the_same_each_time(seed: int, client: int) -> None:
    plan = Plan(rate=100.0, seed=seed, clients=4)
    times = list(islice(arrivals(plan, client), 200))
    assert times == list(islice(arrivals(plan, client), 200))
    assert all(before < after for before, after in zip([0.0, *times], times, strict=False))


def test_arrivals_keep_the_rate_that_the_clients_share() -> None:
    plan = Plan(rate=1000.0, clients=4)
    counts = [sum(1 for _ in _until(arrivals(plan, client), 100.0)) for client in range(4)]
    # 25,000 expected of each; a Poisson process deviates by sqrt(25,000) = 158.
    assert all(abs(count - 25_000) < 5 * 158 for count in counts)
    assert len(set(counts)) > 1, "each client has a process of its own"


def _until(times: Any, end_s: float) -> Any:
    for time in times:
        if time >= end_s:
            return
        yield time


def test_closed_load_has_no_arrivals() -> None:
    with pytest.raises(ValueError, match="closed load"):
        next(arrivals(Plan(), 0))


def test_one_in_five_of_mixed_requests_is_an_upload() -> None:
    drawn = Counter(islice(kinds(Plan(request="mixed"), 0, 0), 10_000))
    assert 1_800 < drawn["upload"] < 2_200
    assert set(islice(kinds(Plan(request="upload"), 0, 0), 10)) == {"upload"}


@given(SEEDS, st.integers(1, 500), st.sampled_from(["uniform", "zipf:0.5", "zipf:1", "zipf:10"]))
def test_a_request_asks_for_different_pages_the_same_each_time(seed: int, files: int, choice: str) -> None:
    plan = Plan(seed=seed, files=files, choice=choice)
    choose, again = (chooser(NAMES, plan, 1, 2) for _ in range(2))
    for _ in range(3):
        chosen = choose()
        assert chosen == again()
        assert len(chosen) == len(set(chosen)) == files
        assert set(chosen) <= set(NAMES)


def test_threads_and_clients_choose_differently() -> None:
    plan = Plan(files=20)
    drawn = {tuple(chooser(NAMES, plan, client, thread)()) for client in range(3) for thread in range(3)}
    assert len(drawn) == 9


@pytest.mark.parametrize("files", [1, 10, 300])
def test_uniform_choice_wants_every_page_as_often(files: int) -> None:
    choose = chooser(NAMES, Plan(files=files), 0, 0)
    drawn = Counter(name for _ in range(100_000 // files) for name in choose())
    expected = 100_000 / len(NAMES)
    assert len(drawn) == len(NAMES)
    assert max(drawn.values()) < expected * 1.4
    assert min(drawn.values()) > expected * 0.6


def test_zipf_wants_the_nth_page_one_nth_as_often() -> None:
    choose = chooser(NAMES, Plan(files=1, choice="zipf:1"), 0, 0)
    drawn = Counter(name for _ in range(100_000) for name in choose())
    for rank in (2, 5, 10):
        assert drawn[NAMES[0]] / drawn[NAMES[rank - 1]] == pytest.approx(rank, rel=0.15)


def test_more_pages_a_request_than_there_are_is_refused() -> None:
    with pytest.raises(PlanError, match="there are 500"):
        chooser(NAMES, Plan(files=501), 0, 0)


def test_choices_are_written_as_in_the_help() -> None:
    assert zipf_exponent("uniform") is None
    assert zipf_exponent("zipf:1.1") == 1.1


@given(SEEDS, st.randoms())
def test_popularity_depends_on_the_seed_alone(seed: int, random: Any) -> None:
    listed = NAMES[:50]
    ordered = in_order_of_popularity(listed, seed)
    random.shuffle(listed)
    assert in_order_of_popularity(listed, seed) == ordered
    assert sorted(ordered) == sorted(listed)


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 100))
def test_made_up_pages_have_their_size_and_differ(one: int, other: int, size: int) -> None:
    noise = filling(Plan(size_bytes=size))
    assert len(made_up(one, size, noise)) == size
    if size >= 8:
        assert (made_up(one, size, noise) == made_up(other, size, noise)) == (one == other)
