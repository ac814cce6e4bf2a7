"""Thresholds: what is one, and when it is crossed."""

import msgspec
import pytest

from loadgen.histogram import Histogram
from loadgen.measured import ClientResult, Failure, Tally
from loadgen.plan import Plan
from loadgen.report import Report
from loadgen.thresholds import Threshold, ThresholdError, check, parse


def report(failed: int = 0, requests: int = 100) -> Report:
    """Response times of 1 … 100 ms."""
    times = Histogram()
    for number in range(requests):
        times.record((number + 1) / 1000)
    failures = [Failure("TimedOut", failed, 0.5, "no answer")] if failed else []
    tally = Tally(requests, requests * 10, requests * 1000, failures, times.to_plain())
    late = Histogram()
    late.record(0.002)
    client = ClientResult(
        0, 2.0, 0.5, {"upload": tally}, {"web-1": 600, "web-2": 400}, late.to_plain(), turnaround_s=2.5
    )
    return Report("2030-01-01T00:00:00+00:00", "t", Plan(clients=1), 100, ["web-1", "web-2"], False, [client])


@pytest.mark.parametrize(
    ("text", "figure", "sign", "bound", "unit", "of"),
    [
        ("p99>50ms", "p99", ">", 0.05, "time", None),
        (" p99.99 >= 1.5 s ", "p99.99", ">=", 1.5, "time", None),
        ("p100>900us", "p100", ">", 0.0009, "time", None),
        ("upload.p99.9>1s", "p99.9", ">", 1.0, "time", "upload"),
        ("late.max>5ms", "max", ">", 0.005, "time", "late"),
        ("failed>0", "failed", ">", 0.0, "count", None),
        ("failed>1%", "failed", ">", 0.01, "share", None),
        ("availability<99.9%", "availability", "<", 0.999, "share", None),
        ("pages/s<1000", "pages/s", "<", 1000.0, "number", None),
        ("bytes/s<=10MB", "bytes/s", "<=", 10e6, "size", None),
    ],
)
def test_thresholds(text: str, figure: str, sign: str, bound: float, unit: str, of: str | None) -> None:
    assert parse(text) == Threshold(text.strip(), figure, sign, pytest.approx(bound), unit, of)


@pytest.mark.parametrize(
    "text",
    [
        "", ">", "p99", "p99>", "p99>50", "p99=50ms", "p101>1ms", "p99>-1ms", "p99>1e3ms", "p99>50MB",
        "p99>5%", "failed>0ms", "nothing>0", "upload.failed>0", "availability<0.99", "spread>1ms",
        "dowload.p99>1s", "p99>50ms; true", "p99>nan ms", "bytes/s<10", "p99>50ms\np99>1ms",
    ],
)  # fmt: skip
def test_what_is_no_threshold_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ThresholdError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "passed", "said"),
    [
        ("p50>100ms", True, "p50 is 49.8"),
        ("p50>40ms", False, "p50 is 49.8"),
        ("upload.p50>40ms", False, "p50 is 49.8"),
        ("max>100ms", True, "max is 100.00 ms"),
        ("max>=100ms", False, "max is 100.00 ms"),
        ("mean<1s", False, "mean is 50.50 ms"),
        ("late.p99>5ms", True, "p99 is 2.00 ms"),
        ("failed>0", False, "failed is 25"),
        ("failed>25%", True, "failed is 20.000%"),
        ("availability<80.1%", False, "availability is 80.000%"),
        ("downtime>0s", True, "downtime is 0.00 ms"),
        ("turnaround>2s", False, "turnaround is 2.50 s"),
        ("requests/s<50", True, "requests/s is 50"),
        ("pages/s<501", False, "pages/s is 500"),
        ("bytes/s<1MB", False, "bytes/s is 0.05 MB"),
        ("requests<100", True, "requests is 100"),
        ("requests<=100", False, "requests is 100"),
        ("spread>1.25", True, "spread is 1.200"),
        ("jain<0.99", False, "jain is 0.962"),
        ("cpu>0.9", True, "cpu is 0.250"),
        ("died>0", True, "died is 0"),
    ],
)
def test_when_a_threshold_is_crossed(text: str, passed: bool, said: str) -> None:
    found = check(parse(text), report(failed=25))
    assert (found.passed, found.text) == (passed, text)
    assert found.said.startswith(said)


@pytest.mark.parametrize("text", ["download.p99>1s", "speedup<1", "late.p50>1s"])
def test_what_was_not_measured_has_not_passed(text: str) -> None:
    closed = report()
    closed.clients[0].late = None
    found = check(parse(text), closed)
    assert (found.passed, found.said) == (False, "not measured")


def test_a_run_without_any_request_has_passed_nothing() -> None:
    idle = report()
    idle.clients = []
    for text in ("p99>1s", "failed>0", "requests/s<0", "spread>2", "downtime>1s"):
        assert not check(parse(text), idle).passed, text


def test_where_all_requests_failed_no_response_time_has_passed() -> None:
    assert not check(parse("p99>1s"), report(failed=10, requests=0)).passed


def test_checks_are_kept_in_the_report() -> None:
    made = report()
    made.checks = [check(parse("p99>1s"), made)]
    assert msgspec.json.decode(msgspec.json.encode(made), type=Report).checks == made.checks
