"""The simulated disks: what a crash leaves, what rots, and that they answer as the real stores do."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from blake3 import blake3

from dws.errors import Full, Stale
from dws.limits import MANIFEST_BUCKETS, RECORD_FORMAT
from dws.messages import Dropped, Record
from dws.nodes.page_store import LmdbPageStore
from dws.sim.disks import CatalogDisk, PageDisk
from dws.store import (
    Blob,
    Decision,
    DiscardStaged,
    DropRecords,
    KnownServer,
    PageStoreOp,
    Remember,
    StoreBatch,
    WriteStaged,
)

EPOCH = 3
CLUSTER = b"c" * 16


def record(name: str, version: int, data: bytes) -> Record:
    return Record(name, version, b"b" * 16, len(data), blake3(data).digest(), b"", "", 0.0, RECORD_FORMAT)


def store(disk: Any, *pages: tuple[str, int, bytes], epoch: int = EPOCH) -> StoreBatch:
    blobs = [Blob(record(*page), page[2]) for page in pages]
    return StoreBatch(blobs, disk.identity.incarnation, epoch)


def drop(disk: Any, *records: tuple[str, int]) -> DropRecords:
    return DropRecords([Dropped(*each) for each in records], disk.identity.incarnation, EPOCH)


def followed(disk: Any) -> Any:
    assert not disk.commit([Remember(CLUSTER, EPOCH, 1, 0)])[0].code
    return disk


def page_disk(seed: int = 1, **options: Any) -> PageDisk:
    disk: PageDisk = followed(PageDisk(Random(seed), **options))
    return disk


# -- pages -----------------------------------------------------------------------------


def test_until_it_is_synced_nothing_can_be_read() -> None:
    disk = page_disk()
    disk.write([store(disk, ("/a", 1, b"one"))])
    assert disk.get("/a", 1) is None and disk.number == 0 and disk.usage()[0] == 0
    [result] = disk.sync()
    assert disk.get("/a", 1) == b"one" and result.change is not None and result.change.number == 1


def test_a_crash_in_a_commit_keeps_its_first_operations_whole_or_none_of_them() -> None:
    kept = set()
    for seed in range(60):
        disk = page_disk(seed)
        pages = [(f"/{number}", 1, b"x") for number in range(3)]
        disk.write([store(disk, page, (page[0] + "-too", 1, b"y")) for page in pages])
        disk.crash()
        disk.restart()
        found = [disk.get(name, 1) == b"x" and disk.get(f"{name}-too", 1) == b"y" for name, _, _ in pages]
        assert disk.usage()[0] == 2 * sum(found), "a batch is never torn"
        assert found == sorted(found, reverse=True), "the first are the ones that are kept"
        kept.add(sum(found))
        assert disk.sync() == []
    assert kept == {0, 1, 2, 3}


def test_staged_bytes_end_with_the_process_and_committed_ones_do_not() -> None:
    disk = page_disk()
    disk.commit([WriteStaged(1, 0, b"some"), store(disk, ("/a", 1, b"one"))])
    before = disk.identity
    disk.crash()
    disk.restart()
    assert not disk.staged and disk.get("/a", 1) == b"one"
    assert disk.identity.server == before.server and disk.identity.incarnation > before.incarnation
    late = StoreBatch([Blob(record("/b", 1, b"two"), b"two")], before.incarnation, EPOCH)
    assert disk.commit([late])[0].code == "stale"


def test_a_full_disk_refuses_and_keeps_no_trace() -> None:
    disk = page_disk(quota_bytes=5)
    assert [each.code for each in disk.commit([store(disk, ("/a", 1, b"12345"))])] == [""]
    assert disk.commit([store(disk, ("/b", 1, b"1"))])[0].code == "full"
    assert disk.commit([WriteStaged(1, 0, b"1")])[0].code == "full"
    assert disk.usage() == (1, 5, 0)
    assert not disk.commit([drop(disk, ("/a", 1))])[0].code and disk.usage() == (0, 0, 5)


def test_rot_changes_bytes_and_nothing_that_is_said_of_them() -> None:
    disk = page_disk()
    disk.commit([store(disk, ("/a", 1, b"one"), ("/empty", 1, b""))])
    before = disk.summary(), disk.record("/a", 1)
    disk.rot("/a", 1)
    disk.rot("/empty", 1)
    assert disk.get("/a", 1) != b"one" and len(disk.get("/a", 1) or b"") == 3
    assert disk.rotten == {("/a", 1)} and (disk.summary(), disk.record("/a", 1)) == before
    disk.commit([drop(disk, ("/a", 1))])
    assert not disk.rotten


def test_the_log_of_changes_reaches_back_so_far() -> None:
    disk = page_disk(log_max=2)
    for version in (1, 2, 3):
        disk.commit([store(disk, ("/a", version, b"x"))])
    assert disk.changes(0, 9) is None
    assert [change.number for change in disk.changes(1, 9) or []] == [2, 3]
    assert [change.number for change in disk.changes(1, 1) or []] == [2]
    assert disk.changes(3, 9) == []


def operations(rng: Random) -> Callable[[Any], list[PageStoreOp]]:
    """What one commit might be, for whichever store it is made."""
    kinds = rng.choices(["store", "drop", "stage", "staged", "discard", "stale"], [6, 4, 2, 2, 1, 1], k=3)
    names = [(f"/{rng.randrange(12)}", rng.randrange(1, 4)) for _ in range(9)]
    data = rng.randbytes(rng.choice([0, 1, 100]))

    def make(disk: Any) -> list[PageStoreOp]:
        ops: list[PageStoreOp] = []
        for number, kind in enumerate(kinds):
            some = names[3 * number : 3 * number + 3]
            if kind == "store":
                ops.append(store(disk, *((name, version, name.encode()) for name, version in set(some))))
            elif kind == "stale":
                ops.append(store(disk, (*some[0], b"stale"), epoch=EPOCH - 1))
            elif kind == "drop":
                ops.append(drop(disk, *sorted(set(some))))
            elif kind == "stage":
                ops.append(WriteStaged(number + 1, 0, data))
            elif kind == "staged":
                blob = Blob(record(*some[0], data), None, number + 1)
                ops.append(StoreBatch([blob], disk.identity.incarnation, EPOCH))
            else:
                ops.append(DiscardStaged([number + 1]))
        return ops

    return make


@pytest.mark.parametrize("number", range(8))
def test_it_answers_as_the_store_on_a_real_disk_does(number: int, seed: int, tmp_path: Path) -> None:
    rng = Random(f"{seed} {number}")
    simulated = page_disk(quota_bytes=2_000)
    real = followed(LmdbPageStore(tmp_path / "store", quota_bytes=2_000, map_bytes=1 << 26))
    try:
        for _ in range(60):
            make = operations(rng)
            answers = [disk.commit(make(disk)) for disk in (simulated, real)]
            plain = [[(each.code, each.change) for each in answer] for answer in answers]
            assert plain[0] == plain[1]
            assert simulated.summary() == real.summary() and simulated.number == real.number
            assert simulated.usage()[:2] == real.usage()[:2]
            bucket = rng.randrange(MANIFEST_BUCKETS)
            for name, version in list(simulated.held)[:5]:
                assert simulated.get(name, version) == real.get(name, version)
                assert simulated.read(name, version, 1, 2) == real.read(name, version, 1, 2)
                assert simulated.record(name, version) == real.record(name, version)
            for limit in (1, 2, 100):
                assert simulated.manifest(bucket, b"", limit) == real.manifest(bucket, b"", limit)
            since = max(0, simulated.number - 3)
            assert simulated.changes(since, 2) == real.changes(since, 2)
    finally:
        real.close()


# -- the catalog -----------------------------------------------------------------------


def decision(number: int, *names: str, removes: tuple[str, ...] = (), batch: bytes = b"") -> Decision:
    puts = [record(name, number, b"x") for name in names]
    return Decision(number, batch or bytes([number]) * 16, number, puts, list(removes), 50.0)


def catalog(seed: int = 1) -> CatalogDisk:
    disk = CatalogDisk(Random(seed), lambda: 10.0)
    disk.open()
    return disk


def test_a_crash_in_a_catalogs_commit_keeps_all_of_it_or_nothing() -> None:
    kept = set()
    for seed in range(20):
        disk = catalog(seed)
        disk.write([decision(1, "/a"), decision(2, "/b")], 1)
        assert not disk.pages
        durable = disk.crash()
        assert len(durable) == len(disk.pages) == disk.decision
        kept.add(len(durable))
        assert disk.open().decision == len(durable)
    assert kept == {0, 2}


def test_only_the_last_start_decides_and_a_full_disk_does_nothing() -> None:
    disk = catalog()
    disk.open()
    with pytest.raises(Stale):
        disk.commit([decision(1, "/a")], 1)
    disk.full = True
    with pytest.raises(Full):
        disk.commit([decision(1, "/a")], 2)
    disk.full = False
    disk.commit([decision(1, "/a"), decision(2, removes=("/a",))], 2)
    assert not disk.pages and disk.decision == 2
    assert disk.outcome(bytes([1]) * 16) is not None and disk.outcome(b"?" * 16) is None


def test_a_backup_is_a_catalog_of_its_own_that_lacks_what_came_later() -> None:
    disk = catalog()
    disk.commit([decision(1, "/a")], 1)
    backup = disk.backup()
    disk.commit([decision(2, "/b")], 1)
    head = disk.open()
    assert set(backup.pages) == {"/a"} and backup.decision == 1
    assert not backup.knows_start(head.epoch, head.nonce) and disk.knows_start(head.epoch, head.nonce)
    assert backup.open().nonce != head.nonce


def test_servers_are_known_changed_and_forgotten_and_no_number_is_given_twice() -> None:
    disk = catalog()
    for number, known, forget in [
        (1, KnownServer(1, b"1" * 16, "web-1"), 0),
        (2, KnownServer(2, b"2" * 16, "web-2"), 0),
        (3, KnownServer(1, b"1" * 16, "web-1", True), 0),
        (4, None, 2),
    ]:
        disk.commit([Decision(number, bytes(16), 0, [], [], 0.0, known, forget)], 1)
    head = disk.open()
    assert head.servers == [KnownServer(1, b"1" * 16, "web-1", True)] and head.last_number == 2
