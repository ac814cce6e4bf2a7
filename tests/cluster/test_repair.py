"""Real processes: what a dead server held is on two disks again, a third copy goes, a drain empties."""

import random
from collections.abc import Callable

import pytest

from dws.errors import Refused
from tests.cluster.conftest import ClusterUnderTest, until

Make = Callable[..., ClusterUnderTest]

PAGES = {f"/{number}": random.Random(number).randbytes(20_000) for number in range(60)}
PAGES["/large"] = random.Random(99).randbytes(3_000_000)
#: Larger than every order of repair: it goes alone.
SETTINGS = {"repair_job_bytes": 1 << 20, "garbage_s": 2.0}


def copies(running: ClusterUnderTest) -> list[int]:
    return running.status().page_copies


def all_twice(running: ClusterUnderTest) -> None:
    for name, body in PAGES.items():
        running.check_stored(name, body)


@pytest.mark.slow
def test_a_killed_servers_pages_are_copied_again_and_a_third_copy_goes_when_it_is_back(cluster: Make) -> None:
    running = cluster(webservers=4, **SETTINGS)
    with running.client() as client:
        client.put(PAGES)
    running.kill("web-2")
    until(lambda: running.servers()["web-2"].state == "dead", "web-2 to be dead")
    until(lambda: copies(running) == [0, 0, len(PAGES), 0], "two copies of all")
    all_twice(running)
    running.start("web-2")
    running.wait_alive("web-2")
    until(lambda: copies(running) == [0, 0, len(PAGES), 0], "no third copy")
    all_twice(running)


@pytest.mark.slow
def test_a_repair_outlives_the_balancer(cluster: Make) -> None:
    running = cluster(webservers=3, **SETTINGS)
    with running.client() as client:
        client.put(PAGES)
    running.kill("web-1", "balancer")
    running.start("balancer")
    until(lambda: copies(running) == [0, 0, len(PAGES), 0], "two copies of all")
    all_twice(running)


@pytest.mark.slow
def test_a_drained_server_can_be_stopped_and_forgotten(cluster: Make) -> None:
    running = cluster(webservers=3, **SETTINGS)
    with running.client() as client:
        client.put(PAGES)
        assert client.drain("web-3").draining
        until(lambda: not running.servers()["web-3"].to_move, "web-3 to be empty")
        running.kill("balancer")
        running.start("balancer")
        until(lambda: running.servers()["web-3"].state == "draining", "web-3 to be drained still")
        with pytest.raises(Refused, match="stop it first"):
            client.forget("web-3")
        running.kill("web-3")
        until(lambda: running.servers()["web-3"].state == "dead", "web-3 to be dead")
        assert copies(running) == [0, 0, len(PAGES), 0], "nothing was lost with it"
        client.forget("web-3")
        assert "web-3" not in running.servers()
    all_twice(running)
