"""dws sim scale: a large simulated cluster on one core.

What lives here: flags and what is printed. What must not: the simulation
(dws.sim.scale).
"""

import resource
import sys
import time
from typing import TYPE_CHECKING

import click

from dws.cli import exits, output
from dws.errors import ConfigError

if TYPE_CHECKING:
    from dws.sim.scale import Stage

# getrusage tells kilobytes, but bytes on a Mac.
_MAXRSS_IN_A_MB = 1 << 20 if sys.platform == "darwin" else 1 << 10


@click.command(
    epilog="""\b
Examples:
  dws sim scale
  dws sim scale --servers 200 --pages 1000000 --seconds 10

\b
The cluster holds its pages already when it starts, with the settings that production has by default. It ends
with 0, or as `dws sim fuzz` does if it does not come in sync (11) or something is broken (10)."""
)
@click.option("--servers", type=int, default=1000, show_default=True, help="Web servers.")
@click.option("--pages", type=int, default=100_000, show_default=True, help="Pages in all.")
@click.option("--copies", type=int, default=2, show_default=True, help="Of each.")
@click.option("--clients", type=int, default=10, show_default=True, help="Virtual clients.")
@click.option("--seconds", type=float, default=3.0, show_default=True, help="Virtual seconds of work.")
@click.option("--kill", type=int, default=1, show_default=True, help="Servers that die for good then.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides everything else.")
def scale(servers: int, pages: int, copies: int, clients: int, seconds: float, kill: int, seed: int) -> int:
    """Start a large cluster, let it work, kill servers and wait until all copies are made again."""
    from dws.sim.fuzz import BROKEN, EXIT_CODES, RESTLESS, NoConvergence
    from dws.sim.observer import BrokenInvariant
    from dws.sim.options import Options
    from dws.sim.scale import run

    began_s = time.process_time()

    def told(stage: "Stage") -> None:
        spent_s = time.process_time() - began_s
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _MAXRSS_IN_A_MB
        output.data(
            f"{stage.name:<7} {stage.text}: {stage.virtual_s:.1f} virtual s, {stage.events:,} events; "
            f"{spent_s:.1f} s of CPU time so far, {memory:,} MB at most"
        )

    try:
        options = Options(servers=servers, copies=copies, clients=clients, seconds=seconds)
        run(options, pages, kill, told, seed)
    except ConfigError as error:
        raise click.UsageError(f"--{error}") from None
    except (NoConvergence, BrokenInvariant) as error:
        output.data(str(error))
        return EXIT_CODES[BROKEN if isinstance(error, BrokenInvariant) else RESTLESS]
    return exits.OK
