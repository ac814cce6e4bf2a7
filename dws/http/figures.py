"""The cluster's figures over HTTP: status, metrics, and the dashboard with its events.

What lives here: the routes below /_dws/ that show figures, and the polls behind them.
What must not: computing with the figures (watch.py), their names in Prometheus
(metrics.py), redirects (gateway.py).

Nobody watching costs nothing: the cluster is asked once a second while somebody has
the dashboard open, and for a minute after, so that a page that is loaded again has its
history; else only when a status or metrics request comes, and at most once a second.

Granian's stream response takes whatever is sent, however slow the reader. So an event
is small, and a stream ends after a while or after a number of bytes: the page comes
back by itself and asks for what it has missed.
"""

import asyncio
import base64
import hashlib
import re
import time
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from dws.errors import DwsError, Unreachable
from dws.http.calls import LoopCalls
from dws.http.watch import BUCKETS, FIELDS, Watch, quantile
from dws.limits import KIB, MIB, RESPONSE_BOUNDS_S
from dws.messages import ClusterStatus, NodeStats, NodeStatsAre, ServerStatus, Status, to_plain

PREFIX: Final = "/_dws/"
_ROUTES: Final = frozenset({"/_dws", "/_dws/", "/_dws/status", "/_dws/metrics", "/_dws/events"})

SUBSCRIBERS_MAX: Final = 64
EVENT_MAX_BYTES: Final = 64 * KIB
STREAM_MAX_BYTES: Final = 2 * MIB
STREAM_MAX_S: Final = 120.0
"""What a slow reader can make the process hold, and how soon it is let go."""

_POLL_S: Final = 1.0
_WATCH_ON_S: Final = 60.0
_ASK_S: Final = 0.8
#: Servers asked for their figures in one poll of the dashboard, in turn; all are asked for metrics.
_SERVERS_A_POLL: Final = 50
#: A server sorts its pages for the hottest: not every time.
_HOT_EVERY: Final = 5
_HOT_TOP: Final = 20
_RECONNECT_MS: Final = 1000

_DASHBOARD: Final = Path(__file__).with_name("dashboard") / "index.html"

