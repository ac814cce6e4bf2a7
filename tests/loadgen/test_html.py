"""The HTML files: whole, self-contained, escaped, sane on reports of every kind; and the charts in them."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import html_report
from loadgen.comparing import compare
from loadgen.histogram import Histogram
from loadgen.html_charts import Axis, Bar, Line, bars, line_chart, linear, logarithmic, nines, text
from loadgen.html_compare import to_html as compared_html
from loadgen.html_report import to_html
from loadgen.measured import (
    BookEntry,
    ClientResult,
    Failure,
    Interval,
    Machine,
    NodeSample,
    NodeUse,
    Tally,
)
from loadgen.plan import Plan
from loadgen.report import Check, Report, from_json, summarise, to_json

HOSTILE = "<script>alert('x')</script>\"'&\x00\x1b[31m"


def times(*milliseconds: float) -> Histogram:
    made = Histogram()
    for time in milliseconds:
        made.record(time / 1000)
    return made


def interval(at_s: float, requests: int, failed: int = 0) -> Interval:
    latency = times(*[5.0] * requests).to_plain()
    return Interval(at_s, 0.5, requests, failed, requests * 10, requests * 1000, latency)


def node(name: str, **fields: Any) -> NodeUse:
    def samples(begin: int, end: int, cpu: float) -> list[NodeSample]:
        return [NodeSample(at / 2, at * cpu, 10**8, 0, at * 1000, 0, 0) for at in range(begin, end)]

    return NodeUse(name, "webserver", 1, samples(-4, 0, 0.01), samples(0, 20, 0.1), **fields)


def report(name: str = "web-1", **fields: Any) -> Report:
    failures = [Failure(f"Timed{name}", 3, 4.2, f"no answer from {name}")]
    tallies = {
        "download": Tally(180, 1800, 180_000, failures, times(*range(1, 181)).to_plain()),
        "upload": Tally(20, 200, 20_000, [], times(*range(1, 21)).to_plain()),
    }
    intervals = [interval(at / 2, 0 if 8 <= at < 11 else 20, 1 if at == 8 else 0) for at in range(20)]
    client = ClientResult(0, 10.0, 3.0, tallies, {name: 2000}, times(0.1).to_plain(), intervals, 10.5)
    fields.setdefault("plan", Plan(clients=1, rate=20.0, request="mixed"))
    fields.setdefault("machine", Machine(64, 2**34, "3.11", name, "27.0", "4.3.5", 0.5))
    return Report(
        "2030-01-01T00:00:00+00:00", "test", pages=100, servers=[name, "web-2"], interrupted=True,
        clients=[client], nodes=[node(name, died_at_s=4.0, note=f"{name} was killed"), node("web-2")],
        book=[BookEntry(name, 12.0, 2000, 10**6, [(f"/{name}", 50, 1000)])], prefix=f"/load/{name}",
        command=["dws-loadgen", "run", "--choice", name], checks=[Check("p99>1s", True, "p99 is 2 ms")],
        **fields,
    )  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text, and whether all that was opened is closed."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(source: str) -> Page:
    """A page that is whole and needs nothing from elsewhere."""
    page = Page(source)
    assert not page.open
    assert source.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not [
        name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "style")
    ]
    assert "url(" not in source and "@import" not in source and "://" not in source.replace("tcp://", "")
    assert not re.search(r"\b(nan|inf)\b", source, re.IGNORECASE)
    return page


def test_a_report_is_one_page_that_says_the_verdict_first() -> None:
    page = checked(to_html(report()))
    for said in (
        "Throughput over time", "Response time over time", "Percentile spectrum", "Share per server",
        "Failures by kind", "CPU of each node", "Memory of each node", "What nodes used", "Load book",
        "To repeat it", "no answer from web-1", "web-1 was killed", "dws-loadgen run --choice web-1",
        "64 cores, 16.0 GiB", "libzmq 4.3.5", "fail if p99>1s: p99 is 2 ms", "Interrupted",
        "open load, 20 requests",
        "Without service for 1.5 s: 1.5 s at 4.0 s",
    ):  # fmt: skip
        assert said in page.text, said
    assert page.text.index("available 98.522%") < page.text.index("Throughput over time")
    assert page.tags.count("svg") >= 2 * 5


def test_outages_and_deaths_are_marked_in_what_runs_over_time() -> None:
    source = to_html(report())
    over_time = source[source.index("Throughput over time") : source.index("Percentile spectrum")]
    for name in ("web-1 died", "1.5 s without service"):
        assert over_time.count(name) >= 4, "in both charts, in both widths"
    assert over_time.count('class="death"') == over_time.count('class="out"') == 4


def test_a_node_that_was_gone_for_a_while_leaves_a_gap() -> None:
    def lines(gone: bool) -> int:
        one = node("web-1")
        one.loaded = [sample for sample in one.loaded if not (gone and 2 < sample.at_s < 6)]
        made = to_html(Report("", "", Plan(), 0, [], False, [], nodes=[one]))
        memory = made[made.index("Memory of each node") :].split("</svg>")[0]
        path = re.search(r'<path class="line[^>]* d="([^"]*)"', memory)
        assert path
        return path[1].count("M")

    assert (lines(gone=False), lines(gone=True)) == (1, 2)


def test_names_and_failures_are_only_ever_text() -> None:
    source = to_html(report(HOSTILE))
    page = checked(source)
    assert "<script" not in source and "\x00" not in source and "\x1b" not in source
    assert page.text.count("<script>alert('x')</script>") >= 6
    comparison = compare(report(HOSTILE), report(), (HOSTILE, "b"))
    assert "<script" not in compared_html(comparison, report(HOSTILE), report())


@pytest.mark.parametrize(
    "bare",
    [
        Report("", "", Plan(clients=1), 0, [], False, []),
        Report("", "", Plan(clients=1), 0, [], True, [ClientResult(0, 0.0, 0.0, {}, {})]),
        Report("", "", Plan(), 1, ["a"], False, [ClientResult(0, 1e-9, 0, {}, {}, None, [interval(0.0, 1)])]),
        Report("", "", Plan(), 1, ["a"], False, [ClientResult(0, 1, 0, {}, {}, None, [interval(0.0, 0, 5)])]),
        Report("", "", Plan(), 1, [], False, [], nodes=[NodeUse("x", "y", 0, [], [])]),
        Report("", "", Plan(), 1, [], False, [],
               nodes=[NodeUse("x", "y", 0, [], [NodeSample(1.0, 0, 0, 0, 0, 0, 0)] * 3)]),
    ],
)  # fmt: skip
def test_reports_with_little_in_them(bare: Report) -> None:
    checked(to_html(bare))
    checked(to_html(from_json(to_json(bare))))
    checked(compared_html(compare(bare, bare, ("a", "b")), bare, bare))


def test_a_title_is_the_run_in_one_line() -> None:
    assert html_report.title(summarise(report())) == "200 pages a second, 3 of 203 failed"
    assert html_report.title(summarise(Report("", "", Plan(), 0, [], False, []))) == "No request was made"


def test_a_sliver_at_the_end_of_a_run_is_no_slice_of_a_chart() -> None:
    whole = report()
    assert len(html_report.slices_of(whole)) == 20
    whole.clients[0].elapsed_s = 9.6
    assert len(html_report.slices_of(whole)) == 19


def test_what_became_better_or_worse_has_its_colour() -> None:
    slow = report()
    slow.clients[0].elapsed_s = 20.0
    source = compared_html(compare(report(), slow, ("a", "b")), report(), slow)
    assert '<td class="l worse">worse</td>' in source and '<td class="l">≈</td>' in source


def test_a_comparison_is_one_page() -> None:
    first, second = report(), report("web-9")
    page = checked(compared_html(compare(first, second, ("a.json", "b.json")), first, second))
    assert "b.json is about as fast as a.json: 1.00 times" in page.text
    assert "Not the same machine" in page.text


# -- charts ------------------------------------------------------------------------------------


FINITE = st.floats(0, 1e15, allow_nan=False)


@given(st.lists(FINITE, max_size=5), st.integers(1, 10))
def test_a_linear_axis_holds_all_values(values: list[float], ticks: int) -> None:
    axis = linear(values, str, ticks)
    assert axis.high > axis.low
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert max(values, default=0.0) <= axis.high * (1 + 1e-9)
    assert 2 <= len(axis.ticks) <= ticks + 2


@given(st.lists(st.floats(1e-9, 1e9), max_size=5))
def test_a_logarithmic_axis_holds_all_values(values: list[float]) -> None:
    axis = logarithmic(values, str)
    assert all(axis.low * 0.999 <= value <= axis.high * 1.001 for value in values)
    assert all(axis.low * 0.999 <= place <= axis.high * 1.001 for place, _ in axis.ticks)
    assert 0 == axis.place(axis.low) < axis.place(axis.high) == 1


def test_nines_are_further_apart_the_rarer_they_are() -> None:
    axis = nines(1000.0)
    assert [said for _, said in axis.ticks] == ["p0", "p50", "p90", "p99", "p99.9"]
    assert axis.place(10) == pytest.approx(1 / 3)


@given(st.lists(st.tuples(FINITE, st.none() | FINITE), max_size=30))
def test_a_line_never_leaves_the_chart(points: list[tuple[float, float | None]]) -> None:
    axis = Axis(0.0, 10.0, [(0.0, "0"), (10.0, "10")])
    drawn = line_chart("t", [Line("l", points, filled=True)], axis, axis)
    for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", drawn):
        assert 0 <= float(x) <= 720 and 0 <= float(y) <= 230
    assert "e+" not in drawn


def test_a_gap_breaks_a_line_and_a_lonely_point_is_a_dot() -> None:
    axis = linear([10.0], str)
    drawn = line_chart("t", [Line("l", [(0, 1), (1, 2), (2, None), (3, 1), (4, None)])], axis, axis)
    narrow = drawn.split("</svg>")[0]
    assert narrow.count("<path") == 1 and narrow.count("<circle") == 1


def test_bars_are_escaped_and_never_longer_than_full() -> None:
    drawn = bars("t", [Bar('<b>"', 5.0, "5 & 6"), Bar("b", -1.0, "")], most=2.0)
    assert "&lt;b&gt;&quot;" in drawn and "5 &amp; 6" in drawn
    assert re.findall(r'width="([\d.]+)"', drawn) == ["100", "100.00", "100", "0.00"]


def test_control_characters_are_made_visible() -> None:
    assert text("a\x07b\u202e") == "a�b�"
