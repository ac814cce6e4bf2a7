"""Pages → visible versions and the servers that hold them.

What lives here: the balancer's picture, as two truths side by side: what the
durable catalog names (`pages`), and what each server was reported to hold
(holders of the visible version, and *strays*: everything else on a disk). What
must not: who is alive, who is chosen, when garbage goes.

Sums over each server's manifest are kept as records come and go, so that the
picture can be compared with the server's own sums at any moment. Pages are
grouped by holders, so that what a server's loss concerns is found without a walk.
"""

import bisect
from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec import Struct

from dws.limits import MANIFEST_BUCKETS
from dws.messages import Record
from dws.names import bucket_of, page_key, record_hash

_MASK_64 = (1 << 64) - 1


class Entry(Struct, gc=False):
    """A visible page. Small on purpose: there may be millions.

    copies: how many it is to have; 0: as many as the cluster is set to.
    holders: numbers of the servers that hold this version, ascending; one shared
        tuple object for each distinct set.
    """

    version: int
    size: int
    digest: bytes
    list_digest: bytes
    batch: bytes
    content_type: str
    modified: float
    format: int
    copies: int
    holders: tuple[int, ...]

    def record(self, name: str) -> Record:
        return Record(
            name, self.version, self.batch, self.size, self.digest, self.list_digest,
            self.content_type, self.modified, self.format, self.copies,
        )  # fmt: skip


#: (copies wanted, as in Entry; holders)
GroupKey = tuple[int, tuple[int, ...]]


class Group(Struct):
    """Pages that want the same number of copies and lie on the same servers."""

    names: dict[str, None] = {}  # a set that keeps an order
    size_bytes: int = 0


class Picture:
    """What one server is believed to hold, beyond what entries say of it.

    strays: (name, version) → when it was found to be no copy of a visible version; in that order. One of
        a visible version is a copy that was disowned, or has other bytes.
    disowned: (name, version) of copies that are about to be dropped. Whatever is reported of them, they
        count for nothing.
    """

    __slots__ = ("count", "disowned", "strays", "sums")

    def __init__(self) -> None:
        self.sums = [0] * MANIFEST_BUCKETS
        self.count = 0
        self.strays: dict[tuple[str, int], float] = {}
        self.disowned: set[tuple[str, int]] = set()

    def account(self, key: bytes, version: int, sign: int) -> None:
        bucket = bucket_of(key)
        self.sums[bucket] = (self.sums[bucket] + sign * record_hash(key, version)) & _MASK_64
        self.count += sign


