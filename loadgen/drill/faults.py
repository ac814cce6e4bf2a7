"""The faults: what is done to the cluster in a round, how it shows that it happened, and what must follow.

What lives here: one class a fault, and the table of them. What must not: the steps (stage.py), the order of a
drill (drill.py).

A round raises NotObserved where the fault, or what must follow from it, was not seen: a drill that does not
hurt proves nothing.
"""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from typing import ClassVar, Final

import dws
from dws.limits import GIB, LOCATE_MAX_NAMES, MIB
from dws.membership import ALIVE, DEAD
from dws.messages import ClusterStatus
from loadgen.drill.bodies import body
from loadgen.drill.cluster import BALANCER, DrillCluster, NotPossible
from loadgen.drill.disks import StalledDisk, damage
from loadgen.drill.report import time_text
from loadgen.drill.stage import SILENT_ROUTED_S, STALLED_PROGRESS, WITHIN_S, Stage
from loadgen.drill.watch import NotObserved, server_of, state_of
from loadgen.drill.workload import Shape, Workload

_DAMAGED_PAGES: Final = 20
_ROT_BYTES: Final = 20_000
_ROT_BATCH: Final = 5
_FREE_ENOUGH: Final = MIB


class Fault:
    """One kind of fault. seconds: how long it lasts, where that is to be said."""

    title: ClassVar = ""
    proxies: ClassVar = False
    #: Whether a round waits until the one before it has left no copy too many, which would leave it no work.
    settled: ClassVar = False
    config: ClassVar[dict[str, object]] = {}

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def shape(self, shape: Shape) -> Shape:
        """The load that this fault wants."""
        return shape

    def prepare(self, cluster: DrillCluster) -> None:
        """Before the cluster starts."""

    def preload(self, workload: Workload, endpoint: str) -> None:
        """Before the load."""

    def play(self, stage: Stage) -> None:
        """One round, which ends with the cluster whole again."""
        raise NotImplementedError


class Kill(Fault):
    title = "kill -9 of a web server, which stays down until its pages have two copies again"
    settled = True

    def play(self, stage: Stage) -> None:
        name = stage.victim()
        stage.strike(f"{name} is killed")
        stage.cluster.kill(name)
        stage.await_routed_away(name)
        stage.await_dead(name)
        stage.await_repaired()
        stage.bring_back(name)


class Hang(Fault):
    title = "SIGSTOP of a web server: its connections stand and nobody answers"
    settled = True

    def play(self, stage: Stage) -> None:
        name = stage.victim()
        stage.strike(f"{name} is stopped")
        stage.cluster.pause(name)
        stage.await_routed_away(name, SILENT_ROUTED_S)
        stage.await_dead(name)
        stage.await_repaired()
        began = stage.workload.now()
        stage.cluster.resume(name)
        stage.await_alive(began)


class Partition(Fault):
    title = "a web server is cut off: from all, only away from it, or only towards it"
    proxies = True
    settled = True
    #: What it is called, and which ways are cut.
    KINDS: ClassVar = (
        ("cut off from everybody", True, True),
        ("mute: nothing that it sends to the balancer or answers comes through", False, True),
        ("deaf: nothing that is sent to it comes through", True, False),
    )

    def play(self, stage: Stage) -> None:
        name = stage.victim()
        what, towards, away = self.KINDS[(stage.round.number - 1) % len(self.KINDS)]
        stage.strike(f"{name} is {what}")
        stage.cluster.cut(name, towards=towards, away=away)
        # What the proxies had taken in goes on for a moment; then, on the ways that are cut, nothing.
        # Two failed probes tell of a server that is deaf, and beats on.
        stage.await_routed_away(name, SILENT_ROUTED_S if away else 2 * stage.cluster.config.probe_s + 3)
        if towards and away:
            before = stage.cluster.passed_bytes(name)
            stage.await_requests("while it was cut off")
            if stage.cluster.passed_bytes(name) != before:
                raise NotObserved(f"bytes passed to or from {name}, which was cut off")
        if away:
            stage.await_dead(name)
        else:
            # It beats, so it is not dead; its copies count no more when it has been ailing for so long.
            stage.await_time(stage.cluster.config.dead_s)
        stage.await_repaired(goal=away)
        began = stage.workload.now()
        stage.cluster.heal(name)
        stage.await_alive(began)


