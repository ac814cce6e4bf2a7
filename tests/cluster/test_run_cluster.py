"""A cluster of real processes: run_cluster.py from its flags to its last process, and its Supervisor.

Nothing here waits for a time: a test waits for a line, a file, an exit or a state, with a bound.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

import dws
from dws.cli.settings import Settings
from dws.config import Config, impatient
from dws.errors import ConfigError, DwsError, Refused, TimedOut
from dws.nodes.cluster_options import ClusterOptions, check, config_flags, webservers_in
from dws.nodes.processes import LOG_MAX_BYTES, Backoff, NodeProcess
from dws.nodes.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 30.0


def eventually(what: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """The first true value of `what`."""
    deadline = time.monotonic() + within_s
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.02)
    return value


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Run:
    """run_cluster.py as a process, with its output in a file. No HTTP unless the flags say --http-port."""

    def __init__(self, data: Path, *flags: str, wait: bool = True) -> None:
        self.data = data
        if "--http-port" not in flags:
            flags = ("--no-http", *flags)
        self._out = data.parent / f"{data.name}.out"
        with self._out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "run_cluster.py", "--data", str(data), "--port", "0", *flags],
                cwd=ROOT, stdout=out, stderr=out, env=os.environ | {"DWS_CONFIG": ""}, start_new_session=True,
            )  # fmt: skip
        if wait:
            eventually(lambda: "up: try" in self.output or self.process.poll() is not None)
            assert self.process.poll() is None, self.output

    @property
    def output(self) -> str:
        return self._out.read_text("utf-8")

    @property
    def description(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads((self.data / "cluster.json").read_text("utf-8"))
        return described

    @property
    def endpoint(self) -> str:
        endpoint: str = self.description["balancers"][0]
        return endpoint

    @property
    def pids(self) -> list[int]:
        return [node["pid"] for node in self.description["nodes"]]

    def wait(self) -> int:
        return self.process.wait(WITHIN_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()


def command(
    balancer: str, *arguments: str, code: int = 0, stdin: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    """`dws` as a process."""
    done = subprocess.run(
        [sys.executable, "-m", "dws", *arguments],
        cwd=ROOT, env=os.environ | {"DWS_BALANCER": balancer, "DWS_CONFIG": ""}, input=stdin,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr.decode()
    return done


def site(root: Path) -> dict[str, bytes]:
    """A tree with what trees have: depth, an empty file, one of several chunks, names that need care."""
    files = {
        "index.html": b"<h1>hello</h1>",
        "deep/er/still/page": b"\x00\xff" * 1000,
        "empty": b"",
        ".hidden": b"h",
        "sp ace & ünï?%41#.txt": b"name",
        "large.bin": os.urandom(3 * (1 << 20) + 17),
    }
    files |= {f"many/{number}": str(number).encode() * number for number in range(300)}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return files


def read_tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


# run_cluster.py


@pytest.mark.slow
def test_from_a_directory_to_the_same_directory_across_a_restart(tmp_path: Path) -> None:
    """Up, every command, down without a trace but the data, up again, the same pages."""
    files = site(tmp_path / "site")
    with Run(tmp_path / "data", "--webservers", "3") as cluster:
        described = cluster.description
        assert described["schema"] == 1
        assert [(node["name"], node["role"]) for node in described["nodes"]] == [
            ("balancer", "balancer"), ("web-1", "webserver"), ("web-2", "webserver"), ("web-3", "webserver"),
        ]  # fmt: skip
        assert all(node["endpoint"] in cluster.output for node in described["nodes"])
        try_commands(cluster.endpoint, tmp_path, files)
        pids = cluster.pids
        assert cluster.stop(signal.SIGTERM) == 0
        assert all(map(is_gone, pids))
    assert not (tmp_path / "data/cluster.json").exists()
    assert not list((tmp_path / "data").rglob("node.json"))

    with Run(tmp_path / "data", "--webservers", "4") as again:
        command(again.endpoint, "get", "-r", "/", "-o", str(tmp_path / "again"))
        assert read_tree(tmp_path / "again") == files | {"now.txt": b"from a pipe"}
        assert again.stop(signal.SIGINT) == 0
    assert (tmp_path / "data/logs/web-1.log.1").exists()


def try_commands(balancer: str, tmp_path: Path, files: dict[str, bytes]) -> None:
    stored = json.loads(command(balancer, "put", str(tmp_path / "site"), "--to", "/", "--json").stdout)
    assert (stored["pages"], stored["copies"]) == (len(files), 2)
    command(balancer, "get", "-r", "/", "-o", str(tmp_path / "back"))
    assert read_tree(tmp_path / "back") == files
    pages = json.loads(command(balancer, "stat", "-r", "/", "--json").stdout)
    assert {page["name"] for page in pages} == {f"/{name}" for name in files}
    assert all(page["copies"] == len({holder["name"] for holder in page["holders"]}) == 2 for page in pages)
    command(balancer, "put", "-", "--to", "/now.txt", stdin=b"from a pipe")
    assert command(balancer, "get", "/now.txt", "-o", "-").stdout == b"from a pipe"
    version = json.loads(command(balancer, "stat", "--json", "/now.txt").stdout)[0]["version"]
    command(balancer, "put", "-", "--to", "/now.txt", "--if-absent", stdin=b"other", code=5)
    command(balancer, "put", "-", "--to", "/now.txt", "--if-version", "1.999", stdin=b"other", code=5)
    command(balancer, "put", "-", "--to", "/now.txt", "--if-version", version, stdin=b"from a pipe")
    assert command(balancer, "ls", "/many/7").stdout == b"/many/7\n"
    why = json.loads(command(balancer, "why", "--json", "/index.html").stdout)
    assert why["chosen"] in {choice["server"] for choice in why["choices"] if choice["holds"]}
    told = json.loads(command(balancer, "status", "--json").stdout)
    assert told["pages"] == len(files) + 1
    assert {server["state"] for server in told["servers"]} == {"alive"}
    command(balancer, "put", "-", "--to", "/short", stdin=b"short lived")
    command(balancer, "rm", "/short")
    command(balancer, "rm", "/short", code=3)
    command(balancer, "get", "/short", "-o", "-", code=3)


@pytest.mark.slow
def test_a_killed_supervisor_leaves_no_orphan_and_no_lock(tmp_path: Path) -> None:
    with Run(tmp_path / "data", "--webservers", "2") as cluster:
        pids = cluster.pids
        # One that hangs would not hear a polite request.
        os.kill(pids[1], signal.SIGSTOP)
        cluster.process.kill()
        cluster.wait()
        eventually(lambda: all(map(is_gone, pids)))
    with Run(tmp_path / "data", "--webservers", "2") as again:
        assert set(again.pids).isdisjoint(pids)


@pytest.mark.slow
def test_the_site_is_uploaded_at_the_first_start_alone(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    page = tmp_path / "site/page"
    page.write_text("first")
    flags = ("--webservers", "2", "--site", str(tmp_path / "site"))
    with Run(tmp_path / "data", *flags) as cluster:
        assert "1 pages" in cluster.output
        assert command(cluster.endpoint, "get", "/page", "-o", "-").stdout == b"first"
        command(cluster.endpoint, "put", "-", "--to", "/page", stdin=b"changed since")
    page.write_text("second")
    with Run(tmp_path / "data", *flags) as again:
        assert "was uploaded at an earlier start" in again.output
        assert command(again.endpoint, "get", "/page", "-o", "-").stdout == b"changed since"


def test_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    """SIGINT goes to the whole foreground group of a terminal; the nodes are not in it."""
    with Run(tmp_path / "data", wait=False) as cluster:
        eventually((tmp_path / "data/logs/balancer.log").exists)
        # A child is in its parent's group for the moment between fork and setsid.
        supervisor = psutil.Process(cluster.process.pid)
        eventually(lambda: all(os.getpgid(child.pid) != supervisor.pid for child in supervisor.children()))
        children = supervisor.children()
        os.killpg(cluster.process.pid, signal.SIGINT)
        assert cluster.wait() == 130
        assert "stopped before the cluster was up" in cluster.output
        assert all(is_gone(child.pid) for child in children)


def refused(data: Path, *flags: str) -> tuple[int, str]:
    with Run(data, *flags, wait=False) as cluster:
        code = cluster.wait()
        assert "Traceback" not in cluster.output
        return code, cluster.output


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        if port + 2 > 65_535:
            pytest.skip("the last ports")
        code, output = refused(tmp_path / "data", "--port", str(port))
        http_code, http_output = refused(tmp_path / "http", "--http-port", str(port))
    assert code == http_code == 1
    assert f"port {port} on 127.0.0.1: address already in use" in output
    assert "another --port" in output
    assert http_output == (
        f"run_cluster.py: error: port {port} on 127.0.0.1: address already in use. The gateway needs it:"
        " stop what uses it, or choose another"
        " --http-port (0 takes a free one; --no-http starts no gateway)\n"
    )
    assert not (tmp_path / "http").exists() and not (tmp_path / "data").exists(), "nothing was left"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--webservers 0", "wanted 1 to 1000"),
        ("--webservers 1", "2 copies of each page need as many web servers"),
        ("--copies 0", "1 <= copies <= 16"),
        ("--policy best", "least-load"),
        ("--period nothing", "nothing"),
        ("--port 65535", "port 65535"),
        ("--http-port 65536", "--http-port '65536' is not a port"),
        ("--host 0.0.0.0", "--advertise"),
        ("--host 192.0.2.77 --port 0", "192.0.2.77: cannot assign requested address; --host wants"),
        ("--host no.such.host.invalid", "no.such.host.invalid"),
        ("--site /nowhere/at/all", "/nowhere/at/all"),
        ("--restart sometimes", "always"),
        ("--set beat=1", "did you mean beat_s?"),
        ("--frobnicate", "--frobnicate"),
    ],
)
def test_impossible_flags_are_2_and_start_nothing(tmp_path: Path, flags: str, says: str) -> None:
    code, output = refused(tmp_path / "data", *flags.split())
    assert code == 2
    assert says in output
    assert not (tmp_path / "data").exists()


# The supervisor as a library


def options(tmp_path: Path, **changes: Any) -> ClusterOptions:
    wanted = {"data": tmp_path / "data", "webservers": 2, "port": 0, "restart_first_s": 0.1}
    return ClusterOptions(**(wanted | changes))


class Lines:
    """What a supervisor says, to be waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    def wait_for(self, text: str) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: any(text in line for line in self.lines), WITHIN_S), (
                self.lines
            )
            return next(line for line in self.lines if text in line)


