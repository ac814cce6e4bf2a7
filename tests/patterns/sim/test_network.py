"""The simulated network: each thing that a message may meet, one at a time; then random lives of a connection
against what must hold of any; test_network_as_zeromq.py compares it with ZeroMQ itself."""

from random import Random
from typing import Any

import pytest

from patterns.errors import LocalError
from patterns.sim.clock import Clock
from patterns.sim.connections import DEALER, HEARTBEAT_TIMEOUT_S, PUB, PULL, PUSH, ROUTER, SUB
from patterns.sim.network import Host, Network, Socket, Unreachable


class Pair:
    """Two hosts: one binds, one connects."""

    def __init__(self, kind: str = DEALER, bound: str = ROUTER, hwm: int = 1000, seed: int = 1) -> None:
        self.clock = Clock()
        self.network = Network(self.clock, Random(seed))
        self.near, self.far = self.network.host("near"), self.network.host("far")
        self.near.start()
        self.far.start()
        self.kinds = kind, bound
        self.hwm = hwm
        self.came: list[Any] = []
        self.back: list[Any] = []
        self.links: list[bool] = []
        self.peers: list[int] = []
        self.server = self.bind()
        self.client = self.connect()

    def bind(self) -> Socket:
        socket = Socket(self.far, self.kinds[1], self.hwm)
        socket.on_message = self._arrived
        socket.bind("far:1")
        return socket

    def connect(self) -> Socket:
        socket = Socket(self.near, self.kinds[0], self.hwm)
        socket.on_message = lambda peer, frames: self.back.append(frames[0])
        socket.on_link = self.links.append
        socket.connect("far:1")
        return socket

    def _arrived(self, peer: int, frames: Any) -> None:
        self.came.append(frames[0])
        self.peers.append(peer)

    def run(self, seconds: float = 1.0) -> None:
        self.clock.run(self.clock.now + seconds)

    def send(self, *messages: Any) -> list[bool]:
        return [self.client.send((message,)) for message in messages]

    def lose(self) -> None:
        for connection in self.network.connections():
            connection.lose()


def test_messages_arrive_in_order_after_a_delay() -> None:
    pair = Pair()
    pair.network.late_s = 5.0
    assert all(pair.send(*range(200)))
    assert pair.came == []
    pair.run(20.0)
    assert pair.came == list(range(200)) and pair.links == [True]


def test_a_router_answers_each_connection_by_its_own_routing_id() -> None:
    pair = Pair()
    other = Socket(pair.near, DEALER)
    other.on_message = lambda peer, frames: pair.back.append(("other", frames[0]))
    other.connect("far:1")
    pair.send("a")
    other.send(("b",))
    pair.run()
    for peer, message in zip(pair.peers, pair.came, strict=True):
        pair.server.send((message.upper(),), peer)
    pair.run()
    assert sorted(map(str, pair.back)) == ["('other', 'B')", "A"]
    with pytest.raises(Unreachable):
        pair.server.send(("c",), 77)


def test_a_peer_that_left_is_unreachable_and_comes_back_as_another() -> None:
    pair = Pair()
    pair.send("a")
    pair.run()
    pair.lose()
    pair.run()
    assert pair.links == [True, False, True]
    with pytest.raises(Unreachable):
        pair.server.send(("late",), pair.peers[0])
    pair.send("b")
    pair.run()
    assert pair.peers[1] != pair.peers[0]


def test_messages_wait_for_the_connection_up_to_the_high_water_mark() -> None:
    pair = Pair(hwm=3)
    pair.server.close()
    pair.run()
    assert pair.send(*range(5)) == [True, True, True, False, False]
    pair.server = pair.bind()
    pair.run()
    assert pair.came == [0, 1, 2]


def test_what_is_on_the_way_is_lost_with_its_connection_and_what_waits_is_not() -> None:
    pair = Pair()
    pair.run()
    pair.send("on the way")
    pair.lose()
    pair.send("into the void: this end does not know yet")
    pair.run(0.01)
    assert pair.links == [True, False]
    pair.send("waits")
    pair.run()
    assert pair.came == ["waits"]


def test_unread_is_what_may_still_be_read() -> None:
    pair = Pair()
    pair.send("waits")
    assert pair.client.unread == 1
    pair.run()
    assert pair.came == ["waits"] and pair.client.unread == 0
    pair.far.pause()
    pair.send("comes", "comes, too")
    pair.run()
    assert pair.client.unread == 2, "they came, and nobody reads"
    pair.far.resume()
    pair.run()
    assert len(pair.came) == 3 and pair.client.unread == 0
    pair.send("on the way")
    pair.lose()
    assert pair.client.unread == 0
    pair.run()
    assert len(pair.came) == 3


