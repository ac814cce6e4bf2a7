"""After the last round: every page is read back from every holder, and the history is judged.

What lives here: both, and what they find. What must not: making load, or waiting for the cluster to be whole
again (drill.py).

A client is content with one good copy. Here each server that the balancer names as a holder is asked itself.
"""

import random
import time
from collections.abc import Iterator
from typing import Any, Final

from blake3 import blake3

import dws
from dws import history
from dws.client import Directory, Operation, Send
from dws.download import LocatePages, Page
from dws.errors import DwsError
from dws.limits import CHUNK_BYTES, LOCATE_MAX_NAMES, MIB
from dws.messages import Fetch, Fetched, Read, ReadData
from dws.nodes.runner import Runner
from loadgen.drill.bodies import WrongBytesError, number_of
from loadgen.drill.report import DrillReport, ReadBack
from loadgen.drill.workload import Workload

_ANSWER_S: Final = 10.0
_FETCH_PAGES: Final = 200
PROBLEMS_KEPT: Final = 50


class ReadFrom(Operation):
    """Pages as this one server has them. Result: name → bytes, None where it does not hold the page."""

    def __init__(self, directory: Directory, deadline: float, server: int, pages: list[Page]) -> None:
        super().__init__(directory, deadline)
        self._server = server
        self._waiting = list(reversed(pages))
        self._asked: list[Page] = []
        self._parts: list[bytes] = []
        self._found: dict[str, bytes | None] = {}

    def start(self, now: float) -> list[Send]:
        return self._next()

    def _next(self) -> list[Send]:
        self._asked, self._parts = [], []
        size_bytes = 0
        while self._waiting and len(self._asked) < _FETCH_PAGES:
            size_bytes += self._waiting[-1].size
            if self._asked and size_bytes > MIB:
                break
            self._asked.append(self._waiting.pop())
        if not self._asked:
            self.finish(self._found)
            return []
        return self._ask()

    def _ask(self) -> list[Send]:
        first, have = self._asked[0], sum(map(len, self._parts))
        request: Any = Fetch([(page.name, page.version) for page in self._asked])
        if first.size > CHUNK_BYTES:
            request = Read(first.name, first.version, have, min(CHUNK_BYTES, first.size - have))
        return [Send(self._server, request, "", _ANSWER_S)]

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        if isinstance(message, Fetched):
            begin = 0
            for page, size in zip(self._asked, message.sizes, strict=True):
                self._found[page.name] = bytes(data[begin : begin + size]) if size >= 0 else None
                begin += max(0, size)
            return self._next()
        first = self._asked[0]
        if not isinstance(message, ReadData):
            self._found |= {page.name: None for page in self._asked}
            return self._next()
        self._parts.append(bytes(data))
        if data and sum(map(len, self._parts)) < first.size:
            return self._ask()
        self._found[first.name] = b"".join(self._parts)
        return self._next()

    def unanswered(self, tag: Any, now: float) -> list[Send]:
        return self._ask()


class Reader:
    """For one thread. endpoint: the balancer's."""

    def __init__(self, endpoint: str) -> None:
        self._runner = Runner(endpoint, None, random.Random())

    def close(self) -> None:
        self._runner.close()

    def locate(self, names: list[str]) -> list[Page]:
        """Where these pages are; all must be there."""
        deadline = time.monotonic() + _ANSWER_S
        found: list[Page] = self._runner.run(LocatePages(self._runner.directory, deadline, names))
        return found

    def name(self, server: int) -> str:
        return self._runner.directory.name(server)

    def read(self, server: int, pages: list[Page]) -> dict[str, bytes | None]:
        size_bytes = sum(page.size for page in pages)
        deadline = time.monotonic() + _ANSWER_S + size_bytes / MIB
        operation = ReadFrom(self._runner.directory, deadline, server, pages)
        found: dict[str, bytes | None] = self._runner.run(operation)
        return found


def read_back(endpoint: str, workload: Workload, report: DrillReport, copies: int) -> None:
    """Look at every page from outside, and judge what was recorded; the findings go into the report."""
    found = report.read_back = ReadBack()
    try:
        _look(endpoint, workload, found, copies)
    except DwsError as error:
        found.problems.append(f"reading back from every holder: {error!r}")
    del found.problems[PROBLEMS_KEPT:]
    _judge(workload, report)


def _look(endpoint: str, workload: Workload, found: ReadBack, copies: int) -> None:
    changing = [name for family in workload.families for name in family]
    names = [*workload.initial, *changing]
    with dws.connect(endpoint, timeout_s=_ANSWER_S) as client:
        there = {name for name, stat in zip(names, client.stat(names), strict=True) if stat is not None}
        lost = [name for name in workload.initial if name not in there]
        found.problems += [f"{name}: lost, though its put was acknowledged" for name in lost[:PROBLEMS_KEPT]]
        # These go into the history: what is visible now must be what somebody put last.
        workload.mark()
        for name in changing:
            workload.get(client, [name], random.Random(), "read-back")
    found.problems += [f"reading back failed: {error}" for error in workload.mark().errors]
    reader = Reader(endpoint)
    try:
        _compare(reader, [name for name in names if name in there], workload, found, copies)
    finally:
        reader.close()


def _compare(reader: Reader, names: list[str], workload: Workload, found: ReadBack, copies: int) -> None:
    for some in _parts(names, LOCATE_MAX_NAMES):
        pages = _located(reader, some, found)
        found.pages += len(pages)
        for page in pages:
            if len(page.holders) < copies:
                where = ", ".join(reader.name(holder) for holder in page.holders)
                found.problems.append(f"{page.name}: {len(page.holders)} of {copies} copies, on {where}")
        for server in sorted({holder for page in pages for holder in page.holders}):
            held = [page for page in pages if server in page.holders]
            for page, data in zip(held, reader.read(server, held).values(), strict=True):
                fault = _fault(page, data, workload.initial.get(page.name))
                if fault:
                    found.problems.append(f"{page.name} on {reader.name(server)}: {fault}")
                found.copies += 1
                found.bytes += page.size


def _located(reader: Reader, names: list[str], found: ReadBack) -> list[Page]:
    """Where pages are; one that nobody holds is a problem, and does not hide the others."""
    try:
        return reader.locate(names)
    except DwsError as error:
        if len(names) == 1:
            found.problems.append(f"{names[0]} cannot be read: {error}")
            return []
        half = len(names) // 2
        return _located(reader, names[:half], found) + _located(reader, names[half:], found)


def _fault(page: Page, data: bytes | None, wanted: int | None) -> str:
    """What is wrong with a copy; empty if nothing is."""
    if data is None:
        return "is not there, though the balancer names it as a holder"
    if blake3(data).digest() != page.digest:
        return "has a wrong digest"
    try:
        number = number_of(page.name, data)
    except WrongBytesError as error:
        return str(error)
    return f"is put {number}'s, not {wanted}'s" if wanted is not None and number != wanted else ""


def _judge(workload: Workload, report: DrillReport) -> None:
    """Could what the clients saw have happened?"""
    verdict = history.check(workload.history)
    report.operations = len(workload.history)
    report.undecided = len(verdict.undecided)
    report.problems += [str(violation) for violation in verdict.violations[:PROBLEMS_KEPT]]
    report.problems += workload.wrong[:PROBLEMS_KEPT]


def _parts(names: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(names), size):
        yield names[first : first + size]
