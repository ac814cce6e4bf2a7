"""One client process: its threads, each with a dws client of its own, and what they measured.

What lives here: the team of threads, and `main`, which the runner executes as
`python -m loadgen worker`. What must not: choosing what to do (plan), a request
(scenarios), the measured loop (threads), merging and judging (report), printing for
people: standard output is the runner's pipe, and talk.py says what goes over it.

A worker whose standard input ends, stops: it does not outlive its runner.
"""

import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

import msgspec
import zmq

from loadgen.counting import one_line
from loadgen.histogram import Histogram, merged
from loadgen.http_scenario import open_http
from loadgen.measured import ClientResult, Tally, merge_failures
from loadgen.plan import Kind
from loadgen.scenarios import Scenario, Turns, open_pages
from loadgen.shared import NAP_S, Shared
from loadgen.talk import Fault, Finished, Lines, Progress, Ready, Said, Work
from loadgen.threads import LoadThread
from patterns.zeromq.process import prepare_process

#: How long a thread that was woken waits for one that computes, at most; Python's own is 5 ms.
SWITCH_INTERVAL_S: Final = 0.0005
PROGRESS_EVERY_S: Final = 0.5
RELEASED_WITHIN_S: Final = 10.0


class Team:
    """The threads of this process."""

    def __init__(self, work: Work, scenario: Callable[[Work, int], Scenario]) -> None:
        self._work = work
        self._shared = Shared(work.plan, work.client)
        self._prepared_in_s = 0.0
        self._threads = [
            LoadThread(number, work, self._shared, partial(scenario, work, number))
            for number in range(work.plan.threads)
        ]

    def prepare(self) -> Exception | None:
        """Start the threads and wait until each is connected; what kept one from it, if anything did."""
        began_s = time.monotonic()
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.prepared.wait()
        self._prepared_in_s = time.monotonic() - began_s
        return self.fault()

    def fault(self) -> Exception | None:
        """The first that kept a thread from its work."""
        return next((thread.fault for thread in self._threads if thread.fault), None)

    def go(self, start_s: float) -> None:
        """Count from this moment of the clock on; the warm-up comes before it."""
        gc.collect()
        gc.freeze()
        self._shared.start_s = start_s
        self._shared.go.set()

    def stop(self) -> None:
        """End soon: no request is started any more, those under way are waited for."""
        self._shared.stopped = True
        self._shared.go.set()

    def is_working(self) -> bool:
        return not all(thread.finished.is_set() for thread in self._threads)

    def wait(self) -> None:
        """Until all have finished. Their connections are still open."""
        for thread in self._threads:
            thread.finished.wait()

    def join(self) -> None:
        """Until all have ended."""
        self.wait()
        self._shared.release.set()
        for thread in self._threads:
            thread.join()

    def progress(self) -> Progress:
        # Read while the threads count: each figure is a moment old, none is torn.
        measured = [one for thread in self._threads for one in list(thread.counts.measured.values())]
        return Progress(
            sum(one.requests for one in measured),
            sum(one.pages for one in measured),
            sum(one.failed for one in measured),
        )

    def result(self) -> ClientResult:
        """After `wait`."""
        found: list[Kind] = sorted({kind for thread in self._threads for kind in thread.counts.measured})
        shared = self._shared
        ended_s = max(thread.ended_s for thread in self._threads)
        elapsed_s = max(0.0, ended_s - shared.start_s) if found else 0.0
        served: Counter[str] = Counter()
        for thread in self._threads:
            served.update(thread.served)
        return ClientResult(
            client=self._work.client,
            elapsed_s=elapsed_s,
            cpu_s=0.0 if shared.cpu_s is None else time.process_time() - shared.cpu_s,
            tallies={kind: self._tally(kind) for kind in found},
            served=dict(served),
            late=self._late().to_plain() if shared.plan.is_open else None,
            intervals=shared.series().intervals(),
            turnaround_s=self._prepared_in_s + elapsed_s if found else 0.0,
        )

    def _late(self) -> Histogram:
        return merged(thread.counts.late for thread in self._threads)

    def _tally(self, kind: Kind) -> Tally:
        measured = [
            thread.counts.measured[kind] for thread in self._threads if kind in thread.counts.measured
        ]
        return Tally(
            requests=sum(one.requests for one in measured),
            pages=sum(one.pages for one in measured),
            bytes=sum(one.bytes for one in measured),
            failures=merge_failures(failure for one in measured for failure in one.failures.values()),
            latency=merged(one.latency for one in measured).to_plain(),
            skipped=sum(one.skipped for one in measured),
        )


def main() -> int:
    """The process that the runner executes: 0 if it measured, 1 if it could not start."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    prepare_process()
    commands = Lines(sys.stdin.fileno())
    line = commands.next(timeout_s=60.0)
    if line is None:
        return 1
    # Every thread has sockets of its own. The context, and with it the I/O thread, is one for all: an I/O
    # thread for each took a fifth more CPU a request.
    with zmq.Context() as context:
        work = msgspec.json.decode(line, type=Work)
        return _work(commands, Team(work, _scenario_of(work, context)))


def _scenario_of(work: Work, context: "zmq.Context[zmq.Socket[bytes]]") -> Callable[[Work, int], Scenario]:
    turns = Turns(work) if work.rounds else None
    if work.http:
        return partial(open_http, turns)
    if not work.scenario:
        return partial(open_pages, context, turns)

    module, _, name = work.scenario.rpartition(":")
    lock = threading.Lock()

    def opened(work: Work, thread: int) -> Scenario:
        with lock:  # a file is loaded once
            made = getattr(_from_file(module) if module.endswith(".py") else import_module(module), name)
        scenario: Scenario = made(work, thread, context)
        return scenario

    return opened


def _from_file(path: str) -> ModuleType:
    name = Path(path).stem
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python module")
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def _work(commands: Lines, team: Team) -> int:
    fault = team.prepare()
    if fault:
        team.stop()
    else:
        say(Ready())
        _obey(commands, team)
        team.wait()
        fault = team.fault()
    say(Fault(type(fault).__name__, one_line(fault)) if fault else Finished(team.result()))
    if not fault:
        _until_released(commands)
    team.join()
    return 1 if fault else 0


def _until_released(commands: Lines) -> None:
    """Until the runner has ended its side, when it has looked at the cluster's nodes once more."""
    deadline = time.monotonic() + RELEASED_WITHIN_S
    while not commands.ended and time.monotonic() < deadline:
        commands.next(NAP_S)


def _obey(commands: Lines, team: Team) -> None:
    """Until the threads have ended: what the runner says, and progress in between."""
    progress_s = time.monotonic() + PROGRESS_EVERY_S
    while team.is_working():
        line = commands.next(NAP_S)
        if commands.ended or line == b"stop" or team.fault():
            team.stop()
            return
        if line is not None and line.startswith(b"go "):
            team.go(float(line[3:]))
        if time.monotonic() >= progress_s:
            say(team.progress())
            progress_s += PROGRESS_EVERY_S


def say(message: Said) -> None:
    """One line to the runner; if there is none any more, nobody is left to be told."""
    try:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
