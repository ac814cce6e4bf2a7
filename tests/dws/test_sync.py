"""Sync: the balancer's picture of a disk made to agree with the disk, and kept so.

`Sync` is asked directly; `Disk` answers what it asks for, and a test may change either between a question
and its answer.
"""

from collections.abc import Callable
from itertools import islice
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import field

from dws.catalog import Catalog
from dws.config import Config
from dws.effects import Ask, Effects
from dws.limits import MANIFEST_BUCKETS
from dws.membership import Server
from dws.messages import Change, Dropped, Manifest, ManifestPage, Record, Sums, SumsAre
from dws.names import bucket_of, page_key, sums_digest
from dws.sync import Sync
from tests.dws.desk import Figure, record

NAMES = [f"/{number}" for number in range(40)]
RECORDS = [record(name, number) for number, name in enumerate(NAMES)]
"""Each in a bucket of its own."""
ROUND = MANIFEST_BUCKETS
"""From a version to the next of its bucket."""


class Disk(Figure):
    """A server's store, and the answers to questions about it. cut: records in one answer."""

    cut: int = 1000
    asked: list[Any] = field(default_factory=list)

    def store(self, *added: Record, drop: tuple[tuple[str, int], ...] = ()) -> Change:
        self.number += 1
        self.held |= {(each.name, each.version): each for each in added}
        for key in drop:
            del self.held[key]
        return Change(self.number, list(added), [Dropped(*key) for key in drop])

    def answer(self, question: Any) -> Any:
        self.asked.append(question)
        if isinstance(question, Sums):
            return SumsAre(self.number, self.sums())
        assert isinstance(question, Manifest)
        held = self.manifest(question.bucket)
        found = {each.version.to_bytes(8, "big") + page_key(each.name): each for each in held}
        keys = [key for key in sorted(found) if key > question.after]
        after = keys[self.cut - 1] if len(keys) > self.cut else b""
        return ManifestPage(question.bucket, [found[key] for key in keys[: self.cut]], after)


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.catalog = Catalog()
        self.catalog.add_server(1)
        self.sync = Sync(self.catalog, Config(behind_s=1.0))
        self.sync.add_server(1)
        self.disk = Disk("web-1", b"1" * 16, 1 << 32)
        self.server = Server(1, self.disk.id, "web-1", self.disk.incarnation)

    def begin(self) -> Ask:
        return one(self.sync.begin(self.server))

    def answered(self, ask: Ask, answer: Any = None) -> Effects:
        """The answer to a question comes: what is asked next."""
        answer = answer or self.disk.answer(ask.message)
        _, number, asked = ask.tag
        if isinstance(answer, SumsAre):
            effects = self.sync.sums(number, asked, answer)
        else:
            effects = self.sync.page(number, asked, answer, self.now)
        self.sync.check()
        self.catalog.check()
        return effects

    def load(self) -> None:
        """From a comparison to its end."""
        self.go_on(self.sync.begin(self.server))
        assert self.sync.is_live(1)

    def go_on(self, effects: Effects, choose: Callable[[int], int] = lambda count: 0) -> None:
        """Answer all questions; choose(count): which of those that are open comes next."""
        effects = list(effects)
        while effects:
            effects += self.answered(one([effects.pop(choose(len(effects)))]))

    def stored(self, *changes: Change) -> tuple[int, int]:
        """A report: (how far the balancer says it has got, how many changes were new)."""
        applied, fresh = self.sync.stored(1, self.disk.incarnation, list(changes), self.now)
        return applied.number, len(fresh)

    def beat(self, after_s: float = 0.25, **changed: int) -> Effects:
        self.now += after_s
        figures = {"number": self.disk.number, "digest": sums_digest(self.disk.sums())} | changed
        return self.sync.beat(self.server, figures["number"], figures["digest"], self.now)

    def picture(self) -> set[tuple[str, int]]:
        return set().union(*self.catalog.held_in(1, set(range(256))).values())


