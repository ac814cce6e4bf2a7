"""The asking side of request/reply as the demos use it: calls, their loop, and what came of them.

What lives here: plumbing between `Calls`, which sends and receives, and a
`Reactor`, which polls. What must not: what requests mean, and when to try again.
"""

import time
from collections.abc import Callable
from secrets import randbits
from typing import Any, Final

import zmq

from patterns.demos.processes import FRAME_MAX_BYTES, QUANTUM
from patterns.request_reply import Requester
from patterns.zeromq.calls import Calls
from patterns.zeromq.reactor import Reactor

#: on_reply(tag, body, data frame or b"")
OnReply = Callable[[Any, bytes, bytes], None]
#: on_expired(tag)
OnExpired = Callable[[Any], None]

#: Random, so that a late reply is for none of ours; few, since ids are narrated.
_ID_BITS: Final = 16


class Asker:
    """Asks any number of services through the given loop; call `expire` in each of its rounds."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", on_reply: OnReply, on_expired: OnExpired
    ) -> None:
        self.requester: Requester[Any] = Requester(first_id=randbits(_ID_BITS))
        self._calls: Calls[Any] = Calls(
            context, self.requester, self._on_socket, frame_max_bytes=FRAME_MAX_BYTES
        )
        self._on_reply = on_reply
        self._on_expired = on_expired
        self._loop: Reactor | None = None

    def join(self, loop: Reactor) -> None:
        """The loop that polls the sockets, before the first `ask`."""
        self._loop = loop

    def ask(self, endpoint: str, body: bytes, tag: Any, within_s: float) -> int:
        """The request's id. Its reply or its expiry is told with `tag`."""
        return self._calls.call(endpoint, body, tag, time.monotonic() + within_s)

    def expire(self, now: float) -> None:
        for _, tag in self.requester.expire(now):
            self._on_expired(tag)

    def close(self) -> None:
        self._calls.close()

    def _on_socket(self, socket: "zmq.Socket[bytes]", added: bool) -> None:
        assert self._loop is not None, "join a loop first"
        if added:
            self._loop.add(socket, lambda limit: self._drain(socket, limit), QUANTUM)
        else:
            self._loop.remove(socket)

    def _drain(self, socket: "zmq.Socket[bytes]", limit: int) -> None:
        for _ in range(limit):
            received = self._calls.receive(socket)
            if received is None:
                return
            tag, body, data = received
            self._on_reply(tag, bytes(body), b"" if data is None else data.bytes)
