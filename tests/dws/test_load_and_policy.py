"""Load and policy: the design's two formulas, by example and against a model; and whom each policy picks.

download load = rtt + (waiting + assigned, not yet reported as served) × service time / workers
upload load   = stored / mean + visits / mean + rtt / mean
"""

from collections import Counter
from math import inf
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dws.config import Config
from dws.limits import MIB
from dws.load import Loads
from dws.messages import Beat, Locate
from dws.policy import NEAR_LEAST, POLICIES, choose_targets
from tests.dws.desk import Desk, Figure

CONFIG = Config(period_s=30.0, free_reserve=0.05)
MS = 1e-3


def beat(**fields: Any) -> Beat:
    return Figure("web-1", b"1" * 16, 1).beat(**({"bytes_free": 1000 * MIB, "service_s": MS} | fields))


def loads(*numbers: int, config: Config = CONFIG) -> Loads:
    """Servers that may be chosen, with one beat each."""
    made = Loads(config)
    for number in numbers:
        made.add(number)
        made.open(number, True)
        made.beat(number, beat())
    return made


# -- download load ---------------------------------------------------------------------


def test_waiting_requests_and_assigned_pages_count_by_the_service_time() -> None:
    made = loads(1)
    rtt = made.servers[1].rtt_s
    assert made.download[1] == pytest.approx(rtt)
    made.assign(1, 7)
    assert made.download[1] == pytest.approx(rtt + 7 * MS)
    made.beat(1, beat(waiting=5, served=7))
    assert made.download[1] == pytest.approx(rtt + 5 * MS)
    made.beat(1, beat(waiting=5, served=7, workers=2, service_s=MS))
    assert made.download[1] == pytest.approx(rtt + 5 * MS / 2)


def test_an_assignment_counts_until_it_is_served() -> None:
    made = loads(1)
    made.assign(1, 10)
    made.beat(1, beat(served=4))
    assert made.assigned_pages(1) == pytest.approx(6)
    made.assign(1, 1)
    assert made.assigned_pages(1) == pytest.approx(7)


def test_an_assignment_that_is_never_served_is_forgotten_after_two_beats() -> None:
    """The client went elsewhere, or never asked."""
    made = loads(1)
    made.assign(1, 10)
    made.beat(1, beat())
    assert made.assigned_pages(1) == pytest.approx(10)
    made.beat(1, beat())
    assert made.assigned_pages(1) == pytest.approx(0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("assign"), st.integers(1, 50)),
            st.tuples(st.just("beat"), st.integers(0, 60), st.integers(0, 20)),
            st.tuples(st.just("probe"), st.floats(0, 0.1)),
            st.tuples(st.just("close")),
            st.tuples(st.just("open")),
        ),
        max_size=30,
    )
)
def test_the_list_that_lookups_index_is_the_formula(events: list[Any]) -> None:
    made = loads(1)
    rtt, waiting, before, since, served, is_open = made.servers[1].rtt_s, 0, 0.0, 0.0, 0, True
    for kind, *details in events:
        match kind:
            case "assign" if is_open:
                made.assign(1, details[0])
                since += details[0]
            case "beat":
                served, waiting = served + details[0], details[1]
                made.beat(1, beat(served=served, waiting=waiting))
                before, since = max(0.0, min(before + since - details[0], since)), 0.0
            case "probe":
                made.probed(1, details[0])
                rtt += 0.3 * (details[0] - rtt)
            case "close":
                made.open(1, False)
                # Lookups since the last beat are forgotten with it: they go elsewhere by themselves.
                is_open, since = False, 0.0
            case "open" if not is_open:
                made.open(1, True)
                is_open = True
        wanted = rtt + (waiting + before + since) * MS if is_open else inf
        assert made.download[1] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_a_server_that_may_not_be_chosen_is_infinitely_loaded() -> None:
    made = loads(1, 2)
    made.open(1, False)
    assert made.download[1] == inf and made.assigned_pages(1) == 0
    made.beat(1, beat(waiting=3))
    assert made.download[1] == inf
    made.open(1, True)
    assert made.download[1] < inf


