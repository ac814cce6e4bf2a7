"""Every message that crosses a socket, in one place.

What lives here: the shape of each message and the decoders that check it. What
must not: behaviour, sockets, and the envelopes around a message (request ids,
beat and job numbers), which belong to the patterns.

A message is a msgpack array whose first element is its tag. Unknown trailing
elements are ignored, so a later version may append fields. Bounds stand in the
types, so that an over-long list is refused while it is decoded. docs/protocol.md
says the same in prose; tests/vectors/ holds a golden frame of each.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from dws.limits import (
    BATCH_MAX_PAGES,
    CHOICES_MAX,
    CONTENT_TYPE_MAX,
    EPOCH_BITS,
    FETCH_MAX_PAGES,
    LIST_MAX_ENTRIES,
    LOCATE_MAX_NAMES,
    MANIFEST_BUCKETS,
    MANIFEST_MAX_RECORDS,
    NAME_MAX_BYTES,
    PAGE_MAX_BYTES,
    RESPONSE_BOUNDS_S,
    TEXT_MAX,
    VERIFY_MAX_RECORDS,
    VISITS_MAX_PAGES,
)

# -- field types ---------------------------------------------------------------

# msgpack itself bounds an integer to 64 bits.
U64 = Annotated[int, Meta(ge=0)]
Version = U64
Epoch = Annotated[int, Meta(ge=0, lt=1 << EPOCH_BITS)]
# Length here counts code points; names.name_fault counts bytes wherever a name enters the catalog.
Name = Annotated[str, Meta(min_length=1, max_length=NAME_MAX_BYTES)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
OptionalId = Annotated[bytes, Meta(max_length=16)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
OptionalDigest = Annotated[bytes, Meta(max_length=32)]
Size = Annotated[int, Meta(ge=0, le=PAGE_MAX_BYTES)]
# A size or condition that may be "not known" or "none".
MaybeSize = Annotated[int, Meta(ge=-1, le=PAGE_MAX_BYTES)]
Condition = Annotated[int, Meta(ge=-1)]
# A bound on a float also refuses NaN.
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Period = Annotated[float, Meta(ge=0.01, le=86_400)]
# Seconds since 1970, from the year 1 to 9999: what calendars can show.
Time = Annotated[float, Meta(ge=-62_135_596_800, le=253_402_300_799)]
Count = U64
ServerNo = Annotated[int, Meta(ge=0, le=65_535)]
ContentType = Annotated[str, Meta(max_length=CONTENT_TYPE_MAX)]
# Requests answered within each bound of RESPONSE_BOUNDS_S but not within the one before it, and beyond all.
Histogram = Annotated[list[Count], Meta(max_length=len(RESPONSE_BOUNDS_S) + 1)]

#: Condition of a put or rm: -1 none, 0 the page must not exist, else the visible version it must have.
ANY: Final = -1
ABSENT: Final = 0


class _Message(Struct, array_like=True, gc=False):
    """The base of all messages: a msgpack array; never part of a reference cycle."""


class Record(_Message):
    """One version of one page: the catalog's entry and the server's record alike.

    copies: what its put asked for, kept by the catalog alone; 0: as many as the cluster is set to.
    """

    name: Name
    version: Version
    batch: Id
    size: Size
    digest: Digest
    list_digest: OptionalDigest
    content_type: ContentType
    modified: Time
    format: int
    copies: Annotated[int, Meta(ge=0, le=16)] = 0


class Dropped(_Message):
    name: Name
    version: Version


class ServerRef(_Message):
    """Where a server's ROUTER is, and which life of it is meant.

    http: its endpoint for browsers, `http://HOST:PORT`; empty if it has none.
    """

    number: ServerNo
    name: Name
    endpoint: Text
    incarnation: U64
    http: Text = ""


class Error(_Message, tag="error"):
    """The reply to any request that failed. `code` is one of dws.errors.BY_CODE.

    Texts are cut to their bound wherever they are made: they quote names, which are as long.
    """

    code: Text
    text: Text
    retry_s: Seconds = 0.0
    names: Annotated[list[Name], Meta(max_length=BATCH_MAX_PAGES)] = []

    def __post_init__(self) -> None:
        self.text = self.text[:TEXT_MAX]


# -- client → balancer ----------------------------------------------------------


class Locate(_Message, tag="locate"):
    """Where are these pages? `table` is the server table the client has; `avoid`, its complaints."""

    names: Annotated[list[Name], Meta(max_length=LOCATE_MAX_NAMES)]
    table: U64 = 0
    avoid: Annotated[list[ServerNo], Meta(max_length=64)] = []


class Located(_Message, tag="located"):
    """One element a name: None (there is no such page) or
    `[version, size, digest, list_digest, [server numbers, best first]]`.
    An empty list of servers has its reason in `later`."""

    epoch: Epoch
    table: U64
    servers: Annotated[list[ServerRef], Meta(max_length=65_536)] | None
    pages: Annotated[
        list[tuple[Version, Size, Digest, OptionalDigest, list[ServerNo]] | None],
        Meta(max_length=LOCATE_MAX_NAMES),
    ]
    later: Annotated[list["Later"], Meta(max_length=LOCATE_MAX_NAMES)] = []


class Later(_Message):
    """Why page `index` has no live holder: try again in retry_s, or (0) unavailable, last on `last`."""

    index: Count
    retry_s: Seconds
    last: Text

    def __post_init__(self) -> None:
        self.last = self.last[:TEXT_MAX]


class PutPage(_Message):
    """A page of a Reserve: size -1 and an empty digest mean not known yet."""

    name: Name
    size: MaybeSize
    digest: OptionalDigest
    condition: Condition = ANY
    content_type: ContentType = ""


class Reserve(_Message, tag="reserve"):
    """Place a batch. The same batch id again: the same version, and with `avoid` a new primary.

    direct: if the batch is small, its bytes will be sent to the backups too, by whoever asks.
    """

    batch: Id
    epoch: Epoch
    pages: Annotated[list[PutPage], Meta(min_length=1, max_length=BATCH_MAX_PAGES)]
    copies: Annotated[int, Meta(ge=0, le=16)]  # 0: as many as the cluster is set to
    deadline_s: Seconds
    avoid: Annotated[list[ServerNo], Meta(max_length=64)] = []
    direct: bool = False


class Reserved(_Message, tag="reserved"):
    """`skip`: indexes of pages that need no bytes, since the visible version has the same digest.

    `backups`: to be sent the bytes as the primary is; none if they are to copy the batch from it.
    """

    epoch: Epoch
    version: Version
    primary: ServerRef | None
    skip: Annotated[list[Count], Meta(max_length=BATCH_MAX_PAGES)]
    deadline_s: Seconds
    copies: Count = 0
    backups: Annotated[list[ServerRef], Meta(max_length=16)] = []


class Await(_Message, tag="await"):
    """Answer when more than `seen` copies are stored, when decided, or after patience_s."""

    batch: Id
    seen: Count
    patience_s: Seconds


class Abort(_Message, tag="abort"):
    """Decide nothing for this batch any more; answers with its Outcome, which may be 'visible'."""

    batch: Id


class Remove(_Message, tag="remove"):
    """Take pages out of the catalog, all or none. Names the catalog does not have are a conflict
    only where a condition asks for a version."""

    batch: Id
    epoch: Epoch
    pages: Annotated[list["RemovePage"], Meta(min_length=1, max_length=BATCH_MAX_PAGES)]
    deadline_s: Seconds


class RemovePage(_Message):
    name: Name
    condition: Condition = ANY


class Outcome(_Message, tag="outcome"):
    """state: open, visible, conflict, never. `lost` says that the primary died: reserve again.
    `names`: pages in conflict, or, of a removal, those that there were not."""

    state: Text
    version: Version
    stored: Count
    copies: Count
    lost: bool = False
    text: Text = ""
    names: Annotated[list[Name], Meta(max_length=BATCH_MAX_PAGES)] = []

    def __post_init__(self) -> None:
        self.text = self.text[:TEXT_MAX]


class List(_Message, tag="list"):
    """Pages whose name starts with `prefix`, in order, after `after`."""

    prefix: Annotated[str, Meta(max_length=NAME_MAX_BYTES)]
    after: Annotated[str, Meta(max_length=NAME_MAX_BYTES)]
    limit: Annotated[int, Meta(ge=1, le=LIST_MAX_ENTRIES)]


class Listing(_Message, tag="listing"):
    records: Annotated[list[Record], Meta(max_length=LIST_MAX_ENTRIES)]
    more: bool


class Stat(_Message, tag="stat"):
    names: Annotated[list[Name], Meta(max_length=LOCATE_MAX_NAMES)]


class Holder(_Message):
    name: Text
    state: Text


class PageStat(_Message):
    record: Record
    holders: list[Holder]


class Stated(_Message, tag="stated"):
    pages: Annotated[list[PageStat | None], Meta(max_length=LOCATE_MAX_NAMES)]


class Why(_Message, tag="why"):
    """Which server would a lookup of this page choose, and why."""

    name: Name


class Choice(_Message):
    """One server's figures. load_s is None where it is not eligible; `reason` then says why."""

    server: Text
    state: Text
    holds: bool
    download_load_s: float | None
    upload_load: float | None
    rtt_s: float
    waiting: float
    assigned: float
    service_s: float
    workers: Count
    reason: Text