@pytest.mark.slow
def test_a_killed_node_is_started_again(tmp_path: Path) -> None:
    lines = Lines()
    with Supervisor(options(tmp_path), say=lines) as cluster, dws.connect(cluster.endpoint) as client:
        for name in ("web-1", "balancer", "web-2"):
            client.put({f"/before-{name}": b"x"})
            pid = cluster.kill(name)
            cluster.wait_until_alive(WITHIN_S)
            assert client.get(f"/before-{name}") == b"x"
            client.put({f"/after-{name}": b"x"})
            lines.wait_for(f"{name} (pid {pid}) was ended by SIGKILL; starting it again in 0.1 s")
            lines.wait_for(f"{name} is back")
            assert cluster.node(name).pid != pid
            described = json.loads((tmp_path / "data/cluster.json").read_text("utf-8"))
            assert described["balancers"] == [cluster.endpoint]
            assert described["nodes"] == [msgspec.structs.asdict(node) for node in cluster.nodes]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(options(tmp_path_factory.mktemp("cluster"))) as running:
        yield running


@pytest.mark.slow
def test_a_second_supervisor_is_refused_and_harms_nothing(cluster: Supervisor) -> None:
    before = cluster.nodes
    with pytest.raises(Refused, match=r"a cluster runs on .* already"):
        Supervisor(cluster.options).start()
    assert cluster.nodes == before
    assert (cluster.options.data / "cluster.json").exists()


