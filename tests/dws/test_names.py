"""Names, versions and the sums made of them: what is legal, and that nothing collides or climbs."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dws.errors import BadName
from dws.limits import COUNTER_BITS, EPOCH_BITS, MANIFEST_BUCKETS, NAME_MAX_BYTES
from dws.names import (
    bucket_of,
    check_name,
    epoch_of,
    format_version,
    is_content_type,
    make_version,
    name_fault,
    page_key,
    parse_version,
    record_hash,
    sums_digest,
)

U64 = 1 << 64


@pytest.mark.parametrize(
    "name",
    [
        "/a",
        "/index.html",
        "/a/b/c",
        "/with space",
        "/100%",
        "/a%2e%2e/b",
        "/…/ä/日本",
        "/...",
        "/.hidden",
        "/a..b",
        "/_dwsx",
        "/a/_dws/b",
        "/" + "x" * (NAME_MAX_BYTES - 1),
    ],
)
def test_these_are_names(name: str) -> None:
    assert name_fault(name) is None
    check_name(name)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "start with"),
        ("a", "start with"),
        ("http://host/a", "start with"),
        ("/", "at least one segment"),
        ("//a", "empty segment"),
        ("/a//b", "empty segment"),
        ("/a/", "empty segment"),
        ("/.", "'.' segment"),
        ("/a/../b", "'..' segment"),
        ("/a/..", "'..' segment"),
        ("/a\0b", "control"),
        ("/a\nb", "control"),
        ("/a\x7f", "control"),
        ("/a\x85", "control"),
        ("/_dws", "reserved"),
        ("/_dws/status", "reserved"),
        ("/\ud800", "UTF-8"),
        ("/" + "x" * NAME_MAX_BYTES, "1,025 bytes"),
        ("/" + "ä" * 512, "1,025 bytes"),
    ],
)
def test_these_are_none_and_the_error_says_which_rule_they_break(name: str, rule: str) -> None:
    assert rule in str(name_fault(name))
    with pytest.raises(BadName, match=r"page name '.*"):
        check_name(name)


@given(st.text(max_size=40))
def test_a_name_is_legal_as_it_is_or_not_at_all(name: str) -> None:
    """Never normalised: whatever is accepted has no segment that a path would resolve."""
    if name_fault(name) is None:
        assert name.startswith("/") and len(name.encode()) <= NAME_MAX_BYTES
        assert all(segment not in ("", ".", "..") for segment in name[1:].split("/"))
        assert name.isprintable() or not any(ord(each) < 32 or 127 <= ord(each) < 160 for each in name)


def test_content_types_can_stand_in_a_header() -> None:
    assert is_content_type("") and is_content_type("text/html; charset=utf-8")
    assert not is_content_type("text/html\r\nX: y") and not is_content_type("téxt")


# -- versions --------------------------------------------------------------------------

EPOCHS, COUNTERS = st.integers(1, (1 << EPOCH_BITS) - 1), st.integers(0, (1 << COUNTER_BITS) - 1)


@given(EPOCHS, COUNTERS)
def test_a_version_is_an_epoch_and_a_counter_and_reads_back(epoch: int, counter: int) -> None:
    version = make_version(epoch, counter)
    assert version < U64 and epoch_of(version) == epoch
    assert format_version(version) == f"{epoch}.{counter}"
    assert parse_version(format_version(version)) == version


@given(EPOCHS, COUNTERS, EPOCHS, COUNTERS)
def test_versions_of_a_later_epoch_are_higher(e1: int, c1: int, e2: int, c2: int) -> None:
    assert (make_version(e1, c1) < make_version(e2, c2)) == ((e1, c1) < (e2, c2))


@pytest.mark.parametrize(
    "text", ["", "3", "3.", ".3", "a.b", "3.4.5", "-1.2", "0.1", "3.1e3", "٣.٤", "268435456.1"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_version(text)


@pytest.mark.parametrize(
    ("epoch", "counter"), [(0, 1), (1 << EPOCH_BITS, 1), (1, -1), (1, 1 << COUNTER_BITS)]
)
def test_parts_outside_their_bits_are_refused(epoch: int, counter: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        make_version(epoch, counter)


# -- keys and sums ---------------------------------------------------------------------


def test_keys_are_sixteen_bytes() -> None:
    keys = {page_key(f"/{number}") for number in range(5000)}
    assert len(keys) == 5000 and {len(key) for key in keys} == {16}


def test_batches_in_a_row_go_round_all_buckets() -> None:
    for epoch in (1, 2):
        buckets = [bucket_of(make_version(epoch, counter)) for counter in range(1000)]
        assert buckets == [counter % MANIFEST_BUCKETS for counter in range(1000)]


def test_two_versions_of_a_page_and_two_pages_add_differently() -> None:
    """Sums tell a held version from another one, or a missing page would hide behind a surplus one."""
    rng = Random(1)
    seen = set()
    for number in range(300):
        key = page_key(f"/{number}")
        for _ in range(30):
            seen.add(record_hash(key, make_version(rng.randint(1, 1000), rng.randint(0, 1000))))
        for version in range(30):
            seen.add(record_hash(key, make_version(1, version)))
    assert len(seen) > 17_900, "of 18,000, some versions may be drawn twice"
    assert all(0 <= each < U64 for each in seen)


@given(st.lists(st.integers(0, U64 - 1), min_size=256, max_size=256), st.integers(0, 255))
def test_a_digest_of_sums_changes_with_any_of_them(sums: list[int], index: int) -> None:
    digest = sums_digest(sums)
    assert 0 <= digest < U64
    changed = list(sums)
    changed[index] = (changed[index] + 1) % U64
    assert sums_digest(changed) != digest
