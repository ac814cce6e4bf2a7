"""What is concluded from what was measured: the summary of a report.

What lives here: rates, percentiles, availability, balance, what nodes used. What must not: measuring, files,
output; whether the generator was the limit (doubt). Rates are of what succeeded; a failed request is counted
as failed and nowhere else.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from loadgen import histogram
from loadgen.doubt import Limit, limit_of
from loadgen.histogram import Histogram
from loadgen.measured import ClientResult, Failure, NodeSample, NodeUse, merge_failures
from loadgen.timeline import Outage, outages, timeline

if TYPE_CHECKING:
    from loadgen.report import Report

PERCENTILES: Final = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)


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


class Availability(Struct):
    """`share`: of all requests, those that succeeded; None if there were none. Outages: to a slice."""

    share: float | None
    without_service_s: float
    outages: list[Outage]


class Use(Struct):
    """What a node used over `seconds`. `cpu_share`: 1 is a whole core. `rss_bytes`: at its most."""

    seconds: float
    cpu_share: float
    rss_bytes: int
    read_per_s: float
    written_per_s: float
    sent_per_s: float
    received_per_s: float


class NodeFigures(Struct):
    name: str
    role: str
    idle: Use | None
    loaded: Use | None
    died_at_s: float | None = None
    note: str = ""


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
    fairness: float | None = None
    """Jain's index of what servers delivered: 1 is even, 1/n is all from one of n."""
    availability: Availability | None = None
    turnaround_s: float = 0.0
    """The whole job of all clients, from their threads' start to the end of the last."""
    nodes: list[NodeFigures] = []
    speed_up: float | None = None
    """Against the report's baseline: pages a second over its, or requests where there are no pages."""
    limit: Limit | None = None


def summarise(report: "Report") -> Summary:
    """ValueError if the report holds what no run measures."""
    tallies = [tally for client in report.clients for tally in client.tallies.values()]
    shares = server_shares(report.servers, [client.served for client in report.clients])
    late = [histogram.from_plain(client.late) for client in report.clients if client.late]
    together = _rates(report.clients, None)
    nodes = [node_figures(node) for node in report.nodes]
    here = [figures.loaded for node, figures in zip(report.nodes, nodes, strict=True) if node.pid]
    return Summary(
        clients=[_rates([client], client.client) for client in report.clients],
        together=together,
        latencies=_latencies(report.clients),
        failures=merge_failures(failure for tally in tallies for failure in tally.failures),
        servers=shares,
        spread=max((one.over_mean for one in shares), default=None) if any(s.pages for s in shares) else None,
        late=_latency("late", histogram.merged(late)) if late else None,
        skipped=sum(tally.skipped for tally in tallies),
        fairness=jain([one.pages for one in shares]),
        availability=_availability(report, together),
        turnaround_s=max((client.turnaround_s for client in report.clients), default=0.0),
        nodes=nodes,
        speed_up=_speed_up(report, together),
        limit=limit_of(report, sum(use.cpu_share for use in here if use)),
    )


# -- rates and times ------------------------------------------------------------------------


def _rates(clients: Sequence[ClientResult], number: int | None) -> Rates:
    tallies = [tally for client in clients for tally in client.tallies.values()]
    elapsed_s = max((client.elapsed_s for client in clients), default=0.0)
    requests = sum(tally.requests for tally in tallies)
    pages = sum(tally.pages for tally in tallies)
    size = sum(tally.bytes for tally in tallies)
    failed = sum(failure.count for tally in tallies for failure in tally.failures)
    per_s = 1 / elapsed_s if elapsed_s > 0 else 0.0
    cpu_s = sum(client.cpu_s for client in clients)
    return Rates(
        number, requests, pages, size, failed, elapsed_s, cpu_s * per_s,
        requests * per_s, pages * per_s, size * per_s,
    )  # fmt: skip


def response_times(clients: Iterable[ClientResult], kind: str | None = None) -> Histogram:
    """Of one kind of request, or of all, over all clients."""
    return histogram.merged(
        histogram.from_plain(tally.latency)
        for client in clients
        for name, tally in client.tallies.items()
        if kind in (None, name)
    )


def _latencies(clients: Sequence[ClientResult]) -> list[Latency]:
    found = sorted({kind for client in clients for kind in client.tallies})
    return [_latency(kind, response_times(clients, kind)) for kind in found]


def _latency(kind: str, times: Histogram) -> Latency:
    percentiles = {f"p{percent:g}": times.percentile(percent) for percent in PERCENTILES}
    return Latency(kind, times.count, times.mean_s(), percentiles, times.most_s)


def _speed_up(report: "Report", together: Rates) -> float | None:
    base = report.baseline
    if base is None:
        return None
    mine, its = together.pages_per_s, base.pages_per_s
    if not (mine and its):
        mine, its = together.requests_per_s, base.requests_per_s
    return mine / its if its > 0 else None


def _availability(report: "Report", together: Rates) -> Availability:
    total = together.requests + together.failed
    median_s = response_times(report.clients).percentile(50)
    found = outages(timeline(report.clients), together.elapsed_s, median_s, report.plan.rate)
    share = together.requests / total if total else None
    return Availability(share, sum(one.for_s for one in found), found)


# -- balance ----------------------------------------------------------------------------------


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


def jain(counts: Sequence[int]) -> float | None:
    """Jain's fairness index, (Σx)² / (n Σx²); None if there is nothing to share."""
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else None


def even(counts: Sequence[int]) -> float:
    """The greatest over the mean; 1 is perfectly even, and so is nothing at all."""
    return max(counts) / fmean(counts) if any(counts) else 1.0


# -- nodes ------------------------------------------------------------------------------------


def node_figures(node: NodeUse) -> NodeFigures:
    return NodeFigures(
        node.name, node.role, use_of(node.idle), use_of(node.loaded), node.died_at_s, node.note
    )  # fmt: skip


def use_of(samples: Sequence[NodeSample]) -> Use | None:
    """What was used between the first sample and the last; None if there are not two."""
    if len(samples) < 2 or not (seconds := samples[-1].at_s - samples[0].at_s) > 0:
        return None
    first, last = samples[0], samples[-1]

    def rate(begin: float, end: float) -> float:
        return max(0.0, end - begin) / seconds

    return Use(
        seconds=seconds,
        cpu_share=rate(first.cpu_s, last.cpu_s),
        rss_bytes=max(one.rss_bytes for one in samples),
        read_per_s=rate(first.read_bytes, last.read_bytes),
        written_per_s=rate(first.written_bytes, last.written_bytes),
        sent_per_s=rate(first.sent_bytes, last.sent_bytes),
        received_per_s=rate(first.received_bytes, last.received_bytes),
    )
