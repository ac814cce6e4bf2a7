"""What a load would do under one policy or another, with servers that nobody has yet.

What lives here: a study's options and their checks, and the run of each policy
over the same demand. What must not: a policy, or how loads are made: dws.policy
and dws.load are what production runs. The model of servers is farm.py's, that of
places and repair layout.py's, that of demand demand.py's.
"""

from array import array
from collections.abc import Iterator
from itertools import repeat
from random import Random
from typing import Final

import msgspec
from msgspec import Struct

from dws.config import Config
from dws.errors import ConfigError
from dws.limits import BATCH_MAX_BYTES, BATCH_MAX_PAGES, SERVERS_MAX
from dws.load import Loads
from dws.policy import POLICIES, Policy
from dws.sim import layout
from dws.sim.demand import (
    PAGES_MAX,
    REQUESTS_MAX,
    Demand,
    Progress,
    drawn,
    most_wanted_share,
    zipf_exponent,
)
from dws.sim.farm import Farm, percentile
from dws.sim.layout import Mended, Placed

COPIES_MAX: Final = 16
#: What is drawn when nobody says how much: this many requests, or this long if that is less.
_REQUESTS: Final = 1_000_000
_DURATION_S: Final = 120.0
_REQUESTS_MIN: Final = 20_000
#: This share of the requests, at the beginning, is not measured: queues fill, loads become known.
_WARM_UP: Final = 0.1
_LOST_SHARE: Final = 0.01
_PROGRESS_EVERY: Final = 20_000
SERVICES: Final = ("exponential", "constant")


class Study(Struct, frozen=True, kw_only=True):
    """What to ask. Raises ConfigError, naming the option, if it cannot be."""

    servers: int = 5
    pages: int = 10_000
    copies: int = 2
    policies: tuple[str, ...] = tuple(POLICIES)
    rate: float | None = None
    """Requests a second, each for one page; None: 70 % of what the servers can serve."""
    skew: str = "uniform"
    requests: int | None = None
    """None: a million, or two minutes of them if that is less."""
    workers: int = 1
    """Requests that a server serves at once."""
    service_s: float = 1e-3
    """What one takes, on average."""
    service: str = "exponential"
    page_bytes: int = 16 << 10
    batch: int = BATCH_MAX_PAGES
    """Pages of an upload."""
    copy_rate_bytes: float = 100e6
    """What an idle server sends or takes of copies, in bytes a second."""
    seed: int = 1

    def __post_init__(self) -> None:
        unknown = [policy for policy in self.policies if policy not in POLICIES]
        for possible, text in (
            (
                1 <= self.servers <= SERVERS_MAX,
                f"--servers {self.servers}: 1 to {SERVERS_MAX:,} are possible",
            ),
            (1 <= self.pages <= PAGES_MAX, f"--pages {self.pages}: 1 to {PAGES_MAX:,} are possible"),
            (1 <= self.copies <= COPIES_MAX, f"--copies {self.copies}: 1 to {COPIES_MAX} are possible"),
            (
                self.copies <= self.servers,
                f"--copies {self.copies} of each page need as many servers, --servers says {self.servers}",
            ),
            (
                bool(self.policies) and not unknown,
                f"--policy {', '.join(map(repr, unknown)) or 'none'}: there are {', '.join(POLICIES)}",
            ),
            (
                self.rate is None or 0 < self.rate <= 1e9,
                f"--rate {self.rate}: more than 0 is needed, 1e9 at most",
            ),
            (
                self.requests is None or 1 <= self.requests <= REQUESTS_MAX,
                f"--requests {self.requests}: 1 to {REQUESTS_MAX:,} are possible",
            ),
            (1 <= self.workers <= 4096, f"--workers {self.workers}: 1 to 4,096 are possible"),
            (1e-6 <= self.service_s <= 60, f"--service-time {self.service_s} s: 1 µs to 60 s are possible"),
            (self.service in SERVICES, f"--service {self.service!r} is none of {', '.join(SERVICES)}"),
            (
                1 <= self.page_bytes <= BATCH_MAX_BYTES,
                f"--page-size {self.page_bytes}: 1 to {BATCH_MAX_BYTES:,} bytes are possible",
            ),
            (
                1 <= self.batch <= BATCH_MAX_PAGES,
                f"--batch {self.batch}: 1 to {BATCH_MAX_PAGES:,} are possible",
            ),
            (
                1e3 <= self.copy_rate_bytes <= 1e12,
                f"--copy-rate {self.copy_rate_bytes:g}: 1 kB/s to 1 TB/s are possible",
            ),
        ):
            if not possible:
                raise ConfigError(text)
        zipf_exponent(self.skew)
        self._check_rate(self.wanted_rate, "--rate")

    @property
    def lost(self) -> int:
        """Servers that are lost in the end."""
        return max(1, round(self.servers * _LOST_SHARE))

    def _check_rate(self, rate: float, what: str) -> None:
        if rate >= self.capacity:
            raise ConfigError(
                f"{what} {rate:,.0f} is over capacity: {self.servers:,} servers × {self.workers} workers /"
                f" {self.service_s * 1e3:g} ms = {self.capacity:,.0f} requests a second. Ask for less, or"
                " take more --servers, more --workers, a shorter --service-time"
            )

    @property
    def capacity(self) -> float:
        """Requests a second that all servers together can serve."""
        return self.servers * self.workers / self.service_s

    @property
    def wanted_rate(self) -> float:
        return 0.7 * self.capacity if self.rate is None else self.rate

    @property
    def wanted_requests(self) -> int:
        if self.requests is not None:
            return self.requests
        return max(_REQUESTS_MIN, min(_REQUESTS, int(self.wanted_rate * _DURATION_S)))

    @property
    def config(self) -> Config:
        return Config(copies=self.copies)

    def check_demand(self, demand: Demand) -> None:
        """ConfigError if a recording's requests cannot be served."""
        self._check_rate(demand.rate, "the recording's rate of")


