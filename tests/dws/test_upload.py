"""Writing: one put or removal from its first question to its outcome.

The first part plays the balancer and the primary by hand, answer by answer. The second runs a put through a
simulated cluster (dws/sim) and breaks one thing in it.
"""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from blake3 import blake3

from dws import errors
from dws.client import Directory, Send
from dws.decided import Decided
from dws.effects import Answer
from dws.limits import CHUNK_BYTES, KIB, MIB
from dws.messages import (
    ABSENT,
    ANY,
    Abort,
    Await,
    Commit,
    Committed,
    Error,
    Outcome,
    Ping,
    Pong,
    Remove,
    Reserve,
    Reserved,
    ServerRef,
    Stage,
    Staged,
    Unstage,
)
from dws.names import make_version
from dws.outbox import Outbox, PutItem
from dws.sim.options import Options
from dws.sim.world import World
from dws.upload import PutBatch, RemovePages, Stored
from patterns.sim.connections import Frames
from patterns.sim.network import Host

VERSION = make_version(3, 1)
PRIMARY = ServerRef(1, "web-1", "tcp://web-1:1", 11)
BACKUP = ServerRef(2, "web-2", "tcp://web-2:1", 22)
OTHER = ServerRef(2, "web-2", "tcp://web-2:1", 22)


class Source:
    """Bytes that may be read once only, or again."""

    def __init__(self, data: bytes, rereadable: bool = True) -> None:
        self.data = data
        self.rereadable = rereadable
        self.position = 0

    def read(self, offset: int, length: int) -> bytes:
        assert self.rereadable or offset >= self.position, "it cannot be read again"
        self.position = offset + 1
        return self.data[offset : offset + length]


def item(
    name: str, data: bytes = b"bytes", condition: int = ANY, *, known: bool = True, rereadable: bool = True
) -> PutItem:
    """known: size and digest are; else it is a stream that ends where it ends."""
    figures = (len(data), blake3(data).digest()) if known else ()
    return PutItem(name, Source(data, rereadable), *figures, condition=condition)


