"""What an HTTP endpoint answers: targets, headers of a page, conditions and ranges (RFC 9110).

What lives here: pure functions from a request's text and a page's record to a
status and headers. What must not: sockets, stores, and clocks.
"""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import parse_qs, quote

from dws.messages import Record
from dws.names import is_content_type, parse_version

Headers = list[tuple[str, str]]

#: Header fields whose absence means: the whole page, unconditionally.
CONDITIONS: Final = ("range", "if-none-match", "if-modified-since", "if-match", "if-unmodified-since")
DEFAULT_TYPE: Final = "application/octet-stream"
#: Servers that a redirect may say did not have the page; the gateway gives up long before.
_AVOID_MAX: Final = 8

# RFC 3986's pchar, and "/": what a path may hold as it is.
_PATH_SAFE: Final = "/-._~!$&'()*+,;=:@"
_RANGE: Final = re.compile(r"[ \t]*bytes[ \t]*=[ \t]*(?P<first>[0-9]*)-(?P<last>[0-9]*)[ \t]*", re.IGNORECASE)
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


# -- targets ---------------------------------------------------------------------------


class Target(NamedTuple):
    """What a query asks of a page. version None: no version is named; -1: what is named is none."""

    version: int | None
    avoid: tuple[int, ...] = ()


def parse_query(query: str) -> Target:
    """`v=EPOCH.COUNTER` and `not=1,2`; anything else is passed over."""
    if not query:
        return Target(None)
    if query.startswith("v=") and "&" not in query:
        return Target(_version(query[2:]))
    try:
        fields = parse_qs(query, keep_blank_values=True, max_num_fields=16)
    except ValueError:
        return Target(None)
    version = _version(fields["v"][0]) if "v" in fields else None
    return Target(version, parse_avoid(fields.get("not", [""])[0]))


def parse_avoid(text: str) -> tuple[int, ...]:
    """The numbers of servers that a `not=` lists; none if it is malformed."""
    parts = text.split(",") if text else []
    if len(parts) > _AVOID_MAX or not all(re.fullmatch("[0-9]{1,5}", part) for part in parts):
        return ()
    return tuple(int(part) for part in parts)


def _version(text: str) -> int:
    try:
        return parse_version(text[:32])
    except ValueError:
        return -1


def url_path(name: str) -> str:
    """A name (or any decoded path) as it stands in a URL."""
    return quote(name, safe=_PATH_SAFE)


def back_to_gateway(gateway: str, path: str, avoid: Sequence[int]) -> str:
    """Where a page that cannot be served here is asked for again."""
    url = gateway + url_path(path)
    return f"{url}?not={','.join(map(str, avoid))}" if avoid else url


# -- headers ---------------------------------------------------------------------------


def http_date(seconds: float) -> str:
    """An IMF-fixdate, such as `Sun, 06 Nov 1994 08:49:37 GMT`."""
    at = time.gmtime(int(seconds // 1))
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04}"
        f" {at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
    )


def etag_of(record: Record) -> str:
    return f'"{record.digest.hex()}"'


def page_headers(record: Record) -> Headers:
    """Of a 200 with the whole page, but for Content-Length."""
    kind = record.content_type
    return [
        # A record's own word for it comes from afar: what could break a header out of its line is not told.
        ("content-type", kind if kind and is_content_type(kind) else DEFAULT_TYPE),
        ("cache-control", "max-age=31536000, immutable"),
        ("etag", etag_of(record)),
        ("last-modified", http_date(record.modified)),
        ("accept-ranges", "bytes"),
        ("access-control-allow-origin", "*"),
        ("x-content-type-options", "nosniff"),
    ]


def plain_headers(*more: tuple[str, str]) -> Headers:
    """Of an answer that is no page: a redirect, an error, a figure."""
    return [
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "no-store"),
        ("access-control-allow-origin", "*"),
        ("x-content-type-options", "nosniff"),
        *more,
    ]


