"""Driver processes: started, let go together, their results together.

What lives here: the processes and the pipes to them. What must not: what they do (driver), what it means
(figures).
"""

import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import msgspec
from msgspec import Struct

from loadgen.bench.jobs import Done, Job
from loadgen.bench.quiet import cpu_of
from loadgen.clients import environment

_READY_S: Final = 60.0
#: Beyond what the job itself takes.
_DONE_S: Final = 900.0


class DriverFailed(Exception):
    """A driver ended without a result; the text says how."""


class Measured(Struct):
    """What all drivers of one measurement did together. `cpu`: process → CPU seconds a million units."""

    rate: float
    units: int
    cpu: dict[str, float] = {}
    bad: int = 0
    problem: str = ""
    p50_s: float = 0.0
    p99_s: float = 0.0
    seconds: float = 0.0


def drive(jobs: Sequence[Job], nodes: Sequence[tuple[str, int]] = ()) -> Measured:
    """Do all jobs at once, a process each. nodes: (name, pid) of those whose CPU is to be told, too.

    DriverFailed if one ends without a result.
    """
    with ExitStack() as stack:
        drivers = [stack.enter_context(_Driver(job)) for job in jobs]
        for driver in drivers:
            driver.expect("ready", _READY_S)
        before = cpu_of(nodes)
        for driver in drivers:
            driver.go()
        done = [driver.result() for driver in drivers]
        after = cpu_of(nodes)
    used = {name: after[name] - before[name] for name in after if name in before}
    return together(done, used)


def together(done: Sequence[Done], nodes_cpu_s: dict[str, float]) -> Measured:
    """Rates add up; times are those of the slowest."""
    total = sum(one.total for one in done)
    used = dict(nodes_cpu_s)
    for number, one in enumerate(done):
        used[f"client {number + 1}" if len(done) > 1 else "client"] = one.cpu_s
    return Measured(
        rate=sum(one.units / one.elapsed_s for one in done if one.elapsed_s > 0),
        units=sum(one.units for one in done),
        cpu={name: used_s * 1e6 / total for name, used_s in used.items()} if total else {},
        bad=sum(one.bad for one in done),
        problem=next((one.problem for one in done if one.problem), ""),
        p50_s=max(one.p50_s for one in done),
        p99_s=max(one.p99_s for one in done),
        seconds=max(one.elapsed_s for one in done),
    )


@contextmanager
def serving(what: str) -> Iterator[str]:
    """A bare server's endpoint, while it runs: `echo` or `chunks`."""
    process = _start(what)
    assert process.stdin and process.stdout
    try:
        yield process.stdout.readline().decode().strip()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _start(*arguments: str, errors: Any = None) -> "subprocess.Popen[bytes]":
    """In a session of its own: Ctrl-C reaches us alone, and we end it."""
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen.bench.driver", *arguments], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=errors, env=environment(), start_new_session=True,
    )  # fmt: skip


class _Driver:
    def __init__(self, job: Job) -> None:
        self._job = job

    def __enter__(self) -> "_Driver":
        self._errors = tempfile.TemporaryFile()
        self._process = _start(errors=self._errors)
        self._tell(msgspec.json.encode(self._job))
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, self._errors):
            if stream:
                _closed(stream.close)

    def go(self) -> None:
        self._tell(b"go")

    def expect(self, wanted: str, within_s: float) -> None:
        if self._line(within_s).decode().strip() != wanted:
            raise self._failure()

    def result(self) -> Done:
        line = self._line(_DONE_S)
        if not line:
            raise self._failure()
        return msgspec.json.decode(line, type=Done)

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _line(self, within_s: float) -> bytes:
        """The next line, empty if there is none. A driver says a line at a time and flushes it."""
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], within_s)[0]:
            return b""
        return self._process.stdout.readline()

    def _failure(self) -> DriverFailed:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        what = type(self._job).__name__.lower()
        return DriverFailed(f"{what}: {said[-1] if said else 'the process ended without a result'}")


def _closed(close: Callable[[], None]) -> None:
    try:
        close()
    except BrokenPipeError:
        return
