"""Copies too many: dropped only after those that stay were verified, and counted for nothing meanwhile."""

from typing import Any

import pytest

from dws.effects import Ask
from dws.events import Answered, Unanswered
from dws.limits import VERIFY_MAX_BYTES
from dws.messages import Change, Copy, Drain, Drop, Dropped, Locate, Status, Stored, Verified, Verify
from dws.surplus import TRANSITIONS
from tests.dws.desk import HASTY, Desk, Figure, record

QUIET = HASTY.garbage_s + 2.0


@pytest.fixture
def desk() -> Desk:
    return Desk("web-1", "web-2", "web-3")


def three_copies(desk: Desk, name: str = "/a", number: int = 1) -> int:
    """A page that wants two copies and lies on three servers."""
    version = desk.put(number, name, on=("web-1", "web-2"))
    desk.store_on(desk.figures["web-3"], record(name, version))
    return version


def verifications(desk: Desk) -> dict[str, Verify]:
    """Who is asked to verify, taken off the desk."""
    asks = [ask for ask in desk.asks if isinstance(ask.message, Verify)]
    desk.asks = [ask for ask in desk.asks if ask not in asks]
    return {desk.figure(ask.server).name: ask.message for ask in asks}


def drops(desk: Desk) -> dict[str, list[tuple[str, int]]]:
    return {
        desk.figure(job.server).name: [(each.name, each.version) for each in job.message.records]
        for job in desk.take_jobs(Drop)
    }


def loser(desk: Desk, name: str = "/a") -> Figure:
    """Whose copy does not count."""
    holders = desk.balancer.catalog.pages[name].holders
    return next(each for each in desk.figures.values() if each.no not in holders)


def holders(desk: Desk, name: str = "/a") -> list[int]:
    """Who counts as one, live or not."""
    return list(desk.balancer.catalog.pages[name].holders)


def locate(desk: Desk, name: str = "/a") -> list[int]:
    found = desk.get(Locate([name])).pages[0]
    return list(found[4])


