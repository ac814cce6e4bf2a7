"""What nodes use: this very process stands in for one, and rows of samples for the rest."""

import os
import socket
import subprocess
import sys
import time
from functools import partial

import pytest

from dws.messages import ServerStatus
from loadgen import resources
from loadgen.resources import (
    SAMPLES_MAX,
    Family,
    Node,
    Watch,
    cores_busy,
    listeners,
    load_book,
    local_port,
    machine,
)
from loadgen.tcp_bytes import Carried, TcpBytes
from tests import waiting

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
until = partial(waiting.until, within_s=10.0)


def status(name: str, state: str = "alive", cpu_share: float = 0.0, sent: int = 0) -> ServerStatus:
    zero = dict.fromkeys(ServerStatus.__struct_fields__[: -len(ServerStatus.__struct_defaults__)], 0)
    known = {
        "name": name, "state": state, "endpoint": "tcp://192.0.2.1:1", "cpu_share": cpu_share,
        "bytes_sent": sent, "note": "",
    }  # fmt: skip
    return ServerStatus(**{**zero, **known})


def test_the_machine_has_facts() -> None:
    here = machine()
    assert here.cores >= 1
    assert here.memory_bytes > 1 << 20
    assert all((here.python, here.platform, here.pyzmq, here.libzmq))


def test_a_listening_port_leads_to_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listeners().get(port) == os.getpid()


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("tcp://127.0.0.1:5600", 5600),
        ("http://localhost:8080/", 8080),
        ("tcp://192.0.2.1:5600", 0),
        ("nonsense", 0),
        ("tcp://127.0.0.1:x", 0),
        ("tcp://no-such-host.invalid:1", 0),
    ],
)
def test_an_endpoint_is_of_this_machine_or_not(endpoint: str, port: int) -> None:
    assert local_port(endpoint) == port


def test_a_process_and_its_children_are_one_and_keep_what_they_used() -> None:
    code = "import sys, subprocess; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        family = Family(process.pid)
        now_s = [0.0]

        def used_s() -> float:
            now_s[0] += 10.0  # children are looked for now and then
            return family.look(now_s[0])[0]

        until(lambda: len(family.pids()) == 2 or not used_s(), "a child")
        until(lambda: used_s() > 0.3, "CPU time of the child")
        assert len(family.pids()) == 2
        assert family.look(0.0)[1] > 1 << 20
        assert family.is_alive()
        before_s = used_s()
        for pid in reversed(family.pids()):
            os.kill(pid, 9)
        process.wait()
        until(lambda: not family.is_alive(), "its end")
        assert used_s() >= before_s


@LINUX
def test_the_bytes_of_connections_are_counted_and_kept_when_they_are_closed() -> None:
    counted = TcpBytes()
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        before = counted.look([os.getpid()])[os.getpid()]
        near.sendall(b"x" * 100_000)
        have = 0
        while have < 100_000:
            have += len(far.recv(1 << 16))

        def sent() -> int:
            return counted.look([os.getpid()])[os.getpid()].sent - before.sent

        until(lambda: sent() >= 100_000, "the far side's word that it has them")
        after = counted.look([os.getpid()])[os.getpid()]
        assert after.received - before.received == 100_000
        near.close()
        far.close()
    assert counted.look([os.getpid()])[os.getpid()] == after
    assert counted.look([1 << 22]) == {1 << 22: Carried()}


def test_a_node_that_dies_and_comes_back_keeps_its_sums_and_says_so() -> None:
    node = Node("web-1", "webserver", "tcp://127.0.0.1:1")
    assert node.adopt(os.getpid())
    node.look(1.0, {})
    spent_s = node.samples[-1][1].cpu_s
    node.has_died(12.0)
    node.has_died(12.5)  # seen twice, by its process and by its heartbeats
    assert node.deaths == 1
    assert node.adopt(os.getpid())
    node.is_back(15.0)
    node.look(15.0, {os.getpid(): Carried(5, 7)})
    assert node.samples[-1][1].cpu_s >= 2 * spent_s
    assert (node.samples[-1][1].sent_bytes, node.samples[-1][1].received_bytes) == (5, 7)
    node.has_died(20.0)
    use = node.use(10.0, 5.0, 30.0)
    assert (use.pid, use.died_at_s) == (os.getpid(), 2.0)
    assert use.note == "it did not come back while the load lasted; it died 2 times in all"


def test_a_process_that_is_no_more_is_not_adopted() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert not Node("web-1", "webserver", "").adopt(process.pid)


def test_of_a_node_elsewhere_heartbeats_tell() -> None:
    node = Node("web-1", "webserver", "tcp://192.0.2.1:1")
    for at_s, sent in ((0.0, 1000), (2.0, 5000), (4.0, 300)):  # it was started again before the third
        node.hear(at_s, status("web-1", cpu_share=0.5, sent=sent))
    use = node.use(0.0, -1.0, 10.0)
    assert [one.sent_bytes for one in use.loaded] == [1000, 5000, 5300]
    assert use.loaded[1].cpu_s == pytest.approx(1.0)
    assert "not on this machine" in use.note


class Client:
    """A balancer's answers."""

    def __init__(self, servers: list[ServerStatus]) -> None:
        self.servers = servers

    def status(self) -> "Client":
        return self


def test_samples_are_bounded_and_come_further_apart() -> None:
    watch = Watch("tcp://192.0.2.1:5600")
    client = Client([status("web-1")])
    for _ in range(5 * SAMPLES_MAX):
        watch.look(client)  # type: ignore[arg-type]
    assert len(watch._nodes["web-1"].samples) <= SAMPLES_MAX
    assert watch._every_s >= 4 * resources.EVERY_S


def test_servers_that_heartbeats_call_dead_have_died() -> None:
    watch = Watch("tcp://192.0.2.1:5600")
    for state in ("alive", "suspect", "dead", "dead", "alive"):
        watch.look(Client([status("web-1", state)]))  # type: ignore[arg-type]
    node = watch._nodes["web-1"]
    assert (node.deaths, node.back_s is not None) == (1, True)


def test_no_balancer_has_no_load_book() -> None:
    assert load_book("tcp://127.0.0.1:9", 0.2) == []


def test_a_cluster_that_nobody_reaches_is_looked_at_in_vain_but_in_time() -> None:
    watch = Watch("tcp://127.0.0.1:9")
    watch.idle(0.1, lambda left_s: False)
    (use,) = watch.end()
    assert (use.name, use.idle, use.loaded) == ("balancer", [], [])


def test_a_machine_cannot_have_been_busier_than_always() -> None:
    before = cores_busy()
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    after = cores_busy()
    busy_s, whole_s = after[0] - before[0], after[1] - before[1]
    assert 0.05 < busy_s <= whole_s + 0.02, "clocks of the kernel tick a hundred times a second"
