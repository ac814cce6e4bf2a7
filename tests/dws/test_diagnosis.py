"""What `dws doctor` finds: a table of what was seen → findings; and the command against a fake cluster."""

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from dws import errors
from dws.cli import doctor as command
from dws.cli.program import program
from dws.cli.session import Session
from dws.diagnosis import Answer, Seen, examine
from dws.messages import ClusterStatus, NodeStatsAre, RepairStatus, ServerStatus

FREE = 1 << 30


def server(number: int, state: str = "alive", **fields: Any) -> ServerStatus:
    whole = ServerStatus(
        number, f"web-{number}", state, f"tcp://127.0.0.1:{6000 + number}", 7, 10, 2048, FREE, 5, 6, 7, 8, 9,
        0.0004, 0.001, 0.0014, 2.5, 0.25, 100, 0.1, "",
    )  # fmt: skip
    return replace(whole, **fields)


def status(*servers: ServerStatus, **fields: Any) -> ClusterStatus:
    whole = ClusterStatus(
        bytes(16), 3, 12, "least-load", 2, 10, 4096, [0, 0, 10, 0], 0, 0, 5.0, 99,
        list(servers or (server(1), server(2), server(3))), {},
    )  # fmt: skip
    return replace(whole, **fields)


def found(
    told: ClusterStatus, before: ClusterStatus | None = None, **answers: Answer
) -> list[tuple[str, ...]]:
    """(level, code, where) of each finding; answers: of servers, as s1, s2, …"""
    by_number = {int(name[1:]): answer for name, answer in answers.items()}
    findings = examine(Seen(before or told, told, by_number))
    assert all(each.text and each.next for each in findings)
    return [(each.level, each.code, each.where) for each in findings]


