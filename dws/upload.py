"""Writing pages: one batch from its Reserve to its outcome.

What lives here: the steps of a put and of a removal, what is sent again and
where to. What must not: sockets, clocks, files (sources are handed in), and what
an unclear end is called (decided.py).
"""

from collections.abc import Callable
from math import inf
from typing import Any, Final

from msgspec import Struct

from dws.client import Directory, Send
from dws.decided import Decided
from dws.errors import DwsError, Full, NeverStored, NotHeld, Stale, TryAgain, from_code
from dws.messages import (
    ANY,
    Commit,
    CommitPage,
    Committed,
    Error,
    Outcome,
    PutPage,
    Remove,
    RemovePage,
    Reserve,
    Reserved,
    ServerRef,
    Stage,
    Staged,
    Unstage,
)
from dws.outbox import Outbox, PutItem

_STAGE_TIMEOUT_S: Final = 5.0
_COMMIT_TIMEOUT_S: Final = 5.0
#: Times one request to the primary may go unanswered before another primary is asked for.
_TRIES_MAX: Final = 2
_AGAIN_S: Final = 0.05
#: More copies than there can be: Await answers at the end only.
_NO_NEWS: Final = 1 << 16


class Stored(Struct):
    version: int
    skipped: list[str]
    copies: int