class Watch:
    """Takes the questions to verify off a desk as time passes, unanswered."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.asks: list[Ask] = []
        answer_asks = desk.answer_asks

        def but_verify() -> None:
            self.asks += [ask for ask in desk.asks if isinstance(ask.message, Verify)]
            desk.asks = [ask for ask in desk.asks if not isinstance(ask.message, Verify)]
            answer_asks()

        desk.answer_asks = but_verify  # type: ignore[method-assign]

    def answer(self, ask: Ask, answer: Any = None) -> None:
        self.asks.remove(ask)
        figure = self.desk.figure(ask.server)
        self.desk.happen(Answered(ask.tag, answer or self.desk.answer_of(figure, ask.message)))


def test_one_copy_too_many_goes_after_the_others_were_verified(desk: Desk) -> None:
    version = three_copies(desk)
    watch = Watch(desk)
    desk.wait(HASTY.garbage_s - 0.5)
    assert not watch.asks, "no hurry"
    desk.wait(2.0)
    first, second = watch.asks
    assert first.message.records == second.message.records == [("/a", version)]
    watch.answer(first)
    assert not drops(desk) and len(locate(desk)) == 3
    watch.answer(second)
    (gone,) = drops(desk)
    assert gone not in (desk.figure(first.server).name, desk.figure(second.server).name)
    assert sorted(locate(desk)) == sorted((first.server, second.server)), "it is named to nobody from now on"
    desk.store_on(desk.figures[gone], drop=(("/a", version),))
    desk.wait(3.0)
    assert not drops(desk) and not desk.balancer.orders.open_orders()
    told = desk.get(Status())
    assert (told.repair.surplus, told.repair.surplus_dropped, told.page_copies) == (0, 1, [0, 0, 1, 0])


@pytest.mark.parametrize("what", ["damaged", "not held", "no answer", "another answer", "a smaller index"])
def test_without_proof_nothing_is_dropped(desk: Desk, what: str) -> None:
    three_copies(desk)
    watch = Watch(desk)
    desk.wait(QUIET)
    first, second = watch.asks
    watch.answer(first)
    answers = {
        "damaged": Verified([], [0]), "not held": Verified([], []), "another answer": "?",
        "a smaller index": Verified([7], []),
    }  # fmt: skip
    if what == "no answer":
        desk.happen(Unanswered(second.tag))
    else:
        watch.answer(second, answers[what])
    desk.wait(1.0)
    assert not drops(desk) and len(locate(desk)) == 3


@pytest.mark.parametrize("what", ["restarts", "dies", "loses it", "superseded", "is drained"])
def test_what_changed_since_it_was_verified_is_not_dropped(desk: Desk, what: str) -> None:
    version = three_copies(desk)
    watch = Watch(desk)
    desk.wait(QUIET)
    first, second = watch.asks
    watch.answer(first)
    stays = desk.figure(first.server)
    match what:
        case "restarts":
            desk.rejoin(stays)
        case "dies":
            desk.die(stays)
        case "loses it":
            desk.store_on(stays, drop=(("/a", version),))
        case "superseded":
            desk.put(2, "/a", b"new", on=("web-1", "web-2"))
        case "is drained":
            desk.ask(drain(stays.name))
            desk.fsync()
    watch.answer(second)
    assert not any(("/a", version) in records for records in drops(desk).values())


def drain(name: str) -> Any:
    return Drain(name)


def test_a_copy_under_drop_counts_for_nothing_and_repair_replaces_what_is_lost(desk: Desk) -> None:
    version = three_copies(desk)
    desk.wait(QUIET)
    (gone,) = drops(desk)
    stays = next(each for each in desk.figures.values() if each.no in locate(desk))
    desk.die(stays)
    assert len(locate(desk)) == 1, "a copy that is about to go is no copy"
    desk.wait(2.0)
    assert not [job for job in desk.take_jobs(Copy) if desk.figure(job.server).name == gone], (
        "nor is it copied to where a drop may still come"
    )
    desk.store_on(desk.figures[gone], drop=(("/a", version),))
    desk.wait(2.0)
    (job,) = desk.take_jobs(Copy)
    assert desk.figure(job.server).name == gone


def test_a_new_life_of_its_server_ends_a_drop_and_the_copy_counts_again(desk: Desk) -> None:
    three_copies(desk)
    desk.wait(QUIET)
    (gone,) = drops(desk)
    desk.rejoin(desk.figures[gone])
    desk.wait(1.0)
    assert not drops(desk), "it named the life before"
    assert len(locate(desk)) == 3
    desk.balancer.catalog.check()


def test_what_a_drop_still_names_is_copied_there_no_more_and_counts_for_nothing(desk: Desk) -> None:
    """The order stays open while any of its records is there, and may be carried out at any moment."""
    first = three_copies(desk, "/a", 1)
    second = three_copies(desk, "/b", 2)
    desk.wait(QUIET)
    ((gone, named),) = drops(desk).items()
    assert named == [("/a", first), ("/b", second)]
    figure = desk.figures[gone]
    stay = sorted(each.no for each in desk.figures.values() if each is not figure)
    desk.store_on(figure, drop=(("/b", second),))  # found damaged, for one, and set aside
    desk.die(desk.figure(stay[0]))
    desk.wait(2.0)
    assert not desk.take_jobs(Copy), "the drop would take it away again"
    desk.store_on(figure, record("/b", second))
    assert holders(desk, "/b") == stay
    desk.store_on(figure, drop=tuple(figure.held))
    desk.store_on(figure, record("/b", second))
    assert holders(desk, "/b") == sorted([*stay, figure.no]), "no drop names it any more"
    desk.balancer.catalog.check()


@pytest.mark.parametrize("what", ["was dropped", "is there"])
def test_in_a_new_life_it_counts_no_sooner_than_the_manifest_shows_it(desk: Desk, what: str) -> None:
    """The life before may have dropped it and ended before it said so."""
    version = three_copies(desk)
    desk.wait(QUIET)
    (gone,) = drops(desk)
    figure = desk.figures[gone]
    stay = sorted(each.no for each in desk.figures.values() if each is not figure)
    if what == "was dropped":
        desk.store_on(figure, drop=(("/a", version),), tell=False)
    figure.restart()
    desk.hello(figure)
    desk.silent.add(gone)
    for _ in range(8):
        # Neither at its hello nor while its sums and its manifest are on the way.
        assert holders(desk) == stay and not desk.balancer.catalog.holds(figure.no, "/a", version)
        desk.wait(1.0)
    desk.silent.clear()
    desk.wait(1.0)
    assert desk.balancer.members.by_number[figure.no].live
    assert holders(desk) == (stay if what == "was dropped" else sorted([*stay, figure.no]))
    desk.balancer.catalog.check()


def test_the_same_life_at_another_place_does_not_make_it_count(desk: Desk) -> None:
    """The drop may be on its way there still: no incarnation ended that it named."""
    three_copies(desk)
    desk.wait(QUIET)
    (gone,) = drops(desk)
    figure = desk.figures[gone]
    desk.hello(figure, pages_endpoint="tcp://elsewhere:1", jobs_endpoint="tcp://elsewhere:2")
    desk.wait(2.0)
    assert desk.balancer.members.by_number[figure.no].live
    assert figure.no not in locate(desk)
    desk.balancer.catalog.check()


def test_the_same_life_compared_anew_does_not_make_it_count(desk: Desk) -> None:
    version = three_copies(desk)
    desk.wait(QUIET)
    (gone,) = drops(desk)
    figure = desk.figures[gone]
    desk.store_on(figure, record("/other", version), tell=False)  # so that its manifest is read
    desk.wait(2.0)
    assert desk.balancer.catalog.holds(figure.no, "/other", version)
    assert figure.no not in locate(desk)
    desk.store_on(figure, drop=(("/a", version),))
    desk.balancer.catalog.check()


def test_a_copy_made_anew_by_a_late_job_counts_for_nothing_while_the_drop_stands(desk: Desk) -> None:
    """The server did as it was told, and then an older order to copy the page, which was slow."""
    version = three_copies(desk)
    desk.wait(QUIET)
    (gone,) = drops(desk)
    figure = desk.figures[gone]
    changes = [Change(figure.number + 1, [], [Dropped("/a", version)]),
               Change(figure.number + 2, [record("/a", version)], [])]  # fmt: skip
    figure.number += 2
    desk.report(Stored(figure.incarnation, changes))
    assert figure.no not in locate(desk)
    desk.balancer.check()
    desk.wait(2.0)
    assert gone in drops(desk), "what was made anew is dropped as well"
    desk.store_on(desk.figures[gone], drop=(("/a", version),))
    assert not desk.balancer.orders.open_orders()
    assert len(locate(desk)) == 2


def test_nothing_goes_while_anything_is_missing_or_any_server_changes(desk: Desk) -> None:
    three_copies(desk)
    for _ in range(6):
        desk.wait(HASTY.garbage_s / 2)
        desk.rejoin(desk.figures["web-1"])
    assert not drops(desk)


def test_hellos_that_change_nothing_disturb_nothing(desk: Desk) -> None:
    three_copies(desk)
    for _ in range(4):
        desk.wait(QUIET / 4)
        for figure in desk.figures.values():
            desk.hello(figure)
    assert drops(desk)


def test_a_check_is_bounded_in_bytes(desk: Desk) -> None:
    size = VERIFY_MAX_BYTES // 3
    for number in range(5):
        data = bytes([number]) * size
        version = desk.put(number + 1, f"/{number}", data, on=("web-1", "web-2"))
        desk.store_on(desk.figures["web-3"], record(f"/{number}", version, data))
    watch = Watch(desk)
    desk.wait(QUIET)
    assert {len(ask.message.records) for ask in watch.asks} == {3}
    assert len(watch.asks) == 2, "one check at a time for a server"


def test_states_are_those_of_the_table() -> None:
    assert {state for state, _ in TRANSITIONS} == {"verifying", "dropping"}
    assert set(TRANSITIONS.values()) == {"dropping", None}
