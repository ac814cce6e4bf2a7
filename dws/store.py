"""What a page store and a catalog store must do.

What lives here: the interfaces through which the pure machines and the
writer threads reach disks, the operations handed to a page store, and the
promises that come with them. What must not: a disk. nodes/page_store.py and
nodes/catalog_store.py keep these promises on LMDB; a simulator keeps (and
breaks) them in memory.

Three threads use a page store: the socket loop calls the reading methods, which
never wait for an fsync; one writer thread calls `commit`; one checker thread reads
pages back.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from dws.messages import Change, Dropped, Record


class Identity(Struct, frozen=True):
    """Who a server is, and the last truth it was told; all of it durable."""

    server: bytes  # 16 random bytes, made with the store
    incarnation: int  # start counter << 32 | nonce, raised and fsynced at each open
    cluster: bytes = b""  # empty until the first welcome
    start_epoch: int = 0
    start_nonce: int = 0
    decision: int = 0


class Blob(Struct):
    """The bytes of one record to store: `data` if they lie in the store, else a staged file's handle."""

    record: Record
    data: bytes | memoryview | None = None
    staged: int = 0
    digest_list: bytes = b""


# -- operations of a page store, executed by its writer thread ---------------------------


class StoreBatch(Struct):
    """Store all blobs in one transaction, as one change. Refused (Stale) unless the store still
    has this incarnation and start epoch: the fence of DESIGN section 3."""

    blobs: list[Blob]
    incarnation: int
    epoch: int
    decision: int = 0


class DropRecords(Struct):
    """Delete records in one transaction, as one change; those not held are passed over."""

    records: list[Dropped]
    incarnation: int
    epoch: int
    decision: int = 0


class Remember(Struct):
    """Keep the last truth told: cluster, start and decision number."""

    cluster: bytes
    start_epoch: int
    start_nonce: int
    decision: int


class WriteStaged(Struct):
    """Append bytes at `offset` of a staged file; made on first use. Not yet durable."""

    handle: int
    offset: int
    data: bytes | memoryview


class DiscardStaged(Struct):
    """Delete staged files; unknown handles are passed over."""

    handles: list[int]


class Damaged(Struct):
    """A page whose bytes were found wrong: in this chunk, for this reason."""

    name: str
    version: int
    chunk: int
    reason: str


class SetAside(Struct):
    """Damaged pages leave the records, in one transaction, as one change; their bytes are kept apart, with
    the reason. Each chunk is read once more first: a page whose bytes are right stays."""

    pages: list[Damaged]


class KeepPlace(Struct):
    """Keep how far the scrubber has got (see scrubbing.py); no change. A small durable write."""

    place: bytes


PageStoreOp = StoreBatch | DropRecords | Remember | WriteStaged | DiscardStaged | SetAside | KeepPlace


class OpResult(Struct):
    """What became of one operation: the change it made, or a wire error code and text."""

    change: Change | None = None
    code: str = ""
    text: str = ""


