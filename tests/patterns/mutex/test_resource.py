"""The resource: numbers never fall, whatever comes in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns.errors import LocalError, RemoteError
from patterns.mutex import resource
from patterns.mutex.interface import FENCE_MAX
from patterns.mutex.resource import IN_USE, OPEN, TRANSITIONS, Resource

EVENTS = {
    "newer number": lambda made: made.use(made.highest + 1),
    "same number": lambda made: made.use(made.highest),
    "older number": lambda made: made.use(made.highest - 1),
    "done": lambda made: made.done(made.highest),
    "done by another": lambda made: made.done(made.highest - 1),
}


def in_state(state: str) -> Resource:
    made = Resource(highest=5)
    if state == IN_USE:
        assert made.use(6)
    assert made.state == state
    return made


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", [OPEN, IN_USE])
def test_the_table_is_what_the_resource_does(state: str, event: str) -> None:
    made = in_state(state)
    after = TRANSITIONS.get((state, event))
    made.counters.clear()
    assert EVENTS[event](made) == (after is not None)
    assert made.state == (after or state)
    assert made.counters[event if after else f"refused: {event}"] == 1
    made.check()


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_without_its_line_in_the_table_a_use_is_refused(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = in_state(pair[0])
    monkeypatch.delitem(resource.TRANSITIONS, pair)
    assert not EVENTS[pair[1]](made)


@given(st.lists(st.tuples(st.sampled_from(["use", "done"]), st.integers(1, 6))))
def test_it_agrees_with_a_list_of_all_that_was_accepted(calls: list[tuple[str, int]]) -> None:
    made = Resource()
    accepted: list[int] = []
    closed: set[int] = set()
    for call, fence in calls:
        if call == "use":
            expected = fence not in closed and all(fence >= earlier for earlier in accepted)
            assert made.use(fence) == expected
            if expected:
                accepted.append(fence)
        else:
            expected = bool(accepted) and fence == max(accepted) and fence not in closed
            assert made.done(fence) == expected
            if expected:
                closed.add(fence)
        made.check()
    assert accepted == sorted(accepted)


def test_what_an_old_holder_sends_after_the_new_one_is_refused_for_ever() -> None:
    made = Resource()
    assert made.use(1)
    assert made.use(2)
    assert not made.use(1)
    assert made.done(2)
    assert not made.use(1)
    assert not made.use(2)
    assert made.highest == 2


@pytest.mark.parametrize("fence", [0, -1, FENCE_MAX + 1])
def test_what_is_no_number_is_the_holders_fault_and_changes_nothing(fence: int) -> None:
    made = in_state(IN_USE)
    for call in (made.use, made.done):
        with pytest.raises(RemoteError) as raised:
            call(fence)
        assert raised.value.history == ("0x6 open --newer number--> in use",)
    assert made.use(6)


def test_a_highest_that_is_no_number_is_our_own_fault() -> None:
    with pytest.raises(LocalError):
        Resource(-1)
