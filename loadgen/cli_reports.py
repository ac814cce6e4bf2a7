"""The commands that work on reports: show, merge, compare. And how reports are read from files and written.

What lives here: flags and files. What must not: figures (analysis, merging, comparing), and how they look
(text, html_report, html_compare).
"""

import os
import sys
from pathlib import Path
from typing import Final

import click

from loadgen import comparing
from loadgen.comparing import compare
from loadgen.merging import merge
from loadgen.report import Report, ReportError, from_json, to_json
from loadgen.text import to_text

#: More is no report: a run's is some MB.
REPORT_MAX_BYTES: Final = 256 << 20


class OutputError(Exception):
    """A file cannot be written; the text, one line, says why."""


_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_HTML = click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it here as one HTML file, with charts.",
)
_JSON = click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write it here as JSON; `-`: to standard output.",
)


@click.command("show")
@click.argument("report", type=_FILE)
@_HTML
def show(report: Path, html_path: Path | None) -> int:
    """Print a JSON report as text again; with --html make its HTML file.

    \b
    show report.json --html report.html
    """
    writable(html_path)
    found = read_report(report)
    click.echo(to_text(found))
    to_file(found, None, html_path)
    return 0


@click.command("merge")
@click.argument("reports", type=_FILE, nargs=-1, required=True, metavar="REPORT...")
@_JSON
@_HTML
def merge_reports(reports: tuple[Path, ...], json_path: Path | None, html_path: Path | None) -> int:
    """One report of the JSON reports of several hosts that made one load together.

    Start them with the same --start-at, and different --seed. Percentiles are of all
    requests: the histograms are added up.

    \b
    On each host:    run --start-at 12:00:00 --duration 30 --seed 1 --json a.json
    Then, on one:    merge a.json b.json --html both.html
    """
    for path in (json_path, html_path):
        writable(path)
    whole = merge([read_report(path) for path in reports], [path.name for path in reports])
    click.echo(to_text(whole), err=str(json_path) == "-")
    to_file(whole, json_path, html_path)
    return 0


@click.command("compare")
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@_HTML
def compare_reports(first: Path, second: Path, html_path: Path | None) -> int:
    """Two JSON reports side by side: what changed, by how much, and whether they can be compared.

    \b
    compare before.json after.json --html change.html
    """
    writable(html_path)
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    reports = read_report(first), read_report(second)
    found = compare(*reports, names)
    click.echo(comparing.to_text(found))
    if html_path:
        from loadgen.html_compare import to_html

        write(html_path, to_html(found, *reports).encode())
    return 0


COMMANDS: Final = (show, merge_reports, compare_reports)


# -- files ------------------------------------------------------------------------------------


def read_report(path: Path) -> Report:
    """The report that a file holds; `-`: that standard input holds. ReportError says what is wrong."""
    try:
        if str(path) == "-":
            text = sys.stdin.buffer.read(REPORT_MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                text = file.read(REPORT_MAX_BYTES + 1)
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from None
    if len(text) > REPORT_MAX_BYTES:
        raise ReportError(f"{path}: over {REPORT_MAX_BYTES:,} bytes, no report is as large")
    try:
        return from_json(text)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None


def writable(path: Path | None) -> None:
    """Say before the work, not after it, that a file could not be written."""
    if path is None or str(path) == "-":
        return
    directory = path.absolute().parent
    if not directory.is_dir():
        raise ReportError(f"{path}: its directory does not exist")
    if not os.access(path if path.exists() else directory, os.W_OK):
        raise ReportError(f"{path}: may not be written")


def to_file(report: Report, json_path: Path | None, html_path: Path | None) -> None:
    """Write what was asked for."""
    if str(json_path) == "-":
        click.echo(to_json(report), nl=False)
    elif json_path:
        write(json_path, to_json(report))
    if html_path:
        from loadgen.html_report import to_html

        write(html_path, to_html(report).encode())


def write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from None
