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
DECIDED = "when it is written, and nobody told"
VISIBLE = "just after it is visible"

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
        """The put, in the midst of which the node in this role is killed. A balancer is restarted at once,
        unless that is not wanted, and so is a "restarted primary"."""
        self._role, self._step, self._restart = role, step, restart
        self._files_before = {name: self._files(name) for name in self.cluster.webservers}
        self.steps.deeds = {step: self._kill}
        if step == DECIDED:
            # Before it asks for the outcome, the client waits until others see it.
            self.steps.deeds = {COMMITTING: lambda primary: self._kill_when_seen(primary, next(iter(pages)))}
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
        if self._role == "balancer":
            self.victim = "balancer"
        else:
            self.victim = self._backup(primary) if self._role == "backup" else primary
        self.cluster.kill(self.victim)
        self.held.close()
        if self._restart and self._role in ("balancer", "restarted primary"):
            self.cluster.start(self.victim)

    def _kill_when_seen(self, primary: str, name: str) -> None:
        until(lambda: self.cluster.holders(name), "the page is visible")
        self._kill(primary)

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
    return Kills(monkeypatch, cluster(webservers=3, garbage_s=1.0))


# A put that can be made again outlives every kill


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("role", "steps"),
    [
        pytest.param("balancer", (BEFORE_RESERVE, RESERVED, STAGING), marks=SLOW),
        ("balancer", (COMMITTING, ONE_STORED, DECIDING, DECIDED, VISIBLE)),
        # The client waits some seconds for a primary that has not answered a Stage.
        pytest.param("primary", (RESERVED, STAGING), marks=SLOW),
        ("primary", (COMMITTING, ONE_STORED, DECIDING, VISIBLE)),
        # Its copy counts again, and the backup must go on with that.
        ("restarted primary", (ONE_STORED,)),
        pytest.param("restarted primary", (RESERVED, STAGING, COMMITTING, DECIDING, VISIBLE), marks=SLOW),
        pytest.param("backup", (BEFORE_RESERVE, RESERVED, STAGING), marks=SLOW),
        ("backup", (COMMITTING, ONE_STORED, DECIDING, VISIBLE)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"from {value[0]}",
)
def test_a_put_outlives_a_kill(kills: Kills, role: str, steps: tuple[str, ...]) -> None:
    cluster = kills.cluster
    for number, step in enumerate(steps):
        print(f"kill the {role} {step}")
        name, body = f"/{number}", body_of(number)
        kills.put(role, step, {name: body}, timeout_s=20.0)
        if not cluster.is_running(kills.victim):
            # A victim that had stored it counts until it is dead: its copy may be one of the two.
            may_count = step not in (BEFORE_RESERVE, RESERVED, STAGING)
            cluster.check_stored(name, body, copies=1 if may_count else 2)
            cluster.start(kills.victim)
        cluster.wait_alive()
        cluster.check_stored(name, body)


# A put that cannot be made again, or not in time


@SLOW
@pytest.mark.parametrize("step", [RESERVED, STAGING, COMMITTING, ONE_STORED])
def test_a_stream_whose_primary_is_lost_is_stored_whole_or_never(kills: Kills, step: str) -> None:
    """The stream cannot be read twice, so the put may fail; then nothing of it turns up with the primary."""
    cluster, body = kills.cluster, body_of(0)
    try:
        kills.put("primary", step, {"/stream": io.BytesIO(body)}, timeout_s=6.0)
        is_stored = True
    except (NeverStored, TimedOut):
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


@pytest.mark.parametrize(
    "step", [*(pytest.param(step, marks=SLOW) for step in (COMMITTING, ONE_STORED, DECIDED)), DECIDING]
)
def test_an_outcome_is_unknown_while_the_balancer_stays_away(kills: Kills, step: str) -> None:
    cluster, body = kills.cluster, body_of(0)
    with pytest.raises(OutcomeUnknown):
        kills.put("balancer", step, {"/page": body}, restart=False, timeout_s=0.5)
    cluster.start("balancer")
    cluster.wait_alive()
    with cluster.client() as client:
        # What had not been decided by then never is.
        assert [record.name for record in client.list()] == ["/page"] * (step == DECIDED)
        if step == DECIDED:
            cluster.check_stored("/page", body)
        client.put({"/page": b"again"})
    cluster.check_stored("/page", b"again")


@SLOW
def test_what_was_never_reserved_has_no_unknown_outcome(kills: Kills) -> None:
    with pytest.raises(Unreachable, match=kills.cluster.endpoint):
        kills.put("balancer", BEFORE_RESERVE, {"/page": io.BytesIO(b"")}, restart=False, timeout_s=1.5)


@SLOW
def test_a_put_that_is_being_decided_at_its_deadline_is_not_told_that_it_failed(kills: Kills) -> None:
    cluster, body = kills.cluster, body_of(0)
    with cluster.hold_disk("balancer"), cluster.client() as client, pytest.raises(OutcomeUnknown):
        client.put({"/page": body}, timeout_s=0.5)
    until(lambda: cluster.holders("/page"), "the decision is written")
    cluster.check_stored("/page", body)


def test_a_put_that_is_told_never_at_its_deadline_never_is(kills: Kills) -> None:
    cluster = kills.cluster
    steps, held = kills.steps, kills.held
    steps.deeds = {RESERVED: lambda primary: kills.hold(*kills.others(primary))}
    with held, cluster.client() as client, pytest.raises((NeverStored, TimedOut)):
        client.put({"/page": body_of(0)}, timeout_s=0.5)
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


def test_puts_on_one_condition_are_decided_in_turn_or_not_at_all(
    cluster: Callable[..., ClusterUnderTest],
) -> None:
    running = cluster(webservers=2)
    with Wire() as wire:

        def two_puts() -> list[RawPut]:
            """One is being decided, and the other conflicts with a decision; but neither may be told yet."""
            puts = [RawPut(wire, running.endpoint, "/page", body, ABSENT) for body in (b"one", b"two")]
            for put in puts:
                put.reserve()
                put.store()
                assert put.outcome(seen=1).state == "open"
            return puts

        with running.hold_disk("balancer"):
            undone = two_puts()
            running.kill("balancer")
        running.start("balancer")
        running.wait_alive()
        assert [put.outcome().state for put in undone] == ["never", "never"]
        # What was told stays so, even for an id that the balancer heard of in Await only.
        assert [put.reserve().code for put in undone] == ["never", "never"]

        with running.hold_disk("balancer"):
            puts = two_puts()
        assert [put.outcome().state for put in puts] == ["visible", "conflict"]
        running.kill("balancer")
        running.start("balancer")
        running.wait_alive()
        # Of an epoch that has ended, what is in the catalog is known from all the rest.
        assert [put.outcome().state for put in [*puts, *undone]] == ["visible", "never", "never", "never"]
    running.check_stored("/page", b"one")
