"""A report: what was measured, what is concluded from it, as JSON.

What lives here: the report as a whole and its JSON, for `merge`, `compare` and other people's programs.
What must not: the parts' shapes (measured, analysis), text and HTML (text, html_report), files.
"""

from typing import Final

import msgspec
from msgspec import Struct

from loadgen.analysis import Summary, summarise
from loadgen.doubt import Limit
from loadgen.measured import (
    BookEntry,
    ClientResult,
    Failure,
    Interval,
    Machine,
    NodeSample,
    NodeUse,
    Tally,
    merge_failures,
)
from loadgen.plan import Plan

__all__ = [
    "SCHEMA",
    "Baseline",
    "BookEntry",
    "Check",
    "ClientResult",
    "Failure",
    "Interval",
    "Machine",
    "NodeSample",
    "NodeUse",
    "Report",
    "ReportError",
    "Summary",
    "Tally",
    "from_json",
    "merge_failures",
    "summarise",
    "to_json",
]

SCHEMA: Final = 2
#: Schema 1 is schema 2 without the fields that have defaults here.
READABLE: Final = (1, SCHEMA)


class ReportError(ValueError):
    """This is no report that can be read; the text, one line, says why."""


class Check(Struct, frozen=True):
    """A threshold, as it was given, and what came of it. `said`: the figure, or why there is none.

    must: if not set, missing it is told, and is no failure.
    """

    text: str
    passed: bool
    said: str = ""
    must: bool = True

    @property
    def failed(self) -> bool:
        return self.must and not self.passed


class Baseline(Struct, frozen=True):
    """The figures of another run that this one is measured against; `caveats`: what keeps the two apart."""

    name: str
    requests_per_s: float
    pages_per_s: float
    bytes_per_s: float
    caveats: list[str] = []


class Report(Struct):
    started: str
    """UTC, ISO 8601."""
    made_by: str
    plan: Plan
    pages: int
    """How many pages downloads chose from."""
    servers: list[str]
    """The web servers that were alive at the start."""
    interrupted: bool
    clients: list[ClientResult]
    prefix: str = ""
    """Where uploads went."""
    http: str = ""
    """The URL that was asked, instead of the balancer and the web servers by ZeroMQ."""
    summary: Summary | None = None
    nodes: list[NodeUse] = []
    book: list[BookEntry] = []
    machine: Machine | None = None
    command: list[str] = []
    """What to type to run it again."""
    generator_cpu_share: float = 0.0
    """The busiest client process's CPU time over the time it took: 1 is a whole core."""
    machine_cpu_share: float = 0.0
    """Of all cores of the generator's machine, with whatever ran there: 1 is never idle, 0 not known."""
    warmup_s: float = 0.0
    """Load that came before the start and is counted nowhere."""
    baseline: Baseline | None = None
    checks: list[Check] = []
    merged: list[str] = []
    """The hosts' reports that this one is made of."""
    doubts: list[Limit] = []
    """What those of them were limited by that measured no capacity."""
    schema: int = SCHEMA


# -- JSON -------------------------------------------------------------------------------------


def to_json(report: Report) -> bytes:
    """The report with its summary. The histograms are in it, so that reports can be merged.

    A field a line: to be looked at where it is short, and small where it is long.
    """
    whole = msgspec.structs.replace(report, summary=summarise(report), schema=SCHEMA)
    encode = msgspec.json.encode
    lines = [f'  "{name}": '.encode() + encode(getattr(whole, name)) for name in whole.__struct_fields__]
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def from_json(text: bytes) -> Report:
    """The report that `text` holds, its summary worked out anew; ReportError if it is none, or too new."""
    try:
        schema = msgspec.json.decode(text, type=_Schema).schema
        if schema not in READABLE:
            raise ReportError(f"a report of schema {schema}; this version reads schemas 1 to {SCHEMA}")
        read = msgspec.json.decode(text, type=Report)
    except msgspec.MsgspecError as error:
        raise ReportError(f"not a report of dws-loadgen: {_one_line(error)}") from None
    try:
        read.summary = summarise(read)
    except (ValueError, ArithmeticError) as error:
        raise ReportError(f"a report that contradicts itself: {_one_line(error)}") from None
    return read


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Schema(Struct):
    schema: int
