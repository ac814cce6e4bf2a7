"""curl, wget and Python's urllib as clients of a whole cluster, and httplint's opinion of what they get.

- Whoever follows redirects gets the page, byte for byte, of any name, from a server's own endpoint.
- Conditional and range requests work through the redirect, and so does a download that is resumed.
- `curl -T` uploads through the gateway; a client that waits for 100-continue sends its body once.
- httplint has nothing above a notice on redirects and pages.
"""

import http.client
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from httplint import HttpResponseLinter, levels

from tests.http.real_cluster import SITE, RealCluster, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

INDEX = (SITE / "index.html").read_bytes()
NAMES = (
    "/with space.txt",
    "/naïve/ünïcode.txt",
    "/percent%2Fin it.txt",
    "/a+b&c=d;e.txt",
    "/tilde~/q?x#y.txt",
)
LARGE = bytes(range(256)) * 20_000  # five chunks


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    with RealCluster(tmp_path_factory.mktemp("clients") / "data") as running:
        with running.client() as client:
            client.put({name: name.encode() for name in NAMES})
            client.put({"/large.bin": LARGE})
        yield running


class Answer(NamedTuple):
    status: int
    url: str
    redirects: int
    uploaded: int
    body: bytes
    trace: str

    def header(self, name: str) -> str:
        """Of the last answer; empty if it has none."""
        marks = [line[2:] for line in self.trace.splitlines() if line.startswith("< ")]
        start = max(at for at, line in enumerate(marks) if line.startswith("HTTP/"))
        found = [line for line in marks[start:] if line.lower().startswith(f"{name.lower()}:")]
        return found[0].partition(":")[2].strip() if found else ""

    @property
    def statuses(self) -> list[int]:
        """Of all answers, in order, the 100s too."""
        lines = [line for line in self.trace.splitlines() if line.startswith("< HTTP/")]
        return [int(line.split()[2]) for line in lines]


def curl(url: str, *flags: str) -> Answer:
    """curl -L, which must end well."""
    written = "\n%{http_code} %{url_effective} %{num_redirects} %{size_upload}"
    # A proxy of the machine's has no part in this.
    command = ["curl", "-sSvL", "--max-time", "60", "--noproxy", "*", "-w", written, *flags, url]
    done = subprocess.run(command, capture_output=True, timeout=90, check=False)
    trace = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, trace
    body, _, told = done.stdout.rpartition(b"\n")
    status, effective, redirects, uploaded = told.decode().split()
    return Answer(int(status), effective, int(redirects), int(uploaded), body, trace)


NO_PROXY = urllib.request.ProxyHandler({})
URLLIB = urllib.request.build_opener(NO_PROXY)


class Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *args: object) -> None:
        return None


def quoted(name: str) -> str:
    return urllib.parse.quote(name)


# -- following redirects ------------------------------------------------------------------


def test_curl_is_sent_to_a_server_that_holds_the_page(cluster: RealCluster) -> None:
    answer = curl(f"{cluster.gateway}/index.html")
    assert (answer.status, answer.body, answer.redirects) == (200, INDEX, 1)
    endpoints = cluster.http_endpoints()
    holders = [endpoints[name] for name in cluster.holders("/index.html")]
    assert answer.url.partition("/index.html?v=")[0] in holders
    assert answer.statuses == [302, 200]


def test_wget_gets_the_page(cluster: RealCluster) -> None:
    command = ["wget", "-qO-", "--no-proxy", "--tries=1", "--timeout=30", f"{cluster.gateway}/docs/get.html"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert done.stdout == (SITE / "docs" / "get.html").read_bytes()


def test_urllib_gets_the_page(cluster: RealCluster) -> None:
    with URLLIB.open(f"{cluster.gateway}/data/pages.json", timeout=30) as answer:
        assert answer.read() == (SITE / "data" / "pages.json").read_bytes()
        assert not answer.url.startswith(cluster.gateway)
        assert answer.headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_any_characters(cluster: RealCluster, name: str) -> None:
    assert curl(cluster.gateway + quoted(name)).body == name.encode()


@pytest.mark.parametrize("path", ["/", "/patterns/", "/patterns"])
def test_a_directory_has_its_index(cluster: RealCluster, path: str) -> None:
    answer = curl(cluster.gateway + path)
    assert answer.body == (SITE / path.strip("/") / "index.html").read_bytes()
    # Relative links start from here.
    assert urllib.parse.urlsplit(answer.url).path.startswith(path.rstrip("/") + "/")


def test_every_page_of_the_site_is_served_with_its_type(cluster: RealCluster) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png",
             ".woff2": "font/woff2", ".json": "application/json", ".txt": "text/plain"}  # fmt: skip
    for file in SITE.rglob("*.*"):
        with URLLIB.open(f"{cluster.gateway}/{file.relative_to(SITE)}", timeout=30) as answer:
            assert answer.read() == file.read_bytes(), file
            if file.suffix in kinds:
                assert answer.headers.get_content_type() == kinds[file.suffix], file


