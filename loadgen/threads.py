"""One thread of load: its requests, when they start, what is counted of them.

What lives here: the thread, and the loop that is measured for scenarios that perform one request at a time.
What must not: what a request is (scenarios), several under way at once (pipeline), the process around the
threads (worker).
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from loadgen.counting import Counts
from loadgen.pipeline import Pipeline
from loadgen.plan import WARM, Kind, kinds
from loadgen.router_scenario import RouterScenario
from loadgen.scenarios import NotSent, Scenario
from loadgen.shared import Shared
from loadgen.talk import Work
from loadgen.traces import Recorder


class LoadThread(threading.Thread):
    """Opens its scenario, waits for the start, makes its requests. Results are read once it has finished."""

    def __init__(self, thread: int, work: Work, shared: Shared, scenario: Callable[[], Scenario]) -> None:
        super().__init__(name=f"load-{thread}")
        self.prepared = threading.Event()
        self.finished = threading.Event()
        """All is counted; what follows is `Shared.release`, and the end of the scenario."""
        self.fault: Exception | None = None
        self.counts = Counts(shared)
        self.served: Counter[str] = Counter()
        self.ended_s = 0.0
        self._thread = thread
        self._work = work
        self._shared = shared
        self._open = scenario
        self._warm_kinds = kinds(work.plan, work.client, thread, WARM)
        self._kinds = kinds(work.plan, work.client, thread)
        self._served_before: Counter[str] | None = None
        self._recorder: Recorder | None = None

    def run(self) -> None:
        try:
            scenario = self._open()
            if self._work.record:
                self._recorder = Recorder(self._work.record, self._work.plan, self._work.client, self._thread)
        except Exception as error:
            self.fault = error
            self.finished.set()
            return
        finally:
            self.prepared.set()
        try:
            self._shared.go.wait()
            if self._shared.sleep_until(self._shared.begins_s()):
                self._drive(scenario)
            self.ended_s = time.monotonic()
            self._sum_up(scenario)
        except Exception as error:
            self.fault = error  # of the generator, not of a request: the run is void
        finally:
            if self._recorder:
                self._recorder.close()
            self.finished.set()
            self._shared.release.wait()
            scenario.close()

    def _drive(self, scenario: Scenario) -> None:
        is_open = self._shared.plan.is_open
        if isinstance(scenario, RouterScenario):
            pipeline = Pipeline(self._work, self._thread, self._shared, self.counts, scenario)
            (pipeline.open if is_open else pipeline.closed)()
        else:
            (self._open_load if is_open else self._closed_load)(scenario)

    def _sum_up(self, scenario: Scenario) -> None:
        self.counts.close()
        if self._served_before is not None:
            self.served = Counter(scenario.served) - self._served_before

    # -- one request at a time ------------------------------------------------------------------

    def _closed_load(self, scenario: Scenario) -> None:
        shared, clock = self._shared, time.monotonic
        while not shared.stopped and clock() < shared.start_s:
            self._uncounted(scenario)
        self._begin_counting(scenario)
        ends_s = shared.ends_s()
        for _ in shared.turns(self._thread):
            kind = next(self._kinds)
            request = scenario.make(kind)
            begun_s = clock()
            if shared.stopped or begun_s >= ends_s:
                return
            self._perform(scenario, kind, request, begun_s)

    def _open_load(self, scenario: Scenario) -> None:
        shared = self._shared
        ends_s, is_warm = shared.ends_s(), True
        for due_s in shared.arrivals():
            moment_s = shared.start_s + due_s
            if moment_s >= ends_s or shared.stopped:
                return
            if due_s < 0:
                if shared.sleep_until(moment_s):
                    self._uncounted(scenario)
                continue
            if is_warm:
                is_warm = False
                self._begin_counting(scenario)
            kind = next(self._kinds)
            request = scenario.make(kind)
            if not shared.sleep_until(moment_s):
                return
            late_s = time.monotonic() - moment_s
            if late_s > self._work.timeout_s:
                # So that a rate beyond what is possible does not go on for ever.
                text = f"no thread was free for it within {self._work.timeout_s:g} s of its intended start"
                self.counts.has_failed(kind, moment_s, time.monotonic(), NotSent(text))
            else:
                self.counts.late.record(late_s)
                self._perform(scenario, kind, request, moment_s)

    def _perform(self, scenario: Scenario, kind: Kind, request: Any, begun_s: float) -> None:
        try:
            done = scenario.perform(request)
        except Exception as error:
            self.counts.has_failed(kind, begun_s, time.monotonic(), error)
        else:
            self.counts.succeeded(kind, begun_s, time.monotonic(), done)
        if self._recorder:
            self._recorder.note(begun_s - self._shared.start_s, kind, request)

    def _uncounted(self, scenario: Scenario) -> None:
        """A request of the warm-up."""
        request = scenario.make(next(self._warm_kinds))
        try:
            scenario.perform(request)
        except Exception:
            pass  # what fails now is no figure of the run

    def _begin_counting(self, scenario: Scenario) -> None:
        self.counts.begin()
        self._served_before = Counter(scenario.served)
        scenario.restart()
