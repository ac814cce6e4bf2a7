"""ObservedCalls over real sockets: what its observer is told, and that it does what Calls does.

A ROUTER in the same thread answers by hand; deadlines are times that the tests make up, and only messages
are waited for. `dws.connect` without an observer must use the plain classes.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

import dws
from dws.nodes.observed import ObservedCalls
from patterns.request_reply import HEADER_BYTES, Replier, Requester
from patterns.zeromq.calls import Calls

Socket = zmq.Socket[bytes]
FIRST_ID = 50
WITHIN_S = 10.0


class Notes:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def sent(
        self, now: float, request_id: int, endpoint: str, body: bytes, data_bytes: int, patience_s: float,
        *, is_on_the_way: bool,
    ) -> None:  # fmt: skip
        self.told.append(("sent", request_id, endpoint, bytes(body), data_bytes, is_on_the_way))
        self.patience_s = patience_s

    def received(self, now: float, request_id: int, body: memoryview, data_bytes: int) -> None:
        self.told.append(("received", request_id, bytes(body), data_bytes))

    def expired(self, now: float, request_id: int) -> None:
        self.told.append(("expired", request_id))

    def late(self, now: float, request_id: int, endpoint: str, body: memoryview) -> None:
        self.told.append(("late", request_id, endpoint, bytes(body)))


class Bench:
    def __init__(self, context: zmq.Context[Socket], router: Socket) -> None:
        self.router = router
        self.endpoint: str = router.last_endpoint.decode()
        self.replier: Replier[bytes] = Replier()
        self.notes = Notes()
        self.links: list[Socket] = []
        self.calls: ObservedCalls[str] = ObservedCalls(
            self.notes, context, FIRST_ID, self.changed, frame_max_bytes=1 << 20
        )

    def changed(self, socket: Socket, added: bool) -> None:
        (self.links.append if added else self.links.remove)(socket)

    def taken(self) -> list[bytes]:
        """The next request as the ROUTER gets it: who, frame 0, data."""
        return self.router.recv_multipart()

    def reply(self, asked: list[bytes], body: bytes, *data: bytes) -> None:
        self.router.send_multipart([asked[0], self.replier.reply(asked[1], body), *data])

    def received(self) -> Any:
        """The next reply, waited for; None if one came that nobody awaits."""
        [link] = self.links
        assert link.poll(WITHIN_S * 1000)
        return self.calls.receive(link)


@pytest.fixture
def bench(context: zmq.Context[Socket], sockets: Callable[..., Socket]) -> Iterator[Bench]:
    made = Bench(context, sockets(zmq.ROUTER, bind="tcp://127.0.0.1:*"))
    yield made
    made.calls.close()


def test_a_request_and_its_reply_are_told_with_their_id_and_bytes(bench: Bench) -> None:
    deadline = time.monotonic() + 2.0
    assert bench.calls.call(bench.endpoint, b"what?", "tag", deadline, b"d" * 100_000) == FIRST_ID
    asked = bench.taken()
    assert asked[1][HEADER_BYTES:] == b"what?" and len(asked[2]) == 100_000
    bench.reply(asked, b"that", b"e" * 70_000)
    tag, body, data = bench.received()
    assert (tag, bytes(body), len(data)) == ("tag", b"that", 70_000)
    assert bench.notes.told == [
        ("sent", FIRST_ID, bench.endpoint, b"what?", 100_000, True),
        ("received", FIRST_ID, b"that", 70_000),
    ]
    assert 1.0 < bench.notes.patience_s <= 2.0


def test_silence_is_told_once_and_the_reply_after_it_as_late(bench: Bench) -> None:
    bench.calls.call(bench.endpoint, b"slow?", "slow", 1.0)
    bench.calls.call(bench.endpoint, b"quick?", "quick", 9.0)
    slow, quick = bench.taken(), bench.taken()
    assert bench.calls.requester.expire(1.5) == [(FIRST_ID, "slow")]
    assert bench.calls.requester.expire(2.0) == []
    bench.reply(slow, b"at last")
    bench.reply(quick, b"here")
    answer = None
    while answer is None:
        answer = bench.received()
    assert answer[0] == "quick"
    assert bench.notes.told[2:] == [
        ("expired", FIRST_ID),
        ("late", FIRST_ID, bench.endpoint, b"at last"),
        ("received", FIRST_ID + 1, b"here", 0),
    ]


def test_what_is_no_reply_is_passed_over_as_ever(bench: Bench) -> None:
    bench.calls.call(bench.endpoint, b"?", "tag", 9.0)
    asked = bench.taken()
    for junk in (b"", b"\xd7", b"\xff" * 40, asked[1]):
        bench.router.send_multipart([asked[0], junk])
    bench.reply(asked, b"!")
    answer = None
    while answer is None:
        answer = bench.received()
    assert [told[0] for told in bench.notes.told] == ["sent", "received"]
    assert bench.calls.counters["malformed"] == 4


def test_a_full_queue_is_told(bench: Bench) -> None:
    nowhere = "inproc://nobody-binds-this"
    for _ in range(100_000):
        bench.calls.call(nowhere, b"x" * 10, "tag", 9.0)
        if not bench.notes.told[-1][-1]:
            break
    assert bench.notes.told[-1] == ("sent", bench.notes.told[-1][1], nowhere, b"x" * 10, 0, False)
    assert bench.calls.counters["not-sent-full"] == 1


def test_without_an_observer_nothing_is_watched() -> None:
    with dws.connect("tcp://127.0.0.1:9") as client:
        calls = client._runner._calls
        assert type(calls) is Calls and type(calls.requester) is Requester


def test_a_client_tells_its_observer() -> None:
    notes = Notes()
    client = dws.connect("tcp://127.0.0.1:9", timeout_s=0.05, observer=notes)
    with client, pytest.raises(dws.Unreachable):
        client.ping()
    assert [told[0] for told in notes.told] == ["sent"]
