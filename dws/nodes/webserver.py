"""A web server's process: sockets, threads and clock around dws.webserver.

What lives here: carrying out effects and bringing events. What must not: any
decision. The loop's thread owns all sockets and reads the store; a writer thread
commits, so that no reader waits for an fsync; a checker thread reads pages back,
so that none waits for more of a disk than its own page.
"""

import gc
import logging
import random
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import zmq
from msgspec import Struct

from dws import messages
from dws.config import Config
from dws.effects import Answer, AnswerData, AskPeer, Inspect, Log, Publish, Report, Write
from dws.errors import BadRequest, TryAgain
from dws.following import Endpoints
from dws.limits import FRAME_MAX_BYTES
from dws.messages import Dropped, Error, Fetch, Read, encode
from dws.nodes.endpoint_process import EndpointProcess, EndpointProcessSettings, HttpSettings, is_installed
from dws.nodes.endpoints import (
    BEATS_OFFSET,
    SERVERS_OFFSET,
    advertised,
    announce,
    bind,
    with_offset,
    withdraw,
)
from dws.nodes.own_process import OwnProcess
from dws.nodes.page_store import LmdbPageStore
from dws.nodes.refusals import refuse
from dws.nodes.store_lives import StoreLife
from dws.nodes.store_walk import walk
from dws.store import GOOD, UNREADABLE, OpResult, PageStoreOp
from dws.webserver import (
    BalancerUp,
    Doubted,
    Figures,
    HttpUp,
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
from patterns.request_reply import NO_REALM, Replier, Requester
from patterns.zeromq.calls import Calls
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import Monitor, make_socket
from patterns.zeromq.writer import Writer

if TYPE_CHECKING:
    from dws.nodes.recording import RecordSettings
    from dws.sim.recorder import Recorder

_log = logging.getLogger("dws.webserver")

#: Requests taken in one round; the loop's other work waits for so many at most.
_ROUND_PAGES = 128
_ROUND_JOBS = 16
_ROUND_ANSWERS = 64
_BATCH_BYTES = 16 << 20
#: Over a shorter time a share of CPU says nothing.
_CPU_EVERY_S = 0.2


class _Owed(Struct):
    """What a thread was given to do and has not done."""

    count: int = 0
    good_at: float = -1.0
    moved_at: float = 0.0  # when it was last seen to finish something, or was idle
    failing_since: float | None = None

    def owe(self, now: float) -> None:
        if not self.count:
            self.moved_at = now
        self.count += 1

    def paid(self, now: float, *, good: bool) -> None:
        self.count -= 1
        self.moved_at = now
        if good:
            self.good_at = now

    def failing(self, now: float, is_failing: bool) -> None:
        """Whether the disk refuses what it should be able to do, whatever is asked."""
        self.failing_since = (self.failing_since or now) if is_failing else None

    def age(self, now: float) -> float:
        """Since something was done well; -1: never yet."""
        return now - self.good_at if self.good_at >= 0 else -1.0

    def wait(self, now: float) -> float:
        """How long the disk has owed an answer, or a good one."""
        since = [self.moved_at] if self.count else []
        since += [self.failing_since] if self.failing_since is not None else []
        return now - min(since, default=now)


class WebServerSettings(Struct):
    name: str
    data: Path
    balancer: str
    bind: str = "127.0.0.1"
    advertise: str = ""
    port: int = 0
    config: Config = Config()
    http: HttpSettings = HttpSettings()
    record: "RecordSettings | None" = None


def serve(settings: WebServerSettings) -> int:
    """Run until SIGINT or SIGTERM. Raises DwsError if it cannot start."""
    host = advertised(settings.bind, settings.advertise)
    life = StoreLife(settings.data, lambda path: walk(path, settings.config.walk_s))
    try:
        life.note_faults()
        _serve(settings, host, life)
        life.end()
    finally:
        life.let_go()
    return 0


def _serve(settings: WebServerSettings, host: str, life: StoreLife) -> None:
    config = settings.config
    store = LmdbPageStore(
        settings.data,
        quota_bytes=config.quota_bytes,
        set_aside_bytes=config.set_aside_bytes,
        lock=life.lock,
    )
    store.damaged += [Dropped(name, version) for name, version in life.lost]
    try:
        node = WebServerNode(settings, store, host, life)
        node.server.counters["stores set aside"] += bool(life.set_aside)
        try:
            node.run()
        finally:
            node.close()
    finally:
        withdraw(settings.data)
        store.close()


def _machine(
    settings: WebServerSettings, store: LmdbPageStore, endpoints: Endpoints
) -> "tuple[WebServer, Recorder | None]":
    now = time.monotonic()
    if settings.record is not None:
        from dws.nodes.recording import recorded_webserver

        recorded = recorded_webserver(settings.record, settings.name, store, endpoints, settings.config, now)
        if recorded is not None:
            return recorded
    return WebServer(settings.name, store, endpoints, settings.config, now), None


class WebServerNode:
    def __init__(self, settings: WebServerSettings, store: LmdbPageStore, host: str, life: StoreLife) -> None:
        config = settings.config
        self._settings = settings
        self._store = store
        self._life = life
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            pages = make_socket(self._context, zmq.ROUTER, frame_max_bytes=FRAME_MAX_BYTES)
            self._jobs = make_socket(self._context, zmq.PULL, frame_max_bytes=FRAME_MAX_BYTES)
            port = bind(pages, settings.bind, settings.port)
            jobs_port = bind(self._jobs, settings.bind, 0)
            self._beats = make_socket(self._context, zmq.PUB, frame_max_bytes=FRAME_MAX_BYTES, hwm=16)
            self._beats.connect(with_offset(settings.balancer, BEATS_OFFSET))
            endpoints = Endpoints(f"tcp://{host}:{port}", f"tcp://{host}:{jobs_port}")
            self.server, self._recorder = _machine(settings, store, endpoints)
        except BaseException:
            self._context.destroy(0)
            raise
        self._handle_in = (self._recorder or self.server).handle
        self._machine_wake_at, self._wake_known = 0.0, False
        identity = store.identity
        realm = identity.cluster or NO_REALM
        self._reactor = Reactor(self._wake_at, self._on_round)
        used = self._reactor.used
        self._service = Service(pages, Replier(realm), self._page_asked, self._refuse, used)
        self._beater = Beater(realm, identity.server, identity.incarnation)
        requester: Requester[Any] = Requester(random.getrandbits(63), realm)
        self._calls: Calls[Any] = Calls(
            self._context, requester, self._socket_changed, frame_max_bytes=FRAME_MAX_BYTES, used=used
        )
        self.server.counted_elsewhere = {
            "pages": self._service.counters,
            "calls": self._calls.counters,
            "replies": requester.counters,
            "process": OwnProcess(),
            "quarantine": store.quarantine.counters,
        }
        bytes_max = config.write_queue_bytes
        self._writer: Writer[Write, OpResult] = Writer(
            self._context,
            "dws-writer",
            self._commit,
            # An upload's commit may carry a whole batch; its class must hold that beside the chunks.
            {
                "upload": (4 << 20, 8 * bytes_max),
                "copy": (4 << 20, 8 * bytes_max),
                "drop": (1 << 20, 1 << 20),
            },
            _BATCH_BYTES,
            used,
        )
        # The machine hands over one of each kind at a time, each a few milliseconds of work.
        kinds = dict.fromkeys(("asked", "scrub", "probe"), (1, 1))
        self._checker: Writer[Inspect, list[int]] = Writer(
            self._context, "dws-checker", self._check, kinds, 1, used
        )
        self._balancer = with_offset(settings.balancer, SERVERS_OFFSET)
        self._monitor = Monitor(self._calls.link(self._balancer))
        for socket, handler, quantum in (
            (pages, self._drain_pages, _ROUND_PAGES),
            (self._jobs, self._drain_jobs, _ROUND_JOBS),
            (self._writer.socket, self._drain_writer, 1),
            (self._checker.socket, self._drain_checker, 1),
            (self._monitor.socket, self._drain_monitor, 1),
        ):
            self._reactor.add(socket, handler, quantum, is_told=True)
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._cpu_share, self._cpu_at = 0.0, 0.0
        self._written, self._read = _Owed(), _Owed()
        self.endpoints = endpoints
        self._http = self._make_http()
        self._perform_by: dict[type[Any], Callable[[Any], None]] = {
            Answer: self._do_answer,
            AnswerData: self._do_answer_data,
            Report: self._do_report,
            AskPeer: self._do_ask_peer,
            Write: self._do_write,
            Inspect: self._do_inspect,
            Publish: self._do_publish,
            Log: lambda effect: _log.log(logging.getLevelName(effect.level.upper()), effect.text),
        }

    def run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._reactor.stop())
        settings = self._settings
        announce(settings.data, "webserver", settings.name, self.endpoints.pages)
        _log.info("%s serves pages at %s from %s", settings.name, self.endpoints.pages, settings.data)
        gc.freeze()
        if self._http is not None:
            self._http.start()
        self._reactor.run()
        _log.info("%s stops", settings.name)

    def close(self) -> None:
        """Finish what the writer has, then let go of everything."""
        if self._http is not None:
            self._http.stop()
        self._checker.close()
        self._writer.close()
        self._monitor.close()
        self._calls.close()
        for socket in (self._service.socket, self._jobs, self._beats):
            socket.close(0)
        self._reactor.close()
        self._context.term()
        if self._recorder is not None:
            self._recorder.end("the node was stopped")

    def _make_http(self) -> EndpointProcess | None:
        settings = self._settings
        if settings.http.port < 0:
            return None
        if not is_installed():
            _log.warning('%s serves no HTTP: that needs pip install "dws-cluster[http]"', settings.name)
            return None
        endpoint = EndpointProcessSettings(
            settings.name, settings.data, self.endpoints.pages, settings.balancer, settings.http.gateway,
            settings.bind, settings.advertise, settings.http.port,
        )  # fmt: skip
        return EndpointProcess(
            endpoint, lambda url: self._handle(HttpUp(url)), on_end=self._store.check_readers
        )

    # -- events in ---------------------------------------------------------------------------

    def _drain_pages(self, limit: int) -> int:
        book = self.server.book
        before, began = book.served_here, time.perf_counter()
        requests = self._service.drain(limit)
        book.round(requests, book.served_here - before, time.perf_counter() - began)
        return requests

    def _page_asked(self, peer: bytes, frame: bytes, body: memoryview, data: "zmq.Frame | None") -> None:
        try:
            message = messages.decode_page_request(body)
        except messages.MalformedMessage as error:
            self.server.counters["malformed requests"] += 1
            text = f"no request that a web server takes (is this the balancer's address?): {error}"
            self._service.reply(peer, frame, encode(Error(BadRequest.code, text[:500])))
            return
        if type(message) is Fetch:
            reply, payload = self.server.fetch(message)
            self._service.reply(peer, frame, encode(reply), payload)
        elif type(message) is Read:
            answer, payload = self.server.read(message)
            self._service.reply(peer, frame, encode(answer), payload)
        else:
            try:
                token = self._service.replier.defer(peer, frame)
            except RemoteError as error:
                self._service.reply(peer, frame, encode(Error(TryAgain.code, error.text, 0.1)))
                return
            buffer: Any = data.buffer if data is not None else memoryview(b"")
            self._handle(PeerAsked(peer, token, message, buffer))

    def _refuse(self, peer: bytes, frame: bytes, reason: str) -> None:
        self.server.counters[f"refused: {reason}"] += 1
        refuse(self._service, peer, frame, reason)

    def _drain_jobs(self, limit: int) -> None:
        for _ in range(limit):
            try:
                frame = self._jobs.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            while self._jobs.getsockopt(zmq.RCVMORE):
                self._jobs.recv()
            try:
                body = self.server.gate.accept(frame)
                if body is not None:
                    self._handle(JobCame(messages.decode_job(body)))
            except (RemoteError, *messages.MalformedMessage) as error:
                self.server.counters["malformed jobs"] += 1
                _log.warning("dropped a malformed job: %s", error)

    def _drain_calls(self, socket: "zmq.Socket[bytes]", limit: int) -> None:
        for _ in range(limit):
            received = self._calls.receive(socket)
            if received is None:
                return
            (is_report, tag), body, frame = received
            try:
                if is_report:
                    self._handle(ReportAnswered(tag, messages.decode_server_reply(body)))
                else:
                    data: Any = frame.buffer if frame is not None else memoryview(b"")
                    self._handle(PeerAnswered(tag, messages.decode_page_reply(body), data))
            except messages.MalformedMessage as error:
                self.server.counters["malformed replies"] += 1
                _log.warning("dropped a malformed reply: %s", error)
                self._unanswered(is_report, tag)

    def _unanswered(self, is_report: bool, tag: Any) -> None:
        self._handle(ReportUnanswered(tag) if is_report else PeerUnanswered(tag))

    def _drain_writer(self, limit: int) -> None:
        for write, result in self._writer.results():
            self._written.paid(time.monotonic(), good=not result.code)
            self._handle(Written(write.tag, result))

    def _drain_checker(self, limit: int) -> None:
        for inspect, verdicts in self._checker.results():
            now = time.monotonic()
            self._read.paid(now, good=any(verdict != UNREADABLE for verdict in verdicts))
            if inspect.kind == "probe":
                self._read.failing(now, verdicts == [UNREADABLE])
                verdicts = []
            self._handle(Inspected(inspect.tag, verdicts))

    def _drain_monitor(self, limit: int) -> None:
        if any(self._monitor.drain()):
            self._handle(BalancerUp())

    def _handle(self, event: Any) -> None:
        perform = self._perform_by
        self._wake_known = False
        for effect in self._handle_in(event, time.monotonic()):
            perform[type(effect)](effect)

    def _on_round(self, now: float) -> None:
        for _, (is_report, tag) in self._calls.requester.expire(now):
            self._unanswered(is_report, tag)
        if now >= self._machine_wakes_at():
            self._handle(Tick(self._figures(now)))
            damaged = self._store.take_damaged()
            if damaged:
                self._handle(Doubted([(each.name, each.version) for each in damaged]))
            if self._http is not None:
                self._http.watch(now)
            self._life.tick(now)

    def _wake_at(self) -> float:
        expiry = self._calls.requester.wake_at()
        wake_at = self._machine_wakes_at()
        return wake_at if expiry is None else min(wake_at, expiry)

    def _machine_wakes_at(self) -> float:
        """Asked for once after each event: what is fetched and read moves no deadline."""
        if not self._wake_known:
            self._machine_wake_at, self._wake_known = self.server.wake_at(), True
        return self._machine_wake_at

    def _figures(self, now: float) -> Figures:
        if now - self._cpu_at >= _CPU_EVERY_S:
            self._cpu_share, self._cpu_at = self._process.cpu_percent() / 100, now
        written, read = self._written, self._read
        return Figures(self._cpu_share, written.age(now), read.age(now), written.wait(now), read.wait(now))

    # -- effects out ---------------------------------------------------------------------------

    def _do_answer(self, effect: Answer) -> None:
        self._service.send(*self._service.replier.resolve(effect.token, encode(effect.message)))

    def _do_answer_data(self, effect: AnswerData) -> None:
        peer, frame = self._service.replier.resolve(effect.token, encode(effect.message))
        self._service.send(peer, frame, effect.data)

    def _do_report(self, effect: Report) -> None:
        deadline = time.monotonic() + effect.timeout_s
        self._calls.call(self._balancer, encode(effect.message), (True, effect.tag), deadline)

    def _do_ask_peer(self, effect: AskPeer) -> None:
        deadline = time.monotonic() + effect.timeout_s
        try:
            self._calls.call(effect.endpoint, encode(effect.message), (False, effect.tag), deadline)
        except zmq.ZMQError:
            # A job named no endpoint, or there are too many sockets.
            self.server.counters["peers not connected"] += 1
            self._handle(PeerUnanswered(effect.tag))

    def _do_write(self, effect: Write) -> None:
        if self._writer.submit(effect.kind, effect, max(1, effect.cost_bytes)):
            self._written.owe(time.monotonic())
        else:
            self._handle(Written(effect.tag, OpResult(None, TryAgain.code, "the disk is behind")))

    def _do_inspect(self, effect: Inspect) -> None:
        accepted = self._checker.submit(effect.kind, effect, 1)
        assert accepted, "one of each kind at a time"
        self._read.owe(time.monotonic())

    def _do_publish(self, effect: Publish) -> None:
        cluster = self._store.identity.cluster
        if cluster and self._beater.realm != cluster:
            self._beater.realm = self._service.replier.realm = self._calls.requester.realm = cluster
        self._beats.send(self._beater.beat(encode(effect.beat)), zmq.NOBLOCK)

    def _commit(self, writes: Any) -> list[OpResult]:
        ops: list[PageStoreOp] = [write.op for write in writes]
        return self._store.commit(ops)

    def _check(self, inspects: Sequence[Inspect]) -> list[list[int]]:
        """In the checker thread."""
        return [self._probe() if each.kind == "probe" else self._store.check(each.parts) for each in inspects]

    def _probe(self) -> list[int]:
        try:
            self._store.read_back()
        except OSError as error:
            _log.error("the disk cannot be read: %s", error)
            return [UNREADABLE]
        return [GOOD]

    def _socket_changed(self, socket: "zmq.Socket[bytes]", added: bool) -> None:
        if added:
            drain = partial(self._drain_calls, socket)
            self._reactor.add(socket, drain, _ROUND_ANSWERS, is_told=True)
        else:
            self._reactor.remove(socket)
