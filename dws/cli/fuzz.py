"""dws sim fuzz, replay, scale: seeds played through the simulator.

What lives here: flags, processes that share the seeds, and what is printed.
What must not: the simulation (dws.sim).
"""

import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import click

from dws.cli import exits, output
from dws.errors import ConfigError
from dws.sim.options import FAULTS, drawn

if TYPE_CHECKING:
    from dws.sim.fuzz import Verdict
    from dws.sim.options import Options

#: Random starts are below this, so that seeds are short to write.
_START_MAX: Final = 10_000_000
_SEEDS_MAX: Final = 10_000_000
_JOBS_MAX: Final = 64
#: Objects made between two collections of garbage. A run makes many and drops few: with the usual 700 a tenth
#: of the time goes into looking for what is not there, and with many more memory outgrows the caches.
_COLLECT_EVERY: Final = 20_000
#: Seeds that one process plays before it says how they went.
_CHUNK_MAX: Final = 200
_SHOWN_MAX: Final = 10

_FAULT_LINES = "\n".join(f"  {name:<12}  {text}" for name, text in FAULTS.items())
_EXITS = """\b
Exit codes:
    0  every seed was played and nothing was found
    2  wrong usage
   10  an invariant was broken
   11  the cluster did not come to rest after the faults ended
   12  a machine raised an exception"""


