"""The balancer's process in virtual time: the shell of dws/nodes/balancer.py around the production machine.

What lives here: carrying out effects and bringing events. What must not: any
decision.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from dws import messages
from dws.balancer import Balancer
from dws.effects import Answer, Ask, Connect, Disconnect, Log, Persist, Push, Rebuilt
from dws.errors import Full, TryAgain
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
from dws.messages import Error, Locate, encode
from dws.rebuild import Rebuild
from dws.sim.nodes import (
    BALANCER_HOST,
    BEATS_ENDPOINT,
    CLIENTS_ENDPOINT,
    SERVERS_ENDPOINT,
    Calls,
    DiskWriter,
    Node,
    Service,
)
from dws.store import Decision
from patterns.errors import RemoteError
from patterns.heartbeat import parse
from patterns.jobs import HEADER_BYTES
from patterns.request_reply import NO_REALM
from patterns.sim.connections import PUSH, SUB, Frames
from patterns.sim.network import Socket

if TYPE_CHECKING:
    from dws.sim.world import World

_CLIENTS, _SERVERS = 0, 1
_QUEUE_DECISIONS = 100_000
_BATCH_DECISIONS = 1_000
_BEATS_HWM = 10_000


class _Link:
    """The sockets to one server: PUSH for jobs, watched; its DEALER is one of the calls' links."""

    def __init__(self, push: Socket, pages_endpoint: str, jobs_endpoint: str) -> None:
        self.push = push
        self.pages_endpoint = pages_endpoint
        self.jobs_endpoint = jobs_endpoint