class Because(_Message, tag="because"):
    policy: Text
    version: Version
    chosen: Text
    choices: list[Choice]


class Status(_Message, tag="status"):
    pass


class ServerStatus(_Message):
    number: ServerNo
    name: Text
    state: Text
    endpoint: Text
    incarnation: U64
    pages: Count
    bytes_stored: Count
    bytes_free: Count
    visits: Count
    visits_last_period: Count
    served: Count
    failed: Count
    waiting: Count
    service_s: float
    rtt_s: float
    download_load_s: float
    upload_load: float
    cpu_share: float
    bytes_sent: Count
    last_beat_age_s: float
    note: Text
    http_endpoint: Text = ""
    draining: bool = False
    damaged: Count = 0  # records that the server set aside since its start
    to_move: Count = 0  # pages held there that would have too few copies without it
    to_move_bytes: Count = 0


class RepairStatus(_Message):
    """How far the wanted copies and those found are apart. `text`: why repair does not go on, if so."""

    missing: Count = 0  # pages with fewer copies than wanted, and a live holder
    missing_bytes: Count = 0
    moving: Count = 0  # of them, on the way
    copied: Count = 0  # since this start of the balancer
    copied_bytes: Count = 0
    pages_s: Annotated[float, Meta(ge=0)] = 0.0
    bytes_s: Annotated[float, Meta(ge=0)] = 0.0
    left_s: Annotated[float, Meta(ge=-1)] = -1.0  # -1: not known
    surplus: Count = 0  # pages with more copies than wanted
    surplus_dropped: Count = 0  # copies, since this start
    damaged: Count = 0  # records that live servers set aside
    text: Text = ""


