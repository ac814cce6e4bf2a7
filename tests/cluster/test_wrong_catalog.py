"""A balancer on a wrong catalog, and directories in use twice: refused, said so, and nothing lost."""

from collections.abc import Callable

import pytest

from tests.cluster.conftest import ClusterUnderTest, until

Make = Callable[..., ClusterUnderTest]

PAGES = {f"/{number}": bytes([number]) * 1000 for number in range(20)}
LATER = {f"/later/{number}": bytes([number]) * 1000 for number in range(20)}


def check_served(running: ClusterUnderTest, pages: dict[str, bytes]) -> None:
    with running.client() as client:
        assert client.get_many(list(pages)) == pages
    name, body = next(iter(pages.items()))
    running.check_stored(name, body)


def refused(running: ClusterUnderTest, balancer: str, *texts: str) -> None:
    """Start a balancer that all servers refuse, for long enough to have dropped what it does not know."""
    running.start(balancer)
    for name in running.webservers:
        until(lambda name=name: "not joining" in running.log(name), f"{name} refuses {balancer}")
        said = running.log(name).partition("not joining")[2].partition("\n")[0]
        assert all(text in said for text in texts), said
    with running.client() as client:
        # Servers ask again every second: by their second hello garbage_s has passed.
        until(
            lambda: sum(n for text, n in client.status().counters.items() if "refused" in text) >= 4,
            "the servers asked again",
        )
        assert all(server.state != "alive" for server in client.status().servers)
    running.stop(balancer)


def right_one_again(running: ClusterUnderTest) -> None:
    running.start("balancer")
    running.wait_alive()
    check_served(running, PAGES | LATER)
    assert running.status().garbage == 0


def test_an_empty_directory_is_another_cluster(cluster: Make) -> None:
    running = cluster(webservers=2, garbage_s=0.2)
    with running.client() as client:
        client.put(PAGES)
        client.put(LATER)
    running.stop("balancer")
    running.add("balancer-empty")
    refused(running, "balancer-empty", "cluster", "nothing is dropped", "--rebuild")
    right_one_again(running)


@pytest.mark.slow
def test_an_older_copy_of_the_catalog_is_behind(cluster: Make) -> None:
    running = cluster(webservers=2, garbage_s=0.2)
    with running.client() as client:
        client.put(PAGES)
    running.stop("balancer")
    running.copy_data("balancer", "older")
    running.start("balancer")
    running.wait_alive()
    with running.client() as client:
        client.put(LATER)
    running.stop("balancer")
    running.add("balancer-older", data="older")
    refused(running, "balancer-older", "old copy", "does not know start 2", "--rebuild")
    right_one_again(running)


@pytest.mark.slow
def test_a_copy_made_while_the_balancer_ran_is_behind_too(cluster: Make) -> None:
    """It knows the start that the servers were told; what it lacks is the last decision."""
    running = cluster(webservers=2, garbage_s=0.2)
    with running.client() as client:
        client.put(PAGES)
        running.copy_data("balancer", "older")
        client.put(LATER)
        decision = client.status().decision
    for name in running.webservers:
        # Told with the answer to a hello, which is said again every few seconds.
        until(
            lambda name=name: running.identity(name).decision == decision,
            f"{name} was told decision {decision}",
        )
    running.kill("balancer")
    running.add("balancer-older", data="older")
    refused(running, "balancer-older", "old copy", f"told decision {decision}", "--rebuild")
    right_one_again(running)


def test_a_directory_or_port_in_use_is_refused(cluster: Make) -> None:
    running = cluster(webservers=2)
    running.add("balancer-2", data="balancer", port=0)
    pid = running.nodes["balancer"].pid
    assert f"in use by process {pid}" in running.start_refused("balancer-2")
    running.add("balancer-3")
    assert f"port {running.port} on 127.0.0.1 is taken" in running.start_refused("balancer-3")
    running.add("web-9", data="web-1")
    pid = running.nodes["web-1"].pid
    assert f"in use by process {pid}" in running.start_refused("web-9")
    with running.client() as client:
        client.put(PAGES)
    check_served(running, PAGES)


@pytest.mark.slow
def test_a_copied_web_server_gets_no_placements(cluster: Make) -> None:
    """Two processes claim one identity: neither is trusted with new pages until it is one again."""
    running = cluster(webservers=3)
    with running.client() as client:
        client.put(PAGES)
        running.stop("web-1")
        running.copy_data("web-1", "twin")
        running.add("web-twin", data="twin")
        running.start("web-1", "web-twin")
        running.wait_alive("web-2", "web-3")

        def contested() -> list[str]:
            return [server.name for server in client.status().servers if server.state == "contested"]

        until(contested, "the twins are noticed")
        number = next(s.number for s in client.status().servers if s.name == contested()[0])
        client.put(LATER)
        for stat in client.stat(LATER):
            assert stat is not None
            assert sorted(holder.name for holder in stat.holders) == ["web-2", "web-3"]
        assert client.get_many(list(PAGES)) == PAGES
        running.stop("web-2")
        running.kill("web-1", "web-twin")
        running.start("web-1", "web-2")
        running.wait_alive("web-1", "web-2")
        assert next(s.name for s in client.status().servers if s.number == number) == "web-1"
    check_served(running, PAGES | LATER)
