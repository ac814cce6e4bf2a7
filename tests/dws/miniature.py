"""A whole cluster in memory: the production machines, a virtual clock, and everything that can go wrong.

Nodes are the shells: they carry effects out and bring events. Messages are encoded and decoded as
on a wire; those between two nodes keep their order, none comes twice, some are lost or late. A message
to an endpoint that is gone is lost, or waits for the next node that binds it. Nodes crash between any
two events, pause, and come back, with what their stores had committed. All of it follows from the seed.

What is true is kept beside the machines: `truths[n]` is what the catalog's disk names after decision n.
"""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf
from random import Random
from typing import Any

from msgspec import Struct

from dws import messages
from dws.balancer import Balancer
from dws.client import Directory, Operation
from dws.config import Config
from dws.effects import (
    Answer,
    AnswerData,
    Ask,
    AskPeer,
    Connect,
    Disconnect,
    Log,
    Persist,
    Publish,
    Push,
    Report,
    Write,
)
from dws.events import (
    Answered,
    Beaten,
    ClientAsked,
    LinkDown,
    LinkUp,
    Persisted,
    ServerAsked,
    Tick,
    Unanswered,
)
from dws.following import Endpoints
from dws.messages import Drop, Fetch, Locate, Read, encode
from dws.store import Decision
from dws.webserver import (
    BalancerUp,
    Figures,
    JobCame,
    PeerAnswered,
    PeerAsked,
    PeerUnanswered,
    ReportAnswered,
    ReportUnanswered,
    WebServer,
    Written,
)
from dws.webserver import Tick as ServerTick
from patterns.heartbeat import Beater, parse
from patterns.jobs import HEADER_BYTES
from tests.dws.memory_store import MemoryCatalogStore, MemoryPageStore

#: Slow clocks run fast, so that a run of ten seconds sees them all.
HASTY = Config(
    down_dead_s=1.0, dead_s=2.0, garbage_s=1.0, stage_idle_s=3.0, job_reissue_s=0.5, period_s=3.0,
    probe_s=0.5, behind_s=0.5,
)  # fmt: skip


class Weather(Struct):
    """How bad things are. Delays in seconds, loss as a share of messages."""

    delay_s: float = 0.002
    late_s: float = 0.0  # an additional delay of up to this, for one message in ten
    loss: float = 0.0
    fsync_s: float = 0.01


