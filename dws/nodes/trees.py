"""A directory as a list of pages to be.

What lives here: the walk, and what makes a tree unfit to be put: symbolic links,
special files, file names that are not UTF-8 or no page names. All faults are
listed at once, before anything is sent.
"""

import os
from pathlib import Path

from dws.errors import BadName, DwsError
from dws.names import name_fault

_SHOWN_MAX = 20


def scan_tree(directory: Path, to: str = "/") -> list[tuple[str, Path, int]]:
    """(page name, file, size in bytes) of every file below `directory`, in order of name."""
    if not directory.is_dir():
        raise DwsError(f"{directory} is not a directory")
    prefix = to if to.endswith("/") else to + "/"
    files: list[tuple[str, Path, int]] = []
    faults: list[str] = []
    _walk(os.fspath(directory), prefix, files, faults)
    if faults:
        more = f"\n  … and {len(faults) - _SHOWN_MAX} more" if len(faults) > _SHOWN_MAX else ""
        shown = "".join(f"\n  {fault}" for fault in faults[:_SHOWN_MAX])
        raise BadName(f"{len(faults)} entries of {directory} cannot be put, nothing was sent:{shown}{more}")
    return files


def _walk(directory: str, prefix: str, files: list[tuple[str, Path, int]], faults: list[str]) -> None:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            shown = entry.path.encode("utf-8", "backslashreplace").decode()
            if entry.is_symlink():
                faults.append(f"{shown}: symbolic link")
            elif entry.is_dir():
                _walk(entry.path, f"{prefix}{entry.name}/", files, faults)
            elif not entry.is_file():
                faults.append(f"{shown}: not a regular file")
            else:
                fault = name_fault(prefix + entry.name)
                if fault:
                    faults.append(f"{shown}: {fault}")
                else:
                    files.append((prefix + entry.name, Path(entry.path), entry.stat().st_size))
