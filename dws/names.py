"""Page names and versions: what is legal, and how they are written.

What lives here: the check of a name (a URL path: absolute, UTF-8, never
normalised), the parts of a version number, and the keys that both are hashed
to. What must not: anything that turns a name into a file path. Stores address
pages by `page_key`, so no name can climb out of a directory.
"""

import re
import struct
from typing import Final

from blake3 import blake3

from dws.errors import BadName
from dws.limits import COUNTER_BITS, EPOCH_BITS, MANIFEST_BUCKETS, NAME_MAX_BYTES

_COUNTER_MASK: Final = (1 << COUNTER_BITS) - 1
_BUCKET_MASK: Final = MANIFEST_BUCKETS - 1
_MASK_64: Final = (1 << 64) - 1
_SUMS: Final = struct.Struct(f">{MANIFEST_BUCKETS}Q")
_unpack_tail: Final = struct.Struct(">Q").unpack_from
_GOLDEN: Final = 0x9E3779B97F4A7C15

# One or more non-empty segments; the root page is "/". A trailing slash would
# be an empty last segment, so "/docs/" is no name: edges map it to an index.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

RESERVED_PREFIX: Final = "/_dws/"


def check_name(name: str) -> None:
    """Raise BadName, saying which rule it breaks, unless `name` is a legal page name."""
    fault = name_fault(name)
    if fault:
        raise BadName(f"page name {name[:80]!r}: {fault}")


def name_fault(name: str) -> str | None:
    """The rule that `name` breaks, or None if it is legal."""
    if not name.startswith("/"):
        return "must start with '/'"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if size > NAME_MAX_BYTES:
        return f"is {size:,} bytes long, over the bound of {NAME_MAX_BYTES:,}"
    if _CONTROL.search(name):
        return "holds a control character"
    if name.startswith(RESERVED_PREFIX) or name == RESERVED_PREFIX[:-1]:
        return f"{RESERVED_PREFIX} is reserved"
    if name == "/":
        return "names no page: a name has at least one segment"
    for segment in name[1:].split("/"):
        if segment == "":
            return "has an empty segment"
        if segment in (".", ".."):
            return f"has a {segment!r} segment"
    return None


def is_content_type(text: str) -> bool:
    """Whether it can stand in an HTTP header: printable ASCII. May be empty."""
    return text.isascii() and text.isprintable()


def page_key(name: str) -> bytes:
    """16 bytes that stand for a name in every store: BLAKE3-128 of its UTF-8."""
    digest: bytes = blake3(name.encode()).digest(16)
    return digest


def bucket_of(version: int) -> int:
    """The manifest bucket, 0..255, of a record: the lowest byte of its version, so that a batch's records
    lie in one, where a store writes them side by side, and batches go round all of them."""
    return version & _BUCKET_MASK


def record_hash(key: bytes, version: int) -> int:
    """What a held record adds to its bucket's sum: 64 bits.

    The key is already uniform, so mixing the version in by a multiplication
    (Fibonacci hashing) is enough to tell two versions of one page apart.
    """
    (tail,) = _unpack_tail(key, 8)
    mixed: int = (tail ^ (version * _GOLDEN)) * _GOLDEN & _MASK_64
    return mixed ^ (mixed >> 29)


def sums_digest(sums: list[int]) -> int:
    """64 bits that stand for a manifest's 256 bucket sums: what a heartbeat carries."""
    return int.from_bytes(blake3(_SUMS.pack(*sums)).digest(8))


def make_version(epoch: int, counter: int) -> int:
    if not 0 < epoch < 1 << EPOCH_BITS:
        raise ValueError(f"epoch {epoch} is outside 1..2^{EPOCH_BITS}-1")
    if not 0 <= counter <= _COUNTER_MASK:
        raise ValueError(f"counter {counter} is outside 0..2^{COUNTER_BITS}-1")
    return epoch << COUNTER_BITS | counter


def epoch_of(version: int) -> int:
    return version >> COUNTER_BITS


def format_version(version: int) -> str:
    """`epoch.counter`, as users see it."""
    return f"{version >> COUNTER_BITS}.{version & _COUNTER_MASK}"


def parse_version(text: str) -> int:
    """The version that `epoch.counter` names; ValueError if it is not one."""
    epoch, dot, counter = text.partition(".")
    if not (dot and epoch.isascii() and epoch.isdigit() and counter.isascii() and counter.isdigit()):
        raise ValueError(f"version {text!r} is not of the form EPOCH.COUNTER, such as 3.17")
    return make_version(int(epoch), int(counter))
