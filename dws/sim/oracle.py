"""What must always hold, and the judge of it: sees everything, keeps its own account, and compares.

What lives here: the invariants, each with a name (rules.py). What must not: how a
cluster comes to break them (faults.py, workload.py), or when it has come to rest
(fuzz.py).

Most are judged at the event that could break them, at the cost of what that event
touched; those about everything every thousand events and at the end. The account
rests on what is durable on the simulated disks, never on what a machine believes.
"""

from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from dws.balancer import Balancer
from dws.history import check as check_history
from dws.messages import Applied, Copy, Drop, Hello, Located, Outcome, Record, Reserved, Welcome, decode_job
from dws.names import epoch_of
from dws.operations import Operation
from dws.sim.belief import Belief
from dws.sim.observer import (
    ASK,
    CONFLICT,
    CRASHED,
    DONE,
    FAILED,
    GET,
    MISSING,
    PUT,
    STREAM,
    UNKNOWN,
    BrokenInvariant,
    Call,
    Observer,
)
from dws.sim.rules import require
from dws.sim.witness import seen
from dws.store import Decision, DropRecords, OpResult, PageStoreOp, StoreBatch
from patterns.jobs import HEADER, HEADER_BYTES

if TYPE_CHECKING:
    from dws.sim.balancer_node import BalancerNode
    from dws.sim.server_node import ServerNode
    from dws.sim.world import World

_SHOWN: Final = 5
#: A call's deadline is at most 10 s; then the outcome may be asked for as long again, by a client that may
#: have been paused.
_CALL_MAX_S: Final = 60.0
#: The walk over all pages is left to the end where there are more.
_WALKED_PAGES: Final = 5_000
_HISTORY_CALLS: Final = 5_000


