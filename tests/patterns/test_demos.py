"""The demos themselves, as a user runs them: several processes, and a fault that is mended.

That they leave no process behind, each test's fixtures check.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from patterns.demos.index import NAMES

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 60

#: What a demo must have told, in this order; with a fault.
TOLD = {
    "request_reply": ["replied", "kills server", "expired", "again': replied", "a counted drop"],
    "heartbeat": ["red is suspect", "red is dead", "red is alive", "kills blue", "stale-incarnation"],
    "jobs": ["kills left", "as incarnation 2", "8 jobs done"],
    "transfer": ["kills first", "leaves first for second", "the digest is right"],
    "snapshot": ["is live", "sends them again", "begins again", "1 of 8 parts differ", "ends live"],
    "fair": ["asks for 3000 a second", "upload:", "2 workers, as at the beginning"],
    "mutex": ["pauses", "refuses", "kills", "entries;"],
    "rendezvous": ["kills middle", "keys move from middle to", "300 of 300 are there"],
}

pytestmark = pytest.mark.slow


def demo(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "patterns", "demo", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_demo_runs_to_its_end(name: str) -> None:
    told = demo(name)
    assert "started" in told
    assert "kills" not in told


@pytest.mark.parametrize("name", NAMES)
def test_a_demo_with_a_fault_tells_how_it_is_mended(name: str) -> None:
    told = demo(name, "--fault")
    at = 0
    for words in TOLD[name]:
        found = told.find(words, at)
        assert found >= 0, f"{words!r} was not told after {told[:at][-60:]!r} in:\n{told}"
        at = found


def test_the_processes_of_a_demo_end_with_it_even_if_it_is_killed() -> None:
    """The fixture that looks for processes left behind waits for them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "patterns", "demo", "heartbeat"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "is new: alive" in line:
            break
    children = psutil.Process(process.pid).children()
    assert len(children) == 3
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
