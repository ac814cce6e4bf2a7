"""A trace of real operations: what it says of each message, why a thing is asked for again, and its sums.

`Watched` plays the operations of test_download.py by hand and tells a Trace what crosses the wire, as the
client's shell does. The sums are checked after every event.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dws.client import Directory, Operation, Send
from dws.download import ReadPages, StreamPage
from dws.limits import MIB
from dws.messages import (
    Await,
    Doubt,
    Error,
    Located,
    Outcome,
    Ping,
    Pong,
    Read,
    ReadData,
    Reserve,
    Reserved,
    ServerRef,
    Stage,
    Staged,
    StagePart,
    Unstage,
    encode,
)
from dws.trace import BALANCER, EXPIRED, LATE, NOT_SENT, REPLY, SENT, UNREADABLE, Step, Trace
from patterns.request_reply import HEADER_BYTES
from tests.dws.test_download import LARGE, Hand, Later, Library

BALANCER_AT = "tcp://balancer:5600"
FIRST_ID = 700


class Watched(Hand):
    """A Hand whose messages a Trace sees."""

    def __init__(self, make: Callable[[Directory, float], Operation], library: Library) -> None:
        self.trace = Trace(100.0, BALANCER_AT)
        self.steps: list[Step] = []
        self.ids: dict[int, int] = {}
        self._answer = library.answer
        library.answer = self.answer  # type: ignore[method-assign]
        super().__init__(make, library)

    def keep(self, sends: list[Send]) -> None:
        for send in sends:
            request_id = self.ids[id(send)] = FIRST_ID + len(self.ids)
            endpoint = f"tcp://web-{send.server}:1" if send.server else BALANCER_AT
            body = encode(send.message)
            self.seen(self.trace.sent(self.now, request_id, endpoint, body, 0, send.timeout_s))
        super().keep(sends)

    def answer(self, send: Send) -> tuple[Any, bytes] | None:
        answer = (Pong("", 0, 5), b"") if isinstance(send.message, Doubt) else self._answer(send)
        request_id = self.ids[id(send)]
        if answer is None:
            self.seen(self.trace.expired(max(self.now, self.give_up_at[id(send)]), request_id))
        else:
            self.seen(self.trace.received(self.now, request_id, encode(answer[0]), len(answer[1])))
        return answer

    def seen(self, step: Step) -> None:
        self.trace.check()
        self.steps.append(step)

    def rows(self) -> list[tuple[str, str, str, str]]:
        return [(step.kind, step.peer, step.message, step.note) for step in self.steps]

    def notes(self) -> set[str]:
        return {step.note for step in self.steps if step.note}


def stream(library: Library, name: str = "/a") -> Watched:
    return Watched(lambda directory, now: StreamPage(directory, now, 10.0, name), library)


def read(library: Library, *names: str) -> Watched:
    return Watched(lambda directory, now: ReadPages(directory, now + 10.0, list(names)), library)


def silenced_after(hand: Watched, answers: int, server: int) -> None:
    """After so many more answers, this server says nothing any more."""
    left = iter(range(answers))

    def order(sends: list[Send]) -> Send:
        if next(left, None) is None:
            hand.library.silent.add(server)
        return sends.pop(0)

    hand.order = order


# -- what is seen --------------------------------------------------------------------------


def test_a_small_page_is_two_round_trips() -> None:
    hand = stream(Library(a=(b"x" * 5000, [2, 1])))
    hand.run()
    assert hand.rows() == [
        (SENT, BALANCER, "locate", ""),
        (REPLY, BALANCER, "located", ""),
        (SENT, "web-2", "read", ""),
        (REPLY, "web-2", "data", ""),
    ]
    assert [step.request for step in hand.steps] == [1, 1, 2, 2]
    assert [step.id for step in hand.steps] == [700, 700, 701, 701]
    assert [step.is_new_peer for step in hand.steps] == [True, False, True, False]
    assert [step.outstanding_bytes for step in hand.steps] == [None, None, 5000, 0]
    assert hand.steps[3].data_bytes == 5000
    assert hand.steps[2].control_bytes == HEADER_BYTES + len(encode(Read("/a", 1, 0, 5000)))
    assert hand.trace.deepest == 2
    assert hand.trace.names == {1: "web-1", 2: "web-2", 3: "web-3"}
    assert not hand.trace.counters["errors"] and not hand.trace.unanswered()


def test_many_small_pages_go_beside_one_another() -> None:
    hand = read(Library(a=(b"x", [1]), b=(b"yy", [2]), c=(b"z", [1])), "/a", "/b", "/c")
    hand.run()
    legs = {(leg.peer, leg.message): leg.requests for leg in hand.trace.legs.values()}
    assert legs == {(BALANCER, "locate"): 1, ("web-1", "fetch"): 1, ("web-2", "fetch"): 1}
    assert (hand.trace.total("requests"), hand.trace.deepest) == (3, 2)


def test_a_large_page_goes_under_the_credit() -> None:
    hand = stream(Library(a=(LARGE, [1, 2])))
    hand.run()
    reads = [step for step in hand.steps if step.message in ("read", "data")]
    assert all(step.is_routine for step in reads)
    assert [step.outstanding_bytes for step in reads[:9]] == [n * MIB for n in (1, 2, 3, 4, 5, 6, 7, 8, 7)]
    assert hand.trace.peak_bytes == 8 * MIB and reads[-1].outstanding_bytes == 0
    assert sum(step.data_bytes for step in reads) == len(LARGE)
    # Lookup, digests, eight chunks at once, then four that each waited for one of those.
    assert hand.trace.deepest == 4
    assert not hand.notes()


def test_a_page_that_is_not_there() -> None:
    hand = stream(Library(), "/none")
    hand.run()
    assert hand.rows() == [(SENT, BALANCER, "locate", ""), (REPLY, BALANCER, "located", "")]
    assert isinstance(hand.steps[1].content, Located) and hand.steps[1].content.pages == [None]


# -- why again ---------------------------------------------------------------------------------


def test_a_server_that_falls_silent_is_left_where_it_stood() -> None:
    hand = stream(Library(a=(LARGE, [1, 2])))
    silenced_after(hand, 5, 1)  # lookup, digests, three chunks
    hand.run()
    assert hand.notes() == {"now of web-2: web-1 did not answer in 1 s"}
    expired = [step for step in hand.steps if step.kind == EXPIRED]
    again = [step for step in hand.steps if step.note]
    assert [step.content for step in expired] == [step.content for step in again]
    assert all(not step.is_routine for step in expired) and {step.peer for step in again} == {"web-2"}
    assert all(step.took_s == 1.0 for step in expired)
    assert hand.trace.counters["moved"] == hand.trace.counters[EXPIRED] == len(expired) == 8


def test_a_server_that_lies_is_left() -> None:
    library = Library(a=(LARGE, [1, 2]))
    hand = stream(library)
    hand.step()
    hand.step()
    library.lying.add(1)
    hand.run()
    assert hand.notes() == {"now of web-2: what web-1 sent was not right"}
    assert {step.peer for step in hand.steps if step.message == "doubt"} == {"web-1"}
    assert hand.trace.counters["moved"] == 8


def test_a_server_without_the_page_is_left() -> None:
    hand = read(Library(a=(b"x", [1, 2]), b=(b"y", [1, 2])), "/a", "/b")
    hand.library.empty.add(1)
    hand.run()
    assert hand.notes() == {"now of web-2: web-1 does not hold it"}
    hand = stream(Library(a=(b"x", [1, 2])))
    hand.library.empty.add(1)
    hand.run()
    assert hand.notes() == {"now of web-2: web-1 said not-held"}
    assert hand.trace.counters["errors"] == 1


def test_where_no_holder_is_good_everything_is_looked_up_anew() -> None:
    library = Library(a=(b"x", [1]))
    library.silent.add(1)
    hand = stream(library)
    for _ in range(6):
        hand.step()
    locates = [step for step in hand.steps if step.message == "locate"]
    assert locates[1].note == "again: no holder was good, so all names are looked up anew"


def test_waiting_for_a_holder_is_told_once_and_then_routine() -> None:
    library = Library(a=(b"x", []))
    library.later = [Later(0, 0.1, "")]
    hand = stream(library)
    for _ in range(20):
        hand.step()
    library.pages["/a"], library.later = (1, b"x", [1]), []
    hand.run()
    locates = [step for step in hand.steps if step.message in ("locate", "located")]
    assert [step.note for step in locates[2:6:2]] == ["again: no holder was ready"] * 2
    assert [step.is_routine for step in locates[:5]] == [False] * 4 + [True]
    assert all(step.is_routine for step in locates[4:-1]) and not locates[-1].is_routine


def test_a_balancer_that_is_silent_is_asked_again() -> None:
    trace = Trace(0.0, BALANCER_AT)
    first = trace.sent(0.5, 1, BALANCER_AT, encode(Ping()), 0, 1.0)
    silence = trace.expired(1.5, 1)
    second = trace.sent(1.5, 2, BALANCER_AT, encode(Ping()), 0, 1.0)
    assert (first.note, second.note) == ("", "again: the balancer did not answer in 1 s")
    assert (silence.at_s, silence.took_s, trace.deepest) == (1.5, 1.0, 2)
    assert [step.request for step in trace.unanswered()] == [2]


REFUSED = Error("try-again", "busy", 0.05)


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (REFUSED, "again: web-3 said try-again in 0.05 s"),
        (Error("not-held", "what?"), "again: web-3 said not-held"),
        (Staged(0, 3), "again: web-3 has less so far"),
        (Staged(0, 10), ""),
    ],
)
def test_a_part_that_was_not_staged_is_sent_again(answer: Any, note: str) -> None:
    trace = Trace(0.0, BALANCER_AT)
    batch, server = bytes(16), ServerRef(3, "web-3", "tcp://w3:1", 9)
    pages = encode(Reserve(batch, 1, [], 0, 1.0))
    trace.sent(0.0, 1, BALANCER_AT, pages, 0, 1.0)
    trace.received(0.1, 1, encode(Reserved(1, 5, server, [], 1.0, 2)), 0)
    stage = encode(Stage(batch, 5, 9, [StagePart(0, 0, 10)]))
    step = trace.sent(0.2, 2, "tcp://w3:1", stage, 10, 5.0)
    assert (step.peer, step.outstanding_bytes, step.data_bytes) == ("web-3", 10, 10)
    assert trace.received(0.3, 2, encode(answer), 0).outstanding_bytes == 0
    assert trace.sent(0.4, 3, "tcp://w3:1", stage, 10, 5.0).note == note
    trace.check()


def test_an_await_that_goes_on_is_no_repetition() -> None:
    trace = Trace(0.0, BALANCER_AT)
    for request_id in (1, 2):
        step = trace.sent(0.0, request_id, BALANCER_AT, encode(Await(bytes(16), 0, 1.0)), 0, 2.0)
        trace.received(1.0, request_id, encode(Outcome("open", 5, 0, 2)), 0)
    assert step.note == "" and not trace.counters["repeated"]


# -- what goes wrong on the wire -----------------------------------------------------------------------


def test_a_late_reply_is_told_under_the_number_of_its_request() -> None:
    trace = Trace(0.0, BALANCER_AT)
    trace.sent(0.0, 7, BALANCER_AT, encode(Ping()), 0, 1.0)
    trace.sent(0.0, 8, BALANCER_AT, encode(Ping()), 0, 1.0)
    trace.expired(1.0, 8)
    late = trace.late(1.25, 8, BALANCER_AT, encode(Pong("", 0, 3)))
    assert (late.kind, late.request, late.took_s, late.message) == (LATE, 2, 1.25, "pong")
    foreign = trace.late(1.5, 1 << 60, BALANCER_AT, b"\xc1")
    assert (foreign.request, foreign.content, foreign.message) == (0, None, "?")
    assert trace.counters[LATE] == 2
    trace.check()


def test_what_cannot_be_read_is_told() -> None:
    trace = Trace(0.0, BALANCER_AT)
    trace.sent(0.0, 1, BALANCER_AT, encode(Ping()), 0, 1.0)
    step = trace.received(0.1, 1, b"\x93nonsense", 0)
    assert (step.kind, step.content) == (UNREADABLE, None)
    again = trace.sent(0.2, 2, BALANCER_AT, encode(Ping()), 0, 1.0)
    assert again.note == "again: what the balancer said cannot be read"


def test_a_request_that_found_its_queue_full_says_so() -> None:
    trace = Trace(0.0, BALANCER_AT)
    read_it = encode(Read("/a", 1, 0, 10))
    step = trace.sent(0.0, 1, "tcp://w:1", read_it, 0, 1.0, is_on_the_way=False)
    assert (step.kind, step.is_routine, step.peer) == (NOT_SENT, False, "tcp://w:1")


# -- any order ---------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Whatever is sent, answered, silent or late: the sums are those of a list of all there was."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace(0.0, BALANCER_AT)
        self.now = 0.0
        self.waiting: dict[int, int] = {}
        self.ended: list[int] = []
        self.sent_bytes = 0
        self.next_id = 1

    @rule(chunk=st.integers(0, 5), server=st.integers(1, 3), passed=st.floats(0, 2))
    def ask(self, chunk: int, server: int, passed: float) -> None:
        self.now += passed
        body = encode(Read("/a", 1, chunk * MIB, chunk))
        self.trace.sent(self.now, self.next_id, f"tcp://w{server}:1", body, 0, 1.0)
        self.sent_bytes += HEADER_BYTES + len(body)
        self.waiting[self.next_id] = chunk
        self.next_id += 1

    @rule()
    def leave(self) -> None:
        body = encode(Unstage(bytes(16)))
        self.trace.sent(self.now, self.next_id, BALANCER_AT, body, 0, 1.0)
        self.sent_bytes += HEADER_BYTES + len(body)
        self.waiting[self.next_id] = 0
        self.next_id += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), reply=st.sampled_from([ReadData(0, 5), REFUSED, Pong("", 0, 1)]))
    def answer(self, data: st.DataObject, reply: Any) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[request_id]
        self.ended.append(request_id)
        step = self.trace.received(self.now, request_id, encode(reply), 5)
        assert step.kind == REPLY and step.request == request_id

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def silence(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[request_id]
        self.ended.append(request_id)
        self.trace.expired(self.now, request_id)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def too_late(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.ended))
        before = self.trace.total("replies")
        assert self.trace.late(self.now, request_id, "tcp://w1:1", b"").request == request_id
        assert self.trace.total("replies") == before

    @invariant()
    def sums(self) -> None:
        self.trace.check()
        assert self.trace.total("sent_bytes") == self.sent_bytes
        assert [step.id for step in self.trace.unanswered()] == sorted(self.waiting)
        assert self.trace.total("requests") == self.next_id - 1
        assert self.trace.deepest <= self.next_id


TestAnyOrder = AnyOrder.TestCase
