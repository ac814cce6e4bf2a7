"""`python -m loadgen.bench`: flags in, a table out, an exit code.

0 every goal is met · 1 one is missed · 2 usage · 3 a program to compare with is missing · 130 interrupted.
"""

import sys
from pathlib import Path

import click
import msgspec

from loadgen.bench import figures, http


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Compare dws with servers that others made, in one run on this machine."""


@cli.command("http")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True,
              help="Each round measures every server once, in turn.")
@click.option("--seconds", type=click.IntRange(1, 600), default=3, show_default=True,
              help="How long each measurement takes.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the result here, too.")
@click.option("--only", multiple=True, metavar="KEY",
              help=f"Measure only these: {', '.join(http.KEYS)}. May be given several times.")
def compare_http(rounds: int, seconds: int, json_path: Path | None, only: tuple[str, ...]) -> int:
    """Redirects, 4 KiB pages and a 256 MiB page, beside SeaweedFS and nginx; wrk -t1 -c32 asks."""
    unknown = sorted(set(only) - set(http.KEYS))
    if unknown:
        raise click.UsageError(f"--only {', '.join(unknown)}: there are {', '.join(http.KEYS)}")
    result = http.compare(rounds, seconds, set(only or http.KEYS), lambda line: click.echo(line, err=True))
    click.echo(figures.to_text(result))
    if json_path:
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return figures.exit_code(result)


def main() -> int:
    """Run the command line; the exit code."""
    try:
        return int(cli.main(prog_name="python -m loadgen.bench", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        click.echo(f"bench: error: {error.format_message()}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("bench: interrupted before there was a result", err=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
