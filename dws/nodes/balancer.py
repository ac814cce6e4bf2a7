"""The balancer's process: sockets, threads and clock around dws.balancer.

What lives here: carrying out effects and bringing events. What must not: any
decision. The loop's thread owns all sockets; a writer thread commits decisions,
those that wait together in one transaction.
"""

import gc
import logging
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq
from msgspec import Struct

from dws import messages
from dws.balancer import Balancer
from dws.config import Config
from dws.effects import Answer, Ask, Connect, Disconnect, Log, Persist, Push, Rebuilt
from dws.errors import BadRequest, TryAgain
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
from dws.limits import FRAME_MAX_BYTES, SERVERS_MAX
from dws.messages import Error, Locate, encode
from dws.nodes.catalog_store import LmdbCatalogStore, write_rebuilt
from dws.nodes.endpoints import advertised, announce, bind_in_a_row, withdraw
from dws.nodes.own_process import OwnProcess
from dws.nodes.refusals import refuse
from dws.rebuild import Rebuild
from dws.store import Decision
from patterns.errors import RemoteError
from patterns.heartbeat import parse
from patterns.request_reply import NO_REALM, Replier, Requester
from patterns.zeromq.calls import Calls
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service
from patterns.zeromq.sockets import Monitor, make_socket
from patterns.zeromq.writer import Writer

if TYPE_CHECKING:
    from dws.nodes.recording import RecordSettings
    from dws.sim.recorder import Recorder

_log = logging.getLogger("dws.balancer")

_ROUND_ANSWERS = 64
_QUEUE_DECISIONS = 100_000
_BATCH_DECISIONS = 1_000
_CLIENTS, _SERVERS = 0, 1
#: A PUSH, both ends of its monitor, a DEALER.
_SOCKETS_A_SERVER = 4
_SOCKETS_MORE = 64


class BalancerSettings(Struct):
    data: Path
    bind: str = "127.0.0.1"
    port: int = 5600
    advertise: str = ""
    config: Config = Config()
    rebuild: bool = False
    record: "RecordSettings | None" = None


def serve(settings: BalancerSettings) -> int:
    """Run until SIGINT or SIGTERM. Raises DwsError if it cannot start."""
    host = advertised(settings.bind, settings.advertise) if settings.advertise else settings.bind
    # Each server's sockets and each client's connection are open files; the usual bound is 1,024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        if settings.rebuild and not _rebuild(settings, host):
            return 0
        store = LmdbCatalogStore(settings.data)
        try:
            return _serve(settings, store, host)
        finally:
            store.close()
    finally:
        withdraw(settings.data)


def _serve(settings: BalancerSettings, store: LmdbCatalogStore, host: str) -> int:
    head = store.head
    now = time.monotonic()
    machine, recorder = _machine(settings, store, now)

    def commit(decisions: Sequence[Decision]) -> list[int]:
        store.commit(decisions, head.epoch)
        return [decision.number for decision in decisions]

    node = BalancerNode(settings, machine, host, head.cluster, commit, recorder)
    machine.counted_elsewhere = node.counters
    pages = len(machine.catalog.pages)
    text = f"cluster {head.cluster.hex()[:8]}, epoch {head.epoch}, {pages} pages"
    try:
        node.run(text)
    finally:
        node.close()
    return 0


def _machine(
    settings: BalancerSettings, store: LmdbCatalogStore, now: float
) -> "tuple[Balancer, Recorder | None]":
    if settings.record is not None:
        from dws.nodes.recording import recorded_balancer

        recorded = recorded_balancer(settings.record, store, settings.config, now)
        if recorded is not None:
            return recorded
    rng = random.Random()
    machine = Balancer(store.head, store.load(), store.outcome, store.knows_start, settings.config, rng, now)
    return machine, None


