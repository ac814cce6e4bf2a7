"""dws sim replay: a seed, or a recording of a real node, once more.

What lives here: which of the two it is. What must not: how either is played
(dws.cli.fuzz, dws.cli.incident).
"""

from pathlib import Path
from typing import Any

import click

from dws.cli.fuzz import replay_seed, run_options
from dws.cli.incident import events_of, replay_file


@click.command(
    epilog="""\b
Examples:
  dws sim replay 4711
  dws sim replay 4711 --trace
  dws sim replay 4711 --faults crash        the same seed, with other faults
  dws sim replay records/web-2-7.rec        what a node started with --record has written
  dws sim replay records/balancer-3.rec --events 120-130

\b
The options of a seed are printed first; those that are said stand in their place.
The digest is over the whole trace: two runs with one digest did the same.
A recording is to be played by the version of dws that made it; docs/whatif.md
says what is in one.

\b
Exit codes:
    0  nothing was found; a recording: every effect is the one that is recorded
    2  wrong usage, or no recording
   10  an invariant was broken
   11  the cluster did not come to rest after the faults ended
   12  a machine raised an exception; a recording: it did so then, too
   13  the machine did not do what is recorded, or the recording is damaged"""
)
@click.argument("what", metavar="SEED|FILE")
@click.option("--trace", is_flag=True, help="Tell every message and everything that happens.")
@click.option("--events", metavar="N[-N]", help="Of a recording: show these events and their effects.")
@run_options
def replay(what: str, trace: bool, events: str | None, **said: Any) -> int:
    """Play a seed, or a recording of a node, again: the same events, byte by byte."""
    if what.isascii() and what.isdecimal():
        if events is not None:
            raise click.UsageError("--events is for recordings; a seed is told by --trace")
        return replay_seed(int(what), trace, said)
    path = Path(what)
    if not path.is_file():
        raise click.UsageError(f"{what!r} is neither a seed nor a file")
    seeds_alone = ["trace"] * trace + [name for name, value in said.items() if value is not None]
    if seeds_alone:
        raise click.UsageError(
            f"options of a seed: {', '.join(seeds_alone)}; a recording says all that itself"
        )
    return replay_file(path, events_of(events) if events is not None else None)
