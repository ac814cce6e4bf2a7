"""The page store on LMDB: what it holds against a dict, what it refuses, what a crash leaves.

A page's bytes follow from its name and version, so that any test can say what it should read.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from dws import limits, names
from dws.errors import ConfigError, OverBound, Refused
from dws.messages import Change, Dropped, Record
from dws.nodes import page_files, page_reader, page_store, page_tables, page_transaction
from dws.nodes.page_files import PageFiles
from dws.nodes.page_store import LmdbPageStore
from dws.nodes.store_directory import SyncFailed
from dws.store import (
    GOOD,
    Blob,
    DiscardStaged,
    DropRecords,
    OpResult,
    PageStore,
    PageStoreOp,
    Part,
    Remember,
    StoreBatch,
    WriteStaged,
)

INLINE, CHUNK = limits.INLINE_MAX_BYTES, limits.CHUNK_BYTES
SIZES = (0, 1, 300, 4096, INLINE, INLINE + 1, CHUNK, CHUNK + 1)
QUOTA = 1 << 30
EPOCH = 7
CLUSTER = b"c" * 16
ROOT = Path(__file__).resolve().parent.parent.parent


# What a page is


def content(name: str, version: int, size: int) -> bytes:
    seed = blake3(f"{name} {version}".encode())
    return seed.digest(size) if size else b""


def digests_of(data: bytes) -> bytes:
    if len(data) <= CHUNK:
        return b""
    return b"".join(blake3(data[at : at + CHUNK]).digest() for at in range(0, len(data), CHUNK))


def record_of(name: str, version: int, size: int) -> Record:
    data = content(name, version, size)
    joined = digests_of(data)
    list_digest = blake3(joined).digest() if joined else b""
    return Record(
        name,
        version,
        b"b" * 16,
        size,
        blake3(data).digest(),
        list_digest,
        "text/html",
        1.5,
        limits.RECORD_FORMAT,
    )


def blob(name: str, version: int, size: int, handle: int = 0) -> Blob:
    """A page to store: its bytes, or with a handle the staged file that has them."""
    data = content(name, version, size)
    return Blob(record_of(name, version, size), None if handle else data, handle, digests_of(data))


def staging(handle: int, data: bytes, piece: int = CHUNK) -> list[PageStoreOp]:
    return [WriteStaged(handle, at, data[at : at + piece]) for at in range(0, len(data), piece)]


def storing(store: LmdbPageStore, *blobs: Blob, decision: int = 0) -> StoreBatch:
    return StoreBatch(list(blobs), store.identity.incarnation, store.identity.start_epoch, decision)


def dropping(store: LmdbPageStore, *pages: tuple[str, int]) -> DropRecords:
    gone = [Dropped(name, version) for name, version in pages]
    return DropRecords(gone, store.identity.incarnation, store.identity.start_epoch)


def put(store: LmdbPageStore, name: str, version: int, size: int) -> OpResult:
    """Store one page, staged if it must be."""
    if size <= INLINE:
        return store.commit([storing(store, blob(name, version, size))])[0]
    writes = staging(99, content(name, version, size))
    return store.commit([*writes, storing(store, blob(name, version, size, 99))])[-1]


def codes(results: list[OpResult]) -> list[str]:
    return [result.code for result in results]


def verify(store: LmdbPageStore, name: str, version: int) -> bool:
    """Whether all of the page reads back with its digests."""
    return store.check([Part(name, version, 0, 1 << 16)]) == [GOOD]


def page_file_names(path: Path) -> set[str]:
    return {found.name for found in (path / "pages").glob("*/*")}


def file_name(name: str, version: int) -> str:
    return f"{names.page_key(name).hex()}-{version:016x}"


def page_file(store: LmdbPageStore, name: str, version: int) -> Path:
    return store.path / "pages" / f"{names.bucket_of(version):02x}" / file_name(name, version)


def brute_sums(records: list[Record]) -> list[int]:
    sums = [0] * limits.MANIFEST_BUCKETS
    for record in records:
        hashed = names.record_hash(names.page_key(record.name), record.version)
        sums[names.bucket_of(record.version)] += hashed
    return [each % (1 << 64) for each in sums]


def place(record: Record) -> tuple[int, int, bytes]:
    """Where a record lies among all."""
    return names.bucket_of(record.version), record.version, names.page_key(record.name)


def whole_manifest(store: LmdbPageStore, limit: int) -> list[Record]:
    found = []
    for bucket in range(limits.MANIFEST_BUCKETS):
        after = b""
        while True:
            records, after = store.manifest(bucket, after, limit)
            assert len(records) <= limit
            assert all(names.bucket_of(record.version) == bucket for record in records)
            found += records
            if not after:
                break
            assert len(after) == 24
    return found


Opener = Callable[..., LmdbPageStore]


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    """Opens the test's store, having closed it if it is open; told a start, unless `told` is false."""
    opened: list[LmdbPageStore] = []

    def open_store(*, told: bool = True, **options: Any) -> LmdbPageStore:
        while opened:
            opened.pop().close()
        store = LmdbPageStore(tmp_path / "store", **({"quota_bytes": QUOTA} | options))
        opened.append(store)
        if told:
            store.commit([Remember(CLUSTER, EPOCH, 5, 0)])
        return store

    yield open_store
    while opened:
        opened.pop().close()


@pytest.fixture
def store(opener: Opener) -> LmdbPageStore:
    return opener()


# Identity and opening


