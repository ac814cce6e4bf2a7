"""Files and directories as a list of pages to be.

What lives here: which page each file becomes, and what is unfit to be one:
symbolic links, special files, names that are not UTF-8 or no page names. All
faults are listed at once, before anything is sent. What must not: reading or
sending any file.

A directory's contents go under the prefix, as with `cp -r directory/. prefix`; a
file goes under it by its own name.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dws.errors import BadName, DwsError
from dws.limits import GIB, PAGE_MAX_BYTES
from dws.names import check_name, name_fault


class PlannedFile(NamedTuple):
    """A file, and the page it becomes."""

    name: str
    path: Path
    size: int


def scan_tree(directory: Path, to: str = "/") -> list[PlannedFile]:
    """Every file below `directory`, in order of page name."""
    if not directory.is_dir():
        raise DwsError(f"{directory} is not a directory")
    return scan([f"{directory}/"], to)


def scan(paths: Sequence[str], to: str = "/") -> list[PlannedFile]:
    """The pages that these files and directories make, in order of name; BadName lists all that cannot be.

    A path that is a symbolic link is a fault, too; with a slash at its end it is the directory behind it.
    """
    prefix = to.rstrip("/")
    if prefix or not to:
        check_name(prefix)
    faults: list[str] = []
    files: list[PlannedFile] = []
    for path in paths:
        for name, file, info in _found(path, prefix):
            if fault := _fault(name, file, info):
                faults.append(f"{_shown(file)}: {fault}")
            else:
                files.append(PlannedFile(name, file, info.st_size))
    faults += _twice(files)
    if faults:
        raise BadName("these cannot be stored, and nothing was sent:\n  " + "\n  ".join(faults))
    return sorted(files)


def _found(path: str, prefix: str) -> Iterator[tuple[str, Path, os.stat_result]]:
    info = os.stat(path) if path.endswith("/") else os.lstat(path)
    if stat.S_ISDIR(info.st_mode):
        yield from _walk(Path(path), prefix)
    else:
        yield f"{prefix}/{Path(path).name}", Path(path), info


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Every entry below the directory that is not itself a directory, hidden ones included."""
    with os.scandir(directory) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        name = f"{prefix}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), name)
        else:
            yield name, Path(entry.path), entry.stat(follow_symlinks=False)


def _fault(name: str, file: Path, info: os.stat_result) -> str | None:
    """Why this file cannot become a page, or None."""
    if stat.S_ISLNK(info.st_mode):
        return "is a symbolic link; store what it points to, or leave it out"
    if not stat.S_ISREG(info.st_mode):
        return "is no regular file"
    if info.st_size > PAGE_MAX_BYTES:
        return f"has {info.st_size:,} bytes, over a page's bound of {PAGE_MAX_BYTES // GIB} GiB"
    if not os.access(file, os.R_OK):
        return "must not be read by you"
    fault = name_fault(name)
    return f"as a page name, {fault}" if fault else None


def _twice(files: list[PlannedFile]) -> Iterator[str]:
    """A line for each file whose page name another file has too."""
    first: dict[str, Path] = {}
    for file in files:
        before = first.setdefault(file.name, file.path)
        if before is not file.path:
            yield f"{_shown(file.path)}: would be {file.name}, as {_shown(before)} would"


def _shown(path: Path) -> str:
    """A path for people: bytes that are no UTF-8, and what is not printable, escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
