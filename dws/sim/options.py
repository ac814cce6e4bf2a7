"""What a simulated run is like: drawn from its seed, or said.

What lives here: every option with its meaning, how it is drawn, and which
combinations cannot be. What must not: what an option does.
"""

from math import inf
from random import Random
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict, fields, replace

from dws.config import Config
from dws.errors import ConfigError
from dws.limits import SERVERS_MAX
from dws.policy import POLICIES

CRASH, PAUSE, BREAK, CUT, CUT_ONE_WAY = "crash", "pause", "break", "cut", "cut-one-way"
FULL, CATALOG_FULL, SLOW, FSYNC = "full", "catalog-full", "slow", "fsync"
ROT, LOSE_DISK, OLD_CATALOG = "rot", "lose-disk", "old-catalog"

#: Fault → what it is, for people.
FAULTS: Final = {
    CRASH: "a node is killed, and comes back after a while",
    PAUSE: "a node stops for a while, as by SIGSTOP",
    BREAK: "connections of a node are lost",
    CUT: "two nodes cannot reach each other for a while",
    CUT_ONE_WAY: "nothing comes through from one node to another for a while",
    FULL: "a server's disk is full for a while",
    CATALOG_FULL: "the balancer's disk is full for a while, which ends it",
    SLOW: "fsync of a server takes fifty times as long for a while",
    FSYNC: "an fsync fails, which ends the node",
    ROT: "a byte of a stored page changes on its disk",
    LOSE_DISK: "a server is killed and comes back with an empty disk, as a new server",
    OLD_CATALOG: "the balancer is started on an old copy of its catalog, then on the right one again",
}
#: Those of which a cluster survives one at a time: at most one of them is in a run drawn from a seed.
_DAMAGE: Final = (ROT, LOSE_DISK, OLD_CATALOG)

#: Slow clocks run fast, so that a run of some ten seconds sees them all.
HASTY: Final = Config(
    down_dead_s=1.0, dead_s=2.0, garbage_s=1.0, stage_idle_s=3.0, job_reissue_s=0.5, period_s=3.0,
    probe_s=1.0, behind_s=0.5, rebuild_quiet_s=1.0, scrub_every_s=6.0,
)  # fmt: skip


class Options(Struct, frozen=True, kw_only=True):
    servers: int = 3
    clients: int = 3
    copies: int = 2
    pages: int = 6
    """Names that clients use."""
    policy: str = "least-load"
    seconds: float = 20.0
    """Of the phase with work and faults."""
    calm_s: float = 120.0
    """Within this time after the faults the cluster must have come to rest."""
    think_s: float = 0.5
    """Mean pause of a client between two calls."""
    faults: tuple[str, ...] = ()
    fault_s: float = 2.0
    """Mean time between two faults; inf: none."""
    delay_s: float = 0.002
    """The longest time a message takes."""
    late_s: float = 0.0
    """The longest additional time, of one message in ten."""
    fsync_s: float = 0.02
    """The longest time an fsync takes."""
    hwm: int = 1000
    """High-water mark of all sockets but those of heartbeats."""
    log_max: int = 1000
    """Changes that a server can report one by one."""
    ports_change: bool = False
    """Whether a server that comes back listens elsewhere."""
    large: float = 0.02
    """Share of puts of a page over 1 MiB."""

    def __post_init__(self) -> None:
        unknown = [fault for fault in self.faults if fault not in FAULTS]
        for possible, text in (
            (not unknown, f"faults: {', '.join(unknown)} is none of {', '.join(FAULTS)}"),
            (1 <= self.servers <= SERVERS_MAX, f"servers: {self.servers} is not within 1 and {SERVERS_MAX}"),
            (1 <= self.clients <= 100, f"clients: {self.clients} is not within 1 and 100"),
            (1 <= self.copies <= 16, f"copies: {self.copies} is not within 1 and 16"),
            (
                self.copies <= self.servers,
                f"copies: {self.copies} copies need as many servers, there are {self.servers}",
            ),
            (self.pages >= 4, f"pages: {self.pages} is less than the 4 of the largest batch"),
            (
                self.policy in POLICIES,
                f"policy: {self.policy!r} is none of {', '.join(sorted(POLICIES))}",
            ),
            (0 < self.seconds <= 1e6, f"seconds: {self.seconds:g} is not within 0 and 1,000,000"),
            (0 < self.calm_s <= 1e6, f"calm: {self.calm_s:g} is not within 0 and 1,000,000"),
            (self.think_s > 0, f"think: {self.think_s:g} is not above 0"),
            (self.fault_s > 0, f"fault-every: {self.fault_s:g} is not above 0"),
            (0 < self.delay_s < inf, f"delay: {self.delay_s:g} is not above 0"),
            (0 <= self.late_s < inf, f"late: {self.late_s:g} is not at least 0"),
            (0 < self.fsync_s < inf, f"fsync: {self.fsync_s:g} is not above 0"),
            (self.hwm >= 1, f"hwm: {self.hwm} is not at least 1"),
            (self.log_max >= 1, f"log: {self.log_max} is not at least 1"),
            (0 <= self.large <= 1, f"large: {self.large:g} is not within 0 and 1"),
            (
                LOSE_DISK not in self.faults or self.copies >= 2,
                "faults: lose-disk loses the only copy where copies is 1",
            ),
            (ROT not in self.faults or self.copies >= 2, "faults: rot takes the only copy where copies is 1"),
        ):
            if not possible:
                raise ConfigError(text)

    @property
    def config(self) -> Config:
        return replace(HASTY, policy=self.policy, copies=self.copies)

    def text(self) -> str:
        """All options, in one line; those of a seed are printed before it runs."""
        return " ".join(f"{name}={_plain(value)}" for name, value in asdict(self).items())