def one(effects: Effects) -> Ask:
    (ask,) = effects
    assert isinstance(ask, Ask)
    return ask


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- comparing and loading -------------------------------------------------------------


def test_a_fresh_server_is_live_after_one_question(bench: Bench) -> None:
    ask = bench.begin()
    assert ask.message == Sums(bench.disk.incarnation)
    assert not bench.sync.is_live(1)
    assert bench.answered(ask) == []
    assert bench.sync.is_live(1)


def test_equal_sums_are_enough(bench: Bench) -> None:
    """A restarted server with ten thousand pages is not read again."""
    bench.disk.store(*(record(name, 1) for name in NAMES))
    bench.load()
    bench.disk.asked.clear()
    bench.load()
    assert [type(each) for each in bench.disk.asked] == [Sums]


def test_only_buckets_that_differ_are_read(bench: Bench) -> None:
    bench.disk.store(*RECORDS)
    bench.load()
    bench.disk.asked.clear()
    bench.disk.store(record("/0", 3 * ROUND + 200), drop=(("/1", 1),))
    bench.load()
    _, *manifests = bench.disk.asked
    assert {each.bucket for each in manifests} == {200, 1}
    assert bench.picture() == set(bench.disk.held)


def test_some_buckets_are_asked_for_ahead_and_taken_in_in_their_order(bench: Bench) -> None:
    bench.disk.store(*RECORDS)
    effects = bench.answered(bench.begin())
    assert 1 < len(effects) < 10, "a bounded number"
    first, *ahead = effects
    for ask in reversed(ahead):
        assert bench.answered(one([ask])) == [] and not bench.picture()
    bench.go_on(bench.answered(one([first])))
    assert bench.sync.is_live(1) and bench.picture() == set(bench.disk.held)


def test_a_page_that_nobody_asked_for_has_all_compared_anew(bench: Bench) -> None:
    bench.disk.store(*RECORDS)
    ask, *_ = bench.answered(bench.begin())
    assert bench.answered(one([ask]), ManifestPage(len(RECORDS), [], b"")) == []
    again = one(bench.sync.retry(bench.server, bench.now + 1))
    assert isinstance(again.message, Sums)


def test_a_bucket_is_read_page_by_page(bench: Bench) -> None:
    bench.disk.store(*(record("/0", 1 + rounds * ROUND) for rounds in range(7)))
    bench.disk.cut = 3
    bench.load()
    assert len(bench.disk.asked) == 1 + 3
    assert bench.picture() == set(bench.disk.held)


def test_what_the_disk_has_no_longer_is_released_at_the_end_of_its_bucket(bench: Bench) -> None:
    first, second = "/0", "/1"
    bench.disk.store(record(first, 1), record(second, 1))
    bench.load()
    bench.disk.cut = 1
    bench.disk.store(record(second, 1 + ROUND), drop=((first, 1),))
    ask = one(bench.answered(bench.begin()))
    ask = one(bench.answered(ask))
    assert (first, 1) in bench.picture(), "half a bucket says nothing of what is missing"
    assert bench.answered(ask) == []
    assert bench.picture() == set(bench.disk.held)


@pytest.mark.parametrize(
    "nonsense", ["another bucket's page", "another bucket's records", "the same cursor again"]
)
def test_a_damaged_manifest_releases_nothing_before_its_bucket_ended(bench: Bench, nonsense: str) -> None:
    first, second = "/0", "/1"
    bench.disk.store(record(first, 1), record(second, 1))
    bench.load()
    bench.disk.store(record(second, 1 + ROUND))
    ask = one(bench.answered(bench.begin()))
    bucket = ask.message.bucket
    other = record("/2", 2)
    answer: Any
    if nonsense == "another bucket's page":
        answer = ManifestPage((bucket + 1) % 256, [], b"")
    elif nonsense == "another bucket's records":
        answer = ManifestPage(bucket, [other], b"\x01")
    else:
        more = one(bench.answered(ask, ManifestPage(bucket, [], b"\x02")))
        ask, answer = more, ManifestPage(bucket, [], b"\x02")
    bench.answered(ask, answer)
    assert {(first, 1), (second, 1)} <= bench.picture()
    assert (other.name, other.version) not in bench.picture()
    assert not bench.sync.is_live(1)


