"""The token ring: both tables of states, passing, losing, searching, mending, two tokens."""

from collections.abc import Callable

import pytest

from patterns.errors import LocalError, RemoteError
from patterns.mutex import token_ring
from patterns.mutex.interface import HELD, IDLE, LOST, WAITING, Effect, Granted, Lost, Message, Send
from patterns.mutex.token_ring import (
    ANSWER,
    PROBE,
    RESTING,
    SEARCHING,
    TOKEN,
    TRANSITIONS,
    WATCH_TRANSITIONS,
    WATCHING,
    TokenRing,
)

A, B, C = 1, 2, 3
RING = (A, B, C)
REST_S, LOST_S, ANSWER_S = 0.5, 4.0, 1.0


def member(
    me: int = A, members: tuple[int, ...] = RING, incarnation: int = 0, rest_s: float = REST_S
) -> TokenRing:
    return TokenRing(me, members, incarnation, rest_s, LOST_S, ANSWER_S, now=0.0)


def number(generation: int, passes: int = 0, maker: int = A, incarnation: int = 0) -> int:
    return generation << 104 | maker << 88 | incarnation << 64 | passes << 24


def token(fence: int, sender: int = C, ring: tuple[int, ...] = RING) -> Message:
    return Message(TOKEN, sender, fence=fence, members=ring)


def probe(sender: int, search: int = 1, fence: int = 0) -> Message:
    return Message(PROBE, sender, search, fence)


def answer(sender: int, age_s: float, search: int = 1, fence: int = 0) -> Message:
    return Message(ANSWER, sender, search, fence, age_s)


def sent(effects: list[Effect]) -> list[tuple[int, int]]:
    """(to, kind) of each message."""
    return [(effect.to, effect.message.kind) for effect in effects if isinstance(effect, Send)]


PASS = 1 << 24
FIRST = number(1)
NEXT = FIRST + PASS

TO_STATE: dict[str, Callable[[TokenRing], object]] = {
    IDLE: lambda made: None,
    RESTING: lambda made: made.receive(token(FIRST), 0.0),
    WAITING: lambda made: made.request(0.0),
    HELD: lambda made: (made.request(0.0), made.receive(token(FIRST), 0.0)),
    LOST: lambda made: (made.request(0.0), made.receive(token(FIRST), 0.0), made.refused(0, 0.0)),
}
EVENTS: dict[str, Callable[[TokenRing], object]] = {
    "request": lambda made: made.request(0.0),
    "token": lambda made: made.receive(token(FIRST), 0.0),
    "pass": lambda made: made.poll(REST_S),
    "release": lambda made: made.release(0.0),
    "newer known": lambda made: made.receive(probe(B, fence=number(2)), 0.0),
    "refused": lambda made: made.refused(0, 0.0),
}


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_every_transition_is_what_the_machine_does(pair: tuple[str, str]) -> None:
    made = member()
    TO_STATE[pair[0]](made)
    assert made.state == pair[0]
    EVENTS[pair[1]](made)
    # A holder that releases passes the token on at once.
    assert made.state == (IDLE if pair == (HELD, "release") else TRANSITIONS[pair])
    made.check()


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_without_its_line_a_transition_cannot_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = member()
    TO_STATE[pair[0]](made)
    monkeypatch.delitem(token_ring.TRANSITIONS, pair)
    with pytest.raises(LocalError):
        EVENTS[pair[1]](made)


WATCH_TO_STATE: dict[str, Callable[[TokenRing], object]] = {
    WATCHING: lambda made: None,
    SEARCHING: lambda made: made.poll(LOST_S + ANSWER_S),
}
WATCH_EVENTS: dict[str, Callable[[TokenRing], object]] = {
    "silence": lambda made: made.poll(LOST_S + ANSWER_S),
    "heard of it": lambda made: made.receive(token(FIRST, sender=A), 5.0),
    "lower searches": lambda made: made.receive(probe(A), 5.0),
    "nobody has it": lambda made: made.poll(LOST_S + 3 * ANSWER_S),
}


@pytest.mark.parametrize("pair", WATCH_TRANSITIONS, ids=" ".join)
def test_every_transition_of_the_watch_is_what_it_does(pair: tuple[str, str]) -> None:
    made = member(B)
    WATCH_TO_STATE[pair[0]](made)
    assert made.watch == pair[0]
    WATCH_EVENTS[pair[1]](made)
    assert made.watch == WATCH_TRANSITIONS[pair]
    made.check()


