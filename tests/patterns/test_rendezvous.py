"""Rendezvous hashing: the same owner everywhere, shares by weight, and minimal movement.

Shares are judged by chi-square against the 99.9999 % quantile over fixed keys, so
the tests cannot fail by chance; movement is a property of every single key.
"""

import math
import subprocess
import sys
from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns.errors import LocalError
from patterns.rendezvous import Rendezvous

KEYS = [f"/site/page-{number}.html".encode() for number in range(20_000)]
#: Of the normal distribution, at 99.9999 %.
QUANTILE = 4.753

GROUPS = st.dictionaries(st.text(max_size=4), st.floats(0.01, 100, allow_nan=False), min_size=1, max_size=8)
SOME_KEYS = st.lists(st.binary(max_size=12), min_size=1, max_size=20)


def chi_square(counts: Counter[str], weights: dict[str, float]) -> float:
    total, sum_of_weights = counts.total(), sum(weights.values())
    wanted = {group: total * weight / sum_of_weights for group, weight in weights.items()}
    return sum((counts[group] - wanted[group]) ** 2 / wanted[group] for group in weights)


def bound(groups: int) -> float:
    """The chi-square quantile for groups - 1 degrees of freedom (Wilson and Hilferty 1931)."""
    degrees = groups - 1
    return degrees * (1 - 2 / (9 * degrees) + QUANTILE * math.sqrt(2 / (9 * degrees))) ** 3


# Shares


@pytest.mark.parametrize(
    "weights",
    [
        {f"web-{number}": 1.0 for number in range(2)},
        {f"web-{number}": 1.0 for number in range(10)},
        {f"web-{number}": 1.0 for number in range(40)},
        {"small": 1.0, "double": 2.0, "tenfold": 10.0},
        {"a": 0.001, "b": 0.002, "c": 0.001},
    ],
    ids=["2 equal", "10 equal", "40 equal", "1:2:10", "small weights"],
)
def test_each_group_owns_its_weights_share(weights: dict[str, float]) -> None:
    rendezvous = Rendezvous(weights)
    counts = Counter(map(rendezvous.owner, KEYS))
    assert chi_square(counts, weights) < bound(len(weights))


def test_chi_square_can_fail() -> None:
    """A share that is 10 % off is noticed."""
    skewed = Rendezvous({"a": 1.1, "b": 1.0, "c": 1.0})
    counts = Counter(map(skewed.owner, KEYS))
    assert chi_square(counts, {"a": 1, "b": 1, "c": 1}) > bound(3)


def test_second_owners_are_spread_as_evenly_as_first_ones() -> None:
    """What a group loses when it fails burdens all others alike, not one neighbour."""
    groups = {f"web-{number}": 1.0 for number in range(6)}
    rendezvous = Rendezvous(groups)
    owners = [rendezvous.owners(key, 2) for key in KEYS]
    heirs = Counter(second for first, second in owners if first == "web-0")
    assert chi_square(heirs, {group: 1.0 for group in groups if group != "web-0"}) < bound(5)


# Movement


@given(GROUPS, SOME_KEYS, st.text(max_size=4), st.floats(0.01, 100))
def test_a_new_group_only_takes_keys_and_its_leaving_gives_them_back(
    weights: dict[str, float], keys: list[bytes], new: str, weight: float
) -> None:
    weights.pop(new, None)
    if not weights:
        return
    rendezvous = Rendezvous(weights)
    before = {key: rendezvous.owner(key) for key in keys}
    rendezvous.set_weight(new, weight)
    rendezvous.check()
    assert all(rendezvous.owner(key) in (new, before[key]) for key in keys)
    rendezvous.remove(new)
    rendezvous.check()
    assert {key: rendezvous.owner(key) for key in keys} == before


@given(GROUPS, SOME_KEYS)
def test_a_group_that_leaves_moves_its_own_keys_alone_each_to_its_next_owner(
    weights: dict[str, float], keys: list[bytes]
) -> None:
    if len(weights) < 2:
        return
    rendezvous = Rendezvous(weights)
    leaving = next(iter(weights))
    before = {key: rendezvous.owners(key, 2) for key in keys}
    rendezvous.remove(leaving)
    for key, (first, second) in before.items():
        assert rendezvous.owner(key) == (second if first == leaving else first)


