"""A web server's HTTP endpoint as a real process: what it serves, tells, survives, and what it costs."""

import http.client
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import dws
from dws.limits import CHUNK_BYTES, MIB
from dws.messages import ServerStatus
from dws.names import format_version
from dws.nodes.processes import Backoff, NodeProcess
from tests.waiting import until

pytest.importorskip("granian")

WITHIN_S = 30.0
GATEWAY = "http://gateway.invalid:8080"
SMALL = os.urandom(4096)
MIDDLE = os.urandom(300_000)  # a file of its own, and one chunk
LARGE = os.urandom(3 * CHUNK_BYTES + 12_345)
NAMES = {"/small": SMALL, "/dir/index.html": b"<h1>hello</h1>", "/a b/ü%41?#": b"odd", "/empty": b""}


class Site:
    """A balancer and one web server with an HTTP endpoint."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "web-1"
        balancer = ["balancer", "--data", str(directory / "balancer"), "--port", "0"]
        sets = ["--set", "copies=1", "--set", "garbage_s=0.5", "--set", "down_dead_s=1"]
        self.balancer = self._node("balancer", balancer + sets)
        self.balancer.start()
        until(self.balancer.announced, "the balancer is up")
        flags = ["webserver", "--name", "web-1", "--data", str(self.data), "--port", "0", *sets]
        flags += ["--balancer", self.balancer.endpoint, "--http-port", "0", "--gateway", GATEWAY + "/"]
        self.web = self._node("web-1", flags)
        self.web.start()
        self.wait_up()

    def _node(self, name: str, arguments: list[str]) -> NodeProcess:
        log = self.directory / f"{name}.log"
        return NodeProcess(name, arguments[0], arguments, self.directory / name, log, Backoff())

    def close(self) -> None:
        for node in (self.web, self.balancer):
            node.terminate()
        for node in (self.web, self.balancer):
            assert node.wait(time.monotonic() + WITHIN_S), node.name

    def wait_up(self) -> None:
        def up() -> bool:
            server = self.server()
            if server is None or server.state != "alive" or not server.bytes_free or not server.http_endpoint:
                return False
            self.host = server.http_endpoint.removeprefix("http://")
            return self.get("/_dws/readyz")[0] == 200

        until(up, "the web server and its endpoint are up")

    def client(self) -> dws.Client:
        return dws.connect(self.balancer.endpoint, timeout_s=WITHIN_S)

    def server(self) -> ServerStatus | None:
        with self.client() as client:
            return next(iter(client.status().servers), None)

    def put(self, pages: dict[str, Any]) -> None:
        with self.client() as client:
            client.put(pages)

    def version(self, name: str) -> str:
        with self.client() as client:
            [stat] = client.stat([name])
        assert stat is not None
        return format_version(stat.record.version)

    def get(
        self, target: str, method: str = "GET", **fields: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=WITHIN_S)
        try:
            headers = {name.replace("_", "-"): value for name, value in fields.items()}
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def endpoint_process(self) -> psutil.Process | None:
        children = psutil.Process(self.web.pid).children()
        return children[0] if children else None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    made.put(NAMES)
    made.put({"/large": LARGE})
    made.put({"/middle": MIDDLE})
    yield made
    made.close()


def test_small_page(site: Site) -> None:
    target = f"/small?v={site.version('/small')}"
    for _ in range(3):
        status, headers, body = site.get(target)
        assert (status, body) == (200, SMALL)
        assert headers["content-length"] == "4096"
        assert headers["accept-ranges"] == "bytes"
        assert headers["access-control-allow-origin"] == "*"
        assert headers["x-content-type-options"] == "nosniff"
        assert "immutable" in headers["cache-control"]
    etag, modified = headers["etag"], headers["last-modified"]
    assert site.get(target, "HEAD")[1]["content-length"] == "4096"
    status, headers, body = site.get(target, If_None_Match=etag)
    assert (status, body, headers["etag"]) == (304, b"", etag)
    assert site.get(target, If_Modified_Since=modified)[0] == 304
    assert site.get(target, If_Match='"x"')[0] == 412
    status, headers, body = site.get(target, Range="bytes=100-199")
    assert (status, body, headers["content-range"]) == (206, SMALL[100:200], "bytes 100-199/4096")
    status, headers, _ = site.get(target, Range="bytes=4096-")
    assert (status, headers["content-range"]) == (416, "bytes */4096")
    assert site.get(target, Range="bytes=0-1", If_Range='"x"')[0] == 200
    assert site.get(target, "POST")[0] == 405


def test_names_as_urls(site: Site) -> None:
    version = site.version("/small")
    status, headers, body = site.get(f"/a%20b/%C3%BC%2541%3F%23?v={version}")
    assert (status, body) == (200, b"odd")
    assert site.get(f"/empty?v={version}")[::2] == (200, b"")
    status, headers, body = site.get(f"/dir/index.html?v={version}")
    assert (status, headers["content-type"], body) == (200, "text/html", NAMES["/dir/index.html"])
    for bad in ("/%2e%2e/x", "//x", "/a/../b", "/a%00b"):
        assert site.get(f"{bad}?v={version}")[0] == 400


@pytest.mark.parametrize(
    ("field", "start", "end"),
    [
        ("", 0, len(LARGE)),
        ("bytes=0-0", 0, 1),
        (f"bytes={CHUNK_BYTES - 1}-{CHUNK_BYTES}", CHUNK_BYTES - 1, CHUNK_BYTES + 1),
        (f"bytes={2 * CHUNK_BYTES + 5}-", 2 * CHUNK_BYTES + 5, len(LARGE)),
        ("bytes=-7", len(LARGE) - 7, len(LARGE)),
    ],
)
def test_large_page(site: Site, field: str, start: int, end: int) -> None:
    target = f"/large?v={site.version('/large')}"
    status, headers, body = site.get(target, **({"Range": field} if field else {}))
    assert (status, headers["content-length"]) == (206 if field else 200, str(end - start))
    assert body == LARGE[start:end]
    assert site.get(target, "HEAD")[1]["content-length"] == str(len(LARGE))


def test_page_of_one_chunk(site: Site) -> None:
    target = f"/middle?v={site.version('/middle')}"
    assert site.get(target)[::2] == (200, MIDDLE)
    assert site.get(target, Range="bytes=5-9")[::2] == (206, MIDDLE[5:10])


def test_upload(site: Site) -> None:
    connection = http.client.HTTPConnection(site.host, timeout=WITHIN_S)
    connection.request("PUT", "/uploaded", body=b"from afar", headers={"Content-Type": "text/plain"})
    response = connection.getresponse()
    response.read()
    connection.close()
    assert response.status == 201
    assert site.get(f"/uploaded?v={site.version('/uploaded')}")[2] == b"from afar"


def test_back_to_the_gateway(site: Site) -> None:
    number = site.server().number  # type: ignore[union-attr]
    version = site.version("/small")
    for target, location in (
        ("/small", "/small"),
        ("/dir/", "/dir/"),
        ("/a%20b/%C3%BC", "/a%20b/%C3%BC"),
        ("/small?v=1.999", f"/small?not={number}"),
        (f"/none?v={version}&not=77,78", f"/none?not=77,78,{number}"),
    ):
        status, headers, _ = site.get(target)
        assert (status, headers["location"]) == (302, GATEWAY + location)
        assert headers["cache-control"] == "no-store"


def test_health(site: Site) -> None:
    assert b'"healthy"' in site.get("/health")[2]
    assert b'"web-1"' in site.get("/health")[2]
    assert site.get("/_dws/livez")[0] == site.get("/_dws/readyz")[0] == 200
    assert site.get("/_dws/nothing")[0] == 404


def test_a_dropped_page_is_no_longer_served(site: Site) -> None:
    site.put({"/going": b"soon gone"})
    target = f"/going?v={site.version('/going')}"
    assert site.get(target)[0] == 200
    with site.client() as client:
        client.remove(["/going"])
    until(lambda: site.get(target)[0] == 302, "it is gone")


def test_a_damaged_page_is_not_served(site: Site) -> None:
    site.put({"/bad": LARGE[: 2 * CHUNK_BYTES]})
    target = f"/bad?v={site.version('/bad')}"
    [file] = [path for path in site.data.glob("pages/*/*") if path.stat().st_size == 2 * CHUNK_BYTES]
    with file.open("r+b") as page:
        page.seek(CHUNK_BYTES + 7)
        page.write(bytes([LARGE[CHUNK_BYTES + 7] ^ 1]))
    number = site.server().number  # type: ignore[union-attr]
    # The chunk that is whole can be had.
    assert site.get(target, Range="bytes=0-9")[2] == LARGE[:10]
    assert site.get(target, Range=f"bytes={CHUNK_BYTES}-")[0] == 302
    status, headers, _ = site.get(target)
    assert (status, headers["location"]) == (302, f"{GATEWAY}/bad?not={number}")
    assert "/bad (version" in site.web.log.read_text()
    # The web server was told, and looked itself.
    until(lambda: list(site.data.glob("quarantine/*.json")), "it is set aside")
    assert not file.exists()
    until(lambda: site.server().damaged == 1, "the balancer knows")  # type: ignore[union-attr]


def test_visits_reach_the_balancer(site: Site) -> None:
    def figures() -> tuple[int, int]:
        server = site.server()
        assert server is not None
        return server.served, server.bytes_sent

    def settled() -> bool:
        first = figures()
        time.sleep(2.5)
        return figures() == first

    until(settled, "what went before is counted")
    served, bytes_sent = figures()
    target = f"/small?v={site.version('/small')}"
    for _ in range(50):
        site.get(target)
    site.get(f"/large?v={site.version('/large')}", Range="bytes=0-99")
    wanted = served + 51, bytes_sent + 50 * 4096 + 100
    until(lambda: figures() == wanted, f"{wanted}, as {figures()}", 5.0)


def test_an_endpoint_that_dies_comes_back_where_it_was(site: Site) -> None:
    first = site.endpoint_process()
    assert first is not None
    host = site.host
    first.send_signal(signal.SIGKILL)
    until(lambda: site.server().http_endpoint == "", "the balancer knows that it is gone")  # type: ignore[union-attr]
    site.wait_up()
    again = site.endpoint_process()
    assert again is not None and again.pid != first.pid
    assert site.host == host
    assert site.get(f"/small?v={site.version('/small')}")[2] == SMALL


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_web_server(tmp_path: Path, number: signal.Signals) -> None:
    made = Site(tmp_path)
    try:
        endpoint = made.endpoint_process()
        assert endpoint is not None
        made.web.signal(number)
        made.web.reap()
        endpoint.wait(WITHIN_S)
        assert made.web.exit_code() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    finally:
        made.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_large_page_is_read_slowly_in_constant_memory(site: Site, tmp_path: Path) -> None:
    size = 1 << 30
    source = tmp_path / "gib"
    block = os.urandom(MIB)
    with source.open("wb") as file:
        for _ in range(size // MIB):
            file.write(block)
    with site.client() as client:
        client.put({"/gib": source}, timeout_s=200)
    source.unlink()
    endpoint = site.endpoint_process()
    assert endpoint is not None
    before = peak = endpoint.memory_info().rss
    connection = http.client.HTTPConnection(site.host, timeout=60)
    connection.request("GET", f"/gib?v={site.version('/gib')}")
    response = connection.getresponse()
    assert response.getheader("content-length") == str(size)
    done = 0
    # Slowly at first: what the server does not wait for would pile up in it. Then to the end.
    while part := response.read(MIB):
        assert part == block[: len(part)]
        done += len(part)
        peak = max(peak, endpoint.memory_info().rss)
        time.sleep(0.02 if done < 300 * MIB else 0.0)
    connection.close()
    assert done == size
    print(f"RSS {before / MIB:.0f} → {peak / MIB:.0f} MiB")
    assert peak - before < 48 * MIB


@pytest.mark.slow
def test_an_idle_endpoint_costs_nothing(site: Site) -> None:
    endpoint = site.endpoint_process()
    assert endpoint is not None
    time.sleep(3)
    began, before = time.monotonic(), sum(endpoint.cpu_times()[:2])
    time.sleep(15)
    share = (sum(endpoint.cpu_times()[:2]) - before) / (time.monotonic() - began)
    print(f"{share:.2%} of a core")
    assert share < 0.01
