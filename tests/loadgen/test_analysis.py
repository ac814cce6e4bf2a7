"""What is concluded: outages, fairness, what nodes used, and whether the generator was the limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis import even, jain, summarise, use_of
from loadgen.doubt import Limit
from loadgen.histogram import Histogram
from loadgen.measured import ClientResult, Failure, Interval, Machine, NodeSample, NodeUse, Tally
from loadgen.plan import Plan
from loadgen.report import Baseline, Report
from loadgen.text import limit_marks, to_text
from loadgen.timeline import Outage, Slice, coarser, outages, timeline

NOTHING = Histogram().to_plain()


def times(*seconds: float) -> Histogram:
    made = Histogram()
    for one in seconds:
        made.record(one)
    return made


def interval(at_s: float, width_s: float = 1.0, requests: int = 0, failed: int = 0) -> Interval:
    return Interval(at_s, width_s, requests, failed, requests, requests, times(*[0.01] * requests).to_plain())


def client(
    number: int = 0, cpu_s: float = 1.0, late: Histogram | None = None, took_s: float = 0.01
) -> ClientResult:
    tally = Tally(1000, 1000, 1000, [], times(*[took_s] * 1000).to_plain())
    return ClientResult(number, 10.0, cpu_s, {"download": tally}, {}, late.to_plain() if late else None)


def limit(*clients: ClientResult, rate: float | None = None, **fields: object) -> Limit:
    plan = Plan(clients=len(clients), threads=4, rate=rate)
    report = Report("2030-01-01", "t", plan, 1, [], False, list(clients), **fields)  # type: ignore[arg-type]
    found = summarise(report).limit
    assert found is not None
    return found


# -- over time ------------------------------------------------------------------------------


def test_slices_of_all_clients_are_added_up_to_the_widest() -> None:
    one = ClientResult(0, 4.0, 0, {}, {}, None, [interval(float(at), 1.0, 2) for at in range(4)])
    two = ClientResult(1, 4.0, 0, {}, {}, None, [interval(0.0, 2.0, 5, 1)])
    found = timeline([one, two])
    assert [(part.at_s, part.width_s, part.requests, part.failed) for part in found] == [
        (0.0, 2.0, 9, 1), (2.0, 2.0, 4, 0),
    ]  # fmt: skip
    assert found[0].percentile(50) == pytest.approx(0.01, rel=0.02)


def test_slices_without_requests_have_no_percentile_and_gaps_are_filled() -> None:
    found = timeline([ClientResult(0, 3.0, 0, {}, {}, None, [interval(2.0, 1.0, 1)])])
    assert [part.requests for part in found] == [0, 0, 1]
    assert found[0].percentile(50) is None
    assert timeline([ClientResult(0, 3.0, 0, {}, {})]) == []


def test_intervals_without_end_are_refused() -> None:
    for wrong in (interval(1e12, 0.001), Interval(0.0, 1.0, 1, 0, 1, 1, times(0.1).to_plain())):
        wrong.latency.buckets = wrong.latency.buckets or [(10**9, 1)]
        if wrong.at_s == 0:
            wrong.latency.buckets = [(10**9, 1)]
        with pytest.raises(ValueError):
            timeline([ClientResult(0, 1.0, 0, {}, {}, None, [wrong])])


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 10))
def test_coarser_slices_lose_nothing(requests: list[int], most: int) -> None:
    fine = [
        Slice(float(at), 1.0, count, pages=count, buckets={5: count}) for at, count in enumerate(requests)
    ]
    rough = coarser(fine, most)
    assert len(rough) <= max(most, 0) or not fine
    assert sum(one.requests for one in rough) == sum(requests)
    assert sum(one.buckets.get(5, 0) for one in rough) == sum(requests)


def slices(*parts: tuple[int, int]) -> list[Slice]:
    return [Slice(at * 0.5, 0.5, requests, failed) for at, (requests, failed) in enumerate(parts)]


OK, BAD, STILL = (5, 0), (0, 1), (0, 0)


@pytest.mark.parametrize(
    ("parts", "median_s", "rate", "found"),
    [
        ([OK, OK], 0.01, None, []),
        ([OK, BAD, OK], 0.01, None, [Outage(0.5, 0.5)]),
        ([OK, STILL, BAD, STILL, OK, BAD], 0.01, None, [Outage(0.5, 1.5), Outage(2.5, 0.5)]),
        ([OK, STILL, OK], 0.01, None, []),  # half a second of silence proves nothing
        ([OK, STILL, STILL, OK], 0.01, None, [Outage(0.5, 1.0)]),
        ([OK, STILL, STILL, OK], 0.5, None, []),  # where a request takes half a second, silence is usual
        ([OK, STILL, STILL, OK], 0.01, 5.0, []),  # and where hardly any start
        ([OK, STILL, STILL, OK], 0.01, 100.0, [Outage(0.5, 1.0)]),
        ([BAD, BAD], 0.0, None, [Outage(0.0, 1.0)]),
        ([], 0.0, None, []),
    ],
)
def test_outages(
    parts: list[tuple[int, int]], median_s: float, rate: float | None, found: list[Outage]
) -> None:
    assert outages(slices(*parts), len(parts) * 0.5, median_s, rate) == found


def test_an_outage_ends_with_the_run() -> None:
    assert outages(slices(OK, BAD), 0.7, 0.01, None) == [Outage(0.5, pytest.approx(0.2))]


def test_availability_counts_requests_and_time() -> None:
    parts = [interval(0.0, 1.0, 9), interval(1.0, 1.0, 0, 1)]
    tally = Tally(9, 9, 9, [Failure("TimedOut", 1, 1.5, "no")], times(*[0.01] * 9).to_plain())
    one = ClientResult(0, 2.0, 0.1, {"download": tally}, {}, None, parts)
    report = Report("2030-01-01", "t", Plan(clients=1), 1, [], False, [one])
    found = summarise(report).availability
    assert found is not None
    assert (found.share, found.without_service_s) == (0.9, 1.0)
    assert "Without service for 1.0 s: 1.0 s at 1.0 s" in to_text(report)


# -- balance and nodes ------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_jains_index(counts: list[int]) -> None:
    found = jain(counts)
    if not any(counts):
        assert found is None
    else:
        assert found is not None and 1 / len(counts) - 1e-9 <= found <= 1 + 1e-9
        if even(counts) == 1:
            assert found == pytest.approx(1)


def test_jains_index_of_one_that_serves_all() -> None:
    assert jain([7, 0, 0, 0]) == 0.25
    assert jain([]) is None


def test_what_a_node_used_is_between_its_first_and_last_sample() -> None:
    samples = [NodeSample(at, at / 2, 100 - at, at * 10, at * 20, at * 30, at * 40) for at in range(5)]
    use = use_of(samples)
    assert use is not None
    assert (use.seconds, use.cpu_share, use.rss_bytes) == (4, 0.5, 100)
    assert (use.read_per_s, use.written_per_s, use.sent_per_s, use.received_per_s) == (10, 20, 30, 40)
    high = [NodeSample(float(at), 0, rss, 0, 0, 0, 0) for at, rss in enumerate((5, 9, 7))]
    assert (found := use_of(high)) and found.rss_bytes == 9
    assert use_of(samples[:1]) is None
    assert use_of([samples[0], samples[0]]) is None


def test_a_node_that_died_appears_as_what_it_was() -> None:
    node = NodeUse("web-2", "webserver", 9, [], [], 3.25, "killed by signal 9")
    report = Report("2030-01-01", "t", Plan(clients=1), 1, [], False, [client()], nodes=[node])
    assert "✗ web-2 (webserver) died 3.2 s after the start: killed by signal 9." in to_text(report)


def test_speed_up_is_by_pages_or_else_by_requests() -> None:
    report = Report("2030-01-01", "t", Plan(clients=1), 1, [], False, [client()])
    report.baseline = Baseline("before", 50.0, 25.0, 1.0)
    assert summarise(report).speed_up == 4.0
    report.baseline = Baseline("before", 50.0, 0.0, 1.0)
    assert summarise(report).speed_up == 2.0
    report.baseline = Baseline("before", 0.0, 0.0, 0.0)
    assert summarise(report).speed_up is None


# -- self-doubt -------------------------------------------------------------------------------


def test_a_generator_with_room_to_spare_measures_the_cluster() -> None:
    found = limit(client(0, 3.0), client(1, 5.0))
    assert found.is_capacity
    assert "busiest process used 50% of a core" in found.because[0]


def test_a_busy_process_is_the_limit() -> None:
    found = limit(client(0, 9.5), client(1, 5.0))
    assert (found.by, found.is_capacity) == ("generator", False)
    assert "1 of 2 client processes used 0.95 of a core" in found.because[0]
    assert "no capacity" in limit_marks(found)[0][1]


@pytest.mark.parametrize(("late_s", "by"), [(0.001, "rate"), (0.02, "generator")])
def test_late_sends_are_the_generators_fault(late_s: float, by: str) -> None:
    late = times(*[0.0001] * 97, *[late_s] * 3)
    assert limit(client(cpu_s=6.0, late=late), rate=100.0).by == by


def test_late_sends_of_a_generator_with_little_to_do_have_another_reason() -> None:
    found = limit(client(cpu_s=1.0, late=times(*[0.0001] * 97, *[0.02] * 3)), rate=100.0)
    assert (found.by, found.is_capacity) == ("threads", False)
    assert "3.0% of requests" in found.because[0] and "little to do" in found.because[0]


def test_a_run_with_a_dead_node_or_of_an_instant_is_no_capacity() -> None:
    died = limit(client(), nodes=[NodeUse("web-2", "webserver", 9, [], [], 3.0)])
    assert (died.by, died.because) == ("nodes", ["Part of the time web-2 did not run."])
    assert limit_marks(died)[0] == ("warn", "No capacity of the whole cluster.")
    short = client(cpu_s=0.1)
    short.elapsed_s = 0.4
    assert limit(short).by == "short"


def test_a_capacity_says_when_nobody_looked_at_the_nodes() -> None:
    assert "not looked at" in limit(client()).because[-1]
    seen = limit(client(), nodes=[NodeUse("web-2", "webserver", 9, [], [])])
    assert "not looked at" not in " ".join(seen.because)


def test_up_to_one_late_send_in_a_hundred_is_forgiven() -> None:
    assert limit(client(late=times(*[0.0001] * 99, 1.0)), rate=100.0).by == "rate"


def test_where_all_threads_wait_the_generator_is_not_to_blame() -> None:
    found = limit(client(late=times(*[0.02] * 100), took_s=0.0395), rate=100.0)
    assert found.by == "threads"
    assert "more threads" in found.because[0]


def test_a_machine_shared_with_the_cluster_and_full_is_the_limit() -> None:
    here = Machine(2, 2**30, "", "", "", "", 0.0)
    samples = [NodeSample(float(at), at * 1.2, 1, 0, 0, 0, 0) for at in range(3)]
    local, remote = NodeUse("w", "webserver", 5, [], samples), NodeUse("w", "webserver", 0, [], samples)
    assert limit(client(cpu_s=7.0), machine=here, nodes=[local]).by == "machine"
    assert limit(client(cpu_s=7.0), machine=here, nodes=[remote]).by == "cluster"
    assert limit(client(cpu_s=5.0), machine=here, nodes=[local]).by == "cluster"


def test_a_machine_that_something_else_kept_busy_is_the_limit() -> None:
    here = Machine(2, 2**30, "", "", "", "", 0.0)
    found = limit(client(cpu_s=7.0), machine=here, machine_cpu_share=0.97)
    assert found.by == "machine"
    assert "busy to 97%" in found.because[0] and "something else the rest" in found.because[0]
    assert limit(client(cpu_s=7.0), machine=here, machine_cpu_share=0.8).is_capacity


def test_a_run_in_which_nothing_succeeded_is_no_capacity() -> None:
    assert limit(ClientResult(0, 1.0, 0.9, {}, {})).by == "nothing"