class Outcome(Struct):
    """One policy. Shares are of a server's time: above 1 if it was given more than it can do."""

    policy: str
    max_over_mean: float
    """Of the work that servers were given."""
    jain: float
    """1: all servers the same; 1/servers: one has all."""
    busiest: float
    overloaded: int
    """Servers that were given more than they can do: their queues grow for as long as the load lasts."""
    wait_p50_s: float
    wait_p99_s: float
    wait_p999_s: float
    wait_mean_s: float
    repair: Mended


class Findings(Struct):
    study: Study
    requests: int
    rate: float
    duration_s: float
    load: float
    """The share of all servers' time that the demand takes."""
    most_wanted: float
    """The share of all requests that are for the most wanted page."""
    holders_needed: int
    """So many copies of that page could serve all who want it."""
    outcomes: list[Outcome]


def run(study: Study, progress: Progress, recorded: Demand | None = None) -> Findings:
    """Every policy over the same demand. progress: called with what is done and its share now and then."""
    demand = recorded or _demand(study, progress)
    study.check_demand(demand)
    if demand.page_count != study.pages:
        study = msgspec.structs.replace(study, pages=demand.page_count)
    rng = Random(f"{study.seed}/placement")
    placed = layout.place(
        study.servers, study.pages, study.batch, study.page_bytes, study.config, rng, progress
    )
    outcomes = [_outcome(study, policy, demand, placed, progress) for policy in study.policies]
    share = _most_wanted(study, demand, recorded)
    return Findings(
        study=study,
        requests=len(demand),
        rate=demand.rate,
        duration_s=demand.duration_s,
        load=demand.rate / study.capacity,
        most_wanted=share,
        holders_needed=int(share * demand.rate * study.service_s / study.workers) + 1,
        outcomes=outcomes,
    )


