"""The bare limits: what sockets and disk give when nothing is promised.

What lives here: an echo, a chunk stream, transactions and appends, each the least code that does it. What
must not: anything of dws but sizes. Measured by processes of their own, as all the rest is.
"""

import itertools
import os
import random
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import lmdb
import zmq

from dws.limits import CHUNK_BYTES
from loadgen.bench.jobs import Appends, Chunks, Commits, Done, Echoes
from loadgen.histogram import Histogram

_NAP_MS: Final = 100
_ANSWER_MS: Final = 10_000
#: More than fits into a processor's caches: pages do not lie in them either.
_DIFFERENT_CHUNKS: Final = 64
#: Chunks under way at once, as a client of ours has.
_CHUNKS_WINDOW: Final = 8
_MAP_BYTES: Final = 16 << 30
_COMMIT_KEYS: Final = 1 << 16


def serve_echo() -> int:
    """Send everything back until standard input ends."""

    def serve(router: "zmq.Socket[bytes]") -> None:
        receive, send = router.recv, router.send
        while True:
            peer = receive()
            frame = receive()
            send(peer, zmq.SNDMORE)
            send(frame)

    return _serve(serve)


def serve_chunks() -> int:
    """Answer every request with a chunk, not copied, until standard input ends."""
    noise = random.Random(1)
    chunks = itertools.cycle([noise.randbytes(CHUNK_BYTES) for _ in range(_DIFFERENT_CHUNKS)])

    def serve(router: "zmq.Socket[bytes]") -> None:
        receive, send = router.recv, router.send
        while True:
            peer = receive()
            receive()
            send(peer, zmq.SNDMORE)
            send(next(chunks), copy=False)

    return _serve(serve)


def _serve(serve: Callable[["zmq.Socket[bytes]"], None]) -> int:
    """Says first where."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, _NAP_MS)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        print(f"tcp://127.0.0.1:{port}", flush=True)
        while True:
            try:
                serve(router)
            except zmq.Again:
                if select.select([sys.stdin], [], [], 0)[0]:
                    return 0


def _dealer(context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str) -> "zmq.Socket[bytes]":
    dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVTIMEO, _ANSWER_MS)
    dealer.connect(endpoint)
    return dealer


def echoes(job: Echoes, go: Callable[[], None]) -> Done:
    """With a window of 1 each is timed."""
    frame = bytes(job.size_bytes)
    latency = Histogram()
    with zmq.Context() as context, _dealer(context, job.endpoint) as dealer:
        send, receive, clock = dealer.send, dealer.recv, time.monotonic
        send(frame)
        receive()
        go()
        for _ in range(job.window):
            send(frame)
        total = counted = 0
        begins_s = clock() + job.warm_s
        ends_s = begins_s + job.seconds
        before_s = began_s = clock()
        while (now_s := clock()) < ends_s:
            receive()
            total += 1
            if job.window == 1:
                now_s = clock()
                latency.record(now_s - before_s)
                before_s = now_s
            if now_s >= begins_s:
                began_s = began_s if counted else now_s
                counted += 1
            send(frame)
        elapsed_s = clock() - began_s
        for _ in range(job.window):
            receive()
    return Done(counted, elapsed_s, total, p50_s=latency.percentile(50), p99_s=latency.percentile(99))


def chunks(job: Chunks, go: Callable[[], None]) -> Done:
    with zmq.Context() as context, _dealer(context, job.endpoint) as dealer:
        dealer.send(b"?")
        dealer.recv()
        go()
        wanted = job.size_bytes // CHUNK_BYTES
        began_s = time.monotonic()
        for _ in range(min(_CHUNKS_WINDOW, wanted)):
            dealer.send(b"?")
        for number in range(wanted):
            dealer.recv(copy=False)
            if number + _CHUNKS_WINDOW < wanted:
                dealer.send(b"?")
        elapsed_s = time.monotonic() - began_s
    size = wanted * CHUNK_BYTES
    return Done(size, elapsed_s, size)


def commits(job: Commits, go: Callable[[], None]) -> Done:
    page = random.Random(1).randbytes(job.size_bytes)
    with lmdb.open(job.directory, map_size=_MAP_BYTES, max_dbs=1) as environment:
        go()

        def commit(number: int) -> None:
            with environment.begin(write=True) as transaction:
                for place in range(number * job.pages, (number + 1) * job.pages):
                    key = (place * 0x9E3779B97F4A7C15 % _COMMIT_KEYS).to_bytes(16, "big")
                    transaction.put(key, page)

        return _repeat(commit, job.pages, job.warm_s, job.seconds)


def appends(job: Appends, go: Callable[[], None]) -> Done:
    path = Path(job.directory) / "appended"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
    try:
        if job.total_bytes:
            return _append_whole(fd, job.total_bytes, go)
        block = random.Random(1).randbytes(job.size_bytes * job.pages)
        go()

        def append(_: int) -> None:
            os.write(fd, block)
            os.fdatasync(fd)

        return _repeat(append, job.pages, job.warm_s, job.seconds)
    finally:
        os.close(fd)
        path.unlink()


def _append_whole(fd: int, total_bytes: int, go: Callable[[], None]) -> Done:
    noise = random.Random(1)
    blocks = [noise.randbytes(CHUNK_BYTES) for _ in range(_DIFFERENT_CHUNKS)]
    go()
    began_s = time.monotonic()
    for number in range(total_bytes // CHUNK_BYTES):
        os.write(fd, blocks[number % _DIFFERENT_CHUNKS])
    os.fdatasync(fd)
    return Done(total_bytes, time.monotonic() - began_s, total_bytes)


def _repeat(work: Callable[[int], None], units: int, warm_s: float, seconds: float) -> Done:
    """Do it until the time is over. `work` gets a number that rises."""
    clock = time.monotonic
    first, until_s = 0, clock() + warm_s
    while clock() < until_s:
        work(first)
        first += 1
    number, began_s = first, clock()
    while (now_s := clock()) < began_s + seconds:
        work(number)
        number += 1
    return Done((number - first) * units, now_s - began_s, number * units)
