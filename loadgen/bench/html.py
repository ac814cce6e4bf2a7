"""A comparison as one HTML file: the verdict, ratios as bars, the figures, CPU by process.

What lives here: the page. What must not: figures (figures), marks and styles (html_charts, html_page).
"""

from typing import Final

from loadgen import html_page
from loadgen.bench.figures import MET, MISSED, TOLD, UNKNOWN, Outcome, Result, notes, spread, typical
from loadgen.bench.text import CPU_UNIT, cpu_rows, figure_text, outcome_line
from loadgen.html_charts import Bar, bars
from loadgen.html_page import figure, html_table, repeat, section, verdict_list

_KINDS: Final = {MET: "ok", MISSED: "bad", UNKNOWN: "warn", TOLD: "note"}
#: A bar is full at this many times what is wanted.
_FULL: Final = 2.0


def to_html(result: Result) -> str:
    title = result.title or "dws beside its peers and its limits"
    marks = [(_kind(one), outcome_line(one, result.believed)) for one in result.outcomes]
    marks += [("warn", text) for text in notes(result)]
    machine = result.machine
    sub = f"{machine.cores} cores, {machine.processor}; {result.rounds} rounds of {result.seconds:g} s each."
    cpu = cpu_rows(result)
    parts = [
        html_page.head(f"dws-loadgen bench · {result.started}", title, sub),
        verdict_list(marks),
        _chart(result),
        section("Figures", html_table(_rows(result)), "Medians, and (largest − smallest) / median."),
        section(f"CPU seconds {CPU_UNIT}", html_table(cpu), "Medians, by process.") if len(cpu) > 1 else "",
        repeat(
            [
                ("system", machine.system),
                ("data on", machine.storage),
                *((name, version) for name, version in result.versions.items()),
                ("load average", f"{machine.load_before:.2f} before, {machine.load_after:.2f} after"),
            ],
            result.command,
        ),
    ]
    return html_page.page(title, "".join(parts))


def _kind(one: Outcome) -> str:
    return "warn" if one.mark == MISSED and one.aim else _KINDS[one.mark]


def _chart(result: Result) -> str:
    """Each ratio as a share of what is wanted: half a bar is just enough, for `at most` no more than half."""
    rows = [
        Bar(one.title, one.ratio / one.wanted, f"{one.ratio:.2f} · {one.mark} {one.wanted:g}",
            "fail" if _kind(one) == "bad" else "s2" if one.at_most else "s1")
        for one in result.outcomes
        if one.ratio is not None and one.wanted
    ]  # fmt: skip
    if not rows:
        return ""
    caption = (
        "What came out, over what is wanted: from the middle on it is enough; where less is better, up to it."
    )
    return figure("Ratios", caption, bars("Ratios against what is wanted", rows, _FULL))


def _rows(result: Result) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("", "median", "spread", "rounds")]
    for one in result.series:
        rate = typical(one)
        if rate is None:
            rows.append((one.title, one.problem or "not measured", "", ""))
        else:
            said = figure_text(rate, one.unit)
            rows.append((one.title, said, f"{spread(one.rates):.0%}", f"{len(one.rates)}"))
    return rows
