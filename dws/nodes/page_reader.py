"""Reading a page store's directory: pages, records, manifests and the log of changes.

What lives here: everything that does not write, from any thread or process that
has the store's LMDB file open. What must not: the lock, the identity, and
anything that is counted, which page_store.py keeps.

Each read, or each request's reads, is a transaction of its own, of about a microsecond: one
that was kept open would keep the space of everything that is dropped meanwhile. It waits for
no writer and sees a commit as soon as it is durable.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import lmdb
from blake3 import blake3

from dws.errors import OverBound, Refused
from dws.limits import CHUNK_BYTES, GET_MAX_BYTES, MIB
from dws.messages import Change, Dropped, Record, decode_change, decode_record
from dws.nodes.page_files import PageFiles
from dws.nodes.page_tables import Tables, change_key, find_tables, inline_key, record_key
from dws.nodes.store_directory import STORE_NAME, DiskProbe
from dws.store import GOOD, NOT_THERE, UNREADABLE, WRONG, Part

#: `changes` returns no more than this, so that what it returns fits a message.
CHANGES_MAX_BYTES: Final = 4 * MIB
DAMAGED_MAX: Final = 1000
#: What a process has run out of says nothing of the page that it could not read for it.
_OUR_LACK: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class PageReader:
    """Pages by (name, version).

    damaged: pages whose record is here and whose file is missing, cut off or unreadable, as far as
    reading came across them; reads of them return None. At most DAMAGED_MAX are noted.
    """

    def __init__(self, environment: lmdb.Environment, tables: Tables, files: PageFiles) -> None:
        self.damaged: list[Dropped] = []
        self._environment = environment
        self._tables = tables
        self._inline = tables.inline
        self._files = files
        self._probe = DiskProbe(Path(environment.path()))

    def close(self) -> None:
        self._probe.close()
        self._files.close()
        self._environment.close()

    # -- pages -----------------------------------------------------------------------

    def get(self, name: str, version: int) -> bytes | None:
        """The whole page; None if not held. Raises OverBound for one over GET_MAX_BYTES."""
        key = record_key(name, version)
        with self._environment.begin() as txn:
            data = txn.get(inline_key(key), db=self._inline)
            return self._get_file(name, key, txn) if data is None else data

    def get_each(self, pages: Iterable[tuple[str, int]]) -> Iterator[bytes | None]:
        """What `get` returns of each page, read when it is asked for, small ones all of one moment. One
        transaction for all: to begin one costs as much as a page."""
        with self._environment.begin() as txn:
            get, inline = txn.get, self._inline
            for name, version in pages:
                key = record_key(name, version)
                data = get(inline_key(key), db=inline)
                yield self._get_file(name, key, txn) if data is None else data

    def _get_file(self, name: str, key: bytes, txn: lmdb.Transaction) -> bytes | None:
        """Of a page that has no bytes in the record store, as the same transaction sees it."""
        raw = txn.get(key, db=self._tables.records)
        if raw is None:
            return None
        record = decode_record(raw)
        if record.size > GET_MAX_BYTES:
            raise OverBound(f"{name!r}: {record.size:,} bytes, over the bound of {GET_MAX_BYTES:,} at once")
        return self._read_file(key, record, 0, record.size)

    def read(self, name: str, version: int, offset: int, length: int) -> bytes | None:
        """Up to `length` bytes from `offset`, short only at the end of the page; None if not held."""
        key = record_key(name, version)
        with self._environment.begin() as txn:
            data = txn.get(inline_key(key), db=self._inline)
        if data is not None:
            return data[offset : offset + length]
        record = self._record(key)
        return None if record is None else self._read_file(key, record, offset, length)

    def record(self, name: str, version: int) -> Record | None:
        return self._record(record_key(name, version))

    def digest_list(self, name: str, version: int) -> bytes | None:
        """The 32-byte digests of the page's chunks, joined; empty for one chunk; None if not held."""
        key = record_key(name, version)
        with self._environment.begin() as txn:
            digests = txn.get(key, db=self._tables.lists)
            if digests is None and txn.get(key, db=self._tables.records) is not None:
                return b""
        return digests

    def look(self, name: str, version: int) -> tuple[Record, bytes | None] | None:
        """The record and, of a page that lies in the record store, its bytes, both of one moment; None if
        not held. The bytes are not checked."""
        key = record_key(name, version)
        with self._environment.begin() as txn:
            raw = txn.get(key, db=self._tables.records)
            data = txn.get(inline_key(key), db=self._inline)
        return None if raw is None else (decode_record(raw), data)

    def page_file(self, record: Record) -> Path:
        """Where the bytes of a larger page lie."""
        return self._files.path(record_key(record.name, record.version))

    def check_chunks(self, record: Record, digests: bytes, chunks: Iterable[int]) -> bool:
        """Whether these chunks of a page file have the digests that `digests`, of the page's list, says.

        Holds one chunk at a time, and no descriptor afterwards: another process may delete the file.
        """
        expected = digests or record.digest
        if digests and blake3(digests).digest() != record.list_digest:
            return False
        try:
            descriptor = os.open(self.page_file(record), os.O_RDONLY)
        except OSError:
            return False
        try:
            for chunk in chunks:
                start = chunk * CHUNK_BYTES
                data = os.pread(descriptor, min(CHUNK_BYTES, record.size - start), start)
                if blake3(data).digest() != expected[chunk * 32 : chunk * 32 + 32]:
                    return False
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def check_readers(self) -> None:
        """Free the places of readers that were killed: one in the middle of a read would keep the space of
        everything that is dropped from then on."""
        self._environment.reader_check()

    # -- what is held, and how it came to be --------------------------------------------

    def manifest(self, bucket: int, after: bytes, limit: int) -> tuple[list[Record], bytes]:
        """Records of a bucket after a cursor, and the next cursor, which is empty at the end."""
        records: list[Record] = []
        last = start = bytes((bucket,)) + after
        with self._environment.begin() as txn:
            cursor = txn.cursor(db=self._tables.records)
            more = cursor.set_range(start)
            if more and cursor.key() == start:
                more = cursor.next()
            while more and cursor.key()[0] == bucket:
                if len(records) == limit:
                    return records, last[1:]
                last = cursor.key()
                records.append(decode_record(cursor.value()))
                more = cursor.next()
        return records, b""

    def changes(self, since: int, limit: int) -> list[Change] | None:
        """Changes numbered since+1 …, at most `limit` and (but for the first) CHANGES_MAX_BYTES; None if the
        log does not reach back to them, or this store has not come as far as `since`."""
        found: list[Change] = []
        size = 0
        with self._environment.begin() as txn:
            cursor = txn.cursor(db=self._tables.changes)
            newest = int.from_bytes(cursor.key()) if cursor.last() else 0
            if since == newest:
                return found
            more = cursor.set_key(change_key(since + 1))
            if not more:
                return None
            while more and len(found) < limit:
                encoded = cursor.value()
                size += len(encoded)
                if found and size > CHANGES_MAX_BYTES:
                    break
                found.append(decode_change(encoded))
                more = cursor.next()
        return found

    def place(self) -> bytes:
        """How far the scrubber had got."""
        with self._environment.begin() as txn:
            return txn.get(b"place", db=self._tables.meta) or b""

    # -- reading back: not for the thread that serves ------------------------------------------

    def check(self, parts: Sequence[Part]) -> list[int]:
        """Of each part, what was found (see store.PageChecker)."""
        return [self._check_part(part) for part in parts]

    def _check_part(self, part: Part) -> int:
        key = record_key(part.name, part.version)
        with self._environment.begin() as txn:
            raw = txn.get(key, db=self._tables.records)
            data = txn.get(inline_key(key), db=self._inline)
            digests = txn.get(key, db=self._tables.lists)
        if raw is None:
            return NOT_THERE
        record = decode_record(raw)
        if data is not None:
            is_right = len(data) == record.size and blake3(data).digest() == record.digest
        elif digests is None or (digests and blake3(digests).digest() != record.list_digest):
            is_right = False
        else:
            try:
                is_right = self._check_file(key, record, digests or record.digest, part)
            except FileNotFoundError:
                is_right = False
            except OSError as error:
                # Nothing is known of it then, and nobody may conclude that its bytes are gone.
                return NOT_THERE if error.errno in _OUR_LACK else UNREADABLE
        if is_right:
            return GOOD
        # A drop of it that came in between deletes its file.
        return WRONG if self._record(key) == record else NOT_THERE

    def _check_file(self, key: bytes, record: Record, digests: bytes, part: Part) -> bool:
        """Whether these chunks of a page file have their digests. Raises OSError."""
        last = min(part.chunk + part.chunks, -(-record.size // CHUNK_BYTES))
        return self._files.size(key) == record.size and all(
            blake3(piece).digest() == digests[32 * chunk : 32 * chunk + 32]
            for chunk, piece in self._files.chunks(key, range(part.chunk, last), CHUNK_BYTES)
        )

    def read_back(self) -> None:
        """Read a little of the record store from the disk. Raises OSError."""
        self._probe.read()

    # -- damage -----------------------------------------------------------------------------

    def take_damaged(self) -> list[Dropped]:
        """What reading came across since the last time."""
        if not self.damaged:
            return []
        damaged, self.damaged = self.damaged, []
        return damaged

    def note_damage(self, record: Record) -> None:
        """List a page among the damaged."""
        found = Dropped(record.name, record.version)
        if found not in self.damaged and len(self.damaged) < DAMAGED_MAX:
            self.damaged.append(found)

    # -- large pages -----------------------------------------------------------------------

    def _record(self, key: bytes) -> Record | None:
        with self._environment.begin() as txn:
            raw = txn.get(key, db=self._tables.records)
        return None if raw is None else decode_record(raw)

    def _read_file(self, key: bytes, record: Record, offset: int, length: int) -> bytes | None:
        wanted = max(0, min(length, record.size - offset))
        try:
            data = self._files.read(key, offset, wanted)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO):
                raise
            data = None
        if data is None or len(data) < wanted:
            # Dropped since the record was read, or else damaged.
            if self._record(key) is not None:
                self.note_damage(record)
            return None
        return data


class SharedPageReader(PageReader):
    """A page store that another process has open, for as long as it lives. Writes nothing, takes no lock."""

    def __init__(self, path: Path, *, map_bytes: int = 1 << 40) -> None:
        """Raises Refused if there is no page store."""
        file = path / STORE_NAME
        try:
            environment = lmdb.open(
                str(file), map_size=map_bytes, subdir=False, readonly=True, create=False, readahead=False,
                lock=True, max_dbs=8, max_readers=126, max_spare_txns=8,
            )  # fmt: skip
        except lmdb.Error as error:
            raise Refused(f"{path} is not the directory of a web server: {error}") from error
        environment.reader_check()
        try:
            super().__init__(environment, find_tables(environment), PageFiles(path / "pages", make=False))
        except BaseException:
            environment.close()
            raise
