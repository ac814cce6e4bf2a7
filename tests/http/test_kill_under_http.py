"""A web server killed under HTTP load: a client that follows redirects and retries once sees no failure.

Several threads ask for pages through the gateway without a pause, while one server after the other is killed
with everything that it is made of, and comes back. Every body is compared.
"""

import http.client
import os
import random
import signal
import threading
import urllib.parse
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.http.real_cluster import RealCluster, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

THREADS = 6
HOPS = 5
KILLS = 3
#: Before the second try. A killed server is routed away from within 250 ms; curl would wait 1 s.
RETRY_AFTER_S = 0.25
#: Read before each kill and after each return.
READS = 300
PAGES = {f"/page-{number:03}.txt": f"page {number}\n".encode() * 300 for number in range(200)}


class Reader(threading.Thread):
    """Random pages, one after the other; each is tried once more, a moment later, if it fails."""

    def __init__(self, gateway: str, seed: int, stop: threading.Event) -> None:
        super().__init__(name=f"reader-{seed}")
        self._gateway = gateway
        self._random = random.Random(seed)
        self._stop_asked = stop
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self) -> None:
        names = list(PAGES)
        while not self._stop_asked.is_set():
            name = self._random.choice(names)
            problem = self._get(name)
            if problem:
                self.counts["retried"] += 1
                self._stop_asked.wait(RETRY_AFTER_S)
                problem = self._get(name)
            if problem:
                self.failures.append(f"{name}: {problem}")
            else:
                self.counts["read"] += 1

    def _get(self, name: str) -> str:
        """What went wrong, if anything did."""
        url = self._gateway + name
        try:
            for _ in range(HOPS):
                split = urllib.parse.urlsplit(url)
                connection = http.client.HTTPConnection(split.netloc, timeout=10)
                try:
                    connection.request("GET", f"{split.path}?{split.query}" if split.query else split.path)
                    answer = connection.getresponse()
                    body = answer.read()
                finally:
                    connection.close()
                if answer.status == 200:
                    return "" if body == PAGES[name] else f"a wrong body from {url}"
                if answer.status not in (302, 307):
                    return f"{answer.status} from {url}: {body[:200]!r}"
                url = urllib.parse.urljoin(url, answer.headers["Location"])
            return f"more than {HOPS} hops, the last to {url}"
        except (OSError, http.client.HTTPException) as error:
            return f"{error!r} from {url}"


def kill(pid: int) -> None:
    """The web server and its HTTP endpoint, at once."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    assert len(family) > 1, "it has an endpoint's process"
    for each in family:
        os.kill(each.pid, signal.SIGKILL)
    psutil.wait_procs(family[1:], timeout=10)


def test_a_client_that_retries_once_sees_no_failure(tmp_path: Path, seed: int) -> None:
    with RealCluster(tmp_path / "data", "--set", "down_dead_s=1.0", webservers=4, site=None) as cluster:
        with cluster.client() as client:
            client.put(PAGES)
        stop = threading.Event()
        readers = [Reader(cluster.gateway, seed + number, stop) for number in range(THREADS)]
        for reader in readers:
            reader.start()
        try:
            for number in range(KILLS):
                read_more(readers)
                kill_and_await(cluster, f"web-{number % 4 + 1}", readers)
            read_more(readers)
        finally:
            stop.set()
            for reader in readers:
                reader.join()
    failures = [failure for reader in readers for failure in reader.failures]
    counts = sum((reader.counts for reader in readers), Counter())
    print(f"{counts['read']:,} pages read, {counts['retried']} at the second try, through {KILLS} kills")
    assert not failures, f"{len(failures)} failed; the first: {failures[:5]}"


def read_more(readers: list[Reader]) -> None:
    wanted = sum(reader.counts["read"] for reader in readers) + READS
    eventually(lambda: sum(reader.counts["read"] for reader in readers) >= wanted, f"{READS} pages more read")


def kill_and_await(cluster: RealCluster, name: str, readers: list[Reader]) -> None:
    """Killed; then started again by run_cluster.py, in sync, and with its endpoint, while pages are read."""
    pid = cluster.node(name)["pid"]
    kill(pid)
    read_more(readers)
    eventually(lambda: cluster.node(name)["pid"] not in (pid, None), f"{name} is started again")
    eventually(lambda: name in cluster.http_endpoints(), f"{name} is back with its endpoint")
    # Its last life's endpoint may be the one that is still known: this one must answer.
    endpoint = urllib.parse.urlsplit(cluster.http_endpoints()[name])
    eventually(lambda: answers(endpoint.netloc), f"{name} answers at {endpoint.netloc}")


def answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
