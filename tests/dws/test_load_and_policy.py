"""Load and policy: the design's two formulas, by example and against a model; and whom each policy picks.

download load = rtt + (waiting + assigned, not yet served) × service time / workers
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
from dws.events import Tick
from dws.limits import MIB
from dws.load import Loads
from dws.messages import Beat, Locate
from dws.policy import NEAR_LEAST, POLICIES, choose_targets, draw_targets, gather
from dws.replication import Replication
from tests.dws.desk import Desk, Figure

CONFIG = Config(period_s=30.0, free_reserve=0.05)
MS = 1e-3


def beat(**fields: Any) -> Beat:
    return Figure("web-1", b"1" * 16, 1).beat(**({"bytes_free": 1000 * MIB, "service_s": MS} | fields))


def loads(*numbers: int, config: Config = CONFIG) -> Loads:
    """Servers that may be chosen, with one beat each, at 0 s."""
    made = Loads(config)
    for number in numbers:
        made.add(number)
        made.open(number, True, 0.0)
        made.beat(number, beat(), 0.0)
    return made


def left_s(made: Loads, number: int, now: float) -> float:
    """A server's download load but for its response time."""
    return made.download_load_s(number, now) - made.servers[number].rtt_s


# -- download load ---------------------------------------------------------------------


def test_waiting_requests_and_assigned_pages_count_by_the_service_time() -> None:
    made = loads(1)
    assert left_s(made, 1, 0.0) == 0
    made.assign(1, 7, 0.0)
    assert left_s(made, 1, 0.0) == pytest.approx(7 * MS)
    made.beat(1, beat(waiting=5, served=7), 0.0)
    assert left_s(made, 1, 0.0) == pytest.approx(5 * MS)
    made.beat(1, beat(waiting=5, served=7, workers=2, service_s=MS), 0.0)
    assert left_s(made, 1, 0.0) == pytest.approx(5 * MS / 2)


def test_an_assignment_counts_until_it_is_taken_to_be_served() -> None:
    made = loads(1)
    made.beat(1, beat(waiting=2), 0.0)
    made.assign(1, 10, 0.0)
    assert made.pages_left(1, 0.004) == pytest.approx((2, 6))
    made.assign(1, 1, 0.004)
    assert made.pages_left(1, 0.004) == pytest.approx((2, 7))
    assert made.pages_left(1, 0.012) == pytest.approx((1, 0))
    assert made.pages_left(1, 0.020) == (0, 0)
    made.assign(1, 1, 0.020)
    assert left_s(made, 1, 0.020) == pytest.approx(1 * MS), "idle time is not saved up"


def test_what_waits_at_a_beat_is_what_counts_from_then_on() -> None:
    """More or less than was assigned: it is slower than it says, or the client went elsewhere."""
    made = loads(1)
    made.assign(1, 10, 0.0)
    made.beat(1, beat(waiting=30), 0.005)
    assert left_s(made, 1, 0.005) == pytest.approx(30 * MS)
    made.beat(1, beat(waiting=0), 0.010)
    assert left_s(made, 1, 0.010) == 0


def test_of_idle_servers_the_one_that_has_been_idle_longest_is_the_least_whoever_beat_last() -> None:
    made = loads(1, 2)
    made.assign(1, 1, 1.000)
    made.assign(2, 1, 1.010)
    made.beat(1, beat(), 1.020)
    assert made.download[1] < made.download[2]
    made.assign(1, 1, 1.030)
    made.beat(2, beat(), 1.040)
    assert made.download[2] < made.download[1]


