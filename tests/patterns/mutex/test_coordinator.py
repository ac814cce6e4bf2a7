"""The coordinator and his members: tables of states, leases, lost messages, whose fault an error is."""

from collections.abc import Callable

import pytest

from patterns.errors import LocalError, RemoteError
from patterns.mutex import coordinator
from patterns.mutex.coordinator import (
    COORDINATOR_TRANSITIONS,
    FREE,
    GRANT,
    RECOVERING,
    RELEASE,
    REQUEST,
    TAKEN,
    TRANSITIONS,
    Coordinator,
    Member,
)
from patterns.mutex.interface import (
    FENCE_MAX,
    HELD,
    IDLE,
    LOST,
    WAITING,
    Effect,
    Granted,
    Lost,
    Message,
    Send,
)

A, B, C, SERVER = 1, 2, 3, 9
LEASE_S, MARGIN_S, HELD_MAX_S, RETRY_S = 4.0, 1.0, 10.0, 1.0


def server(epoch: int = 0, queue_max: int = 10) -> Coordinator:
    return Coordinator(SERVER, epoch, LEASE_S, MARGIN_S, HELD_MAX_S, now=0.0, queue_max=queue_max)


def member(incarnation: int = 0) -> Member:
    return Member(A, SERVER, incarnation, RETRY_S)


def ask(who: int, number: int = 1, fence: int = 0) -> Message:
    return Message(REQUEST, who, number, fence)


def leave(who: int, number: int = 1, fence: int = 0) -> Message:
    return Message(RELEASE, who, number, fence)


def grant(fence: int, number: int = 1, lease_s: float = LEASE_S) -> Message:
    return Message(GRANT, SERVER, number, fence, lease_s)


def grants(effects: list[Effect]) -> list[tuple[int, int, int]]:
    """(member, number, fence) of each grant."""
    assert all(isinstance(effect, Send) and effect.message.kind == GRANT for effect in effects)
    return [(effect.to, effect.message.number, effect.message.fence) for effect in effects]  # type: ignore[union-attr]


# The tables of states

TO_STATE: dict[str, Callable[[Member], object]] = {
    IDLE: lambda made: None,
    WAITING: lambda made: made.request(0.0),
    HELD: lambda made: (made.request(0.0), made.receive(grant(1), 0.0)),
    LOST: lambda made: (made.request(0.0), made.receive(grant(1), 0.0), made.poll(LEASE_S)),
}
EVENTS: dict[str, Callable[[Member], object]] = {
    "request": lambda made: made.request(0.0),
    "grant": lambda made: made.receive(grant(1), 0.0),
    "renewal": lambda made: made.receive(grant(1), 0.0),
    "release": lambda made: made.release(0.0),
    "lease over": lambda made: made.poll(LEASE_S),
    "refused": lambda made: made.refused(7, 0.0),
}


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_every_transition_of_a_member_is_what_it_does(pair: tuple[str, str]) -> None:
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
    monkeypatch.delitem(coordinator.TRANSITIONS, pair)
    with pytest.raises(LocalError):
        EVENTS[pair[1]](made)


SERVER_TO_STATE: dict[str, Callable[[], Coordinator]] = {
    RECOVERING: lambda: server(epoch=1),
    FREE: server,
    TAKEN: lambda: taken(server()),
}
SERVER_EVENTS: dict[str, Callable[[Coordinator], object]] = {
    "old leases over": lambda made: made.poll(LEASE_S + MARGIN_S),
    "grant": lambda made: made.receive(ask(A), 0.0),
    "renewal": lambda made: made.receive(ask(A), 0.0),
    "release": lambda made: made.receive(leave(A), 0.0),
    "lease over": lambda made: made.poll(LEASE_S + MARGIN_S),
}


def taken(made: Coordinator) -> Coordinator:
    made.receive(ask(A), 0.0)
    return made


@pytest.mark.parametrize("pair", COORDINATOR_TRANSITIONS, ids=" ".join)
def test_every_transition_of_the_coordinator_is_what_he_does(pair: tuple[str, str]) -> None:
    made = SERVER_TO_STATE[pair[0]]()
    assert made.state == pair[0]
    SERVER_EVENTS[pair[1]](made)
    assert made.state == COORDINATOR_TRANSITIONS[pair]
    made.check()


