"""Several reports: of one load, as one; of two loads, side by side."""

from typing import Any

import pytest
from msgspec.structs import replace

from loadgen.comparing import compare, speed_up
from loadgen.comparing import to_text as comparison_text
from loadgen.histogram import Histogram, from_plain
from loadgen.measured import ClientResult, Machine, NodeSample, NodeUse, Tally
from loadgen.merging import merge
from loadgen.plan import Plan
from loadgen.report import Report, ReportError, from_json, summarise, to_json

NAMES = ("a.json", "b.json")
MACHINE = Machine(2, 1 << 30, "3.11", "Linux", "27", "4.3.5", 0.1)


def report(
    *times_ms: float, elapsed_s: float = 2.0, started: str = "2030-01-01T00:00:00+00:00", **fields: Any
) -> Report:
    times = Histogram()
    for one in times_ms:
        times.record(one / 1000)
    tally = Tally(times.count, times.count * 10, times.count * 1000, [], times.to_plain())
    client = ClientResult(0, elapsed_s, 0.5, {"download": tally}, {"web-1": 10}, turnaround_s=elapsed_s)
    fields.setdefault("plan", Plan(clients=1))
    fields.setdefault("machine", MACHINE)
    return Report(
        started, "test", pages=100, servers=["web-1"], interrupted=False, clients=[client], **fields
    )


def node(name: str, samples: int) -> NodeUse:
    return NodeUse(
        name, "webserver", 7, [], [NodeSample(float(at), at * 0.5, 100, 0, 0, 0, 0) for at in range(samples)]
    )


def test_merged_percentiles_are_of_all_requests() -> None:
    quick, slow = report(*[1.0] * 98), report(*[500.0] * 2, plan=Plan(clients=1, seed=2))
    whole = merge([quick, slow], NAMES)
    summary = summarise(whole)
    assert (summary.together.requests, summary.latencies[0].count) == (100, 100)
    assert summary.latencies[0].percentiles["p90"] == pytest.approx(0.001, rel=0.01)
    assert summary.latencies[0].percentiles["p99"] == pytest.approx(0.5, rel=0.01)
    assert [client.client for client in whole.clients] == [0, 1]
    assert whole.plan.clients == 2
    assert whole.merged[1] == "b.json: 1 client, seed 2, 2 cores, Linux"


def test_a_merged_report_is_a_report() -> None:
    whole = merge([report(1.0), report(2.0)], NAMES)
    again = from_json(to_json(whole))
    assert again.summary == summarise(whole)
    assert merge([again, report(3.0)], NAMES).plan.clients == 3


def test_merging_changes_nothing_of_what_is_merged() -> None:
    first, second = report(1.0), report(2.0)
    before = to_json(first), to_json(second)
    merge([first, second], NAMES)
    assert (to_json(first), to_json(second)) == before


def test_a_machine_that_was_full_is_remembered() -> None:
    busy = [NodeSample(float(at), at * 1.6, 100, 0, 0, 0, 0) for at in range(3)]
    part = report(1.0, nodes=[NodeUse("web-1", "webserver", 7, [], busy)])
    part.clients[0].cpu_s = 1.0
    whole = merge([part, report(2.0)], NAMES)
    limit = summarise(merge([whole, report(3.0)], NAMES)).limit
    assert limit is not None and limit.by == "machine"
    assert len(limit.because) == 1


def test_open_loads_are_merged_to_the_sum_of_their_rates() -> None:
    parts = [report(1.0, plan=Plan(clients=1, rate=rate)) for rate in (100.0, 50.0)]
    assert merge(parts, NAMES).plan.rate == 150.0


def test_a_node_that_both_looked_at_is_one() -> None:
    first, second = (
        report(1.0, nodes=[node("web-1", 3)]),
        report(1.0, nodes=[node("web-1", 9), node("web-2", 2)]),
    )
    whole = merge([first, second], NAMES)
    assert [(one.name, len(one.loaded)) for one in whole.nodes] == [("web-1", 9), ("web-2", 2)]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (report(1.0, plan=Plan(clients=1, threads=9)), "threads is 4 in a.json and 9 in b.json"),
        (report(1.0, plan=Plan(clients=1, rate=5.0)), "an open and a closed one"),
        (report(1.0, started="2030-01-01T00:10:00+00:00"), "started 600 s apart"),
        (report(1.0, started="yesterday"), "no time"),
        (report(1.0, started="2030-01-01T00:00:00"), "no time zone"),
        (report(1.0, warmup_s=3.0), "warmed up"),
    ],
)
def test_what_is_not_one_load_is_not_merged(other: Report, said: str) -> None:
    with pytest.raises(ReportError, match=said) as caught:
        merge([report(1.0), other], NAMES)
    assert "\n" not in str(caught.value)


