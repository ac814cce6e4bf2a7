"""Mutual exclusion: messages an entry beside the theory, waits, entries a second.

In virtual time for groups of 2 to 64, where only messages take time; over real sockets
for a few sizes, one process a member; and the ring beside a bare ring of PUSH and PULL
that passes the same frames on and looks at nothing.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Final

import zmq

from patterns.bench.measure import beside
from patterns.demos.mutex_members import REALM, Processes, Work
from patterns.demos.processes import FRAME_MAX_BYTES, Child, DemoStuck, Parent, play, run_until
from patterns.mutex.group import ALGORITHMS, TOKEN_RING, Timing
from patterns.mutex.interface import Message, pack
from patterns.mutex.measure import ALL, ALONE, LOADS, RARELY, measure, theory
from patterns.mutex.token_ring import TOKEN
from patterns.zeromq.sockets import make_socket

SIZES: Final = (2, 4, 8, 16, 32, 64)
SOCKET_SIZES: Final = (2, 4, 8)
ENTRIES: Final = 2000
SEED: Final = 1
SECONDS: Final = 1.0
#: Each group runs so often, in turn with the others; medians are printed.
ROUNDS: Final = 3
#: In it the first token is made, which is a lost one found.
WARM_S: Final = 1.5
_START_WITHIN_S: Final = 60.0
#: Long enough that a machine that has much to do suspects nobody.
_TIMING: Final = Timing(
    lease_s=20, margin_s=1, held_max_s=60, retry_s=5, suspect_s=20, rest_s=0, lost_s=0.5, answer_s=0.25
)


def run(sizes: Iterable[int] = SIZES, seconds: float = SECONDS) -> None:
    sizes = tuple(sizes)
    virtual(sizes)
    over_sockets([size for size in SOCKET_SIZES if size <= max(sizes)], seconds)
    size = min(SOCKET_SIZES)
    print(f"\nThe ring beside a bare ring of {size} processes, {seconds:g} s each, in turn:")
    beside(
        f"passes a second, n = {size}",
        lambda: bare_ring(size, seconds),
        lambda: socket_group(TOKEN_RING, size, ALL, seconds)[1],
        "passes/s",
    )


def virtual(sizes: Iterable[int]) -> None:
    print(f"Virtual time, {ENTRIES} entries a run, seed {SEED}; a message takes 1 ms in the mean,")
    print("an entry no time. wait: from request to grant, in message delays.")
    for load in LOADS:
        print(
            f"\n| {load}: n |"
            + "".join(f" {name}: messages (theory) | wait | entries/s |" for name in ALGORITHMS)
        )
        print("| ---: |" + " ---: |" * 3 * len(ALGORITHMS))
        for size in sizes:
            cells = []
            for name in ALGORITHMS:
                found = measure(name, size, load, ENTRIES, SEED)
                about = "≈ " if load == RARELY and name == TOKEN_RING else ""
                cells.append(
                    f"{found.messages:.2f} ({about}{found.theory:.3g}) | {found.wait:.1f} | "
                    f"{found.entries_a_second:,.0f}"
                )
            print(f"| {size} | " + " | ".join(cells) + " |", flush=True)


def over_sockets(sizes: Iterable[int], seconds: float) -> None:
    print(f"\nReal sockets (ipc), one process a member, medians of {ROUNDS} runs of {seconds:g} s in turn;")
    burden = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the beginning"
    print(f"an entry takes no time. {burden}.")
    print("\n| load | n | algorithm | messages an entry (theory) | wait, ms | entries/s |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for load in (ALL, ALONE):
        for size in sizes:
            rounds = [[socket_group(name, size, load, seconds) for name in ALGORITHMS] for _ in range(ROUNDS)]
            for name, runs in zip(ALGORITHMS, zip(*rounds, strict=True), strict=True):
                messages, rate, wait_s = (statistics.median(column) for column in zip(*runs, strict=True))
                expected = theory(name, size, load, rate)
                print(
                    f"| {load} | {size} | {name} | {messages:.2f} ({expected:.3g}) | {wait_s * 1000:.2f} | "
                    f"{rate:,.0f} |",
                    flush=True,
                )


def socket_group(algorithm: str, size: int, load: str, seconds: float) -> tuple[float, float, float]:
    """(messages an entry, entries a second, mean wait in seconds) of one group of processes."""
    askers = 1 if load == ALONE else size
    work = Work(algorithm, size, askers, 0.0, 0.0, False, WARM_S, seconds, False, _TIMING)
    with Quiet("patterns.demos.mutex_members", "bench") as parent:
        group = Processes(parent, work, lambda *_use: None)
        group.start()
        run_until(group.loop, lambda: len(group.reports) >= len(work.numbers), "reports", _START_WITHIN_S)
        group.close()
        total = {
            key: sum(report[key] for report in group.reports)
            for key in ("entries", "sent", "wait_s", "waits")
        }
    if not total["entries"]:
        raise DemoStuck(
            f"nobody of {size} entered by {algorithm} in {seconds:g} s: too short, or too busy a machine"
        )
    return total["sent"] / total["entries"], total["entries"] / seconds, total["wait_s"] / total["waits"]


class Quiet(Parent):
    """A parent that tells nothing of its processes: a table is printed."""

    def say(self, text: str) -> None:
        del text


def bare_ring(size: int, seconds: float) -> float:
    """Passes a second of a ring that only receives and sends."""
    with Quiet(__name__, "bench") as parent:
        reports = make_socket(parent.context, zmq.PULL, frame_max_bytes=FRAME_MAX_BYTES)
        reports.bind(parent.endpoint("reports"))
        reports.setsockopt(zmq.RCVTIMEO, int((_START_WITHIN_S + seconds) * 1000))
        for number in range(size):
            parent.start("passer", f"passer-{number}", number, size, seconds, parent.endpoint(""))
        passes = int(reports.recv())
        reports.close(0)
    return passes * size / seconds


def passer(child: Child, number: str, size: str, seconds: str, prefix: str) -> None:
    """One of the bare ring; the first sets the token going, counts its rounds and reports them."""
    incoming = child.bound(zmq.PULL, f"{prefix}passer-{number}")
    outgoing = child.connected(zmq.PUSH, f"{prefix}passer-{(int(number) + 1) % int(size)}")
    incoming.setsockopt(zmq.RCVTIMEO, int(_START_WITHIN_S * 1000))
    receive, send = incoming.recv, outgoing.send
    if int(number):
        while True:
            send(receive())
    send(pack(REALM, Message(TOKEN, 0, fence=1, members=tuple(range(int(size))))))
    send(receive())
    rounds, end = 0, time.monotonic() + float(seconds)
    while time.monotonic() < end:
        send(receive())
        rounds += 1
    reports = child.connected(zmq.PUSH, f"{prefix}reports")
    reports.send(b"%d" % rounds)
    # The parent ends this process once it has the report; before that it would be lost with its socket.
    sys.stdin.read()


if __name__ == "__main__":
    play({"passer": passer})