def test_identity_lasts_and_incarnation_rises(opener: Opener) -> None:
    store = opener(told=False, random_bytes=lambda count: b"\x11" * count)
    first = store.identity
    assert (first.server, first.cluster, first.decision) == (b"\x11" * 16, b"", 0)
    assert first.incarnation == 1 << 32 | 0x11111111
    assert codes(store.commit([Remember(CLUSTER, 3, 9, 40)])) == [""]

    second = opener(told=False, random_bytes=lambda count: b"\x22" * count).identity
    assert second.incarnation == 2 << 32 | 0x22222222
    assert second.server == first.server
    assert (second.cluster, second.start_epoch, second.start_nonce, second.decision) == (CLUSTER, 3, 9, 40)


def test_decision_number_is_never_lowered(opener: Opener) -> None:
    store = opener()
    store.commit([storing(store, blob("/a", 1, 1), decision=12)])
    assert store.identity.decision == 12
    store.commit([storing(store, blob("/b", 1, 1), decision=5), Remember(CLUSTER, EPOCH, 5, 11)])
    assert store.identity.decision == 12
    # Told with a batch that is held already, too.
    store.commit([storing(store, blob("/a", 1, 1), decision=13)])
    assert opener(told=False).identity.decision == 13


def test_a_second_opener_is_told_who_holds_the_directory(store: LmdbPageStore) -> None:
    with pytest.raises(Refused, match=re.escape(str(store.path)) + f".*process {os.getpid()}$"):
        LmdbPageStore(store.path, quota_bytes=QUOTA)
    store.close()
    LmdbPageStore(store.path, quota_bytes=QUOTA).close()


def test_an_impossible_map_is_a_config_error_and_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot map"):
        LmdbPageStore(tmp_path / "store", quota_bytes=QUOTA, map_bytes=1 << 60)
    LmdbPageStore(tmp_path / "store", quota_bytes=QUOTA).close()


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / page_store.STORE_NAME).write_bytes(b"not a store" * 1000)
    with pytest.raises(Refused, match="is not a store"):
        LmdbPageStore(tmp_path, quota_bytes=QUOTA)


def test_a_store_of_a_later_format_is_refused(opener: Opener) -> None:
    store = opener()
    with store._environment.begin(write=True, db=store._tables.meta) as txn:
        txn.put(b"format", b"3")
    with pytest.raises(Refused, match="format"):
        opener()


def test_it_keeps_the_contract_of_page_stores(store: LmdbPageStore) -> None:
    kept: PageStore = store
    assert kept.number == 0


# Reading


