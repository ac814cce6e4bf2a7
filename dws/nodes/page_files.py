"""Pages too large for the record store: a file each, and the staged files they grow in.

What lives here: `StagedFiles`, bytes on their way in, which the writer thread
alone uses; `PageFiles`, whole pages, which the writer thread adds and removes
while other threads read. What must not: records. Which file should exist is the
page store's knowledge; names of files come from record keys, never from page
names.

    staging/<handle>                            bytes that are no page yet, gone at the next open
    pages/<bucket, 2 hex>/<key, 32 hex>-<version, 16 hex>   one page, never changed once it is here
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from dws.limits import MIB
from dws.nodes.store_directory import make_directory, sync_directory, sync_file

OPEN_FILES_MAX: Final = 64  # of each class; a file is opened again when it is wanted again
# A staged file is synced as it grows, so that storing it waits for this much at the most.
SYNC_EVERY_BYTES: Final = 16 * MIB


class Gap(Exception):
    """Bytes were offered that do not join what a staged file has."""


class _Staged:
    """One staged file: its length, and how much of it no sync has covered."""

    __slots__ = ("descriptor", "path", "size", "unsynced")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.unsynced = 0
        self.descriptor = -1

    def open(self) -> None:
        if self.descriptor < 0:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)

    def sync(self) -> None:
        if self.unsynced:
            self.open()
            sync_file(self.descriptor, self.path)
            self.unsynced = 0

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class StagedFiles:
    """Files that grow until they are stored or discarded. For the writer thread alone."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory, or empties it: what a last life staged is no page of this one."""
        self.directory = directory
        self.bytes = 0  # of all staged files
        self._files: dict[int, _Staged] = {}
        self._open: OrderedDict[int, _Staged] = OrderedDict()
        make_directory(directory)
        for entry in os.scandir(directory):
            os.unlink(entry.path)

    def size(self, handle: int) -> int | None:
        """How many bytes a staged file has; None if there is no such file."""
        staged = self._files.get(handle)
        return None if staged is None else staged.size

    def path(self, handle: int) -> Path:
        return self._files[handle].path

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> None:
        """Write at `offset`, which may go back but not past the end. Not durable on return.

        Raises Gap, OSError (ENOSPC among others), SyncFailed.
        """
        staged = self._files.get(handle)
        size = 0 if staged is None else staged.size
        if offset > size:
            raise Gap(f"offset {offset:,} is past the end of the staged file, at {size:,}")
        if staged is None:
            staged = self._files[handle] = _Staged(self.directory / str(handle))
        self._opened(handle, staged)
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(staged.descriptor, view, offset)
            offset += written
            view = view[written:]
            staged.unsynced += written
            self.bytes += max(0, offset - staged.size)
            staged.size = max(staged.size, offset)
        if staged.unsynced >= SYNC_EVERY_BYTES:
            staged.sync()

    def read(self, handle: int) -> bytes:
        """All bytes of a staged file that is small enough to lie in the record store."""
        staged = self._files[handle]
        self._opened(handle, staged)
        return os.pread(staged.descriptor, staged.size, 0)

    def sync(self, handle: int) -> None:
        self._files[handle].sync()

    def discard(self, handle: int, *, moved: bool = False) -> None:
        """Forget a staged file, if there is one; it is deleted unless it was `moved` to be a page."""
        staged = self._files.pop(handle, None)
        if staged is None:
            return
        self._open.pop(handle, None)
        self.bytes -= staged.size
        if not moved:
            staged.path.unlink()
        staged.close()

    def close(self) -> None:
        for staged in self._files.values():
            staged.close()

    def _opened(self, handle: int, staged: _Staged) -> None:
        """Open it. The one longest unused is synced and closed if there are too many: a descriptor
        closed before its sync could take the news of a failed write with it."""
        staged.open()
        self._open[handle] = staged
        self._open.move_to_end(handle)
        if len(self._open) > OPEN_FILES_MAX:
            _, oldest = self._open.popitem(last=False)
            oldest.sync()
            oldest.close()


class _Open:
    """An open page file, and how many threads are reading from it now."""

    __slots__ = ("descriptor", "dropped", "readers")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.readers = 0
        self.dropped = False


