"""Membership: what a hello is examined for, and what becomes of a server.

The first half asks `Members` alone, one hello after the other; the second watches a whole balancer (desk.py)
while servers fall silent, restart and come back.
"""

from typing import Any

import pytest

from dws.config import Config
from dws.events import Answered
from dws.limits import REBUILD_EPOCH_STEP, SERVERS_MAX
from dws.membership import ALIVE, CONTESTED, DEAD, JOINING, SUSPECT, Members
from dws.messages import Change, Error, Forget, Hello, Locate, Manifest, Stored, Sums, Welcome
from dws.sim.disks import CatalogDisk
from dws.store import CatalogHead, KnownServer
from tests.dws.desk import HASTY, Desk, Figure, page, record

OURS, OTHERS = b"C" * 16, b"D" * 16
EPOCH, NONCE, DECISION = 5, 77, 30
ONE, TWO, THREE = (bytes([number]) * 16 for number in (1, 2, 3))


def members(*known: KnownServer, rebuilt: bool = False, epoch: int = EPOCH) -> Members:
    head = CatalogHead(OURS, epoch, NONCE, DECISION, list(known), rebuilt)
    return Members(head, HASTY, 0.0)


def hello(server: bytes = ONE, name: str = "web-1", **fields: Any) -> Hello:
    endpoint = f"tcp://{name}:1"
    figure = Figure(name, server, 1 << 32, told=(OURS, EPOCH, NONCE, DECISION))
    return figure.hello(**({"pages_endpoint": endpoint, "jobs_endpoint": endpoint} | fields))


def welcomed(to: Members, each: Hello, now: float = 0.0) -> None:
    assert to.examine(each, True, DECISION) is None
    to.know(each)
    to.join(to.by_id[each.server], each, now)


# -- hello, examined -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "knows_start", "code", "says"),
    [
        ({}, True, "", ""),
        ({"cluster": b"", "start_epoch": 0, "decision": 0}, False, "", ""),
        ({"cluster": OTHERS}, True, "wrong-cluster", OTHERS.hex()),
        ({}, False, "behind", f"start {EPOCH}"),
        ({"decision": DECISION + 1}, True, "behind", f"decision {DECISION + 1}"),
        ({"cluster": b"", "decision": 0, "pages": 3}, False, "refused", "3 pages"),
        ({"pages_endpoint": "tcp://*:5"}, True, "bad-request", "tcp://*:5"),
        ({"jobs_endpoint": "ipc:///tmp/x"}, True, "bad-request", "ipc"),
    ],
)
def test_a_hello_is_examined_for_its_cluster_its_start_and_its_decision(
    fields: dict[str, Any], knows_start: bool, code: str, says: str
) -> None:
    refusal = members().examine(hello(**fields), knows_start, DECISION)
    assert (refusal.code if refusal else "") == code
    assert says in str(refusal)


def test_the_error_says_which_side_is_behind_and_what_to_do() -> None:
    refusal = members().examine(hello(decision=DECISION + 1), True, DECISION)
    assert f"this catalog ends at {DECISION}" in str(refusal)
    assert "nothing was dropped" in str(refusal) and "--rebuild" in str(refusal)


def test_a_hello_of_an_earlier_incarnation_is_refused() -> None:
    known = members()
    welcomed(known, hello(incarnation=3 << 32))
    refusal = known.examine(hello(incarnation=2 << 32), True, DECISION)
    assert refusal is not None and refusal.code == "stale" and "twice" in str(refusal)
    assert known.examine(hello(incarnation=3 << 32), True, DECISION) is None, "said again"
    assert known.examine(hello(incarnation=4 << 32), True, DECISION) is None, "restarted"


def test_a_name_belongs_to_one_server_at_a_time() -> None:
    known = members()
    welcomed(known, hello(ONE, "web-1"))
    refusal = known.examine(hello(TWO, "web-1"), True, DECISION)
    assert refusal is not None and refusal.code == "refused" and "--name" in str(refusal)
    known.by_id[ONE].heard = DEAD
    welcomed(known, hello(TWO, "web-1"))
    assert known.examine(hello(THREE, "web-1"), True, DECISION) is not None, "its first owner is dead"
    assert known.examine(hello(ONE, "web-1"), True, DECISION) is not None, "nor may that one have it back"
    assert known.examine(hello(ONE, "web-one"), True, DECISION) is None, "but another name"


def test_a_server_that_was_only_read_in_the_catalog_blocks_no_name() -> None:
    """After a restart of the balancer, one that never came back must not keep its successor out."""
    known = members(KnownServer(1, ONE, "web-1"), KnownServer(2, TWO, "web-1"))
    assert known.examine(hello(TWO, "web-1"), True, DECISION) is None


