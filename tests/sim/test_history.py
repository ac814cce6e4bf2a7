"""The linearizability checker: histories written by hand, and random ones against trying every order."""

from collections.abc import Iterator
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dws.history import (
    BATCH_WHOLE,
    LINEARIZABLE,
    NEVER_WRITTEN,
    TOLD_FAILED,
    VERSION_REUSED,
    Verdict,
    check,
)
from dws.operations import BadHistory, Operation, decode_lines, encode


def get(a: float, b: float, **pages: int) -> Operation:
    return Operation("get", "r", a, b, "ok", reads=pages)


def put(a: float, b: float | None, seen: dict[str, int] | None = None, **pages: int) -> Operation:
    return Operation("put", "w", a, b, "ok" if b is not None else "unknown", seen or {}, pages)


def remove(a: float, b: float | None, *names: str) -> Operation:
    outcome = "ok" if b is not None else "unknown"
    return Operation("remove", "w", a, b, outcome, writes=dict.fromkeys(names, 0))


def failed(a: float, b: float, **pages: int) -> Operation:
    return Operation("put", "w", a, b, "failed", writes=pages)


def conflict(a: float, b: float, unlike: dict[str, int], **pages: int) -> Operation:
    return Operation("put", "w", a, b, "failed", writes=pages, unlike=unlike)


GOOD = {
    "nothing": [],
    "absent, put, read": [get(0, 1, x=0), put(2, 3, x=5), get(4, 5, x=5)],
    "a read during a put sees either": [put(1, 9, x=5), get(2, 3, x=0), get(4, 5, x=5), get(6, 7, x=5)],
    "two puts at once, either last": [put(0, 9, x=5), put(0, 9, x=6), get(10, 11, x=5)],
    "an unread put between": [put(0, 1, x=5), put(2, 6, x=6), put(3, 5, x=7), get(7, 8, x=7)],
    "touching times may be either way": [put(0, 1, x=5), get(1, 2, x=0)],
    "removed": [put(0, 1, x=5), remove(2, 3, "x"), get(4, 5, x=0), put(6, 7, x=6), get(8, 9, x=6)],
    "an unknown put that happened, late": [
        put(0, 1, x=5), put(2, None, x=6), get(3, 4, x=5), get(5, 6, x=5), get(7, 8, x=6),
    ],
    "an unknown put that never happened": [put(0, 1, x=5), put(2, None, x=6), get(3, 99, x=5)],
    "an unknown removal that happened": [put(0, 1, x=5), remove(2, None, "x"), get(3, 4, x=0)],
    "several unknown removals": [
        put(0, 1, x=5), remove(2, None, "x"), remove(2, None, "x"), get(3, 4, x=0), put(5, 6, x=6),
        get(7, 8, x=6), get(9, 10, x=0),
    ],
    "a put on a condition": [put(0, 1, x=5), put(2, 3, {"x": 5}, x=6), get(4, 5, x=6)],
    "of two on one condition, one is told": [
        put(0, 1, x=5), put(2, 9, {"x": 5}, x=6), conflict(3, 8, {"x": 5}, x=7), get(10, 11, x=6),
    ],
    "a conflict with a put that nobody knows of": [
        put(0, 1, x=5), put(2, None, x=6), conflict(3, 4, {"x": 5}, x=7),
    ],
    "a conflict with a put that nobody saw": [
        put(0, 9, x=5), put(0, 9, x=6), conflict(1, 8, {"x": 0}, x=7), get(10, 11, x=5),
    ],
    "a conflict with a put that nobody saw, after a removal at the same time": [
        remove(0, 3, "x"), put(1, 2, x=5), conflict(4, 5, {"x": 0}, x=7),
    ],
    "failed, and never seen": [put(0, 1, x=5), failed(2, 3, x=6), get(4, 5, x=5)],
    "a batch as a whole": [put(0, 9, x=5, y=5), get(1, 2, x=0, y=0), get(3, 4, x=5, y=5)],
    "a get among two batches": [
        put(0, 9, x=5, y=5), put(0, 9, y=6, z=6), get(10, 11, x=5, y=5, z=6),
    ],
    "a page skipped as it was": [put(0, 1, x=5), put(2, 3, {"x": 5}, y=6), get(4, 5, x=5, y=6)],
}  # fmt: skip

