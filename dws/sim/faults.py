"""What goes wrong in a simulated cluster, when, and until when.

What lives here: each fault (options.FAULTS says what each is), drawn from the
seed. What must not: what a fault does to a node, a disk or the network, which is
theirs.

The cluster promises to survive the loss of all but one copy. So damage that
costs copies is kept to one server: only one disk rots, only one is lost.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dws.sim.balancer_node import BalancerNode
from dws.sim.client_node import ClientNode
from dws.sim.disks import CatalogDisk
from dws.sim.nodes import Node
from dws.sim.options import (
    BREAK,
    CATALOG_FULL,
    CRASH,
    CUT,
    CUT_ONE_WAY,
    FSYNC,
    FULL,
    LOSE_DISK,
    OLD_CATALOG,
    PAUSE,
    ROT,
    SLOW,
)
from dws.sim.server_node import ServerNode

if TYPE_CHECKING:
    from dws.sim.world import World

_AWAY_S: Final = (0.01, 0.3, 1.5, 4.0)
_PAUSE_S: Final = (0.1, 1.0, 3.0, 8.0)
_CUT_S: Final = (0.2, 1.0, 4.0, 10.0)
_SHORTAGE_S: Final = (0.5, 2.0, 5.0)
_SLOW_FACTOR: Final = 50.0
_OLD_CATALOG_S: Final = 4.0
#: A backup is taken about so often; an older one is what is put back.
_BACKUP_S: Final = 2.0


class Faults:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = world.rng_faults
        self.active = False
        self.counts: dict[str, int] = {}
        self.lost_disks = 0
        self.rotting: ServerNode | None = None
        self._backups: list[CatalogDisk] = []
        self._right_catalog: CatalogDisk | None = None
        self._by_name: dict[str, Callable[[], bool]] = {
            CRASH: self._crash,
            PAUSE: self._pause,
            BREAK: self._break,
            CUT: lambda: self._cut(both=True),
            CUT_ONE_WAY: lambda: self._cut(both=False),
            FULL: self._full,
            CATALOG_FULL: self._catalog_full,
            SLOW: self._slow,
            FSYNC: self._fsync,
            ROT: self._rot,
            LOSE_DISK: self._lose_disk,
            OLD_CATALOG: self._old_catalog,
        }

    def begin(self) -> None:
        self.active = True
        self._next()
        if OLD_CATALOG in self._world.options.faults:
            self._back_up()

    def stop(self) -> None:
        """No new faults, and what they did to the network and the disks ends."""
        self.active = False
        world = self._world
        world.network.heal_all()
        world.catalog.full = False
        for node in world.nodes:
            node.host.resume()
        for server in world.servers:
            self._enough_room(server)
            server.disk.fsync_factor = 1.0
        if self._right_catalog is not None:
            self._put_right_back()

    @property
    def is_catalog_old(self) -> bool:
        return self._right_catalog is not None

    # -- when ------------------------------------------------------------------------------

    def _next(self) -> None:
        options = self._world.options
        if self.active and options.faults:
            self._world.clock.after(self._rng.expovariate(1 / options.fault_s), self._strike)

    def _strike(self) -> None:
        if self.active:
            name = self._rng.choice(self._world.options.faults)
            if self._by_name[name]():
                self.counts[name] = self.counts.get(name, 0) + 1
            self._next()

    def _later(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        self._world.clock.after(delay_s, action, *args)

    def _note(self, text: str) -> None:
        self._world.note("fault", "", text)

    # -- processes -------------------------------------------------------------------------

    def _node(self) -> Node:
        """Servers are hit most: there are most of them."""
        world = self._world
        return self._rng.choice([world.balancer, *world.servers, *world.servers, *world.clients[:1]])

    def _crash(self) -> bool:
        node = self._node()
        if not node.up or (self.is_catalog_old and not isinstance(node, ServerNode)):
            return False
        away_s = self._rng.choice(_AWAY_S)
        self._note(f"{node.name} is killed, for {away_s:g} s")
        self._world.kill(node, away_s)
        return True

    def _pause(self) -> bool:
        node = self._node()
        if not node.up or node.host.paused:
            return False
        pause_s = self._rng.choice(_PAUSE_S)
        self._note(f"{node.name} is paused for {pause_s:g} s")
        node.host.pause()
        self._later(pause_s, node.host.resume)
        return True

    # -- the network -----------------------------------------------------------------------

    def _break(self) -> bool:
        node = self._node()
        connections = [
            connection
            for connection in self._world.network.connections()
            if node.host in (connection.bound.host, connection.outgoing.socket.host)
        ]
        if not connections:
            return False
        some = self._rng.sample(connections, self._rng.choice([1, len(connections)]))
        self._note(f"{len(some)} connections of {node.name} are lost")
        for connection in some:
            connection.lose()
        return True

    def _cut(self, both: bool) -> bool:
        one, other = self._rng.sample(self._world.nodes, 2)
        if isinstance(one, ClientNode) and isinstance(other, ClientNode):
            return False
        cut_s = self._rng.choice(_CUT_S)
        pairs = [(one.name, other.name)]
        if both:
            pairs.append((other.name, one.name))
        self._note(f"nothing comes through {'between' if both else 'from'} {one.name} "
                   f"{'and' if both else 'to'} {other.name} for {cut_s:g} s")  # fmt: skip
        for pair in pairs:
            self._world.network.cut(*pair)
            self._later(cut_s, self._world.network.heal, *pair)
        return True

    # -- disks -----------------------------------------------------------------------------

    def _full(self) -> bool:
        server = self._rng.choice(self._world.servers)
        server.disk.quota_bytes = server.disk.usage()[1] + self._rng.choice([0, 1000, 1 << 20])
        shortage_s = self._rng.choice(_SHORTAGE_S)
        self._note(f"the disk of {server.name} is full for {shortage_s:g} s")
        self._later(shortage_s, self._enough_room, server)
        return True

    def _enough_room(self, server: ServerNode) -> None:
        server.disk.quota_bytes = self._world.quota_bytes

    def _catalog_full(self) -> bool:
        self._world.catalog.full = True
        shortage_s = self._rng.choice(_SHORTAGE_S)
        self._note(f"the balancer's disk is full for {shortage_s:g} s")
        self._later(shortage_s, self._catalog_has_room)
        return True

    def _catalog_has_room(self) -> None:
        self._world.catalog.full = False

    def _slow(self) -> bool:
        server = self._rng.choice(self._world.servers)
        server.disk.fsync_factor = _SLOW_FACTOR
        slow_s = self._rng.choice(_SHORTAGE_S)
        self._note(f"the disk of {server.name} is slow for {slow_s:g} s")
        self._later(slow_s, self._fast, server)
        return True

    def _fast(self, server: ServerNode) -> None:
        server.disk.fsync_factor = 1.0

    def _fsync(self) -> bool:
        """The next commit of a node is broken off in its middle."""
        node = self._rng.choice([self._world.balancer, *self._world.servers])
        if not node.up or (self.is_catalog_old and isinstance(node, BalancerNode)):
            return False
        self._note(f"the next fsync of {node.name} fails")
        self._world.fails_to_sync(node)
        return True

    def _rot(self) -> bool:
        """Only where a good copy is elsewhere: of what one server alone has, rot is a loss."""
        world = self._world
        server = self.rotting = self.rotting or self._rng.choice(world.servers)
        candidates = [
            key
            for key, held in server.disk.held.items()
            if held.data
            and key not in server.disk.rotten
            and any(key in other.held for other in world.disks if other is not server.disk)
        ]
        if not candidates:
            return False
        name, version = self._rng.choice(candidates)
        self._note(f"{name} (version {version}) rots on the disk of {server.name}")
        server.disk.rot(name, version)
        return True

    def _lose_disk(self) -> bool:
        if self.lost_disks or self.is_catalog_old:
            return False
        server = self._rng.choice(self._world.servers)
        self.lost_disks += 1
        self._note(f"{server.name} is killed and its disk is lost")
        self._world.lose_disk(server, self._rng.choice(_AWAY_S))
        return True

    # -- the catalog -----------------------------------------------------------------------

    def _back_up(self) -> None:
        if self.active and not self.is_catalog_old:
            self._backups.append(self._world.catalog.backup())
        if self.active:
            self._later(_BACKUP_S, self._back_up)

    def _old_catalog(self) -> bool:
        """Put a backup back that every server can see to be old. Clients are away meanwhile: what a
        balancer tells of its catalog before a server has told it better is what that catalog says."""
        world = self._world
        if self.is_catalog_old or not world.balancer.up:
            return False
        told = [server.disk.identity for server in world.servers]
        old = [
            backup
            for backup in self._backups
            if all(
                identity.cluster
                and (
                    identity.decision > backup.decision
                    or not backup.knows_start(identity.start_epoch, identity.start_nonce)
                )
                for identity in told
            )
        ]
        if not old:
            return False
        self._note("the balancer is started on an old copy of its catalog")
        world.balancer.crash()
        for client in world.clients:
            world.kill(client, _OLD_CATALOG_S + 1)
        self._right_catalog = world.catalog
        self._put(self._rng.choice(old))
        world.balancer.start()
        self._later(_OLD_CATALOG_S, self._put_right_back)
        return True

    def _put_right_back(self) -> None:
        if self._right_catalog is None:
            return
        world = self._world
        self._note("the balancer is started on the right catalog again")
        world.balancer.crash()
        for server in world.servers:
            world.refused(server, world.catalog)
        self._put(self._right_catalog)
        self._right_catalog = None
        world.balancer.start()

    def _put(self, catalog: CatalogDisk) -> None:
        """Lay another copy of the catalog on the balancer's disk. Room is the disk's: no copy has its own."""
        catalog.full = self._world.catalog.full
        self._world.catalog = catalog