@pytest.mark.parametrize("size", [*SIZES, 2 * CHUNK + 5])
def test_a_page_reads_as_it_was_stored(opener: Opener, size: int) -> None:
    store = opener()
    result = put(store, "/page", 3, size)
    record, data = record_of("/page", 3, size), content("/page", 3, size)
    assert result == OpResult(Change(1, [record], []))
    for _ in range(2):
        assert store.get("/page", 3) == data
        assert store.record("/page", 3) == record
        assert store.digest_list("/page", 3) == digests_of(data)
        assert verify(store, "/page", 3)
        for offset in {0, 1, size // 2, CHUNK, max(0, size - 1), size, size + 1}:
            for length in (0, 1, CHUNK, size + 7):
                assert store.read("/page", 3, offset, length) == data[offset : offset + length]
        store = opener()


def test_what_is_not_held_is_none(store: LmdbPageStore) -> None:
    put(store, "/page", 3, 10)
    for name, version in (("/page", 2), ("/page", 4), ("/other", 3)):
        assert store.get(name, version) is None
        assert store.read(name, version, 0, 1) is None
        assert store.record(name, version) is None
        assert store.digest_list(name, version) is None
        assert not verify(store, name, version)


def test_versions_of_a_page_lie_side_by_side(store: LmdbPageStore) -> None:
    for version, size in ((1, 5), (2, INLINE + 1), (1 << 63, 7)):
        put(store, "/page", version, size)
    store.commit([dropping(store, ("/page", 1))])
    assert store.get("/page", 1) is None
    assert store.get("/page", 2) == content("/page", 2, INLINE + 1)
    assert store.get("/page", 1 << 63) == content("/page", 1 << 63, 7)


def test_pages_are_got_at_once_as_one_by_one_each_when_it_is_asked_for(store: LmdbPageStore) -> None:
    for version, size in enumerate((0, 7, INLINE, INLINE + 1, 3 * CHUNK), 1):
        put(store, "/page", version, size)
    wanted = [("/page", version) for version in (5, 1, 9, 4, 2, 3, 2)]
    assert list(store.get_each(wanted)) == [store.get(*each) for each in wanted]
    asked: list[int] = []

    def asking() -> Iterator[tuple[str, int]]:
        for version in (1, 2, 3):
            asked.append(version)
            yield "/page", version

    pages = store.get_each(asking())
    assert next(pages) == b""
    assert asked == [1], "what is not wanted is not read"


def test_get_has_a_bound(store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_reader, "GET_MAX_BYTES", CHUNK)
    put(store, "/page", 1, CHUNK + 1)
    with pytest.raises(OverBound, match="1,048,576"):
        store.get("/page", 1)
    assert store.read("/page", 1, 0, 3) == content("/page", 1, CHUNK + 1)[:3]


def test_reads_run_while_commits_do(store: LmdbPageStore) -> None:
    """What `number` counts can be read at once; large pages come and go under their readers."""
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            number = store.number
            if number:
                log = store.changes(number - 1, 1)
                if not log or log[0].number != number:
                    wrong.append(log)
            for version in (max(1, number - 1), number):
                data = store.get("/large", version)
                if data not in (None, content("/large", version, INLINE + 1)):
                    wrong.append(version)

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(1, 60, 2):
        writes = staging(1, content("/large", version, INLINE + 1))
        added = storing(store, blob("/small", version, 10), blob("/large", version, INLINE + 1, 1))
        store.commit([*writes, added])
        store.commit([dropping(store, ("/small", version), ("/large", version))])
    stop.set()
    reader.join()
    assert not wrong
    assert store.damaged == []


# Storing


def test_storing_what_is_held_changes_nothing(store: LmdbPageStore) -> None:
    put(store, "/page", 3, INLINE + 1)
    before = (store.number, store.summary()[1], store.usage()[:2])
    again = [*staging(5, content("/page", 3, INLINE + 1)), storing(store, blob("/page", 3, INLINE + 1, 5))]
    assert store.commit(again)[-1] == OpResult()
    # Nor does it matter that the staged file is not there any more.
    assert store.commit(again[-1:]) == [OpResult()]
    assert (store.number, store.summary()[1], store.usage()[:2]) == before
    assert os.listdir(store.path / "staging") == []


def test_a_batch_held_in_part_stores_the_rest(store: LmdbPageStore) -> None:
    put(store, "/a", 3, 1)
    [result] = store.commit([storing(store, blob("/a", 3, 1), blob("/b", 3, 2))])
    assert result.change == Change(2, [record_of("/b", 3, 2)], [])
    assert store.usage()[:2] == (2, 3)


def test_operations_of_one_commit_see_each_other(store: LmdbPageStore) -> None:
    small, large = blob("/s", 1, 9), blob("/l", 1, INLINE + 1, 2)
    ops = [
        *staging(1, content("/l", 1, INLINE + 1)),
        storing(store, small, blob("/l", 1, INLINE + 1, 1)),
        storing(store, small),
        dropping(store, ("/s", 1), ("/l", 1), ("/none", 1), ("/s", 1)),
        *staging(2, content("/l", 1, INLINE + 1)),
        storing(store, large),
        dropping(store, ("/none", 1)),
    ]
    changes = [result.change for result in store.commit(ops) if result.change]
    assert [(change.number, len(change.added), len(change.dropped)) for change in changes] == [
        (1, 2, 0),
        (2, 0, 2),
        (3, 1, 0),
    ]
    assert store.get("/s", 1) is None
    assert store.get("/l", 1) == content("/l", 1, INLINE + 1)
    assert page_file_names(store.path) == {file_name("/l", 1)}


@pytest.mark.parametrize("kind", ["incarnation", "epoch"])
def test_what_comes_from_a_time_that_has_passed_is_stale(store: LmdbPageStore, kind: str) -> None:
    put(store, "/held", 1, 1)
    late, drop = storing(store, blob("/late", 1, 1), decision=99), dropping(store, ("/held", 1))
    for op in (late, drop):
        setattr(op, kind, getattr(op, kind) - 1)
    results = store.commit([late, storing(store, blob("/now", 1, 1)), drop])
    assert codes(results) == ["stale", "", "stale"]
    assert kind in results[0].text and results[0].change is None
    assert store.record("/late", 1) is None
    assert store.record("/held", 1) and store.record("/now", 1)
    assert store.identity.decision == 0


def test_a_start_remembered_moves_the_fence_within_a_commit(store: LmdbPageStore) -> None:
    before, after = storing(store, blob("/a", 1, 1)), storing(store, blob("/b", 1, 1))
    after.epoch = EPOCH + 1
    late = storing(store, blob("/c", 1, 1))
    assert codes(store.commit([before, Remember(CLUSTER, EPOCH + 1, 6, 1), after, late])) == [
        "",
        "",
        "",
        "stale",
    ]


@pytest.mark.parametrize(
    ("spoil", "code", "text"),
    [
        (lambda b: setattr(b, "data", b"short"), "bad-request", "5 bytes for a record of 300"),
        (lambda b: setattr(b, "digest_list", b"x" * 32), "bad-request", "32 bytes of digests for 0 chunks"),
        (lambda b: (setattr(b, "data", None), setattr(b, "staged", 8)), "bad-request", "no staged file 8"),
        (lambda b: setattr(b.record, "size", INLINE + 1), "over-bound", "must be staged"),
    ],
)
def test_a_blob_at_odds_with_its_record_is_refused(
    store: LmdbPageStore, spoil: Callable[[Blob], object], code: str, text: str
) -> None:
    bad = blob("/bad", 1, 300)
    spoil(bad)
    good, mixed = storing(store, blob("/good", 1, 1)), storing(store, blob("/with", 1, 1), bad)
    results = store.commit([mixed, good])
    assert codes(results) == [code, ""]
    assert text in results[0].text
    assert store.record("/with", 1) is None
    assert store.usage()[:2] == (1, 1)


def test_bytes_come_as_any_buffer(store: LmdbPageStore) -> None:
    small, large = content("/s", 1, 300), content("/l", 1, INLINE + 1)
    view = Blob(record_of("/s", 1, 300), memoryview(small))
    ops = [WriteStaged(1, 0, memoryview(large)), storing(store, view, blob("/l", 1, INLINE + 1, 1))]
    assert codes(store.commit(ops)) == ["", ""]
    assert store.get("/s", 1) == small
    assert store.get("/l", 1) == large


# Staging


def test_staged_bytes_are_no_page_and_go_when_discarded(store: LmdbPageStore) -> None:
    assert codes(store.commit([*staging(4, b"x" * 1000, 300), DiscardStaged([4, 5])])) == [""] * 5
    assert os.listdir(store.path / "staging") == []
    assert codes(store.commit([storing(store, blob("/p", 1, 1000, 4))])) == ["bad-request"]


def test_staged_bytes_may_be_written_again_but_not_past_a_gap(store: LmdbPageStore) -> None:
    data = content("/p", 1, INLINE + 1)
    ops = [
        WriteStaged(1, 0, data[:100]),
        WriteStaged(1, 50, data[50:200]),
        WriteStaged(1, 201, b"gap"),
        WriteStaged(1, 0, data[:10]),
        WriteStaged(1, 200, data[200:]),
        WriteStaged(2, 1, b"gap"),
        storing(store, blob("/p", 1, INLINE + 1, 1)),
    ]
    results = store.commit(ops)
    assert codes(results) == ["", "", "bad-request", "", "", "bad-request", ""]
    assert "past the end" in results[2].text
    assert store.get("/p", 1) == data


def test_a_page_over_the_bound_is_not_staged(store: LmdbPageStore) -> None:
    assert codes(store.commit([WriteStaged(1, limits.PAGE_MAX_BYTES, b"x")])) == ["over-bound"]


def test_a_small_page_may_be_staged(store: LmdbPageStore) -> None:
    ops = [*staging(1, content("/p", 1, 300)), *staging(2, content("/q", 1, 0)), WriteStaged(2, 0, b"")]
    ops.append(storing(store, blob("/p", 1, 300, 1), blob("/q", 1, 0, 2)))
    assert codes(store.commit(ops)) == ["", "", ""]
    assert store.get("/p", 1) == content("/p", 1, 300)
    assert store.get("/q", 1) == b""
    assert page_file_names(store.path) == set()
    assert os.listdir(store.path / "staging") == []


def test_a_staged_file_is_stored_once(store: LmdbPageStore) -> None:
    same = content("/p", 1, INLINE + 1)
    twice = [Blob(record_of("/p", 1, INLINE + 1), None, 1), Blob(record_of("/p", 1, INLINE + 1), None, 1)]
    twice[1].record.name = "/q"
    assert codes(store.commit([*staging(1, same), storing(store, *twice)]))[-1] == "bad-request"
    assert codes(store.commit([storing(store, twice[0]), storing(store, twice[1])])) == ["", "bad-request"]
    assert store.get("/p", 1) == same


def test_a_handle_is_free_again_after_its_file_is_stored(store: LmdbPageStore) -> None:
    first, second = content("/p", 1, INLINE + 1), content("/q", 1, INLINE + 9)
    ops = [
        *staging(1, first),
        storing(store, blob("/p", 1, INLINE + 1, 1)),
        *staging(1, second),
        storing(store, blob("/q", 1, INLINE + 9, 1)),
        DiscardStaged([1]),
    ]
    assert codes(store.commit(ops)) == [""] * 5
    assert (store.get("/p", 1), store.get("/q", 1)) == (first, second)


def test_operations_on_records_share_a_transaction_across_staging(
    store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    class Counted(page_transaction.PageTransaction):
        def __init__(self, *arguments: Any) -> None:
            begun.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(page_store, "PageTransaction", Counted)
    ops: list[PageStoreOp] = []
    for number in range(1, 6):
        ops += [storing(store, blob(f"/{number}", 1, 10)), WriteStaged(number, 0, b"x")]
    assert codes(store.commit(ops)) == [""] * 10
    assert len(begun) == 1


def test_open_files_are_bounded(store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_files, "OPEN_FILES_MAX", 3)
    before = len(os.listdir("/proc/self/fd"))
    pages = [(f"/{number}", number) for number in range(1, 11)]
    parts = [
        (number, at, content(name, number, INLINE + 1)[at : at + 100_000])
        for at in range(0, INLINE + 1, 100_000)
        for name, number in pages
    ]
    store.commit([WriteStaged(*part) for part in parts])
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    blobs = [blob(name, number, INLINE + 1, number) for name, number in pages]
    assert codes(store.commit([storing(store, *blobs)])) == [""]
    for name, number in pages * 2:
        assert store.get(name, number) == content(name, number, INLINE + 1)
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    store.commit([dropping(store, *pages)])
    assert len(os.listdir("/proc/self/fd")) == before


def test_staged_bytes_are_synced_as_they_grow(store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), real(fd)))
    monkeypatch.setattr(page_files, "SYNC_EVERY_BYTES", 1000)
    store.commit(staging(1, b"x" * 5000, 400))
    assert len(synced) == 4


