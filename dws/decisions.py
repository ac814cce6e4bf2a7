"""Decisions on their way to the catalog's disk: the order in which they take effect.

What lives here: decision numbers, the queue of what the writer has in hand, and
what the catalog will name once that is durable. What must not: what a decision
is made for; whoever hands one over says what is to happen when it is durable.
"""

from collections import deque
from collections.abc import Callable

from dws.effects import Effects, Persist
from dws.store import CatalogHead, Decision

#: What follows from a decision that is durable now: (its number, now) → effects.
Done = Callable[[int, float], Effects]


class Decisions:
    def __init__(self, head: CatalogHead) -> None:
        self.durable = head.decision
        """The last decision known to be durable."""
        self._handed = head.decision
        self._writing: deque[tuple[int, Decision, Done]] = deque()
        self._overlay: dict[str, tuple[int, int]] = {}  # name → (decision, version): handed, not durable

    def hand(self, decision: Decision, done: Done) -> tuple[int, Effects]:
        """Give it the next number and hand it to the writer."""
        self._handed += 1
        decision.number = self._handed
        self._writing.append((self._handed, decision, done))
        for record in decision.puts:
            self._overlay[record.name] = (self._handed, record.version)
        for name in decision.removes:
            self._overlay[name] = (self._handed, 0)
        return self._handed, [Persist(decision)]

    def persisted(self, number: int, now: float) -> Effects:
        """The writer made the next decision durable."""
        handed, decision, done = self._writing.popleft()
        assert handed == number, f"decision {number} came back where {handed} was due"
        self.durable = number
        effects = done(number, now)
        for name in (*(record.name for record in decision.puts), *decision.removes):
            if self._overlay.get(name, (0, 0))[0] == number:
                del self._overlay[name]
        return effects

    def unwritten(self, name: str) -> tuple[int, int] | None:
        """(decision, version) that the last decision in the writer's hand gives the page; version 0: none."""
        return self._overlay.get(name)

    def check(self) -> None:
        """What is overlaid is being written."""
        handed = {number for number, _, _ in self._writing}
        assert all(number in handed for number, _ in self._overlay.values())
