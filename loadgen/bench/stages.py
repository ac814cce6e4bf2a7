"""What one round measures: the bare limits, the cluster, SeaweedFS, HTTP, one after the other.

What lives here: which processes are started with what, and in which order they are measured. What must not:
the drivers (driving, driver), the peers' processes (peers), what is wanted (table).

Each stage starts its own servers and ends them before the next begins, so nobody shares the machine with
whom he is compared. Data are fresh in each round.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import dws
from dws.config import Config
from dws.errors import DwsError
from dws.names import format_version
from dws.nodes.cluster_options import ClusterOptions
from dws.nodes.supervisor import WEBSERVER, Supervisor
from loadgen import runner
from loadgen.bench import table
from loadgen.bench.driving import DriverFailed, Measured, drive, serving
from loadgen.bench.jobs import Appends, Chunks, Commits, Down, Echoes, Lookups, Puts, Reads, Up
from loadgen.bench.peers import Missing, Nginx, SeaweedFS, Wrk
from loadgen.bench.quiet import cpu_of, cpu_of_ended
from loadgen.bench.run import Run, write_noise
from loadgen.clients import RunError
from loadgen.histogram import from_plain, merged
from loadgen.measured import ClientResult
from loadgen.plan import Plan, filling, made_up

WEBSERVERS: Final = 4
#: Requests under way, of one client process: as many as the peer's program has, which is one, too.
_WINDOW: Final = 16
#: As if there were eight times as many users. To read for so many fills a processor: two clients.
_MANY_WINDOW: Final = 128
_MANY_CLIENTS: Final = 2
_LOOKUPS_WINDOW: Final = 32
_PUT_PAGES: Final = 100
_WEED_VOLUMES: Final = 2
_HTTP_PAGES: Final = 1000
_HTTP_WEBSERVERS: Final = 2
_BATCH_PAGES: Final = 500
#: A Locate with one name and its answer, roughly.
_ECHO_BYTES: Final = 96
_OPEN_CLIENTS: Final = 2
_OPEN_THREADS: Final = 8
_SMALL_CONNECTIONS: Final = 32
_LARGE_CONNECTIONS: Final = 4
_LARGE: Final = "/large.bin"


def measure_round(run: Run) -> None:
    """Every stage once; what is missing is named, and the others are measured."""
    for keys, stage in STAGES:
        wanted = [key for key in keys if key in run.keys]
        if not wanted:
            continue
        with in_a_place(run) as place:
            try:
                stage(run, place)
            except (Missing, DwsError, DriverFailed, RunError) as error:
                run.lacks(wanted, str(error))


@contextmanager
def in_a_place(run: Run) -> Iterator[Path]:
    """A directory for one stage, removed at its end."""
    place = run.directory / "stage"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        # What this stage wrote is not to be written while the next one is measured.
        os.sync()


# -- the limits -------------------------------------------------------------------------------


def measure_limits(run: Run, place: Path) -> None:
    warm_s, seconds, sizes = run.warm_s, run.seconds, run.sizes
    run.say("bare limits")
    if run.wants("echo", "echo-idle"):
        with serving("echo") as echo:
            run.drive("echo", [Echoes(echo, _LOOKUPS_WINDOW, _ECHO_BYTES, seconds, warm_s)])
            _idle(run, "echo-idle", Echoes(echo, 1, _ECHO_BYTES, seconds, warm_s))
    if run.wants("chunks"):
        with serving("chunks") as chunks:
            run.drive("chunks", [Chunks(chunks, sizes.large_bytes)])
    if run.wants("lmdb"):
        store = place / "lmdb"
        store.mkdir()
        run.drive("lmdb", [Commits(str(store), _PUT_PAGES, sizes.page_bytes, seconds, warm_s)])
    run.drive("append", [Appends(str(place), _PUT_PAGES, sizes.page_bytes, seconds, warm_s)])
    if run.wants("append-large"):
        with run.watched():
            measured = drive([Appends(str(place), 1, 1, total_bytes=2 * sizes.large_bytes)])
        # What counts is the page: it is written twice, so the rate is half of the disk's.
        run.note("append-large", measured.rate / 2, measured)


def _idle(run: Run, key: str, job: Echoes | Lookups, nodes: Sequence[tuple[str, int]] = ()) -> None:
    """A lone request's p50."""
    if run.wants(key):
        with run.watched():
            measured = drive([job], nodes)
        run.note(key, measured.p50_s * 1e6, measured)


