"""What the three algorithms cost, measured in virtual time: messages, waits and entries a second.

What lives here: loads, and the figures of one run. What must not: real clocks and sockets
(`patterns/bench/mutex.py` has those), printing. Virtual time has messages that take time
and members that take none, so these figures are the algorithms' own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from patterns.mutex.group import COORDINATOR, RICART_AGRAWALA, Group, Timing

#: A message takes 0.33 to 1.67 ms, 1 ms in the mean.
DELAY_S: Final = 0.001
ALL, ALONE, RARELY = "all ask at once", "one alone asks", "all ask rarely"
LOADS: Final = (ALL, ALONE, RARELY)
#: Nothing is suspected or repeated: the undisturbed algorithm is measured.
_UNDISTURBED: Final = Timing(
    lease_s=3600, margin_s=1, held_max_s=3600, retry_s=1000, suspect_s=4000, rest_s=0, lost_s=10, answer_s=1
)
#: Of RARELY: the lock is wanted once in this many message delays, in the mean.
RARELY_EVERY: Final = 50


@dataclass(frozen=True)
class Figures:
    """theory: messages an entry. wait: from request to grant, in delays of a message."""

    messages: float
    theory: float
    wait: float
    entries_a_second: float


def measure(algorithm: str, size: int, load: str, entries: int, seed: int) -> Figures:
    """One run of so many entries that stay in for no time, after a quarter as many to warm up."""
    group = Group(
        algorithm,
        size,
        Random(seed),
        _UNDISTURBED,
        _thinking(load, size),
        hold_s=0.0,
        delay_s=DELAY_S / 0.6,
        askers=1 if load == ALONE else size,
        use_travels=False,
    )
    group.run(3600, lambda: group.entries.total() >= entries // 4)
    before_s, before = group.clock.now, group.entries.total()
    group.messages.clear()
    group.waits_s.clear()
    group.run(before_s + 3600, lambda: group.entries.total() >= before + entries)
    took_s, done = group.clock.now - before_s, group.entries.total() - before
    return Figures(
        group.messages.total() / done,
        theory(algorithm, size, load, done / took_s),
        sum(group.waits_s) / len(group.waits_s) / DELAY_S,
        done / took_s,
    )


def theory(algorithm: str, size: int, load: str, entries_a_second: float) -> float:
    """Messages an entry. Of the ring: 1 if all ask, a whole round if one does, else all that the
    token's way through the idle ring takes."""
    if algorithm == COORDINATOR:
        return 3
    if algorithm == RICART_AGRAWALA:
        return 2 * (size - 1)
    if load == RARELY:
        return 1 / (DELAY_S * entries_a_second)
    return 1 if load == ALL else size


def _thinking(load: str, size: int) -> Callable[[Random], float]:
    if load == RARELY:
        return lambda rng: rng.expovariate(1 / (RARELY_EVERY * size * DELAY_S))
    return lambda _rng: 0.0
