"""The commands that work on report files: show, merge, compare; what they say to bad ones. And `scale`."""

from pathlib import Path
from typing import Any

import pytest

from loadgen import cli_reports, scale, scaling
from loadgen.cli import main
from loadgen.histogram import Histogram
from loadgen.measured import ClientResult, Tally
from loadgen.plan import Plan
from loadgen.report import Report, from_json, to_json
from loadgen.scaling import Scaling, Step

#: (web servers, what was the limit)
LIMITED = ((1, "generator"), (2, "cluster"), (4, "machine"), (8, "threads"))


def saved(path: Path, started: str = "2030-01-01T00:00:00+00:00", **plan: Any) -> str:
    times = Histogram()
    times.record(0.01)
    clients = [
        ClientResult(0, 1.0, 0.1, {"download": Tally(1, 10, 1000, [], times.to_plain())}, {"web-1": 10})
    ]
    made = Report(started, "test", Plan(clients=1, **plan), 100, ["web-1"], False, clients)
    path.write_bytes(to_json(made))
    return str(path)


def test_a_report_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = saved(tmp_path / "a.json")
    assert main(["show", report, "--html", str(tmp_path / "a.html")]) == 0
    assert "1 client × 4 threads" in capsys.readouterr().out
    assert "10 pages a second" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_reports_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [saved(tmp_path / "a.json"), saved(tmp_path / "b.json", seed=2)]
    whole = tmp_path / "whole.json"
    assert main(["merge", *reports, "--json", str(whole), "--html", str(tmp_path / "whole.html")]) == 0
    assert "2 clients × 4 threads" in capsys.readouterr().out
    assert len(from_json(whole.read_bytes()).clients) == 2
    assert "b.json: 1 client, seed 2" in (tmp_path / "whole.html").read_text(encoding="utf-8")


def test_reports_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [saved(tmp_path / "a.json"), saved(tmp_path / "b.json", threads=8)]
    assert main(["compare", *reports, "--html", str(tmp_path / "c.html")]) == 0
    said = capsys.readouterr().out
    assert "b.json is about as fast as a.json: 1.00 times" in said
    assert "! Not the same load, a.json → b.json: threads 4 → 8." in said
    assert "Not the same load" in (tmp_path / "c.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not a report"),
        (b"{}", "not a report"),
        (b"[1,2", "not a report"),
        (b'{"schema": 99}', "schema 99; this version reads schemas 1 to 2"),
        (b"\xff\x00", "not a report"),
    ],
)
@pytest.mark.parametrize("command", ["show", "merge", "compare"])
def test_what_is_no_report_is_refused_in_one_line(
    command: str, text: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_bytes(text)
    good = [] if command == "show" else [saved(tmp_path / "good.json")]
    assert main([command, *good, str(tmp_path / "bad.json")]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1 and said in found.err and "bad.json" in found.err


def test_what_is_too_large_for_a_report_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.json")
    monkeypatch.setattr(cli_reports, "REPORT_MAX_BYTES", 100)
    assert main(["show", path]) == 2
    assert "over 100 bytes" in capsys.readouterr().err


def test_files_that_cannot_be_read_or_written_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = saved(tmp_path / "a.json")
    assert main(["show", str(tmp_path / "nowhere.json")]) == 2
    assert main(["show", report, "--html", str(tmp_path / "nowhere" / "a.html")]) == 2
    assert main(["merge", report]) == 2
    assert main(["merge", report, saved(tmp_path / "b.json", files=1)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 4
    assert "its directory does not exist" in said and "files is 10 in a.json and 1 in b.json" in said


@pytest.mark.parametrize(
    "flags",
    [
        "--webservers 0", "--webservers 2,1", "--webservers 1,1", "--webservers 1,x", "--webservers 100",
        "--webservers ,", "--pages 5", "--size 4q", "--size 64MiB", "--duration 0", "--threads 0",
        "--html /nowhere/a.html", "--json /nowhere/a.json", "--choice zipf:99",
        "--choice list:names",
    ],
)  # fmt: skip
def test_scale_refuses_what_cannot_be(
    flags: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "_one", lambda *_: pytest.fail("a cluster was started"))
    assert main(["scale", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dws-loadgen: error: ") and said.count("\n") == 1


def test_scale_reports_each_size_and_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []

    def one(webservers: int, copies: int, plan: Plan, *_: Any) -> Report:
        sizes.append((webservers, copies))
        saved(tmp_path / "one.json")
        report = from_json((tmp_path / "one.json").read_bytes())
        tally = report.clients[0].tallies["download"]
        tally.pages = 10 * min(webservers, 2)
        report.summary = None
        return report

    monkeypatch.setattr(scale, "_one", one)
    monkeypatch.setattr(scale, "cores", lambda: 2)
    files = ["--json", str(tmp_path / "s.json"), "--html", str(tmp_path / "s.html")]
    assert main(["scale", "--webservers", "1,2,4", *files]) == 0
    assert sizes == [(1, 1), (2, 2), (4, 2)]
    said = capsys.readouterr().out
    assert "generator was the limit" not in said
    assert "4 web servers do 2.00 times what 1 does: an efficiency of 50%." in said
    assert "! There were 2 cores for up to 7 processes" in said
    assert "dws-loadgen scale --webservers 1,2,4" in said
    assert "1 → 4 web servers: 2.00 times as fast" in (tmp_path / "s.html").read_text(encoding="utf-8")
    assert b'"schema": 1' in (tmp_path / "s.json").read_bytes()


@pytest.mark.parametrize("raised", [True, False])
@pytest.mark.parametrize("whole", [0, 1])
def test_scale_says_that_it_was_interrupted(
    raised: bool,
    whole: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def one(webservers: int, *_: Any) -> Report:
        if raised and webservers > whole:
            raise KeyboardInterrupt
        saved(tmp_path / "one.json")
        report = from_json((tmp_path / "one.json").read_bytes())
        report.interrupted = webservers > whole
        return report

    monkeypatch.setattr(scale, "_one", one)
    html = tmp_path / "s.html"
    assert main(["scale", "--webservers", "1,2", "--html", str(html)]) == 130
    said = capsys.readouterr().out
    done = "1 cluster" if whole else "0 clusters"
    assert f"! Interrupted: {done} measured, not all that were wanted." in said
    assert ("cores" in said) == bool(whole)
    assert "Interrupted" in html.read_text(encoding="utf-8")


def test_scale_says_where_the_generator_was_the_limit() -> None:
    steps = [Step(count, 1, 1.0, 1.0, 1.0, 0, 0.1, 0.1, 1.0, None, by) for count, by in LIMITED]
    found = Scaling("", "", Plan(), 1, 1, 64, steps)
    said = scaling.to_text(found)
    assert "! With 1 and 8 web servers the generator was the limit, not the cluster." in said
    assert "✓ There were 64 cores" in said
