"""The writer thread: group commit, results through a doorbell, failures raised in the loop.

The test is the loop. `Disk` executes the jobs and can be held up, so that what happens
meanwhile is the test's choice and not the scheduler's.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from threading import Event, current_thread

import pytest
import zmq

from patterns.zeromq.writer import Writer

WAIT_MS = 10_000
ROOMY = {"pages": (100, 10_000)}

Job = str


class Broken(Exception):
    """A failed fsync."""


class Disk:
    def __init__(self) -> None:
        self.batches: list[list[Job]] = []
        self.begun, self.may_end = Event(), Event()
        self.may_end.set()
        self.threads: set[str] = set()

    def hold(self) -> None:
        self.begun.clear()
        self.may_end.clear()

    def execute(self, jobs: Sequence[Job]) -> list[str]:
        self.batches.append(list(jobs))
        self.threads.add(current_thread().name)
        self.begun.set()
        assert self.may_end.wait(WAIT_MS / 1000)
        if "bad" in jobs:
            raise Broken
        return [f"{job} done" for job in jobs]


MakeWriter = Callable[..., Writer[Job, str]]


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def make_writer(context: zmq.Context[zmq.Socket[bytes]], disk: Disk) -> Iterator[MakeWriter]:
    made: list[Writer[Job, str]] = []

    def make(classes: dict[str, tuple[int, int]] = ROOMY, batch_bytes: int = 1000) -> Writer[Job, str]:
        made.append(Writer(context, "writer", disk.execute, classes, batch_bytes))
        return made[-1]

    yield make
    disk.may_end.set()
    for writer in made:
        writer.close()


def results(writer: Writer[Job, str], wanted: int) -> list[tuple[Job, str]]:
    """So many results, fetched whenever the writer's socket is readable, as a loop does."""
    fetched: list[tuple[Job, str]] = []
    while len(fetched) < wanted:
        assert writer.socket.poll(WAIT_MS), "nobody rang"
        fetched += writer.results()
    return fetched


def occupy(writer: Writer[Job, str], disk: Disk, name: str = "pages") -> None:
    """Holds the thread up inside a batch of its own."""
    disk.hold()
    assert writer.submit(name, "first", 1)
    assert disk.begun.wait(WAIT_MS / 1000)


def test_jobs_come_back_with_their_results_from_a_thread_of_its_own(
    make_writer: MakeWriter, disk: Disk
) -> None:
    writer = make_writer()
    assert writer.submit("pages", "job", 10)
    assert results(writer, 1) == [("job", "job done")]
    assert disk.threads == {"writer"}
    assert writer.results() == []
    assert not writer.socket.poll(0)


def test_jobs_that_wait_together_share_a_batch(make_writer: MakeWriter, disk: Disk) -> None:
    writer = make_writer()
    occupy(writer, disk)
    for number in range(5):
        assert writer.submit("pages", f"job {number}", 10)
    assert writer.results() == []
    disk.may_end.set()
    finished = results(writer, 6)
    assert disk.batches == [["first"], [f"job {number}" for number in range(5)]]
    assert [job for job, _ in finished] == ["first", *(f"job {number}" for number in range(5))]


def test_a_batch_takes_no_more_than_its_bytes(make_writer: MakeWriter, disk: Disk) -> None:
    writer = make_writer(batch_bytes=20)
    occupy(writer, disk)
    for number in range(5):
        assert writer.submit("pages", str(number), 10)
    disk.may_end.set()
    results(writer, 6)
    assert disk.batches == [["first"], ["0", "1"], ["2", "3"], ["4"]]


def test_a_class_at_its_bound_is_refused_and_accepts_again_later(make_writer: MakeWriter, disk: Disk) -> None:
    writer = make_writer({"pages": (10, 30), "catalog": (10, 30)})
    occupy(writer, disk)
    assert [writer.submit("pages", "page", 10) for _ in range(4)] == [True, True, True, False]
    assert writer.submit("catalog", "entry", 10)
    disk.may_end.set()
    results(writer, 5)
    assert writer.submit("pages", "page", 10)
    results(writer, 1)


def test_a_flood_of_one_class_does_not_delay_another(make_writer: MakeWriter, disk: Disk) -> None:
    writer = make_writer({"copies": (10, 10_000), "puts": (10, 10_000)}, batch_bytes=20)
    occupy(writer, disk, "copies")
    for _ in range(100):
        assert writer.submit("copies", "copy", 10)
    assert writer.submit("puts", "put", 10)
    disk.may_end.set()
    results(writer, 102)
    assert "put" in [job for batch in disk.batches[:3] for job in batch]


def test_no_job_is_lost_or_done_twice_however_submits_and_batches_meet(
    make_writer: MakeWriter, disk: Disk, seed: int
) -> None:
    """A lost ring would leave jobs waiting for good."""
    random = Random(seed)
    writer = make_writer(batch_bytes=30)
    finished: list[tuple[Job, str]] = []
    for number in range(3000):
        assert writer.submit("pages", str(number), random.choice([0, 10, 30]))
        if random.random() < 0.3:
            finished += results(writer, number + 1 - len(finished))
    finished += results(writer, 3000 - len(finished))
    assert [job for job, _ in finished] == [str(number) for number in range(3000)]
    assert set(Counter(job for batch in disk.batches for job in batch).values()) == {1}


# Failure


def test_what_execute_raises_is_raised_in_the_loop(make_writer: MakeWriter) -> None:
    writer = make_writer()
    writer.submit("pages", "bad", 10)
    assert writer.socket.poll(WAIT_MS)
    with pytest.raises(Broken):
        writer.results()
    writer.submit("pages", "after", 10)  # nothing is executed after a failure, and the loop is told again
    with pytest.raises(Broken):
        writer.results()
    writer.close()


def test_nothing_is_executed_after_a_failure(make_writer: MakeWriter, disk: Disk) -> None:
    writer = make_writer(batch_bytes=10)
    occupy(writer, disk)
    for job in ("bad", "after"):
        writer.submit("pages", job, 10)
    disk.may_end.set()
    with pytest.raises(Broken):
        results(writer, 3)
    assert disk.batches == [["first"], ["bad"]]


def test_a_failure_that_the_loop_has_not_fetched_is_raised_by_close(make_writer: MakeWriter) -> None:
    writer = make_writer()
    writer.submit("pages", "bad", 10)
    with pytest.raises(Broken):
        writer.close()
    writer.close()


def test_too_few_results_for_a_batch_are_a_failure(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    writer: Writer[Job, str] = Writer(context, "writer", lambda _: [], ROOMY, 1000)
    writer.submit("pages", "job", 10)
    assert writer.socket.poll(WAIT_MS)
    with pytest.raises(ValueError, match="shorter"):
        writer.results()
    writer.close()


# The end


def test_close_executes_what_is_queued(make_writer: MakeWriter, disk: Disk) -> None:
    writer = make_writer(batch_bytes=20)
    occupy(writer, disk)
    for number in range(5):
        writer.submit("pages", str(number), 10)
    disk.may_end.set()
    writer.close()
    assert disk.batches == [["first"], ["0", "1"], ["2", "3"], ["4"]]
    assert writer.socket.closed
    writer.close()


def test_a_writer_without_jobs_closes_at_once(make_writer: MakeWriter, disk: Disk) -> None:
    make_writer().close()
    assert disk.batches == []
