"""Garbage: what is deleted, when, and what is spared.

On a whole balancer (desk.py). MINUTE is what the design calls a minute: `garbage_s`, shorter here.
"""

from random import Random

import pytest

from dws import garbage
from dws.config import Config
from dws.limits import BATCH_MAX_PAGES, COUNTER_BITS, REBUILD_EPOCH_STEP
from dws.messages import Drop, Record, Stat
from dws.names import make_version
from dws.sim.disks import CatalogDisk
from tests.dws.desk import HASTY, Desk, Figure, page, record

MINUTE = HASTY.garbage_s


@pytest.fixture
def desk() -> Desk:
    return Desk("web-1", "web-2", "web-3")


def drops(desk: Desk) -> dict[str, list[tuple[str, int]]]:
    """Server → what it was ordered to delete since the last look."""
    return {
        desk.figure(job.server).name: [(each.name, each.version) for each in job.message.records]
        for job in desk.take_jobs(Drop)
    }


def test_a_superseded_version_goes_a_minute_after_it_became_so(desk: Desk) -> None:
    old = desk.put(1, "/a", b"old", on=("web-1", "web-2"))
    desk.wait(3 * MINUTE)
    assert not drops(desk)
    new = desk.put(2, "/a", b"new", on=("web-2", "web-3"))
    desk.wait(MINUTE - 0.5)
    assert not drops(desk), "readers that were told of it may still be at it"
    desk.wait(0.7)
    assert drops(desk) == {"web-1": [("/a", old)], "web-2": [("/a", old)]}
    assert desk.version("/a") == new


def test_removed_and_abandoned_records_go_likewise(desk: Desk) -> None:
    removed = desk.put(1, "/a", on=("web-1", "web-2"))
    desk.remove(2, "/a")
    desk.fsync()
    abandoned = desk.reserve(3, page("/b"), deadline_s=1.0)
    desk.store_on(desk.figures["web-3"], record("/b", abandoned.version))
    desk.wait(1.2)
    assert desk.outcome(3).state == "never"
    desk.wait(MINUTE)
    assert drops(desk) == {
        "web-1": [("/a", removed)],
        "web-2": [("/a", removed)],
        "web-3": [("/b", abandoned.version)],
    }


