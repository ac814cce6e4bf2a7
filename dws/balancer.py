"""The balancer: routes events to its parts.

What lives here: which part hears of what, in which order. What must not:
sockets, threads, clocks, disks; nor rules, which belong to the parts.

    effects = balancer.handle(event, now)    never blocks, never sleeps
    balancer.wake_at()                       when it wants a Tick at the latest
    reply = balancer.locate(request, now)    lookup.py's plain method: no object per hop
    balancer.check()                         invariants
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import inf
from random import Random
from typing import Any, Final

from dws.catalog import Catalog
from dws.config import Config
from dws.decisions import Decisions
from dws.effects import Answer, Connect, Disconnect, Effects, Log
from dws.errors import Refused
from dws.events import (
    Answered,
    Beaten,
    ClientAsked,
    Event,
    LinkDown,
    LinkUp,
    Persisted,
    ServerAsked,
    Tick,
    Unanswered,
)
from dws.garbage import Garbage
from dws.health import PROBE_TIMEOUT_S, Health, is_from
from dws.load import Loads
from dws.lookup import Lookup
from dws.maintenance import Maintenance
from dws.membership import CONTESTED, DEAD, SUSPECT, Members, Server
from dws.messages import (
    Abort,
    Await,
    CopyFailed,
    Drain,
    Error,
    Forget,
    Hello,
    List,
    Listing,
    Locate,
    ManifestPage,
    NodeStats,
    NodeStatsAre,
    Ping,
    Pong,
    Record,
    Remove,
    Reserve,
    Resume,
    Stat,
    Status,
    Stored,
    SumsAre,
    Welcome,
    Why,
)
from dws.orders import Orders
from dws.placement import Placement
from dws.plausibility import NO_ORDER, OUT_OF_PLACE, Plausibility
from dws.repair import Repair
from dws.replication import Replication
from dws.report import Report
from dws.store import CatalogHead, Decision, RememberedBatch
from dws.surplus import Surplus
from dws.sync import Sync

#: The longest time between two ticks: silence is judged at this grain.
TICK_S: Final = 0.1


class Balancer:
    """head, records, outcome_of, knows_start: the opened catalog store (store.CatalogStore)."""

    def __init__(
        self,
        head: CatalogHead,
        records: Iterable[Record],
        outcome_of: Callable[[bytes], RememberedBatch | None],
        knows_start: Callable[[int, int], bool],
        config: Config,
        rng: Random,
        now: float,
    ) -> None:
        self._head = head
        self._knows_start = knows_start
        self._config = config
        self.rng = Random(rng.getrandbits(64))
        """Of lookups alone, so that how many there were decides nothing else: a recording leaves them out."""
        self.counters: Counter[str] = Counter()
        self.counted_elsewhere: Mapping[str, Mapping[str, int]] = {}
        """Where → what the shell's sockets counted, for reports."""
        self.catalog = Catalog(records)
        self.loads = Loads(config)
        self.members = Members(head, config, now)
        self.orders = Orders(head, config)
        self.sync = Sync(self.catalog, config)
        self.decisions = Decisions(head)
        replication = Replication(self.catalog, self.members, self.loads, self.orders, config.copies, rng)
        parts = (self.catalog, self.members, self.loads, self.orders)
        self.placement = Placement(
            self.catalog, self.members, replication, self.decisions, head, config, outcome_of
        )
        self.garbage = Garbage(self.catalog, self.orders, head, config, self.placement.is_open)
        self.repair = Repair(*parts, replication, self.decisions, config, now)
        shortage = self.repair.shortage
        self.surplus = Surplus(*parts, shortage, self.decisions, config, now)
        self.maintenance = Maintenance(
            self.catalog, self.members, shortage, self.decisions, config.copies, replication,
            self.placement.open_batches, lambda server, now: self._changed([server], now), self._forgotten,
        )  # fmt: skip
        self.plausibility = Plausibility(self.catalog, self.placement, self.loads, self.counters)
        self.health = Health(config, now)
        self.lookup = Lookup(
            self.catalog, self.members, self.loads, self.health, head.epoch, config, self.counters, self.rng
        )
        self.locate = self.lookup.locate
        self.report = Report(self, head, config, now)
        self._next_tick = now
        self._told: dict[int, str] = {}  # server → the state that was logged last
        for server in self.members.by_number.values():
            self._add(server)
        self._handlers: dict[type[Any], Callable[[Any, float], Effects]] = {
            ClientAsked: self._client_asked,
            ServerAsked: self._server_asked,
            Beaten: self._beaten,
            Answered: self._answered,
            Unanswered: self._unanswered,
            Persisted: self._persisted,
            LinkUp: self._link_up,
            LinkDown: self._link_down,
            Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> Effects:
        effects = self._handlers[type(event)](event, now)
        effects += self.orders.poll(now)
        return effects

    def wake_at(self) -> float:
        return self._next_tick

    # -- requests ------------------------------------------------------------------------------

    def _client_asked(self, event: ClientAsked, now: float) -> Effects:
        token, message = event.token, event.message
        match message:
            case Reserve():
                return self.placement.reserve(token, message, now)
            case Await():
                return self.placement.await_(token, message, now)
            case Abort():
                return self.placement.abort(token, message, now)
            case Remove():
                return self.placement.remove(token, message, now)
            case Locate():
                return [Answer(token, self.locate(message, now))]
            case List():
                names, more = self.catalog.names_from(message.prefix, message.after, message.limit)
                records = [self.catalog.pages[name].record(name) for name in names]
                return [Answer(token, Listing(records, more))]
            case Stat():
                return [Answer(token, self.report.stat(message))]
            case Why():
                return [Answer(token, self.report.why(message, self.lookup.find_live, now))]
            case Status():
                return [Answer(token, self.report.status(now))]
            case NodeStats():
                return [Answer(token, self.report.node_stats(now))]
            case Drain() | Resume() | Forget():
                return self.maintenance.asked(token, message, now)
            case Ping():
                return [Answer(token, Pong("balancer", 0, self._head.epoch))]
        raise AssertionError(f"no handler for {type(message).__name__}")

    def _server_asked(self, event: ServerAsked, now: float) -> Effects:
        message = event.message
        if isinstance(message, Hello):
            return self._hello(event.token, message, now)
        server = self._by_incarnation(message.incarnation)
        if server is None:
            self.counters["reports of strangers"] += 1
            return [Answer(event.token, Error(Refused.code, "say hello first"))]
        if isinstance(message, Stored):
            applied, fresh = self.sync.stored(server.number, message.incarnation, message.changes, now)
            effects: Effects = [Answer(event.token, applied)]
            for change in fresh:
                effects += self._holds(server.number, change.added, now)
                if change.dropped:
                    self.placement.dropped(server.number, change.dropped)
                    self._drops(server.number)
            return effects
        assert isinstance(message, CopyFailed)
        text = f"{server.name}: {message.text}"
        if message.job:
            failed = self.repair.copy_failed(server.number, message, now)
        else:
            failed = self.placement.copy_failed(server.number, message.version, message.source, text, now)
        if not failed:
            # Late, most often: it was ordered from another source since, or decided.
            failed = self.plausibility.refuse(server, NO_ORDER, message.text)
        return [Answer(event.token, Pong("balancer", 0, self._head.epoch)), *failed]

    def _hello(self, token: int, hello: Hello, now: float) -> Effects:
        knows = self._knows_start(hello.start_epoch, hello.start_nonce)
        refusal = self.members.examine(hello, knows, self.decisions.durable)
        if refusal is not None:
            self.counters[f"hello refused: {refusal.code}"] += 1
            return [Answer(token, Error(refusal.code, str(refusal), 1.0)), Log("error", str(refusal))]
        effects: Effects = []
        unknown = self.members.know(hello)
        if unknown is not None:
            decision = Decision(0, bytes(16), 0, [], [], 0.0, unknown)
            effects += self.decisions.hand(decision, lambda number, now: [])[1]
            self._add(self.members.by_id[hello.server])
        server = self.members.by_id[hello.server]
        welcome = Welcome(
            self._head.cluster, self._head.epoch, self._head.nonce, self.decisions.durable, server.number,
            self._config.beat_s, self._config.period_s,
        )  # fmt: skip
        effects.append(Answer(token, welcome))
        if not self.members.follows(hello):
            return effects
        new_life = server.incarnation != hello.incarnation
        fresh = self.members.join(server, hello, now)
        if fresh:
            effects.append(Log("info", f"{server.name} joined at {server.pages_endpoint}"))
            effects.append(Connect(server.number, server.pages_endpoint, server.jobs_endpoint))
            self.loads.restarted(server.number, now)
            self.orders.worker(server.number, server.incarnation)
            if new_life:
                self.surplus.restarted(server.number)
            self.health.watch(server.number, now)
        if fresh or not self.sync.has_begun(server.number):
            effects += self.sync.begin(server)
        return effects + self._changed([server], now)

    def _by_incarnation(self, incarnation: int) -> Server | None:
        # Incarnations end in 32 random bits; a collision is answered like a stranger's.
        same = [s for s in self.members.by_number.values() if s.incarnation == incarnation and incarnation]
        return same[0] if len(same) == 1 else None

    # -- what servers and their links tell --------------------------------------------------------

    def _beaten(self, event: Beaten, now: float) -> Effects:
        server, changed = self.members.beat(event.peer, event.incarnation, event.sequence, now)
        effects: Effects = []
        if server is not None:
            refused = self.plausibility.beat(server, event.beat)
            if refused is not None:
                return refused + self._changed(changed, now)
            self.loads.beat(server.number, event.beat, now)
            if self.health.beat(server, event.beat, now) and server not in changed:
                changed.append(server)
            effects += self.sync.beat(server, event.beat.number, event.beat.sums_digest, now)
            if server.synced != self.sync.is_live(server.number) and server not in changed:
                changed.append(server)
        return effects + self._changed(changed, now)

    def _answered(self, event: Answered, now: float) -> Effects:
        kind, number, asked = event.tag
        message = event.message
        server = self.members.by_number[number]
        if kind == "probe" and isinstance(message, Pong) and is_from(server, message):
            self.loads.probed(number, now - asked)
            return self._changed([server] if self.health.answered(server, now) else [], now)
        if kind == "hot" and isinstance(message, NodeStatsAre):
            self.repair.shortage.heard_hot([*message.hot, *message.hot_last], now)
            return []
        if kind == "surplus":
            self.surplus.verified(number, asked, message, now)
            return []
        if kind == "sums" and isinstance(message, SumsAre):
            effects = self.sync.sums(number, asked, message)
        elif kind == "manifest" and isinstance(message, ManifestPage):
            effects = self.sync.page(number, asked, message, now)
            misplaced, self.sync.misplaced = self.sync.misplaced, ""
            if misplaced:
                effects += self.plausibility.refuse(server, OUT_OF_PLACE, misplaced)
            effects += self._holds(number, message.records, now)
        else:
            return self._no_answer(kind, number, asked, now)
        if self.sync.is_live(number):
            self._drops(number)
            effects += self._changed([server], now)
        return effects

    def _unanswered(self, event: Unanswered, now: float) -> Effects:
        kind, number, asked = event.tag
        return self._no_answer(kind, number, asked, now)

    def _no_answer(self, kind: str, number: int, asked: Any, now: float) -> Effects:
        """None came, or one that is none."""
        if kind == "probe":
            self.counters["probes unanswered"] += 1
            if self.health.counts(number, asked):
                self.loads.not_answered(number, PROBE_TIMEOUT_S)
            server = self.members.by_number[number]
            return self._changed([server] if self.health.unanswered(server, asked, now) else [], now)
        if kind == "surplus":
            self.surplus.verified(number, asked, None, now)
        elif kind in ("sums", "manifest"):
            self.sync.unanswered(number, asked, now)
        return []

    def _holds(self, number: int, records: list[Record], now: float) -> Effects:
        """Records that a server was reported to hold."""
        doubted = self.plausibility.records(self.members.by_number[number], records)
        self.repair.stored(number, records, now)
        return doubted + self.placement.stored(number, records, now)

    def _forgotten(self, number: int) -> None:
        """Nothing of a forgotten server is left in the picture, and no order for it matters."""
        self.surplus.restarted(number)
        self.garbage.reported(number)

    def _drops(self, number: int) -> None:
        """A server was reported to hold records no longer."""
        self.garbage.reported(number)
        self.surplus.reported(number)

    def _persisted(self, event: Persisted, now: float) -> Effects:
        effects = self.decisions.persisted(event.number, now)
        return effects + self.placement.decided(event.number)

    def _link_up(self, event: LinkUp, now: float) -> Effects:
        self.members.link_up(event.server)
        self.orders.worker(event.server, self.members.by_number[event.server].incarnation)
        return []

    def _link_down(self, event: LinkDown, now: float) -> Effects:
        # What was queued on the PUSH is lost with it: issued again when the worker is back.
        self.orders.worker(event.server, None)
        return self._changed(self.members.link_down(event.server, now), now)

    def _tick(self, event: Tick, now: float) -> Effects:
        self._next_tick = now + TICK_S
        self.loads.settle(now)
        effects = self._changed(self.members.poll(now), now)
        effects += self.placement.tick(now)
        for server in self.members.by_id.values():
            effects += self.sync.retry(server, now)
            if server.live:
                self.garbage.sweep(server.number, self.decisions.durable, now)
        effects += self.repair.tick(now)
        if not self.repair.idle:
            self.surplus.disturbed(now)
        effects += self.surplus.tick(now)
        self.maintenance.tick(now)
        return effects + self.health.probes(now)

    def _changed(self, changed: list[Server], now: float) -> Effects:
        """Servers' states changed, or may have: bring everything that depends on them in line."""
        if not changed:
            return []
        effects: Effects = []
        self.lookup.states_changed()
        for server in changed:
            if server.heard == DEAD:
                self.sync.stop(server.number)
                self.health.unwatch(server.number)
                self.orders.worker(server.number, None)
                effects.append(Disconnect(server.number))
            elif server.incarnation and server.number not in self.health:
                # Back from the dead without a new hello: its links were closed, its picture is old.
                effects.append(Connect(server.number, server.pages_endpoint, server.jobs_endpoint))
                effects += self.sync.begin(server)
                self.orders.worker(server.number, server.incarnation)
                self.health.watch(server.number, now)
            server.is_synced(self.sync.is_live(server.number))
            if self._told.get(server.number) != server.state:
                self._told[server.number] = server.state
                self.surplus.disturbed(now)
                why = f": {server.ailing}" if server.ailing and server.state == SUSPECT else ""
                level = "warning" if server.state in (DEAD, CONTESTED) else "info"
                effects.append(Log(level, f"{server.name} is {server.state}{why}"))
            self.loads.open(server.number, server.live, now)
        return effects + self.placement.servers_changed(now)

    def _add(self, server: Server) -> None:
        self.catalog.add_server(server.number)
        self.loads.add(server.number)
        self.orders.add_server(server.number)
        self.sync.add_server(server.number)

    def check(self) -> None:
        for part in (self.decisions, self.placement, self.orders, self.sync, self.repair, self.surplus):
            part.check()
        for server in self.members.by_number.values():
            assert (self.loads.download[server.number] < inf) == server.live
