"""What HTTP clients may do wrong, or do on purpose, to a gateway and to servers' endpoints: each gets the
right status and no more, nothing stays behind, and others are served meanwhile."""

import http.client
import random
import selectors
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import psutil
import pytest

from dws.limits import CHUNK_BYTES, MIB
from tests.http.real_cluster import ROOT, RealCluster, eventually

WITHIN_S = 30.0
PAGE = b"<h1>hello</h1>\n"
LARGE = random.Random(1).randbytes(24 * CHUNK_BYTES + 7)
_FEW = 6
_UPLOAD_THREADS = 16
#: Small enough that the tests' own limit of open files does not matter.
SLOW_CONNECTIONS = 1_000


class Place:
    """A gateway or an endpoint: where it listens and the process behind it."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.address = (parts.hostname, parts.port or 80)
        self.process = process

    def connect(self, timeout_s: float = WITHIN_S) -> socket.socket:
        return socket.create_connection(self.address, timeout_s)

    def raw(self, request: bytes, timeout_s: float = WITHIN_S) -> tuple[int, dict[str, str], bytes]:
        """The answer to these bytes: status (0: closed without one), headers, body."""
        with self.connect(timeout_s) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(
                connection, method=request.split(b" ", 1)[0].decode("latin-1")
            )
            try:
                response.begin()
                body = response.read()
            except (http.client.BadStatusLine, ConnectionError):
                return 0, {}, b""
            headers = {key.lower(): value for key, value in response.getheaders()}
            return response.status, headers, body

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        lines = [f"{method} {path} HTTP/1.1", "Host: here", "Connection: close"]
        lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
        return self.raw("\r\n".join([*lines, "", ""]).encode())

    def clients(self) -> int:
        """Connections that clients have, or have left and it has not."""
        found = self.process.net_connections("tcp")
        return sum(each.laddr.port == self.address[1] and bool(each.raddr) for each in found)

    def descriptors(self) -> int:
        return self.process.num_fds()


class Site:
    """A cluster with a small and a large page."""

    def __init__(self, cluster: RealCluster) -> None:
        self.cluster = cluster
        processes = _processes_by_port(cluster.process.pid)
        endpoints = cluster.http_endpoints()
        with cluster.client() as client:
            client.put({"/page.html": PAGE})
            client.put({"/large.bin": LARGE})
        self.gateway = Place(cluster.gateway, processes[urlsplit(cluster.gateway).port or 0])
        self.endpoints = {
            name: Place(url, processes[urlsplit(url).port or 0]) for name, url in endpoints.items()
        }
        self.endpoint = self.endpoints["web-1"]

    @property
    def places(self) -> list[Place]:
        return [self.gateway, *self.endpoints.values()]

    def version(self, name: str) -> str:
        location = self.gateway.ask("GET", name)[1]["location"]
        return location.partition("?")[2]

    def check_serves(self, within_s: float = 5.0) -> None:
        """An ordinary client gets the page, by the gateway and the server that it names, soon."""
        began = time.monotonic()
        status, headers, _ = self.gateway.ask("GET", "/page.html")
        assert status == 302
        target = urlsplit(headers["location"])
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=within_s)
        try:
            connection.request("GET", f"{target.path}?{target.query}")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, PAGE)
        finally:
            connection.close()
        assert time.monotonic() - began < within_s

    def staged_bytes(self) -> int:
        files = self.cluster.data.glob("*/staging/*")
        return sum(file.stat().st_size for file in files)


def _processes_by_port(pid: int) -> dict[int, psutil.Process]:
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found[connection.laddr.port] = process
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with RealCluster(tmp_path_factory.mktemp("bad") / "data", webservers=2, site=None) as cluster:
        yield Site(cluster)


@pytest.fixture(autouse=True)
def all_is_well_afterwards(site: Site) -> Iterator[None]:
    yield
    site.check_serves()
    for place in site.places:
        assert place.process.is_running()
    eventually(lambda: not site.staged_bytes(), "nothing is staged", 10.0)


@pytest.fixture(params=["gateway", "endpoint"])
def place(request: pytest.FixtureRequest, site: Site) -> Place:
    chosen: Place = getattr(site, request.param)
    return chosen


def check_plain(body: bytes) -> None:
    """Nothing of the program's inside."""
    for mark in (b"Traceback", b'File "', b".py", str(ROOT).encode(), b"site-packages"):
        assert mark not in body, body


# -- names


#: How a path is no name → the status, whatever the method.
NO_NAMES = {
    "/../etc/passwd": 400,
    "/%2e%2e/etc/passwd": 400,
    "/a/..%2f..%2fetc/passwd": 400,
    "/%2e%2e%2fetc%2fpasswd": 400,
    "/a/./b": 400,
    "/a//b": 400,
    "//etc/passwd": 400,
    "/a%00.html": 400,
    "/a%0d%0aX-Evil:%20yes": 400,
    "/%ff%fe": 400,
    "/%c0%ae%c0%ae/etc/passwd": 400,
    "/" + "x" * 1024: 414,
    "/" + "x" * 20_000: 414,
    "/" + "%2e%2e/" * 2_000: 414,
}

