"""The bench as a process, with its clusters and peers: a small run, and one that is interrupted."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow


@contextmanager
def running(*arguments: str) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "loadgen", "bench", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process


def small(data: Path, *more: str) -> list[str]:
    return ["--small", "--rounds", "1", "--seconds", "0.3", "--data", str(data), *more]


def test_a_small_run_measures_all_and_believes_nothing(tmp_path: Path) -> None:
    made = tmp_path / "bench.json"
    keys = ["echo", "lookup-1", "lookup-10", "read-10", "put-100", "up", "down"]
    only = [word for key in keys for word in ("--only", key)]
    with running(
        *small(tmp_path, *only, "--json", str(made), "--html", str(tmp_path / "bench.html"))
    ) as process:
        out, err = process.communicate(timeout=110)
    assert process.returncode == 4, err
    assert "NOT TO BE BELIEVED" in out and "small: made with less" in out
    result = json.loads(made.read_text("utf-8"))
    by_key = {one["key"]: one for one in result["series"]}
    assert [one["key"] for one in result["series"]] == sorted(keys, key=list(by_key).index)
    assert all(
        len(one["rates"]) == 1 and one["rates"][0] > 0 and not one["bad"] for one in by_key.values()
    ), by_key
    assert {"balancer", "web servers", "client"} <= by_key["read-10"]["cpu"].keys()
    assert not result["believed"] and all(one["ratio"] is None for one in result["outcomes"])
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.html"}


def test_an_interrupted_run_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(*small(tmp_path, "--only", "cluster", "--json", "-")) as process:
        assert process.stderr
        # The cluster is up when the first of its figures is told.
        lines = iter(process.stderr.readline, "")
        assert any("lookup-1" in line for line in lines)
        ours = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    result = json.loads(out)
    assert result["interrupted"] and not result["believed"]
    assert all(one["ratio"] is None for one in result["outcomes"])
    assert "interrupted after 0 whole rounds" in err
    assert ours and not [one for one in ours if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed here")
def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with running(*small(tmp_path, "--only", "http-nginx")) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "note: missing: wrk (Debian package wrk)" in out
