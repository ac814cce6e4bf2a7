"""What the nodes of a cluster use, idle and under load, and the machine it is measured on.

What lives here: finding the nodes' processes, looking at them now and then, their load books. What must
not: what their figures mean (analysis), when load begins and ends (runner).

A node on this machine is the process that listens at its endpoint, with its children. Of a node elsewhere, or
of another user's, only what its heartbeats tell is known: CPU share and bytes of pages sent.
"""

import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

import psutil
import zmq

import dws
from dws.errors import DwsError
from dws.messages import NodeStatsAre, ServerStatus
from loadgen.measured import BookEntry, Machine, NodeSample, NodeUse
from loadgen.tcp_bytes import Carried, TcpBytes

#: Between looks, at first; twice as long each time that there are SAMPLES_MAX of a node.
EVERY_S: Final = 0.5
SAMPLES_MAX: Final = 600
#: A balancer that does not answer must not keep the looks at the others for long.
_ASK_WITHIN_S: Final = 1.0
_CHILDREN_EVERY_S: Final = 3.0
_HOT_ASKED: Final = 1000
_HOT_KEPT: Final = 20
_GONE: Final = ("dead", "suspect")

BALANCER: Final = "balancer"
WEBSERVER: Final = "webserver"
GATEWAY: Final = "gateway"
_ROLES: Final = (BALANCER, GATEWAY, WEBSERVER)


def machine() -> Machine:
    """This one."""
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{platform.system()} {platform.release()}, {platform.machine()}",
        pyzmq=zmq.pyzmq_version(),
        libzmq=zmq.zmq_version(),
        load_average=os.getloadavg()[0],
    )


def cores_busy() -> tuple[float, float]:
    """(busy, busy or not), in seconds since the start of this machine, of the cores that we may use."""
    every = psutil.cpu_times(percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(every))
    found = [one for number, one in enumerate(every) if number in mine]
    # What a guest ran is counted under user and nice already.
    whole_s = sum(sum(one) - getattr(one, "guest", 0.0) - getattr(one, "guest_nice", 0.0) for one in found)
    return whole_s - sum(one.idle + getattr(one, "iowait", 0.0) for one in found), whole_s


def load_book(balancer: str, timeout_s: float = 2.0) -> list[BookEntry]:
    """Each live server's visits in its statistics period, or in the last one if this has only just begun.

    Empty if the balancer gives no answer; without a server that gives none.
    """
    entries: list[BookEntry] = []
    try:
        with dws.connect(balancer, timeout_s=timeout_s) as client:
            for server in client.status().servers:
                if server.state not in _GONE:
                    entries += _entry(client, server)
    except DwsError:
        pass
    return sorted(entries, key=lambda entry: entry.server)


def _entry(client: "dws.Client", server: ServerStatus) -> list[BookEntry]:
    try:
        stats: NodeStatsAre = client.node_stats(server.name, _HOT_ASKED)
    except DwsError:
        return []
    age_s, hot, visits = stats.period_age_s, stats.hot, max(server.visits, _visits(stats.hot))
    if _visits(stats.hot_last) > visits and age_s < stats.period_s / 2:
        age_s, hot = stats.period_s, stats.hot_last
        visits = max(server.visits_last_period, _visits(hot))
    size = sum(size_bytes for _, _, size_bytes in hot)
    return [BookEntry(server.name, age_s, visits, size, hot[:_HOT_KEPT])]


def _visits(hot: Iterable[tuple[str, int, int]]) -> int:
    return sum(visits for _, visits, _ in hot)


# -- processes ------------------------------------------------------------------------------


def listeners() -> dict[int, int]:
    """Port → pid, of what listens on this machine, as far as this user may know."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return {}
    listening = [one for one in connections if one.status == psutil.CONN_LISTEN]
    return {one.laddr.port: one.pid for one in listening if one.laddr and one.pid is not None}


@lru_cache(maxsize=1024)
def local_port(endpoint: str) -> int:
    """The port of `tcp://HOST:PORT` or of a URL, if HOST is this machine; else 0."""
    parts = urlsplit(endpoint)
    try:
        host, port = parts.hostname or "", parts.port or 0
        addresses = {str(one[4][0]) for one in socket.getaddrinfo(host, None)}
    except (OSError, ValueError):
        return 0
    mine = {address.address for family in psutil.net_if_addrs().values() for address in family}
    return port if addresses & (mine | {"127.0.0.1", "::1"}) else 0


class Family:
    """A process and its children. Sums rise for ever: those that have ended keep what they had."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._root = psutil.Process(pid)
        self._members: dict[int, psutil.Process] = {pid: self._root}
        self._cpu_s: dict[int, float] = {}
        self._disk: dict[int, tuple[int, int]] = {}
        self._children_s = 0.0

    def is_alive(self) -> bool:
        try:
            return self._root.is_running() and self._root.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def pids(self) -> list[int]:
        return list(self._members)

    def look(self, now_s: float) -> tuple[float, int, int, int]:
        """CPU seconds, resident bytes, bytes read, bytes written."""
        if now_s >= self._children_s:
            self._find_children()
            self._children_s = now_s + _CHILDREN_EVERY_S
        resident = 0
        for pid, process in self._members.items():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    self._cpu_s[pid] = times.user + times.system
                    resident += process.memory_info().rss
                    disk = process.io_counters()
                    self._disk[pid] = (disk.read_bytes, disk.write_bytes)
            except (psutil.Error, AttributeError):
                continue  # it has ended; or this system does not tell, or not this user
        read, written = (sum(one[place] for one in self._disk.values()) for place in (0, 1))
        return sum(self._cpu_s.values()), resident, read, written

    def _find_children(self) -> None:
        try:
            for child in self._root.children(recursive=True):
                self._members.setdefault(child.pid, child)
        except psutil.Error:
            pass


