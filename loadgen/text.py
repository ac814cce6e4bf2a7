"""A report as text, for terminals: at most 100 columns wide.

What lives here: sentences and tables. What must not: figures that are not in the summary, files, output.
"""

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Final

from loadgen.analysis import Availability, NodeFigures, Rates, Summary, Use
from loadgen.doubt import Limit
from loadgen.measured import BookEntry, Failure
from loadgen.report import Baseline, Check, Report, summarise

_BAR_WIDTH: Final = 30
_HOT_WIDTH: Final = 60
_OUTAGES_MAX: Final = 5

Mark = tuple[str, str]
"""(ok, bad, warn or note; a sentence): one line of the verdict."""
SIGNS: Final = {"ok": "✓", "bad": "✗", "warn": "!", "note": "·"}
_LIMIT_KINDS: Final = {"rate": "note", "nothing": "bad"}
_LIMIT_HEADS: Final = {
    "generator": "The generator was the limit: no capacity of the cluster.",
    "threads": "The threads were the limit: no capacity of the cluster.",
    "machine": "The machine was the limit: no capacity of the cluster on machines of its own.",
    "rate": "No capacity: the cluster may do more.",
    "short": "No capacity: too short a run.",
    "nodes": "No capacity of the whole cluster.",
}


def to_text(report: Report) -> str:
    """The analysis, for people."""
    summary = report.summary or summarise(report)
    parts = [
        _wrapped(headline(report), "", 99),
        rates_table(summary),
        latency_table(summary, open_load=report.plan.rate is not None),
        failures_text(summary.failures, summary.together.requests),
    ]
    if summary.spread is not None:
        parts.append(shares_table(summary))
    if summary.nodes:
        parts.append(nodes_table(summary.nodes))
    if report.book:
        parts.append(book_table(report.book))
    if summary.skipped:
        parts.append(
            f"{summary.skipped:,} pages of uploads were not sent: the cluster had them, byte for byte."
        )
    parts.append(verdict_text(verdict(report, summary)))
    return "\n\n".join(parts)


# -- what it was ----------------------------------------------------------------------------


def headline(report: Report) -> str:
    """What load this was."""
    plan = report.plan
    load = "closed load" if plan.rate is None else f"open load, {plan.rate:g} requests a second"
    parts = [
        f"{plan.request}, {load}: {counted(plan.clients, 'client')} × {counted(plan.threads, 'thread')}",
        f"{counted(plan.files, 'page')} a request",
    ]
    if plan.request != "upload":
        parts.append(f"{plan.choice} choice of {report.pages:,}")
    if report.http:
        parts.append(f"by HTTP from {report.http}")
    parts.append(f"seed {plan.seed}")
    if report.warmup_s:
        parts.append(f"after {report.warmup_s:g} s of warm-up")
    interrupted = "\nInterrupted: this is what was measured until then." if report.interrupted else ""
    return ", ".join(parts) + interrupted


# -- the verdict ------------------------------------------------------------------------------


def verdict(report: Report, summary: Summary) -> list[Mark]:
    """What is to be concluded, the most important first."""
    whole = passed(report.checks)
    marks: list[Mark] = [whole] if whole else []
    marks += [
        ("ok" if one.passed else "bad" if one.must else "note", check_text(one)) for one in report.checks
    ]
    if report.interrupted and not summary.together.requests + summary.together.failed:
        return [*marks, ("note", "Interrupted before a request was made: nothing was measured.")]
    if report.interrupted:
        marks.append(("note", "Interrupted: this is what was measured until then."))
    if summary.availability:
        marks += _availability(summary.availability, summary)
    marks += [("bad", died_text(node)) for node in summary.nodes if node.died_at_s is not None]
    if report.baseline and summary.speed_up is not None:
        marks += _baseline(report.baseline, summary.speed_up)
    return marks + (limit_marks(summary.limit) if summary.limit else [])


