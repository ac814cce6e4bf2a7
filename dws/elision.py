"""Which steps of a long row are shown: all that matter, and of those alike the first and the last.

What lives here: the choice. What must not: what a step is, and how it is printed.

A step is routine or it is not. Those that are not are shown, each with the few
routine ones before and after it; what is left out between is one Elided with its
sums. After `shown_max` steps everything counts as routine, so that no row is endless;
the very last steps are shown in any case.
"""

from collections import deque
from typing import Final, Generic, Protocol, TypeVar

from msgspec import Struct

HEAD: Final = 12
TAIL: Final = 6
SHOWN_MAX: Final = 500


class Routine(Protocol):
    at_s: float
    is_routine: bool
    data_bytes: int


class Elided(Struct):
    """So many steps were left out, with so many bytes of data, the last of them at at_s."""

    steps: int = 0
    data_bytes: int = 0
    at_s: float = 0.0


AnyStep = TypeVar("AnyStep", bound=Routine)


class Elision(Generic[AnyStep]):
    """head, tail: routine steps shown after and before one that is not, and at both ends."""

    def __init__(self, head: int = HEAD, tail: int = TAIL, shown_max: int = SHOWN_MAX) -> None:
        self._head = head
        self._tail = tail
        self._left = shown_max
        self._head_left = head
        self._held: deque[AnyStep] = deque()
        self._elided = Elided()

    def take(self, step: AnyStep) -> list["AnyStep | Elided"]:
        """What is to be shown now, in order."""
        if self._left <= 0 or (step.is_routine and not self._head_left):
            return self._hold(step)
        if step.is_routine:
            self._head_left -= 1
            self._left -= 1
            return [step]
        shown = [*self.rest(), step]
        self._left -= len(shown)
        self._head_left = self._head
        return shown

    def rest(self) -> list["AnyStep | Elided"]:
        """What was held back and is to be shown after all: at the end, or before a step that matters."""
        shown: list[AnyStep | Elided] = [self._elided] if self._elided.steps else []
        shown += self._held
        self._held.clear()
        self._elided = Elided()
        return shown

    def _hold(self, step: AnyStep) -> list["AnyStep | Elided"]:
        self._held.append(step)
        if len(self._held) > self._tail:
            left_out = self._held.popleft()
            self._elided.steps += 1
            self._elided.data_bytes += left_out.data_bytes
            self._elided.at_s = left_out.at_s
        return []