def _rebuild(settings: BalancerSettings, host: str) -> bool:
    """Gather what the servers hold and write a new catalog of it. False if it was interrupted."""
    epoch, expected = 0, []
    if LmdbCatalogStore.exists(settings.data):
        old = LmdbCatalogStore(settings.data)
        epoch, expected = old.head.epoch, old.head.servers
        old.close()
    machine = Rebuild(epoch, expected, settings.config, os.urandom(16), time.monotonic())
    node = BalancerNode(settings, machine, host, NO_REALM, lambda decisions: [])
    # The balancer that follows is to be found where this was announced.
    settings.port = int(node.endpoint.rpartition(":")[2])
    try:
        node.run("waiting for web servers to rebuild the catalog from")
    finally:
        node.close()
    rebuilt = node.rebuilt
    if rebuilt is None:
        _log.warning("the rebuild was ended before it was complete: nothing was changed")
        return False
    kept = write_rebuilt(
        settings.data, rebuilt.cluster, rebuilt.epoch, rebuilt.servers, rebuilt.records,
        decision=rebuilt.decision, starts=rebuilt.starts,
    )  # fmt: skip
    _log.info("the catalog is rebuilt%s", f"; the old one is kept as {kept}" if kept else "")
    return True


class _Link:
    """The sockets to one server: PUSH for jobs, watched; its DEALER is one of the calls' links."""

    def __init__(self, push: "zmq.Socket[bytes]", monitor: Monitor, pages_endpoint: str) -> None:
        self.push = push
        self.monitor = monitor
        self.pages_endpoint = pages_endpoint


