"""Requests to balancer and servers from an asyncio loop.

What lives here: the bridge between the request/reply pattern's sockets and the
loop that runs an HTTP process. What must not: what is asked, and HTTP. The loop's
thread owns the sockets. No receive is ever wrapped in a cancellation: replies are
taken off the sockets when they are readable, and whoever no longer waits for one
is passed over.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

import zmq

from dws import messages
from dws.errors import DwsError, Unreachable, from_code
from dws.limits import FRAME_MAX_BYTES
from dws.messages import Error, encode
from patterns.errors import LocalError
from patterns.request_reply import Requester
from patterns.zeromq.calls import Calls
from patterns.zeromq.sockets import is_readable

#: Called once: with the reply, or with what became of the request instead.
Answered = Callable[[Any], None]

_ROUND_ANSWERS: Final = 256
#: Deadlines are looked at this often while requests are pending; a deadline is late by no more.
_EXPIRE_EVERY_S: Final = 0.05


class LoopCalls:
    """Strict request/reply for one event loop. `context` is made and terminated here if none is given."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
        *,
        pending_max: int = 65_536,
    ) -> None:
        self._loop = loop
        self._owns_context = context is None
        self._context = context or zmq.Context()
        requester: Requester[tuple[Answered, str, float]] = Requester(
            random.getrandbits(63), pending_max=pending_max, learn_realm=True
        )
        self._calls = Calls(self._context, requester, self._socket_changed, frame_max_bytes=FRAME_MAX_BYTES)
        self._scheduled: set[zmq.Socket[bytes]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def call(self, endpoint: str, message: Any, timeout_s: float, answered: Answered) -> None:
        """Send `message`; `answered` gets the reply message, or a DwsError: the one that an Error reply
        tells, or Unreachable after `timeout_s`. Never called before this returns.

        Raises Unreachable if the endpoint is none, or too many requests are pending already.
        """
        try:
            tag = (answered, endpoint, timeout_s)
            self._calls.call(endpoint, encode(message), tag, time.monotonic() + timeout_s)
            socket = self._calls.link(endpoint)
        except zmq.ZMQError as error:
            raise Unreachable(f"{endpoint!r} cannot be connected to: {error}") from None
        except LocalError:
            raise Unreachable(f"{endpoint} has too many requests to answer already") from None
        # The descriptor tells of a new event once; a send may have consumed the news of a reply.
        if is_readable(socket):
            self._schedule(socket)
        if self._timer is None:
            self._timer = self._loop.call_later(_EXPIRE_EVERY_S, self._expire)

    def ask(self, endpoint: str, message: Any, timeout_s: float) -> "asyncio.Future[Any]":
        """The reply, to be awaited; raises what `call` would hand over."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def answered(answer: Any) -> None:
            if future.done():
                return
            if isinstance(answer, DwsError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self.call(endpoint, message, timeout_s, answered)
        return future

    def drop(self, endpoint: str) -> None:
        """Close the connection to an endpoint that is gone."""
        self._calls.drop(endpoint)

    def close(self) -> None:
        """Close all sockets; what is still pending is never answered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._calls.close()
        if self._owns_context:
            self._context.term()

    # -- the loop's callbacks ------------------------------------------------------------------

    def _socket_changed(self, socket: "zmq.Socket[bytes]", added: bool) -> None:
        descriptor = int(socket.getsockopt(zmq.FD))
        if added:
            self._loop.add_reader(descriptor, self._readable, socket)
        else:
            self._loop.remove_reader(descriptor)
            self._scheduled.discard(socket)

    def _schedule(self, socket: "zmq.Socket[bytes]") -> None:
        if socket not in self._scheduled:
            self._scheduled.add(socket)
            self._loop.call_soon(self._again, socket)

    def _again(self, socket: "zmq.Socket[bytes]") -> None:
        if socket in self._scheduled:
            self._scheduled.discard(socket)
            self._readable(socket)

    def _readable(self, socket: "zmq.Socket[bytes]") -> None:
        calls = self._calls
        for _ in range(_ROUND_ANSWERS):
            if socket.closed:
                return
            received = calls.receive(socket)
            if received is None:
                break
            (answered, endpoint, _), body, _ = received
            answered(_decoded(endpoint, body))
        if not socket.closed and is_readable(socket):
            self._schedule(socket)

    def _expire(self) -> None:
        requester = self._calls.requester
        self._timer = None
        for _, (answered, endpoint, timeout_s) in requester.expire(time.monotonic()):
            answered(Unreachable(f"no answer from {endpoint} in {timeout_s:g} s"))
        if len(requester) and self._timer is None:
            self._timer = self._loop.call_later(_EXPIRE_EVERY_S, self._expire)


def _decoded(endpoint: str, body: memoryview) -> Any:
    try:
        message = messages.decode_reply(body)
    except messages.MalformedMessage as error:
        return Unreachable(f"{endpoint} gave no answer that can be read: {error}")
    if type(message) is Error:
        return from_code(message.code, message.text)
    return message
