"""Traces: what was asked for, request by request, in files. And lists of names, which say less.

What lives here: the format, recording into it, reading it. What must not: who asks for what (plan), the
loop that is recorded (threads). docs/traces.md describes the format to others.

Each thread writes a file of its own while it makes requests, so that nobody waits for another and memory
does not grow; at the end the runner makes one of them, in order.
"""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from loadgen.plan import Kind, Plan, PlanError
from loadgen.scenarios import PageRequest

VERSION: Final = 1
#: Of a trace that is recorded or read, and names of a list. So many are in memory when they are read.
REQUESTS_MAX: Final = 1_000_000
#: Threads of all clients together that can be recorded: each has a file open.
THREADS_MAX: Final = 512


class Header(Struct):
    """A trace's first line."""

    trace: int
    made_by: str = ""
    started: str = ""
    """UTC, ISO 8601: `at_s` counts from this moment."""
    complete: bool = True
    """Whether all requests are in it: no trace holds more than REQUESTS_MAX."""
    plan: Plan | None = None


class Asked(Struct, omit_defaults=True):
    """Each other line: one request. Those that are recorded come in the order of `at_s`."""

    at_s: float
    """When it started, in seconds; of open load, when it was meant to."""
    kind: Kind
    names: list[str]
    sizes: list[int] = []
    """Of an upload's pages."""
    client: int = 0
    thread: int = 0


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Asked)


# -- recording ---------------------------------------------------------------------------


class Recorder:
    """One thread's requests, into a file of its own in `directory`."""

    def __init__(self, directory: str, plan: Plan, client: int, thread: int) -> None:
        self._client, self._thread = client, thread
        self._left = REQUESTS_MAX // (plan.clients * plan.threads)
        self._file = Path(directory, f"{client}-{thread}.part").open("wb")  # noqa: SIM115

    def note(self, at_s: float, kind: Kind, request: PageRequest) -> None:
        """A request that started at `at_s`, later than those before."""
        # One beyond what is kept is written, too, for `merge` to see that there were more.
        if self._left < 0:
            return
        self._left -= 1
        sizes = [] if isinstance(request, list) else [_size(source) for source in request.values()]
        asked = Asked(at_s, kind, list(request), sizes, self._client, self._thread)
        self._file.write(_ENCODER.encode(asked) + b"\n")

    def close(self) -> None:
        self._file.close()


def _size(source: bytes | Path) -> int:
    return source.stat().st_size if isinstance(source, Path) else len(source)


def check_recordable(plan: Plan) -> None:
    """PlanError if its threads are too many."""
    threads = plan.clients * plan.threads
    if threads > THREADS_MAX:
        raise PlanError(f"a trace of {threads:,} threads: {THREADS_MAX} at most can be recorded")


def merge(directory: Path, path: Path, header: Header) -> None:
    """One trace at `path` of what the recorders left in `directory`; OSError if it cannot be written."""
    parts = sorted(directory.glob("*.part"))
    most = REQUESTS_MAX // max(1, len(parts))
    with ExitStack() as stack:
        files = [stack.enter_context(part.open("rb")) for part in parts]
        header.complete = all(_lines_up_to(part, most + 1) <= most for part in parts)
        whole = stack.enter_context(path.open("wb"))
        whole.write(_ENCODER.encode(header) + b"\n")
        for _, line in heapq.merge(*(_timed(file, most) for file in files)):
            whole.write(line)


def _timed(lines: "Iterator[bytes]", most: int) -> Iterator[tuple[float, bytes]]:
    for _, line in zip(range(most), lines, strict=False):
        yield _DECODER.decode(line).at_s, line


def _lines_up_to(path: Path, most: int) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in zip(range(most), file, strict=False))


# -- reading -----------------------------------------------------------------------------


def read_trace(path: str) -> list[Asked]:
    """The requests of a trace, in its order; PlanError, with the line, if it is none."""
    found: list[Asked] = []
    try:
        with Path(path).open("rb") as file:
            _check_header(path, file.readline())
            for number, line in enumerate(file, 2):
                if len(found) >= REQUESTS_MAX:
                    raise PlanError(f"{path} holds more than {REQUESTS_MAX:,} requests")
                found.append(_asked(path, number, line))
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror or error}") from None
    return found


def _check_header(path: str, line: bytes) -> None:
    try:
        version = msgspec.json.decode(line, type=Header).trace
    except (msgspec.MsgspecError, PlanError):
        raise PlanError(f"{path} is no trace: its first line is none of a trace's") from None
    if version != VERSION:
        raise PlanError(f"{path} is a trace of version {version}; this program reads version {VERSION}")


def _asked(path: str, number: int, line: bytes) -> Asked:
    try:
        asked = _DECODER.decode(line)
    except msgspec.MsgspecError as error:
        raise PlanError(f"{path}, line {number}: {' '.join(str(error).split())}") from None
    if not asked.names:
        raise PlanError(f"{path}, line {number}: a request for nothing")
    return asked


def read_names(path: str | Path) -> list[str]:
    """The lines of a file of names; those that are empty, or start with #, are passed over."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise PlanError(f"{path} cannot be read as UTF-8 text: {error}") from None
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror or error}") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if len(names) > REQUESTS_MAX:
        raise PlanError(f"{path} holds more than {REQUESTS_MAX:,} names")
    return names


def downloads_of(choice: tuple[str, str], files: int) -> list[list[str]]:
    """What downloads ask for, one after the other, with a choice `list:FILE` or `trace:FILE`.

    A list gives `files` names a request, and is begun again where it ends; a trace gives its downloads.
    """
    source, path = choice
    if source == "trace":
        found = [asked.names for asked in read_trace(path) if asked.kind == "download"]
        if not found:
            raise PlanError(f"{path} holds no downloads")
        return [_different(names) for names in found]
    names = read_names(path)
    if files > len(set(names)):
        raise PlanError(f"{files} pages a request, but {path} names {len(set(names)):,}")
    return [_different(_from(names, first, files)) for first in range(0, len(names), files)]


def _from(names: Sequence[str], first: int, count: int) -> Iterator[str]:
    return (names[place % len(names)] for place in range(first, first + count))


def _different(names: "Sequence[str] | Iterator[str]") -> list[str]:
    """A request names a page once."""
    return list(dict.fromkeys(names))
