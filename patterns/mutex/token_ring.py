"""Mutual exclusion by a token that goes round a ring; a lost one is noticed, the ring mended.

What lives here: one of n equal members. What must not: sockets, clocks of the wall, what
is done while the lock is held.

Guarantees
  - Who has the token may enter, once a visit: so each waits for n-1 entries of others at
    most. Messages an entry: 1 when all want to enter, n when one alone does; an idle ring
    sends one every rest_s.
  - The token's number rises with each pass, and is the fencing number. A member lets in
    none that is not above all it knows of: copies and old tokens die where they are known.
  - A token that nobody has seen for lost_s is searched for: the searcher asks all; if none
    has seen it either, it makes a new one of a higher generation, for a ring of those that
    answered. Also the first token comes about so.
  - Who was left out is called by the token's holder every lost_s, and taken in again.
What it cannot promise
  - Exclusion under false suspicion: a holder paused until the ring is mended without it
    wakes with an old token, and two parts of a divided network have a token each. Only the
    resource keeps them apart, and the lower token dies where both meet.
  - Entry while a token is lost: up to 2 lost_s, and the search. A holder that lives and
    never releases stops the ring: there are no leases.

Messages (`fence`: the highest number known; in TOKEN the token's own)
  TOKEN   members: the ring
  PROBE   number: which search. "When did you see the token?" Also calls who was left out
  ANSWER  number: of the search; time: since I saw it, 0 while I have it, or search first

A token's number is, from the highest bit: generation 24, maker 16, maker's incarnation 24,
passes 40, zeros 24. No two tokens have the same. A grant's has the holder's incarnation in
place of the zeros, so that a copy of a token in a new life of the holder grants another one.
"""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from patterns.errors import LocalError, RemoteError
from patterns.mutex.interface import (
    FENCE_MAX,
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

TOKEN, PROBE, ANSWER = 21, 22, 23

RESTING = "resting"

#: (state, event) → state. The token is here in RESTING and HELD.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (IDLE, "request"): WAITING,
    (IDLE, "token"): RESTING,
    (RESTING, "request"): HELD,
    (RESTING, "pass"): IDLE,
    (RESTING, "newer known"): IDLE,
    (WAITING, "token"): HELD,
    (WAITING, "release"): IDLE,
    (HELD, "release"): RESTING,
    (HELD, "newer known"): LOST,
    (HELD, "refused"): LOST,
    (LOST, "release"): IDLE,
}

WATCHING, SEARCHING = "watching", "searching"

#: (state of the watch, event) → state. The watch is kept in every state of the member.
WATCH_TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (WATCHING, "silence"): SEARCHING,
    (WATCHING, "heard of it"): WATCHING,
    (SEARCHING, "heard of it"): WATCHING,
    (SEARCHING, "lower searches"): WATCHING,
    (SEARCHING, "nobody has it"): WATCHING,
}

_HISTORY: Final = 32
_GENERATION_SHIFT: Final = 104
_MAKER_SHIFT: Final = 88
_INCARNATION_SHIFT: Final = 64
_INCARNATION_MAX: Final = 0xFF_FFFF
_PASS: Final = 1 << 24


