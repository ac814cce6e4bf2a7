"""What puts and removals share: a batch id that is decided once, and an outcome to ask for.

What lives here: the epoch that a batch is placed in, Await and Abort, and what an
unclear end is called. What must not: what is placed (upload.py).

A batch that was told nothing of is safe to ask about. Only one whose epoch ended is
tried again under a new id, and only after the balancer said that the old one never
was. An operation fails with anything but OutcomeUnknown only when its batch cannot be
decided any more: if it might be, it is aborted first.
"""

from collections.abc import Callable
from math import inf
from typing import Any, Final

from dws.client import BALANCER_TIMEOUT_S, Directory, Operation, Send
from dws.errors import Conflict, DwsError, NeverStored, OutcomeUnknown, Stale, TimedOut, from_code
from dws.messages import Abort, Await, Error, Outcome, Ping, Pong

_PATIENCE_S: Final = 1.0
_AGAIN_S: Final = 0.05
#: How much longer than its deadline an operation asks what became of its batch.
_LAST_WORD_S: Final = 2.0


class Decided(Operation):
    """Tags of requests are (what, attempt, …).

    deadline: the batch's, until which it may be decided. patience_s: the longest
    time without any answer that brings it on; less than the deadline where that
    must be far away because an upload is long.
    """

    places_at_once = False
    """Whether `place` may be sent before the balancer was heard, if an epoch is known: harmless if it comes
    when nobody waits for it any more."""

    def __init__(
        self, directory: Directory, deadline: float, new_id: Callable[[], bytes], patience_s: float = inf
    ) -> None:
        super().__init__(directory, deadline)
        self._patience_s = patience_s
        self._moved_at = inf
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
        self._giving_up: DwsError | None = None

    @property
    def ends_at(self) -> float:
        return min(self.deadline, self._moved_at + self._patience_s)

    def late(self) -> DwsError:
        if not self._heard_balancer or not self._why:
            return super().late()
        return TimedOut(f"not in time: {self._why}")

    def start(self, now: float) -> list[Send]:
        self._moved_at = min(self._moved_at, now)
        self._attempt += 1
        self._epoch = 0
        self._may_be_decided = False
        self._seen = 0
        if self.directory.epoch and self.places_at_once:
            # As told last; if it has passed, the balancer says so, and the batch begins anew in the next.
            self._epoch = self.directory.epoch
            return self.place(now)
        return [self.to_balancer(Ping(), ("ping", self._attempt))]

    def resume(self, now: float) -> list[Send]:
        if self._giving_up is not None:
            return self.abort()
        return self.place(now) if self._epoch else self.start(now)

    def tick(self, now: float) -> list[Send]:
        if self.finished or now < self.ends_at or not self._may_be_decided:
            return super().tick(now)
        if self._giving_up is None and self._heard_balancer:
            return self.give_up(TimedOut("the batch was not decided by the deadline"), now)
        text = "the balancer could not be asked whether the batch took effect; ask again with stat"
        self.fail(OutcomeUnknown(text))
        return []

    # -- what subclasses do --------------------------------------------------------------

    def place(self, now: float) -> list[Send]:
        """Send the request that names the batch, in self._epoch."""
        raise NotImplementedError

    def take(self, tag: Any, message: Any, now: float) -> list[Send]:
        """An answer to a request of the subclass's own."""
        raise NotImplementedError

    def missed(self, tag: Any, now: float) -> list[Send]:
        """No answer to a request of the subclass's own."""
        raise NotImplementedError

    def still_open(self, outcome: Outcome, now: float) -> list[Send]:
        return self.await_()

    def settled(self, outcome: Outcome) -> None:
        """The batch is visible."""
        raise NotImplementedError

    def conflicted(self, text: str, names: list[str], now: float) -> list[Send]:
        """A condition of the batch fails; it will never be visible."""
        self.fail(Conflict(text))
        return []

    def can_repeat(self) -> bool:
        return True

    # -- answers ---------------------------------------------------------------------------

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        what, attempt = tag[0], tag[1]
        if self.is_of_balancer(what):
            self.heard_balancer()
        if attempt != self._attempt or self.finished:
            return []
        if not isinstance(message, Error):
            self._moved_at = now
        if self._giving_up is not None:
            return self._take_last_word(self._giving_up, message, now) if what == "abort" else []
        match what:
            case "ping":
                return self._take_pong(message, now)
            case "which epoch":
                return self._take_epoch(message, now)
            case "await":
                self._awaiting = 0
                return self.take_outcome(message, now)
        return self.take(tag, message, now)

    def unanswered(self, tag: Any, now: float) -> list[Send]:
        what, attempt = tag[0], tag[1]
        if attempt != self._attempt or self.finished:
            return []
        if self.is_of_balancer(what):
            self._heard_balancer = False
        if self._giving_up is not None:
            return self.abort() if what == "abort" else []
        if what in ("ping", "which epoch"):
            return [self.to_balancer(Ping(), tag)]
        if what == "await":
            self._awaiting = 0
            return self.await_()
        return self.missed(tag, now)

    def is_of_balancer(self, what: str) -> bool:
        return True

    def _take_pong(self, message: Any, now: float) -> list[Send]:
        if not isinstance(message, Pong):
            return self.refused(message, now)
        self._epoch = self.directory.epoch = message.epoch
        return self.place(now)

    def take_outcome(self, message: Any, now: float) -> list[Send]:
        if not isinstance(message, Outcome):
            return self.refused(message, now)
        match message.state:
            case "visible":
                self.settled(message)
            case "conflict":
                return self.conflicted(message.text, message.names, now)
            case "never":
                return self._was_never(message.text)
            case _:
                return self.still_open(message, now)
        return []

    def refused(self, error: Any, now: float) -> list[Send]:
        """A request about the batch was answered with an error."""
        if not isinstance(error, Error):
            return self.give_up(DwsError(f"an unexpected answer: {type(error).__name__}"), now)
        if error.retry_s:
            self._why = error.text
            return self.pause(now, error.retry_s)
        if error.code == Stale.code:
            self._may_be_decided = True
            return self.await_()
        if error.code == Conflict.code:
            return self.conflicted(error.text, error.names, now)
        if error.code == NeverStored.code:
            return self._was_never(error.text)
        return self.give_up(from_code(error.code, error.text), now)

    # -- the outcome --------------------------------------------------------------------------

    def await_(self) -> list[Send]:
        if self._awaiting == self._attempt:
            return []
        self._awaiting = self._attempt
        request = Await(self._batch, self._seen, _PATIENCE_S)
        return [self.to_balancer(request, ("await", self._attempt), _PATIENCE_S + BALANCER_TIMEOUT_S)]

    def _was_never(self, text: str) -> list[Send]:
        """Not to be under this id. If its epoch ended, that says nothing against a new one."""
        self._why = text
        self._may_be_decided = False
        self._awaiting = self._attempt
        return [self.to_balancer(Ping(), ("which epoch", self._attempt))]

    def _take_epoch(self, message: Any, now: float) -> list[Send]:
        if isinstance(message, Pong):
            self.directory.epoch = message.epoch
        if isinstance(message, Pong) and message.epoch != self._epoch and self.can_repeat():
            return self.begin_anew(now)
        self.fail(NeverStored(self._why))
        return []

    def begin_anew(self, now: float) -> list[Send]:
        """Under a new id: the old one will never be decided."""
        self._batch = self._new_id()
        return self.start(now)

    def give_up(self, error: DwsError, now: float) -> list[Send]:
        """Fail so, as soon as it is certain that the batch is not decided."""
        if not self._may_be_decided:
            self.fail(error)
            return []
        self._giving_up = error
        self._pause_until = None
        self.deadline = max(self.deadline, now + _LAST_WORD_S)
        self._moved_at = now
        return self.abort()

    def abort(self) -> list[Send]:
        """What to send if the caller gives up."""
        return [self.to_balancer(Abort(self._batch), ("abort", self._attempt))] if self._epoch else []

    def _take_last_word(self, error: DwsError, message: Any, now: float) -> list[Send]:
        if isinstance(message, Outcome) and message.state in ("conflict", "never"):
            # That it will never be is worth more to know than that time ran out.
            text = f"{message.text}; last refused since {self._why}" if self._why else message.text
            self.fail(NeverStored(text) if isinstance(error, TimedOut) else error)
        elif isinstance(message, Outcome) and message.state == "visible":
            self.settled(message)
        else:
            return self.pause(now, _AGAIN_S)
        return []
