"""Replicas: a snapshot in parts, then numbered updates; whatever gets lost, the follower ends equal.

The property test runs a publisher and a follower over a pipe that loses, repeats and
reorders updates, summaries and parts, while the publisher's state changes and the
replica is damaged now and then. The publisher keeps what its state was at every
number: the model that the replica is compared with.
"""

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns import snapshot
from patterns.errors import LocalError
from patterns.snapshot import (
    APPLY,
    COMPARING,
    EMPTY,
    FEED_TRANSITIONS,
    GAP,
    LIVE,
    LOADING,
    NOT_NOW,
    READY,
    REPEATED,
    SENDING,
    TRANSITIONS,
    UNFOLLOWED,
    Feed,
    Follower,
)

BEHIND_S = 3


def follower(state: str = EMPTY, number: int = 5) -> Follower:
    """A follower in that state, loading one part or live at that number."""
    made = Follower(BEHIND_S)
    if state != EMPTY:
        made.begin()
    if state in (LOADING, LIVE):
        made.compare(number, [0] if state == LOADING else [])
    made.check()
    assert made.state == state
    return made


# The table of states

STATES = (EMPTY, COMPARING, LOADING, LIVE)

EVENTS: dict[str, Callable[[Follower], object]] = {
    "begin": lambda following: following.begin(),
    "reset": lambda following: following.reset(),
    "summaries differ": lambda following: following.compare(9, [1, 2]),
    "summaries agree": lambda following: following.compare(9, []),
    "last part": lambda following: following.loaded(),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_the_table_is_what_the_follower_does_and_the_rest_is_the_callers_fault(
    state: str, event: str
) -> None:
    following = follower(state)
    if (state, event) in TRANSITIONS:
        EVENTS[event](following)
        following.check()
        assert following.state == TRANSITIONS[state, event]
    else:
        before = (following.applied, following.part)
        with pytest.raises(LocalError) as raised:
            EVENTS[event](following)
        assert raised.value.history or state == EMPTY
        following.check()
        assert (following.state, following.applied, following.part) == (state, *before)


def test_the_tests_know_every_event_and_state_of_the_table() -> None:
    assert {event for _, event in TRANSITIONS} == set(EVENTS)
    assert {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values()) == set(STATES)


@pytest.mark.parametrize("pair", TRANSITIONS, ids=", ".join)
def test_without_its_line_in_the_table_a_transition_cannot_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    following = follower(pair[0])
    monkeypatch.delitem(snapshot.TRANSITIONS, pair)
    with pytest.raises(LocalError):
        EVENTS[pair[1]](following)


# The follower


def test_only_differing_parts_are_loaded_one_after_the_other() -> None:
    following = follower(COMPARING)
    following.compare(7, [3, 1])
    assert following.part == 3
    following.loaded()
    assert (following.state, following.part) == (LOADING, 1)
    following.check()
    following.loaded()
    assert (following.state, following.part, following.applied) == (LIVE, None, 7)
    following.check()
    assert following.counters["parts loaded"] == 2


def test_updates_are_applied_in_order_each_once() -> None:
    following = follower(LIVE, number=5)
    verdicts = [following.update(number) for number in (5, 6, 6, 8, 7, 8, 1)]
    assert verdicts == [REPEATED, APPLY, REPEATED, GAP, APPLY, APPLY, REPEATED]
    assert following.applied == 8
    assert (following.counters["repeated"], following.counters["gaps"]) == (3, 1)


@pytest.mark.parametrize("state", [EMPTY, COMPARING, LOADING])
def test_updates_are_not_for_now_unless_live(state: str) -> None:
    following = follower(state)
    assert following.update(6) == NOT_NOW
    assert not following.seen(99, agrees=False, now=1e9)
    following.check()


def test_a_giant_number_is_a_gap_and_harms_nothing() -> None:
    following = follower(LIVE, number=5)
    assert following.update(1 << 70) == GAP
    assert following.update(6) == APPLY


def test_a_replica_that_disagrees_at_the_same_number_must_begin_again() -> None:
    following = follower(LIVE, number=5)
    assert not following.seen(5, agrees=True, now=0)
    assert following.seen(5, agrees=False, now=0)
    assert following.counters["disagreed"] == 1


def test_summaries_at_other_numbers_say_nothing_of_the_replica() -> None:
    following = follower(LIVE, number=5)
    assert not following.seen(4, agrees=False, now=0)
    assert not following.seen(6, agrees=False, now=0)


def test_a_publisher_that_stays_ahead_without_an_update_is_noticed() -> None:
    following = follower(LIVE, number=5)
    assert not following.seen(6, agrees=True, now=10)
    assert not following.seen(7, agrees=True, now=10 + BEHIND_S - 1)
    assert following.seen(7, agrees=True, now=10 + BEHIND_S)


@pytest.mark.parametrize("news", ["update", "equal sighting"])
def test_while_news_come_a_follower_is_not_left_behind(news: str) -> None:
    following = follower(LIVE, number=5)
    following.seen(9, agrees=True, now=10)
    if news == "update":
        assert following.update(6) == APPLY
    else:
        following.seen(5, agrees=True, now=11)
    assert not following.seen(9, agrees=True, now=10 + BEHIND_S)


def test_an_old_sighting_does_not_say_that_the_follower_has_caught_up() -> None:
    following = follower(LIVE, number=5)
    following.seen(9, agrees=True, now=10)
    following.seen(4, agrees=True, now=11)
    assert following.seen(9, agrees=True, now=10 + BEHIND_S)


def test_after_a_reset_nothing_is_known() -> None:
    following = follower(LIVE, number=5)
    following.seen(9, agrees=True, now=0)
    following.reset()
    assert (following.state, following.applied) == (EMPTY, -1)
    following.begin()
    following.compare(2, [])
    assert not following.seen(9, agrees=True, now=1e9)


# The feed


def feed(number: int = 5, applied: int | None = 3) -> Feed:
    made = Feed(pause_s=2)
    made.number = number
    made.follow(applied)
    return made


FEED_EVENTS: dict[str, Callable[[Feed], object]] = {
    "follow": lambda feeding: feeding.follow(2),
    "leave": lambda feeding: feeding.follow(None),
    "send": lambda feeding: feeding.poll(0),
    "progress": lambda feeding: feeding.answered(4, now=0),
    "no progress": lambda feeding: feeding.unanswered(now=0),
}


def feed_in(state: str) -> Feed:
    made = feed(applied=None if state == UNFOLLOWED else 3)
    if state == SENDING:
        made.poll(0)
    assert made.state == state
    return made


@pytest.mark.parametrize("event", FEED_EVENTS)
@pytest.mark.parametrize("state", [UNFOLLOWED, READY, SENDING])
def test_the_table_is_what_the_feed_does_and_the_rest_changes_nothing(state: str, event: str) -> None:
    feeding = feed_in(state)
    applied, wake_at = feeding.applied, feeding.wake_at()
    FEED_EVENTS[event](feeding)
    feeding.check()
    assert feeding.state == FEED_TRANSITIONS.get((state, event), state)
    if (state, event) not in FEED_TRANSITIONS:
        assert (feeding.applied, feeding.wake_at()) == (applied, wake_at)
        assert feeding.counters["late answers"] == (event != "send")


@pytest.mark.parametrize("pair", FEED_TRANSITIONS, ids=", ".join)
def test_without_its_line_in_the_feeds_table_a_transition_cannot_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feeding = feed_in(pair[0])
    monkeypatch.delitem(snapshot.FEED_TRANSITIONS, pair)
    FEED_EVENTS[pair[1]](feeding)
    assert feeding.state == pair[0]


def test_the_answer_to_a_follower_that_left_does_not_bring_it_back() -> None:
    feeding = feed(number=5, applied=3)
    feeding.poll(0)
    feeding.follow(None)
    feeding.answered(4, now=0)
    assert (feeding.applied, feeding.poll(1)) == (None, None)


def test_updates_are_sent_one_request_at_a_time() -> None:
    feeding = feed(number=5, applied=3)
    assert feeding.poll(0) == 3
    assert feeding.poll(0) is None
    assert feeding.wake_at() is None
    feeding.number = 8
    feeding.answered(5, now=1)
    assert feeding.poll(1) == 5
    feeding.answered(8, now=2)
    assert feeding.poll(2) is None


def test_nothing_is_sent_while_nobody_follows() -> None:
    feeding = feed(applied=None)
    assert (feeding.poll(0), feeding.wake_at()) == (None, None)


@pytest.mark.parametrize(
    "answer",
    [
        lambda feeding: feeding.answered(-1, now=10),
        lambda feeding: feeding.answered(3, now=10),
        lambda feeding: feeding.unanswered(now=10),
        lambda feeding: feeding.answered(6, now=10),
        lambda feeding: feeding.answered(1 << 70, now=10),
        lambda feeding: feeding.answered(-(1 << 70), now=10),
    ],
    ids=["not now", "no progress", "none", "one more than there is", "giant", "very negative"],
)
def test_a_follower_that_makes_no_progress_gets_a_pause_then_the_same_again(
    answer: Callable[[Feed], None],
) -> None:
    feeding = feed(number=5, applied=3)
    feeding.poll(10)
    answer(feeding)
    assert feeding.poll(11) is None
    assert feeding.wake_at() == 12
    assert feeding.poll(12) == 3


def test_a_follower_that_fell_back_is_sent_what_it_lacks() -> None:
    feeding = feed(number=5, applied=3)
    feeding.poll(0)
    feeding.answered(1, now=1)
    assert feeding.poll(1) == 1


def test_a_new_follower_is_sent_to_at_once() -> None:
    feeding = feed(number=5, applied=3)
    feeding.poll(0)
    feeding.unanswered(now=0)
    feeding.follow(0)
    assert feeding.poll(0) == 0


# Over a pipe that loses, repeats and reorders

PARTS, KEYS, ANSWER_WITHIN = 4, 12, 6

State = dict[int, int]


class Message(NamedTuple):
    to: str
    kind: str
    request: int  # which request it is, or answers; an answer to any but the last one asked is dropped
    body: Any = None


def part_of(state: State, part: int) -> State:
    return {key: value for key, value in state.items() if key % PARTS == part}


def applied(state: State, key: int, value: int | None) -> State:
    without = {each: held for each, held in state.items() if each != key}
    return without if value is None else {**without, key: value}


class Replication:
    def __init__(self, random: Random, loss: float, repeat: float) -> None:
        self.random, self.loss, self.repeat = random, loss, repeat
        self.now = 0
        self.pipe: list[Message] = []
        # The publisher: its changes, and its state after each of them.
        self.changes: list[tuple[int, int | None]] = []
        self.states: list[State] = [{}]
        self.feed = Feed(pause_s=2)
        self.feed.follow(0)
        self.sent = (0, 0)  # number and time of the feed's last request
        # The follower.
        self.following = Follower(BEHIND_S)
        self.replica: State = {}
        self.asked = (0, 0)
        self.loaded_up_to = 0  # the highest number that a loaded part may stand for
        self.damaged = False

    @property
    def number(self) -> int:
        return len(self.changes)

    def send(self, message: Message) -> None:
        copies = (self.random.random() >= self.loss) + (self.random.random() < self.repeat)
        self.pipe += [message] * copies

    # The publisher's side

    def change(self, key: int, value: int | None) -> None:
        self.changes.append((key, value))
        self.states.append(applied(self.states[-1], key, value))
        self.feed.number = self.number

    def publish(self) -> None:
        if self.sent[0] and self.now - self.sent[1] > ANSWER_WITHIN:
            self.feed.unanswered(self.now)
        after = self.feed.poll(self.now)
        if after is not None:
            self.sent = (self.sent[0] + 1, self.now)
            updates = [(number + 1, *self.changes[number]) for number in range(after, self.number)]
            self.send(Message("follower", "updates", self.sent[0], updates))

    def beat(self) -> None:
        self.send(Message("follower", "beat", 0, (self.number, self.states[-1])))

    def to_publisher(self, message: Message) -> None:
        if message.kind == "applied":
            if message.request == self.sent[0]:
                self.feed.answered(message.body, self.now)
        elif message.kind == "summaries?":
            self.send(Message("follower", "summaries", message.request, (self.number, self.states[-1])))
        else:
            part = part_of(self.states[-1], message.body)
            self.send(Message("follower", "part", message.request, (self.number, message.body, part)))

    # The follower's side

    def ask(self) -> None:
        self.asked = (self.asked[0] + 1, self.now)
        if self.following.state == LOADING:
            self.send(Message("publisher", "part?", self.asked[0], self.following.part))
        elif self.following.state == COMPARING:
            self.send(Message("publisher", "summaries?", self.asked[0]))

    def follow(self) -> None:
        if self.following.state == EMPTY:
            self.following.begin()
            self.ask()
        elif self.following.state != LIVE and self.now - self.asked[1] > ANSWER_WITHIN:
            self.ask()

    def to_follower(self, message: Message) -> None:
        if message.kind == "updates":
            self.apply(message.body)
            answer = self.following.applied if self.following.state == LIVE else -1
            self.send(Message("publisher", "applied", message.request, answer))
        elif message.kind == "beat":
            number, state = message.body
            if self.following.seen(number, self.replica == state, self.now):
                self.following.begin()
                self.ask()
        elif message.request == self.asked[0]:
            if message.kind == "summaries" and self.following.state == COMPARING:
                number, state = message.body
                differing = [
                    part for part in range(PARTS) if part_of(state, part) != part_of(self.replica, part)
                ]
                self.following.compare(number, differing)
                self.loaded_up_to, self.damaged = number, False
                self.ask()
            elif message.kind == "part" and self.following.part == message.body[1]:
                number, part, content = message.body
                kept = {key: value for key, value in self.replica.items() if key % PARTS != part}
                self.replica = kept | content
                self.loaded_up_to = max(self.loaded_up_to, number)
                self.following.loaded()
                self.ask()

    def apply(self, updates: list[tuple[int, int, int | None]]) -> None:
        for number, key, value in updates:
            verdict = self.following.update(number)
            if verdict == APPLY:
                self.replica = applied(self.replica, key, value)
            elif verdict == GAP:
                break

    def damage(self, key: int) -> None:
        self.replica = applied(self.replica, key, -1)
        self.damaged = True

    # Both

    def step(self) -> None:
        self.now += 1
        self.publish()
        self.follow()
        if self.random.random() < 0.3:
            self.beat()
        for _ in range(self.random.randint(0, 4)):
            if self.pipe:
                message = self.pipe.pop(self.random.randrange(len(self.pipe)))
                (self.to_publisher if message.to == "publisher" else self.to_follower)(message)
                self.check()

    def check(self) -> None:
        following = self.following
        following.check()
        self.feed.check()
        # Parts are loaded one by one and may be newer than the number they are counted for. From the
        # newest of them on, the replica is what the publisher was at that number, exactly.
        if following.state == LIVE and following.applied >= self.loaded_up_to and not self.damaged:
            assert self.replica == self.states[following.applied]

    def is_equal(self) -> bool:
        following = self.following
        return (following.state, following.applied, self.replica) == (LIVE, self.number, self.states[-1])


CHANGES = st.tuples(st.integers(0, KEYS - 1), st.none() | st.integers(0, 3), st.integers(0, 5))


@given(
    changes=st.lists(CHANGES, min_size=10, max_size=40),
    damage=st.sampled_from([0, 0.05]),
    loss=st.sampled_from([0, 0.3]),
    repeat=st.sampled_from([0, 0.3]),
    random=st.randoms(use_true_random=True),
)
def test_the_follower_ends_equal_to_the_publisher(
    changes: list[tuple[int, int | None, int]], damage: float, loss: float, repeat: float, random: Random
) -> None:
    run = Replication(random, loss, repeat)
    for key, value, pause in changes:
        run.change(key, value)
        for _ in range(pause):
            run.step()
        if random.random() < damage:
            run.damage(key)
    run.loss = run.repeat = 0
    for _ in range(1000):
        if run.is_equal():
            break
        run.step()
    assert run.is_equal()


@given(key=st.integers(0, KEYS - 1), random=st.randoms(use_true_random=True))
def test_damage_of_a_live_replica_is_seen_and_mended(key: int, random: Random) -> None:
    run = Replication(random, loss=0, repeat=0)
    run.change(key, 1)
    while not run.is_equal():
        run.step()
    run.pipe.clear()
    run.damage(key)
    while not run.is_equal():
        run.step()
    assert run.following.counters["disagreed"] == 1
