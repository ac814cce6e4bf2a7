"""`python -m loadgen`: flags in, text out, an exit code.

What lives here: flags, their checks, and which error ends with which code. What
must not: anything worth calling from Python (runner, demo).

0 all requests succeeded · 1 some failed, or the load could not be made · 2 usage,
or a plan that is not possible · 4 nobody answered · 130 interrupted.
"""

import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from dws import __version__
from dws.limits import GIB, KIB, MIB
from loadgen.plan import MIXED_UPLOAD_EVERY, Plan, PlanError

DEFAULT_BALANCER = "tcp://127.0.0.1:5600"
_DEFAULTS = Plan()
_UNITS = {"": 1, "B": 1, "K": KIB, "KB": 1000, "KIB": KIB, "M": MIB, "MB": 10**6, "MIB": MIB,
          "G": GIB, "GB": 10**9, "GIB": GIB}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. One line on standard error says what went wrong."""
    if arguments is None:
        arguments = sys.argv[1:]
    if list(arguments) == ["worker"]:
        # Not a command for people: the process that `run` starts. It needs neither click nor help.
        from loadgen import worker

        return worker.main()
    try:
        return int(cli.main(list(arguments), prog_name="dws-loadgen", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _failed("interrupted", 130)
    except PlanError as error:
        return _failed(str(error), 2)


def _failed(text: str, code: int) -> int:
    click.echo(f"dws-loadgen: error: {text}", err=True)
    return code


def parse_size(text: str) -> int:
    """Bytes: `4096`, `4KiB`, `4k`, `1.5 MiB`, `10MB`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match and _UNITS.get(match[2].upper())
    if not (match and unit):
        raise PlanError(f"size {text!r} is not of the form 4096, 4KiB or 1MiB")
    return int(float(match[1]) * unit)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dws-loadgen")
def cli() -> None:
    """Make load on a dws cluster and say what came of it."""


@cli.command()
@click.option("-b", "--balancer", envvar="DWS_BALANCER", default=DEFAULT_BALANCER, show_default=True,
              help="The cluster's balancer; DWS_BALANCER is taken too.")
@click.option("--request", type=click.Choice(["download", "upload", "mixed"]), default=_DEFAULTS.request,
              show_default=True, help=f"Of mixed ones, one in {MIXED_UPLOAD_EVERY} is an upload.")
@click.option("--count", type=int, default=_DEFAULTS.count, show_default=True,
              help="Requests a client, shared by its threads.")
@click.option("--threads", type=int, default=_DEFAULTS.threads, show_default=True,
              help="Threads a client, each with connections of its own.")
@click.option("--files", type=int, default=_DEFAULTS.files, show_default=True,
              help="Pages a request. An upload of several is one batch.")
@click.option("--clients", type=int, default=_DEFAULTS.clients, show_default=True, help="Client processes.")
@click.option("--rate", type=float,
              help="Open load: so many requests a second, all clients together, whether or "
              "not answers come. Without it each thread sends its next request when it has the answer.")
@click.option("--choice", default=_DEFAULTS.choice, show_default=True, metavar="uniform|zipf:S",
              help="How downloads choose their pages. zipf:1 wants the n-th page 1/n as often as the first.")
@click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True,
              help="The same seed gives the same arrivals and choices.")
@click.option("--names", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A file of page names, one a line: downloads choose from these, zipf in this order.")
@click.option("--from", "directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Uploads send the files of this directory, threads taking different ones.")
@click.option("--size", default="4KiB", show_default=True,
              help="Uploads without --from send made-up pages of this size.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, 3600, min_open=True), default=10.0,
              show_default=True, help="Seconds after which a request without an answer has failed.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
              help="Write the report here as JSON; `-`: to standard output, the text then to standard error.")
def run(
    balancer: str, directory: Path | None, names: Path | None, size: str, timeout_s: float,
    json_path: Path | None, **flags: Any,
) -> int:  # fmt: skip
    """Make load on a running cluster: client processes, each with threads that send requests.

    Every page's digest is checked; a wrong one is a failed request. Uploads go
    below /load/ and a fresh name, so that each run stores pages that are new.
    Ctrl-C ends a run early, with what was measured until then.

    \b
    Pages at random, 10 a request:      run --count 5000
    The rate of durable small puts:     run --request upload --files 100 --size 4KiB --count 50 --threads 4
    Response times at a given load:     run --rate 500 --files 1 --threads 16
    """
    from loadgen import runner

    plan = Plan(**flags, size_bytes=parse_size(size))
    if json_path and str(json_path) != "-" and not json_path.absolute().parent.is_dir():
        raise PlanError(f"{json_path}: its directory does not exist")
    prefix = f"/load/{secrets.token_hex(4)}"
    files = runner.files_below(directory, plan, prefix) if directory and plan.request != "download" else []
    if files:
        # The batch is as large as the files are: the size of made-up pages is of no concern.
        plan = replace(plan, size_bytes=0)
    try:
        site = runner.survey(balancer, plan, _read_names(names), timeout_s)
        if site.too_large:
            click.echo(f"{site.too_large} pages over 64 MiB are left out.", err=True)
        report = runner.run(
            plan, site, balancer, files=files, prefix=prefix, timeout_s=timeout_s,
            on_progress=show_progress if sys.stderr.isatty() else None,
        )  # fmt: skip
    except runner.RunError as error:
        return _failed(str(error), 4 if error.unreachable else 1)
    return _tell(report, json_path)


@cli.command()
def demo() -> int:
    """A whole cluster for half a minute: start it, store a site twice, load it, print the analysis."""
    from loadgen.demo import main as tell

    return tell()


def _read_names(path: Path | None) -> list[str] | None:
    """The lines of a file of names; those that are empty, or start with #, are passed over."""
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} cannot be read as UTF-8 text: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]


def show_progress(elapsed_s: float, progress: Any) -> None:
    """One line that overwrites itself."""
    counts = f"{progress.requests:,} requests, {progress.pages:,} pages, {progress.failed:,} failed"
    click.echo(f"\r{elapsed_s:6.1f} s  {counts:<60}", nl=False, err=True)


def _tell(report: Any, json_path: Path | None) -> int:
    from loadgen.report import summarise, to_json, to_text

    if sys.stderr.isatty():
        click.echo("\r" + " " * 70 + "\r", nl=False, err=True)
    to_stdout = str(json_path) == "-"
    click.echo(to_text(report), err=to_stdout)
    if report.prefix:
        hint = f"Uploads are below {report.prefix}; `dws rm -r {report.prefix}` removes them."
        click.echo(f"\n{hint}", err=to_stdout)
    if to_stdout:
        click.echo(to_json(report), nl=False)
    elif json_path:
        try:
            json_path.write_bytes(to_json(report))
        except OSError as error:
            return _failed(f"{json_path}: {error.strerror}", 1)
    if report.interrupted:
        return 130
    return 1 if summarise(report).failures else 0