class RecentChoice(_Message):
    """One lookup's choice, as a sample: the candidates are its live holders with their download loads."""

    age_s: float
    name: Name
    version: Version
    chosen: Text
    candidates: Annotated[list[tuple[Text, float]], Meta(max_length=16)]
    reason: Text


class ClusterStatus(_Message, tag="cluster"):
    cluster: OptionalId
    epoch: Epoch
    decision: Count
    policy: Text
    copies: Count
    pages: Count
    bytes_visible: Count
    # pages with 0, 1, 2, and 3 or more live copies
    page_copies: Annotated[list[Count], Meta(min_length=4, max_length=4)]
    open_batches: Count
    garbage: Count
    uptime_s: float
    lookups: Count
    servers: list[ServerStatus]
    counters: dict[str, int]
    choices: Annotated[list[RecentChoice], Meta(max_length=CHOICES_MAX)] = []
    repair: RepairStatus = msgspec.field(default_factory=RepairStatus)


class Drain(_Message, tag="drain"):
    """Copy everything off a server, which is then safe to stop; durable. `number` tells namesakes apart."""

    server: Name
    number: ServerNo = 0


class Resume(_Message, tag="resume"):
    """Take a drain back."""

    server: Name
    number: ServerNo = 0


class Forget(_Message, tag="forget"):
    """The server will not come back. `force`: though pages have no copy left but what may lie there."""

    server: Name
    number: ServerNo = 0
    force: bool = False


