"""What a restart loses: nothing that was acknowledged, and no request that can wait."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dws.errors import DwsError, NotFound
from dws.limits import MIB
from tests.cluster.conftest import ClusterUnderTest, Wire, until

Make = Callable[..., ClusterUnderTest]


@contextmanager
def in_thread(run: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs it meanwhile, and joins; its result, or what it raised, is in the list afterwards."""
    results: list[Any] = []

    def target() -> None:
        try:
            results.append(run())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield results
    finally:
        thread.join()


def test_a_download_under_way_does_not_need_the_balancer(cluster: Make) -> None:
    running = cluster(webservers=2)
    # More than the credit of a transfer, so that most of it is yet to be asked for.
    body = random.Random(1).randbytes(24 * MIB)
    with running.client() as client:
        client.put({"/large": body})
        reader = client.open("/large")
        parts = [reader.read(MIB)]
        running.kill("balancer")
        while sum(map(len, parts)) < len(body) // 2:
            parts.append(reader.read(MIB))
        running.start("balancer")
        running.wait_alive()
        assert b"".join([*parts, reader.readall()]) == body
        reader.close()
    running.check_stored("/large", body)


def test_requests_wait_for_the_balancer(cluster: Make) -> None:
    running = cluster(webservers=2)
    with running.client() as client:
        client.put({"/old": b"old", "/removed": b"removed"})
    running.kill("balancer")

    def request(method: str, *arguments: Any) -> Callable[[], Any]:
        def run() -> Any:
            with running.client() as client:
                result = getattr(client, method)(*arguments)
                return [record.name for record in result] if method == "list" else result

        return run

    with (
        in_thread(request("get", "/old")) as got,
        in_thread(request("put", {"/new": b"new"})) as put,
        in_thread(request("list", "/old")) as listed,
        in_thread(request("remove", ["/removed"])) as removed,
        in_thread(request("status")) as status,
    ):
        running.start("balancer")
    assert got == [b"old"]
    assert listed == [["/old"]]
    assert put[0].copies == 2
    assert removed[0].removed == 1
    assert status[0].epoch == 2
    running.check_stored("/new", b"new")


def test_everything_killed_at_once_serves_what_was_acknowledged(cluster: Make) -> None:
    running = cluster(webservers=3)
    acknowledged: dict[str, bytes] = {}

    def put_on_and_on() -> None:
        rng = random.Random(2)
        with running.client() as client:
            for number in range(1_000_000):
                sizes = rng.choices((0, 100, 5_000, 300_000), k=5)
                pages = {f"/{number}/{size}": rng.randbytes(size) for size in sizes}
                client.put(pages, timeout_s=1.0)
                acknowledged.update(pages)

    with in_thread(put_on_and_on) as ended:
        until(lambda: len(acknowledged) > 50 or ended, "some puts")
        running.kill(*running.nodes)
    assert isinstance(ended[0], DwsError)
    running.start(*running.nodes)
    running.wait_alive()
    with running.client() as client:
        assert client.get_many(list(acknowledged)) == acknowledged
        stats = client.stat(acknowledged)
        assert all(stat is not None and len(stat.holders) >= 2 for stat in stats)
        # The put under way at the kill is there as a whole, or not at all.
        others = [record.name for record in client.list() if record.name not in acknowledged]
        assert len({name.split("/")[1] for name in others}) <= 1
        client.put({"/after": b"after"})
    for name in random.Random(3).sample(sorted(acknowledged), 5):
        running.check_stored(name, acknowledged[name])


def test_a_server_that_comes_back_has_missed_what_it_missed(cluster: Make) -> None:
    """While a holder is down, a page of its is overwritten and another one removed."""
    running = cluster(webservers=3, garbage_s=1.0)
    with running.client() as client:
        client.put({"/kept": b"kept", "/overwritten": b"old", "/removed": b"removed"})
        before = client.stat(["/kept", "/overwritten", "/removed"])
        victim = running.holders("/kept")[0]
        incarnation = running.servers()[victim].incarnation
        running.kill(victim)
        client.put({"/overwritten": b"new"})
        client.remove(["/removed"])
        running.start(victim)
        running.wait_alive()
        back = running.servers()[victim]
        assert back.incarnation >> 32 == (incarnation >> 32) + 1
        assert victim in running.holders("/kept")
        assert victim not in running.holders("/overwritten")
        for _ in range(20):
            assert client.get("/overwritten") == b"new"
        with pytest.raises(NotFound):
            client.get("/removed")
        running.check_stored("/kept", b"kept")
        with Wire() as wire:

            def still_there() -> list[bytes]:
                pages = [wire.page(back.endpoint, stat.record) for stat in before if stat is not None]
                return [page for page in pages if page is not None]

            # Readers that were told of it before may still ask; then it goes.
            until(lambda: still_there() == [b"kept"], f"{victim} has dropped its stale records")
        until(lambda: running.status().garbage == 0, "no garbage anywhere")
        assert running.servers()[victim].pages == 1


@pytest.mark.slow
def test_a_server_that_was_paused_past_its_death_is_back_in_sync(cluster: Make) -> None:
    running = cluster(webservers=3, dead_s=1.5)
    with running.client() as client:
        client.put({"/page": b"one"})
        victim = running.holders("/page")[0]
        running.pause(victim)
        running.wait_state(victim, "dead")
        client.put({"/page": b"two", "/other": b"other"})
        assert client.get("/page") == b"two"
        running.resume(victim)
        running.wait_alive()
        for _ in range(20):
            assert client.get("/page") == b"two"
    running.check_stored("/page", b"two")
    running.check_stored("/other", b"other")
