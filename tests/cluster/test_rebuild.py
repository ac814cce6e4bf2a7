"""A rebuild with real processes: a server killed after its hello is named, left out, and loses nothing."""

import shutil
from collections.abc import Callable

import pytest

from dws.errors import NotFound
from dws.messages import Hello
from tests.cluster.conftest import ClusterUnderTest, Wire, until

Make = Callable[..., ClusterUnderTest]

PAGES = {f"/{number}": bytes([number]) * 1000 for number in range(20)}
LONE = {f"/lone/{number}": bytes([number]) * 1000 for number in range(30)}


def hello_of(running: ClusterUnderTest, name: str) -> Hello:
    """The hello that a server said before it was killed."""
    identity = running.identity(name)
    endpoint = running.nodes[name].endpoint
    return Hello(
        identity.server, name, identity.incarnation, endpoint, endpoint, "", identity.cluster,
        identity.start_epoch, identity.start_nonce, identity.decision, 1, 1, 0, 0,
    )  # fmt: skip


@pytest.mark.slow
def test_a_server_killed_while_it_is_read_is_left_out_and_keeps_what_only_it_has(cluster: Make) -> None:
    running = cluster(webservers=3, garbage_s=0.3, rebuild_quiet_s=2.0, rebuild_absent_s=7.0)
    with running.client() as client:
        client.put(PAGES)
        for name, body in LONE.items():
            client.put({name: body}, copies=1)
        lone = [name for name in LONE if running.holders(name) == ["web-3"]]
        records = {name: stat.record for name in lone if (stat := client.stat([name])[0]) is not None}
    assert records
    running.stop("balancer")
    hello = hello_of(running, "web-3")
    running.kill("web-3")
    shutil.rmtree(running.data("balancer"))
    running.nodes["balancer"].arguments.append("--rebuild")
    running.start("balancer")
    servers = f"tcp://127.0.0.1:{running.port + 1}"
    with Wire() as wire:
        assert wire.ask(servers, hello).code == "try-again"
    for text in ("waits for web-3", "web-3 has sent nothing of its", "not read, since absent: web-3"):
        running.wait_logged("balancer", text)
    running.wait_alive("web-1", "web-2")
    with running.client() as client:
        assert client.get_many(list(PAGES)) == PAGES
        with pytest.raises(NotFound):
            client.get(lone[0])
    running.start("web-3")
    running.wait_alive("web-3")
    kept = f"keeps {len(lone)} records"
    until(lambda: kept in running.servers()["web-3"].note, kept)
    with Wire() as wire:
        endpoint = running.servers()["web-3"].endpoint
        for name, record in records.items():
            assert wire.page(endpoint, record) == LONE[name]


@pytest.mark.slow
def test_a_rebuild_that_is_ended_changes_nothing(cluster: Make) -> None:
    running = cluster(webservers=2, rebuild_quiet_s=1.0)
    with running.client() as client:
        client.put(PAGES)
    running.stop("balancer")
    hello = hello_of(running, "web-2")
    running.kill("web-2")
    node = running.nodes["balancer"]
    node.arguments.append("--rebuild")
    running.start("balancer")
    with Wire() as wire:
        wire.ask(f"tcp://127.0.0.1:{running.port + 1}", hello)
    running.wait_logged("balancer", "waits for web-2")
    running.stop("balancer")
    assert "ended before it was complete: nothing was changed" in running.log("balancer")
    node.arguments.remove("--rebuild")
    running.start("balancer", "web-2")
    running.wait_alive()
    with running.client() as client:
        assert client.get_many(list(PAGES)) == PAGES
