"""Transfers: every byte handed on once and in order, never more asked for than the credit allows.

The property test compares a transfer with a model that keeps the state of each chunk
of the object in a list and looks through all of it at every step. The others move
bytes from sources that fail and answer in any order.
"""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns import transfer
from patterns.errors import LocalError, PatternError, RemoteError
from patterns.transfer import ARRIVED, HANDED_ON, ON_THE_WAY, PAST_THE_END, TRANSITIONS, WANTED, Transfer

CHUNK = 10


# The table of states: what becomes of the chunk at 10 of an object of 25 bytes or of 10.


def to_wanted(moving: Transfer) -> None:
    moving.ask()
    moving.fail(10)


def to_on_the_way(moving: Transfer) -> None:
    moving.ask()


def to_arrived(moving: Transfer) -> None:
    moving.ask()
    moving.arrive(10)


def to_past_the_end(moving: Transfer) -> None:
    moving.ask()
    moving.ends_at(10)


TO_STATE: dict[str, Callable[[Transfer], None]] = {
    WANTED: to_wanted,
    ON_THE_WAY: to_on_the_way,
    ARRIVED: to_arrived,
    PAST_THE_END: to_past_the_end,
}

EVENTS: dict[str, Callable[[Transfer], object]] = {
    "ask": lambda moving: moving.ask(),
    "fail": lambda moving: moving.fail(10),
    "arrive": lambda moving: moving.arrive(10),
    "all before arrived": lambda moving: moving.arrive(0),
    "end before it": lambda moving: moving.ends_at(10),
}


@pytest.mark.parametrize("pair", TRANSITIONS, ids=", ".join)
def test_every_transition_of_the_table_is_what_a_transfer_does(pair: tuple[str, str]) -> None:
    moving = Transfer(None, CHUNK, 3 * CHUNK)
    TO_STATE[pair[0]](moving)
    moving.check()
    assert moving._state(10) == pair[0]
    EVENTS[pair[1]](moving)
    moving.check()
    assert moving._state(10) == TRANSITIONS[pair]


@pytest.mark.parametrize("pair", TRANSITIONS, ids=", ".join)
def test_without_its_line_in_the_table_a_transition_cannot_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Transfer(None, CHUNK, 3 * CHUNK)
    TO_STATE[pair[0]](moving)
    monkeypatch.delitem(transfer.TRANSITIONS, pair)
    with pytest.raises(PatternError):
        EVENTS[pair[1]](moving)


@pytest.mark.parametrize("event", ["fail", "arrive"])
@pytest.mark.parametrize("state", [WANTED, ARRIVED, HANDED_ON])
def test_a_chunk_that_is_not_on_the_way_neither_comes_nor_fails(state: str, event: str) -> None:
    assert (state, event) not in TRANSITIONS
    moving = Transfer(None, CHUNK, 3 * CHUNK)
    if state == HANDED_ON:
        to_arrived(moving)
        assert moving.arrive(0) == [0, 10]
    else:
        TO_STATE[state](moving)
    assert moving._state(10) == state
    with pytest.raises(RemoteError) as raised:
        EVENTS[event](moving)
    assert raised.value.history
    moving.check()
    assert moving._state(10) == state


# Asking


def test_chunks_are_asked_for_up_to_the_credit() -> None:
    moving = Transfer(100, CHUNK, 3 * CHUNK)
    assert moving.ask() == [(0, 10), (10, 10), (20, 10)]
    assert moving.outstanding == 3
    assert moving.ask() == []
    moving.check()


def test_credit_returns_when_chunks_are_handed_on_not_when_they_arrive() -> None:
    moving = Transfer(100, CHUNK, 3 * CHUNK)
    moving.ask()
    assert moving.arrive(10) == []
    assert moving.arrive(20) == []
    assert moving.ask() == []
    assert moving.arrive(0) == [0, 10, 20]
    assert moving.ask() == [(30, 10), (40, 10), (50, 10)]


def test_the_last_chunk_is_as_short_as_the_object_leaves_it() -> None:
    moving = Transfer(25, CHUNK, 100)
    assert moving.ask() == [(0, 10), (10, 10), (20, 5)]
    for offset in (0, 10, 20):
        assert not moving.done
        moving.arrive(offset)
    assert moving.done
    assert moving.position == 25


def test_the_missing_bytes_of_a_short_last_chunk_need_no_credit() -> None:
    moving = Transfer(25, CHUNK, 25)
    assert moving.ask() == [(0, 10), (10, 10), (20, 5)]
    moving.check()


