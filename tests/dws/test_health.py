"""Alive is not healthy: what makes a server suspect though it beats, and who is accused of nothing."""

from functools import partial
from typing import Any

import pytest

from dws.config import Config
from dws.effects import Ask
from dws.events import Unanswered
from dws.health import Health
from dws.membership import ALIVE, Server
from dws.messages import Copy, Locate, Ping, Pong, Status
from tests.dws.desk import HASTY, Desk, Figure

SILENT = Config()


@pytest.fixture
def desk() -> Desk:
    return Desk("web-1", "web-2", "web-3")


def state(desk: Desk, name: str) -> str:
    return next(server.state for server in desk.get(Status()).servers if server.name == name)


def holders(desk: Desk, name: str = "/a") -> list[int]:
    return list(desk.get(Locate([name])).pages[0][4])


# -- probes, by themselves ---------------------------------------------------------------------------


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.health = Health(SILENT, self.now)
        self.server = Server(1, b"1" * 16, "web-1", heard=ALIVE, synced=True)
        self.health.watch(1, self.now)

    def probe(self, within_s: float = 3.0) -> float:
        """The time of the next probe."""
        end = self.now + within_s
        while self.now < end:
            asks = self.health.probes(self.now)
            if asks:
                (ask,) = asks
                assert isinstance(ask, Ask)
                return float(ask.tag[2])  # type: ignore[arg-type]
            self.now += 0.1
        raise AssertionError("no probe")

    def fail(self) -> bool:
        """A probe goes out and is not answered."""
        asked_at = self.probe()
        for _ in range(10):
            self.now += 0.1
            assert self.health.probes(self.now) == [], "one at a time"
        return self.health.unanswered(self.server, asked_at, self.now)


def test_two_probes_in_a_row_make_a_server_suspect_and_one_answer_ends_it() -> None:
    bench = Bench()
    assert not bench.fail() and not bench.server.ailing
    assert bench.fail() and "2 probes" in bench.server.ailing
    assert bench.server.state == "suspect"
    assert not bench.fail(), "no news"
    bench.probe()
    assert bench.health.answered(bench.server, bench.now) and not bench.server.ailing


def test_a_failed_probe_is_followed_at_once_by_another() -> None:
    bench = Bench()
    bench.fail()
    before = bench.now
    assert bench.probe() - before < 0.2


def test_an_answer_in_between_begins_the_count_anew() -> None:
    bench = Bench()
    bench.fail()
    bench.probe()
    bench.health.answered(bench.server, bench.now)
    assert not bench.fail() and not bench.server.ailing


def test_probes_that_fell_into_the_balancers_own_sleep_count_for_nothing() -> None:
    bench = Bench()
    for _ in range(5):
        asked_at = bench.probe()
        bench.now += 2.0  # nobody ticked
        bench.health.probes(bench.now)
        assert not bench.health.unanswered(bench.server, asked_at, bench.now)
    assert not bench.server.ailing


def test_a_probe_of_a_life_before_is_no_evidence() -> None:
    bench = Bench()
    asked_at = bench.probe()
    bench.now += 1.0
    bench.health.watch(1, bench.now)
    bench.health.unanswered(bench.server, asked_at, bench.now)
    assert not bench.fail() and not bench.server.ailing


def test_a_complaint_brings_the_next_probe_forward_and_no_more() -> None:
    bench = Bench()
    bench.probe()
    bench.health.answered(bench.server, bench.now)
    before = bench.now
    assert bench.health.complaint(1, bench.now) and not bench.health.complaint(2, bench.now)
    assert bench.probe() - before < 0.1
    assert not bench.server.ailing


# -- in a balancer -----------------------------------------------------------------------------------


def stuck(desk: Desk, figure: Figure, wait_s: float, **changed: float) -> None:
    desk.beat(figure, write_wait_s=wait_s, **changed)


