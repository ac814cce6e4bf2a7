"""Which servers there are, and in what state.

What lives here: the registry of servers, what a hello is checked for, and each
server's state, made of the watcher's verdict and of sync. What must not: loads,
copies, what follows from a change (balancer.py routes that).

A server is *joining* from the moment it is known until its copies are synced;
then it is what the watcher says: alive, suspect or dead. One that beats and is
not well is suspect too; one that an operator wants emptied is draining.
"""

from collections import Counter
from typing import Final

from msgspec import Struct

from dws.addresses import endpoint_fault
from dws.config import Config
from dws.errors import BadRequest, BehindCatalog, DwsError, OverBound, Refused, Stale, TryAgain, WrongCluster
from dws.limits import REBUILD_EPOCH_STEP, SERVER_NUMBER_MAX, SERVERS_MAX
from dws.messages import Error, Hello, ServerRef
from dws.store import CatalogHead, KnownServer
from patterns import heartbeat
from patterns.heartbeat import Watcher

JOINING: Final = "joining"
ALIVE: Final = heartbeat.ALIVE
SUSPECT: Final = heartbeat.SUSPECT
DEAD: Final = heartbeat.DEAD
CONTESTED: Final = "contested"
DRAINING: Final = "draining"

_RETRY_S: Final = 0.1
#: Beats of an older incarnation this long after a newer hello: two processes share one identity.
_TWINS_AFTER_S: Final = 2.0


class Server(Struct):
    number: int
    id: bytes
    name: str
    incarnation: int = 0
    pages_endpoint: str = ""
    jobs_endpoint: str = ""
    http_endpoint: str = ""
    heard: str = DEAD
    synced: bool = False
    compared: bool = False  # it was synced in this epoch: the picture shows what it had
    welcomed_at: float = 0.0
    contested: bool = False
    draining: bool = False
    ailing: str = ""  # why it is suspect though it beats
    ailing_since: float = 0.0

    @property
    def state(self) -> str:
        if self.contested:
            return CONTESTED
        if self.heard != DEAD and not self.synced:
            return JOINING
        if self.heard == ALIVE and self.ailing:
            return SUSPECT
        if self.heard == ALIVE and self.draining:
            return DRAINING
        return self.heard

    def is_synced(self, synced: bool) -> None:
        self.synced = synced
        self.compared = self.compared or synced

    @property
    def live(self) -> bool:
        """Its copies count, and it can be asked for them."""
        return self.synced and self.heard != DEAD

    @property
    def sure(self) -> bool:
        """Lookups may name it, though there be others."""
        return self.live and self.heard != SUSPECT and not self.ailing

    def known(self) -> KnownServer:
        return KnownServer(self.number, self.id, self.name, self.draining)

    def ref(self) -> ServerRef:
        return ServerRef(self.number, self.name, self.pages_endpoint, self.incarnation, self.http_endpoint)


