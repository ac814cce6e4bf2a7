"""Fair queues: each class gets its share, keeps its order, and fills only its own bound.

The model serves the classes turn by turn from plain lists, everything at once; the
queue must serve the same in the same order however its budgets cut that up. The
share itself is tested apart from any model: the cost served of two classes that
both had work all the time may differ from their quanta only by a constant.
"""

from collections import Counter
from collections.abc import Callable
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns import fair
from patterns.errors import LocalError
from patterns.fair import BACKLOGGED, IDLE, REFUSING, TRANSITIONS, FairQueue

EVERYTHING = 1 << 40


# The table of states: a class "a" with a bound of 3.


def queue_of(*costs: int) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue({"a": (1, 3), "b": (1, 3)})
    for item, cost in enumerate(costs):
        assert queue.offer("a", item, cost)
    return queue


OFFER = "offer"
FILL = "offer up to the bound"

# pair → costs of what is queued before the event, and the event
REACHED: dict[tuple[str, str], tuple[tuple[int, ...], Callable[[FairQueue[int]], object]]] = {
    (IDLE, OFFER): ((), lambda queue: queue.offer("a", 0)),
    (IDLE, FILL): ((), lambda queue: queue.offer("a", 0, cost=9)),
    (BACKLOGGED, OFFER): ((1,), lambda queue: queue.offer("a", 1)),
    (BACKLOGGED, FILL): ((1, 1), lambda queue: queue.offer("a", 2)),
    (BACKLOGGED, "take"): ((1, 1), lambda queue: queue.take(1)),
    (BACKLOGGED, "take last"): ((1,), lambda queue: queue.take(1)),
    (REFUSING, "take"): ((1, 1, 1), lambda queue: queue.take(1)),
    (REFUSING, "take last"): ((3,), lambda queue: queue.take(1)),
}


def state(queue: FairQueue[int]) -> str:
    """From outside: by what is queued, and whether the smallest item would be refused."""
    if not queue.cost("a"):
        return IDLE
    return BACKLOGGED if queue.offer("a", -1) else REFUSING


def test_the_tests_reach_every_pair_of_the_table() -> None:
    assert set(REACHED) == set(TRANSITIONS)


@pytest.mark.parametrize("pair", TRANSITIONS, ids=", ".join)
def test_every_transition_of_the_table_is_what_the_queue_does(pair: tuple[str, str]) -> None:
    costs, event = REACHED[pair]
    assert state(queue_of(*costs)) == pair[0]
    queue = queue_of(*costs)
    event(queue)
    queue.check()
    assert state(queue) == TRANSITIONS[pair]


@pytest.mark.parametrize("pair", TRANSITIONS, ids=", ".join)
def test_without_its_line_in_the_table_a_transition_cannot_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs, event = REACHED[pair]
    queue = queue_of(*costs)
    monkeypatch.delitem(fair.TRANSITIONS, pair)
    with pytest.raises(KeyError):
        event(queue)


# Examples


def test_classes_take_turns_by_their_quanta() -> None:
    queue: FairQueue[str] = FairQueue({"a": (2, 10), "b": (1, 10)})
    for number in range(4):
        queue.offer("a", f"a{number}")
        queue.offer("b", f"b{number}")
    assert queue.take(6) == ["a0", "a1", "b0", "a2", "a3", "b1"]
    assert queue.take(6) == ["b2", "b3"]
    queue.check()


def test_a_turn_cut_by_the_budget_goes_on_at_the_next_take() -> None:
    queue: FairQueue[str] = FairQueue({"a": (3, 10), "b": (3, 10)})
    for number in range(4):
        queue.offer("a", f"a{number}")
        queue.offer("b", f"b{number}")
    assert [queue.take(2) for _ in range(4)] == [["a0", "a1"], ["a2", "b0"], ["b1", "b2"], ["a3", "b3"]]


def test_a_flood_of_one_class_delays_another_by_its_turn_alone() -> None:
    queue: FairQueue[str] = FairQueue({"flood": (10, 10_000), "rare": (1, 10)})
    while queue.offer("flood", "flood"):
        pass
    queue.offer("rare", "rare")
    assert queue.take(11).index("rare") == 10


def test_what_is_over_the_bound_is_refused_and_fills_nobody_elses_queue() -> None:
    queue: FairQueue[int] = FairQueue({"a": (1, 5), "b": (1, 5)})
    assert queue.offer("a", 1, cost=4)
    assert not queue.offer("a", 2, cost=2)
    assert queue.offer("a", 3, cost=1)
    assert queue.offer("b", 4, cost=5)
    queue.check()
    assert (queue.cost("a"), queue.cost("b"), len(queue)) == (5, 5, 3)


def test_one_item_over_the_bound_is_taken_by_an_empty_class() -> None:
    queue: FairQueue[str] = FairQueue({"a": (1, 5)})
    assert queue.offer("a", "giant", cost=50)
    assert not queue.offer("a", "small", cost=1)
    queue.check()
    assert queue.take(1) == ["giant"]
    assert queue.offer("a", "small", cost=1)


def test_a_take_ends_with_the_item_that_reaches_the_budget() -> None:
    queue: FairQueue[int] = FairQueue({"a": (1, 100)})
    for item in range(3):
        queue.offer("a", item, cost=4)
    assert [queue.take(5), queue.take(5), queue.take(5)] == [[0, 1], [2], []]


