"""Pages on disk: the page store of a web server (dws.store.PageStore), on LMDB and files.

What lives here: opening, what is counted, and which operations share a
transaction. What must not: how an operation changes the store
(page_transaction.py), how it is read (page_reader.py), where bytes lie
(page_tables.py, page_files.py), and sockets.

Reading methods may be called from any thread while another one commits.
`commit` belongs to one thread, the writer.
"""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import inf
from pathlib import Path
from typing import Final

import lmdb
from msgspec.structs import replace

from dws.errors import Refused
from dws.limits import GIB, MANIFEST_BUCKETS, MIB, PAGE_MAX_BYTES
from dws.messages import decode_record
from dws.nodes.page_files import Gap, PageFiles, StagedFiles
from dws.nodes.page_reader import PageReader
from dws.nodes.page_tables import State, decode_identity, decode_state, encode_identity, open_tables
from dws.nodes.page_transaction import PageTransaction, Parts, Room, full
from dws.nodes.quarantine import Quarantine
from dws.nodes.store_directory import (
    CATALOG_NAME,
    STORE_NAME,
    DirectoryLock,
    make_directory,
    open_environment,
    refuse_foreign,
    sync_directory,
)
from dws.store import (
    DiscardStaged,
    DropRecords,
    Identity,
    KeepPlace,
    OpResult,
    PageStoreOp,
    Remember,
    SetAside,
    StoreBatch,
    WriteStaged,
)

#: Free bytes that are left on the disk. A disk filled to the brim would break LMDB off in the middle of a
#: write, which it reports like a broken disk; and drops, which make room, write too.
DISK_RESERVE_BYTES: Final = 64 * MIB
#: More than one operation writes: with so much free for each nobody asks what LMDB's file has to spare.
_PLENTY_BYTES: Final = 160 * MIB

_Recorded = StoreBatch | DropRecords | Remember | SetAside | KeepPlace

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


