"""The resource's side of mutual exclusion: a fencing number decides, not a belief.

What lives here: which uses are accepted. What must not: sockets, clocks, what a use
does, which algorithm gave the number.

Guarantees
  - Accepted numbers never fall: once a newer holder has used the resource, an older one
    is refused for ever, however late its uses arrive.
  - So, where each number is given to one holder, uses of two holders never interleave:
    there is one holder at each moment, the last that was accepted.
  - After `done` a number is closed: its own late uses are refused, too.
What it cannot promise: that a holder whose grant has ended is refused before the next
holder's first use. Until then nobody is harmed by it: its uses come before all of the next
one's. So a holder first shows its number (and reads), then writes.

The highest number must live as long as the data it guards, in the same transaction.
"""

from collections import Counter, deque
from typing import Final

from patterns.errors import LocalError, RemoteError

OPEN, IN_USE = "open", "in use"

#: (state, event) → state. What is not here is refused.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (OPEN, "newer number"): IN_USE,
    (IN_USE, "newer number"): IN_USE,
    (IN_USE, "same number"): IN_USE,
    (IN_USE, "done"): OPEN,
}

_HISTORY: Final = 32
_FENCE_MAX: Final = (1 << 128) - 1


class Resource:
    """highest: the number to begin after, as it was stored with the data."""

    def __init__(self, highest: int = 0) -> None:
        if not 0 <= highest <= _FENCE_MAX:
            raise LocalError(f"highest {highest} is no fencing number")
        self.state = OPEN
        self.highest = highest
        """The last number accepted; a refused holder is told it."""
        self.counters: Counter[str] = Counter()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def use(self, fence: int) -> bool:
        """Whether a use under this number may happen now; RemoteError if it is no fencing number."""
        self._demand_number(fence)
        if fence > self.highest:
            event = "newer number"
        elif fence == self.highest:
            event = "same number"
        else:
            event = "older number"
        return self._step(fence, event)

    def done(self, fence: int) -> bool:
        """The holder is through; False if it is not the holder (any more). RemoteError as for `use`."""
        self._demand_number(fence)
        return self._step(fence, "done" if fence == self.highest else "done by another")

    def _demand_number(self, fence: int) -> None:
        if not 0 < fence <= _FENCE_MAX:
            raise RemoteError(f"{fence} is no fencing number", self._history)

    def _step(self, fence: int, event: str) -> bool:
        after = TRANSITIONS.get((self.state, event))
        self._history.append(f"{fence:#x} {self.state} --{event}--> {after or 'refused'}")
        if after is None:
            self.counters[f"refused: {event}"] += 1
            return False
        self.state = after
        self.highest = max(self.highest, fence)
        self.counters[event] += 1
        return True

    def check(self) -> None:
        assert 0 <= self.highest <= _FENCE_MAX
        assert self.state == OPEN or self.highest > 0
