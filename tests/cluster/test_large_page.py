"""A page far larger than any process's memory, up and down, and down past two failing holders."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from blake3 import blake3

from dws.limits import MIB
from tests.cluster.conftest import ClusterUnderTest, peak_bytes

Make = Callable[..., ClusterUnderTest]

ROOT = Path(__file__).resolve().parents[2]
CHUNKS = 300
SIZE = CHUNKS * MIB + 12_345
RESIDENT_MAX_BYTES = 200 * MIB
WITHIN_S = 60.0


def chunks(seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(CHUNKS):
        yield rng.randbytes(MIB)
    yield rng.randbytes(SIZE % MIB)


def digest_of(parts: Iterator[bytes]) -> bytes:
    whole = blake3()
    for part in parts:
        whole.update(part)
    return whole.digest()


def file_of(path: Path, seed: int) -> Path:
    with path.open("wb") as file:
        file.writelines(chunks(seed))
    return path


def read_some(reader: BinaryIO, whole: Any) -> None:
    """Well past what was on the way before."""
    for _ in range(20):
        whole.update(reader.read(MIB))


def run_dws(running: ClusterUnderTest, *arguments: str) -> int:
    """The command line in a process of its own; the most memory that it had resident."""
    command = [sys.executable, "-m", "dws", *arguments, "--balancer", running.endpoint]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    give_up, peak = time.monotonic() + WITHIN_S, 0
    while process.poll() is None:
        peak = max(peak, peak_bytes(process.pid))
        if time.monotonic() > give_up:
            process.kill()
        time.sleep(0.01)
    out, err = process.communicate()
    assert process.returncode == 0, (out, err)
    return peak


@pytest.mark.slow
def test_a_large_page_up_and_down_in_little_memory(cluster: Make, tmp_path: Path) -> None:
    running = cluster(webservers=2)
    source = file_of(tmp_path / "large.bin", 1)
    wanted = digest_of(chunks(1))
    up = run_dws(running, "put", str(source), "--to", "/up")
    source.unlink()
    down = run_dws(running, "get", "/up/large.bin", "-o", str(tmp_path / "down.bin"))
    with (tmp_path / "down.bin").open("rb") as file:
        assert digest_of(iter(lambda: file.read(MIB), b"")) == wanted
    with running.client() as client:
        stat = client.stat(["/up/large.bin"])[0]
    assert stat is not None
    assert (stat.record.size, stat.record.digest, len(stat.holders)) == (SIZE, wanted, 2)
    peaks = running.peaks() | {"dws put": up, "dws get": down}
    print({name: f"{peak / MIB:.0f} MiB" for name, peak in peaks.items()})
    assert {name: peak for name, peak in peaks.items() if peak >= RESIDENT_MAX_BYTES} == {}


@pytest.mark.slow
def test_a_download_outlives_a_killed_and_a_paused_holder(cluster: Make, tmp_path: Path) -> None:
    running = cluster(webservers=2)
    with running.client() as client:
        client.put({"/large": file_of(tmp_path / "large.bin", 2)})
        reader = client.open("/large")
        names = {server.number: server.name for server in client.status().servers}
        whole = blake3()
        read_some(reader, whole)

        # The first of them is the one that is read from.
        killed = names[reader.page.holders[0]]
        running.kill(killed)
        read_some(reader, whole)
        paused = names[reader.page.holders[0]]
        assert paused != killed

        running.start(killed)
        running.wait_alive(killed)
        running.pause(paused)
        while data := reader.read(MIB):
            whole.update(data)
        assert names[reader.page.holders[0]] == killed
        running.resume(paused)
        reader.close()
    assert whole.digest() == digest_of(chunks(2))