# -- the cluster ------------------------------------------------------------------------------


def measure_cluster(run: Run, place: Path) -> None:
    run.say(f"dws: 1 balancer, {WEBSERVERS} web servers")
    run.result.versions["dws"] = dws.__version__
    with cluster(place, WEBSERVERS) as running:
        Cluster(run, place, running).measure()


@contextmanager
def cluster(place: Path, webservers: int, config: Config | None = None) -> Iterator[Supervisor]:
    options = ClusterOptions(
        data=place / "dws", webservers=webservers, port=0, config=config or Config(), restart=False
    )
    running = Supervisor(options)
    try:
        yield running.start()
    finally:
        running.stop()


def nodes_of(running: Supervisor) -> list[tuple[str, int]]:
    """(name, pid). Web servers as one: which of them holds a large page differs from round to round."""
    return [("web servers" if node.role == WEBSERVER else node.role, node.pid) for node in running.nodes]


def store(endpoint: str, count: int, size_bytes: int, names_file: Path) -> list[str]:
    """Made-up pages, and a file of their names."""
    names = [f"/page/{number}" for number in range(count)]
    base = filling(Plan(size_bytes=size_bytes))
    with dws.connect(endpoint, timeout_s=30) as client:
        for first in range(0, count, _BATCH_PAGES):
            batch = range(first, min(first + _BATCH_PAGES, count))
            client.put({names[number]: made_up(number, size_bytes, base) for number in batch})
    names_file.write_text("\n".join(names), "utf-8")
    return names


class Cluster:
    """The measurements of one running cluster."""

    def __init__(self, run: Run, place: Path, running: Supervisor) -> None:
        self._run = run
        self._endpoint = running.endpoint
        self._nodes = nodes_of(running)
        self._names_file = place / "names"
        self._names = store(running.endpoint, run.sizes.pages, run.sizes.page_bytes, self._names_file)

    def measure(self) -> None:
        run = self._run
        _idle(run, "lookup-idle", self._lookups(1, 1), self._nodes)
        run.drive("lookup-1", [self._lookups(1, _LOOKUPS_WINDOW)], self._nodes)
        run.drive("lookup-10", [self._lookups(10, _LOOKUPS_WINDOW)], self._nodes)
        for pages in (1, 10, 40):
            run.drive(f"read-{pages}", self._reads(pages, _WINDOW, 1), self._nodes)
            run.drive(f"read-{pages}-many", self._reads(pages, _MANY_WINDOW, _MANY_CLIENTS), self._nodes)
        for pages in (_PUT_PAGES, 1):
            run.drive(f"put-{pages}", [self._puts(pages)], self._nodes)
        if run.wants("open-p50", "open-p99"):
            self._open()
        if run.wants("up", "down"):
            self._large()

    def _lookups(self, pages: int, window: int) -> Lookups:
        run = self._run
        return Lookups(
            self._endpoint, str(self._names_file), pages, window, run.seconds, run.warm_s, run.round
        )

    def _reads(self, pages: int, window: int, clients: int) -> list[Reads]:
        return reads(self._run, self._endpoint, self._names_file, pages, window, clients)

    def _puts(self, pages: int) -> Puts:
        run = self._run
        return Puts(
            self._endpoint, f"/put/{pages}", pages, _WINDOW, run.sizes.page_bytes, run.seconds, run.warm_s
        )

    def _open(self) -> None:
        """Half of what the same threads do when each sends its next request as soon as it has the answer."""
        capacity = self._load(None)
        requests = sum(one.requests for client in capacity for one in client.tallies.values())
        rate = requests / max(client.elapsed_s for client in capacity)
        found = self._load(rate / 2)
        tallies = [one for client in found for one in client.tallies.values()]
        latency = merged(from_plain(one.latency) for one in tallies)
        bad = sum(failure.count for one in tallies for failure in one.failures)
        for key, percent in (("open-p50", 50), ("open-p99", 99)):
            if self._run.wants(key):
                self._run.note(key, latency.percentile(percent) * 1e6, Measured(0.0, 0, bad=bad))

    def _load(self, rate: float | None) -> list[ClientResult]:
        run = self._run
        plan = Plan(count=None, duration_s=run.seconds, warmup_s=run.warm_s, clients=_OPEN_CLIENTS,
                    threads=_OPEN_THREADS, files=1, rate=rate, seed=run.round)  # fmt: skip
        with run.watched():
            report = runner.run(plan, runner.Site([], self._names), self._endpoint, idle_s=0)
        if report.interrupted:
            raise KeyboardInterrupt
        return report.clients

    def _large(self) -> None:
        run, path = self._run, self._run.directory / "large.bin"
        with run.watched():
            measured = drive([Up(self._endpoint, "/large", str(path))], self._nodes)
        if run.wants("up"):
            run.note("up", measured.rate, measured)
        os.sync()
        if not measured.bad:
            run.drive("down", [Down(self._endpoint, "/large")], self._nodes)