BAD = {
    "an acknowledged put is lost": (LINEARIZABLE, [put(0, 1, x=5), get(2, 3, x=0)]),
    "an overwritten version returns": (
        LINEARIZABLE, [put(0, 1, x=5), put(2, 3, x=6), get(4, 5, x=6), get(6, 7, x=5)],
    ),
    "an acknowledged put that nobody saw is lost": (
        LINEARIZABLE, [put(0, 1, x=5), put(2, 3, x=6), get(4, 5, x=5)],
    ),
    "two readers disagree on the order": (
        LINEARIZABLE, [put(0, 9, x=5), put(0, 9, x=6), get(1, 2, x=5), get(3, 4, x=6), get(5, 6, x=5)],
    ),
    "seen before it was put": (LINEARIZABLE, [get(0, 1, x=5), put(2, 3, x=5)]),
    "seen before an unknown put": (LINEARIZABLE, [get(0, 1, x=5), put(2, None, x=5)]),
    "a removed page is revived": (
        LINEARIZABLE, [put(0, 1, x=5), remove(2, 3, "x"), get(4, 5, x=5)],
    ),
    "seen, then not, though only one removal": (
        LINEARIZABLE,
        [put(0, 1, x=5), remove(2, None, "x"), get(3, 4, x=0), put(5, 6, x=6), get(7, 8, x=0)],
    ),
    "an unknown put, seen and forgotten": (
        LINEARIZABLE, [put(0, 1, x=5), put(2, None, x=6), get(3, 4, x=6), get(5, 6, x=5)],
    ),
    "a condition that does not hold": (
        LINEARIZABLE, [put(0, 1, x=5), put(2, 3, x=6), put(4, 5, {"x": 5}, x=7)],
    ),
    "two on one condition": (
        LINEARIZABLE, [put(0, 1, x=5), put(2, 9, {"x": 5}, x=6), put(3, 8, {"x": 5}, x=7)],
    ),
    "a conflict without a reason": (LINEARIZABLE, [put(0, 1, x=5), conflict(2, 3, {"x": 5}, x=7)]),
    "told failed, and seen": (TOLD_FAILED, [put(0, 1, x=5), failed(2, 3, x=6), get(4, 5, x=6)]),
    "told of a conflict, and seen": (
        TOLD_FAILED, [put(0, 1, x=5), conflict(2, 3, {"x": 0}, x=6), get(4, 5, x=6)],
    ),
    "a version of nobody": (NEVER_WRITTEN, [put(0, 1, x=5), get(2, 3, x=6)]),
    "one version for two puts": (VERSION_REUSED, [put(0, 1, x=5), put(2, 3, x=5)]),
    "half a batch": (BATCH_WHOLE, [put(0, 9, x=5, y=5), get(1, 8, x=5, y=0)]),
    "two gets see two batches in two orders": (
        BATCH_WHOLE, [put(0, 9, x=5, y=5), put(0, 9, x=6, y=6), get(10, 11, x=5, y=6)],
    ),
    "a skipped page was another by then": (
        BATCH_WHOLE,
        [put(0, 9, x=5, z=5), put(0, 9, {"x": 5}, y=6), get(1, 2, y=6, z=0), get(3, 4, z=5)],
    ),
    "half a removal": (
        BATCH_WHOLE, [put(0, 1, x=5, y=5), remove(2, 9, "x", "y"), get(3, 4, x=0, y=5)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_what_can_have_happened_is_passed(case: str) -> None:
    assert check(GOOD[case]) == Verdict([], [])


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_have_happened_is_found_and_named(case: str) -> None:
    rule, operations = BAD[case]
    verdict = check(operations)
    assert [violation.rule for violation in verdict.violations] == [rule]
    violation = verdict.violations[0]
    assert violation.operations[0] in operations
    assert str(violation).startswith(f"{rule}: ")


def test_pages_that_were_there_before() -> None:
    assert not check([get(0, 1, x=5)], {"x": 5}).violations
    assert check([get(0, 1, x=0)], {"x": 5}).violations
    assert check([get(0, 1, y=5)], {"x": 5}).violations


def test_each_page_is_told_of() -> None:
    broken = [put(0, 1, x=5, y=5, z=5), get(2, 3, x=0, y=5), get(2, 3, z=0), put(0, 1, q=1), get(2, 3, q=0)]
    names = [violation.names for violation in check(broken).violations]
    assert sorted(names) == [["q"], ["x"], ["z"]]


def test_too_much_work_is_told_as_undecided_and_pages_are_judged_alone() -> None:
    rng = Random(1)
    crowd = [put(0, 10, **{rng.choice("pqr"): n, rng.choice("stu"): n}) for n in range(1, 12)]
    ends = [get(11 + n, 12 + n, **{name: 0}) for n, name in enumerate("pqrstu")]
    verdict = check(crowd + ends, states_max=50)
    assert len(verdict.undecided[0]) == 6
    assert {violation.rule for violation in verdict.violations} == {LINEARIZABLE}


def test_a_page_that_is_too_much_work_even_alone_is_told_as_undecided() -> None:
    pages = {"x": 1, "y": 1}
    crowd = [put(0, 10, **pages), *(put(0, 10, x=n, y=n) for n in range(2, 6)), get(11, 12, x=0, y=0)]
    verdict = check(crowd, states_max=1)
    assert sorted(verdict.undecided) == [["x"], ["x", "y"], ["y"]]
    assert not verdict.violations


# -- the recorded form ---------------------------------------------------------------------


def test_what_is_recorded_is_read_back() -> None:
    operations = [*GOOD["several unknown removals"], *BAD["told of a conflict, and seen"][1]]
    lines = [encode(operation) for operation in operations]
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)
    assert list(decode_lines([*lines, b"\n"])) == operations


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "line 2"),
        (b'["get","c",1,2,"ok",{"/a":"b"}]', "line 2: Expected `int`"),
        (b'["get","c",1,2,"perhaps"]', "line 2: Invalid enum value 'perhaps'"),
        (b'["get","c",1,null,"ok"]', "line 2: an operation with an outcome returned"),
        (b'["get","c",1,2,"ok",{"/a":-5}]', "line 2: a version is a number from 0 up"),
        (b'["get","c",2,1,"ok"]', "line 2: it returned before it was invoked"),
    ],
)
def test_a_line_that_is_none_is_named(line: bytes, told: str) -> None:
    with pytest.raises(BadHistory, match=told):
        list(decode_lines([encode(get(0, 1)), line]))


