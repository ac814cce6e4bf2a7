"""The connections of a simulated network: queues, delays, handshakes, reconnects and ends.

What lives here: what becomes of a message between two sockets of `network.py`, and when
each end finds out that a connection is gone. What must not: hosts, the sockets' own calls,
partitions; and what messages mean.

A connecting socket has one `Outgoing` for as long as it is open: its queue, and one
`Connection` after the other. A connection has two directions, each a `Way`: in order, with
a bound of both ends' high-water marks, stalled while its direction is cut.
"""

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from patterns.errors import LocalError

if TYPE_CHECKING:
    from patterns.sim.network import Socket

Frames = tuple[Any, ...]

DEALER, ROUTER, PUSH, PULL, PUB, SUB = "DEALER", "ROUTER", "PUSH", "PULL", "PUB", "SUB"
PARTNERS: Final = {DEALER: ROUTER, ROUTER: DEALER, PUSH: PULL, PULL: PUSH, PUB: SUB, SUB: PUB}

#: Silence after which a connection is given up, as by ZeroMQ's own heartbeat.
HEARTBEAT_TIMEOUT_S: Final = 6.0
RECONNECT_S: Final = 0.05
RECONNECT_MAX_S: Final = 0.5


class Outgoing:
    """The connecting end: its queue, and one connection after the other."""

    def __init__(self, socket: "Socket", endpoint: str) -> None:
        self.socket = socket
        self.endpoint = endpoint
        self.connection: Connection | None = None
        self.up = False
        """Whether the connection's handshake is over: until then messages wait."""
        self.subscribed = socket.kind != PUB
        self._network = socket.host.network
        self._queue: deque[Frames] = deque()
        self._pause_s = RECONNECT_S
        self._network.clock.after(self._network.draw_delay_s(), self._try)

    def send(self, frames: Frames) -> bool:
        if not self.subscribed:
            return False
        if self.connection is not None and self.up:
            return self.connection.there.send(frames)
        if len(self._queue) >= self.socket.hwm:
            return False
        self._queue.append(frames)
        return True

    @property
    def unread(self) -> int:
        """Messages that wait here, or are on their way by a connection that is still there."""
        connection = self.connection
        on_the_way = 0 if connection is None or connection.lost else connection.there.unread
        return len(self._queue) + on_the_way

    def close(self) -> None:
        self._queue.clear()

    def _try(self) -> None:
        socket, network = self.socket, self._network
        if socket.closed or self.connection is not None:
            return
        bound = network.bound.get(self.endpoint)
        host = socket.host
        if (
            bound is None
            or host.paused
            or bound.host.paused
            or network.is_cut(host, bound.host)
            or network.is_cut(bound.host, host)
        ):
            network.clock.after(self._pause_s * (0.5 + network.rng.random()), self._try)
            self._pause_s = min(2 * self._pause_s, RECONNECT_MAX_S)
            return
        if bound.kind != PARTNERS[socket.kind]:
            raise LocalError(f"a {socket.kind} connects to the {bound.kind} at {self.endpoint}")
        self._pause_s = RECONNECT_S
        self.connection = Connection(self, bound)
        network.clock.after(network.draw_delay_s(), self._up, self.connection)

    def _up(self, connection: "Connection") -> None:
        """The handshake is over at this end; what waited goes out."""
        if self.connection is not connection or connection.lost:
            return
        self.up = True
        if self.socket.on_link is not None:
            self.socket.host.after(0.0, self._tell, True)
        queue, self._queue = self._queue, deque()
        for frames in queue:
            connection.there.send(frames)

    def _tell(self, came_up: bool) -> None:
        if not self.socket.closed and self.socket.on_link is not None:
            self.socket.on_link(came_up)

    def lost(self, connection: "Connection") -> None:
        """This end has found out."""
        if self.connection is not connection or self.socket.closed:
            return
        self.connection = None
        was_up, self.up = self.up, False
        self.socket.connections.pop(connection, None)
        if was_up and self.socket.on_link is not None:
            self.socket.host.after(0.0, self._tell, False)
        self._network.clock.after(self._pause_s * (0.5 + self._network.rng.random()), self._try)


