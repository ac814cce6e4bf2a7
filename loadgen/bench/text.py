"""A comparison for people to read: medians, ratios, CPU, and everything that speaks against them.

What lives here: words and columns. What must not: figures (figures), HTML (html).
"""

from statistics import median
from typing import Final

from loadgen.bench.figures import Outcome, Result, Series, notes, spread, typical
from loadgen.text import table

CPU_UNIT: Final = "a million pages, names or requests, or a GB"


def to_text(result: Result) -> str:
    machine = result.machine
    lines = [
        f"{machine.cores} cores, {machine.processor}, {machine.system}; load average "
        f"{machine.load_before:.2f} before, {machine.load_after:.2f} after"
        + (f"; data on {machine.storage}" if machine.storage else ""),
        f"{result.rounds} rounds of {result.seconds:g} s each, one server at a time; medians, and "
        "(largest − smallest) / median",
        "; ".join(f"{name} {version}" for name, version in result.versions.items()),
        "",
    ]
    lines += [_row(one) for one in result.series] + [""]
    cpu = cpu_rows(result)
    if len(cpu) > 1:
        lines += [f"CPU seconds {CPU_UNIT}, by process:", table(cpu), ""]
    lines += [outcome_line(one, result.believed) for one in result.outcomes]
    if not result.believed:
        lines += ["", "NOT TO BE BELIEVED, and so without a verdict:"]
    return "\n".join([*lines, *(f"note: {text}" for text in notes(result))])


def outcome_line(one: Outcome, believed: bool = True) -> str:
    said = "not measured" if one.ratio is None else f"{one.ratio:.2f}"
    if one.ratio is None and not believed:
        said = "not told"
    if one.low is not None and one.high is not None and one.low != one.high:
        said += f" ({one.low:.2f} to {one.high:.2f} by round)"
    if one.wanted is None:
        wanted = ""
    else:
        verb = "aim" if one.aim else "wanted"
        wanted = f" ({verb}: {one.wanted:g} or {'less' if one.at_most else 'more'})"
    flag = "  [not believed]" if one.ratio is not None and not believed else ""
    return f"{one.mark} {one.title}: {said}{wanted}{flag}"


def figure_text(value: float, unit: str) -> str:
    """With as many digits as the size of the figure deserves."""
    if unit == "µs":
        return f"{value:,.0f} µs"
    if unit == "bytes/s":
        return f"{value / 1e6:,.0f} MB/s"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.3g} {unit}"


def _row(series: Series) -> str:
    rate = typical(series)
    if rate is None:
        return f"  {series.title:<52} {series.problem or 'not measured'}"
    return f"  {series.title:<52} {figure_text(rate, series.unit):>20} ±{spread(series.rates):.0%}"


def cpu_rows(result: Result) -> list[tuple[str, ...]]:
    """A heading, then a row for each series whose processes' CPU is known: medians."""
    known = [one for one in result.series if one.cpu]
    names = list(dict.fromkeys(name for one in known for name in one.cpu))
    rows: list[tuple[str, ...]] = [("", *names, "all")]
    for one in known:
        scale = 1e3 if one.unit == "bytes/s" else 1.0
        used = {name: scale * median(values) for name, values in one.cpu.items() if values}
        cells = [_seconds(used[name]) if name in used else "" for name in names]
        rows.append((one.title, *cells, _seconds(sum(used.values()))))
    return rows


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
