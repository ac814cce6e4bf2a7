"""The simulated network does what ZeroMQ does: each scenario is played on both, and ends the same.

A scenario ends with a message that must arrive. What was sent before it and has not come by then is lost.
"""

import time
from collections.abc import Iterator
from random import Random, randrange
from typing import Any

import pytest
import zmq

from patterns.sim import network as sim
from patterns.sim.clock import Clock
from patterns.zeromq.sockets import Monitor, make_socket

WITHIN_S = 5.0
END = b"end"


class Virtual:
    """Scenarios on the simulated network: `near` connects, `far` binds."""

    Unreachable = sim.Unreachable

    def __init__(self) -> None:
        self.clock = Clock()
        self.network = sim.Network(self.clock, Random(1))
        self.hosts = {name: self.network.host(name) for name in ("near", "far")}
        for host in self.hosts.values():
            host.start()
        self.came: dict[Any, list[Any]] = {}
        self.links: list[bool] = []

    def bind(self, kind: str, hwm: int = 1000) -> Any:
        return self._socket("far", kind, hwm, lambda socket: socket.bind("far:1"))

    def connect(self, kind: str, hwm: int = 1000) -> Any:
        return self._socket("near", kind, hwm, lambda socket: socket.connect("far:1"))

    def _socket(self, host: str, kind: str, hwm: int, attach: Any) -> Any:
        socket = sim.Socket(self.hosts[host], kind, hwm)
        self.came[socket] = []
        socket.on_message = lambda peer, frames: self.came[socket].append((peer, frames[0]))
        if host == "near":
            socket.on_link = self.links.append
        attach(socket)
        return socket

    def send(self, socket: Any, message: bytes, peer: Any = 0) -> bool:
        accepted: bool = socket.send((message,), peer)
        return accepted

    def until_linked(self, count: int) -> None:
        """Until the connecting socket was told so often that its connection is up or down."""
        assert self.clock.run(self.clock.now + WITHIN_S, lambda: len(self.links) >= count)

    def receive_until(self, socket: Any, last: bytes) -> list[Any]:
        found = self.came[socket]
        self.clock.run(self.clock.now + WITHIN_S, lambda: bool(found) and found[-1][1] == last)
        self.came[socket] = []
        assert found and found[-1][1] == last
        return found

    def has_come(self, socket: Any) -> bool:
        """Whether a message has come, after waiting a little for one."""
        self.clock.run(self.clock.now + 0.05)
        return bool(self.came[socket])

    def close(self, socket: Any) -> None:
        socket.close()

    def end(self) -> None:
        pass


