"""Damaged pages in the page store: how they are found, and what setting them aside does.

Bytes are changed where they lie, by other means than the store's own.
"""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from dws import names
from dws.limits import CHUNK_BYTES, INLINE_MAX_BYTES
from dws.messages import Dropped, Record
from dws.nodes import page_files
from dws.nodes.page_store import LmdbPageStore
from dws.nodes.quarantine import Quarantine
from dws.store import (
    GOOD,
    NOT_THERE,
    UNREADABLE,
    WRONG,
    Blob,
    Damaged,
    DropRecords,
    KeepPlace,
    OpResult,
    Part,
    SetAside,
    StoreBatch,
    WriteStaged,
)

SMALL, ONE_CHUNK, LARGE = 300, INLINE_MAX_BYTES + 1, 3 * CHUNK_BYTES + 7
WHOLE = 1 << 16


def content(name: str, size: int) -> bytes:
    return blake3(name.encode()).digest(size)


def digests_of(data: bytes) -> bytes:
    if len(data) <= CHUNK_BYTES:
        return b""
    return b"".join(blake3(data[at : at + CHUNK_BYTES]).digest() for at in range(0, len(data), CHUNK_BYTES))


def put(store: LmdbPageStore, name: str, size: int, version: int = 1) -> OpResult:
    data = content(name, size)
    digests = digests_of(data)
    list_digest = blake3(digests).digest() if digests else b""
    record = Record(name, version, b"b" * 16, size, blake3(data).digest(), list_digest, "text/html", 1.5, 1)
    identity = store.identity
    if size <= INLINE_MAX_BYTES:
        blob = Blob(record, data, 0, digests)
        return store.commit([StoreBatch([blob], identity.incarnation, identity.start_epoch)])[0]
    blob = Blob(record, None, 7, digests)
    writes = [WriteStaged(7, 0, data)]
    return store.commit([*writes, StoreBatch([blob], identity.incarnation, identity.start_epoch)])[-1]


def page_file(store: LmdbPageStore, name: str) -> Path:
    stem = f"{names.page_key(name).hex()}-{1:016x}"
    return store.path / "pages" / f"{names.bucket_of(1):02x}" / stem


def spoil(store: LmdbPageStore, name: str, at: int = 0) -> None:
    """Change one byte of the page where it lies."""
    file = page_file(store, name)
    if file.exists():
        with file.open("r+b") as opened:
            opened.seek(at)
            byte = opened.read(1)
            opened.seek(at)
            opened.write(bytes([byte[0] ^ 1]))
        return
    key = (1).to_bytes(8, "big") + names.page_key(name)
    with store._environment.begin(write=True, db=store._tables.inline) as txn:
        data = bytearray(txn.get(key) or b"")
        data[at] ^= 1
        txn.put(key, bytes(data))


def set_aside(store: LmdbPageStore, *names: str, chunk: int = 0) -> OpResult:
    return store.commit([SetAside([Damaged(name, 1, chunk, "a test says so") for name in names])])[0]


def usage(store: LmdbPageStore) -> tuple[int, int]:
    counters = store.quarantine.counters
    return counters["pages"], counters["bytes"]


