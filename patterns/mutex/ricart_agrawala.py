"""Mutual exclusion by asking everybody: Ricart and Agrawala 1981, with Lamport clocks.

What lives here: one of n equal members. What must not: sockets, clocks of the wall, what
is done while the lock is held.

Guarantees
  - Entry in the order of requests' stamps (Lamport time, incarnation, member), 2(n-1)
    messages each: a REQUEST to and a REPLY from every other member. A holder, and a waiter
    whose own stamp is lower, keeps its REPLY back until it is through.
  - Nobody is overtaken by a request made in knowledge of its own.
  - The stamp is the fencing number. It rises from entry to entry by itself: who replied
    to a request stamps its own later ones higher. No two requests have the same one.
  - Lost messages cost time only: REQUESTs are repeated to those who did not reply, and who
    keeps its REPLY back says WAIT, so that it is not taken for dead.
What it cannot promise
  - Entry before every other member has replied or has been silent for suspect_s: one dead
    member holds all up for so long. Members are fixed; there are no leases.
  - Exclusion under false suspicion: a holder paused for longer than suspect_s, or cut off,
    is passed over, and is not told. Both parts of a divided network let members in. Only
    the resource keeps them apart; a refused member asks again under a higher stamp.
  - That a member that starts anew is not refused once: it has forgotten the time.

Messages (`fence`: the request's stamp; `number`: the sender's clock)
  REQUEST  of a member that wants to enter
  REPLY    to the request of that stamp: enter, as far as I am concerned
  WAIT     to a repeated request: I am alive, and before you
"""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from patterns.errors import LocalError, RemoteError
from patterns.mutex.interface import (
    HELD,
    IDLE,
    LOST,
    MEMBER_MAX,
    MEMBERS_MAX,
    WAITING,
    Effect,
    Granted,
    Lost,
    Message,
    Send,
)

REQUEST, REPLY, WAIT = 11, 12, 13

#: (state, event) → state.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (IDLE, "request"): WAITING,
    (WAITING, "reply"): WAITING,
    (WAITING, "silence"): WAITING,
    (WAITING, "nobody left to wait for"): HELD,
    (WAITING, "release"): IDLE,
    (HELD, "release"): IDLE,
    (HELD, "refused"): LOST,
    (LOST, "release"): IDLE,
}

_HISTORY: Final = 32
_INCARNATION_SHIFT: Final = 16
_INCARNATION_MAX: Final = 0xFFFF_FFFF
_TIME_SHIFT: Final = 48
_NAME_MASK: Final = (1 << _TIME_SHIFT) - 1
_CLOCK_MAX: Final = (1 << 63) - 1