def test_a_paused_host_still_reads_what_came_by_a_connection_that_is_lost() -> None:
    pair = Pair()
    pair.run()
    pair.far.pause()
    pair.send("came")
    pair.run()
    pair.lose()
    assert pair.client.unread == 0 and pair.far.unread == 1
    pair.far.resume()
    pair.run()
    assert pair.came == ["came"] and pair.far.unread == 0


def test_a_queue_is_lost_with_its_socket() -> None:
    pair = Pair()
    pair.server.close()
    pair.run()
    pair.send("lost")
    pair.client.close()
    pair.client = pair.connect()
    pair.send("kept")
    pair.server = pair.bind()
    pair.run()
    assert pair.came == ["kept"]


def test_a_crash_ends_sockets_timers_and_the_peer_hears_of_it() -> None:
    pair = Pair()
    pair.run()
    pair.far.after(0.5, pair.came.append, "a timer of a life that is over")
    pair.far.crash()
    pair.far.after(0.1, pair.came.append, "a timer of nobody")
    pair.run(0.2)
    assert pair.links == [True, False]
    pair.far.start()
    pair.server = pair.bind()
    pair.run(3.0)
    assert pair.links == [True, False, True] and pair.came == []


def test_a_crashed_client_is_gone_for_the_router() -> None:
    pair = Pair()
    pair.send("a")
    pair.run()
    pair.near.crash()
    pair.run(0.1)
    with pytest.raises(Unreachable):
        pair.server.send(("b",), pair.peers[0])


def test_a_paused_host_takes_messages_first_and_looks_at_its_clock_then() -> None:
    pair = Pair()
    pair.run()
    pair.far.after(0.5, pair.came.append, "timer")
    pair.far.pause()
    pair.send("a", "b")
    pair.run(1.0)
    assert pair.came == []
    pair.send("c")
    pair.run(0.1)
    pair.far.resume()
    pair.send("d")
    pair.run(0.1)
    assert pair.came == ["a", "b", "c", "timer", "d"]


def test_what_a_paused_host_does_not_read_fills_both_queues_and_no_more() -> None:
    pair = Pair(hwm=2)
    pair.run()
    pair.far.pause()
    assert pair.send(*range(6)) == [True] * 4 + [False] * 2
    pair.run()
    pair.far.resume()
    pair.run()
    assert pair.came == [0, 1, 2, 3]


def test_a_pause_longer_than_the_heartbeat_costs_the_connection() -> None:
    pair = Pair()
    pair.run()
    pair.far.pause()
    pair.send("has come, and can be read")
    pair.run(HEARTBEAT_TIMEOUT_S + 0.1)
    assert pair.links == [True, False]
    pair.send("waits")
    pair.far.resume()
    pair.run(2.0)
    assert pair.links == [True, False, True]
    assert pair.came == ["has come, and can be read", "waits"]


def test_a_partition_that_heals_in_time_costs_a_delay_only() -> None:
    pair = Pair()
    pair.run()
    pair.network.cut("near", "far")
    pair.send("a", "b")
    pair.run(HEARTBEAT_TIMEOUT_S - 1)
    assert pair.came == [] and pair.links == [True]
    pair.network.heal("near", "far")
    pair.send("c")
    pair.run()
    assert pair.came == ["a", "b", "c"] and pair.links == [True]


def test_a_partition_has_a_direction() -> None:
    pair = Pair()
    pair.send("a")
    pair.run()
    pair.network.cut("far", "near")
    pair.send("b")
    pair.server.send(("reply",), pair.peers[0])
    pair.run()
    assert pair.came == ["a", "b"] and pair.back == []
    pair.network.heal("far", "near")
    pair.run()
    assert pair.back == ["reply"]


def test_a_partition_that_lasts_costs_the_connection_and_none_is_made_while_it_does() -> None:
    pair = Pair()
    pair.run()
    pair.network.cut("near", "far")
    pair.send("lost")
    pair.run(HEARTBEAT_TIMEOUT_S + 2.0)
    assert pair.links == [True, False]
    pair.send("waits")
    pair.run(20.0)
    assert pair.came == [] and not pair.network.connections()
    pair.network.heal_all()
    pair.run()
    assert pair.came == ["waits"] and pair.links == [True, False, True]