def reads(run: Run, endpoint: str, names_file: Path, pages: int, window: int, clients: int) -> list[Reads]:
    """window: requests under way, of all clients together."""
    return [
        Reads(endpoint, str(names_file), pages, window // clients, run.seconds, run.warm_s,
              run.round * clients + number)
        for number in range(clients)
    ]  # fmt: skip


# -- SeaweedFS --------------------------------------------------------------------------------


def measure_weed(run: Run, place: Path) -> None:
    run.say(f"SeaweedFS: 1 master, {_WEED_VOLUMES} volume servers")
    with SeaweedFS(place, _WEED_VOLUMES, volumes_each=30) as weed:
        run.result.versions["SeaweedFS"] = weed.version
        if run.wants("weed-write", "weed-read", "weed-read-many"):
            # Not counted: it makes the volumes, once for each collection.
            weed.benchmark("write", 200, run.sizes.page_bytes, _WINDOW)
            written = float(run.sizes.weed_files)
            _weed_benchmark(run, weed, "weed-write", "write", _WINDOW, written)
            _weed_benchmark(run, weed, "weed-read", "read", _WINDOW, 8 * written)
            _weed_benchmark(run, weed, "weed-read-many", "read", _MANY_WINDOW, 8 * written)
        if run.wants("weed-lookup"):
            wrk = Wrk(place)
            weed.put([b"x"])
            paths = wrk.paths("lookup", [weed.lookup])
            _asked(run, "weed-lookup", wrk, weed.master, paths, weed.nodes)


def _weed_benchmark(run: Run, weed: SeaweedFS, key: str, what: str, clients: int, per_s: float) -> None:
    """per_s: a guess, for the first round. Reads are of what was written last, so that is always done."""
    series = next((one for one in run.result.series if one.key == key), None)
    if series is None and what == "read":
        return
    rate = series.rates[-1] if series and series.rates else per_s
    before, client_s = cpu_of(weed.nodes), cpu_of_ended()
    with run.watched():
        found = weed.benchmark(what, max(500, round(rate * run.seconds)), run.sizes.page_bytes, clients)
    cpu = _cpu(weed.nodes, before, "weed benchmark", client_s, found.requests)
    if series:
        run.note(series.key, found.requests_per_s, Measured(0.0, 0, cpu, found.failed))


def _cpu(
    nodes: Sequence[tuple[str, int]], before: dict[str, float], client: str, client_s: float, units: int
) -> dict[str, float]:
    """Process → CPU seconds a million units since `before`. client: the program that asked and has ended."""
    used = {name: cpu_s - before[name] for name, cpu_s in cpu_of(nodes).items() if name in before}
    used[client] = cpu_of_ended() - client_s
    return {name: used_s * 1e6 / units for name, used_s in used.items()} if units else {}


def _asked(
    run: Run, key: str, wrk: Wrk, url: str, paths: Path, nodes: Sequence[tuple[str, int]] = ()
) -> None:
    before, client_s = cpu_of(nodes), cpu_of_ended()
    with run.watched():
        asked = wrk.ask(url, paths, run.seconds, _SMALL_CONNECTIONS)
    cpu = _cpu(nodes, before, "wrk", client_s, asked.requests)
    run.note(key, asked.requests_per_s, Measured(0.0, 0, cpu, asked.status + asked.failed))


