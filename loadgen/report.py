"""What came of a run: merged, worked out, as JSON and as text.

What lives here: the shape of a result, from one client process's to the whole
report's, and what is concluded from it. What must not: measuring, files, output.
Rates are of what succeeded; a failed request is counted as failed and nowhere else.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Final

import msgspec
from msgspec import Struct

from loadgen import histogram
from loadgen.histogram import Histogram
from loadgen.plan import Plan

SCHEMA: Final = 1
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
_BAR_WIDTH: Final = 30


class ReportError(ValueError):
    """This is no report that can be read; the text, one line, says why."""


# -- measured ------------------------------------------------------------------------------


class Failure(Struct):
    """Requests that failed in one way. `first` is what the first of them said, `at_s` after the start."""

    kind: str
    count: int
    at_s: float
    first: str


class Tally(Struct):
    """One client's requests of one kind, download or upload."""

    requests: int
    pages: int
    bytes: int
    failures: list[Failure]
    latency: histogram.Plain
    skipped: int = 0
    """Pages of uploads that were not sent, since the cluster had them."""


class ClientResult(Struct):
    """What one client process measured. Times count from the start that all clients share."""

    client: int
    elapsed_s: float
    cpu_s: float
    tallies: dict[str, Tally]
    served: dict[str, int]
    """Pages that each web server delivered."""
    late: histogram.Plain | None = None
    """Open load: how long after its intended start each request was sent."""


class Report(Struct):
    started: str
    """UTC, ISO 8601."""
    made_by: str
    plan: Plan
    pages: int
    """How many pages downloads chose from."""
    servers: list[str]
    """The web servers that were alive at the start."""
    interrupted: bool
    clients: list[ClientResult]
    prefix: str = ""
    """Where uploads went."""
    summary: "Summary | None" = None
    schema: int = SCHEMA


# -- worked out -----------------------------------------------------------------------------


class Rates(Struct):
    """`client` None: all together."""

    client: int | None
    requests: int
    pages: int
    bytes: int
    failed: int
    elapsed_s: float
    cpu_share: float
    requests_per_s: float
    pages_per_s: float
    bytes_per_s: float


class Latency(Struct):
    """Response times of one kind of request, in seconds. `percentiles` by name: p50, p99.9."""

    kind: str
    count: int
    mean_s: float
    percentiles: dict[str, float]
    max_s: float


class ServerShare(Struct):
    server: str
    pages: int
    share: float
    over_mean: float


class Summary(Struct):
    clients: list[Rates]
    together: Rates
    latencies: list[Latency]
    failures: list[Failure]
    servers: list[ServerShare]
    spread: float | None
    """The most that a server delivered, over the mean of all; None if none delivered."""
    late: Latency | None
    skipped: int


def summarise(report: Report) -> Summary:
    tallies = [tally for client in report.clients for tally in client.tallies.values()]
    shares = server_shares(report.servers, [client.served for client in report.clients])
    late = [histogram.from_plain(client.late) for client in report.clients if client.late]
    return Summary(
        clients=[_rates([client], client.client) for client in report.clients],
        together=_rates(report.clients, None),
        latencies=_latencies(report.clients),
        failures=merge_failures(failure for tally in tallies for failure in tally.failures),
        servers=shares,
        spread=max((one.over_mean for one in shares), default=None) if any(s.pages for s in shares) else None,
        late=_latency("late", histogram.merged(late)) if late else None,
        skipped=sum(tally.skipped for tally in tallies),
    )


def merge_failures(failures: Iterable[Failure]) -> list[Failure]:
    """One for each kind, most frequent first, with the example that came first."""
    by_kind: dict[str, Failure] = {}
    for one in failures:
        known = by_kind.get(one.kind)
        if known is None:
            by_kind[one.kind] = Failure(one.kind, one.count, one.at_s, one.first)
            continue
        known.count += one.count
        if one.at_s < known.at_s:
            known.at_s, known.first = one.at_s, one.first
    return sorted(by_kind.values(), key=lambda failure: (-failure.count, failure.kind))


def server_shares(servers: Sequence[str], served: Iterable[dict[str, int]]) -> list[ServerShare]:
    """Each server's pages against the mean over all that were there, those that served none too."""
    pages: Counter[str] = Counter(dict.fromkeys(servers, 0))
    for one in served:
        pages.update(one)
    total = sum(pages.values())
    mean = total / len(pages) if pages else 0.0
    return [
        ServerShare(server, count, count / total if total else 0.0, count / mean if mean else 0.0)
        for server, count in sorted(pages.items())
    ]


