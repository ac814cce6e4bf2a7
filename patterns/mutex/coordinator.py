"""Mutual exclusion by a coordinator: one queue, one lease at a time.

What lives here: the coordinator, and a member that asks him. What must not: sockets,
clocks, what is done while the lock is held.

Guarantees
  - Entry in the order in which requests reach the coordinator, three messages each:
    REQUEST, GRANT, RELEASE.
  - A grant is a lease. A holder that crashes, or that nobody hears, loses it when it is
    over; one that lives renews it, up to held_max_s in all: so everybody's turn comes.
  - Grants carry rising fencing numbers (epoch, count), over restarts of the coordinator
    too: he waits until his predecessor's leases are over.
  - Lost messages cost time only: members ask again, a lost RELEASE costs its lease's rest.
What it cannot promise
  - That a paused or cut-off holder stops when its lease is over: the next may be in by
    then, and only the resource, by the fencing number, keeps the two apart.
  - Any entry while the coordinator is down. Nor the old queue's order after his restart.
  - That two coordinators at once are noticed, unless their epochs differ.

Messages (`number`: the member's count of its requests, rising over its restarts)
  REQUEST  number, fence: the highest number that the member knows. Repeated, it asks
           again, and renews the lease of the holder
  GRANT    number, fence, time: how long the lease lasts from now
  RELEASE  number, fence (0: it was not granted)
"""

from collections import Counter, deque
from typing import Final

from patterns.errors import LocalError, RemoteError
from patterns.mutex.interface import (
    FENCE_MAX,
    HELD,
    IDLE,
    LOST,
    MEMBER_MAX,
    WAITING,
    Effect,
    Granted,
    Lost,
    Message,
    Send,
)

REQUEST, GRANT, RELEASE = 1, 2, 3

#: (state of a member, event) → state.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (IDLE, "request"): WAITING,
    (WAITING, "grant"): HELD,
    (WAITING, "release"): IDLE,
    (HELD, "renewal"): HELD,
    (HELD, "release"): IDLE,
    (HELD, "lease over"): LOST,
    (HELD, "refused"): LOST,
    (LOST, "release"): IDLE,
}

RECOVERING, FREE, TAKEN = "recovering", "free", "taken"

#: (state of the coordinator, event) → state. Taken, he queues requests.
COORDINATOR_TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (RECOVERING, "old leases over"): FREE,
    (FREE, "grant"): TAKEN,
    (TAKEN, "renewal"): TAKEN,
    (TAKEN, "release"): FREE,
    (TAKEN, "lease over"): FREE,
}

_HISTORY: Final = 32
_COUNT_BITS: Final = 64


