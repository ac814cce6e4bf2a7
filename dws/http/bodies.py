"""Request bodies on their way from the event loop to a thread that reads them.

What lives here: a body's bounds in time and bytes, its end told apart from its
breaking off, and the bounded queue between the loop and a thread. What must not:
what a body is for (uploads.py).

Granian hands a body out chunk by chunk, as it is asked: what nobody asks for stays
with the client. It tells an end by one empty chunk; one that broke off by an empty
chunk more.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from blake3 import blake3
from msgspec import Struct

from dws.limits import MIB, PAGE_MAX_BYTES

_DRAIN_BYTES: Final = 16 * MIB
_DRAIN_S: Final = 2.0


class BodyBounds(Struct, frozen=True, kw_only=True):
    idle_s: float = 20.0
    """The longest wait for the next bytes."""

    small_s: float = 60.0
    """How long a small body, or the first MiB of a larger one, may take."""

    mib_s: float = 25.0
    """How long each further MiB may take. Less than stage_idle_s: a web server drops what it was sent of
    an upload when nothing follows for that long, and a stream cannot be sent again."""

    page_max_bytes: int = PAGE_MAX_BYTES


class BodyFailed(Exception):
    """The body cannot be had, or not all of it: the status and text to answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def too_large(bound: int) -> BodyFailed:
    return BodyFailed(413, f"a page has at most {bound:,} bytes")


class BodyReader:
    """One request's body. length: its Content-Length, -1 if it comes in chunks of its own."""

    def __init__(self, proto: Any, length: int, bounds: BodyBounds) -> None:
        self.length = length
        self.received = 0
        self.ended = False
        self._proto = proto
        self._chunks: AsyncIterator[bytes] | None = None
        self._bounds = bounds
        self._waited_s = 0.0  # for the MiB that is coming in
        self._mib = 0
        self._limit: asyncio.Timeout | None = None  # of the wait for the client, while there is one
        self._interrupted: BodyFailed | None = None

    @property
    def is_begun(self) -> bool:
        return self._chunks is not None

    def interrupt(self, error: BodyFailed) -> None:
        """No more of it is waited for."""
        self._interrupted = error
        if self._limit is not None:
            self._limit.reschedule(0.0)

    async def next(self) -> bytes:
        """The next bytes; empty at the end. Raises BodyFailed if the body breaks off or is too slow."""
        if self.ended:
            return b""
        if self._chunks is None:
            # Only now is a client told to go on that waits for 100 Continue.
            self._chunks = aiter(self._proto)
        chunk = await self._timed(self._chunks)
        if not chunk:
            await self._check_end(self._chunks)
            return b""
        self.received += len(chunk)
        if self.received > self._bounds.page_max_bytes:
            raise too_large(self._bounds.page_max_bytes)
        return chunk

    async def _timed(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Only waiting for the client counts, not the time that its bytes wait for the cluster."""
        if self.received // MIB != self._mib:
            self._mib = self.received // MIB
            self._waited_s = 0.0
        bounds = self._bounds
        left_s = (bounds.mib_s if self._mib else bounds.small_s) - self._waited_s
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            if self._interrupted is not None:
                raise self._interrupted
            async with asyncio.timeout(max(0.0, min(left_s, bounds.idle_s))) as self._limit:
                chunk = await _next(chunks) or b""
        except TimeoutError:
            if self._interrupted is not None:
                raise self._interrupted from None
            raise BodyFailed(408, f"the body came too slowly: {self.received:,} bytes so far") from None
        except RuntimeError as error:  # Granian's errors of a closed connection
            raise BodyFailed(400, f"the body broke off after {self.received:,} bytes: {error}") from None
        finally:
            self._limit = None
        self._waited_s += loop.time() - began
        return bytes(chunk)

    async def _check_end(self, chunks: AsyncIterator[bytes]) -> None:
        self.ended = True
        # A second iterator of a body is an error to Granian: no `async for` here.
        broken = await _next(chunks) is not None
        if broken or 0 <= self.length != self.received:
            promised = f" of the {self.length:,} promised" if self.length >= 0 else ""
            raise BodyFailed(400, f"the body broke off after {self.received:,} bytes{promised}")

    async def drain(self) -> None:
        """Take what the client is still sending, within reason: to one that is cut off while it sends, its
        own error hides the answer."""
        if self.ended or self._interrupted is not None:
            return
        if self._chunks is None:
            self._chunks = aiter(self._proto)
        left_bytes = _DRAIN_BYTES
        try:
            async with asyncio.timeout(_DRAIN_S):
                while left_bytes > 0 and (chunk := await _next(self._chunks)):
                    left_bytes -= len(chunk)
        except (TimeoutError, RuntimeError):
            pass
        self.ended = True

    async def up_to(self, size_bytes: int, keep: Callable[[int], None]) -> list[bytes]:
        """Chunks of more than so many bytes, or all there are. keep: told of each one's bytes."""
        parts = []
        while self.received <= size_bytes:
            chunk = await self.next()
            if not chunk:
                break
            keep(len(chunk))
            parts.append(chunk)
        return parts


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    # Not anext with a default: CPython 3.11 crashes when that wraps one of Granian's awaitables.
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        return None


class BodyPipe:
    """Bytes from the loop to one thread. `feed` waits while enough of them wait for the thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, room_bytes: int) -> None:
        self.hash = blake3()
        self.size = 0
        """Bytes that the thread has read so far."""
        self._loop = loop
        self._room_bytes = room_bytes
        self._condition = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._ended = False
        self._failed: BodyFailed | None = None
        self._has_room = asyncio.Event()

    # -- the loop's side -------------------------------------------------------------------

    async def feed(self, chunk: bytes) -> None:
        with self._condition:
            self._chunks.append(chunk)
            self._waiting_bytes += len(chunk)
            self._condition.notify()
            if self._waiting_bytes < self._room_bytes:
                return
            self._has_room.clear()
        await self._has_room.wait()

    def end(self) -> None:
        with self._condition:
            self._ended = True
            self._condition.notify()

    def fail(self, error: BodyFailed) -> None:
        """What was fed and not read is dropped; the thread's next read raises. Nothing once it has ended."""
        with self._condition:
            if self._ended or self._failed is not None:
                return
            self._failed = error
            self._chunks.clear()
            self._condition.notify()

    # -- the thread's side -----------------------------------------------------------------

    def read(self, length: int) -> bytes:
        """So many bytes, fewer only at the end."""
        parts = []
        while length > 0:
            chunk = self._take()
            if not chunk:
                break
            if len(chunk) > length:
                with self._condition:
                    self._chunks.appendleft(chunk[length:])
                    self._waiting_bytes += len(chunk) - length
                chunk = chunk[:length]
            parts.append(chunk)
            length -= len(chunk)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.hash.update(data)
        self.size += len(data)
        return data

    def _take(self) -> bytes:
        with self._condition:
            while not (self._chunks or self._ended or self._failed):
                self._condition.wait()
            if self._failed is not None:
                raise self._failed
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            was_full = self._waiting_bytes >= self._room_bytes
            self._waiting_bytes -= len(chunk)
            if was_full and self._waiting_bytes < self._room_bytes:
                self._loop.call_soon_threadsafe(self._has_room.set)
            return chunk
