"""One seed → one run → one verdict.

What lives here: the phases of a run, what it is to have come to rest, and how a
failure is named. What must not: processes and printing (cli/sim.py).

Phase 1, safety: work and faults. Phase 2, liveness: the faults end, what is down comes
back, no new work; within `calm_s` the cluster must be at rest, with every
visible page on as many disks as it should be, the balancer's picture equal to the
disks, nothing else on any disk, and nobody waiting. Then clients read everything.
"""

import traceback
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from dws.balancer import Balancer
from dws.sim.nodes import CLIENTS_ENDPOINT
from dws.sim.observer import BrokenInvariant, Observer
from dws.sim.options import Options
from dws.sim.oracle import Oracle
from dws.sim.world import World

OK, BROKEN, RESTLESS, CRASH = "ok", "broken invariant", "no convergence", "crash of a machine"
#: Verdict → exit code of `dws sim`; 2 is usage.
EXIT_CODES: Final = {OK: 0, BROKEN: 10, RESTLESS: 11, CRASH: 12}

#: Before the work begins: every server says hello and is compared.
_WARM_UP_S: Final = 1.0
_REST_STEP_S: Final = 0.5
_READ_S: Final = 8.0


class NoConvergence(Exception):
    """After the faults ended the cluster did not come to rest in time; the text says what is not done."""


class Verdict(Struct):
    """at_s: virtual time since the beginning; event: number of the event that failed, or of the last one;
    digest: of the whole trace until then; log: the last lines of what happened."""

    seed: int
    kind: str
    text: str
    at_s: float
    event: int
    digest: str
    rule: str = ""
    calls: int = 0
    faults: int = 0
    log: list[str] = []


def run(
    seed: int,
    options: Options,
    observer: Observer | None = None,
    narrate: Callable[[str], None] | None = None,
    prepare: Callable[[World], None] | None = None,
) -> Verdict:
    """Play a seed. observer: the Oracle unless another is given; prepare: called with the world before it
    starts, for directed scenarios."""
    world = World(seed, options, Oracle() if observer is None else observer)
    world.narrate = narrate
    if prepare is not None:
        prepare(world)
    kind, text, rule = OK, "", ""
    try:
        play(world)
    except BrokenInvariant as error:
        kind, text, rule = BROKEN, str(error), error.rule
    except NoConvergence as error:
        kind, text = RESTLESS, str(error)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno} in {frame.name}"
        kind, text = CRASH, f"{type(error).__name__}: {error} ({where})"
    return verdict(world, kind, text, rule)


def verdict(world: World, kind: str, text: str, rule: str = "") -> Verdict:
    return Verdict(
        world.seed, kind, text, world.elapsed_s, world.clock.executed, world.trace.hexdigest(), rule,
        world.workload.ended, sum(world.faults.counts.values()), list(world.log),
    )  # fmt: skip


def play(world: World) -> None:
    """Both phases. Raises BrokenInvariant, NoConvergence, or whatever a machine raises."""
    options = world.options
    world.start()
    world.run(_WARM_UP_S)
    world.note("run", "", "work and faults begin")
    world.network.late_s = options.late_s
    world.workload.begin()
    world.faults.begin()
    world.run(options.seconds)
    settle(world)


def settle(world: World) -> None:
    """Phase 2: from now on nothing goes wrong."""
    world.note("run", "", "the faults end, and no new work begins")
    world.workload.stop()
    world.faults.stop()
    world.network.late_s = 0.0
    world.fsync_longest_s = min(world.fsync_longest_s, 0.02)
    for node in world.nodes:
        world.revive(node)
    began = world.now
    while why := unrest(world):
        _resume_drained(world)
        if world.now - began > world.options.calm_s:
            raise NoConvergence(f"{world.options.calm_s:g} s after the faults ended {why}")
        world.run(_REST_STEP_S)
    world.note("run", "", f"at rest after {world.now - began:.1f} s")
    world.check_all()
    check_rest(world)
    _read_all(world)
    world.observer.check_end()