def _rates(clients: Sequence[ClientResult], number: int | None) -> Rates:
    tallies = [tally for client in clients for tally in client.tallies.values()]
    elapsed_s = max((client.elapsed_s for client in clients), default=0.0)
    requests = sum(tally.requests for tally in tallies)
    pages = sum(tally.pages for tally in tallies)
    size = sum(tally.bytes for tally in tallies)
    failed = sum(failure.count for tally in tallies for failure in tally.failures)
    per_s = 1 / elapsed_s if elapsed_s else 0.0
    cpu_s = sum(client.cpu_s for client in clients)
    return Rates(
        number, requests, pages, size, failed, elapsed_s, cpu_s * per_s,
        requests * per_s, pages * per_s, size * per_s,
    )  # fmt: skip


def _latencies(clients: Sequence[ClientResult]) -> list[Latency]:
    kinds = sorted({kind for client in clients for kind in client.tallies})
    return [
        _latency(
            kind,
            histogram.merged(
                histogram.from_plain(client.tallies[kind].latency)
                for client in clients
                if kind in client.tallies
            ),
        )
        for kind in kinds
    ]


def _latency(kind: str, times: Histogram) -> Latency:
    percentiles = {f"p{percent:g}": times.percentile(percent) for percent in PERCENTILES}
    return Latency(kind, times.count, times.mean_s(), percentiles, times.most_s)


# -- JSON -------------------------------------------------------------------------------------


def to_json(report: Report) -> bytes:
    """The report with its summary. The histograms are in it, so that reports can be merged."""
    whole = msgspec.structs.replace(report, summary=summarise(report))
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def from_json(text: bytes) -> Report:
    """The report that `text` holds; ReportError if it is none, or of a newer schema."""
    try:
        schema = msgspec.json.decode(text, type=_Schema).schema
        if schema != SCHEMA:
            raise ReportError(f"a report of schema {schema}; this version reads schema {SCHEMA}")
        return msgspec.json.decode(text, type=Report)
    except msgspec.MsgspecError as error:
        raise ReportError(f"not a report of dws-loadgen: {error}") from None


class _Schema(Struct):
    schema: int


# -- text --------------------------------------------------------------------------------------


def to_text(report: Report) -> str:
    """The analysis, for people: at most 100 columns wide."""
    summary = report.summary or summarise(report)
    parts = [
        headline(report),
        rates_table(summary),
        latency_table(summary, open_load=report.plan.rate is not None),
        failures_text(summary.failures, summary.together.requests),
    ]
    if summary.spread is not None:
        parts.append(shares_table(summary))
    if summary.skipped:
        parts.append(
            f"{summary.skipped:,} pages of uploads were not sent: the cluster had them, byte for byte."
        )
    return "\n\n".join(parts)


def headline(report: Report) -> str:
    """What load this was."""
    plan = report.plan
    load = "closed load" if plan.rate is None else f"open load, {plan.rate:g} requests a second"
    parts = [
        f"{plan.request}, {load}: {_count(plan.clients, 'client')} × {_count(plan.threads, 'thread')}",
        f"{_count(plan.files, 'page')} a request",
    ]
    if plan.request != "upload":
        parts.append(f"{plan.choice} choice of {report.pages:,}")
    parts.append(f"seed {plan.seed}")
    interrupted = "\nInterrupted: this is what was measured until then." if report.interrupted else ""
    return ", ".join(parts) + interrupted


def rates_table(summary: Summary) -> str:
    rows = [("", "requests", "pages", "failed", "seconds", "requests/s", "pages/s", "MB/s", "CPU")]
    for rates in [*summary.clients, summary.together]:
        name = "together" if rates.client is None else f"client {rates.client + 1}"
        rows.append((
            name, f"{rates.requests:,}", f"{rates.pages:,}", f"{rates.failed:,}", f"{rates.elapsed_s:.2f}",
            f"{rates.requests_per_s:,.0f}", f"{rates.pages_per_s:,.0f}", f"{rates.bytes_per_s / 1e6:,.1f}",
            f"{rates.cpu_share:.0%}",
        ))  # fmt: skip
    return table(rows)


def latency_table(summary: Summary, *, open_load: bool) -> str:
    since = "intended start" if open_load else "start"
    rows = [("", "mean", *(f"p{percent:g}" for percent in PERCENTILES), "max")]
    late = [summary.late] if summary.late else []
    for one in [*summary.latencies, *late]:
        name = "sent late by" if one is summary.late else one.kind
        rows.append((name, *(_ms(time) for time in (one.mean_s, *one.percentiles.values(), one.max_s))))
    return f"Response time of a request, from its {since}, in ms:\n{table(rows)}"


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
    return (
        f"Pages served by each web server; the busiest served {summary.spread:.3f} times the mean:\n"
        f"{table(rows, left={0, 4})}"
    )


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


def even(counts: Sequence[int]) -> float:
    """The greatest over the mean; 1 is perfectly even, and so is nothing at all."""
    return max(counts) / fmean(counts) if any(counts) else 1.0


def _ms(time_s: float) -> str:
    return f"{time_s * 1000:,.2f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
