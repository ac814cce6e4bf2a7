"""The cluster's clients that are measured: lookups, reads, puts, one large page down and up.

What lives here: keeping so many requests under way with dws's own machines (download, upload) and sockets
(runner), and counting. What must not: processes (driving), what is measured against what (table).

Lookups are asked with frames made before the run, as wrk's are, and each answer is decoded and checked.
Reads and puts are what a client's get_many and put do, several under way on one thread's sockets.
"""

import random
import secrets
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import zmq
from blake3 import blake3

import dws
from dws import messages
from dws.client import Operation
from dws.download import ReadPages
from dws.errors import DwsError
from dws.messages import Locate, Located, encode
from dws.nodes.runner import Runner
from dws.nodes.sources import BytesSource
from dws.outbox import PutItem
from dws.upload import PutBatch
from loadgen.bench.jobs import Done, Down, Lookups, Puts, Reads, Up
from loadgen.histogram import Histogram
from patterns.request_reply import HEADER_BYTES, Requester

#: Requests drawn before the run, and asked for in turn.
_PREPARED: Final = 4096
_ANSWER_S: Final = 10.0
_PUT_S: Final = 60.0
_LARGE_S: Final = 600.0

Go = Callable[[], None]


def lookups(job: Lookups, go: Go) -> Done:
    """With a window of 1 each is timed."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, round(_ANSWER_S * 1000))
        dealer.connect(job.balancer)
        frames = _frames(job, dealer)
        go()
        return _ask(job, dealer, cycle(frames))


def _frames(job: Lookups, dealer: "zmq.Socket[bytes]") -> list[bytes]:
    """Whole requests. The first answer tells realm and servers, which later ones then need not."""
    names = _names(job.names)
    drawn = random.Random(job.seed)
    requester: Requester[None] = Requester(drawn.getrandbits(62), learn_realm=True)
    dealer.send(requester.request(encode(Locate(names[:1], 0, [])), None, 0.0)[1])
    reply = requester.receive(dealer.recv())
    located: Any = messages.decode_reply(reply[2]) if reply else None
    requests = [Locate(_draw(drawn, names, job.pages), located.table, []) for _ in range(_PREPARED)]
    return [requester.request(encode(request), None, 0.0)[1] for request in requests]


def _ask(job: Lookups, dealer: "zmq.Socket[bytes]", frames: Iterator[bytes]) -> Done:
    send, receive, clock, decode = dealer.send, dealer.recv, time.monotonic, messages.decode_reply
    pages, alone = job.pages, job.window == 1
    latency = Histogram()
    total = counted = bad = 0
    for _ in range(job.window):
        send(next(frames))
    began_s = before_s = clock()
    begins_s = began_s + job.warm_s
    ends_s = begins_s + job.seconds
    while (now_s := clock()) < ends_s:
        reply = receive()
        located = decode(memoryview(reply)[HEADER_BYTES:])
        if type(located) is not Located or len(located.pages) != pages or not all(located.pages):
            bad += 1
        total += 1
        if alone:
            now_s = clock()
            latency.record(now_s - before_s)
            before_s = now_s
        if now_s >= begins_s:
            began_s = began_s if counted else now_s
            counted += 1
        send(next(frames))
    elapsed_s = now_s - began_s
    for _ in range(job.window):
        receive()
    problem = "the balancer answered a lookup with something else" if bad else ""
    return Done(counted * pages, elapsed_s, total * pages, bad=bad, problem=problem,
                p50_s=latency.percentile(50), p99_s=latency.percentile(99))  # fmt: skip


def reads(job: Reads, go: Go) -> Done:
    names, drawn = _names(job.names), random.Random(job.seed)
    wanted = cycle([_draw(drawn, names, job.pages) for _ in range(_PREPARED)])
    runner = Runner(job.balancer, None, drawn)

    def begin(now_s: float) -> ReadPages:
        return ReadPages(runner.directory, now_s + _ANSWER_S, next(wanted))

    def units(operation: Any) -> int:
        return len(operation.result[0])

    try:
        # Connected to the balancer and to every server, before it counts.
        for _ in range(job.window):
            runner.run(begin(time.monotonic()))
        go()
        return _keep_going(runner, begin, units, job.window, job.warm_s, job.seconds)
    finally:
        runner.close()


def puts(job: Puts, go: Go) -> Done:
    noise = random.Random(1).randbytes(job.size_bytes)
    drawn = random.Random(secrets.randbits(64))
    runner = Runner(job.balancer, None, drawn)
    state = {"page": 0}

    def items() -> list[PutItem]:
        first = state["page"]
        state["page"] += job.pages
        made = []
        for number in range(first, first + job.pages):
            # No two alike: the cluster would know their digests.
            data = drawn.randbytes(16) + noise[16:]
            place = number % job.names_max if job.names_max else number
            made.append(PutItem(f"{job.prefix}/{place}", BytesSource(data), len(data), blake3(data).digest(),
                                content_type="application/octet-stream", modified=time.time()))  # fmt: skip
        return made

    def begin(now_s: float) -> PutBatch | None:
        if job.count and state["page"] >= job.count:
            return None
        return PutBatch(
            runner.directory, now_s + _PUT_S, lambda: drawn.randbytes(16), items(), 0, patience_s=_PUT_S
        )

    try:
        go()
        seconds = _LARGE_S if job.count else job.seconds
        return _keep_going(runner, begin, lambda _: job.pages, job.window, job.warm_s, seconds)
    finally:
        runner.close()


def _keep_going(
    runner: Runner, begin: Callable[[float], Operation | None], units: Callable[[Any], int], window: int,
    warm_s: float, seconds: float,
) -> Done:  # fmt: skip
    """`window` operations under way until the time is over or `begin` has no more; each is timed."""
    latency, running = Histogram(), dict[Operation, float]()
    total = counted = bad = 0
    problem, clock = "", time.monotonic
    now_s = began_s = clock()
    begins_s = began_s + warm_s
    ends_s = begins_s + seconds
    while now_s < ends_s:
        while len(running) < window and (operation := begin(now_s)) is not None:
            runner.begin(operation)
            running[operation] = now_s
        if not running:
            break
        runner.pump()
        now_s = clock()
        for operation in [one for one in running if one.finished]:
            started_s = running.pop(operation)
            if operation.error is not None:
                bad, problem = bad + 1, problem or f"{type(operation.error).__name__}: {operation.error}"
                continue
            found = units(operation)
            total += found
            if started_s >= begins_s:
                latency.record(now_s - started_s)
            if now_s >= begins_s:
                counted += found
    elapsed_s = now_s - begins_s
    _finish(runner, running)
    return Done(counted, elapsed_s, total, bad=bad, problem=problem,
                p50_s=latency.percentile(50), p99_s=latency.percentile(99))  # fmt: skip


def _finish(runner: Runner, running: dict[Operation, float]) -> None:
    """Wait for what is under way: the next measurement is to find a cluster at rest."""
    while any(not operation.finished for operation in running):
        runner.pump()


def down(job: Down, go: Go) -> Done:
    sink = _Sink()
    with dws.connect(job.balancer, timeout_s=_ANSWER_S) as client:
        client.stat([job.name])
        go()
        began_s = time.monotonic()
        return _timed(lambda: client.download(job.name, sink), began_s, lambda: sink.size)  # type: ignore[arg-type]


def up(job: Up, go: Go) -> Done:
    with dws.connect(job.balancer, timeout_s=_ANSWER_S) as client:
        client.status()
        go()
        size = Path(job.path).stat().st_size
        return _timed(
            lambda: client.put({job.name: Path(job.path)}, timeout_s=_LARGE_S), time.monotonic(), lambda: size
        )


def _timed(work: Callable[[], object], began_s: float, size: Callable[[], int]) -> Done:
    try:
        work()
    except DwsError as error:
        return Done(0, time.monotonic() - began_s, 0, bad=1, problem=f"{type(error).__name__}: {error}")
    return Done(size(), time.monotonic() - began_s, size())


class _Sink:
    """Takes bytes and keeps their number."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)


def _names(path: str) -> list[str]:
    return Path(path).read_text("utf-8").split("\n")


def _draw(drawn: random.Random, names: list[str], count: int) -> list[str]:
    """Different ones."""
    found = dict.fromkeys(drawn.choices(names, k=count))
    while len(found) < count:
        found.update(dict.fromkeys(drawn.choices(names, k=count)))
    return list(found)[:count]