class Node:
    """A process: its `life` ends with a crash, and nothing meant for one life happens in the next."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.endpoint = name
        self.life = 0
        self.up = False
        self.paused_until = 0.0
        self.undelivered: list[Any] = []
        self.asked: dict[int, Any] = {}

    def start(self) -> None:
        self.life += 1
        self.up = True
        self.asked = {}
        self.begin()
        undelivered, self.undelivered = self.undelivered, []
        for act, args in undelivered:
            self.world.at(0.001, self, act, *args)

    def crash(self) -> None:
        self.up = False
        self.life += 1
        self.paused_until = 0.0

    def begin(self) -> None:
        raise NotImplementedError

    def schedule(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        """In this life only."""
        self.world.at(delay_s, self, self._if_alive, self.life, act, args)

    def _if_alive(self, life: int, act: Callable[..., None], args: Any) -> None:
        if life == self.life:
            act(*args)

    # -- requests ------------------------------------------------------------------

    def ask(self, other: "Node", message: Any, tag: Any, timeout_s: float, data: Any = b"") -> None:
        number = next(self.world.numbers)
        self.asked[number] = tag
        self.world.post(self, other, other.take_request, self, number, encode(message), bytes(data or b""))
        # Whoever was asleep takes in its replies before it looks at its clock.
        self.schedule(timeout_s, self.schedule, 0.0, self._expire, number)

    def take_request(self, peer: "Node", number: int, body: bytes, data: bytes) -> None:
        raise NotImplementedError

    def reply(self, peer: "Node", number: int, message: Any, data: bytes = b"") -> None:
        self.world.post(self, peer, peer.take_reply, number, encode(message), data)

    def take_reply(self, number: int, body: bytes, data: bytes) -> None:
        if number in self.asked:
            self.replied(self.asked.pop(number), body, memoryview(data))

    def _expire(self, number: int) -> None:
        if number in self.asked:
            self.silent(self.asked.pop(number))

    def replied(self, tag: Any, body: bytes, data: memoryview) -> None:
        raise NotImplementedError

    def silent(self, tag: Any) -> None:
        raise NotImplementedError


class Ticking(Node):
    """A node around a machine that says when it wants to be woken."""

    machine: Any

    def wake(self) -> None:
        """Sleep until the machine's next deadline, if no earlier waking is due."""
        wake_at = max(self.machine.wake_at(), self.world.now + 0.001)
        if wake_at < self.wakes_at:
            self.wakes_at = wake_at
            # Twice: messages that came during a pause go before the clock is looked at.
            self.schedule(wake_at - self.world.now, self.schedule, 0.0, self._tick)

    def begin(self) -> None:
        self.wakes_at = inf

    def _tick(self) -> None:
        self.wakes_at = inf
        if self.machine.wake_at() <= self.world.now:
            self.tick()
        self.wake()

    def tick(self) -> None:
        raise NotImplementedError

    def handle(self, event: Any) -> None:
        for effect in self.machine.handle(event, self.world.now):
            self.perform(effect)
        self.machine.check()
        self.wake()

    def perform(self, effect: Any) -> None:
        raise NotImplementedError


class Link:
    """A balancer's sockets to a server. life: which one of the server's they reach; 0: none."""

    def __init__(self, server: Any, endpoint: str) -> None:
        self.server = server
        self.endpoint = endpoint
        self.life = 0


