"""The catalog on disk (dws.store.CatalogStore), on LMDB, and making one anew from servers' records.

What lives here: the layout of a catalog, its starts, its decisions. What must
not: what a decision means (dws/placement.py), and which records a rebuilt
catalog should name.

| database | key | value |
| --- | --- | --- |
| meta | `head` | format, cluster id, epoch of the last start, and whether it was rebuilt |
| meta | `decision` | number of the last decision (8 bytes, big endian) |
| meta | `last-number` | the highest number that a server was given (8 bytes, big endian) |
| pages | page key (16 bytes) | Record of the visible version |
| batches | batch id | RememberedBatch |
| forget | forget_at in seconds, rounded up (8 bytes, big endian), batch id | empty |
| starts | epoch and nonce (8 bytes each, big endian) | empty |
| servers | number (8 bytes, big endian) | KnownServer |

The catalog is one file, CATALOG_NAME, in a locked directory, so that a rebuilt
one takes its place by one rename: a crash leaves the old one or the new one.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from dws.errors import Full, Refused, Stale
from dws.limits import EPOCH_BITS, GIB
from dws.messages import Record, decode_record, encode
from dws.names import page_key
from dws.nodes.store_directory import (
    CATALOG_NAME,
    STORE_NAME,
    DirectoryLock,
    make_directory,
    open_environment,
    refuse_foreign,
    sync_directory,
)
from dws.store import CatalogHead, Decision, KnownServer, RememberedBatch

#: Address space, and the bound of the file: at some 400 bytes a page, room for a hundred million pages.
MAP_BYTES: Final = 64 * GIB
FORMAT: Final = 1
#: Forgotten batches that a commit deletes at most, for each of its decisions; it remembers one for each.
FORGET_FACTOR: Final = 4
_REBUILDING: Final = f"{CATALOG_NAME}.rebuilding"
_REBUILD_TRANSACTION: Final = 10_000  # records in one transaction
_NONCE_MASK: Final = (1 << 63) - 1

RandomBytes = Callable[[int], bytes]


class _Fixed(Struct):
    """What a catalog says of itself, on disk."""

    format: int
    cluster: bytes
    epoch: int
    rebuilt: bool


class _Tables(NamedTuple):
    """Handles of the databases."""

    meta: Any
    pages: Any
    batches: Any
    forget: Any
    starts: Any
    servers: Any


_decode_fixed = msgspec.msgpack.Decoder(_Fixed).decode
_decode_batch = msgspec.msgpack.Decoder(RememberedBatch).decode
_decode_server = msgspec.msgpack.Decoder(KnownServer).decode


class LmdbCatalogStore:
    """A directory with a catalog. Opening it takes its lock and fsyncs a new start.

    Reading methods may be called from any thread while another one commits. `commit` belongs to one
    thread, the writer.
    """

    head: CatalogHead

    def __init__(
        self,
        path: Path,
        *,
        random_bytes: RandomBytes = os.urandom,
        wall_clock: Callable[[], float] = time.time,
        map_bytes: int = MAP_BYTES,
    ) -> None:
        """Raises Refused (in use, no catalog, no epoch left), ConfigError (map), OSError, lmdb.Error."""
        self.path = path
        self._wall_clock = wall_clock
        self._failure: lmdb.Error | None = None
        make_directory(path)
        with ExitStack() as undo:
            self._lock = DirectoryLock(path)
            undo.callback(self._lock.close)
            refuse_foreign(path, STORE_NAME, "web server")
            _clear_rebuilding(path)
            self._environment, self._tables = _open(path / CATALOG_NAME, map_bytes)
            undo.callback(self._environment.close)
            self.head = self._start(random_bytes)
            sync_directory(path)
            undo.pop_all()

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is a catalog in this directory."""
        return (path / CATALOG_NAME).exists()

    def close(self) -> None:
        """Close everything and give the directory back. Call it when the other threads are done."""
        self._environment.close()
        self._lock.close()

    # -- reading -----------------------------------------------------------------------

    def load(self) -> Iterator[Record]:
        """All records, in no order that means anything, as they are when the first is taken."""
        with self._environment.begin() as txn, txn.cursor(db=self._tables.pages) as cursor:
            for raw in cursor.iternext(keys=False):
                yield decode_record(raw)

    def outcome(self, batch: bytes) -> RememberedBatch | None:
        """The decision on a batch, until its forget_at."""
        with self._environment.begin() as txn:
            raw = txn.get(batch, db=self._tables.batches)
        if raw is None:
            return None
        remembered = _decode_batch(raw)
        return remembered if remembered.forget_at > self._wall_clock() else None

    def knows_start(self, epoch: int, nonce: int) -> bool:
        """Whether this catalog, or the one that it was rebuilt from, was started so."""
        with self._environment.begin() as txn:
            return txn.get(_start_key(epoch, nonce), db=self._tables.starts) is not None

    # -- writing -----------------------------------------------------------------------

    def commit(self, decisions: Sequence[Decision], epoch: int) -> None:
        """Make decisions durable, in order, all or none.

        Raises Stale if a later start than `epoch` is in the catalog, Full if the disk or the map is full;
        then nothing was done. Raises lmdb.Error if the disk fails, and from then on Refused: what is on
        the disk has to be looked at again, by opening it.
        """
        if self._failure is not None:
            raise Refused(f"{self.path}: a commit failed ({self._failure}); open the catalog again")
        try:
            with self._environment.begin(write=True) as txn:
                self._check_epoch(txn, epoch)
                for decision in decisions:
                    self._decide(txn, decision)
                self._forget(txn, FORGET_FACTOR * len(decisions))
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            records = sum(len(decision.puts) for decision in decisions)
            raise Full(f"{self.path}: no room for {records:,} entries of the catalog: {error}") from error
        except lmdb.Error as failure:
            self._failure = failure
            raise

    def _check_epoch(self, txn: "lmdb.Transaction[bytes]", epoch: int) -> None:
        last = _fixed(txn, self._tables)
        if last is None or last.epoch != epoch:
            found = "none" if last is None else last.epoch
            raise Stale(
                f"{self.path}: the last start is of epoch {found}, so {epoch} decides nothing any more"
            )

    def _decide(self, txn: "lmdb.Transaction[bytes]", decision: Decision) -> None:
        tables = self._tables
        if decision.puts:
            _put_records(txn, tables, decision.puts)
        for name in decision.removes:
            txn.delete(page_key(name), db=tables.pages)
        if any(decision.batch):
            remembered = RememberedBatch(decision.version, decision.forget_at)
            txn.put(decision.batch, encode(remembered), db=tables.batches)
            txn.put(_forget_key(decision.forget_at, decision.batch), b"", db=tables.forget)
        if decision.server is not None:
            _put_server(txn, tables, decision.server)
        if decision.forget:
            txn.delete(_number_key(decision.forget), db=tables.servers)
        if decision.number > _decision_number(txn, tables):
            txn.put(b"decision", _number_key(decision.number), db=tables.meta)

    def _forget(self, txn: "lmdb.Transaction[bytes]", limit: int) -> None:
        """Delete batches past their time, the oldest first, at most `limit`."""
        now = self._wall_clock()
        cursor = txn.cursor(db=self._tables.forget)
        cursor.first()
        # At the end of the table the cursor's key is empty.
        while limit and (key := cursor.key()) and int.from_bytes(key[:8]) < now:
            raw = txn.get(key[8:], db=self._tables.batches)
            # It may have been remembered anew, until later.
            if raw is not None and _decode_batch(raw).forget_at < now:
                txn.delete(key[8:], db=self._tables.batches)
            cursor.delete()  # which moves on to the next
            limit -= 1

    def _start(self, random_bytes: RandomBytes) -> CatalogHead:
        """Write a new start, durably; the first makes the cluster's id."""
        tables = self._tables
        with self._environment.begin(write=True) as txn:
            last = _fixed(txn, tables) or _Fixed(FORMAT, random_bytes(16), 0, False)
            if last.format != FORMAT:
                raise Refused(f"{self.path} is a catalog of format {last.format}, not {FORMAT}")
            now = replace(last, epoch=last.epoch + 1)
            nonce = _write_start(txn, tables, now, random_bytes)
            cursor = txn.cursor(db=tables.servers)
            servers = [_decode_server(raw) for raw in cursor.iternext(keys=False)]
            decision = _decision_number(txn, tables)
            last_number = max([_last_number(txn, tables), *(server.number for server in servers)])
        return CatalogHead(now.cluster, now.epoch, nonce, decision, servers, now.rebuilt, last_number)


