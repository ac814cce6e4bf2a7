"""`make demo`: a cluster of its own, thousands of real files stored twice, load, the analysis.

What lives here: the story and its checks. What must not: how a cluster is run
(dws.nodes.supervisor) and how load is made and judged (runner, report). It ends
by itself, and takes nothing with it but free ports and a temporary directory.

0 if every page has two copies, every digest is right and no request failed;
else 1, with the logs kept. The figures that the cluster should reach are shown
as reached or not; a slow machine is no fault.
"""

import shutil
import signal
import stat
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Final

from blake3 import blake3
from msgspec import Struct

import dws
from dws.config import Config
from dws.errors import DwsError
from dws.limits import CHUNK_BYTES, LOCATE_MAX_NAMES, MIB
from dws.messages import ClusterStatus, PageStat
from dws.names import name_fault
from dws.nodes.cluster_options import ClusterOptions
from dws.nodes.supervisor import Supervisor
from loadgen import runner
from loadgen.analysis import even
from loadgen.clients import RunError
from loadgen.html_report import to_html
from loadgen.live import LiveTable
from loadgen.plan import Plan, PlanError, in_order_of_popularity
from loadgen.report import Check, Report, Summary, summarise
from loadgen.text import table, to_text

#: What the cluster should reach: page requests a minute by each client, and the busiest server over the mean.
PAGES_A_MINUTE: Final = 300_000
SPREAD: Final = 1.25

#: Small enough that two copies of each spread evenly over four servers.
_BATCH_PAGES: Final = 50
_SITE: Final = Path(__file__).resolve().parent.parent / "examples" / "site"
_SKIPPED_DIRECTORIES: Final = frozenset({"__pycache__", "site-packages", "dist-packages"})


class Options(Struct, frozen=True, kw_only=True):
    site: Path | None = _SITE
    library: Path | None = Path(sysconfig.get_path("stdlib"))
    large_bytes: int = 40 * MIB
    webservers: int = 4
    load_s: float = 12.0
    threads: int = 4
    files: int = 10
    seed: int = 1
    html: Path | None = None
    """Where the report goes as an HTML file."""


