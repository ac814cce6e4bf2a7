"""What a driver process is told to do, and what it tells of it.

What lives here: the shapes, which go through pipes as JSON. What must not: doing it (limits, clients), the
processes (driving).

A rate counts units: pages, names or requests, as the job says. `seconds` is how long units are counted,
after `warm_s` in which the same is done and not counted.
"""

from msgspec import Struct


class Echoes(Struct, tag="echoes"):
    """Frames to a bare ROUTER echo and back; a unit is one there and back."""

    endpoint: str
    window: int
    size_bytes: int
    seconds: float
    warm_s: float


class Chunks(Struct, tag="chunks"):
    """A bare chunk stream; a unit is a byte."""

    endpoint: str
    size_bytes: int


class Commits(Struct, tag="commits"):
    """LMDB transactions of `pages` puts, each fsynced; a unit is a put."""

    directory: str
    pages: int
    size_bytes: int
    seconds: float
    warm_s: float


class Appends(Struct, tag="appends"):
    """A file appended to, fdatasync after each `pages` × `size_bytes`; a unit is one of the pages. With
    `total_bytes` just so much, and one fdatasync at the end; a unit is a byte."""

    directory: str
    pages: int
    size_bytes: int
    seconds: float = 0.0
    warm_s: float = 0.0
    total_bytes: int = 0


class Lookups(Struct, tag="lookups"):
    """Locate requests, `pages` names each, `window` of them under way; a unit is a name."""

    balancer: str
    names: str
    pages: int
    window: int
    seconds: float
    warm_s: float
    seed: int


class Reads(Struct, tag="reads"):
    """Pages drawn at random, `pages` a request, digests checked; a unit is a page."""

    balancer: str
    names: str
    pages: int
    window: int
    seconds: float
    warm_s: float
    seed: int


class Puts(Struct, tag="puts"):
    """New pages, `pages` a batch; a unit is a page that two servers and the catalog have fsynced.

    names_max: names are used again after so many pages; 0: never.
    """

    balancer: str
    prefix: str
    pages: int
    window: int
    size_bytes: int
    seconds: float
    warm_s: float
    names_max: int = 0
    count: int = 0
    """Pages to put, instead of for so many seconds."""


class Down(Struct, tag="down"):
    """One large page, read to its end and thrown away, digests checked; a unit is a byte."""

    balancer: str
    name: str


class Up(Struct, tag="up"):
    """One large page from a file; a unit is a byte."""

    balancer: str
    name: str
    path: str


Job = Echoes | Chunks | Commits | Appends | Lookups | Reads | Puts | Down | Up


class Done(Struct):
    """What one driver did. `total`: units with those of the warm-up. `bad`: answers that were wrong or none;
    `problem` is the first of them. Percentiles are of one request, 0 where nobody took the time."""

    units: int
    elapsed_s: float
    total: int
    cpu_s: float = 0.0
    bad: int = 0
    problem: str = ""
    p50_s: float = 0.0
    p99_s: float = 0.0