@pytest.mark.parametrize("pair", COORDINATOR_TRANSITIONS, ids=" ".join)
def test_without_its_line_his_transition_cannot_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SERVER_TO_STATE[pair[0]]()
    monkeypatch.delitem(coordinator.COORDINATOR_TRANSITIONS, pair)
    with pytest.raises(KeyError):
        SERVER_EVENTS[pair[1]](made)


# The coordinator


def test_entry_is_in_order_of_request_and_numbers_rise() -> None:
    made = server()
    assert grants(made.receive(ask(B), 0.0)) == [(B, 1, 1)]
    assert made.receive(ask(C), 0.1) == []
    assert made.receive(ask(A), 0.2) == []
    assert grants(made.receive(leave(B, 1, 1), 0.3)) == [(C, 1, 2)]
    assert grants(made.receive(leave(C, 1, 2), 0.4)) == [(A, 1, 3)]
    assert made.receive(leave(A, 1, 3), 0.5) == []
    assert made.wake_at() is None


def test_the_lease_of_a_silent_holder_ends_and_the_next_is_let_in() -> None:
    made = taken(server())
    made.receive(ask(B), 1.0)
    assert made.wake_at() == LEASE_S + MARGIN_S
    assert made.poll(4.9) == []
    assert grants(made.poll(5.0)) == [(B, 1, 2)]
    assert made.counters["leases over"] == 1
    assert made.receive(leave(A, 1, 1), 5.1) == []  # it woke: too late to matter
    assert made.state == TAKEN


def test_a_repeated_request_renews_the_lease_but_not_for_ever() -> None:
    made = taken(server())
    made.receive(ask(B), 0.0)
    for now, lease_s, wake_at in [(3.0, 4.0, 8.0), (7.0, 3.0, 11.0), (10.5, 0.0, 11.0)]:
        (effect,) = made.receive(ask(A), now)
        assert isinstance(effect, Send)
        assert (effect.to, effect.message.fence, effect.message.time_s) == (A, 1, lease_s)
        assert made.wake_at() == wake_at
        made.check()
    assert grants(made.poll(11.0)) == [(B, 1, 2)]


def test_a_request_sent_again_keeps_its_place() -> None:
    made = taken(server())
    made.receive(ask(B), 0.0)
    made.receive(ask(C), 0.0)
    made.receive(ask(B), 1.0)
    assert grants(made.receive(leave(A, 1, 1), 2.0)) == [(B, 1, 2)]


def test_a_new_request_of_the_holder_means_that_its_release_was_lost() -> None:
    made = taken(server())
    made.receive(ask(B), 0.0)
    assert grants(made.receive(ask(A, 2), 1.0)) == [(B, 1, 2)]
    assert grants(made.receive(leave(B, 1, 2), 2.0)) == [(A, 2, 3)]


def test_who_gives_up_waiting_loses_its_place() -> None:
    made = taken(server())
    made.receive(ask(B), 0.0)
    made.receive(ask(C), 0.0)
    made.receive(leave(B), 0.5)
    assert grants(made.receive(leave(A, 1, 1), 1.0)) == [(C, 1, 2)]
    assert made.counters["withdrawn"] == 1


def test_late_copies_of_old_requests_change_nothing() -> None:
    made = server()
    made.receive(ask(A, 5), 0.0)
    made.receive(ask(B, 7), 0.0)
    assert made.receive(ask(A, 4), 0.1) == []
    assert made.receive(ask(B, 6), 0.1) == []
    assert made.counters["stale"] == 2
    assert grants(made.receive(leave(A, 5, 1), 1.0)) == [(B, 7, 2)]


def test_after_a_restart_he_waits_for_old_leases_and_numbers_go_on_rising() -> None:
    made = server(epoch=1)
    assert made.receive(ask(A), 0.0) == []
    assert made.wake_at() == LEASE_S + MARGIN_S
    assert grants(made.poll(5.0)) == [(A, 1, (1 << 64) + 1)]


