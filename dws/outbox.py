"""The bytes of one attempt to put a batch, as Stage messages.

What lives here: how pages are cut and grouped, what is on the way, what is sent
again. What must not: where they are sent, and what a refusal means (upload.py).
"""

from collections import deque
from typing import Any, Final, Protocol

from blake3 import blake3
from msgspec import Struct

from dws.limits import CHUNK_BYTES, MIB
from dws.messages import ANY, StagePart
from patterns.transfer import Transfer

_CREDIT_BYTES: Final = 8 * MIB
_GROUP_BYTES: Final = MIB


class Source(Protocol):
    """Where a page's bytes come from."""

    rereadable: bool
    """Whether `read` may go back: if not, a lost primary ends the put."""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer only at the end. Offsets rise unless rereadable."""


class PutItem(Struct):
    """A page to put. size -1: not known before its end is read; digest empty: not known yet."""

    name: str
    source: Any  # a Source
    size: int = -1
    digest: bytes = b""
    condition: int = ANY
    content_type: str = ""
    modified: float = 0.0


class Outbox:
    """items, less those in `skip`: cut into messages, sent under a credit, sent again where needed."""

    def __init__(self, items: list[PutItem], skip: set[int], version: int, attempt: int) -> None:
        self.version = version
        self.bytes_done = 0
        self.started = False
        self._items = items
        self._wanted = [index for index in range(len(items)) if index not in skip]
        self._groups = deque(self._small_groups())
        self._large = deque(i for i in self._wanted if not 0 <= items[i].size <= CHUNK_BYTES)
        self._again: deque[int] = deque()
        self._sent: dict[int, tuple[list[StagePart], Any]] = {}
        self._acknowledged: dict[int, int] = {}  # page → bytes that the server said it has
        self._serial = 0
        self._outstanding_bytes = 0
        self._current: tuple[int, Transfer] | None = None
        self._hashes: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}

    def _small_groups(self) -> list[list[int]]:
        groups: list[list[int]] = []
        size_bytes = _GROUP_BYTES + 1
        for index in self._wanted:
            size = self._items[index].size
            if 0 <= size <= CHUNK_BYTES:
                if size_bytes + size > _GROUP_BYTES:
                    groups.append([])
                    size_bytes = 0
                groups[-1].append(index)
                size_bytes += size
        return groups

    @property
    def all_sent(self) -> bool:
        return not (self._groups or self._large or self._again) and self._current is None

    @property
    def all_acknowledged(self) -> bool:
        return self.all_sent and not self._sent

    @property
    def made(self) -> int:
        """Messages made so far, those sent again not counted."""
        return self._serial

    def described(self) -> list[tuple[int, PutItem, int, bytes]]:
        """(index, item, size, digest) of every page to commit."""
        return [
            (
                index, self._items[index], self._sizes.get(index, self._items[index].size),
                self._hashes[index].digest() if index in self._hashes else self._items[index].digest,
            )
            for index in self._wanted
        ]  # fmt: skip

    def next_messages(self) -> list[tuple[int, list[StagePart], Any]]:
        """(serial, parts, data) of Stage messages to send now."""
        messages = []
        self.started = True
        while self._again:
            serial = self._again.popleft()
            messages.append((serial, *self._sent[serial]))
        while self._groups and self._outstanding_bytes < _CREDIT_BYTES:
            group = self._groups.popleft()
            bodies = [self._small(index) for index in group]
            parts = [StagePart(i, 0, len(body)) for i, body in zip(group, bodies, strict=True)]
            messages.append(self._message(parts, b"".join(bodies)))
        if not self._groups:
            messages += self._large_messages()
        return messages

    def whole(self) -> bytes:
        """The bytes of every page, in the order of `described`, for one message. Raises OSError."""
        return b"".join(self._small(index) for index in self._wanted)

    def _small(self, index: int) -> bytes:
        item = self._items[index]
        body: bytes = item.source.read(0, item.size + 1)
        if len(body) != item.size:
            raise OSError(f"{item.name} has changed its size while it was read")
        if not item.digest:
            self._hashes[index] = blake3(body)
        return body

    def _large_messages(self) -> list[tuple[int, list[StagePart], Any]]:
        """Chunks of the current large page; the next one begins when all of it was acknowledged."""
        if self._current is None:
            if not self._large:
                return []
            index = self._large.popleft()
            size = self._items[index].size
            self._current = (index, Transfer(size if size >= 0 else None, CHUNK_BYTES, _CREDIT_BYTES))
            self._hashes[index] = blake3()
            self._sizes[index] = 0
        index, transfer = self._current
        messages = []
        for offset, _ in transfer.ask():
            if transfer.size is not None and offset >= transfer.size:
                transfer.arrive(offset)
                continue
            data = self._chunk(index, offset, transfer)
            if not data and offset:
                transfer.arrive(offset)
                continue
            if offset == self._sizes[index]:
                self._hashes[index].update(data)
                self._sizes[index] += len(data)
            messages.append(self._message([StagePart(index, offset, len(data))], data))
        if transfer.done:
            self._current = None
        return messages

    def _chunk(self, index: int, offset: int, transfer: Transfer) -> Any:
        item = self._items[index]
        if transfer.size is None:
            data = item.source.read(offset, CHUNK_BYTES)
            if len(data) < CHUNK_BYTES:
                transfer.ends_at(offset + len(data))
            return data
        length = min(CHUNK_BYTES, transfer.size - offset)
        is_last = offset + length == transfer.size
        data = item.source.read(offset, length + is_last)
        if len(data) != length:
            raise OSError(f"{item.name} has changed its size while it was read")
        return data

    def _message(self, parts: list[StagePart], data: Any) -> tuple[int, list[StagePart], Any]:
        self._serial += 1
        self._sent[self._serial] = (parts, data)
        self._outstanding_bytes += len(data)
        return self._serial, parts, data

    def failed(self, serial: int) -> None:
        """No answer, or not now: the message is sent again, in its place."""
        if serial in self._sent and serial not in self._again:
            self._again.append(serial)

    def is_lost(self, serial: int, have: int) -> bool:
        """Whether the server has less of the message's last page than it had before."""
        if serial not in self._sent:
            return False
        last = self._sent[serial][0][-1]
        return have < last.offset and have < self._acknowledged.get(last.page, 0)

    def acknowledged(self, serial: int, have: int) -> bool:
        """The server has this many bytes of the message's last page. False: the message was too early."""
        if serial not in self._sent:
            return True
        parts, data = self._sent[serial]
        last = parts[-1]
        if have < last.offset + last.length:
            self.failed(serial)
            return False
        del self._sent[serial]
        self._acknowledged[last.page] = max(self._acknowledged.get(last.page, 0), last.offset + last.length)
        self._outstanding_bytes -= len(data)
        self.bytes_done += len(data)
        if self._current is not None and last.page == self._current[0]:
            self._current[1].arrive(last.offset)
            if self._current[1].done:
                self._current = None
        return True

    def check(self) -> None:
        """What is on the way is counted, and under the credit, which the last message may overrun."""
        on_the_way = [len(data) for _, data in self._sent.values()]
        assert self._outstanding_bytes == sum(on_the_way)
        assert sum(on_the_way) < _CREDIT_BYTES + max(on_the_way, default=1)
        if self._current is not None:
            self._current[1].check()
