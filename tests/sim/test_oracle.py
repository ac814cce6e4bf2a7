"""The oracle's own tests: a world that works is tampered with behind the machines' backs, and it is told
which rule that breaks. Rules that planted bugs break are shown there (test_planted_bugs.py).
"""

from collections.abc import Callable
from random import Random

import pytest
from msgspec.structs import replace

from dws.messages import ABSENT, Applied, Located, Outcome
from dws.sim.observer import CONFLICT, DONE, FAILED, GET, MISSING, PUT, REMOVE, BrokenInvariant, Call
from dws.sim.options import Options
from dws.sim.oracle import Oracle
from dws.sim.rules import RULES
from dws.sim.server_node import ServerNode
from dws.sim.world import World
from dws.store import Damaged, Decision, SetAside

OPTIONS = Options(servers=4, clients=3, think_s=0.1, large=0.0)


class Tampered:
    """A cluster after some seconds of work, with at least two pages that were put again and again."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        self.world = World(7, OPTIONS, self.oracle)
        self.world.start()
        self.world.run(1.0)
        self.world.workload.begin()
        self.world.run(4.0)
        self.world.check_all()
        names = sorted(self.world.truth)
        self.name, self.other = names[0], names[1]
        self.version = self.world.truth[self.name]
        self.key = self.name, self.version

    @property
    def moments(self) -> list[dict[str, int]]:
        return self.world.truths

    def call(self, kind: str, **fields: object) -> Call:
        call = Call("client-9", kind, [self.name], self.world.now, self.world.known, **fields)  # type: ignore[arg-type]
        self.oracle.called(call)
        return call

    def end(self, call: Call, outcome: str) -> None:
        call.outcome, call.ended = outcome, self.world.now
        self.oracle.returned(call)

    def decision(self, **fields: object) -> Decision:
        """Of a removal that client-9 calls for now."""
        call = self.call(REMOVE)
        self.world.workload.calls[b"9" * 16] = call
        version = self.world.balancer.balancer.placement._next_version()
        return replace(Decision(0, b"9" * 16, version, [], [self.name], 0.0), **fields)


def loses_a_disk(t: Tampered) -> None:
    for disk in t.world.disks:
        if t.key in disk.held:
            disk._release(*t.key)
    t.world.check_all()


def loses_one_of_two(t: Tampered) -> None:
    next(disk for disk in t.world.disks if t.key in disk.held)._release(*t.key)
    t.world.check_all()


def believe(t: Tampered, name: str, **changed: object) -> None:
    """The balancer's picture of `name` is that of the page as it is, but for what is changed."""
    catalog = t.world.balancer.balancer.catalog
    catalog.pages = {**catalog.pages, name: replace(catalog.pages[t.name], **changed)}


def counts_a_holder_that_has_none(t: Tampered) -> None:
    believe(t, t.name, holders=(1, 2, 3, 4))
    t.oracle.check_all()


def set_aside_on(t: Tampered, server: ServerNode) -> None:
    """It finds its copy damaged, and a crash in the commit keeps that: nobody but the disk knows of it."""
    t.world.faults.rotting = server
    server.disk.rot(*t.key)
    server.disk.write([SetAside([Damaged(*t.key, 0, "wrong bytes")])])
    server.disk.rng = Random(0)
    t.world.kill(server, 0.5)
    assert t.key in server.disk.aside and t.key not in server.disk.held


def holder(t: Tampered) -> ServerNode:
    return next(
        server for server in t.world.servers if t.key in server.disk.held and server.disk.held[t.key].data
    )


def counts_what_was_set_aside_when_that_was_told(t: Tampered) -> None:
    server = holder(t)
    set_aside_on(t, server)
    t.world.workload.stop()
    machine = t.world.balancer.balancer
    number = machine.members.by_id[server.disk.identity.server].number
    t.world.run(10.0, until=lambda: server.up and machine.sync.applied(number) == server.disk.number)
    believe(t, t.name, holders=(*machine.catalog.pages[t.name].holders, number))
    t.oracle.check_all()


def lies_twice_on_a_server(t: Tampered) -> None:
    first = t.world.balancer.balancer.catalog.pages[t.name].holders[0]
    believe(t, t.name, holders=(first, first))
    t.oracle.check_all()


def starts_in_the_same_epoch(t: Tampered) -> None:
    t.world.balancer.crash()
    t.world.catalog.epoch -= 1
    t.world.balancer.start()


def decides_a_batch_of_epoch_0(t: Tampered) -> None:
    t.oracle.decided([t.decision(version=5)])


def decides_for_another_batch(t: Tampered) -> None:
    t.oracle.decided([t.decision(version=t.version)])


def decides_twice(t: Tampered) -> None:
    decision = t.decision()
    t.oracle.decided([decision])
    t.oracle.decided([decision])


def removes_something_else(t: Tampered) -> None:
    t.oracle.decided([t.decision(removes=[t.other])])


def decides_what_was_told_to_have_failed(t: Tampered) -> None:
    decision = t.decision()
    t.end(t.world.workload.calls[b"9" * 16], FAILED)
    t.oracle.decided([decision])


def decides_against_a_condition(t: Tampered) -> None:
    decision = t.decision()
    t.world.workload.calls[b"9" * 16].conditions = {t.name: ABSENT}
    t.oracle.decided([decision])


def tells_done_of_nothing(t: Tampered) -> None:
    t.end(t.call(PUT), DONE)


def tells_visible_of_nothing(t: Tampered) -> None:
    t.oracle.told("peer 1", Outcome("visible", 12345, 2, 2))