class Maintained(_Message, tag="maintained"):
    """A drain, resume or forget is durable."""

    number: ServerNo
    name: Text
    state: Text
    draining: bool
    to_move: Count
    to_move_bytes: Count


class Ping(_Message, tag="ping"):
    pass


class Pong(_Message, tag="pong"):
    name: Text
    waiting: Count
    epoch: Epoch
    incarnation: U64 = 0  # of a web server: who answers; 0: a balancer does


# -- webserver → balancer ----------------------------------------------------------


class Hello(_Message, tag="hello"):
    """A server announces itself: who it is, where, and the last truth it was told."""

    server: Id
    name: Name
    incarnation: U64
    pages_endpoint: Text
    jobs_endpoint: Text
    http_endpoint: Text
    cluster: OptionalId
    start_epoch: Epoch
    start_nonce: U64
    decision: Count
    number: Count
    pages: Count
    bytes_stored: Count
    bytes_free: Count


class Welcome(_Message, tag="welcome"):
    """The server is known as `number`, in this epoch; it remembers (epoch, nonce, decision)."""

    cluster: Id
    epoch: Epoch
    nonce: U64
    decision: Count
    number: ServerNo
    beat_s: Period
    period_s: Period


class Change(_Message):
    """One transaction of a server's store: what it added and what it dropped."""

    number: Count
    added: list[Record]
    dropped: list[Dropped]


class Stored(_Message, tag="stored"):
    """Changes in order. The reply says how far the balancer has got."""

    incarnation: U64
    changes: Annotated[list[Change], Meta(max_length=256)]


class Applied(_Message, tag="applied"):
    """`number`: changes up to here are in the balancer's picture; -1: it is comparing, ask again later."""

    number: Annotated[int, Meta(ge=-1)]


class CopyFailed(_Message, tag="copy-failed"):
    """A Copy job cannot be done; the text says why. The balancer chooses another backup or source."""

    incarnation: U64
    batch: Id
    version: Version
    text: Text
    source: ServerNo = 0  # whom it was to copy from; 0: not told
    job: U64 = 0  # the Copy's
    code: Text = ""  # an error code: `integrity` and `not-held` are the source's fault, `full` the sender's

    def __post_init__(self) -> None:
        self.text = self.text[:TEXT_MAX]


# -- anyone → webserver ---------------------------------------------------------------


class Fetch(_Message, tag="fetch"):
    """Whole small pages, many to a request."""

    pages: Annotated[list[tuple[Name, Version]], Meta(max_length=FETCH_MAX_PAGES)]


class Fetched(_Message, tag="fetched"):
    """Length of each page in the data frame, in order; -1 not held here, -2 would not fit this reply."""

    sizes: list[int]


NOT_HELD: Final = -1
NO_ROOM: Final = -2


class Read(_Message, tag="read"):
    """A part of one page: at most CHUNK_BYTES from `offset`."""

    name: Name
    version: Version
    offset: Size
    length: Count


class ReadData(_Message, tag="data"):
    """The data frame holds the bytes from `offset`."""

    offset: Size
    size: Size


class Digests(_Message, tag="digests"):
    """The list of chunk digests of a page over CHUNK_BYTES; the reply's data frame holds it."""

    name: Name
    version: Version


class DigestList(_Message, tag="digest-list"):
    """The data frame holds `chunks` digests of 32 bytes, joined; none for a page of one chunk."""

    chunks: Count


class StagePart(_Message):
    page: Annotated[int, Meta(ge=0, lt=BATCH_MAX_PAGES)]
    offset: Size
    length: Count


class Stage(_Message, tag="stage"):
    """Bytes of a batch for its primary; the data frame holds the parts one after the other."""

    batch: Id
    version: Version
    incarnation: U64
    parts: Annotated[list[StagePart], Meta(max_length=BATCH_MAX_PAGES)]


class Staged(_Message, tag="staged"):
    """How many bytes of the last named page the server has: where to go on."""

    page: Count
    have: Size


class CommitPage(_Message):
    """What the client says of a staged page. `page` is its index in the Reserve."""

    page: Annotated[int, Meta(ge=0, lt=BATCH_MAX_PAGES)]
    name: Name
    size: Size
    digest: Digest
    content_type: ContentType
    modified: Time


