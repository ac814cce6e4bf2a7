"""A server's own doubts: reading back in turns and at a pace, the scrubber's walk, what becomes of a doubt.

The machines alone, on a store in memory; what is read is read when the test says so.
"""

from collections import Counter
from math import inf
from random import Random
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from dws import scrubbing
from dws.config import Config
from dws.effects import Answer, Effects, Inspect, Log, Write
from dws.integrity import Integrity
from dws.limits import CHUNK_BYTES, MIB, VERIFY_MAX_BYTES
from dws.messages import Dropped, Error, Record, Verified, Verify
from dws.names import page_key
from dws.readback import GROUP_BYTES, RECORD_BYTES, Job, Pieces, Readback, parts_of
from dws.scrubbing import Scrubber
from dws.sim.disks import Held, PageDisk
from dws.store import GOOD, NOT_THERE, UNREADABLE, WRONG, KeepPlace, OpResult, Part, SetAside
from dws.suspects import AGAIN_S, SUSPECTS_MAX, TRANSITIONS

VERSION = 7


def digests_of(data: bytes) -> bytes:
    if len(data) <= CHUNK_BYTES:
        return b""
    return b"".join(blake3(data[at : at + CHUNK_BYTES]).digest() for at in range(0, len(data), CHUNK_BYTES))


def held(name: str, size: int) -> Held:
    data = blake3(name.encode()).digest(size) if size else b""
    digests = digests_of(data)
    list_digest = blake3(digests).digest() if digests else b""
    digest = blake3(data).digest()
    return Held(
        Record(name, VERSION, b"b" * 16, size, digest, list_digest, "text/html", 1.5, 1), data, digests
    )


def large_record(size: int) -> Record:
    """Of a page that is nowhere."""
    return Record("/large", VERSION, b"b" * 16, size, bytes(32), bytes(32), "text/html", 1.5, 1)


def disk_with(**sizes: int) -> PageDisk:
    disk = PageDisk(Random(1))
    disk.load([held(f"/{name}", size) for name, size in sizes.items()])
    return disk


# Reading back