def test_a_file_deleted_under_a_reader_serves_it_to_the_end(tmp_path: Path) -> None:
    files = PageFiles(tmp_path / "pages")
    key = bytes(range(24))
    (tmp_path / "staged").write_bytes(b"all of it")
    files.add(key, tmp_path / "staged")
    opened = files._borrow(key)
    files.remove(key)
    assert os.pread(opened.descriptor, 9, 0) == b"all of it"
    files._give_back(opened)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened.descriptor)
    with pytest.raises(FileNotFoundError):
        files.read(key, 0, 1)
    files.close()


# Manifest, sums and changes


@pytest.mark.parametrize("limit", [1, 2, 7, 2000])
def test_the_manifest_comes_page_by_page(store: LmdbPageStore, limit: int) -> None:
    blobs = [blob(f"/page/{number}", version, 1) for number in range(300) for version in (1, 2)]
    store.commit([storing(store, *blobs)])
    records = [each.record for each in blobs]
    assert whole_manifest(store, limit) == sorted(records, key=place)
    assert store.summary()[1] == brute_sums(records)


def test_a_manifest_cursor_need_not_be_held_any_more(store: LmdbPageStore) -> None:
    first, second, third = (1 + rounds * limits.MANIFEST_BUCKETS for rounds in range(3))
    for version in (first, second, third):
        put(store, "/page", version, 1)
    _, after = store.manifest(1, b"", 2)
    store.commit([dropping(store, ("/page", second))])
    assert store.manifest(1, after, 2) == ([record_of("/page", third, 1)], b"")