class BalancerNode(Ticking):
    machine: Balancer

    def begin(self) -> None:
        super().begin()
        world = self.world
        store = world.catalog
        head = store.open()
        world.handled = len(store.decisions)
        self.machine = Balancer(
            head, store.load(), store.outcome, store.knows_start, world.config, Random(world.rng.random()),
            world.now,
        )  # fmt: skip
        self.owed: dict[int, tuple[Node, int]] = {}
        self.links: dict[int, Link] = {}
        self.queue: deque[Decision] = deque()
        self.writing = False
        self.wake()
        for server in world.servers:
            world.post(self, server, server.balancer_up, sure=True)

    def take_request(self, peer: Node, number: int, body: bytes, data: bytes) -> None:
        if isinstance(peer, ServerNode):
            message: Any = messages.decode_server_request(body)
        else:
            message = messages.decode_client_request(body)
            if isinstance(message, Locate):
                self.reply(peer, number, self.machine.locate(message, self.world.now))
                return
        token = next(self.world.numbers)
        self.owed[token] = (peer, number)
        kind = ServerAsked if isinstance(peer, ServerNode) else ClientAsked
        self.handle(kind(token, message))

    def replied(self, tag: Any, body: bytes, data: memoryview) -> None:
        self.handle(Answered(tag, messages.decode_page_reply(body)))

    def silent(self, tag: Any) -> None:
        self.handle(Unanswered(tag))

    def take_beat(self, frame: bytes) -> None:
        realm, peer, incarnation, sequence, body = parse(frame)
        if realm == self.world.catalog.cluster:
            self.handle(Beaten(peer, incarnation, sequence, messages.decode_beat(body)))

    def tick(self) -> None:
        self.handle(Tick())

    def link_changed(self, server: "ServerNode", life: int, came_up: bool) -> None:
        """What the monitors of the links to a server tell: of that life of it, and of the links' own time."""
        for number, link in list(self.links.items()):
            if link.server is server and link.endpoint == server.endpoint and came_up != (link.life == life):
                link.life = life if came_up else 0
                self.handle(LinkUp(number) if came_up else LinkDown(number))

    def perform(self, effect: Any) -> None:
        world = self.world
        match effect:
            case Answer(token, message):
                assert token in self.owed, f"{type(message).__name__} answers a request that is not owed one"
                peer, number = self.owed.pop(token)
                world.told(message)
                self.reply(peer, number, message)
            case Push(server, frame):
                link = self.links.get(server)
                if link is not None and link.life:
                    world.ordered(self, link.server, messages.decode_job(frame[HEADER_BYTES:]))
                    world.post(self, link.server, link.server.take_job, frame)
            case Ask(server, message, tag, timeout_s):
                if server in self.links:
                    self.ask(self.links[server].server, message, tag, timeout_s)
                else:
                    self.schedule(0.0, self.silent, tag)
            case Persist(decision):
                world.handed(decision)
                decision.forget_at += world.now
                self.queue.append(decision)
                self._write()
            case Connect(server, pages_endpoint, _):
                node = world.by_endpoint.get(pages_endpoint, world.nobody)
                self.links[server] = Link(node, pages_endpoint)
                if node.up:
                    world.post(node, self, self.link_changed, node, node.life, True, sure=True)
            case Disconnect(server):
                self.links.pop(server, None)
            case Log(level, text):
                world.log.append(f"{world.now:.3f} {self.name} {level}: {text}")

    def _write(self) -> None:
        if self.queue and not self.writing:
            self.writing = True
            self.schedule(self.world.fsync_s(), self._commit)

    def _commit(self) -> None:
        group = [self.queue.popleft() for _ in range(self.world.rng.randint(1, len(self.queue)))]
        self.world.catalog.commit(group, self.world.catalog.epoch)
        self.world.decided(group)
        # A crash may come between what is durable and what is known.
        self.schedule(self.world.fsync_s() / 4, self._committed, [decision.number for decision in group])

    def _committed(self, numbers: list[int]) -> None:
        for number in numbers:
            self.world.handled = number
            self.handle(Persisted(number))
        self.writing = False
        self._write()


