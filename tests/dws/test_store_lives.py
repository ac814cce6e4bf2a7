"""Lives on a store directory: what is looked at after an unclean stop, and when a store is set aside.

Lives are objects here, their deaths are left out `end`s; the last words of an interpreter are the test's.
Real deaths are in tests/cluster/test_integrity.py.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import lmdb
import pytest

from dws.errors import Refused
from dws.limits import CHUNK_BYTES, INLINE_MAX_BYTES
from dws.nodes import store_walk
from dws.nodes.page_store import LmdbPageStore
from dws.nodes.page_tables import inline_key, record_key
from dws.nodes.store_lives import ASIDE_MAX, FAULTS_WITHIN_S, StoreLife
from dws.nodes.store_walk import Walked, WalkFailed, look, walk
from tests.dws.test_quarantine import page_file, put, spoil

GOOD = Walked(text="all is well")


class Lives:
    """Lives on one directory. walked: what looking through it finds; looks: how often that was done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.walked: Walked | BaseException = GOOD
        self.looks = 0

    def look(self, path: Path) -> Walked:
        assert path == self.path
        self.looks += 1
        if isinstance(self.walked, BaseException):
            raise self.walked
        return self.walked

    def begin(self) -> StoreLife:
        life = StoreLife(self.path, self.look)
        LmdbPageStore(self.path, quota_bytes=1 << 30, lock=life.lock).close()
        return life

    def die(self, life: StoreLife, *, fault_at: float | None = None) -> None:
        """Unclean; of a fault signal, if a time is given."""
        life.let_go()
        if fault_at is not None:
            (self.path / "faults.log").write_text("Fatal Python error: Segmentation fault\n", "utf-8")
            os.utime(self.path / "faults.log", (fault_at, fault_at))

    @property
    def aside(self) -> list[str]:
        return sorted(each.name for each in (self.path / "aside").glob("*"))


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    return Lives(tmp_path / "web-1")


# How the last life ended


def test_after_a_clean_stop_nobody_looks(lives: Lives) -> None:
    for _ in range(3):
        lives.begin().end()
    assert lives.looks == 0
    assert not (lives.path / "life.json").exists()


def test_after_an_unclean_stop_the_store_is_looked_through_and_kept(lives: Lives) -> None:
    for _ in range(10):
        lives.die(lives.begin())
    assert lives.looks == 9
    assert lives.aside == []


def test_a_life_keeps_the_directory_to_itself(lives: Lives) -> None:
    life = lives.begin()
    with pytest.raises(Refused, match=str(os.getpid())):
        StoreLife(lives.path, lives.look)
    life.end()
    lives.begin().end()


def test_a_marker_that_was_cut_off_is_an_unclean_stop(lives: Lives) -> None:
    lives.die(lives.begin())
    (lives.path / "life.json").write_text('{"pid', "utf-8")
    lives.begin().end()
    assert lives.looks == 1


def test_damaged_pages_are_handed_on(lives: Lives) -> None:
    lives.die(lives.begin())
    lives.walked = Walked(damaged=[("/a", 3)])
    assert lives.begin().lost == [("/a", 3)]
    assert lives.aside == []


# Setting aside


def test_a_store_that_does_not_pass_is_set_aside_and_the_next_one_is_empty(lives: Lives) -> None:
    life = lives.begin()
    store = LmdbPageStore(lives.path, quota_bytes=1 << 30, lock=life.lock)
    put(store, "/p", INLINE_MAX_BYTES + 1)
    old = store.identity.server
    store.close()
    lives.die(life)
    lives.walked = Walked("its records make no sense")
    life = lives.begin()
    assert "its records make no sense" in life.set_aside
    store = LmdbPageStore(lives.path, quota_bytes=1 << 30, lock=life.lock)
    assert store.identity.server != old
    assert store.usage()[0] == 0
    store.close()
    life.end()
    told = json.loads((lives.path / "aside" / "1" / "reason.json").read_text("utf-8"))
    assert "its records make no sense" in told["reason"]
    # Nothing of it was lost.
    kept = LmdbPageStore(lives.path / "aside" / "1", quota_bytes=1 << 30)
    assert (kept.identity.server, kept.usage()[0]) == (old, 1)
    assert kept.get("/p", 1) is not None
    kept.close()


@pytest.mark.parametrize("jump_s", [59.0, 7200.0, -7200.0])
def test_two_deaths_by_a_fault_within_a_minute_set_it_aside(lives: Lives, jump_s: float) -> None:
    """Whatever the wall clock says of them."""
    lives.die(lives.begin(), fault_at=10_000.0)
    lives.die(lives.begin(), fault_at=10_000.0 + jump_s)
    assert lives.aside == []
    life = lives.begin()
    assert "twice" in life.set_aside
    assert lives.aside == ["1"]
    lives.die(life, fault_at=10_061.0)
    lives.begin().end()
    assert lives.aside == ["1"], "the empty one has a life of its own"