class Connection:
    """One TCP connection, from its handshake to its end."""

    def __init__(self, outgoing: Outgoing, bound: "Socket") -> None:
        network = bound.host.network
        self.outgoing = outgoing
        self.bound = bound
        self.lost = False
        self.there = Way(self, outgoing.socket, bound)
        self.back = Way(self, bound, outgoing.socket)
        self.ways = (self.there, self.back)
        self.subscribed = bound.kind != PUB
        outgoing.socket.connections[self] = None
        self.peer = bound.joined(self)
        network.opened(self)
        if SUB in (bound.kind, outgoing.socket.kind):
            network.clock.after(2 * network.draw_delay_s(), self._subscribe)

    def _subscribe(self) -> None:
        """The subscriber's wish has come to the publisher: from now on it is sent to."""
        subscriber = self.bound if self.bound.kind == SUB else self.outgoing.socket
        if self.lost:
            return
        if subscriber.host.paused:
            subscriber.host.after(self.bound.host.network.draw_delay_s(), self._subscribe)
            return
        self.subscribed = self.outgoing.subscribed = True

    def lose(self, by: "Socket | None" = None) -> None:
        """It is gone, with all that is on the way; each end finds out in its own time.

        by: the socket whose close it is: that end knows.
        """
        if self.lost:
            return
        self.lost = True
        network = self.bound.host.network
        network.ended(self)
        for way in self.ways:
            way.stalled.clear()
        if by is self.outgoing.socket:
            by.connections.pop(self, None)
        if by is self.bound:
            by.left(self)
        self.tell_ends()

    def tell_ends(self) -> None:
        """Each end finds out, unless it has; again when a partition ends: whatever is sent then is answered
        by a reset."""
        near, far = self.outgoing.socket, self.bound
        clock = self.bound.host.network.clock
        clock.after(self._finds_out_s(far, near), self.outgoing.lost, self)
        clock.after(self._finds_out_s(near, far), far.left, self)

    def _finds_out_s(self, other: "Socket", finder: "Socket") -> float:
        network = self.bound.host.network
        delay_s = network.draw_delay_s()
        # No FIN or RST comes through: only the heartbeat tells.
        return delay_s + HEARTBEAT_TIMEOUT_S if network.is_cut(other.host, finder.host) else delay_s


class Way:
    """One direction of a connection."""

    def __init__(self, connection: Connection, source: "Socket", target: "Socket") -> None:
        self.connection = connection
        self.source = source
        self.target = target
        self.stalled: deque[Frames] = deque()
        self._network = source.host.network
        self._bound = source.hwm + target.hwm
        self.unread = 0
        """Messages that were sent and not delivered yet."""
        self._last_at = 0.0

    def send(self, frames: Frames) -> bool:
        network = self._network
        if self.unread >= self._bound:
            return False
        if self.connection.lost:
            # This end has not found out yet: it goes into the void.
            return True
        if network.loses is not None and network.loses(self.source.host, self.target.host, frames):
            return True
        self.unread += 1
        self._last_at = max(network.clock.now + network.draw_delay_s(), self._last_at)
        network.clock.at(self._last_at, self._arrive, frames)
        return True

    def _arrive(self, frames: Frames) -> None:
        if self.connection.lost:
            return
        if self.stalled or self._network.is_cut(self.source.host, self.target.host):
            self.stalled.append(frames)
        else:
            self.target.host.take(self, frames)

    def go_on(self) -> None:
        """The partition is healed: what TCP has tried to send all the time comes through soon."""
        if self.stalled:
            self._network.clock.after(self._network.draw_delay_s(), self._release)

    def _release(self) -> None:
        if self.connection.lost or self._network.is_cut(self.source.host, self.target.host):
            return
        stalled, self.stalled = self.stalled, deque()
        for frames in stalled:
            self.target.host.take(self, frames)

    def deliver(self, frames: Frames) -> None:
        """To whoever reads the socket; what has come before a connection is lost can still be read."""
        self.unread -= 1
        target = self.target
        if target.closed:
            return
        network = self._network
        trace = network.clock.trace
        if trace is not None:
            trace.message(frames)
        if network.watch is not None:
            network.watch(self, frames)
        target.on_message(self.connection.peer, frames)
