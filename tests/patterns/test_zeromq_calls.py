"""Request/reply over real sockets: Calls on DEALERs, a Service on a ROUTER.

One thread drives both sides, step by step. Deadlines are times that the tests make up;
only messages are waited for. What a hostile peer sends is counted and leaves the service
serving; what nobody reads is dropped and never blocks it.
"""

from collections.abc import Callable, Iterator
from socket import create_server
from typing import Any

import pytest
import zmq

from patterns.request_reply import Replier, Requester, request_id_of
from patterns.zeromq.calls import UNAWAITED_MAX, Calls
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import DEFAULT_HWM, Monitor

Socket = zmq.Socket[bytes]
Make = Callable[..., Socket]
Until = Callable[..., None]

REALM = b"R" * 16


class Echo:
    """A service that answers each request with what came in it, or keeps silent."""

    def __init__(self, socket: Socket, address: str) -> None:
        socket.bind(address)
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.service = Service(socket, Replier(REALM), self.answer, self.refuse)
        self.asked: list[tuple[bytes, bytes]] = []
        self.refused: list[tuple[bytes, str]] = []
        self.silent = False

    def answer(self, peer: bytes, frame: bytes, body: memoryview, data: zmq.Frame | None) -> None:
        self.asked.append((peer, frame))
        if not self.silent:
            self.service.reply(peer, frame, bytes(body), None if data is None else data.bytes)

    def refuse(self, _peer: bytes, frame: bytes, reason: str) -> None:
        self.refused.append((frame, reason))

    def drain(self) -> None:
        self.service.drain(16)


class Client:
    def __init__(self, context: zmq.Context[Socket], **options: int) -> None:
        self.sockets: list[Socket] = []
        self.requester: Requester[Any] = Requester(first_id=1, realm=REALM)
        self.calls: Calls[Any] = Calls(
            context, self.requester, self.on_socket, **{"frame_max_bytes": 1 << 20} | options
        )
        self.replies: dict[Any, tuple[bytes, bytes | None]] = {}

    def on_socket(self, socket: Socket, added: bool) -> None:
        (self.sockets.append if added else self.sockets.remove)(socket)

    def receive(self) -> None:
        for socket in self.sockets:
            received = self.calls.receive(socket)
            if received is not None:
                tag, body, data = received
                assert tag not in self.replies, "a second reply"
                self.replies[tag] = (bytes(body), None if data is None else data.bytes)


@pytest.fixture
def echo(make: Make, address: Callable[[], str]) -> Echo:
    return Echo(make(zmq.ROUTER), address())


@pytest.fixture
def client(context: zmq.Context[Socket]) -> Iterator[Client]:
    made = Client(context)
    yield made
    made.calls.close()


def is_served(echo: Echo, client: Client, until: Until) -> bool:
    """Whether a new request gets its reply."""
    client.calls.call(echo.endpoint, b"still there?", "probe", deadline=1.0)
    until(lambda: "probe" in client.replies, echo.drain, client.receive)
    return client.replies.pop("probe") == (b"still there?", None)


# Requests and replies


def test_each_of_many_requests_gets_its_own_reply(echo: Echo, client: Client, until: Until) -> None:
    for tag in range(100):
        client.calls.call(echo.endpoint, b"%d" % tag, tag, deadline=1.0)
    until(lambda: len(client.replies) == 100, echo.drain, client.receive)
    assert client.replies == {tag: (b"%d" % tag, None) for tag in range(100)}
    assert client.requester.expire(1.0) == []


@pytest.mark.parametrize("size", [0, 10, 100_000], ids=["none", "small", "not copied"])
def test_data_travels_in_a_frame_of_its_own_both_ways(
    echo: Echo, client: Client, until: Until, size: int
) -> None:
    client.calls.call(echo.endpoint, b"body", "tag", deadline=1.0, data=bytes(size))
    until(lambda: client.replies, echo.drain, client.receive)
    assert client.replies == {"tag": (b"body", bytes(size))}


def test_requests_to_several_services_are_answered_by_each(
    make: Make, address: Callable[[], str], client: Client, until: Until
) -> None:
    echoes = [Echo(make(zmq.ROUTER), address()) for _ in range(3)]
    for tag, echo in enumerate(echoes):
        client.calls.call(echo.endpoint, b"%d" % tag, tag, deadline=1.0)
    until(lambda: len(client.replies) == 3, *(echo.drain for echo in echoes), client.receive)
    assert [len(echo.asked) for echo in echoes] == [1, 1, 1]


def test_a_deferred_answer_finds_its_way_back(echo: Echo, client: Client, until: Until) -> None:
    echo.silent = True
    for tag in ("first", "second"):
        client.calls.call(echo.endpoint, tag.encode(), tag, deadline=1.0)
    until(lambda: len(echo.asked) == 2, echo.drain)
    replier = echo.service.replier
    tokens = [replier.defer(peer, frame) for peer, frame in echo.asked]
    for token in reversed(tokens):
        echo.service.send(*replier.resolve(token, b"done"))
    until(lambda: len(client.replies) == 2, client.receive)
    replier.check()


