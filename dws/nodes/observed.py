"""A client's calls with somebody watching: every request, reply and silence is told as it happens.

What lives here: Calls and Requester that tell an Observer what crosses their sockets,
and when. What must not: what it means (trace.py). A client without an observer uses
the plain ones, so that watching costs nothing when nobody does.
"""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import zmq

from patterns.request_reply import HEADER_BYTES, Requester, request_id_of
from patterns.zeromq.calls import Calls
from patterns.zeromq.readiness import nobody_to_tell

Tag = TypeVar("Tag")


class Observer(Protocol):
    """Called in the client's thread, while the message is in its hands. Times are time.monotonic()'s."""

    def sent(
        self, now: float, request_id: int, endpoint: str, body: bytes, data_bytes: int, patience_s: float,
        *, is_on_the_way: bool,
    ) -> None:  # fmt: skip
        """is_on_the_way: False if the socket's queue was full, so that the request will expire."""

    def received(self, now: float, request_id: int, body: memoryview, data_bytes: int) -> None:
        """A reply that was awaited."""

    def expired(self, now: float, request_id: int) -> None:
        """No reply came by the request's deadline."""

    def late(self, now: float, request_id: int, endpoint: str, body: memoryview) -> None:
        """A reply that nobody awaits."""


class _Awaited(Requester[Tag]):
    """Keeps the ids that Calls does not hand on."""

    def __init__(self, first_id: int, observer: Observer, *, learn_realm: bool) -> None:
        super().__init__(first_id, learn_realm=learn_realm)
        self.last_id = 0
        self.endpoint = ""
        self._observer = observer

    def receive(self, frame: bytes) -> tuple[int, Tag, memoryview] | None:
        received = super().receive(frame)
        if received is not None:
            self.last_id = received[0]
        elif (request_id := request_id_of(frame)) is not None:
            body = memoryview(frame)[HEADER_BYTES:]
            self._observer.late(time.monotonic(), request_id, self.endpoint, body)
        return received

    def expire(self, now: float) -> list[tuple[int, Tag]]:
        expired = super().expire(now)
        for request_id, _ in expired:
            self._observer.expired(now, request_id)
        return expired


class ObservedCalls(Calls[Tag]):
    """As Calls, of which it takes the arguments, but for the requester: that is made here."""

    def __init__(
        self,
        observer: Observer,
        context: "zmq.Context[zmq.Socket[bytes]]",
        first_id: int,
        on_socket: Callable[["zmq.Socket[bytes]", bool], None],
        *,
        frame_max_bytes: int,
        used: "Callable[[zmq.Socket[bytes]], None]" = nobody_to_tell,
    ) -> None:
        self._observer = observer
        self._awaited: _Awaited[Tag] = _Awaited(first_id, observer, learn_realm=True)
        super().__init__(context, self._awaited, on_socket, frame_max_bytes=frame_max_bytes, used=used)

    def call(
        self, endpoint: str, body: bytes, tag: Tag, deadline: float, data: "bytes | memoryview | None" = None
    ) -> int:
        now, not_sent = time.monotonic(), self.counters["not-sent-full"]
        request_id = super().call(endpoint, body, tag, deadline, data)
        is_on_the_way = self.counters["not-sent-full"] == not_sent
        data_bytes = 0 if data is None else len(data)
        self._observer.sent(
            now, request_id, endpoint, body, data_bytes, deadline - now, is_on_the_way=is_on_the_way
        )
        return request_id

    def receive(self, socket: "zmq.Socket[bytes]") -> "tuple[Tag, memoryview, zmq.Frame | None] | None":
        self._awaited.endpoint = next((name for name, link in self._links.items() if link is socket), "")
        received = super().receive(socket)
        if received is not None:
            _, body, data = received
            data_bytes = 0 if data is None else len(data)
            self._observer.received(time.monotonic(), self._awaited.last_id, body, data_bytes)
        return received