def _faults(_: Any, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = () if text == "none" else tuple(FAULTS) if text == "all" else tuple(text.split(","))
    for name in names:
        if name not in FAULTS:
            message = f"{name!r} is no fault; there are {', '.join(FAULTS)}, none and all"
            raise click.BadParameter(message, param=parameter)
    return names


#: Flags that stand in place of what a seed draws; their names are those of dws.sim.options.Options.
_FLAGS: Final = (
    click.option("--servers", type=int, metavar="N", help="Web servers."),
    click.option("--clients", type=int, metavar="N", help="Virtual clients."),
    click.option("--copies", type=int, metavar="N", help="Of each page."),
    click.option("--pages", type=int, metavar="N", help="Names that clients use."),
    click.option("--policy", metavar="NAME", help="How a holder is chosen."),
    click.option("--seconds", type=float, metavar="S", help="Virtual seconds of work and faults."),
    click.option(
        "--calm", "calm_s", type=float, metavar="S", help="The cluster must be at rest within them."
    ),
    click.option("--think", "think_s", type=float, metavar="S", help="A client's mean pause."),
    click.option("--faults", metavar="NAME,…", callback=_faults, help="Which may happen; also none, all."),
    click.option("--fault-every", "fault_s", type=float, metavar="S", help="Mean time between two."),
    click.option("--delay", "delay_s", type=float, metavar="S", help="The longest that a message takes."),
    click.option("--late", "late_s", type=float, metavar="S", help="And one in ten as much longer."),
    click.option("--fsync", "fsync_s", type=float, metavar="S", help="The longest that an fsync takes."),
    click.option("--hwm", type=int, metavar="N", help="High-water mark of sockets."),
    click.option("--log", "log_max", type=int, metavar="N", help="Changes a server can report singly."),
    click.option("--large", type=float, metavar="SHARE", help="Share of puts over 1 MiB."),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


def _drawn(seed: int, said: dict[str, Any]) -> "Options":
    try:
        return drawn(seed, **said)
    except ConfigError as error:
        raise click.UsageError(f"--{error}") from None


def _as_flags(said: dict[str, Any]) -> list[str]:
    """The said options once more, for another process or a person to say."""
    flags = {parameter.name: parameter.opts[0] for parameter in fuzz.params if parameter.name}
    words = []
    for name, value in said.items():
        if value is not None:
            text = (",".join(value) or "none") if isinstance(value, tuple) else str(value)
            words += [flags[name], text]
    return words


@click.command(
    epilog=f"""\b
Examples:
  dws sim fuzz --seeds 1000 --jobs 2
  dws sim fuzz --seeds 100 --start 4711 --servers 5 --faults crash,pause
  dws sim replay 4711 --trace

\b
Faults:
{_FAULT_LINES}

{_EXITS}

A seed decides everything that is not said by an option; docs/simulation.md shows the way from a failing
seed to a line of code."""
)
@click.option("--seeds", type=click.IntRange(1, _SEEDS_MAX), default=100, show_default=True, help="How many.")
@click.option("--start", type=click.IntRange(0), help="The first of them.  [default: random, and printed]")
@click.option("--jobs", type=click.IntRange(1, _JOBS_MAX), default=1, show_default=True, help="Processes.")
@click.option("--all", "play_all", is_flag=True, help="Play on after a failure.")
@click.option("--lines", is_flag=True, hidden=True, help="One line of JSON for each seed.")
@run_options
def fuzz(seeds: int, start: int | None, jobs: int, play_all: bool, lines: bool, **said: Any) -> int:
    """Play many seeds: random work, random faults, then rest; and look whether every promise was kept."""
    if start is None:
        start = random.randrange(_START_MAX)
    _drawn(start, said)
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)
    if lines:
        return _play_for_parent(range(start, start + seeds), said, play_all)
    where = "this process" if jobs == 1 else f"{jobs} processes"
    output.data(f"seeds {start} to {start + seeds - 1} in {where}; again with --start {start}")
    began_s, cpu_s = time.monotonic(), _cpu_s()
    counts: Counter[str] = Counter()
    simulated_s, worst = 0.0, exits.OK
    for found in _played(start, seeds, jobs, said, play_all):
        counts[found["kind"]] += 1
        simulated_s += found["at_s"]
        if found["exit"] != exits.OK:
            worst = worst or found["exit"]
            if sum(counts.values()) - counts["ok"] <= _SHOWN_MAX:
                _show_failure(found, said)
        _progress(sum(counts.values()), seeds)
    _progress(0, 0)
    spent_s = max(1e-9, _cpu_s() - cpu_s)
    told = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    output.data(
        f"{told}; {simulated_s:,.0f} simulated seconds in {time.monotonic() - began_s:,.1f} s, "
        f"{simulated_s / spent_s:,.0f} for each second of CPU time"
    )
    return worst


def _played(
    start: int, seeds: int, jobs: int, said: dict[str, Any], play_all: bool
) -> Iterator[dict[str, Any]]:
    """What became of each seed, in any order; ends soon after a failure unless all are to be played."""
    if jobs == 1:
        for seed in range(start, start + seeds):
            found = _play(seed, said)
            yield found
            if found["exit"] != exits.OK and not play_all:
                return
        return
    chunk = max(1, min(_CHUNK_MAX, -(-seeds // (4 * jobs))))
    failed = False

    def play_chunk(first: int) -> list[dict[str, Any]]:
        if failed and not play_all:
            return []
        count = min(chunk, start + seeds - first)
        words = [sys.executable, "-m", "dws", "sim", "fuzz", "--lines", "--seeds", str(count)]
        words += ["--start", str(first), *(["--all"] if play_all else []), *_as_flags(said)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode and not done.stdout:
            raise RuntimeError(
                f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
            )
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(jobs) as pool:
        for some in pool.map(play_chunk, range(start, start + seeds, chunk)):
            failed = failed or any(found["exit"] for found in some)
            yield from some


def _play(seed: int, said: dict[str, Any]) -> dict[str, Any]:
    from dws.sim.fuzz import EXIT_CODES, run

    found = run(seed, _drawn(seed, said))
    return {
        "seed": seed, "kind": found.kind, "text": found.text, "at_s": found.at_s, "event": found.event,
        "digest": found.digest, "exit": EXIT_CODES[found.kind],
    }  # fmt: skip


def _play_for_parent(seeds: range, said: dict[str, Any], play_all: bool) -> int:
    for seed in seeds:
        found = _play(seed, said)
        output.data(json.dumps(found))
        if found["exit"] != exits.OK and not play_all:
            break
    return exits.OK


def _show_failure(found: dict[str, Any], said: dict[str, Any]) -> None:
    seed = found["seed"]
    output.data(f"seed {seed}: {found['kind'].upper()}: {found['text']}")
    output.data(f"  at {found['at_s']:.3f} s, event {found['event']}, digest {found['digest']}")
    output.data(f"  {_drawn(seed, said).text()}")
    output.data(f"  dws sim replay {' '.join([str(seed), *_as_flags(said)])} --trace")


def _progress(played: int, seeds: int) -> None:
    if sys.stderr.isatty():
        text = f"\r{played:,} of {seeds:,} seeds" if seeds else "\r\033[K"
        click.echo(text, err=True, nl=False)


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# -- replay ------------------------------------------------------------------------------


def replay_seed(seed: int, trace: bool, said: dict[str, Any]) -> int:
    """Play one seed once more, and tell how it went."""
    from dws.sim.fuzz import EXIT_CODES, OK, run
    from dws.sim.narrator import narrate

    options = _drawn(seed, said)
    output.data(f"seed {seed}: {options.text()}")
    found = run(seed, options, prepare=lambda world: narrate(world, output.data) if trace else None)
    if found.kind != OK and not trace:
        output.data("the last that happened:")
        for line in found.log[-_SHOWN_MAX:]:
            output.data(f"  {line}")
    _show_verdict(found)
    return EXIT_CODES[found.kind]


def _show_verdict(found: "Verdict") -> None:
    what = f"{found.kind}: {found.text}" if found.text else found.kind
    output.data(
        f"{what}\n{found.calls} calls, {found.faults} faults, {found.at_s:.3f} s, {found.event} events"
    )
    output.data(f"digest {found.digest}")