def kept(store: LmdbPageStore) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Name → what was noted of it, and its bytes."""
    found = {}
    for path in (store.path / "quarantine").glob("*.json"):
        told = json.loads(path.read_text("utf-8"))
        page = path.with_suffix(".page")
        found[told["name"]] = (told, page.read_bytes() if page.exists() else b"")
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbPageStore]:
    store = LmdbPageStore(tmp_path / "store", quota_bytes=1 << 30)
    yield store
    store.close()


# Finding it


@pytest.mark.parametrize("size", [0, SMALL, ONE_CHUNK, LARGE])
def test_what_is_right_is_good(store: LmdbPageStore, size: int) -> None:
    put(store, "/p", size)
    assert store.check([Part("/p", 1, 0, WHOLE), Part("/p", 1, 0, 1)]) == [GOOD, GOOD]


@pytest.mark.parametrize(("size", "at"), [(SMALL, 0), (SMALL, SMALL - 1), (ONE_CHUNK, 5), (LARGE, LARGE - 1)])
def test_a_changed_byte_is_found(store: LmdbPageStore, size: int, at: int) -> None:
    put(store, "/p", size)
    put(store, "/other", size)
    spoil(store, "/p", at)
    assert store.check([Part("/p", 1, 0, WHOLE), Part("/other", 1, 0, WHOLE)]) == [WRONG, GOOD]


def test_chunks_are_checked_one_by_one(store: LmdbPageStore) -> None:
    put(store, "/p", LARGE)
    spoil(store, "/p", 2 * CHUNK_BYTES + 5)
    assert store.check([Part("/p", 1, chunk, 1) for chunk in range(4)]) == [GOOD, GOOD, WRONG, GOOD]
    assert store.check([Part("/p", 1, 0, 2), Part("/p", 1, 2, 2)]) == [GOOD, WRONG]


def test_a_file_gone_cut_off_or_too_long_is_wrong(store: LmdbPageStore) -> None:
    for name in ("/gone", "/short", "/long"):
        put(store, name, ONE_CHUNK)
    page_file(store, "/gone").unlink()
    os.truncate(page_file(store, "/short"), 1000)
    with page_file(store, "/long").open("ab") as opened:
        opened.write(b"x")
    assert store.check([Part(name, 1, 0, 1) for name in ("/gone", "/short", "/long")]) == [WRONG] * 3


def test_what_is_not_held_is_not_there(store: LmdbPageStore) -> None:
    put(store, "/p", SMALL)
    assert store.check([Part("/p", 2, 0, 1), Part("/other", 1, 0, 1)]) == [NOT_THERE, NOT_THERE]


def test_a_server_without_file_descriptors_finds_no_damage(
    store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or both copies of a good page could be set aside, where crowds of clients take all descriptors."""
    put(store, "/p", ONE_CHUNK)

    def fails(key: bytes) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(store._files, "size", fails)
    assert store.check([Part("/p", 1, 0, 1)]) == [NOT_THERE]
    set_aside(store, "/p")
    monkeypatch.undo()
    assert store.check([Part("/p", 1, 0, 1)]) == [GOOD]


def test_a_failed_read_is_no_damage(store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "/p", ONE_CHUNK)

    def fails(descriptor: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "the disk says no")

    monkeypatch.setattr(page_files.os, "pread", fails)
    assert store.check([Part("/p", 1, 0, 1)]) == [UNREADABLE]
    monkeypatch.undo()
    assert store.check([Part("/p", 1, 0, 1)]) == [GOOD]


def test_reading_back_opens_no_file_each_time(store: LmdbPageStore) -> None:
    store.read_back()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        store.read_back()
        store.check([Part("/p", 1, 0, 1)])
    assert len(os.listdir("/proc/self/fd")) == before


# Setting it aside


@pytest.mark.parametrize("size", [SMALL, ONE_CHUNK, LARGE])
def test_a_damaged_page_leaves_the_records_as_one_change(store: LmdbPageStore, size: int) -> None:
    put(store, "/p", size)
    put(store, "/good", size)
    spoil(store, "/p", 3)
    number, sums = store.summary()
    result = set_aside(store, "/p")
    assert result.change is not None
    assert result.change.number == number + 1
    assert result.change.dropped == [Dropped("/p", 1)]
    assert store.changes(number, 10) == [result.change]
    assert store.record("/p", 1) is None
    assert store.get("/p", 1) is None
    assert store.usage()[:2] == (1, size)
    key = names.page_key("/p")
    bucket = names.bucket_of(1)
    assert store.summary()[1][bucket] == (sums[bucket] - names.record_hash(key, 1)) % (1 << 64)
    assert not page_file(store, "/p").exists()
    wrong = bytearray(content("/p", size))
    wrong[3] ^= 1
    told, data = kept(store)["/p"]
    assert data == bytes(wrong)
    assert (told["reason"], told["version"], told["size"]) == ("a test says so", "0.1", size)
    assert usage(store) == (1, size)
    assert store.get("/good", 1) == content("/good", size)


@pytest.mark.parametrize("size", [SMALL, ONE_CHUNK, LARGE])
def test_a_page_whose_bytes_are_right_stays(store: LmdbPageStore, size: int) -> None:
    put(store, "/p", size)
    number = store.number
    assert set_aside(store, "/p", "/unknown") == OpResult()
    assert store.number == number
    assert store.get("/p", 1) == content("/p", size)
    assert kept(store) == {}


