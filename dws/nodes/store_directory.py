"""What both stores do with their directory: make it, lock it, open LMDB in it, sync it.

What lives here: the steps that a page store and a catalog store share, and the
error of a sync that failed. What must not: anything about what is stored.
"""

import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import Final

import lmdb

from dws.errors import ConfigError, DwsError, Refused

LOCK_NAME = "LOCK"
CATALOG_NAME: Final = "catalog.mdb"
STORE_NAME: Final = "store.mdb"

_PROBE_BYTES: Final = 4096


class SyncFailed(DwsError):
    """An fsync failed: what was written before it may be lost, so the process must end (rule 8)."""


def sync_file(descriptor: int, path: Path) -> None:
    """Make a file's bytes and length durable. Raises SyncFailed, whatever the reason."""
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        raise SyncFailed(f"cannot sync {path}: {error}") from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises SyncFailed, whatever the reason."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncFailed(f"cannot sync directory {path}: {error}") from error
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make `path` and the parents it lacks, each durable in its parent."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        sync_directory(each.parent)


class DirectoryLock:
    """One process, and in it one store, may have the directory open: an flock on its LOCK file,
    which the kernel takes back however the holder ends. The file says who holds it."""

    def __init__(self, directory: Path) -> None:
        """Raises Refused, which names the directory and the holder's pid, if it is held."""
        path = directory / LOCK_NAME
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            if isinstance(error, BlockingIOError):
                raise Refused(f"{directory} is in use by process {holder or '(unknown)'}") from None
            raise
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Give the directory back. The file stays: to delete it would race with the next holder."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class DiskProbe:
    """Reads a little of a file from its disk, past the kernel's cache where the file system can."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._buffer = mmap.mmap(-1, _PROBE_BYTES)  # aligned, as a direct read wants it

    def read(self) -> None:
        """Raises OSError. For one thread at a time."""
        if self._descriptor < 0:
            self._descriptor = _open_direct(self._path)
        os.preadv(self._descriptor, [self._buffer], 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._buffer.close()


def _open_direct(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A file system in memory, say: there is no disk to ask.
        return os.open(path, os.O_RDONLY)


def refuse_foreign(directory: Path, name: str, owner: str) -> None:
    """Raise Refused if the directory has the file that another kind of node keeps."""
    if (directory / name).exists():
        raise Refused(f"{directory} is the directory of a {owner}: give this node one of its own with --data")


def open_environment(path: Path, *, map_bytes: int, databases: int, readahead: bool) -> lmdb.Environment:
    """Open, or make, the LMDB file at `path`. The caller holds its directory's lock.

    map_bytes is address space, the most the file may grow to; the file itself grows as it is written.
    Raises ConfigError if so much cannot be mapped, Refused if the file is no LMDB store.
    """
    try:
        # Threads: py-lmdb always sets MDB_NOTLS, which ties a reader slot to its transaction rather than to
        # a thread. So any thread may read while one writes, and a finished read transaction, kept as a spare,
        # is renewed by whichever thread reads next: that saves an allocation and the reader table's lock.
        # A write transaction must end in the thread that began it; only the writer thread begins them.
        # The map is only ever read (writemap=False): a stray write cannot reach the file.
        environment = lmdb.open(
            str(path),
            map_size=map_bytes,
            subdir=False,
            sync=True,
            metasync=True,
            writemap=False,
            readahead=readahead,
            lock=True,
            mode=0o644,
            max_dbs=databases,
            max_readers=126,
            max_spare_txns=8,
        )
    except (lmdb.MemoryError, OverflowError) as error:
        raise ConfigError(
            f"cannot map {map_bytes:,} bytes of address space for {path} ({error}): "
            "ask for a smaller map, or lift the limit (ulimit -v)"
        ) from error
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
        raise Refused(f"{path} is not a store of this program: {error}") from error
    # A process that was killed in the middle of a read would keep its snapshot's pages from being used again.
    environment.reader_check()
    return environment