class Coordinator:
    """epoch: how often he was started before, kept on disk; 0: no lease can be under way.

    lease_s: until a silent holder loses its grant. Longer than a pause that should not
        cost it, or grants are lost for nothing; shorter brings the next in sooner.
    margin_s: how much longer he waits himself: the GRANT's way and the drift of clocks.
    held_max_s: the longest that one entry lasts, renewals included.
    queue_max: members that wait; one more is a counted drop, and asks again.
    """

    def __init__(
        self,
        me: int,
        epoch: int,
        lease_s: float,
        margin_s: float,
        held_max_s: float,
        now: float,
        queue_max: int = 4096,
    ) -> None:
        if not 0 <= me <= MEMBER_MAX or epoch < 0 or queue_max < 1:
            raise LocalError(f"wanted: a member's number, epoch >= 0 and queue_max >= 1, not {me, epoch}")
        if not 0 < lease_s <= held_max_s or margin_s < 0:
            raise LocalError("wanted: 0 < lease_s <= held_max_s and margin_s >= 0")
        self._me = me
        self._lease_s = lease_s
        self._margin_s = margin_s
        self._held_max_s = held_max_s
        self._queue_max = queue_max
        self.state = RECOVERING if epoch else FREE
        # The highest number given, or known to be in use; and the one that is granted now.
        self._fence = epoch << _COUNT_BITS
        self._granted = 0
        # Member → number of its request, in the order in which they came.
        self._queue: dict[int, int] = {}
        self._holder, self._number = -1, 0
        # The end of the lease, or of recovering; and the end of the longest lease.
        self._until = now + lease_s + margin_s
        self._latest = 0.0
        self.counters: Counter[str] = Counter()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def receive(self, message: Message, now: float) -> list[Effect]:
        """RemoteError for a message that no correct member sends."""
        if message.kind == REQUEST:
            return self._asked(message, now)
        if message.kind == RELEASE:
            return self._released(message, now)
        raise RemoteError(f"the coordinator takes no message of kind {message.kind}", self._history)

    def poll(self, now: float) -> list[Effect]:
        if self.state != FREE and now >= self._until:
            if self.state == TAKEN:
                self.counters["leases over"] += 1
            self._step("lease over" if self.state == TAKEN else "old leases over")
        return self._grant_next(now)

    def wake_at(self) -> float | None:
        return None if self.state == FREE else self._until

    def _asked(self, message: Message, now: float) -> list[Effect]:
        _, member, number, fence, *_ = message
        if fence > FENCE_MAX >> 1:
            raise RemoteError(f"member {member} claims to know of number {fence:#x}", self._history)
        # So even one who was started with a wrong epoch gives no number that the resource refuses.
        self._fence = max(self._fence, fence)
        holds = self.state == TAKEN and member == self._holder
        if number < max(self._queue.get(member, 0), self._number if holds else 0):
            self.counters["stale"] += 1
            return []
        if holds:
            if number == self._number and fence <= self._granted:
                return self._renew(now)
            # It asks anew, so its release was lost; or our number is too low to be of use to it.
            self._step("release")
        if len(self._queue) >= self._queue_max and member not in self._queue:
            self.counters["queue full"] += 1
        else:
            if self._queue.get(member) != number:
                self._queue.pop(member, None)
            self._queue[member] = number
        return self._grant_next(now)

    def _released(self, message: Message, now: float) -> list[Effect]:
        _, member, number, fence, *_ = message
        if fence > self._fence:
            raise RemoteError(f"member {member} releases {fence:#x}, never granted", self._history)
        if self.state == TAKEN and member == self._holder and number == self._number:
            self._step("release")
        elif self.state == TAKEN and fence == self._granted:
            raise RemoteError(f"member {member} releases what {self._holder} holds", self._history)
        elif self._queue.get(member) == number:
            del self._queue[member]
            self.counters["withdrawn"] += 1
        else:
            self.counters["stale"] += 1
        return self._grant_next(now)

    def _grant_next(self, now: float) -> list[Effect]:
        if self.state != FREE or not self._queue:
            return []
        self._holder = next(iter(self._queue))
        self._number = self._queue.pop(self._holder)
        self._fence += 1
        self._granted = self._fence
        self._latest = now + self._held_max_s
        self._step("grant")
        self.counters["grants"] += 1
        return self._lease(now)

    def _renew(self, now: float) -> list[Effect]:
        self._step("renewal")
        return self._lease(now)

    def _lease(self, now: float) -> list[Effect]:
        ends = min(now + self._lease_s, self._latest)
        self._until = ends + self._margin_s
        lease_s = max(0.0, ends - now)
        return [Send(self._holder, Message(GRANT, self._me, self._number, self._granted, lease_s))]

    def _step(self, event: str) -> None:
        before, self.state = self.state, COORDINATOR_TRANSITIONS[self.state, event]
        self._history.append(f"{before} --{event}--> {self.state}, member {self._holder} {self._granted:#x}")

    def check(self) -> None:
        """Nobody waits while the lock is free; bounds hold."""
        assert self.state != FREE or not self._queue
        assert len(self._queue) <= self._queue_max
        assert self.state != TAKEN or self._until <= self._latest + self._margin_s
        assert self._granted <= self._fence


