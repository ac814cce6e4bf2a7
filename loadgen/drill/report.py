"""What came of a drill: figures, checks, and both as text and JSON.

What lives here: the structs and their forms. What must not: measuring (stage.py) and judging (drill.py).
"""

from typing import Final

import msgspec
from msgspec import Struct

from dws.limits import MIB
from loadgen.text import counted, table

SCHEMA: Final = 1
_NOT: Final = -1.0
_COPIES_SHOWN: Final = 8
_ERRORS_SHOWN: Final = 3
#: To copy less than this takes no time that says anything of its speed.
_TELLING_BYTES: Final = 8 * MIB


class Copies(Struct, array_like=True):
    """Pages with 0, 1, 2, and 3 or more live copies, from this moment on: seconds after the fault."""

    at_s: float
    none: int
    one: int
    two: int
    more: int


class Goal(Struct):
    """What a figure should be at the most; a slow or busy machine that misses it is no fault."""

    text: str
    is_s: float
    at_most_s: float

    @property
    def reached(self) -> bool:
        return self.is_s <= self.at_most_s


class Round(Struct):
    """One fault. Times in seconds after it; -1: did not come, or is not asked of this fault.

    detected_s: no lookup names the server while another holder lives. dead_s: it was declared dead.
    began_s, repaired_s: the first page copied again, and all pages with as many copies as wanted.
    back_s: after it was started again or healed, in sync.
    """

    number: int
    what: str = ""
    detected_s: float = _NOT
    dead_s: float = _NOT
    answering_s: float = _NOT
    began_s: float = _NOT
    repaired_s: float = _NOT
    back_s: float = _NOT
    repaired_pages: int = 0
    repaired_bytes: int = 0
    requests: int = 0
    failed_reads: int = 0
    failed_writes: int = 0
    slowest_read_s: float = 0.0
    slowest_write_s: float = 0.0
    slowest_download_s: float = 0.0
    copies: list[Copies] = []
    errors: list[str] = []
    notes: list[str] = []
    problems: list[str] = []
    goals: list[Goal] = []

    @property
    def repair_bytes_s(self) -> float:
        took_s = self.repaired_s - self.began_s
        return self.repaired_bytes / took_s if self.began_s >= 0 and took_s > 0 else 0.0


class ReadBack(Struct):
    """Every page from every holder, after the last round."""

    pages: int = 0
    copies: int = 0
    bytes: int = 0
    problems: list[str] = []


class DrillReport(Struct):
    fault: str
    seed: int
    command: list[str]
    webservers: int
    pages: int
    page_bytes: int
    threads: int
    settings: list[str]
    cores: int
    schema: int = SCHEMA
    rounds: list[Round] = []
    requests: int = 0
    requests_s: float = 0.0
    operations: int = 0
    """Of the recorded history."""
    undecided: int = 0
    """Families of pages whose batches were too many to be judged as wholes; their pages were judged alone."""
    read_back: ReadBack = msgspec.field(default_factory=ReadBack)
    plain_copy_bytes_s: float = 0.0
    """Of the same bytes, copied and fsynced without the cluster; 0: not measured."""
    problems: list[str] = []
    interrupted: bool = False

    @property
    def all_problems(self) -> list[str]:
        rounds = [f"round {each.number}: {problem}" for each in self.rounds for problem in each.problems]
        return [*rounds, *self.problems, *self.read_back.problems]

    @property
    def passed(self) -> bool:
        return not self.all_problems and not self.interrupted


def to_json(report: DrillReport) -> bytes:
    plain = msgspec.to_builtins(report) | {"passed": report.passed}
    return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"


def round_text(found: Round) -> str:
    """A few lines on one round."""
    times = [
        ("routed away after", found.detected_s),
        ("dead after", found.dead_s),
        ("answering after", found.answering_s),
        ("repair begun after", found.began_s),
        ("repaired after", found.repaired_s),
        ("back in sync after", found.back_s),
    ]
    told = [f"{what} {time_text(at_s)}" for what, at_s in times if at_s >= 0]
    lines = [", ".join(told)] if told else []
    if found.repaired_pages:
        speed = f", {found.repair_bytes_s / 1e6:,.0f} MB/s" if found.repair_bytes_s else ""
        amount = f"{found.repaired_pages:,} pages, {found.repaired_bytes / 1e6:,.1f} MB"
        lines.append(f"copied again: {amount}{speed}")
    lines.append(
        f"{found.requests:,} requests; failed: {found.failed_reads:,} reads, {found.failed_writes:,} writes;"
        f" slowest: read {time_text(found.slowest_read_s)}, write {time_text(found.slowest_write_s)}"
        + (f", large download {time_text(found.slowest_download_s)}" if found.slowest_download_s else "")
    )
    lines += [f"failed: {error}" for error in found.errors[:_ERRORS_SHOWN]]
    lines += [
        f"{'goal reached' if goal.reached else 'goal NOT reached'}: {goal.text}"
        f" {time_text(goal.is_s)}, wanted {time_text(goal.at_most_s)}"
        for goal in found.goals
    ]
    lines += found.notes
    lines += [f"PROBLEM: {problem}" for problem in found.problems]
    return "\n".join(f"  {line}" for line in lines)