def test_a_server_that_has_just_beaten_is_given_no_more_than_others() -> None:
    """A thousandth of a second's work each a ms, for two servers of which one beats in between."""
    made = loads(1, 2)
    given: Counter[int] = Counter()
    for step in range(1000):
        now = 1.0 + step * MS / 2
        if step % 50 == 0:
            made.beat(1 + step % 100 // 50, beat(), now)
        best = POLICIES["least-load"]()((1, 2), made.download, Random(0))[0]
        made.assign(best, 1, now)
        given[best] += 1
        assert left_s(made, best, now) <= 3 * MS
    assert abs(given[1] - given[2]) < 50


def test_near_servers_are_equally_near_and_a_far_one_is_chosen_when_they_are_busy() -> None:
    made = loads(1, 2)
    for _ in range(50):
        made.probed(1, 0.009)
        made.probed(2, 0.040)
    assert [made.download_load_s(number, 0.0) for number in (1, 2)] == pytest.approx(
        [9 * MS, 40 * MS], rel=0.01
    )
    # Four a second, for which the near one has time: the far one has been idle all the while.
    for step in range(1, 40):
        now = step * 0.25
        made.settle(now - 0.05)
        assert made.download[1] < made.download[2]
        made.assign(1, 1, now)
    made.assign(1, 31, now)
    assert made.download[2] < made.download[1]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("assign"), st.integers(1, 50)),
            st.tuples(st.just("beat"), st.integers(0, 20)),
            st.tuples(st.just("probe"), st.floats(0, 0.1)),
            st.tuples(st.just("lost"), st.floats(0, 1.0)),
            st.tuples(st.just("pass"), st.floats(0, 0.05)),
            st.tuples(st.just("settle")),
            st.tuples(st.just("close")),
            st.tuples(st.just("open")),
        ),
        max_size=30,
    )
)
def test_the_list_that_lookups_index_is_the_formula(events: list[Any]) -> None:
    made = loads(1)
    now, rtt, work_s, waiting, is_open = 0.0, made.servers[1].rtt_s, 0.0, 0, True
    is_first = True
    for kind, *details in events:
        match kind:
            case "assign" if is_open:
                made.assign(1, details[0], now)
                work_s += details[0] * MS
            case "beat":
                waiting = details[0]
                made.beat(1, beat(waiting=waiting), now)
                work_s = waiting * MS
            case "probe":
                made.probed(1, details[0])
                rtt = details[0] if is_first else rtt + 0.3 * (details[0] - rtt)
                is_first = False
            case "lost":
                made.not_answered(1, details[0])
                rtt += 0.3 * (details[0] - rtt)
            case "pass":
                now += details[0]
                work_s = max(0.0, work_s - details[0])
            case "settle":
                made.settle(now)
            case "close":
                made.open(1, False, now)
                is_open, is_first = False, True
            case "open" if not is_open:
                made.open(1, True, now)
                is_open, work_s = True, waiting * MS
        wanted = rtt + work_s if is_open else inf
        assert made.download_load_s(1, now) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
        compared = max(made.download[1], now + made.far_s[1])
        assert compared == pytest.approx(now + max(0.0, rtt - 10 * MS) + work_s if is_open else inf)


def test_a_server_that_may_not_be_chosen_is_infinitely_loaded() -> None:
    made = loads(1, 2)
    made.open(1, False, 0.0)
    assert made.download[1] == inf and made.pages_left(1, 0.0) == (0, 0)
    made.beat(1, beat(waiting=3), 0.0)
    made.settle(1.0)
    assert made.download[1] == inf
    made.open(1, True, 1.0)
    assert left_s(made, 1, 1.0) == pytest.approx(3 * MS)


def test_a_server_whose_state_is_told_again_keeps_its_load() -> None:
    made = loads(1)
    made.assign(1, 10, 0.0)
    made.open(1, True, 0.0)
    assert made.pages_left(1, 0.0) == (0, pytest.approx(10))


def test_a_restarted_server_counts_from_zero() -> None:
    made = loads(1)
    made.beat(1, beat(served=1000, waiting=5), 0.0)
    made.assign(1, 10, 0.0)
    made.restarted(1, 0.0)
    assert made.pages_left(1, 0.0) == (0, 0)
    assert not made.fault_of(1, beat(served=0))


def test_the_first_answer_of_a_server_that_comes_back_counts_alone() -> None:
    """Its last probes were not answered; readers would pass it by until a dozen more were."""
    made = loads(1, 2)
    made.probed(1, 1 * MS)
    for _ in range(3):
        made.not_answered(1, 1.0)
    assert made.far_s[1] > 0.6
    made.open(1, False, 5.0)
    made.probed(1, 1 * MS)
    made.open(1, True, 5.0)
    made.assign(2, 1, 5.0)
    assert made.far_s[1] == 0.0 and made.download[1] < made.download[2]
    assert made.download_load_s(1, 5.0) == pytest.approx(1 * MS)


def test_a_server_far_away_is_known_to_be_at_its_first_answer() -> None:
    made = loads(1)
    made.probed(1, 50 * MS)
    assert made.far_s[1] == pytest.approx(40 * MS)
    made.probed(1, 150 * MS)
    assert made.far_s[1] == pytest.approx(70 * MS), "from then on by three tenths"


def test_a_response_time_shows_at_once() -> None:
    made = loads(1)
    made.assign(1, 10, 0.0)
    before = made.download[1]
    for _ in range(50):
        made.probed(1, 0.2)
    assert made.download[1] - before == pytest.approx(0.19, abs=0.01)
    assert made.pages_left(1, 0.0) == (0, pytest.approx(10))