def test_a_member_that_knows_a_higher_number_gets_one_above_it() -> None:
    made = server()
    assert grants(made.receive(ask(A, 1, fence=41), 0.0)) == [(A, 1, 42)]
    made.receive(leave(A, 1, 42), 0.0)
    made.receive(ask(B), 0.0)
    # The holder of too low a number asks again: its grant is of no use to it.
    assert grants(made.receive(ask(B, 1, fence=50), 0.0)) == [(B, 1, 51)]


def test_over_the_bound_a_request_is_a_counted_drop() -> None:
    made = taken(server(queue_max=1))
    made.receive(ask(B), 0.0)
    made.receive(ask(C), 0.0)
    assert made.counters["queue full"] == 1
    made.check()


ILLEGAL = {
    "a grant": grant(1),
    "a kind of another algorithm": Message(21, B),
    "a release of what was never granted": leave(A, 1, 99),
    "a release of what another holds": leave(B, 1, 1),
    "knowledge of an absurd number": ask(B, 1, FENCE_MAX),
}


@pytest.mark.parametrize("message", ILLEGAL.values(), ids=ILLEGAL)
def test_what_no_correct_member_sends_is_a_remote_error_and_he_goes_on(message: Message) -> None:
    made = taken(server())
    with pytest.raises(RemoteError) as raised:
        made.receive(message, 0.0)
    assert raised.value.history == ("free --grant--> taken, member 1 0x1",)
    made.receive(ask(B), 0.0)
    assert grants(made.receive(leave(A, 1, 1), 0.0)) == [(B, 1, 2)]


# A member


def test_a_request_is_sent_again_until_it_is_granted() -> None:
    made = member()
    first = made.request(0.0)
    assert first == [Send(SERVER, ask(A))]
    assert made.wake_at() == RETRY_S
    assert made.poll(0.9) == []
    assert made.poll(1.0) == first
    assert made.receive(grant(1), 1.5) == [Granted(1, 1.5 + LEASE_S)]


def test_a_holder_renews_at_half_its_lease_from_when_it_asked() -> None:
    made = member()
    made.request(0.0)
    made.receive(grant(1), 0.0)
    assert made.wake_at() == LEASE_S / 2
    assert made.poll(2.0) == [Send(SERVER, ask(A, 1, fence=1))]
    made.poll(3.0)  # and again, since no answer came
    assert made.receive(grant(1), 3.5) == []
    assert made.poll(5.9) != [Lost(1, "the lease is over")]
    assert made.poll(6.0) == [Lost(1, "the lease is over")]  # 2 + 4, not 3 + 4


def test_a_grant_of_a_request_given_up_is_given_back() -> None:
    made = member()
    made.request(0.0)
    assert made.release(0.5) == [Send(SERVER, leave(A, 1, 0))]
    assert made.receive(grant(6), 0.6) == [Send(SERVER, leave(A, 1, 6))]
    made.request(0.7)
    assert made.receive(grant(6), 0.8) == [Send(SERVER, leave(A, 1, 6))]
    assert made.state == WAITING


def test_a_refused_member_tells_the_number_with_its_next_request() -> None:
    made = member()
    TO_STATE[HELD](made)
    assert made.refused(40, 1.0) == [Lost(1, "the resource has seen a higher number")]
    assert made.release(1.0) == [Send(SERVER, leave(A, 1, 1))]
    assert made.request(1.0) == [Send(SERVER, ask(A, 2, fence=40))]
    assert made.receive(grant(39, number=2), 1.1) == []  # of no use: it asks again
    assert made.state == WAITING


def test_requests_of_a_new_life_are_no_copies_of_the_old_ones() -> None:
    old, new = member(), member(incarnation=1)
    old.request(0.0)
    (effect,) = new.request(0.0)
    assert isinstance(effect, Send)
    assert effect.message.number > 1 << 32


FOREIGN = {
    "a request": ask(B),
    "a grant of another": grant(1)._replace(sender=B),
    "a grant of a request never made": grant(1, number=2),
    "a grant without a number": grant(0),
}


@pytest.mark.parametrize("message", FOREIGN.values(), ids=FOREIGN)
def test_what_the_coordinator_cannot_mean_is_a_remote_error(message: Message) -> None:
    made = member()
    made.request(0.0)
    with pytest.raises(RemoteError) as raised:
        made.receive(message, 0.0)
    assert raised.value.history
    assert made.receive(grant(1), 0.0) == [Granted(1, LEASE_S)]