class Wipe(Fault):
    title = "a web server is killed and comes back with an empty disk"
    settled = True

    def play(self, stage: Stage) -> None:
        name = stage.victim()
        before = stage.watch.look()
        server = server_of(before, name) if before else None
        if server is None or not server.pages:
            raise NotObserved(f"{name} holds no pages: to wipe it would show nothing")
        stage.strike(f"{name} is killed and its disk wiped")
        stage.cluster.kill(name)
        stage.await_routed_away(name)
        shutil.rmtree(stage.data(name))
        # Its name is free again once the one that it was is dead.
        stage.await_dead(name)
        stage.bring_back(name)
        after = stage.watch.look()
        fresh = server_of(after, name) if after else None
        if fresh is None or fresh.number == server.number:
            raise NotObserved(f"{name} came back as what it was: its disk was not wiped")
        stage.await_repaired()

        def is_filled(told: ClusterStatus) -> bool:
            found = server_of(told, name)
            return found is not None and found.pages > 0

        stage.watch.until(is_filled, f"pages on the new disk of {name}", WITHIN_S)
        with dws.connect(stage.cluster.endpoint) as client:
            client.forget(name, server.number)


class Corrupt(Fault):
    """First all copies but one are damaged, of pages that have one too many: whoever drops that one without
    looking at the others has lost the page. Then one copy of some pages.
    """

    title = "bytes change on a web server's disk behind its back"
    # Without weights the loads of all servers are the same, and the copy too many is known: that of the
    # server with the highest number. It has to stay for so long as it takes to damage the others.
    config: ClassVar = {
        "weight_stored": 0.0,
        "weight_visits": 0.0,
        "weight_rtt": 0.0,
        "scrub_every_s": 20.0,
        "garbage_s": 15.0,
    }

    def preload(self, workload: Workload, endpoint: str) -> None:
        """Pages that the load does not read: for a while one copy of each is good, and that is to go."""
        names = [f"/drill/rot/{each:04d}" for each in range(4 * _DAMAGED_PAGES)]
        with dws.connect(endpoint) as client:
            # Each put on another pair of servers.
            for some in (names[first : first + _ROT_BATCH] for first in range(0, len(names), _ROT_BATCH)):
                client.put({name: body(name, 0, _ROT_BYTES) for name in some})
        workload.initial |= dict.fromkeys(names, 0)

    def play(self, stage: Stage) -> None:
        self._all_but_one(stage)
        self._one_copy(stage)

    def _one_copy(self, stage: Stage) -> None:
        # Not stage.victim(): the server that came back may have dropped all that the load reads.
        steady = {name: self._held(stage, "/drill/steady/", [name]) for name in stage.cluster.webservers}
        holders = [name for name, held in steady.items() if held]
        if not holders:
            raise NotObserved("no web server holds a page that the load reads")
        name = stage.rng.choice(holders)
        pages = steady[name][:_DAMAGED_PAGES]
        before = self._damaged(stage, name)
        stage.strike(f"{len(pages)} pages are damaged on {name}")
        self._damage(stage, name, pages)
        self._read(stage, pages)
        at = stage.watch.until(
            lambda told: self._count(told, name) >= before + len(pages), f"damage found on {name}",
            WITHIN_S,
        )  # fmt: skip
        stage.round.notes.append(f"all of it found after {time_text(stage.since_strike(at))}")
        stage.await_repaired(goal=False)

    def _all_but_one(self, stage: Stage) -> None:
        told = stage.watch.look()
        if told is None:
            raise NotObserved("the balancer does not answer")
        last = max((server for server in told.servers if server.state == ALIVE), key=lambda one: one.number)
        before = self._count_but(told, last.name)
        stage.strike(f"{last.name} is killed, and comes back when its pages have two copies again")
        stage.cluster.kill(last.name)
        stage.watch.until(lambda told: state_of(told, last.name) == DEAD, f"{last.name} is dead", WITHIN_S)
        stage.await_repaired(goal=False)
        begun = stage.workload.now()
        stage.bring_back(last.name)
        pages = self._held(stage, "/drill/rot/", [last.name])
        pages = [name for name in pages if len(self._holders(stage, name)) > 2][:_DAMAGED_PAGES]
        if not pages:
            raise NotObserved("no page has a copy too many")
        stage.strike(f"{len(pages)} pages are damaged wherever they lie but on {last.name}")
        struck = self._damage_all_but(stage, last.name, pages)
        if stage.workload.now() > begun + stage.cluster.config.garbage_s:
            raise NotObserved("copies too many may be gone already; give more time: --set garbage_s=30")
        within_s = WITHIN_S + 2 * stage.cluster.config.garbage_s
        stage.watch.until(lambda told: not told.repair.surplus, "no page has a copy too many", within_s)
        stage.await_repaired(goal=False)
        self._read(stage, pages)
        found = f"damage found on others than {last.name}"
        stage.watch.until(
            lambda told: self._count_but(told, last.name) >= before + struck, found, WITHIN_S
        )  # fmt: skip

    def _held(self, stage: Stage, prefix: str, servers: list[str]) -> list[str]:
        """Pages that lie on all of these servers."""
        names = [name for name in stage.workload.initial if name.startswith(prefix)]
        stage.rng.shuffle(names)
        some = names[:LOCATE_MAX_NAMES]
        with dws.connect(stage.cluster.endpoint) as client:
            stats = client.stat(some)
        return [
            name
            for name, stat in zip(some, stats, strict=True)
            if stat is not None and set(servers) <= {holder.name for holder in stat.holders}
        ]

    def _holders(self, stage: Stage, name: str) -> list[str]:
        with dws.connect(stage.cluster.endpoint) as client:
            stat = client.stat([name])[0]
        return [holder.name for holder in stat.holders] if stat else []

    def _damage_all_but(self, stage: Stage, spared: str, pages: list[str]) -> int:
        """How many copies that were."""
        held: dict[str, list[str]] = {}
        for name in pages:
            for holder in self._holders(stage, name):
                if holder != spared:
                    held.setdefault(holder, []).append(name)
        for holder, names in held.items():
            self._damage(stage, holder, names)
        return sum(map(len, held.values()))

    def _damage(self, stage: Stage, server: str, pages: list[str]) -> None:
        shape, initial = stage.workload.shape, stage.workload.initial
        sizes = [shape.page_bytes if initial[name] else _ROT_BYTES for name in pages]
        bodies = [body(name, initial[name], size) for name, size in zip(pages, sizes, strict=True)]
        for name, places in zip(pages, damage(stage.data(server), bodies), strict=True):
            if not places:
                raise NotObserved(f"{name} was not found on the disk of {server}")

    def _read(self, stage: Stage, pages: list[str]) -> None:
        """What a reader gets is right all the same."""
        initial = stage.workload.initial
        with dws.connect(stage.cluster.endpoint, timeout_s=WITHIN_S) as client:
            for name, data in client.get_many(pages).items():
                if data != body(name, initial[name], len(data)):
                    stage.round.problems.append(f"{name} was delivered with wrong bytes")

    def _damaged(self, stage: Stage, name: str) -> int:
        told = stage.watch.look()
        return self._count(told, name) if told else 0

    def _count_but(self, told: ClusterStatus, name: str) -> int:
        return sum(server.damaged for server in told.servers if server.name != name)

    def _count(self, told: ClusterStatus, name: str) -> int:
        server = server_of(told, name)
        return server.damaged if server else 0


