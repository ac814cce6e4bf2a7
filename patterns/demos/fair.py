"""Fair queueing: three classes of clients, one broker, two workers that serve 400 requests a second.

Every class asks for a hundred a second. With a fault one of them asks for three
thousand: it fills its own queue and gets what is left over; the others notice
nothing, and there are still two workers.
"""

import time
from collections import Counter
from typing import Final

import zmq

from patterns.demos.asking import Asker
from patterns.demos.processes import FRAME_MAX_BYTES, QUANTUM, Child, Parent, play, run_for, run_until
from patterns.fair import FairQueue
from patterns.request_reply import Replier
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import make_socket

CLASSES: Final = ("lookup", "upload", "repair")
WORKERS: Final = ("worker-1", "worker-2")
SERVICE_S: Final = 0.005
RATE: Final = 100
FLOOD: Final = 3000
#: Requests of a class that wait: more of them only wait longer.
BOUND: Final = 30
TIMEOUT_S: Final = 5.0


def worker(child: Child, endpoint: str) -> None:
    def answer(peer: bytes, frame: bytes, _body: memoryview, _data: "zmq.Frame | None") -> None:
        time.sleep(SERVICE_S)
        service.reply(peer, frame, b"done")

    service = Service(child.bound(zmq.ROUTER, endpoint), Replier[bytes](), answer, lambda *_refused: None)
    child.serve(service.socket, service.drain)


def client(child: Child, endpoint: str, rate: str) -> None:
    """Asks at its rate, whatever the answers: an open loop, as many users are."""
    asker = Asker(child.context, lambda *_reply: None, lambda _tag: None)
    began = time.monotonic()
    asked = 0

    def on_round(now: float) -> None:
        nonlocal asked
        asker.expire(now)
        for _ in range(min(QUANTUM, int((now - began) * float(rate)) - asked)):
            asker.ask(endpoint, child.who.encode(), None, TIMEOUT_S)
            asked += 1

    loop = child.reactor(lambda: began + (asked + 1) / float(rate), on_round)
    asker.join(loop)
    loop.run()
    asker.close()


class Broker:
    """Queues by class, gives work to idle workers, refuses what is over a bound."""

    def __init__(self, parent: Parent) -> None:
        self.endpoint = parent.endpoint("broker")
        self.queue: FairQueue[tuple[str, int, float]] = FairQueue(dict.fromkeys(CLASSES, (1, BOUND)))
        self.served: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.longest_s: dict[str, float] = {}
        self.queued_max = 0
        self.idle = [parent.endpoint(name) for name in WORKERS]
        socket = make_socket(parent.context, zmq.ROUTER, frame_max_bytes=FRAME_MAX_BYTES)
        socket.bind(self.endpoint)
        self.service = Service(socket, Replier[bytes](), self._asked, lambda *_refused: None)
        self.asker = Asker(parent.context, self._done, self._lost)
        self.loop = Reactor(self.asker.requester.wake_at, self._dispatch, longest_wait_s=0.1)
        self.loop.add(socket, self.service.drain, QUANTUM)
        self.asker.join(self.loop)

    def begin_period(self) -> None:
        self.served.clear()
        self.refused.clear()
        self.queued_max = 0
        self.longest_s = dict.fromkeys(CLASSES, 0.0)

    def close(self) -> None:
        self.asker.close()
        self.service.socket.close(0)

    def _asked(self, peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        name = bytes(body).decode()
        token = self.service.replier.defer(peer, frame)
        if not self.queue.offer(name, (name, token, time.monotonic())):
            self.refused[name] += 1
            self.service.send(*self.service.replier.resolve(token, b"busy"))

    def _dispatch(self, now: float) -> None:
        self.asker.expire(now)
        self.queued_max = max(self.queued_max, len(self.queue))
        while self.idle and len(self.queue):
            [(name, token, since)] = self.queue.take(1)
            self.longest_s[name] = max(self.longest_s[name], now - since)
            endpoint = self.idle.pop()
            self.asker.ask(endpoint, name.encode(), (endpoint, name, token), TIMEOUT_S)

    def _done(self, tag: tuple[str, str, int], body: bytes, _data: bytes) -> None:
        endpoint, name, token = tag
        self.idle.append(endpoint)
        self.served[name] += 1
        self.service.send(*self.service.replier.resolve(token, body))

    def _lost(self, tag: tuple[str, str, int]) -> None:
        raise RuntimeError(f"{tag[0]} did not answer in {TIMEOUT_S:g} s")


def run(fault: bool) -> None:
    with Parent(__name__, "broker") as parent:
        broker = Broker(parent)
        broker.begin_period()
        for name in WORKERS:
            parent.start("worker", name, parent.endpoint(name))
        for name in CLASSES:
            parent.start("client", name, broker.endpoint, RATE)
        run_until(broker.loop, lambda: all(broker.served[name] for name in CLASSES), "all classes served")
        _tell_seconds(parent, broker, 2)
        if fault:
            parent.kill("lookup")
            parent.start("client", "lookup", broker.endpoint, FLOOD)
            parent.say(
                f"lookup asks for {FLOOD} a second now, of {len(WORKERS) / SERVICE_S:.0f} that can be served"
            )
            run_until(broker.loop, lambda: broker.refused["lookup"], "a full queue")
            _tell_seconds(parent, broker, 3)
        parent.say(f"{parent.running('worker')} workers, as at the beginning")
        broker.close()


def _tell_seconds(parent: Parent, broker: Broker, seconds: int) -> None:
    for _ in range(seconds):
        broker.begin_period()
        run_for(broker.loop, 1)
        for name in CLASSES:
            parent.say(
                f"{name}: {broker.served[name]:4} served, {broker.refused[name]:4} refused, "
                f"longest wait {broker.longest_s[name] * 1000:5.1f} ms"
            )


if __name__ == "__main__":
    play({"worker": worker, "client": client})
