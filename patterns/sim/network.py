"""A network that fails as ZeroMQ over TCP does, in virtual time.

What lives here: hosts that run, pause and die; sockets by their ZeroMQ names;
partitions. What must not: what messages mean; a connection's queues, delays and end,
which are in connections.py.

What a message may meet, as with libzmq 4.3 (tests/patterns/sim compares the two):
  - Messages of one connection arrive in order or not at all, none twice.
  - A connecting socket has its queue before it is connected and keeps it over a
    lost connection: up to its high-water mark messages wait for the next one. What
    was on the way when a connection was lost is lost. A queue is lost with `close`.
  - At the high-water mark PUB drops silently; the others refuse (`send` is False),
    as a send that does not block does.
  - PUB sends nothing to a subscriber until its subscription has come.
  - ROUTER gives each connection a new routing id; a message to an id that is gone
    raises Unreachable (ROUTER_MANDATORY).
  - A host that is paused reads nothing; what comes waits, up to the high-water
    marks of both ends. A connection that is silent for the heartbeat's timeout,
    because of a pause or a partition, is lost; each end finds out by itself.
  - A partition has a direction. What it stops waits, as TCP tries again, and comes
    in order when it heals before the timeout.

Simplified: sizes do not slow a message down, and TCP's own buffers are part of the
receiver's high-water mark.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Final

from patterns.errors import LocalError
from patterns.sim.clock import Action, Clock
from patterns.sim.connections import (
    HEARTBEAT_TIMEOUT_S,
    PARTNERS,
    PUB,
    ROUTER,
    Connection,
    Frames,
    Outgoing,
    Way,
)

DEFAULT_HWM: Final = 1000
#: Every delay is between this share of the network's delay and all of it.
_QUICKEST: Final = 0.2
#: The share of messages that a late network delays more.
_LATE_SHARE: Final = 0.1


class Unreachable(Exception):
    """A ROUTER has no connection with this routing id."""


class Network:
    """delay_s: the longest time that a message takes, on a good day; late_s: the longest
    additional one, of one message in ten. Both may change at any time."""

    def __init__(self, clock: Clock, rng: Random, delay_s: float = 0.002, late_s: float = 0.0) -> None:
        self.clock = clock
        self.rng = rng
        self.delay_s = delay_s
        self.late_s = late_s
        self.hosts: dict[str, Host] = {}
        self.bound: dict[str, Socket] = {}
        self.loses: Callable[[Host, Host, Frames], bool] | None = None
        """For directed scenarios: whether a message from one host to another vanishes."""
        self.watch: Callable[[Way, Frames], None] | None = None
        """Told of every message just before its receiver is."""
        self._cut: dict[tuple[str, str], int] = {}
        """Directions that are partitioned, and since which cut."""
        self._cuts = 0
        self._connections: dict[Connection, None] = {}
        self._ended: dict[Connection, None] = {}
        """Those of whose end only the heartbeat tells, or the end of a partition."""

    def host(self, name: str) -> "Host":
        """A new host, which is not up yet."""
        if name in self.hosts:
            raise LocalError(f"there is a host {name!r} already")
        self.hosts[name] = Host(self, name)
        return self.hosts[name]

    def draw_delay_s(self) -> float:
        random = self.rng.random
        delay_s = (_QUICKEST + (1 - _QUICKEST) * random()) * self.delay_s
        if self.late_s and random() < _LATE_SHARE:
            delay_s += random() * self.late_s
        return delay_s

    # -- partitions ------------------------------------------------------------------------

    def is_cut(self, source: "Host", target: "Host") -> bool:
        return bool(self._cut) and (source.name, target.name) in self._cut

    def cut(self, source: str, target: str) -> None:
        """From now on nothing comes through from one host to the other; a full partition is two cuts."""
        if (source, target) in self._cut:
            return
        self._cuts += 1
        self._cut[source, target] = self._cuts
        self.clock.after(HEARTBEAT_TIMEOUT_S, self._silent, source, target, self._cuts)

    def heal(self, source: str, target: str) -> None:
        if self._cut.pop((source, target), None) is None:
            return
        for connection in list(self._connections):
            for way in connection.ways:
                if (way.source.host.name, way.target.host.name) == (source, target):
                    way.go_on()
        for connection in list(self._ended):
            connection.tell_ends()

    def heal_all(self) -> None:
        for source, target in list(self._cut):
            self.heal(source, target)

    def _silent(self, source: str, target: str, number: int) -> None:
        """The partition lasted until the heartbeat's timeout: its connections are given up."""
        if self._cut.get((source, target)) != number:
            return
        for connection in list(self._connections):
            if any(self.is_cut(way.source.host, way.target.host) for way in connection.ways):
                connection.lose()

    # -- connections ------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        self._connections[connection] = None

    def ended(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if self._cut:
            self._ended[connection] = None
            # By then both ends have found out.
            self.clock.after(2 * HEARTBEAT_TIMEOUT_S, self._ended.pop, connection, None)

    def connections(self) -> list[Connection]:
        """All that are up, for whoever wants to break one."""
        return list(self._connections)


class Host:
    """A machine with one process. Its life ends with a crash; no timer of one life fires in the next."""

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.clock = network.clock
        self.up = False
        self.paused = False
        self.life = 0
        self.sockets: dict[Socket, None] = {}
        self._backlog: deque[tuple[Way, Frames]] = deque()
        self._timers: list[tuple[int, Action, tuple[Any, ...]]] = []
        self._pauses = 0

    @property
    def unread(self) -> int:
        """Messages that came while it was paused; their connections may be gone."""
        return len(self._backlog)

    def start(self) -> None:
        if self.up:
            raise LocalError(f"{self.name} is up already")
        self.up = True
        self.life += 1

    def crash(self) -> None:
        """The process is gone: sockets, queues, timers."""
        self.up = self.paused = False
        self.life += 1
        self._timers.clear()
        self._backlog.clear()
        for socket in list(self.sockets):
            socket.close()

    def pause(self) -> None:
        """Stopped as by SIGSTOP: it does nothing, and notices nothing, until `resume`."""
        if self.up and not self.paused:
            self.paused = True
            self._pauses += 1
            self.clock.after(HEARTBEAT_TIMEOUT_S, self._silent, self.life, self._pauses)

    def resume(self) -> None:
        """What came meanwhile is taken first, then what its clock says."""
        if not self.paused:
            return
        self.paused = False
        if self._backlog:
            self.clock.after(0.0, self._drain, self.life)
        else:
            self._fire_timers()

    def after(self, delay_s: float, action: Action, *args: Any) -> None:
        """In this life only; later if the host is paused then."""
        self.at(self.clock.now + delay_s, action, *args)

    def at(self, when: float, action: Action, *args: Any) -> None:
        if self.up:
            self.clock.at(when, self._fire, self.life, action, args)

    def take(self, way: Way, frames: Frames) -> None:
        """A message has come: it is handled at once, or when all that came before is."""
        if self.paused or self._backlog:
            self._backlog.append((way, frames))
        else:
            way.deliver(frames)

    def _drain(self, life: int) -> None:
        # One at a time, so that each is an event of its own.
        if life != self.life or self.paused or not self._backlog:
            return
        way, frames = self._backlog.popleft()
        way.deliver(frames)
        if self._backlog:
            self.clock.after(0.0, self._drain, life)
        else:
            self._fire_timers()

    def _fire(self, life: int, action: Action, args: tuple[Any, ...]) -> None:
        if life != self.life:
            return
        if self.paused or self._backlog:
            self._timers.append((life, action, args))
        else:
            action(*args)

    def _fire_timers(self) -> None:
        timers, self._timers = self._timers, []
        for life, action, args in timers:
            self.clock.after(0.0, self._fire, life, action, args)

    def _silent(self, life: int, pause: int) -> None:
        if life == self.life and self.paused and pause == self._pauses:
            for socket in list(self.sockets):
                for connection in list(socket.connections):
                    connection.lose()


class Socket:
    """One of a host's sockets. Callbacks are set by its owner before it binds or connects.

    on_message(peer, frames): peer is the connection's routing id, which only a ROUTER needs.
    on_link(came_up): what a monitor of a connecting socket tells.
    """

    def __init__(self, host: Host, kind: str, hwm: int = DEFAULT_HWM) -> None:
        if not host.up:
            raise LocalError(f"{host.name} is not up")
        if kind not in PARTNERS or hwm < 1:
            raise LocalError(f"no socket {kind!r} with a high-water mark of {hwm}")
        self.host = host
        self.kind = kind
        self.hwm = hwm
        self.closed = False
        self.endpoint = ""
        self.on_message: Callable[[int, Frames], None] = lambda peer, frames: None
        self.on_link: Callable[[bool], None] | None = None
        self.connections: dict[Connection, None] = {}
        self._peers: dict[int, Connection] = {}
        self._next_peer = 0
        self._outgoing: Outgoing | None = None
        host.sockets[self] = None

    def bind(self, endpoint: str) -> None:
        """Raises LocalError if the endpoint is taken."""
        bound = self.host.network.bound
        if endpoint in bound:
            raise LocalError(f"{endpoint} is in use by {bound[endpoint].host.name}")
        bound[endpoint] = self
        self.endpoint = endpoint

    def connect(self, endpoint: str) -> None:
        """To one endpoint, whether it is bound or not: the connection is tried until `close`."""
        if self._outgoing is not None:
            raise LocalError("this socket has its connection already")
        self.endpoint = endpoint
        self._outgoing = Outgoing(self, endpoint)

    def send(self, frames: Frames, peer: int = 0) -> bool:
        """False if it was refused at the high-water mark. A ROUTER names the peer: Unreachable if it left."""
        if self.closed:
            raise LocalError("the socket is closed")
        if self.kind == ROUTER:
            connection = self._peers.get(peer)
            if connection is None:
                raise Unreachable(f"no connection {peer}")
            return connection.back.send(frames)
        if self.kind == PUB and self._outgoing is None:
            for connection in list(self._peers.values()):
                if connection.subscribed:
                    connection.back.send(frames)
            return True
        if self._outgoing is None:
            raise LocalError(f"a {self.kind} that is not connected sends nothing here")
        return self._outgoing.send(frames) or self.kind == PUB

    @property
    def unread(self) -> int:
        """Messages that were sent to what it connects to, by a connection that is still there, and may yet be
        read."""
        return 0 if self._outgoing is None else self._outgoing.unread

    def close(self) -> None:
        """Linger 0: what is queued is lost."""
        if self.closed:
            return
        self.closed = True
        self.host.sockets.pop(self, None)
        if self.host.network.bound.get(self.endpoint) is self:
            del self.host.network.bound[self.endpoint]
        if self._outgoing is not None:
            self._outgoing.close()
        for connection in list(self.connections):
            connection.lose(by=self)

    def joined(self, connection: Connection) -> int:
        """A peer's connection is up at the end that is bound: its routing id."""
        self.connections[connection] = None
        self._next_peer += 1
        self._peers[self._next_peer] = connection
        return self._next_peer

    def left(self, connection: Connection) -> None:
        self.connections.pop(connection, None)
        self._peers.pop(connection.peer, None)
