"""The last choices, as samples: at most one each quarter second, with what was weighed."""

import pytest

from dws.choices import SAMPLE_S, Choices
from dws.config import Config
from dws.limits import CHOICES_MAX
from dws.load import Loads
from dws.messages import Locate, NodeStats, Status
from tests.dws.desk import Desk


@pytest.fixture
def desk() -> Desk:
    desk = Desk("web-1", "web-2", "web-3")
    desk.put(1, "/a", b"12345", on=("web-1", "web-2"))
    desk.put(2, "/b", b"1234567", on=("web-3",))
    desk.wait(1.0)
    return desk


def test_a_choice_names_the_holders_as_they_were_weighed(desk: Desk) -> None:
    before = {s.name: s.download_load_s for s in desk.get(Status()).servers}
    desk.get(Locate(["/b", "/a"]))
    [choice] = desk.get(Status()).choices
    assert (choice.name, choice.version, choice.age_s) == ("/a", desk.version("/a"), 0.0)
    assert choice.chosen == choice.candidates[0][0]
    assert dict(choice.candidates) == pytest.approx({name: before[name] for name in ("web-1", "web-2")})
    assert choice.reason == "least download load of 2"


def test_reasons_of_a_single_candidate(desk: Desk) -> None:
    desk.get(Locate(["/b"]))
    desk.wait(SAMPLE_S)
    desk.get(Locate(["/a"], avoid=[desk.figures["web-1"].no]))
    desk.wait(SAMPLE_S)
    desk.silent.add("web-1")
    desk.wait(1.0)
    desk.get(Locate(["/a"]))
    told = [(choice.chosen, choice.reason) for choice in desk.get(Status()).choices]
    assert told == [
        ("web-2", "the only live copy of 2"),
        ("web-2", "the client avoids the others"),
        ("web-3", "the only copy"),
    ]


def test_pages_that_are_not_there_are_no_choices(desk: Desk) -> None:
    desk.get(Locate(["/none"]))
    desk.get(Locate([]))
    assert desk.get(Status()).choices == []


def test_one_sample_each_quarter_second_and_a_bounded_number() -> None:
    choices = Choices("least-load")
    loads = Loads(Config())
    for number in range(2):
        loads.add(number)
    loads.open(0, True, 100.0)
    taken = 0
    for step in range(1000):
        now = 100 + step * SAMPLE_S / 10
        if now >= choices.due:
            taken += 1
            loads.assign(0, 3, now)
            choices.note("/a", (1, 1, b"", b"", [0, 1]), (0, 1), None, loads, now)
    assert taken in (100, 101)
    recent = choices.recent(lambda number: f"web-{number}", now)
    assert len(recent) == CHOICES_MAX
    assert [each.age_s for each in recent] == sorted(each.age_s for each in recent), "newest first"
    assert recent[0].candidates == [
        ("web-0", pytest.approx(loads.servers[0].rtt_s + 2 * loads.per_page_s[0])),
        ("web-1", -1.0),
    ]


def test_the_balancer_tells_its_counters(desk: Desk) -> None:
    desk.get(Locate(["/a", "/b"]))
    told = desk.get(NodeStats(10))
    assert told.name == "balancer" and told.hot == [] and told.counters["names looked up"] == 2.0
