"""Drain, resume, forget; and that a balancer which starts again knows of them."""

from typing import Any

import pytest

from dws.errors import Refused, TooFewServers
from dws.membership import ALIVE, DEAD, DRAINING
from dws.messages import Copy, Drain, Error, Forget, Maintained, Resume, Status
from tests.dws.desk import HASTY, Desk, Figure, page, record


@pytest.fixture
def desk() -> Desk:
    return Desk("web-1", "web-2", "web-3", "web-4")


def tell(desk: Desk, message: Any) -> Any:
    """An operator's word, and its answer once it is durable."""
    token = desk.ask(message)
    assert token not in desk.answers or isinstance(desk.answers[token], Error | Maintained)
    desk.fsync()
    return desk.answers[token]


def status_of(desk: Desk, name: str) -> Any:
    return next(server for server in desk.get(Status()).servers if server.name == name)


def copy_all(desk: Desk) -> list[str]:
    """Carry out what is ordered, until nothing is."""
    copied = []
    for _ in range(40):
        desk.wait(0.1)
        for job in [job for job in desk.take_jobs(Copy) if job.message.job]:
            copied += [each.name for each in job.message.records]
            desk.store_on(desk.figure(job.server), *job.message.records)
    return copied


# -- drain -----------------------------------------------------------------------------------------


def test_a_drained_server_is_emptied_and_serves_meanwhile(desk: Desk) -> None:
    for number in range(6):
        desk.put(number + 1, f"/{number}", on=("web-1", "web-2"))
    desk.put(9, "/elsewhere", on=("web-3", "web-4"))
    told = tell(desk, Drain("web-1"))
    assert (told.name, told.draining, told.to_move, told.to_move_bytes) == ("web-1", True, 6, 30)
    assert status_of(desk, "web-1").state == DRAINING
    assert sorted(copy_all(desk)) == [f"/{number}" for number in range(6)]
    server = status_of(desk, "web-1")
    assert server.draining and not server.to_move
    assert desk.get(Status()).page_copies == [0, 0, 1, 6], "what it has is not dropped"
    desk.die(desk.figures["web-1"])
    desk.wait(2.0)
    assert not desk.take_jobs(Copy), "nothing was lost with it"


def test_a_drained_server_gets_no_new_pages(desk: Desk) -> None:
    tell(desk, Drain("web-1"))
    for number in range(20):
        reserved = desk.reserve(number + 1, page(f"/{number}"), copies=3)
        assert reserved.primary.name != "web-1"
        desk.store_on(desk.figures[reserved.primary.name], record(f"/{number}", reserved.version))
    assert "web-1" not in {desk.figure(job.server).name for job in desk.take_jobs(Copy)}


