"""The command `scale`: flags in, text out.

What lives here: flags, and how a run of clusters ends. What must not: running them (scale), the
figures (scaling).
"""

import shlex
from pathlib import Path
from typing import Any

import click

from dws.errors import DwsError
from loadgen.cli_reports import OutputError, writable, write
from loadgen.plan import Plan
from loadgen.sizes import parse_size


@click.command("scale")
@click.option("--webservers", default="1,2,4,8", show_default=True, help="The sizes of the clusters.")
@click.option("--pages", type=int, default=2000, show_default=True, help="Pages to make up and read.")
@click.option("--size", default="4KiB", show_default=True, help="Of each of them.")
@click.option(
    "--duration",
    "duration_s",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Of the load on each cluster.",
)
@click.option(
    "--warmup",
    "warmup_s",
    type=float,
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="The same load before it, not counted.",
)
@click.option("--clients", type=int, default=2, show_default=True, help="Client processes.")
@click.option("--threads", type=int, default=4, show_default=True, help="Threads a client.")
@click.option("--files", type=int, default=10, show_default=True, help="Pages a request.")
@click.option("--choice", default="uniform", show_default=True, metavar="uniform|zipf:S")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write the figures here as JSON; `-`: to standard output, and the text to standard error.",
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write them here as one HTML file.",
)
def scale_clusters(
    webservers: str, pages: int, size: str, json_path: Path | None, html_path: Path | None, **flags: Any
) -> int:  # fmt: skip
    """The same load on clusters of more and more web servers: speed-up and efficiency.

    Each cluster runs on this machine, on free ports and in a directory of its own that is
    removed at its end. One server keeps one copy of each page, more keep two. It says how
    many cores there were: what a machine cannot run at once, it cannot speed up.

    \b
    scale --webservers 1,2,4 --duration 5 --html scale.html
    """
    from loadgen import scale, scaling
    from loadgen.clients import RunError

    for path in (json_path, html_path):
        writable(path)
    plan = Plan(**flags, count=None)
    counts = scale.parse_webservers(webservers)
    try:
        found = scale.scale(counts, plan, pages, parse_size(size), _say)
    except (RunError, DwsError) as error:
        raise OutputError(str(error)) from error
    found.command = list(click.get_current_context().obj or [])
    to_stdout = str(json_path) == "-"
    click.echo(scaling.to_text(found), err=to_stdout)
    click.echo(f"\nTo repeat it: {shlex.join(found.command)}", err=to_stdout)
    if to_stdout:
        click.echo(scaling.to_json(found), nl=False)
    elif json_path:
        write(json_path, scaling.to_json(found))
    if html_path:
        write(html_path, scaling.to_html(found).encode())
    if found.interrupted:
        return 130
    return 1 if any(step.failed for step in found.steps) else 0


def _say(text: str) -> None:
    click.echo(text, err=True)