def test_a_service_handles_no_more_in_one_go_than_it_is_told_to(make: Make, sockets: Make) -> None:
    echo = Echo(make(zmq.ROUTER), "inproc://echo")  # where all that was sent is there at once
    dealer = sockets(zmq.DEALER, connect=echo.endpoint)
    for _ in range(25):
        dealer.send_multipart([b"junk", b"", b""])
    assert [echo.service.drain(10) for _ in range(4)] == [10, 10, 5, 0]


# Loss


def test_requests_to_a_service_that_is_gone_expire(echo: Echo, client: Client, until: Until) -> None:
    echo.silent = True
    client.calls.call(echo.endpoint, b"", "read", deadline=1.0)
    until(lambda: echo.asked, echo.drain)
    client.calls.call(echo.endpoint, b"", "unread", deadline=2.0)
    echo.service.socket.close(0)
    client.receive()
    assert client.requester.wake_at() == 1.0
    assert [tag for _, tag in client.requester.expire(2.0)] == ["read", "unread"]
    assert client.replies == {}


def test_a_late_reply_is_a_counted_drop(echo: Echo, client: Client, until: Until) -> None:
    echo.silent = True
    client.calls.call(echo.endpoint, b"", "tag", deadline=1.0)
    until(lambda: echo.asked, echo.drain)
    client.requester.expire(1.0)
    echo.service.reply(*echo.asked[0], b"too late")
    until(lambda: client.requester.counters["unawaited"], client.receive)
    assert client.replies == {}


def test_a_service_that_comes_back_is_found_again(make: Make, client: Client, until: Until) -> None:
    """Over TCP alone: an inproc connection ends with the socket that was bound."""
    first = Echo(make(zmq.ROUTER), "tcp://127.0.0.1:*")
    assert is_served(first, client, until)
    monitor = Monitor(client.sockets[0])
    first.service.socket.close(0)
    until(monitor.drain)
    second = Echo(make(zmq.ROUTER), first.endpoint)
    assert is_served(second, client, until)
    monitor.close()


def test_calls_to_a_host_that_does_not_answer_never_block_and_expire(client: Client) -> None:
    with create_server(("127.0.0.1", 0)) as mute:  # it lets connect, and says nothing
        endpoint = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        for tag in range(DEFAULT_HWM + 500):
            client.calls.call(endpoint, b"", tag, deadline=1.0)
    assert client.calls.counters["not-sent-full"] == 500
    assert len(client.requester.expire(1.0)) == DEFAULT_HWM + 500


def test_an_endpoint_that_is_none_leaves_no_request_behind(client: Client) -> None:
    with pytest.raises(zmq.ZMQError):
        client.calls.call("no endpoint", b"", "tag", deadline=1.0)
    assert len(client.requester) == 0


# Links


def test_the_link_used_least_recently_is_closed_for_a_new_one(
    context: zmq.Context[Socket], make: Make, address: Callable[[], str], until: Until
) -> None:
    client = Client(context, links_max=2)
    echoes = [Echo(make(zmq.ROUTER), address()) for _ in range(3)]
    assert is_served(echoes[0], client, until)
    assert is_served(echoes[1], client, until)
    assert is_served(echoes[0], client, until)
    second = client.calls.link(echoes[1].endpoint)
    client.calls.link(echoes[0].endpoint)
    assert is_served(echoes[2], client, until)
    assert second.closed
    assert len(client.sockets) == 2
    assert is_served(echoes[1], client, until)
    client.calls.close()
    assert client.sockets == []


# Hostile requests


@pytest.mark.parametrize(
    ("frames", "refusals"),
    [([b""], 1), ([b"x"], 1), ([b"", b"body"], 1), ([b"", b""], 1), ([b"1", b"2", b"3"], 0), ([b""] * 5, 0)],
    ids=["empty", "one frame", "as a REQ sends it", "two empty", "three frames", "five frames"],
)
def test_hostile_multiparts_are_counted_and_the_service_goes_on(
    sockets: Make, echo: Echo, client: Client, until: Until, frames: list[bytes], refusals: int
) -> None:
    hostile = sockets(zmq.DEALER, connect=echo.endpoint)
    hostile.send_multipart(frames)
    hostile.send_multipart(frames)
    counted = echo.service.counters, echo.service.replier.counters
    until(lambda: counted[0]["too-many-frames"] + counted[1]["malformed"] == 2, echo.drain)
    assert echo.refused == [(frames[0], "version")] * (2 * refusals)
    assert echo.asked == []
    assert is_served(echo, client, until)


