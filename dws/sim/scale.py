"""A large cluster, with pages on its disks already, on one core.

What lives here: the making of a cluster that has been running for long, and what
is measured of it: how long until every server is in sync, the work of some
virtual seconds, and how long until a server's pages have all their copies again
after it died. What must not: the nodes (they are those of every simulation), and
the real clock (cli/scale.py).
"""

from collections.abc import Callable
from random import Random
from typing import Final

from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from dws.balancer import Balancer
from dws.config import Config
from dws.errors import ConfigError
from dws.limits import RECORD_FORMAT
from dws.messages import Record
from dws.names import make_version
from dws.sim.disks import Held
from dws.sim.fuzz import NoConvergence
from dws.sim.observer import BrokenInvariant, Observer
from dws.sim.options import Options
from dws.sim.world import World
from dws.store import KnownServer

PAGES_MAX: Final = 10_000_000
_PAGE_BYTES: Final = 64
_STEP_S: Final = 0.5
_PATIENCE_S: Final = 600.0


class Stage(Struct):
    """One part of the run. virtual_s: how much virtual time it took."""

    name: str
    virtual_s: float
    events: int
    text: str


def run(options: Options, pages: int, kill: int, told: Callable[[Stage], None], seed: int = 1) -> None:
    """Raises ConfigError, and NoConvergence or BrokenInvariant if the cluster does not do what it should."""
    if not 1 <= pages <= PAGES_MAX:
        raise ConfigError(f"pages: {pages} is not within 1 and {PAGES_MAX}")
    if not 0 <= kill <= options.servers - options.copies:
        left = options.servers - kill
        raise ConfigError(f"kill: {options.copies} copies need as many servers, {max(0, left)} would be left")
    world = World(seed, options, Observer())
    world.config = replace(Config(), policy=options.policy, copies=options.copies)
    world.remembers = False
    settle_in(world, pages, Random(f"scale {seed}"))
    world.start()
    _until(world, "start", told, _in_sync, f"{options.servers:,} servers with {pages:,} pages are in sync")
    _work(world, told)
    if kill:
        for server in world.servers[:kill]:
            server.crash()
        del world.servers[:kill]
        killed = "1 server was" if kill == 1 else f"{kill:,} servers were"
        text = f"all pages have {options.copies} live copies, after {killed} killed"
        _until(world, "repair", told, _has_copies, text)


def settle_in(world: World, pages: int, rng: Random) -> None:
    """Put pages on the disks, and into the catalog, as if they had been put long ago."""
    copies = world.options.copies
    head = world.catalog.open()
    held: list[list[Held]] = [[] for _ in world.servers]
    for number in range(1, pages + 1):
        name = f"/page-{number}"
        data = name.encode().ljust(_PAGE_BYTES, b".")
        version = make_version(head.epoch, number)
        digest = blake3(data).digest()
        record = Record(name, version, bytes(16), len(data), digest, b"", "", 0.0, RECORD_FORMAT)
        world.catalog.pages[name] = record
        world.truth[name] = version
        for holder in rng.sample(range(len(held)), copies):
            held[holder].append(Held(record, data, b""))
    for number, (server, load) in enumerate(zip(world.servers, held, strict=True), 1):
        server.disk.load(load)
        server.disk.identity = replace(
            server.disk.identity, cluster=head.cluster, start_epoch=head.epoch, start_nonce=head.nonce
        )
        known = KnownServer(number, server.disk.identity.server, server.server_name)
        world.catalog.servers.append(known)
    world.catalog.last_number = len(world.servers)
    world.workload.names = list(world.truth)


def _work(world: World, told: Callable[[Stage], None]) -> None:
    events, began = world.clock.executed, world.now
    world.workload.begin()
    world.run(world.options.seconds)
    world.workload.stop()
    world.run(_PATIENCE_S, until=lambda: not world.workload.open)
    text = f"{world.workload.ended:,} calls of {world.options.clients} clients"
    told(Stage("work", world.now - began, world.clock.executed - events, text))


def _until(
    world: World, name: str, told: Callable[[Stage], None], is_done: Callable[[World], bool], text: str
) -> None:
    events, began = world.clock.executed, world.now
    while not is_done(world):
        if world.now - began > _PATIENCE_S:
            raise NoConvergence(f"{_PATIENCE_S:g} s after its beginning, not yet: {text}")
        world.run(_STEP_S)
    world.check_all()
    told(Stage(name, world.now - began, world.clock.executed - events, text))


def _balancer(world: World) -> Balancer:
    return world.balancer.balancer


def _in_sync(world: World) -> bool:
    balancer = _balancer(world)
    return all(server.live for server in balancer.members.by_number.values()) and _has_copies(world)


def _has_copies(world: World) -> bool:
    """As the balancer sees it, of live servers; and that it sees what the disks have."""
    balancer = _balancer(world)
    here = {server.disk.identity.server for server in world.servers}
    members = balancer.members.by_number.items()
    live = {number for number, server in members if server.live and server.id in here}
    if any(len(live.intersection(holders)) < world.options.copies for _, holders in balancer.catalog.groups):
        return False
    for server in world.servers:
        known = balancer.members.by_id[server.disk.identity.server]
        if known.live and balancer.catalog.pictures[known.number].sums != server.disk.summary()[1]:
            raise BrokenInvariant("picture", f"the balancer's picture of {server.name} is not its disk's")
    return True
