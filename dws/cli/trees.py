"""Files from page names.

What lives here: which file each page of a `get -r` is written to, planned whole
before anything is written. What must not: writing. The reverse, which page each
file of a put becomes, is the client's (dws/nodes/trees.py).

What lies below the prefix goes below the directory. A prefix ends at a slash:
/docs is the page /docs and all below /docs/, never /docs-old.
"""

from collections.abc import Sequence
from pathlib import Path

from dws.cli.output import printable
from dws.errors import DwsError
from dws.names import check_name


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
