"""A group that shares a resource, in virtual time, on the network of `patterns.sim`.

What lives here: members and the work that they pretend to do, their resource, and what
is counted and measured of them. What must not: real clocks and sockets, the algorithms.

Used by the benchmark and by the tests, which break the group's hosts and connections.
Each member asks, is granted, uses the resource, uses it again hold_s after the answer,
releases when that is answered, and thinks. Uses are not counted as messages.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from patterns.mutex.coordinator import Coordinator, Member
from patterns.mutex.interface import HELD, Effect, Granted, Lost, Machine, Message, Mutex, Send
from patterns.mutex.resource import Resource
from patterns.mutex.ricart_agrawala import RicartAgrawala
from patterns.mutex.token_ring import TokenRing
from patterns.sim.clock import Clock
from patterns.sim.connections import PULL, PUSH, Frames
from patterns.sim.network import Network, Socket

COORDINATOR, RICART_AGRAWALA, TOKEN_RING = "coordinator", "ricart-agrawala", "token-ring"
ALGORITHMS: Final = (COORDINATOR, RICART_AGRAWALA, TOKEN_RING)


@dataclass(frozen=True)
class Timing:
    """The settings of all three algorithms, in seconds; each is explained at its machine."""

    lease_s: float = 2.0
    margin_s: float = 0.1
    held_max_s: float = 10.0
    retry_s: float = 0.5
    suspect_s: float = 2.0
    rest_s: float = 0.01
    lost_s: float = 2.0
    answer_s: float = 0.5


def member_of(
    algorithm: str, me: int, members: tuple[int, ...], incarnation: int, timing: Timing, now: float
) -> Mutex:
    """A member's machine. The coordinator's number is the one after the last member's."""
    if algorithm == COORDINATOR:
        return Member(me, max(members) + 1, incarnation, timing.retry_s)
    if algorithm == RICART_AGRAWALA:
        return RicartAgrawala(me, members, incarnation, timing.retry_s, timing.suspect_s)
    return TokenRing(me, members, incarnation, timing.rest_s, timing.lost_s, timing.answer_s, now)


def coordinator_of(me: int, epoch: int, timing: Timing, now: float) -> Coordinator:
    return Coordinator(me, epoch, timing.lease_s, timing.margin_s, timing.held_max_s, now)


class Use(NamedTuple):
    """One use as the resource saw it."""

    member: int
    fence: int


class Group:
    """think_s(rng): how long a member thinks between two entries; hold_s: how long it stays in.

    askers: how many of the members ask at all. use_travels: a use takes a message's time there
        and back; else it takes none.
    """

    def __init__(
        self,
        algorithm: str,
        size: int,
        rng: Random,
        timing: Timing,
        think_s: Callable[[Random], float],
        hold_s: float,
        delay_s: float,
        late_s: float = 0.0,
        *,
        askers: int | None = None,
        use_travels: bool = True,
    ) -> None:
        self.algorithm = algorithm
        self.timing = timing
        self.rng = rng
        self.think_s = think_s
        self.hold_s = hold_s
        self.use_travels = use_travels
        self.askers = size if askers is None else askers
        self.clock = Clock()
        self.network = Network(self.clock, rng, delay_s, late_s)
        self.resource = Resource()
        self.accepted: list[Use] = []
        """Every use that the resource accepted, in order."""
        self.messages: Counter[int] = Counter()
        """Sent messages by kind."""
        self.entries: Counter[int] = Counter()
        """By member, those that began and ended with an accepted use."""
        self.waits_s: list[float] = []
        """From each request to its grant."""
        self.outcomes: Counter[str] = Counter()
        self.members = tuple(range(size))
        numbers = (*self.members, size) if algorithm == COORDINATOR else self.members
        self.nodes = {number: Node(self, number) for number in numbers}
        for node in self.nodes.values():
            node.start()

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        return self.clock.run(until, stop)

    def check(self) -> None:
        """The machines' own invariants."""
        self.resource.check()
        for node in self.nodes.values():
            if node.host.up:
                node.machine.check()


