"""What the dashboard shows, computed from one answer of the cluster after the other.

What lives here: rates, shares and percentiles from the differences of counts, five
minutes of history, and the cut to a bounded size. What must not: asking, waiting,
clocks (times are arguments), HTTP. Pure, and tested as such.

Counts rise for ever within one life of a node. One that fell belongs to a new life
and counts from zero; the first sight of a node is no difference at all.
"""

import re
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any, Final

from dws.limits import RESPONSE_BOUNDS_S
from dws.messages import ClusterStatus, NodeStatsAre, RecentChoice, ServerStatus
from dws.names import format_version

HISTORY: Final = 300
"""Points that are kept: at one a second, five minutes."""
#: Rates and the chart's percentiles are taken over this many polls: servers report once a second, so
#: that a single second may hold the news of none or of two.
_WINDOW: Final = 3
#: The percentiles shown as numbers: over this many.
_LONG_WINDOW: Final = 10
_HOT_MAX: Final = 10
_CHOICES_MAX: Final = 8
_CANDIDATES_MAX: Final = 4
_SERVERS_MAX: Final = 100
_TEXT_MAX: Final = 160

Counts = list[int]
BUCKETS: Final = len(RESPONSE_BOUNDS_S) + 1

#: What one point of the history holds, in this order; None where nothing is known.
FIELDS: Final = (
    "t", "served", "lookups", "redirects", "failed", "p50", "p95", "p99", "redirect_p50", "redirect_p99",
)  # fmt: skip


def rise(before: int | None, now: int) -> int:
    """By how much a count rose since it was last seen."""
    if before is None:
        return 0
    return now - before if now >= before else now


def rises(before: Sequence[int] | None, now: Sequence[int]) -> Counts:
    """The same for a histogram. It fell if any bucket did."""
    if before is None or len(before) != len(now):
        return [0] * len(now)
    if any(new < old for old, new in zip(before, now, strict=True)):
        return list(now)
    return [new - old for old, new in zip(before, now, strict=True)]


