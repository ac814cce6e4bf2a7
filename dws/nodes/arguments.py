"""Types of what callers of the client hand over, checked before anything is sent.

What lives here: a TypeError that names the argument and what is expected. What must
not: values, which raise the DwsErrors of whoever knows their rules.
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def check_is_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name: expected a page name (str), not {_kind(name)}")


def checked_names(names: Iterable[str]) -> list[str]:
    """The names as a list. One name is an iterable of letters, and never what was meant."""
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise TypeError(f"names: expected several page names, such as a list of str, not {_kind(names)}")
    listed = list(names)
    for name in listed:
        check_is_name(name)
    return listed


def check_pages(pages: Any) -> None:
    """What `put` takes: page name → bytes, Path or binary stream."""
    if not isinstance(pages, Mapping):
        raise TypeError(f"pages: expected a mapping of page names to sources, not {_kind(pages)}")
    for name, source in pages.items():
        check_is_name(name)
        # What a sized stream holds is a stream, too.
        stream = getattr(source, "stream", source)
        is_bytes = isinstance(source, bytes | bytearray | memoryview | Path)
        is_stream = callable(getattr(stream, "read", None)) and not isinstance(stream, io.TextIOBase)
        if not (is_bytes or is_stream):
            what = f"pages[{name!r}]: expected bytes, a pathlib.Path or a binary stream"
            raise TypeError(f"{what}, not {_kind(source)}")


def check_target(target: Any) -> None:
    if not (isinstance(target, Path) or callable(getattr(target, "write", None))):
        raise TypeError(f"target: expected a pathlib.Path or a binary stream, not {_kind(target)}")


def check_is_directory_path(directory: Any) -> None:
    if not isinstance(directory, Path):
        raise TypeError(f"directory: expected a pathlib.Path, not {_kind(directory)}")


def _kind(value: Any) -> str:
    return type(value).__name__
