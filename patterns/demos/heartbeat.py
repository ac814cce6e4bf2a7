"""Heartbeats: three peers beat four times a second, a watcher says who is alive.

With a fault one peer hangs (its connection stands), one is killed and restarted,
and beats of its former life turn up late.
"""

import time
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import zmq

from patterns.demos.processes import FRAME_MAX_BYTES, QUANTUM, Child, Parent, play, run_for, run_until
from patterns.heartbeat import ALIVE, DEAD, SUSPECT, Beater, Watcher, parse
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.sockets import make_socket

REALM: Final = b"demo of patterns"
BEAT_S: Final = 0.25
SUSPECT_S: Final = 0.75
DOWN_DEAD_S: Final = 1.5
DEAD_S: Final = 2.0
NAMES: Final = ("red", "green", "blue")


def peer_id(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


def peer(child: Child, endpoint: str, incarnation: str) -> None:
    """Beats until it is killed."""
    socket = child.connected(zmq.PUB, endpoint)
    beater = Beater(REALM, peer_id(child.who), int(incarnation))
    next_at = time.monotonic()

    def on_round(now: float) -> None:
        nonlocal next_at
        if now >= next_at:
            socket.send(beater.beat(b""), zmq.NOBLOCK)
            next_at = now + BEAT_S

    child.reactor(lambda: next_at, on_round).run()


class Watching:
    """The watcher behind its SUB socket. Changes that it tells are narrated."""

    def __init__(self, parent: Parent, endpoint: str) -> None:
        self.watcher = Watcher(SUSPECT_S, DOWN_DEAD_S, DEAD_S)
        self.names = {peer_id(name): name for name in NAMES}
        self.heard = self.told = 0
        self.socket = make_socket(parent.context, zmq.SUB, frame_max_bytes=FRAME_MAX_BYTES)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.socket.bind(endpoint)
        self.loop = Reactor(self.watcher.wake_at, self._judge)
        self.loop.add(self.socket, self._drain, QUANTUM)
        self._parent = parent

    def states(self) -> dict[str, str | None]:
        return {name: self.watcher.state(key) for key, name in self.names.items()}

    def take(self, frame: bytes, now: float) -> None:
        _, key, incarnation, sequence, _ = parse(frame)
        self.heard += 1
        before = self.watcher.counters.copy()
        # Only a first life may come in unannounced here; later ones are joined by who restarts them.
        if self.watcher.state(key) is None:
            self._tell(self.watcher.join(key, incarnation, now))
            self._parent.say(f"{self.names[key]} is new: {ALIVE}")
        self._tell(self.watcher.beat(key, incarnation, sequence, now))
        for what, count in (self.watcher.counters - before).items():
            self._parent.say(f"beat {incarnation}.{sequence} of {self.names[key]} counts as: {what}, {count}")

    def wait_until(self, name: str, state: str) -> None:
        run_until(self.loop, lambda: self.states()[name] == state, f"{name} {state}")

    def _drain(self, limit: int) -> None:
        for _ in range(limit):
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.take(frame, time.monotonic())

    def _judge(self, now: float) -> None:
        # What is queued was said in time: it is heard before any silence is judged.
        if not self.socket.poll(0):
            self._tell(self.watcher.poll(now))

    def _tell(self, changes: Iterable[tuple[bytes, str]]) -> None:
        for key, state in changes:
            self.told += 1
            self._parent.say(f"{self.names[key]} is {state}")


def run(fault: bool) -> None:
    with Parent(__name__, "watcher") as parent:
        endpoint = parent.endpoint("beats")
        watching = Watching(parent, endpoint)
        for name in NAMES:
            parent.start("peer", name, endpoint, 1)
        for name in NAMES:
            watching.wait_until(name, ALIVE)
        heard, told = watching.heard, watching.told
        run_for(watching.loop, 2)
        beats, changes = watching.heard - heard, watching.told - told
        parent.say(
            f"two seconds: {beats} beats, {changes} changes of state; without a change nothing is told"
        )
        if fault:
            _hang(parent, watching)
            _restart(parent, watching, endpoint)
        watching.socket.close(0)


def _hang(parent: Parent, watching: Watching) -> None:
    parent.pause("red")
    watching.wait_until("red", SUSPECT)
    parent.say(f"after {SUSPECT_S:g} s of silence: a hint, no proof; one would ask it nothing new")
    watching.wait_until("red", DEAD)
    parent.resume("red")
    watching.wait_until("red", ALIVE)
    parent.say("it had not stopped; it only had not spoken")


def _restart(parent: Parent, watching: Watching, endpoint: str) -> None:
    late = Beater(REALM, peer_id("blue"), 1).beat(b"")
    parent.kill("blue")
    watching.wait_until("blue", DEAD)
    parent.start("peer", "blue", endpoint, 2)
    parent.say("blue says hello in its second life (a request, in a real system)")
    watching.watcher.join(peer_id("blue"), 2, time.monotonic())
    run_for(watching.loop, 1)
    parent.say("a beat of blue's first life arrives late")
    watching.take(late, time.monotonic())
    parent.say(f"blue is {watching.states()['blue']} by its second life alone")


if __name__ == "__main__":
    play({"peer": peer})