class ServerNode(Ticking):
    machine: WebServer

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.store = MemoryPageStore(world.rng, log_max=world.rng.choice([3, 1000]))

    def begin(self) -> None:
        super().begin()
        world = self.world
        if self.life > 1:
            self.store.restart()
        self.endpoint = f"tcp://{self.name}:{self.life if world.ports_change else 1}"
        world.by_endpoint[self.endpoint] = self
        self.machine = WebServer(
            self.name, self.store, Endpoints(self.endpoint, self.endpoint), world.config, world.now
        )
        identity = self.store.identity
        self.beater = Beater(identity.cluster, identity.server, identity.incarnation)
        self.owed: dict[int, tuple[Node, int]] = {}
        self.queues: dict[str, deque[Write]] = {}
        self.writing = False
        self.wake()
        world.post(self, world.balancer, world.balancer.link_changed, self, self.life, True, sure=True)

    def crash(self) -> None:
        balancer = self.world.balancer
        self.world.post(self, balancer, balancer.link_changed, self, self.life, False, sure=True)
        if self.world.ports_change:
            del self.world.by_endpoint[self.endpoint]
        super().crash()

    def balancer_up(self) -> None:
        self.handle(BalancerUp())

    def take_request(self, peer: Node, number: int, body: bytes, data: bytes) -> None:
        message = messages.decode_page_request(body)
        if isinstance(message, Fetch):
            self.reply(peer, number, *self.machine.fetch(message))
        elif isinstance(message, Read):
            self.reply(peer, number, *self.machine.read(message))
        else:
            token = next(self.world.numbers)
            self.owed[token] = (peer, number)
            self.handle(PeerAsked(peer.name.encode(), token, message, memoryview(data)))

    def take_job(self, frame: bytes) -> None:
        body = self.machine.gate.accept(frame)
        if body is not None:
            self.handle(JobCame(messages.decode_job(body)))

    def replied(self, tag: Any, body: bytes, data: memoryview) -> None:
        is_report, tag = tag
        if is_report:
            self.handle(ReportAnswered(tag, messages.decode_server_reply(body)))
        else:
            self.handle(PeerAnswered(tag, messages.decode_page_reply(body), data))

    def silent(self, tag: Any) -> None:
        is_report, tag = tag
        self.handle(ReportUnanswered(tag) if is_report else PeerUnanswered(tag))

    def tick(self) -> None:
        self.handle(ServerTick(Figures()))

    def perform(self, effect: Any) -> None:
        world = self.world
        match effect:
            case Answer(token, message):
                self.reply(*self.owed.pop(token), message)
            case AnswerData(token, message, data):
                self.reply(*self.owed.pop(token), message, data)
            case Report(message, tag, timeout_s):
                self.ask(world.balancer, message, (True, tag), timeout_s)
            case AskPeer(endpoint, message, tag, timeout_s):
                self.ask(world.by_endpoint.get(endpoint, world.nobody), message, (False, tag), timeout_s)
            case Write(kind):
                self.queues.setdefault(kind, deque()).append(effect)
                self._write()
            case Publish(beat):
                self.beater.realm = self.store.identity.cluster or bytes(16)
                world.post(self, world.balancer, world.balancer.take_beat, self.beater.beat(encode(beat)))
            case Log(level, text):
                world.log.append(f"{world.now:.3f} {self.name} {level}: {text}")

    def _write(self) -> None:
        if not self.writing and any(self.queues.values()):
            self.writing = True
            self.schedule(self.world.fsync_s(), self._commit)

    def _commit(self) -> None:
        # Classes share the writer in any way; within a class there is an order.
        group: list[Write] = []
        while not group or (any(self.queues.values()) and self.world.rng.random() < 0.7):
            group.append(self.world.rng.choice([queue for queue in self.queues.values() if queue]).popleft())
        results = self.store.commit([write.op for write in group])
        self.schedule(self.world.fsync_s() / 4, self._written, list(zip(group, results, strict=True)))

    def _written(self, done: list[Any]) -> None:
        for write, result in done:
            self.handle(Written(write.tag, result))
        self.writing = False
        self._write()


class ClientNode(Node):
    """Runs operations, any number at once. finished(operation): called when one has a result or an error."""

    def begin(self) -> None:
        self.directory = Directory()
        self.running: dict[Operation, Callable[[Operation], None]] = {}

    def run(self, operation: Operation, finished: Callable[[Operation], None]) -> None:
        self.running[operation] = finished
        self._send(operation, operation.start(self.world.now))

    def _send(self, operation: Operation, sends: Any) -> None:
        world = self.world
        for send in sends:
            known = self.directory.servers.get(send.server)
            if send.server == 0:
                self.ask(world.balancer, send.message, (operation, send.tag), send.timeout_s)
            elif known is None:
                self.schedule(0.0, self.silent, (operation, send.tag))
            else:
                node = world.by_endpoint.get(known.endpoint, world.nobody)
                self.ask(node, send.message, (operation, send.tag), send.timeout_s, send.data)
        if operation.finished:
            if operation in self.running:
                self.running.pop(operation)(operation)
        else:
            wait_s = max(0.0, operation.wake_at() - world.now)
            self.schedule(wait_s, self.schedule, 0.0, self._tick, operation)

    def _tick(self, operation: Operation) -> None:
        if operation in self.running and operation.wake_at() <= self.world.now:
            self._send(operation, operation.tick(self.world.now))

    def replied(self, tag: Any, body: bytes, data: memoryview) -> None:
        operation, tag = tag
        message = messages.decode_reply(body)
        self._send(operation, operation.answered(tag, message, data, self.world.now))

    def silent(self, tag: Any) -> None:
        operation, tag = tag
        self._send(operation, operation.unanswered(tag, self.world.now))


