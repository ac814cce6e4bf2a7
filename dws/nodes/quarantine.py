"""Damaged pages that were set aside: what was left of their bytes, and why.

What lives here: `Quarantine`, a directory with a bound. What must not: records,
and the decision that a page is damaged.

    quarantine/<key, 32 hex>-<version, 16 hex>.json    name, version, reason, time, digest wanted
    quarantine/<key, 32 hex>-<version, 16 hex>.page    the bytes as they were; none if there were none

Nothing here is read by the store again. A person may: of a page that no other
server had, these are the only bytes left.
"""

import json
import os
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Final

from dws.messages import Record
from dws.names import format_version
from dws.nodes.store_directory import make_directory, sync_directory, sync_file
from dws.store import Damaged

#: However small they are.
PAGES_MAX: Final = 10_000


class Quarantine:
    """For the writer thread alone, but for `counters`."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        """bytes_max bounds what is kept: the oldest go first, the newest stays."""
        self.directory = directory
        self._bytes_max = bytes_max
        self.counters = Counter(pages=0, bytes=0, evicted=0)
        """What is kept; and how many went again to make room, in this life."""
        self._sizes: OrderedDict[str, int] = OrderedDict()  # stem → bytes, the oldest first
        make_directory(directory)
        found = []
        for entry in os.scandir(directory):
            if entry.name.endswith(".json"):
                page = directory / (entry.name.removesuffix(".json") + ".page")
                size = page.stat().st_size if page.exists() else 0
                found.append((entry.stat().st_mtime_ns, entry.name.removesuffix(".json"), size))
        for _, stem, size in sorted(found):
            self._note(stem, size)

    def keep(self, stem: str, record: Record, page: Damaged, bytes_left: bytes | Path | None) -> None:
        """Keep what is left of a page: bytes, or a file, which is moved here. Durable on return.

        Raises OSError (ENOSPC among others), SyncFailed."""
        target = self.directory / f"{stem}.page"
        size = 0
        if isinstance(bytes_left, Path):
            try:
                os.replace(bytes_left, target)
                size = target.stat().st_size
            except FileNotFoundError:
                pass  # nothing is left of it, which is what the reason says
        elif bytes_left is not None:
            _write(target, bytes_left)
            size = len(bytes_left)
        told = {
            "name": record.name,
            "version": format_version(record.version),
            "reason": page.reason,
            "chunk": page.chunk,
            "size": record.size,
            "digest": record.digest.hex(),
            "set_aside": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        _write(self.directory / f"{stem}.json", json.dumps(told, indent=2).encode() + b"\n")
        sync_directory(self.directory)
        self._note(stem, size)
        self._evict()

    def _note(self, stem: str, size: int) -> None:
        self.counters["bytes"] += size - self._sizes.pop(stem, 0)
        self._sizes[stem] = size
        self.counters["pages"] = len(self._sizes)

    def _evict(self) -> None:
        while len(self._sizes) > 1 and (
            self.counters["bytes"] > self._bytes_max or len(self._sizes) > PAGES_MAX
        ):
            stem, size = self._sizes.popitem(last=False)
            self.counters.update(bytes=-size, pages=-1, evicted=1)
            for suffix in (".page", ".json"):
                (self.directory / (stem + suffix)).unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        sync_file(descriptor, path)
    finally:
        os.close(descriptor)
