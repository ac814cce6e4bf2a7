"""Placement: a batch from Reserve to what becomes of it, request by request.

The balancer is whole (desk.py), its servers are figures. The desk keeps what was handed to the writer
until the test says `fsync`, so each test chooses what happens before, during and after a write.
"""

import pytest
from msgspec.structs import replace

from dws.batch import CONFLICT, DECIDING, DOOMED, NEVER, OPEN, TRANSITIONS, VISIBLE
from dws.config import Config
from dws.limits import BATCH_MAX_BYTES, DIRECT_MAX_BYTES, GIB, PAGE_MAX_BYTES
from dws.messages import (
    ABSENT,
    Abort,
    Await,
    Copy,
    CopyFailed,
    Drop,
    Error,
    Outcome,
    PutPage,
    Remove,
    RemovePage,
    Reserve,
    Reserved,
    Status,
)
from dws.names import epoch_of
from tests.dws.desk import HASTY, Desk, Figure, Job, batch_id, page, record


@pytest.fixture
def desk() -> Desk:
    return Desk("web-1", "web-2", "web-3")


def primary_of(desk: Desk, reserved: Reserved) -> Figure:
    assert reserved.primary is not None
    return desk.figure(reserved.primary.number)


def staged(desk: Desk, number: int, name: str, data: bytes = b"bytes") -> tuple[Reserved, Figure, Job]:
    """A batch of one page, stored by its primary; and the Copy that its backup was ordered."""
    reserved = desk.reserve(number, page(name, data))
    primary = primary_of(desk, reserved)
    desk.take_jobs()
    desk.store_on(primary, record(name, reserved.version, data))
    (job,) = desk.take_jobs(Copy)
    return reserved, primary, job


def stored_twice(desk: Desk, number: int, name: str, data: bytes = b"bytes") -> int:
    """A batch that two servers have: its decision is handed to the writer, and not yet on disk."""
    reserved, _, job = staged(desk, number, name, data)
    desk.store_on(desk.figure(job.server), record(name, reserved.version, data))
    return reserved.version


# -- Reserve ---------------------------------------------------------------------------