class LmdbPageStore(PageReader):
    """A directory of pages. Opening it takes its lock, and fsyncs a new incarnation."""

    def __init__(
        self,
        path: Path,
        *,
        quota_bytes: int,
        set_aside_bytes: int = 4 * GIB,
        map_bytes: int = 1 << 40,
        random_bytes: Callable[[int], bytes] = os.urandom,
        lock: DirectoryLock | None = None,
    ) -> None:
        """quota_bytes bounds the pages' own bytes, stored and staged; set_aside_bytes those of damaged
        pages. map_bytes is address space, a bound of LMDB's file (records and small pages); all may change
        from one opening to the next. lock: the directory's, if the caller has it, and keeps it.

        Raises Refused (in use, or no store), ConfigError (map_bytes), OSError, lmdb.Error, SyncFailed.
        """
        self.path = path
        self.quota_bytes = quota_bytes
        self._failure: BaseException | None = None
        make_directory(path)
        with ExitStack() as undo:
            self._lock = DirectoryLock(path) if lock is None else None
            if self._lock is not None:
                undo.callback(self._lock.close)
            refuse_foreign(path, CATALOG_NAME, "balancer")
            environment = open_environment(
                path / STORE_NAME, map_bytes=map_bytes, databases=8, readahead=False
            )
            undo.callback(environment.close)
            super().__init__(environment, open_tables(environment), PageFiles(path / "pages"))
            self._staged = StagedFiles(path / "staging")
            self.quarantine = Quarantine(path / "quarantine", set_aside_bytes)
            self._parts = Parts(
                environment, self._tables, self._files, self._staged, self.quarantine, self.check
            )
            self._state, self.identity = self._begin_life(random_bytes)
            self._settle_files()
            sync_directory(path)
            undo.pop_all()

    def close(self) -> None:
        """Close everything and give the directory back. Call it when the other threads are done."""
        self._staged.close()
        super().close()
        if self._lock is not None:
            self._lock.close()

    # -- what is counted -----------------------------------------------------------------

    @property
    def number(self) -> int:
        """Of the last durable change."""
        return self._state.number

    def summary(self) -> tuple[int, list[int]]:
        """(change number, 256 bucket sums), both of one moment."""
        state = self._state
        return state.number, list(state.sums)

    def usage(self) -> tuple[int, int, int]:
        """(pages, bytes stored, bytes free): free is the less of the quota's rest and the disk's."""
        state = self._state
        return state.pages, state.bytes, max(0, min(self._room()))

    # -- writing -----------------------------------------------------------------------

    def commit(self, ops: Sequence[PageStoreOp]) -> list[OpResult]:
        """Execute operations in order, durably; one result for each.

        Raises SyncFailed, OSError or lmdb.Error if a disk fails, and from then on Refused: what is on
        the disk has to be looked at again, by opening it.
        """
        if self._failure is not None:
            raise Refused(f"{self.path}: a commit failed ({self._failure}); open the store again")
        try:
            return self._commit(ops)
        except BaseException as failure:
            self._failure = failure
            raise

    def _commit(self, ops: Sequence[PageStoreOp]) -> list[OpResult]:
        results = [OpResult()] * len(ops)
        group = _Group()
        for index, op in enumerate(ops):
            if group.must_go_before(op):
                self._settle(group, results)
                group = _Group()
            if isinstance(op, WriteStaged | DiscardStaged):
                results[index] = self._stage(op)
            else:
                group.add(index, op)
        self._settle(group, results)
        return results

    def _settle(self, group: "_Group", results: list[OpResult]) -> None:
        if group.ops:
            for index, result in zip(group.indexes, self._transact(group.ops), strict=True):
                results[index] = result

    def _transact(self, ops: list[_Recorded]) -> list[OpResult]:
        """Operations on records in one transaction; each in its own if together they do not fit."""
        txn = PageTransaction(self._parts, self._state, self.identity, self._room(_PLENTY_BYTES * len(ops)))
        try:
            results = [txn.apply(op) for op in ops]
            self._state, self.identity = txn.commit()
        except Exception as error:
            if not _is_no_room(error):
                txn.abort()
                raise
            txn.abandon()
            if len(ops) == 1:
                return [self._refuse(ops[0], error)]
        else:
            txn.finish()
            return results
        return [self._transact([op])[0] for op in ops]

    def _refuse(self, op: _Recorded, error: Exception) -> OpResult:
        needed = sum(blob.record.size for blob in op.blobs) if isinstance(op, StoreBatch) else 0
        return full(needed, self._room().disk, f"on the disk: {error}")

    def _stage(self, op: WriteStaged | DiscardStaged) -> OpResult:
        if isinstance(op, DiscardStaged):
            for handle in op.handles:
                self._staged.discard(handle)
            return OpResult()
        end = op.offset + len(op.data)
        if end > PAGE_MAX_BYTES:
            return OpResult(code="over-bound", text=f"{end:,} bytes, over the bound of {PAGE_MAX_BYTES:,}")
        growth = max(0, end - (self._staged.size(op.handle) or 0))
        quota, disk = self._quota_room(), self._disk_free()
        if growth > min(quota, disk):
            return full(growth, min(quota, disk), "under the quota" if quota < disk else "on the disk")
        try:
            self._staged.write(op.handle, op.offset, op.data)
        except Gap as gap:
            return OpResult(code="bad-request", text=str(gap))
        except OSError as error:
            if not _is_no_room(error):
                raise
            return full(growth, disk, f"on the disk: {error}")
        return OpResult()

    # -- room ----------------------------------------------------------------------------

    def _room(self, enough: float = inf) -> Room:
        """enough: where the disk alone has so many bytes, what else there may be is not counted, which costs
        as much as to store a small page does without its disk."""
        disk = self._disk_free()
        return Room(self._quota_room(), disk if disk >= enough else disk + self._reusable())

    def _quota_room(self) -> int:
        return self.quota_bytes - self._state.bytes - self._staged.bytes

    def _disk_free(self) -> int:
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize - DISK_RESERVE_BYTES

    def _reusable(self) -> int:
        """Bytes of LMDB's file, which never shrinks, that hold nothing now."""
        with self._environment.begin() as txn:
            stats = [txn.stat(table) for table in self._tables]
        used = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return max(0, self._environment.info()["last_pgno"] + 1 - used) * stats[0]["psize"]

    # -- opening -------------------------------------------------------------------------

    def _begin_life(self, random_bytes: Callable[[int], bytes]) -> tuple[State, Identity]:
        """What the store holds and who it is, with an incarnation raised durably."""
        with self._environment.begin(write=True, db=self._tables.meta) as txn:
            state, identity = txn.get(b"state"), txn.get(b"identity")
            last = Identity(random_bytes(16), 0) if identity is None else decode_identity(identity)
            starts = (last.incarnation >> 32) + 1
            nonce = int.from_bytes(random_bytes(4))
            now = replace(last, incarnation=starts << 32 | nonce)
            txn.put(b"identity", encode_identity(now))
        return (State() if state is None else decode_state(state)), now

    def _settle_files(self) -> None:
        """Delete page files without a record; note records without a file."""
        with self._environment.begin() as txn:
            cursor = txn.cursor(db=self._tables.lists)
            more = cursor.first()
            for number in range(MANIFEST_BUCKETS):
                held = set()
                while more and cursor.key()[0] == number:
                    held.add(cursor.key())
                    more = cursor.next()
                for key in self._files.settle(number, held):
                    raw = txn.get(key, db=self._tables.records)
                    if raw is not None:
                        self.note_damage(decode_record(raw))


class _Group:
    """Operations on records that wait to share a transaction, with their places among all operations."""

    def __init__(self) -> None:
        self.ops: list[_Recorded] = []
        self.indexes: list[int] = []
        self._handles: set[int] = set()  # of the staged files that they store
        self._drops = False

    def add(self, index: int, op: _Recorded) -> None:
        self.ops.append(op)
        self.indexes.append(index)
        self._handles |= _staged_handles(op)
        self._drops = self._drops or isinstance(op, DropRecords | SetAside)

    def must_go_before(self, op: PageStoreOp) -> bool:
        """Whether `op` would find something else if the group were settled after it."""
        if isinstance(op, WriteStaged):
            return op.handle in self._handles
        if isinstance(op, DiscardStaged):
            return not self._handles.isdisjoint(op.handles)
        # The files of dropped pages are deleted after the transaction, which must not hit one stored again.
        return self._drops and bool(_staged_handles(op))


def _staged_handles(op: _Recorded) -> set[int]:
    if isinstance(op, StoreBatch):
        return {blob.staged for blob in op.blobs if blob.data is None}
    return set()


def _is_no_room(error: Exception) -> bool:
    """Whether LMDB's map or the disk is full: no fault of the disk's, and nothing was done."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return isinstance(error, lmdb.MapFullError | lmdb.DiskError)
