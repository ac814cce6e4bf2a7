"""Uploads over HTTP: PUT and DELETE at a server's endpoint.

What lives here: what such a request must look like, its conditions, and the answer
that each outcome gets. What must not: which server stores a page. The endpoint is
for uploads an ordinary client of the cluster, so the page may well end on other
servers than its own, and 201 and 204 mean what the return of a put means.

A body of at most a chunk is collected first: it can be sent again if a server dies,
and a slow client holds no thread. A longer one streams through a bounded pipe into
the thread that puts it. Nothing of a body is asked for before the head was found
right and its conditions hold, so a client that waits for 100 Continue sends none in vain.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, Self
from urllib.parse import quote

import zmq
from blake3 import blake3
from msgspec import Struct
from werkzeug.http import parse_date, parse_etags

from dws.errors import (
    BadName,
    BadRequest,
    Conflict,
    DwsError,
    Full,
    NeverStored,
    OutcomeUnknown,
    OverBound,
    TimedOut,
    TooFewServers,
    TryAgain,
    Unavailable,
    Unreachable,
)
from dws.http.bodies import BodyBounds, BodyFailed, BodyPipe, BodyReader, too_large
from dws.limits import CHUNK_BYTES, CONTENT_TYPE_MAX, MIB, NAME_MAX_BYTES
from dws.messages import ABSENT, ANY, Record
from dws.names import is_content_type, name_fault
from dws.nodes.client import Client
from dws.nodes.content_types import content_type
from dws.nodes.sources import SizedStream

_log = logging.getLogger(__name__)

_ASK_S: Final = 10.0
_PUT_S: Final = 45.0
_PIPE_BYTES: Final = 2 * MIB
_RETRY_AFTER_S: Final = "2"

_STATUS: Final[dict[type[DwsError], int]] = {
    BadName: 400, BadRequest: 400, OverBound: 413, Full: 507, TryAgain: 503, TooFewServers: 503,
    Unavailable: 503, NeverStored: 503, Unreachable: 503, TimedOut: 503, OutcomeUnknown: 504,
}  # fmt: skip


class UploadBounds(Struct, frozen=True, kw_only=True):
    threads: int = 16
    """Puts and removals at once, each in a thread of its own."""

    waiting: int = 64
    """Requests that wait for a thread; one more is told to come again."""

    wait_s: float = 5.0
    """The longest such wait."""

    collected_bytes: int = 64 * MIB
    """Bytes of bodies that are collected in memory, over all requests."""

    body: BodyBounds = BodyBounds()


class _Refused(Exception):
    """The request ends with this answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class _Head(Struct):
    """What a request says before its body."""

    name: str
    length: int = -1
    content_type: str = ""
    if_match: str = ""
    if_none_match: str = ""
    if_unmodified_since: str = ""

    @property
    def is_conditional(self) -> bool:
        return bool(self.if_match or self.if_none_match or self.if_unmodified_since)


class _Done(Struct):
    """A page is stored."""

    digest: str
    size: int
    copies: int
    is_new: bool


