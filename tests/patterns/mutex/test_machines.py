"""What the three machines have in common: whose fault an error is; a peer's fault changes nothing."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns.errors import LocalError, RemoteError
from patterns.mutex import coordinator, ricart_agrawala, token_ring
from patterns.mutex.coordinator import Coordinator, Member
from patterns.mutex.group import ALGORITHMS, Timing, coordinator_of, member_of
from patterns.mutex.interface import FENCE_MAX, HELD, IDLE, LOST, WAITING, Granted, Lost, Message, Mutex, Send
from patterns.mutex.ricart_agrawala import RicartAgrawala
from patterns.mutex.token_ring import TokenRing

TIMING = Timing()
ME, MEMBERS = 1, (0, 1, 2)


def machine(algorithm: str) -> Mutex:
    return member_of(algorithm, ME, MEMBERS, incarnation=0, timing=TIMING, now=0.0)


def answers(made: Mutex, effects: list[Any]) -> list[Any]:
    """What the machine makes of everybody's consent."""
    granted: list[Any] = []
    if isinstance(made, Member):
        asked = next(effect.message for effect in effects if isinstance(effect, Send))
        granted += made.receive(Message(coordinator.GRANT, 3, asked.number, 1, 2.0), 0.0)
    elif isinstance(made, RicartAgrawala):
        for to, message in [effect for effect in effects if isinstance(effect, Send)]:
            granted += made.receive(Message(ricart_agrawala.REPLY, to, message.number, message.fence), 0.0)
    else:
        granted += made.receive(Message(token_ring.TOKEN, 0, fence=1 << 104, members=MEMBERS), 0.0)
    return granted


def in_state(algorithm: str, state: str) -> Mutex:
    made = machine(algorithm)
    if state != IDLE:
        effects = made.request(0.0)
        if state != WAITING:
            answers(made, effects)
            if state == LOST:
                made.refused(1 << 110, 0.0)
    assert made.state == state
    return made


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_request_is_granted_with_a_number_and_released(algorithm: str) -> None:
    made = machine(algorithm)
    granted = answers(made, made.request(0.0))
    assert [type(effect) for effect in granted] == [Granted]
    assert granted[0].fence > 0
    assert made.state == HELD
    made.release(0.1)
    assert made.state == IDLE
    made.check()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_grant_has_a_higher_number_also_after_a_refusal(algorithm: str) -> None:
    made = in_state(algorithm, HELD)
    highest = 1 << 110
    lost = made.refused(highest, 0.0)
    assert isinstance(lost[0], Lost)
    made.release(0.0)
    effects = made.request(0.0)
    if isinstance(made, Member):
        (to, asked) = effects[0]
        server = Coordinator(to, 0, 2.0, 0.1, 10.0, 0.0)
        grant = server.receive(asked, 0.0)[0].message
        assert made.receive(grant, 0.0)[0].fence > highest
    elif isinstance(made, RicartAgrawala):
        assert answers(made, effects)[0].fence > highest
    else:
        assert answers(made, effects) == []  # a token below it is refused here already
        assert made.counters["old tokens"] == 1


MISUSES: dict[str, tuple[str, Callable[[Mutex], object]]] = {
    "release while idle": (IDLE, lambda made: made.release(1.0)),
    "refused while idle": (IDLE, lambda made: made.refused(5, 1.0)),
    "request while waiting": (WAITING, lambda made: made.request(1.0)),
    "refused while waiting": (WAITING, lambda made: made.refused(5, 1.0)),
    "request while held": (HELD, lambda made: made.request(1.0)),
    "request while lost": (LOST, lambda made: made.request(1.0)),
    "refused while lost": (LOST, lambda made: made.refused(5, 1.0)),
}


@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_misuse_is_a_local_error_with_the_history(algorithm: str, misuse: str) -> None:
    state, call = MISUSES[misuse]
    made = in_state(algorithm, state)
    with pytest.raises(LocalError) as raised:
        call(made)
    assert bool(raised.value.history) == (state != IDLE)
    assert made.state == state
    made.check()


NUMBERS = st.one_of(
    st.integers(0, 5),
    st.integers(1 << 48, (1 << 48) + 5),
    st.integers(0, FENCE_MAX),
    st.integers(0, FENCE_MAX >> 24).map(lambda number: number << 24),
)
MESSAGES = st.builds(
    Message,
    st.sampled_from([1, 2, 3, 11, 12, 13, 21, 22, 23, 99]),
    st.integers(0, 4),
    NUMBERS,
    NUMBERS,
    st.floats(0, 10),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
)


def without_tallies(made: object) -> dict[str, object]:
    fields = deepcopy(vars(made))
    fields.pop("counters")
    fields.pop("_history")
    return fields


@pytest.mark.parametrize("state", [IDLE, WAITING, HELD, LOST])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(messages=st.lists(MESSAGES, max_size=10))
def test_whatever_a_peer_sends_the_machine_stays_whole(
    algorithm: str, state: str, messages: list[Message]
) -> None:
    made = in_state(algorithm, state)
    for now, message in enumerate(messages):
        before = without_tallies(made)
        try:
            made.receive(message, float(now))
        except RemoteError as error:
            assert without_tallies(made) == before
            assert bool(error.history) or made.state == IDLE
        made.check()


@given(messages=st.lists(MESSAGES, max_size=20))
def test_whatever_a_member_sends_the_coordinator_stays_whole(messages: list[Message]) -> None:
    made = coordinator_of(3, epoch=0, timing=TIMING, now=0.0)
    for now, message in enumerate(messages):
        before = without_tallies(made)
        try:
            made.receive(message, float(now))
        except RemoteError:
            assert without_tallies(made) == before
        made.check()
        made.poll(float(now))
        made.check()


BAD_SETTINGS: list[Callable[[], object]] = [
    lambda: Coordinator(-1, 0, 1, 0, 1, 0),
    lambda: Coordinator(1, -1, 1, 0, 1, 0),
    lambda: Coordinator(1, 0, 2, 0, 1, 0),
    lambda: Coordinator(1, 0, 1, -1, 1, 0),
    lambda: Coordinator(1, 0, 1, 0, 1, 0, queue_max=0),
    lambda: Member(1, 1, 0, 1),
    lambda: Member(1, 2, -1, 1),
    lambda: Member(1, 2, 0, 0),
    lambda: RicartAgrawala(1, [2, 3], 0, 1, 2),
    lambda: RicartAgrawala(1, [1, 1 << 16], 0, 1, 2),
    lambda: RicartAgrawala(1, range(1025), 0, 1, 2),
    lambda: RicartAgrawala(1, [1, 2], 1 << 32, 1, 2),
    lambda: RicartAgrawala(1, [1, 2], 0, 2, 2),
    lambda: TokenRing(1, [2, 3], 0, 1, 2, 1, 0),
    lambda: TokenRing(1, range(1025), 0, 1, 2, 1, 0),
    lambda: TokenRing(1, [1, 2], -1, 1, 2, 1, 0),
    lambda: TokenRing(1, [1, 2], 0, 2, 2, 1, 0),
    lambda: TokenRing(1, [1, 2], 0, 1, 2, 3, 0),
    lambda: TokenRing(1, [1, 2], 1 << 24, 1, 2, 1, 0),
]


@pytest.mark.parametrize("make", BAD_SETTINGS)
def test_bad_settings_are_our_own_fault(make: Callable[[], object]) -> None:
    with pytest.raises(LocalError):
        make()
