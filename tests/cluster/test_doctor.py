"""`dws doctor` on a real cluster: healthy, a dead server, a copy of a directory, no balancer."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.conftest import ClusterUnderTest, until


def doctor(running: ClusterUnderTest, *flags: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "dws", "-b", running.endpoint, "doctor", "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


@pytest.mark.slow
def test_doctor_finds_what_is_wrong(cluster: Callable[..., ClusterUnderTest]) -> None:
    running = cluster(webservers=3)
    with running.client() as client:
        client.put({"/page": b"x" * 1000})
    code, told = doctor(running)
    assert (code, told["healthy"], told["problems"]) == (0, True, [])

    running.kill("web-1")
    running.wait_state("web-1", "dead")
    code, told = doctor(running)
    assert code == 1
    assert ("dead", "web-1") in {(each["code"], each["where"]) for each in told["problems"]}

    # A copy of a directory is started beside the original: one identity, twice.
    running.copy_data("web-1", "copy")
    running.start("web-1")
    running.wait_alive()
    running.add("web-1-again", data="copy")
    running.start("web-1-again")
    # Under the name of the one whose start counter is the higher, which is a matter of chance.
    until(lambda: "contested" in {each.state for each in running.status().servers}, "the twins are found")
    code, told = doctor(running)
    assert code == 1
    [twins] = [each["where"] for each in told["problems"] if each["code"] == "duplicate-id"]
    assert twins in ("web-1", "web-1-again")

    running.kill("balancer")
    assert doctor(running, "--timeout", "1") == (4, {})
