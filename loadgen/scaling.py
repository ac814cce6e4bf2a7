"""The same load on growing clusters: speed-up, efficiency, and how far they can be believed.

What lives here: the steps of a scaling run, what is concluded from them, as JSON, text and HTML. What must
not: running clusters (scale), files.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from loadgen import html_page
from loadgen.html_charts import Axis, Bar, Line, bars, legend, line_chart, linear
from loadgen.html_page import figure, html_table, repeat, section
from loadgen.plan import Plan
from loadgen.report import Report, summarise
from loadgen.text import Mark, counted, table, verdict_text

SCALING_SCHEMA: Final = 1


class Step(Struct):
    """One cluster, and what the load made of it. `speed_up` and `efficiency` are against the first step."""

    webservers: int
    copies: int
    requests_per_s: float
    pages_per_s: float
    bytes_per_s: float
    failed: int
    p50_s: float
    p99_s: float
    generator_cpu: float
    """In cores; and so is the nodes', None where nobody looked."""
    nodes_cpu: float | None
    limited_by: str
    speed_up: float = 1.0
    efficiency: float = 1.0


class Scaling(Struct):
    started: str
    made_by: str
    plan: Plan
    pages: int
    page_bytes: int
    cores: int
    """Of the one machine that all of it ran on."""
    steps: list[Step]
    command: list[str] = []
    interrupted: bool = False
    """Before the last cluster was measured."""
    schema: int = SCALING_SCHEMA


def step_of(webservers: int, copies: int, report: Report) -> Step:
    summary = summarise(report)
    together, latencies = summary.together, summary.latencies
    percentiles = latencies[0].percentiles if latencies else {}
    used = [node.loaded.cpu_share for node in summary.nodes if node.loaded]
    return Step(
        webservers, copies, together.requests_per_s, together.pages_per_s, together.bytes_per_s,
        together.failed, percentiles.get("p50", 0.0), percentiles.get("p99", 0.0), together.cpu_share,
        sum(used) if used else None, summary.limit.by if summary.limit else "",
    )  # fmt: skip


def compared(steps: Sequence[Step]) -> list[Step]:
    """Each against the first: how many times as fast, and that over how many times as many servers."""
    if not steps or not steps[0].pages_per_s:
        return list(steps)
    first = steps[0]
    factors = [step.pages_per_s / first.pages_per_s for step in steps]
    return [
        msgspec.structs.replace(
            step, speed_up=factor, efficiency=factor * first.webservers / step.webservers
        )
        for step, factor in zip(steps, factors, strict=True)
    ]  # fmt: skip


def to_json(scaling: Scaling) -> bytes:
    return msgspec.json.format(msgspec.json.encode(scaling), indent=2) + b"\n"


# -- words ------------------------------------------------------------------------------------


def verdict(scaling: Scaling) -> list[Mark]:
    """What can be concluded: first what came out, then on how many cores."""
    steps, cores = scaling.steps, scaling.cores
    marks: list[Mark] = []
    if scaling.interrupted:
        done = counted(len(steps), "cluster")
        marks.append(("warn", f"Interrupted: {done} measured, not all that were wanted."))
    if not steps:
        return marks
    failed = sum(step.failed for step in steps)
    if failed:
        marks.append(("bad", f"{failed:,} requests failed."))
    if len(steps) > 1:
        first, last = steps[0], steps[-1]
        marks.append(
            ("note", f"{last.webservers} web servers do {last.speed_up:.2f} times what {first.webservers} "
             f"{'does' if first.webservers == 1 else 'do'}: an efficiency of {last.efficiency:.0%}.")
        )  # fmt: skip
    most = max((step.webservers for step in steps), default=0)
    processes = most + 1 + scaling.plan.clients
    if processes > cores:
        marks.append(
            ("warn", f"There were {_cores(cores)} for up to {processes} processes (web servers, the "
             f"balancer, {scaling.plan.clients} of the generator): once all are busy, more servers cannot be "
             "faster here. This shows what they cost, not how the cluster scales on machines of its own.")
        )  # fmt: skip
    else:
        marks.append(
            ("ok", f"There were {_cores(cores)}, one and more for each of the {processes} processes.")
        )
    limited = [step.webservers for step in steps if step.limited_by in ("generator", "threads")]
    if limited:
        marks.append(
            ("warn", f"With {_list(limited)} web servers the generator was the limit, not the cluster.")
        )
    return marks


