"""Ricart and Agrawala: the table of states, the order of stamps, silence, starts anew."""

from collections.abc import Callable

import pytest

from patterns.errors import LocalError, RemoteError
from patterns.mutex import ricart_agrawala
from patterns.mutex.interface import HELD, IDLE, LOST, WAITING, Effect, Granted, Lost, Message, Send
from patterns.mutex.ricart_agrawala import REPLY, REQUEST, TRANSITIONS, WAIT, RicartAgrawala

A, B, C = 1, 2, 3
RETRY_S, SUSPECT_S = 1.0, 3.0


def member(me: int = A, members: tuple[int, ...] = (A, B, C), incarnation: int = 0) -> RicartAgrawala:
    return RicartAgrawala(me, members, incarnation, RETRY_S, SUSPECT_S)


def stamp(time: int, who: int, incarnation: int = 0) -> int:
    return time << 48 | incarnation << 16 | who


def ask(who: int, time: int, clock: int | None = None) -> Message:
    return Message(REQUEST, who, clock or time, stamp(time, who))


def reply(who: int, to: int, clock: int = 9) -> Message:
    return Message(REPLY, who, clock, to)


def hold_on(who: int) -> Message:
    return Message(WAIT, who, 1, stamp(1, A))


def sent(effects: list[Effect]) -> list[tuple[int, int, int]]:
    """(to, kind, stamp) of each message."""
    return [
        (effect.to, effect.message.kind, effect.message.fence)
        for effect in effects
        if isinstance(effect, Send)
    ]


def enter(made: RicartAgrawala, others: tuple[int, ...] = (B, C)) -> int:
    """Its stamp, once it is in."""
    mine = sent(made.request(0.0))[0][2]
    granted = [effect for other in others for effect in made.receive(reply(other, mine), 0.0)]
    assert granted == [Granted(mine, None)]
    return mine


TO_STATE: dict[str, Callable[[RicartAgrawala], object]] = {
    IDLE: lambda made: None,
    WAITING: lambda made: made.request(0.0),
    HELD: enter,
    LOST: lambda made: (enter(made), made.refused(0, 0.0)),
}
EVENTS: dict[str, Callable[[RicartAgrawala], object]] = {
    "request": lambda made: made.request(0.0),
    "reply": lambda made: made.receive(reply(B, stamp(1, A)), 0.0),
    "silence": lambda made: (made.receive(hold_on(C), 2.5), made.poll(1.0), made.poll(2.0), made.poll(3.0)),
    "nobody left to wait for": lambda made: [made.receive(reply(who, stamp(1, A)), 0.0) for who in (B, C)],
    "release": lambda made: made.release(0.0),
    "refused": lambda made: made.refused(0, 0.0),
}


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_every_transition_is_what_the_machine_does(pair: tuple[str, str]) -> None:
    made = member()
    TO_STATE[pair[0]](made)
    assert made.state == pair[0]
    EVENTS[pair[1]](made)
    assert made.state == TRANSITIONS[pair]
    made.check()


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_without_its_line_a_transition_cannot_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = member()
    TO_STATE[pair[0]](made)
    monkeypatch.delitem(ricart_agrawala.TRANSITIONS, pair)
    with pytest.raises(LocalError):
        EVENTS[pair[1]](made)


def test_it_asks_everybody_and_enters_when_all_have_replied() -> None:
    made = member()
    assert sent(made.request(0.0)) == [(B, REQUEST, stamp(1, A)), (C, REQUEST, stamp(1, A))]
    assert made.receive(reply(B, stamp(1, A)), 0.0) == []
    assert made.receive(reply(C, stamp(1, A)), 0.0) == [Granted(stamp(1, A), None)]
    assert made.wake_at() is None


def test_an_idle_member_replies_at_once_and_stamps_its_own_request_higher() -> None:
    made = member()
    assert sent(made.receive(ask(B, 7), 0.0)) == [(B, REPLY, stamp(7, B))]
    assert sent(made.request(0.0))[0][2] == stamp(8, A)


def test_a_holder_keeps_its_replies_back_until_it_is_through() -> None:
    made = member()
    enter(made)
    assert made.receive(ask(B, 12), 0.0) == []
    assert made.receive(ask(C, 11), 0.0) == []
    assert sent(made.release(0.0)) == [(B, REPLY, stamp(12, B)), (C, REPLY, stamp(11, C))]


@pytest.mark.parametrize(
    ("theirs", "yields"), [(stamp(1, 0), True), (stamp(1, B), False), (stamp(2, 0), False)]
)
def test_of_two_that_wait_the_lower_stamp_goes_first(theirs: int, yields: bool) -> None:
    made = member(members=(0, A, B))
    made.request(0.0)
    effects = made.receive(Message(REQUEST, theirs & 0xFFFF, 5, theirs), 0.0)
    assert sent(effects) == ([(theirs & 0xFFFF, REPLY, theirs)] if yields else [])


def test_requests_are_repeated_to_those_who_did_not_reply() -> None:
    made = member()
    made.request(0.0)
    made.receive(reply(B, stamp(1, A)), 0.5)
    assert made.wake_at() == RETRY_S
    assert sent(made.poll(1.0)) == [(C, REQUEST, stamp(1, A))]


