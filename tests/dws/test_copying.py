"""Copying: a stored batch fetched from the server that has it, every byte of it checked.

The jobs of one server (`CopyJobs`) run against a source whose answers a test may spoil; what they write
goes to a disk of dws/sim/disks.py.
"""

from collections import deque
from random import Random
from typing import Any

import pytest
from blake3 import blake3

from dws.config import Config
from dws.copyjobs import CopyJobs
from dws.effects import AskPeer, Effects, Log, Report, Write
from dws.limits import CHUNK_BYTES, INLINE_MAX_BYTES, KIB, MIB, RECORD_FORMAT
from dws.messages import (
    Copy,
    CopyFailed,
    DigestList,
    Digests,
    Error,
    Fetch,
    Fetched,
    Read,
    ReadData,
    Record,
    ServerRef,
)
from dws.sim.disks import PageDisk
from dws.store import OpResult
from tests.dws.desk import batch_id

VERSION = 9
SOURCE = ServerRef(1, "web-1", "tcp://web-1:1", 5)
OTHER = ServerRef(3, "web-3", "tcp://web-3:1", 6)
CREDIT = 2 * CHUNK_BYTES


def digest_list(data: bytes) -> bytes:
    cut = range(0, len(data), CHUNK_BYTES)
    return b"".join(blake3(data[begin : begin + CHUNK_BYTES]).digest() for begin in cut)


def record_of(name: str, data: bytes, version: int = VERSION) -> Record:
    joined = digest_list(data) if len(data) > CHUNK_BYTES else b""
    listed = blake3(joined).digest() if joined else b""
    digest = blake3(data).digest()
    return Record(name, version, batch_id(version), len(data), digest, listed, "", 0.0, RECORD_FORMAT)


