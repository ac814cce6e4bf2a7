"""A web server's process in virtual time: the shell of dws/nodes/webserver.py around the production machine.

What lives here: carrying out effects and bringing events. What must not: any
decision.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dws import messages
from dws.effects import Answer, AnswerData, AskPeer, Inspect, Log, Publish, Report, Write
from dws.errors import TryAgain
from dws.following import Endpoints
from dws.messages import Error, Fetch, Read, encode
from dws.sim.disks import PageDisk
from dws.sim.nodes import BEATS_ENDPOINT, SERVERS_ENDPOINT, Calls, DiskWriter, Node, Service
from dws.store import OpResult
from dws.webserver import (
    BalancerUp,
    Figures,
    Inspected,
    JobCame,
    PeerAnswered,
    PeerAsked,
    PeerUnanswered,
    ReportAnswered,
    ReportUnanswered,
    Tick,
    WebServer,
    Written,
)
from patterns.errors import RemoteError
from patterns.heartbeat import Beater
from patterns.request_reply import NO_REALM
from patterns.sim.connections import PUB, PULL, Frames
from patterns.sim.network import Socket

if TYPE_CHECKING:
    from dws.sim.world import World

_BEATS_HWM = 16
_BATCH_BYTES = 16 << 20
_JOBS_PORT, _PAGES_PORT = 30_000, 10_000
_FIGURES = Figures()


class ServerNode(Node):
    """disk: outlives its lives. server_name: what it calls itself, another one after a lost disk."""

    machine: WebServer

    def __init__(self, world: "World", name: str, disk: PageDisk) -> None:
        super().__init__(world, name)
        self.disk = disk
        self.server_name = name
        self._lives = 0
        self._perform_by: dict[type[Any], Callable[[Any], None]] = {
            Answer: self._do_answer,
            AnswerData: self._do_answer_data,
            Report: self._do_report,
            AskPeer: self._do_ask_peer,
            Write: self._do_write,
            Inspect: self._do_inspect,
            Publish: self._do_publish,
            Log: lambda effect: self.world.note(self.server_name, effect.level, effect.text),
        }

    @property
    def store(self) -> PageDisk:
        return self.disk

    def begin(self) -> None:
        world = self.world
        self._lives += 1
        if self._lives > 1:
            self.disk.restart()
        port = self._lives if world.options.ports_change else 1
        pages, jobs = (f"tcp://{self.name}:{first + port}" for first in (_PAGES_PORT, _JOBS_PORT))
        self.endpoints = Endpoints(pages, jobs)
        self.machine = WebServer(self.server_name, self.disk, self.endpoints, world.config, self.now)
        identity = self.disk.identity
        realm = identity.cluster or NO_REALM
        self.service = Service(self, pages, self._page_asked, realm)
        self._jobs = Socket(self.host, PULL, world.options.hwm)
        self._jobs.on_message = self._job_came
        self._jobs.bind(jobs)
        self._beats = Socket(self.host, PUB, _BEATS_HWM)
        self._beats.connect(BEATS_ENDPOINT)
        self._beater = Beater(realm, identity.server, identity.incarnation)
        self.calls = Calls(self, self._answered, realm)
        self.calls.link(SERVERS_ENDPOINT).on_link = self._linked
        bytes_max = world.config.write_queue_bytes
        self.writer: DiskWriter[Write, OpResult] = DiskWriter(
            self,
            {
                "upload": (4 << 20, 8 * bytes_max),
                "copy": (4 << 20, 8 * bytes_max),
                "drop": (1 << 20, 1 << 20),
            },
            _BATCH_BYTES,
            lambda writes: self.disk.write([write.op for write in writes]),
            self._sync,
            lambda write, result: self.handle(Written(write.tag, result)),
        )

    def ended(self) -> None:
        self.disk.crash()

    def wake_at(self) -> float:
        return min(self.machine.wake_at(), self.calls.wake_at())

    def woken(self) -> None:
        for is_report, tag in self.calls.expire(self.now):
            self.handle(ReportUnanswered(tag) if is_report else PeerUnanswered(tag))
        if self.now >= self.machine.wake_at():
            self.handle(Tick(_FIGURES))

    def handle(self, event: Any) -> None:
        perform = self._perform_by
        for effect in self.machine.handle(event, self.now):
            perform[type(effect)](effect)
        self.world.touched(self.machine)

    # -- events in -----------------------------------------------------------------------------

    def _page_asked(self, peer: int, frame: bytes, body: memoryview, data: Any) -> None:
        message = messages.decode_page_request(body)
        if isinstance(message, Fetch):
            fetched, payload = self.machine.fetch(message)
            self.service.reply(peer, frame, encode(fetched), payload)
        elif isinstance(message, Read):
            answer, payload = self.machine.read(message)
            self.service.reply(peer, frame, encode(answer), payload)
        else:
            try:
                token = self.service.replier.defer(peer, frame)
            except RemoteError as error:
                self.service.reply(peer, frame, encode(Error(TryAgain.code, error.text, 0.1)))
                return
            self.handle(PeerAsked(peer.to_bytes(4, "big"), token, message, data))

    def _job_came(self, peer: int, frames: Frames) -> None:
        body = self.machine.gate.accept(frames[0])
        if body is not None:
            self.world.observer.let_through(self, frames[0])
            self.handle(JobCame(messages.decode_job(body)))
            self.arm()

    def _answered(self, tag: Any, body: memoryview, data: Any) -> None:
        is_report, tag = tag
        if is_report:
            self.handle(ReportAnswered(tag, messages.decode_server_reply(body)))
        else:
            self.handle(PeerAnswered(tag, messages.decode_page_reply(body), data))

    def _linked(self, came_up: bool) -> None:
        if came_up:
            self.handle(BalancerUp())
            self.arm()

    # -- effects out ---------------------------------------------------------------------------

    def _do_answer(self, effect: Answer) -> None:
        self.service.send(*self.service.replier.resolve(effect.token, encode(effect.message)))

    def _do_answer_data(self, effect: AnswerData) -> None:
        peer, frame = self.service.replier.resolve(effect.token, encode(effect.message))
        self.service.send(peer, frame, effect.data)

    def _do_report(self, effect: Report) -> None:
        deadline = self.now + effect.timeout_s
        self.calls.call(SERVERS_ENDPOINT, encode(effect.message), (True, effect.tag), deadline)

    def _do_ask_peer(self, effect: AskPeer) -> None:
        deadline = self.now + effect.timeout_s
        self.calls.call(effect.endpoint, encode(effect.message), (False, effect.tag), deadline)

    def _do_write(self, effect: Write) -> None:
        if not self.writer.submit(effect.kind, effect, max(1, effect.cost_bytes)):
            self.handle(Written(effect.tag, OpResult(None, TryAgain.code, "the disk is behind")))

    def _do_inspect(self, effect: Inspect) -> None:
        # A thread of its own, which nothing but the disk holds up.
        self.host.after(self.world.fsync_s(self) / 4, self._inspect, effect)

    def _inspect(self, effect: Inspect) -> None:
        self.handle(Inspected(effect.tag, self.disk.check(effect.parts)))
        self.arm()

    def _do_publish(self, effect: Publish) -> None:
        cluster = self.disk.identity.cluster
        if cluster and self._beater.realm != cluster:
            self._beater.realm = self.service.replier.realm = self.calls.requester.realm = cluster
        self._beats.send((self._beater.beat(encode(effect.beat)),))

    def _sync(self, writes: list[Write]) -> list[OpResult]:
        results = self.disk.sync()
        self.world.observer.server_committed(self, [write.op for write in writes], results)
        return results
