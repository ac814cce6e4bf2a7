"""The load generator against a real cluster: processes, signals, exit codes, and the demo in small."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
from loadgen.report import Report, from_json

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


@pytest.mark.slow
def test_the_demo_in_small(capfd: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    library = tmp_path / "library"
    (library / "__pycache__").mkdir(parents=True)
    (library / "__pycache__" / "a.pyc").write_bytes(b"skipped")
    for number in range(50):
        (library / f"{number}.py").write_bytes(b"x" * number * 100)
    options = demo.Options(library=library, large_bytes=3 * MIB, load_s=1.0, webservers=3)
    code = demo.main(options)
    said = capfd.readouterr().out
    assert code == 0, said
    assert "0 of " in said
    assert "two copies or more on live servers" in said
    assert not list(tmp_path.glob("dws-demo-*"))
