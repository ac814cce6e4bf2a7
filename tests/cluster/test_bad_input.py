"""Hostile and broken input on every socket of a running cluster: a typed error or a counted drop, no more.

A balancer and two web servers, real processes, take everything in this module one after the other. After
each test they still run and answer at once, and every page is where it was (`unharmed`). What is absurd, not
malformed, and what only a node's own peers can say, is tried on the machines, at the end.
"""

import math
import random
import struct
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import psutil
import pytest
import zmq
from blake3 import blake3

from dws import messages
from dws.catalog import Catalog
from dws.client import Directory
from dws.config import Config
from dws.download import LocatePages
from dws.effects import Ask
from dws.errors import BadRequest, OverBound
from dws.following import Endpoints
from dws.limits import BATCH_MAX_BYTES, CHUNK_BYTES, FRAME_MAX_BYTES, KIB, MANIFEST_BUCKETS, SERVERS_MAX
from dws.load import Loads
from dws.membership import Server
from dws.messages import (
    NO_ROOM,
    NOT_HELD,
    Abort,
    Await,
    Beat,
    Change,
    Commit,
    CommitPage,
    Copy,
    CopyFailed,
    Digests,
    Drop,
    Dropped,
    Fetch,
    Hello,
    Later,
    List,
    Listing,
    Locate,
    Located,
    Manifest,
    ManifestPage,
    Ping,
    Pong,
    PutPage,
    Read,
    ReadData,
    Record,
    Remove,
    RemovePage,
    Reserve,
    Reserved,
    ServerRef,
    Stage,
    Staged,
    StagePart,
    Stat,
    Stored,
    Sums,
    SumsAre,
    Unstage,
    Unstaged,
    encode,
)
from dws.names import make_version
from dws.policy import choose_targets
from dws.store import Identity
from dws.sync import Sync
from dws.webserver import JobCame, WebServer
from patterns import heartbeat, jobs, request_reply
from tests.cluster.conftest import QUICK, ClusterUnderTest, Wire, until
from tests.dws.test_vectors import SAMPLES

AT_ONCE_S = 5.0
BATCH = b"no such batch id"
U64_MAX = (1 << 64) - 1

PAGES = {"/a": b"a" * 10, "/b": b"b" * 300 * KIB, "/large": random.Random(1).randbytes(CHUNK_BYTES + 7)}

decode_any_reply = msgspec.msgpack.Decoder(
    messages.BalancerReply | messages.ServerReply | messages.PageReply
).decode

Sockets = Callable[..., "zmq.Socket[bytes]"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    running = ClusterUnderTest(tmp_path_factory.mktemp("bad"), QUICK)
    try:
        running.begin(2)
        with running.client() as client:
            client.put(PAGES)
        yield running
    finally:
        running.close()


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test on the cluster: nobody ended, and all pages are there, on both servers."""
    yield
    if "cluster" in request.fixturenames:
        cluster: ClusterUnderTest = request.getfixturevalue("cluster")
        assert all(cluster.is_running(name) for name in cluster.nodes)
        cluster.wait_alive("web-1", "web-2")
        with cluster.client(timeout_s=AT_ONCE_S) as client:
            assert client.get_many(list(PAGES)) == PAGES
            held = {stat.record.name: len(stat.holders) for stat in client.stat(list(PAGES)) if stat}
        assert held == dict.fromkeys(PAGES, 2)


class Line:
    """A DEALER to one ROUTER of the cluster, on which anything can be said.

    After whatever was said a good request is sent. Its reply comes behind the others', since requests of one
    peer are taken in turn; so what has not come by then is not to come.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", realm: bytes, good: Any) -> None:
        self.socket = socket
        self.realm = realm
        self._good = good
        self._ids = count(random.getrandbits(62))

    def frame(self, body: bytes, **head: Any) -> bytes:
        said = {"signature": 0xD7, "version": 1, "kind": 1, "reserved": 0, "realm": self.realm} | head
        self.last_id = next(self._ids)
        return (
            struct.pack(
                ">BBBBQ16s", said["signature"], said["version"], said["kind"], said["reserved"], self.last_id,
                said["realm"],
            )
            + body
        )  # fmt: skip

    def say(self, *frames: bytes) -> Any:
        """The reply, or None if there was none."""
        asked = self.last_id if hasattr(self, "last_id") else None
        self.socket.send_multipart(frames)
        self.socket.send(self.frame(encode(self._good)))
        reply = None
        give_up = time.monotonic() + AT_ONCE_S
        while True:
            assert self.socket.poll(max(0, 1000 * (give_up - time.monotonic()))), (
                "no answer to a good request"
            )
            frame = self.socket.recv_multipart()[0]
            request_id = int.from_bytes(frame[4:12])
            if request_id == self.last_id:
                assert frame[:4] == b"\xd7\x01\x02\x00"
                return reply
            assert request_id == asked, "a reply to what was no request"
            assert reply is None, "two replies to one request"
            reply = decode_any_reply(frame[request_reply.HEADER_BYTES :])

    def ask(self, message: Any, data: bytes | None = None) -> Any:
        """What is answered to a message, a list of raw fields, or raw bytes."""
        if isinstance(message, list):
            message = msgpack.packb(message)
        elif not isinstance(message, bytes):
            message = encode(message)
        return self.say(self.frame(message), *(() if data is None else (data,)))

    def refusal(self, message: Any, data: bytes | None = None) -> str:
        """The code of the error with which it is answered."""
        reply = self.ask(message, data)
        assert isinstance(reply, messages.Error), reply
        assert reply.text
        return reply.code


@pytest.fixture
def realm(cluster: ClusterUnderTest) -> bytes:
    return cluster.status().cluster


@pytest.fixture
def to_clients(cluster: ClusterUnderTest, sockets: Sockets, realm: bytes) -> Line:
    """The balancer, as clients reach it."""
    return Line(sockets(zmq.DEALER, connect=cluster.endpoint), realm, Ping())


@pytest.fixture
def to_servers(cluster: ClusterUnderTest, sockets: Sockets, realm: bytes) -> Line:
    """The balancer, as web servers reach it. A stranger's report is answered: with `refused`."""
    return Line(
        sockets(zmq.DEALER, connect=f"tcp://127.0.0.1:{cluster.port + 1}"), realm, Stored(U64_MAX, [])
    )


@pytest.fixture
def to_pages(cluster: ClusterUnderTest, sockets: Sockets, realm: bytes) -> Line:
    """The web server web-1."""
    return Line(sockets(zmq.DEALER, connect=cluster.nodes["web-1"].endpoint), realm, Ping())


@pytest.fixture(params=["to_clients", "to_servers", "to_pages"])
def line(cluster: ClusterUnderTest, request: pytest.FixtureRequest) -> Line:
    """Each ROUTER in turn."""
    found: Line = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def web_1(cluster: ClusterUnderTest) -> ServerRef:
    """web-1 as it is now."""
    status = cluster.servers()["web-1"]
    return ServerRef(status.number, status.name, status.endpoint, status.incarnation)


def counted(cluster: ClusterUnderTest, where: str, counter: str) -> float:
    """The balancer's or a web server's counter."""
    with cluster.client() as client:
        counters: Any = client.status().counters if where == "balancer" else client.node_stats(where).counters
        return float(counters.get(counter, 0))


# -- envelopes, on every ROUTER ------------------------------------------------------------

PING = encode(Ping())


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ({"version": 2}, "wrong-version"),
        ({"version": 0}, "wrong-version"),
        ({"kind": 0}, "bad-request"),
        ({"kind": 3}, "bad-request"),
        ({"reserved": 1}, "bad-request"),
        ({"realm": b"another cluster!"}, "wrong-cluster"),
        ({"signature": 0xD8}, None),
        ({"signature": 0}, None),
        ({"kind": 2}, None),  # a reply that nobody awaits
    ],
    ids=str,
)
def test_a_wrong_head_is_told_if_there_is_an_id_to_tell_it_to(
    line: Line, head: dict[str, Any], code: str | None
) -> None:
    reply = line.say(line.frame(PING, **head))
    assert (reply.code if reply else None) == code


