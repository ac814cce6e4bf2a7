"""A network worse than ZeroMQ's: messages are lost, repeated and overtake each other, and time leaps.

No correct machine may take another's message for a breach of the protocol, no grant may have
the number of another, and the resource's order must hold.
"""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterns.mutex.coordinator import Coordinator
from patterns.mutex.group import ALGORITHMS, COORDINATOR, Timing, coordinator_of, member_of
from patterns.mutex.interface import HELD, IDLE, WAITING, Effect, Granted, Message, Mutex, Send
from patterns.mutex.resource import Resource
from patterns.mutex.token_ring import RESTING

STEPS = 1500


class Chaos:
    """Machines and a bag of messages: one step takes any message, or any member, or time."""

    def __init__(self, algorithm: str, size: int, rng: Random) -> None:
        self.algorithm = algorithm
        self.rng = rng
        self.now = 0.0
        self.members = tuple(range(size))
        self.lives = [0] * size
        self.machines: dict[int, Mutex | Coordinator] = {
            number: member_of(algorithm, number, self.members, 0, Timing(), 0.0) for number in self.members
        }
        if algorithm == COORDINATOR:
            self.machines[size] = coordinator_of(size, 0, Timing(), 0.0)
        self.bag: list[tuple[int, Message]] = []
        self.held: dict[int, int] = {}
        self.owners: dict[int, tuple[int, int]] = {}
        self.accepted: list[int] = []
        self.resource = Resource()

    def step(self) -> None:
        act = self.rng.choice([self.deliver] * 6 + [self.pass_time] * 2 + [self.work] * 3 + [self.start_anew])
        act()
        for machine in self.machines.values():
            machine.check()

    def deliver(self) -> None:
        if self.bag:
            place = self.rng.randrange(len(self.bag))
            to, message = self.bag[place]
            if self.rng.random() < 0.9:
                self.bag.pop(place)  # else it comes once more
            if self.rng.random() < 0.95:
                self.carry_out(to, self.machines[to].receive(message, self.now))

    def pass_time(self) -> None:
        self.now += self.rng.choice([0.001, 0.1, 1.0, 3.0])
        number = self.rng.choice(list(self.machines))
        self.carry_out(number, self.machines[number].poll(self.now))

    def work(self) -> None:
        number = self.rng.choice(self.members)
        machine = self.machines[number]
        assert not isinstance(machine, Coordinator)
        if number in self.held and self.rng.random() < 0.7:
            self.use(number, self.held[number], machine)
        elif machine.state in (IDLE, RESTING):
            self.carry_out(number, machine.request(self.now))
        elif machine.state != WAITING or self.rng.random() < 0.1:
            self.held.pop(number, None)
            self.carry_out(number, machine.release(self.now))

    def use(self, number: int, fence: int, machine: Mutex) -> None:
        """Also after the grant has ended: who uses it may not know."""
        if self.resource.use(fence):
            self.accepted.append(fence)
        elif machine.state == HELD:
            self.carry_out(number, machine.refused(self.resource.highest, self.now))

    def start_anew(self) -> None:
        if self.rng.random() < 0.05:
            number = self.rng.choice(self.members)
            self.lives[number] += 1
            self.held.pop(number, None)
            self.machines[number] = member_of(
                self.algorithm, number, self.members, self.lives[number], Timing(), self.now
            )

    def carry_out(self, number: int, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.bag.append((effect.to, effect.message))
            elif isinstance(effect, Granted):
                owner = (number, self.lives[number])
                assert self.owners.setdefault(effect.fence, owner) == owner, "one number granted twice"
                self.held[number] = effect.fence


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(seed=st.integers(0, 1 << 32), size=st.integers(2, 5))
@settings(max_examples=25)
def test_safe_whatever_the_network_does(algorithm: str, seed: int, size: int) -> None:
    chaos = Chaos(algorithm, size, Random(seed))
    for _ in range(STEPS):
        chaos.step()
    assert chaos.accepted == sorted(chaos.accepted)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_such_runs_do_grant_and_do_refuse(algorithm: str, seed: int) -> None:
    rng = Random(seed)
    runs = [Chaos(algorithm, 3, rng) for _ in range(10)]
    for chaos in runs:
        for _ in range(STEPS):
            chaos.step()
    assert sum(len(chaos.owners) for chaos in runs) > 50
    assert sum(chaos.resource.counters["refused: older number"] for chaos in runs) > 0
