"""A web server: serves pages, takes uploads in, carries out jobs, reports changes.

What lives here: which part hears of what, and the data plane's `fetch` and
`read`. What must not: sockets, threads, clocks, and how a store keeps its
promises (store.py says what they are).

    effects = server.handle(event, now)
    reply, data = server.fetch(request)      plain methods: no object per hop
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from dws.config import Config
from dws.copying import CopyFault, Copying
from dws.effects import Answer, AnswerData, Effects, Log, Publish, Report, Write
from dws.errors import DwsError, NotHeld, Stale, TryAgain
from dws.limits import CHUNK_BYTES, FETCH_MAX_BYTES
from dws.loadbook import LoadBook
from dws.messages import (
    NO_ROOM,
    NOT_HELD,
    Applied,
    Beat,
    Commit,
    Committed,
    Copy,
    CopyFailed,
    DigestList,
    Digests,
    Drop,
    Error,
    Fetch,
    Fetched,
    Hello,
    Manifest,
    ManifestPage,
    NodeStats,
    NodeStatsAre,
    Ping,
    Pong,
    Read,
    ReadData,
    Stage,
    Staged,
    Stored,
    Sums,
    SumsAre,
    Unstage,
    Unstaged,
    Verified,
    Verify,
    Welcome,
)
from dws.names import epoch_of, sums_digest
from dws.staging import Staging
from dws.store import DiscardStaged, DropRecords, OpResult, PageStore, Remember, StoreBatch
from patterns.jobs import Gate
from patterns.snapshot import Feed

_HELLO_RETRY_S: Final = 0.5
#: A hello is repeated now and then: it costs nothing and mends what a lost message broke.
_HELLO_AGAIN_S: Final = 5.0
_REPORT_TIMEOUT_S: Final = 2.0
_REPORT_PAUSE_S: Final = 0.05
_CHANGES_MAX: Final = 64
_RECORDS_MAX: Final = 2_000
_RETRY_S: Final = 0.1
_COPIES_WAITING_MAX: Final = 64


class Endpoints(Struct, frozen=True):
    """As announced: what others can connect to."""

    pages: str
    jobs: str
    http: str = ""


class Figures(Struct):
    """What only the shell can measure."""

    cpu_share: float = 0.0
    write_age_s: float = -1.0
    read_age_s: float = -1.0


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


class BalancerUp(Struct):
    """The connection to the balancer was (re)made: it may be a new one."""


class Tick(Struct):
    figures: Figures


Event = (
    PeerAsked | JobCame | ReportAnswered | ReportUnanswered | PeerAnswered | PeerUnanswered | Written
    | BalancerUp | Tick
)  # fmt: skip


class WebServer:
    def __init__(self, name: str, store: PageStore, endpoints: Endpoints, config: Config, now: float) -> None:
        self.name = name
        self.store = store
        self.book = LoadBook(config.period_s, now)
        self.counters: Counter[str] = Counter()
        self.gate = Gate(store.identity.cluster or bytes(16), store.identity.incarnation)
        self.epoch = 0
        """The epoch of the balancer that welcomed this server; 0 before."""
        self._endpoints = endpoints
        self._config = config
        self._beat_s = config.beat_s
        self._staging = Staging(config)
        self._feed = Feed(_REPORT_PAUSE_S)
        self._copies: dict[int, Copying] = {}
        self._copies_waiting: deque[Copy] = deque()
        self._committing: dict[bytes, list[int]] = {}  # batch → tokens that wait for its commit
        self._upload_bytes = 0  # handed to the writer, not yet written
        self._refusal = ""
        self._hello_at = now
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
            BalancerUp: self._balancer_up,
            Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> Effects:
        effects = self._handlers[type(event)](event, now)
        return effects + self._push_changes(now)

    def wake_at(self) -> float:
        wake_at = min(self._beat_at, self._hello_at)
        feed_at = self._feed.wake_at()
        return wake_at if feed_at is None else min(wake_at, feed_at)

    # -- the data plane -----------------------------------------------------------------------

    def fetch(self, request: Fetch) -> tuple[Fetched, bytes]:
        """Whole small pages, as many as one reply may carry."""
        get, visit = self.store.get, self.book.visit
        pages: list[bytes] = []
        sizes: list[int] = []
        room = FETCH_MAX_BYTES
        for name, version in request.pages:
            page = get(name, version) if room > 0 else b""
            if page is None:
                sizes.append(NOT_HELD)
                self.book.failed += 1
            elif len(page) > room or room <= 0:
                sizes.append(NO_ROOM)
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
                return self._stage(event, now)
            case Commit():
                return self._commit(token, message, now)
            case Unstage():
                return [Answer(token, Unstaged()), *self._discard(self._staging.end(message.batch))]
            case Digests():
                joined = self.store.digest_list(message.name, message.version)
                if joined is None:
                    return [Answer(token, self._not_held(message.name))]
                return [AnswerData(token, DigestList(len(joined) // 32), joined)]
            case Ping():
                return [Answer(token, Pong(self.name, self.book.waiting, self.epoch))]
            case NodeStats():
                return [Answer(token, self._stats(message, now))]
            case Sums() | Manifest() if message.incarnation != self.store.identity.incarnation:
                return [Answer(token, Error(Stale.code, "another incarnation of this server is meant"))]
            case Sums():
                return [Answer(token, SumsAre(self.store.number, self.store.sums()))]
            case Manifest():
                records, after = self.store.manifest(message.bucket, message.after, message.limit)
                return [Answer(token, ManifestPage(message.bucket, records, after))]
            case Verify():
                good = [self.store.verify(name, version) for name, version in message.pages]
                return [Answer(token, Verified(good))]
        raise AssertionError(f"no handler for {type(message).__name__}")

    def _stage(self, event: PeerAsked, now: float) -> Effects:
        request: Stage = event.message
        try:
            self._fence(request.version, request.incarnation)
            if self._upload_bytes + len(event.data) > self._config.write_queue_bytes:
                raise TryAgain("the disk is behind")
            page, have, writes = self._staging.stage(event.peer, request, event.data, now)
        except DwsError as error:
            return [Answer(event.token, Error(error.code, str(error), _RETRY_S))]
        if not writes:
            return [Answer(event.token, Staged(page, have))]
        # Answered when the last write is done, so that the sender keeps the disk's pace.
        effects: Effects = []
        for write in writes:
            last = write is writes[-1]
            self._upload_bytes += len(write.data)
            tag = ("staged", event.token if last else 0, page, have, len(write.data))
            effects.append(Write("upload", write, tag, len(write.data)))
        return effects

    def _commit(self, token: int, request: Commit, now: float) -> Effects:
        waiting = self._committing.get(request.batch)
        if waiting is not None:
            waiting.append(token)
            return []
        try:
            self._fence(request.version, request.incarnation)
            if all(self.store.record(page.name, request.version) for page in request.pages):
                return [Answer(token, Committed(self.store.number))]
            blobs = self._staging.blobs(request)
        except DwsError as error:
            effects: Effects = [Answer(token, Error(error.code, str(error), _RETRY_S))]
            return effects if isinstance(error, NotHeld) else effects + self._abandon(request.batch)
        self._committing[request.batch] = [token]
        op = StoreBatch(blobs, request.incarnation, epoch_of(request.version))
        cost = sum(len(blob.data) for blob in blobs if blob.data is not None)
        return [Write("upload", op, ("commit", request.batch), cost)]

    def _fence(self, version: int, incarnation: int) -> None:
        if incarnation != self.store.identity.incarnation:
            raise Stale(f"{self.name} has restarted since this batch was placed here")
        if epoch_of(version) != self.epoch:
            raise Stale(f"the batch is of epoch {epoch_of(version)}, {self.name} is in {self.epoch}")

    def _abandon(self, batch: bytes) -> Effects:
        return self._discard(self._staging.end(batch))

    def _discard(self, handles: list[int]) -> Effects:
        return [Write("upload", DiscardStaged(handles), ("discarded",), 0)] if handles else []

    def _not_held(self, name: str) -> Error:
        return Error(NotHeld.code, f"{self.name} does not hold this version of {name}")

    def _stats(self, request: NodeStats, now: float) -> NodeStatsAre:
        book = self.book
        counters: dict[str, float] = {f"gate {name}": n for name, n in self.gate.counters.items()}
        counters |= dict(self.counters)
        counters |= {"served": book.served, "failed": book.failed, "bytes sent": book.bytes_sent}
        age_s = book.period_s - book.left_s(now)
        hot, hot_last = book.hot(request.top), book.hot(request.top, last=True)
        return NodeStatsAre(self.name, book.period_s, age_s, counters, hot, hot_last)

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
        version = job.records[0].version
        if version in self._copies or any(w.records[0].version == version for w in self._copies_waiting):
            return []
        if len(self._copies_waiting) >= _COPIES_WAITING_MAX:
            self.counters["copies over bound"] += 1
            return []
        self._copies_waiting.append(job)
        return self._start_copies()

    def _start_copies(self) -> Effects:
        effects: Effects = []
        while self._copies_waiting and len(self._copies) < self._config.copies_at_once:
            job = self._copies_waiting[0]
            credit_bytes = self._config.copy_credit_bytes
            copying = Copying(job.source, job.records, job.decision, self._staging.new_handle, credit_bytes)
            memory_bytes = sum(each.memory_bytes for each in self._copies.values()) + copying.memory_bytes
            if self._copies and memory_bytes > self._config.staged_memory_bytes:
                break
            self._copies_waiting.popleft()
            self._copies[copying.version] = copying
            effects += copying.ask()
        return effects

    def _peer_answered(self, event: PeerAnswered, now: float) -> Effects:
        _, version, what, detail = event.tag
        copying = self._copies.get(version)
        if copying is None:
            return []
        message = event.message
        try:
            if what == "fetch" and isinstance(message, Fetched):
                effects = copying.fetched(detail, message, event.data)
            elif what == "digests" and isinstance(message, DigestList):
                copying.digests(event.data)
                effects = []
            elif what == "read" and isinstance(message, ReadData):
                effects = copying.chunk(detail, event.data)
            else:
                raise CopyFault(message.text if isinstance(message, Error) else "unexpected answer")
        except CopyFault as fault:
            return self._copy_failed(copying, str(fault))
        return effects + self._go_on(copying)

    def _peer_unanswered(self, event: PeerUnanswered, now: float) -> Effects:
        _, version, what, detail = event.tag
        copying = self._copies.get(version)
        if copying is None:
            return []
        try:
            return copying.unanswered(what, detail)
        except CopyFault as fault:
            return self._copy_failed(copying, str(fault))

    def _go_on(self, copying: Copying) -> Effects:
        if not copying.done:
            return copying.ask()
        op = StoreBatch(copying.all_blobs, self.store.identity.incarnation, self.epoch, copying.decision)
        return [Write("copy", op, ("copied", copying.version), copying.memory_bytes)]

    def _copy_failed(self, copying: Copying, text: str) -> Effects:
        del self._copies[copying.version]
        self.counters["copies failed"] += 1
        batch = copying.batch
        failed = CopyFailed(self.store.identity.incarnation, batch, copying.version, text)
        effects: Effects = [Report(failed, ("copy-failed",), _REPORT_TIMEOUT_S), Log("warning", text)]
        return effects + self._discard(copying.handles) + self._start_copies()

    # -- what the writer did -----------------------------------------------------------------------------

    def _written(self, event: Written, now: float) -> Effects:
        what, *details = event.tag
        result = event.result
        self._feed.number = self.store.number
        error = Error(result.code, result.text, _RETRY_S) if result.code else None
        if what == "staged":
            token, page, have, size_bytes = details
            self._upload_bytes -= size_bytes
            return [Answer(token, error or Staged(page, have))] if token else []
        if what == "commit":
            (batch,) = details
            tokens = self._committing.pop(batch)
            handles = self._staging.end(batch)
            answers: Effects = [Answer(token, error or Committed(self.store.number)) for token in tokens]
            return answers + (self._discard(handles) if error else [])
        if what == "copy":
            return self._copy_written(details[0], result)
        if what == "copied":
            copying = self._copies.get(details[0])
            if copying is None:
                return []
            if result.code:
                return self._copy_failed(copying, result.text)
            del self._copies[copying.version]
            return self._start_copies()
        if what == "remembered":
            return self._begin_epoch(details[0])
        if error is not None:
            self.counters[f"{what}: {result.code}"] += 1
        return []

    def _copy_written(self, version: int, result: OpResult) -> Effects:
        copying = self._copies.get(version)
        if copying is None:
            return []
        copying.written()
        if result.code:
            return self._copy_failed(copying, result.text)
        return self._go_on(copying)

    # -- the balancer ----------------------------------------------------------------------------------------

    def _hello(self, now: float) -> Effects:
        self._hello_at = now + (_HELLO_AGAIN_S if self.epoch else _HELLO_RETRY_S)
        identity = self.store.identity
        pages, bytes_stored, bytes_free = self.store.usage()
        hello = Hello(
            identity.server, self.name, identity.incarnation, self._endpoints.pages, self._endpoints.jobs,
            self._endpoints.http, identity.cluster, identity.start_epoch, identity.start_nonce,
            identity.decision, self.store.number, pages, bytes_stored, bytes_free,
        )  # fmt: skip
        return [Report(hello, ("hello",), _REPORT_TIMEOUT_S)]

    def _report_answered(self, event: ReportAnswered, now: float) -> Effects:
        message = event.message
        if event.tag[0] == "hello":
            return self._welcomed(message, now)
        if event.tag[0] == "stored":
            if isinstance(message, Applied):
                self._feed.answered(message.number, now)
                return []
            self._feed.unanswered(now)
            # "say hello first": the balancer is another one than we think
            self._hello_at = min(self._hello_at, now + _RETRY_S)
        return []

    def _report_unanswered(self, event: ReportUnanswered, now: float) -> Effects:
        if event.tag[0] == "stored":
            self._feed.unanswered(now)
        return []

    def _welcomed(self, message: Any, now: float) -> Effects:
        refusal = message.text if isinstance(message, Error) else self._refuse(message)
        if refusal:
            self._hello_at = now + 1.0
            known, self._refusal = self._refusal, refusal
            return [Log("error", f"not joining: {refusal}")] if refusal != known else []
        self._refusal = ""
        welcome: Welcome = message
        self._beat_s = welcome.beat_s
        self.book.period_s = welcome.period_s
        identity = self.store.identity
        if (welcome.epoch, welcome.nonce) == (identity.start_epoch, identity.start_nonce) and self.epoch:
            return []
        op = Remember(welcome.cluster, welcome.epoch, welcome.nonce, welcome.decision)
        return [Write("upload", op, ("remembered", welcome), 0)]

    def _refuse(self, welcome: Any) -> str:
        """Why this balancer must not be followed; empty if it may."""
        if not isinstance(welcome, Welcome):
            return f"unexpected answer {type(welcome).__name__}"
        identity = self.store.identity
        if identity.cluster and welcome.cluster != identity.cluster:
            return f"the balancer is of cluster {welcome.cluster.hex()}, we are of {identity.cluster.hex()}"
        if welcome.epoch < identity.start_epoch or welcome.decision < identity.decision:
            return (
                f"the balancer's catalog is behind, at epoch {welcome.epoch}, decision {welcome.decision}; "
                f"this server was told epoch {identity.start_epoch}, decision {identity.decision}"
            )
        return ""

    def _begin_epoch(self, welcome: Welcome) -> Effects:
        """The new start is on disk: from now on only its batches and jobs are taken."""
        if welcome.epoch < self.epoch:
            return []
        self.epoch = welcome.epoch
        self.gate.welcome(welcome.cluster, welcome.epoch)
        # The balancer compares manifests after a hello; changes from here on are pushed.
        self._feed.number = self.store.number
        self._feed.follow(self.store.number)
        text = f"{self.name} follows epoch {welcome.epoch} as server {welcome.number}"
        effects: Effects = [Log("info", text)]
        for copying in list(self._copies.values()):
            effects += self._discard(copying.handles)
        self._copies.clear()
        self._copies_waiting.clear()
        return effects

    def _balancer_up(self, event: BalancerUp, now: float) -> Effects:
        return self._hello(now)

    def _push_changes(self, now: float) -> Effects:
        since = self._feed.poll(now)
        if since is None:
            return []
        changes = self.store.changes(since, _CHANGES_MAX)
        if changes is None:
            # The log no longer reaches back; beats will show the balancer that it must compare.
            self._feed.unanswered(now)
            return []
        records = 0
        for count, change in enumerate(changes):
            records += len(change.added) + len(change.dropped)
            if records > _RECORDS_MAX and count:
                changes = changes[:count]
                break
        stored = Stored(self.store.identity.incarnation, changes)
        return [Report(stored, ("stored",), _REPORT_TIMEOUT_S)]

    # -- time ------------------------------------------------------------------------------

    def _tick(self, event: Tick, now: float) -> Effects:
        effects: Effects = []
        if now >= self._hello_at:
            effects += self._hello(now)
        if now >= self._beat_at:
            self._beat_at = max(self._beat_at + self._beat_s, now)
            self.book.turn(now)
            effects.append(Publish(self._beat(event.figures, now)))
            for batch in self._staging.expired(now, self.epoch):
                if batch not in self._committing:
                    self.counters["uploads expired"] += 1
                    effects += self._abandon(batch)
        return effects

    def _beat(self, figures: Figures, now: float) -> Beat:
        book, number = self.book, self.store.number
        if self._sums_digest[0] != number:
            self._sums_digest = (number, sums_digest(self.store.sums()))
        pages, bytes_stored, bytes_free = self.store.usage()
        return Beat(
            number, self._sums_digest[1], book.served, book.failed, book.waiting, book.service_s, 1,
            bytes_stored, bytes_free, pages, book.visits, book.visits_last, book.left_s(now),
            figures.cpu_share, book.bytes_sent, figures.write_age_s, figures.read_age_s,
        )  # fmt: skip

    def check(self) -> None:
        self._staging.check()
        assert self._upload_bytes >= 0
        assert len(self._copies) <= self._config.copies_at_once
