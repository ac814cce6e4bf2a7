"""Heartbeats: who is alive, suspect, dead, and that nobody is accused wrongly.

No sockets, no waiting: times are whole numbers that the tests make up. The property
test compares the watcher with a model that knows only the history: it works out
each state anew, from all that ever happened, with a clock that stands still while
the watcher slept.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns import heartbeat
from patterns.errors import LocalError, RemoteError
from patterns.heartbeat import (
    ALIVE,
    BEAT,
    DEAD,
    DOWN,
    HEADER,
    HEADER_BYTES,
    LOST,
    SILENT,
    SUSPECT,
    TRANSITIONS,
    Beater,
    Watcher,
    parse,
)

REALM, PEER, OTHER = b"R" * 16, b"P" * 16, b"Q" * 16
SUSPECT_S, DOWN_DEAD_S, DEAD_S, ASLEEP_S = 3, 6, 20, 4


def watcher() -> Watcher:
    return Watcher(SUSPECT_S, DOWN_DEAD_S, DEAD_S, ASLEEP_S)


def pass_time(watching: Watcher, since: int, until: int) -> list[tuple[bytes, str]]:
    """Polls as often as the watcher wants it, so that it does not think it slept."""
    changes = []
    for now in range(since, until + 1):
        changes += watching.poll(now)
        watching.check()
    return changes


# The table of states


def to_alive(watching: Watcher) -> None:
    watching.join(PEER, 1, 0)


def to_suspect(watching: Watcher) -> None:
    to_alive(watching)
    watching.down(PEER, 0)


def to_dead(watching: Watcher) -> None:
    to_suspect(watching)
    pass_time(watching, 0, DOWN_DEAD_S)


TO_STATE: dict[str, Callable[[Watcher], None]] = {ALIVE: to_alive, SUSPECT: to_suspect, DEAD: to_dead}

EVENTS: dict[str, Callable[[Watcher], object]] = {
    BEAT: lambda watching: watching.beat(PEER, 1, 1, DOWN_DEAD_S),
    DOWN: lambda watching: watching.down(PEER, DOWN_DEAD_S),
    SILENT: lambda watching: pass_time(watching, 0, SUSPECT_S),
    LOST: lambda watching: pass_time(watching, 0, DOWN_DEAD_S),
}


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_every_transition_of_the_table_is_what_the_watcher_does(pair: tuple[str, str]) -> None:
    watching = watcher()
    TO_STATE[pair[0]](watching)
    assert watching.state(PEER) == pair[0]
    EVENTS[pair[1]](watching)
    assert watching.state(PEER) == TRANSITIONS[pair]
    watching.check()


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_without_its_line_in_the_table_a_transition_does_not_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = watcher()
    TO_STATE[pair[0]](watching)
    monkeypatch.delitem(heartbeat.TRANSITIONS, pair)
    EVENTS[pair[1]](watching)
    assert watching.state(PEER) == pair[0]


@pytest.mark.parametrize(
    ("state", "event"), [(ALIVE, BEAT), (SUSPECT, DOWN), (SUSPECT, SILENT), (DEAD, DOWN), (DEAD, LOST)]
)
def test_what_is_not_in_the_table_leaves_the_state(state: str, event: str) -> None:
    assert (state, event) not in TRANSITIONS
    watching = watcher()
    TO_STATE[state](watching)
    EVENTS[event](watching)
    assert watching.state(PEER) == state


# Silence


def test_a_silent_peer_is_suspect_then_dead_and_each_is_told_once() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    assert pass_time(watching, 0, SUSPECT_S - 1) == []
    assert watching.poll(SUSPECT_S) == [(PEER, SUSPECT)]
    assert pass_time(watching, SUSPECT_S, DEAD_S - 1) == []
    assert watching.poll(DEAD_S) == [(PEER, DEAD)]
    assert pass_time(watching, DEAD_S, 3 * DEAD_S) == []


def test_a_beat_brings_a_suspect_and_a_dead_peer_back() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    pass_time(watching, 0, SUSPECT_S)
    assert watching.beat(PEER, 1, 1, SUSPECT_S) == [(PEER, ALIVE)]
    assert watching.heard_at(PEER) == SUSPECT_S
    pass_time(watching, SUSPECT_S, SUSPECT_S + DEAD_S)
    assert watching.beat(PEER, 1, 2, SUSPECT_S + DEAD_S) == [(PEER, ALIVE)]


def test_silence_of_one_is_not_silence_of_another() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    watching.join(OTHER, 1, 0)
    changes = []
    for now in range(1, DEAD_S + 1):
        changes += watching.beat(OTHER, 1, now, now)
        changes += watching.poll(now)
        watching.check()
    assert changes == [(PEER, SUSPECT), (PEER, DEAD)]


# Connections


def test_a_peer_whose_connection_stays_down_is_dead_sooner_than_a_silent_one() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    assert watching.down(PEER, 1) == [(PEER, SUSPECT)]
    assert watching.down(PEER, 2) == []
    assert pass_time(watching, 2, DOWN_DEAD_S) == []
    assert watching.poll(1 + DOWN_DEAD_S) == [(PEER, DEAD)]


def test_a_connection_that_stands_again_is_not_life_by_itself() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    watching.down(PEER, 1)
    watching.up(PEER)
    assert watching.state(PEER) == SUSPECT
    assert pass_time(watching, 1, DEAD_S - 1) == []
    assert watching.poll(DEAD_S) == [(PEER, DEAD)]


def test_a_beat_read_after_its_connection_broke_does_not_make_the_death_slow() -> None:
    """The last beat and the news of the broken connection travel apart and may change places."""
    watching = watcher()
    watching.join(PEER, 1, 0)
    watching.down(PEER, 1)
    assert watching.beat(PEER, 1, 1, 2) == [(PEER, ALIVE)]
    changes = pass_time(watching, 2, 2 + DOWN_DEAD_S)
    assert changes == [(PEER, SUSPECT), (PEER, DEAD)]


def test_a_peer_that_beats_is_alive_while_its_connection_is_down_and_dies_by_its_silence() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    watching.down(PEER, 0)
    for now in range(1, 2 * DOWN_DEAD_S):
        watching.beat(PEER, 1, now, now)
        watching.poll(now)
        assert watching.state(PEER) == ALIVE
    fell_silent = 2 * DOWN_DEAD_S - 1
    assert pass_time(watching, fell_silent, fell_silent + DOWN_DEAD_S - 1) == [(PEER, SUSPECT)]
    assert watching.poll(fell_silent + DOWN_DEAD_S) == [(PEER, DEAD)]


# Sequences and incarnations


@pytest.mark.parametrize(
    ("incarnation", "sequence", "counter"),
    [(5, 3, "repeated"), (5, 2, "repeated"), (4, 9, "stale-incarnation"), (6, 9, "stale-incarnation")],
)
def test_a_beat_that_is_repeated_late_or_of_another_life_is_a_counted_drop(
    incarnation: int, sequence: int, counter: str
) -> None:
    watching = watcher()
    watching.join(PEER, 5, 0)
    watching.beat(PEER, 5, 3, 0)
    pass_time(watching, 0, SUSPECT_S)
    assert watching.beat(PEER, incarnation, sequence, SUSPECT_S) == []
    assert watching.state(PEER) == SUSPECT
    assert watching.counters[counter] == 1


def test_gaps_in_the_sequence_are_counted_but_not_what_was_before_the_first_beat() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    for sequence in (7, 8, 11):
        watching.beat(PEER, 1, sequence, 0)
    assert watching.counters["lost-beats"] == 2


def test_a_new_incarnation_begins_its_sequence_anew_and_revives() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    watching.beat(PEER, 1, 900, 0)
    pass_time(watching, 0, DEAD_S)
    assert watching.join(PEER, 2, DEAD_S) == [(PEER, ALIVE)]
    watching.beat(PEER, 2, 1, DEAD_S + 1)
    assert watching.heard_at(PEER) == DEAD_S + 1
    watching.check()


def test_a_new_incarnation_has_a_connection_of_its_own() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    watching.down(PEER, 0)
    watching.join(PEER, 2, 1)
    changes = pass_time(watching, 1, DEAD_S)
    assert changes == [(PEER, SUSPECT)]


def test_an_older_incarnation_cannot_join_and_the_watcher_stays_usable() -> None:
    watching = watcher()
    watching.join(PEER, 2, 0)
    watching.down(PEER, 0)
    with pytest.raises(RemoteError) as raised:
        watching.join(PEER, 1, 1)
    assert any(DOWN in event for event in raised.value.history)
    watching.check()
    assert watching.beat(PEER, 2, 1, 1) == [(PEER, ALIVE)]


def test_strangers_are_counted_and_change_nothing() -> None:
    watching = watcher()
    assert watching.beat(PEER, 1, 1, 0) == []
    assert watching.down(PEER, 0) == []
    watching.up(PEER)
    watching.forget(PEER)
    assert watching.state(PEER) is None
    assert watching.heard_at(PEER) is None
    assert watching.counters["stranger"] == 1


def test_a_forgotten_peer_is_a_stranger() -> None:
    watching = watcher()
    to_suspect(watching)
    watching.forget(PEER)
    watching.check()
    assert watching.state(PEER) is None
    assert watching.wake_at() is None
    assert pass_time(watching, 0, DEAD_S) == []


# The watcher's own sleep


def test_a_watcher_that_slept_accuses_nobody_for_it() -> None:
    watching = watcher()
    watching.join(PEER, 1, 0)
    watching.poll(0)
    assert watching.poll(1000) == []
    assert watching.counters["asleep"] == 1
    assert pass_time(watching, 1001, 1000 + SUSPECT_S) == [(PEER, SUSPECT)]


def test_a_connection_that_broke_before_a_sleep_gets_the_time_too() -> None:
    watching = watcher()
    to_suspect(watching)
    watching.poll(0)
    assert watching.poll(1000) == []
    assert pass_time(watching, 1000, 999 + DOWN_DEAD_S) == []
    assert watching.poll(1000 + DOWN_DEAD_S) == [(PEER, DEAD)]


def test_a_peer_heard_after_the_sleep_is_not_excused_for_it() -> None:
    """Else it could be silent for as long as the watcher had slept."""
    watching = watcher()
    watching.join(PEER, 1, 0)
    watching.poll(0)
    watching.beat(PEER, 1, 1, 1000)
    watching.poll(1000)
    watching.check()
    assert pass_time(watching, 1001, 1000 + SUSPECT_S) == [(PEER, SUSPECT)]


def test_a_time_without_peers_is_no_sleep() -> None:
    watching = watcher()
    watching.poll(0)
    watching.join(PEER, 1, 1000)
    watching.poll(1001)
    assert watching.counters["asleep"] == 0


@pytest.mark.parametrize("down", [False, True])
@given(start=st.floats(0, 1e6), scale=st.floats(0.01, 10))
def test_polls_at_wake_at_alone_find_the_silent_peer_dead(down: bool, start: float, scale: float) -> None:
    """A loop that has nothing else to do polls only then: no poll too few, and none for nothing
    without end, whatever floats do."""
    suspect_s, down_dead_s, dead_s = 0.75 * scale, 3 * scale, 15 * scale
    watching = Watcher(suspect_s, down_dead_s, dead_s, asleep_s=0.5 * scale)
    watching.join(PEER, 1, start)
    if down:
        watching.down(PEER, start)
    changes: list[tuple[bytes, str]] = []
    now = start
    for _ in range(100):
        if watching.state(PEER) == DEAD:
            break
        wake_at = watching.wake_at()
        assert wake_at is not None
        now = max(now, wake_at)
        changes += watching.poll(now)
        watching.check()
    assert watching.state(PEER) == DEAD
    assert now == start + (down_dead_s if down else dead_s)
    assert changes == [(PEER, DEAD)] if down else [(PEER, SUSPECT), (PEER, DEAD)]
    assert watching.counters["asleep"] == 0


# Against the whole history


class Happened(NamedTuple):
    time: int
    kind: str  # join, beat, down, up or poll
    peer: bytes | None


def own_time(history: list[Happened], time: int) -> int:
    """The watcher's own clock: it stands still between two polls that lie too far apart."""
    polls = [history[0].time, *(event.time for event in history if event.kind == "poll")]
    slept = [(last, this) for last, this in pairwise(polls) if this - last > ASLEEP_S]
    return time - sum(max(0, min(time, this) - last) for last, this in slept)


