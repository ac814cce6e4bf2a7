"""What is concluded from measurements, and how it is written."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis import even, server_shares
from loadgen.histogram import Histogram
from loadgen.plan import Plan
from loadgen.report import (
    SCHEMA,
    Check,
    ClientResult,
    Failure,
    Report,
    ReportError,
    Tally,
    from_json,
    merge_failures,
    summarise,
    to_json,
)
from loadgen.text import table, to_text


def times(*milliseconds: float) -> Histogram:
    made = Histogram()
    for time in milliseconds:
        made.record(time / 1000)
    return made


def tally(requests: int = 3, failures: list[Failure] | None = None, **fields: Any) -> Tally:
    latency = times(*range(1, requests + 1)).to_plain()
    return Tally(requests, requests * 10, requests * 1000, failures or [], latency, **fields)


def client(number: int, elapsed_s: float = 2.0, **fields: Any) -> ClientResult:
    fields.setdefault("tallies", {"download": tally()})
    fields.setdefault("served", {"web-1": 20, "web-2": 10})
    return ClientResult(number, elapsed_s, 0.5, **fields)


def report(*clients: ClientResult, **fields: Any) -> Report:
    fields.setdefault("plan", Plan(clients=max(1, len(clients))))
    fields.setdefault("servers", ["web-1", "web-2"])
    fields.setdefault("interrupted", False)
    return Report("2030-01-01T00:00:00+00:00", "test", pages=100, clients=list(clients), **fields)


def test_rates_are_over_the_clients_time_and_together_over_the_longest() -> None:
    summary = summarise(report(client(0, 2.0), client(1, 4.0)))
    assert [one.requests_per_s for one in summary.clients] == [1.5, 0.75]
    together = summary.together
    assert (together.requests, together.pages, together.bytes, together.elapsed_s) == (6, 60, 6000, 4.0)
    assert (together.requests_per_s, together.pages_per_s, together.bytes_per_s) == (1.5, 15.0, 1500.0)
    assert (together.cpu_share, together.client) == (0.25, None)


def test_latencies_of_each_kind_are_merged_over_clients() -> None:
    mixed = {"download": tally(), "upload": tally(1)}
    summary = summarise(report(client(0, tallies=mixed), client(1)))
    assert [(one.kind, one.count) for one in summary.latencies] == [("download", 6), ("upload", 1)]
    assert summary.latencies[0].max_s == 0.003
    assert list(summary.latencies[0].percentiles) == ["p50", "p90", "p95", "p99", "p99.9", "p99.99"]
    assert summary.latencies[0].percentiles["p50"] == pytest.approx(0.002, rel=0.01)


def test_failures_of_a_kind_are_one_with_the_earliest_example() -> None:
    found = merge_failures(
        [
            Failure("TimedOut", 2, 5.0, "late"),
            Failure("NotFound", 1, 1.0, "no"),
            Failure("TimedOut", 1, 3.0, "early"),
        ]
    )
    assert found == [Failure("TimedOut", 3, 3.0, "early"), Failure("NotFound", 1, 1.0, "no")]


def test_merging_failures_leaves_what_was_measured_alone() -> None:
    measured = [Failure("TimedOut", 2, 5.0, "a"), Failure("TimedOut", 2, 4.0, "b")]
    assert merge_failures(measured) == merge_failures(measured)


def test_a_server_that_served_nothing_counts_in_the_mean() -> None:
    shares = server_shares(["web-1", "web-2", "web-3"], [{"web-1": 30}, {"web-2": 30}])
    assert [(one.server, one.pages, one.share, one.over_mean) for one in shares] == [
        ("web-1", 30, 0.5, 1.5),
        ("web-2", 30, 0.5, 1.5),
        ("web-3", 0, 0.0, 0.0),
    ]


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 10**6), min_size=1))
def test_shares_add_up(served: dict[str, int]) -> None:
    shares = server_shares([], [served])
    if any(served.values()):
        assert sum(one.share for one in shares) == pytest.approx(1)
        assert sum(one.over_mean for one in shares) == pytest.approx(len(shares))
        assert max(one.over_mean for one in shares) == pytest.approx(even(list(served.values())))
    else:
        assert all(one.share == one.over_mean == 0 for one in shares)


def test_the_spread_is_the_busiest_servers_and_none_without_downloads() -> None:
    assert summarise(report(client(0))).spread == pytest.approx(20 / 15)
    assert summarise(report(client(0, served={}))).spread is None
    assert summarise(report(client(0, served={}), servers=[])).spread is None


def test_no_request_at_all_is_reported_without_a_fault() -> None:
    nothing = report(client(0, 0.0, tallies={}, served={}), interrupted=True)
    assert summarise(nothing).together.requests_per_s == 0
    assert "no request was made" in to_text(nothing)
    text = to_text(nothing)
    assert "Interrupted before a request was made: nothing was measured." in text
    assert "No request" not in text and "✗" not in text


def test_json_and_back() -> None:
    failed = tally(failures=[Failure("TimedOut", 2, 1.5, "no answer")])
    whole = report(client(0, tallies={"download": failed}, late=times(0.1).to_plain()))
    text = to_json(whole)
    read = from_json(text)
    assert read.summary == summarise(whole)
    assert summarise(read) == read.summary, "the summary can be worked out again from what is in the file"
    assert to_text(read) == to_text(whole)


def test_the_fields_that_scripts_read() -> None:
    plain = msgspec.json.decode(to_json(report(client(0))))
    assert plain["schema"] == SCHEMA == 2
    assert set(plain) == {
        "schema", "started", "made_by", "plan", "pages", "servers", "interrupted", "clients", "prefix",
        "http", "summary", "nodes", "book", "machine", "command", "generator_cpu_share",
        "machine_cpu_share", "warmup_s", "baseline", "checks", "merged", "doubts",
    }  # fmt: skip
    assert set(plain["summary"]) == {
        "clients", "together", "latencies", "failures", "servers", "spread", "late", "skipped",
        "fairness", "availability", "turnaround_s", "nodes", "speed_up", "limit",
    }  # fmt: skip
    assert set(plain["summary"]["together"]) == {
        "client", "requests", "pages", "bytes", "failed", "elapsed_s", "cpu_share", "requests_per_s",
        "pages_per_s", "bytes_per_s",
    }  # fmt: skip


#: Each struct of a report and its fields. A change that programs must know of raises SCHEMA.
SHAPES = {
    "Availability": "share without_service_s outages",
    "Baseline": "name requests_per_s pages_per_s bytes_per_s caveats",
    "BookEntry": "server period_age_s visits bytes hot",
    "Check": "text passed said must",
    "ClientResult": "client elapsed_s cpu_s tallies served late intervals turnaround_s",
    "Failure": "kind count at_s first",
    "Interval": "at_s width_s requests failed pages bytes latency",
    "Latency": "kind count mean_s percentiles max_s",
    "Limit": "by because",
    "Machine": "cores memory_bytes python platform pyzmq libzmq load_average",
    "NodeFigures": "name role idle loaded died_at_s note",
    "NodeSample": "at_s cpu_s rss_bytes read_bytes written_bytes sent_bytes received_bytes",
    "NodeUse": "name role pid idle loaded died_at_s note",
    "Outage": "at_s for_s",
    "Plain": "count total_s least_s most_s buckets ratio shortest_s",
    "Rates": "client requests pages bytes failed elapsed_s cpu_share requests_per_s pages_per_s bytes_per_s",
    "ServerShare": "server pages share over_mean",
    "Tally": "requests pages bytes failures latency skipped",
    "Use": "seconds cpu_share rss_bytes read_per_s written_per_s sent_per_s received_per_s",
}

#: As version 1 of the schema wrote it.
SCHEMA_1 = b"""{"started": "2030-01-01T00:00:00+00:00", "made_by": "dws-loadgen 0.1.0",
"plan": {"request": "download", "count": 1, "duration_s": null, "clients": 1, "threads": 4, "files": 10,
         "rate": null, "choice": "uniform", "size_bytes": 4096, "seed": 1},
"pages": 100, "servers": ["web-1"], "interrupted": false, "clients": [{"client": 0, "elapsed_s": 2.0,
  "cpu_s": 0.5, "tallies": {"download": {"requests": 1, "pages": 10, "bytes": 1000, "failures": [],
    "latency": {"count": 1, "total_s": 0.001, "least_s": 0.001, "most_s": 0.001, "buckets": [[465, 1]],
                "ratio": 1.02, "shortest_s": 1e-07}, "skipped": 0}},
  "served": {"web-1": 10}, "late": null}], "prefix": "", "summary": {"clients": [],
  "together": {"client": null, "requests": 1, "pages": 10, "bytes": 1000, "failed": 0, "elapsed_s": 2.0,
    "cpu_share": 0.25, "requests_per_s": 0.5, "pages_per_s": 5.0, "bytes_per_s": 500.0},
  "latencies": [], "failures": [], "servers": [], "spread": 1.0, "late": null, "skipped": 0}, "schema": 1}"""


def test_the_shape_of_every_part() -> None:
    found = msgspec.json.schema(Report)["$defs"]
    shapes = {name: " ".join(one["properties"]) for name, one in found.items()}
    assert {name: shapes[name] for name in SHAPES} == SHAPES
    assert set(shapes) - set(SHAPES) == {"Plan", "Report", "Summary"}


def test_a_report_of_schema_1_is_read_and_worked_out_anew() -> None:
    old = from_json(SCHEMA_1)
    assert old.schema == 1
    assert old.summary is not None and old.summary.limit is not None
    assert old.summary.together.pages_per_s == 5.0
    assert old.summary.latencies[0].percentiles["p99.99"] == 0.001
    assert "1 client × 4 threads" in to_text(old)


@pytest.mark.parametrize(
    "wrong",
    [
        SCHEMA_1.replace(b"[[465, 1]]", b"[[99999, 1]]"),
        SCHEMA_1.replace(b"[[465, 1]]", b"[[465, 7]]"),
        SCHEMA_1.replace(b"[[465, 1]]", b"[[465, -1]]"),
        SCHEMA_1.replace(b'"ratio": 1.02', b'"ratio": 1.5'),
        SCHEMA_1.replace(b'"threads": 4', b'"threads": 0'),
        SCHEMA_1.replace(b'"clients": 1', b'"clients": "x"'),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(wrong: bytes) -> None:
    with pytest.raises(ReportError) as caught:
        from_json(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"schema": 3}', "schema 3; this version reads schemas 1 to 2"),
        (b'{"schema": 1}', "not a report"),
        (b"{}", "not a report"),
        (b"[1]", "not a report"),
        (b"", "not a report"),
        (b"\xff\xfe", "not a report"),
    ],
)
def test_what_is_no_report_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(ReportError, match=said):
        from_json(text)


def test_the_text_says_what_the_load_was() -> None:
    closed = to_text(report(client(0), client(1)))
    assert "download, closed load: 2 clients × 4 threads, 10 pages a request" in closed
    assert "from its start" in closed
    assert "Failures: none." in closed
    assert "the busiest served 1.333 times the mean" in closed
    opened = to_text(report(client(0, late=times(0.1, 0.2).to_plain()), plan=Plan(rate=50.0, clients=1)))
    assert "open load, 50 requests a second: 1 client × 4 threads" in opened
    assert "from its intended start" in opened
    assert "sent late by" in opened


def test_the_text_names_failures_and_their_first_example() -> None:
    failed = tally(failures=[Failure("TimedOut", 2, 1.5, "no answer")])
    failing = report(client(0, tallies={"download": failed}))
    assert "Failures: 2 of 5 requests.\n  2 × TimedOut; the first after 1.50 s: no answer" in to_text(failing)


def test_uploads_have_no_table_of_servers_and_tell_what_was_skipped() -> None:
    uploading = client(0, served={}, tallies={"upload": tally(skipped=7)})
    text = to_text(report(uploading, plan=Plan(request="upload")))
    assert "served by" not in text
    assert "7 pages of uploads were not sent" in text


def test_the_text_fits_on_a_screen() -> None:
    assert max(map(len, to_text(report(client(0), client(1))).splitlines())) <= 100


def test_a_table_has_its_figures_under_their_headings() -> None:
    assert table([("", "pages", "MB"), ("web-1", "1,000", "2"), ("w", "5", "10")]) == (
        "         pages  MB\n  web-1  1,000   2\n  w          5  10"
    )


def test_a_check_that_is_only_wished_for_is_no_failure() -> None:
    wished = Check("as fast as that", False, must=False)
    said = to_text(report(client(0), checks=[Check("all is there", True), wished]))
    assert "✓ Passed: 1 check." in said and "· not reached: as fast as that" in said
    said = to_text(report(client(0), checks=[Check("all is there", False), wished]))
    assert "✗ Failed: 1 of 1 check." in said
