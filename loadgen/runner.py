"""A run: client processes, started together, watched, stopped, their results in one report.

What lives here: looking the site over, the processes and the pipes to them. What
must not: the load itself (worker), the draw (plan), the judgement (report).
Clients are executed, never forked, and none outlives the runner: a worker whose
standard input ends, stops.
"""

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import msgspec
from msgspec import Struct

import dws
from dws.errors import ConfigError, DwsError, TimedOut, Unreachable
from dws.limits import BATCH_MAX_BYTES, GET_MAX_BYTES, LOCATE_MAX_NAMES
from dws.names import name_fault
from loadgen.plan import Plan, PlanError, in_order_of_popularity, upload_name
from loadgen.report import ClientResult, Report
from loadgen.worker import Fault, Finished, Lines, Progress, Ready, Said, Work

#: For processes to start and connect, beyond what one request may take.
START_WITHIN_S: Final = 30.0
#: From the word to the start, so that it has reached all.
HEAD_START_S: Final = 0.05
STOP_WITHIN_S: Final = 2.0

UNREACHABLE: Final = frozenset({Unreachable.__name__, TimedOut.__name__})


class RunError(Exception):
    """The load could not be made; the text, one line, says why. `unreachable`: nobody answered."""

    def __init__(self, text: str, *, unreachable: bool = False) -> None:
        super().__init__(text)
        self.unreachable = unreachable


class Site(Struct):
    """What there is to load. `names`: the most popular first; `too_large`: pages left out."""

    servers: list[str]
    names: list[str]
    too_large: int = 0


# -- before -----------------------------------------------------------------------------------


def survey(
    balancer: str, plan: Plan, wanted: Sequence[str] | None = None, timeout_s: float = 10.0
) -> Site:
    """Ask the cluster for its servers and pages. `wanted`: choose from these alone, in their order."""
    try:
        with dws.connect(balancer, timeout_s=timeout_s) as client:
            servers = [server.name for server in client.status().servers if server.state == "alive"]
            if plan.request == "upload":
                return Site(servers, [])
            if wanted is not None:
                return Site(servers, _known(client, list(dict.fromkeys(wanted))))
            found = {record.name: record.size for record in client.list()}
    except ConfigError as error:
        raise PlanError(str(error)) from error
    except DwsError as error:
        raise RunError(str(error), unreachable=type(error).__name__ in UNREACHABLE) from error
    if not found:
        raise PlanError(f"{balancer} has no pages to download: put some there first, `dws put DIRECTORY`")
    names = [name for name, size in found.items() if size <= GET_MAX_BYTES]
    return Site(servers, in_order_of_popularity(names, plan.seed), too_large=len(found) - len(names))


def _known(client: "dws.Client", wanted: list[str]) -> list[str]:
    if not wanted:
        raise PlanError("the list of names is empty")
    faults = [(name, fault) for name in wanted if (fault := name_fault(name))]
    if faults:
        raise PlanError(f"{faults[0][0]!r} in the list of names is none: it {faults[0][1]}")
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


# -- the processes ---------------------------------------------------------------------------------


class Process:
    """One client process and the pipes to it."""

    def __init__(self, number: int, errors: IO[bytes]) -> None:
        self.number = number
        self._errors = errors
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "loadgen", "worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            process_group=0,  # Ctrl-C reaches the runner alone, which tells its workers
        )
        assert self.popen.stdin and self.popen.stdout
        self._commands = self.popen.stdin
        self.output = self.popen.stdout
        self._lines = Lines(self.output.fileno())

    def tell(self, line: bytes) -> None:
        """A process that has ended is not told anything; its end shows when it is listened to."""
        try:
            self._commands.write(line + b"\n")
            self._commands.flush()
        except BrokenPipeError:
            pass

    def hear(self) -> Iterator[Said]:
        """What it has said; RunError if it says that it cannot, or ended without a word."""
        self._lines.feed()
        while (line := self._lines.buffered()) is not None:
            said = msgspec.json.decode(line, type=Said)
            if isinstance(said, Fault):
                text = f"client {self.number + 1}: {said.kind}: {said.text}"
                raise RunError(text, unreachable=said.kind in UNREACHABLE)
            yield said
        if self._lines.ended:
            raise RunError(f"client {self.number + 1} ended early: {self._last_words()}")

    def end(self) -> None:
        """Make sure that it has ended, and close the pipes."""
        try:
            self._commands.close()
        except BrokenPipeError:
            pass
        try:
            self.popen.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.output.close()

    def _last_words(self) -> str:
        status = self.popen.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"status {status}: {said}"


