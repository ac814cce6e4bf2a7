"""Every drill, on real processes: `dws-loadgen drill` as people run it, its exit code and report."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import ClusterUnderTest

ROOT = Path(__file__).resolve().parent.parent.parent
#: A hung server is dead after 5 s instead of 15.
QUICK = ["--set", "dead_s=5", "--threads", "3"]
DRILL = [sys.executable, "-m", "loadgen", "drill"]


def drill(*flags: str, wanted: int = 0) -> dict[str, Any]:
    """The report of a drill that ends with this code."""
    done = subprocess.run(
        [*DRILL, "--json", "-", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(done.stderr)
    assert done.returncode == wanted, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


FAULTS = {
    "kill": ["--fault", "kill"],
    "hang": ["--fault", "hang"],
    "partition": ["--fault", "partition", "--rounds", "3"],
    "wipe": ["--fault", "wipe"],
    "corrupt": ["--fault", "corrupt"],
    "full-disk": ["--fault", "full-disk"],
    "balancer": ["--fault", "balancer", "--rounds", "2"],
    "balancer-disk": ["--fault", "balancer-disk"],
    "power": ["--fault", "power"],
}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_drill_passes(fault: str, seed: int) -> None:
    report = drill(*FAULTS[fault], *QUICK, "--seed", str(seed))
    assert report["passed"]
    assert report["operations"] > 0 and report["read_back"]["pages"] >= 400
    assert all(each["failed_reads"] == 0 for each in report["rounds"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_rounds_of_random_kills(seed: int) -> None:
    """`--rounds 200` by hand."""
    report = drill("--fault", "random", "--rounds", "20", *QUICK, "--seed", str(seed))
    assert len(report["rounds"]) == 20


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nobody_is_declared_dead_while_all_cores_are_busy(seed: int) -> None:
    """`--seconds 600` by hand."""
    drill("--fault", "busy", "--seconds", "60", "--seed", str(seed))


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_drill_that_is_interrupted_leaves_nothing(number: int) -> None:
    before = set(Path(tempfile.gettempdir()).glob("dws-drill-*"))
    running = subprocess.Popen(
        [*DRILL, "--fault", "busy", "--seconds", "300"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("round 1"):
            break
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted after 0 rounds; nothing was read back or judged; everything is stopped" in out
    assert "read back: 0 pages" not in out
    assert not set(Path(tempfile.gettempdir()).glob("dws-drill-*")) - before


# A reader whose server stops in the middle of a page


@pytest.mark.slow
def test_a_server_that_stops_does_not_fail_a_large_download(cluster: Callable[..., ClusterUnderTest]) -> None:
    running = cluster(webservers=3)
    data = os.urandom(40 << 20)
    with running.client() as client:
        client.put({"/large": data})
        with client.open("/large") as stream:
            got = stream.read(5 << 20)
            [serving] = stream._stream.sources
            victim = client._directory.name(serving)
            running.pause(victim)
            try:
                while part := stream.read(1 << 20):
                    got += part
            finally:
                running.resume(victim)
        assert set(stream._stream.sources) > {serving}
    assert got == data
