"""Reports of real runs: thresholds, a baseline, two runs compared and merged, growing clusters."""

import json
from pathlib import Path

import pytest

import dws
from dws.nodes.cluster_options import ClusterOptions
from dws.nodes.supervisor import Supervisor
from loadgen.cli import main
from loadgen.report import from_json

PAGES = {f"/site/{number}": bytes([number % 256]) * 1000 for number in range(100)}


@pytest.mark.slow
def test_runs_become_reports_that_are_judged_compared_and_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: str(tmp_path / name) for name in ("a.json", "b.json", "a.html", "c.html", "m.json")}
    with Supervisor(ClusterOptions(data=tmp_path / "cluster", webservers=2, port=0)) as cluster:
        with dws.connect(cluster.endpoint) as client:
            client.put(PAGES)
        load = ["run", "-b", cluster.endpoint, "--count", "100", "--clients", "1", "--idle", "0.3"]
        holds = ["--fail-if", "failed>0", "--fail-if", "p99>9s"]
        assert main([*load, *holds, "--json", files["a.json"], "--html", files["a.html"]]) == 0
        crossed = ["--fail-if", "requests<1000", "--baseline", files["a.json"]]
        assert main([*load, "--seed", "2", *crossed, "--json", files["b.json"]]) == 99
    said = capsys.readouterr().out
    assert "✓ Passed: 2 checks." in said
    assert "✗ fail if requests<1000: requests is 100" in said
    assert "times as fast as a.json" in said
    first = from_json(Path(files["a.json"]).read_bytes())
    assert {node.role for node in first.nodes} == {"balancer", "webserver"}
    assert first.summary and all(node.idle and node.loaded for node in first.summary.nodes)
    assert first.machine and 0 < first.machine_cpu_share <= 1.1
    assert "fail if p99&gt;9s" in Path(files["a.html"]).read_text("utf-8")

    assert main(["compare", files["a.json"], files["b.json"], "--html", files["c.html"]]) == 0
    assert "CPU of all nodes, cores" in capsys.readouterr().out
    assert "Percentile spectrum" in Path(files["c.html"]).read_text("utf-8")
    assert main(["merge", files["a.json"], files["b.json"], "--json", files["m.json"]]) == 0
    merged = from_json(Path(files["m.json"]).read_bytes())
    assert merged.summary and merged.summary.together.requests == 200
    assert len(merged.nodes) == len(first.nodes)


@pytest.mark.slow
def test_clusters_of_one_and_two_servers_are_loaded_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    path = tmp_path / "scale.json"
    flags = "--webservers 1,2 --duration 1 --warmup 0.2 --pages 100 --clients 1"
    assert main(["scale", *flags.split(), "--json", str(path)]) == 0
    steps = json.loads(path.read_bytes())["steps"]
    assert [(step["webservers"], step["copies"], step["failed"]) for step in steps] == [(1, 1, 0), (2, 2, 0)]
    assert steps[0]["speed_up"] == 1.0 and steps[1]["efficiency"] == pytest.approx(steps[1]["speed_up"] / 2)
    assert "core" in capsys.readouterr().out
    assert not list(tmp_path.glob("dws-scale-*"))