def test_a_history_that_cannot_be_is_refused() -> None:
    with pytest.raises(BadHistory, match="before it was invoked"):
        check([get(2, 1, x=0)])


# -- against trying every order ---------------------------------------------------------------


def all_orders(operations: list[Operation]) -> Iterator[list[Operation]]:
    """Orders of what happened: all that was acknowledged or told, any of the rest."""
    effective = [o for o in operations if o.outcome != "failed" or o.unlike]
    sure = [o for o in effective if o.outcome != "unknown"]
    unsure = [o for o in effective if o.outcome == "unknown"]
    for chosen in range(1 << len(unsure)):
        happened = sure + [o for bit, o in enumerate(unsure) if chosen >> bit & 1]
        yield from (list(order) for order in permutations(happened))


def explains(order: list[Operation]) -> bool:
    pages: dict[str, int] = {}
    latest = 0.0
    for operation in order:
        latest = max(latest, operation.invoked_s)
        if operation.returned_s is not None and operation.returned_s < latest:
            return False
        if any(pages.get(name, 0) != version for name, version in operation.reads.items()):
            return False
        unlike = operation.unlike.items()
        if unlike and not any(pages.get(name, 0) != version for name, version in unlike):
            return False
        if operation.outcome != "failed":
            pages.update(operation.writes)
    return True


