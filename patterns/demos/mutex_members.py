"""Processes that exclude each other: members, the coordinator, and the resource that they share.

What lives here: one process for each member, the resource's side in the process that
started them, and what both say to each other. What must not: the algorithms
(`patterns/mutex/`), and what a demo or a benchmark does with the group.

Used by `patterns/demos/mutex.py` and `patterns/bench/mutex.py`. Members talk to each other
over PUSH and PULL; to the resource, which also starts them together and takes their
reports, by request and reply.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Final

import zmq

from patterns.demos.asking import Asker
from patterns.demos.processes import FRAME_MAX_BYTES, QUANTUM, Child, Parent, play
from patterns.errors import RemoteError
from patterns.mutex.group import COORDINATOR, Timing, coordinator_of, member_of
from patterns.mutex.interface import HELD
from patterns.mutex.resource import Resource
from patterns.request_reply import Replier
from patterns.zeromq.mutex import MutexNode
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import make_socket

REALM: Final = b"demo of patterns"
_USE_WITHIN_S: Final = 5.0
_READY_WITHIN_S: Final = 60.0


@dataclass(frozen=True)
class Work:
    """What the members of a group do.

    size: of the members. askers: how many of them ask at all. think_s: the mean time
    between two entries, random unless 0. hold_s: how long a member stays in. uses: whether it
    uses the resource then. warm_s: for how long it asks before anything is counted; ask_s: for how
    long after that. Then it reports, and serves the others on.
    """

    algorithm: str
    size: int
    askers: int
    think_s: float
    hold_s: float
    uses: bool
    warm_s: float
    ask_s: float
    loud: bool
    timing: Timing = field(default_factory=Timing)

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> "Work":
        fields = json.loads(text)
        return Work(**{**fields, "timing": Timing(**fields["timing"])})

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of all processes."""
        return tuple(range(self.size + (self.algorithm == COORDINATOR)))


class Member:
    """One process of the group: asks, holds, uses, releases, thinks, in the rounds of its loop."""

    def __init__(self, child: Child, number: int, incarnation: int, prefix: str, work: Work) -> None:
        now = time.monotonic()
        self._child = child
        self._number = number
        self._work = work
        members = tuple(range(work.size))
        self._asks = number < work.askers
        machine = (
            member_of(work.algorithm, number, members, incarnation, work.timing, now)
            if number in members
            else coordinator_of(number, incarnation, work.timing, now)
        )
        endpoints = {each: f"{prefix}member-{each}" for each in work.numbers}
        own = endpoints.pop(number)
        self.node = MutexNode(child.context, machine, REALM, own, time.monotonic, self._granted, self._lost)
        self.node.connect(endpoints)
        self._asker = Asker(child.context, self._replied, lambda tag: self._replied(tag, b"{}", b""))
        self.loop = child.reactor(self._wake_at, self._on_round)
        self.loop.add(self.node.socket, self.node.drain, QUANTUM)
        self._asker.join(self.loop)
        self._resource = f"{prefix}resource"
        self._random = Random(number)
        # What to do next, and when.
        self._next: tuple[float, Callable[[], None]] | None = None
        self._fence = 0
        self._asked_at = 0.0
        self._count_at = 0.0
        self._stop_at = 0.0
        self._sent_before: int | None = None
        self._waits_s: list[float] = []
        self._entries = 0
        self._asker.ask(self._resource, b'{"what": "ready"}', "ready", _READY_WITHIN_S)

    def _wake_at(self) -> float | None:
        times = (self.node.wake_at(), self._asker.requester.wake_at(), self._next and self._next[0])
        return min((at for at in times if at is not None), default=None)

    def _on_round(self, now: float) -> None:
        self.node.tick(now)
        self._asker.expire(now)
        if self._next is not None and now >= self._next[0]:
            action, self._next = self._next[1], None
            action()

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._next = (time.monotonic() + delay_s, action)

    def _think(self) -> None:
        now = time.monotonic()
        if self._sent_before is None and now >= self._count_at:
            self._sent_before = self.node.counters["sent"]
            self._entries = 0
            self._waits_s.clear()
        if now >= self._stop_at:
            self._report()
        elif self._asks:
            mean_s = self._work.think_s
            self._after(self._random.expovariate(1 / mean_s) if mean_s else 0.0, self._ask)
        else:
            self._after((self._count_at if now < self._count_at else self._stop_at) - now, self._think)

    def _ask(self) -> None:
        self._asked_at = time.monotonic()
        self.node.request()

    def _granted(self, fence: int, _until: float | None) -> None:
        self._fence = fence
        self._waits_s.append(time.monotonic() - self._asked_at)
        # In a round of its own: whoever granted it is not through yet.
        self._after(0.0, lambda: self._use(False) if self._work.uses else self._after_use(False))

    def _lost(self, fence: int, reason: str) -> None:
        if self._work.loud:
            self._child.say(f"is told that its grant {fence:#x} has ended: {reason}")

    def _use(self, is_last: bool) -> None:
        use = {"what": "use", "member": self._number, "fence": self._fence, "last": is_last}
        self._asker.ask(self._resource, json.dumps(use).encode(), use, _USE_WITHIN_S)

    def _after_use(self, is_last: bool) -> None:
        if not is_last and self._work.uses:
            self._after(self._work.hold_s, lambda: self._use(True))
        else:
            self._after(0.0 if is_last else self._work.hold_s, self._leave)

    def _leave(self) -> None:
        self._entries += 1
        self.node.release()
        self._think()

    def _replied(self, tag: Any, body: bytes, _data: bytes) -> None:
        if tag == "ready":
            self._count_at = time.monotonic() + self._work.warm_s
            self._stop_at = self._count_at + self._work.ask_s
            self._think()
        elif tag != "report":
            reply = json.loads(body)
            if reply.get("accepted"):
                self._after_use(tag["last"])
                return
            if self.node.machine.state == HELD:
                self.node.refused(reply.get("highest", 0))
            self.node.release()
            self._think()

    def _report(self) -> None:
        report = {
            "what": "report",
            "entries": self._entries,
            "sent": self.node.counters["sent"] - (self._sent_before or 0),
            "wait_s": sum(self._waits_s),
            "waits": len(self._waits_s),
        }
        self._asker.ask(self._resource, json.dumps(report).encode(), "report", _USE_WITHIN_S)