def test_who_keeps_its_reply_back_says_so_when_asked_again() -> None:
    made = member()
    enter(made)
    made.receive(ask(B, 12), 0.0)
    assert sent(made.receive(ask(B, 12), 1.0)) == [(B, WAIT, stamp(12, B))]
    assert sent(made.release(2.0)) == [(B, REPLY, stamp(12, B))]


def test_who_says_wait_is_never_suspected() -> None:
    made = member(members=(A, B))
    made.request(0.0)
    for now in range(1, 20):
        assert sent(made.poll(float(now))) == [(B, REQUEST, stamp(1, A))]
        made.receive(Message(WAIT, B, 5, stamp(1, A)), now + 0.1)
    assert made.state == WAITING


def test_a_silent_member_is_passed_over_and_asked_again_next_time() -> None:
    made = member()
    made.request(0.0)
    made.receive(reply(B, stamp(1, A)), 0.5)
    made.poll(1.0)
    made.poll(2.0)
    assert made.poll(3.0) == [Granted(stamp(1, A), None)]
    made.release(3.0)
    assert [to for to, _, _ in sent(made.request(4.0))] == [B, C]  # but only B is waited for
    assert made.receive(reply(B, stamp(10, A), clock=10), 4.0) == [Granted(stamp(10, A), None)]


def test_a_member_that_slept_accuses_nobody() -> None:
    made = member()
    made.request(0.0)
    assert len(sent(made.poll(100.0))) == 2
    made.receive(reply(B, stamp(1, A)), 100.1)
    made.receive(reply(C, stamp(1, A)), 100.1)
    assert made.state == HELD
    assert made.counters["suspicions"] == 0


def test_a_suspect_that_asks_under_a_lower_stamp_is_waited_for_again() -> None:
    """It may enter now, with our own reply: we must not enter beside it."""
    made = member()
    made.receive(ask(B, 8), 0.0)
    made.request(0.0)
    for now in (1.0, 2.0):
        made.poll(now)
        made.receive(Message(WAIT, B, 9, stamp(9, A)), now)
    made.poll(3.0)  # C is passed over
    effects = made.receive(ask(C, 2), 3.1)
    assert sent(effects) == [(C, REPLY, stamp(2, C)), (C, REQUEST, stamp(9, A))]
    assert made.receive(reply(B, stamp(9, A)), 3.2) == []
    assert made.receive(reply(C, stamp(9, A)), 3.3) == [Granted(stamp(9, A), None)]


def test_giving_up_lets_the_others_go_on_and_late_replies_do_nothing() -> None:
    made = member()
    made.request(0.0)
    made.receive(ask(B, 5), 0.0)
    assert sent(made.release(0.1)) == [(B, REPLY, stamp(5, B))]
    assert made.receive(reply(C, stamp(1, A)), 0.2) == []
    assert made.counters["stale"] == 1
    made.request(0.3)
    assert made.receive(reply(C, stamp(1, A)), 0.4) == []
    assert made.state == WAITING


def test_a_refused_member_lets_go_at_once_and_asks_under_a_higher_stamp() -> None:
    made = member()
    mine = enter(made)
    made.receive(ask(B, 12), 0.0)
    effects = made.refused(stamp(30, C), 0.0)
    assert effects[0] == Lost(mine, "the resource has seen a higher number")
    assert sent(effects) == [(B, REPLY, stamp(12, B))]
    made.release(0.0)
    assert sent(made.request(0.0))[0][2] > stamp(30, C)


def test_a_number_that_is_no_stamp_is_our_own_fault() -> None:
    made = member()
    enter(made)
    with pytest.raises(LocalError):
        made.refused(1 << 127, 0.0)
    assert made.state == HELD


def test_a_group_of_one_enters_at_once() -> None:
    made = member(members=(A,))
    assert made.request(0.0) == [Granted(stamp(1, A), None)]


def test_a_new_life_makes_no_stamp_of_the_old_one_and_takes_none_of_its_replies() -> None:
    made = member(incarnation=1)
    assert sent(made.request(0.0))[0][2] == stamp(1, A, incarnation=1)
    assert made.receive(reply(B, stamp(1, A)), 0.0) == []
    assert made.counters["stale"] == 1


ILLEGAL = {
    "of a stranger": ask(7, 1),
    "of itself": ask(A, 1),
    "of another kind": Message(21, B, 5, stamp(1, A)),
    "a stamp ahead of its clock": ask(B, 9, clock=8),
    "a stamp without a time": Message(REQUEST, B, 5, B),
    "a clock over the bound": Message(REQUEST, B, 1 << 63, stamp(1, B)),
    "a request under another's stamp": Message(REQUEST, B, 5, stamp(1, C)),
    "a reply to what was never asked": reply(B, stamp(2, A)),
    "a reply to another's request": reply(B, stamp(1, C)),
    "a reply to a life to come": reply(B, stamp(1, A, incarnation=1)),
}


@pytest.mark.parametrize("message", ILLEGAL.values(), ids=ILLEGAL)
def test_what_no_correct_member_sends_is_a_remote_error(message: Message) -> None:
    made = member()
    made.request(0.0)
    with pytest.raises(RemoteError) as raised:
        made.receive(message, 0.0)
    assert raised.value.history
    made.receive(reply(B, stamp(1, A)), 0.0)
    assert made.receive(reply(C, stamp(1, A)), 0.0) == [Granted(stamp(1, A), None)]
