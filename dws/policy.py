"""Whom to choose: pure functions behind one name each.

What lives here: the order of a page's live holders for a reader, and the draw of
servers for an upload. What must not: how loads come about (load.py).

A policy takes the numbers of the live holders (at least one), the download load
of every server by number, and a source of randomness; it returns the holders,
best first. Callers pass holders with more than one element only, since a single
one needs no policy.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from itertools import islice
from random import Random
from typing import Final

Policy = Callable[[Sequence[int], Sequence[float], Random], list[int]]


def least_load(holders: Sequence[int], loads: Sequence[float], rng: Random) -> list[int]:
    """The least download load first."""
    if len(holders) == 2:
        first, second = holders
        return [first, second] if loads[first] <= loads[second] else [second, first]
    return sorted(holders, key=loads.__getitem__)


def gather(
    holders: list[int], chosen: Set[int], loads: Sequence[float], now: float, behind_s: float
) -> list[int]:
    """The same holders, first one that this request goes to anyway: one message less. Unless its work ends
    more than behind_s after the best one's, so that no more than that skews the loads.
    """
    ends = loads[holders[0]]
    ends_by = (ends if ends > now else now) + behind_s
    if len(holders) == 2:
        return [holders[1], holders[0]] if holders[1] in chosen and loads[holders[1]] <= ends_by else holders
    for holder in holders[1:]:
        if holder in chosen and loads[holder] <= ends_by:
            return [holder, *(each for each in holders if each != holder)]
    return holders


def random_choice(holders: Sequence[int], loads: Sequence[float], rng: Random) -> list[int]:
    """Any order, each equally likely."""
    return rng.sample(holders, len(holders))


def two_choices(holders: Sequence[int], loads: Sequence[float], rng: Random) -> list[int]:
    """The better of two drawn at random (Mitzenmacher 2001), then the rest by load."""
    pair = rng.sample(holders, 2)
    best = min(pair, key=loads.__getitem__)
    return [best, *sorted((h for h in holders if h != best), key=loads.__getitem__)]


def round_robin() -> Policy:
    """Each call starts one further."""
    turn = 0

    def choose(holders: Sequence[int], loads: Sequence[float], rng: Random) -> list[int]:
        nonlocal turn
        turn += 1
        start = turn % len(holders)
        return [*holders[start:], *holders[:start]]

    return choose


#: name → maker of the policy (round-robin has state of its own).
POLICIES: Final[dict[str, Callable[[], Policy]]] = {
    "least-load": lambda: least_load,
    "round-robin": round_robin,
    "random": lambda: random_choice,
    "two-choices": lambda: two_choices,
}

#: Upload targets are drawn among those whose load is within this share of the least.
NEAR_LEAST: Final = 0.10


def draw_targets(loads: dict[int, float], rng: Random) -> Iterator[int]:
    """All servers in the order in which an upload should take them, each drawn when it is asked for.

    Drawn at random among those within 10 % of the least, so that pairs spread over
    all servers; when those are used up, among those near the next least. A draw
    looks at all servers, so callers stop when they have enough.
    """
    left = dict(loads)
    while left:
        edge = min(left.values()) * (1 + NEAR_LEAST)
        number = rng.choice([number for number, load in left.items() if load <= edge])
        del left[number]
        yield number


def choose_targets(loads: dict[int, float], count: int, rng: Random) -> list[int]:
    """`count` different servers for an upload, primary first; fewer if there are fewer."""
    return list(islice(draw_targets(loads, rng), count))