def write_rebuilt(
    path: Path,
    cluster: bytes,
    epoch: int,
    servers: Iterable[KnownServer],
    records: Iterable[Record],
    random_bytes: RandomBytes = os.urandom,
    *,
    decision: int = 0,
    starts: Iterable[tuple[int, int]] = (),
    map_bytes: int = MAP_BYTES,
) -> Path | None:
    """Put a new catalog in the place of the one in `path`, if there is one, which is kept: returns its path.

    epoch: of the new catalog's first start; opening it makes the next. records: one for each name.
    decision, starts: the highest decision number and the (epoch, nonce) pairs that servers were told last;
    servers refuse a catalog that is behind their number or lacks their start.

    Raises Refused if the directory is in use; and Full, which like any error leaves the old catalog.
    """
    make_directory(path)
    with ExitStack() as undo:
        undo.callback(DirectoryLock(path).close)
        _clear_rebuilding(path)
        undo.callback(_clear_rebuilding, path)
        environment, tables = _open(path / _REBUILDING, map_bytes)
        try:
            with environment.begin(write=True) as txn:
                _write_start(txn, tables, _Fixed(FORMAT, cluster, epoch, True), random_bytes)
                txn.put(b"decision", _number_key(decision), db=tables.meta)
                for start in starts:
                    txn.put(_start_key(*start), b"", db=tables.starts)
                for server in servers:
                    _put_server(txn, tables, server)
            remaining = iter(records)
            while some := list(itertools.islice(remaining, _REBUILD_TRANSACTION)):
                with environment.begin(write=True) as txn:
                    _put_records(txn, tables, some)
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            raise Full(f"{path}: no room to rebuild the catalog: {error}") from error
        finally:
            environment.close()
        return _swap(path)