@given(rng=st.randoms(use_true_random=False), lies=st.integers(1, 4), cut=st.sampled_from([1, 1000]))
def test_answers_that_name_other_buckets_hold_up_no_comparison_for_ever(
    rng: Random, lies: int, cut: int
) -> None:
    """Hellos do not begin it anew, so whoever is left without an answer has to be asked again."""
    bench = Bench()
    bench.disk.cut = cut
    bench.disk.store(*RECORDS, *(record(each.name, each.version + ROUND) for each in RECORDS))
    open_asks = bench.sync.begin(bench.server)
    while open_asks:
        ask = one([open_asks.pop(rng.randrange(len(open_asks)))])
        answer = None
        if isinstance(ask.message, Manifest) and lies and rng.random() < 0.3:
            lies -= 1
            answer = ManifestPage(bucket_of(rng.choice(RECORDS).version), [], rng.choice([b"", b"\x01"]))
        open_asks += bench.answered(ask, answer)
    bench.go_on(bench.sync.retry(bench.server, bench.now + 10))
    assert bench.sync.is_live(1)


def test_a_late_answer_to_an_earlier_question_is_passed_over(bench: Bench) -> None:
    early = bench.begin()
    late = bench.begin()
    assert bench.answered(early) == [] and not bench.sync.is_live(1)
    bench.answered(late)
    assert bench.sync.is_live(1)


def test_a_question_without_an_answer_is_asked_again(bench: Bench) -> None:
    ask = bench.begin()
    bench.sync.unanswered(1, ask.tag[2], bench.now)
    assert bench.sync.retry(bench.server, bench.now) == []
    again = one(bench.sync.retry(bench.server, bench.now + 1))
    assert again.message == ask.message and again.tag != ask.tag
    assert bench.sync.retry(bench.server, bench.now + 2) == [], "once"


def test_of_the_dead_nothing_is_taken(bench: Bench) -> None:
    bench.load()
    ask = bench.begin()
    bench.sync.stop(1)
    assert bench.answered(ask) == [] and not bench.sync.is_live(1)
    assert bench.stored(bench.disk.store(record("/0", 1))) == (-1, 0)
    assert bench.beat() == []


# -- updates ---------------------------------------------------------------------------


def test_changes_are_applied_in_order_and_once(bench: Bench) -> None:
    bench.load()
    first, second = bench.disk.store(record("/0", 1)), bench.disk.store(drop=(("/0", 1),))
    assert bench.stored(first) == (1, 1)
    assert bench.stored(first, second) == (2, 1), "the first again: it is known"
    assert bench.picture() == set()


def test_a_gap_is_told_and_nothing_behind_it_is_applied(bench: Bench) -> None:
    bench.load()
    changes = [bench.disk.store(record(name, 1)) for name in NAMES[:3]]
    assert bench.stored(changes[0], changes[2]) == (1, 1)
    assert bench.stored(*changes[1:]) == (3, 2)
    assert bench.picture() == set(bench.disk.held)


def test_another_incarnations_changes_are_not_applied(bench: Bench) -> None:
    bench.load()
    change = bench.disk.store(record("/0", 1))
    applied, fresh = bench.sync.stored(1, bench.disk.incarnation + 1, [change], bench.now)
    assert (applied.number, fresh) == (-1, [])