class Hand:
    """An operation, and what it has sent that nobody has answered."""

    def __init__(self, make: Callable[..., Decided], *arguments: Any, deadline_s: float = 30.0) -> None:
        self.now = 100.0
        self.ids: list[bytes] = []
        self.sent: list[Send] = []
        self.all_sent: list[Send] = []
        self.directory = Directory()
        self.operation = make(self.directory, self.now + deadline_s, self._new_id, *arguments)
        self._keep(self.operation.start(self.now))

    def _new_id(self) -> bytes:
        self.ids.append(bytes([len(self.ids) + 1]) * 16)
        return self.ids[-1]

    def _keep(self, sends: list[Send]) -> None:
        self.sent += sends
        self.all_sent += sends

    def kinds(self) -> list[str]:
        return [type(each.message).__name__ for each in self.sent]

    def next(self, kind: type[Any]) -> Send:
        """The eldest request of this kind that is not answered."""
        return next(each for each in self.sent if isinstance(each.message, kind))

    def answer(self, kind: type[Any], message: Any) -> Any:
        """Answer the eldest request of this kind: the request."""
        send = self.next(kind)
        self.sent.remove(send)
        self._keep(self.operation.answered(send.tag, message, None, self.now))
        return send.message

    def silence(self, kind: type[Any]) -> Any:
        """The eldest request of this kind gets no answer in time."""
        send = self.next(kind)
        self.sent.remove(send)
        self.now += send.timeout_s
        self._keep(self.operation.unanswered(send.tag, self.now))
        self.tick()
        return send.message

    def tick(self) -> None:
        self._keep(self.operation.tick(self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    def place(
        self, primary: ServerRef | None = PRIMARY, skip: tuple[int, ...] = (), copies: int = 2
    ) -> Reserve:
        """From the start to a Reserve that is answered."""
        if Ping.__name__ in self.kinds():
            self.answer(Ping, Pong("balancer", 0, 3))
        request: Reserve = self.answer(Reserve, Reserved(3, VERSION, primary, list(skip), 30.0, copies))
        return request

    def stage(self) -> None:
        """All that was staged so far is acknowledged."""
        while Stage.__name__ in self.kinds():
            part = self.next(Stage).message.parts[-1]
            self.answer(Stage, Staged(part.page, part.offset + part.length))

    def outcome(self, state: str, **fields: Any) -> None:
        told: dict[str, Any] = {"version": VERSION, "stored": 0, "copies": 2} | fields
        self.answer(Await, Outcome(state, **told))

    @property
    def error(self) -> Any:
        return type(self.operation.error)


LATE = ["try-again", "not-held", "stale", "full"]


def reserved(primary: ServerRef | None = PRIMARY, skip: tuple[int, ...] = ()) -> Reserved:
    return Reserved(3, VERSION, primary, list(skip), 30.0, 2)


def put(*items: PutItem, deadline_s: float = 30.0, copies: int = 2) -> Hand:
    return Hand(PutBatch, list(items) or [item("/a")], copies, deadline_s=deadline_s)


def rm(*names: str, deadline_s: float = 30.0, **conditions: int) -> Hand:
    return Hand(RemovePages, dict.fromkeys(names, ANY) | conditions, deadline_s=deadline_s)


# -- a put, step by step ---------------------------------------------------------------


def test_a_put_asks_reserves_stages_commits_and_awaits() -> None:
    hand = put(item("/a", b"one"), item("/b", b"two", ABSENT))
    assert hand.kinds() == ["Ping"]
    request = hand.place()
    assert (request.epoch, request.batch, request.copies) == (3, hand.ids[0], 2)
    assert [(page.name, page.size, page.condition) for page in request.pages] == [
        ("/a", 3, ANY),
        ("/b", 3, ABSENT),
    ]
    assert hand.kinds() == ["Stage", "Commit", "Await"], "small pages and their commit go out together"
    staged, commit = hand.next(Stage), hand.next(Commit).message
    assert (staged.server, staged.data, staged.message.incarnation) == (1, b"onetwo", PRIMARY.incarnation)
    assert [(page.name, page.digest) for page in commit.pages] == [
        ("/a", blake3(b"one").digest()),
        ("/b", blake3(b"two").digest()),
    ]
    hand.stage()
    hand.answer(Commit, Committed(1))
    hand.outcome("open", stored=1)
    assert hand.kinds() == ["Await"] and not hand.operation.finished
    hand.outcome("visible", stored=2)
    assert hand.operation.result == Stored(VERSION, [], 2)


def test_pages_that_the_cluster_has_are_not_sent() -> None:
    hand = put(item("/a", b"same"), item("/b", b"new"))
    hand.place(skip=(0,))
    assert hand.next(Stage).data == b"new"
    assert [page.name for page in hand.next(Commit).message.pages] == ["/b"]
    hand.outcome("visible", stored=2)
    assert hand.operation.result.skipped == ["/a"]


def test_a_batch_of_nothing_new_only_awaits() -> None:
    hand = put(item("/a", b"same"))
    hand.place(primary=None, skip=(0,))
    assert hand.kinds() == ["Await"]
    hand.outcome("visible", stored=2)
    assert hand.operation.result == Stored(VERSION, ["/a"], 2)


def test_who_watches_is_told_of_bytes_and_copies() -> None:
    staged: list[int] = []
    stored: list[tuple[int, int]] = []
    hand = Hand(PutBatch, [item("/a", b"12345")], 2, staged.append, lambda *told: stored.append(told))
    hand.place()
    assert hand.next(Await).message.seen == 0
    hand.stage()
    hand.outcome("open", stored=1)
    assert hand.next(Await).message.seen == 1
    hand.outcome("open", stored=2)
    hand.outcome("visible", stored=2)
    assert staged == [5] and stored == [(1, 2), (2, 2), (2, 2)]


# -- errors, told at once --------------------------------------------------------------


@pytest.mark.parametrize("code", ["too-few-servers", "full", "bad-name", "over-bound", "conflict"])
def test_a_reserve_that_is_refused_raises_what_the_balancer_said(code: str) -> None:
    hand = put(item("/a", condition=ABSENT))
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Reserve, Error(code, "the reason", names=["/a"]))
    assert hand.error is errors.BY_CODE[code] and "the reason" in str(hand.operation.error)
    assert not hand.sent


def test_a_refused_ping_raises_and_one_to_come_again_for_is_asked_again() -> None:
    hand = put()
    hand.answer(Ping, Error("try-again", "the catalog is being rebuilt", 0.5))
    assert not hand.sent, "not at once"
    hand.wait(0.6)
    hand.answer(Ping, Error("wrong-cluster", "another cluster"))
    assert hand.error is errors.WrongCluster and not hand.sent


@pytest.mark.parametrize("kind", [Ping, Reserve])
def test_try_again_is_tried_again_after_the_time_that_was_named(kind: type[Any]) -> None:
    hand = put()
    if kind is Reserve:
        hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(kind, Error("try-again", "not in sync yet", 0.1))
    assert not hand.sent
    hand.wait(0.11)
    assert hand.kinds() == [kind.__name__] and len(hand.ids) == 1


def test_a_deadline_before_anything_was_committed_says_why() -> None:
    hand = put(deadline_s=5.0)
    hand.silence(Ping)
    hand.wait(5.0)
    assert hand.error is errors.Unreachable
    hand = put(deadline_s=5.0)
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Reserve, Error("try-again", "1 of 2 servers are in sync", 0.1))
    hand.wait(5.0)
    assert hand.error is errors.TimedOut and "in sync" in str(hand.operation.error)