def _environment() -> dict[str, str]:
    """This process's, with this very package importable, from wherever it was started."""
    here = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, path] if path else [here])}


# -- a run ---------------------------------------------------------------------------------------------


OnProgress = Callable[[float, Progress], None]


def run(
    plan: Plan,
    site: Site,
    balancer: str,
    *,
    files: Sequence[tuple[str, str]] = (),
    prefix: str = "/load",
    timeout_s: float = 10.0,
    on_progress: OnProgress | None = None,
) -> Report:
    """Make the load and report. SIGINT or SIGTERM ends it early, with what was measured until then.

    `on_progress` is called now and then with the seconds since the start and the
    sum over all clients. RunError if a client process cannot start or ends early.
    """
    if plan.request != "upload" and plan.files > len(site.names):
        raise PlanError(f"{plan.files} pages a request, but there are {len(site.names):,} to choose from")
    with ExitStack() as stack:
        stopping = stack.enter_context(interruptible())
        processes: list[Process] = []
        for number in range(plan.clients):
            process = Process(number, stack.enter_context(tempfile.TemporaryFile()))
            stack.callback(process.end)
            processes.append(process)
        for process in processes:
            work = Work(plan, process.number, balancer, timeout_s, site.names, list(files), prefix)
            process.tell(msgspec.json.encode(work))
        conversation = Conversation(processes, stack)
        conversation.until_ready(START_WITHIN_S + timeout_s)
        started = datetime.now(UTC)
        results = conversation.until_finished(stopping, on_progress)
        return Report(
            started=started.isoformat(timespec="seconds"),
            made_by=f"dws-loadgen {dws.__version__}",
            plan=plan,
            pages=len(site.names),
            servers=site.servers,
            interrupted=stopping.is_set(),
            clients=results,
            prefix=prefix if plan.request != "download" else "",
        )


class Conversation:
    """The runner's side of the pipes: all are ready, all start, all finish."""

    def __init__(self, processes: Sequence[Process], stack: ExitStack) -> None:
        self._processes = processes
        self._selector = stack.enter_context(selectors.DefaultSelector())
        for process in processes:
            self._selector.register(process.output, selectors.EVENT_READ, process)

    def until_ready(self, within_s: float) -> None:
        waiting = {process.number for process in self._processes}
        deadline = time.monotonic() + within_s
        while waiting:
            if time.monotonic() > deadline:
                raise RunError(f"client {min(waiting) + 1} was not ready to start after {within_s:.0f} s")
            waiting -= {process.number for process, said in self._heard() if isinstance(said, Ready)}

    def until_finished(self, stopping: threading.Event, on_progress: OnProgress | None) -> list[ClientResult]:
        start_s = time.monotonic() + HEAD_START_S
        self._tell(f"go {start_s!r}".encode())
        results: dict[int, ClientResult] = {}
        latest: dict[int, Progress] = {}
        told = False
        while len(results) < len(self._processes):
            if stopping.is_set() and not told:
                self._tell(b"stop")
                told = True
            for process, said in self._heard():
                if isinstance(said, Finished):
                    results[process.number] = said.result
                    self._selector.unregister(process.output)
                elif isinstance(said, Progress):
                    latest[process.number] = said
                    if on_progress:
                        on_progress(time.monotonic() - start_s, _together(latest))
        return [results[number] for number in sorted(results)]

    def _tell(self, line: bytes) -> None:
        for process in self._processes:
            process.tell(line)

    def _heard(self) -> Iterator[tuple[Process, Said]]:
        for key, _ in self._selector.select(timeout=0.1):
            for said in key.data.hear():
                yield key.data, said
                if isinstance(said, Finished):
                    break  # its last word: what follows is the end of the pipe


def _together(latest: dict[int, Progress]) -> Progress:
    return Progress(
        sum(one.requests for one in latest.values()),
        sum(one.pages for one in latest.values()),
        sum(one.failed for one in latest.values()),
    )


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
