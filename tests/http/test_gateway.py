"""The gateway as a process, in front of a balancer that answers what the test says."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from dws import messages
from dws.http.gateway import quoted
from dws.http.pages import code, not_found
from dws.messages import (
    Because,
    Choice,
    ClusterStatus,
    Error,
    Later,
    Locate,
    Located,
    Ping,
    Pong,
    ServerRef,
    ServerStatus,
    Status,
    Why,
)  # fmt: skip
from dws.names import make_version
from dws.nodes.processes import Backoff, NodeProcess
from patterns.request_reply import Replier

WITHIN_S = 20.0
VERSION = make_version(3, 17)
DIGEST = bytes(32)


def server(
    number: int, *, state: str = "alive", http_endpoint: str | None = None, load: float = 1.0
) -> ServerStatus:
    figures: dict[str, Any] = dict.fromkeys(ServerStatus.__struct_fields__, 0)
    place = f"http://web-{number}.test:80" if http_endpoint is None else http_endpoint
    text = {"name": f"web-{number}", "state": state, "endpoint": f"tcp://web-{number}.test:1", "note": ""}
    figures["draining"] = False
    return ServerStatus(**(figures | text | {"number": number, "http_endpoint": place, "upload_load": load}))


class FakeBalancer:
    """A ROUTER in a thread. `pages`: name → holders, best first."""

    def __init__(self) -> None:
        self.pages: dict[str, list[int]] = {"/page": [1, 2]}
        self.http = {1: "http://web-1.test:80", 2: "http://web-2.test:80"}
        self.table = 7
        self.later: Later | None = None
        self.servers = [server(1), server(2)]
        self.silent = False
        self.located: list[Locate] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._replier: Replier[bytes] = Replier(b"c" * 16)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._socket.poll(20):
                peer, frame = self._socket.recv_multipart()
                if not self.silent:
                    reply = self._answer(messages.decode_client_request(self._replier.receive(frame)))
                    self._socket.send_multipart([peer, self._replier.reply(frame, messages.encode(reply))])
        self._socket.close(0)
        self._context.term()

    def _answer(self, asked: Any) -> Any:
        match asked:
            case Locate():
                return self._locate(asked)
            case Ping():
                return Pong("balancer", 0, 3)
            case Status():
                pages = len(self.pages)
                return ClusterStatus(
                    b"c" * 16, 3, 0, "least-load", 2, pages, 0, [0] * 4, 0, 0, 1.0, 0, self.servers, {}
                )  # fmt: skip
            case Why():
                held = asked.name in self.pages
                choice = Choice("web-1", "alive", True, 0.001, 1.0, 0.001, 0.0, 0.0, 0.001, 1, "eligible")
                return Because("least-load", VERSION if held else 0, "web-1" if held else "", [choice])
        return Error("bad-request", "not in this test")

    def _locate(self, asked: Locate) -> Located:
        self.located.append(asked)
        found = [self._page(name) for name in asked.names]
        refs = [ServerRef(n, f"web-{n}", f"tcp://web-{n}.test:1", 1, url) for n, url in self.http.items()]
        later = [self.later] if self.later else []
        return Located(3, self.table, None if asked.table == self.table else refs, found, later)

    def _page(self, name: str) -> Any:
        holders = self.pages.get(name)
        return None if holders is None else (VERSION, 5, DIGEST, b"", holders)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


class Site:
    """A gateway, and what it answers."""

    def __init__(self, port: int, balancer: FakeBalancer) -> None:
        self.port = port
        self.balancer = balancer

    def ask(
        self, target: str, method: str = "GET", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN_S)
        try:
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        finally:
            connection.close()

    def status(self, target: str, method: str = "GET") -> int:
        return self.ask(target, method)[0]

    def location(self, target: str, method: str = "GET", status: int = 302) -> str:
        answered, headers, body = self.ask(target, method)
        assert (answered, body) == (status, "")
        assert headers["cache-control"] == "no-store"
        assert headers["access-control-allow-origin"] == "*"
        return headers["location"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, FakeBalancer]]:
    directory = tmp_path_factory.mktemp("gateway")
    balancer = FakeBalancer()
    endpoint = f"tcp://127.0.0.1:{balancer.port}"
    node = started(directory, "--balancer", endpoint)
    yield int(node.endpoint.rpartition(":")[2]), balancer
    node.terminate()
    assert node.wait(time.monotonic() + WITHIN_S), "it ends by itself"
    assert not (directory / "g/node.json").exists()
    assert "Traceback" not in node.log.read_text()
    balancer.close()


def started(directory: Path, *flags: str, port: int = 0) -> NodeProcess:
    arguments = ["gateway", *flags, "--port", str(port), "--data", str(directory / "g")]
    node = NodeProcess("gateway", "gateway", arguments, directory / "g", directory / "log", Backoff())
    node.start()
    give_up = time.monotonic() + WITHIN_S
    while not node.announced() and node.exit_code() is None and time.monotonic() < give_up:
        time.sleep(0.02)
    return node


@pytest.fixture
def site(gateway: tuple[int, FakeBalancer]) -> Iterator[Site]:
    port, balancer = gateway
    before = dict(vars(balancer))
    balancer.pages = dict(balancer.pages)
    balancer.located = []
    yield Site(port, balancer)
    for field in ("pages", "http", "later", "servers", "silent"):
        setattr(balancer, field, before[field])
    balancer.table += 1


# Pages


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_page_is_on_its_best_holder_and_a_duplicate_on_the_other(site: Site, method: str) -> None:
    assert site.location("/page", method) == "http://web-1.test:80/page?v=3.17"
    site.balancer.pages["/page"] = [2, 1]
    assert site.location("/page", method) == "http://web-2.test:80/page?v=3.17"
    assert site.ask("/page")[1]["link"] == "<http://web-1.test:80/page?v=3.17>; rel=duplicate"


def test_where_it_leads_is_no_matter_of_the_requests_headers(site: Site) -> None:
    for header in ("Host", "X-Forwarded-Host", "Forwarded"):
        assert "evil" not in str(site.ask("/page", **{header: "evil.test"})[1])


@pytest.mark.parametrize(
    ("target", "name", "path"),
    [
        ("/a%20b", "/a b", "/a%20b"),
        ("/%C3%BC", "/ü", "/%C3%BC"),
        ("/100%25", "/100%", "/100%25"),
        ("/%2520", "/%20", "/%2520"),
        ("/a%3Fv=1.1%23x", "/a?v=1.1#x", "/a%3Fv=1.1%23x"),
        ("/a%2Fb", "/a/b", "/a/b"),
        ("/a;b,c:d@e!f'(g)", "/a;b,c:d@e!f'(g)", "/a;b,c:d@e!f'(g)"),
        ("/%3Cb%3E%22", '/<b>"', "/%3Cb%3E%22"),
    ],
)
def test_names_are_decoded_once_and_encoded_again(site: Site, target: str, name: str, path: str) -> None:
    site.balancer.pages[name] = [1]
    assert site.location(target) == f"http://web-1.test:80{path}?v=3.17"


@pytest.mark.parametrize(
    "target",
    [
        "//evil.test/x", "/../x", "/a/%2e%2e/b", "/..%2f..%2fetc/passwd", "/./a", "/a//b", "/a%00b", "/%ff",
        "/%c3%28", "/a%0d%0ab",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_what_is_no_name_is_400(site: Site, target: str, method: str) -> None:
    status, headers, _ = site.ask(target, method)
    assert status == 400
    assert "location" not in headers
    assert not site.balancer.located


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_name_that_is_too_long_is_414(site: Site, method: str) -> None:
    assert site.status("/" + "a" * 1023, method) in (404, 307)
    assert site.status("/" + "a" * 1024, method) == 414
    assert site.status("/" + "%C3%BC" * 512, method) == 414
    assert site.status("/" + "a" * 60_000, method) in (414, 431)


def test_a_directory_is_its_index(site: Site) -> None:
    site.balancer.pages["/docs/index.html"] = [1]
    assert site.location("/docs/") == "http://web-1.test:80/docs/index.html?v=3.17"
    assert site.location("/docs") == "/docs/"
    site.balancer.pages["/index.html"] = [2]
    assert site.location("/") == "http://web-2.test:80/index.html?v=3.17"
    assert site.status("/docs/none/") == 404


def test_a_page_that_there_is_goes_before_a_directory(site: Site) -> None:
    site.balancer.pages |= {"/docs": [2], "/docs/index.html": [1]}
    assert site.location("/docs") == "http://web-2.test:80/docs?v=3.17"


def test_a_missing_page_is_a_readable_404(site: Site) -> None:
    status, headers, body = site.ask("/no%3Cscript%3E")
    assert status == 404
    assert headers["content-type"].startswith("text/html")
    assert headers["cache-control"] == "no-store"
    assert "/no&lt;script&gt;" in body
    status, headers, body = site.ask("/no", "HEAD")
    assert (status, body) == (404, "")


def test_the_root_of_an_empty_cluster_says_what_to_do(site: Site) -> None:
    site.balancer.pages = {}
    time.sleep(1.05)  # a status is kept for a second
    status, _, body = site.ask("/")
    assert status == 200
    assert f"curl -L -T index.html http://127.0.0.1:{site.port}/index.html" in body
    site.balancer.pages = {"/other": [1]}
    time.sleep(1.05)
    status, _, body = site.ask("/")
    assert status == 404
    assert "1 page" in body


# Sent back by a server


def test_a_server_that_sent_a_browser_back_is_left_out(site: Site) -> None:
    assert site.location("/page?not=1") == "http://web-2.test:80/page?v=3.17&not=1"
    assert site.balancer.located[-1].avoid == [1]
    assert site.location("/page?x=1&not=3,1") == "http://web-2.test:80/page?v=3.17&not=3,1"


@pytest.mark.parametrize("query", ["not=1,2", "not=1,2,3,4", "not=2,1,2,1"])
def test_when_all_sent_it_back_it_is_503(site: Site, query: str) -> None:
    status, headers, _ = site.ask(f"/page?{query}")
    assert status == 503
    assert int(headers["retry-after"]) >= 1


@pytest.mark.parametrize("query", ["not=x", "not=1,", "not=-1", "not=99999", "not=" + "1," * 200, "not=²"])
def test_a_list_that_is_none_is_400(site: Site, query: str) -> None:
    assert site.status(f"/page?{query.replace('²', '%C2%B2')}") == 400


def test_other_fields_of_a_query_mean_nothing(site: Site) -> None:
    assert site.location("/page?v=1.1&note=3") == "http://web-1.test:80/page?v=3.17"


# Not now


def test_without_a_holder_it_is_503(site: Site) -> None:
    site.balancer.pages["/page"] = []
    for later, says in (
        (Later(0, 0.1, "web-1"), "not in sync yet"),
        (Later(0, 0.0, "web-1"), "last on web-1"),
    ):
        site.balancer.later = later
        status, headers, body = site.ask("/page")
        assert (status, headers["retry-after"], headers["cache-control"]) == (503, "1", "no-store")
        assert says in body


def test_holders_without_an_http_endpoint_are_passed_over(site: Site) -> None:
    site.balancer.http = {1: "", 2: "http://web-2.test:80"}
    site.balancer.table += 1
    status, headers, _ = site.ask("/page")
    assert (status, headers["location"]) == (302, "http://web-2.test:80/page?v=3.17")
    assert headers["link"] is None
    site.balancer.http = {1: "", 2: ""}
    site.balancer.table += 1
    assert site.status("/page") == 503


def test_while_the_balancer_is_away_it_is_503_and_all_is_well_again_after(site: Site) -> None:
    site.balancer.silent = True
    for target, method in (("/page", "GET"), ("/page?not=1", "GET"), ("/_dws/readyz", "GET")):
        status, headers, _ = site.ask(target, method)
        assert (status, headers["retry-after"]) == (503, "1"), target
    assert site.status("/health") == 200
    assert site.status("/_dws/livez") == 200
    site.balancer.silent = False
    assert site.status("/_dws/readyz") == 200
    assert site.location("/page").startswith("http://web-1.test")


def test_a_gateway_says_at_its_start_that_no_balancer_answers(tmp_path: Path) -> None:
    node = started(tmp_path, "--balancer", "tcp://127.0.0.1:1")
    try:
        give_up = time.monotonic() + WITHIN_S
        while not (told := "no answer from tcp://127.0.0.1:1" in "\n".join(node.tail())):
            assert time.monotonic() < give_up
            time.sleep(0.02)
        assert told
    finally:
        node.terminate()
        node.wait(time.monotonic() + WITHIN_S)


def test_lookups_that_wait_go_together(site: Site) -> None:
    connections = [socket.create_connection(("127.0.0.1", site.port), WITHIN_S) for _ in range(50)]
    try:
        for each in connections:
            each.sendall(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n" * 4)
        for each in connections:
            received = b""
            while received.count(b"302 Found") < 4:
                received += each.recv(65_536)
    finally:
        for each in connections:
            each.close()
    assert sum(len(asked.names) for asked in site.balancer.located) == 200
    assert len(site.balancer.located) < 150


# Uploads and other methods


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_an_upload_goes_to_an_alive_server_with_little_load(site: Site, method: str) -> None:
    site.balancer.servers = [
        server(1, load=2.0), server(2, load=1.0), server(3, state="suspect", load=0.1), server(4, load=-1.0),
        server(5, load=0.1, http_endpoint=""),
    ]  # fmt: skip
    time.sleep(1.05)
    assert site.location("/a%20b", method, 307) == "http://web-2.test:80/a%20b"
    site.balancer.servers = []
    time.sleep(1.05)
    assert site.status("/a", method) == 503


def test_a_body_is_not_asked_for(site: Site) -> None:
    time.sleep(1.05)  # what another test said of the servers is forgotten
    with socket.create_connection(("127.0.0.1", site.port), WITHIN_S) as client:
        client.sendall(
            b"PUT /page HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(65_536).startswith(b"HTTP/1.1 307 ")


@pytest.mark.parametrize("method", ["POST", "PATCH", "TRACE", "PROPFIND"])
def test_other_methods_are_405(site: Site, method: str) -> None:
    status, headers, _ = site.ask("/page", method)
    assert status == 405
    assert headers["allow"] == "GET, HEAD, PUT, DELETE, OPTIONS"


def test_options(site: Site) -> None:
    status, headers, body = site.ask("/page", "OPTIONS")
    assert (status, body) == (204, "")
    assert headers["access-control-allow-origin"] == "*"
    assert headers["access-control-allow-methods"] == "GET, HEAD"


# Its own pages


def test_health(site: Site) -> None:
    for name in ("/health", "/_dws/livez", "/_dws/readyz", "/_dws/"):
        assert site.status(name) == 200
        status, _, body = site.ask(name, "HEAD")
        assert (status, body) == (200, "")
        assert site.status(name, "PUT") == 405
    assert json.loads(site.ask("/health")[2]) == {"status": "healthy", "server": "gateway"}
    assert site.status("/_dws/none") == 404
    assert site.ask("/_dws")[1]["location"] == "/_dws/"


def test_why(site: Site) -> None:
    site.balancer.pages["/docs/index.html"] = [1]
    for target, name in (("/_dws/why/page", "/page"), ("/_dws/why/docs/", "/docs/index.html")):
        told = json.loads(site.ask(target)[2])
        assert (told["name"], told["chosen"], told["version"]) == (name, "web-1", "3.17")
        assert told["choices"][0]["server"] == "web-1"
    assert site.status("/_dws/why/none") == 404
    assert site.status("/_dws/why/%2e%2e/x") == 400
    assert site.status("/_dws/why/" + "a" * 1500) == 414


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        node = started(tmp_path, port=taken.getsockname()[1])
    assert node.exit_code() == 1
    said = node.log.read_text()
    assert len(said.splitlines()) == 1
    assert "is taken" in said
    node.wait(time.monotonic())


# Without a process


def test_names_as_paths() -> None:
    assert quoted("/a b") == "/a%20b"
    assert [quoted(name) for name in ("a", "/", "/a/", "/_dws/x", "/\ufffd")] == [""] * 5


def test_what_a_page_shows_is_text() -> None:
    assert code("<a>\u202e") == "<code>&lt;a&gt;\\u202e</code>"
    assert len(not_found("/" + "x" * 9000)) < 2000
