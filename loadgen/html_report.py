"""A report as one HTML file: verdict first, then charts, then tables, then how to repeat it.

What lives here: which figures are shown and how. What must not: figures that are not in the report (analysis,
timeline), how charts are drawn (html_charts), how the page looks (html_page), files.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from statistics import median
from typing import Final

from loadgen import html_page
from loadgen.analysis import Summary, response_times
from loadgen.histogram import Histogram
from loadgen.html_charts import (
    Axis,
    Band,
    Bar,
    Line,
    Point,
    bars,
    legend,
    line_chart,
    linear,
    logarithmic,
    nines,
    style,
    text,
)
from loadgen.html_page import figure, html_table, pair, repeat, section, tiles
from loadgen.measured import NodeSample, NodeUse
from loadgen.report import Report, summarise
from loadgen.text import (
    died_text,
    headline,
    latency_rows,
    node_notes,
    rates_rows,
    shortened,
    use_cells,
    verdict,
)
from loadgen.timeline import Slice, coarser, timeline

_SLICES_MAX: Final = 120
_HOT_MAX: Final = 3
_STEPS: Final = 100
#: Samples so many times as far apart as usual: nobody looked, or nobody was there.
_FAR: Final = 3
_OVER_TIME: Final = (50.0, 90.0, 99.0, 100.0)


def to_html(report: Report) -> str:
    """The whole file."""
    summary = report.summary or summarise(report)
    end_s = summary.together.elapsed_s
    slices, marks = slices_of(report), troubles(summary)
    parts = [
        html_page.head(
            f"dws-loadgen · {report.started}", title(summary), headline(report).split("\n")[0] + "."
        ),
        html_page.verdict_list(verdict(report, summary)),
        tiles(_tiles(summary)),
        _throughput(slices, end_s, marks),
        _times_over_time(slices, end_s, marks),
        _spectrum(report),
        _shares(summary),
        _failures(summary),
        _nodes(report, summary),
        _latency_table(summary),
        _clients_table(summary),
        _book(report),
        _repeat(report),
    ]
    return html_page.page(title(summary), "".join(parts))


def slices_of(report: Report) -> list[Slice]:
    """The run over time, in as many slices as a chart shows. A sliver at its end would be noise."""
    end_s = max((client.elapsed_s for client in report.clients), default=0.0)
    slices = coarser(timeline(report.clients), _SLICES_MAX)
    return [one for one in slices if length_s(one, end_s) > one.width_s / 4] or slices[:1]


def length_s(one: Slice, end_s: float) -> float:
    """How long a slice really was: the last may be cut short by the run's end."""
    return min(one.width_s, max(end_s - one.at_s, 0.0))


def title(summary: Summary) -> str:
    """The run in one line."""
    together = summary.together
    total = together.requests + together.failed
    if not total:
        return "No request was made"
    failed = "none failed" if not together.failed else f"{together.failed:,} of {total:,} failed"
    if together.pages:
        return f"{together.pages_per_s:,.0f} pages a second, {failed}"
    return f"{together.requests_per_s:,.0f} requests a second, {failed}"


def _tiles(summary: Summary) -> list[tuple[str, str, str, bool]]:
    together, available = summary.together, summary.availability
    rows = [
        ("throughput", f"{together.requests_per_s:,.0f}", "requests/s", False),
        ("pages", f"{together.pages_per_s:,.0f}", "pages/s", False),
        ("data", f"{together.bytes_per_s / 1e6:,.1f}", "MB/s", False),
    ]
    for one in summary.latencies[:2]:
        kind = f" {one.kind}" if len(summary.latencies) > 1 else ""
        rows.append((f"median{kind}", *_time(one.percentiles["p50"]), False))
        rows.append((f"p99{kind}", *_time(one.percentiles["p99"]), False))
    share = available.share if available else None
    rows.append(
        ("available", "–" if share is None else f"{share:.3%}".replace("100.000%", "100%"), "", share != 1)
    )
    if available and available.outages:
        rows.append(("without service", f"{available.without_service_s:.1f}", "s", True))
    if summary.fairness is not None:
        rows.append(("balance, Jain's index", f"{summary.fairness:.3f}", "", False))
    if summary.speed_up is not None:
        rows.append(("speed-up", f"{summary.speed_up:.2f}", "×", False))
    rows.append(("time measured", f"{together.elapsed_s:,.1f}", "s", False))
    return rows


