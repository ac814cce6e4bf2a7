"""A run while it runs: a table on the terminal that overwrites itself, and is gone at the end.

What lives here: rates of the last moments, and the table. What must not: measuring (the report's figures are
the workers', not these). Where standard error is no terminal, nothing is written.
"""

from collections import deque
from itertools import pairwise
from types import TracebackType
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.plan import Plan
from loadgen.talk import Progress

#: Rates are over so many reports of progress, about half a second each.
_OVER: Final = 4
_KEPT: Final = 48
_EVERY_S: Final = 0.4
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_NOTHING: Final = Progress(0, 0, 0)


class LiveTable:
    """Called with the seconds since the start, negative before it, and the sum over all clients."""

    def __init__(self, plan: Plan, console: Console | None = None) -> None:
        self._plan = plan
        self._console = console or Console(stderr=True)
        self._seen: deque[tuple[float, Progress]] = deque([(0.0, _NOTHING)], maxlen=_KEPT)
        # Refreshed by hand: a thread of its own would take turns with nothing.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveTable":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, elapsed_s: float, progress: Progress) -> None:
        # The clients report one after the other; their sum is whole once each has.
        if elapsed_s >= self._seen[-1][0] + _EVERY_S:
            self._seen.append((elapsed_s, progress))
        if self._live.is_started:
            self._live.update(self.table(elapsed_s, progress), refresh=True)

    def table(self, elapsed_s: float, progress: Progress) -> Group:
        if elapsed_s < 0:
            return Group(Text(f"warming up: {-elapsed_s:.0f} s to the start"))
        table = Table(box=None, pad_edge=False)
        for name in ("seconds", "requests", "requests/s", "pages", "pages/s", "failed", "lately"):
            table.add_column(name, justify="left" if name == "lately" else "right")
        requests_per_s, pages_per_s = self.rates()
        table.add_row(
            f"{elapsed_s:.1f}", f"{progress.requests:,}", f"{requests_per_s:,.0f}", f"{progress.pages:,}",
            f"{pages_per_s:,.0f}", Text(f"{progress.failed:,}", "red" if progress.failed else ""),
            self.sparks(),
        )  # fmt: skip
        done = self.done(elapsed_s, progress)
        bar = ProgressBar(total=1.0, completed=done, width=60) if done is not None else Text("")
        return Group(table, bar, Text("Ctrl-C ends it early, with a report.", "dim"))

    def done(self, elapsed_s: float, progress: Progress) -> float | None:
        """0 to 1: by requests or by time, whichever is nearer to the end; None if neither is bounded."""
        plan = self._plan
        parts = []
        if plan.count is not None:
            parts.append((progress.requests + progress.failed) / (plan.count * plan.clients))
        if plan.duration_s is not None:
            parts.append(elapsed_s / plan.duration_s)
        return min(1.0, max(parts)) if parts else None

    def rates(self) -> tuple[float, float]:
        """Requests and pages a second, of the last moments."""
        seen = list(self._seen)
        (begin_s, before), (end_s, now) = seen[max(0, len(seen) - 1 - _OVER)], seen[-1]
        if end_s <= begin_s:
            return 0.0, 0.0
        took_s = end_s - begin_s
        return (now.requests - before.requests) / took_s, (now.pages - before.pages) / took_s

    def sparks(self) -> str:
        """Requests a second between the reports of progress kept, from nothing to the most of them."""
        seen = list(self._seen)
        rates = [
            max(0.0, (two.requests - one.requests) / (end_s - begin_s))
            for (begin_s, one), (end_s, two) in pairwise(seen)
        ]
        most = max(rates, default=0.0) or 1.0
        return "".join(_BLOCKS[round(rate / most * (len(_BLOCKS) - 1))] for rate in rates)
