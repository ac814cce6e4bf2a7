"""The cluster's figures in Prometheus' text format.

What lives here: names, units and labels of the exported metrics. What must not:
asking for the figures (figures.py). No page name is ever a label: their number has
no bound.

A registry is made for each scrape: all values come from the answers just taken, so
that nothing lingers of servers that are gone.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dws.limits import RESPONSE_BOUNDS_S
from dws.membership import ALIVE, CONTESTED, DEAD, DRAINING, JOINING, SUSPECT
from dws.messages import ClusterStatus, NodeStatsAre, ServerStatus

if TYPE_CHECKING:
    from dws.http.figures import Redirects

CONTENT_TYPE: Final[str] = CONTENT_TYPE_LATEST
_STATES: Final = (ALIVE, SUSPECT, DEAD, JOINING, CONTESTED, DRAINING)
_COPIES: Final = ("0", "1", "2", "3+")
#: Kinds of events that one node may count; what a hostile peer provokes makes no more.
_EVENTS_MAX: Final = 200

#: name, what it is, field of ClusterStatus
_CLUSTER_GAUGES: Final = (
    ("dws_epoch", "Starts of the balancer's catalog, as fenced on disk.", "epoch"),
    ("dws_pages", "Pages that are visible.", "pages"),
    ("dws_visible_bytes", "Bytes of all visible pages, each counted once.", "bytes_visible"),
    ("dws_copies_wanted", "Copies of each page that the cluster keeps by default.", "copies"),
    ("dws_open_batches", "Uploads and removals that are not decided yet.", "open_batches"),
    ("dws_garbage_records", "Records on servers that the catalog no longer names.", "garbage"),
    ("dws_balancer_uptime_seconds", "Time since the balancer started.", "uptime_s"),
)
_SERVER_GAUGES: Final = (
    ("dws_server_pages", "Records that the server holds.", "pages"),
    ("dws_server_stored_bytes", "Bytes that the server stores.", "bytes_stored"),
    ("dws_server_free_bytes", "Bytes that uploads may still take there.", "bytes_free"),
    ("dws_server_period_visits", "Visits in this statistics period so far.", "visits"),
    ("dws_server_last_period_visits", "Visits in the whole last statistics period.", "visits_last_period"),
    ("dws_server_waiting_requests", "Requests that waited at the last heartbeat.", "waiting"),
    ("dws_server_service_seconds", "Time that the server needs for one page.", "service_s"),
    ("dws_server_probe_rtt_seconds", "Response time as probed by the balancer.", "rtt_s"),
    ("dws_server_download_load_seconds", "What lookups choose by: the least wins.", "download_load_s"),
    ("dws_server_upload_load_ratio", "What uploads are placed by, relative to the mean.", "upload_load"),
    ("dws_server_cpu_ratio", "Share of one processor core in use.", "cpu_share"),
    ("dws_server_last_heartbeat_age_seconds", "Time since the last heartbeat.", "last_beat_age_s"),
)
_SERVER_COUNTERS: Final = (
    ("dws_server_served_pages", "Pages, or chunks of large pages, that the server sent.", "served"),
    ("dws_server_failed_requests", "Requests for pages that the server could not answer.", "failed"),
    ("dws_server_sent_bytes", "Bytes of pages that the server sent.", "bytes_sent"),
)
#: Key of a node's counters → name, what it is, factor to the base unit, whether it only rises.
_PROCESS: Final = {
    "process cpu ms": ("dws_process_cpu_seconds", "Processor time of a node's process.", 1e-3, True),
    "process resident bytes": ("dws_process_resident_memory_bytes", "Resident memory.", 1.0, False),
    "process open files": ("dws_process_open_fds", "Open file descriptors.", 1.0, False),
    "process open files at most": ("dws_process_max_fds", "Bound on open file descriptors.", 1.0, False),
}
#: Figures of a server that are exported under a name of their own, and what is no count.
_ELSEWHERE: Final = frozenset({"served", "failed", "bytes sent", "orders open", *_PROCESS})


def exposition(
    status: ClusterStatus | None, stats: Sequence[NodeStatsAre], gateway: str, redirects: "Redirects"
) -> bytes:
    """All metrics as text. No status: the balancer did not answer, which is itself a figure."""
    registry = CollectorRegistry()
    registry.register(_Families(status, stats, gateway, redirects))
    ProcessCollector(registry=registry)
    text: bytes = generate_latest(registry)
    return text


class _Families(Collector):
    def __init__(
        self,
        status: ClusterStatus | None,
        stats: Sequence[NodeStatsAre],
        gateway: str,
        redirects: "Redirects",
    ) -> None:
        self._status = status
        self._stats = stats
        self._gateway = gateway
        self._redirects = redirects

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "dws_balancer_up", "Whether the balancer answered this scrape.", float(self._status is not None)
        )
        yield from self._of_gateway()
        if self._status is not None:
            yield from _of_cluster(self._status)
            yield from _of_servers(self._status.servers, self._stats)
        yield from _of_nodes(self._stats)

    def _of_gateway(self) -> Iterator[Metric]:
        redirects = self._redirects
        text = "Time from a request for a page to its redirect, lookup included."
        times = HistogramMetricFamily("dws_gateway_redirect_seconds", text, labels=["gateway"])
        times.add_metric([self._gateway], _buckets(redirects.counts), sum_value=redirects.total_s)
        yield times
        text = "Requests for pages that no redirect could be given for."
        failed = CounterMetricFamily("dws_gateway_failed_redirects", text, labels=["gateway"])
        failed.add_metric([self._gateway], redirects.failures)
        yield failed


def _of_cluster(status: ClusterStatus) -> Iterator[Metric]:
    about = {"id": status.cluster.hex(), "policy": status.policy}
    yield InfoMetricFamily("dws_cluster", "The cluster's identity and how it chooses.", about)
    for name, text, field in _CLUSTER_GAUGES:
        yield GaugeMetricFamily(name, text, getattr(status, field))
    copies = GaugeMetricFamily("dws_pages_by_copies", "Visible pages by live copies.", labels=["copies"])
    for label, count in zip(_COPIES, status.page_copies, strict=True):
        copies.add_metric([label], count)
    yield copies
    open_orders = status.counters.get("orders open", 0)
    yield GaugeMetricFamily(
        "dws_open_orders", "Copies and drops ordered from servers, not done.", open_orders
    )
    yield CounterMetricFamily("dws_looked_up_names", "Page names that lookups asked for.", status.lookups)


def _of_servers(servers: Sequence[ServerStatus], stats: Sequence[NodeStatsAre]) -> Iterator[Metric]:
    named = list(zip(_unique(server.name for server in servers), servers, strict=True))
    states = GaugeMetricFamily(
        "dws_server_state", "1 for the state that the server is in.", labels=["server", "state"]
    )
    for label, server in named:
        for state in dict.fromkeys([*_STATES, server.state]):
            states.add_metric([label, state], float(state == server.state))
    yield states
    for name, text, field in _SERVER_GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=["server"])
        for label, server in named:
            value = getattr(server, field)
            # A negative load says that there is none: the server must not be chosen.
            if isfinite(value) and value >= 0:
                gauge.add_metric([label], value)
        yield gauge
    for name, text, field in _SERVER_COUNTERS:
        counter = CounterMetricFamily(name, text, labels=["server"])
        for label, server in named:
            counter.add_metric([label], getattr(server, field))
        yield counter
    text = "Time in which the server answered requests for pages."
    times = HistogramMetricFamily("dws_server_response_seconds", text, labels=["server"])
    for label, each in zip(_unique(each.name for each in stats), stats, strict=True):
        if len(each.response) == len(RESPONSE_BOUNDS_S) + 1:
            # Servers count buckets only: there is no sum.
            times.add_metric([label], _buckets(each.response), sum_value=None)
    yield times


def _of_nodes(stats: Sequence[NodeStatsAre]) -> Iterator[Metric]:
    named = list(zip(_unique(each.name for each in stats), stats, strict=True))
    for key, (name, text, factor, rises) in _PROCESS.items():
        family: Any = (CounterMetricFamily if rises else GaugeMetricFamily)(name, text, labels=["node"])
        for label, each in named:
            if key in each.counters:
                family.add_metric([label], each.counters[key] * factor)
        yield family
    text = "What nodes count: refusals, malformed frames, retries and the like."
    events = CounterMetricFamily("dws_node_events", text, labels=["node", "event"])
    for label, each in named:
        kinds = [key for key in each.counters if key not in _ELSEWHERE]
        for key in kinds[:_EVENTS_MAX]:
            events.add_metric([label, key], each.counters[key])
    yield events


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Prometheus' are cumulative."""
    total, buckets = 0, []
    for bound, count in zip((*RESPONSE_BOUNDS_S, inf), counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == inf else repr(bound), float(total)))
    return buckets


def _unique(names: Iterable[str]) -> list[str]:
    """Two nodes of one name would spoil the whole scrape."""
    labels: dict[str, None] = {}
    for name in names:
        label, number = name, 2
        while label in labels:
            label, number = f"{name} #{number}", number + 1
        labels[label] = None
    return list(labels)
