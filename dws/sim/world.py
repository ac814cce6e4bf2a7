"""A simulated cluster: its nodes, their disks, a network, a clock, and one seed that decides everything.

What lives here: what holds the parts together, and the two truths that are kept
beside the machines: `truths[n]` is what the catalog names after n decisions,
`contents` the bytes of each version. What must not: what must hold (oracle.py),
which work and which faults there are (workload.py, faults.py), the order of a run
(fuzz.py).
"""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Final

from dws.effects import Rebuilt
from dws.names import format_version
from dws.rebuild import Rebuild
from dws.sim.balancer_node import BalancerNode
from dws.sim.client_node import ClientNode
from dws.sim.disks import BIG_BYTES, CatalogDisk, PageDisk
from dws.sim.faults import Faults
from dws.sim.nodes import Node
from dws.sim.observer import BrokenInvariant, Observer
from dws.sim.options import Options
from dws.sim.rules import require
from dws.sim.server_node import ServerNode
from dws.sim.workload import Workload
from dws.store import Decision
from patterns.sim.clock import Clock, Trace
from patterns.sim.network import Network

#: Virtual time begins here: no machine may take 0 for the beginning of time.
BEGIN_S: Final = 100.0
#: Between two full checks.
CHECK_ALL_EVENTS: Final = 1_000
#: With more servers than this nothing is checked on the way: checks walk over all servers and pages.
_CHECKED_SERVERS: Final = 10
#: Events that all machines together handle between two checks of one of them.
_CHECKED_EVERY: Final = 5
_LOG_LINES: Final = 200
#: How long a process that ended by itself stays away.
_ENDED_S: Final = 0.5