@given(GROUPS, SOME_KEYS, st.floats(1.01, 50))
def test_a_weight_that_rises_draws_keys_and_one_that_falls_sends_them_away(
    weights: dict[str, float], keys: list[bytes], factor: float
) -> None:
    rendezvous = Rendezvous(weights)
    group = next(iter(weights))
    before = {key: rendezvous.owner(key) for key in keys}
    rendezvous.set_weight(group, weights[group] * factor)
    assert all(rendezvous.owner(key) in (group, before[key]) for key in keys)
    rendezvous.set_weight(group, weights[group])
    assert {key: rendezvous.owner(key) for key in keys} == before


def test_a_fifth_group_takes_a_fifth_of_the_keys() -> None:
    rendezvous = Rendezvous(dict.fromkeys("abcd", 1.0))
    before = [rendezvous.owner(key) for key in KEYS]
    rendezvous.set_weight("e", 1.0)
    moved = sum(rendezvous.owner(key) != owner for key, owner in zip(KEYS, before, strict=True))
    assert abs(moved / len(KEYS) - 1 / 5) < 0.02


# Agreement


@given(GROUPS, st.binary(max_size=12), st.integers(1, 10))
def test_owners_are_the_groups_in_the_order_of_their_scores(
    weights: dict[str, float], key: bytes, count: int
) -> None:
    """The model scores each group from the definition, and sorts them all."""

    def score(group: str) -> float:
        name = group.encode()
        digest = blake2b(len(name).to_bytes(4, "big") + name + key, digest_size=8).digest()
        uniform = (int.from_bytes(digest, "big") >> 11) / 2**53
        return weights[group] / -math.log(uniform)

    ranked = sorted(weights, key=lambda group: (score(group), group), reverse=True)
    assert Rendezvous(weights).owners(key, count) == ranked[:count]


@given(GROUPS, SOME_KEYS)
def test_the_order_in_which_groups_were_added_does_not_matter(
    weights: dict[str, float], keys: list[bytes]
) -> None:
    other = Rendezvous(dict(reversed(weights.items())))
    rendezvous = Rendezvous(weights)
    assert [rendezvous.owners(key, 3) for key in keys] == [other.owners(key, 3) for key in keys]


def test_another_process_finds_the_same_owners() -> None:
    """Python's own hash() would differ: it is seeded anew in each process."""
    code = (
        "from patterns.rendezvous import Rendezvous\n"
        "r = Rendezvous({'a': 1, 'b': 2, 'c': 3})\n"
        "print(*(r.owner(b'%d' % n) for n in range(50)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    here = Rendezvous({"a": 1, "b": 2, "c": 3})
    assert said == [here.owner(b"%d" % number) for number in range(50)]


def test_owners_that_others_rely_on_stay_as_they_are() -> None:
    rendezvous = Rendezvous({"web-1": 1.0, "web-2": 1.0, "web-3": 2.0})
    assert [rendezvous.owners(key, 3) for key in (b"", b"/", b"/index.html")] == [
        ["web-1", "web-3", "web-2"],
        ["web-2", "web-3", "web-1"],
        ["web-2", "web-3", "web-1"],
    ]


def test_groups_and_keys_do_not_run_together() -> None:
    rendezvous = Rendezvous({"a": 1.0, "ab": 1.0})
    assert rendezvous.score("a", b"bc") != rendezvous.score("ab", b"c")


# The caller's faults


@pytest.mark.parametrize("weight", [0, -1, math.inf, math.nan])
def test_a_weight_that_cannot_bid_is_the_callers_fault(weight: float) -> None:
    rendezvous = Rendezvous({"a": 1.0})
    with pytest.raises(LocalError) as raised:
        rendezvous.set_weight("b", weight)
    assert raised.value.history == ("a weighs 1",)
    rendezvous.check()
    assert rendezvous.owner(b"key") == "a"


def test_owners_among_nobody_unknown_groups_and_no_owners_are_the_callers_fault() -> None:
    rendezvous = Rendezvous({"a": 1.0})
    with pytest.raises(LocalError):
        rendezvous.remove("b")
    with pytest.raises(LocalError):
        rendezvous.owners(b"key", 0)
    rendezvous.remove("a")
    with pytest.raises(LocalError) as raised:
        rendezvous.owner(b"key")
    assert raised.value.history == ("a weighs 1", "a removed")
    assert len(rendezvous) == 0 and rendezvous.weights == {}