def main(options: Options | None = None) -> int:
    """Tell the story; the exit code."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="dws-demo-"))
    code = 1
    try:
        code = Story(options or Options(), directory).tell()
    except (DwsError, PlanError, RunError, OSError) as error:
        print(f"\ndws-loadgen: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted; everything is stopped", file=sys.stderr)
        code = 130
    finally:
        signal.signal(signal.SIGTERM, before)
        _clear(directory, keep_logs=code == 1)
    return code


class Story:
    """The demo, step by step. `say` gets each line."""

    def __init__(self, options: Options, directory: Path, say: Callable[[str], None] | None = None) -> None:
        self._options = options
        self._directory = directory
        self._say = say or (lambda line: print(line, flush=True))
        self._step = 0

    def tell(self) -> int:
        began_s = time.monotonic()
        options = self._options
        self._say(
            "A web site, stored twice on four servers, under load. All of it runs on this machine, on free\n"
            f"ports; the data lie in {self._directory} and are removed at the end. Ctrl-C stops it."
        )
        self._begin(
            "Start the cluster",
            "A balancer, which knows where each page is, and web servers, which hold the pages.",
            "Each is a process of its own; they talk over ZeroMQ sockets.",
        )
        wanted = ClusterOptions(
            data=self._directory / "cluster", webservers=options.webservers, port=0, config=Config(copies=2)
        )
        with Supervisor(wanted, say=self._go_on) as cluster:
            self._introduce(cluster, time.monotonic() - began_s)
            with dws.connect(cluster.endpoint) as client:
                sources = self._store(client)
                checks = [self._check_copies(client, sources)]
                report = self._load(cluster.endpoint, client)
                large = self._read_large(client, sources)
                self._analyse(report, client.status())
        checks += [*self._check_digests(report, large), *self._check_load(summarise(report))]
        code = self._conclude(checks, time.monotonic() - began_s)
        self._write_html(report, checks)
        return code

    # -- the steps ---------------------------------------------------------------------------

    def _introduce(self, cluster: Supervisor, took_s: float) -> None:
        rows = [("", "process", "endpoint")]
        rows += [(node.name, str(node.pid), node.endpoint) for node in cluster.nodes]
        self._lines(table(rows, left=(0, 2)))
        self._go_on(f"All are up and in sync after {took_s:.1f} s.")

    def _store(self, client: dws.Client) -> dict[str, Path]:
        """Upload everything; name → file."""
        self._begin(
            "Store the site",
            f"Pages go up in batches, here of {_BATCH_PAGES}; the pages of a batch appear all at once. A put",
            "returns when two servers have it safely on their disks and the balancer has noted it.",
        )
        sources: dict[str, Path] = {}
        for title, pages in self._collections():
            began_s, size_bytes = time.monotonic(), 0
            for batch in _batches(pages, self._options.seed):
                size_bytes += client.put({name: pages[name] for name in batch}).bytes
            self._go_on(f"{title}: {len(pages):,}, {_pace(size_bytes, time.monotonic() - began_s)}")
            sources |= pages
        return sources

    def _collections(self) -> Iterator[tuple[str, dict[str, Path]]]:
        """(what it is, name → file). The large ones last: they would fill a server's share alone."""
        options, large = self._options, {}
        if options.site and options.site.is_dir():
            yield "pages of the example site", _pages_below(options.site, "")
        else:
            self._go_on("(the example site is not installed here; the rest makes do without it)")
        if options.library:
            library = _pages_below(options.library, "/python")
            large = {name: path for name, path in library.items() if path.stat().st_size > CHUNK_BYTES}
            small = {name: path for name, path in library.items() if name not in large}
            yield "files of Python's own library", small
        noise = self._directory / "noise.bin"
        with noise.open("wb") as file:
            drawn = Random(options.seed)
            for written in range(0, options.large_bytes, MIB):
                file.write(drawn.randbytes(min(MIB, options.large_bytes - written)))
        yield "files of over 1 MiB, one of them made up", {**large, "/large/noise.bin": noise}

    def _check_copies(self, client: dws.Client, sources: dict[str, Path]) -> Check:
        self._begin(
            "Count the copies",
            "Page by page: which live servers hold it, and is its digest that of the file it came from?",
        )
        stats = _stats(client, list(sources))
        copies = Counter(_live_copies(one) for one in stats.values())
        holders = Counter(holder.name for one in stats.values() if one for holder in one.holders)
        wrong = [name for name, one in stats.items() if one and one.record.digest != _digest(sources[name])]
        for count, pages in sorted(copies.items()):
            self._go_on(f"{pages:,} pages have {count} copies")
        self._go_on("pages on " + ", ".join(f"{name}: {count:,}" for name, count in sorted(holders.items())))
        twice = sum(pages for count, pages in copies.items() if count >= 2)
        as_seen = client.status().page_copies
        good = twice == len(sources) and as_seen[0] == as_seen[1] == 0 and not wrong
        text = f"{twice:,} of {len(sources):,} pages have two copies or more on live servers"
        return Check(text + (f"; {len(wrong)} differ from their files: {wrong[0]}" if wrong else ""), good)

    def _load(self, balancer: str, client: dws.Client) -> Report:
        options = self._options
        names = [record.name for record in client.list() if record.size <= CHUNK_BYTES]
        plan = Plan(
            count=None, duration_s=options.load_s, clients=2, threads=options.threads,
            files=min(options.files, len(names)), seed=options.seed,
        )  # fmt: skip
        self._begin(
            "Load",
            f"For {options.load_s:g} s two client processes of {plan.threads} threads ask for random pages,",
            f"{plan.files} a request, out of the {len(names):,} of up to 1 MiB. A thread asks the balancer",
            "where they are, fetches them straight from the web servers and checks every digest.",
        )
        servers = [server.name for server in client.status().servers]
        site = runner.Site(servers, in_order_of_popularity(names, plan.seed))
        with LiveTable(plan) as on_progress:
            report = runner.run(plan, site, balancer, on_progress=on_progress)
        if report.interrupted:
            raise KeyboardInterrupt
        return report

    def _read_large(self, client: dws.Client, sources: dict[str, Path]) -> list[str]:
        """Download what the load left out; the names of pages that did not come back as they were."""
        large = [name for name, path in sources.items() if path.stat().st_size > CHUNK_BYTES]
        self._begin(
            "The large pages",
            f"{len(large)} pages are over 1 MiB: they come in chunks of 1 MiB, each checked as it arrives.",
        )
        began_s, size, wrong = time.monotonic(), 0, []
        for name in large:
            try:
                read_bytes, digest = _read(client, name)
            except DwsError as error:
                self._go_on(f"{name}: {type(error).__name__}: {error}")
                read_bytes, digest = 0, b""
            size += read_bytes
            if digest != _digest(sources[name]):
                wrong.append(name)
        self._go_on(_pace(size, time.monotonic() - began_s))
        return wrong

    def _analyse(self, report: Report, status: ClusterStatus) -> None:
        self._begin("The analysis")
        self._lines(to_text(report))
        for rates in summarise(report).clients:
            number = (rates.client or 0) + 1
            self._go_on(
                f"client {number}: {rates.pages_per_s * 60:,.0f} page requests a minute "
                f"({rates.requests_per_s * 60:,.0f} requests of {report.plan.files} pages)"
            )
        self._go_on("")
        none, one, two, more = status.page_copies
        self._go_on(f"Copies per page: {two:,} have two, {more:,} more, {one:,} one, {none:,} none.")
        self._go_on("")
        self._go_on("The load table, by which the balancer chooses: whom to read from (least download load)")
        self._go_on("and where to store (least upload load). Visits: this period's, and the last one's.")
        self._lines(load_table(status))

    # -- the verdict -------------------------------------------------------------------------

    def _check_digests(self, report: Report, large: Sequence[str]) -> list[Check]:
        summary = summarise(report)
        wrong = sum(one.count for one in summary.failures if one.kind == "IntegrityError") + len(large)
        other = summary.together.failed - sum(
            one.count for one in summary.failures if one.kind == "IntegrityError"
        )
        total = summary.together.requests + summary.together.failed
        return [
            Check(f"{wrong:,} of {summary.together.pages:,} pages came with a wrong digest", not wrong),
            Check(f"{other:,} of {total:,} requests failed", not other and total > 0),
        ]

    def _check_load(self, summary: Summary) -> list[Check]:
        rates = [one.pages_per_s * 60 for one in summary.clients]
        least = min(rates, default=0.0)
        made = " and ".join(f"{rate:,.0f}" for rate in rates)
        return [
            Check(
                f"each client made {PAGES_A_MINUTE:,} page requests a minute or more: {made}",
                least >= PAGES_A_MINUTE,
                must=False,
            ),
            Check(
                f"no server served more than {SPREAD} times the mean: the busiest {summary.spread or 0:.3f}",
                summary.spread is not None and summary.spread <= SPREAD,
                must=False,
            ),
        ]

    def _conclude(self, checks: Sequence[Check], took_s: float) -> int:
        self._begin("Verdict")
        for check in checks:
            mark = "ok  " if check.passed else ("FAIL" if check.must else "not reached:")
            self._go_on(f"{mark} {check.text}")
        failed = any(check.failed for check in checks)
        self._go_on(f"{'Failed' if failed else 'Done'} after {took_s:.1f} s. The cluster is stopped.")
        if not failed:
            self._go_on("`make run` starts one that stays; `dws --help` says what to do with it.")
        return int(failed)

    def _write_html(self, report: Report, checks: Sequence[Check]) -> None:
        """Where it cannot be written, that is told, and no failure."""
        path = self._options.html
        if path is None:
            return
        report.command = ["dws-loadgen", "demo"]
        report.checks = [*checks]
        try:
            path.write_bytes(to_html(report).encode())
        except OSError as error:
            self._go_on(f"(no HTML report: {path}: {error.strerror})")
        else:
            self._go_on(f"The report, with charts, for a browser: {path.resolve()}")

    # -- telling -----------------------------------------------------------------------------

    def _begin(self, title: str, *lines: str) -> None:
        self._step += 1
        self._say(f"\n{self._step}. {title}")
        for line in lines:
            self._go_on(line)

    def _go_on(self, text: str) -> None:
        self._say(f"   {text}" if text else "")

    def _lines(self, text: str) -> None:
        for line in text.split("\n"):
            self._go_on(line)


