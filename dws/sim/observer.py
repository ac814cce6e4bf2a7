"""What is seen of a simulated cluster: the hooks that an oracle fills in.

What lives here: the shape of the hooks, of a client's call, and of a broken
invariant. What must not: what must hold (oracle.py).

Hooks are called at the moment at which the thing happens, before anything that
follows from it. They must not change the world, draw from its randomness or
schedule events: a run is the same with any observer.
"""

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from dws.messages import Copy, Drop
from dws.store import Decision, OpResult, PageStoreOp

if TYPE_CHECKING:
    from dws.sim.balancer_node import BalancerNode
    from dws.sim.server_node import ServerNode
    from dws.sim.world import World


class BrokenInvariant(Exception):
    """Something that must always hold does not. rule: its short name."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


#: A client's call is one of these.
PUT, REMOVE, GET, STREAM, ASK = "put", "remove", "get", "stream", "ask"
#: What it was told in the end. unknown: it may or may not take effect, now or never later. A reader's
#: "missing" is NotFound; "failed" any error that promises that nothing took effect.
DONE, CONFLICT, MISSING = "done", "conflict", "missing"
FAILED, UNKNOWN, CRASHED = "failed", "unknown", "crashed"


class Call(Struct, eq=False):
    """One call of a virtual client, from its beginning to what it was told.

    began, ended: virtual seconds; since: the last decision that the balancer knew
    to be durable when the call began.
    """

    client: str
    kind: str
    names: list[str]
    began: float
    since: int
    pages: dict[str, bytes] = {}
    """A put's bytes."""
    conditions: dict[str, int] = {}
    """A put's or removal's, where there is one: name → version, ABSENT is 0."""
    batches: list[bytes] = []
    """Every batch id that a put or removal was tried under."""
    ended: float = -1.0
    outcome: str = ""
    error: str = ""
    got: dict[str, bytes] = {}
    """A reader's: name → bytes."""
    versions: dict[str, int] = {}
    """Name → version, of a put (its own) and of what a reader was told the version of."""
    copies: int = 0
    """A put's: how many copies it wanted."""


class Observer:
    """Sees everything, and does nothing."""

    def attach(self, world: "World") -> None:
        """The world is made; its nodes have not started."""

    # -- nodes ---------------------------------------------------------------------------

    def started(self, node: Any) -> None:
        """A new life of a node has begun: its machine is made."""

    def crashed(self, node: Any) -> None:
        """A life has ended; what was not durable is gone."""

    # -- the balancer --------------------------------------------------------------------

    def heard(self, message: Any) -> None:
        """The balancer takes in what a server asks or reports; its answer may follow at once."""

    def told(self, node: str, message: Any) -> None:
        """The balancer sends somebody this answer."""

    def ordered(self, balancer: "BalancerNode", server: "ServerNode", job: Drop | Copy) -> None:
        """A job goes to a server's PUSH socket."""

    def handed(self, decision: Decision) -> None:
        """A decision goes to the balancer's writer."""

    def decided(self, decisions: list[Decision]) -> None:
        """Decisions are durable, in this order; `world.truths` does not show them yet."""

    # -- web servers ---------------------------------------------------------------------

    def server_committed(self, server: "ServerNode", ops: list[PageStoreOp], results: list[OpResult]) -> None:
        """Operations on a server's disk are durable (or refused: see each result's code)."""

    def let_through(self, server: "ServerNode", frame: bytes) -> None:
        """A server takes a job's frame to be one for it, and new."""

    # -- requests ------------------------------------------------------------------------

    def request(self, node: str, endpoint: str, request_id: int) -> None:
        """A node sends a request to an endpoint."""

    def reply(self, node: str, endpoint: str, peer: int, request_id: int) -> None:
        """A node sends the answer to a request that came over a connection (peer) to an endpoint of its."""

    # -- clients -------------------------------------------------------------------------

    def called(self, call: Call) -> None:
        """A client's call begins."""

    def returned(self, call: Call) -> None:
        """It has ended, as `call.outcome` says; also when its client crashed."""

    # -- judging -------------------------------------------------------------------------

    def check(self) -> None:
        """After every event, at the cost of what it touched. Raises BrokenInvariant."""

    def check_all(self) -> None:
        """Every thousand events and at the end: everything."""

    def check_end(self) -> None:
        """When all has come to rest."""
