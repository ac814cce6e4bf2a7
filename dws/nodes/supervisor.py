"""A whole cluster on one machine: one balancer, some web servers, if wanted a gateway, each a process.

What lives here: which nodes there are and where their data lie, starting them
and waiting until all are in sync, starting again what dies, stopping in order,
and cluster.json. What must not: how one process is run (processes.py), which
clusters can be (cluster_options.py), flags (run_cluster.py), and anything of the
protocol but a client's status.

    with Supervisor(ClusterOptions(data=Path("dws-data"), port=0)) as cluster:
        with dws.connect(cluster.endpoint) as client: ...
        cluster.kill("web-2")

The data directory holds balancer/, gateway/, web-1/ …, logs/, cluster.json while it runs,
and a lock that keeps a second supervisor out. A thread watches the nodes from
start to stop. One that dies is started again after 3 s, doubling up to 60 s.

Stopping: the gateway and then the balancer first, then the web servers at once. After
the balancer has gone nothing new is acknowledged, and what was acknowledged is on disks.
"""

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Self

import msgspec
from msgspec import Struct

from dws.errors import ConfigError, DwsError, Refused, TimedOut, Unreachable
from dws.membership import ALIVE, DRAINING
from dws.messages import ServerStatus
from dws.nodes.cluster_options import (
    ClusterOptions,
    address,
    check,
    check_http_port,
    check_ports,
    config_flags,
    number_of,
    webservers_in,
)
from dws.nodes.processes import Backoff, NodeProcess

if TYPE_CHECKING:
    from dws.nodes.client import Client, Progress

BALANCER: Final = "balancer"
GATEWAY: Final = "gateway"
WEBSERVER: Final = "webserver"

#: States of a web server that is in sync and serves.
_UP: Final = (ALIVE, DRAINING)

_POLL_S: Final = 0.05
_STILL_WAITING_S: Final = 5.0
_STOP_WITHIN_S: Final = 10.0
_SITES_FILE: Final = "sites.json"
_REBUILD: Final = "--rebuild"


class NodeInfo(Struct, frozen=True):
    """A node as cluster.json names it; pid 0 and no endpoint while it is down."""

    name: str
    role: str
    pid: int
    endpoint: str


class Interrupted(DwsError):
    """The cluster was told to stop before it was up."""


