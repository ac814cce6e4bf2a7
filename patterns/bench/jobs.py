"""Jobs beside a bare PUSH and PULL with the same frames: issued, done, reported, a hundred on the way.

Both keep the same number on the way, since an uncontrolled PUSH would only measure
how fast a queue fills. Bare: no table, no numbers, no gate.
"""

import time
from typing import Final

import zmq

from patterns.bench.measure import beside
from patterns.demos.processes import FRAME_MAX_BYTES, Child, Parent, play
from patterns.jobs import HEADER_BYTES, Dispatcher, Gate
from patterns.zeromq.sockets import make_socket

REALM: Final = b"bench of pattern"
WINDOW: Final = 100
JOBS: Final = 10_000
KEY_BYTES: Final = 8
TIMEOUT_MS: Final = 10_000


def worker(child: Child, jobs: str, reports: str, gated: str) -> None:
    """Reports the key in each job's body; with a gate, or without."""
    incoming, outgoing = child.bound(zmq.PULL, jobs), child.connected(zmq.PUSH, reports)
    gate = Gate(REALM, 1)
    gate.welcome(REALM, 1)

    def work(limit: int) -> None:
        for _ in range(limit):
            try:
                frame = incoming.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            body = gate.accept(frame) if gated == "gated" else memoryview(frame)[HEADER_BYTES:]
            if body is not None:
                outgoing.send(body)

    child.serve(incoming, work)


class Sides:
    """The PUSH and the PULL of one worker."""

    def __init__(self, parent: Parent, name: str) -> None:
        self.push, self.pull = (
            make_socket(parent.context, kind, frame_max_bytes=FRAME_MAX_BYTES)
            for kind in (zmq.PUSH, zmq.PULL)
        )
        self.pull.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self.pull.bind(parent.endpoint(f"{name}-reports"))
        self.push.connect(parent.endpoint(f"{name}-jobs"))
        parent.start(
            "worker", name, parent.endpoint(f"{name}-jobs"), parent.endpoint(f"{name}-reports"), name
        )
        self.dispatcher: Dispatcher[bytes] = Dispatcher(REALM, 1, WINDOW, JOBS, reissue_s=TIMEOUT_MS / 1000)
        self.dispatcher.worker(1)

    def close(self) -> None:
        self.push.close(0)
        self.pull.close(0)


def bare(sides: Sides) -> float:
    """Jobs a second."""
    frames = [bytes(HEADER_BYTES) + number.to_bytes(KEY_BYTES, "big") for number in range(JOBS)]
    began = time.perf_counter()
    for frame in frames[:WINDOW]:
        sides.push.send(frame)
    for frame in frames[WINDOW:]:
        sides.pull.recv()
        sides.push.send(frame)
    for _ in range(WINDOW):
        sides.pull.recv()
    return JOBS / (time.perf_counter() - began)


def dispatched(sides: Sides) -> float:
    """Jobs a second."""
    dispatcher = sides.dispatcher
    began = time.perf_counter()
    for number in range(JOBS):
        key = number.to_bytes(KEY_BYTES, "big")
        dispatcher.add(key, key)
    while len(dispatcher):
        for frame in dispatcher.poll(time.monotonic()):
            sides.push.send(frame)
        dispatcher.done(sides.pull.recv())
    return JOBS / (time.perf_counter() - began)


def run() -> None:
    print(f"jobs: {HEADER_BYTES + KEY_BYTES} bytes, {WINDOW} on the way, one worker")
    with Parent(__name__, "dispatcher", quiet=True) as parent:
        plain, gated = Sides(parent, "plain"), Sides(parent, "gated")
        beside("jobs", lambda: bare(plain), lambda: dispatched(gated), "jobs/s")
        plain.close()
        gated.close()


if __name__ == "__main__":
    play({"worker": worker})