class FullDisk(Fault):
    title = "a web server's disk is filled up by something else"

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._victim = ""
        self._why_quota = ""

    def prepare(self, cluster: DrillCluster) -> None:
        self._victim = cluster.webservers[0]
        try:
            cluster.small_disk(self._victim, GIB)
        except NotPossible as error:
            self._why_quota = str(error)

    def play(self, stage: Stage) -> None:
        name = self._victim
        if self._why_quota:
            stage.round.notes.append(f"by quota, since {self._why_quota}")
            self._by_quota(stage, name)
            return
        disk = stage.cluster.disks[name]
        stage.strike(f"the disk of {name} is filled up")
        disk.fill()
        if disk.free_bytes() > _FREE_ENOUGH:
            raise NotObserved(f"{disk.free_bytes():,} bytes of {disk.directory} are free still")
        self._await_full(stage, name)
        disk.empty()
        self._await_room(stage, name)

    def _by_quota(self, stage: Stage, name: str) -> None:
        told = stage.watch.look()
        server = server_of(told, name) if told else None
        flags = ("--set", f"quota_bytes={server.bytes_stored if server else 0}")
        stage.strike(f"{name} starts again with a quota that is used up")
        stage.cluster.kill(name)
        stage.cluster.set_argument(name, *flags)
        stage.cluster.start(name)
        self._await_full(stage, name)
        stage.cluster.kill(name)
        node = stage.cluster.nodes[name]
        node.arguments = node.arguments[: -len(flags)]
        stage.bring_back(name)
        self._await_room(stage, name)

    def _await_full(self, stage: Stage, name: str) -> None:
        def is_full(told: ClusterStatus) -> bool:
            server = server_of(told, name)
            return server is not None and server.state == ALIVE and server.bytes_free < _FREE_ENOUGH

        at = stage.watch.until(is_full, f"{name} says that it has no room", WITHIN_S)
        stage.round.notes.append(f"told to be full after {time_text(stage.since_strike(at))}")
        stage.await_requests("while the disk was full")
        stage.await_repaired(goal=False)

    def _await_room(self, stage: Stage, name: str) -> None:
        def has_room(told: ClusterStatus) -> bool:
            server = server_of(told, name)
            return server is not None and server.state == ALIVE and server.bytes_free > _FREE_ENOUGH

        stage.watch.until(has_room, f"{name} has room again", WITHIN_S)
        stage.await_repaired(goal=False)