class TokenRing:
    """members: all of them, this one included; the ring goes in the order of their numbers.

    incarnation: how often this member was started before, kept on disk: it must not make
        the same token twice.
    rest_s: how long an unwanted token stays. Longer saves messages, shorter waits less.
    lost_s: until a token that nobody sees is searched for. Longer than a round in which
        all enter; shorter mends sooner.
    answer_s: how long a searcher waits for answers. Longer than a pause that should not
        cost a member its place.
    """

    def __init__(
        self,
        me: int,
        members: Iterable[int],
        incarnation: int,
        rest_s: float,
        lost_s: float,
        answer_s: float,
        now: float,
    ) -> None:
        everybody = sorted(set(members))
        if me not in everybody or not all(0 <= each <= MEMBER_MAX for each in everybody):
            raise LocalError(f"member {me} is not among the members {everybody}")
        if len(everybody) > MEMBERS_MAX or not 0 <= incarnation <= _INCARNATION_MAX:
            raise LocalError(f"wanted: at most {MEMBERS_MAX} members and 0 <= incarnation < 2^24")
        if rest_s < 0 or not 0 < answer_s <= lost_s or rest_s >= lost_s:
            raise LocalError("wanted: 0 <= rest_s < lost_s and 0 < answer_s <= lost_s")
        self.state = IDLE
        self.watch = WATCHING
        self._me = me
        self._others = frozenset(everybody) - {me}
        self._incarnation = incarnation
        self._rest_s = rest_s
        self._lost_s = lost_s
        self._answer_s = answer_s
        # Later in the order is later to search, so that mostly one does.
        self._patience_s = lost_s + everybody.index(me) * answer_s / 4
        # The highest number known of, and of the token that is or was here the ring.
        self._highest = 0
        self._token = 0
        self._ring: tuple[int, ...] = ()
        # When anybody is known to have seen the token, and when our patience with its absence began.
        self._seen_at = now - self._patience_s
        self._patient_from = now
        self._rest_until = 0.0
        self._call_at = now
        self._search_until = 0.0
        self._search = incarnation << 32
        self._answered: set[int] = set()
        # Heard of since they were left out of the ring.
        self._returning: set[int] = set()
        self.counters: Counter[str] = Counter()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def request(self, now: float) -> list[Effect]:
        """LocalError unless idle or resting."""
        self._step("request")
        return [Granted(self._fence, None)] if self.state == HELD else []

    def release(self, now: float) -> list[Effect]:
        """LocalError if there is no request."""
        self._step("release")
        return self._pass_on(now) if self.state == RESTING else []

    def refused(self, highest: int, now: float) -> list[Effect]:
        """The token was old, or the ring began anew: this one is dropped, the next is above `highest`.

        LocalError unless held, and for a number over 128 bits.
        """
        if not 0 <= highest <= FENCE_MAX:
            raise LocalError(f"{highest} is no fencing number", self._history)
        self._step("refused")
        self._highest = max(self._highest, highest - highest % _PASS)
        self._patient_from = now
        return [Lost(self._fence, "the resource has seen a higher number")]

    def receive(self, message: Message, now: float) -> list[Effect]:
        """RemoteError for a stranger's message, a token for another, an answer to no question."""
        self._demand_legal(message)
        kind, sender, number, fence, time_s, members = message
        if sender not in self._ring:
            self._returning.add(sender)
        if kind == TOKEN:
            return self._token_came(fence, members, now)
        if kind == PROBE:
            return self._probed(sender, number, fence, now)
        return self._answer_came(sender, number, fence, time_s, now)

    def poll(self, now: float) -> list[Effect]:
        if self.state in (RESTING, HELD):
            effects = self._call(now)
            if self.state == RESTING and now >= self._rest_until:
                effects += self._pass_on(now)
            return effects
        if self.watch == SEARCHING:
            return self._make_token(now) if now >= self._search_until else []
        if now >= self._patient_from + self._patience_s:
            return self._begin_search(now)
        return []

    def wake_at(self) -> float | None:
        if self.state == RESTING:
            return min(self._rest_until, self._call_at)
        if self.state == HELD:
            return self._call_at
        return self._search_until if self.watch == SEARCHING else self._patient_from + self._patience_s

    # The token

    @property
    def _fence(self) -> int:
        return self._token | self._incarnation

    def _token_came(self, token: int, ring: tuple[int, ...], now: float) -> list[Effect]:
        if token <= self._highest:
            self.counters["old tokens"] += 1
            return []
        effects = self._drop_if_older(token)
        self._highest = self._token = token
        self._ring = ring
        self._returning.difference_update(ring)
        self._heard_of_it(now)
        if self.state == LOST:
            # Its user has not let go yet: whoever is next may enter, the resource keeps the user out.
            return effects + self._send_on(now)
        self._step("token")
        effects += self._call(now)
        if self.state == HELD:
            return [*effects, Granted(self._fence, None)]
        self._rest_until = now + self._rest_s
        return effects if self._rest_s else effects + self._pass_on(now)

    def _pass_on(self, now: float) -> list[Effect]:
        if set(self._ring) | self._returning == {self._me}:
            # Alone: the number rises all the same, since each grant needs its own.
            self._token = self._highest = self._token + _PASS
            self._rest_until = now + max(self._rest_s, self._answer_s)
            return []
        self._step("pass")
        return self._send_on(now)

    def _send_on(self, now: float) -> list[Effect]:
        self._ring = tuple(sorted({*self._ring, self._me, *self._returning}))
        self._returning.clear()
        successor = self._ring[(self._ring.index(self._me) + 1) % len(self._ring)]
        self._seen_at = self._patient_from = now
        if successor == self._me:
            return []
        return [Send(successor, Message(TOKEN, self._me, fence=self._token + _PASS, members=self._ring))]

    def _drop_if_older(self, known: int) -> list[Effect]:
        """Somebody knows of a token above ours: ours is out of date wherever it is."""
        if known <= self._highest:
            return []
        self._highest = known
        if self.state not in (RESTING, HELD):
            return []
        self.counters["dropped"] += 1
        self._step("newer known")
        return [Lost(self._fence, "a newer token was made")] if self.state == LOST else []

    # The watch

    def _heard_of_it(self, seen_at: float) -> None:
        self._step_watch("heard of it")
        self._seen_at = max(self._seen_at, seen_at)
        self._patient_from = max(self._patient_from, self._seen_at)

    def _begin_search(self, now: float) -> list[Effect]:
        self._step_watch("silence")
        self._answered = set()
        self._search_until = now + self._answer_s
        self.counters["searches"] += 1
        return self._probe(self._others) or self._make_token(now)

    def _make_token(self, now: float) -> list[Effect]:
        self._step_watch("nobody has it")
        self.counters["made"] += 1
        generation = (self._highest >> _GENERATION_SHIFT) + 1
        token = (
            generation << _GENERATION_SHIFT
            | self._me << _MAKER_SHIFT
            | self._incarnation << _INCARNATION_SHIFT
        )
        return self._token_came(token, tuple(sorted({self._me, *self._answered})), now)

    def _call(self, now: float) -> list[Effect]:
        if now < self._call_at:
            return []
        self._call_at = now + self._lost_s
        left_out = self._others.difference(self._ring)
        return self._probe(left_out) if left_out else []

    def _probe(self, members: Iterable[int]) -> list[Effect]:
        self._search += 1
        probe = Message(PROBE, self._me, self._search, self._highest)
        return [Send(member, probe) for member in sorted(members)]

    def _probed(self, sender: int, search: int, highest: int, now: float) -> list[Effect]:
        effects = self._drop_if_older(highest)
        age_s = min(now - self._seen_at, self._patience_s)
        if self.watch == SEARCHING and sender < self._me:
            self._step_watch("lower searches")
            self._patient_from = now
        elif self.watch == SEARCHING or self.state in (RESTING, HELD):
            age_s = 0.0
        return [*effects, Send(sender, Message(ANSWER, self._me, search, self._highest, age_s))]

    def _answer_came(self, sender: int, search: int, highest: int, age_s: float, now: float) -> list[Effect]:
        effects = self._drop_if_older(highest)
        if self.watch != SEARCHING or search != self._search:
            return effects
        if age_s < self._lost_s:
            self._heard_of_it(now - age_s)
            return effects
        self._answered.add(sender)
        if self._answered == self._others:
            effects += self._make_token(now)
        return effects

    def _demand_legal(self, message: Message) -> None:
        kind, sender, number, fence, _, members = message
        if sender not in self._others:
            raise RemoteError(f"{sender} is no other member", self._history)
        if not 0 <= fence <= FENCE_MAX or fence % _PASS:
            raise RemoteError(f"member {sender} names {fence:#x}, no token's number", self._history)
        if kind == TOKEN:
            if not {self._me, sender} <= set(members) <= {self._me, *self._others} or not fence:
                raise RemoteError(f"member {sender} sends a token of ring {members}", self._history)
        elif kind == ANSWER:
            if number > self._search:
                raise RemoteError(f"member {sender} answers search {number}, never begun", self._history)
        elif kind != PROBE:
            raise RemoteError(f"member {sender} sends a message of kind {kind}", self._history)

    def _step(self, event: str) -> None:
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            raise LocalError(f"{event!r} in state {self.state!r}", self._history)
        self._history.append(f"{self.state} --{event}--> {after}, token {self._token:#x}")
        self.state = after

    def _step_watch(self, event: str) -> None:
        before, self.watch = self.watch, WATCH_TRANSITIONS[self.watch, event]
        if before != self.watch:
            self._history.append(f"{before} --{event}--> {self.watch}")

    def check(self) -> None:
        """A token here is the newest known, and its ring leads through here; nobody searches for it."""
        assert self._token <= self._highest
        if self.state in (RESTING, HELD):
            assert self._token == self._highest
            assert self._me in self._ring
            assert self.watch == WATCHING
        assert self._me not in self._returning
