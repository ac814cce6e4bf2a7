"""How data, progress and warnings are printed.

What lives here: tables of text, JSON, sizes and times for people, the progress
bar. What must not: what is in them. Data go to stdout, all else to stderr.

Text that comes from the cluster is escaped where it is not printable, so that no
page name moves a terminal's cursor. JSON is ASCII with escapes: whole and valid
in any locale.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import click

from dws.cli import exits

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from dws.nodes.client import Progress


def say(text: str) -> None:
    """A line for the person at the terminal, not part of the data."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    say(f"dws: warning: {text}")


def report_missing(names: Sequence[str]) -> int:
    """A line for each page that is not there; the exit code for them."""
    for name in names:
        say(f"dws: error: {printable(name)}: there is no such page")
    return exits.NOT_FOUND if names else exits.OK


def data(text: str) -> None:
    click.echo(text)


def emit_json(value: Any) -> None:
    """One JSON document, indented on a terminal, one line otherwise."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def emit_json_line(value: Any) -> None:
    """One of many JSON documents, a line each, as they come."""
    click.echo(json.dumps(value))


def emit_json_list(values: Iterable[Any]) -> None:
    """A JSON array of any length, one element a line, printed as its elements come."""
    separator = "["
    for value in values:
        click.echo(separator)
        click.echo("  " + json.dumps(value), nl=False)
        separator = ","
    click.echo("\n]" if separator == "," else "[]")


def printable(text: str) -> str:
    """The text with whatever is not printable escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def bytes_text(count: float) -> str:
    """1,536 → `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def counted(count: int, thing: str) -> str:
    """`1 page`, `2 pages`, `2 copies`: a noun ends in a consonant and y, or takes an s."""
    many = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{count:,} {thing if count == 1 else many}"


def pages_text(count: int) -> str:
    return counted(count, "page")


def time_text(seconds: float) -> str:
    """A wall clock time in UTC; `-` if there is none."""
    if not seconds:
        return "-"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "?"  # whoever stored the page said so


def duration_text(seconds: float) -> str:
    """0.00042 → `420 µs`, 93784 → `1 d 2 h`."""
    if seconds < 0.001:
        return f"{seconds * 1_000_000:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, two spaces apart; a heading that starts with `>` aligns to the right."""
    right = [heading.startswith(">") for heading in headings]
    lines = [[heading.lstrip(">") for heading in headings], *(list(map(printable, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


class ProgressBar:
    """Shows the client's Progress on a terminal; on anything else, nothing.

    `shift` is added to what the client tells, for work that takes several calls.
    """

    def __init__(self, label: str, *, pages: int | None = None, total_bytes: int | None = None) -> None:
        """`pages` and `total_bytes` stand for what the client tells, if it is only asked for parts."""
        self._label = label
        self._pages = pages
        self._bytes = total_bytes
        self._bar: Bar | None = None
        self.shift_pages = 0
        self.shift_bytes = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._bytes, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, told: "Progress") -> None:
        """Takes what the client tells of a put or a download."""
        copies = f", copies {told.copies_stored}/{told.copies}" if told.copies else ""
        pages, size = self.shift_pages + told.pages_done, self.shift_bytes + told.bytes_done
        self.show(pages, size, pages=self._pages or told.pages, total_bytes=told.bytes, note=copies)

    def show(
        self, pages_done: int, bytes_done: int, *, pages: int, total_bytes: int | None = None, note: str = ""
    ) -> None:
        if self._bar is not None:
            done = f"{pages_done:,}/{pages_text(pages)}{note}"
            total = self._bytes or total_bytes
            self._bar.update(self._task, completed=bytes_done, total=total, note=done)


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )


def grouped(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in runs of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