@pytest.mark.slow
def test_a_large_page_goes_through_in_constant_memory(cluster: Supervisor, tmp_path: Path) -> None:
    """Up from a pipe of unknown length and down to a file, the consumer slower than the servers."""
    data = os.urandom(1 << 20) * 256
    put = measured(cluster.endpoint, "put", "-", "--to", "/large", stdin=data)
    get = measured(cluster.endpoint, "get", "/large", "-o", str(tmp_path / "large"))
    assert (tmp_path / "large").read_bytes() == data
    assert max(put, get) < 128 << 20


def measured(balancer: str, *arguments: str, stdin: bytes = b"") -> int:
    """Runs `dws`; the most bytes of memory it had. Not ru_maxrss: exec does not reset it."""
    code = (
        "import atexit\n"
        "from dws.cli import main\n"
        "atexit.register(lambda: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-b", balancer, *arguments],
        cwd=ROOT, env=os.environ | {"DWS_CONFIG": ""}, input=stdin,
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.slow
def test_names_of_nodes_that_are_not(cluster: Supervisor) -> None:
    with pytest.raises(ConfigError, match=r"web-9.*balancer, web-1, web-2"):
        cluster.kill("web-9")
    assert cluster.log("web-1").is_file()


@pytest.mark.slow
def test_fewer_web_servers_than_before_are_refused(tmp_path: Path) -> None:
    with Supervisor(options(tmp_path, webservers=3)):
        pass
    with pytest.raises(Refused, match=r"all their copies on web-3\. Start 3 web servers"):
        Supervisor(options(tmp_path, webservers=2)).start()
    code, output = refused(tmp_path / "data", "--webservers", "2")
    assert code == 1
    assert "web-3" in output


@pytest.mark.slow
def test_a_lost_catalog_is_refused_until_it_is_rebuilt(tmp_path: Path) -> None:
    with Supervisor(options(tmp_path)) as cluster, dws.connect(cluster.endpoint) as client:
        client.put({"/page": b"still here"})
    shutil.rmtree(tmp_path / "data/balancer")
    with pytest.raises(TimedOut, match=r"not in sync .*web-1(.|\n)*\.log: .*--rebuild"):
        Supervisor(options(tmp_path, start_timeout_s=3.0)).start()
    quick = Config(rebuild_quiet_s=0.5)
    with Supervisor(options(tmp_path, rebuild=True, config=quick)) as cluster:
        cluster.kill("balancer")
        cluster.wait_until_alive(WITHIN_S)
        with dws.connect(cluster.endpoint) as client:
            assert client.get("/page") == b"still here"
            assert client.status().epoch >> 20 == 1, "rebuilt once, not at the restart as well"


