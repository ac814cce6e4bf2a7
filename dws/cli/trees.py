"""Page names from files, and files from page names.

What lives here: which name each file of a `put` gets, and which file each page of
a `get -r` is written to. What must not: sending or writing anything. Both are
planned whole first, so that whatever is wrong is listed before anything happens.

A directory's contents go under the prefix, as with `cp -r directory/. prefix`; a
file goes under it by its own name. `get -r` is the reverse: what lies below the
prefix goes below the directory. A prefix ends at a slash: /docs is the page
/docs and all below /docs/, never /docs-old.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dws.cli.output import printable
from dws.errors import BadName, DwsError
from dws.limits import GIB, PAGE_MAX_BYTES
from dws.names import check_name, name_fault


class Planned(NamedTuple):
    """One file of a put, and the page it becomes."""

    name: str
    path: Path
    size: int
    modified: float


# -- put ---------------------------------------------------------------------------------------


def plan_put(paths: Sequence[str], to: str) -> list[Planned]:
    """The pages that a put of these files and directories makes, in order of their names.

    Symbolic links, special files, and names that no page can have raise one BadName that lists all.
    """
    prefix = to.rstrip("/")
    if prefix:
        check_name(prefix)
    elif not to:
        raise BadName("--to: a prefix starts with '/'")
    faults: list[str] = []
    plan: list[Planned] = []
    for path in paths:
        top = Path(path)
        # `link/` means the directory behind the link, as everywhere.
        info = os.stat(path) if path.endswith("/") else os.lstat(path)
        if stat.S_ISDIR(info.st_mode):
            found = _walk(top, prefix)
        else:
            found = iter([(f"{prefix}/{top.name}", top, info)])
        for name, file, info in found:
            if fault := _fault(name, file, info):
                faults.append(f"{printable(os.fsencode(file).decode(errors='backslashreplace'))}: {fault}")
            else:
                plan.append(Planned(name, file, info.st_size, info.st_mtime))
    faults += _twice(plan)
    if faults:
        raise BadName("these cannot be stored, and nothing was sent:\n  " + "\n  ".join(faults))
    return sorted(plan)


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


def _twice(plan: list[Planned]) -> Iterator[str]:
    """A line for each file whose page name another file has too."""
    first: dict[str, Path] = {}
    for page in plan:
        before = first.setdefault(page.name, page.path)
        if before is not page.path:
            yield f"{page.path}: would be {page.name}, as {before} would"


# -- get and rm -----------------------------------------------------------------------------------


def within(name: str, prefix: str) -> bool:
    """Whether the page is the prefix itself or lies below it."""
    return name == prefix or name.startswith(prefix.rstrip("/") + "/")


def check_name_or_prefix(name: str, is_prefix: bool) -> None:
    """Raise BadName unless it is a page's name, or a prefix: `/` is all, others may end in a slash."""
    if not is_prefix:
        check_name(name)
    elif name != "/":
        check_name(name.removesuffix("/"))


def relative(name: str, prefix: str) -> str:
    """The path below the target directory of a page that lies within the prefix.

    The name comes from the cluster: it is checked once more, so that no path leaves the directory.
    """
    check_name(name)
    stem = prefix.rstrip("/")
    return name.rpartition("/")[2] if name == stem else name[len(stem) + 1 :]


def check_tree(targets: Sequence[tuple[str, str]]) -> None:
    """Raise unless each (name, relative path) can be a file of one tree, next to the others."""
    first: dict[str, str] = {}
    faults = []
    for name, path in targets:
        before = first.setdefault(path, name)
        if before != name:
            faults.append(f"{name} and {before} would both be {path}")
    for path, name in first.items():
        parent = path.rpartition("/")[0]
        while parent:
            if parent in first:
                faults.append(f"{first[parent]} would be a file, and {name} a file below it")
            parent = parent.rpartition("/")[0]
    if faults:
        lines = "\n  ".join(map(printable, sorted(set(faults))))
        raise DwsError(f"these pages fit no one directory, and nothing was written:\n  {lines}")


def safe_target(directory: Path, path: str) -> Path:
    """The file below the directory, unless a symbolic link on the way leads elsewhere."""
    target = directory
    for part in path.split("/")[:-1]:
        target /= part
        if target.is_symlink():
            raise DwsError(f"{target} is a symbolic link: what lies below it is not written; remove it first")
    return target / path.rpartition("/")[2]
