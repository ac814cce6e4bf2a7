"""A balancer on a desk: what happens to it is told event by event, what it wants is laid out in lists.

Its servers are figures without machines: what they hold is a dict, and they answer what they are asked
when the test says so. Nothing is lost or late unless the test leaves it lying.
"""

from collections import Counter
from random import Random
from typing import Any

from blake3 import blake3
from msgspec import Struct

from dws import messages
from dws.balancer import Balancer
from dws.config import Config
from dws.effects import Answer, Ask, Connect, Disconnect, Log, Persist, Push
from dws.events import (
    Answered,
    Beaten,
    ClientAsked,
    LinkDown,
    LinkUp,
    Persisted,
    ServerAsked,
    Tick,
    Unanswered,
)
from dws.limits import GIB, RECORD_FORMAT
from dws.messages import (
    ANY,
    Await,
    Beat,
    Change,
    Copy,
    Drop,
    Dropped,
    Hello,
    Manifest,
    ManifestPage,
    NodeStats,
    NodeStatsAre,
    Ping,
    Pong,
    PutPage,
    Record,
    Remove,
    RemovePage,
    Reserve,
    Stored,
    Sums,
    SumsAre,
    Verified,
    Verify,
    encode,
)
from dws.names import bucket_of, page_key, record_hash, sums_digest
from dws.sim.disks import MASK_64, CatalogDisk
from dws.store import Decision
from patterns.jobs import HEADER, HEADER_BYTES

ME = b"\x01" * 16
#: Slow clocks run faster than in production, so that tests have fewer beats to go through.
HASTY = Config(down_dead_s=1.0, dead_s=2.0, garbage_s=5.0, job_reissue_s=2.0)


def batch_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def page(
    name: str, data: bytes = b"bytes", condition: int = ANY, *, known: bool = True, content_type: str = ""
) -> PutPage:
    digest = blake3(data).digest() if known else b""
    return PutPage(name, len(data) if known else -1, digest, condition, content_type)


def record(name: str, version: int, data: bytes = b"bytes", batch: bytes = ME) -> Record:
    return Record(name, version, batch, len(data), blake3(data).digest(), b"", "", 0.0, RECORD_FORMAT)


class Figure(Struct):
    """A web server as its balancer may see it."""

    name: str
    id: bytes
    incarnation: int
    number: int = 0
    """Of its last change."""
    held: dict[tuple[str, int], Record] = {}
    told: tuple[bytes, int, int, int] = (b"", 0, 0, 0)
    """Cluster, start epoch, start nonce and decision that it was told last."""
    damaged: set[tuple[str, int]] = set()
    """What of it a check would find wrong."""
    hot: list[tuple[str, int, int]] = []
    """Most visited pages: name, visits, bytes."""
    bytes_free: int = GIB
    sequence: int = 0
    no: int = 0
    """What the balancer calls it."""

    def hello(self, **changed: Any) -> Hello:
        cluster, epoch, nonce, decision = self.told
        endpoint = f"tcp://{self.name}:1"
        fields: dict[str, Any] = {
            "server": self.id, "name": self.name, "incarnation": self.incarnation, "pages_endpoint": endpoint,
            "jobs_endpoint": endpoint, "http_endpoint": "", "cluster": cluster, "start_epoch": epoch,
            "start_nonce": nonce, "decision": decision, "number": self.number, "pages": len(self.held),
            "bytes_stored": self.bytes_stored, "bytes_free": self.bytes_free,
        }  # fmt: skip
        return Hello(**(fields | changed))

    @property
    def bytes_stored(self) -> int:
        return sum(each.size for each in self.held.values())

    def sums(self) -> list[int]:
        sums = [0] * 256
        for name, version in self.held:
            bucket = bucket_of(version)
            sums[bucket] = (sums[bucket] + record_hash(page_key(name), version)) & MASK_64
        return sums

    def manifest(self, bucket: int) -> list[Record]:
        return [each for each in self.held.values() if bucket_of(each.version) == bucket]

    def beat(self, **changed: Any) -> Beat:
        fields: dict[str, Any] = {
            "number": self.number, "sums_digest": sums_digest(self.sums()), "served": 0, "failed": 0,
            "waiting": 0, "service_s": 0.0, "workers": 1, "bytes_stored": self.bytes_stored,
            "bytes_free": self.bytes_free, "pages": len(self.held), "visits": 0, "visits_last": 0,
            "period_left_s": 0.0, "cpu_share": 0.0, "bytes_sent": 0, "last_write_age_s": -1.0,
            "last_read_age_s": -1.0,
        }  # fmt: skip
        return Beat(**(fields | changed))

    def restart(self) -> None:
        self.incarnation += 1 << 32
        self.sequence = 0