# -- what may have been decided --------------------------------------------------------


def test_outcome_unknown_is_said_only_if_a_commit_was_sent_and_the_balancer_is_silent() -> None:
    hand = put(deadline_s=5.0)
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.silence(Reserve)
    hand.wait(5.0)
    assert hand.error is errors.Unreachable, "nothing was committed: it cannot have been decided"
    hand = put(deadline_s=5.0)
    hand.place()
    hand.stage()
    hand.silence(Await)
    hand.wait(5.0)
    assert hand.error is errors.OutcomeUnknown


@pytest.mark.parametrize(
    ("last_word", "ends_as"),
    [("visible", None), ("never", errors.NeverStored), ("conflict", errors.NeverStored)],
)
def test_at_its_deadline_a_put_is_aborted_and_tells_what_became_of_it(last_word: str, ends_as: Any) -> None:
    """Not "timed out": the answer to the abort is certain."""
    hand = put(deadline_s=5.0)
    hand.place()
    hand.stage()
    hand.wait(5.0)
    assert not hand.operation.finished and "Abort" in hand.kinds()
    hand.answer(Abort, Outcome(last_word, VERSION, 2, 2))
    assert hand.operation.finished
    assert (hand.error is ends_as) if ends_as else hand.operation.result == Stored(VERSION, [], 2)


def test_an_abort_without_an_answer_is_repeated_and_then_the_outcome_is_unknown() -> None:
    hand = put(deadline_s=5.0)
    hand.place()
    hand.wait(5.0)
    hand.silence(Abort)
    assert "Abort" in hand.kinds() and not hand.operation.finished
    hand.silence(Abort)
    assert hand.error is errors.OutcomeUnknown


@pytest.mark.parametrize("code", ["over-bound", "integrity", "bad-request"])
def test_an_error_of_a_primary_is_raised_only_when_the_batch_cannot_be_decided_any_more(code: str) -> None:
    """An earlier primary may have stored it: what is raised must not be contradicted later."""
    hand = put()
    hand.place()
    hand.stage()
    hand.answer(Commit, Error(code, "the disk"))
    assert not hand.operation.finished
    hand.answer(Abort, Outcome("never", VERSION, 0, 2))
    assert hand.error is errors.BY_CODE[code] and "the disk" in str(hand.operation.error)


def test_a_failed_stage_before_the_commit_needs_no_abort() -> None:
    hand = put(item("/a", bytes(3 * MIB)))
    hand.place()
    hand.answer(Stage, Error("over-bound", "too much"))
    assert hand.error is errors.OverBound


def staging() -> Hand:
    """A large page of which something has been sent to its primary."""
    hand = put(item("/a", bytes(20 * MIB), known=False, rereadable=False))
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Reserve, reserved())
    assert hand.next(Stage)
    return hand


def test_what_was_staged_in_vain_is_dropped_at_once_and_the_batch_with_it() -> None:
    given_up = staging()
    given_up.answer(Stage, Error("over-bound", "too much"))
    assert given_up.operation.finished
    abandoned = staging()
    for send in [*given_up.sent, *abandoned.operation.abort()]:
        assert send.server == (1 if isinstance(send.message, Stage | Unstage) else 0)
    assert [kind for kind in given_up.kinds() if kind != "Stage"] == ["Abort", "Unstage"]
    assert [type(send.message) for send in abandoned.operation.abort()] == [Abort, Unstage]


