"""A look through a page store that was not closed, in a process of its own, before it is served again.

What lives here: what is looked at, and the child process that does it. What must
not: what follows from it (store_lives.py).

A damaged record store can end the process that reads it (a file cut off is a
SIGBUS), so the reader is a child. In this order, and within the given time:

  1. the record store opens, and says what it is
  2. every record can be read, and together they are what the store has counted
  3. every page that has a file of its own has it, in its length
  4. what was written last has its digests, the latest first, LAST_BYTES and LAST_PAGES at most

Faults of 1 and 2 are the store's; faults of 3 and 4 are those of single pages, and
told as such. What time does not suffice for is left to the scrubber.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec
from msgspec import Struct

from dws.errors import DwsError
from dws.limits import CHUNK_BYTES, INLINE_MAX_BYTES, MANIFEST_BUCKETS, MIB
from dws.messages import Record, decode_change, decode_record
from dws.names import bucket_of, record_hash
from dws.nodes.lifeline import tie
from dws.nodes.page_files import PageFiles
from dws.nodes.page_reader import PageReader
from dws.nodes.page_tables import (
    State,
    Tables,
    decode_identity,
    decode_state,
    find_tables,
    page_key_of,
    record_key,
)
from dws.nodes.processes import node_environment
from dws.nodes.store_directory import STORE_NAME
from dws.store import GOOD, UNREADABLE, WRONG, Part

#: Read again of what was written last: more than a disk may still have owed when the server died.
LAST_BYTES: Final = 64 * MIB
LAST_PAGES: Final = 10_000
#: Damaged pages told of; the scrubber finds the others.
DAMAGED_MAX: Final = 1000
_MASK_64: Final = (1 << 64) - 1
#: The kernel's word that a process ended itself.
FAULT_SIGNALS: Final = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
#: A child that has not ended so long after it should have hangs on its disk.
_HANGS_S: Final = 60.0


class Walked(Struct):
    """fault: why the store cannot be served, if so. damaged: single pages, (name, version)."""

    fault: str = ""
    damaged: list[tuple[str, int]] = []
    text: str = ""


class WalkFailed(DwsError):
    """Nothing is known of the store: whoever looked at it was killed, or hangs."""


def walk(path: Path, within_s: float) -> Walked:
    """Look through the store at `path`, whose directory the caller has locked. Raises WalkFailed."""
    read, lifeline = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "dws.nodes.store_walk", str(path), str(within_s), str(read)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=[read],
            start_new_session=True,
            env=node_environment(),
        )
        try:
            output, _ = child.communicate(timeout=within_s + _HANGS_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise WalkFailed(f"{path}: could not be looked through in {within_s + _HANGS_S:g} s") from None
    finally:
        os.close(read)
        os.close(lifeline)
    code = child.returncode
    if -code in FAULT_SIGNALS:
        return Walked(f"reading all records ended in {signal.Signals(-code).name}")
    if code:
        raise WalkFailed(f"{path}: whoever looked through it ended with {code}; nothing was changed")
    return msgspec.json.decode(output, type=Walked)


def look(path: Path, within_s: float) -> Walked:
    """As `walk`, in this process: it may not live to tell. Raises Refused for a store of another format."""
    try:
        if _was_never_used(path):
            return Walked(text="the store was never used")
        return _Look(path, time.monotonic() + within_s).walk()
    except (lmdb.Error, msgspec.DecodeError, ValueError) as error:
        return Walked(f"{type(error).__name__}: {error}")
    except OSError as error:
        # A disk that cannot read is the store's fault; what else may fail, memory say, tells nothing of it.
        if error.errno != errno.EIO:
            raise
        return Walked(f"the disk cannot read: {error}")


def _open(path: Path) -> lmdb.Environment:
    # Nobody writes, so no lock is wanted; the caller has that of the directory.
    return lmdb.open(
        str(path / STORE_NAME), map_size=1 << 40, subdir=False, readonly=True, create=False, lock=False,
        readahead=True, max_dbs=8,
    )  # fmt: skip


def _was_never_used(path: Path) -> bool:
    """Whether somebody was killed while making it."""
    if not (path / STORE_NAME).stat().st_size:
        return True
    environment = _open(path)
    try:
        return not environment.stat()["entries"]
    finally:
        environment.close()


class _Look:
    def __init__(self, path: Path, until: float) -> None:
        self._until = until
        self._environment = _open(path)
        self._tables: Tables = find_tables(self._environment)
        self._files = PageFiles(path / "pages", make=False)
        self._reader = PageReader(self._environment, self._tables, self._files)
        self._size_bytes = (path / STORE_NAME).stat().st_size
        self._damaged: dict[tuple[str, int], None] = {}
        self._seen = 0
        self._files_seen = 0
        self._checked = 0

    def walk(self) -> Walked:
        state = self._state()
        fault, whole = self._walk_records(state)
        if not fault:
            self._touch_all()
            self._check_last()
        text = f"{self._seen:,} of {state.pages:,} records read, {self._files_seen:,} files found, "
        text += f"{self._checked:,} of the latest pages have their digests"
        if not whole:
            text += "; there was no time for more"
        if self._damaged:
            text += f"; {len(self._damaged):,} pages are damaged"
        return Walked(fault, list(self._damaged), text)

    def _state(self) -> State:
        with self._environment.begin(db=self._tables.meta) as txn:
            identity, state = txn.get(b"identity"), txn.get(b"state")
        if identity is not None:
            decode_identity(identity)
        elif state is not None:
            raise ValueError("the store does not say whose it is")
        return State() if state is None else decode_state(state)

    def _walk_records(self, state: State) -> tuple[str, bool]:
        """What is wrong with the records, if anything, and whether all were read."""
        sums = [0] * MANIFEST_BUCKETS
        size_bytes = large = 0
        with self._environment.begin() as txn:
            for key, raw in txn.cursor(db=self._tables.records):
                record = decode_record(raw)
                if record_key(record.name, record.version) != key:
                    return f"the record of {record.name!r} lies in the wrong place", False
                sums[bucket_of(record.version)] += record_hash(page_key_of(key), record.version)
                size_bytes += record.size
                self._seen += 1
                if record.size > INLINE_MAX_BYTES:
                    large += 1
                    self._look_at_file(key, record)
                if not self._seen % 1000 and self._is_late():
                    return "", False
            inline = txn.stat(self._tables.inline)["entries"]
            lists = txn.stat(self._tables.lists)["entries"]
        counted = (self._seen, size_bytes, [each & _MASK_64 for each in sums])
        if counted != (state.pages, state.bytes, list(state.sums)):
            return "its records are not those that it has counted", True
        if (inline, lists) != (self._seen - large, large):
            return "pages lack bytes, or bytes their record", True
        return "", True

    def _look_at_file(self, key: bytes, record: Record) -> None:
        try:
            size = self._files.size(key)
        except OSError:
            size = -1
        self._files_seen += size == record.size
        if size != record.size:
            self._note(record)

    def _touch_all(self) -> None:
        """Of a file that may be cut off, every page of bytes is touched: better here than in the server."""
        info, page_bytes = self._environment.info(), self._environment.stat()["psize"]
        if self._size_bytes >= (info["last_pgno"] + 1) * page_bytes:
            return
        with self._environment.begin(buffers=True) as txn:
            for number, value in enumerate(txn.cursor(db=self._tables.inline).iternext(keys=False)):
                _ = bytes(value[:1]) + bytes(value[-1:])
                if not number % 1000 and self._is_late():
                    return

    def _check_last(self) -> None:
        left_bytes = LAST_BYTES
        until = max(self._until, time.monotonic() + 1.0)
        for record in islice(self._latest(), LAST_PAGES):
            if record.size > left_bytes or time.monotonic() > until:
                return
            left_bytes -= record.size
            last = max(1, -(-record.size // CHUNK_BYTES))
            verdict = self._reader.check([Part(record.name, record.version, 0, last)])[0]
            if verdict in (WRONG, UNREADABLE):
                self._note(record)
            self._checked += verdict == GOOD

    def _latest(self) -> Iterator[Record]:
        """What was stored last, the latest first."""
        with self._environment.begin() as txn:
            for raw in txn.cursor(db=self._tables.changes).iterprev(keys=False):
                yield from decode_change(raw).added

    def _note(self, record: Record) -> None:
        if len(self._damaged) < DAMAGED_MAX:
            self._damaged[record.name, record.version] = None

    def _is_late(self) -> bool:
        return time.monotonic() > self._until


def main(arguments: list[str]) -> int:
    path, within_s, lifeline = arguments
    tie(int(lifeline))
    walked = look(Path(path), float(within_s))
    told: Any = msgspec.to_builtins(walked)
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
