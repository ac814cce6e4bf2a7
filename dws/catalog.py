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
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from dws.entries import Entry, Pages, pack, regroup, unpack_head, unpack_page
from dws.groups import Group, GroupKey, Groups
from dws.limits import MANIFEST_BUCKETS
from dws.messages import Record
from dws.names import bucket_of, page_key, record_hash

_MASK_64 = (1 << 64) - 1
#: What unpack_page would say of a page that is not in the catalog: no version is 0.
_NO_PAGE = (0, 0, b"", 0, 0, 0, 0)
#: Pages that go from one group to another: both groups, the pages' places, their sizes.
_Move = tuple[Group, Group, list[int], list[int]]


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

    def account(self, name: str, version: int) -> None:
        sums, bucket = self.sums, bucket_of(version)
        sums[bucket] = (sums[bucket] + record_hash(page_key(name), version)) & _MASK_64
        self.count += 1


class Catalog:
    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.packed: dict[str, bytes] = {}
        """Name → page, as in entries.py: what lookups read."""
        self.groups = Groups()
        """All pages; copies are counted from it."""
        self.pages: Mapping[str, Entry] = Pages(self.packed, self.groups.numbered)
        """The same pages for everybody else."""
        self.pictures: dict[int, Picture] = {}
        self.bytes_visible = 0
        self._sorted: list[str] | None = []
        for record in records:
            self._insert(record.name, record, ())

    # -- what is visible ------------------------------------------------------------

    def show(self, record: Record, holders: Iterable[int], now: float) -> None:
        """Make a version visible; `holders` had it reported as a stray before."""
        name = self._retire(record.name, now) or record.name
        holding = []
        for server in holders:
            picture = self.pictures.get(server)
            if picture is not None and picture.strays.pop((name, record.version), None) is not None:
                holding.append(server)
        self._insert(name, record, tuple(sorted(holding)))

    def hide(self, name: str, now: float) -> bool:
        """Take a page out of the catalog. False if it was not in it."""
        if self._retire(name, now) is None:
            return False
        del self.packed[name]
        self._sorted = None
        return True

    def _insert(self, name: str, record: Record, holders: tuple[int, ...]) -> None:
        if name not in self.packed:
            self._sorted = None
        group = self.groups.of(record.copies, holders)
        self.packed[name] = pack(record, group.number, self.groups.add(name, record.size, group))
        self.bytes_visible += record.size

    def _retire(self, name: str, now: float) -> str | None:
        """The visible version of `name`, if any, becomes a stray wherever it lies. Returns the object that
        is kept of the name, None if there is no such page."""
        packed = self.packed.get(name)
        if packed is None:
            return None
        version, size, _, _, number, _, place = unpack_page(packed)
        group = self.groups.numbered[number]
        name = self.groups.remove(place, size, group)
        for server in group.holders:
            self.pictures[server].strays[(name, version)] = now
        self.bytes_visible -= size
        return name

    def visible(self, name: str) -> tuple[int, bytes] | None:
        """(version, digest) of a page, None if it is not in the catalog: what most want to know, at less
        than its entry costs."""
        packed = self.packed.get(name)
        if packed is None:
            return None
        version, _, digest, _, _ = unpack_head(packed)
        return version, digest

    def group_of(self, name: str) -> GroupKey | None:
        """What a page has in common with others of its group; None if it is not in the catalog."""
        packed = self.packed.get(name)
        return None if packed is None else self.groups.numbered[unpack_head(packed)[-1]].key

    # -- who holds what --------------------------------------------------------------

    def hold(self, server: int, record: Record, now: float) -> bool:
        """The server was reported to hold this record. False if that was known.

        A record of the visible version with other bytes is none of its copies, but a stray; so is one that
        was disowned.
        """
        return self.hold_all(server, [record], now) == 1

    def hold_all(self, server: int, records: Iterable[Record], now: float) -> int:
        """The same of many: how many were not known. One call for a report or a manifest's page, since
        millions of records come so when a balancer starts."""
        picture, pages = self.pictures[server], self.packed
        strays, disowned, sums = picture.strays, picture.disowned, picture.sums
        known = picture.count
        moves: dict[int, _Move] = {}
        for record in records:
            name, version = record.name, record.version
            if strays and (name, version) in strays:
                continue
            packed = pages.get(name)
            visible, size, digest, _, number, known_hash, place = (
                unpack_page(packed) if packed is not None else _NO_PAGE
            )
            if packed is None or visible != version or digest != record.digest or (name, version) in disowned:
                strays[name, version] = now
                known_hash = record_hash(page_key(name), version)
            else:
                move = moves.get(number)
                if move is None:
                    move = moves[number] = self._joined_by(server, number)
                old, new, places, sizes = move
                if old is new:
                    continue
                places.append(place)
                sizes.append(size)
                known_hash = known_hash or record_hash(page_key(name), version)
                pages[name] = regroup(packed, new.number, known_hash)
            picture.count += 1
            bucket = bucket_of(version)
            sums[bucket] = (sums[bucket] + known_hash) & _MASK_64
        # Not earlier: the number of a group that ended, given anew, would lead to another group's move.
        for old, new, places, sizes in moves.values():
            if places:
                self.groups.move(places, sum(sizes), old, new)
        return picture.count - known

    def _joined_by(self, server: int, number: int) -> _Move:
        """From a group to that of its pages when this server holds them too: itself if it does already."""
        group = self.groups.numbered[number]
        if server in group.holders:
            return group, group, [], []
        joined = self.groups.of(group.copies, tuple(sorted((*group.holders, server))))
        return group, joined, [], []

    def release(self, server: int, name: str, version: int) -> bool:
        """The server was reported to hold this record no longer. False if that was known."""
        return self.release_all(server, [(name, version)]) == 1

    def release_all(self, server: int, copies: Iterable[tuple[str, int]]) -> int:
        """The same of many: of how many it was news."""
        picture = self.pictures[server]
        strays, sums = picture.strays, picture.sums
        known = picture.count
        for name, version in copies:
            # Most are garbage that was dropped. A stray is never a copy, too.
            if strays.pop((name, version), None) is None:
                if not self._is_copy(server, name, version):
                    continue
                self._take_from(server, name)
            picture.count -= 1
            bucket = bucket_of(version)
            sums[bucket] = (sums[bucket] - record_hash(page_key(name), version)) & _MASK_64
        return known - picture.count

    def holds(self, server: int, name: str, version: int) -> bool:
        return self._is_copy(server, name, version) or (name, version) in self.pictures[server].strays

    def _is_copy(self, server: int, name: str, version: int) -> bool:
        """Whether the server holds this version, and it is the visible one."""
        packed = self.packed.get(name)
        if packed is None:
            return False
        visible, _, _, _, number = unpack_head(packed)
        return visible == version and server in self.groups.numbered[number].holders

    def disown(self, server: int, name: str, version: int, now: float) -> None:
        """A copy of the visible version counts no more, though it is there: it is about to be dropped."""
        assert self._is_copy(server, name, version)
        self.pictures[server].disowned.add((name, version))
        self.pictures[server].strays[(name, version)] = now
        self._take_from(server, name)

    def drop_over(self, server: int, name: str, version: int) -> None:
        """No drop of what was disowned can come any more: from the next report on it counts again."""
        self.pictures[server].disowned.discard((name, version))

    def add_server(self, server: int) -> None:
        self.pictures.setdefault(server, Picture())

    def forget(self, server: int, limit: int) -> bool:
        """Take a server that will not come back out of the picture, `limit` pages at a time. True: done."""
        self.pictures[server] = Picture()
        for key in [key for key in self.groups if server in key[1]]:
            for name in list(islice(self.groups.names(key), limit)):
                self._take_from(server, name)
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
                bucket = bucket_of(version)
                if bucket in held:
                    held[bucket].add((name, version))
        return held

    def _records_of(self, server: int) -> Iterator[tuple[str, int]]:
        for key in self.groups:
            if server in key[1]:
                for name in self.groups.names(key):
                    yield name, unpack_head(self.packed[name])[0]
        yield from list(self.pictures[server].strays)

    def _take_from(self, server: int, name: str) -> None:
        """The server's copy of a page counts no more."""
        packed = self.packed[name]
        _, size, _, _, number, known_hash, place = unpack_page(packed)
        old = self.groups.numbered[number]
        new = self.groups.of(old.copies, tuple(holder for holder in old.holders if holder != server))
        self.packed[name] = regroup(packed, new.number, known_hash)
        self.groups.move([place], size, old, new)

    # -- listing -------------------------------------------------------------------------

    def names_from(self, prefix: str, after: str, limit: int) -> tuple[list[str], bool]:
        """Names with a prefix, in order, after `after`; and whether more follow."""
        if self._sorted is None:
            self._sorted = sorted(self.packed)
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
                pictures[server].account(name, entry.version)
        for server, picture in self.pictures.items():
            for name, version in picture.strays:
                pictures[server].account(name, version)
            assert pictures[server].sums == picture.sums
            assert pictures[server].count == picture.count
        self.groups.check()
        kept = {name: name for name in self.packed}
        for key, group in self.groups.items():
            entries = [self.pages[name] for name in self.groups.names(key)]
            assert all((entry.copies, entry.holders) == key for entry in entries)
            assert all(kept[name] is name for name in self.groups.names(key)), "one object of a name"
            assert group.size_bytes == sum(entry.size for entry in entries)
        assert sum(group.pages for group in self.groups.values()) == len(self.packed)
        assert sum(entry.size for entry in self.pages.values()) == self.bytes_visible