def test_once_a_commit_was_sent_nothing_is_unstaged() -> None:
    hand = put(item("/a"))
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Reserve, reserved())
    assert hand.next(Commit)
    assert [type(send.message) for send in hand.operation.abort()] == [Abort]


def test_bytes_that_a_stream_took_long_to_bring_are_no_silence() -> None:
    hand = put(item("/a", bytes(20 * MIB), known=False, rereadable=False))
    hand.operation._patience_s = 5.0
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Reserve, reserved())
    # Reading the first chunks took that long; the time of the answer was before.
    hand.wait(8.0)
    assert not hand.operation.finished
    hand.wait(4.0)
    assert not hand.operation.finished
    hand.wait(2.0)
    assert hand.operation.finished


def test_never_in_the_same_epoch_is_final_and_in_another_is_put_again_under_a_new_id() -> None:
    hand = put()
    hand.place()
    hand.outcome("never", text="by the deadline")
    hand.answer(Ping, Pong("balancer", 0, 3))
    assert hand.error is errors.NeverStored and "by the deadline" in str(hand.operation.error)
    hand = put()
    hand.place()
    hand.outcome("never", text="no such batch")
    hand.answer(Ping, Pong("balancer", 0, 4))
    request = hand.next(Reserve).message
    assert (request.epoch, request.batch) == (4, hand.ids[1]) and len(hand.ids) == 2
    late = hand.all_sent[2]
    hand.operation.answered(late.tag, Staged(0, 5), None, hand.now)
    assert not hand.operation.finished, "answers about the first are late"


def test_a_reserve_of_an_ended_epoch_asks_for_the_outcome_first() -> None:
    hand = put()
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Reserve, Error("stale", "the epoch is 4"))
    assert hand.kinds() == ["Await"], "it may have been decided before the balancer restarted"
    hand.outcome("visible", copies=0)
    assert hand.operation.result.version == VERSION


def test_a_reserve_that_is_told_never_is_put_again_if_the_epoch_ended() -> None:
    hand = put()
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Reserve, Error("never", "no such batch in this epoch"))
    hand.answer(Ping, Pong("balancer", 0, 4))
    assert len(hand.ids) == 2 and not hand.operation.finished


# -- conflicts -------------------------------------------------------------------------


def test_a_conflict_is_raised_and_names_the_page() -> None:
    hand = put(item("/a", condition=ABSENT))
    hand.place()
    hand.outcome("conflict", text="not the expected version: /a", names=["/a"])
    assert hand.error is errors.Conflict and "/a" in str(hand.operation.error)


def test_a_conflict_of_a_skip_alone_reserves_again() -> None:
    """A page was not sent, as it was there; by the decision it was another. Nothing the caller asked for
    failed."""
    hand = put(item("/a", b"same"), item("/b", b"new", ABSENT))
    hand.place(skip=(0,))
    hand.outcome("conflict", text="not the expected version: /a", names=["/a"])
    assert not hand.operation.finished
    hand.sent = [each for each in hand.sent if isinstance(each.message, Reserve)]
    hand.place(skip=())
    assert len(hand.ids) == 2 and hand.next(Stage).data == b"samenew"
    hand.outcome("visible", stored=2)
    assert hand.operation.result == Stored(VERSION, [], 2)


def test_a_conflict_of_a_skip_and_a_condition_is_raised() -> None:
    hand = put(item("/a", b"same"), item("/b", b"new", ABSENT))
    hand.place(skip=(0,))
    hand.outcome("conflict", names=["/a", "/b"])
    assert hand.error is errors.Conflict


# -- the primary -----------------------------------------------------------------------


def test_a_silent_primary_is_asked_again_and_then_replaced() -> None:
    hand = put()
    hand.place()
    hand.silence(Commit)
    assert "Commit" in hand.kinds()
    hand.silence(Commit)
    request = hand.next(Reserve).message
    assert request.avoid == [PRIMARY.number] and request.batch == hand.ids[0], "the same batch"
    hand.sent = [each for each in hand.sent if each.server != PRIMARY.number]
    hand.place(primary=OTHER)
    assert hand.next(Stage).server == OTHER.number


