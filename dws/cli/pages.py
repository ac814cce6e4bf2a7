"""ls, stat and rm: the commands on pages that are there.

What lives here: flags, and how records are printed. What must not: the ways of
bytes, up (uploads.py) and down (downloads.py).
"""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from dws.cli import exits, output, trees
from dws.cli.session import Session, client_options, json_option, pass_session
from dws.errors import NotFound
from dws.limits import LOCATE_MAX_NAMES
from dws.messages import PageStat, Record
from dws.names import format_version

if TYPE_CHECKING:
    from dws.nodes.client import Client

LIVE = ("alive", "suspect", "draining")


def plain_record(record: Record) -> dict[str, Any]:
    """A page as --json prints it."""
    return {
        "name": record.name,
        "version": format_version(record.version),
        "size": record.size,
        "digest": record.digest.hex(),
        "content_type": record.content_type,
        "modified": record.modified,
    }


def pages_within(client: "Client", prefix: str) -> Iterator[Record]:
    """The page of that name, if there is one, and all below it."""
    stem = prefix.rstrip("/")
    if stem and stem == prefix:
        [page] = client.stat([stem])
        if page is not None:
            yield page.record
    yield from client.list(stem + "/")


# -- ls and stat ----------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Examples:
  dws ls                     every page
  dws ls /docs               /docs and what is below /docs/
  dws ls -l /docs            with size, time and version
  dws ls --json | jq '.[].name'
"""
)
@click.argument("prefix", default="/")
@click.option("-l", "--long", is_flag=True, help="Size, time, version and content type as well.")
@json_option
@client_options
@pass_session
def ls(session: Session, /, prefix: str, long: bool) -> None:
    """List pages, in order of their names."""
    trees.check_name_or_prefix(prefix, is_prefix=True)
    with session.client() as client:
        records = pages_within(client, prefix)
        if session.json:
            return output.emit_json_list(map(plain_record, records))
        for record in records:
            name = output.printable(record.name)
            if long:
                when, version = output.time_text(record.modified), format_version(record.version)
                kind = output.printable(record.content_type)
                name = f"{record.size:>14,}  {when:<19}  {version:>10}  {kind:<24}  {name}"
            output.data(name)


@click.command(
    epilog="""\b
Examples:
  dws stat /index.html
  dws stat --json /index.html /logo.svg
  dws stat -r --json / | jq '.[] | select(.copies < 2).name'
"""
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="NAMEs are prefixes.")
@json_option
@client_options
@pass_session
def stat(session: Session, /, names: tuple[str, ...], recursive: bool) -> int:
    """Show versions, digests and holders of pages.

    `copies` counts holders that live. Exit code 3 if a page is missing; the others are shown.
    """
    for name in names:
        trees.check_name_or_prefix(name, recursive)
    missing: list[str] = []

    def found() -> Iterator[PageStat]:
        for name, page in _stats(client, _all_within(client, names) if recursive else names):
            if page is not None:
                yield page
            elif not recursive:
                missing.append(name)

    with session.client() as client:
        if session.json:
            output.emit_json_list(map(_plain_stat, found()))
        else:
            for page in found():
                output.data(_stat_text(page))
    return output.report_missing(missing)


def has_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def _all_within(client: "Client", prefixes: Iterable[str]) -> list[str]:
    """The names of all pages within these prefixes, each once."""
    names = {record.name: None for prefix in prefixes for record in pages_within(client, prefix)}
    if not names:
        raise NotFound(f"no page is within {', '.join(prefixes)}")
    return list(names)


def _stats(client: "Client", names: Iterable[str]) -> Iterator[tuple[str, PageStat | None]]:
    for group in output.grouped(list(names), LOCATE_MAX_NAMES):
        yield from zip(group, client.stat(group), strict=True)


def _live(page: PageStat) -> int:
    return sum(holder.state in LIVE for holder in page.holders)


def _plain_stat(page: PageStat) -> dict[str, Any]:
    holders = [{"name": holder.name, "state": holder.state} for holder in page.holders]
    return plain_record(page.record) | {"copies": _live(page), "holders": holders}


def _stat_text(page: PageStat) -> str:
    record = page.record
    holders = ", ".join(f"{holder.name} ({holder.state})" for holder in page.holders) or "none known"
    return (
        f"{output.printable(record.name)}\n"
        f"  version   {format_version(record.version)}\n"
        f"  size      {record.size:,} bytes\n"
        f"  digest    {record.digest.hex()}\n"
        f"  type      {output.printable(record.content_type)}\n"
        f"  modified  {output.time_text(record.modified)}\n"
        f"  copies    {_live(page)}: {output.printable(holders)}"
    )


# -- rm -----------------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Examples:
  dws rm /old.html
  dws rm -r /docs            /docs and what is below /docs/, after a question
  dws rm -r --yes /          every page
"""
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="NAMEs are prefixes.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@client_options
@pass_session
def rm(session: Session, /, names: tuple[str, ...], recursive: bool, yes: bool) -> int:
    """Remove pages.

    Up to 1,000 of them vanish in one decision. Names that are not there are reported, with exit code 3; the
    others are removed.
    """
    for name in names:
        trees.check_name_or_prefix(name, recursive)
    if recursive and not yes and not has_terminal():
        raise click.UsageError("rm -r asks first, and there is no terminal to ask on: say --yes")
    with session.client() as client:
        if recursive:
            found = _all_within(client, names)
            count = output.pages_text(len(found))
            if not yes and not click.confirm(f"remove {count} within {', '.join(names)}?", err=True):
                output.say("nothing was removed")
                return exits.FAILED
        else:
            found = [name for name, page in _stats(client, dict.fromkeys(names)) if page is not None]
        removed = client.remove(found, **session.patience()).removed if found else 0
    missing = [] if recursive else [name for name in dict.fromkeys(names) if name not in set(found)]
    if session.json:
        output.emit_json({"removed": removed, "missing": missing})
    else:
        output.data(f"removed {output.pages_text(removed)}")
    return output.report_missing(missing)