@given(st.integers(0, 40 * MIB), st.integers(1, 4))
def test_parts_are_the_page_and_nothing_else(size: int, step: int) -> None:
    parts = list(parts_of(large_record(size), step))
    assert [part.chunk for part, _ in parts] == list(range(0, max(1, -(-size // CHUNK_BYTES)), step))
    assert sum(part.chunks for part, _ in parts) == max(1, -(-size // CHUNK_BYTES))
    assert sum(cost - RECORD_BYTES for _, cost in parts) == size
    assert all(1 <= part.chunks <= step for part, _ in parts)


@given(st.lists(st.integers(0, 5 * MIB), max_size=30))
def test_groups_are_bounded_and_leave_nothing_out(sizes: list[int]) -> None:
    parts = [pair for size in sizes for pair in parts_of(large_record(size))]
    pieces = Pieces(parts)
    given_out: list[Part] = []
    while not pieces.done:
        group, cost = pieces.group()
        assert group
        assert len(group) == 1 or cost <= GROUP_BYTES
        given_out += group
    assert given_out == [part for part, _ in parts]


def test_jobs_take_turns() -> None:
    readback = Readback(inf, 0.0)
    readback.add(Job(("large",), Pieces(parts_of(large_record(20 * MIB)))))
    readback.add(Job(("small",), Pieces([(Part("/small", 1, 0, 1), 10)])))
    order, done = [], []
    while len(readback):
        parts = readback.next(0.0)
        order.append(parts[0].name)
        job = readback.found([GOOD] * len(parts))
        done += [job.tag[0]] if job else []
    assert order[:3] == ["/large", "/small", "/large"]
    assert done == ["small", "large"]


def test_the_pace_is_kept_and_nothing_is_saved_up() -> None:
    readback = Readback(16 * MIB, 0.0)
    now, sent = 100.0, 0  # long idle
    readback.add(Job(("large",), Pieces(parts_of(large_record(64 * MIB)))))
    while len(readback):
        now = max(now, readback.wake_at() or now)
        parts = readback.next(now)
        sent += sum(part.chunks for part in parts) * CHUNK_BYTES
        assert sent <= GROUP_BYTES + 16 * MIB * (now - 100.0) + 1
        assert readback.next(now) == [], "one group at a time"
        readback.found([GOOD] * len(parts))
    assert 3.7 <= now - 100.0 <= 4.2


# The scrubber


def scrub(
    scrubber: Scrubber, disk: PageDisk, now: float, until: int, waiting: int = 0
) -> tuple[list[Part], float]:
    """Until so many rounds are done: what was read, and when that was."""
    read: list[Part] = []
    for _ in range(100_000):
        if scrubber.rounds >= until:
            break
        now = max(now, scrubber.wake_at() or now)
        parts = scrubber.next(waiting, now)
        if parts:
            read += parts
            scrubber.found(disk.check(parts))
    return read, now


def test_a_round_reads_everything_once_in_the_order_of_keys() -> None:
    disk = disk_with(**{f"p{number}": number * 700 for number in range(500)}, large=5 * MIB)
    read, _ = scrub(Scrubber(disk, Config(), b"", 0.0), disk, 0.0, until=1)
    assert Counter(part.name for part in read) == Counter(
        {**dict.fromkeys((n for n, _ in disk.held), 1), "/large": 3}
    )
    keys = [page_key(part.name) for part in read]
    assert keys == sorted(keys)


def test_its_rate_is_bounded_and_yields_to_readers() -> None:
    disk = disk_with(a=4 * MIB, b=4 * MIB, c=4 * MIB)
    config = Config(scrub_bytes_s=4 * MIB)
    _, alone_s = scrub(Scrubber(disk, config, b"", 0.0), disk, 0.0, until=1)
    assert alone_s == pytest.approx(3.0, rel=0.01)
    _, beside_readers_s = scrub(Scrubber(disk, config, b"", 0.0), disk, 0.0, until=1, waiting=10)
    assert beside_readers_s == pytest.approx(8 * alone_s, rel=0.01)


def test_rounds_begin_a_day_apart_and_never_where_it_is_switched_off() -> None:
    disk = disk_with(a=1000)
    scrubber = Scrubber(disk, Config(), b"", 5.0)
    scrub(scrubber, disk, 5.0, until=1)
    assert scrubber.wake_at() == 5.0 + 86_400
    assert scrubber.next(0, 80_000.0) == []
    assert scrubber.next(0, 86_405.0) != []
    assert Scrubber(disk, Config(scrub_bytes_s=0), b"", 5.0).wake_at() is None


def test_an_empty_store_keeps_nobody_busy() -> None:
    disk = disk_with()
    scrubber = Scrubber(disk, Config(scrub_every_s=0), b"", 0.0)
    _, now = scrub(scrubber, disk, 0.0, until=10)
    assert now >= 9.0


@pytest.mark.parametrize("at_once", [2, 64])
def test_the_next_life_goes_on_where_the_last_one_was(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(scrubbing, "_RECORDS", at_once)
    disk = disk_with(**{f"p{number}": 50_000 for number in range(2000)})
    scrubber = Scrubber(disk, Config(), b"", 0.0)
    now, first = 0.0, []
    while len(first) < 1000:
        now = max(now, scrubber.wake_at() or now)
        parts = scrubber.next(0, now)
        first += parts
        scrubber.found(disk.check(parts))
    again, _ = scrub(Scrubber(disk, Config(), scrubber.place, 0.0), disk, 0.0, until=1)
    names = [part.name for part in first], [part.name for part in again]
    assert set(names[0]) | set(names[1]) == {name for name, _ in disk.held}
    assert len(set(names[0]) & set(names[1])) <= at_once, "what was looked up and not read yet is read again"
    assert len(names[1]) < 1100


def test_pages_may_come_and_go_under_the_walk() -> None:
    disk = disk_with(**{f"p{number}": 100_000 for number in range(300)})
    scrubber = Scrubber(disk, Config(), b"", 0.0)
    now, read = 0.0, set()
    while not scrubber.rounds:
        now = max(now, scrubber.wake_at() or now)
        parts = scrubber.next(0, now)
        read |= {part.name for part in parts}
        if parts and len(disk.held) > 200:
            disk._change([], [Dropped(*next(iter(disk.held)))])
        scrubber.found(disk.check(parts))
    assert {name for name, _ in disk.held} <= read


# Doubts


class Bench:
    """An Integrity whose thread and writer do what the test says. verdicts: page → what is found of it."""

    def __init__(self, disk: PageDisk, **settings: Any) -> None:
        self.disk = disk
        self.now = 10.0
        self.counters: Counter[str] = Counter()
        config = Config(**{"scrub_bytes_s": 0, "disk_check_s": 1000.0} | settings)
        self.integrity = Integrity(disk, config, self.counters, self.now)
        self.verdicts: dict[str, int] = {}
        self.reads: list[Part] = []
        self.answers: dict[int, Any] = {}
        self.log: list[str] = []
        self.writes: list[Write] = []
        self.result: OpResult | None = None

    def do(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Inspect(_, parts, tag):
                    self.reads += parts
                    found = self.disk.check(parts)
                    told = [self.verdicts.get(part.name, v) for part, v in zip(parts, found, strict=True)]
                    self.do(self.integrity.inspected(tag, told, self.now))
                case Write(_, op, tag):
                    self.writes.append(effect)
                    result = self.result or self.disk.commit([op])[0]
                    self.do(self.integrity.written(tag, result, self.now))
                case Answer(token, message):
                    self.answers[token] = message
                case Log(_, text):
                    self.log.append(text)
        self.integrity.check()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, max(self.now + 0.001, self.integrity.wake_at()))
            self.do(self.integrity.poll(0, self.now))

    def doubt(self, *names: str) -> None:
        self.do(self.integrity.doubt([(name, VERSION) for name in names], "a reader said so"))

    @property
    def set_aside(self) -> int:
        return self.integrity.suspects.set_aside


@pytest.fixture
def bench() -> Bench:
    return Bench(disk_with(good=3000, bad=3000, large=3 * MIB + 5))


def test_what_two_looks_find_wrong_is_set_aside(bench: Bench) -> None:
    bench.disk.rot("/bad", VERSION)
    number = bench.disk.number
    bench.doubt("/bad")
    bench.wait(AGAIN_S / 2)
    assert not bench.writes, "one look is none"
    bench.wait(AGAIN_S)
    assert [type(write.op) for write in bench.writes] == [SetAside]
    assert bench.disk.record("/bad", VERSION) is None
    assert bench.disk.number == number + 1
    assert (bench.set_aside, len(bench.integrity.suspects)) == (1, 0)
    assert "set aside" in bench.log[-1]
    assert "a reader said so" in bench.log[-1]


def test_of_a_large_page_the_wrong_chunk_is_named_and_looked_at_again_alone(bench: Bench) -> None:
    data = bytearray(bench.disk.held["/large", VERSION].data)
    data[2 * MIB + 9] ^= 4
    bench.disk.held["/large", VERSION].data = bytes(data)
    bench.doubt("/large")
    bench.wait(2.0)
    assert [part.chunk for part in bench.reads] == [0, 1, 2, 3, 2]
    op = bench.writes[0].op
    assert isinstance(op, SetAside)
    assert op.pages[0].chunk == 2
    assert bench.set_aside == 1


def test_what_is_right_stays(bench: Bench) -> None:
    bench.doubt("/good", "/large", "/unknown")
    bench.wait(5.0)
    assert not bench.writes
    assert len(bench.integrity.suspects) == 0
    assert bench.counters["doubts without reason"] == 2


def test_wrong_bytes_that_are_right_again_were_misread(bench: Bench) -> None:
    bench.verdicts["/good"] = WRONG
    bench.doubt("/good")
    bench.wait(AGAIN_S / 2)
    del bench.verdicts["/good"]
    bench.wait(5.0)
    assert not bench.writes
    assert bench.disk.record("/good", VERSION) is not None


def test_a_read_error_that_passes_is_no_damage(bench: Bench) -> None:
    bench.verdicts["/good"] = UNREADABLE
    bench.doubt("/good")
    bench.wait(3.0)
    assert not bench.writes
    assert len(bench.integrity.suspects) == 1
    del bench.verdicts["/good"]
    bench.wait(60.0)
    assert not bench.writes
    assert len(bench.integrity.suspects) == 0


def test_a_read_error_that_does_not_pass_is(bench: Bench) -> None:
    bench.verdicts["/good"] = UNREADABLE
    bench.doubt("/good")
    bench.wait(7.0)
    assert not bench.writes
    bench.wait(30.0)
    assert [type(write.op) for write in bench.writes] == [SetAside]
    assert len(bench.reads) == 5


def test_one_wrong_look_and_one_error_are_not_two_wrong_looks(bench: Bench) -> None:
    found = iter([WRONG, UNREADABLE, WRONG, UNREADABLE, GOOD])
    check = bench.disk.check
    bench.disk.check = lambda parts: [next(found)] if parts else check(parts)  # type: ignore[method-assign]
    bench.doubt("/good")
    bench.wait(30.0)
    assert not bench.writes
    assert len(bench.integrity.suspects) == 0


def test_a_page_that_is_dropped_meanwhile_is_forgotten(bench: Bench) -> None:
    bench.verdicts["/bad"] = WRONG
    bench.doubt("/bad")
    bench.wait(AGAIN_S / 2)
    bench.verdicts["/bad"] = NOT_THERE
    bench.wait(2.0)
    assert not bench.writes
    assert len(bench.integrity.suspects) == 0


def test_without_room_to_set_it_aside_it_is_tried_again(bench: Bench) -> None:
    bench.disk.rot("/bad", VERSION)
    bench.result = OpResult(None, "full", "no room")
    bench.doubt("/bad")
    bench.wait(30.0)
    assert len(bench.writes) == 1
    assert bench.set_aside == 0
    bench.result = None
    bench.wait(61.0)
    assert bench.set_aside == 1


def test_a_disk_that_stays_full_for_days_ends_nothing(bench: Bench) -> None:
    """Waits double with the looks that could not read, and looks go on: the figure is bounded."""
    suspects = bench.integrity.suspects
    suspects.doubt(("/bad", VERSION), "somebody was told so")
    suspect = suspects._all["/bad", VERSION]
    suspect.unread = 2_000
    assert not suspects._in_doubt(suspect, UNREADABLE, 0.0), "certain, since long"
    assert suspect.again_at < 3600


def test_doubts_are_bounded_and_one_page_is_doubted_once() -> None:
    bench = Bench(disk_with(**{f"p{number}": 10 for number in range(SUSPECTS_MAX + 20)}))
    names = [name for name, _ in bench.disk.held]
    bench.doubt(*names[:10], *names[:10])
    assert len(bench.integrity.suspects) == 10
    bench.doubt(*names)
    assert len(bench.integrity.suspects) == SUSPECTS_MAX
    assert bench.counters["doubts passed over"] == 20
    bench.wait(5.0)
    assert len(bench.integrity.suspects) == 0


def test_every_state_is_reached_and_left() -> None:
    states = {state for state, _ in TRANSITIONS}
    assert {after for after in TRANSITIONS.values() if after} == states


def test_the_scrubber_finds_it_by_itself() -> None:
    bench = Bench(disk_with(good=3000, bad=3000, large=3 * MIB), scrub_bytes_s=4 * MIB)
    bench.disk.rot("/bad", VERSION)
    bench.disk.rot("/large", VERSION)
    bench.wait(5.0)
    assert bench.set_aside == 2
    assert {name for name, _ in bench.disk.held} == {"/good"}


# Verify


def test_verify_is_answered_when_all_was_read(bench: Bench) -> None:
    bench.disk.rot("/bad", VERSION)
    pages = [
        ("/large", VERSION),
        ("/bad", VERSION),
        ("/good", VERSION),
        ("/good", VERSION + 1),
        ("/good", VERSION),
    ]
    bench.do(bench.integrity.verify(1, Verify(0, pages)))
    assert not bench.answers
    bench.wait(0.2)
    assert bench.answers[1] == Verified([0, 2, 4], [1])
    bench.wait(2.0)
    assert bench.set_aside == 1, "and what it found is looked at"


def test_verify_of_what_cannot_be_read_proves_nothing(bench: Bench) -> None:
    bench.verdicts["/good"] = UNREADABLE
    bench.do(bench.integrity.verify(1, Verify(0, [("/good", VERSION)])))
    bench.wait(0.2)
    assert bench.answers[1] == Verified([], [])


def test_absurd_requests_to_verify_are_refused() -> None:
    count = VERIFY_MAX_BYTES // MIB + 1
    bench = Bench(disk_with(**{f"p{number}": MIB for number in range(count)}))
    everything = [(name, VERSION) for name, _ in bench.disk.held]
    bench.do(bench.integrity.verify(1, Verify(0, everything)))
    assert isinstance(bench.answers[1], Error)
    assert bench.answers[1].code == "over-bound"
    bench.do(bench.integrity.verify(2, Verify(0, [everything[0]] * 1000)))
    for token in range(3, 30):
        bench.do(bench.integrity.verify(token, Verify(0, everything[:2])))
    assert {each.code for token, each in bench.answers.items() if token > 2} == {"try-again"}
    bench.wait(2.0)
    assert bench.answers[2] == Verified(list(range(1000)), [])
    assert bench.answers[3] == Verified([0, 1], [])


# The disk


def test_a_small_write_and_a_small_read_every_so_often() -> None:
    bench = Bench(disk_with(a=10), disk_check_s=2.0)
    bench.wait(10.0)
    assert [type(write.op) for write in bench.writes] == [KeepPlace] * 5


def test_what_a_disk_owes_is_not_asked_of_it_twice() -> None:
    integrity = Integrity(disk_with(a=10), Config(scrub_bytes_s=0, disk_check_s=2.0), Counter(), 0.0)
    first = integrity.poll(0, 2.0)
    assert {type(effect) for effect in first} == {Write, Inspect}
    assert integrity.poll(0, 4.0) == []
    integrity.inspected(("probe",), [], 4.5)
    assert [type(effect) for effect in integrity.poll(0, 6.0)] == [Inspect]
    integrity.written(("place",), OpResult(), 6.5)
    integrity.inspected(("probe",), [], 6.5)
    assert {type(effect) for effect in integrity.poll(0, 8.0)} == {Write, Inspect}
