"""Rendezvous hashing: three groups keep 300 keys, each key on its first two owners.

Without a fault a fourth group joins and takes a quarter of the keys from all others.
With one a group is killed: its keys are found on their second owners, and no other
key moves.
"""

from collections import Counter
from typing import Final

import zmq

from patterns.demos.asking import Asker
from patterns.demos.processes import Child, Parent, play, run_until
from patterns.rendezvous import Rendezvous
from patterns.request_reply import Replier
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service

KEYS: Final = [f"/page-{number}".encode() for number in range(300)]
COPIES: Final = 2
TIMEOUT_S: Final = 5.0


def group(child: Child, endpoint: str) -> None:
    """Keeps the keys that it is told to; says whether it has the one asked for."""
    kept: set[bytes] = set()

    def answer(peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        what, _, key = bytes(body).partition(b" ")
        if what == b"keep":
            kept.add(key)
        service.reply(peer, frame, b"yes" if key in kept else b"no")

    service = Service(child.bound(zmq.ROUTER, endpoint), Replier[bytes](), answer, lambda *_refused: None)
    child.serve(service.socket, service.drain)


class Keeper:
    """Stores and finds keys; nobody is asked where they are."""

    def __init__(self, parent: Parent) -> None:
        self.rendezvous = Rendezvous({})
        self.asker = Asker(parent.context, self._replied, self._expired)
        self._loop = Reactor(self.asker.requester.wake_at, self.asker.expire)
        self.asker.join(self._loop)
        self._answers: Counter[str] = Counter()
        self._parent = parent

    def add(self, name: str, weight: float) -> None:
        self._parent.start("group", name, self._parent.endpoint(name))
        self.rendezvous.set_weight(name, weight)

    def ask(self, what: bytes, asked: list[tuple[bytes, str]]) -> Counter[str]:
        """The answers of these groups to what is asked about these keys."""
        self._answers.clear()
        for key, name in asked:
            self.asker.ask(self._parent.endpoint(name), what + b" " + key, key, TIMEOUT_S)
        run_until(self._loop, lambda: self._answers.total() == len(asked), f"{len(asked)} answers")
        return self._answers

    def keep(self) -> None:
        self.ask(b"keep", [(key, name) for key in KEYS for name in self.rendezvous.owners(key, COPIES)])

    def owners(self) -> dict[bytes, str]:
        return {key: self.rendezvous.owner(key) for key in KEYS}

    def _replied(self, _key: bytes, body: bytes, _data: bytes) -> None:
        self._answers[body.decode()] += 1

    def _expired(self, _key: bytes) -> None:
        self._answers["no answer"] += 1


def run(fault: bool) -> None:
    with Parent(__name__, "client") as parent:
        keeper = Keeper(parent)
        for name, weight in (("small", 1), ("middle", 1), ("large", 2)):
            keeper.add(name, weight)
        keeper.keep()
        before = keeper.owners()
        parent.say(f"{len(KEYS)} keys on {COPIES} groups each; large weighs 2, the others 1")
        parent.say(f"first owners: {shares(before)}")
        if fault:
            parent.kill("middle")
            keeper.rendezvous.remove("middle")
        else:
            keeper.add("new", 1)
        after = keeper.owners()
        moves = Counter((before[key], after[key]) for key in KEYS if before[key] != after[key])
        for (old, new), count in sorted(moves.items()):
            parent.say(f"{count} keys move from {old} to {new}")
        parent.say(f"{moves.total()} of {len(KEYS)} move; first owners: {shares(after)}")
        if not fault:
            keeper.keep()
        found = keeper.ask(b"have", [(key, after[key]) for key in KEYS])
        parent.say(f"each key asked of its first owner: {found['yes']} of {len(KEYS)} are there")
        keeper.asker.close()


def shares(owners: dict[bytes, str]) -> str:
    counts = Counter(owners.values())
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    play({"group": group})
