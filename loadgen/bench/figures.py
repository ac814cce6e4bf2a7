"""What rounds of measurements come to: medians, spreads, ratios, and whether they can be believed.

What lives here: pure computations on what was measured. What must not: running anything (stages), how
it looks (text, html).
"""

from collections.abc import Sequence
from statistics import median
from typing import Final

from msgspec import Struct

MET: Final = "✓"
MISSED: Final = "✗"
UNKNOWN: Final = "?"
#: Nothing is wanted of it.
TOLD: Final = "·"

#: CPU that others used before or in a round, as a share of the machine, above which that round was busy.
BUSY_SHARE: Final = 0.15
#: Of all rounds. Medians bear fewer than half; this much and it is no longer chance.
BUSY_ROUNDS: Final = 0.25


class Series(Struct):
    """One subject's figures, one a round, in `unit`; `problem` says why there is none, or what went wrong.

    bad: answers that were errors, and connections that failed, of all rounds.
    cpu: process → CPU seconds a million units of work, one a round.
    """

    key: str
    title: str
    unit: str
    rates: list[float] = []
    bad: int = 0
    problem: str = ""
    cpu: dict[str, list[float]] = {}


class Goal(Struct, frozen=True):
    """`subject`'s median is to be at least `wanted` times `peer`'s, or at most.

    peer: empty: `wanted` is not a ratio, but what the figure itself is to be.
    wanted: None: nothing is, the ratio is told.
    aim: to miss it is told, and no failure.
    """

    subject: str
    peer: str
    wanted: float | None
    title: str
    at_most: bool = False
    aim: bool = False


class Outcome(Struct, frozen=True):
    """A goal and what came of it: the ratio is None where a side is missing or nobody would believe it.

    low, high: the least and the greatest of the single rounds' ratios.
    """

    title: str
    wanted: float | None
    ratio: float | None
    mark: str
    at_most: bool = False
    low: float | None = None
    high: float | None = None
    aim: bool = False


class Machine(Struct):
    """The facts that the figures depend on. `foreign` is the CPU share that others had before each round,
    `foreign_during` the one while it was measured, `busiest` who they were."""

    cores: int
    processor: str
    system: str
    load_before: float
    load_after: float = 0.0
    foreign: list[float] = []
    foreign_during: list[float] = []
    busiest: list[str] = []
    storage: str = ""


class Result(Struct):
    """A whole comparison, as the JSON file has it.

    believed: whether its ratios may be; `doubts` says why not. They are left out then, or, where the run's
    user wants to see them all the same, stand there with this flag.
    small: it was made with less of everything, to try the bench itself.
    """

    machine: Machine
    seconds: float
    rounds: int
    versions: dict[str, str]
    series: list[Series]
    outcomes: list[Outcome] = []
    missing: list[str] = []
    interrupted: bool = False
    small: bool = False
    believed: bool = True
    doubts: list[str] = []
    started: str = ""
    command: list[str] = []
    title: str = ""


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
    ours = typical(subject) if subject else None
    theirs = (typical(peer) if peer else None) if goal.peer else 1.0
    if subject is None or ours is None or not theirs:
        return Outcome(goal.title, goal.wanted, None, UNKNOWN, goal.at_most, aim=goal.aim)
    ratio = ours / theirs
    single = [1.0 * one for one in subject.rates]
    if peer:
        # Where a round lacks one of the two it is not known which of the other's is its own.
        pairs = zip(single, peer.rates, strict=True) if len(peer.rates) == len(single) else ()
        single = [one / other for one, other in pairs if other]
    return Outcome(
        goal.title, goal.wanted, ratio, _mark(goal, ratio, subject.bad), goal.at_most,
        min(single, default=ratio), max(single, default=ratio), goal.aim,
    )  # fmt: skip


def _mark(goal: Goal, ratio: float, bad: int) -> str:
    if goal.wanted is None:
        return TOLD
    reached = ratio <= goal.wanted if goal.at_most else ratio >= goal.wanted
    return MET if reached and not bad else MISSED


def conclude(result: Result, goals: Sequence[Goal], *, show_unbelieved: bool = False) -> None:
    """Judge all goals, unless nobody should believe what came out."""
    result.doubts = doubts(result)
    result.believed = not result.doubts
    result.outcomes = [judge(goal, result.series) for goal in goals]
    if not result.believed and not show_unbelieved:
        result.outcomes = [
            Outcome(one.title, one.wanted, None, UNKNOWN, one.at_most, aim=one.aim) for one in result.outcomes
        ]


def doubts(result: Result) -> list[str]:
    """Why no ratio of this run is to be believed; empty if there is no reason."""
    found = []
    if result.interrupted:
        found.append(f"interrupted after {result.rounds} whole rounds")
    machine = result.machine
    for shares, when in ((machine.foreign, "before"), (machine.foreign_during, "during")):
        busy = [share for share in shares if share > BUSY_SHARE]
        if len(busy) > BUSY_ROUNDS * len(shares):
            who = f": {', '.join(machine.busiest)}" if machine.busiest else ""
            found.append(
                f"busy: other processes had over {BUSY_SHARE:.0%} of the machine {when} {len(busy)} of "
                f"{len(shares)} rounds, {max(busy):.0%} at most{who}"
            )
    if result.small:
        found.append("small: made with less of everything, to try the bench itself")
    return found


def is_busy(machine: Machine) -> bool:
    """Whether others had so much of the machine that no ratio may be trusted."""
    return any(text.startswith("busy") for text in doubts(Result(machine, 0, 0, {}, [])))


def notes(result: Result) -> list[str]:
    """What a reader must know before trusting the figures."""
    found = [f"missing: {text}" for text in result.missing]
    for one in result.series:
        if one.bad:
            what = f": {one.problem}" if one.problem else ""
            found.append(f"{one.title}: {one.bad:,} answers were errors{what}")
    return found + (result.doubts or doubts(result))


def exit_code(result: Result) -> int:
    """130 interrupted · 4 not to be believed · 3 a peer is missing · 1 a goal is missed · 0."""
    if result.interrupted:
        return 130
    if doubts(result):
        return 4
    if result.missing or any(one.mark == UNKNOWN for one in result.outcomes):
        return 3
    return 1 if any(one.mark == MISSED and not one.aim for one in result.outcomes) else 0
