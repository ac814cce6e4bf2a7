"""The patterns over real sockets: heartbeats, jobs, a transfer; and how sockets are made and watched.

(Request/reply is in test_zeromq_calls.py, the loop in test_reactor.py, the thread in
test_writer.py.) One thread drives all sides. Time is made up; only messages are waited for.
"""

import struct
from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random

import pytest
import zmq

from patterns.heartbeat import ALIVE, DEAD, SUSPECT, Beater, Watcher, parse
from patterns.jobs import Dispatcher, Gate
from patterns.request_reply import Replier, Requester
from patterns.transfer import Transfer
from patterns.zeromq.calls import Calls
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import Monitor

Socket = zmq.Socket[bytes]
Make = Callable[..., Socket]
Address = Callable[[], str]
Until = Callable[..., None]

REALM, PEER = b"R" * 16, b"P" * 16


def bound(socket: Socket, address: str) -> str:
    """Binds the socket; the endpoint to connect to."""
    socket.bind(address)
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


# Heartbeats over PUB/SUB


class Listener:
    """A watcher behind a SUB socket that takes in the beats of one realm only."""

    def __init__(self, make: Make) -> None:
        self.socket = make(zmq.SUB)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"\xd8\x01\x00\x00" + REALM)
        self.watcher = Watcher(suspect_s=3, down_dead_s=6, dead_s=20, asleep_s=4)
        self.heard = 0

    def drain(self, now: float) -> list[tuple[bytes, str]]:
        """All queued beats, then the silence: the state changes."""
        changes = []
        while self.socket.poll(0):
            _, peer, incarnation, sequence, _ = parse(self.socket.recv())
            self.heard += 1
            changes += self.watcher.beat(peer, incarnation, sequence, now)
        return changes + self.watcher.poll(now)


def test_a_subscriber_that_comes_late_accuses_nobody(make: Make, address: Address, until: Until) -> None:
    publisher, beater, listener = make(zmq.PUB), Beater(REALM, PEER, 1), Listener(make)
    endpoint = bound(publisher, address())
    for _ in range(10):
        publisher.send(beater.beat(b""))
    listener.watcher.join(PEER, 1, 0)
    listener.socket.connect(endpoint)
    until(lambda: listener.heard, lambda: publisher.send(beater.beat(b"")), lambda: listener.drain(1))
    assert listener.watcher.state(PEER) == ALIVE
    assert listener.watcher.heard_at(PEER) == 1
    assert listener.watcher.counters["lost-beats"] == 0


def test_beats_of_another_realm_do_not_even_arrive(make: Make, address: Address, until: Until) -> None:
    publisher, ours, listener = make(zmq.PUB), Beater(REALM, PEER, 1), Listener(make)
    theirs = Beater(b"S" * 16, b"Q" * 16, 1)
    listener.socket.connect(bound(publisher, address()))
    listener.watcher.join(PEER, 1, 0)
    until(
        lambda: listener.heard > 5,
        lambda: publisher.send(theirs.beat(b"")),
        lambda: publisher.send(ours.beat(b"")),
        lambda: listener.drain(1),
    )
    assert listener.watcher.counters["stranger"] == 0


def test_a_restarted_peer_is_alive_in_its_new_life_only(make: Make, address: Address, until: Until) -> None:
    first, old, listener = make(zmq.PUB), Beater(REALM, PEER, 1), Listener(make)
    listener.socket.connect(bound(first, address()))
    listener.watcher.join(PEER, 1, 0)
    until(lambda: listener.heard, lambda: first.send(old.beat(b"")), lambda: listener.drain(0))
    late = old.beat(b"")
    first.close(0)
    seconds = count(1)
    changes: list[tuple[bytes, str]] = []
    until(lambda: (PEER, DEAD) in changes, lambda: changes.extend(listener.drain(next(seconds))))
    assert changes[-2:] == [(PEER, SUSPECT), (PEER, DEAD)]
    now = next(seconds)

    second, new, counters = make(zmq.PUB), Beater(REALM, PEER, 2), listener.watcher.counters
    listener.socket.connect(bound(second, address()))
    unknown_life = counters["stale-incarnation"]
    until(
        lambda: counters["stale-incarnation"] > unknown_life,
        lambda: second.send(new.beat(b"")),
        lambda: listener.drain(now),
    )
    assert listener.watcher.state(PEER) == DEAD, "it has not joined yet"
    assert listener.watcher.join(PEER, 2, now) == [(PEER, ALIVE)]
    life_before = counters["stale-incarnation"]
    second.send(late)
    until(
        lambda: counters["stale-incarnation"] > life_before and listener.watcher.heard_at(PEER) == now + 1,
        lambda: second.send(new.beat(b"")),
        lambda: listener.drain(now + 1),
    )
    assert listener.watcher.state(PEER) == ALIVE


