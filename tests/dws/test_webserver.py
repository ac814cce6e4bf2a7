"""The web server: whom it follows, what it takes in, what it refuses, what it tells.

The whole machine on a store in memory. What it hands to its writer lies in `to_write` until the test says
`write`; what it asks of its balancer lies in `reports`.
"""

from random import Random
from typing import Any

import pytest
from blake3 import blake3

from dws.config import Config
from dws.effects import Answer, AnswerData, AskPeer, Inspect, Log, Publish, Report, Write
from dws.following import Endpoints
from dws.limits import CHUNK_BYTES, FETCH_MAX_BYTES, INLINE_MAX_BYTES, MIB
from dws.messages import (
    NO_ROOM,
    NOT_HELD,
    Applied,
    Beat,
    Commit,
    CommitPage,
    Committed,
    Copy,
    Counted,
    Digests,
    Doubt,
    Drop,
    Dropped,
    Error,
    Fetch,
    Fetched,
    Hello,
    Manifest,
    NodeStats,
    Ping,
    Pong,
    Read,
    ReadData,
    ServerRef,
    Stage,
    Staged,
    StagePart,
    Stored,
    Sums,
    Unstage,
    Unstaged,
    Verified,
    Verify,
    Visits,
    Welcome,
    decode_job,
    encode,
)
from dws.names import make_version, sums_digest
from dws.sim.disks import PageDisk
from dws.store import Blob, OpResult, Remember, StoreBatch
from dws.webserver import (
    BalancerUp,
    Doubted,
    Figures,
    HttpUp,
    Inspected,
    JobCame,
    PeerAnswered,
    PeerAsked,
    ReportAnswered,
    ReportUnanswered,
    Tick,
    WebServer,
    Written,
)
from patterns.jobs import Dispatcher
from tests.dws.desk import batch_id, record

CLUSTER = b"C" * 16
EPOCH, NONCE = 4, 44


def welcome(epoch: int = EPOCH, nonce: int = NONCE, decision: int = 10, cluster: bytes = CLUSTER) -> Welcome:
    return Welcome(cluster, epoch, nonce, decision, 1, 0.25, 30.0)


