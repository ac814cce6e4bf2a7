"""A replica: a publisher changes its table 20 times a second, a follower keeps a copy.

The follower compares summaries of 8 parts, loads those that differ, and is then sent
numbered updates. With a fault updates are lost on the way, and the copy is damaged
behind the follower's back.
"""

import json
import time
from collections import deque
from hashlib import blake2b
from random import Random
from typing import Any, Final

import zmq

from patterns.demos.asking import Asker
from patterns.demos.processes import QUANTUM, Child, Parent, play, run_for, run_until
from patterns.request_reply import Replier
from patterns.snapshot import APPLY, LIVE, Feed, Follower
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service

PARTS: Final = 8
ENTRIES: Final = 200
CHANGE_S: Final = 0.05
TIMEOUT_S: Final = 0.3
BEHIND_S: Final = 2.0
#: Updates that the publisher can send again; a follower further behind compares anew.
LOG_MAX: Final = 1000

Table = dict[str, int]


def part_of(key: str) -> int:
    return blake2b(key.encode(), digest_size=1).digest()[0] % PARTS


def summaries(table: Table) -> list[int]:
    """For each part the sum of its entries' hashes: adding and removing an entry is one addition."""
    sums = [0] * PARTS
    for key, value in table.items():
        digest = blake2b(f"{key}={value}".encode(), digest_size=8).digest()
        sums[part_of(key)] = (sums[part_of(key)] + int.from_bytes(digest, "big")) % (1 << 64)
    return sums


