"""Two runs side by side as one HTML file: what changed, then both in the same charts.

What lives here: which figures are shown and how. What must not: what changed (comparing), how charts are
drawn (html_charts), files.
"""

from loadgen import html_page
from loadgen.analysis import response_times
from loadgen.comparing import Comparison, cells, conclusion
from loadgen.html_charts import Axis, Line, Point, legend, line_chart, linear, logarithmic, nines, style
from loadgen.html_page import facts, figure, html_table, section
from loadgen.html_report import length_s, percentile_points, plain, slices_of
from loadgen.report import Report, summarise
from loadgen.text import headline


def to_html(comparison: Comparison, first: Report, second: Report) -> str:
    """The whole file."""
    names, reports = comparison.names, (first, second)
    title = conclusion(comparison).rstrip(".")
    marks = [("warn", caveat) for caveat in comparison.caveats] or [
        ("ok", "The same load, on the same machine; neither run was limited by its generator.")
    ]
    loads = [(name, headline(report).split("\n")[0]) for name, report in zip(names, reports, strict=True)]
    parts = [
        html_page.head("dws-loadgen · comparison", title, f"{first.started} and {second.started}"),
        html_page.verdict_list(marks),
        section("The figures", html_table(cells(comparison), left=(0, 4))),
        _over_time("Requests a second over time", names, reports),
        _spectrum(names, reports),
        section("The loads", facts(loads)),
    ]
    return html_page.page(title, "".join(parts))


def _over_time(title: str, names: tuple[str, str], reports: tuple[Report, Report]) -> str:
    lines = [
        Line(name, [(at_s, rate) for at_s, rate in _rates(report)], style(number))
        for number, (name, report) in enumerate(zip(names, reports, strict=True))
    ]
    if not all(line.points for line in lines):
        return ""
    end_s = max(line.points[-1][0] for line in lines)
    times = linear([end_s], "{:g} s".format, ticks=8)
    x = Axis(0.0, end_s, [tick for tick in times.ticks if tick[0] <= end_s])
    chart = line_chart(title, lines, x, linear(_values(lines), plain))
    return figure("Throughput over time", "Requests a second.", chart + legend(lines))


def _rates(report: Report) -> list[Point]:
    end_s = summarise(report).together.elapsed_s
    spans = [(one, length_s(one, end_s)) for one in slices_of(report)]
    return [(one.at_s + took_s / 2, one.requests / took_s) for one, took_s in spans if took_s > 0]


def _spectrum(names: tuple[str, str], reports: tuple[Report, Report]) -> str:
    times = [response_times(report.clients) for report in reports]
    if not all(one.count for one in times):
        return ""
    lines = [
        Line(name, percentile_points(one), style(number))
        for number, (name, one) in enumerate(zip(names, times, strict=True))
    ]
    x = nines(float(max(one.count for one in times)))
    chart = line_chart("Response time by percentile", lines, x, logarithmic(_values(lines), plain))
    return figure("Percentile spectrum", "Milliseconds, logarithmic.", chart + legend(lines))


def _values(lines: list[Line]) -> list[float]:
    return [value for line in lines for _, value in line.points if value is not None]
