"""Golden frames: what goes over the wire today is what docs/protocol.md says, byte for byte.

`tests/vectors/TAG.json` holds one message each: its whole frame 0 in hex, envelope included, what that says,
and the data frame that goes with it, if one does; bytes are hex everywhere. They are for implementers in any
language, and they keep this one from changing the protocol by accident. After a change on purpose:

    DWS_WRITE_VECTORS=1 python -m pytest tests/dws/test_vectors.py
"""

import json
import os
from pathlib import Path
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from blake3 import blake3

from dws import messages
from dws.limits import CHUNK_BYTES, MANIFEST_BUCKETS, MIB
from dws.messages import (
    ABSENT,
    ANY,
    NO_ROOM,
    NOT_HELD,
    Abort,
    Applied,
    Await,
    Beat,
    Because,
    Change,
    Choice,
    ClusterStatus,
    Commit,
    CommitPage,
    Committed,
    Copy,
    CopyFailed,
    Counted,
    DigestList,
    Digests,
    Doubt,
    Drain,
    Drop,
    Dropped,
    Error,
    Fetch,
    Fetched,
    Forget,
    Hello,
    Holder,
    Later,
    List,
    Listing,
    Locate,
    Located,
    Maintained,
    Manifest,
    ManifestPage,
    NodeStats,
    NodeStatsAre,
    Outcome,
    PageStat,
    Ping,
    Pong,
    PutPage,
    Read,
    ReadData,
    RecentChoice,
    Record,
    Remove,
    RemovePage,
    RepairStatus,
    Reserve,
    Reserved,
    Resume,
    ServerRef,
    ServerStatus,
    Stage,
    Staged,
    StagePart,
    Stat,
    Stated,
    Status,
    Stored,
    Sums,
    SumsAre,
    Unstage,
    Unstaged,
    Verified,
    Verify,
    Visits,
    Welcome,
    Why,
    encode,
    to_plain,
)
from dws.names import bucket_of, make_version, page_key, record_hash, sums_digest
from patterns import heartbeat, jobs
from patterns.heartbeat import Beater
from patterns.jobs import Dispatcher
from patterns.request_reply import Replier, Requester

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
WRITE = bool(os.environ.get("DWS_WRITE_VECTORS"))

REQUEST, REPLY, BEAT, JOB = "request", "reply", "beat", "job"

# -- one small world, so that the vectors fit together ------------------------------------

CLUSTER = bytes(range(16))
REQUEST_ID = 0x0102030405060708
EPOCH = 3
NONCE = 0x1122334455667788
DECISION = 41
INCARNATION = 2 << 32 | 0xCAFEF00D
BATCH = bytes(range(0x20, 0x30))
SERVER = bytes(range(0x40, 0x50))
VERSION = make_version(EPOCH, 17)
OLD = make_version(EPOCH, 5)

SMALL_BODY = b"<h1>hello</h1>\n"
LARGE_BODY = b"\x00" * CHUNK_BYTES + b"\x01"
LARGE_LIST = blake3(LARGE_BODY[:CHUNK_BYTES]).digest() + blake3(LARGE_BODY[CHUNK_BYTES:]).digest()
SMALL = Record(
    "/index.html",
    VERSION,
    BATCH,
    len(SMALL_BODY),
    blake3(SMALL_BODY).digest(),
    b"",
    "text/html",
    1.5e9,
    1,
    3,
)
LARGE = Record(
    "/film", VERSION, BATCH, len(LARGE_BODY), blake3(LARGE_BODY).digest(), blake3(LARGE_LIST).digest(), "",
    1.5e9, 1,
)  # fmt: skip
WEB_1 = ServerRef(1, "web-1", "tcp://192.0.2.11:6001", INCARNATION, "http://192.0.2.11:6080")
WEB_2 = ServerRef(2, "web-2", "tcp://192.0.2.12:6001", 1 << 32 | 7)

KEY = page_key(SMALL.name)
SUMS = [0] * MANIFEST_BUCKETS
SUMS[bucket_of(VERSION)] = record_hash(KEY, VERSION)


def located(record: Record, *holders: int) -> tuple[int, int, bytes, bytes, list[int]]:
    return (record.version, record.size, record.digest, record.list_digest, list(holders))


