"""Writing pages: one batch from its Reserve to its outcome.

What lives here: the steps of a put and of a removal, what is sent again and
where to, and what an unclear end is called. What must not: sockets, clocks, and
files (sources are handed in).

A put that was told nothing is safe to ask about: the batch id is decided once.
Only a batch whose epoch ended is put again under a new id, and only after the
balancer said that the old one never was.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from dws.client import BALANCER_TIMEOUT_S, Directory, Operation, Send
from dws.errors import DwsError, NeverStored, NotHeld, OutcomeUnknown, Stale, TimedOut, TryAgain, from_code
from dws.messages import (
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
)
from dws.outbox import Outbox, PutItem

_STAGE_TIMEOUT_S: Final = 5.0
_COMMIT_TIMEOUT_S: Final = 5.0
_PATIENCE_S: Final = 1.0
#: Times one request to the primary may go unanswered before another primary is asked for.
_TRIES_MAX: Final = 2
_AGAIN_S: Final = 0.05


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
        self._outbox: Outbox | None = None
        self._committed = False
        self._tries = 0

    def place(self, now: float) -> list[Send]:
        self._committed = False
        self._outbox = None
        pages = [PutPage(i.name, i.size, i.digest, i.condition, i.content_type) for i in self._items]
        left_s = max(0.0, self.deadline - now)
        request = Reserve(self._batch, self._epoch, pages, self._copies, left_s, sorted(self._avoid))
        return [self.to_balancer(request, ("reserved", self._attempt))]

    def resume(self, now: float) -> list[Send]:
        return self.place(now) if self._outbox is None else self._stage_on(now)

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
        self._outbox = Outbox(self._items, set(message.skip), message.version, self._attempt)
        return self._stage_on(now)

    # -- stage ---------------------------------------------------------------------------

    def _stage_on(self, now: float) -> list[Send]:
        outbox, primary = self._outbox, self._primary
        assert outbox is not None and primary is not None
        sends = []
        try:
            for serial, parts, data in outbox.next_messages():
                request = Stage(self._batch, outbox.version, primary.incarnation, parts)
                tag = ("staged", self._attempt, serial, primary.number)
                sends.append(Send(primary.number, request, tag, _STAGE_TIMEOUT_S, data))
        except OSError as error:
            self.fail(DwsError(f"cannot read what is to be put: {error}"))
            return []
        if outbox.all_sent and not self._committed:
            self._committed = True
            sends += self._commit(now)
        return sends

    def _take_staged(self, tag: Any, message: Any, now: float) -> list[Send]:
        outbox = self._outbox
        if outbox is None or self._primary is None or tag[3] != self._primary.number:
            return []
        if isinstance(message, Error):
            if message.code == TryAgain.code:
                outbox.failed(tag[2])
                self._committed = False
                return self.pause(now, message.retry_s or _AGAIN_S)
            return self._restage(message, now)
        if isinstance(message, Staged):
            self._tries = 0
            if not outbox.acknowledged(tag[2], message.have):
                self._committed = False
            self._on_staged(outbox.bytes_done)
        return self._stage_on(now)

    def _restage(self, error: Error, now: float) -> list[Send]:
        """The primary does not have what we thought: begin again, unless nothing can be read twice."""
        if error.code not in (Stale.code, NotHeld.code):
            self.fail(from_code(error.code, error.text))
            return []
        if not self.can_repeat():
            self.fail(NeverStored(f"the upload was lost ({error.text}) and its source cannot be read again"))
            return []
        self._outbox = None
        return self.pause(now, _AGAIN_S)

    def can_repeat(self) -> bool:
        untouched = self._outbox is None or not self._outbox.started
        return untouched or all(item.source.rereadable for item in self._items)

    def _primary_silent(self, tag: Any, now: float) -> list[Send]:
        outbox, primary = self._outbox, self._primary
        if outbox is None or primary is None or tag[-1] != primary.number:
            return []
        self._tries += 1
        if self._tries >= _TRIES_MAX and self.can_repeat():
            self._avoid.add(primary.number)
            self.directory.complain(primary.number, now)
            return self.place(now)
        if tag[0] == "committed":
            return self._commit(now, with_await=False)
        outbox.failed(tag[2])
        self._committed = False
        return self._stage_on(now)

    # -- commit and outcome ------------------------------------------------------------------

    def _commit(self, now: float, with_await: bool = True) -> list[Send]:
        outbox, primary = self._outbox, self._primary
        assert outbox is not None and primary is not None
        self._may_be_decided = True
        pages = [
            CommitPage(index, item.name, size, digest, item.content_type, item.modified)
            for index, item, size, digest in outbox.described()
        ]
        request = Commit(self._batch, outbox.version, primary.incarnation, pages)
        tag = ("committed", self._attempt, primary.number)
        sends = [Send(primary.number, request, tag, _COMMIT_TIMEOUT_S)]
        return sends + (self.await_() if with_await else [])

    def _take_committed(self, message: Any, now: float) -> list[Send]:
        if isinstance(message, Committed) or self._outbox is None:
            return []
        if isinstance(message, Error) and message.code == NotHeld.code and not self._outbox.all_acknowledged:
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