@pytest.mark.parametrize("kind", [Stage, Commit])
def test_a_primary_whose_disk_is_full_is_replaced_once(kind: type[Any]) -> None:
    hand = put(item("/a", bytes(3 * MIB)))
    hand.place()
    if kind is Commit:
        hand.stage()
    hand.answer(kind, Error("full", "no room"))
    request = hand.next(Reserve).message
    assert request.avoid == [PRIMARY.number] and request.batch == hand.ids[0], "the same batch"
    hand.sent = [each for each in hand.sent if each.server != PRIMARY.number]
    hand.place(primary=OTHER)
    assert hand.next(Stage).server == OTHER.number
    hand.answer(Stage, Error("full", "no room there either"))
    if not hand.operation.finished:
        hand.answer(Abort, Outcome("never", VERSION, 0, 2))
    assert hand.error is errors.Full


def test_a_stream_that_meets_a_full_disk_fails() -> None:
    hand = staging()
    hand.answer(Stage, Error("full", "no room"))
    assert hand.error is errors.Full


@pytest.mark.parametrize("message", [Staged(0, 5), None, *(Error(code, "", 0.1) for code in LATE)], ids=str)
def test_late_answers_of_an_earlier_primary_are_passed_over(message: Any) -> None:
    hand = put()
    hand.place()
    old = hand.next(Stage), hand.next(Commit)
    hand.outcome("open", lost=True)
    hand.sent.clear()
    hand.operation.answered(hand.all_sent[-1].tag, reserved(OTHER), None, hand.now)
    hand.tick()
    expected = list(hand.all_sent)
    for send in old:
        if message is None:
            assert hand.operation.unanswered(send.tag, hand.now) == []
        else:
            assert hand.operation.answered(send.tag, message, None, hand.now) == []
    hand.wait(0.2)
    assert not hand.operation.finished and hand.all_sent == expected, (
        "nothing is sent again, nothing given up"
    )


@pytest.mark.parametrize("code", ["stale", "not-held"])
def test_a_primary_that_lost_what_was_staged_gets_it_again(code: str) -> None:
    hand = put()
    hand.place()
    hand.stage()
    hand.answer(Commit, Error(code, "restarted"))
    hand.wait(0.1)
    hand.place(primary=ServerRef(1, "web-1", "tcp://web-1:1", 12))
    assert hand.next(Stage).message.incarnation == 12
    assert hand.next(Stage).data == b"bytes"


def test_a_commit_that_overtook_refused_bytes_is_sent_again_after_them() -> None:
    hand = put()
    hand.place()
    hand.answer(Commit, Error("not-held", "0 of 5 bytes are staged"))
    hand.answer(Stage, Error("try-again", "the disk is behind", 0.1))
    assert "Commit" not in hand.kinds()
    hand.wait(0.2)
    assert hand.kinds().count("Commit") == 1 and hand.next(Stage).data == b"bytes"


def test_a_commit_that_is_told_to_come_again_does() -> None:
    hand = put()
    hand.place()
    hand.stage()
    hand.answer(Commit, Error("try-again", "the disk is behind", 0.1))
    assert not hand.operation.finished and "Commit" not in hand.kinds()
    hand.wait(0.2)
    assert "Commit" in hand.kinds() and "Stage" not in hand.kinds(), "what is staged is staged"


def test_a_large_page_that_the_primary_forgot_is_staged_from_its_start() -> None:
    """Not chunk after chunk, each too early, until the deadline."""
    hand = put(item("/a", bytes(20 * MIB)))
    hand.place()
    hand.answer(Stage, Staged(0, MIB))
    hand.answer(Stage, Staged(0, 0))
    hand.wait(0.1)
    hand.sent = [each for each in hand.sent if isinstance(each.message, Reserve)]
    hand.place()
    assert hand.next(Stage).message.parts[0].offset == 0


def test_a_lost_primary_is_replaced_unless_the_source_cannot_be_read_again() -> None:
    hand = put(item("/a", b"stream", known=False, rereadable=False))
    hand.place()
    hand.stage()
    hand.outcome("open", lost=True)
    hand.answer(Abort, Outcome("never", VERSION, 0, 2))
    assert hand.error is errors.NeverStored and "cannot be read again" in str(hand.operation.error)
    hand = put(item("/a", b"stream", known=False))
    hand.place()
    hand.stage()
    hand.outcome("open", lost=True)
    assert "Reserve" in hand.kinds()


# -- the bytes -------------------------------------------------------------------------

SIZES = [0, 1, 300 * KIB, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 11 * MIB + 5]


