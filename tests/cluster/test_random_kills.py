"""kill -9 of random processes under mixed load: what was acknowledged is there, before and after."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from dws.errors import DwsError, NotFound, OutcomeUnknown
from dws.nodes.client import Client
from tests.cluster.conftest import ClusterUnderTest, until

ROUNDS = 10
THREADS = 3
NAMES = 8
SIZES = (0, 10, 4_000, 300_000, 2_500_000)


@dataclass
class Writer:
    """One thread's pages, which nobody else writes; of each, the bodies that it may have (None: no page)."""

    number: int
    seed: int
    may_be: dict[str, set[bytes | None]] = field(default_factory=dict)
    done: int = 0
    refused: list[str] = field(default_factory=list)
    failure: BaseException | None = None

    def run(self, endpoint_client: Callable[[], Client], stop: threading.Event) -> None:
        rng = random.Random(self.seed)
        self.may_be = {f"/writer-{self.number}/{each}": {None} for each in range(NAMES)}
        try:
            with endpoint_client() as client:
                while not stop.is_set():
                    rng.choice((self.put, self.put, self.get, self.get, self.remove))(client, rng)
                    self.done += 1
        except BaseException as failure:
            self.failure = failure

    def put(self, client: Client, rng: random.Random) -> None:
        names = rng.sample(sorted(self.may_be), rng.randint(1, 4))
        pages = {name: rng.randbytes(rng.choice(SIZES)) for name in names}
        self.write(dict(pages), lambda: client.put(pages))

    def remove(self, client: Client, rng: random.Random) -> None:
        names = rng.sample(sorted(self.may_be), 2)
        self.write(dict.fromkeys(names), lambda: client.remove(names))

    def write(self, wanted: dict[str, bytes | None], call: Callable[[], object]) -> None:
        try:
            call()
        except OutcomeUnknown as error:
            self.refused.append(repr(error))
            for name, body in wanted.items():
                self.may_be[name].add(body)
        except DwsError as error:
            # Any other error says that nothing of it is visible, or ever will be.
            self.refused.append(repr(error))
        else:
            for name, body in wanted.items():
                self.may_be[name] = {body}

    def get(self, client: Client, rng: random.Random) -> None:
        name = rng.choice(sorted(self.may_be))
        try:
            body: bytes | None = client.get(name)
        except NotFound:
            body = None
        assert body in self.may_be[name], f"{name} has {len(body) if body is not None else 'no'} bytes"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_acknowledged_pages_outlive_random_kills(cluster: Callable[..., ClusterUnderTest], seed: int) -> None:
    rng = random.Random(seed)
    running = cluster(webservers=3, garbage_s=2.0)
    writers = [Writer(number, rng.getrandbits(32)) for number in range(THREADS)]
    stop = threading.Event()
    threads = [
        threading.Thread(target=writer.run, args=(lambda: running.client(timeout_s=60.0), stop))
        for writer in writers
    ]
    for thread in threads:
        thread.start()
    try:
        for number in range(ROUNDS):
            before = {writer.number: writer.done for writer in writers}
            until(
                lambda before=before: all(w.done >= before[w.number] + 3 or w.failure for w in writers),
                f"requests in round {number}", within_s=60.0,
            )  # fmt: skip
            victim = rng.choice(list(running.nodes))
            print(f"round {number}: kill {victim}, {sum(writer.done for writer in writers)} requests done")
            running.kill(victim)
            running.start(victim)
            running.wait_alive()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for writer in writers:
        print(f"writer {writer.number}: {writer.done} requests, refused {writer.refused}")
        assert writer.failure is None, writer.failure
    with running.client() as client:
        for writer in writers:
            for name, may_be in writer.may_be.items():
                stat = client.stat([name])[0]
                if stat is None:
                    assert None in may_be, f"{name} is gone"
                else:
                    body = client.get(name)
                    assert body in may_be
                    running.check_stored(name, body)
    until(lambda: running.status().garbage == 0, "all garbage is dropped")
