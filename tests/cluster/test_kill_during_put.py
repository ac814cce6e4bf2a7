"""kill -9 of the balancer, the primary or the backup at each step of a put, reached without chance.

The put is the client's own. `Steps` watches what this process sends and stops it for a deed where the step is
reached: before or after one of the put's messages goes out, or in the put's own progress report. What must
come about there and stay so, such as one copy stored and not two, or a decision handed to the disk and not
yet written, is held by the disks of the nodes (`hold_disk`). So at every kill it is known how far the put had
come.
"""

import io
import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from dws.errors import NeverStored, OutcomeUnknown, TimedOut, Unreachable
from dws.limits import MIB
from dws.messages import (
    ABSENT,
    ANY,
    Await,
    Commit,
    CommitPage,
    Ping,
    PutPage,
    Reserve,
    Stage,
    Staged,
    StagePart,
)
from dws.nodes.client import Progress, PutResult
from patterns.zeromq.calls import Calls
from tests.cluster.conftest import ClusterUnderTest, Wire, until

BEFORE_RESERVE = "before Reserve"
RESERVED = "after Reserve"
STAGING = "during Stage"
COMMITTING = "after Commit was sent"
ONE_STORED = "after one of two has stored"
DECIDING = "while the decision is written"
VISIBLE = "just after it is visible"
STEPS = (BEFORE_RESERVE, RESERVED, STAGING, COMMITTING, ONE_STORED, DECIDING, VISIBLE)

Deed = Callable[[str], None]


class Steps:
    """Does each deed once, when its step of a put is reached, with the name of the put's primary
    ("" before there is one)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cluster: ClusterUnderTest) -> None:
        self.deeds: dict[str, Deed] = {}
        self._cluster = cluster
        self._primary = ""
        call = Calls.call

        def stepped(calls: Any, endpoint: str, body: bytes, *rest: Any) -> int:
            kind = msgspec.msgpack.decode(body)[0]
            self._before(kind, endpoint)
            request_id = call(calls, endpoint, body, *rest)
            self._after(kind)
            return request_id

        monkeypatch.setattr(Calls, "call", stepped)

    def _before(self, kind: str, endpoint: str) -> None:
        if kind == "reserve":
            self.reached(BEFORE_RESERVE)
        elif kind == "stage":
            nodes = self._cluster.nodes.values()
            self._primary = next((node.name for node in nodes if node.endpoint == endpoint), "")
            self.reached(RESERVED)

    def _after(self, kind: str) -> None:
        if kind == "stage":
            self.reached(STAGING)
        elif kind == "commit":
            self.reached(COMMITTING)

    def progress(self, progress: Progress) -> None:
        if progress.copies_stored:
            self.reached(ONE_STORED if progress.copies_stored == 1 else DECIDING)

    def reached(self, step: str) -> None:
        deed = self.deeds.pop(step, None)
        if deed is not None:
            deed(self._primary)


def body_of(seed: int) -> bytes:
    """Two chunks and a bit: a page with staged files and a digest list."""
    return random.Random(seed).randbytes(2 * MIB + 4321)


class Kills:
    """Puts, in each of which one node is killed at one step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cluster: ClusterUnderTest) -> None:
        self.victim = ""
        self.cluster = cluster
        self.held = ExitStack()
        self.steps = Steps(monkeypatch, cluster)
        self._step = self._role = ""
        self._restart = True
        self._files_before: dict[str, set[str]] = {}

    def put(
        self, role: str, step: str, pages: dict[str, Any], *, restart: bool = True, **options: Any
    ) -> PutResult:
        """The put, in the midst of which the node in this role is killed and, if a balancer, restarted."""
        self._role, self._step, self._restart = role, step, restart
        self._files_before = {name: self._files(name) for name in self.cluster.webservers}
        self.steps.deeds = {step: self._kill}
        if step == ONE_STORED:
            self.steps.deeds[RESERVED] = lambda primary: self.hold(*self.others(primary))
        if step == DECIDING:
            self.hold("balancer")
        try:
            with self.cluster.client() as client:
                result = client.put(pages, on_progress=self.steps.progress, **options)
                self.steps.reached(VISIBLE)
                return result
        finally:
            self.held.close()
            assert not self.steps.deeds, f"the put never came to {', '.join(self.steps.deeds)}"

    def hold(self, *names: str) -> None:
        for name in names:
            self.held.enter_context(self.cluster.hold_disk(name))

    def _kill(self, primary: str) -> None:
        self.victim = {"balancer": "balancer", "primary": primary}.get(self._role) or self._backup(primary)
        self.cluster.kill(self.victim)
        self.held.close()
        if self.victim == "balancer" and self._restart:
            self.cluster.start("balancer")

    def _backup(self, primary: str) -> str:
        """Who copies, as the disks tell; before anybody does, any other server."""
        others = self.others(primary)
        if self._step not in (DECIDING, VISIBLE):
            return others[0]
        return until(lambda: next(filter(self._has_news, others), None), "a backup has the page")

    def others(self, primary: str) -> list[str]:
        return [name for name in self.cluster.webservers if name != primary]

    def _has_news(self, name: str) -> bool:
        return self._files(name) > self._files_before[name]

    def _files(self, name: str) -> set[str]:
        return {path.name for path in (self.cluster.data(name) / "pages").glob("*/*")}


