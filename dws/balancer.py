"""The balancer: routes events to its parts, and answers lookups.

What lives here: which part hears of what, in which order, and the data plane's
one method, `locate`. What must not: sockets, threads, clocks, disks; nor rules,
which belong to the parts.

    effects = balancer.handle(event, now)    never blocks, never sleeps
    balancer.wake_at()                       when it wants a Tick at the latest
    reply = balancer.locate(request, now)    a plain method: no object per hop
    balancer.check()                         invariants
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import inf
from random import Random
from typing import Any, Final

from dws.catalog import Catalog
from dws.choices import Choices
from dws.config import Config
from dws.effects import Answer, Ask, Connect, Disconnect, Effects, Log
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
from dws.load import Loads
from dws.membership import DEAD, SUSPECT, Members, Server
from dws.messages import (
    Abort,
    Await,
    CopyFailed,
    Error,
    Hello,
    Later,
    List,
    Listing,
    Locate,
    Located,
    ManifestPage,
    NodeStats,
    Ping,
    Pong,
    Record,
    Remove,
    Reserve,
    Stat,
    Status,
    Stored,
    SumsAre,
    Welcome,
    Why,
)
from dws.orders import Orders
from dws.placement import Placement
from dws.policy import POLICIES
from dws.replication import Replication
from dws.report import Report
from dws.store import CatalogHead, RememberedBatch
from dws.sync import Sync

#: The longest time between two ticks: silence is judged at this grain.
TICK_S: Final = 0.1
_PROBE_TIMEOUT_S: Final = 1.0
_RETRY_S: Final = 0.1


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
        self.rng = rng
        self._policy = POLICIES[config.policy]()
        self.counters: Counter[str] = Counter()
        self.counted_elsewhere: Mapping[str, Mapping[str, int]] = {}
        """Where → what the shell's sockets counted, for reports."""
        self.catalog = Catalog(records)
        self.loads = Loads(config)
        self.choices = Choices(config.policy)
        self.members = Members(head, config, now)
        self.orders = Orders(head, config)
        self.sync = Sync(self.catalog, config)
        replication = Replication(self.catalog, self.members, self.loads, self.orders, rng)
        self.placement = Placement(self.catalog, self.members, replication, head, config, outcome_of)
        self.garbage = Garbage(self.catalog, self.orders, head, config, self.placement.is_open)
        self.report = Report(self, head, config, now)
        self._next_tick = now
        self._probe_at: dict[int, float] = {}
        self._live_of: dict[tuple[int, ...], tuple[int, ...]] = {}
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

    # -- the data plane --------------------------------------------------------------------

    def locate(self, request: Locate, now: float) -> Located:
        """Versions and holders of pages, best holder first, each counted as an assignment."""
        pages = self.catalog.pages
        loads, per_page_s = self.loads.download, self.loads.per_page_s
        live_of, policy, rng = self._live_of, self._policy, self.rng
        avoid = self._complaints(request.avoid, now) if request.avoid else None
        found: list[Any] = []
        later: list[Later] = []
        for index, name in enumerate(request.names):
            entry = pages.get(name)
            if entry is None:
                found.append(None)
                continue
            holders = entry.holders
            live: Any = live_of.get(holders)
            if live is None:
                live = self._find_live(holders)
            if avoid:
                live = [number for number in live if number not in avoid] or live
            if len(live) > 1:
                live = policy(live, loads, rng)
            if live:
                best = live[0]
                loads[best] += per_page_s[best]
            else:
                later.append(self._later(index, holders))
            found.append((entry.version, entry.size, entry.digest, entry.list_digest, live))
        if now >= self.choices.due and found and found[-1]:
            self.choices.note(name, found[-1], holders, avoid, loads, per_page_s, now)
        self.counters["lookups"] += 1
        self.counters["names looked up"] += len(found)
        table = self.members.table
        servers = None if request.table == table else self.members.refs()
        return Located(self._head.epoch, table, servers, found, later)

    def _find_live(self, holders: tuple[int, ...]) -> tuple[int, ...]:
        """Live holders among these, suspects only if there is no other; remembered until a state changes."""
        servers = [self.members.by_number[number] for number in holders]
        live = [server for server in servers if server.live]
        sure = [server for server in live if server.heard != SUSPECT]
        self._live_of[holders] = found = tuple(server.number for server in sure or live)
        return found

    def _later(self, index: int, holders: tuple[int, ...]) -> Later:
        last = ", ".join(self.members.by_number[number].name for number in holders)
        if self.members.still_to_sync():
            return Later(index, _RETRY_S, last)
        gone = [server.name for server in self.members.by_number.values() if server.heard == DEAD]
        return Later(index, 0.0, last or ", ".join(gone))

    def _complaints(self, numbers: list[int], now: float) -> set[int]:
        """A client's complaints: excluded for it, and probed; they change no state."""
        for number in numbers:
            if number in self._probe_at:
                self.counters["complaints"] += 1
                self._probe_at[number] = min(self._probe_at[number], now)
        return set(numbers)

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
                return [Answer(token, self.report.why(message, self._find_live))]
            case Status():
                return [Answer(token, self.report.status(now))]
            case NodeStats():
                return [Answer(token, self.report.node_stats(now))]
            case Ping():
                return [Answer(token, Pong("balancer", 0, self._head.epoch))]
        raise AssertionError(f"no handler for {type(message).__name__}")

    def _server_asked(self, event: ServerAsked, now: float) -> Effects:
        message = event.message
        if isinstance(message, Hello):
            return self._hello(event.token, message, now)
        server = self._by_incarnation(message.incarnation)
        if server is None:
            return [Answer(event.token, Error(Refused.code, "say hello first"))]
        if isinstance(message, Stored):
            applied, fresh = self.sync.stored(server.number, message.incarnation, message.changes, now)
            effects: Effects = [Answer(event.token, applied)]
            for change in fresh:
                effects += self.placement.stored(server.number, change.added, now)
                if change.dropped:
                    self.garbage.reported(server.number)
            return effects
        assert isinstance(message, CopyFailed)
        text = f"{server.name}: {message.text}"
        failed = self.placement.copy_failed(server.number, message.version, text, now)
        return [Answer(event.token, Pong("balancer", 0, self._head.epoch)), *failed]

    def _hello(self, token: int, hello: Hello, now: float) -> Effects:
        knows = self._knows_start(hello.start_epoch, hello.start_nonce)
        refusal = self.members.examine(hello, knows, self.placement.decision)
        if refusal is not None:
            self.counters[f"hello refused: {refusal.code}"] += 1
            return [Answer(token, Error(refusal.code, str(refusal), 1.0)), Log("error", str(refusal))]
        effects: Effects = []
        unknown = self.members.know(hello)
        if unknown is not None:
            effects += self.placement.know(unknown)
            self._add(self.members.by_id[hello.server])
        server, fresh = self.members.welcome(hello, now)
        welcome = Welcome(
            self._head.cluster, self._head.epoch, self._head.nonce, self.placement.decision, server.number,
            self._config.beat_s, self._config.period_s,
        )  # fmt: skip
        effects.append(Answer(token, welcome))
        if fresh:
            effects.append(Log("info", f"{server.name} joined at {server.pages_endpoint}"))
            effects.append(Connect(server.number, server.pages_endpoint, server.jobs_endpoint))
            self.loads.restarted(server.number)
            self.orders.worker(server.number, server.incarnation)
            self._probe_at[server.number] = now
        if fresh or not self.sync.is_live(server.number):
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
            self.loads.beat(server.number, event.beat)
            effects += self.sync.beat(server, event.beat.number, event.beat.sums_digest, now)
            if server.synced != self.sync.is_live(server.number) and server not in changed:
                changed.append(server)
        return effects + self._changed(changed, now)

    def _answered(self, event: Answered, now: float) -> Effects:
        kind, number, asked = event.tag
        message = event.message
        server = self.members.by_number[number]
        if kind == "probe":
            if isinstance(message, Pong):
                self.loads.probed(number, now - asked)
            return []
        if kind == "sums" and isinstance(message, SumsAre):
            effects = self.sync.sums(number, asked, message)
        elif kind == "manifest" and isinstance(message, ManifestPage):
            effects = self.sync.page(number, asked, message, now)
            effects += self.placement.stored(number, message.records, now)
        else:
            self.sync.unanswered(number, asked, now)
            return []
        if self.sync.is_live(number):
            self.garbage.reported(number)
            effects += self._changed([server], now)
        return effects

    def _unanswered(self, event: Unanswered, now: float) -> Effects:
        kind, number, asked = event.tag
        if kind == "probe":
            self.counters["probes unanswered"] += 1
            self.loads.probed(number, _PROBE_TIMEOUT_S)
        else:
            self.sync.unanswered(number, asked, now)
        return []

    def _persisted(self, event: Persisted, now: float) -> Effects:
        return self.placement.persisted(event.number, now)

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
        effects = self._changed(self.members.poll(now), now)
        effects += self.placement.tick(now)
        for server in self.members.by_number.values():
            effects += self.sync.retry(server, now)
            if server.live:
                self.garbage.sweep(server.number, self.placement.decision, now)
        return effects + self._probes(now)

    def _probes(self, now: float) -> Effects:
        due = [number for number, at in self._probe_at.items() if at <= now]
        period = self._config.period_s
        for number in due:
            # At the next of the period's fractions, or after probe_s if that is sooner.
            age = now % period
            waits = [part * period - age for part in self._config.probe_fractions if part * period > age]
            self._probe_at[number] = now + min([self._config.probe_s, *waits])
        return [Ask(number, Ping(), ("probe", number, now), _PROBE_TIMEOUT_S) for number in due]

    def _changed(self, changed: list[Server], now: float) -> Effects:
        """Servers' states changed, or may have: bring everything that depends on them in line."""
        if not changed:
            return []
        effects: Effects = []
        self._live_of.clear()
        for server in changed:
            before = server.synced
            if server.heard == DEAD:
                self.sync.stop(server.number)
                self._probe_at.pop(server.number, None)
                self.orders.worker(server.number, None)
                effects.append(Disconnect(server.number))
                effects.append(Log("warning", f"{server.name} is dead"))
            elif server.incarnation and server.number not in self._probe_at:
                # Back from the dead without a new hello: its links were closed, its picture is old.
                effects.append(Connect(server.number, server.pages_endpoint, server.jobs_endpoint))
                effects += self.sync.begin(server)
                self.orders.worker(server.number, server.incarnation)
                self._probe_at[server.number] = now
            server.synced = self.sync.is_live(server.number)
            if server.synced != before or server.heard == SUSPECT:
                effects.append(Log("info", f"{server.name} is {server.state}"))
            self.loads.open(server.number, server.live)
        return effects + self.placement.servers_changed(now)

    def _add(self, server: Server) -> None:
        self.catalog.add_server(server.number)
        self.loads.add(server.number)
        self.orders.add_server(server.number)
        self.sync.add_server(server.number)

    def check(self) -> None:
        self.placement.check()
        self.orders.check()
        self.sync.check()
        for server in self.members.by_number.values():
            assert (self.loads.download[server.number] < inf) == server.live
