"""What load to make, from a seed: when requests start, what they ask for, who asks.

What lives here: the plan, its checks, and all that is drawn from its seed; no
clocks, no sockets, no disk. The same plan gives the same arrivals and, thread by
thread, the same pages. Which of its threads takes an arrival is the one thing
that a client process leaves to the moment.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, time, timedelta
from itertools import accumulate, count, repeat
from math import isfinite
from random import Random
from typing import Final, Literal, TypeVar, get_args

from msgspec import Struct

from dws.limits import BATCH_MAX_BYTES, BATCH_MAX_PAGES, LOCATE_MAX_NAMES

Kind = Literal["download", "upload"]
Request = Literal["download", "upload", "mixed"]
Item = TypeVar("Item")

#: Of mixed load one request in so many is an upload.
MIXED_UPLOAD_EVERY: Final = 5

CLIENTS_MAX: Final = 64
THREADS_MAX: Final = 256
WINDOW_MAX: Final = 10_000
#: Requests a second that one client process is asked for at most; Python sends no more.
RATE_MAX_CLIENT: Final = 20_000
ZIPF_MAX: Final = 10.0
WARMUP_MAX_S: Final = 3600.0
#: Part of the name of whatever is drawn for the warm-up, so that the rest is drawn as if there were none.
WARM: Final = "/warm-up"


class PlanError(ValueError):
    """The plan is not possible; the text, one line, says why."""


class Plan(Struct, frozen=True, kw_only=True):
    """One run. Clients are processes; each has `threads` threads with sockets of their own."""

    request: Request = "download"
    count: int | None = 1000
    """Requests a client, shared by its threads. None: as many as duration_s allows."""
    duration_s: float | None = None
    """When to stop, counted from the start; None: when `count` requests are done. No request starts later;
    those under way are waited for."""
    warmup_s: float = 0.0
    """The same load for so long before the start. Nothing of it is counted, and what is asked for in it has
    no part in the seed's draw for the rest."""
    clients: int = 2
    threads: int = 4
    window: int = 1
    """Requests that each thread has under way at once, where its scenario can: see router_scenario."""
    files: int = 10
    """Pages a request."""
    rate: float | None = None
    """Requests a second, all clients together, started at random moments whether or not those before are
    answered (open load). None: each thread starts its next when it has the answer (closed load)."""
    choice: str = "uniform"
    """How pages are chosen: `uniform`, or `zipf:s`: the n-th page is wanted 1/n^s as often as the first. Or
    in turn: those of `list:FILE`, `files` a request, or the downloads of `trace:FILE`. See traces."""
    size_bytes: int = 4096
    """Of each page that is made up for upload."""
    seed: int = 1

    @property
    def is_open(self) -> bool:
        """Whether requests start at moments of their own, whatever became of those before."""
        return self.rate is not None

    def __post_init__(self) -> None:
        for possible, text in (
            (self.request in get_args(Request), f"request {self.request!r} is none of {get_args(Request)}"),
            (self.count is None or self.count >= 1, f"{self.count} requests: at least 1 is needed"),
            (self.count is not None or self.duration_s is not None, "neither a count nor a duration"),
            (
                self.duration_s is None or (isfinite(self.duration_s) and self.duration_s > 0),
                f"a duration of {self.duration_s} s: more than 0 is needed",
            ),
            (
                isfinite(self.warmup_s) and 0 <= self.warmup_s <= WARMUP_MAX_S,
                f"{self.warmup_s} s of warm-up: 0 to {WARMUP_MAX_S:,.0f} are possible",
            ),
            (1 <= self.clients <= CLIENTS_MAX, f"{self.clients} clients: 1 to {CLIENTS_MAX} are possible"),
            (1 <= self.threads <= THREADS_MAX, f"{self.threads} threads: 1 to {THREADS_MAX} are possible"),
            (1 <= self.window <= WINDOW_MAX, f"a window of {self.window}: 1 to {WINDOW_MAX:,} are possible"),
            (
                1 <= self.files <= min(LOCATE_MAX_NAMES, BATCH_MAX_PAGES),
                f"{self.files} pages a request: 1 to {min(LOCATE_MAX_NAMES, BATCH_MAX_PAGES):,} are possible",
            ),
            (
                self.rate is None or 0 < self.rate <= RATE_MAX_CLIENT * self.clients,
                f"a rate of {self.rate} requests a second: more than 0 and at most "
                f"{RATE_MAX_CLIENT:,} a client process are possible",
            ),
            (
                0 <= self.size_bytes <= BATCH_MAX_BYTES,
                f"pages of {self.size_bytes} bytes: 0 to {BATCH_MAX_BYTES:,} can be made up",
            ),
            (
                self.request == "download" or self.files * self.size_bytes <= BATCH_MAX_BYTES,
                f"{self.files} pages of {self.size_bytes:,} bytes are over the bound of one batch, "
                f"{BATCH_MAX_BYTES:,} bytes",
            ),
        ):
            if not possible:
                raise PlanError(text)
        if not file_of(self.choice):
            zipf_exponent(self.choice)


def when(text: str, now: datetime) -> datetime:
    """The moment that `text` names: `2030-01-31T12:00:05`, `12:00:05` or `12:00`, in the zone of `now` unless
    it says another, or `+30` for 30 s from now. PlanError if it names none, or one that has passed."""
    try:
        if text.startswith("+"):
            moment = now + timedelta(seconds=float(text[1:]))
        elif re.fullmatch(r"\d\d:\d\d(:\d\d)?", text):
            moment = datetime.combine(now.date(), time.fromisoformat(text), now.tzinfo)
        else:
            moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise PlanError(f"{text!r} is no moment of the form 12:00:05, 2030-01-31T12:00:05 or +30") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=now.tzinfo)
    if moment <= now:
        raise PlanError(f"{text} has passed: it is {now:%Y-%m-%dT%H:%M:%S%z}")
    return moment


