"""The search for an order of operations that explains what everybody saw.

What lives here: the search in one group of pages. What must not: what is made
of its result (history.py), sockets, clocks, files.

It goes through the operations in time and keeps the set of all states that the
pages may be in. An operation is given its moment as late as possible, when its
answer comes or when another one needs it: G. Lowe, "Testing for
linearizability", 2017, after J. M. Wing and C. Gong, 1993. What makes it near
linear here is that versions are unique (P. B. Gibbons and E. Korach, "Testing
shared memories", 1997): a version that somebody will yet see may not be
overwritten, and whoever sees what is there may be given that moment at once.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import inf
from typing import Final

from msgspec import Struct

from dws.operations import FAILED, OK, UNKNOWN, Operation


class Unexplained(Struct):
    """An answer that no order explains. possible: the versions that `names` can have had before it;
    near: operations on the same pages that were under way."""

    operation: Operation
    returned_s: float
    names: list[str]
    possible: list[tuple[int, ...]]
    near: list[Operation]


#: Versions that no operation names make no difference to each other.
_NOBODYS: Final = -1


class TooManyStatesError(Exception):
    """The bound of states was reached before the search knew."""


class _Step(Struct):
    """An operation with its pages as places in the state."""

    operation: Operation
    reads: tuple[tuple[int, int], ...]
    writes: tuple[tuple[int, int], ...]
    unlike: tuple[tuple[int, int], ...]
    returns_s: float
    places: frozenset[int]
    optional: bool  # it may never have happened, and nothing that was seen says that it did
    unseen: int = -1  # the place of a put that nobody saw and nothing depends on; -1: it is none

    def fits(self, state: tuple[int, ...]) -> bool:
        if any(state[place] != version for place, version in self.reads):
            return False
        return not self.unlike or any(state[place] != version for place, version in self.unlike)


class _Writes:
    """When each page is sure to have been written again."""

    def __init__(self, operations: list[Operation], due_s: list[float]) -> None:
        writes: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for operation, returns_s in zip(operations, due_s, strict=True):
            if operation.outcome != FAILED and returns_s < inf:
                for name in operation.writes:
                    writes[name].append((operation.invoked_s, returns_s))
        self._invoked: dict[str, list[float]] = {}
        #: When some write that is invoked with or after each one has returned.
        self._by_s: dict[str, list[float]] = {}
        for name, times in writes.items():
            times.sort()
            by_s = [returns_s for _, returns_s in times]
            for index in reversed(range(len(by_s) - 1)):
                by_s[index] = min(by_s[index], by_s[index + 1])
            self._invoked[name] = [invoked_s for invoked_s, _ in times]
            self._by_s[name] = by_s

    def again_by_s(self, name: str, now: float) -> float:
        """When a write that is invoked after `now` has returned; inf: there is none."""
        index = bisect_right(self._invoked.get(name, ()), now)
        by_s = self._by_s.get(name, ())
        return by_s[index] if index < len(by_s) else inf


class _Wants:
    """Whether it can be of use at a time that an optional step has happened: only for somebody who sees a
    page absent, or was told that it is not as he wished, before the page is sure to be written again."""

    def __init__(self, steps: list[_Step], names: list[str], writes: _Writes) -> None:
        self._names = names
        self._writes = writes
        self._done: set[int] = set()
        #: For each place, those who want, the last one invoked first.
        self._wanting: list[list[tuple[float, int]]] = [[] for _ in names]
        unsure = {item for step in steps if step.optional for item in step.writes if item[1]}
        #: Those who want → where.
        self._at: dict[int, set[int]] = {}
        for number, step in enumerate(steps):
            at = {
                place
                for place, version in step.reads
                if ((place, version) in unsure if step.optional else not version)
            }
            at |= {place for place, _ in step.unlike}
            if at:
                self._at[number] = at
            for place in at:
                self._wanting[place].append((step.operation.invoked_s, number))
        for wanting in self._wanting:
            wanting.sort(reverse=True)

    def returned(self, number: int) -> None:
        self._done.add(number)

    def is_of_use(self, step: _Step, now: float) -> bool:
        return any(
            self._first(place) <= self._writes.again_by_s(self._names[place], now) for place, _ in step.writes
        )

    def wanted(self, pending: Mapping[int, _Step], had: frozenset[int]) -> set[int]:
        """Places where somebody who has asked and not had his moment wants something of an optional step."""
        return {place for number in (pending.keys() & self._at.keys()) - had for place in self._at[number]}

    def _first(self, place: int) -> float:
        wanting = self._wanting[place]
        while wanting and wanting[-1][1] in self._done:
            wanting.pop()
        return wanting[-1][0] if wanting else inf


#: Steps that were given their moment and have not returned, and the versions of all places after them.
_State = tuple[frozenset[int], tuple[int, ...]]


class Search:
    """One group of pages, searched as one object."""

    def __init__(
        self, names: list[str], operations: list[Operation], start: Mapping[str, int], states_max: int
    ) -> None:
        self._names = names
        self._states_max = states_max
        places = {name: place for place, name in enumerate(names)}
        due_s = _due(operations)
        writes = _Writes(operations, due_s)
        self._steps = self._made(operations, due_s, writes, places, start)
        #: (place, version) → steps that are to see it and have not returned.
        self._seers: dict[tuple[int, int], set[int]] = defaultdict(set)
        for number, step in enumerate(self._steps):
            if not step.optional:
                for seen in step.reads:
                    self._seers[seen].add(number)
        self._wants = _Wants(self._steps, names, writes)
        self._pending: dict[int, _Step] = {}
        self._states: set[_State] = {(frozenset(), tuple(start.get(name, 0) for name in names))}

    def _made(
        self,
        operations: list[Operation],
        due_s: list[float],
        all_writes: _Writes,
        places: dict[str, int],
        start: Mapping[str, int],
    ) -> list[_Step]:
        possible = {(name, 0) for name in places} | {(name, start.get(name, 0)) for name in places}
        possible |= {item for operation in operations for item in operation.writes.items()}
        refused = [each.unlike if each.unlike.items() <= possible else {} for each in operations]
        doubts: dict[str, list[Operation]] = defaultdict(list)
        for operation, wished in zip(operations, refused, strict=True):
            for name in wished:
                doubts[name].append(operation)

        def is_doubted(operation: Operation, name: str, returns_s: float) -> bool:
            """Whether who was told that the name is not as he wished may have met this operation's page."""
            until_s = inf if returns_s == inf else all_writes.again_by_s(name, returns_s)
            return any(
                doubt.invoked_s <= until_s
                and (doubt.returned_s is None or doubt.returned_s >= operation.invoked_s)
                for doubt in doubts[name]
            )

        read = {item for each in operations if each.outcome != FAILED for item in each.reads.items()}
        named = {(name, 0) for name in places} | read
        named |= {item for unlike in refused for item in unlike.items()}
        steps = []
        for operation, returns_s, wished in zip(operations, due_s, refused, strict=True):
            happened = operation.outcome != FAILED
            reads = _placed(operation.reads, places) if happened else ()
            writes = _placed(operation.writes, places) if happened else ()
            writes = tuple(
                (place, version if (self._names[place], version) in named else _NOBODYS)
                for place, version in writes
            )
            unlike = _placed(wished, places)
            optional = operation.outcome == UNKNOWN and returns_s == inf
            matters = any(
                version == 0 or (name, version) in read or is_doubted(operation, name, returns_s)
                for name, version in operation.writes.items()
            )
            if optional and not matters:
                continue
            touched = frozenset(place for place, _ in (*reads, *writes, *unlike))
            step = _Step(operation, reads, writes, unlike, returns_s, touched, optional)
            if len(touched) == len(writes) == 1 and not (reads or matters):
                step.unseen = writes[0][0]
            steps.append(step)
        return steps

    def run(self) -> Unexplained | None:
        """The first answer that nothing explains, if there is one."""
        events = [(step.operation.invoked_s, 0, number) for number, step in enumerate(self._steps)]
        events += [(step.returns_s, 1, n) for n, step in enumerate(self._steps) if step.returns_s < inf]
        for now, returns, number in sorted(events):
            step = self._steps[number]
            if not returns:
                self._pending[number] = step
                if not step.writes:
                    self._states = {self._settled(*state) for state in self._states}
                continue
            before = self._states
            self._states = self._after(number, now)
            if not self._states:
                return self._unexplained(step, before)
            del self._pending[number]
            self._wants.returned(number)
            for seen in step.reads:
                self._seers[seen].discard(number)
        return None

    def _after(self, number: int, now: float) -> set[_State]:
        """All states in which this step, which returns now, has had its moment."""
        just = frozenset((number,))
        found: set[_State] = set()
        for state in self._states:
            if number in state[0]:
                found.add((state[0] - just, state[1]))
        stack = [state for state in self._states if number not in state[0]]
        candidates = [
            each
            for each in self._connected(number)
            if not self._steps[each].optional or self._wants.is_of_use(self._steps[each], now)
        ]
        met = set(stack)
        while stack:
            state = stack.pop()
            for reached in self._successors(state, candidates):
                if number in reached[0]:
                    found.add((reached[0] - just, reached[1]))
                elif reached not in met:
                    met.add(reached)
                    stack.append(reached)
            if len(met) + len(found) > self._states_max:
                raise TooManyStatesError
        return _undominated(found, self._steps)

    def _connected(self, number: int) -> list[int]:
        """Pending steps that change something, as far as shared pages connect them with this one."""
        reached = set(self._steps[number].places)
        rest = dict(self._pending)
        found: list[int] = []
        grows = True
        while grows:
            grows = False
            for each, step in list(rest.items()):
                if not reached.isdisjoint(step.places):
                    reached |= step.places
                    del rest[each]
                    found.append(each)
                    grows = True
        return sorted(each for each in found if self._steps[each].writes)

    def _successors(self, state: _State, candidates: list[int]) -> Iterator[_State]:
        had, versions = state
        alike: set[object] = set()
        wanted = self._wants.wanted(self._pending, had)
        for number in candidates:
            if number in had:
                continue
            step = self._steps[number]
            if step.optional:
                if len(step.places) == 1 and wanted.isdisjoint(step.places):
                    continue  # on one page it can as well wait until somebody asks for it
                # Of several that would do the same, and need never happen, the first one stands for all.
                deed = (step.reads, step.writes)
                if deed in alike:
                    continue
                alike.add(deed)
            if step.fits(versions) and self._may_overwrite(number, had, versions):
                yield self._moved(number, had, versions)

    def _may_overwrite(self, number: int, had: frozenset[int], versions: tuple[int, ...]) -> bool:
        """A version does not come back: all who are to see it must have had their moment."""
        for place, _ in self._steps[number].writes:
            if versions[place]:
                seers = self._seers.get((place, versions[place]))
                if seers and not seers <= had and not seers - had <= {number}:
                    return False
        return True

    def _moved(self, number: int, had: frozenset[int], versions: tuple[int, ...]) -> _State:
        step = self._steps[number]
        after = list(versions)
        moved = {number}
        seen = {place for place, _ in step.reads}
        for place, version in step.writes:
            after[place] = version
            if place not in seen:
                # Puts that nobody saw can have come just before, which never does harm.
                moved |= {each for each, other in self._pending.items() if other.unseen == place}
        return self._settled(had | moved, tuple(after))

    def _settled(self, had: frozenset[int], versions: tuple[int, ...]) -> _State:
        """Whoever sees what is there now and changes nothing is given this moment."""
        more = [
            number
            for number, step in self._pending.items()
            if not step.writes and number not in had and step.fits(versions)
        ]
        return (had.union(more) if more else had, versions)

    def _unexplained(self, step: _Step, before: set[_State]) -> Unexplained:
        places = sorted(step.places)
        names = [self._names[place] for place in places]
        possible = sorted({tuple(versions[place] for place in places) for _, versions in before})
        near = [
            other.operation
            for other in self._pending.values()
            if other is not step and not step.places.isdisjoint(other.places)
        ]
        return Unexplained(step.operation, step.returns_s, names, possible, near)