# -- conditions and ranges ---------------------------------------------------------------


class Asked(NamedTuple):
    """A request's fields that make its answer depend on more than the page; None where absent."""

    range: str | None = None
    if_none_match: str | None = None
    if_modified_since: str | None = None
    if_match: str | None = None
    if_unmodified_since: str | None = None
    if_range: str | None = None


class Verdict(NamedTuple):
    """status: 200, 206, 304, 412 or 416. The bytes to send are start … end-1; none unless 200 or 206."""

    status: int
    start: int
    end: int


def judge(record: Record, asked: Asked, method: str) -> Verdict:
    """RFC 9110, 13.2.2: the preconditions in their order, and then the range."""
    failed = _precondition(record, asked)
    if failed:
        return Verdict(failed, 0, 0)
    whole = Verdict(200, 0, record.size)
    if asked.range is None or method != "GET":
        return whole
    if asked.if_range is not None and not _range_applies(record, asked.if_range):
        return whole
    return _ranged(asked.range, record.size) or whole


def answer_headers(record: Record, verdict: Verdict) -> Headers:
    """All headers of an answer with this verdict."""
    status, start, end = verdict
    if status == 412:
        return plain_headers()
    if status == 416:
        return plain_headers(("content-range", f"bytes */{record.size}"), ("accept-ranges", "bytes"))
    headers = page_headers(record)
    if status == 304:
        # Nothing about the bytes, which do not come: the client has them with these.
        return [each for each in headers if each[0] not in ("content-type", "accept-ranges")]
    if status == 206:
        headers.append(("content-range", f"bytes {start}-{end - 1}/{record.size}"))
    headers.append(("content-length", str(end - start)))
    return headers


def _precondition(record: Record, asked: Asked) -> int:
    """412 or 304, or 0 if the request is to be carried out."""
    if asked.if_match is not None:
        if not _matches(record, asked.if_match, weakly=False):
            return 412
    elif (since := _date(asked.if_unmodified_since)) is not None and _modified(record) > since:
        return 412
    if asked.if_none_match is not None:
        if _matches(record, asked.if_none_match, weakly=True):
            return 304
    elif (since := _date(asked.if_modified_since)) is not None and _modified(record) <= since:
        return 304
    return 0


def _matches(record: Record, field: str, weakly: bool) -> bool:
    from werkzeug.http import parse_etags

    tags = parse_etags(field)
    tag = record.digest.hex()
    return tags.contains_weak(tag) if weakly else tag in tags


def _range_applies(record: Record, field: str) -> bool:
    """If-Range: whether the client's part is of this very page (strong comparison, or the exact date)."""
    text = field.strip()
    if text.startswith(('"', "W/")):
        return text == etag_of(record)
    return _date(text) == _modified(record)


def _ranged(field: str, size: int) -> Verdict | None:
    """None: the field is to be ignored: another unit, malformed, or several ranges at once."""
    match = _RANGE.fullmatch(field)
    if match is None:
        return None
    first, last = _number(match["first"]), _number(match["last"])
    if first is None:
        if last is None:
            return None
        if last == 0:
            return Verdict(416, 0, 0)
        # A page of no bytes has no part that a 206 could name.
        return Verdict(206, max(0, size - last), size) if size else None
    if last is not None and last < first:
        return None
    if first >= size:
        return Verdict(416, 0, 0)
    return Verdict(206, first, size if last is None else min(last + 1, size))


def _number(digits: str) -> int | None:
    """Any number past the largest page stands for all of them: a field may be thousands of digits long."""
    digits = digits.lstrip("0") or digits[:1]
    return int(digits) if 0 < len(digits) < 20 else (10**20 if digits else None)


def _modified(record: Record) -> datetime:
    """As Last-Modified tells it: whole seconds."""
    return datetime.fromtimestamp(record.modified // 1, UTC)


def _date(field: str | None) -> datetime | None:
    if field is None:
        return None
    from werkzeug.http import parse_date

    return parse_date(field)
