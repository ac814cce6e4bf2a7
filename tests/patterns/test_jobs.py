"""Jobs: issued again until reported, let in once, whatever the pipe between loses.

The property test runs a dispatcher and workers over a pipe that drops, repeats and
delays frames and reports, while workers restart; the stateful one compares the
dispatcher with two plain lists.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from itertools import count, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from patterns import jobs
from patterns.errors import LocalError, RemoteError
from patterns.jobs import HEADER, HEADER_BYTES, ISSUED, TRANSITIONS, WAITING, Dispatcher, Gate

REALM = b"R" * 16
EPOCH, INCARNATION = 3, 8


def dispatcher(window: int = 2, backlog_max: int = 10, reissue_s: float = 5) -> Dispatcher[str]:
    made: Dispatcher[str] = Dispatcher(REALM, EPOCH, window, backlog_max, reissue_s)
    made.worker(INCARNATION)
    return made


def gate() -> Gate:
    made = Gate(REALM, INCARNATION)
    made.welcome(REALM, EPOCH)
    return made


def bodies(frames: list[bytes]) -> list[bytes]:
    return [frame[HEADER_BYTES:] for frame in frames]


def number(frame: bytes) -> int:
    return int(HEADER.unpack_from(frame)[6])


# The table of states

TO_STATE: dict[str, Callable[[Dispatcher[str]], object]] = {
    WAITING: lambda dispatching: dispatching.add("job", b"body"),
    ISSUED: lambda dispatching: (dispatching.add("job", b"body"), dispatching.poll(0)),
}

EVENTS: dict[str, Callable[[Dispatcher[str]], object]] = {
    "issue": lambda dispatching: dispatching.poll(0),
    "done": lambda dispatching: dispatching.done("job"),
    # With the window full of another job, or the one taken back would be issued again at once.
    "overdue": lambda dispatching: (dispatching.add("next", b""), dispatching.poll(5)),
    "worker changed": lambda dispatching: dispatching.worker(INCARNATION + 1),
}


def state(dispatching: Dispatcher[str], now: float) -> str | None:
    """From outside: an issued job is in, and not issued by a poll while its time runs."""
    if "job" not in dispatching:
        return None
    return WAITING if b"body" in bodies(dispatching.poll(now)) else ISSUED


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_every_transition_of_the_table_is_what_the_dispatcher_does(pair: tuple[str, str]) -> None:
    before, event = pair
    dispatching = dispatcher(window=1)
    TO_STATE[before](dispatching)
    dispatching.check()
    EVENTS[event](dispatching)
    dispatching.check()
    dispatching.done("next")
    assert state(dispatching, now=5 if event == "overdue" else 0) == TRANSITIONS[pair]


@pytest.mark.parametrize("pair", TRANSITIONS, ids=" ".join)
def test_without_its_line_in_the_table_a_transition_cannot_happen(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatching = dispatcher(window=1)
    TO_STATE[pair[0]](dispatching)
    monkeypatch.delitem(jobs.TRANSITIONS, pair)
    with pytest.raises(KeyError):
        EVENTS[pair[1]](dispatching)


# The dispatcher


def test_jobs_are_issued_in_order_within_the_window() -> None:
    dispatching = dispatcher(window=2)
    for key in "abc":
        dispatching.add(key, key.encode())
    assert bodies(dispatching.poll(0)) == [b"a", b"b"]
    assert dispatching.poll(1) == []
    assert dispatching.done("a")
    assert bodies(dispatching.poll(1)) == [b"c"]
    dispatching.check()


def test_a_job_that_nobody_reports_is_issued_again_under_a_higher_number() -> None:
    dispatching = dispatcher(reissue_s=5)
    dispatching.add("a", b"a")
    first = dispatching.poll(0)
    assert dispatching.wake_at() == 5
    assert dispatching.poll(4.9) == []
    again = dispatching.poll(5)
    assert bodies(again) == bodies(first) == [b"a"]
    assert number(again[0]) > number(first[0])
    assert dispatching.counters == Counter({"issued": 2, "overdue": 1})
    dispatching.check()


def test_an_overdue_job_goes_behind_those_that_wait() -> None:
    """One job that can never be done must not keep the others out of the window."""
    dispatching = dispatcher(window=1, reissue_s=5)
    for key in "abc":
        dispatching.add(key, key.encode())
    assert [bodies(dispatching.poll(now)) for now in (0, 5, 10, 15)] == [[b"a"], [b"b"], [b"c"], [b"a"]]


def test_a_job_added_twice_is_one_job() -> None:
    dispatching = dispatcher()
    dispatching.add("a", b"first")
    dispatching.add("a", b"second")
    assert bodies(dispatching.poll(0)) == [b"first"]
    dispatching.add("a", b"third")
    assert len(dispatching) == 1
    assert dispatching.done("a")
    assert not dispatching.done("a")


def test_nothing_is_issued_while_there_is_no_worker() -> None:
    dispatching = dispatcher()
    dispatching.worker(None)
    dispatching.add("a", b"a")
    assert dispatching.poll(0) == []
    assert dispatching.wake_at() is None


def test_a_new_incarnation_gets_what_was_on_the_way_first_in_the_old_order() -> None:
    dispatching = dispatcher(window=2)
    for key in "abcd":
        dispatching.add(key, key.encode())
    dispatching.poll(0)
    dispatching.worker(INCARNATION + 1)
    dispatching.check()
    frames = dispatching.poll(1)
    assert bodies(frames) == [b"a", b"b"]
    assert {HEADER.unpack_from(frame)[5] for frame in frames} == {INCARNATION + 1}


def test_the_same_worker_announced_again_changes_nothing() -> None:
    dispatching = dispatcher()
    dispatching.add("a", b"a")
    dispatching.poll(0)
    dispatching.worker(INCARNATION)
    assert dispatching.poll(1) == []


def test_a_job_over_the_backlog_is_the_callers_fault() -> None:
    dispatching = dispatcher(window=1, backlog_max=2)
    dispatching.add("a", b"")
    dispatching.add("b", b"")
    assert not dispatching.has_room()
    with pytest.raises(LocalError) as raised:
        dispatching.add("c", b"")
    assert raised.value.history == (f"worker is {INCARNATION}",)
    dispatching.check()
    dispatching.done("a")
    dispatching.add("c", b"")


@pytest.mark.parametrize(("window", "backlog_max", "reissue_s"), [(0, 1, 1), (2, 1, 1), (1, 1, 0)])
def test_figures_that_contradict_each_other_are_the_callers_fault(
    window: int, backlog_max: int, reissue_s: float
) -> None:
    with pytest.raises(LocalError):
        Dispatcher(REALM, EPOCH, window, backlog_max, reissue_s)


# The gate


def frame_for(
    realm: bytes = REALM, epoch: int = EPOCH, incarnation: int = INCARNATION, numbered: int = 1
) -> bytes:
    return HEADER.pack(0xD9, 1, 0, realm, epoch, incarnation, numbered) + b"body"


def test_the_gate_lets_a_job_through_once() -> None:
    letting = gate()
    body = letting.accept(frame_for())
    assert body is not None
    assert bytes(body) == b"body"
    assert letting.accept(frame_for()) is None
    assert letting.counters["passed"] == 1


@pytest.mark.parametrize(
    "frame",
    [
        frame_for(realm=b"S" * 16),
        frame_for(epoch=EPOCH - 1),
        frame_for(epoch=EPOCH + 1),
        frame_for(incarnation=INCARNATION - 1),
        frame_for(incarnation=INCARNATION + 1),
    ],
    ids=["realm", "earlier epoch", "later epoch", "earlier life", "later life"],
)
def test_a_job_for_another_life_is_a_counted_drop(frame: bytes) -> None:
    letting = gate()
    assert letting.accept(frame) is None
    assert letting.counters["not-for-us"] == 1
    assert letting.accept(frame_for()) is not None


def test_before_it_is_welcome_nowhere_the_gate_is_shut() -> None:
    assert Gate(REALM, INCARNATION).accept(frame_for(epoch=0)) is None


def test_numbers_rise_within_an_epoch_and_begin_anew_in_the_next() -> None:
    letting = gate()
    accepted = [letting.accept(frame_for(numbered=n)) is not None for n in (5, 4, 6, 6)]
    assert accepted == [True, False, True, False]
    letting.welcome(REALM, EPOCH)
    assert letting.accept(frame_for(numbered=6)) is None
    letting.welcome(REALM, EPOCH + 1)
    assert letting.accept(frame_for(numbered=7)) is None
    assert letting.accept(frame_for(epoch=EPOCH + 1, numbered=1)) is not None


@pytest.mark.parametrize(
    "frame",
    [b"", frame_for()[: HEADER_BYTES - 1], b"\x00" + frame_for()[1:], b"\xd9\x02" + frame_for()[2:]],
    ids=["empty", "cut short", "another signature", "another version"],
)
def test_a_frame_that_is_no_job_leaves_the_gate_as_it_was(frame: bytes) -> None:
    letting = gate()
    with pytest.raises(RemoteError) as raised:
        letting.accept(frame)
    assert raised.value.history == (f"epoch {EPOCH}",)
    assert letting.accept(frame_for()) is not None


@given(st.binary(max_size=80))
def test_no_frame_whatever_does_more_than_raise_a_remote_error(frame: bytes) -> None:
    try:
        assert gate().accept(frame) is None
    except RemoteError:
        pass


def test_a_giant_number_is_the_last_of_its_life() -> None:
    letting = gate()
    assert letting.accept(frame_for(numbered=(1 << 64) - 1)) is not None
    assert letting.accept(frame_for(numbered=(1 << 64) - 1)) is None


# Against two plain lists


class DispatcherAgainstLists(RuleBasedStateMachine):
    @initialize(window=st.integers(1, 3), room=st.integers(0, 4))
    def begin(self, window: int, room: int) -> None:
        self.window, self.backlog_max, self.reissue_s = window, window + room, 5
        self.real: Dispatcher[int] = Dispatcher(REALM, EPOCH, self.window, self.backlog_max, self.reissue_s)
        self.waiting: list[int] = []
        self.issued: list[tuple[int, int]] = []  # overdue at, key
        self.life: int | None = None
        self.now = 0
        self.last_number = 0

    def keys(self) -> list[int]:
        return self.waiting + [key for _, key in self.issued]

    @precondition(lambda self: len(self.keys()) < self.backlog_max)
    @rule(key=st.integers(0, 6))
    def add(self, key: int) -> None:
        self.real.add(key, bytes([key]))
        if key not in self.keys():
            self.waiting.append(key)

    @rule(key=st.integers(0, 6))
    def done(self, key: int) -> None:
        assert self.real.done(key) == (key in self.keys())
        self.waiting = [each for each in self.waiting if each != key]
        self.issued = [each for each in self.issued if each[1] != key]

    @rule(life=st.none() | st.integers(1, 3))
    def worker(self, life: int | None) -> None:
        self.real.worker(life)
        if life != self.life:
            self.life = life
            self.waiting = [key for _, key in self.issued] + self.waiting
            self.issued = []

    @rule(pause=st.integers(0, 6))
    def poll(self, pause: int) -> None:
        self.now += pause
        frames = self.real.poll(self.now)
        expected = []
        if self.life is not None:
            self.waiting += [key for overdue_at, key in self.issued if overdue_at <= self.now]
            self.issued = [each for each in self.issued if each[0] > self.now]
            while self.waiting and len(self.issued) < self.window:
                expected.append(self.waiting.pop(0))
                self.issued.append((self.now + self.reissue_s, expected[-1]))
        assert bodies(frames) == [bytes([key]) for key in expected]
        for frame in frames:
            assert HEADER.unpack_from(frame)[5] == self.life
            assert number(frame) > self.last_number
            self.last_number = number(frame)

    @invariant()
    def the_same(self) -> None:
        self.real.check()
        assert len(self.real) == len(self.keys())
        assert all(key in self.real for key in self.keys())
        assert self.real.has_room() == (len(self.keys()) < self.backlog_max)
        assert self.real.wake_at() == min((at for at, _ in self.issued), default=None)


test_the_dispatcher_does_what_two_lists_would = DispatcherAgainstLists.TestCase


# Over a lossy pipe


class LossyRun:
    """A dispatcher, one worker that restarts, and a pipe each way; time goes in steps of 1."""

    def __init__(self, random: Random, loss: float, repeat: float, delay_max: int, restart: float) -> None:
        self.random = random
        self.loss = loss
        self.repeat = repeat
        self.delay_max = delay_max
        self.restart = restart
        self.dispatching: Dispatcher[int] = Dispatcher(REALM, EPOCH, window=3, backlog_max=50, reissue_s=4)
        self.pipe: list[tuple[int, int, tuple[str, bytes]]] = []  # due, tie, what
        self.ties = count()
        self.now = 0
        self.executed: Counter[bytes] = Counter()
        self.passed: dict[int, list[int]] = {}  # incarnation → numbers that its gate let through
        self.incarnation = 0
        self.start_worker()

    def start_worker(self) -> None:
        self.incarnation += 1
        self.gate = Gate(REALM, self.incarnation)
        self.gate.welcome(REALM, EPOCH)
        self.passed[self.incarnation] = []
        self.send("hello", bytes([self.incarnation]), lossless=True)

    def send(self, kind: str, what: bytes, lossless: bool = False) -> None:
        copies = 1 if lossless else (self.random.random() >= self.loss) + (self.random.random() < self.repeat)
        for _ in range(copies):
            due = self.now + self.random.randint(0, self.delay_max)
            heapq.heappush(self.pipe, (due, next(self.ties), (kind, what)))

    def step(self) -> None:
        self.now += 1
        if self.random.random() < self.restart:
            self.start_worker()
        while self.pipe and self.pipe[0][0] <= self.now:
            kind, what = heapq.heappop(self.pipe)[2]
            if kind == "hello" and what[0] == self.incarnation:
                self.dispatching.worker(what[0])
            elif kind == "job":
                body = self.gate.accept(what)
                if body is not None:
                    self.passed[self.incarnation].append(number(what))
                    self.executed[bytes(body)] += 1
                    self.send("report", bytes(body))
            elif kind == "report":
                self.dispatching.done(what[0])
            self.dispatching.check()
        for frame in self.dispatching.poll(self.now):
            self.send("job", frame)
        self.dispatching.check()


@given(
    random=st.randoms(use_true_random=True),
    loss=st.sampled_from([0, 0.2, 0.6]),
    repeat=st.sampled_from([0, 0.3]),
    delay_max=st.integers(0, 8),
    restart=st.sampled_from([0, 0.1]),
    jobs_wanted=st.integers(1, 20),
)
def test_every_job_is_done_in_the_end_over_a_lossy_pipe(
    random: Random, loss: float, repeat: float, delay_max: int, restart: float, jobs_wanted: int
) -> None:
    run = LossyRun(random, loss, repeat, delay_max, restart)
    for key in range(jobs_wanted):
        run.dispatching.add(key, bytes([key]))
    for _ in range(50):
        run.step()
    # From here on the pipe is only slow, and slower than reissue_s may make work double but not endless.
    run.loss = run.restart = 0
    for _ in range(500):
        if not len(run.dispatching):
            break
        run.step()
    assert len(run.dispatching) == 0
    assert set(run.executed) == {bytes([key]) for key in range(jobs_wanted)}
    for numbers in run.passed.values():
        assert all(earlier < later for earlier, later in pairwise(numbers))


@given(random=st.randoms(use_true_random=True), jobs_wanted=st.integers(1, 20))
def test_over_a_pipe_that_loses_nothing_every_job_runs_once(random: Random, jobs_wanted: int) -> None:
    run = LossyRun(random, loss=0, repeat=0.5, delay_max=0, restart=0)
    for key in range(jobs_wanted):
        run.dispatching.add(key, bytes([key]))
    while len(run.dispatching):
        run.step()
    assert set(run.executed.values()) == {1}