class Commit(_Message, tag="commit"):
    """Make the staged pages durable, in one transaction, if every digest is right.

    with_bytes: nothing is staged before; the data frame is all pages, one after the other.
    """

    batch: Id
    version: Version
    incarnation: U64
    pages: Annotated[list[CommitPage], Meta(min_length=1, max_length=BATCH_MAX_PAGES)]
    with_bytes: bool = False


class Committed(_Message, tag="committed"):
    number: Count


class Unstage(_Message, tag="unstage"):
    """Forget what was staged under this batch id."""

    batch: Id


class Unstaged(_Message, tag="unstaged"):
    pass


class Sums(_Message, tag="sums"):
    """Balancer asks: the sums of your manifest's buckets, and the change number they stand for."""

    incarnation: U64


class SumsAre(_Message, tag="sums-are"):
    number: Count
    sums: Annotated[list[U64], Meta(min_length=MANIFEST_BUCKETS, max_length=MANIFEST_BUCKETS)]


class Manifest(_Message, tag="manifest"):
    """Balancer asks: the records of one bucket, after a (version, key) cursor."""

    incarnation: U64
    bucket: Annotated[int, Meta(ge=0, lt=MANIFEST_BUCKETS)]
    after: Annotated[bytes, Meta(max_length=24)]
    limit: Annotated[int, Meta(ge=1, le=MANIFEST_MAX_RECORDS)]


class ManifestPage(_Message, tag="manifest-page"):
    """`after` is the next cursor; empty: the bucket is done."""

    bucket: Annotated[int, Meta(ge=0, lt=MANIFEST_BUCKETS)]
    records: Annotated[list[Record], Meta(max_length=MANIFEST_MAX_RECORDS)]
    after: Annotated[bytes, Meta(max_length=24)]


class Verify(_Message, tag="verify"):
    """Balancer asks: read these records again from the disk, all their bytes, and check their digests."""

    incarnation: U64
    records: Annotated[list[tuple[Name, Version]], Meta(min_length=1, max_length=VERIFY_MAX_RECORDS)]


class Verified(_Message, tag="verified"):
    """Indexes into the request; what is in neither list is not held. A damaged record is no copy any more."""

    good: Annotated[list[Count], Meta(max_length=VERIFY_MAX_RECORDS)]
    damaged: Annotated[list[Count], Meta(max_length=VERIFY_MAX_RECORDS)]


class Doubt(_Message, tag="doubt"):
    """A reader met bytes of these pages that do not have their digests: the server is to look itself."""

    pages: Annotated[list[tuple[Name, Version]], Meta(min_length=1, max_length=FETCH_MAX_PAGES)]


class NodeStats(_Message, tag="node-stats"):
    """Asks any node for its counters and its most visited pages of this period and the last."""

    top: Annotated[int, Meta(ge=0, le=1000)]


class NodeStatsAre(_Message, tag="node-stats-are"):
    name: Text
    period_s: float
    period_age_s: float
    counters: dict[str, float]
    hot: list[tuple[Name, Count, Count]]  # name, visits, bytes: this period
    hot_last: list[tuple[Name, Count, Count]]
    response: Histogram = []


class Visits(_Message, tag="visits"):
    """A server's HTTP endpoint tells what it has served since its last report that was counted.

    `number` rises with each report of this life of the endpoint, so that one sent twice counts once."""

    endpoint: Id
    number: Count
    served: Count
    failed: Count
    bytes_sent: Count
    pages: Annotated[list[tuple[Name, Count, Count]], Meta(max_length=VISITS_MAX_PAGES)]
    response: Histogram = []
    # pages that it found damaged, for the server to look at
    damaged: Annotated[list[tuple[Name, Version]], Meta(max_length=VISITS_MAX_PAGES)] = []


class Counted(_Message, tag="counted"):
    """`number` is the server's, as the balancer knows it; -1 before it is welcome."""

    number: Annotated[int, Meta(ge=-1, le=65_535)]
    epoch: Epoch


# -- balancer → webserver, jobs ---------------------------------------------------------


