"""A client process's threads, on a scenario without a cluster; and the line protocol."""

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from loadgen.histogram import from_plain
from loadgen.plan import Plan
from loadgen.scenarios import Done, Scenario
from loadgen.talk import Lines, Work
from loadgen.worker import Team


class Instant(Scenario):
    """Answers at once; every tenth request of a thread fails."""

    def __init__(self, work: Work, thread: int) -> None:
        self.by_server: Counter[str] = Counter()
        self.made = 0
        self.closed = False

    @property
    def served(self) -> Counter[str]:
        return self.by_server

    def make(self, kind: str) -> int:
        self.made += 1
        return self.made

    def perform(self, request: int) -> Done:
        if request % 10 == 0:
            raise TimeoutError(f"request {request}")
        self.by_server["web-1"] += 2
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


def test_a_short_line_after_one_that_came_in_parts_is_found() -> None:
    read, write = os.pipe()
    try:
        lines = Lines(read)
        for part in (b"a" * 5000, b"b" * 5000, b"\n1\n22\n"):
            assert lines.next(0) is None
            os.write(write, part)
            lines.feed()
        assert [lines.buffered() for _ in range(4)] == [b"a" * 5000 + b"b" * 5000, b"1", b"22", None]
    finally:
        os.close(read)
        os.close(write)


def test_slices_hold_all_that_was_counted() -> None:
    result = ran(Plan(count=None, duration_s=0.6, threads=2)).result()
    tally = result.tallies["download"]
    failed = sum(failure.count for failure in tally.failures)
    assert sum(one.requests for one in result.intervals) == tally.requests
    assert sum(one.failed for one in result.intervals) == failed
    assert sum(one.pages for one in result.intervals) == tally.pages
    assert sum(one.bytes for one in result.intervals) == tally.bytes
    assert sum(one.latency.count for one in result.intervals) == from_plain(tally.latency).count
    assert [one.at_s for one in result.intervals] == [0.0, 0.25, 0.5]
    assert all(one.requests for one in result.intervals)
    assert result.turnaround_s >= result.elapsed_s


class Noting(Instant):
    """Keeps what it was asked, before and after the start."""

    made_all: ClassVar[list["Noting"]] = []

    def __init__(self, work: Work, thread: int) -> None:
        super().__init__(work, thread)
        self.warm = 0
        self.counted: list[str] = []
        self.restarts = 0
        self.made_all.append(self)

    def make(self, kind: str) -> int:
        if self.restarts:
            self.counted.append(kind)
        else:
            self.warm += 1
        return super().make(kind)

    def perform(self, request: int) -> Done:
        time.sleep(0.001)
        return super().perform(request)

    def restart(self) -> None:
        self.restarts += 1


@pytest.mark.parametrize("rate", [None, 2000.0])
def test_a_warm_up_is_counted_nowhere_and_changes_nothing(rate: float | None) -> None:
    asked: list[list[str]] = []
    for warmup_s in (0.0, 0.2):
        Noting.made_all.clear()
        plan = Plan(request="mixed", count=50, threads=1, rate=rate, clients=1, warmup_s=warmup_s)
        team = Team(Work(plan, 0, "", 1.0, [], [], ""), Noting)
        assert team.prepare() is None
        team.go(time.monotonic() + warmup_s)
        team.join()
        result = team.result()
        counted = sum(
            tally.requests + sum(failure.count for failure in tally.failures)
            for tally in result.tallies.values()
        )
        assert counted == 50
        assert result.served == {"web-1": sum(tally.pages for tally in result.tallies.values())}
        (scenario,) = Noting.made_all
        assert (scenario.restarts, scenario.warm > 10) == (1, warmup_s > 0)
        assert sum(one.requests + one.failed for one in result.intervals) == 50
        assert result.elapsed_s < 1
        asked.append(scenario.counted)
    assert asked[0] == asked[1]


def test_stop_in_the_warm_up_leaves_nothing() -> None:
    team = Team(Work(Plan(threads=2, warmup_s=60), 0, "", 1.0, [], [], ""), Instant)
    assert team.prepare() is None
    team.go(time.monotonic() + 60)
    time.sleep(0.05)
    team.stop()
    team.join()
    assert (team.result().tallies, team.result().served, team.result().elapsed_s) == ({}, {}, 0.0)


def test_open_load_that_nobody_can_send_fails_in_time() -> None:
    class Slow(Instant):
        def perform(self, request: int) -> Done:
            time.sleep(0.1)
            return Done(1, 1)

    plan = Plan(count=1000, threads=1, rate=10_000.0, clients=1)
    team = Team(Work(plan, 0, "", 0.3, [], [], ""), Slow)
    assert team.prepare() is None
    team.go(time.monotonic())
    team.join()
    result = team.result()
    tally = result.tallies["download"]
    assert result.elapsed_s < 1
    assert [one.kind for one in tally.failures] == ["NotSent"]
    assert tally.requests + tally.failures[0].count == 1000
    assert result.late is not None
    assert result.late.count == tally.requests