def test_a_drained_server_is_not_empty_while_a_put_is_only_there(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"))
    primary = reserved.primary.name
    tell(desk, Drain(primary))
    assert status_of(desk, primary).to_move == 1, "being staged there"
    desk.store_on(desk.figures[primary], record("/a", reserved.version))
    (job,) = desk.take_jobs(Copy)
    assert (status_of(desk, primary).to_move, tell(desk, Drain(primary)).to_move) == (1, 1), "stored there"
    desk.store_on(desk.figure(job.server), *job.message.records)
    assert status_of(desk, primary).to_move == 1, "being decided, with one copy that will count"
    desk.fsync()
    assert desk.version("/a") and status_of(desk, primary).to_move == 1
    assert copy_all(desk) == ["/a"] and not status_of(desk, primary).to_move


def test_a_put_that_ends_or_is_elsewhere_holds_no_drain_up(desk: Desk) -> None:
    reserved = desk.reserve(1, page("/a"), deadline_s=5.0)
    primary = desk.figures[reserved.primary.name]
    (other,) = [name for name in desk.figures if name != primary.name][:1]
    tell(desk, Drain(other))
    assert not status_of(desk, other).to_move
    tell(desk, Resume(other))
    tell(desk, Drain(primary.name))
    desk.wait(6.0)
    assert desk.outcome(1).state == "never" and not status_of(desk, primary.name).to_move


def test_nothing_is_told_before_it_is_durable(desk: Desk) -> None:
    token = desk.ask(Drain("web-1"))
    assert token not in desk.answers and status_of(desk, "web-1").state == ALIVE
    desk.fsync()
    assert desk.answers[token].draining


def test_a_drain_outlives_a_start_of_the_balancer(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    tell(desk, Drain("web-1"))
    again = Desk(store=desk.store)
    for figure in desk.figures.values():
        again.figures[figure.name] = figure
        again.rejoin(figure)
    again.wait(1.0)
    assert status_of(again, "web-1").state == DRAINING
    assert copy_all(again) == ["/a"] and not status_of(again, "web-1").to_move


def test_a_drain_that_leaves_too_few_servers_is_refused(desk: Desk) -> None:
    for name in ("web-1", "web-2"):
        assert isinstance(tell(desk, Drain(name)), Maintained)
    refusal = tell(desk, Drain("web-3"))
    assert refusal.code == TooFewServers.code and "start another" in refusal.text
    assert isinstance(tell(desk, Drain("web-1")), Maintained), "twice is once"


def test_resume_takes_it_back(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    tell(desk, Drain("web-1"))
    told = tell(desk, Resume("web-1"))
    assert (told.state, told.draining) == (ALIVE, False)
    assert copy_all(desk) in ([], ["/a"])
    assert desk.get(Status()).repair.missing == 0
    assert isinstance(tell(desk, Resume("web-1")), Maintained)


# -- forget ----------------------------------------------------------------------------------------


def test_a_dead_server_is_forgotten_for_good(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.die(desk.figures["web-1"])
    copy_all(desk)
    assert tell(desk, Forget("web-1")).state == "forgotten"
    desk.wait(0.3)
    assert "web-1" not in [server.name for server in desk.get(Status()).servers]
    desk.balancer.catalog.check()
    again = Desk(store=desk.store)
    assert [server.name for server in again.get(Status()).servers] == ["web-2", "web-3", "web-4"]


def test_a_number_is_never_given_again(desk: Desk) -> None:
    last = desk.figures["web-4"]
    desk.die(last)
    tell(desk, Forget("web-4"))
    again = Desk(store=desk.store)
    assert again.join("web-5").no == last.no + 1


def test_one_that_comes_back_all_the_same_joins_as_a_new_server(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    figure = desk.figures["web-1"]
    before = figure.no
    desk.die(figure)
    tell(desk, Forget("web-1"))
    desk.wait(0.3)
    desk.silent.discard("web-1")
    desk.rejoin(figure)
    desk.fsync()
    desk.wait(0.5)
    assert figure.no > before and status_of(desk, "web-1").state == ALIVE
    assert desk.get(Status()).page_copies[0] == 0
    desk.balancer.catalog.check()


def test_a_live_server_is_not_forgotten(desk: Desk) -> None:
    refusal = tell(desk, Forget("web-1", force=True))
    assert refusal.code == Refused.code and "stop it first" in refusal.text


def test_the_last_trace_of_a_page_is_forgotten_only_by_force(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1",))
    desk.die(desk.figures["web-1"])
    refusal = tell(desk, Forget("web-1"))
    assert refusal.code == Refused.code and "1 page" in refusal.text
    assert isinstance(tell(desk, Forget("web-1", force=True)), Maintained)


def test_after_a_start_every_absent_server_may_have_the_last_trace(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1",))
    again = Desk(store=desk.store)
    again.figures = dict(desk.figures)
    again.silent = set(again.figures)
    again.wait(HASTY.dead_s + 0.5)
    assert status_of(again, "web-2").state == DEAD
    assert isinstance(tell(again, Forget("web-2")), Error), "it is not known who had it"


def restarted_without(desk: Desk, *absent: str) -> Desk:
    """A balancer started again on the same catalog; those that are not absent come back and are compared."""
    again = Desk(store=desk.store)
    again.figures = dict(desk.figures)
    again.silent = set(absent)
    for name, figure in again.figures.items():
        if name not in absent:
            again.rejoin(figure)
    again.wait(HASTY.dead_s + 0.5)
    return again


def test_one_that_was_not_compared_since_the_start_may_have_what_a_dead_one_has(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    again = restarted_without(desk, "web-1")
    again.silent |= {"web-3", "web-4"}  # nobody left to copy to
    again.die(again.figures["web-2"])
    refusal = tell(again, Forget("web-1"))
    assert isinstance(refusal, Error) and "1 page" in refusal.text


def test_one_that_was_compared_since_is_known_to_have_nothing(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1",))
    again = restarted_without(desk, "web-1")
    again.die(again.figures["web-3"])
    assert isinstance(tell(again, Forget("web-3")), Maintained), "it had no copy of it"
    assert isinstance(tell(again, Forget("web-1")), Error)


def test_one_that_died_while_it_was_compared_may_have_anything(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    again = restarted_without(desk, "web-1", "web-2")
    figure = again.figures["web-1"]
    figure.restart()
    again.hello(figure)
    again.die(figure)
    assert isinstance(tell(again, Forget("web-1")), Error)


def test_a_server_of_an_unknown_or_an_ambiguous_name_is_refused(desk: Desk) -> None:
    refusal = tell(desk, Drain("web-9"))
    assert refusal.code == Refused.code and "known are web-1, web-2" in refusal.text
    old = desk.figures["web-1"]
    desk.die(old)
    del desk.figures["web-1"]
    desk.silent.discard("web-1")
    figure = Figure("web-1", b"another-web-1...", 9 << 32)
    desk.figures["web-1"] = figure
    desk.hello(figure)
    desk.fsync()
    desk.answer_asks()
    desk.beat(figure)
    refusal = tell(desk, Forget("web-1"))
    assert refusal.code == Refused.code and f"{old.no} (dead)" in refusal.text
    assert tell(desk, Forget("web-1", old.no)).number == old.no
