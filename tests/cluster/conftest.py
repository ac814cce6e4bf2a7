"""Real processes for the tests in this directory: one cluster a test, to be killed, paused and restarted.

`cluster` makes a `ClusterUnderTest` of a balancer and some web servers, each a `dws serve` of its own on
free ports, and ends it with the test. Waiting is always for a condition, with a bound. `Wire` speaks the
protocol without the client's machinery.
"""

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb
import pytest
import zmq

import dws
from dws import messages
from dws.limits import CHUNK_BYTES, FRAME_MAX_BYTES
from dws.messages import Read, ReadData, ServerStatus
from dws.nodes.page_tables import decode_identity
from dws.nodes.processes import Backoff, NodeProcess
from dws.nodes.supervisor import BALANCER, WEBSERVER
from dws.store import Identity
from patterns.request_reply import Requester
from patterns.zeromq.calls import Calls
from tests.waiting import until

WITHIN_S = 30.0
MAP_BYTES = 1 << 36

#: A second or two instead of many: tests kill, and wait for what follows.
QUICK = {"down_dead_s": 1.0, "dead_s": 4.0, "probe_s": 0.5, "behind_s": 0.5, "job_reissue_s": 2.0}


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident since its exec; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return 0
    # Of the kernel, which misses no peak as sampling would.
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