class Real:
    """The same over tcp."""

    def __init__(self) -> None:
        self.sockets: list[Any] = []
        self.monitor: Monitor | None = None
        self.links: list[bool] = []
        # Below what Linux gives to outgoing connections: one of those could meet itself where nobody listens.
        self.port = 0
        probe = self._socket("ROUTER", 1)
        while not self.port:
            port = randrange(20_000, 32_000)
            try:
                probe.bind(f"tcp://127.0.0.1:{port}")
                self.port = port
            except zmq.ZMQError as error:
                assert error.errno == zmq.EADDRINUSE
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        # Unlike `close`, which leaves the listener to another thread.
        probe.unbind(self.endpoint)

    def _socket(self, kind: str, hwm: int) -> Any:
        # A context for each: its end is the only word of when a closed socket's connections are gone.
        context: Any = zmq.Context()
        socket = make_socket(context, getattr(zmq, kind), frame_max_bytes=1000, hwm=hwm)
        if kind == "SUB":
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.sockets.append(socket)
        return socket

    def bind(self, kind: str, hwm: int = 1000) -> Any:
        socket = self._socket(kind, hwm)
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                socket.bind(self.endpoint)
                return socket
            except zmq.ZMQError:
                # The port is free once the I/O thread has closed the last socket's listener.
                assert time.monotonic() < deadline

    def connect(self, kind: str, hwm: int = 1000) -> Any:
        socket = self._socket(kind, hwm)
        if self.monitor is not None:
            self.monitor.close()
        self.monitor = Monitor(socket)
        socket.connect(self.endpoint)
        return socket

    def send(self, socket: Any, message: bytes, peer: Any = None) -> bool:
        try:
            socket.send_multipart([message] if peer is None else [peer, message], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise sim.Unreachable(str(peer)) from error
            raise
        return True

    def until_linked(self, count: int) -> None:
        deadline = time.monotonic() + WITHIN_S
        assert self.monitor is not None
        while len(self.links) < count:
            assert self.monitor.socket.poll(max(0, (deadline - time.monotonic()) * 1000))
            self.links += self.monitor.drain()

    def receive_until(self, socket: Any, last: bytes) -> list[Any]:
        found: list[Any] = []
        while not found or found[-1][1] != last:
            assert socket.poll(WITHIN_S * 1000), f"only {found} came"
            frames = socket.recv_multipart()
            found.append((frames[0] if len(frames) == 2 else None, frames[-1]))
        return found

    def has_come(self, socket: Any) -> bool:
        # The poll also has the socket take note of its connections.
        return bool(socket.poll(50))

    def close(self, socket: Any) -> None:
        if self.monitor is not None and socket is self.monitor._watched:
            self.monitor.close()
            self.monitor = None
        socket.close(0)
        socket.context.term()

    def end(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
        for socket in self.sockets:
            socket.close(0)
            socket.context.term()


@pytest.fixture(params=[Virtual, Real], ids=["simulated", "zeromq"])
def there(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.end()


def bodies(found: list[Any]) -> list[bytes]:
    return [body for _, body in found]


def publish_until_heard(there: Any, publisher: Any, subscriber: Any, message: bytes) -> None:
    """When a subscription has come, only its first message tells."""
    for _ in range(100):
        if there.has_come(subscriber):
            return
        assert there.send(publisher, message)
    raise AssertionError("never heard")


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


@pytest.mark.parametrize(("connects", "binds"), [("DEALER", "ROUTER"), ("PUSH", "PULL")])
def test_before_there_is_a_connection_messages_wait_up_to_the_high_water_mark(
    there: Any, connects: str, binds: str
) -> None:
    client = there.connect(connects, 5)
    assert [there.send(client, message) for message in numbers(8)] == [True] * 5 + [False] * 3
    server = there.bind(binds)
    assert bodies(there.receive_until(server, b"4")) == numbers(5)


def test_the_connecting_socket_keeps_what_waits_over_a_lost_connection(there: Any) -> None:
    server = there.bind("PULL")
    client = there.connect("PUSH")
    there.until_linked(1)
    there.close(server)
    there.until_linked(2)
    for message in numbers(3):
        assert there.send(client, message)
    server = there.bind("PULL")
    assert bodies(there.receive_until(server, b"2")) == numbers(3)
    assert there.links == [True, False, True][: len(there.links)]


def test_a_queue_is_lost_with_its_socket(there: Any) -> None:
    client = there.connect("DEALER")
    assert there.send(client, b"lost")
    there.close(client)
    client = there.connect("DEALER")
    assert there.send(client, b"kept")
    server = there.bind("ROUTER")
    assert bodies(there.receive_until(server, b"kept")) == [b"kept"]


def test_a_router_refuses_an_unknown_peer_and_one_that_left(there: Any) -> None:
    server = there.bind("ROUTER")
    client = there.connect("DEALER")
    there.send(client, b"hello")
    [(peer, _)] = there.receive_until(server, b"hello")
    with pytest.raises(sim.Unreachable):
        there.send(server, b"x", b"nobody" if isinstance(there, Real) else 99)
    assert there.send(server, b"reply", peer)
    there.receive_until(client, b"reply")
    there.close(client)
    client = there.connect("DEALER")
    there.send(client, b"again")
    [(other, _)] = there.receive_until(server, b"again")
    assert other != peer
    with pytest.raises(sim.Unreachable):
        # It may take the ROUTER a moment to hear of the end.
        for _ in range(100):
            there.send(server, b"late reply", peer)
            there.has_come(server)


def test_a_subscriber_misses_what_was_published_before_it_had_subscribed(there: Any) -> None:
    publisher = there.connect("PUB")
    assert all(there.send(publisher, message) for message in numbers(10))
    subscriber = there.bind("SUB")
    there.until_linked(1)
    publish_until_heard(there, publisher, subscriber, END)
    assert set(bodies(there.receive_until(subscriber, END))) == {END}


def test_a_publisher_keeps_some_for_a_subscriber_that_went_away_and_drops_the_rest(there: Any) -> None:
    """Since the publisher is the one that connects: its queue outlives the connection, and what is over the
    mark is dropped without a word."""
    subscriber = there.bind("SUB")
    publisher = there.connect("PUB", 4)
    there.until_linked(1)
    publish_until_heard(there, publisher, subscriber, b"first")
    there.close(subscriber)
    there.until_linked(2)
    assert all(there.send(publisher, message) for message in numbers(20))
    subscriber = there.bind("SUB")
    there.until_linked(3)
    publish_until_heard(there, publisher, subscriber, END)
    assert there.send(publisher, b"the very end")
    found = bodies(there.receive_until(subscriber, b"the very end"))
    kept = [message for message in found if message in numbers(20)]
    assert 1 <= len(kept) <= 4 and kept == numbers(20)[: len(kept)]
