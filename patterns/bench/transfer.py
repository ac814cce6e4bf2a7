"""A transfer under credit beside an uncontrolled flood of the same chunks, one process a side.

Flood: the source sends all chunks as fast as its socket takes them, queues
unbounded. Pattern: each chunk is asked for, under a credit. Both send chunks
without copying them, and both readers take them as frames.
"""

import time
from typing import Final

import zmq

from patterns.bench.measure import beside
from patterns.demos.processes import FRAME_MAX_BYTES, Child, Parent, play
from patterns.request_reply import Replier, Requester
from patterns.transfer import Transfer
from patterns.zeromq.calls import Calls
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import make_socket

CHUNK_BYTES: Final = 1 << 20
CREDIT_BYTES: Final = 16 << 20
SIZE_BYTES: Final = 256 << 20
TIMEOUT_S: Final = 10.0
MUST_REACH: Final = 0.8


def flood_source(child: Child, endpoint: str) -> None:
    """Answers a request with as many chunks as it asks for, at once."""
    socket = child.bound(zmq.ROUTER, endpoint)
    socket.setsockopt(zmq.SNDHWM, 0)
    held = bytes(CHUNK_BYTES)

    def flood(_limit: int) -> None:
        peer, chunks = socket.recv_multipart()
        for _ in range(int(chunks)):
            socket.send(peer, zmq.SNDMORE)
            socket.send(held, copy=False)

    child.serve(socket, flood)


def source(child: Child, endpoint: str) -> None:
    held = memoryview(bytes(CHUNK_BYTES))

    def answer(peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        service.reply(peer, frame, b"", held[: int(bytes(body))])

    service = Service(child.bound(zmq.ROUTER, endpoint), Replier[bytes](), answer, lambda *_refused: None)
    child.serve(service.socket, service.drain)


def flood(parent: Parent) -> float:
    """MB a second."""
    socket = make_socket(parent.context, zmq.DEALER, frame_max_bytes=FRAME_MAX_BYTES, hwm=0)
    socket.setsockopt(zmq.RCVTIMEO, int(TIMEOUT_S * 1000))
    socket.connect(parent.endpoint("flood"))
    socket.send(b"1")
    socket.recv()
    began = time.perf_counter()
    socket.send(b"%d" % (SIZE_BYTES // CHUNK_BYTES))
    received = 0
    while received < SIZE_BYTES:
        received += len(socket.recv(copy=False).buffer)
    elapsed_s = time.perf_counter() - began
    socket.close(0)
    return SIZE_BYTES / elapsed_s / 1e6


class Fetch:
    def __init__(self, parent: Parent) -> None:
        self._transfer = Transfer(0, CHUNK_BYTES, CREDIT_BYTES)
        self._endpoint = parent.endpoint("source")
        self._requester: Requester[int] = Requester(1)
        self._calls = Calls(parent.context, self._requester, self._on_socket, frame_max_bytes=FRAME_MAX_BYTES)
        self._loop = Reactor(self._requester.wake_at, self._expire)

    def run(self, size_bytes: int) -> None:
        self._transfer = Transfer(size_bytes, CHUNK_BYTES, CREDIT_BYTES)
        self._ask()
        while not self._transfer.done:
            self._loop.run_once()

    def close(self) -> None:
        self._calls.close()

    def _ask(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        for offset, length in self._transfer.ask():
            self._calls.call(self._endpoint, b"%d" % length, offset, deadline)

    def _on_socket(self, socket: "zmq.Socket[bytes]", added: bool) -> None:
        if added:
            self._loop.add(socket, lambda limit: self._drain(socket, limit), 16)
        else:
            self._loop.remove(socket)

    def _drain(self, socket: "zmq.Socket[bytes]", limit: int) -> None:
        for _ in range(limit):
            received = self._calls.receive(socket)
            if received is None:
                return
            self._transfer.arrive(received[0])
            # Several at once, when half the credit is free: to wake the source for each chunk costs more.
            if self._transfer.outstanding <= CREDIT_BYTES // CHUNK_BYTES // 2:
                self._ask()

    def _expire(self, now: float) -> None:
        if self._requester.expire(now):
            raise TimeoutError(f"no chunk in {TIMEOUT_S:g} s")


def under_credit(parent: Parent) -> float:
    """MB a second."""
    fetch = Fetch(parent)
    fetch.run(CHUNK_BYTES)
    began = time.perf_counter()
    fetch.run(SIZE_BYTES)
    elapsed_s = time.perf_counter() - began
    fetch.close()
    return SIZE_BYTES / elapsed_s / 1e6


def run() -> None:
    print(
        f"transfer: {SIZE_BYTES >> 20} MiB in chunks of {CHUNK_BYTES >> 20} MiB; "
        f"a flood, and {CREDIT_BYTES >> 20} MiB of credit"
    )
    with Parent(__name__, "reader", quiet=True) as parent:
        parent.start("flood_source", "flood", parent.endpoint("flood"))
        parent.start("source", "source", parent.endpoint("source"))
        beside(
            "1 MiB chunks", lambda: flood(parent), lambda: under_credit(parent), "MB/s", at_least=MUST_REACH
        )


if __name__ == "__main__":
    play({"flood_source": flood_source, "source": source})
