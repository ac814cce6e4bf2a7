"""The load generator against a real cluster: processes, signals, exit codes, and the demo in small."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

import dws
from dws.limits import MIB
from dws.nodes.cluster_options import ClusterOptions
from dws.nodes.supervisor import Supervisor
from loadgen import demo
from loadgen.cli import main
from loadgen.clients import RunError
from loadgen.plan import Plan
from loadgen.report import Report, from_json
from loadgen.runner import run_scenario

ROOT = Path(__file__).resolve().parents[2]
PAGES = {f"/site/{number}": bytes([number % 256]) * (number * 40) for number in range(200)}
WITHIN_S = 30.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    options = ClusterOptions(data=tmp_path_factory.mktemp("cluster"), webservers=2, port=0)
    with Supervisor(options) as running:
        yield running


@pytest.fixture(scope="module")
def site(cluster: Supervisor) -> str:
    """The balancer of a cluster that has PAGES."""
    # First of all while there are none: a load needs pages.
    assert main(["run", "-b", cluster.endpoint]) == 2
    with dws.connect(cluster.endpoint) as client:
        client.put(PAGES)
    return cluster.endpoint


def loaded(tmp_path: Path, balancer: str, flags: str, code: int = 0) -> Report:
    path = tmp_path / "report.json"
    if "--idle" not in flags:
        flags += " --idle 0"
    assert main(["run", "-b", balancer, "--json", str(path), *flags.split()]) == code
    return from_json(path.read_bytes())


def running(balancer: str, *flags: str) -> "subprocess.Popen[bytes]":
    """A run as a process of its own, once it makes requests."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "run", "-b", balancer, *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + WITHIN_S
    with dws.connect(balancer) as client:
        before = client.status().lookups
        while client.status().lookups < before + 100:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return process


def test_downloads_are_counted_and_come_from_all_servers(site: str, tmp_path: Path) -> None:
    report = loaded(tmp_path, site, "--count 101 --threads 3 --files 10 --clients 2 --seed 7")
    assert report.summary is not None
    together = report.summary.together
    assert (together.requests, together.pages, together.failed) == (202, 2020, 0)
    assert sum(one.pages for one in report.summary.servers) == 2020
    assert [one.server for one in report.summary.servers] == ["web-1", "web-2"]
    assert all(one.pages for one in report.summary.servers)


def test_the_same_seed_asks_for_the_same_bytes(site: str, tmp_path: Path) -> None:
    reports = [loaded(tmp_path, site, f"--count 40 --seed {seed} --choice zipf:1") for seed in (1, 1, 2)]
    one, again, other = (report.clients[0].tallies["download"].bytes for report in reports)
    assert one == again != other


def test_only_listed_pages_are_asked_for(site: str, tmp_path: Path) -> None:
    listed = tmp_path / "names"
    listed.write_text("/site/1\n/site/2\n", encoding="utf-8")
    report = loaded(tmp_path, site, f"--count 10 --files 2 --clients 1 --names {listed}")
    assert report.clients[0].tallies["download"].bytes == 10 * (40 + 80)
    assert report.pages == 2