def test_a_good_request_with_frames_too_many_is_not_answered(sockets: Make, echo: Echo, until: Until) -> None:
    hostile = sockets(zmq.DEALER, connect=echo.endpoint)
    frame = Requester[str](first_id=1).request(b"", "", 0.0)[1]
    hostile.send_multipart([frame, b"data", b"more"])
    until(lambda: echo.service.counters["too-many-frames"], echo.drain)
    assert echo.asked == []


def test_requests_of_another_version_or_realm_are_refused_with_their_id(
    sockets: Make, echo: Echo, until: Until
) -> None:
    other = sockets(zmq.DEALER, connect=echo.endpoint)
    frame = Requester[str](first_id=77, realm=b"S" * 16).request(b"", "", 0.0)[1]
    other.send(frame)
    other.send(frame[:1] + b"\x02" + frame[2:])
    until(lambda: len(echo.refused) == 2, echo.drain)
    assert [reason for _, reason in echo.refused] == ["realm", "version"]
    assert [request_id_of(refused) for refused, _ in echo.refused] == [77, 77]


def test_a_frame_over_the_bound_costs_its_sender_the_connection_and_nobody_else(
    make: Make, sockets: Make, client: Client, until: Until
) -> None:
    """Over TCP alone: inproc has no frames on a wire to bound."""
    echo = Echo(make(zmq.ROUTER, frame_max_bytes=1000), "tcp://127.0.0.1:*")
    hostile = sockets(zmq.DEALER)
    monitor = Monitor(hostile)
    hostile.connect(echo.endpoint)
    hostile.send_multipart([bytes(900), bytes(1001)])
    events: list[bool] = []
    until(lambda: events[:2] == [True, False], lambda: events.extend(monitor.drain()), echo.drain)
    assert echo.asked == echo.refused == []
    assert is_served(echo, client, until)
    monitor.close()


# Peers that leave or do not read


def test_a_reply_to_a_peer_that_left_is_counted(
    context: zmq.Context[Socket], echo: Echo, client: Client, until: Until
) -> None:
    leaving = Client(context)
    echo.silent = True
    leaving.calls.call(echo.endpoint, b"", "tag", deadline=1.0)
    until(lambda: echo.asked, echo.drain)
    leaving.calls.close()
    # Until the ROUTER has noticed, a reply goes into the queue of the connection that breaks.
    counters = echo.service.counters
    until(lambda: counters["reply-dropped-gone"], lambda: echo.service.reply(*echo.asked[0], b""))
    echo.silent = False
    assert is_served(echo, client, until)


@pytest.mark.parametrize("size", [None, 10, 100_000], ids=["no data", "small data", "data not copied"])
def test_a_peer_that_does_not_read_never_blocks_the_service(
    make: Make, address: Callable[[], str], client: Client, until: Until, size: int | None
) -> None:
    echo = Echo(make(zmq.ROUTER, hwm=3), address())
    deaf = make(zmq.DEALER, hwm=3)
    deaf.connect(echo.endpoint)
    deaf.send(Requester[str](first_id=1).request(b"", "", 0.0)[1])
    echo.silent = True
    until(lambda: echo.asked, echo.drain)
    peer, frame = echo.asked[0]
    body = bytes(100_000) if size is None else b""
    data = None if size is None else bytes(size)
    until(
        lambda: echo.service.counters["reply-dropped-full"] > 10,
        lambda: [echo.service.reply(peer, frame, body, data) for _ in range(1000)],
    )
    echo.silent = False
    assert is_served(echo, client, until)


# Hostile repliers


def test_replies_that_are_none_or_have_frames_too_many_are_counted(
    make: Make, client: Client, until: Until, address: Callable[[], str]
) -> None:
    rogue = make(zmq.ROUTER)
    rogue.bind(address())
    client.calls.call(rogue.getsockopt_string(zmq.LAST_ENDPOINT), b"", "tag", deadline=1.0)
    peer, request = rogue.recv_multipart()
    for frames in ([b""], [b"junk"], [request], [b"", b"", b""]):
        rogue.send_multipart([peer, *frames])
    rogue.send_multipart([peer, Replier[bytes](REALM).reply(request, b"body"), b"data", b"more", b"more"])
    until(lambda: client.replies, client.receive)
    assert client.replies == {"tag": (b"body", b"data")}
    assert client.calls.counters == {"malformed": 4, "too-many-frames": 3}


def test_a_flood_of_replies_that_nobody_awaits_does_not_hold_the_loop(
    make: Make, client: Client, until: Until
) -> None:
    rogue = make(zmq.ROUTER)
    rogue.bind("inproc://rogue")  # where all that was sent is there at once
    client.calls.call("inproc://rogue", b"", "tag", deadline=1.0)
    peer, request = rogue.recv_multipart()
    for _ in range(10 * UNAWAITED_MAX):
        rogue.send_multipart([peer, b"junk"])
    rogue.send_multipart([peer, Replier[bytes](REALM).reply(request, b"body")])
    client.receive()
    assert client.calls.counters["malformed"] == UNAWAITED_MAX
    until(lambda: client.replies, client.receive)