@pytest.mark.parametrize("size", [SMALL, ONE_CHUNK])
def test_the_same_version_can_be_stored_again(store: LmdbPageStore, size: int) -> None:
    put(store, "/p", size)
    assert store.get("/p", 1) is not None  # the file is open
    spoil(store, "/p")
    set_aside(store, "/p")
    put(store, "/p", size)
    assert store.get("/p", 1) == content("/p", size)
    assert store.check([Part("/p", 1, 0, 1)]) == [GOOD]
    # And be damaged again.
    spoil(store, "/p")
    assert set_aside(store, "/p").change is not None
    assert usage(store) == (1, size)


def test_one_commit_may_set_aside_and_store_again(store: LmdbPageStore) -> None:
    put(store, "/p", ONE_CHUNK)
    spoil(store, "/p")
    data = content("/p", ONE_CHUNK)
    record = store.record("/p", 1)
    assert record is not None
    blob = Blob(record, None, 8, b"")
    identity = store.identity
    batch = StoreBatch([blob], identity.incarnation, identity.start_epoch)
    ops = [SetAside([Damaged("/p", 1, 0, "")]), WriteStaged(8, 0, data), batch]
    assert [result.code for result in store.commit(ops)] == ["", "", ""]
    assert store.get("/p", 1) == data


def test_a_page_that_is_gone_is_set_aside_without_bytes(store: LmdbPageStore) -> None:
    put(store, "/p", ONE_CHUNK)
    page_file(store, "/p").unlink()
    assert set_aside(store, "/p").change is not None
    told, data = kept(store)["/p"]
    assert (told["name"], data) == ("/p", b"")


def test_what_is_set_aside_outlasts_an_opening(tmp_path: Path) -> None:
    store = LmdbPageStore(tmp_path, quota_bytes=1 << 30)
    for name in ("/a", "/b"):
        put(store, name, ONE_CHUNK)
        spoil(store, name)
    set_aside(store, "/a", "/b")
    store.close()
    store = LmdbPageStore(tmp_path, quota_bytes=1 << 30)
    assert usage(store) == (2, 2 * ONE_CHUNK)
    assert store.damaged == []
    assert set(kept(store)) == {"/a", "/b"}
    store.close()


def test_the_oldest_make_room_and_the_newest_stays(tmp_path: Path) -> None:
    store = LmdbPageStore(tmp_path, quota_bytes=1 << 30, set_aside_bytes=ONE_CHUNK)
    for name in ("/a", "/b", "/c"):
        put(store, name, ONE_CHUNK)
        spoil(store, name)
        set_aside(store, name)
    assert set(kept(store)) == {"/c"}
    assert usage(store) == (1, ONE_CHUNK)
    assert store.quarantine.counters["evicted"] == 2
    assert len(os.listdir(store.quarantine.directory)) == 2
    store.close()


def test_without_room_to_keep_its_bytes_the_page_stays(
    store: LmdbPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "/p", SMALL)
    spoil(store, "/p")

    def full(self: Quarantine, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Quarantine, "keep", full)
    assert set_aside(store, "/p").code == "full"
    assert store.record("/p", 1) is not None
    monkeypatch.undo()
    assert set_aside(store, "/p").change is not None


# The scrubber's place


def test_the_place_lasts_and_is_no_change(tmp_path: Path) -> None:
    store = LmdbPageStore(tmp_path, quota_bytes=1 << 30)
    assert store.place() == b""
    assert store.commit([KeepPlace(b"\x07place")]) == [OpResult()]
    assert (store.place(), store.number) == (b"\x07place", 0)
    store.close()
    store = LmdbPageStore(tmp_path, quota_bytes=1 << 30)
    assert store.place() == b"\x07place"
    store.close()


def test_a_drop_and_a_damaged_page_share_a_transaction(store: LmdbPageStore) -> None:
    for name in ("/a", "/b"):
        put(store, name, SMALL)
    spoil(store, "/b")
    identity = store.identity
    drop = DropRecords([Dropped("/a", 1)], identity.incarnation, identity.start_epoch)
    results = store.commit([drop, SetAside([Damaged("/a", 1, 0, ""), Damaged("/b", 1, 0, "")])])
    assert [result.change.dropped for result in results if result.change] == [
        [Dropped("/a", 1)],
        [Dropped("/b", 1)],
    ]
    assert store.usage()[0] == 0
    assert set(kept(store)) == {"/b"}