class PageFiles:
    """Whole pages by record key. One thread adds and removes; any thread reads."""

    def __init__(self, directory: Path, *, make: bool = True) -> None:
        """Makes the directory and those in it, durably, where they are missing: but for a second process
        that only reads."""
        self.directory = directory
        self._fanout = [directory / f"{number:02x}" for number in range(256)]
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, _Open] = OrderedDict()
        if not make:
            return
        make_directory(directory)
        found = set(os.listdir(directory))
        for each in self._fanout:
            if each.name not in found:
                each.mkdir()
        sync_directory(directory)

    def path(self, key: bytes) -> Path:
        return self._fanout[key[0]] / f"{key[9:].hex()}-{key[1:9].hex()}"

    def settle(self, number: int, held: set[bytes]) -> set[bytes]:
        """Delete the files in directory `number` that are none of the pages `held`, which a crash
        left behind; return the held ones that have no file."""
        missing = {self.path(key).name: key for key in held}
        for entry in os.scandir(self._fanout[number]):
            if missing.pop(entry.name, None) is None:
                os.unlink(entry.path)
        return set(missing.values())

    def add(self, key: bytes, staged: Path) -> None:
        """Make a synced staged file the page's file. Its name is durable after `sync_names`."""
        staged.rename(self.path(key))

    def take_out(self, key: bytes, staged: Path) -> None:
        """Undo `add`."""
        self.path(key).rename(staged)

    def sync_names(self, keys: Iterable[bytes]) -> None:
        """Make the names of added files durable."""
        for number in {key[0] for key in keys}:
            sync_directory(self._fanout[number])

    def remove(self, key: bytes) -> None:
        """Delete a page's file. A thread that is reading from it finishes first."""
        # In this order: a reader that opened the file before the unlink has also listed it before `_forget`.
        self.path(key).unlink(missing_ok=True)
        self._forget(key)

    def read(self, key: bytes, offset: int, length: int) -> bytes:
        """Bytes of a page, short only at the end of its file. Raises OSError (ENOENT among others)."""
        opened = self._borrow(key)
        try:
            return os.pread(opened.descriptor, length, offset)
        finally:
            self._give_back(opened)

    def size(self, key: bytes) -> int:
        """Bytes of a page's file. Raises OSError."""
        return os.stat(self.path(key)).st_size

    def chunks(self, key: bytes, chunks: range, length: int) -> Iterator[tuple[int, bytes]]:
        """These chunks of a page's file with their numbers, from the disk as far as the kernel lets us say
        so: they are put out of its cache first. Raises OSError."""
        descriptor = os.open(self.path(key), os.O_RDONLY)
        try:
            first, size = chunks.start * length, len(chunks) * length
            os.posix_fadvise(descriptor, first, size, os.POSIX_FADV_DONTNEED)
            for chunk in chunks:
                yield chunk, os.pread(descriptor, length, chunk * length)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        with self._lock:
            for opened in self._open.values():
                os.close(opened.descriptor)
            self._open.clear()

    def _borrow(self, key: bytes) -> _Open:
        oldest = None
        with self._lock:
            opened = self._open.get(key)
            if opened is None:
                opened = self._open[key] = _Open(os.open(self.path(key), os.O_RDONLY))
                if len(self._open) > OPEN_FILES_MAX:
                    _, oldest = self._open.popitem(last=False)
            else:
                self._open.move_to_end(key)
            opened.readers += 1
        if oldest is not None:
            self._drop(oldest)
        return opened

    def _give_back(self, opened: _Open) -> None:
        with self._lock:
            opened.readers -= 1
            last = opened.dropped and not opened.readers
        if last:
            os.close(opened.descriptor)

    def _forget(self, key: bytes) -> None:
        with self._lock:
            opened = self._open.pop(key, None)
        if opened is not None:
            self._drop(opened)

    def _drop(self, opened: _Open) -> None:
        """Close a file that is no longer listed, or leave that to its last reader. Outside the lock:
        closing a large file that was deleted takes as long as freeing it."""
        with self._lock:
            opened.dropped = True
            idle = not opened.readers
        if idle:
            os.close(opened.descriptor)
