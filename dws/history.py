"""Could what the clients saw have happened? Linearizability of a recorded history.

What lives here: the rules that a history can break, and the verdict on it. What
must not: the search for an order (linearization.py), how operations are recorded
(operations.py), sockets, clocks, files, and anything of a cluster's inside.

An operation is a moment between its question and its answer at which it saw
some pages (`reads`) and changed some (`writes`), all at once. The history is
good if there is an order of such moments in which everybody saw what was there.
A version names one put for ever; 0 stands for "there is no such page".

Pages that no operation connects are judged apart, which loses nothing (M. P.
Herlihy and J. M. Wing, "Linearizability", 1990: it is local).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from dws.linearization import Search, TooManyStatesError
from dws.operations import FAILED, OK, Operation, examine

#: Rules that a history can break.
LINEARIZABLE: Final = "linearizable"
BATCH_WHOLE: Final = "batch-whole"
TOLD_FAILED: Final = "told-failed"
NEVER_WRITTEN: Final = "never-written"
VERSION_REUSED: Final = "version-reused"

_SHOWN_MAX: Final = 12


class Violation(Struct):
    """A rule that the history breaks, and the operations that show it, the last one first."""

    rule: str
    names: list[str]
    text: str
    operations: list[Operation]

    def __str__(self) -> str:
        shown = [f"  {operation}" for operation in self.operations[:_SHOWN_MAX]]
        return "\n".join([f"{self.rule}: {self.text}", *shown])


class Verdict(Struct):
    """undecided: groups of pages that took more than the allowed work to judge as wholes. The pages of a
    group were judged each by itself; of a group of one page nothing is said."""

    violations: list[Violation]
    undecided: list[list[str]]


def check(
    operations: Iterable[Operation], initial: Mapping[str, int] | None = None, states_max: int = 5_000
) -> Verdict:
    """Judge a history.

    initial: the pages that there were before it; all others were absent.
    states_max: bound on the states looked at for one answer; over it, a group of pages is undecided.
    """
    found = list(operations)
    for operation in found:
        examine(operation, "a history")
    start = dict(initial or {})
    violations, kept = _origins(found, start)
    undecided = []
    for names, group in _groups(kept):
        try:
            broken = _search(names, group, start, states_max)
            if broken and len(names) > 1:
                alone, _ = _by_page(names, group, start, states_max)
                broken = alone or [_not_whole(broken[0])]
        except TooManyStatesError:
            undecided.append(names)
            broken = []
            if len(names) > 1:
                broken, unsure = _by_page(names, group, start, states_max)
                undecided += unsure
        violations += broken
    return Verdict(violations, undecided)


def _search(
    names: list[str], group: list[Operation], start: dict[str, int], states_max: int
) -> list[Violation]:
    found = Search(names, group, start, states_max).run()
    if found is None:
        return []
    listed = ", ".join(str(versions).replace(",)", ")") for versions in found.possible[:_SHOWN_MAX])
    text = (
        f"no order of operations explains what {found.operation.client} was answered at "
        f"{found.returned_s:.4f}; until then {', '.join(found.names)} could only be {listed}"
    )
    return [Violation(LINEARIZABLE, found.names, text, [found.operation, *found.near])]


def _not_whole(broken: Violation) -> Violation:
    text = f"each page alone could have been so, but not all at one moment: {broken.text}"
    return Violation(BATCH_WHOLE, broken.names, text, broken.operations)


def _by_page(
    names: list[str], group: list[Operation], start: dict[str, int], states_max: int
) -> tuple[list[Violation], list[list[str]]]:
    """The violations of each page looked at alone, as if no operation touched two; and pages for which that
    was too much work, too, a group each."""
    violations = []
    unsure = []
    touching: dict[str, list[Operation]] = {name: [] for name in names}
    for operation in group:
        for name in {**operation.reads, **operation.writes, **operation.unlike}:
            touching[name].append(_alone(operation, name))
    for name, alone in touching.items():
        try:
            violations += _search([name], alone, start, states_max)
        except TooManyStatesError:
            unsure.append([name])
    return violations, unsure


def _alone(operation: Operation, name: str) -> Operation:
    def only(pages: dict[str, int]) -> dict[str, int]:
        return {name: pages[name]} if name in pages else {}

    # Of several names one differed, and which one is not known.
    unlike = only(operation.unlike) if len(operation.unlike) == 1 else {}
    return replace(operation, reads=only(operation.reads), writes=only(operation.writes), unlike=unlike)


def _origins(operations: list[Operation], start: dict[str, int]) -> tuple[list[Violation], list[Operation]]:
    """Versions that were seen and cannot have been; and the operations that took effect or saw something,
    without that."""
    writers: dict[tuple[str, int], Operation] = {}
    violations = []
    kept = []
    for operation in operations:
        again = {
            (name, version): writers.setdefault((name, version), operation)
            for name, version in operation.writes.items()
            if version
        }
        reused = [(item, earlier) for item, earlier in again.items() if earlier is not operation]
        for (name, version), earlier in reused:
            text = f"version {version} of {name} was written twice"
            violations.append(Violation(VERSION_REUSED, [name], text, [operation, earlier]))
        if not reused and (operation.outcome != FAILED or operation.unlike):
            kept.append(operation)
    for place, operation in enumerate(kept):
        strange = [
            (item, writer)
            for item in operation.reads.items()
            if operation.outcome == OK and item[1] and start.get(item[0]) != item[1]
            if (writer := writers.get(item)) is None or writer.outcome == FAILED
        ]
        for (name, version), writer in strange:
            if writer is None:
                text = f"version {version} of {name}, which nobody wrote, was seen"
                violations.append(Violation(NEVER_WRITTEN, [name], text, [operation]))
            else:
                text = f"version {version} of {name} was seen, and who put it was told that it failed"
                violations.append(Violation(TOLD_FAILED, [name], text, [operation, writer]))
        if strange:
            wrong = {item for item, _ in strange}
            reads = {
                name: version for name, version in operation.reads.items() if (name, version) not in wrong
            }
            kept[place] = replace(operation, reads=reads)
    return violations, kept


def _groups(operations: list[Operation]) -> Iterator[tuple[list[str], list[Operation]]]:
    """Pages that operations connect, with the operations."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    touched = [list({**each.reads, **each.writes, **each.unlike}) for each in operations]
    for names in touched:
        for name in names[1:]:
            leader[find(name)] = find(names[0])
    groups: dict[str, list[Operation]] = defaultdict(list)
    members: dict[str, set[str]] = defaultdict(set)
    for operation, names in zip(operations, touched, strict=True):
        if names:
            groups[find(names[0])].append(operation)
            members[find(names[0])].update(names)
    for first in sorted(groups):
        yield sorted(members[first]), groups[first]
