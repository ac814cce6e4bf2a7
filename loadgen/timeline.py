"""A run over time: the slices of all client processes as one row, and when there was no service.

What lives here: adding up intervals, and which stretches of them count as outages. What must not: drawing.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import floor
from typing import Final

from msgspec import Struct

from loadgen import histogram
from loadgen.histogram import RATIO, SHORTEST_S
from loadgen.measured import ClientResult, Interval

#: A stretch in which nothing at all was answered counts from this length on, in seconds …
SILENCE_S: Final = 1.0
#: … and if it is so many times as long as the median request …
SILENCE_MEDIANS: Final = 10
#: … and, where requests start by themselves, if so many should have started in it.
SILENCE_ARRIVALS: Final = 20
#: More slices than this are no run's, but somebody's mischief.
_SLICES_MAX: Final = 10_000


class Slice(Struct):
    """All that ended in one slice of the run, over all clients. `buckets`: the histogram's."""

    at_s: float
    width_s: float
    requests: int = 0
    failed: int = 0
    pages: int = 0
    bytes: int = 0
    buckets: dict[int, int] = {}
    most_s: float = 0.0

    def percentile(self, percent: float) -> float | None:
        """In seconds; None where no request succeeded."""
        count = sum(self.buckets.values())
        if not count:
            return None
        indices = sorted(self.buckets)
        totals = list(accumulate(self.buckets[index] for index in indices))
        place = bisect_left(totals, count * percent / 100)
        middle_s: float = SHORTEST_S * RATIO ** (indices[min(place, len(indices) - 1)] + 0.5)
        return min(middle_s, self.most_s)


class Outage(Struct):
    """No request succeeded for `for_s`, although there were some."""

    at_s: float
    for_s: float


def timeline(clients: Iterable[ClientResult]) -> list[Slice]:
    """One row of slices without gaps, as wide as the widest of any client."""
    intervals = [one for client in clients for one in client.intervals]
    width_s = max((one.width_s for one in intervals), default=0.0)
    if not width_s > 0:
        return []
    places = [max(0, floor((one.at_s + one.width_s / 2) / width_s)) for one in intervals]
    if max(places) >= _SLICES_MAX:
        raise ValueError(f"an interval of {width_s:g} s in place {max(places):,}")
    slices = [Slice(place * width_s, width_s) for place in range(max(places) + 1)]
    for place, one in zip(places, intervals, strict=True):
        _add(slices[place], one)
    return slices


def _add(to: Slice, one: Interval) -> None:
    to.requests += one.requests
    to.failed += one.failed
    to.pages += one.pages
    to.bytes += one.bytes
    histogram.from_plain(one.latency)  # says if its buckets are others than this module's
    for index, count in one.latency.buckets:
        to.buckets[index] = to.buckets.get(index, 0) + count
    to.most_s = max(to.most_s, one.latency.most_s)


def coarser(slices: Sequence[Slice], most: int) -> list[Slice]:
    """The same in at most `most` slices, each made of as many neighbours."""
    group = -(-len(slices) // most)
    if group <= 1:
        return list(slices)
    return [_sum(slices[first : first + group], group) for first in range(0, len(slices), group)]


def _sum(parts: Sequence[Slice], group: int) -> Slice:
    whole = Slice(parts[0].at_s, parts[0].width_s * group)
    for one in parts:
        whole.requests += one.requests
        whole.failed += one.failed
        whole.pages += one.pages
        whole.bytes += one.bytes
        whole.most_s = max(whole.most_s, one.most_s)
        for index, count in one.buckets.items():
            whole.buckets[index] = whole.buckets.get(index, 0) + count
    return whole


def outages(slices: Sequence[Slice], end_s: float, median_s: float, rate: float | None) -> list[Outage]:
    """Stretches of slices without a success: where requests failed, or none was answered for long.

    How long is long: SILENCE_*. `rate`: of open load, where no arrival is no fault.
    """
    found: list[Outage] = []
    stretch: list[Slice] = []
    for one in [*slices, None]:
        if one is not None and not one.requests and one.at_s < end_s:
            stretch.append(one)
            continue
        if stretch:
            for_s = min(end_s, stretch[-1].at_s + stretch[-1].width_s) - stretch[0].at_s
            failed = any(part.failed for part in stretch)
            silent_s = max(SILENCE_S, SILENCE_MEDIANS * median_s, SILENCE_ARRIVALS / rate if rate else 0.0)
            if failed or for_s >= silent_s:
                found.append(Outage(stretch[0].at_s, for_s))
        stretch = []
    return found