def test_equal_machines_are_told_apart_by_what_waits_not_by_noise() -> None:
    made = loads(1, 2, 3, 4)
    made.beat(1, beat(service_s=0.9 * MS), 0.0)
    made.beat(2, beat(service_s=1.1 * MS), 0.0)
    made.beat(1, beat(service_s=0.9 * MS), 0.0)
    assert made.per_page_s[1] == pytest.approx(made.per_page_s[2], rel=0.01)
    made.beat(2, beat(service_s=20 * MS), 0.0)
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


def test_a_far_holder_stays_far_however_long_it_was_idle_or_often_chosen() -> None:
    desk = Desk("web-1", "web-2")
    desk.put(1, "/a", on=("web-1", "web-2"))
    near, far = desk.figures["web-1"].no, desk.figures["web-2"].no
    for _ in range(50):
        desk.balancer.loads.probed(far, 0.060)
    first: Counter[int] = Counter()
    for _ in range(200):
        desk.now += 0.09
        for figure in desk.figures.values():
            desk.beat(figure)
        desk.happen(Tick())
        desk.now += 0.01
        first[desk.get(Locate(["/a"])).pages[0][4][0]] += 1
    assert first == {near: 200}
    for _ in range(80):
        desk.now += 1 * MS
        first[desk.get(Locate(["/a"])).pages[0][4][0]] += 1
    assert first[far] == 1, "once when the near one was busy for longer than that is away, and no more"


def test_a_server_that_was_suspect_is_not_avoided_when_it_is_back() -> None:
    desk = Desk("web-1", "web-2")
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.silent.add("web-1")
    desk.wait(1.0)
    desk.silent.clear()
    desk.wait(0.1)
    assert desk.balancer.loads.download_load_s(desk.figures["web-1"].no, desk.now) < 1.0


# -- upload load -----------------------------------------------------------------------


def test_each_term_is_relative_to_the_mean_of_those_in_question() -> None:
    made = loads(1, 2, 3)
    made.beat(1, beat(bytes_stored=100, visits=10), 0.0)
    made.beat(2, beat(bytes_stored=300, visits=30), 0.0)
    made.beat(3, beat(bytes_stored=999, visits=99), 0.0)
    upload = made.upload([1, 2])
    assert upload == {1: pytest.approx(0.5 + 0.5 + 1.0), 2: pytest.approx(1.5 + 1.5 + 1.0)}


def test_a_zero_mean_drops_its_term() -> None:
    made = loads(1, 2)
    assert made.upload([1, 2]) == {1: pytest.approx(1.0), 2: pytest.approx(1.0)}, "nothing stored or visited"
    assert made.upload([]) == {}


def test_weights_and_the_share_of_the_last_period_count() -> None:
    made = loads(1, 2, config=Config(period_s=30.0, weight_stored=0.0, weight_rtt=0.0, weight_visits=2.0))
    made.beat(1, beat(visits=10, visits_last=100, period_left_s=15.0), 0.0)
    made.beat(2, beat(visits=20, visits_last=0, period_left_s=15.0), 0.0)
    assert made.upload([1, 2]) == {1: pytest.approx(2 * 60 / 40), 2: pytest.approx(2 * 20 / 40)}


def test_what_was_reserved_counts_until_it_is_stored_or_two_beats_went_by() -> None:
    made = loads(1, 2)
    free = made.bytes_free(1)
    made.reserve(1, 50 * MIB)
    assert made.bytes_free(1) == free - 50 * MIB
    assert made.upload([1, 2])[1] > made.upload([1, 2])[2]
    made.beat(1, beat(), 0.0)
    assert made.bytes_free(1) == free - 50 * MIB
    made.beat(1, beat(), 0.0)
    assert made.bytes_free(1) == free, "it was given up, or it is on the disk by now"


def test_what_was_reserved_and_is_stored_is_not_counted_twice() -> None:
    made = loads(1)
    made.reserve(1, 50 * MIB)
    made.beat(1, beat(bytes_stored=50 * MIB, bytes_free=950 * MIB), 0.0)
    assert made.bytes_free(1) == 950 * MIB - int(0.05 * 1000 * MIB)


def test_five_percent_stay_free_and_an_unknown_disk_has_no_room() -> None:
    made = loads(1)
    made.beat(1, beat(bytes_stored=900, bytes_free=100), 0.0)
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