def test_a_restarted_server_counts_from_zero() -> None:
    made = loads(1)
    made.beat(1, beat(served=1000))
    made.assign(1, 10)
    made.restarted(1)
    made.beat(1, beat(served=0))
    assert made.assigned_pages(1) == pytest.approx(0)
    made.assign(1, 10)
    made.beat(1, beat(served=10))
    assert made.assigned_pages(1) == pytest.approx(0)


def test_a_response_time_shows_at_once() -> None:
    made = loads(1)
    made.assign(1, 10)
    before = made.download[1]
    for _ in range(50):
        made.probed(1, 0.2)
    assert made.download[1] - before == pytest.approx(0.2, abs=0.01)
    assert made.assigned_pages(1) == pytest.approx(10)


def test_equal_machines_are_told_apart_by_what_waits_not_by_noise() -> None:
    made = loads(1, 2, 3, 4)
    made.beat(1, beat(service_s=0.9 * MS))
    made.beat(2, beat(service_s=1.1 * MS))
    made.beat(1, beat(service_s=0.9 * MS))
    assert made.per_page_s[1] == pytest.approx(made.per_page_s[2], rel=0.01)
    made.beat(2, beat(service_s=20 * MS))
    assert made.per_page_s[2] == pytest.approx(20 * MS), "a slow machine is no noise"


def test_the_least_loaded_holder_is_named_first_and_its_assignment_counts() -> None:
    desk = Desk("web-1", "web-2", "web-3")
    desk.put(1, "/a", on=("web-1", "web-2", "web-3"))
    busy, idle, dead = (desk.figures[name] for name in ("web-1", "web-2", "web-3"))
    desk.beat(busy, waiting=100)
    desk.beat(idle, waiting=0)
    desk.die(dead)
    desk.beat(busy, waiting=100)
    first: Counter[int] = Counter(desk.get(Locate(["/a"])).pages[0][4][0] for _ in range(100))
    assert first[idle.no] == 100, "as long as less is assigned there than waits at the other"
    first = Counter(desk.get(Locate(["/a"])).pages[0][4][0] for _ in range(200))
    assert abs(first[idle.no] - first[busy.no]) <= 2, "then both alike: nobody herds to who beat last"


def test_a_server_that_was_suspect_is_not_avoided_when_it_is_back() -> None:
    desk = Desk("web-1", "web-2")
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.silent.add("web-1")
    desk.wait(1.0)
    desk.silent.clear()
    desk.wait(0.1)
    assert desk.balancer.loads.download[desk.figures["web-1"].no] < 1.0


# -- upload load -----------------------------------------------------------------------


def test_each_term_is_relative_to_the_mean_of_those_in_question() -> None:
    made = loads(1, 2, 3)
    made.beat(1, beat(bytes_stored=100, visits=10))
    made.beat(2, beat(bytes_stored=300, visits=30))
    made.beat(3, beat(bytes_stored=999, visits=99))
    upload = made.upload([1, 2])
    assert upload == {1: pytest.approx(0.5 + 0.5 + 1.0), 2: pytest.approx(1.5 + 1.5 + 1.0)}


def test_a_zero_mean_drops_its_term() -> None:
    made = loads(1, 2)
    assert made.upload([1, 2]) == {1: pytest.approx(1.0), 2: pytest.approx(1.0)}, "nothing stored or visited"
    assert made.upload([]) == {}


def test_weights_and_the_share_of_the_last_period_count() -> None:
    made = loads(1, 2, config=Config(period_s=30.0, weight_stored=0.0, weight_rtt=0.0, weight_visits=2.0))
    made.beat(1, beat(visits=10, visits_last=100, period_left_s=15.0))
    made.beat(2, beat(visits=20, visits_last=0, period_left_s=15.0))
    assert made.upload([1, 2]) == {1: pytest.approx(2 * 60 / 40), 2: pytest.approx(2 * 20 / 40)}


def test_what_was_reserved_counts_until_it_is_stored_or_two_beats_went_by() -> None:
    made = loads(1, 2)
    free = made.bytes_free(1)
    made.reserve(1, 50 * MIB)
    assert made.bytes_free(1) == free - 50 * MIB
    assert made.upload([1, 2])[1] > made.upload([1, 2])[2]
    made.beat(1, beat())
    assert made.bytes_free(1) == free - 50 * MIB
    made.beat(1, beat())
    assert made.bytes_free(1) == free, "it was given up, or it is on the disk by now"