@pytest.fixture
def kills(cluster: Callable[..., ClusterUnderTest], monkeypatch: pytest.MonkeyPatch) -> Kills:
    return Kills(monkeypatch, cluster(webservers=3))


# A put that can be made again outlives every kill


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("role", "steps"),
    [
        ("balancer", (BEFORE_RESERVE, RESERVED, STAGING)),
        ("balancer", (COMMITTING, ONE_STORED, DECIDING, VISIBLE)),
        # The client waits some seconds for a primary that has not answered a Stage.
        pytest.param("primary", (RESERVED, STAGING), marks=SLOW),
        ("primary", (COMMITTING, ONE_STORED, DECIDING, VISIBLE)),
        pytest.param("backup", (BEFORE_RESERVE, RESERVED, STAGING), marks=SLOW),
        ("backup", (COMMITTING, ONE_STORED, DECIDING, VISIBLE)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} steps",
)
def test_a_put_outlives_a_kill(kills: Kills, role: str, steps: tuple[str, ...]) -> None:
    cluster = kills.cluster
    for step in steps:
        print(f"kill the {role} {step}")
        name, body = f"/{role}/{STEPS.index(step)}", body_of(STEPS.index(step))
        kills.put(role, step, {name: body})
        if kills.victim != "balancer":
            # One that had stored it may have died between the decision and its being written.
            cluster.check_stored(name, body, copies=1 if step in (DECIDING, VISIBLE) else 2)
            cluster.start(kills.victim)
        cluster.wait_alive()
        cluster.check_stored(name, body)


# A put that cannot be made again, or not in time


@pytest.mark.parametrize(
    "step", [pytest.param(RESERVED, marks=SLOW), pytest.param(STAGING, marks=SLOW), COMMITTING, ONE_STORED]
)
def test_a_stream_whose_primary_is_lost_is_stored_whole_or_never(kills: Kills, step: str) -> None:
    """The stream cannot be read twice, so the put may fail; then nothing of it turns up with the primary."""
    cluster, body = kills.cluster, body_of(0)
    try:
        kills.put("primary", step, {"/stream": io.BytesIO(body)})
        is_stored = True
    except NeverStored:
        is_stored = False
    cluster.start(kills.victim)
    cluster.wait_alive()
    with cluster.client() as client:
        # A later put is decided after whatever may have become of the first.
        client.put({"/later": b"later"})
        assert [record.name for record in client.list()] == ["/later", *["/stream"] * is_stored]
    if is_stored:
        cluster.check_stored("/stream", body)
    cluster.check_stored("/later", b"later")


@pytest.mark.parametrize("step", [COMMITTING, ONE_STORED, DECIDING])
def test_an_outcome_is_unknown_while_the_balancer_stays_away(kills: Kills, step: str) -> None:
    cluster, body = kills.cluster, body_of(0)
    with pytest.raises(OutcomeUnknown):
        kills.put("balancer", step, {"/page": body}, restart=False, timeout_s=1.0)
    cluster.start("balancer")
    cluster.wait_alive()
    with cluster.client() as client:
        # The client did not live to ask again: what the balancer had not decided is never decided.
        assert list(client.list()) == []
        client.put({"/page": b"again"})
    cluster.check_stored("/page", b"again")


@pytest.mark.parametrize("step", [BEFORE_RESERVE, RESERVED, STAGING])
def test_before_its_commit_no_outcome_is_unknown(kills: Kills, step: str) -> None:
    with pytest.raises((Unreachable, TimedOut)):
        kills.put("balancer", step, {"/page": io.BytesIO(b"small")}, restart=False, timeout_s=1.0)


