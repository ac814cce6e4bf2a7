"""The last choices of lookups, as samples for people to look at.

What lives here: a small ring of them, and the reason of each in words. What must
not: choosing (policy.py). At most one lookup in SAMPLE_S is looked at, so that
the data plane pays one comparison for all others.
"""

from collections import deque
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, Final

from msgspec import Struct

from dws.limits import CHOICES_MAX
from dws.load import Loads
from dws.messages import RecentChoice

SAMPLE_S: Final = 0.25
#: Holders told of one page.
_CANDIDATES_MAX: Final = 16

_REASONS: Final = {
    "least-load": "least download load of {count}",
    "round-robin": "its turn among {count}",
    "random": "drawn at random from {count}",
    "two-choices": "the better of two drawn from {count}",
}


class _Sample(Struct, gc=False):
    at: float
    name: str
    version: int
    candidates: list[tuple[int, float]]  # server, download load when it was chosen; the chosen one first
    reason: str


class Choices:
    def __init__(self, policy: str) -> None:
        self._text = _REASONS.get(policy, policy)
        self._ring: deque[_Sample] = deque(maxlen=CHOICES_MAX)
        self.due = 0.0
        """From when on a lookup is worth noting: what the data plane compares with."""

    def note(
        self,
        name: str,
        found: Any,
        holders: Iterable[int],
        avoid: set[int] | None,
        loads: Loads,
        now: float,
    ) -> None:
        """One name of a lookup, just answered with `found` (an element of Located.pages), best first."""
        if found is None or not found[4]:
            return
        self.due = now + SAMPLE_S
        live = found[4]
        best = live[0]
        # What it weighed when it was chosen: without the page that it was then given.
        candidates = [(best, loads.download_load_s(best, now) - loads.per_page_s[best])]
        candidates += [(number, loads.download_load_s(number, now)) for number in live[1:_CANDIDATES_MAX]]
        reason = self._reason(len(live), len(set(holders)), avoid is not None and best not in avoid)
        self._ring.append(_Sample(now, name, found[0], candidates, reason))

    def _reason(self, live: int, holders: int, avoiding: bool) -> str:
        if live > 1:
            return self._text.format(count=live)
        if holders == 1:
            return "the only copy"
        if avoiding:
            return "the client avoids the others"
        return f"the only live copy of {holders}"

    def recent(self, name_of: Callable[[int], str], now: float) -> list[RecentChoice]:
        """Newest first."""
        return [
            RecentChoice(
                max(0.0, now - sample.at), sample.name, sample.version, name_of(sample.candidates[0][0]),
                [(name_of(number), load if isfinite(load) else -1.0) for number, load in sample.candidates],
                sample.reason,
            )
            for sample in reversed(self._ring)
        ]  # fmt: skip
