"""The ROUTER side of request/reply: receives requests, sends each its reply.

What lives here: taking messages off a ROUTER and putting replies on it. What
must not: what they mean. Hostile multiparts are counted and dropped; a reply to
a peer that left is counted; a send never blocks.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

import zmq

from patterns.errors import RemoteError
from patterns.request_reply import Replier
from patterns.zeromq.readiness import nobody_to_tell
from patterns.zeromq.sockets import COPIED_MAX_BYTES, is_readable

#: Made once: to put two flags together costs as much as to send a small frame.
_MORE: Final = zmq.SNDMORE | zmq.NOBLOCK

#: answer(peer, request frame, body, data frame or None)
Answer = Callable[[bytes, bytes, memoryview, "zmq.Frame | None"], None]
#: refuse(peer, request frame, reason): the frame is no request of this version or realm
Refuse = Callable[[bytes, bytes, str], None]


class Service:
    """used: told of the socket's use (Readiness.used)."""

    def __init__(
        self, socket: "zmq.Socket[bytes]", replier: Replier[bytes], answer: Answer, refuse: Refuse,
        used: "Callable[[zmq.Socket[bytes]], None]" = nobody_to_tell,
    ) -> None:  # fmt: skip
        self.socket = socket
        self.replier = replier
        self.counters: Counter[str] = Counter()
        self._answer = answer
        self._refuse = refuse
        self._used = used

    def drain(self, limit: int) -> int:
        """Handle at most `limit` waiting messages; how many there were. Fewer: none was left at the end."""
        socket, replier, answer = self.socket, self.replier, self._answer
        receive = socket.recv
        for handled in range(limit):
            # After the first: to ask costs a third of a recv that finds nothing, and a lone client sends one.
            if handled == 1 and not is_readable(socket):
                return handled
            try:
                peer = receive(zmq.NOBLOCK)
            except zmq.Again:
                return handled
            first = receive(copy=False)
            frame, data = first.bytes, None
            if first.more:
                data = receive(copy=False)
                if data.more:
                    self._skip_rest()
                    continue
            try:
                body = replier.receive(frame)
            except RemoteError:
                self._refuse(peer, frame, "version")
                continue
            if not replier.realm_matches(frame):
                self._refuse(peer, frame, "realm")
                continue
            answer(peer, frame, body, data)
        return limit

    def reply(
        self, peer: bytes, request: bytes, body: bytes, data: "bytes | memoryview | None" = None
    ) -> None:
        """Answer a request at once."""
        self.send(peer, self.replier.reply(request, body), data)

    def send(self, peer: bytes, frame: bytes, data: "bytes | memoryview | None" = None) -> None:
        """Send a reply frame. `data` must not change afterwards: large data is not copied."""
        self._used(self.socket)
        try:
            self.socket.send(peer, _MORE)
            if data is None:
                self.socket.send(frame, zmq.NOBLOCK)
            else:
                self.socket.send(frame, _MORE)
                self.socket.send(data, zmq.NOBLOCK, copy=len(data) <= COPIED_MAX_BYTES)
        except zmq.Again:
            # The peer does not read its replies; its queue is full.
            self.counters["reply-dropped-full"] += 1
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.counters["reply-dropped-gone"] += 1

    def _skip_rest(self) -> None:
        while self.socket.getsockopt(zmq.RCVMORE):
            self.socket.recv(copy=False)
        self.counters["too-many-frames"] += 1