class RicartAgrawala:
    """members: all of them, this one included.

    incarnation: how often this member was started before, kept on disk: it makes no stamp
        twice.
    retry_s: until a REQUEST is repeated to who did not reply.
    suspect_s: silence after which a member is passed over. Longer than the longest pause
        that is to be waited out; shorter brings the others in sooner after a crash.
    """

    def __init__(
        self, me: int, members: Iterable[int], incarnation: int, retry_s: float, suspect_s: float
    ) -> None:
        everybody = set(members)
        if me not in everybody or not all(0 <= each <= MEMBER_MAX for each in everybody):
            raise LocalError(f"member {me} is not among the members {sorted(everybody)}")
        if len(everybody) > MEMBERS_MAX or not 0 <= incarnation <= _INCARNATION_MAX:
            raise LocalError(f"wanted: at most {MEMBERS_MAX} members and 0 <= incarnation < 2^32")
        if not 0 < retry_s < suspect_s:
            raise LocalError("wanted: 0 < retry_s < suspect_s")
        self.state = IDLE
        self._me = me
        self._others = tuple(sorted(everybody - {me}))
        self._retry_s = retry_s
        self._suspect_s = suspect_s
        self._clock = 0
        # Added to the Lamport time it makes a stamp; that of the current or last request.
        self._name = incarnation << _INCARNATION_SHIFT | me
        self._stamp = self._name
        self._awaited: set[int] = set()
        # Who waits for our REPLY, and to which request.
        self._deferred: dict[int, int] = {}
        self._suspects: set[int] = set()
        # When each member was last heard, or began to be awaited.
        self._heard_at = dict.fromkeys(self._others, 0.0)
        self._retry_at = 0.0
        self.counters: Counter[str] = Counter()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def request(self, now: float) -> list[Effect]:
        """LocalError unless idle."""
        self._step("request")
        self._clock += 1
        self._stamp = self._clock << _TIME_SHIFT | self._name
        self._awaited = set(self._others) - self._suspects
        for member in self._awaited:
            self._heard_at[member] = now
        self._retry_at = now + self._retry_s
        # Suspects are asked too: an answer ends the suspicion.
        return [*self._ask(self._others), *self._enter_if_free()]

    def release(self, now: float) -> list[Effect]:
        """LocalError if there is no request."""
        self._step("release")
        self._awaited.clear()
        return self._let_in()

    def refused(self, highest: int, now: float) -> list[Effect]:
        """The next request is stamped higher than `highest`.

        LocalError unless held, and for a number that is no stamp.
        """
        if not 0 <= highest >> _TIME_SHIFT < _CLOCK_MAX:
            raise LocalError(f"{highest:#x} is no stamp of this group", self._history)
        self._step("refused")
        self._clock = max(self._clock, highest >> _TIME_SHIFT)
        return [Lost(self._stamp, "the resource has seen a higher number"), *self._let_in()]

    def receive(self, message: Message, now: float) -> list[Effect]:
        """RemoteError for a stranger's message and for an answer to what was not asked."""
        kind, sender, clock, stamp, *_ = message
        self._demand_legal(kind, sender, clock, stamp)
        self._clock = max(self._clock, clock)
        self._heard_at[sender] = now
        self._suspects.discard(sender)
        if kind == REQUEST:
            return self._asked(sender, stamp)
        if kind == REPLY:
            return self._replied(sender, stamp)
        return []

    def poll(self, now: float) -> list[Effect]:
        if self.state != WAITING or now < self._retry_at:
            return []
        if now - self._retry_at > self._retry_s:
            # We slept ourselves: what was sent meanwhile may still be on its way to us.
            for member in self._awaited:
                self._heard_at[member] = now
        self._retry_at = now + self._retry_s
        for member in sorted(self._awaited):
            if now - self._heard_at[member] >= self._suspect_s:
                self._suspect(member)
        return self._enter_if_free() or self._ask(sorted(self._awaited))

    def wake_at(self) -> float | None:
        return self._retry_at if self.state == WAITING else None

    def _asked(self, sender: int, stamp: int) -> list[Effect]:
        if self.state == HELD or (self.state == WAITING and self._stamp < stamp):
            repeated = self._deferred.get(sender) == stamp
            self._deferred[sender] = stamp
            return [self._send(WAIT, sender, stamp)] if repeated else []
        effects: list[Effect] = [self._send(REPLY, sender, stamp)]
        if self.state == WAITING and sender not in self._awaited:
            # A lower stamp of one whose word we do not wait for: it was suspected, or has started
            # anew since it replied. It may enter now, so that word counts no more.
            self._awaited.add(sender)
            effects += self._ask([sender])
        return effects

    def _replied(self, sender: int, stamp: int) -> list[Effect]:
        if self.state != WAITING or stamp != self._stamp:
            self.counters["stale"] += 1
            return []
        self._step("reply")
        self._awaited.discard(sender)
        return self._enter_if_free()

    def _suspect(self, member: int) -> None:
        self._step("silence")
        self._awaited.discard(member)
        self._suspects.add(member)
        self.counters["suspicions"] += 1

    def _enter_if_free(self) -> list[Effect]:
        if self._awaited:
            return []
        self._step("nobody left to wait for")
        return [Granted(self._stamp, None)]

    def _let_in(self) -> list[Effect]:
        deferred, self._deferred = self._deferred, {}
        return [self._send(REPLY, member, stamp) for member, stamp in deferred.items()]

    def _ask(self, members: Iterable[int]) -> list[Effect]:
        return [self._send(REQUEST, member, self._stamp) for member in members]

    def _send(self, kind: int, to: int, stamp: int) -> Send:
        return Send(to, Message(kind, self._me, self._clock, stamp))

    def _demand_legal(self, kind: int, sender: int, clock: int, stamp: int) -> None:
        if sender not in self._heard_at:
            raise RemoteError(f"{sender} is no other member", self._history)
        if kind not in (REQUEST, REPLY, WAIT):
            raise RemoteError(f"member {sender} sends a message of kind {kind}", self._history)
        if not 0 < stamp >> _TIME_SHIFT <= clock <= _CLOCK_MAX:
            raise RemoteError(f"member {sender} sends stamp {stamp:#x} at time {clock}", self._history)
        its_name, name = stamp & _NAME_MASK, self._name
        if kind == REQUEST:
            if its_name & MEMBER_MAX != sender:
                raise RemoteError(f"member {sender} asks under stamp {stamp:#x}", self._history)
        elif (
            its_name & MEMBER_MAX != self._me or its_name > name or (its_name == name and stamp > self._stamp)
        ):
            raise RemoteError(f"member {sender} answers request {stamp:#x}, never made", self._history)

    def _step(self, event: str) -> None:
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            raise LocalError(f"{event!r} in state {self.state!r}", self._history)
        self._history.append(f"{self.state} --{event}--> {after}, stamp {self._stamp:#x}")
        self.state = after

    def check(self) -> None:
        """Only a waiter awaits somebody, and only holders and waiters keep anybody waiting."""
        assert bool(self._awaited) == (self.state == WAITING)
        assert self.state in (WAITING, HELD) or not self._deferred
        assert not self._awaited & self._suspects
        assert self._stamp >> _TIME_SHIFT <= self._clock <= _CLOCK_MAX
        assert set(self._deferred) <= set(self._others)
