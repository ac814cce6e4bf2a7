"""What chance is too slow for: worlds in which one rare thing happens all the time.

Each does no harm to the code as it is: tests/sim/test_planted_bugs.py runs them on it too.
"""

from collections.abc import Callable
from copy import copy
from functools import partial
from random import Random
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from dws import messages
from dws.balancer import Balancer
from dws.effects import Answer
from dws.events import ClientAsked, Event, ServerAsked
from dws.limits import MIB
from dws.messages import Await, Hello, Outcome, Remove, RemovePage, Stored, encode
from dws.sim.disks import Held
from dws.sim.nodes import CLIENTS_ENDPOINT, SERVERS_ENDPOINT
from dws.sim.observer import DONE, FAILED, PUT, REMOVE, Call
from dws.sim.server_node import ServerNode
from dws.sim.world import World
from dws.store import DropRecords, OpResult, PageStoreOp

_EVERY_S = 0.2


class Scenario(Struct):
    """said: options; prepare: called with the world before it starts."""

    said: dict[str, Any] = {}
    prepare: Callable[[World], None] | None = None


def _often(world: World, rng: Random, act: Callable[[], None]) -> None:
    """From time to time while there is work, and until all is calm."""
    if world.faults.active or not world.workload.ended:
        act()
        world.at(rng.expovariate(1 / _EVERY_S), _often, world, rng, act)


# -- messages that come late ----------------------------------------------------------------


def late(world: World) -> None:
    """Old jobs, hellos and reports come once more, as if they had been on the way all the time; and some
    reports begin behind what was reported before."""
    rng = Random(f"late {world.seed}")
    jobs: list[tuple[ServerNode, bytes]] = []
    reports: list[bytes] = []
    world.observer.let_through = lambda server, frame, then=world.observer.let_through: (  # type: ignore[method-assign, misc]
        jobs.append((server, frame)), then(server, frame)
    )  # fmt: skip
    asked = world.balancer._server_asked

    def server_asked(peer: int, frame: bytes, body: memoryview, data: Any) -> None:
        message = messages.decode_server_request(body)
        if isinstance(message, Stored | Hello):
            reports.append(bytes(body))
        if isinstance(message, Stored) and len(message.changes) > 1 and rng.random() < 0.3:
            body = memoryview(encode(replace(message, changes=message.changes[1:])))
        asked(peer, frame, body, data)

    world.balancer._server_asked = server_asked  # type: ignore[method-assign]

    def repeat() -> None:
        if jobs:
            server, frame = rng.choice(jobs)
            if server.up and not server.host.paused:
                server._job_came(0, (frame,))
        client = world.clients[-1]
        if reports and client.up and not client.host.paused:
            client.calls.call(SERVERS_ENDPOINT, rng.choice(reports), (None, None), world.now + 1)
            client.arm()

    world.at(1.5, _often, world, rng, repeat)


# -- removals that are sent again --------------------------------------------------------------


def again(world: World) -> None:
    """Removals are sent once more, long after they were answered."""
    rng = Random(f"again {world.seed}")

    def repeat() -> None:
        ended = [
            call
            for call in world.workload.calls.values()
            if call.kind == REMOVE and call.outcome == DONE and world.now - call.ended < 5
        ]
        if ended:
            call = rng.choice(ended)
            _remove(world, call, rng.choice(call.batches), world.catalog.epoch)

    world.at(1.5, _often, world, rng, repeat)


def _remove(world: World, call: Call, batch: bytes, epoch: int) -> None:
    client = world.clients[-1]
    if client.up and not client.host.paused:
        pages = [RemovePage(name, call.conditions.get(name, messages.ANY)) for name in call.names]
        body = encode(Remove(batch, epoch, pages, 5.0))
        client.calls.call(CLIENTS_ENDPOINT, body, (None, None), world.now + 5)
        client.arm()