class Bench:
    def __init__(self, store: PageDisk | None = None, config: Config | None = None) -> None:
        self.store = store or PageDisk(Random(1))
        self.now = 50.0
        self.server = WebServer(
            "web-1", self.store, Endpoints("tcp://web-1:1", "tcp://web-1:2"), config or Config(), self.now
        )
        self.answers: dict[int, Any] = {}
        self.data: dict[int, bytes] = {}
        self.reports: list[Report] = []
        self.to_write: list[Write] = []
        self.to_inspect: list[Inspect] = []
        self.asked: list[AskPeer] = []
        self.beats: list[Beat] = []
        self.log: list[str] = []
        self._token = 0

    def happen(self, event: Any) -> None:
        for effect in self.server.handle(event, self.now):
            match effect:
                case Answer(token, message):
                    assert token not in self.answers, "a request is answered twice"
                    self.answers[token] = message
                case AnswerData(token, message, data):
                    self.answers[token], self.data[token] = message, data
                case Report():
                    self.reports.append(effect)
                case Write():
                    self.to_write.append(effect)
                case AskPeer():
                    self.asked.append(effect)
                case Inspect():
                    self.to_inspect.append(effect)
                case Publish(beat):
                    self.beats.append(beat)
                case Log(level, text):
                    self.log.append(f"{level}: {text}")
        self.server.check()

    def write(self, count: int = 1_000, spoil: OpResult | None = None) -> None:
        """The writer does the next operations, or says of them what `spoil` is."""
        for _ in range(min(count, len(self.to_write))):
            write = self.to_write.pop(0)
            result = spoil or self.store.commit([write.op])[0]
            self.happen(Written(write.tag, result))

    def inspect(self) -> None:
        """The checker does what it was given."""
        while self.to_inspect:
            inspect = self.to_inspect.pop(0)
            self.happen(Inspected(inspect.tag, self.store.check(inspect.parts)))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, max(self.now + 0.01, self.server.wake_at()))
            self.happen(Tick(Figures(0.5, 1.0, 2.0)))

    # -- the balancer --------------------------------------------------------------------

    def report(self, kind: type[Any]) -> Any:
        """What the balancer was told last of this kind; it is off the list then."""
        found = [each for each in self.reports if isinstance(each.message, kind)][-1]
        self.reports.remove(found)
        return found

    def hello(self) -> Hello:
        self.happen(BalancerUp())
        found: Hello = self.reports[-1].message
        return found

    def told(self, answer: Any, kind: type[Any] = Hello) -> None:
        """The balancer answers the last hello (or report)."""
        self.happen(ReportAnswered(self.report(kind).tag, answer))

    def follow(self, **told: Any) -> None:
        """It takes a welcome, and says so if that is of a new start."""
        self.happen(BalancerUp())
        self.told(welcome(**told))
        self.write()
        if any(isinstance(each.message, Hello) for each in self.reports):
            self.told(welcome(**told))

    # -- peers -----------------------------------------------------------------------------

    def ask(self, message: Any, data: bytes = b"", peer: bytes = b"p") -> int:
        self._token += 1
        self.happen(PeerAsked(peer, self._token, message, memoryview(data)))
        return self._token

    def get(self, message: Any, data: bytes = b"") -> Any:
        """The answer, as soon as all is written."""
        token = self.ask(message, data)
        self.write()
        return self.answers[token]

    def stage(self, *pages: bytes, number: int = 1, offset: int = 0, **fields: Any) -> Stage:
        parts = [StagePart(page, offset, len(data)) for page, data in enumerate(pages)]
        asked = {"version": make_version(EPOCH, number), "incarnation": self.store.identity.incarnation}
        return Stage(batch_id(number), parts=parts, **(asked | fields))

    def commit(self, *pages: bytes, number: int = 1, **fields: Any) -> Commit:
        said = [
            CommitPage(page, f"/{page}", len(data), blake3(data).digest(), "", 0.0)
            for page, data in enumerate(pages)
        ]
        asked = {"version": make_version(EPOCH, number), "incarnation": self.store.identity.incarnation}
        return Commit(batch_id(number), pages=said, **(asked | fields))

    def put(self, *pages: bytes, number: int = 1) -> int:
        """Pages named /0, /1 … staged and committed: their version."""
        for page, data in enumerate(pages):
            for offset in range(0, len(data) or 1, CHUNK_BYTES):
                chunk = data[offset : offset + CHUNK_BYTES]
                part = [StagePart(page, offset, len(chunk))]
                request = self.stage(number=number)
                request.parts = part
                assert isinstance(self.get(request, chunk), Staged)
        assert isinstance(self.get(self.commit(*pages, number=number)), Committed)
        return make_version(EPOCH, number)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.follow()
    return made


# -- following a balancer --------------------------------------------------------------


def test_it_says_hello_with_the_last_truth_it_was_told() -> None:
    bench = Bench()
    first = bench.hello()
    assert (first.cluster, first.start_epoch, first.decision) == (b"", 0, 0)
    assert (first.name, first.pages_endpoint) == ("web-1", "tcp://web-1:1")
    bench.told(welcome())
    assert bench.server.epoch == 0, "an epoch begins when its start is on disk"
    bench.write()
    assert bench.server.epoch == EPOCH
    bench.store.restart()
    again = Bench(bench.store).hello()
    assert (again.cluster, again.start_epoch, again.start_nonce, again.decision) == (
        CLUSTER,
        EPOCH,
        NONCE,
        10,
    )
    assert again.incarnation > first.incarnation


def test_it_says_hello_until_it_is_welcomed_and_now_and_then_afterwards() -> None:
    bench = Bench()
    bench.wait(2.0)
    assert sum(isinstance(each.message, Hello) for each in bench.reports) >= 3
    bench.told(welcome())
    bench.write()
    bench.told(welcome())
    bench.reports.clear()
    bench.wait(10.0)
    assert 1 <= sum(isinstance(each.message, Hello) for each in bench.reports) <= 3