def test_a_link_without_a_version_goes_by_the_gateway(cluster: RealCluster) -> None:
    for endpoint in cluster.http_endpoints().values():
        answer = curl(f"{endpoint}/docs/put.html")
        assert answer.body == (SITE / "docs" / "put.html").read_bytes()
        assert answer.redirects == 2


def test_a_server_that_does_not_hold_the_page_sends_back_to_the_gateway(cluster: RealCluster) -> None:
    versioned = urllib.parse.urlsplit(curl(f"{cluster.gateway}/index.html").url)
    for name, endpoint in cluster.http_endpoints().items():
        answer = curl(f"{endpoint}{versioned.path}?{versioned.query}")
        assert (answer.status, answer.body) == (200, INDEX)
        assert answer.redirects == (0 if name in cluster.holders("/index.html") else 2)


def test_redirects_are_temporary_and_never_kept(cluster: RealCluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.build_opener(NO_PROXY, Stay).open(f"{cluster.gateway}/index.html", timeout=30)
    with caught.value as answer:
        assert answer.code == 302
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        # The other holder.
        assert "rel=duplicate" in answer.headers["Link"].replace('"', "")


def test_a_location_is_never_the_clients_word(cluster: RealCluster) -> None:
    lies = (
        "Host: elsewhere.example",
        "X-Forwarded-Host: elsewhere.example",
        "Forwarded: host=elsewhere.example",
    )
    answer = curl(f"{cluster.gateway}/index.html", *(word for lie in lies for word in ("-H", lie)))
    assert answer.body == INDEX
    assert "elsewhere" not in answer.url


def test_visits_count_in_the_load_figures(cluster: RealCluster) -> None:
    def visits() -> int:
        return sum(server.served for server in cluster.status().servers)

    before = visits()
    for _ in range(10):
        curl(f"{cluster.gateway}/index.html")
    eventually(lambda: visits() >= before + 10, "ten visits more in the status")


# -- conditions and ranges ------------------------------------------------------------------


def test_a_copy_that_is_still_good_is_not_sent_again(cluster: RealCluster) -> None:
    url = f"{cluster.gateway}/index.html"
    first = curl(url)
    etag, modified = first.header("ETag"), first.header("Last-Modified")
    assert etag.startswith('"') and "immutable" in first.header("Cache-Control")

    assert curl(url, "-H", f"If-None-Match: {etag}").statuses == [302, 304]
    assert curl(url, "-H", f"If-Modified-Since: {modified}").statuses == [302, 304]
    assert curl(url, "-H", 'If-None-Match: "other"').body == INDEX
    assert curl(url, "-H", 'If-Match: "other"').statuses == [302, 412]
    assert curl(url, "-H", f"If-Match: {etag}").body == INDEX


def test_ranges(cluster: RealCluster) -> None:
    url = f"{cluster.gateway}/large.bin"
    part = curl(url, "-r", "1048570-1048585")
    assert (part.status, part.body) == (206, LARGE[1048570:1048586])
    assert part.header("Content-Range") == f"bytes 1048570-1048585/{len(LARGE)}"
    assert curl(url, "-r", "-50").body == LARGE[-50:]
    assert curl(url, "-r", f"{len(LARGE) - 3}-").body == LARGE[-3:]

    beyond = curl(url, "-r", f"{len(LARGE)}-")
    assert (beyond.status, beyond.header("Content-Range")) == (416, f"bytes */{len(LARGE)}")

    etag = part.header("ETag")
    assert curl(url, "-r", "0-9", "-H", f"If-Range: {etag}").body == LARGE[:10]
    assert curl(url, "-r", "0-9", "-H", 'If-Range: "other"').body == LARGE


def test_a_download_is_resumed(cluster: RealCluster, tmp_path: Path) -> None:
    half = tmp_path / "half.bin"
    half.write_bytes(LARGE[:1_234_567])
    answer = curl(f"{cluster.gateway}/large.bin", "-C", "-", "-o", str(half))
    assert answer.status == 206
    assert half.read_bytes() == LARGE


def test_head(cluster: RealCluster) -> None:
    answer = curl(f"{cluster.gateway}/large.bin", "-I")
    assert answer.statuses == [302, 200]
    assert answer.header("Content-Length") == str(len(LARGE))
    assert answer.header("Accept-Ranges") == "bytes"


# -- uploads ------------------------------------------------------------------------------------


def test_an_upload_is_redirected_before_its_body(cluster: RealCluster, tmp_path: Path) -> None:
    file = tmp_path / "page.bin"
    file.write_bytes(LARGE)
    url = f"{cluster.gateway}/uploaded/page.bin"
    # It would send the body unasked only after this time.
    waiting = ("-H", "Expect: 100-continue", "--expect100-timeout", "50")

    answer = curl(url, *waiting, "-T", str(file))
    assert answer.statuses == [307, 100, 201]
    assert answer.uploaded == len(LARGE)
    assert len(cluster.holders("/uploaded/page.bin")) == 2
    assert curl(url).body == LARGE

    file.write_bytes(b"another\n")
    assert curl(url, *waiting, "-T", str(file)).statuses == [307, 100, 204]
    assert curl(url).body == b"another\n"


def test_the_gateway_answers_before_a_body(cluster: RealCluster) -> None:
    host, port = cluster.gateway.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"PUT /never.bin HTTP/1.1\r\nHost: gateway\r\nExpect: 100-continue\r\n"
            b"Content-Length: 1000000\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 307 ")


