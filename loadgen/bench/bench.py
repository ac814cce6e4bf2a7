"""The bench: rounds of everything, growth among it if wanted, then what it comes to.

What lives here: the order, and how a run ends. What must not: measuring (stages, growth), judging (figures).
"""

import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from loadgen.bench import table
from loadgen.bench.figures import Result, conclude
from loadgen.bench.growth import measure_growth
from loadgen.bench.run import SMALL, Run, Say, Sizes, make_machine, write_noise
from loadgen.bench.stages import measure_round


class Options(Struct, frozen=True, kw_only=True):
    """data: where the directory goes that all of it writes to, and that is removed at the end."""

    keys: Sequence[str]
    rounds: int = 5
    seconds: float = 3.0
    small: bool = False
    show_unbelieved: bool = False
    data: Path | None = None


def bench(options: Options, command: Sequence[str], say: Say) -> Result:
    """Measure. Ctrl-C ends it with the whole rounds done so far; everything that was started is stopped."""
    with tempfile.TemporaryDirectory(prefix="dws-bench-", dir=options.data) as name:
        directory = Path(name)
        result = Result(
            make_machine(directory), options.seconds, 0, {}, [table.series_of(key) for key in options.keys],
            small=options.small, started=datetime.now(UTC).isoformat(timespec="seconds"),
            command=list(command),
        )  # fmt: skip
        run = Run(result, options.keys, directory, SMALL if options.small else Sizes(), say)
        try:
            _measure(run, options)
        except KeyboardInterrupt:
            result.interrupted = True
            say("interrupted: stopping everything")
    result.machine.load_after = os.getloadavg()[0]
    conclude(result, table.goals_of(list(options.keys)), show_unbelieved=options.show_unbelieved)
    return result


def _measure(run: Run, options: Options) -> None:
    if run.wants("up", "down"):
        write_noise(run.directory / "large.bin", run.sizes.large_bytes)
    for number in range(1, options.rounds + 1):
        run.say(f"round {number} of {options.rounds}")
        run.begin_round(number)
        if run.wants(*table.ROUNDS):
            measure_round(run)
        if run.wants(*table.GROWTH):
            measure_growth(run)
        run.end_round()
