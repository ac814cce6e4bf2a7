"""A packed page gives back what was put in, whatever that is; and its group is all that changes in it."""

from hypothesis import given
from hypothesis import strategies as st

from dws.entries import HEAD_BYTES, Entry, Pages, pack, regroup, unpack_head, unpack_page
from dws.groups import Group
from dws.limits import CONTENT_TYPE_MAX, PAGE_MAX_BYTES
from dws.messages import Record, decode_record, encode

PLACES = st.integers(0, (1 << 32) - 1)
#: All that a message may bring.
RECORDS = st.builds(
    Record,
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    version=st.integers(0, (1 << 64) - 1),
    batch=st.binary(min_size=16, max_size=16),
    size=st.integers(0, PAGE_MAX_BYTES),
    digest=st.binary(min_size=32, max_size=32),
    list_digest=st.binary(max_size=32),
    content_type=st.text(st.characters(codec="utf-8"), max_size=CONTENT_TYPE_MAX),
    modified=st.floats(-62_135_596_800, 253_402_300_799),
    format=st.integers(-(1 << 63), (1 << 64) - 1),
    copies=st.integers(0, 16),
)


@given(RECORDS, PLACES, PLACES, PLACES, st.integers(0, (1 << 64) - 1))
def test_what_is_packed_comes_back(
    record: Record, before: int, number: int, place: int, known_hash: int
) -> None:
    assert decode_record(encode(record)) == record
    packed = regroup(pack(record, before, place), number, known_hash)
    assert regroup(packed, before, 0) == pack(record, before, place)
    pages = Pages({record.name: packed}, {number: Group(number, record.copies, (3, 7))})
    entry = pages[record.name]
    assert entry.record(record.name) == record
    assert entry.holders == (3, 7)
    head = (record.version, record.size, record.digest, len(record.list_digest))
    assert unpack_head(packed) == (*head, number)
    assert unpack_page(packed) == (*head, number, known_hash, place)
    assert packed[HEAD_BYTES : HEAD_BYTES + len(record.list_digest)] == record.list_digest


def test_pages_are_a_mapping_of_entries() -> None:
    record = Record("/a", 5, bytes(16), 3, bytes(32), b"", "text/plain", 1.5, 1)
    packed = {"/a": pack(record, 0, 1)}
    pages = Pages(packed, {0: Group(0, 0, ())})
    assert list(pages) == ["/a"] and len(pages) == 1 and "/a" in pages and "/b" not in pages
    assert pages.get("/b") is None
    assert (
        pages.get("/a") == pages["/a"] == Entry(5, 3, bytes(32), b"", bytes(16), "text/plain", 1.5, 1, 0, ())
    )
    del packed["/a"]
    assert not pages and pages.get("/a") is None