@pytest.mark.slow
def test_restart_never_leaves_it_dead_and_stopping_works_still(tmp_path: Path) -> None:
    lines = Lines()
    with Supervisor(options(tmp_path, restart=False), say=lines) as cluster:
        cluster.kill("web-1")
        assert "it stays down" in lines.wait_for("web-1")
        eventually(lambda: cluster.node("web-1").pid == 0)
        cluster.kill("web-2", signal.SIGSTOP)
        assert cluster.stop(), "a node that was stopped is woken to hear that it should end"
    assert not (tmp_path / "data/cluster.json").exists()


def test_a_node_that_fails_to_start_shows_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/balancer").write_text("this is no directory")
    with pytest.raises(DwsError, match="balancer did not start: ended with status 1") as raised:
        Supervisor(options(tmp_path)).start()
    assert "logs/balancer.log" in str(raised.value)
    assert "dws: error: " in str(raised.value)


@pytest.mark.slow
def test_with_http(tmp_path: Path) -> None:
    """The site's URL is printed and answers; the gateway, killed, comes back at it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("<h1>hello</h1>")
    flags = ("--http-port", "0", "--webservers", "2", "--site", str(tmp_path / "site"))
    with Run(tmp_path / "data", *flags) as cluster:
        [url] = cluster.description["gateways"]
        assert f"site       {url}/\ndashboard  {url}/_dws/\n" in cluster.output
        assert read(f"{url}/") == b"<h1>hello</h1>"
        assert b"<title>" in read(f"{url}/_dws/")
        nodes = {node["name"]: node for node in cluster.description["nodes"]}
        assert nodes["gateway"]["role"] == "gateway"
        assert nodes["gateway"]["endpoint"] == url
        children = psutil.Process(cluster.process.pid).children(recursive=True)
        os.kill(nodes["gateway"]["pid"], signal.SIGKILL)
        eventually(lambda: "gateway is back" in cluster.output)
        assert read(f"{url}/index.html") == b"<h1>hello</h1>"
        assert cluster.stop() == 0
        assert all(is_gone(child.pid) for child in children)


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=WITHIN_S) as response:
        body: bytes = response.read()
        return body


# Without processes


def test_the_delay_doubles_and_forgets() -> None:
    backoff = Backoff(3.0, 60.0)
    assert [backoff.after(up_s=1.0) for _ in range(7)] == [3, 6, 12, 24, 48, 60, 60]
    assert backoff.after(up_s=61.0) == 3
    assert backoff.after(up_s=1.0) == 6


@pytest.mark.parametrize(
    "config", [Config(), impatient(), Config(probe_fractions=(0.5,), policy="random", quota_bytes=1 << 33)]
)
def test_nodes_get_exactly_the_supervisors_config(config: Config) -> None:
    pairs = tuple(flag for flag in config_flags(config) if flag != "--set")
    assert Settings({}, {}).config({}, pairs) == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"webservers": 1001}, "1 to 1000"),
        ({"config": Config(copies=3)}, "3 copies"),
        ({"port": 65_534}, "port 65534"),
        ({"http_port": 65_536}, "HTTP port 65536"),
        ({"advertise": "0.0.0.0"}, "no address to announce"),
    ],
)
def test_impossible_options(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(options(tmp_path, **changes))


def test_which_web_servers_a_directory_has(tmp_path: Path) -> None:
    for name in ("web-10", "web-2", "web-02", "web-x", "balancer", "web-0"):
        (tmp_path / name).mkdir()
    (tmp_path / "web-3").write_text("no directory")
    assert webservers_in(tmp_path) == ["web-2", "web-10"]
    assert webservers_in(tmp_path / "gone") == []


def test_logs_are_kept_within_bounds(tmp_path: Path) -> None:
    log = tmp_path / "web-1.log"
    node = NodeProcess("web-1", "webserver", [], tmp_path, log, Backoff())
    for number in range(6):
        log.write_text(str(number))
        node.rotate_log()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["web-1.log.1", "web-1.log.2", "web-1.log.3"]
    assert (tmp_path / "web-1.log.1").read_text() == "5"
    with log.open("ab") as writer:
        writer.write(b"x" * (LOG_MAX_BYTES + 1))
        writer.flush()
        node.cut_log()
        assert log.stat().st_size == 0
        writer.write(b"goes on")
    assert log.read_bytes() == b"goes on"
