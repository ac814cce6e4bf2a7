"""One client process: its threads, each with a dws client of its own, and what they measured.

What lives here: the loop of a thread, and `main`, which the runner executes as
`python -m loadgen worker`. What must not: choosing what to do (plan), merging
and judging (report), printing for people: standard output is the runner's pipe.

The runner and a worker talk in lines. To the worker: its Work as JSON; `go T`,
when T is the moment on the monotonic clock at which all clients start; `stop`.
From the worker: Ready or Fault, then a Progress now and then, then Finished. A
worker whose standard input ends, stops: it does not outlive its runner.

To load something other than pages, write another Scenario; the rest stays.
"""

import gc
import os
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import zmq
from msgspec import Struct

import dws
from loadgen.histogram import Histogram, merged
from loadgen.plan import (
    Kind,
    Plan,
    arrivals,
    chooser,
    filling,
    kinds,
    made_up,
    share_of,
    split,
    upload_name,
)
from loadgen.report import ClientResult, Failure, Tally, merge_failures

#: How long a thread that was woken waits for one that computes, at most; Python's own is 5 ms.
SWITCH_INTERVAL_S: Final = 0.0005
PROGRESS_EVERY_S: Final = 0.5
#: A thread that sleeps for longer looks up this often whether to stop.
NAP_S: Final = 0.1
_TEXT_MAX: Final = 300


class Work(Struct):
    """What one client process is to do."""

    plan: Plan
    client: int
    balancer: str
    timeout_s: float
    names: list[str]
    """What downloads choose from, the most popular first."""
    files: list[tuple[str, str]]
    """What uploads send: (path below the prefix, path on disk). Empty: made-up pages."""
    prefix: str


class Ready(Struct, tag="ready"):
    pass


class Fault(Struct, tag="fault"):
    """The worker cannot start. `kind` is the name of the exception."""

    kind: str
    text: str


class Progress(Struct, tag="progress"):
    requests: int
    pages: int
    failed: int


class Finished(Struct, tag="finished"):
    result: ClientResult


Said = Ready | Fault | Progress | Finished


# -- what a request is --------------------------------------------------------------------------


class Done(Struct, gc=False):
    """What one request that succeeded has moved."""

    pages: int
    bytes: int
    skipped: int = 0


class Scenario(Protocol):
    """Requests of one thread. An exception is a failed request; its type is the kind of failure."""

    @property
    def served(self) -> Mapping[str, int]:
        """Pages that each server delivered so far."""

    def make(self, kind: Kind) -> Any:
        """The next request, ready to be sent. Not timed."""

    def perform(self, request: Any) -> Done:
        """Send it, wait for the answer, check it. Timed."""

    def close(self) -> None: ...


class PageScenario:
    """Downloads and uploads of pages. The client checks every digest; a wrong one is an IntegrityError."""

    def __init__(self, client: "dws.Client", work: Work, thread: int) -> None:
        self._client = client
        self._work = work
        self._thread = thread
        self._uploads = 0
        plan = work.plan
        part, parts = work.client * plan.threads + thread, plan.clients * plan.threads
        self._files = share_of(work.files, part, parts)
        self._filling = b"" if work.files or plan.request == "download" else filling(plan)
        if plan.request != "upload":
            self._choose = chooser(work.names, plan, work.client, thread)

    @property
    def served(self) -> Mapping[str, int]:
        served: Mapping[str, int] = self._client.served
        return served

    def make(self, kind: Kind) -> list[str] | dict[str, Any]:
        return self._choose() if kind == "download" else self._upload()

    def perform(self, request: list[str] | dict[str, Any]) -> Done:
        if isinstance(request, list):
            pages = self._client.get_many(request)
            return Done(len(pages), sum(map(len, pages.values())))
        stored = self._client.put(request, timeout_s=self._work.timeout_s)
        return Done(stored.pages, stored.bytes, len(stored.skipped))

    def close(self) -> None:
        self._client.close()

    def _upload(self) -> dict[str, Any]:
        request, self._uploads = self._uploads, self._uploads + 1
        return {
            upload_name(self._work.prefix, self._work.client, self._thread, request, leaf): source
            for leaf, source in self._sources(request)
        }

    def _sources(self, request: int) -> Iterator[tuple[str, Any]]:
        """(name below the request's own, bytes or path) of one upload's pages."""
        plan = self._work.plan
        first = request * plan.files
        if self._files:
            for number in range(first, first + min(plan.files, len(self._files))):
                leaf, path = self._files[number % len(self._files)]
                yield leaf, Path(path)
            return
        # Different for each page of a run, lest anything save work on pages that are alike.
        base = (self._work.client << 8 | self._thread) << 40
        for number in range(first, first + plan.files):
            yield str(number - first), made_up(base + number, plan.size_bytes, self._filling)