def drawn(seed: int, **said: Any) -> Options:
    """The options of a seed; those that are said stand in place of what was drawn.

    Raises ConfigError if they cannot be together, saying which.
    """
    rng = Random(f"options {seed}")
    said = {name: value for name, value in said.items() if value is not None}
    unknown = sorted(set(said) - {field.name for field in fields(Options)})
    if unknown:
        raise ConfigError(f"no such option: {', '.join(unknown)}")
    servers = rng.choice([3, 3, 3, 4, 5])
    mixture = rng.choice([
        [CRASH], [CRASH, PAUSE], [CRASH, PAUSE, BREAK], [CUT, CUT_ONE_WAY, BREAK], [PAUSE, SLOW, BREAK],
        [CRASH, FSYNC, FULL, CATALOG_FULL], [fault for fault in FAULTS if fault not in _DAMAGE],
        [fault for fault in FAULTS if fault not in _DAMAGE],
    ])  # fmt: skip
    damage = rng.choice([[], [], [], *([each] for each in _DAMAGE)])
    values: dict[str, Any] = {
        "servers": servers,
        "clients": 3,
        "copies": 3 if servers > 3 and rng.random() < 0.2 else 2,
        "policy": rng.choice(sorted(POLICIES)),
        "seconds": rng.choice([4.0, 8.0, 8.0, 16.0]),
        "think_s": rng.choice([0.1, 0.2, 0.4]),
        "faults": (*mixture, *damage),
        "fault_s": rng.choice([0.4, 1.0, 2.0, 10.0]),
        "delay_s": rng.choice([0.001, 0.01]),
        "late_s": rng.choice([0.0, 0.0, 0.3, 3.0]),
        "fsync_s": rng.choice([0.001, 0.02, 0.5]),
        "hwm": rng.choice([1000, 1000, 1000, 4, 1]),
        "log_max": rng.choice([3, 1000]),
        "ports_change": rng.random() < 0.5,
    }
    # What is said fits what is drawn, unless what is said does not fit itself.
    if "servers" in said:
        values["copies"] = max(1, min(values["copies"], said["servers"]))
    if "copies" in said:
        values["servers"] = max(values["servers"], min(said["copies"], SERVERS_MAX))
    values |= said
    if values["copies"] == 1 and "faults" not in said:
        values["faults"] = tuple(fault for fault in values["faults"] if fault not in (ROT, LOSE_DISK))
    return Options(**values)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
