"""Times, counted in buckets of equal ratio: constant memory, mergeable, percentiles within 1 %.

What lives here: the histogram and its plain form for JSON. What must not: clocks
and output. A bucket spans a factor of 1.02, so that the middle of it is at most
1 % from any time in it; the least and the greatest time are kept exactly.
"""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from math import ceil, exp, log
from typing import Final

from msgspec import Struct

RATIO: Final = 1.02
#: What is shorter or longer is counted as this, in seconds: 100 ns and a day.
SHORTEST_S: Final = 1e-7
LONGEST_S: Final = 86_400.0

_PER_LOG: Final = 1 / log(RATIO)
_OFFSET: Final = -log(SHORTEST_S) * _PER_LOG
_BUCKETS: Final = int(log(LONGEST_S) * _PER_LOG + _OFFSET) + 1


class Plain(Struct):
    """A histogram as JSON. `buckets` holds [index, count] of those that are not empty;
    bucket i spans shortest_s × ratio^i to shortest_s × ratio^(i+1)."""

    count: int
    total_s: float
    least_s: float
    most_s: float
    buckets: list[tuple[int, int]]
    ratio: float = RATIO
    shortest_s: float = SHORTEST_S


class Histogram:
    """Counts of times in seconds. Not for two threads at once: each has its own, merged at the end."""

    __slots__ = ("_counts", "count", "least_s", "most_s", "total_s")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.total_s = 0.0
        self.least_s = LONGEST_S
        self.most_s = 0.0

    def record(self, time_s: float) -> None:
        """Count one time. About 0.3 µs."""
        if not SHORTEST_S <= time_s <= LONGEST_S:
            time_s = LONGEST_S if time_s > LONGEST_S else SHORTEST_S
        # Shifted to be positive before int(), which rounds towards zero.
        self._counts[int(log(time_s) * _PER_LOG + _OFFSET)] += 1
        self.count += 1
        self.total_s += time_s
        if time_s > self.most_s:  # noqa: PLR1730  max() costs a call, a third of what all this takes
            self.most_s = time_s
        if time_s < self.least_s:  # noqa: PLR1730
            self.least_s = time_s

    def merge(self, other: "Histogram") -> None:
        """Count here all that `other` counted."""
        self._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.total_s += other.total_s
        self.least_s = min(self.least_s, other.least_s)
        self.most_s = max(self.most_s, other.most_s)

    def percentile(self, percent: float) -> float:
        """The time in seconds that `percent` of all times do not exceed; 0 if nothing was counted."""
        if not 0 <= percent <= 100:
            raise ValueError(f"percentile {percent} is outside 0..100")
        if not self.count:
            return 0.0
        rank = max(1, ceil(self.count * percent / 100))
        if rank == self.count:
            return self.most_s
        index = bisect_left(list(accumulate(self._counts)), rank)
        return min(max(_middle_s(index), self.least_s), self.most_s)

    def mean_s(self) -> float:
        return self.total_s / self.count if self.count else 0.0

    def to_plain(self) -> Plain:
        buckets = [(index, count) for index, count in enumerate(self._counts) if count]
        return Plain(self.count, self.total_s, self.least_s, self.most_s, buckets)


def from_plain(plain: Plain) -> Histogram:
    """The histogram that `plain` describes; ValueError if its buckets are not those of this module."""
    if (plain.ratio, plain.shortest_s) != (RATIO, SHORTEST_S):
        raise ValueError(f"a histogram of buckets of ratio {plain.ratio} from {plain.shortest_s} s on")
    made = Histogram()
    for index, count in plain.buckets:
        if not (0 <= index < _BUCKETS and count > 0):
            raise ValueError(f"a histogram with {count} times in bucket {index}, of {_BUCKETS}")
        made._counts[index] += count
    made.count = sum(made._counts)
    if made.count != plain.count:
        raise ValueError(f"a histogram of {plain.count} times holds {made.count}")
    made.total_s, made.least_s, made.most_s = plain.total_s, plain.least_s, plain.most_s
    return made


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """One histogram of all that these counted."""
    whole = Histogram()
    for one in histograms:
        whole.merge(one)
    return whole


def _middle_s(index: int) -> float:
    """The geometric middle of a bucket: at most sqrt(RATIO) − 1 from its ends."""
    return exp((index + 0.5 - _OFFSET) / _PER_LOG)
