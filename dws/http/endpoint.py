"""A web server's HTTP endpoint: pages from the store that the server beside it has open.

What lives here: the RSGI application, what it remembers of pages for a moment, and
its reports. What must not: how a condition is judged (serving.py), uploads
(uploads.py), and how the process comes to be (dws/nodes/endpoint_process.py).

Bytes are checked against their digest before they are sent. A small page is held in
memory, checked, for a second; so a page that is dropped is gone here a second later.
Of a large page the chunks that a request asks for are checked in a thread, which is
remembered for a minute, and then sent straight from the file in constant memory.
"""

import asyncio
import json
import logging
import secrets
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import lmdb
from blake3 import blake3
from msgspec import Struct

from dws.errors import DwsError, Unreachable
from dws.http.calls import LoopCalls
from dws.http.serving import (
    CONDITIONS,
    Asked,
    Headers,
    Target,
    Verdict,
    answer_headers,
    back_to_gateway,
    judge,
    page_headers,
    parse_query,
    plain_headers,
)
from dws.http.tally import Tally
from dws.limits import CHUNK_BYTES, KIB, MIB, NAME_MAX_BYTES
from dws.messages import Counted, Record
from dws.names import format_version, name_fault
from dws.nodes.page_reader import PageReader

_log = logging.getLogger("dws.http.endpoint")

_TICK_S: Final = 1.0
_REPORT_TIMEOUT_S: Final = 2.0
#: Without an answer from the web server for this long, a readiness probe fails.
_READY_S: Final = 5.0
_READERS_EVERY_S: Final = 60.0
#: Small pages that are held, checked, until the next tick.
_HOT_BYTES_MAX: Final = 32 * MIB
_HOT_PAGES_MAX: Final = 10_000
_HOT_PAGE_MAX: Final = 256 * KIB
#: How long it is remembered that chunks were right, and of how many files.
_CHECKED_S: Final = 60.0
_CHECKED_FILES_MAX: Final = 4_096
_REFUSALS: Final = {412: "the page is another one than was asked for\n", 416: "the page has no such part\n"}
_METHODS: Final = "GET, HEAD, PUT, DELETE, OPTIONS"


class EndpointSettings(Struct, frozen=True):
    """server: the ROUTER of the web server beside it. gateway: where to send what is not held; may be
    empty. balancer: for uploads."""

    name: str
    server: str
    balancer: str
    gateway: str


class _Hot:
    """A small page, checked a moment ago, and how often it was sent since."""

    __slots__ = ("body", "counted", "headers", "hits", "name")

    def __init__(self, name: str, headers: Headers, body: bytes) -> None:
        self.name = name
        self.headers = headers
        self.body = body
        self.hits = 0
        self.counted = 0


class _Checked:
    """Which chunks of a file were right, until when that is believed."""

    __slots__ = ("chunks", "until")

    def __init__(self, count: int, until: float) -> None:
        self.chunks = bytearray(count)
        self.until = until


