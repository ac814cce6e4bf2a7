"""A server's own figures: what it served, how fast, which pages, period by period.

What lives here: counting. What must not: clocks (times are arguments), and what
the figures are used for (load.py).
"""

import heapq
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from dws.limits import RESPONSE_BOUNDS_S
from dws.messages import Visits

#: Pages counted one by one in a period; visits to further pages count in the totals only.
_PAGES_MAX: Final = 200_000
#: What is left, at the next beat, of the weight of all earlier rounds: a window of some ten beats.
_AGING: Final = 0.9
#: Lives of HTTP endpoints whose last report is remembered, so that none counts twice.
_REPORTERS_MAX: Final = 16


class LoadBook:
    def __init__(self, period_s: float, now: float) -> None:
        self.period_s = period_s
        self.period_began = now
        self.pages: dict[str, list[int]] = {}  # name → [visits, bytes], this period
        self.pages_last: dict[str, list[int]] = {}
        self.visits = 0
        self.visits_last = 0
        self.served = 0
        self.served_beside = 0
        """Those of them that the HTTP endpoint served: no work of this process."""
        self.failed = 0
        self.bytes_sent = 0
        #: How many pages were answered within each of RESPONSE_BOUNDS_S, and beyond.
        self.response = [0] * (len(RESPONSE_BOUNDS_S) + 1)
        self._reported: OrderedDict[bytes, int] = OrderedDict()
        self._busy_s = 0.0
        self._busy_pages = 0.0
        self._waiting = 0

    def visit(self, name: str, size_bytes: int) -> None:
        """One page (or one chunk of one) went out. On the data plane."""
        self.served += 1
        self.visits += 1
        self.bytes_sent += size_bytes
        counted = self.pages.get(name)
        if counted is not None:
            counted[0] += 1
            counted[1] += size_bytes
        elif len(self.pages) < _PAGES_MAX:
            self.pages[name] = [1, size_bytes]

    def report(self, visits: Visits) -> None:
        """What the HTTP endpoint served, once however often it tells it."""
        if visits.number <= self._reported.get(visits.endpoint, 0):
            return
        self._reported[visits.endpoint] = visits.number
        self._reported.move_to_end(visits.endpoint)
        if len(self._reported) > _REPORTERS_MAX:
            self._reported.popitem(last=False)
        self.served += visits.served
        self.served_beside += visits.served
        self.visits += visits.served
        self.failed += visits.failed
        self.bytes_sent += visits.bytes_sent
        for bucket, count in enumerate(visits.response):
            self.response[bucket] += count
        for name, times, size_bytes in visits.pages:
            counted = self.pages.get(name)
            if counted is not None:
                counted[0] += times
                counted[1] += size_bytes
            elif len(self.pages) < _PAGES_MAX:
                self.pages[name] = [times, size_bytes]

    def tallies(self) -> tuple[float, ...]:
        """What reading changes between two events, for a recording of events: see `set_tallies`."""
        return (
            self.visits, self.served, self.served_beside, self.failed, self.bytes_sent,
            self._waiting, self._busy_s, self._busy_pages,
        )  # fmt: skip

    def set_tallies(self, tallies: Sequence[float]) -> None:
        """As if what led to these `tallies` had been read here; pages one by one do not know of it."""
        counts = [int(each) for each in tallies[:6]]
        self.visits, self.served, self.served_beside, self.failed, self.bytes_sent, self._waiting = counts
        self._busy_s, self._busy_pages = tallies[6:]

    @property
    def served_here(self) -> int:
        return self.served - self.served_beside

    def round(self, requests: int, pages: int, busy_s: float) -> None:
        """One round of the loop: what it found waiting, what it served, how long that took."""
        self._waiting = requests
        if pages:
            self._busy_s += busy_s
            self._busy_pages += pages
            # None of them waited longer.
            self.response[bisect_left(RESPONSE_BOUNDS_S, busy_s)] += pages

    def sample(self) -> tuple[int, float]:
        """(requests waiting, service time of a page in s), once a beat.

        A mean over pages, not over rounds: one round that lost the processor for
        a while would else outweigh hundreds of pages, and skew whom readers are
        sent to.
        """
        waiting, self._waiting = self._waiting, 0
        service_s = self._busy_s / self._busy_pages if self._busy_pages else 0.0
        self._busy_s *= _AGING
        self._busy_pages *= _AGING
        return waiting, service_s

    @property
    def waiting(self) -> int:
        return self._waiting

    def turn(self, now: float) -> bool:
        """Begin a new period if the old one is over. True if it did."""
        if now - self.period_began < self.period_s:
            return False
        self.pages_last, self.pages = self.pages, {}
        self.visits_last, self.visits = self.visits, 0
        # On the grid of periods, however late the loop came by.
        self.period_began = now - (now - self.period_began) % self.period_s
        return True

    def left_s(self, now: float) -> float:
        return max(0.0, self.period_began + self.period_s - now)

    def hot(self, top: int, last: bool = False) -> list[tuple[str, int, int]]:
        """The most visited pages, with visits and bytes."""
        pages = self.pages_last if last else self.pages
        most = heapq.nlargest(top, pages.items(), key=lambda item: item[1][0])
        return [(name, visits, size_bytes) for name, (visits, size_bytes) in most]