class Node:
    """One node: where it is, and what was seen of it. Sums go on rising when it is started again."""

    def __init__(self, name: str, role: str, endpoint: str) -> None:
        self.name, self.role, self.endpoint = name, role, endpoint
        self.state = "alive"
        self.samples: list[tuple[float, NodeSample]] = []
        self.died_s: float | None = None
        self.back_s: float | None = None
        self.deaths = 0
        self.first_pid = 0
        self.family: Family | None = None
        self._before = [0.0, 0, 0, 0, 0]
        """Of processes of this node that have ended: CPU s, read, written, sent, received."""
        self._last = [0.0, 0, 0, 0, 0]
        self._remote: tuple[float, float, int] | None = None

    def is_local(self) -> bool:
        return bool(self.first_pid)

    def adopt(self, pid: int) -> bool:
        """This process is the node now; False if it has ended already."""
        self._before = [before + last for before, last in zip(self._before, self._last, strict=True)]
        self._last = [0.0, 0, 0, 0, 0]
        try:
            self.family = Family(pid)
        except psutil.Error:
            self.family = None
            return False
        self.first_pid = self.first_pid or pid
        return True

    def has_died(self, now_s: float) -> None:
        if self.deaths == 0 or self.back_s is not None:
            self.deaths += 1
            self.back_s = None
        self.died_s = now_s if self.died_s is None else self.died_s
        self.family = None

    def is_back(self, now_s: float) -> None:
        if self.deaths and self.back_s is None:
            self.back_s = now_s

    def pids(self) -> list[int]:
        return self.family.pids() if self.family else []

    def look(self, now_s: float, carried: Mapping[int, Carried]) -> None:
        """carried: what the connections of this node's processes did, and maybe of others."""
        if self.family is None:
            return
        cpu_s, resident, read, written = self.family.look(now_s)
        network = sum((carried[pid] for pid in self.pids() if pid in carried), Carried())
        self._last = [cpu_s, read, written, network.sent, network.received]
        self._add(time.monotonic(), resident)  # looking takes its time, too

    def hear(self, now_s: float, server: ServerStatus) -> None:
        """A server elsewhere: its heartbeats' figures."""
        if self._remote is None or server.bytes_sent < self._remote[2]:
            self._before[3] += self._last[3]
            self._remote = (now_s, server.cpu_share, server.bytes_sent)
        self._last[0] += server.cpu_share * (now_s - self._remote[0])
        self._last[3] = server.bytes_sent
        self._remote = (now_s, server.cpu_share, server.bytes_sent)
        self._add(now_s, 0)

    def _add(self, now_s: float, resident: int) -> None:
        cpu_s, read, written, sent, received = (
            before + last for before, last in zip(self._before, self._last, strict=True)
        )
        sample = NodeSample(now_s, cpu_s, resident, int(read), int(written), int(sent), int(received))
        self.samples.append((now_s, sample))

    def use(self, start_s: float, idle_s: float, end_s: float) -> NodeUse:
        """Samples up to `idle_s` are idle ones, those from `start_s` to `end_s` under load."""
        for at_s, sample in self.samples:
            sample.at_s = at_s - start_s
        idle = [sample for at_s, sample in self.samples if at_s <= idle_s]
        loaded = [sample for at_s, sample in self.samples if start_s <= at_s <= end_s]
        died = None if self.died_s is None else self.died_s - start_s
        return NodeUse(self.name, self.role, self.first_pid, idle, loaded, died, self._note(start_s))

    def _note(self, start_s: float) -> str:
        notes = []
        if not self.is_local():
            notes.append(
                "not on this machine: CPU and bytes sent as its heartbeats tell them"
                if self._remote
                else "not on this machine, or another user's: its use is not known"
            )
        if self.deaths and self.back_s is None:
            notes.append("it did not come back while the load lasted")
        elif self.deaths:
            notes.append(f"it was back {(self.back_s or 0.0) - start_s:.1f} s after the start")
        if self.deaths > 1:
            notes.append(f"it died {self.deaths} times in all")
        return "; ".join(notes)