def _time(time_s: float) -> tuple[str, str]:
    return (f"{time_s:,.2f}", "s") if time_s >= 1 else (f"{time_s * 1000:,.2f}", "ms")


# -- charts ------------------------------------------------------------------------------------


def troubles(summary: Summary) -> list[Band]:
    """Outages and deaths, as marks on what runs over time."""
    outages = summary.availability.outages if summary.availability else []
    found = [
        Band(one.at_s, one.at_s + one.for_s, f"{one.for_s:.1f} s without service", "out") for one in outages
    ]
    return found + [
        Band(node.died_at_s, node.died_at_s, died_text(node), "death", f"{shortened(node.name, 16)} died")
        for node in summary.nodes
        if node.died_at_s is not None
    ]


def _throughput(slices: Sequence[Slice], end_s: float, marks: Sequence[Band]) -> str:
    if not slices:
        return ""
    spans = [(one, length_s(one, end_s)) for one in slices]
    done = Line("requests a second", [_rate(one, span_s, one.requests) for one, span_s in spans], "s1", True)
    lines = [done]
    if any(one.failed for one in slices):
        failed = [_rate(one, span_s, one.failed) for one, span_s in spans]
        lines.append(Line("failed a second", failed, "fail"))
    told = [Band(one.at_s, one.at_s + span_s, _slice_said(one, span_s)) for one, span_s in spans]
    y = linear([value or 0.0 for line in lines for _, value in line.points], "{:,.6g}".format)
    chart = line_chart("Requests a second over time", lines, _time_axis(slices, end_s), y, [*told, *marks])
    caption = f"Requests a second, in slices of {slices[0].width_s:g} s; seconds from the start."
    return figure("Throughput over time", caption, chart + (legend(lines) if len(lines) > 1 else ""))


def _rate(one: Slice, span_s: float, count: int) -> tuple[float, float | None]:
    return one.at_s + span_s / 2, count / span_s if span_s > 0 else None


def _slice_said(one: Slice, span_s: float) -> str:
    span_s = span_s or 1.0
    said = f"{one.at_s:.1f} s: {one.requests / span_s:,.0f} requests/s, {one.pages / span_s:,.0f} pages/s, "
    return f"{said}{one.bytes / span_s / 1e6:,.1f} MB/s, {one.failed:,} failed"


def _times_over_time(slices: Sequence[Slice], end_s: float, marks: Sequence[Band]) -> str:
    if not any(one.requests for one in slices):
        return ""
    names = {50.0: "median", 90.0: "p90", 99.0: "p99", 100.0: "max"}
    lines = [
        Line(
            names[percent],
            [(one.at_s + one.width_s / 2, _in_ms(one.percentile(percent))) for one in slices],
            style(number),
        )
        for number, percent in enumerate(_OVER_TIME)
    ]
    told = [Band(one.at_s, one.at_s + one.width_s, _times_said(one)) for one in slices if one.requests]
    y = logarithmic([value for line in lines for _, value in line.points if value], plain)
    chart = line_chart("Response time over time", lines, _time_axis(slices, end_s), y, [*told, *marks])
    caption = "Milliseconds, on a logarithmic scale; of the requests that ended in each slice."
    return figure("Response time over time", caption, chart + legend(lines))


def _times_said(one: Slice) -> str:
    times = ", ".join(
        f"p{percent:g} {_in_ms(one.percentile(percent)) or 0:,.2f} ms" for percent in _OVER_TIME
    )
    return f"{one.at_s:.1f} s: {times}".replace("p100", "max")