class Wire:
    """Requests to any node, one at a time, each answered by one reply or failed after a while."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        requester: Requester[None] = Requester(random.getrandbits(63), learn_realm=True)
        self._calls = Calls(self._context, requester, self._changed, frame_max_bytes=FRAME_MAX_BYTES)

    def ask(self, endpoint: str, message: Any, data: bytes | None = None, within_s: float = 10.0) -> Any:
        """The reply's message."""
        return self.ask_data(endpoint, message, data, within_s)[0]

    def ask_data(
        self, endpoint: str, message: Any, data: bytes | None = None, within_s: float = 10.0
    ) -> tuple[Any, bytes]:
        """The reply's message and data frame. TimeoutError if none comes."""
        give_up = time.monotonic() + within_s
        self._calls.call(endpoint, messages.encode(message), None, give_up, data)
        while (left_s := give_up - time.monotonic()) > 0:
            for ready, _ in self._poller.poll(int(left_s * 1000) + 1):
                received = self._calls.receive(ready)
                if received is not None:
                    _, body, frame = received
                    return messages.decode_reply(body), frame.bytes if frame is not None else b""
        self._calls.requester.expire(time.monotonic())
        raise TimeoutError(f"{endpoint} did not answer {type(message).__name__} in {within_s:g} s")

    def page(self, endpoint: str, record: messages.Record) -> bytes | None:
        """A whole page as this one server has it; None if it says that it does not."""
        parts, have = [], 0
        while have < record.size or not parts:
            reply, data = self.ask_data(endpoint, Read(record.name, record.version, have, CHUNK_BYTES))
            if not isinstance(reply, ReadData):
                return None
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def _changed(self, changed: "zmq.Socket[bytes]", added: bool) -> None:
        if added:
            self._poller.register(changed, zmq.POLLIN)
        else:
            self._poller.unregister(changed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.close()
        self._context.term()


class ClusterUnderTest:
    """A balancer and web servers called web-1, web-2, …, on free ports. Settings are fields of Config."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self.directory = directory
        self.nodes: dict[str, NodeProcess] = {}
        self.endpoint = ""
        self._settings = settings

    def begin(self, webservers: int) -> None:
        """Start everything, and return when the web servers are alive."""
        self.add(BALANCER, port=0)
        self.start(BALANCER)
        balancer = self.nodes[BALANCER]
        self.endpoint = balancer.endpoint
        # Where it is started again it must be found again.
        balancer.arguments[balancer.arguments.index("--port") + 1] = str(self.port)
        names = [f"web-{number}" for number in range(1, webservers + 1)]
        for name in names:
            self.add(name)
        self.start(*names)
        self.wait_alive()

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @property
    def webservers(self) -> list[str]:
        return [node.name for node in self.nodes.values() if node.role == WEBSERVER]

    def add(
        self, name: str, *, data: str = "", port: int | None = None, settings: dict[str, Any] | None = None
    ) -> None:
        """Another node, not started yet. A name that begins with `balancer` makes a balancer."""
        role = BALANCER if name.startswith(BALANCER) else WEBSERVER
        arguments = [role]
        if role == BALANCER:
            port = self.port if port is None else port
        else:
            arguments += ["--name", name, "--balancer", self.endpoint]
        path = self.directory / (data or name)
        arguments += ["--data", str(path), "--port", str(port or 0)]
        for field, value in {**self._settings, **(settings or {})}.items():
            arguments += ["--set", f"{field}={value}"]
        log = self.directory / f"{name}.log"
        self.nodes[name] = NodeProcess(name, role, arguments, path, log, Backoff())

    # -- processes ---------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start nodes, and return when they listen."""
        for name in names:
            self.nodes[name].start()
        for name in names:
            node = self.nodes[name]
            until(lambda node=node: node.announced() or node.exit_code() is not None, f"{name} up")
            assert node.exit_code() is None, f"{name} did not start:\n{self.log(name)}"

    def start_refused(self, name: str) -> str:
        """Start a node that is expected to end by itself, with an error; what it said."""
        self.nodes[name].start()
        code = until(self.nodes[name].exit_code, f"{name} ended")
        assert code > 0, f"{name} ended with {code}"
        return self.log(name)

    def kill(self, *names: str) -> None:
        """SIGKILL, and wait until they are gone."""
        for name in names:
            self.nodes[name].signal(signal.SIGKILL)
        for name in names:
            self.nodes[name].wait(time.monotonic() + WITHIN_S)

    def stop(self, *names: str) -> None:
        """SIGTERM, and wait for a clean end."""
        for name in names:
            self.nodes[name].terminate()
        for name in names:
            assert self.nodes[name].wait(time.monotonic() + WITHIN_S), f"{name} did not stop"

    def pause(self, *names: str) -> None:
        for name in names:
            self.nodes[name].signal(signal.SIGSTOP)

    def resume(self, *names: str) -> None:
        for name in names:
            self.nodes[name].signal(signal.SIGCONT)

    def is_running(self, name: str) -> bool:
        return self.nodes[name].is_running()

    def close(self) -> None:
        for node in self.nodes.values():
            node.signal(signal.SIGKILL)
        for node in self.nodes.values():
            node.wait(time.monotonic() + WITHIN_S)

    # -- what it says --------------------------------------------------------------------

    def data(self, name: str) -> Path:
        return self.nodes[name].data

    def log(self, name: str) -> str:
        path = self.nodes[name].log
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def wait_logged(self, name: str, text: str) -> None:
        until(lambda: text in self.log(name), f"{text!r} in the log of {name}")

    def client(self, **options: Any) -> dws.Client:
        return dws.connect(self.endpoint, **options)

    def status(self) -> messages.ClusterStatus:
        with self.client(timeout_s=WITHIN_S) as client:
            return client.status()

    def servers(self) -> dict[str, ServerStatus]:
        return {server.name: server for server in self.status().servers}

    def wait_state(self, name: str, state: str) -> None:
        self._until_servers(lambda known: name in known and known[name].state == state, f"{name} is {state}")

    def wait_alive(self, *names: str) -> None:
        """Until these web servers (all that run, if none is named) are in sync and may take uploads."""
        wanted = names or [name for name in self.webservers if self.is_running(name)]

        def ready(known: dict[str, ServerStatus]) -> bool:
            # Its room is known from its first heartbeat on.
            return all(
                name in known and known[name].state == "alive" and known[name].bytes_free for name in wanted
            )

        self._until_servers(ready, f"{', '.join(wanted)} alive")

    def _until_servers(self, condition: Callable[[dict[str, ServerStatus]], bool], what: str) -> None:
        with self.client(timeout_s=WITHIN_S) as client:
            until(lambda: condition({server.name: server for server in client.status().servers}), what)

    def holders(self, name: str) -> list[str]:
        with self.client() as client:
            stat = client.stat([name])[0]
            return [holder.name for holder in stat.holders] if stat else []

    def copies(self, name: str) -> dict[str, bytes | None]:
        """Live server → the visible version's bytes as it delivers them itself; {}: no such page."""
        with self.client() as client, Wire() as wire:
            stat = client.stat([name])[0]
            if stat is None:
                return {}
            endpoints = {server.name: server.endpoint for server in client.status().servers}
            live = [holder.name for holder in stat.holders if holder.state == "alive"]
            return {name: wire.page(endpoints[name], stat.record) for name in live}

    def check_stored(self, name: str, body: bytes, copies: int = 2) -> None:
        """The page reads back, and so many servers at least have it, each byte for byte."""
        with self.client() as client:
            assert client.get(name) == body
        held = self.copies(name)
        assert len(held) >= copies, f"{name} is on {sorted(held)} only"
        assert all(each == body for each in held.values()), f"{name} differs on {sorted(held)}"

    def peaks(self) -> dict[str, int]:
        """Node that runs → the most memory that it has had resident so far, in bytes."""
        running = [node for node in self.nodes.values() if node.is_running()]
        return {node.name: peak_bytes(node.pid or 0) for node in running}

    # -- disks -----------------------------------------------------------------------------

    def hold_disk(self, name: str) -> "HeldDisk":
        """While it is entered, the node's writer thread waits where its next transaction begins."""
        file = "catalog.mdb" if self.nodes[name].role == BALANCER else "store.mdb"
        return HeldDisk(self.data(name) / file)

    def identity(self, name: str) -> Identity:
        """Who a web server is, and what it was told, as it lies on its disk."""
        path = str(self.data(name) / "store.mdb")
        with lmdb.open(path, subdir=False, map_size=MAP_BYTES, max_dbs=8, readonly=True) as environment:
            meta = environment.open_db(b"meta", create=False)
            with environment.begin(db=meta) as transaction:
                raw = transaction.get(b"identity")
        assert raw is not None
        return decode_identity(raw)

    def copy_data(self, name: str, to: str) -> None:
        """A copy of a node's directory as it is on disk; of a node that is stopped, paused or idle."""
        left_out = shutil.ignore_patterns("*-lock", "LOCK", "node.json")
        shutil.copytree(self.data(name), self.directory / to, ignore=left_out)


class HeldDisk:
    """Another process's write transaction on a store's LMDB file: its own writer has to wait for the end
    of this one, as if it were in a slow fsync. Nothing is written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._environment = lmdb.open(
            str(self._path), subdir=False, map_size=MAP_BYTES, max_dbs=8, create=False, readahead=False
        )
        self._transaction = self._environment.begin(write=True)
        return self

    def release(self) -> None:
        self._transaction.abort()
        self._environment.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., ClusterUnderTest]]:
    """`cluster(webservers=3, garbage_s=1)`: starts one, and returns when its servers are alive."""
    made: list[ClusterUnderTest] = []

    def make(webservers: int = 2, **settings: Any) -> ClusterUnderTest:
        directory = tmp_path / f"cluster-{len(made)}"
        directory.mkdir()
        running = ClusterUnderTest(directory, QUICK | settings)
        made.append(running)
        running.begin(webservers)
        return running

    yield make
    for running in made:
        running.close()
