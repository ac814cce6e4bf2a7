"""Strict request/reply: one reply or one expiry for each request, one answer for each debt.

No sockets: frames are handed from one machine to the other, times are made up. The
model of the property test is two sets: what was asked, and what came of it.
"""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns import request_reply
from patterns.errors import LocalError, RemoteError
from patterns.request_reply import (
    HEADER_BYTES,
    NO_REALM,
    TRANSITIONS,
    Replier,
    Requester,
    request_id_of,
)

REALM = bytes(range(16))
OTHER_REALM = bytes(range(1, 17))
ID_MAX = (1 << 64) - 1


def reply_to(frame: bytes, body: bytes = b"pong") -> bytes:
    return Replier[str](REALM).reply(frame, body)


# The asking side


def test_a_reply_comes_back_with_its_requests_id_and_tag() -> None:
    requester: Requester[str] = Requester(first_id=7, realm=REALM)
    asked, frame = requester.request(b"ping", "tag", deadline=1.0)
    received = requester.receive(reply_to(frame))
    assert received is not None
    assert (asked, received[0], received[1], bytes(received[2])) == (7, 7, "tag", b"pong")
    assert len(requester) == 0
    requester.check()


def test_replies_are_told_apart_whatever_their_order() -> None:
    requester: Requester[int] = Requester(first_id=1)
    frames = [requester.request(b"", tag, deadline=1.0)[1] for tag in range(5)]
    tags = []
    for frame in reversed(frames):
        received = requester.receive(reply_to(frame))
        assert received is not None
        tags.append(received[1])
    assert tags == [4, 3, 2, 1, 0]


def test_a_repeated_reply_is_a_counted_drop() -> None:
    requester: Requester[str] = Requester(first_id=1)
    _, frame = requester.request(b"", "tag", deadline=1.0)
    assert requester.receive(reply_to(frame))
    assert requester.receive(reply_to(frame)) is None
    assert requester.counters["unawaited"] == 1


def test_a_request_expires_once_and_its_late_reply_is_dropped() -> None:
    requester: Requester[str] = Requester(first_id=1)
    asked, frame = requester.request(b"", "tag", deadline=1.0)
    assert requester.expire(0.9) == []
    assert requester.expire(1.0) == [(asked, "tag")]
    assert requester.expire(2.0) == []
    assert requester.receive(reply_to(frame)) is None
    assert requester.counters["unawaited"] == 1


def test_a_cancelled_request_neither_expires_nor_gets_its_reply() -> None:
    requester: Requester[str] = Requester(first_id=1)
    asked, frame = requester.request(b"", "tag", deadline=1.0)
    requester.cancel(asked)
    assert requester.wake_at() is None
    assert requester.receive(reply_to(frame)) is None
    assert requester.expire(9.0) == []


def test_wake_at_is_the_first_deadline_of_a_request_still_awaited() -> None:
    requester: Requester[str] = Requester(first_id=1)
    _, early = requester.request(b"", "early", deadline=1.0)
    requester.request(b"", "late", deadline=2.0)
    assert requester.wake_at() == 1.0
    requester.receive(reply_to(early))
    assert requester.wake_at() == 2.0
    requester.expire(2.0)
    assert requester.wake_at() is None


def test_ids_go_on_after_the_largest_one() -> None:
    requester: Requester[str] = Requester(first_id=ID_MAX)
    last, frame = requester.request(b"", "last", deadline=1.0)
    first, _ = requester.request(b"", "first", deadline=1.0)
    assert (last, first) == (ID_MAX, 0)
    received = requester.receive(reply_to(frame))
    assert received is not None
    assert received[:2] == (ID_MAX, "last")


def test_a_requester_learns_its_realm_from_the_first_reply_it_awaits_if_it_may() -> None:
    requester: Requester[str] = Requester(first_id=1, learn_realm=True)
    _, first = requester.request(b"", "", deadline=1.0)
    foreign = Replier[str](OTHER_REALM).reply(first[:4] + bytes(8) + first[12:], b"")
    assert requester.receive(foreign) is None
    assert requester.realm == NO_REALM
    requester.receive(reply_to(first))
    assert requester.realm == REALM
    _, second = requester.request(b"", "", deadline=1.0)
    requester.receive(Replier[str](OTHER_REALM).reply(second, b""))
    assert requester.realm == REALM


@pytest.mark.parametrize(("realm", "learn_realm"), [(NO_REALM, False), (OTHER_REALM, True)])
def test_a_requester_that_may_not_learn_or_knows_its_realm_keeps_it(realm: bytes, learn_realm: bool) -> None:
    requester: Requester[str] = Requester(first_id=1, realm=realm, learn_realm=learn_realm)
    requester.receive(reply_to(requester.request(b"", "", deadline=1.0)[1]))
    assert requester.realm == realm


@pytest.mark.parametrize("first_id", [-1, ID_MAX + 1])
def test_a_first_id_that_no_frame_can_carry_is_refused(first_id: int) -> None:
    with pytest.raises(LocalError):
        Requester(first_id=first_id)


