"""Whole groups in virtual time: safety always; progress and fairness once what is broken is mended.

Hosts pause, crash and start anew, connections break, directions are cut, messages vanish
and come late; members go on using the resource after a grant of theirs has ended. The
resource must never accept an older number after a newer one, nor one number of two members.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterns.mutex import measure
from patterns.mutex.group import ALGORITHMS, COORDINATOR, RICART_AGRAWALA, TOKEN_RING, Group, Timing
from patterns.mutex.interface import HELD

TROUBLE_S, MEND_S, QUIET_S = 40.0, 25.0, 30.0
EACH_AT_LEAST = 10


def group_of(algorithm: str, size: int, rng: Random, late_s: float = 0.05) -> Group:
    made = Group(
        algorithm,
        size,
        rng,
        Timing(),
        think_s=lambda rng: rng.expovariate(5),
        hold_s=0.02,
        delay_s=0.005,
        late_s=late_s,
    )
    made.clock.after_event = made.check
    return made


class Trouble:
    """Breaks something every few seconds until `until`."""

    def __init__(self, group: Group, rng: Random, until: float) -> None:
        self.group = group
        self.rng = rng
        self.until = until
        self.done: Counter[str] = Counter()
        self._kinds: list[Callable[[], None]] = [self.pause, self.crash, self.cut, self.break_connection]
        group.clock.after(1.0, self.next)

    def next(self) -> None:
        kind = self.rng.choice(self._kinds)
        self.done[kind.__name__] += 1
        kind()
        if self.group.clock.now < self.until:
            self.group.clock.after(self.rng.expovariate(0.5), self.next)

    def pause(self) -> None:
        """Mostly of a holder, whose grant ends meanwhile."""
        nodes = list(self.group.nodes.values())
        holders = [node for node in nodes if node.mutex is not None and node.mutex.state == HELD]
        host = self.rng.choice(holders or nodes).host
        host.pause()
        self.group.clock.after(self.rng.random() * 8, host.resume)

    def crash(self) -> None:
        node = self.rng.choice(list(self.group.nodes.values()))
        if node.host.up:
            node.host.crash()
            self.group.clock.after(self.rng.random() * 8, node.start)

    def cut(self) -> None:
        names = [node.host.name for node in self.group.nodes.values()]
        one, other = self.rng.sample(names, 2)
        self.group.network.cut(one, other)
        if self.rng.random() < 0.7:
            self.group.network.cut(other, one)
        self.group.clock.after(self.rng.random() * 8, self.group.network.heal_all)

    def break_connection(self) -> None:
        connections = self.group.network.connections()
        if connections:
            self.rng.choice(connections).lose()


def check_safety(group: Group) -> None:
    fences = [use.fence for use in group.accepted]
    assert fences == sorted(fences)
    owners = {(use.fence, use.member) for use in group.accepted}
    assert len(owners) == len(set(fences)), "one number of two members"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(seed=st.integers(0, 1 << 32), size=st.integers(2, 6), loss=st.sampled_from([0.0, 0.02, 0.1]))
@settings(max_examples=15)
def test_safe_in_trouble_and_going_on_after_it(algorithm: str, seed: int, size: int, loss: float) -> None:
    rng = Random(seed)
    group = group_of(algorithm, size, rng)
    group.network.loses = lambda _source, _target, _frames: rng.random() < loss
    Trouble(group, rng, TROUBLE_S)
    group.run(TROUBLE_S + 8)
    group.network.heal_all()
    group.network.loses = None
    group.run(TROUBLE_S + MEND_S)
    before = Counter(group.entries)
    group.run(TROUBLE_S + MEND_S + QUIET_S)
    check_safety(group)
    gained = [group.entries[member] - before[member] for member in group.members]
    assert min(gained) >= EACH_AT_LEAST, gained
    assert max(gained) < 2 * min(gained), f"one is favoured: {gained}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_trouble_is_such_that_beliefs_alone_would_let_two_in(algorithm: str, seed: int) -> None:
    """Or the property above would show nothing: some uses are refused."""
    rng = Random(seed)
    refused = 0
    for _ in range(20):
        group = group_of(algorithm, 4, rng)
        trouble = Trouble(group, rng, TROUBLE_S)
        group.run(TROUBLE_S)
        check_safety(group)
        assert trouble.done
        refused += group.outcomes["refused"]
    assert refused > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_holder_that_is_paused_past_its_grant_is_refused_when_it_wakes(algorithm: str) -> None:
    group = group_of(algorithm, 3, Random(1), late_s=0.0)
    assert group.run(30, lambda: bool(group.accepted))
    paused = group.accepted[-1]
    node = group.nodes[paused.member]
    node.host.pause()
    assert group.run(60, lambda: group.resource.highest > paused.fence)
    uses = group.outcomes["refused"]
    node.host.resume()
    assert group.run(90, lambda: group.outcomes["refused"] > uses)
    check_safety(group)
    entries = group.entries[paused.member]
    assert group.run(150, lambda: group.entries[paused.member] > entries), "it never entered again"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_when_a_holder_dies_for_good_the_others_go_on(algorithm: str) -> None:
    group = group_of(algorithm, 3, Random(2))
    assert group.run(30, lambda: bool(group.accepted))
    dead = group.accepted[-1].member
    group.nodes[dead].host.crash()
    before = Counter(group.entries)
    group.run(group.clock.now + 60)
    for member in group.members:
        assert (group.entries[member] > before[member] + EACH_AT_LEAST) == (member != dead)


def test_when_the_coordinator_starts_anew_entry_goes_on_with_higher_numbers() -> None:
    group = group_of(COORDINATOR, 3, Random(3))
    assert group.run(30, lambda: len(group.accepted) > 20)
    highest = group.resource.highest
    server = group.nodes[3]
    server.host.crash()
    group.run(group.clock.now + 1)
    server.start()
    assert group.run(group.clock.now + 30, lambda: group.resource.highest > highest + (1 << 32))
    check_safety(group)


def test_a_lost_token_is_made_anew_and_the_old_one_stays_lost() -> None:
    group = group_of(TOKEN_RING, 3, Random(4))
    assert group.run(30, lambda: len(group.accepted) > 20)
    highest = group.resource.highest
    group.network.loses = lambda _source, _target, frames: bool(frames[0].members)
    group.run(group.clock.now + 0.5)
    group.network.loses = None
    assert group.run(group.clock.now + 10, lambda: group.resource.highest >= (highest >> 104) + 1 << 104)


@pytest.mark.parametrize("algorithm", [RICART_AGRAWALA, TOKEN_RING])
def test_both_parts_of_a_divided_network_let_members_in_and_the_resource_takes_one(algorithm: str) -> None:
    group = group_of(algorithm, 4, Random(5))
    assert group.run(30, lambda: len(group.accepted) > 20)
    for left in (0, 1):
        for right in (2, 3):
            group.network.cut(f"node-{left}", f"node-{right}")
            group.network.cut(f"node-{right}", f"node-{left}")
    group.run(group.clock.now + 30)
    group.network.heal_all()
    group.run(group.clock.now + 30)
    before = Counter(group.entries)
    group.run(group.clock.now + 30)
    check_safety(group)
    assert group.outcomes["refused"] > 0
    assert all(group.entries[member] >= before[member] + EACH_AT_LEAST for member in group.members)


# Without trouble: order, fairness, counts


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(seed=st.integers(0, 1 << 32), size=st.integers(1, 8))
@settings(max_examples=15)
def test_undisturbed_nobody_is_refused_and_turns_are_even(algorithm: str, seed: int, size: int) -> None:
    group = Group(algorithm, size, Random(seed), Timing(), lambda _rng: 0.0, 0.01, 0.005)
    group.clock.after_event = group.check
    group.run(20)
    check_safety(group)
    assert not group.outcomes
    assert group.entries.total() > 300
    # All want to enter all the time: nobody enters three times while another waits.
    order = [use.member for use, after in pairwise(group.accepted) if use.fence != after.fence]
    for member in group.members:
        turns = [turn for turn, who in enumerate(order) if who == member]
        assert max(after - turn for turn, after in pairwise(turns)) <= 2 * size


@pytest.mark.parametrize("size", [2, 5, 9])
@pytest.mark.parametrize("load", [measure.ALL, measure.ALONE])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_messages_an_entry_are_what_the_theory_says(algorithm: str, load: str, size: int, seed: int) -> None:
    found = measure.measure(algorithm, size, load, entries=300, seed=seed)
    assert found.messages == pytest.approx(found.theory, rel=0.03)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_seed_is_the_same_run(algorithm: str) -> None:
    def run() -> list[tuple[int, int]]:
        rng = Random(7)
        group = group_of(algorithm, 4, rng)
        Trouble(group, rng, 10.0)
        group.run(15)
        return [(use.member, use.fence) for use in group.accepted]

    assert run() == run()
