"""What rounds of measurements come to: medians, spreads, ratios, and whether they suffice.

What lives here: pure computations on what was measured, and their text. What must
not: running anything (http.py, peers.py).
"""

from collections.abc import Sequence
from statistics import median
from typing import Final

from msgspec import Struct

MET: Final = "✓"
MISSED: Final = "✗"
UNKNOWN: Final = "?"

#: CPU that others used between rounds, as a share of the machine, above which a run is called busy.
BUSY_SHARE: Final = 0.15


class Series(Struct):
    """One subject's rates, one a round, in `unit`; `problem` says why there is none, or what went wrong.

    bad: answers that were errors, and connections that failed, of all rounds.
    """

    key: str
    title: str
    unit: str
    rates: list[float] = []
    bad: int = 0
    problem: str = ""


class Goal(Struct, frozen=True):
    """`subject`'s median is to be at least `wanted` times `peer`'s."""

    subject: str
    peer: str
    wanted: float
    title: str


class Outcome(Struct, frozen=True):
    """A goal and what came of it: the ratio is None where a side is missing."""

    title: str
    wanted: float
    ratio: float | None
    mark: str


class Machine(Struct):
    """The facts that the figures depend on. `foreign` is the CPU share that others had before each round."""

    cores: int
    processor: str
    system: str
    load_before: float
    load_after: float = 0.0
    foreign: list[float] = []


class Result(Struct):
    """A whole comparison, as the JSON file has it."""

    machine: Machine
    seconds: float
    rounds: int
    versions: dict[str, str]
    series: list[Series]
    outcomes: list[Outcome] = []
    missing: list[str] = []
    interrupted: bool = False


def typical(series: Series) -> float | None:
    """The median; None without a measurement."""
    return median(series.rates) if series.rates else None


def spread(rates: Sequence[float]) -> float:
    """(largest − smallest) / median: 0 for rates that agree, and for fewer than two."""
    middle = median(rates) if rates else 0.0
    return (max(rates) - min(rates)) / middle if middle else 0.0


def judge(goal: Goal, series: Sequence[Series]) -> Outcome:
    """Compare medians. A subject with bad answers has missed its goal, however fast it gave them."""
    by_key = {one.key: one for one in series}
    subject, peer = by_key.get(goal.subject), by_key.get(goal.peer)
    ours, theirs = subject and typical(subject), peer and typical(peer)
    if subject is None or ours is None or not theirs:
        return Outcome(goal.title, goal.wanted, None, UNKNOWN)
    ratio = ours / theirs
    met = ratio >= goal.wanted and not subject.bad
    return Outcome(goal.title, goal.wanted, ratio, MET if met else MISSED)


def is_busy(machine: Machine) -> bool:
    """Whether others had so much of the machine that the medians may not be trusted."""
    return bool(machine.foreign) and median(machine.foreign) > BUSY_SHARE


def to_text(result: Result) -> str:
    """For people: a table of medians, the ratios wanted, and everything that speaks against them."""
    machine = result.machine
    lines = [
        f"{machine.cores} cores, {machine.processor}, {machine.system}; load average "
        f"{machine.load_before:.2f} before, {machine.load_after:.2f} after",
        f"{result.rounds} rounds of {result.seconds:g} s each, one server at a time; medians, and "
        "(largest − smallest) / median",
        "; ".join(f"{name} {version}" for name, version in result.versions.items()),
        "",
    ]
    lines += [_row(one) for one in result.series] + [""]
    lines += [
        f"{one.mark} {one.title}: {'not measured' if one.ratio is None else f'{one.ratio:.2f}'}"
        f" (wanted: {one.wanted:g} or more)"
        for one in result.outcomes
    ]
    return "\n".join([*lines, *(f"note: {text}" for text in notes(result))])


def notes(result: Result) -> list[str]:
    """What a reader must know before trusting the figures."""
    found = [f"missing: {text}" for text in result.missing]
    found += [f"{one.title}: {one.bad:,} answers were errors" for one in result.series if one.bad]
    if result.interrupted:
        found.append(f"interrupted after {result.rounds} whole rounds")
    if is_busy(result.machine):
        share = median(result.machine.foreign)
        found.append(f"busy: other processes had {share:.0%} of the machine before the rounds")
    return found


def exit_code(result: Result) -> int:
    """130 interrupted · 3 a peer is missing · 1 a goal is missed · 0."""
    if result.interrupted:
        return 130
    if result.missing or any(one.mark == UNKNOWN for one in result.outcomes):
        return 3
    return 1 if any(one.mark == MISSED for one in result.outcomes) else 0


def _row(series: Series) -> str:
    rate = typical(series)
    if rate is None:
        return f"  {series.title:<44} {series.problem or 'not measured'}"
    return f"  {series.title:<44} {rate:>12,.0f} {series.unit:<12} ±{spread(series.rates):.0%}"