def test_a_record_of_an_open_batch_is_spared_however_long_it_takes(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"), deadline_s=5 * MINUTE)
    desk.store_on(desk.figures["web-1"], record("/a", reserved.version))
    desk.wait(4 * MINUTE)
    assert not drops(desk)
    desk.store_on(desk.figures["web-2"], record("/a", reserved.version))
    desk.wait(0.5)
    assert not drops(desk), "nor while its decision is written"
    desk.fsync()
    desk.wait(2 * MINUTE)
    assert not drops(desk)


def test_a_drop_is_ordered_again_until_its_effect_is_reported(desk: Desk) -> None:
    old = desk.put(1, "/a", b"old", on=("web-1",))
    desk.put(2, "/a", b"new", on=("web-1",))
    desk.wait(MINUTE + 0.2)
    (first,) = desk.take_jobs(Drop)
    desk.wait(desk.config.job_reissue_s - 0.5)
    assert not desk.take_jobs()
    desk.wait(1.0)
    (again,) = desk.take_jobs(Drop)
    assert again.message.records == first.message.records and again.number > first.number
    desk.store_on(desk.figures["web-1"], drop=(("/a", old),))
    desk.wait(2 * desk.config.job_reissue_s)
    assert not desk.take_jobs() and not desk.balancer.orders.open_orders()


def test_a_drop_that_its_server_did_before_it_restarted_is_done_when_it_has_synced(desk: Desk) -> None:
    old = desk.put(1, "/a", b"old", on=("web-1",))
    desk.put(2, "/a", b"new", on=("web-1",))
    desk.wait(MINUTE + 0.2)
    assert drops(desk)
    figure = desk.figures["web-1"]
    desk.store_on(figure, drop=(("/a", old),), tell=False)
    desk.rejoin(figure)
    desk.wait(2 * desk.config.job_reissue_s)
    assert desk.balancer.orders.open_orders() == 0


def test_one_drop_at_a_time_for_each_server_of_at_most_a_batch(desk: Desk) -> None:
    figure = desk.figures["web-1"]
    strays = [record(f"/{number}", make_version(desk.epoch, 1)) for number in range(BATCH_MAX_PAGES + 5)]
    desk.store_on(figure, *strays)
    desk.wait(MINUTE + 0.5)
    (job,) = desk.take_jobs(Drop)
    assert len(job.message.records) == BATCH_MAX_PAGES
    desk.store_on(figure, drop=tuple((each.name, each.version) for each in job.message.records))
    desk.wait(0.2)
    (rest,) = desk.take_jobs(Drop)
    assert len(rest.message.records) == 5


def test_nothing_is_dropped_on_a_server_that_is_not_synced_or_dead(desk: Desk) -> None:
    desk.put(1, "/a", b"old", on=("web-1",))
    desk.put(2, "/a", b"new", on=("web-1",))
    desk.die(desk.figures["web-1"])
    desk.wait(2 * MINUTE)
    assert not drops(desk)
    figure = desk.figures["web-1"]
    desk.silent.clear()
    figure.restart()
    desk.hello(figure)
    desk.asks.clear()  # it does not answer what it holds
    desk.silent.add("web-1")
    desk.wait(0.5)
    assert not drops(desk)


def test_a_drop_names_the_start_and_the_decision_that_it_rests_on(desk: Desk) -> None:
    desk.put(1, "/a", b"old", on=("web-1",))
    desk.put(2, "/a", b"new", on=("web-1",))
    desk.wait(MINUTE + 0.2)
    (job,) = desk.take_jobs(Drop)
    assert job.message.start_nonce == desk.store.head.nonce
    assert job.message.decision == len(desk.store.decisions)


def test_after_a_restart_another_minute_passes(desk: Desk) -> None:
    """The balancer does not know since when a record is garbage: a reader may just have been told of it."""
    old = desk.put(1, "/a", b"old", on=("web-1",))
    desk.put(2, "/a", b"new", on=("web-1",))
    after = Desk(store=desk.store)
    figure = after.join("web-1", list(desk.figures["web-1"].held.values()), told=desk.figures["web-1"].told)
    after.wait(MINUTE - 0.5)
    assert not drops(after)
    after.wait(1.0)
    assert drops(after) == {figure.name: [("/a", old)]}


# -- on a catalog that was rebuilt -----------------------------------------------------


def rebuilt(visible: list[Record], config: Config = HASTY) -> tuple[Desk, int]:
    """A desk on a rebuilt catalog that names these records; and an epoch from before it."""
    store = CatalogDisk(Random(1))
    store.rebuilt = True
    store.epoch = REBUILD_EPOCH_STEP
    store.pages = {each.name: each for each in visible}
    return Desk(store=store, config=config), 7


def test_after_a_rebuild_a_record_that_is_named_nowhere_is_kept_and_reported() -> None:
    """Its holder was absent: it may be the only trace of its page."""
    desk, before = rebuilt([record("/named", make_version(7, 5))])
    held = [record("/unknown", make_version(before, 1)), record("/named", make_version(before, 9))]
    desk.join("web-1", held, told=(desk.store.cluster, before, 1, 0))
    desk.wait(2 * MINUTE)
    assert not drops(desk), "the second is of a higher version than the catalog names"
    (status,) = desk.balancer.report.status(desk.now).servers
    assert "2 records that no catalog" in status.note


def test_after_a_rebuild_what_is_superseded_goes_and_so_does_garbage_made_since() -> None:
    desk, before = rebuilt([record("/a", make_version(7, 5))])
    held = [record("/a", make_version(before, 5)), record("/a", make_version(before, 4))]
    desk.join("web-1", held, told=(desk.store.cluster, before, 1, 0))
    new = desk.put(1, "/a", b"new", on=("web-1",))
    newer = desk.put(2, "/a", b"newer", on=("web-1",))
    assert newer > new > 1 << COUNTER_BITS
    desk.wait(MINUTE + 1)
    (dropped,) = drops(desk).values()
    assert set(dropped) == {("/a", make_version(7, 4)), ("/a", make_version(7, 5)), ("/a", new)}


def test_many_records_that_are_spared_hide_none_that_is_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep looks at a bounded number of records; the next one goes on where it ended."""
    monkeypatch.setattr(garbage, "_SWEEP_MAX", 10)
    desk, before = rebuilt([record("/named", make_version(7, 5))])
    spared = [record(f"/spared-{number}", make_version(before, 1)) for number in range(35)]
    held = [*spared, record("/named", make_version(before, 4))]
    figure = desk.join("web-1", held, told=(desk.store.cluster, before, 1, 0))
    desk.wait(MINUTE + 2)
    assert drops(desk) == {"web-1": [("/named", make_version(7, 4))]}
    desk.store_on(figure, drop=(("/named", make_version(7, 4)),))
    desk.wait(2)
    assert desk.balancer.garbage.spared == {figure.no: 35}


# -- against the wrong picture ---------------------------------------------------------


def test_a_damaged_or_empty_manifest_never_causes_a_deletion(desk: Desk) -> None:
    """A server that seems to have lost its records is told nothing; the other's copy stays."""
    desk.put(1, "/a", on=("web-1", "web-2"))
    figure: Figure = desk.figures["web-1"]
    kept, figure.held = figure.held, {}
    desk.rejoin(figure)
    desk.wait(2 * MINUTE)
    assert not drops(desk)
    (stat,) = desk.get(Stat(["/a"])).pages
    assert [holder.name for holder in stat.holders] == ["web-2"]
    figure.held = kept
    desk.rejoin(figure)
    desk.wait(2 * MINUTE)
    assert not drops(desk)
    (stat,) = desk.get(Stat(["/a"])).pages
    assert [holder.name for holder in stat.holders] == ["web-1", "web-2"]
