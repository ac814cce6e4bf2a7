"""A client process's threads, on a scenario without a cluster; and the line protocol."""

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from loadgen.histogram import from_plain
from loadgen.plan import Plan
from loadgen.worker import Done, Lines, Scenario, Team, Work


class Instant:
    """Answers at once; every tenth request of a thread fails."""

    def __init__(self, work: Work, thread: int) -> None:
        self.served: Counter[str] = Counter()
        self.made = 0
        self.closed = False

    def make(self, kind: str) -> int:
        self.made += 1
        return self.made

    def perform(self, request: int) -> Done:
        if request % 10 == 0:
            raise TimeoutError(f"request {request}")
        self.served["web-1"] += 2
        return Done(pages=2, bytes=20)

    def close(self) -> None:
        self.closed = True


def ran(plan: Plan, scenario: Callable[[Work, int], Scenario] = Instant) -> Team:
    team = Team(Work(plan, 0, "", 1.0, [], [], ""), scenario)
    assert team.prepare() is None
    team.go(time.monotonic())
    team.join()
    return team


def test_all_requests_of_a_closed_load_are_made_and_counted() -> None:
    result = ran(Plan(count=103, threads=3)).result()
    tally = result.tallies["download"]
    failed = sum(failure.count for failure in tally.failures)
    assert (tally.requests, failed) == (94, 9)
    assert (tally.pages, tally.bytes, result.served) == (188, 1880, {"web-1": 188})
    assert from_plain(tally.latency).count == 94
    assert [(one.kind, one.first) for one in tally.failures] == [("TimeoutError", "request 10")]
    assert result.late is None


def test_all_arrivals_of_an_open_load_are_taken_once() -> None:
    result = ran(Plan(count=200, threads=4, rate=20_000.0, clients=1)).result()
    tally = result.tallies["download"]
    assert tally.requests + sum(failure.count for failure in tally.failures) == 200
    assert result.late is not None
    assert result.late.count == 200


def test_open_load_counts_from_the_intended_start() -> None:
    class Slow(Instant):
        def perform(self, request: int) -> Done:
            time.sleep(0.02)
            return Done(1, 1)

    result = ran(Plan(count=5, threads=1, rate=20_000.0, clients=1), Slow).result()
    # All five were meant to start at once, and one thread takes 20 ms for each.
    assert result.tallies["download"].latency.most_s >= 0.1


def test_a_duration_ends_what_has_no_count() -> None:
    result = ran(Plan(count=None, duration_s=0.05, threads=2)).result()
    assert result.tallies["download"].requests > 0
    assert result.elapsed_s >= 0.05


def test_mixed_load_is_counted_by_kind() -> None:
    assert set(ran(Plan(request="mixed", count=200)).result().tallies) == {"download", "upload"}


def test_stop_ends_a_run_and_keeps_what_was_measured() -> None:
    team = Team(Work(Plan(count=10**9, threads=2), 0, "", 1.0, [], [], ""), Instant)
    assert team.prepare() is None
    team.go(time.monotonic())
    deadline = time.monotonic() + 10
    while team.progress().requests < 10 and time.monotonic() < deadline:
        time.sleep(0.001)
    team.stop()
    team.join()
    assert team.result().tallies["download"].requests >= 10


@pytest.mark.parametrize("plan", [Plan(), Plan(rate=1.0)])
def test_stop_before_the_start_leaves_nothing(plan: Plan) -> None:
    team = Team(Work(plan, 0, "", 1.0, [], [], ""), Instant)
    assert team.prepare() is None
    team.stop()
    team.join()
    assert (team.result().tallies, team.result().elapsed_s) == ({}, 0.0)


def test_a_thread_that_cannot_connect_is_a_fault() -> None:
    def refused(work: Work, thread: int) -> Scenario:
        if thread == 1:
            raise ConnectionError("nobody there")
        return Instant(work, thread)

    team = Team(Work(Plan(threads=3), 0, "", 1.0, [], [], ""), refused)
    assert isinstance(team.prepare(), ConnectionError)
    team.stop()
    team.join()


def test_a_fault_of_the_generator_is_no_failed_request() -> None:
    class Broken(Instant):
        def make(self, kind: str) -> Any:
            raise KeyError("a bug")

    assert isinstance(ran(Plan(), Broken).fault(), KeyError)


def test_lines_come_whole_and_the_end_shows() -> None:
    read, write = os.pipe()
    try:
        lines = Lines(read)
        assert lines.next(0) is None
        os.write(write, b"one\ntwo\nth")
        assert [lines.next(1), lines.next(1), lines.next(0)] == [b"one", b"two", None]
        os.write(write, b"ree\n")
        os.close(write)
        assert (lines.next(1), lines.ended) == (b"three", False)
        assert (lines.next(1), lines.ended) == (None, True)
    finally:
        os.close(read)