class Uploads:
    """balancer: where the cluster's balancer is for clients. name: of the server, for texts.

    Made and used in the event loop's thread; `close` joins the threads.
    """

    def __init__(self, balancer: str, name: str, bounds: UploadBounds | None = None) -> None:
        self._balancer = balancer
        self._name = name
        self._bounds = bounds or UploadBounds()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pool = ThreadPoolExecutor(self._bounds.threads, thread_name_prefix="upload")
        self._slots = asyncio.Semaphore(self._bounds.threads)
        self._waiting = 0
        self._collected_bytes = 0
        self._clients: list[Client] = []
        self._mine = threading.local()
        self._bodies: set[BodyReader] = set()
        self._closing = False

    def ending(self) -> None:
        """Take no more, and wait for no body any longer: their senders are told to come again."""
        self._closing = True
        for body in self._bodies:
            body.interrupt(BodyFailed(503, f"{self._name} is shutting down"))

    def close(self) -> None:
        """End what is under way and join the threads. A put that waits for its outcome is waited for."""
        self.ending()
        self._pool.shutdown(wait=True, cancel_futures=True)
        # Their threads have ended: no socket is in two hands.
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._context.term()

    async def handle(self, scope: Any, proto: Any) -> None:
        """Answer one PUT or DELETE."""
        reader = BodyReader(proto, -1, self._bounds.body)
        self._bodies.add(reader)
        try:
            if self._closing:
                raise _Refused(503, f"{self._name} is shutting down")
            head = _read_head(scope, self._bounds.body)
            reader.length = head.length
            await (self._remove(head, proto) if scope.method == "DELETE" else self._put(head, reader, proto))
            return
        except (_Refused, BodyFailed) as error:
            status, text = error.status, error.text
        except DwsError as error:
            status, text = _STATUS.get(type(error), 500), str(error)
        except Exception:
            _log.exception("an upload failed in a way that nobody thought of")
            status, text = 500, "the server failed; its log says how"
        finally:
            self._bodies.discard(reader)
        if status != 408 and (reader.is_begun or "expect" not in scope.headers):
            await reader.drain()
        _say(proto, status, text)

    # -- DELETE ----------------------------------------------------------------------------

    async def _remove(self, head: _Head, proto: Any) -> None:
        async with self._slot() as run:
            removed = await run(self._remove_now, head)
        if not removed:
            raise _Refused(404, f"no such page: {head.name}")
        proto.response_empty(204, [("cache-control", "no-store")])

    def _remove_now(self, head: _Head) -> int:
        client = self._client()
        condition = _condition(head, self._stat_now(head.name)) if head.is_conditional else ANY
        # A page that is not there is told from one that has changed: 404, not 412.
        conditions = {} if condition == ABSENT else {head.name: condition}
        try:
            return client.remove([head.name], conditions=conditions, timeout_s=_PUT_S).removed
        except Conflict:
            raise _changed(head.name) from None

    # -- PUT -------------------------------------------------------------------------------

    async def _put(self, head: _Head, reader: BodyReader, proto: Any) -> None:
        condition, is_new = ANY, None
        if head.is_conditional:
            async with self._slot() as run:
                record = await run(self._stat_now, head.name)
            condition, is_new = _condition(head, record), record is None
        done = await self._put_body(head, reader, condition, is_new)
        headers = [("cache-control", "no-store"), ("etag", f'"{done.digest}"')]
        headers.append(("content-location", quote(head.name)))
        if not done.is_new:
            proto.response_empty(204, headers)
            return
        headers += [("location", quote(head.name)), *_TEXT_HEADERS]
        text = f"stored {head.name}: {done.size:,} bytes on {done.copies} servers\n"
        proto.response_str(201, headers, text)

    async def _put_body(self, head: _Head, reader: BodyReader, condition: int, is_new: bool | None) -> _Done:
        with _Collected(self) as collected:
            parts = await reader.up_to(CHUNK_BYTES, collected.keep)
            if reader.received <= CHUNK_BYTES:
                body = b"".join(parts)
                async with self._slot() as run:
                    done: _Done = await run(self._put_bytes, head, body, condition, is_new)
                return done
            async with self._slot() as run:
                return await self._put_stream(run, head, reader, parts, condition, is_new)

    async def _put_stream(
        self, run: "_Run", head: _Head, reader: BodyReader, parts: list[bytes], condition: int,
        is_new: bool | None,
    ) -> _Done:  # fmt: skip
        pipe = BodyPipe(asyncio.get_running_loop(), _PIPE_BYTES)
        feeding = asyncio.ensure_future(_feed(pipe, parts, reader))
        putting = run(self._put_pipe, head, pipe, condition, is_new)
        try:
            # One that cannot be stored is told so at once, not after its last byte.
            await asyncio.wait((feeding, putting), return_when=asyncio.FIRST_COMPLETED)
            streamed: _Done = await putting
            return streamed
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            pipe.fail(BodyFailed(400, "the request was given up"))

    # -- in a thread -------------------------------------------------------------------------

    def _client(self) -> Client:
        client: Client | None = getattr(self._mine, "client", None)
        if client is None:
            client = self._mine.client = Client(self._balancer, timeout_s=_ASK_S, context=self._context)
            self._clients.append(client)
        return client

    def _stat_now(self, name: str) -> Record | None:
        stat = self._client().stat([name])[0]
        return stat.record if stat is not None else None

    def _put_bytes(self, head: _Head, body: bytes, condition: int, is_new: bool | None) -> _Done:
        copies, was_new = self._store(head, body, condition, is_new)
        return _Done(blake3(body).hexdigest(), len(body), copies, was_new)

    def _put_pipe(self, head: _Head, pipe: BodyPipe, condition: int, is_new: bool | None) -> _Done:
        copies, was_new = self._store(head, SizedStream(pipe, head.length), condition, is_new)
        return _Done(pipe.hash.hexdigest(), pipe.size, copies, was_new)

    def _store(self, head: _Head, source: Any, condition: int, is_new: bool | None) -> tuple[int, bool]:
        """Returns when the copies are durable: how many, and whether the name is new."""
        client, name = self._client(), head.name
        if is_new is None:
            is_new = self._stat_now(name) is None
        try:
            result = client.put(
                {name: source},
                conditions={name: condition},
                content_types={name: head.content_type},
                modified={name: time.time()},
                timeout_s=_PUT_S,
            )
        except Conflict:
            raise _changed(name) from None
        return result.copies, is_new

    # -- bounds ------------------------------------------------------------------------------

    @asynccontextmanager
    async def _slot(self) -> "AsyncIterator[_Run]":
        """While it is entered a thread is ours: it gives what runs a function there."""
        if self._slots.locked() and self._waiting >= self._bounds.waiting:
            raise self._busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._bounds.wait_s):
                await self._slots.acquire()
        except TimeoutError:
            raise self._busy() from None
        finally:
            self._waiting -= 1
        loop = asyncio.get_running_loop()

        def run(function: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
            return loop.run_in_executor(self._pool, function, *arguments)

        try:
            if self._closing:
                raise _Refused(503, f"{self._name} is shutting down")
            yield run
        finally:
            self._slots.release()

    def _busy(self) -> _Refused:
        return _Refused(503, f"{self._name} has as many uploads under way as it takes: try again")


_Run = Callable[..., "asyncio.Future[Any]"]


class _Collected:
    """What one request has of the memory for bodies that are collected: as much as came of its own, so
    that those who promise much and send little take nothing from others."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._size_bytes = 0

    def keep(self, size_bytes: int) -> None:
        uploads = self._uploads
        if uploads._collected_bytes + size_bytes > uploads._bounds.collected_bytes:
            raise uploads._busy()
        uploads._collected_bytes += size_bytes
        self._size_bytes += size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._uploads._collected_bytes -= self._size_bytes


async def _feed(pipe: BodyPipe, parts: list[bytes], reader: BodyReader) -> None:
    try:
        for part in parts:
            await pipe.feed(part)
        parts.clear()
        while chunk := await reader.next():
            await pipe.feed(chunk)
        pipe.end()
    except BodyFailed as error:
        pipe.fail(error)


# -- requests and answers --------------------------------------------------------------------

_TEXT_HEADERS: Final = [("content-type", "text/plain; charset=utf-8"), ("x-content-type-options", "nosniff")]


def _say(proto: Any, status: int, text: str) -> None:
    headers = [("cache-control", "no-store"), *_TEXT_HEADERS]
    if status == 503:
        headers.append(("retry-after", _RETRY_AFTER_S))
    proto.response_str(status, headers, text + "\n")


def _changed(name: str) -> _Refused:
    return _Refused(412, f"{name} is not as the request's conditions want it; nothing was changed")


def _read_head(scope: Any, bounds: BodyBounds) -> _Head:
    """Raises _Refused if anything in it rules the request out."""
    name, headers = scope.path, scope.headers
    if len(name.encode()) > NAME_MAX_BYTES:
        raise _Refused(414, f"a page's name has at most {NAME_MAX_BYTES:,} bytes")
    if name.endswith("/"):
        raise _Refused(400, f"{name!r} ends with a slash: name a page below it, such as {name}index.html")
    fault = name_fault(name)
    if fault is None and "\ufffd" in name:
        # What is no UTF-8 comes here as this character.
        fault = "is not valid UTF-8"
    if fault is not None:
        raise _Refused(400, f"page name {name[:80]!r}: {fault}")
    if any(part.partition("=")[0] == "v" for part in scope.query_string.split("&")):
        raise _Refused(400, "a version cannot be written: leave ?v= away")
    head = _Head(
        name,
        if_match=headers.get("if-match", ""),
        if_none_match=headers.get("if-none-match", ""),
        if_unmodified_since=headers.get("if-unmodified-since", ""),
    )
    if scope.method != "DELETE":
        _read_put_head(head, headers, bounds)
    return head


def _read_put_head(head: _Head, headers: Any, bounds: BodyBounds) -> None:
    if "content-range" in headers:
        raise _Refused(400, "a part of a page cannot be put: leave Content-Range away and send all of it")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _Refused(415, f"pages are served as they were put, and not as {encoding}: send it decoded")
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        raise _Refused(411, "say how long the page is, by Content-Length, or send it chunked")
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise _Refused(400, "Content-Length is no number of bytes")
        head.length = int(length)
        if head.length > bounds.page_max_bytes:
            raise too_large(bounds.page_max_bytes)
    kind = headers.get("content-type", "").strip()
    if len(kind) > CONTENT_TYPE_MAX or not is_content_type(kind):
        raise _Refused(400, f"Content-Type: at most {CONTENT_TYPE_MAX} characters of printable ASCII")
    head.content_type = kind or content_type(head.name)


def _condition(head: _Head, record: Record | None) -> int:
    """The condition that the cluster is to check when it decides: that what was seen here still holds.

    Raises _Refused if the request's conditions do not hold now. The order is RFC 9110's (13.2.2).
    """
    digest = record.digest.hex() if record is not None else ""
    if head.if_match:
        wanted = parse_etags(head.if_match)
        # Of strong tags alone: to compare weakly would let a write pass over another.
        if record is None or not wanted.contains(digest):
            raise _changed(head.name)
    elif head.if_unmodified_since:
        since = parse_date(head.if_unmodified_since)
        if since is not None and record is not None and int(record.modified) > since.timestamp():
            raise _changed(head.name)
    if head.if_none_match and record is not None:
        if parse_etags(head.if_none_match).contains_weak(digest):
            raise _changed(head.name)
    return record.version if record is not None else ABSENT