def _asked_large(run: Run, key: str, wrk: Wrk, url: str, paths: Path) -> None:
    # Not counted: the file comes into the page cache.
    wrk.ask(url, paths, 1, 1)
    with run.watched():
        asked = wrk.ask(url, paths, run.seconds, _LARGE_CONNECTIONS)
    run.note(key, asked.bytes_per_s, Measured(0.0, 0, bad=asked.status + asked.failed))


# -- HTTP ------------------------------------------------------------------------------------


def measure_http(run: Run, place: Path) -> None:
    run.say(f"dws by HTTP: a gateway, {_HTTP_WEBSERVERS} web servers with endpoints")
    wrk = Wrk(place)
    options = ClusterOptions(
        data=place / "dws", webservers=_HTTP_WEBSERVERS, port=0, http_port=0, restart=False
    )
    running = Supervisor(options)
    try:
        running.start()
        names = store(running.endpoint, _HTTP_PAGES, run.sizes.page_bytes, place / "names")
        nodes = [(node.name, node.pid) for node in running.nodes]
        with dws.connect(running.endpoint, timeout_s=30) as client:
            if run.wants("http-endpoint-large"):
                write_noise(place / "large.bin", run.sizes.http_large_bytes)
                client.put({_LARGE: place / "large.bin"})
            versions = {record.name: record.version for record in client.list()}
            endpoint = next(one.http_endpoint for one in client.status().servers if one.http_endpoint)
        if run.wants("http-gateway"):
            paths = wrk.paths("gateway", [quote(name) for name in names])
            _asked(run, "http-gateway", wrk, running.node("gateway").endpoint, paths, nodes)
        direct = {name: f"{quote(name)}?v={format_version(version)}" for name, version in versions.items()}
        if run.wants("http-endpoint"):
            paths = wrk.paths("endpoint", [direct[name] for name in names])
            _asked(run, "http-endpoint", wrk, endpoint, paths, nodes)
        if run.wants("http-endpoint-large"):
            _asked_large(run, "http-endpoint-large", wrk, endpoint, wrk.paths("large", [direct[_LARGE]]))
    finally:
        running.stop()


def measure_http_weed(run: Run, place: Path) -> None:
    run.say("SeaweedFS by HTTP: a volume server")
    wrk = Wrk(place)
    with SeaweedFS(place / "weed") as weed:
        run.result.versions["SeaweedFS"] = weed.version
        paths = wrk.paths("weed", weed.put(_http_pages(run)))
        _asked(run, "http-weed", wrk, weed.volume, paths, weed.nodes)


def measure_nginx(run: Run, place: Path) -> None:
    run.say("nginx")
    wrk, root = Wrk(place), place / "files"
    root.mkdir()
    for number, content in enumerate(_http_pages(run)):
        (root / f"{number}.bin").write_bytes(content)
    with Nginx(place / "nginx", root) as nginx:
        run.result.versions["nginx"] = nginx.version
        nodes = [("nginx", nginx.pid)]
        if run.wants("http-nginx"):
            paths = wrk.paths("nginx", [f"/{number}.bin" for number in range(_HTTP_PAGES)])
            _asked(run, "http-nginx", wrk, nginx.url, paths, nodes)
        if run.wants("http-nginx-large"):
            write_noise(root / "large.bin", run.sizes.http_large_bytes)
            _asked_large(run, "http-nginx-large", wrk, nginx.url, wrk.paths("large", ["/large.bin"]))


def _http_pages(run: Run) -> list[bytes]:
    base = filling(Plan(size_bytes=run.sizes.page_bytes))
    return [made_up(number, run.sizes.page_bytes, base) for number in range(_HTTP_PAGES)]


STAGES: Final[tuple[tuple[Sequence[str], Callable[[Run, Path], None]], ...]] = (
    (tuple(table.BARE), measure_limits),
    (tuple(table.CLUSTER), measure_cluster),
    (tuple(table.WEED), measure_weed),
    (tuple(table.HTTP_DWS), measure_http),
    (tuple(table.HTTP_WEED), measure_http_weed),
    (tuple(table.HTTP_NGINX), measure_nginx),
)
