"""Disks that rot, lose files and are cut off under real servers: nothing is lost, nothing wrong is read.

At the end there are two good copies of everything again.
"""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from dws.errors import Unavailable
from dws.limits import INLINE_MAX_BYTES, MIB
from dws.messages import NodeStats, NodeStatsAre, Verified, Verify
from dws.names import bucket_of, page_key
from tests.cluster.conftest import MAP_BYTES, ClusterUnderTest, Wire, until

Make = Callable[..., ClusterUnderTest]

#: The scrubber as fast as it may be, and round after round.
HASTY = {"scrub_bytes_s": "512MiB", "scrub_every_s": 0, "disk_check_s": 0.5}
#: No scrubber: damage is found by others.
UNSCRUBBED = {"scrub_bytes_s": 0}

SMALL = b"a small page\n" * 20
FILE = random.Random(1).randbytes(INLINE_MAX_BYTES + 1000)
LARGE = random.Random(2).randbytes(3 * MIB + 77)
PAGES = {"/small.html": SMALL, "/file.bin": FILE, "/large.bin": LARGE}


def version_of(running: ClusterUnderTest, name: str) -> int:
    with running.client() as client:
        stat = client.stat([name])[0]
        assert stat is not None
        return stat.record.version


def page_file(running: ClusterUnderTest, server: str, name: str) -> Path:
    version = version_of(running, name)
    stem = f"{page_key(name).hex()}-{version:016x}"
    return running.data(server) / "pages" / f"{bucket_of(version):02x}" / stem


def spoil(running: ClusterUnderTest, server: str, name: str, at: int = 100) -> None:
    """One byte of the page changes where it lies on this server's disk."""
    path = page_file(running, server, name)
    if path.exists():
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
        return
    store = str(running.data(server) / "store.mdb")
    key = version_of(running, name).to_bytes(8, "big") + page_key(name)
    with lmdb.open(store, subdir=False, map_size=MAP_BYTES, max_dbs=8) as environment:
        inline = environment.open_db(b"inline", create=False)
        with environment.begin(write=True, db=inline) as transaction:
            data = bytearray(transaction.get(key) or b"")
            data[at] ^= 1
            transaction.put(key, bytes(data))


def set_aside(running: ClusterUnderTest, server: str) -> set[str]:
    """Names of the pages that the server set aside."""
    found = (running.data(server) / "quarantine").glob("*.json")
    return {json.loads(path.read_text("utf-8"))["name"] for path in found}


def stats(running: ClusterUnderTest, server: str) -> NodeStatsAre:
    with Wire() as wire:
        reply = wire.ask(running.servers()[server].endpoint, NodeStats(0))
    assert isinstance(reply, NodeStatsAre)
    return reply


def wait_two_good_copies(running: ClusterUnderTest, pages: dict[str, bytes] = PAGES) -> None:
    def good() -> bool:
        return all(
            list(held.values()).count(body) >= 2 and set(held.values()) == {body}
            for name, body in pages.items()
            for held in [running.copies(name)]
        )

    until(good, "two good copies of everything")


def check_all(running: ClusterUnderTest, pages: dict[str, bytes] = PAGES) -> None:
    with running.client() as client:
        for name, body in pages.items():
            assert client.get(name) == body


def read_until_set_aside(running: ClusterUnderTest, server: str, name: str) -> None:
    with running.client() as client:
        until(lambda: client.get(name) == PAGES[name] and name in set_aside(running, server), "set aside")


# A page


@pytest.mark.parametrize("webservers", [2, 3])
def test_the_scrubber_finds_changed_bytes_and_they_are_replaced(cluster: Make, webservers: int) -> None:
    running = cluster(webservers=webservers, **HASTY)
    with running.client() as client:
        client.put(PAGES)
    server = running.holders("/small.html")[0]
    for name in PAGES:
        spoil(running, server, name)
    until(lambda: set_aside(running, server) == set(PAGES), "damaged pages set aside")
    wait_two_good_copies(running)
    check_all(running)
    counters = stats(running, server).counters
    assert counters["damaged pages set aside"] == len(PAGES)
    assert counters["pages in doubt"] == 0
    until(lambda: running.servers()[server].damaged == len(PAGES), "the status tells it")
    assert "damaged and was set aside" in running.log(server)