class Bench:
    """pages: what the source has."""

    def __init__(self, pages: dict[str, bytes], **config: Any) -> None:
        self.pages = pages
        self.store = PageDisk(Random(1))
        self._handle = 0
        self.jobs = CopyJobs(self.store.identity.incarnation, Config(**config), self._new_handle)
        self.asked: deque[AskPeer] = deque()
        self.all_asked: list[AskPeer] = []
        self.to_write: deque[Write] = deque()
        self.reports: list[Any] = []

    def _new_handle(self) -> int:
        self._handle += 1
        return self._handle

    def perform(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case AskPeer():
                    self.asked.append(effect)
                    self.all_asked.append(effect)
                case Write():
                    assert effect.kind == "copy", "in order with the copy's other writes"
                    self.to_write.append(effect)
                case Report(message):
                    self.reports.append(message)
                case Log():
                    pass
        self.jobs.check()

    def order(self, source: ServerRef = SOURCE, version: int = VERSION) -> None:
        records = [record_of(name, data, version) for name, data in self.pages.items()]
        self.perform(self.jobs.add(Copy(1, 2, source, records)))

    def answer(self, spoil: Any = None) -> None:
        """The source answers the first question that is open."""
        ask = self.asked.popleft()
        message, data = self.answer_to(ask.message)
        if spoil is not None:
            message, data = spoil(message, data)
        self.perform(self.jobs.answered(ask.tag, message, memoryview(data)))

    def answer_to(self, question: Any) -> tuple[Any, bytes]:
        match question:
            case Fetch(pages):
                found = [self.pages[name] for name, _ in pages]
                return Fetched([len(each) for each in found]), b"".join(found)
            case Digests(name):
                joined = digest_list(self.pages[name])
                return DigestList(len(joined) // 32), joined
            case Read(name, _, offset, length):
                return ReadData(offset, length), self.pages[name][offset : offset + length]
        raise AssertionError(question)

    def write(self) -> None:
        """The writer does what was handed to it."""
        while self.to_write:
            write = self.to_write.popleft()
            (result,) = self.store.commit([write.op])
            self.written(write, result)

    def written(self, write: Write, result: OpResult) -> None:
        what, key = write.tag[0], write.tag[1:]
        if what == "copy":
            self.perform(self.jobs.written(key[0], result))
        elif what == "copied":
            self.perform(self.jobs.stored(key[0], result))

    def run(self) -> None:
        while self.asked or self.to_write:
            while self.asked:
                self.answer()
            self.write()

    def stored(self) -> dict[str, bytes]:
        return {name: held.data for (name, _), held in self.store.held.items()}


SIZES = [
    0,
    1,
    INLINE_MAX_BYTES,
    INLINE_MAX_BYTES + 1,
    CHUNK_BYTES,
    CHUNK_BYTES + 1,
    3 * CHUNK_BYTES,
    3 * MIB + 7,
]


@pytest.mark.parametrize("size", SIZES)
def test_a_page_of_any_size_is_copied_byte_by_byte(size: int) -> None:
    bench = Bench({"/a": Random(size).randbytes(size)}, copy_credit_bytes=CREDIT)
    bench.order()
    bench.run()
    assert bench.stored() == bench.pages
    assert not bench.store.staged and not bench.reports


def test_a_batch_is_stored_in_one_transaction() -> None:
    bench = Bench({f"/{size}": bytes(size) for size in SIZES}, copy_credit_bytes=CREDIT)
    bench.order()
    bench.run()
    assert bench.stored() == bench.pages
    (change,) = bench.store.log
    assert [each.name for each in change.added] == list(bench.pages)
    assert bench.store.identity.decision == 2, "the decision number that the job carried"


def test_small_pages_come_many_to_a_request_that_holds_up_no_reader_for_long() -> None:
    bench = Bench({f"/{number}": bytes(INLINE_MAX_BYTES) for number in range(40)}, copy_credit_bytes=CREDIT)
    bench.order()
    sizes = []
    while bench.asked:
        assert sum(len(each.message.pages) for each in bench.asked) * INLINE_MAX_BYTES <= CREDIT
        sizes.append(len(bench.asked[0].message.pages) * INLINE_MAX_BYTES)
        bench.answer()
    assert sum(sizes) == 40 * INLINE_MAX_BYTES
    assert all(size <= 512 * KIB for size in sizes) and len(sizes) == 20


def test_a_credit_of_bytes_bounds_what_is_on_the_way_and_unwritten() -> None:
    bench = Bench({"/a": bytes(20 * CHUNK_BYTES)}, copy_credit_bytes=CREDIT)
    bench.order()
    bench.answer()  # the digests
    while bench.asked:
        assert len(bench.asked) + len(bench.to_write) <= CREDIT // CHUNK_BYTES
        bench.answer()
    assert len(bench.to_write) == CREDIT // CHUNK_BYTES, "a slow disk slows the source down"
    bench.run()
    assert bench.stored() == bench.pages


# -- a source that does not deliver ----------------------------------------------------


def flip(message: Any, data: bytes) -> tuple[Any, bytes]:
    return message, bytes([data[0] ^ 1]) + data[1:]


SPOILT = {
    "another byte": flip,
    "one byte less": lambda message, data: (message, data[:-1]),
    "an error": lambda message, data: (Error("not-held", "gone"), b""),
    "another kind of answer": lambda message, data: (Error("bad-request", "?"), data),
    "not held": lambda message, data: (Fetched([-1]), b""),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_not_what_was_ordered_fails_the_copy(how: str) -> None:
    bench = Bench({"/a": b"bytes"})
    bench.order()
    bench.answer(SPOILT[how])
    assert not bench.to_write and not bench.stored()
    (report,) = bench.reports
    assert isinstance(report, CopyFailed) and report.version == VERSION and report.text


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("how", ["another byte", "one byte less", "an error"])
def test_a_large_page_fails_at_the_chunk_that_is_wrong_and_leaves_no_file(at: int, how: str) -> None:
    bench = Bench({"/a": Random(1).randbytes(3 * CHUNK_BYTES)}, copy_credit_bytes=CREDIT)
    bench.order()
    for _ in range(at):
        bench.answer()
        bench.write()
    bench.answer(SPOILT[how])
    bench.run()
    assert len(bench.reports) == 1 and not bench.stored() and not bench.store.staged


def test_writes_that_were_on_the_way_when_a_copy_failed_leave_no_file() -> None:
    bench = Bench({"/a": bytes(3 * CHUNK_BYTES)}, copy_credit_bytes=CREDIT)
    bench.order()
    bench.answer()
    bench.answer()
    assert len(bench.to_write) == 1
    bench.answer(SPOILT["an error"])
    bench.run()
    assert not bench.store.staged


def test_a_source_that_is_silent_is_asked_again_then_given_up() -> None:
    bench = Bench({"/a": b"bytes"})
    bench.order()
    for _ in range(2):
        bench.perform(bench.jobs.unanswered(bench.asked.popleft().tag))
    assert not bench.reports
    bench.answer()
    bench.write()
    assert bench.stored() == bench.pages
    bench.order(version=10)
    for _ in range(3):
        bench.perform(bench.jobs.unanswered(bench.asked.popleft().tag))
    assert len(bench.reports) == 1 and not bench.asked


def test_chunks_that_came_are_not_asked_for_again_when_one_is_missing() -> None:
    bench = Bench({"/a": Random(1).randbytes(4 * CHUNK_BYTES)}, copy_credit_bytes=CREDIT)
    bench.order()
    bench.answer()
    bench.perform(bench.jobs.unanswered(bench.asked.popleft().tag))
    bench.run()
    offsets = [each.message.offset for each in bench.all_asked if isinstance(each.message, Read)]
    assert sorted(offsets) == [0, 0, CHUNK_BYTES, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES]
    assert bench.stored() == bench.pages


def test_a_full_disk_fails_the_copy() -> None:
    bench = Bench({"/a": bytes(3 * CHUNK_BYTES)}, copy_credit_bytes=CREDIT)
    bench.store.quota_bytes = 2 * CHUNK_BYTES
    bench.order()
    bench.run()
    assert len(bench.reports) == 1 and not bench.store.staged


# -- jobs ------------------------------------------------------------------------------


def test_a_job_that_is_issued_again_is_one_copy() -> None:
    bench = Bench({"/a": b"bytes"})
    bench.order()
    bench.order()
    assert len(bench.asked) == 1
    bench.run()
    assert len(bench.store.log) == 1


def test_a_job_from_another_source_begins_anew_there() -> None:
    """The balancer gave up the first source: what it still sends is late."""
    bench = Bench({"/a": Random(1).randbytes(3 * CHUNK_BYTES)}, copy_credit_bytes=CREDIT)
    bench.order()
    bench.answer()
    late = list(bench.asked)
    bench.asked.clear()
    bench.order(OTHER)
    assert [each.endpoint for each in bench.asked] == [OTHER.endpoint]
    for ask in late:
        bench.perform(bench.jobs.answered(ask.tag, *bench.answer_to(ask.message)))
        bench.perform(bench.jobs.unanswered(ask.tag))
    bench.run()
    assert bench.stored() == bench.pages and not bench.reports and not bench.store.staged


def test_few_copies_run_at_once_and_the_others_wait() -> None:
    bench = Bench({"/a": b"bytes"}, copies_at_once=2)
    for version in range(1, 6):
        bench.order(version=version)
    assert len(bench.asked) == 2
    bench.run()
    assert {version for _, version in bench.store.held} == {1, 2, 3, 4, 5}


def test_a_failed_copy_makes_room_for_the_next() -> None:
    bench = Bench({"/a": b"bytes"}, copies_at_once=1)
    bench.order(version=1)
    bench.order(version=2)
    bench.answer(SPOILT["an error"])
    bench.run()
    assert {version for _, version in bench.store.held} == {2}


def test_a_new_epoch_drops_what_an_earlier_balancer_ordered() -> None:
    bench = Bench({"/a": bytes(3 * CHUNK_BYTES)}, copy_credit_bytes=CREDIT, copies_at_once=1)
    bench.order(version=1)
    bench.order(version=2)
    bench.answer()
    bench.answer()
    late = list(bench.asked)
    bench.asked.clear()
    bench.perform(bench.jobs.begin_epoch(2))
    for ask in late:
        bench.perform(bench.jobs.answered(ask.tag, *bench.answer_to(ask.message)))
    bench.run()
    assert not bench.stored() and not bench.store.staged and not bench.reports


def test_a_batch_is_fenced_by_the_epoch_that_ordered_it() -> None:
    """The order came in one epoch, the store has been told another: nothing is stored."""
    bench = Bench({"/a": b"bytes"})
    bench.perform(bench.jobs.begin_epoch(2))
    bench.order()
    bench.run()
    assert not bench.stored()
    assert bench.store.identity.start_epoch == 0