@pytest.mark.parametrize("length", [0, 1, 3, 4, 11, 12, 20, 27])
def test_a_head_that_is_cut_short_is_told_once_it_has_an_id(line: Line, length: int) -> None:
    reply = line.say(line.frame(b"")[:length])
    assert (reply.code if reply else None) == ("bad-request" if length >= 12 else None)


@pytest.mark.parametrize(
    "extra", [(b"", b""), (b"", b"", b""), (b"x",) * 5000], ids=["two empty", "three empty", "5000"]
)
def test_more_than_one_data_frame_is_dropped(
    cluster: ClusterUnderTest, line: Line, extra: tuple[bytes, ...]
) -> None:
    assert line.say(line.frame(PING), *extra) is None


def test_what_a_req_socket_sends_is_dropped(line: Line) -> None:
    frame = line.frame(PING)
    assert line.say(b"", frame) is None


def test_a_frame_over_the_bound_costs_the_connection_and_nothing_else(
    cluster: ClusterUnderTest, line: Line, sockets: Sockets
) -> None:
    again = sockets(zmq.DEALER, connect=line.socket.last_endpoint)
    line.socket.send(line.frame(bytes(FRAME_MAX_BYTES)))
    other = Line(again, line.realm, line._good)
    assert other.say(b"") is None
    until(lambda: is_answered(line), "the connection is made again")


def is_answered(line: Line) -> bool:
    line.socket.send(line.frame(encode(line._good)))
    return bool(line.socket.poll(200)) and bool(line.socket.recv_multipart())


# -- bodies, on every ROUTER -----------------------------------------------------------------

DEEP = 200_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\xc0",
        b"\x91",
        b"\x91\xa4pin",
        b"\x91\xa4ping\x00",
        b"\x81\xa4ping\x01",
        b"\x91\x05",
        b"\x91\xc4\x04ping",
        b"\x91\xa2\xff\xfe",
        b"\x91\xa7unknown",
        b"\x91\xa0",
        b"\xdd\xff\xff\xff\xff\xa4ping",
        b"\x91" * DEEP,
        b"\x92\xa4ping" + b"\x91" * DEEP,
        b"\x92\xa4ping" + b"\x81\x01" * DEEP,
        b"\x92\xa4ping\xc7\xff\x01",
        b"\x92\xa6locate\xdd\xff\xff\xff\xff",
        b"\x92\xa6locate\x91\xa2\xff\xfe",
        b"\x92\xa5fetch\xdd\xff\xff\xff\xff",
        b"\x93\xa6stored\x01\x91\x93\x01\xdd\xff\xff\xff\xff",
        encode(Pong("no", 0, 0)),
        encode(Listing([], False)),
        b"\x91\xa5error",
    ],
    ids=lambda body: f"{body[:12].hex()}-{len(body)}",
)
def test_a_body_that_is_no_message_is_a_bad_request(line: Line, body: bytes) -> None:
    assert line.refusal(body) == "bad-request"


def test_malformed_requests_are_counted(cluster: ClusterUnderTest, line: Line) -> None:
    names = {
        ("balancer", "malformed requests"), ("balancer", "clients too-many-frames"),
        ("balancer", "malformed reports"), ("balancer", "servers too-many-frames"),
        ("web-1", "malformed requests"), ("web-1", "pages too-many-frames"),
    }  # fmt: skip
    before = {name: counted(cluster, *name) for name in names}
    line.ask(b"\xc1")
    line.say(line.frame(PING), b"", b"")
    risen = {name for name in names if counted(cluster, *name) > before[name]}
    assert len(risen) == 2


