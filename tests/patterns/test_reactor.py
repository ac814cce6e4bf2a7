"""The reactor: each ready socket gets its share of a round, and no deadline is slept through.

Rounds are counted instead of timed. Only the tests of waiting look at a clock, and then
only for a lower bound or at how often the loop went round.
"""

import os
from collections.abc import Callable
from time import monotonic

import pytest
import zmq

from patterns.zeromq.reactor import Reactor

Socket = zmq.Socket[bytes]
Make = Callable[..., Socket]


def never() -> None:
    return None


class Source:
    """A PUSH–PULL pair; its handler takes at most as many messages as it is told to."""

    def __init__(self, make: Make, name: str, waiting: int) -> None:
        self.pull, self.push = make(zmq.PULL, hwm=0), make(zmq.PUSH, hwm=0)
        self.pull.bind(f"inproc://{name}")
        self.push.connect(f"inproc://{name}")
        self.taken = 0
        for _ in range(waiting):
            self.push.send(b"")

    def handle(self, quantum: int) -> None:
        for _ in range(quantum):
            if not self.pull.poll(0):
                return
            self.pull.recv()
            self.taken += 1


def test_a_flood_on_one_socket_does_not_starve_another(make: Make) -> None:
    flood, rare = Source(make, "flood", waiting=1000), Source(make, "rare", waiting=3)
    rounds: list[float] = []
    reactor = Reactor(never, rounds.append)
    reactor.add(flood.pull, flood.handle, quantum=10)
    reactor.add(rare.pull, rare.handle, quantum=1)
    for done in range(1, 4):
        reactor.run_once()
        assert (flood.taken, rare.taken, len(rounds)) == (10 * done, done, done)
    rare.push.send(b"")
    reactor.run_once()
    assert (flood.taken, rare.taken) == (40, 4)


def test_what_is_left_of_a_flood_is_taken_in_the_next_rounds(make: Make) -> None:
    flood = Source(make, "flood", waiting=25)
    reactor = Reactor(never, lambda _: None)
    reactor.add(flood.pull, flood.handle, quantum=10)
    for _ in range(3):
        reactor.run_once()
    assert flood.taken == 25


def test_a_round_ends_with_the_time_even_if_nothing_came() -> None:
    times: list[float] = []
    Reactor(lambda: 7.0, times.append, clock=lambda: 7.0).run_once()
    assert times == [7.0]


@pytest.mark.parametrize("wake_at", [None, 1e9], ids=["no deadline", "a far one"])
def test_a_forgotten_deadline_costs_the_longest_wait_and_no_more(make: Make, wake_at: float | None) -> None:
    silent, times = Source(make, "silent", waiting=0), list[float]()
    reactor = Reactor(lambda: wake_at, times.append, longest_wait_s=0.02)
    reactor.add(silent.pull, silent.handle, quantum=1)
    started = monotonic()
    reactor.run_once()
    assert len(times) == 1
    assert 0.015 <= times[0] - started < 5


def test_a_deadline_is_waited_for_and_not_spun_at(make: Make) -> None:
    silent, rounds = Source(make, "silent", waiting=0), list[float]()
    wake_at = monotonic() + 0.0205
    reactor = Reactor(lambda: wake_at, rounds.append)
    reactor.add(silent.pull, silent.handle, quantum=1)
    while not rounds or rounds[-1] < wake_at:
        reactor.run_once()
    assert len(rounds) <= 5


def test_without_sockets_a_deadline_is_waited_for_too() -> None:
    wake_at = monotonic() + 0.0205
    rounds: list[float] = []
    reactor = Reactor(lambda: wake_at, rounds.append)
    while not rounds or rounds[-1] < wake_at:
        reactor.run_once()
    assert len(rounds) <= 5


def test_a_socket_removed_in_a_round_is_not_handled_in_it(make: Make) -> None:
    first, second = Source(make, "first", waiting=1), Source(make, "second", waiting=1)
    reactor = Reactor(never, lambda _: None)

    def only_one(source: Source, other: Source) -> Callable[[int], None]:
        def handle(quantum: int) -> None:
            source.handle(quantum)
            reactor.remove(other.pull)

        return handle

    reactor.add(first.pull, only_one(first, second), quantum=1)
    reactor.add(second.pull, only_one(second, first), quantum=1)
    reactor.run_once()
    assert sorted([first.taken, second.taken]) == [0, 1]


def test_a_file_descriptor_is_as_good_as_a_socket() -> None:
    reading, writing = os.pipe()
    read: list[bytes] = []
    reactor = Reactor(never, lambda _: None)
    reactor.add(reading, lambda quantum: read.append(os.read(reading, quantum)), quantum=3)
    os.write(writing, b"rung")
    reactor.run_once()
    reactor.run_once()
    assert read == [b"run", b"g"]
    reactor.remove(reading)
    os.close(reading)
    os.close(writing)


def test_it_runs_until_a_handler_stops_it(make: Make) -> None:
    source = Source(make, "source", waiting=5)
    reactor = Reactor(never, lambda _: reactor.stop() if source.taken == 5 else None)
    reactor.add(source.pull, source.handle, quantum=1)
    reactor.run()
    assert source.taken == 5