def _time_axis(slices: Sequence[Slice], end_s: float) -> Axis:
    whole = linear([end_s or slices[-1].at_s + slices[-1].width_s], "{:g} s".format, ticks=8)
    return Axis(0.0, end_s or whole.high, [tick for tick in whole.ticks if tick[0] <= (end_s or whole.high)])


def _spectrum(report: Report) -> str:
    kinds = sorted({kind for client in report.clients for kind in client.tallies})
    found = [(kind, response_times(report.clients, kind)) for kind in kinds]
    lines = [
        Line(kind, percentile_points(times), style(number))
        for number, (kind, times) in enumerate(found)
        if times.count
    ]
    if not lines:
        return ""
    most = max(times.count for _, times in found)
    y = logarithmic([value for line in lines for _, value in line.points if value], plain)
    chart = line_chart("Response time by percentile", lines, nines(float(most)), y)
    caption = "Milliseconds, logarithmic; to the right the ever rarer, slower requests."
    return figure("Percentile spectrum", caption, chart + (legend(lines) if len(lines) > 1 else ""))


def percentile_points(times: Histogram) -> list[Point]:
    """From the fastest on, at 1/(1 − p) in even steps of its logarithm, as far as there are requests."""
    last = log10(max(10, times.count))
    steps = [10 ** (last * step / _STEPS) for step in range(_STEPS + 1)]
    return [(place, times.percentile(100 * (1 - 1 / place)) * 1000) for place in steps]


def _shares(summary: Summary) -> str:
    if summary.spread is None:
        return ""
    rows = [
        Bar(one.server, one.share, f"{one.share:.1%} · {one.pages:,}", style(0)) for one in summary.servers
    ]
    jain = "" if summary.fairness is None else f", Jain’s index {summary.fairness:.4f}"
    caption = f"Of the pages delivered. The busiest served {summary.spread:.3f} times the mean{jain}."
    return figure("Share per server", caption, bars("Share per server", rows))


def _failures(summary: Summary) -> str:
    if not summary.failures:
        return ""
    parts = []
    most = float(max(one.count for one in summary.failures))
    for one in summary.failures:
        parts.append(bars(one.kind, [Bar(one.kind, float(one.count), f"{one.count:,}", "fail")], most))
        parts.append(f'<p class="quote">the first, after {one.at_s:.2f} s: {text(one.first)}</p>')
    return figure("Failures by kind", "", "".join(parts))


# -- nodes ---------------------------------------------------------------------------------------


def _nodes(report: Report, summary: Summary) -> str:
    if not summary.nodes:
        return ""
    rows: list[tuple[str, ...]] = [
        ("node", "role", "", "CPU", "RSS MB", "read MB/s", "written MB/s", "sent MB/s", "received MB/s")
    ]
    for node in summary.nodes:
        rows.append((node.name, node.role, "idle", *use_cells(node.idle)))
        rows.append(("", "", "loaded", *use_cells(node.loaded)))
    notes = "".join(f'<p class="sub">{text(note)}</p>' for note in node_notes(summary.nodes))
    charts = [_node_chart(report.nodes, *which) for which in _NODE_CHARTS]
    table = section(
        "What nodes used",
        html_table(rows, left=(0, 1, 2)) + notes,
        "CPU: 100% is a core. Without load, and under it.",
    )
    return (pair(*charts) if all(charts) else "") + table


def _node_chart(
    nodes: Sequence[NodeUse], name: str, caption: str, which: Callable[[NodeUse], list[Point]]
) -> str:
    shown = [(node, which(node)) for node in nodes]
    lines = [Line(node.name, points, style(at)) for at, (node, points) in enumerate(shown) if points]
    if not lines:
        return ""
    places = [x for line in lines for x, _ in line.points]
    low, high = min(places), max(places)
    step = linear([high - low], str, ticks=6).ticks[1][0]
    ticks = [
        (step * number, f"{step * number:g} s") for number in range(ceil(low / step), floor(high / step) + 1)
    ]
    y = linear([value or 0.0 for line in lines for _, value in line.points], "{:,.6g}".format)
    return figure(name, caption, line_chart(name, lines, Axis(low, high, ticks), y) + legend(lines))