def load_table(status: ClusterStatus) -> str:
    """Each server's figures, as the balancer has them."""
    rows = [
        ("", "state", "pages", "MB stored", "visits", "last", "waiting", "service ms", "rtt ms", "CPU",
         "download ms", "upload"),
    ]  # fmt: skip
    rows += [
        (
            one.name, one.state, f"{one.pages:,}", f"{one.bytes_stored / 1e6:,.1f}", f"{one.visits:,}",
            f"{one.visits_last_period:,}", f"{one.waiting}", f"{one.service_s * 1000:.3f}",
            f"{one.rtt_s * 1000:.3f}", f"{one.cpu_share:.0%}", f"{one.download_load_s * 1000:.3f}",
            f"{one.upload_load:.2f}",
        )
        for one in sorted(status.servers, key=lambda server: server.name)
    ]  # fmt: skip
    fullest = even([one.bytes_stored for one in status.servers])
    return f"{table(rows, left=(0, 1))}\n  The fullest stores {fullest:.3f} times the mean of bytes."


def _read(client: dws.Client, name: str) -> tuple[int, bytes]:
    """A page's size in bytes and digest, as they came, keeping a chunk at a time."""
    digest, size, chunk = blake3(), 0, memoryview(bytearray(CHUNK_BYTES))
    with client.open(name) as stream:
        while count := stream.readinto(chunk):
            digest.update(chunk[:count])
            size += count
    return size, bytes(digest.digest())


