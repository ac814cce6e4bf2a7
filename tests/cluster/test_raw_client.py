"""examples/raw_client.py, which knows the protocol from docs/protocol.md alone, against a real cluster."""

import ast
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dws.limits import CHUNK_BYTES
from tests.cluster.conftest import QUICK, ClusterUnderTest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "raw_client.py"
WITHIN_S = 30.0

SMALL = b"<h1>hello</h1>\n"
LARGE = random.Random(1).randbytes(2 * CHUNK_BYTES + 5)
PAGES = {"/small": SMALL, "/empty": b"", "/large": LARGE, "/ünï": b"x", "/chunk": LARGE[:CHUNK_BYTES]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    running = ClusterUnderTest(tmp_path_factory.mktemp("raw"), QUICK)
    try:
        running.begin(2)
        with running.client() as client:
            client.put(PAGES)
        yield running
    finally:
        running.close()


def raw_client(endpoint: str, name: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, str(SCRIPT), endpoint, name],
        capture_output=True, timeout=WITHIN_S, env=os.environ | environment, check=False,
    )  # fmt: skip


def test_it_imports_nothing_of_dws() -> None:
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text("utf-8"))))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"zmq", "msgpack", "blake3"}


@pytest.mark.parametrize("name", PAGES)
def test_pages_come_out_byte_for_byte(cluster: ClusterUnderTest, name: str) -> None:
    result = raw_client(cluster.endpoint, name)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == PAGES[name]


def test_without_blake3_it_says_that_digests_go_unchecked(cluster: ClusterUnderTest, tmp_path: Path) -> None:
    (tmp_path / "blake3.py").write_text("raise ImportError\n", "utf-8")
    result = raw_client(cluster.endpoint, "/large", PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout == LARGE) == (0, True)
    assert result.stderr == b"raw_client: no blake3 package: digests go unchecked\n"


def test_what_there_is_not_is_said_at_once(cluster: ClusterUnderTest) -> None:
    result = raw_client(cluster.endpoint, "/nowhere")
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"raw_client: there is no page /nowhere\n"


def test_an_endpoint_that_is_none_is_named() -> None:
    result = raw_client("nonsense", "/small")
    assert result.returncode == 1
    assert result.stderr.startswith(b"raw_client: nonsense: ")


def test_a_holder_that_hangs_is_left_for_the_other(cluster: ClusterUnderTest) -> None:
    # Paused and asked before its silence shows: one of the two is named first, so it is tried twice.
    for hanging in ("web-1", "web-2"):
        cluster.pause(hanging)
        try:
            result = raw_client(cluster.endpoint, "/large")
        finally:
            cluster.resume(hanging)
        assert (result.returncode, result.stdout == LARGE) == (0, True), result.stderr
        cluster.wait_alive()


@pytest.mark.slow
def test_nobody_there_is_given_up_with_the_endpoint_named() -> None:
    result = raw_client("tcp://127.0.0.1:9", "/small")
    assert (result.returncode, result.stdout) == (1, b"")
    lines = result.stderr.decode().splitlines()
    assert lines[0] == "raw_client: no answer from tcp://127.0.0.1:9 to locate in 1 s"
    assert lines[-1] == "raw_client: gave /small up after 10 s"