class Catalog:
    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.pages: dict[str, Entry] = {}
        self.pictures: dict[int, Picture] = {}
        self.bytes_visible = 0
        self.groups: dict[GroupKey, Group] = {}
        """All pages; copies are counted from it."""
        self._tuples: dict[tuple[int, ...], tuple[int, ...]] = {(): ()}
        self._types: dict[str, str] = {}
        self._sorted: list[str] | None = []
        for record in records:
            self._insert(record, ())

    # -- what is visible ------------------------------------------------------------

    def show(self, record: Record, holders: Iterable[int], now: float) -> None:
        """Make a version visible; `holders` had it reported as a stray before."""
        self._retire(record.name, now)
        holding = []
        for server in holders:
            picture = self.pictures.get(server)
            if picture is not None and picture.strays.pop((record.name, record.version), None) is not None:
                holding.append(server)
        self._insert(record, tuple(sorted(holding)))

    def hide(self, name: str, now: float) -> bool:
        """Take a page out of the catalog. False if it was not in it."""
        if name not in self.pages:
            return False
        self._retire(name, now)
        del self.pages[name]
        self._sorted = None
        return True

    def _insert(self, record: Record, holders: tuple[int, ...]) -> None:
        if record.name not in self.pages:
            self._sorted = None
        content_type = self._types.setdefault(record.content_type, record.content_type)
        self.pages[record.name] = Entry(
            record.version, record.size, record.digest, record.list_digest, record.batch,
            content_type, record.modified, record.format, record.copies, self._shared(holders),
        )  # fmt: skip
        self._group(record.name, self.pages[record.name])
        self.bytes_visible += record.size

    def _retire(self, name: str, now: float) -> None:
        """The visible version of `name`, if any, becomes a stray wherever it lies."""
        entry = self.pages.get(name)
        if entry is None:
            return
        for server in entry.holders:
            self.pictures[server].strays[(name, entry.version)] = now
        self._ungroup(name, entry)
        self.bytes_visible -= entry.size

    # -- who holds what --------------------------------------------------------------

    def hold(self, server: int, record: Record, now: float, key: bytes = b"") -> bool:
        """The server was reported to hold this record. False if that was known. key: of its page.

        A record of the visible version with other bytes is none of its copies, but a stray; so is one that
        was disowned.
        """
        name, version = record.name, record.version
        picture = self.pictures[server]
        if (name, version) in picture.strays:
            return False
        entry = self.pages.get(name)
        visible = entry is not None and entry.version == version and entry.digest == record.digest
        if entry is None or not visible or (name, version) in picture.disowned:
            picture.strays[(name, version)] = now
        elif server in entry.holders:
            return False
        else:
            self._set_holders(name, entry, tuple(sorted((*entry.holders, server))))
        picture.account(key or page_key(name), version, +1)
        return True

    def release(self, server: int, name: str, version: int) -> bool:
        """The server was reported to hold this record no longer. False if that was known."""
        picture = self.pictures[server]
        entry = self.pages.get(name)
        if entry is not None and entry.version == version and server in entry.holders:
            self._set_holders(name, entry, tuple(holder for holder in entry.holders if holder != server))
        elif picture.strays.pop((name, version), None) is None:
            return False
        picture.account(page_key(name), version, -1)
        return True

    def holds(self, server: int, name: str, version: int) -> bool:
        entry = self.pages.get(name)
        if entry is not None and entry.version == version and server in entry.holders:
            return True
        return (name, version) in self.pictures[server].strays

    def disown(self, server: int, name: str, version: int, now: float) -> None:
        """A copy of the visible version counts no more, though it is there: it is about to be dropped."""
        entry = self.pages[name]
        assert entry.version == version and server in entry.holders
        self.pictures[server].disowned.add((name, version))
        self.pictures[server].strays[(name, version)] = now
        self._set_holders(name, entry, tuple(holder for holder in entry.holders if holder != server))

    def drop_over(self, server: int, name: str, version: int) -> None:
        """No drop of what was disowned can come any more: from the next report on it counts again."""
        self.pictures[server].disowned.discard((name, version))

    def add_server(self, server: int) -> None:
        self.pictures.setdefault(server, Picture())

    def forget(self, server: int, limit: int) -> bool:
        """Take a server that will not come back out of the picture, `limit` pages at a time. True: done."""
        self.pictures[server] = Picture()
        for key in [key for key in self.groups if server in key[1]]:
            for name in list(islice(self.groups[key].names, limit)):
                entry = self.pages[name]
                self._set_holders(name, entry, tuple(number for number in key[1] if number != server))
                limit -= 1
            if limit <= 0:
                return False
        return True

    def held_in(self, server: int, buckets: set[int]) -> dict[int, set[tuple[str, int]]]:
        """Bucket → records that the picture shows there. Walks the whole catalog: for a server
        whose picture is wrong, which is rare."""
        held: dict[int, set[tuple[str, int]]] = {bucket: set() for bucket in buckets}
        if self.pictures[server].count:
            for name, version in self._records_of(server):
                bucket = bucket_of(page_key(name))
                if bucket in held:
                    held[bucket].add((name, version))
        return held

    def _records_of(self, server: int) -> Iterator[tuple[str, int]]:
        for name, entry in self.pages.items():
            if server in entry.holders:
                yield name, entry.version
        yield from list(self.pictures[server].strays)

    def _set_holders(self, name: str, entry: Entry, holders: tuple[int, ...]) -> None:
        self._ungroup(name, entry)
        entry.holders = self._shared(holders)
        self._group(name, entry)

    def _group(self, name: str, entry: Entry) -> None:
        key = (entry.copies, entry.holders)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group()
        group.names[name] = None
        group.size_bytes += entry.size

    def _ungroup(self, name: str, entry: Entry) -> None:
        key = (entry.copies, entry.holders)
        group = self.groups[key]
        del group.names[name]
        group.size_bytes -= entry.size
        if not group.names:
            del self.groups[key]

    def _shared(self, holders: tuple[int, ...]) -> tuple[int, ...]:
        return self._tuples.setdefault(holders, holders)

    # -- listing -------------------------------------------------------------------------

    def names_from(self, prefix: str, after: str, limit: int) -> tuple[list[str], bool]:
        """Names with a prefix, in order, after `after`; and whether more follow."""
        if self._sorted is None:
            self._sorted = sorted(self.pages)
        names = self._sorted
        start = bisect.bisect_right(names, after) if after >= prefix else bisect.bisect_left(names, prefix)
        found: list[str] = []
        for name in names[start : start + limit + 1]:
            if not name.startswith(prefix):
                break
            found.append(name)
        return found[:limit], len(found) > limit

    def check(self) -> None:
        """The whole picture adds up. Costs a walk: for tests and simulators."""
        pictures = {server: Picture() for server in self.pictures}
        for name, entry in self.pages.items():
            assert list(entry.holders) == sorted(set(entry.holders))
            for server in entry.holders:
                assert (name, entry.version) not in self.pictures[server].strays
                assert (name, entry.version) not in self.pictures[server].disowned
                pictures[server].account(page_key(name), entry.version, +1)
        for server, picture in self.pictures.items():
            for name, version in picture.strays:
                pictures[server].account(page_key(name), version, +1)
            assert pictures[server].sums == picture.sums
            assert pictures[server].count == picture.count
        grouped: dict[GroupKey, dict[str, None]] = {}
        for name, entry in self.pages.items():
            grouped.setdefault((entry.copies, entry.holders), {})[name] = None
        assert {key: group.names for key, group in self.groups.items()} == grouped
        for group in self.groups.values():
            assert group.size_bytes == sum(self.pages[name].size for name in group.names)
        assert sum(entry.size for entry in self.pages.values()) == self.bytes_visible
