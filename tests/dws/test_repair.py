"""Repair: which pages are copied again, from where to where, in which order, how much at once.

On a whole balancer (desk.py): what it orders is laid out, and the test says what becomes of it.
"""

import pytest
from msgspec.structs import replace

from dws import repair
from dws.limits import MIB
from dws.messages import Copy, CopyFailed, Status, Verify
from tests.dws.desk import HASTY, Desk, Job, batch_id, page, record


@pytest.fixture
def desk() -> Desk:
    return Desk("web-1", "web-2", "web-3", "web-4")


def repairs(desk: Desk) -> list[Job]:
    """Orders of repair since the last look."""
    return [job for job in desk.take_jobs(Copy) if job.message.job]


def carry_out(desk: Desk, job: Job) -> None:
    desk.store_on(desk.figure(job.server), *job.message.records)


def names(job: Job) -> list[str]:
    return [each.name for each in job.message.records]


def route(desk: Desk, job: Job) -> tuple[str, str]:
    return job.message.source.name, desk.figure(job.server).name


# -- what is copied ----------------------------------------------------------------------------


def test_a_dead_servers_pages_are_copied_from_who_has_them_to_who_has_not(desk: Desk) -> None:
    version = desk.put(1, "/a", on=("web-1", "web-2"))
    desk.put(2, "/b", on=("web-3", "web-4"))
    desk.die(desk.figures["web-1"])
    (job,) = repairs(desk)
    assert [(each.name, each.version) for each in job.message.records] == [("/a", version)]
    source, target = route(desk, job)
    assert source == "web-2" and target in ("web-3", "web-4")
    carry_out(desk, job)
    desk.wait(2.0)
    assert not repairs(desk) and not desk.balancer.orders.open_orders()
    told = desk.get(Status())
    assert told.page_copies == [0, 0, 2, 0]
    assert (told.repair.missing, told.repair.copied, told.repair.copied_bytes) == (0, 1, 5)