class BalancerNode:
    """machine: the Balancer, or the Rebuild that comes before it on the same sockets.

    cluster: the realm of all frames. commit: makes decisions durable, in the writer's thread.
    recorder: what the machine is to be driven through, if it is recorded.
    """

    def __init__(
        self,
        settings: BalancerSettings,
        machine: Balancer | Rebuild,
        host: str,
        cluster: bytes,
        commit: Callable[[Sequence[Decision]], Sequence[int]],
        recorder: "Recorder | None" = None,
    ) -> None:
        config = settings.config
        self.machine = machine
        self._recorder = recorder
        self._handle_in = (recorder or machine).handle
        self._locate = (recorder or machine).locate
        self.rebuilt: Rebuilt | None = None
        self._settings = settings
        self._cluster = cluster
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS_A_SERVER * SERVERS_MAX + _SOCKETS_MORE)
        try:
            clients = make_socket(self._context, zmq.ROUTER, frame_max_bytes=FRAME_MAX_BYTES)
            servers = make_socket(self._context, zmq.ROUTER, frame_max_bytes=FRAME_MAX_BYTES)
            self._beats = make_socket(self._context, zmq.SUB, frame_max_bytes=FRAME_MAX_BYTES, hwm=10_000)
            self._beats.setsockopt(zmq.SUBSCRIBE, b"")
            port = bind_in_a_row([clients, servers, self._beats], settings.bind, settings.port)
        except BaseException:
            self._context.destroy(0)
            raise
        self.endpoint = f"tcp://{host}:{port}"
        self._reactor = Reactor(self._wake_at, self._on_round)
        used = self._reactor.used
        self._services = (
            Service(clients, Replier(cluster), self._client_asked, self._refuse_client, used),
            Service(servers, Replier(cluster), self._server_asked, self._refuse_server, used),
        )
        requester: Requester[Any] = Requester(random.getrandbits(63), cluster)
        self._calls: Calls[Any] = Calls(
            self._context, requester, self._socket_changed, frame_max_bytes=FRAME_MAX_BYTES, used=used
        )
        self.counters: dict[str, Mapping[str, int]] = {
            "clients": self._services[_CLIENTS].counters,
            "servers": self._services[_SERVERS].counters,
            "calls": self._calls.counters,
            "replies": requester.counters,
            "process": OwnProcess(),
        }
        """What the sockets counted, for reports."""
        self._links: dict[int, _Link] = {}
        self._writer: Writer[Decision, int] = Writer(
            self._context, "dws-writer", commit, {"decisions": (1, _QUEUE_DECISIONS)}, _BATCH_DECISIONS,
            used,
        )  # fmt: skip
        self._reactor.add(self._beats, self._drain_beats, config.round_beats, is_told=True)
        self._reactor.add(servers, self._services[_SERVERS].drain, config.round_servers, is_told=True)
        self._reactor.add(self._writer.socket, self._drain_writer, 1, is_told=True)
        self._reactor.add(clients, self._services[_CLIENTS].drain, config.round_clients, is_told=True)
        self._perform_by: dict[type[Any], Callable[[Any], None]] = {
            Answer: self._do_answer,
            Push: self._do_push,
            Ask: self._do_ask,
            Persist: self._do_persist,
            Connect: self._do_connect,
            Disconnect: lambda effect: self._unlink(effect.server),
            Rebuilt: self._do_rebuilt,
            Log: lambda effect: _log.log(logging.getLevelName(effect.level.upper()), effect.text),
        }

    def run(self, text: str) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._reactor.stop())
        announce(self._settings.data, "balancer", "balancer", self.endpoint)
        _log.info("balancer at %s: %s", self.endpoint, text)
        gc.freeze()
        self._reactor.run()
        _log.info("balancer stops")

    def close(self) -> None:
        """Finish writing what was decided, then let go of everything."""
        self._writer.close()
        for number in list(self._links):
            self._unlink(number)
        self._calls.close()
        for service in self._services:
            service.socket.close(0)
        self._beats.close(0)
        self._reactor.close()
        self._context.term()
        if self._recorder is not None:
            self._recorder.end("the node was stopped")

    # -- events in -----------------------------------------------------------------------------

    def _client_asked(self, peer: bytes, frame: bytes, body: memoryview, data: Any) -> None:
        service = self._services[_CLIENTS]
        try:
            message = messages.decode_client_request(body)
        except messages.MalformedMessage as error:
            self.machine.counters["malformed requests"] += 1
            text = f"no request that the balancer's port for clients takes: {error}"
            service.reply(peer, frame, encode(Error(BadRequest.code, text[:500])))
            return
        if type(message) is Locate:
            located = self._locate(message, time.monotonic())
            service.reply(peer, frame, encode(located))
        else:
            self._defer(_CLIENTS, peer, frame, message)

    def _server_asked(self, peer: bytes, frame: bytes, body: memoryview, data: Any) -> None:
        try:
            message = messages.decode_server_request(body)
        except messages.MalformedMessage as error:
            self.machine.counters["malformed reports"] += 1
            takes = "the balancer's port for web servers (clients use the one before it)"
            text = f"no request for {takes}: {error}"
            self._services[_SERVERS].reply(peer, frame, encode(Error(BadRequest.code, text[:500])))
            return
        self._defer(_SERVERS, peer, frame, message)

    def _defer(self, which: int, peer: bytes, frame: bytes, message: Any) -> None:
        service = self._services[which]
        try:
            # One space of tokens for both sockets: the lowest bit says which.
            token = service.replier.defer(peer, frame) << 1 | which
        except RemoteError as error:
            service.reply(peer, frame, encode(Error(TryAgain.code, error.text, 0.1)))
            return
        event = ClientAsked(token, message) if which == _CLIENTS else ServerAsked(token, message)
        self._handle(event)

    def _refuse_client(self, peer: bytes, frame: bytes, reason: str) -> None:
        self.machine.counters[f"refused clients: {reason}"] += 1
        refuse(self._services[_CLIENTS], peer, frame, reason)

    def _refuse_server(self, peer: bytes, frame: bytes, reason: str) -> None:
        self.machine.counters[f"refused servers: {reason}"] += 1
        refuse(self._services[_SERVERS], peer, frame, reason)

    def _drain_beats(self, limit: int) -> None:
        for _ in range(limit):
            try:
                frame = self._beats.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            while self._beats.getsockopt(zmq.RCVMORE):
                self._beats.recv()
            try:
                realm, peer, incarnation, sequence, body = parse(frame)
                if realm != self._cluster:
                    # Also the first beats of a new server, which knows no cluster yet.
                    self.machine.counters["beats of another cluster"] += 1
                    continue
                beat = messages.decode_beat(body)
            except (RemoteError, *messages.MalformedMessage):
                self.machine.counters["malformed beats"] += 1
                continue
            self._handle(Beaten(peer, incarnation, sequence, beat))

    def _drain_calls(self, socket: "zmq.Socket[bytes]", limit: int) -> None:
        for _ in range(limit):
            received = self._calls.receive(socket)
            if received is None:
                return
            tag, body, _ = received
            try:
                self._handle(Answered(tag, messages.decode_page_reply(body)))
            except messages.MalformedMessage:
                self.machine.counters["malformed answers"] += 1
                self._handle(Unanswered(tag))

    def _drain_writer(self, limit: int) -> None:
        for _, number in self._writer.results():
            self._handle(Persisted(number))

    def _drain_monitor(self, number: int) -> None:
        link = self._links.get(number)
        for came_up in link.monitor.drain() if link else []:
            self._handle(LinkUp(number) if came_up else LinkDown(number))

    def _handle(self, event: Any) -> None:
        perform = self._perform_by
        for effect in self._handle_in(event, time.monotonic()):
            perform[type(effect)](effect)

    def _on_round(self, now: float) -> None:
        for _, tag in self._calls.requester.expire(now):
            self._handle(Unanswered(tag))
        if now >= self.machine.wake_at():
            # Before any silence is judged.
            self._drain_beats(self._settings.config.round_beats)
            self._reactor.used(self._beats)
            self._handle(Tick())

    def _wake_at(self) -> float:
        expiry = self._calls.requester.wake_at()
        wake_at = self.machine.wake_at()
        return wake_at if expiry is None else min(wake_at, expiry)

    # -- effects out ------------------------------------------------------------------------------

    def _do_answer(self, effect: Answer) -> None:
        service = self._services[effect.token & 1]
        service.send(*service.replier.resolve(effect.token >> 1, encode(effect.message)))

    def _do_push(self, effect: Push) -> None:
        link = self._links.get(effect.server)
        try:
            if link is not None:
                link.push.send(effect.frame, zmq.NOBLOCK)
        except zmq.Again:
            # Its queue is full; the job is issued again when it is overdue.
            self.machine.counters["jobs not pushed"] += 1

    def _do_ask(self, effect: Ask) -> None:
        link = self._links.get(effect.server)
        deadline = time.monotonic() + effect.timeout_s
        if link is None:
            # Nobody to send it to: it expires like any other that is not answered.
            self._calls.requester.request(b"", effect.tag, deadline)
            return
        self._calls.call(link.pages_endpoint, encode(effect.message), effect.tag, deadline)

    def _do_persist(self, effect: Persist) -> None:
        decision = effect.decision
        decision.forget_at += time.time()
        if not self._writer.submit("decisions", decision, 1):
            raise RuntimeError(f"more than {_QUEUE_DECISIONS} decisions wait for the disk")

    def _do_rebuilt(self, effect: Rebuilt) -> None:
        self.rebuilt = effect
        self._reactor.stop()

    def _do_connect(self, effect: Connect) -> None:
        self._unlink(effect.server)
        try:
            self._link(effect)
        except zmq.ZMQError as error:
            # No endpoint, or too many sockets: this server cannot be used, the others can.
            self.machine.counters["servers not connected"] += 1
            _log.error("cannot connect to server %d: %s", effect.server, error)

    def _link(self, effect: Connect) -> None:
        self._calls.link(effect.pages_endpoint)
        push = make_socket(self._context, zmq.PUSH, frame_max_bytes=FRAME_MAX_BYTES)
        monitor = None
        try:
            monitor = Monitor(push)
            push.connect(effect.jobs_endpoint)
        except zmq.ZMQError:
            if monitor is not None:
                monitor.close()
            push.close(0)
            raise
        self._links[effect.server] = _Link(push, monitor, effect.pages_endpoint)
        self._reactor.add(monitor.socket, lambda _: self._drain_monitor(effect.server), 1, is_told=True)

    def _unlink(self, number: int) -> None:
        link = self._links.pop(number, None)
        if link is not None:
            self._reactor.remove(link.monitor.socket)
            link.monitor.close()
            link.push.close(0)
            self._calls.drop(link.pages_endpoint)

    def _socket_changed(self, socket: "zmq.Socket[bytes]", added: bool) -> None:
        if added:
            drain = partial(self._drain_calls, socket)
            self._reactor.add(socket, drain, _ROUND_ANSWERS, is_told=True)
        else:
            self._reactor.remove(socket)