def test_changes_during_a_load_are_told_to_come_again_and_applied_after_it(bench: Bench) -> None:
    bench.disk.store(*RECORDS)
    ask, *rest = bench.answered(bench.begin())
    change = bench.disk.store(record("/0", 2), drop=(("/1", 1),))
    assert bench.stored(change) == (-1, 0)
    bench.go_on([*rest, ask])
    assert bench.stored(change) == (2, 1)
    assert bench.picture() == set(bench.disk.held)
    assert bench.beat() == []


# -- heartbeats ------------------------------------------------------------------------


def test_beats_that_agree_ask_for_nothing(bench: Bench) -> None:
    bench.disk.store(record("/0", 1))
    bench.load()
    assert all(bench.beat() == [] for _ in range(20))


def test_another_digest_at_the_same_number_is_compared_at_once(bench: Bench) -> None:
    bench.disk.store(record("/0", 1), record("/1", 1))
    bench.load()
    del bench.disk.held["/1", 1]  # the disk lost it without a change
    ask = one(bench.beat())
    assert not bench.sync.is_live(1)
    bench.go_on(bench.answered(ask))
    assert bench.sync.is_live(1) and bench.picture() == {("/0", 1)}
    assert bench.beat() == []


def test_a_server_ahead_for_a_second_is_compared(bench: Bench) -> None:
    bench.load()
    bench.disk.store(record("/0", 1))  # its report is lost
    assert [bench.beat() for _ in range(4)] == [[], [], [], []]
    assert one(bench.beat()).message == Sums(bench.disk.incarnation)


def test_an_update_that_comes_in_time_ends_the_wait(bench: Bench) -> None:
    bench.load()
    change = bench.disk.store(record("/0", 1))
    for _ in range(3):
        bench.beat()
    bench.stored(change)
    bench.disk.store(record("/1", 1))
    assert [bench.beat() for _ in range(4)] == [[], [], [], []]


def test_an_old_beat_is_no_evidence(bench: Bench) -> None:
    bench.load()
    for name in NAMES[:3]:
        bench.stored(bench.disk.store(record(name, 1)))
    assert bench.beat(number=1, digest=0) == []


def test_a_beat_during_a_load_does_not_spoil_the_comparison_after_it(bench: Bench) -> None:
    """Half a picture has sums of its own; they must not be remembered for its number."""
    bench.disk.store(*RECORDS)
    effects: Effects = bench.answered(bench.begin())
    assert bench.beat() == []
    while effects:
        effects = [*effects[1:], *bench.answered(one(effects[:1]))]
        assert bench.beat() == []
    assert bench.sync.is_live(1)


# -- all together ----------------------------------------------------------------------

CHANGES = st.lists(
    st.tuples(st.sampled_from(NAMES[:8]), st.sampled_from([1, 2, 1 + ROUND]), st.booleans()), max_size=12
)


@given(
    before=CHANGES, during=CHANGES, lost=st.sets(st.integers(0, 7)), cut=st.integers(1, 4), order=st.randoms()
)
def test_whatever_happens_before_and_during_a_load_the_picture_comes_to_agree(
    before: list[Any], during: list[Any], lost: set[int], cut: int, order: Random
) -> None:
    bench = Bench()
    bench.disk.cut = cut

    def change(name: str, version: int, drop: bool) -> None:
        key = (name, version)
        if drop and key in bench.disk.held:
            reported = bench.disk.store(drop=(key,))
        elif key not in bench.disk.held:
            reported = bench.disk.store(record(name, version))
        else:
            return
        if reported.number not in lost:
            bench.stored(reported)

    for each in before:
        change(*each)
    effects = bench.sync.begin(bench.server)
    steps = iter(during)
    while effects:
        for each in islice(steps, 1):
            change(*each)
        effects += bench.answered(one([effects.pop(order.randrange(len(effects)))]))
    for each in steps:
        change(*each)
    for _ in range(20):
        bench.go_on(bench.beat(), order.randrange)
    assert bench.sync.is_live(1)
    assert bench.picture() == set(bench.disk.held)
