"""The catalog on LMDB: what it decides against a dict, its starts, what a crash leaves, and rebuilding it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dws.errors import ConfigError, Full, Refused, Stale
from dws.limits import EPOCH_BITS, RECORD_FORMAT
from dws.messages import Record, encode
from dws.names import page_key
from dws.nodes import catalog_store
from dws.nodes.catalog_store import CATALOG_NAME, LmdbCatalogStore, write_rebuilt
from dws.store import CatalogStore, Decision, KnownServer, RememberedBatch

ROOT = Path(__file__).resolve().parent.parent.parent
NOW = 1_000_000.0


class Clock:
    """A wall clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def record(name: str, version: int = 1) -> Record:
    return Record(name, version, b"b" * 16, 10, b"d" * 32, b"", "text/html", 1.5, RECORD_FORMAT)


def batch_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def decision(
    number: int,
    puts: list[Record] | None = None,
    removes: list[str] | None = None,
    *,
    batch: bytes = b"",
    forget_at: float = NOW + 600,
    server: KnownServer | None = None,
) -> Decision:
    return Decision(number, batch or batch_id(number), number, puts or [], removes or [], forget_at, server)


def loaded(store: LmdbCatalogStore) -> dict[str, Record]:
    records = list(store.load())
    by_name = {each.name: each for each in records}
    assert len(by_name) == len(records)
    return by_name


def count(store: LmdbCatalogStore, table: str) -> int:
    with store._environment.begin() as txn:
        return txn.stat(getattr(store._tables, table))["entries"]


