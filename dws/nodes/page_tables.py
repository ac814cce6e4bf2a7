"""The tables of a page store: which LMDB database holds what, under which keys.

What lives here: the layout on disk of records, small pages, digest lists and the
log of changes, and the counters kept with them. What must not: transactions and
page files, which page_transaction.py and page_files.py know.

| database | key | value |
| --- | --- | --- |
| meta | `format`, `identity`, `state` | 2; Identity; State |
| records | record key: bucket (1 byte), version (8, big endian), page key (16) | Record |
| inline | version, page key | bytes of a page up to INLINE_MAX_BYTES |
| lists | record key | joined chunk digests of a larger page, empty if it is one chunk |
| changes | change number (8 bytes, big endian) | Change |

Records lie apart from bytes, so that a walk over records never touches a page.
`lists` has an entry for each page that lies in a file of its own, so that
opening compares files with their pages without a walk over all records. Records
are keyed by bucket and version, bytes by version first: pages of one batch have
one version, and so one bucket, so a transaction writes neighbouring leaves of
both, and so does the drop of what a batch left; not one leaf a page.
"""

from functools import lru_cache
from typing import Any, Final, NamedTuple

import lmdb
import msgspec
from msgspec import Struct

from dws.errors import Refused
from dws.limits import MANIFEST_BUCKETS
from dws.names import bucket_of, page_key
from dws.store import Identity

FORMAT: Final = b"2"
#: Keys that are remembered: 4 MiB with names of usual length, 67 MiB of the longest there can be.
_KEYS_MAX: Final = 16_384


class State(Struct, frozen=True, array_like=True):
    """What is counted as records come and go; written in the same transactions."""

    number: int = 0  # of the last change
    pages: int = 0
    bytes: int = 0  # of all pages held, wherever they lie
    log_bytes: int = 0  # of the changes kept
    sums: tuple[int, ...] = (0,) * MANIFEST_BUCKETS


class Tables(NamedTuple):
    """Handles of the databases."""

    meta: Any
    records: Any
    inline: Any
    lists: Any
    changes: Any


def open_tables(environment: lmdb.Environment) -> Tables:
    """Make or find the databases. Raises Refused for a format that this program does not know."""
    with environment.begin(write=True) as txn:
        tables = Tables(*(environment.open_db(name.encode(), txn=txn) for name in Tables._fields))
        found = txn.get(b"format", db=tables.meta)
        if found is None:
            txn.put(b"format", FORMAT, db=tables.meta)
        elif found != FORMAT:
            raise Refused(f"{environment.path()} is a page store of format {found!r}, not {FORMAT!r}")
    return tables


def find_tables(environment: lmdb.Environment) -> Tables:
    """The databases of a store that another process made. Raises Refused if they are not there."""
    try:
        # Not in one transaction: a reading one is kept as a spare, not committed, and its handles go with it.
        tables = Tables(*(environment.open_db(name.encode(), create=False) for name in Tables._fields))
        with environment.begin() as txn:
            found = txn.get(b"format", db=tables.meta)
    except lmdb.NotFoundError:
        raise Refused(f"{environment.path()} is not a page store") from None
    if found != FORMAT:
        raise Refused(f"{environment.path()} is a page store of format {found!r}, not {FORMAT!r}")
    return tables


@lru_cache(_KEYS_MAX)
def record_key(name: str, version: int) -> bytes:
    """Remembered: to hash a name costs as much as to read its page."""
    return bucket_of(version).to_bytes() + version.to_bytes(8, "big") + page_key(name)


def inline_key(key: bytes) -> bytes:
    """Where the bytes of a small page lie, from its record key."""
    return key[1:]


def page_key_of(key: bytes) -> bytes:
    """The page key in a record key."""
    return key[9:]


def change_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


encode_identity = encode_state = msgspec.msgpack.encode
decode_identity = msgspec.msgpack.Decoder(Identity).decode
decode_state = msgspec.msgpack.Decoder(State).decode
