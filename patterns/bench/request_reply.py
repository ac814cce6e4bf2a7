"""Request/reply beside a bare ROUTER–DEALER echo with the same frames, one process a side.

Bare: the least that pyzmq needs to receive and send these frames, no loop, no
table, no deadline. Pattern: `Calls` and `Service` in their reactors.
"""

import time
from functools import partial
from typing import Final

import zmq

from patterns.bench.measure import beside
from patterns.demos.processes import FRAME_MAX_BYTES, QUANTUM, Child, Parent, play
from patterns.request_reply import Replier, Requester
from patterns.zeromq.calls import Calls
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import make_socket

BODY: Final = bytes(100)
TIMEOUT_S: Final = 10.0
#: Requests on the way → requests measured.
WINDOWS: Final = {1: 1_500, 16: 8_000, 100: 10_000}
MUST_REACH: Final = 0.6


def bare_server(child: Child, endpoint: str) -> None:
    socket = child.bound(zmq.ROUTER, endpoint)
    receive, send = socket.recv_multipart, socket.send_multipart
    socket.setsockopt(zmq.RCVTIMEO, int(3 * TIMEOUT_S * 1000))
    while True:
        send(receive())


def pattern_server(child: Child, endpoint: str) -> None:
    def answer(peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        service.reply(peer, frame, bytes(body))

    service = Service(child.bound(zmq.ROUTER, endpoint), Replier[bytes](), answer, lambda *_refused: None)
    child.serve(service.socket, service.drain)


def bare_client(parent: Parent, window: int, count: int) -> float:
    """Requests a second."""
    socket = make_socket(parent.context, zmq.DEALER, frame_max_bytes=FRAME_MAX_BYTES)
    socket.connect(parent.endpoint("bare"))
    socket.setsockopt(zmq.RCVTIMEO, int(TIMEOUT_S * 1000))
    frame = Requester[None](1).request(BODY, None, 0.0)[1]
    socket.send(frame)
    socket.recv()
    began = time.perf_counter()
    for _ in range(window):
        socket.send(frame)
    for _ in range(count - window):
        socket.recv()
        socket.send(frame)
    for _ in range(window):
        socket.recv()
    elapsed_s = time.perf_counter() - began
    socket.close(0)
    return count / elapsed_s


class Client:
    """Keeps `window` requests on the way until `count` were answered."""

    def __init__(self, parent: Parent, endpoint: str) -> None:
        self.replied = 0
        self._asked = self._count = 0
        self._endpoint = endpoint
        self._requester: Requester[None] = Requester(1)
        self._calls = Calls(parent.context, self._requester, self._on_socket, frame_max_bytes=FRAME_MAX_BYTES)
        self._loop = Reactor(self._requester.wake_at, self._expire)

    def run(self, window: int, count: int) -> None:
        self._count = self._asked + count
        for _ in range(window):
            self._ask()
        while self.replied < self._count:
            self._loop.run_once()

    def close(self) -> None:
        self._calls.close()

    def _ask(self) -> None:
        self._asked += 1
        self._calls.call(self._endpoint, BODY, None, time.monotonic() + TIMEOUT_S)

    def _on_socket(self, socket: "zmq.Socket[bytes]", added: bool) -> None:
        if added:
            self._loop.add(socket, lambda limit: self._drain(socket, limit), QUANTUM)
        else:
            self._loop.remove(socket)

    def _drain(self, socket: "zmq.Socket[bytes]", limit: int) -> None:
        # No more than are awaited: to find out that nothing else has come costs more than a poll.
        for _ in range(max(1, min(limit, len(self._requester)))):
            if self._calls.receive(socket) is None:
                return
            self.replied += 1
            if self._asked < self._count:
                self._ask()

    def _expire(self, now: float) -> None:
        if self._requester.expire(now):
            raise TimeoutError(f"no reply in {TIMEOUT_S:g} s")


def pattern_client(parent: Parent, window: int, count: int) -> float:
    """Requests a second."""
    client = Client(parent, parent.endpoint("pattern"))
    client.run(window=1, count=1)
    began = time.perf_counter()
    client.run(window, count)
    elapsed_s = time.perf_counter() - began
    client.close()
    return count / elapsed_s


def run() -> None:
    print("request_reply: frames of 128 bytes there and back, by requests on the way")
    with Parent(__name__, "client", quiet=True) as parent:
        parent.start("bare_server", "bare", parent.endpoint("bare"))
        parent.start("pattern_server", "pattern", parent.endpoint("pattern"))
        for window, count in WINDOWS.items():
            beside(
                f"{window:3} on the way",
                partial(bare_client, parent, window, count),
                partial(pattern_client, parent, window, count),
                "requests/s",
                at_least=MUST_REACH,
            )


if __name__ == "__main__":
    play({"bare_server": bare_server, "pattern_server": pattern_server})
