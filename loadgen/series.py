"""A run in slices of time: constant memory, however long it lasts and however many requests it makes.

What lives here: one thread's open slice, and the row of those that are over. What must not: clocks, locks
(the row is one for all threads of a process: whoever shares it guards it), output.

There are at most SLICES_MAX slices. When they are full, neighbours are joined: each is twice as wide.
"""

from typing import Final

from loadgen.histogram import Histogram
from loadgen.measured import Interval

SLICES_MAX: Final = 600
#: The width to begin with: powers of two times this one are exact, so that slices can be joined.
WIDTH_S: Final = 0.25


class Slice:
    """What ended in one slice."""

    __slots__ = ("bytes", "failed", "latency", "pages", "requests")

    def __init__(self) -> None:
        self.requests = self.failed = self.pages = self.bytes = 0
        self.latency = Histogram()

    def merge(self, other: "Slice") -> None:
        """Count here all that `other` counted."""
        self.requests += other.requests
        self.failed += other.failed
        self.pages += other.pages
        self.bytes += other.bytes
        if other.latency.count:
            self.latency.merge(other.latency)


class Series:
    """Slices in a row from the start of a run on; those in which nothing ended are empty."""

    def __init__(self) -> None:
        self.width_s = WIDTH_S
        self._slices: list[Slice] = []

    def add(self, at_s: float, part: Slice) -> None:
        """`part` ended at `at_s` or at another moment of the same slice."""
        place = self._place(at_s)
        while place >= SLICES_MAX:
            self._join()
            place = self._place(at_s)
        while place >= len(self._slices):
            self._slices.append(Slice())
        self._slices[place].merge(part)

    def ends_s(self, at_s: float) -> float:
        """When the slice that holds `at_s` is over."""
        return (self._place(at_s) + 1) * self.width_s

    def intervals(self) -> list[Interval]:
        return [
            Interval(
                at_s=number * self.width_s,
                width_s=self.width_s,
                requests=one.requests,
                failed=one.failed,
                pages=one.pages,
                bytes=one.bytes,
                latency=one.latency.to_plain(),
            )
            for number, one in enumerate(self._slices)
        ]

    def _place(self, at_s: float) -> int:
        return max(0, int(at_s / self.width_s))

    def _join(self) -> None:
        for one, other in zip(self._slices[::2], self._slices[1::2], strict=False):
            one.merge(other)
        self._slices = self._slices[::2]
        self.width_s *= 2