def test_it_tells_a_new_balancer_that_it_follows_until_that_is_answered(bench: Bench) -> None:
    """A balancer counts on a server from the hello that names its start; one that is lost is said again."""
    new = {"epoch": EPOCH + 1, "nonce": NONCE + 1}
    bench.happen(BalancerUp())
    late = bench.report(Hello)
    bench.happen(ReportAnswered(late.tag, welcome(**new)))
    assert not bench.reports, "its start is not on disk yet"
    bench.write()
    named = bench.report(Hello)
    assert (named.message.start_epoch, named.message.start_nonce) == (EPOCH + 1, NONCE + 1)
    bench.happen(ReportAnswered(late.tag, welcome(**new)))
    for _ in range(3):
        bench.wait(0.6)
        named = bench.report(Hello)
        bench.happen(ReportUnanswered(named.tag))
    bench.happen(ReportAnswered(named.tag, welcome(**new)))
    bench.wait(0.6)
    bench.reports.clear()
    bench.wait(3.0)
    assert not [each for each in bench.reports if isinstance(each.message, Hello)], "then only now and then"


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"cluster": b"D" * 16, "epoch": EPOCH + 1, "nonce": 1}, b"D".hex() * 16),
        ({"epoch": EPOCH - 1, "nonce": 1}, f"epoch {EPOCH - 1}"),
        ({"epoch": EPOCH + 1, "nonce": 1, "decision": 9}, "decision 9"),
        ({"epoch": EPOCH, "nonce": NONCE + 1}, "behind"),
    ],
)
def test_a_balancer_with_the_wrong_catalog_is_refused(bench: Bench, told: dict[str, Any], says: str) -> None:
    identity = bench.store.identity
    bench.follow(**told)
    assert bench.store.identity == identity and bench.server.epoch == EPOCH
    assert bench.log[-1].startswith("error: not joining") and says in bench.log[-1]
    bench.follow(epoch=EPOCH + 2, nonce=2, decision=11)
    assert bench.server.epoch == EPOCH + 2, "the right one is followed when it is back"


def test_a_refusal_is_logged_once(bench: Bench) -> None:
    before = len(bench.log)
    for _ in range(5):
        bench.follow(epoch=1, nonce=1)
    assert len(bench.log) == before + 1


def test_a_refused_hello_is_said_again_later() -> None:
    bench = Bench()
    bench.happen(BalancerUp())
    bench.told(Error("behind", "this catalog is an old copy"))
    assert "old copy" in bench.log[-1] and bench.server.epoch == 0
    bench.reports.clear()
    bench.wait(1.1)
    assert bench.report(Hello)


def test_the_highest_decision_told_is_kept_also_within_an_epoch(bench: Bench) -> None:
    """Else a backup of the catalog, taken in the middle of an epoch, could not be told from the newest."""
    bench.follow(decision=25)
    assert bench.store.identity.decision == 25
    assert bench.hello().decision == 25


def test_a_welcome_that_a_job_has_overtaken_is_no_reason_to_refuse(bench: Bench) -> None:
    bench.put(b"x")
    bench.happen(JobCame(Drop(NONCE, 12, [Dropped("/0", make_version(EPOCH, 1))])))
    bench.write()
    assert bench.store.identity.decision == 12
    bench.follow(decision=11)
    assert not any("error" in line for line in bench.log)
    assert bench.store.identity.decision == 12


def test_an_epoch_does_not_begin_if_its_start_could_not_be_written() -> None:
    bench = Bench()
    bench.happen(BalancerUp())
    bench.told(welcome())
    bench.write(spoil=OpResult(code="try-again", text="the disk is behind"))
    assert bench.server.epoch == 0
    bench.follow()
    assert bench.server.epoch == EPOCH


def test_what_a_balancer_before_answers_late_counts_for_nothing(bench: Bench) -> None:
    version = bench.put(b"page")
    late = bench.report(Stored)
    bench.follow(epoch=EPOCH + 1)
    bench.happen(JobCame(Drop(NONCE, 12, [Dropped("/0", version)])))
    bench.write()
    bench.wait(0.1)
    again = bench.report(Stored)
    bench.happen(ReportAnswered(late.tag, Applied(bench.store.number)))
    bench.happen(ReportUnanswered(late.tag))
    bench.wait(1.0)
    assert not [each for each in bench.reports if isinstance(each.message, Stored)], "one at a time"
    bench.happen(ReportAnswered(again.tag, Applied(-1)))
    bench.wait(1.0)
    assert bench.report(Stored).message.changes == again.message.changes, "this one has not applied it"


def test_a_late_welcome_of_the_balancer_before_is_no_reason_to_complain(bench: Bench) -> None:
    bench.hello()
    late = bench.report(Hello)
    bench.follow(epoch=EPOCH + 1)
    bench.log.clear()
    bench.happen(ReportAnswered(late.tag, welcome()))
    assert not bench.log and not bench.to_write


def test_two_welcomes_are_one_epoch(bench: Bench) -> None:
    bench.happen(BalancerUp())
    bench.happen(BalancerUp())
    bench.told(welcome(EPOCH + 1, 55))
    bench.told(welcome(EPOCH + 1, 55))
    assert [type(write.op) for write in bench.to_write] == [Remember]