def test_a_reader_that_meets_wrong_bytes_has_the_server_look(cluster: Make) -> None:
    running = cluster(webservers=2, policy="round-robin", **UNSCRUBBED)
    with running.client() as client:
        client.put(PAGES)
        for server in running.holders("/small.html"):
            spoil(running, server, "/small.html")
            read_until_set_aside(running, server, "/small.html")
            wait_two_good_copies(running)
        server = running.holders("/large.bin")[1]
        spoil(running, server, "/large.bin", 2 * MIB)
        read_until_set_aside(running, server, "/large.bin")
    wait_two_good_copies(running)


def test_a_file_that_is_gone_is_noticed_when_it_is_read(cluster: Make) -> None:
    running = cluster(webservers=2, **UNSCRUBBED)
    with running.client() as client:
        client.put(PAGES)
    server = running.holders("/file.bin")[0]
    page_file(running, server, "/file.bin").unlink()
    with running.client() as client:
        for _ in range(20):
            assert client.get("/file.bin") == FILE
    wait_two_good_copies(running)


def test_the_last_copy_is_not_served_and_its_bytes_are_kept(cluster: Make) -> None:
    running = cluster(webservers=2, **HASTY)
    with running.client() as client:
        client.put({"/small.html": SMALL}, copies=1)
        server = running.holders("/small.html")[0]
        spoil(running, server, "/small.html")
        until(lambda: set_aside(running, server), "set aside")
        until(lambda: not running.holders("/small.html"), "the balancer knows that nobody holds it")
        with pytest.raises(Unavailable):
            client.get("/small.html")
    kept = next((running.data(server) / "quarantine").glob("*.page")).read_bytes()
    assert len(kept) == len(SMALL)
    assert sum(a != b for a, b in zip(kept, SMALL, strict=True)) == 1


@pytest.mark.slow
def test_a_damaged_source_of_a_copy_is_found_out(cluster: Make) -> None:
    running = cluster(webservers=3, down_dead_s=1.5, dead_s=3, **UNSCRUBBED)
    with running.client() as client:
        client.put(PAGES)
    damaged, good = running.holders("/large.bin")
    spoil(running, damaged, "/large.bin", 2 * MIB)
    running.kill(good)
    until(lambda: set_aside(running, damaged) == {"/large.bin"}, "the source has looked at itself")
    running.start(good)
    wait_two_good_copies(running)
    check_all(running)


def test_a_request_to_verify_is_answered_with_what_is_good(cluster: Make) -> None:
    running = cluster(webservers=2, **UNSCRUBBED)
    with running.client() as client:
        client.put(PAGES)
    server = running.holders("/large.bin")[0]
    spoil(running, server, "/large.bin", 3 * MIB)
    known = running.servers()[server]
    records = [(name, version_of(running, name)) for name in PAGES]
    with Wire() as wire:
        absurd = [("/unknown", 5), *records, records[0], ("/small.html", 2**64 - 1)]
        reply = wire.ask(known.endpoint, Verify(known.incarnation, absurd))
        assert reply == Verified([1, 2, 4], [3])
        late = wire.ask(known.endpoint, Verify(known.incarnation ^ 1, records))
        assert late.code == "stale"
        many = [(f"/unknown/{number}", number) for number in range(1000)]
        for _ in range(50):
            assert wire.ask(known.endpoint, Verify(known.incarnation, many)) == Verified([], [])
    wait_two_good_copies(running)


# The whole store


def aside(running: ClusterUnderTest, server: str) -> list[str]:
    """Why stores were set aside, the first in front."""
    found = sorted((running.data(server) / "aside").glob("[0-9]*/reason.json"))
    return [json.loads(path.read_text("utf-8"))["reason"] for path in found]


def many_pages(count: int) -> dict[str, bytes]:
    rng = random.Random(3)
    return PAGES | {f"/many/{number}": rng.randbytes(6000) for number in range(count)}