class PageStore(Protocol):
    """Pages by (name, version). A version never overwrites another.

    `commit` executes operations in order and returns one result for each; those
    that succeed are durable (records, files and their directories fsynced) when
    it returns. Operations that write records share one transaction; one that is
    refused (Stale, Full) leaves no trace and the others stand. StoreBatch of
    records that are all held already succeeds with the change number of now and
    changes nothing. A failed fsync raises: the process must end (rule 8).
    """

    @property
    def identity(self) -> Identity: ...

    @property
    def number(self) -> int:
        """Of the last durable change."""

    def get(self, name: str, version: int) -> bytes | None:
        """The whole page, up to GET_MAX_BYTES, copied out; None if not held."""

    def get_each(self, pages: Iterable[tuple[str, int]]) -> Iterator[bytes | None]:
        """What `get` returns of each, read as it is asked for, all of one moment. What is raised ends it."""

    def read(self, name: str, version: int, offset: int, length: int) -> bytes | None:
        """Up to `length` bytes from `offset`, short only at the end of the page; None if not held."""

    def record(self, name: str, version: int) -> Record | None: ...

    def digest_list(self, name: str, version: int) -> bytes | None:
        """The 32-byte digests of the page's chunks, joined; empty for a page of one chunk."""

    def summary(self) -> tuple[int, list[int]]:
        """(change number, 256 bucket sums as of it: see names.record_hash), both of one moment."""

    def manifest(self, bucket: int, after: bytes, limit: int) -> tuple[list[Record], bytes]:
        """Records of a bucket after a 24-byte cursor (version, big endian, + key), and the next
        cursor, which is empty at the end."""

    def changes(self, since: int, limit: int) -> list[Change] | None:
        """Changes numbered since+1 …, at most `limit`; None if the log no longer reaches back."""

    def usage(self) -> tuple[int, int, int]:
        """(pages, bytes stored, bytes free): free is the less of the quota's rest and the disk's."""

    def place(self) -> bytes:
        """What the last KeepPlace told; empty at first."""

    def commit(self, ops: Sequence[PageStoreOp]) -> list[OpResult]: ...

    def close(self) -> None: ...


# -- reading back ---------------------------------------------------------------------------

#: What was found of a part of a page: its bytes are right; wrong, cut off or gone; not read, which may
#: pass; or the page is not held, or this process lacked what it takes to look.
GOOD, WRONG, UNREADABLE, NOT_THERE = range(4)


class Part(Struct):
    """So many chunks of a page from `chunk` on."""

    name: str
    version: int
    chunk: int
    chunks: int


class PageChecker(Protocol):
    """A page store once more, as a thread of its own reads it back: every byte of what is asked, from the
    disk as far as the system lets it, against the digests of the page's record. May take long."""

    def check(self, parts: Sequence[Part]) -> list[int]:
        """Of each part, what was found. Never raises for what a disk does."""

    def read_back(self) -> None:
        """Read a little from the disk, not from memory. Raises OSError."""


# -- the catalog's store -------------------------------------------------------------------


class KnownServer(Struct, frozen=True):
    """draining: an operator wants everything copied off it."""

    number: int
    server: bytes
    name: str
    draining: bool = False


class Decision(Struct):
    """One step of the catalog: a batch made visible, a removal, or what is known of a server.

    server: to be known from now on, or known otherwise; forget: a number to be known no more, nor to be
    given again.
    """

    number: int  # the decision number after it
    batch: bytes
    version: int
    puts: list[Record]
    removes: list[str]
    forget_at: float  # wall-clock seconds until which the batch id is remembered
    server: KnownServer | None = None
    forget: int = 0


class RememberedBatch(Struct):
    version: int
    forget_at: float


class CatalogHead(Struct):
    """What a catalog says of itself, as of its last start. last_number: the highest that a server had."""

    cluster: bytes
    epoch: int
    nonce: int
    decision: int
    servers: list[KnownServer]
    rebuilt: bool  # made by --rebuild: absent servers' records are dropped only where superseded
    last_number: int = 0


class CatalogStore(Protocol):
    """Which version of which page is visible; the one durable truth of the balancer.

    Opening writes a start (epoch + 1, a random nonce), fsynced, before it
    returns. `commit` makes all decisions durable in one transaction, or raises;
    it refuses (Stale) an epoch that is not that of the last start, so that of
    two balancers on one catalog only the later decides.
    """

    head: CatalogHead

    def load(self) -> Iterator[Record]: ...

    def outcome(self, batch: bytes) -> RememberedBatch | None:
        """The decision on a batch, while it is remembered; read without waiting for an fsync."""

    def knows_start(self, epoch: int, nonce: int) -> bool: ...

    def commit(self, decisions: Sequence[Decision], epoch: int) -> None: ...

    def close(self) -> None: ...