class Oracle(Observer):
    def __init__(self) -> None:
        self._epochs: dict[bytes, int] = {}
        self._batch_of: dict[int, bytes] = {}
        self._decision_of: dict[Call, Decision] = {}
        self._truth_of: dict[Call, dict[str, int]] = {}
        self._durable: set[int] = set()
        self._dropped: set[tuple[str, int]] = set()
        self._until: dict[Call, int] = {}
        """Call that has ended → how many truths there were by then."""
        self._open: dict[Call, None] = {}
        self._asked: set[int] = set()
        self._replied: set[tuple[str, str, int, int]] = set()
        self._passed: dict[ServerNode, tuple[tuple[int, int], int]] = {}
        """Server → its balancer's epoch and its own incarnation, and the last job of them."""
        self._transfers: dict[str, None] = {}
        self._hello: Hello
        """The last that the balancer took in."""

    def attach(self, world: "World") -> None:
        self._world = world
        self._belief = Belief(world)

    @property
    def _is_old(self) -> bool:
        """Whether the balancer is on an old copy of its catalog, whose word is no truth."""
        return self._world.faults.is_catalog_old

    # -- starts ----------------------------------------------------------------------------

    def started(self, node: Any) -> None:
        world = self._world
        if node is world.balancer:
            if not self._is_old and isinstance(node.machine, Balancer):
                catalog = world.catalog
                before = self._epochs.get(catalog.cluster, 0)
                text = f"epoch {catalog.epoch} begins after epoch {before}"
                require(catalog.epoch > before, "epoch-reused", text)
                self._epochs[catalog.cluster] = catalog.epoch

    # -- decisions -------------------------------------------------------------------------

    def handed(self, decision: Decision) -> None:
        """Enough disks have the batch before its decision is as much as begun."""
        call = self._world.workload.calls.get(decision.batch)
        if call is None:
            return
        for record in decision.puts:
            disks = sum(self._has(disk, record) for disk in self._world.disks)
            text = f"{record.name} is decided on the word of {disks} disks, {call.copies} are promised"
            require(disks >= call.copies, "copies", text)

    def _has(self, disk: Any, record: Record) -> bool:
        # What it found damaged and set aside it had promised, and the balancer may not have heard of it yet.
        key = record.name, record.version
        held = disk.held.get(key) or disk.aside.get(key)
        return held is not None and held.record.digest == record.digest

    def decided(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if self._is_old:
                text = f"a balancer on an old copy of the catalog decides {decision.number}"
                require(not decision.puts and not decision.removes, "wrong-catalog", text)
                continue
            call = self._world.workload.calls.get(decision.batch)
            if call is not None:
                self._check_decision(decision, call)
            self._belief.decided(decision)

    def _check_decision(self, decision: Decision, call: Call) -> None:
        world, truth = self._world, self._world.truth
        changes = decision.puts or decision.removes
        text = f"{call.names} of {call.client} is decided again"
        require(call not in self._decision_of, "decided-once", text)
        text = f"{call.names} is decided, and {call.client} was told: {call.error}"
        require(not changes or call.outcome not in (CONFLICT, FAILED, MISSING), "told-failed", text)
        self._own(decision.version, decision.batch)
        epoch = epoch_of(decision.version)
        text = f"a batch of epoch {epoch} is decided in epoch {world.catalog.epoch}"
        require(epoch == world.catalog.epoch, "earlier-epoch", text)
        for name, wanted in call.conditions.items():
            text = f"{name}: {truth.get(name, 0)} is visible at the decision, the condition is {wanted}"
            require(truth.get(name, 0) == wanted, "condition", text)
        for record in decision.puts:
            key = record.name, decision.version
            same = blake3(call.pages[record.name]).digest() == record.digest
            require(same, "bytes", f"{record.name} is decided with other bytes than were put")
            require(key not in world.contents, "version-reused", f"{key} is decided again")
            require(key not in self._dropped, "drop-open", f"{key} is decided, and was ordered to be dropped")
        for name in call.pages.keys() - {record.name for record in decision.puts}:
            same = world.contents.get((name, truth.get(name, 0))) == call.pages[name]
            require(same, "skipped", f"{name} was left alone, and has other bytes by now")
        if call.kind != PUT:
            text = f"{decision.removes} is removed, {call.names} was wanted"
            require(sorted(decision.removes) == sorted(call.names), "acknowledged", text)
        self._decision_of[call] = decision
        self._truth_of[call] = truth
        self._durable.add(decision.version)

    def _own(self, version: int, batch: bytes) -> None:
        owner = self._batch_of.setdefault(version, batch)
        text = f"version {version} names batch {batch.hex()[:8]} and before that {owner.hex()[:8]}"
        require(owner == batch, "version-reused", text)

    # -- what the balancer says --------------------------------------------------------------

    def heard(self, message: Any) -> None:
        if isinstance(message, Hello):
            self._hello = message

    def told(self, node: str, message: Any) -> None:
        if self._is_old:
            if isinstance(message, Welcome):
                self._check_welcome(self._hello)
            return
        match message:
            case Located():
                self._belief.check_located(message)
            case Outcome(state="visible"):
                text = f"version {message.version} is told to be visible before that is durable"
                require(message.version in self._durable, "acknowledged", text)
            case Reserved(primary=primary) if primary is not None:
                epoch = epoch_of(message.version)
                text = f"version {message.version} is given out in epoch {self._world.catalog.epoch}"
                require(epoch == self._world.catalog.epoch, "version-reused", text)
            case Applied() | Welcome():
                self._belief.check_following()

    def _check_welcome(self, hello: Hello) -> None:
        """Of an old catalog's balancer: a hello that was long on its way says less than its sender knows."""
        catalog = self._world.catalog
        knows = catalog.knows_start(hello.start_epoch, hello.start_nonce) or not hello.cluster
        text = f"a balancer on an old copy of the catalog welcomes {hello.name}, which says to know more"
        require(knows and hello.decision <= catalog.decision, "wrong-catalog", text)

    def ordered(self, balancer: "BalancerNode", server: "ServerNode", job: Drop | Copy) -> None:
        if isinstance(job, Copy):
            return
        require(not self._is_old, "wrong-catalog", f"a drop is ordered of {server.server_name}")
        for each in job.records:
            self._check_drop(server, each.name, each.version)
            if self._world.truth.get(each.name) != each.version:
                self._dropped.add((each.name, each.version))

    def _check_drop(self, server: "ServerNode", name: str, version: int) -> None:
        world = self._world
        machine = world.balancer.machine if world.balancer.up else None
        if isinstance(machine, Balancer):
            text = f"{name} {version} of an open batch is dropped from {server.server_name}"
            require(not machine.placement.is_open(version), "drop-open", text)
        if world.truth.get(name) == version:
            copies = sum(
                (name, version) in each.disk.held and (name, version) not in each.disk.rotten
                for each in world.servers
                if each is not server
            )
            where = f"dropped from {server.server_name}"
            text = f"{name} {version} is visible and {where}; {copies} are elsewhere"
            require(copies >= self._promised(), "last-copy", text)

    def _promised(self) -> int:
        """Unspoilt copies that each visible page has at any time."""
        faults = self._world.faults
        return self._world.options.copies - faults.lost_disks - (faults.rotting is not None)

    # -- web servers ---------------------------------------------------------------------

    def server_committed(self, server: "ServerNode", ops: list[PageStoreOp], results: list[OpResult]) -> None:
        for op, result in zip(ops, results, strict=True):
            if result.code:
                continue
            if isinstance(op, StoreBatch):
                for blob in op.blobs:
                    self._check_stored(server, blob.record)
            elif isinstance(op, DropRecords) and result.change is not None:
                for each in result.change.dropped:
                    self._check_drop(server, each.name, each.version)

    def _check_stored(self, server: "ServerNode", record: Record) -> None:
        key = record.name, record.version
        self._own(record.version, record.batch)
        held = server.disk.held.get(key)
        if held is not None and key not in server.disk.rotten:
            same = blake3(held.data).digest() == held.record.digest
            require(same, "bytes", f"{server.server_name} stored {key} with other bytes than its digest says")

    def let_through(self, server: "ServerNode", frame: bytes) -> None:
        _, _, _, realm, epoch, incarnation, number = HEADER.unpack_from(frame)
        identity = server.disk.identity
        text = f"{server.server_name} takes job {number}, which is for another life of it, or of its balancer"
        meant = (realm, epoch, incarnation) == (identity.cluster, identity.start_epoch, identity.incarnation)
        require(meant, "stale-job", text)
        life, passed = self._passed.get(server, ((0, 0), 0))
        text = f"{server.server_name} takes job {number} after job {passed}"
        require(life != (epoch, incarnation) or number > passed, "stale-job", text)
        self._passed[server] = ((epoch, incarnation), number)
        job = decode_job(frame[HEADER_BYTES:])
        own = isinstance(job, Copy) and job.source.incarnation == identity.incarnation
        require(not own, "twice", f"{server.server_name} is to copy from itself")

    # -- requests ------------------------------------------------------------------------

    def request(self, node: str, endpoint: str, request_id: int) -> None:
        self._asked.add(request_id)
        self._transfers[node] = None

    def reply(self, node: str, endpoint: str, peer: int, request_id: int) -> None:
        text = f"{node} answers request {request_id}, which nobody sent"
        require(request_id in self._asked, "one-reply", text)
        key = (node, endpoint, peer, request_id)
        require(key not in self._replied, "one-reply", f"{node} answers request {request_id} again")
        self._replied.add(key)

    # -- clients -------------------------------------------------------------------------

    def called(self, call: Call) -> None:
        self._open[call] = None

    def returned(self, call: Call) -> None:
        self._open.pop(call, None)
        self._until[call] = len(self._world.truths)
        if call.kind in (GET, STREAM):
            self._check_read(call)
        elif call.kind != ASK:
            self._check_told(call)

    def _check_told(self, call: Call) -> None:
        decision = self._decision_of.get(call)
        if call.outcome == DONE:
            text = f"{call.client} was told that {call.names} took effect, and nothing is decided"
            require(decision is not None, "acknowledged", text)
        elif call.outcome not in (UNKNOWN, CRASHED):
            changes = decision is not None and (decision.puts or decision.removes)
            text = f"{call.names} is decided, and {call.client} was told: {call.error}"
            require(not changes, "told-failed", text)
        if call.outcome == CONFLICT:
            failed = any(
                moment.get(name, 0) != wanted
                for moment in self._moments(call)
                for name, wanted in call.conditions.items()
            )
            text = f"{call.client} was told of a conflict, and {call.conditions} held all the time"
            require(failed, "conflict", text)

    def _moments(self, call: Call) -> list[dict[str, int]]:
        """What was visible between the call's beginning and now. Before a write is durable nobody knows of
        it, and a page's old version may be told until the balancer has heard that the new one is."""
        world = self._world
        return world.truths[call.since :] if world.remembers else world.truths

    def _check_read(self, call: Call) -> None:
        moments = self._moments(call)
        if call.outcome == MISSING:
            text = f"{call.client} was told that one of {call.names} is missing, and none was"
            was_missing = any(name not in moment for moment in moments for name in call.names)
            require(was_missing, "linearizable", text)
        if call.outcome != DONE or not self._world.remembers:
            return
        for name in call.names:
            if not any(self._fits(call, name, moment) for moment in moments):
                put = any(
                    call.got.get(name, data) == data
                    for (other, _), data in self._world.contents.items()
                    if other == name
                )
                require(put, "bytes", f"{call.client} read bytes of {name} that nobody put")
                text = f"{call.client} read {name} as it was at no moment between question and answer"
                require(False, "linearizable", text)
        text = f"{call.client} read {call.names} as they were together at no moment"
        whole = any(all(self._fits(call, name, moment) for name in call.names) for moment in moments)
        require(whole, "batch-whole", text)

    def _fits(self, call: Call, name: str, moment: dict[str, int]) -> bool:
        version = moment.get(name, 0)
        if name in call.versions and call.versions[name] != version:
            return False
        return name not in call.got or self._world.contents.get((name, version)) == call.got[name]

    # -- judging -------------------------------------------------------------------------

    def check(self) -> None:
        """After every event: what became visible by it, and transfers of those who asked for something."""
        self._belief.check_shown()
        self._belief.check_alone()
        if self._transfers:
            for client in self._world.clients:
                if client.name in self._transfers and client.up:
                    for operation in client.running:
                        self._check_credit(client.name, operation)
            self._transfers.clear()

    def _check_credit(self, who: str, operation: Any) -> None:
        try:
            operation.check()
        except AssertionError as error:
            raise BrokenInvariant("credit", f"{who}: {type(operation).__name__}: {error}") from error

    def check_all(self) -> None:
        world = self._world
        for call in self._open:
            text = f"{call.kind} {call.names} of {call.client} has not ended after {_CALL_MAX_S:g} s"
            require(world.now - call.began < _CALL_MAX_S, "deadline", text)
        if len(world.truth) <= _WALKED_PAGES:
            self._walk()

    def _walk(self) -> None:
        world = self._world
        if self._is_old:
            return
        promised = self._promised()
        for key in world.truth.items():
            copies = sum(key in each.disk.held and key not in each.disk.rotten for each in world.servers)
            text = f"{key} is visible and has {copies} unspoilt copies, {promised} are promised"
            require(copies >= promised, "lost", text)
        self._belief.check_catalog()

    def check_end(self) -> None:
        self._walk()
        if self._world.remembers and len(self._until) <= _HISTORY_CALLS:
            verdict = check_history(self._history())
            violations = verdict.violations
            require(not violations, "history", "\n".join(map(str, violations[:_SHOWN])))
            if verdict.undecided:
                self._world.note("run", "", f"history: {len(verdict.undecided)} groups of pages undecided")

    def _history(self) -> list[Operation]:
        operations = []
        for call, until in self._until.items():
            moments = self._world.truths[call.since : until]
            decision, before = self._decision_of.get(call), self._truth_of.get(call, {})
            operation = seen(call, decision, before, moments, self._world.contents)
            if operation is not None:
                operations.append(operation)
        return operations