def unrest(world: World) -> str:
    """What is not done yet; empty when all is."""
    if world.workload.open:
        longest = min(world.workload.open, key=lambda call: call.began)
        what = f"{longest.kind} {longest.names} of {longest.client} for {world.now - longest.began:.1f} s"
        return f"{len(world.workload.open)} calls of clients go on, {what}"
    # What was asked by a call that has ended may still be done.
    if world.balancer.host.unread:
        return "the balancer has not read all that came while it was paused"
    for client in world.clients:
        if client.up and (unread := client.calls.unread(CLIENTS_ENDPOINT)):
            return f"{unread} requests of {client.name} are on their way"
    balancer = world.balancer.machine
    if not isinstance(balancer, Balancer):
        return "the catalog is being rebuilt"
    if any(len(service.replier) for service in world.balancer.services):
        return "the balancer owes answers"
    if balancer.placement.open_batches:
        return f"{len(balancer.placement.open_batches)} batches are open"
    for server in world.servers:
        if len(server.service.replier):
            return f"{server.name} owes answers"
        known = balancer.members.by_id.get(server.disk.identity.server)
        if known is None or not known.live:
            return f"{server.name} is not live"
        picture = balancer.catalog.pictures[known.number]
        if picture.sums != server.disk.summary()[1]:
            return f"the balancer's picture of {server.name} is not what its disk has"
        if picture.strays or server.disk.staged or len(server.writer):
            return f"there is garbage on {server.name}, or about to be"
    copies = copies_of(world)
    few = [name for name, count in copies.items() if count < world.options.copies]
    if few:
        return f"{len(few)} pages have too few copies, {few[0]} has {copies[few[0]]}"
    told = balancer.report.status(world.now)
    if told.repair.missing or told.repair.moving:
        return f"{told.repair.missing} pages have too few copies: {told.repair.text or 'repair goes on'}"
    if told.repair.surplus:
        return f"{told.repair.surplus} pages have too many copies"
    if balancer.orders.open_orders() and not world.faults.lost_disks:
        return f"{balancer.orders.open_orders()} orders are open"
    return ""


def _resume_drained(world: World) -> None:
    """No server is to be emptied any more; an order to do so may have been on its way for long."""
    machine = world.balancer.machine
    if isinstance(machine, Balancer) and not world.workload.open:
        for server in machine.members.by_id.values():
            if server.draining:
                world.workload.resume_drained(server.name, server.number)


def copies_of(world: World) -> dict[str, int]:
    """Visible page → disks of servers that are here and have it, unspoilt."""
    return {
        name: sum(
            (name, version) in server.disk.held and (name, version) not in server.disk.rotten
            for server in world.servers
        )
        for name, version in world.truth.items()
    }


def check_rest(world: World) -> None:
    """The disks hold what the catalog names, byte by byte, and nothing else."""
    for server in world.servers:
        for key, held in server.disk.held.items():
            name, version = key
            if world.truth.get(name) != version:
                raise BrokenInvariant(
                    "garbage", f"{server.name} keeps {name} {version}, which is not visible"
                )
            if key not in server.disk.rotten and held.data != world.contents[key]:
                raise BrokenInvariant("bytes", f"{server.name} has other bytes of {name} {version}")
    pages = {name: entry.version for name, entry in world.balancer.balancer.catalog.pages.items()}
    on_disk = {name: record.version for name, record in world.catalog.pages.items()}
    if not pages == on_disk == world.truth:
        raise BrokenInvariant("catalog", "the balancer, its disk and what was decided name different pages")


def _read_all(world: World) -> None:
    """And readers get all of it."""
    names = sorted(world.truth)
    calls = world.workload.read_all(names)
    world.run(_READ_S, until=lambda: not world.workload.open)
    for call in calls:
        if call.outcome != "done":
            raise NoConvergence(f"at rest, {call.names} cannot be read: {call.error or 'no end'}")
        for name in call.names:
            data = call.got.get(name)
            if data is not None and data != world.contents[name, world.truth[name]]:
                raise BrokenInvariant("bytes", f"{name} was read with other bytes than were put")