class World:
    """seed decides everything. `weather` may change at any time."""

    def __init__(self, seed: int, servers: int = 3, clients: int = 2, config: Config = HASTY) -> None:
        self.rng = Random(seed)
        self.config = config
        self.now = 100.0
        self.weather = Weather()
        self.numbers = count(1)
        self.log: list[str] = []
        self.ports_change = self.rng.random() < 0.5
        self._events: list[tuple[float, int, Node, Any, Any]] = []
        self._last: dict[tuple[Node, Node], float] = {}
        self._passed: dict[tuple[Node, Node], int] = {}
        self.by_endpoint: dict[str, Any] = {}
        self.catalog = MemoryCatalogStore(self.rng, lambda: self.now)
        self.truths: list[dict[str, int]] = [{}]
        self.handled = 0
        self.nobody = Node(self, "nobody")
        self.balancer = BalancerNode(self, "balancer")
        self.servers = [ServerNode(self, f"web-{number}") for number in range(1, servers + 1)]
        self.clients = [ClientNode(self, f"client-{number}") for number in range(1, clients + 1)]
        self.nodes: list[Any] = [self.balancer, *self.servers, *self.clients]
        for node in self.nodes:
            node.start()

    # -- time and the network --------------------------------------------------------

    def at(self, delay_s: float, node: Node, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self.numbers), node, act, args))

    def post(
        self, source: Node, target: Node, act: Callable[..., None], *args: Any, sure: bool = False
    ) -> None:
        """Send a message. `sure`: not one of the network, but what its end finds out by itself."""
        weather = self.weather
        if not sure and self.rng.random() < weather.loss:
            return
        delay_s = self.rng.uniform(0.2, 1) * weather.delay_s
        if self.rng.random() < 0.1:
            delay_s += self.rng.random() * weather.late_s
        arrives = max(self._last.get((source, target), 0.0), self.now + delay_s)
        self._last[source, target] = arrives
        way = (source, target, next(self.numbers), target.endpoint)
        heapq.heappush(self._events, (arrives, next(self.numbers), target, self._arrive, (way, act, args)))

    def _arrive(self, way: Any, act: Callable[..., None], args: Any) -> None:
        source, target, number, endpoint = way
        # What waited for a node that then died must not come behind what was sent later.
        overtaken = number < self._passed.get((source, target), 0)
        if overtaken or endpoint != target.endpoint:
            return
        if target.up:
            self._passed[source, target] = number
            act(*args)
        elif self.rng.random() < 0.5 and target is not self.nobody:
            target.undelivered.append((self._arrive, (way, act, args)))

    def fsync_s(self) -> float:
        return self.rng.uniform(0.1, 1) * self.weather.fsync_s

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass. True as soon as `until` holds."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            when, _, node, act, args = heapq.heappop(self._events)
            self.now = max(self.now, when)
            if node.up and node.paused_until > self.now:
                # At that very time, in the order in which they came.
                heapq.heappush(self._events, (node.paused_until, next(self.numbers), node, act, args))
                continue
            act(*args)
            if until():
                return True
        self.now = end
        return until()

    # -- what is seen of the machines: a test overrides these ------------------------------

    def told(self, message: Any) -> None:
        """The balancer answers somebody."""

    def ordered(self, balancer: BalancerNode, server: ServerNode, job: Drop | messages.Copy) -> None:
        """A job is pushed."""

    def handed(self, decision: Decision) -> None:
        """A decision is handed to the balancer's writer."""

    def decided(self, decisions: list[Decision]) -> None:
        """Decisions are on disk."""
        for decision in decisions:
            truth = dict(self.truths[-1])
            truth |= {record.name: record.version for record in decision.puts}
            for name in decision.removes:
                truth.pop(name, None)
            self.truths.append(truth)
