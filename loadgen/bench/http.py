"""Our HTTP side beside SeaweedFS and nginx: `python -m loadgen.bench http`.

What lives here: which servers are compared with which load, in what order, and the
cluster of ours that is measured. What must not: running the peers (peers.py), and
what the rates come to (figures.py).

All servers are up during the whole run, and idle while another one is measured. The
rounds are interleaved, so that a machine that slows down slows all of them.
"""

import os
import platform
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil
from msgspec import Struct

import dws
from dws.errors import DwsError
from dws.limits import KIB, MIB
from dws.names import format_version
from dws.nodes.cluster_options import ClusterOptions
from dws.nodes.supervisor import Supervisor
from loadgen.bench.figures import Goal, Machine, Result, Series, judge
from loadgen.bench.peers import Asked, Missing, Nginx, SeaweedFS, Wrk

PAGES: Final = 1000
SMALL_BYTES: Final = 4 * KIB
LARGE_BYTES: Final = 256 * MIB
WEBSERVERS: Final = 2

#: In the order in which a round measures: neighbours are compared with each other.
TITLES: Final = {
    "gateway": "dws gateway: redirect with lookup",
    "weed-lookup": "SeaweedFS master: lookup",
    "endpoint-4k": "dws endpoint: 4 KiB page",
    "weed-4k": "SeaweedFS volume server: 4 KiB file",
    "nginx-4k": "nginx, one worker: 4 KiB file",
    "endpoint-large": "dws endpoint: 256 MiB page",
    "nginx-large": "nginx, one worker: 256 MiB file",
}
KEYS: Final = tuple(TITLES)
GOALS: Final = (
    Goal("gateway", "weed-lookup", 1.0, "redirects against SeaweedFS's lookups"),
    Goal("endpoint-4k", "weed-4k", 1.8, "4 KiB pages against SeaweedFS"),
    Goal("endpoint-4k", "nginx-4k", 0.8, "4 KiB pages against nginx"),
    Goal("endpoint-large", "nginx-large", 0.5, "a 256 MiB page against nginx, bytes a second"),
)

_SMALL_CONNECTIONS: Final = 32
_LARGE_CONNECTIONS: Final = 4
_QUIET_S: Final = 0.3

Say = Callable[[str], None]


class Subject(Struct):
    """What wrk asks for one series: a server, and the paths to ask it for."""

    series: Series
    url: str
    paths: Path

    @property
    def is_large(self) -> bool:
        return self.series.unit == "bytes/s"


def compare(rounds: int, seconds: float, keys: set[str], say: Say) -> Result:
    """Start everything, measure each of `keys` once a round, stop everything.

    A peer that is missing is named in the result and the others are measured; Ctrl-C ends
    the run with the whole rounds done so far.
    """
    result = Result(_machine(), seconds, 0, {}, [_series(key) for key in KEYS if key in keys])
    with tempfile.TemporaryDirectory(prefix="dws-bench-") as directory, ExitStack() as stack:
        try:
            _measure(result, rounds, Path(directory), stack, say)
        except KeyboardInterrupt:
            result.interrupted = True
        except Missing as missing:
            result.missing.append(str(missing))
    result.machine.load_after = os.getloadavg()[0]
    result.outcomes = [judge(goal, result.series) for goal in GOALS if {goal.subject, goal.peer} <= keys]
    return result


def _measure(result: Result, rounds: int, directory: Path, stack: ExitStack, say: Say) -> None:
    wrk = Wrk(directory)
    say("starting the servers and giving them the same pages")
    subjects = _start(result, directory, wrk, stack)
    for subject in subjects:
        # Not counted: files come into the page cache, code into the processors'.
        wrk.ask(subject.url, subject.paths, 1, _connections(subject))
    for number in range(rounds):
        result.machine.foreign.append(psutil.cpu_percent(_QUIET_S) / 100)
        asked = [(subject, wrk.ask(subject.url, subject.paths, result.seconds, _connections(subject)))
                 for subject in subjects]  # fmt: skip
        for subject, one in asked:
            subject.series.rates.append(one.bytes_per_s if subject.is_large else one.requests_per_s)
            subject.series.bad += one.status + one.failed
        result.rounds = number + 1
        say(f"round {number + 1} of {rounds}: {', '.join(_brief(*pair) for pair in asked)}")


def _connections(subject: Subject) -> int:
    return _LARGE_CONNECTIONS if subject.is_large else _SMALL_CONNECTIONS