# -- uploads and their fences ----------------------------------------------------------


def test_pages_are_stored_in_one_change_and_served(bench: Bench) -> None:
    pages = [b"", b"small", bytes(INLINE_MAX_BYTES + 1), bytes(range(256)) * 8192]
    version = bench.put(*pages)
    (change,) = bench.store.log
    assert [each.name for each in change.added] == ["/0", "/1", "/2", "/3"]
    assert [bench.store.get(f"/{page}", version) for page in range(4)] == pages
    assert not bench.store.staged


def test_a_stage_is_answered_when_it_is_written_and_a_commit_when_it_is_durable(bench: Bench) -> None:
    large = bytes(INLINE_MAX_BYTES + 1)
    token = bench.ask(bench.stage(large), large)
    assert token not in bench.answers
    bench.write()
    assert bench.answers[token] == Staged(0, len(large))
    token = bench.ask(bench.commit(large))
    assert token not in bench.answers
    bench.write()
    assert bench.answers[token] == Committed(1)


def test_a_commit_may_bring_the_bytes(bench: Bench) -> None:
    request = bench.commit(b"one", b"", b"two", with_bytes=True)
    assert isinstance(bench.get(request, b"onetwo"), Committed)
    version = make_version(EPOCH, 1)
    assert [bench.store.get(f"/{page}", version) for page in range(3)] == [b"one", b"", b"two"]
    assert isinstance(bench.get(request, b"onetwo"), Committed), "and may come twice"
    assert bench.store.number == 1


def test_a_commit_that_brings_the_bytes_joins_what_is_staged(bench: Bench) -> None:
    bench.get(bench.stage(b"one"), b"one")
    assert isinstance(bench.get(bench.commit(b"one", b"two", with_bytes=True), b"onetwo"), Committed)


@pytest.mark.parametrize(
    ("page", "data", "code"),
    [
        (b"one", b"on", "bad-request"),
        (b"one", b"", "bad-request"),
        (b"one", b"two", "integrity"),
        (bytes(INLINE_MAX_BYTES + 1), bytes(INLINE_MAX_BYTES + 1), "over-bound"),
    ],
)
def test_a_commit_with_other_bytes_than_it_says_is_refused(
    bench: Bench, page: bytes, data: bytes, code: str
) -> None:
    assert bench.get(bench.commit(page, with_bytes=True), data).code == code
    assert bench.store.number == 0
    assert bench.get(bench.commit(page)).code == "not-held", "nothing of it is staged"


def test_a_commit_sent_again_is_one_commit_each_time_answered(bench: Bench) -> None:
    bench.get(bench.stage(b"x"), b"x")
    tokens = [bench.ask(bench.commit(b"x")) for _ in range(3)]
    assert sum(isinstance(write.op, StoreBatch) for write in bench.to_write) == 1
    bench.write()
    assert {type(bench.answers[token]) for token in tokens} == {Committed}
    assert bench.get(bench.commit(b"x")) == Committed(1), "and when it is done"


@pytest.mark.parametrize(
    "late",
    [{"incarnation": 1}, {"version": make_version(EPOCH - 1, 1)}, {"version": make_version(EPOCH + 1, 1)}],
)
def test_requests_of_another_life_or_epoch_are_stale(bench: Bench, late: dict[str, int]) -> None:
    assert bench.get(bench.stage(b"x", **late), b"x").code == "stale"
    bench.get(bench.stage(b"x"), b"x")
    assert bench.get(bench.commit(b"x", **late)).code == "stale"
    assert not bench.store.held


def test_nothing_is_taken_before_a_balancer_is_followed() -> None:
    bench = Bench()
    assert bench.get(bench.stage(b"x"), b"x").code == "stale"


def test_a_commit_that_waits_when_the_epoch_ends_is_fenced_by_the_store(bench: Bench) -> None:
    """It passed the server's own check; the check that counts is the one in its transaction."""
    bench.get(bench.stage(b"x"), b"x")
    token = bench.ask(bench.commit(b"x"))
    bench.happen(BalancerUp())
    bench.told(welcome(EPOCH + 1, 55))
    bench.to_write.reverse()
    bench.write()
    assert bench.server.epoch == EPOCH + 1
    assert bench.answers[token].code == "stale" and not bench.store.held


