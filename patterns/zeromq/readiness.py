"""Which sockets are readable, at a cost that does not grow with those that are not.

What lives here: waiting. What must not: what is done with a readable socket, and how
often (reactor.py).

zmq.Poller asks every socket each time, 0.6 µs apiece. Here epoll waits on the
sockets' descriptors, and a socket is asked only where there may be news of it. A
descriptor tells of news once, and whoever sends or receives on its socket takes the
news along with what he came for. So a socket that was used must be asked before the
next wait, and whoever uses one has to tell it.
"""

import select
from typing import Any, Final

import zmq
from zmq import zmq_poll

from patterns.zeromq.sockets import is_readable

Source = zmq.Socket[bytes] | int

_READABLE: Final = int(zmq.POLLIN)
#: Sources that one wait names; the others are named by the next.
_SOURCES_MAX: Final = 256


def nobody_to_tell(_: "zmq.Socket[bytes]") -> None:
    """For who uses sockets that no Readiness waits on, or that it asks each time."""


class Readiness:
    """used(socket): to be called by whoever sends or receives on a socket that was added as told.
    seen_empty(socket): by who saw that no message was left, and has not used it since.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
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
        if isinstance(source, int):
            descriptor = source
        else:
            descriptor = int(source.getsockopt(zmq.FD))
            (self._told if is_told else self._untold).add(source)
            # What came before may have been told of already.
            self._ask.add(source)
        self._epoll.register(descriptor, select.EPOLLIN)
        self._by_descriptor[descriptor] = source
        self._descriptors[source] = descriptor

    def remove(self, source: Source) -> None:
        """Before it is closed."""
        descriptor = self._descriptors.pop(source)
        del self._by_descriptor[descriptor]
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
        found: list[Any] = [socket for socket, _ in zmq_poll([(socket, _READABLE) for socket in ask], 0)]
        ask.clear()
        told = self._epoll.poll(0 if found else timeout_s, _SOURCES_MAX)
        if timeout_s and not told and not found:
            # Waited in vain: a use that nobody told of costs one wait, not for ever.
            ask |= self._told
        for descriptor, _ in told:
            source = self._by_descriptor[descriptor]
            if source not in found and (source not in self._untold or is_readable(source)):
                found.append(source)
        return found
