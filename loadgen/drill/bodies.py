"""Pages that tell by themselves which put they came from.

What lives here: the bytes of a drill's pages. Each put of a drill has a number of its own, which the pages
that it stored begin with; the rest follows from name, number and size. So a reader knows what it sees, and
whether each byte is right, from the page alone.
"""

from typing import Final

from blake3 import blake3

#: What a page begins with: number and size, both of fixed length.
HEAD_BYTES: Final = 32


class WrongBytesError(Exception):
    """What was delivered is no page that a put of this drill stored; the text says why."""


def body(name: str, number: int, size: int) -> bytes:
    """The page that put `number` stored under `name`; at least HEAD_BYTES long."""
    head = f"{number:016d} {size:014d}\n".encode()
    return head + bytes(blake3(head + name.encode()).digest(length=max(0, size - HEAD_BYTES)))


def number_of(name: str, data: bytes) -> int:
    """Which put's it is. Raises WrongBytesError if it is none's, whole and unchanged."""
    try:
        number, size = int(data[:16]), int(data[17:31])
    except ValueError:
        raise WrongBytesError(f"{name}: begins with {data[:HEAD_BYTES]!r}") from None
    # Never a body of a size that was misread: it may be any.
    if size != len(data) or number < 0 or data != body(name, number, size):
        raise WrongBytesError(f"{name}: {len(data):,} bytes that put {number} did not store")
    return number