def test_the_log_keeps_the_last_changes(opener: Opener) -> None:
    store = opener()
    most, step = page_transaction.LOG_MAX_CHANGES, page_transaction._FORGOTTEN_CHANGES
    assert store.changes(0, 10) == []
    results = store.commit([storing(store, blob("/p", version, 1)) for version in range(1, most + 1)])
    made = [result.change for result in results]
    assert store.changes(0, most) == made
    count, oldest = most, 0
    for more in (1, step - 1, 1, 30):
        versions = range(count + 1, count + more + 1)
        made += [r.change for r in store.commit([storing(store, blob("/p", each, 1)) for each in versions])]
        count += more
        if count - oldest > most:
            oldest = count - most + step
        assert store.changes(oldest, 2) == made[oldest : oldest + 2]
        assert store.changes(oldest - 1, 2) is None
    store = opener()
    assert store.number == count
    assert store.changes(count, 10) == []
    assert store.changes(count - 3, 10) == made[-3:]
    assert store.changes(oldest, 5000) == made[oldest:]
    assert store.changes(oldest - 1, 10) is None
    assert store.changes(count + 1, 10) is None


def test_the_log_is_bounded_in_bytes(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_transaction, "LOG_MAX_BYTES", 1000)
    store = opener()
    for version in range(1, 21):
        put(store, "/p", version, 1)
    reached = next(since for since in range(21) if store.changes(since, 1) is not None)
    assert 5 < reached < 19
    assert 800 < store._state.log_bytes <= 1000
    # One change alone may be over the bound.
    store.commit([storing(store, *(blob(f"/{number}", 30, 1) for number in range(20)))])
    assert store.changes(20, 9) == store.changes(20, 1)
    assert store.changes(19, 9) is None
    assert store._state.log_bytes > 1000


def test_changes_are_cut_to_what_fits_a_message(
    store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_reader, "CHANGES_MAX_BYTES", 200)
    for version in range(1, 11):
        put(store, "/p", version, 1)
    found = store.changes(4, 100)
    assert found is not None
    assert [change.number for change in found] == [5, 6]
    monkeypatch.setattr(page_reader, "CHANGES_MAX_BYTES", 1)
    assert [change.number for change in store.changes(4, 100) or []] == [5]


# Full


def test_a_quota_refuses_one_batch_and_takes_it_when_there_is_room(opener: Opener) -> None:
    store = opener(quota_bytes=1000)
    results = store.commit(
        [
            storing(store, blob("/a", 1, 600)),
            storing(store, blob("/b", 1, 300), blob("/c", 1, 300)),
            storing(store, blob("/d", 1, 400)),
        ]
    )
    assert codes(results) == ["", "full", ""]
    assert results[1].text == "600 bytes are needed, 400 are free under the quota"
    assert store.usage() == (2, 1000, 0)
    assert store.record("/b", 1) is None
    retry = storing(store, blob("/b", 1, 300), blob("/c", 1, 300))
    assert codes(store.commit([dropping(store, ("/a", 1)), retry])) == ["", ""]
    assert store.usage() == (3, 1000, 0)


def test_staged_bytes_count_against_the_quota(opener: Opener) -> None:
    size = INLINE + 1
    store = opener(quota_bytes=size + 100)
    staged = staging(1, content("/p", 1, size))
    results = store.commit([*staged, WriteStaged(2, 0, b"x" * 101), WriteStaged(3, 0, b"x" * 100)])
    assert codes(results) == ["", "full", ""]
    assert results[1].text == "101 bytes are needed, 100 are free under the quota"
    assert store.usage() == (0, 0, 0)
    # To store a staged page takes no more room than it has.
    assert codes(store.commit([storing(store, blob("/p", 1, size, 1)), DiscardStaged([3])])) == ["", ""]
    assert store.usage() == (1, size, 100)


def test_a_quota_lowered_below_what_is_held_refuses_and_still_drops(opener: Opener) -> None:
    put(opener(), "/a", 1, 500)
    store = opener(quota_bytes=100)
    assert store.usage() == (1, 500, 0)
    assert codes(store.commit([storing(store, blob("/b", 1, 0)), storing(store, blob("/c", 1, 1))])) == [
        "",
        "full",
    ]
    assert codes(store.commit([dropping(store, ("/a", 1)), storing(store, blob("/c", 1, 1))])) == ["", ""]


def test_a_full_map_refuses_what_is_too_large_and_its_neighbours_stand(opener: Opener) -> None:
    store = opener(map_bytes=1 << 20)
    many = [blob(f"/many/{number}", 1, 200_000) for number in range(10)]
    staged = staging(1, content("/l", 1, CHUNK + 1))
    refused = storing(store, *many, blob("/l", 1, CHUNK + 1, 1))
    results = store.commit(
        [*staged, storing(store, blob("/a", 1, 10)), refused, storing(store, blob("/b", 1, 20))]
    )
    assert codes(results[2:]) == ["", "full", ""]
    assert re.match(r"3,048,577 bytes are needed, [\d,]+ are free", results[3].text)
    assert store.usage()[:2] == (2, 30)
    assert store.summary()[1] == brute_sums([record_of("/a", 1, 10), record_of("/b", 1, 20)])
    # What was staged is staged still, and no page file of it is left.
    assert page_file_names(store.path) == set()
    assert codes(store.commit([storing(store, blob("/l", 1, CHUNK + 1, 1))])) == [""]
    assert store.get("/l", 1) == content("/l", 1, CHUNK + 1)