class Endpoint:
    def __init__(self, settings: EndpointSettings, reader: PageReader) -> None:
        self.tally = Tally(secrets.token_bytes(16))
        self.number = -1
        """Of the server beside it, as the balancer knows it; -1: not known yet."""
        self._settings = settings
        self._reader = reader
        self._hot: dict[tuple[str, str], _Hot] = {}
        self._hot_bytes = 0
        self._cold: list[_Hot] = []
        self._checked: OrderedDict[tuple[str, int], _Checked] = OrderedDict()
        self._checking: dict[tuple[str, int], asyncio.Lock] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._uploads: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: LoopCalls | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reporting = False
        self._answered_at = float("-inf")
        self._readers_at = 0.0

    # -- life ------------------------------------------------------------------------------

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = ThreadPoolExecutor(2, "dws-check")
        self._calls = LoopCalls(loop)
        self._tick()

    def ending(self) -> None:
        """Before Granian waits for all answers to end."""
        if self._uploads is not None:
            self._uploads.ending()

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._uploads is not None:
            self._uploads.close()
        if self._calls is not None:
            self._calls.close()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    # -- requests ----------------------------------------------------------------------------

    def answer_at_once(self, scope: Any, proto: Any) -> bool:
        """The way of almost every request, in Granian's own thread: see shortcut.py. It reads what the loop's
        thread has put there; only `hits` is changed here."""
        hot = self._hot.get((scope.path, scope.query_string))
        if hot is None or scope.method != "GET":
            return False
        fields = scope.headers
        for field in CONDITIONS:
            if field in fields:
                return False
        hot.hits += 1
        proto.response_bytes(200, hot.headers, hot.body)
        return True

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        if self.answer_at_once(scope, proto):
            return
        began = time.perf_counter()
        try:
            await self._answer(scope, proto)
        except (OSError, lmdb.Error) as error:
            # The disk fails, or the store is full of readers: another holder may do better.
            _log.error("cannot read %r: %s", scope.path[:200], error)
            self._pass_on(scope.path, parse_query(scope.query_string), proto)
        self.tally.took(time.perf_counter() - began)

    async def _answer(self, scope: Any, proto: Any) -> None:
        method, path = scope.method, scope.path
        if method in ("PUT", "DELETE"):
            await self._upload(scope, proto)
            return
        if method == "OPTIONS":
            proto.response_empty(204, plain_headers(("allow", _METHODS))[1:])
            return
        if method not in ("GET", "HEAD"):
            _say(proto, method, 405, f"{method[:40]} is not done here", ("allow", _METHODS))
            return
        target = parse_query(scope.query_string)
        if path.startswith("/_dws/") or (path == "/health" and target.version is None):
            self._tell_health(path, method, proto)
            return
        # Without a version it may be a directory, which the gateway has an index for.
        is_directory = path.endswith("/") and target.version is None
        name = path + "index.html" if is_directory else path
        fault = name_fault(name)
        if fault is None and "\N{REPLACEMENT CHARACTER}" in name:
            # What Granian makes of percent-encoded bytes that are no UTF-8.
            fault = "is not valid UTF-8"
        if fault:
            status = 414 if len(name.encode()) > NAME_MAX_BYTES else 400
            _say(proto, method, status, f"no page has such a name: it {fault}")
            return
        if target.version is None:
            self._redirect(path, target.avoid, method, proto)
            return
        if target.version < 0:
            _say(proto, method, 400, "v names no version: wanted v=EPOCH.COUNTER, such as v=3.17")
            return
        await self._page(scope, proto, target)

    async def _page(self, scope: Any, proto: Any, target: Target) -> None:
        path, method, version = scope.path, scope.method, target.version
        assert version is not None
        found = self._reader.look(path, version) if version < 1 << 64 else None
        if found is None:
            self._pass_on(path, target, proto, method)
            return
        record, body = found
        verdict = judge(record, _asked(scope.headers), method)
        status, start, end = verdict
        if end == start or method == "HEAD" or status not in (200, 206):
            # No bytes to send. An empty page is sent as such.
            _send_empty(proto, status, answer_headers(record, verdict), method)
            if status in (200, 304):
                self.tally.visit(path, 1, 0)
            return
        if body is not None:
            if len(body) != record.size or blake3(body).digest() != record.digest:
                self._damaged(record, target, proto)
                return
            self._send_small(scope, proto, record, body, verdict)
        elif await self._check(record, start, end):
            # Granian opens the file, and reads on as fast as the client takes it.
            file = str(self._reader.page_file(record))
            proto.response_file_range(status, answer_headers(record, verdict), file, start, end)
        else:
            self._damaged(record, target, proto)
            return
        self.tally.visit(path, 1, end - start)

    def _send_small(self, scope: Any, proto: Any, record: Record, body: bytes, verdict: Verdict) -> None:
        status, start, end = verdict
        if status == 206:
            proto.response_bytes(206, answer_headers(record, verdict), body[start:end])
            return
        headers = page_headers(record)
        if len(body) <= _HOT_PAGE_MAX:
            if self._hot_bytes + len(body) > _HOT_BYTES_MAX or len(self._hot) >= _HOT_PAGES_MAX:
                self._cool()
            self._hot[scope.path, scope.query_string] = _Hot(record.name, headers, body)
            self._hot_bytes += len(body)
        proto.response_bytes(200, headers, body)

    async def _check(self, record: Record, start: int, end: int) -> bool:
        """Whether the chunks that hold these bytes are right, as of a minute ago at most."""
        key = (record.name, record.version)
        first, last = start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1
        if self._is_checked(key, first, last):
            return True
        assert self._loop is not None
        # Who asks for the same page meanwhile waits, and then finds its chunks checked.
        lock = self._checking.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                if self._is_checked(key, first, last):
                    return True
                checked = self._checked.get(key)
                if checked is None or checked.until < time.monotonic():
                    count = -(-record.size // CHUNK_BYTES)
                    checked = self._checked[key] = _Checked(count, time.monotonic() + _CHECKED_S)
                    self._checked.move_to_end(key)
                    if len(self._checked) > _CHECKED_FILES_MAX:
                        self._checked.popitem(last=False)
                missing = [chunk for chunk in range(first, last) if not checked.chunks[chunk]]
                if not await self._loop.run_in_executor(self._threads, self._check_now, record, missing):
                    return False
                for chunk in missing:
                    checked.chunks[chunk] = 1
                return True
        finally:
            if not lock.locked():
                self._checking.pop(key, None)

    def _is_checked(self, key: tuple[str, int], first: int, last: int) -> bool:
        checked = self._checked.get(key)
        if checked is None or checked.until < time.monotonic():
            return False
        return checked.chunks.count(1, first, last) == last - first

    def _check_now(self, record: Record, chunks: list[int]) -> bool:
        """In a thread."""
        digests = self._reader.digest_list(record.name, record.version)
        return digests is not None and self._reader.check_chunks(record, digests, chunks)

    # -- what is not here ---------------------------------------------------------------------

    def _damaged(self, record: Record, target: Target, proto: Any) -> None:
        if self._reader.record(record.name, record.version) is not None:
            version = format_version(record.version)
            _log.error("%s (version %s) is damaged on this disk", record.name, version)
            self.tally.damage(record.name, record.version)
        self._pass_on(record.name, target, proto)

    def _pass_on(self, path: str, target: Target, proto: Any, method: str = "GET") -> None:
        """Back to the gateway, which is told not to choose this server."""
        self.tally.failed += 1
        if self._settings.gateway and self.number < 0:
            # Nothing would keep the gateway from sending the client here again.
            _say(proto, method, 503, "this server is not in its cluster yet", ("retry-after", "1"))
            return
        avoid = target.avoid if self.number in target.avoid else (*target.avoid, self.number)
        self._redirect(path, avoid, method, proto)

    def _redirect(self, path: str, avoid: tuple[int, ...], method: str, proto: Any) -> None:
        if not self._settings.gateway:
            _say(proto, method, 404, "this server does not hold that page, and has no gateway to ask")
            return
        location = back_to_gateway(self._settings.gateway, path, avoid)
        _say(proto, method, 302, "ask the gateway", ("location", location))

    # -- uploads, health -----------------------------------------------------------------------

    async def _upload(self, scope: Any, proto: Any) -> None:
        if self._uploads is None:
            from dws.http.uploads import Uploads

            self._uploads = Uploads(self._settings.balancer, self._settings.name)
        await self._uploads.handle(scope, proto)

    def _tell_health(self, path: str, method: str, proto: Any) -> None:
        name = self._settings.name
        if path in ("/health", "/_dws/livez"):
            text = json.dumps({"status": "healthy", "server": name})
            _say(proto, method, 200, text, content_type="application/json")
        elif path != "/_dws/readyz":
            _say(proto, method, 404, "there is nothing here: the dashboard is at the gateway")
        elif self.number >= 0 and time.monotonic() - self._answered_at < _READY_S:
            _say(proto, method, 200, "ready")
        else:
            _say(proto, method, 503, "not in touch with its cluster", ("retry-after", "1"))

    # -- each second ------------------------------------------------------------------------------

    def _tick(self) -> None:
        assert self._loop is not None
        now = time.monotonic()
        self._cool()
        self._report()
        if now >= self._readers_at:
            self._readers_at = now + _READERS_EVERY_S
            self._reader.check_readers()
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _cool(self) -> None:
        """Forget all small pages: they are read, and checked, again. What was sent of them is counted."""
        # Those forgotten the last time are looked at again: another thread may have been at one of them.
        hot, self._hot = self._hot, {}
        forgotten = list(hot.values())
        for page in (*self._cold, *forgotten):
            if times := page.hits - page.counted:
                page.counted += times
                self.tally.visit(page.name, times, times * len(page.body))
                # No wait, no read: a few microseconds.
                self.tally.response[0] += times
        self._cold = forgotten
        self._hot_bytes = 0

    def _report(self) -> None:
        assert self._calls is not None
        if self._reporting:
            return
        report = self.tally.report()

        def answered(answer: Any) -> None:
            self._reporting = False
            if isinstance(answer, Counted):
                self._answered_at = time.monotonic()
                self.number = answer.number
                if self.tally.counted(report):
                    self._report()
            elif isinstance(answer, DwsError) and not isinstance(answer, Unreachable):
                _log.warning("a report of visits was refused: %s", answer)

        try:
            self._calls.call(self._settings.server, report, _REPORT_TIMEOUT_S, answered)
            self._reporting = True
        except Unreachable as error:
            _log.warning("cannot report visits: %s", error)


def _asked(fields: Any) -> Asked:
    get = fields.get
    return Asked(
        get("range"), get("if-none-match"), get("if-modified-since"), get("if-match"),
        get("if-unmodified-since"), get("if-range"),
    )  # fmt: skip


def _say(
    proto: Any, method: str, status: int, text: str, *more: tuple[str, str], content_type: str = ""
) -> None:
    """A line of text, or only its headers where HEAD asked."""
    headers = plain_headers(*more)
    if content_type:
        headers[0] = ("content-type", content_type)
    body = text + "\n"
    if method == "HEAD":
        proto.response_empty(status, [*headers, ("content-length", str(len(body.encode())))])
    else:
        proto.response_str(status, headers, body)


def _send_empty(proto: Any, status: int, headers: Headers, method: str) -> None:
    if status in (412, 416) and method != "HEAD":
        proto.response_str(status, headers, _REFUSALS[status])
    else:
        proto.response_empty(status, headers)