STATUS_OF_WEB_1 = ServerStatus(
    1, "web-1", "alive", WEB_1.endpoint, INCARNATION, 1, 15, 10**9, 4, 9, 13, 0, 0, 5e-5, 4e-4, 4.5e-4, 2.0,
    0.01, 195, 0.1, "", WEB_1.http, True, 1, 2, 131072,
)  # fmt: skip
CHOICE = Choice("web-1", "alive", True, 4.5e-4, 2.0, 4e-4, 0.0, 1.0, 5e-5, 1, "eligible")

#: (envelope, message, data frame) of one message of each tag.
SAMPLES: list[tuple[str, Any, bytes | None]] = [
    (REPLY, Error("conflict", "the visible version is not the expected one: /a", 0.5, ["/a"]), None),
    (REQUEST, Locate(["/index.html", "/film", "/none"], 7, [3]), None),
    (
        REPLY,
        Located(
            EPOCH, 8, [WEB_1, WEB_2], [located(SMALL, 2, 1), located(LARGE), None], [Later(1, 0.1, "web-3")]
        ),
        None,
    ),
    (
        REQUEST,
        Reserve(
            BATCH,
            EPOCH,
            [
                PutPage("/index.html", len(SMALL_BODY), SMALL.digest, ABSENT, "text/html"),
                PutPage("/film", len(LARGE_BODY), b"", ANY),
            ],
            2,
            60.0,
            [4],
            True,
        ),
        None,
    ),
    (REPLY, Reserved(EPOCH, VERSION, WEB_1, [1], 59.5, 2, [WEB_2]), None),
    (REQUEST, Await(BATCH, 1, 1.0), None),
    (REQUEST, Abort(BATCH), None),
    (REQUEST, Remove(BATCH, EPOCH, [RemovePage("/a", OLD), RemovePage("/b")], 30.0), None),
    (REPLY, Outcome("open", VERSION, 1, 2, False, "", []), None),
    (REQUEST, List("/docs/", "/docs/a", 1000), None),
    (REPLY, Listing([SMALL], False), None),
    (REQUEST, Stat(["/index.html", "/none"]), None),
    (REPLY, Stated([PageStat(SMALL, [Holder("web-1", "alive")]), None]), None),
    (REQUEST, Why("/index.html"), None),
    (REPLY, Because("least-load", VERSION, "web-1", [CHOICE]), None),
    (REQUEST, Status(), None),
    (
        REPLY,
        ClusterStatus(
            CLUSTER, EPOCH, DECISION, "least-load", 2, 1, 15, [0, 0, 1, 0], 0, 0, 12.5, 4, [STATUS_OF_WEB_1],
            {"lookups": 4},
            [RecentChoice(0.5, "/index.html", VERSION, "web-1", [("web-1", 4.5e-4)], "the only live holder")],
            RepairStatus(2, 131072, 1, 7, 458752, 3.5, 229376.0, 0.5, 4, 9, 1, "no server has room"),
        ),
        None,
    ),
    (REQUEST, Drain("web-1", 1), None),
    (REQUEST, Resume("web-1"), None),
    (REQUEST, Forget("web-2", 2, True), None),
    (REPLY, Maintained(1, "web-1", "draining", True, 2, 131072), None),
    (REQUEST, Ping(), None),
    (REPLY, Pong("web-1", 0, EPOCH, INCARNATION), None),
    (
        REQUEST,
        Hello(
            SERVER, "web-1", INCARNATION, WEB_1.endpoint, "tcp://192.0.2.11:6002", WEB_1.http, CLUSTER, EPOCH,
            NONCE, DECISION, 12, 1, 15, 10**9,
        ),
        None,
    ),
    (REPLY, Welcome(CLUSTER, EPOCH, NONCE, DECISION, 1, 0.25, 30.0), None),
    (REQUEST, Stored(INCARNATION, [Change(12, [SMALL], [Dropped("/index.html", OLD)])]), None),
    (REPLY, Applied(12), None),
    (REQUEST, CopyFailed(INCARNATION, BATCH, VERSION, "web-2 did not answer", 2, 5, "integrity"), None),
    (REQUEST, Fetch([("/index.html", VERSION), ("/gone", VERSION), ("/film", VERSION)]), None),
    (REPLY, Fetched([len(SMALL_BODY), NOT_HELD, NO_ROOM]), SMALL_BODY),
    (REQUEST, Read("/film", VERSION, CHUNK_BYTES, MIB), None),
    (REPLY, ReadData(CHUNK_BYTES, 1), LARGE_BODY[CHUNK_BYTES:]),
    (REQUEST, Digests("/film", VERSION), None),
    (REPLY, DigestList(2), LARGE_LIST),
    (REQUEST, Stage(BATCH, VERSION, INCARNATION, [StagePart(0, 0, len(SMALL_BODY))]), SMALL_BODY),
    (REPLY, Staged(0, len(SMALL_BODY)), None),
    (
        REQUEST,
        Commit(
            BATCH, VERSION, INCARNATION,
            [CommitPage(0, "/index.html", len(SMALL_BODY), SMALL.digest, "text/html", 1.5e9)],
            True,
        ),
        SMALL_BODY,
    ),
    (REPLY, Committed(12), None),
    (REQUEST, Unstage(BATCH), None),
    (REPLY, Unstaged(), None),
    (REQUEST, Sums(INCARNATION), None),
    (REPLY, SumsAre(12, SUMS), None),
    (REQUEST, Manifest(INCARNATION, bucket_of(VERSION), b"", 2000), None),
    (REPLY, ManifestPage(bucket_of(VERSION), [SMALL], b""), None),
    (REQUEST, Verify(INCARNATION, [("/index.html", VERSION), ("/film", VERSION)]), None),
    (REPLY, Verified([0], [1]), None),
    (REQUEST, NodeStats(20), None),
    (
        REPLY,
        NodeStatsAre("web-1", 30.0, 12.5, {"served": 13.0}, [("/index.html", 4, 60)], [], [9, 4]),
        None,
    ),
    (REQUEST, Doubt([("/index.html", VERSION), ("/film", VERSION)]), None),
    (REQUEST, Visits(SERVER, 2, 4, 0, 60, [("/index.html", 4, 60)], [3, 1], [("/a.html", VERSION)]), None),
    (REPLY, Counted(1, EPOCH), None),
    (JOB, Copy(NONCE, DECISION, WEB_1, [SMALL], 5), None),
    (JOB, Drop(NONCE, DECISION, [Dropped("/index.html", OLD)]), None),
    (
        BEAT,
        Beat(
            12, sums_digest(SUMS), 13, 0, 0, 5e-5, 1, 15, 10**9, 1, 4, 9, 17.5, 0.01, 195, 0.5, -1.0, 1, 0.25,
            0.125,
        ),
        None,
    ),
]  # fmt: skip

