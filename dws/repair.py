"""Pages with too few copies are copied again.

What lives here: from where to where, how much at once, and how far it has got.
What must not: what is missing and what is most urgent (shortage.py), copies too
many (surplus.py), open batches (replication.py), how a job travels (orders.py).

Bounds: repair_jobs orders of repair_job_bytes to and from each server, and
repair_bytes_s in all. An order that ends makes room for the next at once.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from dws.catalog import Catalog
from dws.config import Config
from dws.decisions import Decisions
from dws.effects import Ask, Effects, Log
from dws.entries import Entry
from dws.errors import IntegrityError
from dws.groups import GroupKey
from dws.limits import MIB
from dws.load import Loads
from dws.membership import Members
from dws.messages import CopyFailed, Record, RepairStatus, Verify
from dws.meter import Meter
from dws.orders import Orders
from dws.replication import Replication
from dws.shortage import Shortage

#: Pages of one order: what a server takes in with one fsync, and begins anew if it fails.
_JOB_PAGES: Final = 256
#: Groups looked at for the next order: the time of one look, however many servers there are.
_LOOK_MAX: Final = 64
#: A page that could not be copied is tried alone, after this, doubling up to the second figure.
_RETRY_S: Final = 1.0
_RETRY_MAX_S: Final = 60.0
#: A server that could not store what it was told to copy is not asked again for so long.
_REST_S: Final = 5.0
#: An order without report is given up after this, and a second for each of these bytes.
_PATIENCE_S: Final = 60.0
_PATIENCE_BYTES_S: Final = MIB
VERIFY_TIMEOUT_S: Final = 30.0
VERIFY_BYTES_S: Final = 8 * MIB
#: How long the bounded rate may be saved up.
_SAVED_S: Final = 0.25


class _Job(Struct):
    serial: int
    source: int
    target: int
    pages: dict[str, Entry]
    missing: dict[str, int]  # name → version, until the target reported it
    until: float

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.pages.values())


class _Failure(Struct):
    tries: int
    retry_at: float


class Repair:
    def __init__(
        self,
        catalog: Catalog,
        members: Members,
        loads: Loads,
        orders: Orders,
        replication: Replication,
        decisions: Decisions,
        config: Config,
        now: float,
    ) -> None:
        self._catalog = catalog
        self._members = members
        self._loads = loads
        self._orders = orders
        self._replication = replication
        self._decisions = decisions
        self._config = config
        self.shortage = Shortage(catalog, members, config, now)
        self._meter = Meter()
        self._jobs: dict[int, _Job] = {}
        self._moving: dict[str, int] = {}  # page → the job that copies it
        self._serial = 0
        self._failed: dict[str, _Failure] = {}
        self._resting: dict[int, float] = {}  # server → until when it is no target
        self._allowed_bytes = 0.0
        self._polled = now
        self._passed = 0  # queues that the last look passed in vain
        self._settling = ""
        self._why = ""

    @property
    def idle(self) -> bool:
        """Whether nothing is missing that could be copied, and nothing on the way."""
        return not self._jobs and not self.shortage.queues

    def status(self, now: float) -> RepairStatus:
        self.shortage.count(now)
        missing = [self._catalog.groups[key] for key in self.shortage.missing()]
        left_bytes = sum(group.size_bytes for group in missing)
        pages_s, bytes_s = self._meter.rates(now)
        why = f"{self._settling} is still to be compared" if self._settling else self._why
        return RepairStatus(
            missing=sum(group.pages for group in missing),
            missing_bytes=left_bytes,
            moving=len(self._moving),
            copied=self._meter.pages,
            copied_bytes=self._meter.size_bytes,
            pages_s=pages_s,
            bytes_s=bytes_s,
            left_s=left_bytes / bytes_s if bytes_s else -1.0,
            text=why if missing and not self._jobs else "",
        )

    # -- the work ------------------------------------------------------------------------------

    def tick(self, now: float) -> Effects:
        effects = self._end_hopeless(now)
        self.shortage.count(now)
        # Bytes that may be ordered come at the bounded rate, and are not saved up for long.
        rate = self._config.repair_bytes_s
        most = max(self._config.repair_job_bytes, rate * _SAVED_S)
        self._allowed_bytes = min(most, self._allowed_bytes + rate * (now - self._polled))
        self._polled = now
        self._settling = self.shortage.settling(now)
        if not self._settling:
            effects += self.shortage.review(now)
            if self._failed and self.idle and not any(self.shortage.missing()):
                self._failed.clear()
            self._go_on(now)
        return effects

    def _go_on(self, now: float) -> None:
        """Order what may be ordered now."""
        while self.shortage.queues and self._allowed_bytes > 0 and not self._settling:
            job = self._next_job(now)
            if job is None:
                break
            self._order(job)

    def _next_job(self, now: float) -> _Job | None:
        """The next pages, a source and a target for them; None if no server may take more now."""
        queues = self.shortage.queues
        first = len(queues) - 1 - self._passed
        for index in range(first, max(-1, first - _LOOK_MAX), -1):
            queue = queues[index]
            sources = self._sources(queue.key[1])
            if not sources:
                continue
            names = self.shortage.take_in(queue)
            job = self._fill(queue.key, names, sources, now)
            if job is not None:
                self._passed = 0
                return job
            if not names:
                del queues[index]
        # The next look begins behind these, which all wait for a source or a target.
        self._passed = self._passed + _LOOK_MAX if first >= _LOOK_MAX else 0
        return None

    def _sources(self, holders: tuple[int, ...]) -> list[int]:
        """Live holders that may be asked for more, best first."""
        out = Counter(job.source for job in self._jobs.values())
        free = [number for number in self.shortage.live(holders) if out[number] < self._config.repair_jobs]
        by_number, loads = self._members.by_number, self._loads.download
        return sorted(free, key=lambda number: (not by_number[number].sure, out[number], loads[number]))

    def _is_due(self, name: str, key: GroupKey, now: float) -> bool:
        """Whether this page of a queue, which may be old, is still to be copied."""
        if name in self._moving or self._catalog.group_of(name) != key:
            return False
        failure = self._failed.get(name)
        return failure is None or failure.retry_at <= now

    def _fill(self, key: GroupKey, names: list[str], sources: list[int], now: float) -> _Job | None:
        """Take pages off the end of a queue, for one target. None if it has no more, or none may take it."""
        while names and not self._is_due(names[-1], key, now):
            names.pop()
        if not names:
            return None
        target = self._target(names[-1], now)
        if target is None:
            return None
        # Another source each time: two servers may not reach each other though we reach both.
        failure = self._failed.get(names[-1])
        source = sources[failure.tries % len(sources) if failure else 0]
        room = min(self._loads.bytes_free(target), self._config.repair_job_bytes)
        strays = self._catalog.pictures[target].strays
        pages: dict[str, Entry] = {}
        while names and len(pages) < _JOB_PAGES:
            name = names[-1]
            if self._is_due(name, key, now):
                entry = self._catalog.pages[name]
                # What failed goes alone, so that one bad page holds up no others.
                alone = name in self._failed or (name, entry.version) in strays
                if pages and (alone or entry.size > room):
                    break
                pages[name] = entry
                room -= entry.size
                if name in self._failed:
                    names.pop()
                    break
            names.pop()
        self._serial += 1
        missing = {name: entry.version for name, entry in pages.items()}
        job = _Job(self._serial, source, target, pages, missing, 0.0)
        job.until = now + _PATIENCE_S + job.size_bytes / _PATIENCE_BYTES_S
        return job

    def _target(self, name: str, now: float) -> int | None:
        """Who is to have one more copy: by upload load, among those who may take it now."""
        entry = self._catalog.pages[name]
        pictures = self._catalog.pictures
        candidates = [
            number
            for number in self._replication.candidates(entry.size)
            # What lies there already and does not count, or is named by a drop, must be gone first.
            if number not in entry.holders
            and (name, entry.version) not in pictures[number].strays
            and (name, entry.version) not in pictures[number].disowned
            and self._resting.get(number, 0.0) <= now
        ]
        if not candidates:
            self._why = f"no server may take a copy of {name}, {entry.size:,} bytes"
            return None
        self._why = ""
        coming = Counter(job.target for job in self._jobs.values())
        free = [number for number in candidates if coming[number] < self._config.repair_jobs]
        return next(self._replication.by_upload_load(free), None)

    def _order(self, job: _Job) -> None:
        self._jobs[job.serial] = job
        self._moving |= dict.fromkeys(job.missing, job.serial)
        self._allowed_bytes -= job.size_bytes
        self._loads.reserve(job.target, job.size_bytes)
        records = [entry.record(name) for name, entry in job.pages.items()]
        source = self._members.by_number[job.source].ref()
        self._orders.repair(job.target, job.serial, source, records, self._decisions.durable)

    # -- what becomes of it ------------------------------------------------------------------------

    def stored(self, number: int, records: Iterable[Record], now: float) -> None:
        """A server was reported to hold these."""
        if not self._moving:
            return
        for record in records:
            job = self._jobs.get(self._moving.get(record.name, 0))
            if job is None or job.target != number or job.missing.get(record.name) != record.version:
                continue
            del job.missing[record.name], self._moving[record.name]
            self._failed.pop(record.name, None)
            self._meter.add(1, record.size, now)
            if not job.missing:
                self._end(job)
        self._go_on(now)

    def copy_failed(self, number: int, report: CopyFailed, now: float) -> Effects:
        """An order could not be carried out. A source whose bytes are wrong is to look at them itself."""
        job = self._jobs.get(report.job)
        if job is None or job.target != number:
            return []
        name = self._members.by_number[number].name
        effects: Effects = [Log("warning", f"repair on {name} failed, to be tried again: {report.text}")]
        if report.code == IntegrityError.code:
            source = self._members.by_number[job.source]
            question = Verify(source.incarnation, list(job.missing.items()))
            timeout_s = VERIFY_TIMEOUT_S + job.size_bytes / VERIFY_BYTES_S
            effects.append(Ask(job.source, question, ("source", job.source, now), timeout_s))
        else:
            self._resting[number] = now + _REST_S
        self._fail(job, now)
        return effects

    def _fail(self, job: _Job, now: float) -> None:
        for name in job.missing:
            tries = self._failed[name].tries + 1 if name in self._failed else 1
            wait_s = min(_RETRY_MAX_S, _RETRY_S * 2.0 ** min(tries - 1, 10))
            self._failed[name] = _Failure(tries, now + wait_s)
        self._end(job)

    def _end(self, job: _Job) -> None:
        """It is done, or of no use any more."""
        del self._jobs[job.serial]
        for name in job.missing:
            del self._moving[name]
        self._orders.done(job.target, ("repair", job.serial))

    def _end_hopeless(self, now: float) -> Effects:
        """Orders whose source or target cannot carry them out any more."""
        effects: Effects = []
        for job in list(self._jobs.values()):
            source, target = (self._members.by_number[number] for number in (job.source, job.target))
            if not source.live or not target.live:
                self._end(job)
                self.shortage.look_again(now)
            elif now >= job.until:
                effects.append(Log("warning", f"repair on {target.name} from {source.name} took too long"))
                self._fail(job, now)
        return effects

    def check(self) -> None:
        """What is on the way is noted once, and bounds hold."""
        for serial, job in self._jobs.items():
            assert job.missing and all(self._moving[name] == serial for name in job.missing)
        assert len(self._moving) == sum(len(job.missing) for job in self._jobs.values())
        jobs = self._jobs.values()
        for ends in ([job.source for job in jobs], [job.target for job in jobs]) if jobs else ():
            assert all(count <= self._config.repair_jobs for count in Counter(ends).values())