CASES: dict[str, tuple[ClusterStatus, list[tuple[str, ...]]]] = {
    "healthy": (status(), []),
    "nobody": (status(servers=[]), [("problem", "no-servers", "cluster")]),
    "dead": (
        status(server(1), server(2), server(3, "dead")),
        [("problem", "dead", "web-3")],
    ),
    "an earlier life of a name": (
        status(server(1), server(2), server(3, "dead", name="web-1")),
        [("problem", "dead-namesake", "web-1")],
    ),
    "suspect": (
        status(server(1), server(2), server(3, "suspect", note="2 probes in a row were not answered")),
        [("problem", "suspect", "web-3")],
    ),
    "joining": (status(server(1), server(2), server(3, "joining")), [("problem", "not-synced", "web-3")]),
    "contested": (
        status(server(1), server(2), server(3, "contested")),
        [("problem", "duplicate-id", "web-3")],
    ),
    "being drained": (
        status(server(1), server(2), server(3, "draining", draining=True, to_move=4)),
        [("notice", "draining", "web-3")],
    ),
    "drained": (
        status(server(1), server(2), server(3, "draining", draining=True)), [("notice", "drained", "web-3")],
    ),
    "drained, and not compared yet": (
        status(server(1), server(2), server(3, "joining", draining=True)),
        [("problem", "not-synced", "web-3"), ("notice", "draining", "web-3")],
    ),
    "drained, and not back since the balancer's start": (
        status(server(1), server(2), server(3, "dead", draining=True, incarnation=0)),
        [("problem", "dead", "web-3"), ("notice", "draining", "web-3")],
    ),
    "one left": (
        status(server(1), server(2, "dead")),
        [("problem", "dead", "web-2"), ("problem", "too-few-servers", "cluster")],
    ),
    "a full disk": (
        status(server(1), server(2), server(3, bytes_free=90, bytes_stored=FREE)),
        [("problem", "disk-full", "web-3")],
    ),
    "less room than for a small site, of little": (
        status(server(1, bytes_free=5_000, bytes_stored=1 << 20), server(2), server(3)),
        [("problem", "disk-full", "web-1")],
    ),
    "room for a batch, which is little of a large disk": (
        status(server(1, bytes_free=65 << 20, bytes_stored=1 << 40), server(2), server(3)), [],
    ),
    "no room": (
        status(server(1), server(2, bytes_free=0), server(3, bytes_free=0)),
        [
            ("problem", "disk-full", "web-2"),
            ("problem", "disk-full", "web-3"),
            ("problem", "no-room", "cluster"),
        ],
    ),
    "damage": (status(server(1, damaged=3), server(2)), [("problem", "damaged", "web-1")]),
    "kept records": (status(server(1, note="keeps 3 records"), server(2)), [("notice", "note", "web-1")]),
    "pages that nobody has": (
        status(page_copies=[2, 0, 8, 0]), [("problem", "no-copy", "cluster")],
    ),
    "too few copies": (
        status(page_copies=[0, 2, 8, 0], repair=RepairStatus(missing=2)),
        [("problem", "too-few-copies", "cluster")],
    ),
    "one copy, and no more was wanted": (status(page_copies=[0, 2, 8, 0]), []),
    "two copies, and more were wanted": (
        status(repair=RepairStatus(missing=2)), [("problem", "too-few-copies", "cluster")],
    ),
    "two copies, one of them on a server that is drained": (
        status(
            server(1), server(2), server(3, "draining", draining=True, to_move=2),
            repair=RepairStatus(missing=2),
        ),
        [("notice", "draining", "web-3")],
    ),
    "two copies of three": (
        status(copies=3, page_copies=[0, 0, 8, 2], repair=RepairStatus(missing=8)),
        [("problem", "too-few-copies", "cluster")],
    ),
    "refused once": (
        status(counters={"hello refused: behind": 2}), [("notice", "hello-refused", "balancer")],
    ),
    "frames of others": (
        status(counters={"refused servers: version": 2}), [("notice", "frames-refused", "balancer")],
    ),
    "nonsense": (
        status(counters={"impossible: figures that cannot be": 1}), [("notice", "impossible", "balancer")],
    ),
    "starved": (status(counters={"heartbeat asleep": 1}), [("notice", "starved", "balancer")]),
    "plain counters": (status(counters={"lookups": 5, "heartbeat lost-beats": 7}), []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_found(case: str) -> None:
    told, wanted = CASES[case]
    assert found(told) == wanted


def test_what_still_happens_is_a_problem() -> None:
    before = status(counters={"hello refused: behind": 2})
    after = status(counters={"hello refused: behind": 3})
    assert found(after, before) == [("problem", "hello-refused", "balancer")]


def test_servers_that_cannot_be_reached_from_here() -> None:
    told = status(server(1), server(2), server(3, "dead"))
    silent = Answer(fault="no answer", http_fault="refused")
    assert found(told, s1=silent, s3=silent) == [
        ("problem", "unreachable", "web-1"),
        ("problem", "http-unreachable", "web-1"),
        ("problem", "dead", "web-3"),
    ]


@pytest.mark.parametrize("state", ["suspect", "joining", "dead", "contested"])
def test_of_a_server_that_the_balancer_does_not_reach_its_state_is_told_alone(state: str) -> None:
    silent = Answer(fault="no answer", http_fault="refused")
    told = status(server(1, state), server(2), server(3))
    codes = {code for _, code, where in found(told, status(), s1=silent) if where == "web-1"}
    assert len(codes) == 1 and codes.isdisjoint({"unreachable", "http-unreachable"})


@pytest.mark.parametrize("before", [{"state": "suspect"}, {"state": "joining"}, {"incarnation": 6}])
def test_a_server_that_came_back_meanwhile_is_not_said_to_be_reached_by_the_balancer(
    before: dict[str, Any],
) -> None:
    silent = Answer(fault="no answer", http_fault="refused")
    first = status(replace(server(1), **before), server(2), server(3))
    assert found(status(), first, s1=silent) == [("notice", "came-back", "web-1")]


def test_limits_and_clocks() -> None:
    assert found(status(), s1=Answer(files=900, files_max=1000)) == [("problem", "file-limit", "web-1")]
    assert found(status(), s1=Answer(files=700, files_max=1000)) == []
    assert found(status(), s2=Answer(clock_s=-60.0)) == [("notice", "clock", "web-2")]


def test_what_still_fits_on_full_servers_is_told() -> None:
    full = [server(number, bytes_free=35, bytes_stored=2 << 20) for number in (1, 2, 3)]
    findings = {each.code: each.text for each in examine(Seen(status(*full), status(*full)))}
    assert findings["no-room"] == "no more than 35 bytes fit on 2 web servers: larger puts fail"
    assert "may take 35 bytes more" in findings["disk-full"]


def test_too_few_copies_say_how_far_repair_is() -> None:
    def step(repair: RepairStatus) -> str:
        told = status(page_copies=[0, 2, 8, 0], repair=repair)
        return examine(Seen(told, told))[0].next

    assert "5 s left" in step(RepairStatus(missing=2, pages_s=3.0, left_s=5.0))
    assert "no server may take" in step(RepairStatus(missing=2, text="no server may take a copy"))
    assert "begins" in step(RepairStatus(missing=2))


# -- the command ------------------------------------------------------------------------------------


class FakeClient:
    def __init__(self, *told: ClusterStatus | Exception) -> None:
        self.told = list(told)
        self.silent: set[str] = set()

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def connect(self, balancer: str, **options: Any) -> "FakeClient":
        return self

    def status(self) -> ClusterStatus:
        told = self.told.pop(0)
        if isinstance(told, Exception):
            raise told
        return told

    def node_stats(self, name: str, top: int) -> NodeStatsAre:
        if name in self.silent:
            raise errors.TimedOut(f"{name} did not answer")
        return NodeStatsAre(name, 30.0, 1.0, {"process open files": 9.0}, [], [])


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(command, "_BETWEEN_S", 0.0)
    yield


def run(client: FakeClient, *arguments: str) -> Any:
    return CliRunner().invoke(program, ["doctor", *arguments], obj=Session(cast(Any, client.connect)))


def test_a_healthy_cluster_is_0() -> None:
    result = run(FakeClient(status(), status()))
    assert result.exit_code == 0
    assert result.stdout == "healthy: 3 web servers, 10 pages\n"


def test_problems_are_1_and_say_what_to_do() -> None:
    told = status(server(1), server(2), server(3, "dead"))
    result = run(FakeClient(told, told))
    assert result.exit_code == 1
    assert "problem  web-3: is dead, last heard 0 s ago\n         next: " in result.stdout
    assert "dws node forget web-3" in result.stdout
    assert result.stdout.endswith("1 problem; 3 web servers, 10 pages\n")


def test_a_name_is_quoted_where_it_is_to_be_typed() -> None:
    told = status(server(1), server(2), server(3, "dead", name="we b/1"))
    [dead] = examine(Seen(told, told, {}))
    assert "dws node forget 'we b/1'" in dead.next


def test_as_json() -> None:
    told = status(server(1), server(2), server(3, "dead"), counters={"heartbeat asleep": 1})
    result = run(FakeClient(told, told), "--json")
    plain = json.loads(result.stdout)
    assert result.exit_code == 1 and plain["healthy"] is False
    assert [each["code"] for each in plain["problems"]] == ["dead"]
    assert [each["code"] for each in plain["notices"]] == ["starved"]


def test_no_balancer_is_4() -> None:
    result = run(FakeClient(errors.Unreachable("no answer from x")))
    assert result.exit_code == 4
    assert "no answer from x" in result.stderr


def test_a_server_that_is_silent_here_is_told() -> None:
    client = FakeClient(status(), status())
    client.silent.add("web-2")
    result = run(client)
    assert result.exit_code == 1
    assert "web-2: tcp://127.0.0.1:6002 does not answer from here: web-2 did not answer" in result.stdout


def test_an_http_endpoint_where_nobody_listens_is_told() -> None:
    told = status(server(1, http_endpoint="http://127.0.0.1:1"), server(2))
    result = run(FakeClient(told, told))
    assert result.exit_code == 1
    assert "its HTTP endpoint http://127.0.0.1:1 does not answer from here" in result.stdout