def test_reserve_chooses_a_version_of_this_epoch_and_a_live_primary(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"), deadline_s=7.0)
    assert (epoch_of(reserved.version), reserved.epoch) == (desk.epoch, desk.epoch)
    assert primary_of(desk, reserved).name in desk.figures
    assert (reserved.skip, reserved.deadline_s) == ([], 7.0)


def test_reserve_sent_twice_is_one_batch(desk: Desk) -> None:
    first = desk.reserve(1, page("/a"))
    again = desk.reserve(1, page("/a"))
    assert (again.version, again.primary) == (first.version, first.primary)
    assert desk.reserve(2, page("/a")).version != first.version
    assert len(desk.balancer.placement.open_batches) == 2


def test_reserve_after_the_decision_says_the_same_version(desk: Desk) -> None:
    version = stored_twice(desk, 1, "/a")
    desk.fsync()
    again = desk.reserve(1, page("/a"))
    assert (again.version, again.primary, again.skip) == (version, None, [0])


def test_reserve_of_an_earlier_epoch_is_refused(desk: Desk) -> None:
    request = Reserve(batch_id(1), desk.epoch - 1, [page("/a")], 2, 30.0)
    assert desk.get(request).code == "stale"
    assert len(desk.balancer.placement.open_batches) == 0


@pytest.mark.parametrize(
    ("pages", "code"),
    [
        ([page("a")], "bad-name"),
        ([page("/_dws/x")], "bad-name"),
        ([page("/a"), page("/a")], "bad-request"),
        ([page("/a"), page("/b", known=False)], "bad-request"),
        ([PutPage("/a", 1, b"short")], "bad-request"),
        ([PutPage("/a", BATCH_MAX_BYTES, b""), PutPage("/b", 1, b"")], "over-bound"),
    ],
)
def test_a_faulty_reserve_is_refused(desk: Desk, pages: list[PutPage], code: str) -> None:
    assert desk.reserve(1, *pages).code == code
    assert len(desk.balancer.placement.open_batches) == 0


def test_one_page_may_be_larger_than_a_batch() -> None:
    desk = Desk("web-1")
    desk.join("web-2", bytes_free=2 * PAGE_MAX_BYTES)
    assert isinstance(desk.reserve(1, PutPage("/a", BATCH_MAX_BYTES + 1, b""), copies=1), Reserved)


def test_the_bound_of_open_batches_is_told_with_a_time_to_come_again() -> None:
    desk = Desk("web-1", "web-2", config=Config(open_batches_max=2))
    desk.reserve(1, page("/a"))
    desk.reserve(2, page("/b"))
    refused = desk.reserve(3, page("/c"))
    assert refused.code == "try-again" and refused.retry_s > 0
    assert isinstance(desk.reserve(1, page("/a")), Reserved), "one that is open already is no further one"


# -- whom to store it on ---------------------------------------------------------------


def test_too_few_servers_is_a_clear_error(desk: Desk) -> None:
    desk.die(desk.figures["web-1"])
    desk.die(desk.figures["web-2"])
    refused = desk.reserve(1, page("/a"))
    assert refused.code == "too-few-servers" and "there are 1" in refused.text
    assert isinstance(desk.reserve(2, page("/a"), copies=1), Reserved)


def test_servers_that_are_still_to_sync_are_waited_for(desk: Desk) -> None:
    desk.die(desk.figures["web-1"])
    figure = desk.figures["web-2"]
    figure.restart()
    desk.hello(figure)
    refused = desk.reserve(1, page("/a"))
    assert refused.code == "try-again" and refused.retry_s > 0
    desk.answer_asks()
    desk.beat(figure)
    assert isinstance(desk.reserve(1, page("/a")), Reserved)


def test_full_servers_are_named_so_and_what_is_stored_stays_readable() -> None:
    desk = Desk()
    for name in ("web-1", "web-2"):
        desk.join(name, bytes_free=1000)
    desk.put(1, "/a", b"x" * 400, on=("web-1", "web-2"))
    refused = desk.reserve(2, PutPage("/b", 5000, b""))
    assert refused.code == "full" and "5,000 bytes" in refused.text
    assert desk.version("/a")


def test_a_page_that_is_held_already_is_skipped(desk: Desk) -> None:
    version = desk.put(1, "/a", b"same", on=("web-1", "web-2"))
    reserved = desk.reserve(2, page("/a", b"same"), page("/b", b"new"))
    assert reserved.skip == [0]
    assert desk.reserve(3, page("/a", b"other")).skip == []
    assert desk.reserve(4, page("/a", b"same"), copies=3).skip == [], "three were asked for, there are two"
    assert desk.reserve(5, page("/a", b"same", content_type="text/css")).skip == []
    assert desk.version("/a") == version


def test_a_batch_of_nothing_new_is_decided_without_a_server(desk: Desk) -> None:
    version = desk.put(1, "/a", b"same", on=("web-1", "web-2"))
    reserved = desk.reserve(2, page("/a", b"same"))
    assert reserved.primary is None and reserved.skip == [0]
    waiting = desk.await_(2)
    assert waiting not in desk.answers
    desk.fsync()
    assert desk.answers[waiting].state == "visible"
    assert desk.version("/a") == version, "it keeps the version it has"


def test_a_copy_on_a_dead_server_is_no_reason_to_skip(desk: Desk) -> None:
    desk.put(1, "/a", b"same", on=("web-1", "web-2"))
    desk.die(desk.figures["web-2"])
    assert desk.reserve(2, page("/a", b"same")).skip == []


# -- copies and the decision -----------------------------------------------------------


def test_a_batch_is_visible_when_two_have_stored_it_and_its_decision_is_on_disk(desk: Desk) -> None:
    reserved, primary, job = staged(desk, 1, "/a")
    assert job.server != primary.no
    assert job.message.source.number == primary.no
    assert job.message.records == [record("/a", reserved.version)]
    assert not desk.handed, "one copy decides nothing"
    desk.store_on(desk.figure(job.server), record("/a", reserved.version))
    assert [each.number for each in desk.handed] == [desk.store.decisions[-1].number + 1]
    assert desk.version("/a") == 0, "before its fsync it does not exist"
    desk.fsync()
    assert desk.version("/a") == reserved.version
    assert set(desk.balancer.catalog.pages["/a"].holders) == {primary.no, job.server}


def test_all_names_of_a_batch_appear_at_once(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"), page("/b"), copies=1)
    primary = primary_of(desk, reserved)
    desk.store_on(primary, record("/a", reserved.version))
    assert not desk.handed, "half of a batch is no copy of it"
    desk.store_on(primary, record("/b", reserved.version))
    desk.fsync()
    assert desk.version("/a") == desk.version("/b") == reserved.version


def test_a_record_of_another_batch_is_no_copy(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"), copies=1)
    desk.store_on(
        primary_of(desk, reserved), record("/b", reserved.version), record("/a", reserved.version + 99)
    )
    assert not desk.handed


def test_await_tells_of_each_copy_and_then_of_the_decision(desk: Desk) -> None:
    first = desk.reserve(1, page("/a"))
    primary = primary_of(desk, first)
    token = desk.await_(1, seen=0)
    desk.store_on(primary, record("/a", first.version))
    assert (desk.answers[token].state, desk.answers[token].stored) == ("open", 1)
    token = desk.await_(1, seen=1)
    assert token not in desk.answers
    (job,) = desk.take_jobs(Copy)
    desk.store_on(desk.figure(job.server), record("/a", first.version))
    assert (desk.answers[token].state, desk.answers[token].stored) == ("open", 2)
    token = desk.await_(1, seen=2)
    assert token not in desk.answers, "two copies, but the decision is not on disk"
    desk.fsync()
    assert (desk.answers[token].state, desk.answers[token].stored) == ("visible", 2)


def test_await_is_answered_at_the_end_of_its_patience(desk: Desk) -> None:
    desk.reserve(1, page("/a"))
    token = desk.await_(1, patience_s=1.0)
    desk.wait(0.9)
    assert token not in desk.answers
    desk.wait(0.2)
    assert desk.answers[token] == Outcome("open", desk.reserve(1, page("/a")).version, 0, 2)


def direct(desk: Desk) -> tuple[Reserved, Figure, Figure]:
    """A small batch that its client is to bring to both: what was reserved, primary, backup."""
    reserved = desk.reserve(1, page("/a"), direct=True)
    (backup,) = reserved.backups
    return reserved, primary_of(desk, reserved), desk.figure(backup.number)


def test_no_copy_is_ordered_of_a_small_batch_that_its_client_brings_to_all(desk: Desk) -> None:
    reserved, primary, backup = direct(desk)
    assert backup is not primary and reserved.backups[0].incarnation == backup.incarnation
    desk.store_on(backup, record("/a", reserved.version))
    assert not desk.take_jobs(Copy), "the primary may come second"
    desk.store_on(primary, record("/a", reserved.version))
    desk.fsync()
    assert desk.version("/a") == reserved.version and not desk.take_jobs(Copy)


def test_who_was_not_brought_a_small_batch_copies_it_after_a_while(desk: Desk) -> None:
    reserved, primary, backup = direct(desk)
    desk.store_on(primary, record("/a", reserved.version))
    desk.wait(0.8)
    assert not desk.take_jobs(Copy)
    desk.wait(0.4)
    (job,) = desk.take_jobs(Copy)
    assert (job.server, job.message.source.number) == (backup.no, primary.no)


def test_for_a_backup_that_dies_before_it_was_brought_a_small_batch_another_copies_it(desk: Desk) -> None:
    reserved, primary, backup = direct(desk)
    desk.store_on(primary, record("/a", reserved.version))
    desk.die(backup)
    (job,) = desk.take_jobs(Copy)
    assert job.server not in (primary.no, backup.no)


def test_who_has_it_is_the_primary_where_the_first_one_refuses_it(desk: Desk) -> None:
    """Its disk is full, say: the client is sent to one that answers at once, and a third one stores it."""
    reserved, primary, backup = direct(desk)
    (third,) = [each for each in desk.figures.values() if each not in (primary, backup)]
    desk.store_on(backup, record("/a", reserved.version))
    again = desk.reserve(1, page("/a"), direct=True, avoid=(primary.no,))
    assert again.version == reserved.version and primary_of(desk, again) is backup
    assert [each.number for each in again.backups] == [third.no]
    desk.store_on(third, record("/a", reserved.version))
    desk.fsync()
    assert desk.version("/a") == reserved.version


def test_who_is_to_be_avoided_is_no_backup_either(desk: Desk) -> None:
    _, primary, _ = direct(desk)
    again = desk.reserve(1, page("/a"), direct=True, avoid=(primary.no,))
    assert primary.no not in (again.primary.number, *(each.number for each in again.backups))


def test_who_has_it_is_the_primary_though_there_is_no_third_one() -> None:
    desk = Desk("web-1", "web-2")
    reserved, primary, backup = direct(desk)
    desk.store_on(backup, record("/a", reserved.version))
    assert primary_of(desk, reserved) is primary
    again = desk.reserve(1, page("/a"), direct=True, avoid=(primary.no,))
    assert primary_of(desk, again) is backup


def test_a_copy_is_taken_from_a_holder_that_is_sure() -> None:
    desk = Desk("web-1", "web-2", "web-3", "web-4")
    reserved = desk.reserve(1, page("/a"), copies=3, direct=True)
    first, second = primary_of(desk, reserved), desk.figure(reserved.backups[0].number)
    for figure in (first, second):
        desk.store_on(figure, record("/a", reserved.version))
    fall_silent(desk, first)
    desk.wait(1.0)
    jobs = desk.take_jobs(Copy)
    assert jobs and all(job.message.source.number == second.no for job in jobs)


def test_records_of_one_version_that_say_different_things_are_no_copies(desk: Desk) -> None:
    reserved, primary, backup = direct(desk)
    told = record("/a", reserved.version)
    desk.store_on(primary, told)
    desk.store_on(backup, replace(told, content_type="text/html"))
    desk.fsync()
    assert desk.version("/a") == 0
    assert "copies of /a differ" in desk.reserve(1, page("/a")).text


@pytest.mark.parametrize(
    "pages",
    [
        [PutPage("/a", DIRECT_MAX_BYTES + 1, b"")],
        [PutPage("/a", DIRECT_MAX_BYTES, b""), PutPage("/b", 1, b"")],
        [page("/a", known=False)],
    ],
)
def test_of_a_larger_batch_or_one_of_unknown_size_the_bytes_are_sent_once(
    desk: Desk, pages: list[PutPage]
) -> None:
    assert desk.reserve(1, *pages, direct=True).backups == []
    assert len(desk.reserve(2, PutPage("/c", DIRECT_MAX_BYTES, b""), direct=True).backups) == 1
    assert desk.reserve(3, page("/d")).backups == [], "nobody asked"


def test_if_a_backup_dies_another_one_is_chosen(desk: Desk) -> None:
    reserved, primary, job = staged(desk, 1, "/a")
    desk.die(desk.figure(job.server))
    (other,) = desk.take_jobs(Copy)
    assert other.server not in (primary.no, job.server)
    desk.store_on(desk.figure(other.server), record("/a", reserved.version))
    desk.fsync()
    assert desk.version("/a") == reserved.version


def fall_silent(desk: Desk, figure: Figure) -> None:
    """Long enough to be suspect, and not dead."""
    desk.silent.add(figure.name)
    desk.wait(HASTY.suspect_s + 0.2)
    assert figure.no not in [
        server.number for server in desk.get(Status()).servers if server.state == "alive"
    ]


def test_a_put_does_not_wait_for_a_backup_that_hangs(desk: Desk) -> None:
    reserved, primary, job = staged(desk, 1, "/a")
    fall_silent(desk, desk.figure(job.server))
    (other,) = desk.take_jobs(Copy)
    assert other.server not in (primary.no, job.server)
    desk.store_on(desk.figure(other.server), record("/a", reserved.version))
    desk.fsync()
    assert desk.version("/a") == reserved.version


def test_a_backup_that_hung_may_still_be_the_first(desk: Desk) -> None:
    """What it was ordered stands; and one copy too many is ordered, no more."""
    reserved, _, job = staged(desk, 1, "/a")
    fall_silent(desk, desk.figure(job.server))
    assert len(desk.take_jobs(Copy)) == 1
    desk.silent.clear()
    desk.wait(0.5)
    assert not desk.take_jobs(Copy)
    desk.store_on(desk.figure(job.server), record("/a", reserved.version))
    desk.fsync()
    assert desk.version("/a") == reserved.version and desk.balancer.orders.open_orders() == 0


def test_where_nobody_else_is_a_backup_that_hangs_is_asked_once() -> None:
    desk = Desk("web-1", "web-2")
    reserved = desk.reserve(1, page("/a"))
    primary = primary_of(desk, reserved)
    (backup,) = [figure for figure in desk.figures.values() if figure is not primary]
    fall_silent(desk, backup)
    desk.store_on(primary, record("/a", reserved.version))
    assert [job.server for job in desk.take_jobs(Copy)] == [backup.no]
    desk.wait(0.5)
    assert not desk.take_jobs(Copy)


def test_if_a_backup_cannot_copy_another_one_is_chosen(desk: Desk) -> None:
    reserved, primary, job = staged(desk, 1, "/a")
    backup = desk.figure(job.server)
    desk.report(CopyFailed(backup.incarnation, batch_id(1), reserved.version, "disk full"))
    (other,) = desk.take_jobs(Copy)
    assert other.server not in (primary.no, job.server)


def test_if_no_backup_can_copy_nobody_is_asked_before_they_had_a_rest(desk: Desk) -> None:
    reserved, primary, job = staged(desk, 1, "/a")
    tried, jobs = set(), [job]
    while jobs:
        backup = desk.figure(jobs[0].server)
        assert backup.no not in tried
        tried.add(backup.no)
        desk.report(CopyFailed(backup.incarnation, batch_id(1), reserved.version, "disk full"))
        jobs = desk.take_jobs(Copy)
    assert tried == {figure.no for figure in desk.figures.values()} - {primary.no}


def test_as_many_copies_are_ordered_as_are_missing_whoever_stored_it(desk: Desk) -> None:
    """Neither of those that were meant to have it: each of them might take the one copy that is missing."""
    reserved = desk.reserve(1, page("/a"))
    meant = primary_of(desk, reserved)
    desk.store_on(
        next(each for each in desk.figures.values() if each is not meant), record("/a", reserved.version)
    )
    assert len(desk.take_jobs(Copy)) == 1


def test_if_the_source_dies_the_copy_that_is_left_is_the_source() -> None:
    desk = Desk("web-1", "web-2", "web-3", "web-4")
    reserved = desk.reserve(1, page("/a"), copies=3)
    primary = primary_of(desk, reserved)
    desk.store_on(primary, record("/a", reserved.version))
    first, second = desk.take_jobs(Copy)
    desk.store_on(desk.figure(first.server), record("/a", reserved.version))
    desk.die(primary)
    sources = {job.server: job.message.source.number for job in desk.take_jobs(Copy)}
    assert sources and set(sources.values()) == {first.server}
    assert second.server in sources, "whoever copies from the dead one is told where else to copy from"


def test_a_copy_on_a_server_that_died_does_not_count(desk: Desk) -> None:
    reserved, primary, job = staged(desk, 1, "/a")
    desk.die(primary)
    desk.store_on(desk.figure(job.server), record("/a", reserved.version))
    assert not desk.handed
    desk.silent.clear()
    desk.rejoin(primary)
    assert [each.version for each in desk.handed] == [reserved.version], "it counts again when it is back"


def test_a_copy_that_was_found_damaged_does_not_count(desk: Desk) -> None:
    names = ("/a", "/b")
    reserved = desk.reserve(1, *(page(name) for name in names))
    primary = primary_of(desk, reserved)
    desk.store_on(primary, *(record(name, reserved.version) for name in names))
    (job,) = desk.take_jobs(Copy)
    desk.store_on(primary, drop=(("/b", reserved.version),))
    backup = desk.figure(job.server)
    desk.store_on(backup, *(record(name, reserved.version) for name in names))
    assert not desk.handed, "one server has all of it"
    (again,) = desk.take_jobs(Copy)
    desk.store_on(desk.figure(again.server), *(record(name, reserved.version) for name in names))
    assert [each.version for each in desk.handed] == [reserved.version]


def test_copies_that_differ_are_never_decided(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a", known=False))
    token = desk.await_(1, seen=2)
    desk.store_on(desk.figures["web-1"], record("/a", reserved.version, b"one"))
    desk.store_on(desk.figures["web-2"], record("/a", reserved.version, b"two"))
    assert desk.answers[token].state == "never" and "differ" in desk.answers[token].text
    assert not desk.handed


def test_a_copy_that_is_not_what_was_announced_is_never_decided(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a", b"announced"))
    desk.store_on(desk.figures["web-1"], record("/a", reserved.version, b"stored"))
    assert desk.outcome(1).state == "never"


def test_a_copy_that_turns_up_later_and_differs_is_none_of_the_page(desk: Desk) -> None:
    """It counts for nothing, is named to no reader, and is not deleted either: who knows which is right."""
    version = desk.put(1, "/a", b"right", on=("web-1", "web-2"))
    third = desk.figures["web-3"]
    desk.store_on(third, record("/a", version, b"wrong"))
    assert third.no not in desk.balancer.catalog.pages["/a"].holders
    desk.wait(desk.config.garbage_s + 1)
    assert not desk.take_jobs(Drop)
    desk.balancer.catalog.check()


# -- a lost primary --------------------------------------------------------------------


def test_a_lost_primary_is_told_and_replaced_under_the_same_version(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"))
    token = desk.await_(1)
    desk.die(primary_of(desk, reserved))
    assert desk.answers[token].lost and desk.answers[token].state == "open"
    again = desk.reserve(1, page("/a"))
    assert again.version == reserved.version
    assert again.primary.number != reserved.primary.number


def test_a_primary_that_restarted_lost_what_was_staged(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"))
    primary = primary_of(desk, reserved)
    token = desk.await_(1)
    primary.restart()
    desk.hello(primary)
    assert desk.answers[token].lost
    desk.answer_asks()
    desk.beat(primary)
    assert desk.reserve(1, page("/a")).version == reserved.version


def test_a_primary_to_avoid_is_replaced_unless_it_has_stored(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"))
    primary = primary_of(desk, reserved)
    again = desk.reserve(1, page("/a"), avoid=(primary.no,))
    assert again.primary.number != primary.no and again.version == reserved.version
    desk.store_on(desk.figure(again.primary.number), record("/a", reserved.version))
    kept = desk.reserve(1, page("/a"), avoid=(again.primary.number,))
    assert kept.primary.number == again.primary.number


def test_a_primary_that_is_suspect_is_not_lost(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"))
    desk.silent.add(primary_of(desk, reserved).name)
    desk.wait(desk.config.suspect_s + 0.2)
    assert not desk.outcome(1).lost


# -- conditions ------------------------------------------------------------------------


def test_conditions_that_fail_already_are_told_at_once(desk: Desk) -> None:
    version = desk.put(1, "/a", on=("web-1", "web-2"))
    for number, refused in (
        (2, desk.reserve(2, page("/a", b"new", ABSENT), page("/b"))),
        (3, desk.reserve(3, page("/a", b"new", version + 1))),
        (4, desk.reserve(4, page("/c", b"new", version))),
    ):
        assert refused.code == "conflict" and len(refused.names) == 1
        assert desk.outcome(number).state == "conflict"
    assert isinstance(desk.reserve(5, page("/a", b"new", version)), Reserved)


def test_an_id_that_was_told_conflict_at_reserve_stays_refused(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    assert desk.reserve(2, page("/a", b"new", ABSENT)).code == "conflict"
    desk.remove(3, "/a")
    desk.fsync()
    assert desk.reserve(2, page("/a", b"new", ABSENT)).code == "conflict", "a late repetition of a request"
    assert desk.outcome(2).state == "conflict"


def test_conditions_are_checked_again_at_the_decision(desk: Desk) -> None:
    late = desk.reserve(1, page("/a", b"late", ABSENT), copies=1)
    desk.put(2, "/a", b"early", on=("web-2", "web-3"))
    token = desk.await_(1, seen=1)
    desk.store_on(primary_of(desk, late), record("/a", late.version, b"late"))
    assert desk.answers[token].state == "conflict" and desk.answers[token].names == ["/a"]
    assert not desk.handed


def test_a_conflict_that_rests_on_an_unwritten_decision_is_told_after_its_fsync(desk: Desk) -> None:
    first = desk.reserve(1, page("/a", b"1", ABSENT), copies=1)
    second = desk.reserve(2, page("/a", b"2", ABSENT), copies=1)
    desk.store_on(desk.figures["web-1"], record("/a", first.version, b"1"))
    desk.store_on(desk.figures["web-1"], record("/a", second.version, b"2"))
    tokens = [desk.await_(1, seen=1), desk.await_(2, seen=1)]
    assert [each.version for each in desk.handed] == [first.version], (
        "it sees what is handed, not only visible"
    )
    assert not desk.answers.keys() & set(tokens), "a crash now would undo the reason for the conflict"
    desk.fsync()
    assert [desk.answers[token].state for token in tokens] == ["visible", "conflict"]


def test_a_condition_can_rest_on_an_unwritten_decision_that_meets_it(desk: Desk) -> None:
    first = desk.reserve(1, page("/a", b"1"), copies=1)
    removal = desk.reserve(2, page("/b"), copies=1)
    desk.store_on(desk.figures["web-1"], record("/a", first.version, b"1"))
    desk.store_on(desk.figures["web-1"], record("/b", removal.version))
    desk.fsync()
    desk.remove(3, "/a")
    absent = desk.reserve(4, page("/a", b"4", first.version), copies=1)
    desk.store_on(desk.figures["web-1"], record("/a", absent.version, b"4"))
    token = desk.await_(4, seen=1)
    desk.fsync()
    assert desk.answers[token].state == "conflict", "the removal was decided before it"


def test_a_skip_is_a_condition(desk: Desk) -> None:
    desk.put(1, "/a", b"same", on=("web-1", "web-2"))
    reserved = desk.reserve(2, page("/a", b"same"), page("/b", b"new"), copies=1)
    assert reserved.skip == [0]
    desk.put(3, "/a", b"other", on=("web-1", "web-2"))
    token = desk.await_(2, seen=1)
    desk.store_on(primary_of(desk, reserved), record("/b", reserved.version, b"new"))
    assert desk.answers[token].state == "conflict" and desk.answers[token].names == ["/a"]


def test_puts_of_one_name_are_decided_in_turn_and_the_later_decision_wins(desk: Desk) -> None:
    first, second = desk.reserve(1, page("/a", b"1"), copies=1), desk.reserve(2, page("/a", b"2"), copies=1)
    desk.store_on(desk.figures["web-1"], record("/a", second.version, b"2"))
    desk.store_on(desk.figures["web-1"], record("/a", first.version, b"1"))
    assert [each.version for each in desk.handed] == [second.version, first.version]
    desk.fsync(1)
    assert desk.version("/a") == second.version
    desk.fsync(1)
    assert desk.version("/a") == first.version, "versions name puts; they do not order them"


# -- ends ------------------------------------------------------------------------------


def test_a_batch_past_its_deadline_never_is(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"), copies=1, deadline_s=2.0)
    token = desk.await_(1, seen=1, patience_s=60.0)
    desk.wait(2.2)
    assert desk.answers[token].state == "never" and "0 of 1" in desk.answers[token].text
    desk.store_on(primary_of(desk, reserved), record("/a", reserved.version))
    assert not desk.handed
    assert desk.reserve(1, page("/a"), copies=1).code == "never", "its id is refused from now on"


def test_an_abort_ends_an_open_batch_and_is_repeatable(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"), copies=1)
    assert desk.get(Abort(batch_id(1))).state == "never"
    assert desk.get(Abort(batch_id(1))).state == "never"
    desk.store_on(primary_of(desk, reserved), record("/a", reserved.version))
    assert not desk.handed and desk.outcome(1).state == "never"


def test_an_abort_or_deadline_that_falls_into_the_write_waits_for_its_result(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"), copies=1, deadline_s=3.0)
    desk.store_on(primary_of(desk, reserved), record("/a", reserved.version))
    abort = desk.ask(Abort(batch_id(1)))
    assert abort not in desk.answers
    desk.wait(5.0)
    assert abort not in desk.answers, "the deadline passed, the write goes on"
    assert desk.outcome(1).state == "open"
    desk.fsync()
    assert desk.answers[abort].state == "visible"
    assert desk.version("/a") == reserved.version


def test_an_abort_of_a_doomed_batch_waits_as_well(desk: Desk) -> None:
    first, second = (desk.reserve(number, page("/a", b"x", ABSENT), copies=1) for number in (1, 2))
    for each in (first, second):
        desk.store_on(desk.figures["web-1"], record("/a", each.version, b"x"))
    abort = desk.ask(Abort(batch_id(2)))
    assert abort not in desk.answers
    desk.fsync()
    assert desk.answers[abort].state == "conflict"


def test_nothing_is_lost_while_the_decision_is_written(desk: Desk) -> None:
    """All holders die during the fsync: the client is not sent to stage it again."""
    reserved = desk.reserve(1, page("/a"), copies=1)
    primary = primary_of(desk, reserved)
    desk.store_on(primary, record("/a", reserved.version))
    desk.die(primary)
    assert not desk.outcome(1).lost
    desk.fsync()
    assert desk.outcome(1).state == "visible"


def test_an_id_first_heard_of_in_await_is_never_to_be(desk: Desk) -> None:
    assert desk.get(Await(batch_id(1), 0, 5.0)).state == "never"
    assert desk.reserve(1, page("/a")).code == "never"
    token = desk.remove(1, "/a")
    assert desk.answers[token].state == "never"
    assert desk.get(Abort(batch_id(2))).state == "never"
    assert desk.reserve(2, page("/a")).code == "never"


def test_every_outcome_can_be_asked_for_after_a_restart(desk: Desk) -> None:
    version = stored_twice(desk, 1, "/a")
    desk.fsync()
    handed = stored_twice(desk, 2, "/b")  # and the balancer dies before its fsync
    after = Desk(config=HASTY, store=desk.store)
    after.now = desk.now
    assert (after.outcome(1).state, after.outcome(1).version) == ("visible", version)
    assert after.outcome(2).state == "never"
    assert after.version("/a") == version and after.version("/b") == 0
    after.figures = desk.figures
    for figure in after.figures.values():
        after.rejoin(figure)
    assert not after.handed, "a batch of an earlier epoch is never decided"
    assert epoch_of(after.reserve(3, page("/c")).version) > epoch_of(handed)


def test_the_catalog_remembers_an_id_until_ten_minutes_after_its_deadline() -> None:
    desk = Desk("web-1", config=HASTY)
    reserved = desk.reserve(1, page("/a"), copies=1, deadline_s=30.0)
    desk.wait(10.0)
    desk.store_on(primary_of(desk, reserved), record("/a", reserved.version))
    (decision,) = desk.handed
    assert decision.forget_at == pytest.approx(20.0 + desk.config.batch_memory_s)


# -- rm --------------------------------------------------------------------------------


def test_rm_takes_pages_out_in_one_decision(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.put(2, "/b", on=("web-1", "web-2"))
    token = desk.remove(3, "/a", "/b", "/never-was")
    assert token not in desk.answers and desk.version("/a"), "not before its fsync"
    (decision,) = desk.handed
    assert decision.removes == ["/a", "/b", "/never-was"]
    desk.fsync()
    assert desk.answers[token].state == "visible" and desk.answers[token].names == ["/never-was"]
    assert not desk.balancer.catalog.pages


def test_rm_sent_twice_is_one_decision(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    tokens = [desk.remove(2, "/a"), desk.remove(2, "/a")]
    assert len(desk.handed) == 1
    desk.fsync()
    assert [desk.answers[token].state for token in tokens] == ["visible", "visible"]
    assert desk.answers[desk.remove(2, "/a")].state == "visible", "and after it, too"
    assert not desk.handed


def test_rm_is_refused_on_its_condition_and_outside_its_epoch(desk: Desk) -> None:
    version = desk.put(1, "/a", on=("web-1", "web-2"))
    assert desk.answers[desk.remove(2, "/a", condition=version + 1)].state == "conflict"
    stale = Remove(batch_id(3), desk.epoch + 1, [RemovePage("/a")], 30.0)
    assert desk.get(stale).code == "stale"
    assert desk.get(Remove(batch_id(4), desk.epoch, [RemovePage("a")], 30.0)).code == "bad-name"
    assert desk.version("/a") == version


# -- bounds ----------------------------------------------------------------------------


def test_one_backup_may_be_ordered_every_open_batch() -> None:
    """With two servers every batch has the same backup; however slow it is, orders do not overflow."""
    desk = Desk(config=Config(open_batches_max=300))
    desk.join("web-1", bytes_free=GIB)
    desk.join("web-2", bytes_free=GIB)
    for number in range(1, 301):
        reserved = desk.reserve(number, page(f"/{number}"))
        desk.store_on(desk.figures["web-1"], record(f"/{number}", reserved.version))
    assert desk.balancer.orders.open_orders() == 300
    assert isinstance(desk.reserve(301, page("/more")), Error)


def test_the_table_of_states_is_the_one_in_the_design() -> None:
    """A batch leaves OPEN by one of six events; a write, once begun, ends in one way."""
    assert {before for before, _ in TRANSITIONS} == {OPEN, DECIDING, DOOMED}
    assert {after for (before, _), after in TRANSITIONS.items() if before != OPEN} == {VISIBLE, CONFLICT}
    assert NEVER in TRANSITIONS.values()