Headers = list[tuple[str, str]]
_COMMON: Final[Headers] = [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")]
_FRESH: Final[Headers] = [*_COMMON, ("cache-control", "no-store")]
_JSON: Final[Headers] = [*_FRESH, ("content-type", "application/json; charset=utf-8")]
_TEXT: Final[Headers] = [*_FRESH, ("content-type", "text/plain; charset=utf-8")]
_EVENTS: Final[Headers] = [*_FRESH, ("content-type", "text/event-stream; charset=utf-8")]

_json = msgspec.json.Encoder()


class Redirects:
    """How long this gateway's redirects took. Called for each one: cheap."""

    __slots__ = ("counts", "failures", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.total_s = 0.0
        self.failures = 0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(RESPONSE_BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    def failed(self) -> None:
        """No redirect could be given, for a reason that is not the client's."""
        self.failures += 1


class Taken(Struct):
    """What the cluster answered, once."""

    at: float
    status: ClusterStatus
    stats: list[NodeStatsAre]


class Figures:
    def __init__(self, calls: LoopCalls, balancer: str, name: str) -> None:
        self.name = name
        self.redirects = Redirects()
        self.watch = Watch(name)
        self._calls = calls
        self._balancer = balancer
        self._page, self._page_headers = _load_page()
        self._subscribers = 0
        self._poller: asyncio.Task[None] | None = None
        self._watched_until = 0.0
        self._event: asyncio.Future[bytes] | None = None
        self._number = 0
        self._turn = 0
        self._asking: asyncio.Task[Taken] | None = None
        self._taken: Taken | None = None
        self._closed = False

    async def handle(self, path: str, scope: Any, proto: Any) -> bool:
        """Answer if the path is one of these routes; False if it is not."""
        if path not in _ROUTES:
            return False
        if scope.method not in ("GET", "HEAD"):
            proto.response_str(405, [*_TEXT, ("allow", "GET, HEAD")], f"{path} can be read only\n")
        elif path == "/_dws":
            proto.response_empty(302, [*_FRESH, ("location", PREFIX)])
        elif path == PREFIX:
            proto.response_bytes(200, self._page_headers, self._page)
        elif path == "/_dws/events":
            if scope.method == "HEAD":
                proto.response_empty(200, _EVENTS)
            else:
                await self._stream(scope.query_string, proto)
        else:
            await (self._status if path == "/_dws/status" else self._metrics)(proto)
        return True

    def close(self) -> None:
        """End the polls and every stream. The calls are the gateway's to close, after this."""
        self._closed = True
        for task in (self._poller, self._asking):
            if task is not None:
                task.cancel()
        self._publish(b"")

    # -- asking ------------------------------------------------------------------------------

    async def taken(self) -> Taken:
        """The cluster's figures, of all servers, at most a second old. Requests that wait together share
        one round of questions."""
        if self._taken and time.monotonic() - self._taken.at < _POLL_S:
            return self._taken
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._take_all())
        # Whoever hangs up must not take the answer from the others.
        return await asyncio.shield(self._asking)

    async def _take_all(self) -> Taken:
        status = await self._ask_status()
        servers, stats = _reachable(status), []
        for start in range(0, len(servers), _SERVERS_A_POLL):
            stats += await self._ask_servers(servers[start : start + _SERVERS_A_POLL], 0)
        balancer = await self._ask_node(self._balancer, NodeStats(0))
        self._taken = Taken(time.monotonic(), status, stats + ([balancer] if balancer else []))
        return self._taken

    async def _ask_status(self) -> ClusterStatus:
        status = await self._calls.ask(self._balancer, Status(), _ASK_S)
        if not isinstance(status, ClusterStatus):
            raise Unreachable(f"{self._balancer} is no balancer")
        return status

    async def _ask_servers(self, servers: Iterable[ServerStatus], top: int) -> list[NodeStatsAre]:
        """Of those that answer in time."""
        question = NodeStats(top)
        found = await asyncio.gather(*(self._ask_node(each.endpoint, question) for each in servers))
        return [stats for stats in found if stats is not None]

    async def _ask_node(self, endpoint: str, question: NodeStats) -> NodeStatsAre | None:
        try:
            stats = await self._calls.ask(endpoint, question, _ASK_S)
        except DwsError:
            return None
        return stats if isinstance(stats, NodeStatsAre) else None

    # -- the dashboard -----------------------------------------------------------------------------

    async def _stream(self, query: str, proto: Any) -> None:
        if self._subscribers >= SUBSCRIBERS_MAX or self._closed:
            headers = [*_TEXT, ("retry-after", "10")]
            proto.response_str(503, headers, f"{SUBSCRIBERS_MAX} dashboards are open already\n")
            return
        self._subscribers += 1
        gone = asyncio.ensure_future(proto.client_disconnect())
        try:
            self._watch()
            await self._send_events(_since(query), proto.response_stream(200, _EVENTS), gone)
        finally:
            self._subscribers -= 1
            self._watched_until = time.monotonic() + _WATCH_ON_S
            gone.cancel()

    async def _send_events(self, since: float, transport: Any, gone: "asyncio.Future[Any]") -> None:
        end = time.monotonic() + STREAM_MAX_S
        event = self._history(since)
        sent = 0
        while event and not gone.done():
            try:
                await transport.send_bytes(event)
            except Exception:  # of Granian's own kinds: the client is gone
                return
            sent += len(event)
            left_s = end - time.monotonic()
            if sent > STREAM_MAX_BYTES or left_s <= 0:
                await transport.send_bytes(b"event: again\ndata: {}\n\n")
                return
            waited = self._next_event()
            await asyncio.wait({gone, waited}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            event = waited.result() if waited.done() and not waited.cancelled() else b": still here\n\n"

    def _history(self, since: float) -> bytes:
        points = [point for point in self.watch.points if point[0] > since]
        history = {"fields": FIELDS, "points": points, "poll_s": _POLL_S, "feed": self._feed()}
        return b"retry: %d\n" % _RECONNECT_MS + framed("history", self._number, _json.encode(history))

    def _feed(self) -> dict[str, Any]:
        return self.watch.feed(time.monotonic())

    def _next_event(self) -> "asyncio.Future[bytes]":
        if self._event is None or self._event.done():
            self._event = asyncio.get_running_loop().create_future()
        return self._event

    def _publish(self, event: bytes) -> None:
        if self._event is not None and not self._event.done():
            self._event.set_result(event)

    def _watch(self) -> None:
        self._watched_until = time.monotonic() + _WATCH_ON_S
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll_on())

    async def _poll_on(self) -> None:
        due = time.monotonic()
        while self._subscribers or time.monotonic() < self._watched_until:
            await self._poll()
            due = max(due + _POLL_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _poll(self) -> None:
        watch, redirects = self.watch, self.redirects
        try:
            status = await self._ask_status()
            servers = _reachable(status)
            start = self._turn * _SERVERS_A_POLL % max(1, len(servers))
            top = _HOT_TOP if self._turn % _HOT_EVERY == 0 or len(servers) > _SERVERS_A_POLL else 0
            self._turn += 1
            stats = await self._ask_servers(servers[start : start + _SERVERS_A_POLL], top)
            watch.take(status, stats, redirects.counts, redirects.failures, time.monotonic())
        except DwsError as error:
            watch.lost(str(error), time.monotonic())
        self._number += 1
        if self._subscribers:
            self._publish(framed("feed", self._number, _bounded(watch)))

    # -- status and metrics -----------------------------------------------------------------------

    async def _status(self, proto: Any) -> None:
        try:
            taken = await self.taken()
        except DwsError as error:
            body = _json.encode({"gateway": self.name, "error": str(error)})
            proto.response_bytes(503, [*_JSON, ("retry-after", "1")], body)
            return
        counts = self.redirects.counts
        shown = {
            "gateway": self.name,
            "age_s": round(time.monotonic() - taken.at, 3),
            "redirects": {
                "answered": sum(counts),
                "failed": self.redirects.failures,
                "p50_s": quantile(counts, 0.5),
                "p99_s": quantile(counts, 0.99),
            },
            "cluster": to_plain(taken.status),
            "nodes": [to_plain(stats) for stats in taken.stats],
        }
        proto.response_bytes(200, _JSON, _json.encode(shown))

    async def _metrics(self, proto: Any) -> None:
        # Late, since it is the slowest import here and not everybody scrapes.
        from dws.http.metrics import CONTENT_TYPE, exposition

        try:
            taken: Taken | None = await self.taken()
        except DwsError:
            taken = None
        status, stats = (taken.status, taken.stats) if taken else (None, [])
        body = exposition(status, stats, self.name, self.redirects)
        proto.response_bytes(200, [*_FRESH, ("content-type", CONTENT_TYPE)], body)


def framed(event: str, number: int, data: bytes) -> bytes:
    """One server-sent event. `data` is JSON on one line."""
    return b"event: %s\nid: %d\ndata: %s\n\n" % (event.encode(), number, data)


def _bounded(watch: Watch) -> bytes:
    """The feed, with fewer rows if long names made it too large."""
    servers, rows = 100, 10
    while True:
        data = _json.encode(watch.feed(time.monotonic(), servers, rows))
        if len(data) <= EVENT_MAX_BYTES or servers <= 1:
            return data
        servers //= 2
        rows = max(1, rows // 2)


def _reachable(status: ClusterStatus) -> list[ServerStatus]:
    return [server for server in status.servers if server.state != "dead" and server.endpoint]


def _since(query: str) -> float:
    """The time of the last point that the page has; it asks for those after it."""
    found = re.fullmatch(r"since=(\d{1,12}(?:\.\d{1,3})?)", query)
    return float(found[1]) if found else -1.0


def _load_page() -> tuple[bytes, Headers]:
    """The page, and headers under which nothing but what is in it can run or be loaded."""
    page = _DASHBOARD.read_bytes()
    sources = {
        kind: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
            for text in re.findall(rb"<%s>(.*?)</%s>" % (kind, kind), page, re.DOTALL)
        )
        for kind in (b"script", b"style")
    }
    policy = (
        f"default-src 'none'; script-src {sources[b'script']}; style-src {sources[b'style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = [
        *_COMMON,
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("content-security-policy", policy),
        ("x-frame-options", "DENY"),
    ]
    return page, headers
