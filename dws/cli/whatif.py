"""dws sim whatif: a load under one policy or another, with servers that nobody has yet.

What lives here: flags, the report, and the line of progress. What must not: the
model (dws.sim.whatif and what it names).
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from dws.cli import exits, output
from dws.cli.session import Session, json_option, pass_session
from dws.cli.settings import parse_bytes

if TYPE_CHECKING:
    from dws.sim.demand import Demand, Progress
    from dws.sim.whatif import Findings, Outcome

_TIME: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(s|ms|us|µs)?")
_TIME_UNITS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, None: 1.0}
#: Options that a recording answers itself.
_OF_THE_TRACE: Final = ("rate", "skew", "pages", "requests")


def _seconds(_: Any, parameter: click.Parameter, text: str | None) -> float | None:
    match = _TIME.fullmatch(text) if text is not None else None
    if text is not None and not match:
        raise click.BadParameter(f"{text!r} is no time, such as 0.001, 1ms or 50us", param=parameter)
    return float(match[1]) * _TIME_UNITS[match[2]] if match else None


def _bytes(_: Any, parameter: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


@click.command(
    epilog="""\b
Examples:
  dws sim whatif --servers 8 --rate 4000 --service-time 1ms
  dws sim whatif --servers 500 --pages 1000000 --rate 10000 --skew zipf:1.1
  dws sim whatif --servers 12 --trace monday.trace --policy least-load,random --json

\b
Every policy meets the same requests, pages and service times, drawn from --seed.
Servers are queues; loads, policies and placement are the code that runs in
production, and what the balancer hears is a heartbeat old. docs/whatif.md says
what the model leaves out.
"""
)
@click.option("--servers", type=int, metavar="N", help="Web servers.  [default: 5]")
@click.option("--pages", type=int, metavar="N", help="Pages on them.  [default: 10,000]")
@click.option("--copies", type=int, metavar="N", help="Of each page.  [default: 2]")
@click.option(
    "--policy",
    metavar="NAME,…",
    help="Policies to compare.  [default: least-load,round-robin,random,two-choices]",
)
@click.option(
    "--rate", type=float, metavar="N", help="Requests a second, in all.  [default: 70 % of capacity]"
)
@click.option("--skew", metavar="uniform|zipf:S", help="How pages are wanted.  [default: uniform]")
@click.option(
    "--requests", type=int, metavar="N", help="How many.  [default: a million, or two minutes of them]"
)
@click.option("--workers", type=int, metavar="N", help="Requests that a server serves at once.  [default: 1]")
@click.option(
    "--service-time", "service_s", metavar="TIME", callback=_seconds,
    help="What one takes: 1ms, 50us.  [default: 1ms]",
)  # fmt: skip
@click.option(
    "--service", metavar="exponential|constant", help="How service times vary.  [default: exponential]"
)
@click.option("--page-size", "page_bytes", metavar="SIZE", callback=_bytes, help="[default: 16KiB]")
@click.option(
    "--batch", type=int, metavar="N", help="Pages of an upload, which lie together.  [default: 1,000]"
)
@click.option(
    "--copy-rate", "copy_rate_bytes", metavar="SIZE", callback=_bytes,
    help="What an idle server copies in a second.  [default: 100MB]",
)  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="[default: 1]")
@click.option(
    "--trace", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take requests from a recording of loadgen (--record-trace).",
)  # fmt: skip
@json_option
@pass_session
def whatif(session: Session, /, trace: Path | None, policy: str | None, **flags: Any) -> int:
    """Compare policies under a load: balance, waits, and the repair after losing 1 % of the servers."""
    from dws.sim.whatif import Study, run

    given = {name: value for name, value in flags.items() if value is not None}
    if trace is not None:
        clashing = [f"--{name}" for name in _OF_THE_TRACE if name in given]
        if clashing:
            raise click.UsageError(f"{', '.join(clashing)} and --trace: the recording says that itself")
    if policy is not None:
        given["policies"] = tuple(dict.fromkeys(name.strip() for name in policy.split(",")))
    study = Study(**given)
    with _progress() as progress:
        findings = run(study, progress, _recorded(trace) if trace is not None else None)
    if session.json:
        output.emit_json(msgspec.to_builtins(findings))
    else:
        output.data(report(findings))
    return exits.OK


def _recorded(trace: Path) -> "Demand":
    from dws.sim.demand import recorded

    with trace.open("rb") as file:
        return recorded(file, str(trace))


@contextmanager
def _progress() -> "Iterator[Progress]":
    """One line on a terminal that says what is done; on anything else, nothing."""
    is_shown = sys.stderr.isatty()

    def progress(what: str, share: float) -> None:
        if is_shown:
            click.echo(f"\r{what}: {share:.0%}\x1b[K", nl=False, err=True)

    try:
        yield progress
    finally:
        if is_shown:
            click.echo("\r\x1b[K", nl=False, err=True)


# -- the report --------------------------------------------------------------------------------


def report(findings: "Findings") -> str:
    study = findings.study
    repair = findings.outcomes[0].repair
    lines = [
        f"servers   {study.servers:,}, each {study.workers} at once, {study.service} service of"
        f" {output.duration_text(study.service_s)}: {study.capacity:,.0f} requests a second",
        f"pages     {study.pages:,}, {study.copies} copies, uploaded {study.batch:,} at a time;"
        f" the most wanted takes {findings.most_wanted:.3%} of all requests",
        f"requests  {findings.requests:,} at {findings.rate:,.0f} a second: {findings.load:.1%} of capacity,"
        f" {findings.duration_s:,.2f} s of virtual time, the last nine tenths measured",
        *_doubts(findings),
        "",
        output.table(_HEADINGS, [_row(each) for each in findings.outcomes]),
        "",
        f"lost      {output.counted(repair.servers, 'server')} in the end, found dead after"
        f" {repair.detected_s:g} s: {repair.pages_short:,} pages short of a copy, {repair.pages_gone:,} gone,"
        f" {output.bytes_text(repair.bytes_copied)} copied",
    ]
    return "\n".join(lines)


_HEADINGS: Final = (
    "policy", ">max/mean", ">Jain", ">busiest", ">overloaded",
    ">wait mean", ">p50", ">p99", ">p99.9", ">repaired after",
)  # fmt: skip


def _row(outcome: "Outcome") -> tuple[str, ...]:
    waits = (outcome.wait_mean_s, outcome.wait_p50_s, outcome.wait_p99_s, outcome.wait_p999_s)
    return (
        outcome.policy,
        f"{outcome.max_over_mean:.3f}",
        f"{outcome.jain:.4f}",
        f"{outcome.busiest:.1%}",
        f"{outcome.overloaded:,}",
        *map(output.duration_text, waits),
        output.duration_text(outcome.repair.seconds),
    )


def _doubts(findings: "Findings") -> list[str]:
    """What makes figures mean less than they seem to."""
    study = findings.study
    doubts = []
    if findings.holders_needed > study.copies:
        doubts.append(
            f"warning   the most wanted page needs {findings.holders_needed:,} servers and has"
            f" {study.copies}: waits for it grow for as long as the load lasts"
        )
    elif any(outcome.overloaded for outcome in findings.outcomes):
        doubts.append("warning   where servers are overloaded, waits grow for as long as the load lasts")
    beats = findings.duration_s / study.config.beat_s
    if beats < _BEATS_MIN:
        doubts.append(
            f"warning   it lasts {beats:.1f} heartbeats only: more --requests show what loads that are old do"
        )
    return doubts


#: So many heartbeats a server should be heard of before figures are believed.
_BEATS_MIN: Final = 8
