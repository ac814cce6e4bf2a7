"""Mutual exclusion over real sockets: nodes of one thread, driven step by step, then whole processes.

Time is a number that the tests move on; only messages are waited for.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from patterns.errors import LocalError
from patterns.mutex.group import ALGORITHMS, COORDINATOR, TOKEN_RING, Timing, coordinator_of, member_of
from patterns.mutex.interface import HELD, IDLE, Message, pack
from patterns.mutex.resource import Resource
from patterns.zeromq.mutex import FRAME_MAX_BYTES, HWM, MutexNode

ROOT = Path(__file__).resolve().parents[3]
REALM = b"R" * 16
MEMBERS = (0, 1, 2)
Until = Callable[..., None]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Nodes:
    """A whole group in one thread."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], algorithm: str, address: Callable[[], str]
    ) -> None:
        self.clock = Clock()
        self.granted: list[tuple[int, int]] = []
        self.lost: list[tuple[int, str]] = []
        self.nodes: dict[int, MutexNode] = {}
        self.alive = set(range(len(MEMBERS) + (algorithm == COORDINATOR)))
        timing = Timing(lease_s=2, suspect_s=2, lost_s=2, rest_s=0)
        for number in sorted(self.alive):
            machine = (
                member_of(algorithm, number, MEMBERS, 0, timing, 0.0)
                if number in MEMBERS
                else coordinator_of(number, 0, timing, 0.0)
            )
            self.nodes[number] = MutexNode(
                context,
                machine,
                REALM,
                address(),
                self.clock,
                lambda fence, _until, number=number: self.granted.append((number, fence)),  # type: ignore[misc]
                lambda _fence, reason, number=number: self.lost.append((number, reason)),  # type: ignore[misc]
            )
        for number, node in self.nodes.items():
            node.connect({each: other.endpoint for each, other in self.nodes.items() if each != number})

    def step(self) -> None:
        for number in self.alive:
            self.nodes[number].drain(10)
        for number in self.alive:
            self.nodes[number].tick(self.clock.now)

    def later(self) -> None:
        self.clock.now += 0.05

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()


@pytest.fixture
def group(
    request: pytest.FixtureRequest,
    context: zmq.Context[zmq.Socket[bytes]],
    address: Callable[[], str],
) -> Iterator[Nodes]:
    made = Nodes(context, request.param, address)
    yield made
    made.close()


of_all = pytest.mark.parametrize("group", ALGORITHMS, indirect=True)
of_coordinator = pytest.mark.parametrize("group", [COORDINATOR], indirect=True)


@of_all
def test_all_enter_one_after_the_other_with_rising_numbers(group: Nodes, until: Until) -> None:
    resource = Resource()
    for number in MEMBERS:
        group.nodes[number].request()
    for turn in range(9):
        until(lambda turn=turn: len(group.granted) > turn, group.step, group.later)
        number, fence = group.granted[turn]
        assert [each for each in MEMBERS if group.nodes[each].machine.state == HELD] == [number]
        assert resource.use(fence)
        group.nodes[number].release()
        group.nodes[number].request()
    assert len({number for number, _ in group.granted}) == len(MEMBERS)
    assert not group.lost
    assert not any(node.counters["refused messages"] for node in group.nodes.values())


@of_all
def test_a_silent_holder_is_passed_over_and_refused_when_it_wakes(group: Nodes, until: Until) -> None:
    resource = Resource()
    for number in MEMBERS:
        group.nodes[number].request()
    until(lambda: group.granted, group.step, group.later)
    asleep, old = group.granted[0]
    assert resource.use(old)
    group.alive.remove(asleep)
    until(lambda: len(group.granted) > 1, group.step, group.later)
    awake, new = group.granted[1]
    assert awake != asleep
    assert resource.use(new)
    group.alive.add(asleep)
    assert group.nodes[asleep].machine.state == HELD  # it believes so
    assert not resource.use(old)
    group.nodes[asleep].refused(resource.highest)
    group.nodes[asleep].release()
    group.nodes[asleep].request()
    group.nodes[awake].release()
    until(
        lambda: group.granted[-1][0] == asleep,
        group.step,
        group.later,
        lambda: let_others_through(group, asleep),
    )
    assert group.granted[-1][1] > new


def let_others_through(group: Nodes, but: int) -> None:
    for number in MEMBERS:
        if number != but and group.nodes[number].machine.state == HELD:
            group.nodes[number].release()