def test_a_put_that_is_being_decided_at_its_deadline_is_not_told_that_it_failed(kills: Kills) -> None:
    cluster, body = kills.cluster, body_of(0)
    with cluster.hold_disk("balancer"), cluster.client() as client, pytest.raises(OutcomeUnknown):
        client.put({"/page": body}, timeout_s=1.0)
    until(lambda: cluster.holders("/page"), "the decision is written")
    cluster.check_stored("/page", body)


def test_a_put_that_is_told_never_at_its_deadline_never_is(kills: Kills) -> None:
    cluster = kills.cluster
    steps, held = kills.steps, kills.held
    steps.deeds = {RESERVED: lambda primary: kills.hold(*kills.others(primary))}
    with held, cluster.client() as client, pytest.raises(NeverStored, match="1 of 2 copies"):
        client.put({"/page": body_of(0)}, timeout_s=1.0)
    # The disks go on, and so does whatever was under way.
    until(lambda: sum(server.pages for server in cluster.servers().values()) == 0, "its copies are dropped")
    with cluster.client() as client:
        assert list(client.list()) == []


# What the balancer says, heard on the wire


class RawPut:
    """A put by hand, step by step."""

    def __init__(self, wire: Wire, balancer: str, name: str, body: bytes, condition: int = ANY) -> None:
        self.batch = random.randbytes(16)
        self._wire = wire
        self._balancer = balancer
        self._name = name
        self._body = body
        self._condition = condition

    def reserve(self) -> Any:
        epoch = self._wire.ask(self._balancer, Ping()).epoch
        page = PutPage(self._name, len(self._body), blake3(self._body).digest(), self._condition)
        self._reserved = self._wire.ask(self._balancer, Reserve(self.batch, epoch, [page], 2, 30.0))
        return self._reserved

    def store(self) -> Any:
        """Stage and Commit."""
        version, primary = self._reserved.version, self._reserved.primary
        parts = [StagePart(0, 0, len(self._body))]
        stage = Stage(self.batch, version, primary.incarnation, parts)
        assert isinstance(self._wire.ask(primary.endpoint, stage, self._body), Staged)
        page = CommitPage(0, self._name, len(self._body), blake3(self._body).digest(), "", 0.0)
        return self._wire.ask(primary.endpoint, Commit(self.batch, version, primary.incarnation, [page]))

    def outcome(self, seen: int = 2) -> Any:
        return self._wire.ask(self._balancer, Await(self.batch, seen, 5.0))


def test_two_puts_on_one_condition_are_both_undone_if_neither_was_written(
    cluster: Callable[..., ClusterUnderTest],
) -> None:
    running = cluster(webservers=2)
    with Wire() as wire:
        puts = [RawPut(wire, running.endpoint, "/page", body, ABSENT) for body in (b"one", b"two")]
        with running.hold_disk("balancer"):
            for put in puts:
                put.reserve()
                put.store()
                # Decided, and in conflict with a decision; but nothing of that may be told yet.
                assert put.outcome(seen=1).state == "open"
            running.kill("balancer")
        running.start("balancer")
        running.wait_alive()
        assert [put.outcome().state for put in puts] == ["never", "never"]
        assert [put.reserve().code for put in puts] == ["never", "never"]
    with running.client() as client:
        assert list(client.list()) == []


def test_of_two_puts_on_one_condition_the_first_wins(cluster: Callable[..., ClusterUnderTest]) -> None:
    running = cluster(webservers=2)
    with Wire() as wire:
        puts = [RawPut(wire, running.endpoint, "/page", body, ABSENT) for body in (b"one", b"two")]
        with running.hold_disk("balancer"):
            for put in puts:
                put.reserve()
                put.store()
                assert put.outcome(seen=1).state == "open"
        assert [put.outcome().state for put in puts] == ["visible", "conflict"]
        running.kill("balancer")
        running.start("balancer")
        running.wait_alive()
        # Of an epoch that has ended, only what is in the catalog is told apart from the rest.
        assert [put.outcome().state for put in puts] == ["visible", "never"]
    running.check_stored("/page", b"one")


def test_an_id_first_heard_of_in_await_stays_refused(cluster: Callable[..., ClusterUnderTest]) -> None:
    running = cluster(webservers=2)
    with Wire() as wire:
        put = RawPut(wire, running.endpoint, "/page", b"late")
        assert put.outcome().state == "never"
        assert put.reserve().code == "never"
