"""The cluster of a drill: real processes, which stay down until they are started again.

What lives here: starting, killing, stopping and starting nodes, the proxies between them, and Ctrl-C's way to
end all of it. What must not: when that is done (faults.py). A node is never started again by itself: that
would hide what a fault leads to.

With `proxies` every web server announces an address of its own, 127.77.0.N, at which a proxy listens for each
of its sockets, and reaches the balancer through proxies of its own, too: so one server can be cut off, from
all others or one way.
"""

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from dws.config import Config
from dws.errors import DwsError, TimedOut
from dws.nodes.cluster_options import BALANCER_PORTS, config_flags
from dws.nodes.processes import Backoff, NodeProcess
from loadgen.drill.disks import SmallDisk
from loadgen.drill.proxy import BACK, FORWARD, TcpProxy

BALANCER: Final = "balancer"
_POLL_S: Final = 0.01
_UP_WITHIN_S: Final = 60.0
_STOP_WITHIN_S: Final = 10.0


class NotPossible(DwsError):
    """The drill cannot be made here; the text says why."""

    code = "not-possible"


class DrillCluster:
    """A balancer and web servers called web-1, web-2, … on free ports, in `directory`."""

    def __init__(
        self,
        directory: Path,
        webservers: int,
        config: Config,
        *,
        proxies: bool = False,
        log_level: str = "info",
    ) -> None:
        self.directory = directory
        self.config = config
        self.endpoint = ""
        self.nodes: dict[str, NodeProcess] = {}
        self.webservers = [f"web-{number}" for number in range(1, webservers + 1)]
        self.disks: dict[str, SmallDisk] = {}
        self._has_proxies = proxies
        self._log_level = log_level
        self._to_balancer: dict[str, list[TcpProxy]] = {}
        self._to_server: dict[str, list[TcpProxy]] = {}

    # -- start and end ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def small_disk(self, name: str, size_bytes: int) -> None:
        """Give a node, not started yet, a small disk of its own. Raises NotPossible."""
        try:
            self.disks[name] = SmallDisk(self.directory / name, size_bytes)
        except OSError as error:
            raise NotPossible(error.strerror or str(error)) from error

    def _start_all(self) -> None:
        self._add(BALANCER, ["balancer", "--port", "0"])
        self.start(BALANCER)
        balancer = self.nodes[BALANCER]
        self.endpoint = balancer.endpoint
        port = int(self.endpoint.rpartition(":")[2])
        # Where it is started again it must be found again.
        balancer.arguments[balancer.arguments.index("--port") + 1] = str(port)
        for number, name in enumerate(self.webservers, 1):
            arguments = ["webserver", "--name", name, "--port", "0"]
            if self._has_proxies:
                arguments += ["--balancer", self._through_proxies(name, number, port)]
                arguments += ["--bind", "127.0.0.1", "--advertise", _address(number)]
            else:
                arguments += ["--balancer", self.endpoint]
            self._add(name, arguments)
        self.start(*self.webservers)

    def _add(self, name: str, arguments: list[str]) -> None:
        data, log = self.directory / name, self.directory / "logs" / f"{name}.log"
        common = ["--data", str(data), "--log-level", self._log_level, *config_flags(self.config)]
        self.nodes[name] = NodeProcess(name, arguments[0], [*arguments, *common], data, log, Backoff())

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for node in self.nodes.values():
            node.terminate()
        for node in self.nodes.values():
            node.wait(time.monotonic() + _STOP_WITHIN_S)
        for proxy in [each for proxies in self._all_proxies() for each in proxies]:
            proxy.close()
        for disk in self.disks.values():
            disk.close()
        self.disks.clear()

    # -- processes -------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start nodes, and return when they listen. Raises DwsError with the node's last words."""
        for name in names:
            self.nodes[name].start()
        give_up = time.monotonic() + _UP_WITHIN_S
        for name in names:
            node = self.nodes[name]
            while not node.announced():
                if node.exit_code() is not None or time.monotonic() > give_up:
                    lines = "\n  ".join(node.tail())
                    raise DwsError(f"{name} did not start; the last lines of {node.log}:\n  {lines}")
                time.sleep(_POLL_S)
            if self._has_proxies and name != BALANCER:
                self._put_proxies_before(name)

    def kill(self, *names: str) -> None:
        """SIGKILL, at once; returns when they are gone."""
        for name in names:
            self.nodes[name].signal(signal.SIGKILL)
        for name in names:
            node = self.nodes[name]
            node.reap()
            if node.exit_code() != -signal.SIGKILL:
                raise DwsError(f"{name} ended with {node.exit_code()} before it could be killed")
            node.wait(time.monotonic())

    def pause(self, name: str) -> None:
        """SIGSTOP; returns when every thread of it stands still."""
        self.nodes[name].signal(signal.SIGSTOP)
        self._await_status(name, lambda status: status == psutil.STATUS_STOPPED)

    def resume(self, name: str) -> None:
        self.nodes[name].signal(signal.SIGCONT)
        self._await_status(name, lambda status: status != psutil.STATUS_STOPPED)

    def _await_status(self, name: str, condition: Callable[[str], bool]) -> None:
        process = psutil.Process(self.nodes[name].pid)
        give_up = time.monotonic() + _STOP_WITHIN_S
        while not condition(process.status()):
            if time.monotonic() > give_up:
                raise TimedOut(f"{name} is {process.status()} in spite of the signal")
            time.sleep(_POLL_S)

    def data(self, name: str) -> Path:
        return self.nodes[name].data

    def set_argument(self, name: str, *arguments: str) -> None:
        """Add to what a node is started with from now on."""
        self.nodes[name].arguments += arguments

    def drop_arguments(self, name: str, *arguments: str) -> None:
        node = self.nodes[name]
        node.arguments = [each for each in node.arguments if each not in arguments]

    def ended(self) -> str:
        """Nodes that ended by themselves, how, and their last words; empty if there is none."""
        codes = {name: node.exit_code() for name, node in self.nodes.items()}
        return "\n".join(
            "\n  ".join([f"{name} ended by itself with {code}", *self.nodes[name].tail()[-3:]])
            for name, code in codes.items()
            if code is not None
        )

    # -- the network ----------------------------------------------------------------------------------

    def proxies_to(self, name: str) -> Sequence[TcpProxy]:
        """Before a server's sockets: clients, other servers and the balancer come through them."""
        return self._to_server[name]

    def proxies_from(self, name: str) -> Sequence[TcpProxy]:
        """Before the balancer's ports, for this server alone: its hellos, reports and beats."""
        return self._to_balancer[name]

    def _all_proxies(self) -> list[list[TcpProxy]]:
        return [*self._to_balancer.values(), *self._to_server.values()]

    def _through_proxies(self, name: str, number: int, port: int) -> str:
        address = _address(number)
        try:
            self._to_balancer[name] = [
                TcpProxy(("127.0.0.1", each), address, each) for each in range(port, port + BALANCER_PORTS)
            ]
        except OSError as error:
            raise NotPossible(f"a proxy cannot listen at {address}: {error}") from error
        return f"tcp://{address}:{port}"

    def _put_proxies_before(self, name: str) -> None:
        """A server listens at 127.0.0.1 and announces another address: there, at the same ports."""
        for old in self._to_server.get(name, []):
            old.close()
        node, address = self.nodes[name], _address(self.webservers.index(name) + 1)
        found = psutil.Process(node.pid).net_connections("tcp")
        ports = sorted(each.laddr.port for each in found if each.status == psutil.CONN_LISTEN)
        self._to_server[name] = [TcpProxy(("127.0.0.1", port), address, port) for port in ports]

    def cut(self, name: str, *, towards: bool, away: bool) -> None:
        """Cut a server off: nothing reaches it (towards), nothing comes from it (away)."""
        for proxies, forward_is_towards in ((self._to_server[name], True), (self._to_balancer[name], False)):
            for proxy in proxies:
                if towards:
                    proxy.cut(FORWARD if forward_is_towards else BACK)
                if away:
                    proxy.cut(BACK if forward_is_towards else FORWARD)

    def heal(self, name: str) -> None:
        for proxy in (*self._to_server[name], *self._to_balancer[name]):
            proxy.heal()

    def passed_bytes(self, name: str) -> int:
        return sum(proxy.passed_bytes() for proxy in (*self._to_server[name], *self._to_balancer[name]))


def _address(number: int) -> str:
    """Of the whole 127.0.0.0/8 every address is this machine."""
    return f"127.77.{number // 250}.{number % 250 + 1}"


def settings_text(config: Config) -> list[Any]:
    """What differs from the defaults, as KEY=VALUE."""
    return config_flags(config)[1::2]
