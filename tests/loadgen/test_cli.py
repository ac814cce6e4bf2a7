"""The command line: what it makes of its flags, and how it ends. No cluster: the runner is a stand-in."""

from pathlib import Path
from typing import Any

import pytest

from loadgen import runner
from loadgen.cli import main
from loadgen.histogram import Histogram
from loadgen.plan import Plan, PlanError
from loadgen.report import ClientResult, Failure, Report, Tally, from_json
from loadgen.sizes import parse_size


class Runner:
    """Stands in for loadgen.runner: keeps what it was asked, answers with a report."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: dict[str, Any] = {}
        self.failures: list[Failure] = []
        self.interrupted = False
        self.error: Exception | None = None
        monkeypatch.setattr(runner, "survey", self.survey)
        monkeypatch.setattr(runner, "run", self.run)

    def survey(self, balancer: str, plan: Plan, wanted: Any, timeout_s: float, http: str) -> runner.Site:
        self.asked.update(surveyed=http, balancer=balancer, wanted=wanted, timeout_s=timeout_s)
        if self.error:
            raise self.error
        return runner.Site(["web-1"], [f"/{number}" for number in range(100)], too_large=1)

    def run(self, plan: Plan, site: runner.Site, balancer: str, **fields: Any) -> Report:
        self.asked.update(fields, plan=plan)
        tally = Tally(5, 50, 500, self.failures, Histogram().to_plain())
        clients = [ClientResult(0, 1.0, 0.5, {"download": tally}, {"web-1": 50})]
        return Report("2030-01-01", "test", plan, 100, site.servers, self.interrupted, clients)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.delenv("DWS_BALANCER", raising=False)
    return Runner(monkeypatch)


def test_flags_become_the_plan(stand_in: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--request download --count 20 --threads 3 --files 7 --clients 2 --rate 50 --seed 9 "
        "--choice zipf:1.1 -b tcp://b:1 --timeout 3"
    )
    assert main(["run", *flags.split()]) == 0
    assert stand_in.asked["plan"] == Plan(
        count=20, threads=3, files=7, clients=2, rate=50.0, seed=9, choice="zipf:1.1"
    )
    assert stand_in.asked["balancer"] == "tcp://b:1"
    assert stand_in.asked["timeout_s"] == 3.0
    said = capsys.readouterr()
    assert "open load, 50 requests a second" in said.out
    assert said.err == "1 page over 64 MiB is left out.\n"


def test_the_environment_names_the_balancer(stand_in: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["run"]) == 0
    assert stand_in.asked["balancer"] == "tcp://127.0.0.1:5600"
    monkeypatch.setenv("DWS_BALANCER", "tcp://elsewhere:1")
    assert main(["run"]) == 0
    assert stand_in.asked["balancer"] == "tcp://elsewhere:1"


def test_pages_are_asked_for_by_http(stand_in: Runner) -> None:
    assert main(["run", "--http", "http://h:1"]) == 0
    assert stand_in.asked["surveyed"] == stand_in.asked["http"] == "http://h:1"


def test_names_are_lines_of_a_file(stand_in: Runner, tmp_path: Path) -> None:
    listed = tmp_path / "names"
    listed.write_text("/a\n# not this\n\n/b c\n", encoding="utf-8")
    assert main(["run", "--names", str(listed)]) == 0
    assert stand_in.asked["wanted"] == ["/a", "/b c"]


def test_uploads_take_the_files_of_a_directory(stand_in: Runner, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b.txt").write_bytes(b"b")
    (tmp_path / "a.txt").write_bytes(b"a")
    assert main(["run", "--request", "upload", "--from", str(tmp_path)]) == 0
    assert stand_in.asked["files"] == [
        ("a.txt", str(tmp_path / "a.txt")), ("d/b.txt", str(tmp_path / "d" / "b.txt")),
    ]  # fmt: skip
    assert stand_in.asked["prefix"].startswith("/load/")


def test_json_goes_to_a_file_or_to_standard_output(
    stand_in: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--json", str(tmp_path / "report.json")]) == 0
    assert from_json((tmp_path / "report.json").read_bytes()).clients[0].served == {"web-1": 50}
    assert "Failures: none" in capsys.readouterr().out
    assert main(["run", "--json", "-"]) == 0
    said = capsys.readouterr()
    assert from_json(said.out.encode()).pages == 100
    assert "Failures: none" in said.err


def test_a_run_goes_to_an_html_file_with_the_command_that_repeats_it(
    stand_in: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DWS_BALANCER", "tcp://elsewhere:1")
    files = ["--html", str(tmp_path / "r.html"), "--json", str(tmp_path / "r")]
    assert main(["run", "--count", "7", *files]) == 0
    assert "50 pages a second, none failed" in (tmp_path / "r.html").read_text(encoding="utf-8")
    command = from_json((tmp_path / "r").read_bytes()).command
    assert command[:4] == ["dws-loadgen", "run", "--count", "7"]
    assert command[-2:] == ["-b", "tcp://elsewhere:1"]


def test_a_duration_without_a_count_is_the_only_bound(stand_in: Runner) -> None:
    assert main(["run", "--duration", "3", "--warmup", "1", "--idle", "0"]) == 0
    plan = stand_in.asked["plan"]
    assert (plan.count, plan.duration_s, plan.warmup_s) == (None, 3.0, 1.0)
    assert stand_in.asked["idle_s"] == 0
    assert main(["run", "--duration", "3", "--count", "9"]) == 0
    assert stand_in.asked["plan"].count == 9


def test_several_hosts_start_at_one_moment(stand_in: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--start-at", "2999-01-01T12:00:00"]) == 0
    assert stand_in.asked["start_at"].year == 2999
    for wrong in ("2001-01-01T12:00:00", "noon", "+x"):
        assert main(["run", "--start-at", wrong]) == 2
    assert "has passed" in capsys.readouterr().err


def test_a_crossed_threshold_ends_with_99(stand_in: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--fail-if", "pages/s<1000", "--fail-if", "failed>0"]) == 99
    said = capsys.readouterr().out
    assert "✗ fail if pages/s<1000: pages/s is 50" in said
    assert "✓ fail if failed>0: failed is 0" in said


def test_thresholds_decide_what_failures_are_too_many(stand_in: Runner) -> None:
    stand_in.failures = [Failure("TimedOut", 1, 0.5, "no answer")]
    assert main(["run", "--fail-if", "failed>20%"]) == 0
    assert main(["run", "--fail-if", "failed>10%"]) == 99
    stand_in.interrupted = True
    assert main(["run", "--fail-if", "failed>10%"]) == 130


def test_a_baseline_is_what_the_run_is_measured_against(
    stand_in: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tmp_path / "before.json"
    assert main(["run", "--json", str(before)]) == 0
    assert main(["run", "--baseline", str(before), "--json", str(tmp_path / "after.json")]) == 0
    assert "1.00 times as fast as before.json: that made 50 pages a second." in capsys.readouterr().out
    assert main(["run", "--threads", "8", "--baseline", str(before)]) == 0
    assert "! Not the same load, before.json → this run: threads 4 → 8." in capsys.readouterr().out
    assert main(["run", "--baseline", str(before), "--fail-if", "speedup<1.5"]) == 99


def test_failed_requests_end_with_1_and_an_interruption_with_130(stand_in: Runner) -> None:
    stand_in.failures = [Failure("TimedOut", 1, 0.5, "no answer")]
    assert main(["run"]) == 1
    stand_in.interrupted = True
    assert main(["run"]) == 130


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (runner.RunError("no answer from tcp://127.0.0.1:1 for 10 s", unreachable=True), 4),
        (runner.RunError("client 1 ended early"), 1),
        (PlanError("there are no pages"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_cannot_be_run_ends_with_one_line(
    stand_in: Runner, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    stand_in.error = error
    assert main(["run"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    # click begins a new line after the ^C that a terminal shows
    assert said.err.strip("\n") == f"dws-loadgen: error: {str(error) or 'interrupted'}"


@pytest.mark.parametrize(
    "flags",
    [
        "--threads 0",
        "--clients 0",
        "--count 0",
        "--files 0",
        "--rate 0",
        "--rate -5",
        "--rate nan",
        "--rate 1e9",
        "--rate often",
        "--choice zipf",
        "--request delete",
        "--timeout 0",
        "--size 4q",
        "--request upload --size 1MiB --files 100",
        "--names /nowhere",
        "--request upload --from /nowhere",
        "--json /nowhere/report.json",
        "--html /nowhere/report.html",
        "--fail-if p99",
        "--fail-if p99>50",
        "--fail-if nothing>0",
        "--baseline /nowhere",
        "--baseline /dev/null",
        "--duration 0",
        "--warmup -1",
        "--start-at yesterday",
        "--idle -1",
        "--nonsense",
    ],
)
def test_bad_flags_end_with_2_and_one_line(
    stand_in: Runner, capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    assert main(["run", *flags.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("dws-loadgen: error: ")
    assert said.err.count("\n") == 1
    assert not stand_in.asked


def test_a_directory_that_cannot_be_uploaded_is_refused(
    stand_in: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload = ["run", "--request", "upload", "--from", str(tmp_path)]
    assert main(upload) == 2
    assert "no files" in capsys.readouterr().err
    (tmp_path / "link").symlink_to("nowhere")
    assert main(upload) == 2
    assert "symbolic links" in capsys.readouterr().err
    (tmp_path / "link").unlink()
    (tmp_path / "a\nb").write_bytes(b"")
    assert main(upload) == 2
    assert "control character" in capsys.readouterr().err
    (tmp_path / "a\nb").unlink()
    for name in "abc":
        with (tmp_path / name).open("wb") as large:
            large.truncate(40 << 20)
    assert main([*upload, "--files", "2"]) == 2
    assert "over the bound of one batch" in capsys.readouterr().err
    assert main([*upload, "--files", "1"]) == 0


def test_a_file_of_names_that_is_no_text_is_refused(stand_in: Runner, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"\xff\xfe")
    assert main(["run", "--names", str(tmp_path / "names")]) == 2


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "demo" in capsys.readouterr().err
    assert main(["run", "--help"]) == 0
    assert "--request upload --files 100 --size 4KiB" in capsys.readouterr().out
    assert main(["--version"]) == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("4k", 4096), ("4KiB", 4096), ("4 kb", 4000), ("1.5MiB", 3 << 19)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "-1", "4 q", "4KiB/s", "0x10", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(PlanError, match="size"):
        parse_size(text)