def test_of_a_host_that_dies_behind_a_partition_only_the_heartbeat_tells() -> None:
    pair = Pair()
    pair.run()
    pair.network.cut("far", "near")
    pair.far.crash()
    pair.run(HEARTBEAT_TIMEOUT_S - 1)
    assert pair.links == [True]
    pair.run(2.0)
    assert pair.links == [True, False]


def test_who_learnt_nothing_of_an_end_behind_a_partition_learns_it_when_that_heals() -> None:
    pair = Pair()
    pair.run()
    pair.network.cut("far", "near")
    pair.lose()
    pair.run(1.0)
    assert pair.links == [True]
    pair.network.heal_all()
    pair.run(1.0)
    assert pair.links == [True, False, True]


def test_a_publisher_sends_nothing_before_the_subscription_has_come() -> None:
    pair = Pair(PUB, SUB)
    assert pair.send("too early") == [True], "and does not say so"
    pair.run()
    pair.send("heard")
    pair.run()
    assert pair.came == ["heard"]


def test_a_publisher_drops_at_the_high_water_mark_without_a_word() -> None:
    pair = Pair(PUB, SUB, hwm=4)
    pair.run()
    pair.far.pause()
    assert all(pair.send(*range(20)))
    pair.run()
    pair.far.resume()
    pair.run()
    assert pair.came == list(range(8))


def test_a_publisher_that_binds_sends_to_all_who_subscribed() -> None:
    pair = Pair(SUB, PUB)
    pair.run()
    assert pair.server.send(("news",))
    pair.run()
    assert pair.back == ["news"]


def test_push_and_pull() -> None:
    pair = Pair(PUSH, PULL)
    pair.send(1, 2)
    pair.run()
    assert pair.came == [1, 2]


def test_our_own_mistakes_are_told_apart() -> None:
    pair = Pair()
    with pytest.raises(LocalError, match="in use by far"):
        pair.bind()
    with pytest.raises(LocalError, match="connection already"):
        pair.client.connect("far:2")
    with pytest.raises(LocalError, match="no socket"):
        Socket(pair.near, "REQ")
    with pytest.raises(LocalError, match="is up already"):
        pair.near.start()
    with pytest.raises(LocalError, match="a host 'near' already"):
        pair.network.host("near")
    pair.client.close()
    with pytest.raises(LocalError, match="closed"):
        pair.client.send(("x",))
    pair.near.crash()
    with pytest.raises(LocalError, match="not up"):
        Socket(pair.near, DEALER)
    wrong = Pair(PUSH, ROUTER)
    with pytest.raises(LocalError, match="PUSH connects to the ROUTER"):
        wrong.run()


def test_the_test_hook_loses_what_it_is_told_to() -> None:
    pair = Pair()
    pair.network.loses = lambda source, target, frames: frames[0] == 1
    pair.send(0, 1, 2)
    pair.run()
    assert pair.came == [0, 2]


@pytest.mark.parametrize("number", range(40))
def test_whatever_happens_what_arrives_was_sent_once_and_is_in_order(number: int, seed: int) -> None:
    """Of each pair of sockets' lives; and after all is well again everything arrives."""
    rng = Random(f"{seed} {number}")
    pair = Pair(hwm=rng.choice([2, 1000]), seed=rng.getrandbits(32))
    pair.network.late_s = rng.choice([0.0, 1.0])
    hosts: list[Host] = [pair.near, pair.far]
    sent = 0
    for _ in range(200):
        act = rng.choice(["send"] * 8 + ["lose", "cut", "heal", "pause", "resume", "crash"])
        if act == "send":
            sent += 1
            pair.send(sent)
        elif act == "lose":
            pair.lose()
        elif act == "cut":
            pair.network.cut(*rng.sample(["near", "far"], 2))
        elif act == "heal":
            pair.network.heal_all()
        elif act == "pause":
            rng.choice(hosts).pause()
        elif act == "resume":
            rng.choice(hosts).resume()
        elif rng.random() < 0.3:
            pair.far.crash()
            pair.far.start()
            pair.server = pair.bind()
        pair.run(rng.choice([0.0, 0.001, 0.1, 2.0]))
    pair.network.heal_all()
    for host in hosts:
        host.resume()
    pair.run(30.0)
    assert pair.came == sorted(set(pair.came)), "none twice, and in order"
    before = len(pair.came)
    assert pair.send("last") == [True]
    pair.run(5.0)
    assert pair.came[before:] == ["last"]
