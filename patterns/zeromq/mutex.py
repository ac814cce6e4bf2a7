"""A machine of mutual exclusion over real sockets: one PULL to receive, one PUSH to each other member.

What lives here: frames on and off sockets, effects carried out, errors of peers counted.
What must not: the algorithm (`patterns/mutex/`), and what is done while the lock is held.

Sends never block: on a full queue the message is a counted drop, which the machines bear.
PUSH keeps messages for a member that is away; what comes late the machines drop.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import zmq

from patterns.errors import LocalError, RemoteError
from patterns.mutex.coordinator import Coordinator
from patterns.mutex.interface import (
    HEADER_BYTES,
    MEMBERS_MAX,
    Effect,
    Granted,
    Lost,
    Mutex,
    Send,
    pack,
    parse,
)
from patterns.zeromq.sockets import make_socket

FRAME_MAX_BYTES: Final = HEADER_BYTES + 2 * MEMBERS_MAX
#: Messages that wait for one member; the machines send again what they need.
HWM: Final = 100
#: Messages taken before time is let pass: whoever was asleep hears first what was said meanwhile.
_CATCH_UP_MAX: Final = 1000


class MutexNode:
    """machine: a member, or the coordinator. realm: 16 bytes that name the lock.

    on_granted(fence, until), on_lost(fence, reason): called from within `request`,
    `refused`, `drain` and `tick`.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        machine: Mutex | Coordinator,
        realm: bytes,
        bind: str,
        clock: Callable[[], float],
        on_granted: Callable[[int, float | None], None],
        on_lost: Callable[[int, str], None],
    ) -> None:
        self.machine = machine
        self._mutex = None if isinstance(machine, Coordinator) else machine
        self.counters: Counter[str] = Counter()
        self.last_error: RemoteError | None = None
        """What a peer did wrong last, with the machine's history."""
        self._context = context
        self._realm = realm
        self._clock = clock
        self._on_granted = on_granted
        self._on_lost = on_lost
        self._links: dict[int, zmq.Socket[bytes]] = {}
        self.socket = make_socket(context, zmq.PULL, frame_max_bytes=FRAME_MAX_BYTES, hwm=HWM)
        try:
            self.socket.bind(bind)
        except zmq.ZMQError:
            self.socket.close(0)
            raise
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect(self, peers: Mapping[int, str]) -> None:
        """Member → endpoint of all that the machine may send to; a member anew, if it has moved."""
        for member, endpoint in peers.items():
            if member in self._links:
                self._links.pop(member).close(0)
            link = make_socket(self._context, zmq.PUSH, frame_max_bytes=FRAME_MAX_BYTES, hwm=HWM)
            try:
                link.connect(endpoint)
            except zmq.ZMQError:
                link.close(0)
                raise
            self._links[member] = link

    def request(self) -> None:
        """Ask for entry; LocalError if a request is under way."""
        self._carry_out(self._member().request(self._clock()))

    def release(self) -> None:
        """End the request; LocalError if there is none."""
        self._carry_out(self._member().release(self._clock()))

    def refused(self, highest: int) -> None:
        """The resource refused our number: it has seen `highest`."""
        self._carry_out(self._member().refused(highest, self._clock()))

    def drain(self, limit: int) -> int:
        """Handle at most `limit` waiting messages; how many there were."""
        for handled in range(limit):
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return handled
            if self.socket.getsockopt(zmq.RCVMORE):
                self._skip_rest()
                continue
            try:
                effects = self.machine.receive(parse(self._realm, frame), self._clock())
            except RemoteError as error:
                self.counters["refused messages"] += 1
                self.last_error = error
                continue
            self.counters["received"] += 1
            self._carry_out(effects)
        return limit

    def tick(self, now: float) -> None:
        """Let time pass, after every message that waits."""
        wake_at = self.machine.wake_at()
        if wake_at is not None and now >= wake_at:
            self.drain(_CATCH_UP_MAX)
            self._carry_out(self.machine.poll(now))

    def wake_at(self) -> float | None:
        return self.machine.wake_at()

    def close(self) -> None:
        self.socket.close(0)
        while self._links:
            self._links.popitem()[1].close(0)

    def _member(self) -> Mutex:
        if self._mutex is None:
            raise LocalError("the coordinator asks for nothing himself")
        return self._mutex

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self._send(to, pack(self._realm, message))
                case Granted(fence, until):
                    self._on_granted(fence, until)
                case Lost(fence, reason):
                    self._on_lost(fence, reason)

    def _send(self, to: int, frame: bytes) -> None:
        link = self._links.get(to)
        if link is None:
            self.counters["not sent: no endpoint"] += 1
            return
        try:
            link.send(frame, zmq.NOBLOCK)
            self.counters["sent"] += 1
        except zmq.Again:
            self.counters["not sent: full"] += 1

    def _skip_rest(self) -> None:
        while self.socket.getsockopt(zmq.RCVMORE):
            self.socket.recv(copy=False)
        self.counters["too many frames"] += 1