class Copy(_Message, tag="copy"):
    """Fetch records from `source`, check them, store them in one transaction.

    job: 0: a stored batch, all of it. Else the repair's number for it: visible pages of any versions.
    """

    start_nonce: U64
    decision: Count
    source: ServerRef
    records: Annotated[list[Record], Meta(min_length=1, max_length=BATCH_MAX_PAGES)]
    job: U64 = 0


class Drop(_Message, tag="drop"):
    """Delete these records, in one transaction: what the catalog does not name, or one copy too many."""

    start_nonce: U64
    decision: Count
    records: Annotated[list[Dropped], Meta(min_length=1, max_length=BATCH_MAX_PAGES)]


# -- webserver → balancer, heartbeats -----------------------------------------------------


class Beat(_Message, tag="beat"):
    """A server's figures, four times a second. Counts rise for ever within one incarnation."""

    number: Count  # last change
    sums_digest: U64  # over the 256 bucket sums at that change
    served: Count  # pages
    failed: Count
    waiting: Count
    service_s: Annotated[float, Meta(ge=0, le=3600)]
    workers: Annotated[int, Meta(ge=1, le=4096)]
    bytes_stored: Count
    bytes_free: Count
    pages: Count
    visits: Count  # this period so far
    visits_last: Count  # the whole last period
    period_left_s: Seconds
    cpu_share: Annotated[float, Meta(ge=0, le=4096)]
    bytes_sent: Count
    last_write_age_s: float  # since the last good disk write; -1: none yet
    last_read_age_s: float
    damaged: Count = 0  # records set aside since the server's start
    write_wait_s: Seconds = 0.0  # how long the disk has owed an answer to the oldest write; 0: to none
    read_wait_s: Seconds = 0.0  # likewise, of reads that do not happen in the loop


# -- codecs --------------------------------------------------------------------------------

ClientRequest = (
    Locate | Reserve | Await | Abort | Remove | List | Stat | Why | Status | NodeStats | Ping
    | Drain | Resume | Forget
)  # fmt: skip
BalancerReply = (
    Located | Reserved | Outcome | Listing | Stated | Because | ClusterStatus | NodeStatsAre | Maintained
    | Pong | Error
)  # fmt: skip
ServerRequest = Hello | Stored | CopyFailed
ServerReply = Welcome | Applied | Pong | Error
PageRequest = (
    Fetch | Read | Digests | Stage | Commit | Unstage | Sums | Manifest | Verify | Doubt | NodeStats | Visits
    | Ping
)  # fmt: skip
PageReply = (
    Fetched | ReadData | DigestList | Staged | Committed | Unstaged | SumsAre | ManifestPage | Verified
    | NodeStatsAre | Counted | Pong | Error
)  # fmt: skip
Job = Copy | Drop

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode

# What a decoder raises, for `except`. Texts that are not UTF-8 and nesting without end (in fields
# that are passed over, too) end in exceptions that are not msgspec's own.
MalformedMessage: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
decode_client_request = msgspec.msgpack.Decoder(ClientRequest).decode
decode_balancer_reply = msgspec.msgpack.Decoder(BalancerReply).decode
decode_server_request = msgspec.msgpack.Decoder(ServerRequest).decode
decode_server_reply = msgspec.msgpack.Decoder(ServerReply).decode
decode_page_request = msgspec.msgpack.Decoder(PageRequest).decode
decode_page_reply = msgspec.msgpack.Decoder(PageReply).decode
decode_reply = msgspec.msgpack.Decoder(BalancerReply | PageReply).decode
decode_job = msgspec.msgpack.Decoder(Job).decode
decode_beat = msgspec.msgpack.Decoder(Beat).decode
decode_record = msgspec.msgpack.Decoder(Record).decode
decode_change = msgspec.msgpack.Decoder(Change).decode


def to_plain(message: Any) -> Any:
    """A message as dicts and lists, for --json output and logs; bytes become hex."""
    if isinstance(message, Struct):
        return {name: to_plain(getattr(message, name)) for name in message.__struct_fields__}
    if isinstance(message, bytes):
        return message.hex()
    if isinstance(message, dict):
        return {key: to_plain(value) for key, value in message.items()}
    if isinstance(message, list | tuple):
        return [to_plain(value) for value in message]
    return message
