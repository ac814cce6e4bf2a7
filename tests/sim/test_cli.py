"""dws sim fuzz, replay and scale: what they print, their exit codes, and what they refuse."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import dws.sim.fuzz
from dws.cli import main
from dws.sim.fuzz import BROKEN, CRASH, RESTLESS, Verdict

Told = tuple[int, str, str]


@pytest.fixture
def sim(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    def call(*words: str) -> Told:
        with pytest.raises(SystemExit) as ended:
            main(["sim", *words])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


def test_fuzz_says_where_it_begins_and_how_it_went(sim: Callable[..., Told]) -> None:
    status, out, _ = sim("fuzz", "--seeds", "3", "--start", "40", "--seconds", "3")
    first, last = out.splitlines()
    assert status == 0 and first == "seeds 40 to 42 in this process; again with --start 40"
    assert last.startswith("3 ok; ") and "simulated seconds" in last


def test_a_start_that_is_not_said_is_random(sim: Callable[..., Told]) -> None:
    starts = {
        sim("fuzz", "--seeds", "1", "--seconds", "1", "--faults", "none")[1].split()[1] for _ in range(3)
    }
    assert len(starts) > 1


def test_processes_share_the_seeds_and_find_the_same() -> None:
    words = [sys.executable, "-m", "dws", "sim", "fuzz", "--seeds", "5", "--start", "60", "--seconds", "2"]
    done = subprocess.run([*words, "--jobs", "2"], capture_output=True, text=True, check=True)
    assert "in 2 processes" in done.stdout and "\n5 ok; " in done.stdout
    lines = subprocess.run([*words, "--lines"], capture_output=True, text=True, check=True).stdout
    assert [json.loads(line)["seed"] for line in lines.splitlines()] == list(range(60, 65))


@pytest.mark.parametrize(("kind", "status"), [(BROKEN, 10), (RESTLESS, 11), (CRASH, 12)])
def test_a_failure_is_told_with_the_way_to_see_it_again(
    sim: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, kind: str, status: int
) -> None:
    def fails(seed: int, options: Any, **_: Any) -> Verdict:
        bad = seed == 51
        return Verdict(
            seed, kind if bad else "ok", "the reason" if bad else "", 1.5, 99, "d1ge57", log=["a line"]
        )

    monkeypatch.setattr(dws.sim.fuzz, "run", fails)
    flags = ("--servers", "3", "--faults", "crash,pause")
    code, out, _ = sim("fuzz", "--seeds", "9", "--start", "50", *flags)
    assert code == status
    assert f"seed 51: {kind.upper()}: the reason" in out
    assert "at 1.500 s, event 99, digest d1ge57" in out and "servers=3" in out
    assert "dws sim replay 51 --servers 3 --faults crash,pause --trace" in out
    assert f"1 ok, 1 {kind}; " in out, "it stops there"
    code, out, _ = sim("fuzz", "--seeds", "9", "--start", "50", "--all")
    assert (code == status and f"8 ok, 1 {kind}; " in out) or f"1 {kind}" in out
    code, out, _ = sim("replay", "51")
    assert code == status and f"{kind}: the reason" in out and "  a line" in out and "digest d1ge57" in out


def test_replay_prints_the_options_first_and_the_digest_last(sim: Callable[..., Told]) -> None:
    status, out, _ = sim("replay", "5", "--seconds", "2")
    again = sim("replay", "5", "--seconds", "2")
    assert (status, out) == again[:2] and status == 0
    first, *_, last = out.splitlines()
    assert first.startswith("seed 5: servers=") and " seconds=2 " in first
    assert last.startswith("digest ") and len(last.split()[1]) == 32


def test_a_trace_tells_every_message(sim: Callable[..., Told]) -> None:
    status, out, _ = sim("replay", "5", "--seconds", "1", "--trace")
    assert status == 0 and out.count(" → ") > 50


def test_scale_tells_each_stage(sim: Callable[..., Told]) -> None:
    status, out, _ = sim("scale", "--servers", "12", "--pages", "200", "--seconds", "1", "--clients", "2")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["start", "work", "repair"]
    assert "12 servers with 200 pages are in sync" in out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_servers_with_a_hundred_thousand_pages_run_on_one_core() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dws", "sim", "scale"], capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,000 servers with 100,000 pages are in sync" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fuzz", "--servers", "3", "--copies", "4"], "--copies: 4 copies need as many servers, there are 3"),
        (["fuzz", "--seeds", "0"], "--seeds"),
        (["fuzz", "--seeds", "many"], "--seeds"),
        (["fuzz", "--start", "-1"], "--start"),
        (["fuzz", "--jobs", "0"], "--jobs"),
        (["fuzz", "--faults", "crash,fire"], "'fire' is no fault"),
        (["fuzz", "--faults", ""], "is no fault"),
        (["fuzz", "--policy", "best"], "--policy: 'best' is none of least-load"),
        (["fuzz", "--seconds", "nan"], "--seconds"),
        (["fuzz", "--fault-every", "0"], "--fault-every"),
        (["fuzz", "--speed", "9"], "--speed"),
        (["fuzz", "7"], "unexpected extra argument"),
        (["replay"], "Missing argument"),
        (["replay", "-1"], "-1"),
        (["replay", "3", "--copies", "9", "--servers", "2"], "--copies"),
        (["scale", "--servers", "2"], "--kill"),
        (["scale", "--servers", "5000"], "--servers"),
        (["scale", "--pages", "0"], "--pages"),
        (["scale", "--copies", "3", "--servers", "2"], "--copies"),
        (["nothing"], "nothing"),
    ],
)
def test_what_cannot_be_is_a_usage_error_that_says_which(
    sim: Callable[..., Told], words: list[str], says: str
) -> None:
    status, out, err = sim(*words)
    assert status == 2 and out == ""
    assert says in err and err.startswith("dws: error: ")


@pytest.mark.parametrize("command", ["fuzz", "replay", "scale"])
def test_help_has_examples_and_exit_codes(sim: Callable[..., Told], command: str) -> None:
    status, out, _ = sim(command, "--help")
    assert status == 0 and "Examples:" in out and f"dws sim {command}" in out
