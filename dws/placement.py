"""Batches from Reserve to their decision.

What lives here: requests about batches, when one is decided, and the answers
that are owed. What must not: sockets, the order of decisions and the writer
(decisions.py), who stores a batch (replication.py).

A batch is decided when enough live servers have stored it: conditions are
checked against the catalog *and* the decisions already handed to the writer,
its entries go to the writer, and with their fsync it is visible. What was told
never stays never: ids that ended otherwise are refused for this epoch.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial
from math import inf
from typing import Final

from msgspec.structs import replace

from dws.batch import CONFLICT, DECIDING, DOOMED, NEVER, OPEN, VISIBLE, Batch
from dws.catalog import Catalog
from dws.config import Config
from dws.decisions import Decisions
from dws.effects import Answer, Effect, Effects, Log
from dws.errors import Conflict, NeverStored, Stale, TryAgain
from dws.limits import COUNTER_BITS
from dws.membership import Members
from dws.messages import ANY, Abort, Await, Dropped, Error, Outcome, Record, Remove, Reserve, Reserved
from dws.names import make_version
from dws.replication import Replication
from dws.requests import conflict_text, fault_of_names, fault_of_pages
from dws.store import CatalogHead, Decision, RememberedBatch

#: Ids that ended as conflict or never, remembered in memory; the oldest go first.
_REFUSED_MAX: Final = 100_000
_REFUSED_NAMES: Final = 3  # enough to say why, few enough to remember
_RETRY_S: Final = 0.1
#: Copies seen and patience of one who waits for the last word, however long a write takes.
_THE_END: Final = (1 << 30, inf)


class Placement:
    """outcome_of: the decision that the catalog's store remembers of a batch id."""

    def __init__(
        self,
        catalog: Catalog,
        members: Members,
        replication: Replication,
        decisions: Decisions,
        head: CatalogHead,
        config: Config,
        outcome_of: Callable[[bytes], RememberedBatch | None],
    ) -> None:
        self._catalog = catalog
        self._members = members
        self._replication = replication
        self._decisions = decisions
        self._head = head
        self._config = config
        self._outcome_of = outcome_of
        self._counter = 0
        self._batches: dict[bytes, Batch] = {}
        self._by_version: dict[int, Batch] = {}
        self._names_bytes = 0  # of open batches: what their names and records take in memory, about
        self._refused: OrderedDict[bytes, Outcome] = OrderedDict()
        self._effects: Effects = []

    # -- requests --------------------------------------------------------------------

    def reserve(self, token: int, request: Reserve, now: float) -> Effects:
        return self._collect(Answer(token, self._reserve(request, now)))

    def _reserve(self, request: Reserve, now: float) -> Reserved | Error:
        batch = self._batches.get(request.batch)
        if batch is not None:
            return self._reserve_again(batch, request, now)
        ended = self._ended(request.batch)
        if ended is not None:
            return self._reserve_ended(request, ended)
        fault = self._fault_of(request)
        if fault is not None:
            return fault
        copies = request.copies or self._config.copies
        conditions = {page.name: page.condition for page in request.pages if page.condition != ANY}
        failing = self._failing(conditions, visible_only=True)
        if failing:
            text = conflict_text(failing)
            self._remember(request.batch, Outcome(CONFLICT, 0, 0, copies, text=text, names=failing))
            return Error(Conflict.code, text, names=failing)
        is_held = self._replication.has_already
        skip = [index for index, page in enumerate(request.pages) if is_held(page, copies)]
        for index in skip:
            name = request.pages[index].name
            conditions[name] = self._catalog.pages[name].version
        pages = {page.name: page for index, page in enumerate(request.pages) if index not in set(skip)}
        deadline = now + request.deadline_s
        version = self._next_version()
        batch = Batch(
            request.batch, version, pages, conditions, [], copies, deadline, copies_asked=request.copies
        )
        if pages:
            targets = self._replication.targets(batch.size_bytes, batch.copies, set(request.avoid))
            if isinstance(targets, Error):
                return targets
            batch.targets = targets
        self._open(batch)
        self._review(batch, now)
        return self._reserved(batch, request, skip, now)

    def await_(self, token: int, request: Await, now: float) -> Effects:
        batch = self._batches.get(request.batch)
        if batch is None:
            return self._collect(Answer(token, self._ended(request.batch) or self._refuse(request.batch)))
        outcome = self._outcome(batch)
        if outcome.stored > request.seen or outcome.lost:
            return self._collect(Answer(token, outcome))
        batch.waiters.append((token, request.seen, now + request.patience_s))
        return self._collect()

    def abort(self, token: int, request: Abort, now: float) -> Effects:
        batch = self._batches.get(request.batch)
        if batch is None:
            return self._collect(Answer(token, self._ended(request.batch) or self._refuse(request.batch)))
        batch.waiters.append((token, *_THE_END))
        if batch.state == OPEN:
            stored = len(self._replication.holders(batch))
            batch.text = f"{stored} of {batch.copies} copies were stored when the client gave up"
            self._end(batch, "abort")
        return self._collect()

    def remove(self, token: int, request: Remove, now: float) -> Effects:
        batch = self._batches.get(request.batch)
        if batch is not None:
            batch.waiters.append((token, *_THE_END))
            return self._collect()
        refusal: Outcome | Error | None = self._ended(request.batch)
        if refusal is None and request.epoch != self._head.epoch:
            refusal = self._stale()
        refusal = refusal or fault_of_names([page.name for page in request.pages]) or self._members.doubt()
        if refusal is not None:
            return self._collect(Answer(token, refusal))
        names = list(dict.fromkeys(page.name for page in request.pages))
        conditions = {page.name: page.condition for page in request.pages if page.condition != ANY}
        batch = Batch(request.batch, self._next_version(), {}, conditions, names, 0, now + request.deadline_s)
        batch.waiters.append((token, *_THE_END))
        self._open(batch)
        self._review(batch, now)
        return self._collect()

    # -- what servers report -------------------------------------------------------------

    def stored(self, number: int, records: list[Record], now: float) -> Effects:
        """Records that a server holds: of open batches they count, all others are no news."""
        touched = {}
        for record in records:
            batch = self._by_version.get(record.version)
            if batch is not None and record.name in batch.pages:
                touched[batch.version] = batch
                if not self._replication.found(batch, number, record):
                    batch.text = f"copies of {record.name} differ"
        for batch in touched.values():
            if batch.state == OPEN and batch.text:
                self._end(batch, "copies differ")
            else:
                self._review(batch, now)
        return self._collect()

    def dropped(self, number: int, records: list[Dropped]) -> None:
        """Records that a server holds no longer: a damaged one of an open batch is not stored there."""
        self._replication.lost(self._by_version, number, records)

    def copy_failed(self, number: int, version: int, source: int, text: str, now: float) -> Effects:
        batch = self._by_version.get(version)
        if batch is not None and self._replication.copy_failed(batch, number, source, now):
            self._effects.append(Log("warning", f"copy of batch {batch.id.hex()[:8]} failed: {text}"))
            self._review(batch, now)
        return self._collect()

    def servers_changed(self, now: float) -> Effects:
        """Some server's copies began or ceased to count."""
        for batch in list(self._batches.values()):
            self._review(batch, now)
        return self._collect()

    def _persisted(self, batch: Batch, number: int, now: float) -> Effects:
        """The batch's decision is durable: with that it is visible."""
        for record in batch.records.values():
            # Whoever reported it, dead or alive by now: presence is the disks' word.
            self._catalog.show(record, batch.found, now)
        for name in batch.removes:
            if not self._catalog.hide(name, now):
                batch.names.append(name)
        self._end(batch, "persisted")
        return self._collect()

    def decided(self, number: int) -> Effects:
        """Decisions up to this number are durable: conflicts that rest on them can be told."""
        for doomed in list(self._batches.values()):
            if doomed.state == DOOMED and doomed.after <= number:
                self._end(doomed, "persisted")
        return self._collect()

    # -- time -----------------------------------------------------------------------------

    def tick(self, now: float) -> Effects:
        for batch in list(self._batches.values()):
            if batch.state == OPEN and now >= batch.deadline:
                stored = len(self._replication.holders(batch))
                batch.text = f"{stored} of {batch.copies} copies were stored by the deadline"
                self._end(batch, "deadline")
                continue
            if 0 < batch.direct_until <= now:
                batch.direct_until = 0.0
                self._review(batch, now)
            elif batch.failed:
                self._review(batch, now)
            due = [waiter for waiter in batch.waiters if now >= waiter[2]]
            if due:
                batch.waiters = [waiter for waiter in batch.waiters if now < waiter[2]]
                for token, _, _ in due:
                    self._effects.append(Answer(token, self._outcome(batch)))
        return self._collect()

    def is_open(self, version: int) -> bool:
        return version in self._by_version

    @property
    def newest_version(self) -> int:
        """The last one that was given to a batch."""
        return make_version(self._head.epoch, self._counter)

    @property
    def open_batches(self) -> Collection[Batch]:
        return self._batches.values()

    # -- a batch's life --------------------------------------------------------------------

    def _open(self, batch: Batch) -> None:
        self._batches[batch.id] = batch
        self._by_version[batch.version] = batch
        self._names_bytes += batch.memory_bytes

    def _review(self, batch: Batch, now: float) -> None:
        """Order missing copies, tell who waits, decide if it can be decided."""
        if batch.state != OPEN:
            return
        holders = self._replication.holders(batch)
        if len(holders) < batch.copies and batch.pages:
            self._replication.order_copies(batch, holders, self._decisions.durable, now)
            self._tell(batch)
        else:
            self._decide(batch, now)
            self._tell(batch)

    def _decide(self, batch: Batch, now: float) -> None:
        failing = self._failing(batch.conditions, visible_only=False)
        if failing:
            batch.names = failing
            batch.text = conflict_text(failing)
            unwritten = [handed for name in failing if (handed := self._decisions.unwritten(name))]
            batch.after = max((number for number, _ in unwritten), default=0)
            if unwritten:
                batch.step("condition fails on an unwritten decision")
            else:
                self._end(batch, "condition fails")
            return
        batch.step("enough copies")
        forget_at = max(0.0, batch.deadline - now) + self._config.batch_memory_s
        if batch.copies_asked:
            # How many copies to keep is the catalog's to remember.
            for name, record in batch.records.items():
                batch.records[name] = replace(record, copies=batch.copies_asked)
        puts = list(batch.records.values())
        decision = Decision(0, batch.id, batch.version, puts, batch.removes, forget_at)
        batch.after, effects = self._decisions.hand(decision, partial(self._persisted, batch))
        self._effects += effects

    def _end(self, batch: Batch, event: str) -> None:
        """The batch reached a last state: tell who waits, forget it."""
        batch.step(event)
        outcome = self._outcome(batch)
        for token, _, _ in batch.waiters:
            self._effects.append(Answer(token, outcome))
        for number in list(batch.ordered):
            self._replication.cancel(batch, number)
        del self._batches[batch.id]
        del self._by_version[batch.version]
        self._names_bytes -= batch.memory_bytes
        if batch.state != VISIBLE:
            self._remember(batch.id, outcome)

    # -- checks of a request ----------------------------------------------------------------------

    def _fault_of(self, request: Reserve) -> Error | None:
        if request.epoch != self._head.epoch:
            return self._stale()
        if len(self._batches) >= self._config.open_batches_max:
            return Error(TryAgain.code, f"{len(self._batches)} batches are open, the bound", _RETRY_S)
        if self._names_bytes >= self._config.open_batches_bytes:
            bound = f"{self._names_bytes:,} bytes, over the bound"
            return Error(TryAgain.code, f"the names of open batches take {bound}", _RETRY_S)
        return fault_of_pages(request)

    def _failing(self, conditions: dict[str, int], visible_only: bool) -> list[str]:
        """Names whose visible version is not the wanted one."""
        failing = []
        for name, wanted in conditions.items():
            visible = self._catalog.visible(name)
            version = visible[0] if visible else 0
            unwritten = None if visible_only else self._decisions.unwritten(name)
            if unwritten is not None:
                version = unwritten[1]
            if version != wanted:
                failing.append(name)
        return failing

    # -- answers -------------------------------------------------------------------------------------

    def _reserve_again(self, batch: Batch, request: Reserve, now: float) -> Reserved | Error:
        """The same Reserve once more: the same version, and a new primary if the old one is of no use."""
        if batch.state == OPEN and batch.pages:
            refusal = self._replication.place_again(batch, set(request.avoid))
            if refusal is not None:
                return refusal
        skip = [index for index, page in enumerate(request.pages) if page.name not in batch.pages]
        return self._reserved(batch, request, skip, now)

    def _reserve_ended(self, request: Reserve, ended: Outcome) -> Reserved | Error:
        if ended.state == VISIBLE:
            return Reserved(self._head.epoch, ended.version, None, list(range(len(request.pages))), 0.0)
        code = Conflict.code if ended.state == CONFLICT else NeverStored.code
        return Error(code, ended.text, names=ended.names)

    def _reserved(self, batch: Batch, request: Reserve, skip: list[int], now: float) -> Reserved:
        primary = self._members.by_number[batch.targets[0]].ref() if batch.targets else None
        left_s = max(0.0, batch.deadline - now)
        backups = self._replication.bring(batch, now) if request.direct else []
        return Reserved(self._head.epoch, batch.version, primary, skip, left_s, batch.copies, backups)

    def _outcome(self, batch: Batch) -> Outcome:
        holders = self._replication.holders(batch)
        stored = batch.copies if batch.state == VISIBLE else len(holders)
        state = OPEN if batch.state in (DECIDING, DOOMED) else batch.state
        lost = batch.state == OPEN and self._replication.is_lost(batch)
        return Outcome(state, batch.version, stored, batch.copies, lost, batch.text, batch.names)

    def _ended(self, batch_id: bytes) -> Outcome | None:
        """The outcome of a batch that is not open: refused in this epoch, or in the catalog."""
        refused = self._refused.get(batch_id)
        if refused is not None:
            return refused
        remembered = self._outcome_of(batch_id)
        return Outcome(VISIBLE, remembered.version, 0, 0) if remembered else None

    def _refuse(self, batch_id: bytes) -> Outcome:
        """First heard of in Await: it is not to be, and stays so."""
        outcome = Outcome(NEVER, 0, 0, 0, text="no such batch in this epoch; nothing of it is visible")
        self._remember(batch_id, outcome)
        return outcome

    def _remember(self, batch_id: bytes, outcome: Outcome) -> None:
        self._refused[batch_id] = replace(outcome, names=outcome.names[:_REFUSED_NAMES])
        if len(self._refused) > _REFUSED_MAX:
            self._refused.popitem(last=False)

    def _tell(self, batch: Batch) -> None:
        """Answer those who wait for more copies, or who should know that the primary is lost."""
        if not batch.waiters or batch.state not in (OPEN, DECIDING, DOOMED):
            return
        outcome = self._outcome(batch)
        for waiter in list(batch.waiters):
            if outcome.stored > waiter[1] or outcome.lost:
                batch.waiters.remove(waiter)
                self._effects.append(Answer(waiter[0], outcome))

    def _stale(self) -> Error:
        text = f"the balancer's epoch is {self._head.epoch}: ask for the outcome, then reserve anew"
        return Error(Stale.code, text)

    def _next_version(self) -> int:
        self._counter += 1
        if self._counter >= 1 << COUNTER_BITS:
            raise OverflowError("all versions of this epoch are used: restart the balancer")
        return make_version(self._head.epoch, self._counter)

    def _collect(self, *more: Effect) -> Effects:
        effects = [*self._effects, *more]
        self._effects.clear()
        return effects

    def check(self) -> None:
        """Open batches are indexed and accounted for, and a decision that is waited for is still to come."""
        assert {batch.version for batch in self._batches.values()} == set(self._by_version)
        assert self._names_bytes == sum(batch.memory_bytes for batch in self._batches.values())
        for batch in self._batches.values():
            assert batch.state in (OPEN, DECIDING, DOOMED)
            assert batch.state == OPEN or batch.after > self._decisions.durable
