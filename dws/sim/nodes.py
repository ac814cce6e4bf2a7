"""What all simulated nodes share: a life on a host, calls and services on its sockets, a wake-up, a writer.

What lives here: the shape of dws/nodes' shells, on the network of
patterns/sim and with the pattern machines that production uses. What must not:
what a balancer, a server or a client does (balancer_node.py, server_node.py,
client_node.py), and any decision.
"""

from collections import Counter
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from patterns.fair import FairQueue
from patterns.request_reply import HEADER_BYTES, NO_REALM, Replier, Requester, request_id_of
from patterns.sim.connections import DEALER, ROUTER, Frames
from patterns.sim.network import Host, Socket, Unreachable

if TYPE_CHECKING:
    from dws.sim.world import World

BALANCER_HOST: Final = "balancer"
CLIENTS_ENDPOINT: Final = f"tcp://{BALANCER_HOST}:5600"
SERVERS_ENDPOINT: Final = f"tcp://{BALANCER_HOST}:5601"
BEATS_ENDPOINT: Final = f"tcp://{BALANCER_HOST}:5602"

Job = TypeVar("Job")
Result = TypeVar("Result")


class Node:
    """A process: made anew by `start`, gone with `crash`. name: its host's, which never changes."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.host: Host = world.network.host(name)
        self.counters: Counter[str] = Counter()
        self._armed_at = inf

    @property
    def up(self) -> bool:
        return self.host.up

    @property
    def now(self) -> float:
        return self.world.clock.now

    def start(self) -> None:
        self.host.start()
        self._armed_at = inf
        self.begin()
        self.world.observer.started(self)
        self.arm()

    def crash(self) -> None:
        if self.host.up:
            self.host.crash()
            self.ended()
            self.world.observer.crashed(self)

    def begin(self) -> None:
        """A new life: make the machine and its sockets."""
        raise NotImplementedError

    def ended(self) -> None:
        """The life is over: what of it was not durable is gone."""

    # -- time ------------------------------------------------------------------------------

    def wake_at(self) -> float:
        raise NotImplementedError

    def woken(self) -> None:
        """The time has come that `wake_at` named."""
        raise NotImplementedError

    def arm(self) -> None:
        """Be woken in time; called whenever `wake_at` may have changed."""
        wake_at = self.wake_at()
        if wake_at < self._armed_at:
            self._armed_at = wake_at
            self.host.at(wake_at, self._wake, wake_at)

    def _wake(self, armed_at: float) -> None:
        # An earlier wake-up may have been asked for since.
        if armed_at == self._armed_at:
            self._armed_at = inf
            self.woken()
            self.arm()


class Calls:
    """The asking side of a node: one DEALER for each endpoint, one table of calls (as zeromq/calls.py).

    answered(tag, body, data): called with each awaited reply.
    """

    def __init__(
        self,
        node: Node,
        answered: Callable[[Any, memoryview, Any], None],
        realm: bytes = NO_REALM,
        *,
        learn_realm: bool = False,
    ) -> None:
        self.requester: Requester[Any] = Requester(
            node.world.rng_nodes.getrandbits(62), realm, learn_realm=learn_realm
        )
        self._node = node
        self._answered = answered
        self._links: dict[str, Socket] = {}

    def call(self, endpoint: str, body: bytes, tag: Any, deadline: float, data: Any = None) -> None:
        request_id, frame = self.requester.request(body, tag, deadline)
        if not endpoint:
            return  # there is nobody to send it to: it expires
        self._node.world.observer.request(self._node.name, endpoint, request_id)
        frames = (frame,) if data is None else (frame, bytes(data))
        if not self.link(endpoint).send(frames):
            self._node.counters["not-sent-full"] += 1

    def link(self, endpoint: str) -> Socket:
        socket = self._links.get(endpoint)
        if socket is None:
            socket = Socket(self._node.host, DEALER, self._node.world.options.hwm)
            socket.on_message = self._received
            self._links[endpoint] = socket
            socket.connect(endpoint)
        return socket

    def unread(self, endpoint: str) -> int:
        """Requests that may still arrive there, awaited or not."""
        return self._links[endpoint].unread if endpoint in self._links else 0

    def drop(self, endpoint: str) -> None:
        socket = self._links.pop(endpoint, None)
        if socket is not None:
            socket.close()

    def expire(self, now: float) -> list[Any]:
        return [tag for _, tag in self.requester.expire(now)]

    def wake_at(self) -> float:
        wake_at = self.requester.wake_at()
        return inf if wake_at is None else wake_at

    def _received(self, peer: int, frames: Frames) -> None:
        received = self.requester.receive(frames[0])
        if received is not None:
            _, tag, body = received
            self._answered(tag, body, memoryview(frames[1]) if len(frames) > 1 else memoryview(b""))
            self._node.arm()


class Service:
    """The answering side: a ROUTER at an endpoint (as zeromq/service.py).

    answer(peer, request frame, body, data): called with each request.
    """

    def __init__(
        self,
        node: Node,
        endpoint: str,
        answer: Callable[[int, bytes, memoryview, Any], None],
        realm: bytes = NO_REALM,
    ) -> None:
        self.replier: Replier[int] = Replier(realm)
        self._node = node
        self._endpoint = endpoint
        self._answer = answer
        self._socket = Socket(node.host, ROUTER, node.world.options.hwm)
        self._socket.on_message = self._received
        self._socket.bind(endpoint)

    def reply(self, peer: int, request: bytes, body: bytes, data: bytes | None = None) -> None:
        self.send(peer, self.replier.reply(request, body), data)

    def send(self, peer: int, frame: bytes, data: bytes | None = None) -> None:
        request_id = request_id_of(frame)
        assert request_id is not None and len(frame) >= HEADER_BYTES
        self._node.world.observer.reply(self._node.name, self._endpoint, peer, request_id)
        try:
            if not self._socket.send((frame,) if data is None else (frame, data), peer):
                self._node.counters["reply-dropped-full"] += 1
        except Unreachable:
            self._node.counters["reply-dropped-gone"] += 1

    def _received(self, peer: int, frames: Frames) -> None:
        frame = frames[0]
        body = self.replier.receive(frame)
        if not self.replier.realm_matches(frame):
            self._node.counters["refused-realm"] += 1
            return
        self._answer(peer, frame, body, memoryview(frames[1]) if len(frames) > 1 else memoryview(b""))
        self._node.arm()


class DiskWriter(Generic[Job, Result]):
    """The thread that commits (as zeromq/writer.py), in virtual time.

    write, sync: begin a commit of jobs, and end it: a result for each. done: called with each job and its
    result, a moment after it is durable: a crash may come in between.
    """

    def __init__(
        self,
        node: Node,
        classes: dict[str, tuple[int, int]],
        batch: int,
        write: Callable[[list[Job]], None],
        sync: Callable[[list[Job]], list[Result]],
        done: Callable[[Job, Result], None],
    ) -> None:
        self._node = node
        self._queue: FairQueue[Job] = FairQueue(classes)
        self._batch = batch
        self._write = write
        self._sync = sync
        self._done = done
        self._busy = False

    def __len__(self) -> int:
        return len(self._queue) + self._busy

    def submit(self, name: str, job: Job, cost: int) -> bool:
        """False if its class is at its bound."""
        accepted = self._queue.offer(name, job, cost)
        if accepted and not self._busy:
            self._busy = True
            # What comes in the same moment shares the commit.
            self._node.host.after(0.0, self._begin)
        return accepted

    def _begin(self) -> None:
        # The thread finds what has come by then: sometimes a part of it.
        budget = 1 if self._node.world.rng_disks.random() < 0.3 else self._batch
        jobs = self._queue.take(budget)
        self._write(jobs)
        self._node.host.after(self._node.world.fsync_s(self._node), self._synced, jobs)

    def _synced(self, jobs: list[Job]) -> None:
        if self._node.world.sync_fails(self._node):
            return
        results = self._sync(jobs)
        self._node.host.after(self._node.world.fsync_s(self._node) / 4, self._told, jobs, results)

    def _told(self, jobs: list[Job], results: list[Result]) -> None:
        for job, result in zip(jobs, results, strict=True):
            self._done(job, result)
        self._busy = len(self._queue) > 0
        if self._busy:
            self._begin()
        self._node.arm()