def test_one_request_over_the_bound_is_the_callers_fault() -> None:
    requester: Requester[int] = Requester(first_id=1, pending_max=2)
    requester.request(b"", 1, deadline=1.0)
    requester.request(b"", 2, deadline=1.0)
    with pytest.raises(LocalError):
        requester.request(b"", 3, deadline=1.0)
    assert sorted(tag for _, tag in requester.expire(1.0)) == [1, 2]
    requester.request(b"", 3, deadline=2.0)
    requester.check()


def test_deadlines_of_answered_requests_do_not_pile_up() -> None:
    """A deadline may lie far off; the table must stay small when replies come fast."""
    requester: Requester[int] = Requester(first_id=1, pending_max=10)
    requester.request(b"", -1, deadline=1.0)
    for tag in range(1000):
        _, frame = requester.request(b"", tag, deadline=1e9)
        requester.receive(reply_to(frame))
        requester.check()
    assert requester.expire(1.0) == [(1, -1)]


# Hostile frames

GOOD_REPLY = reply_to(Requester[str](first_id=5).request(b"", "", 0.0)[1])
GOOD_REQUEST = Requester[str](first_id=5, realm=REALM).request(b"body", "", 0.0)[1]


def damaged(good: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "one byte": good[:1],
        "header cut short": good[: HEADER_BYTES - 1],
        "another signature": b"\x00" + good[1:],
        "another version": good[:1] + b"\x02" + good[2:],
        "no such kind": good[:2] + b"\x09" + good[3:],
        "reserved byte set": good[:3] + b"\x01" + good[4:],
        "text": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    }


@pytest.mark.parametrize("name", damaged(GOOD_REPLY))
def test_a_frame_that_is_no_reply_leaves_the_requester_as_it_was(name: str) -> None:
    requester: Requester[str] = Requester(first_id=5)
    requester.request(b"", "tag", deadline=1.0)
    with pytest.raises(RemoteError):
        requester.receive(damaged(GOOD_REPLY)[name])
    requester.check()
    assert requester.counters["malformed"] == 1
    assert requester.receive(GOOD_REPLY) is not None


def test_a_request_is_no_reply_and_a_reply_no_request() -> None:
    with pytest.raises(RemoteError):
        Requester[str](first_id=5).receive(GOOD_REQUEST)
    with pytest.raises(RemoteError):
        Replier[str](REALM).receive(GOOD_REPLY)


@pytest.mark.parametrize("name", damaged(GOOD_REQUEST))
def test_a_frame_that_is_no_request_leaves_the_replier_as_it_was(name: str) -> None:
    replier: Replier[str] = Replier(REALM)
    with pytest.raises(RemoteError):
        replier.receive(damaged(GOOD_REQUEST)[name])
    replier.check()
    assert replier.counters["malformed"] == 1
    assert bytes(replier.receive(GOOD_REQUEST)) == b"body"


@given(st.binary(max_size=64))
def test_no_frame_whatever_does_more_than_raise_a_remote_error(frame: bytes) -> None:
    requester: Requester[str] = Requester(first_id=5)
    replier: Replier[str] = Replier(REALM)
    request_id_of(frame)
    for receive in (requester.receive, replier.receive):
        try:
            receive(frame)
        except RemoteError:
            pass
    requester.check()
    replier.check()


def test_a_foreign_reply_with_a_giant_id_is_a_counted_drop() -> None:
    requester: Requester[str] = Requester(first_id=5)
    requester.request(b"", "tag", deadline=1.0)
    frame = GOOD_REPLY[:4] + b"\xff" * 8 + GOOD_REPLY[12:]
    assert requester.receive(frame) is None
    assert requester.counters["unawaited"] == 1
    assert len(requester) == 1


def test_the_id_can_be_read_from_a_request_of_any_version() -> None:
    assert request_id_of(GOOD_REQUEST) == 5
    assert request_id_of(GOOD_REQUEST[:1] + b"\x09\x09\x09" + GOOD_REQUEST[4:12]) == 5
    assert request_id_of(GOOD_REQUEST[:11]) is None
    assert request_id_of(b"\x00" + GOOD_REQUEST[1:]) is None


# The answering side


@pytest.mark.parametrize(
    ("ours", "theirs", "matches"),
    [
        (REALM, REALM, True),
        (REALM, OTHER_REALM, False),
        (REALM, NO_REALM, True),
        (NO_REALM, OTHER_REALM, True),
    ],
)
def test_a_request_for_another_realm_is_recognised(ours: bytes, theirs: bytes, matches: bool) -> None:
    _, frame = Requester[str](first_id=1, realm=theirs).request(b"", "", 0.0)
    assert Replier[str](ours).realm_matches(frame) is matches


def test_a_deferred_answer_goes_to_the_peer_that_asked_under_its_id() -> None:
    requester: Requester[str] = Requester(first_id=ID_MAX, realm=REALM)
    replier: Replier[str] = Replier(REALM)
    _, frame = requester.request(b"ping", "tag", deadline=1.0)
    token = replier.defer("peer", frame)
    assert len(replier) == 1
    peer, answer = replier.resolve(token, b"pong")
    replier.check()
    received = requester.receive(answer)
    assert received is not None
    assert (peer, received[1], bytes(received[2])) == ("peer", "tag", b"pong")