@pytest.mark.slow
def test_a_store_that_is_cut_off_is_set_aside_and_filled_again(cluster: Make) -> None:
    running = cluster(webservers=3, down_dead_s=1.5, dead_s=3, **HASTY)
    pages = many_pages(500)
    with running.client() as client:
        client.put(pages)
    server = running.holders("/many/0")[0]
    os.truncate(running.data(server) / "store.mdb", 64 << 10)
    code = until(running.nodes[server].exit_code, f"{server} fell over its store")
    assert code in (-signal.SIGBUS, -signal.SIGSEGV, 1), code
    running.start(server)
    assert len(aside(running, server)) == 1
    assert "set aside" in running.log(server)
    running.wait_alive(server)
    wait_two_good_copies(running, pages)
    check_all(running, pages)
    assert (running.data(server) / "aside" / "1" / "pages").is_dir()


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_keeps_its_store(cluster: Make) -> None:
    running = cluster(webservers=2, **HASTY)
    pages = many_pages(200)
    with running.client() as client:
        client.put(pages)
    before = running.identity("web-1").server
    for _ in range(5):
        running.kill("web-1")
        running.start("web-1")
    assert aside(running, "web-1") == []
    assert running.identity("web-1").server == before
    assert running.log("web-1").count("the last life here was killed, or failed") == 5
    running.wait_alive("web-1")
    wait_two_good_copies(running, pages)
    assert set_aside(running, "web-1") == set()


@pytest.mark.slow
def test_two_deaths_by_a_fault_signal_set_the_store_aside(cluster: Make) -> None:
    running = cluster(webservers=3, down_dead_s=1.5, dead_s=3, **HASTY)
    with running.client() as client:
        client.put(PAGES)
    server = running.holders("/large.bin")[0]
    before = running.identity(server).server
    for deaths in (1, 2):
        running.nodes[server].signal(signal.SIGSEGV)
        assert until(running.nodes[server].exit_code, "it died") == -signal.SIGSEGV
        running.start(server)
        assert len(aside(running, server)) == deaths - 1
    assert running.identity(server).server != before
    assert "twice" in aside(running, server)[0]
    running.wait_alive(server)
    wait_two_good_copies(running)
    check_all(running)


def test_a_clean_stop_needs_no_look(cluster: Make) -> None:
    running = cluster(webservers=2)
    with running.client() as client:
        client.put(PAGES)
    running.stop("web-1")
    assert not (running.data("web-1") / "life.json").exists()
    running.start("web-1")
    assert "the last life" not in running.log("web-1")
    running.wait_alive()
    check_all(running)


@pytest.mark.slow
def test_a_file_lost_while_it_was_down_is_one_page_not_the_store(cluster: Make) -> None:
    running = cluster(webservers=2, **UNSCRUBBED)
    with running.client() as client:
        client.put(PAGES)
    lost = page_file(running, "web-1", "/large.bin")
    running.kill("web-1")
    lost.unlink()
    running.start("web-1")
    until(lambda: set_aside(running, "web-1") == {"/large.bin"}, "set aside")
    assert aside(running, "web-1") == []
    wait_two_good_copies(running)


# The disk


def test_a_disk_that_hangs_while_nobody_writes_is_noticed(cluster: Make) -> None:
    running = cluster(webservers=2, disk_check_s=0.5, sick_s=1.0, **UNSCRUBBED)
    with running.client() as client:
        client.put(PAGES)
    with running.hold_disk("web-1"):
        running.wait_state("web-1", "suspect")
        assert "owed an answer to writes" in running.servers()["web-1"].note
        check_all(running)
    running.wait_state("web-1", "alive")


FAILING = """
import os, pathlib

def failing(call):
    def sync(descriptor):
        if pathlib.Path({flag!r}).exists() and "web-1" in os.readlink(f"/proc/self/fd/{{descriptor}}"):
            raise OSError(5, "Input/output error")
        call(descriptor)
    return sync

os.fsync, os.fdatasync = failing(os.fsync), failing(os.fdatasync)
"""


@pytest.mark.slow
def test_a_failed_fsync_ends_the_process_and_the_next_one_looks_first(
    cluster: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "the disk fails"
    (tmp_path / "sitecustomize.py").write_text(FAILING.format(flag=str(flag)), "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    running = cluster(webservers=3, down_dead_s=1.5, dead_s=3, **UNSCRUBBED)
    with running.client() as client:
        client.put(PAGES)
        flag.touch()
        more = {f"/more/{number}": random.Random(number).randbytes(MIB) for number in range(12)}
        for name, body in more.items():
            client.put({name: body})
        code = until(running.nodes["web-1"].exit_code, "web-1 ended")
    assert code is not None and code > 0
    assert "cannot sync" in running.log("web-1")
    flag.unlink()
    running.start("web-1")
    assert "the last life here was killed, or failed" in running.log("web-1")
    wait_two_good_copies(running, PAGES | more)
    check_all(running, PAGES | more)