def test_an_empty_object_is_done_at_once() -> None:
    moving = Transfer(0, CHUNK, CHUNK)
    assert moving.done
    assert moving.ask() == []
    moving.check()


def test_failed_chunks_are_asked_for_before_new_ones_and_need_no_new_credit() -> None:
    moving = Transfer(100, CHUNK, 3 * CHUNK)
    moving.ask(limit=2)
    moving.fail(10)
    moving.fail(0)
    assert moving.ask(limit=2) == [(10, 10), (0, 10)]
    assert moving.ask() == [(20, 10)]
    moving.check()


def test_asking_for_at_most_so_many_asks_for_the_rest_later() -> None:
    moving = Transfer(100, CHUNK, 5 * CHUNK)
    assert moving.ask(limit=0) == []
    assert [len(moving.ask(limit=2)) for _ in range(4)] == [2, 2, 1, 0]


# Resuming


def test_a_transfer_can_start_and_resume_at_any_chunks_edge() -> None:
    moving = Transfer(25, CHUNK, 100, start=10)
    assert moving.ask() == [(10, 10), (20, 5)]
    moving.arrive(20)
    moving.resume(20)
    moving.check()
    assert moving.ask() == [(20, 5)]
    moving.resume(0)
    assert moving.ask() == [(0, 10), (10, 10), (20, 5)]
    moving.check()


def test_a_transfer_resumed_at_the_end_is_done() -> None:
    moving = Transfer(25, CHUNK, 100)
    moving.ask()
    moving.resume(25)
    assert moving.done
    assert moving.ask() == []
    moving.check()


def test_what_was_on_the_way_before_a_resume_is_not_awaited_after_it() -> None:
    moving = Transfer(100, CHUNK, 3 * CHUNK)
    moving.ask()
    moving.resume(50)
    with pytest.raises(RemoteError):
        moving.arrive(0)
    moving.check()


@pytest.mark.parametrize("offset", [-10, 5, 30, 1 << 70])
def test_a_peer_that_wants_to_resume_where_no_chunk_begins_is_at_fault(offset: int) -> None:
    moving = Transfer(25, CHUNK, 100)
    moving.ask()
    with pytest.raises(RemoteError) as raised:
        moving.resume(offset)
    assert raised.value.history
    moving.check()
    assert moving.arrive(0) == [0]


# An end that is told only on the way


def test_chunks_asked_for_past_the_end_are_let_go() -> None:
    moving = Transfer(None, CHUNK, 4 * CHUNK)
    assert moving.ask() == [(0, 10), (10, 10), (20, 10), (30, 10)]
    moving.fail(30)
    moving.ends_at(15)
    moving.check()
    assert moving.outstanding == 2
    assert moving.ask() == []
    assert moving.arrive(20) == []
    moving.fail(30)
    assert moving.arrive(0) == [0]
    assert moving.arrive(10) == [10]
    assert (moving.done, moving.position) == (True, 15)


def test_the_last_chunk_may_arrive_before_the_end_is_known() -> None:
    moving = Transfer(None, CHUNK, 4 * CHUNK)
    moving.ask(limit=2)
    moving.arrive(10)
    moving.ends_at(15)
    assert moving.arrive(0) == [0, 10]
    assert moving.position == 15


def test_an_end_before_what_was_handed_on_or_other_than_known_is_the_callers_fault() -> None:
    moving = Transfer(None, CHUNK, 4 * CHUNK)
    moving.ask()
    moving.arrive(0)
    with pytest.raises(LocalError) as raised:
        moving.ends_at(9)
    assert raised.value.history
    moving.ends_at(15)
    moving.ends_at(15)
    with pytest.raises(LocalError):
        moving.ends_at(25)
    moving.check()
    assert moving.size == 15


# Hostile and careless callers


@pytest.mark.parametrize("offset", [-10, 3, 30, 40, 1 << 70])
def test_a_chunk_that_nobody_asked_for_leaves_the_transfer_as_it_was(offset: int) -> None:
    moving = Transfer(100, CHUNK, 3 * CHUNK)
    moving.ask()
    with pytest.raises(RemoteError):
        moving.arrive(offset)
    with pytest.raises(RemoteError):
        moving.fail(offset)
    moving.check()
    assert moving.arrive(0) == [0]


@pytest.mark.parametrize(
    ("size", "chunk_bytes", "credit_bytes", "start"),
    [(1, 0, 1, 0), (1, 10, 9, 0), (100, 10, 10, 5), (100, 10, 10, -10), (15, 10, 10, 20), (-1, 10, 10, 0)],
)
def test_figures_that_contradict_each_other_are_the_callers_fault(
    size: int, chunk_bytes: int, credit_bytes: int, start: int
) -> None:
    with pytest.raises(LocalError):
        Transfer(size, chunk_bytes, credit_bytes, start)


