"""The figures' routes without a network: what they answer is kept, what they ask is answered at once."""

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dws.errors import Unreachable
from dws.http import figures
from dws.http.figures import Figures, framed
from dws.http.watch import BUCKETS
from dws.messages import ClusterStatus, NodeStats, NodeStatsAre, ServerStatus, Status

HOSTILE = 'web"\n{}\\#2'


def server(number: int, name: str, state: str = "alive") -> ServerStatus:
    endpoint = "" if state == "dead" else f"tcp://{number}"
    return ServerStatus(
        number, name, state, endpoint, 1, 5, 100, 1000, 1, 2, 3 + number, 1, 0, 1e-4, 1e-3,
        -1.0 if state == "dead" else 1e-3, 1.0, 0.5, 77, 0.1, "", f"http://127.0.0.1:{number}",
    )  # fmt: skip


class Cluster:
    """In the place of LoopCalls."""

    def __init__(self) -> None:
        self.names = ["web-1", HOSTILE, HOSTILE]
        self.lost = False
        self.asked = 0

    def ask(self, endpoint: str, message: Any, timeout_s: float) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.lost:
            answer.set_exception(Unreachable("no answer"))
        elif isinstance(message, Status):
            self.asked += 1
            servers = [server(n, name) for n, name in enumerate(self.names)] + [server(9, "gone", "dead")]
            counters = {"orders open": 4, "lookups": 9}
            answer.set_result(
                ClusterStatus(
                    b"c" * 16, 3, 1, "least-load", 2, 7, 99, [0, 1, 6, 0], 0, 0, 5.0, 20, servers, counters
                )
            )
        else:
            assert isinstance(message, NodeStats)
            number = endpoint.removeprefix("tcp://")
            name = self.names[int(number)] if number.isdigit() else "balancer"
            response = [1] * BUCKETS if number.isdigit() else []
            counters = {"served": 5.0, "gate refused": 2.0}
            answer.set_result(NodeStatsAre(name, 30.0, 1.0, counters, [("/a", 1, 1)], [], response))
        return answer


class Transport:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def send_bytes(self, data: bytes) -> None:
        self.sent.append(data)


class Proto:
    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.transport = Transport()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.headers, self.body = status, dict(headers), body

    def response_str(self, status: int, headers: list[tuple[str, str]], body: str) -> None:
        self.response_bytes(status, headers, body.encode())

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.response_bytes(status, headers, b"")

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> Transport:
        self.response_bytes(status, headers, b"")
        return self.transport

    async def client_disconnect(self) -> None:
        await self.gone


Story = Callable[[Figures, Cluster], Coroutine[Any, Any, None]]


def play(story: Story) -> None:
    async def run() -> None:
        cluster = Cluster()
        shown = Figures(cluster, "tcp://b", "gateway")  # type: ignore[arg-type]
        try:
            await story(shown, cluster)
        finally:
            shown.close()
            await asyncio.sleep(0)

    asyncio.run(run())


async def get(shown: Figures, path: str, method: str = "GET", query: str = "") -> Proto:
    proto = Proto()
    scope = SimpleNamespace(method=method, query_string=query)
    assert await shown.handle(path, scope, proto)
    return proto


def events(sent: list[bytes]) -> list[tuple[str, Any]]:
    """As the standard parses a stream: (event, data)."""
    found = []
    for block in b"".join(sent).decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields["event"], msgspec.json.decode(fields["data"])))
    return found


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("waited in vain")


def test_other_paths_and_methods() -> None:
    async def story(shown: Figures, cluster: Cluster) -> None:
        assert not await shown.handle("/_dws/why/a", SimpleNamespace(method="GET"), None)
        assert (await get(shown, "/_dws/status", "POST")).status == 405
        moved = await get(shown, "/_dws")
        assert (moved.status, moved.headers["location"]) == (302, "/_dws/")

    play(story)