def _cpu_points(node: NodeUse) -> list[Point]:
    """Between samples. Where these are hardly apart the share would be noise."""
    points: list[Point] = []
    for samples in (node.idle, node.loaded):
        for one, two, usual_s in _steps(samples):
            took_s, at_s = two.at_s - one.at_s, (one.at_s + two.at_s) / 2
            if took_s > _FAR * usual_s:
                points.append((at_s, None))
            elif took_s > usual_s / 2:
                points.append((at_s, 100 * max(0.0, two.cpu_s - one.cpu_s) / took_s))
        points.append((samples[-1].at_s if samples else 0.0, None))
    return points if any(value is not None for _, value in points) else []


def _memory_points(node: NodeUse) -> list[Point]:
    points: list[Point] = []
    for samples in (node.idle, node.loaded):
        points += [(one.at_s, one.rss_bytes / 1e6) for one in samples[:1]]
        for one, two, usual_s in _steps(samples):
            if two.at_s - one.at_s > _FAR * usual_s:
                points.append((one.at_s, None))
            points.append((two.at_s, two.rss_bytes / 1e6))
    return points


def _steps(samples: Sequence[NodeSample]) -> list[tuple[NodeSample, NodeSample, float]]:
    """(a sample, the next one, how far apart two samples usually are)."""
    pairs = list(pairwise(samples))
    usual_s = median(two.at_s - one.at_s for one, two in pairs) if pairs else 0.0
    return [(one, two, usual_s) for one, two in pairs]


_NODE_CHARTS: Final = (
    ("CPU of each node", "Percent of a core; before 0 s without load.", _cpu_points),
    ("Memory of each node", "Resident, in MB.", _memory_points),
)


# -- tables ----------------------------------------------------------------------------------------


def _latency_table(summary: Summary) -> str:
    if not summary.latencies:
        return ""
    since = (
        "its intended start: a stall counts for all that should have started in it"
        if summary.late
        else "its start"
    )
    caption = f"In milliseconds, of each request, from {since}."
    return section("Response times", html_table(latency_rows(summary)), caption)


def _clients_table(summary: Summary) -> str:
    whole = f"The whole job took {summary.turnaround_s:.2f} s." if summary.turnaround_s else ""
    return section("Client processes", html_table(rates_rows(summary)), whole)


def _book(report: Report) -> str:
    if not report.book:
        return ""
    rows = [("server", "period so far", "visits", "MB", "most wanted")]
    for one in report.book:
        hot = ", ".join(f"{shortened(name, 40)} {visits:,}×" for name, visits, _ in one.hot[:_HOT_MAX])
        rows.append(
            (one.server, f"{one.period_age_s:.1f} s", f"{one.visits:,}", f"{one.bytes / 1e6:,.1f}", hot)
        )
    return section(
        "Load book", html_table(rows, left=(0, 4), wrap=(4,)), "What each server counted in its period."
    )


def _repeat(report: Report) -> str:
    machine = report.machine
    rows = [("made by", report.made_by), ("started", report.started), ("seed", str(report.plan.seed))]
    if machine:
        rows += [
            ("machine", f"{machine.cores} cores, {machine.memory_bytes / 2**30:.1f} GiB, {machine.platform}"),
            ("Python", machine.python),
            ("ZeroMQ", f"libzmq {machine.libzmq}, pyzmq {machine.pyzmq}"),
            ("busy", f"{report.machine_cpu_share:.0%} of the machine, by whatever ran there"),
            ("load before", f"{machine.load_average:.2f} processes"),
        ]
    rows += [("merged from", one) for one in report.merged]
    return repeat(rows, report.command)


def _in_ms(time_s: float | None) -> float | None:
    return None if time_s is None else time_s * 1000


def plain(value: float) -> str:
    return f"{value:,.6g}"
