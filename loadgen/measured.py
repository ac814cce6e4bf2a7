"""What was measured: the shapes of a run's results, as client processes and samplers report them.

What lives here: structs, and how failures of one kind become one. What must not: what is concluded from
them (analysis), the report as a whole and its JSON (report).
"""

from collections.abc import Iterable

from msgspec import Struct

from loadgen import histogram


class Failure(Struct):
    """Requests that failed in one way. `first` is what the first of them said, `at_s` after the start."""

    kind: str
    count: int
    at_s: float
    first: str


class Tally(Struct):
    """One client's requests of one kind, download or upload."""

    requests: int
    pages: int
    bytes: int
    failures: list[Failure]
    latency: histogram.Plain
    skipped: int = 0
    """Pages of uploads that were not sent, since the cluster had them."""


class Interval(Struct):
    """One slice of a run: the requests that ended in it. A failure has no latency."""

    at_s: float
    width_s: float
    requests: int
    failed: int
    pages: int
    bytes: int
    latency: histogram.Plain


class ClientResult(Struct):
    """What one client process measured. Times count from the start that all clients share, after warm-up."""

    client: int
    elapsed_s: float
    cpu_s: float
    tallies: dict[str, Tally]
    served: dict[str, int]
    """Pages that each web server delivered."""
    late: histogram.Plain | None = None
    """Open load: how long after its intended start each request was sent."""
    intervals: list[Interval] = []
    """The run in slices of one width, in order; at most 600."""
    turnaround_s: float = 0.0
    """The whole job: connecting, then from the start to the end of the last thread. Without the warm-up."""


class NodeSample(Struct):
    """What a node had used when it was looked at. Bytes are sums since its start; 0 where nobody can tell."""

    at_s: float
    """From the start of the load; before it, negative."""
    cpu_s: float
    rss_bytes: int
    read_bytes: int
    written_bytes: int
    sent_bytes: int
    received_bytes: int


class NodeUse(Struct):
    """What one node used without load and under it. `pid` 0: a node of another machine."""

    name: str
    role: str
    pid: int
    idle: list[NodeSample]
    loaded: list[NodeSample]
    died_at_s: float | None = None
    note: str = ""


class BookEntry(Struct):
    """One server's load book: what it served in the current period, its most wanted pages first."""

    server: str
    period_age_s: float
    visits: int
    bytes: int
    hot: list[tuple[str, int, int]]
    """(name, visits, bytes)."""


class Machine(Struct):
    """Where the generator ran."""

    cores: int
    memory_bytes: int
    python: str
    platform: str
    pyzmq: str
    libzmq: str
    load_average: float
    """Over the minute before the run."""


def merge_failures(failures: Iterable[Failure]) -> list[Failure]:
    """One for each kind, most frequent first, with the example that came first."""
    by_kind: dict[str, Failure] = {}
    for one in failures:
        known = by_kind.get(one.kind)
        if known is None:
            by_kind[one.kind] = Failure(one.kind, one.count, one.at_s, one.first)
            continue
        known.count += one.count
        if one.at_s < known.at_s:
            known.at_s, known.first = one.at_s, one.first
    return sorted(by_kind.values(), key=lambda failure: (-failure.count, failure.kind))