def added(histograms: Iterable[Sequence[int]]) -> Counts:
    """Bucket by bucket; those of another shape (another version's) are left out."""
    total = [0] * BUCKETS
    for counts in histograms:
        if len(counts) == BUCKETS:
            for index, count in enumerate(counts):
                total[index] += count
    return total


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The response time that this share of requests stayed within, in seconds; None if there were none.

    Within a bucket requests are taken to be spread evenly. Beyond the last bound nothing is known but
    the bound itself.
    """
    total = sum(counts)
    if total == 0:
        return None
    wanted = share * total
    passed = 0
    for (low, high), count in zip(pairwise((0.0, *RESPONSE_BOUNDS_S)), counts, strict=False):
        if count and passed + count >= wanted:
            return low + (high - low) * (wanted - passed) / count
        passed += count
    return RESPONSE_BOUNDS_S[-1]


class _Step:
    """What happened between two polls."""

    def __init__(self, span_s: float) -> None:
        self.span_s = span_s
        self.served: dict[int, int] = {}
        self.failed = 0
        self.lookups = 0
        self.redirects = 0
        self.response: Counts = [0] * BUCKETS
        self.redirect_times: Counts = [0] * BUCKETS


class Watch:
    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        self.points: deque[list[Any]] = deque(maxlen=HISTORY)
        """The history, oldest first: lists in the order of FIELDS."""
        self.status: ClusterStatus | None = None
        self.taken_at = 0.0
        self.error = ""
        self._steps: deque[_Step] = deque(maxlen=_LONG_WINDOW)
        self._served: dict[tuple[int, int], tuple[int, int]] = {}  # (number, incarnation) → served, failed
        self._lookups: tuple[int, int] | None = None  # epoch, names looked up
        self._redirects: tuple[int, int, Counts] | None = None
        self._response: dict[str, Counts] = {}
        self._hot: dict[str, NodeStatsAre] = {}

    # -- what comes in ------------------------------------------------------------------------

    def take(
        self,
        status: ClusterStatus,
        stats: Iterable[NodeStatsAre],
        redirects: Sequence[int],
        failed_redirects: int,
        now: float,
    ) -> None:
        """One poll's answers. `stats` may be of some servers only: the others are asked another time."""
        step = _Step(max(1e-3, now - self.taken_at) if self.status else 0.0)
        self._count_servers(status, step)
        looked_up = self._lookups[1] if self._lookups and self._lookups[0] == status.epoch else None
        step.lookups = rise(looked_up, status.lookups)
        self._lookups = (status.epoch, status.lookups)
        self._count_redirects(redirects, failed_redirects, step)
        for each in stats:
            step.response = added([step.response, rises(self._response.get(each.name), each.response)])
            self._response[each.name] = list(each.response)
            if each.hot or each.hot_last:
                self._hot[each.name] = each
        present = {server.name for server in status.servers}
        self._response = {name: counts for name, counts in self._response.items() if name in present}
        self._hot = {name: each for name, each in self._hot.items() if name in present}
        self.status, self.taken_at, self.error = status, now, ""
        if step.span_s:
            self._steps.append(step)
            self.points.append(self._point(now))

    def lost(self, error: str, now: float) -> None:
        """A poll failed: the history shows a gap."""
        self.error = error[:_TEXT_MAX]
        self._steps.clear()
        self.points.append([round(now, 1), *[None] * (len(FIELDS) - 1)])

    def _count_servers(self, status: ClusterStatus, step: _Step) -> None:
        counted = {}
        for server in status.servers:
            life = (server.number, server.incarnation)
            served, failed = self._served.get(life, (None, None))
            step.served[server.number] = rise(served, server.served)
            step.failed += rise(failed, server.failed)
            counted[life] = (server.served, server.failed)
        self._served = counted

    def _count_redirects(self, redirects: Sequence[int], failed: int, step: _Step) -> None:
        total = sum(redirects)
        before = self._redirects or (None, None, None)
        step.redirects = rise(before[0], total)
        step.failed += rise(before[1], failed)
        step.redirect_times = rises(before[2], redirects)
        self._redirects = (total, failed, list(redirects))

    # -- what is made of it ----------------------------------------------------------------------

    def _point(self, now: float) -> list[Any]:
        steps = list(self._steps)[-_WINDOW:]
        rates = self._rates(steps)
        response = added(step.response for step in steps)
        redirect = added(step.redirect_times for step in steps)
        times = [quantile(response, share) for share in (0.5, 0.95, 0.99)]
        times += [quantile(redirect, share) for share in (0.5, 0.99)]
        return [round(now, 1), *rates, *map(_short, times)]

    @staticmethod
    def _rates(steps: Sequence[_Step]) -> list[float]:
        """Pages served, names looked up, redirects, failures: a second."""
        span_s = sum(step.span_s for step in steps) or 1.0
        totals = (
            sum(sum(step.served.values()) for step in steps),
            sum(step.lookups for step in steps),
            sum(step.redirects for step in steps),
            sum(step.failed for step in steps),
        )
        return [round(total / span_s, 2) for total in totals]

    def feed(self, now: float, servers_max: int = _SERVERS_MAX, rows_max: int = _HOT_MAX) -> dict[str, Any]:
        """One event of the dashboard. Texts are cut: it is a view, not an account."""
        status = self.status
        base = {
            "gateway": _cut(self.gateway),
            "error": self.error,
            "point": self.points[-1] if self.points else None,
        }
        if status is None:
            return base | {"age": None}
        return base | {
            "age": round(max(0.0, now - self.taken_at), 1),
            "cluster": self._cluster(status),
            "now": self._now(),
            "servers": self._servers(status, servers_max),
            "servers_total": len(status.servers),
            "choices": [_choice(each) for each in status.choices[: min(_CHOICES_MAX, rows_max)]],
            "hot": self.hot()[:rows_max],
        }

    @staticmethod
    def _cluster(status: ClusterStatus) -> dict[str, Any]:
        return {
            "id": status.cluster.hex()[:8],
            "epoch": status.epoch,
            "policy": _cut(status.policy),
            "copies": status.copies,
            "pages": status.pages,
            "bytes": status.bytes_visible,
            "page_copies": list(status.page_copies),
            "open_batches": status.open_batches,
            "orders": status.counters.get("orders open", 0),
            "garbage": status.garbage,
            "uptime": round(status.uptime_s),
            "states": _states(status.servers),
        }

    def _now(self) -> dict[str, Any]:
        served, lookups, redirects, failed = self._rates(list(self._steps)[-_WINDOW:])
        response = added(step.response for step in self._steps)
        redirect = added(step.redirect_times for step in self._steps)
        return {
            "served": served, "lookups": lookups, "redirects": redirects, "failed": failed,
            "p50": _short(quantile(response, 0.5)), "p95": _short(quantile(response, 0.95)),
            "p99": _short(quantile(response, 0.99)),
            "redirect_p50": _short(quantile(redirect, 0.5)), "redirect_p99": _short(quantile(redirect, 0.99)),
        }  # fmt: skip

    def _servers(self, status: ClusterStatus, servers_max: int) -> list[dict[str, Any]]:
        """All, or those that need a look first: not alive, then most asked for."""
        steps = list(self._steps)
        short = steps[-_WINDOW:]
        span_s = sum(step.span_s for step in short) or 1.0
        recent = {s.number: sum(step.served.get(s.number, 0) for step in short) for s in status.servers}
        longer = {s.number: sum(step.served.get(s.number, 0) for step in steps) for s in status.servers}
        total = sum(longer.values())
        servers = status.servers
        if len(servers) > servers_max:
            servers = sorted(servers, key=lambda s: (s.state == "alive", -longer[s.number]))[:servers_max]
        return [
            {
                "name": _cut(server.name),
                "state": _cut(server.state),
                "http": server.http_endpoint if len(server.http_endpoint) <= 2 * _TEXT_MAX else "",
                "load": _short(server.download_load_s) if 0 <= server.download_load_s < 1e6 else None,
                "rate": round(recent[server.number] / span_s, 2),
                "share": round(longer[server.number] / total, 4) if total else None,
                "stored": server.bytes_stored,
                "free": server.bytes_free,
                "pages": server.pages,
                "waiting": server.waiting,
                "cpu": round(server.cpu_share, 3) if isfinite(server.cpu_share) else 0,
                "silent": round(server.last_beat_age_s, 1) if isfinite(server.last_beat_age_s) else None,
                "note": _cut(server.note),
            }
            for server in sorted(servers, key=lambda s: (_by_name(s.name), s.number))
        ]

    def hot(self) -> list[dict[str, Any]]:
        """The most visited pages of this period and the last, over all servers that were asked."""
        merged: dict[str, list[int]] = {}
        for each in self._hot.values():
            here = set()
            for name, visits, size_bytes in [*each.hot, *each.hot_last]:
                counted = merged.setdefault(name, [0, 0, 0])
                counted[0] += visits
                counted[1] += size_bytes
                here.add(name)
            for name in here:
                merged[name][2] += 1
        most = sorted(merged.items(), key=lambda item: (-item[1][0], item[0]))[:_HOT_MAX]
        return [
            {"name": _cut(name), "visits": visits, "bytes": size_bytes, "servers": servers}
            for name, (visits, size_bytes, servers) in most
        ]


def _choice(choice: RecentChoice) -> dict[str, Any]:
    return {
        "age": round(choice.age_s, 1),
        "name": _cut(choice.name),
        "version": format_version(choice.version),
        "chosen": _cut(choice.chosen),
        "candidates": [(_cut(name), _short(load)) for name, load in choice.candidates[:_CANDIDATES_MAX]],
        "reason": _cut(choice.reason),
    }


def _states(servers: Iterable[ServerStatus]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for server in servers:
        counted[_cut(server.state)] = counted.get(_cut(server.state), 0) + 1
    return counted


def _by_name(name: str) -> list[tuple[str, int]]:
    """web-2 before web-10."""
    parts = re.findall(r"([^0-9]*)([0-9]{0,18})", name[:_TEXT_MAX])
    return [(text, int(digits or 0)) for text, digits in parts]


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"


def _short(seconds: float | None) -> float | None:
    """Four significant digits: what a person reads, in few bytes."""
    if seconds is None or not isfinite(seconds):
        return None
    return float(f"{seconds:.4g}")