def test_one_death_that_is_met_twice_is_one(lives: Lives) -> None:
    """A start that is killed between noting a death and deleting its log leaves both."""
    lives.die(lives.begin(), fault_at=1000.0)
    lives.die(lives.begin(), fault_at=1000.0)
    lives.begin().end()
    assert lives.aside == []


@pytest.mark.parametrize("between", ["a kill", "time", "a clean stop"])
def test_other_deaths_by_a_fault_do_not(lives: Lives, between: str) -> None:
    lives.die(lives.begin(), fault_at=1000.0)
    if between == "a kill":
        lives.die(lives.begin())
        lives.die(lives.begin())
    elif between == "a clean stop":
        lives.begin().end()
    life = lives.begin()
    if between == "time":
        life.tick(time.monotonic() + FAULTS_WITHIN_S + 1.0)
    # The wall clock may have been put back meanwhile.
    lives.die(life, fault_at=1010.0 if between != "time" else 990.0)
    lives.begin().end()
    assert lives.aside == []


def test_a_life_is_told_from_a_minute_by_no_wall_clock(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    lives.die(lives.begin(), fault_at=1000.0)
    life = lives.begin()
    life.tick(time.monotonic() + FAULTS_WITHIN_S - 5.0)
    lives.die(life, fault_at=5000.0)
    lives.begin().end()
    assert lives.aside == ["1"], "it was not a minute yet"


def test_a_life_that_cannot_note_that_it_lasted_lives_on(
    lives: Lives, caplog: pytest.LogCaptureFixture
) -> None:
    lives.die(lives.begin(), fault_at=1000.0)
    life = lives.begin()
    (lives.path / "life.json.new").mkdir()  # as good as a full disk
    life.tick(time.monotonic() + FAULTS_WITHIN_S + 1.0)
    assert "cannot note" in caplog.text
    (lives.path / "life.json.new").rmdir()
    life.end()


def test_a_look_that_tells_nothing_changes_nothing(lives: Lives) -> None:
    lives.die(lives.begin())
    lives.walked = WalkFailed("it was killed")
    for _ in range(3):
        with pytest.raises(WalkFailed):
            lives.begin()
    lives.walked = GOOD
    lives.begin().end()
    assert lives.aside == []


def test_page_files_without_a_record_store_are_not_deleted(lives: Lives) -> None:
    life = lives.begin()
    store = LmdbPageStore(lives.path, quota_bytes=1 << 30, lock=life.lock)
    put(store, "/p", INLINE_MAX_BYTES + 1)
    name = page_file(store, "/p").name
    store.close()
    life.end()
    (lives.path / "store.mdb").unlink()
    lives.begin().end()
    assert [each.name for each in (lives.path / "aside" / "1" / "pages").glob("*/*")] == [name]


def test_a_start_that_was_killed_while_it_set_a_store_aside_is_finished(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    for crash_after in range(20):
        lives.walked = GOOD
        life = lives.begin()
        store = LmdbPageStore(lives.path, quota_bytes=1 << 30, lock=life.lock)
        put(store, "/p", INLINE_MAX_BYTES + 1)
        store.close()
        lives.die(life)
        lives.walked = Walked("broken")
        done = 0

        def crashing(old: object, new: object, limit: int = crash_after) -> None:
            nonlocal done
            if done == limit:
                raise KeyboardInterrupt
            done += 1
            replace(old, new)  # type: ignore[call-overload]

        monkeypatch.setattr(os, "replace", crashing)
        try:
            lives.begin().end()
            crashed = False
        except KeyboardInterrupt:
            crashed = True
        monkeypatch.undo()
        lives.begin().end()
        newest = lives.path / "aside" / max(lives.aside, key=int)
        kept = LmdbPageStore(newest, quota_bytes=1 << 30)
        assert kept.get("/p", 1) is not None, f"after {crash_after} renames"
        kept.close()
        lives.walked = GOOD
        lives.begin().end()
        if not crashed:
            return
    raise AssertionError("it was never finished")


def test_stores_set_aside_are_bounded(lives: Lives) -> None:
    lives.walked = Walked("broken")
    for number in range(ASIDE_MAX):
        lives.die(lives.begin())
        assert len(lives.aside) == number
    lives.die(lives.begin())
    with pytest.raises(Refused, match="move them away"):
        lives.begin()


def test_a_balancers_directory_is_left_alone(lives: Lives) -> None:
    lives.path.mkdir()
    (lives.path / "catalog.mdb").touch()
    with pytest.raises(Refused, match="balancer"):
        StoreLife(lives.path, lives.look)
    assert not (lives.path / "life.json").exists()


# Looking


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of some pages, closed."""
    store = LmdbPageStore(tmp_path / "store", quota_bytes=1 << 30)
    for number in range(50):
        put(store, f"/small/{number}", 100 * number)
    put(store, "/file", INLINE_MAX_BYTES + 1)
    put(store, "/large", 2 * CHUNK_BYTES + 1)
    store.close()
    return tmp_path / "store"


def change(path: Path, table: str, key: bytes, value: bytes | None) -> None:
    with lmdb.open(str(path / "store.mdb"), subdir=False, map_size=1 << 30, max_dbs=8) as environment:
        handle = environment.open_db(table.encode(), create=False)
        with environment.begin(write=True, db=handle) as txn:
            if value is None:
                assert txn.delete(key)
            else:
                txn.put(key, value)


def test_a_good_store_passes(path: Path) -> None:
    walked = walk(path, 5.0)
    assert (walked.fault, walked.damaged) == ("", [])
    assert walked.text.startswith("52 of 52 records read, 2 files found, 52 of the latest")


def test_a_store_that_was_never_used_passes(tmp_path: Path) -> None:
    (tmp_path / "store.mdb").touch()
    assert look(tmp_path, 5.0).fault == ""
    lmdb.open(str(tmp_path / "store.mdb"), subdir=False, max_dbs=8).close()
    assert look(tmp_path, 5.0).fault == ""
    LmdbPageStore(tmp_path, quota_bytes=1).close()
    assert look(tmp_path, 5.0) == Walked(
        text="0 of 0 records read, 0 files found, 0 of the latest pages have their digests"
    )


KEY = record_key("/small/3", 1)


@pytest.mark.parametrize(
    ("spoil_it", "says"),
    [
        (lambda path: change(path, "records", KEY, b"junk"), "ValidationError"),
        (lambda path: change(path, "records", KEY, None), "not those that it has counted"),
        (lambda path: change(path, "inline", inline_key(KEY), None), "pages lack bytes"),
        (lambda path: change(path, "meta", b"state", b"\x00"), "Error"),
        (lambda path: change(path, "meta", b"identity", None), "whose it is"),
        (lambda path: (path / "store.mdb").write_bytes(b"x" * 40_000), "Error"),
    ],
    ids=["a record", "a record less", "bytes less", "state", "identity", "everything"],
)
def test_a_damaged_record_store_does_not_pass(
    path: Path, spoil_it: Callable[[Path], None], says: str
) -> None:
    spoil_it(path)
    assert says in walk(path, 5.0).fault


def test_single_pages_are_told_and_the_store_passes(path: Path) -> None:
    store = LmdbPageStore(path, quota_bytes=1 << 30)
    page_file(store, "/file").unlink()
    spoil(store, "/large", CHUNK_BYTES + 1)
    spoil(store, "/small/7", 1)
    store.close()
    walked = walk(path, 5.0)
    assert walked.fault == ""
    assert sorted(walked.damaged) == [("/file", 1), ("/large", 1), ("/small/7", 1)]


@pytest.mark.parametrize("left", [0.05, 0.3, 0.6, 0.9])
def test_a_file_cut_off_is_found_wherever_it_is_cut(path: Path, left: float) -> None:
    size = (path / "store.mdb").stat().st_size
    os.truncate(path / "store.mdb", int(size * left) // 4096 * 4096)
    walked = walk(path, 5.0)
    assert walked.fault or walked.damaged, walked


def test_time_that_is_over_ends_it_without_a_fault(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_walk._Look, "_is_late", lambda self: True)
    store = LmdbPageStore(path, quota_bytes=1 << 30)
    for number in range(1000):
        put(store, f"/more/{number}", 10)
    store.close()
    walked = look(path, 0.0)
    assert walked.fault == ""
    assert "no time for more" in walked.text


def test_a_store_of_another_format_is_not_set_aside(path: Path) -> None:
    change(path, "meta", b"format", b"3")
    with pytest.raises(WalkFailed):
        walk(path, 5.0)


DYING = dedent("""
    import os, signal, sys
    from pathlib import Path
    from dws.nodes.store_lives import StoreLife
    life = StoreLife(Path(sys.argv[1]), None)
    life.note_faults()
    os.kill(os.getpid(), int(sys.argv[2]))
""")


@pytest.mark.parametrize(
    ("number", "is_fault"), [(signal.SIGSEGV, True), (signal.SIGBUS, True), (signal.SIGKILL, False)]
)
def test_a_dying_process_leaves_word_of_a_fault(tmp_path: Path, number: int, is_fault: bool) -> None:
    command = [sys.executable, "-c", DYING, str(tmp_path), str(int(number))]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -number
    assert bool((tmp_path / "faults.log").stat().st_size) == is_fault


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM])
def test_only_a_disk_that_cannot_read_is_the_stores_fault(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(self: object) -> Walked:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store_walk._Look, "walk", fail)
    if number == errno.EIO:
        assert "the disk cannot read" in look(path, 5.0).fault
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            look(path, 5.0)
