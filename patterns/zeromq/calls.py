"""The DEALER side of request/reply: one DEALER for each endpoint, one table of calls.

What lives here: connecting, sending a call, taking replies off the sockets.
What must not: what they mean, and when to try again. A DEALER is made for each
endpoint because one DEALER with several connections would deal its requests
round.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import zmq

from patterns.errors import RemoteError
from patterns.request_reply import Requester
from patterns.zeromq.readiness import nobody_to_tell
from patterns.zeromq.sockets import COPIED_MAX_BYTES, make_socket

#: Replies that nobody awaits, taken off a socket in a row: a flood of them must not hold the loop.
UNAWAITED_MAX: Final = 64

#: Made once: to put two flags together costs as much as to send a small frame.
_MORE: Final = zmq.SNDMORE | zmq.NOBLOCK

Tag = TypeVar("Tag")


class Calls(Generic[Tag]):
    """on_socket(socket, added): told when a DEALER comes and goes, for whoever polls.

    links_max: connections kept; over it the one least recently used is closed,
        and what it owes expires.
    used: told of each socket that a call was sent on (Readiness.used); whoever receives knows himself.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        requester: Requester[Tag],
        on_socket: Callable[["zmq.Socket[bytes]", bool], None],
        *,
        frame_max_bytes: int,
        links_max: int = 1024,
        used: "Callable[[zmq.Socket[bytes]], None]" = nobody_to_tell,
    ) -> None:
        self.requester = requester
        self.counters: Counter[str] = Counter()
        self._context = context
        self._on_socket = on_socket
        self._frame_max_bytes = frame_max_bytes
        self._links_max = links_max
        self._used = used
        self._links: dict[str, zmq.Socket[bytes]] = {}

    def call(
        self, endpoint: str, body: bytes, tag: Tag, deadline: float, data: "bytes | memoryview | None" = None
    ) -> int:
        """Send a request; its reply or its expiry comes back with `tag`. Never blocks: on a full
        queue the request simply expires."""
        socket = self.link(endpoint)
        request_id, frame = self.requester.request(body, tag, deadline)
        self._used(socket)
        try:
            if data is None:
                socket.send(frame, zmq.NOBLOCK)
            else:
                socket.send(frame, _MORE)
                socket.send(data, zmq.NOBLOCK, copy=len(data) <= COPIED_MAX_BYTES)
        except zmq.Again:
            self.counters["not-sent-full"] += 1
        return request_id

    def link(self, endpoint: str) -> "zmq.Socket[bytes]":
        """The DEALER to an endpoint, connected on first use; ZMQError if it is no endpoint."""
        socket = self._links.pop(endpoint, None)
        if socket is None:
            if len(self._links) >= self._links_max:
                self.drop(next(iter(self._links)))
            socket = make_socket(self._context, zmq.DEALER, frame_max_bytes=self._frame_max_bytes)
            try:
                socket.connect(endpoint)
            except zmq.ZMQError:
                socket.close(0)
                raise
            self._on_socket(socket, True)
        self._links[endpoint] = socket
        return socket

    def drop(self, endpoint: str) -> None:
        """Close the connection; calls on it expire."""
        socket = self._links.pop(endpoint, None)
        if socket is not None:
            self._on_socket(socket, False)
            socket.close(0)

    def receive(self, socket: "zmq.Socket[bytes]") -> "tuple[Tag, memoryview, zmq.Frame | None] | None":
        """The next awaited reply on this socket; None when there is none left, or only after many
        that nobody awaits: then the socket stays readable."""
        for _ in range(UNAWAITED_MAX):
            try:
                first = last = socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            data = None
            if first.more:
                last = data = socket.recv(copy=False)
                while last.more:
                    last = socket.recv(copy=False)
                    self.counters["too-many-frames"] += 1
            try:
                received = self.requester.receive(first.bytes)
            except RemoteError:
                self.counters["malformed"] += 1
                continue
            if received is not None:
                return received[1], received[2], data
        return None

    def close(self) -> None:
        for endpoint in list(self._links):
            self.drop(endpoint)
