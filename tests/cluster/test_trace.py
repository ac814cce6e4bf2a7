"""`dws trace` on real processes: reads, puts, a server killed in the middle, a balancer that is not there.

The command runs in this process, with an observer in between that acts at an exact message, so that nothing
here depends on how fast a page is.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import dws
from dws.cli import exits
from dws.cli.program import program
from dws.cli.session import Session
from dws.limits import MIB
from tests.cluster.conftest import ClusterUnderTest

Make = Callable[..., ClusterUnderTest]
Rows = list[dict[str, Any]]

CHUNKS = 40
KILLED_AFTER = 20
"""Replies: lookup, digests, then chunks."""


class Interposed:
    """Hands on what the client tells its observer; after so many replies, acts once."""

    def __init__(self, observer: Any, replies: int, act: Callable[[], None]) -> None:
        self._observer = observer
        self._left = replies
        self._act = act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observer, name)

    def received(self, *arguments: Any) -> None:
        self._observer.received(*arguments)
        self._left -= 1
        if not self._left:
            self._act()


def trace(
    running: ClusterUnderTest, *arguments: str, replies: int = 0, act: Callable[[Any], None] | None = None
) -> tuple[int, str]:
    """(exit code, standard output). act: is given the trace, after so many replies."""

    def connect(balancer: str, observer: Any, **options: Any) -> dws.Client:
        watching = observer
        if act is not None:
            watching = Interposed(observer, replies, lambda: act(observer.trace))
        return dws.connect(balancer, observer=watching, **options)

    result = CliRunner().invoke(program, ["trace", *arguments, "-b", running.endpoint], obj=Session(connect))
    return result.exit_code, result.stdout


def rows_of(out: str) -> Rows:
    return [json.loads(line) for line in out.splitlines()]


def brief(rows: Rows) -> list[tuple[str, str]]:
    return [(row["event"], row["message"]) for row in rows if row["event"] != "end"]


def served_by(trace_: Any) -> str:
    """The web server that is read from."""
    return next(leg.peer for leg in trace_.legs.values() if leg.message == "read")


@pytest.mark.slow
def test_a_get_and_a_put_show_every_message(cluster: Make, tmp_path: Path) -> None:
    running = cluster(webservers=2)
    (tmp_path / "a.txt").write_bytes(b"a" * 5000)

    code, out = trace(running, "put", str(tmp_path / "a.txt"), "--json")
    rows = rows_of(out)
    assert code == exits.OK
    assert brief(rows)[:5] == [
        ("sent", "ping"), ("reply", "pong"), ("sent", "reserve"), ("reply", "reserved"), ("sent", "commit"),
    ]  # fmt: skip
    brought = [row for row in rows[:-1] if row["event"] == "sent" and row["message"] == "commit"]
    assert [row["data_bytes"] for row in brought] == [5000, 5000]
    assert {row["to"] for row in brought} == {"ROUTER web-1", "ROUTER web-2"}
    outcomes = [row["content"]["state"] for row in rows[:-1] if row["message"] == "outcome"]
    assert outcomes[-1] == "visible" and set(outcomes[:-1]) <= {"open"}
    assert rows[-1]["error"] == "" and rows[-1]["repeated"] == rows[-1]["errors"] == 0

    code, out = trace(running, "get", "/a.txt", "--json")
    rows = rows_of(out)
    assert code == exits.OK
    assert brief(rows) == [("sent", "locate"), ("reply", "located"), ("sent", "read"), ("reply", "data")]
    # The times are in order, and each reply is that of its request.
    assert [row["at_s"] for row in rows[:4]] == sorted(row["at_s"] for row in rows[:4])
    assert [row["id"] - rows[0]["id"] for row in rows[:4]] == [0, 0, 1, 1]
    assert (rows[3]["data_bytes"], rows[-1]["requests"], rows[-1]["in_a_row"]) == (5000, 2, 2)

    code, out = trace(running, "get", "/none")
    assert code == exits.NOT_FOUND
    assert "there is no such page" in out and "failed     after " in out and "1 request, " in out


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_is_left_for_the_other(cluster: Make, seed: int) -> None:
    running = cluster(webservers=2)
    with running.client() as client:
        client.put({"/large": random.Random(seed).randbytes(CHUNKS * MIB)})
    killed: list[str] = []

    def kill(seen: Any) -> None:
        killed.append(served_by(seen))
        running.kill(*killed)

    code, out = trace(running, "get", "/large", "--json", "--all", replies=KILLED_AFTER, act=kill)
    assert code == exits.OK
    rows = rows_of(out)
    end = rows.pop()
    [dead] = killed
    [other] = set(running.webservers) - {dead}
    lost = [row for row in rows if row["event"] == "expired" and row["peer"] == dead]
    moved = [row for row in rows if row["note"] == f"now of {other}: {dead} did not answer in 1 s"]
    # A reply or two may have been in the socket already when the server died; but then it was asked for more.
    assert 1 <= len(lost) <= 8
    assert all(row["took_s"] >= 1.0 for row in lost)
    # What was lost, and nothing else, is asked of the other on that account.
    assert sorted(row["content"]["offset"] for row in moved) == sorted(
        row["content"]["offset"] for row in lost
    )
    assert all(row["to"] == f"ROUTER {other}" for row in moved)
    assert end["moved"] >= len(moved) and end["error"] == ""
    came = [row["content"]["offset"] for row in rows if row["event"] == "reply" and row["message"] == "data"]
    assert sorted(came) == [chunk * MIB for chunk in range(CHUNKS)]
    assert end["outstanding_bytes_max"] == 8 * MIB


@pytest.mark.slow
def test_a_balancer_that_is_not_there(cluster: Make) -> None:
    running = cluster(webservers=2)
    with running.client() as client:
        client.put({"/a": b"a"})
    running.kill("balancer")
    code, out = trace(running, "get", "/a", "--timeout", "2.5")
    assert code == exits.UNREACHABLE
    assert out.count("✗ ROUTER balancer") == 2
    assert out.count("! again: the balancer did not answer in 1 s") == 2
    assert "1 not answered when it ended (#3 locate)" in out
    assert "no answer from the balancer at " in out
