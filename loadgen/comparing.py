"""Two runs side by side: which figures changed, by how much, and whether the two can be compared at all.

What lives here: the rows of a comparison, its caveats, and its text. What must not: files, HTML.
"""

from collections.abc import Callable
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import fields

from loadgen.analysis import PERCENTILES, response_times
from loadgen.plan import Plan
from loadgen.report import Report, summarise
from loadgen.text import ms, table

#: A change below this share is none: two runs of one load differ by as much.
NOISE: Final = 0.03
#: A percentile is judged where so many requests were slower: p99.9 of 1,000 requests is one request's time.
BEYOND: Final = 50

Change = Literal["better", "worse", "same", "none"]
_WORDS: Final = {"better": "better", "worse": "worse", "same": "≈", "none": ""}


class Row(Struct):
    """One figure in both runs, as text. `ratio`: second over first, where there is one."""

    name: str
    first: str
    second: str
    ratio: float | None
    change: Change


class Comparison(Struct):
    names: tuple[str, str]
    rows: list[Row]
    caveats: list[str]


def compare(first: Report, second: Report, names: tuple[str, str]) -> Comparison:
    """`names`: what to call the two."""
    return Comparison(names, _rows(first, second), caveats(first, second, names))


def speed_up(comparison: Comparison) -> float | None:
    """Pages a second of the second run over the first's; requests, where there are no pages."""
    ratios = {row.name: row.ratio for row in comparison.rows}
    return ratios.get("pages/s") or ratios.get("requests/s")


def to_text(comparison: Comparison) -> str:
    parts = [table(cells(comparison), left=(0, 4)), conclusion(comparison)]
    return "\n".join(parts + [f"! {caveat}" for caveat in comparison.caveats])


def cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """The rows as text, with a heading."""
    rows: list[tuple[str, ...]] = [("", *comparison.names, "ratio", "")]
    for row in comparison.rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.3f}"
        rows.append((row.name, row.first, row.second, ratio, _WORDS[row.change]))
    return rows


def conclusion(comparison: Comparison) -> str:
    """Which is the faster, in a sentence."""
    factor, (first, second) = speed_up(comparison), comparison.names
    if factor is None:
        return f"{second} and {first}: one of them did nothing."
    if abs(factor - 1) <= NOISE:
        return f"{second} is about as fast as {first}: {factor:.2f} times."
    return f"{second} is {factor:.2f} times as fast as {first}."


# -- rows -------------------------------------------------------------------------------------


def _rows(first: Report, second: Report) -> list[Row]:
    one, two = summarise(first), summarise(second)
    a, b = one.together, two.together
    rows = [
        _row("requests/s", a.requests_per_s, b.requests_per_s, "{:,.0f}", more_is_better=True),
        _row("pages/s", a.pages_per_s, b.pages_per_s, "{:,.0f}", more_is_better=True),
        _row("MB/s", a.bytes_per_s / 1e6, b.bytes_per_s / 1e6, "{:,.1f}", more_is_better=True),
        *_times(first, second),
        _row("failed", _share(a.failed, a.requests), _share(b.failed, b.requests), "{:.3%}"),
    ]
    if one.availability and two.availability:
        down = one.availability.without_service_s, two.availability.without_service_s
        rows.append(_row("without service, s", *down, "{:.1f}"))
    if one.turnaround_s and two.turnaround_s:
        # A load of a given duration takes as long as it is told to.
        judged = first.plan.duration_s is None and second.plan.duration_s is None
        rows.append(_row("turnaround, s", one.turnaround_s, two.turnaround_s, "{:.2f}", judged=judged))
    rows.append(_row("busiest server / mean", one.spread, two.spread, "{:.3f}"))
    rows.append(_row("Jain's index", one.fairness, two.fairness, "{:.4f}", more_is_better=True))
    used = [sum(node.loaded.cpu_share for node in each.nodes if node.loaded) for each in (one, two)]
    if all(used):
        rows.append(_row("CPU of all nodes, cores", used[0], used[1], "{:.2f}", judged=False))
    rows.append(_row("CPU of the generator, cores", a.cpu_share, b.cpu_share, "{:.2f}", judged=False))
    return rows


