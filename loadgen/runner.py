"""A run: client processes, started together, watched, stopped, their results in one report.

What lives here: looking the site over, and the course of a run. What must not: the processes and the pipes
to them (clients), the load itself (worker), the draw (plan), the judgement (report).
"""

import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

import dws
from dws.errors import ConfigError, DwsError
from dws.limits import BATCH_MAX_BYTES, GET_MAX_BYTES, LOCATE_MAX_NAMES
from dws.names import name_fault
from loadgen.clients import UNREACHABLE, Conversation, OnProgress, Process, RunError
from loadgen.http_scenario import check_url, servers_behind
from loadgen.plan import Plan, PlanError, file_of, in_order_of_popularity, upload_name
from loadgen.report import Report
from loadgen.resources import Watch, cores_busy, load_book, machine
from loadgen.talk import Work
from loadgen.traces import VERSION, Header, check_recordable, downloads_of, merge

#: For processes to start and connect, beyond what one request may take.
START_WITHIN_S: Final = 30.0
#: From the word to the start, so that it has reached all.
HEAD_START_S: Final = 0.05


class Site(Struct):
    """What there is to load. `names`: the most popular first; `too_large`: pages left out; `rounds`: what
    downloads ask for in turn, if a file says so."""

    servers: list[str]
    names: list[str]
    too_large: int = 0
    rounds: list[list[str]] = []


# -- before -----------------------------------------------------------------------------------


def survey(
    balancer: str,
    plan: Plan,
    wanted: Sequence[str] | None = None,
    timeout_s: float = 10.0,
    http: str = "",
) -> Site:
    """Ask the cluster for its servers and pages.

    wanted: choose from these alone, in their order.
    http: the URL that the load will go to. Then the balancer is asked only for what this and `wanted` do not
        tell, so that other HTTP servers can be loaded, too.
    RunError, `unreachable`, if nobody answers; PlanError if there are no such pages.
    """
    rounds: list[list[str]] = []
    if (source := file_of(plan.choice)) and plan.request != "upload":
        if wanted is not None:
            raise PlanError(f"a list of names and {plan.choice!r}: only one of them can say what to load")
        rounds = downloads_of(source, plan.files)
        wanted = [name for names in rounds for name in names]
    site = _survey(balancer, plan, wanted, timeout_s, http)
    site.rounds = rounds
    return site


def _survey(balancer: str, plan: Plan, wanted: Sequence[str] | None, timeout_s: float, http: str) -> Site:
    if http:
        servers = _behind(http, timeout_s)
        if plan.request == "upload":
            return Site(servers, [])
        if wanted is not None:
            return Site(servers, _checked(wanted))
    try:
        with dws.connect(balancer, timeout_s=timeout_s) as client:
            servers = [server.name for server in client.status().servers if server.state == "alive"]
            if plan.request == "upload":
                return Site(servers, [])
            if wanted is not None:
                return Site(servers, _known(client, wanted))
            found = {record.name: record.size for record in client.list()}
    except ConfigError as error:
        raise PlanError(str(error)) from error
    except DwsError as error:
        raise RunError(str(error), unreachable=type(error).__name__ in UNREACHABLE) from error
    if not found:
        raise PlanError(f"{balancer} has no pages to download: put some there first, `dws put DIRECTORY`")
    names = [name for name, size in found.items() if size <= GET_MAX_BYTES]
    return Site(servers, in_order_of_popularity(names, plan.seed), too_large=len(found) - len(names))


def _behind(url: str, timeout_s: float) -> list[str]:
    """The servers behind a gateway."""
    try:
        return sorted(servers_behind(check_url(url), timeout_s).values())
    except (OSError, HTTPException) as error:
        text = f"no answer from {url}: {str(error) or type(error).__name__}"
        raise RunError(" ".join(text.split()), unreachable=True) from error


def _checked(wanted: Sequence[str]) -> list[str]:
    """These names, each once; PlanError if one is no name."""
    if not wanted:
        raise PlanError("the list of names is empty")
    faults = [(name, fault) for name in wanted if (fault := name_fault(name))]
    if faults:
        raise PlanError(f"{faults[0][0]!r} in the list of names is none: it {faults[0][1]}")
    return list(dict.fromkeys(wanted))


def _known(client: "dws.Client", names: Sequence[str]) -> list[str]:
    wanted = _checked(names)
    missing: list[str] = []
    for first in range(0, len(wanted), LOCATE_MAX_NAMES):
        part = wanted[first : first + LOCATE_MAX_NAMES]
        missing += [name for name, stat in zip(part, client.stat(part), strict=True) if stat is None]
    if missing:
        raise PlanError(
            f"{len(missing):,} of {len(wanted):,} names are not in the cluster, the first: {missing[0]}"
        )
    return wanted


def files_below(directory: Path, plan: Plan, prefix: str) -> list[tuple[str, str]]:
    """(path below `directory`, path) of every file; PlanError where one could not be uploaded."""
    found: list[tuple[str, str]] = []
    sizes: list[int] = []
    longest = upload_name(prefix, plan.clients, plan.threads, plan.count or 10**9, "")
    for path in sorted(directory.rglob("*")):
        leaf = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise PlanError(f"{path} is no regular file; symbolic links and devices are not uploaded")
        if path.is_file():
            fault = name_fault(longest + leaf)
            if fault:
                raise PlanError(f"{leaf!r} in {directory} makes no page name: it {fault}")
            found.append((leaf, str(path)))
            sizes.append(path.stat().st_size)
    if not found:
        raise PlanError(f"{directory} holds no files to upload")
    most = sum(sorted(sizes)[-plan.files :])
    if plan.files > 1 and most > BATCH_MAX_BYTES:
        raise PlanError(
            f"{plan.files} files of {directory} can be {most:,} bytes, over the bound of one batch, "
            f"{BATCH_MAX_BYTES:,} bytes: ask for fewer a request"
        )
    return found


