"""The command `drill`: flags in, progress and a verdict out.

What lives here: flags, signals and exit codes. What must not: the drill itself (drill.py).

0 passed · 1 failed: something was lost, wrong or not seen · 2 wrong usage · 3 the drill could not be run ·
130 interrupted.
"""

import secrets
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from dws.cli.settings import Settings
from dws.config import Config
from dws.errors import ConfigError, DwsError
from dws.limits import CHUNK_BYTES, GET_MAX_BYTES
from loadgen.cli_reports import OutputError, writable, write
from loadgen.drill.bodies import HEAD_BYTES
from loadgen.drill.faults import FAULTS
from loadgen.sizes import parse_size

NOT_RUN: Final = 3
#: A fault is followed by garbage and copies too many; nobody waits a minute for each.
_GARBAGE_S: Final = 5.0


@click.command(
    "drill",
    epilog=f"""\b
Examples:
  dws-loadgen drill --fault kill
  dws-loadgen drill --fault partition --rounds 3 --seed 7
  dws-loadgen drill --fault kill --pages 10000 --size 64KiB
  dws-loadgen drill --fault random --rounds 200 --json drill.json

\b
Faults:
{chr(10).join(f"  {name:<14} {fault.title}" for name, fault in FAULTS.items())}

\b
Exit codes:
    0  passed
    1  failed: a page was lost or wrong, a read failed, or the fault was not seen to happen
    2  wrong usage
    3  the drill could not be run here
  130  interrupted""",
)
@click.option("--fault", type=click.Choice(list(FAULTS)), required=True, metavar="FAULT", help="See below.")
@click.option("--rounds", type=click.IntRange(1, 10_000), default=1, show_default=True)
@click.option("--seed", type=int, help="Repeats the choice of victims and pages.  [default: a random one]")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86_400),
    default=60.0,
    show_default=True,
    help="How long `busy` lasts.",
)
@click.option("--webservers", type=click.IntRange(3, 16), default=4, show_default=True)
@click.option(
    "--pages",
    type=click.IntRange(1, 1_000_000),
    default=400,
    show_default=True,
    help="Pages stored before the load, and only read in it.",
)
@click.option("--size", default="16KiB", show_default=True, help="Of each of them, up to 1 MiB.")
@click.option(
    "--large",
    default="24MiB",
    show_default=True,
    help="Of one page more, which is downloaded again and again; up to 64 MiB.",
)
@click.option(
    "--threads", type=click.IntRange(1, 64), default=4, show_default=True, help="Clients that read and write."
)
@click.option("--copies", type=click.IntRange(2, 3), default=2, show_default=True)
@click.option(
    "--set",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any field of dws.config.Config, such as dead_s=4; repeatable.",
)
@click.option("--log-level", default="info", show_default=True, metavar="LEVEL", help="Of the nodes.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the nodes' directories go if the drill fails.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write the report here; `-`: to standard output, and the text to standard error.",
)
def drill(
    fault: str, rounds: int, seed: int | None, seconds: float, webservers: int, pages: int, size: str,
    large: str, threads: int, copies: int, pairs: tuple[str, ...], log_level: str, keep: Path | None,
    json_path: Path | None,
) -> int:  # fmt: skip
    """Bring a loaded cluster through a fault, and check all that it promised.

    It runs on this machine, on free ports, in a directory of its own that is removed at the end; of a drill
    that failed the nodes' logs are kept, and it says where. Nodes that die stay down until the drill starts
    them again. Clients read and write all the while; what they saw is
    recorded and judged, and at the end every page is read back from every server that holds it.
    """
    from loadgen.drill.drill import DrillOptions, run
    from loadgen.drill.report import to_json, to_text
    from loadgen.drill.workload import Shape

    writable(json_path)
    to_stdout = str(json_path) == "-"

    def say(text: str) -> None:
        click.echo(text, err=to_stdout)

    options = DrillOptions(
        fault=fault,
        rounds=rounds,
        seed=secrets.randbits(32) if seed is None else seed,
        seconds=seconds,
        webservers=webservers,
        shape=Shape(
            pages=pages,
            page_bytes=_size("--size", size, CHUNK_BYTES),
            large_bytes=_size("--large", large, GET_MAX_BYTES),
            threads=threads,
        ),
        config=_config(fault, copies, pairs),
        log_level=log_level,
        keep=keep,
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        report = run(options, list(click.get_current_context().obj or []), say)
    except (DwsError, OSError) as error:
        click.echo(f"dws-loadgen: error: the drill could not be run: {error}", err=True)
        return NOT_RUN
    finally:
        signal.signal(signal.SIGTERM, before)
    say("\n" + to_text(report))
    if to_stdout:
        click.echo(to_json(report), nl=False)
    elif json_path:
        try:
            write(json_path, to_json(report))
        except OutputError as error:
            click.echo(f"dws-loadgen: error: {error}", err=True)
            return NOT_RUN
    if report.interrupted:
        return 130
    return 0 if report.passed else 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _config(fault: str, copies: int, pairs: tuple[str, ...]) -> Config:
    """The defaults, what the fault wants, then what the user says."""
    wanted: dict[str, Any] = {"copies": copies, "garbage_s": _GARBAGE_S, **FAULTS[fault].config}
    try:
        return Settings({}, {}).config(wanted, pairs)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _size(flag: str, text: str, most: int) -> int:
    size = parse_size(text)
    if not HEAD_BYTES <= size <= most:
        raise click.UsageError(f"{flag} {text}: wanted {HEAD_BYTES} bytes to {most:,}")
    return size