# Jobs over PUSH/PULL


class Worker:
    """One life of a worker: a PULL socket and a gate. It reports what it did by hand-over."""

    def __init__(self, make: Make, address: str, incarnation: int) -> None:
        self.socket = make(zmq.PULL)
        self.endpoint = bound(self.socket, address)
        self.gate = Gate(REALM, incarnation)
        self.gate.welcome(REALM, epoch=1)
        self.incarnation = incarnation
        self.done: list[bytes] = []

    def drain(self) -> None:
        while self.socket.poll(0):
            body = self.gate.accept(self.socket.recv())
            if body is not None:
                self.done.append(bytes(body))


def test_jobs_lost_with_a_worker_are_done_by_its_next_life(
    make: Make, address: Address, until: Until
) -> None:
    dispatcher: Dispatcher[bytes] = Dispatcher(REALM, epoch=1, window=3, backlog_max=10, reissue_s=5)
    jobs = [b"job %d" % number for number in range(5)]
    for job in jobs:
        dispatcher.add(job, job)

    worker = Worker(make, address(), incarnation=1)
    push = make(zmq.PUSH)
    push.connect(worker.endpoint)
    dispatcher.worker(worker.incarnation)
    frames = dispatcher.poll(0)
    for frame in frames:
        push.send(frame, zmq.NOBLOCK)
    until(lambda: len(worker.done) == 3, worker.drain)
    dispatcher.done(worker.done[0])  # the other two die with it, done but not reported
    for frame in dispatcher.poll(1):
        push.send(frame, zmq.NOBLOCK)  # and this one unread
    worker.socket.close(0)
    push.close(0)
    dispatcher.worker(None)
    assert dispatcher.poll(2) == []

    worker = Worker(make, address(), incarnation=2)
    push = make(zmq.PUSH)
    push.connect(worker.endpoint)
    push.send(frames[0])  # a late one, for the life before
    dispatcher.worker(worker.incarnation)

    def work() -> None:
        for frame in dispatcher.poll(3):
            push.send(frame, zmq.NOBLOCK)
        worker.drain()
        for job in worker.done:
            dispatcher.done(job)
        dispatcher.check()

    until(lambda: not len(dispatcher), work)
    assert worker.done == jobs[1:]
    assert worker.gate.counters == {"not-for-us": 1}


def test_a_job_lost_on_the_way_is_issued_again_when_it_is_overdue(
    make: Make, address: Address, until: Until
) -> None:
    dispatcher: Dispatcher[bytes] = Dispatcher(REALM, epoch=1, window=3, backlog_max=10, reissue_s=5)
    worker = Worker(make, address(), incarnation=1)
    dispatcher.add(b"job", b"job")
    dispatcher.worker(worker.incarnation)
    lost = dispatcher.poll(0)
    push = make(zmq.PUSH)
    push.connect(worker.endpoint)
    assert dispatcher.poll(4) == []
    again = dispatcher.poll(5)
    for frame in again + lost:
        push.send(frame)
    until(lambda: worker.gate.counters["passed"], worker.drain)
    assert worker.done == [b"job"]


# A transfer over DEALER–ROUTER

CHUNK, CREDIT = 64 * 1024, 8 * 64 * 1024
READ = struct.Struct(">QI")


class Source:
    """Serves an object chunk by chunk; after so many it is silent but keeps what it owes."""

    def __init__(self, socket: Socket, address: str, content: bytes, silent_after: int) -> None:
        self.endpoint = bound(socket, address)
        self.service = Service(socket, Replier(REALM), self.read, lambda *_: None)
        self.content = content
        self.left = silent_after
        self.owed: list[tuple[bytes, bytes, memoryview]] = []

    def read(self, peer: bytes, frame: bytes, body: memoryview, _data: zmq.Frame | None) -> None:
        self.owed.append((peer, frame, body))

    def serve(self) -> None:
        self.service.drain(4)
        while self.owed and self.left:
            self.left -= 1
            peer, frame, body = self.owed.pop(0)
            offset, length = READ.unpack(body)
            self.service.reply(peer, frame, b"", memoryview(self.content)[offset : offset + length])


