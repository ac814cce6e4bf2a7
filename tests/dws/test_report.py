"""What people ask the balancer: stat, list, why, status. An answer shows what is now, and changes nothing."""

import pytest

from dws.config import Config
from dws.messages import List, Locate, Ping, Pong, Stat, Status, Why
from tests.dws.desk import Desk, page


@pytest.fixture
def desk() -> Desk:
    desk = Desk("web-1", "web-2", "web-3")
    desk.put(1, "/a", b"12345", on=("web-1", "web-2"))
    desk.put(2, "/b", b"1234567", on=("web-3",))
    return desk


def test_stat_names_the_record_and_its_holders_with_their_states(desk: Desk) -> None:
    desk.silent.add("web-2")
    desk.wait(1.0)
    found, missing = desk.get(Stat(["/a", "/none"])).pages
    assert missing is None
    assert (found.record.name, found.record.size, found.record.version) == ("/a", 5, desk.version("/a"))
    assert [(holder.name, holder.state) for holder in found.holders] == [
        ("web-1", "alive"),
        ("web-2", "suspect"),
    ]


def test_list_gives_records_in_order_and_says_whether_there_are_more(desk: Desk) -> None:
    listing = desk.get(List("/", "", 1))
    assert [each.name for each in listing.records] == ["/a"] and listing.more
    listing = desk.get(List("/", "/a", 5))
    assert [each.name for each in listing.records] == ["/b"] and not listing.more


def test_why_names_the_choice_and_everybodys_figures(desk: Desk) -> None:
    desk.beat(desk.figures["web-1"], waiting=50, service_s=1e-3)
    because = desk.get(Why("/a"))
    assert (because.policy, because.version, because.chosen) == ("least-load", desk.version("/a"), "web-2")
    reasons = {choice.server: (choice.holds, choice.reason) for choice in because.choices}
    assert reasons == {
        "web-1": (True, "eligible"),
        "web-2": (True, "eligible"),
        "web-3": (False, "does not hold this version"),
    }
    loads = {choice.server: choice.download_load_s for choice in because.choices}
    assert loads["web-1"] > loads["web-2"]
    assert because.choices[0].waiting == 50
    assert desk.get(Locate(["/a"])).pages[0][4][0] == desk.figures["web-2"].no, "as a lookup would choose"


def test_why_says_what_keeps_a_holder_from_being_chosen(desk: Desk) -> None:
    desk.silent.add("web-1")
    desk.wait(1.0)
    choices = {choice.server: choice for choice in desk.get(Why("/a")).choices}
    assert choices["web-1"].reason == "is suspect" and choices["web-1"].upload_load is None
    desk.wait(2.0)
    choices = {choice.server: choice for choice in desk.get(Why("/a")).choices}
    assert choices["web-1"].reason == "is dead" and choices["web-1"].download_load_s is None


def test_why_of_no_page_chooses_nobody(desk: Desk) -> None:
    because = desk.get(Why("/none"))
    assert (because.version, because.chosen) == (0, "")
    assert not any(choice.holds for choice in because.choices)


def test_asking_why_is_no_assignment(desk: Desk) -> None:
    before = list(desk.balancer.loads.download)
    for _ in range(5):
        desk.get(Why("/a"))
        desk.get(Status())
        desk.get(Stat(["/a"]))
    assert desk.balancer.loads.download == before


def test_status_counts_pages_by_their_live_copies(desk: Desk) -> None:
    status = desk.get(Status())
    assert (status.pages, status.bytes_visible, status.page_copies) == (2, 12, [0, 1, 1, 0])
    desk.die(desk.figures["web-3"])
    assert desk.get(Status()).page_copies == [1, 0, 1, 0]
    desk.put(3, "/c", on=("web-1",))
    assert desk.get(Status()).page_copies == [1, 1, 1, 0]


def test_status_counts_what_is_open_and_what_is_garbage(desk: Desk) -> None:
    desk.reserve(5, page("/open"))
    desk.put(6, "/a", b"new", on=("web-1", "web-2"))
    status = desk.get(Status())
    assert (status.open_batches, status.garbage) == (1, 2)
    assert status.decision == len(desk.store.decisions) and status.epoch == desk.epoch
    assert status.cluster == desk.store.cluster and status.copies == Config().copies


def test_status_shows_each_server_as_it_beat_last(desk: Desk) -> None:
    figure = desk.figures["web-1"]
    desk.beat(
        figure, served=100, failed=3, waiting=2, visits=40, visits_last=60, cpu_share=0.5, bytes_sent=999
    )
    desk.now += 0.25
    server = desk.get(Status()).servers[figure.no - 1]
    assert (server.name, server.state, server.endpoint) == ("web-1", "alive", "tcp://web-1:1")
    assert (server.served, server.failed, server.waiting) == (100, 3, 2)
    assert (server.visits, server.visits_last_period, server.bytes_sent) == (40, 60, 999)
    assert (server.pages, server.bytes_stored) == (1, 5)
    # What uploads may still take, as placements are decided by.
    assert server.bytes_free == desk.balancer.loads.bytes_free(figure.no) < figure.bytes_free
    assert server.last_beat_age_s == pytest.approx(0.25)


def test_a_dead_server_stays_in_the_status_with_its_state(desk: Desk) -> None:
    desk.die(desk.figures["web-2"])
    server = desk.get(Status()).servers[desk.figures["web-2"].no - 1]
    assert (server.state, server.download_load_s, server.upload_load) == ("dead", -1.0, -1.0)


def test_lookups_are_counted(desk: Desk) -> None:
    before = desk.get(Status()).lookups
    desk.get(Locate(["/a", "/b", "/none"]))
    assert desk.get(Status()).lookups == before + 3


def test_a_ping_tells_the_epoch(desk: Desk) -> None:
    assert desk.get(Ping()) == Pong("balancer", 0, desk.epoch)