class Member:
    """incarnation: how often this member was started before, kept on disk.

    retry_s: until a request that is not answered is sent again. Under half a lease, or a
        lost renewal loses the grant; over a usual wait, or an entry takes more than three
        messages.
    """

    def __init__(self, me: int, coordinator: int, incarnation: int, retry_s: float) -> None:
        if not 0 <= me <= MEMBER_MAX or me == coordinator or incarnation < 0 or retry_s <= 0:
            raise LocalError(
                "wanted: a member's number, not the coordinator's, incarnation >= 0, retry_s > 0"
            )
        self.state = IDLE
        self._me = me
        self._coordinator = coordinator
        self._retry_s = retry_s
        self._number = incarnation << 32
        self._fence = 0
        # The highest number this member knows of, its own or not.
        self._highest = 0
        self._ask_at = 0.0
        # When the first REQUEST was sent that no GRANT has answered.
        self._asked_at: float | None = None
        self._until = 0.0
        self.counters: Counter[str] = Counter()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def request(self, now: float) -> list[Effect]:
        """LocalError unless idle."""
        self._step("request")
        self._number += 1
        self._fence = 0
        self._asked_at = None
        return self._ask(now)

    def release(self, now: float) -> list[Effect]:
        """LocalError if there is no request."""
        self._step("release")
        return [self._give_back(self._number, self._fence)]

    def refused(self, highest: int, now: float) -> list[Effect]:
        """LocalError unless held. The next request tells the coordinator the number."""
        self._step("refused")
        self._highest = max(self._highest, highest)
        return [Lost(self._fence, "the resource has seen a higher number")]

    def receive(self, message: Message, now: float) -> list[Effect]:
        """RemoteError for what the coordinator cannot have meant."""
        if message.kind != GRANT or message.sender != self._coordinator:
            raise RemoteError(
                f"no grant of the coordinator: kind {message.kind} of {message.sender}", self._history
            )
        if message.number > self._number:
            raise RemoteError(f"a grant for request {message.number}, never made", self._history)
        if not 0 < message.fence <= FENCE_MAX:
            raise RemoteError(f"a grant without a fencing number: {message.fence}", self._history)
        if message.number < self._number or self.state == IDLE:
            # Of a request that was given up: he should not have to wait for the lease's end.
            self.counters["late grants"] += 1
            return [self._give_back(message.number, message.fence)]
        return self._granted(message, now)

    def poll(self, now: float) -> list[Effect]:
        if self.state == HELD and now >= self._until:
            self._step("lease over")
            return [Lost(self._fence, "the lease is over")]
        if self.state in (WAITING, HELD) and now >= self._ask_at:
            return self._ask(now)
        return []

    def wake_at(self) -> float | None:
        if self.state == HELD:
            return min(self._until, self._ask_at)
        return self._ask_at if self.state == WAITING else None

    def _granted(self, message: Message, now: float) -> list[Effect]:
        _, _, _, fence, lease_s, _ = message
        if self.state == WAITING and fence >= self._highest:
            self._step("grant")
            self._fence = self._highest = fence
            self._until = now + lease_s
            self._ask_at = now + lease_s / 2
            self._asked_at = None
            return [Granted(fence, self._until)]
        if self.state == HELD and fence == self._fence:
            self._step("renewal")
            if self._asked_at is not None:
                # From when it was asked for: he cannot have reckoned from earlier.
                self._until = max(self._until, self._asked_at + lease_s)
                self._ask_at = max(self._ask_at, self._asked_at + lease_s / 2)
                self._asked_at = None
            return []
        self.counters["stale"] += 1
        return []

    def _ask(self, now: float) -> list[Effect]:
        if self._asked_at is None:
            self._asked_at = now
        self._ask_at = now + self._retry_s
        return [Send(self._coordinator, Message(REQUEST, self._me, self._number, self._highest))]

    def _give_back(self, number: int, fence: int) -> Send:
        return Send(self._coordinator, Message(RELEASE, self._me, number, fence))

    def _step(self, event: str) -> None:
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            raise LocalError(f"{event!r} in state {self.state!r}", self._history)
        self._history.append(f"{self.state} --{event}--> {after}, request {self._number} {self._fence:#x}")
        self.state = after

    def check(self) -> None:
        assert self.state in (IDLE, WAITING, HELD, LOST)
        assert self.state != HELD or self._fence > 0
        assert self._fence <= self._highest or self.state != HELD