def test_a_transfer_survives_a_source_that_goes_silent(
    context: zmq.Context[Socket],
    make: Make,
    address: Address,
    until: Until,
    seed: int,
    request: pytest.FixtureRequest,
) -> None:
    content = Random(seed).randbytes(3 * 1024 * 1024 + 12_345)
    steady = Source(make(zmq.ROUTER), address(), content, silent_after=1_000)
    fickle = Source(make(zmq.ROUTER), address(), content, silent_after=5)
    sources = [steady, fickle]
    dealers: list[Socket] = []
    requester: Requester[tuple[Source, int]] = Requester(first_id=1, realm=REALM)
    calls = Calls(
        context,
        requester,
        lambda socket, added: (dealers.append if added else dealers.remove)(socket),
        frame_max_bytes=1 << 20,
    )
    request.addfinalizer(calls.close)
    transfer = Transfer(len(content), CHUNK, CREDIT)
    outstanding: Counter[str] = Counter()
    arrived: dict[int, bytes] = {}
    received = bytearray()
    now, expired = 0.0, 0

    def ask() -> None:
        for offset, length in transfer.ask():
            source = min(sources, key=lambda each: outstanding[each.endpoint])
            outstanding[source.endpoint] += 1
            calls.call(source.endpoint, READ.pack(offset, length), (source, offset), deadline=now + 1)

    def receive() -> None:
        for dealer in dealers:
            while (reply := calls.receive(dealer)) is not None:
                (source, offset), _, data = reply
                assert data is not None
                outstanding[source.endpoint] -= 1
                arrived[offset] = data.bytes
                for ready in transfer.arrive(offset):
                    received.extend(arrived.pop(ready))
        transfer.check()
        assert sum(map(len, arrived.values())) + transfer.outstanding * CHUNK <= CREDIT

    def expire() -> None:
        """Once only the silent source owes anything, its deadlines pass."""
        nonlocal now, expired
        if outstanding[steady.endpoint] == 0 and transfer.outstanding:
            now += 1
            for _, (source, offset) in requester.expire(now):
                expired += 1
                outstanding[source.endpoint] -= 1
                transfer.fail(offset)
                sources[:] = [each for each in sources if each is not source]

    until(lambda: transfer.done, ask, steady.serve, fickle.serve, receive, expire)
    assert bytes(received) == content
    assert sources == [steady]
    assert transfer.outstanding == 0

    # What it owes comes after all, and is dropped.
    assert expired > 0
    fickle.left = expired
    until(lambda: requester.counters["unawaited"] == expired, fickle.serve, receive)
    assert bytes(received) == content


# Sockets


def test_a_monitor_tells_when_a_connection_comes_up_and_goes_down(make: Make, until: Until) -> None:
    """Over TCP alone: an inproc connection has no events."""
    push, pull = make(zmq.PUSH), make(zmq.PULL)
    monitor = Monitor(push)
    assert monitor.drain() == []
    endpoint = bound(pull, "tcp://127.0.0.1:*")
    push.connect(endpoint)
    events: list[bool] = []

    def drain() -> None:
        events.extend(monitor.drain())

    until(lambda: events == [True], drain)
    pull.close(0)
    until(lambda: events == [True, False], drain)
    bound(make(zmq.PULL), endpoint)
    until(lambda: events == [True, False, True], drain)
    monitor.close()


def test_a_monitor_can_be_closed_while_its_socket_goes_on(make: Make, until: Until) -> None:
    push, pull = make(zmq.PUSH), make(zmq.PULL)
    monitor = Monitor(push)
    push.connect(bound(pull, "tcp://127.0.0.1:*"))
    until(monitor.drain)
    monitor.close()
    push.send(b"still there")
    assert pull.recv() == b"still there"


@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.DEALER, zmq.PUB, zmq.SUB, zmq.PUSH, zmq.PULL])
def test_every_socket_bounds_its_queues_and_frames_and_forgets_at_close(make: Make, kind: int) -> None:
    socket = make(kind, frame_max_bytes=4321, hwm=17)
    assert socket.getsockopt(zmq.SNDHWM) == socket.getsockopt(zmq.RCVHWM) == 17
    assert socket.getsockopt(zmq.MAXMSGSIZE) == 4321
    assert socket.getsockopt(zmq.LINGER) == 0


def test_a_router_does_not_hide_that_a_peer_is_unknown(make: Make) -> None:
    with pytest.raises(zmq.ZMQError) as raised:
        make(zmq.ROUTER).send_multipart([b"nobody", b""])
    assert raised.value.errno == zmq.EHOSTUNREACH
