"""Fair queueing: can one class starve the others, and do workers stay fixed while requests grow?

Both answers are measured on the broker of the demo, its two workers and its three
clients, all processes of their own. The cost of the queue is measured beside a
socket whose messages are served as they come.
"""

import time
from typing import Final

import zmq

from patterns.bench.measure import beside
from patterns.demos.fair import CLASSES, RATE, SERVICE_S, WORKERS, Broker
from patterns.demos.processes import FRAME_MAX_BYTES, Parent, run_for, run_until
from patterns.fair import FairQueue
from patterns.zeromq.sockets import make_socket

MODULE: Final = "patterns.demos.fair"
FLOOD: Final = 3000
GROWTH: Final = (50, 100, 200, 400, 800, 1600)
SETTLE_S: Final = 0.5
MEASURED_S: Final = 2.0
MESSAGES: Final = 20_000
BATCH: Final = 100
#: Room for all that is sent before it is served.
ROOM: Final = 1_000


def measure(rates: dict[str, int]) -> tuple[Broker, int]:
    """The broker after some seconds of these rates, its counts of that time; and its workers then."""
    with Parent(MODULE, "broker", quiet=True) as parent:
        broker = Broker(parent)
        broker.begin_period()
        for name in WORKERS:
            parent.start("worker", name, parent.endpoint(name))
        for name, rate in rates.items():
            parent.start("client", name, broker.endpoint, rate)
        run_until(broker.loop, lambda: all(broker.served[name] for name in rates), "all classes served")
        run_for(broker.loop, SETTLE_S)
        broker.begin_period()
        run_for(broker.loop, MEASURED_S)
        workers = parent.running("worker")
        broker.close()
        return broker, workers


def floods() -> None:
    capacity = len(WORKERS) / SERVICE_S
    print(
        f"fair: every class asks for {RATE} a second, the one that floods for {FLOOD}; served: {capacity:.0f}"
    )
    print(
        f"  {'floods':8}"
        + "".join(f"{name + ': served/s':>18}{'refused/s':>11}{'worst ms':>10}" for name in CLASSES)
    )
    for flooding in ("nobody", *CLASSES):
        rates = {name: FLOOD if name == flooding else RATE for name in CLASSES}
        broker, _ = measure(rates)
        print(
            f"  {flooding:8}"
            + "".join(
                f"{broker.served[name] / MEASURED_S:18,.0f}{broker.refused[name] / MEASURED_S:11,.0f}"
                f"{broker.longest_s[name] * 1000:10,.1f}"
                for name in CLASSES
            ),
            flush=True,
        )


def growth() -> None:
    print("fair: requests grow, workers do not")
    print(
        f"  {'asked/s':>8}{'workers':>9}{'served/s':>10}{'refused/s':>11}{'most queued':>13}{'worst ms':>10}"
    )
    for rate in GROWTH:
        broker, workers = measure(dict.fromkeys(CLASSES, rate))
        served, refused = broker.served.total() / MEASURED_S, broker.refused.total() / MEASURED_S
        worst_ms = max(broker.longest_s.values()) * 1000
        print(
            f"  {rate * len(CLASSES):8}{workers:9}{served:10,.0f}{refused:11,.0f}"
            f"{broker.queued_max:13}{worst_ms:10,.1f}",
            flush=True,
        )


def throughput(parent: Parent, *, queued: bool) -> float:
    """Messages a second over a PUSH and a PULL, served as they come or through a queue of three classes."""
    push, pull = (
        make_socket(parent.context, kind, frame_max_bytes=FRAME_MAX_BYTES, hwm=ROOM)
        for kind in (zmq.PUSH, zmq.PULL)
    )
    pull.bind(parent.endpoint("pull"))
    push.connect(parent.endpoint("pull"))
    queue: FairQueue[bytes] = FairQueue(dict.fromkeys(CLASSES, (BATCH, ROOM)))
    names = [name.encode() for name in CLASSES]
    served = 0
    began = time.perf_counter()
    while served < MESSAGES:
        for number in range(BATCH):
            push.send(names[number % len(names)])
        for _ in range(BATCH):
            name = pull.recv()
            if queued:
                queue.offer(name.decode(), name)
            else:
                served += 1
        if queued:
            served += len(queue.take(BATCH))
    elapsed_s = time.perf_counter() - began
    push.close(0)
    pull.close(0)
    return MESSAGES / elapsed_s


def run() -> None:
    with Parent(MODULE, "bench", quiet=True) as parent:
        print("fair: small messages over PUSH–PULL, served as they come or through the queue")
        beside(
            "3 classes",
            lambda: throughput(parent, queued=False),
            lambda: throughput(parent, queued=True),
            "messages/s",
        )
    floods()
    growth()
