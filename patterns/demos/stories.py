"""One short run of each pattern in made-up time; its messages become the sequence diagrams of the docs.

What lives here: runs of the very machines, with a wire between them that this
module drops messages from. Nothing is drawn that a machine did not say: states,
numbers and effects are read from the machines as the run goes on.
"""

from collections.abc import Callable
from typing import Final

from patterns.demos.drawing import Sequence
from patterns.fair import FairQueue
from patterns.heartbeat import Beater, Watcher, parse
from patterns.jobs import Dispatcher, Gate
from patterns.mutex import coordinator
from patterns.mutex.coordinator import Coordinator, Member
from patterns.mutex.interface import Effect, Granted, Lost, Machine, Send
from patterns.mutex.resource import Resource
from patterns.rendezvous import Rendezvous
from patterns.request_reply import Replier, Requester
from patterns.snapshot import Feed, Follower
from patterns.transfer import Transfer

_REALM: Final = b"demo of patterns"
_MUTEX_KINDS: Final = {
    coordinator.REQUEST: "REQUEST",
    coordinator.GRANT: "GRANT",
    coordinator.RELEASE: "RELEASE",
}


def request_reply() -> Sequence:
    """A request is answered; the reply to another is lost, it expires and is sent again."""
    drawn = Sequence("requester", "replier")
    requester: Requester[str] = Requester(first_id=1)
    replier: Replier[str] = Replier()

    def ask(body: str, deadline: float) -> bytes:
        _, frame = requester.request(body.encode(), body, deadline)
        drawn.sent("requester", "replier", frame, f"deadline {deadline:g} s")
        return frame

    def take(reply: bytes) -> None:
        received = requester.receive(reply)
        drawn.sent("replier", "requester", reply)
        drawn.note("requester", f"{received[1]!r} is answered" if received else "nobody awaits it: dropped")

    first, second = ask("one", 1), ask("two", 1)
    token = replier.defer("requester", first)
    drawn.note("replier", f"owes {len(replier)} answer")
    take(replier.reply(second, b"at once"))
    late = replier.resolve(token, b"late")[1]
    for _, tag in requester.expire(1.0):
        drawn.note("requester", f"1 s: {tag!r} expired")
    again = ask("one", 2)
    take(late)
    drawn.lost("replier", "requester", replier.reply(again, b"lost"))
    for _, tag in requester.expire(2.0):
        drawn.note("requester", f"2 s: {tag!r} expired")
    take(replier.reply(ask("one", 3), b"done"))
    return drawn


def heartbeat() -> Sequence:
    """A peer beats, loses a beat, falls silent, comes back."""
    drawn = Sequence("peer", "watcher")
    beater = Beater(_REALM, b"P" * 16, incarnation=1)
    watcher = Watcher(suspect_s=0.75, down_dead_s=3, dead_s=15, asleep_s=20)

    def tell(now: float, changes: list[tuple[bytes, str]]) -> None:
        for _, state in changes:
            drawn.note("watcher", f"{now:g} s: {state}")

    def beat(now: float) -> None:
        frame = beater.beat(b"")
        drawn.sent("peer", "watcher", frame)
        _, peer, incarnation, sequence, _ = parse(frame)
        lost = watcher.counters["lost-beats"]
        tell(now, watcher.beat(peer, incarnation, sequence, now))
        if watcher.counters["lost-beats"] > lost:
            drawn.note("watcher", f"{watcher.counters['lost-beats'] - lost} beat was lost")

    watcher.join(b"P" * 16, 1, 0.0)
    drawn.sent("peer", "watcher", "hello of life 1, a request")
    drawn.note("watcher", f"0 s: {watcher.state(b'P' * 16)}")
    beat(0.25)
    drawn.lost("peer", "watcher", beater.beat(b""))
    beat(0.75)
    drawn.note("peer", "hangs")
    for now in (1.0, 1.5, 5.0, 10.0, 15.75):
        tell(now, watcher.poll(now))
    drawn.note("peer", "goes on")
    beat(16.0)
    return drawn