def test_a_disk_that_owes_an_answer_makes_its_server_suspect_though_it_beats(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    figure = desk.figures["web-1"]
    stuck(desk, figure, HASTY.sick_s - 0.1)
    assert state(desk, "web-1") == ALIVE
    stuck(desk, figure, HASTY.sick_s)
    assert state(desk, "web-1") == "suspect" and holders(desk) == [desk.figures["web-2"].no]
    told = next(server for server in desk.get(Status()).servers if server.name == "web-1")
    assert "its disk has owed an answer to writes" in told.note
    stuck(desk, figure, 0.0)
    assert state(desk, "web-1") == ALIVE and len(holders(desk)) == 2


def test_what_lies_on_a_disk_that_fails_for_long_is_copied_elsewhere() -> None:
    desk = Desk("web-1", "web-2", "web-3")
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.take_jobs()
    figure = desk.figures["web-1"]
    whole = desk.beat
    ailing = partial(whole, write_wait_s=HASTY.sick_s)
    desk.beat = lambda each, **changed: (ailing if each is figure else whole)(each, **changed)  # type: ignore
    desk.wait(HASTY.dead_s - 0.5)
    assert not desk.take_jobs(Copy)
    desk.wait(2.0)
    assert {desk.figure(job.server).name for job in desk.take_jobs(Copy)} == {"web-3"}


def test_the_only_holder_is_named_though_it_is_ailing(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1",))
    stuck(desk, desk.figures["web-1"], 99.0)
    assert holders(desk) == [desk.figures["web-1"].no]


def test_a_probe_that_another_server_answers_is_no_sign_of_life(desk: Desk) -> None:
    """On a port that was used again, before the balancer has heard of it."""
    lost, other = desk.figures["web-1"], desk.figures["web-2"]
    whole = desk.answer_of

    def answer_of(figure: Figure, question: Any) -> Any:
        return whole(other if isinstance(question, Ping) else figure, question)

    desk.answer_of = answer_of  # type: ignore[method-assign]
    desk.wait(HASTY.probe_s + 0.5)
    assert state(desk, lost.name) == "suspect" and state(desk, other.name) == ALIVE
    assert desk.balancer.counters["probes unanswered"] >= 2
    desk.answer_of = whole  # type: ignore[method-assign]
    desk.wait(HASTY.probe_s)
    assert state(desk, lost.name) == ALIVE


def test_nor_is_the_answer_of_a_life_before(desk: Desk) -> None:
    """The same server, started again at the same place: that it lives its hello will tell."""
    figure = desk.figures["web-1"]
    before = figure.incarnation
    whole = desk.answer_of

    def answer_of(each: Figure, question: Any) -> Any:
        late = each is figure and isinstance(question, Ping)
        return Pong(figure.name, 0, 1, before + 1) if late else whole(each, question)

    desk.answer_of = answer_of  # type: ignore[method-assign]
    desk.wait(HASTY.probe_s + 0.5)
    assert state(desk, "web-1") == "suspect"


def test_a_probe_that_a_life_before_left_unanswered_does_not_make_the_new_one_far(desk: Desk) -> None:
    figure = desk.figures["web-1"]
    asked_at = desk.now
    desk.wait(0.1)
    figure.restart()
    desk.rejoin(figure)
    desk.happen(Unanswered(("probe", figure.no, asked_at)))
    assert desk.balancer.loads.far_s[figure.no] == 0.0
    desk.happen(Unanswered(("probe", figure.no, desk.now)))
    assert desk.balancer.loads.far_s[figure.no] > 0.0


def test_an_older_server_answers_by_its_name(desk: Desk) -> None:
    """Its pong has no incarnation."""
    whole = desk.answer_of

    def answer_of(figure: Figure, question: Any) -> Any:
        return Pong(figure.name, 0, 1) if isinstance(question, Ping) else whole(figure, question)

    desk.answer_of = answer_of  # type: ignore[method-assign]
    desk.wait(2 * HASTY.probe_s)
    assert state(desk, "web-1") == ALIVE
    desk.answer_of = lambda figure, question: (  # type: ignore[method-assign]
        Pong("balancer", 0, 1) if isinstance(question, Ping) else whole(figure, question)
    )
    desk.wait(2 * HASTY.probe_s)
    assert state(desk, "web-1") == "suspect"


# -- what cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figures",
    [
        {"bytes_free": 1 << 63}, {"bytes_stored": (1 << 64) - 1}, {"served": 1 << 62}, {"visits": 1 << 61},
        {"waiting": 1 << 63}, {"pages": 1 << 63},
    ],
)  # fmt: skip
def test_impossible_figures_are_passed_over_counted_and_logged_once(
    desk: Desk, figures: dict[str, int]
) -> None:
    before = next(server for server in desk.get(Status()).servers if server.name == "web-1")
    for _ in range(3):
        desk.beat(desk.figures["web-1"], **figures)
    after = next(server for server in desk.get(Status()).servers if server.name == "web-1")
    assert (after.bytes_free, after.bytes_stored, after.upload_load) == (
        before.bytes_free, before.bytes_stored, before.upload_load,
    )  # fmt: skip
    assert desk.balancer.counters["impossible: figures that cannot be"] == 3
    assert len([line for line in desk.log if "cannot be" in line]) == 1
    assert after.state == ALIVE, "it is alive all the same"


def test_counts_that_fall_within_a_life_are_impossible(desk: Desk) -> None:
    figure = desk.figures["web-1"]
    desk.beat(figure, served=100)
    desk.beat(figure, served=99)
    assert desk.balancer.counters["impossible: figures that cannot be"] == 1
    desk.rejoin(figure)
    desk.beat(figure, served=1)
    assert desk.balancer.counters["impossible: figures that cannot be"] == 1
