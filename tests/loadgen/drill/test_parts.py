"""The parts of a drill that need no cluster: pages, the recorded load, the report, disks, flags."""

import json
import random
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from click.testing import CliRunner

from dws import errors
from dws.config import Config
from dws.nodes.client import PutResult, RemoveResult
from dws.operations import Operation
from loadgen.drill import cli, readback, workload
from loadgen.drill.bodies import HEAD_BYTES, WrongBytesError, body, number_of
from loadgen.drill.disks import StalledDisk, damage
from loadgen.drill.drill import DrillOptions
from loadgen.drill.faults import FAULTS
from loadgen.drill.report import Copies, DrillReport, Goal, ReadBack, Round, round_text, to_json, to_text
from loadgen.drill.workload import READ, WRITE, Shape, Workload

# Pages


@pytest.mark.parametrize("size", [HEAD_BYTES, 33, 5_000])
def test_a_page_tells_which_put_it_is(size: int) -> None:
    data = body("/a", 7, size)
    assert len(data) == size
    assert number_of("/a", data) == 7


@pytest.mark.parametrize("size", [HEAD_BYTES + 1, 5_000])
def test_any_change_is_seen(size: int, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(body("/a", 7, size))
    data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    with pytest.raises(WrongBytesError):
        number_of("/a", bytes(data))


@pytest.mark.parametrize("data", [b"", b"hello", body("/b", 7, 100), body("/a", 7, 100)[:-1]])
def test_what_is_no_page_is_refused(data: bytes) -> None:
    with pytest.raises(WrongBytesError):
        number_of("/a", data)


# The load


class FakeClient:
    """Pages in a dict; an error, if one is to come."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.error: Exception | None = None

    def _fail(self) -> None:
        error, self.error = self.error, None
        if error:
            raise error

    def get_many(self, names: list[str]) -> dict[str, bytes]:
        self._fail()
        missing = [name for name in names if name not in self.pages]
        if missing:
            raise errors.NotFound(missing[0])
        return {name: self.pages[name] for name in names}

    def put(self, pages: dict[str, bytes], **_: Any) -> PutResult:
        self._fail()
        self.pages |= pages
        return PutResult(1, len(pages), 0, [], 2)

    def remove(self, names: list[str], **_: Any) -> RemoveResult:
        self._fail()
        for name in names:
            self.pages.pop(name, None)
        return RemoveResult(len(names))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Workload, Any]]:
    monkeypatch.setattr(workload, "_AFTER_FAILURE_S", 0.0)
    yield Workload("tcp://127.0.0.1:1", Shape(), 1), FakeClient()


def last(load: Workload) -> Operation:
    return load.history[-1]


def test_what_clients_saw_is_recorded(load: tuple[Workload, Any]) -> None:
    made, client = load
    rng = random.Random(1)
    made.get(client, ["/x"], rng, "c")
    assert (last(made).outcome, last(made).reads) == ("ok", {"/x": 0})
    made._write("put", client, ["/x"], rng, "c", absent=True)
    assert (last(made).outcome, last(made).reads, last(made).writes) == ("ok", {"/x": 0}, {"/x": 1})
    made.get(client, ["/x"], rng, "c")
    assert last(made).reads == {"/x": 1}
    client.error = errors.Conflict("/x exists")
    made._write("put", client, ["/x"], rng, "c", absent=True)
    assert (last(made).outcome, last(made).unlike) == ("failed", {"/x": 0})
    made._write("remove", client, ["/x"], rng, "c", absent=False)
    assert (last(made).outcome, last(made).writes) == ("ok", {"/x": 0})
    assert not made.tally.failed


@pytest.mark.parametrize(
    ("error", "shared", "outcome"),
    [
        (errors.TooFewServers("x"), True, "failed"),
        (errors.TooFewServers("x"), False, "unknown"),
        (errors.OutcomeUnknown("x"), True, "unknown"),
    ],
)
def test_what_failed_is_told_apart(error: Exception, shared: bool, outcome: str) -> None:
    made, client = Workload("tcp://127.0.0.1:1", Shape(shared=shared), 1), FakeClient()
    client.error = error
    made._write("put", client, ["/x"], random.Random(1), "c", absent=False)  # type: ignore[arg-type]
    assert last(made).outcome == outcome
    assert (made.tally.requests, dict(made.tally.failed)) == (1, {WRITE: 1})


def test_a_failed_get_is_counted_and_says_nothing_of_the_page(load: tuple[Workload, Any]) -> None:
    made, client = load
    client.error = errors.Unavailable("x")
    made.get(client, ["/x"], random.Random(1), "c")
    assert not made.history
    assert (made.requests, made.answered, dict(made.tally.failed)) == (1, 0, {READ: 1})


def test_what_is_kept_of_a_load_does_not_grow_with_it(
    load: tuple[Workload, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "HISTORY_MAX", 30)
    made, client = load
    steady = [f"/drill/steady/{number:06d}" for number in range(made.shape.pages)]
    client.pages = {name: body(name, 1, 40) for name in steady}
    made.initial = dict.fromkeys(steady, 1)
    rng = random.Random(1)
    for _ in range(300):
        made._request(client, rng, 0)
    assert (made.requests, made.answered, len(made.history)) == (300, 300, 30)
    for _ in range(100):
        client.error = errors.Unavailable("x")
        made._request(client, rng, 0)
    ended = made.mark()
    assert (ended.requests, ended.failed[READ], len(ended.errors)) == (400, 100, 20)
    assert made.tally.requests == 0 and made.answered == 300


def test_wrong_bytes_are_told(load: tuple[Workload, Any]) -> None:
    made, client = load
    client.pages["/x"] = b"something else"
    made.get(client, ["/x"], random.Random(1), "c")
    assert made.wrong and last(made).reads == {}


# The report


def report(*rounds: Round, **fields: Any) -> DrillReport:
    made = DrillReport("kill", 1, ["dws-loadgen", "drill"], 4, 400, 16384, 4, [], 2, rounds=list(rounds))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_a_drill_without_problems_has_passed() -> None:
    made = report(Round(1, "web-1 is killed", detected_s=0.02))
    assert made.passed
    assert "PASSED: kill, 1 round, seed 1" in to_text(made)
    assert json.loads(to_json(made))["passed"] is True


@pytest.mark.parametrize(
    "made",
    [
        report(Round(1, problems=["lost"])),
        report(problems=["lost"]),
        report(read_back=ReadBack(problems=["lost"])),
        report(interrupted=True),
    ],
)
def test_any_problem_fails_it(made: DrillReport) -> None:
    assert not made.passed
    assert "PASSED" not in to_text(made)
    assert json.loads(to_json(made))["passed"] is False


def test_an_interrupted_drill_says_that_nothing_was_judged() -> None:
    text = to_text(report(Round(1, "web-1 is killed"), interrupted=True))
    assert "interrupted after 1 round; nothing was read back or judged" in text
    assert "read back:" not in text and "FAILED" not in text
    assert "PROBLEM: round 1: lost" in to_text(report(Round(1, problems=["lost"]), interrupted=True))


def test_a_goal_that_is_missed_is_told_and_fails_nothing() -> None:
    found = Round(1, goals=[Goal("routed away after", 0.4, 0.25)])
    assert "goal NOT reached: routed away after 400 ms, wanted 250 ms" in round_text(found)
    assert report(found).passed


def test_copies_over_time_are_those_of_the_worst_round() -> None:
    calm = Round(1, "calm", copies=[Copies(0, 0, 0, 9, 0), Copies(1, 0, 1, 8, 0)])
    worst = Round(2, "worst", copies=[Copies(0, 0, 0, 9, 0), Copies(1, 0, 5, 4, 0), Copies(2, 0, 0, 9, 0)])
    text = to_text(report(calm, worst))
    assert "round 2: worst" in text and "+1.00 s" in text


def test_a_cluster_that_cannot_be_read_back_fails_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    """… and what clients saw before is judged all the same."""

    def look(*arguments: object) -> None:
        raise errors.Unreachable("no answer from the balancer")

    monkeypatch.setattr(readback, "_look", look)
    load, made = Workload("tcp://127.0.0.1:1", Shape(), 1), report(problems=[])
    load.wrong.append("/a: wrong bytes")
    readback.read_back("tcp://127.0.0.1:1", load, made, 2)
    assert not made.passed
    assert "no answer from the balancer" in made.read_back.problems[0]
    assert made.problems == ["/a: wrong bytes"]


# Disks


def test_damage_changes_a_page_wherever_it_lies(tmp_path: Path) -> None:
    small, large = body("/small", 1, 5_000), body("/large", 2, 400_000)
    (tmp_path / "pages" / "ab").mkdir(parents=True)
    (tmp_path / "store.mdb").write_bytes(bytes(10_000) + small + bytes(10_000))
    (tmp_path / "pages" / "ab" / "x").write_bytes(large)
    assert damage(tmp_path, [small, large]) == [1, 1]
    assert damage(tmp_path, [body("/other", 3, 5_000)]) == [0]
    assert (tmp_path / "pages" / "ab" / "x").read_bytes() != large


#: Another process, since LMDB's lock between writers is between processes.
_NODE = """
import lmdb, sys
environment = lmdb.open(sys.argv[1], subdir=False)
with environment.begin():
    print("has read", flush=True)
with environment.begin(write=True) as transaction:
    transaction.put(b"key", b"value")
print("has written", flush=True)
"""


def test_a_stalled_disk_holds_up_writers_and_no_readers(tmp_path: Path) -> None:
    path = str(tmp_path / "store.mdb")
    lmdb.open(path, subdir=False).close()
    with StalledDisk(tmp_path):
        node = subprocess.Popen([sys.executable, "-c", _NODE, path], stdout=subprocess.PIPE)
        assert node.stdout is not None
        assert node.stdout.readline() == b"has read\n"
        assert not select.select([node.stdout], [], [], 0.3)[0], "it has written"
    assert node.communicate(timeout=10)[0] == b"has written\n"
    assert node.returncode == 0


# Flags


def test_every_fault_is_in_the_help() -> None:
    shown = CliRunner().invoke(cli.drill, ["--help"]).stdout
    assert all(f"  {name} " in shown for name in FAULTS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--fault"),
        (["--fault", "nothing"], "nothing"),
        (["--fault", "kill", "--rounds", "0"], "rounds"),
        (["--fault", "kill", "--size", "2MiB"], "--size 2MiB"),
        (["--fault", "kill", "--size", "1"], "wanted 32 bytes"),
        (["--fault", "kill", "--set", "nothing=1"], "nothing=1"),
        (["--fault", "kill", "--set", "dead_s=0.1"], "dead_s"),
        (["--fault", "kill", "--webservers", "2"], "webservers"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(cli.drill, arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_settings_are_the_faults_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def run(options: DrillOptions, *_: object) -> DrillReport:
        seen.append(options.config)
        raise errors.DwsError("not today")

    monkeypatch.setattr("loadgen.drill.drill.run", run)
    for more in ([], ["--set", "rebuild_quiet_s=3"]):
        result = CliRunner().invoke(cli.drill, ["--fault", "balancer-disk", *more])
        assert "could not be run: not today" in result.stderr
    assert [config.rebuild_quiet_s for config in seen] == [2.0, 3.0]