Opener = Callable[..., LmdbCatalogStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opener(tmp_path: Path, clock: Clock) -> Iterator[Opener]:
    """Opens the test's catalog, having closed it if it is open."""
    opened: list[LmdbCatalogStore] = []

    def open_store(**options: Any) -> LmdbCatalogStore:
        while opened:
            opened.pop().close()
        opened.append(LmdbCatalogStore(tmp_path / "catalog", **({"wall_clock": clock} | options)))
        return opened[0]

    yield open_store
    while opened:
        opened.pop().close()


@pytest.fixture
def store(opener: Opener) -> LmdbCatalogStore:
    return opener()


# Starts


def test_each_opening_is_a_new_start(opener: Opener) -> None:
    fills = (b"\x11", b"\xff", b"\x22")
    heads = [opener(random_bytes=lambda size, fill=fill: fill * size).head for fill in fills]
    assert [head.epoch for head in heads] == [1, 2, 3]
    assert {head.cluster for head in heads} == {b"\x11" * 16}
    assert heads[1].nonce == (1 << 63) - 1
    assert [head.rebuilt for head in heads] == [False] * 3
    store = opener()
    for head in (*heads, store.head):
        assert store.knows_start(head.epoch, head.nonce)
        assert not store.knows_start(head.epoch, head.nonce ^ 1)
    assert not store.knows_start(store.head.epoch + 1, store.head.nonce)
    assert not store.knows_start(0, 0)


def test_a_second_opener_is_told_who_holds_the_directory(store: LmdbCatalogStore) -> None:
    for second in (
        lambda: LmdbCatalogStore(store.path),
        lambda: write_rebuilt(store.path, b"c" * 16, 9, [], []),
    ):
        with pytest.raises(Refused, match=re.escape(str(store.path)) + f".*process {os.getpid()}$"):
            second()


def test_epochs_end(tmp_path: Path) -> None:
    write_rebuilt(tmp_path, b"c" * 16, (1 << EPOCH_BITS) - 1, [], [])
    with pytest.raises(Refused, match="epochs are used up"):
        LmdbCatalogStore(tmp_path)


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot map"):
        LmdbCatalogStore(tmp_path, map_bytes=1 << 60)
    (tmp_path / CATALOG_NAME).write_bytes(b"not a catalog" * 1000)
    with pytest.raises(Refused, match="is not a store"):
        LmdbCatalogStore(tmp_path)


def test_a_catalog_of_a_later_format_is_refused(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(catalog_store, "FORMAT", 2)
        opener()
    with pytest.raises(Refused, match="format 2"):
        opener()


def test_it_keeps_the_contract_of_catalog_stores(store: LmdbCatalogStore) -> None:
    kept: CatalogStore = store
    assert list(kept.load()) == []


# Decisions


def test_decisions_last(opener: Opener) -> None:
    store = opener()
    server = KnownServer(3, b"s" * 16, "web-3")
    store.commit(
        [
            decision(1, [record("/a"), record("/b")]),
            decision(2, [record("/a", 2)], ["/b", "/none"]),
            decision(3, server=server),
        ],
        store.head.epoch,
    )
    for _ in range(2):
        assert loaded(store) == {"/a": record("/a", 2)}
        assert store.outcome(batch_id(1)) == RememberedBatch(1, NOW + 600)
        assert store.outcome(batch_id(9)) is None
        store = opener()
        assert (store.head.decision, store.head.servers) == (3, [server])


def test_the_decision_number_is_never_lowered(opener: Opener) -> None:
    store = opener()
    store.commit([decision(8)], store.head.epoch)
    store.commit([decision(7)], store.head.epoch)
    assert opener().head.decision == 8


def test_a_server_known_by_another_name_is_known_once(opener: Opener) -> None:
    store = opener()
    for number, name in ((1, "web-1"), (300, "web-300"), (1, "renamed")):
        store.commit([decision(1, server=KnownServer(number, b"s" * 16, name))], store.head.epoch)
    assert [(each.number, each.name) for each in opener().head.servers] == [(1, "renamed"), (300, "web-300")]


def test_a_drain_lasts_and_a_forgotten_servers_number_is_not_given_again(opener: Opener) -> None:
    store = opener()
    for number in (1, 2, 7):
        known = KnownServer(number, bytes([number]) * 16, f"web-{number}")
        store.commit([decision(number, server=known)], store.head.epoch)
    drained = KnownServer(1, b"\x01" * 16, "web-1", True)
    store.commit([decision(8, server=drained)], store.head.epoch)
    store.commit([Decision(9, bytes(16), 0, [], [], 0.0, None, 7)], store.head.epoch)
    for _ in range(2):
        store = opener()
        assert [(each.number, each.draining) for each in store.head.servers] == [(1, True), (2, False)]
        assert store.head.last_number == 7
        assert store.outcome(bytes(16)) is None, "what is no batch is not remembered as one"


def test_a_catalog_of_before_these_fields_is_read(opener: Opener) -> None:
    """Records without `copies`, servers without `draining`, no last number."""
    store = opener()
    with store._environment.begin(write=True) as txn:
        old = msgpack.packb(msgpack.unpackb(encode(record("/a")))[:-1])
        txn.put(page_key("/a"), old, db=store._tables.pages)
        known = {"number": 4, "server": b"s" * 16, "name": "web-4"}
        txn.put((4).to_bytes(8), msgpack.packb(known), db=store._tables.servers)
    store = opener()
    assert loaded(store) == {"/a": record("/a")}
    assert (store.head.servers, store.head.last_number) == ([KnownServer(4, b"s" * 16, "web-4")], 4)


def test_only_the_last_start_decides(opener: Opener) -> None:
    opener()
    store = opener()
    for epoch in (1, 3):
        with pytest.raises(Stale, match=f"epoch 2, so {epoch} decides nothing"):
            store.commit([decision(1, [record("/a")])], epoch)
    assert loaded(store) == {}
    assert store.outcome(batch_id(1)) is None
    store.commit([decision(1, [record("/a")])], 2)
    assert loaded(store) == {"/a": record("/a")}


def test_batches_are_forgotten_when_their_time_is_over(store: LmdbCatalogStore, clock: Clock) -> None:
    epoch = store.head.epoch
    store.commit([decision(n, forget_at=NOW + n + 0.5) for n in range(1, 11)], epoch)
    # Decided once more, as after a restart: the later time holds.
    store.commit([decision(3, forget_at=NOW + 50)], epoch)
    clock.now = NOW + 6.2
    remembered = [n for n in range(1, 11) if store.outcome(batch_id(n))]
    assert remembered == [3, 6, 7, 8, 9, 10]
    store.commit([decision(20), decision(21)], epoch)
    assert count(store, "batches") == 6 + 2
    clock.now = NOW + 100
    store.commit([decision(22), decision(23)], epoch)
    assert count(store, "batches") == count(store, "forget") == 4


def test_a_commit_forgets_a_bounded_number(store: LmdbCatalogStore, clock: Clock) -> None:
    epoch, factor = store.head.epoch, catalog_store.FORGET_FACTOR
    store.commit([decision(n, forget_at=NOW + 1) for n in range(1, 101)], epoch)
    clock.now = NOW + 10
    store.commit([decision(1000)], epoch)
    assert count(store, "batches") == 100 - factor + 1
    store.commit([], epoch)
    assert count(store, "batches") == 100 - factor + 1


def test_a_full_catalog_says_so_and_stands(opener: Opener) -> None:
    store = opener(map_bytes=512 << 10)
    epoch = store.head.epoch
    store.commit([decision(1, [record("/a")])], epoch)
    many = [record(f"/{number}/{'x' * 900}") for number in range(1000)]
    with pytest.raises(Full, match="no room for 1,001 entries"):
        store.commit([decision(2, [record("/a", 2)]), decision(3, many)], epoch)
    assert loaded(store) == {"/a": record("/a")}
    store.commit([decision(2, [record("/a", 2)])], epoch)
    assert loaded(store) == {"/a": record("/a", 2)}


def test_records_are_read_while_decisions_are_made(store: LmdbCatalogStore) -> None:
    store.commit([decision(1, [record(f"/{n}") for n in range(500)])], store.head.epoch)
    reading = store.load()
    first = next(reading)
    store.commit([decision(2, [], [f"/{n}" for n in range(500)])], store.head.epoch)
    assert len({first.name, *(each.name for each in reading)}) == 500
    assert loaded(store) == {}


PAGES = [f"/page/{number}" for number in range(5)]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.sets(st.sampled_from(PAGES)), st.sets(st.sampled_from(PAGES))),
        st.tuples(st.just("open"), st.none(), st.none()),
    ),
    max_size=12,
)


