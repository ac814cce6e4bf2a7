"""One write transaction over a page store: operations go in one by one, then all are durable or none.

What lives here: what storing, dropping, setting aside and remembering do to records, bytes,
sums, counters, the log of changes and page files, and the checks of each
operation. What must not: the choice of what shares a transaction, which
page_store.py makes, and staged bytes on their way in.

An operation is checked before it writes, so that one refused leaves no trace in
a transaction that goes on. A fault in the middle (LMDB's map or the disk is
full) spoils the transaction: the caller abandons it, and nothing was done.

Order of what becomes durable: a large page's file, its name, then its record; a
file is deleted only after its record's end is durable. So a crash leaves at most
a file without a record, and opening deletes those.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

import lmdb
from msgspec.structs import replace

from dws.limits import CHUNK_BYTES, INLINE_MAX_BYTES, KIB, MIB
from dws.messages import Change, Dropped, Record, decode_record, encode
from dws.names import bucket_of, record_hash
from dws.nodes.page_files import PageFiles, StagedFiles
from dws.nodes.page_tables import (
    State,
    Tables,
    change_key,
    encode_identity,
    encode_state,
    inline_key,
    page_key_of,
    record_key,
)
from dws.nodes.quarantine import Quarantine
from dws.nodes.store_directory import sync_directory
from dws.store import (
    UNREADABLE,
    WRONG,
    Blob,
    Damaged,
    DropRecords,
    Identity,
    KeepPlace,
    OpResult,
    Part,
    Remember,
    SetAside,
    StoreBatch,
)

LOG_MAX_CHANGES: Final = 1024
#: Forgotten together, when that is reached: to forget one with each commit made each write two pages more.
_FORGOTTEN_CHANGES: Final = 64
# A change of 1,000 pages with the longest names takes 1.4 MiB, so the count alone would bound little.
LOG_MAX_BYTES: Final = 64 * MIB
_DIGEST_BYTES: Final = 32
_MASK_64: Final = (1 << 64) - 1
# What LMDB may write for a page beside its bytes: the leaves of its record and of its bytes.
_LEAVES_BYTES: Final = 8 * KIB


class Parts(NamedTuple):
    """What a page store is made of. check: its pages read back, as they were before the transaction."""

    environment: lmdb.Environment
    tables: Tables
    files: PageFiles
    staged: StagedFiles
    quarantine: Quarantine
    check: Callable[[Sequence[Part]], list[int]]


class Room(NamedTuple):
    """Bytes free as a transaction begins; less than none if a bound was lowered."""

    quota: int  # of the quota, after what is stored and what is staged
    disk: int  # for LMDB's file to grow


class PageTransaction:
    """Apply operations in order, then `commit` and `finish`, or `abandon`. For the writer thread alone."""

    def __init__(self, parts: Parts, state: State, identity: Identity, room: Room) -> None:
        self._parts = parts
        self._tables = parts.tables
        self._before = (state, identity)
        self._identity = identity
        self._quota_room, self._disk_room = room
        self._number = state.number
        self._pages = state.pages
        self._bytes = state.bytes
        self._log_bytes = state.log_bytes
        self._sums = list(state.sums)
        self._consumed: set[int] = set()  # handles of staged files that are staged no more afterwards
        self._added: dict[bytes, int] = {}  # record keys of files put in place, and their handles
        self._removed: list[bytes] = []  # record keys whose files are to be deleted
        self._placed = False
        self._txn = parts.environment.begin(write=True)
        self._open = True

    # -- the transaction -------------------------------------------------------------

    def apply(self, operation: StoreBatch | DropRecords | Remember | SetAside | KeepPlace) -> OpResult:
        """Do it, or say why not. Raises lmdb.Error, OSError, SyncFailed: then `abandon` or `abort`."""
        if isinstance(operation, Remember):
            return self._remember(operation)
        if isinstance(operation, SetAside):
            return self._set_aside(operation)
        if isinstance(operation, KeepPlace):
            self._placed = True
            self._txn.put(b"place", operation.place, db=self._tables.meta)
            return OpResult()
        stale = self._stale(operation)
        if stale:
            return OpResult(code="stale", text=stale)
        if isinstance(operation, StoreBatch):
            result = self._store(operation)
        else:
            result = self._drop(operation)
        if not result.code and operation.decision > self._identity.decision:
            self._identity = replace(self._identity, decision=operation.decision)
        return result

    def commit(self) -> tuple[State, Identity]:
        """Make everything applied durable; returns what holds from now on. Raises as `apply` does."""
        if self._added:
            self._parts.files.sync_names(self._added)
            sync_directory(self._parts.staged.directory)
        state, identity = self._before
        if self._number != state.number:
            state = self._write_state()
        if self._identity != identity:
            identity = self._identity
            self._txn.put(b"identity", encode_identity(identity), db=self._tables.meta)
        self._end(commit=self._placed or (state, identity) != self._before)
        return state, identity

    def finish(self) -> None:
        """After `commit`: staged files that were stored are staged no more, dropped pages lose theirs."""
        moved = set(self._added.values())
        for handle in self._consumed:
            self._parts.staged.discard(handle, moved=handle in moved)
        for key in self._removed:
            self._parts.files.remove(key)

    def abandon(self) -> None:
        """Undo everything, after an error that says that nothing became durable; what was staged is
        staged still."""
        self.abort()
        for key, handle in self._added.items():
            self._parts.files.take_out(key, self._parts.staged.path(handle))

    def abort(self) -> None:
        """End it after an error that leaves open what became durable. Files stay where they are: the
        next opening keeps those that have a record."""
        if self._open:
            self._end(commit=False)

    def _end(self, *, commit: bool) -> None:
        self._open = False
        if commit:
            self._txn.commit()
        else:
            self._txn.abort()

    def _write_state(self) -> State:
        self._trim_log()
        state = State(self._number, self._pages, self._bytes, self._log_bytes, tuple(self._sums))
        self._txn.put(b"state", encode_state(state), db=self._tables.meta)
        return state

    # -- operations ------------------------------------------------------------------

    def _stale(self, operation: StoreBatch | DropRecords) -> str:
        """Why the operation comes from a time that has passed; empty if it does not."""
        mine = self._identity
        if operation.incarnation != mine.incarnation:
            return f"meant for incarnation {operation.incarnation:#x}; this one is {mine.incarnation:#x}"
        if operation.epoch != mine.start_epoch:
            return f"of start epoch {operation.epoch}; the last one told is {mine.start_epoch}"
        return ""

    def _remember(self, told: Remember) -> OpResult:
        self._identity = replace(
            self._identity,
            cluster=told.cluster,
            start_epoch=told.start_epoch,
            start_nonce=told.start_nonce,
            decision=max(told.decision, self._identity.decision),
        )
        return OpResult()

    def _store(self, batch: StoreBatch) -> OpResult:
        handles = {blob.staged for blob in batch.blobs if blob.data is None}
        missing = self._missing(batch.blobs)
        fault = self._fault(missing.values()) or self._lack(missing.values())
        if fault is not None:
            return fault
        self._consumed |= handles
        if not missing:
            return OpResult()
        self._write_pages(missing)
        return OpResult(change=self._log([blob.record for blob in missing.values()], []))

    def _drop(self, operation: DropRecords) -> OpResult:
        dropped = []
        for each in operation.records:
            key = record_key(each.name, each.version)
            raw = self._txn.pop(key, db=self._tables.records)
            if raw is None:
                continue
            self._delete(key, decode_record(raw))
            dropped.append(each)
        return OpResult(change=self._log([], dropped)) if dropped else OpResult()

    def _set_aside(self, operation: SetAside) -> OpResult:
        gone = []
        for page in operation.pages:
            found = self._parts.check([Part(page.name, page.version, page.chunk, 1)])[0]
            key = record_key(page.name, page.version)
            raw = self._txn.get(key, db=self._tables.records)
            if raw is None or found not in (WRONG, UNREADABLE):
                continue
            record = decode_record(raw)
            self._keep(key, record, page)
            self._txn.delete(key, db=self._tables.records)
            self._delete(key, record)
            gone.append(Dropped(page.name, page.version))
        return OpResult(change=self._log([], gone)) if gone else OpResult()

    def _keep(self, key: bytes, record: Record, page: Damaged) -> None:
        """Before the record goes: should it stay after all, it is one whose bytes are gone, not wrong."""
        file = self._parts.files.path(key)
        is_inline = record.size <= INLINE_MAX_BYTES
        left = self._txn.get(inline_key(key), db=self._tables.inline) if is_inline else file
        self._parts.quarantine.keep(file.name, record, page, left)

    def _delete(self, key: bytes, record: Record) -> None:
        """What there is of a page beside its record."""
        if record.size <= INLINE_MAX_BYTES:
            self._txn.delete(inline_key(key), db=self._tables.inline)
        else:
            self._txn.delete(key, db=self._tables.lists)
            self._removed.append(key)
        self._count(key, record, -1)
        self._quota_room += record.size

    # -- steps of storing ------------------------------------------------------------

    def _missing(self, blobs: Sequence[Blob]) -> dict[bytes, Blob]:
        """The blobs that are not held, by record key."""
        missing = {record_key(blob.record.name, blob.record.version): blob for blob in blobs}
        for key, _ in self._txn.cursor(db=self._tables.records).getmulti(list(missing)):
            del missing[key]
        return missing

    def _fault(self, blobs: Collection[Blob]) -> OpResult | None:
        """The refusal of blobs whose bytes are not what their records say."""
        used = set(self._consumed)
        for blob in blobs:
            record = blob.record
            if blob.data is not None:
                size: int | None = len(blob.data)
                if record.size > INLINE_MAX_BYTES:
                    text = f"{record.size:,} bytes, over the bound of {INLINE_MAX_BYTES:,}, must be staged"
                    return OpResult(code="over-bound", text=f"{record.name[:200]!r}: {text}")
            else:
                size = None if blob.staged in used else self._parts.staged.size(blob.staged)
                used.add(blob.staged)
            chunks = 0 if record.size <= CHUNK_BYTES else -(-record.size // CHUNK_BYTES)
            if size is None:
                text = f"there is no staged file {blob.staged}"
            elif size != record.size:
                text = f"{size:,} bytes for a record of {record.size:,}"
            elif len(blob.digest_list) != chunks * _DIGEST_BYTES:
                text = f"{len(blob.digest_list):,} bytes of digests for {chunks:,} chunks"
            else:
                continue
            return OpResult(code="bad-request", text=f"{record.name[:200]!r}: {text}")
        return None

    def _lack(self, blobs: Collection[Blob]) -> OpResult | None:
        """The refusal of blobs for which there is no room; else takes the room. Staged bytes had theirs
        taken as they were written."""
        wanted = sum(blob.record.size for blob in blobs if blob.data is not None)
        inline = sum(blob.record.size for blob in blobs if blob.record.size <= INLINE_MAX_BYTES)
        # LMDB rounds a value up to whole pages of 4 KiB, at worst doubling it.
        written = 2 * inline + len(blobs) * _LEAVES_BYTES
        if wanted and wanted > self._quota_room:
            return full(wanted, self._quota_room, "under the quota")
        if written > self._disk_room:
            return full(written, self._disk_room, "on the disk")
        self._quota_room -= wanted
        self._disk_room -= written
        return None

    def _write_pages(self, blobs: dict[bytes, Blob]) -> None:
        records, pages, lists = [], [], []
        for key, blob in blobs.items():
            record = blob.record
            records.append((key, encode(record)))
            if record.size > INLINE_MAX_BYTES:
                lists.append((key, blob.digest_list))
                self._add_file(key, blob.staged)
            elif blob.data is not None:
                pages.append((inline_key(key), blob.data))
            else:
                pages.append((inline_key(key), self._parts.staged.read(blob.staged)))
            self._count(key, record, 1)
        tables = self._tables
        for table, items in ((tables.records, records), (tables.inline, pages), (tables.lists, lists)):
            # In the order of keys the cursor finds most places on the leaf where it stands.
            self._txn.cursor(db=table).putmulti(sorted(items))

    def _add_file(self, key: bytes, handle: int) -> None:
        staged = self._parts.staged
        staged.sync(handle)
        self._parts.files.add(key, staged.path(handle))
        self._added[key] = handle

    # -- counters and the log ----------------------------------------------------------

    def _count(self, key: bytes, record: Record, sign: int) -> None:
        bucket = bucket_of(record.version)
        change = sign * record_hash(page_key_of(key), record.version)
        self._sums[bucket] = (self._sums[bucket] + change) & _MASK_64
        self._pages += sign
        self._bytes += sign * record.size

    def _log(self, added: list[Record], dropped: list[Dropped]) -> Change:
        self._number += 1
        change = Change(self._number, added, dropped)
        encoded = encode(change)
        self._txn.put(change_key(self._number), encoded, append=True, db=self._tables.changes)
        self._log_bytes += len(encoded)
        return change

    def _trim_log(self) -> None:
        """Forget the oldest changes beyond the log's bounds; the newest always stays."""
        cursor = self._txn.cursor(db=self._tables.changes)
        cursor.first()
        oldest = int.from_bytes(cursor.key())
        kept = LOG_MAX_CHANGES
        if self._number - oldest >= kept:
            kept -= _FORGOTTEN_CHANGES
        while oldest < self._number and (self._number - oldest >= kept or self._log_bytes > LOG_MAX_BYTES):
            self._log_bytes -= len(cursor.value())
            cursor.delete()  # which moves on to the next
            oldest += 1


def full(needed: int, free: int, where: str) -> OpResult:
    return OpResult(code="full", text=f"{needed:,} bytes are needed, {max(0, free):,} are free {where}")