def model_state(history: list[Happened], peer: bytes) -> str:
    """What a peer's state is after all that happened: looked up from scratch."""
    state, heard, down_since = ALIVE, 0, None
    for count, event in enumerate(history):
        known = history[: count + 1]
        if event.peer == peer:
            if event.kind in ("join", "beat"):
                state, heard = ALIVE, event.time
            if event.kind in ("join", "up"):
                down_since = None
            if event.kind == "down":
                state = SUSPECT if state == ALIVE else state
                down_since = event.time if down_since is None else down_since
        if event.kind == "poll" and any(each.peer == peer for each in known):
            silent = own_time(known, event.time) - own_time(known, heard)
            if state == ALIVE and silent >= SUSPECT_S:
                state = SUSPECT
            if state == SUSPECT and silent >= DEAD_S:
                state = DEAD
            if state == SUSPECT and down_since is not None:
                both_since = max(own_time(known, heard), own_time(known, down_since))
                if own_time(known, event.time) - both_since >= DOWN_DEAD_S:
                    state = DEAD
    return state


STEPS = st.tuples(
    st.integers(0, 3) | st.integers(0, 12),
    st.sampled_from(["poll", "poll", "poll", "beat", "beat", "down", "up", "join"]),
    st.sampled_from([PEER, OTHER]),
)