class Job(Struct):
    server: int
    incarnation: int
    number: int
    message: Copy | Drop


class Desk:
    """names: servers that have joined and are live. More join by `join`."""

    def __init__(
        self,
        *names: str,
        config: Config = HASTY,
        store: CatalogDisk | None = None,
        seed: int = 1,
    ) -> None:
        self.now = 1000.0
        self.store = store or CatalogDisk(Random(seed), lambda: self.now)
        self.config = config
        self.balancer = Balancer(
            self.store.open(), self.store.load(), self.store.outcome, self.store.knows_start, self.config,
            Random(seed), self.now,
        )  # fmt: skip
        self.figures: dict[str, Figure] = {}
        self.answers: dict[int, Any] = {}
        self.handed: list[Decision] = []
        self.jobs: list[Job] = []
        self.asks: list[Ask] = []
        self.linked: list[int] = []
        self.log: list[str] = []
        self.silent: set[str] = set()
        """Servers that neither beat nor answer."""
        self._owed: list[tuple[float, Ask]] = []  # what the silent were asked, and until when
        self._token = 0
        for name in names:
            self.join(name)

    # -- events ---------------------------------------------------------------------

    def happen(self, event: Any) -> None:
        for effect in self.balancer.handle(event, self.now):
            self._lay_out(effect)
        self.balancer.check()

    def ask(self, message: Any) -> int:
        """A client asks; the token under which `answers` will have the answer."""
        self._token += 1
        self.happen(ClientAsked(self._token, messages.decode_client_request(encode(message))))
        return self._token

    def get(self, message: Any) -> Any:
        """A client asks and is answered at once."""
        return self.answers[self.ask(message)]

    def report(self, message: Any) -> Any:
        """A server asks and is answered at once."""
        self._token += 1
        self.happen(ServerAsked(self._token, messages.decode_server_request(encode(message))))
        return self.answers[self._token]

    def fsync(self, count: int = 1_000) -> None:
        """The writer makes the next decisions durable."""
        for _ in range(min(count, len(self.handed))):
            decision = self.handed.pop(0)
            decision.forget_at += self.now
            self.store.commit([decision], self.store.epoch)
            self.happen(Persisted(decision.number))

    def wait(self, seconds: float) -> None:
        """Time passes: servers that are not silent beat, are asked and answer."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.1)
            for figure in self.figures.values():
                if figure.name not in self.silent:
                    self.beat(figure)
            self.happen(Tick())
            self.answer_asks()

    def _lay_out(self, effect: Any) -> None:
        match effect:
            case Answer(token, message):
                assert token not in self.answers, "a request is answered twice"
                self.answers[token] = message
            case Persist(decision):
                self.handed.append(decision)
            case Push(server, frame):
                _, _, _, _, _, incarnation, number = HEADER.unpack_from(frame)
                job = messages.decode_job(frame[HEADER_BYTES:])
                self.jobs.append(Job(server, incarnation, number, job))
            case Ask():
                self.asks.append(effect)
            case Connect(server):
                self.linked.append(server)
            case Disconnect(server):
                self.linked = [each for each in self.linked if each != server]
            case Log(level, text):
                self.log.append(f"{level}: {text}")

    # -- servers ----------------------------------------------------------------------

    def join(self, name: str, held: list[Record] | None = None, **fields: Any) -> Figure:
        """A new server says hello, is compared and beats."""
        figure = Figure(name, name.encode().ljust(16, b"."), (1 << 32) + len(self.figures), **fields)
        figure.held = {(each.name, each.version): each for each in held or []}
        self.figures[name] = figure
        self.hello(figure)
        self.fsync()
        self.answer_asks()
        self.beat(figure)
        return figure

    def hello(self, figure: Figure, **changed: Any) -> Any:
        """It says hello, and where it is welcomed by a new start it remembers that and says so."""
        answer = self.report(figure.hello(**changed))
        if isinstance(answer, messages.Welcome):
            named, figure.told = figure.told, (answer.cluster, answer.epoch, answer.nonce, answer.decision)
            figure.no = answer.number
            if named[1:3] != figure.told[1:3]:
                answer = self.report(figure.hello(**changed))
        return answer

    def rejoin(self, figure: Figure) -> None:
        figure.restart()
        self.hello(figure)
        self.answer_asks()
        self.beat(figure)

    def answer_asks(self) -> None:
        """Servers answer all that they were asked, unless they are silent."""
        while self.asks:
            ask = self.asks.pop(0)
            figure = next(each for each in self.figures.values() if each.no == ask.server)
            if figure.name in self.silent:
                self._owed.append((self.now + ask.timeout_s, ask))
            else:
                self.happen(Answered(ask.tag, self.answer_of(figure, ask.message)))
        for owed in [each for each in self._owed if each[0] <= self.now]:
            self._owed.remove(owed)
            self.happen(Unanswered(owed[1].tag))

    def answer_of(self, figure: Figure, question: Any) -> Any:
        match question:
            case Ping():
                return Pong(figure.name, 0, 1, figure.incarnation)
            case Sums():
                return SumsAre(figure.number, figure.sums())
            case Manifest(_, bucket):
                return ManifestPage(bucket, figure.manifest(bucket), b"")
            case NodeStats():
                return NodeStatsAre(figure.name, 30.0, 0.0, {}, figure.hot, [])
            case Verify(_, records):
                held = [index for index, key in enumerate(records) if key in figure.held]
                bad = [index for index in held if records[index] in figure.damaged]
                return Verified([index for index in held if index not in bad], bad)
        raise AssertionError(question)

    def beat(self, figure: Figure, **changed: Any) -> None:
        figure.sequence += 1
        self.happen(Beaten(figure.id, figure.incarnation, figure.sequence, figure.beat(**changed)))

    def store_on(
        self, figure: Figure, *records: Record, drop: tuple[tuple[str, int], ...] = (), tell: bool = True
    ) -> None:
        """One change of a server's disk, and its report."""
        figure.number += 1
        for each in records:
            figure.held[each.name, each.version] = each
        for key in drop:
            del figure.held[key]
        if tell:
            change = Change(figure.number, list(records), [Dropped(*key) for key in drop])
            self.report(Stored(figure.incarnation, [change]))

    def die(self, figure: Figure) -> None:
        """Its connection breaks, and stays so until it is dead."""
        self.silent.add(figure.name)
        self.happen(LinkDown(figure.no))
        self.wait(self.config.down_dead_s + 0.2)

    def link(self, figure: Figure, up: bool) -> None:
        self.happen(LinkUp(figure.no) if up else LinkDown(figure.no))

    # -- what clients do ------------------------------------------------------------------

    def reserve(
        self,
        number: int,
        *pages: PutPage,
        copies: int = 2,
        deadline_s: float = 30.0,
        avoid: tuple[int, ...] = (),
        direct: bool = False,
    ) -> Any:
        request = Reserve(batch_id(number), self.epoch, list(pages), copies, deadline_s, list(avoid), direct)
        return self.get(request)

    def await_(self, number: int, seen: int = 0, patience_s: float = 5.0) -> int:
        return self.ask(Await(batch_id(number), seen, patience_s))

    def outcome(self, number: int) -> Any:
        """What is known of a batch, told at once or after a while."""
        token = self.await_(number, seen=99, patience_s=0.0)
        if token not in self.answers:
            self.wait(0.1)
        return self.answers[token]

    def remove(self, number: int, *names: str, condition: int = ANY) -> int:
        pages = [RemovePage(name, condition) for name in names]
        return self.ask(Remove(batch_id(number), self.epoch, pages, 30.0))

    def put(self, number: int, name: str, data: bytes = b"bytes", on: tuple[str, ...] = ()) -> int:
        """A put from Reserve to its fsync, stored by these servers: its version."""
        reserved = self.reserve(number, page(name, data), copies=len(on))
        for each in on:
            self.store_on(self.figures[each], record(name, reserved.version, data))
        self.fsync()
        assert self.version(name) == reserved.version
        return int(reserved.version)

    # -- what is to be seen ---------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.store.epoch

    def version(self, name: str) -> int:
        """The visible one; 0: none."""
        entry = self.balancer.catalog.pages.get(name)
        return entry.version if entry else 0

    def figure(self, no: int) -> Figure:
        return next(each for each in self.figures.values() if each.no == no)

    def take_jobs(self, kind: type[Any] = object) -> list[Job]:
        """Jobs pushed since the last call, of one kind; the others are passed over."""
        jobs, self.jobs = self.jobs, []
        return [job for job in jobs if isinstance(job.message, kind)]

    def errors(self) -> Counter[str]:
        return Counter(line.split(":")[0] for line in self.log)
