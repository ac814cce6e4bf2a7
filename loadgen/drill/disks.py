"""Disks that stall, rot and fill up, made of the ones that there are.

What lives here: a node's LMDB file held as if its disk were in a slow fsync, bytes changed behind a server's
back, and a small file system to be filled. What must not: which node that is done to, and why (faults.py).
"""

import errno
import mmap
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import lmdb

from dws.limits import MIB

_MAP_BYTES: Final = 1 << 36
_FILL_BYTES: Final = 1 * MIB
#: Part of a page that is looked for on disk; more would miss pages that lie in several pieces.
_PATTERN_BYTES: Final = 48


class StalledDisk:
    """While it is entered, the node's next commit waits, as if it were in a slow fsync: the lock that LMDB
    gives to one writer is held here. Nothing is written, and reads go on."""

    def __init__(self, data: Path) -> None:
        self._path = next(data / name for name in ("catalog.mdb", "store.mdb") if (data / name).exists())

    def __enter__(self) -> Self:
        self._environment = lmdb.open(
            str(self._path), subdir=False, map_size=_MAP_BYTES, max_dbs=8, create=False, readahead=False
        )
        self._transaction = self._environment.begin(write=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transaction.abort()
        self._environment.close()


def damage(data: Path, bodies: Sequence[bytes]) -> list[int]:
    """Change bytes of pages wherever a server's directory has them; in how many places, of each."""
    patterns = [_pattern(body) for body in bodies]
    # Large pages are files; small ones lie in the record store.
    files = [data / "store.mdb", *sorted((data / "pages").glob("*/*"))]
    found = [_damage_file(path, patterns) for path in files if path.is_file() and path.stat().st_size]
    return [sum(places) for places in zip(*found, strict=True)] or [0] * len(bodies)


def _pattern(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[middle : middle + _PATTERN_BYTES]


def _damage_file(path: Path, patterns: Sequence[bytes]) -> list[int]:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        places = [_damage_places(view, pattern) for pattern in patterns]
        if any(places):
            view.flush()
    return places


def _damage_places(view: mmap.mmap, pattern: bytes) -> int:
    places = 0
    at = view.find(pattern)
    while at >= 0:
        view[at] ^= 0xFF
        places += 1
        at = view.find(pattern, at + 1)
    return places


class SmallDisk:
    """A file system in memory, mounted on a directory. Raises OSError where that is not allowed."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.directory = directory
        self._filler = directory / "filler"
        directory.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "dws-drill", str(directory)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise OSError(errno.EPERM, f"a small file system cannot be mounted: {said[0] if said else '?'}")

    def free_bytes(self) -> int:
        found = os.statvfs(self.directory)
        return found.f_bavail * found.f_frsize

    def fill(self) -> None:
        """Something else than the server takes all that is left."""
        with self._filler.open("ab", buffering=0) as file:
            size = _FILL_BYTES
            while size:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.directory)], capture_output=True, check=True)