def drain(outbox: Outbox, reorder: Random | None = None) -> bytes:
    """Take a primary's part: all messages, in any order, some refused for now; the bytes of page 0."""
    page, sent = bytearray(), []
    for _ in range(1000):
        sent += outbox.next_messages()
        assert sum(len(data) for _, _, data in sent) <= 8 * MIB + MIB, "the credit"
        if not sent:
            break
        serial, parts, data = sent.pop(reorder.randrange(len(sent)) if reorder else 0)
        if reorder and reorder.random() < 0.2:
            outbox.failed(serial)
            continue
        if parts[-1].offset == len(page):
            page += data
        outbox.acknowledged(serial, len(page))
    assert outbox.all_acknowledged
    return bytes(page)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("known", [True, False])
def test_a_page_of_any_size_known_or_not_is_sent_whole_and_described(size: int, known: bool) -> None:
    data = Random(size).randbytes(size)
    outbox = Outbox([item("/a", data, known=known, rereadable=False)], set(), VERSION, 1)
    assert drain(outbox) == data
    ((_, _, told, digest),) = outbox.described()
    assert (told, digest) == (size, blake3(data).digest())
    assert outbox.bytes_done == size


@pytest.mark.parametrize("seed", range(10))
def test_refused_and_early_chunks_are_sent_again_in_any_order(seed: int) -> None:
    data = Random(seed).randbytes(5 * CHUNK_BYTES + seed)
    outbox = Outbox([item("/a", data, known=bool(seed % 2))], set(), VERSION, 1)
    assert drain(outbox, Random(seed)) == data


def test_small_pages_share_messages_of_a_megabyte() -> None:
    items = [item(f"/{number}", bytes(100 * KIB)) for number in range(25)]
    outbox = Outbox(items, {3}, VERSION, 1)
    messages = outbox.next_messages()
    assert all(len(data) <= MIB for _, _, data in messages) and len(messages) == 3
    assert [part.page for _, parts, _ in messages for part in parts] == [n for n in range(25) if n != 3]


