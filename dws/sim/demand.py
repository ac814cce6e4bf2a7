"""Who asks for which page, and when: the load of a what-if study.

What lives here: moments and pages, drawn from a seed or taken from a recording of
loadgen. What must not: servers, and who is chosen. Every policy is shown the very
same demand, so that what differs between them is theirs.

Arrivals are a Poisson process; pages are drawn independently of each other, the
n-th most wanted 1/n^s as often as the first (zipf:s) or all alike (uniform). Which
pages are wanted most has nothing to do with where they lie.
"""

from array import array
from collections.abc import Callable, Iterable
from itertools import accumulate
from math import isfinite
from random import Random
from typing import Final

import msgspec
from msgspec import Struct

from dws.errors import ConfigError

ZIPF_MAX: Final = 10.0
PAGES_MAX: Final = 10_000_000
REQUESTS_MAX: Final = 20_000_000
TRACE_VERSION: Final = 1
#: Requests drawn between two calls of `progress`.
_CHUNK: Final = 50_000

Progress = Callable[[str, float], None]


class Demand:
    """times: rising, in seconds from 0; pages: what is asked for then, 0 … page_count - 1."""

    def __init__(self, times: "array[float]", pages: "array[int]", page_count: int) -> None:
        self.times = times
        self.pages = pages
        self.page_count = page_count

    def __len__(self) -> int:
        return len(self.times)

    @property
    def duration_s(self) -> float:
        return self.times[-1] if self.times else 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.times) / self.duration_s if self.duration_s > 0 else 0.0


def zipf_exponent(skew: str) -> float | None:
    """The s of `zipf:s`; None for `uniform`; ConfigError for anything else."""
    if skew == "uniform":
        return None
    kind, _, number = skew.partition(":")
    try:
        exponent = float(number)
    except ValueError:
        exponent = -1.0
    if kind != "zipf" or not 0 < exponent <= ZIPF_MAX:
        raise ConfigError(
            f"skew {skew!r} is neither 'uniform' nor 'zipf:S' with S above 0 and at most {ZIPF_MAX:g}"
        )
    return exponent


def most_wanted_share(skew: str, page_count: int) -> float:
    """Of all requests, those that are for the most wanted page."""
    exponent = zipf_exponent(skew)
    if exponent is None:
        return 1 / page_count
    whole: float = sum(rank**-exponent for rank in range(1, page_count + 1))
    return 1 / whole


def drawn(rate: float, requests: int, page_count: int, skew: str, rng: Random, progress: Progress) -> Demand:
    """`requests` arrivals at `rate` a second, for pages 0 … page_count - 1."""
    exponent = zipf_exponent(skew)
    by_rank = list(range(page_count))
    if exponent is not None:
        rng.shuffle(by_rank)
    weights = exponent and list(accumulate((rank + 1) ** -exponent for rank in range(page_count)))
    times, pages = array("d"), array("L")
    now = 0.0
    wait = rng.expovariate
    while len(times) < requests:
        count = min(_CHUNK, requests - len(times))
        for _ in range(count):
            now += wait(rate)
            times.append(now)
        pages.extend(rng.choices(by_rank, cum_weights=weights or None, k=count))
        progress("drawing requests", len(times) / requests)
    return Demand(times, pages, page_count)


# -- recordings of loadgen: lines of JSON, see docs/traces.md ------------------------------


class _Header(Struct):
    trace: int


class _Asked(Struct):
    at_s: float
    kind: str
    names: list[str]


def recorded(lines: Iterable[bytes], where: str) -> Demand:
    """The downloads of a trace, each name a request of its own; ConfigError, with the line, if it is none.

    Pages are numbered in the order of their names, as an upload of their directory would have them.
    """
    asked: list[tuple[float, str]] = []
    decode = msgspec.json.Decoder(_Asked).decode
    number = 0
    for number, line in enumerate(lines, 1):
        if number == 1:
            _check_header(line, where)
            continue
        try:
            each = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}, line {number}: {error}") from None
        if not (isfinite(each.at_s) and each.at_s >= 0):
            raise ConfigError(f"{where}, line {number}: at_s {each.at_s}, and 0 or more seconds are wanted")
        if not each.names:
            raise ConfigError(f"{where}, line {number}: a request for nothing")
        if each.kind == "download":
            asked += [(each.at_s, name) for name in each.names]
        if len(asked) > REQUESTS_MAX:
            raise ConfigError(f"{where}, line {number}: more than {REQUESTS_MAX:,} pages were asked for")
    if number == 0:
        raise ConfigError(f"{where} is empty: wanted is a trace, as loadgen records one")
    if len({at for at, _ in asked}) < 2:
        raise ConfigError(f"{where} has no downloads at two different moments: there is no rate to study")
    asked.sort(key=lambda each: each[0])
    numbers = {name: page for page, name in enumerate(sorted({name for _, name in asked}))}
    begin = asked[0][0]
    times = array("d", (at - begin for at, _ in asked))
    return Demand(times, array("L", (numbers[name] for _, name in asked)), len(numbers))


def _check_header(line: bytes, where: str) -> None:
    try:
        version = msgspec.json.decode(line, type=_Header).trace
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ConfigError(
            f"{where} is no trace: its first line is not that of loadgen's recordings"
        ) from None
    if version != TRACE_VERSION:
        raise ConfigError(
            f"{where} is a trace of version {version}; this program reads version {TRACE_VERSION}"
        )