def test_what_was_reserved_and_is_stored_is_not_counted_twice() -> None:
    made = loads(1)
    made.reserve(1, 50 * MIB)
    made.beat(1, beat(bytes_stored=50 * MIB, bytes_free=950 * MIB))
    assert made.bytes_free(1) == 950 * MIB - int(0.05 * 1000 * MIB)


def test_five_percent_stay_free_and_an_unknown_disk_has_no_room() -> None:
    made = loads(1)
    made.beat(1, beat(bytes_stored=900, bytes_free=100))
    assert made.bytes_free(1) == 100 - 50
    made.add(2)
    assert made.bytes_free(2) == 0


# -- policies --------------------------------------------------------------------------

HOLDERS = st.lists(st.integers(1, 9), min_size=2, max_size=5, unique=True)
LOADS = st.lists(st.floats(0, 1), min_size=10, max_size=10)


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(holders=HOLDERS, figures=LOADS, seed=st.integers(0, 99))
def test_every_policy_names_all_holders_once(
    name: str, holders: list[int], figures: list[float], seed: int
) -> None:
    choose = POLICIES[name]()
    for _ in range(3):
        assert sorted(choose(tuple(holders), figures, Random(seed))) == sorted(holders)


@given(holders=HOLDERS, figures=LOADS)
def test_least_load_orders_by_load(holders: list[int], figures: list[float]) -> None:
    order = POLICIES["least-load"]()(holders, figures, Random(0))
    assert [figures[each] for each in order] == sorted(figures[each] for each in holders)


@given(holders=HOLDERS, figures=LOADS, seed=st.integers(0, 99))
def test_two_choices_never_begins_with_the_worst(holders: list[int], figures: list[float], seed: int) -> None:
    first, *rest = POLICIES["two-choices"]()(holders, figures, Random(seed))
    assert any(figures[first] <= figures[other] for other in rest)
    assert [figures[each] for each in rest] == sorted(figures[each] for each in rest)


def test_round_robin_begins_with_each_in_turn() -> None:
    choose = POLICIES["round-robin"]()
    firsts = Counter(choose((1, 2, 3), [0.0] * 4, Random(0))[0] for _ in range(30))
    assert firsts == {1: 10, 2: 10, 3: 10}


def test_random_begins_with_each_alike() -> None:
    rng = Random(1)
    choose = POLICIES["random"]()
    firsts = Counter(choose((1, 2, 3), [0.0, 9.0, 1.0, 1.0], rng)[0] for _ in range(3000))
    assert all(900 < count < 1100 for count in firsts.values())


# -- targets of an upload --------------------------------------------------------------

UPLOADS = st.dictionaries(st.integers(1, 9), st.floats(0, 10), max_size=9)


@given(figures=UPLOADS, count=st.integers(0, 4), seed=st.integers(0, 99))
def test_targets_are_different_servers_each_near_the_least_that_is_left(
    figures: dict[int, float], count: int, seed: int
) -> None:
    chosen = choose_targets(figures, count, Random(seed))
    assert len(chosen) == len(set(chosen)) == min(count, len(figures))
    left = dict(figures)
    for number in chosen:
        assert left[number] <= min(left.values()) * (1 + NEAR_LEAST)
        del left[number]


def test_pairs_spread_over_all_servers_that_are_about_as_loaded() -> None:
    rng = Random(1)
    figures = {1: 1.0, 2: 1.05, 3: 1.09, 4: 1.08, 5: 2.0}
    pairs = Counter(tuple(choose_targets(figures, 2, rng)) for _ in range(1200))
    assert len(pairs) == 12, "each of the four first, with each of the others"
    assert all(60 < count < 150 for count in pairs.values())


def test_a_full_or_visited_server_is_placed_on_last() -> None:
    assert choose_targets({1: 3.0, 2: 1.0, 3: 2.0}, 3, Random(0)) == [2, 3, 1]
