"""A thousand peers that beat four times a second: what the watcher costs, in shares of one core.

Each peer is a PUB socket with a connection of its own. The watcher is one SUB, its
reactor and its table. Bare: the same SUB received from in a loop. CPU time is
that of the whole process, libzmq's I/O thread included.
"""

import time
from typing import Final

import zmq

from patterns.bench.measure import verdict
from patterns.demos.processes import FRAME_MAX_BYTES, QUANTUM, Child, Parent, play
from patterns.heartbeat import ALIVE, Beater, Watcher, parse
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.sockets import make_socket

REALM: Final = b"bench of pattern"
PEERS: Final = 1000
PROCESSES: Final = 2
BEAT_S: Final = 0.25
MEASURED_S: Final = 8.0
READY_WITHIN_S: Final = 60.0
MUST_STAY_UNDER: Final = 0.1


def peers(child: Child, endpoint: str, first: str, count: str) -> None:
    """Beats of many peers, spread evenly over the time between two beats of one."""
    beaters = [
        (child.connected(zmq.PUB, endpoint), Beater(REALM, number.to_bytes(16, "big"), 1))
        for number in range(int(first), int(first) + int(count))
    ]
    began = time.monotonic()
    sent = 0

    def on_round(now: float) -> None:
        nonlocal sent
        while sent < (now - began) / BEAT_S * len(beaters):
            socket, beater = beaters[sent % len(beaters)]
            socket.send(beater.beat(b""), zmq.NOBLOCK)
            sent += 1

    child.reactor(lambda: time.monotonic() + 0.005, on_round).run()


class Listener:
    """The watcher and its loop; peers join with their first beat."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self.watcher = Watcher(suspect_s=0.75, down_dead_s=3, dead_s=15)
        self.heard = 0
        self.changes = 0
        self._socket = socket
        self.loop = Reactor(self.watcher.wake_at, self._judge)
        self.loop.add(socket, self._drain, QUANTUM)
        self.alive: set[bytes] = set()

    def _drain(self, limit: int) -> None:
        now = time.monotonic()
        for _ in range(limit):
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            _, peer, incarnation, sequence, _ = parse(frame)
            if peer not in self.alive:
                self.alive.add(peer)
                self.watcher.join(peer, incarnation, now)
            self.changes += len(self.watcher.beat(peer, incarnation, sequence, now))
            self.heard += 1

    def _judge(self, now: float) -> None:
        self.changes += len(self.watcher.poll(now))


def measured(parent: Parent, listener: Listener) -> tuple[float, int]:
    """(share of a core, beats) of the watcher."""
    heard, cpu_s, began = listener.heard, time.process_time(), time.monotonic()
    while time.monotonic() - began < MEASURED_S:
        listener.loop.run_once()
    return (time.process_time() - cpu_s) / (time.monotonic() - began), listener.heard - heard


def bare(socket: "zmq.Socket[bytes]") -> tuple[float, int]:
    """(share of a core, beats) of a loop that only receives."""
    received, cpu_s, began = 0, time.process_time(), time.monotonic()
    while time.monotonic() - began < MEASURED_S:
        socket.recv()
        received += 1
    return (time.process_time() - cpu_s) / (time.monotonic() - began), received


def run() -> None:
    print(f"heartbeat: {PEERS} peers, a beat each every {BEAT_S:g} s, measured for {MEASURED_S:g} s")
    with Parent(__name__, "watcher", quiet=True) as parent:
        socket = make_socket(parent.context, zmq.SUB, frame_max_bytes=FRAME_MAX_BYTES)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.bind(parent.endpoint("beats"))
        each = PEERS // PROCESSES
        for number in range(PROCESSES):
            parent.start("peers", f"peers-{number}", parent.endpoint("beats"), number * each, each)
        listener = Listener(socket)
        give_up = time.monotonic() + READY_WITHIN_S
        while len(listener.alive) < PEERS:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{len(listener.alive)} of {PEERS} peers beat within {READY_WITHIN_S:g} s")
            listener.loop.run_once()
        share, beats = measured(parent, listener)
        alive = sum(listener.watcher.state(peer) == ALIVE for peer in listener.alive)
        bare_share, bare_beats = bare(socket)
        print(f"  bare SUB: {bare_share:.1%} of a core for {bare_beats / MEASURED_S:,.0f} beats/s")
        print(
            f"  watcher: {share:.1%} of a core for {beats / MEASURED_S:,.0f} beats/s, "
            f"{alive} of {PEERS} alive, {listener.watcher.counters['lost-beats']} beats lost; "
            f"must stay under {MUST_STAY_UNDER:.0%}: {verdict(share < MUST_STAY_UNDER)}"
        )
        socket.close(0)


if __name__ == "__main__":
    play({"peers": peers})