def slow_order(figures: dict[int, float], rng: Random) -> list[int]:
    """Every server, drawn at once."""
    left, order = dict(figures), []
    while left:
        edge = min(left.values()) * (1 + NEAR_LEAST)
        order.append(rng.choice([number for number in left if left[number] <= edge]))
        del left[order[-1]]
    return order


@given(figures=UPLOADS, count=st.integers(0, 9), seed=st.integers(0, 99))
def test_draws_are_those_of_a_model_that_draws_all(figures: dict[int, float], count: int, seed: int) -> None:
    order = slow_order(figures, Random(seed))
    assert choose_targets(figures, count, Random(seed)) == order[:count]
    assert list(draw_targets(figures, Random(seed))) == order


class CountingRandom(Random):
    drawn = 0

    def choice(self, seq: Any) -> Any:
        self.drawn += 1
        return super().choice(seq)


@pytest.mark.parametrize("avoid", [set(), {"web-1"}, {"web-1", "web-2", "web-3"}])
def test_an_uploads_targets_are_those_of_a_model_that_draws_all(avoid: set[str]) -> None:
    desk = Desk(*(f"web-{number}" for number in range(1, 31)))
    for figure in desk.figures.values():
        desk.beat(figure, bytes_stored=figure.no % 7 * MIB, bytes_free=1000 * MIB)
    shunned = {desk.figures[name].no for name in avoid}
    machine = desk.balancer
    for seed in range(200):
        rng = CountingRandom(seed)
        replication = Replication(machine.catalog, machine.members, machine.loads, machine.orders, 2, rng)
        order = slow_order(machine.loads.upload(replication.candidates(1)), Random(seed))
        wanted = sorted(order, key=shunned.__contains__)[:3]
        assert replication.targets(1, 3, shunned) == wanted
        assert rng.drawn <= 3 + len(shunned), "each draw looks at all servers: no more of them than needed"


def test_pairs_spread_over_all_servers_that_are_about_as_loaded() -> None:
    rng = Random(1)
    figures = {1: 1.0, 2: 1.05, 3: 1.09, 4: 1.08, 5: 2.0}
    pairs = Counter(tuple(choose_targets(figures, 2, rng)) for _ in range(1200))
    assert len(pairs) == 12, "each of the four first, with each of the others"
    assert all(60 < count < 150 for count in pairs.values())


def test_a_full_or_visited_server_is_placed_on_last() -> None:
    assert choose_targets({1: 3.0, 2: 1.0, 3: 2.0}, 3, Random(0)) == [2, 3, 1]


# -- a request that goes there anyway ------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "chosen", "first"),
    [
        ([0.0, 9.0, 9.0], set(), 0),
        ([0.0, 9.0, 9.0], {1}, 1),
        ([0.0, 9.0, 9.0], {2}, 2),
        ([0.0, 10.0, 0.0], {1}, 1),
        ([0.0, 10.6, 0.0], {1}, 0),
        ([20.0, 20.5, 20.6], {1}, 1),
        ([20.0, 20.6, 20.7], {1, 2}, 0),
    ],
    ids=["to nobody yet", "idle", "the last", "at work", "too long", "all at work", "all too long"],
)
def test_a_request_goes_where_it_goes_anyway_unless_that_skews_loads(
    ends: list[float], chosen: set[int], first: int
) -> None:
    held = gather([0, 1, 2], chosen, ends, now=10.0, behind_s=0.5)
    assert held[0] == first
    assert held[1:] == [each for each in (0, 1, 2) if each != first]


@pytest.mark.parametrize("pause_s", [1e-6, 4e-3, 0.1], ids=["flooded", "busy", "idle"])
def test_gathering_saves_requests_and_keeps_servers_even(seed: int, pause_s: float) -> None:
    """Ten pages a lookup of pairs among four servers, as Lookup.locate goes about it."""
    rng, spreads, requests = Random(seed), list[float](), list[int]()
    for gathers in (False, True):
        made, served, asked, now = loads(0, 1, 2, 3), Counter[int](), 0, 1.0
        for _ in range(2000):
            chosen = set[int]()
            for _ in range(10):
                live = POLICIES["least-load"]()(rng.sample(range(4), 2), made.download, rng)
                if gathers and live[0] not in chosen:
                    live = gather(live, chosen, made.download, now, 8 * MS)
                chosen.add(live[0])
                made.assign(live[0], 1, now)
                served[live[0]] += 1
            asked += len(chosen)
            now += pause_s
        spreads.append(max(served.values()) / 5000)
        requests.append(asked)
    assert requests[1] < 0.85 * requests[0]
    assert spreads[1] < max(1.03, spreads[0] + 0.01)