HOSTILE = {
    "nothing": [b""],
    "junk": [b"junk" * 20],
    "another lock": [pack(b"S" * 16, Message(1, 1, 1))],
    "a stranger": [pack(REALM, Message(12, 77, 1, 1 << 48))],
    "several frames": [pack(REALM, Message(1, 1, 1)), b"", b"more"],
}


@of_all
def test_what_a_hostile_peer_sends_is_counted_and_the_node_goes_on(
    group: Nodes, until: Until, sockets: Callable[..., zmq.Socket[bytes]]
) -> None:
    node = group.nodes[0]
    attacker = sockets(zmq.PUSH, connect=node.endpoint)
    for frames in HOSTILE.values():
        attacker.send_multipart(frames)
    counters = node.counters
    until(
        lambda: counters["refused messages"] + counters["too many frames"] == len(HOSTILE),
        lambda: node.drain(10),
    )
    assert node.last_error is not None
    node.request()
    until(lambda: group.granted, group.step, group.later)
    assert group.granted[0][0] == 0


@of_coordinator
def test_a_frame_over_the_bound_ends_the_senders_connection_only(
    group: Nodes, until: Until, sockets: Callable[..., zmq.Socket[bytes]]
) -> None:
    if group.nodes[0].endpoint.startswith("inproc"):
        pytest.skip("inproc has no bound on frames")
    attacker = sockets(zmq.PUSH, connect=group.nodes[0].endpoint)
    attacker.send(bytes(FRAME_MAX_BYTES + 1))
    group.nodes[0].request()
    until(lambda: group.granted, group.step, group.later)


@of_coordinator
def test_sends_to_who_does_not_read_are_counted_drops_and_never_block(group: Nodes) -> None:
    node = group.nodes[0]
    for _ in range(3 * HWM):
        node.request()
        node.release()
    assert node.counters["not sent: full"] > 0


@of_coordinator
def test_the_coordinator_asks_for_nothing(group: Nodes) -> None:
    with pytest.raises(LocalError):
        group.nodes[3].request()


@of_coordinator
def test_a_node_without_an_endpoint_for_a_member_counts_what_it_cannot_send(
    group: Nodes, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    lonely = MutexNode(
        context, member_of(COORDINATOR, 0, MEMBERS, 0, Timing(), 0.0), REALM, "inproc://lonely", group.clock,
        lambda _fence, _until: None, lambda _fence, _reason: None,
    )  # fmt: skip
    lonely.request()
    lonely.close()
    assert lonely.counters["not sent: no endpoint"] == 1
    assert lonely.machine.state != IDLE


@pytest.mark.parametrize("group", [TOKEN_RING], indirect=True)
def test_a_member_that_moved_is_connected_to_anew(
    group: Nodes, until: Until, sockets: Callable[..., zmq.Socket[bytes]]
) -> None:
    inbox = sockets(zmq.PULL, bind="inproc://moved")
    group.nodes[0].connect({1: "inproc://moved"})
    group.clock.now = 10.0
    group.nodes[0].tick(10.0)  # it searches: member 1 is asked where it is now
    assert inbox.poll(5000)


# Processes


@pytest.mark.slow
@pytest.mark.parametrize("fault", [False, True], ids=["undisturbed", "with a fault"])
def test_the_demo_tells_of_all_three_and_ends_well(fault: bool) -> None:
    code = f"from patterns.demos.mutex import run; run({fault})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [name for name in ALGORITHMS if f"--- {name}:" in done.stdout] == list(ALGORITHMS)
    assert done.stdout.count("refuses member-") >= (3 if fault else 0)
    assert ("refuses" in done.stdout) == fault


# The command line


def run_bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "patterns.mutex", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_benchmark_prints_the_count_beside_the_theory() -> None:
    done = run_bench("bench", "--virtual", "--sizes", "3")
    assert done.returncode == 0, done.stderr
    assert "3.00 (3)" in done.stdout
    assert "4.00 (4)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "required: COMMAND"),
        (("bench", "--sizes", "two"), "no list of numbers"),
        (("bench", "--sizes", "1"), "2 to 256 members"),
        (("bench", "--seconds", "soon"), "no number of seconds"),
        (("bench", "--seconds", "0"), "0.1 to 60 seconds"),
    ],
)
def test_bad_usage_says_what_is_wanted(arguments: tuple[str, ...], words: str) -> None:
    done = run_bench(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