#: Percent-decoded once these are names that a page could have, and none has.
NAMES = ["/%252e%252e/etc/passwd", "/..%5c..%5cwindows", "/%252fetc%252fpasswd"]


@pytest.mark.parametrize("path", NO_NAMES, ids=range(len(NO_NAMES)))
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_names_that_are_none(place: Place, method: str, path: str) -> None:
    headers = {"Content_Length": "0"} if method == "PUT" else {}
    status, fields, body = place.ask(method, path, **headers)
    assert status == NO_NAMES[path]
    assert "x-evil" not in fields
    check_plain(body)


@pytest.mark.parametrize("path", NAMES)
def test_names_are_decoded_once(site: Site, path: str) -> None:
    status, headers, body = site.endpoint.ask("GET", path)
    # Neither decoded a second time on the way nor cleaned up.
    assert (status, urlsplit(headers["location"]).path.lower()) == (302, path)
    status, _, body = site.gateway.ask("GET", path)
    assert status == 404
    check_plain(body)


def test_the_target_may_be_any_nonsense(place: Place) -> None:
    for target in (
        b"*",
        b"page.html",
        b"http://other.example/page.html",
        b"/page.html#x",
        b"/?%00",
        b"/\xff",
    ):
        status, fields, body = place.raw(
            b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert status in (0, 200, 302, 400, 404), target
        assert "other.example" not in fields.get("location", "")
        check_plain(body)


QUERIES = [
    "v=", "v=x", "v=1", "v=-1.1", "v=99999999999999999999.1", "v=1.1&v=2.2", "v=0.0", "v=1.%00",
    "not=x", "not=-1", "not=" + "1," * 500, "v=1.1&not=99999999", "&&&===",
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
def test_queries_that_mean_nothing(place: Place, query: str) -> None:
    status, _, body = place.ask("GET", f"/page.html?{query}")
    assert status in (200, 302, 400, 404, 503)
    check_plain(body)


# -- heads


@pytest.mark.parametrize("method", ["POST", "PATCH", "TRACE", "PROPFIND", "BREW", "get"])
def test_methods_that_are_not_known(place: Place, method: str) -> None:
    status, fields, body = place.ask(method, "/page.html", Content_Length="0")
    assert status in (405, 501)
    assert "GET" in fields["allow"]
    check_plain(body)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n\0\0\0",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nab",
        b"PUT /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\nab",
        b"\xff" * 5_000 + b"\r\n\r\n",
    ],
)
def test_requests_that_are_garbage(place: Place, request_bytes: bytes) -> None:
    with place.connect() as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        answer = _read_all(connection)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))
    check_plain(answer)


def test_a_smuggled_request_is_none(place: Place) -> None:
    """Both lengths: whoever believes the other one than we do would see a second request."""
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with place.connect(5.0) as connection:
        connection.sendall(head % (5 + len(smuggled)) + smuggled)
        connection.shutdown(socket.SHUT_WR)
        answer = _read_all(connection)
    check_plain(answer)


def test_heads_that_are_too_large(place: Place) -> None:
    many = "".join(f"X-{number}: y\r\n" for number in range(5_000))
    for head in (f"X: {'y' * 200_000}\r\n", many, f"Cookie: {'a=b; ' * 100_000}\r\n"):
        try:
            status, _, body = place.raw(f"GET /page.html HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        except ConnectionError:
            continue  # it had enough before it had all
        assert status in (0, 400, 413, 431)
        check_plain(body)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("bytes=0-0", 206),
        ("bytes=-1", 206),
        (f"bytes=5-{10**40}", 206),
        (f"bytes={10**40}-", 416),
        ("bytes=99999999999-", 416),
        ("bytes=-0", 416),
        ("bytes=9-3", 200),
        ("bytes=x-y", 200),
        ("bytes=", 200),
        ("bytes=--1", 200),
        ("lines=1-2", 200),
        ("bytes=0-1\xb2", 200),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(1000)), 200),
        ("bytes=" + "0-," * 5_000, 200),
    ],
)
@pytest.mark.parametrize("name", ["/page.html", "/large.bin"])
def test_absurd_ranges(site: Site, name: str, value: str, status: int) -> None:
    found, fields, body = site.endpoint.ask("GET", f"{name}?{site.version(name)}", Range=value)
    # What is no range, or too many of them, may be refused too.
    allowed = {status} if status == 206 else {200, 400, 416}
    assert found in allowed
    whole = PAGE if name == "/page.html" else LARGE
    if found == 206:
        assert len(body) < len(whole)
        assert fields["content-range"].endswith(f"/{len(whole)}")
    elif found == 200:
        assert body == whole
    else:
        check_plain(body)