def test_a_page_is_uploaded_and_removed(cluster: RealCluster, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_bytes(b"<p>hello</p>\n")
    url = f"{cluster.gateway}/a/page.html"
    assert curl(url, "-T", str(file)).status == 201
    answer = curl(url)
    assert answer.body == file.read_bytes()
    assert answer.header("Content-Type").startswith("text/html")
    assert curl(url, "-X", "DELETE").status == 204
    assert curl(url).status == 404


def test_conditional_writes(cluster: RealCluster, tmp_path: Path) -> None:
    file = tmp_path / "page.txt"
    url = f"{cluster.gateway}/conditional.txt"

    def write(body: bytes, condition: str) -> int:
        file.write_bytes(body)
        return curl(url, "-H", condition, "-T", str(file)).status

    assert write(b"one", "If-None-Match: *") == 201
    assert write(b"two", "If-None-Match: *") == 412
    etag = curl(url).header("ETag")
    assert write(b"two", f"If-Match: {etag}") == 204
    assert write(b"three", f"If-Match: {etag}") == 412
    assert curl(url).body == b"two"


# -- what httplint says ----------------------------------------------------------------------------


def lint(url: str, method: str = "GET", **headers: str) -> tuple[int, str | None, list[str]]:
    """The answer's status and Location, and what httplint says of it that is more than a notice."""
    split = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(split.netloc, timeout=30)
    try:
        connection.request(method, url.removeprefix(f"http://{split.netloc}"), headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    linter = HttpResponseLinter(start_time=time.time(), no_content=method == "HEAD")
    linter.base_uri = url
    linter.process_response_topline(b"HTTP/1.1", str(answer.status).encode(), answer.reason.encode())
    linter.process_headers([(key.encode(), value.encode()) for key, value in answer.msg.raw_items()])
    linter.feed_content(body)
    linter.finish_content(True)
    grave = [note for note in linter.notes if note.level in (levels.WARN, levels.BAD)]
    return answer.status, answer.headers["Location"], [f"{note.subject}: {note.summary}" for note in grave]


@pytest.mark.parametrize("name", ["/index.html", "/assets/style.css", "/assets/app.js", "/assets/spread.png",
                                  "/assets/wordmark.woff2", "/assets/favicon.svg", "/data/pages.json",
                                  "/robots.txt", "/large.bin"])  # fmt: skip
def test_httplint_on_a_redirect_and_its_page(cluster: RealCluster, name: str) -> None:
    for method in ("GET", "HEAD"):
        status, page, said = lint(cluster.gateway + name, method)
        assert (status, said) == (302, [])
        assert page is not None
        status, _, said = lint(page, method)
        assert (status, said) == (200, [])


def test_httplint_on_the_other_answers(cluster: RealCluster) -> None:
    _, page, _ = lint(f"{cluster.gateway}/index.html")
    assert page is not None
    etag = curl(page).header("ETag")
    for url, status, headers in (
        (page, 206, {"Range": "bytes=0-99"}),
        (page, 304, {"If-None-Match": etag}),
        (page, 416, {"Range": "bytes=9999999-"}),
        (f"{cluster.gateway}/patterns", 302, {}),
        (f"{cluster.gateway}/no/such/page", 404, {}),
        (f"{cluster.gateway}/health", 200, {}),
        (f"{cluster.gateway}/_dws/", 200, {}),
        (f"{cluster.gateway}/_dws/status", 200, {}),
    ):
        answered, _, said = lint(url, **headers)
        assert (url, answered, said) == (url, status, [])
