"""A replica of somebody's state: a snapshot in parts, then numbered updates, a gap means resync.

What lives here: the follower's and the feed's bookkeeping of numbers and parts.
What must not: sockets, clocks, the state itself, how two summaries compare.

Guarantees
  - Updates are applied in order, each once; a repeated one is recognised, a
    missing one is noticed.
  - Only parts whose summaries differ are loaded. Updates that happen during the
    load are applied after it, from the number the summaries stood for.
  - `disagrees` catches a replica that went wrong for any reason: at the same
    number the summaries must be equal.
What it needs: updates are sets and deletes by key, so that one that a loaded part
already contains may be applied again. What it cannot promise: that the state
does not move on while it is looked at.

Descends from the zguide's "Clone"; parts with summaries replace the whole
snapshot, and the numbers are the publisher's own, so nothing is lost silently.
"""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from patterns.errors import LocalError, RemoteError

EMPTY, COMPARING, LOADING, LIVE = "empty", "comparing", "loading", "live"

#: (state of the follower, event) → state.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (EMPTY, "begin"): COMPARING,
    (COMPARING, "begin"): COMPARING,
    (LOADING, "begin"): COMPARING,
    (LIVE, "begin"): COMPARING,
    (COMPARING, "summaries differ"): LOADING,
    (COMPARING, "summaries agree"): LIVE,
    (LOADING, "last part"): LIVE,
    (COMPARING, "reset"): EMPTY,
    (LOADING, "reset"): EMPTY,
    (LIVE, "reset"): EMPTY,
    (EMPTY, "reset"): EMPTY,
}

UNFOLLOWED, READY, SENDING = "unfollowed", "ready", "sending"

#: (state of the feed, event) → state. What is not here leaves the state as it is.
FEED_TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (UNFOLLOWED, "follow"): READY,
    (READY, "send"): SENDING,
    (SENDING, "progress"): READY,
    (SENDING, "no progress"): READY,
    (READY, "follow"): READY,
    (SENDING, "follow"): READY,
    (READY, "leave"): UNFOLLOWED,
    (SENDING, "leave"): UNFOLLOWED,
    (UNFOLLOWED, "leave"): UNFOLLOWED,
}

_HISTORY: Final = 32

APPLY, REPEATED, NOT_NOW, GAP = "apply", "repeated", "not now", "gap"


class Follower:
    """The replica's side.

    behind_s: how long the publisher may be seen elsewhere, without an update coming,
        before the follower compares again.
    """

    def __init__(self, behind_s: float) -> None:
        self.state = EMPTY
        self.applied = -1
        """Number of the last update applied; meaningful while LIVE."""
        self._behind_s = behind_s
        self._behind_since: float | None = None
        self._parts: deque[int] = deque()
        self.counters: Counter[str] = Counter()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def begin(self) -> None:
        """Start to compare: the caller asks the publisher for its summaries."""
        self._step("begin")
        self._parts.clear()

    def reset(self) -> None:
        """Nothing is known of the publisher any more."""
        self._step("reset")
        self.applied = -1
        self._parts.clear()
        self._behind_since = None

    def compare(self, number: int, differing: Iterable[int]) -> None:
        """The publisher's summaries came; they stand for `number`. These parts differ.

        RemoteError if `number` is none that a publisher can be at.
        """
        if number < 0:
            raise RemoteError(f"summaries that stand for number {number}", self._history)
        parts = deque(differing)
        self._step("summaries differ" if parts else "summaries agree")
        self._parts = parts
        self.applied = number
        self._behind_since = None
        self.counters["compared"] += 1

    @property
    def part(self) -> int | None:
        """The part to load now."""
        return self._parts[0] if self._parts else None

    def loaded(self) -> None:
        """The part to load now has been loaded whole."""
        if not self._parts:
            raise LocalError("no part is being loaded", self._history)
        self._parts.popleft()
        self.counters["parts loaded"] += 1
        if not self._parts:
            self._step("last part")

    def update(self, number: int) -> str:
        """What to do with an update: APPLY it, or drop it as REPEATED, NOT_NOW or behind a GAP.

        A gap needs no resync by itself: the feed sends again from `applied`.
        """
        if self.state != LIVE:
            return NOT_NOW
        if number <= self.applied:
            self.counters["repeated"] += 1
            return REPEATED
        if number > self.applied + 1:
            self.counters["gaps"] += 1
            return GAP
        self.applied = number
        self._behind_since = None
        return APPLY

    def seen(self, number: int, agrees: bool, now: float) -> bool:
        """The publisher was seen at `number`; `agrees`: with our summary, if numbers are equal.

        True: the replica is wrong or left behind, and should begin again.
        """
        if self.state != LIVE:
            return False
        if number == self.applied:
            self._behind_since = None
            if not agrees:
                self.counters["disagreed"] += 1
            return not agrees
        # Behind us it is an old sighting, since updates travel another way and may overtake it; unless it
        # stays there: then we were told a number that the publisher never came to.
        if self._behind_since is None:
            self._behind_since = now
        return now - self._behind_since >= self._behind_s

    def _step(self, event: str) -> None:
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            raise LocalError(f"{event!r} in state {self.state!r}", self._history)
        self._history.append(f"{self.state} --{event}--> {after}")
        self.state = after

    def check(self) -> None:
        assert bool(self._parts) == (self.state == LOADING)
        assert self.state in (EMPTY, COMPARING) or self.applied >= 0


class Feed:
    """The publisher's side: sends updates after what the follower has, one request at a time.

    One at a time gathers updates by itself: what happens during a round trip
    goes out together with the next.

    pause_s: wait before sending again to a follower that is comparing, or that
        did not answer.
    """

    def __init__(self, pause_s: float) -> None:
        self.state = UNFOLLOWED
        self.number = 0
        """Of the last update made."""
        self.applied: int | None = None
        """What the follower has; None: nobody follows."""
        self._pause_s = pause_s
        self._not_before = 0.0
        self.counters: Counter[str] = Counter()

    def follow(self, applied: int | None) -> None:
        """A follower came (at this number), or none is there (None)."""
        self._step("leave" if applied is None else "follow")
        self.applied = applied
        self._not_before = 0.0

    def poll(self, now: float) -> int | None:
        """Send updates after this number now; None: nothing to send."""
        if self.applied is None or now < self._not_before or self.applied >= self.number:
            return None
        return self.applied if self._step("send") else None

    def answered(self, applied: int, now: float) -> None:
        """The follower's answer: it has applied this much, or -1: it cannot now.

        What was never sent it cannot have applied: such an answer counts as -1. One to no
        request that is on the way is a counted drop.
        """
        if not 0 <= applied <= self.number or applied == self.applied:
            self.unanswered(now)
        elif self._step("progress"):
            self.applied = applied
        else:
            self.counters["late answers"] += 1

    def unanswered(self, now: float) -> None:
        """No answer came in time; a counted drop if none is waited for."""
        if self._step("no progress"):
            self._not_before = now + self._pause_s
        else:
            self.counters["late answers"] += 1

    def wake_at(self) -> float | None:
        if self.applied is None or self.state != READY or self.applied >= self.number:
            return None
        return self._not_before

    def _step(self, event: str) -> bool:
        """False if nothing is to happen."""
        after = FEED_TRANSITIONS.get((self.state, event))
        if after is None:
            return False
        self.state = after
        return True

    def check(self) -> None:
        """Somebody follows, or nobody is sent to."""
        assert (self.applied is None) == (self.state == UNFOLLOWED)