class Supervisor:
    """Runs one cluster. `say` gets a line for people about each event, from any thread."""

    def __init__(self, options: ClusterOptions, say: Callable[[str], None] | None = None) -> None:
        self.options = options
        self.endpoint = ""
        self.url = ""
        """The gateway's, without a path; empty if there is none."""
        self._say = say or (lambda line: None)
        self._lock_file: IO[str] | None = None
        self._nodes: list[NodeProcess] = []
        # Guards the nodes' processes: the watching thread starts and reaps, callers kill and stop.
        self._guard = threading.RLock()
        self._watcher: threading.Thread | None = None
        self._stop_watching = threading.Event()
        # A plain flag: a signal handler sets it, and must take no lock.
        self.stop_requested = False

    # -- start ----------------------------------------------------------------------------

    def start(self) -> Self:
        """Start all nodes and return when every web server is in sync; raises, with nothing left running."""
        check(self.options)
        if not self.options.data.exists():
            # Once more below, but here a start that is refused leaves no directory behind.
            self._check_ports()
        try:
            self._lock()
            self._refuse_fewer()
            if self.options.record is not None:
                self.options.record.mkdir(parents=True, exist_ok=True)
            self._start_balancer()
            if self.options.http_port is not None:
                self._start_gateway(self.options.http_port)
            self._start_webservers()
            self.wait_until_alive(self.options.start_timeout_s, starting=True)
            balancer = self._nodes[0]
            balancer.arguments = [each for each in balancer.arguments if each != _REBUILD]
            self._watcher = threading.Thread(target=self._watch, name="supervisor")
            self._watcher.start()
            if self.options.site is not None:
                self._upload_site(self.options.site)
        except BaseException:
            self.stop()
            raise
        return self

    def _check_ports(self) -> None:
        options = self.options
        if options.port:
            check_ports(options.host, options.port)
        if options.http_port:
            check_http_port(options.host, options.http_port)

    def _lock(self) -> None:
        self.options.data.mkdir(parents=True, exist_ok=True)
        file = (self.options.data / "supervisor.lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Refused(
                f"a cluster runs on {self.options.data} already; stop it first, or choose another directory"
            ) from None
        self._lock_file = file

    def _refuse_fewer(self) -> None:
        """A page may have both its copies on servers that would not be started."""
        before = webservers_in(self.options.data)
        left_out = [name for name in before if number_of(name) > self.options.webservers]
        if left_out:
            most = max(map(number_of, before))
            raise Refused(
                f"{self.options.data} has the pages of {most} web servers and {self.options.webservers} would"
                f" be started: pages may have all their copies on {', '.join(left_out)}. Start"
                f" {most} web servers, or choose another directory"
            )

    def _start_balancer(self) -> None:
        options = self.options
        self._check_ports()
        arguments = [BALANCER, "--bind", address(options.host), "--port", str(options.port)]
        arguments += [_REBUILD] if options.rebuild else []
        node = self._node(BALANCER, BALANCER, arguments)
        node.start()
        self._await_announced(node)
        port = node.endpoint.rpartition(":")[2]
        # A balancer that is started again must be where clients and servers look for it.
        node.arguments[node.arguments.index("--port") + 1] = port
        self.endpoint = f"tcp://{options.advertise or options.host}:{port}"

    def _start_gateway(self, port: int) -> None:
        """Before the web servers, whose endpoints send there what they do not hold."""
        arguments = [
            *(GATEWAY, "--name", GATEWAY, "--balancer", self.endpoint, "--port", str(port)),
            *("--bind", address(self.options.host)),
            *("--advertise", self.options.advertise or self.options.host),
        ]
        node = self._node(GATEWAY, GATEWAY, arguments)
        node.start()
        self._await_announced(node)
        self.url = node.endpoint
        # Links to a gateway that is started again must still lead to it.
        node.arguments[node.arguments.index("--port") + 1] = self.url.rpartition(":")[2]

    def _start_webservers(self) -> None:
        http = ["--http-port", "0", "--gateway", self.url] if self.url else []
        for number in range(1, self.options.webservers + 1):
            name = f"web-{number}"
            arguments = [
                *(WEBSERVER, "--name", name, "--balancer", self.endpoint, "--port", "0"),
                *("--bind", address(self.options.host)),
                *("--advertise", self.options.advertise or self.options.host),
                *http,
            ]
            self._node(name, WEBSERVER, arguments).start()
        for node in self._nodes:
            self._await_announced(node)
        self._write_cluster_file()

    def _node(self, name: str, role: str, arguments: Sequence[str]) -> NodeProcess:
        options = self.options
        data = options.data / name
        log = options.data / "logs" / f"{name}.log"
        common = ["--data", str(data), "--log-level", options.log_level, *config_flags(options.config)]
        if options.record is not None and role != GATEWAY:
            common += ["--record", str(options.record)]
        backoff = Backoff(options.restart_first_s, options.restart_most_s)
        node = NodeProcess(name, role, [*arguments, *common], data, log, backoff)
        node.rotate_log()
        self._nodes.append(node)
        return node

    def _await_announced(self, node: NodeProcess) -> None:
        deadline = time.monotonic() + self.options.start_timeout_s
        while not node.announced():
            self._check_starting()
            if time.monotonic() > deadline:
                raise TimedOut(_failure(node, f"did not start in {self.options.start_timeout_s:g} s"))
            time.sleep(_POLL_S)

    def _check_starting(self) -> None:
        """While the cluster starts, a node that ends is a failure, and so is being told to stop."""
        if self.stop_requested:
            raise Interrupted("stopped before the cluster was up")
        for node in self._nodes:
            code = node.exit_code()
            if code is not None:
                raise DwsError(_failure(node, f"did not start: {_how(code)}"))

    def wait_until_alive(self, timeout_s: float, *, starting: bool = False) -> None:
        """Until the balancer has every web server in sync. Raises TimedOut, naming those that are not."""
        from dws.nodes.client import connect

        began = told_at = time.monotonic()
        with connect(self.endpoint, timeout_s=min(2.0, timeout_s)) as client:
            while True:
                if starting:
                    self._check_starting()
                missing = self._not_alive(client)
                if not missing:
                    return
                now = time.monotonic()
                if now - began > timeout_s:
                    raise TimedOut(f"not in sync after {timeout_s:g} s: {missing}{self._troubles()}")
                if now - told_at > _STILL_WAITING_S:
                    told_at = now
                    self._say(f"waiting for {missing}{self._troubles()}")
                time.sleep(_POLL_S)

    def _troubles(self) -> str:
        """The last error that a node logged, the balancer's if it has one: most often why all wait."""
        with self._guard:
            found = [(node.log, node.last_error()) for node in self._nodes]
        return next((f"\n  {log}: {line}" for log, line in found if line), "")

    def _not_alive(self, client: "Client") -> str:
        """Each node that is not up and in sync, and what it is instead; empty if there is none."""
        with self._guard:
            down = [node.name for node in self._nodes if not (node.is_running() and node.announced())]
            wanted = {node.name: node.endpoint for node in self._nodes if node.role == WEBSERVER}
        if down:
            return ", ".join(f"{name} (down)" for name in down)
        try:
            # By endpoint: the state of a process that has died since does not count.
            servers = client.status().servers
            states = {(server.name, server.endpoint): self._state(server) for server in servers}
        except (Unreachable, TimedOut):
            return "balancer (no answer)"
        found = {name: states.get((name, endpoint), "not heard of") for name, endpoint in wanted.items()}
        return ", ".join(f"{name} ({state})" for name, state in found.items() if state not in _UP)

    def _state(self, server: ServerStatus) -> str:
        if server.state in _UP and self.url and not server.http_endpoint:
            return "no HTTP endpoint yet"
        return server.state

    # -- the first site ---------------------------------------------------------------------

    def _upload_site(self, site: Path) -> None:
        """Upload the directory, unless that was done before: later changes are the cluster's own."""
        from dws.nodes.client import connect

        done_file = self.options.data / _SITES_FILE
        done = json.loads(done_file.read_text("utf-8")) if done_file.exists() else []
        if str(site.resolve()) in done:
            self._say(f"{site} was uploaded at an earlier start; `dws put {site}` uploads what has changed")
            return
        with connect(self.endpoint) as client:
            result = client.upload(site, on_progress=self._stop_upload)
        _write_whole(done_file, json.dumps([*done, str(site.resolve())]))
        self._say(
            f"uploaded {site}: {result.pages:,} pages, {result.bytes:,} bytes, copies {result.copies}, "
            f"{result.skipped:,} unchanged"
        )

    def _stop_upload(self, _: "Progress") -> None:
        if self.stop_requested:
            raise Interrupted("stopped before the site was uploaded")

    # -- while it runs ------------------------------------------------------------------------

    @property
    def nodes(self) -> list[NodeInfo]:
        with self._guard:
            return [NodeInfo(node.name, node.role, node.pid or 0, self._place(node)) for node in self._nodes]

    def node(self, name: str) -> NodeInfo:
        for node in self.nodes:
            if node.name == name:
                return node
        raise ConfigError(f"no node is called {name}: there are {', '.join(n.name for n in self.nodes)}")

    def log(self, name: str) -> Path:
        self.node(name)
        return self.options.data / "logs" / f"{name}.log"

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a node a signal; its pid. After SIGKILL it is dead, until the watch starts it again."""
        self.node(name)
        with self._guard:
            node = next(node for node in self._nodes if node.name == name)
            pid = node.pid
            if pid is None or not node.is_running():
                raise DwsError(f"{name} is not running")
            node.signal(number)
            if number == signal.SIGKILL:
                node.reap()
            return pid

    def _place(self, node: NodeProcess) -> str:
        return self.endpoint if node.role == BALANCER and node.endpoint else node.endpoint

    def _watch(self) -> None:
        """The thread: reaps nodes that died, starts them again, keeps cluster.json and logs right."""
        down: set[str] = set()
        while not self._stop_watching.wait(_POLL_S):
            with self._guard:
                changed = False
                for node in self._nodes:
                    if node.exit_code() is not None:
                        self._node_ended(node)
                        down.add(node.name)
                        changed = True
                    elif self._is_due(node):
                        node.start()
                        changed = True
                    elif node.name in down and node.announced():
                        down.discard(node.name)
                        self._say(f"{node.name} is back, pid {node.pid}, {self._place(node)}")
                        changed = True
                    node.cut_log()
                if changed:
                    self._write_cluster_file()

    def _is_due(self, node: NodeProcess) -> bool:
        return self.options.restart and node.restart_at is not None and time.monotonic() >= node.restart_at

    def _node_ended(self, node: NodeProcess) -> None:
        pid, code, was_up = node.pid, node.exit_code(), bool(node.endpoint)
        delay = node.ended()
        again = f"starting it again in {delay:g} s" if self.options.restart else "it stays down"
        self._say(f"{node.name} (pid {pid}) {_how(code)}; {again}")
        if not was_up or (code or 0) > 0:
            self._say("\n".join(f"  {line}" for line in node.tail()) or f"  {node.log} is empty")

    # -- stop -------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Make start() and wait() end soon; safe in a signal handler. stop() is still to be called."""
        self.stop_requested = True

    def wait(self) -> None:
        """Until request_stop."""
        while not self.stop_requested:
            time.sleep(_POLL_S)

    def stop(self) -> bool:
        """Stop all nodes, in order; whether all stopped by themselves. Again: nothing."""
        self._stop_watching.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        unwilling: list[str] = []
        with self._guard:
            for role in (GATEWAY, BALANCER, WEBSERVER):
                nodes = [node for node in self._nodes if node.role == role]
                for node in nodes:
                    node.terminate()
                until = time.monotonic() + _STOP_WITHIN_S
                unwilling += [node.name for node in nodes if not node.wait(until)]
            self._nodes = []
        if self._lock_file is not None:
            (self.options.data / "cluster.json").unlink(missing_ok=True)
            self._lock_file.close()
            self._lock_file = None
        if unwilling:
            self._say(f"killed, since they did not stop in {_STOP_WITHIN_S:g} s: {', '.join(unwilling)}")
        return not unwilling

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _write_cluster_file(self) -> None:
        _write_whole(
            self.options.data / "cluster.json",
            json.dumps(
                {
                    "schema": 1,
                    "balancers": [self.endpoint],
                    "gateways": [self.url] if self.url else [],
                    "nodes": [msgspec.structs.asdict(node) for node in self.nodes],
                },
                indent=2,
            ),
        )


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _failure(node: NodeProcess, what: str) -> str:
    lines = "\n  ".join(node.tail() or ["(nothing)"])
    return f"{node.name} {what}. The last lines of {node.log}:\n  {lines}"


def _write_whole(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text + "\n", "utf-8")
    os.replace(partial, path)