def _baseline(base: Baseline, speed_up: float) -> list[Mark]:
    its = f"{base.pages_per_s:,.0f} pages" if base.pages_per_s else f"{base.requests_per_s:,.0f} requests"
    marks: list[Mark] = [("note", f"{speed_up:.2f} times as fast as {base.name}: that made {its} a second.")]
    return marks + [("warn", caveat) for caveat in base.caveats]


def check_text(check: Check) -> str:
    if check.said:
        return f"fail if {check.text}: {check.said}"
    return check.text if check.passed or check.must else f"not reached: {check.text}"


def died_text(node: NodeFigures) -> str:
    note = f": {node.note}" if node.note else ""
    return f"{node.name} ({node.role}) died {node.died_at_s or 0:.1f} s after the start{note}."


def limit_marks(limit: Limit) -> list[Mark]:
    """Whether the run is a capacity, and why."""
    if limit.is_capacity:
        return [("ok", " ".join(limit.because))]
    marks: list[Mark] = [(_LIMIT_KINDS.get(limit.by, "warn"), text) for text in limit.because]
    if limit.by in _LIMIT_HEADS:
        marks.insert(0, (marks[0][0], _LIMIT_HEADS[limit.by]))
    return marks


def _availability(found: Availability, summary: Summary) -> list[Mark]:
    if found.share is None:
        return [("bad", "No request was made.")]
    failed, total = summary.together.failed, summary.together.requests + summary.together.failed
    if not failed and not found.outages:
        return [("ok", f"Available: all {total:,} requests succeeded.")]
    marks: list[Mark] = [("bad", f"{failed:,} of {total:,} requests failed: available {found.share:.3%}.")]
    if not failed:
        marks = [("ok", f"All {total:,} requests succeeded, in the end.")]
    if found.outages:
        when = ", ".join(f"{one.for_s:.1f} s at {one.at_s:.1f} s" for one in found.outages[:_OUTAGES_MAX])
        more = ", …" if len(found.outages) > _OUTAGES_MAX else ""
        marks.append(("bad", f"Without service for {found.without_service_s:.1f} s: {when}{more}."))
    return marks


def passed(checks: Sequence[Check]) -> Mark | None:
    """What came of all thresholds together, if there were any."""
    if not checks:
        return None
    failed, total = sum(one.failed for one in checks), counted(sum(one.must for one in checks), "check")
    return ("bad", f"Failed: {failed} of {total}.") if failed else ("ok", f"Passed: {total}.")


def verdict_text(marks: Sequence[Mark]) -> str:
    return "\n".join(["Verdict:", *(f"  {SIGNS[kind]} {_wrapped(text)}" for kind, text in marks)])


