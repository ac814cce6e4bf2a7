"""The catalog's picture, compared at every step with a model that keeps two plain dicts.

The model knows what is visible (name → record) and what each server was reported to hold (a set), and
derives everything else anew. `Catalog.check` adds up sums and counts besides.
"""

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dws.catalog import Catalog
from dws.messages import Record
from dws.names import bucket_of, page_key, record_hash
from dws.sim.disks import MASK_64
from tests.dws.desk import record

NAMES = st.sampled_from(["/a", "/a/b", "/a/c", "/b", "/z"])
VERSIONS = st.integers(1, 4)
SERVERS = st.sampled_from([1, 2, 3])
#: A version has one content, but for a disk that has other bytes than the rest.
DAMAGED = st.sampled_from([False, False, False, True])


def content(name: str, version: int, damaged: bool = False) -> Record:
    """As a message brings it: its name is an object of its own."""
    name = name.encode().decode()
    return record(name, version, b"damaged" if damaged else f"{name} {version}".encode())


class CatalogBesideAModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.catalog = Catalog()
        self.visible: dict[str, Record] = {}
        self.shown: set[tuple[str, int]] = set()
        self.held: dict[int, dict[tuple[str, int], Record]] = {1: {}, 2: {}, 3: {}}
        self.strays_since: dict[tuple[int, str, int], float] = {}
        self.now = 0.0
        for server in self.held:
            self.catalog.add_server(server)

    def is_copy(self, server: int, name: str) -> bool:
        seen = self.visible.get(name)
        held = self.held[server].get((name, seen.version)) if seen else None
        return seen is not None and held is not None and held.digest == seen.digest

    @rule(server=SERVERS, name=NAMES, version=VERSIONS, damaged=DAMAGED)
    def hold(self, server: int, name: str, version: int, damaged: bool) -> None:
        self.now += 1
        if (name, version) in self.held[server]:
            return  # a disk holds a version once, and never changes it
        self.held[server][name, version] = content(name, version, damaged)
        assert self.catalog.hold(server, content(name, version, damaged), self.now)
        assert not self.catalog.hold(server, content(name, version, damaged), self.now), "it is known by now"
        self.note_strays()

    @rule(server=SERVERS, told=st.lists(st.tuples(NAMES, VERSIONS, DAMAGED), max_size=6))
    def hold_all(self, server: int, told: list[tuple[str, int, bool]]) -> None:
        """A report of many, known ones and repeated ones among them."""
        self.now += 1
        held = self.held[server]
        before = len(held)
        records = [held.setdefault((each[0], each[1]), content(*each)) for each in told]
        assert self.catalog.hold_all(server, records, self.now) == len(held) - before
        self.note_strays()

    @rule(server=SERVERS, name=NAMES, version=VERSIONS)
    def release(self, server: int, name: str, version: int) -> None:
        was_held = self.held[server].pop((name, version), None) is not None
        assert self.catalog.release(server, name, version) == was_held
        self.note_strays()

    @rule(server=SERVERS, told=st.lists(st.tuples(NAMES, VERSIONS), max_size=6))
    def release_all(self, server: int, told: list[tuple[str, int]]) -> None:
        """A report of many, unknown ones and repeated ones among them."""
        held = self.held[server]
        before = len(held)
        for copy in told:
            held.pop(copy, None)
        assert self.catalog.release_all(server, told) == before - len(held)
        self.note_strays()

    @rule(name=NAMES, version=VERSIONS)
    def show(self, name: str, version: int) -> None:
        """A decision: versions are shown once, and their holders are those with its bytes."""
        if (name, version) in self.shown:
            return
        self.now += 1
        self.shown.add((name, version))
        self.visible[name] = content(name, version)
        found = [server for server in self.held if self.is_copy(server, name)]
        self.catalog.show(content(name, version), found, self.now)
        self.note_strays()

    @rule(name=NAMES)
    def hide(self, name: str) -> None:
        self.now += 1
        assert self.catalog.hide(name, self.now) == (self.visible.pop(name, None) is not None)
        self.note_strays()

    def note_strays(self) -> None:
        strays = {
            (server, *key)
            for server, held in self.held.items()
            for key in held
            if not (self.is_copy(server, key[0]) and self.visible[key[0]].version == key[1])
        }
        self.strays_since = {key: self.strays_since.get(key, self.now) for key in strays}

    @invariant()
    def the_picture_adds_up(self) -> None:
        self.catalog.check()

    @invariant()
    def what_is_visible_and_who_has_it(self) -> None:
        pages = self.catalog.pages
        assert {name: entry.record(name) for name, entry in pages.items()} == self.visible
        for name, entry in pages.items():
            assert entry.holders == tuple(server for server in self.held if self.is_copy(server, name))
        assert self.catalog.bytes_visible == sum(each.size for each in self.visible.values())
        counted = {holders: group.pages for (_, holders), group in self.catalog.groups.items()}
        assert counted == Counter(entry.holders for entry in pages.values())

    @invariant()
    def strays_are_all_the_rest_since_they_became_so(self) -> None:
        for server, held in self.held.items():
            strays = self.catalog.pictures[server].strays
            wanted = {key[1:]: since for key, since in self.strays_since.items() if key[0] == server}
            assert strays == wanted
            assert list(strays.values()) == sorted(strays.values()), "the eldest first"
            assert self.catalog.pictures[server].count == len(held)
            for key in held:
                assert self.catalog.holds(server, *key)

    @invariant()
    def sums_are_those_of_the_disk(self) -> None:
        for server, held in self.held.items():
            sums = [0] * 256
            for name, version in held:
                bucket = bucket_of(version)
                sums[bucket] = (sums[bucket] + record_hash(page_key(name), version)) & MASK_64
            assert self.catalog.pictures[server].sums == sums
            buckets = set(range(256))
            assert set().union(*self.catalog.held_in(server, buckets).values()) == set(held)