def _times(first: Report, second: Report) -> list[Row]:
    rows: list[Row] = []
    kinds = [{kind for client in report.clients for kind in client.tallies} for report in (first, second)]
    for kind in sorted(kinds[0] & kinds[1]):
        one, two = response_times(first.clients, kind), response_times(second.clients, kind)
        fewest = min(one.count, two.count)
        if not fewest:
            continue
        rows += [
            _row(
                f"{kind} p{percent:g}, ms",
                one.percentile(percent),
                two.percentile(percent),
                ms,
                judged=fewest * (100 - percent) / 100 >= BEYOND,
            )
            for percent in PERCENTILES
        ]
        rows.append(_row(f"{kind} max, ms", one.most_s, two.most_s, ms, judged=False))
    return rows


def _row(
    name: str,
    first: float | None,
    second: float | None,
    form: str | Callable[[float], str],
    *,
    more_is_better: bool = False,
    judged: bool = True,
) -> Row:
    write = form.format if isinstance(form, str) else form
    row = Row(name, _said(first, write), _said(second, write), None, "none")
    if first is None or second is None:
        return row
    row.ratio = second / first if first else None
    if not judged:
        return row
    if first == second or (row.ratio is not None and abs(row.ratio - 1) <= NOISE):
        row.change = "same"
    else:
        row.change = "better" if (second > first) == more_is_better else "worse"
    return row


def _said(value: float | None, write: Callable[[float], str]) -> str:
    return "–" if value is None else write(value)


def _share(failed: int, succeeded: int) -> float | None:
    return failed / (failed + succeeded) if failed or succeeded else None


# -- caveats ----------------------------------------------------------------------------------


def caveats(first: Report, second: Report, names: tuple[str, str]) -> list[str]:
    """What keeps the two from being comparable, each in a sentence."""
    found = differences(first, second, names)
    for report, name in zip((first, second), names, strict=True):
        found += shortcomings(report, name)
    return found


def differences(first: Report, second: Report, names: tuple[str, str]) -> list[str]:
    """What is not the same: the load, what it was made on, what made it."""
    found = []
    if plan := _plan_differences(first.plan, second.plan):
        found.append(f"Not the same load, {names[0]} → {names[1]}: {plan}.")
    if bool(first.http) != bool(second.http):
        found.append(f"Not the same way: {names[0 if first.http else 1]} by HTTP, the other by ZeroMQ.")
    if first.pages != second.pages:
        found.append(f"Not the same site: {first.pages:,} pages to choose from, and {second.pages:,}.")
    if len(first.servers) != len(second.servers):
        found.append(f"{len(first.servers)} web servers in {names[0]}, {len(second.servers)} in {names[1]}.")
    here, there = first.machine, second.machine
    if here and there and (here.cores, here.platform) != (there.cores, there.platform):
        found.append(
            f"Not the same machine: {here.cores} cores, {here.platform}, and {there.cores} cores, "
            f"{there.platform}."
        )
    return found


def shortcomings(report: Report, name: str) -> list[str]:
    """Why one of them alone says little about the cluster."""
    limit = summarise(report).limit
    found = []
    if limit and limit.by not in ("cluster", "rate"):
        found.append(f"{name} is no capacity of the cluster: {limit.because[0]}")
    if report.interrupted:
        found.append(f"{name} was interrupted.")
    return found


def _plan_differences(first: Plan, second: Plan) -> str:
    pairs = [(field.name, getattr(first, field.name), getattr(second, field.name)) for field in fields(Plan)]
    return ", ".join(
        f"{name} {_plain(one)} → {_plain(two)}"
        for name, one, two in pairs
        if one != two and name != "seed"  # the same load, drawn otherwise
    )


def _plain(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else f"{value}"
