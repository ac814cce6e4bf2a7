"""get: pages into files, or to standard output.

What lives here: where each page is written, and that a file appears whole or not
at all: it is written under a temporary name and renamed. What must not: the
check of digests, which the client does before it hands out a byte's end.
"""

import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Final, NamedTuple, cast

import click

from dws.cli import exits, output, trees
from dws.cli.pages import pages_within
from dws.cli.session import Session, client_options, pass_session
from dws.errors import NotFound
from dws.limits import FETCH_MAX_PAGES, KIB, MIB
from dws.messages import Record

if TYPE_CHECKING:
    from dws.nodes.client import Client

# Pages up to here are fetched many at once, into memory: at most this many bytes of them.
_SMALL_BYTES: Final = 256 * KIB
_GROUP_BYTES: Final = 16 * MIB


class Wanted(NamedTuple):
    """A page and the file it goes to; size -1 is not known."""

    name: str
    size: int
    target: Path


@click.command(
    epilog="""\b
Examples:
  dws get /docs/intro.html              write intro.html
  dws get /index.html -o -              print it
  dws get /a.css /b.css -o styles/      write styles/a.css, styles/b.css
  dws get -r / -o site                  every page, as a tree below site/
  dws get -r /docs -o manual            what is below /docs/, as manual/…
"""
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="NAMEs are prefixes; writes a tree below -o.")
@click.option("-o", "--output", "to", metavar="PATH", help="File or directory; - is standard output.")
@client_options
@pass_session
def get(session: Session, /, names: tuple[str, ...], recursive: bool, to: str | None) -> int:
    """Read pages into files or to standard output.

    Each comes from the least loaded of its servers. A page goes to a file of its name's last segment, unless
    -o says otherwise. A file that exists is replaced whole, once its page has arrived and its digest is
    right.
    """
    for name in names:
        trees.check_name_or_prefix(name, recursive)
    if recursive and to == "-":
        raise click.UsageError("-r writes a tree, which does not go to standard output")
    _check_target(names, recursive, to)
    with session.client() as client:
        if to == "-":
            return _to_stdout(client, names)
        wanted = _tree(client, names, Path(to or ".")) if recursive else _files(names, to)
        total = sum(page.size for page in wanted) if recursive else None
        with output.ProgressBar("get", pages=len(wanted), total_bytes=total) as bar:
            missing = _write_all(client, wanted, bar)
    if recursive:
        for name in missing:
            output.warn(f"{output.printable(name)} was removed meanwhile")
        written = output.pages_text(len(wanted) - len(missing))
        output.say(f"wrote {written}, {output.bytes_text(total or 0)}, below {to or '.'}")
        return exits.OK
    return output.report_missing(missing)


# -- where to ------------------------------------------------------------------------------------


def _check_target(names: Sequence[str], recursive: bool, to: str | None) -> None:
    if to is not None and to != "-" and Path(to).exists() and not Path(to).is_dir():
        if recursive or len(set(names)) > 1:
            what = "a tree goes" if recursive else f"{len(set(names)):,} pages go"
            raise click.UsageError(f"-o {to} is a file, and {what} into a directory: name one, or a new one")


def _files(names: Sequence[str], to: str | None) -> list[Wanted]:
    """Each page to a file of its last segment in the directory `to`; a single one may name its file."""
    names = list(dict.fromkeys(names))
    if len(names) == 1 and to is not None and not to.endswith("/") and not Path(to).is_dir():
        return [Wanted(names[0], -1, Path(to))]
    files = [(name, name.rpartition("/")[2]) for name in names]
    trees.check_tree(files)
    return [Wanted(name, -1, Path(to or ".") / file) for name, file in files]


def _tree(client: "Client", prefixes: Sequence[str], directory: Path) -> list[Wanted]:
    """Every page within the prefixes, to its place below the directory."""
    pages: dict[tuple[str, str], Record] = {}
    for prefix in prefixes:
        for record in pages_within(client, prefix):
            pages[record.name, trees.relative(record.name, prefix)] = record
    if not pages:
        raise NotFound(f"no page is within {', '.join(prefixes)}")
    trees.check_tree(list(pages))
    return [
        Wanted(name, record.size, trees.safe_target(directory, path))
        for (name, path), record in pages.items()
    ]


# -- writing ---------------------------------------------------------------------------------------


def _write_all(client: "Client", wanted: Sequence[Wanted], bar: output.ProgressBar) -> list[str]:
    """Writes all; returns the names of pages that are not there, or no more."""
    missing: list[str] = []
    for group in _groups(wanted):
        if len(group) > 1 and (pages := _together(client, group)):
            for page in group:
                with whole_file(page.target) as file:
                    file.write(pages[page.name])
        else:
            for page in group:
                try:
                    with whole_file(page.target) as file:
                        client.download(page.name, file, on_progress=bar)
                except NotFound:
                    missing.append(page.name)
        bar.shift_pages += len(group)
        bar.shift_bytes += sum(max(0, page.size) for page in group)
        if bar.shift_bytes:
            bar.show(bar.shift_pages, bar.shift_bytes, pages=len(wanted))
    return missing


def _together(client: "Client", group: Sequence[Wanted]) -> dict[str, bytes]:
    """The pages of the group; nothing if one was removed meanwhile, so that each is tried alone."""
    try:
        return client.get_many([page.name for page in group])
    except NotFound:
        return {}


def _groups(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Runs of small pages, and each large page or page of unknown size alone."""
    group: list[Wanted] = []
    total = 0
    for page in wanted:
        small = 0 <= page.size <= _SMALL_BYTES
        if group and (not small or len(group) == FETCH_MAX_PAGES or total + page.size > _GROUP_BYTES):
            yield group
            group, total = [], 0
        if small:
            group.append(page)
            total += page.size
        else:
            yield [page]
    if group:
        yield group


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the target's name when the block ends, and vanishes if it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():
        # A device or a pipe is written to; to rename over it would put a file in its place.
        with target.open("wb") as file:
            yield file
        return
    # Not tempfile: a downloaded page is as readable as any file that its reader makes.
    partial = target.parent / f".dws-{secrets.token_hex(8)}.part"
    try:
        with partial.open("xb") as file:
            yield file
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


# -- standard output --------------------------------------------------------------------------------


def _to_stdout(client: "Client", names: Sequence[str]) -> int:
    stdout = sys.stdout.buffer
    sink = TerminalWarner(stdout) if stdout.isatty() else stdout
    for name in names:
        client.download(name, cast(BinaryIO, sink))
    stdout.flush()
    return exits.OK


class TerminalWarner(BufferedIOBase):
    """Passes bytes on to a terminal, with a warning if the first ones are no text."""

    def __init__(self, terminal: IO[bytes]) -> None:
        self._terminal = terminal
        self._first = True

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        if self._first and b"\0" in bytes(data[: 4 * KIB]):
            output.warn("this page is no text and may upset the terminal; -o FILE writes it to a file")
        self._first = False
        return self._terminal.write(data)