def test_unknown_names_are_refused(site: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "names"
    listed.write_text("/site/1\n/nowhere\n", encoding="utf-8")
    assert main(["run", "-b", site, "--names", str(listed)]) == 2
    assert "1 of 2 names are not in the cluster, the first: /nowhere" in capfd.readouterr().err


def test_more_pages_a_request_than_there_are_is_refused(site: str, tmp_path: Path) -> None:
    listed = tmp_path / "names"
    listed.write_text("/site/1\n", encoding="utf-8")
    assert main(["run", "-b", site, "--names", str(listed), "--files", "2"]) == 2


def test_uploads_are_in_the_cluster_afterwards(site: str, tmp_path: Path) -> None:
    report = loaded(tmp_path, site, "--request upload --count 3 --threads 2 --files 20 --size 1KiB")
    assert report.summary is not None
    assert (report.summary.together.pages, report.summary.skipped) == (120, 0)
    with dws.connect(site) as client:
        stored = list(client.list(report.prefix + "/"))
    assert len(stored) == len({record.digest for record in stored}) == 120
    assert {record.size for record in stored} == {1024}


def test_files_of_a_directory_are_uploaded(site: str, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_bytes(bytes([number]) * 10)
    flags = f"--request upload --count 2 --threads 2 --files 1 --clients 1 --from {tmp_path}"
    report = loaded(tmp_path, site, flags)
    with dws.connect(site) as client:
        stored = {record.name: client.get(record.name) for record in client.list(report.prefix + "/")}
    assert len(stored) == 2
    assert all(body == bytes([int(name[-5])]) * 10 for name, body in stored.items())


def test_open_load_of_both_kinds_keeps_its_rate(site: str, tmp_path: Path) -> None:
    report = loaded(tmp_path, site, "--request mixed --rate 200 --count 50 --threads 4 --files 3")
    assert report.summary is not None
    assert {one.kind for one in report.summary.latencies} == {"download", "upload"}
    assert report.summary.together.requests == 100
    assert report.summary.late is not None
    assert report.summary.late.count == 100


def test_an_unreachable_balancer_ends_with_4_and_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-b", "tcp://127.0.0.1:9", "--timeout", "1.5"]) == 4
    said = capfd.readouterr().err
    assert "tcp://127.0.0.1:9" in said
    assert said.count("\n") == 1


def test_what_is_no_endpoint_ends_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-b", "nonsense"]) == 2
    assert "nonsense" in capfd.readouterr().err


def test_an_interrupted_run_reports_what_it_measured(site: str, tmp_path: Path) -> None:
    process = running(site, "--count", "1000000", "--files", "5", "--json", str(tmp_path / "report.json"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, err) == (130, b"")
    assert b"Interrupted" in out
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["interrupted"] is True
    assert report["summary"]["together"]["requests"] > 0
    assert report["summary"]["together"]["failed"] == 0


def test_clients_end_with_their_runner(site: str) -> None:
    process = running(site, "--count", "1000000", "--files", "5")
    process.kill()
    process.communicate(timeout=WITHIN_S)
    # That its client processes have ended is what the fixture checks that looks for processes left behind.


def test_a_client_process_that_dies_ends_the_run_with_one_line(site: str) -> None:
    process = running(site, "--count", "1000000", "--files", "5")
    psutil.Process(process.pid).children()[0].kill()
    _, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert b"ended early: status -9" in err
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("rate", ["", "--rate 200"])
def test_a_trace_is_recorded_and_asked_for_again(site: str, tmp_path: Path, rate: str) -> None:
    flags = f"--count 30 --files 3 --threads 2 --idle 0 {rate} --warmup 0.2"
    once = loaded(tmp_path, site, f"{flags} --record-trace {tmp_path / 'trace'}")
    again = loaded(tmp_path, site, f"{flags} --choice trace:{tmp_path / 'trace'}")
    assert len((tmp_path / "trace").read_bytes().splitlines()) == 1 + 60
    bytes_read = [sum(one.tallies["download"].bytes for one in report.clients) for report in (once, again)]
    assert bytes_read[0] == bytes_read[1]
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith("dws-trace-")] == []


def test_a_list_is_taken_in_turn(site: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("/site/3\n/site/1\n/site/2\n", encoding="utf-8")
    report = loaded(tmp_path, site, f"--count 6 --files 1 --threads 2 --choice list:{tmp_path / 'list'}")
    assert sum(one.tallies["download"].bytes for one in report.clients) == 4 * (40 + 80 + 120)


def test_nodes_are_looked_at_idle_and_loaded_and_books_are_read(site: str, tmp_path: Path) -> None:
    report = loaded(tmp_path, site, "--duration 1 --files 5 --idle 0.6")
    assert [node.name for node in report.nodes] == ["balancer", "web-1", "web-2"]
    for node in report.nodes:
        assert node.pid
        assert len(node.idle) >= 2
        assert node.loaded[-1].cpu_s > node.idle[-1].cpu_s
        assert node.loaded[-1].rss_bytes > MIB
        assert node.loaded[-1].sent_bytes > node.idle[-1].sent_bytes
        assert node.died_at_s is None
    pages = report.summary.together.pages if report.summary else 0
    sent = sum(node.loaded[-1].sent_bytes - node.idle[-1].sent_bytes for node in report.nodes[1:])
    assert sent > sum(one.tallies["download"].bytes for one in report.clients)
    assert [entry.server for entry in report.book] == ["web-1", "web-2"]
    assert sum(entry.visits for entry in report.book) >= pages
    assert all(entry.hot for entry in report.book)


@pytest.mark.slow
def test_runners_that_start_at_one_moment_do(site: str, tmp_path: Path) -> None:
    # Late enough for all to have connected by then, on a machine that does other things, too.
    at = (datetime.now().astimezone() + timedelta(seconds=12)).isoformat()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "loadgen", "run", "-b", site, "--count", "20", "--idle", "0",
             "--start-at", at, "--seed", str(seed), "--json", str(tmp_path / str(seed))],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    ended = [(process.communicate(timeout=WITHIN_S)[1], process.returncode) for process in processes]
    assert ended == [(b"", 0)] * 2
    starts = {from_json((tmp_path / str(seed)).read_bytes()).started for seed in (1, 2)}
    assert len(starts) == 1


@pytest.mark.slow
def test_a_scenario_of_ones_own_loads_any_router() -> None:
    said = subprocess.run(
        [sys.executable, ROOT / "examples" / "load_any_router.py"],
        cwd=ROOT / "docs", capture_output=True, text=True, timeout=WITHIN_S, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "Failures: none." in said.stdout


def test_a_scenario_that_is_not_there_is_one_line() -> None:
    with pytest.raises(RunError, match="ModuleNotFoundError: No module named 'nowhere'"):
        run_scenario(Plan(clients=1), "nowhere:Nothing", "tcp://127.0.0.1:9")


def test_the_echo_measures_the_generator_beside_a_bare_loop() -> None:
    """That it measures: how much it reaches is a figure for a machine that does nothing else."""
    said = subprocess.run(
        [sys.executable, "-m", "loadgen.echo", "--rounds", "1", "--seconds", "0.5"],
        cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert said.stderr == ""
    assert said.stdout.startswith("round 1: bare loop ")
    assert said.returncode == (0 if "\nreached: " in said.stdout else 1)


@pytest.mark.slow
def test_a_gateway_is_loaded_with_the_same_plan_and_a_killed_server_shows(tmp_path: Path) -> None:
    options = ClusterOptions(
        data=tmp_path / "cluster", webservers=3, port=0, http_port=0, restart_first_s=1.0
    )  # fmt: skip
    with Supervisor(options) as local:
        with dws.connect(local.endpoint) as client:
            for number in range(20):  # a batch each: on different pairs of servers
                client.put({f"/site/{number}/{page}": bytes([page]) * 500 for page in range(5)})
        gateway = local.node("gateway").endpoint
        flags = f"--http {gateway} --request mixed --count 40 --files 3 --size 1KiB --idle 0.5"
        report = loaded(tmp_path, local.endpoint, flags)
        assert report.summary is not None
        assert (report.summary.together.requests, report.summary.together.failed) == (80, 0)
        assert {one.server for one in report.summary.servers if one.pages} <= {"web-1", "web-2", "web-3"}
        assert [node.name for node in report.nodes][:2] == ["balancer", "gateway"]

        killed = tmp_path / "killed"
        load = running(local.endpoint, "--files", "3", "--json", str(killed), "--duration", "6")
        pid = local.node("web-1").pid
        local.kill("web-1")
        load.communicate(timeout=WITHIN_S)
        report = from_json(killed.read_bytes())
        by_name = {node.name: node for node in report.nodes}
        dead = by_name["web-1"]
        assert dead.pid == pid
        assert dead.died_at_s is not None
        assert 0 < dead.died_at_s < 6
        assert "it was back" in dead.note
        assert all(by_name[name].died_at_s is None for name in ("balancer", "web-2", "web-3"))


@pytest.mark.slow
def test_the_demo_in_small(capfd: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    library = tmp_path / "library"
    (library / "__pycache__").mkdir(parents=True)
    (library / "__pycache__" / "a.pyc").write_bytes(b"skipped")
    for number in range(50):
        (library / f"{number}.py").write_bytes(b"x" * number * 100)
    options = demo.Options(
        library=library, large_bytes=3 * MIB, load_s=1.0, webservers=3, html=tmp_path / "r.html"
    )
    code = demo.main(options)
    said = capfd.readouterr().out
    assert code == 0, said
    assert "0 of " in said
    assert "two copies or more on live servers" in said
    assert said.rstrip().endswith(f"for a browser: {tmp_path / 'r.html'}")
    assert "two copies or more on live servers" in (tmp_path / "r.html").read_text("utf-8")
    assert not list(tmp_path.glob("dws-demo-*"))
