"""Pages over HTTP, against a server in a thread: redirects, digests, kept connections, what is no answer."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from blake3 import blake3

from dws.errors import IntegrityError
from loadgen.http_scenario import HttpError, HttpScenario, Links, check_url, servers_behind
from loadgen.plan import Plan, PlanError
from loadgen.runner import RunError, survey
from loadgen.talk import Work


class Site(BaseHTTPRequestHandler):
    """Each name's answer: (status, headers, body). `seen`: method, path and client port of each request."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[dict[str, tuple[int, dict[str, str], bytes]]] = {}
    seen: ClassVar[list[tuple[str, str, int]]] = []
    closes: ClassVar[bool] = False

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path not in self.answers:
            self.answers[self.path] = (200, {}, body)
        self._answer(201)

    def _answer(self, put: int = 0) -> None:
        self.seen.append((self.command, self.path, self.client_address[1]))
        status, headers, body = self.answers.get(self.path, (404, {}, b"no"))
        self.send_response(put if put and status == 200 else status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.closes  # without a word, as servers close idle connections

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Site.answers, Site.seen, Site.closes = {}, [], False
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def scenario(url: str) -> Iterator[HttpScenario]:
    made = HttpScenario(Work(Plan(), 0, "", 2.0, ["/a"] * 10, [], "/load", url), 0, {})
    yield made
    made.close()


def page(body: bytes) -> tuple[int, dict[str, str], bytes]:
    return 200, {"ETag": f'"{blake3(body).hexdigest()}"'}, body


def test_pages_are_got_on_one_connection_and_counted(url: str, scenario: HttpScenario) -> None:
    Site.answers.update({"/a": page(b"one"), "/b%20%C3%A4": page(b"three")})
    done = scenario.perform(["/a", "/b ä"])
    assert (done.pages, done.bytes) == (2, 8)
    assert len({port for _, _, port in Site.seen}) == 1
    assert scenario.served == {url.removeprefix("http://"): 2}


def test_a_redirect_is_followed_to_the_server_that_is_counted(url: str) -> None:
    netloc = url.removeprefix("http://")
    Site.answers.update({"/a": (307, {"Location": f"{url}/there"}, b""), "/there": page(b"page")})
    scenario = HttpScenario(Work(Plan(), 0, "", 2.0, ["/a"] * 10, [], "", url), 0, {netloc: "web-1"})
    assert scenario.perform(["/a"]).bytes == 4
    assert scenario.served == {"web-1": 1}
    scenario.close()


def test_redirects_end(scenario: HttpScenario) -> None:
    Site.answers["/a"] = (302, {"Location": "/a"}, b"")
    with pytest.raises(HttpError, match="more than 5 redirects") as failed:
        scenario.perform(["/a"])
    assert failed.value.kind == "HTTP 302"


@pytest.mark.parametrize("status", [204, 404, 503])
def test_an_answer_that_is_no_success_is_a_failure_of_its_own_kind(
    scenario: HttpScenario, status: int
) -> None:
    Site.answers["/a"] = (status, {}, b"")
    if status == 204:
        assert scenario.perform(["/a"]).bytes == 0
        return
    with pytest.raises(HttpError, match=f"/a: the answer was {status}") as failed:
        scenario.perform(["/a"])
    assert failed.value.kind == f"HTTP {status}"


def test_a_page_that_is_not_what_its_digest_says_is_a_failure(scenario: HttpScenario) -> None:
    Site.answers["/a"] = (200, page(b"right")[1], b"wrong")
    with pytest.raises(IntegrityError, match="/a"):
        scenario.perform(["/a"])


def test_an_upload_puts_each_page(scenario: HttpScenario) -> None:
    done = scenario.perform({"/load/x": b"12", "/load/y": b"345"})
    assert (done.pages, done.bytes) == (2, 5)
    assert [(method, path) for method, path, _ in Site.seen] == [("PUT", "/load/x"), ("PUT", "/load/y")]
    assert Site.answers["/load/y"][2] == b"345"


def test_a_connection_that_was_closed_while_idle_is_opened_again(scenario: HttpScenario) -> None:
    Site.answers["/a"] = page(b"one")
    Site.closes = True
    for _ in range(3):
        assert scenario.perform(["/a"]).bytes == 3
    assert len({port for _, _, port in Site.seen}) == 3


def test_servers_behind_a_gateway_have_names(url: str) -> None:
    assert servers_behind(url, 2.0) == {}
    servers = [{"name": "web-1", "http_endpoint": "http://127.0.0.1:81"}]
    status = json.dumps({"cluster": {"servers": servers}}).encode()
    Site.answers["/_dws/status"] = (200, {}, status)
    assert servers_behind(url, 2.0) == {"127.0.0.1:81": "web-1"}
    Site.answers["/_dws/status"] = (200, {}, b"[]")
    assert servers_behind(url, 2.0) == {}


def test_a_site_of_listed_names_needs_no_balancer(url: str) -> None:
    site = survey("tcp://127.0.0.1:9", Plan(), ["/b", "/a", "/b"], 1.0, http=url)
    assert (site.servers, site.names) == ([], ["/b", "/a"])


def test_nobody_at_the_url_is_unreachable() -> None:
    with pytest.raises(RunError, match=r"no answer from http://127\.0\.0\.1:9") as failed:
        survey("tcp://127.0.0.1:9", Plan(), ["/a"], 1.0, http="http://127.0.0.1:9")
    assert failed.value.unreachable


@pytest.mark.parametrize(
    "wrong",
    ["", "nonsense", "ftp://a", "http://", "http://a:0", "http://a:x", "http://a:99999", "http://a/?x=1"],
)
def test_what_is_no_url_is_refused(wrong: str) -> None:
    with pytest.raises(PlanError, match="no URL"):
        check_url(wrong)


def test_a_url_may_have_a_path_and_a_slash_at_its_end() -> None:
    assert check_url("http://host:80/site/") == "http://host:80/site"


def test_connections_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.http_scenario._CONNECTIONS_MAX", 1)
    Site.answers["/a"] = page(b"one")
    links = Links(2.0)
    for host in ("127.0.0.1", "localhost"):
        assert links.ask("GET", url.replace("127.0.0.1", host) + "/a")[0] == 200
        assert len(links._links) == 1
    links.close()