#: So long a disk stalls after that: whoever acknowledges before the fsync acknowledges writes meanwhile.
_STALL_S: Final = 0.5


class BalancerKilled(Fault):
    title = "kill -9 of the balancer while its disk is slow; every second time a web server is down, too"

    def play(self, stage: Stage) -> None:
        other = stage.victim() if stage.round.number % 2 == 0 else ""
        stage.strike("the balancer is killed" + (f" while {other} is down" if other else ""))
        if other:
            stage.cluster.kill(other)
            stage.await_routed_away(other)
        with StalledDisk(stage.data(BALANCER)):
            stage.await_requests("while the balancer's disk stalled", STALLED_PROGRESS)
            stage.await_time(_STALL_S)
            stage.cluster.kill(BALANCER)
        began = stage.workload.now()
        stage.cluster.start(BALANCER)
        self.await_answer(stage, began)
        if other:
            stage.await_requests("by a balancer that was started while a server was down")
            stage.bring_back(other)
        stage.await_alive(began)
        stage.await_repaired(goal=False)

    def await_answer(self, stage: Stage, began_s: float) -> None:
        at = stage.watch.until(lambda told: True, "an answer of the balancer", WITHIN_S)
        stage.round.answering_s = at - began_s


class BalancerDisk(BalancerKilled):
    title = "the balancer's disk is lost: a catalog is made anew from the web servers' records"
    config: ClassVar = {"rebuild_quiet_s": 2.0}

    def shape(self, shape: Shape) -> Shape:
        """A rebuild cannot know what was removed, nor which of two puts at once was decided last."""
        return Shape(
            pages=shape.pages, page_bytes=shape.page_bytes, large_bytes=shape.large_bytes,
            threads=shape.threads, families=max(shape.families, shape.threads), removes=False, shared=False,
            timeout_s=2 * shape.timeout_s,
        )  # fmt: skip

    def play(self, stage: Stage) -> None:
        stage.strike("the balancer is killed and its disk lost")
        stage.cluster.kill(BALANCER)
        shutil.rmtree(stage.data(BALANCER))
        began = stage.workload.now()
        stage.cluster.set_argument(BALANCER, "--rebuild")
        stage.cluster.start(BALANCER)
        stage.cluster.drop_arguments(BALANCER, "--rebuild")
        self.await_answer(stage, began)
        told = stage.watch.look()
        if told is not None and not told.pages:
            stage.round.problems.append("the rebuilt catalog is empty")
        stage.await_alive(began)
        stage.await_repaired(goal=False)
        stage.await_requests("by the rebuilt catalog")


