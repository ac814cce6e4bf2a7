"""Writing pages: one batch from its Reserve to its outcome.

What lives here: the steps of a put and of a removal, what is sent again and
where to, and what an unclear end is called. What must not: sockets, clocks, and
files (sources are handed in).

A put that was told nothing is safe to ask about: the batch id is decided once.
Only a batch whose epoch ended is put again under a new id, and only after the
balancer said that the old one never was.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from blake3 import blake3
from msgspec import Struct

from dws.client import BALANCER_TIMEOUT_S, Directory, Operation, Send
from dws.errors import DwsError, NeverStored, NotHeld, OutcomeUnknown, Stale, TimedOut, TryAgain, from_code
from dws.limits import CHUNK_BYTES, MIB
from dws.messages import (
    ANY,
    Abort,
    Await,
    Commit,
    CommitPage,
    Committed,
    Error,
    Outcome,
    Ping,
    Pong,
    PutPage,
    Remove,
    RemovePage,
    Reserve,
    Reserved,
    ServerRef,
    Stage,
    Staged,
    StagePart,
)
from patterns.transfer import Transfer

_CREDIT_BYTES: Final = 8 * MIB
_GROUP_BYTES: Final = MIB
_STAGE_TIMEOUT_S: Final = 5.0
_COMMIT_TIMEOUT_S: Final = 5.0
_PATIENCE_S: Final = 1.0
#: Times one request to the primary may go unanswered before another primary is asked for.
_TRIES_MAX: Final = 2
_AGAIN_S: Final = 0.05


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


class Stored(Struct):
    version: int
    skipped: list[str]
    copies: int


class Decided(Operation):
    """What put and removal share: an epoch to name, and an outcome to ask for."""

    def __init__(self, directory: Directory, deadline: float, new_id: Callable[[], bytes]) -> None:
        super().__init__(directory, deadline)
        self._new_id = new_id
        self._batch = new_id()
        self._attempt = 0
        """Rises with each batch id: answers about an earlier one are late."""
        self._epoch = 0
        self._may_be_decided = False
        self._seen = 0
        self._awaiting = 0
        """The attempt whose Await is on the way; one at a time."""
        self._why = ""

    def start(self, now: float) -> list[Send]:
        self._attempt += 1
        self._may_be_decided = False
        self._seen = 0
        return [self.to_balancer(Ping(), ("ping", self._attempt))]

    def place(self, now: float) -> list[Send]:
        """Send the request that names the batch, in self._epoch."""
        raise NotImplementedError

    def settled(self, outcome: Outcome) -> None:
        """The batch is visible."""
        raise NotImplementedError

    def can_repeat(self) -> bool:
        return True

    def ponged(self, message: Any, now: float) -> list[Send]:
        if not isinstance(message, Pong):
            return self.start(now)
        self._epoch = message.epoch
        return self.place(now)

    def await_(self) -> list[Send]:
        if self._awaiting == self._attempt:
            return []
        self._awaiting = self._attempt
        request = Await(self._batch, self._seen, _PATIENCE_S)
        return [self.to_balancer(request, ("await", self._attempt), _PATIENCE_S + BALANCER_TIMEOUT_S)]

    def outcome(self, message: Any, now: float) -> list[Send]:
        """An answer about the batch; [] and unfinished: it is still open."""
        if isinstance(message, Error):
            if message.code in (Stale.code, TryAgain.code):
                return self.await_()
            self.fail(from_code(message.code, message.text))
        elif message.state == "visible":
            self.settled(message)
        elif message.state == "conflict":
            self.fail(from_code("conflict", message.text))
        elif message.state == "never":
            return self._was_never(message.text, now)
        return []

    def _was_never(self, text: str, now: float) -> list[Send]:
        """Not to be under this id. If its epoch ended, that says nothing against a new one."""
        self._why = text
        self._awaiting = self._attempt
        return [self.to_balancer(Ping(), ("which epoch", self._attempt))]

    def epoch_told(self, message: Any, now: float) -> list[Send]:
        if isinstance(message, Pong) and message.epoch != self._epoch and self.can_repeat():
            self._batch = self._new_id()
            return self.start(now)
        self.fail(NeverStored(self._why))
        return []

    def late(self) -> DwsError:
        if not self._may_be_decided:
            return super().late()
        if not self._heard_balancer:
            return OutcomeUnknown(
                "the balancer could not be asked whether the batch took effect; ask again with stat"
            )
        return TimedOut("the batch was not decided by the deadline")


class PutBatch(Decided):
    """One batch of pages. Result: Stored.

    on_staged: called with the bytes staged so far; on_stored with the copies so far.
    """

    def __init__(
        self,
        directory: Directory,
        deadline: float,
        new_id: Callable[[], bytes],
        items: list[PutItem],
        copies: int,
        on_staged: Callable[[int], None] = lambda size_bytes: None,
        on_stored: Callable[[int], None] = lambda copies: None,
    ) -> None:
        super().__init__(directory, deadline, new_id)
        self._items = items
        self._copies = copies
        self._on_staged = on_staged
        self._on_stored = on_stored
        self._avoid: set[int] = set()
        self._primary: ServerRef | None = None
        self._reserved: Reserved | None = None
        self._staging: _Staging | None = None
        self._committed = False
        self._tries = 0

    def place(self, now: float) -> list[Send]:
        self._committed = False
        self._staging = None
        pages = [PutPage(i.name, i.size, i.digest, i.condition, i.content_type) for i in self._items]
        left_s = max(0.0, self.deadline - now)
        request = Reserve(self._batch, self._epoch, pages, self._copies, left_s, sorted(self._avoid))
        return [self.to_balancer(request, ("reserved", self._attempt))]

    def resume(self, now: float) -> list[Send]:
        return self.place(now) if self._staging is None else self._stage_on(now)

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        what, attempt = tag[0], tag[1]
        if what in ("ping", "reserved", "await", "which epoch"):
            self._heard_balancer = True
        if attempt != self._attempt or self.finished:
            return []
        match what:
            case "ping":
                return self.ponged(message, now)
            case "which epoch":
                return self.epoch_told(message, now)
            case "reserved":
                return self._take_reserved(message, now)
            case "staged":
                return self._take_staged(tag, message, now)
            case "committed":
                return self._take_committed(message, now)
        return self._take_outcome(message, now)

    def unanswered(self, tag: Any, now: float) -> list[Send]:
        what, attempt = tag[0], tag[1]
        if attempt != self._attempt or self.finished:
            return []
        if what in ("staged", "committed"):
            return self._primary_silent(tag, now)
        self._heard_balancer = False
        match what:
            case "ping":
                return [self.to_balancer(Ping(), tag)]
            case "which epoch":
                return [self.to_balancer(Ping(), tag)]
            case "reserved":
                return self.place(now)
        self._awaiting = 0
        return self.await_()

    # -- reserve -----------------------------------------------------------------------

    def _take_reserved(self, message: Any, now: float) -> list[Send]:
        if isinstance(message, Error):
            if message.code == Stale.code:
                self._may_be_decided = True
                return self.await_()
            if message.retry_s:
                return self.pause(now, message.retry_s)
            self.fail(from_code(message.code, message.text))
            return []
        assert isinstance(message, Reserved)
        self._reserved = message
        self._primary = message.primary
        if message.primary is None:
            self._may_be_decided = True
            return self.await_()
        self.directory.servers[message.primary.number] = message.primary
        self._tries = 0
        self._staging = _Staging(self._items, set(message.skip), message.version, self._attempt)
        return self._stage_on(now)

    # -- stage ---------------------------------------------------------------------------

    def _stage_on(self, now: float) -> list[Send]:
        staging, primary = self._staging, self._primary
        assert staging is not None and primary is not None
        sends = []
        try:
            for serial, parts, data in staging.next_messages():
                request = Stage(self._batch, staging.version, primary.incarnation, parts)
                tag = ("staged", self._attempt, serial, primary.number)
                sends.append(Send(primary.number, request, tag, _STAGE_TIMEOUT_S, data))
        except OSError as error:
            self.fail(DwsError(f"cannot read what is to be put: {error}"))
            return []
        if staging.all_sent and not self._committed:
            self._committed = True
            sends += self._commit(now)
        return sends

    def _take_staged(self, tag: Any, message: Any, now: float) -> list[Send]:
        staging = self._staging
        if staging is None or self._primary is None or tag[3] != self._primary.number:
            return []
        if isinstance(message, Error):
            if message.code == TryAgain.code:
                staging.failed(tag[2])
                self._committed = False
                return self.pause(now, message.retry_s or _AGAIN_S)
            return self._restage(message, now)
        if isinstance(message, Staged):
            self._tries = 0
            if not staging.acknowledged(tag[2], message.have):
                self._committed = False
            self._on_staged(staging.bytes_done)
        return self._stage_on(now)

    def _restage(self, error: Error, now: float) -> list[Send]:
        """The primary does not have what we thought: begin again, unless nothing can be read twice."""
        if error.code not in (Stale.code, NotHeld.code):
            self.fail(from_code(error.code, error.text))
            return []
        if not self.can_repeat():
            self.fail(NeverStored(f"the upload was lost ({error.text}) and its source cannot be read again"))
            return []
        self._staging = None
        return self.pause(now, _AGAIN_S)

    def can_repeat(self) -> bool:
        untouched = self._staging is None or not self._staging.started
        return untouched or all(item.source.rereadable for item in self._items)

    def _primary_silent(self, tag: Any, now: float) -> list[Send]:
        staging, primary = self._staging, self._primary
        if staging is None or primary is None or tag[-1] != primary.number:
            return []
        self._tries += 1
        if self._tries >= _TRIES_MAX and self.can_repeat():
            self._avoid.add(primary.number)
            self.directory.complain(primary.number, now)
            return self.place(now)
        if tag[0] == "committed":
            return self._commit(now, with_await=False)
        staging.failed(tag[2])
        self._committed = False
        return self._stage_on(now)

    # -- commit and outcome ------------------------------------------------------------------

    def _commit(self, now: float, with_await: bool = True) -> list[Send]:
        staging, primary = self._staging, self._primary
        assert staging is not None and primary is not None
        self._may_be_decided = True
        pages = [
            CommitPage(index, item.name, size, digest, item.content_type, item.modified)
            for index, item, size, digest in staging.described()
        ]
        request = Commit(self._batch, staging.version, primary.incarnation, pages)
        tag = ("committed", self._attempt, primary.number)
        sends = [Send(primary.number, request, tag, _COMMIT_TIMEOUT_S)]
        return sends + (self.await_() if with_await else [])

    def _take_committed(self, message: Any, now: float) -> list[Send]:
        if isinstance(message, Committed) or self._staging is None:
            return []
        if isinstance(message, Error) and message.code == NotHeld.code and not self._staging.all_acknowledged:
            # It overtook bytes that the primary had refused for now; it is sent again after them.
            self._committed = False
            return []
        return self._restage(message, now)

    def _take_outcome(self, message: Any, now: float) -> list[Send]:
        self._awaiting = 0
        sends = self.outcome(message, now)
        if sends or self.finished:
            return sends
        if message.stored > self._seen:
            self._seen = message.stored
            self._on_stored(message.stored)
        if message.lost:
            if not self.can_repeat():
                self.fail(NeverStored("the primary died and the upload's source cannot be read again"))
                return []
            return self.place(now)
        return self.await_()

    def settled(self, outcome: Outcome) -> None:
        assert self._reserved is not None or self._may_be_decided
        skip = self._reserved.skip if self._reserved else []
        skipped = [self._items[index].name for index in skip] if self._primary or outcome.copies else []
        self._on_stored(self._copies)
        self.finish(Stored(outcome.version, skipped, self._copies))

    def abort(self) -> list[Send]:
        """What to send if the caller gives up."""
        return [self.to_balancer(Abort(self._batch), ("abort", self._attempt))] if self._epoch else []


class _Staging:
    """The bytes of one attempt: cut into Stage messages, under a credit, sent again where needed."""

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
            data = self._items[index].source.read(offset, CHUNK_BYTES)
            if len(data) < CHUNK_BYTES and transfer.size is None:
                transfer.ends_at(offset + len(data))
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

    def _message(self, parts: list[StagePart], data: Any) -> tuple[int, list[StagePart], Any]:
        self._serial += 1
        self._sent[self._serial] = (parts, data)
        self._outstanding_bytes += len(data)
        return self._serial, parts, data

    def failed(self, serial: int) -> None:
        """No answer, or not now: the message is sent again, in its place."""
        if serial in self._sent and serial not in self._again:
            self._again.append(serial)

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
        self._outstanding_bytes -= len(data)
        self.bytes_done += len(data)
        if self._current is not None and last.page == self._current[0]:
            self._current[1].arrive(last.offset)
            if self._current[1].done:
                self._current = None
        return True


class RemovePages(Decided):
    """Take names out of the catalog, all or none. Result: how many there were."""

    def __init__(
        self, directory: Directory, deadline: float, new_id: Callable[[], bytes], names: dict[str, int]
    ) -> None:
        super().__init__(directory, deadline, new_id)
        self._names = names

    def place(self, now: float) -> list[Send]:
        pages = [RemovePage(name, condition) for name, condition in self._names.items()]
        request = Remove(self._batch, self._epoch, pages, max(0.0, self.deadline - now))
        self._may_be_decided = True
        return [self.to_balancer(request, ("removed", self._attempt))]

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        self._heard_balancer = True
        if tag[1] != self._attempt or self.finished:
            return []
        if tag[0] == "ping":
            return self.ponged(message, now)
        if tag[0] == "which epoch":
            return self.epoch_told(message, now)
        self._awaiting = 0
        sends = self.outcome(message, now)
        return sends if sends or self.finished else self.await_()

    def unanswered(self, tag: Any, now: float) -> list[Send]:
        if tag[1] != self._attempt or self.finished:
            return []
        self._heard_balancer = False
        if tag[0] in ("ping", "which epoch"):
            return [self.to_balancer(Ping(), tag)]
        self._awaiting = 0
        return self.place(now)

    def settled(self, outcome: Outcome) -> None:
        self.finish(len(self._names) - len(outcome.names))
