"""The heap of events: what is executed when, in which order, and what its digest tells apart."""

from random import Random

import pytest

from patterns.sim.clock import Clock, Trace


def test_events_happen_in_the_order_of_their_times_and_of_one_time_in_the_order_of_scheduling(
    seed: int,
) -> None:
    rng = Random(seed)
    clock, done = Clock(), []
    wanted = []
    for number in range(500):
        when = rng.choice([0.5, 1.0, rng.random() * 2])
        wanted.append((when, number))
        clock.at(when, lambda *what: done.append((clock.now, *what)), number)
    clock.run(3.0)
    assert done == sorted(wanted) and clock.now == 3.0 and clock.executed == 500


def test_what_is_due_in_the_past_happens_now_and_time_never_goes_back() -> None:
    clock, times = Clock(10.0), []
    clock.at(11.0, lambda: clock.at(3.0, lambda: times.append(clock.now)))
    clock.after(-5.0, lambda: times.append(clock.now))
    clock.run(20.0)
    assert times == [10.0, 11.0]


def test_it_runs_to_a_time_or_until_something_holds() -> None:
    clock, done = Clock(), []
    for when in (1.0, 2.0, 3.0):
        clock.at(when, done.append, when)
    assert not clock.run(0.5) and not done
    assert clock.run(10.0, stop=lambda: len(done) == 2)
    assert (done, clock.now, len(clock)) == ([1.0, 2.0], 2.0, 1)
    assert not clock.run(2.5, stop=lambda: False) and clock.now == 2.5
    clock.run(10.0)
    assert len(clock) == 0


def test_after_every_event_the_checks_run() -> None:
    clock, seen = Clock(), []
    clock.after_event = lambda: seen.append(clock.executed)
    for _ in range(3):
        clock.after(1.0, lambda: None)
    clock.run(2.0)
    assert seen == [1, 2, 3]


def digest_of(*events: tuple[float, str], frames: tuple[bytes, ...] = ()) -> str:
    class Things:
        def one(self) -> None: ...

        def two(self) -> None: ...

    trace = Trace()
    for when, name in events:
        trace.event(when, getattr(Things(), name))
    trace.message(frames)
    return trace.hexdigest()


def test_a_digest_is_of_times_actions_order_and_messages() -> None:
    whole = digest_of((1.0, "one"), (2.0, "two"), frames=(b"a", b"b"))
    assert whole == digest_of((1.0, "one"), (2.0, "two"), frames=(b"a", b"b"))
    others = [
        digest_of((1.0, "one"), (2.0, "two")),
        digest_of((1.0, "one"), (2.0, "one"), frames=(b"a", b"b")),
        digest_of((2.0, "two"), (1.0, "one"), frames=(b"a", b"b")),
        digest_of((1.0 + 1e-15, "one"), (2.0, "two"), frames=(b"a", b"b")),
        digest_of((1.0, "one"), (2.0, "two"), frames=(b"ab",)),
        digest_of((1.0, "one"), (2.0, "two"), frames=(b"a", b"c")),
    ]
    assert len({whole, *others}) == 7


@pytest.mark.parametrize("seed", range(3))
def test_two_runs_of_one_seed_have_one_digest(seed: int) -> None:
    def play() -> str:
        rng, clock = Random(seed), Clock()
        clock.trace = trace = Trace()

        def again(left: int) -> None:
            if left:
                clock.after(rng.random(), again, left - 1)

        again(50)
        clock.run(100.0)
        return trace.hexdigest()

    assert play() == play()