BY_TAG: dict[str, tuple[str, Any, bytes | None]] = {
    type(message).__struct_config__.tag: (envelope, message, data) for envelope, message, data in SAMPLES
}
TAGS = sorted(BY_TAG)


def frame_of(envelope: str, message: Any) -> bytes:
    """Frame 0 as the patterns make it."""
    body = encode(message)
    if envelope == REQUEST:
        return Requester[None](REQUEST_ID, CLUSTER).request(body, None, 0.0)[1]
    if envelope == REPLY:
        asked = Requester[None](REQUEST_ID, CLUSTER).request(b"", None, 0.0)[1]
        return Replier[bytes](CLUSTER).reply(asked, body)
    if envelope == BEAT:
        return Beater(CLUSTER, SERVER, INCARNATION).beat(body)
    dispatcher: Dispatcher[str] = Dispatcher(CLUSTER, EPOCH, 1, 1, 1.0)
    dispatcher.worker(INCARNATION)
    dispatcher.add("job", body)
    return dispatcher.poll(0.0)[0]


def envelope_of(envelope: str, frame: bytes) -> tuple[dict[str, Any], bytes]:
    """The envelope's fields, read by the layouts of docs/protocol.md alone, and the body."""
    if envelope in (REQUEST, REPLY):
        fields = {
            "signature": frame[0], "version": frame[1], "kind": frame[2], "reserved": frame[3],
            "request_id": int.from_bytes(frame[4:12]), "realm": frame[12:28].hex(),
        }  # fmt: skip
        return fields, frame[28:]
    fields = {"signature": frame[0], "version": frame[1], "reserved": int.from_bytes(frame[2:4])}
    fields["realm"] = frame[4:20].hex()
    if envelope == BEAT:
        fields["server"] = frame[20:36].hex()
        fields["incarnation"] = int.from_bytes(frame[36:44])
        fields["sequence"] = int.from_bytes(frame[44:52])
        return fields, frame[52:]
    fields["epoch"] = int.from_bytes(frame[20:28])
    fields["incarnation"] = int.from_bytes(frame[28:36])
    fields["number"] = int.from_bytes(frame[36:44])
    return fields, frame[44:]