def member(child: Child, number: str, incarnation: str, prefix: str, work: str) -> None:
    made = Member(child, int(number), int(incarnation), prefix, Work.from_text(work))
    made.loop.run()


class Processes:
    """The group as its parent has it: the resource, and what members tell.

    on_use(member, fence, is_last, accepted): told of each use, before it is answered.
    """

    def __init__(self, parent: Parent, work: Work, on_use: Callable[[int, int, bool, bool], None]) -> None:
        self.work = work
        self.resource = Resource()
        self.reports: list[dict[str, float]] = []
        self.ready = 0
        self.uses: Counter[str] = Counter()
        self._parent = parent
        self._on_use = on_use
        self._prefix = parent.endpoint("")
        self._incarnations: Counter[int] = Counter()
        socket = make_socket(parent.context, zmq.ROUTER, frame_max_bytes=FRAME_MAX_BYTES)
        socket.bind(f"{self._prefix}resource")
        self._replier: Replier[bytes] = Replier()
        self._service = Service(socket, self._replier, self._answer, lambda *_refused: None)
        self._waiting: list[int] = []
        self.loop = Reactor(lambda: None, lambda _now: None, longest_wait_s=0.1)
        self.loop.add(socket, self._service.drain, QUANTUM)

    def start(self) -> None:
        for number in self.work.numbers:
            self.start_one(number)

    def start_one(self, number: int) -> None:
        incarnation = self._incarnations[number]
        self._incarnations[number] += 1
        self._parent.start(
            "member", self.name(number), number, incarnation, self._prefix, self.work.to_text()
        )

    def name(self, number: int) -> str:
        return f"member-{number}" if number < self.work.size else COORDINATOR

    def close(self) -> None:
        self._service.socket.close(0)

    def _answer(self, peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        asked = json.loads(bytes(body))
        if asked["what"] == "use":
            self._service.reply(peer, frame, json.dumps(self._used(asked)).encode())
        elif asked["what"] == "report":
            self.reports.append(asked)
            self._service.reply(peer, frame, b"{}")
        else:
            self.ready += 1
            self._waiting.append(self._replier.defer(peer, frame))
            if self.ready >= len(self.work.numbers):
                for token in self._waiting:
                    self._service.send(*self._replier.resolve(token, b"{}"))
                self._waiting.clear()

    def _used(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            accepted = self.resource.use(asked["fence"])
        except RemoteError:
            accepted = False
        self.uses["accepted" if accepted else "refused"] += 1
        self._on_use(asked["member"], asked["fence"], asked["last"], accepted)
        return {"accepted": accepted, "highest": self.resource.highest}


if __name__ == "__main__":
    play({"member": member})