def is_possible(operations: list[Operation]) -> bool:
    return any(explains(order) for order in all_orders(operations))


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Few operations on two pages, close to what can happen: they are made of an order that did, their
    times drawn around it, and then one or two answers are changed."""
    pages = {"x": 0, "y": 0}
    operations = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        names = draw(st.sampled_from([["x"], ["y"], ["x", "y"]]))
        begins = number + draw(st.integers(-3, 0)) + 0.0
        ends = number + draw(st.integers(0, 3)) + 0.5
        kind = draw(st.sampled_from(["get", "put", "put-if", "remove", "conflict", "lost"]))
        seen = {name: pages[name] for name in names}
        if kind == "get":
            operations.append(Operation("get", "c", begins, ends, "ok", reads=seen))
        elif kind == "conflict":
            wrong = draw(st.integers(0, number))
            unlike = {name: wrong for name in names if pages[name] != wrong}
            if unlike:
                operations.append(Operation("put", "c", begins, ends, "failed", unlike=unlike))
        else:
            writes = dict.fromkeys(names, 0 if kind == "remove" else number)
            reads = seen if kind == "put-if" else {}
            known = draw(st.booleans()) or draw(st.booleans())
            end, outcome = (ends, "ok") if known and kind != "lost" else (None, "unknown")
            operations.append(Operation("put", "c", begins, end, outcome, reads, writes))
            if kind != "lost":
                pages |= writes
    for _ in range(draw(st.integers(0, 2))):
        if operations:
            place = draw(st.integers(0, len(operations) - 1))
            changed = {name: draw(st.integers(0, 6)) for name in operations[place].reads}
            operations[place] = replace(operations[place], reads=changed)
    return operations


@settings(max_examples=500, deadline=None)
@given(histories())
def test_it_agrees_with_trying_every_order(operations: list[Operation]) -> None:
    verdict = check(operations)
    assert not verdict.undecided
    assert bool(verdict.violations) == (not is_possible(operations))


# -- long ones ----------------------------------------------------------------------------------


def long_history(
    rng: Random, clients: int, count: int, names: list[str], together: int, conflicts: float
) -> list[Operation]:
    """What a register that is linearizable answers: each operation has its moment inside its time."""
    moments = []
    for client in range(clients):
        clock = rng.random()
        for _ in range(count // clients):
            begins = clock
            ends = begins + rng.expovariate(1)
            moments.append((rng.uniform(begins, ends), begins, ends, client))
            clock = ends + rng.expovariate(4)
    pages: dict[str, int] = {}
    before: dict[str, int] = {}
    operations = []
    for version, (_, begins, ends, client) in enumerate(sorted(moments), 1):
        some = rng.sample(names, rng.randint(1, together))
        seen = {name: pages.get(name, 0) for name in some}
        kind = rng.choices(["get", "put", "put-if", "remove", "conflict"], [10, 6, 2, 1, conflicts])[0]
        who = f"client-{client}"
        if kind == "get":
            operations.append(Operation("get", who, begins, ends, "ok", reads=seen))
        elif kind == "conflict":
            wrong = {some[0]: before.get(some[0], 10**9)}
            if wrong != {some[0]: seen[some[0]]}:
                operations.append(Operation("put", who, begins, ends, "failed", unlike=wrong))
        else:
            writes = dict.fromkeys(some, 0 if kind == "remove" else version)
            unknown = rng.random() < 0.02
            end, outcome = (None, "unknown") if unknown else (ends, "ok")
            reads = seen if kind == "put-if" else {}
            operations.append(
                Operation("remove" if kind == "remove" else "put", who, begins, end, outcome, reads, writes)
            )
            if not unknown or rng.random() < 0.5:
                before |= seen
                pages |= writes
    return operations


@pytest.mark.parametrize(
    ("clients", "count", "pages", "together"), [(8, 4000, 1, 1), (16, 6000, 200, 1), (6, 3000, 12, 3)]
)
def test_long_histories_are_decided(seed: int, clients: int, count: int, pages: int, together: int) -> None:
    rng = Random(seed)
    operations = long_history(rng, clients, count, [f"/{n}" for n in range(pages)], together, 0)
    assert check(operations) == Verdict([], [])
    # One answer from the past, and it is found.
    late = [o for o in operations if o.kind == "get" and o.invoked_s > 30 and o.outcome == "ok"]
    liar = rng.choice(late)
    name = next(iter(liar.reads))
    puts = [o for o in operations if o.outcome == "ok" and name in o.writes]
    past = [
        o
        for o in puts
        # Of a version that another one had replaced for certain when the liar asked.
        if o.writes[name] and any(o.returned_s < p.invoked_s < p.returned_s < liar.invoked_s for p in puts)
    ]
    if past:
        old = {**liar.reads, name: past[0].writes[name]}
        lied = [replace(o, reads=old) if o is liar else o for o in operations]
        assert check(lied).violations


@pytest.mark.parametrize(("clients", "pages", "together"), [(8, 1, 1), (16, 200, 1), (6, 12, 3)])
def test_refused_conditions_cost_decisions_never_truth(
    seed: int, clients: int, pages: int, together: int
) -> None:
    """Who was refused may have met any put of unknown outcome: the search may give up, and never lies."""
    operations = long_history(Random(seed), clients, 1000, [f"/{n}" for n in range(pages)], together, 1)
    assert check(operations, states_max=500).violations == []
