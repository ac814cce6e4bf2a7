"""Copy jobs at work: records fetched from a server that has them, a batch or what repair asks for.

What lives here: which pages to ask for next, under a credit of bytes, and the
check of every byte that comes. What must not: the order itself and its gate
(webserver.py), disks (operations go out as values).

Pages of up to CHUNK_BYTES come many to a Fetch; a larger one comes as its list
of digests, then chunk by chunk, each checked as it arrives and written to a
staged file.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from blake3 import blake3
from msgspec import Struct

from dws.effects import AskPeer, Effects, Write
from dws.errors import IntegrityError
from dws.limits import CHUNK_BYTES, INLINE_MAX_BYTES, KIB
from dws.messages import Copy, Digests, Fetch, Fetched, Read, Record
from dws.store import Blob, WriteStaged
from patterns.transfer import Transfer

#: Pages asked for at once, unless one is larger: readers wait behind each such answer at the source.
_GROUP_BYTES: Final = 512 * KIB
_ANSWER_S: Final = 10.0
_TRIES_MAX: Final = 3

#: Tag of every request and write of a copy: ("copy", its key, what, details…).
Tag = tuple[object, ...]


class CopyFault(IntegrityError):
    """The source did not deliver what the order said; the text says what."""


class _Large(Struct):
    record: Record
    handle: int
    transfer: Transfer
    digests: bytes = b""
    early: dict[int, memoryview] = {}  # chunks that came before one in front of them


class Copying:
    """One Copy job. key: stands for it in tags, since the same records may be copied anew from another
    source; new_handle: a name for a staged file; credit_bytes: the most on the way at once."""

    def __init__(self, key: int, job: Copy, new_handle: Callable[[], int], credit_bytes: int) -> None:
        records = job.records
        self.key = key
        self.job = job
        self.source = job.source
        self._new_handle = new_handle
        self.blobs: dict[str, Blob] = {}
        self.handles: list[int] = []
        self.memory_bytes = sum(r.size for r in records if r.size <= INLINE_MAX_BYTES)
        self._records = records
        self._credit_bytes = credit_bytes
        self._groups = deque(_grouped([r for r in records if r.size <= CHUNK_BYTES]))
        self._large = deque(r for r in records if r.size > CHUNK_BYTES)
        self._current: _Large | None = None
        self._fetching: dict[int, list[Record]] = {}
        self._writes = 0
        self._tries: dict[object, int] = {}
        self._serial = 0

    @property
    def done(self) -> bool:
        return len(self.blobs) == len(self._records) and not self._writes

    @property
    def all_blobs(self) -> list[Blob]:
        return [self.blobs[record.name] for record in self._records]

    def ask(self) -> Effects:
        """Requests to send now."""
        effects: Effects = []
        fetching = sum(sum(r.size for r in group) for group in self._fetching.values())
        while self._groups:
            group_bytes = sum(record.size for record in self._groups[0])
            if fetching and fetching + group_bytes > self._credit_bytes:
                break
            group = self._groups.popleft()
            fetching += group_bytes
            effects.append(self._fetch(group))
        if self._current is None and self._large and not self._fetching and not self._groups:
            record = self._large.popleft()
            transfer = Transfer(record.size, CHUNK_BYTES, self._credit_bytes)
            self._current = _Large(record, self._staged(), transfer)
            effects.append(self._ask_digests(record))
        elif self._current is not None and self._current.digests:
            effects += self._read_on(self._current)
        return effects

    def fetched(self, serial: int, answer: Fetched, data: memoryview) -> Effects:
        """Small pages came."""
        group = self._fetching.pop(serial, None)
        if group is None:
            return []
        if len(answer.sizes) != len(group) or sum(max(0, size) for size in answer.sizes) != len(data):
            raise CopyFault("a Fetch was answered with other pages")
        effects: Effects = []
        begin = 0
        for record, size in zip(group, answer.sizes, strict=True):
            if size != record.size:
                raise CopyFault(f"{self.source.name} has no {record.name} of {record.size} bytes")
            page = data[begin : begin + size]
            begin += size
            if blake3(page).digest() != record.digest:
                raise CopyFault(f"{record.name} from {self.source.name} has a wrong digest")
            effects += self._keep(record, page)
        return effects

    def _keep(self, record: Record, page: memoryview) -> Effects:
        if record.size <= INLINE_MAX_BYTES:
            self.blobs[record.name] = Blob(record, bytes(page))
            return []
        handle = self._staged()
        self.blobs[record.name] = Blob(record, None, handle)
        return [self._write(handle, 0, page)]

    def digests(self, data: memoryview) -> None:
        """The list of the current large page came."""
        if self._current is None:
            return
        record = self._current.record
        chunks = -(-record.size // CHUNK_BYTES)
        if len(data) != 32 * chunks or blake3(data).digest() != record.list_digest:
            raise CopyFault(f"the digest list of {record.name} is not the one the catalog names")
        self._current.digests = bytes(data)

    def chunk(self, offset: int, data: memoryview) -> Effects:
        """A chunk of the current large page came."""
        current = self._current
        if current is None:
            return []
        begin = offset // CHUNK_BYTES * 32
        if blake3(data).digest() != current.digests[begin : begin + 32]:
            raise CopyFault(f"chunk at {offset} of {current.record.name} has a wrong digest")
        current.early[offset] = data
        # In order, whatever was asked for twice: a staged file grows from end to end.
        ready = current.transfer.arrive(offset)
        writes: Effects = [self._write(current.handle, each, current.early.pop(each)) for each in ready]
        if current.transfer.done:
            record = current.record
            self.blobs[record.name] = Blob(record, None, current.handle, current.digests)
            self._current = None
        return writes

    def written(self) -> None:
        self._writes -= 1

    def unanswered(self, what: str, detail: object) -> Effects:
        """No answer in time: ask again, a few times."""
        key = (what, detail)
        self._tries[key] = self._tries.get(key, 0) + 1
        if self._tries[key] >= _TRIES_MAX:
            raise CopyFault(f"{self.source.name} did not answer {_TRIES_MAX} times")
        if what == "fetch" and isinstance(detail, int):
            group = self._fetching.pop(detail)
            self._tries[("fetch", self._serial + 1)] = self._tries[key]
            return [self._fetch(group)]
        if self._current is None:
            return []
        if what == "digests":
            return [self._ask_digests(self._current.record)]
        assert isinstance(detail, int)
        self._current.transfer.fail(detail)
        return self._read_on(self._current)

    def check(self) -> None:
        """What is on the way is under its credit."""
        fetching = sum(record.size for group in self._fetching.values() for record in group)
        assert fetching <= self._credit_bytes or len(self._fetching) == 1
        if self._current is not None:
            self._current.transfer.check()

    def _staged(self) -> int:
        self.handles.append(self._new_handle())
        return self.handles[-1]

    def _fetch(self, group: list[Record]) -> AskPeer:
        self._serial += 1
        self._fetching[self._serial] = group
        return self._peer(Fetch([(record.name, record.version) for record in group]), "fetch", self._serial)

    def _ask_digests(self, record: Record) -> AskPeer:
        return self._peer(Digests(record.name, record.version), "digests")

    def _read_on(self, current: _Large) -> Effects:
        # The writer thread may be slower than the source: its backlog is under the same credit.
        room = self._credit_bytes // CHUNK_BYTES - self._writes - current.transfer.outstanding
        return [
            self._peer(Read(current.record.name, current.record.version, offset, length), "read", offset)
            for offset, length in current.transfer.ask(max(0, room))
        ]

    def _write(self, handle: int, offset: int, data: memoryview) -> Write:
        self._writes += 1
        tag = ("copy", self.key, "write")
        return Write("copy", WriteStaged(handle, offset, data), tag, len(data))

    def _peer(self, message: Fetch | Digests | Read, what: str, detail: int = 0) -> AskPeer:
        return AskPeer(self.source.endpoint, message, ("copy", self.key, what, detail), _ANSWER_S)


def _grouped(records: list[Record]) -> list[list[Record]]:
    """Records in groups for one Fetch each."""
    groups: list[list[Record]] = []
    size_bytes = _GROUP_BYTES + 1
    for record in records:
        if size_bytes + record.size > _GROUP_BYTES:
            groups.append([])
            size_bytes = 0
        groups[-1].append(record)
        size_bytes += record.size
    return groups