def test_a_wrong_digest_is_refused_and_the_upload_forgotten(bench: Bench) -> None:
    large = bytes(INLINE_MAX_BYTES + 1)
    bench.get(bench.stage(large), large)
    assert bench.get(bench.commit(b"x" * len(large))).code == "integrity"
    assert bench.get(bench.commit(large)).code == "not-held"
    assert not bench.store.staged


def test_a_full_disk_refuses_the_upload_and_accepts_again_when_there_is_room(bench: Bench) -> None:
    version = bench.put(b"kept")
    bench.store.quota_bytes = 1000
    large = bytes(INLINE_MAX_BYTES + 1)
    assert bench.get(bench.stage(large, number=2), large).code == "full"
    small = bytes(2000)
    bench.get(bench.stage(small, number=3), small)
    assert bench.get(bench.commit(small, number=3)).code == "full"
    assert bench.store.get("/0", version) == b"kept"
    bench.store.quota_bytes = 10 * MIB
    bench.put(large, number=2)


def test_a_part_that_could_not_be_written_is_not_taken_for_staged(bench: Bench) -> None:
    """What follows it would not join what is on the disk: the upload begins anew, and says why."""
    data = bytes(range(256)) * (3 * CHUNK_BYTES // 256)
    cut = [data[begin : begin + CHUNK_BYTES] for begin in range(0, len(data), CHUNK_BYTES)]
    bench.get(bench.stage(cut[0]), cut[0])
    token = bench.ask(bench.stage(cut[1], offset=CHUNK_BYTES), cut[1])
    bench.write(spoil=OpResult(code="try-again", text="the disk is behind"))
    assert bench.answers[token].code == "try-again"
    bench.write()
    assert bench.get(bench.stage(cut[1], offset=CHUNK_BYTES), cut[1]) == Staged(0, 0), "from the start"
    assert not bench.store.staged
    bench.put(data)
    assert bench.store.get("/0", make_version(EPOCH, 1)) == data


def test_the_fault_of_any_part_is_told_of_its_message(bench: Bench) -> None:
    two = bytes(INLINE_MAX_BYTES + 1)
    token = bench.ask(bench.stage(two, two), two + two)
    bench.write(1, spoil=OpResult(code="full", text="no room"))
    bench.write()
    assert bench.answers[token].code == "full"
    assert bench.get(bench.commit(two, two)).code == "not-held"
    assert not bench.store.staged


def test_uploads_keep_the_disks_pace() -> None:
    bench = Bench(config=Config(write_queue_bytes=FETCH_MAX_BYTES))
    bench.follow()
    chunk = bytes(CHUNK_BYTES)
    tokens = [bench.ask(bench.stage(chunk, number=number), chunk) for number in range(1, 7)]
    assert [bench.answers[token].code for token in tokens[4:]] == ["try-again"] * 2
    assert all(bench.answers[token].retry_s > 0 for token in tokens[4:])
    bench.write()
    assert bench.get(bench.stage(chunk, number=5), chunk) == Staged(0, CHUNK_BYTES)


def test_what_was_staged_is_dropped_when_asked_or_idle_or_of_another_epoch(bench: Bench) -> None:
    large = bytes(INLINE_MAX_BYTES + 1)
    bench.get(bench.stage(large), large)
    assert bench.get(Unstage(batch_id(1))) == Unstaged()
    assert not bench.store.staged
    for ends in (lambda: bench.wait(31.0), lambda: bench.follow(epoch=EPOCH + 1, nonce=5)):
        bench.get(bench.stage(large), large)
        assert bench.store.staged
        ends()
        bench.wait(0.5)
        bench.write()
        assert not bench.store.staged


# -- jobs ------------------------------------------------------------------------------


def drop(*keys: tuple[str, int], nonce: int = NONCE) -> Drop:
    return Drop(nonce, 20, [Dropped(*key) for key in keys])


def test_a_drop_deletes_in_one_change_what_is_there(bench: Bench) -> None:
    version = bench.put(b"a", b"b")
    bench.happen(JobCame(drop(("/0", version), ("/1", version), ("/2", version))))
    bench.write()
    assert not bench.store.held
    assert [each.name for each in bench.store.log[-1].dropped] == ["/0", "/1"]
    assert bench.store.identity.decision == 20


def test_a_job_of_a_start_that_is_not_followed_is_refused(bench: Bench) -> None:
    version = bench.put(b"a")
    bench.happen(JobCame(drop(("/0", version), nonce=NONCE + 1)))
    assert not bench.to_write and bench.store.held
    assert bench.log[-1].startswith("error") and bench.server.counters["jobs of another catalog"] == 1


def test_a_drop_that_waits_when_the_epoch_ends_deletes_nothing(bench: Bench) -> None:
    version = bench.put(b"a")
    bench.happen(JobCame(drop(("/0", version))))
    bench.happen(BalancerUp())
    bench.told(welcome(EPOCH + 1, 55))
    bench.to_write.reverse()
    bench.write()
    assert bench.store.held and bench.server.counters["dropped: stale"] == 1


def test_the_gate_lets_numbered_jobs_of_this_life_and_epoch_through_once(bench: Bench) -> None:
    incarnation = bench.store.identity.incarnation

    def frames(cluster: bytes = CLUSTER, epoch: int = EPOCH, life: int = incarnation) -> list[bytes]:
        dispatcher: Dispatcher[int] = Dispatcher(cluster, epoch, 8, 8, 10.0)
        dispatcher.worker(life)
        for number in range(2):
            dispatcher.add(number, encode(drop(("/0", number))))
        return dispatcher.poll(0.0)

    accept = bench.server.gate.accept
    first, second = frames()
    body = accept(second)
    assert body is not None and decode_job(body) == drop(("/0", 1))
    assert accept(second) is None and accept(first) is None, "passed"
    for wrong in ({"cluster": b"D" * 16}, {"epoch": EPOCH + 1}, {"life": incarnation + 1}):
        assert all(accept(frame) is None for frame in frames(**wrong)), wrong
    bench.follow(epoch=EPOCH + 1, nonce=5)
    assert accept(frames(epoch=EPOCH + 1)[0]) is not None, "in a new epoch numbers begin anew"


def test_a_copy_is_fetched_from_its_source_and_stored(bench: Bench) -> None:
    source = ServerRef(2, "web-2", "tcp://web-2:1", 9)
    bench.happen(JobCame(Copy(NONCE, 15, source, [record("/a", make_version(EPOCH, 7))])))
    (ask,) = bench.asked
    assert ask.endpoint == source.endpoint
    bench.happen(PeerAnswered(ask.tag, Fetched([5]), memoryview(b"bytes")))
    bench.write()
    assert bench.store.get("/a", make_version(EPOCH, 7)) == b"bytes"
    assert bench.report(Stored).message.changes[0].added == [record("/a", make_version(EPOCH, 7))]


# -- reports ---------------------------------------------------------------------------


def test_changes_are_told_in_order_one_report_at_a_time(bench: Bench) -> None:
    bench.put(b"a", number=1)
    first = bench.report(Stored)
    bench.put(b"b", number=2)
    bench.put(b"c", number=3)
    assert not bench.reports, "the first is not answered yet"
    bench.happen(ReportAnswered(first.tag, Applied(1)))
    second = bench.report(Stored).message
    assert [change.number for change in first.message.changes] == [1]
    assert [change.number for change in second.changes] == [2, 3]
    assert second.incarnation == bench.store.identity.incarnation


@pytest.mark.parametrize("lost", ["unanswered", "not now", "say hello first"])
def test_a_report_that_was_not_taken_is_told_again(bench: Bench, lost: str) -> None:
    bench.put(b"a")
    report = bench.report(Stored)
    answers = {"not now": Applied(-1), "say hello first": Error("refused", "say hello first")}
    if lost == "unanswered":
        bench.happen(ReportUnanswered(report.tag))
    else:
        bench.happen(ReportAnswered(report.tag, answers[lost]))
    assert not bench.reports
    bench.wait(0.2)
    assert [change.number for change in bench.report(Stored).message.changes] == [1]
    said_hello = any(isinstance(each.message, Hello) for each in bench.reports)
    assert said_hello == (lost == "say hello first")


def test_it_says_hello_within_a_second_of_a_change_to_hear_of_the_decision(bench: Bench) -> None:
    """Whoever restores an old copy of the catalog is refused by a server that was told of more."""
    bench.wait(1.5)
    bench.put(b"a")
    bench.happen(ReportAnswered(bench.report(Stored).tag, Applied(1)))
    bench.reports.clear()
    bench.wait(1.1)
    bench.told(welcome(decision=26))
    bench.write()
    assert bench.store.identity.decision == 26
    bench.reports.clear()
    bench.wait(3.0)
    assert not [each for each in bench.reports if isinstance(each.message, Hello)], "then only now and then"


def test_the_balancers_answer_says_where_to_go_on(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.put(b"x", number=number)
    report = bench.report(Stored)
    bench.happen(ReportAnswered(report.tag, Applied(3)))
    bench.put(b"x", number=4)
    assert [change.number for change in bench.report(Stored).message.changes] == [4]


def test_where_the_log_reaches_no_further_back_reports_go_on_after_a_comparison() -> None:
    """The balancer was away for long. It compares manifests when beats show it behind; till then nothing
    can be told, and afterwards all that is new."""
    bench = Bench(PageDisk(Random(1), log_max=2))
    bench.follow()
    for number in range(1, 6):
        bench.put(b"x", number=number)
    first = bench.report(Stored)
    bench.happen(ReportUnanswered(first.tag))
    bench.wait(0.2)
    empty = bench.report(Stored)
    assert empty.message.changes == []
    bench.happen(ReportAnswered(empty.tag, Applied(5)))
    bench.put(b"x", number=6)
    assert [change.number for change in bench.report(Stored).message.changes] == [6]


def test_a_large_number_of_records_is_told_in_parts(bench: Bench) -> None:
    for number in range(1, 4):
        version = make_version(EPOCH, number)
        for_one_change = [Blob(record(f"/{page}", version), b"bytes") for page in range(900)]
        bench.store.commit([StoreBatch(for_one_change, bench.store.identity.incarnation, EPOCH)])
    bench.put(b"x", number=4)
    assert [change.number for change in bench.report(Stored).message.changes] == [1, 2]


# -- heartbeats ------------------------------------------------------------------------


def test_beats_come_four_times_a_second_with_the_digest_of_their_change_number(bench: Bench) -> None:
    bench.beats.clear()
    bench.wait(2.0)
    assert 8 <= len(bench.beats) <= 9
    version = bench.put(b"page")
    bench.server.fetch(Fetch([("/0", version), ("/0", version + 1)]))
    bench.wait(0.3)
    beat = bench.beats[-1]
    assert (beat.number, beat.sums_digest) == (1, sums_digest(bench.store.summary()[1]))
    assert (beat.pages, beat.bytes_stored, beat.served, beat.failed) == (1, 4, 1, 1)
    assert (beat.visits, beat.bytes_sent, beat.cpu_share, beat.last_write_age_s) == (1, 4, 0.5, 1.0)


def test_the_balancer_sets_the_pace_of_beats_and_periods(bench: Bench) -> None:
    bench.happen(BalancerUp())
    bench.told(Welcome(CLUSTER, EPOCH + 1, 5, 10, 1, 1.0, 6.0))
    bench.write()
    bench.beats.clear()
    bench.wait(6.0)
    assert 5 <= len(bench.beats) <= 7
    assert bench.beats[-1].period_left_s <= 6.0


# -- the data plane and questions ------------------------------------------------------


def test_fetch_answers_page_by_page_what_is_held_and_fits(bench: Bench) -> None:
    pages = [bytes(MIB)] * 5
    version = bench.put(*pages)
    asked = [("/none", version), *((f"/{page}", version) for page in range(5)), ("/0", version + 1)]
    reply, data = bench.server.fetch(Fetch(asked))
    assert reply.sizes == [NOT_HELD, *[MIB] * 4, NO_ROOM, NO_ROOM]
    assert len(data) == 4 * MIB == FETCH_MAX_BYTES


def test_read_gives_at_most_a_chunk_and_the_end_of_a_page(bench: Bench) -> None:
    data = bytes(range(256)) * 4096 + b"end"
    version = bench.put(data)
    read = bench.server.read
    assert read(Read("/0", version, 0, 1 << 40)) == (ReadData(0, CHUNK_BYTES), data[:CHUNK_BYTES])
    assert read(Read("/0", version, CHUNK_BYTES, CHUNK_BYTES)) == (ReadData(CHUNK_BYTES, 3), b"end")
    answer, _ = read(Read("/0", version + 1, 0, 1))
    assert isinstance(answer, Error) and answer.code == "not-held"


def test_digest_lists_are_told_of_pages_that_have_one(bench: Bench) -> None:
    version = bench.put(bytes(CHUNK_BYTES + 1), b"small")
    token = bench.ask(Digests("/0", version))
    assert bench.answers[token].chunks == 2 and len(bench.data[token]) == 64
    token = bench.ask(Digests("/1", version))
    assert bench.answers[token].chunks == 0
    assert bench.get(Digests("/2", version)).code == "not-held"


def test_sums_and_manifests_are_of_the_incarnation_that_was_meant(bench: Bench) -> None:
    bench.put(b"a")
    mine = bench.store.identity.incarnation
    assert bench.get(Sums(mine)).number == 1
    assert bench.get(Sums(mine - 1)).code == "stale"
    assert bench.get(Manifest(mine - 1, 0, b"", 10)).code == "stale"
    found = [each for bucket in range(256) for each in bench.get(Manifest(mine, bucket, b"", 10)).records]
    assert [each.name for each in found] == ["/0"]


def pong(bench: Bench) -> Pong:
    return Pong("web-1", 0, EPOCH, bench.store.identity.incarnation)


def test_a_ping_and_a_look_at_the_counters_are_answered(bench: Bench) -> None:
    assert bench.get(Ping()) == pong(bench)
    version = bench.put(b"page")
    for _ in range(3):
        bench.server.fetch(Fetch([("/0", version)]))
    stats = bench.get(NodeStats(5))
    assert stats.hot == [("/0", 3, 12)] and stats.counters["served"] == 3


# -- damage --------------------------------------------------------------------------------


def test_verify_is_of_the_incarnation_that_was_meant_and_waits_for_the_checker(bench: Bench) -> None:
    version = bench.put(b"good", b"bad")
    bench.store.rot("/1", version)
    mine = bench.store.identity.incarnation
    assert bench.get(Verify(mine - 1, [("/0", version)])).code == "stale"
    token = bench.ask(Verify(mine, [("/0", version), ("/1", version), ("/2", version)]))
    bench.wait(0.1)
    assert token not in bench.answers
    bench.inspect()
    assert bench.answers[token] == Verified([0], [1])


@pytest.mark.parametrize("who", ["a reader", "the endpoint", "the store"])
def test_a_damaged_page_that_somebody_met_leaves_the_server_as_a_change(bench: Bench, who: str) -> None:
    version = bench.put(b"good", b"bad")
    bench.told(Applied(bench.store.number), Stored)
    bench.store.rot("/1", version)
    if who == "a reader":
        assert bench.get(Doubt([("/1", version), ("/unknown", 3)])) == pong(bench)
    elif who == "the endpoint":
        bench.get(Visits(b"e" * 16, 1, 0, 1, 0, [], damaged=[("/1", version)]))
    else:
        bench.happen(Doubted([("/1", version)]))
    for _ in range(10):
        bench.wait(0.2)
        bench.inspect()
        bench.write()
    (change,) = bench.report(Stored).message.changes
    assert change.dropped == [Dropped("/1", version)]
    assert bench.server.fetch(Fetch([("/1", version)]))[0] == Fetched([NOT_HELD])
    assert bench.beats[-1].damaged == 1
    assert bench.get(NodeStats(0)).counters["damaged pages set aside"] == 1


def test_a_beat_tells_what_the_disk_owes(bench: Bench) -> None:
    bench.now += 1.0
    bench.happen(Tick(Figures(0.5, 1.0, 2.0, write_wait_s=3.0, read_wait_s=4.0)))
    beat = bench.beats[-1]
    assert (beat.last_write_age_s, beat.last_read_age_s) == (1.0, 2.0)
    assert (beat.write_wait_s, beat.read_wait_s) == (3.0, 4.0)


# -- its HTTP endpoint -----------------------------------------------------------------


def test_it_tells_the_balancer_where_its_http_endpoint_is(bench: Bench) -> None:
    assert bench.hello().http_endpoint == ""
    bench.happen(HttpUp("http://web-1:80"))
    assert bench.report(Hello).message.http_endpoint == "http://web-1:80"
    bench.happen(HttpUp(""))
    assert bench.report(Hello).message.http_endpoint == ""


def test_what_its_http_endpoint_served_counts_once() -> None:
    bench = Bench()
    report = Visits(b"e" * 16, 1, 3, 1, 300, [("/a", 2, 200), ("/b", 1, 100)], [2, 0, 1])
    assert bench.get(report) == Counted(-1, 0)
    bench.follow()
    assert bench.get(report) == Counted(1, EPOCH)
    bench.wait(1.0)
    beat = bench.beats[-1]
    assert (beat.served, beat.failed, beat.visits, beat.bytes_sent) == (3, 1, 3, 300)
    stats = bench.get(NodeStats(10))
    assert stats.hot == [("/a", 2, 200), ("/b", 1, 100)]
    assert stats.response[:4] == [2, 0, 1, 0]