def test_a_suspect_server_is_no_reason_to_copy(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.silent.add("web-1")
    desk.wait(HASTY.suspect_s + 0.5)
    assert not repairs(desk)


def test_a_page_gets_the_copies_that_its_put_asked_for(desk: Desk) -> None:
    desk.put(1, "/three", on=("web-1", "web-2", "web-3"))
    desk.put(2, "/one", on=("web-4",))
    desk.wait(2.0)
    assert not repairs(desk)
    desk.die(desk.figures["web-1"])
    (job,) = repairs(desk)
    assert names(job) == ["/three"] and route(desk, job)[1] == "web-4"


def test_the_wanted_copies_outlive_a_start_of_the_balancer(desk: Desk) -> None:
    desk.put(1, "/one", on=("web-1",))
    desk.put(2, "/two", on=("web-1", "web-2"))
    again = Desk(store=desk.store)
    for figure in desk.figures.values():
        again.figures[figure.name] = figure
        again.rejoin(figure)
    again.wait(2.0)
    assert not repairs(again), "one copy was all that was asked for"


def test_a_page_that_nobody_alive_has_waits_for_who_has_it(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    for name in ("web-1", "web-2"):
        desk.die(desk.figures[name])
    desk.take_jobs()
    desk.wait(3.0)
    assert not repairs(desk)
    assert desk.get(Status()).page_copies == [1, 0, 0, 0]
    desk.silent.discard("web-2")
    desk.rejoin(desk.figures["web-2"])
    desk.wait(0.5)
    (job,) = repairs(desk)
    assert route(desk, job)[0] == "web-2"


def test_what_a_server_set_aside_is_copied_again(desk: Desk) -> None:
    version = desk.put(1, "/a", on=("web-1", "web-2"))
    desk.store_on(desk.figures["web-1"], drop=(("/a", version),))
    desk.wait(1.5)
    (job,) = repairs(desk)
    assert route(desk, job)[0] == "web-2"


def test_nothing_is_copied_while_a_server_is_still_compared(desk: Desk) -> None:
    """After a start of the balancer every page seems to have too few copies, until all have told."""
    desk.put(1, "/a", on=("web-1", "web-2"))
    again = Desk(store=desk.store)
    for figure in desk.figures.values():
        again.figures[figure.name] = figure
    again.silent = {"web-2", "web-4"}
    for name in ("web-1", "web-3"):
        again.rejoin(desk.figures[name])
    again.wait(1.5)
    assert not repairs(again), "web-2 may have it, and has"
    told = again.get(Status()).repair
    assert told.missing == 1 and "still to be compared" in told.text
    again.wait(HASTY.dead_s)  # those who did not come are dead by now
    (job,) = repairs(again)
    assert route(again, job) == ("web-1", "web-3")


# -- in which order ------------------------------------------------------------------------------


def test_the_most_endangered_go_first_and_of_them_the_most_visited() -> None:
    desk = Desk("web-1", "web-2", "web-3", "web-4", "web-5")
    for number in range(600):
        desk.put(number + 1, f"/{number:03}", on=("web-1", "web-2"))
    desk.put(1000, "/safer", on=("web-1", "web-2", "web-3"))
    desk.figures["web-2"].hot = [("/300", 5, 5), ("/200", 9, 9), ("/safer", 99, 1), ("/gone", 100, 1)]
    desk.die(desk.figures["web-1"])
    orders: list[str] = []
    while jobs := repairs(desk):
        for job in jobs:
            orders += names(job)
            carry_out(desk, job)
        desk.wait(0.2)
    assert sorted(orders) == sorted([*(f"/{number:03}" for number in range(600)), "/safer"])
    # Another source may have an order to spare meanwhile for what is less urgent.
    assert "/safer" not in orders[:256]
    # The first orders go out before the servers have told what is visited most.
    assert orders.index("/200") < orders.index("/300") < 2 * 256 + 2


# -- how much at once ------------------------------------------------------------------------------


def test_orders_are_bounded_in_bytes_and_by_server() -> None:
    desk = Desk("web-1", "web-2", "web-3")
    size = MIB // 2
    for number in range(12):
        desk.put(number + 1, f"/{number}", bytes([number]) * size, on=("web-1", "web-2"))
    desk.die(desk.figures["web-1"])
    seen = 0
    for _ in range(20):
        jobs = repairs(desk)
        assert len(jobs) <= HASTY.repair_jobs
        for job in jobs:
            assert sum(each.size for each in job.message.records) <= HASTY.repair_job_bytes
            seen += len(job.message.records)
            carry_out(desk, job)
        desk.wait(0.1)
    assert seen == 12


def test_the_rate_is_bounded() -> None:
    desk = Desk("web-1", "web-2", "web-3", config=replace(HASTY, repair_bytes_s=MIB, repair_job_bytes=MIB))
    for number in range(20):
        desk.put(number + 1, f"/{number}", bytes([number]) * (MIB // 2), on=("web-1", "web-2"))
    desk.die(desk.figures["web-1"])
    copied = 0
    for _ in range(50):
        for job in repairs(desk):
            copied += len(job.message.records)
            carry_out(desk, job)
        desk.wait(0.1)
    assert 8 <= copied <= 14, "in 5 s, at a MiB a second, and one order ahead"


def test_what_cannot_go_does_not_hide_what_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many groups, looked at a few at a time: of most of them nothing can go, since there is no room."""
    monkeypatch.setattr(repair, "_LOOK_MAX", 2)
    names_of = [f"web-{number}" for number in range(1, 10)]
    desk = Desk(*names_of)
    for number, name in enumerate(names_of[1:], start=1):
        size = 10 if name == "web-2" else 5_000
        desk.put(number, f"/{name}", bytes(size), on=("web-1", name))
    for figure in desk.figures.values():
        figure.bytes_free = 1_000
    desk.wait(0.5)
    desk.die(desk.figures["web-1"])
    desk.wait(2.0)
    (job,) = repairs(desk)
    assert names(job) == ["/web-2"]


def test_a_page_that_no_server_has_room_for_waits_and_says_so(desk: Desk) -> None:
    desk.put(1, "/a", bytes(1000), on=("web-1", "web-2"))
    for name in ("web-3", "web-4"):
        desk.figures[name].bytes_free = 100
    desk.wait(0.5)
    desk.die(desk.figures["web-1"])
    desk.wait(1.5)
    assert not repairs(desk)
    told = desk.get(Status()).repair
    assert told.missing == 1 and "/a" in told.text
    desk.figures["web-3"].bytes_free = 1 << 30
    desk.wait(1.5)
    (job,) = repairs(desk)
    assert route(desk, job)[1] == "web-3"


# -- what becomes of an order ----------------------------------------------------------------------


def test_an_order_to_or_from_a_server_that_dies_is_replaced(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2", "web-3"))
    desk.die(desk.figures["web-1"])
    (first,) = repairs(desk)
    desk.die(desk.figure(first.server))
    assert not [job for job in repairs(desk) if job.server == first.server and job.number > first.number]
    desk.balancer.check()


def test_a_failed_copy_is_tried_again_alone_and_its_source_looks_at_its_bytes(desk: Desk) -> None:
    for number in range(3):
        desk.put(number + 1, f"/{number}", on=("web-1", "web-2"))
    desk.die(desk.figures["web-1"])
    (first,) = repairs(desk)
    assert len(first.message.records) == 3
    target = desk.figure(first.server)
    bad = first.message.records[0]
    report = CopyFailed(
        target.incarnation, bad.batch, bad.version, "wrong digest", first.message.source.number,
        first.message.job, "integrity",
    )  # fmt: skip
    desk.report(report)
    assert [type(ask.message) for ask in desk.asks] == [Verify]
    alone = []
    for _ in range(30):
        desk.wait(0.1)
        for job in repairs(desk):
            alone.append(names(job))
            carry_out(desk, job)
    assert sorted(alone) == [["/0"], ["/1"], ["/2"]], "one bad page holds up no others"


def test_after_a_failure_another_source_is_asked(desk: Desk) -> None:
    """The link between two servers may be cut, which neither of them is dead for."""
    desk.put(1, "/a", on=("web-1", "web-2", "web-3"))
    desk.die(desk.figures["web-1"])
    (first,) = repairs(desk)
    target, source = desk.figure(first.server), first.message.source
    no_way = CopyFailed(
        target.incarnation, batch_id(1), 1, "no answer", source.number, first.message.job, "unreachable"
    )
    desk.report(no_way)
    desk.wait(repair._REST_S + 2.0)
    (again,) = repairs(desk)
    assert again.server == first.server, "there is no other"
    assert again.message.source.number != source.number


def test_a_server_that_could_not_store_is_left_alone_for_a_while(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.die(desk.figures["web-1"])
    (first,) = repairs(desk)
    target = desk.figure(first.server)
    full = CopyFailed(target.incarnation, batch_id(1), 1, "no room", 2, first.message.job, "full")
    desk.report(full)
    desk.wait(2.5)
    (again,) = repairs(desk)
    assert again.server != first.server


def test_a_failure_that_comes_late_ends_no_other_order(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.die(desk.figures["web-1"])
    (job,) = repairs(desk)
    stranger = next(each for each in desk.figures.values() if each.no not in (1, job.server))
    late = CopyFailed(stranger.incarnation, batch_id(1), 1, "late", 2, job.message.job, "full")
    desk.report(late)
    desk.report(replace(late, job=job.message.job + 7, incarnation=desk.figure(job.server).incarnation))
    carry_out(desk, job)
    desk.wait(1.5)
    assert not repairs(desk) and desk.get(Status()).repair.copied == 1


def test_a_backups_failure_to_copy_from_a_source_given_up_ends_no_order() -> None:
    desk = Desk("web-1", "web-2", "web-3")
    reserved = desk.reserve(1, page("/a"), copies=3)
    stored = record("/a", reserved.version)
    desk.store_on(desk.figures["web-1"], stored)
    orders = desk.take_jobs(Copy)
    assert {job.message.source.name for job in orders} == {"web-1"} and len(orders) == 2
    backup = desk.figure(orders[0].server)
    desk.report(CopyFailed(backup.incarnation, batch_id(1), reserved.version, "late", 77))
    desk.wait(1.5)
    assert not desk.take_jobs(Copy), "it stands, and is not yet overdue"
    desk.store_on(backup, stored)
    desk.store_on(desk.figure(orders[1].server), stored)
    desk.fsync()
    assert desk.version("/a") == reserved.version


def test_a_page_superseded_while_it_is_copied_is_no_trouble(desk: Desk) -> None:
    desk.put(1, "/a", b"old", on=("web-1", "web-2"))
    desk.die(desk.figures["web-1"])
    (job,) = repairs(desk)
    desk.put(2, "/a", b"new", on=("web-3", "web-4"))
    carry_out(desk, job)
    desk.wait(1.5)
    assert not repairs(desk)
    assert desk.get(Status()).page_copies == [0, 0, 1, 0]
