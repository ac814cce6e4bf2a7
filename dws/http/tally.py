"""What an endpoint served since its last report, and the reports that are not yet counted.

What lives here: counting, and cutting what was counted into messages that fit.
What must not: sending them (endpoint.py), and clocks.
"""

from bisect import bisect_left
from collections import deque
from itertools import islice
from typing import Final

from dws.limits import RESPONSE_BOUNDS_S, VISITS_MAX_PAGES
from dws.messages import Visits

#: Pages counted one by one between two reports; visits to further pages count in the totals only.
_PAGES_MAX: Final = 50_000
#: Reports that wait to be counted while the web server does not answer; then counts gather instead.
_WAITING_MAX: Final = _PAGES_MAX // VISITS_MAX_PAGES


class Tally:
    def __init__(self, endpoint: bytes) -> None:
        """endpoint: 16 bytes that stand for this life of the process."""
        self.served = 0
        self.failed = 0
        self.bytes_sent = 0
        self.pages: dict[str, list[int]] = {}
        self.response = [0] * (len(RESPONSE_BOUNDS_S) + 1)
        self.damaged: dict[tuple[str, int], None] = {}
        """Pages whose bytes were wrong; more than one report holds are met again by the next reader."""
        self._endpoint = endpoint
        self._number = 0
        self._waiting: deque[Visits] = deque()

    def visit(self, name: str, visits: int, size_bytes: int) -> None:
        """A page was answered so many times, with so many bytes in all."""
        self.served += visits
        self.bytes_sent += size_bytes
        counted = self.pages.get(name)
        if counted is not None:
            counted[0] += visits
            counted[1] += size_bytes
        elif len(self.pages) < _PAGES_MAX:
            self.pages[name] = [visits, size_bytes]

    def took(self, seconds: float) -> None:
        self.response[bisect_left(RESPONSE_BOUNDS_S, seconds)] += 1

    def damage(self, name: str, version: int) -> None:
        if len(self.damaged) < VISITS_MAX_PAGES:
            self.damaged[name, version] = None

    def report(self) -> Visits:
        """What is to be told now: the oldest report that was not counted, or all that came since."""
        if not self._waiting:
            self._cut()
        return self._waiting[0]

    def counted(self, report: Visits) -> bool:
        """The report was counted: whether more of them wait."""
        if self._waiting and self._waiting[0] is report:
            self._waiting.popleft()
        return bool(self._waiting)

    def _cut(self) -> None:
        """Totals go with the first part, the pages over as many as it takes."""
        pages = iter([(name, visits, size) for name, (visits, size) in self.pages.items()])
        for _ in range(_WAITING_MAX):
            part = list(islice(pages, VISITS_MAX_PAGES))
            if self._waiting and not part:
                break
            self._number += 1
            report = Visits(self._endpoint, self._number, 0, 0, 0, part)
            if not self._waiting:
                report.served, report.failed, report.bytes_sent = self.served, self.failed, self.bytes_sent
                report.response = self.response
                report.damaged = list(self.damaged)
            self._waiting.append(report)
        self.served = self.failed = self.bytes_sent = 0
        self.pages = {}
        self.damaged = {}
        self.response = [0] * len(self.response)
