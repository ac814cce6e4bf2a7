"""Three processes count in one database row, one at a time; the row refuses whoever comes too late.

python examples/one_at_a_time.py                       # by the coordinator
python examples/one_at_a_time.py ricart-agrawala       # or token-ring
"""

import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from patterns.mutex.group import ALGORITHMS, COORDINATOR, Timing, coordinator_of, member_of
from patterns.mutex.interface import HELD
from patterns.zeromq.mutex import MutexNode
from patterns.zeromq.reactor import Reactor

ROOT = Path(__file__).resolve().parents[1]  # where child processes find this package
MEMBERS, ENTRIES, WITHIN_S, LOCK = (0, 1, 2), 30, 60.0, b"one at a time..."


def one_process(algorithm: str, number: int, place: Path) -> None:
    """A member, or the coordinator, until the parent closes our standard input."""
    database = sqlite3.connect(place / "row", timeout=WITHIN_S, isolation_level=None)
    now, timing = time.monotonic(), Timing(lost_s=0.5, answer_s=0.25)
    to_do: list[Callable[[], None]] = []

    def enter(fence: int) -> None:
        """Take the row under our number, read, think, write: only while nobody with a higher one has been."""
        ours = f"{fence:032x}"
        database.execute("UPDATE row SET fence = ?1 WHERE fence <= ?1", (ours,))
        (value,) = database.execute("SELECT value FROM row").fetchone()
        time.sleep(0.002)
        if not database.execute("UPDATE row SET value = ?1 WHERE fence = ?2", (value + 1, ours)).rowcount:
            print(f"member {number}: too late, its number {fence:#x} was refused")
            (highest,) = database.execute("SELECT fence FROM row").fetchone()
            if node.machine.state == HELD:
                node.refused(int(highest, 16))
        node.release()
        node.request()

    is_member = number in MEMBERS
    machine = (
        member_of(algorithm, number, MEMBERS, 0, timing, now)
        if is_member
        else coordinator_of(number, 0, timing, now)
    )
    endpoints = {each: f"ipc://{place}/{each}" for each in (*MEMBERS, len(MEMBERS))}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    node = MutexNode(
        context, machine, LOCK, endpoints.pop(number), time.monotonic,
        on_granted=lambda fence, until: to_do.append(lambda: enter(fence)),
        on_lost=lambda fence, reason: print(f"member {number}: lost {fence:#x}: {reason}"),
    )  # fmt: skip
    node.connect(endpoints)

    def on_round(now: float) -> None:
        node.tick(now)
        while to_do:
            to_do.pop()()

    loop = Reactor(lambda: 0.0 if to_do else node.wake_at(), on_round)
    loop.add(node.socket, node.drain, 100)
    loop.add(0, lambda limit: loop.stop(), 1)
    if is_member:
        node.request()
    loop.run()
    node.close()
    context.term()


def main(algorithm: str) -> int:
    with tempfile.TemporaryDirectory() as place:
        database = sqlite3.connect(Path(place) / "row", isolation_level=None)
        database.execute("CREATE TABLE row (value INTEGER, fence TEXT)")
        database.execute("INSERT INTO row VALUES (0, '')")
        numbers = (*MEMBERS, len(MEMBERS)) if algorithm == COORDINATOR else MEMBERS
        words = [sys.executable, "-m", "examples.one_at_a_time", algorithm]
        processes = [
            subprocess.Popen([*words, str(each), place], cwd=ROOT, stdin=subprocess.PIPE) for each in numbers
        ]
        value, give_up = 0, time.monotonic() + WITHIN_S
        while value < ENTRIES * len(MEMBERS) and time.monotonic() < give_up:
            if any(process.poll() is not None for process in processes):
                print("a process died", flush=True)
                break
            time.sleep(0.05)
            value, fence = database.execute("SELECT value, fence FROM row").fetchone()
        for process in processes:
            process.communicate()
        database.close()
        print(f"{algorithm}: the row counts {value}, last taken under number {int(fence, 16):#x}")
        return 0 if value >= ENTRIES * len(MEMBERS) else 1


if __name__ == "__main__":
    chosen, *process = [*sys.argv[1:], *([] if len(sys.argv) > 1 else [COORDINATOR])]
    if chosen not in ALGORITHMS:
        sys.exit(f"{__doc__}\n{chosen!r} is none of {', '.join(ALGORITHMS)}")
    sys.exit(one_process(chosen, int(process[0]), Path(process[1])) if process else main(chosen))
