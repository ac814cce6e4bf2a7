"""PUT and DELETE over HTTP: the server's part of them alone, in a process of its own, and a real cluster."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from blake3 import blake3

from dws.limits import CHUNK_BYTES, MIB
from tests.cluster.conftest import QUICK, ClusterUnderTest, until

WITHIN_S = 30.0

APP = """
import json, sys
from dws.http.bodies import BodyBounds
from dws.http.server import run_http
from dws.http.uploads import UploadBounds, Uploads

class App:
    def __rsgi_init__(self, loop):
        bounds = json.loads(sys.argv[2])
        body = BodyBounds(**bounds.pop("body", {}))
        self.uploads = Uploads(sys.argv[1], "web-1", UploadBounds(body=body, **bounds))
    def ending(self): self.uploads.ending()
    def __rsgi_del__(self, loop): self.uploads.close()
    async def __rsgi__(self, scope, proto): await self.uploads.handle(scope, proto)

run_http(App(), "127.0.0.1", 0, lambda port: print(port, flush=True))
"""


class Answer:
    def __init__(self, status: int, headers: dict[str, str], text: str) -> None:
        self.status = status
        self.headers = headers
        self.text = text


class Wire:
    """One connection, byte by byte: what no HTTP library would send."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), WITHIN_S)
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, line: str, *headers: str) -> None:
        self.send("\r\n".join([f"{line} HTTP/1.1", "Host: here", *headers, "", ""]).encode())

    def answer(self) -> Answer:
        """The next response, 100 Continue too."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(int(first.split()[1]), headers, body.decode())

    def _more(self) -> None:
        data = self.socket.recv(65_536)
        assert data, f"the connection was closed after {self._rest!r}"
        self._rest += data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


class Front:
    """A process that answers uploads. `bounds` are UploadBounds' fields."""

    def __init__(self, balancer: str, **bounds: Any) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", APP, balancer, json.dumps(bounds)],
            stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def wire(self) -> Wire:
        return Wire(self.port)

    def ask(self, line: str, *headers: str, body: bytes | None = None) -> Answer:
        with self.wire() as wire:
            if body is not None:
                headers = (*headers, f"Content-Length: {len(body)}")
            wire.head(line, *headers)
            wire.send(body or b"")
            return wire.answer()

    def put(self, name: str, body: bytes, *headers: str) -> Answer:
        return self.ask(f"PUT {name}", *headers, body=body)

    def put_chunked(self, name: str, *parts: bytes) -> Answer:
        with self.wire() as wire:
            wire.head(f"PUT {name}", "Transfer-Encoding: chunked")
            for part in (*parts, b""):
                wire.send(b"%x\r\n%b\r\n" % (len(part), part))
            return wire.answer()

    def descriptors(self) -> int:
        return psutil.Process(self.process.pid).num_fds()

    def stop(self) -> float:
        """Ends it; how long that took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            assert self.process.wait(WITHIN_S) == 0
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
        return time.monotonic() - began


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    running = ClusterUnderTest(tmp_path_factory.mktemp("uploads"), QUICK)
    try:
        running.begin(2)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def front(running: ClusterUnderTest) -> Iterator[Front]:
    front = Front(running.endpoint, body={"idle_s": 1.0, "page_max_bytes": 64 * MIB})
    yield front
    front.stop()


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Callable[..., ClusterUnderTest]]:
    made: list[ClusterUnderTest] = []

    def make(**settings: Any) -> ClusterUnderTest:
        made.append(ClusterUnderTest(tmp_path, QUICK | settings))
        made[-1].begin(2)
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def fronts() -> Iterator[Callable[..., Front]]:
    made: list[Front] = []

    def make(running: ClusterUnderTest, **bounds: Any) -> Front:
        made.append(Front(running.endpoint, **bounds))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def etag(body: bytes) -> str:
    return f'"{blake3(body).hexdigest()}"'


def staged_bytes(running: ClusterUnderTest) -> int:
    """Of pages in files that are staged and not stored, on all servers."""
    files = [file for name in running.webservers for file in running.data(name).glob("staging/*")]
    return sum(file.stat().st_size for file in files)


BODIES = {
    "empty": b"",
    "small": b"<h1>hello</h1>\n",
    "a chunk": random.Random(1).randbytes(CHUNK_BYTES),
    "a chunk and a byte": random.Random(2).randbytes(CHUNK_BYTES + 1),
    "large": random.Random(3).randbytes(7 * CHUNK_BYTES + 5),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_page_is_stored_twice_and_told_by_its_digest(
    running: ClusterUnderTest, front: Front, body: bytes, chunked: bool
) -> None:
    name = f"/kinds/{len(body)}-{chunked}.html"
    pieces = [body[start : start + 300_000] for start in range(0, len(body), 300_000)]
    for status in (201, 204):
        answer = front.put_chunked(name, *pieces) if chunked else front.put(name, body)
        assert (answer.status, answer.headers["etag"]) == (status, etag(body)), answer.text
        assert answer.headers["content-location"] == name
    running.check_stored(name, body)
    with running.client() as client:
        [stat] = client.stat([name])
    assert stat is not None
    assert stat.record.content_type == "text/html"


def test_the_content_type_is_the_requests_where_it_says_one(running: ClusterUnderTest, front: Front) -> None:
    assert front.put("/typed.html", b"x", "Content-Type: text/plain; charset=utf-8").status == 201
    with running.client() as client:
        [stat] = client.stat(["/typed.html"])
    assert stat is not None
    assert stat.record.content_type == "text/plain; charset=utf-8"


def test_names_come_percent_encoded(running: ClusterUnderTest, front: Front) -> None:
    answer = front.put("/%C3%BCn%C3%AF/a%20b%25", b"x")
    assert (answer.status, answer.headers["location"]) == (201, "/%C3%BCn%C3%AF/a%20b%25")
    with running.client() as client:
        assert client.get("/ünï/a b%") == b"x"


def test_pages_are_removed(running: ClusterUnderTest, front: Front) -> None:
    front.put("/gone", b"x")
    assert front.ask("DELETE /gone").status == 204
    answer = front.ask("DELETE /gone")
    assert (answer.status, answer.text) == (404, "no such page: /gone\n")
    assert running.holders("/gone") == []


# -- conditions


def test_conditional_writes(front: Front) -> None:
    name, old, new = "/conditional", b"old", b"new"
    assert front.put(name, old, f"If-Match: {etag(old)}").status == 412
    assert front.put(name, old, "If-Match: *").status == 412
    assert front.put(name, old, "If-None-Match: *").status == 201
    assert front.put(name, new, "If-None-Match: *").status == 412
    assert front.put(name, new, f"If-Match: {etag(new)}").status == 412
    assert front.put(name, new, f"If-Match: W/{etag(old)}").status == 412
    assert front.put(name, new, f"If-None-Match: {etag(old)}").status == 412
    assert front.put(name, new, "If-Unmodified-Since: Thu, 01 Jan 2015 00:00:00 GMT").status == 412
    assert front.put(name, new, f'If-Match: "other", {etag(old)}').status == 204
    assert front.put(name, old, "If-Match: *").status == 204
    assert front.ask(f"DELETE {name}", f"If-Match: {etag(new)}").status == 412
    assert front.ask(f"DELETE {name}", f"If-Match: {etag(old)}").status == 204
    assert front.ask(f"DELETE {name}", f"If-Match: {etag(old)}").status == 412


def test_of_two_that_saw_the_same_page_one_replaces_it(running: ClusterUnderTest, front: Front) -> None:
    front.put("/race", b"seen")
    with front.wire() as slow:
        # Its conditions hold when they are looked at, and no longer when its body has come.
        slow.head("PUT /race", "Content-Length: 4", f"If-Match: {etag(b'seen')}", "Expect: 100-continue")
        assert slow.answer().status == 100
        assert front.put("/race", b"fast", f"If-Match: {etag(b'seen')}").status == 204
        slow.send(b"slow")
        assert slow.answer().status == 412
    running.check_stored("/race", b"fast")


def test_a_body_is_not_asked_for_in_vain(front: Front) -> None:
    front.put("/held", b"x")
    wanted = {"If-None-Match: *": 412, "Content-Range: bytes 0-1/3": 400, "Content-Encoding: gzip": 415}
    for header, status in wanted.items():
        with front.wire() as wire:
            wire.head("PUT /held", "Content-Length: 3", "Expect: 100-continue", header)
            assert wire.answer().status == status


# -- requests that are wrong


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("PUT /a/../b", 400, "'..' segment"),
        ("PUT /a/%2e%2e/b", 400, "'..' segment"),
        ("PUT /a/..%2fb", 400, "'..' segment"),
        ("PUT /a%00b", 400, "control character"),
        ("PUT /a%0d%0aSet-Cookie:x", 400, "control character"),
        ("PUT /%ff", 400, "UTF-8"),
        ("PUT //a", 400, "empty segment"),
        ("PUT /dir/", 400, "index.html"),
        ("PUT /", 400, "slash"),
        ("PUT /_dws/x", 400, "reserved"),
        ("PUT /_dws", 400, "reserved"),
        ("PUT /" + "x" * 1024, 414, "1,024"),
        ("PUT /a?v=1.1", 400, "version"),
        ("DELETE /a/../b", 400, "'..' segment"),
        ("DELETE /dir/", 400, "slash"),
    ],
)
def test_names_that_are_none(front: Front, line: str, status: int, said: str) -> None:
    answer = front.ask(line, body=b"")
    assert answer.status == status
    assert said in answer.text
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 411),
        (["Content-Length: 67108865"], 413),
        (["Content-Length: 99999999999999999"], 413),
        (["Content-Length: 1", "Content-Range: bytes 0-0/3"], 400),
        (["Content-Length: 1", "Content-Encoding: br"], 415),
        (["Content-Length: 1", "Content-Type: " + "x" * 300], 400),
        (["Content-Length: x"], 400),
        (["Content-Length: -1"], 400),
        (["Content-Length: 1", "Content-Length: 2"], 400),
    ],
)
def test_heads_that_are_wrong(front: Front, headers: list[str], status: int) -> None:
    assert front.ask("PUT /wrong", *headers).status == status


def test_a_chunked_body_that_is_too_large(running: ClusterUnderTest, front: Front) -> None:
    with front.wire() as wire:
        wire.head("PUT /endless", "Transfer-Encoding: chunked")
        part = bytes(MIB)
        try:
            for _ in range(80):
                wire.send(b"%x\r\n%b\r\n" % (len(part), part))
        except OSError:
            pass  # it has had enough
        else:
            assert wire.answer().status == 413
    assert running.holders("/endless") == []
    until(lambda: not staged_bytes(running), "nothing is staged", 5.0)


# -- bodies that do not come


@pytest.mark.parametrize("size", [3, 12 * MIB], ids=["small", "large"])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_of_a_body_that_breaks_off_nothing_stays(
    running: ClusterUnderTest, front: Front, size: int, chunked: bool
) -> None:
    before = running.servers()
    with front.wire() as wire:
        wire.head("PUT /short", "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size + 1}")
        wire.send((b"%x\r\n" % (size + 1) if chunked else b"") + bytes(size))
        if size > MIB:
            until(lambda: staged_bytes(running), "something is staged")
    until(lambda: not staged_bytes(running), "nothing is staged", 5.0)
    until(lambda: not running.status().open_batches, "no batch is open", 5.0)
    assert running.holders("/short") == []
    after = running.servers()
    assert {name: server.pages for name, server in after.items()} == {
        name: server.pages for name, server in before.items()
    }


def test_half_a_connection_is_told_what_is_missing(front: Front) -> None:
    with front.wire() as wire:
        wire.head("PUT /half", "Content-Length: 10")
        wire.send(b"half")
        wire.socket.shutdown(socket.SHUT_WR)
        try:
            answer = wire.answer()
        except (AssertionError, OSError):
            return  # closed without a word, which HTTP allows
        assert answer.status == 400


@pytest.mark.parametrize("size", [3, 3 * MIB], ids=["small", "large"])
def test_a_body_that_stands_still(running: ClusterUnderTest, front: Front, size: int) -> None:
    with front.wire() as wire:
        wire.head("PUT /still", f"Content-Length: {size + 1}")
        wire.send(bytes(size))
        answer = wire.answer()
    assert answer.status == 408
    assert f"{size:,} bytes so far" in answer.text
    assert running.holders("/still") == []
    until(lambda: not staged_bytes(running), "nothing is staged", 5.0)


def test_a_body_that_trickles(running: ClusterUnderTest, fronts: Callable[..., Front]) -> None:
    front = fronts(running, body={"small_s": 1.0})
    with front.wire() as wire:
        wire.head("PUT /trickle", "Content-Length: 1000")
        began = time.monotonic()
        try:
            while time.monotonic() - began < WITHIN_S:
                wire.send(b"x")
                time.sleep(0.1)
        except OSError:
            pass
    assert 1.0 <= time.monotonic() - began < 5.0


# -- a cluster that cannot


def test_too_few_servers_and_no_room_are_said(
    clusters: Callable[..., ClusterUnderTest], fronts: Callable[..., Front]
) -> None:
    running = clusters(quota_bytes=3 * MIB, free_reserve=0.0)
    front = fronts(running)
    assert front.put("/small", b"x").status == 201
    answer = front.put("/large", bytes(8 * MIB))
    assert answer.status == 507, answer.text
    running.kill("web-2")
    running.wait_state("web-2", "dead")
    answer = front.put("/small", b"y")
    assert answer.status == 503, answer.text
    assert answer.headers["retry-after"]
    running.kill("balancer")
    answer = front.put("/small", b"z")
    assert answer.status == 503
    assert "balancer" in answer.text


def test_more_than_it_takes_at_once(running: ClusterUnderTest, fronts: Callable[..., Front]) -> None:
    front = fronts(running, threads=1, wait_s=0.2)
    with front.wire() as wire:
        wire.head("PUT /long", f"Content-Length: {4 * MIB}")
        wire.send(bytes(3 * MIB))
        until(lambda: front.put("/other", b"x").status == 503, "its thread is taken")
        wire.send(bytes(MIB))
        assert wire.answer().status == 201
    assert front.put("/other", b"x").status in (201, 204)


def test_it_ends_at_once_though_an_upload_is_under_way(
    running: ClusterUnderTest, fronts: Callable[..., Front]
) -> None:
    front = fronts(running)
    with front.wire() as wire:
        wire.head("PUT /long", f"Content-Length: {16 * MIB}")
        wire.send(bytes(12 * MIB))
        until(lambda: staged_bytes(running), "something is staged")
        assert front.stop() < 5.0
    until(lambda: not staged_bytes(running), "nothing is staged", 5.0)


def test_nothing_is_left_open(running: ClusterUnderTest, front: Front) -> None:
    def once() -> None:
        front.put("/again", b"x")
        with front.wire() as wire:
            wire.head("PUT /broken", "Content-Length: 10")
            wire.send(b"x")

    for _ in range(40):
        once()
    time.sleep(0.5)
    before = front.descriptors()
    for _ in range(100):
        once()
    until(lambda: front.descriptors() <= before + 2, "no more descriptors than before")


@pytest.mark.slow
def test_memory_does_not_grow_with_a_page(running: ClusterUnderTest, fronts: Callable[..., Front]) -> None:
    front = fronts(running)
    front.put("/warm", bytes(2 * MIB))
    memory = psutil.Process(front.process.pid).memory_info
    before, peak = memory().rss, 0
    part = random.Random(4).randbytes(MIB)
    with front.wire() as wire:
        wire.head("PUT /half-a-gigabyte", f"Content-Length: {512 * MIB}")
        for _ in range(512):
            wire.send(part)
            peak = max(peak, memory().rss)
        assert wire.answer().status == 201
    assert peak - before < 64 * MIB
