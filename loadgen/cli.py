"""`python -m loadgen`: flags in, text out, an exit code.

What lives here: the flags of `run`, their checks, and which error ends with which code. What must not: the
commands that work on reports (cli_reports) or run clusters (cli_scale), anything worth calling from Python
(runner, demo).

0 all requests succeeded, or with --fail-if: no threshold was crossed · 1 some failed, or the load could not
be made · 2 usage, or a plan that is not possible · 4 nobody answered · 99 a threshold was crossed ·
130 interrupted.
"""

import secrets
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from msgspec.structs import replace

from dws import __version__
from loadgen.bench.cli import bench
from loadgen.cli_reports import COMMANDS, OutputError, read_report, to_file, writable
from loadgen.cli_scale import scale_clusters
from loadgen.comparing import differences, shortcomings
from loadgen.drill.cli import drill
from loadgen.plan import MIXED_UPLOAD_EVERY, Plan, PlanError, when
from loadgen.report import Baseline, Report, ReportError, summarise
from loadgen.sizes import parse_size
from loadgen.thresholds import FIGURES, Threshold, ThresholdError, check, parse
from loadgen.traces import read_names

DEFAULT_BALANCER = "tcp://127.0.0.1:5600"
CROSSED = 99
_DEFAULTS = Plan()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. One line on standard error says what went wrong."""
    if arguments is None:
        arguments = sys.argv[1:]
    if list(arguments) == ["worker"]:
        # Not a command for people: the process that `run` starts. It needs neither click nor help.
        from loadgen import worker

        return worker.main()
    try:
        command = ["dws-loadgen", *arguments]
        return int(cli.main(list(arguments), "dws-loadgen", standalone_mode=False, obj=command) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _failed("interrupted", 130)
    except (PlanError, ReportError, ThresholdError) as error:
        return _failed(str(error), 2)
    except OutputError as error:
        return _failed(str(error), 1)


def _failed(text: str, code: int) -> int:
    click.echo(f"dws-loadgen: error: {text}", err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dws-loadgen")
def cli() -> None:
    """Make load on a dws cluster and say what came of it."""


@cli.command()
@click.option(
    "-b",
    "--balancer",
    envvar="DWS_BALANCER",
    default=DEFAULT_BALANCER,
    show_default=True,
    help="The cluster's balancer; DWS_BALANCER is taken too.",
)
@click.option(
    "--http",
    metavar="URL",
    default="",
    help="Ask here for each page, by HTTP: a gateway, or any other HTTP server. What --names does not say, "
    "and what nodes use, is still asked of --balancer.",
)
@click.option(
    "--request",
    type=click.Choice(["download", "upload", "mixed"]),
    default=_DEFAULTS.request,
    show_default=True,
    help=f"Of mixed ones, one in {MIXED_UPLOAD_EVERY} is an upload.",
)
@click.option(
    "--count",
    type=int,
    help="Requests a client, shared by its threads.  "
    f"[default: {_DEFAULTS.count}; with --duration: no bound]",
)
@click.option(
    "--duration", "duration_s", type=float, metavar="SECONDS", help="Start no request after so long."
)
@click.option(
    "--warmup",
    "warmup_s",
    type=float,
    default=_DEFAULTS.warmup_s,
    show_default=True,
    metavar="SECONDS",
    help="The same load for so long before; nothing of it is counted.",
)
@click.option(
    "--start-at",
    metavar="TIME",
    help="Begin to count at 12:00:05, 2030-01-31T12:00:05 or, in 30 seconds, +30, after the warm-up: "
    "for several hosts together. Give each another --seed, and `merge` their reports.",
)
@click.option(
    "--threads",
    type=int,
    default=_DEFAULTS.threads,
    show_default=True,
    help="Threads a client, each with connections of its own.",
)
@click.option(
    "--files",
    type=int,
    default=_DEFAULTS.files,
    show_default=True,
    help="Pages a request. An upload of several is one batch.",
)
@click.option("--clients", type=int, default=_DEFAULTS.clients, show_default=True, help="Client processes.")
@click.option(
    "--rate",
    type=float,
    help="Open load: so many requests a second, all clients together, whether or "
    "not answers come. Without it each thread sends its next request when it has the answer.",
)
@click.option(
    "--choice",
    default=_DEFAULTS.choice,
    show_default=True,
    metavar="uniform|zipf:S|list:FILE|trace:FILE",
    help="How downloads choose their pages. zipf:1 wants the n-th page 1/n as often as the first; list takes "
    "a file's lines in turn, --files a request, and trace the downloads of a recorded trace.",
)
@click.option(
    "--seed",
    type=int,
    default=_DEFAULTS.seed,
    show_default=True,
    help="The same seed gives the same arrivals and choices.",
)
@click.option(
    "--names",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of page names, one a line: downloads choose from these, zipf in this order.",
)
@click.option(
    "--from",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Uploads send the files of this directory, threads taking different ones.",
)
@click.option(
    "--size",
    default="4KiB",
    show_default=True,
    help="Uploads without --from send made-up pages of this size.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 3600, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds after which a request without an answer has failed.",
)
@click.option(
    "--idle",
    "idle_s",
    type=click.FloatRange(0, 600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Look at the nodes at rest for so long before; 0: at no node at all.",
)
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="THRESHOLD",
    help="End with 99 if it is so: 'p99>50ms', 'failed>1%', 'upload.p50>=5ms', 'pages/s<1000'. "
    f"May be given several times. Figures: {', '.join(FIGURES)}.",
)
@click.option(
    "--baseline",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON report of another run: say by how much this one is faster.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write the report here as JSON; `-`: to standard output, the text then to standard error.",
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report here as one HTML file, with charts.",
)
@click.option(
    "--record-trace",
    "record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write here what was asked for, request by request: for --choice trace, and for other programs.",
)
def run(
    balancer: str, http: str, directory: Path | None, names: Path | None, size: str, timeout_s: float,
    start_at: str | None, idle_s: float, fail_if: tuple[str, ...], baseline: Path | None,
    json_path: Path | None, html_path: Path | None, record: Path | None, **flags: Any,
) -> int:  # fmt: skip
    """Make load on a running cluster: client processes, each with threads that send requests.

    Every page's digest is checked; a wrong one is a failed request. Uploads go
    below /load/ and a fresh name, so that each run stores pages that are new.
    Ctrl-C ends a run early, with what was measured until then.

    \b
    Pages at random, 10 a request:      run --count 5000
    The rate of durable small puts:     run --request upload --files 100 --size 4KiB --count 50 --threads 4
    Response times at a given load:     run --rate 500 --files 1 --threads 16 --duration 30
    Through the gateway, by HTTP:       run --http http://127.0.0.1:8080 --duration 10 --html report.html
    For CI:                             run --fail-if 'p99>50ms' --fail-if 'failed>0'
    """
    from loadgen import runner
    from loadgen.clients import RunError
    from loadgen.live import LiveTable

    if flags["count"] is None and flags["duration_s"] is None:
        flags["count"] = _DEFAULTS.count
    plan = Plan(**flags, size_bytes=parse_size(size))
    begin = when(start_at, datetime.now().astimezone()) if start_at else None
    thresholds = [parse(text) for text in fail_if]
    base = read_report(baseline) if baseline else None
    for path in (json_path, html_path, record):
        writable(path)
    prefix = f"/load/{secrets.token_hex(4)}"
    files = runner.files_below(directory, plan, prefix) if directory and plan.request != "download" else []
    if files:
        # The batch is as large as the files are: the size of made-up pages is of no concern.
        plan = replace(plan, size_bytes=0)
    try:
        site = runner.survey(balancer, plan, read_names(names) if names else None, timeout_s, http)
        if site.too_large:
            pages, are = ("page", "is") if site.too_large == 1 else ("pages", "are")
            click.echo(f"{site.too_large:,} {pages} over 64 MiB {are} left out.", err=True)
        with LiveTable(plan) as on_progress:
            report = runner.run(
                plan,
                site,
                balancer,
                files=files,
                prefix=prefix,
                http=http,
                timeout_s=timeout_s,
                start_at=begin,
                idle_s=idle_s,
                record=record,
                on_progress=on_progress,
            )
    except RunError as error:
        return _failed(str(error), 4 if error.unreachable else 1)
    except OSError as error:
        return _failed(f"the load could not be made: {error}", 1)
    report.command = _repeating(balancer)
    judge(report, thresholds, (baseline.name, base) if baseline and base else None)
    return _tell(report, json_path, html_path)


def _repeating(balancer: str) -> list[str]:
    """What to type to run this again, also where the environment says something else."""
    context = click.get_current_context()
    command = list(context.obj or [])
    if context.get_parameter_source("balancer") is ParameterSource.ENVIRONMENT:
        command += ["-b", balancer]
    return command


def judge(report: Report, thresholds: Sequence[Threshold], base: tuple[str, Report] | None) -> None:
    """Work out what the report's figures mean, against thresholds and a baseline: (its name, what it was)."""
    if base:
        name, its = base[0], summarise(base[1]).together
        report.baseline = Baseline(
            name,
            its.requests_per_s,
            its.pages_per_s,
            its.bytes_per_s,
            differences(base[1], report, (name, "this run")) + shortcomings(base[1], name),
        )
    report.summary = summarise(report)
    report.checks = [check(threshold, report) for threshold in thresholds]


@cli.command()
@click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    show_default=True,
    default=Path("dws-demo-report.html"),
    help="Where the report goes as an HTML file.",
)
def demo(html_path: Path) -> int:
    """A whole cluster for half a minute: start it, store a site twice, load it, print the analysis."""
    from loadgen.demo import Options
    from loadgen.demo import main as tell

    return tell(Options(html=html_path))


def _tell(report: Report, json_path: Path | None, html_path: Path | None) -> int:
    from loadgen.text import to_text

    to_stdout = str(json_path) == "-"
    click.echo(to_text(report), err=to_stdout)
    if report.prefix:
        hint = f"Uploads are below {report.prefix}; `dws rm -r {report.prefix}` removes them."
        click.echo(f"\n{hint}", err=to_stdout)
    to_file(report, json_path, html_path)
    return _code(report)


def _code(report: Report) -> int:
    if report.interrupted:
        return 130
    if report.checks:
        return CROSSED if any(one.failed for one in report.checks) else 0
    return 1 if report.summary and report.summary.failures else 0


for _command in (*COMMANDS, scale_clusters, drill, bench):
    cli.add_command(_command)