@pytest.mark.parametrize("pair", WATCH_TRANSITIONS, ids=" ".join)
def test_without_its_line_the_watch_cannot_change(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = member(B)
    WATCH_TO_STATE[pair[0]](made)
    monkeypatch.delitem(token_ring.WATCH_TRANSITIONS, pair)
    with pytest.raises(KeyError):
        WATCH_EVENTS[pair[1]](made)


# Passing


def test_an_unwanted_token_rests_and_is_passed_on_under_the_next_number() -> None:
    made = member()
    assert made.receive(token(FIRST), 1.0) == []
    assert made.wake_at() == 1.0 + REST_S
    assert made.poll(1.4) == []
    assert made.poll(1.5) == [Send(B, token(NEXT, sender=A))]
    assert made.state == IDLE


def test_the_last_of_the_ring_passes_to_the_first() -> None:
    made = member(C, rest_s=0)
    assert made.receive(token(FIRST, sender=B), 0.0) == [Send(A, token(NEXT, sender=C))]


def test_a_waiter_enters_with_the_tokens_number_and_passes_it_on_when_through() -> None:
    made = member()
    made.request(0.0)
    assert made.receive(token(FIRST), 1.0) == [Granted(FIRST, None)]
    assert made.release(2.0) == [Send(B, token(NEXT, sender=A))]


def test_a_resting_token_is_there_at_once_but_only_one_entry_a_visit() -> None:
    made = member()
    made.receive(token(FIRST), 0.0)
    assert made.request(0.1) == [Granted(FIRST, None)]
    made.release(0.2)
    assert made.request(0.3) == []
    assert made.state == WAITING


def test_a_copy_of_a_token_that_was_here_is_dropped() -> None:
    made = member()
    made.receive(token(FIRST), 0.0)
    made.poll(REST_S)
    made.request(1.0)
    assert made.receive(token(FIRST), 1.0) == []
    assert made.counters["old tokens"] == 1
    assert made.state == WAITING


# Losing and mending


def test_a_token_that_nobody_has_seen_is_made_anew_for_those_that_answer() -> None:
    made = member()
    made.request(0.0)
    assert made.wake_at() == LOST_S
    assert sent(made.poll(LOST_S)) == [(B, PROBE), (C, PROBE)]
    assert made.receive(answer(B, LOST_S), 4.1) == []
    assert made.wake_at() == LOST_S + ANSWER_S
    assert made.poll(5.0) == [Send(C, probe(A, 2, FIRST)), Granted(FIRST, None)]  # C may yet come back
    assert made.release(5.1) == [Send(B, token(NEXT, sender=A, ring=(A, B)))]


def test_it_is_made_at_once_when_all_have_answered() -> None:
    made = member()
    made.request(0.0)
    made.poll(LOST_S)
    made.receive(answer(B, LOST_S), 4.1)
    assert made.receive(answer(C, LOST_S, fence=number(7)), 4.2) == [Granted(number(8), None)]


def test_who_knows_of_the_token_ends_the_search() -> None:
    made = member()
    made.poll(LOST_S)
    made.receive(answer(B, 1.0), 4.5)
    assert made.watch == WATCHING
    assert made.wake_at() == 3.5 + LOST_S  # from when B saw it
    assert made.poll(5.0) == []


@pytest.mark.parametrize(("state", "age_s"), [(RESTING, 0.0), (HELD, 0.0), (IDLE, 3.0)])
def test_a_probe_is_answered_with_the_tokens_age(state: str, age_s: float) -> None:
    made = member()
    TO_STATE[HELD if state == IDLE else state](made)
    if state == IDLE:
        made.release(0.0)
    (effect,) = made.receive(probe(B, 7), 3.0)
    assert effect == Send(B, answer(A, age_s, 7, FIRST))


def test_who_never_saw_it_does_not_claim_that_it_lives() -> None:
    made = member()
    (effect,) = made.receive(probe(B), 0.1)
    assert isinstance(effect, Send)
    assert effect.message.time_s >= LOST_S


def test_of_two_that_search_the_lower_goes_on() -> None:
    low, high = member(A), member(B)
    low.poll(LOST_S)
    high.poll(LOST_S + ANSWER_S)
    (to_high,) = low.receive(probe(B, 1), 5.1)
    (to_low,) = high.receive(probe(A, 1), 5.1)
    assert (low.watch, high.watch) == (SEARCHING, WATCHING)
    assert isinstance(to_high, Send)
    assert isinstance(to_low, Send)
    assert to_high.message.time_s == 0.0
    assert to_low.message.time_s >= LOST_S
    low.receive(to_low.message, 5.2)
    assert low.watch == SEARCHING


def test_who_was_left_out_and_is_heard_of_is_taken_in_again() -> None:
    made = member()
    made.request(0.0)
    made.receive(token(FIRST, sender=B, ring=(A, B)), 0.0)
    made.receive(answer(C, LOST_S), 0.1)
    assert made.release(0.2) == [Send(B, token(NEXT, sender=A))]


def test_the_tokens_holder_calls_those_left_out_now_and_then() -> None:
    made = member()
    made.request(0.0)
    assert sent(made.receive(token(FIRST, sender=B, ring=(A, B)), 0.0)) == [(C, PROBE)]
    assert made.poll(3.9) == []
    assert sent(made.poll(4.0)) == [(C, PROBE)]


def test_a_holder_that_hears_of_a_newer_token_loses_its_own() -> None:
    made = member()
    TO_STATE[HELD](made)
    effects = made.receive(probe(B, fence=number(2)), 1.0)
    assert effects[0] == Lost(FIRST, "a newer token was made")
    assert made.release(1.1) == []


def test_a_newer_token_that_comes_to_a_holder_goes_on_to_the_next() -> None:
    made = member()
    TO_STATE[HELD](made)
    newer = number(2, maker=C)
    assert made.receive(token(newer), 1.0) == [
        Lost(FIRST, "a newer token was made"), Send(B, token(newer + PASS, sender=A))
    ]  # fmt: skip
    assert made.state == LOST


def test_a_refused_token_is_dropped_and_the_next_one_is_above_the_number() -> None:
    made = member()
    TO_STATE[HELD](made)
    assert made.refused(number(5), 1.0) == [Lost(FIRST, "the resource has seen a higher number")]
    assert made.release(1.0) == []
    made.request(1.0)
    made.poll(1.0 + LOST_S)
    made.receive(answer(B, LOST_S), 5.1)
    assert made.receive(answer(C, LOST_S), 5.1) == [Granted(number(6), None)]


def test_alone_each_entry_still_has_its_own_number() -> None:
    made = member(members=(A,))
    made.poll(LOST_S)
    fences = []
    for now in (5.0, 6.0, 7.0):
        (granted,) = made.request(now)
        assert isinstance(granted, Granted)
        fences.append(granted.fence)
        assert made.release(now) == []
        made.check()
    assert fences == [FIRST, NEXT, NEXT + PASS]


def test_a_new_life_makes_no_token_of_the_old_one() -> None:
    made = member(members=(A,), incarnation=3)
    made.request(0.0)
    assert made.poll(LOST_S) == [Granted(number(1, incarnation=3) + 3, None)]


def test_a_copy_of_a_token_in_a_new_life_grants_another_number() -> None:
    old, new = member(), member(incarnation=1)
    fences = []
    for made in (old, new):
        made.request(0.0)
        (granted,) = made.receive(token(FIRST), 1.0)
        assert isinstance(granted, Granted)
        fences.append(granted.fence)
    assert fences == [FIRST, FIRST + 1]


def test_a_holder_is_not_taken_for_out_of_date_by_its_own_number() -> None:
    """A refused member has learned it of the resource, and tells it on."""
    holder, refused = member(incarnation=5), member(B)
    holder.request(0.0)
    (granted,) = holder.receive(token(FIRST), 1.0)
    assert isinstance(granted, Granted)
    refused.request(0.0)
    refused.receive(token(FIRST - PASS, sender=A), 0.0)
    refused.refused(granted.fence, 1.0)
    (effect,) = refused.receive(probe(A, 1, FIRST), 1.5)
    assert isinstance(effect, Send)
    assert holder.receive(effect.message._replace(number=5 << 32), 2.0) == []
    assert holder.state == HELD


ILLEGAL = {
    "of a stranger": probe(7),
    "of itself": probe(A),
    "of another kind": Message(11, B, 1, 1),
    "a token whose ring does not lead here": token(FIRST, ring=(B, C)),
    "a token whose ring lacks its sender": token(FIRST, ring=(A, B)),
    "a token for strangers": token(FIRST, ring=(A, B, C, 7)),
    "a token without a number": token(0),
    "an answer to no question": answer(B, 1.0, search=5),
    "a number over the bound": probe(B, fence=1 << 128),
    "a grant's number": token(FIRST + 1),
}


@pytest.mark.parametrize("message", ILLEGAL.values(), ids=ILLEGAL)
def test_what_no_correct_member_sends_is_a_remote_error(message: Message) -> None:
    made = member()
    made.request(0.0)
    with pytest.raises(RemoteError) as raised:
        made.receive(message, 0.0)
    assert raised.value.history
    assert made.receive(token(FIRST), 0.0) == [Granted(FIRST, None)]
