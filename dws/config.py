"""Every setting: its meaning, the formula it enters, and what is traded.

What lives here: one validated structure, and presets that derive from it. What
must not: reading files, flags or the environment (cli/), and bounds that both
ends must agree on (limits.py).
"""

import msgspec
from msgspec import Struct

from dws.errors import ConfigError
from dws.limits import BATCH_MAX_BYTES, CHUNK_BYTES, FETCH_MAX_BYTES, GIB, KIB, MIB
from dws.policy import POLICIES


class Config(Struct, frozen=True, kw_only=True):
    # -- what the cluster promises ------------------------------------------------

    copies: int = 2
    """Servers that must have a page fsynced before put returns, unless a put says
    otherwise. One more survives one more loss and costs one more write."""

    policy: str = "least-load"
    """How a holder is chosen for a lookup: a name in dws.policy.POLICIES."""

    # -- watching ---------------------------------------------------------------------

    beat_s: float = 0.25
    """Time between two heartbeats. Smaller shows load and hangs sooner; each beat
    costs a server and the balancer about 20 µs."""

    suspect_s: float = 0.75
    """Silence after which a server gets no lookups while another holder lives. At
    least 2 × beat_s, or one late beat accuses."""

    down_dead_s: float = 3.0
    """How long a server's connection may be down before it is dead. Longer than a
    restart takes, or each restart causes copying."""

    dead_s: float = 15.0
    """Silence after which a server whose connection stands is dead. Smaller repairs
    a hung server's pages sooner, and mistakes a long pause for a death."""

    probe_fractions: tuple[float, ...] = (1 / 3, 2 / 3)
    """Where in each statistics period a response time is measured at the least."""

    probe_s: float = 2.0
    """The longest time between two probes of one server's response time."""

    period_s: float = 30.0
    """The statistics period: visits and bytes are counted per page and period."""

    # -- writes ----------------------------------------------------------------------------

    stage_idle_s: float = 30.0
    """An upload without progress for this long is dropped by its primary."""

    garbage_s: float = 60.0
    """How long a record stays after the catalog stopped naming it, so that readers
    who were told of it finish. Longer keeps more disk in use under overwrites."""

    batch_memory_s: float = 600.0
    """How long after its deadline a batch's outcome can be asked for."""

    job_window: int = 8
    """Copy and drop jobs on the way to one server at once."""

    job_reissue_s: float = 10.0
    """When a job whose effect was not reported is issued again. Longer than copying
    BATCH_MAX_BYTES takes; a copy that still runs ignores the second order."""

    behind_s: float = 1.0
    """How long a server's changes may be ahead of the balancer's picture, with none
    coming, before the balancer compares manifests."""

    rebuild_quiet_s: float = 10.0
    """--rebuild ends when every server that came was read and no new one has come for
    this long. Longer waits for servers that start late; what they hold and the
    rebuilt catalog does not name is kept and reported, but served only if put again."""

    rebuild_absent_s: float = 30.0
    """How long --rebuild waits for a server that came and then sends nothing of its
    manifest; then it is left out, like one that came late. Longer than a restart
    takes; a server that dies for good costs a rebuild this long."""

    open_batches_max: int = 10_000
    """Batches reserved and not decided at once; past it Reserve is told to try again."""

    open_batches_bytes: int = 256 * MIB
    """What their names and records may take of the balancer's memory, about; past it
    Reserve is told to try again, too. At least a batch with the longest names, 2 MiB."""

    # -- repair -------------------------------------------------------------------------------------

    repair_bytes_s: int = 256 * MIB
    """How fast pages are copied again after a loss, in all. More has two copies of
    everything sooner; less leaves readers more of the disks and the network."""

    repair_job_bytes: int = 2 * MIB
    """Pages that are copied again by one order, unless one page is larger. More gives
    each fsync more to do; less holds a source's loop for a shorter time."""

    repair_jobs: int = 1
    """Such orders on the way to one server at once, and from one server. More hides the
    way between distant servers; fewer leave readers more."""

    sick_s: float = 3.0
    """How long a server's disk may owe an answer to what waits for it until the server
    is suspect, though it beats. Longer than its slowest good fsync."""

    # -- integrity ------------------------------------------------------------------------------------

    scrub_bytes_s: int = 16 * MIB
    """How fast a server reads its pages again to compare them with their digests; an
    eighth of it while readers wait, 0 for never. A whole round takes bytes stored /
    scrub_bytes_s: less finds damage later, more takes from readers' disk and CPU."""

    scrub_every_s: float = 86_400.0
    """From the beginning of one such round to that of the next, at the least. Damage
    of both copies of a page within one round is a loss."""

    verify_bytes_s: int = 64 * MIB
    """How fast pages are read again that somebody asks about or doubts. More drops
    surplus copies and replaces damaged ones sooner."""

    disk_check_s: float = 5.0
    """How often a server writes and reads a little, whatever else it does, to know that
    its disk works. A disk that hangs while nobody uses it shows after disk_check_s +
    sick_s; each check costs an fsync."""

    set_aside_bytes: int = 4 * GIB
    """What damaged pages that were set aside may take of the disk; the oldest go first,
    the last one stays."""

    walk_s: float = 5.0
    """How long a store may be looked through before it is served after an unclean stop.
    About 200,000 records are read a second; what time does not suffice for is left to the
    scrubber. Longer finds more before the first reader does, and starts later."""

    # -- a server's resources -------------------------------------------------------------------

    quota_bytes: int = 1024 * GIB
    """The most a server stores; the disk's free space bounds it too."""

    free_reserve: float = 0.05
    """Share of the disk that uploads leave free: a server is eligible for a batch if
    free − reserve × (free + stored) ≥ the batch's bytes."""

    staged_memory_bytes: int = 128 * MIB
    """Staged small pages in memory, over all uploads of one server. At least two
    batches, so that one slow upload does not stop the others."""

    staged_memory_peer_bytes: int = 64 * MIB
    """The same for one peer."""

    write_queue_bytes: int = 32 * MIB
    """What may wait for the writer thread in each class of work. With the chunks in
    flight this bounds a server's memory; smaller lowers throughput of large pages."""

    copy_credit_bytes: int = 8 * MIB
    """Bytes on the way for one copy between servers."""

    copies_at_once: int = 4
    """Copy jobs that one server works on at a time; the others wait."""

    # -- the weights of upload load (see load.py) --------------------------------------------------

    weight_stored: float = 1.0
    weight_visits: float = 1.0
    weight_rtt: float = 1.0

    # -- fairness of the balancer's loop ------------------------------------------------------------

    round_clients: int = 64
    round_servers: int = 256
    round_beats: int = 1024
    """Messages taken from each class in one round of the loop. What clients may
    delay a beat by is round_clients × about 20 µs."""

    def __post_init__(self) -> None:
        for wanted, relation in (
            (1 <= self.copies <= 16, "1 <= copies <= 16"),
            (self.policy in POLICIES, f"policy one of {', '.join(sorted(POLICIES))}"),
            (self.beat_s > 0, "beat_s > 0"),
            (2 * self.beat_s <= self.suspect_s, "suspect_s >= 2 * beat_s"),
            (self.suspect_s < self.down_dead_s <= self.dead_s, "suspect_s < down_dead_s <= dead_s"),
            (self.period_s >= 4 * self.beat_s, "period_s >= 4 * beat_s"),
            (0 < self.probe_s <= self.period_s, "0 < probe_s <= period_s"),
            (all(0 < part < 1 for part in self.probe_fractions), "probe_fractions between 0 and 1"),
            (self.stage_idle_s > 0 and self.garbage_s > 0, "stage_idle_s and garbage_s > 0"),
            (self.rebuild_quiet_s > 0 and self.behind_s > 0, "rebuild_quiet_s and behind_s > 0"),
            (self.rebuild_absent_s > 0, "rebuild_absent_s > 0"),
            (self.batch_memory_s >= 0 and self.quota_bytes >= 0, "batch_memory_s and quota_bytes >= 0"),
            (min(self.open_batches_max, self.copies_at_once) >= 1, "open_batches_max, copies_at_once >= 1"),
            (self.job_window >= 1 and self.job_reissue_s > 0, "job_window >= 1 and job_reissue_s > 0"),
            (0 <= self.free_reserve < 1, "0 <= free_reserve < 1"),
            (self.open_batches_bytes >= 2 * MIB, "open_batches_bytes >= 2 MiB"),
            (self.repair_bytes_s >= MIB, "repair_bytes_s >= 1 MiB"),
            (
                MIB <= self.repair_job_bytes <= BATCH_MAX_BYTES,
                f"repair_job_bytes from 1 MiB to one batch, {BATCH_MAX_BYTES}",
            ),
            (1 <= self.repair_jobs <= self.job_window, "1 <= repair_jobs <= job_window"),
            (self.sick_s >= 2 * self.beat_s, "sick_s >= 2 * beat_s"),
            (
                self.scrub_bytes_s == 0 or self.scrub_bytes_s >= 64 * KIB,
                "scrub_bytes_s 0, or >= 64 KiB",
            ),
            (self.verify_bytes_s >= 16 * MIB, "verify_bytes_s >= 16 MiB"),
            (self.scrub_every_s >= 0, "scrub_every_s >= 0"),
            (self.disk_check_s >= self.beat_s, "disk_check_s >= beat_s"),
            (self.set_aside_bytes >= 0 and self.walk_s > 0, "set_aside_bytes >= 0, walk_s > 0"),
            (
                self.staged_memory_peer_bytes >= BATCH_MAX_BYTES,
                f"staged_memory_peer_bytes >= one batch, {BATCH_MAX_BYTES}",
            ),
            (
                self.staged_memory_bytes >= 2 * self.staged_memory_peer_bytes,
                "staged_memory_bytes >= 2 * staged_memory_peer_bytes",
            ),
            (self.write_queue_bytes >= FETCH_MAX_BYTES, f"write_queue_bytes >= {FETCH_MAX_BYTES}"),
            (self.copy_credit_bytes >= 2 * CHUNK_BYTES, f"copy_credit_bytes >= {2 * CHUNK_BYTES}"),
            (min(self.weight_stored, self.weight_visits, self.weight_rtt) >= 0, "weights >= 0"),
            (min(self.round_clients, self.round_servers, self.round_beats) >= 1, "round_* >= 1"),
        ):
            if not wanted:
                raise ConfigError(f"not possible: wanted {relation}")


def defaults() -> Config:
    """One machine or one rack."""
    return Config()


def impatient(base: Config | None = None) -> Config:
    """For tests and demonstrations: the defaults, with the slow clocks ten times faster."""
    base = base or defaults()
    return msgspec.structs.replace(
        base,
        down_dead_s=base.suspect_s * 2,
        dead_s=base.suspect_s * 4,
        garbage_s=base.garbage_s / 20,
        period_s=base.period_s / 10,
        probe_s=base.probe_s / 10,
        stage_idle_s=base.stage_idle_s / 10,
        job_reissue_s=base.job_reissue_s / 10,
        rebuild_quiet_s=base.rebuild_quiet_s / 10,
        rebuild_absent_s=base.rebuild_absent_s / 10,
    )