# Against a list of all chunks


class Model:
    """The state of every chunk in a list; each question is answered by looking through all of it."""

    def __init__(self, size: int, credit_bytes: int) -> None:
        self.size, self.credit_bytes = size, credit_bytes
        self.edges = [(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]
        self.begin(0)

    def begin(self, offset: int) -> None:
        self.states = [HANDED_ON if start < offset else WANTED for start, _ in self.edges]
        self.failed: list[int] = []

    def position(self) -> int:
        waiting = [index for index, state in enumerate(self.states) if state != HANDED_ON]
        return self.edges[waiting[0]][0] if waiting else self.size

    def ask(self, limit: int) -> list[tuple[int, int]]:
        never_asked = [
            index for index, state in enumerate(self.states) if state == WANTED and index not in self.failed
        ]
        affordable = [i for i in never_asked if self.edges[i][1] - self.position() <= self.credit_bytes]
        asked = (self.failed + affordable)[:limit]
        self.failed = [index for index in self.failed if index not in asked]
        for index in asked:
            self.states[index] = ON_THE_WAY
        return [(self.edges[index][0], self.edges[index][1] - self.edges[index][0]) for index in asked]

    def on_the_way(self) -> list[int]:
        return [index for index, state in enumerate(self.states) if state == ON_THE_WAY]

    def arrive(self, index: int) -> list[int]:
        self.states[index] = ARRIVED
        ready = []
        for each, state in enumerate(self.states):
            if state not in (ARRIVED, HANDED_ON):
                break
            if state == ARRIVED:
                ready.append(self.edges[each][0])
                self.states[each] = HANDED_ON
        return ready

    def fail(self, index: int) -> None:
        self.states[index] = WANTED
        self.failed.append(index)


@given(st.data())
def test_a_transfer_does_what_a_list_of_all_chunks_would(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 8 * CHUNK))
    credit_bytes = data.draw(st.integers(CHUNK, 5 * CHUNK))
    moving, model = Transfer(size, CHUNK, credit_bytes), Model(size, credit_bytes)
    kinds = st.sampled_from(["ask", "ask", "ask", "arrive", "arrive", "arrive", "fail", "resume"])
    for kind in data.draw(st.lists(kinds, min_size=15, max_size=60)):
        on_the_way = model.on_the_way()
        if kind == "ask":
            limit = data.draw(st.integers(0, 5))
            assert moving.ask(limit) == model.ask(limit)
        elif kind == "resume":
            offset = data.draw(st.integers(0, size // CHUNK)) * CHUNK
            moving.resume(offset)
            model.begin(offset)
        elif on_the_way:
            index = data.draw(st.sampled_from(on_the_way))
            if kind == "arrive":
                assert moving.arrive(index * CHUNK) == model.arrive(index)
            else:
                moving.fail(index * CHUNK)
                model.fail(index)
        moving.check()
        assert moving.position == model.position()
        assert moving.done == (model.position() == size)
        assert moving.outstanding == len(model.on_the_way())
        states = [moving._state(start) for start, _ in model.edges]
        assert states == model.states


# Bytes


@given(
    content=st.binary(max_size=20 * CHUNK),
    size_known=st.booleans(),
    credit_chunks=st.integers(1, 6),
    failing=st.sampled_from([0, 0.3, 0.7]),
    random=st.randoms(use_true_random=True),
)
def test_each_byte_is_handed_on_once_in_order_under_the_credit(
    content: bytes, size_known: bool, credit_chunks: int, failing: float, random: Random
) -> None:
    moving = Transfer(len(content) if size_known else None, CHUNK, credit_chunks * CHUNK)
    requested: list[int] = []
    arrived: dict[int, bytes] = {}
    received = b""
    while not moving.done:
        requested += [offset for offset, _ in moving.ask(limit=random.randint(0, 3))]
        if requested:
            offset = requested.pop(random.randrange(len(requested)))
            chunk = content[offset : offset + CHUNK]
            if random.random() < failing:
                moving.fail(offset)
            else:
                if len(chunk) < CHUNK:
                    moving.ends_at(len(content))  # as a source would say with its reply
                arrived[offset] = chunk
                for ready in moving.arrive(offset):
                    received += arrived.pop(ready)
        moving.check()
        assert all(offset + CHUNK <= len(received) + credit_chunks * CHUNK for offset in requested)
        assert moving.position == len(received)
    assert received == content