class World:
    """observer: sees everything; never changes anything. Nothing runs before `start`.

    A subclass may override any hook of the observer's; directed tests do.
    """

    def __init__(self, seed: int, options: Options, observer: Observer | None = None) -> None:
        self.seed = seed
        self.options = options
        self.config = options.config
        # One stream each: another workload meets the same faults.
        self.rng_nodes, self.rng_disks, self.rng_work, self.rng_faults, rng_network = (
            Random(f"{what} {seed}") for what in ("nodes", "disks", "work", "faults", "network")
        )
        self.clock = Clock(BEGIN_S)
        self.clock.after_event = self._after_event
        self.trace = self.clock.trace = Trace()
        self.network = Network(self.clock, rng_network, options.delay_s)
        self.observer = observer or Observer()
        self.narrate: Callable[[str], None] | None = None
        """Called with every line of what happens, for people."""
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        """The last of those lines."""
        self.fsync_longest_s = options.fsync_s
        self.quota_bytes = BIG_BYTES
        self.catalog = CatalogDisk(self.rng_disks, lambda: self.clock.now)
        self.truths: list[dict[str, int]] = [{}]
        self.contents: dict[tuple[str, int], bytes] = {}
        self.remembers = True
        """Whether `truths` keeps every state; one of a large catalog keeps the last alone."""
        self.known = 0
        """The last of `truths` that the balancer knows to be durable."""
        self._number_of_first = 0
        self.balancer = BalancerNode(self)
        self.servers: list[ServerNode] = []
        self.disks: list[PageDisk] = []
        """Of all servers that ever were."""
        for number in range(1, options.servers + 1):
            self._add_server(f"web-{number}")
        self.clients = [ClientNode(self, f"client-{number}") for number in range(1, options.clients + 1)]
        self.workload = Workload(self)
        self.faults = Faults(self)
        self._failing: set[Node] = set()
        self._check_all_at = CHECK_ALL_EVENTS
        self._is_touched = False
        self._handled = 0
        self._is_small = options.servers <= _CHECKED_SERVERS
        self.observer.attach(self)

    @property
    def nodes(self) -> list[Node]:
        return [self.balancer, *self.servers, *self.clients]

    @property
    def server_names(self) -> list[str]:
        """As they call themselves."""
        return [server.server_name for server in self.servers]

    @property
    def now(self) -> float:
        return self.clock.now

    @property
    def elapsed_s(self) -> float:
        return self.clock.now - BEGIN_S

    @property
    def truth(self) -> dict[str, int]:
        """What the catalog's disk names now."""
        return self.truths[-1]

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass. True as soon as `until` holds."""
        return self.clock.run(self.clock.now + seconds, until)

    def at(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        """In this world's time, whatever node lives then."""
        self.clock.after(delay_s, action, *args)

    def _add_server(self, name: str) -> None:
        disk = PageDisk(self.rng_disks, self.quota_bytes, self.options.log_max)
        self.disks.append(disk)
        self.servers.append(ServerNode(self, name, disk))

    # -- checks ----------------------------------------------------------------------------

    def touched(self, machine: Any) -> None:
        """A machine has handled an event. Every so many times it checks itself: the balancer walks over all
        servers for that, so not each time."""
        self.acted()
        self._handled += 1
        if self._is_small and self._handled % _CHECKED_EVERY == 0 and not isinstance(machine, Rebuild):
            self._checked(machine.check)

    def acted(self) -> None:
        """A machine has done something in this event: what must hold is to be looked at after it."""
        self._is_touched = True

    def _checked(self, check: Callable[[], None]) -> None:
        try:
            check()
        except AssertionError as error:
            raise BrokenInvariant("machine", f"a machine's own check failed: {error}") from error

    def _after_event(self) -> None:
        if not self._is_touched:
            return  # no machine, no disk: nothing of what is promised can have changed
        self._is_touched = False
        self.observer.check()
        if self.clock.executed >= self._check_all_at and self._is_small:
            self._check_all_at = self.clock.executed + CHECK_ALL_EVENTS
            self.check_all()

    def check_all(self) -> None:
        self.observer.check_all()
        if self.balancer.up and not isinstance(self.balancer.machine, Rebuild):
            self._checked(self.balancer.machine.check)
            self._checked(self.balancer.machine.catalog.check)

    # -- what is seen ----------------------------------------------------------------------

    def note(self, who: str, level: str, text: str) -> None:
        line = f"{self.clock.now:9.3f} #{self.clock.executed:<6} {who:<10} {level and level + ': '}{text}"
        self.log.append(line)
        if self.narrate is not None:
            self.narrate(line)

    def note_decision(self, decision: Decision, what: str) -> None:
        names = [f"{record.name} {format_version(record.version)}" for record in decision.puts]
        names += [f"{name} removed" for name in decision.removes]
        names += [f"server {decision.server.name}"] if decision.server else []
        self.note(self.balancer.name, "", f"decision {decision.number} {what}: {', '.join(names)}")

    def decided(self, decisions: list[Decision]) -> None:
        """Decisions are durable."""
        for decision in decisions:
            self.note_decision(decision, "is durable")
            self.observer.decided([decision])
            truth = dict(self.truths[-1]) if self.remembers else self.truths.pop()
            call = self.workload.calls.get(decision.batch)
            for record in decision.puts:
                truth[record.name] = record.version
                if call is not None and record.name in call.pages:
                    self.contents[record.name, record.version] = call.pages[record.name]
            for name in decision.removes:
                truth.pop(name, None)
            self.truths.append(truth)

    def opened(self) -> None:
        """The balancer has read its catalog."""
        if not self.faults.is_catalog_old:
            self.known = len(self.truths) - 1
            self._number_of_first = self.catalog.decision - self.known

    def knows(self, decision: Decision) -> None:
        """The balancer has heard that a decision is durable."""
        self.known = decision.number - self._number_of_first

    def server_at(self, jobs_endpoint: str) -> ServerNode | None:
        socket = self.network.bound.get(jobs_endpoint)
        if socket is None:
            return None
        return next((server for server in self.servers if server.host is socket.host), None)

    # -- disks -----------------------------------------------------------------------------

    def fsync_s(self, node: Node) -> float:
        factor = node.disk.fsync_factor if isinstance(node, ServerNode) else 1.0
        return self.rng_disks.uniform(0.1, 1) * self.fsync_longest_s * factor

    def fails_to_sync(self, node: Node) -> None:
        self._failing.add(node)

    def sync_fails(self, node: Node) -> bool:
        """Whether the fsync that a node waits for fails: then its process ends."""
        if node not in self._failing:
            return False
        self._failing.discard(node)
        self.process_ended(node, "an fsync failed")
        return True

    # -- lives -----------------------------------------------------------------------------

    def kill(self, node: Node, away_s: float) -> None:
        """Kill a node, and start it again after a while."""
        if node.up:
            node.crash()
            if isinstance(node, ClientNode):
                self.workload.crashed(node)
        self.clock.after(away_s, self.revive, node)

    def revive(self, node: Node) -> None:
        if node.up:
            return
        if isinstance(node, ClientNode) and self.faults.is_catalog_old:
            self.clock.after(_ENDED_S, self.revive, node)
            return
        node.start()
        self.note(node.name, "", "starts again")
        if isinstance(node, ClientNode):
            self.workload.go_on(node)

    def process_ended(self, node: Node, why: str) -> None:
        """A node's process ends by itself, and its supervisor starts it again."""
        self.note(node.name, "error", f"ends: {why}")
        self.kill(node, _ENDED_S)

    def lose_disk(self, server: ServerNode, away_s: float) -> None:
        """It comes back as a new server, under another name; its old self never."""
        if server.up:
            server.crash()
        disk = PageDisk(self.rng_disks, self.quota_bytes, self.options.log_max)
        self.disks.append(disk)
        server.disk = disk
        server.server_name += "-again"
        self.clock.after(away_s, self.revive, server)

    def refused(self, server: ServerNode, catalog: CatalogDisk) -> None:
        """A server that knew better was never led by this catalog."""
        identity = server.disk.identity
        follows = (identity.start_epoch, identity.start_nonce) == (catalog.head.epoch, catalog.head.nonce)
        require(not follows, "wrong-catalog", f"{server.name} follows an old copy of the catalog")

    # -- a catalog made anew ---------------------------------------------------------------

    def rebuild(self) -> None:
        """The balancer's disk is lost: gather a catalog from what the servers hold."""
        self.balancer.crash()
        self.note("fault", "", "the catalog is lost; the balancer starts with --rebuild")
        self.catalog = CatalogDisk(self.rng_disks, lambda: self.clock.now)
        self.balancer.rebuilds = True
        self.balancer.start()

    def rebuilt(self, effect: Rebuilt) -> None:
        """The gathered catalog is written: a balancer starts on it."""
        self.balancer.crash()
        self.catalog = CatalogDisk.rebuilt_from(effect, self.rng_disks, lambda: self.clock.now)
        self.truths.append({record.name: record.version for record in effect.records})
        self.balancer.rebuilds = False
        self.balancer.start()