# -- who does how much -----------------------------------------------------------------


def split(count: int, parts: int) -> list[int]:
    """`count` in whole shares that differ by one at most; the first get the more."""
    least, left = divmod(count, parts)
    return [least + (part < left) for part in range(parts)]


def share_of(items: Sequence[Item], part: int, parts: int) -> Sequence[Item]:
    """What one of `parts` takes of `items`: disjoint from the others', or all if there are too few."""
    return items[part::parts] if len(items) >= parts else items


def upload_name(prefix: str, client: int, thread: int, request: int, leaf: str) -> str:
    """The name a page is uploaded under: different for every client, thread and request of one prefix."""
    return f"{prefix}/c{client}/t{thread}/r{request}/{leaf}"


# -- when --------------------------------------------------------------------------------


def arrivals(plan: Plan, client: int, draw: str = "") -> Iterator[float]:
    """When one client's requests start, in seconds from the run's start: a Poisson process, for ever."""
    if plan.rate is None:
        raise ValueError("closed load has no arrivals")
    drawn = Random(f"{plan.seed}/{client}/arrivals{draw}")
    rate = plan.rate / plan.clients
    at_s = 0.0
    while True:
        at_s += drawn.expovariate(rate)
        yield at_s


def warm_arrivals(plan: Plan, client: int) -> Iterator[float]:
    """When one client's requests of the warm-up start: before 0."""
    for at_s in arrivals(plan, client, WARM):
        if at_s >= plan.warmup_s:
            return
        yield at_s - plan.warmup_s


# -- what --------------------------------------------------------------------------------


def kinds(plan: Plan, client: int, thread: int, draw: str = "") -> Iterator[Kind]:
    """What each request of one thread is, for ever."""
    if plan.request != "mixed":
        return repeat(plan.request)
    drawn = Random(f"{plan.seed}/{client}/{thread}/kinds{draw}")
    return ("download" if drawn.randrange(MIXED_UPLOAD_EVERY) else "upload" for _ in repeat(None))


def file_of(choice: str) -> tuple[str, str] | None:
    """(`list` or `trace`, FILE) of a choice that a file makes."""
    source, _, path = choice.partition(":")
    return (source, path) if source in ("list", "trace") and path else None


def zipf_exponent(choice: str) -> float | None:
    """The s of `zipf:s`; None for `uniform`; PlanError for anything else that a seed could draw from."""
    if choice == "uniform":
        return None
    kind, _, number = choice.partition(":")
    try:
        exponent = float(number)
    except ValueError:
        exponent = -1.0
    if kind != "zipf" or not 0 < exponent <= ZIPF_MAX:
        raise PlanError(
            f"choice {choice!r} is none of 'uniform', 'zipf:S' with S above 0 and at most {ZIPF_MAX:g}, "
            "'list:FILE' and 'trace:FILE'"
        )
    return exponent


def in_order_of_popularity(names: Sequence[str], seed: int) -> list[str]:
    """`names` in an order that has nothing to do with their spelling: zipf's first is wanted most."""
    shuffled = sorted(names)
    Random(f"{seed}/popularity").shuffle(shuffled)
    return shuffled


def chooser(
    names: Sequence[str], plan: Plan, client: int, thread: int, draw: str = ""
) -> Callable[[], list[str]]:
    """A function that draws the pages of one thread's next download: `plan.files` different ones."""
    if plan.files > len(names):
        raise PlanError(f"{plan.files} pages a request, but there are {len(names)} to choose from")
    drawn = Random(f"{plan.seed}/{client}/{thread}/pages{draw}")
    wanted = plan.files
    exponent = zipf_exponent(plan.choice)
    if exponent is None and wanted * 2 > len(names):
        return lambda: drawn.sample(names, wanted)
    weights = exponent and list(accumulate((rank + 1) ** -exponent for rank in range(len(names))))
    choices = drawn.choices

    def choose() -> list[str]:
        found = choices(names, cum_weights=weights or None, k=wanted)
        if len(set(found)) == wanted:
            return found
        return _different(found)

    def _different(found: list[str]) -> list[str]:
        # To draw again what was drawn already is to draw without putting back. Bounded: a steep zipf would
        # draw its first page for ever, so what is still missing are the most wanted of the others.
        different = dict.fromkeys(found)
        for _ in range(20):
            different.update(dict.fromkeys(choices(names, cum_weights=weights or None, k=wanted)))
            if len(different) >= wanted:
                return list(different)[:wanted]
        for name in names:
            different[name] = None
            if len(different) == wanted:
                break
        return list(different)

    return choose


def in_turn(rounds: Sequence[list[str]], plan: Plan, client: int) -> Callable[[], list[str]]:
    """A function that gives the next of `rounds` to whichever thread of one client calls it: all clients
    together go through them in order, again and again."""
    places = count(client, plan.clients)
    return lambda: rounds[next(places) % len(rounds)]


def made_up(number: int, size_bytes: int, filling: bytes) -> bytes:
    """The bytes of a made-up page: no two numbers give the same ones, from 8 bytes on."""
    return (number.to_bytes(8, "big") + filling[8:size_bytes])[:size_bytes]


def filling(plan: Plan) -> bytes:
    """What made-up pages consist of, but for their first bytes: noise, which nothing compresses."""
    return Random(f"{plan.seed}/filling").randbytes(plan.size_bytes)
