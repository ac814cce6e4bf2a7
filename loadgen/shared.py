"""What the threads of one client process have in common: start and end, arrivals, slices.

What lives here: the state that threads share, and its lock. What must not: requests (threads, pipeline),
what is drawn (plan).
"""

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from typing import Final

from loadgen.plan import Plan, arrivals, split, warm_arrivals
from loadgen.series import Series, Slice

#: A thread that sleeps for longer looks up this often whether to stop.
NAP_S: Final = 0.1


class Shared:
    """One for each client process."""

    def __init__(self, plan: Plan, client: int) -> None:
        self.go = threading.Event()
        self.release = threading.Event()
        """Close what was opened. Until then connections stay, so that what they carried can be read."""
        self.start_s = 0.0  # set before `go`
        self.stopped = False
        self.plan = plan
        self.cpu_s: float | None = None
        """This process's CPU time when the first thread began to count."""
        self._series = Series()
        self._lock = threading.Lock()
        self._arrivals: Iterator[float] = iter(())
        if plan.is_open:
            self._arrivals = chain(warm_arrivals(plan, client), islice(arrivals(plan, client), plan.count))

    def turns(self, thread: int) -> Iterable[None]:
        """Closed load: one element a request of this thread."""
        if self.plan.count is None:
            return repeat(None)
        return repeat(None, split(self.plan.count, self.plan.threads)[thread])

    def arrivals(self) -> Iterator[float]:
        """Open load: when the calling thread's requests start, in seconds from the run's start."""
        while True:
            # Whichever thread is free takes the next arrival: a slow request delays no other's start.
            with self._lock:
                due_s = next(self._arrivals, None)
            if due_s is None:
                return
            yield due_s

    def begins_s(self) -> float:
        """No request starts before this moment of the clock."""
        return self.start_s - self.plan.warmup_s

    def ends_s(self) -> float:
        """No request starts after this moment of the clock."""
        duration_s = self.plan.duration_s
        return float("inf") if duration_s is None else self.start_s + duration_s

    def sleep_until(self, moment_s: float) -> bool:
        """False if the run was stopped meanwhile."""
        while not self.stopped and (left_s := moment_s - time.monotonic()) > 0:
            time.sleep(min(left_s, NAP_S))
        return not self.stopped

    def begin_counting(self) -> None:
        with self._lock:
            if self.cpu_s is None:
                self.cpu_s = time.process_time()

    def add(self, at_s: float, part: Slice) -> None:
        """What a thread counted in the slice that holds this moment of the run."""
        with self._lock:
            self._series.add(at_s, part)

    def slice_ends_s(self, at_s: float) -> float:
        with self._lock:
            return self._series.ends_s(at_s)

    def series(self) -> Series:
        """After all threads have finished."""
        return self._series