# -- a run ---------------------------------------------------------------------------------------------


def run(
    plan: Plan,
    site: Site,
    balancer: str,
    *,
    files: Sequence[tuple[str, str]] = (),
    prefix: str = "/load",
    http: str = "",
    timeout_s: float = 10.0,
    start_at: datetime | None = None,
    idle_s: float = 1.0,
    record: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Make the load and report. SIGINT or SIGTERM ends it early, with what was measured until then.

    http: ask at this URL, a gateway's or any other HTTP server's, instead of the balancer, a GET or PUT
        for each page. The site comes from `survey` with the same URL.
    start_at: when to begin to count, so that runners on several machines begin together (plan.when reads it
        from text); the plan's warm-up comes before it. None: as soon as all is ready.
    idle_s: how long to look at the cluster at rest, before anything is asked of it, for its nodes' idle use.
        0: its nodes are not looked at at all, under load neither.
    record: a file for the trace of the run's requests. See traces.
    on_progress: called now and then with the seconds since the start, negative before it, and the sum
        over all clients.
    RunError if a client process cannot start or ends early, if `start_at` has passed when all are ready, or
    if the trace cannot be written.
    """
    if plan.request != "upload" and not site.rounds and plan.files > len(site.names):
        raise PlanError(f"{plan.files} pages a request, but there are {len(site.names):,} to choose from")
    http = check_url(http) if http else ""
    work = Work(plan, 0, balancer, timeout_s, site.names, list(files), prefix, http, rounds=site.rounds)
    watch = Watch(balancer, gateway=http) if idle_s else None
    if record:
        check_recordable(plan)
        try:
            with tempfile.TemporaryDirectory(prefix="dws-trace-", dir=record.parent) as parts:
                work.record = parts
                report = _run(work, watch, idle_s, start_at, on_progress)
                merge(Path(parts), record, Header(VERSION, report.made_by, report.started, plan=plan))
        except OSError as error:
            raise RunError(f"the trace {record} cannot be written: {error.strerror or error}") from error
    else:
        report = _run(work, watch, idle_s, start_at, on_progress)
    report.servers = site.servers
    report.http = http
    report.prefix = prefix if plan.request != "download" else ""
    report.book = load_book(balancer) if watch else []
    return report


def run_scenario(
    plan: Plan,
    scenario: str,
    endpoint: str,
    *,
    options: Mapping[str, str] | None = None,
    names: Sequence[str] = (),
    timeout_s: float = 10.0,
    start_at: datetime | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """As `run`, against a service that need not be a dws cluster: see router_scenario.

    scenario: `package.module:name` or `path/to/file.py:name`, which every client process imports and calls
        with its Work, a thread's number and a zmq.Context; what it returns is that thread's Scenario.
    endpoint: given to the scenario as `work.endpoint`; `options` and `names`, as they are.
    """
    work = Work(plan, 0, endpoint, timeout_s, list(names), [], "", "", scenario, dict(options or {}))
    return _run(work, None, 0.0, start_at, on_progress)


def _run(
    work: Work, watch: Watch | None, idle_s: float, start_at: datetime | None, on_progress: OnProgress | None
) -> Report:
    plan = work.plan
    with ExitStack() as stack:
        stopping = stack.enter_context(interruptible())
        here = machine()
        if watch:
            stack.callback(watch.end)
            watch.idle(idle_s, stopping.wait)
        works = [replace(work, client=number) for number in range(plan.clients)]
        conversation = Conversation([_execute(work, stack) for work in works], stack)
        conversation.until_ready(START_WITHIN_S + work.timeout_s)
        start_s, started = _start(plan, start_at)
        if watch:
            watch.begin(start_s)
        before = cores_busy()
        results = conversation.until_finished(start_s, stopping, on_progress)
        after = cores_busy()
        busy = [one.cpu_s / one.elapsed_s for one in results if one.elapsed_s]
        return Report(
            started=started.isoformat(timespec="seconds"),
            made_by=f"dws-loadgen {dws.__version__}",
            plan=plan,
            pages=len(work.names),
            servers=[],
            interrupted=stopping.is_set(),
            clients=results,
            nodes=watch.end() if watch else [],
            machine=here,
            generator_cpu_share=max(busy, default=0.0),
            machine_cpu_share=(after[0] - before[0]) / max(after[1] - before[1], 1e-9),
            warmup_s=plan.warmup_s,
        )


def _start(plan: Plan, start_at: datetime | None) -> tuple[float, datetime]:
    """The moment at which counting begins: on the monotonic clock, and on the wall."""
    now, now_s = datetime.now(UTC), time.monotonic()
    soonest_s = HEAD_START_S + plan.warmup_s
    in_s = soonest_s if start_at is None else (start_at - now).total_seconds()
    if in_s < soonest_s:
        raise RunError(
            f"the clients were ready {soonest_s - in_s:.1f} s too late to start at {start_at}; "
            f"connecting takes some seconds, and the warm-up {plan.warmup_s:g} s"
        )
    return now_s + in_s, now + timedelta(seconds=in_s)


def _execute(work: Work, stack: ExitStack) -> Process:
    """A client process that does this work; `stack` ends it."""
    errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    process = Process(work.client, errors)
    stack.callback(process.end)
    process.tell(msgspec.json.encode(work))
    return process


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Within, the first SIGINT or SIGTERM sets the event; a second one does what it did before."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopping
    finally:
        restore()
