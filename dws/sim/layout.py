"""Where pages lie before a what-if study, and what is copied when servers are lost.

What lives here: uploads placed as a balancer places them, and repair as a matter
of bandwidth. What must not: reading (farm.py), and the choice of servers itself:
that is dws.load.Loads.upload and dws.policy.choose_targets.

Pages come in uploads of `batch` pages; all pages of an upload lie on the same
servers, since it is stored as one. After a loss the pages that lack a copy are
copied from live holders to servers chosen as for an upload, under the bounds of
dws.repair: so many bytes an order, so many orders to and from a server, so many
bytes a second in all. A server sends and takes copy_rate_bytes a second of copies,
less while it is busy with reads.
"""

from collections import Counter
from heapq import heappop, heappush
from random import Random
from typing import Final

from msgspec import Struct

from dws.config import Config
from dws.load import Loads
from dws.policy import choose_targets
from dws.sim.demand import Progress

#: However busy with reads, a server leaves this share of its bandwidth to copies: its writer thread and its
#: loop take turns.
_COPY_SHARE_MIN: Final = 0.1
_ORDER_PAGES: Final = 256


class Placed(Struct, gc=False):
    """Pages that lie on the same servers."""

    pages: int
    holders: tuple[int, ...]  # ascending, as the catalog has them


class Mended(Struct):
    """What a loss of servers meant. seconds: from the moment of the loss until the last copy is made."""

    servers: int
    pages_short: int  # had lost a copy, and had one left
    pages_gone: int  # had lost all
    bytes_copied: int
    detected_s: float
    seconds: float


def place(
    servers: int, pages: int, batch: int, page_bytes: int, config: Config, rng: Random, progress: Progress
) -> list[Placed]:
    """Upload all pages to empty servers, batch by batch."""
    loads = Loads(config)
    numbers = list(range(servers))
    for number in numbers:
        loads.add(number)
        loads.open(number, True, 0.0)
    placed: list[Placed] = []
    for first in range(0, pages, batch):
        count = min(batch, pages - first)
        holders = choose_targets(loads.upload(numbers), config.copies, rng)
        for number in holders:
            loads.reserve(number, count * page_bytes)
        placed.append(Placed(count, tuple(sorted(holders))))
        if len(placed) % 100 == 0:
            progress("placing pages", first / pages)
    return placed


def mend(
    placed: list[Placed],
    lost: set[int],
    loads: Loads,
    busy: list[float],
    page_bytes: int,
    copy_rate_bytes: float,
    config: Config,
    rng: Random,
) -> Mended:
    """Copy what `lost` servers held. busy: the share of each server's time that reads take."""
    hurt = [each for each in placed if not lost.isdisjoint(each.holders)]
    short = [each for each in hurt if not lost.issuperset(each.holders)]
    rates = [copy_rate_bytes * max(_COPY_SHARE_MIN, 1 - share) for share in busy]
    work = _Mending(lost, loads, rates, config, rng)
    # The most endangered first.
    for each in sorted(short, key=lambda each: len(lost.intersection(each.holders)), reverse=True):
        work.add(each, page_bytes)
    seconds = work.run()
    return Mended(
        servers=len(lost),
        pages_short=sum(each.pages for each in short),
        pages_gone=sum(each.pages for each in hurt) - sum(each.pages for each in short),
        bytes_copied=work.bytes_copied,
        detected_s=config.down_dead_s,
        seconds=config.down_dead_s + seconds,
    )


class _Short(Struct):
    """Pages that lack a copy and lie on the same servers."""

    holders: list[int]  # that live
    orders: list[int]  # bytes of each


class _Mending:
    """All orders of a repair, bounded as dws.repair bounds them."""

    def __init__(self, lost: set[int], loads: Loads, rates: list[float], config: Config, rng: Random) -> None:
        self.bytes_copied = 0
        self._lost = lost
        self._live = [number for number in loads.servers if number not in lost]
        self._loads = loads
        self._rates = rates
        self._config = config
        self._rng = rng
        self._waiting: list[_Short] = []
        self._sending = Counter[int]()  # orders under way, by source
        self._taking = Counter[int]()  # by target
        self._sent_at = [0.0] * len(rates)  # when each server has sent, and taken, all it was told to
        self._taken_at = [0.0] * len(rates)
        self._under_way: list[tuple[float, int, int]] = []  # a heap: (done at, source, target)

    def add(self, placed: Placed, page_bytes: int) -> None:
        """What is missing of these pages."""
        holders = [number for number in placed.holders if number not in self._lost]
        wanted = min(self._config.copies, len(self._live)) - len(holders)
        a_time = max(1, min(_ORDER_PAGES, self._config.repair_job_bytes // page_bytes))
        whole, rest = divmod(placed.pages, a_time)
        orders = ([a_time * page_bytes] * whole + [rest * page_bytes] * (rest > 0)) * wanted
        if orders:
            self._waiting.append(_Short(holders, orders))

    def run(self) -> float:
        """Do it; how long it takes."""
        now = 0.0
        while self._waiting or self._under_way:
            rate_free_at = self.bytes_copied / self._config.repair_bytes_s
            if self._waiting and now >= rate_free_at and self._order_one(now):
                continue
            if self._under_way and (now >= rate_free_at or self._under_way[0][0] <= rate_free_at):
                now, source, target = heappop(self._under_way)
                self._sending[source] -= 1
                self._taking[target] -= 1
            else:
                now = rate_free_at
        return now

    def _order_one(self, now: float) -> bool:
        """Order the first that may be: no server sends or takes more than repair_jobs at once."""
        most = self._config.repair_jobs
        free = [number for number in self._live if self._taking[number] < most]
        for place, short in enumerate(self._waiting):
            sources = [number for number in short.holders if self._sending[number] < most]
            targets = [number for number in free if number not in short.holders]
            if sources and targets:
                source = min(sources, key=lambda number: (self._sending[number], self._sent_at[number]))
                target = choose_targets(self._loads.upload(targets), 1, self._rng)[0]
                self._begin(short.orders.pop(), source, target, now)
                if not short.orders:
                    del self._waiting[place]
                return True
        return False

    def _begin(self, size_bytes: int, source: int, target: int, now: float) -> None:
        self._loads.reserve(target, size_bytes)
        self.bytes_copied += size_bytes
        sent_at = max(self._sent_at[source], now) + size_bytes / self._rates[source]
        taken_at = max(self._taken_at[target], now) + size_bytes / self._rates[target]
        self._sent_at[source] = sent_at
        self._taken_at[target] = done_at = max(sent_at, taken_at)
        self._sending[source] += 1
        self._taking[target] += 1
        heappush(self._under_way, (done_at, source, target))