class Members:
    def __init__(self, head: CatalogHead, config: Config, now: float) -> None:
        self._head = head
        self._watcher = Watcher(config.suspect_s, config.down_dead_s, config.dead_s)
        self.by_number: dict[int, Server] = {}
        self.by_id: dict[bytes, Server] = {}
        self.table = head.epoch << 32
        """Rises whenever what clients are told of servers changes; never the same in two epochs, or a
        client would take its old table for the one after a restart."""
        self._counters: Counter[str] = Counter()
        self._last_number = head.last_number
        self._vouching = {known.server for known in head.servers}
        """Servers that can tell whether the catalog is an old copy, until the first of them joined."""
        for known in head.servers:
            server = self._register(known)
            # It may be about to say hello; silence will tell.
            server.heard = ALIVE
            self._watcher.join(server.id, 0, now)

    @property
    def counters(self) -> dict[str, int]:
        return dict(self._watcher.counters + self._counters)

    def refs(self) -> list[ServerRef]:
        return [server.ref() for server in self.by_number.values() if server.incarnation]

    def still_to_sync(self) -> bool:
        """Whether a known server may yet turn up with copies."""
        return any(server.state == JOINING for server in self.by_number.values())

    def doubt(self) -> Error | None:
        """Why nothing should be decided yet: the catalog may be an old copy, which a server that it knows
        would tell. Where it knows none there is nothing to wait for."""
        if not self._vouching:
            return None
        text = "none of the servers that the catalog knows has come yet, to say whether it is the newest"
        return Error(TryAgain.code, f"{text}; start one, or forget those that are gone", _RETRY_S)

    # -- hello -------------------------------------------------------------------------

    def examine(self, hello: Hello, knows_start: bool, decision: int) -> DwsError | None:
        """Why this hello must be refused, if it must.

        knows_start: whether our catalog's list of starts has the one the server
        was last told; decision: our highest decision number.
        """
        known = self.by_id.get(hello.server)
        for endpoint in (hello.pages_endpoint, hello.jobs_endpoint):
            if fault := endpoint_fault(endpoint):
                return BadRequest(f"{hello.name} announces an endpoint, and {fault}")
        if hello.http_endpoint and (fault := endpoint_fault(hello.http_endpoint, ("http", "https"))):
            return BadRequest(f"{hello.name} announces an endpoint, and {fault}")
        if hello.cluster and hello.cluster != self._head.cluster:
            return WrongCluster(
                f"server {hello.name} belongs to cluster {hello.cluster.hex()}, this catalog is of "
                f"{self._head.cluster.hex()}; nothing was dropped. Start the balancer on the right catalog, "
                f"or with --rebuild if that is lost"
            )
        if self._is_from_before_rebuild(hello):
            # Told by a catalog that is gone: neither its start nor its number means anything here.
            knows_start, decision = True, max(decision, hello.decision)
        if hello.cluster and not knows_start:
            return BehindCatalog(
                f"this catalog does not know start {hello.start_epoch} that {hello.name} was told: "
                f"it is an old copy; nothing was dropped. Restore the newest one, or start with --rebuild"
            )
        if hello.decision > decision:
            return BehindCatalog(
                f"{hello.name} was told decision {hello.decision}, this catalog ends at {decision}: "
                f"it is an old copy; nothing was dropped. Restore the newest one, or start with --rebuild"
            )
        if not hello.cluster and hello.pages:
            return Refused(f"{hello.name} brings {hello.pages} pages of no cluster: use --rebuild to adopt")
        if known is not None and hello.incarnation < known.incarnation:
            return Stale(f"{hello.name} was seen in a later incarnation; is its directory in use twice?")
        if any(self._is_namesake(server, hello) for server in self.by_number.values()):
            return Refused(f"the name {hello.name} is another server's; start this one with another --name")
        if known is None and len(self.by_id) >= SERVERS_MAX:
            return OverBound(f"this catalog knows {SERVERS_MAX} servers, the bound: `forget` some")
        if known is None and self._last_number >= SERVER_NUMBER_MAX:
            return OverBound(f"this catalog has given all numbers to servers, {SERVER_NUMBER_MAX}")
        return None

    def _is_namesake(self, server: Server, hello: Hello) -> bool:
        """Whether the server is another one, and here, under the name that this hello brings."""
        return (server.name, bool(server.incarnation)) == (hello.name, True) and (
            server.id != hello.server and server.heard != DEAD
        )

    def _is_from_before_rebuild(self, hello: Hello) -> bool:
        # A rebuild raises the epoch by REBUILD_EPOCH_STEP, so it shows in the upper bits.
        told, ours = hello.start_epoch // REBUILD_EPOCH_STEP, self._head.epoch // REBUILD_EPOCH_STEP
        return self._head.rebuilt and told < ours

    def know(self, hello: Hello) -> KnownServer | None:
        """A number for a server never seen before, to be made durable; None if it has one."""
        if hello.server in self.by_id:
            return None
        known = KnownServer(self._last_number + 1, hello.server, hello.name)
        self._register(known)
        return known

    def named(self, name: str, number: int) -> Server | DwsError:
        """The server that an operator means. number: 0 if the name says enough."""
        same = [
            server
            for server in self.by_id.values()
            if server.name == name and (not number or server.number == number)
        ]
        if len(same) == 1:
            return same[0]
        if not same:
            known = ", ".join(sorted(server.name for server in self.by_id.values())) or "none"
            return Refused(f"no server {name}{f' with number {number}' if number else ''}; known are {known}")
        numbers = ", ".join(f"{server.number} ({server.state})" for server in same)
        return Refused(f"several servers have the name {name}: say which number is meant, of {numbers}")

    def forget(self, server: Server) -> None:
        """It is known no more; its number stays its own, for whatever still names it."""
        del self.by_id[server.id]
        self._vouching.discard(server.id)
        self._watcher.forget(server.id)
        server.incarnation = 0
        # It may have come back while the decision was written.
        server.heard, server.synced = DEAD, False
        self.table += 1

    def follows(self, hello: Hello) -> bool:
        """Whether the server has taken this start's welcome: it names the start. An accepted hello that names
        another changes nothing: it may have been on its way for long, while its sender was told more than
        this catalog knows."""
        return (hello.start_epoch, hello.start_nonce) == (self._head.epoch, self._head.nonce)

    def join(self, server: Server, hello: Hello, now: float) -> bool:
        """The server, which said this accepted hello, follows: whether in a new life, or elsewhere."""
        if server.id in self._vouching:
            self._vouching.clear()
        fresh = hello.incarnation != server.incarnation
        moved = (hello.pages_endpoint, hello.jobs_endpoint) != (server.pages_endpoint, server.jobs_endpoint)
        if fresh:
            server.synced = False
            server.contested = False
            server.ailing = ""
        if fresh or moved or (hello.name, hello.http_endpoint) != (server.name, server.http_endpoint):
            self.table += 1
        server.name = hello.name
        server.incarnation = hello.incarnation
        server.pages_endpoint = hello.pages_endpoint
        server.jobs_endpoint = hello.jobs_endpoint
        server.http_endpoint = hello.http_endpoint
        server.welcomed_at = now
        self._watcher.join(server.id, hello.incarnation, now)
        server.heard = ALIVE
        return fresh or moved

    def _register(self, known: KnownServer) -> Server:
        server = Server(known.number, known.server, known.name, draining=known.draining)
        self._last_number = max(self._last_number, known.number)
        self.by_number[known.number] = server
        self.by_id[known.server] = server
        return server

    # -- watching ------------------------------------------------------------------------

    def beat(
        self, peer: bytes, incarnation: int, sequence: int, now: float
    ) -> tuple[Server | None, list[Server]]:
        """The server whose beat this is (None: not to be used), and servers whose state changed."""
        server = self.by_id.get(peer)
        if server is None or not server.incarnation:
            self._counters["stranger"] += 1
            return None, []
        if incarnation != server.incarnation:
            self._counters["other-incarnation"] += 1
            older_lives = incarnation < server.incarnation and now - server.welcomed_at > _TWINS_AFTER_S
            changed = older_lives and not server.contested
            server.contested = server.contested or older_lives
            return None, [server] if changed else []
        return server, self._told(self._watcher.beat(peer, incarnation, sequence, now))

    def link_down(self, number: int, now: float) -> list[Server]:
        return self._told(self._watcher.down(self.by_number[number].id, now))

    def link_up(self, number: int) -> None:
        self._watcher.up(self.by_number[number].id)

    def poll(self, now: float) -> list[Server]:
        return self._told(self._watcher.poll(now))

    def wake_at(self) -> float | None:
        return self._watcher.wake_at()

    def silence_s(self, server: Server, now: float) -> float:
        heard_at = self._watcher.heard_at(server.id)
        return now - heard_at if heard_at is not None else 0.0

    def _told(self, changes: list[tuple[bytes, str]]) -> list[Server]:
        changed = []
        for peer, state in changes:
            server = self.by_id[peer]
            server.heard = state
            if state == DEAD:
                # Whatever it does meanwhile, it says hello and is compared before it counts again.
                server.synced = False
            changed.append(server)
        return changed