def _pages_below(directory: Path, prefix: str) -> dict[str, Path]:
    """Page name → file, of all regular files that can be read and named."""
    pages = {}
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        if _SKIPPED_DIRECTORIES.intersection(parts[:-1]) or not _is_readable_file(path):
            continue
        name = f"{prefix}/{'/'.join(parts)}"
        if name_fault(name) is None:
            pages[name] = path
    return pages


def _batches(pages: dict[str, Path], seed: int) -> Iterator[list[str]]:
    """Names in batches. Drawn at random, so that those who get a batch get small and large pages alike."""
    names = in_order_of_popularity([*pages], seed)
    large = [name for name in names if pages[name].stat().st_size > CHUNK_BYTES]
    small = [name for name in names if name not in large]
    yield from (small[first : first + _BATCH_PAGES] for first in range(0, len(small), _BATCH_PAGES))
    yield from ([name] for name in large)


def _is_readable_file(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb"):
            return True
    except OSError:
        return False


def _stats(client: dws.Client, names: Sequence[str]) -> dict[str, PageStat | None]:
    found: dict[str, PageStat | None] = {}
    for first in range(0, len(names), LOCATE_MAX_NAMES):
        part = names[first : first + LOCATE_MAX_NAMES]
        found.update(zip(part, client.stat(part), strict=True))
    return found


def _pace(size: int, took_s: float) -> str:
    return f"{size / 1e6:,.1f} MB in {took_s:.2f} s, {size / 1e6 / took_s:,.0f} MB/s"


def _live_copies(page: PageStat | None) -> int:
    return sum(holder.state == "alive" for holder in page.holders) if page else 0


def _digest(path: Path) -> bytes:
    return bytes(blake3(path.read_bytes()).digest())


def _clear(directory: Path, *, keep_logs: bool) -> None:
    logs = directory / "cluster" / "logs"
    if not keep_logs or not logs.is_dir():
        shutil.rmtree(directory, ignore_errors=True)
        return
    kept = Path(tempfile.mkdtemp(prefix="dws-demo-logs-"))
    shutil.copytree(logs, kept, dirs_exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    print(f"The nodes' logs are kept in {kept}.", file=sys.stderr)