def jobs() -> Sequence:
    """A job comes to a worker's next life; then its report is lost."""
    drawn = Sequence("dispatcher", "worker")
    dispatcher: Dispatcher[str] = Dispatcher(_REALM, 1, window=2, backlog_max=10, reissue_s=5)
    gate = Gate(_REALM, incarnation=1)
    gate.welcome(_REALM, 1)

    def let_in(frame: bytes) -> str | None:
        body = gate.accept(frame)
        drawn.sent("dispatcher", "worker", frame)
        drawn.note("worker", "refused" if body is None else f"does {bytes(body).decode()!r}")
        return None if body is None else bytes(body).decode()

    def report(job: str | None) -> None:
        if job is not None and dispatcher.done(job):
            drawn.sent("worker", "dispatcher", f"{job!r} is done")
            drawn.note("dispatcher", f"jobs left: {len(dispatcher)}")

    dispatcher.worker(1)
    for job in ("A", "B"):
        dispatcher.add(job, job.encode())
    first, second = dispatcher.poll(0.0)
    report(let_in(first))
    drawn.note("worker", "is killed, with the next job still under way, and starts again")
    gate = Gate(_REALM, incarnation=2)
    gate.welcome(_REALM, 1)
    drawn.sent("worker", "dispatcher", "hello of life 2")
    dispatcher.worker(2)
    let_in(second)
    [again] = dispatcher.poll(1.0)
    let_in(again)
    drawn.lost("worker", "dispatcher", "'B' is done")
    [once_more] = dispatcher.poll(dispatcher.wake_at() or 0.0)
    drawn.note("dispatcher", f"6 s: {dispatcher.counters['overdue']} job is overdue")
    report(let_in(once_more))
    return drawn


def transfer() -> Sequence:
    """Five chunks under a credit of three; one fails and comes from another source."""
    drawn = Sequence("reader", "first", "second")
    moving = Transfer(size=45, chunk_bytes=10, credit_bytes=30)

    def ask(source: str) -> list[int]:
        chunks = moving.ask()
        for offset, length in chunks:
            drawn.sent("reader", source, f"read {length} bytes at {offset}")
        if not moving.ask():
            drawn.note("reader", f"{moving.outstanding} on the way: no credit, or no more to ask for")
        return [offset for offset, _ in chunks]

    def arrive(source: str, offset: int) -> None:
        drawn.sent(source, "reader", f"bytes at {offset}")
        ready = moving.arrive(offset)
        drawn.note("reader", f"hands on {ready}" if ready else f"keeps {offset}: not all before it is here")

    ask("first")
    arrive("first", 10)
    drawn.lost("first", "reader", "bytes at 0")
    moving.fail(0)
    drawn.note("reader", "the chunk at 0 failed: wanted again, before any new one")
    ask("second")
    arrive("second", 0)
    last = ask("second")
    arrive("first", 20)
    for offset in reversed(last):
        arrive("second", offset)
    drawn.note("reader", f"done: {moving.done}, {moving.position} bytes")
    return drawn


def snapshot() -> Sequence:
    """A follower loads the part that differs, follows updates, sees a gap, and finds itself wrong."""
    drawn = Sequence("follower", "publisher")
    follower, feed = Follower(behind_s=1), Feed(pause_s=0.1)
    feed.number = 7

    def state() -> None:
        part = "" if follower.part is None else f", part {follower.part}"
        drawn.note("follower", f"{follower.state}, at {follower.applied}{part}")

    def push(now: float, *, lost: bool = False) -> None:
        after = feed.poll(now)
        if after is None:
            return
        text = f"updates {after + 1} to {feed.number}"
        if lost:
            drawn.lost("publisher", "follower", text)
            feed.unanswered(now)
            return
        drawn.sent("publisher", "follower", text)
        verdicts = {follower.update(number) for number in range(after + 1, feed.number + 1)}
        drawn.note("follower", f"{', '.join(sorted(verdicts))}: at {follower.applied}")
        drawn.sent("follower", "publisher", f"applied {follower.applied}")
        feed.answered(follower.applied, now)

    def compare(differing: list[int]) -> None:
        follower.begin()
        drawn.sent("follower", "publisher", "summaries?")
        feed.follow(feed.number)
        drawn.sent("publisher", "follower", f"summaries at number {feed.number}")
        follower.compare(feed.number, differing)
        state()
        while follower.part is not None:
            drawn.sent("follower", "publisher", f"part {follower.part}?")
            drawn.sent("publisher", "follower", f"all of part {follower.part}")
            follower.loaded()
            state()

    state()
    compare([3])
    feed.number = 9
    push(0.0)
    feed.number = 10
    push(1.0, lost=True)
    feed.number = 12
    drawn.sent("publisher", "follower", "update 12, out of turn")
    drawn.note("follower", f"{follower.update(12)}: at {follower.applied}")
    push(2.0)
    drawn.sent("publisher", "follower", f"beat: at number {feed.number}, another summary than ours")
    if follower.seen(feed.number, False, 3.0):
        compare([5])
    return drawn


