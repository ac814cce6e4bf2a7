"""What a thread counts: in its slice, in constant memory, at little cost."""

import time
import tracemalloc
from collections.abc import Callable

import pytest

from loadgen.counting import Counts
from loadgen.histogram import Histogram
from loadgen.plan import Plan
from loadgen.scenarios import Done
from loadgen.series import WIDTH_S
from loadgen.shared import Shared

DONE = Done(2, 100)


def counting() -> tuple[Counts, Shared]:
    shared = Shared(Plan(), 0)
    shared.start_s = 1000.0
    counts = Counts(shared)
    counts.begin()
    return counts, shared


def test_what_ends_in_a_slice_is_counted_there() -> None:
    counts, shared = counting()
    counts.succeeded("download", 1000.0, 1000.1, DONE)
    counts.succeeded("upload", 1000.0, 1000.1 + WIDTH_S, DONE)
    counts.has_failed("download", 1000.0, 1000.2 + WIDTH_S, TimeoutError("late"))
    counts.succeeded("download", 1000.0, 1000.1 + 3 * WIDTH_S, DONE)
    counts.close()
    intervals = shared.series().intervals()
    assert [(one.requests, one.failed, one.pages) for one in intervals] == [
        (1, 0, 2), (1, 1, 2), (0, 0, 0), (1, 0, 2),
    ]  # fmt: skip
    assert counts.measured["download"].latency.count == 2
    assert counts.measured["download"].failures["TimeoutError"].first == "late"


def test_failures_of_one_kind_are_one_and_kinds_are_bounded() -> None:
    class Odd(Exception):
        def __init__(self, number: int) -> None:
            super().__init__(f"number\n{number} " + "x" * 1000)
            self.kind = f"odd {number}"

    counts, _ = counting()
    for number in range(1000):
        counts.has_failed("download", 1001.0, 1002.0, Odd(number))
    failures = counts.measured["download"].failures
    assert len(failures) == 101
    assert sum(one.count for one in failures.values()) == counts.measured["download"].failed == 1000
    assert all(len(one.first) <= 300 and "\n" not in one.first for one in failures.values())
    assert failures["odd 0"].at_s == 1.0


def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    """Forty times as many in the same time: what is kept is a histogram a slice, of these 600 at most."""

    def kept_bytes(requests: int) -> int:
        tracemalloc.start()
        counts, shared = counting()
        for number in range(requests):
            moment_s = 1000.0 + 19.8 * number / requests
            counts.succeeded("download", moment_s, moment_s + 0.001 * (number % 97), DONE)
            counts.late.record(0.0001)
            if not number % 50:
                counts.has_failed("download", moment_s, moment_s, TimeoutError(f"number {number}"))
        counts.close()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(shared.series().intervals()) == round(20 / WIDTH_S)
        return kept

    kept_bytes(1_000)  # what is made once
    few, many = kept_bytes(1_000), kept_bytes(40_000)
    print(f"{few:,} and {many:,} bytes")
    assert many < 1.1 * few


def test_recording_a_latency_costs_less_than_a_microsecond() -> None:
    """A microsecond of a core that does nothing else: there an empty call takes 40 to 50 ns. Told in such
    calls, since on a busy machine both take longer."""

    class Nothing:
        def record(self, time_s: float) -> None:
            pass

    def best_s(record: Callable[[float], None]) -> float:
        def once_s() -> float:
            began_s = time.perf_counter()
            for time_s in times:
                record(time_s)
            return time.perf_counter() - began_s

        return min(once_s() for _ in range(20))

    times = [0.0001 * (1 + number % 100) for number in range(5_000)]
    empty_s, record_s = best_s(Nothing().record), best_s(Histogram().record)
    print(f"{record_s / len(times) * 1e6:.2f} µs, {record_s / empty_s:.1f} empty calls")
    assert record_s < 20 * empty_s


@pytest.mark.parametrize(("error", "said"), [(TimeoutError(), "TimeoutError"), (ValueError("a\n b"), "a b")])
def test_a_failure_says_one_line(error: Exception, said: str) -> None:
    counts, _ = counting()
    counts.has_failed("upload", 1000.0, 1000.0, error)
    (failure,) = counts.measured["upload"].failures.values()
    assert failure.first == said