@given(st.lists(STEPS, min_size=20, max_size=60))
def test_states_are_what_the_whole_history_says(steps: list[tuple[int, str, bytes]]) -> None:
    watching = watcher()
    now, told = 0, {PEER: ALIVE, OTHER: ALIVE}
    history: list[Happened] = []
    for peer in (PEER, OTHER):
        watching.join(peer, 1, 0)
        history.append(Happened(0, "join", peer))
    for sequence, (pause, kind, peer) in enumerate(steps, start=1):
        wake_at = watching.wake_at()
        assert wake_at is not None
        now += pause
        changes: list[tuple[bytes, str]] = []
        if kind == "poll":
            changes = watching.poll(now)
            assert not changes or now >= wake_at, "it changed before it asked to be woken"
        elif kind == "beat":
            changes = watching.beat(peer, 1, sequence, now)
        elif kind == "down":
            changes = watching.down(peer, now)
        elif kind == "up":
            watching.up(peer)
        else:
            changes = watching.join(peer, 1, now)
        history.append(Happened(now, kind, None if kind == "poll" else peer))
        watching.check()
        for changed, state in changes:
            assert told[changed] != state, "told twice"
            told[changed] = state
        for each in (PEER, OTHER):
            assert watching.state(each) == told[each] == model_state(history, each)


