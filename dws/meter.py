"""How much was done in all, and how fast it has gone lately.

What lives here: totals, and rates over the last seconds. What must not: what was
done.
"""

from collections import deque
from typing import Final

#: Rates are those of the last so many seconds, in steps of one.
_WINDOW_S: Final = 5


class Meter:
    def __init__(self) -> None:
        self.pages = 0
        self.size_bytes = 0
        self._steps: deque[tuple[float, int, int]] = deque()  # begin of a second, pages, bytes

    def add(self, pages: int, size_bytes: int, now: float) -> None:
        self.pages += pages
        self.size_bytes += size_bytes
        if self._steps and now < self._steps[-1][0] + 1:
            begin, before, before_bytes = self._steps.pop()
            self._steps.append((begin, before + pages, before_bytes + size_bytes))
        else:
            self._steps.append((now, pages, size_bytes))
        self._forget(now)

    def rates(self, now: float) -> tuple[float, float]:
        """(pages a second, bytes a second), lately; zeros if nothing was done."""
        self._forget(now)
        if not self._steps:
            return 0.0, 0.0
        # Less than a second is too short to say.
        past_s = max(1.0, now - self._steps[0][0])
        pages = sum(step[1] for step in self._steps)
        return pages / past_s, sum(step[2] for step in self._steps) / past_s

    def _forget(self, now: float) -> None:
        while self._steps and self._steps[0][0] < now - _WINDOW_S:
            self._steps.popleft()