# -- watching -----------------------------------------------------------------------------------


class Watch:
    """Looks at a cluster's nodes: by `idle` before the load, by a thread of its own from `begin` to `end`.

    gateway: the URL of one, if the load goes through it.
    """

    def __init__(self, balancer: str, gateway: str = "") -> None:
        self._balancer = balancer
        self._nodes: dict[str, Node] = {BALANCER: Node(BALANCER, BALANCER, balancer)}
        if gateway:
            self._nodes[GATEWAY] = Node(GATEWAY, GATEWAY, gateway)
        self._network = TcpBytes()
        self._every_s = EVERY_S
        self._idle_s = self._start_s = self._end_s = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def idle(self, for_s: float, wait: Callable[[float], bool]) -> None:
        """Look at the cluster at rest. `wait` sleeps; True if the run is to end meanwhile."""
        with dws.connect(self._balancer, timeout_s=_ASK_WITHIN_S) as client:
            until_s = time.monotonic() + for_s
            self.look(client)
            # Twice at the least, however long a look takes: what is used shows between two.
            while not wait(max(0.0, min(until_s - time.monotonic(), self._every_s))):
                self.look(client)
                if time.monotonic() >= until_s:
                    break
        self._idle_s = time.monotonic()

    def begin(self, start_s: float) -> None:
        """Look at it under load, from this moment of the clock on."""
        self._start_s = start_s
        self._thread = threading.Thread(target=self._run, name="watch")
        self._thread.start()

    def end(self) -> list[NodeUse]:
        """The load is over. Looks once more, if it ever began."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        start_s = self._start_s or self._idle_s
        nodes = sorted(self._nodes.values(), key=lambda node: (_ROLES.index(node.role), node.name))
        return [node.use(start_s, self._idle_s, self._end_s) for node in nodes]

    def _run(self) -> None:
        with dws.connect(self._balancer, timeout_s=_ASK_WITHIN_S) as client:
            if not self._stop.wait(max(0.0, self._start_s - time.monotonic())):
                while True:
                    began_s = time.monotonic()
                    self.look(client)
                    if self._stop.wait(max(0.0, began_s + self._every_s - time.monotonic())):
                        break
                self._look_at_processes(time.monotonic())
            self._end_s = time.monotonic()

    def look(self, client: "dws.Client") -> None:
        """One look at every node: its process first, since the balancer may keep us waiting."""
        self._look_at_processes(time.monotonic())
        try:
            servers = client.status().servers
        except DwsError:
            servers = []
        now_s = time.monotonic()
        for server in servers:
            self._see(server, now_s)
        self._find_processes()
        for server in servers:
            node = self._nodes[server.name]
            if not node.is_local() and server.state not in _GONE:
                node.hear(now_s, server)
        if max(len(node.samples) for node in self._nodes.values()) >= SAMPLES_MAX:
            self._thin_out()

    def _see(self, server: ServerStatus, now_s: float) -> None:
        node = self._nodes.get(server.name)
        if node is None:
            node = self._nodes[server.name] = Node(server.name, WEBSERVER, server.endpoint)
        elif server.state == "dead" != node.state:
            node.has_died(now_s)
        elif server.state == "alive" and not node.is_local():
            node.is_back(now_s)
        node.state, node.endpoint = server.state, server.endpoint

    def _look_at_processes(self, now_s: float) -> None:
        for node in self._nodes.values():
            if node.family is not None and not node.family.is_alive():
                node.has_died(now_s)
        # The kernel tells of all connections at once, or of none.
        carried = self._network.look(pid for node in self._nodes.values() for pid in node.pids())
        for node in self._nodes.values():
            node.look(now_s, carried)

    def _find_processes(self) -> None:
        """The processes of nodes that have none yet, or whose process has ended."""
        missing = [
            node
            for node in self._nodes.values()
            if node.family is None and node.state != "dead" and local_port(node.endpoint)
        ]
        if not missing:
            return
        pids = listeners()
        now_s = time.monotonic()
        for node in missing:
            pid = pids.get(local_port(node.endpoint))
            if pid is not None and node.adopt(pid):
                node.is_back(now_s)
                node.look(now_s, self._network.look(node.pids()))

    def _thin_out(self) -> None:
        for node in self._nodes.values():
            node.samples = _every_second(node.samples, self._idle_s)
        self._every_s *= 2


Sample = tuple[float, NodeSample]


def _every_second(samples: Sequence[Sample], from_s: float) -> list[Sample]:
    """Of those after `from_s`."""
    idle = [one for one in samples if one[0] <= from_s]
    return [*idle, *samples[len(idle) :: 2]]