def vector(tag: str) -> dict[str, Any]:
    envelope, message, data = BY_TAG[tag]
    frame = frame_of(envelope, message)
    head, _ = envelope_of(envelope, frame)
    said = {
        "message": tag, "envelope": envelope, "head": head, "fields": to_plain(message), "frame": frame.hex()
    }  # fmt: skip
    if data is not None:
        said["data"] = data.hex()
    return said


def golden(tag: str) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((VECTORS / f"{tag}.json").read_text("utf-8"))
    return stored


@pytest.fixture(scope="module", autouse=True)
def write() -> None:
    if WRITE:
        VECTORS.mkdir(exist_ok=True)
        for old in VECTORS.glob("*.json"):
            old.unlink()
        for tag in TAGS:
            text = json.dumps(vector(tag), indent=1, ensure_ascii=False)
            (VECTORS / f"{tag}.json").write_text(text + "\n", "utf-8")


def test_every_message_has_a_vector_and_every_vector_a_message() -> None:
    kinds = [kind for kind in vars(messages).values() if isinstance(kind, type)]
    tags = {kind.__struct_config__.tag for kind in kinds if issubclass(kind, msgspec.Struct)} - {None}
    assert sorted(tags) == TAGS
    assert sorted(path.stem for path in VECTORS.glob("*.json")) == TAGS


@pytest.mark.parametrize("tag", TAGS)
def test_encoding_gives_the_golden_bytes(tag: str) -> None:
    assert vector(tag) == golden(tag)


@pytest.mark.parametrize("tag", TAGS)
def test_decoding_the_golden_bytes_gives_the_fields(tag: str) -> None:
    stored = golden(tag)
    message = decode(stored)
    assert message == BY_TAG[tag][1]
    assert to_plain(message) == stored["fields"]


@pytest.mark.parametrize("tag", TAGS)
def test_a_later_versions_appended_fields_are_passed_over(tag: str) -> None:
    stored = golden(tag)
    body = msgpack.unpackb(body_of(stored))
    longer = msgpack.packb([*body, {"later": [None, -1, "ü"]}])
    assert decoder_of(tag)(longer) == BY_TAG[tag][1]


@pytest.mark.parametrize("tag", TAGS)
def test_any_msgpack_library_reads_them_as_arrays_in_the_order_of_the_fields(tag: str) -> None:
    stored = golden(tag)
    assert msgpack.unpackb(body_of(stored)) == [tag, *in_order(BY_TAG[tag][1])]


@pytest.mark.parametrize("tag", TAGS)
def test_the_patterns_let_the_golden_envelope_through(tag: str) -> None:
    stored = golden(tag)
    frame = bytes.fromhex(stored["frame"])
    body = body_of(stored)
    match BY_TAG[tag][0]:
        case "request":
            replier: Replier[bytes] = Replier(CLUSTER)
            assert replier.realm_matches(frame)
            assert replier.receive(frame) == body
        case "reply":
            requester: Requester[str] = Requester(REQUEST_ID, CLUSTER)
            requester.request(b"", "asked", 1.0)
            assert requester.receive(frame) == (REQUEST_ID, "asked", body)
        case "beat":
            assert heartbeat.parse(frame) == (CLUSTER, SERVER, INCARNATION, 1, body)
        case "job":
            gate = jobs.Gate(CLUSTER, INCARNATION)
            gate.welcome(CLUSTER, EPOCH)
            assert gate.accept(frame) == body


def body_of(stored: dict[str, Any]) -> bytes:
    return envelope_of(stored["envelope"], bytes.fromhex(stored["frame"]))[1]


def decode(stored: dict[str, Any]) -> Any:
    return decoder_of(stored["message"])(body_of(stored))


def decoder_of(tag: str) -> Any:
    """The decoder of a socket on which this message arrives."""
    kind = type(BY_TAG[tag][1])
    for name in (
        "ClientRequest", "BalancerReply", "ServerRequest", "ServerReply", "PageRequest", "PageReply", "Job"
    ):  # fmt: skip
        if kind in get_args(getattr(messages, name)):
            return msgspec.msgpack.Decoder(getattr(messages, name)).decode
    assert kind is Beat
    return messages.decode_beat


def in_order(value: Any) -> Any:
    """A message as plain lists, nested ones too."""
    if isinstance(value, msgspec.Struct):
        return [in_order(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, list | tuple):
        return [in_order(each) for each in value]
    return value