# -- a thread ---------------------------------------------------------------------------------------


class Measured:
    """What a thread counts of one kind of request."""

    def __init__(self) -> None:
        self.requests = self.pages = self.bytes = self.skipped = self.failed = 0
        self.latency = Histogram()
        self.failures: dict[str, Failure] = {}

    def succeeded(self, took_s: float, done: Done) -> None:
        self.latency.record(took_s)
        self.requests += 1
        self.pages += done.pages
        self.bytes += done.bytes
        self.skipped += done.skipped

    def has_failed(self, error: Exception, at_s: float) -> None:
        self.failed += 1
        kind = type(error).__name__
        known = self.failures.setdefault(kind, Failure(kind, 0, at_s, _one_line(error)))
        known.count += 1


class Shared:
    """What the threads of a process have in common: the start, the end, and the arrivals of open load."""

    def __init__(self, plan: Plan, client: int) -> None:
        self.go = threading.Event()
        self.start_s = 0.0  # set before `go`
        self.stopped = False
        self.plan = plan
        self._lock = threading.Lock()
        self._arrivals = iter(()) if plan.rate is None else islice(arrivals(plan, client), plan.count)

    def turns(self, thread: int) -> Iterable[float | None]:
        """One element a request of this thread: its start, in seconds from the run's, or None: at once."""
        if self.plan.rate is not None:
            return self
        if self.plan.count is None:
            return repeat(None)
        return repeat(None, split(self.plan.count, self.plan.threads)[thread])

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        # Whichever thread is free takes the next arrival: a slow request delays no other's start.
        with self._lock:
            return next(self._arrivals)

    def ends_s(self) -> float:
        """No request starts after this moment of the clock."""
        duration_s = self.plan.duration_s
        return float("inf") if duration_s is None else self.start_s + duration_s

    def sleep_until(self, moment_s: float) -> bool:
        """False if the run was stopped meanwhile."""
        while not self.stopped and (left_s := moment_s - time.monotonic()) > 0:
            time.sleep(min(left_s, NAP_S))
        return not self.stopped


class LoadThread(threading.Thread):
    """Opens its scenario, waits for the start, makes its requests. Results are read once it has ended."""

    def __init__(self, thread: int, work: Work, shared: Shared, scenario: Callable[[], Scenario]) -> None:
        super().__init__(name=f"load-{thread}")
        self.prepared = threading.Event()
        self.fault: Exception | None = None
        self.measured: dict[Kind, Measured] = {}
        self.late = Histogram()
        self.served: Counter[str] = Counter()
        self.ended_s = 0.0
        self._thread = thread
        self._kinds = kinds(work.plan, work.client, thread)
        self._shared = shared
        self._open = scenario

    def run(self) -> None:
        try:
            scenario = self._open()
        except Exception as error:
            self.fault = error
            return
        finally:
            self.prepared.set()
        try:
            self._shared.go.wait()
            if self._shared.sleep_until(self._shared.start_s):
                self._load(scenario)
            self.served.update(scenario.served)
        except Exception as error:
            self.fault = error  # of the generator, not of a request: the run is void
        finally:
            self.ended_s = time.monotonic()
            scenario.close()

    def _load(self, scenario: Scenario) -> None:
        shared, clock = self._shared, time.monotonic
        start_s, ends_s = shared.start_s, shared.ends_s()
        for due_s in shared.turns(self._thread):
            kind = next(self._kinds)
            request = scenario.make(kind)
            if due_s is not None and not self._wait_for(start_s + due_s, ends_s):
                return
            begun_s = clock() if due_s is None else start_s + due_s
            if shared.stopped or begun_s >= ends_s:
                return
            measured = self.measured.get(kind) or self.measured.setdefault(kind, Measured())
            try:
                done = scenario.perform(request)
            except Exception as error:
                measured.has_failed(error, begun_s - start_s)
            else:
                measured.succeeded(clock() - begun_s, done)

    def _wait_for(self, moment_s: float, ends_s: float) -> bool:
        """Until an intended start; False if there is none any more. Notes by how much it was missed."""
        if moment_s >= ends_s or not self._shared.sleep_until(moment_s):
            return False
        self.late.record(time.monotonic() - moment_s)
        return True


# -- the process -----------------------------------------------------------------------------------------