def _demand(study: Study, progress: Progress) -> Demand:
    rng = Random(f"{study.seed}/demand")
    return drawn(study.wanted_rate, study.wanted_requests, study.pages, study.skew, rng, progress)


def _most_wanted(study: Study, demand: Demand, recorded: Demand | None) -> float:
    if recorded is None:
        return most_wanted_share(study.skew, study.pages)
    counts = array("L", bytes(array("L").itemsize * demand.page_count))
    for page in demand.pages:
        counts[page] += 1
    return max(counts) / len(demand)


def _outcome(study: Study, policy: str, demand: Demand, placed: list[Placed], progress: Progress) -> Outcome:
    loads = Loads(study.config)
    rng = Random(f"{study.seed}/{policy}")
    phases = Random(f"{study.seed}/phases")
    farm = Farm(study.workers, loads, study.config, [phases.random() for _ in range(study.servers)])
    for each in placed:
        for number in each.holders:
            farm.holds(number, each.pages, each.pages * study.page_bytes)
    waits, work = _read(study, demand, placed, farm, loads, POLICIES[policy](), rng, policy, progress)
    measured_s = demand.duration_s - _measured_from(demand)
    busy = [each / (measured_s * study.workers) if measured_s > 0 else 0.0 for each in work]
    mean = sum(busy) / len(busy)
    squares = sum(share * share for share in busy)
    lost = set(Random(f"{study.seed}/lost").sample(range(study.servers), study.lost))
    mended = layout.mend(
        placed, lost, loads, busy, study.page_bytes, study.copy_rate_bytes, study.config, rng
    )
    rising = array("d", sorted(waits))
    return Outcome(
        policy=policy,
        max_over_mean=max(busy) / mean if mean else 1.0,
        jain=sum(busy) ** 2 / (len(busy) * squares) if squares else 1.0,
        busiest=max(busy),
        overloaded=sum(share >= 1 for share in busy),
        wait_p50_s=percentile(rising, 0.5),
        wait_p99_s=percentile(rising, 0.99),
        wait_p999_s=percentile(rising, 0.999),
        wait_mean_s=sum(rising) / len(rising) if rising else 0.0,
        repair=mended,
    )


def _measured_from(demand: Demand) -> float:
    """When the warm-up is over, in virtual seconds."""
    return demand.times[int(len(demand) * _WARM_UP)]


def _read(
    study: Study,
    demand: Demand,
    placed: list[Placed],
    farm: Farm,
    loads: Loads,
    policy: Policy,
    rng: Random,
    name: str,
    progress: Progress,
) -> "tuple[array[float], list[float]]":
    """Send every request as Balancer.locate would: (waits, each server's work in s) of what is measured."""
    batch = study.batch
    download, assign = loads.download, loads.assign
    clock, serve = farm.clock, farm.serve
    waits = array("d")
    work = [0.0] * study.servers
    warm = int(len(demand) * _WARM_UP)
    service = _services(study, len(demand))
    due = clock.next_at()
    for index, (at, page) in enumerate(zip(demand.times, demand.pages, strict=True)):
        if at >= due:
            clock.run(at)
            due = clock.next_at()
        holders = placed[page // batch].holders
        best = policy(holders, download, rng)[0] if len(holders) > 1 else holders[0]
        assign(best, 1, at)
        took_s = next(service)
        wait_s = serve(best, at, took_s)
        if index >= warm:
            waits.append(wait_s)
            work[best] += took_s
        if index % _PROGRESS_EVERY == 0:
            progress(name, index / len(demand))
    return waits, work


def _services(study: Study, count: int) -> Iterator[float]:
    """Service times in the order of the requests: every policy meets the same."""
    if study.service == "constant":
        return repeat(study.service_s)
    draw = Random(f"{study.seed}/service").expovariate
    rate = 1 / study.service_s
    return (draw(rate) for _ in range(count))