def fair() -> Sequence:
    """One class floods, another asks now and then; each fills its own queue."""
    drawn = Sequence("flood", "rare", "queue", "worker")
    queue: FairQueue[str] = FairQueue({"flood": (1, 3), "rare": (1, 3)})

    def offer(name: str, item: str) -> None:
        accepted = queue.offer(name, item)
        drawn.sent(name, "queue", f"{item}")
        if not accepted:
            drawn.sent("queue", name, f"refused: {queue.cost(name)} of 3 wait")

    def serve(count: int) -> None:
        for item in queue.take(count):
            drawn.sent("queue", "worker", item)

    for number in range(1, 5):
        offer("flood", f"flood {number}")
    offer("rare", "rare 1")
    serve(2)
    offer("flood", "flood 5")
    offer("rare", "rare 2")
    serve(2)
    return drawn


def rendezvous() -> Sequence:
    """A key is stored with its two owners, and found when the first of them is gone."""
    drawn = Sequence("client", "red", "green", "blue")
    groups = Rendezvous({"red": 1, "green": 1, "blue": 1})
    owners = groups.owners(b"/index.html", 2)
    drawn.note("client", f"/index.html belongs to {' and '.join(owners)}")
    for owner in owners:
        drawn.sent("client", owner, "keep /index.html")
    groups.remove(owners[0])
    drawn.note(owners[0], "is gone")
    heir = groups.owner(b"/index.html")
    drawn.note("client", f"it belongs to {heir} first, which has it")
    drawn.sent("client", heir, "read /index.html")
    drawn.sent(heir, "client", "/index.html")
    return drawn


class _Group:
    """A coordinator, two members and the resource; effects are carried out at once, and drawn."""

    def __init__(self) -> None:
        self.drawn = Sequence("first", "second", "coordinator", "resource")
        self.resource = Resource()
        self.fences: dict[str, int] = {}
        self._names = {1: "first", 2: "second", 9: "coordinator"}
        self._machines: dict[str, Machine] = {
            "first": Member(1, coordinator=9, incarnation=0, retry_s=1),
            "second": Member(2, coordinator=9, incarnation=0, retry_s=1),
            "coordinator": Coordinator(9, epoch=0, lease_s=4, margin_s=1, held_max_s=20, now=0.0),
        }

    def member(self, name: str) -> Member:
        machine = self._machines[name]
        assert isinstance(machine, Member)
        return machine

    def carry_out(self, who: str, effects: list[Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    target, kind = self._names[to], _MUTEX_KINDS[message.kind]
                    fence = f", fencing number {message.fence}" if kind != "REQUEST" else ""
                    self.drawn.sent(who, target, f"{kind} {message.number}{fence}")
                    self.carry_out(target, self._machines[target].receive(message, now), now)
                case Granted(fence, until):
                    self.fences[who] = fence
                    self.drawn.note(who, f"{now:g} s: {self.member(who).state} until {until:g} s")
                case Lost(_, reason):
                    self.drawn.note(who, f"{now:g} s: lost, {reason}")

    def poll(self, who: str, now: float) -> None:
        self.carry_out(who, self._machines[who].poll(now), now)

    def use(self, who: str, now: float) -> None:
        fence = self.fences[who]
        self.drawn.sent(who, "resource", f"use under {fence}")
        if not self.resource.use(fence):
            self.drawn.sent("resource", who, f"refused, {self.resource.highest} was here")
            self.carry_out(who, self.member(who).refused(self.resource.highest, now), now)


def mutex() -> Sequence:
    """Under the coordinator: a holder is paused past its lease; what it does after is refused."""
    group = _Group()
    group.carry_out("first", group.member("first").request(0.0), 0.0)
    group.use("first", 0.0)
    group.carry_out("second", group.member("second").request(0.5), 0.5)
    group.drawn.note("first", "is paused, and does not renew its lease")
    group.poll("coordinator", 5.0)
    group.use("second", 5.0)
    group.drawn.note("first", "wakes, and believes that it holds the lock")
    group.use("first", 6.0)
    group.carry_out("first", group.member("first").release(6.0), 6.0)
    group.carry_out("second", group.member("second").release(6.5), 6.5)
    return group.drawn


STORIES: Final[dict[str, Callable[[], Sequence]]] = {
    story.__name__: story
    for story in (request_reply, heartbeat, jobs, transfer, snapshot, fair, rendezvous, mutex)
}
