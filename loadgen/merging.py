"""Reports of one load, made by several hosts, as one report.

What lives here: which reports belong together, and how they become one. What must not: files, output.
Their histograms are added up, so that percentiles are of all requests, not means of percentiles.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from loadgen.doubt import Limit
from loadgen.measured import ClientResult, NodeUse
from loadgen.plan import CLIENTS_MAX, Plan
from loadgen.report import Report, ReportError, summarise

#: Reports that started further apart than this, in seconds, are not of one load.
APART_S: Final = 5.0
_ALIKE: Final = ("request", "count", "duration_s", "threads", "files", "choice", "size_bytes")


def merge(reports: Sequence[Report], names: Sequence[str]) -> Report:
    """One report of all clients. `names`: what to call each. ReportError if they are not of one load."""
    if len(reports) < 2:
        raise ReportError("one report alone cannot be merged")
    first, *others = reports
    for report, name in zip(others, names[1:], strict=True):
        _check_alike(first, names[0], report, name)
    clients = [client for report in reports for client in report.clients]
    if len(clients) > CLIENTS_MAX:
        raise ReportError(f"{len(clients)} clients in all: at most {CLIENTS_MAX} are possible")
    whole = replace(
        first,
        started=min(report.started for report in reports),
        plan=_plan([report.plan for report in reports]),
        pages=max(report.pages for report in reports),
        servers=sorted({server for report in reports for server in report.servers}),
        interrupted=any(report.interrupted for report in reports),
        clients=[_renumbered(client, number) for number, client in enumerate(clients)],
        prefix=first.prefix if all(report.prefix == first.prefix for report in reports) else "",
        nodes=_nodes(reports),
        book=next((report.book for report in reports if report.book), []),
        machine=None,
        command=[],
        generator_cpu_share=max(report.generator_cpu_share for report in reports),
        machine_cpu_share=0.0,
        baseline=None,
        checks=[],
        merged=[f"{name}: {_where(report)}" for name, report in zip(names, reports, strict=True)],
        doubts=[one for report in reports for one in _doubts(report)],
    )
    whole.summary = summarise(whole)
    return whole


def _check_alike(first: Report, name: str, other: Report, other_name: str) -> None:
    for field in _ALIKE:
        here, there = getattr(first.plan, field), getattr(other.plan, field)
        if here != there:
            text = f"{field} is {here!r} in {name} and {there!r} in {other_name}"
            raise ReportError(f"not one load: {text}; `compare` compares them")
    if (first.plan.rate is None) != (other.plan.rate is None):
        raise ReportError(f"not one load: {name} and {other_name} are an open and a closed one")
    if bool(first.http) != bool(other.http):
        raise ReportError(f"not one load: {name} and {other_name} are one by HTTP and one by ZeroMQ")
    if first.warmup_s != other.warmup_s:
        raise ReportError(f"not one load: {name} and {other_name} warmed up for different times")
    apart_s = abs((_moment(first, name) - _moment(other, other_name)).total_seconds())
    if apart_s > APART_S:
        raise ReportError(
            f"not one load: {name} and {other_name} started {apart_s:.0f} s apart; see --start-at"
        )


def _moment(report: Report, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(report.started)
    except ValueError:
        raise ReportError(f"{name}: {report.started!r} is no time") from None
    if moment.tzinfo is None:
        raise ReportError(f"{name}: {report.started!r} has no time zone")
    return moment


def _plan(plans: Sequence[Plan]) -> Plan:
    rates = [plan.rate for plan in plans if plan.rate is not None]
    return replace(
        plans[0], clients=sum(plan.clients for plan in plans), rate=sum(rates) if rates else None
    )  # fmt: skip


def _renumbered(client: ClientResult, number: int) -> ClientResult:
    return replace(client, client=number)


def _nodes(reports: Sequence[Report]) -> list[NodeUse]:
    """Each node once: every host may have looked at all of them; the one that looked most is taken."""
    found: dict[str, NodeUse] = {}
    for node in (node for report in reports for node in report.nodes):
        known = found.get(node.name)
        if known is None or len(known.loaded) < len(node.loaded):
            found[node.name] = node
    return [found[name] for name in sorted(found)]


def _doubts(report: Report) -> list[Limit]:
    """What only the part can tell: whether its own machine was full. The rest is worked out of the whole."""
    limit = summarise(report).limit
    return report.doubts or ([limit] if limit and limit.by == "machine" else [])


def _where(report: Report) -> str:
    clients = (
        f"{len(report.clients)} client{'s' if len(report.clients) != 1 else ''}, seed {report.plan.seed}"
    )
    if report.machine is None:
        return clients
    return f"{clients}, {report.machine.cores} cores, {report.machine.platform}"