def _swap(path: Path) -> Path | None:
    """Give the rebuilt catalog the old one's name, and the old one another; returns that."""
    current, kept = path / CATALOG_NAME, None
    if current.exists():
        numbers = itertools.count(1)
        kept = next(
            name for n in numbers if not (name := path / f"{CATALOG_NAME}.before-rebuild-{n}").exists()
        )
        os.link(current, kept)
    # LMDB's lock file is of the old catalog; it makes one for the new.
    (path / f"{CATALOG_NAME}-lock").unlink(missing_ok=True)
    (path / _REBUILDING).rename(current)
    sync_directory(path)
    return kept


def _clear_rebuilding(path: Path) -> None:
    """Delete what a rebuild that did not end has left: its file, and a second name of the catalog."""
    for kept in path.glob(f"{CATALOG_NAME}.before-rebuild-*"):
        if (path / CATALOG_NAME).exists() and kept.samefile(path / CATALOG_NAME):
            kept.unlink()
    for suffix in ("", "-lock"):
        (path / f"{_REBUILDING}{suffix}").unlink(missing_ok=True)


# -- tables ------------------------------------------------------------------------------


def _open(file: Path, map_bytes: int) -> tuple[lmdb.Environment, _Tables]:
    environment = open_environment(file, map_bytes=map_bytes, databases=8, readahead=True)
    try:
        with environment.begin(write=True) as txn:
            return environment, _Tables(
                *(environment.open_db(name.encode(), txn=txn) for name in _Tables._fields)
            )
    except BaseException:
        environment.close()
        raise


def _fixed(txn: "lmdb.Transaction[bytes]", tables: _Tables) -> _Fixed | None:
    raw = txn.get(b"head", db=tables.meta)
    return None if raw is None else _decode_fixed(raw)


def _decision_number(txn: "lmdb.Transaction[bytes]", tables: _Tables) -> int:
    return int.from_bytes(txn.get(b"decision", b"", db=tables.meta))


def _last_number(txn: "lmdb.Transaction[bytes]", tables: _Tables) -> int:
    return int.from_bytes(txn.get(b"last-number", b"", db=tables.meta))


def _write_start(
    txn: "lmdb.Transaction[bytes]", tables: _Tables, fixed: _Fixed, random_bytes: RandomBytes
) -> int:
    """Put the catalog's head with a start of its epoch; returns the start's nonce."""
    if fixed.epoch >= 1 << EPOCH_BITS:
        raise Refused(f"the catalog's epochs are used up: {fixed.epoch} would not fit in {EPOCH_BITS} bits")
    nonce = int.from_bytes(random_bytes(8)) & _NONCE_MASK
    txn.put(b"head", encode(fixed), db=tables.meta)
    txn.put(_start_key(fixed.epoch, nonce), b"", db=tables.starts)
    return nonce


def _put_records(txn: "lmdb.Transaction[bytes]", tables: _Tables, records: Sequence[Record]) -> None:
    by_key = {page_key(record.name): encode(record) for record in records}
    # In the order of keys the cursor finds most places on the leaf where it stands.
    txn.cursor(db=tables.pages).putmulti(sorted(by_key.items()))


def _put_server(txn: "lmdb.Transaction[bytes]", tables: _Tables, server: KnownServer) -> None:
    txn.put(_number_key(server.number), encode(server), db=tables.servers)
    if server.number > _last_number(txn, tables):
        txn.put(b"last-number", _number_key(server.number), db=tables.meta)


def _number_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _start_key(epoch: int, nonce: int) -> bytes:
    return _number_key(epoch) + _number_key(nonce)


def _forget_key(forget_at: float, batch: bytes) -> bytes:
    # Rounded up: what is past by its key is past.
    return _number_key(max(0, math.ceil(forget_at))) + batch