def test_a_renamed_server_keeps_its_number_and_clients_are_told() -> None:
    known = members(KnownServer(4, ONE, "old"))
    welcomed(known, hello(ONE, "new"))
    assert (known.by_number[4].name, known.by_id[ONE].number) == ("new", 4)
    table = known.table
    welcomed(known, hello(ONE, "newer"))
    assert known.table > table


def test_a_new_server_gets_the_next_number_to_be_made_durable() -> None:
    known = members(KnownServer(4, ONE, "web-1"))
    assert known.know(hello(ONE)) is None
    assert known.know(hello(TWO, "web-2")) == KnownServer(5, TWO, "web-2")
    assert known.know(hello(TWO, "web-2")) is None


def test_the_number_of_servers_is_bounded() -> None:
    known = members(*(KnownServer(n, n.to_bytes(16, "big"), f"web-{n}") for n in range(1, SERVERS_MAX + 1)))
    refusal = known.examine(hello(b"x" * 16, "one-more"), True, DECISION)
    assert refusal is not None and refusal.code == "over-bound" and str(SERVERS_MAX) in str(refusal)
    assert known.examine(hello((1).to_bytes(16, "big"), "web-1"), True, DECISION) is None


def test_the_table_that_clients_cache_is_never_the_same_in_two_epochs() -> None:
    """Or a client would take the table before a restart for the one after it."""
    early, late = members(epoch=EPOCH), members(epoch=EPOCH + 1)
    for number in range(1, 9):
        welcomed(early, hello(bytes([number]) * 16, f"web-{number}"))
    assert early.table < late.table


def test_the_table_rises_only_when_it_changes() -> None:
    known = members()
    welcomed(known, hello())
    table = known.table
    welcomed(known, hello())
    assert known.table == table
    welcomed(known, hello(incarnation=2 << 32))
    assert known.table == table + 1
    welcomed(known, hello(incarnation=2 << 32, pages_endpoint="tcp://web-1:2"))
    assert known.table == table + 2
    (ref,) = known.refs()
    assert (ref.endpoint, ref.incarnation) == ("tcp://web-1:2", 2 << 32)


def test_a_rebuilt_catalog_takes_servers_that_the_lost_one_had_told_more() -> None:
    rebuilt = members(rebuilt=True, epoch=REBUILD_EPOCH_STEP + EPOCH)
    assert rebuilt.examine(hello(decision=DECISION + 99), False, DECISION) is None
    since = hello(start_epoch=REBUILD_EPOCH_STEP + 1, decision=DECISION + 99)
    refusal = rebuilt.examine(since, True, DECISION)
    assert refusal is not None and refusal.code == "behind"


# -- states ----------------------------------------------------------------------------


@pytest.fixture
def desk() -> Desk:
    return Desk("web-1", "web-2", "web-3")


def state(desk: Desk, name: str) -> str:
    return desk.balancer.members.by_number[desk.figures[name].no].state


def test_a_server_is_joining_until_it_is_synced_and_alive_from_then_on() -> None:
    desk = Desk()
    figure = desk.figures["web-1"] = Figure("web-1", ONE, 1 << 32)
    assert isinstance(desk.hello(figure), Welcome)
    assert state(desk, "web-1") == JOINING
    assert not desk.get(Locate(["/a"])).pages[0]
    desk.fsync()
    desk.answer_asks()
    assert state(desk, "web-1") == ALIVE


def test_silence_makes_a_server_suspect_then_dead_and_a_beat_alive_again(desk: Desk) -> None:
    desk.silent.add("web-1")
    desk.wait(0.5)
    assert state(desk, "web-1") == ALIVE
    desk.wait(0.5)
    assert state(desk, "web-1") == SUSPECT
    desk.silent.clear()
    desk.wait(0.2)
    assert state(desk, "web-1") == ALIVE
    desk.silent.add("web-1")
    desk.wait(HASTY.dead_s + 0.2)
    assert state(desk, "web-1") == DEAD
    assert desk.figures["web-1"].no not in desk.linked
    desk.silent.clear()
    desk.wait(0.2)
    assert state(desk, "web-1") == ALIVE, "a beat and a comparison bring it back, without a hello"
    assert desk.figures["web-1"].no in desk.linked


def test_a_broken_connection_accuses_at_once_and_kills_sooner(desk: Desk) -> None:
    desk.silent.add("web-1")
    desk.link(desk.figures["web-1"], up=False)
    assert state(desk, "web-1") == SUSPECT
    desk.wait(HASTY.down_dead_s + 0.2)
    assert state(desk, "web-1") == DEAD