def test_fields_of_a_later_version_are_passed_over(to_clients: Line, to_pages: Line) -> None:
    for line in (to_clients, to_pages):
        assert isinstance(line.ask(["ping", {"new": [1, None]}, bytes(FRAME_MAX_BYTES // 2)]), Pong)


def test_noise(line: Line, seed: int) -> None:
    """Random bytes, and golden frames with some bytes changed, cut out or put in."""
    rng = random.Random(seed)
    goods = [encode(message) for _, message, _ in SAMPLES]
    frames = []
    for _ in range(500):
        body = bytearray(rng.choice(goods))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body) + 1)
            match rng.randrange(4):
                case 0:
                    body[at:at] = rng.randbytes(rng.randint(1, 9))
                case 1:
                    del body[at : at + rng.randint(1, 9)]
                case 2:
                    body[at : at + 1] = rng.randbytes(1)
                case 3:
                    body = bytearray(rng.randbytes(rng.randint(0, 200)))
        head = line.frame(b"")[: rng.choice((28, 28, 28, rng.randint(0, 28)))]
        frames.append(
            [head + body, *(rng.randbytes(rng.randint(0, 99)) for _ in range(rng.choice((0, 1, 2))))]
        )
    for frame in frames:
        line.socket.send_multipart(frame)
    line.socket.send(line.frame(encode(line._good)))
    while line.socket.recv_multipart()[0][4:12] != line.last_id.to_bytes(8):
        pass  # errors, most of them; a good reply that does not come fails the receive


# -- clients' requests -------------------------------------------------------------------------

BAD_NAMES = [
    "a", "/", "//", "/a/", "/a//b", "/.", "/..", "/a/./b", "/a/../b", "/a\0", "/a\n", "/\x7f", "/\x85",
    "/_dws", "/_dws/x", "/" + "x" * 1023 + "y", "/" + "ü" * 600,
]  # fmt: skip


def put_page(name: str = "/new", size: int = 1, digest: bytes = b"") -> PutPage:
    return PutPage(name, size, digest)


def reserve(*pages: PutPage, epoch: int = 1, copies: int = 2, deadline_s: float = 5.0) -> Reserve:
    return Reserve(random.randbytes(16), epoch, list(pages), copies, deadline_s)


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_is_none_is_neither_reserved_nor_removed(to_clients: Line, name: str) -> None:
    # One code point over the bound is refused by the type already.
    wanted = "bad-request" if len(name) > 1024 else "bad-name"
    assert to_clients.refusal(reserve(put_page(), put_page(name))) == wanted
    remove = Remove(random.randbytes(16), 1, [RemovePage("/a"), RemovePage(name)], 5.0)
    assert to_clients.refusal(remove) == wanted


def test_a_name_that_is_none_names_no_page(to_clients: Line) -> None:
    names = [name for name in BAD_NAMES if len(name) <= 1024]
    assert to_clients.ask(Locate(names)).pages == [None] * len(names)
    assert to_clients.ask(Stat(names)).pages == [None] * len(names)


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (reserve(), "bad-request"),
        (reserve(*(put_page(f"/{n}") for n in range(1001))), "bad-request"),
        (reserve(put_page(), put_page()), "bad-request"),
        (reserve(put_page(size=-1), put_page("/other")), "bad-request"),
        (reserve(put_page(size=-2)), "bad-request"),
        (reserve(put_page(size=(64 << 30) + 1)), "bad-request"),
        (reserve(put_page(size=BATCH_MAX_BYTES), put_page("/other")), "over-bound"),
        (reserve(put_page(digest=b"short")), "bad-request"),
        (reserve(put_page(digest=bytes(33))), "bad-request"),
        (reserve(PutPage("/new", 1, b"", content_type="text/html\r\nX-Evil: 1")), "bad-request"),
        (reserve(PutPage("/new", 1, b"", content_type="x" * 256)), "bad-request"),
        (reserve(PutPage("/new", 1, b"", condition=-2)), "bad-request"),
        (reserve(PutPage("/new", 1, b"", condition=7)), "conflict"),
        (reserve(PutPage("/a", 1, b"", condition=0)), "conflict"),
        (reserve(put_page(), copies=-1), "bad-request"),
        (reserve(put_page(), copies=17), "bad-request"),
        (reserve(put_page(), copies=3), "too-few-servers"),
        (reserve(put_page(), epoch=0), "stale"),
        (reserve(put_page(), epoch=2), "stale"),
        (reserve(put_page(), epoch=1 << 28), "bad-request"),
        (reserve(put_page(), deadline_s=math.nan), "bad-request"),
        (reserve(put_page(), deadline_s=math.inf), "bad-request"),
        (reserve(put_page(), deadline_s=-1.0), "bad-request"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_that_cannot_be_is_refused(to_clients: Line, batch: Reserve, code: str) -> None:
    assert to_clients.refusal(batch) == code


@pytest.mark.parametrize(
    "request_",
    [
        ["locate", ["/a"] * 1001],
        ["locate", [""]],
        ["locate", "/a"],
        ["locate", ["/a"], -1],
        ["locate", ["/a"], 0, [1] * 65],
        ["locate", ["/a"], 0, [65_536]],
        ["locate", {"/a": 1}],
        ["locate"],
        ["stat", ["/a"] * 1001],
        ["list", "/", "", 0],
        ["list", "/", "", 1001],
        ["list", "/" * 1025, "", 1],
        ["why", ["/a"]],
        ["await", BATCH, -1, 1.0],
        ["await", BATCH, U64_MAX, math.nan],
        ["await", BATCH, 0, 86_401.0],
        ["await", BATCH[:15], 0, 1.0],
        ["await", BATCH.decode(), 0, 1.0],
        ["await", BATCH, 0.5, 1.0],
        ["abort", b""],
        ["remove", BATCH, 1, [], 1.0],
        ["remove", BATCH, 1, [["/a", -2]], 1.0],
        ["remove", BATCH, 1, [["/a"]] * 1001, 1.0],
        ["remove", BATCH, -1, [["/a"]], 1.0],
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_what_breaks_a_type_or_bound_is_a_bad_request(to_clients: Line, request_: list[Any]) -> None:
    assert to_clients.refusal(request_) == "bad-request"


def test_the_largest_numbers_are_numbers(to_clients: Line) -> None:
    located = to_clients.ask(Locate(["/a"], U64_MAX, [65_535] * 64))
    assert len(located.pages[0][4]) == 2
    assert to_clients.ask(Await(random.randbytes(16), U64_MAX, 86_400.0)).state == "never"
    conditions = [RemovePage("/none", U64_MAX)]
    assert to_clients.ask(Remove(random.randbytes(16), 1, conditions, 0.0)).state == "conflict"
    assert to_clients.ask(List("", "\U0010ffff", 1)).records == []


def test_an_id_that_was_told_never_is_never_placed(to_clients: Line) -> None:
    placed = reserve(put_page())
    assert to_clients.ask(Abort(placed.batch)).state == "never"
    assert to_clients.refusal(placed) == "never"


def test_a_batch_that_nobody_commits_ends_at_its_deadline(cluster: ClusterUnderTest) -> None:
    placed = reserve(put_page(), deadline_s=0.0)
    with Wire() as wire:
        assert isinstance(wire.ask(cluster.endpoint, placed), Reserved)
        assert wire.ask(cluster.endpoint, Await(placed.batch, U64_MAX, AT_ONCE_S)).state == "never"


def test_errors_about_the_longest_names_can_be_read(to_clients: Line, to_pages: Line) -> None:
    names = [f"/{n}{'x' * 1022}" for n in range(3)]
    error = to_clients.ask(reserve(*(PutPage(name, 1, b"", condition=7) for name in names)))
    assert (error.code, error.names) == ("conflict", names)
    assert to_pages.refusal(Read(names[0], 1, 0, 1)) == "not-held"


# -- a web server's requests -----------------------------------------------------------------


def test_pages_that_are_not_there_are_said_to_be_not_there(to_pages: Line) -> None:
    assert to_pages.ask(Fetch([("/a", 1), ("no name", U64_MAX)])).sizes == [NOT_HELD, NOT_HELD]
    assert to_pages.refusal(Read("/a", U64_MAX, 0, 1)) == "not-held"
    assert to_pages.refusal(Digests("/a", 0)) == "not-held"


def test_reading_past_the_end_gives_nothing(cluster: ClusterUnderTest, to_pages: Line) -> None:
    with cluster.client() as client:
        versions = {stat.record.name: stat.record.version for stat in client.stat(list(PAGES)) if stat}
    for name, version in versions.items():
        size = len(PAGES[name])
        for offset in (size, size + 1, 64 << 30):
            assert to_pages.ask(Read(name, version, offset, U64_MAX)) == ReadData(offset, 0)
        assert to_pages.ask(Read(name, version, size - 1, U64_MAX)) == ReadData(size - 1, 1)
        assert to_pages.ask(Read(name, version, 0, 0)) == ReadData(0, 0)


@pytest.mark.parametrize(
    "request_",
    [
        ["fetch", [["/a", 1]] * 1001],
        ["fetch", [["/a"]]],
        ["fetch", [["/a", 1, 1]]],
        ["fetch", [["/a", -1]]],
        ["fetch", ["/a"]],
        ["read", "/a", 1, -1, 1],
        ["read", "/a", 1, (64 << 30) + 1, 1],
        ["read", "/a", 1, 0, -1],
        ["stage", BATCH, 1, 1, [[0, 0, 1]] * 1001],
        ["stage", BATCH, 1, 1, [[1000, 0, 1]]],
        ["stage", BATCH, 1, 1, [[-1, 0, 1]]],
        ["stage", BATCH, 1, 1, [[0, -1, 1]]],
        ["stage", BATCH, 1, 1, [[0, 0, -1]]],
        ["commit", BATCH, 1, 1, []],
        ["commit", BATCH, 1, 1, [[0, "/a", 1, b"short", "", 0.0]]],
        ["commit", BATCH, 1, 1, [[0, "/a", 1, bytes(32), "", math.nan]]],
        ["commit", BATCH, 1, 1, [[0, "/a", 1, bytes(32), "", 1e300]]],
        ["commit", BATCH, 1, 1, [[0, "/a", -1, bytes(32), "", 0.0]]],
        ["manifest", 1, 256, b"", 1],
        ["manifest", 1, -1, b"", 1],
        ["manifest", 1, 0, bytes(25), 1],
        ["manifest", 1, 0, b"", 0],
        ["manifest", 1, 0, b"", 2001],
        ["node-stats", 1001],
        ["unstage", b""],
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_what_breaks_a_type_or_bound_is_refused_by_web_servers_too(
    to_pages: Line, request_: list[Any]
) -> None:
    assert to_pages.refusal(request_) == "bad-request"


def test_a_manifest_is_read_from_any_cursor(to_pages: Line, web_1: ServerRef) -> None:
    for after in (b"", b"\0", b"\xff" * 24, bytes(24)):
        for bucket in (0, 255):
            assert to_pages.ask(Manifest(web_1.incarnation, bucket, after, 2000)).after == b""


def test_another_life_of_the_server_is_not_answered_for(to_pages: Line, web_1: ServerRef) -> None:
    for incarnation in (0, web_1.incarnation + 1, U64_MAX):
        assert to_pages.refusal(Sums(incarnation)) == "stale"
        assert to_pages.refusal(Manifest(incarnation, 0, b"", 1)) == "stale"


class TestUploads:
    """Stage and Commit that cannot be. VERSION is of the running epoch, and placed by nobody."""

    VERSION = make_version(1, 1 << 30)

    def stage(self, web_1: ServerRef, *parts: tuple[int, int, int], **fields: int) -> Stage:
        said = {"version": self.VERSION, "incarnation": web_1.incarnation} | fields
        return Stage(BATCH, said["version"], said["incarnation"], [StagePart(*part) for part in parts])

    def commit(self, web_1: ServerRef, page: CommitPage, **fields: int) -> Commit:
        said = {"version": self.VERSION, "incarnation": web_1.incarnation} | fields
        return Commit(BATCH, said["version"], said["incarnation"], [page])

    @pytest.fixture(autouse=True)
    def nothing_stays_staged(self, to_pages: Line) -> Iterator[None]:
        yield
        assert isinstance(to_pages.ask(Unstage(BATCH)), Unstaged)

    @pytest.mark.parametrize(
        ("parts", "size"),
        [
            ([(0, 0, 1)], 0),
            ([(0, 0, 1)], 2),
            ([(0, 0, U64_MAX)], 1),
            ([(0, 1, 1)], 1),
            ([(0, CHUNK_BYTES - 1, 1)], 1),
            ([(0, CHUNK_BYTES, 0)], 0),
            ([(0, 0, CHUNK_BYTES + 1)], CHUNK_BYTES + 1),
            ([], 1),
        ],
        ids=str,
    )
    def test_parts_that_do_not_fit_are_refused(
        self, to_pages: Line, web_1: ServerRef, parts: list[tuple[int, int, int]], size: int
    ) -> None:
        assert to_pages.refusal(self.stage(web_1, *parts), bytes(size)) == "bad-request"

    def test_bytes_past_the_largest_page_are_refused(self, to_pages: Line, web_1: ServerRef) -> None:
        assert to_pages.refusal(self.stage(web_1, (0, 64 << 30, 1)), b"x") == "over-bound"

    def test_a_stage_without_its_data_frame_is_refused(self, to_pages: Line, web_1: ServerRef) -> None:
        assert to_pages.refusal(self.stage(web_1, (0, 0, 1))) == "bad-request"

    def test_chunks_from_the_future_are_told_where_to_go_on(self, to_pages: Line, web_1: ServerRef) -> None:
        assert to_pages.ask(self.stage(web_1, (3, 63 << 30, 1)), b"x") == Staged(3, 0)
        assert to_pages.ask(self.stage(web_1)) == Staged(0, 0)

    @pytest.mark.parametrize("fields", [{"incarnation": 1}, {"version": 5}, {"version": U64_MAX}], ids=str)
    def test_another_epoch_or_incarnation_is_refused(
        self, to_pages: Line, web_1: ServerRef, fields: dict[str, int]
    ) -> None:
        assert to_pages.refusal(self.stage(web_1, (0, 0, 1), **fields), b"x") == "stale"
        page = CommitPage(0, "/new", 1, blake3(b"x").digest(), "", 0.0)
        assert to_pages.refusal(self.commit(web_1, page, **fields)) == "stale"

    def test_one_batch_id_is_staged_under_one_version(self, to_pages: Line, web_1: ServerRef) -> None:
        assert to_pages.ask(self.stage(web_1, (0, 0, 1)), b"x") == Staged(0, 1)
        other = self.stage(web_1, (0, 0, 1), version=self.VERSION + 1)
        assert to_pages.refusal(other, b"y") == "bad-request"

    def test_a_batch_over_its_bound_is_refused(self, to_pages: Line, web_1: ServerRef) -> None:
        bodies = bytes(16 * 256 * KIB)
        for first in range(0, 256, 16):
            parts = [(page, 0, 256 * KIB) for page in range(first, first + 16)]
            assert to_pages.ask(self.stage(web_1, *parts), bodies) == Staged(first + 15, 256 * KIB)
        assert to_pages.refusal(self.stage(web_1, (256, 0, 1)), b"x") == "over-bound"

    def test_a_batch_that_nobody_staged_is_not_committed(self, to_pages: Line, web_1: ServerRef) -> None:
        page = CommitPage(0, "/new", 1, blake3(b"x").digest(), "", 0.0)
        assert to_pages.refusal(self.commit(web_1, page)) == "not-held"

    @pytest.mark.parametrize(
        ("page", "code"),
        [
            (CommitPage(1, "/new", 1, blake3(b"x").digest(), "", 0.0), "not-held"),
            (CommitPage(0, "/new", 2, blake3(b"x").digest(), "", 0.0), "not-held"),
            (CommitPage(0, "/new", 1, bytes(32), "", 0.0), "integrity"),
            (CommitPage(0, "/" + "x" * 1023, 1, bytes(32), "", 0.0), "integrity"),
            (CommitPage(0, "/new", 1, blake3(b"x").digest(), "a\r\nb: c", 0.0), "bad-request"),
            *(
                (CommitPage(0, name, 1, blake3(b"x").digest(), "", 0.0), "bad-name")
                for name in BAD_NAMES
                if len(name) <= 1024
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_commit_that_says_what_is_not_so_is_refused(
        self, to_pages: Line, web_1: ServerRef, page: CommitPage, code: str
    ) -> None:
        assert to_pages.ask(self.stage(web_1, (0, 0, 1)), b"x") == Staged(0, 1)
        assert to_pages.refusal(self.commit(web_1, page)) == code


def test_of_a_refused_stage_nothing_is_taken_in(cluster: ClusterUnderTest, to_clients: Line) -> None:
    """A good part before the bad one is not half there: the batch is stored when it is staged again."""
    bodies = [b"f" * 300 * KIB, b"m" * 10]
    placed = reserve(*(put_page(f"/again/{n}", len(body)) for n, body in enumerate(bodies)), copies=1)
    reserved = to_clients.ask(placed)
    primary = reserved.primary
    with Wire() as wire:

        def stage(*parts: StagePart) -> Any:
            request = Stage(placed.batch, reserved.version, primary.incarnation, list(parts))
            return wire.ask(primary.endpoint, request, b"".join(bodies))

        good, bad = StagePart(0, 0, len(bodies[0])), StagePart(1, 5, len(bodies[1]))
        assert stage(good, bad).code == "bad-request"
        assert stage(good, StagePart(1, 0, len(bodies[1]))) == Staged(1, len(bodies[1]))
        pages = [
            CommitPage(n, f"/again/{n}", len(body), blake3(body).digest(), "", 0.0)
            for n, body in enumerate(bodies)
        ]
        wire.ask(primary.endpoint, Commit(placed.batch, reserved.version, primary.incarnation, pages))
        assert wire.ask(cluster.endpoint, Await(placed.batch, 1, 5.0)).state == "visible"
    with cluster.client() as client:
        assert client.get_many(["/again/0", "/again/1"]) == {"/again/0": bodies[0], "/again/1": bodies[1]}


# -- web servers' reports ------------------------------------------------------------------------


def record(name: str, version: int, body: bytes = b"x") -> Record:
    return Record(name, version, BATCH, len(body), blake3(body).digest(), b"", "", 0.0, 1)


def test_a_strangers_reports_are_refused(to_servers: Line) -> None:
    change = Change(1, [record("/a", 1)], [Dropped("/a", 1)])
    for incarnation in (0, 1, U64_MAX):
        assert to_servers.refusal(Stored(incarnation, [change])) == "refused"
        assert to_servers.refusal(CopyFailed(incarnation, BATCH, U64_MAX, "no")) == "refused"


def test_changes_out_of_turn_change_nothing(to_servers: Line, web_1: ServerRef) -> None:
    now = to_servers.ask(Stored(web_1.incarnation, []))
    gone = [Dropped(name, 1) for name in PAGES]
    for number in (0, 1, now.number, now.number + 2, U64_MAX):
        assert to_servers.ask(Stored(web_1.incarnation, [Change(number, [], gone)])) == now


def test_a_copy_that_nobody_ordered_cannot_fail(to_servers: Line, web_1: ServerRef) -> None:
    assert isinstance(to_servers.ask(CopyFailed(web_1.incarnation, BATCH, U64_MAX, "x" * 1024)), Pong)


@pytest.mark.parametrize(
    "request_",
    [
        ["stored", -1, []],
        ["stored", 1, [[1, [], []]] * 257],
        ["stored", 1, [[1, [["/a", 1]], []]]],
        ["stored", 1, [[-1, [], []]]],
        ["stored", 1.5, []],
        ["copy-failed", 1, BATCH, 1, "x" * 1025],
        ["copy-failed", 1, b"", 1, ""],
        ["hello"],
        ["welcome", BATCH, 1, 1, 1, 1, 1.0, 1.0],
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_reports_that_break_a_type_or_bound_are_bad_requests(to_servers: Line, request_: list[Any]) -> None:
    assert to_servers.refusal(request_) == "bad-request"


def hello(**fields: Any) -> Hello:
    """Of a new server that has nothing; nobody listens where it says."""
    said: dict[str, Any] = {
        "server": random.randbytes(16), "name": f"stranger-{random.getrandbits(32):x}",
        "incarnation": 1 << 32, "pages_endpoint": "tcp://127.0.0.1:9", "jobs_endpoint": "tcp://127.0.0.1:9",
        "http_endpoint": "", "cluster": b"", "start_epoch": 0, "start_nonce": 0, "decision": 0, "number": 0,
        "pages": 0, "bytes_stored": 0, "bytes_free": 0,
    }  # fmt: skip
    return Hello(**said | fields)


def following(said: Hello, welcome: messages.Welcome) -> Hello:
    """What it says next: it has taken the welcome."""
    return msgspec.structs.replace(
        said, cluster=welcome.cluster, start_epoch=welcome.epoch, start_nonce=welcome.nonce
    )


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"cluster": b"another cluster!"}, "wrong-cluster"),
        ({"cluster": b"short"}, "wrong-cluster"),
        ({"cluster": "ours", "start_epoch": 1, "start_nonce": 1}, "behind"),
        ({"cluster": "ours", "start_epoch": (1 << 28) - 1, "start_nonce": U64_MAX}, "behind"),
        ({"decision": U64_MAX}, "behind"),
        ({"pages": 1}, "refused"),
        ({"name": "web-1"}, "refused"),
        ({"name": ""}, "bad-request"),
        ({"start_epoch": 1 << 28}, "bad-request"),
        ({"server": bytes(17)}, "bad-request"),
        *(
            ({which: endpoint}, "bad-request")
            for which in ("pages_endpoint", "jobs_endpoint")
            for endpoint in (
                "", "nonsense", "tcp://", "tcp://host", "tcp://host:port", "tcp://:1", "tcp://*:1",
                "ipc:///tmp/x", "inproc://x", "tcp://host:1/x", "tcp://ho st:1", "tcp://host:1\n", "http://host:1",
                "tcp://host:123456", "x" * 1025,
            )
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_hello_that_cannot_be_is_refused(
    to_servers: Line, realm: bytes, fields: dict[str, Any], code: str
) -> None:
    ours = {"cluster": realm} if fields.get("cluster") == "ours" else {}
    assert to_servers.refusal(hello(**fields | ours)) == code


# -- a web server that lies ------------------------------------------------------------------------


class Liar:
    """A server that says hello like any other, and then answers with nonsense."""

    def __init__(self, sockets: Sockets, line: Line) -> None:
        self.router = sockets(zmq.ROUTER, bind="tcp://127.0.0.1:*")
        self.pull = sockets(zmq.PULL, bind="tcp://127.0.0.1:*")
        self.hello = hello(
            name="liar",
            server=b"a lying server!!",
            incarnation=time.time_ns(),
            pages_endpoint=self.router.last_endpoint.decode().rstrip("\0"),
            jobs_endpoint=self.pull.last_endpoint.decode().rstrip("\0"),
        )
        offered = line.ask(self.hello)
        self.welcome = line.ask(following(self.hello, offered))

    def asked(self, kind: type[Any]) -> tuple[bytes, bytes, Any]:
        """(routing id, request frame, message) of the next question of this kind."""
        while True:
            peer, frame = self.router.recv_multipart()
            message = messages.decode_page_request(frame[request_reply.HEADER_BYTES :])
            if isinstance(message, kind):
                return peer, frame, message

    def reply(self, peer: bytes, frame: bytes, body: bytes) -> None:
        reply = request_reply.Replier[bytes](self.welcome.cluster).reply(frame, body)
        self.router.send_multipart((peer, reply))


def test_a_server_that_answers_with_nonsense_is_never_in_sync(
    cluster: ClusterUnderTest, sockets: Sockets, to_servers: Line
) -> None:
    before = {
        name: counted(cluster, "balancer", name)
        for name in ("malformed answers", "replies unawaited", "calls malformed")
    }
    liar = Liar(sockets, to_servers)
    assert isinstance(liar.welcome, messages.Welcome)
    for body in (
        b"",
        b"\x91" * DEEP,
        b"\x91\xa2\xff\xfe",
        encode(SumsAre(0, [1])),
        encode(Pong("", 0, 0)),
        encode(ManifestPage(0, [], b"")),
        b"\x93\xa8sums-are\x00\xdd\xff\xff\xff\xff",
    ):
        liar.reply(*liar.asked(Sums)[:2], body)
    # An answer that can be read; the questions that follow from it are answered with nonsense too.
    peer, frame, _ = liar.asked(Sums)
    liar.reply(peer, frame, encode(SumsAre(U64_MAX, [1] * MANIFEST_BUCKETS)))
    liar.reply(peer, frame, encode(SumsAre(U64_MAX, [1] * MANIFEST_BUCKETS)))
    liar.router.send_multipart((peer, b"", b"", b""))
    liar.router.send_multipart((peer, frame))
    peer, frame, question = liar.asked(Manifest)
    strange = [record("/a", U64_MAX), record("no name", 0), record("/b", 1)]
    liar.reply(peer, frame, encode(ManifestPage(question.bucket, strange, b"\1")))
    while not question.after:  # first pages of the next buckets, which were asked for ahead
        peer, frame, question = liar.asked(Manifest)
    assert question.after == b"\1"
    liar.reply(peer, frame, encode(ManifestPage(question.bucket, [], b"\1")))
    liar.asked(Sums)  # it compares anew
    assert cluster.servers()["liar"].state == "joining"
    assert all(counted(cluster, "balancer", name) > number for name, number in before.items())
    # An earlier life of a server that is known.
    earlier = hello(name="liar", server=liar.hello.server, incarnation=liar.hello.incarnation - 1)
    assert to_servers.refusal(earlier) == "stale"


@pytest.fixture
def another(tmp_path: Path) -> Iterator[ClusterUnderTest]:
    """A cluster that the test may leave damaged."""
    running = ClusterUnderTest(tmp_path, QUICK)
    try:
        running.begin(2)
        yield running
    finally:
        running.close()


@pytest.mark.slow
def test_strangers_up_to_the_bound_leave_the_others_working(
    another: ClusterUnderTest, sockets: Sockets
) -> None:
    """Each is given sockets, and a number for ever: those of the catalog are used up, and that is all."""
    dealer = sockets(zmq.DEALER, connect=f"tcp://127.0.0.1:{another.port + 1}")
    line = Line(dealer, another.status().cluster, Stored(U64_MAX, []))
    for number in range(SERVERS_MAX - 2):
        stranger = hello(name=f"stranger-{number}")
        assert isinstance(line.ask(following(stranger, line.ask(stranger))), messages.Welcome)
    assert line.refusal(hello()) == "over-bound"
    with another.client() as client:
        assert len(client.status().servers) == SERVERS_MAX
        client.put(PAGES)
    another.kill("web-2")
    another.wait_state("web-2", "dead")
    another.start("web-2")
    another.wait_alive("web-1", "web-2")
    for name, body in PAGES.items():
        another.check_stored(name, body)


# -- heartbeats ------------------------------------------------------------------------------------

BEAT = Beat(0, 0, 0, 0, 0, 0.0, 1, 0, 0, 0, 0, 0, 0.0, 0.0, 0, -1.0, -1.0)


def beats_with(**fields: Any) -> bytes:
    values = {name: getattr(BEAT, name) for name in BEAT.__struct_fields__} | fields
    return msgpack.packb(["beat", *values.values()])


def test_beats_that_are_none_are_counted_and_dropped(
    cluster: ClusterUnderTest, sockets: Sockets, realm: bytes, seed: int
) -> None:
    rng = random.Random(seed)
    publisher = sockets(zmq.PUB, connect=f"tcp://127.0.0.1:{cluster.port + 2}", SNDHWM=0)
    stranger, good = b"nobody knows me!", encode(BEAT)

    def beat(
        body: bytes = good, cluster_id: bytes = realm, peer: bytes = stranger, first: int = 0xD8
    ) -> bytes:
        return heartbeat.HEADER.pack(first, 1, 0, cluster_id, peer, 1, U64_MAX) + body

    def dropped(counter: str, *frames: bytes) -> bool:
        before = counted(cluster, "balancer", counter)
        publisher.send_multipart(frames)
        return bool(until(lambda: counted(cluster, "balancer", counter) > before, f"{counter} has risen"))

    # The first one proves that the subscription stands.
    before = counted(cluster, "balancer", "malformed beats")
    while counted(cluster, "balancer", "malformed beats") == before:
        publisher.send(b"")
    malformed = [
        (b"",), (b"\xd8",), (beat()[:51],), (beat(first=0xD7),), (beat(b""),), (beat(b"\x91" * DEEP),),
        (beat(b"\x91\xa2\xff\xfe"),), (beat(encode(Ping())),), (b"",) * 1000, (rng.randbytes(200),),
        (beat(rng.randbytes(200)),), (beat(beats_with(service_s=math.nan)),),
        (beat(beats_with(service_s=math.inf)),), (beat(beats_with(service_s=-1.0)),),
        (beat(beats_with(workers=0)),), (beat(beats_with(workers=1 << 20)),), (beat(beats_with(served=-1)),),
        (beat(beats_with(cpu_share=1e9)),), (beat(beats_with(period_left_s=math.nan)),),
        (beat(beats_with(bytes_free=1.5)),), (beat(beats_with(sums_digest=-1)),),
    ]  # fmt: skip
    for frames in malformed:
        assert dropped("malformed beats", *frames)
    assert dropped("beats of another cluster", beat(cluster_id=bytes(16)))
    assert dropped("heartbeat stranger", beat())
    assert dropped("heartbeat stranger", beat(), b"a frame more")
    publisher.send(bytes(FRAME_MAX_BYTES + 1))


# -- jobs ------------------------------------------------------------------------------------------


def jobs_endpoint(cluster: ClusterUnderTest, name: str) -> str:
    """Only the balancer is told it: the other port on which the process listens."""
    node = cluster.nodes[name]
    listening = [
        each.laddr.port for each in psutil.Process(node.pid).net_connections("tcp") if each.status == "LISTEN"
    ]
    (port,) = [port for port in listening if not node.endpoint.endswith(f":{port}")]
    return f"tcp://127.0.0.1:{port}"


def test_jobs_that_are_not_for_this_life_are_counted_and_dropped(
    cluster: ClusterUnderTest, sockets: Sockets, realm: bytes, web_1: ServerRef, seed: int
) -> None:
    rng = random.Random(seed)
    pusher = sockets(zmq.PUSH, connect=jobs_endpoint(cluster, "web-1"))
    with cluster.client() as client:
        stats = client.stat(list(PAGES))
    drop = encode(Drop(0, 0, [Dropped(stat.record.name, stat.record.version) for stat in stats if stat]))

    def job(
        body: bytes = drop, to: bytes = realm, epoch: int = 1, life: int = web_1.incarnation, number: int = 0
    ) -> bytes:
        return jobs.HEADER.pack(0xD9, 1, 0, to, epoch, life, number) + body

    def dropped(counter: str, *frames: bytes) -> bool:
        before = counted(cluster, "web-1", counter)
        pusher.send_multipart(frames)
        return bool(until(lambda: counted(cluster, "web-1", counter) > before, f"{counter} has risen"))

    for frames in (
        (b"",),
        (b"x",),
        (job()[:43],),
        (rng.randbytes(100),),
        (b"",) * 1000,
        (b"\xd9\x02" + job()[2:],),
    ):
        assert dropped("malformed jobs", *frames)
    for frame in (
        job(to=bytes(16)), job(to=b"another cluster!"), job(epoch=0), job(epoch=2), job(epoch=U64_MAX),
        job(life=web_1.incarnation - 1), job(life=web_1.incarnation + 1), job(life=0, number=U64_MAX),
    ):  # fmt: skip
        assert dropped("gate not-for-us", frame)
    assert dropped("gate passed", job(number=0))
    assert dropped("gate passed", job(number=0), b"a frame more")
    pusher.send(bytes(FRAME_MAX_BYTES + 1))


@pytest.mark.slow
def test_jobs_of_whoever_knows_a_servers_numbers_but_not_the_start(
    another: ClusterUnderTest, sockets: Sockets
) -> None:
    """They are not done. But they pass the gate and take its numbers with them, so that the server gets no
    others until its next life."""
    with another.client() as client:
        client.put(PAGES)
        names = [Dropped(stat.record.name, stat.record.version) for stat in client.stat(list(PAGES)) if stat]
    status = another.status()
    incarnation = another.servers()["web-1"].incarnation
    pusher = sockets(zmq.PUSH, connect=jobs_endpoint(another, "web-1"))
    bodies = [
        b"", b"\x91" * DEEP, b"\x91\xa2\xff\xfe", encode(Ping()), b"\x92\xa4drop\xdd\xff\xff\xff\xff",
        encode(Drop(0, 0, [])), msgpack.packb(["drop", 0, 0, [["/a", 1]] * 1001]),
        encode(Copy(0, 0, ServerRef(1, "w", "nonsense", 0), [])),
    ]  # fmt: skip
    good = [
        encode(Drop(7, U64_MAX, names)),
        encode(Copy(7, 0, ServerRef(1, "w", "nonsense", 0), [record("/x", 1)])),
    ]
    for number, body in enumerate(bodies + good, 1000):
        head = jobs.HEADER.pack(0xD9, 1, 0, status.cluster, status.epoch, incarnation, number)
        pusher.send(head + body)
    until(lambda: counted(another, "web-1", "malformed jobs") == len(bodies), "malformed ones are counted")
    until(lambda: counted(another, "web-1", "jobs of another catalog") == len(good), "the others are refused")
    for name, body in PAGES.items():
        another.check_stored(name, body)
    another.stop("web-1")
    another.start("web-1")
    another.wait_alive()
    with another.client() as client:
        client.put({"/after": b"after"})
    another.check_stored("/after", b"after")


# -- nonsense that is well formed ----------------------------------------------------------------


class Nonsense:
    """Messages whose every field is possible, drawn so that they often hit upon batches, versions, lives and
    pages that there are. Only pages of PAGES are never named where that would rightly remove them."""

    def __init__(
        self, rng: random.Random, pages: list[Record], lives: list[int], welcome: messages.Welcome
    ) -> None:
        self._rng = rng
        self._welcome = welcome
        self._ids = [rng.randbytes(16) for _ in range(5)] + [page.batch for page in pages]
        self._versions = (
            [page.version for page in pages] + [make_version(1, n) for n in range(30)] + [0, U64_MAX]
        )
        self._lives = [*lives, *lives, 0, 1 << 32, U64_MAX]
        self._others = ["/n", "/x/y", "/ü", "/" + "z" * 1000]
        self._digests = [page.digest for page in pages] + [blake3(bytes(n)).digest() for n in (0, 1, 300_000)]

    def __getattr__(self, pool: str) -> Any:
        """`one.version`, `one.life`, …: any of them."""
        values = {
            "id": self._ids, "version": self._versions, "life": self._lives, "other": self._others,
            "name": [*PAGES, *self._others, "no name"], "digest": self._digests, "condition": [-1, 0, 1],
            "number": [0, 1, 2, self._rng.randrange(99), self._rng.getrandbits(64), U64_MAX],
            "server": [1, 2, 3, self._rng.randrange(65_536)], "few": range(1, 4), "seconds": [0.0, 0.1, 3.0],
            "offset": [0, 0, CHUNK_BYTES, 5, 1 << 36], "size": [0, 1, 300_000, CHUNK_BYTES],
        }[pool]  # fmt: skip
        return self._rng.choice(values)

    def some(self, make: Callable[[], Any]) -> list[Any]:
        return [make() for _ in range(self.few)]

    def record(self) -> Record:
        return Record(self.name, self.version, self.id, self.size, self.digest, b"", "", 0.0, 1)

    def to_clients(self) -> Any:
        one = self
        return self._rng.choice((
            lambda: Locate(one.some(lambda: one.name), one.number, one.some(lambda: one.server)),
            lambda: Reserve(
                one.id, self._rng.choice((0, 1, 1, 1)),
                one.some(lambda: PutPage(one.name, one.size, one.digest, one.condition)),
                one.few, one.seconds,
            ),
            lambda: Await(one.id, one.number, 0.0),
            lambda: Abort(one.id),
            lambda: Remove(one.id, 1, one.some(lambda: RemovePage(one.other, one.condition)), one.seconds),
            lambda: List(one.name, one.name, one.few),
            lambda: Stat([one.name]),
            messages.Status,
        ))()  # fmt: skip

    def to_servers(self) -> Any:
        one = self
        drops = self.some(lambda: Dropped(one.name, one.version))
        return self._rng.choice((
            lambda: Stored(one.life, [Change(one.number, one.some(one.record), drops)]),
            lambda: CopyFailed(one.life, one.id, one.version, "no"),
            lambda: following(
                hello(
                    server=b"a fuzzing server", name="fuzzer", incarnation=one.number,
                    pages_endpoint=self._rng.choice(("tcp://127.0.0.1:9", "tcp://-:99999", "tcp://_:0")),
                ),
                self._welcome,
            ),
        ))()  # fmt: skip

    def to_pages(self) -> Any:
        one = self
        return self._rng.choice((
            lambda: Stage(
                one.id, one.version, one.life, one.some(lambda: StagePart(one.few, one.offset, one.size))
            ),
            lambda: Commit(
                one.id, one.version, one.life,
                one.some(lambda: CommitPage(one.few, one.other, one.size, one.digest, "", 0.0)),
            ),
            lambda: Unstage(one.id),
            lambda: Fetch(one.some(lambda: (one.name, one.version))),
            lambda: Read(one.name, one.version, one.offset, one.number),
            lambda: Digests(one.name, one.version),
            lambda: Manifest(one.life, self._rng.randrange(256), self._rng.randbytes(one.few), 9),
        ))()  # fmt: skip

    def job(self) -> Any:
        source = ServerRef(1, "w", self._rng.choice(("nonsense", "tcp://127.0.0.1:9", "tcp://:1")), 0)
        if self._rng.random() < 0.5:
            return Copy(self._welcome.nonce, 0, source, self.some(self.record))
        return Drop(self._welcome.nonce, 0, self.some(lambda: Dropped(self.other, self.version)))


@pytest.mark.slow
def test_well_formed_nonsense_on_all_sockets_at_once(
    another: ClusterUnderTest, sockets: Sockets, seed: int
) -> None:
    with another.client() as client:
        client.put(PAGES)
        pages = [stat.record for stat in client.stat(list(PAGES)) if stat]
    realm = another.status().cluster
    life = another.servers()["web-1"].incarnation
    servers = Line(
        sockets(zmq.DEALER, connect=f"tcp://127.0.0.1:{another.port + 1}"), realm, Stored(U64_MAX, [])
    )
    welcome = servers.ask(hello(server=b"a fuzzing server", name="fuzzer", incarnation=1))
    rng = random.Random(seed)
    one = Nonsense(rng, pages, [life], welcome)
    clients = Line(sockets(zmq.DEALER, connect=another.endpoint), realm, Ping())
    web_1 = Line(sockets(zmq.DEALER, connect=another.nodes["web-1"].endpoint), realm, Ping())
    pusher = sockets(zmq.PUSH, connect=jobs_endpoint(another, "web-1"))
    publisher = sockets(zmq.PUB, connect=f"tcp://127.0.0.1:{another.port + 2}")
    for number in range(1, 30_000):
        match rng.randrange(8):
            case 0 | 1:
                clients.socket.send(clients.frame(encode(one.to_clients())))
            case 2:
                servers.socket.send(servers.frame(encode(one.to_servers())))
            case 3 | 4 | 5:
                message = one.to_pages()
                frames = [web_1.frame(encode(message))]
                if isinstance(message, Stage):
                    frames.append(bytes(sum(part.length for part in message.parts)))
                web_1.socket.send_multipart(frames)
            case 6:
                head = jobs.HEADER.pack(0xD9, 1, 0, realm, 1, life, number)
                pusher.send(head + encode(one.job()))
            case 7:
                head = heartbeat.HEADER.pack(0xD8, 1, 0, realm, b"a fuzzing server", one.number, one.number)
                figures = (one.number, one.number, one.number, one.number, one.number, 1.0, 1)
                figures += (one.number, one.number, one.number, one.number, one.number, 1.0, 1.0)
                publisher.send(head + encode(Beat(*figures, one.number, -1.0, -1.0)))
        for line in (clients, servers, web_1):
            while line.socket.poll(0):
                decode_any_reply(line.socket.recv_multipart()[0][request_reply.HEADER_BYTES :])
        if number % 1000 == 0:
            assert all(another.is_running(name) for name in another.nodes)
    # What was reported in web-1's name, its heartbeats prove wrong.
    until(lambda: all(len(another.holders(name)) == 2 for name in PAGES), "the picture is right again")
    for name, body in PAGES.items():
        another.check_stored(name, body)


# -- the machines: what is well formed and absurd ------------------------------------------------------


def test_impossible_figures_leave_loads_that_can_be_compared() -> None:
    loads = Loads(Config())
    absurd = [
        BEAT,
        Beat(
            U64_MAX, U64_MAX, U64_MAX, U64_MAX, U64_MAX, 3600.0, 1, U64_MAX, U64_MAX, U64_MAX, U64_MAX,
            U64_MAX, 86_400.0, 4096.0, U64_MAX, math.nan, math.nan,
        ),
        Beat(0, 0, 0, 0, U64_MAX, 0.0, 4096, 0, U64_MAX, 0, 0, 0, 0.0, 0.0, 0, math.inf, -math.inf),
    ]  # fmt: skip
    for number in range(1, 4):
        loads.add(number)
        loads.open(number, may_be_chosen=True, now=0.0)
    for beats in (absurd, absurd[::-1], absurd):
        for number, beat in enumerate(beats, 1):
            loads.beat(number, beat, 1.0)
            loads.assign(number, 1000, 1.0)
            loads.reserve(number, 64 << 30)
            assert math.isfinite(loads.download[number])
            assert isinstance(loads.bytes_free(number), int)
        uploads = loads.upload([1, 2, 3])
        assert all(math.isfinite(load) for load in uploads.values())
        assert sorted(choose_targets(uploads, 3, random.Random(0))) == [1, 2, 3]


def test_numbers_of_beats_that_leap_leave_a_count_that_can_be_reported() -> None:
    watcher = heartbeat.Watcher(suspect_s=1, down_dead_s=2, dead_s=3)
    for incarnation in range(1, 4):
        watcher.join(b"peer", incarnation, 0.0)
        for sequence in (1, U64_MAX):
            watcher.beat(b"peer", incarnation, sequence, 0.0)
    assert 0 < watcher.counters["lost-beats"] <= U64_MAX


class TestManifests:
    """A server's manifest that is nonsense: what the balancer's picture makes of it."""

    def begin(self) -> tuple[Catalog, Sync, Ask]:
        catalog = Catalog([record(name, 1) for name in PAGES])
        sync = Sync(catalog, Config())
        catalog.add_server(1)
        sync.add_server(1)
        for name in PAGES:
            catalog.hold(1, record(name, 1), 0.0)
        (ask,) = sync.begin(Server(1, bytes(16), "web-1", incarnation=5))
        return catalog, sync, ask

    def sums(self, sync: Sync, ask: Ask, *sums: int) -> list[Any]:
        """What is asked next: the first pages of the first buckets that differ."""
        answer = SumsAre(3, [*sums, *[1] * (MANIFEST_BUCKETS - len(sums))])
        following = sync.sums(1, ask.tag[2], answer)
        assert all(isinstance(each, Ask) for each in following)
        return list(following)

    def held(self, catalog: Catalog) -> set[str]:
        return {name for name in PAGES if catalog.holds(1, name, 1)}

    def test_answers_to_other_questions_are_passed_over(self) -> None:
        catalog, sync, ask = self.begin()
        assert sync.page(1, ask.tag[2], ManifestPage(0, [], b""), 0.0) == []
        assert sync.sums(1, ask.tag[2] - 1, SumsAre(3, [0] * MANIFEST_BUCKETS)) == []
        ask, *_ = self.sums(sync, ask)
        for bucket in (1, 255):
            assert sync.page(1, ask.tag[2], ManifestPage(bucket, [], b""), 0.0) == []
        assert sync.page(1, ask.tag[2] + 1, ManifestPage(0, [], b""), 0.0) == []
        assert (self.held(catalog), sync.is_live(1)) == (set(PAGES), False)
        sync.check()
        catalog.check()

    def test_records_of_another_bucket_are_passed_over(self) -> None:
        catalog, sync, ask = self.begin()
        ask, *ahead = self.sums(sync, ask)
        strange = [record(name, 7) for name in ("/a", "no name", "/b")]
        (following,) = sync.page(1, ask.tag[2], ManifestPage(0, strange, b""), 0.0)
        assert following.message.bucket == 1 + len(ahead)
        assert not any(catalog.holds(1, each.name, 7) for each in strange)
        catalog.check()

    @pytest.mark.parametrize("after", [b"\1", b"\0", b"\1" * 24])
    def test_a_cursor_that_does_not_rise_is_not_followed(self, after: bytes) -> None:
        catalog, sync, ask = self.begin()
        ask, *_ = self.sums(sync, ask)
        (ask,) = sync.page(1, ask.tag[2], ManifestPage(0, [], b"\1" * 24), 0.0)
        assert sync.page(1, ask.tag[2], ManifestPage(0, [], after), 0.0) == []
        assert self.held(catalog) == set(PAGES)
        # After a pause it begins anew.
        (again,) = sync.retry(Server(1, bytes(16), "web-1", incarnation=5), 1.0)
        assert again.message == Sums(5)

    def test_an_empty_manifest_takes_a_servers_copies_out_of_the_picture_and_drops_nothing(self) -> None:
        catalog, sync, ask = self.begin()
        asks = self.sums(sync, ask)
        while not sync.is_live(1):
            ask = asks.pop(0)
            assert isinstance(ask.message, Manifest)
            asks += sync.page(1, ask.tag[2], ManifestPage(ask.message.bucket, [], b""), 0.0)
        assert (self.held(catalog), len(catalog.pages)) == (set(), len(PAGES))
        catalog.check()


class Shelf:
    """As much of a page store as serves reads: one page, too large to be fetched."""

    identity = Identity(bytes(16), 5, b"c" * 16, 1, 77)
    number = 0

    def __init__(self) -> None:
        self.reads = 0

    def place(self) -> bytes:
        return b""

    def get(self, name: str, version: int) -> bytes | None:
        self.reads += 1
        if name == "/huge":
            raise OverBound("too large at once")
        return {"/small": b"s", "/4 MiB": bytes(4 << 20)}.get(name)

    def get_each(self, pages: list[tuple[str, int]]) -> Iterator[bytes | None]:
        return (self.get(*page) for page in pages)


def shelf_server() -> tuple[WebServer, Shelf]:
    shelf: Any = Shelf()
    return WebServer("web-1", shelf, Endpoints("tcp://h:1", "tcp://h:2"), Config(), 0.0), shelf


def test_a_page_too_large_to_fetch_is_not_fetched() -> None:
    server, _ = shelf_server()
    fetched, data = server.fetch(Fetch([("/small", 1), ("/none", 1), ("/huge", 1), ("/small", 1)]))
    assert (fetched.sizes, data) == ([1, NOT_HELD, NO_ROOM, NO_ROOM], b"s")


def test_one_fetch_of_many_large_pages_reads_only_what_it_sends() -> None:
    server, shelf = shelf_server()
    fetched, data = server.fetch(Fetch([("/small", 1), *[("/4 MiB", 1)] * 999]))
    assert (fetched.sizes[:2], len(data), shelf.reads) == ([1, NO_ROOM], 1, 2)


def test_a_job_of_a_start_that_the_server_does_not_follow_is_not_done() -> None:
    server, _ = shelf_server()
    effects = server.handle(JobCame(Drop(78, 0, [Dropped("/small", 1)])), 0.0)
    assert [type(effect).__name__ for effect in effects] == ["Log"]
    assert server.counters["jobs of another catalog"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        Pong("balancer", 0, 1),
        Located(1, 1, [], []),
        Located(1, 1, [], [None, None]),
        Located(1, 1, [], [(1, 1, bytes(32), b"", [])]),
        Located(1, 1, [], [(1, 1, bytes(32), b"", [])], [Later(1, 0.0, "")]),
    ],
    ids=repr,
)
def test_a_lookup_answered_with_nonsense_fails_with_a_typed_error(answer: Any) -> None:
    lookup = LocatePages(Directory(), 10.0, ["/a"])
    (send,) = lookup.start(0.0)
    assert lookup.answered(send.tag, answer, b"", 0.0) == []
    assert isinstance(lookup.error, BadRequest)
