"""Replicas, fair queues and owners of keys, over real sockets.

One thread drives all sides. Time is made up; only messages are waited for.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
import zmq

from patterns.fair import FairQueue
from patterns.rendezvous import Rendezvous
from patterns.request_reply import Replier, Requester
from patterns.snapshot import APPLY, LIVE, Feed, Follower
from patterns.zeromq.calls import Calls
from patterns.zeromq.service import Service

Socket = zmq.Socket[bytes]
Make = Callable[..., Socket]
Address = Callable[[], str]
Until = Callable[..., None]
Answer = Callable[[bytes], bytes | None]


class Asked:
    """A service whose answers a function makes; None: it keeps silent."""

    def __init__(self, socket: Socket, address: str, answer: Answer) -> None:
        socket.bind(address)
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._answer = answer
        self._service = Service(socket, Replier(), self._asked, lambda *_refused: None)

    def drain(self) -> None:
        self._service.drain(100)

    def _asked(self, peer: bytes, frame: bytes, body: memoryview, _data: zmq.Frame | None) -> None:
        answer = self._answer(bytes(body))
        if answer is not None:
            self._service.reply(peer, frame, answer)


class Asking:
    """Requests and what came of them, by tag."""

    def __init__(self, context: zmq.Context[Socket]) -> None:
        self.requester: Requester[Any] = Requester(first_id=1)
        self.replies: dict[Any, bytes] = {}
        self._sockets: list[Socket] = []
        self.calls: Calls[Any] = Calls(context, self.requester, self._on_socket, frame_max_bytes=1 << 20)

    def ask(self, endpoint: str, body: bytes, tag: Any, deadline: float = 1.0) -> None:
        self.calls.call(endpoint, body, tag, deadline)

    def drain(self) -> None:
        for socket in self._sockets:
            while (received := self.calls.receive(socket)) is not None:
                self.replies[received[0]] = bytes(received[1])

    def _on_socket(self, socket: Socket, added: bool) -> None:
        (self._sockets.append if added else self._sockets.remove)(socket)


@pytest.fixture
def asking(context: zmq.Context[Socket]) -> Iterator[Callable[[], Asking]]:
    made: list[Asking] = []

    def make_one() -> Asking:
        made.append(Asking(context))
        return made[-1]

    yield make_one
    for each in made:
        each.calls.close()


# A replica


class Replica:
    """A follower with its copy, a publisher with its table, and both their sockets."""

    PARTS = 4

    def __init__(self, make: Make, address: Address, asking: Callable[[], Asking]) -> None:
        self.now = 0.0
        self.table: dict[str, int] = {}
        self.copy: dict[str, int] = {}
        self.log: list[tuple[str, int]] = []
        self.feed, self.follower = Feed(pause_s=1), Follower(behind_s=3)
        self.loses = 0
        self.publisher = Asked(make(zmq.ROUTER), address(), self._tell)
        self.listener = Asked(make(zmq.ROUTER), address(), self._take)
        self.asks, self.pushes = asking(), asking()

    def change(self, key: str, value: int) -> None:
        self.table[key] = value
        self.log.append((key, value))
        self.feed.number += 1

    def part(self, table: dict[str, int], number: int) -> dict[str, int]:
        return {key: value for key, value in table.items() if len(key) % self.PARTS == number}

    def begin(self) -> None:
        self.follower.begin()
        self.asks.ask(self.publisher.endpoint, b"all", None)

    def step(self) -> None:
        """Everything that can happen now, and a moment of time."""
        self.now += 0.1
        after = self.feed.poll(self.now)
        if after is not None:
            updates = json.dumps([after, self.log[after:]]).encode()
            self.pushes.ask(self.listener.endpoint, updates, after, self.now + 0.5)
        for side in (self.publisher, self.listener, self.asks, self.pushes):
            side.drain()
        for body in self.pushes.replies.values():
            self.feed.answered(json.loads(body), self.now)
        self.pushes.replies.clear()
        for _ in self.pushes.requester.expire(self.now):
            self.feed.unanswered(self.now)
        for tag, body in list(self.asks.replies.items()):
            del self.asks.replies[tag]
            self._load(tag, json.loads(body))
        self.follower.check()

    def _tell(self, body: bytes) -> bytes:
        if body == b"all":
            self.feed.follow(self.feed.number)
            return json.dumps(
                [self.feed.number, [self.part(self.table, n) for n in range(self.PARTS)]]
            ).encode()
        return json.dumps(self.part(self.table, int(body))).encode()

    def _load(self, tag: int | None, answer: Any) -> None:
        if tag is None:
            number, parts = answer
            differing = [n for n in range(self.PARTS) if parts[n] != self.part(self.copy, n)]
            self.follower.compare(number, differing)
        else:
            self.copy = {
                key: value for key, value in self.copy.items() if len(key) % self.PARTS != tag
            } | answer
            self.follower.loaded()
        if self.follower.part is not None:
            self.asks.ask(
                self.publisher.endpoint, b"%d" % self.follower.part, self.follower.part, self.now + 100
            )

    def _take(self, body: bytes) -> bytes | None:
        if self.loses:
            self.loses -= 1
            return None
        after, updates = json.loads(body)
        for number, (key, value) in enumerate(updates, start=after + 1):
            if self.follower.update(number) == APPLY:
                self.copy[key] = value
        return json.dumps(self.follower.applied if self.follower.state == LIVE else -1).encode()


@pytest.fixture
def replica(make: Make, address: Address, asking: Callable[[], Asking]) -> Replica:
    return Replica(make, address, asking)


def test_a_replica_loads_what_differs_and_then_follows(replica: Replica, until: Until) -> None:
    for number in range(20):
        replica.change("x" * (number % 7), number)
    replica.copy = dict(replica.part(replica.table, 1))
    replica.begin()
    until(lambda: replica.follower.state == LIVE, replica.step)
    assert replica.copy == replica.table
    assert replica.follower.counters["parts loaded"] == replica.PARTS - 1
    for number in range(20):
        replica.change("y" * (number % 5), number)
    until(lambda: replica.follower.applied == 40, replica.step)
    assert replica.copy == replica.table


def test_updates_during_the_load_and_lost_ones_are_applied_once_and_in_order(
    replica: Replica, until: Until, seed: int
) -> None:
    random = Random(seed)

    def live_on() -> None:
        replica.change("z" * random.randrange(9), random.randrange(100))
        replica.loses = random.choice([replica.loses, 0, 1, 3])
        replica.step()

    replica.change("first", 1)
    replica.begin()
    until(lambda: replica.follower.state == LIVE and replica.feed.number > 100, live_on)
    replica.loses = 0
    until(lambda: replica.follower.applied == replica.feed.number, replica.step)
    assert replica.copy == replica.table


def test_a_copy_that_went_wrong_is_found_by_its_summary_and_mended(replica: Replica, until: Until) -> None:
    replica.change("a", 1)
    replica.begin()
    until(lambda: replica.follower.state == LIVE, replica.step)
    replica.copy["stray"] = 7
    assert replica.follower.seen(replica.feed.number, replica.copy == replica.table, replica.now)
    replica.begin()
    until(lambda: replica.follower.state == LIVE, replica.step)
    assert replica.copy == replica.table
    assert replica.follower.counters["disagreed"] == 1


# A fair queue between a ROUTER and whoever serves


@pytest.mark.parametrize("flooding", ["lookup", "upload", "repair"])
def test_a_flood_of_any_class_over_a_socket_starves_no_other(
    make: Make, address: Address, asking: Callable[[], Asking], until: Until, flooding: str
) -> None:
    """In each round the flood sends fifty, the others one each, and four are served."""
    classes, bound, rounds, served_a_round = ("lookup", "upload", "repair"), 20, 60, 4
    queue: FairQueue[str] = FairQueue(dict.fromkeys(classes, (1, bound)))
    served, refused = Counter[str](), Counter[str]()
    longest = 0

    def take_in(body: bytes) -> bytes:
        name = body.decode().split()[0]
        accepted = queue.offer(name, body.decode())
        refused[name] += not accepted
        return b"queued" if accepted else b"busy"

    broker = Asked(make(zmq.ROUTER), address(), take_in)
    clients = {name: asking() for name in classes}
    asked = 0
    for at in range(rounds):
        for name, client in clients.items():
            for _ in range(50 if name == flooding else 1):
                asked += 1
                client.ask(broker.endpoint, f"{name} {at}".encode(), asked)
        # All that was sent in this round is in before any of it is served.
        until(
            lambda: not any(len(client.requester) for client in clients.values()),
            broker.drain,
            *(client.drain for client in clients.values()),
        )
        for item in queue.take(served_a_round):
            name, since = item.split()
            served[name] += 1
            if name != flooding:
                longest = max(longest, at - int(since))
        queue.check()
    others = [name for name in classes if name != flooding]
    assert [refused[name] for name in others] == [0, 0]
    assert [served[name] for name in others] == [rounds, rounds]
    assert longest == 0, "served in the round in which they came"
    assert served[flooding] == rounds * (served_a_round - len(others))
    assert refused[flooding] == rounds * 50 - served[flooding] - queue.cost(flooding)
    assert queue.cost(flooding) <= bound


# Owners of keys


def test_clients_that_know_the_same_groups_find_what_another_one_stored(
    make: Make, address: Address, asking: Callable[[], Asking], until: Until
) -> None:
    kept: dict[str, set[bytes]] = {name: set() for name in ("red", "green", "blue")}

    def group(name: str) -> Answer:
        def answer(body: bytes) -> bytes:
            what, key = body.split()
            if what == b"keep":
                kept[name].add(key)
            return b"yes" if key in kept[name] else b"no"

        return answer

    services = {name: Asked(make(zmq.ROUTER), address(), group(name)) for name in kept}
    drains = [service.drain for service in services.values()]
    writer, reader = asking(), asking()
    keys = [b"key-%d" % number for number in range(60)]
    writes = Rendezvous({"red": 1, "green": 1, "blue": 1})
    for key in keys:
        for owner in writes.owners(key, 2):
            writer.ask(services[owner].endpoint, b"keep " + key, (key, owner))
    until(lambda: len(writer.replies) == 2 * len(keys), *drains, writer.drain)

    reads = Rendezvous({"blue": 1, "red": 1, "green": 1})
    reads.remove("green")  # it is down
    for key in keys:
        reader.ask(services[reads.owner(key)].endpoint, b"have " + key, key)
    until(lambda: len(reader.replies) == len(keys), *drains, reader.drain)
    assert set(reader.replies.values()) == {b"yes"}
