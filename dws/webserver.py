"""A web server: serves pages, takes uploads in, carries out jobs, reports changes.

What lives here: which part hears of what, and the data plane's `fetch` and
`read`. What must not: sockets, threads, clocks, and how a store keeps its
promises (store.py says what they are).

    effects = server.handle(event, now)
    reply, data = server.fetch(request)      plain methods: no object per hop
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from dws.config import Config
from dws.copyjobs import CopyJobs
from dws.effects import Answer, AnswerData, Effects, Log, Publish, Write
from dws.errors import NotHeld, OverBound, Stale
from dws.following import Endpoints, Following
from dws.integrity import Integrity
from dws.limits import CHUNK_BYTES, FETCH_MAX_BYTES
from dws.loadbook import LoadBook
from dws.messages import (
    NO_ROOM,
    NOT_HELD,
    Beat,
    Commit,
    Copy,
    Counted,
    DigestList,
    Digests,
    Doubt,
    Drop,
    Error,
    Fetch,
    Fetched,
    Manifest,
    ManifestPage,
    NodeStats,
    NodeStatsAre,
    Ping,
    Pong,
    Read,
    ReadData,
    Stage,
    Sums,
    SumsAre,
    Unstage,
    Verify,
    Visits,
    Welcome,
)
from dws.names import sums_digest
from dws.store import DropRecords, OpResult, PageStore
from dws.uploads import Uploads
from patterns.jobs import Gate

_RETRY_S: Final = 0.1


class Figures(Struct):
    """What only the shell can measure."""

    cpu_share: float = 0.0
    write_age_s: float = -1.0
    read_age_s: float = -1.0
    write_wait_s: float = 0.0
    """How long the writer has had work and finished none."""
    read_wait_s: float = 0.0
    """The same of the checker."""


# -- events ----------------------------------------------------------------------------


class PeerAsked(Struct):
    """A request on the ROUTER, other than Fetch and Read, which have methods of their own."""

    peer: bytes
    token: int
    message: Any
    data: memoryview


class JobCame(Struct):
    message: Any


class ReportAnswered(Struct):
    tag: tuple[Any, ...]
    message: Any


class ReportUnanswered(Struct):
    tag: tuple[Any, ...]


class PeerAnswered(Struct):
    tag: tuple[Any, ...]
    message: Any
    data: memoryview


class PeerUnanswered(Struct):
    tag: tuple[Any, ...]


class Written(Struct):
    tag: tuple[Any, ...]
    result: OpResult


class Inspected(Struct):
    """The checker thread has read what an Inspect named: what was found of each part."""

    tag: tuple[Any, ...]
    verdicts: list[int]


class Doubted(Struct):
    """The store came across pages that are not as their records say."""

    pages: list[tuple[str, int]]


class BalancerUp(Struct):
    """The connection to the balancer was (re)made: it may be a new one."""


class HttpUp(Struct):
    """The HTTP endpoint beside this server is at `endpoint`; empty: it is gone."""

    endpoint: str


class Tick(Struct):
    figures: Figures


Event = (
    PeerAsked | JobCame | ReportAnswered | ReportUnanswered | PeerAnswered | PeerUnanswered | Written
    | Inspected | Doubted | BalancerUp | HttpUp | Tick
)  # fmt: skip


class WebServer:
    def __init__(self, name: str, store: PageStore, endpoints: Endpoints, config: Config, now: float) -> None:
        self.name = name
        self.store = store
        self.book = LoadBook(config.period_s, now)
        self.counters: Counter[str] = Counter()
        self.counted_elsewhere: Mapping[str, Mapping[str, int]] = {}
        """Where → what the shell's sockets counted, for reports."""
        self.gate = Gate(store.identity.cluster or bytes(16), store.identity.incarnation)
        self._config = config
        self._beat_s = config.beat_s
        self._uploads = Uploads(name, store, config, lambda: self._following.epoch)
        self._following = Following(name, store, endpoints, now)
        self._copies = CopyJobs(store.identity.incarnation, config, self._uploads.new_handle)
        self._integrity = Integrity(store, config, self.counters, now)
        self._beat_at = now
        self._sums_digest = (-1, 0)
        self._handlers: dict[type[Any], Callable[[Any, float], Effects]] = {
            PeerAsked: self._peer_asked,
            JobCame: self._job_came,
            ReportAnswered: self._report_answered,
            ReportUnanswered: self._report_unanswered,
            PeerAnswered: self._peer_answered,
            PeerUnanswered: self._peer_unanswered,
            Written: self._written,
            Inspected: self._inspected,
            Doubted: lambda event, now: self._integrity.doubt(event.pages, "its file is not as it should be"),
            BalancerUp: self._balancer_up,
            HttpUp: self._http_up,
            Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> Effects:
        effects = self._handlers[type(event)](event, now)
        return effects + self._following.push_changes(now)

    def wake_at(self) -> float:
        return min(self._beat_at, self._following.wake_at(), self._integrity.wake_at())

    @property
    def epoch(self) -> int:
        """Of the balancer that this server follows; 0: none yet."""
        return self._following.epoch

    # -- the data plane -----------------------------------------------------------------------

    def fetch(self, request: Fetch) -> tuple[Fetched, bytes]:
        """Whole small pages, as many as one reply may carry."""
        each, visit = self.store.get_each(request.pages), self.book.visit
        pages: list[bytes] = []
        sizes: list[int] = []
        room = FETCH_MAX_BYTES
        for name, _ in request.pages:
            try:
                page = next(each) if room > 0 else b""
            except OverBound:
                sizes.append(NO_ROOM)
                room = 0
                continue
            if page is None:
                sizes.append(NOT_HELD)
                self.book.failed += 1
            elif len(page) > room or room <= 0:
                sizes.append(NO_ROOM)
                # Or one request could have a thousand large pages read in vain.
                room = 0
            else:
                sizes.append(len(page))
                pages.append(page)
                room -= len(page)
                visit(name, len(page))
        return Fetched(sizes), pages[0] if len(pages) == 1 else b"".join(pages)

    def read(self, request: Read) -> tuple[ReadData | Error, bytes]:
        """One chunk of a page."""
        length = min(request.length, CHUNK_BYTES)
        data = self.store.read(request.name, request.version, request.offset, length)
        if data is None:
            self.book.failed += 1
            return self._not_held(request.name), b""
        self.book.visit(request.name, len(data))
        return ReadData(request.offset, len(data)), data

    # -- requests --------------------------------------------------------------------------------

    def _peer_asked(self, event: PeerAsked, now: float) -> Effects:
        token, message = event.token, event.message
        match message:
            case Stage():
                return self._uploads.stage(event.peer, token, message, event.data, now)
            case Commit():
                return self._uploads.commit(event.peer, token, message, event.data, now)
            case Unstage():
                return self._uploads.unstage(token, message)
            case Digests():
                joined = self.store.digest_list(message.name, message.version)
                if joined is None:
                    return [Answer(token, self._not_held(message.name))]
                return [AnswerData(token, DigestList(len(joined) // 32), joined)]
            case Doubt():
                return [self._pong(token), *self._integrity.doubt(message.pages, "a reader met wrong bytes")]
            case Ping():
                return [self._pong(token)]
            case Visits():
                self.book.report(message)
                doubts = self._integrity.doubt(message.damaged, "the HTTP endpoint met wrong bytes")
                return [Answer(token, Counted(self._following.number, self.epoch)), *doubts]
            case NodeStats():
                return [Answer(token, self._stats(message, now))]
            case Sums() | Manifest() | Verify() if message.incarnation != self.store.identity.incarnation:
                return [Answer(token, Error(Stale.code, "another incarnation of this server is meant"))]
            case Sums():
                return [Answer(token, SumsAre(*self.store.summary()))]
            case Manifest():
                records, after = self.store.manifest(message.bucket, message.after, message.limit)
                return [Answer(token, ManifestPage(message.bucket, records, after))]
            case Verify():
                return self._integrity.verify(token, message)
        raise AssertionError(f"no handler for {type(message).__name__}")

    def _pong(self, token: int) -> Answer:
        incarnation = self.store.identity.incarnation
        return Answer(token, Pong(self.name, self.book.waiting, self.epoch, incarnation))

    def _not_held(self, name: str) -> Error:
        return Error(NotHeld.code, f"{self.name} does not hold this version of {name}")

    def _stats(self, request: NodeStats, now: float) -> NodeStatsAre:
        book = self.book
        counted = {"gate": self.gate.counters, **self.counted_elsewhere}
        counters: dict[str, float] = {
            f"{where} {name}": count for where, counts in counted.items() for name, count in counts.items()
        }
        counters |= dict(self.counters) | {
            "copies failed": self._copies.failed,
            "uploads expired": self._uploads.expired,
        }
        counters |= self._integrity.figures()
        counters |= {"served": book.served, "failed": book.failed, "bytes sent": book.bytes_sent}
        age_s = book.period_s - book.left_s(now)
        hot, hot_last = book.hot(request.top), book.hot(request.top, last=True)
        return NodeStatsAre(self.name, book.period_s, age_s, counters, hot, hot_last, book.response)

    # -- jobs -----------------------------------------------------------------------------------------

    def _job_came(self, event: JobCame, now: float) -> Effects:
        job = event.message
        identity = self.store.identity
        if job.start_nonce != identity.start_nonce:
            self.counters["jobs of another catalog"] += 1
            return [Log("error", "refused a job of a start of the balancer that this server does not follow")]
        if isinstance(job, Drop):
            op = DropRecords(job.records, identity.incarnation, self.epoch, job.decision)
            return [Write("drop", op, ("dropped",), 0)]
        assert isinstance(job, Copy)
        return self._copies.add(job)

    def _peer_answered(self, event: PeerAnswered, now: float) -> Effects:
        return self._copies.answered(event.tag, event.message, event.data)

    def _peer_unanswered(self, event: PeerUnanswered, now: float) -> Effects:
        return self._copies.unanswered(event.tag)

    # -- what the writer did -----------------------------------------------------------------------------

    def _written(self, event: Written, now: float) -> Effects:
        what, *details = event.tag
        result = event.result
        self._following.changed()
        if what == "staged":
            return self._uploads.written(event.tag, result)
        if what == "commit":
            return self._uploads.committed(details[0], result)
        if what == "copy":
            return self._copies.written(details[0], result)
        if what == "copied":
            return self._copies.stored(details[0], result)
        if what in ("place", "set aside"):
            return self._integrity.written(event.tag, result, now)
        if what == "remembered":
            welcome = details[0]
            return self._begin_epoch(welcome, now) if self._following.remembered(welcome, result) else []
        if result.code:
            self.counters[f"{what}: {result.code}"] += 1
        return []

    def _inspected(self, event: Inspected, now: float) -> Effects:
        return self._integrity.inspected(event.tag, event.verdicts, now)

    # -- the balancer ------------------------------------------------------------------------

    def _begin_epoch(self, welcome: Welcome, now: float) -> Effects:
        self.gate.welcome(welcome.cluster, welcome.epoch)
        self._beat_s = welcome.beat_s
        self.book.period_s = welcome.period_s
        return self._copies.begin_epoch(welcome.epoch) + self._following.begin(welcome, now)

    def _report_answered(self, event: ReportAnswered, now: float) -> Effects:
        return self._following.answered(event.tag, event.message, now)

    def _report_unanswered(self, event: ReportUnanswered, now: float) -> Effects:
        return self._following.unanswered(event.tag, now)

    def _balancer_up(self, event: BalancerUp, now: float) -> Effects:
        return self._following.hello(now)

    def _http_up(self, event: HttpUp, now: float) -> Effects:
        return self._following.http_up(event.endpoint, now)

    # -- time ------------------------------------------------------------------------------

    def _tick(self, event: Tick, now: float) -> Effects:
        effects: Effects = []
        if now >= self._following.hello_at:
            effects += self._following.hello(now)
        if now >= self._beat_at:
            self._beat_at = max(self._beat_at + self._beat_s, now)
            self.book.turn(now)
            effects.append(Publish(self._beat(event.figures, now)))
            effects += self._uploads.expire(now)
        return effects + self._integrity.poll(self.book.waiting, now)

    def _beat(self, figures: Figures, now: float) -> Beat:
        book = self.book
        if self._sums_digest[0] != self.store.number:
            number, sums = self.store.summary()
            self._sums_digest = (number, sums_digest(sums))
        pages, bytes_stored, bytes_free = self.store.usage()
        waiting, service_s = book.sample()
        return Beat(
            *self._sums_digest, book.served, book.failed, waiting, service_s, 1,
            bytes_stored, bytes_free, pages, book.visits, book.visits_last, book.left_s(now),
            figures.cpu_share, book.bytes_sent, figures.write_age_s, figures.read_age_s,
            self._integrity.suspects.set_aside, figures.write_wait_s, figures.read_wait_s,
        )  # fmt: skip

    def check(self) -> None:
        self._uploads.check()
        self._copies.check()
        self._integrity.check()