def test_a_suspect_gets_no_lookups_while_another_holder_lives(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.put(2, "/b", on=("web-1",))
    desk.silent.add("web-1")
    desk.wait(1.0)
    located = desk.get(Locate(["/a", "/b"]))
    assert list(located.pages[0][4]) == [desk.figures["web-2"].no]
    assert list(located.pages[1][4]) == [desk.figures["web-1"].no], "where there is no other, it is asked"


def test_what_only_a_dead_server_has_is_unavailable_and_says_where_it_was(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1",))
    desk.die(desk.figures["web-1"])
    located = desk.get(Locate(["/a", "/none"]))
    assert list(located.pages[0][4]) == [] and located.pages[1] is None
    (later,) = located.later
    assert (later.index, later.retry_s, later.last) == (0, 0.0, "web-1")


def test_what_nobody_holds_may_yet_come_with_a_server_that_is_to_sync(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1",))
    after = Desk(store=desk.store)
    (later,) = after.get(Locate(["/a"])).later
    assert later.retry_s > 0, "the catalog knows of servers that have not come yet"
    after.wait(HASTY.dead_s + 0.2)
    (later,) = after.get(Locate(["/a"])).later
    assert later.retry_s == 0.0 and "web-1" in later.last


def test_a_restarted_server_counts_again_when_it_was_compared(desk: Desk) -> None:
    desk.put(1, "/a", on=("web-1",))
    figure = desk.figures["web-1"]
    figure.restart()
    desk.hello(figure)
    assert state(desk, "web-1") == JOINING
    (later,) = desk.get(Locate(["/a"])).later
    assert later.retry_s > 0
    desk.answer_asks()
    assert list(desk.get(Locate(["/a"])).pages[0][4]) == [figure.no]


def test_a_hello_during_a_comparison_does_not_begin_it_anew(desk: Desk) -> None:
    """It is said every few seconds, and a large manifest takes longer."""
    figure = desk.figures["web-1"]
    figure.held = {(f"/{number}", 1): record(f"/{number}", 1) for number in range(20)}
    figure.restart()
    desk.hello(figure)
    sums = desk.asks.pop()
    assert isinstance(sums.message, Sums) and not desk.asks
    desk.hello(figure)
    assert not desk.asks
    desk.happen(Answered(sums.tag, desk.answer_of(figure, sums.message)))
    asked = len(desk.asks)
    assert asked and all(isinstance(each.message, Manifest) for each in desk.asks)
    desk.hello(figure)
    assert len(desk.asks) == asked
    desk.answer_asks()
    assert desk.balancer.sync.is_live(figure.no)


def test_a_beat_of_another_incarnation_changes_nothing(desk: Desk) -> None:
    figure = desk.figures["web-1"]
    figure.restart()
    desk.wait(1.0)  # it beats, but has said no hello
    assert state(desk, "web-1") == SUSPECT


def test_two_that_claim_one_id_get_no_placements(desk: Desk) -> None:
    """A copied directory: the one that started later is followed; the earlier one still beats."""
    old = desk.figures["web-1"]
    young = Figure("web-1", old.id, old.incarnation + (1 << 32), no=old.no)
    desk.figures["web-1"] = young
    desk.hello(young)
    desk.answer_asks()
    desk.beat(young)
    desk.beat(old)
    assert state(desk, "web-1") == ALIVE, "the last beats of a process that has just ended prove nothing"
    desk.wait(2.5)
    desk.beat(old)
    assert state(desk, "web-1") == CONTESTED
    assert isinstance(desk.hello(old), Error)
    for number in range(1, 20):
        primary = desk.reserve(number, page(f"/{number}")).primary
        assert primary is not None and primary.number != young.no
    desk.rejoin(young)
    assert state(desk, "web-1") == ALIVE


def test_a_balancer_on_an_old_catalog_is_refused_and_orders_nothing() -> None:
    """Somebody restored a backup: every server knows better, and none is told to drop anything."""
    desk = Desk("web-1", "web-2")
    desk.put(1, "/a", on=("web-1", "web-2"))
    backup = desk.store.backup()
    version = desk.put(2, "/b", on=("web-1", "web-2"))
    for figure in desk.figures.values():
        desk.hello(figure)  # and is told the decision number of now
    for store in (backup, CatalogDisk(desk.store.rng)):
        wrong = Desk(store=store)
        wrong.figures = desk.figures
        for figure in desk.figures.values():
            refusal = wrong.hello(figure)
            assert refusal.code in ("behind", "wrong-cluster"), refusal
        wrong.wait(3 * wrong.config.garbage_s)
        assert not wrong.jobs and not wrong.linked
        assert wrong.errors()["error"] >= 2
    assert desk.version("/b") == version


def test_a_late_hello_does_not_make_an_old_catalog_the_servers() -> None:
    """Said before its sender was told more, and read by a balancer on an old copy: that offers itself, which
    the sender refuses, and counts on nobody."""
    desk = Desk("web-1", "web-2", "web-3")
    desk.put(1, "/a", on=("web-1", "web-2"))
    backup = desk.store.backup()
    late = [figure.hello(decision=backup.decision) for figure in desk.figures.values()]
    desk.put(2, "/b", on=("web-1", "web-2"))
    wrong = Desk(store=backup)
    wrong.figures = desk.figures
    for each in late:
        answer = wrong.report(each)
        assert isinstance(answer, Welcome) and answer.decision == backup.decision
        known = wrong.balancer.members.by_id[each.server]
        assert (known.state, known.incarnation) == (JOINING, 0)
    wrong.wait(3 * wrong.config.garbage_s)
    assert not wrong.jobs and not wrong.linked
    assert not wrong.get(Locate(["/a"])).pages[0][4], "no reader is led to a copy"
    assert removal_error(wrong) == "try-again"
    for figure in desk.figures.values():
        desk.hello(figure)  # and is told the decision number of now
        assert wrong.hello(figure).code == "behind", "what it says next"


def test_a_server_joins_with_the_hello_that_names_the_start(desk: Desk) -> None:
    again = Desk(store=desk.store)
    figure = again.figures["web-1"] = desk.figures["web-1"]
    offered = again.report(figure.hello())
    assert isinstance(offered, Welcome)
    assert not again.asks and not again.linked
    assert again.report(Stored(figure.incarnation, [])).text == "say hello first"
    figure.told = (offered.cluster, offered.epoch, offered.nonce, offered.decision)
    assert again.report(figure.hello()) == offered
    assert again.linked == [figure.no]
    again.answer_asks()
    assert state(again, "web-1") == ALIVE


def test_a_flood_of_hellos_is_answered_each_and_changes_nothing(desk: Desk) -> None:
    before = desk.balancer.members.table
    for _ in range(5):
        for figure in desk.figures.values():
            assert isinstance(desk.hello(figure), Welcome)
    assert desk.balancer.members.table == before
    assert [state(desk, name) for name in desk.figures] == [ALIVE] * 3


def test_a_report_before_a_hello_is_refused() -> None:
    desk = Desk()
    stranger = Figure("web-1", ONE, 1 << 32)
    desk.figures["web-1"] = stranger
    answer = desk.report(Stored(stranger.incarnation, [Change(1, [record("/a", 1)], [])]))
    assert answer.code == "refused"


def test_the_defaults_kill_a_hung_server_later_than_a_crashed_one() -> None:
    config = Config()
    assert config.suspect_s < config.down_dead_s < config.dead_s


# -- a catalog that nobody has vouched for -------------------------------------------------


def removal_error(desk: Desk) -> str:
    """What a removal is told at once: an error's code, nothing if it goes its way."""
    token = desk.remove(len(desk.answers) + 100, "/a")
    answer = desk.answers.get(token)
    return answer.code if isinstance(answer, Error) else ""


def again_with(*names: str) -> tuple[Desk, Desk]:
    """A cluster of these servers, and a balancer that begins anew on its catalog."""
    desk = Desk(*names)
    desk.put(1, "/a", on=names[:2])
    again = Desk(store=desk.store)
    again.figures = desk.figures
    return desk, again


def test_nothing_is_removed_before_a_known_server_was_welcomed() -> None:
    desk, again = again_with("web-1", "web-2")
    assert removal_error(again) == "try-again"
    assert not again.handed
    again.hello(desk.figures["web-1"])
    assert removal_error(again) == ""
    again.fsync()
    assert "/a" not in again.balancer.catalog.pages


def test_a_new_server_cannot_vouch_for_the_catalog() -> None:
    _, again = again_with("web-1", "web-2")
    again.join("web-9")
    assert removal_error(again) == "try-again"


def test_a_server_that_refuses_the_catalog_leaves_it_in_doubt() -> None:
    desk, again = again_with("web-1", "web-2")
    answer = again.hello(desk.figures["web-1"], decision=1 << 40)
    assert answer.code == "behind"
    assert removal_error(again) == "try-again"


def test_where_no_server_is_known_any_more_nobody_is_waited_for() -> None:
    _, again = again_with("web-1", "web-2")
    again.silent = {"web-1", "web-2"}
    again.wait(20.0)
    for name in ("web-1", "web-2"):
        again.ask(Forget(name, force=True))
        again.fsync()
    assert removal_error(again) == ""
    assert removal_error(Desk()) == ""