def never(world: World) -> None:
    """Somebody asks for the outcome of a removal that nobody has sent, is told that it will never be, and
    only then it comes; sometimes the balancer has started anew in between."""
    rng = Random(f"never {world.seed}")

    def ask() -> None:
        client = world.clients[-1]
        if client.up and not client.host.paused:
            call = Call(client.name, REMOVE, [rng.choice(world.workload.names)], world.now, world.known)
            batch = rng.randbytes(16)
            call.batches.append(batch)
            question = _Question(world, call, batch, rng.choice([0.1, 1.0, 2.0]))
            client.calls.call(CLIENTS_ENDPOINT, encode(Await(batch, 0, 1.0)), (question, None), world.now + 1)
            client.running[question] = _nothing  # type: ignore[index]
            client.arm()

    world.at(1.5, _often, world, rng, ask)


def _nothing(operation: Any) -> None:
    """Nobody waits for its end."""


class _Question:
    """Stands for an operation: takes the answer in, and sends the removal after it."""

    finished = False

    def __init__(self, world: World, call: Call, batch: bytes, wait_s: float) -> None:
        self._world = world
        self._call = call
        self._batch = batch
        self._wait_s = wait_s
        self._until = world.now + 2

    def check(self) -> None:
        """It moves no bytes."""

    def wake_at(self) -> float:
        return self._until

    def tick(self, now: float) -> list[Any]:
        self.finished = self.finished or now >= self._until
        return []

    def unanswered(self, tag: Any, now: float) -> list[Any]:
        self.finished = True
        return []

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Any]:
        self.finished = True
        if isinstance(message, Outcome) and message.state == "never":
            call = self._call
            self._world.workload.calls[self._batch] = call
            call.ended, call.outcome, call.error = now, FAILED, message.text
            self._world.at(self._wait_s, _remove, self._world, call, self._batch, self._world.catalog.epoch)
        return []


# -- what an old catalog hears of ------------------------------------------------------------------

#: Who asked, and is gone: its answers are lost.
_NOBODY = -2


def _on_an_old_catalog(world: World, happens: Callable[[Balancer], list[Event]]) -> None:
    """Whenever the balancer begins on an old copy of its catalog this happens to it at once, before a server
    has told it better."""
    start = world.balancer.start

    def happen() -> None:
        machine = world.balancer.machine if world.balancer.up else None
        if not world.faults.is_catalog_old or not isinstance(machine, Balancer):
            return
        for event in happens(machine):
            for effect in machine.handle(event, world.now):
                if not isinstance(effect, Answer) or effect.token != _NOBODY:
                    world.balancer._perform_by[type(effect)](effect)
            world.touched(machine)

    def started() -> None:
        start()
        world.at(0.0, happen)

    world.balancer.start = started  # type: ignore[method-assign]


def hasty(world: World) -> None:
    """Somebody removes a page."""

    def removal(machine: Balancer) -> list[Event]:
        pages = [RemovePage(name) for name in list(machine.catalog.pages)[:1]]
        asked = Remove(bytes(16), world.catalog.epoch, pages, 5.0)
        return [ClientAsked(_NOBODY, asked)] if pages else []

    _on_an_old_catalog(world, removal)


def bygone(world: World) -> None:
    """Hellos come that were on their way since their senders had been told no more than this catalog says."""
    hellos: list[Hello] = []
    heard = world.observer.heard

    def hear(message: Any) -> None:
        if isinstance(message, Hello):
            hellos.append(message)
        heard(message)

    world.observer.heard = hear  # type: ignore[method-assign]

    def come(machine: Balancer) -> list[Event]:
        last = {hello.server: hello for hello in hellos if hello.decision <= world.catalog.decision}
        return [ServerAsked(_NOBODY, hello) for hello in last.values()]

    _on_an_old_catalog(world, come)


# -- copies too many, and one of those that should stay is spoilt ---------------------------------


