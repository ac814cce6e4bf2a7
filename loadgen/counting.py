"""What a thread counts of its requests: sums, latencies, failures, slice by slice.

What lives here: one thread's counts. What must not: clocks, when requests are made (threads, pipeline), the
shapes that a report is made of (measured).

Memory does not grow with the number of requests: latencies are histograms, failures one for each kind.
"""

from typing import Final

from loadgen.histogram import Histogram
from loadgen.measured import Failure
from loadgen.plan import Kind
from loadgen.scenarios import Done
from loadgen.series import Slice
from loadgen.shared import Shared

_TEXT_MAX: Final = 300
#: Kinds of failure; those beyond count as one. A service may put anything into an exception's `kind`.
_KINDS_MAX: Final = 100
_OTHERS: Final = "others"


class Measured:
    """What a thread counts of one kind of request. Its sums may be read while it counts."""

    def __init__(self) -> None:
        self.requests = self.pages = self.bytes = self.skipped = self.failed = 0
        self.failures: dict[str, Failure] = {}
        self.latency = Histogram()
        """Of the slices that are over: all, after the last `turn`."""
        self._open = Histogram()
        self._before = (0, 0, 0, 0)

    def succeeded(self, took_s: float, done: Done) -> None:
        self._open.record(took_s)
        self.requests += 1
        self.pages += done.pages
        self.bytes += done.bytes
        self.skipped += done.skipped

    def has_failed(self, error: Exception, at_s: float) -> None:
        self.failed += 1
        kind = str(getattr(error, "kind", type(error).__name__))
        if kind not in self.failures and len(self.failures) >= _KINDS_MAX:
            kind = _OTHERS
        known = self.failures.get(kind)
        if known is None:
            known = self.failures[kind] = Failure(kind, 0, at_s, one_line(error))
        known.count += 1

    def turn(self) -> Slice:
        """What came since the last turn."""
        now = (self.requests, self.failed, self.pages, self.bytes)
        part = Slice()
        part.requests, part.failed, part.pages, part.bytes = (
            sum_now - before for sum_now, before in zip(now, self._before, strict=True)
        )
        self._before = now
        if self._open.count:
            part.latency, self._open = self._open, part.latency
            self.latency.merge(part.latency)
        return part


class ByKind(dict[Kind, Measured]):
    """Kinds of request → what was counted; made when it is first asked for."""

    def __missing__(self, kind: Kind) -> Measured:
        made = self[kind] = Measured()
        return made


class Counts:
    """All that one thread counts, into the slices that it shares. Moments are of the clock."""

    def __init__(self, shared: Shared) -> None:
        self.measured = ByKind()
        self.late = Histogram()
        """Open load: how long after its intended start each request was sent."""
        self.turn_s = 0.0
        """When the open slice is over: what ends later is not counted before a `turn`."""
        self._shared = shared
        self._slice_s = 0.0

    def begin(self) -> None:
        """The warm-up is over."""
        self._shared.begin_counting()
        self.turn_s = self._shared.start_s + self._shared.slice_ends_s(0.0)

    def succeeded(self, kind: Kind, begun_s: float, ended_s: float, done: Done) -> None:
        if ended_s >= self.turn_s:
            self.turn(ended_s)
        self.measured[kind].succeeded(ended_s - begun_s, done)

    def has_failed(self, kind: Kind, begun_s: float, ended_s: float, error: Exception) -> None:
        if ended_s >= self.turn_s:
            self.turn(ended_s)
        self.measured[kind].has_failed(error, begun_s - self._shared.start_s)

    def turn(self, now_s: float) -> None:
        """The open slice is over, and the one that holds this moment begins."""
        self.close()
        self._slice_s = now_s - self._shared.start_s
        self.turn_s = self._shared.start_s + self._shared.slice_ends_s(self._slice_s)

    def close(self) -> None:
        """All is counted."""
        for measured in self.measured.values():
            part = measured.turn()
            if part.requests or part.failed:
                self._shared.add(self._slice_s, part)


def one_line(error: Exception) -> str:
    """What an exception says, on one line of bounded length; its type's name if that is nothing."""
    return " ".join(str(error).split())[:_TEXT_MAX] or type(error).__name__