class Publisher:
    """The table, its feed of updates, and the service that tells summaries and parts."""

    def __init__(self, child: Child, endpoint: str, follower: str) -> None:
        self.table: Table = {f"key-{number}": 0 for number in range(ENTRIES)}
        self._child = child
        self._follower = follower
        self._random = Random(1)
        self._log: deque[tuple[int, str, int]] = deque(maxlen=LOG_MAX)
        self._feed = Feed(pause_s=0.2)
        self._asker = Asker(child.context, self._answered, self._unanswered)
        self._change_at = time.monotonic()
        socket = child.bound(zmq.ROUTER, endpoint)
        self._service = Service(socket, Replier[bytes](), self._answer, lambda *_refused: None)
        self._loop = child.reactor(lambda: self._change_at, self._round)
        self._loop.add(socket, self._service.drain, QUANTUM)
        self._asker.join(self._loop)

    def run(self) -> None:
        self._loop.run()
        self._asker.close()

    def _round(self, now: float) -> None:
        self._asker.expire(now)
        if now >= self._change_at:
            self._change_at = now + CHANGE_S
            key = f"key-{self._random.randrange(ENTRIES)}"
            self.table[key] += 1
            self._feed.number += 1
            self._log.append((self._feed.number, key, self.table[key]))
        after = self._feed.poll(now)
        if after is not None:
            updates = [update for update in self._log if update[0] > after]
            body = json.dumps([self._feed.number, summaries(self.table), updates]).encode()
            self._asker.ask(self._follower, body, after, TIMEOUT_S)

    def _answer(self, peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        part = json.loads(bytes(body))
        if part is None:
            self._feed.follow(self._feed.number)
            answer: Any = [self._feed.number, summaries(self.table)]
        else:
            answer = {key: value for key, value in self.table.items() if part_of(key) == part}
        self._service.reply(peer, frame, json.dumps(answer).encode())

    def _answered(self, _after: int, body: bytes, _data: bytes) -> None:
        self._feed.answered(json.loads(body), time.monotonic())

    def _unanswered(self, after: int) -> None:
        self._child.say(f"no answer to the updates after {after}: sends them again")
        self._feed.unanswered(time.monotonic())


def publisher(child: Child, endpoint: str, follower: str) -> None:
    Publisher(child, endpoint, follower).run()


class Replica:
    """The follower, its copy of the table, and what a fault does to both."""

    def __init__(self, parent: Parent) -> None:
        self.follower = Follower(BEHIND_S)
        self.table: Table = {}
        self.deaf = False
        self.endpoint = parent.endpoint("follower")
        self._parent = parent
        self._publisher = parent.endpoint("publisher")
        self._waiting: list[list[Any]] = []
        self.asker = Asker(parent.context, self._told, self._untold)
        listener = Child("follower", parent.began)
        self._service = Service(
            listener.bound(zmq.ROUTER, self.endpoint), Replier[bytes](), self._updates, lambda *_refused: None
        )
        self._context = listener.context
        self.loop = Reactor(self.asker.requester.wake_at, self.asker.expire, longest_wait_s=0.1)
        self.loop.add(self._service.socket, self._service.drain, QUANTUM)
        self.asker.join(self.loop)

    def begin(self) -> None:
        self.follower.begin()
        self._ask(None)

    def close(self) -> None:
        self.asker.close()
        self._context.destroy(linger=0)

    def _ask(self, part: int | None) -> None:
        self.asker.ask(self._publisher, json.dumps(part).encode(), part, within_s=10)

    def _told(self, part: int | None, body: bytes, _data: bytes) -> None:
        answer = json.loads(body)
        if part is None:
            number, theirs = answer
            ours = summaries(self.table)
            differing = [at for at in range(PARTS) if theirs[at] != ours[at]]
            self._parent.say(f"summaries at number {number}: {len(differing)} of {PARTS} parts differ")
            self.follower.compare(number, differing)
        else:
            kept = {key: value for key, value in self.table.items() if part_of(key) != part}
            self.table = kept | answer
            self.follower.loaded()
        if self.follower.part is not None:
            self._ask(self.follower.part)
        elif self.follower.state == LIVE:
            self._parent.say(f"is live at number {self.follower.applied}")

    def _untold(self, part: int | None) -> None:
        self._ask(part)

    def _updates(self, peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        if self.deaf:
            return
        number, theirs, updates = json.loads(bytes(body))
        for update, key, value in updates:
            if self.follower.update(update) == APPLY:
                self.table[key] = value
        applied = self.follower.applied if self.follower.state == LIVE else -1
        self._service.reply(peer, frame, json.dumps(applied).encode())
        agrees = number != self.follower.applied or theirs == summaries(self.table)
        if self.follower.seen(number, agrees, time.monotonic()):
            self._parent.say(f"at number {number} its summaries are not the publisher's: begins again")
            self.begin()


def run(fault: bool) -> None:
    with Parent(__name__, "follower") as parent:
        replica = Replica(parent)
        parent.start("publisher", "publisher", parent.endpoint("publisher"), replica.endpoint)
        replica.begin()
        _follow(parent, replica, 20)
        if fault:
            _lose_updates(parent, replica)
            _damage(parent, replica)
        parent.say(f"ends live at number {replica.follower.applied}; {dict(replica.follower.counters)}")
        replica.close()


def _follow(parent: Parent, replica: Replica, updates: int) -> None:
    follower = replica.follower
    run_until(replica.loop, lambda: follower.state == LIVE, "a live replica")
    wanted = follower.applied + updates
    run_until(replica.loop, lambda: follower.applied >= wanted, f"{updates} updates")
    parent.say(f"has applied updates up to {follower.applied}, in order, each once")


def _lose_updates(parent: Parent, replica: Replica) -> None:
    parent.say("for half a second all updates are lost")
    replica.deaf = True
    run_for(replica.loop, 0.5)
    replica.deaf = False
    _follow(parent, replica, 20)


def _damage(parent: Parent, replica: Replica) -> None:
    # An entry that the publisher does not have, since it may mend any other by its next update.
    replica.table["stray"] = 1
    compared = replica.follower.counters["compared"]
    parent.say("a stray entry gets into the copy behind the follower's back")
    run_until(replica.loop, lambda: replica.follower.counters["compared"] > compared, "a new comparison")
    _follow(parent, replica, 20)


if __name__ == "__main__":
    play({"publisher": publisher})