def test_a_full_map_takes_pages_again_when_some_are_dropped(opener: Opener) -> None:
    store = opener(map_bytes=4 << 20)
    held = []
    for number in range(100):
        if put(store, f"/{number}", 1, 100_000).code:
            break
        held.append((f"/{number}", 1))
    assert 10 < len(held) < 42
    # LMDB takes what a transaction freed again from the second transaction after it.
    for page in held[:5]:
        assert codes(store.commit([dropping(store, page)])) == [""]
    assert put(store, "/again", 1, 100_000).code == ""
    assert store.get(*held[5]) == content(*held[5], 100_000)


def test_the_last_of_the_disk_is_not_used(store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    free = page_store.DISK_RESERVE_BYTES
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    # Some free pages inside LMDB's file there always are.
    assert store.usage()[2] < 1 << 20
    results = store.commit([storing(store, blob("/a", 1, INLINE)), WriteStaged(1, 0, b"x")])
    assert codes(results) == ["full", "full"]
    assert all(result.text.endswith("on the disk") for result in results)
    free += 10 << 20
    assert codes(store.commit([storing(store, blob("/a", 1, INLINE)), WriteStaged(1, 0, b"x")])) == ["", ""]


def test_what_the_file_has_to_spare_counts_on_a_full_disk(
    store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"/{number}" for number in range(40)]
    assert codes(store.commit([storing(store, *(blob(name, 1, INLINE) for name in names))])) == [""]
    store.commit([dropping(store, *((name, 1) for name in names))])
    free = page_store.DISK_RESERVE_BYTES + page_store._PLENTY_BYTES
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    with monkeypatch.context() as patched:
        patched.delattr(LmdbPageStore, "_reusable")  # not asked for
        assert put(store, "/b", 1, 1).code == ""
    # One transaction writes what all its operations bring.
    asked = []
    with monkeypatch.context() as patched:
        patched.setattr(LmdbPageStore, "_reusable", lambda _: asked.append("asked") or 0)
        assert codes(store.commit([storing(store, blob(name, 1, 1)) for name in ("/c", "/d")])) == ["", ""]
    assert asked
    free = page_store.DISK_RESERVE_BYTES
    assert store.usage()[2] > 20 * INLINE
    assert put(store, "/a", 1, INLINE).code == ""
    assert codes(store.commit([storing(store, *(blob(name, 2, INLINE) for name in names))])) == ["full"]


def test_a_disk_that_fills_while_staging_refuses_and_goes_on(
    store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", no_room)
        [result] = store.commit([WriteStaged(1, 0, b"x")])
    assert result.code == "full" and "No space left" in result.text
    assert codes(store.commit([*staging(1, content("/p", 1, 9)), storing(store, blob("/p", 1, 9, 1))])) == [
        "",
        "",
    ]


# A disk that fails


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_failed_sync_ends_it(opener: Opener, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store = opener()

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    store.commit(staging(1, content("/p", 1, INLINE + 1)))
    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(SyncFailed, match="Input/output error"):
            store.commit([storing(store, blob("/p", 1, INLINE + 1, 1), blob("/q", 1, 1))])
    with pytest.raises(Refused, match="open the store again"):
        store.commit([storing(store, blob("/q", 1, 1))])
    assert store.record("/q", 1) is None
    store = opener()
    assert whole_manifest(store, 10) == []
    assert page_file_names(store.path) == set()
    assert put(store, "/q", 1, 1).code == ""


def test_a_failed_write_of_staged_bytes_ends_it(
    store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.commit([WriteStaged(1, 0, b"x")])
    with pytest.raises(Refused):
        store.commit([])


def test_a_write_that_the_system_breaks_off_ends_it_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    """A bound on file sizes stands in for a disk that fails in the middle of LMDB's write."""
    bounded = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({3 << 20}, {3 << 20}))\n{WRITER}"
    child = run_writer(tmp_path / "store", 0, [0], bounded)
    assert child.returncode == 1
    assert "lmdb.Error" in child.stderr and "Input/output error" in child.stderr
    check_after_crash(tmp_path / "store", [int(line) for line in child.stdout.split()])


# A crash


WRITER = dedent("""
    # Stores batches of small and large pages in a directory, prints those acknowledged; kills itself so
    # many microseconds after the first of them, if that is not 0.
    import os, signal, sys, threading, time
    from pathlib import Path
    from blake3 import blake3
    from dws.messages import Record
    from dws.nodes.page_store import LmdbPageStore
    from dws.store import Blob, DropRecords, Dropped, Remember, StoreBatch, WriteStaged

    store = LmdbPageStore(Path(sys.argv[1]), quota_bytes=1 << 34)
    store.commit([Remember(b"c" * 16, 1, 1, 0)])
    mine = (store.identity.incarnation, 1)
    start = 1 + max([int(line) for line in os.environ.get("DONE", "0").split()])

    def record(name, version, size):
        data = blake3(f"{name} {version}".encode()).digest(size)
        return Record(name, version, b"b" * 16, size, blake3(data).digest(), b"", "x", 1.5, 1), data

    begun = threading.Event()

    def die():
        begun.wait()
        time.sleep(int(sys.argv[2]) / 1e6)
        os.kill(os.getpid(), signal.SIGKILL)

    if sys.argv[2] != "0":
        threading.Thread(target=die, daemon=True).start()
    for version in range(start, start + 3000, 3):
        ops = []
        for v in range(version, version + 3):
            large, large_bytes = record("/large", v, 300_000)
            ops.append(WriteStaged(v, 0, large_bytes))
            small = [Blob(*record(f"/small/{n}", v, 2000)) for n in range(20)]
            ops.append(StoreBatch([*small, Blob(large, None, v)], *mine))
        if version > start + 9:
            gone = [Dropped("/large", version - 9), Dropped("/small/0", version - 9)]
            ops.append(DropRecords(gone, *mine))
        assert not any(result.code for result in store.commit(ops))
        os.write(1, b"%d\\n%d\\n%d\\n" % (version, version + 1, version + 2))
        begun.set()
""")


def run_writer(path: Path, delay_us: int, done: list[int], script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, path, str(delay_us)]
    environment = os.environ | {"DONE": " ".join(map(str, done))}
    return subprocess.run(
        command, capture_output=True, cwd=ROOT, env=environment, text=True, timeout=60, check=False
    )


def check_after_crash(path: Path, acknowledged: list[int]) -> list[int]:
    """Batches are whole or absent, those acknowledged are whole, and nothing else lies about."""
    store = LmdbPageStore(path, quota_bytes=1 << 34)
    records = whole_manifest(store, 500)
    by_version: dict[int, set[str]] = {}
    for record in records:
        by_version.setdefault(record.version, set()).add(record.name)
    whole = {"/large", *(f"/small/{n}" for n in range(20))}
    assert all(found in (whole, whole - {"/large", "/small/0"}) for found in by_version.values())
    assert by_version.keys() >= set(acknowledged)
    assert all(verify(store, record.name, record.version) for record in records)
    assert store.damaged == []
    large = {file_name("/large", version) for version, found in by_version.items() if "/large" in found}
    assert page_file_names(path) == large
    assert os.listdir(path / "staging") == []
    assert store.summary()[1] == brute_sums(records)
    assert store.usage()[:2] == (len(records), sum(record.size for record in records))
    log = store.changes(max(0, store.number - 500), 1000)
    assert log is not None and [change.number for change in log] == list(
        range(max(0, store.number - 500) + 1, store.number + 1)
    )
    store.close()
    return sorted(by_version)


def test_a_killed_writer_leaves_batches_whole_or_absent(tmp_path: Path) -> None:
    path, done = tmp_path / "store", [0]
    for delay_us in (3_000, 21_000, 47_000, 90_000, 133_700):
        child = run_writer(path, delay_us, done, WRITER)
        assert child.returncode == -signal.SIGKILL, child.stderr
        done = check_after_crash(path, [int(line) for line in child.stdout.split()]) or [0]
    assert len(done) > 10


def test_opening_deletes_leftovers(opener: Opener) -> None:
    store = opener()
    put(store, "/held", 1, INLINE + 1)
    store.commit(staging(3, b"staged"))
    beside, elsewhere = page_file(store, "/held", 1), page_file(store, "/gone", 2)
    assert beside.parent != elsewhere.parent
    for leftover in (beside.with_name(file_name("/held", 2)), beside.with_name("junk"), elsewhere):
        leftover.write_bytes(b"left over")
    store = opener()
    assert page_file_names(store.path) == {file_name("/held", 1)}
    assert os.listdir(store.path / "staging") == []
    assert store.get("/held", 1) == content("/held", 1, INLINE + 1)
    assert store.damaged == []


def test_a_record_without_its_file_is_reported(opener: Opener) -> None:
    store = opener()
    for name in ("/a", "/b"):
        put(store, name, 1, INLINE + 1)
    page_file(store, "/a", 1).unlink()
    store = opener()
    assert store.damaged == [Dropped("/a", 1)]
    assert store.record("/a", 1) is not None
    assert store.get("/a", 1) is None
    assert not verify(store, "/a", 1)
    assert verify(store, "/b", 1)
    assert codes(store.commit([dropping(store, ("/a", 1))])) == [""]
    assert opener().damaged == []


def test_a_file_cut_off_is_not_read_as_the_page(store: LmdbPageStore) -> None:
    put(store, "/a", 1, INLINE + 1)
    os.truncate(page_file(store, "/a", 1), 1000)
    assert store.read("/a", 1, 0, 500) == content("/a", 1, INLINE + 1)[:500]
    assert store.read("/a", 1, 900, 500) is None
    assert store.get("/a", 1) is None
    assert store.damaged == [Dropped("/a", 1)]
    assert not verify(store, "/a", 1)


@pytest.mark.parametrize("size", [300, INLINE + 1, CHUNK + 1])
def test_verify_finds_changed_bytes(store: LmdbPageStore, size: int) -> None:
    put(store, "/good", 1, size)
    put(store, "/bad", 1, size)
    if size <= INLINE:
        table, key = store._tables.inline, names.page_key("/bad")
        with store._environment.begin(write=True, db=table) as txn:
            txn.put((1).to_bytes(8, "big") + key, b"x" * size)
    else:
        with open(page_file(store, "/bad", 1), "r+b") as opened:
            opened.seek(size - 1)
            opened.write(bytes([content("/bad", 1, size)[-1] ^ 1]))
    assert verify(store, "/good", 1)
    assert not verify(store, "/bad", 1)


def test_verify_finds_a_changed_digest_list(store: LmdbPageStore) -> None:
    put(store, "/p", 1, CHUNK + 1)
    key = page_tables.record_key("/p", 1)
    with store._environment.begin(write=True, db=store._tables.lists) as txn:
        txn.put(key, b"x" * 64)
    assert not verify(store, "/p", 1)


# Against a dict


NAMES = [f"/page/{number}" for number in range(4)]
pages = st.tuples(st.sampled_from(NAMES), st.integers(1, 3))


def size_of(page: tuple[str, int]) -> int:
    return SIZES[(NAMES.index(page[0]) * 3 + page[1]) % len(SIZES)]


operations = st.one_of(
    st.tuples(st.just("store"), st.lists(pages, min_size=1, max_size=4, unique=True)),
    st.tuples(st.just("drop"), st.lists(pages, min_size=1, max_size=4)),
    st.tuples(st.just("stale"), st.lists(pages, min_size=1, max_size=2, unique=True)),
    st.tuples(st.just("remember"), st.integers(1, 3)),
    st.tuples(st.just("abandon"), pages),
)


class AgainstDict(RuleBasedStateMachine):
    """Any operations, many to a commit, and openings between them: the store holds what a dict holds."""

    @initialize()
    def begin(self) -> None:
        # pytest's tmp_path lives as long as the test, which is all examples.
        self.path = Path(os.environ["PAGE_STORE_MODEL"]) / os.urandom(8).hex()
        self.held: dict[tuple[str, int], Record] = {}
        self.log: list[Change] = []
        self.handle = 0
        self.told = (1, 0)
        self.store = LmdbPageStore(self.path, quota_bytes=QUOTA)
        self.store.commit([Remember(CLUSTER, 1, 5, 0)])

    @rule(wanted=st.lists(operations, min_size=1, max_size=6))
    def commit(self, wanted: list[tuple[str, Any]]) -> None:
        ops: list[PageStoreOp] = []
        expected: list[OpResult] = []
        for kind, argument in wanted:
            getattr(self, f"_{kind}")(argument, ops, expected)
        results = self.store.commit(ops)
        assert [OpResult(each.change, each.code) for each in results] == expected

    def _blobs(self, wanted: list[tuple[str, int]], ops: list[PageStoreOp]) -> list[Blob]:
        blobs = []
        for name, version in wanted:
            size = size_of((name, version))
            if size > INLINE:
                self.handle += 1
                ops += staging(self.handle, content(name, version, size))
            blobs.append(blob(name, version, size, self.handle if size > INLINE else 0))
        return blobs

    def _expect(self, ops: list[PageStoreOp], expected: list[OpResult], result: OpResult) -> None:
        expected += [OpResult()] * (len(ops) - len(expected) - 1)
        expected.append(result)

    def _change(self, added: list[Record], dropped: list[Dropped]) -> OpResult:
        if not added and not dropped:
            return OpResult()
        self.log.append(Change(len(self.log) + 1, added, dropped))
        return OpResult(self.log[-1])

    def _store(self, wanted: list[tuple[str, int]], ops: list[PageStoreOp], expected: list[OpResult]) -> None:
        blobs = self._blobs(wanted, ops)
        ops.append(StoreBatch(blobs, self.store.identity.incarnation, self.told[0]))
        added = [each.record for each in blobs if (each.record.name, each.record.version) not in self.held]
        self.held |= {(record.name, record.version): record for record in added}
        self._expect(ops, expected, self._change(added, []))

    def _drop(self, wanted: list[tuple[str, int]], ops: list[PageStoreOp], expected: list[OpResult]) -> None:
        ops.append(
            DropRecords([Dropped(*page) for page in wanted], self.store.identity.incarnation, self.told[0])
        )
        dropped = [Dropped(*page) for page in wanted if self.held.pop(page, None)]
        self._expect(ops, expected, self._change([], dropped))

    def _stale(self, wanted: list[tuple[str, int]], ops: list[PageStoreOp], expected: list[OpResult]) -> None:
        blobs = self._blobs(wanted, ops)
        ops.append(StoreBatch(blobs, self.store.identity.incarnation, self.told[0] + 1, 1000))
        self._expect(ops, expected, OpResult(code="stale"))
        ops.append(DiscardStaged([each.staged for each in blobs]))
        self._expect(ops, expected, OpResult())

    def _remember(self, epoch: int, ops: list[PageStoreOp], expected: list[OpResult]) -> None:
        decision = epoch * 10
        ops.append(Remember(CLUSTER, epoch, 5, decision))
        self.told = (epoch, max(self.told[1], decision))
        self._expect(ops, expected, OpResult())

    def _abandon(self, page: tuple[str, int], ops: list[PageStoreOp], expected: list[OpResult]) -> None:
        self.handle += 1
        ops += [WriteStaged(self.handle, 0, b"never stored"), DiscardStaged([self.handle])]
        self._expect(ops, expected, OpResult())

    @rule()
    def open_again(self) -> None:
        incarnation = self.store.identity.incarnation
        self.store.close()
        self.store = LmdbPageStore(self.path, quota_bytes=QUOTA)
        assert self.store.identity.incarnation >> 32 == (incarnation >> 32) + 1

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "store"):
            return
        store, records = self.store, list(self.held.values())
        assert store.number == len(self.log)
        assert store.changes(0, 5000) == self.log
        assert store.summary()[1] == brute_sums(records)
        size = sum(record.size for record in records)
        assert store.usage()[:2] == (len(records), size)
        assert QUOTA - size >= store.usage()[2]
        assert (store.identity.start_epoch, store.identity.decision) == self.told
        assert whole_manifest(store, 2) == sorted(records, key=place)
        for name in NAMES:
            for version in (1, 2, 3):
                record = self.held.get((name, version))
                data = content(name, version, record.size) if record else None
                assert store.get(name, version) == data
        large = {file_name(record.name, record.version) for record in records if record.size > INLINE}
        assert page_file_names(self.path) == large
        assert os.listdir(self.path / "staging") == []
        assert store.damaged == []

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_any_operations_leave_what_a_dict_would_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_STORE_MODEL", str(tmp_path))
    run_state_machine_as_test(
        AgainstDict, settings=settings(max_examples=12, stateful_step_count=10, deadline=None)
    )