class RandomKill(Fault):
    title = "kill -9 of a random process, started again at once"

    def play(self, stage: Stage) -> None:
        name = stage.rng.choice([*stage.cluster.nodes])
        stalled = stage.rng.random() < 0.25
        stage.strike(f"{name} is killed" + (", with its disk stalled" if stalled else ""))
        with ExitStack() as stack:
            if stalled:
                stack.enter_context(StalledDisk(stage.data(name)))
                stage.await_requests("while a disk stalled", STALLED_PROGRESS)
            stage.cluster.kill(name)
        stage.bring_back(name)
        stage.await_repaired(goal=False)


class Power(Fault):
    title = "kill -9 of every process at once, while all disks are slow"

    def play(self, stage: Stage) -> None:
        names = [*stage.cluster.nodes]
        stage.strike("all processes are killed")
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(StalledDisk(stage.data(name)))
            stage.await_requests("while all disks stalled", STALLED_PROGRESS)
            stage.await_time(_STALL_S)
            stage.cluster.kill(*names)
        began = stage.workload.now()
        stage.cluster.start(*names)
        stage.await_alive(began)
        stage.await_repaired(goal=False)


#: Ends when whoever started it is gone: a signal may come between its start and the moment it is noted.
_LOOP: Final = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


class Busy(Fault):
    title = "every core is taken by other work; nobody may be declared dead for it"

    def play(self, stage: Stage) -> None:
        cores = len(os.sched_getaffinity(0))
        stage.strike(f"{cores} processes take {cores} cores for {self.seconds:g} s")
        loops: list[subprocess.Popen[bytes]] = []
        try:
            command = [sys.executable, "-c", _LOOP, str(os.getpid())]
            loops.extend(subprocess.Popen(command) for _ in range(cores))
            self._look(stage)
            if any(loop.poll() is not None for loop in loops):
                raise NotObserved("a process that was to take a core ended before the end of it")
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()

    def _look(self, stage: Stage) -> None:
        until = stage.workload.now() + self.seconds
        dead: set[str] = set()
        suspected: set[str] = set()

        def note(told: ClusterStatus) -> None:
            for server in told.servers:
                if server.state == DEAD:
                    dead.add(server.name)
                elif server.state != ALIVE:
                    suspected.add(server.name)

        stage.watch.until(
            lambda told: stage.workload.now() >= until, "the end of it", self.seconds + WITHIN_S, note
        )
        stage.round.notes.append(f"suspected meanwhile: {', '.join(sorted(suspected)) or 'nobody'}")
        stage.round.problems += [f"{name} was declared dead, and lived" for name in sorted(dead)]


FAULTS: Final[dict[str, type[Fault]]] = {
    "kill": Kill,
    "hang": Hang,
    "partition": Partition,
    "wipe": Wipe,
    "corrupt": Corrupt,
    "full-disk": FullDisk,
    "balancer": BalancerKilled,
    "balancer-disk": BalancerDisk,
    "random": RandomKill,
    "power": Power,
    "busy": Busy,
}