def test_items_of_no_cost_are_bounded_too() -> None:
    queue: FairQueue[int] = FairQueue({"a": (1, 3)})
    assert [queue.offer("a", item, cost=0) for item in range(4)] == [True, True, True, False]
    queue.check()


def test_a_debt_outlives_an_empty_queue() -> None:
    """Else a class that queues one giant item at a time would be served one in every round."""
    queue: FairQueue[str] = FairQueue({"giant": (1, 100), "small": (1, 1000)})
    served: Counter[str] = Counter()
    for _ in range(600):
        queue.offer("small", "small")
    for _ in range(300):
        if not queue.cost("giant"):
            queue.offer("giant", "giant", cost=100)
        for item in queue.take(1):
            served[item] += 100 if item == "giant" else 1
    assert abs(served["giant"] - served["small"]) <= 101


@pytest.mark.parametrize("classes", [{}, {"a": (0, 1)}, {"a": (1, 0)}])
def test_classes_without_a_share_or_room_are_the_callers_fault(classes: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(LocalError):
        FairQueue(classes)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda queue: queue.offer("nobody", 1),
        lambda queue: queue.cost("nobody"),
        lambda queue: queue.offer("a", 1, cost=-1),
        lambda queue: queue.take(0),
    ],
    ids=["offer to an unknown class", "cost of an unknown class", "negative cost", "empty budget"],
)
def test_misuse_is_the_callers_fault_and_tells_what_was_before(
    misuse: Callable[[FairQueue[int]], object],
) -> None:
    queue = queue_of(1)
    with pytest.raises(LocalError) as raised:
        misuse(queue)
    assert raised.value.history == ("a idle --offer--> backlogged",)
    queue.check()
    assert queue.take(1) == [0]


# Against turns taken over plain lists

Item = tuple[str, int, int]  # class, number, cost

NAMES = ("a", "b", "c")
QUANTA = st.fixed_dictionaries({name: st.integers(1, 8) for name in NAMES})
ITEMS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 12)), min_size=10, max_size=40)


def numbered(items: list[tuple[str, int]]) -> list[Item]:
    return [(name, number, cost) for number, (name, cost) in enumerate(items)]


def turn_by_turn(quanta: dict[str, int], items: list[Item]) -> list[Item]:
    """All items in the order of service: each class in turn, until it has used up its quanta."""
    waiting = {name: [item for item in items if item[0] == name] for name in quanta}
    turns = list(dict.fromkeys(item[0] for item in items))
    granted = dict.fromkeys(turns, 0)
    used = dict.fromkeys(turns, 0)
    served = []
    while any(waiting.values()):
        for name in turns:
            granted[name] += quanta[name] if waiting[name] else 0
            while waiting[name] and used[name] < granted[name]:
                served.append(waiting[name].pop(0))
                used[name] += served[-1][2]
    return served


@given(quanta=QUANTA, items=ITEMS, budgets=st.lists(st.integers(1, 30), min_size=1))
def test_the_order_of_service_is_that_of_turns_whatever_the_budgets(
    quanta: dict[str, int], items: list[tuple[str, int]], budgets: list[int]
) -> None:
    queue: FairQueue[Item] = FairQueue({name: (quantum, EVERYTHING) for name, quantum in quanta.items()})
    wanted = numbered(items)
    for item in wanted:
        assert queue.offer(item[0], item, cost=item[2])
        queue.check()
    served: list[Item] = []
    takes = 0
    while len(queue):
        budget = budgets[takes % len(budgets)]
        takes += 1
        taken = queue.take(budget)
        queue.check()
        costs = [cost for _, _, cost in taken]
        assert taken
        assert sum(costs[:-1]) < budget
        assert sum(costs) >= budget or not len(queue)
        served += taken
    assert served == turn_by_turn(quanta, wanted)


@given(st.data())
def test_shares_order_and_bounds_while_items_come_and_go(data: st.DataObject) -> None:
    """Classes come and go in random order; over any time in which two of them had work, they share."""
    quanta, bound, largest = data.draw(QUANTA), 40, 12
    queue: FairQueue[Item] = FairQueue({name: (quantum, bound) for name, quantum in quanta.items()})
    waiting: dict[str, list[Item]] = {name: [] for name in NAMES}
    # Cost served of both classes of a pair since both have had work.
    shared = {pair: Counter[str]() for pair in combinations(NAMES, 2)}
    number = 0
    for offers, budget in data.draw(st.lists(st.tuples(ITEMS, st.integers(1, 40)), min_size=2, max_size=8)):
        for name, cost in offers:
            item = (name, number, cost)
            number += 1
            held = sum(cost for _, _, cost in waiting[name])
            accepted = queue.offer(name, item, cost)
            assert accepted == (held + cost <= bound or not waiting[name])
            if accepted:
                waiting[name].append(item)
        queue.check()
        for item in queue.take(budget):
            name, _, cost = item
            assert waiting[name].pop(0) == item, "order within a class"
            for pair, served in shared.items():
                served[name] += cost
                if not all(waiting[each] for each in pair):
                    served.clear()
                    continue
                rounds = [served[each] / quanta[each] for each in pair]
                slack = 3 + sum(largest / quanta[each] for each in pair)
                assert abs(rounds[0] - rounds[1]) <= slack
        queue.check()
        assert {name: queue.cost(name) for name in NAMES} == {
            name: sum(cost for _, _, cost in items) for name, items in waiting.items()
        }