class PutBatch(Decided):
    """One batch of pages. Result: Stored.

    on_staged: called with the bytes staged so far; on_stored with the copies so far
    and those wanted (without it the balancer is not asked for each).
    direct: bring a small batch to its backups too.
    """

    # A Reserve alone makes nothing visible.
    places_at_once = True

    def __init__(
        self,
        directory: Directory,
        deadline: float,
        new_id: Callable[[], bytes],
        items: list[PutItem],
        copies: int,
        on_staged: Callable[[int], None] = lambda size_bytes: None,
        on_stored: Callable[[int, int], None] | None = None,
        patience_s: float = inf,
        direct: bool = True,
    ) -> None:
        super().__init__(directory, deadline, new_id, patience_s)
        self._items = items
        self._copies = copies
        self._on_staged = on_staged
        self._on_stored = on_stored
        self._avoid: set[int] = set()
        self._primary: ServerRef | None = None
        self._reserved: Reserved | None = None
        self._outbox: Outbox | None = None
        self._committed = False
        self._direct = direct
        self._with_bytes = False
        """Whether the Commit that is on the way brings the bytes itself."""
        self._placement = 0
        self._tries = 0
        self._met_full = False
        self._has_read = False

    def place(self, now: float) -> list[Send]:
        self._committed = self._with_bytes = False
        self._outbox = None
        self._seen = _NO_NEWS if self._on_stored is None else 0
        pages = [PutPage(i.name, i.size, i.digest, i.condition, i.content_type) for i in self._items]
        left_s = max(0.0, self.deadline - now)
        direct = self._direct and all(item.source.rereadable for item in self._items)
        request = Reserve(self._batch, self._epoch, pages, self._copies, left_s, sorted(self._avoid), direct)
        return [self.to_balancer(request, ("reserved", self._attempt))]

    def resume(self, now: float) -> list[Send]:
        if self._giving_up is not None or self._outbox is None:
            return super().resume(now)
        sends = self._stage_on(now)
        return sends + self.await_() if self._committed and not self.finished else sends

    def tick(self, now: float) -> list[Send]:
        if self._has_read:
            # However long a stream took to bring them: new bytes are progress, and that wait is no silence.
            self._has_read = False
            self._moved_at = now
        return super().tick(now)

    def is_of_balancer(self, what: str) -> bool:
        return what not in ("staged", "committed", "backed")

    def take(self, tag: Any, message: Any, now: float) -> list[Send]:
        if tag[0] == "reserved":
            return self._take_reserved(message, now)
        # Of an earlier placement it is late: the primary or what it has is another now.
        if self._outbox is None or tag[2] != self._placement:
            return []
        if tag[0] == "backed":
            return []
        if tag[0] == "staged":
            return self._take_staged(self._outbox, tag[3], message, now)
        return self._take_committed(self._outbox, message, now)

    def missed(self, tag: Any, now: float) -> list[Send]:
        if tag[0] == "reserved":
            return self.place(now)
        if self._outbox is None or tag[2] != self._placement or tag[0] == "backed":
            return []
        return self._primary_silent(self._outbox, tag, now)

    def give_up(self, error: DwsError, now: float) -> list[Send]:
        # A batch that will not be committed ends here and now: neither answer is waited for.
        farewell = [] if self._may_be_decided or self._outbox is None else self.abort()
        return super().give_up(error, now) + farewell

    def abort(self) -> list[Send]:
        return super().abort() + self._unstage()

    def _unstage(self) -> list[Send]:
        """What the primary was sent in vain it may drop now, not when it is tired of waiting. Once it was
        told to commit, what becomes of the batch is the balancer's to say."""
        primary = self._primary
        if primary is None or self._outbox is None or self._may_be_decided:
            return []
        tag = ("unstaged", self._attempt, self._placement)
        return [Send(primary.number, Unstage(self._batch), tag, _STAGE_TIMEOUT_S)]

    def conflicted(self, text: str, names: list[str], now: float) -> list[Send]:
        """A page that was skipped, since it had these bytes, has others by now: that is no condition
        of the caller's."""
        asked = {item.name for item in self._items if item.condition != ANY}
        if names and asked.isdisjoint(names) and self.can_repeat():
            return self.begin_anew(now)
        return super().conflicted(text, names, now)

    def check(self) -> None:
        if self._outbox is not None:
            self._outbox.check()

    # -- reserve -----------------------------------------------------------------------

    def _take_reserved(self, message: Any, now: float) -> list[Send]:
        if not isinstance(message, Reserved):
            return self.refused(message, now)
        self._reserved = message
        self._primary = message.primary
        if message.primary is None:
            self._may_be_decided = True
            return self.await_()
        self.directory.servers[message.primary.number] = message.primary
        self._tries = 0
        self._placement += 1
        self._outbox = Outbox(self._items, set(message.skip), message.version, self._attempt)
        if message.backups:
            return self._commit_direct(self._outbox, message.primary, message.backups, now)
        return self._stage_on(now)

    # -- stage ---------------------------------------------------------------------------

    def _stage_on(self, now: float) -> list[Send]:
        outbox, primary = self._outbox, self._primary
        assert outbox is not None and primary is not None
        sends = []
        made = outbox.made
        try:
            for serial, parts, data in outbox.next_messages():
                request = Stage(self._batch, outbox.version, primary.incarnation, parts)
                tag = ("staged", self._attempt, self._placement, serial)
                sends.append(Send(primary.number, request, tag, _STAGE_TIMEOUT_S, data))
        except OSError as error:
            return self.give_up(DwsError(f"cannot read what is to be put: {error}"), now)
        self._has_read |= outbox.made > made
        if outbox.all_sent and not self._committed:
            self._committed = True
            sends += self._commit(now)
        return sends

    def _take_staged(self, outbox: Outbox, serial: int, message: Any, now: float) -> list[Send]:
        if isinstance(message, Error):
            if message.code == TryAgain.code:
                outbox.failed(serial)
                self._committed = False
                return self.pause(now, message.retry_s or _AGAIN_S)
            return self._restage(message, now)
        if isinstance(message, Staged):
            self._tries = 0
            if outbox.is_lost(serial, message.have):
                return self._restage(Error(NotHeld.code, "the primary lost what was staged"), now)
            if not outbox.acknowledged(serial, message.have):
                self._committed = False
            self._on_staged(outbox.bytes_done)
        return self._stage_on(now)

    def _restage(self, error: Any, now: float) -> list[Send]:
        """The primary does not have what we thought: begin again, unless nothing can be read twice."""
        if not isinstance(error, Error):
            return self.give_up(DwsError(f"an unexpected answer: {type(error).__name__}"), now)
        if error.code == Full.code and not self._met_full and self.can_repeat():
            # Its disk filled up since the balancer last heard of it; a second one that is full is no chance.
            self._met_full = True
            return self._place_elsewhere(now)
        if error.code not in (Stale.code, NotHeld.code):
            return self.give_up(from_code(error.code, error.text), now)
        if not self.can_repeat():
            text = f"the upload was lost ({error.text}) and its source cannot be read again"
            return self.give_up(NeverStored(text), now)
        self._outbox = None
        return self.pause(now, _AGAIN_S)

    def can_repeat(self) -> bool:
        untouched = self._outbox is None or not self._outbox.started
        return untouched or all(item.source.rereadable for item in self._items)

    def _place_elsewhere(self, now: float) -> list[Send]:
        primary = self._primary
        assert primary is not None
        self._avoid.add(primary.number)
        return self._unstage() + self.place(now)

    def _primary_silent(self, outbox: Outbox, tag: Any, now: float) -> list[Send]:
        primary = self._primary
        assert primary is not None
        self._tries += 1
        if self._tries >= _TRIES_MAX and self.can_repeat():
            self._avoid.add(primary.number)
            self.directory.complain(primary.number, now)
            return self.place(now)
        if tag[0] == "committed":
            return self._commit(now, with_await=False)
        outbox.failed(tag[3])
        self._committed = False
        return self._stage_on(now)

    # -- commit and outcome ------------------------------------------------------------------

    def _commit(self, now: float, with_await: bool = True) -> list[Send]:
        outbox, primary = self._outbox, self._primary
        assert outbox is not None and primary is not None
        sends = [self._commit_to(primary, "committed", outbox)]
        return sends + (self.await_() if with_await else [])

    def _commit_direct(
        self, outbox: Outbox, primary: ServerRef, backups: list[ServerRef], now: float
    ) -> list[Send]:
        """A small batch, its bytes with it, to every server that is to store it. What becomes of it at the
        backups is between them and the balancer, which has those copy it that do not report it."""
        try:
            data = outbox.whole()
        except OSError as error:
            return self.give_up(DwsError(f"cannot read what is to be put: {error}"), now)
        self.directory.servers.update((backup.number, backup) for backup in backups)
        self._committed = self._with_bytes = True
        sends = [self._commit_to(primary, "committed", outbox, data)]
        sends += [self._commit_to(backup, "backed", outbox, data) for backup in backups]
        return sends + self.await_()

    def _commit_to(self, server: ServerRef, what: str, outbox: Outbox, data: bytes | None = None) -> Send:
        self._may_be_decided = True
        pages = [
            CommitPage(index, item.name, size, digest, item.content_type, item.modified)
            for index, item, size, digest in outbox.described()
        ]
        request = Commit(self._batch, outbox.version, server.incarnation, pages, data is not None)
        return Send(server.number, request, (what, self._attempt, self._placement), _COMMIT_TIMEOUT_S, data)

    def _take_committed(self, outbox: Outbox, message: Any, now: float) -> list[Send]:
        with_bytes, self._with_bytes = self._with_bytes, False
        if isinstance(message, Committed):
            if with_bytes:
                self._on_staged(sum(size for _, _, size, _ in outbox.described()))
            return []
        if isinstance(message, Error) and with_bytes and message.code in (NotHeld.code, TryAgain.code):
            # Step by step, then: bytes first, which are passed over if they are there.
            self._committed = False
            return self.pause(now, message.retry_s or _AGAIN_S)
        if isinstance(message, Error) and message.code == NotHeld.code and not outbox.all_acknowledged:
            # It overtook bytes that the primary had refused for now; it is sent again after them.
            self._committed = False
            return []
        if isinstance(message, Error) and message.code == TryAgain.code:
            self._committed = False
            return self.pause(now, message.retry_s or _AGAIN_S)
        return self._restage(message, now)

    def still_open(self, outcome: Outcome, now: float) -> list[Send]:
        if outcome.stored > self._seen:
            self._seen = outcome.stored
            if self._on_stored is not None:
                self._on_stored(outcome.stored, outcome.copies)
        if not outcome.lost:
            return self.await_()
        if not self.can_repeat():
            text = "the primary died and the upload's source cannot be read again"
            return self.give_up(NeverStored(text), now)
        return self.place(now)

    def settled(self, outcome: Outcome) -> None:
        reserved = self._reserved
        # With no copies to make, the Reserve came again after its batch was decided: what was skipped
        # is not known any more.
        skip = reserved.skip if reserved is not None and reserved.copies else []
        copies = outcome.copies or (reserved.copies if reserved is not None else 0) or self._copies
        if self._on_stored is not None:
            self._on_stored(copies, copies)
        self.finish(Stored(outcome.version, [self._items[index].name for index in skip], copies))


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

    def take(self, tag: Any, message: Any, now: float) -> list[Send]:
        return self.take_outcome(message, now)

    def missed(self, tag: Any, now: float) -> list[Send]:
        return self.place(now)

    def settled(self, outcome: Outcome) -> None:
        self.finish(len(self._names) - len(outcome.names))