@pytest.mark.parametrize("size", [5, CHUNK_BYTES, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_source_that_changes_its_size_while_it_is_read_fails_the_put(size: int, by: int) -> None:
    """Neither cut nor mixed of two: what was announced is what is stored, or nothing."""
    changing = PutItem("/a", Source(bytes(size + by)), size)
    hand = put(changing)
    hand.place()
    for _ in range(10):
        if hand.operation.finished:
            break
        hand.stage()
    assert "changed its size" in str(hand.operation.error)
    assert "Commit" not in hand.kinds()


def test_a_source_that_cannot_be_read_fails_the_put() -> None:
    class Broken(Source):
        def read(self, offset: int, length: int) -> bytes:
            raise OSError("no such device")

    hand = put(PutItem("/a", Broken(b""), 5))
    hand.place()
    assert hand.error is errors.DwsError and "no such device" in str(hand.operation.error)


# -- small batches, sent to every server that is to store them ----------------------------


def direct(*items: PutItem) -> Hand:
    """A put whose Reserve was answered with a backup to be sent the bytes too."""
    hand = put(*items)
    hand.answer(Ping, Pong("balancer", 0, 3))
    assert hand.answer(Reserve, Reserved(3, VERSION, PRIMARY, [], 30.0, 2, [BACKUP])).direct
    return hand


def test_a_small_batch_goes_to_all_its_servers_in_one_message_each() -> None:
    hand = direct(item("/a", b"one"), item("/b", b"two"))
    assert hand.kinds() == ["Commit", "Commit", "Await"]
    for send, server in zip(hand.sent[:2], (PRIMARY, BACKUP), strict=True):
        assert (send.server, send.data) == (server.number, b"onetwo")
        assert send.message.with_bytes and send.message.incarnation == server.incarnation
    hand.answer(Commit, Committed(1))
    hand.outcome("visible", stored=2)
    assert hand.operation.result == Stored(VERSION, [], 2)


@pytest.mark.parametrize("code", LATE)
def test_what_a_backup_says_of_a_small_batch_is_no_concern_of_the_clients(code: str) -> None:
    hand = direct(item("/a"))
    backup = hand.sent.pop(1)
    assert hand.operation.answered(backup.tag, Error(code, "no", 0.1), None, hand.now) == []
    assert hand.operation.unanswered(backup.tag, hand.now) == []
    hand.outcome("visible", stored=2)
    assert hand.operation.result == Stored(VERSION, [], 2)


@pytest.mark.parametrize("code", ["try-again", "not-held"])
def test_a_primary_that_refuses_a_small_batch_for_now_is_sent_it_step_by_step(code: str) -> None:
    hand = direct(item("/a"))
    hand.answer(Commit, Error(code, "too many bytes are staged", 0.1))
    assert "Stage" not in hand.kinds()
    hand.wait(0.2)
    assert hand.next(Stage).data == b"bytes" and not hand.sent[-1].message.with_bytes
    assert hand.kinds() == ["Commit", "Await", "Stage", "Commit"]


def test_a_small_batch_that_the_primary_never_got_is_sent_step_by_step() -> None:
    hand = direct(item("/a"))
    hand.silence(Commit)
    again = hand.sent[-1]
    assert not again.message.with_bytes, "has it come to the primary?"
    hand.sent.remove(again)
    hand.sent += hand.operation.answered(again.tag, Error("not-held", "nothing"), None, hand.now)
    hand.wait(0.2)
    assert hand.next(Stage).data == b"bytes"


def test_a_source_that_cannot_be_read_twice_is_not_sent_twice() -> None:
    hand = put(item("/a", rereadable=False))
    hand.answer(Ping, Pong("balancer", 0, 3))
    assert not hand.next(Reserve).message.direct


def test_a_small_page_that_changes_its_size_fails_the_put() -> None:
    hand = direct(PutItem("/a", Source(b"longer"), 5))
    assert "changed its size" in str(hand.operation.error) and "Commit" not in hand.kinds()


def test_the_epoch_is_asked_for_once() -> None:
    hand = put()
    hand.place()
    again = PutBatch(hand.directory, 200.0, hand._new_id, [item("/b")], 2)
    assert [type(each.message) for each in again.start(hand.now)] == [Reserve]
    removal = RemovePages(hand.directory, 200.0, hand._new_id, {"/b": ANY})
    assert [type(each.message) for each in removal.start(hand.now)] == [Ping], (
        "it would take effect however late"
    )


# -- rm --------------------------------------------------------------------------------


def test_a_removal_is_one_request_and_tells_how_many_there_were() -> None:
    hand = rm("/a", "/b")
    hand.answer(Ping, Pong("balancer", 0, 3))
    request = hand.next(Remove).message
    assert (request.epoch, [page.name for page in request.pages]) == (3, ["/a", "/b"])
    hand.answer(Remove, Outcome("visible", VERSION, 0, 0, names=["/b"]))
    assert hand.operation.result == 1


def test_a_removal_without_an_answer_is_sent_again_as_the_same() -> None:
    hand = rm("/a")
    hand.answer(Ping, Pong("balancer", 0, 3))
    first = hand.silence(Remove)
    assert hand.next(Remove).message.batch == first.batch


def test_a_removal_that_nobody_answers_is_unknown() -> None:
    hand = rm("/a", deadline_s=3.0)
    hand.answer(Ping, Pong("balancer", 0, 3))
    for _ in range(3):
        hand.silence(Remove)
    assert hand.error is errors.OutcomeUnknown


def test_a_removal_outlives_the_end_of_an_epoch() -> None:
    hand = rm("/a")
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Remove, Error("stale", "the epoch is 4"))
    hand.outcome("never", text="no such batch")
    hand.answer(Ping, Pong("balancer", 0, 4))
    hand.answer(Ping, Pong("balancer", 0, 4))
    assert hand.next(Remove).message.batch == hand.ids[1]


def test_a_removal_that_is_to_come_again_does_not_ask_for_an_outcome_first() -> None:
    """It was not taken in: asked for, it would be told never."""
    hand = rm("/a")
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Remove, Error("try-again", "too many requests await an answer", 0.1))
    assert not hand.sent
    hand.wait(0.2)
    assert hand.kinds() == ["Remove"]


def test_a_removal_that_was_put_off_until_its_deadline_says_by_what() -> None:
    hand = rm("/a", deadline_s=1.0)
    hand.answer(Ping, Pong("balancer", 0, 3))
    hand.answer(Remove, Error("try-again", "nobody has vouched for the catalog", 5.0))
    hand.wait(1.1)
    hand.answer(Abort, Outcome("never", 0, 0, 0, text="no such batch"))
    assert hand.error is errors.NeverStored
    assert str(hand.operation.error) == "no such batch; last refused since nobody has vouched for the catalog"


