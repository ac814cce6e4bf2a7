"""Conditions, ranges and headers of an endpoint, as tables (RFC 9110)."""

import pytest
from blake3 import blake3

from dws.http.serving import (
    Asked,
    Target,
    answer_headers,
    back_to_gateway,
    http_date,
    judge,
    page_headers,
    parse_query,
)
from dws.http.tally import Tally
from dws.limits import RESPONSE_BOUNDS_S, VISITS_MAX_PAGES
from dws.loadbook import LoadBook
from dws.messages import Record
from dws.names import make_version

BODY = b"0123456789"
AT = 784_111_777.25  # RFC 9110's own example
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"


def record(body: bytes = BODY) -> Record:
    version = make_version(3, 17)
    return Record("/a", version, bytes(16), len(body), blake3(body).digest(), b"", "text/plain", AT, 1)


TAG = f'"{record().digest.hex()}"'


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("bytes=0-3", (206, 0, 4)),
        ("bytes=0-0", (206, 0, 1)),
        ("bytes=3-", (206, 3, 10)),
        ("bytes=-3", (206, 7, 10)),
        ("bytes=-10", (206, 0, 10)),
        ("bytes=-99", (206, 0, 10)),
        ("bytes=9-9", (206, 9, 10)),
        ("bytes=5-99999999999999999999999999", (206, 5, 10)),
        ("BYTES = 1-2", (206, 1, 3)),
        ("bytes=10-", (416, 0, 0)),
        ("bytes=99-100", (416, 0, 0)),
        ("bytes=" + "9" * 5000 + "-", (416, 0, 0)),
        ("bytes=-0", (416, 0, 0)),
        ("bytes=0-1,3-4", (200, 0, 10)),  # several at once may be answered by the whole
        ("bytes=4-2", (200, 0, 10)),
        ("bytes=-", (200, 0, 10)),
        ("bytes=a-b", (200, 0, 10)),
        ("bytes=1-2-3", (200, 0, 10)),
        ("bytes=+1-2", (200, 0, 10)),
        ("bytes=٣-4", (200, 0, 10)),
        ("lines=1-2", (200, 0, 10)),
        ("", (200, 0, 10)),
    ],
)
def test_range(field: str, expected: tuple[int, int, int]) -> None:
    assert judge(record(), Asked(range=field), "GET") == expected


@pytest.mark.parametrize(("field", "status"), [("bytes=0-", 416), ("bytes=-5", 200), ("bytes=-0", 416)])
def test_range_of_an_empty_page(field: str, status: int) -> None:
    assert judge(record(b""), Asked(range=field), "GET").status == status


def test_head_has_no_range() -> None:
    assert judge(record(), Asked(range="bytes=1-2"), "HEAD") == (200, 0, 10)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (Asked(if_none_match=TAG), 304),
        (Asked(if_none_match="W/" + TAG), 304),
        (Asked(if_none_match=f'"x", {TAG}'), 304),
        (Asked(if_none_match="*"), 304),
        (Asked(if_none_match='"x"'), 200),
        (Asked(if_modified_since=DATE), 304),
        (Asked(if_modified_since=AFTER), 304),
        (Asked(if_modified_since=BEFORE), 200),
        (Asked(if_modified_since="yesterday"), 200),
        # If-None-Match makes If-Modified-Since meaningless, either way
        (Asked(if_none_match='"x"', if_modified_since=DATE), 200),
        (Asked(if_none_match=TAG, if_modified_since=BEFORE), 304),
        (Asked(if_match=TAG), 200),
        (Asked(if_match="*"), 200),
        (Asked(if_match='"x"'), 412),
        (Asked(if_match="W/" + TAG), 412),
        (Asked(if_unmodified_since=DATE), 200),
        (Asked(if_unmodified_since=BEFORE), 412),
        (Asked(if_unmodified_since="tomorrow"), 200),
        (Asked(if_match=TAG, if_unmodified_since=BEFORE), 200),
        # 412 comes before 304, and both before any range
        (Asked(if_match='"x"', if_none_match=TAG), 412),
        (Asked(if_match=TAG, if_none_match=TAG), 304),
        (Asked(range="bytes=99-", if_none_match=TAG), 304),
        (Asked(range="bytes=99-", if_match='"x"'), 412),
        (Asked(range="bytes=0-1", if_range=TAG), 206),
        (Asked(range="bytes=0-1", if_range='"x"'), 200),
        (Asked(range="bytes=0-1", if_range="W/" + TAG), 200),
        (Asked(range="bytes=0-1", if_range=DATE), 206),
        (Asked(range="bytes=0-1", if_range=AFTER), 200),
        (Asked(range="bytes=0-1", if_range="nonsense"), 200),
        (Asked(range="bytes=99-", if_range='"x"'), 200),
        (Asked(if_range='"x"'), 200),
    ],
)
def test_conditions(asked: Asked, status: int) -> None:
    assert judge(record(), asked, "GET").status == status


