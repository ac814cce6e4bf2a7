"""Which sockets are readable, at a cost that does not grow with those that are not.

What lives here: waiting. What must not: what is done with a readable socket, and how
often (reactor.py).

zmq.Poller asks every socket each time, 0.6 µs apiece. Here epoll waits on the
sockets' descriptors, and a socket is asked only where there may be news of it. A
descriptor tells of news once, and whoever sends or receives on its socket takes the
news along with what he came for. So a socket that was used must be asked before the
next wait, and whoever uses one has to tell it.
"""

import os
import select
import time
from collections.abc import Callable
from typing import Any, Final

import zmq
from zmq import zmq_poll

from patterns.zeromq.sockets import is_readable

Source = zmq.Socket[bytes] | int

_READABLE: Final = int(zmq.POLLIN)
#: How long a use that nobody told of can stay unseen.
_ASK_ALL_S: Final = 1.0


def nobody_to_tell(_: "zmq.Socket[bytes]") -> None:
    """For who uses sockets that no Readiness waits on, or that it asks each time."""


class Readiness:
    """used(socket): to be called by whoever sends or receives on a socket that was added as told.
    seen_empty(socket): by who saw that no message was left, and has not used it since.
    clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoll = select.epoll()
        self._pid = os.getpid()
        self._ask_all_at = 0.0
        self._by_descriptor: dict[int, Any] = {}
        self._descriptors: dict[Source, int] = {}
        self._told: set[Any] = set()
        self._untold: set[Any] = set()
        self._ask: set[Any] = set()
        self.used = self._ask.add
        self.seen_empty = self._ask.discard

    def add(self, source: Source, *, is_told: bool = False) -> None:
        """A socket, or a file descriptor. is_told: all who use the socket call `used`. Sockets of others are
        asked each time."""
        descriptor = source if isinstance(source, int) else int(source.getsockopt(zmq.FD))
        self._epoll.register(descriptor, select.EPOLLIN)
        self._by_descriptor[descriptor] = source
        self._descriptors[source] = descriptor
        if not isinstance(source, int):
            (self._told if is_told else self._untold).add(source)
            # What came before may have been told of already.
            self._ask.add(source)

    def remove(self, source: Source) -> None:
        """Before it is closed."""
        descriptor = self._descriptors.pop(source)
        del self._by_descriptor[descriptor]
        if os.getpid() == self._pid:
            # A process that was forked shares the parent's epoll.
            self._epoll.unregister(descriptor)
        self._told.discard(source)
        self._untold.discard(source)

    def wait(self, timeout_s: float) -> list[Source]:
        """Sources that are readable. Of a socket added as told there may just be other news: that it is
        readable shows when it is read."""
        ask = self._ask
        # What was used and is not waited on is nobody's business.
        ask &= self._told
        ask |= self._untold
        now = self._clock()
        if now >= self._ask_all_at:
            # A use that nobody told of, which would be a bug, costs a second and not for ever.
            ask |= self._told
            self._ask_all_at = now + _ASK_ALL_S
        found: list[Any] = [socket for socket, _ in zmq_poll([(socket, _READABLE) for socket in ask], 0)]
        ask.clear()
        asked = set(found)
        # All that have news, or a time-out might be judged before an answer that is here.
        at_most = len(self._by_descriptor) or 1
        for descriptor, _ in self._epoll.poll(0 if found else timeout_s, at_most):
            source = self._by_descriptor[descriptor]
            if source not in asked and (source not in self._untold or is_readable(source)):
                found.append(source)
        return found

    def close(self) -> None:
        """The sockets are not touched."""
        self._epoll.close()
