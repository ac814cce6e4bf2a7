"""Bounded queues by class, served so that none starves.

What lives here: deficit round robin over classes of work. What must not:
sockets, threads, what an item is.

Guarantees
  - While a class has work, it gets at least its weight's share of the cost that
    is served, whatever the others queue (deficit round robin, Shreedhar and
    Varghese 1995: off by a few quanta and one item of the largest cost). An item
    over the quantum is served on credit; the debt outlives an empty queue.
  - Each class is bounded in cost; what is over it is refused at once, so a flood
    of one class fills its own queue and nobody else's.
  - Within a class, order is kept.
What it cannot promise: a wait. That depends on the items in front.
"""

from collections import deque
from typing import Final, Generic, TypeVar

from patterns.errors import LocalError

IDLE, BACKLOGGED, REFUSING = "idle", "backlogged", "refusing"

#: (state of a class, event) → state. A backlogged class may refuse an item that is too large;
#: a refusing one is at its bound and refuses any.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (IDLE, "offer"): BACKLOGGED,
    (IDLE, "offer up to the bound"): REFUSING,
    (BACKLOGGED, "offer"): BACKLOGGED,
    (BACKLOGGED, "offer up to the bound"): REFUSING,
    (BACKLOGGED, "take"): BACKLOGGED,
    (BACKLOGGED, "take last"): IDLE,
    (REFUSING, "take"): BACKLOGGED,
    (REFUSING, "take last"): IDLE,
}

_HISTORY: Final = 32

Item = TypeVar("Item")


class _Class(Generic[Item]):
    __slots__ = ("bound", "cost", "deficit", "items", "quantum", "state")

    def __init__(self, quantum: int, bound: int) -> None:
        self.quantum = quantum
        self.bound = bound
        self.items: deque[tuple[Item, int]] = deque()
        self.cost = 0
        self.deficit = 0
        self.state = IDLE


class FairQueue(Generic[Item]):
    """classes: name → (quantum, bound), both in the unit of cost (messages, bytes).

    A class's share is its quantum over the sum of all quanta. A quantum far below
    the cost of an item makes `take` go round once for each quantum in it.
    """

    def __init__(self, classes: dict[str, tuple[int, int]]) -> None:
        if not classes or any(quantum < 1 or bound < 1 for quantum, bound in classes.values()):
            raise LocalError("wanted: at least one class, quanta and bounds of at least 1")
        self._classes: dict[str, _Class[Item]] = {name: _Class(*sizes) for name, sizes in classes.items()}
        # Classes with work, the one to be served next in front.
        self._turn: deque[str] = deque()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def __len__(self) -> int:
        return sum(len(each.items) for each in self._classes.values())

    def cost(self, name: str) -> int:
        return self._class(name).cost

    def offer(self, name: str, item: Item, cost: int = 1) -> bool:
        """Queue an item; False, and not queued, over the class's bound.

        An item that alone is over the bound is taken by an empty class. An item of
        no cost counts 1, or a class could hold any number of them.
        """
        each = self._class(name)
        if cost < 0:
            raise LocalError(f"an item of cost {cost}", self._history)
        cost = max(cost, 1)
        if each.items and each.cost + cost > each.bound:
            return False
        if not each.items:
            self._turn.append(name)
            each.deficit = min(each.deficit, 0)
        each.items.append((item, cost))
        each.cost += cost
        self._step(name, each, "offer" if each.cost < each.bound else "offer up to the bound")
        return True

    def take(self, budget: int) -> list[Item]:
        """Items to serve now: until their cost reaches `budget`, and at least one if any waits."""
        if budget < 1:
            raise LocalError(f"a budget of {budget} serves nothing", self._history)
        taken: list[Item] = []
        while self._turn and budget > 0:
            name = self._turn[0]
            each = self._classes[name]
            if each.deficit <= 0:
                each.deficit += each.quantum
            while each.items and each.deficit > 0 and budget > 0:
                item, cost = each.items.popleft()
                each.cost -= cost
                each.deficit -= cost
                budget -= cost
                taken.append(item)
                self._step(name, each, "take" if each.items else "take last")
            if not each.items:
                self._turn.popleft()
            elif each.deficit <= 0:
                self._turn.rotate(-1)
        return taken

    def _class(self, name: str) -> _Class[Item]:
        each = self._classes.get(name)
        if each is None:
            raise LocalError(f"no class {name!r}", self._history)
        return each

    def _step(self, name: str, each: _Class[Item], event: str) -> None:
        before, each.state = each.state, TRANSITIONS[each.state, event]
        if each.state != before:
            self._history.append(f"{name} {before} --{event}--> {each.state}")

    def check(self) -> None:
        """Costs add up, states say what queues hold, and exactly the classes with work take turns."""
        for each in self._classes.values():
            assert each.cost == sum(cost for _, cost in each.items)
            assert len(each.items) <= 1 or each.cost <= each.bound
            assert (each.state == IDLE) == (not each.items)
            assert (each.state == REFUSING) == (each.cost >= each.bound)
        assert sorted(self._turn) == sorted(name for name, each in self._classes.items() if each.items)