class BalancerNode(Node):
    machine: Balancer | Rebuild

    def __init__(self, world: "World") -> None:
        super().__init__(world, BALANCER_HOST)
        self.rebuilds = False
        """Whether its next life gathers a catalog from the servers, as --rebuild does."""
        self._perform_by: dict[type[Any], Callable[[Any], None]] = {
            Answer: self._do_answer,
            Push: self._do_push,
            Ask: self._do_ask,
            Persist: self._do_persist,
            Connect: self._do_connect,
            Disconnect: lambda effect: self._unlink(effect.server),
            Rebuilt: self._do_rebuilt,
            Log: lambda effect: self.world.note(self.name, effect.level, effect.text),
        }

    @property
    def balancer(self) -> Balancer:
        """The machine, when it is no rebuild."""
        assert isinstance(self.machine, Balancer)
        return self.machine

    def begin(self) -> None:
        world = self.world
        store = world.catalog
        rng = Random(world.rng_nodes.getrandbits(63))
        if self.rebuilds:
            cluster = NO_REALM
            new_cluster = rng.randbytes(16)
            self.machine = Rebuild(store.epoch, store.servers, world.config, new_cluster, self.now)
        else:
            head = store.open()
            cluster = head.cluster
            world.opened()
            self.machine = Balancer(
                head, store.load(), store.outcome, store.knows_start, world.config, rng, self.now
            )
        self._cluster = cluster
        self._links: dict[int, _Link] = {}
        self.services = (
            Service(self, CLIENTS_ENDPOINT, self._client_asked, cluster),
            Service(self, SERVERS_ENDPOINT, self._server_asked, cluster),
        )
        self.calls = Calls(self, self._answered, cluster)
        self._beats = Socket(self.host, SUB, _BEATS_HWM)
        self._beats.on_message = self._beaten
        self._beats.bind(BEATS_ENDPOINT)
        classes = {"decisions": (1, _QUEUE_DECISIONS)}
        self.writer: DiskWriter[Decision, None] = DiskWriter(
            self, classes, _BATCH_DECISIONS, self._write, self._sync, self._persisted
        )

    def ended(self) -> None:
        self.world.decided(self.world.catalog.crash())

    def wake_at(self) -> float:
        return min(self.machine.wake_at(), self.calls.wake_at())

    def woken(self) -> None:
        for tag in self.calls.expire(self.now):
            self.handle(Unanswered(tag))
        if self.now >= self.machine.wake_at():
            self.handle(Tick())

    def handle(self, event: Any) -> None:
        perform = self._perform_by
        for effect in self.machine.handle(event, self.now):
            perform[type(effect)](effect)
        self.world.touched(self.machine)

    # -- events in -----------------------------------------------------------------------------

    def _client_asked(self, peer: int, frame: bytes, body: memoryview, data: Any) -> None:
        message = messages.decode_client_request(body)
        if isinstance(message, Locate):
            located = self.machine.locate(message, self.now)
            self.world.observer.told(f"peer {peer}", located)
            self.services[_CLIENTS].reply(peer, frame, encode(located))
        else:
            self._defer(_CLIENTS, peer, frame, message)

    def _server_asked(self, peer: int, frame: bytes, body: memoryview, data: Any) -> None:
        message = messages.decode_server_request(body)
        self.world.observer.heard(message)
        self._defer(_SERVERS, peer, frame, message)

    def _defer(self, which: int, peer: int, frame: bytes, message: Any) -> None:
        service = self.services[which]
        try:
            token = service.replier.defer(peer, frame) << 1 | which
        except RemoteError as error:
            service.reply(peer, frame, encode(Error(TryAgain.code, error.text, 0.1)))
            return
        self.handle(ClientAsked(token, message) if which == _CLIENTS else ServerAsked(token, message))

    def _beaten(self, peer: int, frames: Frames) -> None:
        realm, server, incarnation, sequence, body = parse(frames[0])
        if realm == self._cluster:
            self.handle(Beaten(server, incarnation, sequence, messages.decode_beat(body)))
            self.arm()

    def _answered(self, tag: Any, body: memoryview, data: Any) -> None:
        self.handle(Answered(tag, messages.decode_page_reply(body)))

    def _persisted(self, decision: Decision, result: None) -> None:
        self.world.knows(decision)
        self.handle(Persisted(decision.number))

    def _linked(self, server: int, came_up: bool) -> None:
        self.handle(LinkUp(server) if came_up else LinkDown(server))
        self.arm()

    # -- effects out ------------------------------------------------------------------------------

    def _do_answer(self, effect: Answer) -> None:
        service = self.services[effect.token & 1]
        peer, frame = service.replier.resolve(effect.token >> 1, encode(effect.message))
        self.world.observer.told(f"peer {peer}", effect.message)
        service.send(peer, frame)

    def _do_push(self, effect: Push) -> None:
        link = self._links.get(effect.server)
        if link is None:
            return
        server = self.world.server_at(link.jobs_endpoint)
        if server is not None:
            self.world.observer.ordered(self, server, messages.decode_job(effect.frame[HEADER_BYTES:]))
        if not link.push.send((effect.frame,)):
            self.counters["jobs not pushed"] += 1

    def _do_ask(self, effect: Ask) -> None:
        link = self._links.get(effect.server)
        endpoint = "" if link is None else link.pages_endpoint
        self.calls.call(endpoint, encode(effect.message), effect.tag, self.now + effect.timeout_s)

    def _do_persist(self, effect: Persist) -> None:
        decision = effect.decision
        self.world.observer.handed(decision)
        self.world.note_decision(decision, "is handed to the writer")
        decision.forget_at += self.now
        assert self.writer.submit("decisions", decision, 1), "decisions are not bounded like that"

    def _do_connect(self, effect: Connect) -> None:
        self._unlink(effect.server)
        self.calls.link(effect.pages_endpoint)
        push = Socket(self.host, PUSH, self.world.options.hwm)
        push.on_link = lambda came_up: self._linked(effect.server, came_up)
        self._links[effect.server] = _Link(push, effect.pages_endpoint, effect.jobs_endpoint)
        push.connect(effect.jobs_endpoint)

    def _do_rebuilt(self, effect: Rebuilt) -> None:
        self.host.after(0.0, self.world.rebuilt, effect)

    def _unlink(self, number: int) -> None:
        link = self._links.pop(number, None)
        if link is not None:
            link.push.close()
            self.calls.drop(link.pages_endpoint)

    # -- the writer -------------------------------------------------------------------------------

    def _write(self, decisions: list[Decision]) -> None:
        try:
            self.world.catalog.write(decisions, self.world.catalog.epoch)
        except Full as error:
            # As in production: the writer's exception ends the process.
            self.host.after(0.0, self.world.process_ended, self, str(error))

    def _sync(self, decisions: list[Decision]) -> list[None]:
        self.world.catalog.sync()
        self.world.decided(decisions)
        return [None] * len(decisions)