def test_headers() -> None:
    page = dict(page_headers(record()))
    assert page["etag"] == TAG
    assert page["last-modified"] == DATE
    assert page["cache-control"] == "max-age=31536000, immutable"
    part = dict(answer_headers(record(), judge(record(), Asked(range="bytes=2-4"), "GET")))
    assert (part["content-range"], part["content-length"]) == ("bytes 2-4/10", "3")
    none = dict(answer_headers(record(), judge(record(), Asked(range="bytes=10-"), "GET")))
    assert none["content-range"] == "bytes */10"
    same = dict(answer_headers(record(), judge(record(), Asked(if_none_match="*"), "GET")))
    assert same["etag"] == TAG
    assert "content-length" not in same


def test_dates_at_the_ends_of_time() -> None:
    assert http_date(-62_135_596_800) == "Mon, 01 Jan 0001 00:00:00 GMT"
    assert http_date(253_402_300_799) == "Fri, 31 Dec 9999 23:59:59 GMT"
    assert http_date(-0.5) == "Wed, 31 Dec 1969 23:59:59 GMT"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", Target(None)),
        ("v=3.17", Target(make_version(3, 17))),
        ("v=3.17&not=1,2", Target(make_version(3, 17), (1, 2))),
        ("not=4&v=3.17", Target(make_version(3, 17), (4,))),
        ("not=4", Target(None, (4,))),
        ("v=", Target(-1)),
        ("v=0.1", Target(-1)),
        ("v=99999999999999.1", Target(-1)),
        ("v=a.b", Target(-1)),
        ("v=3.17&not=1,x", Target(make_version(3, 17))),
        ("v=3.17&not=" + ",".join("1" * 99), Target(make_version(3, 17))),
        ("utm_source=x", Target(None)),
        ("&".join(f"a{number}=1" for number in range(99)), Target(None)),
        ("v=" + "9" * 10_000 + ".1", Target(-1)),
    ],
)
def test_query(query: str, expected: Target) -> None:
    assert parse_query(query) == expected


def test_redirects_are_percent_encoded_once() -> None:
    assert back_to_gateway("http://g:1", "/a b/ü?#%41", ()) == "http://g:1/a%20b/%C3%BC%3F%23%2541"
    assert back_to_gateway("http://g:1", "/a", (1, 2)) == "http://g:1/a?not=1,2"
    assert "\r" not in back_to_gateway("http://g:1", "/a\r\nx: y", ())


def test_a_tally_is_told_once_and_in_parts() -> None:
    tally, book = Tally(b"e" * 16), LoadBook(30.0, 0.0)
    names = [f"/{number}" for number in range(2 * VISITS_MAX_PAGES + 1)]
    for name in names:
        tally.visit(name, 2, 20)
    tally.failed += 3
    tally.took(0.000_2)
    reports = 0
    more = True
    while more:
        report = tally.report()
        assert len(report.pages) <= VISITS_MAX_PAGES
        book.report(report)
        book.report(report)  # its answer was lost
        assert tally.report() is report
        more = tally.counted(report)
        assert not tally.counted(report) or more  # an answer that comes twice takes nothing off
        reports += 1
    assert reports == 3
    assert (book.served, book.visits, book.failed) == (2 * len(names), 2 * len(names), 3)
    assert book.bytes_sent == 20 * len(names)
    assert book.pages == {name: [2, 20] for name in names}
    assert book.response == [0, 1, *[0] * (len(RESPONSE_BOUNDS_S) - 1)]
    assert tally.report().served == 0


def test_what_comes_while_a_report_waits_is_in_the_next() -> None:
    tally, book = Tally(b"e" * 16), LoadBook(30.0, 0.0)
    tally.visit("/a", 1, 10)
    first = tally.report()
    tally.visit("/a", 1, 10)
    assert tally.report() is first
    book.report(first)
    tally.counted(first)
    book.report(tally.report())
    assert book.pages == {"/a": [2, 20]}
    # another life of the endpoint begins to count anew
    again = Tally(b"f" * 16)
    again.visit("/a", 1, 10)
    book.report(again.report())
    assert book.served == 3