def _brief(subject: Subject, asked: Asked) -> str:
    if subject.is_large:
        return f"{subject.series.key} {asked.bytes_per_s / MIB:,.0f} MiB/s"
    return f"{subject.series.key} {asked.requests_per_s:,.0f}/s"


# -- what is measured --------------------------------------------------------------------------


def _start(result: Result, directory: Path, wrk: Wrk, stack: ExitStack) -> list[Subject]:
    """Start whatever a wanted series needs, and list what to ask it."""
    rng = random.Random(1)
    # Noise: a peer that compresses gains nothing.
    small = {f"/pages/{number:04}.bin": rng.randbytes(SMALL_BYTES) for number in range(PAGES)}
    root = directory / "files"
    _write(root, small, rng)
    starters = {
        "dws": lambda: _start_dws(directory, root, small, wrk, result, stack),
        "SeaweedFS": lambda: _start_weed(directory, small, wrk, result, stack),
        "nginx": lambda: _start_nginx(directory, root, small, wrk, result, stack),
    }
    places: dict[str, tuple[str, Path]] = {}
    prefixes = {"dws": ("gateway", "endpoint"), "SeaweedFS": ("weed",), "nginx": ("nginx",)}
    for name, start in starters.items():
        wanted = [one for one in result.series if one.key.startswith(prefixes[name])]
        if not wanted:
            continue
        try:
            places |= start()
        except (Missing, DwsError) as error:
            result.missing.append(f"{name}: {error}")
            for one in wanted:
                one.problem = f"missing: {error}"
    return [Subject(one, *places[one.key]) for one in result.series if one.key in places]


def _start_dws(
    directory: Path, root: Path, small: dict[str, bytes], wrk: Wrk, result: Result, stack: ExitStack
) -> dict[str, tuple[str, Path]]:
    """Two web servers and a gateway; the pages asked for directly are on both, and one is asked."""
    options = ClusterOptions(
        data=directory / "dws", webservers=WEBSERVERS, port=0, http_port=0, start_timeout_s=30
    )
    cluster = stack.enter_context(_running(Supervisor(options)))
    with dws.connect(cluster.endpoint, timeout_s=60) as client:
        client.put(dict(small))
        client.put({"/large.bin": root / "large.bin"})
        versions = {record.name: record.version for record in client.list()}
        endpoint = next(server.http_endpoint for server in client.status().servers if server.http_endpoint)
    result.versions["dws"] = dws.__version__
    direct = {name: f"{quote(name)}?v={format_version(version)}" for name, version in versions.items()}
    return {
        "gateway": (cluster.node("gateway").endpoint, wrk.paths("gateway", [quote(name) for name in small])),
        "endpoint-4k": (endpoint, wrk.paths("endpoint-4k", [direct[name] for name in small])),
        "endpoint-large": (endpoint, wrk.paths("endpoint-large", [direct["/large.bin"]])),
    }


@contextmanager
def _running(cluster: Supervisor) -> Iterator[Supervisor]:
    try:
        yield cluster.start()
    finally:
        cluster.stop()


def _start_weed(
    directory: Path, small: dict[str, bytes], wrk: Wrk, result: Result, stack: ExitStack
) -> dict[str, tuple[str, Path]]:
    weed = stack.enter_context(SeaweedFS(directory / "weed"))
    paths = weed.put(list(small.values()))
    result.versions["SeaweedFS"] = weed.version
    return {
        "weed-lookup": (weed.master, wrk.paths("weed-lookup", [weed.lookup])),
        "weed-4k": (weed.volume, wrk.paths("weed-4k", paths)),
    }


def _start_nginx(
    directory: Path, root: Path, small: dict[str, bytes], wrk: Wrk, result: Result, stack: ExitStack
) -> dict[str, tuple[str, Path]]:
    nginx = stack.enter_context(Nginx(directory / "nginx", root))
    result.versions["nginx"] = nginx.version
    return {
        "nginx-4k": (nginx.url, wrk.paths("nginx-4k", list(small))),
        "nginx-large": (nginx.url, wrk.paths("nginx-large", ["/large.bin"])),
    }


def _write(root: Path, small: dict[str, bytes], rng: random.Random) -> None:
    for name, content in small.items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with (root / "large.bin").open("wb") as file:
        for _ in range(LARGE_BYTES // MIB):
            file.write(rng.randbytes(MIB))


def _series(key: str) -> Series:
    return Series(key, TITLES[key], "bytes/s" if key.endswith("-large") else "requests/s")


def _machine() -> Machine:
    return Machine(
        cores=os.cpu_count() or 1,
        processor=_processor(),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        load_before=os.getloadavg()[0],
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
