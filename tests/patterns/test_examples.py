"""The examples that are made of patterns alone, run as a reader runs them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
MADE_OF_PATTERNS = ("task_farm", "rendezvous_or_classic")
SQUARES = [number**2 for number in range(20)]


def example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", f"examples.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.parametrize("name", MADE_OF_PATTERNS)
def test_it_needs_patterns_and_pyzmq_alone(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text("utf-8"))
    tops = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and (isinstance(node, ast.Import) or node.module)
    }
    assert tops - set(sys.stdlib_module_names) <= {"patterns", "zmq"}


def test_the_task_farm_stays_short() -> None:
    assert len((EXAMPLES / "task_farm.py").read_text("utf-8").splitlines()) < 80


@pytest.mark.slow
def test_all_tasks_are_done_though_a_worker_dies_over_one() -> None:
    done = example("task_farm", "3")
    assert done.returncode == 0, done.stderr
    assert "a worker dies" in done.stdout and "is given again" in done.stdout
    assert f"20 of 20 tasks done: {SQUARES}" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["task_farm", "one_at_a_time"])
def test_a_script_runs_from_any_directory(name: str, tmp_path: Path) -> None:
    # Where patterns are installed and examples are not.
    (tmp_path / "patterns").symlink_to(ROOT / "patterns")
    command = [sys.executable, EXAMPLES / f"{name}.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_farm_whose_workers_are_all_dead_says_what_was_done(workers: str) -> None:
    done = example("task_farm", workers)
    assert done.returncode == 1
    assert f"{3 * int(workers)} of 20 tasks done" in done.stdout


@pytest.mark.slow
def test_rendezvous_moves_the_least_and_the_classic_scheme_about_half() -> None:
    done = example("rendezvous_or_classic")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith("%)")]
    assert len(rows) > 10
    for *_, classic, _, _, rendezvous, least in rows:
        assert float(classic.rstrip("%")) > 40
        assert abs(float(rendezvous.rstrip("%")) - float(least.strip("(%)"))) < 1.5
