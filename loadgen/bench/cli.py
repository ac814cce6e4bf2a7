"""The command `bench`: flags in, progress, a table, JSON and a chart out.

What lives here: flags, signals, exit codes. What must not: the bench itself (bench).

0 everything that is wanted was reached · 1 something was missed · 2 wrong usage · 3 something to compare
with is missing · 4 not to be believed · 130 interrupted.
"""

import signal
from pathlib import Path
from types import FrameType
from typing import Final

import click
import msgspec

from loadgen.bench.table import ALL, GROUPS, chosen
from loadgen.cli_reports import OutputError, writable, write

_DATA_HELP: Final = (
    "Where a directory for all data is made, and removed.  [default: the one for temporary files]"
)


@click.command(
    "bench",
    epilog=f"""\b
Examples:
  dws-loadgen bench --json bench.json --html bench.html
  dws-loadgen bench --only reads --rounds 3
  dws-loadgen bench --only lookup-1 --only weed-lookup
  dws-loadgen bench --only growth
  dws-loadgen bench --small --rounds 1 --show-unbelieved     (two minutes; to try the bench itself)

\b
Keys for --only:
{chr(10).join(f"  {key:<18} {title}" for key, (title, _) in ALL.items())}

\b
Groups of them:
  {", ".join(GROUPS)}

\b
Exit codes:
    0  everything that is wanted was reached
    1  something was missed
    2  wrong usage
    3  a program to compare with is missing, or a server did not start
    4  not to be believed: the machine was busy with other work
  130  interrupted""",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="Each round measures everything once, one server after the other.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.2, 600),
    default=3.0,
    show_default=True,
    help="How long each measurement takes.",
)
@click.option("--only", multiple=True, metavar="KEY", help="Only this key or group; repeatable. See below.")
@click.option(
    "--growth",
    is_flag=True,
    help="Also what grows with pages, overwrites and servers: two minutes more a round.",
)
@click.option("--small", is_flag=True, help="Less of everything. Its ratios are never believed.")
@click.option(
    "--show-unbelieved",
    is_flag=True,
    help="Print ratios though they are not to be believed, labelled so. The exit code stays.",
)
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path), help=_DATA_HELP
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write the result here as JSON; `-`: to standard output, and the text to standard error.",
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it here as one HTML file, with charts.",
)
def bench(
    rounds: int, seconds: float, only: tuple[str, ...], growth: bool, small: bool, show_unbelieved: bool,
    data: Path | None, json_path: Path | None, html_path: Path | None,
) -> int:  # fmt: skip
    """Measure dws beside SeaweedFS and nginx, and beside what bare sockets and disk give.

    All of it runs on this machine: in each round the bare limits, a cluster of one balancer and four
    web servers, then the peers, with --growth also clusters that grow; each is started, measured and
    stopped before the next. Medians of all rounds count. It wants a machine that does nothing else: what
    other processes use is measured, and if that is too much it says so instead of telling ratios.
    """
    from loadgen.bench.bench import Options
    from loadgen.bench.bench import bench as measure
    from loadgen.bench.figures import exit_code
    from loadgen.bench.html import to_html
    from loadgen.bench.text import to_text

    try:
        keys = chosen(only, growth=growth)
    except KeyError as error:
        raise click.UsageError(f"--only {error.args[0]}: see `bench --help` for keys and groups") from None
    for path in (json_path, html_path):
        writable(path)
    options = Options(
        keys=keys, rounds=rounds, seconds=seconds, small=small, show_unbelieved=show_unbelieved, data=data
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        command = list(click.get_current_context().obj or [])
        result = measure(options, command, lambda line: click.echo(line, err=True))
    except OSError as error:
        raise OutputError(f"the bench could not be run: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, before)
    to_stdout = str(json_path) == "-"
    click.echo(to_text(result), err=to_stdout)
    made = msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"
    if to_stdout:
        click.echo(made, nl=False)
    elif json_path:
        write(json_path, made)
    if html_path:
        write(html_path, to_html(result).encode())
    return exit_code(result)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
