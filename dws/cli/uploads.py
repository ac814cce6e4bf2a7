"""put: files and directories become pages.

What lives here: flags, conditions, and the report. What must not: which page each
file becomes (dws/nodes/trees.py), and batches, which are the client's.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from dws.cli import output
from dws.cli.session import Session, client_options, json_option, pass_session
from dws.errors import DwsError
from dws.messages import ABSENT
from dws.names import check_name, format_version, parse_version
from dws.nodes.trees import PlannedFile, scan

if TYPE_CHECKING:
    from dws.nodes.client import Progress


@click.command(
    epilog="""\b
Examples:
  dws put index.html                     store /index.html
  dws put site --to /                    store what is in site/, as /index.html …
  dws put a.css img --to /static         /static/a.css, and img's files below /static
  dws put site --to /docs --dry-run      show which page each file would be
  date | dws put - --to /now.txt         store standard input
  dws put index.html --if-version 3.17   only if nobody has changed it since
"""
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--to", default="/", metavar="PREFIX", help="Where the pages go.  [default: /; for -, the page's name]"
)
@click.option("--copies", metavar="N", help="Store on so many servers.  [env DWS_COPIES; default: cluster's]")
@click.option("--if-absent", is_flag=True, help="Only if none of the pages exists.")
@click.option("--if-version", metavar="V", help="Only if the page has this version; for one page.")
@click.option("--dry-run", is_flag=True, help="Show the plan; send nothing.")
@json_option
@client_options
@pass_session
def put(
    session: Session, /, paths: tuple[str, ...], to: str, copies: str | None,
    if_absent: bool, if_version: str | None, dry_run: bool,
) -> None:  # fmt: skip
    """Store files and directories as pages.

    A file goes under the prefix by its own name; a directory's contents go under it, as with `cp -r dir/.
    prefix`. Pages go in batches of up to 1,000 and 64 MiB, each visible whole or not at all, on two servers
    when this returns. A page whose bytes are stored already is not sent again.

    Symbolic links and names that no page can have are listed, and nothing is sent.
    """
    condition = _condition(if_absent, if_version)
    options: dict[str, Any] = session.patience() | _copies(session, copies)
    if "-" in paths:
        if len(paths) > 1:
            raise click.UsageError("- (standard input) goes alone, with its name in --to")
        return _put_stdin(session, to, condition, options, dry_run)
    plan = scan(paths, to)
    if if_version and len(plan) != 1:
        raise click.UsageError(f"--if-version is for one page, and these are {len(plan):,}")
    if dry_run:
        return _show_plan(session, plan)
    if len(plan) == 1:
        [page] = plan
        options["modified"] = {page.name: page.path.stat().st_mtime}
        return _put_one(session, page.name, page.path, condition, options)
    _put_many(session, plan, options | {"if_absent": if_absent})


def _put_one(
    session: Session, name: str, source: Any, condition: int | None, options: dict[str, Any]
) -> None:
    """One page, from a file or a stream: one batch, of which the version is told."""
    conditions = None if condition is None else {name: condition}
    with session.client() as client, output.ProgressBar("put") as bar:
        result = client.put({name: source}, conditions=conditions, on_progress=bar, **options)
    # A page that was there already keeps the version it had.
    version = "" if result.skipped else format_version(result.version)
    _report(session, result.bytes, result.copies, len(result.skipped), pages=1, version=version)


def _put_many(session: Session, plan: Sequence[PlannedFile], options: dict[str, Any]) -> None:
    """Many files, several batches at a time. Each batch is atomic, all are not: a failure says how far."""
    stored = 0

    def progress(told: "Progress") -> None:
        nonlocal stored
        stored = told.pages_done
        bar(told)

    with session.client() as client, output.ProgressBar("put") as bar:
        try:
            result = client.upload_files(plan, on_progress=progress, **options)
        except DwsError:
            if stored:
                output.warn(
                    f"at least {stored:,} of {output.pages_text(len(plan))} were stored before this failed;"
                    " the same command again sends only what is missing"
                )
            raise
    _report(session, result.bytes, result.copies, result.skipped, pages=result.pages)


def _put_stdin(
    session: Session, name: str, condition: int | None, options: dict[str, Any], dry_run: bool
) -> None:
    if name.endswith("/"):
        raise click.UsageError("- (standard input) needs the page's whole name: --to /name")
    check_name(name)
    if dry_run:
        return output.data(f"- → {name}")
    _put_one(session, name, sys.stdin.buffer, condition, options)


def _report(
    session: Session, total_bytes: int, copies: int, skipped: int, *, pages: int, version: str = ""
) -> None:
    if session.json:
        told = {"pages": pages, "bytes": total_bytes, "skipped": skipped, "copies": copies}
        return output.emit_json(told | ({"version": version} if version else {}))
    unchanged = f", {skipped:,} of them unchanged" if skipped else ""
    output.data(
        f"stored {output.pages_text(pages)}, {output.bytes_text(total_bytes)}{unchanged},"
        f" copies {copies}/{copies}" + (f", version {version}" if version else "")
    )


def _condition(if_absent: bool, if_version: str | None) -> int | None:
    if if_absent and if_version:
        raise click.UsageError("--if-absent and --if-version exclude each other")
    if if_version:
        try:
            return parse_version(if_version)
        except ValueError as error:
            raise click.UsageError(f"--if-version: {error}") from None
    return ABSENT if if_absent else None


def _copies(session: Session, flag: str | None) -> dict[str, int]:
    """How many copies, if anything says so; else the client's own default."""
    if flag is None and not session.settings.is_set("config.copies"):
        return {}
    return {"copies": session.settings.config({"copies": flag}).copies}


def _show_plan(session: Session, plan: Sequence[PlannedFile]) -> None:
    if session.json:
        return output.emit_json_list(
            {"name": page.name, "path": str(page.path), "size": page.size} for page in plan
        )
    for page in plan:
        output.data(output.printable(f"{page.path} → {page.name}"))
    total = output.bytes_text(sum(page.size for page in plan))
    output.say(f"would store {output.pages_text(len(plan))}, {total}")