def tells_a_conflict_of_nothing(t: Tampered) -> None:
    t.end(t.call(PUT, conditions={t.name: t.version}), CONFLICT)


def finds_nothing_where_a_page_is(t: Tampered) -> None:
    t.end(t.call(GET), MISSING)


def reads_an_old_version(t: Tampered) -> None:
    call = t.call(GET, versions={t.name: t.version - 1})
    t.end(call, DONE)


def reads_bytes_of_nobody(t: Tampered) -> None:
    t.end(t.call(GET, got={t.name: b"never put"}), DONE)


def reads_two_pages_of_two_moments(t: Tampered) -> None:
    call = t.call(GET)
    call.since, call.names = 0, [t.name, t.other]
    versions = {(moment.get(t.name, 0), moment.get(t.other, 0)) for moment in t.moments}
    call.versions = next(
        {t.name: one, t.other: other}
        for one in sorted({one for one, _ in versions if one})
        for other in sorted({other for _, other in versions if other})
        if (one, other) not in versions
    )
    t.end(call, DONE)


def reads_what_was_replaced_long_before(t: Tampered) -> None:
    """Beginning at a time that the balancer's own account has wrong: clients' times show it all the same."""
    old = next(moment[t.name] for moment in t.moments if moment.get(t.name, t.version) != t.version)
    call = t.call(GET, versions={t.name: old})
    call.since = 0
    t.end(call, DONE)
    t.oracle.check_end()


def names_an_old_version(t: Tampered) -> None:
    t.oracle.told("peer 1", Located(1, 1, None, [(5, 1, b"", b"", [1])], []))


def keeps_what_was_removed(t: Tampered) -> None:
    believe(t, "/gone")
    t.oracle.check_all()


def forgets_what_is_visible(t: Tampered) -> None:
    catalog = t.world.balancer.balancer.catalog
    catalog.pages = {name: entry for name, entry in catalog.pages.items() if name != t.name}
    t.oracle.check_all()


def goes_back_to_an_older_life(t: Tampered) -> None:
    t.oracle.told("peer 1", Applied(1))
    next(iter(t.world.balancer.balancer.members.by_number.values())).incarnation -= 1 << 32
    t.oracle.told("peer 1", Applied(1))


def takes_a_picture_for_what_it_is_not(t: Tampered) -> None:
    for picture in t.world.balancer.balancer.catalog.pictures.values():
        picture.sums[0] += 1
    t.oracle.told("peer 1", Applied(1))


def answers_twice(t: Tampered) -> None:
    t.oracle.request("client-1", "tcp://a:1", 77)
    t.oracle.reply("a", "tcp://a:1", 3, 77)
    t.oracle.reply("a", "tcp://a:1", 3, 77)


def answers_nobody(t: Tampered) -> None:
    t.oracle.reply("a", "tcp://a:1", 3, 78)


def does_not_end(t: Tampered) -> None:
    t.call(PUT)
    t.world.clock.now += 100
    t.oracle.check_all()


CASES: list[tuple[str, Callable[[Tampered], None]]] = [
    ("lost", loses_a_disk),
    ("lost", loses_one_of_two),
    ("presence", counts_a_holder_that_has_none),
    ("presence", counts_what_was_set_aside_when_that_was_told),
    ("twice", lies_twice_on_a_server),
    ("epoch-reused", starts_in_the_same_epoch),
    ("earlier-epoch", decides_a_batch_of_epoch_0),
    ("version-reused", decides_for_another_batch),
    ("decided-once", decides_twice),
    ("acknowledged", removes_something_else),
    ("told-failed", decides_what_was_told_to_have_failed),
    ("condition", decides_against_a_condition),
    ("acknowledged", tells_done_of_nothing),
    ("acknowledged", tells_visible_of_nothing),
    ("conflict", tells_a_conflict_of_nothing),
    ("linearizable", finds_nothing_where_a_page_is),
    ("linearizable", reads_an_old_version),
    ("bytes", reads_bytes_of_nobody),
    ("batch-whole", reads_two_pages_of_two_moments),
    ("history", reads_what_was_replaced_long_before),
    ("located", names_an_old_version),
    ("revived", keeps_what_was_removed),
    ("located", forgets_what_is_visible),
    ("incarnation", goes_back_to_an_older_life),
    ("picture", takes_a_picture_for_what_it_is_not),
    ("one-reply", answers_twice),
    ("one-reply", answers_nobody),
    ("deadline", does_not_end),
]


@pytest.fixture
def tampered() -> Tampered:
    return Tampered()


@pytest.mark.parametrize(("rule", "tamper"), CASES, ids=[tamper.__name__ for _, tamper in CASES])
def test_what_breaks_a_rule_is_found_and_named(
    rule: str, tamper: Callable[[Tampered], None], tampered: Tampered
) -> None:
    with pytest.raises(BrokenInvariant) as broken:
        tamper(tampered)
    assert broken.value.rule == rule, broken.value


def test_without_it_all_is_well(tampered: Tampered) -> None:
    tampered.world.check_all()
    tampered.oracle.check_end()


def test_what_a_disk_set_aside_may_count_until_that_is_told(tampered: Tampered) -> None:
    """Also where a crash made it durable, so that no commit of it was seen to end."""
    set_aside_on(tampered, holder(tampered))
    assert tampered.world.truth[tampered.name] == tampered.version
    tampered.oracle.check_all()


def test_every_rule_is_shown_to_be_breakable() -> None:
    from tests.sim.planted import PLANTED

    shown = {rule for rule, _ in CASES} | {rule for planted in PLANTED for rule in planted.found_by}
    assert RULES.keys() <= shown