@given(groups=st.lists(steps, max_size=4))
@settings(max_examples=15, deadline=None)
def test_any_decisions_leave_what_a_dict_would_hold(
    groups: list[list[tuple[str, Any, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("catalog")
    store, expected, number, epoch = LmdbCatalogStore(path), dict[str, Record](), 0, 1
    for group in groups:
        decisions = []
        for kind, puts, removes in group:
            if kind == "open":
                store.commit(decisions, epoch)
                decisions, epoch = [], epoch + 1
                store.close()
                store = LmdbCatalogStore(path)
                assert (store.head.epoch, store.head.decision) == (epoch, number)
                continue
            number += 1
            gone = removes - puts
            decisions.append(decision(number, [record(name, number) for name in puts], sorted(gone)))
            expected |= {name: record(name, number) for name in puts}
            expected = {name: each for name, each in expected.items() if name not in gone}
        store.commit(decisions, epoch)
        assert loaded(store) == expected
    store.close()


# Crashes


WRITER = dedent("""
    # Makes decisions, each of two pages of one version and a removal, prints those that are durable; kills
    # itself after so many microseconds.
    import os, signal, sys, threading, time
    from pathlib import Path
    from dws.messages import Record
    from dws.nodes.catalog_store import LmdbCatalogStore
    from dws.store import Decision

    store = LmdbCatalogStore(Path(sys.argv[1]))

    def record(name, version):
        return Record(name, version, b"b" * 16, 10, b"d" * 32, b"", "x", 1.5, 1)

    def die():
        time.sleep(int(sys.argv[2]) / 1e6)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die, daemon=True).start()
    number = store.head.decision
    while True:
        made = []
        for _ in range(3):
            number += 1
            puts = [record("/left", number), record("/right", number), record(f"/only/{number}", number)]
            batch, gone = number.to_bytes(16, "big"), [f"/only/{number - 1}"]
            made.append(Decision(number, batch, number, puts, gone, 1e12))
        store.commit(made, store.head.epoch)
        os.write(1, b"%d\\n" % number)
""")


def test_a_killed_balancer_leaves_decisions_whole(tmp_path: Path) -> None:
    decided = 0
    for starts, delay_us in enumerate((2_000, 19_000, 40_000, 77_700), 1):
        command = [sys.executable, "-c", WRITER, tmp_path, str(delay_us)]
        child = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, timeout=60, check=False)
        assert child.returncode == -signal.SIGKILL, child.stderr
        acknowledged = [int(line) for line in child.stdout.split()]
        store = LmdbCatalogStore(tmp_path)
        assert store.head.epoch == 2 * starts
        last = store.head.decision
        assert last >= max(acknowledged, default=decided) and last % 3 == 0
        if last:
            assert loaded(store).keys() == {"/left", "/right", f"/only/{last}"}
            assert {each.version for each in store.load()} == {last}
            assert all(store.outcome(batch_id(number)) for number in range(1, last + 1))
        assert store.outcome(batch_id(last + 1)) is None
        decided = last
        store.close()
    assert decided > 10


# Rebuilding


SERVERS = [KnownServer(1, b"s" * 16, "web-1"), KnownServer(2, b"t" * 16, "web-2")]


def test_a_catalog_is_made_from_records_and_the_old_one_is_kept(opener: Opener, clock: Clock) -> None:
    store = opener()
    store.commit([decision(5, [record("/old")])], 1)
    path, first = store.path, store.head
    store.close()
    told = [(first.epoch, first.nonce), (4, 44)]
    records = [record(f"/{number}", number) for number in range(25_000)]
    kept = write_rebuilt(path, b"c" * 16, 1 << 20, SERVERS, iter(records), decision=70, starts=told)

    store = opener()
    assert store.head.epoch == (1 << 20) + 1
    assert (store.head.cluster, store.head.decision, store.head.servers) == (b"c" * 16, 70, SERVERS)
    assert loaded(store) == {each.name: each for each in records}
    assert all(store.knows_start(*start) for start in told)
    assert store.head.rebuilt
    assert store.outcome(batch_id(5)) is None
    assert opener().head.rebuilt

    # The old one can be looked into, in a place of its own.
    assert kept == path / f"{CATALOG_NAME}.before-rebuild-1"
    (path / "kept").mkdir()
    kept.rename(path / "kept" / CATALOG_NAME)
    old = LmdbCatalogStore(path / "kept", wall_clock=clock)
    assert (old.head.cluster, old.head.epoch, old.head.rebuilt) == (first.cluster, 2, False)
    assert loaded(old).keys() == {"/old"}
    old.close()


def test_rebuilds_keep_every_catalog_before_them(tmp_path: Path) -> None:
    made = [
        write_rebuilt(tmp_path / "new", b"c" * 16, epoch, [], [record(f"/{epoch}")]) for epoch in (5, 6, 7)
    ]
    name = tmp_path / "new" / f"{CATALOG_NAME}.before-rebuild"
    assert made == [None, name.with_name(f"{name.name}-1"), name.with_name(f"{name.name}-2")]
    store = LmdbCatalogStore(tmp_path / "new")
    assert loaded(store).keys() == {"/7"}
    store.close()


def test_a_rebuild_that_fails_leaves_the_old_catalog(opener: Opener) -> None:
    store = opener()
    store.commit([decision(1, [record("/old")])], 1)
    path, before = store.path, sorted(os.listdir(store.path))
    store.close()

    def broken() -> Iterator[Record]:
        yield record("/new")
        raise RuntimeError("the server went away")

    with pytest.raises(RuntimeError, match="went away"):
        write_rebuilt(path, b"c" * 16, 9, [], broken())
    many = (record(f"/{number}/{'x' * 900}") for number in range(1000))
    with pytest.raises(Full, match="no room to rebuild"):
        write_rebuilt(path, b"c" * 16, 9, [], many, map_bytes=512 << 10)
    assert sorted(os.listdir(path)) == before
    store = opener()
    assert (store.head.epoch, store.head.rebuilt) == (2, False)
    assert loaded(store).keys() == {"/old"}


@pytest.mark.parametrize("call", ["link", "rename"])
def test_a_rebuild_killed_on_its_last_steps_leaves_the_old_catalog(opener: Opener, call: str) -> None:
    """The process ends before the old catalog has its second name, or before the new one is renamed."""
    store = opener()
    store.commit([decision(1, [record("/old")])], 1)
    store.close()
    script = dedent(f"""
        import os, signal, sys
        from pathlib import Path
        from dws.nodes.catalog_store import write_rebuilt

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        if {call!r} == "link":
            os.link = die
        else:
            Path.rename = die
        write_rebuilt(Path(sys.argv[1]), b"c" * 16, 9, [], [])
    """)
    child = subprocess.run([sys.executable, "-c", script, store.path], cwd=ROOT, timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL
    store = opener()
    assert loaded(store).keys() == {"/old"}
    assert not store.head.rebuilt
    left = {name for name in os.listdir(store.path) if "rebuil" in name}
    assert left == set()
