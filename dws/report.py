"""What people ask the balancer: stat, why, status.

What lives here: answers that only read the parts. What must not: any change.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dws.config import Config
from dws.membership import ALIVE, Server
from dws.messages import (
    Because,
    Choice,
    ClusterStatus,
    Holder,
    NodeStatsAre,
    PageStat,
    RepairStatus,
    ServerStatus,
    Stat,
    Stated,
    Why,
)
from dws.policy import POLICIES
from dws.store import CatalogHead

if TYPE_CHECKING:
    from dws.balancer import Balancer


class Report:
    def __init__(self, balancer: "Balancer", head: CatalogHead, config: Config, now: float) -> None:
        self._balancer = balancer
        self._head = head
        self._config = config
        self._started = now

    def stat(self, request: Stat) -> Stated:
        return Stated([self._page_stat(name) for name in request.names])

    def _page_stat(self, name: str) -> PageStat | None:
        entry = self._balancer.catalog.pages.get(name)
        if entry is None:
            return None
        servers = [self._balancer.members.by_number[number] for number in entry.holders]
        return PageStat(entry.record(name), [Holder(server.name, server.state) for server in servers])

    def why(self, request: Why, live_of: Callable[[tuple[int, ...]], tuple[int, ...]], now: float) -> Because:
        balancer = self._balancer
        entry = balancer.catalog.pages.get(request.name)
        holders = entry.holders if entry else ()
        live = live_of(holders)
        chosen = ""
        if live:
            order = POLICIES["least-load"]()(live, balancer.loads.download, balancer.rng)
            chosen = balancer.members.by_number[order[0]].name
        servers = list(balancer.members.by_id.values())
        uploads = balancer.loads.upload([server.number for server in servers if server.state == ALIVE])
        choices = [self._choice(server, holders, live, uploads, now) for server in servers]
        return Because(self._config.policy, entry.version if entry else 0, chosen, choices)

    def _choice(
        self,
        server: Server,
        holders: tuple[int, ...],
        live: tuple[int, ...],
        uploads: dict[int, float],
        now: float,
    ) -> Choice:
        loads = self._balancer.loads
        load = loads.servers[server.number]
        holds = server.number in holders
        if server.number in live:
            reason = "eligible"
        elif not holds:
            reason = "does not hold this version"
        else:
            reason = f"is {server.state}"
        waiting, assigned = loads.pages_left(server.number, now)
        return Choice(
            server.name, server.state, holds,
            loads.download_load_s(server.number, now) if server.live else None,
            uploads.get(server.number), load.rtt_s, waiting, assigned,
            load.per_page_s, load.beat.workers if load.beat else 0, reason,
        )  # fmt: skip

    def status(self, now: float) -> ClusterStatus:
        balancer = self._balancer
        copies = [0, 0, 0, 0]
        for (_, holders), group in balancer.catalog.groups.items():
            live = sum(balancer.members.by_number[number].live for number in holders)
            copies[min(live, 3)] += group.pages
        servers = list(balancer.members.by_id.values())
        uploads = balancer.loads.upload([server.number for server in servers if server.state == ALIVE])
        return ClusterStatus(
            self._head.cluster, self._head.epoch, balancer.decisions.durable, self._config.policy,
            self._config.copies, len(balancer.catalog.pages), balancer.catalog.bytes_visible, copies,
            len(balancer.placement.open_batches), balancer.garbage.count(), now - self._started,
            balancer.counters["names looked up"],
            [self._server_status(server, uploads, now) for server in servers], self._counters(),
            balancer.lookup.choices.recent(lambda number: balancer.members.by_number[number].name, now),
            self._repair(now),
        )  # fmt: skip

    def _repair(self, now: float) -> RepairStatus:
        balancer = self._balancer
        status = balancer.repair.status(now)
        status.surplus = balancer.surplus.count()
        status.surplus_dropped = balancer.surplus.dropped
        beats = [balancer.loads.servers[server.number].beat for server in balancer.members.by_id.values()]
        status.damaged = sum(beat.damaged for beat in beats if beat is not None)
        return status

    def node_stats(self, now: float) -> NodeStatsAre:
        """The balancer serves no pages: it has counters only."""
        period_s = self._config.period_s
        counters = {name: float(count) for name, count in self._counters().items()}
        return NodeStatsAre("balancer", period_s, (now - self._started) % period_s, counters, [], [])

    def _counters(self) -> dict[str, int]:
        balancer = self._balancer
        counters = dict(balancer.counters)
        counters["orders open"] = balancer.orders.open_orders()
        counted = {"heartbeat": balancer.members.counters, **balancer.counted_elsewhere}
        for where, counts in counted.items():
            counters |= {f"{where} {name}": count for name, count in counts.items()}
        return counters

    def _server_status(self, server: Server, uploads: dict[int, float], now: float) -> ServerStatus:
        balancer = self._balancer
        load = balancer.loads.servers[server.number]
        beat = load.beat
        spared = balancer.garbage.spared.get(server.number, 0)
        notes = [server.ailing] if server.ailing else []
        notes += [f"keeps {spared} records that no catalog of this cluster explains"] if spared else []
        to_move = balancer.maintenance.to_move(server)
        return ServerStatus(
            number=server.number,
            name=server.name,
            state=server.state,
            endpoint=server.pages_endpoint,
            incarnation=server.incarnation,
            pages=balancer.catalog.pictures[server.number].count,
            bytes_stored=beat.bytes_stored if beat else 0,
            bytes_free=max(0, balancer.loads.bytes_free(server.number)),
            visits=beat.visits if beat else 0,
            visits_last_period=beat.visits_last if beat else 0,
            served=beat.served if beat else 0,
            failed=beat.failed if beat else 0,
            waiting=beat.waiting if beat else 0,
            service_s=load.per_page_s,
            rtt_s=load.rtt_s,
            download_load_s=balancer.loads.download_load_s(server.number, now) if server.live else -1.0,
            upload_load=uploads.get(server.number, -1.0),
            cpu_share=beat.cpu_share if beat else 0.0,
            bytes_sent=beat.bytes_sent if beat else 0,
            last_beat_age_s=balancer.members.silence_s(server, now),
            note="; ".join(notes),
            http_endpoint=server.http_endpoint,
            draining=server.draining,
            damaged=beat.damaged if beat else 0,
            to_move=to_move[0],
            to_move_bytes=to_move[1],
        )