# Frames


def test_a_beat_carries_who_where_which_life_and_a_rising_number() -> None:
    beater = Beater(REALM, PEER, incarnation=7)
    beats = [parse(beater.beat(b"body")) for _ in range(3)]
    assert [beat[:4] for beat in beats] == [(REALM, PEER, 7, sequence) for sequence in (1, 2, 3)]
    assert bytes(beats[0][4]) == b"body"


GOOD = Beater(REALM, PEER, 1).beat(b"body")


@pytest.mark.parametrize(
    "frame",
    [b"", GOOD[:1], GOOD[: HEADER_BYTES - 1], b"\x00" + GOOD[1:], GOOD[:1] + b"\x02" + GOOD[2:]],
    ids=["empty", "one byte", "cut short", "another signature", "another version"],
)
def test_a_frame_that_is_no_beat_is_the_peers_fault(frame: bytes) -> None:
    with pytest.raises(RemoteError):
        parse(frame)


@given(st.binary(max_size=80))
def test_no_frame_whatever_does_more_than_raise_a_remote_error(frame: bytes) -> None:
    try:
        parse(frame)
    except RemoteError:
        pass


def test_giant_numbers_are_numbers() -> None:
    frame = HEADER.pack(0xD8, 1, 0, REALM, PEER, (1 << 64) - 1, (1 << 64) - 1)
    _, peer, incarnation, sequence, body = parse(frame)
    watching = watcher()
    watching.join(peer, incarnation, 0)
    watching.beat(peer, incarnation, sequence, 1)
    assert (watching.heard_at(peer), len(body)) == (1, 0)


@pytest.mark.parametrize("figures", [(0, 1, 2), (3, 1, 3), (1, 0, 3), (1, 4, 3)])
def test_periods_that_contradict_each_other_are_the_callers_fault(figures: tuple[float, ...]) -> None:
    with pytest.raises(LocalError):
        Watcher(*figures)