class Lines:
    """Lines from a pipe, waited for with a bound."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = bytearray()
        self.ended = False

    def next(self, timeout_s: float) -> bytes | None:
        """The next line; None if none came in time, or if the pipe has `ended`."""
        deadline = time.monotonic() + timeout_s
        while (line := self.buffered()) is None and not self.ended:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([self._fd], [], [], left_s)[0]:
                return None
            self.feed()
        return line

    def buffered(self) -> bytes | None:
        """A whole line that has been read already, without its end."""
        line, found, _ = self._rest.partition(b"\n")
        if not found:
            return None
        del self._rest[: len(line) + 1]
        return bytes(line)

    def feed(self) -> None:
        """Read what is there; blocks only if nothing is."""
        data = os.read(self._fd, 1 << 20)
        self._rest += data
        self.ended = not data


class Team:
    """The threads of this process."""

    def __init__(self, work: Work, scenario: Callable[[Work, int], Scenario]) -> None:
        self._work = work
        self._shared = Shared(work.plan, work.client)
        self._cpu_s = 0.0
        self._threads = [
            LoadThread(number, work, self._shared, partial(scenario, work, number))
            for number in range(work.plan.threads)
        ]

    def prepare(self) -> Exception | None:
        """Start the threads and wait until each is connected; what kept one from it, if anything did."""
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.prepared.wait()
        return self.fault()

    def fault(self) -> Exception | None:
        """The first that kept a thread from its work."""
        return next((thread.fault for thread in self._threads if thread.fault), None)

    def go(self, start_s: float) -> None:
        gc.collect()
        gc.freeze()
        self._cpu_s = time.process_time()
        self._shared.start_s = start_s
        self._shared.go.set()

    def stop(self) -> None:
        """End soon: no request is started any more, those under way are waited for."""
        self._shared.stopped = True
        self._shared.go.set()

    def is_working(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def progress(self) -> Progress:
        # Read while the threads count: each figure is a moment old, none is torn.
        measured = [one for thread in self._threads for one in list(thread.measured.values())]
        return Progress(
            sum(one.requests for one in measured),
            sum(one.pages for one in measured),
            sum(one.failed for one in measured),
        )

    def result(self) -> ClientResult:
        """After `join`."""
        found: list[Kind] = sorted({kind for thread in self._threads for kind in thread.measured})
        ended_s = max(thread.ended_s for thread in self._threads)
        served: Counter[str] = Counter()
        for thread in self._threads:
            served.update(thread.served)
        return ClientResult(
            client=self._work.client,
            elapsed_s=max(0.0, ended_s - self._shared.start_s) if found else 0.0,
            cpu_s=time.process_time() - self._cpu_s,
            tallies={kind: self._tally(kind) for kind in found},
            served=dict(served),
            late=merged(thread.late for thread in self._threads).to_plain() if self._work.plan.rate else None,
        )

    def _tally(self, kind: Kind) -> Tally:
        measured = [thread.measured[kind] for thread in self._threads if kind in thread.measured]
        return Tally(
            requests=sum(one.requests for one in measured),
            pages=sum(one.pages for one in measured),
            bytes=sum(one.bytes for one in measured),
            failures=merge_failures(failure for one in measured for failure in one.failures.values()),
            latency=merged(one.latency for one in measured).to_plain(),
            skipped=sum(one.skipped for one in measured),
        )


def open_pages(context: "zmq.Context[zmq.Socket[bytes]]", work: Work, thread: int) -> Scenario:
    """Connect one thread's client, with one question to the balancer, so that no request waits for that."""
    client = dws.connect(work.balancer, timeout_s=work.timeout_s, context=context)
    try:
        client.status()
        return PageScenario(client, work, thread)
    except BaseException:
        client.close()
        raise


def main() -> int:
    """The process that the runner executes: 0 if it measured, 1 if it could not start."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    commands = Lines(sys.stdin.fileno())
    line = commands.next(timeout_s=60.0)
    if line is None:
        return 1
    # Every thread has sockets of its own. The context, and with it the I/O thread, is one for all: an I/O
    # thread for each took a fifth more CPU a request.
    with zmq.Context() as context:
        return _work(commands, Team(msgspec.json.decode(line, type=Work), partial(open_pages, context)))


def _work(commands: Lines, team: Team) -> int:
    fault = team.prepare()
    if fault:
        team.stop()
        team.join()
        say(Fault(type(fault).__name__, _one_line(fault)))
        return 1
    say(Ready())
    _obey(commands, team)
    team.join()
    fault = team.fault()
    say(Fault(type(fault).__name__, _one_line(fault)) if fault else Finished(team.result()))
    return 1 if fault else 0


def _obey(commands: Lines, team: Team) -> None:
    """Until the threads have ended: what the runner says, and progress in between."""
    progress_s = time.monotonic() + PROGRESS_EVERY_S
    while team.is_working():
        line = commands.next(NAP_S)
        if commands.ended or line == b"stop":
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_TEXT_MAX] or type(error).__name__
