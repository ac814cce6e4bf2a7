"""Runs of two contenders in turn, and what came of each beside the other.

What lives here: repeating, ratios, printing. What must not: sockets.

A round is one run of each, one right after the other, so that whatever else the
machine does burdens both alike; the median of the rounds' ratios counts. The best of
each is printed too, since other work only slows a run down.
"""

import statistics
from collections.abc import Callable
from typing import Final

#: Many short ones: on a busy machine a long one has no quiet moment.
ROUNDS: Final = 25


def beside(
    title: str,
    bare: Callable[[], float],
    pattern: Callable[[], float],
    unit: str,
    *,
    at_least: float | None = None,
) -> float:
    """Run both in turn, print their best; the median of the rounds' ratios."""
    rounds = [(bare(), pattern()) for _ in range(ROUNDS)]
    base, measured = max(rate for rate, _ in rounds), max(rate for _, rate in rounds)
    middle = statistics.median(pattern_rate / bare_rate for bare_rate, pattern_rate in rounds)
    wanted = "" if at_least is None else f"; must reach {at_least:.0%}: {verdict(middle >= at_least)}"
    print(
        f"  {title}: {middle:.0%} of bare{wanted}; at best: bare {base:,.0f} {unit}, pattern {measured:,.0f}",
        flush=True,
    )
    return middle


def verdict(reached: bool) -> str:
    return "reached" if reached else "NOT REACHED"