def test_a_second_answer_is_the_callers_fault() -> None:
    replier: Replier[str] = Replier(REALM)
    token = replier.defer("peer", GOOD_REQUEST)
    replier.resolve(token, b"")
    with pytest.raises(LocalError) as raised:
        replier.resolve(token, b"")
    assert raised.value.history == (f"deferred {token}", f"resolved {token}")
    replier.check()


def test_what_is_owed_is_bounded_in_all_and_for_each_peer() -> None:
    replier: Replier[str] = Replier(REALM, owed_max=3, owed_max_peer=2)
    greedy = [replier.defer("greedy", GOOD_REQUEST) for _ in range(2)]
    with pytest.raises(RemoteError):
        replier.defer("greedy", GOOD_REQUEST)
    replier.defer("modest", GOOD_REQUEST)
    with pytest.raises(RemoteError):
        replier.defer("late", GOOD_REQUEST)
    assert replier.counters["over-bound"] == 2
    replier.check()
    replier.resolve(greedy[0], b"")
    replier.defer("late", GOOD_REQUEST)
    replier.check()


def test_errors_carry_the_recent_events() -> None:
    requester: Requester[str] = Requester(first_id=5)
    requester.request(b"", "tag", deadline=1.0)
    requester.expire(1.0)
    with pytest.raises(RemoteError) as raised:
        requester.receive(b"")
    assert raised.value.history == ("expired 5",)
    assert "expired 5" in str(raised.value)


# Both sides, with a pipe between them that loses, repeats and delays


@given(st.data())
def test_every_request_gets_exactly_one_reply_or_expiry(data: st.DataObject) -> None:
    requester: Requester[int] = Requester(first_id=data.draw(st.integers(0, ID_MAX)), realm=REALM)
    replier: Replier[str] = Replier(REALM)
    tags: dict[int, int] = {}  # id → tag of what was asked
    outcomes: Counter[int] = Counter()
    cancelled: set[int] = set()
    owed: list[int] = []
    replies: list[bytes] = []
    now = 0
    last_deadline = 0
    for tag in range(data.draw(st.integers(1, 30))):
        now += data.draw(st.integers(0, 3))
        last_deadline = max(last_deadline, now + 5)
        asked, frame = requester.request(b"", tag, deadline=now + data.draw(st.integers(0, 5)))
        tags[asked] = tag
        if data.draw(st.booleans()):
            owed.append(replier.defer("peer", frame))
        if owed and data.draw(st.booleans()):
            token = owed.pop(data.draw(st.integers(0, len(owed) - 1)))
            replies.append(replier.resolve(token, b"")[1])
        if replies and data.draw(st.booleans()):
            received = requester.receive(data.draw(st.sampled_from(replies)))  # it stays, to come again
            if received is not None:
                assert tags[received[0]] == received[1]
                outcomes[received[0]] += 1
        if data.draw(st.booleans()):
            wake_at = requester.wake_at()
            expired = requester.expire(now)
            assert bool(expired) == (wake_at is not None and wake_at <= now)
            outcomes.update(request_id for request_id, _ in expired)
        if data.draw(st.integers(0, 9)) == 0 and asked not in outcomes:
            requester.cancel(asked)
            cancelled.add(asked)
        requester.check()
        replier.check()
        assert len(requester) == len(tags) - len(outcomes) - len(cancelled)
        assert len(replier) == len(owed)
    outcomes.update(request_id for request_id, _ in requester.expire(last_deadline))
    assert outcomes == Counter(tags.keys() - cancelled)


# The table of states

EVENTS: dict[str, Callable[[Requester[str], bytes], object]] = {
    "reply": lambda requester, frame: requester.receive(reply_to(frame)),
    "deadline": lambda requester, _frame: requester.expire(1.0),
    "cancel": lambda requester, frame: requester.cancel(request_id_of(frame) or 0),
}


@pytest.mark.parametrize("pair", TRANSITIONS, ids=", ".join)
def test_every_transition_of_the_table_ends_the_request_and_is_remembered(pair: tuple[str, str]) -> None:
    requester: Requester[str] = Requester(first_id=7)
    frame = requester.request(b"", "tag", deadline=1.0)[1]
    EVENTS[pair[1]](requester, frame)
    requester.check()
    assert len(requester) == 0
    assert (requester.receive(reply_to(frame)), requester.expire(9.0)) == (None, [])
    with pytest.raises(RemoteError) as raised:
        requester.receive(b"")
    assert raised.value.history == (f"{TRANSITIONS[pair]} 7", "unawaited reply 7")


@pytest.mark.parametrize("pair", TRANSITIONS, ids=", ".join)
def test_without_its_line_in_the_table_a_transition_cannot_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requester: Requester[str] = Requester(first_id=7)
    frame = requester.request(b"", "tag", deadline=1.0)[1]
    monkeypatch.delitem(request_reply.TRANSITIONS, pair)
    with pytest.raises(KeyError):
        EVENTS[pair[1]](requester, frame)
    assert len(requester) == 1