def _wrapped(text: str, indent: str = "    ", width: int = 94) -> str:
    """In lines of at most `width`, all but the first indented."""
    wrapped = [wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")]
    return f"\n{indent}".join(line for lines in wrapped for line in lines)


# -- tables -----------------------------------------------------------------------------------


def rates_table(summary: Summary) -> str:
    if not summary.turnaround_s:
        return table(rates_rows(summary))
    whole = f"The whole job, with its start and its end, took {summary.turnaround_s:.2f} s."
    return f"{table(rates_rows(summary))}\n  {whole}"


def rates_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Each client process, then all together; a heading first."""
    heading = ("", "requests", "pages", "failed", "seconds", "requests/s", "pages/s", "MB/s", "CPU")
    return [heading, *map(_rates_row, [*summary.clients, summary.together])]


def _rates_row(rates: Rates) -> tuple[str, ...]:
    return (
        "together" if rates.client is None else f"client {rates.client + 1}",
        f"{rates.requests:,}", f"{rates.pages:,}", f"{rates.failed:,}", f"{rates.elapsed_s:.2f}",
        f"{rates.requests_per_s:,.0f}", f"{rates.pages_per_s:,.0f}", f"{rates.bytes_per_s / 1e6:,.1f}",
        f"{rates.cpu_share:.0%}",
    )  # fmt: skip


def latency_table(summary: Summary, *, open_load: bool) -> str:
    since = "intended start" if open_load else "start"
    return f"Response time of a request, from its {since}, in ms:\n{table(latency_rows(summary))}"


def latency_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Each kind of request, then how late sends were, in ms; a heading first."""
    shown = [*summary.latencies, *([summary.late] if summary.late else [])]
    rows = [("", "requests", "mean", *(shown[0].percentiles if shown else ()), "max")]
    for one in shown:
        name = "sent late by" if one is summary.late else one.kind
        times = (one.mean_s, *one.percentiles.values(), one.max_s)
        rows.append((name, f"{one.count:,}", *map(ms, times)))
    return rows


def failures_text(failures: Sequence[Failure], succeeded: int) -> str:
    if not failures:
        return "Failures: none." if succeeded else "Failures: none; no request was made."
    failed = sum(one.count for one in failures)
    lines = [f"Failures: {failed:,} of {failed + succeeded:,} requests."]
    lines += [
        f"  {one.count:,} × {one.kind}; the first after {one.at_s:.2f} s: {one.first}" for one in failures
    ]
    return "\n".join(lines)


def shares_table(summary: Summary) -> str:
    most = max(one.share for one in summary.servers)
    rows = [("", "pages", "share", "× mean", "")]
    rows += [
        (one.server, f"{one.pages:,}", f"{one.share:.1%}", f"{one.over_mean:.3f}",
         "█" * round(_BAR_WIDTH * one.share / most))
        for one in summary.servers
    ]  # fmt: skip
    fairness = "" if summary.fairness is None else f"; Jain's index {summary.fairness:.4f}"
    return (
        f"Pages served by each web server; the busiest served {summary.spread:.3f} times the mean"
        f"{fairness}:\n{table(rows, left={0, 4})}"
    )


def nodes_table(nodes: Sequence[NodeFigures]) -> str:
    rows: list[tuple[str, ...]] = [
        ("", "", "CPU", "RSS MB", "read MB/s", "written MB/s", "sent MB/s", "received MB/s")
    ]
    for node in nodes:
        rows.append((node.name, "idle", *use_cells(node.idle)))
        rows.append(("", "loaded", *use_cells(node.loaded)))
    return "\n".join(["What the nodes used, without load and under it:", table(rows, left=(0, 1)),
                      *(f"  {note}" for note in node_notes(nodes))])  # fmt: skip


def node_notes(nodes: Sequence[NodeFigures]) -> list[str]:
    """What else there is to say of them, a sentence each."""
    return [
        died_text(node) if node.died_at_s is not None else f"{node.name}: {node.note}"
        for node in nodes
        if node.note or node.died_at_s is not None
    ]


def use_cells(use: Use | None) -> tuple[str, ...]:
    """CPU, memory, disk and network, as text; dashes where nobody looked."""
    if use is None:
        return ("–",) * 6
    rates = (use.read_per_s, use.written_per_s, use.sent_per_s, use.received_per_s)
    return (f"{use.cpu_share:.0%}", f"{use.rss_bytes / 1e6:,.0f}", *(f"{rate / 1e6:,.1f}" for rate in rates))


def book_table(book: Sequence[BookEntry]) -> str:
    rows = [("", "since s", "visits", "MB", "most wanted")]
    for one in book:
        hot = ""
        for name, visits, _ in one.hot:
            item = f"{', ' if hot else ''}{shortened(name)} {visits:,}×"
            if len(hot) + len(item) > _HOT_WIDTH:
                break
            hot += item
        size = f"{one.bytes / 1e6:,.1f}"
        rows.append((one.server, f"{one.period_age_s:.1f}", f"{one.visits:,}", size, hot))
    return f"Each server's load book, of its period so far:\n{table(rows, left=(0, 4))}"


def table(rows: Sequence[Sequence[str]], left: Iterable[int] = (0,)) -> str:
    """Rows of cells in columns, to the right but for those in `left`; the first row is the heading."""
    lefts = set(left)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if column in lefts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def ms(time_s: float) -> str:
    return f"{time_s * 1000:,.2f}"


def shortened(name: str, most: int = 28) -> str:
    """The end of a name says more than its beginning."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