def to_text(report: DrillReport) -> str:
    parts = []
    if copies := _copies_of(report):
        parts.append(copies)
    if len(report.rounds) > 1:
        parts.append(_summary(report))
    rounds = counted(len(report.rounds), "round")
    if report.interrupted:
        parts += [f"PROBLEM: {problem}" for problem in report.all_problems]
        parts.append(f"interrupted after {rounds}; nothing was read back or judged; everything is stopped")
        return "\n\n".join(parts)
    back = report.read_back
    parts.append(
        f"read back: {back.pages:,} pages, {back.copies:,} copies, {back.bytes / 1e6:,.1f} MB, every digest"
        f" checked\nhistory: {report.operations:,} operations on changing pages"
        + (f", {report.undecided:,} families judged page by page" if report.undecided else "")
    )
    parts.append(_speed_text(report))
    if report.passed:
        parts.append(f"PASSED: {report.fault}, {rounds}, seed {report.seed}")
    else:
        parts += [f"PROBLEM: {problem}" for problem in report.all_problems]
        parts.append(f"FAILED: {report.fault}, {rounds}, seed {report.seed}")
    return "\n\n".join(part for part in parts if part)


def _speed_text(report: DrillReport) -> str:
    speed = f"load: {report.requests:,} requests, {report.requests_s:,.0f}/s, {report.cores} cores"
    largest = max(report.rounds, key=lambda each: each.repaired_bytes, default=Round(0))
    repair_bytes_s = largest.repair_bytes_s
    if largest.repaired_bytes >= _TELLING_BYTES and repair_bytes_s:
        plain = report.plain_copy_bytes_s
        speed += (
            f"\nrepair: {repair_bytes_s / 1e6:,.0f} MB/s, of {largest.repaired_bytes / 1e6:,.0f} MB; copied"
            f" and fsynced without the cluster: {plain / 1e6:,.0f} MB/s ({repair_bytes_s / plain:.0%})"
        )
    return speed


def _copies_of(report: DrillReport) -> str:
    """How copies came and went in the round in which they were fewest."""
    shown = [each for each in report.rounds if len(each.copies) > 1]
    if not shown:
        return ""
    worst = max(shown, key=lambda each: max(copies.none + copies.one for copies in each.copies))
    step = max(1, -(-len(worst.copies) // _COPIES_SHOWN))
    some = [*worst.copies[::step], *([worst.copies[-1]] if (len(worst.copies) - 1) % step else [])]
    rows = [("copies over time", "0", "1", "2", "3+")]
    rows += [
        (f"{each.at_s:+.2f} s", f"{each.none:,}", f"{each.one:,}", f"{each.two:,}", f"{each.more:,}")
        for each in some
    ]
    return f"round {worst.number}: {worst.what}\n" + table(rows, left=(0,))


def _summary(report: DrillReport) -> str:
    """The worst of all rounds."""
    rows = [("all rounds", "median", "worst")]
    for title, field in (
        ("routed away", "detected_s"),
        ("answering", "answering_s"),
        ("repair begun", "began_s"),
        ("repaired", "repaired_s"),
        ("back in sync", "back_s"),
        ("slowest read", "slowest_read_s"),
        ("slowest write", "slowest_write_s"),
    ):
        values = sorted(value for each in report.rounds if (value := getattr(each, field)) >= 0)
        if values:
            rows.append((title, time_text(values[len(values) // 2]), time_text(values[-1])))
    failed = (
        sum(each.failed_reads for each in report.rounds),
        sum(each.failed_writes for each in report.rounds),
    )
    return table(rows, left=(0,)) + f"\n  failed: {failed[0]:,} reads, {failed[1]:,} writes"


def time_text(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 1 else f"{seconds:,.2f} s"