def test_conditions_that_cannot_be_read(site: Site) -> None:
    for key in ("If_Match", "If_None_Match", "If_Range", "If_Modified_Since", "If_Unmodified_Since"):
        for value in ('"', "W/", "x" * 3_000, "Thu, 99 Foo 99999 99:99:99 GMT", '"\xff"', ",,,,"):
            status, _, body = site.endpoint.ask(
                "GET", f"/page.html?{site.version('/page.html')}", **{key: value}
            )
            assert status in (200, 304, 400, 412), (key, value)
            check_plain(body)


# -- clients that go, or stay


def test_bodies_where_there_should_be_none(place: Place) -> None:
    status, _, body = place.raw(
        b"GET /page.html HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(1000)
    )
    assert status in (0, 200, 302, 400)
    check_plain(body)


def test_more_than_was_promised_is_another_request(site: Site) -> None:
    with site.endpoint.connect() as connection:
        connection.sendall(b"PUT /longer HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcdefgh\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 201")
    with site.cluster.client() as client:
        assert client.get("/longer") == b"abc"


@pytest.mark.parametrize("size", [10, 12 * MIB], ids=["small", "large"])
def test_clients_that_vanish_while_they_send(site: Site, size: int) -> None:
    places = list(site.endpoints.values())
    before = [place.descriptors() for place in places]
    for place in places:
        for number in range(60 if size < MIB else 8):
            with place.connect() as connection:
                connection.sendall(
                    b"PUT /vanished-%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (number, size + 1)
                )
                connection.sendall(bytes(size))
                if number % 2:
                    _reset(connection)
    eventually(lambda: not site.staged_bytes(), "nothing is staged", 10.0)
    eventually(lambda: not site.cluster.status().open_batches, "no batch is open", 10.0)
    with site.cluster.client() as client:
        assert not any(record.name.startswith("/vanished") for record in client.list("/vanished"))
    # Each of the threads that puts stream in keeps its connections to the cluster.
    _until_let_go(places, before, _FEW if size < MIB else _UPLOAD_THREADS * 6)


def test_clients_that_vanish_while_they_receive(site: Site) -> None:
    places = [site.endpoint]
    target = f"/large.bin?{site.version('/large.bin')}"
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with site.endpoint.connect() as connection:
        connection.sendall(request)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    before = [place.descriptors() for place in places]
    for number in range(40):
        with site.endpoint.connect() as connection:
            connection.sendall(request)
            connection.recv(1000)
            if number % 2:
                _reset(connection)
    _until_let_go(places, before)


@pytest.mark.slow
def test_a_thousand_slow_connections_keep_nobody_waiting(site: Site) -> None:
    """Heads that trickle, bodies that trickle, readers that do not read, and those that say nothing."""
    before = [place.descriptors() for place in site.places]
    version = site.version("/large.bin")
    starts = [
        b"GET /page.html HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"PUT /slow-%d HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx",
        b"PUT /slow-%d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nx",
        f"GET /large.bin?{version} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        b"",
    ]
    slow: list[tuple[socket.socket, bool]] = []
    worst_s = 0.0
    try:
        for number in range(SLOW_CONNECTIONS):
            # Some at the gateway, most at a server.
            connection = (site.gateway if number % 4 == 0 else site.endpoint).connect()
            start = starts[number % len(starts)]
            connection.sendall(start % number if b"%d" in start else start)
            connection.setblocking(False)
            slow.append((connection, number % len(starts) < 3))
        for round_number in range(10):
            for connection, trickles in slow:
                if trickles:
                    try:
                        connection.send(b"x")
                    except OSError:
                        pass  # let go, as it should be
            began = time.monotonic()
            site.check_serves(5.0)
            name = f"/meanwhile-{round_number}"
            status, _, body = site.endpoint.raw(
                f"PUT {name} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok".encode()
            )
            assert status == 201, body
            worst_s = max(worst_s, time.monotonic() - began)
            time.sleep(1.0)
        print(f"slowest page and upload beside {SLOW_CONNECTIONS} slow connections: {worst_s * 1000:.0f} ms")
        # Heads that do not end are let go after a while, by themselves.
        eventually(lambda: _closed(slow[0][0]), "a head that trickles is given up", 30.0)
    finally:
        for connection, _ in slow:
            connection.close()
    _until_let_go(site.places, before, _UPLOAD_THREADS * 6)
    eventually(lambda: not site.staged_bytes(), "nothing is staged", 10.0)
    assert site.cluster.status().open_batches == 0


# -- helpers


def _read_all(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except (ConnectionError, TimeoutError):
        pass
    return b"".join(parts)


def _reset(connection: socket.socket) -> None:
    """Its end is no ordinary one: the other side gets an error."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def _closed(connection: socket.socket) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        if not selector.select(0):
            return False
    try:
        while data := connection.recv(65_536):
            del data
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _until_let_go(places: list[Place], before: list[int], more: int = _FEW) -> None:
    """Until no client's connection is left, and hardly a descriptor more than before."""
    eventually(lambda: not any(place.clients() for place in places), "no client is connected", 30.0)

    def settled() -> bool:
        return all(place.descriptors() <= known + more for place, known in zip(places, before, strict=True))

    eventually(settled, f"hardly more descriptors than {before}", 30.0)