TestCatalogBesideAModel: Any = CatalogBesideAModel.TestCase
TestCatalogBesideAModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# -- listing ---------------------------------------------------------------------------


@pytest.fixture
def listed() -> Catalog:
    return Catalog(record(name, 1) for name in ["/b", "/a/2", "/a", "/a/1", "/ab", "/ä"])


def test_names_come_in_order_from_a_prefix(listed: Catalog) -> None:
    assert listed.names_from("/", "", 10) == (["/a", "/a/1", "/a/2", "/ab", "/b", "/ä"], False)
    assert listed.names_from("/a/", "", 10) == (["/a/1", "/a/2"], False)
    assert listed.names_from("/c", "", 10) == ([], False)


def test_a_listing_goes_on_after_its_last_name(listed: Catalog) -> None:
    names: list[str] = []
    more = True
    while more:
        some, more = listed.names_from("/a", names[-1] if names else "", 2)
        assert len(some) <= 2
        names += some
    assert names == ["/a", "/a/1", "/a/2", "/ab"]


def test_a_listing_follows_the_catalog(listed: Catalog) -> None:
    listed.hide("/a/1", 1.0)
    listed.show(record("/a/3", 2), [], 1.0)
    assert listed.names_from("/a/", "", 10) == (["/a/2", "/a/3"], False)
    listed.show(record("/a/2", 3), [], 1.0)
    assert listed.names_from("/a/", "/a/2", 10) == (["/a/3"], False)


def test_held_in_looks_at_the_buckets_it_was_asked_for() -> None:
    catalog = Catalog()
    catalog.add_server(1)
    catalog.hold(1, record("/a", 1), 0.0)
    bucket = bucket_of(1)
    assert catalog.held_in(1, {bucket}) == {bucket: {("/a", 1)}}
    assert catalog.held_in(1, {(bucket + 1) % 256}) == {(bucket + 1) % 256: set()}
    assert catalog.held_in(1, set()) == {}


def test_show_names_only_holders_that_were_reported() -> None:
    """Presence is the disks' word: a server that was counted on, but whose report is not here, is none."""
    catalog = Catalog()
    for server in (1, 2):
        catalog.add_server(server)
    catalog.hold(1, record("/a", 1), 0.0)
    catalog.show(record("/a", 1), [1, 2], 1.0)
    assert catalog.pages["/a"].holders == (1,)
