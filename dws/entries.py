"""A visible page as the balancer keeps it in memory: one bytes object.

What lives here: how it is packed, and the entry that is made of it for whoever wants
more than lookups do. What must not: which pages there are and who holds them (catalog.py).

There may be millions, and a lookup finds each in memory that no cache holds: as an
object with one more for each of its fields a page took twice the bytes, and a lookup
waited for memory twice as often. What lookups need comes first:

| bytes | what |
| --- | --- |
| 8 | version |
| 8 | size |
| 32 | digest |
| 1 | length of the list digest |
| 4 | number of the group it is in (groups.py) |
| 8 | its record hash (names.py), 0 until it was needed |
| 4 | its place in the group |
| 0 to 32 | list digest |
| 16 | batch |
| the rest | content type, modified, format, in msgpack |
"""

from collections.abc import Iterator, Mapping
from struct import Struct as Layout
from typing import Any, Final

import msgspec
from msgspec import Struct

from dws.groups import Group
from dws.messages import Record, encode

_HEAD: Final = Layout("<QQ32sBIQI")
HEAD_BYTES: Final = _HEAD.size
#: What changes when another server holds the page: the group; and the record hash is kept then.
_MOVED: Final = Layout("<IQ")
_MOVED_AT: Final = Layout("<QQ32sB").size
_MOVED_END: Final = _MOVED_AT + _MOVED.size
_BATCH_BYTES: Final = 16
#: (version, size, digest, length of the list digest, which follows at HEAD_BYTES, group, record hash, place)
unpack_page: Final = _HEAD.unpack_from
#: The same up to the group: what lookups need.
unpack_head: Final = Layout("<QQ32sBI").unpack_from
_decode_rest = msgspec.msgpack.Decoder(tuple[str, float, int]).decode


class Entry(Struct, gc=False):
    """A visible page, as it was when somebody asked.

    copies: how many it is to have; 0: as many as the cluster is set to.
    holders: numbers of the servers that hold this version, ascending.
    """

    version: int
    size: int
    digest: bytes
    list_digest: bytes
    batch: bytes
    content_type: str
    modified: float
    format: int
    copies: int
    holders: tuple[int, ...]

    def record(self, name: str) -> Record:
        return Record(
            name, self.version, self.batch, self.size, self.digest, self.list_digest,
            self.content_type, self.modified, self.format, self.copies,
        )  # fmt: skip


def pack(record: Record, group: int, place: int) -> bytes:
    assert len(record.batch) == _BATCH_BYTES
    list_digest = record.list_digest
    head = _HEAD.pack(record.version, record.size, record.digest, len(list_digest), group, 0, place)
    rest = encode((record.content_type, record.modified, record.format))
    return b"".join((head, list_digest, record.batch, rest))


def regroup(packed: bytes, group: int, known_hash: int) -> bytes:
    """The same page in another group; and its record hash, if it is known by now."""
    return b"".join((packed[:_MOVED_AT], _MOVED.pack(group, known_hash), packed[_MOVED_END:]))


class Pages(Mapping[str, Entry]):
    """Packed pages, by name, as entries: each is made when it is asked for, and follows no later change."""

    def __init__(self, packed: Mapping[str, bytes], groups: Mapping[int, Group]) -> None:
        self._packed = packed
        self._groups = groups

    def __getitem__(self, name: str) -> Entry:
        packed = self._packed[name]
        version, size, digest, list_bytes, number = unpack_head(packed)
        batch_at = HEAD_BYTES + list_bytes
        rest_at = batch_at + _BATCH_BYTES
        list_digest, batch = packed[HEAD_BYTES:batch_at], packed[batch_at:rest_at]
        content_type, modified, form = _decode_rest(packed[rest_at:])
        group = self._groups[number]
        return Entry(
            version, size, digest, list_digest, batch, content_type, modified, form,
            group.copies, group.holders,
        )  # fmt: skip

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._packed else default

    def __contains__(self, name: object) -> bool:
        return name in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)