class Node:
    """One process: the coordinator, or a member with its work."""

    def __init__(self, group: Group, number: int) -> None:
        self.group = group
        self.number = number
        self.host = group.network.host(f"node-{number}")
        self.machine: Machine
        self.mutex: Mutex | None = None
        self._starts = 0
        self._links: dict[int, Socket] = {}
        self._asked_at = 0.0
        self._wake_at: float | None = None

    def start(self) -> None:
        """A new life, whose incarnation is one more than the last."""
        group, now = self.group, self.group.clock.now
        self.host.start()
        self._links = {}
        self._wake_at = None
        if self.number in group.members:
            self.mutex = member_of(
                group.algorithm, self.number, group.members, self._starts, group.timing, now
            )
            self.machine = self.mutex
            if self.number < group.askers:
                self.host.after(group.think_s(group.rng), self._ask)
        else:
            self.machine = coordinator_of(self.number, self._starts, group.timing, now)
        self._starts += 1
        inbox = Socket(self.host, PULL)
        inbox.on_message = self._received
        inbox.bind(f"node-{self.number}")
        self._schedule()

    def _received(self, peer: int, frames: Frames) -> None:
        message: Message = frames[0]
        self._carry_out(self.machine.receive(message, self.group.clock.now))

    def _poll(self, when: float) -> None:
        if when == self._wake_at:
            self._wake_at = None
            self._carry_out(self.machine.poll(self.group.clock.now))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self.group.messages[message.kind] += 1
                    self._link(to).send((message,))
                case Granted(fence, _):
                    self._granted(fence)
                case Lost():
                    # The work notices in the middle of what it does: later than it should.
                    self.group.outcomes["lost"] += 1
        self._schedule()

    def _link(self, to: int) -> Socket:
        if to not in self._links:
            self._links[to] = Socket(self.host, PUSH, hwm=100)
            self._links[to].connect(f"node-{to}")
        return self._links[to]

    def _schedule(self) -> None:
        wake_at = self.machine.wake_at()
        if wake_at is not None and wake_at != self._wake_at:
            self._wake_at = wake_at
            self.host.at(wake_at, self._poll, wake_at)
        elif wake_at is None:
            self._wake_at = None

    # The work

    def _ask(self) -> None:
        assert self.mutex is not None
        self._asked_at = self.group.clock.now
        self._carry_out(self.mutex.request(self._asked_at))

    def _granted(self, fence: int) -> None:
        self.group.waits_s.append(self.group.clock.now - self._asked_at)
        self._use(fence, is_last=False)

    def _use(self, fence: int, is_last: bool) -> None:
        """Whatever has become of the grant: a member that was paused does not know."""
        self.group.clock.after(self._way_s(), self._used, fence, is_last, self.host.life)

    def _used(self, fence: int, is_last: bool, life: int) -> None:
        group = self.group
        accepted = group.resource.use(fence)
        if accepted:
            group.accepted.append(Use(self.number, fence))
            group.entries[self.number] += is_last
        else:
            group.outcomes["refused"] += 1
        if life == self.host.life:
            highest = group.resource.highest
            self.host.after(self._way_s(), self._answered, fence, is_last, accepted, highest)

    def _answered(self, fence: int, is_last: bool, accepted: bool, highest: int) -> None:
        if accepted and not is_last:
            self.host.after(self.group.hold_s, self._use, fence, True)
            return
        assert self.mutex is not None
        now = self.group.clock.now
        if not accepted and self.mutex.state == HELD:
            self._carry_out(self.mutex.refused(highest, now))
        self._carry_out(self.mutex.release(now))
        self.host.after(self.group.think_s(self.group.rng), self._ask)

    def _way_s(self) -> float:
        return self.group.network.draw_delay_s() if self.group.use_travels else 0.0