def surplus(world: World) -> None:
    """Every page gets one more copy than wanted, and at once one of the others rots, until all is calm."""
    rng = Random(f"surplus {world.seed}")
    stop = world.faults.stop
    good_bytes: list[tuple[Held, bytes]] = []
    added: set[tuple[str, int]] = set()

    def mend() -> None:
        stop()
        for held, data in good_bytes:
            held.data = data
        world.servers[0].disk.rotten.clear()

    world.faults.stop = mend  # type: ignore[method-assign]

    def add() -> None:
        rotting = world.servers[0].disk
        for name, version in sorted(world.truth.items()):
            key = name, version
            held = [server for server in world.servers if key in server.disk.held]
            spare = [server for server in world.servers if server not in held and server.up]
            if len(held) != world.options.copies or not spare or key in added:
                continue
            added.add(key)
            good = held[-1].disk.held[key]
            rng.choice(spare).disk.load([copy(good)])
            if key in rotting.held and good.data:
                good_bytes.append((rotting.held[key], good.data))
                rotting.rot(name, version)

    world.at(1.5, _often, world, rng, add)


def halfway(world: World) -> None:
    """Besides, some servers are killed when they have just dropped something, before they can say so."""
    surplus(world)
    rng, committed = Random(f"halfway {world.seed}"), world.observer.server_committed

    def server_committed(server: ServerNode, ops: list[PageStoreOp], results: list[OpResult]) -> None:
        committed(server, ops, results)
        dropped = any(
            isinstance(op, DropRecords) and result.change for op, result in zip(ops, results, strict=True)
        )
        if dropped and world.faults.active and rng.random() < 0.5:
            world.at(0.0, world.kill, server, 0.3)

    world.observer.server_committed = server_committed  # type: ignore[method-assign]


# -- jobs that are lost, while their connection stands ------------------------------------------------


def lossy(world: World) -> None:
    """Every second job is lost on the way, as it is at a high-water mark."""
    rng = Random(f"lossy {world.seed}")
    for server in world.servers:
        server._job_came = partial(_lose, world, rng, server._job_came)  # type: ignore[method-assign]


def _lose(world: World, rng: Random, came: Callable[..., None], peer: int, frames: Any) -> None:
    if not world.faults.active or rng.random() < 0.5:
        came(peer, frames)


# -- puts that nobody brings to an end ----------------------------------------------------------------


def abandon(world: World) -> None:
    """Clients are killed in the middle of their puts."""
    rng = Random(f"abandon {world.seed}")

    def kill() -> None:
        putting = [client for call, client in world.workload.open.items() if call.kind == PUT]
        if putting:
            world.kill(rng.choice(putting), 0.3)

    world.at(1.5, _often, world, rng, kill)


# -- pages larger than the credit -------------------------------------------------------------------


def large(world: World) -> None:
    world.workload.large_sizes = (12 * MIB,)


SCENARIOS = {
    "": Scenario(),
    "late": Scenario(prepare=late),
    "again": Scenario({"faults": ("break",)}, again),
    "never": Scenario({"faults": ("break",)}, never),
    "hasty": Scenario({"faults": ("old-catalog",), "fault_s": 1.0, "seconds": 16.0}, hasty),
    "bygone": Scenario({"faults": ("old-catalog",), "fault_s": 1.0, "seconds": 16.0}, bygone),
    "surplus": Scenario({"servers": 4, "copies": 2, "faults": ("break",), "fault_s": 10.0, "seconds": 12.0,
                         "think_s": 0.4, "late_s": 0.0, "delay_s": 0.001, "hwm": 1000}, surplus),
    "halfway": Scenario({"servers": 4, "copies": 2, "faults": ("break",), "fault_s": 10.0, "seconds": 12.0,
                         "think_s": 0.4, "late_s": 0.0, "delay_s": 0.001, "hwm": 1000}, halfway),
    "lossy": Scenario({"faults": ("break",), "fault_s": 10.0, "late_s": 0.0}, lossy),
    "abandon": Scenario({"faults": ("break",), "think_s": 0.1, "fsync_s": 0.5}, abandon),
    "large": Scenario({"large": 1.0, "seconds": 4.0, "faults": ("break",), "fault_s": 10.0}, large),
}  # fmt: skip