def _due(operations: list[Operation]) -> list[float]:
    """When each operation must have had its moment: at its answer, or if it has none at the first one that
    rests on it; inf: perhaps never."""
    due_s = [inf if each.returned_s is None else each.returned_s for each in operations]
    unanswered = {
        item: number
        for number, each in enumerate(operations)
        if each.outcome == UNKNOWN
        for item in each.writes.items()
        if item[1]
    }
    stack = [number for number, each in enumerate(operations) if each.outcome == OK]
    while stack:
        number = stack.pop()
        for item in operations[number].reads.items():
            rests_on = unanswered.get(item)
            if rests_on is not None and due_s[number] < due_s[rests_on]:
                due_s[rests_on] = due_s[number]
                stack.append(rests_on)
    return due_s


def _placed(pages: dict[str, int], places: dict[str, int]) -> tuple[tuple[int, int], ...]:
    return tuple((places[name], version) for name, version in pages.items())


def _undominated(states: set[_State], steps: list[_Step]) -> set[_State]:
    """Of states that differ only in steps that need never happen, those that used up the fewest."""
    if len(states) < 2 or not any(steps[number].optional for had, _ in states for number in had):
        return states
    best: dict[_State, list[frozenset[int]]] = defaultdict(list)
    for had, versions in states:
        spent = frozenset(number for number in had if steps[number].optional)
        best[had - spent, versions].append(spent)
    return {
        (had | spent, versions)
        for (had, versions), all_spent in best.items()
        for spent in all_spent
        if not any(other < spent for other in all_spent)
    }