def test_the_page_may_run_nothing_but_what_is_in_it() -> None:
    async def story(shown: Figures, cluster: Cluster) -> None:
        page = await get(shown, "/_dws/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        [script] = re.findall(rb"<script>(.*?)</script>", page.body, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(script).digest()).decode() in policy
        for markup in (b"innerHTML", b"outerHTML", b"insertAdjacentHTML", b"document.write", b"eval("):
            assert markup not in page.body, "names would be markup"
        for loaded in re.findall(rb'(?:src|href)="(?!data:|/_dws/|#)([^"]*)"', page.body):
            pytest.fail(f"loaded from elsewhere: {loaded!r}")
        assert b" style=" not in page.body and b" onclick=" not in page.body

    play(story)


def test_metrics_parse_and_name_no_pages() -> None:
    async def story(shown: Figures, cluster: Cluster) -> None:
        shown.redirects.observe(0.0004)
        shown.redirects.observe(99.0)
        shown.redirects.failed()
        scraped = await get(shown, "/_dws/metrics")
        assert scraped.headers["content-type"].startswith("text/plain; version=")
        families = {each.name: each for each in text_string_to_metric_families(scraped.body.decode())}
        samples = {(s.name, *s.labels.values()): s.value for each in families.values() for s in each.samples}
        assert len(samples) == sum(len(each.samples) for each in families.values()), "no sample twice"
        for family in families.values():
            assert (
                family.name.startswith(("dws_", "process_"))
                and family.documentation
                and family.type != "unknown"
            )
            for sample in family.samples:
                assert family.type != "counter" or sample.name.endswith("_total")
                assert "/a" not in sample.labels.values()
        assert samples["dws_balancer_up",] == 1
        assert samples["dws_gateway_redirect_seconds_count", "gateway"] == 2
        assert samples["dws_gateway_redirect_seconds_bucket", "gateway", "0.0005"] == 1
        assert samples["dws_gateway_failed_redirects_total", "gateway"] == 1
        assert samples["dws_server_served_pages_total", HOSTILE] == 4
        assert samples["dws_server_served_pages_total", HOSTILE + " #2"] == 5, "two servers of one name"
        assert samples["dws_server_state", "gone", "dead"] == 1
        assert ("dws_server_download_load_seconds", "gone") not in samples
        assert samples["dws_server_response_seconds_bucket", "+Inf", "web-1"] == BUCKETS
        assert samples["dws_node_events_total", "gate refused", "balancer"] == 2
        assert samples["dws_pages_by_copies", "2"] == 6
        assert "process_cpu_seconds" in families

    play(story)


def test_without_the_balancer_metrics_say_so_and_status_is_unavailable() -> None:
    async def story(shown: Figures, cluster: Cluster) -> None:
        cluster.lost = True
        scraped = await get(shown, "/_dws/metrics")
        assert scraped.status == 200 and b"dws_balancer_up 0.0" in scraped.body
        told = await get(shown, "/_dws/status")
        assert told.status == 503 and msgspec.json.decode(told.body)["error"] == "no answer"

    play(story)


def test_status_is_asked_once_for_many_that_ask_at_once() -> None:
    async def story(shown: Figures, cluster: Cluster) -> None:
        told = await asyncio.gather(*(get(shown, "/_dws/status") for _ in range(20)))
        assert cluster.asked == 1
        body = msgspec.json.decode(told[0].body)
        assert body["cluster"]["pages"] == 7 and len(body["nodes"]) == 4

    play(story)


def test_framing() -> None:
    assert framed("feed", 7, b'{"a":"b\\nc"}') == b'event: feed\nid: 7\ndata: {"a":"b\\nc"}\n\n'


def test_a_stream_begins_with_the_history_and_goes_on_each_second() -> None:
    async def story(shown: Figures, cluster: Cluster) -> None:
        proto = Proto()
        scope = SimpleNamespace(method="GET", query_string="since=0.5")
        stream = asyncio.create_task(shown.handle("/_dws/events", scope, proto))
        await until(lambda: len(proto.transport.sent) >= 3)
        assert proto.headers["content-type"].startswith("text/event-stream")
        told = events(proto.transport.sent)
        assert [kind for kind, _ in told[:3]] == ["history", "feed", "feed"]
        assert told[1][1]["servers"][1]["name"] == HOSTILE
        cluster.lost = True
        await until(lambda: events(proto.transport.sent)[-1][1]["error"] == "no answer")
        proto.gone.set_result(None)
        await asyncio.wait_for(stream, 2)
        late = await_second(shown, "since=" + str(shown.watch.points[-1][0]))
        assert (await late)[0][1]["points"] == [], "only what it has missed"

    async def await_second(shown: Figures, query: str) -> list[tuple[str, Any]]:
        proto = Proto()
        scope = SimpleNamespace(method="GET", query_string=query)
        stream = asyncio.create_task(shown.handle("/_dws/events", scope, proto))
        await until(lambda: len(proto.transport.sent) >= 1)
        proto.gone.set_result(None)
        await asyncio.wait_for(stream, 2)
        return events(proto.transport.sent)

    play(story)


def test_dashboards_are_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "SUBSCRIBERS_MAX", 2)
    monkeypatch.setattr(figures, "STREAM_MAX_S", 0.2)

    async def story(shown: Figures, cluster: Cluster) -> None:
        streams = [asyncio.create_task(get(shown, "/_dws/events")) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await get(shown, "/_dws/events")
        assert refused.status == 503 and refused.headers["retry-after"]
        for proto in await asyncio.wait_for(asyncio.gather(*streams), 3):
            assert events(proto.transport.sent)[-1][0] == "again"
        taken = await asyncio.wait_for(get(shown, "/_dws/events"), 3)
        assert taken.status == 200, "there is room again"

    play(story)


def test_a_reader_cannot_make_it_hold_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "STREAM_MAX_BYTES", 10)

    async def story(shown: Figures, cluster: Cluster) -> None:
        proto = await asyncio.wait_for(get(shown, "/_dws/events"), 3)
        assert [kind for kind, _ in events(proto.transport.sent)] == ["history", "again"]

    play(story)


def test_closing_ends_every_stream() -> None:
    async def story(shown: Figures, cluster: Cluster) -> None:
        stream = asyncio.create_task(get(shown, "/_dws/events"))
        await until(lambda: cluster.asked > 0)
        shown.close()
        await asyncio.wait_for(stream, 1)
        assert (await get(shown, "/_dws/events")).status == 503

    play(story)


def test_nobody_watching_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_WATCH_ON_S", 0.0)
    monkeypatch.setattr(figures, "_POLL_S", 0.02)

    async def story(shown: Figures, cluster: Cluster) -> None:
        await asyncio.sleep(0.1)
        assert cluster.asked == 0
        proto = Proto()
        scope = SimpleNamespace(method="GET", query_string="")
        stream = asyncio.create_task(shown.handle("/_dws/events", scope, proto))
        await until(lambda: cluster.asked >= 3)
        proto.gone.set_result(None)
        await stream
        await asyncio.sleep(0.1)
        asked = cluster.asked
        await asyncio.sleep(0.1)
        assert cluster.asked == asked

    play(story)
