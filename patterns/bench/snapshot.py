"""A replica's updates beside the same frames over a bare DEALER and ROUTER, batch by batch.

Each batch of updates is answered before the next one, as the feed does it. Bare:
no numbers, no table of what the follower has.
"""

import struct
import time
from typing import Final

import zmq

from patterns.bench.measure import beside
from patterns.demos.processes import FRAME_MAX_BYTES, QUANTUM, Child, Parent, play
from patterns.request_reply import Replier, Requester
from patterns.snapshot import APPLY, Feed, Follower
from patterns.zeromq.calls import Calls
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import make_socket

NUMBER: Final = struct.Struct(">Q")
UPDATE: Final = struct.Struct(">Q32s")
UPDATES: Final = 100_000
BATCH: Final = 100
TIMEOUT_S: Final = 10.0
VALUE: Final = bytes(32)


def bare_follower(child: Child, endpoint: str) -> None:
    """Keeps what it is sent, and answers with the last number."""
    socket = child.bound(zmq.ROUTER, endpoint)
    table: dict[int, bytes] = {}

    def drain(_limit: int) -> None:
        peer, body = socket.recv_multipart()
        number = 0
        for number, value in UPDATE.iter_unpack(body):
            table[number % 1000] = value
        socket.send_multipart([peer, NUMBER.pack(number)])

    child.serve(socket, drain)


def follower(child: Child, endpoint: str) -> None:
    following = Follower(behind_s=1)
    table: dict[int, bytes] = {}

    def answer(peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        for number, value in UPDATE.iter_unpack(body):
            if number == 0:
                following.begin()
                following.compare(0, [])
            elif following.update(number) == APPLY:
                table[number % 1000] = value
        service.reply(peer, frame, NUMBER.pack(following.applied))

    service = Service(child.bound(zmq.ROUTER, endpoint), Replier[bytes](), answer, lambda *_refused: None)
    child.serve(service.socket, service.drain)


def batch(first: int) -> bytes:
    return b"".join(UPDATE.pack(number, VALUE) for number in range(first, first + BATCH))


def bare(parent: Parent) -> float:
    """Updates a second."""
    socket = make_socket(parent.context, zmq.DEALER, frame_max_bytes=FRAME_MAX_BYTES)
    socket.setsockopt(zmq.RCVTIMEO, int(TIMEOUT_S * 1000))
    socket.connect(parent.endpoint("bare"))
    socket.send(UPDATE.pack(0, VALUE))
    socket.recv()
    began = time.perf_counter()
    for first in range(1, UPDATES, BATCH):
        socket.send(batch(first))
        socket.recv()
    elapsed_s = time.perf_counter() - began
    socket.close(0)
    return UPDATES / elapsed_s


class Publisher:
    def __init__(self, parent: Parent) -> None:
        self._feed = Feed(pause_s=1)
        self._endpoint = parent.endpoint("follower")
        self._requester: Requester[None] = Requester(1)
        self._calls = Calls(parent.context, self._requester, self._on_socket, frame_max_bytes=FRAME_MAX_BYTES)
        self._loop = Reactor(self._requester.wake_at, self._round)

    def run(self) -> float:
        """Updates a second."""
        self._calls.call(self._endpoint, UPDATE.pack(0, VALUE), None, time.monotonic() + TIMEOUT_S)
        while self._feed.applied is None:
            self._loop.run_once()
        began = time.perf_counter()
        self._round(time.monotonic())
        while self._feed.applied < UPDATES:
            self._loop.run_once()
        elapsed_s = time.perf_counter() - began
        self._calls.close()
        return UPDATES / elapsed_s

    def _round(self, now: float) -> None:
        if self._requester.expire(now):
            raise TimeoutError(f"no answer in {TIMEOUT_S:g} s")
        if self._feed.applied == self._feed.number < UPDATES:
            self._feed.number += BATCH
        after = self._feed.poll(now)
        if after is not None:
            self._calls.call(self._endpoint, batch(after + 1), None, now + TIMEOUT_S)

    def _on_socket(self, socket: "zmq.Socket[bytes]", added: bool) -> None:
        if added:
            self._loop.add(socket, lambda _limit: self._drain(socket), QUANTUM)
        else:
            self._loop.remove(socket)

    def _drain(self, socket: "zmq.Socket[bytes]") -> None:
        received = self._calls.receive(socket)
        if received is not None:
            [applied] = NUMBER.unpack(received[1])
            if self._feed.applied is None:
                self._feed.follow(applied)
            else:
                self._feed.answered(applied, time.monotonic())


def run() -> None:
    print(f"snapshot: updates of {UPDATE.size} bytes in batches of {BATCH}, each answered before the next")
    with Parent(__name__, "publisher", quiet=True) as parent:
        parent.start("bare_follower", "bare", parent.endpoint("bare"))
        parent.start("follower", "follower", parent.endpoint("follower"))
        beside("updates", lambda: bare(parent), lambda: Publisher(parent).run(), "updates/s")


if __name__ == "__main__":
    play({"bare_follower": bare_follower, "follower": follower})