# -- in a whole cluster ----------------------------------------------------------------


class Cluster(World):
    """Loses the messages to the client that a test names, by their number."""

    def __init__(self, servers: int = 3) -> None:
        super().__init__(1, Options(servers=servers, clients=1, fsync_s=0.01))
        self.lose: set[int] = set()
        self.replies = 0
        self.network.loses = self._loses
        self.start()
        self.run(1.0)

    def _loses(self, source: Host, target: Host, frames: Frames) -> bool:
        if target is not self.clients[0].host:
            return False
        self.replies += 1
        return self.replies in self.lose

    def put(self, name: str, data: bytes, deadline_s: float = 30.0, **known: Any) -> Decided:
        client = self.clients[0]
        operation = PutBatch(
            client.directory,
            self.now + deadline_s,
            lambda: self.rng_work.randbytes(16),
            [item(name, data, **known)],
            2,
        )
        ended: list[Any] = []
        client.run(operation, ended.append)
        assert self.run(deadline_s + 5, until=lambda: bool(ended))
        return operation

    def holders(self, name: str, data: bytes) -> int:
        version = self.truth.get(name, 0)
        return sum(server.disk.get(name, version) == data for server in self.servers)


@pytest.mark.parametrize("size", [5, 3 * MIB + 1])
def test_every_reply_may_be_lost_once(size: int) -> None:
    data = Random(1).randbytes(size)
    whole = Cluster()
    whole.put("/a", data)
    assert whole.replies >= 4
    for number in range(1, whole.replies + 1):
        cluster = Cluster()
        cluster.lose = {number}
        operation = cluster.put("/a", data)
        assert operation.error is None, f"reply {number}: {operation.error!r}"
        assert cluster.holders("/a", data) >= 2
        assert len(cluster.truths) == len(whole.truths), "it is decided once"


@pytest.mark.parametrize("after_s", [0.001, 0.003, 0.006, 0.01, 0.015, 0.03])
@pytest.mark.parametrize("role", ["balancer", "primary"])
def test_a_put_outlives_a_restart_at_any_moment(role: str, after_s: float) -> None:
    data = Random(1).randbytes(3 * MIB)
    cluster = Cluster()

    def restart() -> None:
        node: Any = cluster.balancer
        if role == "primary":
            node = next((server for server in cluster.servers if server.disk.staged), cluster.servers[0])
        cluster.kill(node, 0.5)

    cluster.at(after_s, restart)
    operation = cluster.put("/a", data)
    assert operation.error is None, operation.error
    cluster.run(1.0)
    assert cluster.holders("/a", data) >= 2


def test_a_put_outlives_the_death_of_any_one_server() -> None:
    data = Random(1).randbytes(2 * MIB)
    for dies in range(3):
        cluster = Cluster()
        cluster.at(0.02, cluster.servers[dies].crash)
        operation = cluster.put("/a", data)
        assert operation.error is None, operation.error
        version = cluster.truth["/a"]
        alive = [server.disk for server in cluster.servers if server.up]
        assert sum(disk.get("/a", version) == data for disk in alive) >= 1
        assert cluster.holders("/a", data) >= 2


def test_a_disk_that_is_behind_slows_a_put_and_fails_none() -> None:
    """TryAgain from the primary, over and over."""
    data = Random(1).randbytes(6 * MIB)
    cluster = Cluster()
    refused: Counter[str] = Counter()
    for server in cluster.servers:
        take = server.machine._uploads.stage

        def stage(peer: Any, token: int, *rest: Any, take: Any = take) -> Any:
            if cluster.rng_faults.random() < 0.4:
                refused["stage"] += 1
                return [Answer(token, Error("try-again", "the disk is behind", 0.05))]
            return take(peer, token, *rest)

        server.machine._uploads.stage = stage  # type: ignore[method-assign]
    assert cluster.put("/a", data).error is None
    assert refused["stage"] and cluster.holders("/a", data) >= 2


@pytest.mark.parametrize("size", [0, CHUNK_BYTES, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
def test_a_stream_of_unknown_size_is_stored_whole(size: int) -> None:
    data = Random(size).randbytes(size)
    cluster = Cluster()
    operation = cluster.put("/a", data, known=False, rereadable=False)
    assert operation.error is None and cluster.holders("/a", data) >= 2