def test_one_report_is_not_merged_and_too_many_clients_neither() -> None:
    with pytest.raises(ReportError, match="one report alone"):
        merge([report(1.0)], NAMES[:1])
    many = replace(report(1.0), clients=report(1.0).clients * 40)
    with pytest.raises(ReportError, match="at most 64"):
        merge([many, many], NAMES)


def test_a_comparison_says_what_became_better() -> None:
    slow, quick = report(*[10.0] * 100), report(*[5.0] * 100, elapsed_s=1.0)
    found = compare(slow, quick, NAMES)
    changes = {row.name: (row.ratio, row.change) for row in found.rows}
    assert changes["requests/s"] == (2.0, "better")
    ratio, change = changes["download p50, ms"]
    assert (ratio, change) == (pytest.approx(0.5, rel=0.02), "better")
    assert changes["failed"] == (None, "same")
    assert changes["CPU of the generator, cores"][1] == "none"
    assert speed_up(found) == 2.0
    assert not found.caveats
    assert "b.json is 2.00 times as fast as a.json." in comparison_text(found)
    back = {row.name: row.change for row in compare(quick, slow, NAMES).rows}
    assert (back["requests/s"], back["download p50, ms"]) == ("worse", "worse")
    # One request of a hundred is slower than p99: that is judged nothing from.
    assert back["download p99, ms"] == "none"


def test_a_comparison_of_a_run_with_itself_finds_nothing() -> None:
    one = report(*range(1, 50))
    assert {row.change for row in compare(one, one, NAMES).rows} <= {"same", "none"}


def test_a_comparison_says_why_it_is_none() -> None:
    first = report(1.0)
    second = report(1.0, plan=Plan(clients=1, threads=8), machine=replace(MACHINE, cores=4))
    second.clients[0].cpu_s = 1.95
    said = "\n".join(compare(first, second, NAMES).caveats)
    assert "Not the same load, a.json → b.json: threads 4 → 8." in said
    assert "Not the same machine" in said
    assert "b.json is no capacity of the cluster: 1 of 1 client processes used 0.97 of a core" in said


def test_another_seed_is_the_same_load() -> None:
    assert not compare(report(1.0), report(1.0, plan=Plan(clients=1, seed=2)), NAMES).caveats


def test_an_empty_run_is_compared_without_a_fault() -> None:
    empty = replace(report(), clients=[])
    assert speed_up(compare(empty, report(1.0), NAMES)) is None
    assert from_plain(Histogram().to_plain()).count == 0


def test_http_and_zeromq_are_two_ways() -> None:
    first, second = report(1.0), report(1.0, http="http://h:1")
    assert "Not the same way: b.json by HTTP, the other by ZeroMQ." in compare(first, second, NAMES).caveats
    assert "a.json by HTTP" in "".join(compare(second, first, NAMES).caveats)
    with pytest.raises(ReportError, match="by HTTP"):
        merge([first, second], NAMES)


def test_only_jobs_of_a_given_size_are_judged_by_the_time_they_take() -> None:
    def turnaround(**plan: Any) -> str:
        first, second = (report(1.0, elapsed_s=s, plan=Plan(clients=1, **plan)) for s in (2.0, 3.0))
        return next(row.change for row in compare(first, second, NAMES).rows if "turnaround" in row.name)

    assert turnaround() == "worse"
    assert turnaround(duration_s=2.0) == "none"


def test_two_runs_that_differ_by_less_than_noise_are_alike() -> None:
    found = compare(report(*[10.0] * 100), report(*[10.0] * 100, elapsed_s=1.96), NAMES)
    assert {row.name: row.change for row in found.rows}["pages/s"] == "same"
    found = compare(report(*[10.0] * 100), report(*[10.0] * 100, elapsed_s=1.9), NAMES)
    assert {row.name: row.change for row in found.rows}["pages/s"] == "better"


def test_how_busy_one_of_several_machines_was_is_not_told_of_all() -> None:
    assert merge([report(1.0, machine_cpu_share=0.5), report(1.0)], NAMES).machine_cpu_share == 0