def _cores(cores: int) -> str:
    return f"{cores} core{'s' if cores != 1 else ''}"


def _list(numbers: Sequence[int]) -> str:
    said = [str(number) for number in numbers]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def rows_of(scaling: Scaling) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("servers", "copies", "requests/s", "pages/s", "MB/s", "p50 ms", "p99 ms", "failed", "speed-up",
         "efficiency", "CPU: load", "nodes"),
    ]  # fmt: skip
    rows += [
        (
            f"{one.webservers}", f"{one.copies}", f"{one.requests_per_s:,.0f}", f"{one.pages_per_s:,.0f}",
            f"{one.bytes_per_s / 1e6:,.1f}", f"{one.p50_s * 1000:,.2f}", f"{one.p99_s * 1000:,.2f}",
            f"{one.failed:,}", f"{one.speed_up:.2f}", f"{one.efficiency:.0%}", f"{one.generator_cpu:.2f}",
            "–" if one.nodes_cpu is None else f"{one.nodes_cpu:.2f}",
        )
        for one in scaling.steps
    ]  # fmt: skip
    return rows


def headline(scaling: Scaling) -> str:
    plan = scaling.plan
    return (
        f"{plan.clients} × {plan.threads} threads, {plan.files} pages a request, {plan.choice} choice of "
        f"{scaling.pages:,} pages of {scaling.page_bytes:,} bytes, seed {plan.seed}"
    )


def to_text(scaling: Scaling) -> str:
    parts = [headline(scaling), table(rows_of(scaling)), verdict_text(verdict(scaling))]
    return "\n\n".join(parts)


# -- HTML -------------------------------------------------------------------------------------


def to_html(scaling: Scaling) -> str:
    """The whole file."""
    steps = scaling.steps
    title = f"{counted(len(steps), 'cluster')}, the same load"
    if len(steps) > 1:
        last, first = steps[-1], steps[0]
        title = f"{first.webservers} → {last.webservers} web servers: {last.speed_up:.2f} times as fast"
    speeds = [
        Bar(f"{one.webservers} server{'s' if one.webservers != 1 else ''}", one.pages_per_s,
            f"{one.pages_per_s:,.0f} · ×{one.speed_up:.2f}")
        for one in steps
    ]  # fmt: skip
    parts = [
        html_page.head(f"dws-loadgen · {scaling.started}", title, headline(scaling) + "."),
        html_page.verdict_list(verdict(scaling)),
        figure("Pages a second", "And how many times as many as the first.", bars("Pages a second", speeds)),
        _chart(steps) if len(steps) > 1 else "",
        section("The figures", html_table(rows_of(scaling)), "CPU of the load and of all nodes, in cores."),
        repeat(
            [("made by", scaling.made_by), ("started", scaling.started), ("cores", f"{scaling.cores}")],
            scaling.command,
        ),
    ]
    return html_page.page(title, "".join(parts))


def _chart(steps: Sequence[Step]) -> str:
    first = steps[0].webservers
    lines = [
        Line("measured", [(float(one.webservers), one.speed_up) for one in steps], "s1"),
        Line("linear", [(float(one.webservers), one.webservers / first) for one in steps], "s3"),
    ]
    y = linear([value or 0.0 for line in lines for _, value in line.points], "{:g}".format)
    x = Axis(
        float(first), float(steps[-1].webservers), [(float(s.webservers), f"{s.webservers}") for s in steps]
    )
    chart = line_chart("Speed-up by web servers", lines, x, y)
    return figure(
        "Speed-up", "Times the first, by web servers; and what it would be at best.", chart + legend(lines)
    )
